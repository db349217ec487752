"""What tests of sequences of different lengths share: data for a model of kinds.py, in every form.

Letters: T steps of the longest, B sequences.
"""

import dataclasses
from typing import Any

import cases
import numpy as np

LENGTHS = (4, 0, 6, 1, 6, 3)


@dataclasses.dataclass
class Lists:
    """Sequences with all that a loss takes; with readout "last" targets and weights are arrays."""

    x: list
    targets: Any
    weights: Any
    start: list
    context: Any = None
    every: bool = True

    @property
    def lengths(self):
        return [len(a) for a in self.x]

    @property
    def own(self):
        """The context as a keyword, if there is one."""
        return {} if self.context is None else {"context": self.context}

    def alone(self, i):
        """Return (x, targets, weights, start, context) of one sequence, as a batch of one."""
        one = [self.x[i][:, None], *(a[i][:, None] if self.every else a[i : i + 1]
                                     for a in (self.targets, self.weights)),
               self.start[i][:, None]]
        return *one, {} if self.context is None else {"context": self.context[i : i + 1]}

    def padded(self, more=2):
        """Return (x, targets, weights, start) as arrays (T, B, ...), with anything in padding."""
        grids = [grid(a, more) for a in (self.x, self.start)]
        goals = [grid(a, more) if self.every else a for a in (self.targets, self.weights)]
        return grids[0], *goals, grids[1]


def grid(arrays, more=0, fill=None):
    """Return arrays (T_i, ...) as one (T, B, ...), with nonsense or `fill` in padding."""
    T = max(map(len, arrays)) + more
    like = arrays[0]
    if fill is None:
        fill = {"f": np.nan, "i": 10**6, "b": True}[like.dtype.kind]
    made = np.full((T, len(arrays), *like.shape[1:]), fill, like.dtype)
    for b, a in enumerate(arrays):
        made[: len(a), b] = a
    return made


def lists_of(model, lengths=LENGTHS, seed=0):
    """Return data for a SequenceModel."""
    rng = np.random.default_rng(seed)

    def x(n):
        if model.vocab_size:
            return rng.integers(0, model.vocab_size, n)
        return rng.standard_normal((n, model.input_size)).astype(model.dtype)

    def goals(*rows):
        return {"softmax": lambda: rng.integers(0, model.output_size, rows),
                "mse": lambda: rng.standard_normal((*rows, model.output_size)).astype(model.dtype),
                "bce": lambda: rng.random((*rows, model.output_size)).astype(model.dtype),
                }[model.loss_name]()

    every, B = model.readout == "every", len(lengths)
    context = None
    if model.context_size is not None:
        context = rng.standard_normal((B, model.context_size)).astype(model.dtype)
    return Lists(
        [x(n) for n in lengths],
        [goals(n) for n in lengths] if every else goals(B),
        [rng.random(n) for n in lengths] if every else rng.random(B),
        [rng.random(n) < 0.3 for n in lengths], context, every)


def pair_lists(lengths=LENGTHS, seed=0):
    """Return (source, inputs, targets, weights) for kinds.pair_of."""
    rng = np.random.default_rng(seed)
    source = [rng.integers(0, 6, n) for n in reversed(lengths)]
    inputs, targets = ([rng.integers(0, 6, n) for n in lengths] for _ in range(2))
    return source, inputs, targets, [rng.random(n) for n in lengths]


def assert_same(got, expected, name="array"):
    """Fail unless two arrays, or lists of arrays, have the same bits."""
    if isinstance(expected, list):
        assert len(got) == len(expected)
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert_same(a, b, f"{name}[{i}]")
    else:
        cases.assert_same_bytes({name: np.ascontiguousarray(got)},
                                {name: np.ascontiguousarray(expected)})
