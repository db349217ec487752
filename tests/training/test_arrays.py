"""fit on arrays as users have them: what is read, in which order, and what is refused."""

import numpy as np
import pytest
from runs import values

import fastrnn
from fastrnn import GRU, training
from fastrnn.models import EncoderDecoder, SequenceModel, Stack
from fastrnn.training import arrays as reading_arrays
from fastrnn.training.options import Reading

N, T, I = 10, 6, 3
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, T, I))
Y = RNG.standard_normal((N, T, 2))


def model_of(inputs=I, outputs=2, loss="mse", readout="every", dtype=np.float32, **options):
    return SequenceModel(GRU(inputs, 5, dtype=dtype, seed=0), outputs, loss=loss, readout=readout,
                         seed=1, **options)


def batches_of(model, x, y=None, epochs=1, validation=None, **options):
    """Return the batches of some epochs, and the source of validation."""
    data, source = reading_arrays.read(model, x, y, Reading(**options), validation)
    return [data(k) for k in range(epochs * data.count)], source


def fitted(model, x, y=None, **options):
    training.fit(model, x, y, **({"epochs": 2} | options))
    return values(model).tobytes()


class Column:
    """What fastrnn sees of a pandas column or table."""

    def __init__(self, a):
        self.a = a

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.a, dtype)


# ------------------------------------------------------------------------------- what is converted


@pytest.mark.parametrize("as_", [
    lambda a: a.astype(np.float32), lambda a: a.tolist(), list, tuple, Column, np.asfortranarray,
    lambda a: a.astype(">f8"), lambda a: a.astype(object).astype(float)[::1]], ids=range(8))
def test_arrays_lists_and_tables_are_the_same_data(as_):
    before = X.copy()
    assert fitted(model_of(), as_(X), as_(Y)) == fitted(model_of(), X, Y)
    np.testing.assert_array_equal(X, before)


def test_tables_and_columns_of_pandas():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": range(40), "b": np.arange(40) / 2, "c": True, "y": range(40)})
    x, y = table[["a", "b", "c"]].astype(float), table["y"]
    for given in ((x, y), (x.iloc[::2], y.iloc[::2])):
        arrays = [a.to_numpy() for a in given]
        assert fitted(model_of(outputs=1), *given, window=5) == \
            fitted(model_of(outputs=1), *arrays, window=5)
    assert fitted(model_of(1, 1), y, window=5) == fitted(model_of(1, 1), y.to_numpy(), window=5)


def test_integers_become_numbers():
    x = RNG.integers(-9, 9, (N, T, I))
    assert fitted(model_of(), x, Y) == fitted(model_of(), x.astype(float), Y)
    assert fitted(model_of(), x > 0, Y) == fitted(model_of(), (x > 0) * 1.0, Y)


def test_a_float64_model_takes_float64():
    model = model_of(dtype=np.float64)
    (batch,), _ = batches_of(model, X, Y, shuffle=False)
    np.testing.assert_array_equal(batch.inputs[0], X.swapaxes(0, 1))
    assert training.fit(model, X, Y, epochs=1).progress.seen == N * T


@pytest.mark.parametrize(
    ("x", "y", "inputs", "outputs"),
    [
        (X, Y, I, 2), (X[..., 0], Y[..., 0], 1, 1), (X[..., :1], Y[..., 0], 1, 1),
        (X[0], Y[0], I, 2), (X[0, :, 0], Y[0, :, 0], 1, 1), (X[0, :, :1], Y[0, :, :1], 1, 1),
    ], ids=range(6))
def test_shapes_of_numbers_with_a_target_for_each_step(x, y, inputs, outputs):
    (batch,), _ = batches_of(model_of(inputs, outputs), x, y, shuffle=False)
    rows = N if np.ndim(x) == 3 or len(x) == N else 1
    assert batch.inputs[0].shape == (T, rows, inputs)
    assert batch.targets.shape == (T, rows, outputs)
    np.testing.assert_array_equal(batch.inputs[0][:, 0].ravel(), np.float32(x if rows == 1 else
                                                                            x[0]).ravel())
    assert training.fit(model_of(inputs, outputs), x, y, steps=1).progress.steps == 1


@pytest.mark.parametrize(
    ("loss", "readout", "y", "shape"),
    [
        ("softmax", "every", RNG.integers(0, 4, (N, T)), (T, N)),
        ("softmax", "every", RNG.integers(0, 4, (N, T, 1)), (T, N)),
        ("softmax", "last", RNG.integers(0, 4, N), (N,)),
        ("softmax", "last", RNG.integers(0, 4, N).astype(float), (N,)),
        ("softmax", "last", RNG.integers(0, 4, N).tolist(), (N,)),
        ("mse", "last", RNG.standard_normal((N, 4)), (N, 4)),
        ("bce", "every", RNG.random((N, T, 4)), (T, N, 4)),
    ], ids=str)
