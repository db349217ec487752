"""Losses: a number for outputs and targets, and its gradient with respect to the outputs.

All three take outputs (..., N), targets, and weights (...): one for each row of N numbers. A weight
of 0 leaves the row out, whatever its numbers are, NaN and labels out of range too; weights may be a
mask of booleans. The loss is the weighted mean over the rows, sum(w * loss) / sum(w), and 0 if the
weights sum to 0. Letter: N numbers of an output.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn._kernels import loss as kernels
from fastrnn._kernels.check import in_range, is_masked

__all__ = ["LOSSES", "binary_cross_entropy", "mean_squared_error", "softmax_cross_entropy"]

Result = tuple[float, "np.ndarray | None"]


@public
def softmax_cross_entropy(
    logits: Any, targets: Any, weights: Any = None, *, ignore_index: int | None = -100,
    need_grad: bool = True, out: np.ndarray | None = None,
) -> Result:
    """Return the mean of -log softmax(logits)[target] and its gradient.

    Parameters
    ----------
    logits : array (..., N)
        float32 or float64.
    targets : integers (...)
        The right class of each row, 0 to N - 1.
    weights : array (...), optional
        Weight of each row, at least 0, or booleans; None: equal weights.
    ignore_index : int or None
        A row with this target has weight 0.
    need_grad : bool
        Whether the gradient is wanted.
    out : array like logits, optional
        Where to put the gradient; may be `logits` itself. By default a new array.

    Returns
    -------
    loss : float
        Weighted mean over the rows, in nats; 0 if there is nothing to take a mean of.
    dlogits : array (..., N) or None

    Raises
    ------
    TypeError
        If logits are not float32 or float64, or targets are not whole numbers.
    ValueError
        If shapes do not fit, or a weight is negative or not finite.
    IndexError
        If a target of a row that counts is not in [0, N).
    """
    mean, _, grad = LOSSES["softmax"](logits, targets, weights, ignore_index, need_grad, out)
    return mean, grad


@public
def mean_squared_error(
    outputs: Any, targets: Any, weights: Any = None, *, need_grad: bool = True,
    out: np.ndarray | None = None,
) -> Result:
    """Return the mean of the squared differences, over N and over the rows, and its gradient.

    Parameters
    ----------
    outputs : array (..., N)
        float32 or float64.
    targets : array (..., N)
    weights : array (...), optional
        Weight of each row, at least 0, or booleans; None: equal weights.
    need_grad : bool
        Whether the gradient is wanted.
    out : array like outputs, optional
        Where to put the gradient; may be `outputs` itself. By default a new array.

    Returns
    -------
    loss : float
        Weighted mean over the rows; 0 if there is nothing to take a mean of.
    doutputs : array (..., N) or None

    Raises
    ------
    TypeError
        If outputs are not float32 or float64, or targets are of another dtype.
    ValueError
        If shapes do not fit, or a weight is negative or not finite.
    """
    mean, _, grad = LOSSES["mse"](outputs, targets, weights, None, need_grad, out)
    return mean, grad


@public
def binary_cross_entropy(
    logits: Any, targets: Any, weights: Any = None, *, need_grad: bool = True,
    out: np.ndarray | None = None,
) -> Result:
    """Return the mean of -(t log p + (1 - t) log(1 - p)), p = sigmoid(logits), and its gradient.

    Parameters
    ----------
    logits : array (..., N)
        float32 or float64.
    targets : array (..., N)
        Probabilities t, 0 to 1.
    weights : array (...), optional
        Weight of each row, at least 0, or booleans; None: equal weights.
    need_grad : bool
        Whether the gradient is wanted.
    out : array like logits, optional
        Where to put the gradient; may be `logits` itself. By default a new array.

    Returns
    -------
    loss : float
        Weighted mean over the rows, in nats; 0 if there is nothing to take a mean of.
    dlogits : array (..., N) or None

    Raises
    ------
    TypeError
        If logits are not float32 or float64, or targets are of another dtype.
    ValueError
        If shapes do not fit, a weight is negative or not finite, or a target of a row that counts
        is not in [0, 1].
    """
    mean, _, grad = LOSSES["bce"](logits, targets, weights, None, need_grad, out)
    return mean, grad


# ---- what models call ----------------------------------------------------------------------------


class Goals(NamedTuple):
    """Targets and weights that were checked.

    Attributes
    ----------
    targets : integers (...), or array (..., N)
    weights : float64 (...), or None: all 1
    total : float
        Sum of the weights.
    """

    targets: np.ndarray
    weights: np.ndarray | None
    total: float

    def part(self, steps: Any) -> Goals:
        """Return the goals of some steps, whose losses sum to that of all: `total` is the same.

        steps : slice, or numbers of rows
        """
        return Goals(self.targets[steps], None if self.weights is None else self.weights[steps],
                     self.total)


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss in two halves: what can be refused comes before anything is computed.

    Attributes
    ----------
    outputs : str
        What its outputs are called.
    check : callable
        Takes targets, weights, ignore_index, the outputs' shape and dtype; returns Goals.
    compute : callable
        Takes outputs, Goals, and where to put the gradient (it may be the outputs' place) or None;
        returns the loss, sum(w * loss) / total.
    """

    outputs: str
    check: Callable[[Any, Any, Any, tuple[int, ...], np.dtype], Goals]
    compute: Callable[[np.ndarray, Goals, np.ndarray | None], float]

    def __call__(
        self, outputs: Any, targets: Any, weights: Any = None, ignore_index: int | None = -100,
        need_grad: bool = True, out: Any = None,
    ) -> tuple[float, float, np.ndarray | None]:
        """Return the weighted mean, the sum of the weights, and the gradient."""
        outputs = _outputs(self.outputs, outputs)
        goals = self.check(targets, weights, ignore_index, outputs.shape, outputs.dtype)
        grad = None
        if _checks.flag("need_grad", need_grad):
            grad = np.empty_like(outputs) if out is None else _checks.output(
                "out", out, outputs.dtype, outputs.shape)
            if np.shares_memory(outputs, grad) and outputs.ctypes.data != grad.ctypes.data:
                outputs = outputs.copy()  # a part of them would be overwritten before it is read
        return self.compute(outputs, goals, grad), goals.total, grad


