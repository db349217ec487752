"""Numbers that are not finite: where they began is named, and nothing has changed."""

import numpy as np
import pytest
from runs import model_of, run, sine, values

from fastrnn import GRU, LSTM, RNN, Layer, cell, optim, training
from fastrnn.models import EncoderDecoder, SequenceModel, Stack
from fastrnn.training import Batch, Windows


def data_of(T=7, B=3):
    return Windows(sine(), T, B)


NAN = np.float32(np.nan)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("inputs", r"the inputs of this step have (NaN|inf) at \[3, 2, 0\], expected finite num"),
        ("targets", r"the targets of this step have (NaN|inf) at \[3, 2, 0\], expected finite num"),
        ("context", r"the context of this step have (NaN|inf) at \[1, 0\]"),
    ],
)
def test_data_that_is_not_finite_is_named(what, match, bad):
    x, y = np.ones((5, 4, 3), np.float32), np.ones((5, 4, 1), np.float32)
    c = np.ones((4, 2), np.float32)
    place = (1, 0) if what == "context" else (3, 2, 0)
    {"inputs": x, "targets": y, "context": c}[what][place] = bad
    model = SequenceModel(GRU(3, 8, seed=0), 1, loss="mse", context_size=2, seed=1)
    before = values(model)
    with pytest.raises(FloatingPointError, match=rf"^fit: .* at step 1.*: {match}") as raised:
        training.fit(model, lambda step: Batch(x, y, context=c), steps=1)
    assert "lr" not in str(raised.value)
    np.testing.assert_array_equal(values(model), before)


def test_one_of_several_inputs_is_named():
    pair = EncoderDecoder(Stack(GRU(1, 4, seed=0)),
                          SequenceModel(GRU(1, 4, seed=1), 1, loss="mse", seed=0))
    x = np.zeros((3, 2, 1), np.float32)
    with pytest.raises(FloatingPointError, match=r"the inputs\[1\] of this step have NaN"):
        training.fit(pair, lambda step: Batch((x, x + NAN), x), steps=1)


