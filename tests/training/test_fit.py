"""The training loop: steps, validation and stopping, history, and what it refuses."""

import contextlib
import dataclasses
import itertools
import math

import numpy as np
import pytest
from runs import model_of, run, sine, values

import fastrnn
from fastrnn import GRU, optim, training
from fastrnn.layers.parameters import distinct
from fastrnn.models import EncoderDecoder, SequenceModel, Stack
from fastrnn.schedules import CosineDecay
from fastrnn.training import Batch, Generated, Samples, Windows, options


def data_of(T=7, B=3):
    return Windows(sine(), T, B)


# ----------------------------------------------------------------------------------------- steps


def test_results_are_the_same_bits_on_any_number_of_threads(threads):
    results = set()
    for n in threads:
        fastrnn.set_num_threads(n)
        results.add(values(run(recompute_every=3)[0]).tobytes())
    assert len(results) == 1


def test_fit_is_the_bare_steps():
    fitted, _, history = run(steps=25, clip=0.5, clip_value=0.1)
    model = model_of()
    optimizer, data, schedule, state = optim.Adam(model, 1e-2), data_of(), CosineDecay(), None
    for k in range(25):
        batch = data(k)
        model.zero_grad()
        p = model.loss(*batch.inputs, batch.targets, None if batch.first else state)
        p.backward()
        optimizer.lr = 1e-2 * schedule(k, k / 25)
        assert optimizer.step(0.5, 0.1) == history.norms[k]
        assert p.value == history.losses[k]
        assert optimizer.lr == history.rates[k]
        state = p.state
    assert values(model).tobytes() == values(fitted).tobytes()


def test_the_state_is_carried_from_window_to_window(monkeypatch):
    model, data, seen = model_of(), data_of(), []
    loss = model.loss

    def spy(x, targets, state=None, **options):
        p = loss(x, targets, state, **options)
        seen.append((state, p.state))
        return p

    monkeypatch.setitem(model.__dict__, "loss", spy)
    training.fit(model, data, optim.SGD(model, 1e-3), steps=2 * data.count + 1)
    for k in range(1, len(seen)):
        assert seen[k][0] is (None if k % data.count == 0 else seen[k - 1][1])


@pytest.mark.parametrize("modes", ["training", "evaluation", "bfloat16", "mixed"])
def test_modes_are_left_as_they_were(modes, tmp_path):
    model = model_of()
    if modes != "training":
        model.eval("bfloat16" if modes == "bfloat16" else "float32")
    if modes == "mixed":
        model.layers[0].train()
    before = [part.mode for part in distinct(model)]
    flat = values(model)
    training.fit(model, data_of(), steps=3, validation=lambda: float(model.train(False).training),
                 validate_every=1, folder=tmp_path)
    assert [part.mode for part in distinct(model)] == before
    assert (values(model) != flat).any()
    with pytest.raises(FloatingPointError):
        training.fit(model, lambda step: Batch(np.full((2, 2, 1), np.nan, np.float32),
                                               np.zeros((2, 2, 1), np.float32)), steps=1)
    assert [part.mode for part in distinct(model)] == before


@pytest.mark.parametrize("mode", ["training", "float32", "bfloat16"])
def test_frozen_parts_may_be_in_evaluation_mode(mode):
    model = model_of()
    frozen = model.layers[0]
    if mode != "training":
        frozen.eval(mode)
    before, kept = values(model), frozen.flat.copy()
    training.fit(model, data_of(), optim.Adam(model, freeze=frozen), steps=3)
    np.testing.assert_array_equal(frozen.flat, kept)
    assert (values(model) != before).any()
    assert frozen.mode == {"float32": "evaluation"}.get(mode, mode)


@pytest.mark.parametrize("optimizer", ["adam", "AdamW", "sgd", "rmsprop", optim.SGD, optim.Adam])
def test_optimizers_by_name_and_class(optimizer):
    history = run(steps=3, optimizer=optimizer)[2]
    kind = optimizer if isinstance(optimizer, type) else optim.OPTIMIZERS[optimizer.lower()]
    assert history.rates[0] == kind(model_of()).lr
    model = model_of()
    assert training.fit(model, data_of(), steps=1, optimizer=optimizer, lr=0.5).rates == [0.5]


