"""Where the examples write what they found: docs/results, as numbers and as a chart."""

import contextlib
import json
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "docs" / "results"


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
