"""Files of Keras without Keras: values of a stored file, and files that are damaged or hostile."""

import io
import itertools
import json
import pickle
import random
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cases import assert_close, tolerance
from damage import HOSTILE, changed, check, places, without

import fastrnn
from fastrnn.formats.keras import load

h5py = pytest.importorskip("h5py")

SMALL = Path(__file__).parents[1] / "data" / "small.keras"
MUTATIONS = 400
LAYERS = [  # of the stored file
    ("Embedding", {"mask_zero": True}),
    ("Bidirectional", {"layer": ("LSTM", {"return_sequences": True,
                                         "zero_output_for_mask": True})}),
    ("GRU", {"recurrent_activation": "hard_sigmoid", "reset_after": False}),
    ("Dense", {"activation": "softmax"})]


def parts():
    """Return the members of the stored file."""
    with zipfile.ZipFile(SMALL) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path, compression=zipfile.ZIP_STORED, **changes):
    """Write an archive; changes are config=..., weights=... instead of the stored members."""
    members = parts()
    if "config" in changes:
        config = changes["config"]
        members["config.json"] = config if isinstance(config, bytes) else json.dumps(
            config).encode()
    if "weights" in changes:
        members["model.weights.h5"] = changes["weights"]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            if data is not None:
                archive.writestr(name, data)
    return path


def edited(edit):
    """Return the HDF5 member after a change."""
    file = io.BytesIO(parts()["model.weights.h5"])
    with h5py.File(file, "r+") as root:
        edit(root)
    return file.getvalue()


def config():
    return json.loads(parts()["config.json"])


def readers(path, **options):
    return {"load": lambda: load(path, **options)}


def expected():
    described = json.loads(SMALL.with_suffix(".keras.json").read_text())
    return np.array(described["x"]), np.array(described["y"], np.float32)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_values_of_the_stored_file(tmp_path, compression):
    x, y = expected()
    model = load(pack(tmp_path / "m.keras", compression))
    assert_close("y", model(x), y, 4 * tolerance(np.float32, 20, 5))
    assert repr(model) == (
        "KerasModel: Embedding(5, 2, mask_zero=True) -> Bidirectional(LSTM(2, 2, batch_first=True, "
        "bidirectional=True), merge_mode='concat', return_sequences=True) -> Layer(Keras GRU, 4, "
        "3, batch_first=True) -> Dense(3, 2, 'softmax')")
    assert model.unused == ()
    assert [type(layer).__name__ for layer in model.layers] == ["LSTM", "Layer"]


def test_weights_alone(tmp_path):
    (tmp_path / "m.weights.h5").write_bytes(parts()["model.weights.h5"])
    x, y = expected()
    path = tmp_path / "m.weights.h5"
    for options in ({"config": config()}, {"config": json.dumps(config())}, {"layers": LAYERS}):
        for call in (load, fastrnn.load):
            assert_close("y", call(path, **options)(x), y, 4 * tolerance(np.float32, 20, 5))
    for call in (load, fastrnn.load):
        with pytest.raises(ValueError, match=f"{path}.*has weights alone, expected config=model"):
            call(path)
        with pytest.raises(ValueError, match="config and layers are given, expected one"):
            call(path, config=config(), layers=LAYERS)
        with pytest.raises(ValueError, match="has its configuration, expected neither"):
            call(SMALL, layers=LAYERS)


@pytest.mark.parametrize("options", [{"config": {}}, {"layers": LAYERS}])
def test_an_architecture_is_for_files_of_keras_alone(tmp_path, options):
    for name, kind in (("m", "safetensors"), ("m.json", "rtneural")):
        fastrnn.save(fastrnn.GRU(2, 3, seed=0), tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}' is a file of {kind}, and a file of Keras's"):
            fastrnn.load(tmp_path / name, **options)


def test_options_of_other_files_are_none_of_keras(tmp_path):
    with pytest.raises(ValueError, match=r"prefix is 'a', expected ''.*is a file of keras"):
        fastrnn.load(SMALL, prefix="a")


