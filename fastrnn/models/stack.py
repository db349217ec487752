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
from fastrnn.layers.kinds import KINDS, class_of
from fastrnn.layers.parameters import Parametrized, spawn
from fastrnn.layers.passes import Layout, Pass, as_rows
from fastrnn.layers.recurrent import Recurrent
from fastrnn.models.linear import Embedding
from fastrnn.models.model import Model
from fastrnn.models.passes import StackPass, States
from fastrnn.models.ragged import (
    Ragged,
    as_list,
    check_nested,
    is_list,
    one_sequence,
    one_text,
)

__all__ = ["Stack"]

_ROWS = Layout(rows=True)


def _layers(layers: Any, seed: Any) -> tuple[Recurrent, ...]:
    """Return the layers, made from their configurations if that is what they are."""
    if isinstance(layers, (Recurrent, dict)):
        layers = [layers]
    if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
        raise RefusedType(f"layers is {_checks.show(layers)}, expected recurrent layers: "
                          "RNN, LSTM, GRU or Layer")
    made: list[Recurrent] = []
    for i, (layer, own) in enumerate(zip(layers, spawn(seed, len(layers)), strict=True)):
        if isinstance(layer, dict):
            layer = dict(layer)
            kind = _checks.one_of(f"layers[{i}]['layer']", layer.pop("layer", None), KINDS)
            layer = class_of(kind)(**{"seed": own} | layer)
        name = f"layers[{i}]"
        if not isinstance(layer, Recurrent):
            raise RefusedType(f"{name} is {_checks.kind(layer)}, expected RNN, LSTM, GRU or Layer")
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
    """Return the arrays of a layer's state as a tuple, one for each state of the cell."""
    return state if isinstance(state, tuple) else (state,)


