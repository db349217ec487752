"""fastrnn.RNN, LSTM and GRU against fastrnn.reference, stacked; their modes, weights and memory."""

import copy
import dataclasses
import doctest
import gc
import math
import pickle
import sys
import tracemalloc

import cases
import numpy as np
import pytest

import fastrnn
from fastrnn import reference

SEQUENCES = ("x", "y", "dx", "dy")  # what has a time axis

per_cell = pytest.mark.parametrize("cell", cases.CELLS)
per_kind = pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
per_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=lambda dtype: dtype.__name__)
per_copy = pytest.mark.parametrize("protocol", [None, *range(2, pickle.HIGHEST_PROTOCOL + 1)],
                                   ids=lambda p: "deepcopy" if p is None else f"pickle{p}")


def draw(layer, T, B, seed=1):
    """Return x, dy, h0, dhn and, of an lstm, c0, dcn: normal, time-major."""
    rng = np.random.default_rng(seed)
    D = 1 + layer.bidirectional
    state = (layer.num_layers * D, B, layer.hidden_size)
    shapes = {"x": (T, B, layer.input_size), "dy": (T, B, D * layer.hidden_size)}
    shapes |= {"h0": state, "dhn": state}
    if layer.cell == "lstm":
        shapes |= {"c0": state, "dcn": state}
    return {name: rng.standard_normal(s).astype(layer.dtype) for name, s in shapes.items()}


def state_of(data, h, c):
    return (data[h], data[c]) if c in data else data[h]


def named(h, c, state):
    return dict(zip((h, c), state if isinstance(state, tuple) else (state,), strict=False))


def forward(layer, data):
    y, state = layer(data["x"], state_of(data, "h0", "c0"))
    return {"y": y, **named("hn", "cn", state)}


def backward(layer, data, **options):
    """Go back; return dx, the gradients of the states, and copies of layer.grads, by name."""
    dx, dstate = layer.backward(data["dy"], state_of(data, "dhn", "dcn"), **options)
    grads = {name: grad.copy() for name, grad in layer.grads.items()}
    return {"dx": dx, **named("dh0", "dc0", dstate), **grads}


def both(layer, data):
    return forward(layer, data) | backward(layer, data)


def composed(layer, data):
    """Return the results of `both` from fastrnn.reference: layer by layer, in float64."""
    data, params = (
        {name: array.astype(np.float64) for name, array in arrays.items()}
        for arrays in (data, layer.parameters())
    )
    L, D, H = layer.num_layers, 1 + layer.bidirectional, layer.hidden_size
    x, walks, finals = data["x"], {}, []
    for k in range(L):
        ys = []
        for d in range(D):
            names = [f"{name}_l{k}{'_reverse' * d}" for name in cases.PARAMETERS]
            own = {name: data[name][k * D + d] for name in data if name not in SEQUENCES}
            case = cases.Case(
                cell=layer.cell, x=x, h0=own["h0"], c0=own.get("c0"), dy=None, dhn=own["dhn"],
                dcn=own.get("dcn"),
                **dict(zip(cases.PARAMETERS, map(params.get, names), strict=True)),
            )
            out, tape = cases.forward(reference, case, reverse=bool(d))
            ys.append(out.pop("y"))
            finals.append(out)
            walks[k, d] = case, tape, names
        x = np.concatenate(ys, axis=2)
    result = {"y": x} | {name: np.stack([out[name] for out in finals]) for name in finals[0]}
    dy, initials = data["dy"], {}
    for k in reversed(range(L)):
        dx = 0
        for d in range(D):
            case, tape, names = walks[k, d]
            case = dataclasses.replace(case, dy=dy[:, :, d * H : (d + 1) * H])
            got = cases.backward(reference, case, tape)
            dx = dx + got.pop("dx")
            full = dict(zip(cases.PARAMETERS, names, strict=True))
            result |= {full[name]: got.pop(name) for name in cases.PARAMETERS if name in got}
            initials[k, d] = got
        dy = dx
    result["dx"] = dy
    for name in initials[0, 0]:
        result[name] = np.stack([initials[key][name] for key in sorted(initials)])
    return result


