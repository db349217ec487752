"""Modes of models' parts, and loading: nothing goes stale, nothing is half done."""

import copy
import pickle

import cases
import numpy as np
import pytest
from kinds import (
    B,
    T,
    V,
    models,
    pair_data,
)

from fastrnn import GRU, LSTM, EncoderDecoder, SequenceModel, Stack

per_model = pytest.mark.parametrize("name", models())

# ----------------------------------------------------------------------------------------- modes


@per_model
def test_evaluation_mode_is_read_only_through_and_through(name):
    model = models()[name].eval()
    assert not model.training
    for part in model.parts().values():
        for array in (part.flat, *part.parameters().values()):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
    key = next(iter(model.parameters()))
    for change in (lambda: model.parameters().__setitem__(key, 0 * model.parameters()[key]),
                   lambda: setattr(next(iter(model.parts().values())), "flat", 0)):
        before = model.state_dict()
        with pytest.raises(ValueError, match=r"has shape|read-only in evaluation mode"):
            change()
        cases.assert_same_bytes(model.state_dict(), before)
    for part in model.train().parts().values():
        part.flat[:] = 0
    assert model.training
    assert not any(param.any() for param in model.parameters().values())


CHANGES = {
    "load_state_dict": lambda model, new: model.load_state_dict(new),
    "the layer's": lambda model, new: model.layers[0].load_state_dict(
        {name.removeprefix("layers.0."): a for name, a in new.items() if "layers.0" in name}),
    "flat after train": lambda model, new: setattr(
        model.layers[0].train(), "flat", np.concatenate(
            [a.ravel() for name, a in new.items() if "layers.0" in name])),
    "flat in place": lambda model, new: model.layers[0].train().flat.__setitem__(
        slice(None), np.concatenate([a.ravel() for name, a in new.items() if "layers.0" in name])),
    "names after train": lambda model, new: model.train().parameters().update(new),
}


