"""Learning-rate schedules: factors of the first learning rate, by the step or the share done.

A schedule is called with the number of steps taken and the share of the run that is done, 0 to 1
(what a run of so many steps and one of so many minutes have in common), and gives a factor::

    schedule = cosine(warmup=0.1)
    optimizer.lr = lr * schedule(step, step / steps)
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

from fastrnn import _checks

__all__ = ["SCHEDULES", "Schedule", "constant", "cosine", "exponential", "linear", "steps"]


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """What the schedules share: their arguments as a dict."""

    @property
    def config(self) -> dict[str, Any]:
        """The schedule's name as "schedule", and its arguments; fit for JSON.

        ``SCHEDULES[config.pop("schedule")](**config)`` makes an equal one.
        """
        return {"schedule": type(self).__name__, **dataclasses.asdict(self)}

    @abc.abstractmethod
    def __call__(self, step: int, share: float) -> float:
        """Return the factor after `step` steps, at this share of the run."""


@dataclasses.dataclass(frozen=True)
class constant(Schedule):
    """The first learning rate to the end."""

    def __call__(self, step: int, share: float) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True)
class steps(Schedule):
    """A fall by one factor after each `every` steps, whatever the share.

    Parameters
    ----------
    every : int
    factor : float in (0, 1]

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """

    every: int
    factor: float

    def __post_init__(self) -> None:
        _checks.positive("steps", "every", self.every)
        _checks.above("steps", "factor", _checks.probability("steps", "factor", self.factor))

    def __call__(self, step: int, share: float) -> float:
        return float(self.factor ** (step // self.every))


@dataclasses.dataclass(frozen=True)
class _Fall(Schedule):
    """A rise from 0 to 1 while the share is below `warmup`, then a fall to `final` at the end."""

    final: float
    warmup: float = 0.0

    def __post_init__(self) -> None:
        owner = type(self).__name__
        _checks.probability(owner, "final", self.final)
        _checks.at_least(owner, "warmup", self.warmup, 0, 1)

    def __call__(self, step: int, share: float) -> float:
        if share < self.warmup:
            return share / self.warmup
        return self._fall(min(1.0, (share - self.warmup) / (1 - self.warmup)))

    @abc.abstractmethod
    def _fall(self, x: float) -> float:
        """Return the factor when the share x of the fall is done."""


@dataclasses.dataclass(frozen=True)
class cosine(_Fall):
    """A fall along half a cosine.

    Parameters
    ----------
    final : float in [0, 1]
        The factor at the end.
    warmup : float in [0, 1)
        Share of the run in which the factor first rises evenly from 0 to 1.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017,
    equation 5, without restarts.
    """

    final: float = 0.05

    def _fall(self, x: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * x))


@dataclasses.dataclass(frozen=True)
class linear(_Fall):
    """An even fall; arguments as of `cosine`."""

    final: float = 0.0

    def _fall(self, x: float) -> float:
        return self.final + (1 - self.final) * (1 - x)


@dataclasses.dataclass(frozen=True)
class exponential(_Fall):
    """A fall by the same factor in each share of the run; as `cosine`, but final is above 0."""

    final: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.above("exponential", "final", self.final)

    def _fall(self, x: float) -> float:
        return float(self.final**x)


SCHEDULES: dict[str, type[Any]] = {
    c.__name__: c for c in (constant, cosine, linear, steps, exponential)
}
