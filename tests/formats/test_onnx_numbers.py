"""Convolutions, pools, reductions, normalisations and functions against ONNX Runtime."""

import string

import numpy as np
import pytest
from onnx_models import check_form, load, model, node, of_form, runtime

pytest.importorskip("onnx")

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def whole(*numbers):
    return np.array(numbers, np.int64)


A, ROW, CUBE, N = normal(3, 4), normal(4), normal(2, 3, 4), whole(5, -3, 7, -2)
LINE, IMAGE = normal(2, 4, 11), normal(2, 4, 7, 9)
POSITIVE = abs(CUBE) + np.float32(0.1)

ONE = ["Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "LeakyRelu", "Reciprocal",
       "Round", "Selu", "Sign", "Sin", "Softplus", "Softsign"]
FUNCTIONS = [
    *[(op, [3 * CUBE], {}, (6 if op not in ("Erf", "Sign", "Sin", "Cos", "Round") else 11, 13))
      for op in ONE],
    *[(op, [POSITIVE], {}, (6, 13)) for op in ("Log", "Sqrt")],
    ("HardSwish", [3 * CUBE], {}, (14,)), ("Mish", [3 * CUBE], {}, (18,)),
    ("Gelu", [3 * CUBE], {}, (20,)), ("Gelu", [3 * CUBE], {"approximate": "tanh"}, (20,)),
    ("Round", [np.array([0.5, 1.5, -0.5, -2.5, 2.4], np.float32)], {}, (11,)),
    ("Abs", [N], {}, (13,)), ("Sign", [N], {}, (13,)),
    ("Softplus", [np.array([-200, -1, 0, 50, 200], np.float32)], {}, (13,)),
    ("Elu", [CUBE], {"alpha": 0.3}, (13,)), ("LeakyRelu", [CUBE], {"alpha": 0.3}, (13,)),
    ("Selu", [CUBE], {"alpha": 0.3, "gamma": 2.0}, (13,)),
    ("HardSigmoid", [CUBE], {"alpha": 0.7, "beta": 0.3}, (13,)),
    ("PRelu", [CUBE, ROW], {}, (9, 16)), ("PRelu", [CUBE, normal(3, 1)], {}, (16,)),
    ("Clip", [CUBE], {"min": -0.5, "max": 0.25}, (6,)), ("Clip", [CUBE], {"max": 0.25}, (6,)),
    ("Clip", [CUBE, np.float32(-0.5), np.float32(0.25)], {}, (11, 13)),
    ("Clip", [CUBE, None, np.float32(0.25)], {}, (13,)), ("Clip", [CUBE], {}, (13,)),
    ("Clip", [N, np.array(-2), np.array(5)], {}, (13,)),
    *[("Pow", [POSITIVE, np.float32(p)], {}, (7, 13)) for p in (2, 0.5, -1.5)],
    ("Pow", [CUBE, np.float32(2)], {}, (13,)), ("Pow", [CUBE, np.array(3)], {}, (13,)),
    ("Pow", [POSITIVE, normal(3, 1)], {}, (13,)), ("Pow", [N, whole(2, 3, 0, 1)], {}, (13,)),
    ("Pow", [ROW[:1], np.full((2, 1), 2, np.float32)], {}, (13,)),
    *[("Mod", [N, whole(3, 2, -4, 3)], {"fmod": fmod}, (13,)) for fmod in (0, 1)],
    ("Mod", [CUBE, ROW], {"fmod": 1}, (13,)),
    *[(op, [CUBE, ROW, normal(3, 1)], {}, (8, 13)) for op in ("Max", "Min", "Sum", "Mean")],
    *[(op, [CUBE], {}, (8, 13)) for op in ("Max", "Min", "Sum", "Mean")],
    ("Max", [N, whole(1)], {}, (13,)),
    *[(op, [N, whole(5, 1, 7, 0)], {}, (16,)) for op in ("GreaterOrEqual", "LessOrEqual")],
    ("Xor", [A > 0, ROW > 0], {}, (13,)), ("Size", [CUBE], {}, (13,)),
    ("Tile", [A, whole(2, 3)], {}, (13,)), ("Tile", [A, whole(1, 0)], {}, (13,)),
]

