"""Predictions and losses for users' data, sequences first, in batches of bounded memory.

Letters: N sequences, T steps, I features, K numbers of an output, B batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.models import inputs
from fastrnn.models.generate import sigmoid
from fastrnn.models.model import Model
from fastrnn.models.passes import LossOptions, States
from fastrnn.models.sequence import SequenceModel

__all__ = ["evaluate", "predict"]


@public
def predict(model: Model, x: Any, *, batch_size: int = 256, context: Any = None) -> np.ndarray:
    """Return a model's predictions for sequences, as in evaluation, whatever its mode.

    Parameters
    ----------
    model : SequenceModel
    x : array (N, T, I) and more, see fastrnn.models.inputs.sequences
    batch_size : int
        Sequences that are computed at a time.
    context : array (N, C), optional
        For a model with a context_size.

    Returns
    -------
    array (N, T, K), or (N, K) with readout "last"
        Probabilities for softmax and bce, the outputs themselves for mse. For one series, (T, I) or
        (T,), without the N.

    Raises
    ------
    TypeError, ValueError, IndexError
        If x is not data for this model.
    """
    model = _sequence_model(model)
    data = inputs.sequences(model, x)
    context = inputs.contexts(model, context, data)
    every = model.readout == "every"
    shape = (data.N, data.T, model.output_size) if every else (data.N, model.output_size)
    found = np.empty(shape, model.dtype)
    for now in _batches(data.N, batch_size):
        rows, state, given = _begin(model, data, context, now)
        outputs, _, _ = model.outputs(rows, state, given, grad=False, dropout=False)
        found[now] = outputs.swapaxes(0, 1) if every else outputs
    found = _probabilities(model.loss_name, found)
    return found[0] if data.one else found


@public
def evaluate(
    model: Model, x: Any, y: Any = None, *, weights: Any = None, batch_size: int = 256,
    context: Any = None,
) -> float:
    """Return a model's mean loss over sequences, as in evaluation, whatever its mode.

    Parameters
    ----------
    model : SequenceModel
    x : array (N, T, I) and more, see fastrnn.models.inputs.sequences
    y : array (N, T, K), or (N, K) with readout "last", see fastrnn.models.inputs.targets
        None: each target is the next step of x.
    weights : array (N, T) or (N,), optional
        A weight of 0 leaves an output out.
    batch_size : int
        Sequences that are computed at a time.
    context : array (N, C), optional
        For a model with a context_size.

    Returns
    -------
    float
        The weighted mean over all outputs, in nats for softmax and bce.

    Raises
    ------
    TypeError, ValueError, IndexError
        If the arrays are not data for this model.
    """
    model = _sequence_model(model)
    data = inputs.sequences(model, x)
    goals = None
    if y is None:
        data, goals = inputs.next_steps(model, data)
    if not data.N * data.T:
        raise RefusedValue(f"x has {data.N} sequences of {data.T} steps, expected at least one")
    w = inputs.weights(model, weights, data)
    if goals is None:
        goals = inputs.targets(model, y, data, w)
    context = inputs.contexts(model, context, data)
    every = model.readout == "every"
    total, count = 0.0, 0.0
    for now in _batches(data.N, batch_size):
        rows, state, given = _begin(model, data, context, now)
        own = goals[now], None if w is None else w[now]
        if every:
            own = own[0].swapaxes(0, 1), None if own[1] is None else own[1].T
        checked = model.check_goals(own[0], rows.shape[:2], LossOptions(own[1]))
        p = model.loss_of(rows, checked, state, given, False)
        total += p.value * p.weight
        count += p.weight
    return total / count if count else 0.0


def _sequence_model(model: Any) -> SequenceModel:
    if not isinstance(model, SequenceModel):
        raise RefusedType(f"model is {_checks.kind(model)}, expected a SequenceModel or a "
                          "LanguageModel")
    return model


def _begin(
    model: SequenceModel, data: inputs.Sequences, context: np.ndarray | None, now: slice
) -> tuple[np.ndarray, States, np.ndarray | None]:
    """Return the input (T, B, ...), the initial state and the context of some sequences."""
    x, _ = model.check_input(data.x[now].swapaxes(0, 1))
    own = None if context is None else context[now]
    return x, *model.initial_state(None, own, x.shape[1])


def _batches(N: int, batch_size: Any) -> list[slice]:
    size = _checks.positive("batch_size", batch_size)
    return [slice(start, start + size) for start in range(0, N, size)]


def _probabilities(loss: str, outputs: np.ndarray) -> np.ndarray:
    """Turn logits into probabilities, in place."""
    if loss == "softmax":
        outputs -= outputs.max(-1, keepdims=True)
        np.exp(outputs, out=outputs)
        outputs /= outputs.sum(-1, keepdims=True)
    elif loss == "bce":
        outputs[...] = sigmoid(outputs)
    return outputs
