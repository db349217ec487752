"""Graphs inside graphs: the branches of an If, the body of a Scan, and what they refuse."""

import numpy as np
import pytest
from onnx_models import draw, graph, load, model, node, recurrent, recurrent_node

onnx = pytest.importorskip("onnx")

X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
YES, NO = ({"yes": np.array(value)} for value in (True, False))


def branch(*nodes, output="z", inputs=(), tensors=None):
    return graph(nodes, dict.fromkeys(inputs, X["x"]), [output], tensors or {})


SAME, NEGATIVE = (branch(node(op, ["x"], ["z"], name="inner")) for op in ("Identity", "Neg"))


def choice(then=SAME, other=NEGATIVE, feeds=YES, **tensors):
    """Return the bytes of a model with an If."""
    return model([node("If", ["yes"], ["y"], then_branch=then, else_branch=other)], X | feeds,
                 ["y"], tensors)


# ---- If ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", [True, False])
def test_weights_may_be_what_a_constant_condition_chooses(constant):
    """What is chosen is a constant, so the layer is made at load."""
    feeds = draw("GRU")
    branches = {f"{name}_branch": graph(
        [node("Constant", [], [f"{name}.W"], value=onnx.numpy_helper.from_array(W))], {},
        [(f"{name}.W", W.dtype)]) for name, W in (("then", feeds["W"]), ("else", -feeds["W"]))}
    nodes = [node("If", ["yes"], ["W"], **branches), recurrent_node("GRU", feeds, ["", "Y_h"])]
    tensors = {name: feeds[name] for name in "RB"} | {"yes": np.array(constant)}
    inputs = {name: feeds[name] for name in ("X", "initial_h")}
    loaded = load(model(nodes, inputs, ["Y_h"], tensors))
    assert len(loaded.layers) == 1
    expected = recurrent("GRU", feeds | ({} if constant else {"W": -feeds["W"]}))[1]
    np.testing.assert_allclose(loaded(inputs)[0], expected, 1e-11, 1e-11)


def test_a_branch_that_cannot_compute_is_refused_only_when_it_is_taken():
    divide = branch(node("Div", ["a", "b"], ["q"], name="inner"),
                    node("Cast", ["q"], ["z"], to=onnx.TensorProto.FLOAT))
    loaded = load(choice(divide, a=np.array([1]), b=np.array([0])))
    np.testing.assert_array_equal(loaded(X | NO)[0], -X["x"])
    with pytest.raises(ValueError, match=r"the model, node 'inner' \(Div\): it divides whole"):
        loaded(X | YES)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_error_in_a_graph_names_the_innermost_node(depth):
    inner = branch(node("Add", ["x", "w"], ["z0"], name="inner"), output="z0")
    for k in range(1, depth):
        other = branch(node("Neg", ["x"], [f"v{k}"]), output=f"v{k}")
        inner = branch(node("If", ["yes"], [f"z{k}"], name=f"n{k}", then_branch=inner,
                            else_branch=other), output=f"z{k}")
    loaded = load(choice(inner, w=np.zeros(4, np.float32)))
    with pytest.raises(ValueError, match=r"^OnnxModel: the model, node 'inner' \(Add\): its inp"):
        loaded(X | YES)


@pytest.mark.parametrize(("condition", "error"), [
    (np.array([True, False]), r"its condition is bool \(2,\), expected one boolean"),
    (np.array(1), r"its condition is int64 \(\), expected one boolean"),
    (np.zeros(0, bool), r"its condition is bool \(0,\)"),
])
@pytest.mark.parametrize("constant", [False, True])
def test_a_condition_that_is_no_boolean(condition, error, constant):
    feeds, tensors = ({}, {"yes": condition}) if constant else ({"yes": condition}, {})
    with pytest.raises(ValueError, match=rf"node 'the If' \(If\): {error}"):
        load(choice(feeds=feeds, **tensors))(X | feeds)


@pytest.mark.parametrize(("then", "error"), [
    (branch(node("Neg", ["v"], ["z"]), inputs=["v"]), "a branch has 1 inputs and 1 outputs"),
    (graph([node("Neg", ["x"], ["z"])], {}, ["z", "x"]), "a branch has 0 inputs and 2 outputs"),
    (graph([], {}, []), "a branch has 0 inputs and 0 outputs, expected 0 and 1"),
])
@pytest.mark.parametrize("swapped", [False, True])
def test_branches_that_do_not_fit(then, error, swapped):
    data = choice(SAME, then) if swapped else choice(then)
    with pytest.raises(ValueError, match=rf"node 'the If' \(If\): {error}"):
        load(data)


# ---- Scan ----------------------------------------------------------------------------------------


def scan(*nodes, inputs=("s", "x"), tensors=None):
    """Return the bytes of a model with a Scan of one state, which is a row."""
    body = graph(nodes, dict.fromkeys("sa", X["x"][0]), ["t", "out"], tensors or {})
    feeds = {"s": X["x"][0], **X}
    return model([node("Scan", list(inputs), ["final", "outs"], body=body, num_scan_inputs=1)],
                 feeds, ["final", "outs"]), feeds


def test_the_same_nodes_are_a_scan():
    data, feeds = scan(node("Add", ["s", "a"], ["t"]), node("Identity", ["s"], ["out"]))
    final, outs = load(data)(feeds)
    np.testing.assert_array_equal(final, feeds["s"] + X["x"].sum(0))
    np.testing.assert_array_equal(outs, [feeds["s"], feeds["s"] + X["x"][0]])


@pytest.mark.parametrize(("nodes", "options", "error"), [
    ([node("Concat", ["s", "a"], ["t"], axis=0), node("Identity", ["s"], ["out"])], {},
     r"an output of its body has the shape \(3,\), and in step 1 \(6,\)"),
    ([node("Add", ["s", "a"], ["t"]), node("Identity", ["t"], ["out"])],
     {"tensors": {"a": X["x"][0]}}, "the names .'a'. are inputs and tensors"),
    *[([node("Add", ["s", "a"], ["t"]), node("Identity", ["t"], ["out"])],
       {"inputs": inputs}, rf"it has {len(inputs)} inputs, expected 2: those of its body")
      for inputs in (("x",), ("s", "x", "x"), ("", "x"))],
])
def test_a_body_that_does_not_fit(nodes, options, error):
    data, feeds = scan(*nodes, **options)
    with pytest.raises(ValueError, match=rf"node 'the Scan' \(Scan\): {error}"):
        load(data)(feeds)
