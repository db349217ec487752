"""What a training reads: batches as a function of the number of the step.

Because a batch depends on the step and a seed alone, a run that was interrupted goes on with just
the batches that it would have read. Whoever has other data writes a function of the step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn import _checks

__all__ = ["Batch", "Drawn", "Samples", "Windows"]


@dataclasses.dataclass
class Batch:
    """What one step of training reads.

    Attributes
    ----------
    inputs : tuple
        What the model's loss takes before the targets: (x,), or (source, inputs) of an
        EncoderDecoder.
    targets, weights, vector
        As for the model's loss.
    first : bool
        Whether the sequences begin here; if not, the state of the step before is carried on.
    """

    inputs: tuple[Any, ...]
    targets: Any
    weights: Any = None
    vector: Any = None
    first: bool = True

    @property
    def size(self) -> int:
        """Numbers or symbols T*B of the targets: what a speed is told in."""
        return int(np.prod(np.shape(self.targets)[:2]))


class Windows:
    """A long sequence in B rows side by side, read in windows of T steps, again and again.

    Row b begins at place b N/B, so that the state that training carries from window to window stays
    with its row: truncated backpropagation through time.

    Parameters
    ----------
    sequence : array (N, ...)
        Symbols (N,), or real vectors (N, I).
    T, B : int
    targets : array (N - 1, ...) or (N, ...), optional
        What belongs to each place; by default the sequence's next element.

    Raises
    ------
    ValueError
        If a row is shorter than one window.
    """

    def __init__(self, sequence: np.ndarray, T: int, B: int, targets: Any = None) -> None:
        T, B = (_checks.positive("Windows", name, n) for name, n in (("T", T), ("B", B)))
        per = (len(sequence) - 1) // B
        if per < T:
            raise ValueError(
                f"Windows: the sequence has {len(sequence)} elements, expected at least "
                f"{B * T + 1} for {B} rows of {T} steps; give more or smaller windows or batches"
            )
        after = sequence[1:] if targets is None else targets
        self._rows = [
            np.ascontiguousarray(a[: per * B].reshape(B, per, *a.shape[1:]).swapaxes(0, 1))
            for a in (np.asarray(sequence), np.asarray(after))]  # (per, B, ...)
        self.T = T
        self.count = per // T

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step, x and targets (T, B, ...)."""
        t = step % self.count * self.T
        x, targets = (_whole(rows[t : t + self.T]) for rows in self._rows)
        return Batch((x,), targets, first=t == 0)


def _whole(a: np.ndarray) -> np.ndarray:
    """Return symbols as the int32 that kernels read."""
    return a.astype(np.int32) if a.dtype.kind in "iu" else a


class Samples:
    """Sequences of one length, in batches whose order is drawn anew for each pass over them.

    Parameters
    ----------
    x : array (T, N, ...)
        N sequences.
    targets : array (T, N, ...), or (N, ...): `axis` says which
    batch_size : int
        Sequences B of a batch; the last of a pass are left out if they are fewer.
    axis : int
        Which axis of the targets counts the sequences: 1, or 0 for one target each.
    weights : array (T, N) or (N,), optional
    seed : int

    Raises
    ------
    ValueError
        If there are fewer than B sequences, or targets for another number of them.
    """

    def __init__(
        self, x: np.ndarray, targets: np.ndarray, batch_size: int, *, axis: int = 1,
        weights: np.ndarray | None = None, seed: int = 0,
    ) -> None:
        B = _checks.positive("Samples", "batch_size", batch_size)
        N = np.shape(x)[1]
        if N < B:
            raise ValueError(f"Samples: x has {N} sequences, expected at least batch_size: {B}")
        for name, a in (("targets", targets), ("weights", weights)):
            if a is not None and np.shape(a)[axis] != N:
                raise ValueError(f"Samples: {name} has {np.shape(a)[axis]} sequences, expected {N}")
        self.x, self.targets, self.weights, self.axis = x, targets, weights, axis
        self.batch_size, self.seed, self.per_pass = B, seed, N // B
        self._turn, self._order = -1, np.empty(0, int)  # of the latest pass: drawn once for each

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step."""
        turn, k = divmod(step, self.per_pass)
        if turn != self._turn:
            rng = np.random.default_rng([self.seed, turn])
            self._turn, self._order = turn, rng.permutation(self.x.shape[1])
        at = self._order[k * self.batch_size : (k + 1) * self.batch_size]
        return Batch((self.x[:, at],), np.take(self.targets, at, self.axis),
                     None if self.weights is None else np.take(self.weights, at, self.axis))


class Drawn:
    """Batches that a function draws: ``draw(rng)`` returns a Batch.

    Parameters
    ----------
    draw : callable
        Takes a numpy.random.Generator, another one for each step.
    seed : int
    """

    def __init__(self, draw: Callable[[np.random.Generator], Batch], seed: int = 0) -> None:
        self.draw, self.seed = draw, seed

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step."""
        return self.draw(np.random.default_rng([self.seed, step]))
