"""The chart: how many times faster than the best peer, and which part of the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# a palette that colour-blind readers can tell apart (Okabe and Ito 2008)
_CELLS = {"rnn_tanh": ("RNN", "#0072B2"), "rnn_relu": ("RNN, relu", "#56B4E9"),
          "gru": ("GRU", "#E69F00"), "lstm": ("LSTM", "#009E73")}
_BARS = 0.72  # of the height of a case


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the rows of a result into a file, one band of panels per number of threads.

    Parameters
    ----------
    found : dict
        What `python -m bench --json` wrote.
    path : Path
        Its suffix chooses the format.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If there is no row with a ratio.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [r for r in found["rows"] if r["peers"].get("fastrnn", {}).get("status") == "ok"]
    if not rows:
        raise ValueError("bench: nothing to draw: no row has a time of fastrnn")
    counts = sorted({r["threads"] for r in rows})
    labels = list(dict.fromkeys(r["label"] for r in rows))
    most = max(len({r["case"]["cell"] for r in rows if r["label"] == label}) for label in labels)
    height = 1.3 + (0.12 + 0.1 * most) * len(labels)
    bar = _BARS / most
    figure, axes = plt.subplots(len(counts), 2, figsize=(11, height * len(counts) + 0.5),
                                squeeze=False, sharey=True, width_ratios=(3, 2))
    for band, n in zip(axes, counts, strict=True):
        mine = [r for r in rows if r["threads"] == n]
        _ratios(band[0], mine, labels, bar)
        _fractions(band[1], mine, labels, bar)
        threads = "one thread" if n == 1 else f"{n} threads"
        band[0].set_title(f"times faster than the best peer, {threads}", fontsize=10, loc="left")
        band[1].set_title("part of the physical limit", fontsize=10, loc="left")
    used = [cell for cell in _CELLS if any(r["case"]["cell"] == cell for r in rows)]
    handles = [plt.Rectangle((0, 0), 1, 1, color=_CELLS[cell][1]) for cell in used]
    names = [_CELLS[cell][0] for cell in used]
    figure.legend(handles, names, loc="upper right", ncols=len(names), frameon=False, fontsize=9)
    m = found["machine"]
    peers = ", ".join(f"{k} {v.split(' (')[0].removeprefix('numpy ')}"
                      for k, v in found["versions"].items() if k not in ("fastrnn", "reference"))
    figure.text(0.01, 0.004, f"{m['cpu']}, {found['settings']['dtype']}, {m['date'][:10]}; "
                f"against {peers}", fontsize=7.5, color="0.35")
    figure.tight_layout(rect=(0, 0.18 / figure.get_figheight(), 1,
                              1 - 0.3 / figure.get_figheight()))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _places(rows: list[dict[str, Any]], labels: list[str], bar: float) -> list[float]:
    """Return the height of each bar: the cells of a case side by side."""
    places = []
    for r in rows:
        cells = [q["case"]["cell"] for q in rows if q["label"] == r["label"]]
        cells = [cell for cell in _CELLS if cell in cells]
        shift = cells.index(r["case"]["cell"]) - (len(cells) - 1) / 2
        places.append(labels.index(r["label"]) + bar * shift)
    return places


def _frame(axis: Any, labels: list[str]) -> None:
    axis.set_yticks(range(len(labels)), labels, fontsize=8.5)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.tick_params(axis="x", labelsize=8.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", color="0.9", linewidth=0.7)
    axis.set_axisbelow(True)


def _ratios(axis: Any, rows: list[dict[str, Any]], labels: list[str], bar: float) -> None:
    """Bars from 1 to the ratio: to the left of the line lie the cases that are lost."""
    rows = [r for r in rows if "ratio" in r]
    axis.set_xscale("log")
    for r, y in zip(rows, _places(rows, labels, bar), strict=True):
        ratio = r["ratio"]
        axis.barh(y, ratio - 1, bar * 0.9, left=1, color=_CELLS[r["case"]["cell"]][1])
        end = max(ratio, 1)
        colour = "0.25" if ratio >= 1 else "#B00020"
        axis.annotate(f"{ratio:.2f} {r['best']}", (end, y), (4, 0), va="center", fontsize=6.5,
                      textcoords="offset points", color=colour)
    axis.axvline(1, color="black", linewidth=1)
    low = min([r["ratio"] for r in rows], default=1)
    high = max([r["ratio"] for r in rows], default=2)
    axis.set_xlim(min(0.8, low * 0.9), high * 1.8)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100)
             if min(0.8, low * 0.9) <= t <= high * 1.8]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    _frame(axis, labels)


def _fractions(axis: Any, rows: list[dict[str, Any]], labels: list[str], bar: float) -> None:
    for r, y in zip(rows, _places(rows, labels, bar), strict=True):
        fraction = r["peers"]["fastrnn"]["fraction"]
        axis.barh(y, fraction, bar * 0.9, color=_CELLS[r["case"]["cell"]][1])
        best = r["peers"].get(r.get("best", ""), {}).get("fraction")
        if best:
            axis.plot(best, y, "o", ms=2.6, mfc="white", mec="0.3", mew=0.7)
    axis.set_xlim(0, 1.05)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axis.set_xlabel("circle: the best peer\nover 100%: weights in a nearer cache than assumed",
                    fontsize=8)
    _frame(axis, labels)
