"""One-hot symbols are gathered: the same numbers as rows of an identity that are multiplied."""

import cases
import numpy as np
import pytest
import stacks
from stacks import per_cell, per_dtype

import fastrnn

SHAPES = [(1, 1, 1, 1), (4, 3, 5, 17), (3, 2, 34, 16), (2, 70, 9, 33), (3, 1, 7, 130),
          (5, 40, 70, 65)]


def layer_of(cell, V, H, dtype=np.float32, both=False, bias=True, layers=1):
    return cases.LAYERS[cell](V, H, layers, bidirectional=both, bias=bias, dtype=dtype, seed=5)


def symbols_of(T, B, V):
    return np.random.default_rng(2).integers(0, V, (T, B), dtype=np.int32)


def run(layer, symbols, data=None):
    """Return the results of a call over symbols and of its backward, by name."""
    data = data or {}
    state = stacks.state_of(data, "h0", "c0") if data else None
    y, final, p = layer.run(None, symbols, state, grad=True, dropout=False)
    grads = layer.new_grads()
    dstate = stacks.state_of(data, "dhn", "dcn") if data else None
    dx, initial = p.backward(data.get("dy", np.ones_like(y)), dstate, grads=grads)
    assert dx is None
    return {"y": y, **stacks.named("hn", "cn", final), **stacks.named("dh0", "dc0", initial),
            **grads}


@pytest.mark.parametrize("both", [False, True], ids=["ahead", "both"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@per_dtype
@per_cell
def test_outputs_are_the_same_bits_and_gradients_agree(isa, cell, dtype, shape, both):
    T, B, V, H = shape
    layer = layer_of(cell, V, H, dtype, both, bias=T != 3)
    data, symbols = stacks.draw(layer, T, B), symbols_of(T, B, V)
    data["x"] = np.eye(V, dtype=dtype)[symbols]
    expected = stacks.both(layer, data)
    del expected["dx"]
    got = run(layer, symbols, data)
    tolerance = cases.tolerance(dtype, max(V + H, B * (1 + both)), T, backward=True)
    assert got.keys() == expected.keys()
    for name, array in got.items():
        if name in layer.grads:
            cases.assert_close(name, array, expected[name], tolerance)
        else:
            assert array.tobytes() == expected[name].tobytes(), name
    y, _, p = layer.eval().run(None, symbols, stacks.state_of(data, "h0", "c0"), grad=False,
                               dropout=False)
    assert p is None
    assert y.tobytes() == expected["y"].tobytes()


@pytest.mark.parametrize("shape", [(9, 1, 40, 260), (5, 33, 20, 70), (300, 7, 9, 20)], ids=str)
@per_cell
def test_threads_change_no_bit(cell, shape, threads):
    T, B, V, H = shape
    layer, symbols, expected = layer_of(cell, V, H, both=True), symbols_of(T, B, V), None
    for n in threads:
        fastrnn.set_num_threads(n)
        got = run(layer, symbols)
        expected = expected or got
        stacks.assert_same(got, expected)


@per_cell
def test_gradients_of_two_calls_add_up(isa, cell):
    layer, symbols = layer_of(cell, 9, 19, np.float64), symbols_of(4, 5, 9)
    once, grads = run(layer, symbols), layer.new_grads()
    for _ in range(2):
        y, _, p = layer.run(None, symbols, None, grad=True, dropout=False)
        p.backward(np.ones_like(y), grads=grads)
    for name, array in grads.items():
        np.testing.assert_allclose(array, 2 * once[name], 1e-12, 1e-13, err_msg=name)


@per_cell
def test_what_no_symbol_names_is_not_looked_at(cell):
    layer, symbols = layer_of(cell, 6, 9), np.array([[1, 4], [4, 1], [1, 1]], np.int32)
    expected = run(layer, symbols)
    assert not np.delete(expected["weight_ih_l0"], (1, 4), 1).any()
    layer.parameters()["weight_ih_l0"][:, [0, 2, 3, 5]] = np.nan
    stacks.assert_same(run(layer, symbols), expected)


def test_what_is_recorded_as_x_are_the_numbers():
    layer, symbols = layer_of("gru", 6, 9, layers=2), symbols_of(4, 3, 6)
    y, _, p = layer.run(None, symbols, None, grad=True, dropout=False)
    _, _, recorded = p.backward(np.ones_like(y), record=("x",))
    np.testing.assert_array_equal(recorded[0]["x"], symbols)
    assert recorded[1]["x"].shape == (4, 3, 9)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@per_cell
def test_a_stream_takes_symbols_step_by_step(cell, half):
    layer, symbols = layer_of(cell, 11, 37, layers=2), symbols_of(5, 3, 11)
    layer.eval("bfloat16" if half else "float32")
    expected, final, _ = layer.run(None, symbols, None, grad=False, dropout=False)
    step = layer.stream(3, one_hot=True)
    for x, y in zip(symbols, expected, strict=True):
        np.testing.assert_array_equal(step(x), y)
    stacks.assert_same(stacks.named("h", "c", step.state), stacks.named("h", "c", final))
    with pytest.raises(IndexError, match="x has numbers from 0 to 11, expected 0 to 10"):
        step(np.array([0, 11, 3]))
    with pytest.raises(ValueError, match="embedding is given and one_hot is True"):
        layer.stream(3, np.ones((2, 11), np.float32), one_hot=True)
