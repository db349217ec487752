"""The table of cells that fastrnn defines by equations: which module each of them is in.

A module of the zoo is imported when one of its cells is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastrnn.cells.definition import Definition

__all__ = ["ZOO", "definitions"]

ZOO: dict[str, str] = {}

# what the frameworks and ONNX have
ZOO |= dict.fromkeys((
    "ClippedLSTM", "CoupledLSTM", "PeepholeLSTM", "ProjectedLSTM", "ProjectedPeepholeLSTM",
    "ResetBeforeGRU",
), "frameworks")


def definitions() -> dict[str, Definition]:
    """Return every cell of the table by its name."""
    return {name: getattr(importlib.import_module(f"fastrnn.cells.{module}"), name)
            for name, module in ZOO.items()}
