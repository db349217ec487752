"""ONNX files that are cut off, damaged or made to do harm: one error that names the file."""

import os
import random
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from onnx_models import draw, fastrnn_onnx, graph, load, model, node, recurrent_node, varint

from fastrnn import GRU, LSTM, LanguageModel
from fastrnn.formats import onnx_wire

onnx = pytest.importorskip("onnx")


def refused(path, data, error=None):
    """Check that a file is refused with one sentence that names it."""
    path.write_bytes(data)
    with pytest.raises(ValueError, match=error) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def sentence(call, errors):
    """Return the sentence of an error, and what a call gives; anything else fails the test."""
    said = made = None
    try:
        made = call()
    except errors as error:
        said = str(error)
    assert said is None or (said and "\n" not in said)
    return said, made


def small():
    feeds = draw("GRU", T=2, B=1, I=1, H=1, state=False, dtype=np.float32)
    x = {"X": feeds.pop("X")}
    return model([recurrent_node("GRU", x | feeds, ["", "h"]), node("Squeeze", ["h"], ["y"])],
                 x, ["y"], feeds)


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path):
    data = small()
    load(data)
    for n in range(len(data)):
        refused(tmp_path / "cut.onnx", data[:n])


def test_random_bytes_raise_nothing_else(tmp_path):
    rng, path = random.Random(0), tmp_path / "damaged.onnx"
    x, w = np.ones((2, 1, 4), np.float32), np.ones((2, 1, 2), np.float32)
    whole = [(small(), [np.ones((2, 1, 1), np.float32)]),
             (fastrnn_onnx().dumps(LanguageModel(5, 2, 3, seed=0), states=True),
              [np.ones((2, 1), np.int64), np.zeros((1, 1, 3), np.float32)]),
             (fastrnn_onnx().dumps(LSTM(1, 2, proj_size=1, seed=0), lengths=True),
              [np.ones((2, 1, 1), np.float32), np.array([2], np.int32)]),
             (model([node("Conv", ["x", "w"], ["c"], strides=[2], pads=[1, 1]),
                     node("ReduceMean", ["c"], ["y"], axes=[1])], {"x": x}, ["y"], {"w": w}), [x])]
    loaded = 0
    for k in range(2000):
        file, feeds = whole[k % 4]
        data = bytearray(file)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        path.write_bytes(data)
        said, made = sentence(lambda: load(path), (ValueError, MemoryError))
        if said is not None:
            assert str(path) in said
            continue
        loaded += 1
        sentence(lambda made=made, feeds=feeds: made(*feeds),
                 (ValueError, TypeError, MemoryError))
    assert loaded > 100


def test_files_of_other_kinds(tmp_path):
    refused(tmp_path / "a", b"", "it has no graph")
    refused(tmp_path / "a", b"PK\x03\x04" + bytes(100))
    refused(tmp_path / "a", b'{"layers": []}')
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(OSError, match=str(path)):
            load(path)
    for source in (None, 3, ["a"]):
        with pytest.raises(TypeError, match="load: source is"):
            load(source)
    with pytest.raises(ValueError, match="load: the model is not an ONNX model"):
        load(b"abc")


X = {"x": np.zeros((2, 3), np.float32)}
RELU = node("Relu", ["x"], ["y"], name="n")


