"""Losses: what a model's outputs cost, and the gradient with respect to them.

All three take outputs (..., N), targets, and weights (...): one for each row of N numbers, 0 to
leave it out. The loss is the weighted mean over the rows, sum(w * loss) / sum(w); what stands in a
row of weight 0, be it NaN, counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._kernels import loss as kernel

__all__ = ["LOSSES", "binary_cross_entropy", "mean_squared_error", "softmax_cross_entropy"]

Result = tuple[float, "np.ndarray | None"]

_DOC = """

    Parameters
    ----------
    {outputs} : array (..., N)
        float32 or float64.
    {targets}
    weights : array (...), optional
        Of each row, at least 0; None counts all alike.
    need_grad : bool
        Whether the gradient is wanted.
    out : array like {outputs}, optional
        Where to put the gradient; may be `{outputs}` itself. By default a new array.

    Returns
    -------
    loss : float
        Weighted mean over the rows{unit}; 0 if there is nothing to take a mean of.
    d{outputs} : array (..., N) or None

    Raises
    ------
    TypeError
        If outputs are not float32 or float64, or targets are of another kind.
    ValueError
        If shapes do not fit, or a weight is negative or not finite{range}.
    """


def _documented(
    outputs: str, targets: str, unit: str = "", range: str = ""
) -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        function.__doc__ += _DOC.format(outputs=outputs, targets=targets, unit=unit, range=range)
        return function

    return add


def _rows(owner: str, name: str, outputs: Any) -> tuple[np.ndarray, np.dtype]:
    outputs = np.asarray(outputs)
    dtype = _checks.float_dtype(f"{owner}: {name}", outputs.dtype.newbyteorder("="))
    if outputs.ndim < 1 or outputs.shape[-1] < 1:
        raise ValueError(f"{owner}: {name} has shape {outputs.shape}, expected (..., N), N >= 1")
    return np.ascontiguousarray(outputs, dtype), dtype


def _shares(owner: str, weights: Any, rows: tuple[int, ...]) -> np.ndarray | None:
    """Return each row's part of the mean (R,) float64, or None: all alike."""
    if weights is None:
        return None
    w = np.asarray(_checks.numbers(owner, "weights", weights), np.float64)
    if w.shape != rows:
        raise ValueError(f"{owner}: weights has shape {w.shape}, expected {rows}")
    if w.size and not (np.isfinite(w).all() and w.min() >= 0):
        raise ValueError(f"{owner}: weights has numbers from {w.min()} to {w.max()}, expected "
                         "finite ones of at least 0")
    total = w.sum()
    return w.reshape(-1) / total if total else np.zeros(w.size)


def _place(owner: str, need_grad: bool, out: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    if not need_grad:
        return None
    if out is None:
        return np.empty(shape, dtype)
    return _checks.output(owner, "out", out, dtype, shape)


@_documented("logits", "targets : integers (...)\n        The right class of each row, 0 to N - 1.",
             ", in nats")
def softmax_cross_entropy(
    logits: Any, targets: Any, weights: Any = None, *, need_grad: bool = True,
    out: np.ndarray | None = None,
) -> Result:
    """Return the mean of -log softmax(logits)[target] and its gradient.

    Raises IndexError too, if a target is not in [0, N).
    """
    owner = "softmax_cross_entropy"
    logits, dtype = _rows(owner, "logits", logits)
    *rows, N = logits.shape
    targets = _checks.rows(owner, targets, rows, N, name="targets", of="logits' last axis")
    shares = _shares(owner, weights, tuple(rows))
    grad = _place(owner, need_grad, out, logits.shape, dtype)
    flat = logits.reshape(-1, N)
    mean = 1 / max(1, len(flat)) if shares is None else 1.0
    loss = kernel.softmax_cross_entropy(flat, targets.reshape(-1), mean,
                                       None if grad is None else grad.reshape(-1, N), shares)
    return loss * mean, grad


@_documented("outputs", "targets : array (..., N)")
def mean_squared_error(
    outputs: Any, targets: Any, weights: Any = None, *, need_grad: bool = True,
    out: np.ndarray | None = None,
) -> Result:
    """Return the mean of the squared differences, over N and over the rows, and its gradient."""
    owner = "mean_squared_error"
    outputs, dtype = _rows(owner, "outputs", outputs)
    targets = _checks.array(owner, "targets", targets, dtype, outputs.shape)
    difference = outputs - targets
    return _mean(owner, difference * difference, 2 * difference, weights, need_grad, out)


@_documented("logits", "targets : array (..., N)\n        Probabilities, 0 to 1.", ", in nats",
             ", or a target is not in [0, 1]")
def binary_cross_entropy(
    logits: Any, targets: Any, weights: Any = None, *, need_grad: bool = True,
    out: np.ndarray | None = None,
) -> Result:
    """Return the mean of -(t log p + (1 - t) log(1 - p)), p = sigmoid(logits), and its gradient."""
    owner = "binary_cross_entropy"
    logits, dtype = _rows(owner, "logits", logits)
    targets = _checks.array(owner, "targets", targets, dtype, logits.shape)
    if targets.size and not (targets.min() >= 0 and targets.max() <= 1):
        raise ValueError(f"{owner}: targets has numbers from {targets.min()} to {targets.max()}, "
                         "expected 0 to 1")

    e = np.exp(-np.abs(logits))
    loss = np.maximum(logits, 0) - logits * targets + np.log1p(e)
    slope = np.where(logits >= 0, 1, e) / (1 + e) - targets
    return _mean(owner, loss, slope, weights, need_grad, out)


def _mean(owner: str, loss: np.ndarray, slope: np.ndarray, weights: Any, need_grad: bool,
          out: Any) -> Result:
    """Return the weighted mean of loss (..., N) and, from its slopes, the mean's gradient."""
    *rows, N = loss.shape
    shares = _shares(owner, weights, tuple(rows))
    if shares is None:
        shares = np.full(math.prod(rows), 1 / max(1, math.prod(rows)))
    scales = (shares / N).astype(loss.dtype).reshape(*rows, 1)
    used = np.broadcast_to(scales > 0, loss.shape)
    total = np.multiply(loss, scales, where=used, out=np.zeros_like(loss)).sum(dtype=np.float64)
    grad = _place(owner, need_grad, out, loss.shape, loss.dtype)
    if grad is not None:
        grad[...] = 0
        np.multiply(slope, scales, where=used, out=grad)
    return float(total), grad


LOSSES: dict[str, Callable[..., Result]] = {
    "softmax": softmax_cross_entropy, "mse": mean_squared_error, "bce": binary_cross_entropy,
}
