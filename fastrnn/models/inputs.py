"""Users' data turned into arrays for a model, once, or refused with one sentence.

Users have sequences first: (N, T, I), as Keras and scikit-learn have it. Letters: N sequences, T
steps, I features, K numbers of an output, V symbols.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedIndex, RefusedType, RefusedValue

if TYPE_CHECKING:
    from fastrnn.models.sequence import SequenceModel

__all__ = ["Sequences", "sequences", "targets", "weights"]


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Sequences of one length.

    Attributes
    ----------
    x : array (N, T, I), or int32 (N, T) of symbols
    one : bool
        Whether the user gave one sequence without an axis for it: a series.
    """

    x: np.ndarray
    one: bool

    @property
    def N(self) -> int:
        """Number of sequences."""
        return len(self.x)

    @property
    def T(self) -> int:
        """Number of steps."""
        return int(self.x.shape[1])


def sequences(model: SequenceModel, x: Any) -> Sequences:
    """Return the sequences that a user passed for a model.

    Parameters
    ----------
    model : SequenceModel
    x : array (N, T, I), or (T, I): one series of I features
        Anything that NumPy reads: arrays of any number dtype, lists of arrays of one length, a
        column or a table of pandas, a tensor. With I = 1 also (N, T), and (T,): one series. Of a
        model of symbols whole numbers (N, T), or (T,): one series.

    Raises
    ------
    TypeError, ValueError, IndexError
        If it is something else, has NaN or infinities, or a symbol is not below V.
    """
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
    if a.ndim == 2 and a.shape[1] == I:
        return Sequences(a[None], True)
    if a.ndim == 2 and I == 1:
        return Sequences(a[:, :, None], False)
    if a.ndim == 3 and a.shape[2] == I:
        return Sequences(a, False)
    other = ", or (N, T), or one series (T,)" if I == 1 else ""
    raise RefusedValue(f"x has shape {a.shape}, expected (N, T, {I}), or one series (T, {I})"
                       f"{other}: the model reads {I} feature{'s' if I > 1 else ''} a step")


def targets(model: SequenceModel, y: Any, of: Sequences) -> np.ndarray:
    """Return the targets that a user passed for these sequences.

    Parameters
    ----------
    model : SequenceModel
    y : array (N, T, K), or with readout "last" (N, K)
        Without the K for softmax, and if K = 1; without the N for one series.

    Returns
    -------
    array
        With readout "every" (N, T, K) or int32 (N, T), with "last" (N, K) or int32 (N,).
    """
    rows = (of.N, of.T) if model.readout == "every" else (of.N,)
    a = _stacked("y", y)
    softmax = model.loss_name == "softmax"
    if of.one and a.shape[:1] != (1,) and a.ndim < len(rows) + (0 if softmax else 1):
        a = a[None]
    K = model.output_size
    if softmax:
        a = _whole("y", a)
        if a.shape == (*rows, 1):
            a = a[..., 0]
        expected: tuple[int, ...] = rows
    else:
        a = _floats("y", a, model.dtype)
        if K == 1 and a.shape == rows:
            a = a[..., None]
        expected = (*rows, K)
    if a.shape != expected:
        raise RefusedValue(f"y has shape {a.shape}, expected {expected}: {_what(model)}")
    return _in_range("y", a, K, "classes", ignore=-100) if softmax else a


def next_steps(model: SequenceModel, of: Sequences) -> tuple[Sequences, np.ndarray]:
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
    return Sequences(of.x[:, :-1], of.one), of.x[:, 1:]


def weights(model: SequenceModel, w: Any, of: Sequences) -> np.ndarray | None:
    """Return the weights (N, T), or (N,) with readout "last", that a user passed."""
    if w is None:
        return None
    expected = (of.N, of.T) if model.readout == "every" else (of.N,)
    a = np.asarray(w)
    a = (a if a.dtype == bool else _checks.numbers("weights", a)).astype(np.float64)
    if of.one and a.shape == expected[1:]:
        a = a[None]
    if a.shape == (of.N,) and len(expected) == 2:  # one for each sequence
        a = np.broadcast_to(a[:, None], expected)
    if a.shape != expected:
        raise RefusedValue(f"weights has shape {a.shape}, expected {expected}")
    return a


def _what(model: SequenceModel) -> str:
    each = "step" if model.readout == "every" else "sequence (readout 'last')"
    kind = "one class" if model.loss_name == "softmax" else (
        f"{model.output_size} number{'s' if model.output_size > 1 else ''}")
    return f"{kind} for each {each}"


def _stacked(name: str, data: Any) -> np.ndarray:
    """Return an array of anything array-like; sequences of different lengths are refused."""
    if isinstance(data, (str, bytes)):
        raise RefusedType(f"{name} is text, expected numbers; a LanguageModel has train_on and "
                          "encode for text")
    if data is None:
        raise RefusedType(f"{name} is None, expected numbers")
    if isinstance(data, np.ma.MaskedArray) and np.ma.is_masked(data):
        raise RefusedType(f"{name} is a masked array with masked places, expected an array: pass "
                          "weights of 0 for them")
    if isinstance(data, (list, tuple)) and data and all(np.ndim(a) > 0 for a in data):
        lengths = {len(a) for a in data}
        if len(lengths) > 1:
            raise RefusedValue(f"{name} is a list of sequences of {min(lengths)} to {max(lengths)} "
                               "steps, expected one length; group sequences of equal length, or "
                               "pad them and pass weights of 0 for the padding")
    try:
        a = np.asarray(data)
    except Exception as error:
        raise RefusedType(f"{name} is {_checks.kind(data)}, expected numbers: {error}") from error
    if a.dtype.kind not in "biuf":
        raise RefusedType(f"{name} has dtype {a.dtype}, expected numbers")
    return a


def _floats(name: str, a: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(a, dtype)
    finite = np.isfinite(converted)
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise RefusedValue(f"{name}{list(place)} is {a[place]}, expected finite numbers"
                           + (f" of {dtype}" if np.isfinite(a[place]) else
                              "; replace them, or pass weights of 0 for padding" if name == "y"
                              else ""))
    return converted


def _whole(name: str, a: np.ndarray) -> np.ndarray:
    """Return whole numbers as int64."""
    if a.dtype.kind == "f":
        if a.size and not (np.isfinite(a).all() and (a == np.floor(a)).all()):
            raise RefusedType(f"{name} is {a.dtype} with fractions, expected whole numbers")
        if a.size and np.abs(a).max() >= 2**31:
            raise RefusedIndex(f"{name} has the number {a.flat[np.abs(a).argmax()]:g}, expected "
                               "fewer symbols")
    return a.astype(np.int64)


def _in_range(
    name: str, a: np.ndarray, count: int, what: str, ignore: int | None = None
) -> np.ndarray:
    used = a if ignore is None else a[a != ignore]
    if used.size and not (used.min() >= 0 and used.max() < count):
        raise RefusedIndex(f"{name} has numbers from {used.min()} to {used.max()}, expected 0 to "
                           f"{count - 1}: the model has {count} {what}")
    return np.ascontiguousarray(a, np.int32)
