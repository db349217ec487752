"""Measure the limits of this machine: multiply-adds, and reading from each level of memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import machine

SOURCE = Path(__file__).with_name("probe.c")


def probe(threads: int) -> dict[str, Any]:
    """Return what `threads` pinned cores can do together.

    Returns
    -------
    dict
        threads; fma_gflops (float32); read_gbs, pairs of a working set in bytes and GB/s; source:
        "probe.c", or "NumPy" where there is no compiler: then the peak is that of a 2048**3
        product and small sets are read at the speed of calls, so fractions of the limit come
        out too high.
    """
    found = _compiled(threads) or _numpy(threads)
    return {"threads": threads, **found}


def _pinned(threads: int) -> Any:
    cpus = machine.cores(threads)
    return (lambda: os.sched_setaffinity(0, cpus)) if cpus else None


def _compiled(threads: int) -> dict[str, Any] | None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        program = str(Path(folder) / "probe")
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-pthread"]
        try:
            subprocess.run([*compiler.split(), *flags, str(SOURCE), "-o", program], check=True,
                           capture_output=True)
            done = subprocess.run([program, str(threads)], check=True, capture_output=True,
                                  text=True, preexec_fn=_pinned(threads))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"bench: {SOURCE.name} does not run here ({error}); probing with NumPy")
            return None
    return json.loads(done.stdout) | {"source": SOURCE.name}


def _numpy(threads: int) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "bench.probe"], check=True, capture_output=True,
                          text=True, env=machine.environment(threads), cwd=machine.ROOT,
                          preexec_fn=_pinned(threads))
    return json.loads(done.stdout) | {"source": "NumPy"}


def _main() -> None:
    """Fall back, in a process of its own: a large product, and dot products of all sizes."""
    import numpy as np

    def best(call: Any, count: int, runs: int) -> float:
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            for _ in range(count):
                call()
            times.append((time.perf_counter() - start) / count)
        return min(times)

    a = np.ones((2048, 2048), np.float32)
    out = np.empty_like(a)
    peak = 2 * 2048**3 / best(lambda: np.dot(a, a, out), 1, 5) * 1e-9
    reads = []
    size = 16 << 10
    while size <= 64 << 20:
        v = np.ones(size // 4, np.float32)
        seconds = best(lambda v=v: np.dot(v, v), max(1, (8 << 20) // size), 20)
        reads.append([size, size / seconds * 1e-9])
        size *= 2
    print(json.dumps({"fma_gflops": peak, "read_gbs": reads}))


if __name__ == "__main__":
    _main()
