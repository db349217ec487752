"""Models and layers as files: loaded they are the same bits; the rest is refused."""

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

import fastrnn
from fastrnn import GRU, LSTM, RNN, EncoderDecoder, LanguageModel, SequenceModel, Stack
from fastrnn.formats import describe
from fastrnn.formats.models import try_save

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 2, 3))
SYMBOLS = RNG.integers(0, 7, (5, 2))


def pair():
    return EncoderDecoder(Stack(GRU(3, 4, 2, seed=0, dropout=0.5)),
                          SequenceModel(GRU(6, 4, 2, seed=1), 7, vocab_size=7, seed=2))


MADE = {  # what is saved, and what is called to compare
    "RNN": (lambda: RNN(3, 4, nonlinearity="sigmoid", bias=False, seed=0), lambda m: m(single(X))),
    "LSTM": (lambda: LSTM(3, 4, 2, bidirectional=True, dropout=0.25, seed=0),
             lambda m: m(single(X))),
    "GRU of float64": (lambda: GRU(3, 4, batch_first=True, dtype="float64", seed=0),
                       lambda m: m(X)),
    "Stack": (lambda: Stack([LSTM(3, 4, seed=0), RNN(4, 5, seed=0)]), lambda m: m(single(X))),
    "Stack of one-hot": (lambda: Stack(GRU(7, 4, seed=0), vocab_size=7, one_hot=True),
                         lambda m: m(SYMBOLS)),
    "SequenceModel": (lambda: SequenceModel(LSTM(3, 4, seed=0), 2, loss="bce", readout="last",
                                            seed=1), lambda m: m(single(X))),
    "SequenceModel of contexts": (
        lambda: SequenceModel([GRU(6, 4, seed=0), LSTM(4, 3, seed=1)], 7, vocab_size=7,
                              context_size=3, seed=2), lambda m: m(SYMBOLS, context=single(X[0]))),
    "EncoderDecoder": (pair, lambda m: m.loss(single(X), SYMBOLS, SYMBOLS, grad=False).value),
    "LanguageModel": (lambda: LanguageModel(embedding_size=3, hidden_size=4, num_layers=2,
                                            cell="gru", dropout=0.1, seed=0),
                      lambda m: m.sample(b"ab", 20, seed=0)),
    "LanguageModel of characters": (
        lambda: LanguageModel(embedding_size=3, hidden_size=4, characters="añ\U0001f600\udc80\"\\b",
                              seed=0), lambda m: m.sample("ba", 20, seed=0)),
}


def single(a):
    return a.astype(np.float32)


def flatten(tree):
    return [a for branch in tree for a in flatten(branch)] if isinstance(tree, tuple) else [tree]


@pytest.mark.parametrize("name", MADE)
def test_a_loaded_model_is_the_same_bits(tmp_path, name):
    make, call = MADE[name]
    model = make()
    fastrnn.save(model, tmp_path / "m.safetensors", {"why": "a test"})
    other = fastrnn.load(tmp_path / "m.safetensors")
    assert type(other) is type(model)
    assert other.config == model.config
    assert not other.training
    for a, b in zip(flatten(call(other)), flatten(call(model.eval())), strict=True):
        np.testing.assert_array_equal(a, b)
    assert os.listdir(tmp_path) == ["m.safetensors"]
    other.train().save(tmp_path / "again")
    assert {n: a.tobytes() for n, a in fastrnn.load(tmp_path / "again").parameters().items()} == {
        n: a.tobytes() for n, a in model.parameters().items()}


@pytest.mark.parametrize("mode", ["float32", "bfloat16"])
def test_a_model_in_evaluation_mode_saves_its_own_values(tmp_path, mode):
    model = LanguageModel(embedding_size=3, hidden_size=4, seed=0).eval(mode)
    model.save(tmp_path / "m")
    for name, param in fastrnn.load(tmp_path / "m").parameters().items():
        np.testing.assert_array_equal(param, model.parameters()[name])
    assert model.layers[0].mode == ("evaluation" if mode == "float32" else "bfloat16")


