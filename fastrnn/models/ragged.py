"""Sequences of different lengths, and episodes inside them, as models read them.

A caller has a list of arrays (T_i, I), or a padded array (T, B, I) with lengths. The layers read
either as it lies in memory, and skip the padding (see fastrnn/_kernels/timeline.pyx). What follows
them, the head and the losses, has rows (N, ...): the real steps alone, one sequence after the
other. Letters: T steps of the longest sequence, B sequences, N real steps of all sequences
together, I features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue
from fastrnn._kernels.timeline import Timeline
from fastrnn.models.losses import as_weights

__all__ = ["Ragged", "as_list", "check_nested", "is_list"]


def as_list(value: Any) -> Any:
    """Return an array (N,) or pandas Series of arrays or texts as a list; others as they came."""
    dtype = getattr(value, "dtype", None)
    if getattr(value, "ndim", 0) == 1 and getattr(dtype, "kind", "") == "O":
        return list(value)
    return value


def is_list(value: Any) -> bool:
    """Whether a value is a list or tuple of arrays, or empty; not one of numbers or of lists."""
    return isinstance(value, (list, tuple)) and (not value or any(
        hasattr(a, "__array__") and getattr(a, "ndim", 1) > 0 for a in value))


def check_nested(name: str, value: Any) -> None:
    """Refuse lists of numbers of different lengths: sequences are arrays."""
    if isinstance(value, (list, tuple)) and all(isinstance(a, (list, tuple)) for a in value) and (
            len(set(map(len, value))) > 1):
        raise RefusedValue(f"{name} is a ragged sequence of lists, expected an array, or a list of "
                           "arrays, one for each sequence")


class Ragged:
    """Where the steps of sequences lie: what a model knows of an input that is no plain batch.

    Attributes
    ----------
    time : Timeline
    source : {"sequences", "time"}
        How the layers find x: rows (N, I), one sequence after the other, as of a list, or rows
        (T*B, I), step by step, as of a padded array.
    episode_start : booleans (T, B), or None
    name : str
        What the caller's argument is called.
    """

    def __init__(
        self, time: Timeline, episode_start: np.ndarray | None, source: str, name: str
    ) -> None:
        self.time = time
        self.source, self.episode_start, self.name = source, episode_start, name

    @property
    def shape(self) -> tuple[int, int]:
        """The pair (T, B)."""
        return self.time.T, self.time.B

    @property
    def N(self) -> int:
        """How many real steps the sequences have together."""
        return self.time.N

    @property
    def listed(self) -> bool:
        """Whether the caller gave a list."""
        return self.source == "sequences"

    @property
    def alive(self) -> np.ndarray:
        """Which steps are real, booleans (B, T)."""
        return np.arange(self.time.T) < self.time.lengths[:, None]

    @property
    def begins(self) -> np.ndarray:
        """Where the forward and the reverse direction begin an episode, booleans (2, T, B)."""
        T, B = self.shape
        flags = np.zeros((T + 1, B), bool)
        if self.episode_start is not None:
            flags[:T] = self.episode_start
        flags[0] = True
        flags[self.time.lengths, np.arange(B)] = True
        return np.stack([flags[:-1], flags[1:]])

    # ---- from the caller --------------------------------------------------------------------

    @classmethod
    def of_list(
        cls, name: str, value: Any, check: Callable[[str, Any], np.ndarray], episode_start: Any,
        flag: str = "episode_start",
    ) -> tuple[np.ndarray, Ragged]:
        """Return the rows (N, ...) of a list of sequences, a copy, and where they lie.

        Parameters
        ----------
        check : callable
            Takes a sequence's name and the sequence, and returns it as an array.
        episode_start : list of booleans (T_i,), or None
        flag : str
            What it is called.
        """
        if not value:
            raise RefusedValue(f"{name} is an empty {type(value).__name__}, expected at least one "
                               "sequence")
        arrays = [check(f"{name}[{i}]", a) for i, a in enumerate(value)]
        lengths = np.array([len(a) for a in arrays], np.int64)
        x = concatenated(name, arrays)
        T = int(lengths.max())
        flags = None
        if episode_start is not None:
            given = pieces(flag, episode_start, lengths, name)
            for i, (a, n) in enumerate(zip(given, lengths.tolist(), strict=True)):
                _checks.booleans(f"{flag}[{i}]", a, (n,))
            flags = np.zeros((len(lengths), T), bool)
            flags[np.arange(T) < lengths[:, None]] = np.concatenate(given)
            flags = np.ascontiguousarray(flags.T)
        return x, cls(Timeline(lengths, T, flags), flags, "sequences", name)

    @classmethod
    def of_grid(
        cls, name: str, shape: tuple[int, int], lengths: Any, episode_start: Any
    ) -> Ragged | None:
        """Return where the steps of a padded array (T, B, ...) lie; None if it is a plain batch."""
        T, B = shape
        flags = None
        if episode_start is not None:
            flags = np.array(_checks.booleans("episode_start", episode_start, (T, B)), order="C")
        time = _checks.timeline(lengths, flags, "zero", T, B, of=name)
        return None if time is None else cls(time, flags, "time", name)

    def joined(self, name: str, value: Any, tail: tuple[int, ...] = ()) -> np.ndarray:
        """Return what a caller gave for each step as rows (N, *tail), a copy.

        Parameters
        ----------
        value : list of B arrays (T_i, *tail), or array (T, B, *tail), like the input
        """
        if not self.listed:
            a = _checks.numbers(name, value)
            if a.shape != (*self.shape, *tail):
                raise RefusedValue(f"{name} has shape {a.shape}, expected {(*self.shape, *tail)}")
            return np.asarray(a.swapaxes(0, 1)[self.alive])
        lengths = self.time.lengths
        arrays = [_checks.numbers(f"{name}[{i}]", a) for i, a in
                  enumerate(pieces(name, value, lengths, self.name))]
        for i, (a, n) in enumerate(zip(arrays, lengths.tolist(), strict=True)):
            if a.shape != (n, *tail):
                raise RefusedValue(f"{name}[{i}] has shape {a.shape}, expected {(n, *tail)}: "
                                   f"{self.name}[{i}] has {n} steps")
        return concatenated(name, arrays)

    def weights(self, value: Any) -> np.ndarray:
        """Return a caller's weights as (N,): of each step, or, with a list, of each sequence."""
        if not self.listed:
            return self.joined("weights", as_weights(value))
        value = as_list(value)
        if isinstance(value, (list, tuple)) and any(getattr(w, "ndim", 1) for w in value
                                                    if not np.isscalar(w)):
            parts = pieces("weights", value, self.time.lengths, self.name)
            return self.joined("weights", [as_weights(w) for w in parts])
        each = as_weights(value)
        if each.shape != (self.time.B,):
            raise RefusedValue(f"weights has shape {each.shape}, expected {(self.time.B,)}, one "
                               f"for each sequence of {self.name}, or a list like {self.name}")
        return np.repeat(each, self.time.lengths)

    # ---- to the caller ----------------------------------------------------------------------

    def to_caller(self, a: np.ndarray) -> Any:
        """Return rows (N, ...) as the caller has steps: a list, or an array with zeros behind."""
        return split(a, self.time.lengths) if self.listed else self.padded(a)

    def padded(self, a: np.ndarray) -> np.ndarray:
        """Return rows (N, ...) as an array (T, B, ...) with zeros behind."""
        grid = np.zeros((*self.shape, *a.shape[1:]), a.dtype)
        grid.swapaxes(0, 1)[self.alive] = a
        return grid

    def input_to_caller(self, dx: np.ndarray) -> Any:
        """Return rows that lie as those of x as the caller has x."""
        if self.listed:
            return split(dx, self.time.lengths)
        return dx.reshape(*self.shape, *dx.shape[1:])

    # ---- pieces of time ---------------------------------------------------------------------

    def piece(self, steps: slice) -> tuple[Ragged, np.ndarray, Any]:
        """Return the same of some neighbouring steps alone, and where these are.

        Returns
        -------
        piece : Ragged
        rows : int64 (n,)
            Which of the N rows belong to these steps.
        of_x : slice, or int64 (n,)
            Which rows of x do.
        """
        T, B = self.shape
        start, stop = steps.start, min(steps.stop, T)
        lengths = np.clip(self.time.lengths - start, 0, stop - start)
        begins = np.cumsum(self.time.lengths) - self.time.lengths + start
        now = np.arange(stop - start)
        rows = (begins[:, None] + now)[now < lengths[:, None]]
        flags = None if self.episode_start is None else self.episode_start[steps]
        time = Timeline(lengths, stop - start, flags)
        piece = Ragged(time, flags, self.source, self.name)
        return piece, rows, rows if self.listed else slice(start * B, stop * B)