def tolerance(layer, data, name):
    """Return the formula's tolerance: K of the widest layer, T * L steps."""
    T, B, I = data["x"].shape
    L, D, H = layer.num_layers, 1 + layer.bidirectional, layer.hidden_size
    K = max(I, D * H if L > 1 else 0) + H
    if name in ("y", "hn", "cn"):
        return cases.tolerance(layer.dtype, K, T * L)
    K = max(K, cases.GATES[layer.cell] * H, B)
    return cases.tolerance(layer.dtype, K, T * L, backward=True, bidirectional=D == 2)


def assert_composed(layer, got, data):
    expected = composed(layer, data)
    assert set(got) == set(expected)
    elementwise = len(data["x"]) * layer.num_layers == 1
    for name, array in got.items():
        cases.assert_close(name, array, expected[name], tolerance(layer, data, name), elementwise,
                           dtype=layer.dtype)


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, array in got.items():
        assert array.dtype == expected[name].dtype, name
        assert array.shape == expected[name].shape, name
        assert array.tobytes() == expected[name].tobytes(), name


def assert_views(layer):
    """Parameters and gradients tile flat and flat_grads without gaps, in order."""
    for flat, views in ((layer.flat, layer.parameters()), (layer.flat_grads, layer.grads)):
        start = flat.__array_interface__["data"][0]
        for name, view in views.items():
            assert view.__array_interface__["data"][0] == start, name
            assert view.flags.c_contiguous, name
            start += view.nbytes
        assert start == flat.__array_interface__["data"][0] + flat.nbytes


def one_for_all(data, layout):
    """Rearrange time-major arrays for a call: (T, B), (B, T) or, of one row, without B."""
    if layout == "unbatched":
        return {n: a[:, 0] if a.ndim == 3 and "_l" not in n else a for n, a in data.items()}
    if layout == "batch_first":
        return {n: a.swapaxes(0, 1) if n in SEQUENCES else a for n, a in data.items()}
    return data


# ------------------------------------------------------------------------ against the reference


