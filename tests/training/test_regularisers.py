"""Omega against plain NumPy, its gradient against central differences with all else held."""

import cases
import numpy as np
import pytest

from fastrnn import LSTM, RNN, optim, regularisers, training
from fastrnn.batches import Windows
from fastrnn.model import SequenceModel

SLOPES = {"tanh": lambda h: 1 - h**2, "sigmoid": lambda h: h * (1 - h),
          "relu": lambda h: 1.0 * (h > 0)}


def layer_of(nonlinearity="tanh", layers=1, both=False, dtype=np.float64):
    layer = RNN(3, 4, layers, nonlinearity, bidirectional=both, dtype=dtype, seed=1)
    layer.watch = regularisers.OMEGA_NEEDS
    return layer


def go_back(layer, T=6, B=3):
    rng = np.random.default_rng(0)
    y, _ = layer(rng.standard_normal((T, B, 3)).astype(layer.dtype))
    layer.zero_grad()
    layer.backward(rng.standard_normal(y.shape).astype(layer.dtype))


def plain(layer):
    """Return Omega, summed over stacked layers and directions, of what the layer has seen."""
    total = 0.0
    for number, seen in enumerate(layer.seen):
        for d in range(1 + layer.bidirectional):
            w = layer.parameters()[f"weight_hh_l{number}" + ("_reverse" if d else "")]
            g, h = seen["dgates_h"][:, :, d, 0], seen["h"][:, :, d]
            T, B, _ = h.shape
            steps = range(1, T) if d == 0 else range(T - 1)
            for b in range(B):
                for t in steps:
                    if g[t, b].any():
                        u = g[t, b] @ w * SLOPES[layer.nonlinearity](h[t, b])
                        ratio = np.linalg.norm(u) / np.linalg.norm(g[t, b])
                        total += (ratio - 1) ** 2 / B
    return total


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("nonlinearity", SLOPES)
def test_omega_and_its_immediate_gradient(nonlinearity, layers, both):
    layer = layer_of(nonlinearity, layers, both)
    go_back(layer)
    before = {name: g.copy() for name, g in layer.grads.items()}
    value = regularisers.omega(layer, 2.5)
    assert value == pytest.approx(2.5 * plain(layer), rel=1e-12)
    for name, param in layer.parameters().items():
        added = layer.grads[name] - before[name]
        if name.startswith("weight_hh"):
            expected = cases.differences(lambda: 2.5 * plain(layer), param)
            assert np.abs(expected).max() > 1e-3
            cases.assert_close(name, added, expected, 1e-6)
        else:
            assert not added.any()


def test_steps_without_a_gradient_count_for_nothing():
    layer = layer_of()
    rng = np.random.default_rng(0)
    y, _ = layer(rng.standard_normal((6, 3, 3)))
    dy = np.zeros_like(y)
    dy[2] = 1
    layer.zero_grad()
    layer.backward(dy)
    assert regularisers.omega(layer, 1.0) == pytest.approx(plain(layer), rel=1e-12)
    assert np.isfinite(layer.flat_grads).all()
    layer(rng.standard_normal((6, 3, 3)))
    layer.zero_grad()
    layer.backward(np.zeros_like(dy))
    assert regularisers.omega(layer, 1.0) == 0
    assert not layer.flat_grads.any()


def test_a_matrix_that_leaves_norms_as_they_are_costs_nothing():
    layer = layer_of("relu")
    layer.parameters()["weight_hh_l0"][...] = np.eye(4)
    layer.parameters()["bias_ih_l0"][...] = 9  # all units live
    go_back(layer)
    assert regularisers.omega(layer, 1.0) == pytest.approx(0, abs=1e-20)


def test_gradients_as_small_as_floats_count_like_any_other():
    layer = layer_of(dtype=np.float32)
    go_back(layer)
    found = []
    for size in (1.0, 2.0**-110):
        layer.seen[0]["dgates_h"] *= size
        layer.zero_grad()
        found.append((regularisers.omega(layer, 1.0), layer.grads["weight_hh_l0"].copy()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-5, atol=1e-7)


def test_training_with_omega_keeps_gradients_from_vanishing():
    x = np.sin(np.arange(300) / 5).astype(np.float32)[:, None]

    def train(omega):
        layer = RNN(1, 16, seed=0)
        model = SequenceModel(layer, 1, loss="mse", seed=0)
        training.fit(model, Windows(x, 20, 4), optim.SGD(model, 0.02), steps=200, omega=omega)
        assert layer.watch == ()
        assert not layer.seen
        layer.watch = regularisers.OMEGA_NEEDS
        y, _ = layer(x[:20, None])
        layer.backward(np.ones_like(y))
        return regularisers.omega(layer, 1.0)

    assert train(2.0) < 0.5 * train(0.0)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: regularisers.omega(LSTM(2, 3), 1.0), TypeError, "layer is of type LSTM"),
        (lambda: regularisers.omega(layer_of(), 0), ValueError, "weight is 0"),
        (lambda: regularisers.omega(layer_of(), 1), ValueError, "expected a backward with watch"),
        (lambda: training.fit(
            model := SequenceModel(LSTM(1, 2), 1, loss="mse"), None, optim.Adam(model), steps=1,
            omega=1.0), ValueError, "omega is 1.0 for a model without an RNN"),
        (lambda: training.fit(
            model := SequenceModel(RNN(1, 2), 1, loss="mse"), None, optim.Adam(model), steps=1,
            omega=1.0, segment=3), ValueError, "omega is 1.0 for a model in segments"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
