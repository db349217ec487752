"""What computes: RNN, LSTM and GRU, their parameters and passes."""

from fastrnn.layers.passes import Pass
from fastrnn.layers.standard import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "Pass"]
