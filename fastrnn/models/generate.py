"""Free running: each output of a model is its next input, drawn at random for symbols.

Letters: B batch, N outputs, V symbols.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue

if TYPE_CHECKING:
    from fastrnn.models.passes import States
    from fastrnn.models.sequence import SequenceModel

__all__ = ["Sampling", "check_first", "run_freely", "sigmoid"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How symbols are drawn from logits: see SequenceModel.generate."""

    temperature: float
    top_k: int | None
    top_p: float
    rng: np.random.Generator

    @classmethod
    def checked(cls, temperature: Any, top_k: Any, top_p: Any, seed: Any) -> Self:
        """Return the options, or refuse them."""
        if _checks.probability("top_p", top_p) == 0:
            raise RefusedValue(f"top_p is {_checks.show(top_p)}, expected a number above 0")
        return cls(
            _checks.at_least("temperature", temperature),
            None if top_k is None else _checks.positive("top_k", top_k), float(top_p),
            np.random.default_rng(*_checks.seeds(seed, 1)))

    def draw(self, logits: np.ndarray) -> np.ndarray:
        """Return a symbol (B,) for each row of logits (B, V)."""
        x = logits.astype(np.float64)
        largest = x.max(-1, keepdims=True)
        if not np.isfinite(largest).all():
            raise RefusedValue("the model's outputs are not finite, expected finite logits: its "
                               "parameters or its state have NaN or infinities")
        if self.temperature == 0:
            return np.asarray(x.argmax(-1), np.int32)
        with np.errstate(over="ignore"):  # a tiny temperature makes all but the likeliest 0
            p = np.exp((x - largest) / self.temperature)
        cumulated = self._kept(p).cumsum(-1)
        drawn = self.rng.random(len(p)) * cumulated[:, -1]
        symbols = np.minimum((cumulated <= drawn[:, None]).sum(-1), x.shape[-1] - 1)
        return np.asarray(symbols, np.int32)

    def _kept(self, p: np.ndarray) -> np.ndarray:
        """Return p (B, V) with 0 for symbols that top_k and top_p leave out."""
        V = p.shape[-1]
        if (self.top_k is None or self.top_k >= V) and self.top_p >= 1:
            return p
        order = np.argsort(-p, axis=-1, kind="stable")  # (B, V), the likeliest first
        ranked = np.take_along_axis(p, order, -1)
        before = ranked.cumsum(-1) - ranked
        keep = before < self.top_p * ranked.sum(-1, keepdims=True)
        if self.top_k is not None:
            keep[:, self.top_k :] = False
        kept = np.zeros_like(p)
        np.put_along_axis(kept, order, np.where(keep, ranked, 0.0), -1)
        return kept


def check_first(model: SequenceModel, first: Any) -> np.ndarray:
    """Return the first input, a copy, if the model's outputs can be inputs."""
    symbolic = model.vocab_size is not None
    expected = model.vocab_size if symbolic else model.input_size
    if symbolic != (model.loss_name == "softmax") or model.output_size != expected:
        raise RefusedValue(f"{model.output_size} outputs of {model.loss_name} cannot be inputs, "
                           f"expected {expected} of {'softmax' if symbolic else 'mse or bce'}")
    if symbolic:
        return _checks.rows(first, ("B",), int(model.vocab_size or 0), name="first")
    return np.array(_checks.array("first", first, model.dtype, ("B", model.input_size)))


def run_freely(
    model: SequenceModel, x: np.ndarray, length: int, state: States | None, sampling: Sampling
) -> np.ndarray:
    """Return what a model gives when each output is the next input; see SequenceModel.generate."""
    step = model.make_stream(max(1, len(x)))
    try:
        given = np.empty((length, *x.shape), x.dtype)
    except (MemoryError, ValueError, OverflowError) as error:
        raise MemoryError(f"{type(model).__name__}: there is not enough memory for {length:.3g} "
                          "steps") from error
    if not len(x):
        return given
    step.state = state
    outputs = np.empty((len(x), model.output_size), model.dtype)
    for t in range(length):
        step(x, out=outputs)
        if model.vocab_size is not None:
            given[t] = sampling.draw(outputs)
        else:
            given[t] = outputs if model.loss_name == "mse" else sigmoid(outputs)
        x = given[t]
    return given


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), which does not overflow."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, e) / (1 + e), x.dtype)
