"""Standard output and standard error that cannot end a command: any encoding, closed, or gone."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

__all__ = ["Lasting", "Stream", "abandon_if_broken", "prepare"]


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


class Stream:
    """A text stream whose errors name it."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        """Write."""
        with self._errors():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush."""
        with self._errors():
            self._stream.flush()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._name) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Lasting(Stream):
    """A text stream that goes quiet when it can no longer be written to.

    Attributes
    ----------
    error : OSError or None
        What ended it.
    """

    error: OSError | None = None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with super()._errors():
                yield
        except OSError as error:
            self.error = self.error or error
            abandon_if_broken(self._stream)


def abandon_if_broken(stream: Any) -> None:
    """Lead a stream that cannot be flushed nowhere, so that Python's own flush at the end works."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
