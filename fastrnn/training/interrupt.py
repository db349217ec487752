"""Ctrl-C between two steps instead of inside one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Interrupt"]


class Interrupt:
    """While it is entered, the first Ctrl-C only sets `asked`; the second raises KeyboardInterrupt.

    So a step is never cut in half. Only Python's main thread receives signals; elsewhere, and in a
    program that embeds Python and handles the signal itself, it changes nothing.

    Attributes
    ----------
    asked : bool
        Whether Ctrl-C was pressed since it was entered.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        self._before, self.asked = None, False
        if threading.current_thread() is not threading.main_thread():
            return self
        if signal.getsignal(signal.SIGINT) is None:  # a handler that Python did not set
            return self
        try:
            self._before = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # a subinterpreter
            self._before = None
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