MOST = ["ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSumSquare"]
REDUCTIONS = [
    *[(op, [CUBE], attributes, (11, 13)) for op in MOST
      for attributes in ({}, {"axes": [1]}, {"axes": [-1, 0], "keepdims": 0})],
    *[(op, [CUBE, axes], {}, (18,)) for op in MOST for axes in (whole(1), whole(2, 0))],
    *[(op, [N], {"keepdims": 0}, (13,)) for op in ("ReduceMax", "ReduceMin", "ReduceSum",
                                                   "ReduceProd", "ReduceL1", "ReduceSumSquare")],
    ("ReduceLogSum", [POSITIVE], {"axes": [1]}, (13,)),
    ("ReduceLogSumExp", [900 * CUBE], {"axes": [1]}, (13,)),
    ("ReduceSum", [CUBE], {"axes": [1, 2]}, (11,)), ("ReduceSum", [CUBE, whole(1)], {}, (13,)),
    ("ReduceSum", [CUBE], {"noop_with_empty_axes": 1}, (13,)),
    ("ReduceSum", [CUBE, np.zeros(0, np.int64)], {"noop_with_empty_axes": 1}, (13,)),
    ("ReduceSum", [CUBE, np.zeros(0, np.int64)], {}, (13,)),
    *[(op, [CUBE], attributes, (13,)) for op in ("ArgMax", "ArgMin")
      for attributes in ({}, {"axis": -1, "keepdims": 0})],
    *[(op, [whole(1, 3, 1, 3)], {"select_last_index": last}, (13,)) for op in ("ArgMax", "ArgMin")
      for last in (0, 1)],
    *[("CumSum", [CUBE, np.array(-2)], {"exclusive": e, "reverse": r}, (14,))
      for e in (0, 1) for r in (0, 1)],
    ("BatchNormalization", [IMAGE, normal(4), normal(4), normal(4), abs(normal(4))],
     {"epsilon": 1e-3}, (9, 15)),
    ("BatchNormalization", [A, normal(4), normal(4), normal(4), abs(normal(4))], {}, (14,)),
    ("InstanceNormalization", [IMAGE, normal(4), normal(4)], {"epsilon": 1e-3}, (13,)),
]

EQUATIONS = [("btgi,gih->btgh", (2, 3, 4, 5), (4, 5, 6)), ("ij,jk", (2, 3), (3, 4)),
             ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)), ("i,j->ij", (3,), (4,)),
             ("i,i->", (3,), (3,)), ("ij->ji", (2, 3)), ("ii->i", (3, 3)), ("bij->b", (2, 3, 4)),
             ("...ij,...jk->...ik", (2, 3, 4), (2, 4, 5)),
             ("...ij,jk->...ik", (2, 3, 4), (4, 5)), ("fi,fij->j", (2, 3), (2, 3, 4)),
             ("ab,bc,cd->ad", (2, 3), (3, 4), (4, 5)), ("ab,cd->bd", (2, 3), (4, 5)),
             ("...ij,...jk->...ik", (1, 2, 3), (4, 3, 5)), ("...i->...", (2, 3)),
             (" b i , o i -> b o ", (2, 3), (4, 3))]


def parameters(forms):
    return pytest.mark.parametrize(
        ("op", "arrays", "attributes", "opset"),
        [pytest.param(op, arrays, attributes, opset, id=f"{op}-{i}-{opset}")
         for i, (op, arrays, attributes, opsets) in enumerate(forms) for opset in opsets])


@parameters(FUNCTIONS)
def test_a_function_is_onnx_runtimes(op, arrays, attributes, opset):
    check_form(op, arrays, attributes, opset, rtol=5e-6, atol=2e-6)


