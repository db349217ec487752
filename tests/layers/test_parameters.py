"""Parameters never move: what is a live array, what an assignment does, and who may change what."""

import copy
import mmap
import pickle
from pathlib import Path

import cases
import numpy as np
import pytest
import stacks

import fastrnn
from fastrnn.layers.parameters import distinct, modes, parts_of

per_mode = pytest.mark.parametrize("mode", ["training", "evaluation", "bfloat16"])


def set_mode(layer, mode):
    """Choose one of the three modes."""
    return layer.train() if mode == "training" else layer.eval(
        "bfloat16" if mode == "bfloat16" else "float32")


def model_of(*layers):
    return fastrnn.SequenceModel(list(layers), 2, seed=0)


def outputs(target, data):
    return target(data["x"])[0].copy()


# ------------------------------------------------------------------------------- buffers never move


@stacks.per_kind
def test_arrays_that_were_handed_out_are_the_live_ones_for_ever(cell):
    layer = cases.LAYERS[cell](3, 4, 2, seed=0)
    params, grads = layer.parameters(), layer.grads
    W, dW = layer.weight_hh_l1, grads["weight_hh_l1"]
    flat, flat_grads = layer.flat, layer.flat_grads
    state = cases.LAYERS[cell](3, 4, 2, seed=5).state_dict()
    models = []
    for step in (
        lambda: models.append(model_of(layer)),
        lambda: models.append(fastrnn.Stack([layer])),  # and a second model
        layer.eval,
        lambda: layer.eval("bfloat16"),
        lambda: layer.load_state_dict(state),
        layer.train,
        lambda: layer.load_state_dict(state),
        lambda: models[0].load_state_dict(models[0].state_dict()),
        lambda: setattr(layer, "flat", layer.flat * 2),
        lambda: models[0].eval().train(),
        lambda: pickle.loads(pickle.dumps(layer)).train(),
        lambda: copy.deepcopy(models[0]).eval(),
        lambda: copy.copy(layer).eval(),
        lambda: layer.backward(layer(np.ones((2, 1, 3), np.float32))[0]),
        models.clear,
    ):
        step()
        assert layer.flat is flat
        assert layer.flat_grads is flat_grads
        name = "weight_hh_l1"
        assert layer.parameters()[name] is getattr(layer, name) is params[name] is W
        assert layer.grads[name] is grads[name] is dW
        for model in models:
            assert model.parameters()[f"layers.0.{name}"] is W
            assert model.grads[f"layers.0.{name}"] is dW
        stacks.assert_views(layer)
        assert np.shares_memory(W, flat)
    data = stacks.draw(layer, 5, 2)
    before = outputs(layer, data)
    W[...] = 0
    assert np.any(outputs(layer, data) != before)
    stacks.both(layer, data)
    assert np.any(dW)


def test_one_layer_in_two_models_is_one_layer():
    layer = fastrnn.GRU(3, 4, seed=0)
    one, other = model_of(layer), model_of(layer)
    x = np.ones((5, 2, 3), np.float32)
    before = [model.eval()(x)[0] for model in (one, other)]
    one.train()
    assert layer.training
    one.parameters()["layers.0.bias_ih_l0"] = np.full(12, 0.5)
    assert np.all(other.state_dict()["layers.0.bias_ih_l0"] == 0.5)
    for model, was in zip((one, other), before, strict=True):
        assert np.any(model.eval()(x)[0] != was)
    targets = np.zeros((5, 2), int)
    layer.zero_grad()
    alone = []
    for model in (one, other):
        model.train().loss(x, targets).backward()
        alone.append(layer.flat_grads.copy())
        layer.zero_grad()
    for model in (one, other):
        model.loss(x, targets).backward()
    cases.assert_close("gradients add", layer.flat_grads, alone[0] + alone[1], 1e-6)


# ------------------------------------------------------------------------------------- assignments


VALUES = {
    "the same dtype": lambda a: a.astype(np.float32),
    "float64": lambda a: a.astype(np.float64),
    "whole numbers": lambda a: np.arange(a.size).reshape(a.shape),
    "big-endian": lambda a: a.astype(">f4"),
    "backwards": lambda a: a[::-1],
    "fortran": np.asfortranarray,
    "lists": lambda a: a.tolist(),
    "read-only": cases.read_only,
    "misaligned": cases.misaligned,
}


