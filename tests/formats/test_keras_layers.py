"""Layers of Keras from a list: options in older forms, and what does not fit, without Keras."""

import copy
import json
import pickle

import numpy as np
import pytest

from fastrnn.formats.keras import load

h5py = pytest.importorskip("h5py")

N, T, I, H = 3, 6, 5, 4
LSTM = {"lstm/cell": [(I, 4 * H), (H, 4 * H), (4 * H,)]}
X = np.random.default_rng(0).standard_normal((N, T, I)).astype(np.float32)


def made(path, layers, groups=None):
    """Load layers whose variables are in these groups, all of them random."""
    rng = np.random.default_rng(1)
    with h5py.File(path / "m.weights.h5", "w") as root:
        for group, shapes in (groups or {}).items():
            for number, shape in enumerate(shapes):
                root[f"layers/{group}/vars/{number}"] = rng.uniform(-0.6, 0.6, shape).astype("f4")
    return load(path / "m.weights.h5", layers=layers)


def array(value):
    """Return a number as Keras 2 writes one of NumPy."""
    return {"class_name": "__numpy__", "config": {"value": value, "dtype": "float32"}}


def masked(x):
    """Return the mean of the steps of each sequence that are not all 0.25."""
    real = (x != 0.25).any(-1)
    return np.stack([row[steps].mean(0) for row, steps in zip(x, real, strict=True)])


@pytest.mark.parametrize(("layers", "expected"), [
    ([("Activation", {"activation": {"class_name": "function", "config": "relu"}})],
     lambda x: np.maximum(x, 0)),
    ([("Activation", {"activation": {"class_name": "function", "config": "swish"}})],
     lambda x: x / (1 + np.exp(-x))),
    ([("Activation", {"activation": None})], lambda x: x),
    ([("LeakyReLU", {"alpha": array(0.125)})], lambda x: np.where(x > 0, x, 0.125 * x)),
    ([("ReLU", {"max_value": array(0.5)})], lambda x: np.clip(x, 0, 0.5)),
    ([("Masking", {"mask_value": array(0.25)}), ("GlobalAveragePooling1D", {})], masked),
    ([("Masking", {"mask_value": 1e300}), ("GlobalAveragePooling1D", {})], lambda x: x.mean(1)),
], ids=["relu", "swish", "none", "LeakyReLU", "ReLU", "Masking", "Masking, infinite"])
def test_options_as_older_versions_write_them(tmp_path, layers, expected):
    x = X.copy()
    x[0, 2] = x[1, 4:] = 0.25
    np.testing.assert_allclose(made(tmp_path, layers)(x), expected(x), rtol=1e-6, atol=1e-6)


BOTH = {f"bidirectional/{direction}_layer/cell": [(rows, H), (H, H), (H,)]
        for direction, rows in (("forward", I), ("backward", I + 1))}


@pytest.mark.parametrize(("layers", "groups", "match"), [
    ([("LSTM", {})], {}, "layer 'layer 0': it has no units"),
    ([("LSTM", {"time_major": True})], LSTM, "time_major is True, expected False"),
    ([("Bidirectional", {"layer": ("SimpleRNN", {})})], BOTH,
     r"backward_layer/cell/vars/0 has shape \(6, 4\), expected 5 rows as in the other"),
    ([("Activation", {"activation": {"class_name": "function", "config": [1]}})], {},
     r"its activation is \[1\], expected"),
    ([("Softmax", {"axis": [1, 0.5]})], {}, r"axis is \[1, 0.5\], expected whole numbers"),
    ([("Masking", {"mask_value": "none"})], {}, "mask_value is 'none', expected a number"),
    ([("Masking", {"mask_value": array(None)})], {}, "mask_value is None, expected a number"),
    ([("LeakyReLU", {"alpha": None})], {}, "alpha is None, expected a number$"),
    ([("Flatten", {"data_format": "channels_first"})], {}, "expected 'channels_last'"),
    ([("GlobalMaxPooling1D", {"data_format": "channels_first"})], {}, "expected 'channels_last'"),
    ([("Reshape", {"target_shape": [-1, -1]})], {}, r"target_shape is \[-1, -1\], expected sizes"),
    ([("Reshape", {"target_shape": 3})], {}, "target_shape is 3, expected sizes"),
    ([("BatchNormalization", {"axis": 1})], {}, "axis is 1, expected -1"),
    ([("LayerNormalization", {"rms_scaling": True})], {}, "rms_scaling is True, expected False"),
    ([("Identity", {}), ("Embedding", {})], {"embedding": [(7, 2)]},
     "layer 'layer 1': it has another layer before it"),
    ([("Identity", {}), ("InputLayer", {})], {},
     "layer 'layer 1': it is an input inside the chain"),
    ([("LSTM", {"return_state": True}), ("Dense", {})], LSTM | {"dense": [(H, 2), (2,)]},
     "layer 'layer 1': the layer before it has 3 outputs"),
    ([("Identity", {"name": "a"}), ("Identity", {"name": "a"})], {},
     "two layers have the name 'a'"),
])
def test_layers_that_do_not_fit(tmp_path, layers, groups, match):
    with pytest.raises(ValueError, match=match) as error:
        made(tmp_path, layers, groups)
    assert str(tmp_path / "m.weights.h5") in str(error.value)


