"""Which parameters an optimiser moves, and how: frozen ones, and groups with settings of their own.

Those that a part declares fixed (`Part.fixed_parameters`) are never moved.

Parameters are named as `parameters()` of the target names them. The answer is a list of ranges of
the parts' buffers; neighbours with equal settings are one range, so that the usual case has one
range for each part.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue
from fastrnn.layers.parameters import Parametrized, Part, full_name, parts_of

__all__ = ["Choice", "Range", "choose"]

SETTINGS = ("lr", "weight_decay")


class Range(NamedTuple):
    """Neighbouring parameters of one part that move alike.

    Attributes
    ----------
    part : int
        Number of the part among those that are trained.
    start, stop : int
        Places in its buffer.
    lr_scale : float
        Factor on the optimiser's rate.
    weight_decay : float
    """

    part: int
    start: int
    stop: int
    lr_scale: float
    weight_decay: float


@dataclasses.dataclass(frozen=True)
class Choice:
    """What an optimiser walks over.

    Attributes
    ----------
    parts : list of Part
        All of the target, each once.
    trained : dict
        Those with anything that moves, by their first name.
    ranges : list of Range
    freeze : list of str
    groups : dict
        By pattern; "lr" is the ratio to the optimiser's.
    """

    parts: list[Part]
    trained: dict[str, Part]
    ranges: list[Range]
    freeze: list[str]
    groups: dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A distinct part with all its names in the target."""

    names: list[str]
    part: Part


def choose(target: Any, freeze: Any, groups: Any, lr: float, weight_decay: float) -> Choice:
    """Return what moves, and how; refuse patterns that fit no parameter."""
    entries = _entries(target)
    frozen = _freeze_names(freeze, entries)
    settings = _settings(groups, lr)
    for argument, patterns in (("freeze", frozen), ("groups", list(settings))):
        for pattern in patterns:
            if not any(_fits(pattern, entry, name) for entry in entries
                       for name in entry.part.parameters()):
                raise RefusedValue(f"{argument} has {pattern!r}, expected names or patterns of "
                                   f"{_known(entries)}")
    trained: dict[str, Part] = {}
    ranges: list[Range] = []
    for entry in entries:
        start, number, fixed = 0, len(trained), entry.part.fixed_parameters
        for name, param in entry.part.parameters().items():
            stop = start + param.size
            if name not in fixed and not any(_fits(pattern, entry, name) for pattern in frozen):
                trained[entry.names[0]] = entry.part
                own = next((s for pattern, s in settings.items() if _fits(pattern, entry, name)),
                           {})
                new = Range(number, start, stop, own.get("lr", 1.0),
                            own.get("weight_decay", weight_decay))
                if ranges and ranges[-1]._replace(start=start, stop=stop) == new and (
                        ranges[-1].stop == start):
                    new = new._replace(start=ranges.pop().start)
                ranges.append(new)
            start = stop
    if not ranges and not frozen:
        raise RefusedValue("target has nothing but fixed parameters, expected some to train")
    if not ranges:
        raise RefusedValue(f"freeze is {frozen}, which leaves nothing to train")
    return Choice([entry.part for entry in entries], trained, ranges, frozen, settings)


def _entries(target: Any) -> list[_Entry]:
    found: dict[int, _Entry] = {}
    for name, part in parts_of(target):
        found.setdefault(id(part), _Entry([], part)).names.append(name)
    return list(found.values())


def _fits(pattern: str, entry: _Entry, parameter: str) -> bool:
    """Whether a name or pattern fits a parameter, its part, or what the part belongs to."""
    for part in entry.names:
        name = full_name(part, parameter)
        if name.startswith(pattern + ".") or fnmatch.fnmatchcase(name, pattern) or (
                fnmatch.fnmatchcase(part, pattern)):
            return True
    return False


def _freeze_names(freeze: Any, entries: list[_Entry]) -> list[str]:
    """Return names and patterns; a part or model that is given becomes its parts' names."""
    if isinstance(freeze, (str, Parametrized)):
        freeze = [freeze]
    if not isinstance(freeze, (list, tuple, set, frozenset)):
        raise RefusedType(f"freeze is {_checks.show(freeze)}, expected names, parts, or a list of "
                          "them")
    names = []
    for given in freeze:
        if isinstance(given, str):
            names.append(given)
        elif isinstance(given, Parametrized):
            for part in given.parts().values():
                own = next((e.names[0] for e in entries if e.part is part), None)
                if own is None:
                    raise RefusedValue(f"freeze has a {type(given).__name__} that is not in the "
                                       f"target, expected parts of {_known(entries)}")
                names.append(own)
        else:
            raise RefusedType(f"freeze has {_checks.show(given)}, expected names or parts")
    return names


def _settings(groups: Any, lr: float) -> dict[str, dict[str, float]]:
    """Return the groups by pattern, with "lr" as the ratio to the optimiser's."""
    if groups is None:
        return {}
    if not isinstance(groups, Mapping):
        raise RefusedType(f"groups is {_checks.kind(groups)}, expected a dict of names or patterns "
                          'to settings, such as {"head": {"lr": 0.01}}')
    found = {}
    for pattern, given in groups.items():
        if not isinstance(pattern, str):
            raise RefusedType(f"groups has the key {_checks.show(pattern)}, expected a name or "
                              "pattern")
        name = f"groups[{pattern!r}]"
        if not isinstance(given, Mapping):
            raise RefusedType(f"{name} is {_checks.show(given)}, expected a dict of {SETTINGS}")
        for setting in given:
            _checks.one_of(f"the setting in {name}", setting, SETTINGS)
        own: dict[str, float] = {}
        if "lr" in given:
            own["lr"] = _checks.above(f"{name}['lr']", given["lr"]) / lr
        if "weight_decay" in given:
            own["weight_decay"] = _checks.at_least(f"{name}['weight_decay']",
                                                   given["weight_decay"])
        found[pattern] = own
    return found


def _known(entries: list[_Entry]) -> list[str]:
    return [full_name(entry.names[0], name) for entry in entries
            for name in entry.part.parameters()]
