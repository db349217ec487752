"""Losses: a number for outputs and targets, and its gradient with respect to the outputs.

All three take outputs (..., N), targets, and weights (...): one for each row of N numbers. A weight
of 0 leaves the row out, whatever its numbers are, NaN and labels out of range too; weights may be a
mask of booleans. The loss is the weighted mean over the rows, sum(w * loss) / sum(w), and 0 if the
weights sum to 0. Letter: N numbers of an output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn._kernels import loss as kernels

__all__ = ["LOSSES", "binary_cross_entropy", "mean_squared_error", "softmax_cross_entropy"]

Result = tuple[float, "np.ndarray | None"]
Full = tuple[float, float, "np.ndarray | None"]  # mean, sum of weights, gradient


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
        Of each row, at least 0, or booleans; None: all count alike.
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
    mean, _, grad = _softmax(logits, targets, weights, ignore_index, need_grad, out)
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
        Of each row, at least 0, or booleans; None: all count alike.
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
    mean, _, grad = _squared(outputs, targets, weights, None, need_grad, out)
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
        Of each row, at least 0, or booleans; None: all count alike.
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
    mean, _, grad = _binary(logits, targets, weights, None, need_grad, out)
    return mean, grad


# ---- what models call: (mean, sum of weights, gradient) ------------------------------------------


def _softmax(
    logits: Any, targets: Any, weights: Any, ignore_index: int | None, need_grad: bool, out: Any
) -> Full:
    logits, dtype = _outputs("logits", logits)
    *rows, N = logits.shape
    labels = _checks.numbers("targets", targets)
    if labels.size and labels.dtype.kind not in "iu":
        raise RefusedType(f"targets is {labels.dtype}, expected whole numbers: classes")
    if labels.shape != tuple(rows):
        raise RefusedValue(f"targets has shape {labels.shape}, expected {tuple(rows)}")
    w = _weights(weights, tuple(rows))
    if ignore_index is not None and (ignored := labels == ignore_index).any():
        w = np.where(ignored, 0.0, 1.0 if w is None else w)
    if w is not None:  # the labels of rows that do not count may be anything
        labels = np.where(w > 0, labels, 0)
    labels = _checks.rows(labels, rows, N, name="targets", of="logits' last axis")
    total = float(labels.size if w is None else w.sum())
    grad = _place(need_grad, out, logits.shape, dtype)
    mean = 1 / total if total else 0.0
    flat = logits.reshape(-1, N)
    loss = kernels.softmax_cross_entropy(
        flat, labels.reshape(-1), mean, None if grad is None else grad.reshape(-1, N),
        None if w is None else w.reshape(-1))
    return loss * mean, total, grad


def _squared(
    outputs: Any, targets: Any, weights: Any, ignore_index: Any, need_grad: bool, out: Any
) -> Full:
    outputs, dtype = _outputs("outputs", outputs)
    difference = outputs - _checks.array("targets", targets, dtype, outputs.shape)
    return _mean(difference * difference, 2 * difference, weights, need_grad, out)


def _binary(
    logits: Any, targets: Any, weights: Any, ignore_index: Any, need_grad: bool, out: Any
) -> Full:
    logits, dtype = _outputs("logits", logits)
    targets = _checks.array("targets", targets, dtype, logits.shape)
    w = _weights(weights, logits.shape[:-1])
    if w is not None:
        targets = np.where(w[..., None] > 0, targets, 0)
    if targets.size and not (targets.min() >= 0 and targets.max() <= 1):
        raise RefusedValue(f"targets has numbers from {targets.min()} to {targets.max()}, expected "
                           "0 to 1")
    e = np.exp(-np.abs(logits))
    loss = np.maximum(logits, 0) - logits * targets + np.log1p(e)
    slope = np.where(logits >= 0, 1, e) / (1 + e) - targets
    return _mean(loss, slope, weights, need_grad, out)


def _mean(loss: np.ndarray, slope: np.ndarray, weights: Any, need_grad: bool, out: Any) -> Full:
    """Return the weighted mean of loss (..., N), and its gradient from the slopes."""
    *rows, N = loss.shape
    w = _weights(weights, tuple(rows))
    total = float(math.prod(rows) if w is None else w.sum())
    share = 1 / (total * N) if total else 0.0
    w = np.ones(rows) if w is None else w
    scales = (w * share).astype(loss.dtype)[..., None]  # (..., 1)
    used = np.broadcast_to(w[..., None] > 0, loss.shape)
    mean = np.multiply(loss, scales, where=used, out=np.zeros_like(loss)).sum(dtype=np.float64)
    grad = _place(need_grad, out, loss.shape, loss.dtype)
    if grad is not None:
        grad[...] = 0
        np.multiply(slope, scales, where=used, out=grad)
    return float(mean), total, grad


def _outputs(name: str, outputs: Any) -> tuple[np.ndarray, np.dtype]:
    outputs = np.asarray(outputs)
    dtype = _checks.float_dtype(outputs.dtype.newbyteorder("="), f"{name}' dtype")
    if outputs.ndim < 1 or outputs.shape[-1] < 1:
        raise RefusedValue(f"{name} has shape {outputs.shape}, expected (..., N), N >= 1")
    return np.ascontiguousarray(outputs, dtype), dtype


def _weights(weights: Any, rows: tuple[int, ...]) -> np.ndarray | None:
    """Return the weights (...) as float64, or None: all alike."""
    if weights is None:
        return None
    w = np.asarray(weights)
    w = (w if w.dtype == bool else _checks.numbers("weights", weights)).astype(np.float64)
    if w.shape != rows:
        raise RefusedValue(f"weights has shape {w.shape}, expected {rows}")
    if w.size and not (np.isfinite(w).all() and w.min() >= 0):
        raise RefusedValue(f"weights has numbers from {w.min()} to {w.max()}, expected finite ones "
                           "of at least 0")
    return w


def _place(need_grad: bool, out: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    if not need_grad:
        return None
    return np.empty(shape, dtype) if out is None else _checks.output("out", out, dtype, shape)


LOSSES: dict[str, Callable[..., Full]] = {"softmax": _softmax, "mse": _squared, "bce": _binary}
