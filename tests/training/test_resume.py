"""Files of a training: going on bitwise, what is refused before the first step, full disks."""

import errno
import itertools
import signal

import numpy as np
import pytest
from runs import model_of, run, sine, state_of, values

import fastrnn
from fastrnn import GRU, LSTM, optim, training
from fastrnn.formats import safetensors
from fastrnn.models import EncoderDecoder, SequenceModel, Stack
from fastrnn.training import Batch, CheckpointError, Generated, Samples, Windows, checkpoint
from fastrnn.training.language import train

LATEST, BEST = "latest.safetensors", "best.safetensors"


def stop_after(steps):
    def press(now):
        if now.steps == steps:
            signal.raise_signal(signal.SIGINT)

    return press


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# ------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize("stop", [1, 10, 19])
def test_a_resumed_run_is_bitwise_one_that_never_stopped(tmp_path, stop):
    whole = run()
    half = run(tmp_path, progress=stop_after(stop))
    assert half[2].stopped == "interrupted"
    assert len(half[2].losses) == stop
    rest = run(tmp_path, resume=True)
    assert state_of(*rest) == state_of(*whole)
    assert rest[2].progress.seen == whole[2].progress.seen
    assert values(fastrnn.load(tmp_path / LATEST)).tobytes() == values(whole[0]).tobytes()


def test_a_validation_that_only_ended_the_run_is_the_best_and_no_patience(tmp_path):
    losses = itertools.chain([1.0, 0.1, 2.0, 0.5], itertools.repeat(3.0))
    options = {"validate_every": 10, "patience": 2, "validation": lambda: next(losses)}
    first, _, history = run(tmp_path, 13, **options)
    assert history.validations == [(10, 1.0), (13, 0.1)]
    rest = run(tmp_path, 90, resume=True, **options)[2]
    assert rest.validations == [(10, 1.0), (13, 0.1), (20, 2.0), (30, 0.5), (40, 3.0), (50, 3.0)]
    assert rest.stopped == "patience"  # since step 30
    assert rest.best == (13, 0.1)
    np.testing.assert_array_equal(values(fastrnn.load(tmp_path / BEST)), values(first))


def test_validations_that_were_due_count_for_patience_whatever_is_due_now(tmp_path):
    losses = itertools.count(1)
    options = {"patience": 3, "validation": lambda: next(losses)}
    assert run(tmp_path, 5, validate_every=3, **options)[2].ends == [5]
    rest = run(tmp_path, 90, resume=True, validate_every=4, **options)[2]
    assert [step for step, _ in rest.validations] == [3, 5, 8, 12, 16]
    assert rest.stopped == "patience"  # since step 3
    assert rest.ends == [5]


def test_a_run_resumes_from_its_last_checkpoint_after_a_crash(tmp_path):
    def crash(now):
        if now.steps == 17:
            raise OSError("the lights went out")

    with pytest.raises(OSError, match="lights"):
        run(tmp_path, checkpoint_every=5, progress=crash)
    assert state_of(*run(tmp_path, resume=True)) == state_of(*run())


X = np.random.default_rng(0).standard_normal((10, 6, 1))


@pytest.mark.parametrize("stop", [1, 3, 4])
@pytest.mark.parametrize("options", [
    {"validation": 0.2, "clip_value": 0.01, "clip": 1e-3}, {"window": 4},
    {"weights": np.arange(10), "recompute_every": 2}], ids=["fraction", "window", "weights"])
def test_fit_on_arrays_resumes_in_the_middle_of_an_epoch(tmp_path, stop, options):
    options = {"epochs": 3, "batch_size": 4, "seed": 5} | options
    found = []
    for folder, more in ((None, {}), (tmp_path, {"progress": stop_after(stop)}),
                         (tmp_path, {"resume": True})):
        model = model_of()
        optimizer = optim.RMSProp(model, 1e-2, momentum=0.5)
        history = training.fit(model, X, X + 1, optimizer=optimizer, folder=folder,
                               **(options | more))
        found.append(state_of(model, optimizer, history))
    assert found[0] == found[2] != found[1]
    if "clip" in options:
        assert found[0][-1]["clipped"] == list(range(1, 7))