@pytest.mark.parametrize("which", VALUES)
def test_assigning_copies_the_values_in(which):
    layer = fastrnn.LSTM(3, 4, 2, seed=0)
    model = model_of(layer)
    rng = np.random.default_rng(0)

    def targets():
        yield layer.flat, lambda value: setattr(layer, "flat", value)
        yield layer.flat_grads, lambda value: setattr(layer, "flat_grads", value)
        for name in ("weight_ih_l0", "bias_hh_l1"):
            yield layer.parameters()[name], lambda value, n=name: setattr(layer, n, value)
            yield layer.parameters()[name], lambda value, n=name: layer.parameters().update(
                {n: value})
            yield layer.grads[name], lambda value, n=name: layer.grads.update({n: value})
            yield layer.parameters()[name], lambda value, n=f"layers.0.{name}": model.parameters(
                ).update({n: value})

    for array, assign in targets():
        value = VALUES[which](rng.standard_normal(array.shape).astype(np.float32))
        expected = np.array(value, np.float32)
        assert assign(value) is None
        np.testing.assert_array_equal(array, expected)
        assert not isinstance(value, np.ndarray) or not np.shares_memory(array, value)
        stacks.assert_views(layer)


def test_in_place_operators_work_on_the_live_arrays():
    layer = fastrnn.LSTM(3, 4, seed=0)
    before = layer.flat.copy()
    layer.flat *= 2
    layer.weight_ih_l0 *= 2
    layer.parameters()["weight_ih_l0"] *= 2
    layer.flat_grads += 1
    layer.grads["bias_ih_l0"] += 1
    np.testing.assert_array_equal(layer.flat[:48], before[:48] * 8)
    np.testing.assert_array_equal(layer.flat[48:], before[48:] * 2)
    assert (layer.flat_grads == 1).sum() == layer.flat.size - 16
    stacks.assert_views(layer)


def test_a_value_may_lie_in_the_array_that_it_is_for():
    layer = fastrnn.LSTM(3, 4, seed=0)
    before = layer.flat.copy()
    layer.flat = layer.flat[::-1]
    np.testing.assert_array_equal(layer.flat, before[::-1])
    kept = layer.state_dict()
    swapped = dict(layer.parameters()) | {"bias_ih_l0": layer.bias_hh_l0,
                                          "bias_hh_l0": layer.bias_ih_l0}
    layer.load_state_dict(swapped)
    np.testing.assert_array_equal(layer.bias_ih_l0, kept["bias_hh_l0"])
    np.testing.assert_array_equal(layer.bias_hh_l0, kept["bias_ih_l0"])


