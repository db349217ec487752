"""Verdicts: on layers and trainings made so that their gradients vanish, explode or are healthy."""

import math

import numpy as np
import pytest
from flows import layer_of, scaled

import fastrnn
from fastrnn import gradflow
from fastrnn.gradflow import (
    GradientFlow,
    gradient_flow,
    growth,
    jacobians,
    model_flow,
    verdict,
)
from fastrnn.training.history import History

X = np.zeros((4, 2, 3))


@pytest.mark.parametrize(
    ("factor", "word", "advice"),
    [(0.5, "vanishing", "orthogonal"), (1.5, "exploding", "clipping"), (1.0, "healthy", "factor")],
)
def test_the_verdict_on_constructed_layers(factor, word, advice):
    layer, x = scaled(factor), np.zeros((60, 2, 3))
    layer.parameters()["bias_ih_l0"][:] = layer.parameters()["bias_hh_l0"][:] = 0  # linear at 0
    flow, jacobian = gradient_flow(layer, x), jacobians(layer, x)
    for text in (verdict(flow), verdict(jacobian)):
        assert word in text
        assert advice in text
        assert f"{factor:.4g} a step" in text
    np.testing.assert_allclose(jacobian.norms, factor ** np.arange(60.0), rtol=1e-12)
    assert gradflow.growth(flow.batch_norms[0, 0, ::-1]) == pytest.approx(factor, rel=1e-9)


def test_the_verdict_on_a_training_counts_what_was_clipped():
    norms = [1.0, 2.0, 3.0, 0.5, 4.0]
    assert verdict(History(norms=norms, clip=2.5, clipped=[3, 5])) == (
        "healthy: the gradient's norm has a median of 2 and is at most 4, at step 5; clipped above "
        "2.5 at 2 of 5 steps")
    assert "no limit was set" in verdict(History(norms=norms))
    assert verdict(History(norms=norms, clip=0.75, clipped=[1, 2, 3, 5])).endswith(
        "at 4 of 5 steps; so often it acts as a smaller learning rate")
    spiked = verdict(History(norms=[*norms, 251.0]))
    assert spiked.startswith("exploding: ")
    assert "jumps to 251, at step 6; no limit was set; try smaller" in spiked
    # norms that fall while the training succeeds are no explosion, a jump after them is
    falling = [*np.geomspace(9, 1e-4, 400)]
    assert verdict(History(norms=falling)).startswith("healthy: ")
    late = verdict(History(norms=[*falling[:300], 1.0, *falling[300:]]))
    assert late.startswith("exploding: ")
    assert "jumps to 1, at step 301" in late
    with pytest.raises(ValueError, match=r"^verdict: of is a History without steps"):
        verdict(History())


@pytest.mark.parametrize(
    ("losses", "norms", "start", "words"),
    [
        ([0.5, math.nan], [1.0, math.nan], "not finite: the loss is nan at step 2",
         "look at the inputs and targets of that step"),
        ([0.5, math.inf], [1.0, math.inf], "not finite: the loss is inf at step 2", "look at"),
        ([0.5, 0.4, math.nan], [1.0, 1.0], "not finite: the loss is nan at step 3", "look at"),
        ([0.5, 0.4], [1.0, math.nan], "not finite: the gradient's norm is nan at step 2, after at "
         "most 1 before", "though the loss is 0.4"),
        ([0.5, 0.4, 0.3], [1.0, 7.0, math.inf], "exploding: the gradient's norm is inf at step 3, "
         "after at most 7 before", "clipping"),
        ([0.5], [math.inf], "exploding: the gradient's norm is inf at step 1;", "clipping"),
        ([], [1.0, math.nan], "not finite: the gradient's norm is nan at step 2", ""),
        ([0.5, 0.5], [0.0, 0.0], "vanishing: the gradient's norm is 0 at each of 2 steps", ""),
    ],
)
def test_the_verdict_on_a_training_that_is_not_finite_or_zero(losses, norms, start, words):
    text = verdict(History(losses=losses, norms=norms, clip=1.0))
    assert text.startswith(start)
    assert words in text
    if start.startswith("not finite"):
        assert "learning rate" not in text
        assert "weights" not in text
    assert "\n" not in text


def test_the_verdict_on_gradients_that_are_zero_or_too_large():
    layer = scaled(0.0)
    assert "is 0 from 1 steps back on" in verdict(gradient_flow(layer, np.zeros((5, 1, 3))))
    nothing = gradient_flow(layer, np.zeros((5, 1, 3)), np.zeros((5, 1, 16)))
    assert "is 0 at every step" in verdict(nothing)
    np.testing.assert_array_equal(nothing.shares_hh, 0)
    huge = scaled(1e100, "rnn_relu")
    huge.flat[: 16 * 3] = 1
    got = gradient_flow(huge, np.zeros((9, 1, 3)), np.ones((9, 1, 16)))
    assert "exploding: the state is inf from step 4 on" in verdict(got)
    assert "too few steps" in verdict(gradient_flow(layer, np.zeros((1, 1, 3))))
    assert "too few steps" in verdict(jacobians(layer, np.zeros((1, 1, 3))))
    assert "is 0 at every step" in verdict(jacobians(layer, np.zeros((9, 1, 3))))
    huge.flat[:] = 0  # h grows from 1e-300 to 1e200, its Jacobians beyond
    huge.parameters()["weight_hh_l0"][:] = 1e100 * np.eye(16)
    huge.parameters()["bias_ih_l0"][:] = 1e-300
    assert "is not finite 4 steps back" in verdict(jacobians(huge, np.zeros((6, 1, 3))))


