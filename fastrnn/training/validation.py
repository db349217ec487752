"""Losses over many batches, as in evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.layers.parameters import evaluating, modes
from fastrnn.training.data import Data, Samples, Windows, batch_of, check_data
from fastrnn.training.history import History, best_of
from fastrnn.training.options import Stopping, count_of, takes
from fastrnn.training.step import check_model, loss_of

__all__ = ["Validation", "evaluate"]


@public
def evaluate(model: Any, data: Data, count: int) -> float:
    """Return a model's mean loss over `count` batches, as in evaluation, whatever its mode.

    Parameters
    ----------
    model : SequenceModel, EncoderDecoder or LanguageModel
    data : callable
        The batch of a step, 0 to count - 1; the state is carried where a batch goes on.
    count : int

    Returns
    -------
    float
        The weighted mean over all outputs of all batches.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or no output has a weight above 0.
    """
    return _evaluate(check_model(model), check_data("data", data), _checks.positive("count", count))


def _evaluate(model: Any, data: Data, count: int) -> float:
    total = weight = 0.0
    state = None
    with evaluating(model):
        for step in range(count):
            p = loss_of(model, batch_of(data, step), state, grad=False)
            if p.weight:  # the value of nothing may be NaN
                total += p.value * p.weight
                weight += p.weight
            state = p.state
    if not weight:
        raise RefusedValue(f"no output of {count} batches has a weight above 0, expected at least "
                           "one")
    return total / weight


def _check_callable(source: Any) -> None:
    """Refuse a function that cannot be called with nothing, before there is work to lose."""
    if not takes(source):
        raise RefusedType("validation takes arguments, expected a function of none that returns "
                          "the loss, such as lambda: evaluate(model, batches, count)")


class Validation:
    """The validation of a run: when it is due, what it found, whether to stop.

    Parameters
    ----------
    model : model
    source : Windows, Samples, or a function that returns a loss
    stopping : Stopping
    data : Data
        What is trained on: a validation is due after each of its epochs, if it has any.
    """

    def __init__(self, model: Any, source: Any, stopping: Stopping, data: Data) -> None:
        self._model, self._stopping = model, stopping
        self._source: Callable[[], Any] = source
        if isinstance(source, (Windows, Samples)):
            self._source = lambda: _evaluate(model, source, source.count)
        else:
            _check_callable(source)
        self.every = stopping.validate_every or count_of(data) or 1000

    def __call__(self, history: History) -> bool:
        """Validate; return whether this loss is lower than all before."""
        best = history.best
        with modes(self._model):
            loss = self._source()
        try:
            loss = float(loss)
        except (TypeError, ValueError):
            raise RefusedType(f"validation returned {_checks.show(loss)}, expected a number"
                              ) from None
        steps = history.progress.steps
        history.validations.append((steps, loss))
        if steps % self.every:
            history.ends.append(steps)
        return not math.isnan(loss) and (best is None or not loss >= best[1])

    def stop(self, history: History) -> str | None:
        """Return why the run shall end after a validation that was due; None: it goes on.

        What was validated only because an earlier run ended there does not count.
        """
        due = [found for found in history.validations if found[0] not in history.ends]
        best = best_of(due)
        assert best is not None  # there was one
        target, patience = self._stopping.target_loss, self._stopping.patience
        if target is not None and due[-1][1] < target:
            return "target"
        since = len(due) - 1 - due.index(best)
        return "patience" if patience is not None and since >= patience else None