def _outputs(name: str, value: Any) -> np.ndarray:
    outputs = _checks.numbers(name, value)
    dtype = _checks.float_dtype(outputs.dtype.newbyteorder("="), f"{name}' dtype")
    if outputs.ndim < 1 or outputs.shape[-1] < 1:
        raise RefusedValue(f"{name} has shape {outputs.shape}, expected (..., N), N >= 1")
    return np.require(outputs, dtype, ("C", "A"))


def as_weights(value: Any) -> np.ndarray:
    """Return weights, or a mask of booleans, as a new float64 array of any shape."""
    try:
        mask = np.asarray(value).dtype == bool and not is_masked(value)
    except (ValueError, TypeError, RuntimeError):  # the sentence comes from the check below
        mask = False
    a = np.asarray(value) if mask else _checks.numbers("weights", value)
    return a.astype(np.float64, order="C")


def _weights(value: Any, rows: tuple[int, ...]) -> np.ndarray | None:
    """Return the weights (...) as float64, or None: all 1."""
    if value is None:
        return None
    w = as_weights(value)
    if w.shape != rows:
        raise RefusedValue(f"weights has shape {w.shape}, expected {rows}")
    if w.size and not (np.isfinite(w).all() and w.min() >= 0):
        raise RefusedValue(f"weights has numbers from {w.min()} to {w.max()}, expected finite ones "
                           "of at least 0")
    return w


def _total(w: np.ndarray) -> float:
    """Return the sum of weights, if one can divide by it and multiply with it."""
    with np.errstate(over="ignore"):
        total = float(w.sum())
    if total and not 1e-300 < total < 1e300:
        raise RefusedValue(f"weights has the sum {total:.3g}, expected 0, or a sum from 1e-300 to "
                           "1e300")
    return total


def _check_ignored(index: Any) -> None:
    if index is not None and (isinstance(index, bool) or not isinstance(index, int | np.integer)):
        raise RefusedValue(f"ignore_index is {_checks.show(index)}, expected a whole number, or "
                           "None")


