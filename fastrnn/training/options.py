"""The options of fit, in groups, each checked when it is made."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue
from fastrnn.cells.tree import nearest
from fastrnn.training.history import Progress
from fastrnn.training.interrupt import Interrupt

__all__ = ["Descent", "Length", "Options", "Reading", "Saving", "Stopping", "count_of", "grouped",
           "takes"]

Made = TypeVar("Made")


class Options(TypedDict, total=False):
    """What fit takes besides its own arguments; fit describes them."""

    window: int | None
    weights: Any
    context: Any
    episode_start: Any
    shuffle: bool
    seed: int
    schedule: Callable[[int, float], float] | None
    clip: float | None
    clip_value: float | None
    omega: float
    recompute_every: int | None
    validate_every: int | None
    patience: int | None
    target_loss: float | None
    folder: Any
    checkpoint_every: int
    resume: bool
    overwrite: bool
    progress: Any
    interrupt: Interrupt | None


def count_of(data: Any) -> int | None:
    """Return how many batches are an epoch, if the data says so with a whole number."""
    count = getattr(data, "count", None)
    return int(count) if isinstance(count, (int, np.integer)) else None


@dataclasses.dataclass(frozen=True)
class Length:
    """When a run is over."""

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("epochs", "steps", "minutes")
                 if getattr(self, name) is not None]
        if len(given) != 1:
            raise RefusedValue(f"{' and '.join(given) or 'none of epochs, steps and minutes'} "
                               f"{'are' if given else 'is'} given, expected one of epochs, steps "
                               "and minutes")
        if self.minutes is None:
            _checks.positive(given[0], getattr(self, given[0]))
        else:
            _checks.above("minutes", self.minutes)

    def limit(self, data: Any) -> float:
        """Return how many steps, or seconds, a run has."""
        if self.minutes is not None:
            return 60 * self.minutes
        if self.steps is not None:
            return self.steps
        count = count_of(data)
        if count is None:
            raise RefusedValue(f"epochs is {self.epochs} with a function of the step, expected "
                               "steps or minutes: nobody knows how many batches are an epoch")
        return int(self.epochs or 0) * count

    def fraction(self, now: Progress, limit: float) -> float:
        """Return how much of the run is done, 0 to 1."""
        return min(1.0, (now.steps if self.minutes is None else now.seconds) / limit)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How arrays become batches."""

    batch_size: int = 32
    window: int | None = None
    weights: Any = None
    context: Any = None
    episode_start: Any = None
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        _checks.positive("batch_size", self.batch_size)
        if self.window is not None:
            _checks.positive("window", self.window)
        _checks.flag("shuffle", self.shuffle)
        _checks.at_least("seed", self.seed)
        _checks.seeds(self.seed, 1)


@dataclasses.dataclass(frozen=True)
class Descent:
    """What one step does with the gradients."""

    schedule: Callable[[int, float], float] | None = None
    clip: float | None = 1.0
    clip_value: float | None = None
    omega: float = 0.0
    recompute_every: int | None = None

    def __post_init__(self) -> None:
        if self.schedule is not None and not callable(self.schedule):
            raise RefusedType(f"schedule is {_checks.show(self.schedule)}, expected a function of "
                              "the step and the fraction of the run: see fastrnn.schedules")
        if self.schedule is not None and not takes(self.schedule, 0, 0.0):
            raise RefusedType("schedule does not take two arguments, expected a function of the "
                              "step and the fraction of the run: see fastrnn.schedules")
        for name in ("clip", "clip_value"):
            if getattr(self, name) is not None:
                _checks.above(name, getattr(self, name))
        _checks.at_least("omega", self.omega)
        if self.recompute_every is not None:
            _checks.positive("recompute_every", self.recompute_every)


@dataclasses.dataclass(frozen=True)
class Stopping:
    """When to validate, and what ends the run early."""

    validate_every: int | None = None
    patience: int | None = None
    target_loss: float | None = None

    def __post_init__(self) -> None:
        for name in ("validate_every", "patience"):
            if getattr(self, name) is not None:
                _checks.positive(name, getattr(self, name))
        if self.target_loss is not None:
            _checks.above("target_loss", self.target_loss, -math.inf)

    def check(self, validation: Any) -> None:
        """Refuse what makes no sense without validation."""
        for name in ("validate_every", "patience", "target_loss"):
            if validation is None and getattr(self, name) is not None:
                raise RefusedValue(f"{name} is given without validation, expected both")


@dataclasses.dataclass(frozen=True)
class Saving:
    """Where and when files are written."""

    folder: Any = None
    checkpoint_every: int = 1000
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        _checks.positive("checkpoint_every", self.checkpoint_every)
        for name in ("resume", "overwrite"):
            _checks.flag(name, getattr(self, name))
            if getattr(self, name) and self.folder is None:
                raise RefusedValue(f"{name} is True without a folder, expected both")
        if self.resume and self.overwrite:
            raise RefusedValue("resume and overwrite are True, expected one of them")


def takes(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a function can be called with these arguments, as far as can be known."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def grouped(kind: type[Made], options: Mapping[str, Any]) -> Made:
    """Return the options that belong to a group, made and checked."""
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: options[name] for name in names if name in options})


def check_known(options: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Refuse options that a function does not have, which takes `Options` beside its own."""
    known = list(Options.__annotations__)
    unknown = [name for name in options if name not in known]
    if unknown:
        hint = nearest(unknown[0], [*known, *inspect.signature(function).parameters])
        raise RefusedType(f"there is no option {unknown[0]!r}, expected some of {known}{hint}")
