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

# normalisation and dropout inside a step
ZOO |= {
    "LayerNormGRU": "regularised",
    "LayerNormLSTM": "regularised",
    "RecurrentDropoutGRU": "regularised",
    "RecurrentDropoutLSTM": "regularised",
    "VariationalGRU": "regularised",
    "VariationalLSTM": "regularised",
    "WeightDroppedGRU": "regularised",
    "WeightDroppedLSTM": "regularised",
    "ZoneoutGRU": "regularised",
    "ZoneoutLSTM": "regularised",
}

# what papers have proposed
ZOO |= {
    "AntisymmetricRNN": "literature",
    "BRC": "literature",
    "CfC": "literature",
    "FastGRNN": "literature",
    "FastRNN": "literature",
    "GatedAntisymmetricRNN": "literature",
    "IndRNN": "literature",
    "JANET": "literature",
    "LEM": "literature",
    "LeakyESN": "literature",
    "LiGRU": "literature",
    "MGU": "literature",
    "ProjectedSRU": "literature",
    "QRNN": "literature",
    "SCRN": "literature",
    "SRU": "literature",
    "UGRNN": "literature",
    "coRNN": "literature",
    "minGRU": "literature",
    "minLSTM": "literature",
    "nBRC": "literature",
    "sLSTM": "literature",
}


def definitions() -> dict[str, Definition]:
    """Return every cell of the table by its name."""
    return {name: getattr(importlib.import_module(f"fastrnn.cells.{module}"), name)
            for name, module in ZOO.items()}
