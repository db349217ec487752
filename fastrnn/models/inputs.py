"""Users' data turned into arrays for a model, once, or refused with one sentence.

Users have sequences first: (N, T, I), as Keras and scikit-learn have it, or a list of (T_i, I).
Letters: N sequences, T steps (of the longest), I features, K numbers of an output, V symbols.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedIndex, RefusedType, RefusedValue
from fastrnn._kernels.check import is_masked
from fastrnn.models.losses import as_weights
from fastrnn.models.ragged import as_list, concatenated, pieces, split

if TYPE_CHECKING:
    from fastrnn.models.sequence import SequenceModel

__all__ = ["Sequences", "contexts", "episode_starts", "next_steps", "sequences", "targets",
           "weights"]


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Sequences of a user.

    Attributes
    ----------
    x : array (N, T, I), or int32 (N, T) of symbols; or a list of N arrays (T_i, I) or (T_i,)
    one : bool
        Whether the user gave one sequence without an axis for it: a series.
    """

    x: Any
    one: bool

    @property
    def N(self) -> int:
        """Number of sequences."""
        return len(self.x)

    @property
    def T(self) -> int:
        """Number of steps, of the longest sequence."""
        return int(self.x.shape[1]) if self.lengths is None else max(self.lengths)

    @property
    def listed(self) -> bool:
        """Whether the sequences are a list, of different lengths."""
        return isinstance(self.x, list)

    @property
    def lengths(self) -> list[int] | None:
        """Steps of each sequence, if they are a list."""
        return [len(a) for a in self.x] if self.listed else None


def sequences(model: SequenceModel, x: Any) -> Sequences:
    """Return the sequences that a user passed for a model.

    Parameters
    ----------
    model : SequenceModel
    x : array (N, T, I), or (T, I): one series of I features
        Anything that NumPy reads: arrays of any number dtype, lists of arrays, a column or a table
        of pandas, a tensor. With I = 1 also (N, T), and (T,): one series. A model of symbols takes
        whole numbers (N, T), or (T,): one series. The arrays of a list, (T_i, I) or (T_i,), may
        differ in their number of steps; then they have one dtype.

    Raises
    ------
    TypeError, ValueError, IndexError
        If it is something else, has NaN or infinities, or a symbol is not below V.
    """
    x = as_list(x)
    if isinstance(x, (list, tuple)) and not x:
        raise RefusedValue(f"x is an empty {type(x).__name__}, expected at least one sequence")
    if (given := _different("x", x)) is not None:
        return Sequences(_listed_x(model, given), False)
    if model.vocab_size is not None:
        a = _whole("x", _stacked("x", x))
        if a.ndim not in (1, 2):
            raise RefusedValue(f"x has shape {a.shape}, expected symbols (N, T), or (T,): one "
                               "series")
        a = _in_range("x", a, model.vocab_size, "symbols")
        return Sequences(a[None] if a.ndim == 1 else a, a.ndim == 1)
    a = _floats("x", _stacked("x", x), model.dtype)
    I = model.input_size
    if a.ndim == 1 and I == 1:
        return Sequences(a[None, :, None], True)
    if a.ndim == 2 and I == 1 and isinstance(x, (list, tuple)) and all(
            getattr(one, "ndim", 0) == 1 for one in x):
        return Sequences(a[:, :, None], False)  # (T,) each, also if they have one step
    if a.ndim == 2 and a.shape[1] == I:
        return Sequences(a[None], True)
    if a.ndim == 2 and I == 1:
        return Sequences(a[:, :, None], False)
    if a.ndim == 3 and a.shape[2] == I:
        return Sequences(a, False)
    other = ", or (N, T), or one series (T,)" if I == 1 else ""
    raise RefusedValue(f"x has shape {a.shape}, expected (N, T, {I}), or one series (T, {I})"
                       f"{other}: the model reads {I} feature{'s' if I > 1 else ''} a step")


