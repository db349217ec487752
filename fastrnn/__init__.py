"""Recurrent neural networks on CPUs: forward, and backward through time, on NumPy arrays.

The layers RNN, LSTM and GRU and the single cells RNNCell, LSTMCell and GRUCell follow torch.nn;
models are layers with a head and a loss; `fit` trains them. `functional` has the same cells without
state, and `reference` the same in plain NumPy: the specification. Names are imported when they are
first used. Letters in every docstring: T steps, B batch, I input, H hidden, G gates, L layers, D
directions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrnn import (
        cells,
        functional,
        gradflow,
        init,
        losses,
        onnx,
        optim,
        plot,
        reference,
        schedules,
        training,
    )
    from fastrnn._config import (
        get_flush_denormals,
        get_num_threads,
        set_flush_denormals,
        set_num_threads,
        show_config,
    )
    from fastrnn.cells import cell
    from fastrnn.formats import load, save
    from fastrnn.layers import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
    from fastrnn.layers.layer import Layer
    from fastrnn.models import EncoderDecoder, LanguageModel, SequenceModel, Stack
    from fastrnn.training import fit

    __version__: str

_HOMES = {
    "fastrnn.cells": ("cell",),
    "fastrnn.layers": ("GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNCell"),
    "fastrnn.layers.layer": ("Layer",),
    "fastrnn.models": ("EncoderDecoder", "LanguageModel", "SequenceModel", "Stack"),
    "fastrnn.training": ("fit",),
    "fastrnn.formats": ("load", "save"),
    "fastrnn._config": ("get_flush_denormals", "get_num_threads", "set_flush_denormals",
                        "set_num_threads", "show_config"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = ("cells", "functional", "gradflow", "init", "losses", "onnx", "optim", "plot",
            "reference", "schedules", "torch", "training")

__all__ = [
    "GRU", "LSTM", "RNN", "EncoderDecoder", "GRUCell", "LSTMCell", "LanguageModel", "Layer",
    "RNNCell", "SequenceModel", "Stack", "cell", "cells", "fit", "functional",
    "get_flush_denormals", "get_num_threads", "gradflow", "init", "load", "losses", "onnx",
    "optim", "plot", "reference", "save", "schedules", "set_flush_denormals", "set_num_threads",
    "show_config", "training",
]


if not TYPE_CHECKING:  # which would take every name for one of this module

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            value = getattr(importlib.import_module(_HOME[name]), name)
        elif name in _MODULES:
            value = importlib.import_module(f"fastrnn.{name}")
        elif name == "__version__":
            from fastrnn._config import version

            value = version()
        else:
            raise AttributeError(f"module 'fastrnn' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
