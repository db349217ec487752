"""Parameters never move: names, parts that models share, copies, what is fixed, a table."""

import copy
import pickle

import cases
import numpy as np
import pytest
from kinds import (
    F64,
    N,
    V,
    arrays,
    data_of,
    grads_of,
    language_of,
    model_of,
    models,
    pair_data,
    pair_of,
    some_output,
)

from fastrnn import GRU, LSTM, RNN, EncoderDecoder, SequenceModel, Stack
from fastrnn.models import Embedding, Linear
from fastrnn.models.model import Model

per_model = pytest.mark.parametrize("name", models())

# ------------------------------------------------------------------------------- names and buffers


def test_names_and_order_of_the_parameters():
    layer = LSTM(3, 4, seed=0)
    model = SequenceModel([layer, GRU(4, 2, seed=0)], 1, vocab_size=7, context_size=2, loss="bce",
                          seed=0)
    assert model.layers[0] is layer
    assert list(model.parts()) == ["layers.0", "layers.1", "embedding", "head", "context"]
    assert list(model.parameters()) == [
        *(f"layers.{i}.{name}_l0" for i in (0, 1) for name in cases.PARAMETERS),
        "embedding.weight", "head.weight", "head.bias", "context.weight", "context.bias"]
    assert list(pair_of().parts()) == [
        "encoder.layers.0", "encoder.layers.1", "encoder.embedding", "decoder.layers.0",
        "decoder.layers.1", "decoder.embedding", "decoder.head"]
    assert model.recurrent == list(model.layers)
    assert model.num_parameters == sum(p.size for p in model.parameters().values())


@per_model
def test_arrays_handed_out_stay_live_for_ever(name):
    model = models()[name]
    params, grads = dict(model.parameters()), dict(model.grads)
    flats = {key: (part.flat, part.flat_grads) for key, part in model.parts().items()}
    model.eval().train()
    model.load_state_dict({key: np.full_like(p, 0.25) for key, p in params.items()})
    for part in model.parts().values():
        part.flat = part.flat + 1
        part.flat_grads = np.ones_like(part.flat)
    model.zero_grad()
    model.eval("float32")
    assert all(p is q for p, q in zip(params.values(), model.parameters().values(), strict=True))
    assert all(p is q for p, q in zip(grads.values(), model.grads.values(), strict=True))
    assert all((p == 1.25).all() for p in params.values())
    assert not any(g.any() for g in grads.values())
    for key, part in model.parts().items():
        assert part.flat is flats[key][0]
        assert part.flat_grads is flats[key][1]
    cases.assert_same_bytes(model.state_dict(), params)


def test_a_layers_values_are_the_same_in_a_model():
    layer = LSTM(3, 4, seed=0)
    expected = layer.state_dict()
    W = layer.parameters()["weight_hh_l0"]
    model = SequenceModel([layer, GRU(4, 2, seed=0)], 1, loss="mse", seed=0)
    for name, values in expected.items():
        np.testing.assert_array_equal(model.parameters()[f"layers.0.{name}"], values)
    assert model.parameters()["layers.0.weight_hh_l0"] is W
    layer.flat[:] = 7
    assert (model.state_dict()["layers.0.weight_hh_l0"] == 7).all()
    assert model.grads["layers.0.weight_hh_l0"] is layer.grads["weight_hh_l0"]


# ---------------------------------------------------------------------------------- shared parts


def descend(model, p, rate=0.1):
    model.zero_grad()
    p.backward()
    for part in model.parts().values():
        part.flat -= rate * part.flat_grads


def test_an_encoder_in_two_models_learns_in_both():
    encoder = GRU(3, 8, seed=0, **F64)
    W = encoder.parameters()["weight_hh_l0"]
    first = SequenceModel(encoder, 1, loss="mse", seed=1)
    second = SequenceModel(encoder, 5, loss="softmax", seed=2)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 1))
    classes = rng.integers(0, 5, (6, 4))
    before = W.copy()
    for model, targets in ((first, y), (second, classes), (first, y)):
        descend(model, model.loss(x, targets))
        assert (before != W).all()
        before = W.copy()
        for one in (first, second):
            assert one.parameters()["layers.0.weight_hh_l0"] is W
            np.testing.assert_array_equal(one.state_dict()["layers.0.weight_hh_l0"], W)
    np.testing.assert_array_equal(encoder.state_dict()["weight_hh_l0"], W)


