"""A stack of recurrent layers over real vectors or symbols: the body of every model.

Symbols are a gather behind the first layer's input product (a table of those in use, made once per
call, from the rows of an embedding or the columns of the input weights), never a product with
one-hot rows. Letters: T steps, B batch, I input, H hidden, D directions, V symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn.layers import LAYERS, Recurrent
from fastrnn.parameters import UNSET, Composite, seeds_of

__all__ = ["Stack"]

States = tuple[Any, ...]


def _layers(owner: str, layers: Any, seed: Any) -> list[Recurrent]:
    """Return the layers, made from their configurations if that is what they are."""
    if isinstance(layers, Recurrent):
        layers = [layers]
    if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
        raise TypeError(f"{owner}: layers is {_checks.show(layers)}, expected recurrent layers")
    made: list[Recurrent] = []
    for i, (layer, own) in enumerate(zip(layers, seeds_of(owner, seed, len(layers)), strict=True)):
        if isinstance(layer, dict):
            layer = dict(layer)
            layer = LAYERS[_checks.one_of(owner, f"layers[{i}]['layer']", layer.pop("layer", None),
                                          LAYERS)](**layer, seed=own)
        name = f"layers[{i}]"
        if not isinstance(layer, Recurrent):
            raise TypeError(f"{owner}: {name} is {_checks.kind(layer)}, expected RNN, LSTM or GRU")
        if layer.batch_first:
            raise ValueError(f"{owner}: {name} has batch_first, expected time first: "
                             "(T, B, ...)")
        if made and layer.input_size != _width(made[-1]):
            raise ValueError(f"{owner}: {name} has input_size {layer.input_size}, expected "
                             f"{_width(made[-1])}: what layers[{i - 1}] gives")
        if made and layer.dtype != made[0].dtype:
            raise ValueError(f"{owner}: {name} is {layer.dtype}, expected {made[0].dtype} like "
                             "layers[0]")
        if any(layer is other for other in made):
            raise ValueError(f"{owner}: {name} is there twice, expected a layer of its own")
        made.append(layer)
    return made


def _width(layer: Recurrent) -> int:
    """Return how many features a layer gives: D*H."""
    return layer.directions * layer.hidden_size


def arrays_of(state: Any) -> tuple[Any, ...]:
    """Return (h,) or (h, c) of a layer's state."""
    return state if isinstance(state, tuple) else (state,)


def recurrent_layers(model: Any) -> list[Recurrent]:
    """Return all recurrent layers of a model, in order."""
    if isinstance(model, Recurrent):
        return [model]
    parts = model._parts.values() if isinstance(model, Composite) else ()
    return [layer for part in parts for layer in recurrent_layers(part)]


class Stack(Composite):
    """Recurrent layers, one above the other, over real vectors or over symbols.

    Parameters
    ----------
    layers : RNN, LSTM or GRU, or several of them
        Each reads the states of the one before. Their parameters move into this model's buffer.
        Configurations (`layer.config`) make new layers.
    symbols : int, optional
        If given, the input is whole numbers below it, V, and the first layer's input_size is the
        width of their vectors.
    one_hot : bool
        Whether a symbol's vector is a row of the identity (the first layer's input_size is then V)
        instead of a row of an embedding that is learned.
    seed : int or None
        Of the embedding (normal, as torch's), and of layers made here.

    Raises
    ------
    TypeError, ValueError
        If the layers do not fit each other, or the symbols.
    """

    def __init__(
        self, layers: Any, *, symbols: int | None = None, one_hot: bool = False, seed: Any = None,
    ) -> None:
        owner = type(self).__name__
        inner, table = seeds_of(owner, seed, 2)
        self.layers = _layers(owner, layers, inner)
        self.symbols = None if symbols is None else _checks.positive(owner, "symbols", symbols)
        self.one_hot = bool(one_hot)
        first = self.layers[0]
        own = {}
        if self.one_hot and self.symbols != first.input_size:
            raise ValueError(f"{owner}: one_hot with {self.symbols} symbols, expected as many as "
                             f"layers[0] has inputs: {first.input_size}")
        if self.symbols is not None and not self.one_hot:
            own["embedding.weight"] = (self.symbols, first.input_size)
        super().__init__({f"layers.{i}": layer for i, layer in enumerate(self.layers)},
                         own | self._own(), first.dtype)
        if own and seed is not UNSET:
            rng = np.random.default_rng(table)
            self._params["embedding.weight"][...] = rng.standard_normal(own["embedding.weight"])

    def _own(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of parameters beside the layers' and the embedding."""
        return {}

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make a model of the same shapes."""
        return {"layers": [layer.config for layer in self.layers], "symbols": self.symbols,
                "one_hot": self.one_hot}

    @property
    def width(self) -> int:
        """Features D*H of what the last layer gives."""
        return _width(self.layers[-1])

    @property
    def _table(self) -> np.ndarray | None:
        """The symbols' vectors (V, I), if they are learned."""
        return self._params.get("embedding.weight")

    def run(
        self, owner: str, x: Any, state: States | None, keep: bool = True
    ) -> tuple[np.ndarray, States]:
        """Return y (T, B, D*H) of the last layer, and the state; `keep` what backward needs."""
        index: np.ndarray | None = None
        y: Any = self._table
        if self.symbols is None:
            y = _checks.array(owner, "x", x, self.dtype, ("T", "B", self.layers[0].input_size))
        else:
            index = _checks.rows(owner, x, ("T", "B"), self.symbols, name="symbols")
        after = []
        for layer, before in zip(self.layers, self._states(owner, state), strict=True):
            y, final = layer.run(y, index, before, keep=keep)
            after.append(final)
            index = None
        return y, tuple(after)

    def _states(self, owner: str, state: Any, name: str = "state") -> States:
        if state is None:
            return (None,) * len(self.layers)
        if not isinstance(state, (tuple, list)) or len(state) != len(self.layers):
            raise TypeError(f"{owner}: {name} is {_checks.show(state)}, expected a tuple with one "
                            f"entry for each of {len(self.layers)} layers")
        return tuple(state)

    def back(self, owner: str, dy: Any, dstate: States | None, need_dx: bool) -> tuple[Any, States]:
        """Return dx (None for symbols) and the gradient of the initial state; adds to `grads`."""
        before = []
        dx = dy
        learned = self._table is not None
        pairs = list(zip(self.layers, self._states(owner, dstate, "dstate"), strict=True))
        for i, (layer, d) in reversed(list(enumerate(pairs))):
            dx, d0 = layer.backward(dx, d, need_dx=i > 0 or learned or
                                    (need_dx and self.symbols is None))
            before.append(d0)
        if learned:
            self.grads["embedding.weight"] += dx
        return (None if self.symbols is not None else dx), tuple(reversed(before))

    def __call__(self, x: Any, state: States | None = None) -> tuple[np.ndarray, States]:
        """Run the layers over a batch of sequences.

        Parameters
        ----------
        x : array (T, B, I), or integers (T, B) below V
        state : tuple with a state for each layer, or None: zeros

        Returns
        -------
        y : array (T, B, D*H)
        state : tuple
            Every layer's final state.
        """
        return self.run(type(self).__name__, x, state)

    def backward(
        self, dy: Any = None, dstate: States | None = None, *, need_dx: bool = True
    ) -> tuple[Any, States]:
        """Backpropagate the latest training-mode call; return dx, dstate0 and add to `grads`."""
        return self.back(f"{type(self).__name__}.backward", dy, dstate, need_dx)
