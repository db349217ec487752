"""The operations of one step, as a graph: what a definition computes, in order and without repeats.

A node is one operation on rows of `width` units. Equal operations on equal operands are one node.
Sums that contain products are groups: their products, biases and no more; what else is in the sum
is added afterwards. Letters: I input, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fastrnn.cells import tree
from fastrnn.cells.numbers import fold

if TYPE_CHECKING:
    from fastrnn.cells.definition import Definition

__all__ = ["Graph", "Group", "Mask", "Node", "build"]

# Operations that cost about as much as reading their result from memory.
CHEAP = frozenset(["add", "sub", "mul", "fma", "fnma", "min", "max", "abs", "relu", "less",
                   "less_equal", "splat"])
ELEMENTWISE = CHEAP | {"div", "sigmoid", "tanh", "exp", "log", "sqrt", "softplus", "dsigmoid",
                       "dtanh", "copy"}


class Node:
    """One operation.

    Attributes
    ----------
    op : str
        One of ELEMENTWISE; "sum" over the units; "part" of a group, data (group, block); "back", a
        sum of products with gradients, data ((group, term), ...), args (what is added,) or (); or
        what is given: "x", "old" state, learned "vector", "constant", "mask", and going back the
        gradients "new" and "dy".
    args : tuple of Node
    width : int
    data : Any
    number : int
        Operands have smaller numbers.
    """

    __slots__ = ("args", "data", "number", "op", "width")

    def __init__(self, op: str, args: tuple[Node, ...], width: int, data: Any, number: int) -> None:
        self.op = op
        self.args = args
        self.width = width
        self.data = data
        self.number = number

    def __repr__(self) -> str:
        of = ", ".join(f"#{a.number}" for a in self.args)
        return f"#{self.number} {self.op}({of}) {self.data if self.data is not None else ''}"


class Group:
    """A sum of products and biases: blocks of `width` units side by side.

    Attributes
    ----------
    number : int
    blocks, width : int
    terms : tuple of (weight name, source Node)
    biases : tuple of names of vectors
    """

    __slots__ = ("biases", "blocks", "number", "terms", "width")

    def __init__(self, number: int, blocks: int, width: int,
                 terms: tuple[tuple[str, Node], ...], biases: tuple[str, ...]) -> None:
        self.number = number
        self.blocks = blocks
        self.width = width
        self.terms = terms
        self.biases = biases


class Mask:
    """A mask that training draws.

    Attributes
    ----------
    number : int
    width : int
    rate : float
        The probability that is written in the definition.
    kind : {"dropout", "mask"}
        "dropout": 0 with this probability, else 1 / (1 - rate), and 1 in evaluation. "mask": 1
        with this probability, else 0, and the rate itself in evaluation.
    each_step : bool
        Whether there is one for each step, or one for a sequence.
    """

    __slots__ = ("each_step", "kind", "number", "rate", "width")

    def __init__(self, number: int, width: int, rate: float, kind: str, each_step: bool) -> None:
        self.number = number
        self.width = width
        self.rate = rate
        self.kind = kind
        self.each_step = each_step

    @property
    def mean(self) -> float:
        """What evaluation multiplies by."""
        return 1.0 if self.kind == "dropout" else self.rate


class Graph:
    """The nodes of one step, forward; derive.py adds those of backward.

    Attributes
    ----------
    nodes : list of Node
    groups : list of Group
    masks : list of Mask
    new : dict
        The node of each state's new value.
    output : Node
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.groups: list[Group] = []
        self.masks: list[Mask] = []
        self.new: dict[str, Node] = {}
        self.output: Node
        self._known: dict[Any, Node] = {}
        self._groups: dict[Any, Group] = {}

    # ---- nodes ------------------------------------------------------------------------------

    def node(self, op: str, args: tuple[Node, ...] = (), width: int = 1, data: Any = None) -> Node:
        """Return the node of this operation, a new one or one that is there."""
        key = op, tuple(a.number for a in args), width, data
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Node(op, args, width, data, len(self.nodes))
            self.nodes.append(found)
        return found

    def constant(self, value: float) -> Node:
        """Return the node of a number."""
        return self.node("constant", (), 1, float(value))

    def wide(self, a: Node, width: int) -> Node:
        """Return a node for every unit; constants fit as they are."""
        if a.width == width or a.op == "constant":
            return a
        return self.node("splat", (a,), width)

    def apply(self, op: str, *args: Node) -> Node:
        """Return an element-wise operation on nodes, of which some may have one unit."""
        width = max(a.width for a in args)
        if all(a.op == "constant" for a in args):
            value = _fold(op, [a.data for a in args])
            if value is not None:
                return self.constant(value)
        simple = _simpler(op, args)
        if simple is not None and simple.width == width:
            return simple
        return self.node(op, tuple(self.wide(a, width) for a in args), width)

    def add(self, a: Node, b: Node) -> Node:
        """Return a + b."""
        return self.apply("add", a, b)

    def sub(self, a: Node, b: Node) -> Node:
        """Return a - b."""
        return self.apply("sub", a, b)

    def mul(self, a: Node, b: Node) -> Node:
        """Return a b."""
        return self.apply("mul", a, b)

    def div(self, a: Node, b: Node) -> Node:
        """Return a / b."""
        return self.apply("div", a, b)

    def negative(self, a: Node) -> Node:
        """Return -a."""
        return self.mul(a, self.constant(-1))

    def total(self, a: Node) -> Node:
        """Return the sum over the units."""
        return a if a.width == 1 else self.node("sum", (a,), 1)

    def group(self, blocks: int, width: int, terms: tuple[tuple[str, Node], ...],
              biases: tuple[str, ...]) -> Group:
        """Return the group of these products and biases."""
        key = blocks, width, tuple((w, s.number) for w, s in terms), biases
        found = self._groups.get(key)
        if found is None:
            found = self._groups[key] = Group(len(self.groups), blocks, width, terms, biases)
            self.groups.append(found)
        return found

    def part(self, group: Group, block: int) -> Node:
        """Return one block of a group."""
        sources = tuple(source for _, source in group.terms)
        return self.node("part", sources, group.width, (group.number, block))

    # ---- what is done with the graph --------------------------------------------------------

    def fuse(self, first: int, keep: set[int]) -> None:
        """Make one operation of a sum and a product that nothing else reads.

        Parameters
        ----------
        first : int
            Only nodes from this number on are changed.
        keep : set of int
            Numbers of nodes that others than nodes read.
        """
        readers: dict[int, int] = {}
        for node in self.nodes:
            for a in node.args:
                readers[a.number] = readers.get(a.number, 0) + 1
        for node in self.nodes[first:]:
            for op, at, fused in (("add", 0, "fma"), ("add", 1, "fma"), ("sub", 1, "fnma")):
                if node.op != op:
                    continue
                product, other = node.args[at], node.args[1 - at]
                if (product.op == "mul" and product.width == node.width and product is not other
                        and readers[product.number] == 1 and product.number not in keep
                        and product.number >= first):
                    del self._known["mul", tuple(a.number for a in product.args), product.width,
                                    None]
                    node.op = fused
                    node.args = (*product.args, other)
                    product.op = "gone"


