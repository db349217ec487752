"""What each cell computes in one step: the table of hand-written cells, and cells from equations.

The latter are imported when they are first used. Letters: I input, H hidden, G gates.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastrnn.cells.table import BY_NUMBER, CELLS, Cell, Gate, vanilla

if TYPE_CHECKING:
    from fastrnn.cells.definition import Definition, cell
    from fastrnn.cells.tree import DefinitionError

__all__ = ["BY_NUMBER", "CELLS", "Cell", "Definition", "DefinitionError", "Gate", "cell", "vanilla"]

_HOME = {"Definition": "definition", "DefinitionError": "tree", "cell": "definition"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastrnn.cells' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastrnn.cells.{_HOME[name]}"), name)
    globals()[name] = value
    return value
