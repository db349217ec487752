"""The operators around recurrent nodes against ONNX Runtime, in the forms of several opsets."""

import numpy as np
import pytest
from onnx_models import check_form, graph, load, model, node, of_form, runtime

pytest.importorskip("onnx")

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def whole(*numbers):
    return np.array(numbers, np.int64)


A, B, ROW, CUBE = normal(3, 4), normal(3, 4), normal(4), normal(2, 3, 4)
YES = np.array([[True], [False], [True]])

# operator, inputs, attributes, and the opsets of the form
FORMS = [
    *[(op, [A, B], {}, (7, 13, 17)) for op in ("Add", "Sub", "Mul", "Div")],
    *[(op, [CUBE, ROW], {}, (14,)) for op in ("Add", "Sub", "Mul", "Div", "Less", "Greater")],
    ("Div", [whole(7, -7, 7, -7, 6), whole(2, 2, -2, -2, -3)], {}, (14,)),
    ("Add", [whole(1, 2), whole(3)], {}, (14,)),
    *[(op, [3 * CUBE], {}, (6, 13)) for op in ("Relu", "Tanh", "Sigmoid", "Neg", "Identity")],
    ("Sigmoid", [np.array([-200, -90, 0, 90, 200], np.float32)], {}, (13,)),
    ("Equal", [whole(1, 2, 3), whole(1, 5, 3)], {}, (13,)),
    ("Equal", [A, A], {}, (13,)), ("Equal", [YES, YES], {}, (13,)),
    ("Not", [YES], {}, (13,)), ("And", [YES, ~YES], {}, (13,)), ("Or", [YES, ~YES], {}, (13,)),
    ("Where", [YES, A, B], {}, (13,)), ("Where", [YES, CUBE, ROW], {}, (13,)),
    *[(op, [CUBE], {"axis": axis}, (11, 13)) for op in ("Softmax", "LogSoftmax")
      for axis in (0, 1, 2, -1)],
    *[(op, [100 * CUBE], {}, (11, 13)) for op in ("Softmax", "LogSoftmax")],
    *[("MatMul", pair, {}, (13,)) for pair in (
        [A, normal(4, 5)], [CUBE, normal(4, 5)], [CUBE, normal(2, 4, 5)], [A, ROW],
        [ROW, normal(4, 5)], [ROW, ROW], [normal(5, 1, 3, 4), normal(2, 4, 2)])],
    ("Gemm", [A, normal(4, 5)], {}, (13,)),
    ("Gemm", [A, normal(4, 5), normal(5)], {}, (7, 13)),
    ("Gemm", [A, normal(3, 5), normal(4, 1)], {"transA": 1, "alpha": 0.5, "beta": 2.0}, (13,)),
    ("Gemm", [A, normal(5, 4), normal(3, 5)], {"transB": 1}, (13,)),
    ("Transpose", [CUBE], {}, (13,)), ("Transpose", [CUBE], {"perm": [1, 2, 0]}, (13,)),
    ("Squeeze", [normal(1, 3, 1)], {}, (11, 13)),
    ("Squeeze", [normal(1, 3, 1)], {"axes": [2]}, (11,)),
    ("Squeeze", [normal(1, 3, 1), whole(-1, 0)], {}, (13,)),
    ("Unsqueeze", [A], {"axes": [0, 3]}, (9, 11)), ("Unsqueeze", [A, whole(3, 0)], {}, (13,)),
    ("Unsqueeze", [A, whole(-1)], {}, (13,)),
    ("Reshape", [CUBE, whole(6, 4)], {}, (13,)), ("Reshape", [CUBE, whole(0, -1)], {}, (5, 14)),
    ("Reshape", [CUBE, whole(-1, 0, 2)], {}, (14,)),
    ("Reshape", [normal(0, 3), whole(3, 0)], {"allowzero": 1}, (14,)),
    ("Flatten", [CUBE], {}, (13,)), ("Flatten", [CUBE], {"axis": 2}, (13,)),
    ("Flatten", [CUBE], {"axis": 0}, (13,)), ("Flatten", [CUBE], {"axis": -1}, (13,)),
    ("Concat", [A, B], {"axis": 0}, (13,)), ("Concat", [A, B, B], {"axis": -1}, (13,)),
    ("Slice", [CUBE], {"starts": [0, -2], "ends": [1, 99], "axes": [0, 2]}, (9,)),
    ("Slice", [CUBE], {"starts": [1], "ends": [-1]}, (9,)),
    ("Slice", [CUBE, whole(1), whole(3)], {}, (10, 13)),
    ("Slice", [CUBE, whole(-1, 0), whole(-(2**63), 2**63 - 1), whole(2, 1), whole(-1, 2)],
     {}, (13,)),
    ("Slice", [CUBE, whole(99), whole(-99), whole(-2), whole(-2)], {}, (13,)),
    ("Slice", [CUBE, np.array([1], np.int32), np.array([2], np.int32),
               np.array([0], np.int32)], {}, (13,)),
    ("Gather", [A, whole(2, 0, -1)], {}, (11, 13)),
    ("Gather", [A, whole(2)[0]], {"axis": 1}, (13,)),
    ("Gather", [CUBE, np.array([[0, 1], [2, -3]], np.int32)], {"axis": 1}, (13,)),
    ("Split", [CUBE], {"axis": 1, "split": [1, 2]}, (11,)),
    ("Split", [CUBE, whole(3, 1)], {"axis": -1}, (13,)), ("Split", [CUBE], {"axis": 2}, (11, 13)),
    ("Split", [CUBE], {"axis": 1, "num_outputs": 2}, (18,)),
    ("Shape", [CUBE], {}, (13,)), ("Shape", [CUBE], {"start": 1}, (15,)),
    ("Shape", [CUBE], {"start": -1, "end": 9}, (15,)),
    *[("Cast", [np.array([0, 1.7, -2.3, 3], np.float32)], {"to": to}, (13,))
      for to in (1, 6, 7, 9, 10, 11)],
    ("Cast", [YES], {"to": 1}, (9, 13)), ("Cast", [whole(3, 0)], {"to": 9}, (13,)),
    ("ConstantOfShape", [whole(2, 3)], {}, (13,)),
    ("ConstantOfShape", [np.zeros(0, np.int64)], {}, (9,)),
    ("ConstantOfShape", [whole(2, 0)], {"value": whole(5)}, (13,)),
    ("ConstantOfShape", [whole(2, 1)], {"value": whole(5)}, (13,)),
    ("Expand", [ROW, whole(2, 1, 4)], {}, (8, 13)), ("Expand", [CUBE, whole(3, 1)], {}, (13,)),
    ("Range", [np.array(1), np.array(9), np.array(3)], {}, (11,)),
    ("Range", [np.array(5), np.array(-2), np.array(-3)], {}, (11,)),
    ("Range", [np.array(5), np.array(5), np.array(1)], {}, (11,)),
    ("Range", [np.float32(0), np.float32(1), np.float32(0.3)], {}, (11,)),
    ("Pad", [A], {"pads": [1, 0, 0, 2], "value": 1.5}, (9,)),
    ("Pad", [A, whole(1, 0, 0, 2), np.float32(2.5)], {}, (13,)),
    ("Pad", [A, whole(-1, 0, 2, -3)], {}, (13,)),
    ("Pad", [A, whole(0, 2, 1, 1)], {"mode": "reflect"}, (13,)),
    ("Pad", [A, whole(0, 2, 1, 1)], {"mode": "edge"}, (13,)),
    ("Pad", [A, whole(2, 1), np.float32(1), whole(-1)], {}, (18,)),
    ("Dropout", [A], {}, (12,)),
]


