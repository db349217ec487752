"""Runs that are refused change nothing, and what nobody chose is not changed either."""

import numpy as np
import pytest

import fastrnn
from fastrnn import GRU, RNN, LanguageModel, SequenceModel, fit, losses, optim
from fastrnn.models import EncoderDecoder, Stack
from fastrnn.training import Batch
from fastrnn.training.data import Samples
from fastrnn.training.language import train, train_on
from fastrnn.training.text import find_files, read

TEXT = "the quick brown fox jumps over the lazy dog. " * 20


def model(loss="mse", I=2, **options):
    return SequenceModel(GRU(I, 3, seed=0), 3 if loss == "softmax" else 1, loss=loss, seed=0,
                         **options)


def data(N=10, T=6, I=2):
    rng = np.random.default_rng(0)
    return rng.standard_normal((N, T, I)), rng.standard_normal((N, T, 1))


@pytest.mark.parametrize("change", [
    {"omega": 1.0}, {"folder": __file__}, {"x": lambda step: None, "y": None},
    {"weights": np.zeros((10, 6))}, {"clip": -1}], ids=str)
def test_a_refused_run_leaves_the_learning_rate(change):
    x, y = data()
    m = model()
    optimizer = optim.Adam(m, lr=0.01)
    with pytest.raises((TypeError, ValueError, OSError)):
        fit(m, **{"x": x, "y": y, "epochs": 1, "optimizer": optimizer, "lr": 0.5} | change)
    assert optimizer.lr == 0.01
    fit(m, x, y, epochs=1, optimizer=optimizer, lr=0.5)
    assert optimizer.lr == 0.5


@pytest.mark.parametrize("how", [
    {"schedule": lambda step, fraction: None},
    {"x": lambda step: Batch(np.ones((3, 1, 1)), np.ones((3, 1, 1))), "window": None},
    {"x": lambda step: Batch(np.ones((3, 1, 1), "f"), np.ones((3, 1, 1), "f"), first="no"),
     "window": None}], ids=["schedule", "dtype", "first"])
