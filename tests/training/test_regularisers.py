"""Omega against plain NumPy, its gradient against central differences with all else held."""

import cases
import numpy as np
import pytest

from fastrnn import LSTM, RNN, optim, training
from fastrnn.models import SequenceModel
from fastrnn.training import Batch, Windows
from fastrnn.training.regularisers import OMEGA_NEEDS, omega

SLOPES = {"tanh": lambda h: 1 - h**2, "sigmoid": lambda h: h * (1 - h),
          "relu": lambda h: 1.0 * (h > 0)}


def layer_of(nonlinearity="tanh", layers=1, both=False, dtype=np.float64):
    return RNN(3, 4, layers, nonlinearity, bidirectional=both, dtype=dtype, seed=1)


def go_back(layer, T=6, B=3):
    rng = np.random.default_rng(0)
    y, _, p = layer.forward(rng.standard_normal((T, B, 3)).astype(layer.dtype))
    layer.zero_grad()
    dy = rng.standard_normal(y.shape).astype(layer.dtype)
    return p.backward(dy, record=OMEGA_NEEDS)[2]


def plain(layer, recorded):
    """Return Omega, summed over stacked layers and directions, of what backward recorded."""
    total = 0.0
    for number, of in enumerate(recorded):
        for d in range(1 + layer.bidirectional):
            w = layer.parameters()[f"weight_hh_l{number}" + ("_reverse" if d else "")]
            g, h = of["dgates_h"][:, :, d, 0], of["h"][:, :, d]
            T, B, _ = h.shape
            steps = range(1, T) if d == 0 else range(T - 1)
            for b in range(B):
                for t in steps:
                    if g[t, b].any():
                        u = g[t, b] @ w * SLOPES[layer.nonlinearity](h[t, b])
                        ratio = np.linalg.norm(u) / np.linalg.norm(g[t, b])
                        total += (ratio - 1) ** 2 / B
    return total


def test_a_refused_omega_adds_nothing():
    layer = layer_of("tanh", 2, False)
    recorded = go_back(layer)
    layer.zero_grad()
    T, B = recorded[0]["h"].shape[:2]
    grads = layer.new_grads()
    other = go_back(RNN(3, 5, 2, dtype=layer.dtype))
    for given, options, match in (
            (recorded, {"grads": grads | {"weight_hh_l1": np.zeros(3)}}, r"grads\['weight_hh_l1'"),
            (recorded, {"grads": {}}, "grads lacks"),
            (recorded, {"first": np.ones((1, B), bool)}, "first has shape"),
            (recorded, {"first": np.ones((2, T, B))}, "first is float64, expected booleans"),
            (other, {}, r"recorded\[0\]\['dgates_h'\] has shape"),
            ([recorded[0], recorded[1] | {"h": 2}], {}, r"recorded\[1\]\['h'\]")):
        with pytest.raises((TypeError, ValueError), match=match):
            omega(layer, given, 4.0, **options)
    assert not any(grad.any() for grad in [*layer.grads.values(), *grads.values()])


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("nonlinearity", SLOPES)
def test_omega_and_its_immediate_gradient(nonlinearity, layers, both):
    layer = layer_of(nonlinearity, layers, both)
    recorded = go_back(layer)
    before = {name: g.copy() for name, g in layer.grads.items()}
    value = omega(layer, recorded, 2.5)
    assert value == pytest.approx(2.5 * plain(layer, recorded), rel=1e-12)
    own = layer.new_grads()
    assert omega(layer, recorded, 2.5, own) == value
    for name, param in layer.parameters().items():
        added = layer.grads[name] - before[name]
        np.testing.assert_allclose(added, own[name], atol=1e-12)
        if name.startswith("weight_hh"):
            expected = cases.differences(lambda: 2.5 * plain(layer, recorded), param)
            assert np.abs(expected).max() > 1e-3
            cases.assert_close(name, added, expected, 1e-6)
        else:
            assert not added.any()


@pytest.mark.parametrize("both", [False, True])
def test_a_step_back_over_the_border_of_an_episode_counts_for_nothing(both):
    def layers():
        return RNN(3, 4, 2, bidirectional=both, dtype=np.float64, seed=1)

    rng = np.random.default_rng(0)
    x = [rng.standard_normal((n, 3)) for n in (6, 0, 4)]
    start = [np.array([1, 0, 0, 1, 0, 1], bool), np.zeros(0, bool), np.array([0, 1, 0, 0], bool)]
    parts = [one for a, s in zip(x, start, strict=True) for one in
             np.split(a, np.flatnonzero(s[1:]) + 1)]
    found = []
    for sequences, options, rows in ((x, {"episode_start": start}, 3), (parts, {}, len(parts))):
        model = SequenceModel(layers(), 2, loss="mse", seed=1)
        rng = np.random.default_rng(0)
        goals = np.split(rng.standard_normal((10, 2)), np.cumsum([len(a) for a in sequences])[:-1])
        p = model.loss(sequences, goals, **options)
        _, _, recorded = p.backward(record=OMEGA_NEEDS)
        first = p.inner.ragged_of_layers[0].begins
        own = model.layers[0].new_grads()
        found.append([rows * omega(model.layers[0], recorded[0], 1.0, own, first=first)]
                     + [rows * g for g in own.values()])
    for got, expected in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_a_step_of_training_knows_where_episodes_begin():
    def model():
        layer = RNN(3, 4, bidirectional=True, dtype=np.float64, seed=1)
        return SequenceModel(layer, 2, loss="mse", seed=1)

    rng = np.random.default_rng(0)
    x, y = ([rng.standard_normal((n, k)) for n in (6, 4)] for k in (3, 2))
    start = [np.arange(len(a)) == 2 for a in x]
    fitted, other = model(), model()
    training.fit(fitted, lambda step: Batch(x, y, episode_start=start), steps=1, omega=2.0,
                 optimizer="sgd", lr=0.1, clip=None)
    p = other.loss(x, y, episode_start=start)
    _, _, recorded = p.backward(record=OMEGA_NEEDS)
    first = np.zeros((2, 6, 2), bool)
    first[0, [0, 2]] = first[1, [1, 5], 0] = first[1, [1, 3], 1] = True
    omega(other.layers[0], recorded[0], 2.0, first=first)
    for name, param in other.parameters().items():
        np.testing.assert_allclose(fitted.parameters()[name], param - 0.1 * other.grads[name],
                                   rtol=1e-12, atol=1e-14)