def test_targets_one_a_sequence_or_one_a_step(loss, readout, y, shape):
    model = model_of(outputs=4, loss=loss, readout=readout)
    (batch,), _ = batches_of(model, X, y, shuffle=False)
    assert batch.targets.shape == shape
    assert np.isfinite(training.fit(model, X, y, epochs=2, validation=(X, y)).losses).all()


def test_symbols():
    x = RNG.integers(0, 7, (N, T))
    model = SequenceModel(GRU(4, 5, seed=0), 7, vocab_size=7, seed=0)
    (batch,), _ = batches_of(model, x, shuffle=False)
    np.testing.assert_array_equal(batch.inputs[0], x[:, :-1].T)
    np.testing.assert_array_equal(batch.targets, x[:, 1:].T)
    language = fastrnn.LanguageModel(7, 3, 4, seed=0)
    assert np.isfinite(training.fit(language, x.tolist(), epochs=1).losses).all()
    assert training.fit(language, x.ravel(), window=5, batch_size=4, epochs=1).progress.seen == 56


def test_without_targets_the_next_step_is_the_target():
    (batch,), _ = batches_of(model_of(1, 1), X[..., 0], shuffle=False)
    np.testing.assert_array_equal(batch.inputs[0][1:], batch.targets[:-1])
    assert len(batch.targets) == T - 1


# --------------------------------------------------------------------------------- the order


def test_every_sequence_is_read_once_an_epoch_in_an_order_of_the_seed():
    marked = np.zeros((N, T, I)) + np.arange(N)[:, None, None]
    orders = []
    for seed in (0, 0, 1):
        batches, _ = batches_of(model_of(), marked, Y, epochs=2, batch_size=4, seed=seed)
        assert [batch.inputs[0].shape[1] for batch in batches] == [4, 4, 2] * 2
        order = np.concatenate([batch.inputs[0][0, :, 0] for batch in batches]).astype(int)
        assert sorted(order[:N]) == sorted(order[N:]) == list(range(N))
        assert order[:N].tolist() != order[N:].tolist()
        for batch in batches:
            at = batch.inputs[0][0, :, 0].astype(int)
            np.testing.assert_array_equal(batch.targets, Y[at].swapaxes(0, 1).astype(np.float32))
        orders.append(order.tolist())
    assert orders[0] == orders[1] != orders[2]
    batches, _ = batches_of(model_of(), marked, Y, batch_size=4, shuffle=False)
    np.testing.assert_array_equal(
        np.concatenate([batch.inputs[0][0, :, 0] for batch in batches]), np.arange(N))


def test_epochs_count_batches_with_the_last_smaller_one():
    history = training.fit(model_of(), X, Y, epochs=3, batch_size=4)
    assert history.progress.steps == 9
    assert history.progress.seen == 3 * N * T
    assert training.fit(model_of(), X, Y, steps=4, batch_size=100).progress.seen == 4 * N * T


def test_layouts_give_the_same_bits():
    """A batch is a gather of whole sequences: the model reads it as it lies."""
    (batch,), _ = batches_of(model_of(), X, Y, shuffle=False)
    copies = [np.ascontiguousarray(a) for a in (batch.inputs[0], batch.targets)]
    a, b = model_of(), model_of()
    p, q = a.loss(batch.inputs[0], batch.targets), b.loss(*copies)
    assert p.value == q.value
    p.backward()
    q.backward()
    for name, g in a.grads.items():
        assert g.tobytes() == b.grads[name].tobytes(), name


def test_weights_and_context_follow_their_sequences():
    model = model_of(context_size=1)
    w, c = RNG.random((N, T)), np.arange(N)[:, None]
    marked = np.zeros((N, T, I)) + np.arange(N)[:, None, None]
    batches, _ = batches_of(model, marked, Y, batch_size=4, weights=w, context=c)
    for batch in batches:
        at = batch.inputs[0][0, :, 0].astype(int)
        np.testing.assert_array_equal(batch.weights, w[at].T)
        np.testing.assert_array_equal(batch.context[:, 0], at)
    assert np.isfinite(training.fit(model, X, Y, steps=2, weights=w, context=c).losses).all()
    last = model_of(readout="last")
    (batch,), _ = batches_of(last, X, Y[:, 0], weights=w[:, 0], shuffle=False)
    np.testing.assert_array_equal(batch.weights, w[:, 0])


