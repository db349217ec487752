"""The operators of ONNX that change shapes, take parts of arrays, or make new ones, in NumPy.

An entry of `SHAPES` takes a node, reads its attributes, and returns the function that computes the
node's outputs from its inputs. The functions check dtypes, shapes, and the size of a result before
they make it.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue
from fastrnn.formats.onnx_nodes import Node, Run

__all__ = ["CLAIMED", "MOST", "SHAPES", "TooLargeNow", "at_most", "axes_of", "axis_of",
           "check_floats", "check_numbers", "check_same_dtype", "end_of", "sized", "wholes_of"]

MOST = 2**30  # numbers of one array
CLAIMED = 2**28  # numbers of an array whose shape only a tensor claims


class TooLargeNow(Exception):
    """A result has more numbers than one that is computed at load may have."""


# how many numbers a result may have in this thread: fewer while a file is loaded
_allowed: contextvars.ContextVar[int] = contextvars.ContextVar("_allowed", default=MOST)


@contextlib.contextmanager
def at_most(count: int) -> Iterator[None]:
    """Raise TooLargeNow inside, instead of making an array of more numbers."""
    token = _allowed.set(count)
    try:
        yield
    finally:
        _allowed.reset(token)


def sized(shape: Sequence[int], most: int = MOST) -> tuple[int, ...]:
    """Return a shape as a tuple, or refuse one of too many numbers."""
    shape = tuple(map(int, shape))
    if len(shape) <= 32 and min(shape, default=1) > 0 and (  # at once what is the rule
            math.prod(shape) <= min(most, _allowed.get())):
        return shape
    if any(n < 0 for n in shape) or len(shape) > 32:
        raise RefusedValue(f"its result has the shape {_checks.show(shape)}")
    if math.prod(n for n in shape if n) > most:
        raise RefusedValue(f"its result has the shape {_checks.show(shape)}, expected at most "
                           f"{most} numbers")
    if math.prod(shape) > _allowed.get():
        raise TooLargeNow
    return shape


def check_same_dtype(*arrays: np.ndarray) -> None:
    """Refuse arrays of several dtypes."""
    if any(a.dtype != arrays[0].dtype for a in arrays):
        raise RefusedType(f"its inputs are {' and '.join(a.dtype.name for a in arrays)}, expected "
                          "one dtype")


def check_numbers(a: np.ndarray) -> None:
    """Refuse booleans."""
    if a.dtype.kind not in "fiu":
        raise RefusedType(f"its input is {a.dtype.name}, expected numbers")


def check_floats(a: np.ndarray) -> None:
    """Refuse all but floating-point numbers."""
    if a.dtype.kind != "f":
        raise RefusedType(f"its input is {a.dtype.name}, expected floating-point numbers")


def end_of(dtype: np.dtype, largest: bool) -> Any:
    """Return the largest or the least value of a dtype."""
    if dtype.kind == "f":
        return np.inf if largest else -np.inf
    if dtype.kind == "b":
        return largest
    return np.iinfo(dtype).max if largest else np.iinfo(dtype).min


def wholes_of(name: str, a: np.ndarray, ndim: int | None = 1) -> list[int]:
    """Return whole numbers of an input as a list."""
    if a.dtype not in (np.int64, np.int32):
        raise RefusedType(f"its {name} is {a.dtype.name}, expected int64 or int32")
    if ndim is not None and a.ndim != ndim:
        raise RefusedValue(f"its {name} has the shape {a.shape}, expected {ndim} axes")
    if a.size > 64:
        raise RefusedValue(f"its {name} has {a.size} numbers, expected at most 64")
    return a.reshape(-1).tolist()


def axis_of(axis: int, ndim: int) -> int:
    """Return the number of an axis, which may be counted from the end."""
    if not -ndim <= axis < ndim:
        raise RefusedValue(f"it has the axis {axis} for an input of {ndim} axes")
    return axis % ndim


def axes_of(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Return the numbers of several axes, all different."""
    found = tuple(axis_of(axis, ndim) for axis in axes)
    if len(set(found)) < len(found):
        raise RefusedValue(f"it has an axis twice: {list(axes)}")
    return found


# ---- shapes --------------------------------------------------------------------------------------


def _transpose(node: Node) -> Run:
    node.check_inputs(1, 1)
    perm = node.wholes("perm")

    def run(a: np.ndarray) -> tuple[np.ndarray]:
        if perm is None:
            return (a.T,)
        if sorted(perm) != list(range(a.ndim)):
            raise RefusedValue(f"its perm is {_checks.show(perm)} for an input of {a.ndim} axes")
        return (a.transpose(perm),)

    return run


