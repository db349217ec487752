"""What a training shows while it runs: a progress bar, or what a function of the caller makes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from fastrnn import _checks
from fastrnn._checks import RefusedType
from fastrnn.training.history import Progress

__all__ = ["progress_bar", "shown"]

Show = Callable[[Progress], Any]
INTERVAL = 0.2  # seconds between two drawings of a bar

# Standard error may be closed or full, or its terminal gone: no training ends because of its bar.
UNWRITABLE = (AttributeError, OSError, ValueError)


@contextlib.contextmanager
def progress_bar(
    text: Callable[[Progress], str] = "loss {0.loss:.4g}, {0.speed:,.0f}/s".format
) -> Iterator[Show]:
    """Give a function that draws a progress bar (tqdm, extra [cli]) on standard error.

    Where standard error cannot be written to, nothing is drawn.

    Parameters
    ----------
    text : callable
        Takes a Progress and returns what is written beside the bar.

    Yields
    ------
    callable
        Takes a Progress and draws the bar; for the `progress` of fit.
    """
    from tqdm import tqdm

    layout = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
    try:
        drawn = tqdm(total=1, bar_format=layout, mininterval=0)
    except UNWRITABLE:
        yield lambda now: None
        return
    last = -INTERVAL

    def show(now: Progress) -> None:
        nonlocal last
        if drawn.disable or (now.seconds - last < INTERVAL and now.fraction < 1):
            return
        last = now.seconds
        drawn.set_description_str(text(now), refresh=False)
        try:
            drawn.update(now.fraction - drawn.n)
        except UNWRITABLE:
            drawn.disable = True

    try:
        yield show
    finally:
        with contextlib.suppress(*UNWRITABLE):
            drawn.close()


def shown(progress: Any) -> contextlib.AbstractContextManager[Show | None]:
    """Return what shows the progress: for True a bar, for None a bar in a terminal."""
    if progress is None:
        progress = _terminal() and _has_tqdm()
    if isinstance(progress, bool):
        return progress_bar() if progress else contextlib.nullcontext()
    if not callable(progress):
        raise RefusedType(f"progress is {_checks.show(progress)}, expected True, False, None, or a "
                          "function that takes a Progress")
    return contextlib.nullcontext(progress)


def _terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is no standard error, or it is closed
        return False


def _has_tqdm() -> bool:
    try:
        import tqdm  # noqa: F401
    except ImportError:
        return False
    return True