def _fold(op: str, values: list[float]) -> float | None:
    """Return the result for constants; None where Python's arithmetic has none."""
    try:
        if op == "add":
            return values[0] + values[1]
        if op == "sub":
            return values[0] - values[1]
        if op == "mul":
            return values[0] * values[1]
        if op == "div":
            return values[0] / values[1]
        if op == "sqrt":
            return math.sqrt(values[0])
        if op == "exp":
            return math.exp(values[0])
        if op == "log":
            return math.log(values[0])
        if op == "tanh":
            return math.tanh(values[0])
    except (ArithmeticError, ValueError):
        pass
    return None


def _simpler(op: str, args: tuple[Node, ...]) -> Node | None:
    """Return the operand that is the result: a 1, a + 0, and the like."""
    if op not in ("add", "sub", "mul", "div"):
        return None
    a, b = args
    neutral = 0.0 if op in ("add", "sub") else 1.0
    if b.op == "constant" and b.data == neutral:
        return a
    if a.op == "constant" and a.data == neutral and op in ("add", "mul"):
        return b
    return None


# ---- from a definition ---------------------------------------------------------------------------


class _Builder:
    def __init__(self, definition: Definition, sizes: Mapping[str, int],
                 constants: Mapping[str, float], bias: bool) -> None:
        self.definition = definition
        self.sizes = {**sizes, "1": 1}
        self.constants = constants
        self.bias = bias
        self.graph = Graph()
        self.values: dict[str, Node] = {}
        # by id of an expression node of the equation at hand
        self.done: dict[int, Node] = {}
        self.sums: set[int] = set()  # sums and signs that have a product among their terms

    def run(self) -> Graph:
        definition, graph = self.definition, self.graph
        for state in definition.states:
            width = self.sizes[state.width]
            self.values[state.name] = graph.node("old", (), width, state.name)
        states = {state.name for state in definition.states}
        for equation in definition.equations:
            self.done = {}
            self.sums = _sums_of_products(equation.expression)
            if len(equation.targets) > 1:
                for target, node in zip(equation.targets, self.parts(equation), strict=True):
                    self.values[target.name] = node
                    if target.name in states:
                        graph.new[target.name] = node
                continue
            target = equation.targets[0]
            node = self.expression(equation.expression)
            width = self.sizes[definition.target_widths[target.name]]
            if node.op == "constant" and (target.name in states
                                          or target.name == definition.output):
                node = graph.node("copy", (node,), width)
            else:
                node = graph.wide(node, width) if width > node.width else node
            self.values[target.name] = node
            if target.name in states:
                graph.new[target.name] = node
        graph.output = self.values[definition.output]
        # what a state or the output is must have a place of its own
        seen: set[int] = set()
        for name, node in list(graph.new.items()):
            if node.op in ("old", "x", "vector", "mask", "constant", "part") or node.number in seen:
                graph.new[name] = node = graph.node("copy", (node,), node.width, name)
                if name == definition.output:
                    graph.output = node
            seen.add(node.number)
        if definition.output not in graph.new and (
                graph.output.number in seen or graph.output.op not in ELEMENTWISE):
            graph.output = graph.node("copy", (graph.output,), graph.output.width, "output")
        keep = {node.number for node in graph.new.values()} | {graph.output.number}
        keep |= {source.number for group in graph.groups for _, source in group.terms}
        graph.fuse(0, keep)
        return graph

    # expressions, without recursion: a text may be a sum of thousands of terms

    def expression(self, root: tree.Expression) -> Node:
        stack = [root]
        while stack:
            e = stack[-1]
            if id(e) in self.done:
                stack.pop()
                continue
            before = self.needed(e)
            missing = [n for n in before if id(n) not in self.done]
            if missing:
                stack.extend(reversed(missing))
                continue
            self.done[id(e)] = self.value(e)
            stack.pop()
        return self.done[id(root)]

    def terms(self, e: tree.Expression) -> list[tuple[int, tree.Expression]] | None:
        """Return the terms of a sum with their signs, if a product is among them."""
        if id(e) not in self.sums:
            return None
        found: list[tuple[int, tree.Expression]] = []
        stack = [(1, e)]
        while stack:
            sign, n = stack.pop()
            if isinstance(n, tree.Binary) and n.operator in "+-":
                stack.append((sign if n.operator == "+" else -sign, n.right))
                stack.append((sign, n.left))
            elif isinstance(n, tree.Negative) and id(n) in self.sums:
                stack.append((-sign, n.operand))
            else:
                found.append((sign, n))
        return found

    def needed(self, e: tree.Expression) -> list[tree.Expression]:
        terms = self.terms(e)
        if terms is not None:
            return [n.operand if isinstance(n, tree.Product) else n for _, n in terms]
        if isinstance(e, tree.Binary):
            return [e.left] if self.exponent(e) is not None else [e.left, e.right]
        if isinstance(e, tree.Negative):
            return [e.operand]
        if isinstance(e, tree.Call):
            if e.function in MASKS:
                return []
            return [a for n in e.arguments
                    for a in ((n.left, n.right) if isinstance(n, tree.Compare) else (n,))]
        return []

    def exponent(self, e: tree.Binary) -> float | None:
        """Return the constant right side of a power."""
        return self.number(e.right) if e.operator == "**" else None

    def number(self, e: tree.Expression) -> float | None:
        if isinstance(e, tree.Number):
            return e.value
        if isinstance(e, tree.Name) and e.name in self.constants and (
                e.name not in self.values):
            return self.constants[e.name]
        if isinstance(e, tree.Negative):
            inner = self.number(e.operand)
            return None if inner is None else -inner
        return None

    def value(self, e: tree.Expression) -> Node:
        graph = self.graph
        terms = self.terms(e)
        if terms is not None:
            return self.sum(e, terms)
        if isinstance(e, tree.Number):
            return graph.constant(e.value)
        if isinstance(e, tree.Name):
            return self.name(e)
        if isinstance(e, tree.Negative):
            return graph.negative(self.done[id(e.operand)])
        if isinstance(e, tree.Binary):
            a = self.done[id(e.left)]
            if e.operator == "**":
                return self.power(e, a)
            op = {"+": "add", "-": "sub", "*": "mul", "/": "div"}[e.operator]
            return graph.apply(op, a, self.done[id(e.right)])
        assert isinstance(e, tree.Call), e
        return self.call(e)

    def name(self, e: tree.Name) -> Node:
        graph = self.graph
        if e.name in self.values:
            return self.values[e.name]
        if e.name == "x":
            return graph.node("x", (), self.sizes["I"])
        if e.name in self.definition.constants:
            return graph.constant(self.constants[e.name])
        return self.vector(e.name, 0)

    def vector(self, name: str, block: int) -> Node:
        """Return a block of a learned vector."""
        vector = self.definition.vectors[name]
        if vector.bias and not self.bias:
            return self.graph.constant(0.0)
        return self.graph.node("vector", (), self.sizes[vector.width], (name, block))

    def parts(self, equation: tree.Equation) -> list[Node]:
        terms, graph = self.terms(equation.expression), self.graph
        assert terms is not None
        for _, n in terms:
            if isinstance(n, tree.Product):
                self.expression(n.operand)
        blocks = len(equation.targets)
        width = self.sizes[self.definition.widths[equation.expression]]
        group, others = self.group_of(terms, blocks, width)
        found = [graph.part(group, block) if group.blocks else graph.constant(0)
                 for block in range(blocks)]
        for sign, n in others:
            if isinstance(n, tree.Product):
                source = self.source(self.done[id(n.operand)], n.weight, True)
                other = graph.group(blocks, width, ((n.weight, source),), ())
                values = [graph.part(other, block) for block in range(blocks)]
            else:
                assert isinstance(n, tree.Name), n
                values = [self.vector(n.name, block) for block in range(blocks)]
            found = [graph.add(a, b) if sign > 0 else graph.sub(a, b)
                     for a, b in zip(found, values, strict=True)]
        return found

    def group_of(self, terms: list[tuple[int, tree.Expression]], blocks: int, width: int
                 ) -> tuple[Group, list[tuple[int, tree.Expression]]]:
        """Return the group of the products and biases that are added, and the other terms."""
        products, biases, others = [], [], []
        for sign, n in terms:
            if sign > 0 and isinstance(n, tree.Product):
                products.append((n.weight, self.done[id(n.operand)]))
            elif sign > 0 and isinstance(n, tree.Name) and self.is_bias(n.name):
                if self.bias:
                    biases.append(n.name)
            else:
                others.append((sign, n))
        if not products:  # all of them are subtracted
            return self.graph.group(0, 0, (), ()), terms
        # the input's product comes first: it is made for many steps at once
        products.sort(key=lambda p: p[1].op != "x")
        products = [(w, self.source(s, w, i == 0)) for i, (w, s) in enumerate(products)]
        return self.graph.group(blocks, width, tuple(products), tuple(biases)), others

    def source(self, source: Node, weight: str, first: bool) -> Node:
        """Return the operand of a product, which has a row that lasts as long as the tape.

        The input counts as such for the first product of a group, which is made beforehand.
        """
        width = self.sizes[self.definition.weights[weight].columns]
        lasts = source.op == "old" or source.op in ELEMENTWISE or (
            source.op == "x" and first)
        if source.op == "constant" or (source.width == width and not lasts):
            return self.graph.node("copy", (source,), width, "source")
        return self.graph.wide(source, width)

    def is_bias(self, name: str) -> bool:
        vector = self.definition.vectors.get(name)
        return vector is not None and vector.bias and name not in self.values

    def sum(self, e: tree.Expression, terms: list[tuple[int, tree.Expression]]) -> Node:
        graph = self.graph
        width = self.sizes[self.definition.widths[e]]
        total: Node | None = None
        if any(sign > 0 and isinstance(n, tree.Product) for sign, n in terms):
            group, terms = self.group_of(terms, 1, width)
            total = graph.part(group, 0)
        for sign, n in terms:
            if isinstance(n, tree.Product):
                source = self.source(self.done[id(n.operand)], n.weight, True)
                node = graph.part(graph.group(1, width, ((n.weight, source),), ()), 0)
            else:
                node = self.done[id(n)] if id(n) in self.done else self.name(n)  # type: ignore
            if total is None:
                total = node if sign > 0 else graph.negative(node)
            else:
                total = graph.add(total, node) if sign > 0 else graph.sub(total, node)
        assert total is not None
        return total

    def power(self, e: tree.Binary, a: Node) -> Node:
        graph, exponent = self.graph, self.exponent(e)
        if exponent is None and self.done[id(e.right)].op == "constant":
            exponent = self.done[id(e.right)].data
        if exponent is None:
            b = self.done[id(e.right)]
            return graph.apply("exp", graph.mul(b, graph.apply("log", a)))
        return power(graph, a, exponent)

    def call(self, e: tree.Call) -> Node:
        graph = self.graph
        if e.function in MASKS:
            kind, each_step = MASKS[e.function]
            rate = fold(e.arguments[0], self.constants)
            width = self.sizes[self.definition.widths[e]]
            mask = Mask(len(graph.masks), width, rate, kind, each_step)
            graph.masks.append(mask)
            return graph.node("mask", (), width, mask.number)
        if e.function == "where":
            condition = e.arguments[0]
            assert isinstance(condition, tree.Compare)
            left, right, a, b = (self.done[id(n)] for n in (
                condition.left, condition.right, *e.arguments[1:]))
            return compare(graph, condition.operator, left, right, a, b)
        args = [self.done[id(n)] for n in e.arguments]
        if e.function == "sum":
            width = self.sizes[self.definition.widths[e.arguments[0]]]
            if args[0].width != width:  # all units are the same
                return graph.mul(args[0], graph.constant(width))
        return FUNCTIONS[e.function](graph, *args)


