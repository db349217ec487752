"""Layers of cells from equations as ONNX: a Scan whose body is what the equations say.

So are LSTM with a projection, and every cell of `fastrnn.cells`. Masks have their values in
evaluation. Letters: T steps, B batch, I input, H hidden, D directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastrnn.cells.definition import Definition
from fastrnn.cells.instance import Instance
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
from fastrnn.cells.weights import effective
from fastrnn.formats.onnx_writer import Graph
from fastrnn.layers.recurrent import Recurrent

__all__ = ["add_scans", "rows_alive"]

_ALONE = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "exp": "Exp", "log": "Log",
          "sqrt": "Sqrt", "abs": "Abs", "softplus": "Softplus", "softsign": "Softsign",
          "min": "Min", "max": "Max", "where": "Where"}
_NUMBERS = {"leaky_relu": ("LeakyRelu", ("alpha",)), "elu": ("Elu", ("alpha",)),
            "hard_sigmoid": ("HardSigmoid", ("alpha", "beta"))}
_OPERATORS = {"+": "Add", "-": "Sub", "*": "Mul", "/": "Div", "**": "Pow", "<": "Less",
              "<=": "LessOrEqual", ">": "Greater", ">=": "GreaterOrEqual", "==": "Equal"}


def add_scans(
    graph: Graph, name: str, layer: Recurrent, number: int, x: str, initial: list[str],
    lengths: str,
) -> tuple[str, list[str]]:
    """Add the nodes of one stacked layer of a cell from equations.

    Parameters
    ----------
    x : str
        The name of (T, B, I).
    initial : list of str
        The names of initial states (D, B, width), or empty: zero.
    lengths : str
        The name of the rows' lengths, or "".

    Returns
    -------
    y : str
        The name of (T, B, D*H).
    finals : list of str
        For each state the name of (D, B, width).
    """
    cell = layer.cell
    assert isinstance(cell, Instance)
    I = layer.width if number else layer.input_size
    alive = rows_alive(graph, x, lengths) if lengths else ""
    B = graph.add("Shape", x, start=1, end=2)
    ys, finals = [], []
    for d, suffix in enumerate(("", "_reverse")[: layer.directions]):
        own = f"{name}{suffix}"
        given = layer.parameters()
        params = {key: given[f"{key}_l{number}{suffix}"]
                  for key in cell.parameters(I, layer.hidden_size, layer.bias)}
        names = Instance.parameters(cell, I, layer.hidden_size, layer.bias)
        arrays = dict(zip(names, cell.arranged(params, I, layer.hidden_size), strict=True))
        states = _initial(graph, cell.definition, cell.sizes(I, layer.hidden_size), d, initial, B)
        body = _Body(graph.inside(), own, cell, I, layer.hidden_size, arrays)
        made = body.graph(bool(lengths))
        sequences = [x, alive] if lengths else [x]
        *after, y = graph.add(
            "Scan", *states, *sequences, name=own, outputs=len(states) + 1, body=made,
            num_scan_inputs=len(sequences), scan_input_directions=[d] * len(sequences),
            scan_output_directions=[d])
        ys.append(y)
        finals.append([graph.add("Unsqueeze", state, graph.axes(0)) for state in after])
    if len(ys) == 1:
        return ys[0], finals[0]
    return str(graph.add("Concat", *ys, axis=2)), [
        graph.add("Concat", *of, axis=0) for of in zip(*finals, strict=True)]


def rows_alive(graph: Graph, x: str, lengths: str) -> str:
    """Return the name of booleans (T, B, 1): whether a step is before its row's end."""
    T = graph.add("Squeeze", graph.add("Shape", x, start=0, end=1))
    steps = graph.add("Range", graph.tensor("zero", np.array(0, np.int64)), T,
                      graph.tensor("one", np.array(1, np.int64)))
    n = graph.add("Cast", lengths, to=graph.onnx.TensorProto.INT64)
    alive = graph.add("Less", graph.add("Unsqueeze", steps, graph.axes(1)), n)
    return str(graph.add("Unsqueeze", alive, graph.axes(2)))


