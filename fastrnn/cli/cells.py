"""The command `fastrnn cells`: the zoo, one of its cells, or a file with equations.

Letters: I input, H hidden.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from fastrnn.cells import definitions
from fastrnn.cells.definition import Definition, cell
from fastrnn.cells.grammar import LONGEST
from fastrnn.cells.instance import Instance, Plan
from fastrnn.cells.records import Initial, Size, Vector, Weight
from fastrnn.cells.tree import DefinitionError, nearest

__all__ = ["count", "described", "equations", "options", "run"]

SIZE = 128  # I and H where numbers are shown
PAPER = 64  # characters of a paper in a table
WRONG = 2  # exit status for a file whose equations are wrong
_MASKS = {
    "dropout": "{} of {} units, drawn each step", "step_mask": "{} of {} units, drawn each step",
    "sequence_dropout": "{} of {} units, drawn once a sequence",
    "sequence_mask": "{} of {} units, drawn once a sequence"}


def run(args: argparse.Namespace) -> int:
    """Print what was asked for, and return the exit status."""
    if args.file is not None:
        if args.name is not None:
            raise ValueError(f"{args.name!r} and --file are given, expected one of them")
        return _check(args.file)
    zoo = definitions()
    if args.name is None:
        print(_table(zoo))
    else:
        print(described(_named(args.name, zoo)))
    return 0


def _named(name: str, zoo: Mapping[str, Definition]) -> Definition:
    """Return a cell of the zoo; capital letters do not matter."""
    by_lower = {known.lower(): known for known in zoo}
    if name.upper() in ("RNN", "LSTM", "GRU"):
        raise ValueError(f"{name!r} is the layer fastrnn.{name.upper()}, whose kernels are written "
                         "by hand, expected a cell that is made from equations")
    if name.lower() not in by_lower:
        hint = nearest(name, zoo) or "; `fastrnn cells` lists those it has"
        raise ValueError(f"the zoo has no cell {name!r}{hint}")
    return zoo[by_lower[name.lower()]]


def _check(path: Path) -> int:
    """Print what a file's equations say, or what is wrong with them."""
    with path.open("rb") as file:
        raw = file.read(4 * LONGEST + 1)  # a character has at most 4 bytes
    if len(raw) > 4 * LONGEST:
        raise ValueError(f"{str(path)!r} has more than {4 * LONGEST:,} bytes, expected equations")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{str(path)!r} is not UTF-8 text, expected equations") from None
    try:
        print(described(cell(text, name=path.stem)))
    except DefinitionError as error:
        print(f"fastrnn cells: {path}: {error}", file=sys.stderr)
        return WRONG
    return 0


# ---- what is printed -----------------------------------------------------------------------------


def _table(zoo: Mapping[str, Definition]) -> str:
    """Return a line for each cell of the zoo."""
    rows = [("name", "states", "parameters", "paper")]
    for name, definition in zoo.items():
        rows.append((name, ", ".join(state.name for state in definition.states),
                     f"{count(definition):,}",
                     textwrap.shorten(definition.paper, PAPER, placeholder=" ...")))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{name:{widths[0]}}  {states:{widths[1]}}  {number:>{widths[2]}}  {paper}".rstrip()
             for name, states, number, paper in rows]
    return "\n".join([*lines, "", f"Parameters are those of one layer with I = H = {SIZE}. "
                      "`fastrnn cells NAME` shows a cell."])


def equations(definition: Definition) -> str:
    """Return a definition's text without what indents all of it."""
    lines = [line.rstrip() for line in textwrap.dedent(definition.text).splitlines()]
    return textwrap.dedent("\n".join(lines)).strip("\n")


def count(definition: Definition, I: int = SIZE, H: int = SIZE, learned: bool = True) -> int:
    """Return how many numbers of a layer are learned, or are not."""
    instance = Instance(definition)
    shapes = instance.parameters(I, H, bias=True)
    return sum(math.prod(shape) for name, shape in shapes.items()
               if (name not in instance.fixed) == learned)


def options(definition: Definition) -> list[str]:
    """Return the sizes and constants that a layer takes, with their defaults."""
    return [*(f"{name} = {_default(size)}" for name, size in definition.sizes.items()),
            *(f"{name} = {value:g}" for name, value in definition.constants.items())]


def described(definition: Definition) -> str:
    """Return what a definition says, in words."""
    of = definition
    facts: list[tuple[str, Iterable[str]]] = [
        ("states", (f"{state.name} ({state.width})" for state in of.states)),
        ("output", [f"{of.output} ({of.output_width})"]),
        ("sizes", [*(f"{name} = {_default(size)}" for name, size in of.sizes.items()),
                   *(f"{a} = {b}, as values of both widths meet" for a, b in of.equal_sizes)]),
        ("constants", (f"{name} = {value:g}" for name, value in of.constants.items())),
        ("weights", (f"{name} ({_rows(w.blocks, w.rows)}, {w.columns}){_kind(w)}"
                     for name, w in of.weights.items())),
        ("vectors", (f"{name} ({_rows(v.blocks, v.width)}){_drawn(v)}"
                     for name, v in of.vectors.items())),
        ("masks", (_MASKS[mask.function].format(mask.function, of.widths[mask])
                   for mask in of.masks)),
        ("parameters", _parameters(of)),
    ]
    lines = [f"{of.name}: {of.paper}" if of.paper else of.name, "",
             textwrap.indent(equations(of), "    "), ""]
    for what, found in facts:
        for number, fact in enumerate(found):
            lines.append(f"{'' if number else what:12}{fact}")
    return "\n".join(lines)


def _rows(blocks: int, size: str) -> str:
    return size if blocks == 1 else f"{blocks}*{size}"


def _default(size: Size) -> str:
    if size.base == "1":
        return str(size.times // size.over)
    return size.base + (f" * {size.times}" if size.times > 1 else "") + (
        f" // {size.over}" if size.over > 1 else "")


def _kind(weight: Weight) -> str:
    """Return how a weight differs from a plain one."""
    said = []
    if weight.kind != "plain":
        said.append(_called(weight.kind, weight.arguments))
    if weight.initial != Initial("uniform"):
        said.append(f"initially {_called(weight.initial.kind, weight.initial.arguments)}")
    if not weight.learned:
        said.append("not learned")
    return "".join(f", {what}" for what in said)


def _drawn(vector: Vector) -> str:
    initial = vector.initial
    if vector.bias:
        return ", bias"
    if initial.kind == "number":
        return f", initially {_shown(initial.arguments[0])}"
    return f", initially {_called(initial.kind, initial.arguments)}"


def _called(name: str, arguments: Iterable[float | str]) -> str:
    shown = ", ".join(map(_shown, arguments))
    return f"{name}({shown})" if shown else name


def _shown(argument: float | str) -> str:
    return argument if isinstance(argument, str) else f"{argument:g}"


def _parameters(definition: Definition) -> list[str]:
    """Return numbers for I = H = SIZE, or why these sizes do not fit."""
    at = f"for I = H = {SIZE}"
    try:
        learned, fixed = count(definition), count(definition, learned=False)
        plan = Plan(Instance(definition), SIZE, SIZE, True)
    except ValueError as error:
        return [f"not counted {at}: {error}"]
    kept = sum(plan.program.tape)
    return [f"{learned:,} {at}" + (f", and {fixed:,} that are not learned" if fixed else ""),
            f"{kept:,} numbers kept for backward, of each step and sequence, {at}"]