REFUSED = [
    (lambda a: setattr(a, "flat", np.zeros(3)), ValueError,
     r"LSTM: flat has shape \(3,\), expected \(144,\)"),
    (lambda a: setattr(a, "flat", np.zeros((144, 1))), ValueError, r"flat has shape \(144, 1\)"),
    (lambda a: setattr(a, "flat", 0.0), ValueError, r"flat has shape \(\), expected \(144,\)"),
    (lambda a: setattr(a, "flat", "text"), TypeError, "flat is of type str, expected numbers"),
    (lambda a: setattr(a, "flat", None), TypeError, "LSTM: flat is None, expected numbers"),
    (lambda a: setattr(a, "flat_grads", np.zeros(3)), ValueError, "LSTM: flat_grads has shape"),
    (lambda a: setattr(a, "weight_ih_l0", np.zeros((3, 16))), ValueError,
     r"LSTM: weight_ih_l0 has shape \(3, 16\), expected \(16, 3\)"),
    (lambda a: setattr(a, "bias_ih_l0", [[0.0], [0.0, 1.0]]), ValueError, "bias_ih_l0 is a ragged"),
    (lambda a: setattr(a, "bias_ih_l0", np.zeros(16, complex)), TypeError, "bias_ih_l0 is complex"),
    (lambda a: setattr(a, "weight_ih_l1", np.zeros((16, 3))), AttributeError,
     r"LSTM has no parameter 'weight_ih_l1', it has \['weight_ih_l0', "),
    (lambda a: setattr(a, "bias_ih", np.zeros(16)), AttributeError, "has no parameter 'bias_ih'"),
    (lambda a: a.parameters().update(bias_ih_l0=np.zeros(15)), ValueError,
     r"bias_ih_l0 has shape \(15,\), expected \(16,\)"),
    (lambda a: a.parameters().update(3), TypeError,
     "Named.update: its argument is 3, expected arrays by name"),
    (lambda a: a.parameters().update([("bias_ih_l0",)]), TypeError, "expected arrays by name"),
    (lambda a: a.parameters().update(bias=np.zeros(16)), ValueError,
     r"there is no 'bias', expected one of \['weight_ih_l0', "),
    (lambda a: a.parameters().pop("bias_ih_l0"), TypeError, "'bias_ih_l0' cannot be deleted"),
    (lambda a: a.parameters().clear(), TypeError, "cannot be deleted"),
    (lambda a: a.grads.update(bias_ih_l0=np.zeros(15)), ValueError, "bias_ih_l0 has shape"),
    (lambda a: setattr(a, "grads", {}), AttributeError, "grads cannot be set"),
    (lambda a: setattr(a, "mode", "evaluation"), AttributeError, r"mode cannot be set; .*eval\(\)"),
    (lambda a: setattr(a, "training", False), AttributeError, "training cannot be set"),
    (lambda a: setattr(a, "version", 7), AttributeError, "version cannot be set"),
    *((lambda a, n=name: setattr(a, n, getattr(a, n)), AttributeError,
       f"{name} is fixed when the LSTM is made")
      for name in ("cell", "input_size", "hidden_size", "num_layers", "bias", "bidirectional")),
    *((lambda a, n=name: setattr(a, n, getattr(a, n)), AttributeError, name)
      for name in ("directions", "width", "has_c", "dtype", "num_parameters", "config")),
]


@pytest.mark.parametrize(("attempt", "error", "match"), REFUSED)
def test_what_cannot_be_assigned_is_refused_in_one_sentence(attempt, error, match):
    layer = fastrnn.LSTM(3, 4, seed=0)
    before, names = layer.flat.tobytes(), set(vars(layer))
    with pytest.raises(error, match=match) as caught:
        attempt(layer)
    assert "\n" not in str(caught.value)
    assert layer.flat.tobytes() == before
    assert not np.any(layer.flat_grads)
    assert layer.mode == "training"
    assert layer.version == 0
    assert set(vars(layer)) == names
    stacks.assert_views(layer)


def test_a_nonlinearity_is_fixed_too():
    with pytest.raises(AttributeError, match="nonlinearity is fixed when the RNN is made"):
        fastrnn.RNN(3, 4).nonlinearity = "relu"


def test_other_attributes_are_the_users():
    layer = fastrnn.LSTM(3, 4, seed=0)
    layer.note = "mine"
    assert layer.note == "mine"
    with pytest.raises(AttributeError, match="'LSTM' object has no attribute 'weight_ih_l9'"):
        layer.weight_ih_l9  # noqa: B018
    assert not hasattr(layer, "bias_ih_l9")


def test_dropout_can_be_set_to_a_probability():
    layer = fastrnn.LSTM(3, 4, 2, seed=0)
    data = stacks.draw(layer, 5, 2)
    without = outputs(layer, data)
    layer.dropout = 1
    assert layer.dropout == layer.config["dropout"] == 1.0
    assert "dropout=1.0" in repr(layer)
    assert np.any(outputs(layer, data) != without)
    for value in (50, -0.1, np.nan, "0.5", True):
        with pytest.raises(ValueError, match=r"LSTM: dropout is .*, expected a number from 0 to 1"):
            layer.dropout = value
    assert layer.dropout == 1.0


def test_a_head_and_an_embedding_are_parts_like_layers():
    model = fastrnn.SequenceModel([fastrnn.GRU(3, 4, seed=0)], 2, vocab_size=5, seed=0)
    head, embedding = model.parts()["head"], model.parts()["embedding"]
    for part, size in ((head, 10), (embedding, 15)):
        flat = part.flat
        part.flat = np.arange(size)
        assert part.flat is flat
        np.testing.assert_array_equal(flat, np.arange(size, dtype=np.float32))
        part.weight = np.zeros(part.weight.shape)
        assert not np.any(model.parameters()[f"{'head' if part is head else 'embedding'}.weight"])
        with pytest.raises(ValueError, match=r"weight has shape \(1,\), expected"):
            part.weight = np.zeros(1)
        with pytest.raises(ValueError, match="read-only in evaluation mode"):
            part.eval().flat = np.zeros(size)
        assert part.version == 2