def test_an_encoder_and_decoder_resume(tmp_path):
    def draw(rng):
        x = rng.integers(0, 5, (4, 3))
        return Batch((x, x), x)

    def make():
        return EncoderDecoder(
            Stack(LSTM(4, 6, 2, dropout=0.3, seed=0), vocab_size=5, seed=0),
            SequenceModel(LSTM(4, 6, 2, dropout=0.3, seed=1), 5, vocab_size=5, seed=1))

    whole = run(make=make, data=Generated(draw), steps=8)
    run(tmp_path, make=make, data=Generated(draw), steps=8, progress=stop_after(3))
    rest = run(tmp_path, make=make, data=Generated(draw), steps=8, resume=True)
    assert state_of(*rest) == state_of(*whole)


def test_groups_and_frozen_parts_resume(tmp_path):
    def with_groups(model):
        return optim.AdamW(model, 1e-2, freeze="layers.0",
                           groups={"*bias*": {"weight_decay": 0}, "head": {"lr": 3e-2}})

    found = []
    for folder, more in ((None, {}), (tmp_path, {"progress": stop_after(5)}),
                         (tmp_path, {"resume": True})):
        model = model_of()
        found.append(run(folder, 12, lambda model=model: model, optimizer=with_groups(model),
                         **more))
    assert state_of(*found[2]) == state_of(*found[0])
    model = model_of()
    with pytest.raises(ValueError, match=r"checkpoint of another optimizer: its freeze"):
        run(tmp_path, 12, lambda: model, optimizer=optim.AdamW(model, 1e-2), resume=True)


def test_a_run_that_is_done_stays_as_it_is(tmp_path):
    whole = run(tmp_path, validation=lambda: 1.0)
    before = files_of(tmp_path)
    again = run(tmp_path, resume=True, validation=lambda: 0.0)
    assert state_of(*again) == state_of(*whole)
    assert files_of(tmp_path) == before
    longer = run(tmp_path, steps=40, resume=True)
    assert len(longer[2].losses) == 40


@pytest.mark.parametrize("rule", [{"patience": 2}, {"target_loss": 5.0}])
def test_a_run_that_validation_ended_takes_no_further_step(tmp_path, rule):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 12, 6, 1))
    found = []
    for more in ({}, {}, {"patience": None, "target_loss": None, "epochs": 30}):
        model = fastrnn.SequenceModel(fastrnn.GRU(1, 4, seed=0), 1, loss="mse", seed=0)
        options = {"epochs": 200, **rule, **more}
        history = fastrnn.fit(model, x, y, lr=0.05, batch_size=4, validation=0.3, folder=tmp_path,
                              resume=True, progress=False, **options)
        found.append((history.stopped, history.progress.steps))
    assert found[0][0] == {"patience": "patience", "target_loss": "target"}[next(iter(rule))]
    assert found[1] == found[0]
    assert found[2] == ("done", 90)  # without the rule it goes on


def test_a_text_goes_on_with_the_rate_of_its_run(tmp_path):
    text = "the quick brown fox jumps over the lazy dog. " * 40

    def trained(steps, **options):
        model = fastrnn.LanguageModel(256, 4, 6, seed=0)
        return train(model, text, batch_size=2, window=8, steps=steps, decay=False,
                     progress=False, **options), model

    whole, model = trained(6, lr=0.02)
    trained(3, lr=0.02, folder=tmp_path)
    history, resumed = trained(6, folder=tmp_path, resume=True)
    assert history.rates == whole.rates == [0.02] * 6
    for name, value in resumed.parameters().items():
        np.testing.assert_array_equal(value, model.parameters()[name])


def test_resume_without_a_checkpoint_begins(tmp_path):
    assert state_of(*run(tmp_path / "new", resume=True)) == state_of(*run())


# ---------------------------------------------------------------------------- the learning rate


