"""Functions of arrays that files of several frameworks name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["elu", "erf", "softmax"]

_BLOCK = 1 << 16  # values that are objects of Python at once


def elu(x: np.ndarray, alpha: Any = 1) -> np.ndarray:
    """Return x, and alpha (exp(x) - 1) below 0; NaN stays."""
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


def softmax(x: np.ndarray, axis: Any = -1) -> np.ndarray:
    """Return exp(x) over its sum along an axis."""
    e = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))


def erf(x: np.ndarray) -> np.ndarray:
    """Return the error function, which NumPy does not have."""
    y, of_one = np.empty(x.size, x.dtype), np.frompyfunc(math.erf, 1, 1)
    flat = x.reshape(-1)
    for at in range(0, x.size, _BLOCK):
        y[at : at + _BLOCK] = of_one(flat[at : at + _BLOCK])
    return y.reshape(x.shape)
