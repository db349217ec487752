"""predict and evaluate on sequences of different lengths, and what data of theirs is refused."""

import cases
import numpy as np
import pytest
from kinds import KINDS, N, model_of
from lists import LENGTHS, assert_same, grid, lists_of

from fastrnn import GRU, SequenceModel
from fastrnn.models import inference, inputs

TOL = cases.tolerance(np.float64, 64, 16)


def softened(model, outputs):
    """Return probabilities of logits, as predict does."""
    if model.loss_name == "mse":
        return outputs
    e = np.exp(outputs - outputs.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) if model.loss_name == "softmax" else 1 / (
        1 + np.exp(-outputs))


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_the_sequences_alone(kind):
    model = model_of(kind)
    data = lists_of(model)
    expected, _ = model(data.x, **data.own)
    for size in (1, 4, 256):
        found = model.predict(data.x, batch_size=size, **data.own)
        assert isinstance(found, list) == data.every
        for got, logits in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, softened(model, logits) if len(logits) else logits,
                                       rtol=1e-12)
    assert_same(model.predict(data.x, batch_size=4, **data.own), found)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_the_mean_over_real_steps(kind, weighted):
    model = model_of(kind)
    data = lists_of(model)
    options = data.own | ({"weights": data.weights} if weighted else {})
    expected = model.loss(data.x, data.targets, **options, grad=False).value
    for size in (1, 4, 256):
        assert model.evaluate(data.x, data.targets, batch_size=size, **options) == pytest.approx(
            expected, rel=1e-12)


def test_episodes_of_users_data():
    model = model_of("numbers")
    data = lists_of(model)
    expected, _ = model(data.x, episode_start=data.start)
    assert_same(model.predict(data.x, episode_start=data.start), expected)
    assert model.evaluate(data.x, data.targets, episode_start=data.start) == pytest.approx(
        model.loss(data.x, data.targets, episode_start=data.start, grad=False).value, rel=1e-12)
    even = lists_of(model, (5, 5, 5))
    flags = np.stack(even.start)  # (N, T)
    expected = model(grid(even.x), episode_start=flags.T)[0].swapaxes(0, 1)
    assert_same(model.predict(np.stack(even.x), episode_start=flags), expected)
    assert_same(model.predict(even.x, episode_start=even.start), expected)
    assert_same(model.predict(even.x[0], episode_start=flags[0]), expected[0])


@pytest.mark.parametrize("listed", [False, True])
def test_a_forecast_does_not_look_over_the_border_of_an_episode(listed):
    model = SequenceModel(GRU(2, 3, seed=1, dtype=np.float64), 2, loss="mse", seed=1)
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((n, 2)) for n in ((5, 1, 6) if listed else (6, 6))]
    start = [np.zeros(len(a), bool) for a in x]
    start[0][[0, 3]] = start[-1][[2, 5]] = True
    found = model.evaluate(x if listed else np.stack(x),
                           episode_start=start if listed else np.stack(start))
    episodes = [one for a, s in zip(x, start, strict=True) for one in
                np.split(a, np.flatnonzero(s[1:]) + 1)]
    assert found == pytest.approx(model.evaluate(episodes), rel=1e-12)
    weights = [np.ones(len(a) - 1) for a in x]
    assert model.evaluate(x, weights=weights, episode_start=start) == pytest.approx(found)


FORMS = {
    "lists": lambda a: [one.tolist() for one in a], "a tuple": tuple,
    "an array of objects": lambda a: np.array([*a, None], dtype=object)[:-1],
    "float32": lambda a: [one.astype(np.float32) for one in a],
    "big-endian": lambda a: [one.astype(">f8") for one in a],
    "Fortran": lambda a: [np.asfortranarray(one) for one in a],
    "strided": lambda a: [np.repeat(one, 2, 0)[::2] for one in a],
}


@pytest.mark.parametrize("form", FORMS)
def test_any_list_that_numpy_reads(form):
    model = model_of("numbers")
    rng = np.random.default_rng(0)
    x, y = ([rng.integers(0, 9, (n, k)).astype(np.float64) for n in (4, 1, 3)] for k in (2, N))
    expected = model.evaluate(x, y)
    assert model.evaluate(FORMS[form](x), FORMS[form](y)) == expected
    assert_same(model.predict(FORMS[form](x)), model.predict(x))


def test_numbers_without_features_and_one_class_a_row():
    model = SequenceModel(GRU(1, 3, seed=1, dtype=np.float64), 1, loss="mse", seed=1)
    rng = np.random.default_rng(0)
    x, y = ([rng.standard_normal(n) for n in (4, 2)] for _ in range(2))
    column = [a[:, None] for a in x]
    assert model.evaluate(x, y) == model.evaluate(column, [a[:, None] for a in y])
    assert [a.shape for a in model.predict(x)] == [(4, 1), (2, 1)]
    tagger = model_of("tags of symbols")
    data = lists_of(tagger)
    assert tagger.evaluate(data.x, [a[:, None] for a in data.targets]) == tagger.evaluate(
        data.x, data.targets)


def test_targets_of_weight_0_may_be_anything():
    model = model_of("numbers")
    data = lists_of(model)
    expected = model.evaluate(data.x, data.targets, weights=[np.arange(n) > 0 for n in LENGTHS])
    bad = [a.copy() for a in data.targets]
    for a in bad:
        a[:1] = np.nan
    found = model.evaluate(data.x, bad, weights=[np.arange(n) > 0 for n in LENGTHS])
    assert found == expected
    with pytest.raises(ValueError, match=r"y\[0\]\[0, 0\] is nan"):
        model.evaluate(data.x, bad)


