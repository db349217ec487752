"""What a training reports: how far it is, and what happened."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from fastrnn import _checks

__all__ = ["History", "Progress", "best_of"]


@dataclasses.dataclass
class Progress:
    """How far a training is.

    Attributes
    ----------
    steps, seen : int
        Steps taken, and rows of all time steps read in them: see Batch.size.
    seconds : float
        Since the first step.
    loss : float
        Training loss, a moving mean over about 100 steps.
    fraction : float
        The fraction of the run that is done, 0 to 1.
    """

    steps: int = 0
    seen: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    fraction: float = 0.0

    @property
    def speed(self) -> float:
        """What `seen` counts, per second."""
        return self.seen / self.seconds if self.seconds else 0.0

    @property
    def bits(self) -> float:
        """The loss in bits, if it is in nats."""
        return self.loss / math.log(2)


def best_of(validations: list[tuple[int, float]]) -> tuple[int, float] | None:
    """Return the first of the least losses with its step; None of none."""
    return min(validations, key=lambda v: math.inf if math.isnan(v[1]) else v[1], default=None)


@dataclasses.dataclass
class History:
    """What happened in a training, step by step.

    Attributes
    ----------
    losses, norms, rates : list of float
        Training loss, global norm of the gradients before any clipping, and learning rate of each
        step.
    clip : float or None
        The gradients were scaled down where their norm was above it.
    clipped : list of int
        The steps, from 1 on, in which that happened. With `clip_value` the norm is that of the
        limited elements.
    validations : list of (step, loss)
    ends : list of int
        The steps of those that were due only because a run ended there; patience leaves them out.
    stopped : str
        Why it ended: "done", "target", "patience" or "interrupted".
    progress : Progress
        The last one.
    """

    losses: list[float] = dataclasses.field(default_factory=list)
    norms: list[float] = dataclasses.field(default_factory=list)
    rates: list[float] = dataclasses.field(default_factory=list)
    clip: float | None = None
    clipped: list[int] = dataclasses.field(default_factory=list)
    validations: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    ends: list[int] = dataclasses.field(default_factory=list)
    stopped: str = "done"
    progress: Progress = dataclasses.field(default_factory=Progress)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and loss of the best validation; None without one."""
        return best_of(self.validations)

    def plot(self, axes: Any = None) -> Any:
        """Draw losses and norms over the steps; return the two Axes (extra [plot]).

        Raises
        ------
        TypeError
            If `axes` are not two Axes of matplotlib.
        """
        if axes is not None and not (hasattr(axes, "__len__") and len(axes) == 2):
            raise TypeError(f"plot: axes is {_checks.kind(axes)}, expected two Axes, as of "
                            "plt.subplots(2)")
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
