"""What lengths and resets cost: fastrnn against itself, each as a ratio inside one run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.cases import Case
from bench.grids import RAGGED
from bench.lead import alike, say
from bench.race import Effort, Entry, Workers

EQUAL = 1.02  # all lengths equal, over no lengths, at most
RESETS = 1.05  # resets on 5% of the steps, over no flags
FALSE = 1.01  # flags that are all false, over no flags


def _most(case: Case) -> float:
    """Return the most that a real step may cost, over a step of the padded batch."""
    return 1.1 if case.B >= 32 else 1.25


def run(workers: Workers, cells: list[str], threads: int, wanted: str, effort: Effort
        ) -> list[dict[str, Any]]:
    """Measure and print the cases whose label has `wanted`; return one row a check."""
    print(f"\nlengths and resets against none, {threads} thread(s)")
    checks = []
    for B, H in RAGGED:
        for kind in ("infer", "train"):
            for cell in cells:
                plain = Case(kind, cell, 100, B, H, H)
                if wanted in plain.label:
                    checks += _checks(workers, threads, plain, effort)
    return checks


def _checks(workers: Workers, threads: int, plain: Case, effort: Effort) -> list[dict[str, Any]]:
    ragged = replace(plain, lengths="random")
    cases = [plain, ragged, replace(plain, lengths="equal"), replace(plain, resets=0.05),
             replace(plain, resets=0.0)]
    entries = alike(workers, threads, cases, effort)
    if not entries:
        return []
    none, some, equal, resets, false = entries
    real = int(ragged.live.sum()) / int(plain.live.sum())

    def check(what: str, entry: Entry, need: float, share: float = 1.0) -> dict[str, Any]:
        """Take the median of the paired rounds; the minima tell whether others were at work."""
        minima = entry.minimum / none.minimum / share
        name = f"{plain.cell} {plain.shape}: {what} (of minima {minima:.2f})"
        return say(name, none.ratio(entry) / share, need, False, 86) | {"of_minima": minima}

    return [
        check(f"a real step, {real:.0%} of all, over a padded one", some, _most(plain), real),
        check("lengths all equal over none", equal, EQUAL),
        check("resets on 5% of the steps over none", resets, RESETS),
        check("flags all false over none", false, FALSE),
    ]
