"""A stack of recurrent layers over real vectors or symbols: the body of every model.

Symbols are a gather behind the first layer's input product (a table of those in use, made once for
each call, from the rows of an embedding or the columns of the input weights), never a product with
one-hot rows. Letters: T steps, B batch, I input, H hidden, D directions, V symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.layers.parameters import Parametrized, spawn
from fastrnn.layers.passes import Pass
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.standard import LAYERS
from fastrnn.models.linear import Embedding
from fastrnn.models.model import Model
from fastrnn.models.passes import StackPass, States

__all__ = ["Stack"]


def _layers(layers: Any, seed: Any) -> tuple[Recurrent, ...]:
    """Return the layers, made from their configurations if that is what they are."""
    if isinstance(layers, (Recurrent, dict)):
        layers = [layers]
    if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
        raise RefusedType(f"layers is {_checks.show(layers)}, expected recurrent layers: "
                          "RNN, LSTM or GRU")
    made: list[Recurrent] = []
    for i, (layer, own) in enumerate(zip(layers, spawn(seed, len(layers)), strict=True)):
        if isinstance(layer, dict):
            layer = dict(layer)
            kind = _checks.one_of(f"layers[{i}]['layer']", layer.pop("layer", None), LAYERS)
            layer = LAYERS[kind](**{"seed": own} | layer)
        name = f"layers[{i}]"
        if not isinstance(layer, Recurrent):
            raise RefusedType(f"{name} is {_checks.kind(layer)}, expected RNN, LSTM or GRU")
        if layer.batch_first:
            raise RefusedValue(f"{name} has batch_first, expected time first: (T, B, ...)")
        if made and layer.input_size != made[-1].width:
            raise RefusedValue(f"{name} has input_size {layer.input_size}, expected "
                               f"{made[-1].width}: what layers[{i - 1}] gives")
        if made and layer.dtype != made[0].dtype:
            raise RefusedValue(f"{name} is {layer.dtype}, expected {made[0].dtype} like layers[0]")
        if any(layer is other for other in made):
            raise RefusedValue(f"{name} is there twice, expected a layer of its own")
        made.append(layer)
    return tuple(made)


def arrays_of(state: Any) -> tuple[Any, ...]:
    """Return (h,) or (h, c) of a layer's state."""
    return state if isinstance(state, tuple) else (state,)


