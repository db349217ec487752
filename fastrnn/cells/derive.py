"""Backward of one step: from the graph of a step, the graph of its gradients.

Reverse-mode differentiation, operation by operation. The gradients use values of the forward step;
schedule.py decides which of them are taped and which are computed again.
"""

from __future__ import annotations

from collections.abc import Callable

from fastrnn.cells.functions import compare, power, power_of_node
from fastrnn.cells.graph import Graph, Node

__all__ = ["Derived", "derive"]


class Derived:
    """Where the gradients of one step are in a graph.

    Attributes
    ----------
    first : int
        The number of the first node of backward.
    states : dict
        Of each old state the node of its gradient.
    groups : list of lists of Node
        Of each group and block the gradient.
    x : Node or None
        The gradient of x past the products.
    vectors : dict
        Of each block of a learned vector the gradient of one row past the biases of groups.
    new : dict
        Of each new state the whole gradient, through the output and what the step makes of it.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.states: dict[str, Node] = {}
        self.groups: list[list[Node]] = []
        self.x: Node | None = None
        self.vectors: dict[tuple[str, int], Node] = {}
        self.new: dict[str, Node] = {}


class _Reverse:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sums: dict[int, Node] = {}  # gradients so far, by number of the node
        self.result = Derived(len(graph.nodes))
        self.parts: list[list[Node | None]] = [[None] * g.blocks for g in graph.groups]
        self.uses: dict[int, list[tuple[int, int]]] = {}  # (group, term) with this source
        for group in graph.groups:
            for at, (_, source) in enumerate(group.terms):
                self.uses.setdefault(source.number, []).append((group.number, at))

    def give(self, node: Node, gradient: Node) -> None:
        if node.op in ("constant", "mask"):
            return
        before = self.sums.get(node.number)
        self.sums[node.number] = gradient if before is None else self.graph.add(before, gradient)

    def run(self) -> Derived:
        graph, result = self.graph, self.result
        forward = list(graph.nodes)
        news = {node.number: name for name, node in graph.new.items()}
        for name, node in graph.new.items():
            self.give(node, graph.node("new", (), node.width, name))
        if graph.output not in graph.new.values():
            self.give(graph.output, graph.node("dy", (), graph.output.width))
        for node in reversed(forward):
            if node.op == "gone":
                continue
            gradient = self.gradient(node)
            if node.number in news and gradient is not None:
                result.new[news[node.number]] = self.placed(gradient, node.width, node.number)
            if node.op == "old":
                result.states[node.data] = self.placed(gradient, node.width, node.data)
            elif node.op == "x":
                result.x = None if gradient is None else self.placed(gradient, node.width, "x")
            elif gradient is None:
                continue
            elif node.op == "vector":
                result.vectors[node.data] = self.placed(gradient, node.width, node.data)
            elif node.op == "part":
                group, block = node.data
                self.parts[group][block] = gradient
            else:
                RULES[node.op](self, node, gradient)
        for group in graph.groups:
            result.groups.append([
                self.part_gradient(group.number, block) for block in range(group.blocks)])
        keep = {n.number for n in result.states.values()} | {n.number for n in
                                                             result.vectors.values()}
        keep |= {n.number for nodes in result.groups for n in nodes}
        keep |= {n.number for n in result.new.values()}
        if result.x is not None:
            keep.add(result.x.number)
        graph.fuse(result.first, keep)
        return result

    def part_gradient(self, group: int, block: int) -> Node:
        found = self.parts[group][block]
        return self.placed(found, self.graph.groups[group].width, (group, block))

    def placed(self, gradient: Node | None, width: int, of: object) -> Node:
        """Return a gradient as a node with a row of its own."""
        graph = self.graph
        if gradient is None:
            gradient = graph.constant(0)
        if gradient.op == "constant":
            return graph.node("copy", (gradient,), width, of)
        return graph.wide(gradient, width)

    def gradient(self, node: Node) -> Node | None:
        """Return the whole gradient of a node, products with its weights included."""
        found = self.sums.get(node.number)
        uses = [(g, at) for g, at in self.uses.get(node.number, ()) if any(
            part is not None for part in self.parts[g])]
        if not uses or node.op in ("x", "constant", "mask"):
            return found
        base = () if found is None else (self.placed(found, node.width, node.number),)
        needed = [self.part_gradient(g, block) for g, _ in uses
                  for block in range(self.graph.groups[g].blocks)]
        return self.graph.node("back", (*base, *needed), node.width, (len(base), tuple(uses)))


Rule = Callable[[_Reverse, Node, Node], None]


def _add(r: _Reverse, n: Node, g: Node) -> None:
    r.give(n.args[0], g)
    r.give(n.args[1], g)


def _sub(r: _Reverse, n: Node, g: Node) -> None:
    r.give(n.args[0], g)
    before = r.sums.get(n.args[1].number)
    if before is None:
        r.give(n.args[1], r.graph.negative(g))
    else:
        r.sums[n.args[1].number] = r.graph.sub(before, g)


def _mul(r: _Reverse, n: Node, g: Node) -> None:
    a, b = n.args
    if a.op not in ("constant", "mask"):
        r.give(a, r.graph.mul(g, b))
    if b.op not in ("constant", "mask"):
        r.give(b, r.graph.mul(g, a))


def _fma(r: _Reverse, n: Node, g: Node) -> None:
    _mul(r, Node("mul", n.args[:2], n.width, None, n.number), g)
    r.give(n.args[2], g)


def _fnma(r: _Reverse, n: Node, g: Node) -> None:
    a, b, c = n.args
    minus = r.graph.negative(g)
    _mul(r, Node("mul", (a, b), n.width, None, n.number), minus)
    r.give(c, g)


def _div(r: _Reverse, n: Node, g: Node) -> None:
    if n.data is not None:  # a power: the slope of 1 / (a a) at 0 would be -inf times 0
        number, exponent = n.data
        a = r.graph.nodes[number]
        slope = r.graph.mul(r.graph.constant(exponent), power(r.graph, a, exponent - 1))
        r.give(a, r.graph.mul(g, slope))
        return
    a, b = n.args
    share = r.graph.div(g, b)
    r.give(a, share)
    if b.op != "constant":
        r.give(b, r.graph.negative(r.graph.mul(share, n)))


def _choice(r: _Reverse, op: str, a: Node, b: Node, yes: Node, no: Node, g: Node) -> None:
    zero = r.graph.constant(0)
    if yes.op != "constant":
        r.give(yes, r.graph.apply(op, a, b, g, zero))
    if no.op != "constant":
        r.give(no, r.graph.apply(op, a, b, zero, g))


def _select(r: _Reverse, n: Node, g: Node) -> None:
    a, b, yes, no = n.args
    _choice(r, n.op, a, b, yes, no, g)


def _min(r: _Reverse, n: Node, g: Node) -> None:
    a, b = n.args
    _choice(r, "less_equal", a, b, a, b, g)


def _max(r: _Reverse, n: Node, g: Node) -> None:
    a, b = n.args
    _choice(r, "less_equal", b, a, a, b, g)


def _abs(r: _Reverse, n: Node, g: Node) -> None:
    a, zero = n.args[0], r.graph.constant(0)
    minus = r.graph.apply("less", a, zero, r.graph.negative(g), zero)
    r.give(a, r.graph.apply("less", zero, a, g, minus))


def _relu(r: _Reverse, n: Node, g: Node) -> None:
    zero = r.graph.constant(0)
    r.give(n.args[0], r.graph.apply("less", zero, n, g, zero))


def _splat(r: _Reverse, n: Node, g: Node) -> None:
    r.give(n.args[0], r.graph.total(r.placed(g, n.width, n.number)))


def _exp(r: _Reverse, n: Node, g: Node) -> None:
    if n.data is None:
        r.give(n.args[0], r.graph.mul(g, n))
        return
    a, b = (r.graph.nodes[number] for number in n.data)  # of a power
    if b.op == "constant":
        r.give(a, r.graph.mul(g, r.graph.mul(b, power(r.graph, a, b.data - 1))))
    else:
        _power(r, a, b, n, g)


def _power(r: _Reverse, a: Node, b: Node, n: Node, g: Node) -> None:
    """Go back through n = a ** b with a learned exponent.

    For a = 0 and b >= 0 the slope along b is taken as 0.
    """
    graph, one, zero = r.graph, r.graph.constant(1), r.graph.constant(0)
    less = power_of_node(graph, a, graph.sub(b, one))
    r.give(a, graph.mul(g, compare(graph, "==", b, zero, zero, graph.mul(b, less))))
    slope = graph.mul(n, graph.apply("log", a))
    known = compare(graph, "<=", zero, b, zero, slope)
    r.give(b, graph.mul(g, compare(graph, "==", a, zero, known, slope)))


RULES: dict[str, Rule] = {
    "add": _add, "sub": _sub, "mul": _mul, "fma": _fma, "fnma": _fnma, "div": _div, "min": _min,
    "max": _max, "abs": _abs, "relu": _relu, "less": _select, "less_equal": _select,
    "splat": _splat,
    "copy": lambda r, n, g: r.give(n.args[0], g),
    "sum": lambda r, n, g: r.give(n.args[0], g),
    "sigmoid": lambda r, n, g: r.give(n.args[0], r.graph.apply("dsigmoid", g, n)),
    "tanh": lambda r, n, g: r.give(n.args[0], r.graph.apply("dtanh", g, n)),
    "exp": _exp,
    "log": lambda r, n, g: r.give(n.args[0], r.graph.div(g, n.args[0])),
    "sqrt": lambda r, n, g: r.give(n.args[0], r.graph.div(
        r.graph.mul(r.graph.constant(0.5), g), n)),
    "softplus": lambda r, n, g: r.give(n.args[0], r.graph.mul(
        g, r.graph.apply("sigmoid", n.args[0]))),
}


def derive(graph: Graph) -> Derived:
    """Add the nodes of backward to a graph; return where the gradients are.

    The nodes "new" are the gradients of the new states; for a state that is the output, dy is in
    it. The node "dy" is the gradient of an output that is no state.
    """
    return _Reverse(graph).run()
