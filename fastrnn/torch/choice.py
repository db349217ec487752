"""Which of the two ways a call goes, fastrnn's or PyTorch's, and what was found out about it.

At the first sight of a problem (operator, sizes, gradients or not, threads) both ways are timed,
and the faster one is kept for the rest of the process. If that is PyTorch's, both are timed once
more some calls later, and the shortest times count: what else the computer did at the first moment
shall not decide for ever. The mode "always" times nothing, so that two runs of a program take the
same way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from fastrnn import _checks

__all__ = ["MODES", "Choice", "choices", "get_mode", "mode", "note", "set_mode"]

MODES = ("auto", "always", "never")
LOG = logging.getLogger("fastrnn.torch")

# Each way is timed so often, or until it has taken so many seconds,
_ROUNDS, _SECONDS = 5, 0.05
# or until one of them was faster by this factor in at least two rounds.
_CLEAR = 1.25
# After so many calls that took PyTorch's way both are timed again.
_AGAIN = 10
# PyTorch's way must be faster by this factor to be taken: measurements scatter.
_MARGIN = 0.97
_PLAIN = (torch.Tensor, torch.nn.Parameter)
# Problems that are remembered; a program with more distinct sizes starts again.
_MOST = 4096

Way = Callable[[], object]

_mode = "auto"


@dataclasses.dataclass(slots=True)
class Choice:
    """What is known about one problem.

    Attributes
    ----------
    cell : str
        "LSTM", "GRUCell", ...
    shape : str
        The sizes, for people.
    accelerated : bool
        Whether calls take fastrnn's way.
    ours, theirs : float or None
        Seconds of one call each way, of a long one estimated from its first steps, the shorter of
        two measurements if there were two; None if not measured.
    calls_left : int
        How many calls there are until both ways are timed again; 0: they are not.
    """

    cell: str
    shape: str
    accelerated: bool = True
    ours: float | None = None
    theirs: float | None = None
    calls_left: int = 0

    def count_down(self) -> bool:
        """Count a call; return whether both ways are to be timed at it."""
        if self.ours is None or not self.calls_left:
            return self.ours is None
        self.calls_left -= 1
        return not self.calls_left


@dataclasses.dataclass(slots=True)
class Count:
    """Calls of one module with one problem, and what happened to them.

    `is_of` says whether an object is the module's first weight.
    """

    is_of: Callable[[object], bool]
    choice: Choice
    accelerated: int = 0
    fallback: int = 0
    reason: str = ""


choices: dict[tuple[Any, ...], Choice] = {}
counts: dict[tuple[Any, ...], Count] = {}
gone: dict[tuple[Any, ...], Count] = {}  # of weights that are no more, by problem and reason


def set_mode(name: str) -> None:
    """Choose how calls are distributed between fastrnn and PyTorch.

    Parameters
    ----------
    name : {"auto", "always", "never"}
        "auto" times both ways at the first call with new sizes and keeps the faster one. "always"
        uses fastrnn wherever it can compute the call, without timing: the way that a call takes
        is the same in every run. "never" leaves every call to PyTorch.

    Raises
    ------
    ValueError
        If it is another name.
    """
    global _mode
    if not isinstance(name, str) or name not in MODES:
        raise ValueError(f"set_mode: name is {_checks.show(name)}, expected one of "
                         f"{', '.join(MODES)}")
    _mode = name


def get_mode() -> str:
    """Return "auto", "always" or "never"."""
    return _mode


@contextlib.contextmanager
def mode(name: str) -> Iterator[None]:
    """Use another mode inside a with block.

    Parameters
    ----------
    name : str
        As of `set_mode`.
    """
    before = _mode
    set_mode(name)
    try:
        yield
    finally:
        set_mode(before)


def chosen(
    key: tuple[Any, ...], cell: str, call: Any, ways: Callable[[Any], tuple[Way, Way, float]],
    apart: Callable[[], AbstractContextManager[object]], *, for_good: bool,
) -> Choice:
    """Return the choice for a problem; time both ways if it is new.

    Parameters
    ----------
    key : tuple
        What the time depends on.
    cell : str
    call : object
        Its text has the sizes.
    ways : function
        Returns two functions that compute the call, or its first steps, ours and PyTorch's,
        without side effects, and the share of its steps that they compute.
    apart : function
        Returns a context in which they do not reach what watches the program.
    for_good : bool
        Whether they are timed only once. A checkpoint computes a call again, and must find that it
        goes the same way.
    """
    choice = choices.get(key)
    if choice is None or (_mode == "auto" and choice.count_down()):
        # No lock: two threads may time the same problem, which does no harm. A child that is forked
        # meanwhile would wait for a lock for ever.
        choice = _entry(key, Choice(cell, str(call)))
        if _mode == "auto":
            with apart():
                *both, share = ways(call)
                ours, theirs = (seconds / share for seconds in _timed(*both))
            again = choice.ours is not None
            choice.ours = min(ours, choice.ours or ours)
            choice.theirs = min(theirs, choice.theirs or theirs)
            choice.accelerated = choice.theirs > _MARGIN * choice.ours
            choice.calls_left = 0 if again or for_good or choice.accelerated else _AGAIN
    return choice


def refused(key: tuple[Any, ...], cell: str, shape: str) -> Choice:
    """Return the choice for calls that only PyTorch can compute."""
    return choices.get(key) or _entry(key, Choice(cell, shape, False))


def _entry(key: tuple[Any, ...], new: Choice) -> Choice:
    if len(choices) >= _MOST:
        for known in (choices, counts, gone):
            known.clear()
    return choices.setdefault(key, new)


def _timed(ours: Way, theirs: Way) -> tuple[float, float]:
    """Return the shortest time of each of two ways, in turns."""
    ours()  # libraries prepare themselves at the first call
    theirs()
    own, other = list[float](), list[float]()
    begin = time.perf_counter()
    for _ in range(_ROUNDS):
        for way, times in ((ours, own), (theirs, other)):
            start = time.perf_counter()
            way()
            times.append(time.perf_counter() - start)
        if time.perf_counter() - begin > 2 * _SECONDS or _is_clear(own, other):
            break
    return min(own), min(other)


def _is_clear(own: list[float], other: list[float]) -> bool:
    """Whether no more rounds are needed: one way was always much faster than the other ever was."""
    return len(own) > 1 and (_CLEAR * max(own) < min(other) or _CLEAR * max(other) < min(own))


def note(owner: object, key: tuple[Any, ...], choice: Choice, reason: str) -> None:
    """Count a call.

    Parameters
    ----------
    owner : Tensor
        The first weight, which says to which module the call belongs.
    key : tuple
        As of `chosen`.
    choice : Choice
    reason : str
        Why PyTorch computed it; empty: fastrnn did.
    """
    place = (id(owner), key, reason)
    count = counts.get(place)
    if count is None or not count.is_of(owner):
        if count is not None:
            _to_gone(place)
        if len(counts) >= _MOST:  # weights that are made anew for each call
            _make_room()
        count = counts[place] = Count(_recogniser(owner), choice, reason=reason)
    if reason:
        count.fallback += 1
    else:
        count.accelerated += 1
    if LOG.isEnabledFor(logging.INFO):
        LOG.info("%s %s: %s", choice.cell, choice.shape,
                 f"PyTorch ({reason})" if reason else "accelerated")


def _to_gone(place: tuple[Any, ...]) -> None:
    """Add a count to those of weights that are no more."""
    old = counts.pop(place, None)
    if old is None:  # another thread was faster
        return
    kept = gone.setdefault(place[1:], Count(lambda other: False, old.choice, reason=old.reason))
    kept.accelerated += old.accelerated
    kept.fallback += old.fallback


def _collect_gone() -> None:
    """Join the counts of weights that are no more."""
    for place in [place for place, count in list(counts.items()) if count.is_of(None)]:
        _to_gone(place)


def _make_room() -> None:
    """Free at least half of the room for counts."""
    _collect_gone()
    for place in list(counts)[:max(0, len(counts) - _MOST // 2)]:
        _to_gone(place)


def _recogniser(owner: Any) -> Callable[[object], bool]:
    """Return a function that says whether an object is this one, without keeping it alive.

    A new object can have the identity of one that is gone, so a weak reference is asked. Where
    PyTorch swaps parameters with others, which it refuses for those with weak references, the
    place of the numbers is compared: if that is switched on, and for subclasses of tensors.
    """
    swapped = torch.__future__.get_swap_module_params_on_conversion() or (
        isinstance(owner, torch.Tensor) and type(owner) not in _PLAIN)
    if swapped:
        place = id(owner), _pointer(owner)
        return lambda other: (id(other), _pointer(other)) == place
    try:
        reference = weakref.ref(owner)
    except TypeError:  # a call with something else in a tensor's place
        return lambda other: other is owner
    return lambda other: reference() is other


def _pointer(owner: Any) -> int:
    try:
        return int(owner.data_ptr()) if type(owner) in _PLAIN else 0
    except RuntimeError:  # of a transform, which has no memory
        return 0


def rows_of(owner: object | None) -> list[Count]:
    """Return the counts of the module with this first weight, or of all."""
    if owner is None:
        _collect_gone()
        return [*gone.values(), *counts.values()]
    return [count for count in list(counts.values()) if count.is_of(owner)]
