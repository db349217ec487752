"""What training reads: batches as a function of the number of the step.

Because a batch depends on the step and a seed alone, a run that was interrupted goes on with just
the batches that it would have read. For other data write a function of the step. Letters: N
elements or sequences, T steps, B rows of a batch, I features.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.models.ragged import as_list, is_list
from fastrnn.training.options import takes

__all__ = ["Batch", "Generated", "Samples", "SeriesWindows", "Windows"]

Data = Callable[[int], "Batch"]
INT32 = np.iinfo(np.int32)


@dataclasses.dataclass
class Batch:
    """What one step of training reads.

    Attributes
    ----------
    inputs : array, list of arrays (T_i, ...), or tuple
        What the model's loss takes before the targets: x, or the pair (source, inputs) of an
        EncoderDecoder. One array or list becomes a tuple of it.
    targets, weights, context
        As for the model's loss.
    first : bool
        Whether the sequences begin here; if not, the state of the step before is carried on.
    episode_start
        As for the model's loss: where the state is zero instead.
    lengths
        As for the model's loss: the steps of each row of a padded array; for an EncoderDecoder the
        pair of those of the source and of the inputs.
    """

    inputs: Any
    targets: Any
    weights: Any = None
    context: Any = None
    first: bool = True
    episode_start: Any = None
    lengths: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, tuple):
            self.inputs = (as_list(self.inputs),)

    @property
    def size(self) -> int:
        """Real steps that are read, over all rows, of all inputs together."""
        return sum(sum(map(len, x)) if is_list(x) else math.prod(np.shape(x)[:2]) if n is None
                   else int(np.sum(n)) for x, n in self.read)

    @property
    def read(self) -> list[tuple[Any, Any]]:
        """The inputs, each with the lengths of its rows; None: all steps are real."""
        if self.lengths is None:
            return [(x, None) for x in self.inputs]
        lengths = [self.lengths] if len(self.inputs) == 1 else self.lengths
        return list(zip(self.inputs, lengths, strict=True))


def batch_of(data: Data, step: int) -> Batch:
    """Return the batch of a step, checked.

    It has a step to read; but Samples may draw a batch of nothing but empty sequences.
    """
    batch: Any = data(step)
    if not isinstance(batch, Batch):
        raise RefusedType(f"the batch of step {step + 1} is {_checks.kind(batch)}, expected a "
                          "Batch: let the function return Batch(x, targets)")
    if not isinstance(data, Samples) and not _has_steps(batch):
        raise RefusedValue(f"the batch of step {step + 1} has no sequence with a step, expected at "
                           "least one")
    return batch


def _has_steps(batch: Batch) -> bool:
    """Whether there is something to read, or what the loss will refuse by its name."""
    try:
        return batch.size > 0
    except (TypeError, ValueError):
        return True


def check_data(name: str, data: Any) -> Data:
    """Return `data` if it is a function of the step."""
    if isinstance(data, (list, tuple)) and any(isinstance(a, Batch) for a in data):
        raise RefusedType(f"{name} is a {type(data).__name__} of batches, expected a function of "
                          "the step: lambda step: batches[step % len(batches)]")
    if isinstance(data, Batch):
        raise RefusedType(f"{name} is a Batch, expected a function of the step that returns one")
    if not callable(data):
        raise RefusedType(f"{name} is {_checks.kind(data)}, expected a function of the step, such "
                          "as Windows or Samples")
    if not takes(data, 0):
        raise RefusedType(f"{name} cannot be called with a step, expected a function of the step, "
                          "such as lambda step: Batch(x, targets)")
    made: Data = data
    return made


def summary(a: Any) -> dict[str, Any]:
    """Return shape, dtype and a checksum of an array or a list: what a resumed run compares."""
    if isinstance(a, list):
        crc = zlib.crc32(np.array([len(one) for one in a], np.int64).data)
        for one in a:
            crc = zlib.crc32(np.ascontiguousarray(one).data.cast("B") if one.size else b"", crc)
        return {"shape": [len(a), *a[0].shape[1:]], "dtype": a[0].dtype.name, "crc": crc}
    rows = a if a.flags.c_contiguous or a.ndim < 2 else a.swapaxes(0, 1)
    crc, piece = 0, max(1, 2**20 * len(rows) // max(1, rows.size))
    for start in range(0, len(rows), piece):
        crc = zlib.crc32(np.ascontiguousarray(rows[start : start + piece]).data.cast("B"), crc)
    return {"shape": list(a.shape), "dtype": a.dtype.name, "crc": crc}


def _elements(name: str, value: Any) -> np.ndarray:
    """Return a long sequence as an array (N,) of symbols, or (N, ...) of numbers."""
    if isinstance(value, str):
        raise RefusedType(f"{name} is a str, expected an array of symbols (N,) or of vectors "
                          "(N, I): text.encode() gives bytes, LanguageModel.encode its symbols")
    if isinstance(value, memoryview) and value.format == "c":  # characters; others are numbers
        value = value.tobytes()
    if isinstance(value, (bytes, bytearray)):
        return np.frombuffer(value, np.uint8)
    a = _checks.numbers(name, value)
    if a.ndim == 0:
        raise RefusedValue(f"{name} has shape (), expected (N,) or (N, I)")
    return a[:, None] if a.ndim == 1 and a.dtype.kind == "f" else a


def _whole(a: np.ndarray) -> np.ndarray:
    """Return symbols as the int32 that kernels read; the model refuses those beyond it."""
    fits = a.dtype.kind in "iu" and (np.can_cast(a.dtype, np.int32) or not a.size or (
        INT32.min <= a.min() and a.max() <= INT32.max))
    return a.astype(np.int32, copy=False) if fits else a


class Windows:
    """A long sequence in B rows side by side, read in windows of T steps, again and again.

    Row b begins at element b N/B, so that the state that training carries from window to window
    belongs to its row: truncated backpropagation through time. The last window of the rows is
    shorter if their length is not a multiple of T.

    Parameters
    ----------
    sequence : array (N,) or (N, I), or bytes
        Symbols, real vectors, or real numbers (N,): vectors of one feature.
    T, B : int
    targets : array (N, ...) or (N - 1, ...), optional
        One for each element (the last may be missing); by default the sequence's next element.
    episode_start : booleans (N,), optional
        The elements before which the state is zero: several sequences, one after the other.

    Attributes
    ----------
    count : int
        Windows of one walk over the sequence.

    Raises
    ------
    TypeError, ValueError
        If the sequence is no array of numbers, a row is shorter than one window, or there are
        targets for another number of elements.
    """

    _weights: Any = None
    _start: Any = None

    @public
    def __init__(
        self, sequence: Any, T: int, B: int, targets: Any = None, episode_start: Any = None
    ) -> None:
        T, B = _checks.positive("T", T), _checks.positive("B", B)
        x = _elements("sequence", sequence)
        y = x[1:] if targets is None else _elements("targets", targets)
        N = len(x)
        if len(y) not in (N - 1, N):
            raise RefusedValue(f"targets has {len(y)} elements, expected {N}, as many as sequence, "
                               "or one less")
        per = len(y) // B
        if per < T:
            raise RefusedValue(
                f"sequence has {N} elements, expected at least {B * T + N - len(y)} for {B} rows "
                f"of {T} steps; give more, or smaller windows or batches")
        given = [x, y]
        if episode_start is not None:
            given.append(_checks.booleans("episode_start", episode_start, (N,)))
        x, y, *start = (
            np.ascontiguousarray(a[: per * B].reshape(B, per, *a.shape[1:]).swapaxes(0, 1))
            for a in given)  # (per, B, ...)
        self._set(x, y, T, B)
        self._start = start[0] if start else None

    @classmethod
    def of_series(
        cls, x: Any, targets: Any, T: int, B: int, weights: Any = None, episode_start: Any = None
    ) -> Self:
        """Return windows over series side by side, (steps, N, ...), B of them at a time.

        Those of a SeriesWindows are lists of N arrays (T_i, ...).
        """
        made = cls.__new__(cls)
        made._weights, made._start = weights, episode_start
        made._set(x, targets, T, B)
        return made

    def _set(self, x: Any, targets: Any, T: int, B: int) -> None:
        self._x, self._targets, self.T, self.B = x, targets, T, B
        self._per_row = -(-len(x) // T)
        self.count = self._per_row * -(-x.shape[1] // B)

    @public
    def __call__(self, step: int) -> Batch:
        """Return the batch of a step, x and targets (T, B, ...).

        Parameters
        ----------
        step : int
            From 0 on.
        """
        step = _checks.positive("step", step, least=0) % self.count
        group, window = divmod(step, self._per_row)
        place = (slice(window * self.T, (window + 1) * self.T),
                 slice(group * self.B, (group + 1) * self.B))
        return Batch((_whole(self._x[place]),), _whole(self._targets[place]),
                     None if self._weights is None else self._weights[place], first=window == 0,
                     episode_start=None if self._start is None else self._start[place])

    def fingerprint(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with the one before."""
        arrays = [a for a in (self._x, self._targets, self._weights, self._start) if a is not None]
        return {"data": [summary(a) for a in arrays], "window": self.T, "batch_size": self.B}


