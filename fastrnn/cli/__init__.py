"""The command `fastrnn`: train, sample, gradflow, convert, cells, info.

Nothing but the standard library is imported with this module, so that `main` can end quietly when
Ctrl-C comes while NumPy is loaded.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from fastrnn.cli import streams

INTERRUPTED, PIPE_CLOSED = 130, 141  # as a shell reports SIGINT and SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default the process's own.

    Returns
    -------
    int
        The exit status: 0, 1 for an error, 2 for a cell whose equations are wrong, 130 after
        Ctrl-C, 141 if whoever reads the output has gone. Wrong usage raises SystemExit, as argparse
        has it.
    """
    streams.prepare()
    out, err = sys.stdout, sys.stderr
    with contextlib.redirect_stdout(streams.Stream(out, "standard output")), \
            contextlib.redirect_stderr(streams.Lasting(err, "standard error")):
        try:
            return _run(argv)
        except BrokenPipeError:
            return PIPE_CLOSED
        finally:
            streams.abandon_if_broken(out)


def _run(argv: Sequence[str] | None) -> int:
    """Run a command, and turn its errors into one sentence each."""
    name = "fastrnn"
    try:
        from fastrnn.cli.options import parser

        try:
            args = parser().parse_args(argv)
        except SystemExit:  # argparse has printed its help, or an error
            sys.stdout.flush()
            raise
        name = f"fastrnn {args.command}"
        with warnings.catch_warnings():
            warnings.showwarning = functools.partial(_warn, name)
            status: int | None = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except ModuleNotFoundError as error:
        return _complain(name, f"needs {error.name}, expected it to be installed: "
                               "pip install 'fastrnn[cli,plot]'")
    except MemoryError as error:
        return _complain(name, str(error) or "there is not enough memory")
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _complain(name, f"{error.strerror or error}{where}")
    except (ValueError, TypeError, IndexError, OverflowError, FloatingPointError) as error:
        return _complain(name, str(error))
    except KeyboardInterrupt:
        _complain(f"\n{name}", "interrupted")
        return INTERRUPTED
    return status or 0


def _warn(name: str, message: Warning | str, *_: Any) -> None:
    """Print a warning like an error: in one line, without the place in the code."""
    _complain(name, str(message))


def _complain(name: str, sentence: str) -> int:
    print(f"{name}: {sentence}", file=sys.stderr)
    return 1
