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


class RNN(Recurrent[np.ndarray]):
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


class LSTM(Recurrent[tuple[np.ndarray, np.ndarray]]):
    """Long short-term memory with forget gates: torch.nn.LSTM's equations, gate order i f g o.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed
        As of RNN.
    proj_size : int
        Below H. If it is not 0, h is projected: h(t) = W_hr (o * tanh(c(t))) has this many units P,
        and weight_hr is (P, H). Then y has D*P features, h0 and hn have width P, c0 and cn width H.

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
    the forget gate: F. A. Gers, J. Schmidhuber and F. Cummins, "Learning to forget", 2000;
    the projection: H. Sak, A. Senior and F. Beaufays, "Long short-term memory recurrent neural
    network architectures for large scale acoustic modeling", Interspeech 2014.

    Examples
    --------
    >>> lstm = fastrnn.LSTM(64, 128, seed=0)
    >>> y, (hn, cn) = lstm(np.zeros((100, 16, 64), np.float32))  # (T, B, I)
    >>> y.shape
    (100, 16, 128)
    >>> dx, (dh0, dc0) = lstm.backward(np.ones_like(y))  # lstm.grads now holds the gradients
    """

    _fixed = Recurrent._fixed | {"proj_size"}

    @public
    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
        proj_size: int = 0, *, dtype: Any = np.float32, seed: Any = None,
    ) -> None:
        self.proj_size = _checks.below("proj_size", proj_size,
                                       _checks.positive("hidden_size", hidden_size))
        super().__init__(_lstm(self.proj_size), input_size, hidden_size, num_layers, bias,
                         batch_first, dropout, bidirectional, dtype, seed)

    @property
    def config(self) -> dict[str, Any]:  # noqa: D102, documented in the base class
        return super().config | ({"proj_size": self.proj_size} if self.proj_size else {})


class GRU(Recurrent[np.ndarray]):
    """Gated recurrent units, reset after the product: torch.nn.GRU's equations, order r z n.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed
        As of RNN.
    reset_after : bool
        Whether r multiplies the product W_hn h + b_hn, as in cuDNN and PyTorch. With False it
        multiplies h before the product, as in the paper and in Keras with reset_after=False:
        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn). The parameters have the same names and shapes
        either way. With False only the sum of the two biases matters (Keras and the paper have
        one), so their gradients are equal.

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
    of cuDNN and PyTorch: r multiplies W_hn h + b_hn instead of h (see `reset_after`), and z keeps
    the old state.

    Examples
    --------
    >>> gru = fastrnn.GRU(64, 128, seed=0)
    >>> y, hn = gru(np.zeros((100, 16, 64), np.float32))  # (T, B, I)
    >>> y.shape
    (100, 16, 128)
    >>> dx, dh0 = gru.backward(np.ones_like(y))  # gru.grads now holds the gradients
    """

    _fixed = Recurrent._fixed | {"reset_after"}

    @public
    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, *,
        reset_after: bool = True, dtype: Any = np.float32, seed: Any = None,
    ) -> None:
        self.reset_after = _checks.flag("reset_after", reset_after)
        super().__init__(_gru(self.reset_after), input_size, hidden_size, num_layers, bias,
                         batch_first, dropout, bidirectional, dtype, seed)

    @property
    def config(self) -> dict[str, Any]:  # noqa: D102, documented in the base class
        return super().config | ({} if self.reset_after else {"reset_after": False})


def _lstm(proj_size: int) -> AnyCell:
    if not proj_size:
        return CELLS["lstm"]
    from fastrnn.cells.forms import Form  # takes milliseconds, which the table's cells save

    return Form("lstm_projected", {"P": proj_size})


def _gru(reset_after: bool) -> AnyCell:
    if reset_after:
        return CELLS["gru"]
    from fastrnn.cells.forms import Form

    return Form("gru_reset_before")


def cell_of(name: str, config: Mapping[str, Any]) -> AnyCell:
    """Return the cell of a layer's class and configuration, without making the layer."""
    word = name.lower()
    if word == "lstm" and config.get("proj_size"):
        return _lstm(_checks.positive("proj_size", config["proj_size"]))
    if word == "gru":
        return _gru(_checks.flag("reset_after", config.get("reset_after", True)))
    return CELLS[word if word in CELLS else f"{word}_{config.get('nonlinearity', 'tanh')}"]


LAYERS: dict[str, type[Recurrent]] = {layer.__name__: layer for layer in (RNN, LSTM, GRU)}
