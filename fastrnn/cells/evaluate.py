"""A definition's forward in plain NumPy: what its equations say, step by step.

It follows the syntax tree and knows nothing of the compiled program, which the tests hold against
it. Letters: T steps, B batch, I input, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastrnn._checks import RefusedType, RefusedValue
from fastrnn.cells.definition import Definition
from fastrnn.cells.numbers import fold
from fastrnn.cells.tree import (
    FUNCTIONS,
    MASKS,
    Binary,
    Call,
    Compare,
    Equation,
    Expression,
    Name,
    Negative,
    Number,
    Product,
    post_order,
)
from fastrnn.cells.weights import effective, shape

__all__ = ["forward"]

Array = Any  # an array or a scalar of the call's dtype


def _sigmoid(a: Array) -> Array:
    e = np.exp(-np.abs(a))  # of no positive number: never too large
    return np.where(a >= 0, 1, e) / (1 + e)


def _gelu(a: Array) -> Array:
    return 0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a * a * a)))


def _norm(a: Array, eps: float) -> Array:
    away = a - np.mean(a, -1, keepdims=True)
    return away / np.sqrt(np.mean(away * away, -1, keepdims=True) + eps)


_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "softplus": lambda a: np.maximum(a, 0) + np.log1p(np.exp(-np.abs(a))),
    "silu": lambda a: a * _sigmoid(a),
    "gelu": _gelu,
    "softsign": lambda a: a / (1 + np.abs(a)),
    "leaky_relu": lambda a, slope: np.where(a >= 0, a, slope * a),
    "elu": lambda a, alpha: np.where(a > 0, a, alpha * np.expm1(np.minimum(a, 0))),
    "hard_sigmoid": lambda a, alpha, beta: np.clip(alpha * a + beta, 0, 1),
    "affine": lambda a, alpha, beta: alpha * a + beta,
    "scaled_tanh": lambda a, alpha, beta: alpha * np.tanh(beta * a),
    "thresholded_relu": lambda a, alpha: np.where(a > alpha, a, 0),
    "clip": np.clip,
    "min": np.minimum,
    "max": np.maximum,
    "where": np.where,
    "norm": _norm,
    "rms_norm": lambda a, eps: a / np.sqrt(np.mean(a * a, -1, keepdims=True) + eps),
    "mean": lambda a: np.mean(a, -1, keepdims=True),
    "sum": lambda a: np.sum(a, -1, keepdims=True),
}
_OPERATORS: dict[str, Callable[[Array, Array], Array]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "**": np.power,
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal,
    "!=": np.not_equal,
}
_OF_A_STEP = ("dropout", "step_mask")  # masks with a T axis


def forward(
    definition: Definition, x: np.ndarray, state: Sequence[np.ndarray] | None,
    parameters: Mapping[str, np.ndarray], *, sizes: Mapping[str, int] | None = None,
    constants: Mapping[str, float] | None = None,
    masks: Mapping[int | str, np.ndarray] | None = None, bias: bool = True,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return the outputs of all steps, and the states behind the last one.

    Parameters
    ----------
    definition : Definition
    x : array (T, B, I) of float32 or float64
        Everything is computed in its dtype.
    state : sequence of arrays (B, width), or None
        In the order of `definition.states`; None is zeros.
    parameters : mapping of str to array
        By the names of the definition, with the shapes of weights.shape.
    sizes : mapping of str to int, optional
        H and further sizes. H may be left out if a parameter or `state` shows it.
    constants : mapping of str to float, optional
        Those that differ from their defaults.
    masks : mapping, optional
        Multipliers by the index of the call in `definition.masks`: (T, B, width) of dropout and
        step_mask, (B, width) of the masks of a sequence; and by the name of a dropconnect weight.
        What is left out has its value in evaluation.
    bias : bool
        Without, biases are zero and not looked for in `parameters`.

    Returns
    -------
    y : array (T, B, output width)
    finals : tuple of arrays (B, width)

    Raises
    ------
    TypeError, ValueError
        If an array has another shape or dtype.
    """
    with np.errstate(all="ignore"):
        walk = _Walk(definition, x, state, parameters, sizes, constants, masks or {}, bias)
        return walk.run()


