"""Guard pages around all that programs read and write: see tests/kernels/test_guard.py.

The sweep runs in a process of its own, one per instruction set and dtype, which a wrong touch
kills: `python tests/cells/test_program_guard.py avx2 float32`. Letters: T steps, B batch, I input,
H hidden, V symbols.
"""

import dataclasses
import faulthandler
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn._kernels import runtime

SUPPORTED = [name for name, has in runtime.isa_names().items() if has]
BYTES = {"scalar": 1, "neon": 16, "avx2": 32, "avx512": 64}  # of a vector
HOME = Path(fastrnn.__file__).parent.parent
HERE = Path(__file__).parent

TEXTS = {
    "lstm": """
        i, f, g, o = W x + U h + b
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)""",
    "reset before the product": """
        z, r = W2 x + U2 h + b2
        n = tanh(W x + U (sigmoid(r) * h) + b)
        h = (1 - sigmoid(z)) * n + sigmoid(z) * h""",
    "three widths": """
        size P = 5
        learned p[P] = 0.1
        output y
        s[P] = tanh(V x + R s + p * mean(h))
        h = norm(W x - U h) + Q s
        y[P] = sigmoid(K h) * s + rms_norm(p * s)""",
    "x itself, masks, five targets": """
        a, b_, c, d, e = W x + U h + b
        k[I] = dropout(0.3) * x + 0.5 * k + clip(x, -0.5, 0.5)
        h = sequence_mask(0.5) * tanh(a * b_ + c / (2 + d * d)) + where(e < a, e, h) + V k""",
}

def everything(put, text, T, B, I, H, dtype, V, layout):
    """Return the bytes of all that one call writes; V is None of one-hot symbols, 0 of vectors."""
    import random_cells

    from fastrnn._kernels.timeline import Timeline

    case = random_cells.make(text, T, B, I, H, dtype, masks=True)
    rng = np.random.default_rng(0)
    options, dy = {}, case.dy
    if layout:
        time = Timeline(rng.integers(0, T + 1, B), T, rng.random((T, B)) < 0.2)
        M = time.size(layout)
        options = {"time": time, "layout": layout}
        dy = rng.standard_normal((M, dy.shape[-1])).astype(dtype)
        masks = tuple(mask[:time.N] if m.each_step else mask
                      for mask, m in zip(case.masks, case.kind.masks, strict=True))
        case = dataclasses.replace(case, masks=masks)
    rows = (M,) if layout else (T, B)
    if V != 0:
        options["index"] = rng.integers(I if V is None else V, size=rows, dtype=np.int32)
        if V:
            options["embedding"] = rng.standard_normal((V, I)).astype(dtype)
    elif layout:
        x = rng.standard_normal((M, I)).astype(dtype)
        inner = put
        put = lambda array, rows=False: inner(  # noqa: E731
            x if array is case.x else array, rows)
    lean, _ = random_cells.forward(case, keep=False, packed=True, put=put, **options)
    got = random_cells.run(case, dy=dy, record=random_cells.record_names(case), put=put, **options)
    return [array.tobytes() for array in (*lean.values(), *got.values())]


def sweep(isa, dtype):
    """Return how many calls gave the bytes of ordinary arrays; raise at the first that did not."""
    from test_guard import PLACES, give_back, placer

    runtime.set_isa(isa)
    runtime.set_num_threads(3)
    lanes = max(1, BYTES[isa] // np.dtype(dtype).itemsize)
    tails = sorted({1, 2, 3, lanes - 1 or 1, lanes, lanes + 1, 2 * lanes + 1, 4 * lanes + 1})
    shapes = [shape for n in tails for shape in ((2, 3, 5, n), (3, 2, n, 5))]
    shapes += [(4, 33, 33, 97), (3, 1, 40, 260)]  # with threads
    count = 0
    for name, text in TEXTS.items():
        for k, shape in enumerate(shapes):
            for V, layout in ((0, None), ((3, None)[k % 2], None),
                              ((0, 3, None)[k % 3], ("time", "packed", "batch", "walk")[k % 4])):
                arguments = (text, *shape, dtype, V, layout)
                expected = everything(placer(None), *arguments)
                for place in PLACES:
                    print(name, place, arguments[1:], flush=count % 16 == 0)
                    assert everything(placer(place), *arguments) == expected, (name, place, shape)
                    give_back()
                    count += 1
    return count


@pytest.mark.skipif(os.name != "posix", reason="needs mprotect")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("isa", SUPPORTED)
def test_no_program_touches_what_lies_around_its_arrays(isa, dtype):
    tests = HERE.parent
    done = subprocess.run(
        [sys.executable, __file__, isa, dtype], capture_output=True, text=True, check=False,
        timeout=600, env={**os.environ, "PYTHONPATH": os.pathsep.join(map(
            str, (HOME, HERE, tests, tests / "kernels")))})
    *_, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, f"after {last!r}: {done.stderr}"
    assert last == "done"


if __name__ == "__main__":
    faulthandler.enable()
    sweep(sys.argv[1], np.dtype(sys.argv[2]).type)
    print("done")