def _sums_of_products(root: tree.Expression) -> set[int]:
    """Return the ids of products, and of sums and signs that have one among their terms."""
    found: set[int] = set()
    for n in tree.post_order(root):
        through = isinstance(n, tree.Negative) or (
            isinstance(n, tree.Binary) and n.operator in "+-")
        if isinstance(n, tree.Product) or (
                through and any(id(child) in found for child in tree.children(n))):
            found.add(id(n))
    return found


def power(graph: Graph, a: Node, exponent: float) -> Node:
    """Return a ** exponent.

    The node of exp has the number of `a` and the exponent as its data: going back through log would
    make 0 / 0 where a is 0.
    """
    whole = abs(int(exponent)) if abs(exponent) <= 64 and exponent == int(exponent) else None
    if whole is not None:
        result, square, left = graph.constant(1), a, whole
        while left:
            if left & 1:
                result = graph.mul(result, square)
            left >>= 1
            square = graph.mul(square, square) if left else square
        return result if exponent >= 0 else graph.div(graph.constant(1), result)
    if exponent in (0.5, -0.5):
        root = graph.apply("sqrt", a)
        return root if exponent > 0 else graph.div(graph.constant(1), root)
    inner = graph.mul(graph.constant(exponent), graph.apply("log", a))
    if inner.op == "constant":
        return graph.apply("exp", inner)
    return graph.node("exp", (inner,), inner.width, (a.number, exponent))


