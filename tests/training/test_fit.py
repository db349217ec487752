"""The training loop: resuming, stopping, judging, and what it refuses."""

import contextlib
import dataclasses
import re
import signal

import numpy as np
import pytest

import fastrnn
from fastrnn import GRU, LSTM, RNN, files, optim, training
from fastrnn.batches import Batch, Drawn, Samples, Windows
from fastrnn.encoder_decoder import EncoderDecoder
from fastrnn.model import SequenceModel
from fastrnn.schedules import cosine
from fastrnn.stack import Stack


def sine(n=400):
    return np.sin(np.arange(n) / 5).astype(np.float32)[:, None]


def model_of(seed=0, **options):
    return SequenceModel([LSTM(1, 8, 2, dropout=0.3, seed=seed), GRU(8, 4, seed=seed)], 1,
                         loss="mse", seed=seed, **options)


def run(folder=None, steps=30, make=model_of, **options):
    model = make()
    optimizer = optim.Adam(model, 1e-2)
    history = training.fit(model, Windows(sine(), 7, 3), optimizer, steps=steps, folder=folder,
                           schedule=cosine(), **options)
    return model, optimizer, history


def state_of(model, optimizer, history):
    kept = dataclasses.asdict(history) | {"progress": None}
    return (model.flat.tobytes(), [layer.masks for layer in model.layers], optimizer.steps,
            [a.tobytes() for a in optimizer.state_dict().values()], kept)


# --------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("stop", [1, 10, 19])
def test_a_resumed_run_is_bitwise_one_that_never_stopped(tmp_path, stop):
    whole = run()

    def halt(now):
        if now.steps == stop:
            signal.raise_signal(signal.SIGINT)

    half = run(tmp_path, progress=halt)
    assert half[2].stopped == "interrupted"
    assert len(half[2].losses) == stop
    rest = run(tmp_path, resume=True)
    assert state_of(*rest) == state_of(*whole)
    assert rest[2].progress.seen == whole[2].progress.seen
    assert files.load_model(tmp_path / "latest.safetensors").flat.tobytes() == \
        whole[0].flat.tobytes()


def test_a_run_resumes_from_its_last_save_after_a_crash(tmp_path):
    def crash(now):
        if now.steps == 17:
            raise OSError("the lights went out")

    with pytest.raises(OSError, match="lights"):
        run(tmp_path, save_every=5, progress=crash)
    assert state_of(*run(tmp_path, resume=True)) == state_of(*run())


def test_results_are_the_same_bits_on_any_number_of_threads():
    threads, results = fastrnn.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            fastrnn.set_num_threads(n)
            results.append(run(segment=3)[0].flat.tobytes())
    finally:
        fastrnn.set_num_threads(threads)
    assert results[0] == results[1] == results[2]


def test_the_state_is_carried_from_window_to_window():
    model, data = model_of(), Windows(sine(), 7, 3)
    seen = []

    class Spy:
        layers, loss_of = model.layers, model.loss

        def __getattr__(self, name):
            return getattr(model, name)

        def loss(self, x, targets, state=None, **options):
            seen.append(state)
            value, after = model.loss(x, targets, state, **options)
            seen.append(after)
            return value, after

    spy = Spy()
    optimizer = optim.SGD(model, 1e-3)
    optimizer.target = spy
    training.fit(spy, data, optimizer, steps=2 * data.count + 1)
    before, after = seen[::2], seen[1::2]
    for k in range(1, len(before)):
        assert before[k] is (None if k % data.count == 0 else after[k - 1])


# --------------------------------------------------------------------- validation and stopping


def test_the_best_model_is_kept_and_patience_ends_the_run(tmp_path):
    judged = iter([3.0, 2.0, 2.5, 2.0, 2.25, 9.0])
    model = model_of()
    weights = []

    def validate():
        weights.append(model.flat.copy())
        return next(judged)

    history = training.fit(model, Windows(sine(), 7, 3), optim.Adam(model, 1e-2), steps=100,
                           validate=validate, validate_every=4, patience=3, folder=tmp_path)
    assert history.validations == [(4, 3.0), (8, 2.0), (12, 2.5), (16, 2.0), (20, 2.25)]
    assert history.stopped == "patience"
    best = files.load_model(tmp_path / "best.safetensors")
    np.testing.assert_array_equal(best.flat, weights[1])
    np.testing.assert_array_equal(files.load_model(tmp_path / "latest.safetensors").flat,
                                  weights[-1])