@pytest.mark.parametrize(
    ("op", "arrays", "attributes", "opset"),
    [pytest.param(op, arrays, attributes, opset, id=f"{op}-{i}-{opset}")
     for i, (op, arrays, attributes, opsets) in enumerate(FORMS) for opset in opsets])
def test_an_operator_is_onnx_runtimes(op, arrays, attributes, opset):
    check_form(op, arrays, attributes, opset)


@pytest.mark.parametrize("n", range(5))
@pytest.mark.parametrize("step", [-2, -1, 1, 2])
def test_slices_from_and_to_places_beyond_the_axis(n, step):
    """The standard clamps a start before the axis to its first number, if the step is negative."""
    x = normal(n, 2)
    ends = [-9, -n, -1, 0, 1, n, 9]
    for start in ends:
        for end in ends:
            check_form("Slice", [x, whole(start), whole(end), whole(0), whole(step)], {}, 13)


@pytest.mark.parametrize(("attributes", "expected"), [
    ({"value_float": 2.5}, np.float32(2.5)), ({"value_int": 3}, np.int64(3)),
    ({"value_floats": [1.5, 2]}, np.array([1.5, 2], np.float32)),
    ({"value_ints": [1, 2]}, np.array([1, 2])), ({"value": A}, A)], ids=str)
