"""Initialisations: what they are by their papers, that nothing else moves, and refusals."""

import math

import cases
import numpy as np
import pytest

import fastrnn
from fastrnn import init

H, I = 37, 11
WHICH = {
    "torch_uniform": lambda layer, seed=0: init.torch_uniform(layer, seed),
    "normal": lambda layer, seed=0: init.normal(layer, 0.1, seed),
    "glorot": lambda layer, seed=0: init.glorot(layer, seed),
    "orthogonal": lambda layer, seed=0: init.orthogonal(layer, 0.9, seed),
    "sparse": lambda layer, seed=0: init.sparse(layer, 1.1, 5, seed),
    "identity": lambda layer, seed=0: init.identity(layer, 0.5, seed),
    "chrono": lambda layer, seed=0: init.chrono(layer, 50, seed),
    "forget_bias": lambda layer: init.forget_bias(layer, 2.0),
}
ALL_CELLS = ("torch_uniform", "normal", "glorot", "orthogonal", "sparse")
CALLS = [(name, cell) for name in ALL_CELLS for cell in cases.CELLS] + [
    ("identity", "rnn_relu"), ("chrono", "lstm"), ("chrono", "gru"), ("forget_bias", "lstm")]


def layer_of(cell, **options):
    """Return a layer with all there can be: two layers, two directions."""
    options = {"num_layers": 2, "bidirectional": True, "dtype": np.float64, "seed": 7} | options
    return cases.LAYERS[cell](I, H, **options)


def gates_of(layer, kind):
    """Return the parameters of a kind by name, (G, H, ...)."""
    G = cases.GATES[layer.cell.name]
    return {name: p.reshape(G, layer.hidden_size, *p.shape[1:])
            for name, p in layer.parameters().items() if name.startswith(kind)}


def biases_of(layer):
    """Return the sum of both biases of each stacked layer and direction, (G, H)."""
    ih, hh = gates_of(layer, "bias_ih"), gates_of(layer, "bias_hh")
    return [a + b for a, b in zip(ih.values(), hh.values(), strict=True)]


def changed(layer, before):
    """Return the kinds of the parameters that differ from `before` somewhere."""
    return {name.partition("_l")[0] for name, p in layer.parameters().items()
            if not np.array_equal(p, before[name])}


@pytest.mark.parametrize(("name", "cell"), CALLS)
def test_every_stacked_layer_and_direction_changes_and_nothing_else(name, cell):
    layer = layer_of(cell)
    before = layer.state_dict()
    layer.flat_grads[:] = 1
    assert WHICH[name](layer) is layer
    weights, biases = {"weight_ih", "weight_hh"}, {"bias_ih", "bias_hh"}
    kinds = {"orthogonal": {"weight_hh"}, "sparse": {"weight_hh"}, "chrono": biases,
             "forget_bias": biases}.get(name, weights | biases)
    assert changed(layer, before) == kinds
    for key, param in layer.parameters().items():
        if key.partition("_l")[0] in kinds:
            assert not np.array_equal(param, before[key]), key
        assert np.isfinite(param).all()
    assert (layer.flat_grads == 1).all()


@pytest.mark.parametrize(("name", "cell"), [c for c in CALLS if c[0] != "forget_bias"])
def test_the_seed_decides_in_either_dtype(name, cell):
    def made(seed, dtype=np.float64):
        return WHICH[name](layer_of(cell, dtype=dtype), seed).flat

    assert made(3).tobytes() == made(3).tobytes() != made(4).tobytes()
    cases.assert_close("float32", made(3, np.float32), made(3), 1e-6, dtype=np.float32)


@pytest.mark.parametrize("cell", cases.CELLS)
def test_torch_uniform_is_what_a_new_layer_has(cell):
    layer, other = layer_of(cell, seed=5), layer_of(cell, seed=6)
    assert init.torch_uniform(other, seed=5).flat.tobytes() == layer.flat.tobytes()
    assert abs(layer.flat).max() <= 1 / math.sqrt(H)
    assert layer.flat.std() == pytest.approx(1 / math.sqrt(3 * H), rel=0.05)