def test_a_file_that_is_cut_off(tmp_path):
    data = pack(tmp_path / "m.keras").read_bytes()
    for size in [*range(0, len(data), 611), len(data) - 1]:
        check(tmp_path / "m.keras", data[:size], readers(tmp_path / "m.keras"), refused=True)
    data = parts()["model.weights.h5"]
    path = tmp_path / "m.weights.h5"
    for size in range(0, len(data), 611):
        check(path, data[:size], readers(path, config=config()), refused=True)


def test_bytes_that_are_changed(tmp_path):
    path, rng = tmp_path / "m.keras", random.Random(0)
    whole = pack(path).read_bytes()
    alone = parts()["model.weights.h5"]
    for number in range(600):
        data = bytearray(alone if number % 2 else whole)
        for _ in range(rng.choice([1, 1, 8])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        check(path, bytes(data), readers(path, **({"config": config()} if number % 2 else {})))


def test_a_configuration_with_another_value_somewhere(tmp_path):
    path, rng, described = tmp_path / "m.keras", random.Random(0), config()
    ways = [at for at in places(described) if at and "initializer" not in str(at)]
    for number in range(MUTATIONS):
        at = rng.choice(ways)
        value = rng.choice(HOSTILE)
        other = without(described, at) if number % 5 == 0 else changed(described, at, value)
        raw = json.dumps(other).encode()
        check(path, pack(path, config=raw).read_bytes(), readers(path))


@pytest.mark.parametrize(("layer", "name", "value"), [
    (1, "input_dim", 10**9), (1, "output_dim", 2**40), (1, "input_dim", 4), (3, "units", 10**9),
    (3, "units", 2), (3, "reset_after", True), (3, "use_bias", False), (4, "units", 10**12),
    (4, "use_bias", False)])
def test_sizes_that_the_file_does_not_have(tmp_path, layer, name, value):
    described = config()
    found = described["config"]["layers"][layer]["config"]
    found[name] = value
    with pytest.raises(ValueError, match=rf"layer '{found['name']}'") as error:
        load(pack(tmp_path / "m.keras", config=described))
    assert "expected" in str(error.value)


def replaced(name, *shape, dtype="f4", **options):
    def edit(root):
        del root[name]
        root.create_dataset(name, shape, dtype, **options)
    return edit


def linked(link):
    def edit(root):
        del root["layers/gru/cell/vars/1"]
        root["layers/gru/cell/vars/1"] = link
    return edit


def virtual(root):
    del root["layers/dense/vars/0"]
    layout = h5py.VirtualLayout((3, 2), "f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "a", (3, 2))
    root.create_virtual_dataset("layers/dense/vars/0", layout)


def external(root):
    del root["layers/dense/vars/0"]
    root.create_dataset("layers/dense/vars/0", (3, 2), "f4", external=[("/etc/hostname", 0, 24)])


def cycle(root):
    root["layers/gru/again"] = root["layers"]


def deep(root):
    root.create_group("/".join("abcdefghijklmnopq"))


def many(root):
    """Add 8 groups, each with 10 names for the next: 10^8 paths."""
    groups = [root.create_group(f"g{number}") for number in range(8)]
    for one, other in itertools.pairwise(groups):
        for name in range(10):
            one[str(name)] = other


def same_twice(root):
    del root["layers/gru/cell/vars/1"]
    root["layers/gru/cell/vars/1"] = root["layers/bidirectional/forward_layer/cell/vars/0"]


def removed(name):
    def edit(root):
        del root[name]
    return edit


EDITS = {
    "missing": (removed("layers/dense/vars/1"), "'out'.*layers/dense/vars has 1 variables"),
    "missing layer": (removed("layers/gru"), "'gru'.*layers/gru/cell/vars has 0 variables"),
    "surplus": (lambda root: root.create_dataset("layers/gru/cell/vars/3", (9,), "f4"),
                "'gru'.*has 4 variables, expected 3"),
    "surplus layer": (lambda root: root.create_dataset("layers/gru_1/cell/vars/0", (9,), "f4"),
                      r"unexpected variables \['layers/gru_1/cell/vars/0'\]"),
    "misshapen": (replaced("layers/gru/cell/vars/0", 4, 8, data=np.ones((4, 8))),
                  r"'gru'.*vars/0 \(kernel\) has shape \(4, 8\), expected \('any', 9\)"),
    "other features": (replaced("layers/gru/cell/vars/0", 5, 9, data=np.ones((5, 9))),
                       "'gru'.*5 rows, expected 4"),
    "too many axes": (replaced("layers/dense/vars/0", 3, 2, 1, data=np.ones((3, 2, 1))),
                      r"'out'.*has shape \(3, 2, 1\)"),
    "whole numbers": (replaced("layers/dense/vars/0", 3, 2, dtype="i4", data=np.ones((3, 2))),
                      "'out'.*int32, expected floating point"),
    "texts": (replaced("layers/dense/vars/1", 2, dtype=h5py.string_dtype()), "'out'.*is object"),
    "too precise": (replaced("layers/dense/vars/0", 3, 2, dtype="f8", data=np.ones((3, 2))),
                    "vars/0 is float64, expected float32"),
    "never written": (replaced("layers/dense/vars/0", 3, 2), "not stored contiguously"),
    "no rows": (replaced("layers/dense/vars/0", 0, 2), "'out'"),
    "chunks": (replaced("layers/dense/vars/0", 3, 2, chunks=(1, 2), data=np.ones((3, 2))),
               "not stored contiguously"),
    "compressed": (replaced("layers/dense/vars/0", 3, 2, compression="gzip",
                            data=np.ones((3, 2))), "not stored contiguously"),
    "external link": (linked(h5py.ExternalLink("/etc/passwd", "a")), "is a link"),
    "soft link": (linked(h5py.SoftLink("/layers/dense")), "is a link"),
    "virtual": (virtual, "not stored contiguously"),
    "external": (external, "not stored contiguously"),
    "cycle": (cycle, "deeper"),
    "deep": (deep, "deeper"),
    "the same twice": (same_twice, "'gru'.*has shape"),
    "many links": (many, "more objects"),
}


@pytest.mark.parametrize("of", EDITS)
def test_variables_that_do_not_fit(tmp_path, of):
    edit, message = EDITS[of]
    path = pack(tmp_path / "m.keras", weights=edited(edit))
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_a_variable_that_claims_more_than_the_file_has(tmp_path):
    described = config()
    described["config"]["layers"][1]["config"]["input_dim"] = 10**9
    weights = edited(replaced("layers/embedding/vars/0", 10**9, 2))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"'symbols'.*not stored contiguously"):
            load(pack(tmp_path / "m.keras", config=described, weights=weights))
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_layers_that_share_their_numbers_are_no_more_than_the_file(tmp_path):
    path, count = tmp_path / "m.weights.h5", 8
    with h5py.File(path, "w") as root:
        root["layers/dense/vars/0"] = np.ones((60, 60), np.float32)
        for number in range(1, count):
            root[f"layers/dense_{number}/vars/0"] = root["layers/dense/vars/0"]
    assert path.stat().st_size < count * 60 * 60 * 4
    with pytest.raises(ValueError, match=r"vars/0 \(kernel\) needs more bytes than the file has"):
        load(path, layers=[("Dense", {"use_bias": False})] * count)


def test_what_is_no_variable_of_a_layer(tmp_path):
    def edit(root):
        root["layers/dropout/seed_generator/vars/0"] = np.ones(2, np.uint32)
        root["optimizer/vars/0"] = np.ones(3, np.float32)
        root["layers/kind"] = np.dtype("f4")  # a type with a name

    x, y = expected()
    model = load(pack(tmp_path / "m.keras", weights=edited(edit)))
    assert_close("y", model(x), y, 4 * tolerance(np.float32, 20, 5))
    assert sorted(model.unused) == ["layers/dropout/seed_generator/vars/0", "optimizer/vars/0"]
    with h5py.File(tmp_path / "m.weights.h5", "w") as root:
        edit(root)
        root["layers/gru/cell/vars/0"] = np.ones((4, 9), np.float32)
    with pytest.raises(ValueError, match=r"it has \{'gru': \[\(4, 9\)\]\}$"):
        load(tmp_path / "m.weights.h5")


@pytest.mark.parametrize("member", ["config", "weights"])
def test_a_zip_bomb(tmp_path, member):
    path = pack(tmp_path / "m.keras", zipfile.ZIP_DEFLATED, **{member: b" " * 100_000_000})
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="100000000 bytes when it is unpacked"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_other_files(tmp_path):
    path = tmp_path / "m.keras"
    for data in (b"", b"PK\x03\x04", pickle.dumps([1, 2]), b"\x89HDF\r\n\x1a\n" + bytes(5000),
                 b"{}" * 100):
        check(path, data, readers(path), refused=True)
    for changes in ({"config": None}, {"weights": b""}, {"config": b"[" * 100_000},
                    {"config": []}, {"config": {"class_name": "Sequential", "config": {
                        "layers": []}}}):
        pack(path, **changes)
        check(path, path.read_bytes(), readers(path), refused=True)
    for data in (b"", b"\x89HDF\r\n\x1a\n", bytes(100)):
        with pytest.raises(ValueError, match="its variables are no HDF5 file"):
            load(pack(path, weights=data))
    with pytest.raises(ValueError, match="its configuration has 10000001 bytes, expected at most"):
        load(pack(path, config=b" " * 20_000_000))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    with pytest.raises(TypeError, match="path"):
        load(3)


def test_an_embedding_that_masks_is_none_of_a_trainable_model():
    model = load(SMALL)
    with pytest.raises(ValueError, match=r"^KerasModel\.to_model: Embedding\(.* masks steps"):
        model.to_model()


def test_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match="pip install h5py"):
        load(pack(tmp_path / "m.keras"))