class _Walk:
    """The values of one call."""

    def __init__(
        self, definition: Definition, x: np.ndarray, state: Sequence[np.ndarray] | None,
        parameters: Mapping[str, np.ndarray], sizes: Mapping[str, int] | None,
        constants: Mapping[str, float] | None, masks: Mapping[int | str, np.ndarray], bias: bool,
    ) -> None:
        if getattr(x, "ndim", None) != 3 or x.dtype not in (np.float32, np.float64):
            raise RefusedType("x is no array (T, B, I) of float32 or float64")
        self.definition, self.x, self.dtype = definition, x, x.dtype
        self.B = x.shape[1]
        given = dict(sizes or {})
        H = given.pop("H", None) or self._hidden(state, parameters)
        self.sizes: dict[str, int] = definition.resolve(x.shape[2], H, given)
        self.constants: dict[str, float] = definition.numbers(constants)
        self.matrices: dict[str, np.ndarray] = {}
        self.values: dict[str, Array] = {
            name: self.dtype.type(value) for name, value in self.constants.items()}
        self._take_parameters(parameters, masks, bias)
        self._take_state(state)
        self.masks = [self._mask(index, call, masks.get(index))
                      for index, call in enumerate(definition.masks)]
        self.mask_index = {call: index for index, call in enumerate(definition.masks)}
        self.orders = [(equation, tuple(post_order(equation.expression)))
                       for equation in definition.equations]

    def _hidden(
        self, state: Sequence[np.ndarray] | None, parameters: Mapping[str, np.ndarray],
    ) -> int:
        """Return H as a state or parameter shows it."""
        rows: int
        for place, found in enumerate(self.definition.states):
            if state is not None and found.width == "H":
                rows = np.shape(state[place])[1]
                return rows
        for name, weight in self.definition.weights.items():
            if name in parameters and weight.rows == "H":
                rows = len(parameters[name])
                return rows // weight.blocks
        for name, vector in self.definition.vectors.items():
            if name in parameters and vector.width == "H":
                rows = len(parameters[name])
                return rows // vector.blocks
        raise RefusedValue("no parameter shows H, expected it in sizes: sizes={'H': ...}")

    def _checked(self, name: str, array: Any, expected: tuple[int, ...]) -> np.ndarray:
        if array is None:
            raise RefusedValue(f"the parameter {name} is missing")
        if getattr(array, "dtype", None) != self.dtype or array.shape != expected:
            came = getattr(array, "dtype", type(array).__name__), getattr(array, "shape", "")
            raise RefusedValue(f"{name} is {came[0]} {came[1]}, expected {self.dtype} {expected}")
        return np.asarray(array)

    def _take_parameters(self, parameters: Mapping[str, np.ndarray],
                         masks: Mapping[int | str, np.ndarray], bias: bool) -> None:
        definition = self.definition
        for name in parameters:
            if name not in definition.weights and name not in definition.vectors:
                raise RefusedValue(f"{name!r} is no parameter of {definition.name}, expected: "
                                   + ", ".join([*definition.weights, *definition.vectors]))
        for name, vector in definition.vectors.items():
            expected = shape(vector, self.sizes)
            if vector.bias and not bias:
                self.values[name] = np.zeros(expected, self.dtype)
            else:
                self.values[name] = self._checked(name, parameters.get(name), expected)
        for name, weight in definition.weights.items():
            array = self._checked(name, parameters.get(name), shape(weight, self.sizes))
            mask = masks.get(name)
            if mask is not None and weight.kind != "dropconnect":
                raise RefusedValue(f"{name} has a mask, and is no dropconnect weight")
            if mask is not None:
                mask = self._checked(f"the mask of {name}", mask, array.shape)
            self.matrices[name] = effective(weight, array, self.sizes, self.constants, mask)
        known = [*range(len(definition.masks)), *definition.weights]
        for key in masks:
            if key not in known:
                raise RefusedValue(f"masks has {key!r}, expected the index of a call, below "
                                   f"{len(definition.masks)}, or a dropconnect weight")

    def _take_state(self, state: Sequence[np.ndarray] | None) -> None:
        states = self.definition.states
        if state is not None and len(state) != len(states):
            raise RefusedValue(f"state has {len(state)} arrays, expected {len(states)}: "
                               + ", ".join(one.name for one in states))
        for place, found in enumerate(states):
            expected = (self.B, self.sizes[found.width])
            self.values[found.name] = (
                np.zeros(expected, self.dtype) if state is None
                else self._checked(f"state {found.name}", state[place], expected))

    def _mask(self, index: int, call: Call, given: np.ndarray | None) -> np.ndarray:
        """Return what a mask call is: (T, B, width) for one of a step, (B, width) otherwise."""
        expected: tuple[int, ...] = (self.B, self.sizes[self.definition.widths[call]])
        if call.function in _OF_A_STEP:
            expected = (len(self.x), *expected)
        if given is not None:
            return self._checked(f"mask {index}", given, expected)
        p = fold(call.arguments[0], self.constants)
        return np.full(expected, 1.0 if call.function.endswith("dropout") else p, self.dtype)

    def run(self) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        definition = self.definition
        width = self.sizes[definition.output_width]
        y = np.empty((len(self.x), self.B, width), self.dtype)
        for t, x in enumerate(self.x):
            self.values["x"] = x
            for equation, order in self.orders:
                self._assign(equation, self._evaluate(order, t))
            y[t] = self.values[definition.output]
        return y, tuple(np.array(self.values[state.name]) for state in definition.states)

    def _assign(self, equation: Equation, value: Array) -> None:
        names = [target.name for target in equation.targets]
        if len(names) > 1:
            parts = np.split(np.broadcast_to(value, (self.B, value.shape[-1])), len(names), -1)
            self.values.update(zip(names, parts, strict=True))
            return
        width = self.definition.target_widths[names[0]]
        self.values[names[0]] = value if width == "1" else np.broadcast_to(
            value, (self.B, self.sizes[width]))

    def _evaluate(self, order: tuple[Expression, ...], t: int) -> Array:
        stack: list[Array] = []
        for node in order:
            if isinstance(node, Number):
                stack.append(self.dtype.type(node.value))
            elif isinstance(node, Name):
                stack.append(self.values[node.name])
            elif isinstance(node, Negative):
                stack.append(-stack.pop())
            elif isinstance(node, (Binary, Compare)):
                right, left = stack.pop(), stack.pop()
                stack.append(_OPERATORS[node.operator](left, right))
            elif isinstance(node, Product):
                stack.append(stack.pop() @ self.matrices[node.weight].T)
            else:
                stack.append(self._call(node, stack, t))
        return stack.pop()

    def _call(self, node: Call, stack: list[Array], t: int) -> Array:
        arguments = stack[len(stack) - len(node.arguments):]
        del stack[len(stack) - len(node.arguments):]
        if node.function in MASKS:
            mask = self.masks[self.mask_index[node]]
            return mask[t] if node.function in _OF_A_STEP else mask
        values = FUNCTIONS[node.function].values
        numbers = [self.dtype.type(fold(one, self.constants)) for one in node.arguments[values:]]
        found = _FUNCTIONS[node.function](*arguments[:values], *numbers)
        return np.asarray(found, self.dtype)
