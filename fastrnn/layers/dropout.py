"""Masks that training draws, and the generator that draws them.

They are those of dropout between stacked layers, and those of equations. Letter: B batch.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn.cells.masks import drawn_mask
from fastrnn.layers.packs import PackedPart

__all__ = ["Dropout"]


class Dropout(PackedPart):
    """A part that draws masks."""

    _masks: np.random.Generator
    _masks_pid: int
    _dropout: float
    _held: list[tuple[Any, ...]] | None = None  # masks that are not drawn again at each call

    @property
    def dropout(self) -> float:
        """Fraction of the states between layers that training sets to zero; it can be set."""
        return self._dropout

    @dropout.setter
    def dropout(self, value: Any) -> None:
        self._dropout = _checks.probability("dropout", value)

    def _mask(self, y: np.ndarray) -> np.ndarray:
        """Return zeros with probability `dropout`, and elsewhere what keeps the mean."""
        return drawn_mask(self._generator(), y.shape, self.dropout, "dropout", self.dtype)

    def _generator(self) -> np.random.Generator:
        """Return the generator of the masks.

        In a forked child the lock is made new, since a thread that the child does not have may
        hold it; CPython's own modules do so, too.
        """
        if self._masks_pid != os.getpid():
            lock: Any = self._masks.bit_generator.lock
            lock._at_fork_reinit()
            self._masks_pid = os.getpid()
        return self._masks

    @property
    def draws(self) -> bool:
        """Whether a call in training draws masks: of dropout, or those of the cell's equations."""
        return bool(self.dropout) or self._masked

    def hold_masks(self, B: int) -> None:
        """Draw the masks of B sequences and of the weights once, for all calls to come."""
        from fastrnn.layers.programs import hold

        if self._masked:
            self.__dict__["_held"] = [
                tuple(hold(kind, self._generator(), B, self.flat.dtype) for _ in directions)
                for kind, directions in zip(self._kinds, self._weights, strict=True)]

    @property
    def dropout_state(self) -> dict[str, Any]:
        """The state of the generator that draws the masks; it can be set."""
        return dict(self._generator().bit_generator.state)

    @dropout_state.setter
    def dropout_state(self, state: dict[str, Any]) -> None:
        self._generator().bit_generator.state = state