def test_two_models_that_share_a_layer_save_the_same_values(tmp_path):
    layer = GRU(3, 4, seed=0)
    first, second = (SequenceModel(layer, n, loss="mse", seed=n) for n in (1, 2))
    layer.weight_hh_l0[...] = 0.5
    layer.weight_hh_l0[0, 0] = 2
    loaded = []
    for name, model in (("first", first), ("second", second)):
        model.save(tmp_path / name)
        loaded.append(fastrnn.load(tmp_path / name))
    for name, param in layer.parameters().items():
        for model in loaded:
            np.testing.assert_array_equal(model.parameters()[f"layers.0.{name}"], param)


def test_a_layer_that_is_there_twice_is_saved_twice(tmp_path):
    layer = GRU(3, 3, seed=0)
    model = EncoderDecoder(Stack(layer), SequenceModel(layer, 3, loss="mse", seed=0))
    model.save(tmp_path / "m")
    other = fastrnn.load(tmp_path / "m")
    for part in (other.encoder, other.decoder):
        np.testing.assert_array_equal(part.layers[0].weight_hh_l0, layer.weight_hh_l0)


class Mine(SequenceModel):
    pass


class MyGRU(GRU):
    pass


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Mine(GRU(3, 4), 1, loss="mse"),
         "model is of type Mine, expected one of .*: a subclass of SequenceModel cannot be made"),
        (lambda: MyGRU(3, 4), "a subclass of GRU cannot be made again from a file"),
        (lambda: Mine(GRU(3, 4), 1).head, "model is of type Linear, expected one of"),
        (lambda: None, "model is None, expected one of"),
        (lambda: {"weight": np.zeros(3)}, "model is of type dict"),
        (lambda: GRU, "model is of type ABCMeta"),
    ],
)
def test_what_cannot_be_made_again_is_refused(tmp_path, make, match):
    thing = make()
    for call in (lambda: fastrnn.save(thing, tmp_path / "m"), lambda: describe(thing)):
        with pytest.raises(TypeError, match=match):
            call()
    assert os.listdir(tmp_path) == []


