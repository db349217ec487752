"""The table of cells: what each recurrent cell is, asked by every module.

A cell is one row: its gates in torch's order with their activations, its states, the shapes of its
parameters. The kernels have a table of their own (src_c/tmpl/table.h) in the same order, and
reference.py is independent on purpose; a test compares all three. `AnyCell` is what layers ask a
cell, so that one which is no row of the table can stand in its place. Letters: I input, H hidden, G
gates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

__all__ = ["CELLS", "AnyCell", "Cell", "Gate", "vanilla"]


@dataclasses.dataclass(frozen=True)
class Gate:
    """One of the G row blocks of a cell's weights.

    Attributes
    ----------
    name : str
    activation : {"tanh", "relu", "sigmoid"}
    """

    name: str
    activation: str


class AnyCell(Protocol):
    """What layers, models and gradflow ask a cell: a row of the table, or another with its sizes.

    Of a cell without gates nothing is asked of the parameters but their names and shapes.
    """

    @property
    def name(self) -> str:
        """Its name; the table's cells have theirs for themselves."""

    @property
    def states(self) -> tuple[str, ...]:
        """Names of what is carried from step to step; the output first if it is one."""

    @property
    def output(self) -> str:
        """Name of what a layer gives at each step."""

    @property
    def memory(self) -> str:
        """The state that is carried without a matrix product; the first one if none is."""

    @property
    def gates(self) -> tuple[Gate, ...]:
        """As of a Cell; () of a cell without gates."""

    @property
    def slope(self) -> float | None:
        """As of a Cell; None of a cell without gates."""

    @property
    def keep_gate(self) -> int | None:
        """As of a Cell; None of a cell without gates."""

    @property
    def input_gate(self) -> int | None:
        """As of a Cell; None of a cell without gates."""

    @property
    def recordable(self) -> tuple[str, ...]:
        """What backward can record: "d" + name for each state first; see Pass.backward."""

    @property
    def form_of(self) -> Cell | None:
        """The table's cell whose gates the parameters' rows are, in its order; None without."""

    def state_widths(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the width of each state, for sizes I and H by their names."""

    def output_width(self, sizes: Mapping[str, int]) -> int:
        """Return the features of one direction's output."""

    def parameters(self, I: int, H: int, bias: bool) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one layer's parameters by name."""

    def arranged(self, arrays: Mapping[str, Any], I: int, H: int) -> tuple[Any, ...]:
        """Return the arrays of `parameters` as the kernels take them: themselves, or views."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A recurrent cell of the table, for which src_c has a kernel.

    Attributes
    ----------
    name : str
    number : int
        Index into the kernels' table: the value of `fr_cell` in src_c/fastrnn.h.
    gates : tuple of Gate
        In torch's order, which is that of the weights' rows.
    states : tuple of str
        ("h",), or ("h", "c") for a cell with a memory of its own.
    slope : float or None
        The greatest slope of the activation, for a cell whose Jacobian has the bound
        slope * ||W_hh||; None for gated cells.
    keep_gate, input_gate : int or None
        Index of the gate that keeps the old state (1 keeps all of it), and of the gate that lets
        the new value in, if that is another gate.
    """

    name: str
    number: int
    gates: tuple[Gate, ...]
    states: tuple[str, ...] = ("h",)
    slope: float | None = None
    keep_gate: int | None = None
    input_gate: int | None = None

    @property
    def G(self) -> int:
        """Number of gates."""
        return len(self.gates)

    @property
    def has_c(self) -> bool:
        """Whether the state is a pair (h, c)."""
        return "c" in self.states

    @property
    def form_of(self) -> Cell:
        """The cell itself."""
        return self

    @property
    def output(self) -> str:
        """What a layer gives at each step: "h"."""
        return self.states[0]

    @property
    def memory(self) -> str:
        """The state that is carried from step to step without a matrix product: "h" or "c"."""
        return self.states[-1]

    @property
    def recordable(self) -> tuple[str, ...]:
        """The names of what backward can record."""
        derivatives = tuple(f"d{name}" for name in self.states)
        return (*derivatives, "gates", "dgates_x", "dgates_h", "x", "h")

    def state_widths(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the width of each state: H."""
        return (sizes["H"],) * len(self.states)

    def output_width(self, sizes: Mapping[str, int]) -> int:
        """Return the features of one direction's output: H."""
        return sizes["H"]

    def parameters(self, I: int, H: int, bias: bool) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one layer's parameters by name, in torch's order."""
        rows = self.G * H
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, I), "weight_hh": (rows, H)}
        if bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        return shapes

    def arranged(self, arrays: Mapping[str, Any], I: int, H: int) -> tuple[Any, ...]:
        """Return the arrays of `parameters` in their order: the kernels take them as they are."""
        return tuple(arrays.values())

    def __reduce__(self) -> tuple[Callable[[str], Cell], tuple[Any, ...]]:
        """Pickle the name: a copy is the same row."""
        return _row, (self.name,)


def _row(name: str) -> Cell:
    return CELLS[name]


CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("rnn_tanh", 0, (Gate("h", "tanh"),), slope=1.0),
        Cell("rnn_relu", 1, (Gate("h", "relu"),), slope=1.0),
        Cell("rnn_sigmoid", 2, (Gate("h", "sigmoid"),), slope=0.25),
        Cell("lstm", 3, (Gate("i", "sigmoid"), Gate("f", "sigmoid"), Gate("g", "tanh"),
                         Gate("o", "sigmoid")), ("h", "c"), keep_gate=1, input_gate=0),
        Cell("gru", 4, (Gate("r", "sigmoid"), Gate("z", "sigmoid"), Gate("n", "tanh")),
             keep_gate=1),
    )
}

BY_NUMBER: tuple[Cell, ...] = tuple(CELLS.values())


def vanilla() -> dict[str, Cell]:
    """Return the cells h(t) = phi(W_ih x(t) + W_hh h(t-1) + b) by the name of phi."""
    return {cell.gates[0].activation: cell for cell in BY_NUMBER if cell.slope is not None}