@pytest.mark.parametrize("as_object", [False, True])
def test_another_rate_is_taken_if_it_is_asked_for(tmp_path, as_object):
    def fit(**options):
        model = model_of()
        if as_object:
            options["optimizer"] = optim.Adam(model, options.pop("made_with", 1e-2))
        return training.fit(model, Windows(sine(), 7, 3), folder=tmp_path, **options)

    fit(steps=3, lr=1e-2)
    assert fit(steps=5, resume=True).rates == [1e-2] * 5
    assert fit(steps=7, resume=True, lr=2e-3).rates == [1e-2] * 5 + [2e-3] * 2
    if as_object:
        with pytest.raises(ValueError, match=r"the optimizer's lr is 0.05, expected 0.002 as in "
                           r"the checkpoint '.*'; to go on with another rate, give fit lr=0.05"):
            fit(steps=9, resume=True, made_with=0.05)
        assert fit(steps=9, resume=True, made_with=0.05, lr=0.05).rates[7:] == [0.05] * 2
    else:
        assert fit(steps=9, resume=True).rates[7:] == [2e-3] * 2


# ------------------------------------------------------------------------ other data or options


def samples(**options):
    options = {"x": X.swapaxes(0, 1).astype(np.float32), "B": 4, "seed": 0} | options
    return Samples(options["x"], options["x"], options["B"], seed=options["seed"])


@pytest.mark.parametrize(
    ("first", "then", "match"),
    [
        (Windows(sine(), 7, 3), Windows(sine() + 1, 7, 3), "its data has other values"),
        (Windows(sine(), 7, 3), Windows(sine(300), 7, 3), r"its data has the shapes \[\(133, 3, 1"),
        (Windows(sine(), 7, 3), Windows(sine(), 8, 3), "its window is 7, not 8"),
        (Windows(sine(), 7, 3), Windows(sine(), 7, 4), "its batch_size is 3, not 4"),
        (samples(), samples(B=5), "its batch_size is 4, not 5"),
        (samples(), samples(seed=1), "its seed is 0, not 1"),
        (samples(), samples(x=-samples().x), "its data has other values"),
        (Generated(lambda rng: samples()(0)), Generated(lambda rng: samples()(0), 3),
         "its seed is 0, not 3"),
        (samples(), Windows(sine(), 7, 3), "its data has the shapes"),
        (samples(), lambda step: samples()(step), "its data has the shapes .*, not None"),
    ],
)
def test_other_data_are_refused(tmp_path, first, then, match):
    run(tmp_path, 2, data=first)
    before, model = files_of(tmp_path), model_of()
    flat = values(model)
    with pytest.raises(ValueError, match=rf"^fit: '.*{LATEST}' is the checkpoint of a run with "
                       rf"other options: .*{match}") as raised:
        run(tmp_path, 5, lambda: model, then, resume=True)
    assert "\n" not in str(raised.value)
    np.testing.assert_array_equal(values(model), flat)
    assert files_of(tmp_path) == before
    assert len(run(tmp_path, 5, data=first, resume=True)[2].losses) == 5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"x": X * 2}, "its data has other values"), ({"y": X}, "its data has other values"),
        ({"batch_size": 5}, "its batch_size is 4, not 5"), ({"seed": 3}, "its seed is 1, not 3"),
        ({"shuffle": False}, "its shuffle is True, not False"), ({"window": 3}, "its window is"),
        ({"weights": np.ones(10)}, "its data has the shapes"),
        ({"validation": 0.2}, "its data has the shapes"),
    ],
)
def test_other_arrays_and_options_are_refused(tmp_path, options, match):
    usual = {"x": X, "y": X + 1, "batch_size": 4, "seed": 1, "folder": tmp_path, "lr": 1e-3}
    training.fit(model_of(), **usual, epochs=1)
    with pytest.raises(ValueError, match=match):
        training.fit(model_of(), **(usual | options), epochs=2, resume=True)
    history = training.fit(model_of(), **usual, epochs=2, resume=True, clip=0.5)
    assert len(history.losses) == 6