def test_errors_of_saving(tmp_path):
    model = GRU(2, 3, seed=0)
    with pytest.raises(TypeError, match=r"^save: what is to be kept .* is not JSON"):
        fastrnn.save(model, tmp_path / "m", {"x": np.zeros(2)})
    with pytest.raises(TypeError, match=r"^save: path is None,"):
        fastrnn.save(model, None)
    with pytest.raises(FileNotFoundError, match=r"none/m'$"):
        fastrnn.save(model, tmp_path / "none" / "m")
    with pytest.raises(FileNotFoundError, match=r"none'$"):
        fastrnn.load(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        fastrnn.load(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["m", "m.bin", "m.pt", "m.safetensors"])
def test_an_onnx_file_needs_no_suffix(tmp_path, name):
    pytest.importorskip("onnx")
    model = GRU(3, 4, seed=0)
    fastrnn.save(model, tmp_path / "m.onnx")
    (tmp_path / "m.onnx").rename(tmp_path / name)
    (y,) = fastrnn.load(tmp_path / name)(single(X))
    np.testing.assert_allclose(y, model(single(X))[0], 1e-5, 1e-5)


@pytest.mark.parametrize(("model", "name", "match"), [
    (RNN(3, 4, nonlinearity="sigmoid"), "m.pt", "its nonlinearity is sigmoid"),
    (RNN(3, 4), "m.json", "no layer of RTNeural|RTNeural runs no others"),
    (GRU(3, 4), "m.onnx", "'m.onnx', expected a safetensors file, which can be converted to ONNX"),
    (MyGRU(3, 4), "m", "a subclass of GRU cannot be made again"),
])
def test_a_trial_of_every_kind_of_file_leaves_none(tmp_path, model, name, match):
    try_save(GRU(3, 4), tmp_path / name.replace(".onnx", ""))
    with pytest.raises((ValueError, TypeError), match=f"try_save: .*({match})"):
        try_save(model, tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_an_encoder_with_a_language_model_comes_back(tmp_path):
    encoder = fastrnn.Stack(fastrnn.GRU(4, 6, seed=0), vocab_size=5, seed=0)
    decoder = fastrnn.LanguageModel(embedding_size=4, hidden_size=6, cell="gru", characters="abcd")
    model = fastrnn.EncoderDecoder(encoder, decoder)
    model.save(tmp_path / "m")
    made = fastrnn.load(tmp_path / "m")
    assert isinstance(made.decoder, fastrnn.LanguageModel)
    assert made.config == model.config
    assert made.decoder.characters == "abcd"
    assert all((a == made.parameters()[name]).all() for name, a in model.parameters().items())


def test_layers_that_encoder_and_decoder_share_are_shared_in_the_copy(tmp_path):
    first, second = fastrnn.GRU(3, 4, seed=0), fastrnn.GRU(4, 4, seed=1)
    model = fastrnn.EncoderDecoder(
        fastrnn.Stack([first, second]),
        fastrnn.SequenceModel([fastrnn.GRU(3, 4, seed=2), second], 3, seed=0))
    model.save(tmp_path / "m")
    made = fastrnn.load(tmp_path / "m")
    assert made.encoder.layers[1] is made.decoder.layers[1]
    assert made.encoder.layers[0] is not made.decoder.layers[0]
    assert made.num_parameters == model.num_parameters
    assert all((a == made.parameters()[name]).all() for name, a in model.parameters().items())


def test_a_part_that_no_file_can_bring_back_is_refused_before_it_is_written(tmp_path):
    class Own(fastrnn.GRU):
        pass

    class Decoder(fastrnn.SequenceModel):
        pass

    for model, match in (
        (fastrnn.SequenceModel(Own(3, 4), 2), "a layer of the model is of type Own"),
        (fastrnn.EncoderDecoder(fastrnn.Stack(fastrnn.GRU(3, 4)), Decoder(fastrnn.GRU(3, 4), 3)),
         "decoder is of type Decoder"),
    ):
        with pytest.raises(TypeError, match=f"save: {match}, .* cannot be made again"):
            model.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have(name):
    model = fastrnn.GRU(3, 4, seed=0)
    for attempt in (lambda: model.save(name), lambda: fastrnn.load(name)):
        with pytest.raises(ValueError, match=r"^(save|load): path is '.*', expected the name of a"):
            attempt()


@pytest.mark.parametrize(("outputs", "loss"), [(1, "mse"), (2, "softmax")])
def test_a_head_of_one_output_is_no_softmax(tmp_path, outputs, loss):
    module = fastrnn.SequenceModel(fastrnn.GRU(1, 4, seed=0), outputs, seed=0)
    arrays = {f"rec.{name}": a for name, a in module.layers[0].parameters().items()}
    arrays |= {f"lin.{name}": a for name, a in module.head.parameters().items()}
    path = tmp_path / "m.safetensors"
    save_file(arrays, path)
    model = fastrnn.load(path)
    assert model.loss_name == loss
    x = np.linspace(-1, 1, 5, dtype=np.float32)[:, None, None]
    expected, _ = module.eval()(x)
    np.testing.assert_array_equal(model(x)[0], expected)
    if outputs == 1:
        np.testing.assert_array_equal(model.predict(x.swapaxes(0, 1))[0], expected[:, 0])
    for name in ("loss", "readout"):
        with pytest.raises(ValueError, match=f"^load: {name} is 'no', expected one of"):
            fastrnn.load(path, **{name: "no"})


@pytest.mark.parametrize("value", [np.zeros(2), [1], "text"], ids=str)
def test_notes_and_mapping_are_dictionaries(tmp_path, value):
    model = GRU(3, 4, seed=0)
    with pytest.raises(TypeError, match=r"notes is .*, expected a dictionary of JSON values"):
        fastrnn.save(model, tmp_path / "m", notes=value)
    assert not (tmp_path / "m").exists()
    fastrnn.save(model, tmp_path / "m", notes={})
    with pytest.raises(ValueError, match=r"mapping is .*, expected None: .* is a file of fastrnn"):
        fastrnn.load(tmp_path / "m", mapping=value)
