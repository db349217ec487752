"""Language models: text and symbols, samples, what a model of bytes or of characters takes."""

import copy
import json

import numpy as np
import pytest
from kinds import language_of, scale

import fastrnn
from fastrnn import LanguageModel


def bytes_model(**options):
    return LanguageModel(256, 4, 8, seed=0, **options)


# ------------------------------------------------------------------------------------------ text


def test_a_model_of_bytes_encodes_utf8():
    model = bytes_model()
    for text in ("to be", "", "Ä€𝄞\n\0", "\udcff\udc80"):
        symbols = model.encode(text)
        assert symbols.dtype == np.int32
        assert bytes(symbols.tolist()) == text.encode("utf-8", "surrogateescape")
    assert model.encode(b"\xff\x00").tolist() == [255, 0]
    assert model.encode(bytearray(b"\xff\x00")).tolist() == [255, 0]
    assert model.encode([1, 2]).tolist() == [1, 2]
    assert model.encode(np.array([255], np.uint8)).tolist() == [255]
    assert model.encode([]).tolist() == []
    symbols = np.array([1, 2], np.int32)
    model.encode(symbols)[0] = 9
    assert symbols.tolist() == [1, 2]


def test_a_model_of_bytes_decodes_utf8():
    model = bytes_model()
    for text in ("to be", "", "Ä€𝄞\n\0"):
        assert model.decode(model.encode(text)) == text
    assert model.decode([0xC4]) == "\ufffd"
    assert model.decode([0xFF, 65]) == "\ufffdA"
    assert model.decode([0xFF, 65], "surrogateescape") == "\udcffA"
    assert model.encode(model.decode(range(256), "surrogateescape")).tolist() == list(range(256))


def test_a_model_of_characters():
    model = LanguageModel(characters="to be or not to be €", embedding_size=4, hidden_size=8)
    assert model.characters == " benort€"
    assert model.vocab_size == model.output_size == 8
    assert model.encode("to€").tolist() == [6, 4, 7]
    assert model.decode([6, 4, 7]) == "to€"
    assert model.decode(model.encode("not to be")) == "not to be"
    assert model.encode([7, 0]).tolist() == [7, 0]
    with pytest.raises(ValueError, match=r"LanguageModel\.encode: text has the character 'x', "
                                         "expected those that the model has: ' benort€'"):
        model.encode("to x y")
    for text in (b"to", bytearray(b"to")):
        with pytest.raises(TypeError, match=r"text is of type byte.*, expected str: the model's"):
            model.encode(text)
    many = LanguageModel(characters="".join(map(chr, range(256, 512))), embedding_size=2,
                         hidden_size=2)
    assert many.vocab_size == 256  # and still no model of bytes
    with pytest.raises(TypeError, match="text is of type bytes, expected str"):
        many.encode(b"to")
    assert many.decode([0, 255]) == chr(256) + chr(511)


def test_a_model_of_numbers_takes_no_text():
    model = language_of()
    for text in ("to be", b"to be"):
        with pytest.raises(TypeError, match="expected whole numbers below 7: only models of bytes"):
            model.encode(text)
        with pytest.raises(TypeError, match=r"LanguageModel\.sample: prompt is of type"):
            model.sample(text, 3)
    with pytest.raises(TypeError, match=r"LanguageModel\.decode: the model has 7 symbols without"):
        model.decode([1])


@pytest.mark.parametrize(("text", "error", "match"), [
    ([7], IndexError, "text has numbers from 7 to 7, expected 0 to 6: rows of the vocabulary"),
    ([-1], IndexError, "text has numbers from -1"),
    ([0.5], TypeError, "text is float64, expected whole numbers"),
    ([[1]], ValueError, r"text has shape \(1, 1\), expected \(N,\)"),
    (5, ValueError, r"text has shape \(\)"),
    (None, TypeError, "text is None, expected whole numbers"),
    ([[1], [1, 2]], ValueError, "text is a ragged sequence"),
])
def test_what_is_no_sequence_of_symbols(text, error, match):
    with pytest.raises(error, match=match) as raised:
        language_of().encode(text)
    assert str(raised.value).startswith("LanguageModel.encode: ")


def test_half_of_a_pair_of_surrogates_is_no_character():
    model = bytes_model()
    with pytest.raises(ValueError, match=r"encode: text has the character '\\ud800', which"):
        model.encode("ab\ud800")
    with pytest.raises(ValueError, match=r"sample: prompt has the character '\\ud800'"):
        model.sample("ab\ud800", 3)


# ---------------------------------------------------------------------------------------- samples