@pytest.mark.parametrize("layout", ["time_first", "batch_first", "unbatched", "unbatched_bf"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@per_dtype
@per_cell
def test_a_layer_is_the_reference_stacked(cell, dtype, num_layers, bidirectional, bias, layout):
    layout, batch_first = layout.removesuffix("_bf"), layout in ("batch_first", "unbatched_bf")
    layer = cases.LAYERS[cell](6, 5, num_layers, bias=bias, batch_first=batch_first, dtype=dtype,
                         bidirectional=bidirectional, seed=3)
    data = draw(layer, 4, 1 if layout == "unbatched" else 3)
    got = both(layer, {n: a.copy() for n, a in one_for_all(data, layout).items()})
    shapes = {name: array.shape for name, array in got.items()}
    if layout == "unbatched":
        D = 1 + bidirectional
        assert shapes["y"] == (4, D * 5)
        assert shapes["dx"] == (4, 6)
        assert shapes["hn"] == shapes["dh0"] == (num_layers * D, 5)
        got = {n: a[:, None] if "_l" not in n else a for n, a in got.items()}
    else:
        got = one_for_all(got, layout)
    assert_composed(layer, got, data)


@pytest.mark.parametrize("sizes", [(1, 2, 3, 7), (9, 13, 33, 65), (40, 2, 130, 34)], ids=str)
@per_dtype
@per_cell
def test_odd_sizes_and_many_rows(cell, dtype, sizes):
    T, B, I, H = sizes
    for num_layers, bidirectional in ((1, False), (2, True)):
        layer = cases.LAYERS[cell](I, H, num_layers, bidirectional=bidirectional, dtype=dtype,
                                   seed=4)
        data = draw(layer, T, B)
        assert_composed(layer, both(layer, data), data)


@per_cell
def test_missing_states_and_gradients_are_zeros(cell):
    layer = cases.LAYERS[cell](3, 4, 2, bidirectional=True, seed=0)
    data = draw(layer, 5, 2)
    full = {name: a if name in SEQUENCES else np.zeros_like(a) for name, a in data.items()}
    expected = both(layer, full)
    layer.zero_grad()
    y, state = layer(data["x"])
    dx, dstate = layer.backward(data["dy"])
    got = {"y": y, "dx": dx, **named("hn", "cn", state), **named("dh0", "dc0", dstate)}
    assert_same(got | layer.grads, expected)
    layer.zero_grad()
    expected = both(layer, data | {"dy": np.zeros_like(data["dy"])})
    layer.zero_grad()
    forward(layer, data)
    dx, _ = layer.backward(dstate=state_of(data, "dhn", "dcn"))
    assert_same({"dx": dx, **layer.grads}, {n: expected[n] for n in ("dx", *layer.grads)})


def test_each_half_of_an_lstm_state_may_be_missing():
    layer = fastrnn.LSTM(3, 4, seed=0)
    data = draw(layer, 5, 2)
    for h, c in ((data["h0"], None), (None, data["c0"])):
        got = both(layer, data | {"h0": h, "c0": c, "dhn": h, "dcn": c})
        layer.zero_grad()
        filled = {"h0": h, "c0": c, "dhn": h, "dcn": c}
        filled = {n: np.zeros_like(data["h0"]) if a is None else a for n, a in filled.items()}
        assert_same(got, both(layer, data | filled))
        layer.zero_grad()


# ------------------------------------------------------------------- against finite differences

STEP, RELATIVE = 1e-5, 1e-6  # as in test_reference.py


def differences(loss, array):
    """Return the gradient of loss() with respect to an array, which is changed in place."""
    result = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value, ends = array[index], []
        for step in (STEP, -STEP):
            array[index] = value + step
            ends.append(loss())
        array[index] = value
        result[index] = (ends[0] - ends[1]) / (2 * STEP)
    return result


def loss_of(layer, data):
    out = forward(layer, data)
    ends = {"y": "dy", "hn": "dhn", "cn": "dcn"}
    return sum(np.vdot(data[ends[name]], array) for name, array in out.items())


def assert_differences(layer, data, loss):
    gradients = both(layer, data)
    inputs = {"dx": data["x"], "dh0": data["h0"], **layer.parameters()}
    if "c0" in data:
        inputs["dc0"] = data["c0"]
    assert set(inputs) == set(gradients) - {"y", "hn", "cn"}
    for name, array in inputs.items():
        cases.assert_close(name, gradients[name], differences(loss, array), RELATIVE)


@per_cell
def test_every_gradient_of_a_stack_against_central_differences(cell):
    layer = cases.LAYERS[cell](3, 2, 2, bidirectional=True, dtype=np.float64, seed=1)
    data = draw(layer, 3, 2)
    assert_differences(layer, data, lambda: loss_of(layer, data))


@pytest.mark.parametrize("batch_first", [False, True])
@per_cell
def test_every_gradient_with_dropout_against_central_differences(cell, batch_first):
    def make():
        return cases.LAYERS[cell](3, 3, 3, dropout=0.4, batch_first=batch_first, dtype=np.float64,
                                  seed=2)

    layer = make()
    data = one_for_all(draw(layer, 3, 2), "batch_first" if batch_first else "time_first")

    def loss():
        again = make()  # so that the masks are those of the first call
        again.flat[:] = layer.flat
        return loss_of(again, data)

    assert_differences(layer, data, loss)
    assert not np.array_equal(forward(layer, data)["y"], forward(make(), data)["y"])


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


@per_kind
def test_dropout_comes_from_the_seed(cell):
    one, same, other = (cases.LAYERS[cell](3, 4, 2, dropout=0.5, seed=seed) for seed in (1, 1, 2))
    other.flat[:] = one.flat
    data = draw(one, 5, 2)
    for _ in range(3):
        assert_same(forward(one, data), forward(same, data))
    assert np.any(forward(one, data)["y"] != forward(other, data)["y"])


def test_dropout_without_a_second_layer_warns_and_does_nothing():
    with pytest.warns(UserWarning, match="num_layers = 1") as record:
        layer = fastrnn.GRU(3, 4, dropout=0.5, seed=0)
    assert record[0].filename == __file__
    data = draw(layer, 5, 2)
    assert_same(forward(layer, data), forward(fastrnn.GRU(3, 4, seed=0), data))


# ---------------------------------------------------------------------- parameters and gradients


@per_cell
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_parameters_are_views_in_torchs_order(cell, bias):
    layer = cases.LAYERS[cell](3, 5, 2, bias=bias, bidirectional=True)
    rows = cases.GATES[cell] * 5
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if bias else [])]
    order = [f"{n}_l{k}{d}" for k in range(2) for d in ("", "_reverse") for n in names]
    params = layer.parameters()
    assert list(params) == list(layer.grads) == order
    widths = {"weight_ih_l0": 3, "weight_hh_l0": 5, "weight_ih_l1_reverse": 10}
    for name, width in widths.items():
        assert params[name].shape == layer.grads[name].shape == (rows, width)
    if bias:
        assert params["bias_hh_l1"].shape == (rows,)
    assert layer.flat.dtype == layer.flat_grads.dtype == layer.dtype == np.float32
    assert_views(layer)
    assert not np.any(layer.flat_grads)
    params.clear()  # the dictionary is the caller's
    assert list(layer.parameters()) == order


