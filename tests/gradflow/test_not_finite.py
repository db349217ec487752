"""Where values that are not finite come from: a NaN in the data is no exploding gradient."""

import math

import numpy as np
import pytest
import stacks
from flows import layer_of, scaled

from fastrnn import GRU, LSTM, RNN
from fastrnn.gradflow import gradient_flow, jacobians, model_flow, verdict
from fastrnn.models import EncoderDecoder, SequenceModel, Stack

VALUES = {"NaN": math.nan, "inf": math.inf, "inf below": -math.inf}


def draw(T=20, B=2, I=3, dtype=np.float64):
    return np.random.default_rng(0).standard_normal((T, B, I)).astype(dtype)


def lines(found):
    """Return a verdict by line, of which none blames weights if it is not about them."""
    found = verdict(found).split("\n")
    for line in found:
        if "not finite: " in line and "|" not in line:
            assert "exploding" not in line
            assert "vanishing" not in line
            assert "recurrent weights" not in line
    return found


@stacks.per_cell
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("at", [0, 7, 19])
def test_nan_in_the_input(cell, dtype, at):
    layer = layer_of(cell, dtype=dtype)
    x = draw(dtype=dtype)
    x[at, 1, 2] = math.nan
    expected = (f"not finite: the state is NaN from step {at} on; look at the input, which is NaN "
                f"at step {at}")
    assert lines(gradient_flow(layer, x)) == ["layer 0: " + expected]
    assert lines(jacobians(layer, x, sequence=1)) == [expected]
    healthy = jacobians(layer, x, sequence=0)
    assert healthy.not_finite is None
    assert np.isfinite(healthy.norms).all()


@stacks.per_cell
@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinity_in_the_input(cell, value):
    layer = layer_of(cell)
    x = draw()
    x[4, 0, 1] = value
    for found in (gradient_flow(layer, x), jacobians(layer, x)):
        (line,) = lines(found)
        assert "not finite: " in line
        assert "look at the" in line
        assert "input" in line
        assert "inf at step 4" in line


def test_an_infinity_that_saturates_does_not_reach_the_state():
    layer = layer_of("rnn_tanh", 1)
    x = np.zeros((6, 1, 1))
    x[2] = math.inf
    assert np.isfinite(layer(x)[0]).all()
    expected = "not finite: the input is inf at step 2; look at the data"
    assert lines(gradient_flow(layer, x)) == ["layer 0: " + expected]
    assert lines(jacobians(layer, x)) == [expected]


def test_nan_before_the_steps_that_are_differentiated():
    x = draw()
    x[3, 0] = math.nan
    layer = layer_of("gru")
    (line,) = lines(jacobians(layer, x, distance=2))
    assert line.startswith("not finite: the state is NaN from step 3 on; look at the input, ")
    assert jacobians(layer, x, t=2).not_finite is None  # it comes later


@stacks.per_kind
def test_nan_in_the_input_of_two_directions_and_layers(cell):
    layer = layer_of(cell, num_layers=2, bidirectional=True)
    x = draw(9)
    x[4, 0] = math.nan
    of_input = ("not finite: the state is NaN from step 4 on; look at the input, which is NaN at "
                "step 4")
    below = "not finite: the state is NaN from step {} on, as is the output of the layer below"
    assert lines(gradient_flow(layer, x)) == [
        "layer 0 forward: " + of_input, "layer 0 reverse: " + of_input,
        "layer 1 forward: " + below.format(0), "layer 1 reverse: " + below.format(8)]
    assert lines(jacobians(layer, x, reverse=True)) == [of_input]
    assert lines(jacobians(layer, x, number=1)) == [below.format(0)]
    assert lines(jacobians(layer, x, number=1, reverse=True)) == [below.format(8)]