def test_lr_is_that_of_an_optimizer_that_is_given():
    model = model_of()
    optimizer = optim.Adam(model, 0.1)
    assert training.fit(model, data_of(), optimizer, steps=1).rates == [0.1]
    assert training.fit(model, data_of(), steps=1, optimizer=optimizer, lr=0.2).rates == [0.2]
    assert optimizer.steps == 2


def test_an_optimizer_of_some_parts_trains_these():
    model = model_of()
    before = model.state_dict()
    training.fit(model, data_of(), steps=2, optimizer=optim.SGD([model.head, model.layers[1]], 0.1))
    for name, p in model.parameters().items():
        assert (p != before[name]).any() == (not name.startswith("layers.0")), name


def test_a_schedule_leaves_the_optimizer_its_own_rate_also_after_an_error():
    def fail(now):
        if now.steps == 6:
            raise OSError("full")

    model = model_of()
    optimizer = optim.SGD(model, 0.1)
    for more in ({}, {"progress": fail}):
        with pytest.raises(OSError, match="full") if more else contextlib.nullcontext():
            training.fit(model, data_of(), optimizer, steps=8, schedule=CosineDecay(), **more)
        assert optimizer.lr == 0.1


def test_minutes_end_a_run_and_epochs_are_walks_over_the_data():
    model = model_of()
    history = training.fit(model, data_of(), minutes=0.003)
    assert history.progress.seconds >= 0.18
    assert history.progress.fraction == 1
    assert history.progress.steps > 1
    data = data_of()
    assert training.fit(model, data, epochs=2).progress.steps == 2 * data.count


# ------------------------------------------------------------------------- validation and stopping


def test_patience_ends_the_run_after_the_best(tmp_path):
    losses = iter([3.0, 2.0, 2.5, 2.0, 2.25, 9.0])
    model, flats = model_of(), []

    def validation():
        flats.append(values(model))
        return next(losses)

    history = training.fit(model, data_of(), optim.Adam(model, 1e-2), steps=100,
                           validation=validation, validate_every=4, patience=3, folder=tmp_path)
    assert history.validations == [(4, 3.0), (8, 2.0), (12, 2.5), (16, 2.0), (20, 2.25)]
    assert history.stopped == "patience"
    assert history.best == (8, 2.0)
    np.testing.assert_array_equal(values(fastrnn.load(tmp_path / "best.safetensors")), flats[1])
    np.testing.assert_array_equal(values(fastrnn.load(tmp_path / "latest.safetensors")), flats[-1])


def test_a_validation_that_is_nan_is_never_the_best(tmp_path):
    losses = iter([math.nan, 3.0, math.nan, 2.0, math.nan, math.nan])
    history = run(tmp_path, 100, validation=lambda: next(losses), validate_every=1, patience=2)[2]
    assert history.best == (4, 2.0)
    assert history.stopped == "patience"
    assert history.progress.steps == 6


def test_a_run_ends_when_a_validation_is_below_the_target(tmp_path):
    losses = iter([3.0, 1.0, 0.9, 0.0])
    model, _, history = run(tmp_path, 100, validation=lambda: next(losses), validate_every=4,
                            target_loss=1.0)
    assert history.validations == [(4, 3.0), (8, 1.0), (12, 0.9)]
    assert history.stopped == "target"
    assert values(fastrnn.load(tmp_path / "latest.safetensors")).tobytes() == \
        values(model).tobytes()


def test_validation_is_due_after_an_epoch_and_at_the_end():
    data = data_of()  # 19 windows
    assert [s for s, _ in run(steps=50, validation=lambda: 1.0)[2].validations] == [19, 38, 50]
    found = run(steps=5, data=data.__call__, validation=lambda: 1.0)[2].validations
    assert [s for s, _ in found] == [5]
    model = model_of()
    history = training.fit(model, data_of(), minutes=0.002, validation=lambda: 1.0,
                           validate_every=10**9)
    assert [s for s, _ in history.validations] == [history.progress.steps]