# --------------------------------------------------------------------------------- the mapping


def test_parameters_are_a_mapping_with_fixed_names():
    layer = fastrnn.GRU(3, 4, seed=0)
    for named in (layer.parameters(), layer.grads):
        names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
        assert list(named) == list(named.keys()) == names
        assert len(named) == 4
        assert "bias_ih_l0" in named
        assert "bias" not in named
        assert named.get("bias") is None
        with pytest.raises(KeyError):
            named["bias"]
        assert [a.shape for a in named.values()] == [(12, 3), (12, 4), (12,), (12,)]
        assert dict(named)["bias_ih_l0"] is named["bias_ih_l0"]
        assert {**named}.keys() == set(names)
        assert repr(named) == ("{'weight_ih_l0': (12, 3), 'weight_hh_l0': (12, 4), "
                               "'bias_ih_l0': (12,), 'bias_hh_l0': (12,)}")
        with pytest.raises(TypeError, match="cannot be deleted"):
            del named["bias_ih_l0"]
    assert layer.num_parameters == layer.flat.size == 108
    assert layer.dtype == np.float32


def test_new_grads_are_zeros_of_ones_own():
    layer = fastrnn.GRU(3, 4, dtype=np.float64, seed=0)
    layer.flat_grads += 1
    grads = layer.new_grads()
    assert {n: (a.shape, a.dtype) for n, a in grads.items()} == {
        n: (a.shape, a.dtype) for n, a in layer.parameters().items()}
    for array in grads.values():
        assert not np.any(array)
        assert not np.shares_memory(array, layer.flat_grads)
    layer.eval()
    assert all(a.flags.writeable for a in layer.new_grads().values())


def test_parts_of_a_layer_a_model_and_a_list():
    layer, other = fastrnn.GRU(3, 4, seed=0), fastrnn.GRU(3, 4, seed=1)
    one, two = model_of(layer), model_of(layer)
    assert parts_of(layer) == [("", layer)]
    assert parts_of(one) == [("layers.0", layer), ("head", one.parts()["head"])]
    assert [name for name, _ in parts_of([one, other, two])] == [
        "0.layers.0", "0.head", "1", "2.layers.0", "2.head"]
    assert len(distinct([one, other, two, layer])) == 4
    for wrong in (None, [], 5, [layer, None], "layer", layer.flat, {"a": layer}):
        with pytest.raises(TypeError, match=r"target is .*, expected a layer, a model, or a list"):
            parts_of(wrong)


# ------------------------------------------------------------------------------------ state dicts


@per_mode
def test_loading_is_all_or_nothing(mode):
    layer = set_mode(fastrnn.GRU(3, 4, seed=0), mode)
    data, before = stacks.draw(layer, 5, 2), layer.flat.tobytes()
    expected = outputs(layer, data)
    good = fastrnn.GRU(3, 4, dtype=np.float64, seed=1).state_dict()

    class Fails(dict):
        def __getitem__(self, name):
            if name == "bias_hh_l0":
                raise OSError("the disk is gone")
            return super().__getitem__(name)

    too_large = good | {"bias_hh_l0": np.full(12, 1e300)}
    for mapping, error in (
        (Fails(good), OSError), (good | {"bias_hh_l0": "text"}, TypeError),
        (good | {"bias_hh_l0": np.zeros(11)}, ValueError), (too_large, ValueError),
        (good | {"more": np.zeros(1)}, ValueError),
        ({k: good[k] for k in list(good)[:-1]}, ValueError),
    ):
        with pytest.raises(error):
            layer.load_state_dict(mapping)
        assert layer.flat.tobytes() == before
        assert layer.mode == mode
        assert layer.version == 0
        assert outputs(layer, data).tobytes() == expected.tobytes()
    layer.load_state_dict(good)
    assert layer.version == 1
    assert layer.mode == mode
    other = set_mode(fastrnn.GRU(3, 4, seed=1), mode)
    assert outputs(layer, data).tobytes() == outputs(other, data).tobytes()