def _listed_x(model: SequenceModel, given: list[np.ndarray]) -> list[np.ndarray]:
    """Return sequences of different lengths as rows of one array, (T_i, I), or int32 (T_i,)."""
    I, arrays = model.input_size, given
    if model.vocab_size is None and I == 1:
        arrays = [a[:, None] if a.ndim == 1 else a for a in given]
    tail = () if model.vocab_size is not None else (I,)
    for i, a in enumerate(arrays):
        if a.shape[1:] != tail or a.ndim == 0:
            expected = "(T,): symbols" if not tail else f"(T, {I})"
            raise RefusedValue(f"x[{i}] has shape {given[i].shape}, expected {expected}")
    lengths = [len(a) for a in arrays]
    flat = concatenated("x", arrays)
    if tail:
        return split(_floats("x", flat, model.dtype, None, lengths), lengths)
    symbols = _whole("x", flat, None, lengths)
    return split(_in_range("x", symbols, int(model.vocab_size or 0), "symbols"), lengths)


def targets(model: SequenceModel, y: Any, of: Sequences, weights: Any = None) -> Any:
    """Return the targets that a user passed for these sequences.

    Parameters
    ----------
    model : SequenceModel
    y : array (N, T, K), or with readout "last" (N, K)
        Without the K for softmax, and if K = 1; without the N for one series. Classes may be a
        column, too. With a list x and readout "every" a list of arrays (T_i, K).
    weights : array or list, optional
        As `weights` below returns them: a target of weight 0 may be anything, NaN too.

    Returns
    -------
    array or list of arrays
        With readout "every" (N, T, K) or int32 (N, T), with "last" (N, K) or int32 (N,).
    """
    if of.lengths is not None and model.readout == "every":
        return _listed_targets(model, y, of.lengths, weights)
    rows = (of.N, of.T) if model.readout == "every" else (of.N,)
    K, softmax = model.output_size, model.loss_name == "softmax"
    a = _stacked("y", y)
    expected = rows if softmax else (*rows, K)
    shapes = {expected} | ({(*rows, 1)} if softmax else {rows} if K == 1 else set())
    if of.one:
        shapes |= {shape[1:] for shape in shapes}
    if a.shape not in shapes:
        raise RefusedValue(f"y has shape {a.shape}, expected {expected}: {_what(model)}")
    return _goals(model, a.reshape(expected), None if weights is None else weights > 0)


def _listed_targets(
    model: SequenceModel, y: Any, lengths: list[int], weights: list[np.ndarray] | None
) -> list[np.ndarray]:
    """Return targets for the steps of sequences of different lengths."""
    K, softmax = model.output_size, model.loss_name == "softmax"
    arrays = []
    for i, (a, n) in enumerate(zip(_for_each("y", y, lengths), lengths, strict=True)):
        expected = (n,) if softmax else (n, K)
        other = (n, 1) if softmax else (n,) if K == 1 else expected
        if a.shape not in (expected, other):
            raise RefusedValue(f"y[{i}] has shape {a.shape}, expected {expected}: {_what(model)}, "
                               f"and x[{i}] has {n} step{'s' * (n != 1)}")
        arrays.append(a.reshape(expected))
    used = None if weights is None else np.concatenate(weights) > 0
    return split(_goals(model, concatenated("y", arrays), used, lengths), lengths)


def _goals(
    model: SequenceModel, a: np.ndarray, used: np.ndarray | None, lengths: list[int] | None = None
) -> np.ndarray:
    """Return targets of the right shape for a model's loss, if their values fit."""
    if model.loss_name == "softmax":
        return _in_range("y", _whole("y", a, used, lengths), model.output_size, "classes",
                         ignore=-100)
    a = _floats("y", a, model.dtype, used, lengths)
    if model.loss_name == "bce":
        counted = a if used is None else a[used]
        if counted.size and not (counted.min() >= 0 and counted.max() <= 1):
            raise RefusedValue(f"y has numbers from {counted.min()} to {counted.max()}, expected 0 "
                               "to 1: chances, for the loss 'bce'")
    return a


