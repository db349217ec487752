"""What the examples share: their --quick, and docs/results, for numbers and charts."""

import argparse
import contextlib
import json
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def parser(doc, quick):
    """Return the parser of a script's arguments: its first line, and what --quick means."""
    made = argparse.ArgumentParser(description=doc.partition("\n")[0])
    made.add_argument("--quick", action="store_true", help=quick)
    return made


def record(name, settings, outcome):
    """Write settings and outcome to docs/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"settings": settings, "outcome": outcome}, indent=1) + "\n")


@contextlib.contextmanager
def chart(name, rows=1, columns=1, size=(6, 4)):
    """Give Axes to draw on; afterwards they are docs/results/NAME.png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=110)
    yield figure.subplots(rows, columns)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{name}.png")
