"""``python -m fastrnn.torch script.py ARGUMENTS``: run a program of PyTorch accelerated."""

from __future__ import annotations

import builtins
import importlib.machinery
import os
import runpy
import sys
import types

from fastrnn.torch import patch


def main() -> None:
    """Run the script that the command line names, or with -m the module."""
    nothing = sys.argv[1:] in ([], ["-m"])
    if nothing or sys.argv[1] in ("-h", "--help"):
        print("usage: python -m fastrnn.torch SCRIPT ARGUMENTS\n"
              "       python -m fastrnn.torch -m MODULE ARGUMENTS",
              file=sys.stderr if nothing else sys.stdout)
        raise SystemExit(2 if nothing else 0)
    patch()
    if sys.argv[1] == "-m":
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        return
    sys.argv = sys.argv[1:]
    folder = os.path.dirname(os.path.realpath(sys.argv[0]))  # where a link leads, as in Python
    if sys.path[:1] == [os.getcwd()]:  # python -m puts it there, unless it was asked not to
        del sys.path[0]
    sys.path.insert(0, folder)
    if os.path.isfile(sys.argv[0]) and sys.argv[0].endswith((".py", ".pyw")):
        _run(sys.argv[0])
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


def _run(script: str) -> None:
    """Run a file as Python does: it knows its whole path, sys.argv has the path that was given.

    runpy.run_path gives both the same.
    """
    path = os.path.abspath(script)
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    made = types.ModuleType("__main__")
    vars(made).update(__file__=path, __loader__=loader, __builtins__=builtins)
    sys.modules["__main__"] = made
    exec(loader.source_to_code(loader.get_data(path), path), vars(made))


if __name__ == "__main__":
    main()