def test_a_constant(attributes, expected):
    from onnx import numpy_helper

    attributes = {name: numpy_helper.from_array(a) if isinstance(a, np.ndarray) else a
                  for name, a in attributes.items()}
    (got,) = load(model([node("Constant", [], ["y"], **attributes)], {},
                        [("y", expected.dtype)]))()
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("op", "arrays", "attributes", "error"), [
    ("Add", [A, normal(5)], {}, "do not broadcast"),
    ("Add", [A, B.astype(float)], {}, "float32 and float64, expected one dtype"),
    ("Add", [YES, YES], {}, "its inputs are bool"),
    ("Div", [whole(1), whole(0)], {}, "divides whole numbers by 0"),
    ("Tanh", [whole(1)], {}, "is int64, expected floating"),
    ("Where", [whole(1), A, B], {}, "is int64, expected booleans"),
    ("MatMul", [A, B], {}, "have no product"), ("MatMul", [A, A[0, 0]], {}, "have no product"),
    ("MatMul", [normal(2, 3, 4), normal(3, 4, 5)], {}, "have no product"),
    ("Gemm", [A, B], {}, "have no product"), ("Gemm", [CUBE, B], {}, "expected two axes"),
    ("Gemm", [A, normal(4, 5), normal(3)], {}, "broadcast"),
    ("Gemm", [A, normal(4, 5), normal(1, 3, 5)], {}, r"its C has the shape \(1, 3, 5\)"),
    ("Transpose", [A], {"perm": [0, 0]}, "its perm is"),
    ("Softmax", [A], {"axis": 2}, "the axis 2"),
    ("Squeeze", [A, whole(0)], {}, "expected size 1"),
    ("Unsqueeze", [A, whole(5)], {}, "the axis 5"),
    ("Unsqueeze", [A, whole(0, 0)], {}, "an axis twice"),
    ("Unsqueeze", [A, whole(*range(31))], {}, "it makes 33 axes, expected at most 32"),
    ("Reshape", [A, whole(5, -1)], {}, "cannot become"),
    ("Reshape", [A, whole(-1, -1)], {}, "become"),
    ("Reshape", [A, whole(0, 0, 0)], {}, "copies an axis"), ("Reshape", [A, ROW], {}, "is float32"),
    ("Reshape", [A, whole(12)[None]], {}, r"its shape has the shape \(1, 1\), expected 1 axes"),
    ("Reshape", [A, whole(12, *[1] * 64)], {}, "its shape has 65 numbers, expected at most 64"),
    ("Concat", [A, CUBE], {"axis": 0}, "expected the same"),
    ("Concat", [A, ROW[None][:, :3]], {"axis": 0}, "expected the same"),
    ("Concat", [A], {}, "no attribute 'axis'"), ("Flatten", [A], {"axis": 3}, "the axis 3"),
    ("Gather", [A, whole(3)], {}, "its indices are 3 to 3"), ("Gather", [A, A], {}, "are float32"),
    ("Slice", [A, whole(0), whole(1), whole(0), whole(0)], {}, "steps"),
    ("Slice", [A, whole(0, 1), whole(1)], {}, "it has the starts"),
    ("Split", [A, whole(9, 1)], {}, "it splits 3 into"), ("Cast", [A], {"to": 8}, "data type 8"),
    ("Split", [A], {"num_outputs": 3}, "its num_outputs is 3, but it has 2 outputs"),
    ("Cast", [A], {}, "no attribute 'to'"), ("Cast", [A], {"to": 1, "other": 1}, "'other'"),
    ("ConstantOfShape", [whole(-1)], {}, "the shape"),
    ("ConstantOfShape", [whole(10**6, 10**6)], {}, "expected at most"),
    ("Expand", [ROW, whole(10**12, 4)], {}, "expected at most"),
    ("Expand", [ROW, whole(3)], {}, "does not broadcast"),
    ("Range", [whole(0), whole(10**12), whole(1)], {}, "expected at most"),
    ("Range", [whole(0), whole(1), whole(0)], {}, "in steps of 0"),
    ("Range", [whole(0), whole(1, 2), whole(1)], {}, "no single numbers"),
    ("Range", [np.float32(0), np.float32(np.inf), np.float32(1)], {}, "from 0.0 to inf"),
    ("Pad", [A, whole(0, 0, 0, 10**12)], {}, "expected at most"),
    ("Pad", [A, whole(0, 0, 0, -9)], {}, "its pads are"),
    ("Pad", [A, whole(1)], {}, "its pads are"),
    ("Pad", [A, whole(0, 0, 0, 0), ROW], {}, r"value has the shape \(4,\), expected one number"),
    ("Dropout", [A, np.float32(0.5), np.array(True)], {}, "its training_mode is True"),
    ("Add", [A], {}, "it has 1 inputs, expected 2"), ("Relu", [A, B], {}, "it has 2 inputs"),
    ("Det", [CUBE], {}, "does not have the operator 'Det'"),
])
def test_what_an_operator_refuses(op, arrays, attributes, error):
    for fixed in ((), range(len(arrays))):
        named = {f"x{i}": np.asarray(a) for i, a in enumerate(arrays)}
        feeds = {name: a for i, (name, a) in enumerate(named.items()) if i not in fixed}
        tensors = {name: a for name, a in named.items() if name not in feeds}
        data = model([node(op, list(named), [f"y{i}" for i in range(2 if op == "Split" else 1)],
                           **attributes)], feeds, ["y0"], tensors)
        with pytest.raises((ValueError, TypeError), match=rf"the model.*node 'the {op}' \({op}\): "
                                                          rf".*{error}"):
            load(data)(feeds)