@stacks.per_cell
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("value", VALUES)
def test_parameters_that_are_not_finite(cell, name, value):
    layer = layer_of(cell)
    layer.parameters()[name].reshape(-1)[-1] = VALUES[value]
    expected = (f"not finite: {name} has values that are {value[:3]}; set or load the parameters "
                "again")
    assert lines(gradient_flow(layer, draw())) == ["layer 0: " + expected]
    if name != "weight_hh_l0":
        assert lines(jacobians(layer, draw())) == [expected]


def test_a_parameter_of_the_layer_above_explains_what_comes_from_there():
    layer = layer_of("gru", num_layers=2)
    layer.parameters()["weight_ih_l1"][0, 0] = math.nan
    for line in lines(gradient_flow(layer, draw())):
        assert "weight_ih_l1 has values that are NaN" in line
    assert jacobians(layer, draw()).not_finite is None  # layer 0 does not read it
    assert "weight_ih_l1" in lines(jacobians(layer, draw(), number=1))[0]


@stacks.per_cell
@pytest.mark.parametrize("value", VALUES)
def test_initial_states_that_are_not_finite(cell, value):
    layer = layer_of(cell)
    h0 = np.zeros((1, 2, 5))
    h0[0, 1, 3] = VALUES[value]
    states = [(h0, None), (None, h0)] if cell == "lstm" else [h0]
    expected = f"not finite: the initial state is {value[:3]}; look at what gives it"
    for state in states:
        assert lines(gradient_flow(layer, draw(), state=state)) == ["layer 0: " + expected]
        assert lines(jacobians(layer, draw(), state, sequence=1)) == [expected]
        assert jacobians(layer, draw(), state, sequence=0).not_finite is None


@stacks.per_cell
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("at", [0, 3, 8])
@pytest.mark.parametrize("value", VALUES)
def test_gradients_that_enter_and_are_not_finite(cell, bidirectional, at, value):
    layer = layer_of(cell, bidirectional=bidirectional)
    dy = np.random.default_rng(0).standard_normal((9, 2, 5 * (1 + bidirectional)))
    dy[at, 0, ::5] = VALUES[value]
    for line in lines(gradient_flow(layer, draw(9), dy)):
        assert (f"not finite: the gradient that comes from the loss is {value[:3]} at step {at}; "
                "look at the loss") in line


@pytest.mark.parametrize("layout", ["unbatched", "batch_first"])
def test_gradients_that_enter_in_every_layout(layout):
    layer = layer_of("gru", batch_first=layout == "batch_first")
    data = stacks.draw(layer_of("gru"), 9, 1)
    data["dy"][3] = math.nan
    data = stacks.one_for_all(data, layout)
    (line,) = lines(gradient_flow(layer, data["x"], data["dy"]))
    assert "the gradient that comes from the loss is NaN at step 3" in line
    data["x"][...] = math.nan
    (line,) = lines(gradient_flow(layer, data["x"]))
    assert "the state is NaN from step 0 on" in line


@stacks.per_cell
def test_gradients_of_the_final_state_that_are_not_finite(cell):
    layer = layer_of(cell)
    d = np.zeros((1, 2, 5))
    d[0, 1, 1] = math.nan
    for dstate in [(d, None), (None, d)] if cell == "lstm" else [d]:
        (line,) = lines(gradient_flow(layer, draw(9), dstate=dstate))
        assert "the gradient that comes from the loss is NaN at step 8" in line


def test_a_gradient_from_the_layer_above():
    layer = layer_of("gru", num_layers=2)
    dy = np.zeros((9, 2, 5))
    dy[6] = math.nan
    assert lines(gradient_flow(layer, draw(9), dy)) == [
        "layer 0: not finite: the gradient that comes from the layer above is NaN at step 6",
        "layer 1: not finite: the gradient that comes from the loss is NaN at step 6; look at the "
        "loss"]


# ---- what does explode stays exploding --------------------------------------------------------


