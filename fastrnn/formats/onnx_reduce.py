"""The operators of ONNX that sum up axes: reductions, normalisations and Einsum, in NumPy.

An entry of `REDUCTIONS` takes a node, reads its attributes, and returns the function that computes
the node's outputs from its inputs. The functions check dtypes, shapes, and the size of a result
before they make it.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue
from fastrnn.formats.onnx_nodes import Node, Run
from fastrnn.formats.onnx_shapes import (
    axes_of,
    axis_of,
    check_floats,
    check_numbers,
    check_same_dtype,
    end_of,
    sized,
    wholes_of,
)

__all__ = ["REDUCTIONS"]


# ---- reductions ----------------------------------------------------------------------------------


def _reduction(
    function: Callable[..., Any], kinds: str = "f", *, since: int = 18, empty: bool = True
) -> Callable[[Node], Run]:
    """Return the entry of a reduction.

    Parameters
    ----------
    function : callable
        Of an array, the axes, and `keepdims`.
    kinds : str
        The kinds of the dtypes that it has.
    since : int
        The opset in which the axes became an input.
    empty : bool
        Whether no numbers have a result.
    """

    def make(node: Node) -> Run:
        node.check_inputs(1, 2 if node.opset >= since else 1)
        given = node.wholes("axes") if node.opset < since else None
        keepdims = bool(node.whole("keepdims", 1))
        alone = node.flag("noop_with_empty_axes")

        def run(a: np.ndarray, axes: np.ndarray | None = None) -> tuple[np.ndarray]:
            if a.dtype.kind not in kinds:
                raise RefusedType(f"its input is {a.dtype.name}")
            which = axes_of(given or () if axes is None else wholes_of("axes", axes), a.ndim)
            if not which:
                which = () if alone else tuple(range(a.ndim))
            if not empty and 0 in (a.shape[i] for i in which):
                raise RefusedValue(f"its input has the shape {a.shape}, expected no axis of size 0")
            return (np.asarray(function(a, which, keepdims), a.dtype),)

        return run

    return make


_NUMBERS = "fiu"


def _sum(a: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> Any:
    return a.sum(axes, dtype=a.dtype, keepdims=keepdims)


def _extreme(function: Callable[..., Any], largest: bool) -> Callable[..., Any]:
    """Return a largest or least number; of no numbers it is the least or largest of the dtype."""

    def of(a: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> Any:
        return function(a, axes, keepdims=keepdims, initial=end_of(a.dtype, largest))

    return of


def _log_sum_exp(a: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> Any:
    most = a.max(axes, keepdims=True, initial=-np.inf)
    most = np.where(np.isfinite(most), most, a.dtype.type(0))
    total = np.log(np.exp(a - most).sum(axes, keepdims=True)) + most
    return total if keepdims else total.reshape([n for i, n in enumerate(a.shape)
                                                 if i not in axes])


def _arg(function: Callable[..., Any]) -> Callable[[Node], Run]:
    """Return the entry of ArgMax or ArgMin."""

    def make(node: Node) -> Run:
        node.check_inputs(1, 1)
        axis, keepdims = node.whole("axis", 0), bool(node.whole("keepdims", 1))
        last = node.flag("select_last_index")

        def run(a: np.ndarray) -> tuple[np.ndarray]:
            check_numbers(a)
            own = axis_of(axis, a.ndim)
            if not a.shape[own]:
                raise RefusedValue(f"its input has the shape {a.shape}, expected no axis of size 0")
            if last:
                found = a.shape[own] - 1 - function(np.flip(a, own), own, keepdims=keepdims)
            else:
                found = function(a, own, keepdims=keepdims)
            return (np.asarray(found, np.int64),)

        return run

    return make


def _cumsum(node: Node) -> Run:
    node.check_inputs(2, 2)
    exclusive, reverse = node.flag("exclusive"), node.flag("reverse")

    def run(a: np.ndarray, axis: np.ndarray) -> tuple[np.ndarray]:
        check_numbers(a)
        numbers = wholes_of("axis", axis, None)
        if len(numbers) != 1:
            raise RefusedValue(f"its axis has the shape {axis.shape}, expected one number")
        own = axis_of(numbers[0], a.ndim)
        sized(a.shape)
        a = np.flip(a, own) if reverse else a
        y = np.cumsum(a, own, a.dtype)
        if exclusive:
            front: list[Any] = [slice(None)] * a.ndim
            before, after = list(front), list(front)
            before[own], after[own], front[own] = slice(-1), slice(1, None), slice(1)
            y[tuple(after)] = y[tuple(before)].copy()
            y[tuple(front)] = 0
        return (np.flip(y, own) if reverse else y,)

    return run


# ---- normalisations ------------------------------------------------------------------------------


def _channels(a: np.ndarray, x: np.ndarray, name: str) -> np.ndarray:
    """Return one number for each channel as an array that broadcasts with x."""
    if x.ndim < 2 or a.shape != (x.shape[1],):
        raise RefusedValue(f"its {name} has the shape {a.shape} for an input of the shape "
                           f"{x.shape}")
    return a.reshape(-1, *[1] * (x.ndim - 2))


def _batch_normalization(node: Node) -> Run:
    node.check_inputs(5, 5)
    epsilon = node.number("epsilon", 1e-5)
    node.number("momentum")
    if node.opset < 7:
        node.whole("is_test")
        node.wholes("consumed_inputs")
    if node.flag("training_mode") or node.whole("spatial", 1) != 1:
        raise RefusedValue("its training_mode is 1 or its spatial 0, expected 0 and 1")

    def run(x: np.ndarray, *more: np.ndarray) -> tuple[np.ndarray]:
        check_floats(x)
        for a in more:
            check_floats(a)
        scale, bias, mean, variance = (
            _channels(a, x, name).astype(x.dtype, copy=False)
            for name, a in zip(("scale", "B", "mean", "var"), more, strict=True))
        sized(x.shape)
        scale = scale / np.sqrt(variance + x.dtype.type(epsilon))
        return (x * scale + (bias - mean * scale),)

    return run


def _instance_normalization(node: Node) -> Run:
    node.check_inputs(3, 3)
    epsilon = node.number("epsilon", 1e-5)
    node.wholes("consumed_inputs")

    def run(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray]:
        check_floats(x)
        check_same_dtype(x, scale, bias)
        scale, bias = _channels(scale, x, "scale"), _channels(bias, x, "B")
        y, _, _ = _normalised(x, tuple(range(2, x.ndim)), epsilon)
        return (y * scale + bias,)

    return run


def _layer_normalization(node: Node) -> Run:
    node.check_inputs(2, 3)
    axis, epsilon = node.whole("axis", -1), node.number("epsilon", 1e-5)
    node.whole("stash_type")  # of 16-bit floats

    def run(x: np.ndarray, scale: np.ndarray, bias: np.ndarray | None = None) -> tuple[Any, ...]:
        check_floats(x)
        check_same_dtype(*(a for a in (x, scale, bias) if a is not None))
        axes = tuple(range(axis_of(axis, x.ndim), x.ndim))
        for name, a in (("Scale", scale), ("B", bias)):
            if a is not None and not _fits(a.shape, x.shape):
                raise RefusedValue(f"its {name} has the shape {a.shape} for an input of the shape "
                                   f"{x.shape}")
        y, mean, inverse = _normalised(x, axes, epsilon)
        y = y * scale
        return (y if bias is None else y + bias, mean, inverse)

    return run


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Return whether a shape broadcasts to another."""
    return len(shape) <= len(whole) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(whole), strict=False))


