"""fit on sequences of different lengths: batches, windows, episodes, and what a run is then."""

import dataclasses

import numpy as np
import pytest
from runs import values

from fastrnn import GRU, LSTM, set_num_threads, training
from fastrnn.models import EncoderDecoder, SequenceModel, Stack
from fastrnn.training import Batch, Samples
from fastrnn.training import arrays as reading_arrays
from fastrnn.training.data import SeriesWindows
from fastrnn.training.options import Reading

LENGTHS = (5, 0, 9, 2, 9, 1, 7, 4)
RNG = np.random.default_rng(0)
X = [RNG.standard_normal((n, 3)).astype(np.float32) for n in LENGTHS]
Y = [RNG.standard_normal((n, 2)).astype(np.float32) for n in LENGTHS]
W = [RNG.random(n) for n in LENGTHS]
START = [RNG.random(n) < 0.3 for n in LENGTHS]
CLASSES = RNG.integers(0, 4, len(LENGTHS))


def model_of(outputs=2, loss="mse", readout="every", dropout=0.0, **options):
    return SequenceModel(LSTM(3, 6, 2, dropout=dropout, seed=0), outputs, loss=loss,
                         readout=readout, seed=1, **options)


def fitted(model, *args, **options):
    history = training.fit(model, *args, **({"epochs": 3, "batch_size": 3} | options))
    return history, values(model)


def batches_of(model, x, y, **options):
    data, _ = reading_arrays.read(model, x, y, Reading(**options), None)
    return [data(k) for k in range(data.count)]


