"""What computes: RNN, LSTM and GRU, single cells, their parameters and passes."""

from fastrnn.layers.passes import Pass
from fastrnn.layers.single import CellPass, GRUCell, LSTMCell, RNNCell
from fastrnn.layers.standard import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "CellPass", "GRUCell", "LSTMCell", "Pass", "RNNCell"]