@pytest.mark.parametrize("mode", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_alone_in_evaluation_mode_never_computes_with_old_weights(change, mode):
    model = SequenceModel([LSTM(3, 17, seed=0), GRU(17, 5, seed=1)], 2, loss="mse", seed=2)
    x = np.random.default_rng(0).standard_normal((T, B, 3)).astype("f4")
    model.layers[0].eval(mode)
    model(x)
    model.predict(x)
    other = SequenceModel([LSTM(3, 17, seed=5), GRU(17, 5, seed=6)], 2, loss="mse", seed=7)
    CHANGES[change](model, other.state_dict())
    fresh = SequenceModel([LSTM(3, 17, seed=5), GRU(17, 5, seed=6)], 2, loss="mse", seed=7)
    fresh.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(fresh.layers[0].flat, other.layers[0].flat)
    for one, two in zip(model.parts().values(), fresh.parts().values(), strict=True):
        two.set_mode(one.mode)
    np.testing.assert_array_equal(model(x)[0], fresh(x)[0])
    stream, again = model.stream(B), fresh.stream(B)
    for row in x:
        np.testing.assert_array_equal(stream(row), again(row))
    model.train()
    fresh.train()
    np.testing.assert_array_equal(model(x)[0], fresh(x)[0])


@pytest.mark.parametrize("mode", ["float32", "bfloat16"])
def test_a_model_of_layers_in_evaluation_mode(mode):
    layer = LSTM(3, 33, seed=0).eval(mode)
    model = SequenceModel(layer, 2, loss="mse", seed=1)
    x = np.random.default_rng(0).standard_normal((T, B, 3)).astype("f4")
    y, _ = layer(x)
    cases.assert_close("outputs", model(x)[0], y @ model.head.weight.T + model.head.bias, 1e-5)
    assert [part.mode for part in model.parts().values()] == [layer.mode, "training"]
    assert model.training  # the head is
    model.eval(mode)
    assert [part.mode for part in model.parts().values()] == [layer.mode] * 2
    model.train()
    assert [part.mode for part in model.parts().values()] == ["training"] * 2
    model.loss(x, np.zeros((T, B, 2), "f4")).backward()


def mode_list(model):
    return [part.mode for part in model.parts().values()]


@pytest.mark.parametrize("modes", [("training", "training"), ("evaluation", "evaluation"),
                                   ("bfloat16", "bfloat16"), ("training", "bfloat16"),
                                   ("evaluation", "training")])
def test_nothing_that_computes_changes_a_mode(modes):
    pair = EncoderDecoder(Stack(GRU(3, 8, seed=0), vocab_size=V, seed=1),
                          SequenceModel(GRU(3, 8, seed=2), V, vocab_size=V, seed=3))
    model = SequenceModel([GRU(3, 8, seed=0), GRU(8, 8, seed=1)], V, vocab_size=V, seed=0)
    for target, own in ((pair.encoder, modes[0]), (pair.decoder, modes[1])):
        for part in target.parts().values():
            part.set_mode(own)
    for part, own in zip(model.parts().values(), (*modes, *modes), strict=True):
        part.set_mode(own)
    before = mode_list(pair), mode_list(model)
    source, inputs, targets, _ = pair_data()
    pair.generate(source, np.zeros(B, int), 4)
    pair.loss(source, inputs, targets, grad=False)
    model.predict(inputs.T)
    model.evaluate(inputs.T)
    model.generate([1, 2], 4)
    model.loss(inputs, targets, grad=False)
    model(inputs)
    model.state_dict()
    model.load_state_dict(model.state_dict())
    pair.load_state_dict(pair.state_dict())
    with pytest.raises(ValueError, match="missing"):
        model.load_state_dict({})
    copy.deepcopy(model), pickle.dumps(pair), str(model), repr(pair)
    assert (mode_list(pair), mode_list(model)) == before


def test_generating_in_bfloat16_is_what_the_model_computes_in_bfloat16():
    pair = EncoderDecoder(Stack(GRU(3, 64, seed=0), vocab_size=V, seed=1),
                          SequenceModel(GRU(3, 64, seed=2), V, vocab_size=V, seed=3))
    pair.eval("bfloat16")
    source = pair_data()[0]
    drawn = pair.generate(source, np.zeros(B, int), 9)
    _, state = pair.encoder(source)
    logits, _ = pair.decoder(np.concatenate([np.zeros((1, B), int), drawn[:-1]]), state)
    np.testing.assert_array_equal(logits.argmax(-1), drawn)
    exact = copy.deepcopy(pair).eval()
    assert not np.array_equal(exact.encoder(source)[1][0], state[0])


# --------------------------------------------------------------------------------------- loading


@per_model
def test_loading_is_whole_or_not_at_all(name):
    model = models()[name]
    model.eval()
    before, mode = model.state_dict(), mode_list(model)
    good = {key: a + 1 for key, a in before.items()}
    last = list(good)[-1]
    for bad, error, match in (
            ({key: a for key, a in good.items() if key != last}, ValueError, "missing"),
            (good | {"more": 1}, ValueError, r"unexpected \['more'\]"),
            (good | {last: good[last][..., None]}, ValueError, "has shape"),
            (good | {last: "text"}, TypeError, "expected numbers"),
            (good | {last: [[1], [1, 2]]}, ValueError, "ragged"),
            (good | {last: good[last].astype(complex)}, TypeError, "is complex128, expected num"),
            (5, TypeError, "is of type int, expected a mapping")):
        with pytest.raises(error, match=match) as raised:
            model.load_state_dict(bad)
        assert str(raised.value).startswith(f"{type(model).__name__}.load_state_dict: ")
        cases.assert_same_bytes(model.state_dict(), before)
        assert mode_list(model) == mode
    model.load_state_dict(good)
    cases.assert_same_bytes(model.state_dict(), good)
    assert mode_list(model) == mode
    model.load_state_dict({key: a.astype("f4") for key, a in before.items()})
    model.load_state_dict(model.parameters())
    model.load_state_dict(dict(reversed(before.items())))
    cases.assert_same_bytes(model.state_dict(), before)