@pytest.mark.parametrize(
    ("make", "optimizer", "match"),
    [
        (lambda: SequenceModel(LSTM(1, 8), 1, loss="mse"), optim.Adam, "of another model"),
        (model_of, optim.SGD, "of another optimizer"),
        (model_of, lambda m, lr: optim.Adam(m, lr, eps=1e-3), "of another optimizer: its eps is"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, make, optimizer, match):
    run(tmp_path, 3)
    model = make()
    before = values(model)
    made = optimizer(model, 1e-2)
    with pytest.raises(ValueError, match=match) as raised:
        training.fit(model, Windows(sine(), 7, 3), made, steps=9, folder=tmp_path, resume=True)
    assert "\n" not in str(raised.value)
    np.testing.assert_array_equal(values(model), before)
    assert made.lr == 1e-2
    assert made.steps == 0


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path):
    run(tmp_path, 3)
    path = tmp_path / LATEST
    data = path.read_bytes()
    for n in range(0, len(data), 997):
        path.write_bytes(data[:n])
        with pytest.raises(ValueError, match="is not a"):
            run(tmp_path, 9, resume=True)
    fastrnn.save(model_of(), path)
    with pytest.raises(ValueError, match=f"'.*{LATEST}' is a model and no checkpoint"):
        run(tmp_path, 9, resume=True)


@pytest.mark.parametrize(("changes", "match"), [
    ({"lr": "fast"}, "has the lr 'fast', expected a number"),
    ({"lr": None}, "has the lr None, expected a number"),
    (None, r"latest.safetensors'.*: its about is \[1\]")])
def test_notes_of_another_kind_are_refused(tmp_path, changes, match):
    model, optimizer, history = run(tmp_path, 3)
    path = tmp_path / LATEST
    about = checkpoint.about(path)
    checkpoint.save(path, model, optimizer, 1e-2, None, history,
                    [1] if changes is None else about | changes)
    with pytest.raises(ValueError, match=match) as raised:
        run(tmp_path, 9, resume=True)
    assert "\n" not in str(raised.value)
    if changes is None:
        with pytest.raises(ValueError, match=match):
            checkpoint.load(path, model, optimizer)


# ----------------------------------------------------------------------- before the first step


class Mine(SequenceModel):
    pass


def never(step):
    raise AssertionError("a batch was read")


def test_a_model_that_cannot_be_saved_is_refused_before_the_first_step(tmp_path):
    model = Mine(GRU(1, 4, seed=0), 1, loss="mse", seed=0)
    with pytest.raises(TypeError, match=r"^fit: model is of type Mine, expected one of"):
        training.fit(model, never, steps=50, folder=tmp_path / "new", checkpoint_every=20)
    assert list(tmp_path.iterdir()) == []
    assert training.fit(model, Windows(sine(), 7, 3), steps=2).stopped == "done"


@pytest.mark.parametrize("where", ["no writing", "full"])
def test_a_place_that_cannot_be_written_is_refused_before_the_first_step(
        tmp_path, monkeypatch, where):
    folder = tmp_path / "run"

    def refuse(*args, **options):
        raise OSError(*((errno.EACCES, "Permission denied") if where == "no writing"
                        else (errno.ENOSPC, "No space left on device")), str(folder / LATEST))

    monkeypatch.setattr(safetensors, "try_write", refuse)
    with pytest.raises(OSError, match="run") as raised:
        training.fit(model_of(), never, steps=50, folder=folder)
    assert str(folder) in raised.value.filename


def test_a_folder_that_is_no_path():
    with pytest.raises(TypeError, match="fit: folder is of type int, expected a path"):
        training.fit(model_of(), never, steps=1, folder=3)


@pytest.mark.parametrize("folder", ["", "a\0b", "\ud800"])
def test_a_folder_that_no_system_can_have_is_not_the_current_one(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"fit: folder is '.*', expected a path"):
        training.fit(model_of(), never, steps=1, folder=folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [LATEST, BEST])
def test_an_earlier_run_is_not_overwritten_without_a_word(tmp_path, name):
    run(tmp_path, 2, validation=lambda: 1.0)
    for path in list(tmp_path.iterdir()):
        if path.name != name:
            path.unlink()
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match=rf"fit: the folder '.*' has {name} of an earlier run, exp"
                       r"ected none: give resume=True .* overwrite=True .* or another folder"):
        training.fit(model_of(), never, steps=2, folder=tmp_path)
    with pytest.raises(ValueError, match="resume and overwrite are True"):
        training.fit(model_of(), never, steps=2, folder=tmp_path, resume=True, overwrite=True)
    assert files_of(tmp_path) == before


