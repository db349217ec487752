"""Peak memory of one call, each in a fresh process."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import resource
from pathlib import Path
from typing import Any

from bench import cases
from bench.cases import Case

CASE = Case("train", "lstm", 100, 64, 512, 512)
PEERS = ("fastrnn", "torch", "jax", "numpy")
NEED = 2.0  # PyTorch's peak over ours, at least


def _status(field: str) -> float:
    """Return a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) * 1024
    raise OSError(f"no {field}")


def _trim() -> None:
    """Give freed memory back, so that what is used again later counts again."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak(peer: Any, case: Case) -> dict[str, float]:
    """Return the bytes that one call adds at its peak; run in a process that did nothing before.

    Inputs, parameters and the library with its pools are there already: a small case has run. A
    peer that compiles on the first call makes that call before.
    """
    small = dataclasses.replace(case, T=2, B=2, I=4, H=8)
    for way in peer.load(small, cases.arrays(small)):
        way.results()
    way = peer.load(case, cases.arrays(case))[0]
    if getattr(peer, "COMPILES", False):
        way.call()
    _trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _status("VmRSS")
        way.call()
        after = _status("VmHWM")
    except OSError:  # not Linux: the mark of the whole life of the process
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        way.call()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"before": before, "bytes": after - before}


def run(workers: Any, peers: list[str], threads: int) -> list[dict[str, Any]]:
    """Measure and print; return a row per peer."""
    T, B, H = CASE.T, CASE.B, CASE.H
    unit = T * B * H * 4  # bytes of one float per unit, step and row
    print(f"\npeak memory of a training step, {CASE.shape} {CASE.cell}: MB beyond inputs and "
          f"weights,\nand the same in floats per unit, step and row")
    rows: list[dict[str, Any]] = []
    for peer in (p for p in PEERS if p in peers):
        worker = workers.get(peer, threads, "memory")  # a key of its own: a fresh process
        if worker is None:
            print(f"  {peer:10} not installed")
            continue
        answer = worker.ask("peak", case=CASE.asdict())
        if "failed" in answer:
            print(f"  {peer:10} {answer['failed']}")
            continue
        rows.append({"peer": peer, "bytes": answer["bytes"], "floats": answer["bytes"] / unit})
        print(f"  {peer:10} {answer['bytes'] / 2**20:9.1f} MB {answer['bytes'] / unit:6.1f}")
    found = {row["peer"]: row["bytes"] for row in rows}
    if {"fastrnn", "torch"} <= set(found):
        ratio = found["torch"] / found["fastrnn"]
        print(f"  PyTorch's over fastrnn's: {ratio:.2f}, needed {NEED:g}"
              f"{'' if ratio >= NEED else '  SHORT'}")
        rows.append({"ratio": ratio, "need": NEED})
    return rows