@pytest.mark.parametrize(("nodes", "tensors", "error"), [
    ([node("Relu", ["z"], ["y"], name="n")], {}, r"node 'n' .Relu.: its input 'z' is no input"),
    ([node("Relu", ["b"], ["a"], name="n"), node("Relu", ["a"], ["b"], name="m"),
      node("Relu", ["b"], ["y"], name="last")], {}, r"node 'n' .Relu.: its input 'b' is no input"),
    ([node("Relu", ["y"], ["y"], name="n")], {}, "its input 'y' is no input"),
    ([RELU, RELU], {}, "the name 'y' of its output is there twice"),
    ([node("Relu", ["x"], ["x"], name="n"), RELU], {}, "the name 'x' of its output is there twice"),
    ([node("Relu", ["x"], ["w"], name="n"), node("Add", ["w", "x"], ["y"])],
     {"w": np.zeros(3, np.float32)}, "the name 'w' of its output is there twice"),
    ([], {}, "the output 'y' is given by no node"),
    ([node("Relu", ["x"], ["y"], name="n", domain="com.microsoft")], {},
     r"does not have the operator 'Relu' of 'com.microsoft'"),
    ([node("Loop", ["x"], ["y"], name="n")], {}, r"node 'n' .Loop.: fastrnn does not have the"),
    ([node("Relu", ["x"], ["y", "z"], name="n")], {}, "it has 2 outputs, expected 1 to 1"),
    ([node("Relu", [], ["y"], name="n")], {}, "it has 0 inputs, expected 1"),
    ([node("Relu", [""], ["y"], name="n")], {}, "it has 0 inputs, expected 1"),
    ([node("Add", ["x", "w"], ["y"], name="a" * 10_000)], {"w": np.zeros(3)}, None),
    ([node("If", ["x"], ["y"], name="n")], {}, "it has no attribute 'then_branch'"),
])
def test_graphs_that_do_not_fit(tmp_path, nodes, tensors, error):
    data = model(nodes, X, ["y"], tensors)
    if error is not None:
        refused(tmp_path / "a.onnx", data, error)
        return
    with pytest.raises(TypeError) as caught:  # wrong dtypes are found in a call
        load(data)(X)
    assert len(str(caught.value)) < 300


def edited(change, nodes=(RELU,), tensors=None, inputs=X):
    """Return a model's bytes after a function has changed it."""
    proto = onnx.load_from_string(model(list(nodes), inputs, ["y"], tensors or {}))
    change(proto)
    return proto.SerializeToString()


ADD = node("Add", ["x", "w"], ["y"], name="n")
W = {"w": np.arange(3, dtype=np.float32)}


def with_dims(*dims):
    def change(proto):
        del proto.graph.initializer[0].dims[:]
        proto.graph.initializer[0].dims.extend(dims)
    return change


def with_type(number):
    def change(proto):
        proto.graph.initializer[0].data_type = number
    return change


def with_numbers(field, *numbers):
    def change(proto):
        proto.graph.initializer[0].ClearField("raw_data")
        getattr(proto.graph.initializer[0], field).extend(numbers)
    return change


@pytest.mark.parametrize(("change", "error"), [
    (with_dims(4), "the tensor 'w' has 12 bytes, expected 16"),
    (with_dims(10**6, 10**6, 10**6), "has 12 bytes, expected 4000000000000000000"),
    (with_dims(-1, -3), "the tensor 'w' has the shape"),
    (with_dims(0, 2**62, 2**62), "the tensor 'w' has the shape"),
    (with_dims(*[1] * 40, 3), "the tensor 'w' has the shape"),
    (with_type(8), "the tensor 'w' has the ONNX data type 8"),
    (with_type(16), "data type 16"), (with_type(99), "data type 99"), (with_type(7), "12 bytes"),
    (with_numbers("float_data", 1.0, 2.0), "the tensor 'w' has other than 3 numbers"),
    (with_numbers("int64_data", 1, 2, 3), "or they are in a field of another type"),
    (lambda p: p.graph.initializer[0].ClearField("raw_data"), "has 0 numbers, expected 3"),
    (lambda p: p.graph.initializer.append(p.graph.initializer[0]), "the name 'w' is there twice"),
    (lambda p: p.graph.initializer.pop(), "its input 'w' is no input"),
    (lambda p: p.ClearField("opset_import"), "does not say which version"),
    (lambda p: p.ClearField("graph"), "it has no graph"),
    (lambda p: p.graph.ClearField("output"), "a graph has no outputs"),
    (lambda p: p.graph.input.append(p.graph.input[0]), "two inputs have one name"),
    (lambda p: p.graph.input[0].ClearField("type"), "expected a tensor"),
    (lambda p: p.graph.sparse_initializer.add(), "sparse tensors"),
    (lambda p: p.graph.initializer[0].segment.SetInParent(), "is a segment"),
])
def test_tensors_that_do_not_fit(tmp_path, change, error):
    refused(tmp_path / "a.onnx", edited(change, [ADD], W), error)