def test_padding_of_weight_0_changes_nothing():
    x, y, w = X.copy(), Y.copy(), np.ones((N, T), bool)
    x[3:, 4:], y[3:, 4:], w[3:, 4:] = 7, 99, False
    other = y.copy()
    other[3:, 4:] = -5
    assert fitted(model_of(), x, y, weights=w) == fitted(model_of(), x, other, weights=w)
    assert fitted(model_of(), x, y, weights=w) != fitted(model_of(), x, y)


# ----------------------------------------------------------------------------------- windows


def test_one_long_series_is_cut_into_rows():
    series = np.arange(101.0)
    batches, _ = batches_of(model_of(1, 1), series, window=7, batch_size=4)
    assert len(batches) == 4  # rows of 25
    assert [batch.first for batch in batches] == [True, False, False, False]
    whole = np.concatenate([batch.inputs[0][..., 0] for batch in batches])
    np.testing.assert_array_equal(whole, np.arange(25)[:, None] + 25 * np.arange(4))
    for batch in batches:
        np.testing.assert_array_equal(batch.targets, batch.inputs[0] + 1)


@pytest.mark.parametrize("steps", [3, 40])
def test_a_short_series_is_read_in_fewer_rows(steps):
    batches, _ = batches_of(model_of(1, 1), np.arange(steps), window=30, batch_size=32)
    assert sum(batch.size for batch in batches) == steps - 1
    assert batches[0].inputs[0].shape[1] == 1


def test_several_series_side_by_side_are_the_rows():
    series = np.arange(3 * 20.0).reshape(3, 20, 1)
    y = series + 0.5
    batches, _ = batches_of(model_of(1, 1), series, y, window=8, batch_size=2, weights=y[..., 0])
    assert [batch.inputs[0].shape for batch in batches] == [(8, 2, 1), (8, 2, 1), (4, 2, 1),
                                                            (8, 1, 1), (8, 1, 1), (4, 1, 1)]
    assert [batch.first for batch in batches] == [True, False, False] * 2
    for batch in batches:
        np.testing.assert_array_equal(batch.targets, batch.inputs[0] + 0.5)
        np.testing.assert_array_equal(batch.weights[..., None], batch.targets)
    np.testing.assert_array_equal(
        np.concatenate([batch.inputs[0][:, 0, 0] for batch in batches[3:]]), np.arange(40, 60))


def test_a_long_series_is_learned_in_windows():
    wave = np.sin(np.arange(2000) / 5)
    model = SequenceModel(GRU(1, 16, seed=0), 1, loss="mse", seed=0)
    history = training.fit(model, wave, window=25, batch_size=8, epochs=30, lr=1e-2,
                           validation=0.1)
    assert history.validations[-1][1] < 0.05 * history.validations[0][1] < 1
    assert model.predict(wave[:100]).shape == (100, 1)


# --------------------------------------------------------------------------------- validation


def test_a_fraction_holds_out_the_last_sequences():
    model = model_of()
    batches, held_out = batches_of(model, X, Y, validation=0.3, weights=np.ones(N))
    read = np.concatenate([batch.inputs[0] for batch in batches], 1)
    assert read.shape[1] == 7
    (x,) = held_out(0).inputs
    np.testing.assert_array_equal(x, X[7:].swapaxes(0, 1).astype(np.float32))
    assert held_out(0).weights.shape == (T, 3)
    history = training.fit(model, X, Y, epochs=2, validation=0.3)
    assert history.validations[-1][1] == pytest.approx(model.evaluate(X[7:], Y[7:]), rel=1e-6)


def test_a_fraction_of_windows_holds_out_the_last_steps():
    batches, held_out = batches_of(model_of(1, 1), np.arange(101.0), validation=0.2, window=10,
                                   batch_size=2)
    assert max(batch.inputs[0].max() for batch in batches) == 79
    assert held_out(0).inputs[0].min() == 80


@pytest.mark.parametrize("weighted", [False, True])
def test_validation_data_are_converted_like_the_others(weighted):
    model = model_of()
    w = (np.arange(3 * T).reshape(3, T) % 2).tolist()
    given = (X[:3].tolist(), Y[:3].tolist(), *([w] if weighted else []))
    history = training.fit(model, X, Y, epochs=3, validation=given)
    assert [step for step, _ in history.validations] == [1, 2, 3]
    expected = model.evaluate(X[:3], Y[:3], weights=np.array(w) if weighted else None)
    assert history.validations[-1][1] == pytest.approx(expected, rel=1e-6)
    forecast = model_of(1, 1)
    history = training.fit(forecast, X[..., 0], epochs=1, validation=(X[:3, :, 0], None))
    assert history.validations[0][1] == pytest.approx(forecast.evaluate(X[:3, :, 0]), rel=1e-6)


