"""Arguments made into what the kernels take, or refused with one sentence.

Every error names who was called and the argument, what came, and what was expected. Nothing is
copied that the kernels can read as it is: rows must be contiguous, aligned and native; whatever
else NumPy can hold (strided, Fortran, big-endian) becomes a copy here.
"""

from __future__ import annotations

import contextlib
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Shape = Sequence["int | str"]


def _show(shape: Shape) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _fits(shape: tuple[int, ...], expected: Shape) -> bool:
    if len(shape) != len(expected):
        return False
    for n, e in zip(shape, expected, strict=True):  # noqa: SIM110 (twice as fast as all())
        if n != e and type(e) is not str:
            return False
    return True


def numeric(owner: str, name: str, value: Any, dtype: Any) -> np.ndarray:
    """Return `value` as an array of `dtype`, of any shape, in any byte order.

    Arrays must have the dtype; lists of numbers are converted.

    Raises
    ------
    TypeError
        If `value` is not numeric, or an array of another dtype.
    ValueError
        If it is a ragged sequence.
    """
    if type(value) is np.ndarray and value.dtype == dtype and value.dtype.isnative:
        return value
    dtype = np.dtype(dtype)
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        a = _as_array(owner, name, value, dtype)
        if a.dtype.newbyteorder("=") != dtype:
            raise TypeError(f"{owner}: {name} is {a.dtype}, expected {dtype}")
        return a
    return numbers(owner, name, value, dtype).astype(dtype)


def numbers(owner: str, name: str, value: Any, dtype: Any = "") -> np.ndarray:
    """Return `value` as an array of whole or real numbers, of whatever dtype it has."""
    a = _as_array(owner, name, value, dtype or "numbers")
    if a.dtype.kind not in "fiu":
        came = getattr(value, "dtype", kind(value))
        raise TypeError(f"{owner}: {name} is {came}, expected numbers"
                        + (f" ({dtype})" if dtype else ""))
    return a


def _as_array(owner: str, name: str, value: Any, of: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"{owner}: {name} is a ragged sequence, expected an array of {of}"
        ) from error
    except RuntimeError as error:  # a tensor of torch that is part of a graph
        raise TypeError(
            f"{owner}: {name} is {kind(value)}, expected an array of {of}: {error}"
        ) from error


def array(
    owner: str, name: str, value: Any, dtype: Any, shape: Shape,
    why: Callable[[np.ndarray], str] | None = None,
) -> np.ndarray:
    """Return `value` as `numeric` does, with rows that kernels can read.

    A letter in `shape` stands for any size; what `why` says of the array ends the sentence if the
    shape does not fit.
    """
    usual = type(value) is np.ndarray and value.dtype == dtype and value.flags.c_contiguous
    a = value if usual else numeric(owner, name, value, dtype)
    if not _fits(a.shape, shape):
        raise ValueError(f"{owner}: {name} has shape {a.shape}, expected {_show(shape)}"
                         + (why(a) if why else ""))
    return a if usual and a.flags.aligned else rows_contiguous(a)


def show(value: Any) -> str:
    """Return a short repr on one line."""
    return " ".join(reprlib.repr(value).split())


def kind(value: Any) -> str:
    """Return what stands for a value in a sentence."""
    return "None" if value is None else f"of type {type(value).__name__}"


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


def output(owner: str, name: str, value: Any, dtype: Any, shape: Shape) -> np.ndarray:
    """Return `value` if kernels can write a C-contiguous result of this shape into it."""
    if not isinstance(value, np.ndarray) or value.dtype != dtype or not value.dtype.isnative:
        came = value.dtype if isinstance(value, np.ndarray) else kind(value)
        raise TypeError(f"{owner}: {name} is {came}, expected an array of {np.dtype(dtype)}")
    if not _fits(value.shape, shape):
        raise ValueError(f"{owner}: {name} has shape {value.shape}, expected {_show(shape)}")
    if not (value.flags.c_contiguous and value.flags.writeable and value.flags.aligned):
        raise ValueError(f"{owner}: {name} must be C-contiguous, aligned and writeable")
    return value


def rows(
    owner: str, value: Any, shape: Shape, count: int, name: str = "x", of: str = "the embedding"
) -> np.ndarray:
    """Return `value` as int32 row numbers below `count`, C-contiguous."""
    a = np.asarray(value)
    if a.size and a.dtype.kind not in "iu":  # an empty list becomes an array of floats
        raise TypeError(f"{owner}: {name} is {a.dtype}, expected whole numbers: rows of {of}")
    if not _fits(a.shape, shape):
        raise ValueError(f"{owner}: {name} has shape {a.shape}, expected {_show(shape)}")
    if a.size and not (a.min() >= 0 and a.max() < count):
        raise IndexError(
            f"{owner}: {name} has numbers from {a.min()} to {a.max()}, "
            f"expected 0 to {count - 1}: rows of {of}"
        )
    return np.ascontiguousarray(a, np.int32)


