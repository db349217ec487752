"""Arguments turned into what the kernels take, or refused with one sentence.

A check raises a `Refused` error whose sentence names the argument, what came and what was expected.
`public`, on the function that a user called, puts that function's name before the sentence. Nothing
is copied that the kernels can read as it is: rows must be contiguous, aligned and native; whatever
else NumPy can hold (strided, Fortran, big-endian) becomes a copy here.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from fastrnn._kernels.check import all_are, in_range, is_masked
from fastrnn._kernels.timeline import Timeline

Shape = Sequence["int | str"]
P = ParamSpec("P")
R = TypeVar("R")


class Refused(Exception):
    """An argument that does not fit; `public` raises it as the class in `builtin`."""

    builtin: type[Exception]


class RefusedType(Refused, TypeError):
    """An argument of a wrong type or dtype."""

    builtin = TypeError


class RefusedValue(Refused, ValueError):
    """An argument with a wrong shape or value."""

    builtin = ValueError


class RefusedIndex(Refused, IndexError):
    """A number of a row, symbol or class that does not exist."""

    builtin = IndexError


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Put the name of a public function or method before the sentence of a check that fails.

    A method is named with the class of its object, "LSTM.forward: ...", a special method such as a
    constructor by the class alone, "LSTM: ...".
    """
    method = "." in function.__qualname__
    shown = "" if function.__name__.startswith("__") else f".{function.__name__}"

    @functools.wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Refused as error:
            name = _class_name(args[0]) + shown if method else function.__name__
            raise error.builtin(f"{name}: {error}") from error.__cause__
        except SystemError as error:  # NumPy's reductions say this where there is no memory
            if "without" in str(error) and "exception" in str(error):
                raise MemoryError from error
            raise

    return named


def _class_name(of: Any) -> str:
    """Return the name of an object's class as users know it; for a private class, its base's."""
    names = (base.__name__ for base in type(of).__mro__)
    return next(name for name in names if not name.startswith("_"))


def show(value: Any) -> str:
    """Return a short repr on one line."""
    try:
        return " ".join(reprlib.repr(value).split())
    except Exception:  # a repr may fail in its own way
        return kind(value)


def kind(value: Any) -> str:
    """Return what to call a value in a sentence."""
    return "None" if value is None else f"of type {type(value).__name__}"


def _show_shape(shape: Shape) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _fits(shape: tuple[int, ...], expected: Shape) -> bool:
    if len(shape) != len(expected):
        return False
    for n, e in zip(shape, expected, strict=True):  # noqa: SIM110 (twice as fast as all())
        if n != e and type(e) is not str:
            return False
    return True


# ---- arrays --------------------------------------------------------------------------------------


def numeric(name: str, value: Any, dtype: Any) -> np.ndarray:
    """Return `value` as an array of `dtype`, of any shape, in any byte order.

    Arrays must have the dtype; lists of numbers are converted.

    Raises
    ------
    RefusedType
        If `value` is not numeric, or an array of another dtype.
    RefusedValue
        If it is a ragged sequence.
    """
    if type(value) is np.ndarray and value.dtype == dtype and value.dtype.isnative:
        return value
    dtype = np.dtype(dtype)
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        a = as_array(name, value, dtype)
        if a.dtype.newbyteorder("=") != dtype:
            raise RefusedType(f"{name} is {a.dtype}, expected {dtype}")
        return a
    return held(name, numbers(name, value, dtype), dtype)