def test_validation_is_that_of_evaluate_and_leaves_dropout_alone():
    model, held_out = model_of(), Windows(sine(200), 11, 2)
    history = training.fit(model, data_of(), steps=5, validation=held_out)
    assert history.validations == [(5, training.evaluate(model, held_out, held_out.count))]
    assert values(run(steps=5, validation=held_out, validate_every=1)[0]).tobytes() == \
        values(run(steps=5)[0]).tobytes()


def test_evaluation_is_a_weighted_mean_over_all_rows():
    """Two batches, one with a single weighted row: the mean over rows, not of the batches."""
    model = SequenceModel(GRU(1, 3, dtype=np.float64, seed=0), 1, loss="mse", seed=0)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 5, 4, 1)), rng.standard_normal((2, 5, 4, 1)) * 50
    w = np.ones((2, 5, 4))
    w[1] = 0
    w[1, 2, 3] = 1
    flat = values(model)
    found = training.evaluate(model, lambda k: Batch(x[k], y[k], w[k]), 2)
    errors = np.stack([(model.forward(x[k], grad=False)[0] - y[k])[..., 0] ** 2 for k in (0, 1)])
    assert found == pytest.approx((errors * w).sum() / w.sum(), rel=1e-12)
    assert found != pytest.approx(np.mean([errors[0].mean(), errors[1, 2, 3]]), rel=0.01)
    assert model.training
    np.testing.assert_array_equal(values(model), flat)


def test_evaluation_carries_the_state_and_leaves_the_mode():
    model, data = model_of(), data_of()
    total, weight, state = 0.0, 0.0, None
    model.eval()
    for k in range(5):
        batch = data(k)
        p = model.loss(*batch.inputs, batch.targets, state)
        total, weight, state = total + p.value * p.weight, weight + p.weight, p.state
    for how in (model.train, model.eval, lambda: model.eval("bfloat16")):
        how()
        before = [part.mode for part in distinct(model)]
        found = training.evaluate(model, data, 5)
        assert found == pytest.approx(total / weight, rel=2e-2)
        assert (found == total / weight) == (before[0] != "bfloat16")
        assert [part.mode for part in distinct(model)] == before


def test_evaluation_of_nothing_is_refused():
    x = np.zeros((2, 3, 1), np.float32)
    with pytest.raises(ValueError, match="no output of 2 batches has a weight above 0"):
        training.evaluate(model_of(), lambda step: Batch(x, x, np.zeros((2, 3))), 2)
    with pytest.raises(ValueError, match="evaluate: count is 0"):
        training.evaluate(model_of(), data_of(), 0)
    with pytest.raises(TypeError, match="evaluate: model is of type GRU"):
        training.evaluate(GRU(1, 2), data_of(), 1)
    with pytest.raises(TypeError, match="evaluate: data is of type ndarray"):
        training.evaluate(model_of(), x, 1)


def test_an_evaluation_between_loss_and_backward_changes_nothing():
    model = SequenceModel(GRU(1, 8, seed=0), 1, loss="mse", seed=1)
    x = np.random.default_rng(0).standard_normal((6, 4, 1)).astype(np.float32)
    found = []
    for between in (False, True):
        model.zero_grad()
        p = model.loss(x, x)
        if between:
            training.evaluate(model, lambda step: Batch(2 * x, x), 1)
        p.backward()
        found.append([g.tobytes() for g in model.grads.values()])
    assert found[0] == found[1]


# ---------------------------------------------------------------------------------------- history