def test_a_run_ends_when_a_validation_is_below_the_target(tmp_path):
    judged = iter([3.0, 1.0, 0.9, 0.0])
    model = model_of()
    history = training.fit(model, Windows(sine(), 7, 3), optim.Adam(model, 1e-2), steps=100,
                           validate=lambda: next(judged), validate_every=4, target=1.0,
                           folder=tmp_path)
    assert history.validations == [(4, 3.0), (8, 1.0), (12, 0.9)]
    assert history.stopped == "target"
    assert files.load_model(tmp_path / "latest.safetensors").flat.tobytes() == model.flat.tobytes()


def test_a_schedule_leaves_the_optimizer_its_own_rate_also_after_an_error():
    def fail(now):
        if now.steps == 6:
            raise OSError("full")

    model = model_of()
    optimizer = optim.SGD(model, 0.1)
    for options in ({}, {"progress": fail}):
        with pytest.raises(OSError, match="full") if options else contextlib.nullcontext():
            training.fit(model, Windows(sine(), 7, 3), optimizer, steps=8, schedule=cosine(),
                         **options)
        assert optimizer.lr == 0.1


def test_a_progress_bar_tells_loss_and_speed(capsys):
    run(steps=3, progress=True)
    assert re.search(r"100%\|.*\| loss [\d.]+, [\d,]+/s \[", capsys.readouterr().err)
    run(steps=3)
    assert capsys.readouterr().err == ""


def test_the_history_tells_what_happened():
    model = model_of()
    history = training.fit(model, Windows(sine(), 7, 3), optim.SGD(model, 0.1), steps=20, clip=0.2,
                           schedule=cosine(final=0.1), validate=lambda: 1.0, validate_every=8)
    assert len(history.losses) == len(history.norms) == len(history.rates) == 20
    assert history.rates[0] == 0.1
    assert history.clipped == [i + 1 for i, norm in enumerate(history.norms) if norm > 0.2]
    assert 0 < len(history.clipped) < 20
    assert [step for step, _ in history.validations] == [8, 16, 20]
    assert history.progress.loss == pytest.approx(np.mean(history.losses))


def test_judging_is_the_mean_loss_and_changes_nothing():
    model, data = model_of(), Windows(sine(), 7, 3)
    flat, state, losses = model.flat.copy(), None, []
    model.eval()
    for k in range(5):
        batch = data(k)
        loss, state = model.loss(*batch.inputs, batch.targets, state)
        losses.append(loss)
    model.train()
    assert training.judge(model, data, 5) == pytest.approx(np.mean(losses))
    assert model.training
    np.testing.assert_array_equal(model.flat, flat)


# ------------------------------------------------------------------------------------- batches


def test_samples_are_all_read_once_a_pass_in_a_new_order():
    x = np.arange(5 * 7).reshape(5, 7, 1)
    data = Samples(x, np.arange(7), 2, axis=0, weights=np.arange(7) / 7, seed=1)
    passes = []
    for turn in range(2):
        read = [data(turn * 3 + k) for k in range(3)]
        for batch in read:
            (columns,) = batch.inputs
            np.testing.assert_array_equal(columns[0, :, 0], batch.targets)
            np.testing.assert_array_equal(batch.weights, batch.targets / 7)
            assert batch.first
            assert batch.size == 2
        passes.append(np.concatenate([batch.targets for batch in read]))
        assert len(set(passes[-1].tolist())) == 6
    assert passes[0].tolist() != passes[1].tolist()
    np.testing.assert_array_equal(data(4).targets, passes[1][2:4])


