"""What layers ask the code that computes them: the kernels of the table's cells, or another engine.

Letters: T steps, B batch, I input, D directions, O features of one direction's output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from fastrnn._kernels.runtime import Workspace
    from fastrnn._kernels.timeline import Timeline

__all__ = ["AnyTape", "Engine"]

States = tuple[np.ndarray | None, ...] | None  # (D, B, width) or None: zero, for each state


class AnyTape(Protocol):
    """What the backward of one forward call needs: see fastrnn/_kernels/tape.pyx."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes (T, B, I, ...)."""

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of dx; () for one-hot symbols."""

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of y."""

    @property
    def symbols(self) -> bool:
        """Whether x was symbols."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tape."""

    @property
    def used(self) -> bool:
        """Whether it has served its one backward."""

    def copy(self) -> AnyTape:
        """Return a tape with memory of its own, which serves one more backward."""

    def release(self) -> None:
        """Give the memory back."""


class Engine(Protocol):
    """A module that runs one layer over a sequence: see fastrnn/_kernels/sequence.pyx.

    `kind` is what it computes and `weights` has an entry for each direction: the parameters in the
    order of the cell's `parameters`, None for those that are missing, or what the layer's
    `_pack_one` made of them. y is (T, B, D*O), and a state (D, B, width).
    """

    def forward(
        self, kind: Any, x: np.ndarray | None, index: np.ndarray | None, weights: Any,
        reverse: tuple[bool, ...], initial: States, y: np.ndarray, final: tuple[np.ndarray, ...],
        keep: bool, workspace: Workspace, time: Timeline | None = None, source: str = "time",
        target: str = "time",
    ) -> AnyTape | None:
        """Fill y and the final states; return a tape if it is to be kept."""

    def backward(
        self, tape: Any, dy: np.ndarray | None, dfinal: States, dx: np.ndarray | None,
        dinitial: tuple[np.ndarray, ...], grads: Any, record: tuple[str, ...] = (),
    ) -> dict[str, np.ndarray]:
        """Fill dx and dinitial, add to the gradients, and return what is to be recorded."""
