"""Layer: a recurrent layer of any cell that equations define.

Letters: T steps, B batch, I input, H hidden, L layers, D directions, O features of an output.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, public
from fastrnn.cells.definition import Definition
from fastrnn.cells.instance import Instance
from fastrnn.layers.recurrent import Recurrent

__all__ = ["Layer"]


class Layer(Recurrent):
    """A recurrent layer of a cell from equations, with all that LSTM has.

    Parameters
    ----------
    cell : Definition
        What `fastrnn.cell` made of equations, or one of `fastrnn.cells`.
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed
        As of RNN. `dropout` works between layers; masks inside a step are in the equations.
    **options
        The definition's sizes and constants that differ from their defaults.

    Attributes
    ----------
    definition : Definition
    output_size : int
        Features O of one direction's output.
    state_widths : tuple of int
        The width of each state, in the order of ``definition.states``.
    flat, flat_grads, grads, mode, training
        See fastrnn.layers.parameters. A parameter has the definition's name with the number of
        the layer, ``W_l0``, and ``_reverse`` in the second direction.

    Raises
    ------
    TypeError
        If the cell is no definition.
    ValueError
        If a size is not a whole number of at least 1, or an option is none of the definition's.

    Notes
    -----
    A state is one array (L*D, B, width) if the cell has one state, and else a tuple of such arrays.
    In training mode each call draws the masks of the equations anew; in evaluation they have their
    means. In the mode "bfloat16" the weights are rounded, but they take as many bytes as before.

    Examples
    --------
    >>> cell = fastrnn.cell('''
    ...     f, c = W x + U h + b
    ...     h = sigmoid(f) * h + (1 - sigmoid(f)) * tanh(c)
    ... ''', name="Keep")
    >>> layer = fastrnn.Layer(cell, 64, 128, seed=0)
    >>> y, hn = layer(np.zeros((100, 16, 64), np.float32))  # (T, B, I)
    >>> y.shape
    (100, 16, 128)
    """

    _fixed = Recurrent._fixed | {"definition"}

    @public
    def __init__(
        self, cell: Definition, input_size: int, hidden_size: int, num_layers: int = 1,
        bias: bool = True, batch_first: bool = False, dropout: float = 0.0,
        bidirectional: bool = False, *, dtype: Any = np.float32, seed: Any = None, **options: Any,
    ) -> None:
        if isinstance(cell, dict) and cell.keys() == {"text", "name", "paper"}:  # of `config`
            cell = Definition(**cell)
        if not isinstance(cell, Definition):
            raise RefusedType(f"cell is {_checks.kind(cell)}, expected what fastrnn.cell makes of "
                              "equations, or one of fastrnn.cells")
        self.definition = cell
        super().__init__(Instance(cell, options), input_size, hidden_size, num_layers, bias,
                         batch_first, dropout, bidirectional, dtype, seed)

    @property
    def config(self) -> dict[str, Any]:  # noqa: D102, documented in the base class
        definition = self.definition
        assert isinstance(self.cell, Instance)
        return super().config | self.cell.given | {"cell": {
            "text": definition.text, "name": definition.name, "paper": definition.paper}}

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.cell.given.items()  # type: ignore[attr-defined]
                          )
        return super().__repr__().replace("Layer(", f"Layer({self.definition.name}, ", 1)[:-1] + (
            options + ")")
