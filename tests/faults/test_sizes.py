"""Sizes past 2^31 bytes for real, and past 2^63 by arrays that are one row, again and again.

Letters: T steps, B sequences, I inputs, H units, G gates.
"""

import gc

import numpy as np
import pytest

import fastrnn
from fastrnn import functional
from fastrnn._kernels.linear import linear_backward, linear_forward
from fastrnn._kernels.loss import softmax_cross_entropy

HUGE = [(2**31, 2**20), (2**40, 3), (2**55, 1), (3, 2**40), (2**29, 2**29)]


def free_memory():
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if "MemAvailable" in line)
    except OSError:
        return 0


def needs(gigabytes):
    return pytest.mark.skipif(free_memory() < gigabytes * 2**30,
                              reason=f"needs {gigabytes} GB of free memory")


# ---- past 2^31 -----------------------------------------------------------------------------------


@needs(15)
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "T", "B", "H"), [
    ("LSTM", 40, 160_001, 32),     # rows, more than 2^31 bytes for each of tape and states
    ("GRU", 1_500_001, 4, 32),     # steps
    ("RNN", 9, 1_000_001, 64),     # rows of few steps
])
def test_a_tape_past_2_31_bytes(kind, T, B, H):
    """The same bits as the batch in parts; weight gradients as sums of those of the parts."""
    I = 2
    layer = getattr(fastrnn, kind)(I, H, seed=0)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    assert T * B * gates * H * 4 > 2**31
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, B, I), np.float32)
    y, _, p = layer.forward(x)
    dy = np.broadcast_to(np.float32(1), y.shape)
    small = np.empty_like(y)
    small[...] = np.cos(np.arange(H, dtype=np.float32))
    dx, _ = p.backward(small)
    whole = {name: grad.copy() for name, grad in layer.grads.items()}
    layer.zero_grad()
    del p, dy
    # in parts of the batch, or, where it has few rows, of time
    parts = np.array_split(np.arange(B), min(B, 7))
    for part in parts:
        rows = slice(part[0], part[-1] + 1)
        some, _, p = layer.forward(np.ascontiguousarray(x[:, rows]))
        assert some.tobytes() == y[:, rows].tobytes()
        some_dx, _ = p.backward(np.ascontiguousarray(small[:, rows]))
        assert some_dx.tobytes() == dx[:, rows].tobytes()
        del some, some_dx, p
    for name, grad in layer.grads.items():
        # both have errors of eps times the length of the sums, which random signs shorten
        scale = np.abs(whole[name]).max()
        assert scale > 0
        np.testing.assert_allclose(whole[name], grad, rtol=0, atol=1e-3 * scale, err_msg=name)
    gc.collect()


@needs(14)
@pytest.mark.slow
def test_a_head_and_a_loss_past_2_31_bytes():
    """R rows of N classes: 2^31 numbers' bytes and more; the same rows in parts."""
    R, K, N = 2_200_003, 8, 256
    assert R * N * 4 > 2**31
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape, np.float32) for shape in ((R, K), (N, K)))
    targets = rng.integers(0, N, R)
    logits = linear_forward(x, weight)
    grad = np.empty_like(logits)
    value = softmax_cross_entropy(logits, targets, 1.0, grad)
    total = 0.0
    for begin in range(0, R, 160_000):  # a multiple of the blocks of a sum
        rows = slice(begin, min(R, begin + 160_000))
        some = linear_forward(x[rows], weight)
        assert some.tobytes() == logits[rows].tobytes()
        own = np.empty_like(some)
        total += softmax_cross_entropy(some, targets[rows], 1.0, own)
        assert own.tobytes() == grad[rows].tobytes()
    assert value == pytest.approx(total, rel=1e-12)
    dweight, parts = np.zeros_like(weight), np.zeros_like(weight)
    dx = linear_backward(grad, x, weight, dweight)
    for begin in range(0, R, 160_000):
        rows = slice(begin, min(R, begin + 160_000))
        own = linear_backward(grad[rows], x[rows], weight, parts)
        assert own.tobytes() == dx[rows].tobytes()
    scale = np.abs(dweight).max()
    np.testing.assert_allclose(parts, dweight, rtol=0, atol=1e-3 * scale)


@needs(13)
@pytest.mark.slow
def test_lengths_and_symbols_past_2_31_bytes():
    """A padded batch whose grid has more than 2^31 bytes and whose real steps have few."""
    T, B, H = 300, 60_000, 32
    layer = fastrnn.GRU(2, H, seed=0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, B, 2), np.float32)
    lengths = rng.integers(0, 9, B)
    lengths[-3:] = T
    y, h, p = layer.forward(x, lengths=lengths)
    assert y.nbytes > 2**31
    p.backward(y)
    rows = slice(B - 100, B)
    some, last, _ = layer.forward(np.ascontiguousarray(x[:, rows]), lengths=lengths[rows])
    assert some.tobytes() == y[:, rows].tobytes()
    assert last.tobytes() == h[:, rows].tobytes()
    del y, p
    model = fastrnn.LanguageModel(16, 4, 8, seed=0)
    symbols = rng.integers(0, 16, (2, 20_000_000), np.int32)
    loss = model.loss(symbols[:, :1000], symbols[:, :1000])
    assert np.isfinite(loss.value)
    assert T * B * 3 * H * 4 > 2**31


