"""A definition with its numbers: what a layer asks of a cell from equations.

Letters: I input, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn._checks import RefusedValue
from fastrnn._kernels.packed_program import Compiled, PackedProgram
from fastrnn.cells.definition import Definition
from fastrnn.cells.graph import Mask
from fastrnn.cells.masks import drawn_mask
from fastrnn.cells.numbers import value_of
from fastrnn.cells.program import Program
from fastrnn.cells.reach import carried, recurrent_weights
from fastrnn.cells.schedule import compile_program
from fastrnn.cells.weights import effective, initial, pull_back, shape

if TYPE_CHECKING:
    from fastrnn.cells.table import Cell, Gate

__all__ = ["Instance", "Plan"]


class Instance:
    """A definition, its further sizes and its constants. It never changes.

    It has what fastrnn.cells.table.AnyCell asks for.

    Parameters
    ----------
    definition : Definition
    sizes : mapping
        Further sizes that differ from their defaults.
    constants : mapping
        Constants that differ from their defaults.

    Attributes
    ----------
    given : dict
        The sizes and constants that were given.
    """

    gates: tuple[Gate, ...] = ()
    slope: float | None = None
    keep_gate: int | None = None
    input_gate: int | None = None
    form_of: Cell | None = None

    def __init__(self, definition: Definition, options: Mapping[str, Any] | None = None) -> None:
        self.definition = definition
        self.given = dict(options or {})
        for option in self.given:
            if option not in definition.sizes and option not in definition.constants:
                known = [*definition.sizes, *definition.constants]
                expected = f"one of {', '.join(known)}" if known else "none"
                raise RefusedValue(f"{definition.name} has no size or constant {option!r}, "
                                   f"expected {expected}")
        for option in definition.sizes:
            if isinstance(self.given.get(option), np.ndarray):  # which may change later
                self.given[option] = self.given[option][()]
        self._sizes = {k: v for k, v in self.given.items() if k in definition.sizes}
        given = {k: v for k, v in self.given.items() if k in definition.constants}
        self.constants = definition.numbers(given)
        self.given |= {k: self.constants[k] for k in given}  # an array may change later
        self.name = definition.name
        self.states = tuple(state.name for state in definition.states)
        self.output = definition.output
        self.memory = (*carried(definition), *self.states)[0]
        self.recordable = (*(f"d{name}" for name in self.states), "x", *self.states)

    def __reduce__(self) -> tuple[Any, ...]:
        return Instance, (self.definition, self.given)

    def __eq__(self, other: object) -> bool:
        """Whether the other has the same equations, name, sizes and constants."""
        if not isinstance(other, Instance):
            return NotImplemented
        mine, others = self.definition, other.definition
        return (mine.text, mine.name, self.given) == (others.text, others.name, other.given)

    def __hash__(self) -> int:
        return hash((self.definition.text, self.name))

    def sizes(self, I: int, H: int) -> dict[str, int]:
        """Return all sizes as numbers."""
        return self.definition.resolve(I, H, self._sizes)

    def state_widths(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the width of each state, for sizes I and H by their names."""
        found = self.sizes(sizes["I"], sizes["H"])
        return tuple(found[state.width] for state in self.definition.states)

    def output_width(self, sizes: Mapping[str, int]) -> int:
        """Return the features of one direction's output."""
        return self.sizes(sizes["I"], sizes["H"])[self.definition.output_width]

    def parameters(self, I: int, H: int, bias: bool) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one layer's parameters by name: weights, then vectors."""
        sizes, definition = self.sizes(I, H), self.definition
        return {name: shape(w, sizes) for name, w in definition.weights.items()} | {
            name: shape(v, sizes) for name, v in definition.vectors.items() if bias or not v.bias}

    def arranged(self, arrays: Mapping[str, Any], I: int, H: int) -> tuple[Any, ...]:
        """Return the arrays of `parameters` in the order of the definition, which they have."""
        return tuple(arrays.values())

    @property
    def fixed(self) -> tuple[str, ...]:
        """The names of the weights that are not learned."""
        return tuple(name for name, w in self.definition.weights.items() if not w.learned)

    @property
    def recurrent(self) -> tuple[str, ...]:
        """The names of the learned weights that multiply what depends on an old state."""
        return tuple(name for name in recurrent_weights(self.definition)
                     if self.definition.weights[name].learned)

    def draw(self, name: str, rng: np.random.Generator, I: int, H: int, dtype: Any) -> np.ndarray:
        """Return the first value of a parameter."""
        definition = self.definition
        of = definition.weights.get(name) or definition.vectors[name]
        return initial(of, rng, self.sizes(I, H), self.constants, dtype)


