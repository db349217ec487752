"""One step of training: loss, backward, and the optimiser's step; and what is not finite in it."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, without_padding
from fastrnn.layers import RNN
from fastrnn.layers.parameters import Parametrized, distinct
from fastrnn.models.passes import LossPass
from fastrnn.models.ragged import is_list
from fastrnn.training.data import Batch
from fastrnn.training.history import History
from fastrnn.training.optim import Optimizer
from fastrnn.training.options import Descent
from fastrnn.training.regularisers import OMEGA_NEEDS, omega

__all__ = ["Done", "NotFiniteError", "Step", "check_model", "loss_of"]


class NotFiniteError(FloatingPointError):
    """A loss or a gradient that is not finite ended a training.

    Attributes
    ----------
    history : History
        The steps before the error; the model is that after the last of them.
    """

    history: History


class Done(NamedTuple):
    """What a step was.

    Attributes
    ----------
    loss : float
    norm : float
        The norm of the gradients, before any clipping.
    clipped : bool
        Whether they were scaled down to `clip`.
    rate : float
    state : tuple
        What is carried to the next step.
    """

    loss: float
    norm: float
    clipped: bool
    rate: float
    state: Any


def check_model(model: Any) -> Any:
    """Return a model that has a loss."""
    if isinstance(model, Parametrized) and callable(getattr(model, "loss", None)):
        return model
    raise RefusedType(f"model is {_checks.kind(model)}, expected a model with a loss, such as "
                      "SequenceModel(layers, output_size)")


def loss_of(
    model: Any, batch: Batch, state: Any, *, grad: bool, recompute_every: int | None = None
) -> LossPass:
    """Return the loss of a batch; the state before it counts if the batch goes on."""
    options: dict[str, Any] = {}
    if not _checks.flag("first", batch.first) and state is not None:
        options["state"] = state
    if batch.weights is not None:
        options["weights"] = batch.weights
    if batch.context is not None:
        options["context"] = batch.context
    if batch.episode_start is not None:
        options["episode_start"] = batch.episode_start
    if batch.lengths is not None:
        options["lengths"] = batch.lengths
    if recompute_every is not None:
        options["recompute_every"] = recompute_every
    if options:
        _check_options(model, options)
    _check_inputs(model, batch.inputs)
    p: LossPass = model.loss(*batch.inputs, batch.targets, grad=grad, **options)
    return p


def _check_inputs(model: Any, inputs: tuple[Any, ...]) -> None:
    """Refuse another number of inputs than the loss of a model takes before the targets."""
    kind: Any = type(model)
    takes = _parameters(kind)
    if takes is None or "targets" not in takes:
        return
    names = [name for name in takes[:takes.index("targets")] if name != "self"]
    if len(inputs) != len(names):
        one = "one array or list" if len(names) == 1 else f"a tuple ({', '.join(names)})"
        raise RefusedValue(f"inputs of the batch are {len(inputs)} for a model "
                           f"{_checks.kind(model)}, expected {one}")


def _check_options(model: Any, options: dict[str, Any]) -> None:
    """Refuse what a batch has and the loss of its model does not take."""
    kind: Any = type(model)
    takes = _parameters(kind)
    for name in options:
        if takes is not None and name not in takes:
            came = f"{name} is given" if name != "state" else (
                "first is False, so the state is carried on,")
            raise RefusedValue(f"{came} in a batch for a model {_checks.kind(model)}, expected "
                               f"{'True' if name == 'state' else 'None'}: its loss takes no {name}")


@functools.cache
def _parameters(kind: Any) -> tuple[str, ...] | None:
    """Return the names of the arguments of a model's loss; None if it takes any."""
    found = inspect.signature(getattr(kind, "loss", lambda **options: None)).parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in found.values())
    return None if any_name else tuple(found)


