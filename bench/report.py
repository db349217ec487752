"""The table in the terminal."""

from __future__ import annotations

from typing import Any

from bench import programs
from bench.rows import complaints

FRAME_US = 32_000  # a caller makes a step each 32 ms


def header(width: int) -> str:
    """Return the names of the columns; `width` is that of the longest label."""
    return (f"{'case (job B T I H)':{width}} cell thr {'µs':>9} {'min':>9} {'GFLOP/s':>8} "
            f"{'limit':>6}  {'best peer':>19} {'ratio':>6} {'needed':>6}")


def number(value: float) -> str:
    """Return three or four digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def line(r: dict[str, Any], width: int) -> str:
    """Return one row: `-` marks a fraction below the aim, SHORT a ratio below the needed one."""
    cell = r["case"]["cell"].replace("rnn_tanh", "rnn").replace("rnn_relu", "relu")
    head = f"{r['label']:{width}} {cell:4} {r['threads']:3}"
    ours = r["peers"].get("fastrnn", {"status": "absent"})
    if ours["status"] != "ok":
        return f"{head} fastrnn: {ours['status']}"
    fraction = f"{ours['fraction']:.0%}{'-' if ours['fraction'] < r['aim'] else ' '}"
    text = (f"{head} {number(ours['median_us']):>9} {number(ours['min_us']):>9} "
            f"{ours['gflops']:8.1f} {fraction:>6} ")
    if "best" in r:
        best = r["peers"][r["best"]]
        text += f" {r['best']:>9} {number(best['median_us']):>9} {r['ratio']:6.2f}"
        text += f" {r['need']:6g}" if r["need"] is not None else " " * 7
        text += "  SHORT" if r.get("short") else "  lost" if r["ratio"] < 1 else ""
    if "speedup" in r:
        text += f"  x{r['speedup']:.2f} of 1 thread"
    if "torch" in r:
        short = "  SHORT" if r["torch"] < r["need_torch"] else ""
        text += f"  {r['torch']:.2f} of torch, needed {r['need_torch']:g}{short}"
    if r["case"]["kind"] == "callers":
        text += f"  {callers(r, 'fastrnn')}"
    if r["case"]["kind"] == "block":
        sample = ours["median_us"] / r["case"]["T"]
        text += f"  {sample:.3f} µs a sample"
    if r["case"]["kind"] == "lm":
        characters = r["case"]["B"] * r["case"]["T"] / ours["median_us"] * 1e6
        text += f"  {characters:,.0f} characters/s"
    return text


def callers(r: dict[str, Any], peer: str) -> str:
    """Return what a caller's step takes, and how many one core serves in real time."""
    each = r["peers"][peer]["median_us"] / r["case"]["step"]
    return f"{each:.2f} µs a caller, {FRAME_US / each:,.0f} callers a core"


def everyone(r: dict[str, Any]) -> str:
    """Return a line with the times of all peers."""
    shown = []
    for peer, result in r["peers"].items():
        if result["status"] == "ok":
            shown.append(f"{peer} {number(result['median_us'])} ({result['way']})")
            if r["case"]["kind"] == "callers":
                shown[-1] += f": {callers(r, peer)}"
        else:
            shown.append(f"{peer}: {result['status']}")
    return "    " + ", ".join(shown)


def machine(found: dict[str, Any]) -> str:
    """Return what was measured on: CPU, limits, versions."""
    m = found["machine"]
    lines = [f"{m['cpu']}, {', '.join(m['vector extensions'])}; {m['system']}; {m['date']}; "
             f"commit {m['commit']}"]
    for threads, p in found["probe"].items():
        reads = ", ".join(f"{size >> 10} KB {speed:.0f}" for size, speed in p["read_gbs"])
        lines.append(f"{threads} thread(s), {p['source']}: {p['fma_gflops']:.0f} GFLOP/s float32; "
                     f"GB/s by working set: {reads}")
    if any(p["source"] != "probe.c" for p in found["probe"].values()):
        lines.append("No C compiler: the limits are NumPy's, and fractions of them too high.")
    if found["load"] > 0.5:
        lines.append(f"The machine was busy at the start (load {found['load']:.1f}): do not keep "
                     "these numbers.")
    return "\n".join(lines)


def summary(found: dict[str, Any]) -> str:
    """Return what falls short, and the versions."""
    said = complaints(found.get("rows", []))
    checks = [each for rows in found.values() if isinstance(rows, list) for each in rows]
    said += [f"{check['name']}: {number(check['value'])}, needed "
             f"{'at least' if check['at_least'] else 'at most'} {check['need']:g}"
             for check in checks if "at_least" in check and not check["ok"]]
    said += [sentence for check in checks if "function" in check
             for sentence in programs.complaints(check)]
    lines = ["", f"{len(said)} short, lost or wrong:" if said else "nothing short, lost or wrong"]
    lines += [f"  {sentence}" for sentence in said]
    lines.append("versions: " + ", ".join(f"{k} {v}" for k, v in found["versions"].items()))
    lines += [f"not installed: {peer} ({why})" for peer, why in found["missing"].items()]
    return "\n".join(lines)