def next_steps(model: SequenceModel, of: Sequences) -> tuple[Sequences, Any]:
    """Return inputs and targets that forecast: each target is the next step of the input."""
    if model.readout != "every":
        raise RefusedValue("y is None with readout 'last', expected a target for each sequence")
    symbols = model.vocab_size is not None
    K = model.vocab_size if symbols else model.input_size
    if model.output_size != K or symbols != (model.loss_name == "softmax"):
        raise RefusedValue(f"y is None for a model with {model.output_size} outputs of loss "
                           f"{model.loss_name!r}, expected targets: without them each output "
                           f"is compared with the next step of x, {K} numbers")
    if of.T < 2:
        raise RefusedValue(f"x has {of.T} steps, expected at least 2 where y is None: each target "
                           "is the next step of x")
    if of.lengths is not None:
        return Sequences([a[:-1] for a in of.x], False), [a[1:] for a in of.x]
    return Sequences(of.x[:, :-1], of.one), of.x[:, 1:]


def goals(
    model: SequenceModel, of: Sequences, y: Any, w: Any, flags: Any
) -> tuple[Sequences, Any, Any, Any]:
    """Return sequences with their targets, weights and episode starts, that a user passed.

    Without y each target is the next step of the input, within its episode.
    """
    start = episode_starts(flags, of)
    if y is not None:
        w = weights(model, w, of)
        return of, targets(model, y, of, w), w, start  # the targets of weight 0 may be anything
    of, found = next_steps(model, of)
    w = weights(model, w, of)
    if start is not None and of.lengths is None:
        within = ~start[:, 1:]
        start, w = start[:, :-1], within.astype(np.float64) if w is None else w * within
    elif start is not None:
        w = [(1.0 if w is None else w[i]) * ~a[1:] for i, a in enumerate(start)]
        start = [a[:-1] for a in start]
    return of, found, w, start


def weights(model: SequenceModel, w: Any, of: Sequences) -> Any:
    """Return the weights (N, T), or (N,) with readout "last", that a user passed.

    With a list and readout "every" they are a list of arrays (T_i,).
    """
    if w is None:
        return None
    if of.lengths is not None and model.readout == "every":
        return _listed_weights(w, of.lengths)
    expected = (of.N, of.T) if model.readout == "every" else (of.N,)
    a = as_weights(w)
    if of.one and a.shape == expected[1:]:
        a = a[None]
    if a.shape == (of.N,) and len(expected) == 2:  # one for each sequence
        a = np.broadcast_to(a[:, None], expected)
    if a.shape != expected:
        raise RefusedValue(f"weights has shape {a.shape}, expected {expected}")
    return _nonnegative(a)


def _listed_weights(w: Any, lengths: list[int]) -> list[np.ndarray]:
    """Return the weights of sequences of different lengths."""
    w = as_list(w)
    if not isinstance(w, (list, tuple)) or all(
            np.isscalar(a) or getattr(a, "ndim", 1) == 0 for a in w):  # one for each sequence
        each = as_weights(w)
        if each.shape != (len(lengths),):
            raise RefusedValue(f"weights has shape {each.shape}, expected {(len(lengths),)}, or a "
                               "list like x")
        return split(_nonnegative(np.repeat(each, lengths)), lengths)
    arrays = []
    for i, (a, n) in enumerate(zip(_for_each("weights", w, lengths), lengths, strict=True)):
        if a.shape != (n,):
            raise RefusedValue(f"weights[{i}] has shape {a.shape}, expected {(n,)}: x[{i}] has {n} "
                               f"step{'s' * (n != 1)}")
        arrays.append(as_weights(a))
    return split(_nonnegative(np.concatenate(arrays)), lengths)