def test_normal_has_the_deviation_and_no_biases():
    layer = init.normal(layer_of("lstm"), 0.25, seed=0)
    for weight in gates_of(layer, "weight").values():
        assert weight.std() == pytest.approx(0.25, rel=0.1)
        assert abs(weight.mean()) < 0.02
        assert abs(weight).max() > 0.6  # no uniform one of this deviation gets there
    assert not any(bias.any() for bias in gates_of(layer, "bias").values())


def test_glorot_bounds_each_gates_block():
    layer = init.glorot(layer_of("gru"), seed=0)
    for name, weight in gates_of(layer, "weight").items():
        N = H if name.startswith("weight_hh") else 2 * H if "_l1" in name else I
        bound = math.sqrt(6 / (N + H))
        for gate in weight:
            assert 0.95 * bound < abs(gate).max() <= bound, name
    assert not any(bias.any() for bias in gates_of(layer, "bias").values())


@pytest.mark.parametrize("gain", [1.0, 0.5])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_orthogonal_gates(cell, gain):
    layer = init.orthogonal(layer_of(cell), gain, seed=0)
    for weight in gates_of(layer, "weight_hh").values():
        for gate in weight:
            cases.assert_close("gate", gate @ gate.T, gain**2 * np.eye(H), 1e-13)


def test_orthogonal_is_uniform():
    """It is the Q of a normal matrix whose R has a diagonal above 0: that one is unique."""
    q = gates_of(init.orthogonal(cases.LAYERS["gru"](1, 9, dtype=np.float64), seed=4), "weight_hh")
    rng = np.random.default_rng(np.random.SeedSequence(4).spawn(1)[0])
    r = q["weight_hh_l0"].transpose(0, 2, 1) @ rng.standard_normal((3, 9, 9))
    np.testing.assert_allclose(np.tril(r, -1), 0, atol=1e-13)
    assert (np.diagonal(r, axis1=1, axis2=2) > 0).all()


def test_identity_is_the_irnn():
    layer = init.identity(layer_of("rnn_relu"), 0.5, seed=0)
    for weight in gates_of(layer, "weight_hh").values():
        np.testing.assert_array_equal(weight[0], 0.5 * np.eye(H))
    for weight in gates_of(layer, "weight_ih").values():
        assert weight.std() == pytest.approx(0.001, rel=0.1)
    assert not any(bias.any() for bias in gates_of(layer, "bias").values())
    # without input it keeps what it has
    single = init.identity(fastrnn.RNN(I, H, nonlinearity="relu", seed=0), seed=0)
    h0 = abs(np.random.default_rng(0).standard_normal((1, 2, H))).astype(np.float32)
    _, hn = single(np.zeros((9, 2, I), np.float32), h0)
    np.testing.assert_array_equal(hn, h0)


@pytest.mark.parametrize(("radius", "nonzeros"), [(1.1, 5), (0.3, 1), (0.95, 1000)])
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru"])
def test_sparse_has_the_radius_and_the_connections(cell, radius, nonzeros):
    layer = init.sparse(layer_of(cell), radius, nonzeros, seed=0)
    for weight in gates_of(layer, "weight_hh").values():
        for gate in weight:
            assert abs(np.linalg.eigvals(gate)).max() == pytest.approx(radius, rel=1e-6)
            assert (np.count_nonzero(gate, axis=1) == min(nonzeros, H)).all()
            assert nonzeros >= H or len(set(np.flatnonzero(gate) % H)) > 10  # not the same columns


def test_forget_bias_is_the_sum_of_both():
    layer = layer_of("lstm")
    before = layer.state_dict()
    init.forget_bias(layer, 2.0)
    for bias in biases_of(layer):
        np.testing.assert_array_equal(bias[1], 2)
    for name, bias in gates_of(layer, "bias").items():
        np.testing.assert_array_equal(np.delete(bias, 1, axis=0),
                                      np.delete(before[name].reshape(4, H), 1, axis=0))
    for bias in biases_of(init.forget_bias(layer)):
        np.testing.assert_array_equal(bias[1], 1)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_chrono_spreads_the_times_that_units_remember(cell):
    layer = cases.LAYERS[cell](1, 1001, dtype=np.float64, seed=0)
    before, T_max = biases_of(layer)[0], 80
    init.chrono(layer, T_max, seed=0)
    (bias,) = biases_of(layer)
    times = 1 + np.exp(bias[1])
    assert 2 <= times.min() < 2.5
    assert T_max - 0.5 < times.max() <= T_max
    assert times.mean() == pytest.approx((2 + T_max) / 2, rel=0.05)
    if cell == "lstm":
        np.testing.assert_array_equal(bias[0], -bias[1])
    rest = [2, 3] if cell == "lstm" else [0, 2]
    np.testing.assert_array_equal(bias[rest], before[rest])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_chrono_units_forget_at_their_times(cell):
    """With no weights, what is left of a state after t steps is (1 - 1/T)^t."""
    layer = cases.LAYERS[cell](1, 9, dtype=np.float64, seed=0)
    layer.flat[:] = 0
    init.chrono(layer, 30, seed=0)
    times = 1 + np.exp(biases_of(layer)[0][1])
    start = np.random.default_rng(0).standard_normal((1, 1, 9))
    x = np.zeros((6, 1, 1))
    state = layer(x, start)[1] if cell == "gru" else layer(x, (np.zeros_like(start), start))[1][1]
    cases.assert_close("state", state, start * (1 - 1 / times) ** 6, 1e-13)


