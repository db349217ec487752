"""The numbers of a definition: arithmetic of numbers and constants, and the ranges they must keep.

The same rules are asked twice: with the constants' defaults when a definition is read, and with the
values a layer is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastrnn.cells.records import Argument
from fastrnn.cells.tree import Binary, Expression, Name, Negative, Number, Place, post_order

__all__ = ["Rule", "argument_rule", "divisor_rule", "exponent_rule", "fold", "function_rule",
           "power_rule", "value_of"]

_OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
    "/": lambda a, b: a / b, "**": lambda a, b: math.pow(a, b),
}


def fold(expression: Expression, constants: Mapping[str, float]) -> float:
    """Return the value of an expression of numbers and constants; nan if it has none."""
    stack: list[float] = []
    for node in post_order(expression):
        if isinstance(node, Number):
            stack.append(node.value)
        elif isinstance(node, Name):
            stack.append(constants[node.name])
        elif isinstance(node, Negative):
            stack.append(-stack.pop())
        elif isinstance(node, Binary):
            right, left = stack.pop(), stack.pop()
            try:
                stack.append(_OPERATORS[node.operator](left, right))
            except (ArithmeticError, ValueError):
                stack.append(math.nan)
        else:
            raise TypeError(f"{type(node).__name__} is no number")
    return stack.pop()


def value_of(argument: Argument | Expression, constants: Mapping[str, float]) -> float:
    """Return the number of a declaration's or a function's argument."""
    if isinstance(argument, str):
        return constants[argument]
    return float(argument) if isinstance(argument, (int, float)) else fold(argument, constants)


@dataclass(frozen=True, slots=True)
class Rule:
    """What numbers must satisfy: `complaint` formats them into a sentence."""

    operands: tuple[Argument | Expression, ...]
    holds: Callable[..., bool]
    complaint: str
    at: Place

    def broken(self, constants: Mapping[str, float]) -> str | None:
        """Return the sentence about numbers that break the rule, or None."""
        values = [value_of(operand, constants) for operand in self.operands]
        if not all(map(math.isfinite, values)):
            return self.complaint.format(*values).partition(", expected")[0] + (
                ", expected finite numbers")
        return None if self.holds(*values) else self.complaint.format(*values)


def _always(*values: float) -> bool:
    return True


_FUNCTION_RULES: dict[str, tuple[Callable[..., bool], str]] = {
    **dict.fromkeys(("dropout", "sequence_dropout"), (
        lambda p: 0 <= p < 1, "the probability is {:g}, expected 0 <= p < 1")),
    **dict.fromkeys(("step_mask", "sequence_mask"), (
        lambda p: 0 <= p <= 1, "the probability is {:g}, expected 0 <= p <= 1")),
    **dict.fromkeys(("norm", "rms_norm"), (
        lambda eps: eps >= 0, "eps is {:g}, expected eps >= 0")),
    "clip": (lambda low, high: low <= high,
             "clip's bounds are {:g} and {:g}, expected low <= high"),
}
_ARGUMENT_RULES: dict[tuple[str, int], tuple[Callable[..., bool], str]] = {
    ("uniform", 2): (lambda low, high: low <= high,
                     "uniform's bounds are {:g} and {:g}, expected low <= high"),
    ("normal", 1): (lambda std: std >= 0, "normal's std is {:g}, expected std >= 0"),
    ("normal", 2): (lambda mean, std: std >= 0,
                    "normal's mean and std are {:g} and {:g}, expected std >= 0"),
    ("sparse", 2): (lambda density, radius: 0 < density <= 1 and radius >= 0,
                    "sparse's density and radius are {:g} and {:g}, expected 0 < density <= 1 "
                    "and radius >= 0"),
    ("dropconnect", 1): (lambda rate: 0 <= rate < 1,
                         "dropconnect's rate is {:g}, expected 0 <= rate < 1"),
}


def function_rule(function: str, numbers: tuple[Expression, ...], at: Place) -> Rule:
    """Return the rule of a function's numbers."""
    holds, complaint = _FUNCTION_RULES.get(function, (
        _always, f"{function}'s numbers are " + " and ".join(["{:g}"] * len(numbers))))
    return Rule(numbers, holds, complaint, at)


def divisor_rule(divisor: Expression, at: Place) -> Rule:
    """Return the rule of what is divided by, if it is of numbers and constants alone."""
    return Rule((divisor,), lambda value: value != 0,
                "the divisor is {:g}, expected another number", at)


def exponent_rule(exponent: Expression, at: Place) -> Rule:
    """Return the rule of an exponent, if it is of numbers and constants alone."""
    return Rule((exponent,), _always, "the exponent is {:g}", at)


def power_rule(power: Binary) -> Rule:
    """Return the rule of a power whose base and exponent are of numbers and constants alone."""
    return Rule((power.left, power.right),
                lambda base, exponent: exponent >= 0 if base == 0 else (
                    base > 0 or exponent == int(exponent)),
                "{:g} ** {:g} is no number, expected another base or exponent", power.at)


def argument_rule(kind: str, arguments: tuple[Argument, ...], at: Place) -> Rule:
    """Return the rule of the arguments of an initial value or a kind of weight."""
    holds, complaint = _ARGUMENT_RULES.get((kind, len(arguments)), (
        _always, f"{kind}'s numbers are " + " and ".join(["{:g}"] * len(arguments))))
    return Rule(arguments, holds, complaint, at)
