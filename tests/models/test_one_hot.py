"""One-hot symbols are gathered: the same numbers as rows of an identity that are multiplied."""

import copy

import cases
import numpy as np
import pytest
from stacks import draw as draw_for
from stacks import named, per_cell, per_dtype, state_of

import fastrnn
from fastrnn import gradflow
from fastrnn.model import SequenceModel
from fastrnn.stack import Stack

SHAPES = [(1, 1, 1, 1), (4, 3, 5, 17), (3, 2, 34, 16), (2, 70, 9, 33), (3, 1, 7, 130),
          (5, 40, 70, 65)]


def pair_of(cell, V, H, dtype=np.float32, both=False, bias=True, layers=1):
    """Return a stack of symbols, and a layer that is the same but takes their rows."""
    layer = cases.LAYERS[cell](V, H, layers, bidirectional=both, bias=bias, dtype=dtype, seed=5)
    return Stack([layer], symbols=V, one_hot=True), copy.deepcopy(layer)


def bytes_of(y, state):
    return [a.tobytes() for a in (y, *(state if isinstance(state, tuple) else (state,)))]


@pytest.mark.parametrize("both", [False, True], ids=["ahead", "both"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@per_dtype
@per_cell
def test_outputs_are_the_same_bits_and_gradients_agree(isa, cell, dtype, shape, both):
    T, B, V, H = shape
    stack, layer = pair_of(cell, V, H, dtype, both, bias=T != 3)
    data = draw_for(layer, T, B)
    symbols = np.random.default_rng(2).integers(0, V, (T, B))
    rows = np.eye(V, dtype=dtype)[symbols]
    for mode in (False, True):
        stack.train(mode)
        layer.train(mode)
        before = state_of(data, "h0", "c0")
        y, (state,) = stack(symbols, (before,))
        expected, final = layer(rows, before)
        assert bytes_of(y, state) == bytes_of(expected, final)
    dx, (d0,) = stack.backward(data["dy"], (state_of(data, "dhn", "dcn"),))
    _, expected = layer.backward(data["dy"], state_of(data, "dhn", "dcn"))
    assert dx is None
    assert bytes_of(data["dy"], d0) == bytes_of(data["dy"], expected)
    tolerance = cases.tolerance(dtype, max(V + H, B * (1 + both)), T, backward=True)
    for name, grad in layer.grads.items():
        cases.assert_close(name, stack.grads[f"layers.0.{name}"], grad, tolerance)


@pytest.mark.parametrize("shape", [(9, 1, 40, 260), (5, 33, 20, 70), (300, 7, 9, 20)], ids=str)
@per_cell
def test_threads_change_no_bit(cell, shape):
    T, B, V, H = shape
    symbols = np.random.default_rng(2).integers(0, V, (T, B))
    threads, found = fastrnn.get_num_threads(), []
    try:
        for n in (1, 2, 3, 4, 8):
            fastrnn.set_num_threads(n)
            stack, layer = pair_of(cell, V, H, both=True)
            y, (state,) = stack(symbols)
            stack.backward(draw_for(layer, T, B)["dy"])
            found.append([*bytes_of(y, state), stack.flat_grads.tobytes()])
    finally:
        fastrnn.set_num_threads(threads)
    assert all(one == found[0] for one in found)


@per_cell
def test_what_no_symbol_names_is_not_looked_at(cell):
    stack, _ = pair_of(cell, 6, 9)
    symbols = np.array([[1, 4], [4, 1], [1, 1]])
    y, _ = stack(symbols)
    stack.backward(np.ones_like(y))
    grads = stack.flat_grads.copy()
    assert not np.delete(stack.grads["layers.0.weight_ih_l0"], (1, 4), 1).any()
    stack.parameters()["layers.0.weight_ih_l0"][:, [0, 2, 3, 5]] = np.nan
    stack.zero_grad()
    again, _ = stack(symbols)
    stack.backward(np.ones_like(y))
    assert again.tobytes() == y.tobytes()
    assert stack.flat_grads.tobytes() == grads.tobytes()


def test_as_many_symbols_as_words_cost_no_identity():
    V = 50_000  # whose identity would be 10 GB
    model = SequenceModel(fastrnn.GRU(V, 8, seed=0), 2, symbols=V, one_hot=True, seed=0)
    symbols = np.random.default_rng(0).integers(0, V, (7, 4))
    targets = symbols % 2
    loss, _ = model.loss(symbols, targets)
    model.backward()
    used = np.flatnonzero(model.grads["layers.0.weight_ih_l0"].any(0))
    np.testing.assert_array_equal(used, np.unique(symbols))
    outputs, _ = model.eval()(symbols)
    stream = model.stream(4)
    for x, expected in zip(symbols, outputs, strict=True):
        np.testing.assert_array_equal(stream(x), expected)
    assert np.isfinite(loss)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@per_cell
def test_a_stream_takes_symbols_step_by_step(cell, half):
    stack, layer = pair_of(cell, 11, 37, layers=2)
    symbols = np.random.default_rng(3).integers(0, 11, (5, 3))
    layer.eval("bfloat16") if half else layer.eval()
    if half:
        stack.layers[0].eval("bfloat16")
    else:
        stack.eval()
    expected, final = stack(symbols)
    step = layer.stream(3, one_hot=True)
    for x, y in zip(symbols, expected, strict=True):
        np.testing.assert_array_equal(step(x), y)
    assert {k: a.tobytes() for k, a in named("h", "c", step.state).items()} == \
        {k: a.tobytes() for k, a in named("h", "c", final[0]).items()}
    with pytest.raises(IndexError, match="x has numbers from 0 to 11, expected 0 to 10"):
        step(np.array([0, 11, 3]))
    with pytest.raises(ValueError, match="embedding is given and one_hot is True"):
        layer.stream(3, np.ones((2, 11), np.float32), one_hot=True)


@pytest.mark.parametrize("B", [2, 40])
def test_the_gradient_flow_is_that_of_the_rows(B):
    model = SequenceModel(fastrnn.LSTM(6, 5, 2, bidirectional=True, dtype=np.float64, seed=0), 3,
                          symbols=6, one_hot=True, seed=0)
    rows = SequenceModel(fastrnn.LSTM(6, 5, 2, bidirectional=True, dtype=np.float64, seed=0), 3,
                         seed=0)
    rows.load_state_dict(model.state_dict())
    rng = np.random.default_rng(0)
    x, targets = rng.integers(0, 5, (9, B)), rng.integers(0, 3, (9, B))
    (got,) = gradflow.model_flow(model, lambda m: m.loss(x, targets))
    (expected,) = gradflow.model_flow(rows, lambda m: m.loss(np.eye(6)[x], targets))
    for name in ("norms", "terms_ih", "shares_ih", "terms_hh", "shares_hh", "saturation"):
        cases.assert_close(name, getattr(got, name), getattr(expected, name), 1e-12)
