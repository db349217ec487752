"""Programs in processes of their own, which nothing of the other tests has touched."""

import contextlib
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import fastrnn

HOME = Path(fastrnn.__file__).parent.parent
OWN = ("FASTRNN_NUM_THREADS", "FASTRNN_OVERSUBSCRIBE", "FASTRNN_ISA", "OMP_NUM_THREADS")


def environment(**changes):
    """Return this process's environment without what sets the number of threads."""
    clean = {name: value for name, value in os.environ.items() if name not in OWN}
    return {**clean, "PYTHONPATH": str(HOME), **changes}


def preload(library):
    """Return LD_PRELOAD with a library behind those that this process has, of a sanitizer."""
    return " ".join(filter(None, (os.environ.get("LD_PRELOAD"), str(library))))


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


@contextlib.contextmanager
def begun(code, *arguments, **changes):
    """Start a program and wait for its first line, "begun"; it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment(**changes), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "begun\n", process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate()


def cut_off(code, path, number, longest):
    """Send a program a signal at a random moment; return (exit status, output, seconds)."""
    with begun(code, path) as process:
        time.sleep(random.uniform(0, longest))
        process.send_signal(number)
        sent = time.perf_counter()
        out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return process.returncode, out, time.perf_counter() - sent


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