class Plan(Compiled):
    """What a layer of a cell from equations runs: its program, and what it makes of its weights.

    Attributes
    ----------
    instance : Instance
    sizes : dict
        All sizes as numbers.
    masks : tuple of Mask
        The masks that training draws for states and values.
    reparametrised : tuple of (int, Weight)
        The weights that the step does not multiply by as they are, by position.
    fixed : tuple of int
        The weights that are not learned, by position.
    """

    program: Program

    def __init__(self, instance: Instance, I: int, H: int, bias: bool) -> None:
        self.instance = instance
        definition = instance.definition
        self.sizes = instance.sizes(I, H)
        compiled = partial(compile_program, definition, self.sizes, instance.constants, bias)
        super().__init__(compiled(), partial(compiled, record=True))
        self.masks: tuple[Mask, ...] = self.program.masks
        self.reparametrised = tuple((i, w) for i, w in enumerate(definition.weights.values())
                                    if w.kind != "plain")
        self.fixed = tuple(i for i, w in enumerate(definition.weights.values()) if not w.learned)

    def check_numbers(self, dtype: Any) -> None:
        """Refuse constants, and numbers of the equations, that a dtype cannot hold."""
        numbers = [*self.instance.constants.items(),
                   *(("a number of the equations", value)
                     for name, value, *_ in self.program.vectors if not name)]
        most = float(np.finfo(dtype).max)
        for name, value in numbers:
            if not abs(value) <= most:  # nan comes from arithmetic without a result
                raise RefusedValue(f"{name} is {value:g}, which {np.dtype(dtype)} cannot hold")

    @property
    def draws(self) -> bool:
        """Whether a call in training draws masks."""
        return bool(self.masks) or any(w.kind == "dropconnect" for _, w in self.reparametrised)

    def weight_masks(self, rng: np.random.Generator, dtype: Any) -> dict[int, np.ndarray]:
        """Return the multipliers of weights that training drops connections of, by position."""
        return {i: drawn_mask(rng, shape(w, self.sizes),
                              value_of(w.arguments[0], self.instance.constants), "dropout", dtype)
                for i, w in self.reparametrised if w.kind == "dropconnect"}

    def matrices(self, parameters: tuple[np.ndarray, ...], masks: Mapping[int, np.ndarray]
                 ) -> tuple[np.ndarray, ...]:
        """Return what a step multiplies by, and the vectors, from the parameters."""
        made = list(parameters)
        for i, weight in self.reparametrised:
            made[i] = np.ascontiguousarray(effective(
                weight, made[i], self.sizes, self.instance.constants, masks.get(i)))
        return tuple(made)

    def packed(self, parameters: tuple[np.ndarray, ...], dtype: Any) -> PackedProgram:
        """Return one direction's parameters in the kernels' panels."""
        return PackedProgram(self, dtype, self.matrices(parameters, {}))

    def new_gradients(self, grads: tuple[np.ndarray | None, ...], dtype: Any
                      ) -> tuple[np.ndarray | None, ...]:
        """Return where the kernels add: nowhere for what is fixed, zeros for what is made."""
        into = list(grads)
        for i, weight in self.reparametrised:
            into[i] = np.zeros((weight.blocks * self.sizes[weight.rows],
                                self.sizes[weight.columns]), dtype)
        for i in self.fixed:
            into[i] = None
        return tuple(into)

    def add_gradients(self, grads: tuple[np.ndarray | None, ...],
                      of: tuple[np.ndarray | None, ...], masks: Mapping[int, np.ndarray]) -> None:
        """Add the gradients of the matrices to those of the parameters."""
        for i, weight in self.reparametrised:
            target, gradient = grads[i], of[i]
            assert target is not None  # it is learned
            assert gradient is not None
            target += pull_back(weight, gradient, self.sizes, self.instance.constants,
                                masks.get(i))
