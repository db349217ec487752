"""Layer: a recurrent layer of any cell that equations define.

Letters: T steps, B batch, I input, H hidden, L layers, D directions, O features of an output.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.cells.definition import Definition, block_count
from fastrnn.cells.instance import Instance
from fastrnn.layers.packs import PackedPart
from fastrnn.layers.recurrent import Recurrent

__all__ = ["Layer", "arrays_of_kind", "config_of", "definition_of", "instance_of"]

_OF_CONFIG = {"text", "name", "paper"}  # what a configuration has of a definition


def definition_of(cell: Any) -> Definition:
    """Return a definition, made anew if it is that of a configuration."""
    if isinstance(cell, dict) and cell.keys() == _OF_CONFIG:
        return Definition(**cell)
    if not isinstance(cell, Definition):
        raise RefusedType(f"cell is {_checks.kind(cell)}, expected what fastrnn.cell makes of "
                          "equations, or one of fastrnn.cells")
    return cell


def config_of(definition: Definition) -> dict[str, str]:
    """Return what makes a definition anew; fit for JSON."""
    return {"text": definition.text, "name": definition.name, "paper": definition.paper}


def instance_of(config: Mapping[str, Any]) -> Instance:
    """Return the cell of a layer's configuration, with its sizes and constants."""
    options = {name: value for name, value in config.items()
               if name not in _arguments() and name != "layer"}
    return Instance(definition_of(config["cell"]), options)


def _arguments() -> frozenset[str]:
    """Return the names of a layer's own arguments."""
    return frozenset(inspect.signature(Layer.__init__).parameters) - {"options"}


def _name_of(parameter: str) -> str:
    """Return the definition's name of a layer's parameter: "W" of "W_l0_reverse"."""
    return parameter.removesuffix("_reverse").rpartition("_l")[0]


def arrays_of_kind(layer: PackedPart, kind: str) -> Iterator[np.ndarray]:
    """Yield parameters by row block: "weight"s, those between states, "weight_hh", or "bias"es.

    Weights are (blocks, rows, columns), of a weight of diagonal blocks each of them; biases are
    (blocks, width). Fixed weights and declared vectors are none of them.
    """
    cell = layer.cell
    assert isinstance(cell, Instance)
    definition, sizes = cell.definition, cell.sizes(layer.input_size, layer.hidden_size)
    for parameter, array in layer.parameters().items():
        name = _name_of(parameter)
        weight = definition.weights.get(name)
        if weight is None:
            vector = definition.vectors[name]
            if kind == "bias" and vector.bias:
                yield array.reshape(vector.blocks, -1)
        elif weight.learned and (kind == "weight" or (kind == "weight_hh"
                                                      and name in cell.recurrent)):
            if weight.kind == "antisymmetric":
                raise RefusedValue(f"layer is {layer!r}, whose {name} is antisymmetric, expected "
                                   "weights that the step multiplies by as they are")
            count = weight.blocks
            if weight.kind == "blocks":
                count *= block_count(weight, sizes)
            yield array.reshape(count, -1, array.shape[1])


def _check_names(definition: Definition) -> None:
    """Refuse a definition whose sizes or constants could not be given to a layer."""
    for what, names in (("size", definition.sizes), ("constant", definition.constants)):
        for name in names:
            if name in _arguments() or name == "layer":
                raise RefusedValue(f"cell has a {what} {name!r}, expected another name: a layer "
                                   "has an argument of this name")


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
        self.definition = cell = definition_of(cell)
        _check_names(cell)
        super().__init__(Instance(cell, options), input_size, hidden_size, num_layers, bias,
                         batch_first, dropout, bidirectional, dtype, seed)
        for plan in self._kinds:
            plan.check_numbers(self.dtype)

    @property
    def config(self) -> dict[str, Any]:  # noqa: D102, documented in the base class
        assert isinstance(self.cell, Instance)
        given = {name: operator.index(value) if name in self.definition.sizes else float(value)
                 for name, value in self.cell.given.items()}
        return super().config | given | {"cell": config_of(self.definition)}

    @property
    def fixed_parameters(self) -> frozenset[str]:
        """The names of the weights that are declared `fixed`: no optimiser changes them."""
        assert isinstance(self.cell, Instance)
        fixed = self.cell.fixed
        return frozenset(name for name in self._params if _name_of(name) in fixed)

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.cell.given.items()  # type: ignore[attr-defined]
                          )
        return super().__repr__().replace("Layer(", f"Layer({self.definition.name}, ", 1)[:-1] + (
            options + ")")