@per_cell
def test_gradients_accumulate_until_zero_grad(cell):
    layer = cases.LAYERS[cell](3, 4, 2, dtype=np.float64, seed=0)
    first, second = draw(layer, 5, 2, seed=1), draw(layer, 3, 3, seed=2)
    alone = []
    for data in (first, second):
        both(layer, data)
        alone.append(layer.flat_grads.copy())
        layer.zero_grad()
        assert not np.any(layer.flat_grads)
    both(layer, first)
    both(layer, second)
    cases.assert_close("flat_grads", layer.flat_grads, sum(alone), 1e-14)


@per_kind
def test_need_dx_changes_nothing_else(cell):
    layer = cases.LAYERS[cell](3, 4, 2, bidirectional=True, seed=0)
    data = draw(layer, 5, 2)
    full = both(layer, data)
    layer.zero_grad()
    without = forward(layer, data) | backward(layer, data, need_dx=False)
    assert without.pop("dx") is None
    del full["dx"]
    assert_same(without, full)


def test_initial_weights_are_uniform_and_come_from_the_seed():
    layer = fastrnn.LSTM(100, 64, seed=7)
    bound = 1 / 8
    scaled = np.sort(layer.flat.astype(np.float64) / bound)
    assert -1 <= scaled[0] < -0.999 < 0.999 < scaled[-1] <= 1
    ideal = (np.arange(scaled.size) + 0.5) / scaled.size * 2 - 1
    assert abs(scaled - ideal).max() / 2 < 2 / math.sqrt(scaled.size)  # Kolmogorov-Smirnov, 1e-3
    assert layer.flat.tobytes() == fastrnn.LSTM(100, 64, seed=7).flat.tobytes()
    for other in (8, None):
        assert np.mean(layer.flat == fastrnn.LSTM(100, 64, seed=other).flat) < 0.01
    assert np.mean(fastrnn.GRU(9, 9).flat == fastrnn.GRU(9, 9).flat) < 0.01
    double = fastrnn.LSTM(100, 64, seed=7, dtype=np.float64)
    np.testing.assert_array_equal(double.flat.astype(np.float32), layer.flat)


# ------------------------------------------------------------------------------------- two modes


@per_dtype
@per_cell
def test_eval_gives_the_bytes_of_train(cell, dtype):
    for num_layers, bidirectional in ((1, False), (2, True)):
        layer = cases.LAYERS[cell](7, 17, num_layers, bidirectional=bidirectional, dtype=dtype,
                                   seed=0)
        data = draw(layer, 9, 3)
        trained = forward(layer, data)
        assert layer.training is True
        assert layer.eval() is layer
        assert layer.training is False
        for _ in range(2):
            assert_same(forward(layer, data), trained)
        assert layer.train() is layer
        assert layer.training is True
        assert_same(forward(layer, data), trained)