def test_the_verdict_on_an_lstm_is_on_its_memory():
    layer = layer_of("lstm", H=8)
    layer.flat[:] = 0
    layer.parameters()["bias_hh_l0"][8:16] = 10  # the forget gate is open
    assert "healthy: |dL/dc|" in verdict(gradient_flow(layer, np.zeros((50, 2, 3))))
    layer.parameters()["bias_hh_l0"][8:16] = -1
    text = verdict(gradient_flow(layer, np.zeros((50, 2, 3))))
    assert "vanishing" in text
    assert "try a positive bias, 1 or more, at the gate f, which keeps the old state" in text


def test_a_stack_has_a_line_for_each_layer_and_direction():
    layer = layer_of("gru", num_layers=2, bidirectional=True)
    lines = verdict(gradient_flow(layer, np.ones((4, 2, 3)))).split("\n")
    assert [line.split(":")[0] for line in lines] == [
        "layer 0 forward", "layer 0 reverse", "layer 1 forward", "layer 1 reverse"]


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
def test_neither_padding_nor_an_earlier_episode_is_a_vanished_gradient(bidirectional):
    layer = layer_of("gru", bidirectional=bidirectional)
    x = np.random.default_rng(0).standard_normal((40, 4, 3))
    lengths = [20, 18, 19, 20]

    def lines(**options):
        return verdict(gradient_flow(layer, **options)).split("\n")
    assert lines(x=x, lengths=lengths) == lines(x=x[:20], lengths=lengths)
    reset = np.zeros((40, 4), bool)
    reset[13] = True
    cut = lines(x=x, reset=reset)
    assert cut[0] == lines(x=x[13:])[0]  # the last episode
    if bidirectional:
        assert cut[1] == lines(x=x[:13])[1]  # the first one
    assert "over 26 steps" in cut[0]
    ends = {"x": x, "reset": reset, "lengths": [30, 30, 25, 30]}
    assert lines(**ends)[0] == lines(x=x[13:30], lengths=[17, 17, 12, 17])[0]
    dy = np.zeros((40, 4, layer.width))
    dy[12] = 1  # the loss is all before the reset
    alone = lines(x=x[:13], dy=dy[:13])
    assert lines(x=x, reset=reset, dy=dy)[0] == alone[0]
    assert lines(x=x, reset=reset, dy=dy * 0)[0] == lines(x=x[13:], dy=dy[13:])[0]
    model = fastrnn.SequenceModel(layer, 2, readout="last", seed=0)
    flows = [model_flow(model, model.loss(part, [0, 1, 0, 1], lengths=lengths))[0]
             for part in (x, x[:20])]
    assert verdict(flows[0]) == verdict(flows[1])


@pytest.mark.parametrize(("cell", "words"), [
    ("rnn_tanh", "try orthogonal recurrent weights"), ("rnn_sigmoid", "try tanh, whose slope"),
    ("rnn_relu", "begin as the identity"), ("gru", "at the gate z, which keeps the old state")])
def test_what_to_try_against_vanishing_gradients(cell, words):
    layer = layer_of(cell)
    layer.flat *= 0.1
    layer.flat += 0.01  # relu units that are open
    text = verdict(gradient_flow(layer, np.zeros((60, 2, 3))))
    assert text.startswith("layer 0: vanishing: ")
    assert words in text


@pytest.mark.parametrize(("norms", "expected"), [
    ([1, 2, 4, 8], 2.0), ([8.0, 0, 2.0], 0.5), ([1.0, math.inf, 9.0, math.nan], 3.0),
    ([1e-300, 1e300], math.inf), ([1e300, 1e-300], 0.0),  # beyond what a factor can be
    (np.float32([1, 3]), 3.0),
])
def test_growth(norms, expected):
    assert growth(norms) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("norms", [[], [1.0], [0.0, 0.0], [math.nan, 1.0]])
def test_growth_of_too_few_norms(norms):
    assert math.isnan(growth(np.array(norms)))


def test_the_verdict_on_factors_beyond_all_numbers():
    norms = np.array([[[[1e300], [1e-300]]]])  # growing 1e600 a step back
    assert verdict(GradientFlow("gru", norms=norms[:, :, ::-1])).startswith("layer 0: vanishing: ")
    assert verdict(GradientFlow("gru", norms=norms)).startswith("layer 0: exploding: ")


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: verdict(m), TypeError, "^verdict: of is of type RNN, expected a GradientFlow"),
        (lambda m: verdict(gradient_flow(m, X, parts=())), ValueError, "without norms"),
        (lambda m: growth("abc"), TypeError, "^growth: norms is .*, expected numbers"),
        (lambda m: growth([[1.0]]), ValueError, r"norms has shape \(1, 1\), expected \(n,\)"),
        (lambda m: growth([1, [2, 3]]), ValueError, "norms is a ragged sequence"),
    ],
)
def test_errors_name_the_argument(call, error, match):
    with pytest.raises(error, match=match):
        call(layer_of("rnn_tanh"))
