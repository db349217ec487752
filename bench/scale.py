"""How time grows with T, B, H and the threads, each alone.

All points of a curve race each other, so that they share the machine's moods.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from bench import machine
from bench.cases import Case
from bench.limits import limit
from bench.race import Effort, Entry, Workers, race
from bench.report import number
from bench.rows import SLACK, need_speedup

WITHIN = 0.10  # of straight growth in T and B

_POINTS = {
    "T": (10, 30, 100, 300, 1000, 3000, 10000),
    "B": (8, 16, 32, 64, 128, 256, 512, 1024),
    "H": (16, 32, 64, 128, 256, 512, 1024),
}
_BASE = {
    "T": Case("infer", "lstm", 0, 8, 128, 128),
    "B": Case("infer", "lstm", 20, 0, 128, 256),
    "H": Case("infer", "lstm", 20, 32, 128, 0),
}
# from far too small for two threads to large
_THREADS = [
    Case("stream", "lstm", 1, 1, 40, 40),
    Case("stream", "lstm", 1, 1, 512, 512),
    Case("infer", "lstm", 10, 1, 16, 16),
    Case("infer", "lstm", 100, 1, 128, 128),
    Case("infer", "lstm", 100, 1, 512, 512),
    Case("infer", "lstm", 10, 8, 32, 32),
    Case("infer", "lstm", 50, 8, 128, 128),
    Case("infer", "lstm", 100, 32, 128, 256),
    Case("train", "lstm", 10, 4, 16, 16),
    Case("train", "lstm", 50, 16, 64, 128),
    Case("train", "lstm", 100, 32, 128, 256),
]


def run(workers: Workers, cells: list[str], threads: int, probe: dict[str, Any], effort: Effort,
        *, short: bool = False) -> list[dict[str, Any]]:
    """Measure and print the curves; `short` takes three points of each. Return one row a curve."""
    curves = []
    for cell in cells:
        for kind in ("infer", "train"):
            for letter in "TBH":
                points = _POINTS[letter][:3] if short else _POINTS[letter]
                cases = [dataclasses.replace(_BASE[letter], kind=kind, cell=cell, **{letter: n})
                         for n in points]
                curves.append(_curve(workers, letter, cases, threads, probe, effort))
    most = len(machine.cores(1 << 10))
    if most > 1:
        for cell in cells:
            cases = [dataclasses.replace(case, cell=cell) for case in _THREADS]
            curves.append(_threads(workers, cases[:3] if short else cases, most, effort))
    return curves


def _curve(workers: Workers, letter: str, cases: list[Case], threads: int, probe: dict[str, Any],
           effort: Effort) -> dict[str, Any]:
    entries = race(workers, [Entry(case.shape, "fastrnn", threads, case, key=k)
                             for k, case in enumerate(cases)], effort)
    first = cases[0]
    print(f"\n{first.cell} {first.kind} over {letter}, {threads} thread(s); the rest of "
          f"{dataclasses.replace(first, **{letter: 0}).shape}")
    points: list[dict[str, Any]] = []
    for case, entry in zip(cases, entries, strict=True):
        if not entry.ok:
            print(f"  {entry.label}: {entry.status}")
            continue
        n = getattr(case, letter)
        points.append({"n": n, "us": entry.median * 1e6, "us_per_unit": entry.median * 1e6 / n,
                       "gflops": case.flops / entry.median * 1e-9,
                       "fraction": limit(case, probe) / entry.median})
    if not points:
        return {"letter": letter, "points": []}
    middle = statistics.median(p["us_per_unit"] for p in points)
    for p in points:
        p["off"] = p["us_per_unit"] / middle - 1
        text = (f"  {letter} {p['n']:6} {number(p['us']):>10} µs {p['gflops']:7.1f} GFLOP/s "
                f"{p['fraction']:5.0%} of the limit")
        if letter != "H":
            bar = "#" * round(20 * p["us_per_unit"] / middle)
            off = "" if abs(p["off"]) <= WITHIN else "  CLIFF"
            text += f"  {p['us_per_unit']:9.3f} µs/{letter} {p['off']:+5.0%} {bar}{off}"
        print(text)
    return {"letter": letter, "cell": first.cell, "kind": first.kind, "threads": threads,
            "case": first.asdict(), "points": points}


def _threads(workers: Workers, cases: list[Case], most: int, effort: Effort) -> dict[str, Any]:
    counts = [1, *(n for n in (2, 4, 8, 16, 32) if n < most), most]
    print(f"\n{cases[0].cell} over threads")
    points = []
    for case in cases:
        entries = race(workers, [Entry(f"{n}", "fastrnn", n, case) for n in counts], effort)
        if not all(entry.ok for entry in entries):
            print(f"  {case.shape}: {[entry.status for entry in entries]}")
            continue
        gains = [entry.ratio(entries[0]) for entry in entries]
        slower = "" if min(gains) >= SLACK else "  SLOWER"
        need = need_speedup(case)
        below = "" if gains[1] >= need else f"  two threads: {need:g} needed"
        times = "  ".join(f"{n}: {number(entry.median * 1e6)} µs x{gain:.2f}"
                          for n, entry, gain in zip(counts, entries, gains, strict=True))
        print(f"  {case.shape:24} {times}{slower or below}")
        points.append({"case": case.asdict(), "threads": counts, "speedup": gains,
                       "us": [entry.median * 1e6 for entry in entries]})
    return {"letter": "threads", "cell": cases[0].cell, "points": points}
