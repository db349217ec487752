"""What ran accelerated, what did not, and why."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from fastrnn.torch import choice
from fastrnn.torch.modules import CLASSES, check_model, recurrent_modules

__all__ = ["Report", "Row", "report"]


class Row(NamedTuple):
    """Calls of one module with the same sizes.

    Attributes
    ----------
    name : str
        The module's name in the model, or "" if no model was given.
    cell, shape : str
    accelerated, fallback : int
        Calls that fastrnn and PyTorch computed.
    reason : str
        Why PyTorch did.
    times : pair of float or None
        Measured seconds of one call, fastrnn's and PyTorch's; see Choice.
    """

    name: str
    cell: str
    shape: str
    accelerated: int
    fallback: int
    reason: str
    times: tuple[float | None, float | None]


class Report(NamedTuple):
    """The rows of a report; as text it is a table."""

    rows: list[Row]

    def __str__(self) -> str:
        if not self.rows:
            return "no call yet"
        head = ("module", "cell", "call", "accelerated", "PyTorch", "us", "PyTorch us", "reason")
        lines = [head, *((
            row.name, row.cell, row.shape, str(row.accelerated), str(row.fallback),
            *map(_microseconds, row.times), row.reason) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join("  ".join(text.ljust(width) for text, width in zip(
            line, widths, strict=True)).rstrip() for line in lines)


def _microseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.1f}"


def report(model: nn.Module | None = None) -> Report:
    """Return what happened to the calls of a model's recurrent modules, or of the whole process.

    Parameters
    ----------
    model : torch.nn.Module, optional
        A call is known by its first weight. Modules that share it share their rows. Where it is
        computed anew for each call (weight norm, parametrizations, functional_call), its calls are
        counted without the model only.

    Returns
    -------
    Report
        ``str()`` of it is a table, ``rows`` has the numbers.
    """
    if model is None:
        return Report([_row("", count) for count in choice.rows_of(None)])
    check_model("report", model)
    rows = []
    for name, module in recurrent_modules(model):
        first = getattr(module, "_flat_weights_names", ["weight_ih"])[0]
        weight = module._parameters.get(first)  # a call is known by this tensor alone
        if weight is None:
            kind = next(kind.__name__ for kind in CLASSES if isinstance(module, kind))
            rows.append(Row(name or kind, kind, "", 0, 0,
                            f"{first} is computed anew for each call: report() counts them",
                            (None, None)))
        else:
            rows += [_row(name or type(module).__name__, count)
                     for count in choice.rows_of(weight)]
    return Report(rows)


def _row(name: str, count: choice.Count) -> Row:
    known = count.choice
    return Row(name, known.cell, known.shape, count.accelerated, count.fallback, count.reason,
               (known.ours, known.theirs))