def test_gradients_of_two_models_add_up_in_the_layer_they_share():
    encoder = GRU(3, 8, seed=0, **F64)
    first = SequenceModel(encoder, 1, loss="mse", seed=1)
    second = SequenceModel(encoder, 5, seed=2)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 1))
    classes = rng.integers(0, 5, (6, 4))
    one, two = first.loss(x, y), second.loss(x, classes)  # both in flight
    one.backward()
    alone = encoder.flat_grads.copy()
    two.backward()
    both = encoder.flat_grads.copy()
    encoder.zero_grad()
    second.loss(x, classes).backward()
    np.testing.assert_allclose(both, alone + encoder.flat_grads, rtol=1e-12, atol=1e-16)


def shared_pair():
    shared = GRU(3, 4, seed=0, **F64)
    return EncoderDecoder(Stack(shared, vocab_size=V, seed=1),
                          SequenceModel(shared, V, vocab_size=V, seed=2))


def test_one_layer_as_encoder_and_decoder():
    model = shared_pair()
    source, inputs, targets, weights = pair_data()
    layer = model.encoder.layers[0]
    assert model.recurrent == [layer, layer]
    assert model.num_parameters == 3 * 4 * (3 + 4 + 2) + 2 * V * 3 + V * 4 + V
    assert f"{model.num_parameters:,}" in str(model).splitlines()[-1]
    model.loss(source, inputs, targets, weights=weights).backward()

    def loss():
        return model.loss(source, inputs, targets, weights=weights, grad=False).value

    for name, param in layer.parameters().items():
        cases.assert_close(name, layer.grads[name], cases.differences(loss, param), 1e-6)
    grads = model.new_grads()
    model.loss(source, inputs, targets, weights=weights).backward(grads=grads)
    for name, grad in layer.grads.items():
        np.testing.assert_allclose(grads[f"encoder.layers.0.{name}"]
                                   + grads[f"decoder.layers.0.{name}"], grad, rtol=1e-12)


COPIES = {"deepcopy": copy.deepcopy, **{
    f"pickle{k}": lambda m, k=k: pickle.loads(pickle.dumps(m, k))
    for k in range(2, pickle.HIGHEST_PROTOCOL + 1)}}


@pytest.mark.parametrize("copier", COPIES)
@pytest.mark.parametrize("mode", ["training", "evaluation"])
@per_model
def test_a_copy_is_equal_and_apart(name, mode, copier):
    model = models()[name].train(mode == "training")
    p = None
    if isinstance(model, SequenceModel) and model.output_size == N:
        x, targets, _, context = data_of(model)
        p = model.loss(x, targets, context=context, grad=True)  # a pass in flight is no obstacle
    other = COPIES[copier](model)
    assert type(other) is type(model)
    assert other.config == model.config
    assert [part.mode for part in other.parts().values()] == [mode] * len(model.parts())
    cases.assert_same_bytes(other.state_dict(), model.state_dict())
    assert some_output(other).tobytes() == some_output(model).tobytes()
    for one, two in zip(model.parts().values(), other.parts().values(), strict=True):
        assert not np.shares_memory(one.flat, two.flat)
        assert not np.shares_memory(one.flat_grads, two.flat_grads)
    for key, array in other.parameters().items():
        part, _, own = key.rpartition(".")
        assert np.shares_memory(array, other.parts()[part].flat)
        assert array is other.parts()[part].parameters()[own]
    assert str(other) == str(model)
    if p is not None:
        other.train()
        other.loss(x, targets, context=context).backward()
        assert not any(grad.any() for grad in model.grads.values())
        p.backward()
        cases.assert_same_bytes(grads_of(other), grads_of(model))
    with pytest.raises(AttributeError, match="is fixed when the"):
        other._parts = {}


@pytest.mark.parametrize("copier", COPIES)
def test_models_that_share_a_layer_share_it_in_a_copy_of_both(copier):
    encoder = LSTM(3, 4, seed=0, **F64)
    pair = [SequenceModel(encoder, 1, loss="mse", seed=1), SequenceModel(encoder, N, seed=2)]
    first, second = COPIES[copier](pair)
    assert first.layers[0] is second.layers[0]
    assert first.parts()["layers.0"] is second.parts()["layers.0"] is first.layers[0]
    assert first.layers[0] is not encoder
    first.layers[0].flat[:] = 3
    assert (second.state_dict()["layers.0.weight_hh_l0"] == 3).all()
    assert not (encoder.flat == 3).any()
    one = COPIES[copier](shared_pair())
    assert one.encoder.layers[0] is one.decoder.layers[0]
    alone = COPIES[copier](pair[0])
    assert alone.layers[0] is not encoder