def _axes_input(node: Node, least: int) -> Any:
    """Return the attribute axes of Squeeze and Unsqueeze, which became an input with opset 13."""
    if node.opset >= 13:
        node.check_inputs(least, 2)
        return None
    node.check_inputs(1, 1)
    return node.wholes("axes")


def _squeeze(node: Node) -> Run:
    given = _axes_input(node, 1)

    def run(a: np.ndarray, axes: np.ndarray | None = None) -> tuple[np.ndarray]:
        which = given if axes is None else wholes_of("axes", axes)
        if which is None:
            return (a.reshape([n for n in a.shape if n != 1]),)
        found = axes_of(which, a.ndim)
        if any(a.shape[axis] != 1 for axis in found):
            raise RefusedValue(f"its input has the shape {a.shape}, expected size 1 of the axes "
                               f"{list(found)}")
        return (a.reshape([n for i, n in enumerate(a.shape) if i not in found]),)

    return run


def _unsqueeze(node: Node) -> Run:
    given = _axes_input(node, 2)
    if node.opset < 13 and given is None:
        raise RefusedValue("it has no attribute 'axes'")

    def run(a: np.ndarray, axes: np.ndarray | None = None) -> tuple[np.ndarray]:
        which = given if axes is None else wholes_of("axes", axes)
        if a.ndim + len(which) > 32:
            raise RefusedValue(f"it makes {a.ndim + len(which)} axes, expected at most 32")
        found = axes_of(which, a.ndim + len(which))
        rest = iter(a.shape)
        return (a.reshape([1 if i in found else next(rest)
                           for i in range(a.ndim + len(which))]),)

    return run


