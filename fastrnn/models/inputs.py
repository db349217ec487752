"""Users' data turned into arrays for a model, once, or refused with one sentence.

Users have sequences first: (N, T, I), as Keras and scikit-learn have it. Letters: N sequences, T
steps, I features, K numbers of an output, V symbols.
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

if TYPE_CHECKING:
    from fastrnn.models.sequence import SequenceModel

__all__ = ["Sequences", "contexts", "next_steps", "sequences", "targets", "weights"]


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
        column or a table of pandas, a tensor. With I = 1 also (N, T), and (T,): one series. A
        model of symbols takes whole numbers (N, T), or (T,): one series.

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


def targets(
    model: SequenceModel, y: Any, of: Sequences, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the targets that a user passed for these sequences.

    Parameters
    ----------
    model : SequenceModel
    y : array (N, T, K), or with readout "last" (N, K)
        Without the K for softmax, and if K = 1; without the N for one series. Classes may be a
        column, too.
    weights : array, optional
        As `weights` below returns them: a target of weight 0 may be anything, NaN too.

    Returns
    -------
    array
        With readout "every" (N, T, K) or int32 (N, T), with "last" (N, K) or int32 (N,).
    """
    rows = (of.N, of.T) if model.readout == "every" else (of.N,)
    K, softmax = model.output_size, model.loss_name == "softmax"
    a = _stacked("y", y)
    expected = rows if softmax else (*rows, K)
    shapes = {expected} | ({(*rows, 1)} if softmax else {rows} if K == 1 else set())
    if of.one:
        shapes |= {shape[1:] for shape in shapes}
    if a.shape not in shapes:
        raise RefusedValue(f"y has shape {a.shape}, expected {expected}: {_what(model)}")
    a = a.reshape(expected)
    used = None if weights is None else weights > 0
    if softmax:
        return _in_range("y", _whole("y", a, used), K, "classes", ignore=-100)
    a = _floats("y", a, model.dtype, used)
    if model.loss_name == "bce":
        counted = a if used is None else a[used]
        if counted.size and not (counted.min() >= 0 and counted.max() <= 1):
            raise RefusedValue(f"y has numbers from {counted.min()} to {counted.max()}, expected 0 "
                               "to 1: chances, for the loss 'bce'")
    return a


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
    a = as_weights(w)
    if of.one and a.shape == expected[1:]:
        a = a[None]
    if a.shape == (of.N,) and len(expected) == 2:  # one for each sequence
        a = np.broadcast_to(a[:, None], expected)
    if a.shape != expected:
        raise RefusedValue(f"weights has shape {a.shape}, expected {expected}")
    if a.size and not (np.isfinite(a).all() and a.min() >= 0):
        raise RefusedValue(f"weights has numbers from {a.min()} to {a.max()}, expected finite ones "
                           "of at least 0")
    return a


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


def _stacked(name: str, data: Any) -> np.ndarray:
    """Return an array of anything array-like; sequences of different lengths are refused."""
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
            lengths = {len(a) for a in data if not isinstance(a, str)}
    if lengths and any(map(is_masked, data)):
        raise RefusedType(f"{name} has a masked array with masked places, expected arrays: pass "
                          "weights of 0 for them")
    if len(lengths) > 1:
        raise RefusedValue(f"{name} is a list of sequences of {min(lengths)} to {max(lengths)} "
                           "steps, expected one length; group sequences of equal length, or pad "
                           "them and pass weights of 0 for the padding")
    try:
        a = np.asarray(data)
    except ValueError as error:
        raise RefusedValue(f"{name} is a ragged sequence, expected an array: steps of equally many "
                           "features, sequences of one length") from error
    except Exception as error:
        raise RefusedType(f"{name} is {_checks.kind(data)}, expected numbers: {error}") from error
    if a.dtype.kind not in "biuf":
        if a.ndim == 0 and a is not data:  # a dict, a set, a generator
            raise RefusedType(f"{name} is {_checks.kind(data)}, expected numbers")
        raise RefusedType(f"{name} has dtype {a.dtype}, expected numbers")
    return a


def _floats(
    name: str, a: np.ndarray, dtype: np.dtype, used: np.ndarray | None = None
) -> np.ndarray:
    """Return finite numbers of a dtype; rows that are not used may have anything."""
    with np.errstate(over="ignore"):
        converted = np.asarray(a, dtype, order="C")
    finite = np.isfinite(converted)
    if used is not None:
        finite |= ~used[..., None]
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        advice = (f" of {dtype}" if np.isfinite(a[place]) else
                  "; replace them, or pass weights of 0 for padding" if name == "y" else "")
        raise RefusedValue(f"{name}{list(place)} is {a[place]}, expected finite numbers{advice}")
    return converted


def _whole(name: str, a: np.ndarray, used: np.ndarray | None = None) -> np.ndarray:
    """Return whole numbers as int64; those that are not used become 0."""
    if used is not None:
        a = np.where(used, a, 0)
    if a.dtype.kind == "f":
        a = a.astype(np.float64)  # of float16 2^31 is infinite
        wrong = ~np.isfinite(a)
        wrong |= a != np.floor(a)
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise RefusedType(f"{name}{list(place)} is {a[place]}, expected whole numbers")
        if a.size and np.abs(a).max() >= 2**31:
            raise RefusedIndex(f"{name} has the number {a.flat[np.abs(a).argmax()]:g}, expected "
                               "fewer symbols")
    elif a.dtype.kind == "u" and a.size and a.max() >= 2**31:
        raise RefusedIndex(f"{name} has the number {a.max()}, expected fewer symbols")
    return a.astype(np.int64)


def _in_range(
    name: str, a: np.ndarray, count: int, what: str, ignore: int | None = None
) -> np.ndarray:
    counted = a if ignore is None else a[a != ignore]
    if counted.size and not (counted.min() >= 0 and counted.max() < count):
        raise RefusedIndex(f"{name} has numbers from {counted.min()} to {counted.max()}, expected "
                           f"0 to {count - 1}: the model has {count} {what}")
    return np.asarray(a, np.int32, order="C")
