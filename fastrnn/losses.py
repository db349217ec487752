"""Losses: what a model's outputs cost, and the gradient with respect to them, in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._kernels import dense

__all__ = ["softmax_cross_entropy"]


def softmax_cross_entropy(
    logits: Any, targets: Any, *, need_grad: bool = True, out: np.ndarray | None = None
) -> tuple[float, np.ndarray | None]:
    """Return the mean of -log softmax(logits)[target] and its gradient.

    Parameters
    ----------
    logits : array (..., N)
        float32 or float64.
    targets : integers (...)
        The right class of each row, 0 to N - 1.
    need_grad : bool
        Whether the gradient is wanted.
    out : array like logits, optional
        Where to put the gradient; may be `logits` itself. By default a new array.

    Returns
    -------
    loss : float
        Mean over all rows, in nats; 0 for no rows.
    dlogits : array (..., N) or None
        (softmax(logits) - onehot(target)) / rows.

    Raises
    ------
    TypeError
        If logits are not float32 or float64, or targets no whole numbers.
    ValueError
        If shapes do not fit.
    IndexError
        If a target is not in [0, N).
    """
    owner = "softmax_cross_entropy"
    logits = np.asarray(logits)
    dtype = _checks.float_dtype(f"{owner}: logits", logits.dtype.newbyteorder("="))
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise ValueError(f"{owner}: logits has shape {logits.shape}, expected (..., N), N >= 1")
    *rows, N = logits.shape
    targets = _checks.rows(owner, targets, rows, N, name="targets", of="logits' last axis")
    flat = np.ascontiguousarray(logits, dtype).reshape(-1, N)
    grad = None
    if need_grad:
        if out is None:
            out = np.empty(logits.shape, dtype)
        grad = _checks.output(owner, "out", out, dtype, logits.shape).reshape(-1, N)
    count = max(1, len(flat))
    loss = dense.softmax_cross_entropy(flat, targets.reshape(-1), 1 / count, grad)
    return loss / count, out if need_grad else None
