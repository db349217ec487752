"""A model of sequences of symbols, which the command line trains on bytes.

Letters: H hidden, L layers, V symbols, E width of a symbol's vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn.layers import GRU, LSTM, RNN
from fastrnn.model import SequenceModel
from fastrnn.parameters import seeds_of

__all__ = ["CELLS", "LanguageModel"]

CELLS: dict[str, type[Any]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


class LanguageModel(SequenceModel):
    """Predict the next of a sequence of symbols: an embedding, equal layers, a softmax.

    Parameters
    ----------
    symbols : int
        How many there are, V; 256 for bytes.
    embedding_size : int
        Width of a symbol's vector.
    hidden_size : int
        Units H of each layer.
    num_layers : int
        Recurrent layers L.
    cell : {"lstm", "gru", "rnn"}
    dropout : float in [0, 1]
        Between layers, in training mode.
    dtype : float32 or float64
    seed : int or None
        Of the initial parameters (embedding normal, the rest uniform in +-1/sqrt(H)) and dropout.

    Raises
    ------
    ValueError
        If a size is not a whole number of at least 1, or the cell is unknown.
    """

    def __init__(
        self, symbols: int = 256, embedding_size: int = 64, hidden_size: int = 256,
        num_layers: int = 1, cell: str = "lstm", dropout: float = 0.0, *, dtype: Any = np.float32,
        seed: Any = None,
    ) -> None:
        owner = type(self).__name__
        self.cell = _checks.one_of(owner, "cell", cell, CELLS)
        V = _checks.positive(owner, "symbols", symbols)
        E = _checks.positive(owner, "embedding_size", embedding_size)
        H = _checks.positive(owner, "hidden_size", hidden_size)
        own, inner = seeds_of(owner, seed, 2)
        layer = CELLS[cell](E, H, num_layers, dropout=dropout, dtype=dtype, seed=inner)
        super().__init__([layer], V, symbols=V, seed=own)

    @property
    def config(self) -> dict[str, Any]:
        """These arguments but the seed: ``LanguageModel(**config)`` has the same shapes."""
        layer = self.layers[0]
        return {"symbols": self.symbols, "embedding_size": layer.input_size,
                "hidden_size": layer.hidden_size, "num_layers": layer.num_layers,
                "cell": self.cell, "dropout": layer.dropout, "dtype": self.dtype.name}

    def sample(
        self, prompt: Any, length: int, temperature: float = 1.0, seed: Any = None
    ) -> np.ndarray:
        """Continue a sequence of symbols.

        Parameters
        ----------
        prompt : integers (N,)
            At least one symbol.
        length : int
            How many symbols to draw.
        temperature : float
            Divides the logits; 0 always takes the likeliest symbol.
        seed : int or None
            The same seed gives the same symbols, on any number of threads.

        Returns
        -------
        integers (length,)
            The continuation, without the prompt.

        Raises
        ------
        ValueError
            If the prompt is empty, or length or temperature are out of range.
        """
        owner = f"{type(self).__name__}.sample"
        prompt = _checks.rows(owner, prompt, ("N",), int(self.symbols or 0), name="prompt")
        if not len(prompt):
            raise ValueError(f"{owner}: prompt is empty, expected at least one symbol")
        step = self.stream()
        for symbol in prompt[:-1]:
            step(np.array([symbol], np.int32))
        return self.generate(prompt[-1:], length, step.state, temperature=temperature,
                             seed=seed)[:, 0]
