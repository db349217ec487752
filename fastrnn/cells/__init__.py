"""What each cell computes in one step: the table of hand-written cells, and cells from equations.

The latter are imported when they are first used; zoo.py lists those that are ready made. Letters: I
input, H hidden, G gates.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastrnn.cells.table import BY_NUMBER, CELLS, Cell, Gate, vanilla
from fastrnn.cells.zoo import ZOO, definitions

if TYPE_CHECKING:
    from fastrnn.cells.definition import Definition, cell
    from fastrnn.cells.frameworks import *  # noqa: F403
    from fastrnn.cells.frameworks import clipped_lstm, elman, onnx_gru, onnx_lstm, onnx_rnn
    from fastrnn.cells.literature import *  # noqa: F403
    from fastrnn.cells.regularised import *  # noqa: F403
    from fastrnn.cells.tree import DefinitionError

__all__ = ["BY_NUMBER", "CELLS", "ZOO", "Cell", "Definition", "DefinitionError", "Gate", "cell",
           "clipped_lstm", "definitions", "elman", "onnx_gru", "onnx_lstm", "onnx_rnn", "vanilla"]

_HOME = {"Definition": "definition", "DefinitionError": "tree", "cell": "definition"}
_HOME |= dict.fromkeys(("clipped_lstm", "elman", "onnx_gru", "onnx_lstm", "onnx_rnn"), "frameworks")
_HOME |= ZOO


if not TYPE_CHECKING:  # which would take every name for one of this module

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'fastrnn.cells' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"fastrnn.cells.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, *ZOO])