MASKS = {"dropout": ("dropout", True), "sequence_dropout": ("dropout", False),
         "step_mask": ("mask", True), "sequence_mask": ("mask", False)}


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


# ---- functions -----------------------------------------------------------------------------------


def _plain(op: str) -> Callable[..., Node]:
    return lambda graph, *args: graph.apply(op, *args)


def _default(graph: Graph, args: tuple[Node, ...], *values: float) -> list[Node]:
    """Return the arguments, those that are missing from their defaults."""
    return [*args, *(graph.constant(v) for v in values[len(args):])]


def _leaky_relu(graph: Graph, a: Node, *args: Node) -> Node:
    slope, = _default(graph, args, 0.01)
    return graph.apply("less", graph.constant(0), a, a, graph.mul(slope, a))


def _elu(graph: Graph, a: Node, *args: Node) -> Node:
    alpha, = _default(graph, args, 1.0)
    below = graph.mul(alpha, graph.sub(graph.apply("exp", graph.apply(
        "min", a, graph.constant(0))), graph.constant(1)))
    return graph.apply("less", graph.constant(0), a, a, below)


def _affine(graph: Graph, a: Node, alpha: Node, beta: Node) -> Node:
    return graph.add(graph.mul(alpha, a), beta)


def _clip(graph: Graph, a: Node, low: Node, high: Node) -> Node:
    return graph.apply("min", graph.apply("max", a, low), high)


