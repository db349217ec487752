"""``python -m fastrnn.torch script.py ARGUMENTS``: run a program of PyTorch accelerated."""

from __future__ import annotations

import os
import runpy
import sys

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
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