def test_the_same_seed_is_the_same_model():
    for make in (lambda seed: language_of(seed=seed), lambda seed: SequenceModel(
            {"layer": "GRU", "input_size": 3, "hidden_size": 4}, 2, seed=seed),
            lambda seed: Stack([LSTM(3, 4, seed=0)], vocab_size=5, seed=seed)):
        one, two, other = (make(seed).state_dict() for seed in (0, 0, 1))
        cases.assert_same_bytes(one, two)
        assert any(not np.array_equal(one[name], other[name]) for name in one)


# --------------------------------------------------------------------------------- what is fixed


@pytest.mark.parametrize(("name", "attribute"), [
    *((name, attribute) for name in ("numbers", "from a context", "one-hot symbols", "language")
      for attribute in ("layers", "embedding", "head", "context", "vocab_size", "one_hot",
                        "output_size", "loss_name", "readout", "context_size")),
    ("pair", "encoder"), ("pair", "decoder"), ("language", "cell"), ("language", "characters"),
    ("stack", "layers"), ("stack", "embedding")])
def test_what_a_model_is_made_of_cannot_be_replaced(name, attribute):
    model = models()[name]
    before = getattr(model, attribute)
    for value in (before, None, 5, Linear(2, 3), Embedding(2, 3), (RNN(2, 3),)):
        with pytest.raises(AttributeError, match=f"{attribute} is fixed when the "):
            setattr(model, attribute, value)
    assert getattr(model, attribute) is before


def test_what_looks_like_a_buffer_is_refused():
    model = model_of("numbers")
    for name in ("flat", "flat_grads"):
        with pytest.raises(AttributeError, match="SequenceModel has no buffer of its own"):
            setattr(model, name, np.zeros(3))
        with pytest.raises(AttributeError):
            getattr(model, name)
    for name in ("training", "dtype", "grads", "recurrent", "config", "num_parameters"):
        with pytest.raises(AttributeError):
            setattr(model, name, None)
    with pytest.raises(TypeError):
        model.layers[0] = GRU(2, 3)
    with pytest.raises(TypeError, match="cannot be deleted"):
        del model.parameters()["head.bias"]
    model.parameters()["head.bias"] = np.full(N, 2.0)
    assert (model.head.bias == 2).all()
    model.head.bias = np.full(N, 3.0)
    assert (model.state_dict()["head.bias"] == 3).all()
    with pytest.raises(ValueError, match=r"there is no 'head\.scale'"):
        model.parameters()["head.scale"] = 1
    model.note = "a model may have notes of its own"
    assert copy.deepcopy(model).note == model.note


@per_model
def test_a_configuration_makes_a_model_of_the_same_shapes(name):
    import json

    model = models()[name]
    config = json.loads(json.dumps(model.config))
    if isinstance(model, EncoderDecoder):
        other = EncoderDecoder(Stack(**config["encoder"]), SequenceModel(**config["decoder"]))
    else:
        other = type(model)(**config)
    assert other.config == model.config
    other.load_state_dict(model.state_dict())
    assert some_output(other).tobytes() == some_output(model).tobytes()


def test_dropouts_state_can_be_set_back():
    model = SequenceModel([LSTM(3, 4, 2, dropout=0.5, seed=1, **F64)], N, seed=0)
    x, targets, _, _ = data_of(model)
    state = model.dropout_state
    one = model.loss(x, targets).value
    assert model.loss(x, targets).value != one
    model.dropout_state = state
    assert model.loss(x, targets).value == one
    assert model(x)[0].tobytes() != model(x)[0].tobytes()  # a call draws, too
    right = model.loss(x, targets, grad=False).value
    state = model.dropout_state
    model.eval()
    for every in (None, 2):  # in evaluation mode there is none, with a pass or without
        for grad in (True, False):
            found = model.loss(x, targets, grad=grad, recompute_every=every).value
            assert found == pytest.approx(right, rel=1e-13)
    assert model(x)[0].tobytes() == model(x)[0].tobytes() == model.forward(x)[0].tobytes()
    assert model.dropout_state == state
    for bad in ([], state * 2, None, 5):
        with pytest.raises(ValueError, match="expected a list with one state for each of 1 recurr"):
            model.dropout_state = bad


# ---------------------------------------------------------------------------------- the parts alone