def _check_classes(
    targets: Any, weights: Any, ignore_index: Any, shape: tuple[int, ...], dtype: np.dtype
) -> Goals:
    *rows, N = shape
    labels = targets
    if type(labels) is not np.ndarray or labels.dtype.kind not in "iu":
        labels = _checks.numbers("targets", targets, of="whole numbers: classes")
    if labels.size and labels.dtype.kind not in "iu":
        raise RefusedType(f"targets is {labels.dtype}, expected whole numbers: classes")
    if labels.shape != tuple(rows):
        raise RefusedValue(f"targets has shape {labels.shape}, expected {tuple(rows)}")
    w = _weights(weights, labels.shape)
    _check_ignored(ignore_index)
    if ignore_index is not None:
        # where all labels are classes, a number that is no class need not be looked for
        if w is None and not 0 <= ignore_index < N and (found := in_range(labels, N)) is not None:
            return Goals(found, None, float(found.size))
        labels = labels.copy()  # it is read several times, and another thread may change it
        if ignore_index in labels:
            w = np.where(labels == ignore_index, 0.0, 1.0 if w is None else w)
    if w is not None:  # the labels of rows that do not count may be anything
        labels = np.where(w > 0, labels, 0)
    labels = _checks.rows(labels, rows, N, name="targets", of="the outputs' last axis")
    return Goals(labels, w, float(labels.size) if w is None else _total(w))


def _softmax(logits: np.ndarray, goals: Goals, grad: np.ndarray | None) -> float:
    N = logits.shape[-1]
    share = 1 / goals.total if goals.total else 0.0
    return share * kernels.softmax_cross_entropy(
        logits.reshape(-1, N), goals.targets.reshape(-1), share,
        None if grad is None else grad.reshape(-1, N),
        None if goals.weights is None else goals.weights.reshape(-1))


def _check_numbers(
    targets: Any, weights: Any, ignore_index: Any, shape: tuple[int, ...], dtype: np.dtype
) -> Goals:
    _check_ignored(ignore_index)  # it is of classes, numbers are all used
    targets = _checks.array("targets", targets, dtype, shape)
    w = _weights(weights, shape[:-1])
    return Goals(targets, w, float(math.prod(shape[:-1])) if w is None else _total(w))


def _check_chances(
    targets: Any, weights: Any, ignore_index: Any, shape: tuple[int, ...], dtype: np.dtype
) -> Goals:
    goals = _check_numbers(targets, weights, ignore_index, shape, dtype)
    a, w = goals.targets.copy(), goals.weights  # another thread may change what was checked
    goals = Goals(a, w, goals.total)
    used = a if w is None else a[w > 0]
    if used.size and not (used.min() >= 0 and used.max() <= 1):
        raise RefusedValue(f"targets has numbers from {used.min()} to {used.max()}, expected "
                           "0 to 1")
    return goals


def _squared(outputs: np.ndarray, goals: Goals, grad: np.ndarray | None) -> float:
    outputs, targets, scales = _counting(outputs, goals)
    with np.errstate(over="ignore", invalid="ignore"):  # the loss itself shows it
        difference = outputs - targets
        loss = difference * difference
        loss *= scales
        if grad is not None:
            np.multiply(difference, 2 * scales, out=grad)
    return float(loss.sum(dtype=np.float64))


def _binary(logits: np.ndarray, goals: Goals, grad: np.ndarray | None) -> float:
    logits, targets, scales = _counting(logits, goals)
    with np.errstate(over="ignore", invalid="ignore"):
        e = np.exp(-np.abs(logits))
        loss = np.maximum(logits, 0) - logits * targets + np.log1p(e)
        loss *= scales
        if grad is not None:
            slope = np.where(logits >= 0, 1, e) / (1 + e) - targets
            np.multiply(slope, scales, out=grad)
    return float(loss.sum(dtype=np.float64))


def _counting(outputs: np.ndarray, goals: Goals) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return outputs and targets, with zeros in rows of weight 0, and what scales each row."""
    share = 1 / (goals.total * outputs.shape[-1]) if goals.total else 0.0
    targets, w = goals.targets, goals.weights
    if w is None:
        return outputs, targets, outputs.dtype.type(share)
    used = w[..., None] > 0
    if not used.all():
        outputs, targets = np.where(used, outputs, 0), np.where(used, targets, 0)
    return outputs, targets, (w * share).astype(outputs.dtype)[..., None]


LOSSES = {
    "softmax": Loss("logits", _check_classes, _softmax),
    "mse": Loss("outputs", _check_numbers, _squared),
    "bce": Loss("logits", _check_chances, _binary),
}