class SeriesWindows(Windows):
    """Series of different lengths, B of them at a time, read in windows of T steps.

    In the windows after its end a series is an empty array: its state stays as it is.

    Parameters
    ----------
    x : list of N arrays (T_i, ...)
    T, B : int
    targets : list of N arrays (T_i, ...)
    weights, episode_start : lists of N arrays (T_i,), optional

    Attributes
    ----------
    count : int
        Windows of one walk over all series.

    Raises
    ------
    TypeError, ValueError
        If the lists do not fit each other, or no series has a step.
    """

    @public
    def __init__(
        self, x: Any, T: int, B: int, targets: Any, *, weights: Any = None,
        episode_start: Any = None,
    ) -> None:
        x = _series("x", x)
        self._weights = None if weights is None else _like(x, "weights", weights)
        self._start = None if episode_start is None else _like(x, "episode_start", episode_start)
        self._set(x, _like(x, "targets", targets), _checks.positive("T", T),
                  _checks.positive("B", B))

    def _set(self, x: Any, targets: Any, T: int, B: int) -> None:
        self._x, self._targets, self.T, self.B = x, targets, T, B
        windows = [-(-max(map(len, x[start : start + B])) // T) for start in range(0, len(x), B)]
        self._ends = np.cumsum(windows)  # of each group of B series
        self.count = int(self._ends[-1])
        if not self.count:
            raise RefusedValue(f"x has {len(x)} series of no steps, expected at least one step")

    @public
    def __call__(self, step: int) -> Batch:
        """Return the batch of a step, lists of B arrays of at most T steps.

        Parameters
        ----------
        step : int
            From 0 on.
        """
        step = _checks.positive("step", step, least=0) % self.count
        group = int(np.searchsorted(self._ends, step, "right"))
        window = step - (int(self._ends[group - 1]) if group else 0)
        rows = slice(group * self.B, (group + 1) * self.B)
        steps = slice(window * self.T, (window + 1) * self.T)
        x, targets, weights, start = (
            None if of is None else [a[steps] for a in of[rows]]
            for of in (self._x, self._targets, self._weights, self._start))
        return Batch((x,), targets, weights, first=window == 0, episode_start=start)


class Samples:
    """Sequences in batches whose order is drawn anew for each epoch.

    Parameters
    ----------
    x : array (T, N, ...), or list of N arrays (T_i, ...)
        N sequences. With a source: what the decoder reads.
    targets : array (T, N, ...), or (N, ...), as given by `axis`
        With a list and axis 1 a list of N arrays (T_i, ...), too.
    batch_size : int
        Sequences B of a batch; the last batch of an epoch has the rest.
    axis : {1, 0}
        Which axis of the targets counts the sequences: 1, or 0 for one target each.
    weights : array (T, N), or (N,) with axis 0, or list of N arrays (T_i,), optional
    context : array (N, C), optional
    episode_start : booleans (T, N), or list of N arrays (T_i,), optional
        Where an episode begins inside a sequence.
    source : array (S, N, ...), or list of N arrays (S_i, ...), optional
        For an EncoderDecoder: what the encoder reads.
    seed : int
        Seed of the order.
    shuffle : bool
        False reads the sequences in their own order.

    Attributes
    ----------
    count : int
        Batches of an epoch.

    Raises
    ------
    TypeError, ValueError
        If x is no array of sequences, or targets, weights, context or source are for another
        number of them.
    """

    @public
    def __init__(
        self, x: Any, targets: Any, batch_size: int, *, axis: int = 1, weights: Any = None,
        context: Any = None, episode_start: Any = None, source: Any = None, seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.batch_size = B = _checks.positive("batch_size", batch_size)
        self.axis = _checks.below("axis", axis, 2)
        self.seed = _seed(seed)
        self.shuffle = _checks.flag("shuffle", shuffle)
        x = as_list(x)
        listed = is_list(x)
        self.x = _sequences(x, listed)
        if not listed and (self.x.ndim < 2 or not self.x.shape[1]):
            raise RefusedValue(f"x has shape {self.x.shape}, expected (T, N, ...) of at least one "
                               "sequence: time first, then the sequences")
        self.N = N = len(self.x) if listed else self.x.shape[1]

        def of_each(name: str, value: Any, axis: int) -> Any:
            return _like(self.x, name, value) if listed and axis else _of_each(name, value, axis, N)

        self.targets = of_each("targets", targets, self.axis)
        if weights is not None and not is_list(weights) and (
                mask := _checks.as_array("weights", weights, "numbers")).dtype == bool:
            weights = mask.astype(np.float32)
        self.weights = None if weights is None else of_each("weights", weights, self.axis)
        self.context = None if context is None else _of_each("context", context, 0, N)
        self.episode_start: Any = None
        if episode_start is not None and listed:
            self.episode_start = _like(self.x, "episode_start", episode_start)
        elif episode_start is not None:
            self.episode_start = _checks.booleans("episode_start", episode_start, self.x.shape[:2])
        self.source: Any = None
        if is_list(source := as_list(source)):
            self.source = _series("source", source)
            if len(self.source) != N:
                raise RefusedValue(f"source has {len(self.source)} sequences, expected {N}: as "
                                   "many as x")
        elif source is not None:
            self.source = _of_each("source", source, 1, N)
        self.count = -(-N // B)
        self._epoch, self._order = -1, np.empty(0, int)  # of the latest epoch: drawn once for each

    @public
    def __call__(self, step: int) -> Batch:
        """Return the batch of a step.

        Parameters
        ----------
        step : int
            From 0 on.
        """
        epoch, k = divmod(_checks.positive("step", step, least=0), self.count)
        now: Any = slice(k * self.batch_size, (k + 1) * self.batch_size)
        if self.shuffle:
            if epoch != self._epoch:
                rng = np.random.default_rng([self.seed, epoch])
                self._epoch, self._order = epoch, rng.permutation(self.N)
            now = self._order[now]
        inputs: tuple[Any, ...] = (_taken(self.x, 1, now),)
        if self.source is not None:
            inputs = (_taken(self.source, 1, now), *inputs)
        return Batch(inputs, _taken(self.targets, self.axis, now),
                     _taken(self.weights, self.axis, now), _taken(self.context, 0, now),
                     episode_start=_taken(self.episode_start, 1, now))

    def fingerprint(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with the one before."""
        given = (self.x, self.targets, self.weights, self.context, self.episode_start, self.source)
        arrays = [a for a in given if a is not None]
        return {"data": [summary(a) for a in arrays], "batch_size": self.batch_size,
                "seed": self.seed, "shuffle": self.shuffle}


def _sequences(x: Any, listed: bool) -> Any:
    """Return the sequences of a list, or an array of numbers."""
    return _series("x", x) if listed else _checks.numbers("x", x)


def _taken(of: Any, axis: int, now: Any) -> Any:
    """Return some of the sequences of an array, along an axis, or of a list; None of None."""
    if of is None:
        return None
    if isinstance(of, list):
        return of[now] if isinstance(now, slice) else [of[i] for i in now]
    return of[:, now] if axis else of[now]


def _series(name: str, value: Any) -> list[np.ndarray]:
    """Return the arrays (T_i, ...) of a list."""
    value = as_list(value)
    if not isinstance(value, (list, tuple)):
        raise RefusedType(f"{name} is {_checks.kind(value)}, expected a list of arrays (T, ...)")
    if not value:
        raise RefusedValue(f"{name} is an empty {type(value).__name__}, expected at least one "
                           "sequence")
    arrays = [_checks.numbers(f"{name}[{i}]", a) for i, a in enumerate(value)]
    for i, a in enumerate(arrays):
        if a.ndim != arrays[0].ndim or a.ndim < 1 or a.shape[1:] != arrays[0].shape[1:]:
            raise RefusedValue(f"{name}[{i}] has shape {a.shape}, expected "
                               f"{('T', *arrays[0].shape[1:])} like {name}[0]".replace("'", ""))
        if len(a) and a.dtype != arrays[0].dtype and len(arrays[0]):
            raise RefusedType(f"{name}[{i}] is {a.dtype}, expected {arrays[0].dtype} like "
                              f"{name}[0]")
    return arrays


def _like(x: list[np.ndarray], name: str, value: Any) -> list[np.ndarray]:
    """Return a list of arrays, each with as many steps as that of x."""
    value = as_list(value)
    if not isinstance(value, (list, tuple)) or len(value) != len(x):
        came = f"has {len(value)} sequences" if isinstance(value, (list, tuple)) else (
            f"is {_checks.kind(value)}")
        raise RefusedValue(f"{name} {came}, expected a list of {len(x)} arrays like x")
    arrays = [np.asarray(a) if name == "episode_start" or np.asarray(a).dtype == bool
              else _checks.numbers(f"{name}[{i}]", a) for i, a in enumerate(value)]
    for i, (a, n) in enumerate(zip(arrays, map(len, x), strict=True)):
        if a.ndim < 1 or len(a) != n:
            raise RefusedValue(f"{name}[{i}] has shape {a.shape}, expected {n} steps like x[{i}]")
        if name == "episode_start":
            _checks.booleans(f"{name}[{i}]", a, (n,))
    return arrays


def _of_each(name: str, value: Any, axis: int, N: int) -> np.ndarray:
    """Return an array with N entries along an axis."""
    a = _checks.numbers(name, value)
    if a.ndim <= axis or a.shape[axis] != N:
        raise RefusedValue(f"{name} has shape {a.shape}, expected {N} along axis {axis}: one for "
                           "each sequence of x")
    return a


def _seed(seed: Any) -> int:
    (made,) = _checks.seeds(seed, 1)
    del made
    if seed is None:
        raise RefusedValue("seed is None, expected a whole number of at least 0")
    return int(seed)


class Generated:
    """Batches that a function draws: ``draw(rng)`` returns a Batch.

    Parameters
    ----------
    draw : callable
        Takes a numpy.random.Generator, another one for each step.
    seed : int

    Raises
    ------
    TypeError, ValueError
        If `draw` is no function, or the seed no whole number of at least 0.
    """

    @public
    def __init__(self, draw: Callable[[np.random.Generator], Batch], seed: int = 0) -> None:
        if not callable(draw):
            raise RefusedType(f"draw is {_checks.kind(draw)}, expected a function that takes a "
                              "numpy.random.Generator and returns a Batch")
        self.draw, self.seed = draw, _seed(seed)

    @public
    def __call__(self, step: int) -> Batch:
        """Return the batch of a step.

        Parameters
        ----------
        step : int
            From 0 on.
        """
        step = _checks.positive("step", step, least=0)
        return self.draw(np.random.default_rng([self.seed, step]))

    def fingerprint(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with the one before."""
        return {"seed": self.seed}