def test_overwrite_replaces_an_earlier_run_with_its_first_files(tmp_path):
    run(tmp_path, 3, validation=lambda: 1.0)
    before = files_of(tmp_path)

    def crash(now):
        raise OSError("at once")

    with pytest.raises(OSError, match="at once"):
        run(tmp_path, 5, overwrite=True, progress=crash)
    assert files_of(tmp_path) == before
    model = run(tmp_path, 5, overwrite=True)[0]
    assert list(files_of(tmp_path)) == [LATEST]  # the best of another run is gone
    assert values(fastrnn.load(tmp_path / LATEST)).tobytes() == values(model).tobytes()


# -------------------------------------------------------------------------------------- full disks


def full(monkeypatch, fails):
    """Let the writing of files fail if `fails(number, path)`; return the paths written."""
    written, write = [], safetensors.write

    def maybe(path, *rest):
        written.append(path.name)
        if fails(len(written), path.name):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *rest)

    monkeypatch.setattr(safetensors, "write", maybe)
    return written


def test_a_failed_checkpoint_is_a_warning_if_a_later_one_is_written(tmp_path, monkeypatch):
    full(monkeypatch, lambda number, name: number == 2)
    with pytest.warns(RuntimeWarning, match=f"fit: '.*{LATEST}' could not be written: .*No space "
                      "left.*; training goes on"):
        rest = run(tmp_path, checkpoint_every=10)
    assert state_of(*rest) == state_of(*run())
    assert state_of(*run(tmp_path, resume=True)) == state_of(*run())


@pytest.mark.parametrize("which", [LATEST, BEST])
def test_a_full_disk_loses_no_history(tmp_path, monkeypatch, which):
    run(tmp_path, 2, validation=lambda: 1.0)
    before = files_of(tmp_path)
    full(monkeypatch, lambda number, name: name == which)
    model = model_of()
    losses = iter([3.0, 2.0, 1.0])
    with pytest.warns(RuntimeWarning, match="could not be written"), \
            pytest.raises(CheckpointError, match=r"No space left on device: '.*" + which) as raised:
        run(tmp_path, 30, lambda: model, checkpoint_every=10, overwrite=True,
            validation=lambda: next(losses), validate_every=10)
    error = raised.value
    assert error.errno == errno.ENOSPC
    assert error.filename == str(tmp_path / which)
    assert len(error.history.losses) == 30
    assert error.history.stopped == "done"
    assert state_of(model, optim.Adam(model), error.history)[0] == values(run()[0]).tobytes()
    if which == LATEST:  # the old file is whole
        assert files_of(tmp_path)[LATEST] == before[LATEST]


def test_the_best_of_an_earlier_run_stays_until_there_is_a_new_file(tmp_path, monkeypatch):
    run(tmp_path, 2, validation=lambda: 1.0)
    before = files_of(tmp_path)
    full(monkeypatch, lambda number, name: True)
    with pytest.warns(RuntimeWarning, match="could not be written"), pytest.raises(CheckpointError):
        run(tmp_path, 4, overwrite=True)
    assert files_of(tmp_path) == before


def test_too_little_memory_for_a_checkpoint_is_the_same(tmp_path, monkeypatch):
    def refuse(path, *rest):
        raise MemoryError("no memory")

    monkeypatch.setattr(safetensors, "write", refuse)
    with pytest.warns(RuntimeWarning, match="no memory"), pytest.raises(
            CheckpointError, match="no memory") as raised:
        run(tmp_path, 3)
    assert raised.value.errno == errno.ENOMEM
    assert len(raised.value.history.losses) == 3
