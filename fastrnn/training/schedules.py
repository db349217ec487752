"""Learning-rate schedules: factors of the first rate, by the step or the fraction of the run.

A schedule is called with the number of steps taken and the fraction of the run that is done, 0 to 1
(what a run of so many steps and one of so many minutes have in common), and returns a factor::

    schedule = CosineDecay(warmup=0.1)
    optimizer.lr = lr * schedule(step, step / steps)
"""

from __future__ import annotations

import abc
import dataclasses
import math

from fastrnn import _checks
from fastrnn._checks import public

__all__ = ["Constant", "CosineDecay", "ExponentialDecay", "LinearDecay", "Schedule", "StepDecay"]


class Schedule(abc.ABC):
    """A function of the step and the fraction of the run, with arguments of its own."""

    @abc.abstractmethod
    def __call__(self, step: int, fraction: float) -> float:
        """Return the factor after `step` steps, when this fraction of the run is done."""


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The first learning rate to the end."""

    def __call__(self, step: int, fraction: float) -> float:
        """Return 1."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class StepDecay(Schedule):
    """One factor more after each `every` steps, whatever the fraction.

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

    @public
    def __post_init__(self) -> None:
        _checks.positive("every", self.every)
        _checks.above("factor", _checks.probability("factor", self.factor))

    def __call__(self, step: int, fraction: float) -> float:
        """Return factor^(step // every)."""
        return float(self.factor ** (step // self.every))


@dataclasses.dataclass(frozen=True)
class _Decay(Schedule):
    """A rise from 0 to 1 while the fraction is below `warmup`, then a fall to `final`."""

    final: float
    warmup: float = 0.0

    @public
    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        _checks.probability("final", self.final)
        _checks.at_least("warmup", self.warmup, 0, 1)

    def __call__(self, step: int, fraction: float) -> float:
        """Return the factor at this fraction, whatever the step."""
        if fraction < self.warmup:
            return fraction / self.warmup
        return self._decay(min(1.0, (fraction - self.warmup) / (1 - self.warmup)))

    @abc.abstractmethod
    def _decay(self, x: float) -> float:
        """Return the factor when the fraction x of the fall is done."""


@dataclasses.dataclass(frozen=True)
class CosineDecay(_Decay):
    """A fall along half a cosine.

    Parameters
    ----------
    final : float in [0, 1]
        The factor at the end.
    warmup : float in [0, 1)
        Fraction of the run in which the factor first rises evenly from 0 to 1.

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

    def _decay(self, x: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * x))


@dataclasses.dataclass(frozen=True)
class LinearDecay(_Decay):
    """An even fall.

    Parameters
    ----------
    final, warmup : as of CosineDecay
    """

    final: float = 0.0

    def _decay(self, x: float) -> float:
        return self.final + (1 - self.final) * (1 - x)


@dataclasses.dataclass(frozen=True)
class ExponentialDecay(_Decay):
    """A fall by the same factor in equal fractions of the run.

    Parameters
    ----------
    final : float in (0, 1]
        The factor at the end.
    warmup : as of CosineDecay
    """

    final: float = 0.05

    def _check(self) -> None:
        super()._check()
        _checks.above("final", self.final)

    def _decay(self, x: float) -> float:
        return float(self.final**x)
