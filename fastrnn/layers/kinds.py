"""The kinds of recurrent layers by the names of their classes, as configurations have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastrnn.cells.table import AnyCell
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.standard import LAYERS, cell_of

__all__ = ["KINDS", "class_of", "config_cell"]

KINDS = (*LAYERS, "Layer")


def class_of(kind: str) -> type[Recurrent]:
    """Return the class of a layer by its name."""
    if kind != "Layer":
        return LAYERS[kind]
    from fastrnn.layers.layer import Layer  # with the language of cells, which others do not need

    return Layer


def config_cell(kind: str, config: Mapping[str, Any]) -> AnyCell:
    """Return the cell of a layer's class and configuration, without making the layer."""
    if kind != "Layer":
        return cell_of(kind, config)
    from fastrnn.layers.layer import instance_of

    return instance_of(config)
