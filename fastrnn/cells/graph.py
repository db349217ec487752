"""The operations of one step, as a graph: what a definition computes, in order and without repeats.

A node is one operation on rows of `width` units. Equal operations on equal operands are one node.
Sums that contain products are groups: their products, biases and no more; what else is in the sum
is added afterwards. build.py makes the graph of a definition.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["CHEAP", "ELEMENTWISE", "FOUND", "GRADIENTS", "Graph", "Group", "Mask", "Node"]

# Operations that cost about as much as reading their result from memory.
CHEAP = frozenset(["add", "sub", "mul", "fma", "fnma", "min", "max", "abs", "relu", "less",
                   "less_equal", "splat"])
# What a step finds: its input, states, parameters and masks; going back the gradients, too.
FOUND = frozenset(["old", "x", "vector", "constant", "mask"])
GRADIENTS = frozenset(["new", "dy", "sum so far"])
ELEMENTWISE = CHEAP | {"div", "sigmoid", "tanh", "exp", "log", "sqrt", "softplus", "dsigmoid",
                       "dtanh", "copy"}


class Node:
    """One operation.

    Attributes
    ----------
    op : str
        One of ELEMENTWISE; "sum" over the units; "part" of a group, data (group, block); "back", a
        sum of products with gradients, data (number of leading args that are added: 0 or 1,
        ((group, term), ...)); "exp" of a power, data (number of the base, of the exponent);
        "div" of a power with a negative whole exponent, data (number of the base, the exponent); or
        what is given: "x", "old" state, learned "vector", "constant", "mask", and going back the
        gradients "new" and "dy", and "sum so far" of a vector's gradients.
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
        data = "" if self.data is None else f" {self.data}"
        return f"#{self.number} {self.op}({of}){data}"


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