def _nonnegative(w: np.ndarray) -> np.ndarray:
    if w.size and not (np.isfinite(w).all() and w.min() >= 0):
        raise RefusedValue(f"weights has numbers from {w.min()} to {w.max()}, expected finite ones "
                           "of at least 0")
    return w


def episode_starts(flags: Any, of: Sequences) -> Any:
    """Return where episodes begin, booleans (N, T) or a list of (T_i,), that a user passed."""
    if flags is None:
        return None
    if of.lengths is None:
        shape = (of.T,) if of.one and np.ndim(flags) == 1 else (of.N, of.T)
        a = _checks.booleans("episode_start", flags, shape)
        return a[None] if a.ndim == 1 else a
    return [_checks.booleans(f"episode_start[{i}]", a, (n,)) for i, (a, n) in
            enumerate(zip(_for_each("episode_start", flags, of.lengths), of.lengths, strict=True))]


def contexts(model: SequenceModel, context: Any, of: Sequences) -> np.ndarray | None:
    """Return the contexts (N, C) that a user passed; (C,) for one series."""
    if model.context_size is None:
        if context is not None:
            raise RefusedValue("context is given, expected none: the model has no context_size")
        return None
    expected = (of.N, model.context_size)
    if context is None:
        raise RefusedValue(f"context is None, expected an array {expected}: the model has a "
                           "context_size")
    a = _stacked("context", context)
    if of.one and a.shape == expected[1:]:
        a = a[None]
    if a.shape != expected:
        raise RefusedValue(f"context has shape {a.shape}, expected {expected}")
    return _floats("context", a, model.dtype)


def _what(model: SequenceModel) -> str:
    each = "step" if model.readout == "every" else "sequence (readout 'last')"
    kind = "one class" if model.loss_name == "softmax" else (
        f"{model.output_size} number{'s' if model.output_size > 1 else ''}")
    return f"{kind} for each {each}"


# ---- sequences of different lengths --------------------------------------------------------------


def _different(name: str, data: Any) -> list[np.ndarray] | None:
    """Return the arrays of a list of sequences of different lengths; None for anything else."""
    if not isinstance(data, (list, tuple)) or len({_length(a) for a in data} - {-1}) < 2:
        return None
    return [_stacked(f"{name}[{i}]", a) for i, a in enumerate(data)]


def _length(a: Any) -> int:
    """Return how many steps a sequence has; -1 of a number or a text."""
    try:
        return -1 if isinstance(a, (str, bytes)) else len(a)
    except TypeError:
        return -1


def _for_each(name: str, value: Any, lengths: list[int]) -> list[np.ndarray]:
    """Return an array for each sequence of x, from a list of as many."""
    return [_stacked(f"{name}[{i}]", a) for i, a in enumerate(pieces(name, value, lengths, "x"))]


def _named(name: str, place: tuple[int, ...], lengths: list[int] | None) -> str:
    """Return what to call a place in an array, or in sequences that lie one after the other."""
    if lengths is None:
        return f"{name}{list(place)}"
    ends = np.cumsum(lengths)
    i = int(np.searchsorted(ends, place[0], "right"))
    return f"{name}[{i}]{[place[0] - int(ends[i]) + lengths[i], *place[1:]]}"


# ---- arrays --------------------------------------------------------------------------------------


