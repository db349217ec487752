"""Standard output and standard error that cannot end a command: any encoding, closed, or gone."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO

__all__ = ["Lasting", "abandon_if_broken", "prepare"]


def prepare() -> None:
    """Make the standard streams usable, whatever the process was started with.

    What was closed (``2>&-``) leads nowhere from now on; its number is taken too, so that no file
    opened later gets it. What the encoding of standard output lacks is replaced.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8", errors="replace"))  # noqa: SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


class Lasting:
    """A text stream that goes quiet when it can no longer be written to.

    Attributes
    ----------
    error : OSError or None
        What ended it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or do nothing."""
        with self._quietly():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing."""
        with self._quietly():
            self._stream.flush()

    @contextlib.contextmanager
    def _quietly(self) -> Any:
        try:
            if self.error is None:
                yield
            else:
                with contextlib.suppress(OSError):
                    yield
        except OSError as error:
            self.error = error
            abandon_if_broken(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def abandon_if_broken(stream: Any) -> None:
    """Lead a stream that cannot be flushed nowhere, so that Python's own flush at the end works."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
