"""What a model from ONNX takes: arrays of its dtypes and lists, and nothing by chance."""

import numpy as np
import pytest
from onnx_models import load, model, node

pytest.importorskip("onnx")

A = np.arange(3, dtype=np.float32)


def same(dtype):
    return load(model([node("Identity", ["x"], ["y"])], {"x": np.zeros(3, dtype)},
                      [("y", np.dtype(dtype))]))


@pytest.mark.parametrize("given", [
    A, A.astype(">f4"), A.astype(np.int8), A.tolist(), [0, 1, 2], A[::-1][::-1],
    np.ma.masked_array(A)], ids=["array", "big-endian", "int8", "floats", "whole", "strided",
                                 "nothing masked"])
def test_numbers_of_a_float_input(given):
    found, = same(np.float32)({"x": given})
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, A)


@pytest.mark.parametrize(("dtype", "given"), [
    (np.uint64, [2**63, 1, 2]), (np.float64, [2**70, 1, 2]), (np.int8, [-128, 0, 127])])
def test_whole_numbers_of_any_size(dtype, given):
    found, = same(dtype)({"x": given})
    assert found.dtype == dtype
    assert [int(n) for n in found] == given


@pytest.mark.parametrize(("dtype", "given", "match"), [
    (np.float32, np.ma.masked_array(A, [0, 1, 0]), "x is a masked array"),
    (np.float32, A.astype(np.float64), "x is float64, expected float32"),
    (np.float32, [1e300, 0, 0], "x has 1e.300 at .0., which float32 cannot hold"),
    (np.float32, ["0", "1", "2"], "expected an array of float32"),
    (np.float32, [True, False, True], "expected an array of float32"),
    (np.uint8, [0, 1, -1], "x has -1, which uint8 cannot hold"),
    (np.uint64, [0, 1, 2**64], "x has whole numbers that uint64 cannot hold"),
    (np.float32, None, "x is None, expected an array of float32"),
    (np.float32, [[1], [1, 2]], "x is a ragged sequence"),
    (np.int32, [0.0, 1.0, 2.7], "expected an array of int32"),
    (np.int32, [0, 1, 2**40], "which int32 cannot hold"),
    (np.int32, A, "x is float32, expected int32"),
    (np.int32, ["0", "1", "2"], "expected an array of int32"),
    (np.bool_, [0, 1, 2], "expected an array of bool"),
], ids=str)
def test_what_would_become_something_else_is_refused(dtype, given, match):
    loaded = same(dtype)
    with pytest.raises((TypeError, ValueError), match=match):
        loaded({"x": given})


def test_a_tensor_of_a_graph_is_named():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"^OnnxModel.*: x is "):
        same(np.float32)({"x": torch.ones(3, requires_grad=True)})
