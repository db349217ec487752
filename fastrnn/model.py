"""A language model: symbols in, the next symbol's logits out.

Embedding, a stack of recurrent layers, and a linear head V: o(t) = V h(t) + b. The embedding is a
gather behind the first layer's input product (a table of V rows, made once per call), never a
product with one-hot rows. Letters: T steps, B batch, E embedding, H hidden, L layers, V symbols.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._kernels import dense
from fastrnn._kernels.stream import Stream
from fastrnn.functional import State
from fastrnn.layers import GRU, LSTM, RNN, Recurrent
from fastrnn.parameters import Parametrized

__all__ = ["CELLS", "LanguageModel"]

CELLS: dict[str, type[Any]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


class LanguageModel(Parametrized):
    """Predict the next of a sequence of symbols.

    Parameters
    ----------
    symbols : int
        How many there are, V; 256 for bytes.
    embedding_size : int
        Width E of a symbol's vector.
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

    Attributes
    ----------
    config : dict
        These arguments but the seed: ``LanguageModel(**config)`` is a model of the same shapes.
    recurrent : RNN, LSTM or GRU
        Its parameters lie in this model's buffer.

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
        if not isinstance(cell, str) or cell not in CELLS:
            raise ValueError(f"{owner}: cell is {_checks.show(cell)}, expected one of "
                             f"{list(CELLS)}")
        V = _checks.positive(owner, "symbols", symbols)
        E = _checks.positive(owner, "embedding_size", embedding_size)
        H = _checks.positive(owner, "hidden_size", hidden_size)
        own, layers = _checks.seeds(owner, seed, 2)
        self.recurrent: Recurrent = CELLS[cell](E, H, num_layers, dropout=dropout, dtype=dtype,
                                                seed=int(layers.generate_state(1, np.uint64)[0]))
        shapes = {
            "embedding.weight": (V, E),
            **{f"recurrent.{k}": p.shape for k, p in self.recurrent.parameters().items()},
            "head.weight": (V, H),
            "head.bias": (V,),
        }
        self.config = {
            "symbols": V, "embedding_size": E, "hidden_size": H,
            "num_layers": self.recurrent.num_layers, "cell": cell,
            "dropout": self.recurrent.dropout, "dtype": self.recurrent.dtype.name,
        }
        self._pending: tuple[np.ndarray, np.ndarray | None] | None = None
        self._logits: np.ndarray | None = None
        initial = self.recurrent.flat
        super().__init__(shapes, dtype)
        rng, bound = np.random.default_rng(own), 1 / math.sqrt(H)
        self._params["embedding.weight"][...] = rng.standard_normal((V, E))
        self.recurrent.flat[:] = initial
        for name in ("head.weight", "head.bias"):
            self._params[name][...] = rng.uniform(-bound, bound, shapes[name])

    def _hold(self, flat: np.ndarray, flat_grads: np.ndarray) -> None:
        super()._hold(flat, flat_grads)
        start = self._params["embedding.weight"].size
        stop = start + self.recurrent.flat.size
        self.recurrent._hold(flat[start:stop], flat_grads[start:stop])

    def train(self, mode: bool = True) -> Any:  # noqa: D102, the base class says it
        super().train(mode)
        self.recurrent.train(mode)
        return self

    def eval(self, weights: str = "float32") -> Any:
        """Choose evaluation mode; `weights` is that of the recurrent layers' eval."""
        self.recurrent.eval(weights)
        return super().train(False)  # not self.train: it would pack the layers a second time

    def __call__(self, symbols: Any, state: State = None) -> tuple[np.ndarray, Any]:
        """Return the logits of the next symbols.

        Parameters
        ----------
        symbols : integers (T, B)
            0 to V - 1.
        state : as of the recurrent layer, (L, B, H) or a pair; None means zeros

        Returns
        -------
        logits : array (T, B, V)
        state : the layers' final state

        Raises
        ------
        TypeError, ValueError, IndexError
            If symbols are no whole numbers, not (T, B), or not below V; or the state does not fit.
        """
        V = self.config["symbols"]
        index = _checks.rows(type(self).__name__, symbols, ("T", "B"), V, name="symbols")
        y, state = self.recurrent.run(self._params["embedding.weight"], index, state)
        logits = self._head(y)
        self._pending = (y, None) if self.training else self._pending
        return logits, state

    def _head(self, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return logits (T, B, V) of y (T, B, H)."""
        T, B, H = y.shape
        weight, bias = self._params["head.weight"], self._params["head.bias"]
        flat = None if out is None else out.reshape(T * B, len(bias))
        logits = dense.linear_forward(y.reshape(T * B, H), weight, bias, flat)
        return logits.reshape(T, B, len(bias)) if out is None else out

    def loss(self, symbols: Any, targets: Any, state: State = None) -> tuple[float, Any]:
        """Return the mean cross-entropy of the next symbols, and the final state.

        Parameters
        ----------
        symbols, targets : integers (T, B)
            What is read, and what should follow each of them.
        state : as for a call

        Returns
        -------
        loss : float
            Nats per symbol; bits are this divided by ln 2.
        state : the layers' final state
        """
        V = self.config["symbols"]
        owner = f"{type(self).__name__}.loss"
        index = _checks.rows(owner, symbols, ("T", "B"), V, name="symbols")
        targets = _checks.rows(owner, targets, index.shape, V, name="targets").reshape(-1)
        y, state = self.recurrent.run(self._params["embedding.weight"], index, state)
        shape = (*index.shape, V)
        if self._logits is None or self._logits.shape != shape:
            self._logits = np.empty(shape, self.dtype)
        logits = self._head(y, self._logits)
        flat, count = logits.reshape(-1, V), max(1, len(targets))
        grad = flat if self.training else None
        loss = dense.softmax_cross_entropy(flat, targets, 1 / count, grad)
        if self.training:
            self._pending = (y, logits)  # which by now holds its own gradient
        return loss / count, state

    def backward(self, dlogits: Any = None, dstate: State = None) -> Any:
        """Backpropagate the latest training-mode call or loss through time; adds to `grads`.

        Parameters
        ----------
        dlogits : array (T, B, V)
            After a call: the gradient with respect to its logits. After `loss`: leave it out.
        dstate : as of the recurrent layer
            Gradient with respect to the final state; None means zero.

        Returns
        -------
        dstate0
            Gradient with respect to the initial state.

        Raises
        ------
        RuntimeError
            If there was no training-mode call, or it has had its backward.
        """
        owner = f"{type(self).__name__}.backward"
        if self._pending is None:
            raise RuntimeError(f"{owner}: no call to go back through: each training-mode call or "
                               "loss serves one backward")
        y, from_loss = self._pending
        T, B, H = y.shape
        if (dlogits is None) == (from_loss is None):
            came = "None after a call" if dlogits is None else "given after loss"
            raise ValueError(f"{owner}: dlogits is {came}, expected the logits' gradient after a "
                             "call and None after loss, which has its own")
        if from_loss is None:
            dlogits = _checks.array(owner, "dlogits", dlogits, self.dtype,
                                    (T, B, self.config["symbols"]))
            dlogits = np.ascontiguousarray(dlogits)
        else:
            dlogits = from_loss
        dy = dense.linear_backward(
            dlogits.reshape(T * B, -1), y.reshape(T * B, H), self._params["head.weight"],
            self.grads["head.weight"], self.grads["head.bias"],
        )
        self._pending = None
        assert dy is not None  # it was asked for
        dembedding, dstate0 = self.recurrent.backward(dy.reshape(y.shape), dstate)
        self.grads["embedding.weight"] += dembedding
        return dstate0

    def stream(self, batch_size: int = 1) -> Stream:
        """Return the recurrent layers' single step: it takes symbols (B,) and gives h (B, H)."""
        return self.recurrent.stream(batch_size, self._params["embedding.weight"])

    def sample(self, prompt: Any, length: int, temperature: float = 1.0, seed: Any = None
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
        V = self.config["symbols"]
        prompt = _checks.rows(owner, prompt, ("N",), V, name="prompt")
        if not len(prompt):
            raise ValueError(f"{owner}: prompt is empty, expected at least one symbol")
        length = _checks.positive(owner, "length", length)
        if not isinstance(temperature, (int, float)) or not 0 <= temperature < math.inf:
            raise ValueError(f"{owner}: temperature is {temperature!r}, expected a number of at "
                             "least 0")
        rng = np.random.default_rng(*_checks.seeds(owner, seed, 1))
        step = self.stream()
        for symbol in prompt:
            h = step(np.array([symbol], np.int32))
        drawn = np.empty(length, np.int32)
        for i in range(length):
            logits = self._head(h[None])[0, 0].astype(np.float64)
            if temperature == 0:
                drawn[i] = logits.argmax()
            else:
                p = np.exp((logits - logits.max()) / temperature).cumsum()
                drawn[i] = min(np.searchsorted(p, rng.random() * p[-1], side="right"), V - 1)
            h = step(drawn[i : i + 1])
        return drawn

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_pending": None, "_logits": None}