def _reshape(node: Node) -> Run:
    given: Any = None
    if node.opset < 5:
        node.check_inputs(1, 1)
        node.wholes("consumed_inputs")
        given = node.wholes("shape", ())
    else:
        node.check_inputs(2, 2)
    keeps_zero = node.flag("allowzero")

    def run(a: np.ndarray, shape: np.ndarray | None = None) -> tuple[np.ndarray]:
        wanted = list(given) if shape is None else wholes_of("shape", shape)
        if not keeps_zero:
            if any(n == 0 and i >= a.ndim for i, n in enumerate(wanted)):
                raise RefusedValue(f"its shape {wanted} copies an axis that the input, "
                                   f"{a.shape}, does not have")
            wanted = [a.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
        known = math.prod(n for n in wanted if n != -1)
        if wanted.count(-1) == 1 and known > 0 and a.size % known == 0:
            wanted[wanted.index(-1)] = a.size // known
        if min(wanted, default=0) < 0 or math.prod(wanted) != a.size:
            raise RefusedValue(f"its input has the shape {a.shape}, which cannot become {wanted}")
        return (a.reshape(wanted),)

    return run


def _flatten(node: Node) -> Run:
    node.check_inputs(1, 1)
    axis = node.whole("axis", 1)

    def run(a: np.ndarray) -> tuple[np.ndarray]:
        if not -a.ndim <= axis <= a.ndim:
            raise RefusedValue(f"it has the axis {axis} for an input of {a.ndim} axes")
        at = axis + a.ndim if axis < 0 else axis
        return (a.reshape(math.prod(a.shape[:at]), math.prod(a.shape[at:])),)

    return run


def _concat(node: Node) -> Run:
    node.check_inputs(1, 10_000)
    if not all(node.inputs):
        raise RefusedValue("one of its inputs is not given")
    axis = node.whole("axis", 1 if node.opset < 4 else None)
    if axis is None:
        raise RefusedValue("it has no attribute 'axis'")

    def run(*arrays: np.ndarray) -> tuple[np.ndarray]:
        check_same_dtype(*arrays)
        own = axis_of(axis, arrays[0].ndim)
        shapes = {(*a.shape[:own], *a.shape[own + 1:]) for a in arrays if a.ndim > own}
        if len(shapes) != 1 or any(a.ndim != arrays[0].ndim for a in arrays):
            raise RefusedValue("its inputs have the shapes "
                               f"{_checks.show([a.shape for a in arrays])}, expected the same but "
                               f"for the axis {own}")
        rest = shapes.pop()
        sized((*rest, sum(a.shape[own] for a in arrays)))
        return (np.concatenate(arrays, own),)

    return run


def _split(node: Node) -> Run:
    given: Any = None
    count = len(node.outputs)
    if node.opset < 13:
        node.check_inputs(1, 1)
        given = node.wholes("split")
    else:
        node.check_inputs(1, 2)
    axis, wanted = node.whole("axis", 0), node.whole("num_outputs", count)
    if wanted != count:
        raise RefusedValue(f"its num_outputs is {wanted}, but it has {count} outputs")

    def run(a: np.ndarray, split: np.ndarray | None = None) -> tuple[Any, ...]:
        own = axis_of(axis, a.ndim)
        n = a.shape[own]
        part = -(-n // count)
        lengths = [max(0, min(part, n - i * part)) for i in range(count)]
        if split is not None or given is not None:
            lengths = list(given) if split is None else wholes_of("split", split)
        if len(lengths) != count or sum(lengths) != n or min(lengths) < 0:
            raise RefusedValue(f"it splits {n} into {_checks.show(lengths)} for {count} outputs")
        return tuple(np.split(a, np.cumsum(lengths[:-1]), own))

    return run


def _slice(node: Node) -> Run:
    given: list[Any] = []
    if node.opset < 10:
        node.check_inputs(1, 1)
        given = [node.wholes(name) for name in ("starts", "ends", "axes")]
        if given[0] is None or given[1] is None:
            raise RefusedValue("it has no attributes 'starts' and 'ends'")
    else:
        node.check_inputs(3, 5)

    def run(a: np.ndarray, *more: np.ndarray | None) -> tuple[np.ndarray]:
        names = ("starts", "ends", "axes", "steps")
        numbers = given or [None if b is None else wholes_of(name, b)
                            for name, b in zip(names, more, strict=False)]
        starts, ends, axes, steps = [*numbers, None, None][:4]
        axes = range(len(starts)) if axes is None else axes
        steps = [1] * len(starts) if steps is None else steps
        if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
            raise RefusedValue(f"it has the starts {starts}, ends {ends}, axes {list(axes)} and "
                               f"steps {steps}")
        index = [slice(None)] * a.ndim
        for axis, start, end, step in zip(axes_of(axes, a.ndim), starts, ends, steps, strict=True):
            if step < 0:  # the standard begins at the first number then, Python before it
                start = max(start, -a.shape[axis])
            index[axis] = slice(start, end, step)
        return (a[tuple(index)],)

    return run


def _gather(node: Node) -> Run:
    node.check_inputs(2, 2)
    axis = node.whole("axis", 0)

    def run(a: np.ndarray, index: np.ndarray) -> tuple[np.ndarray]:
        own = axis_of(axis, a.ndim)
        if index.dtype not in (np.int64, np.int32):
            raise RefusedType(f"its indices are {index.dtype.name}, expected int64 or int32")
        n = a.shape[own]
        if index.size and not (-n <= index.min() and index.max() < n):
            raise RefusedValue(f"its indices are {index.min()} to {index.max()}, expected {-n} to "
                               f"{n - 1}")
        sized((*a.shape[:own], *index.shape, *a.shape[own + 1:]))
        return (np.asarray(np.take(a, index, own)),)

    return run


def _shape(node: Node) -> Run:
    node.check_inputs(1, 1)
    start, end = node.whole("start", 0), node.whole("end", None)
    return lambda a: (np.array(a.shape[start:end], np.int64),)


def _size(node: Node) -> Run:
    node.check_inputs(1, 1)
    return lambda a: (np.array(a.size, np.int64),)


# ---- new arrays ----------------------------------------------------------------------------------


def _constant(node: Node) -> Run:
    node.check_inputs(0, 0)
    values = [node.array("value")]
    for value, dtype in ((node.number("value_float"), np.float32),
                         (node.numbers("value_floats"), np.float32),
                         (node.whole("value_int"), np.int64),
                         (node.wholes("value_ints"), np.int64)):
        values.append(None if value is None else np.array(value, dtype))
    found = [value for value in values if value is not None]
    if len(found) != 1:
        node.check_all_used()
        raise RefusedValue(f"it has {len(found)} values, expected one")
    return lambda: (found[0],)


def _constant_of_shape(node: Node) -> Run:
    node.check_inputs(1, 1)
    given = node.array("value")
    value = np.zeros(1, np.float32) if given is None else given
    if value.size != 1:
        raise RefusedValue(f"its value has {value.size} numbers, expected one")

    def run(shape: np.ndarray) -> tuple[np.ndarray]:
        wanted = sized(wholes_of("shape", shape), CLAIMED)
        if not value.reshape(-1)[0]:
            return (np.zeros(wanted, value.dtype),)
        return (np.full(wanted, value.reshape(()), value.dtype),)

    return run


def _expand(node: Node) -> Run:
    node.check_inputs(2, 2)

    def run(a: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray]:
        wanted = sized(wholes_of("shape", shape), CLAIMED)
        try:
            together = np.broadcast_shapes(a.shape, wanted)
        except ValueError:
            raise RefusedValue(f"its input has the shape {a.shape}, which does not broadcast with "
                               f"{wanted}") from None
        return (np.broadcast_to(a, sized(together, max(CLAIMED, a.size))),)

    return run


def _range(node: Node) -> Run:
    node.check_inputs(3, 3)
    node.whole("stash_type")  # of 16-bit floats

    def run(start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> tuple[np.ndarray]:
        check_same_dtype(start, limit, delta)
        check_numbers(start)
        if start.size != 1 or limit.size != 1 or delta.size != 1:
            raise RefusedValue("its inputs are no single numbers")
        first, last, step = (a.item() for a in (start, limit, delta))
        if step == 0 or not all(map(math.isfinite, (first, last, step))):
            raise RefusedValue(f"it goes from {first} to {last} in steps of {step}")
        count = max(0, -((first - last) // step) if start.dtype.kind != "f"
                    else math.ceil((last - first) / step))
        sized((count,), CLAIMED)
        return ((first + step * np.arange(count)).astype(start.dtype),)

    return run


def _pad(node: Node) -> Run:
    mode = node.text("mode", "constant")
    _checks.one_of("its mode", mode, ("constant", "edge", "reflect", "wrap"))
    given: Any = None
    fixed: Any = 0.0
    if node.opset < 11:
        node.check_inputs(1, 1)
        given = node.wholes("pads" if node.opset > 1 else "paddings")
        fixed = node.number("value", 0.0)
    else:
        node.check_inputs(2, 4)

    def run(
        a: np.ndarray, pads: np.ndarray | None = None, value: np.ndarray | None = None,
        axes: np.ndarray | None = None,
    ) -> tuple[np.ndarray]:
        numbers = given if pads is None else wholes_of("pads", pads)
        which = axes_of(range(a.ndim) if axes is None else wholes_of("axes", axes), a.ndim)
        if numbers is None or len(numbers) != 2 * len(which):
            raise RefusedValue(f"its pads are {_checks.show(numbers)}, expected two for each of "
                               f"{len(which)} axes")
        fill = fixed
        if value is not None:
            check_same_dtype(a, value)
            fill = value.reshape(-1)[0] if value.size == 1 else None
            if fill is None:
                raise RefusedValue(f"its value has the shape {value.shape}, expected one number")
        width, index = [(0, 0)] * a.ndim, [slice(None)] * a.ndim
        for i, axis in enumerate(which):
            before, after = numbers[i], numbers[i + len(which)]
            n = a.shape[axis]
            if before + n + after < 0 or -before > n or -after > n:
                raise RefusedValue(f"its pads are {list(numbers)} for the shape {a.shape}")
            index[axis] = slice(max(0, -before), n - max(0, -after))
            width[axis] = max(0, before), max(0, after)
        part = a[tuple(index)]
        sized([b + n + c for n, (b, c) in zip(part.shape, width, strict=True)], CLAIMED)
        if mode == "constant":
            return (np.pad(part, width, constant_values=fill),)
        return (np.pad(part, width, mode=mode),)

    return run


def _tile(node: Node) -> Run:
    if node.opset < 6:
        raise RefusedValue("it repeats one axis as before opset 6, expected a later one")
    node.check_inputs(2, 2)

    def run(a: np.ndarray, repeats: np.ndarray) -> tuple[np.ndarray]:
        counts = wholes_of("repeats", repeats)
        if len(counts) != a.ndim or min(counts, default=0) < 0:
            raise RefusedValue(f"its repeats are {counts} for an input of {a.ndim} axes")
        sized([n * count for n, count in zip(a.shape, counts, strict=True)],
              max(CLAIMED, a.size))
        return (np.tile(a, counts),)

    return run


SHAPES: dict[str, Callable[[Node], Run]] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
