"""The command `fastrnn`: train, sample, gradflow, convert, cells, info.

Nothing but the standard library is imported with this module, so that `main` can end quietly when
Ctrl-C comes while NumPy is loaded.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from fastrnn.cli import streams

INTERRUPTED, PIPE_CLOSED = 130, 141  # as a shell reports SIGINT and SIGPIPE

# options by the arguments of the functions that refuse their values
_OPTIONS = {"hidden_size": "hidden", "num_layers": "layers", "embedding_size": "embedding",
            "length": "length", "temperature": "temperature", "top_k": "top-k", "top_p": "top-p"}


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
        package = str(error.name).partition(".")[0]
        return _complain(name, f"needs {package}, expected it to be installed: pip install "
                               f"{package}")
    except MemoryError as error:
        return _complain(name, str(error) or "there is not enough memory")
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _complain(name, f"{error.strerror or error}{where}")
    except (ValueError, TypeError, IndexError, OverflowError, FloatingPointError) as error:
        return _complain(name, _in_options(error))
    except KeyboardInterrupt:
        _complain(f"\n{name}", "interrupted")
        return INTERRUPTED
    return status or 0


def _warn(name: str, message: Warning | str, *_: Any) -> None:
    """Print a warning like an error: in one line, without the place in the code."""
    _complain(name, _in_options(message))


def _in_options(message: object) -> str:
    """Return a sentence of the library's in the words of the command line.

    The function that says it is left out, and an argument has its option's name.
    """
    sentence = re.sub(r"^[A-Za-z_][\w.]*: ", "", str(message))
    argument, space, rest = sentence.partition(" ")
    return f"--{_OPTIONS[argument]}{space}{rest}" if argument in _OPTIONS else sentence


def _complain(name: str, sentence: str) -> int:
    print(f"{name}: {sentence}", file=sys.stderr)
    return 1