def test_the_history_has_what_happened():
    model = model_of()
    history = training.fit(model, data_of(), optim.SGD(model, 0.1), steps=20, clip=0.2,
                           schedule=CosineDecay(final=0.1), validation=lambda: 1.0,
                           validate_every=8)
    assert len(history.losses) == len(history.norms) == len(history.rates) == 20
    assert history.rates[0] == 0.1
    assert history.clipped == [i + 1 for i, norm in enumerate(history.norms) if norm > 0.2]
    assert 0 < len(history.clipped) < 20
    assert [step for step, _ in history.validations] == [8, 16, 20]
    assert history.progress.loss == pytest.approx(np.mean(history.losses))
    assert history.progress.fraction == 1
    assert history.progress.seen == 20 * 7 * 3


def test_clipped_is_about_the_norm_of_limited_elements():
    free = run(steps=20, clip=None)[2]
    assert free.clipped == []
    largest = max(free.norms)
    limited = run(steps=20, clip=largest / 2, clip_value=1e-4)[2]  # its norm is below 1e-4 * 30
    assert max(limited.norms) > largest / 2
    assert limited.clipped == []
    assert run(steps=20, clip=1e-3, clip_value=1e-4)[2].clipped == list(range(1, 21))


def test_a_history_is_drawn():
    pytest.importorskip("matplotlib")
    history = run(steps=5, validation=lambda: 1.0)[2]
    top, bottom = history.plot()
    assert top.get_ylabel() == "loss"
    assert "clipped above" in bottom.get_legend().get_texts()[1].get_text()
    assert [len(axes.lines) for axes in (top, bottom)] == [2, 2]
    other = run(steps=5, clip=None)[2]  # without a validation, into axes of the caller
    for axes in (top, bottom):
        axes.clear()
    assert other.plot([top, bottom]) == [top, bottom]
    assert [len(axes.lines) for axes in (top, bottom)] == [1, 1]
    np.testing.assert_array_equal(top.lines[0].get_ydata(), other.losses)
    np.testing.assert_array_equal(bottom.lines[0].get_ydata(), other.norms)


# ------------------------------------------------------------------------- other kinds of model


def test_a_context_and_an_encoder_train():
    model = SequenceModel(GRU(1, 8, seed=0), 1, loss="mse", context_size=2, seed=0)

    def draw(rng):
        speed = rng.uniform(0.1, 0.5, (4, 2)).astype(np.float32)
        y = np.sin(np.arange(9, dtype=np.float32)[:, None] * speed[:, 0])[..., None]
        return Batch(y[:-1], y[1:], context=speed)

    history = training.fit(model, Generated(draw), optim.Adam(model, 1e-2), steps=200)
    assert np.mean(history.losses[-20:]) < 0.2 * history.losses[0]

    pair = EncoderDecoder(Stack(GRU(4, 16, seed=0), vocab_size=5, seed=0),
                          SequenceModel(GRU(4, 16, seed=1), 5, vocab_size=5, seed=1))

    def reverse(rng):
        source = rng.integers(1, 5, (3, 8))
        target = source[::-1]
        return Batch((source, np.concatenate([np.zeros((1, 8), int), target[:-1]])), target)

    history = training.fit(pair, Generated(reverse), optim.Adam(pair, 1e-2), steps=300)
    assert np.mean(history.losses[-20:]) < 0.2 * history.losses[0]
    assert history.progress.seen == 300 * 2 * 3 * 8
    batch = Generated(reverse)(1000)
    written = pair.generate(batch.inputs[0], np.zeros(8, int), 3)
    assert (written == batch.targets).mean() > 0.9


def test_one_encoder_in_two_models_fitted_in_turn():
    encoder = GRU(1, 8, seed=0)
    models = [SequenceModel(encoder, 1, loss="mse", seed=s) for s in (1, 2)]
    flats = [encoder.flat.copy()]
    for _ in range(3):
        for model in models:
            training.fit(model, data_of(), steps=5)
            flats.append(encoder.flat.copy())
    assert all((a != b).any() for a, b in itertools.pairwise(flats))
    for model in models:
        assert model.state_dict()["layers.0.weight_hh_l0"].tobytes() == \
            encoder.weight_hh_l0.tobytes()


