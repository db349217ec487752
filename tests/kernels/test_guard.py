"""Guard pages: each array that a kernel touches ends, or begins, where no byte may be touched.

A touch kills the process, so the sweep runs in a process of its own, one per instruction set and
dtype: `python tests/kernels/test_guard.py avx2 float32`. The last line that it printed says what it
was doing. Results must be those of ordinary arrays to the bit: what lies around an array is not
read.
"""

import collections
import ctypes
import faulthandler
import itertools
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn._kernels import linear, runtime, sequence
from fastrnn._kernels.loss import softmax_cross_entropy
from fastrnn._kernels.packed import Packed
from fastrnn._kernels.stream import Stream
from fastrnn._kernels.timeline import Timeline
from fastrnn._kernels.update import Ranges, norms
from fastrnn.cells import CELLS

SUPPORTED = [name for name, has in runtime.isa_names().items() if has]
BYTES = {"scalar": 1, "neon": 16, "avx2": 32, "avx512": 64}  # of a vector
HOME = Path(fastrnn.__file__).parent.parent
PLACES = ("end", "begin", "wider rows")

posix = pytest.mark.skipif(os.name != "posix", reason="needs mprotect")


# ------------------------------------------------------------------------------------ the fences


spare, taken = collections.defaultdict(list), []  # memory between fences, by its pages


