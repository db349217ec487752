"""Text of a cell to a syntax tree: tokens, and a parser by precedence.

Nothing is evaluated here, and nothing of Python's own parser is used. Sums, products and signs of
any length are read in a loop into trees that lean to the left. Parentheses, arguments and exponents
nest at most `DEEPEST` deep, and a text has at most `LONGEST` characters. What the names mean is
definition.py's matter.
"""

from __future__ import annotations

import keyword
import math
import re
from typing import NamedTuple

from fastrnn.cells.tree import (
    FUNCTIONS,
    KINDS,
    Binary,
    Call,
    Compare,
    Declaration,
    DefinitionError,
    Equation,
    Expression,
    Function,
    Name,
    Negative,
    Number,
    Place,
    Product,
    Target,
    children,
    lines_of,
    nearest,
    post_order,
)

__all__ = [
    "DEEPEST", "FUNCTIONS", "LONGEST", "Binary", "Call", "Compare", "Declaration",
    "DefinitionError", "Equation", "Expression", "Function", "Name", "Negative", "Number", "Place",
    "Product", "Target", "children", "parse", "post_order",
]

LONGEST = 100_000  # characters of a text
DEEPEST = 50  # parentheses, arguments and exponents inside each other
LONGEST_NAME = 80  # characters


# ---- tokens --------------------------------------------------------------------------------------


class Token(NamedTuple):
    """A piece of the text: kind is name, number, operator, line (its end) or end."""

    kind: str
    text: str
    at: Place


_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<operator>\*\*|//|<=|>=|==|!=|[-+*/@<>=(),\[\]])"
    r"|[ \t]+|#.*")
_ALPHABET = re.compile(r"[A-Za-z_0-9.]+")
_WRITTEN = {"\u2212": "-", "\u2013": "-", "\u00d7": "*", "\u00b7": "*", "\u2299": "*",
            "\u2218": "*", "^": "**", "\u2264": "<=", "\u2265": ">=", "\u2260": "!=",
            "\u03c3": "sigmoid"}  # signs of papers and keyboards


def tokens(text: str) -> list[Token]:
    """Return the tokens of a text; the ends of lines inside parentheses are left out."""
    found: list[Token] = []
    depth = 0
    for number, line in enumerate(lines_of(text), 1):
        position = 0
        while position < len(line):
            at = Place(number, position + 1)
            match = _TOKEN.match(line, position)
            if match is None:
                sign = line[position]
                meant = f", write {_WRITTEN[sign]!r}" if sign in _WRITTEN else ""
                raise DefinitionError.of(text, at, f"unexpected character {sign!a}{meant}")
            position, kind = match.end(), match.lastgroup
            if kind is None:
                continue
            if kind == "number" and (glued := _ALPHABET.match(line, position)):
                word = match.group() + glued.group()
                raise DefinitionError.of(text, at, f"{_short(word)} is neither a number nor a name")
            if kind == "operator":
                depth += (match.group() == "(") - (match.group() == ")")
            found.append(Token(kind, match.group(), at))
        if depth == 0 and found and found[-1].kind != "line":
            at = found[-1].at
            found.append(Token("line", "", Place(at.line, at.column + len(found[-1].text))))
    last = found[-1].at if found else Place(1, 1)
    found.append(Token("end", "", last))
    return found


def _short(word: str) -> str:
    return repr(word if len(word) <= 40 else word[:37] + "...")


# ---- the parser ----------------------------------------------------------------------------------

_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
_PRECEDENCE = {**dict.fromkeys(_COMPARISONS, 1), "+": 2, "-": 2, "*": 3, "/": 3}


def parse(text: str) -> tuple[list[Declaration], list[Equation]]:
    """Return the declarations and the equations of a text, each in the text's order.

    Raises
    ------
    DefinitionError
    """
    if len(text) > LONGEST:
        raise DefinitionError(
            f"the definition has {len(text)} characters, expected at most {LONGEST}")
    return _Parser(text).lines()


