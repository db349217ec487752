"""The command line: `python -m bench --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from bench import (
    equations,
    gate,
    grids,
    lead,
    loop,
    machine,
    memory,
    modules,
    pressure,
    programs,
    ragged,
    report,
    scale,
    start,
)
from bench.cases import Case
from bench.chart import draw
from bench.peers import LOOPS, PEERS
from bench.probe import probe
from bench.race import DiedError, Effort, Entry, Workers, race
from bench.rows import row

RACES = ("quick", "full", "real", "train", "ragged", "callers", "audio")
GRIDS = (*RACES, "scale", "memory", "start", "lead", "loop", "pressure", "cells", "modules",
         "programs")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Race fastrnn against its peers; see bench/__init__.py for how.",
        epilog="grids: quick (a minute), full (the table of the README), real (sizes of real "
        "models),\n  train (the language model), scale (curves over T, B, H, threads), memory, "
        "start,\n  lead (fastrnn against itself: float64, stacks, denormals, streams), loop "
        "(what\n  training and the gradient flow add to the kernels), ragged (rows of different"
        "\n  lengths, resets), callers (a thousand in one stream), audio (sample by sample),\n"
        "  pressure (two threads beside busy processes), cells (cells from equations against the"
        "\n  hand-fused ones, PyTorch's loops, compiled or not, and JAX's scan; their first use),"
        "\n  modules (single modules of PyTorch, accelerated or not),"
        "\n  programs (programs that train with PyTorch, as they are and through fastrnn).",
    )
    parser.add_argument("--grid", nargs="+", default=["quick"], choices=GRIDS)
    parser.add_argument("--threads", nargs="+", type=int, metavar="N",
                        help="thread counts; several race side by side (default 1; train: 2)")
    parser.add_argument("--cells", nargs="+", default=list(grids.CELLS), choices=grids.CELLS)
    parser.add_argument("--peers", nargs="+", choices=(*PEERS, *LOOPS),
                        default=[p for p in (*PEERS, *LOOPS) if p != "before"],
                        help=f"the grid cells knows fastrnn and {', '.join(LOOPS)}, the other "
                        "grids know the rest")
    parser.add_argument("--against", type=Path, metavar="FOLDER",
                        help="race against another checkout of fastrnn, built in place there, "
                        "alone: the ratio is its time over ours; the grid programs knows `plain`, "
                        "PyTorch on both sides")
    parser.add_argument("--cases", default="", metavar="TEXT",
                        help="only cases whose label has this text, like 'infer 32'")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there")
    parser.add_argument("--chart", type=Path, metavar="PATH", help="draw them there (PNG or SVG)")
    parser.add_argument("--from", type=Path, dest="source", metavar="PATH",
                        help="measure nothing: print and draw what --json wrote")
    parser.add_argument("--verbose", action="store_true", help="show the times of all peers")
    parser.add_argument("--quickly", action="store_true", help="a smoke test: numbers mean nothing")
    parser.add_argument("--gate", action="store_true",
                        help="compare with bench/gate.json; exit code 1 if something got slower")
    parser.add_argument("--update", action="store_true", help="with --gate: write the file anew")
    args = parser.parse_args()
    if "programs" in args.grid and args.against not in (None, Path("plain")):
        parser.error("the grid programs knows --against plain only")
    return args


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    args = _arguments()
    effort = Effort(args.rounds)
    if args.against:
        args.peers = ["fastrnn", "before"]
        os.environ["FASTRNN_BEFORE"] = str(args.against.resolve())
    if args.quickly:
        effort = Effort(rounds=2, warm=0.02, fill=0.003)
    if args.source:
        return _show(json.loads(args.source.read_text()), args)
    with Workers() as workers:
        cells = [grids.CELLS[cell] for cell in args.cells]
        if args.gate:
            return gate.run(workers, cells, effort, update=args.update)
        found = _measure(workers, cells, args, effort)
    if args.chart:
        _draw(found, args.chart)
    return 0


def _measure(workers: Workers, cells: list[str], args: argparse.Namespace, effort: Effort
             ) -> dict[str, Any]:
    counts = args.threads or [1]
    if args.threads is None and set(args.grid) == {"train"}:
        counts = [len(machine.cores(2)) or 2]
    probes = {n: probe(n) for n in counts}
    found: dict[str, Any] = {
        "format": 1, "machine": machine.describe(), "load": machine.load_average(),
        "probe": {str(n): p for n, p in probes.items()},
        "settings": dataclasses.asdict(effort) | {"dtype": args.dtype, "threads": counts},
        "versions": workers.versions, "missing": workers.missing, "rows": [],
    }
    print(report.machine(found))
    for grid in args.grid:
        if grid in RACES:
            wanted = [case for case in grids.cases(grid, args.dtype)
                      if args.cases in case.label and _cell_wanted(case, cells)]
            width = max((len(case.label) for case in wanted), default=0)
            print(f"\n{grid}\n{report.header(width)}")
            for case in wanted:
                for made in _case(workers, grid, case, probes, args, effort):
                    print(report.line(made, width), flush=True)
                    if args.verbose:
                        print(report.everyone(made))
                    found["rows"].append(made)
                _save(found, args.json)
            if grid == "ragged":
                for n in counts:
                    found.setdefault(grid, []).extend(
                        ragged.run(workers, cells, n, args.cases, effort))
                    _save(found, args.json)
            continue
        for n in counts:
            if grid == "scale":
                result = scale.run(workers, cells, n, probes[n], effort, short=args.quickly)
            elif grid == "memory":
                result = memory.run(workers, args.peers, n)
            elif grid == "start":
                result = start.run(args.peers, effort.rounds)
            elif grid == "loop":
                result = loop.run(n, effort.rounds, short=args.quickly)
            elif grid == "pressure":
                result = pressure.run(0.2 if args.quickly else 4.0)
            elif grid == "programs":
                plain = args.against == Path("plain")
                result = []
                for each in programs.run(n, effort.rounds, args.cases,
                                         plain=plain, short=args.quickly):
                    result.append(each)
                    _save(found | {grid: found.get(grid, []) + result}, args.json)
            elif grid == "modules":
                result = modules.run(workers, cells, n, args.cases, effort)
            elif grid == "cells":
                result = equations.run(workers, cells, args.peers, n, args.cases, effort,
                                       short=args.quickly)
                if n == counts[-1] and not args.cases:  # threads change nothing
                    result += equations.first_use(effort.rounds)
            else:
                result = lead.run(workers, cells, n, effort, short=args.quickly)
            found.setdefault(grid, []).extend(result)
            _save(found, args.json)
            if grid == "start":
                break  # threads change nothing
    print(report.summary(found))
    return found


def _cell_wanted(case: Case, cells: list[str]) -> bool:
    return case.cell in cells or (case.cell == "rnn_relu" and "rnn_tanh" in cells)


def _case(workers: Workers, grid: str, case: Case, probes: dict[int, dict[str, Any]],
          args: argparse.Namespace, effort: Effort) -> list[dict[str, Any]]:
    entries = [Entry(f"{peer} on {n}", peer, n, case) for n in probes for peer in args.peers
               if peer in PEERS]
    try:
        race(workers, entries, effort)
    except DiedError as why:
        print(f"{case.label}: no reference: {why}")
        return []
    return [row(case, n, entries, limits) | {"grid": grid} for n, limits in probes.items()]


def _save(found: dict[str, Any], path: Path | None) -> None:
    """Write what there is so far: a long run that is cut short has not been for nothing."""
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n")


def _show(found: dict[str, Any], args: argparse.Namespace) -> int:
    print(report.machine(found))
    grid, width = "", max((len(r["label"]) for r in found["rows"]), default=0)
    for r in found["rows"]:
        if r["grid"] != grid:
            grid = r["grid"]
            print(f"\n{grid}\n{report.header(width)}")
        print(report.line(r, width))
        if args.verbose:
            print(report.everyone(r))
    print(report.summary(found))
    if args.chart:
        _draw(found, args.chart)
    return 0


def _draw(found: dict[str, Any], path: Path) -> None:
    try:
        draw(found, path)
    except ImportError as error:
        print(f"bench: no chart: {error}; pip install matplotlib")
    else:
        print(f"chart: {path}")


if __name__ == "__main__":
    sys.exit(main())
