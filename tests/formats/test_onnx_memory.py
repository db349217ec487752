"""What loading an ONNX file takes: twice the file, however it holds its weights."""

import copy
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from onnx_models import draw, graph, load, model, node, recurrent_node, runtime, varint

onnx = pytest.importorskip("onnx")

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status")
ROOM = 16 * 2**20  # bytes beside twice the file

PROGRAM = """
import sys, tracemalloc, onnx
import fastrnn.onnx

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

fastrnn.onnx.load(fastrnn.onnx.dumps(fastrnn.GRU(2, 3)))  # what is imported at first use
how, path = sys.argv[1:]
if how == "traced":
    tracemalloc.start()
    model = fastrnn.onnx.load(path)
    layers = [layer for node in model.layers.values() for layer in node]
    # the gradients of a layer are zeros that nobody touches: they have addresses and no memory
    print(tracemalloc.get_traced_memory()[1] - sum(layer.flat_grads.nbytes for layer in layers))
else:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = peak()
    model = fastrnn.onnx.load(path)
    print(peak() - before)
"""


LIMITED = """
import resource, sys
import numpy as np
import fastrnn.onnx

def limit(extra):
    with open("/proc/self/status") as file:
        size = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (size + int(extra), -1))

what, path = sys.argv[1:]
model = fastrnn.onnx.load(path)  # imports what is needed
model(np.array([1]))
with open(path, "rb") as file:
    data = file.read()
calls = {"load": lambda: fastrnn.onnx.load(path), "load bytes": lambda: fastrnn.onnx.load(data),
         "call": lambda: model(np.array([2**27]))}
limit(32e6)  # tensors have 64 MB, the result of the call 512 MB
try:
    calls[what]()
except MemoryError as error:
    print(error, end="")
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
"""


def constants(weights, suffix=""):
    return [node("Constant", [], [name + suffix], value=onnx.numpy_helper.from_array(a))
            for name, a in weights.items()]


def from_parts(weights, gates):
    """Return nodes that make weights of a transposed part for each gate."""
    nodes = constants({"B": weights["B"]})
    for name in ("W", "R"):
        parts = {f"{name}{i}": np.ascontiguousarray(part.swapaxes(1, 2))
                 for i, part in enumerate(np.split(weights[name], gates, 1))}
        nodes += constants(parts)
        nodes += [node("Transpose", [part], [part + "t"], name=part, perm=[0, 2, 1])
                  for part in parts]
        nodes.append(node("Concat", [part + "t" for part in parts], [name], name=name, axis=1))
    return nodes


def in_branches(op, weights):
    """Return an If whose branches have a recurrent node each."""
    def branch(name):
        made = onnx.helper.make_node(op, ["X", *(w + name for w in weights)], ["", "h" + name],
                                     name=name, hidden_size=weights["R"].shape[2])
        return graph([*constants(weights, name), made], {}, ["h" + name])

    return [node("If", ["yes"], ["h"], then_branch=branch("a"), else_branch=branch("b"))]


def as_numbers(data, weights):
    """Return a model with its weights as numbers, not bytes."""
    proto = onnx.load_from_string(data)
    proto.graph.initializer.extend(
        onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, a.shape, a.ravel())
        for name, a in weights.items())
    return proto.SerializeToString()


KINDS = ["tensors", "constants", "folded", "branches", "numbers", "convolution"]


def of_kind(kind, op="GRU", I=800, H=1100):
    """Return a file with these weights, and inputs for it."""
    if kind == "convolution":
        w = {"w": np.ones((1200, 1200, 3), np.float32)}
        x = {"x": np.ones((1, 1200, 5), np.float32)}
        return model([*constants(w), node("Conv", ["x", "w"], ["h"])], x, ["h"]), x
    weights = draw(op, T=2, B=1, I=I, H=H, state=False, dtype=np.float32)
    feeds = {"X": weights.pop("X")}
    recurrent = recurrent_node(op, feeds | weights, ["", "h"], hidden_size=H)
    if kind == "branches":
        feeds |= {"yes": np.array(True)}
        return model(in_branches(op, weights), feeds, ["h"]), feeds
    if kind == "tensors":
        return model([recurrent], feeds, ["h"], weights), feeds
    if kind == "numbers":
        return as_numbers(model([recurrent], feeds, ["h"]), weights), feeds
    nodes = constants(weights) if kind == "constants" else from_parts(weights, 3)
    return model([*nodes, recurrent], feeds, ["h"]), feeds


