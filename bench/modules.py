"""Modules of PyTorch, accelerated, beside PyTorch's own: training, each way in its own process."""

from __future__ import annotations

import itertools
from typing import Any

from bench.cases import Case
from bench.grids import CELLS, MODULES
from bench.lead import say
from bench.race import Effort, Entry, Workers, race


def run(workers: Workers, cells: list[str], threads: int, wanted: str, effort: Effort
        ) -> list[dict[str, Any]]:
    """Measure and print the cases whose label has `wanted`; return one row a check."""
    print(f"\nmodules of PyTorch: its time over that of the accelerated one, {threads} thread(s)")
    checks = []
    for (B, H, lengths, needs), dx in itertools.product(MODULES, (True, False)):
        for cell, need in zip(CELLS.values(), needs, strict=True):
            case = Case("train", cell, 100, B, H, H, lengths=lengths, dx=dx)
            if cell not in cells or wanted not in case.label:
                continue
            theirs, ours = race(workers, [Entry(peer, peer, threads, case)
                                          for peer in ("torch", "bridge")], effort)
            name, ratio = f"{cell} {case.shape}", 0.0
            if theirs.ok and ours.ok:
                ratio = ours.ratio(theirs)
            else:
                name += f": torch {theirs.status}, accelerated {ours.status}"
            checks.append(say(name, ratio, need, True))
    return checks