def test_what_goes_in_comes_out():
    model = bytes_model()
    text, raw, numbers = (model.sample(prompt, 9, seed=1) for prompt in (
        "be", b"be", [ord("b"), ord("e")]))
    assert type(text) is str
    assert type(raw) is bytes
    assert len(raw) == 9
    assert raw.decode("utf-8", "replace") == text
    assert numbers.shape == (9,)
    assert bytes(numbers.tolist()) == raw
    assert model.sample(bytearray(b"be"), 9, seed=1) == raw
    assert model.sample(np.array([98, 101]), 9, seed=1).tolist() == numbers.tolist()
    own = LanguageModel(characters="abcd", embedding_size=4, hidden_size=8, seed=0)
    text = own.sample("ab", 50, seed=0)
    assert type(text) is str
    assert len(text) == 50
    assert set(text) <= set("abcd")
    assert own.decode(own.sample([0, 1], 50, seed=0)) == text
    with pytest.raises(ValueError, match=r"LanguageModel\.sample: prompt has the character 'x'"):
        own.sample("x", 3)


def test_a_prompt_of_bytes_that_are_no_utf8():
    model = bytes_model()
    latin = "Größe".encode("latin-1")
    assert model.sample(latin, 9, seed=1) == model.sample(
        latin.decode("utf-8", "surrogateescape").encode("utf-8", "surrogateescape"), 9, seed=1)
    escaped = model.sample(latin.decode("utf-8", "surrogateescape"), 99, seed=1)
    assert escaped.encode("utf-8", "surrogateescape") == model.sample(latin, 99, seed=1)
    assert "\ufffd" not in escaped
    assert "\ufffd" in model.sample("plain", 99, seed=1)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_sample_follows_the_models_own_probabilities(cell, layers):
    model = scale(language_of(cell, num_layers=layers), 3)
    drawn = model.sample([1, 2], 6, temperature=0)
    text = [1, 2, *drawn.tolist()]
    for i, symbol in enumerate(drawn, 2):
        logits, _ = model(np.array(text[:i])[:, None])
        assert logits[-1, 0].argmax() == symbol
    same = [model.sample([3], 20, seed=5).tolist() for _ in range(2)]
    assert same[0] == same[1] != model.sample([3], 20, seed=6).tolist()
    for options in ({"top_k": 1}, {"top_p": 1e-9}):
        assert model.sample([1, 2], 6, seed=3, **options).tolist() == drawn.tolist()


def test_a_sample_leaves_the_model_as_it_was():
    model = bytes_model(num_layers=2, dropout=0.8)
    before, dropout = model.state_dict(), model.dropout_state
    one = model.sample("to be", 40, seed=0)
    assert model.training
    assert model.dropout_state == dropout
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    model.eval("bfloat16")
    two = model.sample("to be", 40, temperature=np.float32(1), seed=0)
    assert [part.mode for part in model.parts().values()] == ["bfloat16"] * 3
    assert model.eval().sample("to be", 40, seed=0) == one
    assert two


# ------------------------------------------------------------------------------ configuration, seed


@pytest.mark.parametrize("options", [
    {}, {"vocab_size": 300, "cell": "gru", "num_layers": 2, "dropout": 0.25},
    {"characters": "to be or not €\udc80\udcff"}, {"dtype": "float64", "cell": "rnn"},
    {"characters": "".join(map(chr, range(300)))}])
def test_a_configuration_makes_the_same_model(options):
    model = LanguageModel(embedding_size=3, hidden_size=5, seed=0, **options)
    config = json.loads(json.dumps(model.config))
    other = LanguageModel(**config, seed=0)
    assert other.config == model.config
    assert str(other) == str(model)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], array)
    assert copy.deepcopy(model).characters == model.characters


