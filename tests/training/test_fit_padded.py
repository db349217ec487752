"""Batches of padded arrays with lengths: the same training as with lists, and clear refusals."""

import numpy as np
import pytest
from runs import values

from fastrnn import GRU, LSTM, training
from fastrnn.models import EncoderDecoder, SequenceModel, Stack
from fastrnn.training import Batch

LENGTHS = np.array([5, 0, 9, 2, 7])
RNG = np.random.default_rng(0)
ALIVE = np.arange(9)[:, None] < LENGTHS
X = RNG.standard_normal((9, 5, 3)).astype(np.float32)
Y = RNG.standard_normal((9, 5, 2)).astype(np.float32)
X[~ALIVE] = np.nan
Y[~ALIVE] = np.nan


def listed(a, lengths=LENGTHS):
    return [a[:n, i] for i, n in enumerate(lengths)]


def model_of(**options):
    return SequenceModel(LSTM(3, 6, seed=0), 2, loss="mse", seed=1, **options)


def trained(model, batch, **options):
    history = training.fit(model, lambda step: batch, steps=4, **options)
    return history, values(model)


def pair_of():
    return EncoderDecoder(Stack(GRU(4, 5, seed=0), vocab_size=7, seed=0),
                          SequenceModel(GRU(4, 5, seed=1), 6, vocab_size=6, seed=1))


def test_a_batch_of_a_padded_array_trains_like_its_list():
    padded, by_padded = trained(model_of(), Batch(X, Y, lengths=LENGTHS))
    lists, by_lists = trained(model_of(), Batch(listed(X), listed(Y)))
    assert padded.losses == lists.losses
    assert padded.progress.seen == lists.progress.seen == 4 * LENGTHS.sum()
    np.testing.assert_array_equal(by_padded, by_lists)


def test_an_encoder_decoder_takes_the_lengths_of_both_padded_arrays():
    sources, targets = np.array([4, 0, 6, 1, 3]), LENGTHS
    source, inputs, goals = RNG.integers(0, 7, (6, 5)), *RNG.integers(0, 6, (2, 9, 5))
    lists = listed(source, sources), listed(inputs, targets)
    source[np.arange(6)[:, None] >= sources] = 99  # padding may be anything
    inputs[~ALIVE] = goals[~ALIVE] = 99
    expected = trained(pair_of(), Batch(lists, listed(goals, targets)))
    for given in (Batch((source, inputs), goals, lengths=(sources, targets)),
                  Batch((lists[0], inputs), goals, lengths=[None, targets])):
        history, found = trained(pair_of(), given)
        assert history.losses == expected[0].losses
        assert history.progress.seen == expected[0].progress.seen
        np.testing.assert_array_equal(found, expected[1])


def test_what_is_not_finite_is_named_outside_the_padding():
    x, y = X.copy(), Y.copy()
    y[6, 2, 1] = np.inf
    for a, b, place in ((x, y, r"the targets of this step have inf at \[6, 2, 1\]"),
                        (np.where(np.isnan(x), 0, x), y, "the targets of this step have inf")):
        with pytest.raises(FloatingPointError, match=place):
            training.fit(model_of(), lambda step, a=a, b=b: Batch(a, b, lengths=LENGTHS), steps=1)
    model = model_of()
    model.parameters()["layers.0.weight_ih_l0"][0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="the parameter layers"):
        training.fit(model, lambda step: Batch(X, Y, lengths=LENGTHS), steps=1)


@pytest.mark.parametrize("name", ["context", "episode_start", "first", "recompute_every"])
def test_what_a_models_loss_does_not_take_is_one_sentence(name):
    model, symbols = pair_of(), np.zeros((3, 2), int)
    before = values(model)
    given = {"first": {"first": False}, "recompute_every": {}}.get(name, {name: np.ones((3, 2))})
    options = {"recompute_every": 2} if name == "recompute_every" else {}
    with pytest.raises(ValueError, match=f"^fit: {name} is .* EncoderDecoder, expected"):
        training.fit(model, lambda step: Batch(
            (symbols, symbols), symbols, **(given if step else given | {"first": True})),
            steps=2, **options)
    if name != "first":  # its first step was in order
        np.testing.assert_array_equal(values(model), before)


@pytest.mark.parametrize(("lengths", "error", "message"), [
    ([2, 3], TypeError, r"lengths is \[2, 3\], expected a pair"),
    (np.array([2, 3]), TypeError, "lengths is array.*, expected a pair"),
    (([2, 3],) * 3, TypeError, "expected a pair"),
    (([2, 4], None), ValueError, "lengths of source has numbers from 2 to 4, expected 0 to 3, the "
     "steps of source"),
    ((None, [2, 3, 1]), ValueError, r"lengths of inputs has shape \(3,\), expected \(2,\)"),
])
def test_lengths_of_an_encoder_decoder_that_do_not_fit(lengths, error, message):
    symbols = np.zeros((3, 2), int)
    with pytest.raises(error, match=message):
        pair_of().loss(symbols, symbols, symbols, lengths=lengths)


# ------------------------------------------------------------------------------ validation


def test_a_validation_has_weights_contexts_and_episodes_of_its_own():
    x, y = np.nan_to_num(X.swapaxes(0, 1)), np.nan_to_num(Y.swapaxes(0, 1))
    start, weights, context = RNG.random((5, 9)) < 0.3, RNG.random((5, 9)), RNG.random((5, 4))
    model = model_of(context_size=4)
    history = training.fit(model, x, y, context=context, steps=2, batch_size=5, validation={
        "x": x, "y": y, "weights": weights, "context": context, "episode_start": start})
    expected = model.evaluate(x, y, weights=weights, context=context, episode_start=start)
    np.testing.assert_allclose(history.validations[-1][1], expected, rtol=1e-12)
    assert expected != model.evaluate(x, y, weights=weights, context=context)


@pytest.mark.parametrize(("validation", "error", "message"), [
    ({"y": Y}, TypeError, r"validation is \{.*expected \(x, y\).*a dict of some of"),
    ({"x": X, "z": Y}, TypeError, "a dict of some of"),
    ({"x": np.zeros((2, 4, 3)), "y": np.zeros((2, 4, 2)), "episode_start": np.zeros((4, 2), bool)},
     ValueError, r"validation: episode_start has shape \(4, 2\), expected \(2, 4\)"),
])
def test_a_validation_that_does_not_fit(validation, error, message):
    with pytest.raises(error, match=message):
        training.fit(model_of(), np.zeros((2, 4, 3)), np.zeros((2, 4, 2)), steps=1,
                     validation=validation)
