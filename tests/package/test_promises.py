"""What docs/compatibility.md says of the process, and that its other promises name their tests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn import losses
from fastrnn._kernels import runtime

FUSED = [name for name, has in runtime.isa_names().items() if has and name != "scalar"]
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
HOME = str(Path(fastrnn.__file__).parent.parent)

THREADS = """
import numpy as np
import fastrnn
from fastrnn._kernels import runtime
assert runtime.pool_workers() == 0
layer = fastrnn.LSTM(64, 128, seed=0)
assert runtime.pool_workers() == 0
fastrnn.set_num_threads(2)
x = np.zeros((2, 1, 64), np.float32)
layer(x)  # too small to share
assert runtime.pool_workers() == 0
layer(np.zeros((20, 32, 64), np.float32))
assert runtime.pool_workers() == 1
"""


def test_threads_are_made_when_a_call_needs_them():
    environment = os.environ | {"FASTRNN_OVERSUBSCRIBE": "1", "PYTHONPATH": HOME}
    subprocess.run([sys.executable, "-c", THREADS], check=True, env=environment)


def results(kind):
    """Return the bytes of what streams, weights of 16 bits and the softmax loss give."""
    rng = np.random.default_rng(0)
    found = []
    for H in (3, 17, 40, 130):
        x = rng.standard_normal((6, 3, 5)).astype(np.float32)
        layer = kind(5, H, num_layers=2, seed=0)
        for mode in ("float32", "bfloat16"):
            layer.eval(mode)
            step = layer.stream(3)
            found += [layer(x)[0], *(step(row) for row in x[:3]), step.block(x[3:]),
                      step(x[0, :1], rows=[1])]
        loss, grad = losses.softmax_cross_entropy(5 * x.reshape(18, 5), rng.integers(0, 5, 18))
        found += [np.array(loss), grad]
        model = fastrnn.SequenceModel(layer.train(), 7, seed=0)
        p = model.loss(x, rng.integers(0, 7, (6, 3)))
        p.backward()
        found += [np.array(p.value), *model.grads.values()]
    return [a.tobytes() for a in found]


@pytest.mark.skipif(len(FUSED) < 2, reason="this CPU has one instruction set with FMA")
@pytest.mark.parametrize("kind", [fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU])
def test_instruction_sets_with_fma_have_the_same_bits(kind):
    before, found = runtime.get_isa(), {}
    try:
        for isa in FUSED:
            runtime.set_isa(isa)
            found[isa] = results(kind)
    finally:
        runtime.set_isa(before)
    assert all(found[isa] == found[FUSED[0]] for isa in FUSED)


@pytest.fixture(scope="module")
def page():
    if not PAGE.exists():  # the tests of an installed package without the repository
        pytest.skip("no docs here")
    return PAGE.read_text()


def test_the_tests_that_promises_name_exist(page):
    named = set(re.findall(r"tests/[\w/]+\.py", page))
    assert len(named) > 25
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_variables_are_those_that_are_read(page):
    read = set()
    for path in [*(ROOT / "fastrnn").rglob("*.py"), *(ROOT / "fastrnn").rglob("*.pyx")]:
        read |= set(re.findall(r'"((?:FASTRNN|OMP)_[A-Z_]+)"', path.read_text()))
    assert read == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_the_versions_are_those_of_the_package(page):
    about = (ROOT / "pyproject.toml").read_text()
    for text, pattern in ((r'requires-python = ">=(.*?)"', r"\| CPython \| {} and later"),
                          (r'dependencies = \["numpy>=(.*?)"', r"\| NumPy \| {} and later"),
                          (r'torch = \["torch>=(.*?)"', r"`fastrnn.torch` \| {} and later")):
        version = re.search(text, about)[1]
        assert re.search(pattern.format(re.escape(version)), page), version