def test_keras_2_has_another_hard_sigmoid(tmp_path):
    described = config()
    a = load(pack(tmp_path / "a.keras", config=described))
    members = parts()
    members["metadata.json"] = json.dumps({"keras_version": "2.15.0"}).encode()
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    b = load(tmp_path / "b.keras")
    assert "0.2 * az + 0.5" in b.layers[1].definition.text
    assert "az / 6 + 0.5" in a.layers[1].definition.text


def of_keras_2(path):
    """Write the stored model as Keras 2 does: other names, and nodes that are lists."""
    described = config()["config"]["layers"]
    for number, layer in enumerate(described):
        for key in ("module", "registered_name", "build_config"):
            layer.pop(key, None)
        before = described[number - 1]["config"]["name"]
        layer |= {"name": layer["config"]["name"],
                  "inbound_nodes": [[[before, 0, 0, {}]]] if number else []}
    described[0]["config"]["batch_input_shape"] = described[0]["config"].pop("batch_shape")
    del described[3]["config"]["zero_output_for_mask"]
    del described[2]["config"]["backward_layer"]
    model = {"class_name": "Functional", "config": {
        "name": "small", "layers": described, "input_layers": [[described[0]["name"], 0, 0]],
        "output_layers": [["out", 0, 0]]}}
    groups = {
        "symbols": ["embedding/vars"], "gru": ["gru/cell/vars"], "out": ["dense/vars"],
        "both": [f"bidirectional/{d}_layer/cell/vars" for d in ("forward", "backward")]}
    with h5py.File(io.BytesIO(parts()["model.weights.h5"])) as old, h5py.File(path, "w") as new:
        new.attrs["model_config"] = json.dumps(model).encode()
        new.attrs["keras_version"] = b"3.0"  # the activations are those of the stored model
        new["optimizer_weights/step"] = np.zeros(())
        for name, places_of in groups.items():
            group, names = new.create_group(f"model_weights/{name}"), []
            for place in places_of:
                for number in range(len(old[f"layers/{place}"])):
                    names.append(f"{name}/{place.split('/')[1]}/weight_{number}:0")
                    group[names[-1]] = old[f"layers/{place}/{number}"][()]
            group.attrs["weight_names"] = np.array(names, "S")
    return path