# ------------------------------------------------------------------------------------------ modes


def fail(after):
    after()
    raise ZeroDivisionError


@per_mode
def test_modes_restores_what_it_found(mode):
    layers = fastrnn.GRU(3, 4, seed=0), fastrnn.GRU(4, 4, seed=1)
    model = model_of(*layers)
    set_mode(layers[1], mode)

    def found():
        return [part.mode for part in model.parts().values()]

    before = found()
    data = stacks.draw(layers[1], 5, 2)
    expected = outputs(layers[1], data)
    for target in (model, [model, layers[0]], list(layers)):
        for inside in (model.eval, model.train, lambda: model.eval("bfloat16"), lambda: None):
            with modes(target):
                inside()
                with modes(target):
                    model.train(not model.training)
            assert found()[:2] == before[:2]
            model.parts()["head"].set_mode(before[2])
            with pytest.raises(ZeroDivisionError), modes(target):
                fail(inside)
            assert layers[1].mode == mode
            assert outputs(layers[1], data).tobytes() == expected.tobytes()
    assert layers[1].flat.flags.writeable is (mode == "training")


def test_modes_restores_all_parts_though_one_was_never_changed():
    model = model_of(fastrnn.GRU(3, 4, seed=0))
    model.layers[0].eval()
    with modes(model):
        model.train()
    assert [part.mode for part in model.parts().values()] == ["evaluation", "training"]
    assert model.training


@stacks.per_kind
def test_no_pack_goes_stale_when_one_layer_of_a_model_is_in_evaluation_mode(cell):
    model = model_of(cases.LAYERS[cell](3, 4, seed=0))
    layer = model.layers[0]
    x = np.ones((5, 2, 3), np.float32)
    for weights in ("float32", "bfloat16"):
        layer.eval(weights)
        before = layer.flat.tobytes()
        for change in (
            lambda: setattr(layer, "flat", layer.flat * 2),
            lambda: setattr(layer, "weight_ih_l0", layer.weight_ih_l0 * 2),
            lambda: layer.parameters().update(weight_ih_l0=layer.weight_ih_l0 * 2),
            lambda: model.parameters().update({"layers.0.weight_ih_l0": layer.weight_ih_l0 * 2}),
            lambda: layer.weight_ih_l0.fill(0),
            lambda: layer.flat.fill(0),
            lambda: np.multiply(layer.flat, 2, out=layer.flat),
            lambda: fastrnn.init.orthogonal(layer),
        ):
            with pytest.raises(ValueError, match="read-only"):
                change()
        assert layer.flat.tobytes() == before
        # loading packs anew
        other = model_of(cases.LAYERS[cell](3, 4, seed=9))
        other.layers[0].eval(weights)
        model.load_state_dict(other.state_dict())
        assert layer.mode == other.layers[0].mode
        assert model(x)[0].tobytes() == other(x)[0].tobytes()
        layer.train()
        layer.flat *= 2
        other.layers[0].train().flat *= 2
        for mode in (weights, None):
            for one in (layer, other.layers[0]):
                one.eval(mode) if mode else one.train()
            assert model(x)[0].tobytes() == other(x)[0].tobytes()
        model.load_state_dict(model_of(cases.LAYERS[cell](3, 4, seed=0)).state_dict())


@stacks.per_kind
def test_a_layer_may_join_a_model_in_any_mode(cell):
    x, results = np.ones((5, 2, 3), np.float32), []
    for mode in ("training", "evaluation"):
        layer = set_mode(cases.LAYERS[cell](3, 4, seed=0), mode)
        model = model_of(layer)
        assert layer.mode == mode
        results.append(model(x)[0])
        assert model.eval() is model
        assert not model.training
        results += [model(x)[0], model.train()(x)[0]]
        assert layer.mode == "training"
    assert len({y.tobytes() for y in results}) == 1


# ----------------------------------------------------------------------------------------- copies


@per_mode
@pytest.mark.parametrize("how", [*range(pickle.HIGHEST_PROTOCOL + 1), copy.deepcopy, copy.copy],
                         ids=lambda how: getattr(how, "__name__", f"pickle{how}"))
