"""Training language models on text, and their bits per character."""

import math

import numpy as np
import pytest

import fastrnn
from fastrnn import LanguageModel, SequenceModel
from fastrnn.training import Interrupt, language, text

TEXT = "".join(f"line {i}: def f_{i % 7}(x): return x + {i % 10}\n" for i in range(600))


@pytest.fixture(scope="module")
def symbols():
    return np.frombuffer(TEXT.encode(), np.uint8)


def small_model(**options):
    return LanguageModel(embedding_size=8, hidden_size=32, seed=0, **options)


def values(model):
    return {name: a.tobytes() for name, a in model.parameters().items()}


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_training_lowers_the_loss_on_text_not_seen(symbols, cell):
    trained, held_out = text.split(symbols)
    model = small_model(cell=cell)
    before = language.bits_per_character(model, held_out)
    assert 7.5 < before < 8.5  # log2(256)
    done = language.train(model, trained, batch_size=8, window=16, lr=1e-2, steps=300)
    assert done.stopped == "done"
    assert done.progress.steps == len(done.losses) == 300
    assert done.progress.seen <= 300 * 8 * 16
    assert done.progress.bits < 3
    assert language.bits_per_character(model, held_out) < 2.5
    assert model.training


def test_training_is_the_same_bits_on_any_number_of_threads(symbols):
    results, threads = [], fastrnn.get_num_threads()
    try:
        for n in (1, 2, 3):
            fastrnn.set_num_threads(n)
            model = small_model(num_layers=2, dropout=0.3)
            language.train(model, symbols, batch_size=8, window=16, steps=20)
            results.append(values(model))
    finally:
        fastrnn.set_num_threads(threads)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("how", ["uint8", "bytes", "bytearray", "str", "numbers", "list"])
def test_text_of_every_kind_trains_alike(symbols, how):
    given = {"uint8": symbols, "bytes": TEXT.encode(), "bytearray": bytearray(TEXT.encode()),
             "str": TEXT, "numbers": symbols.astype(int), "list": symbols.tolist()}
    results = []
    for data in (symbols, given[how]):
        model = small_model()
        language.train(model, data, batch_size=8, window=16, steps=3)
        results.append(values(model))
    assert results[0] == results[1]
    assert language.bits_per_character(model, symbols) == language.bits_per_character(
        model, given[how])


def test_a_rate_that_falls_and_one_that_does_not(symbols):
    for decay, last in ((True, 0.05), (False, 1.0)):
        done = language.train(small_model(), symbols, batch_size=8, window=16, lr=1e-3, decay=decay,
                              steps=50)
        assert done.rates[0] == pytest.approx(1e-3, rel=0.01)
        assert done.rates[-1] == pytest.approx(last * 1e-3, rel=0.05)


def test_validation_is_the_loss_of_each_character(symbols):
    trained, held_out = text.split(symbols)
    model = small_model()
    done = language.train(model, trained, batch_size=8, window=16, steps=6, validation=held_out,
                          validate_every=3)
    assert [step for step, _ in done.validations] == [3, 6]
    bits = language.bits_per_character(model, held_out, batch_size=8, window=16)
    assert done.validations[-1][1] == pytest.approx(bits * math.log(2), rel=1e-12)


