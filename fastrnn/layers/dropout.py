"""Dropout between stacked layers: the masks, and the generator that draws them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn.layers.packs import PackedPart

__all__ = ["Dropout"]


class Dropout(PackedPart):
    """A part that draws masks of dropout."""

    _masks: np.random.Generator
    _masks_pid: int
    _dropout: float

    @property
    def dropout(self) -> float:
        """Fraction of the states between layers that training sets to zero; it can be set."""
        return self._dropout

    @dropout.setter
    def dropout(self, value: Any) -> None:
        self._dropout = _checks.probability("dropout", value)

    def _mask(self, y: np.ndarray) -> np.ndarray:
        """Return zeros with probability `dropout`, and elsewhere what keeps the mean."""
        keep = self._generator().random(y.shape, np.float32) >= np.float32(self.dropout)
        scale = 1 / (1 - self.dropout) if self.dropout < 1 else 0
        return np.multiply(keep, scale, dtype=self.dtype)

    def _generator(self) -> np.random.Generator:
        """Return the generator of dropout's masks.

        A forked child makes a new one in the same state: the lock of the parent's generator may be
        held by a thread that the child does not have.
        """
        if self._masks_pid != os.getpid():
            masks = np.random.default_rng(0)
            masks.bit_generator.state = self._masks.bit_generator.state
            self._masks, self._masks_pid = masks, os.getpid()
        return self._masks

    @property
    def dropout_state(self) -> dict[str, Any]:
        """The state of the generator that draws dropout's masks; it can be set."""
        return dict(self._generator().bit_generator.state)

    @dropout_state.setter
    def dropout_state(self, state: dict[str, Any]) -> None:
        self._generator().bit_generator.state = state
