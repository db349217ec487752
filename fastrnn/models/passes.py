"""Passes of models: what one forward or loss of a model leaves for its backward.

Letters: T steps, B batch, I input, H hidden, D directions, L layers, N outputs, C size of a
context.
"""

from __future__ import annotations

import abc
import contextlib
import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from fastrnn import _checks
from fastrnn._checks import public
from fastrnn.layers.parameters import check_grads
from fastrnn.layers.passes import Pass, Recorded, adding, check_unspent, checked_record
from fastrnn.models.linear import Scratch, inside

if TYPE_CHECKING:
    from fastrnn.models.model import Model
    from fastrnn.models.ragged import Ragged
    from fastrnn.models.sequence import SequenceModel
    from fastrnn.models.stack import Stack

__all__ = ["LossOptions", "LossPass", "ModelPass", "OutputPass", "StackPass"]

States = tuple[Any, ...]  # a state for each recurrent layer
Grads = Mapping[str, np.ndarray] | None
Gradients = tuple[Any, Any, list[Recorded]]  # of the input, of the initial state; and recorded


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Options of a loss: see SequenceModel.loss. `grad`: whether to keep the tapes."""

    weights: Any = None
    ignore_index: int | None = -100
    recompute_every: int | None = None
    grad: bool = True


class Back(NamedTuple):
    """Options of a backward: see fastrnn.layers.Pass.backward."""

    need_dx: bool
    record: tuple[str, ...]
    grads: Grads
    retain: bool


class ModelPass(abc.ABC):
    """One forward of a model, to go back through.

    It refers to the inputs, the targets and the parameters: leave them as they are until backward.

    Parameters
    ----------
    model : Model
        Whose parameters it read.
    stack : Stack
        Whose final state `dstate` is about.
    rows : tuple
        (T, B) of the input.
    ragged : Ragged or None
        Where the real steps of the input are, if it was no plain batch.
    """

    def __init__(
        self, model: Model, stack: Stack, rows: tuple[int, int], ragged: Ragged | None = None
    ) -> None:
        self._model, self._stack, self.rows, self.ragged = model, stack, rows, ragged
        self._versions = [part.version for part in model.distinct]
        self.spent = False  # whether it has had its backward

    def __copy__(self) -> Self:
        """Return a pass through the same model that goes back by itself."""
        made = object.__new__(type(self))
        for name, value in vars(self).items():
            if isinstance(value, list) and any(isinstance(one, Pass) for one in value):
                value = [copy.copy(one) for one in value]
            made.__dict__[name] = copy.copy(value) if isinstance(value, ModelPass) else value
        return made

    def go_back(self, gradient: Any, dstate: Any, back: Back) -> Any:
        """Do what `backward` does: whatever can be refused is, before anything has changed."""
        model = self._model
        for part, version in zip(model.distinct, self._versions, strict=True):
            if self.spent or part.version != version:
                check_unspent(self.spent, part, version)
        dstate = self._stack.check_states(dstate, self.rows[1], "dstate")
        record = checked_record(back.record, (layer.cell for layer in model.recurrent))
        back = Back(_checks.flag("need_dx", back.need_dx), record, back.grads,
                    _checks.flag("retain", back.retain))
        if back.grads is None:
            guard: Any = adding(model.distinct[0].flat_grads)  # against another pass of the model
        else:
            check_grads(model, back.grads)
            guard = contextlib.nullcontext()
        with guard:
            self.spent = not back.retain
            dx, dstate0, recorded = self._go_back(gradient, dstate, back)
        if self.ragged is not None and dx is not None:
            dx = self.ragged.input_to_caller(dx)
        return (dx, dstate0, recorded) if back.record else (dx, dstate0)

    @property
    def ragged_of_layers(self) -> list[Ragged | None]:
        """What each recurrent layer of the model read, None: a plain batch."""
        return [self.ragged for _ in self._model.recurrent]

    @abc.abstractmethod
    def _go_back(self, gradient: Any, dstate: States, back: Back) -> Gradients:
        """Go back, with arguments that were checked."""


def back_through(
    stack: Stack, passes: list[Pass], dy: Any, dstate: States, back: Back
) -> Gradients:
    """Go back through the layers of a stack, with arguments that were checked."""
    symbols = stack.vocab_size is not None
    dx, dstate0, recorded = dy, [], []
    for i in reversed(range(len(passes))):
        p, record = passes[i], back.record
        if record:
            record = tuple(name for name in record if name in p.layer.cell.recordable)
        wanted = i > 0 or stack.embedding is not None or (back.need_dx and not symbols)
        dx, d0, *more = p._backward(dx, dstate[i], wanted, record,
                                    inside(back.grads, f"layers.{i}"), back.retain)
        dstate0.append(d0)
        if back.record:
            recorded.append(more[0] if more else [{} for _ in range(p.layer.num_layers)])
    if stack.embedding is not None:
        stack.embedding.add(dx, inside(back.grads, "embedding"))
    return None if symbols else dx, tuple(dstate0[::-1]), recorded[::-1]


class StackPass(ModelPass):
    """One forward of a Stack: ``y, state, p = stack.forward(x)``."""

    def __init__(
        self, stack: Stack, passes: list[Pass], rows: tuple[int, int], ragged: Ragged | None = None
    ) -> None:
        super().__init__(stack, stack, rows, ragged)
        self._passes = passes

    @public
    def backward(
        self, dy: Any = None, dstate: States | None = None, *, need_dx: bool = True,
        record: tuple[str, ...] = (), grads: Grads = None, retain: bool = False,
    ) -> Any:
        """Backpropagate through time, and add to the model's `grads` or to those given.

        Parameters
        ----------
        dy : like y, or None: zero
            What it has in padding does not count.
        dstate : tuple with a gradient for each layer's final state, or None: zero
        need_dx, record, grads, retain
            As of fastrnn.layers.Pass.backward; the names in `grads` are those of the model's
            parameters. Each layer records what its cell has, "dc" of the LSTMs.

        Returns
        -------
        dx : like x, zero in padding, or None
            None without `need_dx`, and for symbols.
        dstate0 : tuple
            Gradient with respect to every layer's initial state.
        recorded : list, one entry for each recurrent layer
            Only with `record`.

        Raises
        ------
        RuntimeError, TypeError, ValueError
            As of fastrnn.layers.Pass.backward.
        """
        if dy is not None:
            shape: tuple[int, ...] = (*self.rows, self._stack.width)
            if self.ragged is not None:
                dy = self.ragged.joined("dy", dy, shape[2:])
                shape = dy.shape
            dy = _checks.array("dy", dy, self._model.dtype, shape)
        return self.go_back(dy, dstate, Back(need_dx, record, grads, retain))

    def _go_back(self, gradient: Any, dstate: States, back: Back) -> Gradients:
        return back_through(self._stack, self._passes, gradient, dstate, back)


class OutputPass(ModelPass):
    """One forward of a SequenceModel: ``outputs, state, p = model.forward(x)``."""

    def __init__(
        self, model: SequenceModel, passes: list[Pass], rows: tuple[int, int], read: np.ndarray,
        context: np.ndarray | None, ragged: Ragged | None = None,
    ) -> None:
        super().__init__(model, model, rows, ragged)
        self._passes, self._context = passes, context
        self._read: np.ndarray | None = read

    @public
    def backward(
        self, doutputs: Any, dstate: States | None = None, *, need_dx: bool = False,
        record: tuple[str, ...] = (), grads: Grads = None, retain: bool = False,
    ) -> Any:
        """Backpropagate through time, and add to the model's `grads` or to those given.

        Parameters
        ----------
        doutputs : like the outputs
            Gradient of the loss with respect to them. What it has in padding does not count.
        dstate, need_dx, record, grads, retain
            As of LossPass.backward.

        Returns
        -------
        dx, dstate0, recorded
            As of LossPass.backward.

        Raises
        ------
        RuntimeError, TypeError, ValueError
            As of LossPass.backward.
        """
        model: Any = self._model
        if self.ragged is not None and model.readout == "every":
            doutputs = self.ragged.joined("doutputs", doutputs, (model.output_size,))
        doutputs = _checks.array("doutputs", doutputs, model.dtype,
                                 model.outputs_shape(*self.rows, self.ragged))
        return self.go_back(doutputs, dstate, Back(need_dx, record, grads, retain))

    def _go_back(self, gradient: Any, dstate: States, back: Back) -> Gradients:
        model: Any = self._model
        read = self._read
        if not back.retain:
            self._read = None
        dread: Any = model.head.backward(gradient, read, inside(back.grads, "head"))
        if model.readout == "last":
            dstate, dread = model.add_to_last(dread, dstate), None
        dx, dstate0, recorded = back_through(model, self._passes, dread, dstate, back)
        if dread is not None:
            model.head.scratch.give(dread)
        if self._context is None:
            return dx, dstate0, recorded
        return dx, model.context_backward(self._context, dstate0, back.grads), recorded


class LossPass:
    """One loss of a model: ``p = model.loss(x, targets)``.

    Attributes
    ----------
    value : float
        The weighted mean over the outputs, in nats for softmax and bce.
    weight : float
        Sum of the weights that it is a mean over. Sums of value * weight over several losses,
        divided by the sum of the weights, give the mean over all of them.
    state : tuple
        Every layer's final state.
    """

    def __init__(
        self, value: float, weight: float, state: States, inner: ModelPass | None = None,
        doutputs: np.ndarray | None = None, scratch: Scratch | None = None,
    ) -> None:
        self.value, self.weight, self.state = value, weight, state
        self.inner, self.doutputs = inner, doutputs  # what backward goes through, and with
        self._scratch = scratch  # where doutputs came from

    def __copy__(self) -> LossPass:
        """Return a pass of the same loss that goes back by itself."""
        doutputs = None if self.doutputs is None else self.doutputs.copy()
        return LossPass(self.value, self.weight, self.state, copy.copy(self.inner), doutputs)

    @property
    def spent(self) -> bool:
        """Whether it has had its backward; True too if it kept nothing to go back through."""
        return self.inner is None or self.inner.spent

    @public
    def backward(
        self, dstate: States | None = None, *, need_dx: bool = False,
        record: tuple[str, ...] = (), grads: Grads = None, retain: bool = False,
    ) -> Any:
        """Backpropagate the loss through time, and add to the model's `grads` or to those given.

        Parameters
        ----------
        dstate : tuple with a gradient for each layer's final state, or None: zero
        need_dx : bool
            Whether the gradient of x is wanted.
        record, grads, retain
            As of fastrnn.layers.Pass.backward; the names in `grads` are those of the model's
            parameters. Each layer records what its cell has, "dc" of the LSTMs.

        Returns
        -------
        dx : like x, zero in padding, or None
            None without `need_dx`, and for symbols.
        dstate0 : tuple, or array (B, C)
            Gradient with respect to the initial state, or to the context if it came from one.
        recorded : list, one entry for each recurrent layer
            Only with `record`: see fastrnn.layers.Pass.backward.

        Raises
        ------
        RuntimeError
            If the loss was computed without a pass (in evaluation mode, or grad=False), if it has
            had its backward, if the library has changed the parameters since, or if another thread
            is adding to the same gradients.
        TypeError, ValueError
            If an argument does not fit; the pass can then be used again.
        """
        inner = self.inner
        if inner is None:
            raise RuntimeError("backward: this loss was computed in evaluation mode or with "
                               "grad=False and kept nothing to go back through")
        result = inner.go_back(self.doutputs, dstate, Back(need_dx, record, grads, retain))
        if inner.spent:
            if self._scratch is not None and self.doutputs is not None:
                self._scratch.give(self.doutputs)
            self.doutputs = None
        return result


def join_recorded(pieces: list[list[Recorded]]) -> list[Recorded]:
    """Join what was recorded of pieces of time, in order, along time."""
    first = pieces[0]
    return [
        [{name: np.concatenate([piece[i][number][name] for piece in pieces])
          for name in first[i][number]} for number in range(len(first[i]))]
        for i in range(len(first))
    ]