def test_names_and_nodes_of_keras_2(tmp_path):
    x, y = expected()
    model = load(of_keras_2(tmp_path / "m.h5"))
    assert_close("y", model(x), y, 4 * tolerance(np.float32, 20, 5))
    assert model.unused == ("optimizer_weights/step",)
    with h5py.File(tmp_path / "m.h5", "r+") as root:
        group = root["model_weights/out"]
        group["more"] = np.ones(3, np.float32)
        group.attrs["weight_names"] = np.array([*group.attrs["weight_names"], "more"], "S")
    with pytest.raises(ValueError, match=r"'out'.*unexpected variables.*more"):
        load(tmp_path / "m.h5")


def test_long_lists_of_names_are_several_attributes(tmp_path):
    x, y = expected()
    with h5py.File(of_keras_2(tmp_path / "m.h5"), "r+") as root:
        attributes = root["model_weights/both"].attrs
        names = attributes.pop("weight_names")
        attributes["weight_names0"], attributes["weight_names1"] = names[:4], names[4:]
    assert_close("y", load(tmp_path / "m.h5")(x), y, 4 * tolerance(np.float32, 20, 5))


def test_weights_alone_under_the_names_of_keras_2(tmp_path):
    x, y = expected()
    with h5py.File(of_keras_2(tmp_path / "m.h5"), "r") as whole, h5py.File(
            tmp_path / "w.h5", "w") as alone:
        described = json.loads(whole.attrs["model_config"])
        for name, group in whole["model_weights"].items():
            whole.copy(group, alone, name)
        alone.attrs["layer_names"] = np.array(list(alone), "S")
        alone.attrs["keras_version"] = whole.attrs["keras_version"]
    model = load(tmp_path / "w.h5", config=described)
    assert_close("y", model(x), y, 4 * tolerance(np.float32, 20, 5))
    with pytest.raises(ValueError, match=r"alone, expected config=.*: it has .*'gru': \[\(4, 9\)"):
        load(tmp_path / "w.h5")


