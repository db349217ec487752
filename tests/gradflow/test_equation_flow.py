"""Gradient flow of layers of cells from equations: norms of every state, Jacobians, verdicts.

Letters: T steps, B batch, I input, H hidden, L layers, D directions.
"""

import numpy as np
import pytest
from equations import LSTM as EQUATIONS
from equations import MANY, PLAIN, PROJECTED, WIDTHS, H, I, draw, layer_of, same_masks

import fastrnn
from fastrnn import cli, gradflow, plot
from fastrnn.models import LanguageModel, SequenceModel

T, B = 6, 3
VANISHING = fastrnn.cell("h = tanh(W x + U h + b)", name="Plain tanh")


def state_of(layer, seed=1, batch=B):
    return tuple(draw(*shape, seed=seed + i) for i, shape in enumerate(layer.state_shapes(batch)))


@pytest.mark.parametrize(("L", "D"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("lengths", [None, [T, 0, 4]])
def test_the_norms_of_every_state(L, D, lengths):
    layer, x = layer_of(num_layers=L, bidirectional=D == 2), draw(T, B, I)
    dy = draw(T, B, layer.width)
    masks = same_masks(layer)
    flow = gradflow.gradient_flow(layer, x, dy, lengths=lengths)
    assert layer.dropout_state == masks.state
    _, _, p = layer.forward(x, lengths=lengths)
    _, _, recorded = p.backward(dy, record=("dh", "dr", "ds"))
    assert list(flow.state_norms) == ["h", "r", "s"]
    for name, found in flow.state_norms.items():
        for number, of in enumerate(recorded):
            expected = np.linalg.norm(of[f"d{name}"], axis=3).transpose(2, 0, 1)
            np.testing.assert_allclose(found[number], expected, rtol=1e-12)
    np.testing.assert_array_equal(flow.norms, flow.state_norms["h"])
    assert flow.shares_hh is flow.saturation is flow.dead is flow.c_norms is None
    assert (flow.gates, flow.memory_state, flow.cell) == ((), "h", "Many")
    assert flow.units.shape == (L, D, T, H)


def test_the_norms_are_those_of_differences():
    """The norm of dL/dh(k) and dL/ds(k), by differences of a loss of what follows step k."""
    layer = layer_of(PLAIN).eval()
    x, dy, k = draw(T, 1, I), draw(T, 1, H, seed=5), 2
    flow = gradflow.gradient_flow(layer, x, dy)
    _, state = layer(x[: k + 1])
    y = layer(x[k : k + 1], layer(x[:k])[1])[0]

    def loss(state):
        return (layer(x[k + 1 :], state)[0] * dy[k + 1 :]).sum()

    slopes = []
    for i, width in enumerate(WIDTHS):
        slope = np.zeros(width)
        for u in range(width):
            ends = []
            for change in (1e-6, -1e-6):
                other = [a.copy() for a in state]
                other[i][0, 0, u] += change
                ends.append(loss(tuple(other)))
            slope[u] = (ends[0] - ends[1]) / 2e-6
        slopes.append(slope)
    dh, _, ds = slopes
    dh = dh + dy[k, 0]
    ds = ds + dh @ layer.O_l0  # a new s feeds the new h
    assert flow.norms[0, 0, k, 0] == pytest.approx(np.linalg.norm(dh), rel=1e-6)
    assert flow.state_norms["s"][0, 0, k, 0] == pytest.approx(np.linalg.norm(ds), rel=1e-6)
    assert y.shape == (1, 1, H)


def twins():
    """Return an LSTM, and a layer of its equations with the same parameters."""
    lstm, layer = fastrnn.LSTM(I, H, dtype=np.float64, seed=0), layer_of(EQUATIONS)
    for name, of in (("W", "weight_ih"), ("U", "weight_hh")):
        layer.parameters()[f"{name}_l0"] = lstm.parameters()[f"{of}_l0"]
    layer.b_l0 = lstm.bias_ih_l0 + lstm.bias_hh_l0
    return lstm, layer


def test_the_equations_of_an_lstm_have_its_flow():
    lstm, layer = twins()
    x = draw(T, B, I)
    expected, found = (gradflow.gradient_flow(one, x) for one in (lstm, layer))
    np.testing.assert_allclose(found.norms, expected.norms, rtol=1e-10)
    np.testing.assert_allclose(found.c_norms, expected.c_norms, rtol=1e-10)
    np.testing.assert_array_equal(expected.state_norms["c"], expected.c_norms)
    assert gradflow.verdict(found).split(";")[0] == gradflow.verdict(expected).split(";")[0]
    expected, found = (gradflow.jacobians(one, x) for one in (lstm, layer))
    np.testing.assert_allclose(found.matrices, expected.matrices, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.c_norms, expected.c_norms, rtol=1e-9)
    assert found.bounds is found.threshold is None
    assert found.memory_state == "c"


@pytest.mark.parametrize("cell", [MANY, PLAIN, PROJECTED], ids=lambda cell: cell.name)
@pytest.mark.parametrize(("number", "reverse"), [(0, False), (1, False), (1, True)])
def test_jacobians_are_those_of_differences(cell, number, reverse):
    layer = layer_of(cell, num_layers=2, bidirectional=True)
    x, state = draw(T, B, I), state_of(layer)
    before = layer.dropout_state
    found = gradflow.jacobians(layer, x, state, sequence=1, number=number, reverse=reverse)
    assert layer.dropout_state == before
    assert layer.training
    width = layer.state_widths[0]
    assert found.matrices.shape == (T, width, width)
    one = layer.alone(layer.width if number else I)
    suffix = f"_l{number}{'_reverse' * reverse}"
    for name in one.parameters():
        one.parameters()[name] = layer.parameters()[name.removesuffix("_l0") + suffix]
    one.eval()
    if number:
        lower = layer_of(cell, num_layers=1, bidirectional=True)
        lower.flat[:] = layer.flat[: lower.flat.size]
        x, _ = lower.eval()(x, tuple(a[:2] for a in state))
    own = x[::-1, 1:2] if reverse else x[:, 1:2]
    row = 2 * number + reverse
    for d in (1, 3):
        _, at = one(own[: T - d], tuple(a[row, 1:2][None] for a in state))
        slopes = np.zeros((width, width))
        for u in range(width):
            ends = []
            for change in (1e-6, -1e-6):
                other = [a.copy() for a in at]
                other[0][0, 0, u] += change
                ends.append(one(own[T - d :], tuple(other))[1][0][0, 0])
            slopes[:, u] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(found.matrices[d], slopes, atol=1e-8)


def test_a_model_and_its_verdict():
    layer = layer_of(VANISHING, hidden=8)
    layer.U_l0[...] *= 0.1
    model = SequenceModel(layer, 2, loss="mse", readout="last", seed=0)
    x, targets = draw(60, B, I), draw(B, 2)
    flow, = gradflow.model_flow(model, model.loss(x, targets))
    assert gradflow.verdict(flow).startswith("layer 0: vanishing: |dL/dh| ")
    layer.U_l0[...] *= 40
    flow, = gradflow.model_flow(model.eval(), lambda m: m.loss(0 * x, targets))
    assert "exploding" in gradflow.verdict(flow) or "vanishing" in gradflow.verdict(flow)
    masked = SequenceModel(layer_of(MANY), 2, loss="mse", seed=0)
    before = masked.dropout_state
    gradflow.model_flow(masked, lambda m: m.loss(x, draw(60, B, 2)))
    gradflow.model_flow(masked.eval(), lambda m: m.loss(x, draw(60, B, 2)))
    assert masked.dropout_state == before


def test_values_that_are_not_finite_have_a_source():
    layer, x = layer_of(), draw(T, B, I)
    x[3, 1] = np.inf
    assert "the input, which is inf at step 3" in gradflow.verdict(
        gradflow.gradient_flow(layer, x))
    layer.R_l0 = np.full((H, H), np.nan)
    assert "R_l0 has values that are NaN" in gradflow.verdict(
        gradflow.gradient_flow(layer, draw(T, B, I)))


def test_the_pictures():
    pytest.importorskip("matplotlib").use("agg")
    layer, x = layer_of(num_layers=2), draw(T, B, I)
    flow = gradflow.gradient_flow(layer, x)
    assert len(plot.gradient_norms(flow).lines) == 2
    drawn = plot.gradient_norms(flow, state="s")
    np.testing.assert_allclose(drawn.lines[0].get_ydata(),
                               np.linalg.norm(flow.state_norms["s"][0, 0], axis=-1))
    assert "s(t)" in drawn.get_ylabel()
    with pytest.raises(ValueError, match="state is 'c', expected one of"):
        plot.gradient_norms(flow, state="c")
    assert plot.gradient_heatmap(flow, 1).images
    assert plot.jacobian_norms(gradflow.jacobians(layer, x)).lines
    assert plot.unfolded(layer).patches
    with pytest.raises(ValueError, match="flow has no shares_ih"):
        plot.shares(flow)
    with pytest.raises(ValueError, match="flow has no saturation"):
        plot.saturation(flow)


def test_the_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    model = LanguageModel(embedding_size=4, hidden_size=8, cell=MANY, seed=0)
    model.save(tmp_path / "m.safetensors")
    (tmp_path / "text.txt").write_text("to be or not to be " * 100)
    out = tmp_path / "drawn"
    assert cli.main(["gradflow", str(tmp_path / "m.safetensors"), str(tmp_path / "text.txt"),
                     "-o", str(out), "--bptt", "10"]) == 0
    said = capsys.readouterr().out
    assert "layer 0: " in said
    assert "||dh(t)/dh(k)||" in said
    assert sorted(p.name for p in out.iterdir()) == [
        "layers.0.0.heatmap.png", "layers.0.jacobians.png", "layers.0.norms.png", "unfolded.png"]
