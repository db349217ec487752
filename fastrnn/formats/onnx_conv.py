"""The convolutions and pools of ONNX, in NumPy, as products of matrices.

An entry of `CONVOLUTIONS` takes a node, reads its attributes, and returns the function that
computes the node's outputs from its inputs. Letters: N rows, C channels, M output channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn.formats.onnx_nodes import Node, Run
from fastrnn.formats.onnx_shapes import (
    CLAIMED,
    check_floats,
    check_numbers,
    check_same_dtype,
    end_of,
    sized,
)

__all__ = ["CONVOLUTIONS"]

_COLUMNS = 2**20  # numbers of the windows that are laid out for one product
_MOST_SPATIAL = 8  # axes after N and C
_LARGEST = 2**31  # of a stride, a dilation, a pad


class _Windows:
    """How a window moves over the axes after N and C: the attributes of a node.

    Parameters
    ----------
    node : Node
    """

    def __init__(self, node: Node) -> None:
        self.auto = _checks.one_of("its auto_pad", node.text("auto_pad", "NOTSET"),
                                   ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"))
        self.kernel = node.wholes("kernel_shape")
        self._given = {name: node.wholes(name) for name in ("strides", "dilations", "pads")}
        for name, least in (("strides", 1), ("dilations", 1), ("pads", 0)):
            numbers = self._given[name] or ()
            if any(not least <= n < _LARGEST for n in numbers):
                raise RefusedValue(f"its {name} are {_checks.show(numbers)}, expected numbers from "
                                   f"{least} on")

    def _numbers(self, name: str, count: int, other: int) -> tuple[int, ...]:
        numbers = self._given[name]
        if numbers is None:
            return (other,) * count
        if len(numbers) != count:
            raise RefusedValue(f"its {name} are {_checks.show(numbers)}, expected {count} numbers")
        return tuple(numbers)

    def of(self, kernel: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Return strides, dilations, pads, and how far a window of this size reaches."""
        n = len(kernel)
        if not 1 <= n <= _MOST_SPATIAL or any(not 1 <= k < _LARGEST for k in kernel):
            raise RefusedValue(f"its kernel has the shape {_checks.show(tuple(kernel))}")
        if self.kernel is not None and self.kernel != tuple(kernel):
            raise RefusedValue(f"its kernel_shape is {_checks.show(self.kernel)}, but its W has "
                               f"{tuple(kernel)}")
        strides = self._numbers("strides", n, 1)
        dilations = self._numbers("dilations", n, 1)
        reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
        return strides, dilations, self._numbers("pads", 2 * n, 0), reach

    def pads(
        self, spatial: Sequence[int], strides: Sequence[int], reach: Sequence[int],
        given: Sequence[int],
    ) -> list[tuple[int, int]]:
        """Return before and after each axis how much is added."""
        n = len(spatial)
        if self.auto == "NOTSET":
            return list(zip(given[:n], given[n:], strict=True))
        if self.auto == "VALID":
            return [(0, 0)] * n
        return [_halves(max(0, (-(-size // stride) - 1) * stride + r - size), self.auto)
                for size, stride, r in zip(spatial, strides, reach, strict=True)]


def _halves(total: int, auto: str) -> tuple[int, int]:
    """Return two parts of a sum; the larger one is after the axis with SAME_UPPER."""
    less = total // 2
    return (total - less, less) if auto == "SAME_LOWER" else (less, total - less)


def _counts(
    spatial: Sequence[int], pads: Sequence[tuple[int, int]], strides: Sequence[int],
    reach: Sequence[int], ceil: bool = False,
) -> tuple[int, ...]:
    """Return how many windows each axis has; `ceil`: one more that ends behind the pads.

    That one must begin before the pad at the end.
    """
    counts = []
    for n, (b, e), s, r in zip(spatial, pads, strides, reach, strict=True):
        count = (b + n + e - r + (s - 1 if ceil else 0)) // s + 1
        counts.append(count - 1 if ceil and (count - 1) * s >= n + b else count)
    if min(counts) < 1:
        raise RefusedValue(f"its input has the axes {tuple(spatial)}, and with pads they are "
                           f"shorter than the kernel, which reaches over {tuple(reach)}")
    return tuple(counts)


def _views(
    x: np.ndarray, counts: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    kernel: Sequence[int],
) -> np.ndarray:
    """Return a view (N, C, kernel, windows) of x, which has its pads."""
    steps = x.strides[2:]
    return np.lib.stride_tricks.as_strided(
        x, (*x.shape[:2], *kernel, *counts),
        (*x.strides[:2], *(a * d for a, d in zip(steps, dilations, strict=True)),
         *(a * s for a, s in zip(steps, strides, strict=True))), writeable=False)


def _padded(x: np.ndarray, pads: Sequence[tuple[int, int]], value: Any = 0) -> np.ndarray:
    sized([*x.shape[:2], *(b + n + e for n, (b, e) in zip(x.shape[2:], pads, strict=True))],
          max(CLAIMED, x.size))
    if not any(map(any, pads)):
        return x
    return np.pad(x, [(0, 0), (0, 0), *pads], constant_values=value)


def _checked(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, group: int, out: int) -> None:
    """Refuse inputs that are no convolution; `out` is the axis of the output channels of w."""
    check_same_dtype(*(a for a in (x, w, b) if a is not None))
    check_floats(x)
    channels = w.shape[1] * group if w.ndim > 1 and out == 0 else w.shape[0] if w.ndim else 0
    if x.ndim < 3 or x.ndim != w.ndim or x.shape[1] != channels or w.shape[0] % group:
        raise RefusedValue(f"its inputs have the shapes {x.shape} and {w.shape}, which do not fit "
                           f"for {group} groups")
    M = w.shape[0] if out == 0 else w.shape[1] * group
    if b is not None and b.shape != (M,):
        raise RefusedValue(f"its B has the shape {b.shape}, expected ({M},)")


def _group(node: Node) -> int:
    group = node.whole("group", 1)
    if group < 1:
        raise RefusedValue(f"its group is {group}, expected at least 1")
    return int(group)


def _with_bias(y: np.ndarray, b: np.ndarray | None, dtype: np.dtype) -> tuple[np.ndarray]:
    if b is not None:
        y += b.reshape(-1, *[1] * (y.ndim - 2))
    return (y.astype(dtype, copy=False),)


def _wide(*arrays: np.ndarray | None) -> list[Any]:
    """Return arrays of float16 as float32: NumPy has no fast product of them."""
    return [a.astype(np.float32) if a is not None and a.dtype == np.float16 else a for a in arrays]


# ---- convolutions --------------------------------------------------------------------------------


def _conv(node: Node) -> Run:
    node.check_inputs(2, 3)
    windows, group = _Windows(node), _group(node)

    def run(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> tuple[np.ndarray]:
        _checked(x, w, b, group, 0)
        dtype, kernel, (N, C), M = x.dtype, w.shape[2:], x.shape[:2], w.shape[0]
        strides, dilations, given, reach = windows.of(kernel)
        pads = windows.pads(x.shape[2:], strides, reach, given)
        counts = _counts(x.shape[2:], pads, strides, reach)
        sized((N, M, *counts), CLAIMED)
        x, w, b = _wide(x, w, b)
        views = _views(_padded(x, pads), counts, strides, dilations, kernel)
        weights = w.reshape(group, M // group, C // group * math.prod(kernel))
        y = np.empty((N, group, M // group, *counts), x.dtype)
        axis = 2 + len(kernel)  # the windows go in parts: laid out they have each number many times
        rest = C * math.prod(kernel) * math.prod(counts[1:])
        part = max(1, _COLUMNS // max(1, rest))
        rows = max(1, _COLUMNS // max(1, rest * counts[0]))
        for n in range(0, N, rows):
            for at in range(0, counts[0], part):
                some = views[n : n + rows][(slice(None),) * axis + (slice(at, at + part),)]
                own = some.shape[axis:]
                columns = some.reshape(len(some), group, weights.shape[2], math.prod(own))
                product = np.matmul(weights, columns)
                y[n : n + rows, :, :, at : at + part] = product.reshape(
                    len(some), group, M // group, *own)
        return _with_bias(y.reshape(N, M, *counts), b, dtype)

    return run


def _conv_transpose(node: Node) -> Run:
    node.check_inputs(2, 3)
    windows, group = _Windows(node), _group(node)
    added, shape = node.wholes("output_padding"), node.wholes("output_shape")

    def run(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> tuple[np.ndarray]:
        _checked(x, w, b, group, 1)
        dtype, kernel, spatial, N = x.dtype, w.shape[2:], x.shape[2:], len(x)
        strides, dilations, given, reach = windows.of(kernel)
        more = (0,) * len(kernel) if added is None else added
        if len(more) != len(kernel) or any(not 0 <= n < _LARGEST for n in more):
            raise RefusedValue(f"its output_padding is {_checks.show(more)}")
        if min(spatial) < 1:
            raise RefusedValue(f"its input has the shape {x.shape}, expected no axis of size 0")
        full = [(n - 1) * s + r + m
                for n, s, r, m in zip(spatial, strides, reach, more, strict=True)]
        wanted = _wanted(windows, shape, spatial, strides)
        if wanted is None:
            pads = windows.pads(spatial, strides, reach, given)
        else:  # the standard gives the larger half to the other side than a convolution does
            full = [max(a, b) for a, b in zip(full, wanted, strict=True)]
            other = "SAME_UPPER" if windows.auto == "SAME_UPPER" else "SAME_LOWER"
            pads = [_halves(a - b, other) for a, b in zip(full, wanted, strict=True)]
        kept = [n - before - after for n, (before, after) in zip(full, pads, strict=True)]
        if min(kept) < 1:
            raise RefusedValue(f"its pads are {_checks.show(pads)}, which leaves nothing of "
                               f"{tuple(full)}")
        M = w.shape[1] * group
        sized((N, M, *full), CLAIMED)
        x, w, b = _wide(x, w, b)
        y = np.zeros((N, group, M // group, *full), x.dtype)
        rows = x.reshape(N, group, x.shape[1] // group, math.prod(spatial))
        weights = w.reshape(group, w.shape[0] // group, M // group, math.prod(kernel))
        for number, offset in enumerate(np.ndindex(*kernel)):
            at = tuple(slice(k * d, k * d + (n - 1) * s + 1, s) for k, d, n, s in zip(
                offset, dilations, spatial, strides, strict=True))
            one = weights[..., number]
            product = np.matmul(one.swapaxes(1, 2), rows)
            y[(slice(None),) * 3 + at] += product.reshape(N, group, M // group, *spatial)
        inside = tuple(slice(before, before + n)
                       for n, (before, _) in zip(kept, pads, strict=True))
        y = y.reshape(N, M, *full)[(slice(None),) * 2 + inside]
        return _with_bias(y, b, dtype)

    return run


def _wanted(
    windows: _Windows, shape: Sequence[int] | None, spatial: Sequence[int], strides: Sequence[int]
) -> list[int] | None:
    """Return the axes that a transposed convolution should have, None if its pads say it."""
    if shape is None:
        if windows.auto in ("NOTSET", "VALID"):
            return None
        return [a * s for a, s in zip(spatial, strides, strict=True)]
    n = len(spatial)
    wanted = list(shape[2:] if len(shape) == n + 2 else shape)  # some have N and C, too
    if len(wanted) != n or any(not 1 <= a < _LARGEST for a in wanted):
        raise RefusedValue(f"its output_shape is {_checks.show(tuple(shape))}, expected {n} "
                           "numbers")
    return wanted


# ---- pools ---------------------------------------------------------------------------------------


def _pool(largest: bool) -> Callable[[Node], Run]:
    """Return the entry of MaxPool or AveragePool."""

    def make(node: Node) -> Run:
        node.check_inputs(1, 1)
        windows, ceil = _Windows(node), node.flag("ceil_mode")
        with_pads = False if largest else node.flag("count_include_pad")
        if largest:
            node.whole("storage_order")  # of the indices
        if windows.kernel is None:
            raise RefusedValue("it has no attribute 'kernel_shape'")

        def run(x: np.ndarray) -> tuple[np.ndarray]:
            (check_numbers if largest else check_floats)(x)
            if x.ndim != 2 + len(windows.kernel):
                raise RefusedValue(f"its input has the shape {x.shape}, expected "
                                   f"{2 + len(windows.kernel)} axes")
            strides, dilations, given, reach = windows.of(windows.kernel)
            spatial = x.shape[2:]
            pads = windows.pads(spatial, strides, reach, given)
            if any(b >= r or e >= r for (b, e), r in zip(pads, reach, strict=True)):
                raise RefusedValue(f"its pads are {pads}, expected less than the kernel")
            counts = _counts(spatial, pads, strides, reach, ceil)
            more = [(0, max(0, (c - 1) * s + r - (b + n + e))) for c, s, r, n, (b, e) in zip(
                counts, strides, reach, spatial, pads, strict=True)]
            axes = tuple(range(2, 2 + len(reach)))

            def of(a: np.ndarray) -> np.ndarray:
                return _views(a, counts, strides, dilations, windows.kernel)

            wide = [(b, e + m) for (b, e), (_, m) in zip(pads, more, strict=True)]
            if largest:
                return (of(_padded(x, wide, end_of(x.dtype, False))).max(axes),)
            inside = np.ones((1, 1, *spatial), x.dtype)  # what counts for the mean
            inside = _padded(_padded(inside, pads, int(with_pads)), more)
            total = of(_padded(x, wide)).sum(axes, dtype=np.result_type(x, np.float32))
            return ((total / of(inside).sum(axes)).astype(x.dtype),)

        return run

    return make


def _global(function: Callable[..., Any]) -> Callable[[Node], Run]:
    """Return the entry of a pool over all axes after N and C."""

    def make(node: Node) -> Run:
        node.check_inputs(1, 1)

        def run(x: np.ndarray) -> tuple[np.ndarray]:
            check_floats(x)
            if x.ndim < 3 or 0 in x.shape[2:]:
                raise RefusedValue(f"its input has the shape {x.shape}, expected three axes or "
                                   "more")
            return (function(x, tuple(range(2, x.ndim)), keepdims=True),)

        return run

    return make


CONVOLUTIONS: dict[str, Callable[[Node], Run]] = {
    "AveragePool": _pool(False),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global(np.mean),
    "GlobalMaxPool": _global(np.max),
    "MaxPool": _pool(True),
}
