"""What a training tells of itself: where it stands, and what happened."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

__all__ = ["History", "Progress"]


@dataclasses.dataclass
class Progress:
    """Where a training stands.

    Attributes
    ----------
    steps, seen : int
        Steps taken, and numbers or symbols read in them.
    seconds : float
        Since the first step.
    loss : float
        Training loss, a mean that forgets (time constant 100 steps).
    share : float
        Of the run that is done, 0 to 1.
    """

    steps: int = 0
    seen: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    share: float = 0.0

    @property
    def speed(self) -> float:
        """Numbers or symbols per second."""
        return self.seen / self.seconds if self.seconds else 0.0

    @property
    def bits(self) -> float:
        """The loss in bits, if it is in nats."""
        return self.loss / math.log(2)


@dataclasses.dataclass
class History:
    """What happened in a training, step by step.

    Attributes
    ----------
    losses, norms, rates : list of float
        Training loss, global norm of the gradients before clipping, and learning rate of each step.
    clip : float or None
        Norms above it were clipped.
    validations : list of (step, loss)
    stopped : str
        Why it ended: "done", "target", "patience" or "interrupted".
    progress : Progress
        The last one.
    """

    losses: list[float] = dataclasses.field(default_factory=list)
    norms: list[float] = dataclasses.field(default_factory=list)
    rates: list[float] = dataclasses.field(default_factory=list)
    clip: float | None = None
    validations: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    stopped: str = "done"
    progress: Progress = dataclasses.field(default_factory=Progress)

    @property
    def clipped(self) -> list[int]:
        """The steps, from 1 on, whose gradients were clipped."""
        if self.clip is None:
            return []
        return [i + 1 for i, norm in enumerate(self.norms) if norm > self.clip]

    def plot(self, axes: Any = None) -> Any:
        """Draw losses and norms over the steps; return the two Axes (extra [plot])."""
        if axes is None:
            from matplotlib.figure import Figure

            axes = Figure(figsize=(7, 5), layout="constrained").subplots(2, sharex=True)
        steps = np.arange(1, len(self.losses) + 1)
        axes[0].plot(steps, self.losses, lw=0.8, label="training")
        if self.validations:
            axes[0].plot(*zip(*self.validations, strict=True), "o-", label="validation")
        axes[0].set_ylabel("loss")
        axes[0].legend()
        axes[1].semilogy(steps, self.norms, lw=0.8, label="gradients' norm")
        if self.clip is not None:
            axes[1].axhline(self.clip, color="C3", lw=0.8,
                            label=f"clipped above ({len(self.clipped)} of {len(steps)} steps)")
        axes[1].set(xlabel="step", ylabel="norm")
        axes[1].legend()
        return axes