@pytest.mark.parametrize("kind", KINDS)
def test_the_outputs_are_right(kind):
    data, feeds = of_kind(kind, I=3, H=5)
    np.testing.assert_allclose(load(data)(feeds)[0], runtime(data, feeds)[0], 1e-5, 1e-5)


@pytest.mark.parametrize("how", ["traced", pytest.param("resident", marks=linux)])
@pytest.mark.parametrize("kind", KINDS)
def test_loading_peaks_at_twice_the_file(kind, how, tmp_path):
    path = tmp_path / "large.onnx"
    path.write_bytes(of_kind(kind)[0])
    done = subprocess.run([sys.executable, "-c", PROGRAM, how, path], capture_output=True,
                          text=True, check=True)
    assert int(done.stdout) <= 2 * path.stat().st_size + ROOM


@pytest.mark.parametrize(("dtype", "numbers"), [
    ("INT64", [0, 1, -1, 127, 128, 2**62, -(2**63)]), ("INT32", [0, -1, 300, -(2**31)]),
    ("INT8", [-128, 127, 0]), ("UINT8", [255, 0]), ("BOOL", [1, 0, 1]), ("UINT64", [2**64 - 1, 5]),
    ("UINT32", [2**32 - 1, 7]), ("DOUBLE", [1.5, -2.25]), ("FLOAT", [1.5, 2]),
    ("FLOAT16", [1.5, -2, 65504])])
def test_numbers_in_the_fields_of_their_types(dtype, numbers):
    repeated = numbers * 30_000  # in several parts, which cut numbers in two
    for values in (numbers, repeated):
        tensor = onnx.helper.make_tensor("w", getattr(onnx.TensorProto, dtype), [len(values)],
                                         values)
        expected = onnx.numpy_helper.to_array(tensor)
        proto = onnx.load_from_string(model([node("Identity", ["w"], ["y"])], {},
                                            [("y", expected.dtype)]))
        proto.graph.initializer.append(tensor)
        (got,) = load(proto.SerializeToString())()
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


def with_tensor(dtype, dims, content=b""):
    """Return a model that gives a tensor, whose message ends in this content."""
    kind = getattr(onnx.TensorProto, dtype)
    proto = onnx.load_from_string(model([node("Identity", ["w"], ["y"])], {}, [
        ("y", onnx.helper.tensor_dtype_to_np_dtype(kind))]))
    tensor = onnx.TensorProto(name="w", data_type=kind, dims=dims).SerializeToString() + content
    graph = proto.graph.SerializeToString() + b"*" + varint(len(tensor)) + tensor
    proto.ClearField("graph")
    return proto.SerializeToString() + b":" + varint(len(graph)) + graph


@pytest.mark.parametrize(("dtype", "content", "expected"), [
    ("FLOAT", b"".join(b"%" + struct.pack("<f", a) for a in (1.5, -2)), [1.5, -2]),
    ("DOUBLE", b"".join(b"Q" + struct.pack("<d", a) for a in (1.5, -2)), [1.5, -2]),
    ("FLOAT16", b"".join(b"(" + varint(a) for a in (0x3E00, 0xC000)), [1.5, -2]),
    ("INT64", b"".join(b"8" + varint(a) for a in (300, 2**64 - 1)), [300, -1]),
    ("BOOL", b"".join(b"(" + varint(a) for a in (1, 0)), [True, False]),
    *[(dtype, b"", []) for dtype in ("FLOAT", "FLOAT16", "INT64", "BOOL")]])