def room(nbytes, place):
    """Return (mmap, offset): nbytes that end before, or begin behind, a page without access."""
    pages = -(-nbytes // mmap.PAGESIZE)
    memory = spare[pages].pop() if spare[pages] else fence(pages)
    taken.append((pages, memory))
    return memory, mmap.PAGESIZE if place == "begin" else (pages + 1) * mmap.PAGESIZE - nbytes


def fence(pages):
    """Return an mmap whose first and last page, beside `pages` others, have no access."""
    memory = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for page in (0, pages + 1):
        if protect(base + page * mmap.PAGESIZE, mmap.PAGESIZE, 0):  # PROT_NONE
            raise OSError(ctypes.get_errno(), "mprotect")
    return memory


def give_back():
    """Let later arrays have the memory of all earlier ones."""
    while taken:
        pages, memory = taken.pop()
        spare[pages].append(memory)


def fenced(array, place):
    """Return a copy between fences; with wider rows, the last row ends at the second."""
    gap = 3 if place == "wider rows" and array.ndim > 1 else 0
    rows, width = (array.size // array.shape[-1], array.shape[-1]) if array.size else (0, 0)
    count = rows * (width + gap) - gap
    if count <= 0:
        return array.copy()
    memory, offset = room(count * array.itemsize, place)
    flat = np.frombuffer(memory, array.dtype, count, offset)
    strides = [array.itemsize]
    for n in (width + gap, *array.shape[-2:0:-1])[: array.ndim - 1]:
        strides.insert(0, strides[0] * n)
    moved = np.lib.stride_tricks.as_strided(flat, array.shape, strides)
    moved[...] = array
    return moved


def placer(place):
    """Return put(array, rows=False): a copy at this place; only `rows` may have gaps between."""
    def put(array, rows=False):
        if array is None or place is None:
            return None if array is None else array.copy()
        return fenced(array, "end" if place == "wider rows" and not rows else place)

    return put


# ----------------------------------------------------------------------------- what is called there


def states(h, c):
    """Return the tuple that kernels take; c is None of cells without it."""
    return (h,) if c is None else (h, c)


def layer(put, cell, T, B, I, H, dtype, D, V, bias):
    """Return the bytes of everything that one layer writes, forward and backward."""
    rng = np.random.default_rng(0)
    kind, GH, has_c = CELLS[cell].number, CELLS[cell].G * H, CELLS[cell].has_c

    def draw(*shape, rows=False, wanted=True):
        return put(rng.standard_normal(shape).astype(dtype) / 2 if wanted else None, rows)

    def weights():
        return (draw(GH, I), draw(GH, H), draw(GH, wanted=bias), draw(GH, wanted=bias))

    # V is None of one-hot symbols, 0 of real vectors
    one_hot = V is None
    index = put(rng.integers(I if one_hot else V, size=(T, B), dtype=np.int32)) if V != 0 else None
    x = None if one_hot else draw(V, I, rows=True) if V else draw(T, B, I, rows=True)
    params = tuple(weights() for _ in range(D))
    h0, c0 = draw(D, B, H), draw(D, B, H, wanted=has_c)
    dhn, dcn = draw(D, B, H), draw(D, B, H, wanted=has_c)
    dy = draw(T, B, D * H, rows=True)
    workspace = runtime.Workspace()
    results = []
    for keep in (False, True):
        y = draw(T, B, D * H, rows=True)
        hn, cn = draw(D, B, H), draw(D, B, H, wanted=has_c)
        tape = sequence.forward(kind, x, index, params, (False, True)[:D], states(h0, c0), y,
                                states(hn, cn), keep, workspace)
        results += [y, hn, cn]
    grads = tuple(weights() for _ in range(D))
    dx = None if one_hot else draw(*x.shape, rows=True)
    dh0, dc0 = draw(D, B, H), draw(D, B, H, wanted=has_c)
    sequence.backward(tape, dy, states(dhn, dcn), dx, states(dh0, dc0), grads)
    results += [dx, dh0, dc0, *itertools.chain(*grads)]
    packs = [Packed(kind, params[0])]
    # a head of as many outputs as the layer has inputs: every tail comes up
    for head in (None, (draw(I, H), draw(I, wanted=bias))):
        step = Stream([packs], B, dtype, put(x) if V else None, one_hot, head)
        out = draw(B, H if head is None else I)
        step(put(x[0]) if V == 0 else index[0], out)
        every = put(np.arange(B)[::-1].copy())
        block = draw(T, B, out.shape[1])
        step.block(put(x) if V == 0 else index, block, rows=every)
        step(put(x[0]) if V == 0 else index[0], block[0], rows=every)
        results += [out, block]
    return [array.tobytes() for array in results if array is not None]


def ragged(put, cell, T, B, I, H, dtype, D, V, layout):
    """Return the bytes of what one layer writes for rows of different lengths, with resets.

    Only real rows of a padded x and dy may be read, and only padding is zeroed besides.
    """
    rng = np.random.default_rng(0)
    kind, GH, has_c = CELLS[cell].number, CELLS[cell].G * H, CELLS[cell].has_c
    time = Timeline(rng.integers(0, T + 1, B), T, rng.random((T, B)) < 0.1, H % 2 == 0)
    M = time.size(layout)

    def draw(*shape, rows=False, wanted=True):
        return put(rng.standard_normal(shape).astype(dtype) / 2 if wanted else None, rows)

    def weights():
        return draw(GH, I), draw(GH, H), draw(GH), draw(GH)

    # V is None of one-hot symbols, 0 of real vectors
    index = None if V == 0 else put(rng.integers(I if V is None else V, size=M, dtype=np.int32))
    x = None if V is None else draw(V or M, I, rows=True)
    params = tuple(weights() for _ in range(D))
    h0, c0 = draw(D, B, H), draw(D, B, H, wanted=has_c)
    dhn, dcn = draw(D, B, H), draw(D, B, H, wanted=has_c)
    dy = draw(M, D * H, rows=True)
    workspace = runtime.Workspace()
    results = []
    for keep in (False, True):
        y = draw(M, D * H, rows=True)
        hn, cn = draw(D, B, H), draw(D, B, H, wanted=has_c)
        tape = sequence.forward(kind, x, index, params, (False, True)[:D], states(h0, c0), y,
                                states(hn, cn), keep, workspace, time, layout, layout)
        results += [y, hn, cn]
    grads = tuple(weights() for _ in range(D))
    dx = None if x is None else draw(*x.shape, rows=True)
    dh0, dc0 = draw(D, B, H), draw(D, B, H, wanted=has_c)
    got = sequence.backward(tape, dy, states(dhn, dcn), dx, states(dh0, dc0), grads,
                            ("dh", "x", "h", "gates"))
    results += [dx, dh0, dc0, *itertools.chain(*grads), *got.values()]
    return [array.tobytes() for array in results if array is not None]


def head(put, R, K, N, dtype):
    """Return the bytes of everything that linear, loss and update write."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return put(rng.standard_normal(shape).astype(dtype))

    x, weight, bias, dy = draw(R, K), draw(N, K), draw(N), draw(R, N)
    out, dweight, dbias, dx, grad = draw(R, N), draw(N, K), draw(N), draw(R, K), draw(R, N)
    targets, weights = put(rng.integers(N, size=R, dtype=np.int32)), put(rng.uniform(size=R))
    linear.linear_forward(x, weight, bias, out)
    linear.linear_backward(dy, x, weight, dweight, dbias, True, dx)
    losses = [softmax_cross_entropy(out, targets, 0.5, grad),
              softmax_cross_entropy(dy, targets, 1.0, None, weights),
              softmax_cross_entropy(dy, targets, 0.5, dy), *norms([bias, x.ravel()], 0.5)]
    flat = [draw(R * K), draw(R * K), draw(R * K), put(rng.uniform(size=R * K).astype(dtype))]
    param, g, m, v = flat
    for buffers in ({}, {"m": m}, {"v": v}, {"m": m, "v": v}):
        row = Ranges([(param, g, buffers, 1.0, 0.1)])
        losses += row.norms(0.5)
        row.sgd(0.1, 0.9, True, limit=0.5)
        if "v" in buffers:
            row.rmsprop(0.1, 0.9, momentum=0.9)
    row.adam(0.1, 0.9, 0.99, 1e-8, 1)
    y = [runtime.activate(bias, op) for op in ("sigmoid", "tanh", "exp")]
    results = [out, dweight, dbias, dx, grad, dy, *flat, *y, np.array(losses)]
    return [array.tobytes() for array in results]


def sweep(isa, dtype):
    """Return how many calls gave the bytes of ordinary arrays; raise at the first that did not."""
    runtime.set_isa(isa)
    runtime.set_num_threads(3)
    lanes = max(1, BYTES[isa] // np.dtype(dtype).itemsize)
    # every tail of one and of two vectors, then of panels of three and four
    tails = sorted({*range(1, 2 * lanes + 2), 3 * lanes - 1, 3 * lanes + 1, 4 * lanes + 1})
    count = 0

    def compare(label, act, *arguments):
        nonlocal count
        expected = act(placer(None), *arguments)
        for place in PLACES:
            print(label, place, arguments, flush=count % 16 == 0)
            assert act(placer(place), *arguments) == expected, f"{label} {place} {arguments}"
            give_back()
            count += 1

    def shapes():
        for n in tails:
            yield from ((2, 3, 5, n), (2, 3, n, 5), (2, n, 5, 7), (1, n, n, n), (3, 1, 2, n))
        yield from ((4, 33, 33, 97), (3, 1, 40, 260), (70, 4, 3, 2 * lanes + 1))  # with threads

    for cell in CELLS:
        for k, shape in enumerate(shapes()):
            for D, V in ((2, 3), (1, 0), (1, None)) if k % 2 else ((2, 0), (1, 3), (2, None)):
                compare(f"{cell}:", layer, cell, *shape, dtype, D, V, k % 3 != 0)
        for k, n in enumerate(tails):
            layout = ("time", "batch", "packed", "sequences", "walk")[k % 5]
            for shape, V in (((4, 5, n, n), 0), ((3, n + 14, 5, n), (0, 3, None)[k % 3])):
                compare(f"{cell}, lengths:", ragged, cell, *shape, dtype, 1 + k % 2, V, layout)
        for layout in ("batch", "packed"):  # with threads: units, rows
            compare(f"{cell}, lengths:", ragged, cell, 5, 2, 40, 260, dtype, 1, 0, layout)
            compare(f"{cell}, lengths:", ragged, cell, 9, 33, 33, 97, dtype, 2, 0, layout)
    for n in tails:
        for shape in ((3, 5, n), (3, n, 5), (n, 5, 3), (n, n, n)):
            compare("head:", head, *shape, dtype)
    compare("head:", head, 301, 67, 130, dtype)
    return count


# ------------------------------------------------------------------------------------- the tests


def in_a_new_process(*arguments):
    return subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": f"{HOME}{os.pathsep}{Path(__file__).parent}"},
    )


@posix
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("isa", SUPPORTED)
def test_no_kernel_touches_what_lies_around_its_arrays(isa, dtype):
    done = in_a_new_process(isa, dtype)
    *_, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, f"after {last!r}: {done.stderr}"
    assert last == "done"


@posix
@pytest.mark.parametrize("place", ["end", "begin"])
@pytest.mark.parametrize("touch", ["read", "write"])
def test_the_fences_are_real(touch, place):
    done = in_a_new_process("touch", touch, place)
    assert done.stdout.splitlines() == ["inside is fine"]
    assert done.returncode in (-signal.SIGSEGV, -signal.SIGBUS)


def test_fenced_is_the_same_array():
    array = np.arange(60.0).reshape(3, 4, 5)
    for place in PLACES:
        moved = fenced(array, place)
        np.testing.assert_array_equal(moved, array)
        gap = 3 if place == "wider rows" else 0
        assert moved.strides == (4 * (5 + gap) * 8, (5 + gap) * 8, 8)


def touch(how, place):
    array = fenced(np.arange(5, dtype=np.float32), place)
    assert array.sum() == 10
    print("inside is fine", flush=True)
    beside = array.ctypes.data + (array.nbytes if place == "end" else -1)
    if how == "read":
        ctypes.string_at(beside, 1)
    else:
        ctypes.memset(beside, 0, 1)


if __name__ == "__main__":
    if sys.argv[1] == "touch":
        touch(*sys.argv[2:])
    else:
        faulthandler.enable()
        sweep(sys.argv[1], np.dtype(sys.argv[2]).type)
        print("done")