def _stacked(name: str, data: Any) -> np.ndarray:
    """Return an array of anything array-like; sequences of different lengths are refused."""
    data = as_list(data)
    if isinstance(data, (str, bytes)):
        raise RefusedType(f"{name} is text, expected numbers; a LanguageModel has train_on and "
                          "encode for text")
    if data is None:
        raise RefusedType(f"{name} is None, expected numbers")
    if is_masked(data):
        raise RefusedType(f"{name} is a masked array with masked places, expected an array: pass "
                          "weights of 0 for them")
    lengths: set[int] = set()
    if isinstance(data, (list, tuple)):
        with contextlib.suppress(TypeError):  # numbers have no length
            lengths = {len(a) for a in data if not isinstance(a, (str, bytes))}
    if lengths and any(map(is_masked, data)):
        raise RefusedType(f"{name} has a masked array with masked places, expected arrays: pass "
                          "weights of 0 for them")
    if len(lengths) > 1:
        raise RefusedValue(f"{name} is a list of sequences of {min(lengths)} to {max(lengths)} "
                           "steps, expected one length")
    if isinstance(data, (list, tuple)) and any(map(_is_table, data)):
        data = [_stacked(name, one) if _is_table(one) else one for one in data]
    try:
        a = np.asarray(data)
    except ValueError as error:
        raise RefusedValue(f"{name} is a ragged sequence, expected an array: steps of equally many "
                           "features, sequences of one length") from error
    except Exception as error:
        raise RefusedType(f"{name} is {_checks.kind(data)}, expected numbers: {error}") from error
    if a.dtype.kind == "O" and _is_table(data):
        return np.asarray(data.to_numpy(np.float64, na_value=np.nan))  # columns of several dtypes
    if a.dtype.kind not in "biuf":
        if a.ndim == 0 and a is not data:  # a dict, a set, a generator
            raise RefusedType(f"{name} is {_checks.kind(data)}, expected numbers")
        raise RefusedType(f"{name} has dtype {a.dtype}, expected numbers")
    return a


def _is_table(data: Any) -> bool:
    """Whether it is a table or a column of pandas that has numbers and booleans alone."""
    dtypes = getattr(data, "dtypes", None)
    if dtypes is None or not hasattr(data, "to_numpy"):
        return False
    columns = dtypes if getattr(data, "ndim", 0) == 2 else [dtypes]
    return all(getattr(dtype, "kind", "O") in "biuf" for dtype in columns)


def _floats(
    name: str, a: np.ndarray, dtype: np.dtype, used: np.ndarray | None = None,
    lengths: list[int] | None = None,
) -> np.ndarray:
    """Return finite numbers of a dtype; rows that are not used may have anything.

    With `lengths`, (M, ...) are the steps of sequences, one after the other.
    """
    with np.errstate(over="ignore"):
        converted = np.asarray(a, dtype, order="C")
    finite = np.isfinite(converted)
    if used is not None:
        finite |= ~used[..., None]
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        advice = (f" of {dtype}" if np.isfinite(a[place]) else
                  "; replace them, or pass weights of 0 for padding" if name == "y" else "")
        raise RefusedValue(f"{_named(name, place, lengths)} is {a[place]}, expected finite numbers"
                           f"{advice}")
    return converted


def _whole(
    name: str, a: np.ndarray, used: np.ndarray | None = None, lengths: list[int] | None = None
) -> np.ndarray:
    """Return whole numbers as int64; those that are not used become 0."""
    if used is not None:
        a = np.where(used, a, 0)
    if a.dtype.kind == "f":
        a = a.astype(np.float64)  # of float16 2^31 is infinite
        wrong = ~np.isfinite(a)
        wrong |= a != np.floor(a)
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise RefusedType(f"{_named(name, place, lengths)} is {a[place]}, expected whole "
                              "numbers")
        if a.size and np.abs(a).max() >= 2**31:
            raise RefusedIndex(f"{name} has the number {a.flat[np.abs(a).argmax()]:g}, expected "
                               "numbers below 2^31")
    elif a.dtype.kind == "u" and a.size and a.max() >= 2**31:
        raise RefusedIndex(f"{name} has the number {a.max()}, expected numbers below 2^31")
    return a.astype(np.int64)


def _in_range(
    name: str, a: np.ndarray, count: int, what: str, ignore: int | None = None
) -> np.ndarray:
    counted = a if ignore is None else a[a != ignore]
    if counted.size and not (counted.min() >= 0 and counted.max() < count):
        raise RefusedIndex(f"{name} has numbers from {counted.min()} to {counted.max()}, expected "
                           f"0 to {count - 1}: the model has {count} {what}")
    return np.asarray(a, np.int32, order="C")