@per_kind
def test_eval_makes_parameters_read_only(cell):
    layer = cases.LAYERS[cell](3, 4, 2, seed=0)
    early = layer.parameters()
    data = draw(layer, 5, 2)
    before, out = layer.flat.tobytes(), forward(layer, data)
    layer.eval()
    for array in (layer.flat, *layer.parameters().values(), *early.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        with pytest.raises(ValueError, match="read-only"):
            array += 1
    with pytest.raises(ValueError, match="read-only"):
        layer.flat -= 1
    assert layer.flat.tobytes() == before
    assert_same(forward(layer, data), out)
    layer.flat_grads += 1  # gradients stay writeable
    layer.train()
    layer.flat -= 1
    early["weight_hh_l1"][...] = 0
    assert not np.any(layer.parameters()["weight_hh_l1"])
    assert_views(layer)


@per_kind
def test_new_weights_show_in_both_modes(cell):
    layer, other = (cases.LAYERS[cell](3, 4, 2, seed=seed) for seed in (0, 1))
    data = draw(layer, 5, 2)
    layer.eval()
    forward(layer, data)
    layer.train()
    layer.flat[:] = other.flat
    expected = forward(other, data)
    assert_same(forward(layer, data), expected)
    layer.eval()
    assert_same(forward(layer, data), expected)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@per_dtype
@per_kind
def test_load_state_dict(cell, dtype, mode):
    source = cases.LAYERS[cell](3, 4, 2, bidirectional=True, dtype=np.float64, seed=1)
    layer = cases.LAYERS[cell](3, 4, 2, bidirectional=True, dtype=dtype, seed=2).train(mode)
    data = draw(layer, 5, 2)
    state = source.state_dict()
    copies = copy.deepcopy(state)
    flat = layer.flat
    layer.load_state_dict(dict(reversed(state.items())))
    assert layer.training is mode
    assert layer.flat is flat
    assert flat.flags.writeable is mode
    np.testing.assert_array_equal(flat, source.flat.astype(dtype))
    assert_same(state, copies)
    source = cases.LAYERS[cell](3, 4, 2, bidirectional=True, dtype=dtype)
    source.flat[:] = flat
    assert_same(forward(layer, data), forward(source, data))
    assert_views(layer)


def test_state_dict_copies():
    layer = fastrnn.GRU(3, 4, 2, seed=0)
    for mode in (True, False):
        layer.train(mode)
        state = layer.state_dict()
        assert_same(state, layer.parameters())
        for array in state.values():
            assert not np.shares_memory(array, layer.flat)
            array[...] = 0
        assert np.all(layer.flat)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_load_state_dict_lists_every_problem_and_changes_nothing(mode):
    layer = fastrnn.GRU(3, 4, 2, seed=0).train(mode)
    data = draw(layer, 5, 2)
    before, expected = layer.flat.tobytes(), forward(layer, data)
    state = {name: np.zeros_like(array) for name, array in layer.parameters().items()}
    del state["bias_ih_l0"], state["weight_hh_l1"]
    state |= {"fc.weight": np.zeros(3), "bias_ih_l2": np.zeros(12)}
    state |= {"weight_ih_l0": np.zeros((12, 7)), "bias_hh_l1": np.zeros((1, 12))}
    with pytest.raises(ValueError, match=r"^GRU\.load_state_dict: ") as error:
        layer.load_state_dict(state)
    for part in (
        "missing ['bias_ih_l0', 'weight_hh_l1']",
        "unexpected ['fc.weight', 'bias_ih_l2']",
        "weight_ih_l0 has shape (12, 7), expected (12, 3)",
        "bias_hh_l1 has shape (1, 12), expected (12,)",
    ):
        assert part in str(error.value)
    state = layer.state_dict() | {"bias_hh_l1": np.array(["a"] * 12)}
    state["weight_ih_l0"][...] = 0
    with pytest.raises(TypeError, match="bias_hh_l1 is <U1, expected numbers"):
        layer.load_state_dict(state)
    assert layer.flat.tobytes() == before
    assert layer.training is mode
    assert layer.flat.flags.writeable is mode
    assert_same(forward(layer, data), expected)


# ---------------------------------------------------------------------------- forward and backward


@per_kind
def test_eval_calls_do_not_disturb_the_way_back(cell):
    layer = cases.LAYERS[cell](3, 4, 2, bidirectional=True, seed=0)
    data, other = draw(layer, 5, 2), draw(layer, 5, 2, seed=9)
    expected = both(layer, data)
    for back_in_train in (True, False):
        layer.train()
        layer.zero_grad()
        got = forward(layer, data)
        layer.eval()
        for B in (2, 7):
            forward(layer, draw(layer, 11, B))
        forward(layer, other)
        layer.train(back_in_train)
        assert_same(got | backward(layer, data), expected)


@per_kind
def test_backward_needs_a_training_call_of_its_own(cell):
    layer = cases.LAYERS[cell](3, 4, seed=0)
    data = draw(layer, 5, 2)
    steps = [lambda: None, lambda: forward(layer.eval(), data), lambda: both(layer.train(), data)]
    for step in steps:
        step()
        grads = layer.flat_grads.tobytes()
        with pytest.raises(RuntimeError, match=r"backward: no call to go back through"):
            backward(layer, data)
        assert layer.flat_grads.tobytes() == grads


@per_kind
def test_a_refused_backward_can_be_repeated(cell):
    layer = cases.LAYERS[cell](3, 4, 2, bidirectional=True, seed=0)
    data = draw(layer, 5, 2)
    expected = both(layer, data)
    layer.zero_grad()
    forward(layer, data)
    for name in ("dy", "dhn", "dcn"):
        if name not in data:
            continue
        for wrong, error in (
            (data[name][:-1], ValueError), (data[name][..., :-1], ValueError),
            (data[name][0], ValueError), (data[name].astype(np.float64), TypeError),
            ("text", TypeError),
        ):
            with pytest.raises(error, match=r"\.backward: d\S+ (has shape|is) .* expected"):
                backward(layer, data | {name: wrong})
            assert not np.any(layer.flat_grads)
    assert_same({n: a for n, a in expected.items() if n not in ("y", "hn", "cn")},
                backward(layer, data))


def test_the_latest_call_is_the_one_to_go_back_through():
    layer = fastrnn.LSTM(3, 4, 2, seed=0)
    first, latest = draw(layer, 5, 2), draw(layer, 4, 3)
    expected = both(layer, latest)
    layer.zero_grad()
    forward(layer, first)
    assert_same(both(layer, latest), expected)


@per_kind
def test_results_are_the_callers(cell):
    layer = cases.LAYERS[cell](3, 4, 2, seed=0)
    data = draw(layer, 5, 2)
    copies = copy.deepcopy(data)
    expected = copy.deepcopy(both(layer, data))
    layer.zero_grad()
    out = forward(layer, data)
    for array in out.values():
        array.fill(np.nan)  # writing into outputs must not reach the tape
    got = backward(layer, data)
    assert_same(got, {name: expected[name] for name in got})
    both(layer, draw(layer, 5, 2, seed=3))
    assert_same({n: a for n, a in got.items() if n in ("dx", "dh0", "dc0")},
                {n: a for n, a in expected.items() if n in ("dx", "dh0", "dc0")})
    assert_same(data, copies)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("sizes", [(0, 2), (3, 0), (0, 0)], ids=["T=0", "B=0", "T=B=0"])
@per_cell
def test_no_steps_or_no_rows(cell, sizes, mode):
    layer = cases.LAYERS[cell](3, 4, 2, bidirectional=True, seed=0).train(mode)
    data = draw(layer, *sizes)
    out = forward(layer, data)
    assert out["y"].shape == data["dy"].shape
    ends = {"hn": "h0", "cn": "c0"}
    assert_same({n: a for n, a in out.items() if n != "y"},
                {n: data[ends[n]] for n in out if n != "y"})
    if mode:
        got = backward(layer, data)
        assert got["dx"].shape == data["x"].shape
        assert_same(named("dhn", "dcn", tuple(got[n] for n in ("dh0", "dc0") if n in got)),
                    {n: data[n] for n in ("dhn", "dcn") if n in data})
        assert not np.any(layer.flat_grads)


def test_no_steps_unbatched_and_batch_first():
    layer = fastrnn.GRU(3, 4, batch_first=True, seed=0)
    for x, y_shape in ((np.zeros((0, 3), np.float32), (0, 4)),
                       (np.zeros((2, 0, 3), np.float32), (2, 0, 4))):
        y, hn = layer(x)
        assert y.shape == y_shape
        assert not np.any(hn)
        dx, _ = layer.backward(y)
        assert dx.shape == x.shape


# ------------------------------------------------------------------------------- copies and print


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@per_copy
@per_kind
def test_copies(cell, protocol, mode):
    layer = cases.LAYERS[cell](9, 8, 2, bidirectional=True, dropout=0.5, seed=0)
    data = draw(layer, 5, 2)
    for _ in range(2):
        both(layer, data)
    pending = forward(layer, data)
    layer.train(mode)
    again = (copy.deepcopy(layer) if protocol is None
             else pickle.loads(pickle.dumps(layer, protocol)))
    assert again.training is mode
    assert repr(again) == repr(layer)
    assert again.flat.tobytes() == layer.flat.tobytes()
    assert again.flat_grads.tobytes() == layer.flat_grads.tobytes()
    assert not np.shares_memory(again.flat, layer.flat)
    assert_views(again)
    assert again.flat.flags.writeable is mode
    for param in again.parameters().values():
        assert param.flags.writeable is mode
    with pytest.raises(RuntimeError, match="no call to go back through"):
        backward(again, data)
    backward(layer, data)  # the copy has not taken the original's tape
    again.flat_grads[:] = layer.flat_grads
    assert_same(forward(again, data), forward(layer, data))
    again.train()
    layer.train()
    for _ in range(2):  # the masks go on as the original's
        assert_same(both(again, data), both(layer, data))
    assert np.any(forward(again, data)["y"] != pending["y"])
    assert_views(again)
    layer.flat[:] = 0
    assert np.all(again.flat)


def test_a_shallow_copy_cannot_make_a_pack_stale():
    layer = fastrnn.LSTM(3, 4, seed=0).eval()
    data = draw(layer, 5, 2)
    other = copy.copy(layer).train()
    other.flat[:] = 0
    fresh = fastrnn.LSTM(3, 4)
    fresh.load_state_dict(layer.state_dict())
    assert_same(forward(layer, data), forward(fresh, data))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (lambda: fastrnn.LSTM(3, 4), "LSTM(3, 4)"),
        (lambda: fastrnn.GRU(3, 4, 2, True, True), "GRU(3, 4, num_layers=2, batch_first=True)"),
        (lambda: fastrnn.RNN(3, 4, 1, "relu", False), "RNN(3, 4, nonlinearity='relu', bias=False)"),
        (lambda: fastrnn.RNN(3, 4), "RNN(3, 4)"),
        (
            lambda: fastrnn.LSTM(3, 4, 2, dropout=0.5, bidirectional=True, dtype="float64"),
            "LSTM(3, 4, num_layers=2, dropout=0.5, bidirectional=True, dtype=float64)",
        ),
    ],
)
def test_repr(layer, text):
    assert repr(layer()) == text


