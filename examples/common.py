"""What the examples share: their options, and docs/results, where numbers and charts go."""

import argparse
import contextlib
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def parser(doc, quick):
    """Return a parser of arguments: the first line of `doc`, and what --quick means."""
    made = argparse.ArgumentParser(description=doc.partition("\n")[0])
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--processes", type=int, default=1, help="runs at a time")
    return made


@contextlib.contextmanager
def mapping(processes):
    """Give a `map` that calls in so many processes; the results are the same for any number."""
    if processes == 1:
        yield map
    else:
        with ProcessPoolExecutor(processes) as pool:
            yield pool.map


def record(name, settings, outcome):
    """Write settings and outcome to docs/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"settings": settings, "outcome": outcome}, indent=1) + "\n")


@contextlib.contextmanager
def chart(name, rows=1, columns=1, size=(6, 4)):
    """Give Axes to draw on; then write them to docs/results/NAME.png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=110)
    yield figure.subplots(rows, columns)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{name}.png")
