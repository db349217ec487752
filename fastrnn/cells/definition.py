"""A cell's definition: what its equations say, with the width of every value.

Letters: I input, H hidden, P any further size that a definition declares.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue
from fastrnn.cells.names import Declared, Names, Use
from fastrnn.cells.numbers import fold
from fastrnn.cells.records import Initial, Size, State, Vector, Weight
from fastrnn.cells.table import CELLS
from fastrnn.cells.tree import (
    Call,
    DefinitionError,
    Equation,
    Expression,
    Place,
    Product,
    nearest,
)
from fastrnn.cells.widths import Widths

__all__ = ["Definition", "Initial", "Size", "State", "Vector", "Weight", "cell", "fold"]


class Definition:
    """A recurrent cell that equations define; `fastrnn.cell` makes one. It never changes.

    Attributes
    ----------
    text, name, paper : str
    sizes : mapping of str to Size
        Further sizes with their defaults, in the text's order; not I and H.
    constants : mapping of str to float
        With their defaults.
    weights : mapping of str to Weight
        In the order of their first use.
    vectors : mapping of str to Vector
        Biases and declared vectors, in the order of their first use.
    states : tuple of State
        The output first if it is a state, the others in the order of their equations.
    output, output_width : str
    equations : tuple of Equation
    widths : mapping of Expression to str
        Of every node of the equations, "1" for numbers, constants and reductions. A target whose
        value has width 1 is 1 wide too, unless it is a state, the output, or given a width.
    target_widths : mapping of str to str
        Of every target.
    masks : tuple of Call
        The calls of mask functions in the order of the text.
    equal_sizes : tuple of (str, str)
        (("I", "H"),) if a value of the input's width meets one of the hidden size; else empty.
    """

    text: str
    name: str
    paper: str
    sizes: Mapping[str, Size]
    constants: Mapping[str, float]
    weights: Mapping[str, Weight]
    vectors: Mapping[str, Vector]
    states: tuple[State, ...]
    output: str
    output_width: str
    equations: tuple[Equation, ...]
    widths: Mapping[Expression, str]
    target_widths: Mapping[str, str]
    masks: tuple[Call, ...]
    equal_sizes: tuple[tuple[str, str], ...]

    __slots__ = (
        "__weakref__", "_equal", "_rules", "constants", "equal_sizes", "equations", "masks", "name",
        "output", "output_width", "paper", "sizes", "states", "target_widths", "text", "vectors",
        "weights", "widths",
    )

    def __init__(self, text: str, *, name: str = "Cell", paper: str = "") -> None:
        for what, value in (("text", text), ("name", name), ("paper", paper)):
            if not isinstance(value, str):
                raise TypeError(f"cell: {what} is {value!r:.60}, expected a string")
        names = Names(text)
        widths = Widths(names)
        held: dict[str, Any] = {
            "text": text, "name": name, "paper": paper,
            "sizes": MappingProxyType(names.sizes),
            "constants": MappingProxyType(names.constants),
            "weights": MappingProxyType({
                weight: _weight(names, widths, weight, uses)
                for weight, uses in names.weights.items()}),
            "vectors": MappingProxyType({
                vector: _vector(names, widths, vector, uses)
                for vector, uses in names.vectors.items()}),
            "states": tuple(State(state, widths.named_width(state)) for state in names.states),
            "output": names.output, "output_width": widths.named_width(names.output),
            "equations": tuple(names.equations),
            "widths": MappingProxyType(widths.of),
            "target_widths": MappingProxyType({
                target: widths.named_width(target) for target in names.targets}),
            "masks": tuple(names.masks),
            "equal_sizes": (("I", "H"),) if widths.equal else (),
            "_equal": widths.equal,
            "_rules": tuple(names.rules),
        }
        for attribute, value in held.items():
            object.__setattr__(self, attribute, value)
        for rule in self._rules:
            broken = rule.broken(self.constants)
            if broken:
                raise names.error(rule.at, broken)

    _equal: Place | None
    _rules: tuple[Any, ...]

    def __setattr__(self, attribute: str, value: Any) -> NoReturn:
        raise AttributeError(f"a Definition never changes, {attribute!r} cannot be set")

    def __delattr__(self, attribute: str) -> NoReturn:
        raise AttributeError(f"a Definition never changes, {attribute!r} cannot be deleted")

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.text, self.name, self.paper)

    def __eq__(self, other: object) -> bool:
        """Whether the other has the same text and name."""
        if not isinstance(other, Definition):
            return NotImplemented
        return (self.text, self.name) == (other.text, other.name)

    def __hash__(self) -> int:
        return hash((self.text, self.name))

    def __copy__(self) -> Definition:
        return self

    def __deepcopy__(self, memo: Any) -> Definition:
        return self

    def __repr__(self) -> str:
        return f"<Definition {self.name!r}: {', '.join(state.name for state in self.states)}>"

    def resolve(self, I: int, H: int, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
        """Return all sizes as numbers: I, H and the further ones.

        Parameters
        ----------
        I, H : int
        sizes : mapping, optional
            Further sizes that differ from their defaults.

        Raises
        ------
        TypeError, ValueError
            If a size is unknown, not a whole number from 1 on, does not equal one that it meets
            element-wise, or does not go into blocks.
        """
        given = dict(sizes or {})
        unknown = [name for name in given if name not in self.sizes]
        if unknown:
            known = ", ".join(self.sizes) or "none"
            raise RefusedValue(f"{unknown[0]!r} is no further size of {self.name}, expected "
                               f"one of: {known}{nearest(str(unknown[0]), self.sizes)}")
        found = {"I": _whole("I", I), "H": _whole("H", H)}
        for name, size in self.sizes.items():
            if name in given:
                found[name] = _whole(name, given[name])
                continue
            found[name] = size.default(found)
            if found[name] < 1:
                raise RefusedValue(f"the default of {name} is {size.base} // {size.over}, which "
                                   f"is 0 for {size.base} = {found[size.base]}")
        if self._equal is not None and found["I"] != found["H"]:
            raise RefusedValue(f"I is {found['I']} and H is {found['H']}, expected equal numbers: "
                             f"values of both widths meet in line {self._equal.line}, column "
                             f"{self._equal.column} of {self.name}")
        for weight in self.weights.values():
            if weight.kind == "blocks":
                self._check_blocks(weight, found)
        return found

    def _check_blocks(self, weight: Weight, sizes: Mapping[str, int]) -> None:
        count = block_count(weight, sizes)
        for size in (weight.rows, weight.columns):
            if sizes[size] % count:
                raise RefusedValue(f"{size} is {sizes[size]}, expected a multiple of {count}: "
                                 f"{weight.name} has as many blocks in {self.name}")

    def numbers(self, constants: Mapping[str, float] | None = None) -> dict[str, float]:
        """Return the constants as numbers: the defaults, or what is given instead.

        Raises
        ------
        TypeError, ValueError
            If one is unknown, not a finite number, or outside the range of its use.
        """
        found = dict(self.constants)
        for name, value in dict(constants or {}).items():
            if name not in found:
                known = ", ".join(found) or "none"
                raise RefusedValue(f"{name!r} is no constant of {self.name}, expected one of: "
                                   f"{known}{nearest(str(name), found)}")
            try:
                number = float(value)
            except (TypeError, ValueError) as error:
                raise RefusedType(f"{name} is {_checks.show(value)}, expected a number") from error
            except OverflowError:  # a whole number that no float holds
                number = math.inf
            if type(value).__name__ in ("bool", "bool_"):
                raise RefusedType(f"{name} is {value}, expected a number")
            if isinstance(value, (str, bytes)) or not math.isfinite(number):
                raise RefusedValue(f"{name} is {_checks.show(value)}, expected a finite number")
            found[name] = number
        if constants:
            for rule in self._rules:
                broken = rule.broken(found)
                if broken:
                    raise RefusedValue(f"{broken} (line {rule.at.line} of {self.name})")
        return found


def block_count(weight: Weight, sizes: Mapping[str, int]) -> int:
    """Return how many diagonal blocks a weight of the kind "blocks" has."""
    count = weight.arguments[0]
    return sizes[count] if isinstance(count, str) else int(count)


def _whole(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise RefusedType(f"{name} is {value!r:.60}, expected a whole number") from None
    if isinstance(value, bool) or number < 1:
        raise RefusedValue(f"{name} is {value!r:.60}, expected a whole number from 1 on")
    return number


def _weight(names: Names, widths: Widths, name: str, uses: list[Use]) -> Weight:
    first = uses[0].node
    assert isinstance(first, Product)
    declared = names.declared.get(name) or Declared("plain", (), Initial("uniform"), None, True,
                                                    first.at)
    rows, columns = widths.of[first], widths.of[first.operand]
    if rows != columns and (declared.kind == "antisymmetric" or declared.initial.kind == "sparse"):
        kind = declared.initial.kind if declared.kind == "plain" else declared.kind
        raise names.error(declared.at, f"{name!r} is {kind} and must be square; it has {rows} rows "
                          f"and {columns} columns in line {first.at.line}")
    return Weight(name, uses[0].blocks, rows, columns, declared.kind, declared.arguments,
                  declared.learned, declared.initial, declared.at)


def _vector(names: Names, widths: Widths, name: str, uses: list[Use]) -> Vector:
    first = uses[0]
    for use in uses:
        if use.blocks != first.blocks:
            raise names.error(use.node.at, f"the bias {name!r} has {use.blocks} blocks here and "
                              f"{first.blocks} in line {first.node.at.line}")
    declared = names.declared.get(name)
    initial, at = ((declared.initial, declared.at) if declared
                   else (Initial("uniform"), first.node.at))
    return Vector(name, first.blocks, widths.named_width(name), initial, declared is None, at)


def _again(text: str, name: str, paper: str) -> Definition:
    return Definition(text, name=name, paper=paper)


def cell(text: str, *, name: str = "Cell", paper: str = "") -> Definition:
    """Return the recurrent cell that equations define.

    Parameters
    ----------
    text : str
        Declarations and equations of one step; docs describe the language.
    name : str
        Shown by layers of this cell; not "lstm", "gru" and other names of fastrnn.cells.CELLS.
    paper : str
        Where the cell comes from.

    Returns
    -------
    Definition

    Raises
    ------
    DefinitionError
        With the line of the text and a caret under what is wrong.
    TypeError, ValueError
        If the text or a name is no string, or the name is taken.

    Examples
    --------
    >>> LiGRU = cell('''
    ...     a, z = W x + U h + b
    ...     h = sigmoid(z) * h + (1 - sigmoid(z)) * relu(norm(a))
    ... ''', name="LiGRU")
    >>> LiGRU.states
    (State(name='h', width='H'),)
    """
    if isinstance(text, str) and not text.strip():
        raise DefinitionError("the definition is empty, expected at least one equation: "
                              "target = expression")
    if isinstance(name, str) and name in CELLS:
        raise ValueError(f"cell: name is {name!r}, expected another one than those of cells with "
                         f"kernels of their own, {', '.join(CELLS)}")
    return Definition(text, name=name, paper=paper)
