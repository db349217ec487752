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
from fastrnn.training.data import Batch, Data, Samples, Windows, check_data
from fastrnn.training.options import Reading

__all__ = ["read"]


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Sequences with their targets, sequences first.

    Attributes
    ----------
    x : array (N, T, ...)
    y : array (N, T, ...), or (N, ...): one target a sequence
    weights : array (N, T) or (N,), or None
    context : array (N, C), or None
    each : bool
        Whether there is a target for each step.
    """

    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None
    context: np.ndarray | None
    each: bool

    def sequences(self, start: int, stop: int) -> Arrays:
        """Return some of the sequences."""
        own = slice(start, stop)
        return Arrays(self.x[own], self.y[own], None if self.weights is None else self.weights[own],
                      None if self.context is None else self.context[own], self.each)

    def steps(self, start: int, stop: int) -> Arrays:
        """Return some of the steps of every sequence; there is a target for each."""
        own = (slice(None), slice(start, stop))
        return Arrays(self.x[own], self.y[own], None if self.weights is None else self.weights[own],
                      self.context, self.each)


def read(
    model: Any, x: Any, y: Any, reading: Reading, validation: Any
) -> tuple[Data, Any]:
    """Return the batches of training, and the batches or function of validation or None."""
    if callable(x) or isinstance(x, Batch) or (
            isinstance(x, (list, tuple)) and any(isinstance(a, Batch) for a in x)):
        data = check_data("x", x)
        for name, given in (("y", y), ("window", reading.window), ("weights", reading.weights),
                            ("context", reading.context)):
            if given is not None:
                raise RefusedValue(f"{name} is given with a function of the step, expected none: "
                                   "its batches have their own")
        if isinstance(validation, (int, float)) and not isinstance(validation, bool):
            raise RefusedValue(f"validation is {validation} with a function of the step, expected "
                               "(x, y), batches or a function: nobody knows its last sequences")
    else:
        arrays = _arrays(model, x, y, reading.weights, reading.context, reading.window)
        if isinstance(validation, (int, float, np.floating)):
            arrays, held_out = _split(arrays, validation, reading.window)
            return (_batches(arrays, reading, reading.shuffle),
                    _batches(held_out, reading, False))
        data = _batches(arrays, reading, reading.shuffle)
    return data, _validation(model, validation, reading)


def _validation(model: Any, validation: Any, reading: Reading) -> Any:
    if validation is None or callable(validation):
        return validation
    if not isinstance(validation, tuple) or not 1 < len(validation) <= 3:
        raise RefusedType(f"validation is {_checks.show(validation)}, expected (x, y), (x, y, "
                          "weights), a fraction such as 0.1, or a function that returns a loss")
    try:
        x, y, weights = (*validation, None)[:3]
        arrays = _arrays(model, x, y, weights, None, reading.window)
        return _batches(arrays, reading, False)
    except (RefusedType, RefusedValue, _checks.RefusedIndex) as error:
        raise type(error)(f"validation: {error}") from error.__cause__


def _arrays(model: Any, x: Any, y: Any, weights: Any, context: Any, window: int | None) -> Arrays:
    """Convert what a user passed."""
    if not isinstance(model, SequenceModel):
        raise RefusedType(f"x is {_checks.kind(x)} for a model {_checks.kind(model)}, expected a "
                          "function of the step that returns a Batch: arrays are for a "
                          "SequenceModel")
    each = model.readout == "every"
    if window is not None and (not each or context is not None):
        raise RefusedValue(f"window is {window} with "
                           f"{'a context' if each else 'one target a sequence'}, expected a target "
                           "for each step, and the state carried on from window to window")
    data = inputs.sequences(model, x)
    if not data.x.size:
        raise RefusedValue(f"x has {data.N} sequences of {data.T} steps, expected at least one")
    if y is None:
        data, goals = inputs.next_steps(model, data)
        w = inputs.weights(model, weights, data)
    else:  # the targets of weight 0 may be anything
        w = inputs.weights(model, weights, data)
        goals = inputs.targets(model, y, data, w)
    if w is not None and not w.any():
        raise RefusedValue("weights is 0 everywhere, expected at least one above 0")
    if model.loss_name == "softmax" and (goals == -100).all():
        raise RefusedValue("y is -100 everywhere, which leaves everything out, expected at least "
                           "one class")
    return Arrays(data.x, goals, w, inputs.contexts(model, context, data), each)


def _split(arrays: Arrays, fraction: Any, window: int | None) -> tuple[Arrays, Arrays]:
    """Return (to train on, held out): the last sequences or, in windows, the last steps."""
    fraction = _checks.above("validation", fraction, 0, 1)
    what, count = ("sequences", len(arrays.x)) if window is None else (
        "steps", arrays.x.shape[1])
    held_out = int(count * fraction + 1e-9)
    if not 0 < held_out < count:
        raise RefusedValue(f"validation is {fraction:g} of {count} {what}, expected at least one "
                           "to hold out and one to train on")
    part = arrays.sequences if window is None else arrays.steps
    return part(0, count - held_out), part(count - held_out, count)


def _batches(arrays: Arrays, reading: Reading, shuffle: bool) -> Data:
    """Return the batches of arrays, time first, which copies nothing."""
    if reading.window is not None:
        return _windows(arrays, reading.window, reading.batch_size)
    y, w = arrays.y, arrays.weights
    return Samples(
        arrays.x.swapaxes(0, 1), y.swapaxes(0, 1) if arrays.each else y, reading.batch_size,
        axis=int(arrays.each), weights=w.T if arrays.each and w is not None else w,
        context=arrays.context, seed=reading.seed, shuffle=shuffle)


def _windows(arrays: Arrays, window: int, B: int) -> Windows:
    """Return windows of series side by side; one series is cut into up to B rows."""
    N, T = arrays.x.shape[:2]
    given = [a for a in (arrays.x, arrays.y, arrays.weights) if a is not None]
    if N == 1 and (rows := min(B, T // window)) > 1:
        given = [a[0, : T // rows * rows].reshape(rows, T // rows, *a.shape[2:]) for a in given]
    x, y, *w = (a.swapaxes(0, 1) for a in given)
    return Windows.of_series(x, y, window, B, w[0] if w else None)