# ---------------------------------------------------------------------------------------- errors


BATCH = Batch(np.zeros((2, 2, 1), np.float32), np.zeros((2, 2, 1), np.float32))


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({}, ValueError, "none of epochs, steps and minutes is given, expected one of epochs"),
        ({"steps": 1, "minutes": 1}, ValueError, "steps and minutes are given, expected one of"),
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"epochs": 1.5}, ValueError, "epochs is 1.5"),
        ({"minutes": -1}, ValueError, "minutes is -1"),
        ({"steps": 1, "batch_size": 0}, ValueError, "batch_size is 0"),
        ({"steps": 1, "window": 0}, ValueError, "window is 0"),
        ({"steps": 1, "window": 5}, ValueError, "window is given with a function of the step"),
        ({"steps": 1, "weights": [1]}, ValueError, "weights is given with a function of the step"),
        ({"steps": 1, "seed": -1}, ValueError, "seed is -1"),
        ({"steps": 1, "seed": None}, ValueError, "seed is None"),
        ({"steps": 1, "lr": 0}, ValueError, "lr is 0"),
        ({"steps": 1, "optimizer": "adagrad"}, ValueError, "optimizer is 'adagrad', expected one"),
        ({"steps": 1, "optimizer": 3}, TypeError, "optimizer is 3, expected one of"),
        ({"steps": 1, "schedule": 0.5}, TypeError, "schedule is 0.5, expected a function"),
        ({"steps": 1, "clip": -1}, ValueError, "clip is -1"),
        ({"steps": 1, "clip_value": 0}, ValueError, "clip_value is 0"),
        ({"steps": 1, "omega": -1}, ValueError, "omega is -1"),
        ({"steps": 1, "recompute_every": 0}, ValueError, "recompute_every is 0"),
        ({"steps": 1, "patience": 2}, ValueError, "patience is given without validation"),
        ({"steps": 1, "target_loss": 2.0}, ValueError, "target_loss is given without validation"),
        ({"steps": 1, "validate_every": 2}, ValueError, "validate_every is given without valid"),
        ({"steps": 1, "target_loss": "low", "validation": float}, ValueError,
         "target_loss is 'low', expected a number"),
        ({"steps": 1, "validation": float, "patience": 0}, ValueError, "patience is 0"),
        ({"steps": 1, "validation": float, "validate_every": 0}, ValueError, "validate_every is 0"),
        ({"steps": 1, "validation": 0.1}, ValueError, "validation is 0.1 with a function of the"),
        ({"steps": 1, "validation": "x"}, TypeError, "validation is 'x', expected"),
        ({"steps": 1, "validation": (1, 2, 3, 4)}, TypeError, "validation is .*, expected"),
        ({"steps": 1, "validation": ([[0.0]], "y")}, TypeError, "validation: y is text"),
        ({"steps": 1, "validation": lambda step: 1.0}, TypeError,
         "validation takes arguments, expected a function of none that returns the loss"),
        ({"steps": 1, "validation": Generated(lambda rng: None)}, TypeError,
         "validation takes arguments, expected a function of none"),
        ({"steps": 1, "validation": lambda: None}, TypeError, "validation returned None, expected"),
        ({"steps": 1, "checkpoint_every": 0}, ValueError, "checkpoint_every is 0"),
        ({"steps": 1, "resume": True}, ValueError, "resume is True without a folder"),
        ({"steps": 1, "overwrite": True}, ValueError, "overwrite is True without a folder"),
        ({"steps": 1, "progress": 3}, TypeError, "progress is 3, expected True, False"),
        ({"steps": 1, "interrupt": 3}, TypeError, "interrupt is 3, expected an Interrupt"),
        ({"steps": 1, "interrupt": 0}, TypeError, "interrupt is 0, expected an Interrupt"),
        ({"steps": 1, "interrupt": np.zeros(2)}, TypeError, "interrupt is array"),
        ({"steps": 1, "save_every": 3}, TypeError, "there is no option 'save_every', expected"),
        ({"epoch": 1}, TypeError, "there is no option 'epoch', expected .*did you mean 'epochs'"),
    ],
    ids=str,
)
def test_errors_of_options(given, error, match):
    model = model_of()
    before = values(model)
    with pytest.raises(error, match=rf"^fit: {match}") as raised:
        training.fit(model, data_of(), **given)
    assert "\n" not in str(raised.value)
    if "returned" not in match:
        np.testing.assert_array_equal(values(model), before)


