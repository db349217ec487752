"""What loading an ONNX file takes: twice the file, however it holds its weights."""

import subprocess
import sys

import numpy as np
import pytest
from onnx_models import draw, graph, load, model, node, recurrent_node, runtime

onnx = pytest.importorskip("onnx")

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


@pytest.mark.parametrize("how", ["traced", pytest.param("resident", marks=pytest.mark.skipif(
    sys.platform != "linux", reason="/proc/self/status"))])
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


def test_bytes_of_any_kind_and_a_buffer_that_changes_later():
    data, feeds = of_kind("convolution")
    data = bytearray(data)
    made = load(data)
    (before,) = made(feeds)
    data[:] = bytes(len(data))
    np.testing.assert_array_equal(made(feeds)[0], before)
    with pytest.raises(ValueError, match=r"no graph|cut off"):
        load(memoryview(data))


def varint(value):
    made = b""
    while value > 127:
        made += bytes([value & 127 | 128])
        value >>= 7
    return made + bytes([value])


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
