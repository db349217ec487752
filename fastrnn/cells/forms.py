"""Other forms of the table's cells: what an option of LSTM and GRU makes of them, as equations.

A form has torch's parameters, by name, shape and order. The rows of one of them may belong to
several weights of the equations. Letters: I input, H hidden, P the width of a projected h.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastrnn.cells.definition import Definition, cell
from fastrnn.cells.instance import Instance
from fastrnn.cells.table import CELLS, Cell

__all__ = ["Form"]


class _Row(NamedTuple):
    """A form: its equations, and of which of their weights each parameter is made."""

    form_of: Cell
    definition: Definition
    made_of: dict[str, tuple[str, ...]]


_FORMS = {
    "lstm_projected": _Row(CELLS["lstm"], cell("""
        size P = H
        i, f, g, o = weight_ih x + weight_hh h + bias_ih + bias_hh
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h[P] = weight_hr (sigmoid(o) * tanh(c))
        """, name="lstm_projected"),
        {name: (name,) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")}),
    "gru_reset_before": _Row(CELLS["gru"], cell("""
        r, z = W x + U h + b_x + b_h
        n = tanh(W_n x + U_n (sigmoid(r) * h) + b_nx + b_nh)
        h = (1 - sigmoid(z)) * n + sigmoid(z) * h
        """, name="gru_reset_before"),
        {"weight_ih": ("W", "W_n"), "weight_hh": ("U", "U_n"), "bias_ih": ("b_x", "b_nx"),
         "bias_hh": ("b_h", "b_nh")}),
}


class Form(Instance):
    """Another form of one of the table's cells. It never changes.

    Parameters
    ----------
    name : {"lstm_projected", "gru_reset_before"}
    sizes : mapping
        P of a projection.
    """

    def __init__(self, name: str, sizes: Mapping[str, int] | None = None) -> None:
        form = _FORMS[name]
        super().__init__(form.definition, sizes)
        self.form_of = form.form_of
        self._made_of = form.made_of

    def __reduce__(self) -> tuple[Any, ...]:
        return Form, (self.name, self.given)

    def parameters(self, I: int, H: int, bias: bool) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one layer's parameters by name, in torch's order."""
        own, shapes = super().parameters(I, H, bias), {}
        for name, parts in self._made_of.items():
            if parts[0] in own:
                rows = sum(own[part][0] for part in parts)
                shapes[name] = (rows, *own[parts[0]][1:])
        return shapes

    def arranged(self, arrays: Mapping[str, Any], I: int, H: int) -> tuple[Any, ...]:
        """Return views of the arrays of `parameters`, in the order of the equations' weights."""
        own, views = super().parameters(I, H, "bias_ih" in arrays), {}
        for name, array in arrays.items():
            start = 0
            for part in self._made_of[name]:
                views[part] = array[start : start + own[part][0]]
                start += own[part][0]
        return tuple(views[part] for part in own)
