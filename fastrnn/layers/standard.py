"""RNN, LSTM and GRU: constructors and equations; what they share is in recurrent.py.

Letters: T steps, B batch, I input, H hidden, L layers, D directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import public
from fastrnn.cells import CELLS, vanilla
from fastrnn.cells.table import AnyCell
from fastrnn.layers.recurrent import Recurrent

__all__ = ["GRU", "LAYERS", "LSTM", "RNN", "cell_of"]


class RNN(Recurrent):
    """Elman's simple recurrent network, h(t) = phi(W_ih x(t) + b_ih + W_hh h(t-1) + b_hh).

    Parameters
    ----------
    input_size : int
        Features I of the input.
    hidden_size : int
        Units H.
    num_layers : int
        Layers L; each reads the states of the one below.
    nonlinearity : {"tanh", "relu", "sigmoid"}
        The activation phi.
    bias : bool
        Whether there are the two biases.
    batch_first : bool
        Whether x, y and their gradients are (B, T, ...) instead of (T, B, ...). States are not
        affected.
    dropout : float in [0, 1]
        Fraction of the states between layers that is set to zero in training mode, while the others
        grow by 1 / (1 - dropout).
    bidirectional : bool
        Whether a second direction walks from the last step to the first; y holds both side by side.
    dtype : float32 or float64
        Dtype of parameters, inputs and results.
    seed : int or None
        Seed of the initial weights (uniform in +-1/sqrt(H), as torch's) and of dropout. None: a
        random seed.

    Attributes
    ----------
    flat, flat_grads, grads, mode, training
        See fastrnn.layers.parameters.

    Raises
    ------
    ValueError
        If a size is not a whole number of at least 1, or another argument is out of its range.

    References
    ----------
    J. L. Elman, "Finding structure in time", Cognitive Science 14, 1990.

    Examples
    --------
    >>> rnn = fastrnn.RNN(64, 128, seed=0)
    >>> y, hn = rnn(np.zeros((100, 16, 64), np.float32))  # (T, B, I)
    >>> y.shape
    (100, 16, 128)
    >>> dx, dh0 = rnn.backward(np.ones_like(y))  # rnn.grads now holds the gradients
    """

    _fixed = Recurrent._fixed | {"nonlinearity"}

    @public
    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh",
        bias: bool = True, batch_first: bool = False, dropout: float = 0.0,
        bidirectional: bool = False, *, dtype: Any = np.float32, seed: Any = None,
    ) -> None:
        self.nonlinearity = _checks.one_of("nonlinearity", nonlinearity, vanilla())
        super().__init__(vanilla()[nonlinearity], input_size, hidden_size, num_layers, bias,
                         batch_first, dropout, bidirectional, dtype, seed)

    @property
    def config(self) -> dict[str, Any]:  # noqa: D102, documented in the base class
        return super().config | {"nonlinearity": self.nonlinearity}


class LSTM(Recurrent):
    """Long short-term memory with forget gates: torch.nn.LSTM's equations, gate order i f g o.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed
        As of RNN.

    Attributes
    ----------
    flat, flat_grads, grads, mode, training
        See fastrnn.layers.parameters.

    Raises
    ------
    ValueError
        If a size is not a whole number of at least 1, or another argument is out of its range.

    References
    ----------
    S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9, 1997;
    the forget gate: F. A. Gers, J. Schmidhuber and F. Cummins, "Learning to forget", 2000.

    Examples
    --------
    >>> lstm = fastrnn.LSTM(64, 128, seed=0)
    >>> y, (hn, cn) = lstm(np.zeros((100, 16, 64), np.float32))  # (T, B, I)
    >>> y.shape
    (100, 16, 128)
    >>> dx, (dh0, dc0) = lstm.backward(np.ones_like(y))  # lstm.grads now holds the gradients
    """

    @public
    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, *,
        dtype: Any = np.float32, seed: Any = None,
    ) -> None:
        super().__init__(CELLS["lstm"], input_size, hidden_size, num_layers, bias, batch_first,
                         dropout, bidirectional, dtype, seed)


class GRU(Recurrent):
    """Gated recurrent units, reset after the product: torch.nn.GRU's equations, order r z n.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed
        As of RNN.

    Attributes
    ----------
    flat, flat_grads, grads, mode, training
        See fastrnn.layers.parameters.

    Raises
    ------
    ValueError
        If a size is not a whole number of at least 1, or another argument is out of its range.

    References
    ----------
    K. Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014, in the form
    of cuDNN and PyTorch: r multiplies W_hn h + b_hn instead of h, and z keeps the old state.

    Examples
    --------
    >>> gru = fastrnn.GRU(64, 128, seed=0)
    >>> y, hn = gru(np.zeros((100, 16, 64), np.float32))  # (T, B, I)
    >>> y.shape
    (100, 16, 128)
    >>> dx, dh0 = gru.backward(np.ones_like(y))  # gru.grads now holds the gradients
    """

    @public
    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, *,
        dtype: Any = np.float32, seed: Any = None,
    ) -> None:
        super().__init__(CELLS["gru"], input_size, hidden_size, num_layers, bias, batch_first,
                         dropout, bidirectional, dtype, seed)


def cell_of(name: str, config: Mapping[str, Any]) -> AnyCell:
    """Return the cell of a layer's class and configuration, without making the layer."""
    word = name.lower()
    return CELLS[word if word in CELLS else f"{word}_{config.get('nonlinearity', 'tanh')}"]


LAYERS: dict[str, type[Recurrent]] = {layer.__name__: layer for layer in (RNN, LSTM, GRU)}
