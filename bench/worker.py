"""The process of one peer: `python -m bench.worker PEER THREADS`, JSON lines in and out.

It makes a case from its description, compares what the peer computes with the float64 reference,
and only then times it. The parent (race.py) decides when.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import math
import os
import signal
import sys
import time
import traceback
from typing import Any

import numpy as np

from bench import cases, memory
from bench.cases import Case
from bench.peers import BRIDGE, LOOPS, PEERS, UnsupportedError, Way

BLOCK = 20e-6  # calls shorter than this are timed in blocks, so that reading the clock is no part


class Worker:
    """What a process holds: a peer, and at most one case."""

    def __init__(self, name: str, threads: int) -> None:
        module, _, part = (PEERS | LOOPS | BRIDGE)[name][0].partition(":")
        self.peer: Any = importlib.import_module(f"bench.peers.{module}")
        if part:
            self.peer = getattr(self.peer, part)
        self.peer.setup(threads)
        self.ways: list[Way] = []
        self.context: Any = contextlib.nullcontext()  # entered again and again
        self.estimate = 0.0

    def hello(self) -> dict[str, Any]:
        """Return the peer's version, and the thread pools in this process."""
        pools = {}
        with contextlib.suppress(ImportError):
            import threadpoolctl

            pools = {p["prefix"]: p["num_threads"] for p in threadpoolctl.threadpool_info()}
        return {"version": self.peer.version(), "pools": pools, "pid": os.getpid()}

    def expect(self, case: dict[str, Any], path: str) -> dict[str, Any]:
        """Write the float64 reference of a case to a file."""
        from bench import stack

        np.savez(path, **stack.expected(Case(**case)))
        return {}

    def load(self, case: dict[str, Any], path: str) -> dict[str, Any]:
        """Load a case and check every way to run it; a wrong one is dropped and reported."""
        self.drop()
        known = Case(**case)
        unknown = known.extras - getattr(self.peer, "CAN", set())
        if unknown:
            return {"unsupported": f"no {' and no '.join(sorted(unknown))}"}
        arrays = cases.arrays(known) if known.kind != "lm" else None
        try:
            ways = self.peer.load(known, arrays)
        except UnsupportedError as why:
            return {"unsupported": str(why)}
        around = getattr(self.peer, "around", None)
        self.context = around(known) if around else contextlib.nullcontext()
        wrong, worst, first = {}, 0.0, {}
        with np.load(path) as expected, self.context:
            for way in ways:
                start = time.perf_counter()
                got = way.results()
                first[way.name] = time.perf_counter() - start
                errors = compare(got, expected, known)
                bad = {k: e for k, e in errors.items() if not e <= known.tolerance()}
                if bad:
                    wrong[way.name] = bad
                else:
                    worst = max(worst, *errors.values())
                    self.ways.append(way)
        return {"ways": [way.name for way in self.ways], "wrong": wrong, "error": worst,
                "tolerance": known.tolerance(), "first": first}

    def warm(self, seconds: float) -> dict[str, Any]:
        """Call every way for a while, keep the fastest, and return its time in seconds."""
        times = {}
        with self.context:
            for way in self.ways:
                times[way.name] = min(_samples(way, way.elapsed(1), seconds))
        self.ways = [min(self.ways, key=lambda way: times[way.name])]
        self.estimate = times[self.ways[0].name]
        return {"way": self.ways[0].name, "estimate": self.estimate, "ways": times}

    def round(self, seconds: float) -> dict[str, Any]:
        """Time calls that fill `seconds`; return their median and minimum in seconds."""
        with self.context:
            # others have been in the caches since; a long call brings its own back
            if self.estimate < seconds:
                _samples(self.ways[0], self.estimate, seconds / 10)
            times = _samples(self.ways[0], self.estimate, seconds)
        return {"median": float(np.median(times)), "min": min(times), "calls": len(times)}

    def quantiles(self, calls: int) -> dict[str, Any]:
        """Time single calls; return quantiles in seconds, the cost of the clock taken off."""
        clock, call = time.perf_counter_ns, self.ways[0].call
        times = np.empty(calls, np.int64)
        empty = np.empty(100_000, np.int64)
        gc.disable()
        with self.context:
            for k in range(len(empty)):
                start = clock()
                empty[k] = clock() - start
            for k in range(calls):
                start = clock()
                call()
                times[k] = clock() - start
        gc.enable()
        net = (times - np.median(empty)) * 1e-9
        return {f"{q}": float(np.quantile(net, q)) for q in (0.5, 0.99, 0.999, 1.0)}

    def peak(self, case: dict[str, Any]) -> dict[str, Any]:
        """Return the peak of memory that one call takes beyond what lay there before it."""
        return memory.peak(self.peer, Case(**case))

    def drop(self) -> dict[str, Any]:
        """Forget the case."""
        self.ways = []
        gc.collect()
        return {}


def compare(got: dict[str, np.ndarray], expected: Any, case: Case) -> dict[str, float]:
    """Return the relative error by norm of every expected array; nan if it is missing."""
    errors = {}
    for name in expected:
        if name == "dx" and not case.dx:
            continue
        right = expected[name]
        result = got.get(name)
        if result is None or result.shape != right.shape or result.dtype != case.dtype:
            errors[name] = math.nan
            continue
        # what denormal numbers give may as well be zero
        least = 1.0 if case.denormal else float(np.finfo(case.dtype).tiny)
        scale = max(float(np.linalg.norm(right)), least)
        errors[name] = float(np.linalg.norm(result.astype(np.float64) - right) / scale)
    return errors


def _samples(way: Way, estimate: float, seconds: float) -> list[float]:
    """Return times per call, of blocks of at least BLOCK, until `seconds` are full."""
    block = max(1, math.ceil(BLOCK / max(estimate, 1e-8)))
    times: list[float] = []
    gc.disable()
    total = 0.0
    while total < seconds:
        elapsed = way.elapsed(block)
        times.append(elapsed / block)
        total += elapsed
    gc.enable()
    return times


def main() -> None:
    """Serve the parent until it closes the pipe."""
    if sys.platform == "linux":  # die with the parent, even while stopped
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # libraries that print must not disturb the protocol
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        worker = Worker(sys.argv[1], int(sys.argv[2]))
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=out)
        return
    print(json.dumps(worker.hello()), file=out)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = getattr(worker, message.pop("do"))(**message)
        except Exception as error:  # whatever a peer throws goes into the table
            traceback.print_exc()
            worker.drop()
            answer = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps(answer), file=out)


if __name__ == "__main__":
    main()