def test_a_refused_step_changes_neither_gradients_nor_generators(how):
    layers = fastrnn.LSTM(1, 4, num_layers=2, dropout=0.5, seed=0)
    m = SequenceModel(layers, 1, loss="mse", seed=0)
    m.loss(np.ones((3, 1, 1), "f"), np.ones((3, 1, 1), "f")).backward()
    before = [a.copy() for a in m.grads.values()], m.dropout_state
    with pytest.raises((TypeError, ValueError)):
        fit(m, **{"x": np.sin(np.arange(400) / 5), "window": 10, "steps": 2} | how)
    for one, other in zip(m.grads.values(), before[0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert m.dropout_state == before[1]


def test_two_optimizers_are_refused():
    m = model()
    with pytest.raises(ValueError, match="optimizer is 'sgd', expected none: one is in the place"):
        fit(m, data()[0], optim.Adam(m), optimizer="sgd", epochs=1)
    with pytest.raises(ValueError, match="optimizer is 'sgd', expected none: one is in the place"):
        fit(m, lambda step: None, "adamw", optimizer="sgd", steps=1)


@pytest.mark.parametrize("make", [lambda m: "adamw", lambda m: optim.AdamW, optim.AdamW],
                         ids=["name", "class", "object"])
def test_an_optimizer_in_the_place_of_y(make):
    m, other = model(), model()
    batches = Samples(*(a.swapaxes(0, 1).astype("f") for a in data()), batch_size=4)
    fit(m, batches, make(m), steps=3, progress=False)
    fit(other, batches, optimizer="adamw", steps=3, progress=False)
    for one, same in zip(m.parameters().values(), other.parameters().values(), strict=True):
        np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize("name", ["target", "groups", "freeze"])
def test_what_an_optimizer_is_about_is_fixed(name):
    optimizer = optim.Adam(model())
    with pytest.raises(AttributeError, match=f"{name} is fixed when the Adam is made"):
        setattr(optimizer, name, {})


@pytest.mark.parametrize(("name", "value", "match"), [
    ("head.v", -1, r"head.v has -1.* at \[0\], expected a number of at least 0"),
    ("head.m", np.nan, r"head.m has nan at \[0\], expected a number$")])
def test_a_state_that_would_ruin_the_model_is_refused(name, value, match):
    optimizer = optim.Adam(model())
    state = optimizer.state_dict()
    state[name][:] = value
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(state)
    assert all((a == 0).all() for a in optimizer.state_dict().values())


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_in_place_of_the_folder_is_named(tmp_path, resume):
    (tmp_path / "run").write_text("mine")
    x, y = data()
    with pytest.raises(ValueError, match=r"folder is '.*run', which is a file, expected a folder"):
        fit(model(), x, y, epochs=1, folder=tmp_path / "run", resume=resume)
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize(("counts", "part"), [
    ([True] * 9 + [False], "of what validation holds out, "),
    ([False] * 9 + [True], "of what validation does not hold out, "),
    ([False] * 10, "")], ids=["held out", "trained", "all"])
@pytest.mark.parametrize("how", ["weights", "targets", "both", "lists"])
def test_a_part_in_which_nothing_counts_is_refused_before_the_first_step(counts, part, how):
    x, _y = data()
    counts = np.broadcast_to(np.array(counts)[:, None], (10, 6))
    classes = np.ones((10, 6), int)
    weights = None
    if how in ("weights", "lists"):
        weights = counts.astype(float)
    elif how == "targets":
        classes[~counts] = -100
    else:  # what the weights keep, the targets leave out
        classes[:, ::2] = -100
        weights = np.where(counts, 1.0, 0.0)
        weights[~counts & (classes == -100)] = 1
    if how == "lists":
        x, classes, weights = list(x), list(classes), list(weights)
    m = model("softmax")
    before = {name: a.copy() for name, a in m.parameters().items()}
    with pytest.raises(ValueError, match=f"{part}every output has weight 0|is .* everywhere"):
        fit(m, x, classes, weights=weights, validation=0.1, epochs=2)
    assert all(np.array_equal(a, before[name]) for name, a in m.parameters().items())


@pytest.mark.parametrize("held_out", [False, True])
def test_steps_that_fill_no_row_do_not_count(held_out):
    """One series of 7 steps is three rows of 2: the last step is left out."""
    weights = np.zeros((1, 7))
    weights[0, 6] = 1
    x, y = data(1, 8)
    few = x[:, :7], y[:, :7], weights
    m = model()
    before = [a.copy() for a in m.parameters().values()]
    options = {"window": 2, "batch_size": 3, "steps": 3}
    given = {"x": x, "y": y, "validation": few} if held_out else {
        "x": few[0], "y": few[1], "weights": weights}
    with pytest.raises(ValueError, match="every output has weight 0, expected at least one"):
        fit(m, **given, **options)
    assert all(map(np.array_equal, m.parameters().values(), before))
    weights[0, 5] = 1
    fit(m, *few[:2], weights=weights, **options)


def test_a_first_batch_that_is_refused_leaves_the_learning_rate():
    m = model()
    optimizer = optim.Adam(m, lr=0.01)
    with pytest.raises(TypeError):
        fit(m, lambda step: 3, optimizer=optimizer, lr=0.5, steps=1)
    assert optimizer.lr == 0.01


def test_an_optimizer_has_its_own_learning_rate():
    m = LanguageModel(embedding_size=4, hidden_size=5, num_layers=1, seed=0)
    optimizer = optim.SGD(m, lr=0.5)
    rates = []
    train(m, TEXT, steps=2, batch_size=4, window=8, optimizer=optimizer, decay=False,
          progress=lambda now: rates.append(optimizer.lr))
    assert set(rates) == {0.5}
    assert optimizer.lr == 0.5
    train(m, TEXT, steps=2, batch_size=4, window=8, optimizer=optimizer, lr=0.25, decay=False)
    assert optimizer.lr == 0.25


def test_texts_of_a_list_may_be_names_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    m = LanguageModel(embedding_size=4, hidden_size=5, num_layers=1, seed=0)
    with pytest.raises(ValueError, match=r"pathlib\.Path"):
        train_on(m, "docs", steps=1)
    history = train_on(m, ["anna", "docs", "bob"], steps=1)
    assert history.progress.steps == 1


def test_a_folder_is_found_again_after_the_program_went_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    x, y = data()
    fit(model(), x, y, epochs=2, folder="run", checkpoint_every=1,
        progress=lambda now: monkeypatch.chdir(tmp_path / "elsewhere"))
    assert (tmp_path / "run" / "latest.safetensors").exists()
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("readout", ["every", "last"])
def test_series_of_one_step_are_sequences_of_their_own(readout):
    m = model(I=1, readout=readout)
    one = m.predict([np.array([1.0]), np.array([1.0])])
    other = m.predict([np.array([1.0]), np.array([1.0, 1.0])])
    assert len(one) == 2
    np.testing.assert_array_equal(one[0], one[1])
    np.testing.assert_array_equal(np.ravel(one[0])[:1], np.ravel(other[0])[:1])
    fit(m, [np.array([1.0]), np.array([1.0])],
        [1.0, 2.0] if readout == "last" else [np.array([1.0]), np.array([2.0])], epochs=1)
    series = np.ones((2, 1))  # an array is one series
    assert not np.array_equal(*m.predict(series)) if readout == "every" else True


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "mean_squared_error",
                                  "binary_cross_entropy"])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_a_gradient_may_lie_over_the_outputs(loss, shift):
    memory = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    outputs, out = memory[:3], memory[shift : shift + 3]
    targets = [0, 1, 2] if loss == "softmax_cross_entropy" else np.zeros((3, 4), np.float32)
    function = getattr(losses, loss)
    expected = function(outputs.copy(), targets)
    found = function(outputs, targets, out=out)
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[-1], expected[-1])


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_files_of_keras_are_not_written(tmp_path, suffix):
    with pytest.raises(ValueError, match="files of Keras are read here"):
        fastrnn.save(RNN(2, 3, seed=0), tmp_path / f"m{suffix}")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("call", "match"), [
    (lambda: read("f"), "files is 'f', expected a list of paths"),
    (lambda: read([3]), "a path is of type int"),
    (lambda: find_files(3), "paths is 3, expected a path or a list of paths"),
    (lambda: fit(model(), *data(), epochs=1, optimizer=optim.Optimizer), "optimizer is <class"),
    (lambda: fit(model(I=1), data(I=1)[0], epochs=1, episode_start=np.ones((10, 6), bool)),
     "episode_start is True at every step"),
    (lambda: fastrnn.save(RNN(2, 3), "m", names=np.arange(3)), "names is array"),
])
def test_errors_name_what_came(call, match):
    with pytest.raises((TypeError, ValueError), match=match):
        call()