def _normalised(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> tuple[Any, Any, Any]:
    """Return x with mean 0 and variance 1 over axes, its mean, and 1 / its deviation."""
    sized(x.shape)
    wide = x.astype(np.float32) if x.dtype == np.float16 else x
    mean = wide.mean(axes, keepdims=True)
    centred = wide - mean
    variance = np.square(centred).mean(axes, keepdims=True)
    inverse = 1 / np.sqrt(variance + wide.dtype.type(epsilon))
    # of float16 the mean and the deviation are float32, as the standard has them
    return (centred * inverse).astype(x.dtype, copy=False), mean, inverse


# ---- Einsum --------------------------------------------------------------------------------------


def _einsum(node: Node) -> Run:
    node.check_inputs(1, 32)
    if not all(node.inputs):
        raise RefusedValue("one of its inputs is not given")
    equation = node.text("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    letters = set(equation.replace("->", "", 1).replace(",", "").replace("...", ""))
    if (len(terms) != len(node.inputs) or not letters <= set(string.ascii_letters)
            or any(term.count("...") > 1 for term in (*terms, right))):
        raise RefusedValue(f"its equation is {_checks.show(equation)} for {len(node.inputs)} "
                           "inputs")

    def run(*arrays: np.ndarray) -> tuple[np.ndarray]:
        check_same_dtype(*arrays)
        check_numbers(arrays[0])
        labels, dots = _labels(terms, arrays, letters)
        out = _output(terms, dots, right if arrow else None)
        sizes: dict[str, int] = {}
        for term, a in zip(labels, arrays, strict=True):
            for letter, n in zip(term, a.shape, strict=True):
                known = sizes.setdefault(letter, n)
                if known != n and not (letter in dots and 1 in (known, n)):
                    raise RefusedValue(f"its inputs have the shapes {[b.shape for b in arrays]}, "
                                       f"which do not fit the equation {equation}")
                if known == 1:
                    sizes[letter] = n
        if len(set(out)) < len(out) or not set(out) <= sizes.keys():
            raise RefusedValue(f"the output of its equation {_checks.show(equation)} has a letter "
                               "twice, or one that no input has")
        sized([sizes[letter] for letter in out])
        if len(arrays) == 2 and all(
                len(set(t)) == len(t) and a.shape == tuple(sizes[c] for c in t)
                for t, a in zip(labels, arrays, strict=True)):
            return (_product(labels, arrays, out),)
        sized(list(sizes.values()))  # no product of matrices: it walks over all of them
        return (np.asarray(np.einsum(f"{','.join(labels)}->{out}", *arrays)),)

    return run


def _labels(
    terms: Sequence[str], arrays: Sequence[np.ndarray], letters: set[str]
) -> tuple[list[str], str]:
    """Return a letter for each axis of the inputs, and the letters that stand for the dots."""
    free = [letter for letter in string.ascii_letters if letter not in letters]
    counts = []
    for term, a in zip(terms, arrays, strict=True):
        count = a.ndim - len(term.replace("...", ""))
        if count < 0 or (count and "..." not in term):
            raise RefusedValue(f"its input has the shape {a.shape}, which does not fit "
                               f"{_checks.show(term)} of its equation")
        counts.append(count)
    most = max(counts)
    if most > len(free):
        raise RefusedValue(f"its equation has no letters left for {most} axes")
    dots = "".join(free[:most])
    return [term.replace("...", dots[most - count :])
            for term, count in zip(terms, counts, strict=True)], dots


def _output(terms: Sequence[str], dots: str, right: str | None) -> str:
    """Return the letters of the output; without an arrow those that are there once, sorted."""
    if right is not None:
        return right.replace("...", dots)
    every = "".join(terms).replace("...", "")
    return dots + "".join(sorted(letter for letter in set(every) if every.count(letter) == 1))


def _product(labels: Sequence[str], arrays: Sequence[np.ndarray], out: str) -> Any:
    """Return what two arrays give, as products of matrices."""
    (p, q), (a, b) = labels, arrays
    a = a.sum(tuple(i for i, c in enumerate(p) if c not in q + out), dtype=a.dtype)
    b = b.sum(tuple(i for i, c in enumerate(q) if c not in p + out), dtype=b.dtype)
    p, q = ("".join(c for c in t if c in other + out) for t, other in ((p, q), (q, p)))
    sizes = dict(zip(p, a.shape, strict=True)) | dict(zip(q, b.shape, strict=True))
    both = "".join(c for c in p if c in q and c in out)
    inner = "".join(c for c in p if c in q and c not in out)
    rows, columns = ("".join(c for c in t if c not in both + inner) for t in (p, q))

    def matrices(m: np.ndarray, own: str, *parts: str) -> np.ndarray:
        turned = m.transpose([own.index(c) for part in parts for c in part])
        return turned.reshape([math.prod(sizes[c] for c in part) for part in parts])

    y = np.matmul(matrices(a, p, both, rows, inner), matrices(b, q, both, inner, columns))
    order = both + rows + columns
    return y.reshape([sizes[c] for c in order]).transpose([order.index(c) for c in out])


REDUCTIONS: dict[str, Callable[[Node], Run]] = {
    "ArgMax": _arg(np.argmax),
    "ArgMin": _arg(np.argmin),
    "BatchNormalization": _batch_normalization,
    "CumSum": _cumsum,
    "Einsum": _einsum,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "ReduceL1": _reduction(lambda a, axes, keep: _sum(abs(a), axes, keep), _NUMBERS),
    "ReduceL2": _reduction(lambda a, axes, keep: np.sqrt(_sum(a * a, axes, keep))),
    "ReduceLogSum": _reduction(lambda a, axes, keep: np.log(_sum(a, axes, keep))),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ReduceMax": _reduction(_extreme(np.max, False), _NUMBERS + "b"),
    "ReduceMean": _reduction(lambda a, axes, keep: a.mean(axes, keepdims=keep), empty=False),
    "ReduceMin": _reduction(_extreme(np.min, True), _NUMBERS + "b"),
    "ReduceProd": _reduction(lambda a, axes, keep: a.prod(axes, dtype=a.dtype, keepdims=keep),
                             _NUMBERS),
    "ReduceSum": _reduction(_sum, _NUMBERS, since=13),
    "ReduceSumSquare": _reduction(lambda a, axes, keep: _sum(a * a, axes, keep), _NUMBERS),
}