def _hard_sigmoid(graph: Graph, a: Node, *args: Node) -> Node:
    alpha, beta = _default(graph, args, 0.2, 0.5)
    return _clip(graph, _affine(graph, a, alpha, beta), graph.constant(0), graph.constant(1))


def _scaled_tanh(graph: Graph, a: Node, alpha: Node, beta: Node) -> Node:
    return graph.mul(alpha, graph.apply("tanh", graph.mul(beta, a)))


def _thresholded_relu(graph: Graph, a: Node, *args: Node) -> Node:
    alpha, = _default(graph, args, 1.0)
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


def _norm(graph: Graph, a: Node, *args: Node) -> Node:
    """Return layer normalisation (Ba, Kiros and Hinton 2016), without gain and bias."""
    eps, = _default(graph, args, 1e-5)
    return _scale(graph, graph.sub(a, _mean(graph, a)), eps)


def _rms_norm(graph: Graph, a: Node, *args: Node) -> Node:
    """Return RMS normalisation (Zhang and Sennrich 2019), without gain."""
    eps, = _default(graph, args, 1e-5)
    return _scale(graph, a, eps)


FUNCTIONS: dict[str, Callable[..., Node]] = {
    **{op: _plain(op) for op in ("sigmoid", "tanh", "relu", "exp", "log", "sqrt", "abs",
                                 "softplus", "min", "max")},
    "silu": _silu, "gelu": _gelu, "softsign": _softsign, "leaky_relu": _leaky_relu, "elu": _elu,
    "hard_sigmoid": _hard_sigmoid, "affine": _affine, "scaled_tanh": _scaled_tanh,
    "thresholded_relu": _thresholded_relu, "clip": _clip, "norm": _norm, "rms_norm": _rms_norm,
    "mean": _mean, "sum": lambda graph, a: graph.total(a),
}


def build(definition: Definition, sizes: Mapping[str, int], constants: Mapping[str, float],
          bias: bool = True) -> Graph:
    """Return the graph of a definition.

    Parameters
    ----------
    definition : Definition
    sizes : mapping
        All sizes as numbers, of Definition.resolve.
    constants : mapping
        All constants.
    bias : bool
        Without, the biases are left out.
    """
    return _Builder(definition, sizes, constants, bias).run()
