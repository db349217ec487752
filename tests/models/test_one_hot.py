"""Models of one-hot symbols: the same numbers as of rows of an identity that are multiplied."""

import copy

import cases
import numpy as np
import pytest
from stacks import draw, named, per_cell, per_dtype, state_of

import fastrnn
from fastrnn import SequenceModel, Stack
from fastrnn.layers.passes import RECORD


def pair_of(cell, V, H, dtype=np.float32, both=False, layers=1):
    """Return a stack of symbols, and a layer that is the same but takes their rows."""
    layer = cases.LAYERS[cell](V, H, layers, bidirectional=both, dtype=dtype, seed=5)
    return Stack([layer], vocab_size=V, one_hot=True), copy.deepcopy(layer)


def bytes_of(y, state):
    return [a.tobytes() for a in (y, *(state if isinstance(state, tuple) else (state,)))]


@pytest.mark.parametrize("both", [False, True], ids=["ahead", "both"])
@per_dtype
@per_cell
def test_a_stack_of_symbols_is_a_layer_of_rows(cell, dtype, both):
    T, B, V, H = 4, 3, 5, 17
    stack, layer = pair_of(cell, V, H, dtype, both)
    data = draw(layer, T, B)
    symbols = np.random.default_rng(2).integers(0, V, (T, B))
    rows = np.eye(V, dtype=dtype)[symbols]
    before, dafter = state_of(data, "h0", "c0"), state_of(data, "dhn", "dcn")
    for mode in (False, True):
        stack.train(mode)
        layer.train(mode)
        y, (state,) = stack(symbols, (before,))
        expected, final = layer(rows, before)
        assert bytes_of(y, state) == bytes_of(expected, final)
    _, _, p = stack.forward(symbols, (before,))
    dx, (d0,) = p.backward(data["dy"], (dafter,))
    _, expected = layer.backward(data["dy"], dafter)
    assert dx is None
    assert bytes_of(data["dy"], d0) == bytes_of(data["dy"], expected)
    tolerance = cases.tolerance(dtype, max(V + H, B * (1 + both)), T, backward=True)
    for name, grad in layer.grads.items():
        cases.assert_close(name, stack.grads[f"layers.0.{name}"], grad, tolerance)


def test_as_many_symbols_as_words_cost_no_identity():
    V = 50_000  # whose identity would be 10 GB
    model = SequenceModel(fastrnn.GRU(V, 8, seed=0), 2, vocab_size=V, one_hot=True, seed=0)
    symbols = np.random.default_rng(0).integers(0, V, (7, 4))
    p = model.loss(symbols, symbols % 2)
    assert np.isfinite(p.value)
    p.backward()
    used = np.flatnonzero(model.grads["layers.0.weight_ih_l0"].any(0))
    np.testing.assert_array_equal(used, np.unique(symbols))
    outputs, _ = model.eval()(symbols)
    stream = model.stream(4)
    for x, expected in zip(symbols, outputs, strict=True):
        np.testing.assert_array_equal(stream(x), expected)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@per_cell
def test_a_layers_stream_takes_the_symbols_of_a_stack(cell, half):
    stack, layer = pair_of(cell, 11, 37, layers=2)
    symbols = np.random.default_rng(3).integers(0, 11, (5, 3))
    for part in (stack, layer):
        part.eval("bfloat16" if half else "float32")
    expected, (final,) = stack(symbols)
    step = layer.stream(3, one_hot=True)
    for x, y in zip(symbols, expected, strict=True):
        np.testing.assert_array_equal(step(x), y)
    cases.assert_same_bytes(named("h", "c", step.state), named("h", "c", final))


@pytest.mark.parametrize("B", [2, 40])
def test_what_is_recorded_is_that_of_the_rows(B):
    options = {"bidirectional": True, "dtype": np.float64, "seed": 0}
    model = SequenceModel(fastrnn.LSTM(6, 5, 2, **options), 3, vocab_size=6, one_hot=True, seed=0)
    rows = SequenceModel(fastrnn.LSTM(6, 5, 2, **options), 3, seed=0)
    rows.load_state_dict(model.state_dict())
    rng = np.random.default_rng(0)
    x, targets = rng.integers(0, 5, (9, B)), rng.integers(0, 3, (9, B))
    _, _, (got,) = model.loss(x, targets).backward(record=RECORD)
    _, _, (expected,) = rows.loss(np.eye(6)[x], targets).backward(record=RECORD)
    for number, (one, other) in enumerate(zip(got, expected, strict=True)):
        for name, array in one.items():
            if name == "x" and number == 0:
                np.testing.assert_array_equal(array, x)
            else:
                cases.assert_close(name, array, other[name], 1e-12)


def test_errors_of_the_sizes():
    with pytest.raises(ValueError, match=r"one_hot is True with vocab_size 5, expected .*: 2"):
        SequenceModel(fastrnn.LSTM(2, 3), 2, vocab_size=5, one_hot=True)
    with pytest.raises(ValueError, match="one_hot is True with vocab_size None"):
        SequenceModel(fastrnn.LSTM(2, 3), 2, one_hot=True)
    stack, _ = pair_of("gru", 5, 3)
    with pytest.raises(IndexError, match="Stack: x has numbers from 5 to 5, expected 0 to 4: rows"):
        stack([[5]])