@pytest.mark.parametrize("layer", [fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU])
def test_the_examples_in_the_docstrings_run(layer):
    runner, tests = doctest.DocTestRunner(), doctest.DocTestFinder(recurse=False).find(
        layer, globs={"np": np, "fastrnn": fastrnn})
    for test in tests:
        runner.run(test)
    assert runner.tries >= 4
    assert runner.failures == 0


# ----------------------------------------------------------------------------------------- memory


@per_dtype
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
def test_the_tape_of_an_lstm_is_six_numbers_per_unit_step_and_row(bidirectional, dtype):
    T, B, H = 50, 8, 64
    layer = fastrnn.LSTM(3, H, 3, bidirectional=bidirectional, dtype=dtype, seed=0)
    layer(np.zeros((T, B, 3), dtype))
    units = B * H * (1 + bidirectional) * np.dtype(dtype).itemsize
    for tape, _ in layer._tapes:
        assert tape.nbytes <= (6 * T + 2) * units + 4096


def test_a_training_call_takes_the_memory_of_the_one_before():
    layer = fastrnn.LSTM(3, 64, seed=0)
    x = np.zeros((200, 8, 3), np.float32)
    tracemalloc.start()
    try:
        layer(x)
        for _ in range(5):
            size = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            layer(x)  # nobody can go back through the call before it
            assert tracemalloc.get_traced_memory()[1] - size < layer._tapes[0][0].nbytes / 2
    finally:
        tracemalloc.stop()


def refused(call, *args):
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        call(*args)


def test_calls_do_not_leak():
    layers = [cases.LAYERS[cell](3, 8, 2, bidirectional=True, dropout=0.5, seed=0)
              for cell in ("rnn_tanh", "lstm", "gru")]
    data = [draw(layer, 6, 3) for layer in layers]
    wrong = np.zeros((6, 3, 4), np.float32)

    def round_of_calls():
        for layer, arrays in zip(layers, data, strict=True):
            layer.train()
            forward(layer, arrays)
            forward(layer, arrays)  # drops the tape before
            refused(layer, wrong)
            refused(layer, arrays["x"], "h")
            refused(layer.backward, wrong)
            refused(layer.stream)
            refused(layer.load_state_dict, {"x": wrong})
            backward(layer, arrays)
            refused(layer.backward, arrays["dy"])
            layer.load_state_dict(layer.state_dict())
            forward(layer.eval(), arrays)

    clear_caches = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache

    def memory_after(rounds):
        for _ in range(rounds):
            round_of_calls()
        gc.collect()
        clear_caches()  # CPython keeps names of looked-up methods there
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = memory_after(30)
        assert memory_after(100) - before < 3000  # one object a round would be more
    finally:
        tracemalloc.stop()