def test_drawn_batches_depend_on_seed_and_step_alone():
    def draw(rng):
        return Batch((rng.standard_normal((3, 2, 1)),), rng.standard_normal((3, 2, 1)))

    a, b, c = Drawn(draw, 1), Drawn(draw, 1), Drawn(draw, 2)
    np.testing.assert_array_equal(a(5).targets, b(5).targets)
    assert not np.array_equal(a(5).targets, a(6).targets)
    assert not np.array_equal(a(5).targets, c(5).targets)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Windows(sine(10), 4, 3), "has 10 elements, expected at least 13 for 3 rows of 4"),
        (lambda: Windows(sine(10), 0, 3), "T is 0"),
        (lambda: Samples(np.zeros((5, 3, 1)), np.zeros(3), 4, axis=0), "x has 3 sequences"),
        (lambda: Samples(np.zeros((5, 3, 1)), np.zeros((5, 4)), 2), "targets has 4 sequences"),
    ],
)
def test_errors_of_batches(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# ------------------------------------------------------------------------- other kinds of model


def test_a_vector_and_an_encoder_train():
    model = SequenceModel(GRU(1, 8, seed=0), 1, loss="mse", vector_size=2, seed=0)

    def draw(rng):
        speed = rng.uniform(0.1, 0.5, (4, 2)).astype(np.float32)
        y = np.sin(np.arange(9, dtype=np.float32)[:, None] * speed[:, 0])[..., None]
        return Batch((y[:-1],), y[1:], vector=speed)

    history = training.fit(model, Drawn(draw), optim.Adam(model, 1e-2), steps=200)
    assert np.mean(history.losses[-20:]) < 0.2 * history.losses[0]

    pair = EncoderDecoder(Stack(GRU(4, 16, seed=0), symbols=5, seed=0),
                          SequenceModel(GRU(4, 16, seed=1), 5, symbols=5, seed=1))

    def reverse(rng):
        source = rng.integers(1, 5, (3, 8))
        target = source[::-1]
        return Batch((source, np.concatenate([np.zeros((1, 8), int), target[:-1]])), target)

    history = training.fit(pair, Drawn(reverse), optim.Adam(pair, 1e-2), steps=300)
    assert np.mean(history.losses[-20:]) < 0.2 * history.losses[0]
    batch = Drawn(reverse)(1000)
    written = pair.generate(batch.inputs[0], np.zeros(8, int), 3)
    assert (written == batch.targets).mean() > 0.9


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "steps is None and minutes is None, expected one of them"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1, "clip": -1}, "clip is -1"),
        ({"steps": 1, "clip_value": 0}, "clip_value is 0"),
        ({"steps": 1, "patience": 2}, "patience is given without validate"),
        ({"steps": 1, "target": 2.0}, "target is given without validate"),
        ({"steps": 1, "target": "low", "validate": float}, "target is 'low', expected a number"),
        ({"steps": 1, "validate_every": 0}, "validate_every is 0"),
        ({"steps": 1, "save_every": 0}, "save_every is 0"),
        ({"steps": 1, "segment": 0}, "segment is 0"),
    ],
)
def test_errors_of_fit(options, match):
    model = model_of()
    before = model.flat.copy()
    with pytest.raises(ValueError, match=match):
        training.fit(model, Windows(sine(), 7, 3), optim.Adam(model), **options)
    np.testing.assert_array_equal(model.flat, before)


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="optimizer is of another model"):
        training.fit(model_of(), Windows(sine(), 7, 3), optim.Adam(model_of()), steps=1)


@pytest.mark.parametrize("what", ["loss", "gradients"])
def test_numbers_that_are_not_finite_stop_the_run_and_keep_the_files(tmp_path, what):
    def make():
        return SequenceModel([RNN(1, 4, nonlinearity="relu", seed=0), LSTM(4, 4, seed=0)], 1,
                             loss="mse", seed=0)

    run(tmp_path, 6, make, save_every=3)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    model = make()
    place = model.parameters()["layers.0.weight_hh_l0"]
    place[...] = np.nan if what == "loss" else np.inf
    if what == "gradients":
        place[...] = 3e12  # finite after 7 steps, but its gradient is not
    match = ("the loss is nan at step 1, first in parameter layers.0.weight_hh_l0"
             if what == "loss" else r"(loss|norm) is .* at step 1, first in")
    flat = model.flat.copy()
    with pytest.raises(FloatingPointError, match=match):
        training.fit(model, Windows(sine(), 7, 3), optim.Adam(model), steps=9, folder=tmp_path)
    np.testing.assert_array_equal(model.flat, flat)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("make", "optimizer", "match"),
    [
        (lambda: SequenceModel(LSTM(1, 8), 1, loss="mse"), optim.Adam, "of another model"),
        (model_of, optim.SGD, "of another optimizer"),
        (model_of, lambda m, lr: optim.Adam(m, 2 * lr), "of another optimizer"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, make, optimizer, match):
    run(tmp_path, 3)
    model = make()
    before = model.flat.copy()
    with pytest.raises(ValueError, match=match) as raised:
        training.fit(model, Windows(sine(), 7, 3), optimizer(model, 1e-2), steps=9,
                     folder=tmp_path, resume=True)
    assert "\n" not in str(raised.value)
    np.testing.assert_array_equal(model.flat, before)


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path):
    run(tmp_path, 3)
    path = tmp_path / "latest.safetensors"
    data = path.read_bytes()
    for n in range(0, len(data), 997):
        path.write_bytes(data[:n])
        with pytest.raises(ValueError, match="is not a"):
            run(tmp_path, 9, resume=True)
