"""Jacobians: against finite differences and NumPy's norms."""

import math

import cases
import numpy as np
import pytest
import stacks
from flows import layer_of, recorded, scaled, walk

import fastrnn
from fastrnn import gradflow
from fastrnn.gradflow import jacobians
from fastrnn.gradflow.jacobians import matrix_norms

X = np.zeros((4, 2, 3))


@stacks.per_cell
@pytest.mark.parametrize(("number", "reverse"), [(0, False), (1, True)])
def test_jacobians_are_finite_differences(cell, number, reverse):
    layer = layer_of(cell, num_layers=2, bidirectional=True)
    data = stacks.draw(layer, 8, 3)
    t, n, H = (2, 5, 5) if reverse else (5, 5, 5)
    got = jacobians(layer, data["x"], stacks.state_of(data, "h0", "c0"), t=t, sequence=1,
                    distance=n, number=number, reverse=reverse)
    push = np.zeros((2, 8, 3, 2, H))

    def state_at(i):
        """h_i(t) as the loss of a walk over the layers up to the one looked at."""
        part = layer_of(cell, num_layers=number + 1, bidirectional=True)
        for name, param in part.parameters().items():
            param[...] = layer.parameters()[name]
        own = {k: v[: 2 * (number + 1)] for k, v in data.items() if k in ("h0", "c0")}
        dy = np.zeros_like(data["dy"])
        dy[t, 1, reverse * H + i] = 1
        return walk(part, {"x": data["x"], "dy": dy, **own}, push)[0]

    for distance, matrix in enumerate(got.matrices):
        k = t + distance if reverse else t - distance
        expected = np.zeros((H, H))
        for j in range(H):
            sides = []
            for sign in (1, -1):
                push[number, k, 1, int(reverse), j] = sign * 1e-5
                sides.append(np.array([state_at(i) for i in range(H)]))
            push[:] = 0
            expected[:, j] = (sides[0] - sides[1]) / 2e-5
        # the loss is of order 1, so a difference of step 1e-5 is good to about 1e-11
        np.testing.assert_allclose(matrix, expected, rtol=1e-7, atol=1e-10)
        assert got.norms[distance] == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-12)
    assert len(got.norms) == n + 1
    assert (got.c_norms is None) == (cell != "lstm")


def test_of_an_lstm_also_what_c_keeps():
    layer = layer_of("lstm")
    data = stacks.draw(layer, 6, 1)
    got = jacobians(layer, data["x"], (data["h0"], data["c0"]), distance=4)
    data["dy"][:] = 0
    rows = []
    for i in range(5):
        data["dhn"][:], data["dcn"][:] = np.eye(5)[i], 0
        rows.append(recorded(layer, data, ("dc",))[0]["dc"][::-1, 0, 0])  # (T, H)
    expected = np.linalg.norm(np.stack(rows, 1)[:5], 2, axis=(1, 2))
    cases.assert_close("c_norms", got.c_norms, expected, 1e-13)


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "rnn_sigmoid"])
def test_no_norm_exceeds_the_bound(cell):
    layer = layer_of(cell, H=20)
    got = jacobians(layer, np.random.default_rng(0).standard_normal((30, 1, 3)), distance=25)
    w = layer.parameters()["weight_hh_l0"]
    gamma = 0.25 if cell == "rnn_sigmoid" else 1
    assert got.threshold == 1 / gamma
    np.testing.assert_allclose(got.singular_values, np.linalg.svd(w, compute_uv=False)[0])
    np.testing.assert_allclose(got.spectral_radii, np.abs(np.linalg.eigvals(w)).max())
    np.testing.assert_allclose(got.bounds, (got.singular_values[0] * gamma) ** np.arange(26))
    assert (got.norms <= got.bounds * (1 + 1e-12)).all()


@stacks.per_dtype
def test_power_iteration_finds_the_norm_of_wide_layers(dtype):
    layer = layer_of("rnn_tanh", H=150, dtype=dtype)
    got = jacobians(layer, np.zeros((6, 1, 3), dtype), distance=5)
    exact = np.linalg.norm(got.matrices.astype(np.float64), 2, axis=(1, 2))
    np.testing.assert_allclose(got.norms, exact, rtol=1e-4)
    assert (got.norms <= exact * (1 + 1e-9)).all()


def test_memory_is_the_first_distance_below():
    got = jacobians(scaled(0.5, "rnn_relu"), np.ones((40, 1, 3)), state=np.ones((1, 1, 16)))
    below = [d for d in range(1, 40) if got.norms[d] < got.norms[1] / math.e]
    assert got.memory() == below[0]
    assert got.memory(0.01) > got.memory()
    still = scaled(0.0)
    still.parameters()["weight_hh_l0"][:] = np.eye(16)
    still.flat[: 16 * 3] = 0
    still.parameters()["bias_ih_l0"][:] = still.parameters()["bias_hh_l0"][:] = 0
    assert jacobians(still, np.ones((40, 1, 3))).memory() is None