class Stack(Model):
    """Recurrent layers, one above the other, over real vectors or over symbols.

    Parameters
    ----------
    layers : RNN, LSTM, GRU or Layer, or several of them
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
        """Features D*O of what the last layer gives: D*H of RNN, LSTM and GRU."""
        return self.layers[-1].width

    def check_input(
        self, x: Any, name: str = "x", lengths: Any = None, episode_start: Any = None
    ) -> tuple[np.ndarray, Ragged | None]:
        """Return the input, and where its real steps lie if it is no plain batch.

        Returns
        -------
        x : array (T, B, I), or int32 (T, B): a copy of the symbols; rows (M, I) or (M,) if it is
            no plain batch
        ragged : Ragged or None
        """
        if type(x) is not np.ndarray or x.dtype.hasobject:
            x = as_list(x)
            if not is_list(x):
                check_nested(name, x)
        if lengths is None and episode_start is None and (
                type(x) is np.ndarray or not is_list(x)):
            if self.vocab_size is None:
                return _checks.array(name, x, self.dtype, ("T", "B", self.input_size)), None
            return self._symbols(x, ("T", "B"), name), None
        if is_list(x):
            if lengths is not None:
                raise RefusedValue(f"lengths is given with a list, expected None: each sequence of "
                                   f"{name} has a length of its own")
            if self.vocab_size is not None:
                x, of_list = Ragged.of_list(name, x, one_text, episode_start)
                return self._symbols(x, ("N",), name), of_list
            return Ragged.of_list(name, x, self._one_sequence, episode_start)
        if self.vocab_size is None:
            x = _checks.array(name, x, self.dtype, ("T", "B", self.input_size))
            ragged = Ragged.of_grid(name, x.shape[:2], lengths, episode_start)
            return (x, None) if ragged is None else (as_rows(x), ragged)
        x = _checks.numbers(name, x)
        if x.ndim != 2:
            raise RefusedValue(f"{name} has shape {x.shape}, expected (T, B)")
        ragged = Ragged.of_grid(name, x.shape, lengths, episode_start)
        if ragged is not None:
            x = _checks.without_padding(x, ragged.time.lengths)
        x = self._symbols(x, ("T", "B"), name)
        return (x, None) if ragged is None else (x.reshape(-1), ragged)

    def _symbols(self, x: Any, shape: tuple[str, ...], name: str) -> np.ndarray:
        """Return a copy of symbols as int32."""
        return _checks.rows(x, shape, self.vocab_size or 0, name=name,
                            of="the identity" if self.one_hot else "the embedding")

    def _one_sequence(self, name: str, a: Any) -> np.ndarray:
        return one_sequence(name, a, self.dtype, self.input_size)

    def check_states(self, state: Any, B: int, name: str = "state") -> States:
        """Return a state, of arrays of the right shapes or None: zero, for each layer."""
        if state is None:
            return (None,) * len(self.layers)
        if not isinstance(state, (tuple, list)) or len(state) != len(self.layers):
            raise RefusedType(f"{name} is {_checks.show(state)}, expected a tuple with one entry "
                              f"for each of {len(self.layers)} layers")
        checked = []
        for i, (layer, of) in enumerate(zip(self.layers, state, strict=True)):
            arrays = _checks.states(f"{name}[{i}]", of, layer.cell.states, self.dtype,
                                    layer.state_shapes(B))
            checked.append(arrays[0] if len(arrays) == 1 else arrays)
        return tuple(checked)

    def run(
        self, x: np.ndarray, state: States, *, grad: bool, dropout: bool,
        ragged: Ragged | None = None,
    ) -> tuple[np.ndarray, States, list[Pass]]:
        """Run the layers over input and state that were checked.

        Parameters
        ----------
        x : array (T, B, I), or int32 (T, B); with `ragged` rows (M, I) or (M,)
        state : tuple
        grad : bool
            Whether a pass is wanted.
        dropout : bool
            Whether layers in training mode draw dropout.
        ragged : Ragged, optional
            Where the real steps of x are.

        Returns
        -------
        y, state : as of a call; with `ragged` y is rows (N, D*H), one sequence after the other
        passes : list
            The pass of each layer; empty without `grad`.
        """
        index: np.ndarray | None = None
        y: Any = x
        if self.vocab_size is not None:
            y, index = None if self.embedding is None else self.embedding.weight, x
        after: list[Any] = []
        passes: list[Pass] = []
        for i, (layer, before) in enumerate(zip(self.layers, state, strict=True)):
            drops = dropout and layer.mode == "training"
            if ragged is None:
                y, final, p = layer.run(y, index, before, grad=grad, dropout=drops)
            else:  # between layers the rows have the order in which they walk
                y, final, p = layer.run(
                    y, index, before, grad=grad, dropout=drops, layout=_ROWS, time=ragged.time,
                    source="walk" if i else ragged.source,
                    target="walk" if layer is not self.layers[-1] else "sequences")
            after.append(final)
            if p is not None:
                passes.append(p)
            index = None
        return y, tuple(after), passes

    def checked_run(
        self, x: Any, state: Any, *, grad: bool, dropout: bool, lengths: Any = None,
        episode_start: Any = None,
    ) -> tuple[Any, States, StackPass | None]:
        """Check x and state, and run."""
        x, ragged = self.check_input(x, "x", lengths, episode_start)
        shape = x.shape[:2] if ragged is None else ragged.shape
        y, state, passes = self.run(x, self.check_states(state, shape[1]), grad=grad,
                                    dropout=dropout, ragged=ragged)
        p = StackPass(self, passes, shape, ragged) if grad else None
        return y if ragged is None else ragged.to_caller(y), state, p

    @public
    def __call__(
        self, x: Any, state: States | None = None, *, lengths: Any = None,
        episode_start: Any = None,
    ) -> tuple[Any, States]:
        """Run the layers over a batch of sequences; in training mode with dropout.

        Parameters
        ----------
        x : array (T, B, I), or integers (T, B) below V; or a list of B arrays (T_i, I) or (T_i,)
            The arrays of a list may differ in their number of steps, 0 too.
        state : tuple with a state for each layer, or None: zeros
        lengths : integers (B,), each 0 to T, optional
            The steps of each row of an array; what follows is padding and may be anything.
        episode_start : booleans (T, B), or a list of arrays (T_i,) with a list, optional
            Where a new episode begins: there the state before the step is zero.

        Returns
        -------
        y : array (T, B, D*H), zero in padding, or a list of arrays (T_i, D*H)
        state : tuple
            Every layer's final state, that of each row after its own last step.
        """
        y, state, _ = self.checked_run(x, state, grad=False, dropout=True, lengths=lengths,
                                       episode_start=episode_start)
        return y, state

    @public
    def forward(
        self, x: Any, state: States | None = None, *, lengths: Any = None,
        episode_start: Any = None, grad: bool = True,
    ) -> tuple[Any, States, StackPass | None]:
        """Run the layers over a batch of sequences, and return the pass to go back through.

        Parameters
        ----------
        x, state, lengths, episode_start : as of a call
        grad : bool
            Whether a pass is wanted; without one, dropout is left out.

        Returns
        -------
        y, state : as of a call
        p : StackPass or None
        """
        grad = _checks.flag("grad", grad)
        return self.checked_run(x, state, grad=grad, dropout=grad, lengths=lengths,
                                episode_start=episode_start)

    def _shapes_out(self) -> dict[str, str]:
        shapes = {f"layers.{i}": f"(T, B, {layer.width})" for i, layer in enumerate(self.layers)}
        return shapes | {"embedding": f"(T, B, {self.input_size})"}
