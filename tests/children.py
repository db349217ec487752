"""Programs in processes of their own, which nothing of the other tests has touched."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import fastrnn

HOME = Path(fastrnn.__file__).parent.parent
OWN = ("FASTRNN_NUM_THREADS", "FASTRNN_OVERSUBSCRIBE", "FASTRNN_ISA", "OMP_NUM_THREADS")


def environment(**changes):
    """Return this process's environment without what sets the number of threads."""
    clean = {name: value for name, value in os.environ.items() if name not in OWN}
    return {**clean, "PYTHONPATH": str(HOME), **changes}


def start(code, *arguments, options=(), timeout=120, setup=None, **changes):
    """Run a program; return what became of it."""
    return subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment(**changes), capture_output=True, text=True, timeout=timeout, check=False,
        preexec_fn=setup)


def words(code, *arguments, **options):
    """Run a program that must succeed and write nothing to stderr; return its words."""
    done = start(code, *arguments, **options)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stderr == "", done.stderr
    return done.stdout.split()


# A job that uses the pool where there are two threads: `job()` returns the bytes of its results.
JOB = """
import numpy as np
import fastrnn

layer = fastrnn.LSTM(40, 70, seed=0)
x = np.sin(np.arange(6 * 24 * 40, dtype=np.float32)).reshape(6, 24, 40)

def job():
    layer.zero_grad()
    y, _, p = layer.forward(x)
    dx, _ = p.backward(y)
    return b"".join(a.tobytes() for a in (y, dx, *layer.grads.values()))
"""