def test_nan_in_rows_of_weight_0_counts_for_nothing():
    x, y, w = (np.ones((5, 4, n), np.float32) for n in (3, 1, 1))
    w = w[..., 0] > 0
    y[3, 2], w[3, 2] = np.nan, False
    model = SequenceModel(GRU(3, 8, seed=0), 1, loss="mse", seed=1)
    assert np.isfinite(training.fit(model, lambda step: Batch(x, y, w), steps=2).losses).all()
    x[0, 0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="the inputs of this step have NaN"):
        training.fit(model, lambda step: Batch(x, y, w), steps=1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_named(bad):
    model = model_of()
    model.parameters()["layers.0.weight_hh_l0"][1, 2] = bad
    with pytest.raises(FloatingPointError, match=r"the parameter layers.0.weight_hh_l0 has "
                       r"(NaN|inf) at \[1, 2\]") as raised:
        training.fit(model, data_of(), steps=3)
    assert "lr" not in str(raised.value)


def exploding():
    """Return a relu network that grows beyond what floats hold."""
    model = SequenceModel([RNN(1, 4, nonlinearity="relu", seed=0), LSTM(4, 4, seed=0)], 1,
                          loss="mse", seed=0)
    model.parameters()["layers.0.weight_hh_l0"][...] = 3e12
    return model


def test_the_history_of_an_explosion_is_not_lost():
    model, data = model_of(), data_of()

    def breaks(step):
        batch = data(step)
        return batch if step < 4 else Batch(batch.inputs[0] * NAN, batch.targets)

    with pytest.raises(training.NotFiniteError, match="the loss is nan at step 5") as raised:
        training.fit(model, breaks, steps=9)
    assert len(raised.value.history.losses) == raised.value.history.progress.steps == 4


def test_an_explosion_is_blamed_on_the_rate_and_changes_nothing(tmp_path):
    def fresh():
        model = exploding()
        model.parameters()["layers.0.weight_hh_l0"][...] /= 1e13
        return model

    run(tmp_path, 6, fresh, checkpoint_every=3)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    model = exploding()
    flat = values(model)
    with pytest.raises(FloatingPointError, match=r"fit: the (loss is (nan|inf)|gradients' norm is "
                       r"not finite) at step 1.*: first in .*; try a smaller lr, or clip"):
        training.fit(model, data_of(), optim.Adam(model), steps=9, folder=tmp_path, overwrite=True)
    np.testing.assert_array_equal(values(model), flat)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_outputs_too_large_for_the_loss():
    model = SequenceModel(GRU(1, 4, seed=0), 1, loss="mse", seed=0)
    y = np.full((3, 2, 1), 1e30, np.float32)
    with pytest.raises(FloatingPointError, match="states are finite, the outputs are too large"):
        training.fit(model, lambda step: Batch(np.zeros_like(y), y), steps=1)


def test_gradients_larger_than_a_float32_can_square_are_clipped():
    """A relu network, T = 400: the states stay small, the gradients grow by 1.17 a step."""
    layer = RNN(1, 4, nonlinearity="relu", seed=0)
    model = SequenceModel(layer, 1, loss="mse", readout="last", seed=0)
    layer.weight_hh_l0 = np.eye(4) * 1.17
    layer.weight_ih_l0 = np.ones((4, 1))
    layer.bias_ih_l0 = layer.bias_hh_l0 = np.zeros(4)
    x = np.full((400, 2, 1), 1e-27, np.float32)
    history = training.fit(model, lambda step: Batch(x, np.zeros((2, 1), np.float32)),
                           optim.SGD(model, 1e-3), steps=1)
    assert 1e20 < history.norms[0] < 1e38
    assert history.norms[0] == pytest.approx(
        np.sqrt(sum((g.astype(float) ** 2).sum() for g in model.grads.values())), rel=1e-6)
    assert history.clipped == [1]
    assert np.isfinite(values(model)).all()


def test_a_gradient_that_overflows_while_the_loss_does_not_is_named():
    layer = RNN(1, 4, nonlinearity="relu", seed=0)
    model = SequenceModel(layer, 1, loss="mse", readout="last", seed=0)
    layer.weight_hh_l0 = np.eye(4) * 1.3
    layer.weight_ih_l0 = np.ones((4, 1))
    layer.bias_ih_l0 = layer.bias_hh_l0 = np.zeros(4)
    x, before = np.full((400, 2, 1), 1e-37, np.float32), values(model)
    with pytest.raises(training.NotFiniteError, match=r"the gradients' norm is not finite at step "
                       r"1, no parameter has changed: first in the gradient of layers\.0\.weight_"
                       r"\w+, which has (NaN|inf) at \[0, 0\]; try a smaller lr"):
        training.fit(model, lambda step: Batch(x, np.ones((2, 1), np.float32)), steps=1)
    np.testing.assert_array_equal(values(model), before)


class Memory(SequenceModel):
    """A model that carries the state of its second layer only."""

    def loss(self, x, targets, state=None, **options):
        p = super().loss(x, targets, state, **options)
        p.state = (None, *p.state[1:])
        return p


@pytest.mark.parametrize(("at", "match"), [
    (0, r"the state of recurrent layer 1 before this step has inf at \[0, 1, 0\]; try a smaller"),
    (1, r"first in the state of recurrent layer 1, which has NaN at \[0, 1, 0\]; try a smaller")])
def test_a_state_that_was_carried_is_named_if_it_is_not_finite(at, match):
    later = cell("h = tanh(0.5 * h + V s)\ns = W x")  # h reads s one step later
    layer = Layer(later, 2, 4, seed=1)
    layer.W_l0 = np.ones((4, 2))
    model = Memory([RNN(1, 2, nonlinearity="relu", seed=0), layer], 1, loss="mse", seed=0)
    model.layers[0].weight_ih_l0 = np.full((2, 1), 8.0)
    x = np.zeros((3, 2, 1), np.float32)
    large = x.copy()
    large[-1 if at == 0 else 0, 1] = 4e37
    with pytest.raises(training.NotFiniteError, match=f"the loss is nan at step 2: {match}"):
        training.fit(model, lambda step: Batch(large if step == at else x, x, first=not step),
                     steps=2)
