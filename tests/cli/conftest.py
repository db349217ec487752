"""What tests of the command line share: a text to train on, and ways to run `fastrnn`."""

import os
import subprocess
import sys

import pytest

SMALL = ["--hidden", "32", "--embedding", "8", "--batch", "8", "--bptt", "16"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Return a folder of text with structure to learn: lines that count."""
    folder = tmp_path_factory.mktemp("corpus")
    for k in range(4):
        lines = [f"line {i} of file {k}: def f_{i % 7}(x): return x + {i % 10}" for i in range(300)]
        (folder / f"{k}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def small():
    """Return options that make a small model and small steps."""
    return SMALL


@pytest.fixture
def command(tmp_path):
    """Return a function that runs `fastrnn` in a process of its own, and gives its result."""
    def run(*args, python=(), env=None, shell=None, **options):
        line = [sys.executable, *python, "-m", "fastrnn", *map(os.fspath, map(to_arg, args))]
        if shell is not None:  # what follows the command in a shell
            line = ["sh", "-c", f'"$@" {shell}', "sh", *line]
        return subprocess.run(
            line, capture_output=True, timeout=120, cwd=options.pop("cwd", tmp_path),
            env={**os.environ, "FASTRNN_NUM_THREADS": "1", "PYTHONUNBUFFERED": "",
                 **(env or {})}, **options)

    return run


def to_arg(value):
    return value if isinstance(value, (str, bytes, os.PathLike)) else str(value)
