"""What the names of a definition mean: declarations, targets, states, weights, biases, and uses.

`Names` reads a text once and refuses what is unknown, unused, assigned twice or out of place; the
widths are widths.py's matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fastrnn.cells.grammar import parse
from fastrnn.cells.numbers import (
    Rule,
    argument_rule,
    divisor_rule,
    exponent_rule,
    function_rule,
    power_rule,
)
from fastrnn.cells.records import Argument, Initial, Size
from fastrnn.cells.tree import (
    FUNCTIONS,
    MASKS,
    RESERVED,
    Binary,
    Call,
    Compare,
    Declaration,
    DefinitionError,
    Equation,
    Expression,
    Name,
    Negative,
    Number,
    Place,
    Product,
    Target,
    children,
    nearest,
    post_order,
)

__all__ = ["Declared", "Names", "Use"]

_KINDS = ("antisymmetric", "dropconnect", "blocks")  # what a step multiplies by
_WEIGHT_INITIALS: dict[str, tuple[int, ...]] = {
    "uniform": (0, 2), "orthogonal": (0,), "identity": (0,), "normal": (1,), "zeros": (0,)}
_KNOWN: dict[str, dict[str, tuple[int, ...]]] = {  # numbers of arguments, by declaration
    "weight": {**_WEIGHT_INITIALS, "antisymmetric": (1,), "dropconnect": (1,), "blocks": (1,)},
    "fixed": {**_WEIGHT_INITIALS, "sparse": (2,)},
    "learned": {"uniform": (2,), "normal": (2,)}}
_DRAWN = Initial("uniform")


@dataclass(frozen=True, slots=True)
class Declared:
    """A declared weight or learned vector."""

    kind: str
    arguments: tuple[Argument, ...]
    initial: Initial
    size: str | None
    learned: bool
    at: Place


@dataclass(frozen=True, slots=True)
class Use:
    """One occurrence of a weight or vector: its node and the row blocks it has there."""

    node: Product | Name
    blocks: int


class Names:
    """The names of a definition, by what they mean."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.declarations, self.equations = parse(text)
        self.sizes: dict[str, Size] = {}
        self.constants: dict[str, float] = {}
        self.declared: dict[str, Declared] = {}  # weights and learned vectors
        self.vectors: dict[str, list[Use]] = {}
        self.weights: dict[str, list[Use]] = {}
        self.state_lines: dict[str, Declaration] = {}
        self.targets: dict[str, tuple[int, Target]] = {}  # with the equation's index
        self.states: dict[str, None] = {}  # the output first, then in order of assignment
        self.masks: list[Call] = []
        self.rules: list[Rule] = []
        self.used: set[str] = set()  # names of declarations that something uses
        self.places: dict[str, Place] = {}  # of declarations
        self.biases: set[Name] = set()
        self.output = ""
        self.x_at = Place(0, 0)  # where the input stands first
        for declaration in self.declarations:
            self._declare(declaration)
        self._assign()
        for index, equation in enumerate(self.equations):
            self._read(index, equation)
        self._find_output()
        self._check_states()
        self._check_uses()

    def error(self, at: Place, sentence: str) -> DefinitionError:
        """Return an error of this text."""
        return DefinitionError.of(self.text, at, sentence)

    # ---- declarations

    def _declare(self, line: Declaration) -> None:
        if line.kind == "output":
            if self.output:
                raise self.error(line.at, f"the output is {self.output!r} already")
            self.output = line.name
            return
        if line.kind == "state":
            if line.name in self.state_lines:
                raise self.error(line.at, f"the state {line.name!r} is declared twice")
            self.state_lines[line.name] = line
            self._use_size(line.size, line.at)
            return
        self._refuse_reserved(line.name, line.at)
        if line.name in self.places:
            first = self.places[line.name]
            raise self.error(line.at, f"{line.name!r} is declared twice, first in line "
                             f"{first.line}")
        if line.kind == "size":
            self.sizes[line.name] = self._size(line)
        elif line.kind == "constant":
            value = _number(line.value)
            if value is None:
                raise self.error(line.at, f"the constant {line.name!r} has no number, expected: "
                                 f"constant {line.name} = 0.5")
            self.constants[line.name] = value
        else:
            self.declared[line.name] = self._parameter(line)
        self.places[line.name] = line.at

    def _refuse_reserved(self, name: str, at: Place) -> None:
        if name in RESERVED:
            raise self.error(at, f"{name!r} is {RESERVED[name]} and cannot get another meaning")

    def _use_size(self, name: str | None, at: Place) -> None:
        if name is None or name in ("I", "H"):
            return
        if name not in self.sizes:
            raise self.error(at, f"{name!r} is no size, declare it before: size {name} = H"
                             + nearest(name, ["I", "H", *self.sizes]))
        self.used.add(name)

    def _size(self, line: Declaration) -> Size:
        value, operator, factor = line.value, "*", 1
        if isinstance(value, Binary):
            at, operator, left, right = value.at, value.operator, value.left, value.right
            if operator == "*" and isinstance(left, Number):
                left, right = right, left
            count = _number(right)
            if count is None or count != int(count) or not 1 <= count < 2**31:
                raise self.error(at, f"{operator!r} needs a whole number from 1 on, as "
                                 "in H * 2 or H // 2")
            value, factor = left, int(count)
        times, over = (factor, 1) if operator == "*" else (1, factor)
        if isinstance(value, Name):
            self._use_size(value.name, value.at)
            return Size(line.name, value.name, times, over, line.at)
        whole = _number(value)
        if whole is None or whole != int(whole) or not 1 <= whole * times // over < 2**31:
            raise self.error(line.at, f"the default of the size {line.name!r} is not a whole "
                             "number from 1 on, expected I, H, another size or a whole number")
        return Size(line.name, "1", int(whole) * times, over, line.at)

    def _parameter(self, line: Declaration) -> Declared:
        """Return a declared weight, fixed weight or learned vector."""
        self._use_size(line.size, line.at)
        learned = line.kind != "fixed"
        known = _KNOWN[line.kind]
        value = line.value
        if value is None:
            return Declared("plain", (), _DRAWN, line.size, learned, line.at)
        if line.kind == "learned" and not isinstance(value, Call):
            number = _number(value)
            if number is None and isinstance(value, Name) and value.name in known:
                raise self.error(value.at, f"{value.name!r} needs its arguments in parentheses")
            argument = number if number is not None else self._argument(value, constants_only=True)
            return Declared("vector", (), Initial("number", (argument,)), line.size, True, line.at)
        if not isinstance(value, (Name, Call)):
            raise self.error(line.at, f"a {line.kind} has no number, expected one of "
                             + ", ".join(known))
        kind = value.name if isinstance(value, Name) else value.function
        given = value.arguments if isinstance(value, Call) else ()
        if kind not in known:
            raise self.error(value.at, f"{kind!r} is not known, expected one of "
                             f"{', '.join(known)}{nearest(kind, known)}")
        if len(given) not in known[kind]:
            raise self.error(value.at, f"{kind} has {len(given)} argument{'s' * (len(given) != 1)},"
                             f" expected {' or '.join(map(str, known[kind]))}")
        arguments = tuple(self._argument(a, constants_only=kind != "blocks") for a in given)
        if kind == "blocks":
            count = arguments[0]
            if not isinstance(count, str) and (count != int(count) or count < 1):
                raise self.error(value.at, f"blocks has {count:g}, expected a whole number from 1 "
                                 "on or a size")
        elif arguments:
            self.rules.append(argument_rule(kind, arguments, value.at))
        if kind in _KINDS:
            return Declared(kind, arguments, _DRAWN, None, learned, line.at)
        return Declared("plain" if line.kind != "learned" else "vector", (),
                        Initial(kind, arguments), line.size, learned, line.at)

    def _argument(self, node: Expression, constants_only: bool) -> Argument:
        number = _number(node)
        if number is not None:
            return number
        name = node.name if isinstance(node, Name) else ""
        if constants_only and name in self.constants:
            self.used.add(name)
            return name
        if not constants_only and (name in self.sizes or name in ("I", "H")):
            self.used.add(name)
            return name
        wanted, known = (("constant", self.constants) if constants_only
                         else ("size", {**self.sizes, "I": 0, "H": 0}))
        raise self.error(node.at, f"{name!r} is no {wanted}, expected a number or the name of a "
                         f"{wanted} declared before{nearest(name, known)}")

    # ---- equations

    def _assign(self) -> None:
        for index, equation in enumerate(self.equations):
            for target in equation.targets:
                name = target.name
                self._refuse_reserved(name, target.at)
                if name in self.places:
                    raise self.error(target.at, f"{name!r} is declared in line "
                                     f"{self.places[name].line} and cannot be assigned")
                if name in self.targets:
                    raise self.error(target.at, f"{name!r} is assigned twice, first in line "
                                     f"{self.targets[name][1].at.line}")
                if target.size is not None:
                    self._use_size(target.size, target.at)
                    if name in self.state_lines and self.state_lines[name].size is not None:
                        raise self.error(target.at, f"the width of {name!r} is declared in line "
                                         f"{self.state_lines[name].at.line} already")
                self.targets[name] = index, target

    def _read(self, index: int, equation: Equation) -> None:
        """Say what each name of an equation means."""
        nodes = list(post_order(equation.expression))
        compared = {node.arguments[0] for node in nodes
                    if isinstance(node, Call) and node.function == "where"}
        candidates = _bias_places(nodes)
        blocks = dict.fromkeys(self._terms(equation), len(equation.targets))
        for node in nodes:
            if isinstance(node, Name):
                self._read_name(node, index, node in candidates, blocks.get(node, 1))
            elif isinstance(node, Product):
                self._read_weight(node, blocks.get(node, 1))
            elif isinstance(node, Compare) and node not in compared:
                raise self.error(node.at, "a comparison is the first argument of where, and stands "
                                 "nowhere else")
            elif isinstance(node, Call):
                self._read_call(node)
            elif isinstance(node, Binary) and node.operator == "/" and self._is_number(node.right):
                self.rules.append(divisor_rule(node.right, node.right.at))
            elif isinstance(node, Binary) and node.operator == "**" and self._is_number(node.right):
                self.rules.append(power_rule(node) if self._is_number(node.left)
                                  else exponent_rule(node.right, node.right.at))

    def _is_number(self, expression: Expression) -> bool:
        """Whether an expression is of numbers and constants alone."""
        return all(isinstance(part, (Number, Negative, Binary)) or (
            isinstance(part, Name) and part.name in self.constants)
            for part in post_order(expression))

    def _terms(self, equation: Equation) -> list[Expression]:
        """Return the terms of a sum that has several targets, none for one target."""
        if len(equation.targets) == 1:
            return []
        terms: list[Expression] = []
        stack, product = [equation.expression], False
        while stack:
            node = stack.pop()
            if isinstance(node, Negative) or (isinstance(node, Binary) and node.operator in "+-"):
                stack.extend(children(node))
                continue
            bias = isinstance(node, Name) and node.name not in self.targets and (
                node.name.startswith("b") and node.name not in self.places)
            if not (isinstance(node, Product) or bias):
                raise self.error(node.at, "an equation of several targets is a sum of products and "
                                 "biases, as in a, z = W x + U h + b; this term is neither")
            product |= isinstance(node, Product)
            terms.append(node)
        if not product:
            raise self.error(equation.at, "an equation of several targets is a sum of products and "
                             "biases, and this one has no product")
        return terms

    def _read_name(self, node: Name, index: int, may_be_bias: bool, blocks: int) -> None:
        name = node.name
        if name == "x":
            self.x_at = self.x_at if self.x_at.line else node.at
        elif name in self.targets:
            if self.targets[name][0] >= index:
                self.states[name] = None
        elif name in self.constants:
            self._use_declared(name, node.at)
        elif name in self.declared and self.declared[name].kind == "vector":
            self._use_declared(name, node.at)
            self.vectors.setdefault(name, []).append(Use(node, blocks))
        elif (may_be_bias and name.startswith("b") and name not in self.places
              and name not in self.weights):
            self.biases.add(node)
            self.vectors.setdefault(name, []).append(Use(node, blocks))
        else:
            raise self.error(node.at, self._unknown(name))

    def _unknown(self, name: str) -> str:
        if name in self.declared or name in self.weights:
            return f"{name!r} is a matrix, write what it multiplies behind it: {name} h"
        if name in self.sizes or name in ("I", "H"):
            return f"{name!r} is a size, and no value of a step"
        known = ["x", *self.targets, *self.constants, *FUNCTIONS, *(
            other for other, declared in self.declared.items() if declared.kind == "vector")]
        hint = nearest(name, known)
        if not hint and name.startswith("b"):
            hint = "; a bias is a term of a sum that has a product"
        return f"{name!r} is not known here" + (hint or f"; declare it: learned {name} = 0, "
                                                f"constant {name} = 1, or assign it")

    def _read_weight(self, node: Product, blocks: int) -> None:
        name = node.weight
        meaning = RESERVED.get(name)
        if name in self.targets:
            meaning = "assigned by an equation"
        elif name in self.constants:
            meaning = "a constant"
        elif name in self.sizes:
            meaning = "a size"
        elif name in self.declared and self.declared[name].kind == "vector":
            meaning = "a learned vector"
        elif name in self.vectors:
            meaning = "a bias elsewhere"
        if meaning:
            raise self.error(node.at, f"{name!r} is {meaning} and no matrix: write * between two "
                             "values")
        if name in self.declared:
            self._use_declared(name, node.at)
        self.weights.setdefault(name, []).append(Use(node, blocks))

    def _use_declared(self, name: str, at: Place) -> None:
        if self.places[name] > at:
            raise self.error(at, f"{name!r} is used here and declared behind, in line "
                             f"{self.places[name].line}")
        self.used.add(name)

    def _read_call(self, node: Call) -> None:
        function = FUNCTIONS[node.function]
        if node.function == "where" and not isinstance(node.arguments[0], Compare):
            raise self.error(node.arguments[0].at, "the first argument of where is a comparison, "
                             "as in where(a > 0, a, b)")
        numbers = node.arguments[function.values:]
        for argument in numbers:
            for part in post_order(argument):
                if self._is_number(part):
                    continue
                raise self.error(part.at, f"this argument of {node.function} is a number or a "
                                 "constant, nothing that is computed in the step")
        if numbers:
            self.rules.append(function_rule(node.function, numbers, node.at))
        if node.function in MASKS:
            self.masks.append(node)

    # ---- what the whole says

    def _find_output(self) -> None:
        if not self.output:
            self.output = "h" if "h" in self.targets else self.equations[-1].targets[0].name
        elif self.output not in self.targets:
            line = next(line for line in self.declarations if line.kind == "output")
            raise self.error(line.at, f"the output {self.output!r} is never assigned"
                             + nearest(self.output, self.targets))

    def _check_states(self) -> None:
        for name, line in self.state_lines.items():
            if name not in self.targets:
                raise self.error(line.at, f"the state {name!r} is never assigned"
                                 + nearest(name, self.targets))
            if name not in self.states:
                raise self.error(line.at, f"{name!r} is never read before its assignment, so it is "
                                 "no state")
            if self.targets[name][1].at < line.at:
                raise self.error(line.at, f"the state {name!r} is declared behind its assignment")
        if not self.states:
            raise DefinitionError.of(
                self.text, self.equations[-1].at, "no name is read before its assignment, so "
                "nothing is remembered from step to step, expected at least one state")
        ordered = [name for name in self.targets if name in self.states]
        for name in ordered:
            if f"d{name}" in self.states:
                raise self.error(self.targets[f"d{name}"][1].at, f"the state 'd{name}' has the "
                                 f"name of the gradient of {name!r}, expected another name")
        self.states = dict.fromkeys([self.output, *ordered] if self.output in self.states
                                    else ordered)

    def _check_uses(self) -> None:
        for name, at in self.places.items():
            if name not in self.used:
                raise self.error(at, f"{name!r} is declared and never used")
        if self.x_at == Place(0, 0):
            raise self.error(self.equations[0].at, "the input x is never used")
        reached, _ = self._reached(lambda node: True)
        for name, (_, target) in self.targets.items():
            if name not in reached:
                raise self.error(target.at, f"{name!r} never influences the output "
                                 f"{self.output!r}: use it, or remove it")
        _, nodes = self._reached(lambda node: not isinstance(node, Compare))
        for uses in (self.weights, self.vectors):
            for name, places in uses.items():
                learned = name not in self.declared or self.declared[name].learned
                if learned and not any(use.node in nodes for use in places):
                    raise self.error(places[0].node.at, f"{name!r} is learned and only decides a "
                                     "comparison, through which no gradient flows")

    def _reached(self, follow: Callable[[Expression], bool]) -> tuple[set[str], set[Expression]]:
        """Return the targets and nodes that influence the output through nodes to follow."""
        reached, nodes, seen = {self.output}, set(), set()
        waiting = [self.output]
        while waiting:
            index, _ = self.targets[waiting.pop()]
            if index in seen:
                continue
            seen.add(index)
            stack = [self.equations[index].expression]
            while stack:
                node = stack.pop()
                nodes.add(node)
                stack.extend(child for child in children(node) if follow(child))
                if isinstance(node, Name) and node.name in self.targets:
                    reached.add(node.name)
                    waiting.append(node.name)
        return reached, nodes


def _number(node: Expression | None) -> float | None:
    """Return the value of a number with or without a sign, None for anything else."""
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Negative) and isinstance(node.operand, Number):
        return -node.operand.value
    return None


def _bias_places(nodes: Iterable[Expression]) -> set[Expression]:
    """Return the terms of all sums that have a product, from nodes in post-order.

    The product may have factors, signs and a normalisation around it, no other function.
    """
    nodes = list(nodes)
    has: dict[Expression, bool] = {}
    for node in nodes:
        through = isinstance(node, (Binary, Negative)) or (
            isinstance(node, Call) and node.function in ("norm", "rms_norm"))
        has[node] = isinstance(node, Product) or (
            through and any(has[child] for child in children(node)))
    terms: dict[Expression, bool] = {}
    for node in reversed(nodes):
        if isinstance(node, Binary) and node.operator in "+-":
            found = terms.get(node, False) or has[node]
            terms |= dict.fromkeys(children(node), found)
        elif isinstance(node, Negative) and node in terms:
            terms[node.operand] = terms[node]
    return {node for node, found in terms.items() if found}