def test_numbers_that_are_fields_one_by_one(dtype, content, expected):
    """Old writers do not pack them; an empty tensor may have no field at all."""
    (got,) = load(with_tensor(dtype, [len(expected)], content))()
    assert got.dtype == onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, dtype))
    assert got.tolist() == expected


@pytest.mark.parametrize("numbers", [
    b"\x80" * 10 + b"\x01", b"\x80" * 2**18 + b"\x01", b"\x01\x80", b"\x01\x01", b"\x80"],
    ids=["of eleven bytes", "of many parts", "cut off", "too many", "too few"])
def test_whole_numbers_that_are_none(numbers):
    data = with_tensor("INT64", [1], b":" + varint(len(numbers)) + numbers)
    with pytest.raises(ValueError, match="the tensor 'w' has other than 1 numbers, expected 1"):
        load(data)


@linux
@pytest.mark.parametrize("what", ["load", "load bytes", "call"])
def test_lack_of_memory_is_named(what, tmp_path):
    path = tmp_path / "a.onnx"
    value = onnx.numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [node("ConstantOfShape", ["n"], ["ones"], name="large", value=value),
             node("Concat", ["ones", "w"], ["y"], axis=0)]
    path.write_bytes(model(nodes, {"n": np.array([3])}, ["y"], {"w": np.zeros(2**24, "f4")}))
    done = subprocess.run([sys.executable, "-c", LIMITED, what, path], capture_output=True,
                          text=True, check=True)
    assert done.stdout == {
        "load": f"there is not enough memory to load {str(path)!r}, a file of "
                f"{path.stat().st_size:,} bytes",
        "load bytes": "there is not enough memory to load the model",
        "call": f"{str(path)!r}, node 'large' (ConstantOfShape): not enough memory"}[what]


def test_bytes_of_any_kind_and_a_buffer_that_changes_later():
    data, feeds = of_kind("convolution")
    data = bytearray(data)
    made = load(data)
    (before,) = made(feeds)
    data[:] = bytes(len(data))
    np.testing.assert_array_equal(made(feeds)[0], before)
    with pytest.raises(ValueError, match=r"no graph|cut off"):
        load(memoryview(data))


@pytest.mark.parametrize("message", [
    b"\n\x00",                                      # nodes
    b"*\x00",                                       # tensors
    b"Z\x00",                                       # inputs
    b"\n" + varint(2000) + b"*\x00" * 1000,         # attributes
    b"\n" + varint(2000) + b"\n\x00" * 1000], ids=["nodes", "tensors", "inputs", "attributes",
                                                   "names"])
def test_messages_of_two_bytes_are_bounded(message):
    """A parser makes a hundred bytes of each."""
    small = onnx.load_from_string(model([node("Relu", ["x"], ["y"])], {"x": np.zeros(2)}, ["y"]))
    graph = small.graph.SerializeToString() + message * (2**21 // len(message))
    small.ClearField("graph")
    with pytest.raises(ValueError, match="has too many nodes and names for a file of 2"):
        load(small.SerializeToString() + b":" + varint(len(graph)) + graph)


def test_a_graph_of_thousands_of_nodes_is_loaded():
    nodes = [onnx.helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(5000)]
    feeds = {"v0": np.ones(2, np.float32)}
    np.testing.assert_array_equal(load(model(nodes, feeds, ["v5000"]))(feeds)[0], feeds["v0"])


@pytest.mark.parametrize("act", [copy.deepcopy, pickle.dumps])
def test_models_say_that_they_cannot_be_copied(act):
    x = np.array([-1, 0, 1], np.float32)
    made = load(model([node("Relu", ["x"], ["y"])], {"x": x}, ["y"]))
    np.testing.assert_array_equal(copy.copy(made)(x)[0], [0, 0, 1])
    with pytest.raises(TypeError, match=r"cannot be pickled or deeply copied, fastrnn\.load makes"):
        act(made)
