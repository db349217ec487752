"""The width of every value of a definition, by uniting what stands element-wise together.

Values that meet element-wise are one class; a class has the names of the sizes that decide it, each
with the place where it comes from. Numbers, constants and reductions have width 1 and join no
class. I and H may meet: such a cell works where both numbers are equal. What nothing decides is H.
"""

from __future__ import annotations

from fastrnn.cells.names import Names, Use
from fastrnn.cells.tree import (
    FUNCTIONS,
    MASKS,
    REDUCTIONS,
    Binary,
    Call,
    Compare,
    Equation,
    Expression,
    Name,
    Negative,
    Number,
    Place,
    Product,
    post_order,
)

__all__ = ["SCALAR", "Widths"]

SCALAR = -1  # the class of width 1
_TOGETHER = {"I", "H"}  # the sizes that may be equal


class Widths:
    """The widths of a definition's nodes, targets and vectors, by the names of sizes.

    Attributes
    ----------
    of : dict of Expression to str
    equal : Place or None
        Where I and H meet, if they do.
    """

    def __init__(self, names: Names) -> None:
        self.names = names
        self.equal: Place | None = None
        self.parents: list[int] = []
        self.decided: list[dict[str, tuple[Place, str]]] = []  # of each root, by size
        self.classes: dict[Expression, int] = {}
        self.named: dict[str, int] = {}  # x, targets and vectors
        self._begin()
        for equation in names.equations:
            self._equation(equation)
        self._output()
        for weight, uses in names.weights.items():
            self._weight(weight, uses)
        self.of = {node: self._name(found) for node, found in self.classes.items()}

    def named_width(self, name: str) -> str:
        """Return the width of a target or vector."""
        return self._name(self.named[name])

    # ---- classes

    def _new(self) -> int:
        self.parents.append(len(self.parents))
        self.decided.append({})
        return len(self.parents) - 1

    def _find(self, of: int) -> int:
        while self.parents[of] != of:
            self.parents[of] = self.parents[self.parents[of]]
            of = self.parents[of]
        return of

    def _name(self, of: int) -> str:
        if of == SCALAR:
            return "1"
        sizes = self.decided[self._find(of)]
        return "H" if len(sizes) != 1 else next(iter(sizes))

    def _decide(self, of: int, size: str, at: Place, what: str) -> None:
        """Say that a class has a size."""
        new = self._new()
        self.decided[new][size] = at, what
        self._unite(of, new, at)

    def _unite(self, a: int, b: int, at: Place) -> int:
        """Make one class of two, neither of which is SCALAR."""
        a, b = self._find(a), self._find(b)
        if a == b:
            return a
        left, right = self.decided[a], self.decided[b]
        both = left | right
        if len(both) > 1 and not both.keys() <= _TOGETHER:
            one, other = next((m, n) for m in left for n in right
                              if m != n and not {m, n} <= _TOGETHER)
            raise self.names.error(at, "the widths differ here: " + ", and ".join(
                f"{size} from {what} (line {place.line}, column {place.column})"
                for size, (place, what) in ((one, left[one]), (other, right[other]))))
        if len(both) > 1 and self.equal is None:
            self.equal = at
        self.parents[b] = a
        self.decided[a] = both
        return a

    def _meet(self, at: Place, *classes: int) -> int:
        """Return the class of values that stand element-wise together."""
        found = SCALAR
        for one in classes:
            if found == SCALAR:
                found = one
            elif one != SCALAR:
                found = self._unite(found, one, at)
        return found

    # ---- the walk

    def _begin(self) -> None:
        names = self.names
        self.named["x"] = self._new()
        self.decided[self.named["x"]]["I"] = names.x_at, "x"
        for name in (*names.targets, *names.vectors):
            self.named[name] = self._new()
        for name, (_, target) in names.targets.items():
            if target.size is not None:
                self._decide(self.named[name], target.size, target.at, f"{name}[{target.size}]")
        for line in names.state_lines.values():
            if line.size is not None:
                self._decide(self.named[line.name], line.size, line.at, f"{line.name}[{line.size}]")
        for name, declared in names.declared.items():
            if declared.size is not None and name in self.named:
                self._decide(self.named[name], declared.size, declared.at,
                             f"{name}[{declared.size}]")

    def _equation(self, equation: Equation) -> None:
        classes = self.classes
        for node in post_order(equation.expression):
            classes[node] = self._node(node)
        found = classes[equation.expression]
        first = equation.targets[0]
        if found == SCALAR:
            fixed = first.size is not None or first.name in self.names.states
            if not fixed and first.name != self.names.output:
                self.named[first.name] = SCALAR
            return
        for target in equation.targets:
            self._unite(self.named[target.name], found, target.at)

    def _node(self, node: Expression) -> int:
        classes = self.classes
        if isinstance(node, Number):
            return SCALAR
        if isinstance(node, Name):
            return SCALAR if node.name in self.names.constants else self.named[node.name]
        if isinstance(node, Negative):
            return classes[node.operand]
        if isinstance(node, (Binary, Compare)):
            return self._meet(node.at, classes[node.left], classes[node.right])
        if isinstance(node, Product):
            if classes[node.operand] == SCALAR:
                raise self.names.error(node.operand.at, f"the matrix {node.weight!r} multiplies a "
                                       "value of width 1, expected one with a number per unit")
            return self._new()
        return self._call(node)

    def _call(self, node: Call) -> int:
        if node.function in MASKS:
            return self._new()
        values = node.arguments[:FUNCTIONS[node.function].values]
        found = self._meet(node.at, *(self.classes[value] for value in values))
        if node.function in (*REDUCTIONS, "norm", "rms_norm"):
            if found == SCALAR:
                raise self.names.error(values[0].at, f"{node.function} goes over the units, and "
                                       "this value has width 1")
            if node.function in REDUCTIONS:
                return SCALAR
        return found

    def _output(self) -> None:
        """Let the output be H wide, unless its use or the text says something else."""
        name = self.names.output
        of = self.named[name]
        target = self.names.targets[name][1]
        declared = name in self.names.state_lines and self.names.state_lines[name].size
        if not (target.size or declared) and self._name(of) in ("I", "H"):
            self._decide(of, "H", target.at, f"the output {name}")

    def _weight(self, name: str, uses: list[Use]) -> None:
        """Give all uses of a weight one shape."""
        first = uses[0]
        for use in uses[1:]:
            shapes = [self._shape(one) for one in (first, use)]
            same = first.blocks == use.blocks
            for of, other in zip(self._sides(first), self._sides(use), strict=True):
                roots = {self._find(of), self._find(other)}
                sizes = {size for root in roots for size in self.decided[root]}
                same &= len(roots) == 1 or len(sizes) <= 1
                if same:
                    self._unite(of, other, use.node.at)
            if not same:
                raise self.names.error(
                    use.node.at, f"the matrix {name!r} is {shapes[1]} here and {shapes[0]} in line "
                    f"{first.node.at.line}, column {first.node.at.column}")

    def _sides(self, use: Use) -> tuple[int, int]:
        assert isinstance(use.node, Product)
        return self.classes[use.node], self.classes[use.node.operand]

    def _shape(self, use: Use) -> str:
        rows, columns = map(self._name, self._sides(use))
        return f"({use.blocks} * {rows}, {columns})" if use.blocks > 1 else f"({rows}, {columns})"