def test_a_history_is_drawn_into_two_axes():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    history = fit(model(), *data(), epochs=1)
    one, two = Figure().subplots(), Figure().subplots(2)
    with pytest.raises(TypeError, match="axes is of type Axes, expected two Axes"):
        history.plot(one)
    assert history.plot(two)[1].get_xlabel() == "step"


def test_gradients_are_not_added_to_the_parameters_themselves():
    layer = GRU(2, 3, seed=0)
    y, _, p = layer.forward(np.ones((4, 1, 2), np.float32))
    before = layer.flat.copy()
    with pytest.raises(ValueError, match="is a parameter itself"):
        p.backward(y, grads=layer.parameters())
    np.testing.assert_array_equal(layer.flat, before)
    p.backward(y)


X = np.zeros((6, 5, 1), np.float32)
S = np.zeros((5, 4), int)


@pytest.mark.parametrize(("kind", "data", "match"), [
    ("pair", lambda step: Batch(S, S), r"inputs .* are 1 .*, expected a tuple \(source, inputs\)"),
    ("pair", lambda step: Batch((S, S, S), S), "inputs of the batch are 3 for a model"),
    ("one", lambda step: Batch((X, X), X), "inputs .* are 2 .*, expected one array or list"),
    ("one", lambda step: Batch((X, X), None), "inputs of the batch are 2 for"),
    ("one", lambda step: Batch(tuple(X), X), "inputs of the batch are 6 for"),
    ("one", lambda step: Batch((), X), "the batch of step 1 has no sequence"),
    ("one", lambda step: Batch(X[:0], X[:0]), "the batch of step 1 has no sequence with a step"),
    ("one", lambda step: Batch(X[:, :0], X[:, :0]), "the batch of step 1 has no sequence with"),
    ("one", lambda: Batch(X, X), "x cannot be called with a step, expected a function of the"),
    ("one", lambda a, b: Batch(X, X), "x cannot be called with a step")])
def test_batches_that_do_not_fit_the_model_are_refused(kind, data, match):
    m = SequenceModel(GRU(1, 4, seed=0), 1, loss="mse", seed=0)
    if kind == "pair":
        m = EncoderDecoder(Stack(GRU(8, 6, seed=0), vocab_size=6, seed=1),
                           SequenceModel(GRU(8, 6, seed=2), 6, vocab_size=6, seed=3))
    before = {name: value.copy() for name, value in m.parameters().items()}
    with pytest.raises((TypeError, ValueError), match=f"^fit: {match}"):
        fit(m, data, steps=1, progress=False)
    for name, value in m.parameters().items():
        np.testing.assert_array_equal(value, before[name])


def test_an_unknown_cell_is_told_all_names():
    with pytest.raises(ValueError, match=r"'mgu', expected one of .*'lstm'.*'MGU'"):
        LanguageModel(cell="mgu")


def test_booleans_are_no_whole_numbers():
    with pytest.raises(TypeError, match="targets is bool, expected whole numbers: classes"):
        losses.softmax_cross_entropy(np.zeros((2, 2)), np.array([True, False]))
    with pytest.raises(TypeError, match="expected whole numbers: steps of each row"):
        GRU(2, 3)(np.zeros((3, 2, 2), np.float32), lengths=[True, False])
