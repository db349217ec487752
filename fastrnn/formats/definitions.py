"""Cells from equations in files: their text is parsed, never executed, and is bounded.

A program is compiled from a definition in a time that grows faster than the text, and a size may be
one that no parameter of the file has. So a file's definitions have bounds, many times those of the
cells of papers. What could not be read again is refused when it is to be written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn.cells.definition import Definition
from fastrnn.cells.instance import Instance
from fastrnn.cells.table import AnyCell
from fastrnn.cells.tree import DefinitionError, post_order
from fastrnn.layers.kinds import config_cell
from fastrnn.layers.layer import definition_of

__all__ = ["check_definition", "read_cell", "read_definition"]

LONGEST = 20_000  # characters of a text
LONGEST_NAME = 200
MOST = 2_000  # names, numbers and operations in all equations, those of several targets for each
FREE = 2**16  # a size that no parameter has is at most this


def check_definition(definition: Definition) -> None:
    """Refuse a definition that is too large for a file."""
    _check_text(definition.text, definition.name)
    count = sum(len(equation.targets) * sum(1 for _ in post_order(equation.expression))
                for equation in definition.equations)
    if count > MOST:
        raise RefusedValue(f"the equations of {definition.name} have {count} names, numbers and "
                           f"operations, expected at most {MOST} in a file")


def _check_text(text: str, name: str) -> None:
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise RefusedValue(f"the name of a cell is {_checks.show(name)}, expected at most "
                           f"{LONGEST_NAME} printable characters in a file")
    if len(text) > LONGEST:
        raise RefusedValue(f"the definition of {name} has {len(text)} characters, expected at most "
                           f"{LONGEST} in a file")


def read_definition(cell: Any) -> Definition:
    """Return the definition of a configuration out of a file."""
    if isinstance(cell, Mapping):
        for key in ("text", "name", "paper"):
            if not isinstance(cell.get(key), str):
                raise RefusedValue(f"its cell has the {key} {_checks.show(cell.get(key))}, "
                                   "expected a text")
        _check_text(cell["text"], cell["name"])
    try:
        definition = definition_of(cell)
    except DefinitionError as error:  # its other lines show the place
        raise RefusedValue(f"its cell is no definition: {str(error).splitlines()[0]}") from None
    check_definition(definition)
    return definition


def read_cell(kind: str, config: Mapping[str, Any], numbers: int) -> AnyCell:
    """Return the cell of a layer's configuration out of a file of so many numbers."""
    if kind != "Layer":
        return config_cell(kind, config)
    cell = config_cell(kind, {**config, "cell": read_definition(config["cell"])})
    assert isinstance(cell, Instance)
    sizes = cell.sizes(config["input_size"], config["hidden_size"])
    for name, size in sizes.items():
        if size > max(numbers, FREE):
            raise RefusedValue(f"{name} is {_checks.show(size)}, its arrays have {numbers} numbers")
    return cell
