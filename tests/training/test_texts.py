"""Language models on lists of texts: each text is a sequence of its own."""

import math

import numpy as np
import pytest
from runs import values

from fastrnn import LanguageModel, training
from fastrnn.training import Batch, language

TEXTS = ["to be or not to be", "", "that is the question", "a", "whether", "it is nobler " * 4]


def model_of(**options):
    return LanguageModel(hidden_size=8, embedding_size=4, seed=0, dtype=np.float64, **options)


def test_bits_are_those_of_every_character_after_all_before_it_in_its_text():
    model = model_of()
    model.train_on("to be or not to be " * 9, steps=9, lr=0.02, progress=False)
    nats, count = 0.0, 0
    for text in TEXTS:
        if len(text) > 1:
            symbols = model.encode(text)
            p = model.loss(symbols[:-1, None], symbols[1:, None], grad=False)
            nats, count = nats + p.value * p.weight, count + len(text) - 1
    for options in ({}, {"batch_size": 2}, {"window": 3}, {"batch_size": 1, "window": 1}):
        found = language.bits_per_character(model, TEXTS, **options)
        assert found == pytest.approx(nats / count / math.log(2), rel=1e-10)
    arrays = [model.encode(text) for text in TEXTS]
    assert language.bits_per_character(model, arrays) == language.bits_per_character(model, TEXTS)
    assert model.training


@pytest.mark.parametrize("form", ["an array of objects", "a column of pandas"])
def test_texts_of_a_column(form):
    column = np.array(TEXTS, object)
    if form == "a column of pandas":
        column = pytest.importorskip("pandas").Series(TEXTS, index=range(5, 5 + len(TEXTS)))
    trained = []
    for given in (TEXTS, column):
        model = model_of()
        trained.append(model.train_on(given, steps=3, progress=False).losses)
        trained.append(language.bits_per_character(model, given))
    assert trained[:2] == trained[2:]


def test_texts_are_read_one_after_the_other_in_rows():
    """Which characters a row has, and where its state is zero."""
    seen = {}

    class Watched(LanguageModel):
        def loss(self, x, targets, state=None, **options):
            assert (state is None) == (not seen)
            for name, a in (("x", x), ("y", targets), ("start", options["episode_start"])):
                seen.setdefault(name, []).append(a)
            return super().loss(x, targets, state, **options)

    model = Watched(hidden_size=4, embedding_size=2, seed=0)
    predicted = sum(max(0, len(text) - 1) for text in TEXTS)
    per = predicted // 3
    training.fit(model, language._windows([model.encode(t) for t in TEXTS], 7, 3),
                 steps=-(-per // 7))
    x, y, start = (np.concatenate(seen[name]).T.reshape(-1) for name in ("x", "y", "start"))
    whole = [text for text in TEXTS if len(text) > 1]
    assert x.astype(np.uint8).tobytes().decode() == "".join(t[:-1] for t in whole)[: 3 * per]
    assert y.astype(np.uint8).tobytes().decode() == "".join(t[1:] for t in whole)[: 3 * per]
    begins = np.cumsum([0, *(len(t) - 1 for t in whole)])
    np.testing.assert_array_equal(np.flatnonzero(start), begins[begins < 3 * per])


def test_nothing_of_one_text_reaches_another():
    texts, others = ["abcab", "bcabc", "cabca"], ["abcab", "ccccc", "cabca"]
    losses = []
    for given in (texts, others):
        batch = language._windows([model_of().encode(t) for t in given], 12, 1)(0)
        model = model_of()
        outputs, _ = model(*batch.inputs, episode_start=batch.episode_start)
        losses.append(outputs[:, 0])
    np.testing.assert_array_equal(losses[0][:4], losses[1][:4])
    np.testing.assert_array_equal(losses[0][8:], losses[1][8:])
    assert (losses[0][4:8] != losses[1][4:8]).any()


@pytest.mark.parametrize("characters", [None, "".join(TEXTS)])
def test_train_on_learns_from_a_list(characters):
    model = model_of(characters=characters)
    before = language.bits_per_character(model, TEXTS)
    history = model.train_on(TEXTS, steps=60, lr=0.02, batch_size=4, window=8, progress=False,
                             validation=TEXTS)
    assert language.bits_per_character(model, TEXTS) < 0.8 * before
    assert history.validations[-1][1] == pytest.approx(
        math.log(2) * language.bits_per_character(model, TEXTS, batch_size=4, window=8))


def test_one_text_in_a_list_is_trained_on_like_the_text():
    found = []
    for text in ("to be or not to be", ["to be or not to be"]):
        model = model_of()
        model.train_on(text, steps=4, batch_size=1, window=17, progress=False)
        found.append(values(model))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("texts", [["a"] * 1000 + ["abcdef" * 7], ["abcdef" * 7] + ["a"] * 1000])
def test_texts_of_one_symbol_are_neither_trained_on_nor_held_out(texts):
    model = LanguageModel(characters="abcdef", embedding_size=4, hidden_size=8, seed=0)
    history = model.train_on(texts, steps=1, validation="held out", progress=False)
    alone = LanguageModel(characters="abcdef", embedding_size=4, hidden_size=8, seed=0)
    expected = alone.train_on(["abcdef" * 7], steps=1, validation="held out", progress=False)
    assert (history.losses, history.validations) == (expected.losses, expected.validations)


def test_a_part_is_held_out_of_all_texts_together():
    model = model_of()
    history = model.train_on(TEXTS, steps=2, validation="held out", progress=False)
    total = sum(map(len, TEXTS))
    held_out = TEXTS[-1][-(total // 20) :]
    assert history.validations[-1][1] == pytest.approx(
        math.log(2) * language.bits_per_character(model, [held_out]))


def test_a_run_on_texts_goes_on_bitwise(tmp_path):
    def run(steps, **options):
        model = model_of(num_layers=2, dropout=0.3)
        model.train_on(TEXTS, steps=steps, batch_size=3, window=5, decay=False, progress=False,
                       **options)
        return values(model).tobytes()

    whole = run(12)
    run(5, folder=tmp_path)
    assert run(12, folder=tmp_path, resume=True) == whole


def test_batches_of_encoded_texts():
    model = model_of()
    symbols = [model.encode(text) for text in TEXTS]
    history = training.fit(model, lambda step: Batch([s[:-1] for s in symbols],
                                                     [s[1:] for s in symbols]), steps=1)
    assert history.progress.seen == sum(max(0, len(text) - 1) for text in TEXTS)
    assert history.losses[0] == pytest.approx(
        math.log(2) * language.bits_per_character(model_of(), TEXTS))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.train_on(["a", ""], steps=1), "the text has 2 texts of at most one character"),
        (lambda m: language.train(m, ["ab", "abc"], steps=1),
         "the texts have 3 characters after their first ones, expected at least 2,048"),
        (lambda m: m.train_on(["ab", "cd"], steps=1, validation="held out"),
         "the text has 3 characters, expected at least 40"),
        (lambda m: m.train_on(["ab"] * 40, steps=1, validation=["a"]),
         "validation has 1 text of at most one character"),
        (lambda m: language.bits_per_character(m, ["a"]), "of at most one character"),
        (lambda m: m.train_on(["ab", [1, 2, 300]], steps=1), r"text\[1\] has numbers from 1 to"),
        (lambda m: m.train_on(["ab", 3], steps=1), r"text\[1\] has shape \(\), expected"),
    ],
)
def test_texts_that_do_not_fit(call, message):
    model = model_of()
    before = values(model)
    with pytest.raises((ValueError, TypeError, IndexError), match=message):
        call(model)
    np.testing.assert_array_equal(values(model), before)