def held(name: str, a: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return numbers in a dtype, a copy if they had another; refuse those too large for it."""
    with np.errstate(over="ignore"):
        converted = a.astype(dtype, copy=False)
    if a.dtype.kind != "f" or a.dtype.itemsize > dtype.itemsize:
        lost = np.isinf(converted) & (a.dtype.kind != "f" or np.isfinite(a))
        if lost.any():
            place = tuple(int(i) for i in np.argwhere(lost)[0])
            raise RefusedValue(f"{name} has {a[place]} at {list(place)}, which {dtype} cannot hold")
    return converted


def numbers(name: str, value: Any, dtype: Any = "", of: str = "numbers") -> np.ndarray:
    """Return `value` as an array of numbers of whatever dtype it has; an error calls them `of`."""
    a = as_array(name, value, dtype or of)
    if a.dtype.kind not in "fiu":
        came = getattr(value, "dtype", kind(value))
        if isinstance(value, (list, tuple)):  # of None, text, or numbers that no dtype holds
            came = show(value)
        raise RefusedType(f"{name} is {came}, expected {of}" + (f" ({dtype})" if dtype else ""))
    return a


def as_array(name: str, value: Any, of: Any) -> np.ndarray:
    """Return `value` as an array of whatever dtype it has; `of` says what it should consist of."""
    try:
        if is_masked(value):
            raise RefusedType(f"{name} is a masked array with masked places, expected an array "
                              f"of {of}: pass weights of 0, or fill the places")
        return np.asarray(value)
    except ValueError as error:
        raise RefusedValue(f"{name} is a ragged sequence, expected an array of {of}") from error
    except (RuntimeError, TypeError) as error:  # a tensor of a graph, or of bfloat16
        if isinstance(error, Refused):
            raise
        raise RefusedType(f"{name} is {kind(value)}, expected an array of {of}: {error}") from error


def array(
    name: str, value: Any, dtype: Any, shape: Shape,
    why: Callable[[np.ndarray], str] | None = None,
) -> np.ndarray:
    """Return `value` as `numeric` does, with rows that kernels can read.

    A letter in `shape` fits any size; what `why` returns for the array ends the sentence if the
    shape does not fit.
    """
    usual = type(value) is np.ndarray and value.dtype == dtype and value.flags.c_contiguous
    a = value if usual else numeric(name, value, dtype)
    if not _fits(a.shape, shape):
        raise RefusedValue(f"{name} has shape {a.shape}, expected {_show_shape(shape)}"
                           + (why(a) if why else ""))
    return a if usual and a.flags.aligned else rows_contiguous(a)


def rows_contiguous(a: np.ndarray) -> np.ndarray:
    """Return `a`, or a native copy of it if its rows cannot be read in place."""
    size = a.itemsize
    readable = (
        a.dtype.isnative
        and a.flags.aligned
        and (a.ndim == 0 or a.shape[-1] <= 1 or a.strides[-1] == size)
        and all(stride % size == 0 for stride in a.strides)
    )
    return a if readable else np.array(a, a.dtype.newbyteorder("="), order="C")


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return a new array; where no memory can hold it, the error says how large it would be."""
    try:
        return np.empty(shape, dtype)
    except ValueError as error:  # more than 2^63 bytes: NumPy's sentence names no size
        raise MemoryError(f"an array of shape {shape} is larger than any memory") from error


def output(name: str, value: Any, dtype: Any, shape: Shape) -> np.ndarray:
    """Return `value` if kernels can write a C-contiguous result of this shape into it."""
    if not isinstance(value, np.ndarray) or value.dtype != dtype or not value.dtype.isnative:
        came = value.dtype if isinstance(value, np.ndarray) else kind(value)
        raise RefusedType(f"{name} is {came}, expected an array of {np.dtype(dtype)}")
    if not _fits(value.shape, shape):
        raise RefusedValue(f"{name} has shape {value.shape}, expected {_show_shape(shape)}")
    if not (value.flags.c_contiguous and value.flags.writeable and value.flags.aligned):
        raise RefusedValue(f"{name} must be C-contiguous, aligned and writeable")
    return value


def rows(
    value: Any, shape: Shape, count: int, name: str = "x", of: str = "the embedding"
) -> np.ndarray:
    """Return a copy of `value` as int32 row numbers below `count`, C-contiguous.

    It is a copy so that nobody can change the numbers between this check and their use.
    """
    a = whole_numbers(value, shape, name, of)
    found = in_range(a, count)
    if found is None:
        raise RefusedIndex(f"{name} has numbers from {a.min()} to {a.max()}, expected 0 to "
                           f"{count - 1}: rows of {of}")
    return found


def whole_numbers(
    value: Any, shape: Shape, name: str = "x", of: str = "the embedding"
) -> np.ndarray:
    """Return `value` as an array of whole numbers of a shape, for rows of something."""
    a = as_array(name, value, "whole numbers")
    if a.size and a.dtype.kind not in "iu":  # an empty list becomes an array of floats
        came = kind(value) if a.dtype == object and a is not value else a.dtype
        raise RefusedType(f"{name} is {came}, expected whole numbers: rows of {of}")
    if not _fits(a.shape, shape):
        raise RefusedValue(f"{name} has shape {a.shape}, expected {_show_shape(shape)}")
    return a


def states(
    name: str, value: Any, states: tuple[str, ...], dtype: Any, shapes: Sequence[Shape]
) -> tuple[np.ndarray | None, ...]:
    """Return the arrays of a state or of a gradient of one, contiguous; None means zero.

    Parameters
    ----------
    states : tuple of str
        The names of the cell's states. Of a single one the value is an array, of several a tuple.
    shapes : sequence of shapes
        One for each state.
    """
    if len(states) == 1:
        if isinstance(value, tuple):
            raise RefusedType(f"{name} is a tuple of {len(value)}, expected one array")
        return (_state(name, value, dtype, shapes[0]),)
    if value is None:
        return (None,) * len(states)
    if not isinstance(value, (tuple, list)) or len(value) != len(states):
        try:
            came = f"{type(value).__name__} of {len(value)}"
        except TypeError:  # it has no length
            came = show(value)
        expected = f"a {'pair' if len(states) == 2 else 'tuple'} ({', '.join(states)})"
        raise RefusedType(f"{name} is {came}, expected {expected}")
    return tuple([_state(f"{name}[{i}]", value[i], dtype, shapes[i]) for i in range(len(states))])


def _state(name: str, value: Any, dtype: Any, shape: Shape) -> np.ndarray | None:
    if value is None:
        return None
    if type(value) is np.ndarray and value.shape == shape and value.dtype == dtype:
        flags = value.flags
        if flags.c_contiguous and flags.aligned:  # as almost always
            return value
    return np.ascontiguousarray(array(name, value, dtype, shape))


def with_direction(arrays: tuple[np.ndarray | None, ...]) -> tuple[np.ndarray | None, ...]:
    """Return states (B, H) as the kernels take them, (1, B, H)."""
    return tuple(None if a is None else a[None] for a in arrays)


def without_direction(arrays: tuple[np.ndarray, ...]) -> Any:
    """Return states (1, B, H) as a caller has them: one array, or a tuple."""
    return arrays[0][0] if len(arrays) == 1 else tuple(a[0] for a in arrays)


def named_arrays(
    mapping: Any, shapes: Mapping[str, tuple[int, ...]], name: str = "the mapping"
) -> dict[str, np.ndarray]:
    """Return the arrays of a mapping if it has exactly these names and shapes.

    Raises
    ------
    RefusedValue
        If names are missing or unexpected, or shapes differ; the sentence lists them all.
    RefusedType
        If it is no mapping, or a value is not an array of numbers.
    """
    if not isinstance(mapping, Mapping):
        raise RefusedType(f"{name} is {kind(mapping)}, expected a mapping of names to arrays")
    problems = []
    if missing := [key for key in shapes if key not in mapping]:
        problems.append(f"missing {missing}")
    if unexpected := [key for key in mapping if key not in shapes]:
        problems.append(f"unexpected {unexpected}")
    arrays = {key: numbers(key, mapping[key]) for key in shapes if key in mapping}
    problems += [f"{key} has shape {a.shape}, expected {shapes[key]}"
                 for key, a in arrays.items() if a.shape != shapes[key]]
    if problems:
        raise RefusedValue("; ".join(problems))
    return arrays


def float_dtype(dtype: Any, name: str = "dtype") -> np.dtype:
    """Return `dtype` if the kernels exist for it."""
    known: np.dtype = np.dtype(object)
    if dtype is not None:  # NumPy takes None for float64
        with contextlib.suppress(TypeError, ValueError, SyntaxError):
            known = np.dtype(dtype)
    if known not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise RefusedType(f"{name} is {show(dtype)}, expected float32 or float64")
    return known


# ---- numbers and words ---------------------------------------------------------------------------


def _whole(value: Any) -> int | None:
    """Return a whole number as an int; None for anything else, True and False too."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def positive(name: str, value: Any, least: int = 1) -> int:
    """Return `value` if it is a whole number of at least 1, or another least one."""
    whole = _whole(value)
    if whole is None or whole < least:
        raise RefusedValue(f"{name} is {show(value)}, expected a whole number of at least {least}")
    return whole


def below(name: str, value: Any, count: int) -> int:
    """Return `value` if it is a whole number from 0 on and below `count`."""
    whole = _whole(value)
    if whole is None or not 0 <= whole < count:
        raise RefusedValue(f"{name} is {show(value)}, expected a whole number from 0 to "
                           f"{count - 1}")
    return whole


def _real(value: Any) -> float:
    """Return a number as a float; NaN for anything else."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    return math.nan


def above(name: str, value: Any, least: float = 0, most: float = math.inf) -> float:
    """Return `value` if it is a number above `least` and below `most`."""
    number = _real(value)
    if not least < number < most:
        limit = f"above {least:g}" + (f" and below {most:g}" if most < math.inf else "")
        finite = "finite " * math.isinf(number)
        raise RefusedValue(f"{name} is {show(value)}, expected a {finite}number {limit}")
    return number


def at_least(name: str, value: Any, least: float = 0, most: float = math.inf) -> float:
    """Return `value` if it is a number of at least `least` and below `most`."""
    number = _real(value)
    if not least <= number < most:
        limit = "finite " * math.isinf(number) + "number"
        limit += f" of at least {least:g}" if least > -math.inf else ""
        limit += f" and below {most:g}" if most < math.inf else ""
        raise RefusedValue(f"{name} is {show(value)}, expected a {limit}")
    return number


def probability(name: str, value: Any) -> float:
    """Return `value` if it is a number from 0 to 1."""
    number = _real(value)
    if not 0 <= number <= 1:
        raise RefusedValue(f"{name} is {show(value)}, expected a number from 0 to 1")
    return number


def flag(name: str, value: Any) -> bool:
    """Return `value` if it is True or False, or 1 or 0; words are not, for "no" would be true."""
    if isinstance(value, (bool, int, np.bool_, np.integer)) and value in (0, 1):
        return bool(value)
    raise RefusedType(f"{name} is {show(value)}, expected True or False")


def names(name: str, given: Any, expected: Any) -> None:
    """Refuse what is no mapping with these names."""
    if not isinstance(given, Mapping):
        raise RefusedType(f"{name} is {show(given)}, expected a mapping with {sorted(expected)}")
    if set(given) != set(expected):
        raise RefusedValue(f"{name} has keys {sorted(given, key=str)}, expected "
                           f"{sorted(expected)}")


def one_of(name: str, value: Any, known: Any) -> str:
    """Return `value` if it is one of the known words."""
    if not isinstance(value, str) or value not in known:
        raise RefusedValue(f"{name} is {show(value)}, expected one of {list(known)}")
    return value


def seeds(seed: Any, count: int) -> list[np.random.SeedSequence]:
    """Return independent seeds drawn from one."""
    whole = _whole(seed)
    if seed is not None and (whole is None or whole < 0):
        raise RefusedValue(f"seed is {show(seed)}, expected a whole number of at least 0, or None")
    return np.random.SeedSequence(whole).spawn(count)


# ---- lengths and resets --------------------------------------------------------------------------

RESET_TO = ("zero", "initial")


def timeline(
    lengths: Any, reset: Any, reset_to: Any, T: int, B: int, batch_first: bool = False,
    of: str = "x",
) -> Timeline | None:
    """Return when the rows of a batch are alive; None if all are for T steps without a reset.

    Parameters
    ----------
    lengths : whole numbers (B,), each 0 to T, or None: all T
    reset : booleans (T, B), or (B, T) with `batch_first`, or None: no resets
    reset_to : "zero" or "initial"
    of : str
        What the padded array is called.

    Raises
    ------
    RefusedType, RefusedValue
        If they are something else.
    """
    if type(reset_to) is not str or reset_to not in RESET_TO:
        one_of("reset_to", reset_to, RESET_TO)
    flags = None
    if reset is not None:
        flags = booleans("reset", reset, (B, T) if batch_first else (T, B))
        flags = (flags.T if batch_first else flags) if flags.any() else None  # it is copied below
    n = None
    if lengths is not None:
        name = "lengths" if of == "x" else f"lengths of {of}"
        a = lengths if type(lengths) is np.ndarray else numbers(
            name, lengths, of="whole numbers: steps of each row")
        if a.dtype.kind not in "iu" and (a.size or a.dtype.kind != "f"):
            raise RefusedType(f"{name} is {a.dtype}, expected whole numbers: steps of each row")
        if a.shape != (B,):
            raise RefusedValue(f"{name} has shape {a.shape}, expected ({B},): one for each row")
        n = in_range(a, T + 1)
        if n is None:
            raise RefusedValue(f"{name} has numbers from {a.min()} to {a.max()}, expected 0 to "
                               f"{T}, the steps of {of}")
    if flags is None and (n is None or all_are(n, T)):
        return None
    return Timeline(np.full(B, T) if n is None else n, T, flags, reset_to == "initial")


def of_one(value: Any, ndim: int, flags: tuple[str, Shape] | None = None) -> Any:
    """Return what one sequence has as that of a batch of one; anything else as it came.

    Of booleans, `flags` are the name and the shape.
    """
    if value is None or getattr(value, "ndim", ndim) != ndim or np.ndim(value) != ndim:
        return value
    if flags is not None:
        value = booleans(flags[0], value, flags[1])
    return np.asarray(value)[..., None]


def refuse_packed(name: str, value: Any) -> None:
    """Refuse a PackedSequence, which is no array."""
    if hasattr(value, "batch_sizes"):
        raise RefusedType(f"{name} is {kind(value)}, expected an array; of packed rows p "
                          "pass forward_packed(p.data, p.batch_sizes)")


def booleans(name: str, value: Any, shape: Shape) -> np.ndarray:
    """Return `value` as an array of booleans of a shape."""
    a = as_array(name, value, "booleans")
    if a.dtype != bool and a.size:
        raise RefusedType(f"{name} is {a.dtype}, expected booleans")
    if not _fits(a.shape, shape):
        raise RefusedValue(f"{name} has shape {a.shape}, expected {_show_shape(shape)}")
    return a.astype(bool, copy=False)


def packed_timeline(
    batch_sizes: Any, N: int, reset: Any, reset_to: Any
) -> tuple[int, int, Timeline | None]:
    """Return T, B and when the rows of a torch PackedSequence of N rows are alive.

    Parameters
    ----------
    batch_sizes : whole numbers (T,), none larger than the one before; their sum is N
    reset : booleans (N,), or None
    """
    a = numbers("batch_sizes", batch_sizes, of="whole numbers")
    if a.ndim != 1 or not a.size:
        raise RefusedValue(f"batch_sizes has shape {a.shape}, expected (T,), the rows of each of "
                           "at least one step")
    if a.dtype.kind not in "iu":
        raise RefusedType(f"batch_sizes is {a.dtype}, expected whole numbers: rows of each step")
    sizes = a.astype(np.int64)
    if sizes.min() < 1 or (np.diff(sizes) > 0).any():
        raise RefusedValue(f"batch_sizes is {show(a.tolist())}, expected numbers of at least "
                           "1, none larger than the one before: the longest rows come first")
    if sizes[0] > N or sizes.sum() != N:
        raise RefusedValue(f"batch_sizes has the sum {sum(sizes.tolist())}, expected {N}, the rows "
                           "of data")
    T, B = len(sizes), int(sizes[0])
    lengths = None  # of row b: the steps of more than b rows
    if sizes[-1] != B:
        lengths = T - np.searchsorted(sizes[::-1], np.arange(B), "right")
    if reset is None:
        return T, B, timeline(lengths, None, reset_to, T, B)
    flags = np.zeros((T, B), bool)
    flags[sizes[:, None] > np.arange(B)] = booleans("reset", reset, (N,))
    return T, B, timeline(lengths, flags, reset_to, T, B)


def without_padding(x: Any, lengths: Any) -> np.ndarray:
    """Return (T, B, ...) with zeros past each row's end: padding may be anything."""
    x = np.asarray(x)
    alive = np.arange(len(x))[:, None] < np.asarray(lengths)
    return np.where(alive.reshape(alive.shape + (1,) * (x.ndim - 2)), x, 0)