def _initial(
    graph: Graph, definition: Definition, sizes: Mapping[str, int], d: int, initial: list[str],
    B: str,
) -> list[str]:
    """Return the names of one direction's initial states (B, width)."""
    if initial:
        return [graph.add("Gather", state, graph.tensor(f"direction.{d}", np.array(d, np.int64)),
                          axis=0) for state in initial]
    return [graph.add("Expand", graph.number(0), graph.add(
        "Concat", B, graph.axes(sizes[state.width]), axis=0)) for state in definition.states]


class _Body:
    """The graph of one step.

    A value is a name and whether it has rows of a batch; one that has not is a vector or a number.
    """

    def __init__(
        self, graph: Graph, name: str, cell: Instance, I: int, H: int,
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        self._graph, self._name, self._constants = graph, name, cell.constants
        self._definition = definition = cell.definition
        self._sizes = sizes = cell.sizes(I, H)
        self._weights = {
            key: graph.tensor(f"{name}.{key}", effective(weight, arrays[key], sizes,
                                                         cell.constants).T)
            for key, weight in definition.weights.items()}
        self._values: dict[str, tuple[str, bool]] = {
            key: (graph.number(value), False) for key, value in cell.constants.items()}
        for key, vector in definition.vectors.items():
            array = arrays.get(key)
            if array is None:  # a layer without biases
                array = np.zeros(vector.blocks * sizes[vector.width], graph.dtype)
            self._values[key] = graph.tensor(f"{name}.{key}", array), False

    def graph(self, lengths: bool) -> Any:
        """Return the GraphProto: states and x in, states and the output of the step out."""
        graph, definition, name = self._graph, self._definition, self._name
        olds = []
        for state in definition.states:
            olds.append(graph.input(f"{name}.{state.name}.old", ("B", self._sizes[state.width])))
            self._values[state.name] = olds[-1], True
        self._x = graph.input(f"{name}.x", ("B", self._sizes["I"]))
        self._values["x"] = self._x, True
        alive = graph.input(f"{name}.alive", ("B", 1), bool) if lengths else ""
        for equation in definition.equations:
            self._assign(equation, self._evaluate(equation.expression))
        widths = [(state.name, state.width) for state in definition.states]
        widths.append((definition.output, definition.output_width))
        for i, (key, width) in enumerate(widths):
            value = self._values[key][0]
            if lengths:
                value = graph.add("Where", alive, value,
                                  olds[i] if i < len(olds) else graph.number(0))
            graph.output(f"{name}.{key}.{'new' if i < len(olds) else 'y'}", value,
                         ("B", self._sizes[width]))
        return graph.graph(name)

    def _assign(self, equation: Equation, value: tuple[str, bool]) -> None:
        names = [target.name for target in equation.targets]
        width = self._definition.target_widths[names[0]]
        of = self._definition.widths.get(equation.expression, "1")
        if not value[1] or (of != width and of == "1"):
            if width == "1" and len(names) == 1:
                self._values[names[0]] = value
                return
            value = self._rows(value[0], self._sizes[width] * len(names) if width != "1" else 1)
        if len(names) == 1:
            self._values[names[0]] = value
            return
        parts = self._graph.add("Split", value[0], outputs=len(names), axis=-1)
        for name, part in zip(names, parts, strict=True):
            self._values[name] = part, True

    def _rows(self, value: str, width: int) -> tuple[str, bool]:
        """Return a value as rows (B, width)."""
        graph = self._graph
        B = graph.add("Shape", self._x, start=0, end=1)
        shape = graph.add("Concat", B, graph.axes(width), axis=0)
        return graph.add("Expand", value, shape), True

    def _evaluate(self, expression: Expression) -> tuple[str, bool]:
        graph, stack = self._graph, []
        for node in post_order(expression):
            if isinstance(node, Number):
                stack.append((graph.number(node.value), False))
            elif isinstance(node, Name):
                stack.append(self._values[node.name])
            elif isinstance(node, Negative):
                a, rows = stack.pop()
                stack.append((graph.add("Neg", a), rows))
            elif isinstance(node, Product):
                a, rows = stack.pop()
                stack.append((graph.add("MatMul", a, self._weights[node.weight]), rows))
            elif isinstance(node, (Binary, Compare)):
                (b, of_b), (a, of_a) = stack.pop(), stack.pop()
                unequal = node.operator == "!="
                made = graph.add(_OPERATORS["==" if unequal else node.operator], a, b)
                stack.append((graph.add("Not", made) if unequal else made, of_a or of_b))
            else:
                n = len(stack) - len(node.arguments)
                arguments = stack[n:]
                del stack[n:]
                stack.append(self._call(node, arguments))
        return stack.pop()

    def _call(self, node: Call, arguments: list[tuple[str, bool]]) -> tuple[str, bool]:
        graph = self._graph
        if node.function in MASKS:  # its value in evaluation
            p = fold(node.arguments[0], self._constants)
            mean = 1.0 if node.function.endswith("dropout") else p
            width = self._definition.widths.get(node, "1")
            if width == "1":
                return graph.number(mean), False
            name = f"{self._name}.{node.function}.{width}.{mean:g}"
            return graph.tensor(name, np.full(self._sizes[width], mean, graph.dtype)), False
        count = FUNCTIONS[node.function].values
        values = [name for name, _ in arguments[:count]]
        rows = any(of for _, of in arguments[:count])
        numbers = [float(fold(one, self._constants)) for one in node.arguments[count:]]
        if node.function in _ALONE:
            return graph.add(_ALONE[node.function], *values), rows
        if node.function in _NUMBERS:
            op, names = _NUMBERS[node.function]
            options: dict[str, Any] = dict(zip(names, numbers, strict=True))
            return graph.add(op, *values, **options), rows
        return _COMPOSED[node.function](graph, values[0], *numbers), rows


# ---- functions of several operators --------------------------------------------------------------


def _of_mean(graph: Graph, a: str, eps: float) -> str:
    """Return a / sqrt(mean(a^2) + eps)."""
    mean = _mean(graph, graph.add("Mul", a, a))
    return str(graph.add("Div", a, graph.add("Sqrt", graph.add("Add", mean, graph.number(eps)))))


def _mean(graph: Graph, a: str) -> str:
    return str(graph.add("ReduceMean", a, axes=[-1], keepdims=1))


def _affine(graph: Graph, a: str, alpha: float, beta: float) -> str:
    return str(graph.add("Add", graph.add("Mul", graph.number(alpha), a), graph.number(beta)))


def _scaled_tanh(graph: Graph, a: str, alpha: float, beta: float) -> str:
    inner = graph.add("Tanh", graph.add("Mul", graph.number(beta), a))
    return str(graph.add("Mul", graph.number(alpha), inner))


def _gelu(graph: Graph, a: str) -> str:
    cube = graph.add("Mul", graph.add("Mul", a, a), graph.add("Mul", a, graph.number(0.044715)))
    inner = graph.add("Mul", graph.number(math.sqrt(2 / math.pi)), graph.add("Add", a, cube))
    half = graph.add("Mul", graph.number(0.5), a)
    return str(graph.add("Mul", half, graph.add("Add", graph.number(1), graph.add("Tanh", inner))))


def _thresholded_relu(graph: Graph, a: str, alpha: float) -> str:
    above = graph.add("Greater", a, graph.number(alpha))
    return str(graph.add("Where", above, a, graph.number(0)))


_COMPOSED: dict[str, Callable[..., str]] = {
    "affine": _affine,
    "clip": lambda graph, a, low, high: graph.add("Clip", a, graph.number(low), graph.number(high)),
    "gelu": _gelu,
    "mean": _mean,
    "norm": lambda graph, a, eps: _of_mean(graph, graph.add("Sub", a, _mean(graph, a)), eps),
    "rms_norm": _of_mean,
    "scaled_tanh": _scaled_tanh,
    "silu": lambda graph, a: graph.add("Mul", a, graph.add("Sigmoid", a)),
    "sum": lambda graph, a: graph.add("ReduceSum", a, graph.axes(-1), keepdims=1),
    "thresholded_relu": _thresholded_relu,
}