@parameters(REDUCTIONS)
def test_a_reduction_is_onnx_runtimes(op, arrays, attributes, opset):
    check_form(op, arrays, attributes, opset, rtol=5e-6, atol=2e-6)


@pytest.mark.parametrize(("equation", "shapes"), [(e, shapes) for e, *shapes in EQUATIONS])
def test_einsum_is_onnx_runtimes(equation, shapes):
    check_form("Einsum", [normal(*shape) for shape in shapes], {"equation": equation}, 13,
               rtol=5e-6, atol=2e-6)


@pytest.mark.parametrize("attributes", [{}, {"axis": 1}, {"axis": 0, "epsilon": 0.1}], ids=str)
def test_layer_normalization_is_onnx_runtimes(attributes):
    shape = CUBE.shape[attributes.get("axis", -1):]
    for arrays in ([CUBE, normal(*shape), normal(*shape)], [CUBE, normal(*shape)]):
        for outputs in (1, 3):
            check_form("LayerNormalization", arrays, attributes, 17, 5e-6, 5e-6, outputs)


# ---- convolutions: sums of at most 4 * 3 * 3 products --------------------------------------------

LINES = [{}, {"strides": [2]}, {"dilations": [3]}, {"pads": [2, 1]}, {"kernel_shape": [3]},
         {"auto_pad": "SAME_UPPER", "strides": [2]}, {"auto_pad": "SAME_LOWER", "strides": [2]},
         {"auto_pad": "VALID", "strides": [3]}]