def test_linear_and_embedding_as_parts():
    head = Linear(3, 2, seed=0)
    assert repr(head) == "Linear(3, 2)"
    assert head.config == {"part": "Linear", "inputs": 3, "outputs": 2, "dtype": "float32"}
    assert np.abs(head.flat).max() <= 3**-0.5
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 5, 3)).astype("f4")
    cases.assert_close("y", head.apply(x), x @ head.weight.T + head.bias, 1e-6)
    table = Embedding(5, 3, dtype="float64", seed=1)
    assert repr(table) == "Embedding(5, 3)"
    assert table.weight.dtype == np.float64
    assert table.config == {"part": "Embedding", "symbols": 5, "width": 3, "dtype": "float64"}
    for make, match in ((lambda: Linear(0, 3), "Linear: inputs is 0"),
                        (lambda: Linear(3, 2.5), "Linear: outputs is 2.5"),
                        (lambda: Embedding(-1, 3), "Embedding: symbols is -1"),
                        (lambda: Embedding(3, 3, seed=-1), "Embedding: seed is -1")):
        with pytest.raises(ValueError, match=match):
            make()
    with pytest.raises(TypeError, match="Linear: dtype is 'int8'"):
        Linear(3, 2, dtype="int8")
    for part in (head, table):
        again = pickle.loads(pickle.dumps(part))
        cases.assert_same_bytes(again.state_dict(), part.state_dict())
    assert arrays(((1, 2), 3)) == [1, 2, 3]


# ----------------------------------------------------------------------------------------- print


def test_a_printed_model_is_a_table():
    model = SequenceModel([LSTM(8, 64, 2, seed=0), GRU(64, 1000, seed=0)], 5, vocab_size=50,
                          context_size=3, readout="last", seed=0)
    model.layers[1].eval("bfloat16")
    assert str(model) == """\
SequenceModel: LSTM(8, 64, num_layers=2), GRU(64, 1000), 5 outputs, loss 'softmax', readout 'last'
part       layer                      output         parameters  mode      dtype
layers.0   LSTM(8, 64, num_layers=2)  (T, B, 64)         52,224  training  float32
layers.1   GRU(64, 1000)              (T, B, 1000)    3,198,000  bfloat16  float32
embedding  Embedding(50, 8)           (T, B, 8)             400  training  float32
head       Linear(1000, 5)            (B, 5)              5,005  training  float32
context    Linear(3, 1256)            initial state       5,024  training  float32
total                                                 3,260,653"""
    assert repr(model).splitlines() == str(model).splitlines()[:1]


def test_what_printed_models_have_in_common():
    for name, model in models().items():
        lines = str(model).splitlines()
        assert lines[0] == repr(model)
        assert len(lines) == 3 + len(model.parts()), name
        for line, (key, part) in zip(lines[2:], model.parts().items(), strict=False):
            assert line.startswith(key + " ")
            assert repr(part) in line
            assert line.endswith("training  float64")
            assert "(T, B, " in line or "(B, " in line or "initial state" in line
        assert not any(line != line.rstrip() for line in lines)
    assert repr(pair_of()) == ("EncoderDecoder of LSTM(3, 4, dtype=float64), GRU(4, 2, "
                               "dtype=float64), LSTM(2, 4, dtype=float64), GRU(4, 2, "
                               "dtype=float64)")


def test_a_model_of_ones_own_says_no_shapes():
    class Pair(Model):
        config = {}

    model = Pair({"first": GRU(3, 4, seed=0), "second": LSTM(3, 4, seed=0, **F64)})
    assert str(model) == """\
Pair of GRU(3, 4), LSTM(3, 4, dtype=float64)
part    layer                      output  parameters  mode      dtype
first   GRU(3, 4)                                 108  training  float32
second  LSTM(3, 4, dtype=float64)                 144  training  float64
total                                             252"""


def test_mode_and_gradients_of_a_model_cannot_be_set():
    model = SequenceModel(GRU(3, 4), 2)
    for name in ("training", "grads"):
        with pytest.raises(AttributeError, match=f"{name} cannot be set; use train"):
            setattr(model, name, False)
    assert model.training


def test_a_configuration_may_have_a_seed_of_its_own():
    layer = {"layer": "GRU", "input_size": 3, "hidden_size": 4}
    made = SequenceModel(layer | {"seed": 5}, 2, seed=0).layers[0]
    assert (made.flat == GRU(3, 4, seed=5).flat).all()
    with pytest.raises(TypeError, match="one_hot is 'no', expected True or False"):
        Stack(layer, vocab_size=3, one_hot="no")