# ---- tensors in other files ----------------------------------------------------------------------


def external(location, **more):
    def change(proto):
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    return edited(change, [ADD], W)


def test_a_tensor_in_another_file_of_the_folder(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"\0" * 8 + W["w"].tobytes() + b"\0")
    path = tmp_path / "a.onnx"
    path.write_bytes(external("w.bin", offset="8", length="12"))
    np.testing.assert_array_equal(load(path)(X)[0], np.tile(W["w"], (2, 1)))
    with pytest.raises(ValueError, match="bytes have no folder"):
        load(path.read_bytes())


@pytest.mark.parametrize("beside", [True, False])
def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch, beside):
    path, other = tmp_path / "a.onnx", tmp_path / "w.bin"
    other.write_bytes(W["w"].tobytes())
    data = external("w.bin") if beside else edited(lambda proto: None, [ADD], W)
    room = onnx_wire._room

    def shrink(*args):
        os.truncate(other if beside else path, 8)
        return room(*args)

    monkeypatch.setattr(onnx_wire, "_room", shrink)
    refused(path, data, "'w.bin' ends before the tensor 'w'" if beside else "it became shorter")


@pytest.mark.parametrize(("location", "more", "error"), [
    ("../w.bin", {}, "expected a file in the folder"), ("/etc/passwd", {}, "in the folder"),
    ("", {}, "in the folder"), (".", {}, "in the folder"), ("a\\w.bin", {}, "in the folder"),
    ("link", {}, "in the folder"), ("w.bin\0", {}, "in the folder"),
    ("w.bin", {"offset": "100"}, "which ends before"), ("w.bin", {"offset": "-1"}, "the offset"),
    ("w.bin", {"length": "9" * 30}, "the length"), ("w.bin", {"length": "3"}, "expected 12"),
    ("w.bin", {"offset": "9" * 18}, "which ends before"), ("folder", {}, "no ordinary file"),
])
def test_other_files_that_are_refused(tmp_path, location, more, error):
    inside = tmp_path / "model"
    (inside / "folder").mkdir(parents=True)
    for place in (tmp_path, inside):
        (place / "w.bin").write_bytes(W["w"].tobytes())
    (inside / "link").symlink_to(tmp_path / "w.bin")
    refused(inside / "a.onnx", external(location, **more), error)


# ---- memory and depth ----------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand"])
@pytest.mark.parametrize("constant", [False, True])
def test_a_huge_size_is_refused_before_memory_is_taken(tmp_path, op, constant):
    shape = {"s": np.array([10**6, 10**6], np.int64)}
    inputs = ["s"] if op == "ConstantOfShape" else ["one", "s"]
    data = model([node(op, inputs, ["y"], name="n")], {} if constant else shape, ["y"],
                 {"one": np.ones(1, np.float32)} | (shape if constant else {}))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"node 'n'.*expected at most"):
        load(data)({} if constant else shape)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_what_is_computed_at_load_is_bounded_by_the_file():
    """Each node makes 64 MB of nothing; they are left to a call, which nobody makes."""
    value = onnx.numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [node("ConstantOfShape", ["s"], [f"c{i}"], value=value) for i in range(9)]
    nodes += [node("Slice", [f"c{i}", "a", "b"], [f"d{i}"]) for i in range(9)]
    nodes += [node("Concat", [f"d{i}" for i in range(9)], ["y"], axis=0)]
    data = model(nodes, {}, ["y"], {"s": np.array([2**24]), "a": np.array([0]), "b": np.array([1])})
    tracemalloc.start()
    made = load(data)
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert current < 2e6
    assert peak < 2e6
    assert made()[0].shape == (9,)


