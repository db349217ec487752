"""The operators of ONNX around recurrent layers, in NumPy: element by element, and products.

Those of shapes are in onnx_shapes.py, reductions in onnx_reduce.py, convolutions in onnx_conv.py.
An entry of `OPERATORS` takes a node, reads its attributes, and returns the function that computes
the node's outputs from its inputs. The functions check dtypes, shapes, and the size of a result
before they make it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn._checks import RefusedType, RefusedValue
from fastrnn.formats.activations import elu, erf
from fastrnn.formats.onnx_conv import CONVOLUTIONS
from fastrnn.formats.onnx_nodes import Node, Run, dtype_of
from fastrnn.formats.onnx_reduce import REDUCTIONS
from fastrnn.formats.onnx_shapes import (
    SHAPES,
    axis_of,
    check_floats,
    check_numbers,
    check_same_dtype,
    sized,
)

__all__ = ["OPERATORS"]


def _broadcast(*arrays: np.ndarray) -> tuple[int, ...]:
    """Return the shape that arrays have together."""
    first = arrays[0].shape
    if all(a.shape in (first, ()) for a in arrays):  # faster than what follows
        return sized(first)
    try:
        shape = np.broadcast_shapes(*(a.shape for a in arrays))
    except ValueError:
        raise RefusedValue(f"its inputs have the shapes {[a.shape for a in arrays]}, which do not "
                           "broadcast") from None
    return sized(shape)


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


def _power(node: Node) -> Run:
    node.check_inputs(2, 2)
    if node.opset < 7:
        raise RefusedValue("it broadcasts as before opset 7, expected a later one")

    def run(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
        check_numbers(a)
        check_numbers(b)
        _broadcast(a, b)
        if b.size == 1 and b.ndim <= a.ndim and b.reshape(-1)[0] == 2:
            return (a * a,)  # many times faster
        if a.dtype.kind != "f" and b.dtype.kind != "f" and np.any(b < 0):
            raise RefusedValue("its exponents of whole numbers are negative")
        kind = np.result_type(a, b) if a.dtype.kind == b.dtype.kind == "f" else a.dtype
        if a.dtype.kind != "f" and b.dtype.kind == "f":
            kind = np.dtype(np.float64)
        return (np.power(a.astype(kind, copy=False), b.astype(kind, copy=False)).astype(a.dtype),)

    return run


def _mod(node: Node) -> Run:
    """Return the remainder: of the divisor's sign, or with fmod of the dividend's."""
    truncated = node.flag("fmod")

    def of(a: np.ndarray, b: np.ndarray) -> Any:
        if a.dtype.kind != "f" and not np.all(b):
            raise RefusedValue("it divides whole numbers by 0")
        return (np.fmod if truncated else np.mod)(a, b)

    return _of_two(of)(node)


def _of_many(function: Callable[..., Any], mean: bool = False) -> Callable[[Node], Run]:
    """Return the entry of an operator of any number of arrays that broadcast."""

    def make(node: Node) -> Run:
        node.check_inputs(1, 10_000)
        if not all(node.inputs):
            raise RefusedValue("one of its inputs is not given")
        if node.opset < 8:
            node.wholes("consumed_inputs")

        def run(*arrays: np.ndarray) -> tuple[np.ndarray]:
            check_same_dtype(*arrays)
            check_numbers(arrays[0])
            _broadcast(*arrays)
            total = np.asarray(functools.reduce(function, arrays))
            return (total / total.dtype.type(len(arrays)) if mean else total,)

        return run

    return make


def _of_one(
    function: Callable[[np.ndarray], Any], check: Callable[[np.ndarray], None] = check_floats
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


def _with_numbers(
    function: Callable[..., Any], **defaults: float
) -> Callable[[Node], Run]:
    """Return the entry of an operator of one array and numbers, which are attributes."""

    def make(node: Node) -> Run:
        numbers = [node.number(name, other) for name, other in defaults.items()]
        return _of_one(lambda a: function(a, *map(a.dtype.type, numbers)))(node)

    return make


def _selu(a: np.ndarray, alpha: Any, gamma: Any) -> Any:
    return gamma * elu(a, alpha)


def _hard_sigmoid(a: np.ndarray, alpha: Any, beta: Any) -> Any:
    return np.clip(alpha * a + beta, 0, 1)


def _softplus(a: np.ndarray) -> Any:
    return np.logaddexp(a, a.dtype.type(0))


def _gelu(node: Node) -> Run:
    form = node.text("approximate", "none")
    if form not in ("none", "tanh"):
        raise RefusedValue(f"its attribute 'approximate' is {form!r}, expected 'none' or 'tanh'")

    def of(a: np.ndarray) -> Any:
        if form == "none":
            return a / 2 * (1 + erf(a * a.dtype.type(math.sqrt(0.5))))
        inner = a.dtype.type(math.sqrt(2 / math.pi)) * (a + a.dtype.type(0.044715) * a * a * a)
        return a / 2 * (1 + np.tanh(inner))

    return _of_one(of)(node)


def _prelu(node: Node) -> Run:
    node.check_inputs(2, 2)
    by_channels = node.opset < 7

    def run(a: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray]:
        check_same_dtype(a, slope)
        check_floats(a)
        if by_channels and slope.ndim == 1 and a.ndim > 2:  # one for each channel
            slope = slope.reshape(-1, *[1] * (a.ndim - 2))
        if _broadcast(a, slope) != a.shape:
            raise RefusedValue(f"its slope has the shape {slope.shape}, expected one that "
                               f"broadcasts to {a.shape}")
        return (np.where(a < 0, a * slope, a),)

    return run


def _clip(node: Node) -> Run:
    bounds: Any = (None, None)
    if node.opset < 11:
        node.check_inputs(1, 1)
        bounds = node.number("min"), node.number("max")
        node.wholes("consumed_inputs")
    else:
        node.check_inputs(1, 3)

    def run(a: np.ndarray, *given: np.ndarray | None) -> tuple[np.ndarray]:
        check_numbers(a)
        for name, bound in zip(("min", "max"), given, strict=False):
            if bound is not None:
                check_same_dtype(a, bound)
                if bound.size != 1:
                    raise RefusedValue(f"its {name} has the shape {bound.shape}, expected one "
                                       "number")
        least, most = [*(None if b is None else b.reshape(()) for b in given), None, None][
            :2] if given else (None if b is None else a.dtype.type(b) for b in bounds)
        a = a if least is None else np.maximum(a, least)
        return (np.asarray(a if most is None else np.minimum(a, most)),)

    return run


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
            check_floats(a)
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


OPERATORS: dict[str, Callable[[Node], Run]] = SHAPES | REDUCTIONS | CONVOLUTIONS | {
    "Abs": _of_one(np.absolute, check_numbers),
    "Add": _of_two(np.add),
    "And": _of_two(np.logical_and, "b"),
    "Cast": _cast,
    "Ceil": _of_one(np.ceil),
    "Clip": _clip,
    "Cos": _of_one(np.cos),
    "Div": _of_two(_divide),
    "Dropout": _dropout,
    "Elu": _with_numbers(elu, alpha=1.0),
    "Equal": _of_two(np.equal, "fiub"),
    "Erf": _of_one(erf),
    "Exp": _of_one(np.exp),
    "Floor": _of_one(np.floor),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Greater": _of_two(np.greater),
    "GreaterOrEqual": _of_two(np.greater_equal),
    "HardSigmoid": _with_numbers(_hard_sigmoid, alpha=0.2, beta=0.5),
    "HardSwish": _of_one(lambda a: a * np.clip(a / 6 + a.dtype.type(0.5), 0, 1)),
    "Identity": _identity,
    "LeakyRelu": _with_numbers(lambda a, alpha: np.where(a < 0, alpha * a, a), alpha=0.01),
    "Less": _of_two(np.less),
    "LessOrEqual": _of_two(np.less_equal),
    "Log": _of_one(np.log),
    "LogSoftmax": _softmax(True),
    "MatMul": _matmul,
    "Max": _of_many(np.maximum),
    "Mean": _of_many(np.add, mean=True),
    "Min": _of_many(np.minimum),
    "Mish": _of_one(lambda a: a * np.tanh(_softplus(a))),
    "Mod": _mod,
    "Mul": _of_two(np.multiply),
    "Neg": _of_one(np.negative, check_numbers),
    "Not": _of_one(np.logical_not, _booleans),
    "Or": _of_two(np.logical_or, "b"),
    "PRelu": _prelu,
    "Pow": _power,
    "Reciprocal": _of_one(lambda a: 1 / a),
    "Relu": _of_one(lambda a: np.maximum(a, a.dtype.type(0)), check_numbers),
    "Round": _of_one(np.rint),
    "Selu": _with_numbers(_selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Sigmoid": _of_one(_sigmoid),
    "Sign": _of_one(np.sign, check_numbers),
    "Sin": _of_one(np.sin),
    "Softmax": _softmax(False),
    "Softplus": _of_one(_softplus),
    "Softsign": _of_one(lambda a: a / (1 + abs(a))),
    "Sqrt": _of_one(np.sqrt),
    "Sub": _of_two(np.subtract),
    "Sum": _of_many(np.add),
    "Tanh": _of_one(np.tanh),
    "Where": _where,
    "Xor": _of_two(np.logical_xor, "b"),
}
