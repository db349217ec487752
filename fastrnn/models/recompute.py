"""Gradient checkpointing: a loss that keeps only some states, and runs forward again to go back.

The time axis is cut into pieces of so many steps. Forward keeps the state before each piece;
backward runs each piece again with its tape, the last one first, and passes the gradient of the
state on. T. Chen et al., "Training deep nets with sublinear memory cost", arXiv:1604.06174, 2016.
Letters: T steps, B batch, D directions, H hidden, N outputs.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn.layers.passes import Recorded
from fastrnn.layers.recurrent import Recurrent
from fastrnn.models.linear import inside
from fastrnn.models.losses import Goals
from fastrnn.models.passes import (
    Back,
    Gradients,
    LossOptions,
    LossPass,
    ModelPass,
    States,
    back_through,
    join_recorded,
)

if TYPE_CHECKING:
    from fastrnn.models.ragged import Ragged
    from fastrnn.models.sequence import SequenceModel

__all__ = ["Read", "loss"]

M = TypeVar("M", bound="SequenceModel")


class Read(NamedTuple):
    """What a model reads: its input, and where the real steps are if it is no plain batch."""

    x: np.ndarray
    ragged: Ragged | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The pair (T, B)."""
        return self.x.shape[:2] if self.ragged is None else self.ragged.shape

    def piece(self, steps: slice) -> tuple[Read, Any, Any]:
        """Return some neighbouring steps alone, and which outputs and rows of x are theirs."""
        if self.ragged is None:
            return Read(self.x[steps]), steps, steps
        ragged, rows, of_x = self.ragged.piece(steps)
        return Read(self.x[of_x], ragged), rows, of_x


class Piece(NamedTuple):
    """Some neighbouring steps, to be run again.

    Attributes
    ----------
    steps : slice
    state : tuple
        Before them.
    dropout : list
        The states of the generators of masks before them.
    """

    steps: slice
    state: States
    dropout: list[dict[str, Any]]


def apart(model: M) -> M:
    """Return a model of the same parameters, in the modes of now, with dropout's masks of its own.

    Another pass through the model, or a change of its mode, does not change which masks are drawn
    when a piece runs again.
    """
    other = copy.copy(model)
    other.__dict__["layers"] = tuple(map(_apart, model.layers))
    return other


def _apart(layer: Recurrent) -> Recurrent:
    other: Recurrent = object.__new__(type(layer))
    other.__dict__.update(layer.__dict__, _last=None)
    if layer.draws:
        other.__dict__["_masks"] = np.random.default_rng(0)
        other.dropout_state = layer.dropout_state
    return other


def loss(
    model: SequenceModel, read: Read, goals: Goals, state: States, context: np.ndarray | None,
    options: LossOptions,
) -> LossPass:
    """Return the loss of a model and what it takes to go back, in the memory of a few steps."""
    every = _checks.positive("recompute_every", options.recompute_every)
    if any(layer.bidirectional for layer in model.layers):
        raise RefusedValue(f"recompute_every is {every} with a bidirectional layer, expected "
                           "layers that only go forward")
    for layer in model.layers if options.grad else ():
        layer.check_pass()
    other = apart(model)
    if options.grad:
        for layer in other.layers:
            if layer.mode == "training":
                layer.hold_masks(read.shape[1])
    pieces, value = [], 0.0
    for start in range(0, max(1, read.shape[0]), every):
        piece = Piece(slice(start, start + every), state, _dropout(other))
        pieces.append(piece)
        (x, ragged), outputs_of, _ = read.piece(piece.steps)
        y, state, _ = other.run(x, state, grad=False, dropout=options.grad, ragged=ragged)
        if model.readout == "every":
            value += model.score(model.head.apply(y), goals.part(outputs_of), False)
    last = outputs = None
    if model.readout == "last":
        last = model.read(y, state)
        outputs = model.head.apply(last)
        value = model.score(outputs, goals, options.grad)
    if not options.grad:
        return LossPass(value, goals.total, state)
    for layer, used in zip(model.layers, other.layers, strict=True):
        if layer.draws:
            layer.dropout_state = used.dropout_state
    p = _Recomputed(model, other, read, goals, pieces, last, context)
    return LossPass(value, goals.total, state, p, outputs)


def _dropout(model: SequenceModel) -> list[dict[str, Any]]:
    return [layer.dropout_state if layer.draws else {} for layer in model.layers]


class _Recomputed(ModelPass):
    """A loss whose tapes are made again, piece by piece, in backward."""

    def __init__(
        self, model: SequenceModel, other: SequenceModel, read: Read, goals: Goals,
        pieces: list[Piece], last: np.ndarray | None, context: np.ndarray | None,
    ) -> None:
        super().__init__(model, model, read.shape, read.ragged)
        self._other, self._read, self._goals, self._pieces = other, read, goals, pieces
        self._last, self._context = last, context  # what the head read with readout "last"

    def __copy__(self) -> Self:
        made = super().__copy__()
        made._other = apart(self._other)  # whose generators backward sets
        return made

    def _go_back(self, gradient: Any, dstate: States, back: Back) -> Gradients:
        """Go back; with readout "last" the gradient is that of the outputs, else None."""
        model = self._other
        if self._last is not None:
            dread = model.head.backward(gradient, self._last, inside(back.grads, "head"))
            dstate = model.add_to_last(dread, dstate)
        dx, recorded = None, []
        if back.need_dx and model.vocab_size is None:
            dx = np.empty(self._read.x.shape, model.dtype)
        for piece in reversed(self._pieces):
            dstate, found = self._piece_back(piece, dstate, back, dx)
            recorded.append(found)
        dstate0: Any = dstate
        if self._context is not None:
            dstate0 = model.context_backward(self._context, dstate, back.grads)
        return dx, dstate0, join_recorded(recorded[::-1])

    def _piece_back(
        self, piece: Piece, dstate: States, back: Back, dx: np.ndarray | None
    ) -> tuple[States, list[Recorded]]:
        """Go back through a piece, write its rows of dx, and return the state's gradient."""
        model = self._other
        (x, ragged), outputs_of, of_x = self._read.piece(piece.steps)
        for layer, state in zip(model.layers, piece.dropout, strict=True):
            if layer.draws:
                layer.dropout_state = state
        y, _, passes = model.run(x, piece.state, grad=True, dropout=True, ragged=ragged)
        dy = None
        if self._last is None:
            doutputs = model.head.apply(y)
            model.score(doutputs, self._goals.part(outputs_of), True)
            dy = model.head.backward(doutputs, y, inside(back.grads, "head"))
        found, dstate, recorded = back_through(model, passes, dy, dstate,
                                               back._replace(retain=False))
        if dx is not None:
            dx[of_x] = found
        return dstate, recorded