@pytest.mark.parametrize(
    ("model", "data", "error", "match"),
    [
        (GRU(1, 2), data_of(), TypeError, "model is of type GRU, expected a model with a loss"),
        (Stack(GRU(1, 2)), data_of(), TypeError, "model is of type Stack, expected a model with"),
        (None, data_of(), TypeError, "model is None, expected a model with a loss"),
        (model_of(), [BATCH], TypeError, "x is a list of batches, expected a function of the step"),
        (model_of(), BATCH, TypeError, "x is a Batch, expected a function of the step"),
        (model_of(), lambda step: (BATCH.inputs[0], BATCH.targets), TypeError,
         "the batch of step 1 is of type tuple, expected a Batch: let the function return"),
        (model_of(), lambda step: None, TypeError, "the batch of step 1 is None, expected a Batch"),
    ],
)
def test_errors_of_models_and_data(model, data, error, match):
    with pytest.raises(error, match=rf"^fit: {match}"):
        training.fit(model, data, steps=1)


def test_an_optimizer_of_another_model_is_refused():
    model, other = model_of(), model_of()
    for optimizer in (optim.Adam(other), optim.Adam([model, other]), optim.Adam(GRU(2, 3))):
        with pytest.raises(ValueError, match=r"^fit: optimizer is of another model, with '.*'"):
            training.fit(model, data_of(), optimizer, steps=1)


def test_gradient_checkpointing_of_a_model_that_has_none():
    pair = EncoderDecoder(Stack(GRU(1, 4)), SequenceModel(GRU(1, 4), 1, loss="mse"))
    with pytest.raises(ValueError, match="recompute_every is 3 for a model of type EncoderDecoder"):
        training.fit(pair, data_of(), steps=1, recompute_every=3)


def test_every_option_belongs_to_one_group():
    kinds = (options.Reading, options.Descent, options.Stopping, options.Saving)
    fields = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    assert sorted(fields) == sorted(
        ["batch_size", *options.Options.__annotations__.keys() - {"progress", "interrupt"}])


def test_functions_without_a_signature_are_called():
    """Python does not know the arguments of some built-in functions."""
    history = training.fit(model_of(), data_of(), steps=4, lr=1e-3, schedule=max, validation=int)
    np.testing.assert_allclose(history.rates, [0, 1e-3, 2e-3, 3e-3])
    assert [loss for _, loss in history.validations] == [0.0]


def test_epochs_of_a_function_of_the_step_are_refused():
    with pytest.raises(ValueError, match="epochs is 2 with a function of the step, expected steps"):
        training.fit(model_of(), lambda step: BATCH, epochs=2)
    x = np.zeros((5, 6, 1), np.float32)
    history = training.fit(model_of(), Samples(x, x, 4), epochs=3)
    assert history.progress.steps == 6


class WithMethod:
    """Data whose `count` is a method, as a list's is, and says nothing of an epoch."""

    def __call__(self, step):
        x = np.ones((3, 2, 3), np.float32)
        return training.Batch(x, x[..., :1])

    def count(self, value):
        raise AssertionError("called")


def test_a_count_that_is_no_number_is_none():
    model = fastrnn.SequenceModel(fastrnn.GRU(3, 4), 1, loss="mse")
    history = training.fit(model, WithMethod(), steps=3, validation=lambda: 1.0, progress=False)
    assert len(history.losses) == 3
    with pytest.raises(ValueError, match="nobody knows how many batches are an epoch"):
        training.fit(model, WithMethod(), epochs=1, progress=False)