IMAGES = [{}, {"strides": [2, 3]}, {"dilations": [2, 3]}, {"pads": [0, 1, 2, 3]},
          {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
          {"auto_pad": "SAME_LOWER", "strides": [3, 2]},
          {"strides": [2, 1], "pads": [1, 2, 0, 1], "dilations": [1, 2]}]


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("attributes", LINES + IMAGES, ids=str)
def test_a_convolution_is_onnx_runtimes(attributes, group):
    images = attributes in IMAGES and attributes
    x, kernel = (IMAGE, (3, 2)) if images else (LINE, (3,))
    w, b = normal(8, 4 // group, *kernel), normal(8)
    for arrays in ([x, w, b], [x, w]):
        check_form("Conv", arrays, {"group": group} | attributes, 13, 1e-5, 1e-5)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("attributes", [
    *(a for a in LINES + IMAGES if "dilations" not in a or "strides" not in a),
    {"strides": [2], "output_padding": [1]}, {"strides": [3], "output_shape": [32]},
    {"strides": [3], "output_shape": [31], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 3], "output_padding": [1, 2], "pads": [1, 0, 0, 1]}], ids=str)
def test_a_transposed_convolution_is_onnx_runtimes(attributes, group):
    images = any(len(a) in (2, 4) for key, a in attributes.items()
                 if key in ("strides", "dilations") or (key == "pads" and len(a) == 4))
    x, kernel = (IMAGE, (3, 4)) if images else (LINE, (3,))
    if attributes.get("auto_pad", "").startswith("SAME") and images:
        kernel = (3, 3)
    w, b = normal(4, 6 // (group if group < 4 else 6), *kernel), None
    b = normal(w.shape[1] * group)
    for arrays in ([x, w, b], [x, w]):
        check_form("ConvTranspose", arrays, {"group": group} | attributes, 13, 1e-5, 1e-5)


def test_a_convolution_of_other_axes_and_dtypes():
    check_form("Conv", [normal(1, 2, 3, 4, 5), normal(3, 2, 2, 2, 2)], {}, 13, 1e-5, 1e-5)
    check_form("Conv", [normal(0, 2, 6), normal(3, 2, 2)], {}, 13)
    x, w = normal(1, 2, 9), normal(3, 2, 4)
    data, feeds = of_form("Conv", [x, w], {}, 13)
    (expected,) = runtime(data, feeds)
    for dtype, tol in ((np.float64, 1e-5), (np.float16, 2e-2)):
        data, feeds = of_form("Conv", [x.astype(dtype), w.astype(dtype)], {}, 13)
        (got,) = load(data)(feeds)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, tol, tol)


@pytest.mark.parametrize("shape", [(3, 40, 3000), (700, 40, 30)])
def test_a_large_convolution_goes_in_parts(shape):
    check_form("Conv", [normal(*shape), normal(5, 40, 9)], {"strides": [2]}, 13, 1e-4, 1e-4)


@pytest.mark.parametrize("attributes", [
    {}, {"strides": [2, 3]}, {"pads": [1, 0, 1, 1]}, {"strides": [2, 2], "ceil_mode": 1},
    {"strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]}], ids=str)
def test_pools_are_onnx_runtimes(attributes):
    attributes = {"kernel_shape": [3, 2]} | attributes
    check_form("MaxPool", [IMAGE], attributes, 12)
    check_form("AveragePool", [IMAGE], attributes, 13)
    if "auto_pad" not in attributes:
        check_form("AveragePool", [IMAGE], attributes | {"count_include_pad": 1}, 19)
        check_form("MaxPool", [IMAGE], attributes | {"dilations": [2, 1]}, 12)
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        check_form(op, [IMAGE], {}, 13)


@pytest.mark.parametrize(("size", "attributes"), [
    (4, {"kernel_shape": [5], "strides": [2]}), (1, {"kernel_shape": [2], "strides": [2]}),
    (3, {"kernel_shape": [3], "dilations": [2], "strides": [3]}),
    (4, {"kernel_shape": [6], "strides": [3], "pads": [0, 1]})], ids=str)
def test_a_window_longer_than_the_input_is_one_with_ceil_mode(size, attributes):
    x = normal(2, 3, size)
    attributes = attributes | {"ceil_mode": 1}
    check_form("MaxPool", [x], attributes, 12)
    if "dilations" not in attributes:
        check_form("AveragePool", [x], attributes, 13)


ALPHABETS = f"{string.ascii_lowercase},{string.ascii_uppercase},...->"


@pytest.mark.parametrize(("op", "arrays", "attributes", "error"), [
    ("Conv", [LINE, normal(3, 5, 2)], {}, "do not fit for 1 groups"),
    ("Conv", [LINE, normal(3, 2, 2)], {"group": 2}, "do not fit for 2 groups"),
    ("Conv", [LINE, normal(3, 4, 2), normal(4)], {}, r"its B has the shape \(4,\)"),
    ("Conv", [LINE, normal(3, 4, 12)], {}, "shorter than the kernel"),
    ("Conv", [LINE, normal(3, 4, 0)], {}, "its kernel has the shape"),
    ("Conv", [LINE, normal(3, 4, 2)], {"kernel_shape": [3]}, "its kernel_shape is"),
    ("Conv", [LINE, normal(3, 4, 2)], {"strides": [0]}, "its strides are"),
    ("Conv", [LINE, normal(3, 4, 2)], {"strides": [1, 1]}, "its strides are"),
    ("Conv", [LINE, normal(3, 4, 2)], {"pads": [-1, 0]}, "its pads are"),
    ("Conv", [LINE, normal(3, 4, 2)], {"pads": [2**30, 2**30]}, "expected at most"),
    ("Conv", [LINE, normal(3, 4, 2)], {"group": 0}, "its group is 0"),
    ("Conv", [LINE, normal(3, 4, 2)], {"auto_pad": "SAME"}, "its auto_pad is"),
    ("Conv", [whole(1, 2)[None, None], whole(1)[None, None]], {}, "is int64, expected floating"),
    ("ConvTranspose", [LINE, normal(4, 3, 2)], {"strides": [2**30]}, "expected at most"),
    ("ConvTranspose", [LINE, normal(4, 3, 2)], {"output_shape": [2**31 - 1]}, "at most"),
    ("ConvTranspose", [LINE, normal(4, 3, 2)], {"pads": [6, 6]}, "leaves nothing"),
    ("ConvTranspose", [LINE, normal(4, 3, 2)], {"output_padding": [-1]}, "its output_padding"),
    ("ConvTranspose", [LINE[..., :0], normal(4, 3, 2)], {}, "expected no axis of size 0"),
    ("ConvTranspose", [LINE, normal(4, 3, 2)], {"output_shape": [9, 9]}, "expected 1 numbers"),
    ("GlobalAveragePool", [A], {}, "expected three axes or more"),
    ("GlobalMaxPool", [IMAGE[:, :, :0]], {}, "expected three axes or more"),
    ("MaxPool", [IMAGE], {}, "no attribute 'kernel_shape'"),
    ("MaxPool", [IMAGE], {"kernel_shape": [2]}, "expected 3 axes"),
    ("AveragePool", [IMAGE], {"kernel_shape": [2, 2], "pads": [2, 0, 0, 0]}, "less than the ker"),
    ("ReduceMean", [CUBE[:, :0]], {"axes": [1]}, "no axis of size 0"),
    ("ReduceMean", [CUBE], {"axes": [1, -2]}, "an axis twice"),
    ("ReduceMean", [N], {}, "its input is int64"), ("ArgMax", [CUBE[:0]], {}, "of size 0"),
    ("CumSum", [CUBE, whole(0, 1)], {}, "expected one number"),
    ("BatchNormalization", [IMAGE, ROW[1:], ROW, ROW, ROW], {}, r"its scale has the shape \(3,\)"),
    ("LayerNormalization", [CUBE, normal(3)], {}, "its Scale has the shape"),
    ("Einsum", [A, A], {"equation": "ij->ij"}, "for 2 inputs"),
    ("Einsum", [A, A], {"equation": "ij,jk"}, "do not fit the equation"),
    ("Einsum", [A], {"equation": "ijk->i"}, "does not fit 'ijk'"),
    ("Einsum", [A], {"equation": "ij->k"}, "has a letter"),
    ("Einsum", [A], {"equation": "ij->ii"}, "has a letter"),
    ("Einsum", [normal(2000)] * 3, {"equation": "a,b,c->"}, "expected at most"),
    ("Einsum", [np.ones([1] * 26, np.float32)] * 2 + [ROW], {"equation": ALPHABETS},
     "no letters left for 1 axes"),
    ("Einsum", [A], {"equation": "i$->i"}, "its equation is"),
    ("Pow", [whole(2), whole(-1)], {}, "are negative"), ("Mod", [N, whole(0)], {}, "numbers by 0"),
    ("Clip", [CUBE, ROW, ROW], {}, "its min has the shape"),
    ("PRelu", [ROW, A], {}, "its slope has the shape"),
    ("Tile", [A, whole(10**6, 10**6)], {}, "expected at most"),
    ("Tile", [A, whole(1)], {}, "its repeats are"),
    ("Sqrt", [N], {}, "is int64, expected floating"), ("Max", [CUBE, N], {}, "expected one dtype"),
    *[(op, [A > 0], {}, "its input is bool, expected numbers") for op in ("Max", "Abs", "Relu")],
])
def test_what_an_operator_refuses(op, arrays, attributes, error):
    for fixed in ((), range(len(arrays))):
        data, feeds = of_form(op, arrays, attributes, 17 if op == "LayerNormalization" else 13,
                              fixed)
        with pytest.raises((ValueError, TypeError), match=rf"the model.*node 'the {op}' \({op}\): "
                                                          rf".*{error}"):
            load(data)(feeds)


def test_training_is_refused():
    for op, inputs, attributes in (("BatchNormalization", 5, {"training_mode": 1}),):
        names = [f"x{i}" for i in range(inputs)]
        feeds = dict(zip(names, [IMAGE, *[normal(4)] * 4], strict=True))
        with pytest.raises(ValueError, match="its training_mode is 1"):
            load(model([node(op, names, ["y"], **attributes)], feeds, ["y"], opset=15))
