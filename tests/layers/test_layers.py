"""fastrnn.RNN, LSTM and GRU against fastrnn.reference, stacked, and central differences."""

import math

import cases
import numpy as np
import pytest
import stacks

import fastrnn

# ------------------------------------------------------------------------ against the reference


@pytest.mark.parametrize("layout", ["time_first", "batch_first", "unbatched", "unbatched_bf"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@stacks.per_dtype
@stacks.per_cell
def test_a_layer_is_the_reference_stacked(cell, dtype, num_layers, bidirectional, bias, layout):
    layout, batch_first = layout.removesuffix("_bf"), layout in ("batch_first", "unbatched_bf")
    layer = cases.LAYERS[cell](6, 5, num_layers, bias=bias, batch_first=batch_first, dtype=dtype,
                         bidirectional=bidirectional, seed=3)
    data = stacks.draw(layer, 4, 1 if layout == "unbatched" else 3)
    got = stacks.both(layer, {n: a.copy() for n, a in stacks.one_for_all(data, layout).items()})
    shapes = {name: array.shape for name, array in got.items()}
    if layout == "unbatched":
        D = 1 + bidirectional
        assert shapes["y"] == (4, D * 5)
        assert shapes["dx"] == (4, 6)
        assert shapes["hn"] == shapes["dh0"] == (num_layers * D, 5)
        got = {n: a[:, None] if "_l" not in n else a for n, a in got.items()}
    else:
        got = stacks.one_for_all(got, layout)
    stacks.assert_composed(layer, got, data)


@pytest.mark.parametrize("sizes", [(1, 2, 3, 7), (9, 13, 33, 65), (40, 2, 130, 34)], ids=str)
@stacks.per_dtype
@stacks.per_cell
def test_odd_sizes_and_many_rows(cell, dtype, sizes):
    T, B, I, H = sizes
    for num_layers, bidirectional in ((1, False), (2, True)):
        layer = cases.LAYERS[cell](I, H, num_layers, bidirectional=bidirectional, dtype=dtype,
                                   seed=4)
        data = stacks.draw(layer, T, B)
        stacks.assert_composed(layer, stacks.both(layer, data), data)


@pytest.mark.parametrize("cut", [1, 4, 8])
@stacks.per_dtype
@stacks.per_cell
def test_two_calls_have_the_bits_of_one_and_so_has_their_backward(cell, dtype, cut):
    layer = cases.LAYERS[cell](17, 34, 2, dtype=dtype, seed=0)
    data = stacks.draw(layer, 9, 5)
    y, state, p = layer.forward(data["x"], stacks.state_of(data, "h0", "c0"))
    dx, initial = p.backward(data["dy"], stacks.state_of(data, "dhn", "dcn"))
    whole = {"y": y, "dx": dx, **stacks.named("hn", "cn", state),
             **stacks.named("dh0", "dc0", initial)}
    early, between, first = layer.forward(data["x"][:cut], stacks.state_of(data, "h0", "c0"))
    late, state, second = layer.forward(data["x"][cut:], between)
    late_dx, between = second.backward(data["dy"][cut:], stacks.state_of(data, "dhn", "dcn"))
    early_dx, initial = first.backward(data["dy"][:cut], between)
    cases.assert_same_bytes({
        "y": np.concatenate([early, late]), "dx": np.concatenate([early_dx, late_dx]),
        **stacks.named("hn", "cn", state), **stacks.named("dh0", "dc0", initial)}, whole)


@stacks.per_cell
def test_missing_states_and_gradients_are_zeros(cell):
    layer = cases.LAYERS[cell](3, 4, 2, bidirectional=True, seed=0)
    data = stacks.draw(layer, 5, 2)
    full = {name: a if name in stacks.SEQUENCES else np.zeros_like(a) for name, a in data.items()}
    expected = stacks.both(layer, full)
    layer.zero_grad()
    y, state = layer(data["x"])
    dx, dstate = layer.backward(data["dy"])
    got = {"y": y, "dx": dx, **stacks.named("hn", "cn", state),
           **stacks.named("dh0", "dc0", dstate)}
    stacks.assert_same(got | dict(layer.grads), expected)
    layer.zero_grad()
    expected = stacks.both(layer, data | {"dy": np.zeros_like(data["dy"])})
    layer.zero_grad()
    stacks.forward(layer, data)
    dx, _ = layer.backward(dstate=stacks.state_of(data, "dhn", "dcn"))
    stacks.assert_same({"dx": dx, **layer.grads}, {n: expected[n] for n in ("dx", *layer.grads)})


def test_each_half_of_an_lstm_state_may_be_missing():
    layer = fastrnn.LSTM(3, 4, seed=0)
    data = stacks.draw(layer, 5, 2)
    for h, c in ((data["h0"], None), (None, data["c0"])):
        got = stacks.both(layer, data | {"h0": h, "c0": c, "dhn": h, "dcn": c})
        layer.zero_grad()
        filled = {"h0": h, "c0": c, "dhn": h, "dcn": c}
        filled = {n: np.zeros_like(data["h0"]) if a is None else a for n, a in filled.items()}
        stacks.assert_same(got, stacks.both(layer, data | filled))
        layer.zero_grad()


# ------------------------------------------------------------------- against finite differences

RELATIVE = 1e-6  # as in test_reference.py


def loss_of(layer, data):
    out = stacks.forward(layer, data)
    ends = {"y": "dy", "hn": "dhn", "cn": "dcn"}
    return sum(np.vdot(data[ends[name]], array) for name, array in out.items())


def assert_differences(layer, data, loss):
    gradients = stacks.both(layer, data)
    inputs = {"dx": data["x"], "dh0": data["h0"], **layer.parameters()}
    if "c0" in data:
        inputs["dc0"] = data["c0"]
    assert set(inputs) == set(gradients) - {"y", "hn", "cn"}
    for name, array in inputs.items():
        cases.assert_close(name, gradients[name], cases.differences(loss, array), RELATIVE)


@stacks.per_cell
def test_every_gradient_of_a_stack_against_central_differences(cell):
    layer = cases.LAYERS[cell](3, 2, 2, bidirectional=True, dtype=np.float64, seed=1)
    data = stacks.draw(layer, 3, 2)
    assert_differences(layer, data, lambda: loss_of(layer, data))


@pytest.mark.parametrize("batch_first", [False, True])
@stacks.per_cell
def test_every_gradient_with_dropout_against_central_differences(cell, batch_first):
    def make():
        return cases.LAYERS[cell](3, 3, 3, dropout=0.4, batch_first=batch_first, dtype=np.float64,
                                  seed=2)

    layer = make()
    layout = "batch_first" if batch_first else "time_first"
    data = stacks.one_for_all(stacks.draw(layer, 3, 2), layout)

    def loss():
        again = make()  # so that the masks are those of the first call
        again.flat[:] = layer.flat
        return loss_of(again, data)

    assert_differences(layer, data, loss)
    assert not np.array_equal(stacks.forward(layer, data)["y"], stacks.forward(make(), data)["y"])


# ---------------------------------------------------------------------------------------- dropout


def open_net(p, num_layers=2):
    """Return relu layers of which y is the product of the masks between them."""
    layer = fastrnn.RNN(1, 64, num_layers, "relu", dropout=p, seed=5)
    layer.flat[:] = 0
    params = layer.parameters()
    params["bias_ih_l0"][:] = 1
    for k in range(1, num_layers):
        params[f"weight_ih_l{k}"][:] = np.eye(64)
    return layer, np.zeros((50, 20, 1), np.float32)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_masks(p):
    layer, x = open_net(p)
    y, hn = layer(x)
    np.testing.assert_array_equal(np.unique(y), np.array([0, 1 / (1 - p)], np.float32))
    zeros = y == 0
    spread = math.sqrt(p * (1 - p))
    assert abs(zeros.mean() - p) < 4 * spread / math.sqrt(y.size)
    for axes in ((0, 1), (0, 2), (1, 2)):  # every unit, row and step is alike
        share = zeros.mean(axes)
        assert np.all(abs(share - p) < 5 * spread / math.sqrt(y.size / share.size))
    np.testing.assert_array_equal(hn[0], 1)  # the state itself is not dropped
    layer.backward(np.ones_like(y))
    cases.assert_close("bias_ih_l0", layer.grads["bias_ih_l0"], y.sum((0, 1), np.float64),
                       cases.tolerance(np.float32, 20, 50, backward=True), dtype=np.float32)
    assert np.any(layer(x)[0] != y)
    layer.eval()
    np.testing.assert_array_equal(layer(x)[0], 1)


def test_every_gap_between_layers_has_its_own_mask():
    layer, x = open_net(0.5, num_layers=3)
    y, _ = layer(x)
    np.testing.assert_array_equal(np.unique(y), [0, 4])
    assert abs((y == 4).mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / y.size)


def test_dropout_of_everything():
    layer, x = open_net(1.0)
    y, _ = layer(x)
    layer.backward(np.ones_like(y))
    assert not np.any(y)
    assert not np.any(layer.grads["bias_ih_l0"])
    assert np.all(np.isfinite(layer.flat_grads))


@stacks.per_kind
def test_dropout_comes_from_the_seed(cell):
    one, same, other = (cases.LAYERS[cell](3, 4, 2, dropout=0.5, seed=seed) for seed in (1, 1, 2))
    other.flat[:] = one.flat
    data = stacks.draw(one, 5, 2)
    for _ in range(3):
        stacks.assert_same(stacks.forward(one, data), stacks.forward(same, data))
    assert np.any(stacks.forward(one, data)["y"] != stacks.forward(other, data)["y"])


def test_dropout_without_a_second_layer_warns_and_does_nothing():
    with pytest.warns(UserWarning, match="num_layers = 1") as record:
        layer = fastrnn.GRU(3, 4, dropout=0.5, seed=0)
    assert record[0].filename == __file__
    data = stacks.draw(layer, 5, 2)
    stacks.assert_same(stacks.forward(layer, data), stacks.forward(fastrnn.GRU(3, 4, seed=0), data))
