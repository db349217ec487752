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
from fastrnn.models.passes import LossOptions, States
from fastrnn.models.ragged import Ragged
from fastrnn.models.sequence import SequenceModel

__all__ = ["evaluate", "predict"]


@public
def predict(
    model: SequenceModel, x: Any, *, batch_size: int = 256, context: Any = None,
    episode_start: Any = None,
) -> Any:
    """Return a model's predictions for sequences, as in evaluation, whatever its mode.

    Parameters
    ----------
    model : SequenceModel
    x : array (N, T, I), list of arrays (T_i, I) and more, see fastrnn.models.inputs.sequences
    batch_size : int
        Sequences that are computed at a time.
    context : array (N, C), optional
        For a model with a context_size.
    episode_start : booleans (N, T), or a list of arrays (T_i,), optional
        Where a new episode begins: there the state before the step is zero.

    Returns
    -------
    array (N, T, K), or (N, K) with readout "last"
        Probabilities for softmax and bce, the outputs themselves for mse. For one series, (T, I) or
        (T,), without the N. For sequences of different lengths, with readout "every", a list of
        arrays (T_i, K).

    Raises
    ------
    TypeError, ValueError, IndexError
        If x is not data for this model.
    """
    model = _sequence_model(model)
    data = inputs.sequences(model, x)
    context = inputs.contexts(model, context, data)
    start = inputs.episode_starts(episode_start, data)
    every = model.readout == "every"
    different: list[np.ndarray] = []
    shape = (data.N, data.T, model.output_size) if every else (data.N, model.output_size)
    found = np.empty(0 if data.listed and every else shape, model.dtype)
    for now in _batches(data.N, batch_size):
        rows, ragged, state, given = _begin(model, data, context, start, now)
        outputs, _, _ = model.outputs(rows, state, given, grad=False, dropout=False, ragged=ragged)
        if data.listed and every and ragged is not None:
            different += ragged.to_caller(_probabilities(model.loss_name, outputs))
            continue
        if ragged is not None and every:
            outputs = ragged.to_caller(outputs)
        found[now] = outputs.swapaxes(0, 1) if every else outputs
    if data.listed and every:
        return different
    found = _probabilities(model.loss_name, found)
    return found[0] if data.one else found


@public
def evaluate(
    model: SequenceModel, x: Any, y: Any = None, *, weights: Any = None, batch_size: int = 256,
    context: Any = None, episode_start: Any = None,
) -> float:
    """Return a model's mean loss over sequences, as in evaluation, whatever its mode.

    Parameters
    ----------
    model : SequenceModel
    x : array (N, T, I), list of arrays (T_i, I) and more, see fastrnn.models.inputs.sequences
    y : array (N, T, K), or (N, K) with readout "last", see fastrnn.models.inputs.targets
        With a list x and readout "every" a list of arrays (T_i, K). None: each target is the next
        step of x.
    weights : array (N, T) or (N,), or a list of arrays (T_i,), optional
        A weight of 0 leaves an output out. Without y and with readout "every" an output less.
    batch_size : int
        Sequences that are computed at a time.
    context : array (N, C), optional
        For a model with a context_size.
    episode_start : booleans (N, T), or a list of arrays (T_i,), optional
        Where a new episode begins: there the state before the step is zero. Without y, the last
        step of an episode has no target.

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
    if not data.N * data.T:
        raise RefusedValue(f"x has {data.N} sequences of {data.T} steps, expected at least one")
    data, goals, w, start = inputs.goals(model, data, y, weights, episode_start)
    context = inputs.contexts(model, context, data)
    every = model.readout == "every"
    total, count = 0.0, 0.0
    for now in _batches(data.N, batch_size):
        rows, ragged, state, given = _begin(model, data, context, start, now)
        own = goals[now], None if w is None else w[now]
        if every and not data.listed:
            own = own[0].swapaxes(0, 1), None if own[1] is None else own[1].T
        shape = rows.shape[:2] if ragged is None else ragged.shape
        checked = model.check_goals(own[0], shape, LossOptions(own[1]), ragged)
        p = model.loss_of(rows, checked, state, given, False, ragged)
        total += p.value * p.weight
        count += p.weight
    if not count:
        raise RefusedValue("no output has a weight above 0 and a target to compare with, expected "
                           "at least one")
    return total / count


def _sequence_model(model: Any) -> SequenceModel:
    if not isinstance(model, SequenceModel):
        raise RefusedType(f"model is {_checks.kind(model)}, expected a SequenceModel or a "
                          "LanguageModel")
    return model


def _begin(
    model: SequenceModel, data: inputs.Sequences, context: np.ndarray | None, start: Any, now: slice
) -> tuple[np.ndarray, Ragged | None, States, np.ndarray | None]:
    """Return the input of some sequences as `check_input` does, their state and context."""
    x, flags = data.x[now], None if start is None else start[now]
    if not data.listed:
        x, flags = x.swapaxes(0, 1), None if flags is None else flags.T
    x, ragged = model.check_input(x, "x", None, flags)
    own = None if context is None else context[now]
    B = (x.shape if ragged is None else ragged.shape)[1]
    return x, ragged, *model.initial_state(None, own, B)


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
