"""What a step of a definition passes on from the step before: states without a product, and with.

A state is carried if its new value reads its old one outside all products: such a state is a memory
whose gradient no matrix multiplies. A weight is recurrent if it multiplies what depends on an old
state, and a state reads the result.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastrnn.cells.definition import Definition
from fastrnn.cells.tree import Expression, Name, Product, children, post_order

__all__ = ["carried", "recurrent_weights"]


def carried(definition: Definition) -> tuple[str, ...]:
    """Return the names of the states that are carried, in the order of the states."""
    reach: dict[str, frozenset[str]] = {state.name: frozenset([state.name])
                                        for state in definition.states}
    for equation in definition.equations:
        found = frozenset[str]().union(*(reach.get(name, frozenset())
                                         for name in _outside(equation.expression)))
        reach |= {target.name: found for target in equation.targets}
    return tuple(s.name for s in definition.states if s.name in reach[s.name])


def _outside(expression: Expression) -> Iterable[str]:
    """Yield the names of an expression that are in no product."""
    stack = [expression]
    while stack:
        node = stack.pop()
        if isinstance(node, Name):
            yield node.name
        elif not isinstance(node, Product):
            stack.extend(children(node))


def recurrent_weights(definition: Definition) -> tuple[str, ...]:
    """Return the names of the weights between old states and new ones."""
    feeds = {state.name for state in definition.states}
    feeding = []  # whether a state reads what an equation gives
    for equation in reversed(definition.equations):
        feeding.append(any(target.name in feeds for target in equation.targets))
        if feeding[-1]:
            feeds.update(n.name for n in post_order(equation.expression) if isinstance(n, Name))
    old = {state.name: True for state in definition.states}
    found: dict[str, None] = {}
    for equation, fed in zip(definition.equations, reversed(feeding), strict=True):
        depends: dict[int, bool] = {}
        for node in post_order(equation.expression):
            of = any(depends[id(child)] for child in children(node))
            if isinstance(node, Name):
                of = old.get(node.name, False)
            elif isinstance(node, Product) and of and fed:
                found[node.weight] = None
            depends[id(node)] = of
        old |= {target.name: depends[id(equation.expression)] for target in equation.targets}
    return tuple(name for name in definition.weights if name in found)
