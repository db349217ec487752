"""What we aim at beside the table, each as a ratio inside one run: fastrnn against itself."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench.cases import Case
from bench.race import Effort, Entry, Workers, race
from bench.report import number

STREAM_US = 0.4  # overhead of one step, at most
P99 = 3.0  # times the median, at most
_CELLS = ("rnn_tanh", "gru", "lstm")


def run(workers: Workers, cells: list[str], threads: int, effort: Effort, *, short: bool = False
        ) -> list[dict[str, Any]]:
    """Measure and print; `short` takes few steps. Return one row a check."""
    print(f"\nthe lead beside the table, {threads} thread(s)")
    checks = []
    for cell in cells:
        checks += _streaming(workers, cell, 20_000 if short else 1_000_000, effort)
        checks += _double(workers, cell, threads, effort)
        checks += _stacks(workers, cell, threads, effort)
        checks += _denormals(workers, cell, threads, effort)
        if cell != "rnn_tanh":
            checks += _bfloat16(workers, cell, threads, effort)
    return checks


def say(name: str, value: float, need: float, at_least: bool, width: int = 62
        ) -> dict[str, Any]:
    """Print a check and return its row."""
    good = value >= need if at_least else value <= need
    word = "at least" if at_least else "at most"
    print(f"  {name:{width}} {number(value):>7}  {word} {need:g}{'' if good else '  SHORT'}")
    return {"name": name, "value": value, "need": need, "at_least": at_least, "ok": good}


def alike(workers: Workers, threads: int, cases: list[Case], effort: Effort) -> list[Entry] | None:
    """Race fastrnn against itself, each case in a process of its own; None if one fails."""
    entries = race(workers, [Entry(case.shape, "fastrnn", threads, case, key=k)
                             for k, case in enumerate(cases)], effort)
    for entry in entries:
        if not entry.ok:
            print(f"  {entry.case.shape} {entry.case.cell}: {entry.status}")
            return None
    return entries


def _streaming(workers: Workers, cell: str, steps: int, effort: Effort) -> list[dict[str, Any]]:
    """Take the smallest step there is for the overhead: its kernel needs a few nanoseconds."""
    smallest = alike(workers, 1, [Case("stream", cell, 1, 1, 1, 1)], effort)
    checks = []
    if smallest:
        checks.append(say(f"{cell}: µs of a stream's step of one unit",
                           smallest[0].median * 1e6, STREAM_US, False))
    for size in (40, 128):
        case = Case("stream", cell, 1, 1, size, size)
        worker = workers.get("fastrnn", 1, 0)
        assert worker is not None
        worker.ask("load", case=case.asdict(), path=workers.expected(case))
        worker.ask("warm", seconds=effort.warm)
        q = worker.ask("quantiles", calls=steps)
        checks.append(say(f"{cell}: stream {size}, p99 over the median of {steps:,} steps",
                           q["0.99"] / q["0.5"], P99, False))
    return checks


def _double(workers: Workers, cell: str, threads: int, effort: Effort) -> list[dict[str, Any]]:
    checks = []
    for case in (Case("infer", cell, 100, 32, 128, 256), Case("train", cell, 100, 32, 128, 256)):
        entries = alike(workers, threads, [case, dataclasses.replace(case, dtype="float64")],
                        effort)
        if entries:
            checks.append(say(f"{cell}: float64 as a part of float32's speed, {case.shape}",
                               entries[1].ratio(entries[0]), 0.45, True))
    return checks


def _stacks(workers: Workers, cell: str, threads: int, effort: Effort) -> list[dict[str, Any]]:
    checks = []
    for kind in ("infer", "train"):
        one = Case(kind, cell, 100, 32, 128, 256)
        upper = dataclasses.replace(one, I=256)
        cases = [dataclasses.replace(one, L=2), one, upper, dataclasses.replace(one, D=2)]
        entries = alike(workers, threads, cases, effort)
        if not entries:
            continue
        two, first, second, both = (e.medians for e in entries)
        layers = sorted(t / (a + b) for t, a, b in zip(two, first, second, strict=True))
        sides = sorted(t / (2 * a) for t, a in zip(both, first, strict=True))
        middle = len(layers) // 2
        checks.append(say(f"{cell}: two layers over the sum of each alone, {one.shape}",
                           layers[middle], 1.05, False))
        checks.append(say(f"{cell}: two directions over twice one, {one.shape}",
                           sides[middle], 1.05, False))
    if threads > 1:  # both directions at once: one row cannot be split in any other way
        case = Case("infer", cell, 100, 1, 128, 128)
        entries = alike(workers, threads, [dataclasses.replace(case, D=2), case], effort)
        if entries:
            checks.append(say(f"{cell}: two directions over one, {case.shape}",
                               entries[1].ratio(entries[0]), 1.2, False))
    return checks


def _bfloat16(workers: Workers, cell: str, threads: int, effort: Effort) -> list[dict[str, Any]]:
    """Race bfloat16 weights against every peer's float32, and fastrnn's own."""
    checks = []
    for kind, T, need in (("stream", 1, 2.0), ("infer", 100, 1.4)):
        case = Case(kind, cell, T, 1, 512, 512)
        half = Entry("fastrnn bf16", "fastrnn", threads,
                     dataclasses.replace(case, weights="bfloat16"), key="half")
        others = [Entry(peer, peer, threads, case, key="whole")
                  for peer in ("fastrnn", "torch", "ort", "openvino", "jax", "numpy")]
        race(workers, [half, *others], effort)
        known = [entry for entry in others if entry.ok]
        if not half.ok or not known:
            print(f"  {case.shape} {cell}: {half.status}")
            continue
        best = min((e for e in known if e.peer != "fastrnn"), key=lambda e: e.median, default=None)
        if best is not None:
            checks.append(say(f"{cell}: bfloat16 weights against {best.peer}, {case.shape}",
                               half.ratio(best), need, True))
        checks.append(say(f"{cell}: bfloat16 weights against float32, {case.shape}",
                           half.ratio(others[0]), 1.0, True))
    return checks


def _denormals(workers: Workers, cell: str, threads: int, effort: Effort) -> list[dict[str, Any]]:
    case = Case("infer", cell, 50, 8, 128, 128, bias=False)
    entries = alike(workers, threads, [dataclasses.replace(case, denormal=True), case], effort)
    if not entries:
        return []
    return [say(f"{cell}: a case full of denormals over the ordinary one",
                 entries[1].ratio(entries[0]), 1.5, False)]
