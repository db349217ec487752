"""Each fast path switched off gives the same bits.

Some have a slower twin that any program can call: weights that are packed beforehand or for each
call, x W_ih of many steps at once or step by step, one thread or several. The others are switched
off in a build of the C side for this test: tiles of more than one row and panel, prefetches, and
the function that takes one row over many steps.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cases
import numpy as np
import pytest
from cases import drawer

import fastrnn
from fastrnn._kernels import runtime

ROOT = Path(__file__).parents[2]
SWITCHES = ("FR_ONE_TILE", "FR_NO_PREFETCH", "FR_NO_WALK")
STEPS, INPUTS, HIDDEN = 12, 37, 70  # several panels, and a last one that is not full


def whole(layer, x):
    """Return the bytes of y and of the last state of one call."""
    y, state = layer(x)
    return as_bytes(y, state)


def pieces(layer, x):
    """Return the same of one call a step: no projection is made for several steps at once."""
    ys, state = [], None
    for t in range(len(x)):
        y, state = layer(x[t : t + 1], state)
        ys.append(y)
    return as_bytes(np.concatenate(ys), state)


def stream(layer, x, block):
    """Return the same of a stream: `block` projects x of all steps, a single step its own."""
    step = layer.stream(x.shape[1])
    y = step.block(x) if block else np.stack([step(row).copy() for row in x])
    return as_bytes(y, step.state)


def as_bytes(y, state):
    state = state if isinstance(state, tuple) else (state,)
    return b"".join(np.ascontiguousarray(array).tobytes() for array in (y, *state))


@pytest.mark.parametrize("B", [1, 3, 17, 33])  # below and above where x and h are one chain
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_packing_projection_and_threads_can_be_switched_off(isa, threads, cell, dtype, B):
    layer = cases.LAYERS[cell](INPUTS, HIDDEN, 2, dtype=dtype, seed=0)
    x = drawer(dtype)(STEPS, B, INPUTS)
    runtime.set_num_threads(1)
    expected = pieces(layer, x)  # packs a panel when it is used, projects nothing beforehand
    for count in (1, 2, 3):
        runtime.set_num_threads(count)
        for mode in ("training", "evaluation"):
            layer.train(mode == "training")
            found = {"one call": whole(layer, x), "calls of a step": pieces(layer, x),
                     "a block": stream(layer, x, True), "steps": stream(layer, x, False)}
            for name, got in found.items():
                assert got == expected, f"{mode}, {count} threads: {name}"


# ------------------------------------------------------------------------ builds with less in them

FLAGS = ("-std=c11", "-fPIC", "-shared", "-pthread", "-O1", "-g0", "-DNDEBUG",
         "-fno-strict-aliasing", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off",
         "-fvisibility=hidden")


def compiler():
    """Return the C compiler that Python was built with, if it and the sources are here."""
    pytest.importorskip("Cython")
    words = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    if not shutil.which(words[0]) or not (ROOT / "src_c").exists():
        pytest.skip("no compiler here, or no source")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no headers of Python here")
    return words


def built(place, switches, flags=()):
    """Put a copy of the package into a folder, with a C side that was built with switches."""
    cc, package = compiler(), place / "fastrnn"
    shutil.copytree(Path(fastrnn.__file__).parent, package,
                    ignore=shutil.ignore_patterns("*.c", "__pycache__"))
    source, target = place / "runtime.c", package / "_kernels" / Path(runtime.__file__).name
    subprocess.run([sys.executable, "-m", "cython", "-3", "-X", "cdivision=True",
                    "fastrnn/_kernels/runtime.pyx", "-o", source], cwd=ROOT, check=True)
    target.unlink()
    stable = [] if ".abi3." not in target.name else ["-DPy_LIMITED_API=0x030b0000"]
    subprocess.run(
        [*cc, *FLAGS, *flags, *stable, "-DNPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION",
         *(f"-D{switch}" for switch in switches), "-I", ROOT / "src_c", "-I", np.get_include(),
         "-I", sysconfig.get_path("include"), source, *sorted((ROOT / "src_c").glob("*.c")),
         *sorted((ROOT / "src_c" / "isa").glob("*.c")), "-o", target], check=True)


def bits(place):
    """Return the lines of tools/bits.py for the package in a folder: hashes of all results."""
    done = subprocess.run([sys.executable, ROOT / "tools" / "bits.py"], check=True, text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(place)})
    return done.stdout.splitlines()


@pytest.mark.parametrize("switches", [
    SWITCHES, *(pytest.param((switch,), marks=pytest.mark.slow) for switch in SWITCHES)],
    ids=" ".join)
def test_paths_of_c_can_be_switched_off(tmp_path, switches):
    built(tmp_path, switches)
    expected = bits(Path(fastrnn.__file__).parents[1])
    assert len(expected) == 10 * sum(runtime.isa_names().values())
    assert bits(tmp_path) == expected


@pytest.mark.slow
@pytest.mark.skipif(not runtime.isa_names().get("avx2"), reason="needs a CPU with FMA")
def test_other_bits_are_seen(tmp_path):
    # products and sums round once; GCC does so from -O2 on
    built(tmp_path, SWITCHES, ("-O2", "-mfma", "-ffp-contract=fast"))
    assert bits(tmp_path) != bits(Path(fastrnn.__file__).parents[1])