def test_rows_of_users_data_are_copied_once():
    model = model_of("numbers")
    data = lists_of(model)
    of = inputs.sequences(model, data.x)
    assert of.listed
    assert of.lengths == list(LENGTHS)
    assert (of.N, of.T) == (6, 6)
    base = of.x[0].base
    assert base.shape == (sum(LENGTHS), 2)
    assert all(a.base is base for a in of.x)


NUMBERS, TAGS = model_of("numbers"), model_of("tags of symbols")
FORECAST = SequenceModel(GRU(2, 3, seed=1), 2, loss="mse", seed=1)
R, X = lists_of(NUMBERS), lists_of(TAGS)


def changed(arrays, i, a):
    return [*arrays[:i], a, *arrays[i + 1 :]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: NUMBERS.predict([]), ValueError, "predict: x is an empty list, expected at least"),
        (lambda: NUMBERS.evaluate((), ()), ValueError, "x is an empty tuple, expected at least"),
        (lambda: NUMBERS.predict(changed(R.x, 2, np.zeros((3, 3)))), ValueError,
         r"x\[2\] has shape \(3, 3\), expected \(T, 2\)"),
        (lambda: NUMBERS.predict(changed(R.x, 3, np.zeros(1))), ValueError,
         r"x\[3\] has shape \(1,\), expected \(T, 2\)"),
        (lambda: NUMBERS.predict(changed(R.x, 3, np.zeros((1, 2), np.float32))), TypeError,
         r"x\[3\] is float32, expected float64 like x\[0\]"),
        (lambda: NUMBERS.predict(changed(R.x, 4, np.full((6, 2), np.nan))), ValueError,
         r"x\[4\]\[0, 0\] is nan, expected finite numbers"),
        (lambda: NUMBERS.predict(changed(R.x, 0, "text")), TypeError, r"x\[0\] is text"),
        (lambda: NUMBERS.predict(changed(R.x, 0, 3)), ValueError,
         r"x\[0\] has shape \(\), expected"),
        (lambda: NUMBERS.predict(changed(R.x, 0, np.ma.masked_equal(np.eye(2), 1))), TypeError,
         r"x\[0\] is a masked array"),
        (lambda: TAGS.predict(changed(X.x, 2, np.array([1.5]))), TypeError,
         r"x\[2\] is float64, expected int64 like x\[0\]"),
        (lambda: TAGS.predict([[0.0], [1.0, 1.5]]), TypeError,
         r"x\[1\]\[1\] is 1.5, expected whole"),
        (lambda: TAGS.predict(changed(X.x, 2, np.array([6]))), IndexError, "x has numbers from"),
        (lambda: TAGS.predict(changed(X.x, 2, np.zeros((1, 1), int))), ValueError,
         r"x\[2\] has shape \(1, 1\), expected \(T,\): symbols"),
        (lambda: FORECAST.evaluate([np.zeros((1, 2)), np.zeros((0, 2))]), ValueError,
         "x has 1 steps, expected at least 2 where y is None"),
        (lambda: NUMBERS.evaluate(R.x, np.zeros((6, 6, 4))), TypeError,
         "y is of type ndarray, expected a list like x: an array for each sequence"),
        (lambda: NUMBERS.evaluate(R.x, R.targets[1:]), ValueError,
         "y has 5 sequences, expected 6: as many as x"),
        (lambda: NUMBERS.evaluate(R.x, changed(R.targets, 0, R.targets[0][1:])), ValueError,
         r"y\[0\] has shape \(3, 4\), expected \(4, 4\): 4 numbers for each step, and x\[0\]"),
        (lambda: NUMBERS.evaluate(R.x, R.targets, weights=np.ones(5)), ValueError,
         r"weights has shape \(5,\), expected \(6,\), or a list like x"),
        (lambda: NUMBERS.evaluate(R.x, R.targets, weights=changed(R.weights, 2, [1])), ValueError,
         r"weights\[2\] has shape \(1,\), expected \(6,\): x\[2\] has 6 steps"),
        (lambda: NUMBERS.evaluate(R.x, R.targets, weights=[-w for w in R.weights]), ValueError,
         "weights has numbers from -"),
        (lambda: NUMBERS.predict(R.x, episode_start=R.start[1:]), ValueError,
         "episode_start has 5 sequences, expected 6"),
        (lambda: NUMBERS.predict(R.x, episode_start=changed(R.start, 0, [True])), ValueError,
         r"episode_start\[0\] has shape \(1,\), expected \(4,\)"),
        (lambda: NUMBERS.predict(np.zeros((2, 3, 2)), episode_start=np.zeros((3, 2), bool)),
         ValueError, r"episode_start has shape \(3, 2\), expected \(2, 3\)"),
        (lambda: NUMBERS.predict(np.zeros((2, 3, 2)), episode_start=np.zeros((2, 3))), TypeError,
         "episode_start is float64, expected booleans"),
    ],
)
def test_what_does_not_fit_is_one_sentence(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert caught.type in (TypeError, ValueError, IndexError)


def test_a_list_of_equal_lengths_is_a_batch_as_it_was():
    data = lists_of(NUMBERS, (5, 5, 5))
    found = inference.predict(NUMBERS, data.x)
    assert found.shape == (3, 5, N)
    assert_same(found, NUMBERS.predict(np.stack(data.x)))
