"""Recurrent neural networks on CPUs: forward, and backward through time, on NumPy arrays.

The layers RNN, LSTM and GRU follow torch.nn; functional has the same cells without state, and
reference the same in plain NumPy: the specification. Letters in every docstring: T steps, B batch,
I input, H hidden, G gates, L layers, D directions.
"""

from fastrnn import functional
from fastrnn.config import (
    _version,
    get_flush_denormals,
    get_num_threads,
    set_flush_denormals,
    set_num_threads,
    show_config,
)
from fastrnn.layers import GRU, LSTM, RNN

__version__ = _version()

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "functional",
    "get_flush_denormals",
    "get_num_threads",
    "set_flush_denormals",
    "set_num_threads",
    "show_config",
]