class Step:
    """What every step of a run does, with the arrays and layers found once.

    Parameters
    ----------
    model : model
    optimizer : Optimizer
        The optimizer of this model, or of some of its parts.
    descent : Descent
    """

    def __init__(self, model: Any, optimizer: Optimizer, descent: Descent) -> None:
        self._model, self._optimizer, self._descent = model, optimizer, descent
        self._grads = [part.flat_grads for part in distinct(model)]
        self._regularised = [
            (i, layer) for i, layer in enumerate(model.recurrent) if isinstance(layer, RNN)
        ] if descent.omega else []
        if descent.omega and not self._regularised:
            raise RefusedValue(f"omega is {descent.omega} for a model without an RNN, expected one "
                               "with an RNN")
        if descent.recompute_every is not None and (
                "recompute_every" not in inspect.signature(model.loss).parameters):
            raise RefusedValue(f"recompute_every is {descent.recompute_every} for a model "
                               f"{_checks.kind(model)}, expected None: its loss has no gradient "
                               "checkpointing")

    def __call__(self, batch: Batch, state: Any, step: int, fraction: float) -> Done:
        """Take one step; without a finite loss and gradient no parameter has changed."""
        model, optimizer, descent = self._model, self._optimizer, self._descent
        first = optimizer.lr
        rate = first if descent.schedule is None else first * _factor(
            descent.schedule(step, fraction))
        p = loss_of(model, batch, state, grad=True, recompute_every=descent.recompute_every)
        loss = p.value
        if not math.isfinite(loss):
            raise NotFiniteError(f"fit: the loss is {loss} at step {step + 1}: "
                                 + explain(model, batch, state, p.state))
        for grads in self._grads:
            grads.fill(0)
        if self._regularised:
            ragged = None if p.inner is None else p.inner.ragged_of_layers
            *_, recorded = p.backward(record=OMEGA_NEEDS)
            for number, layer in self._regularised:
                of = None if ragged is None else ragged[number]
                omega(layer, recorded[number], descent.omega,
                      first=None if of is None else of.begins)
        else:
            p.backward()
        optimizer.lr = rate
        try:
            norm, limited = optimizer._step(descent.clip, descent.clip_value)
        except FloatingPointError:
            raise NotFiniteError(
                f"fit: the gradients' norm is not finite at step {step + 1}, no parameter has "
                "changed: " + explain(model, batch, state, p.state)) from None
        finally:
            optimizer.lr = first
        return Done(loss, norm, descent.clip is not None and limited > descent.clip, rate, p.state)


def _factor(value: Any) -> float:
    """Return what a schedule returned, if it is a factor."""
    try:
        factor = float(value)
    except (TypeError, ValueError):
        factor = math.nan
    if not 0 <= factor < math.inf:
        raise RefusedValue(f"schedule returned {_checks.show(value)}, expected a number of at "
                           "least 0")
    return factor


# ---- what is not finite --------------------------------------------------------------------------


def explain(model: Any, batch: Batch, before: Any, after: Any) -> str:
    """Return where the first number is that is not finite, and what to do about it."""
    names = [""] if len(batch.inputs) == 1 else [f"[{i}]" for i in range(len(batch.inputs))]
    data = [(f"the inputs{name}", x if n is None else without_padding(x, n))
            for name, (x, n) in zip(names, batch.read, strict=True)]
    targets, n = _counting(batch), batch.read[-1][1] if batch.inputs else None
    if n is not None and getattr(model, "readout", "every") == "every":
        targets = without_padding(targets, n)
    data += [("the targets", targets), ("the weights", batch.weights),
             ("the context", batch.context)]
    for name, a in data:
        if a is not None and (place := _first(a)):
            return f"{name} of this step have {place}, expected finite numbers"
    for name, param in model.parameters().items():
        if place := _first(param):
            return f"the parameter {name} has {place}, expected finite parameters"
    advice = "try a smaller lr, or clip"
    if not batch.first:
        for number, a in _states(before):
            if place := _first(a):
                return f"the state of recurrent layer {number} before this step has {place}; " \
                       f"{advice}"
    for number, a in _states(after):
        if place := _first(a):
            return f"first in the state of recurrent layer {number}, which has {place}; {advice}"
    for name, g in model.grads.items():
        if place := _first(g):
            return f"first in the gradient of {name}, which has {place}; {advice}"
    return f"inputs, parameters and states are finite, the outputs are too large; {advice}"


def _counting(batch: Batch) -> Any:
    """Return the targets, with zeros where they have weight 0."""
    if is_list(batch.targets):
        weights = [1.0] * len(batch.targets) if batch.weights is None else batch.weights
        return [_counting(Batch((), np.asarray(a), np.broadcast_to(w, len(a))))
                for a, w in zip(batch.targets, weights, strict=True)]
    targets = np.asarray(batch.targets)
    if batch.weights is None or targets.dtype.kind != "f":
        return targets
    w = np.asarray(batch.weights)
    w = w.reshape(w.shape + (1,) * (targets.ndim - w.ndim))
    return np.where(w > 0, targets, 0)


def _first(a: Any) -> str:
    """Return the first number that is not finite and its place; "" if there is none."""
    if is_list(a):
        found = ((i, _first(one)) for i, one in enumerate(a))
        return next((place.replace("[", f"[{i}, ") for i, place in found if place), "")
    a = np.asarray(a)
    finite = np.isfinite(a)
    if finite.all():
        return ""
    place = tuple(int(i) for i in np.argwhere(~finite)[0])
    value = a[place]
    return f"{'NaN' if np.isnan(value) else value} at {list(place)}"


def _states(state: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the arrays of a state with the numbers of their layers."""
    for number, of in enumerate(state or ()):
        for a in of if isinstance(of, tuple) else (of,):
            if a is not None:
                yield number, a
