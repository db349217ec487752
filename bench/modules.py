"""Modules of PyTorch, accelerated, beside PyTorch's own: training, each way in its own process."""

from __future__ import annotations

import itertools
from typing import Any

from bench.cases import Case
from bench.lead import say
from bench.race import Effort, Entry, Workers, race

# B, H (I is the same), lengths, and the least ratio for RNN, GRU and LSTM; T is 100. Each with and
# without the gradient of x.
ROWS = [
    (64, 512, "", (2.0, 2.0, 1.3)),
    (8, 128, "", (3.5, 3.5, 1.15)),
    (16, 128, "", (3.5, 3.5, 1.15)),
    (32, 128, "random", (5.0, 5.0, 5.0)),
]


def run(workers: Workers, cells: list[str], threads: int, wanted: str, effort: Effort
        ) -> list[dict[str, Any]]:
    """Measure and print the cases whose label has `wanted`; return one row a check."""
    print(f"\nmodules of PyTorch: its time over that of the accelerated one, {threads} thread(s)")
    checks = []
    for (B, H, lengths, needs), dx in itertools.product(ROWS, (True, False)):
        for cell, need in zip(("rnn_tanh", "gru", "lstm"), needs, strict=True):
            case = Case("train", cell, 100, B, H, H, lengths=lengths, dx=dx)
            if cell not in cells or wanted not in case.label:
                continue
            theirs, ours = race(workers, [Entry(peer, peer, threads, case)
                                          for peer in ("torch", "bridge")], effort)
            if theirs.ok and ours.ok:
                checks.append(say(f"{cell} {case.shape}", ours.ratio(theirs), need, True))
            else:
                name = f"{cell} {case.shape}: torch {theirs.status}, accelerated {ours.status}"
                checks.append(say(name, 0.0, need, True))
    return checks