def test_steps_without_a_gradient_count_for_nothing():
    layer = layer_of()
    rng = np.random.default_rng(0)
    for last in (1, 0):
        y, _, p = layer.forward(rng.standard_normal((6, 3, 3)))
        dy = np.zeros_like(y)
        dy[2] = last
        layer.zero_grad()
        _, _, recorded = p.backward(dy, record=OMEGA_NEEDS)
        assert omega(layer, recorded, 1.0) == pytest.approx(plain(layer, recorded), rel=1e-12)
        assert np.isfinite(layer.flat_grads).all()
        assert layer.flat_grads.any() == bool(last)


def test_a_matrix_that_leaves_norms_as_they_are_costs_nothing():
    layer = layer_of("relu")
    layer.weight_hh_l0 = np.eye(4)
    layer.bias_ih_l0 = np.full(4, 9.0)  # all units live
    assert omega(layer, go_back(layer), 1.0) == pytest.approx(0, abs=1e-20)


def test_gradients_as_small_as_floats_count_like_any_other():
    layer = layer_of(dtype=np.float32)
    recorded = go_back(layer)
    found = []
    for size in (1.0, 2.0**-110):
        recorded[0]["dgates_h"] *= size
        layer.zero_grad()
        found.append((omega(layer, recorded, 1.0), layer.grads["weight_hh_l0"].copy()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-5, atol=1e-7)


X = np.sin(np.arange(300) / 5).astype(np.float32)[:, None]


def test_training_with_omega_keeps_gradients_from_vanishing():
    def train(weight):
        layer = RNN(1, 16, seed=0)
        model = SequenceModel(layer, 1, loss="mse", seed=0)
        training.fit(model, Windows(X, 20, 4), optim.SGD(model, 0.02), steps=200, omega=weight)
        y, _, p = layer.forward(X[:20, None])
        return omega(layer, p.backward(np.ones_like(y), record=OMEGA_NEEDS)[2], 1.0)

    assert train(2.0) < 0.5 * train(0.0)


def test_omega_is_that_of_the_whole_window_with_gradient_checkpointing_and_beside_gated_layers():
    found = []
    for every in (None, 7):
        model = SequenceModel([LSTM(1, 4, dtype=np.float64, seed=0),
                               RNN(4, 6, dtype=np.float64, seed=0)], 1, loss="mse", seed=0)
        training.fit(model, Windows(X.astype(float), 20, 4), optim.SGD(model, 0.02), steps=3,
                     omega=2.0, recompute_every=every)
        found.append(model.state_dict())
    without = SequenceModel([LSTM(1, 4, dtype=np.float64, seed=0),
                             RNN(4, 6, dtype=np.float64, seed=0)], 1, loss="mse", seed=0)
    training.fit(without, Windows(X.astype(float), 20, 4), optim.SGD(without, 0.02), steps=3)
    for name, a in found[0].items():
        np.testing.assert_allclose(found[1][name], a, rtol=1e-10, atol=1e-12)
    assert np.abs(found[0]["layers.1.weight_hh_l0"]
                  - without.parameters()["layers.1.weight_hh_l0"]).max() > 1e-4


def fit_with_omega(layer):
    model = SequenceModel(layer, 1, loss="mse")
    training.fit(model, lambda step: Batch(X, X), steps=1, omega=1.0)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: omega(LSTM(2, 3), [], 1.0), TypeError, "omega: layer is of type LSTM"),
        (lambda: omega(layer_of(), go_back(layer_of()), 0), ValueError, "weight is 0"),
        (lambda: omega(layer_of(), [], 1), ValueError, r"recorded is \[\], expected a list of 1"),
        (lambda: omega(layer_of(), [{"h": 1}], 1), ValueError, "expected a list of 1 dicts"),
        (lambda: omega(layer_of(layers=2), go_back(layer_of()), 1), ValueError, "of 2 dicts"),
        (lambda: fit_with_omega(LSTM(1, 2)), ValueError,
         "fit: omega is 1.0 for a model without an RNN"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