@stacks.per_kind
def test_the_layer_stays_as_it_is(cell):
    layer = layer_of(cell, num_layers=2, bidirectional=True, dropout=0.5)
    x = np.random.default_rng(0).standard_normal((7, 2, 3))
    expected = jacobians(layer, x, number=1, reverse=True).matrices
    y, _ = layer(x)
    before = layer.flat.copy(), layer.dropout_state
    for mode in ("training", "evaluation"):
        layer.train(mode == "training")
        got = jacobians(layer, x, number=1, reverse=True).matrices
        np.testing.assert_array_equal(got, expected)  # no dropout
        assert layer.mode == mode
    layer.train()
    np.testing.assert_array_equal(layer.flat, before[0])
    assert not layer.flat_grads.any()
    assert layer.dropout_state == before[1]
    layer.backward(np.ones_like(y))  # the pass of the call is still there


def test_jacobians_of_rounded_weights_are_those_of_the_weights():
    layer = layer_of("gru", dtype=np.float32)
    x = np.random.default_rng(0).standard_normal((7, 2, 3)).astype(np.float32)
    expected = jacobians(layer, x)
    got = jacobians(layer.eval("bfloat16"), x)
    np.testing.assert_array_equal(got.matrices, expected.matrices)
    assert layer.mode == "bfloat16"


@pytest.mark.parametrize("start", range(3))
def test_the_power_iteration_finds_what_was_nothing_in_the_matrix_before(start):
    H = 160
    matrices = np.zeros((2, H, H))
    matrices[0, range(8), range(8)] = 1.0  # eight equal values: the vectors settle there
    matrices[0, start + 100, start + 100] = 1e-9
    matrices[1] = matrices[0]
    matrices[1, start + 100, start + 100] = 50.0
    np.testing.assert_allclose(matrix_norms(matrices), [1, 50], rtol=1e-4)


def test_the_power_iteration_ends(monkeypatch):
    count = 0
    exact = np.linalg.norm

    def growing(a, *args, **options):
        """Return a norm that never settles."""
        nonlocal count
        count += 1
        assert count < 10_000
        return exact(a, *args, **options) * 1.01**count

    matrices = np.random.default_rng(0).standard_normal((1, 150, 150))
    monkeypatch.setattr(np.linalg, "norm", growing)
    assert np.isfinite(matrix_norms(matrices)).all()


def test_norms_of_matrices_that_are_zero_tiny_or_not_finite():
    rng = np.random.default_rng(0)
    matrices = np.stack([np.zeros((150, 150)), 1e-300 * rng.standard_normal((150, 150)),
                         np.full((150, 150), np.nan), np.full((150, 150), np.inf)])
    norms = matrix_norms(matrices)
    exact = np.linalg.norm(matrices[1] * 1e300, 2) * 1e-300
    np.testing.assert_allclose(norms, [0, exact, np.inf, np.inf], rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: jacobians(None, X), TypeError, "^jacobians: layer is None, expected an RNN"),
        (lambda m: jacobians(m, X.astype("f")), TypeError, "x is float32, expected float64"),
        (lambda m: jacobians(m, X[0, 0]), ValueError, r"x has shape \(3,\), expected \(T, B, 3\)"),
        (lambda m: jacobians(m, X[:0]), ValueError, "x has 0 steps of 2 sequences"),
        (lambda m: jacobians(m, X[:, :0]), ValueError, "x has 4 steps of 0 sequences"),
        (lambda m: jacobians(m, X, X), ValueError, r"state has shape \(4, 2, 3\)"),
        (lambda m: jacobians(m, X, t=4), ValueError, "t is 4, expected a whole number from 0 to 3"),
        (lambda m: jacobians(m, X, t=-1), ValueError, "t is -1"),
        (lambda m: jacobians(m, X, sequence=2), ValueError, "sequence is 2, .* 0 to 1"),
        (lambda m: jacobians(m, X, distance=0), ValueError, "distance is 0"),
        (lambda m: jacobians(m, X, number=True), ValueError, "number is True"),
        (lambda m: jacobians(m, X, reverse=True), ValueError, "reverse is True, expected False"),
        (lambda m: jacobians(m, X).memory(1), ValueError,
         r"^Jacobians\.memory: level is 1, expected a number above 0"),
    ],
)
def test_errors_name_the_argument(call, error, match):
    layer = layer_of("rnn_tanh")
    with pytest.raises(error, match=match) as raised:
        call(layer)
    assert "\n" not in str(raised.value)


def test_weights_that_are_not_finite_have_no_jacobians():
    layer = layer_of("rnn_tanh")
    layer.parameters()["weight_hh_l0"][0, 0] = np.nan
    with pytest.raises(ValueError, match="weight_hh_l0 has values that are not finite"):
        gradflow.jacobians(layer, X)


@pytest.mark.parametrize(("name", "state"), [("LEM", "y"), ("SCRN", "s"), ("MGU", "h")])
def test_the_first_state_has_its_name(name, state):
    layer = fastrnn.Layer(getattr(fastrnn.cells, name), 3, 4, seed=0)
    found = gradflow.jacobians(layer, np.ones((4, 1, 3), np.float32))
    assert found.first_state == state
    assert f"||d{state}(t)/d" in gradflow.verdict(found)
    flow = gradflow.gradient_flow(layer, np.ones((4, 1, 3), np.float32))
    assert flow.first_state == state