@pytest.mark.parametrize("constant", [False, True])
def test_nested_graphs_are_bounded(tmp_path, constant):
    yes = {"yes": np.array(True)}
    feeds, tensors = (X, yes) if constant else (X | yes, {})
    for depth in (10, 20):
        inner = graph([node("Identity", ["x"], ["y0"])], {}, ["y0"])
        for k in range(1, depth):
            other = graph([node("Neg", ["x"], [f"z{k}"])], {}, [f"z{k}"])
            inner = graph([node("If", ["yes"], [f"y{k}"], name=f"n{k}", then_branch=inner,
                                else_branch=other)], {}, [f"y{k}"])
        data = model([node("Identity", [f"y{depth - 1}"], ["y"])], feeds, ["y"], tensors)
        proto = onnx.load_from_string(data)
        proto.graph.node.insert(0, inner.node[0])
        if depth == 10:
            np.testing.assert_array_equal(load(proto.SerializeToString())(feeds)[0], X["x"])
        else:
            refused(tmp_path / "deep.onnx", proto.SerializeToString(), "nested|parsing")


@pytest.mark.parametrize(("depth", "error"), [
    (33, "does not say which version"), (34, "nested, expected at most 100 one in another")])
def test_messages_in_each_other_are_bounded(tmp_path, depth, error):
    def field(number, content):
        return varint(number << 3 | 2) + varint(len(content)) + content

    inner = b""
    for _ in range(depth):  # the graph of an attribute of a node
        inner = field(1, field(5, field(6, inner)))
    refused(tmp_path / "deep.onnx", field(7, inner), error)


# ---- calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "error"), [
    (lambda m: m(), r"missing \['x'\]"), (lambda m: m(X["x"], X["x"]), "2 inputs are given in"),
    (lambda m: m(X["x"], x=X["x"]), r"given twice \['x'\]"),
    (lambda m: m(X, z=1), r"unknown \['z'\]"),
    (lambda m: m(X["x"].astype(float)), "x is float64, expected float32"),
    (lambda m: m("a"), "x is 'a', expected an array of float32"),
    (lambda m: m(None), "x is None"), (lambda m: m([[1], [1, 2]]), "x is"),
    (lambda m: m(X["x"][0]), r"x has the shape \(3,\), expected \(\?, \?\)"),
])
def test_inputs_of_a_call(call, error):
    with pytest.raises((TypeError, ValueError), match=f"OnnxModel: .*{error}"):
        call(load(model([RELU], X, ["y"])))


def test_fixed_sizes_of_inputs():
    made = load(fastrnn_onnx().dumps(GRU(3, 4, seed=0)))
    assert made.inputs == (("x", np.float32, ("T", "B", 3)),)
    assert made.output_names == ("y",)
    assert repr(made) == "OnnxModel(x -> y)"
    with pytest.raises(ValueError, match=r"x has the shape \(2, 3, 4\), expected \(T, B, 3\)"):
        made(np.zeros((2, 3, 4), np.float32))


def test_outputs_are_the_callers():
    made = load(model([node("Identity", ["w"], ["y"])], X, ["y"], W))
    made(X)[0][:] = 7
    np.testing.assert_array_equal(made(X)[0], W["w"])


def test_weights_that_are_listed_as_inputs():
    """Old files list every tensor among the inputs."""
    made = load(model([ADD], X | W, ["y"], W))
    assert made.input_names == ("x",)
    np.testing.assert_array_equal(made(X)[0], np.tile(W["w"], (2, 1)))


def test_what_is_unused():
    nodes = [RELU, node("Conv", ["x", "v"], ["z"], name="dead")]
    made = load(model(nodes, X, ["y"], W | {"v": np.zeros(3)}))
    assert made.unused == ("w", "v", "dead")


def test_without_the_package(tmp_path):
    code = ("import sys; sys.modules['onnx'] = None; import importlib, fastrnn\n"
            "m = importlib.import_module('fastrnn.onnx')\n"
            "for f in (lambda: m.load(b''), lambda: m.dumps(fastrnn.GRU(2, 3))):\n"
            "    try: f()\n"
            "    except ModuleNotFoundError as e: assert 'pip install onnx' in str(e)\n"
            "    else: raise SystemExit('no error')\n")
    subprocess.run([sys.executable, "-c", code], check=True)
