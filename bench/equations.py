"""What cells from equations cost: against the hand-fused ones, against loops, and at first use.

The definitions are in bench/definitions.py, the LayerNorm LSTM's numbers and what is right of them
in bench/layernorm.py, the loops of PyTorch in peers/loops.py and the scan of JAX in peers/scan.py.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import replace
from typing import Any

from bench import machine
from bench.cases import Case
from bench.definitions import LAYERNORM, TEN_LINES
from bench.lead import say
from bench.peers import LOOPS
from bench.race import SILENT, DiedError, Effort, Entry, Workers, race
from bench.report import number

SHARE, SHARE_OF_ONE_ROW = 0.7, 0.5  # of the hand-fused cells' speed, at least
STREAM_US = 2.0  # a step of 40 units, at most
TORCH, JAX = 10.0, 1.5  # times as fast as a loop in Python, and as a scan, at least
COMPILING = 300  # seconds that a peer may compile
FIRST_MS = 20.0  # from the text to the first gradient, at most
HAND = ((16, 128), (32, 128), (16, 256), (32, 512), (1, 128))  # B H
ROWS = ((1, 128), (32, 128), (1, 512), (32, 512))
T, STREAM = 100, 40
WIDTH = 68  # of a check's name in print
_NAMES = {
    "loop": "PyTorch loop", "script": "TorchScript", "step": "torch.compile of a step",
    "whole": "torch.compile of the loop", "scan": "JAX scan",
}


def run(workers: Workers, cells: list[str], peers: list[str], threads: int, wanted: str,
        effort: Effort, *, short: bool = False) -> list[dict[str, Any]]:
    """Measure and print the cases whose label has `wanted`; return one row a check.

    `short` takes two sequences of few steps instead of all cases.
    """
    steps = 10 if short else T
    hand = [Case(kind, cell, steps, B, H, H) for cell in cells for B, H in HAND
            for kind in ("infer", "train")]
    hand += [Case("stream", cell, 1, 1, STREAM, STREAM) for cell in cells]
    loops = [Case(kind, LAYERNORM, steps, B, H, H) for B, H in ROWS for kind in ("infer", "train")]
    if short:
        hand = [case for case in hand if case.B == 1]
        loops = loops[:2]
    print(f"\ncells from equations against hand-fused ones, {threads} thread(s)")
    checks = []
    for case in hand:
        if wanted in case.label:
            checks += _against_hand(workers, case, threads, effort)
    rivals = [peer for peer in LOOPS if peer in peers and peer in _NAMES]
    if rivals:
        print(f"\nLayerNorm LSTM against loops, {threads} thread(s)")
        slow: set[tuple[str, int, int]] = set()  # peer, B, H: too slow to compile
        for case in loops:
            if wanted in case.label:
                checks += _against_loops(workers, case, rivals, threads, effort, slow)
    return checks


def _against_hand(workers: Workers, case: Case, threads: int, effort: Effort
                  ) -> list[dict[str, Any]]:
    """Race a layer of a hand-fused cell and one of the same cell from equations."""
    name = f"{case.cell}: {case.shape}"
    entries = [Entry(f"{name}, {peer}", peer, threads, case) for peer in ("fastrnn", "equations")]
    try:
        hand, own = race(workers, entries, effort)
    except DiedError as why:
        print(f"  {name}: no reference: {why}")
        return []
    for entry in (hand, own):
        if not entry.ok:
            print(f"  {name}: {entry.peer} {entry.status}")
            return []
    times = {"us": own.median * 1e6, "hand_us": hand.median * 1e6}
    if case.kind == "stream":
        said = f"{name}: µs (hand-fused {times['hand_us']:.2f})"
        return [say(said, times["us"], STREAM_US, False, WIDTH) | times]
    need = SHARE if case.B >= 16 else SHARE_OF_ONE_ROW
    said = f"{name}: of the hand-fused speed ({number(times['us'])} µs)"
    return [say(said, own.ratio(hand), need, True, WIDTH) | times]


def _against_loops(workers: Workers, case: Case, rivals: list[str], threads: int, effort: Effort,
                   slow: set[tuple[str, int, int]]) -> list[dict[str, Any]]:
    """Race the cell from equations against the same cell of PyTorch and JAX.

    A peer whose forward alone does not compile in time is not asked for its backward: that is in
    `slow` from one case to the next.
    """
    shown = replace(case, cell="lstm").shape  # without the cell's name
    entries = [Entry(f"{shown}, {peer}", peer, threads, case, patience=COMPILING)
               for peer in ("equations", *rivals) if (peer, case.B, case.H) not in slow]
    try:
        own, *others = race(workers, entries, effort)
    except DiedError as why:
        print(f"  {shown}: no reference: {why}")
        return []
    if not own.ok:
        print(f"  {shown}: fastrnn {own.status}")
        return []
    print(f"  {shown}: {number(own.median * 1e6)} µs")
    checks: list[dict[str, Any]] = []
    for peer in rivals:
        if peer not in {entry.peer for entry in others}:
            print(f"    {_NAMES[peer]:{WIDTH - 2}} not tried: its forward alone compiles too long")
    for entry in others:
        name = _NAMES[entry.peer]
        if not entry.ok:
            print(f"    {name:{WIDTH - 2}} {entry.status}")
            checks.append({"name": f"{shown}: {name}", "status": entry.status})
            if SILENT in entry.status:
                slow.add((entry.peer, case.B, case.H))
            continue
        compiled = entry.peer in ("step", "whole", "scan")
        first = f", first call {entry.first:.1f} s" * compiled
        said = say(f"  {name} ({number(entry.median * 1e6)} µs{first})", own.ratio(entry),
                   JAX if entry.peer == "scan" else TORCH, True, WIDTH)
        checks.append(said | entry.asdict() | {"name": f"{shown}: {name}",
                                               "first_s": entry.first, "own_us": own.median * 1e6})
    return checks


# A process that has imported fastrnn, and in one of two runs what its cells need.
_FIRST = """
import json, sys, time
import numpy as np
import fastrnn
text, imported = json.load(sys.stdin)
x = np.ones((20, 16, 64), np.float32)
dy = np.ones((20, 16, 128), np.float32)
if imported:
    fastrnn.cell("h = tanh(W x + U h)")  # another cell: nothing of the one below is there yet
    fastrnn.Layer
    import fastrnn.cells.evaluate, fastrnn.cells.instance, fastrnn.layers.programs