def names_of(layer, change):
    def edit(root):
        attributes = root[f"model_weights/{layer}"].attrs
        names = change(attributes["weight_names"].tolist())
        attributes["weight_names"] = np.array(names, "S")
    return edit


@pytest.mark.parametrize(("edit", "match"), [
    (removed("model_weights/out"), "layer 'out': out has 0 variables, expected 2: kernel, bias"),
    (removed("model_weights/out/out/vars/weight_1:0"),
     r"layer 'out': model_weights/out/out/vars/weight_1:0 \(bias\) is missing"),
    (names_of("both", lambda names: names[:3] * 2),
     r"forward_layer/weight_0:0 \(kernel\) is another variable already"),
])
def test_names_of_keras_2_that_do_not_fit(tmp_path, edit, match):
    with h5py.File(of_keras_2(tmp_path / "m.h5"), "r+") as root:
        edit(root)
    with pytest.raises(ValueError, match=match):
        load(tmp_path / "m.h5")


PROGRAM = """
import sys, numpy as np
from fastrnn.formats.keras import load

def high():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

load(sys.argv[1])  # what is imported at first use
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = high()
model = load(sys.argv[2], layers=[("LSTM", {})])
model(np.zeros((1, 1, model.layers[0].input_size), np.float32))
print(high() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status")
def test_loading_peaks_at_twice_the_file(tmp_path):
    path, H = tmp_path / "m.weights.h5", 1500
    with h5py.File(path, "w") as root:
        for number, shape in enumerate([(H, 4 * H), (H, 4 * H), (4 * H,)]):
            root[f"layers/lstm/cell/vars/{number}"] = np.full(shape, 0.01, np.float32)
    done = subprocess.run([sys.executable, "-c", PROGRAM, SMALL, path], text=True,
                          capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 2.1 * path.stat().st_size  # parameters and packed weights