def states(
    owner: str, name: str, value: Any, has_c: bool, dtype: Any, shape: Shape
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return (h, c), contiguous, from a state or a gradient of one; None stands for zero."""
    if not has_c:
        if isinstance(value, tuple):
            raise TypeError(f"{owner}: {name} is a tuple of {len(value)}, expected one array")
        return _state(owner, name, value, dtype, shape), None
    if value is None:
        return None, None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        try:
            came = f"{type(value).__name__} of {len(value)}"
        except TypeError:  # it has no length
            came = show(value)
        raise TypeError(f"{owner}: {name} is {came}, expected a pair (h, c)")
    h, c = value
    return (
        _state(owner, f"{name}[0]", h, dtype, shape),
        _state(owner, f"{name}[1]", c, dtype, shape),
    )


def _state(owner: str, name: str, value: Any, dtype: Any, shape: Shape) -> np.ndarray | None:
    if value is None:
        return None
    return np.ascontiguousarray(array(owner, name, value, dtype, shape))


def positive(owner: str, name: str, value: Any) -> int:
    """Return `value` if it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{owner}: {name} is {show(value)}, expected a whole number of at least 1")
    return int(value)


def below(owner: str, name: str, value: Any, count: int) -> int:
    """Return `value` if it is a whole number from 0 on and below `count`."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not 0 <= value < count:
        raise ValueError(f"{owner}: {name} is {show(value)}, expected a whole number from 0 to "
                         f"{count - 1}")
    return int(value)


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def above(
    owner: str, name: str, value: Any, least: float = 0, most: float = math.inf
) -> float:
    """Return `value` if it is a number above `least` and below `most`."""
    if not _is_real(value) or not least < value < most:
        limit = f"above {least:g}" + (f" and below {most:g}" if most < math.inf else "")
        raise ValueError(f"{owner}: {name} is {show(value)}, expected a number {limit}")
    return float(value)


def at_least(
    owner: str, name: str, value: Any, least: float = 0, most: float = math.inf
) -> float:
    """Return `value` if it is a number of at least `least` and below `most`."""
    if not _is_real(value) or not least <= value < most:
        limit = f"at least {least:g}" + (f" and below {most:g}" if most < math.inf else "")
        raise ValueError(f"{owner}: {name} is {show(value)}, expected a number of {limit}")
    return float(value)


def probability(owner: str, name: str, value: Any) -> float:
    """Return `value` if it is a number from 0 to 1."""
    if not _is_real(value) or not 0 <= value <= 1:
        raise ValueError(f"{owner}: {name} is {show(value)}, expected a number from 0 to 1")
    return float(value)


def writeable(owner: str, training: bool) -> None:
    """Refuse to change parameters in evaluation mode."""
    if not training:
        raise ValueError(f"{owner}: the parameters are read-only in evaluation mode, expected "
                         "training mode: call train() first")


def named_arrays(
    owner: str, mapping: Any, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Return the arrays of a mapping if it has exactly these names and shapes.

    Raises
    ------
    ValueError
        If names are missing or unexpected, or shapes differ; the sentence lists them all.
    TypeError
        If it is no mapping, or a value is not an array of numbers.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{owner}: got {kind(mapping)}, expected a mapping of names to arrays")
    problems = []
    if missing := [name for name in shapes if name not in mapping]:
        problems.append(f"missing {missing}")
    if unexpected := [name for name in mapping if name not in shapes]:
        problems.append(f"unexpected {unexpected}")
    arrays = {name: numbers(owner, name, mapping[name]) for name in shapes if name in mapping}
    problems += [f"{name} has shape {array.shape}, expected {shapes[name]}"
                 for name, array in arrays.items() if array.shape != shapes[name]]
    if problems:
        raise ValueError(f"{owner}: {'; '.join(problems)}")
    return arrays


def float_dtype(owner: str, dtype: Any) -> np.dtype:
    """Return `dtype` if the kernels exist for it."""
    known: np.dtype = np.dtype(object)
    if dtype is not None:  # NumPy takes None for float64
        with contextlib.suppress(TypeError, ValueError, SyntaxError):
            known = np.dtype(dtype)
    if known not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"{owner}: dtype is {show(dtype)}, expected float32 or float64")
    return known


def one_of(owner: str, name: str, value: Any, known: Any) -> str:
    """Return `value` if it is one of the known words."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{owner}: {name} is {show(value)}, expected one of {list(known)}")
    return value


def seeds(owner: str, seed: Any, count: int) -> list[np.random.SeedSequence]:
    """Return independent seeds drawn from one."""
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool) and seed >= 0
    if seed is not None and not whole:
        raise ValueError(
            f"{owner}: seed is {show(seed)}, expected a whole number of at least 0, or None"
        )
    return np.random.SeedSequence(seed).spawn(count)
