"""Users' arrays turned into batches for fit, once, before the first step.

Users have sequences first. Letters: N sequences, T steps, I features, C size of a context.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue
from fastrnn.models import inputs
from fastrnn.models.sequence import SequenceModel
from fastrnn.training.data import Batch, Data, Samples, SeriesWindows, Windows, check_data
from fastrnn.training.options import Reading

__all__ = ["read"]

ROUNDING = 1e-9  # a tenth of 10 is 1


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Sequences with their targets, sequences first.

    Attributes
    ----------
    x : array (N, T, ...), or list of N arrays (T_i, ...)
    y : array (N, T, ...), or (N, ...): one target a sequence; or a list like x
    weights : array (N, T) or (N,), or a list of arrays (T_i,), or None
    context : array (N, C), or None
    start : booleans (N, T), or a list of arrays (T_i,), or None
        Where episodes begin.
    each : bool
        Whether there is a target for each step.
    """

    x: Any
    y: Any
    weights: Any
    context: np.ndarray | None
    start: Any
    each: bool

    @property
    def listed(self) -> bool:
        """Whether the sequences are a list, of different lengths."""
        return isinstance(self.x, list)

    def sequences(self, start: int, stop: int) -> Arrays:
        """Return some of the sequences."""
        x, y, w, context, starts = (
            None if a is None else a[start:stop]
            for a in (self.x, self.y, self.weights, self.context, self.start))
        return Arrays(x, y, w, context, starts, self.each)

    def steps(self, fraction: float, last: bool) -> Arrays:
        """Return the first steps of every sequence, or a fraction of them, the last ones."""

        def own(a: Any) -> Any:
            border = len(a) - int(len(a) * fraction + ROUNDING)
            return a[border:] if last else a[:border]

        x, y, w, start = (
            None if a is None else [own(one) for one in a] if self.listed
            else own(a.swapaxes(0, 1)).swapaxes(0, 1)
            for a in (self.x, self.y, self.weights, self.start))
        return Arrays(x, y, w, self.context, start, self.each)


def _is_share(validation: Any) -> bool:
    """Whether a validation is a number: the share of the data that is held out."""
    return isinstance(validation, (int, float, np.floating))


def read(
    model: Any, x: Any, y: Any, reading: Reading, validation: Any
) -> tuple[Data, Any]:
    """Return the batches of training, and the batches or function of validation or None."""
    if callable(x) or isinstance(x, Batch) or (
            isinstance(x, (list, tuple)) and any(isinstance(a, Batch) for a in x)):
        data = check_data("x", x)
        for name, given in (("y", y), ("window", reading.window), ("weights", reading.weights),
                            ("context", reading.context),
                            ("episode_start", reading.episode_start)):
            if given is not None:
                raise RefusedValue(f"{name} is given with a function of the step, expected none: "
                                   "its batches have their own")
        if _is_share(validation):
            raise RefusedValue(f"validation is {validation} with a function of the step, expected "
                               "(x, y), batches or a function: nobody knows its last sequences")
    else:
        arrays = _arrays(model, x, y, reading)
        if _is_share(validation):
            arrays, held_out = _split(arrays, validation, reading.window)
            _check_counts(model, arrays, reading, "of what validation does not hold out, ")
            _check_counts(model, held_out, reading, "of what validation holds out, ")
            return (_batches(arrays, reading, reading.shuffle),
                    _batches(held_out, reading, False))
        data = _batches(arrays, reading, reading.shuffle)
    return data, _validation(model, validation, reading)


def _validation(model: Any, validation: Any, reading: Reading) -> Any:
    if validation is None or callable(validation):
        return validation
    names = ("x", "y", "weights", "context", "episode_start")
    if isinstance(validation, tuple) and 1 < len(validation) <= 3:
        validation = dict(zip(names, validation, strict=False))
    if not isinstance(validation, dict) or "x" not in validation or any(
            name not in names for name in validation):
        raise RefusedType(f"validation is {_checks.show(validation)}, expected (x, y), (x, y, "
                          f"weights), a dict of some of {list(names)} with 'x', a fraction such as "
                          "0.1, or a function that returns a loss")
    given: dict[str, Any] = {name: validation.get(name) for name in names}
    x, y = given.pop("x"), given.pop("y")
    try:
        own = dataclasses.replace(reading, **given)
        return _batches(_arrays(model, x, y, own), reading, False)
    except (RefusedType, RefusedValue, _checks.RefusedIndex) as error:
        raise type(error)(f"validation: {error}") from error.__cause__