# ------------------------------------------------------------------------------------- errors


def bad(place, value=np.nan, of=X):
    a = of.copy()
    a[place] = value
    return a


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "match"),
    [
        (None, Y, {}, TypeError, "x is None"),
        ("text", Y, {}, TypeError, "x is text, expected numbers"),
        (3, Y, {}, ValueError, r"x has shape \(\), expected \(N, T, 3\)"),
        (X[..., :2], Y, {}, ValueError, r"x has shape \(10, 6, 2\), expected \(N, T, 3\), or one"),
        (X, Y[:9], {}, ValueError, r"y has shape \(9, 6, 2\), expected \(10, 6, 2\)"),
        (X, Y[:, 0], {}, ValueError, r"y has shape \(10, 2\), expected \(10, 6, 2\): 2 numb"),
        (X, None, {}, ValueError, "y is None for a model with 2 outputs of loss 'mse'"),
        ([*X[:2], X[2, :4]], Y[:3], {}, TypeError, "y is of type ndarray, expected a list like x"),
        (X, [["a"]], {}, TypeError, "y has dtype <U1, expected numbers"),
        (np.array([[object()]]), Y, {}, TypeError, "x has dtype object"),
        (bad((4, 2, 1)), Y, {}, ValueError, r"x\[4, 2, 1\] is nan, expected finite numbers"),
        (bad((4, 2, 1), 1e300), Y, {}, ValueError, r"x\[4, 2, 1\] is 1e\+300, expected finite"),
        (X, bad((4, 2, 1), of=Y), {}, ValueError, r"y\[4, 2, 1\] is nan, expected finite numbers"),
        (np.ma.masked_less(X, 0), Y, {}, TypeError, "x is a masked array with masked places"),
        (X[:0], Y[:0], {}, ValueError, "x has 0 sequences of 6 steps, expected at least one"),
        (X[:, :0], Y[:, :0], {}, ValueError, "x has 10 sequences of 0 steps"),
        (X, Y, {"weights": np.ones(3)}, ValueError, r"weights has shape \(3,\), expected \(10, 6"),
        (X, Y, {"context": np.ones((N, 1))}, ValueError, "context is given, expected none"),
        (X, Y, {"validation": 0.05}, ValueError, "validation is 0.05 of 10 sequences, expected"),
        (X, Y, {"validation": 1.0}, ValueError, "validation is 1.0, expected a number above 0"),
        (X, Y, {"validation": True}, ValueError, "validation is True, expected a number above"),
        (X, Y, {"validation": X}, TypeError, "validation is .*, expected \\(x, y\\)"),
        (X, Y, {"validation": (X, Y[:2])}, ValueError, r"validation: y has shape \(2, 6, 2\)"),
        (X, Y, {"validation": (X, Y, np.ones(2))}, ValueError, "validation: weights has shape"),
        (X, Y, {"validation": (X[:0], Y[:0])}, ValueError, "validation: x has 0 sequences"),
    ], ids=range(25))
def test_errors_of_arrays(x, y, options, error, match):
    model = model_of()
    before = values(model)
    with pytest.raises(error, match=rf"^fit: {match}") as raised:
        training.fit(model, x, y, steps=1, **options)
    assert "\n" not in str(raised.value)
    np.testing.assert_array_equal(values(model), before)


def test_errors_of_models_for_arrays():
    pair = EncoderDecoder(Stack(GRU(1, 4)), SequenceModel(GRU(1, 4), 1, loss="mse"))
    with pytest.raises(TypeError, match="x is of type ndarray for a model of type EncoderDecoder, "
                       "expected a function of the step"):
        training.fit(pair, X, Y, steps=1)
    last = model_of(readout="last")
    with pytest.raises(ValueError, match="window is 3 with one target a sequence, expected a targ"):
        training.fit(last, X, Y[:, 0], steps=1, window=3)
    with pytest.raises(ValueError, match="y is None with readout 'last'"):
        training.fit(last, X, steps=1)
    with pytest.raises(ValueError, match="window is 3 with a context"):
        training.fit(model_of(context_size=1), X, Y, steps=1, window=3, context=np.ones((N, 1)))
    symbols = SequenceModel(GRU(4, 5), 7, vocab_size=7)
    with pytest.raises(IndexError, match="fit: x has numbers from 7 to 7, expected 0 to 6"):
        training.fit(symbols, np.full((N, T), 7), steps=1)
    with pytest.raises(IndexError, match="fit: validation: x has numbers from 7 to 7"):
        training.fit(symbols, np.zeros((N, T), int), steps=1,
                     validation=(np.full((N, T), 7), None))


