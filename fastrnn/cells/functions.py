"""The functions of the language, and powers and comparisons, as operations of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable

from fastrnn.cells.graph import Graph, Node

__all__ = ["FUNCTIONS", "compare", "power", "power_of_node"]


def power(graph: Graph, a: Node, exponent: float) -> Node:
    """Return a ** exponent."""
    whole = abs(int(exponent)) if abs(exponent) <= 64 and exponent == int(exponent) else None
    if whole is not None:
        result, square, left = graph.constant(1), a, whole
        while left:
            if left & 1:
                result = graph.mul(result, square)
            left >>= 1
            square = graph.mul(square, square) if left else square
        if exponent >= 0:
            return result
        inverse = graph.div(graph.constant(1), result)
        if inverse.op == "constant":
            return inverse
        return graph.node("div", inverse.args, inverse.width, (a.number, exponent))
    if exponent in (0.5, -0.5):
        root = graph.apply("sqrt", a)
        return root if exponent > 0 else graph.div(graph.constant(1), root)
    if exponent == int(exponent):  # of many factors: the sign of a apart
        size = _real_power(graph, graph.apply("abs", a), exponent)
        if exponent % 2 == 0:
            return size
        return compare(graph, "<", a, graph.constant(0), graph.negative(size), size)
    return _real_power(graph, a, exponent)


def _real_power(graph: Graph, a: Node, exponent: float) -> Node:
    b = graph.constant(exponent)
    return _exp_of_power(graph, a, b, graph.mul(b, graph.apply("log", a)))


def power_of_node(graph: Graph, a: Node, b: Node) -> Node:
    """Return a ** b for a >= 0, where 0 ** 0 is 1."""
    width = max(a.width, b.width)
    a, b, zero = graph.wide(a, width), graph.wide(b, width), graph.constant(0)
    inner = compare(graph, "==", b, zero, zero, graph.mul(b, graph.apply("log", a)))
    return _exp_of_power(graph, a, b, inner)


def _exp_of_power(graph: Graph, a: Node, b: Node, inner: Node) -> Node:
    """Return exp(inner) for a ** b, where inner = b log(a).

    The numbers of a and b are the data of the node: going back through log would make 0 / 0 where
    a is 0.
    """
    if inner.op == "constant":
        return graph.apply("exp", inner)
    return graph.node("exp", (inner,), inner.width, (a.number, b.number))


def compare(graph: Graph, operator: str, a: Node, b: Node, yes: Node, no: Node) -> Node:
    """Return where(a operator b, yes, no); a comparison with NaN is false, != true."""
    if operator in (">", ">="):
        return compare(graph, operator.replace(">", "<"), b, a, yes, no)
    if operator == "<":
        return graph.apply("less", a, b, yes, no)
    if operator == "<=":
        return graph.apply("less_equal", a, b, yes, no)
    if operator == "==":
        return graph.apply("less_equal", a, b, graph.apply("less_equal", b, a, yes, no), no)
    return compare(graph, "==", a, b, no, yes)


def _plain(op: str) -> Callable[..., Node]:
    return lambda graph, *args: graph.apply(op, *args)


def _leaky_relu(graph: Graph, a: Node, slope: Node) -> Node:
    return graph.apply("less", graph.constant(0), a, a, graph.mul(slope, a))


def _elu(graph: Graph, a: Node, alpha: Node) -> Node:
    below = graph.mul(alpha, graph.sub(graph.apply("exp", graph.apply(
        "min", a, graph.constant(0))), graph.constant(1)))
    return graph.apply("less", graph.constant(0), a, a, below)


def _affine(graph: Graph, a: Node, alpha: Node, beta: Node) -> Node:
    return graph.add(graph.mul(alpha, a), beta)


def _clip(graph: Graph, a: Node, low: Node, high: Node) -> Node:
    return graph.apply("min", graph.apply("max", a, low), high)


def _hard_sigmoid(graph: Graph, a: Node, alpha: Node, beta: Node) -> Node:
    return _clip(graph, _affine(graph, a, alpha, beta), graph.constant(0), graph.constant(1))


def _scaled_tanh(graph: Graph, a: Node, alpha: Node, beta: Node) -> Node:
    return graph.mul(alpha, graph.apply("tanh", graph.mul(beta, a)))


def _thresholded_relu(graph: Graph, a: Node, alpha: Node) -> Node:
    return graph.apply("less", alpha, a, a, graph.constant(0))


def _softsign(graph: Graph, a: Node) -> Node:
    return graph.div(a, graph.add(graph.constant(1), graph.apply("abs", a)))


def _silu(graph: Graph, a: Node) -> Node:
    return graph.mul(a, graph.apply("sigmoid", a))


def _gelu(graph: Graph, a: Node) -> Node:
    """Return the tanh form of Hendrycks and Gimpel (2016)."""
    cube = graph.mul(graph.mul(a, a), a)
    inner = graph.mul(graph.constant(math.sqrt(2 / math.pi)),
                      graph.add(a, graph.mul(graph.constant(0.044715), cube)))
    half = graph.mul(graph.constant(0.5), a)
    return graph.mul(half, graph.add(graph.constant(1), graph.apply("tanh", inner)))


def _mean(graph: Graph, a: Node) -> Node:
    return graph.mul(graph.total(a), graph.constant(1 / a.width))


def _scale(graph: Graph, a: Node, eps: Node) -> Node:
    """Return a / sqrt(mean(a^2) + eps)."""
    root = graph.apply("sqrt", graph.add(_mean(graph, graph.mul(a, a)), eps))
    return graph.mul(a, graph.div(graph.constant(1), root))


def _norm(graph: Graph, a: Node, eps: Node) -> Node:
    """Return layer normalisation (Ba, Kiros and Hinton 2016), without gain and bias."""
    return _scale(graph, graph.sub(a, _mean(graph, a)), eps)


def _rms_norm(graph: Graph, a: Node, eps: Node) -> Node:
    """Return RMS normalisation (Zhang and Sennrich 2019), without gain."""
    return _scale(graph, a, eps)


FUNCTIONS: dict[str, Callable[..., Node]] = {
    **{op: _plain(op) for op in ("sigmoid", "tanh", "relu", "exp", "log", "sqrt", "abs",
                                 "softplus", "min", "max")},
    "silu": _silu, "gelu": _gelu, "softsign": _softsign, "leaky_relu": _leaky_relu, "elu": _elu,
    "hard_sigmoid": _hard_sigmoid, "affine": _affine, "scaled_tanh": _scaled_tanh,
    "thresholded_relu": _thresholded_relu, "clip": _clip, "norm": _norm, "rms_norm": _rms_norm,
    "mean": _mean, "sum": lambda graph, a: graph.total(a),
}