class Stack(Model):
    """Recurrent layers, one above the other, over real vectors or over symbols.

    Parameters
    ----------
    layers : RNN, LSTM or GRU, or several of them
        Each reads the states of the one before. They may be layers of other models, too: their
        parameters are shared then. Configurations (`layer.config`) make new layers.
    vocab_size : int, optional
        If given, the input is whole numbers below it, V, and the first layer's input_size is the
        width of their vectors.
    one_hot : bool
        Whether a symbol's vector is a row of the identity (the first layer's input_size is then V)
        instead of a row of an embedding that is learned.
    seed : int or None
        Seed of the embedding (normal, as torch's), and of layers made here.

    Attributes
    ----------
    layers : tuple of recurrent layers
    embedding : Embedding or None

    Raises
    ------
    TypeError, ValueError
        If the layers do not fit each other, or the symbols.
    """

    _fixed = Model._fixed | {"layers", "embedding", "vocab_size", "one_hot"}
    layers: tuple[Recurrent, ...]
    embedding: Embedding | None

    @public
    def __init__(
        self, layers: Any, *, vocab_size: int | None = None, one_hot: bool = False,
        seed: Any = None,
    ) -> None:
        super().__init__(self._body(layers, vocab_size, one_hot, seed))

    def _body(
        self, layers: Any, vocab_size: Any, one_hot: Any, seed: Any
    ) -> dict[str, Parametrized]:
        """Set the layers and the embedding, and return them as parts."""
        inner, table = spawn(seed, 2)
        self.layers = _layers(layers, inner)
        self.vocab_size = None if vocab_size is None else _checks.positive("vocab_size", vocab_size)
        self.one_hot = _checks.flag("one_hot", one_hot)
        first = self.layers[0]
        if self.one_hot and self.vocab_size != first.input_size:
            raise RefusedValue(f"one_hot is True with vocab_size {self.vocab_size}, expected as "
                               f"many symbols as layers[0] has inputs: {first.input_size}")
        parts: dict[str, Parametrized] = {f"layers.{i}": a for i, a in enumerate(self.layers)}
        embedding = None
        if self.vocab_size is not None and not self.one_hot:
            embedding = parts["embedding"] = Embedding(self.vocab_size, first.input_size,
                                                       dtype=first.dtype, seed=table)
        self.embedding = embedding
        return parts

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make a model of the same shapes."""
        return {"layers": [layer.config for layer in self.layers], "vocab_size": self.vocab_size,
                "one_hot": self.one_hot}

    @property
    def input_size(self) -> int:
        """Features I of the input, or the width of a symbol's vector."""
        return self.layers[0].input_size

    @property
    def width(self) -> int:
        """Features D*H of what the last layer gives."""
        return self.layers[-1].width

    def check_input(self, x: Any, name: str = "x") -> np.ndarray:
        """Return the input (T, B, I), or int32 (T, B): a copy of the symbols."""
        if self.vocab_size is None:
            return _checks.array(name, x, self.dtype, ("T", "B", self.input_size))
        return _checks.rows(x, ("T", "B"), self.vocab_size, name=name,
                            of="the identity" if self.one_hot else "the embedding")

    def check_states(self, state: Any, B: int, name: str = "state") -> States:
        """Return a state, of arrays of the right shapes or None: zero, for each layer."""
        if state is None:
            return (None,) * len(self.layers)
        if not isinstance(state, (tuple, list)) or len(state) != len(self.layers):
            raise RefusedType(f"{name} is {_checks.show(state)}, expected a tuple with one entry "
                              f"for each of {len(self.layers)} layers")
        checked = []
        for i, (layer, of) in enumerate(zip(self.layers, state, strict=True)):
            shape = (layer.num_layers * layer.directions, B, layer.hidden_size)
            h, c = _checks.states(f"{name}[{i}]", of, layer.has_c, self.dtype, shape)
            checked.append((h, c) if layer.has_c else h)
        return tuple(checked)

    def run(
        self, x: np.ndarray, state: States, *, grad: bool, dropout: bool
    ) -> tuple[np.ndarray, States, list[Pass]]:
        """Run the layers over input and state that were checked.

        Parameters
        ----------
        x : array (T, B, I), or int32 (T, B)
        state : tuple
        grad : bool
            Whether a pass is wanted.
        dropout : bool
            Whether layers in training mode draw dropout.

        Returns
        -------
        y, state : as of a call
        passes : list
            The pass of each layer; empty without `grad`.
        """
        index: np.ndarray | None = None
        y: Any = x
        if self.vocab_size is not None:
            y, index = None if self.embedding is None else self.embedding.weight, x
        after: list[Any] = []
        passes: list[Pass] = []
        for layer, before in zip(self.layers, state, strict=True):
            y, final, p = layer.run(y, index, before, grad=grad,
                                    dropout=dropout and layer.mode == "training")
            after.append(final)
            if p is not None:
                passes.append(p)
            index = None
        return y, tuple(after), passes

    def checked_run(
        self, x: Any, state: Any, *, grad: bool, dropout: bool
    ) -> tuple[np.ndarray, States, StackPass | None]:
        """Check x and state, and run."""
        x = self.check_input(x)
        y, state, passes = self.run(x, self.check_states(state, x.shape[1]), grad=grad,
                                    dropout=dropout)
        return y, state, StackPass(self, passes, x.shape[:2]) if grad else None

    @public
    def __call__(self, x: Any, state: States | None = None) -> tuple[np.ndarray, States]:
        """Run the layers over a batch of sequences; in training mode with dropout.

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
        y, state, _ = self.checked_run(x, state, grad=False, dropout=True)
        return y, state

    @public
    def forward(
        self, x: Any, state: States | None = None, *, grad: bool = True
    ) -> tuple[np.ndarray, States, StackPass | None]:
        """Run the layers over a batch of sequences, and return the pass to go back through.

        Parameters
        ----------
        x, state : as of a call
        grad : bool
            Whether a pass is wanted; without one, dropout is left out.

        Returns
        -------
        y, state : as of a call
        p : StackPass or None
        """
        return self.checked_run(x, state, grad=grad, dropout=grad)

    def _shapes_out(self) -> dict[str, str]:
        shapes = {f"layers.{i}": f"(T, B, {layer.width})" for i, layer in enumerate(self.layers)}
        return shapes | {"embedding": f"(T, B, {self.input_size})"}
