"""The syntax tree of a cell's definition, its functions, and the error that shows a place.

A tree has no bound on its depth, because sums and products lean to the left: whoever walks one uses
`post_order`, which does not recurse. Nodes are compared and hashed by identity, each occurrence in
the text is a node of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Union

__all__ = [
    "FUNCTIONS", "KINDS", "MASKS", "REDUCTIONS", "RESERVED", "Binary", "Call", "Compare",
    "Declaration", "DefinitionError", "Equation", "Expression", "Function", "Name", "Negative",
    "Number", "Place", "Product", "Target", "children", "lines_of", "nearest", "post_order",
]

SHOWN = 88  # characters of a line that an error shows


class Place(NamedTuple):
    """A place in the text of a definition, from 1 on."""

    line: int
    column: int


class DefinitionError(ValueError):
    """What is wrong with a definition: one sentence, the line of the text, a caret under the place.

    Attributes
    ----------
    at : Place or None
        None if the text as a whole is wrong.
    """

    def __init__(self, message: str, at: Place | None = None) -> None:
        super().__init__(message, at)
        self.at = at

    def __str__(self) -> str:
        return str(self.args[0])

    @classmethod
    def of(cls, text: str, at: Place, sentence: str) -> DefinitionError:
        """Return the error of a sentence about a place in the text."""
        line = lines_of(text)[at.line - 1].expandtabs(1)
        column = at.column - 1
        first = max(0, column - SHOWN // 2) if len(line) > SHOWN else 0
        shown = "".join(c if c.isprintable() else "?" for c in line[first:first + SHOWN]).rstrip()
        return cls(f"{sentence} (line {at.line}, column {at.column})\n"
                   f"    {shown}\n    {' ' * (column - first)}^", at)


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, whichever system wrote it; columns are those of the text."""
    return text.replace("\r\n", " \n").replace("\r", "\n").split("\n")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that suggests the known name nearest to `name`, if any is."""
    import difflib  # takes a millisecond, and only errors need it

    by_lower = {other.lower(): other for other in sorted(known, reverse=True)}
    found = difflib.get_close_matches(name.lower(), by_lower, 1, 0.7)
    return f"; did you mean {by_lower[found[0]]!r}?" if found else ""


# ---- the tree ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Number:
    """A number without a sign."""

    value: float
    at: Place


@dataclass(frozen=True, slots=True, eq=False)
class Name:
    """A name that stands for a value."""

    name: str
    at: Place


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Negative:
    """Minus an operand."""

    operand: Expression
    at: Place


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Binary:
    """Two operands and + - * / or **; `at` is the operator's place."""

    operator: str
    left: Expression
    right: Expression
    at: Place


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Product:
    """A learned matrix times a vector."""

    weight: str
    operand: Expression
    at: Place


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Call:
    """A function of FUNCTIONS with all its arguments: those left out have their defaults."""

    function: str
    arguments: tuple[Expression, ...]
    at: Place


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Compare:
    """A comparison, the first argument of `where`; `at` is the operator's place."""

    operator: str
    left: Expression
    right: Expression
    at: Place


Expression = Union[Number, Name, Negative, Binary, Product, Call, Compare]  # noqa: UP007


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What an equation assigns, with the name of its width if the text gives one."""

    name: str
    size: str | None
    at: Place


@dataclass(frozen=True, slots=True, eq=False)
class Equation:
    """Targets and the expression that gives them; several targets are its row blocks."""

    targets: tuple[Target, ...]
    expression: Expression
    at: Place


@dataclass(frozen=True, slots=True, eq=False)
class Declaration:
    """A line that declares a name.

    `value` is the right-hand side: a Number, Name, Negative, or Call of an initial value; of a size
    also a Binary with * or //; None if the line has no right-hand side.
    """

    kind: str
    name: str
    size: str | None
    value: Expression | None
    at: Place


def children(node: Expression) -> tuple[Expression, ...]:
    """Return the operands of a node from left to right."""
    if isinstance(node, (Binary, Compare)):
        return node.left, node.right
    if isinstance(node, Call):
        return node.arguments
    if isinstance(node, (Negative, Product)):
        return (node.operand,)
    return ()


def post_order(expression: Expression) -> Iterator[Expression]:
    """Return the nodes of an expression, operands before what is computed from them.

    Operands come from left to right, which is the order of the text.
    """
    turned, stack = [], [expression]  # root, right, left: the reverse of what is wanted
    while stack:
        node = stack.pop()
        turned.append(node)
        stack.extend(children(node))
    return reversed(turned)


# ---- functions -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the language.

    Attributes
    ----------
    name : str
    least, most : int
        Number of arguments.
    defaults : tuple of float
        Of the last `most - least` arguments.
    values : int
        How many arguments, the first ones, are values of any kind; the others are numbers.
    """

    name: str
    least: int
    most: int
    defaults: tuple[float, ...] = ()
    values: int = 1


FUNCTIONS: dict[str, Function] = {f.name: f for f in (
    *(Function(name, 1, 1) for name in (
        "sigmoid", "tanh", "relu", "exp", "log", "sqrt", "abs", "softplus", "silu", "gelu",
        "softsign", "mean", "sum")),
    Function("leaky_relu", 1, 2, (0.01,)), Function("elu", 1, 2, (1.0,)),
    Function("hard_sigmoid", 1, 3, (0.2, 0.5)), Function("affine", 3, 3),
    Function("scaled_tanh", 3, 3), Function("thresholded_relu", 1, 2, (1.0,)),
    Function("clip", 3, 3), Function("norm", 1, 2, (1e-5,)), Function("rms_norm", 1, 2, (1e-5,)),
    Function("min", 2, 2, values=2), Function("max", 2, 2, values=2),
    Function("where", 3, 3, values=3),
    *(Function(name, 1, 1, values=0) for name in (
        "dropout", "sequence_dropout", "step_mask", "sequence_mask")),
)}
MASKS = ("dropout", "sequence_dropout", "step_mask", "sequence_mask")
REDUCTIONS = ("mean", "sum")
RESERVED = {"x": "the input", "I": "the input's size", "H": "the hidden size",
            **dict.fromkeys(FUNCTIONS, "a function")}
KINDS = ("size", "constant", "learned", "weight", "fixed", "state", "output")