times = [time.perf_counter()]
cell = fastrnn.cell(text)
times.append(time.perf_counter())
layer = fastrnn.Layer(cell, 64, 128)
times.append(time.perf_counter())
layer(x)
times.append(time.perf_counter())
layer.backward(dy)
times.append(time.perf_counter())
print(json.dumps([(b - a) * 1e3 for a, b in zip(times, times[1:])]))
"""
_STAGES = ("definition", "layer", "first forward", "first backward")


def first_use(rounds: int) -> list[dict[str, Any]]:
    """Measure and print the time from ten lines of text to the first gradient."""
    print("\nfirst use of a cell of ten lines in a fresh process: text, layer, forward, backward")
    checks = []
    for imported in (False, True):
        found = []
        for _ in range(rounds):
            done = subprocess.run([sys.executable, "-c", _FIRST], check=True, capture_output=True,
                                  text=True, env=machine.environment(1),
                                  input=json.dumps([TEN_LINES, imported]))
            found.append(json.loads(done.stdout))
        each = dict(zip(_STAGES, map(statistics.median, zip(*found, strict=True)), strict=True))
        what = "imports done" if imported else "imports of fastrnn.cells included"
        checks.append(say(f"ms, {what}", statistics.median(map(sum, found)), FIRST_MS, False, WIDTH)
                      | {"stages_ms": each})
        print("    " + ", ".join(f"{stage} {ms:.1f}" for stage, ms in each.items()))
    return checks
