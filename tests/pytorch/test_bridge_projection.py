"""LSTM with proj_size: values and gradients of a call on the program's kernels, and PyTorch's."""

import itertools

import numpy as np
import pytest
import twins

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from fastrnn.cells.table import CELLS  # noqa: E402
from fastrnn.torch.door import Operator  # noqa: E402
from fastrnn.torch.gradient import original  # noqa: E402
from fastrnn.torch.projected import ProjectedCall, read_projected  # noqa: E402

# PyTorch's own word on its way to compute it
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
LSTM = Operator("LSTM", "lstm", CELLS["lstm"].number, 4, True, False)
T, B, I, H, P = 7, 4, 3, 6, 5
SORTED = torch.tensor([4, 4, 3, 2, 2, 1, 1])


def made(dtype=torch.float64, layers=1, both=False, bias=True, batch_first=False, sizes=None):
    """Return a call, and its tensors."""
    torch.manual_seed(0)
    layer = nn.LSTM(I, H, layers, bias, batch_first, 0.0, both, P, dtype=dtype)
    D = 1 + both
    shape = (B, T, I) if batch_first else (T, B, I) if sizes is None else (int(sizes.sum()), I)
    x = twins.normal(*shape, dtype=dtype)
    h0, c0 = (twins.normal(layers * D, B, n, dtype=dtype, seed=n) for n in (P, H))
    call = read_projected(LSTM, x, sizes, h0, c0, layer._flat_weights, bias, layers, D, batch_first)
    assert isinstance(call, ProjectedCall), call
    return call


def outcomes(call, with_gradients=(True, True, True), needs=None):
    """Return outputs and gradients: the call's, and those of PyTorch's operator."""
    needs = needs or (True,) * len(call.tensors())
    outputs, tapes = call.forward(True)
    douts = [torch.randn_like(y) if given else None
             for y, given in zip(outputs, with_gradients, strict=True)]
    got = call.backward(tapes, *douts, needs)
    expected = original(call, call.x, call.h0, call.c0, call.weights)
    pairs = [(y, dy) for y, dy in zip(expected, douts, strict=True) if dy is not None]
    wanted = [t for t, need in zip(call.tensors(), needs, strict=True) if need]
    grads = iter(torch.autograd.grad([y for y, _ in pairs], wanted, [dy for _, dy in pairs],
                                     allow_unused=True))
    theirs = [next(grads) if need else None for need in needs]
    return outputs, tuple(y.detach() for y in expected), got, theirs


def check(call, **options):
    tolerance = ({"rtol": 1e-10, "atol": 1e-10} if call.x.dtype is torch.float64
                 else {"rtol": 1e-4, "atol": 1e-5})
    outputs, expected, got, theirs = outcomes(call, **options)
    torch.testing.assert_close(outputs, expected, **tolerance)
    assert len(got) == len(theirs)
    for a, b in zip(got, theirs, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("sizes", [None, SORTED, torch.full((T,), B)],
                         ids=["padded", "packed", "packed, equal"])
@twins.per_dtype
def test_values_and_gradients(dtype, sizes):
    for layers, both, bias in itertools.product((1, 3), (False, True), (False, True)):
        check(made(dtype, layers, both, bias, sizes=sizes))
    if sizes is None:
        check(made(dtype, 2, True, batch_first=True))


@pytest.mark.parametrize("given", [(True, False, False), (False, True, False),
                                   (False, False, True)])
def test_gradients_of_some_outputs(given):
    check(made(layers=2, both=True), with_gradients=given)


def test_gradients_of_some_inputs():
    call = made(layers=2)
    for at in range(len(call.tensors())):
        needs = tuple(i == at for i in range(len(call.tensors())))
        check(call, needs=needs)
        check(call, needs=tuple(not need for need in needs))


def test_tensors_that_are_not_contiguous():
    like = made()
    x = twins.normal(I, B, T).permute(2, 1, 0)
    weights = [w.detach().t().contiguous().t().requires_grad_() if w.dim() == 2 else w
               for w in like.weights]
    states = [s.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
              for s in (like.h0, like.c0)]
    call = read_projected(LSTM, x, None, *states, weights, True, 1, 1, False)
    check(call)
    outputs, tapes = call.forward(True)
    dy = torch.ones(()).to(call.x.dtype).expand(outputs[0].shape)
    got = call.backward(tapes, dy, None, None, (True,) * 8)
    expected = call.backward(call.forward(True)[1], dy.contiguous(), None, None, (True,) * 8)
    torch.testing.assert_close(got, expected)


def test_without_a_tape():
    call = made(layers=2, both=True)
    outputs, tapes = call.forward(False)
    assert tapes is None
    torch.testing.assert_close(outputs, call.forward(True)[0])


def test_threads_give_the_same_bits():
    call = made(torch.float32, 2, True)
    torch.set_num_threads(3)
    three = made(torch.float32, 2, True)
    assert (call.threads, three.threads) == (1, 3)
    torch.manual_seed(1)
    dy = torch.randn(T, B, 2 * P)
    for a, b in zip(*(c.backward(c.forward(True)[1], dy, None, None, (True,) * len(c.tensors()))
                      for c in (call, three)), strict=True):
        assert np.array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize(("change", "reason"), [
    ({"x": torch.zeros(T, B, I, dtype=torch.bfloat16)}, "dtype"),
    ({"x": torch.zeros(T, B, I, device="meta")}, "device"),
    ({"x": torch.zeros(T, B, I + 1)}, "shape of a weight"),
    ({"x": torch.zeros(0, B, I)}, "size is 0"),
    ({"h0": torch.zeros(1, B, P, dtype=torch.float64)}, "dtype"),
    ({"h0": torch.zeros(1, B + 1, P)}, "shape of hx"),
    ({"c0": torch.zeros(B, H)}, "hx"),
    ({"batch_sizes": SORTED}, "shape of the input"),
    ({"x": torch.zeros(9, I), "batch_sizes": SORTED}, "batch sizes"),
    ({"weights": []}, "number of weights"),
])
def test_what_is_refused(change, reason):
    call = made(torch.float32)
    given = {"x": call.x, "batch_sizes": None, "h0": call.h0, "c0": call.c0,
             "weights": call.weights} | change
    assert reason in read_projected(LSTM, *given.values(), True, 1, 1, False)