@pytest.mark.parametrize(("op", "arrays", "attributes", "opset", "error"), [
    ("Add", [A, B], {"broadcast": 1}, 6, "broadcasts as before opset 7"),
    ("Add", [A, B], {"axis": 1}, 6, "broadcasts as before opset 7"),
    ("Pow", [A, B], {}, 6, "broadcasts as before opset 7"),
    ("Tile", [A, whole(2), whole(0)], {}, 5, "repeats one axis as before opset 6"),
    ("Unsqueeze", [A], {}, 11, "no attribute 'axes'"),
    *[("Slice", [A], given, 9, "no attributes 'starts' and 'ends'")
      for given in ({}, {"starts": [0]}, {"ends": [1]})],
    *[(op, [A, None, B], {}, 13, "one of its inputs is not given") for op in ("Max", "Mean")],
    ("Concat", [A, None], {"axis": 0}, 13, "one of its inputs is not given"),
    ("Einsum", [A, None], {"equation": "ij,kl->"}, 13, "one of its inputs is not given"),
    ("Constant", [], {"value_int": 1, "value_float": 1.0}, 13, "it has 2 values, expected one"),
    ("Constant", [], {}, 13, "it has 0 values, expected one"),
    ("Constant", [], {"value_string": "a"}, 13, "it has the attributes .'value_string'."),
    ("ConstantOfShape", [whole(2)], {"value": whole(5, 6)}, 13, "its value has 2 numbers"),
    ("Gelu", [A], {"approximate": "erf"}, 20, "its attribute 'approximate' is 'erf'"),
    ("GRU", [A, B, ROW], {}, 14, "it has 4 outputs, expected at most 2"),
])
def test_a_form_that_is_refused_at_load(op, arrays, attributes, opset, error):
    data, _ = of_form(op, arrays, attributes, opset, outputs=4 if op == "GRU" else 1)
    with pytest.raises(ValueError, match=rf"load: .*node 'the {op}' \({op}\): .*{error}"):
        load(data)


SLOPE = normal(3)
IMAGE, SCALE = normal(2, 3, 4, 5), [normal(3), normal(3), normal(3), abs(normal(3))]


def per_channel(a):
    return a[:, None, None]