def split(a: np.ndarray, lengths: Any) -> list[np.ndarray]:
    """Return the sequences (T_i, ...) that lie one after the other in an array, no copies."""
    ends = np.cumsum(lengths).tolist()
    return [a[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def concatenated(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    """Return arrays of one dtype, but for empty ones, one after the other."""
    arrays = [a.astype(a.dtype.newbyteorder("="), copy=False) for a in arrays]
    filled = [i for i, a in enumerate(arrays) if len(a)]
    for i in filled:
        if arrays[i].dtype != arrays[filled[0]].dtype:
            raise RefusedType(f"{name}[{i}] is {arrays[i].dtype}, expected "
                              f"{arrays[filled[0]].dtype} like {name}[{filled[0]}]")
    return np.ascontiguousarray(np.concatenate([arrays[i] for i in filled] or arrays[:1]))


def one_sequence(name: str, a: Any, dtype: np.dtype, I: int) -> np.ndarray:
    """Return a sequence of a list, (T_i, I)."""
    a = _checks.numeric(name, a, dtype)
    if a.ndim != 2 or a.shape[1] != I:
        raise RefusedValue(f"{name} has shape {a.shape}, expected (T, {I})")
    return np.asarray(a, dtype)  # in native byte order


def one_text(name: str, a: Any) -> np.ndarray:
    """Return the symbols of a sequence of a list, (T_i,)."""
    symbols = _checks.numbers(name, a)
    if symbols.ndim != 1:
        raise RefusedValue(f"{name} has shape {symbols.shape}, expected (T,)")
    return symbols


def pieces(name: str, value: Any, lengths: Any, of: str) -> list[Any]:
    """Return a list with an entry for each sequence of another list."""
    value = as_list(value)
    if not isinstance(value, (list, tuple)):
        raise RefusedType(f"{name} is {_checks.kind(value)}, expected a list like {of}: an array "
                          "for each sequence")
    if len(value) != len(lengths):
        raise RefusedValue(f"{name} has {len(value)} sequences, expected {len(lengths)}: as many "
                           f"as {of}")
    return list(value)
