"""Passes of models: what one forward or loss of a model leaves for its backward.

Letters: T steps, B batch, I input, H hidden, D directions, L layers, N outputs, C size of a
context.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, public
from fastrnn.layers.passes import Pass, Recorded, check_unspent
from fastrnn.models.linear import inside

if TYPE_CHECKING:
    from fastrnn.models.sequence import SequenceModel
    from fastrnn.models.stack import Stack

__all__ = ["LossOptions", "LossPass", "ModelPass", "OutputPass", "StackPass"]

States = tuple[Any, ...]  # a state for each recurrent layer
Grads = Mapping[str, np.ndarray] | None


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Options of a loss: see SequenceModel.loss. `grad` says whether to keep the tapes."""

    weights: Any = None
    ignore_index: int | None = -100
    recompute_every: int | None = None
    grad: bool = True

    def replace(self, **values: Any) -> LossOptions:
        """Return the same options but for these."""
        return dataclasses.replace(self, **values)


class ModelPass(abc.ABC):
    """One forward of a model, to go back through.

    It refers to the inputs, the targets and the parameters: leave them as they are until backward.
    """

    @abc.abstractmethod
    def _backward(self, *args: Any, **options: Any) -> Any:
        """Do what `backward` does; errors do not have its name yet."""


class StackPass(ModelPass):
    """One forward of a Stack: ``y, state, p = stack.forward(x)``."""

    def __init__(self, stack: Stack, passes: list[Pass]) -> None:
        self._stack, self._passes = stack, passes

    @public
    def backward(
        self, dy: Any = None, dstate: States | None = None, *, need_dx: bool = True,
        record: tuple[str, ...] = (), grads: Grads = None, retain: bool = False,
    ) -> Any:
        """Backpropagate through time, and add to the model's `grads` or to those given.

        Parameters
        ----------
        dy : array (T, B, D*H) or None: zero
        dstate : tuple with a gradient for each layer's final state, or None: zero
        need_dx, record, grads, retain
            As of fastrnn.layers.Pass.backward.

        Returns
        -------
        dx : array (T, B, I) or None
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
        return self._backward(dy, dstate, need_dx, record, grads, retain)

    def _backward(
        self, dy: Any, dstate: States | None, need_dx: bool = True, record: tuple[str, ...] = (),
        grads: Grads = None, retain: bool = False,
    ) -> Any:
        stack = self._stack
        symbols = stack.vocab_size is not None
        before, recorded, dx = [], [], dy
        steps = list(enumerate(zip(self._passes, stack.check_states(dstate, "dstate"),
                                   strict=True)))
        for i, (p, d) in reversed(steps):
            wanted = i > 0 or stack.embedding is not None or (need_dx and not symbols)
            dx, d0, *more = p._backward(dx, d, wanted, record, inside(grads, f"layers.{i}"), retain)
            before.append(d0)
            recorded += more
        if stack.embedding is not None:
            stack.embedding.add(dx, inside(grads, "embedding"))
        result = (None if symbols else dx), tuple(reversed(before))
        return (*result, recorded[::-1]) if record else result


class OutputPass(ModelPass):
    """One forward of a SequenceModel: ``outputs, state, p = model.forward(x)``."""

    def __init__(
        self, model: SequenceModel, inner: StackPass, read: np.ndarray, context: np.ndarray | None
    ) -> None:
        self._model, self._inner, self._read, self._context = model, inner, read, context
        self._version = model.head.version
        self._spent = False

    @public
    def backward(
        self, doutputs: Any, dstate: States | None = None, *, need_dx: bool = False,
        record: tuple[str, ...] = (), grads: Grads = None, retain: bool = False,
    ) -> Any:
        """Backpropagate through time, and add to the model's `grads` or to those given.

        Parameters
        ----------
        doutputs : array like the outputs
            Gradient of the loss with respect to them.
        dstate : tuple with a gradient for each layer's final state, or None: zero
        need_dx, record, grads, retain
            As of fastrnn.layers.Pass.backward.

        Returns
        -------
        dx : array (T, B, I) or None
            None without `need_dx`, and for symbols.
        dstate0 : tuple, or array (B, C)
            Gradient with respect to the initial state, or to the context if it came from one.
        recorded : list, one entry for each recurrent layer
            Only with `record`.

        Raises
        ------
        RuntimeError, TypeError, ValueError
            As of fastrnn.layers.Pass.backward.
        """
        shape = (*self._read.shape[:-1], self._model.output_size)
        doutputs = _checks.array("doutputs", doutputs, self._model.dtype, shape)
        return self._backward(doutputs, dstate, need_dx, record, grads, retain)

    def _backward(
        self, doutputs: np.ndarray, dstate: States | None, need_dx: bool,
        record: tuple[str, ...], grads: Grads, retain: bool,
    ) -> Any:
        model = self._model
        check_unspent(self._spent, model.head, self._version)
        dstate = model.check_states(dstate, "dstate")
        self._spent = not retain
        dread: Any = model.head.backward(doutputs, self._read, inside(grads, "head"))
        if model.readout == "last":
            dstate, dread = model.add_to_last(dread, dstate), None
        dx, dstate0, *more = self._inner._backward(dread, dstate, need_dx, record, grads, retain)
        if self._context is not None:
            dstate0 = model.context_backward(self._context, dstate0, grads)
        return dx, dstate0, *more


class LossPass(ModelPass):
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

    def __init__(self, value: float, weight: float, state: States) -> None:
        self.value, self.weight, self.state = value, weight, state

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
            parameters.

        Returns
        -------
        dx : array (T, B, I) or None
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
            If an argument does not fit.
        """
        return self._backward(dstate, need_dx, record, grads, retain)

    def _backward(
        self, dstate: States | None, need_dx: bool, record: tuple[str, ...], grads: Grads,
        retain: bool,
    ) -> Any:
        raise RuntimeError("backward: this loss was computed in evaluation mode or with grad=False "
                           "and kept nothing to go back through")


class _HeadLoss(LossPass):
    """A loss of a SequenceModel whose tapes are all kept."""

    def __init__(
        self, value: float, weight: float, state: States, inner: OutputPass, doutputs: np.ndarray
    ) -> None:
        super().__init__(value, weight, state)
        self._inner, self._doutputs = inner, doutputs

    def _backward(self, dstate: States | None, *options: Any) -> Any:
        return self._inner._backward(self._doutputs, dstate, *options)


def join_recorded(parts: list[list[Recorded]]) -> list[Recorded]:
    """Join what was recorded of pieces of time, in order, along time."""
    return [
        [{name: np.concatenate([piece[i][number][name] for piece in parts])
          for name in parts[0][i][number]} for number in range(len(parts[0][i]))]
        for i in range(len(parts[0]))
    ]


def check_pass(value: Any) -> ModelPass:
    """Return `value` if it is a model's pass."""
    if not isinstance(value, ModelPass):
        raise RefusedType(f"got {_checks.kind(value)}, expected the pass of model.loss(...)")
    return value