@pytest.mark.parametrize(("op", "arrays", "attributes", "opset", "expected"), [
    ("Reshape", [CUBE], {"shape": [0, -1], "consumed_inputs": [0]}, 1, CUBE.reshape(2, 12)),
    ("Reshape", [ROW[:1]], {}, 1, ROW[0]),
    *[(op, [A, B], {"consumed_inputs": [0, 0]}, 1, function(A, B)) for op, function in (
        ("Max", np.maximum), ("Min", np.minimum), ("Sum", np.add))],
    ("PRelu", [CUBE, SLOPE], {}, 6, np.where(CUBE < 0, SLOPE[:, None] * CUBE, CUBE)),
    ("Gemm", [A, B.T, SLOPE], {"broadcast": 1}, 6, A @ B.T + SLOPE),
    ("BatchNormalization", [IMAGE, *SCALE], {"is_test": 1, "consumed_inputs": [0] * 5}, 1,
     (IMAGE - per_channel(SCALE[2])) / np.sqrt(per_channel(SCALE[3]) + np.float32(1e-5))
     * per_channel(SCALE[0]) + per_channel(SCALE[1])),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_form_of_the_first_opsets(op, arrays, attributes, opset, expected):
    """ONNX Runtime has no kernels for them."""
    data, feeds = of_form(op, arrays, attributes, opset)
    (got,) = load(data)(feeds)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, 1e-5, 1e-5)


@pytest.mark.parametrize("constant", [False, True])
def test_an_output_that_nobody_wants_is_no_input_of_later_nodes(constant):
    """Both have the name "": here it is the first part, and the bound that is not given."""
    feeds, tensors = {"x": np.array([5, -3], np.float32)}, {"ten": np.float32(10)}
    nodes = [node("Split", ["x"], ["", "last"], axis=0), node("Clip", ["x", "", "ten"], ["kept"]),
             node("Add", ["kept", "last"], ["y"])]
    data = model(nodes, {} if constant else feeds, ["y"], tensors | (feeds if constant else {}))
    (y,) = load(data)({} if constant else feeds)
    assert y.tolist() == [2, -6]


def test_an_array_that_grows_in_every_node_is_refused():
    nodes = [node("Concat", [f"x{i}", f"x{i}"], [f"x{i + 1}"], name=f"n{i}", axis=0)
             for i in range(60)]
    for constant in (False, True):
        tensors = {"x0": np.zeros((8, 0, 3), np.float32)} if constant else {}
        feeds = {} if constant else {"x0": np.zeros((8, 0, 3), np.float32)}
        with pytest.raises(ValueError, match=r"node 'n\d+' .Concat.: its result has the shape"):
            load(model(nodes, feeds, ["x60"], tensors))(feeds)


# ---- Scan ----------------------------------------------------------------------------------------


def scan(opset=14, T=5, **attributes):
    """Return a model that sums up two sequences, one of them backwards, and its inputs."""
    body = graph([node("Add", ["s", "a"], ["sa"], name="add"),
                  node("Mul", ["sa", "around"], ["new"], name="mul"),
                  node("Sub", ["new", "b"], ["out"], name="sub"),
                  node("Identity", ["a"], ["same"], name="same")],
                 {"s": ROW, "a": ROW, "b": ROW}, ["new", "out", "same"])
    feeds = {"first": ROW, "x": normal(T, 4), "y": normal(4, T)}
    feeds["factor"] = np.array(0.9, np.float32)
    nodes = [node("Identity", ["factor"], ["around"], name="around"),
             node("Scan", ["first", "x", "y"], ["final", "outs", "sames"], body=body,
                  **{"num_scan_inputs": 2, "scan_input_axes": [0, 1]} | attributes)]
    return model(nodes, feeds, ["final", "outs", "sames"], {}, opset), feeds


@pytest.mark.parametrize("attributes", [
    {}, {"scan_input_directions": [1, 0]}, {"scan_output_axes": [1, 0]},
    {"scan_output_directions": [0, 1], "scan_output_axes": [-1, 0]}], ids=str)
def test_a_scan_is_onnx_runtimes(attributes):
    data, feeds = scan(**attributes)
    for mine, theirs in zip(load(data)(feeds), runtime(data, feeds), strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, 1e-6, 1e-6)


@pytest.mark.parametrize(("attributes", "error"), [
    ({"num_scan_inputs": 3}, "its scan_input_axes"),
    ({"num_scan_inputs": 0}, "0 of them sequences"),
    ({"num_scan_inputs": 9}, "9 of them sequences"),
    ({"scan_input_axes": [0]}, "its scan_input_axes is"), ({"scan_input_axes": [0, 2]}, "axis 2"),
    ({"scan_input_axes": [0, 0]}, "the same number"), ({"opset": 8}, "form before opset 9"),
    ({"scan_output_directions": [0, 2]}, "its scan_output_directions is"),
    ({"scan_output_axes": [5, 0]}, "the axis 5"), ({"T": 0}, "at least 1"),
    ({"other": 1}, "attributes .'other'")])
def test_what_a_scan_refuses(attributes, error):
    data, feeds = scan(**attributes)
    with pytest.raises(ValueError, match=rf"node 'the Scan' \(Scan\): .*{error}"):
        load(data)(feeds)
