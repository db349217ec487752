"""RTNeural's JSON: read as an independent computation in Keras's layout has it, and written."""

import copy
import json
import pickle

import cases
import numpy as np
import pytest
from damage import HOSTILE, changed, check, places, without

import fastrnn
from fastrnn import GRU, LSTM, RNN, LanguageModel, SequenceModel, Stack
from fastrnn.formats.rtneural import RTNeuralModel

T, B = 9, 2
rng = np.random.default_rng(3)


# ---- an independent computation ------------------------------------------------------------------


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def lstm(x, weights):
    """Return the states h (T, B, H) of Keras's LSTM, gates i f c o."""
    kernel, recurrent, bias = (np.array(a) for a in weights)
    h = c = np.zeros((x.shape[1], len(recurrent)))
    out = []
    for row in x:
        i, f, g, o = np.split(row @ kernel + h @ recurrent + bias, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.array(out)


def gru(x, weights):
    """Return the states h (T, B, H) of Keras's GRU with reset_after, gates z r h."""
    kernel, recurrent, bias = (np.array(a) for a in weights)
    h = np.zeros((x.shape[1], len(recurrent)))
    out = []
    for row in x:
        xz, xr, xh = np.split(row @ kernel + bias[0], 3, -1)
        hz, hr, hh = np.split(h @ recurrent + bias[1], 3, -1)
        z = sigmoid(xz + hz)
        h = z * h + (1 - z) * np.tanh(xh + sigmoid(xr + hr) * hh)
        out.append(h)
    return np.array(out)


def softmax(x):
    e = np.exp(x)
    return e / e.sum(-1, keepdims=True)


ACTIVATIONS = {"": lambda x: x, "tanh": np.tanh, "relu": lambda x: x * (x > 0), "sigmoid": sigmoid,
               "softmax": softmax, "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1)}


def compute(file, x):
    x = x.astype(np.float64)
    for layer in file["layers"]:
        kind, weights = layer["type"], layer["weights"]
        if kind in ("lstm", "gru"):
            x = {"lstm": lstm, "gru": gru}[kind](x, weights)
            continue
        if kind in ("dense", "time-distributed-dense"):
            x = x @ np.array(weights[0]) + np.array(weights[1])
        elif kind == "prelu":
            x = np.where(x > 0, x, np.array(weights[0][0]) * x)
        x = ACTIVATIONS[layer.get("activation", "")](x)
    return x


# ---- files ---------------------------------------------------------------------------------------


def entry(kind, N, *shapes, activation=""):
    weights = [(rng.standard_normal(shape) / 2).astype("f").tolist() for shape in shapes]
    return {"type": kind, "activation": activation, "shape": [None, None, N], "weights": weights}


def of(kind, K, N, activation=""):
    """Return a layer of a file."""
    shapes = {"lstm": ((K, 4 * N), (N, 4 * N), (4 * N,)),
              "gru": ((K, 3 * N), (N, 3 * N), (2, 3 * N)), "prelu": ((1, N),), "activation": ()}
    return entry(kind, N, *shapes.get(kind, ((K, N), (N,))), activation=activation)


def file_of(*layers, inputs=1):
    return {"in_shape": [None, None, inputs], "layers": list(layers)}


def write(path, file):
    path.write_text(json.dumps(file))
    return path


FILES = {
    "amplifier": (SequenceModel, file_of(of("lstm", 1, 8, "tanh"), of("dense", 8, 1))),
    "conditioned": (SequenceModel, file_of(of("gru", 3, 5), of("dense", 5, 2), inputs=3)),
    "two layers": (SequenceModel, file_of(of("gru", 1, 4), of("lstm", 4, 3),
                                          of("time-distributed-dense", 3, 2))),
    "layer": (LSTM, file_of(of("lstm", 2, 7), inputs=2)),
    "gru": (GRU, file_of(of("gru", 2, 5), inputs=2)),
    "stack": (Stack, file_of(of("lstm", 1, 4), of("gru", 4, 3))),
    "activation": (RTNeuralModel, file_of(of("lstm", 1, 4), of("dense", 4, 3, "tanh"))),
    "around": (RTNeuralModel, file_of(
        of("dense", 1, 6, "tanh"), of("gru", 6, 5), of("dense", 5, 4, "relu"), of("lstm", 4, 3),
        of("activation", 3, 3, "sigmoid"), of("dense", 3, 5, "elu"), of("prelu", 5, 5),
        of("dense", 5, 3, "softmax"))),
    "dense": (RTNeuralModel, file_of(of("dense", 1, 3, "sigmoid"), of("dense", 3, 1))),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_computes_what_its_weights_say(tmp_path, name):
    kind, file = FILES[name]
    model = fastrnn.load(write(tmp_path / "m.json", file))
    assert type(model) is kind
    assert model.unused == ()
    x = rng.standard_normal((T, B, file["in_shape"][-1])).astype("f")
    y, state = model(x)
    cases.assert_close("y", y, compute(file, x).astype("f"), cases.tolerance(np.float32, 24, 3 * T))
    if kind is RTNeuralModel and name != "dense":  # in two pieces, with the state carried
        first, half = model(x[:4])
        second, end = model(x[4:], half)
        np.testing.assert_array_equal(np.concatenate([first, second]), y)
        assert len(end) == len(state) == len(model.layers)


@pytest.mark.parametrize("name", [n for n, (kind, _) in FILES.items() if kind is not RTNeuralModel])
def test_a_model_is_written_as_the_file_that_it_came_from(tmp_path, name):
    _, file = FILES[name]
    model = fastrnn.load(write(tmp_path / "m.json", file))
    fastrnn.save(model, tmp_path / "n.json")
    again = json.loads((tmp_path / "n.json").read_text())
    assert again["in_shape"] == file["in_shape"]
    for old, new in zip(file["layers"], again["layers"], strict=True):
        assert new["shape"] == old["shape"]
        assert new["weights"] == old["weights"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_model_of_ours_is_written(tmp_path, bias, dtype):
    model = SequenceModel([LSTM(3, 5, 2, bias=bias, dtype=dtype, seed=1),
                           GRU(5, 4, 3, bias=bias, dtype=dtype, seed=2)], 2, loss="mse", seed=0)
    fastrnn.save(model, tmp_path / "m.json")
    file = json.loads((tmp_path / "m.json").read_text())
    assert [one["type"] for one in file["layers"]] == ["lstm"] * 2 + ["gru"] * 3 + ["dense"]
    x = rng.standard_normal((T, B, 3)).astype(dtype)
    y, _ = model(x)
    tolerance = cases.tolerance(dtype, 24, 5 * T)
    cases.assert_close("y", y, compute(file, x).astype(dtype), tolerance)
    again, _ = fastrnn.load(tmp_path / "m.json")(x.astype("f"))
    cases.assert_close("y", again, y.astype("f"), cases.tolerance(np.float32, 24, 5 * T))


@pytest.mark.parametrize("name", ["sigmoid", "elu", "softmax", "tanh", "relu"])
def test_activations_are_right_in_every_digit(tmp_path, name):
    """A sigmoid made of tanh has no digit left at -17."""
    x = np.array([-80, -17, -10, -1, -1e-4, 0, 1e-4, 1, 10, 17, 80], np.float32)
    two = name == "softmax"
    file = {"in_shape": [None, None, 1], "layers": [{
        "type": "dense", "activation": name, "shape": [None, None, 1 + two],
        "weights": [[[1.0, -1.0]], [0.0, 0.0]] if two else [[[1.0]], [0.0]]}]}
    (tmp_path / "a.json").write_text(json.dumps(file))
    y, _ = fastrnn.load(tmp_path / "a.json")(x[:, None, None])
    wide = x.astype(float)
    expected = {"sigmoid": sigmoid(wide), "elu": np.where(wide > 0, wide, np.expm1(wide)),
                "softmax": sigmoid(2 * wide), "tanh": np.tanh(wide),
                "relu": np.maximum(wide, 0)}[name]
    np.testing.assert_allclose(y[..., 0].ravel(), expected, 2e-6, 1e-37)


def test_what_a_file_has_beside_the_model_is_said(tmp_path):
    _, file = FILES["amplifier"]
    file = {**file, "in_skip": 1, "metadata": {"name": "amp"}}
    file["layers"] = [{**file["layers"][0], "more": 1}, file["layers"][1]]
    model = fastrnn.load(write(tmp_path / "m.json", file))
    assert model.unused == ("in_skip", "metadata", "layers[0].more")


@pytest.mark.parametrize(("make", "match"), [
    (lambda: SequenceModel(RNN(1, 2), 1), "no layer of RTNeural"),
    (lambda: SequenceModel(GRU(1, 2, bidirectional=True), 1), "no layer of RTNeural"),
    (lambda: Stack(LSTM(1, 3, proj_size=2)), "no layer of RTNeural"),
    (lambda: Stack(GRU(1, 3, reset_after=False)), "no layer of RTNeural"),
    (lambda: SequenceModel(GRU(1, 2), 1, readout="last"), "readout 'last'"),
    (lambda: SequenceModel(GRU(1, 2), 1, context_size=2), "context_size"),
    (lambda: LanguageModel(5, 2, 3), "no embedding"),
    (lambda: RNN(1, 2), "RTNeural runs no others"), (dict, "of type dict"),
    (lambda: infinite(GRU(1, 2)), "infinite or not a number"),
])
def test_what_rtneural_cannot_run_is_not_written(tmp_path, make, match):
    for call in (fastrnn.save, fastrnn.formats.models.try_save):
        with pytest.raises((ValueError, TypeError), match=match):
            call(make(), tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()
    with pytest.raises(ValueError, match="names is given"):
        fastrnn.save(GRU(1, 2), tmp_path / "m.json", names="torch")


def infinite(layer):
    layer.bias_ih_l0[1] = np.inf
    return layer


def with_layer(**changes):
    return file_of({**of("lstm", 1, 2), **changes}, of("dense", 2, 1))


@pytest.mark.parametrize(("file", "match"), [
    (with_layer(type="conv1d"), r"the type of layers\[0\] is 'conv1d', expected one of"),
    (with_layer(activation="relu"), r"the activation of layers\[0\] is 'relu'"),
    (with_layer(shape=[None, None, 3]),
     r"kernel of layers\[0\] has a row of 8 numbers, .*\(1, 12\)"),
    (with_layer(shape=[None, None, 10**9]), r"kernel of layers\[0\] has a row"),
    (with_layer(shape=[10**30]), "expected a whole number"),
    (with_layer(shape=[10**60]), "expected a whole number"),
    (with_layer(shape=[]), "expected .null, null, features"),
    (with_layer(shape=[2.5]), "2.5.*, expected a whole number"),
    (with_layer(weights=[]), r"the weights of layers\[0\] are \[\], expected 3 arrays"),
    (with_layer(weights=[[[1] * 8], [[1] * 8], [1] * 8]), r"recurrent of layers\[0\] has 1 ent"),
    (with_layer(weights=[[["x"] * 8], [[1] * 8] * 2, [1] * 8]), "expected rows of numbers"),
    (with_layer(weights=[[[1e300] * 8], [[1] * 8] * 2, [1] * 8]), "float32 cannot hold"),
    (with_layer(weights=[[[10**400] * 8], [[1] * 8] * 2, [1] * 8]), "float32 cannot hold"),
    (with_layer(weights=[[[float("nan")] * 8], [[1] * 8] * 2, [1] * 8]), "NaN is no number"),
    (file_of(of("dense", 1, 2, "gelu")), "the activation of layers.0. is 'gelu'"),
    (file_of(of("dense", 1, 2), of("prelu", 3, 3)), "has 3 features, expected 2"),
    (file_of(of("activation", 1, 1)), "is '', expected one of"),
    (file_of(), "it has no layers"), ({}, "without the lists in_shape and layers"),
    ([], "is not JSON|expected|not a safetensors"),
    ({"in_shape": [1], "layers": {}}, "without the lists"), (file_of(3), "expected an object"),
    ({"in_shape": [0], "layers": [3]}, "is 0, expected a whole"),
    (file_of(*[[]] * 20_000), r"of \[, too many for its length"),
    (file_of(*[{}] * 20_000), r"of \{, too many for its length"),
    (file_of(*["ab"] * 9_000), r"of \", too many for its length"),
])
def test_a_file_that_does_not_fit(tmp_path, file, match):
    path = write(tmp_path / "m.json", file)
    with pytest.raises(ValueError, match=match) as raised:
        fastrnn.load(path)
    assert repr(str(path)) in str(raised.value)


def test_a_file_that_is_too_long_is_not_read(tmp_path):
    path = tmp_path / "m.json"
    with open(path, "wb") as file:
        file.truncate(100_000_001)  # takes no place on the disk
    with pytest.raises(ValueError, match=r"m.json'.* it has 100000001 bytes, expected at most"):
        fastrnn.load(path)


def test_a_chain_is_shown_in_its_order(tmp_path):
    model = fastrnn.load(write(tmp_path / "m.json", FILES["around"][1]))
    assert repr(model) == (
        "RTNeuralModel: Linear(1, 6), tanh, GRU(6, 5), Linear(5, 4), relu, LSTM(4, 3), sigmoid, "
        "Linear(3, 5), elu, prelu, Linear(5, 3), softmax")


@pytest.mark.parametrize("state", [3, np.zeros((1, B, 5), "f"), (), (None,), (None,) * 3])
def test_a_chain_has_a_state_for_each_recurrent_layer(tmp_path, state):
    model = fastrnn.load(write(tmp_path / "m.json", FILES["around"][1]))
    with pytest.raises(TypeError, match=r"expected a tuple with one entry for each of 2 layers"):
        model(np.zeros((T, B, 1), "f"), state)


def test_options_for_tensors_are_refused(tmp_path):
    path = write(tmp_path / "m.json", FILES["gru"][1])
    with pytest.raises(ValueError, match=r"load: strict is False, .* is a file of rtneural"):
        fastrnn.load(path, strict=False)


def test_a_file_that_is_cut_off_or_changed_anywhere(tmp_path):
    path, file = tmp_path / "m.json", file_of(of("gru", 1, 1), of("dense", 1, 1), of("prelu", 1, 1))
    data = json.dumps(file).encode()
    read = {"load": lambda: fastrnn.load(path)}
    for n in range(len(data)):
        check(path, data[:n], read, refused=True)
    for at in places(file):
        for value in HOSTILE:
            check(path, json.dumps(changed(file, at, value)).encode(), read)
        if at:
            check(path, json.dumps(without(file, at)).encode(), read)
    for data in (b"{" * 10**5, b'{"in_shape":' + b"[" * 10**5, b'{"layers": "\xff"}',
                 b'{"in_shape":[1],"layers":[' + b"9" * 10**5 + b"]}"):
        check(path, data, read, refused=True)


@pytest.mark.parametrize("wrapped", [True, False])
def test_json_with_the_names_of_pytorch(tmp_path, wrapped):
    ours = SequenceModel(LSTM(2, 5, 2, seed=1), 1, loss="mse", seed=0)
    arrays = {name: a.tolist() for name, a in ours.state_dict().items()}
    arrays = {name.replace("layers.0", "rec").replace("head", "lin"): a
              for name, a in arrays.items()}
    path = write(tmp_path / "m.json", {"model_data": {"skip": 1}, "state_dict": arrays}
                 if wrapped else arrays)
    model = fastrnn.load(path, loss="mse")
    assert model.unused == (("model_data",) if wrapped else ())
    x = rng.standard_normal((T, B, 2)).astype("f")
    np.testing.assert_array_equal(model(x)[0], ours(x)[0])
    del arrays["rec.bias_hh_l1"]
    write(path, {"state_dict": arrays})
    with pytest.raises(ValueError, match=r"m.json' gives no model: missing .'rec.bias_hh_l1'"):
        fastrnn.load(path)


def test_a_dense_layer_without_a_bias(tmp_path):
    file = file_of(of("gru", 1, 4), of("dense", 4, 2))
    del file["layers"][1]["weights"][1]
    model = fastrnn.load(write(tmp_path / "m.json", file))
    assert not model.head.bias.any()
    np.testing.assert_array_equal(model.head.weight.T, np.float32(file["layers"][1]["weights"][0]))


@pytest.mark.parametrize("act", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["deepcopy", "pickle"])
def test_a_chain_can_be_copied_and_pickled(tmp_path, act):
    path = tmp_path / "m.json"
    write(path, file_of(of("lstm", 1, 3), *(of("dense", 3, 3, name) for name in ACTIVATIONS)))
    model = fastrnn.load(path)
    other, x = act(model), np.ones((4, 2, 1), np.float32)
    np.testing.assert_array_equal(other(x)[0], model(x)[0])
    assert repr(other) == repr(model)
    assert other.layers[0] is other.steps[0] is not model.layers[0]
