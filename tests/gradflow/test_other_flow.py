"""Gradient flow of a cell without gates and with other states than h and c: that of three.py.

Letters: T steps, B batch, I input, H hidden, L layers, D directions.
"""

import numpy as np
import pytest
import three
from three import ThreeLayer

import fastrnn
from fastrnn import LSTM, gradflow, plot
from fastrnn.models import SequenceModel

T, B, I, H = 6, 3, 2, 5


def layer_of(L=1, D=1, **options):
    return ThreeLayer(I, H, L, bidirectional=D == 2, seed=0, **options)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_the_flow_of_a_layer():
    layer, x = layer_of(2, 2), draw(T, B, I)
    dy = draw(T, B, layer.width)
    flow = gradflow.gradient_flow(layer, x, dy)
    _, _, p = layer.forward(x)
    _, _, recorded = p.backward(dy, record=("dh", "dc"))
    for found, name in ((flow.norms, "dh"), (flow.c_norms, "dc")):
        for number, of in enumerate(recorded):
            expected = np.linalg.norm(of[name], axis=3).transpose(2, 0, 1)
            assert np.allclose(found[number], expected, rtol=1e-12)
    assert flow.units.shape == (2, 2, T, H - 1)
    assert flow.shares_hh is flow.saturation is flow.dead is None
    assert (flow.cell, flow.memory_state, flow.gates) == ("three", "c", ())
    assert flow.not_finite == ((None, None), (None, None))
    lines = gradflow.verdict(flow).splitlines()
    assert len(lines) == 4
    assert all("|dL/dc|" in line for line in lines)


def test_the_loss_that_is_taken_without_gradients():
    layer, x = layer_of(2), draw(T, B, I)
    ones = np.zeros((2, B, H - 1))
    ones[-1] = 1
    given = gradflow.gradient_flow(layer, x, None, (ones, None, None))
    assert np.array_equal(gradflow.gradient_flow(layer, x).norms, given.norms)


@pytest.mark.parametrize("part", ["saturation", "shares"])
def test_parts_that_need_gates_alone(part):
    flow = gradflow.gradient_flow(layer_of(), draw(T, B, I), parts=(part,))
    assert flow.norms is flow.saturation is flow.shares_ih is None


def test_another_memory():
    # its only state goes through a matrix, so there is no other memory
    flow = gradflow.gradient_flow(
        fastrnn.Layer(fastrnn.cell("s = tanh(W x + U s)"), I, H, dtype=np.float64, seed=0),
        draw(T, B, I))
    assert flow.c_norms is None
    assert "|dL/ds|" in gradflow.verdict(flow)
    # n halves at each step, and takes a part of what enters at h
    flow = gradflow.gradient_flow(fastrnn.Layer(fastrnn.cell("""
        size M = 2
        n[M] = n / 2 + N x
        h = tanh(W x + R h) + sum(n) / 4
    """), I, H, dtype=np.float64, seed=0), draw(T, B, I))
    assert flow.memory_state == "n"
    assert np.allclose(flow.c_norms[0, 0, -1], three.SHARE * H * np.sqrt(three.M), rtol=1e-12)


def test_a_model_with_gates_and_without():
    model = SequenceModel([layer_of(), LSTM(H - 1, 4, dtype=np.float64, seed=1)], 2, loss="mse",
                          seed=2)
    x, targets = draw(T, B, I), draw(T, B, 2)
    own, lstm = gradflow.model_flow(model, lambda m: m.loss(x, targets))
    assert own.saturation is own.shares_ih is None
    assert own.units.shape == (1, 1, T, H - 1)
    assert lstm.saturation.shape == (1, 1, T, 4, 2)
    assert lstm.shares_ih.sum() == pytest.approx(1)
    own, lstm = gradflow.model_flow(model, lambda m: m.loss(x, targets), parts=("saturation",))
    assert own.saturation is None
    assert lstm.saturation.shape == (1, 1, T, 4, 2)


# ---------------------------------------------------------------------------------------- Jacobians


@pytest.mark.parametrize(("number", "reverse"), [(0, False), (1, False), (1, True)])
def test_jacobians_are_those_of_differences(number, reverse):
    layer, x = layer_of(2, 2), draw(T, B, I)
    state = tuple(draw(*shape, seed=4) for shape in layer.state_shapes(B))
    found = gradflow.jacobians(layer, x, state, sequence=1, number=number, reverse=reverse)
    assert found.matrices.shape == (T, H - 1, H - 1)
    assert found.singular_values.shape == found.spectral_radii.shape == (0,)
    assert found.bounds is found.threshold is None
    assert np.allclose(found.matrices[0], np.eye(H - 1))
    # from h of one step before the last: the derivative of the last step alone
    weights = [layer.parameters()[f"{name}_l{number}{'_reverse' * reverse}"] for name in "WRNPb"]
    if number:
        lower = layer_of(1, 2)
        lower.flat[:] = layer.flat[: lower.flat.size]
        x, _ = lower(x, tuple(a[:2] for a in state))
    row = 2 * number + reverse
    walk = x[::-1, 1:2] if reverse else x[:, 1:2]
    own = tuple(a[row, 1:2] for a in state)
    for at in walk[:-1]:
        own, _ = three.step(weights, at, *own)

    def slope(which, k, step=1e-6):
        """Return the derivative of the last h by unit k of h or c, which h of its step reads."""
        ends = []
        for change in (step, -step):
            h, c, n = (a.copy() for a in own)
            (h, c)[which][0, k] += change
            if which:
                h += np.tanh(c @ weights[3].T + weights[4]) - np.tanh(own[1] @ weights[3].T
                                                                      + weights[4])
            ends.append(three.step(weights, walk[-1], h, c, n)[0][0][0])
        return (ends[0] - ends[1]) / (2 * step)

    by_h, by_c = (np.array([slope(which, k) for k in range(H - 1 + which)]).T for which in (0, 1))
    assert np.allclose(found.matrices[1], by_h, atol=1e-8)
    assert found.norms[1] == pytest.approx(np.linalg.norm(by_h, 2), abs=1e-8)
    assert found.c_norms[1] == pytest.approx(np.linalg.norm(by_c, 2), abs=1e-8)
    assert "||dh(t)/dc(k)||" in gradflow.verdict(found)


def test_the_pictures():
    pytest.importorskip("matplotlib")
    layer, x = layer_of(), draw(T, B, I)
    axes = plot.jacobian_norms(gradflow.jacobians(layer, x))
    assert any("partial c(k)" in str(line.get_label()) for line in axes.lines)
    assert plot.gradient_norms(gradflow.gradient_flow(layer, x)).lines


# --------------------------------------------------------------------------------------- not finite


def test_a_state_besides_h_that_grows_beyond_all_numbers():
    layer, x = layer_of(), draw(T, B, I)
    state = [np.zeros(shape) for shape in layer.state_shapes(B)]
    state[1][0, 0, 0] = np.inf  # tanh keeps h finite
    flow = gradflow.gradient_flow(layer, x, state=tuple(state))
    assert "a state besides the first is inf at step 5" in gradflow.verdict(flow)


def test_a_parameter_and_an_input_that_are_not_finite():
    layer, x = layer_of(), draw(T, B, I)
    x[2, 1] = np.nan
    assert "the input, which is NaN at step 2" in gradflow.verdict(
        gradflow.gradient_flow(layer, x))
    layer.P_l0 = np.full((H - 1, H), np.inf)
    assert "not finite: P_l0 has values that are inf" in gradflow.verdict(
        gradflow.gradient_flow(layer, draw(T, B, I)))
