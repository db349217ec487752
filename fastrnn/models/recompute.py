"""Gradient checkpointing: a loss that keeps only some states, and runs forward again to go back.

The time axis is cut into pieces of so many steps. Forward keeps the state before each piece;
backward runs each piece again with its tape, the last one first, and passes the gradient of the
state on. T. Chen et al., "Training deep nets with sublinear memory cost", arXiv:1604.06174, 2016.
Letters: T steps, B batch, D directions, H hidden, N outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn.layers.passes import check_unspent
from fastrnn.models.linear import inside
from fastrnn.models.passes import LossOptions, LossPass, States, join_recorded

if TYPE_CHECKING:
    from fastrnn.models.sequence import SequenceModel

__all__ = ["loss"]


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some neighbouring steps, to be run again."""

    steps: slice
    state: Any  # before them
    dropout: list[dict[str, Any]]  # the generators' states before them
    weight: float  # of their part of the loss


@dataclasses.dataclass(frozen=True)
class _Data:
    """What backward reads again."""

    x: Any
    targets: Any
    context: np.ndarray | None
    options: LossOptions

    def piece(self, steps: slice) -> tuple[Any, Any, Any]:
        """Return x, targets and weights of some steps."""
        w = self.options.weights
        return self.x[steps], self.targets[steps], None if w is None else np.asarray(w)[steps]


def loss(
    model: SequenceModel, x: Any, targets: Any, state: Any, context: Any, options: LossOptions
) -> LossPass:
    """Return the loss of a model and what it takes to go back, in the memory of a few steps."""
    every = _checks.positive("recompute_every", options.recompute_every)
    if any(layer.bidirectional for layer in model.layers):
        raise RefusedValue(f"recompute_every is {every} with a bidirectional layer, expected "
                           "layers that only go forward")
    if model.vocab_size is None:
        x = _checks.array("x", x, model.dtype, ("T", "B", model.input_size))
    else:
        x = _checks.rows(x, ("T", "B"), model.vocab_size, name="symbols")
    targets = np.asarray(targets)
    T, B = x.shape[:2]
    expected = (T, B) if model.readout == "every" else (B,)
    if targets.shape[: len(expected)] != expected:
        raise RefusedValue(f"targets has shape {targets.shape}, expected one for each output: "
                           f"{expected} and more")
    state, context = model.initial_state(state, context)
    data = _Data(x, targets, context, options)
    every_step = model.readout == "every"
    pieces, total, weight = [], 0.0, 0.0
    for start in range(0, T, every):
        steps = slice(start, start + every)
        before, dropout = state, model.dropout_state
        y, state, _ = model.run(x[steps], state, grad=False, dropout=options.grad)
        part = 0.0
        if every_step:
            _, goals, weights = data.piece(steps)
            mean, part, _ = model.score(model.head.apply(y), goals,
                                        options.replace(weights=weights, grad=False))
            total += mean * part
            weight += part
        pieces.append(Piece(steps, before, dropout, part))
    read = doutputs = None
    if every_step:
        value = total / weight if weight else 0.0
    else:
        if not T:
            y, state, _ = model.run(x, state, grad=False)
        read = model.read(y, state)
        outputs = model.head.apply(read)
        value, weight, doutputs = model.score(outputs, targets, options)
    if not options.grad:
        return LossPass(value, weight, state)
    return _Recomputed(model, value, weight, state, pieces, data, read, doutputs)


class _Recomputed(LossPass):
    """A loss whose tapes are made again, piece by piece, in backward."""

    def __init__(
        self, model: SequenceModel, value: float, weight: float, state: States,
        pieces: list[Piece], data: _Data, read: np.ndarray | None, doutputs: np.ndarray | None,
    ) -> None:
        super().__init__(value, weight, state)
        self._model, self._pieces, self._data = model, pieces, data
        self._read, self._doutputs = read, doutputs  # with readout "last"
        self._versions = [part.version for part in model.parts().values()]
        self._spent = False

    def _backward(
        self, dstate: States | None, need_dx: bool, record: tuple[str, ...],
        grads: Mapping[str, np.ndarray] | None, retain: bool,
    ) -> Any:
        model = self._model
        for part, version in zip(model.parts().values(), self._versions, strict=True):
            check_unspent(self._spent, part, version)
        dstate = model.check_states(dstate, "dstate")
        if self._read is not None and self._doutputs is not None:
            dread = model.head.backward(self._doutputs, self._read, inside(grads, "head"))
            dstate = model.add_to_last(dread, dstate)
        self._spent = not retain
        after = model.dropout_state
        dxs, recorded = [], []
        try:
            for piece in reversed(self._pieces):
                model.dropout_state = piece.dropout
                dx, dstate, *more = self._piece_backward(piece, dstate, need_dx, record, grads)
                dxs.append(dx)
                recorded += more
        finally:
            model.dropout_state = after
        dx = None
        if need_dx and model.vocab_size is None:
            dx = np.concatenate(dxs[::-1]) if dxs else np.zeros_like(self._data.x)
        dstate0: Any = dstate
        if self._data.context is not None:
            dstate0 = model.context_backward(self._data.context, dstate, grads)
        result = dx, dstate0
        return (*result, join_recorded(recorded[::-1])) if record else result

    def _piece_backward(
        self, piece: Piece, dstate: Any, need_dx: bool, record: tuple[str, ...],
        grads: Mapping[str, np.ndarray] | None,
    ) -> Any:
        model, options = self._model, self._data.options
        x, targets, weights = (self._data.piece(piece.steps) if self._read is None
                               else (self._data.x[piece.steps], None, None))
        y, _, p = model.run(x, piece.state, grad=True)
        assert p is not None  # a pass was asked for
        dy = None
        if self._read is None:
            _, weight, doutputs = model.score(model.head.apply(y), targets,
                                              options.replace(weights=weights))
            assert doutputs is not None
            doutputs *= model.dtype.type(weight / self.weight if self.weight else 0.0)
            dy = model.head.backward(doutputs, y, inside(grads, "head"))
        return p._backward(dy, dstate, need_dx, record, grads)
