"""Calls whose tensors do not fit together: PyTorch computes them, or raises its own error.

Letters: T steps, B batch, I input, H hidden.
"""

import numpy as np
import pytest
import twins

torch = pytest.importorskip("torch")

from fastrnn._kernels.exchange import Exchange  # noqa: E402
from fastrnn.torch.door import Operator, read_module, read_sequence  # noqa: E402
from fastrnn.torch.reading import converted, created, read_lengths  # noqa: E402

T, B, I, H = 4, 3, 2, 5
GRU = Operator("gru", "gru", 4, 3, False, False)
LSTM = Operator("lstm", "lstm", 3, 4, True, False)


def weights(gates, H=H):
    return [torch.zeros(gates * H, I), torch.zeros(gates * H, H),
            torch.zeros(gates * H), torch.zeros(gates * H)]


def read(op, given, *, bias=True, batch_sizes=None):
    """Return the reason why PyTorch must compute the call; fail if there is none."""
    x = torch.zeros(T, B, I) if batch_sizes is None else torch.zeros(T * B, I)
    c0 = torch.zeros(1, B, H) if op.has_c else None
    reason = read_sequence(op, x, batch_sizes, torch.zeros(1, B, H), c0, given, bias, 1, 1, False)
    assert isinstance(reason, str)
    return reason


def test_weights_that_do_not_fit():
    whole = weights(3)
    for few in ([], whole[:1], [whole[0], whole[2]]):
        assert read(GRU, few) == "the shape of a weight"
    assert read(GRU, whole[:3]) == "the number of weights"
    assert read(GRU, whole, bias=False) == "the number of weights"
    assert read(LSTM, [*weights(4), torch.zeros(2, H)]) == "projection"
    for i, reason in enumerate(["the shape of a weight"] * 2 + ["the shape of a bias"] * 2):
        wrong = list(whole)
        wrong[i] = wrong[i][:-1]
        assert read(GRU, wrong) == reason
    wrong = [*whole[:3], whole[3][:, None]]
    assert read(GRU, wrong) == "the shape of a bias"


@pytest.mark.parametrize("sizes", [
    [[3, 3, 3, 3]], [], [3, 3, 3, 0], [3, 3, 2, 3], [3, 3, 3, 2], np.array([3, 3, 3, 3], "i4")])
def test_batch_sizes_that_do_not_fit(sizes):
    sizes = torch.as_tensor(np.array(sizes, getattr(sizes, "dtype", "i8")))
    assert read_lengths(sizes, T * B) is None
    assert read(GRU, weights(3), batch_sizes=sizes) == "the batch sizes"
    fine = read_lengths(torch.tensor([3, 3, 3, 3]), T * B)
    assert fine == (T, B, None)


def test_a_module_with_other_names_of_its_weights_is_left_alone():
    module = torch.nn.GRU(I, H)
    x = torch.zeros(T, B, I)
    assert read_module(GRU, module, x, None) is not None
    module._flat_weights_names = module._flat_weights_names[:-1]
    assert read_module(GRU, module, x, None) is None


def test_a_module_gets_no_half_of_a_state():
    module = torch.nn.LSTM(I, H)
    x, h = torch.zeros(T, B, I), torch.zeros(1, B, H)
    assert read_module(LSTM, module, x, (h, h)) is not None
    for half in ((None, h), (h, None), (None, None)):
        assert read_module(LSTM, module, x, half) is None


def test_input_without_features():
    none = [torch.zeros(3 * H, 0), *weights(3)[1:]]
    found = read_sequence(GRU, torch.zeros(T, B, 0), None, None, None, none, True, 1, 1, False)
    assert found == "a size is 0"


def test_a_gradient_of_another_dtype_is_converted():
    torch.manual_seed(0)
    x, h0 = torch.randn(T, B, I), torch.zeros(1, B, H)
    given = [torch.randn_like(weight) for weight in weights(3)]
    call = read_sequence(GRU, x, None, h0, None, given, True, 1, 1, False)
    needs = (True, True, False, *[True] * len(given))  # no c0
    found = []
    for dtype in (torch.float32, torch.float64):
        (y, _), tapes = call.forward(True)
        found.append(call.backward(tapes, torch.ones_like(y, dtype=dtype), None, None, needs))
    for one, other in zip(*found, strict=True):
        assert one is other is None or torch.equal(one, other)
    assert found[0][0].abs().sum() > 0


@twins.per_cell
def test_zeros_without_memory(cell):
    theirs, ours = twins.twins(cell, 4, 4, single=True)
    zeros = torch._efficientzerotensor((3, 4), dtype=torch.float64)
    found = []
    for module in (theirs, ours):
        x = twins.normal(3, 4)
        h = twins.as_tuple(module(x))[0]
        found.append([*torch.autograd.grad(h, x, zeros), *twins.as_tuple(module(zeros))])
    torch.testing.assert_close(found[1], found[0])


EXCHANGES = [Exchange(getattr(torch.Tensor, "__dlpack_c_exchange_api__", None), converted, created),
             Exchange(None, converted, created)]


@pytest.mark.parametrize("exchange", EXCHANGES, ids=["fast", "slow"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 5), (7, 1, 3), (40, 50, 60)])
@pytest.mark.parametrize("size", [4, 8])
def test_new_tensors(exchange, shape, size):
    """They are PyTorch's in all that can be seen, and their memory lives as long as they do."""
    like = torch.empty(shape, dtype=torch.float32 if size == 4 else torch.float64)
    made = [exchange.empty(shape, size) for _ in range(3)]
    assert not like.numel() or len({tensor.data_ptr() for tensor in made}) == 3
    for number, tensor in enumerate(made):
        assert (tensor.shape, tensor.dtype, tensor.stride(), tensor.device, tensor.layout) == (
            like.shape, like.dtype, like.stride(), like.device, like.layout)
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert not tensor.numel() or tensor.data_ptr() % 64 == 0
        tensor.fill_(number)
        view = exchange.view(tensor)
        assert view is not None
        assert view.shape == shape
    kept = made.pop(1).view(-1)
    made.clear()
    assert bool((kept == 1).all())


@pytest.mark.parametrize("shape", [
    (1 << 62,), (1 << 31, 1 << 31), (1 << 31, 1 << 31, 4), (1 << 40, 1 << 40, 1 << 40)])
def test_tensors_that_no_memory_can_hold(shape):
    """The bytes of the third are a multiple of 2**64."""
    with pytest.raises(MemoryError, match="cannot allocate a tensor of shape"):
        EXCHANGES[0].empty(shape, 4)