def test_padding_of_weight_0_may_be_anything():
    """Labels and numbers of weight 0 are left out, whatever they are: also NaN and -1."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 5, 3))
    weights = np.ones((6, 5), bool)
    weights[:, 3:] = False
    for loss, y, bad in (("mse", rng.standard_normal((6, 5, 2)), np.nan),
                         ("softmax", rng.integers(0, 2, (6, 5)), -1)):
        found = []
        for filler in (0, bad):
            padded = y.astype(float) if loss == "mse" else y.copy()
            padded[:, 3:] = filler
            model = fastrnn.SequenceModel(fastrnn.GRU(3, 4, seed=0), 2, loss=loss, seed=1)
            fastrnn.fit(model, x, padded, epochs=2, weights=weights, progress=False)
            found.append(model.state_dict())
        for name, a in found[0].items():
            assert np.array_equal(a, found[1][name]), (loss, name)


@pytest.mark.parametrize(("options", "match"), [
    ({"weights": np.zeros((6, 4))}, "weights is 0 everywhere, expected at least one above 0"),
    ({"weights": np.zeros(6, bool)}, "weights is 0 everywhere"),
    ({"shuffle": "no"}, "shuffle is 'no', expected True or False"),
    ({"overwrite": "no", "folder": "f"}, "overwrite is 'no', expected True or False"),
])
def test_a_training_on_nothing_or_with_a_word_for_a_flag_is_refused(options, match):
    model = fastrnn.SequenceModel(fastrnn.GRU(3, 4, seed=0), 2, seed=0)
    x, y = np.zeros((6, 4, 3)), np.zeros((6, 4), int)
    with pytest.raises((ValueError, TypeError), match=f"fit: {match}"):
        fastrnn.fit(model, x, y, steps=1, progress=False, **options)
    with pytest.raises(ValueError, match="fit: y is -100 everywhere"):
        fastrnn.fit(model, x, y - 100, steps=1, progress=False)


@pytest.mark.parametrize(("schedule", "match"), [
    (lambda step: 1.0, "schedule does not take two arguments, expected a function of the step and"),
    (lambda step, done: None, "schedule returned None, expected a number of at least 0"),
    (lambda step, done: "fast", "schedule returned 'fast'"),
    (lambda step, done: float("nan"), "schedule returned nan"),
    (lambda step, done: -1, "schedule returned -1"),
])
def test_a_schedule_that_gives_no_factor_is_named(schedule, match):
    model = fastrnn.SequenceModel(fastrnn.GRU(3, 4, seed=0), 2, seed=0)
    before = model.state_dict()
    with pytest.raises((TypeError, ValueError), match=f"fit: {match}"):
        fastrnn.fit(model, np.zeros((6, 4, 3)), np.zeros((6, 4), int), steps=2, progress=False,
                    schedule=schedule)
    assert all((a == before[name]).all() for name, a in model.parameters().items())


def test_a_mask_of_booleans_in_any_form_is_weights():
    x, y = np.zeros((5, 6, 2), "f"), np.zeros((5, 6), int)
    mask = np.random.default_rng(0).random((5, 6)) < 0.5
    Samples = training.Samples
    expected = Samples(x, y, 2, weights=mask.astype("f"))(1).weights
    for form in (mask, mask.tolist(), [list(row) for row in mask]):
        np.testing.assert_array_equal(Samples(x, y, 2, weights=form)(1).weights, expected)
    with pytest.raises(TypeError, match="targets is bool, expected numbers"):
        Samples(x, mask, 2)


@pytest.mark.parametrize("weights", [
    [np.float32(1), np.array(0)], [np.array(1), np.array(0)], (1, np.array(0.0))])
def test_one_weight_for_each_sequence_may_be_arrays_of_no_axis(weights):
    model = fastrnn.SequenceModel(fastrnn.GRU(2, 4, seed=0), 3, seed=0)
    x, y = [np.zeros((5, 2)), np.ones((3, 2))], [np.zeros(5, int), np.zeros(3, int)]
    assert model.evaluate(x, y, weights=weights) == model.evaluate(x, y, weights=[1, 0])