def test_a_state_that_grows_beyond_all_numbers_explodes():
    layer = scaled(0.0, "rnn_relu")
    layer.flat[:] = 0
    layer.parameters()["weight_hh_l0"][:] = 1e100 * np.eye(16)
    layer.parameters()["bias_ih_l0"][:] = 1e-300
    x = np.zeros((9, 1, 3))  # h(t) = 1e-300 * 1e100^t: infinite at step 7
    expected = ("exploding: the state is inf from step 7 on, though input and parameters are "
                "finite; try smaller or orthogonal recurrent weights")
    assert lines(gradient_flow(layer, x)) == ["layer 0: " + expected]
    assert lines(jacobians(layer, x)) == [expected]
    assert jacobians(layer, x[:7], distance=2).not_finite is None
    x[8] = math.nan  # too late to be the cause
    assert lines(gradient_flow(layer, x)) == ["layer 0: " + expected]


@pytest.mark.parametrize("at", [0, 5])
def test_products_of_finite_numbers_that_are_too_large(at):
    layer = layer_of("rnn_relu", dtype=np.float32)
    layer.parameters()["weight_ih_l0"][:] = 1e3
    x = draw(9, dtype=np.float32)
    x[at] = 2e38
    for found in (gradient_flow(layer, x), jacobians(layer, x)):
        (line,) = lines(found)
        assert f"from step {at} on, though input and parameters are finite: their products" in line
        assert "not finite: " in line


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gradient_that_grows_beyond_all_numbers_explodes(dtype):
    factor = 1e30 if dtype == np.float64 else 1e10
    layer = RNN(3, 16, num_layers=2, dtype=dtype, seed=0)
    layer.flat[:] = 0  # tanh at 0, where its slope is 1
    layer.parameters()["weight_hh_l1"][:] = factor * np.eye(16)
    layer.parameters()["weight_ih_l1"][:] = np.eye(16)
    below, above = lines(gradient_flow(layer, np.zeros((20, 2, 3), dtype)))
    steps = 11 if dtype == np.float64 else 4  # float64: the norm, too, must be finite
    assert f"layer 1: exploding: |dL/dh| is not finite {steps} steps back" in above
    assert below.startswith("layer 0: not finite: the gradient that comes from the layer above is")
    layer.parameters()["weight_hh_l1"][:] = 0
    layer.parameters()["weight_hh_l0"][:] = factor * np.eye(16)
    below, above = lines(gradient_flow(layer, np.zeros((20, 2, 3), dtype)))
    assert f"layer 0: exploding: |dL/dh| is not finite {steps} steps back" in below
    assert "not finite" not in above


# ---- models -----------------------------------------------------------------------------------


def model_of(cell=GRU, **options):
    return SequenceModel([cell(3, 5, seed=0), cell(5, 4, seed=1)], 2, loss="mse", seed=0, **options)


def flow_lines(model, run):
    return [line for flow in model_flow(model, run) for line in lines(flow)]


