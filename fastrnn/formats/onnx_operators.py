"""The operators of ONNX around recurrent layers, in NumPy; those of shapes are in onnx_shapes.py.

An entry of `OPERATORS` takes a node, reads its attributes, and returns the function that computes
the node's outputs from its inputs. The functions check dtypes, shapes, and the size of a result
before they make it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn._checks import RefusedType, RefusedValue
from fastrnn.formats.onnx_nodes import Node, Run, dtype_of
from fastrnn.formats.onnx_shapes import SHAPES, axis_of, check_numbers, check_same_dtype, sized

__all__ = ["OPERATORS"]


def _broadcast(*arrays: np.ndarray) -> tuple[int, ...]:
    """Return the shape that arrays have together."""
    try:
        shape = np.broadcast_shapes(*(a.shape for a in arrays))
    except ValueError:
        raise RefusedValue(f"its inputs have the shapes {[a.shape for a in arrays]}, which do not "
                           "broadcast") from None
    return sized(shape)


def _floats(a: np.ndarray) -> None:
    if a.dtype.kind != "f":
        raise RefusedType(f"its input is {a.dtype.name}, expected floating-point numbers")


# ---- element by element --------------------------------------------------------------------------


def _of_two(function: Callable[..., np.ndarray], kinds: str = "fiu") -> Callable[[Node], Run]:
    """Return the entry of an operator of two arrays that broadcast."""

    def make(node: Node) -> Run:
        node.check_inputs(2, 2)
        if node.opset < 7 and (node.whole("broadcast", 0) or node.whole("axis") is not None):
            raise RefusedValue("it broadcasts as before opset 7, expected a later one")

        def run(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
            check_same_dtype(a, b)
            if a.dtype.kind not in kinds:
                raise RefusedType(f"its inputs are {a.dtype.name}")
            _broadcast(a, b)
            return (np.asarray(function(a, b)),)

        return run

    return make


def _divide(a: np.ndarray, b: np.ndarray) -> Any:
    """Divide; whole numbers are rounded towards zero."""
    if a.dtype.kind == "f":
        return a / b
    if not np.all(b):
        raise RefusedValue("it divides whole numbers by 0")
    q = a // b
    return q if a.dtype.kind == "u" else q + ((q < 0) & (q * b != a))


def _of_one(function: Callable[[np.ndarray], Any], check: Callable[[np.ndarray], None] = _floats
            ) -> Callable[[Node], Run]:
    """Return the entry of an operator of one array."""

    def make(node: Node) -> Run:
        node.check_inputs(1, 1)
        if node.opset < 6:
            node.wholes("consumed_inputs")  # says nothing about the values

        def run(a: np.ndarray) -> tuple[np.ndarray]:
            check(a)
            return (np.asarray(function(a), a.dtype),)

        return run

    return make


def _sigmoid(a: np.ndarray) -> Any:
    one = a.dtype.type(1)
    return one / (one + np.exp(-a))


def _booleans(a: np.ndarray) -> None:
    if a.dtype != bool:
        raise RefusedType(f"its input is {a.dtype.name}, expected booleans")


def _where(node: Node) -> Run:
    node.check_inputs(3, 3)

    def run(condition: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
        _booleans(condition)
        check_same_dtype(a, b)
        _broadcast(condition, a, b)
        return (np.where(condition, a, b),)

    return run


def _cast(node: Node) -> Run:
    node.check_inputs(1, 1)
    number = node.whole("to")
    if number is None:
        raise RefusedValue("it has no attribute 'to'")
    dtype = dtype_of(number, "it")
    node.whole("saturate")  # of 8-bit floats
    node.text("round_mode", "up")
    return lambda a: (a.astype(dtype),)


# ---- softmax -------------------------------------------------------------------------------------


def _softmax(log: bool) -> Callable[[Node], Run]:
    def make(node: Node) -> Run:
        node.check_inputs(1, 1)
        axis, flat = node.whole("axis", 1 if node.opset < 13 else -1), node.opset < 13

        def run(a: np.ndarray) -> tuple[np.ndarray]:
            _floats(a)
            own = axis_of(axis, a.ndim)
            axes = tuple(range(own, a.ndim)) if flat else own  # before opset 13 all axes from it on
            shifted = a - a.max(axes, keepdims=True, initial=-np.inf)
            e = np.exp(shifted)
            total = e.sum(axes, keepdims=True)
            return (shifted - np.log(total) if log else e / total,)

        return run

    return make


# ---- products ------------------------------------------------------------------------------------


def _matmul(node: Node) -> Run:
    node.check_inputs(2, 2)

    def run(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
        check_same_dtype(a, b)
        check_numbers(a)
        inner = b.shape[-2] if b.ndim > 1 else b.shape[0] if b.ndim else None
        if not a.ndim or a.shape[-1] != inner:
            raise RefusedValue(f"its inputs have the shapes {a.shape} and {b.shape}, which have no "
                               "product")
        if a.ndim > 1 and b.ndim > 1:
            try:
                outer = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
            except ValueError:
                raise RefusedValue(f"its inputs have the shapes {a.shape} and {b.shape}, which "
                                   "have no product") from None
            sized((*outer, a.shape[-2], b.shape[-1]))
        return (np.asarray(np.matmul(a, b)),)

    return run


def _gemm(node: Node) -> Run:
    node.check_inputs(2, 3)
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    turn = node.flag("transA"), node.flag("transB")
    if node.opset < 7:
        node.whole("broadcast")

    def run(a: np.ndarray, b: np.ndarray, c: np.ndarray | None = None) -> tuple[np.ndarray]:
        given = [a, b] if c is None else [a, b, c]
        check_same_dtype(*given)
        check_numbers(a)
        if a.ndim != 2 or b.ndim != 2:
            raise RefusedValue(f"its inputs have the shapes {a.shape} and {b.shape}, expected two "
                               "axes")
        a, b = (m.T if turned else m for m, turned in zip((a, b), turn, strict=True))
        if a.shape[1] != b.shape[0]:
            raise RefusedValue(f"its inputs have the shapes {a.shape} and {b.shape}, which have no "
                               "product")
        shape = sized((a.shape[0], b.shape[1]))
        y = a @ b
        if alpha != 1:
            y = (y * alpha).astype(a.dtype)
        if c is not None:
            if _broadcast(y, c) != shape:
                raise RefusedValue(f"its C has the shape {c.shape}, expected one that broadcasts "
                                   f"to {shape}")
            y = y + (c if beta == 1 else (c * beta).astype(c.dtype))
        return (y,)

    return run


# ---- nothing to compute -------------------------------------------------------------------------


def _identity(node: Node) -> Run:
    node.check_inputs(1, 1)
    return lambda a: (a,)


def _dropout(node: Node) -> Run:
    """Return what leaves its input as it is: in evaluation nothing is dropped."""
    node.check_inputs(1, 3)
    node.number("ratio")
    node.whole("is_test")
    node.whole("seed")

    def run(a: np.ndarray, ratio: Any = None, training: np.ndarray | None = None
            ) -> tuple[np.ndarray, np.ndarray]:
        if training is not None and training.any():
            raise RefusedValue("its training_mode is True, expected False")
        return a, np.ones(a.shape, bool)

    return run


OPERATORS: dict[str, Callable[[Node], Run]] = SHAPES | {
    "Add": _of_two(np.add),
    "And": _of_two(np.logical_and, "b"),
    "Cast": _cast,
    "Div": _of_two(_divide),
    "Dropout": _dropout,
    "Equal": _of_two(np.equal, "fiub"),
    "Gemm": _gemm,
    "Greater": _of_two(np.greater),
    "Identity": _identity,
    "Less": _of_two(np.less),
    "LogSoftmax": _softmax(True),
    "MatMul": _matmul,
    "Mul": _of_two(np.multiply),
    "Neg": _of_one(np.negative, check_numbers),
    "Not": _of_one(np.logical_not, _booleans),
    "Or": _of_two(np.logical_or, "b"),
    "Relu": _of_one(lambda a: np.maximum(a, a.dtype.type(0)), check_numbers),
    "Sigmoid": _of_one(_sigmoid),
    "Softmax": _softmax(False),
    "Sub": _of_two(np.subtract),
    "Tanh": _of_one(np.tanh),
    "Where": _where,
}
