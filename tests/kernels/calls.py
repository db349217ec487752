"""One layer's arguments for fastrnn._kernels.sequence, drawn from a seed."""

import dataclasses

import cases
import numpy as np

from fastrnn._kernels import sequence
from fastrnn._kernels.runtime import Workspace
from fastrnn._kernels.timeline import Timeline

V = 6  # rows of an embedding


def states(h, c):
    """Return the tuple that kernels take; c is None of cells without it."""
    return (h,) if c is None else (h, c)


@dataclasses.dataclass
class Call:
    """What one forward and one backward take. Letters: T B I H G D V as in sequence.pyx."""

    cell: str
    x: np.ndarray | None
    index: np.ndarray | None
    weights: tuple
    reverse: tuple
    h0: np.ndarray
    c0: np.ndarray | None
    dy: np.ndarray
    dx_shape: tuple | None
    workspace: Workspace = dataclasses.field(default_factory=Workspace)
    plan: tuple | None = None  # of a new Timeline for each forward
    layout: str = "time"  # of x or index, y and dy, with a plan

    @property
    def kind(self):
        return cases.CELLS.index(self.cell)

    def forward(self, *, keep, weights=None):
        """Return ({y, hn, and cn of lstm}, tape)."""
        y, hn = np.full_like(self.dy, np.nan), np.full_like(self.h0, np.nan)
        cn = None if self.c0 is None else np.full_like(hn, np.nan)
        time = None if self.plan is None else Timeline(*self.plan)
        tape = sequence.forward(
            self.kind, self.x, self.index, self.weights if weights is None else weights,
            self.reverse, states(self.h0, self.c0), y, states(hn, cn), keep, self.workspace, time,
            self.layout, self.layout)
        named = {"y": y, "hn": hn, "cn": cn}
        return {name: array for name, array in named.items() if array is not None}, tape

    def backward(self, tape, record=()):
        """Return gradients, and what was recorded, by name."""
        dx = None if self.dx_shape is None else np.full(self.dx_shape, np.nan, self.dy.dtype)
        dh0 = np.full_like(self.h0, np.nan)
        dc0 = None if self.c0 is None else np.full_like(dh0, np.nan)
        grads = tuple(tuple(None if w is None else np.zeros_like(w) for w in direction)
                      for direction in self.weights)
        dhn = self.h0 / 3
        got = sequence.backward(tape, self.dy, states(dhn, self.c0), dx, states(dh0, dc0), grads,
                                record)
        named = {"dx": dx, "dh0": dh0, "dc0": dc0}
        for d, direction in enumerate(grads):
            named |= {f"dweight{4 * d + k}": array for k, array in enumerate(direction)}
        return got | {name: array for name, array in named.items() if array is not None}


def make(cell, T, B, I, H, *, D=1, dtype=np.float32, source="dense", bias=True, seed=0):
    """Draw a call; `source` is dense, embedding or one_hot."""
    rng = np.random.default_rng(seed)
    rows = cases.GATES[cell] * H

    def draw(*shape):
        return (rng.standard_normal(shape) / 2).astype(dtype)

    index = {"embedding": V, "one_hot": I}.get(source)
    if index is not None:
        index = rng.integers(index, size=(T, B), dtype=np.int32)
    x = {"dense": (T, B, I), "embedding": (V, I)}.get(source)
    biases = (rows,) if bias else None
    return Call(
        cell=cell, x=None if x is None else draw(*x), index=index,
        weights=tuple(
            (draw(rows, I), draw(rows, H), *(draw(*biases) if bias else None for _ in range(2)))
            for _ in range(D)),
        reverse=(False, True)[:D], h0=draw(D, B, H), c0=draw(D, B, H) if cell == "lstm" else None,
        dy=draw(T, B, D * H), dx_shape=x,
    )


def make_ragged(cell, lengths, T, I, H, reset=None, to_initial=False, layout="time", **options):
    """Draw a call with lengths and resets."""
    plan = np.array(lengths), T, reset, to_initial
    call = make(cell, Timeline(*plan).size(layout), 1, I, H, **options)
    state = make(cell, 1, len(lengths), I, H, **options)  # its states have the right batch

    def rows(array):
        return array if array is None else array.reshape(-1, *array.shape[2:])

    dense = options.get("source", "dense") == "dense"
    x = rows(call.x) if dense else call.x
    return dataclasses.replace(
        call, x=x, index=rows(call.index), dy=rows(call.dy), h0=state.h0, c0=state.c0, plan=plan,
        layout=layout, dx_shape=x.shape if dense else call.dx_shape)


def assert_same(got, expected):
    """Hold two results against each other, bit by bit."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].tobytes() == array.tobytes(), name
        assert np.isfinite(array).all(), name