@pytest.mark.parametrize("n", [2, 3, 17, 1001])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 32])
def test_bits_count_every_character_but_the_first_once(symbols, n, batch_size):
    model = small_model().eval()
    window = 7
    data = symbols[:n].astype(int)
    bits = language.bits_per_character(model, data, batch_size=batch_size, window=window)
    B = max(1, min(batch_size, (n - 1) // window))
    per = math.ceil((n - 1) / B)
    total = 0.0
    for start in range(0, n - 1, per):  # each row by itself
        row = data[start : start + per + 1]
        logits = model(row[:-1, None])[0][:, 0].astype(float)
        logits -= logits.max(-1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        total -= np.log2(p[np.arange(len(row) - 1), row[1:]]).sum()
    assert bits == pytest.approx(total / (n - 1), rel=1e-5)


def test_bits_of_one_row_are_the_same_for_any_window_and_change_nothing(symbols):
    model = small_model(num_layers=2, dropout=0.5)
    before = values(model), model.dropout_state
    found = {language.bits_per_character(model, symbols[:1001], batch_size=1, window=w)
             for w in (1, 10, 333, 1000, 5000)}
    assert max(found) - min(found) < 1e-6
    assert (values(model), model.dropout_state) == before
    assert model.training
    rounded = language.bits_per_character(model.eval("bfloat16"), symbols)
    assert model.layers[0].mode == "bfloat16"
    assert rounded != language.bits_per_character(model.eval(), symbols)


def test_a_model_of_characters(tmp_path):
    text = "añb€ " * 500
    model = small_model(characters=text)
    language.train(model, text, batch_size=8, window=16, lr=0.03, steps=60)
    assert language.bits_per_character(model, text) < 0.5
    assert "añb€ añb€" in "a" + model.sample("a", 12, 0)
    with pytest.raises(ValueError, match="has the character 'x'"):
        language.bits_per_character(model, "xyz")


# ---- files ---------------------------------------------------------------------------------------


def test_train_on_takes_text_and_paths(tmp_path, symbols):
    path = tmp_path / "text"
    path.write_text(TEXT)
    results = []
    for data in (TEXT, path, [path], [path, str(tmp_path)], TEXT.encode()):
        model = small_model()
        done = model.train_on(data, batch_size=8, window=16, steps=3)
        assert len(done.losses) == 3
        results.append(values(model))
    assert all(r == results[0] for r in results)
    with pytest.raises(ValueError, match=r"the name of a file, expected .*pathlib.Path"):
        model.train_on(str(path), steps=1)
    with pytest.raises(ValueError, match=r"text\[1\] is .* the name of a file, expected .*Path"):
        model.train_on([TEXT, str(path)], steps=1)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        model.train_on(tmp_path / "none", steps=1)
    with pytest.raises(ValueError, match="the text has 0 characters"):
        model.train_on([], steps=1)


def test_without_a_length_train_on_trains_for_a_minute():
    seen = []
    with Interrupt() as interrupt:
        def show(now):
            seen.append(now)
            interrupt.asked = True

        done = small_model().train_on(TEXT, progress=show, interrupt=interrupt)
    assert done.stopped == "interrupted"
    assert len(done.losses) == 1
    assert seen[0].fraction == pytest.approx(seen[0].seconds / 60)


def test_train_on_holds_a_part_out(symbols):
    one, other = small_model(), small_model()
    done = one.train_on(TEXT, batch_size=8, window=16, steps=4, validation="held out")
    trained, held_out = text.split(symbols)
    assert language.train(other, trained, batch_size=8, window=16, steps=4,
                          validation=held_out).validations == done.validations
    assert values(one) == values(other)


def test_files_of_a_model_of_characters_are_utf8(tmp_path):
    path = tmp_path / "text"
    path.write_text("añb€\n" * 200)
    model = small_model(characters="añb€\n")
    model.train_on(path, batch_size=4, window=8, steps=2)
    path.write_bytes(b"caf\xe9 " * 200)
    with pytest.raises(ValueError, match=r"not UTF-8: .* at byte 3"):
        model.train_on(path, batch_size=4, window=8, steps=2)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "expected one of epochs, steps and minutes"),
        ({"steps": 1, "minutes": 1}, "expected one of epochs, steps and minutes"),
        ({"steps": 0}, "steps is 0"), ({"minutes": -1}, "minutes is -1"),
        ({"steps": 1, "clip": 0}, "clip is 0"), ({"steps": 1, "lr": -1}, "lr is -1"),
        ({"steps": 1, "batch_size": 0}, "batch_size is 0"),
        ({"steps": 1, "window": 0}, "window is 0"),
        ({"steps": 1, "batch_size": 1000},
         "train: the text has 5,000 characters, expected at least 64,001: 1,000 rows of 64"),
        ({"steps": 1, "validation": b"x"}, "validation has 1 character, expected at least 2"),
    ],
)
def test_errors_of_training(options, match):
    model = small_model()
    before = values(model)
    with pytest.raises(ValueError, match=match):
        language.train(model, np.zeros(5000, np.uint8), **options)
    assert values(model) == before


def test_what_is_not_a_text_or_a_language_model():
    model = small_model()
    for data in (3.5, None, np.zeros(5000), object()):
        with pytest.raises(TypeError, match=r"^(train|LanguageModel)"):
            language.train(model, data, steps=1)
    with pytest.raises(IndexError, match="expected 0 to 255"):
        language.train(model, np.full(5000, 256), steps=1)
    for other in (SequenceModel(fastrnn.GRU(2, 3), 1, loss="mse"), None):
        with pytest.raises(TypeError, match=r"^train: model is .*, expected a LanguageModel"):
            language.train(other, TEXT, steps=1)
        with pytest.raises(TypeError, match=r"^bits_per_character: model is"):
            language.bits_per_character(other, TEXT)
    for n in (0, 1):
        with pytest.raises(ValueError, match=rf"^bits_per_character: the text has {n} character"):
            language.bits_per_character(model, b"x" * n)


def test_a_loss_that_is_not_finite_stops_before_the_step():
    model = small_model()
    model.head.bias[-1] = np.nan
    before = values(model)
    with pytest.raises(FloatingPointError, match="nan at step 1"):
        language.train(model, np.zeros(5000, np.uint8), steps=3)
    assert values(model) == before
