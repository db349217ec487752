"""predict and evaluate on users' data: every form it comes in, and the sentence if it does not."""

import re

import cases
import numpy as np
import pytest
from kinds import F64, KINDS, B, N, V, data_of, language_of, model_of, pair_of, some_text

from fastrnn import GRU, LSTM, SequenceModel, Stack
from fastrnn.models import inputs
from fastrnn.models.inference import evaluate, predict


class Frame:
    """Something array-like that is no array: what a table of pandas looks like to NumPy."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values.astype(dtype or self.values.dtype)

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        raise AssertionError("an array-like is converted as a whole")


def model_for(I, K, *, dtype=np.float32, **options):
    return SequenceModel(GRU(I, 5, dtype=dtype, seed=0), K, seed=1, **{"loss": "mse"} | options)


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


PROBABILITIES = {"softmax": softmax, "mse": lambda y: y, "bce": lambda y: 1 / (1 + np.exp(-y))}


# --------------------------------------------------------------------------------------- predict


@pytest.mark.parametrize("batch_size", [1, 2, 3, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_predict_is_what_the_model_computes(kind, batch_size):
    model = model_of(kind)
    x, _, _, context = data_of(model)
    outputs, _ = model(x, context=context)
    expected = PROBABILITIES[model.loss_name](outputs)
    got = model.predict(x.swapaxes(0, 1), batch_size=batch_size, context=context)
    assert got.dtype == np.float64
    if model.readout == "every":
        got = got.swapaxes(0, 1)
    cases.assert_close("prediction", got, expected, 1e-13)
    if model.loss_name == "softmax":
        np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-14)
    np.testing.assert_array_equal(
        predict(model, x.swapaxes(0, 1), batch_size=batch_size, context=context),
        got.swapaxes(0, 1) if model.readout == "every" else got)


def test_one_series_comes_and_goes_without_an_axis_for_it():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 3)).astype("f4")
    for options, shape in (({}, (6, 2)), ({"readout": "last"}, (2,))):
        model = model_for(3, 2, **options)
        got = model.predict(x)
        assert got.shape == shape
        np.testing.assert_array_equal(got, model.predict(x[None])[0])
    model = model_for(1, 1)
    got = model.predict(x[:, 0])
    assert got.shape == (6, 1)
    np.testing.assert_array_equal(got, model.predict(x[:, :1]))
    np.testing.assert_array_equal(got, model.predict(x[None, :, :1])[0])
    y, w = x[:, 1], np.arange(6.0)
    assert model.evaluate(x[:, 0], y, weights=w) == model.evaluate(
        x[None, :, 0], y[None], weights=w[None])
    several = model.predict(x.T)  # (N, T) with one feature
    assert several.shape == (3, 6, 1)
    np.testing.assert_array_equal(several[0], got)
    symbols = SequenceModel(GRU(3, 5, seed=0), V, vocab_size=V, seed=1)
    got = symbols.predict([0, 1, 2, 1])
    assert got.shape == (4, V)
    np.testing.assert_array_equal(got, symbols.predict([[0, 1, 2, 1]])[0])
    context = SequenceModel(GRU(3, 5, seed=0), V, vocab_size=V, context_size=2, seed=1)
    np.testing.assert_array_equal(context.predict([0, 1], context=[1.0, 2.0]),
                                  context.predict([[0, 1]], context=[[1.0, 2.0]])[0])


FORMS = {
    "float64": lambda a: a.astype(np.float64), "float16": lambda a: a.astype(np.float16),
    "int64": lambda a: a.astype(np.int64), "int8": lambda a: a.astype(np.int8),
    "bool": lambda a: a > 0, "lists": lambda a: a.tolist(),
    "tuples": lambda a: tuple(map(tuple, a.tolist())), "list of arrays": list,
    "list of lists of arrays": lambda a: [list(one) for one in a],
    "Fortran": np.asfortranarray, "strided": lambda a: np.repeat(a, 2, 1)[:, ::2],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")), "array-like": Frame,
    "list of array-likes": lambda a: [Frame(one) for one in a], "misaligned": cases.misaligned,
    "read-only": cases.read_only, "masked, with nothing masked": np.ma.masked_array,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data(form):
    whole = (np.arange(24).reshape(2, 4, 3) % 3 - 1).astype("f4")  # exact in every dtype
    if form == "bool":
        whole = (whole > 0).astype("f4")
    x, y = whole, whole[..., :2].copy()
    model = model_for(3, 2)
    changed = FORMS[form]
    before = x.copy()
    expected, loss = model.predict(x), model.evaluate(x, y)
    np.testing.assert_array_equal(model.predict(changed(x)), expected)
    assert model.evaluate(changed(x), changed(y)) == pytest.approx(loss, rel=1e-6)
    np.testing.assert_array_equal(x, before)
    classes = SequenceModel(GRU(3, 5, vocab := 3, seed=0), vocab, vocab_size=3, seed=1)
    symbols = (whole[..., 0] + 1).astype(int)
    if form in ("bool",):
        symbols = (symbols > 1).astype(int)
    expected, loss = classes.predict(symbols), classes.evaluate(symbols, symbols)
    np.testing.assert_array_equal(classes.predict(changed(symbols)), expected)
    assert classes.evaluate(changed(symbols), changed(symbols)) == loss


def test_pandas():
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 3))
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    model = model_for(3, 1)
    np.testing.assert_array_equal(model.predict(frame), model.predict(x))
    one = model_for(1, 1)
    for column in (frame["a"], frame[["a"]]):
        np.testing.assert_array_equal(one.predict(column), one.predict(x[:, 0]))
        assert one.evaluate(column, column) == one.evaluate(x[:, 0], x[:, 0])
    with pytest.raises(TypeError, match=r"predict: x has dtype .*, expected numbers"):
        one.predict(pd.Series(["a", None]))


def test_data_is_left_as_it_is():
    x = np.random.default_rng(0).standard_normal((4, 6, 3)).astype("f4")
    y = x[..., :2].copy()
    model = model_for(3, 2, loss="bce")
    for args in ((x,), (x, np.abs(np.sin(y)))):
        kept = [a.copy() for a in args]
        (predict if len(args) == 1 else evaluate)(model, *args)
        for a, b in zip(args, kept, strict=True):
            np.testing.assert_array_equal(a, b)


# -------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("weighted", [False, "outputs", "sequences"])
@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_is_the_loss_of_the_whole_for_any_batch_size(kind, weighted):
    model = model_of(kind)
    x, targets, weights, context = data_of(model)
    every = model.readout == "every"
    weights = weights * 10 ** np.arange(B)  # far from equal
    if weighted == "sequences":
        weights = np.broadcast_to([3.0, 0.0, 1.0], weights.shape)
    whole = model.loss(x, targets, weights=weights if weighted else None, context=context,
                       grad=False)
    w = None if not weighted else weights.T if every else weights
    if weighted == "sequences":
        w = [3, 0, 1]
    y = targets.swapaxes(0, 1) if every else targets
    for batch_size in (1, 2, 3, 100):
        got = model.evaluate(x.swapaxes(0, 1), y, weights=w, batch_size=batch_size,
                             context=context)
        assert type(got) is float
        assert got == pytest.approx(whole.value, rel=1e-12)
    assert evaluate(model, x.swapaxes(0, 1), y, weights=w, context=context) == pytest.approx(
        whole.value, rel=1e-12)


def test_targets_come_with_and_without_their_last_axis():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 6, 3)).astype("f4")
    numbers = model_for(3, 1)
    y = rng.standard_normal((4, 6, 1))
    assert numbers.evaluate(x, y) == numbers.evaluate(x, y[..., 0])
    assert numbers.evaluate(x[0], y[0]) == numbers.evaluate(x[0], y[0, :, 0]) \
        == numbers.evaluate(x[:1], y[:1]) == numbers.evaluate(x[0], y[:1])
    last = model_for(3, 1, readout="last")
    assert last.evaluate(x, y[:, 0]) == last.evaluate(x, y[:, 0, 0])
    assert last.evaluate(x[0], y[0, 0]) == last.evaluate(x[0], float(y[0, 0, 0]))
    classes = SequenceModel(GRU(3, 5, seed=0), N, seed=1)
    labels = rng.integers(0, N, (4, 6))
    right = classes.evaluate(x, labels)
    assert right == classes.evaluate(x, labels[..., None]) == classes.evaluate(x, labels + 0.0)
    assert classes.evaluate(x[0], labels[0]) == classes.evaluate(x[0], labels[0][:, None]) \
        == classes.evaluate(x[:1], labels[:1])
    last = SequenceModel(GRU(3, 5, seed=0), N, readout="last", seed=1)
    assert last.evaluate(x, labels[:, 0]) == last.evaluate(x, labels[:, :1])
    assert last.evaluate(x[0], 2) == last.evaluate(x[0], [2]) == last.evaluate(x[:1], [[2]])
    several = model_for(3, 2, readout="last")
    assert several.evaluate(x[0], [1.0, 2.0]) == several.evaluate(x[:1], [[1.0, 2.0]])
    one_step = model_for(3, 1)  # one series of one step
    assert one_step.evaluate(x[0, :1], [0.5]) == one_step.evaluate(x[:1, :1], [[[0.5]]])


def test_without_targets_each_is_the_next_step():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 6, 2)).astype("f4")
    model = model_for(2, 2)
    assert model.evaluate(x) == model.evaluate(x[:, :-1], x[:, 1:])
    assert model.evaluate(x[0]) == model.evaluate(x[:1])
    single = model_for(1, 1)
    assert single.evaluate(x[0, :, 0]) == single.evaluate(x[:1, :-1, :1], x[:1, 1:, :1])
    text = some_text()[0].T
    language = language_of()
    assert language.evaluate(text) == language.evaluate(text[:, :-1], text[:, 1:])
    w = rng.random((4, 5))
    assert model.evaluate(x, weights=w) == model.evaluate(x[:, :-1], x[:, 1:], weights=w)
    for bad, match in (
            (model_for(2, 2, readout="last"), "y is None with readout 'last', expected a target"),
            (model_for(2, 1), "y is None for a model with 1 outputs of loss 'mse', expected t"),
            (SequenceModel(GRU(2, 5), 2), "y is None for a model with 2 outputs of loss")):
        with pytest.raises(ValueError, match=match):
            bad.evaluate(x)
    with pytest.raises(ValueError, match="x has 1 steps, expected at least 2 where y is None"):
        model.evaluate(x[:, :1])


PADDING = {"softmax": [-100, -1, 99, np.nan], "mse": [np.nan, np.inf], "bce": [np.nan, -1, 2]}


@pytest.mark.parametrize("loss", PADDING)
@pytest.mark.parametrize("readout", ["every", "last"])
def test_targets_of_weight_zero_may_be_anything(loss, readout):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 6, 3))
    model = SequenceModel(GRU(3, 5, seed=0, **F64), N, loss=loss, readout=readout, seed=1)
    rows = (4, 6) if readout == "every" else (4,)
    y = rng.integers(0, N, rows) if loss == "softmax" else rng.random((*rows, N))
    mask = rng.random(rows) > 0.4
    mask.flat[:2] = True, False
    right = model.evaluate(x, y, weights=mask)
    assert right == model.evaluate(x, y, weights=mask.astype(int))
    assert right != model.evaluate(x, y)
    for junk in PADDING[loss]:
        padded = y.astype(float)
        padded[~mask] = junk
        for batch_size in (1, 4):
            assert model.evaluate(x, padded, weights=mask, batch_size=batch_size) == pytest.approx(
                right, rel=1e-13)
    if loss == "softmax":
        assert model.evaluate(x, np.where(mask, y, -100)) == pytest.approx(right, rel=1e-13)


def test_all_weights_zero():
    model = model_for(3, 1)
    with pytest.raises(ValueError, match="no output has a weight above 0"):
        model.evaluate(np.zeros((2, 4, 3)), np.zeros((2, 4, 1)), weights=np.zeros((2, 4)))


def test_neither_draws_dropout_nor_changes_a_mode():
    model = SequenceModel(LSTM(3, 8, 2, dropout=0.9, seed=0), N, seed=1)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 6, 3)), rng.integers(0, N, (4, 6))
    before = model.dropout_state
    found = model.predict(x), model.evaluate(x, y)
    assert model.training
    assert model.dropout_state == before
    model.eval()
    np.testing.assert_array_equal(found[0], model.predict(x))
    assert found[1] == model.evaluate(x, y)
    assert not model.training


def test_no_sequences():
    model = model_for(3, 2)
    assert model.predict(np.zeros((0, 4, 3))).shape == (0, 4, 2)
    assert model.predict(np.zeros((2, 0, 3))).shape == (2, 0, 2)
    for shape in ((0, 4), (2, 0)):
        with pytest.raises(ValueError, match=rf"x has {shape[0]} sequences of {shape[1]} steps"):
            model.evaluate(np.zeros((*shape, 3)), np.zeros((*shape, 2)))


# ---------------------------------------------------------------------------------------- errors

X = np.zeros((2, 4, 3))


def with_(value, *place):
    a = X.copy()
    a[place] = value
    return a


class Unreadable:
    """What says that it is an array, and cannot give its numbers."""

    def __array__(self, *arguments, **options):
        raise RuntimeError("it has gone")


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (with_(np.nan, 1, 2, 0), ValueError, "x[1, 2, 0] is nan, expected finite numbers"),
        (with_(-np.inf, 0, 3, 2), ValueError, "x[0, 3, 2] is -inf, expected finite numbers"),
        (with_(1e300, 0, 0, 1), ValueError, "x[0, 0, 1] is 1e+300, expected finite numbers of f"),
        (np.zeros((2, 4, 5)), ValueError, "x has shape (2, 4, 5), expected (N, T, 3), or one series"
         " (T, 3): the model reads 3 features a step"),
        (np.zeros((4,)), ValueError, "x has shape (4,), expected (N, T, 3)"),
        (np.zeros((1, 2, 4, 3)), ValueError, "x has shape (1, 2, 4, 3)"),
        (3, ValueError, "x has shape ()"),
        ([[[0, 0, 0], [0, 0]], [[0, 0, 0], [0, 0, 0]]], ValueError, "x is a ragged sequence"),
        ([[0, 0, 0], 3], ValueError, "x is a ragged sequence, expected an array"),
        ("to be", TypeError, "x is text, expected numbers; a LanguageModel has train_on and"),
        (b"to be", TypeError, "x is text, expected numbers"),
        (["to", "be"], TypeError, "x has dtype <U2, expected numbers"),
        ([["a", "b", "c"]], TypeError, "x has dtype <U1, expected numbers"),
        (None, TypeError, "x is None, expected numbers"),
        ([None, 1], TypeError, "x has dtype object, expected numbers"),
        ({"a": 1}, TypeError, "x is of type dict, expected numbers"),
        (X.astype(complex), TypeError, "x has dtype complex128, expected numbers"),
        (X.astype("M8[s]"), TypeError, "x has dtype datetime64[s], expected numbers"),
        (np.ma.masked_array(X, X == 0), TypeError, "x is a masked array with masked places"),
        ([np.ma.masked_array(X[0], X[0] == 0), X[1]], TypeError, "x has a masked array with"),
        (Unreadable(), TypeError, "x is of type Unreadable, expected numbers: it has gone"),
    ],
)
def test_data_that_cannot_be_converted(x, error, match):
    model = model_for(3, 2)
    for call in (model.predict, lambda x: model.evaluate(x, np.zeros((2, 4, 2)))):
        with pytest.raises(error, match=re.escape(match)) as raised:
            call(x)
        assert re.match(r"(predict|evaluate): ", str(raised.value))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        ([[0, V]], IndexError, f"x has numbers from 0 to {V}, expected 0 to {V - 1}: the model"),
        ([[-1, 0]], IndexError, "x has numbers from -1 to 0"),
        ([[0.5, 0]], TypeError, "x[0, 0] is 0.5, expected whole numbers"),
        ([[0, np.nan]], TypeError, "x[0, 1] is nan, expected whole numbers"),
        ([[0, 1e20]], IndexError, "x has the number 1e+20, expected numbers below 2^31"),
        (np.array([[0, 2**63]], np.uint64), IndexError, "x has the number 9223372036854775808"),
        ([[[0]]], ValueError, "x has shape (1, 1, 1), expected symbols (N, T), or (T,): one"),
        ("to be", TypeError, "x is text, expected numbers"),
    ],
)
def test_symbols_that_are_none(x, error, match):
    model = SequenceModel(GRU(3, 5, seed=0), V, vocab_size=V, seed=1)
    with pytest.raises(error, match=re.escape("predict: " + match)):
        model.predict(x)


@pytest.mark.parametrize(
    ("options", "y", "error", "match"),
    [
        ({}, np.zeros((2, 4, 3)), ValueError,
         "y has shape (2, 4, 3), expected (2, 4, 2): 2 numbers for each step"),
        ({}, np.zeros((2, 4)), ValueError, "y has shape (2, 4), expected (2, 4, 2)"),
        ({"readout": "last"}, np.zeros((2, 4, 2)), ValueError, "y has shape (2, 4, 2), expected "
         "(2, 2): 2 numbers for each sequence (readout 'last')"),
        ({"loss": "softmax"}, np.zeros((2, 4, 2), int), ValueError,
         "y has shape (2, 4, 2), expected (2, 4): one class for each step"),
        ({"loss": "softmax", "readout": "last"}, [0, 1, 1], ValueError,
         "y has shape (3,), expected (2,): one class for each sequence (readout 'last')"),
        ({"loss": "softmax"}, np.full((2, 4), 2), IndexError,
         "y has numbers from 2 to 2, expected 0 to 1: the model has 2 classes"),
        ({"loss": "softmax"}, np.full((2, 4), 0.5), TypeError, "y[0, 0] is 0.5, expected whole"),
        ({}, np.full((2, 4, 2), np.nan), ValueError, "y[0, 0, 0] is nan, expected finite numbers; "
         "replace them, or pass weights of 0 for padding"),
        ({}, "text", TypeError, "y is text, expected numbers"),
        ({}, [[1], [1, 2]], ValueError, "y is a list of sequences of 1 to 2 steps"),
        ({"loss": "bce"}, np.full((2, 4, 2), 1.5), ValueError, "y has numbers from 1.5 to 1.5, ex"),
    ],
)
def test_targets_that_do_not_fit(options, y, error, match):
    model = model_for(3, 2, **options)
    with pytest.raises(error, match=re.escape("evaluate: " + match)) as raised:
        model.evaluate(X, y)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("weights", "error", "match"),
    [
        (np.ones((2, 5)), ValueError, "weights has shape (2, 5), expected (2, 4)"),
        (np.ones(3), ValueError, "weights has shape (3,), expected (2, 4)"),
        (-np.ones((2, 4)), ValueError, "weights has numbers from -1.0 to -1.0"),
        (np.full((2, 4), np.nan), ValueError, "weights has numbers from nan to nan"),
        ([[1], [1, 2]], ValueError, "weights is a ragged sequence"),
        ("ab", TypeError, "weights is of type str"),
        (np.ma.masked_array(np.ones((2, 4), bool), np.eye(2, 4)), TypeError, "weights is a masked"),
    ],
)
def test_weights_that_do_not_fit(weights, error, match):
    with pytest.raises(error, match=re.escape("evaluate: " + match)):
        model_for(3, 1).evaluate(X, X[..., :1], weights=weights)


def test_other_arguments_that_do_not_fit():
    model = model_for(3, 1)
    for size in (0, -1, 2.5, "x", None, True):
        with pytest.raises(ValueError, match="predict: batch_size is"):
            model.predict(X, batch_size=size)
        with pytest.raises(ValueError, match="evaluate: batch_size is"):
            model.evaluate(X, X[..., :1], batch_size=size)
    for other in (pair_of(), Stack(GRU(3, 4, seed=0), seed=0)):
        with pytest.raises(TypeError, match=rf"predict: model is of type {type(other).__name__}"):
            predict(other, X)
        with pytest.raises(TypeError, match="evaluate: model is of type"):
            evaluate(other, X, X)
    with pytest.raises(ValueError, match="predict: context is given, expected none"):
        model.predict(X, context=X[:, 0])
    context = SequenceModel(GRU(3, 5, seed=0), 1, loss="mse", context_size=2, seed=1)
    for given, error, match in (
            (None, ValueError, "context is None, expected an array (2, 2): the model has a"),
            (X[:, 0], ValueError, "context has shape (2, 3), expected (2, 2)"),
            ("text", TypeError, "context is text, expected numbers"),
            ([[1], [1, 2]], ValueError, "context is a list of sequences"),
            ([[1, np.nan], [1, 1]], ValueError, "context[0, 1] is nan, expected finite numbers")):
        for call in (context.predict, lambda x, **o: context.evaluate(x, x[..., :1], **o)):
            with pytest.raises(error, match=re.escape(match)) as raised:
                call(X, context=given)
            assert re.match(r"(predict|evaluate): ", str(raised.value))
    np.testing.assert_array_equal(context.predict(X, context=[[1, 2], [3, 4]]),
                                  context.predict(X, context=np.array([[1, 2], [3, 4]], "i1")))


def test_conversions_alone():
    model = model_for(3, 1)
    of = inputs.sequences(model, X)
    assert (of.N, of.T, of.one) == (2, 4, False)
    assert of.x.dtype == np.float32
    same = X.astype("f4")
    assert inputs.sequences(model, same).x is same  # nothing is copied that need not be
    assert inputs.weights(model, None, of) is None
    np.testing.assert_array_equal(inputs.weights(model, [True, False], of), [[1] * 4, [0] * 4])
    assert inputs.contexts(model, None, of) is None