@pytest.mark.parametrize(("layers", "groups", "shape", "match"), [
    ([("LSTM", {})], LSTM, (I,), r"x has shape \(5,\), expected \(N, T, I\)"),
    ([("Embedding", {})], {"embedding": [(7, 2)]}, (), r"x has shape \(\), expected \(N, T\)"),
    ([("Dense", {})], {"dense": [(I, 2), (2,)]}, (N, T, I + 1),
     r"layer 0 has an input of shape \(3, 6, 6\), expected 5 features in at least 2 dimensions"),
    ([("TimeDistributed", {"layer": ("Dense", {})})], {"time_distributed/layer": [(I, 2), (2,)]},
     (N, I), "expected 5 features in at least 3 dimensions"),
    ([("Reshape", {"target_shape": [4, -1]})], {}, (N, T, I),
     r"input of shape \(3, 6, 5\), expected one that has the numbers of \(4, -1\)"),
    ([("Masking", {}), ("Softmax", {})], {}, (N, T, I), "layer 1 would have a mask"),
    ([("Softmax", {"axis": 3})], {}, (N, T, I), r"Softmax\(axis=3\): axis 3 is out of bounds"),
    ([("Softmax", {"axis": [1, -2]})], {}, (N, T, I), r"Softmax\(axis=\[1, -2\]\): duplicate"),
])
def test_inputs_that_do_not_fit(tmp_path, layers, groups, shape, match):
    model = made(tmp_path, layers, groups)
    x = np.zeros(shape, int if layers[0][0] == "Embedding" else np.float32)
    with pytest.raises(ValueError, match=rf"^KerasModel: .*{match}"):
        model(x)


def test_states_that_do_not_fit(tmp_path):
    model = made(tmp_path, [("LSTM", {"stateful": True})], LSTM)
    h = np.zeros((N, H), np.float32)
    for wrong in (3, (), ((h, h), (h, h)), h):
        with pytest.raises(ValueError, match=r"^KerasModel: state is .* a tuple of 1, one for"):
            model(X, wrong)
    for wrong in ((h,), [h], (3,), ((h, h, h),)):
        with pytest.raises(ValueError, match=r"state of layer 0 is .*, expected a tuple of 2 arr"):
            model(X, wrong)
    y, ((final, _),) = model(X, [[h, h]])
    np.testing.assert_array_equal(y, final)


# ---- configurations ------------------------------------------------------------------------------


def node(*sources):
    """Return a node of Keras 3."""
    return [{"args": [{"class_name": "__keras_tensor__", "config": {"keras_history": source}}
                      for source in sources], "kwargs": {}}]


def graph(nodes, start=(["a", 0, 0],), end=(["c", 0, 0],), **layers):
    """Return a functional model of layers that compute nothing, or of other layers."""
    described = [{"class_name": "Identity", "config": {}, **layers.get(name, {}), "name": name,
                  "inbound_nodes": of} for name, of in nodes.items()]
    return {"class_name": "Functional", "config": {
        "name": "m", "layers": described, "input_layers": start, "output_layers": end}}


def sequential(*layers):
    return {"class_name": "Sequential", "config": {"name": "s", "layers": list(layers)}}


