"""The regression gate: fastrnn against tuned NumPy inside one run, so the machine's mood cancels.

gate.json holds the least ratios, about four fifths of what was measured when they were written:
noise passes, the loss of a packed tile or of a fused epilogue does not. Machines differ in how well
their BLAS does, so ratios can be given per instruction set; "any" serves the rest.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from bench.cases import Case
from bench.race import Effort, Entry, Workers, race

FILE = Path(__file__).with_name("gate.json")
SHARE = 0.8  # of the measured ratio, when the file is written
SHAPES = [
    ("stream", 1, 1, 40, 40),
    ("infer", 1, 50, 128, 128),
    ("infer", 8, 50, 128, 128),
    ("infer", 32, 20, 128, 256),
    ("train", 16, 20, 64, 128),
    ("train", 32, 20, 128, 256),
]


def run(workers: Workers, cells: list[str], effort: Effort, *, update: bool = False) -> int:
    """Measure; return 1 if a ratio is below its least one. `update` writes them anew instead."""
    known: dict[str, dict[str, float]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    measured: dict[str, float] = {}
    failed = []
    worker = workers.get("fastrnn", 1)
    if worker is None:
        print(f"gate: no fastrnn: {workers.missing['fastrnn']}")
        return 1
    isa = worker.hello["version"].partition("(")[2].rstrip(")")
    least = known.get("any", {}) | known.get(isa, {})
    for kind, B, T, I, H in SHAPES:
        for cell in cells:
            case = Case(kind, cell, T, B, I, H)
            name = f"{case.shape} {cell}"
            ours, theirs = race(workers, [Entry("fastrnn", "fastrnn", 1, case),
                                          Entry("numpy", "numpy", 1, case)], effort)
            if not (ours.ok and theirs.ok):
                failed.append(f"{name}: fastrnn {ours.status}, numpy {theirs.status}")
                continue
            ratio = measured[name] = ours.ratio(theirs)
            if not update and ratio < least.get(name, 0):
                # once more, longer, before it counts
                longer = dataclasses.replace(effort, rounds=2 * effort.rounds + 1)
                again = race(workers, [Entry("fastrnn", "fastrnn", 1, case),
                                       Entry("numpy", "numpy", 1, case)], longer)
                ratio = measured[name] = max(ratio, again[0].ratio(again[1]))
            good = ratio >= least.get(name, 0)
            print(f"  {name:32} {ratio:6.2f} times tuned NumPy, at least "
                  f"{least.get(name, 0):.2f}{'' if good or update else '  FAILED'}")
            if not good and not update:
                failed.append(f"{name}: {ratio:.2f} times tuned NumPy, at least {least[name]:g}")
    if update:
        _write(known, isa, measured)
        return 0
    for sentence in failed:
        print(f"gate: {sentence}")
    print(f"gate: {'failed' if failed else 'passed'}")
    return int(bool(failed))


def _write(known: dict[str, Any], isa: str, measured: dict[str, float]) -> None:
    known[isa] = known.get(isa, {}) | {k: round(SHARE * r, 2) for k, r in measured.items()}
    names = [name for ratios in known.values() for name in ratios]
    sets = [ratios for key, ratios in known.items() if key != "any"]
    known["any"] = {n: min(s.get(n, 1e9) for s in sets) for n in dict.fromkeys(names)}
    FILE.write_text(json.dumps(known, indent=1) + "\n")
    print(f"gate: wrote {FILE} for {isa}")