def padded(arrays, T=None):
    """Return arrays (T_i, ...) as one (N, T, ...) with zeros behind."""
    T = T or max(map(len, arrays))
    made = np.zeros((len(arrays), T, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, a in zip(made, arrays, strict=True):
        row[: len(a)] = a
    return made


# ------------------------------------------------------------------------------- batches


def test_every_sequence_is_read_once_an_epoch():
    found = batches_of(model_of(), X, Y, weights=W, episode_start=START, batch_size=3)
    assert [len(batch.inputs[0]) for batch in found] == [3, 3, 2]
    assert sum(batch.size for batch in found) == sum(LENGTHS)
    order = np.random.default_rng([0, 0]).permutation(len(X))
    rows = [row for batch in found for row in zip(*batch.inputs, batch.targets, batch.weights,
                                                  batch.episode_start, strict=True)]
    for i, row in zip(order, rows, strict=True):
        for got, expected in zip(row, (X[i], Y[i], W[i], START[i]), strict=True):
            np.testing.assert_array_equal(got, expected)
    assert all(batch.first for batch in found)


def test_a_step_of_training_is_that_of_the_padded_batch():
    expected = fitted(model_of(), padded(X), padded(Y), optimizer="sgd", lr=0.1, shuffle=False,
                      weights=padded([np.ones(n) for n in LENGTHS]))
    found = fitted(model_of(), X, Y, optimizer="sgd", lr=0.1, shuffle=False)
    np.testing.assert_allclose(found[0].losses, expected[0].losses, rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-5)
    assert found[0].progress.seen == 3 * sum(LENGTHS)


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_those_of_lists_drawn_by_hand(shuffle):
    model = model_of()
    order = [np.random.default_rng([7, epoch]).permutation(len(X)) if shuffle else
             np.arange(len(X)) for epoch in range(2)]

    def batch(step):
        own = order[step // 3][step % 3 * 3 : step % 3 * 3 + 3]
        return Batch([X[i] for i in own], [Y[i] for i in own])

    expected, by_hand = fitted(model, batch, steps=6, epochs=None)
    history, found = fitted(model_of(), X, Y, epochs=2, shuffle=shuffle, seed=7)
    assert history.losses == expected.losses
    assert found.tobytes() == by_hand.tobytes()


def test_one_target_a_sequence_contexts_and_weights():
    options = {"readout": "last", "loss": "softmax", "outputs": 4, "context_size": 2}
    context = RNG.standard_normal((len(X), 2))
    weights = RNG.random(len(X))
    history, found = fitted(model_of(**options), X, CLASSES, weights=weights, context=context,
                            shuffle=False)
    model = model_of(**options)

    def batch(step):
        own = slice(step % 3 * 3, step % 3 * 3 + 3)
        return Batch(X[own], CLASSES[own], weights[own], context[own].astype(np.float32))

    expected, by_hand = fitted(model, batch, steps=9, epochs=None)
    assert history.losses == expected.losses
    assert found.tobytes() == by_hand.tobytes()


def test_a_weight_for_each_sequence_is_one_for_all_its_steps():
    each = np.linspace(0.1, 1, len(X))
    spread = [np.full(n, w) for n, w in zip(LENGTHS, each, strict=True)]
    assert fitted(model_of(), X, Y, weights=each)[1].tobytes() == fitted(
        model_of(), X, Y, weights=spread)[1].tobytes()


def test_without_targets_the_next_step_is_one():
    model = model_of(outputs=3)
    found = fitted(model_of(outputs=3), X)[1]
    expected = fitted(model, [a[:-1] for a in X], [a[1:] for a in X])[1]
    assert found.tobytes() == expected.tobytes()


def test_validation_on_lists():
    model = model_of()
    history, _ = fitted(model, X, Y, validation=(X[:3], Y[:3]))
    assert history.validations[-1][1] == pytest.approx(model.evaluate(X[:3], Y[:3]), rel=1e-5)
    history, _ = fitted(model, X, Y, validation=(X[:3], Y[:3], W[:3]))
    assert history.validations[-1][1] == pytest.approx(
        model.evaluate(X[:3], Y[:3], weights=W[:3]), rel=1e-5)
    history, found = fitted(model_of(), X, Y, validation=0.25, shuffle=False)
    expected, without = fitted(model_of(), X[:6], Y[:6], shuffle=False)
    assert history.losses == expected.losses
    assert found.tobytes() == without.tobytes()


def test_an_encoder_decoder_reads_lists():
    def pair():
        return EncoderDecoder(Stack(GRU(3, 4, seed=0)),
                              SequenceModel(GRU(2, 4, seed=1), 2, loss="mse", seed=0))

    model, seen = pair(), []
    history = training.fit(model, lambda step: Batch((X, Y), Y), steps=2, lr=0.1,
                           progress=lambda now: seen.append(now.seen))
    assert seen == [2 * sum(LENGTHS), 4 * sum(LENGTHS)]
    total = sum(p.value * p.weight for p in (
        pair().loss(x[:, None], y[:, None], y[:, None]) for x, y in zip(X, Y, strict=True)))
    assert history.losses[0] == pytest.approx(total / sum(LENGTHS), rel=1e-5)
    assert history.losses[1] < history.losses[0]


# ------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("window", [2, 4, 100])
def test_windows_carry_the_state_of_series_that_go_on(window):
    model = model_of()
    found = batches_of(model, X, Y, window=window, batch_size=3)
    groups = [range(3), range(3, 6), range(6, 8)]
    expected = [(group, t) for group in groups
                for t in range(0, max(LENGTHS[i] for i in group), window)]
    assert len(found) == len(expected)
    state = None
    for batch, (group, t) in zip(found, expected, strict=True):
        assert batch.first == (t == 0)
        for a, b, i in zip(*batch.inputs, batch.targets, group, strict=True):
            np.testing.assert_array_equal(a, X[i][t : t + window])
            np.testing.assert_array_equal(b, Y[i][t : t + window])
        _, state = model(*batch.inputs, None if batch.first else state)
    _, whole = model(X[6:])  # the last group's
    for got, of in zip(state[0], whole[0], strict=True):
        np.testing.assert_array_equal(got, of)


def test_training_in_windows_is_that_of_batches_made_by_hand():
    def batch(step):
        (start, stop), t = (((0, 4), 0), ((0, 4), 5), ((4, 8), 0), ((4, 8), 5))[step % 4]
        x, y, start_flags = ([a[t : t + 5] for a in of[start:stop]] for of in (X, Y, START))
        return Batch(x, y, first=t == 0, episode_start=start_flags)

    expected, by_hand = fitted(model_of(dropout=0.4), batch, steps=8, epochs=None)
    history, found = fitted(model_of(dropout=0.4), X, Y, window=5, batch_size=4, epochs=2,
                            episode_start=START)
    assert history.losses == expected.losses
    assert found.tobytes() == by_hand.tobytes()
    assert history.progress.seen == 2 * sum(LENGTHS)


def test_a_fraction_holds_out_the_last_steps_of_each_series():
    _, source = reading_arrays.read(model_of(), X, Y, Reading(window=4, batch_size=8), 0.25)
    held_out = [sum(len(batch.inputs[0][i]) for batch in map(source, range(source.count)))
                for i in range(len(X))]
    assert held_out == [n // 4 for n in LENGTHS]


def test_series_that_have_ended_leave_the_state_alone():
    data = SeriesWindows([np.ones((n, 3), np.float32) for n in (7, 2)], 3, 2,
                         [np.zeros((n, 2), np.float32) for n in (7, 2)])
    model = model_of()
    assert data.count == 3
    assert [[len(a) for a in data(k).inputs[0]] for k in range(4)] == [[3, 2], [3, 0], [1, 0],
                                                                      [3, 2]]
    state = model(*data(0).inputs)[1]
    after = model(*data(1).inputs, state)[1]
    for a, b in zip(state[0], after[0], strict=True):
        np.testing.assert_array_equal(a[:, 1], b[:, 1])
        assert (a[:, 0] != b[:, 0]).any()


# ------------------------------------------------------------------------------- episodes


@pytest.mark.parametrize("window", [None, 3])
def test_episodes_inside_arrays(window):
    x, y = padded(X[2:5:2]), padded(Y[2:5:2])  # two of nine steps
    flags = np.stack([START[2], START[4]])
    found = batches_of(model_of(), x, y, window=window, episode_start=flags, shuffle=False)
    np.testing.assert_array_equal(np.concatenate([b.episode_start for b in found]).T, flags)
    as_list = fitted(model_of(), list(x), list(y), episode_start=list(flags), window=window)
    as_array = fitted(model_of(), x, y, episode_start=flags, window=window)
    assert as_list[1].tobytes() == as_array[1].tobytes()
    assert as_array[1].tobytes() != fitted(model_of(), x, y, window=window)[1].tobytes()


def test_one_series_is_cut_into_rows_with_its_episodes():
    x, y = RNG.standard_normal((24, 3)), RNG.standard_normal((24, 2))
    flags = RNG.random(24) < 0.3
    (first, *_) = batches_of(model_of(), x, y, window=6, batch_size=2, episode_start=flags)
    np.testing.assert_array_equal(first.episode_start, flags.reshape(2, 12).T[:6])


def test_episodes_without_targets_end_before_the_next_one():
    x = RNG.standard_normal((2, 6, 3))
    flags = np.zeros((2, 6), bool)
    flags[0, 3] = True
    history, _ = fitted(model_of(outputs=3), x, epochs=1, episode_start=flags)
    parts = [x[0, :3], x[0, 3:], x[1]]
    assert history.losses[0] == pytest.approx(model_of(outputs=3).evaluate(parts), rel=1e-5)


# ------------------------------------------------------------------------------- the run


OPTIONS = {
    "batches": {"episode_start": START, "weights": W},
    "windows": {"window": 4, "episode_start": START},
    "checkpointed": {"recompute_every": 3},
    "validated": {"validation": (X[:4], Y[:4]), "validate_every": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_that_was_stopped_goes_on_bitwise(name, tmp_path):
    def state(history, found):
        return dataclasses.asdict(history) | {"progress": None}, found.tobytes()

    whole = fitted(model_of(dropout=0.4), X, Y, steps=9, epochs=None, **OPTIONS[name])
    again = {"folder": tmp_path, "epochs": None, **OPTIONS[name]}
    fitted(model_of(dropout=0.4), X, Y, steps=4, **again)
    resumed = fitted(model_of(dropout=0.4), X, Y, steps=9, resume=True, **again)
    assert state(*resumed)[1] == state(*whole)[1]
    assert resumed[0].losses == whole[0].losses


@pytest.mark.parametrize("window", [None, 4])
def test_a_run_does_not_go_on_with_other_lists(window, tmp_path):
    def regrouped(arrays):  # the same steps, in sequences of other lengths
        return np.split(np.concatenate(arrays), np.cumsum(LENGTHS[::-1])[:-1])

    options = {"folder": tmp_path, "window": window, "epochs": None}
    fitted(model_of(), X, Y, steps=2, episode_start=START, **options)
    moved = [a[::-1] for a in X]
    flags = [~a for a in START]
    for x, y, start in ((moved, Y, START), (X, Y, flags), (X, Y, None), (X[1:], Y[1:], START[1:]),
                        map(regrouped, (X, Y, START))):
        with pytest.raises(ValueError, match="data"):
            fitted(model_of(), x, y, steps=3, episode_start=start, resume=True, **options)


@pytest.mark.parametrize("window", [None, 4])
def test_threads_change_no_bit(window, threads):
    found = []
    for count in threads[:2]:
        set_num_threads(count)
        found.append(fitted(model_of(dropout=0.3), X, Y, window=window)[1].tobytes())
    assert found[0] == found[1]


def test_what_is_not_finite_is_named_in_its_sequence():
    for what, place in (("inputs", r"\[2, 4, 1\]"), ("targets", r"\[2, 4, 1\]")):
        x, y = [a.copy() for a in X], [a.copy() for a in Y]
        (x if what == "inputs" else y)[2][4, 1] = np.nan
        model = model_of()
        before = values(model)
        match = f"the {what} of this step have NaN at {place}"
        with pytest.raises(FloatingPointError, match=match):
            training.fit(model, lambda step, x=x, y=y: Batch(x, y), steps=1)
        np.testing.assert_array_equal(values(model), before)
    y[2][4, 1] = np.nan
    weights = [np.ones(n) for n in LENGTHS]
    weights[2][4] = 0
    training.fit(model, lambda step: Batch(X, y, weights), steps=1)  # nobody counts it
    model.parameters()["layers.0.weight_ih_l0"][0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="the parameter layers"):
        training.fit(model, lambda step: Batch(X, y, weights), steps=1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: training.fit(m, [], [], steps=1), ValueError, "fit: x is an empty list"),
        (lambda m: training.fit(m, [X[1], X[1]], [Y[1], Y[1]], steps=1), ValueError,
         "x has 2 sequences of 0 steps, expected at least one"),
        (lambda m: training.fit(m, X, Y[:3], steps=1), ValueError,
         "y has 3 sequences, expected 8: as many as x"),
        (lambda m: training.fit(m, X, [*Y[:7], Y[0]], steps=1), ValueError,
         r"y\[7\] has shape \(5, 2\), expected \(4, 2\)"),
        (lambda m: training.fit(m, [*X[:7], X[0][:, :2]], Y, steps=1), ValueError,
         r"x\[7\] has shape \(5, 2\), expected \(T, 3\)"),
        (lambda m: training.fit(m, [*X[:7], X[7].astype(int)], Y, steps=1), TypeError,
         r"x\[7\] is int64, expected float32 like x\[0\]"),
        (lambda m: training.fit(m, X, Y, steps=1, weights=[0 * w for w in W]), ValueError,
         "weights is 0 everywhere"),
        (lambda m: training.fit(m, X, Y, steps=1, episode_start=np.zeros((8, 9), bool)), TypeError,
         "episode_start is of type ndarray, expected a list like x"),
        (lambda m: training.fit(m, padded(X), padded(Y), steps=1, episode_start=START), ValueError,
         "episode_start is a ragged sequence, expected an array of booleans"),
        (lambda m: training.fit(m, padded(X), padded(Y), steps=1,
                                episode_start=np.zeros((9, 8), bool)), ValueError,
         r"episode_start has shape \(9, 8\), expected \(8, 9\)"),
        (lambda m: training.fit(m, lambda step: Batch(X, Y), steps=1, episode_start=START),
         ValueError, "episode_start is given with a function of the step, expected none"),
        (lambda m: training.fit(m, X, Y, steps=1, window=3, validation=0.05), ValueError,
         "validation is 0.05 of 9 steps, expected at least one"),
        (lambda m: training.fit(m, X, Y, steps=1, validation=(X, Y[1:])), ValueError,
         "validation: y has 7 sequences, expected 8"),
        (lambda m: Samples([], [], 2), ValueError, "Samples: x is an empty list"),
        (lambda m: Samples(X, Y[1:], 2), ValueError,
         "targets has 7 sequences, expected a list of 8"),
        (lambda m: Samples(X, np.zeros((9, 8)), 2), ValueError,
         "targets is of type ndarray, expected a list of 8 arrays like x"),
        (lambda m: Samples(X, X[::-1], 2), ValueError,
         r"targets\[0\] has shape \(4, 3\), expected 5 steps like x\[0\]"),
        (lambda m: Samples([X[0], Y[0]], X[:2], 2), ValueError,
         r"x\[1\] has shape \(5, 2\), expected \(T, 3\) like x\[0\]"),
        (lambda m: Samples([X[0], X[0].astype(float)], X[:2], 2), TypeError,
         r"x\[1\] is float64, expected float32 like x\[0\]"),
        (lambda m: Samples(X, Y, 2, episode_start=[np.zeros(n) for n in LENGTHS]), TypeError,
         r"episode_start\[0\] is float64, expected booleans"),
        (lambda m: Samples(np.zeros((4, 2, 3)), np.zeros((4, 2, 2)), 2,
                           episode_start=np.zeros((2, 4), bool)), ValueError,
         r"episode_start has shape \(2, 4\), expected \(4, 2\)"),
        (lambda m: SeriesWindows(X[0], 3, 2, Y[0]), TypeError,
         "x is of type ndarray, expected a list"),
        (lambda m: SeriesWindows(X[1:2], 3, 2, Y[1:2]), ValueError, "x has 1 series of no steps"),
        (lambda m: SeriesWindows(X, 0, 2, Y), ValueError, "T is 0, expected a whole number"),
    ],
)
def test_what_does_not_fit_is_one_sentence(call, error, message):
    model = model_of()
    before = values(model)
    with pytest.raises(error, match=message) as caught:
        call(model)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(values(model), before)


@pytest.mark.parametrize("readout", ["every", "last"])
def test_a_batch_of_empty_sequences_alone_is_computed(readout):
    """Which sequences meet in a batch is drawn: no draw ends the training."""
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((9, 1)) for _ in range(4)] + [np.zeros((0, 1))]
    y = rng.standard_normal((5, 1)) if readout == "last" else [a * 2 for a in x]
    model = SequenceModel(GRU(1, 4, seed=0), 1, loss="mse", readout=readout, seed=0)
    history = training.fit(model, x, y, batch_size=2, epochs=20, validation=(x, y))
    assert len(history.losses) == 60
    assert np.isfinite(history.losses).all()
    alone = training.fit(model, x[:4], y[:4], batch_size=2, steps=1, validation=(x[:4], y[:4]))
    assert history.validations[-1][1] != alone.validations[-1][1]
    nothing = [np.zeros((0, 1), "f")]
    with pytest.raises(ValueError, match="the batch of step 1 has no sequence with a step"):
        training.fit(model, lambda step: Batch(nothing, nothing), steps=1)
