"""From a definition to the graph of its step.

Letters: I input, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastrnn.cells import tree
from fastrnn.cells.functions import FUNCTIONS, compare, power, power_of_node
from fastrnn.cells.graph import ELEMENTWISE, Graph, Group, Mask, Node
from fastrnn.cells.numbers import fold

if TYPE_CHECKING:
    from fastrnn.cells.definition import Definition

__all__ = ["build"]

MASKS = {"dropout": ("dropout", True), "sequence_dropout": ("dropout", False),
         "step_mask": ("mask", True), "sequence_mask": ("mask", False)}


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
            missing = [n for n in self.needed(e) if id(n) not in self.done]
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
                continue
            inner, own = n, sign
            while isinstance(inner, tree.Negative):
                inner, own = inner.operand, -own
            if inner is not n and (id(n) in self.sums or isinstance(inner, tree.Name)):
                stack.append((own, inner))
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
            return power_of_node(graph, a, self.done[id(e.right)])
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