# ---- past 2^63 -----------------------------------------------------------------------------------


def one_row(shape, dtype=np.float32):
    """Return an array of this shape, all of whose rows are one; None where NumPy has none such."""
    try:
        return np.broadcast_to(np.zeros(shape[-1] if shape[-1] < 9 else 1, dtype), shape)
    except ValueError:
        return None


def refused(act, *sizes):
    """Expect an error that names one of the sizes, or the shape, and takes no memory first."""
    with pytest.raises((ValueError, MemoryError)) as caught:
        act()
    text = str(caught.value).replace(",", "").replace("_", "")
    assert any(name in text for size in sizes for name in (str(size), f"{size:.3g}")), (
        f"{caught.value!r} names none of {sizes}")


@pytest.mark.parametrize("shape", HUGE, ids=str)
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM", "projected", "reset before"])
def test_batches_that_no_memory_holds(kind, shape):
    layer = {"projected": lambda: fastrnn.LSTM(2, 9, proj_size=3, seed=0),
             "reset before": lambda: fastrnn.GRU(2, 9, reset_after=False, seed=0)}.get(
        kind, lambda: getattr(fastrnn, kind)(2, 9, seed=0))()
    x = one_row((*shape, 2))
    if x is None:
        pytest.skip("NumPy has no such array")
    for grad in (False, True):
        refused(lambda grad=grad: layer.forward(x, grad=grad), *shape)
    lengths = np.zeros(min(shape[1], 3), int)
    if shape[1] <= 3:
        refused(lambda: layer.forward(x, lengths=lengths), *shape)
    layer.eval()
    refused(lambda: layer(x), *shape)
    small = np.ones((3, 2, 2), np.float32)
    assert np.isfinite(layer.train()(small)[0]).all()  # it works on


@pytest.mark.parametrize("shape", HUGE, ids=str)
def test_symbols_that_no_memory_holds(shape):
    model = fastrnn.LanguageModel(16, 4, 8, seed=0)
    x = one_row(shape, np.int32)
    if x is None:
        pytest.skip("NumPy has no such array")
    refused(lambda: model.loss(x, x), *shape, shape[0] * shape[1])
    refused(lambda: model.predict(x), *shape, shape[0] * shape[1])
    refused(lambda: functional.rnn_forward(
        x, None, np.ones((3, 2), np.float32), np.ones((3, 3), np.float32),
        embedding=np.ones((4, 2), np.float32)), *shape, shape[0] * shape[1])


@pytest.mark.parametrize("size", [2**31, 2**40, 2**62, 2**63, 2**64, 2**70])
def test_layers_and_streams_that_no_memory_holds(size):
    refused(lambda: fastrnn.LSTM(2, size), 4 * size * (size + 4))
    refused(lambda: fastrnn.GRU(size, 2**33), 3 * 2**33 * (size + 2**33 + 2))
    if size < 2**40:  # gradients take no memory before they are used, nor may parameters
        return
    refused(lambda: fastrnn.LSTM(size, 2), 8 * size)
    refused(lambda: fastrnn.LanguageModel(size, 4, 4), 4 * size)
    layer = fastrnn.LSTM(2, 3, seed=0)
    with pytest.raises(MemoryError, match=r"cannot allocate \d+ bytes") as caught:
        layer.stream(size)
    assert int(str(caught.value).split()[2]) >= 4 * size
    refused(lambda: fastrnn.SequenceModel(layer, size), 4 * size)


@pytest.mark.parametrize("size", [2**40, 2**62, 2**63, 2**64])
def test_equations_that_no_memory_holds(size):
    with pytest.raises((ValueError, MemoryError, OverflowError)) as caught:
        fastrnn.cell(f"size P = {size}\ns[P] = tanh(V x + R s)\nh = Q s", name="Wide")(2, 3)
    assert type(caught.value) is not OverflowError


def test_generation_that_no_memory_holds():
    model = fastrnn.LanguageModel(16, 4, 8, seed=0)
    for size in (2**55, 2**62, 2**63, 2**64):
        refused(lambda size=size: model.sample(np.array([1]), size), size)
        refused(lambda size=size: model.generate(np.array([1]), size), size)


def test_memory_is_called_by_its_name_at_the_door_to_torch():
    torch = pytest.importorskip("torch")
    from fastrnn import torch as bridge

    bridge.set_mode("always")
    try:
        module = bridge.accelerate(torch.nn.LSTM(2, 9))
        for shape in ((2**40, 3, 2), (2**55, 1, 2)):
            with torch.no_grad(), pytest.raises((RuntimeError, MemoryError, ValueError)):
                module(torch.zeros(2).expand(*shape))
        with torch.no_grad():
            assert module(torch.zeros(3, 1, 2))[0].shape == (3, 1, 9)
    finally:
        bridge.set_mode("auto")


