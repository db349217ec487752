"""How training draws a mask."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["drawn_mask"]


def drawn_mask(rng: np.random.Generator, shape: tuple[int, ...], rate: float, kind: str, dtype: Any
               ) -> np.ndarray:
    """Return a mask: "dropout" or "mask", see fastrnn.cells.graph.Mask."""
    hit = rng.random(shape, np.float32) < np.float32(rate)
    if kind == "mask":
        return hit.astype(dtype)
    scale = 1 / (1 - rate) if rate < 1 else 0
    return np.multiply(~hit, scale, dtype=dtype)