CHAIN = {"a": [], "b": node(["a", 0, 0]), "c": node(["b", 0, 0])}
OLD = {"a": [], "b": [[["a", 0, 0, {"mask": None}]]], "c": [[["b", 0, 0]]]}
INNER = sequential(sequential(sequential({"class_name": "Identity", "config": {}})))
TWICE = graph({"a": [], "c": node(["a", 0, 0])}, end=[["c", 0, 0], ["c", 0, 1]])


@pytest.mark.parametrize("config", [
    graph(CHAIN), graph(OLD), graph(CHAIN, start=["a", 0, 0], end=["c", 0, 0]),
    graph(OLD | {"b": [[["a", 0, 0, {"training": False}]]]}),
    graph(CHAIN, start={"x": ["a", 0, 0]}, end={"y": ["c", 0, 0]}),
    graph(dict(reversed(CHAIN.items()))), graph(CHAIN, b=graph(CHAIN))])
def test_forms_of_a_chain(tmp_path, config):
    config["config"]["layers"][-1] |= {"class_name": "ReLU"}
    h5py.File(tmp_path / "m.weights.h5", "w").close()
    model = load(tmp_path / "m.weights.h5", config=json.dumps(config))
    np.testing.assert_array_equal(model(X), np.maximum(X, 0))
    assert [repr(step) for step in model.steps].count("ReLU()") == 1


@pytest.mark.parametrize(("config", "match"), [
    ({"class_name": "LSTM", "config": {}}, "its model is a 'LSTM', expected a Sequential"),
    (INNER, "'s' is a model inside a model inside a model"),
    (sequential(TWICE), "'m' has several outputs"),
    (graph(CHAIN, start=[["z", 0, 0]]), "layer 'z' is missing, or read twice"),
    (graph(CHAIN | {"a": node(["c", 0, 0])}), "layer 'a' is missing, or read twice"),
    (graph(CHAIN, end=[["b", 0, 0]]), "chain ends with layer 'c', the output is that of 'b'"),
    (graph(CHAIN | {"d": []}), r"layers \['d'\] are not between the input and the output"),
    (graph(OLD | {"b": [[["a", 0, 0, {"training": True}]]]}),
     r"layer 'b' is called with \['training'\], expected its input alone"),
    (graph(OLD | {"b": [[["a", 0, 0, {"mask": ["a", 0, 0]}]]]}), r"is called with \['mask'\]"),
    (graph(CHAIN | {"b": node([3, 0, 0])}), r"a layer reads \[3, 0, 0\], expected the name"),
    (graph(CHAIN | {"b": node(["a", 0, 9])}), r"a layer reads \['a', 0, 9\], expected the name"),
    (graph(CHAIN, start=[]), r"its input layers are \[\], expected one"),
    (graph(CHAIN, end="c"), "its output layers are 'c', expected one"),
    (graph(CHAIN, end=[["c", 0, 1]]),
     r"layer 'c' has 1 outputs, the model has the outputs \(1,\)"),
])
def test_configurations_that_are_no_chain(tmp_path, config, match):
    h5py.File(tmp_path / "m.weights.h5", "w").close()
    with pytest.raises(ValueError, match=match):
        load(tmp_path / "m.weights.h5", config=json.loads(json.dumps(config)))


@pytest.mark.parametrize("act", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["deepcopy", "pickle"])
@pytest.mark.parametrize(("kind", "config"), [
    *(("Activation", {"activation": name}) for name in (
        "linear", "relu", "relu6", "leaky_relu", "softsign", "selu", "gelu", "silu", "hard_silu",
        "mish", "hard_tanh", "tanh_shrink", "log_sigmoid", "squareplus", "sparse_sigmoid")),
    ("Softmax", {"axis": [1, 2]}), ("LeakyReLU", {"alpha": 0.125}), ("ELU", {"alpha": 0.5}),
    ("ReLU", {"max_value": 0.5})], ids=str)
def test_a_model_can_be_copied_and_pickled(tmp_path, act, kind, config):
    model = made(tmp_path, [("LSTM", {"units": H, "return_sequences": True}), (kind, config)],
                 LSTM)
    other = act(model)
    np.testing.assert_array_equal(other(X), model(X))
    assert other.layers[0] is other.steps[0].recurrent[0] is not model.layers[0]


def test_a_result_is_no_view_of_the_input(tmp_path):
    y = made(tmp_path, [("Activation", {"activation": "linear"}), ("Identity", {})])(X)
    np.testing.assert_array_equal(y, X)
    assert not np.shares_memory(X, y)
