"""The pool under pressure: two threads against one while other processes take the CPUs.

A job is called in blocks of half a second, on one thread and on two in turn, so that both meet the
same moment. Blocks may not be much shorter: the worker sleeps while one thread computes, the system
gives its CPU to the busy process, and the first calls of each block on two threads are late. The
mean over all calls on two threads should be at most 1.5 times that on one, the 99th percentile at
most 3 times.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastrnn
from bench.machine import environment
from fastrnn import GRU, LSTM

MEAN, TAIL = 1.5, 3.0
BLOCK = 0.5  # seconds
CONDITIONS = ("quiet", "1 busy", "2 busy", "4 busy", "one CPU", "8 threads", "8 threads, 2 busy")


def _train(layer: Any, x: np.ndarray, dy: np.ndarray) -> Callable[[], Any]:
    return lambda: layer.forward(x)[2].backward(dy)


def jobs() -> dict[str, Callable[[], Any]]:
    """Return the calls that are timed."""
    rng = np.random.default_rng(0)

    def some(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def evaluated(layer: Any) -> Any:
        layer.eval()
        return layer

    step, row = evaluated(LSTM(512, 512, seed=0)).stream(), some(1, 512)
    gru, large, small = (evaluated(layer) for layer in (
        GRU(128, 128, seed=0), LSTM(512, 512, seed=0), LSTM(128, 128, seed=0)))
    x128, x512, x8, x16 = some(100, 1, 128), some(100, 1, 512), some(50, 8, 128), some(50, 16, 128)
    return {
        "stream LSTM 512": lambda: step(row),
        "GRU B 1 T 100 H 128": lambda: gru(x128),
        "LSTM B 1 T 100 H 512": lambda: large(x512),
        "train LSTM B 1 T 100 H 128": _train(LSTM(128, 128, seed=0), x128, some(100, 1, 128)),
        "LSTM B 8 T 50 H 128": lambda: small(x8),
        "train LSTM B 16 T 50 H 128": _train(LSTM(128, 128, seed=0), x16, some(50, 16, 128)),
    }


def _block(act: Callable[[], Any], seconds: float, times: list[float]) -> None:
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        act()
        times.append(time.perf_counter() - start)


def measure(condition: str, seconds: float) -> dict[str, list[float]]:
    """Return mean and 99th percentile of two threads over one for each job, in this process."""
    if condition == "one CPU":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    threads = 8 if condition.startswith("8") else 2
    found = {}
    for name, act in jobs().items():
        times: dict[int, list[float]] = {1: [], threads: []}
        for n in times:
            fastrnn.set_num_threads(n)
            _block(act, BLOCK, [])
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for n, own in times.items():
                fastrnn.set_num_threads(n)
                _block(act, BLOCK, own)
        one, more = times.values()
        found[name] = [statistics.fmean(more) / statistics.fmean(one),
                       float(np.percentile(more, 99) / np.percentile(one, 99))]
    return found


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Run so many processes that do nothing but compute."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def run(seconds: float) -> list[dict[str, Any]]:
    """Measure and print all conditions, each in a process of its own; return one row a condition.

    Parameters
    ----------
    seconds : float
        For each job and condition.
    """
    print("\npressure: two threads over one in the same moment, mean (99th percentile)")
    rows = []
    env = {k: v for k, v in environment(2).items() if k != "FASTRNN_NUM_THREADS"}
    for condition in CONDITIONS:
        words = condition.removeprefix("8 threads, ").split()
        with busy(int(words[0]) if words[-1] == "busy" else 0):
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "bench.pressure", condition, str(seconds)],
                env=env, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        rows.append({"condition": condition, "found": found})
        for name, (mean, tail) in found.items():
            more = " MORE" if mean > MEAN or tail > TAIL else ""
            print(f"{condition:18} {name:28} {mean:6.2f} ({tail:5.2f}){more}", flush=True)
    return rows


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], float(sys.argv[2]))))
