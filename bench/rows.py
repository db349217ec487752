"""From the entries of one race to rows of the table: ratios, limits, and what falls short."""

from __future__ import annotations

from typing import Any

from bench.cases import Case
from bench.limits import limit
from bench.race import Entry

OURS = "fastrnn"
SLACK = 0.97  # two threads may be this much slower than one before it counts: noise of a ratio


def aim(case: Case) -> float:
    """Return the fraction of the limit that we aim at."""
    return 0.85 if case.H >= 256 else 0.65


def need_speedup(case: Case) -> float:
    """Return the least gain from a second thread."""
    if case.B >= 8:
        return 1.8
    return 1.5 if case.H >= 512 else SLACK


def row(case: Case, threads: int, entries: list[Entry], probe: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of one case on one number of threads.

    The best peer is the one with the smallest ratio: the median over rounds of its time over ours
    in the same round.
    """
    least = limit(case, probe)
    made: dict[str, Any] = {
        "label": case.label, "case": case.asdict(), "threads": threads, "flops": case.flops,
        "limit_us": least * 1e6, "need": case.need, "aim": aim(case), "peers": {},
    }
    mine = [entry for entry in entries if entry.threads == threads]
    ours = next((e for e in mine if e.peer == OURS and e.ok), None)
    ratios = {}
    for entry in mine:
        peer = made["peers"][entry.peer] = entry.asdict()
        if entry.ok:
            peer["gflops"] = case.flops / entry.median * 1e-9
            peer["fraction"] = least / entry.median
            if ours is not None and entry is not ours:
                ratios[entry.peer] = peer["ratio"] = ours.ratio(entry)
    if ratios:
        made["best"] = min(ratios, key=ratios.__getitem__)
        made["ratio"] = ratios[made["best"]]
        if case.need is not None:
            made["short"] = made["ratio"] < case.need
    if case.need_torch is not None and "torch" in ratios:
        made["need_torch"], made["torch"] = case.need_torch, ratios["torch"]
    one = next((e for e in entries if e.peer == OURS and e.threads == 1 and e.ok), None)
    if threads > 1 and ours is not None and one is not None:
        made["speedup"] = ours.ratio(one)
        made["need_speedup"] = need_speedup(case)
    return made


def complaints(found: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for every row that falls short of what is asked for."""
    said = []
    for r in found:
        who = f"{r['label']} {r['case']['cell']} on {r['threads']}"
        for peer, result in r["peers"].items():
            if result["status"].startswith(("wrong", "failed", "died")):
                said.append(f"{who}: {peer} {result['status']}")
        if r.get("short"):
            said.append(f"{who}: {r['ratio']:.2f} times {r['best']}, needed {r['need']:g}")
        elif "ratio" in r and r["ratio"] < 1:
            said.append(f"{who}: lost to {r['best']}, {r['ratio']:.2f}")
        if "torch" in r and r["torch"] < r["need_torch"]:
            said.append(f"{who}: {r['torch']:.2f} times torch, needed {r['need_torch']:g}")
        if "speedup" in r and r["speedup"] < r["need_speedup"]:
            said.append(f"{who}: {r['speedup']:.2f} times one thread, needed "
                        f"{r['need_speedup']:g}")
    return said