@pytest.mark.parametrize(("name", "cell"), [c for c in CALLS if c[1] in ("lstm", "gru")])
def test_a_models_layers_are_set_and_the_rest_is_not(name, cell):
    model, alone = (fastrnn.LanguageModel(5, 3, 7, 2, cell, dtype=np.float64, seed=0)
                    for _ in range(2))
    alone = alone.layers[0]
    before = model.state_dict()
    assert WHICH[name](model.layers[0]) is model.layers[0]
    assert model.layers[0].flat.tobytes() == WHICH[name](alone).flat.tobytes()
    for key, param in model.parameters().items():
        if not key.startswith("layers."):
            np.testing.assert_array_equal(param, before[key])


@pytest.mark.parametrize("name", ["normal", "glorot", "orthogonal", "sparse", "identity"])
def test_layers_without_biases(name):
    layer = layer_of("rnn_relu", bias=False)
    before = layer.state_dict()
    WHICH[name](layer)
    assert changed(layer, before) >= {"weight_hh"}


def test_a_unit_alone():
    layer = fastrnn.RNN(1, 1, nonlinearity="relu", seed=0)
    for name, value in (("orthogonal", 0.9), ("sparse", 1.1), ("identity", 0.5)):
        WHICH[name](layer)
        assert abs(layer.parameters()["weight_hh_l0"]) == pytest.approx(value)
    assert init.chrono(fastrnn.GRU(1, 1, seed=0), 2).parameters()["bias_ih_l0"][1] == 0


@pytest.mark.parametrize(
    ("cell", "call", "error", "match"),
    [
        ("lstm", lambda x: init.identity(x), ValueError,
         r"identity: layer is LSTM\(11, 37.*\), expected an RNN with nonlinearity 'relu'"),
        ("rnn_tanh", lambda x: init.identity(x), ValueError, "identity: layer is RNN"),
        ("rnn_relu", lambda x: init.identity(x, 0), ValueError, "scale is 0, expected a number"),
        ("gru", lambda x: init.normal(x, -1), ValueError, "normal: std is -1, expected a number"),
        ("gru", lambda x: init.orthogonal(x, math.inf), ValueError, "gain is inf"),
        ("gru", lambda x: init.sparse(x, 0), ValueError, "spectral_radius is 0"),
        ("gru", lambda x: init.sparse(x, 1, 0), ValueError, "nonzeros is 0, expected a whole"),
        ("gru", lambda x: init.forget_bias(x), ValueError, r"layer is GRU.*expected an LSTM"),
        ("lstm", lambda x: init.forget_bias(x, math.nan), ValueError, "value is nan"),
        ("lstm", lambda x: init.chrono(x, 1), ValueError, "T_max is 1, expected a number of at le"),
        ("rnn_tanh", lambda x: init.chrono(x, 9), ValueError, "expected an LSTM or a GRU"),
    ],
)
def test_errors_name_the_argument_and_change_nothing(cell, call, error, match):
    layer = layer_of(cell)
    with pytest.raises(error, match=match) as raised:
        call(layer)
    assert "\n" not in str(raised.value)
    assert layer.flat.tobytes() == layer_of(cell).flat.tobytes()