def test_the_sizes_that_are_given_are_the_models():
    model = LanguageModel(300, 3, 5, 2, "gru", dropout=0.5, dtype=np.float64, seed=0)
    assert model.embedding.weight.shape == (300, 3)
    (layer,) = model.layers
    assert repr(layer) == "GRU(3, 5, num_layers=2, dropout=0.5, dtype=float64)"
    assert model.head.weight.shape == (300, 5)
    assert (model.output_size, model.loss_name, model.readout) == (300, "softmax", "every")
    assert repr(model) == f"LanguageModel: {layer!r}, 300 outputs, loss 'softmax', readout 'every'"
    assert LanguageModel(hidden_size=4).vocab_size == 256


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"cell": "elman"}, ValueError, r"cell is 'elman', expected one of \['rnn', 'lstm', 'g"),
        ({"vocab_size": 0}, ValueError, "vocab_size is 0, expected a whole number of at least 1"),
        ({"vocab_size": 2.5}, ValueError, "vocab_size is 2.5"),
        ({"embedding_size": -1}, ValueError, "embedding_size is -1"),
        ({"hidden_size": True}, ValueError, "hidden_size is True"),
        ({"num_layers": 0}, ValueError, "num_layers is 0"),
        ({"dropout": 2}, ValueError, "dropout is 2, expected a number from 0 to 1"),
        ({"dtype": "int8"}, TypeError, "dtype is 'int8', expected float32 or float64"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"characters": ""}, ValueError, "characters is '', expected a text"),
        ({"characters": b"ab"}, ValueError, "characters is b'ab', expected a text"),
        ({"characters": "ab\ud800"}, ValueError, r"characters has the character '\\ud800', which"),
        ({"characters": 5}, ValueError, "characters is 5, expected a text"),
        ({"characters": "ab", "vocab_size": 5}, ValueError,
         "vocab_size is 5 with characters, expected their number, 2, or none"),
    ],
)
def test_arguments_that_make_no_model(options, error, match):
    with pytest.raises(error, match=match) as raised:
        LanguageModel(**options)
    assert str(raised.value).startswith("LanguageModel: ")


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: m.sample([], 3), ValueError, "sample: prompt is empty, expected at least one"),
        (lambda m: m.sample([9], 3), IndexError, "sample: prompt has numbers from 9 to 9"),
        (lambda m: m.sample(None, 3), TypeError, "sample: prompt is None, expected whole numbers"),
        (lambda m: m.sample([1], 0), ValueError, "sample: length is 0"),
        (lambda m: m.sample([1], 1, -1), ValueError, "sample: temperature is -1"),
        (lambda m: m.sample([1], 1, seed="x"), ValueError, "sample: seed is .x."),
        (lambda m: m.sample([1], 1, top_k=0), ValueError, "sample: top_k is 0"),
        (lambda m: m.sample([1], 1, top_p=2), ValueError, "sample: top_p is 2"),
        (lambda m: m.decode([7]), IndexError, "decode: symbols has numbers from 7 to 7"),
        (lambda m: m([[7]]), IndexError, "LanguageModel: x has numbers from 7 to 7, expected 0 to"),
        (lambda m: m([[0.5]]), TypeError, "LanguageModel: x is float64, expected whole numbers"),
        (lambda m: m([1]), ValueError, r"LanguageModel: x has shape \(1,\), expected \(T, B\)"),
        (lambda m: m.loss([[1]], [[1, 2]]), ValueError, r"loss: targets has shape \(1, 2\)"),
        (lambda m: m.loss([[1]], [[9]]), IndexError, "loss: targets has numbers from 9 to 9"),
    ],
)
def test_errors_name_the_argument(call, error, match):
    model = language_of()
    before = model.state_dict()
    with pytest.raises(error, match=match) as raised:
        call(model)
    assert str(raised.value).startswith("LanguageModel")
    assert "\n" not in str(raised.value)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_threads_change_no_sample(threads):
    model, found = bytes_model(), []
    for n in threads:
        fastrnn.set_num_threads(n)
        found.append(model.sample(b"to be", 30, seed=0))
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize(("text", "options", "match"), [
    ("", {}, "train_on: the text has 0 characters, expected at least 2$"),
    ("a", {}, "train_on: the text has 1 character, expected at least 2$"),
    ("ab" * 12, {"validation": "held out"}, "train_on: the text has 24 characters, expected at le"),
    ("ab" * 30, {"validation": ""}, "validation has 0 characters, expected at least 2"),
    ("ab" * 30, {"validation": 0.1}, "validation is of type float, expected a text"),
    ("ab" * 30, {"validation": lambda: 1.0}, "validation is of type function, expected a text"),
    ("ab" * 30, {"decay": "no"}, "decay is 'no', expected True or False"),
])
def test_what_train_on_says_of_short_texts_and_wrong_options(text, options, match):
    model = LanguageModel(hidden_size=4, embedding_size=2, seed=0)
    with pytest.raises((TypeError, ValueError), match=match):
        model.train_on(text, steps=1, progress=False, **options)


def test_train_on_takes_another_optimizer_and_schedule():
    model = LanguageModel(hidden_size=4, embedding_size=2, seed=0)
    history = model.train_on("to be or not to be " * 9, steps=2, lr=0.5, progress=False,
                             optimizer="sgd", schedule=lambda step, done: 0.5)
    assert history.rates == [0.25, 0.25]
