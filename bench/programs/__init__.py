"""Programs that train with PyTorch's recurrent layers: as they are, and through fastrnn.

`python -m bench --grid programs` runs each program in two processes that take turns. One has plain
PyTorch. The other calls `fastrnn.torch.patch()` before it imports the program. Both draw the same
numbers. A program whose package is not installed is skipped with a line.

- The total is the time of one run: the model is made and trained. Imports and the data are not
  part of it, and each process runs the program once for a few steps before.
- The ratio is formed within a round, and the median over the rounds is reported.
- The time inside recurrent modules (inside.py) is from one more run of each process: its hooks
  cost time, so it has no part in the ratio.
- The losses of all training steps are recorded. Those of the first FIRST steps must agree within
  TOLERANCE of the greatest of them. Later ones need not: rounding errors grow in training.

The packages ask for releases that exclude one another, and some for another build of PyTorch. This
order installs all of them into one virtual environment::

    pip install torch==2.13.0 numpy
    pip install sb3-contrib skorch gluonts lightning "darts[torch]" neuralhydrology
    pip install --no-deps neuralforecast neural-amp-modeler recbole
    pip install "ray[tune]" optuna tornado coreforecast utilsforecast
    pip install librosa sounddevice wavio transformers colorlog colorama
    pip install texttable thop plotly psutil
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bench.race import DiedError, Worker

FIRST = 20  # steps
TOLERANCE = 1e-4  # float32: a few hundred rounding errors


@dataclass(frozen=True)
class Program:
    """A program: its package, the function that makes it, and its least ratio in all."""

    name: str
    package: str
    function: str  # module of this folder:function
    need: float | None = None


PROGRAMS = [
    Program("tagger BiGRU packed", "torch", "taggers:gru", 2.6),
    Program("tagger BiLSTM packed", "torch", "taggers:lstm"),
    Program("sb3 RecurrentPPO LSTM 256", "sb3_contrib", "reinforcement:ppo", 1.6),
    Program("GluonTS DeepAR", "gluonts", "forecasting:deepar", 1.2),
    Program("darts RNNModel GRU", "darts", "forecasting:darts_gru", 2.6),
    Program("darts RNNModel LSTM", "darts", "forecasting:darts_lstm"),
    Program("NeuralForecast GRU", "neuralforecast", "forecasting:neural_gru", 1.8),
    Program("NeuralHydrology GRU 64", "neuralhydrology", "hydrology:gru", 2.0),
    Program("NeuralHydrology CudaLSTM 64", "neuralhydrology", "hydrology:lstm"),
    Program("RecBole GRU4Rec", "recbole", "recommendation:gru4rec", 2.3),
    Program("neural-amp-modeler LSTM", "nam", "amplifier:lstm", 2.0),
    Program("skorch GRU 64", "skorch", "estimators:gru"),
    Program("skorch LSTM 64", "skorch", "estimators:lstm"),
    Program("skorch RNN 64", "skorch", "estimators:rnn"),
]
_WIDTH = max(len(program.name) for program in PROGRAMS)


def run(threads: int, rounds: int, wanted: str = "", *, plain: bool = False, short: bool = False
        ) -> Iterator[dict[str, Any]]:
    """Measure and print the programs; yield one row a program.

    Parameters
    ----------
    threads, rounds : int
    wanted : str
        Only programs whose name has this text.
    plain : bool
        Plain PyTorch in both processes: ratios of 1, but for what the machine adds.
    short : bool
        Few steps.
    """
    other = "plain" if plain else "fastrnn"
    print(f"\nprograms, {threads} thread(s), {rounds} round(s): plain PyTorch against {other}")
    print(f"{'program':{_WIDTH}} {'plain s':>8} {other + ' s':>10} {'ratio':>6} {'needed':>6}  "
          f"{'inside: s':>9} {'s':>7} {'ratio':>6}  losses: greatest difference of the first "
          f"{FIRST} steps (allowed {TOLERANCE:g}), of all")
    for program in PROGRAMS:
        if wanted not in program.name:
            continue
        if importlib.util.find_spec(program.package) is None:
            row: dict[str, Any] = {"status": f"skipped: {program.package} is not installed"}
        else:
            try:
                row = _measure(program, other, threads, rounds, short)
            except DiedError as why:
                row = {"status": f"failed: {why}"}
        row = asdict(program) | {"threads": threads, "other": other} | row
        print(_line(row), flush=True)
        yield row


def _measure(program: Program, other: str, threads: int, rounds: int, short: bool
             ) -> dict[str, Any]:
    sides: list[Worker] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            for way in ("plain", other):
                sides.append(Worker(way, threads, [
                    sys.executable, "-W", "ignore", "-m", "bench.programs.side",
                    program.function, way, str(threads), str(int(short))], folder))
                if "missing" in sides[-1].hello:
                    return {"status": f"skipped: {sides[-1].hello['missing']}"}
            found = [[side.ask("run") for side in sides] for _ in range(rounds)]
            inside = [side.ask("inside")["inside"] for side in sides]
            hellos = [side.hello for side in sides]
        finally:
            for side in sides:
                side.close()
    plain, fast = zip(*found, strict=True)
    times = [[one["seconds"] for one in side] for side in (plain, fast)]
    losses = [side[0]["losses"] for side in (plain, fast)]
    row = {
        "status": "ok", "versions": hellos[0]["versions"] | _version(program.package),
        "times": times,
        "seconds": [statistics.median(each) for each in times],
        "ratio": statistics.median(a / b for a, b in zip(*times, strict=True)),
        "first_run": [hello["first_run"] for hello in hellos],
        "inside": inside,
        "inside_ratio": inside[0] / inside[1] if min(inside) > 0 else None,
        "steps": [len(each) for each in losses], "losses": losses,
        "repeats": [all(one["losses"] == side[0]["losses"] for one in side)
                    for side in (plain, fast)],
    }
    row["difference"] = [difference(*(each[:count] for each in losses))
                         for count in (FIRST, None)]
    row["ok"] = row["difference"][0] <= TOLERANCE
    return row


def _version(package: str) -> dict[str, str]:
    names = importlib.metadata.packages_distributions().get(package, ())
    return {name: importlib.metadata.version(name) for name in names}


def difference(one: list[float], other: list[float]) -> float:
    """Return the greatest difference of two runs' losses, over the greatest loss.

    Over the greatest: some losses, as those of policies, pass through zero. It is infinite if a
    loss is not finite or if the runs have different numbers of steps or none.
    """
    if len(one) != len(other) or not one:
        return float("inf")
    most = max(abs(a - b) for a, b in zip(one, other, strict=True))
    relative = most / max(max(map(abs, one)), 1e-30)
    return relative if relative >= 0 else float("inf")


def _line(row: dict[str, Any]) -> str:
    head = f"{row['name']:{_WIDTH}}"
    if row["status"] != "ok":
        return f"{head} {row['status']}"
    need = "-" if row["need"] is None else f"{row['need']:.1f}"
    text = (f"{head} {row['seconds'][0]:8.2f} {row['seconds'][1]:10.2f} {row['ratio']:6.2f} "
            f"{need:>6}")
    ratio = "-" if row["inside_ratio"] is None else f"{row['inside_ratio']:.2f}"
    text += f"  {row['inside'][0]:9.2f} {row['inside'][1]:7.2f} {ratio:>6}"
    text += f"  {row['difference'][0]:.1e}, {row['difference'][1]:.1e} of {row['steps'][0]}"
    if not row["repeats"][0]:
        text += ", plain PyTorch does not repeat its own"
    for k in (0, 1):
        text += f"; {row['losses'][k][0]:.6g} to {row['losses'][k][-1]:.6g}" if row["steps"][k] \
            else "; none"
    return text + ("" if row["ok"] else "  DIFFERENT") + "  SHORT" * _short(row)


def _short(row: dict[str, Any]) -> bool:
    """Return whether fastrnn falls short of the ratio that is needed."""
    return row["other"] != "plain" and row["need"] is not None and row["ratio"] < row["need"]


def complaints(row: dict[str, Any]) -> list[str]:
    """Return a sentence for what falls short, is different or failed."""
    if row["status"] != "ok":
        skipped = row["status"].startswith("skipped")
        return [] if skipped else [f"{row['name']}: {row['status']}"]
    said = [f"{row['name']}: {row['ratio']:.2f}, needed {row['need']:g}"] if _short(row) else []
    if not row["ok"]:
        said.append(f"{row['name']}: losses differ by {row['difference'][0]:.1e}")
    return said