@pytest.mark.parametrize(("name", "cell"), CALLS)
def test_what_every_one_refuses(name, cell):
    with pytest.raises(TypeError, match=f"^{name}: layer is None, expected an RNN, LSTM or GRU"):
        WHICH[name](None)
    layer = layer_of(cell).eval()
    with pytest.raises(ValueError, match=f"^{name}: the parameters are read-only in evaluation m"):
        WHICH[name](layer)
    assert layer.flat.tobytes() == layer_of(cell).flat.tobytes()
    layer.train()
    if name != "forget_bias":
        with pytest.raises(ValueError, match=f"^{name}: seed is -1, expected a whole number"):
            WHICH[name](layer, -1)
    if name in ("forget_bias", "chrono"):
        with pytest.raises(ValueError, match=f"^{name}: layer has bias False"):
            WHICH[name](layer_of(cell, bias=False))
    assert layer.flat.tobytes() == layer_of(cell).flat.tobytes()


@pytest.mark.parametrize("attempt", [
    lambda: init.normal(fastrnn.GRU(3, 4), 1e300, seed=0),
    lambda: init.orthogonal(fastrnn.GRU(3, 4), 1e300, seed=0),
    lambda: init.identity(fastrnn.RNN(3, 4, nonlinearity="relu"), 1e300),
    lambda: init.forget_bias(fastrnn.LSTM(3, 4), -1e300),
    lambda: init.sparse(fastrnn.GRU(3, 4), 1e300, seed=0),
])
def test_numbers_that_the_dtype_cannot_hold_are_no_parameters(attempt):
    with pytest.raises(ValueError, match=r"(std|gain|scale|value|spectral_radius) is -?1e\+300: "
                       r"a (weight|bias) has .* which float32 cannot hold"):
        attempt()


def test_numbers_beyond_every_dtype_are_no_parameters():
    layer = fastrnn.GRU(3, 4, dtype=np.float64, seed=0)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"std is .*would be infinite"):
        init.normal(layer, 1.7e308, seed=0)


@pytest.mark.parametrize(("kind", "attempt"), [
    ("LSTM", lambda layer: init.torch_uniform(layer, seed="a")),
    ("LSTM", lambda layer: init.normal(layer, std=-1)),
    ("LSTM", lambda layer: init.normal(layer, std=1e300)),
    ("LSTM", lambda layer: init.glorot(layer, seed=-1)),
    ("LSTM", lambda layer: init.orthogonal(layer, gain=-1)),
    ("GRU", lambda layer: init.identity(layer)), ("LSTM", lambda layer: init.sparse(layer, -1)),
    ("GRU", lambda layer: init.forget_bias(layer)),
    ("LSTM", lambda layer: init.chrono(layer, 1)),
    ("LSTM", lambda layer: init.chrono(layer, float("inf"))),
], ids=str)
def test_a_refused_call_leaves_a_pass_as_it_was(kind, attempt):
    layer = getattr(fastrnn, kind)(3, 4, seed=0)
    x = np.ones((5, 2, 3), np.float32)
    y, _ = layer(x)
    with pytest.raises((TypeError, ValueError)):
        attempt(layer)
    layer.backward(y)
    assert layer.grads["weight_hh_l0"].any()


@pytest.mark.parametrize(("call", "expected"), [
    (init.forget_bias, "expected an LSTM"), (init.identity, "expected"),
    (lambda x: init.chrono(x, 9), "expected an LSTM or a GRU")],
    ids=["forget_bias", "identity", "chrono"])
def test_cells_from_equations_have_no_gates_by_name(call, expected):
    definition = fastrnn.cell("f, c = W x + U h + b\nh = sigmoid(f) * h + tanh(c)", name="Own")
    with pytest.raises(ValueError, match=rf"layer is Layer\(Own, 3, 4\), {expected}"):
        call(fastrnn.Layer(definition, 3, 4))


@pytest.mark.parametrize("attempt", [
    lambda layer: init.normal(layer, 1.5e38, seed=0),
    lambda layer: init.orthogonal(layer, 5e38, seed=0)], ids=["normal", "orthogonal"])
def test_a_layer_is_filled_whole_or_not_at_all(attempt):
    """Some of the numbers drawn are above 3.4e38, and others are not."""
    layer = fastrnn.LSTM(8, 16, 3, seed=0)
    before = layer.flat.copy()
    with pytest.raises(ValueError, match="which float32 cannot hold"):
        attempt(layer)
    np.testing.assert_array_equal(layer.flat, before)