def _arrays(model: Any, x: Any, y: Any, reading: Reading) -> Arrays:
    """Convert what a user passed."""
    if not isinstance(model, SequenceModel):
        raise RefusedType(f"x is {_checks.kind(x)} for a model {_checks.kind(model)}, expected a "
                          "function of the step that returns a Batch, such as Samples(inputs, "
                          "targets, batch_size, source=...): arrays are for a SequenceModel")
    each = model.readout == "every"
    window, context = reading.window, reading.context
    if window is not None and (not each or context is not None):
        raise RefusedValue(f"window is {window} with "
                           f"{'a context' if each else 'one target a sequence'}, expected a target "
                           "for each step, and the state carried on from window to window")
    data = inputs.sequences(model, x)
    if not data.N * data.T:
        raise RefusedValue(f"x has {data.N} sequences of {data.T} steps, expected at least one")
    data, y, w, start = inputs.goals(model, data, y, reading.weights, reading.episode_start)
    if w is not None and not any(a.any() for a in w):
        raise RefusedValue(
            "weights is 0 everywhere, expected at least one above 0" if reading.weights is not None
            else "episode_start is True at every step, which leaves no step to predict")
    if model.loss_name == "softmax" and all((a == -100).all() for a in y):
        raise RefusedValue("y is -100 everywhere, which leaves everything out, expected at least "
                           "one class")
    arrays = Arrays(data.x, y, w, inputs.contexts(model, context, data), start, each)
    _check_counts(model, arrays, reading, "")
    return arrays


def _check_counts(model: SequenceModel, arrays: Arrays, reading: Reading, part: str) -> None:
    """Refuse arrays none of whose outputs counts: a mean over nothing is no loss."""
    used = slice(None)
    if reading.window is not None and not arrays.listed and len(arrays.x) == 1:
        used = slice(_in_rows(arrays.x.shape[1], reading.window, reading.batch_size)[1])
    for i, y in enumerate(arrays.y):
        counts = np.ones(1, bool)
        if arrays.weights is not None:
            counts = np.atleast_1d(arrays.weights[i])[used] > 0
        if model.loss_name == "softmax":
            counts = counts & (np.atleast_1d(y)[used] != -100)
        if counts.any():
            return
    what = " or the target -100" if model.loss_name == "softmax" else ""
    raise RefusedValue(f"{part}every output has weight 0{what}, expected at least one that counts")


def _in_rows(T: int, window: int, B: int) -> tuple[int, int]:
    """Return into how many rows one series is cut, and how many of its steps they have."""
    rows = min(B, T // window)
    return (rows, T // rows * rows) if rows > 1 else (1, T)


def _split(arrays: Arrays, fraction: Any, window: int | None) -> tuple[Arrays, Arrays]:
    """Return (to train on, held out): the last sequences or, in windows, the last steps of each."""
    fraction = _checks.above("validation", fraction, 0, 1)
    what, count = "sequences", len(arrays.x)
    if window is not None:
        what, count = "steps", max(map(len, arrays.x))
    held_out = int(count * fraction + ROUNDING)
    if not 0 < held_out < count:
        raise RefusedValue(f"validation is {fraction:g} of {count} {what}, expected at least one "
                           "to hold out and one to train on")
    if window is not None:
        return arrays.steps(fraction, False), arrays.steps(fraction, True)
    return arrays.sequences(0, count - held_out), arrays.sequences(count - held_out, count)


def _batches(arrays: Arrays, reading: Reading, shuffle: bool) -> Data:
    """Return the batches of arrays, time first, which copies nothing."""
    if reading.window is not None:
        return _windows(arrays, reading.window, reading.batch_size)
    x, y, w, start = arrays.x, arrays.y, arrays.weights, arrays.start
    if not arrays.listed:
        x, start = x.swapaxes(0, 1), None if start is None else start.T
        if arrays.each:
            y, w = y.swapaxes(0, 1), None if w is None else w.T
    return Samples(x, y, reading.batch_size, axis=int(arrays.each), weights=w,
                   context=arrays.context, episode_start=start, seed=reading.seed, shuffle=shuffle)


def _windows(arrays: Arrays, window: int, B: int) -> Windows:
    """Return windows of series side by side; one series is cut into up to B rows."""
    if arrays.listed:
        return SeriesWindows.of_series(arrays.x, arrays.y, window, B, arrays.weights, arrays.start)
    N, T = arrays.x.shape[:2]
    given = [arrays.x, arrays.y, arrays.weights, arrays.start]
    if N == 1:
        rows, used = _in_rows(T, window, B)
        given = [None if a is None else
                 a[0, :used].reshape(rows, used // rows, *a.shape[2:]) for a in given]
    x, y, w, start = (None if a is None else a.swapaxes(0, 1) for a in given)
    return Windows.of_series(x, y, window, B, w, start)