@pytest.mark.parametrize("every", [None, 4])
def test_nan_in_the_input_of_a_model(every):
    x, targets = draw(9, dtype=np.float32), np.zeros((9, 2, 2), np.float32)
    x[5, 0, 0] = math.nan
    assert flow_lines(model_of(), lambda m: m.loss(x, targets, recompute_every=every)) == [
        "layer 0: not finite: the state is NaN from step 5 on; look at the input, which is NaN at "
        "step 5",
        "layer 0: not finite: the state is NaN from step 5 on, as is the output of the layer below"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_targets_that_are_not_finite(value):
    x, targets = draw(9, dtype=np.float32), np.zeros((9, 2, 2), np.float32)
    targets[5, 0, 0] = value
    name = "NaN" if math.isnan(value) else "inf"
    for line in flow_lines(model_of(), lambda m: m.loss(x, targets)):
        assert f"not finite: the loss is {name}; look at its targets" in line


@pytest.mark.parametrize("name", ["head.weight", "head.bias", "layers.1.weight_hh_l0"])
def test_parameters_of_a_model(name):
    model = model_of()
    model.parameters()[name].reshape(-1)[0] = math.nan
    x, targets = draw(9, dtype=np.float32), np.zeros((9, 2, 2), np.float32)
    for line in flow_lines(model, lambda m: m.loss(x, targets)):
        assert line == (f"layer 0: not finite: {name} has values that are NaN; set or load the "
                        "parameters again")


def test_a_row_of_an_embedding_counts_where_it_is_read():
    model = SequenceModel(LSTM(3, 5, seed=0), 4, vocab_size=4, seed=0)
    model.parameters()["embedding.weight"][3] = math.nan
    symbols = np.arange(12).reshape(6, 2) % 3
    (line,) = flow_lines(model, lambda m: m.loss(symbols, symbols))
    assert "healthy" in line
    symbols[2, 0] = 3
    (line,) = flow_lines(model, lambda m: m.loss(symbols, symbols))
    assert "not finite: embedding.weight has values that are NaN" in line


def test_one_hot_symbols_are_finite():
    model = SequenceModel(LSTM(4, 5, seed=0), 4, vocab_size=4, one_hot=True, seed=0)
    symbols = np.arange(12).reshape(6, 2) % 4
    (flow,) = model_flow(model, lambda m: m.loss(symbols, symbols))
    assert flow.not_finite == ((None,),)


def test_nan_in_the_source_of_an_encoder():
    model = EncoderDecoder(Stack(LSTM(3, 5, seed=0)),
                           SequenceModel(LSTM(2, 5, seed=1), 4, seed=2))
    source, inputs = draw(7, dtype=np.float32), draw(4, I=2, dtype=np.float32)
    source[6] = math.nan
    targets = np.zeros((4, 2), np.int64)
    encoder, decoder = flow_lines(model, lambda m: m.loss(source, inputs, targets))
    # the encoder's last state is the decoder's first
    assert encoder == "layer 0: not finite: the input is NaN at step 6; look at the data"
    assert decoder == "layer 0: not finite: the initial state is NaN; look at what gives it"


def test_an_encoder_in_two_directions():
    layers = [LSTM(n, 5, bidirectional=True, seed=0) for n in (3, 2)]
    model = EncoderDecoder(Stack(layers[0]), SequenceModel(layers[1], 4, seed=2))
    source, inputs = draw(7, dtype=np.float32), draw(4, I=2, dtype=np.float32)
    source[3] = math.nan
    found = flow_lines(model, lambda m: m.loss(source, inputs, np.zeros((4, 2), np.int64)))
    for line, direction in zip(found[:2], ("forward", "reverse"), strict=True):
        assert line == (f"layer 0 {direction}: not finite: the state is NaN from step 3 on; look "
                        "at the input, which is NaN at step 3")


def test_an_initial_state_of_a_model():
    model = SequenceModel(LSTM(3, 5, seed=0), 2, loss="mse", seed=0)
    x, targets = draw(9, dtype=np.float32), np.zeros((9, 2, 2), np.float32)
    c0 = np.full((1, 2, 5), math.inf, np.float32)  # h stays finite
    (line,) = flow_lines(model, lambda m: m.loss(x, targets, ((None, c0),)))
    assert line == "layer 0: not finite: the initial state is inf; look at what gives it"


def test_the_field_says_what_the_verdict_says():
    x = draw()
    x[7, 0, 0] = math.nan
    ((found,),) = gradient_flow(layer_of("gru"), x, parts=("norms",)).not_finite
    assert (found.source, found.value, found.step) == ("input", "NaN", 7)
    assert (found.state, found.state_step) == ("NaN", 7)
    assert gradient_flow(layer_of("gru"), x, parts=("saturation",)).not_finite is None
    assert gradient_flow(layer_of("gru"), draw()).not_finite == ((None,),)