class _Parser:
    """Reads tokens from left to right; `place` is the index of the next one."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokens(text)
        self.place = 0
        self.depth = 0
        self.open: list[Token] = []  # parentheses around the next token
        self.weights: set[str] = set()  # declared so far

    # -- reading

    @property
    def next(self) -> Token:
        return self.tokens[self.place]

    def take(self) -> Token:
        token = self.tokens[self.place]
        self.place += 1
        return token

    def sees(self, *texts: str) -> bool:
        token = self.tokens[self.place]
        return token.kind == "operator" and token.text in texts

    def error(self, at: Place, sentence: str) -> DefinitionError:
        return DefinitionError.of(self.text, at, sentence)

    def unexpected(self, expected: str) -> DefinitionError:
        token = self.next
        if self.open and (token.kind == "end" or token.text == "="):
            return self.error(self.open[-1].at, "this parenthesis is not closed")
        if self.at_next_equation():
            return self.error(self.open[-1].at, "this parenthesis is not closed before the next "
                              "equation")
        if token.kind == "line" and not self.open and expected == "a value":
            expected = "a value; a line goes on inside parentheses only"
        came = {"line": "the end of the line", "end": "the end of the text"}.get(token.kind)
        return self.error(token.at, f"{came or _short(token.text)} came, expected {expected}")

    def at_next_equation(self) -> bool:
        """Whether an open parenthesis meets what looks like the beginning of another equation."""
        if not self.open or self.next.kind != "name":
            return False
        first = self.next.at.line > self.tokens[self.place - 1].at.line
        return first and self.tokens[self.place + 1].text in ("=", ",", "[")

    def expect(self, text: str, why: str = "") -> Token:
        if not self.sees(text):
            raise self.unexpected(why or repr(text))
        return self.take()

    def name(self, expected: str) -> Token:
        if self.next.kind != "name":
            raise self.unexpected(expected)
        token = self.take()
        if keyword.iskeyword(token.text):
            hint = {"if": "; write where(condition, a, b)", "lambda": "; write lambda_"}
            raise self.error(token.at, f"{token.text!r} is a word of Python and cannot be a name"
                             + hint.get(token.text, ""))
        if len(token.text) > LONGEST_NAME:
            raise self.error(token.at, f"the name {_short(token.text)} has {len(token.text)} "
                             f"characters, expected at most {LONGEST_NAME}")
        if token.text.startswith("_"):
            raise self.error(token.at, f"the name {_short(token.text)} begins with an underscore, "
                             "expected a letter")
        if token.text.lower() in ("nan", "inf", "infinity"):
            raise self.error(token.at, f"{token.text!r} is not a finite number, and cannot be a "
                             "name")
        return token

    # -- lines

    def lines(self) -> tuple[list[Declaration], list[Equation]]:
        declarations: list[Declaration] = []
        equations: list[Equation] = []
        while self.next.kind != "end":
            first = self.name("a declaration or an equation")
            if self.next.kind == "name":
                declarations.append(self.declaration(first))
            else:
                equations.append(self.equation(first))
            if self.next.kind != "line":
                raise self.unexpected("an operator or the end of the line")
            self.take()
        if not equations:
            raise DefinitionError("the definition has no equation, expected at least one: "
                                  "target = expression")
        return declarations, equations

    def size(self) -> str | None:
        """Read `[P]`, if it comes."""
        if not self.sees("["):
            return None
        self.take()
        name = self.name("the name of a size")
        self.expect("]")
        return name.text

    def declaration(self, kind: Token) -> Declaration:
        if kind.text not in KINDS:
            raise self.error(kind.at, f"{_short(kind.text)} declares nothing, and an equation has "
                             f"'=' behind its target{nearest(kind.text, KINDS)}")
        name = self.name("a name")
        size = self.size()
        if size is not None and kind.text not in ("learned", "state"):
            raise self.error(name.at, f"a {kind.text} has no width, write: {kind.text} {name.text}")
        value: Expression | None = None
        if self.sees("="):
            if kind.text in ("state", "output"):
                raise self.error(self.next.at, f"a declaration of {kind.text} has no value")
            self.take()
            value = self.value(kind.text)
        elif kind.text not in ("state", "output", "weight"):
            raise self.unexpected("'=' and a value")
        if kind.text in ("weight", "fixed"):
            self.weights.add(name.text)
        return Declaration(kind.text, name.text, size, value, name.at)

    def value(self, kind: str) -> Expression:
        """Read the right-hand side of a declaration."""
        found = self.number_or_name()
        if kind == "size" and self.sees("*", "//"):
            operator = self.take()
            return Binary(operator.text, found, self.number_or_name(), operator.at)
        if not (isinstance(found, Name) and self.sees("(")):
            return found
        self.open.append(self.take())
        arguments: list[Expression] = []
        while not self.sees(")"):
            arguments.append(self.number_or_name())
            if not self.sees(")"):
                self.expect(",", "',' or ')'")
        self.take()
        self.open.pop()
        return Call(found.name, tuple(arguments), found.at)

    def number_or_name(self) -> Expression:
        sign = self.take() if self.sees("-") else None
        if self.next.kind == "number":
            found: Expression = self.number()
        elif sign:
            raise self.unexpected("a number")
        else:
            name = self.name("a number or a name")
            found = Name(name.text, name.at)
        return Negative(found, sign.at) if sign else found

    def number(self) -> Number:
        token = self.take()
        value = float(token.text)
        if not math.isfinite(value):
            raise self.error(token.at, f"{_short(token.text)} is not a finite number")
        return Number(value, token.at)

    def equation(self, first: Token) -> Equation:
        targets = [Target(first.text, self.size(), first.at)]
        while self.sees(","):
            self.take()
            name = self.name("the next target")
            targets.append(Target(name.text, self.size(), name.at))
        self.expect("=", "'=' behind the target")
        return Equation(tuple(targets), self.expression(), first.at)

    # -- expressions

    def deeper(self, at: Place) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.error(at, f"the expression nests deeper than {DEEPEST} here; assign a part "
                             "of it to a name")

    def expression(self, least: int = 1) -> Expression:
        """Read operands and the operators between them that bind at least this strongly."""
        left = self.operand()
        while self.next.kind == "operator":
            operator = self.next.text
            strength = _PRECEDENCE.get(operator, 0)
            if strength < least:
                break
            at = self.take().at
            right = self.expression(strength + 1) if strength < 3 else self.operand()
            if strength == 1:
                left = Compare(operator, left, right, at)
                if self.sees(*_COMPARISONS):
                    raise self.error(self.next.at, "a comparison compares two values, not three")
            else:
                left = Binary(operator, left, right, at)
        return left

    def operand(self) -> Expression:
        """Read signs, one operand, and its exponent, which binds stronger than the signs."""
        signs = []
        while self.sees("-"):
            signs.append(self.take().at)
        found = self.atom()
        if self.sees("**"):
            at = self.take().at
            self.deeper(at)
            found = Binary("**", found, self.operand(), at)
            self.depth -= 1
        for at in reversed(signs):
            found = Negative(found, at)
        return found

    def atom(self) -> Expression:
        token = self.next
        if token.kind == "number":
            found: Expression = self.number()
        elif self.sees("("):
            found = self.parenthesis()
        else:
            name = self.name("a value")
            if name.text in FUNCTIONS:
                found = self.call(name)
            elif self.sees("@"):
                self.take()
                return self.product(name)
            elif self.at_next_equation():
                raise self.unexpected("")
            elif self.next.kind == "name" or self.sees("("):
                if self.sees("("):
                    self.refuse_unknown_function(name)
                return self.product(name)
            else:
                found = Name(name.text, name.at)
        if self.sees("["):
            raise self.error(self.next.at, "a width stands behind a target or a declared name only")
        self.refuse_neighbour()
        return found

    def refuse_neighbour(self) -> None:
        """Refuse an operand directly behind an operand."""
        if self.sees("@"):
            raise self.error(self.next.at, "the left side of '@' is the name of a matrix")
        if self.at_next_equation():
            raise self.unexpected("")
        if self.sees("(") or self.next.kind in ("name", "number"):
            raise self.error(self.next.at, f"{_short(self.next.text)} came directly behind a value,"
                             " expected an operator: write * between two values")

    def parenthesis(self) -> Expression:
        token = self.take()
        self.deeper(token.at)
        self.open.append(token)
        found = self.expression()
        self.expect(")", "an operator or ')'")
        self.open.pop()
        self.depth -= 1
        return found

    def product(self, weight: Token) -> Expression:
        """Read the operand of a matrix: a name, a function or a parenthesis."""
        token = self.next
        if self.sees("("):
            operand = self.parenthesis()
        elif token.kind == "name":
            name = self.name("a value")
            operand = self.call(name) if name.text in FUNCTIONS else Name(name.text, name.at)
        else:
            raise self.unexpected("a name or a parenthesis behind a matrix")
        if self.at_next_equation():
            raise self.unexpected("")
        if self.next.kind == "name" or self.sees("(", "@"):
            inner = f" ({token.text} ...)" if token.kind == "name" else ""
            raise self.error(self.next.at, f"{_short(self.next.text)} came behind a product: write "
                             f"* between two values, and two matrices as {weight.text}"
                             f"{inner or ' (V (...))'}")
        self.refuse_neighbour()
        return Product(weight.text, operand, weight.at)

    def refuse_unknown_function(self, name: Token) -> None:
        """Refuse `sigmod(a)` and `softmax(a)`: no matrix was meant, unless it is declared."""
        if name.text in self.weights:
            return
        first = name.text[0]
        near = nearest(name.text, [f for f in FUNCTIONS if f[0] == first.lower()])
        glued = self.next.at == (name.at.line, name.at.column + len(name.text))
        if near or (glued and first.islower()):
            raise self.error(name.at, f"{_short(name.text)} is no function, and a matrix of this "
                             f"name needs: weight {name.text}{near}")

    def call(self, name: Token) -> Expression:
        function = FUNCTIONS[name.text]
        if not self.sees("("):
            raise self.error(name.at, f"{name.text!r} is a function, expected its arguments in "
                             "parentheses behind it")
        token = self.take()
        self.deeper(token.at)
        self.open.append(token)
        arguments: list[Expression] = []
        while not (self.sees(")") and not arguments):
            arguments.append(self.expression())
            if self.sees("="):
                raise self.error(self.next.at, "arguments have no names here, write their values "
                                 "in order")
            if not self.sees(","):
                break
            self.take()
        self.expect(")", "an operator, ',' or ')'")
        self.open.pop()
        self.depth -= 1
        given, least, most = len(arguments), function.least, function.most
        if not least <= given <= most:
            count = f"{least}" if least == most else f"{least} to {most}"
            raise self.error(name.at, f"{name.text} has {given} argument{'s' * (given != 1)}, "
                             f"expected {count}")
        arguments += [Number(value, name.at) for value in function.defaults[given - least:]]
        return Call(name.text, tuple(arguments), name.at)