@stacks.per_cell
def test_a_copy_is_whole_and_separate(cell, how, mode):
    layer = set_mode(cases.LAYERS[cell](3, 4, 2, dropout=0.5, bidirectional=True, seed=0), mode)
    layer.flat_grads[:] = 3
    again = how(layer) if callable(how) else pickle.loads(pickle.dumps(layer, how))
    assert type(again) is type(layer)
    assert again.config == layer.config
    assert again.mode == mode
    assert again.cell is layer.cell
    for mine, theirs in ((layer.flat, again.flat), (layer.flat_grads, again.flat_grads)):
        assert mine.tobytes() == theirs.tobytes()
        assert not np.shares_memory(mine, theirs)
    stacks.assert_views(again)
    data = stacks.draw(layer, 5, 2)
    one, other = outputs(layer, data), outputs(again, data)
    assert one.tobytes() == other.tobytes()
    layer.train()
    assert again.mode == mode
    layer.flat = layer.flat * 0
    assert outputs(again, data).tobytes() == other.tobytes() or mode == "training"
    state = again.dropout_state
    outputs(layer, data)  # draws masks
    assert again.dropout_state == state


def test_a_models_copy_keeps_its_layers_and_shares_nothing():
    layer = fastrnn.GRU(3, 4, seed=0)
    model = model_of(layer)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.parts()["layers.0"] is again.layers[0] is not layer
        assert again.parameters()["layers.0.bias_ih_l0"] is again.layers[0].bias_ih_l0
        again.layers[0].flat = again.layers[0].flat * 2
        assert np.all(again.layers[0].flat == 2 * layer.flat)


# -------------------------------------------------------------------------------- impossible sizes


@pytest.fixture
def little_memory():
    """Let this process have 300 MB more than it has: a failure shall not take all there is."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (pages * mmap.PAGESIZE + 300 * 2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("sizes", [
    (2, 3, 10**9), (2, 10**9, 3), (2, 10**9, 1), (10**400, 1, 1), (1, 10**400, 1), (1, 1, 10**400),
    (2**31, 2**31, 1), (1, 1, 2**63), (1, 2**63, 2**63), (1, 1, 10**5)], ids=lambda s: str(s)[:40])
@stacks.per_kind
def test_sizes_that_no_memory_holds_are_refused_at_once(cell, sizes, little_memory):
    def refused():
        with pytest.raises(MemoryError,
                           match=r"^[A-Z]+: these sizes make \S+ parameters.* more than"):
            cases.LAYERS[cell](*sizes)

    assert cases.cpu_time(refused) < 10 * cases.cpu_time(cases.compiling, 3)


@pytest.mark.parametrize("value", [1e300, -1e300])
def test_numbers_that_the_dtype_cannot_hold_are_refused(value):
    layer = fastrnn.GRU(3, 4, seed=0)
    before = layer.flat.tobytes()
    bad = np.zeros(12)
    bad[7] = value
    for attempt in (lambda: setattr(layer, "bias_ih_l0", bad),
                    lambda: layer.parameters().update({"bias_ih_l0": bad}),
                    lambda: setattr(layer, "flat_grads", np.full(layer.flat.size, value)),
                    lambda: layer(np.full((2, 1, 3), value).tolist())):
        with pytest.raises(ValueError, match=r"has -?1e\+300 at \[.*\], which float32 cannot hold"):
            attempt()
    assert layer.flat.tobytes() == before
    layer.bias_ih_l0 = np.full(12, np.inf)  # what is not finite is taken as it is
    assert np.isinf(layer.bias_ih_l0).all()
    wide = fastrnn.GRU(3, 4, dtype=np.float64)
    wide.bias_ih_l0 = bad
    assert wide.bias_ih_l0[7] == value


@pytest.mark.parametrize("name", ["bias", "batch_first", "bidirectional"])
@pytest.mark.parametrize("value", ["False", "no", None, 2, 0.0, [], np.zeros(3)])
def test_a_word_is_neither_true_nor_false(name, value):
    with pytest.raises(TypeError, match=f"GRU: {name} is .*, expected True or False"):
        fastrnn.GRU(3, 4, **{name: value})
    for good in (True, np.True_, 1, np.int64(0)):
        assert getattr(fastrnn.GRU(3, 4, **{name: good}), name) is bool(good)
