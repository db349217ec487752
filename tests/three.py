"""A cell that is no row of the table, and an engine in NumPy: what layers make of other cells.

Three states of three widths, the output narrower than H:

    c(t) = 3/4 c(t-1) + tanh(W x(t) + R h(t-1));  n(t) = n(t-1) / 2 + N x(t)
    h(t) = tanh(P c(t) + b) + sum(n(t)) / 4

Letters: T steps, B batch, I input, H hidden, D directions, O = H - 1 features of h.
"""

import dataclasses
import sys

import numpy as np

from fastrnn.layers.recurrent import Recurrent

KEEP, SHARE, M = 0.75, 0.25, 2


@dataclasses.dataclass(frozen=True)
class Three:
    name: str = "three"
    states: tuple = ("h", "c", "n")
    output: str = "h"
    memory: str = "c"
    gates: tuple = ()
    slope: None = None
    keep_gate: None = None
    input_gate: None = None
    recordable: tuple = ("dh", "dc", "dn", "x", "h")

    def state_widths(self, sizes):
        return sizes["H"] - 1, sizes["H"], M

    def output_width(self, sizes):
        return sizes["H"] - 1

    def parameters(self, I, H, bias):
        shapes = {"W": (H, I), "R": (H, H - 1), "N": (M, I), "P": (H - 1, H)}
        return shapes | ({"b": (H - 1,)} if bias else {})


CELL = Three()


class ThreeLayer(Recurrent):
    """A layer of this cell."""

    _kernels = sys.modules[__name__]

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
                 dropout=0.0, bidirectional=False, *, dtype=np.float64, seed=None, cell=CELL):
        super().__init__(cell, input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, dtype, seed)

    def _choose_kernels(self, layers):
        self.__dict__["_kinds"] = [self.cell.name] * layers

    def _draw(self, rng):
        bound = 1 / np.sqrt(self.hidden_size)
        self.flat[:] = rng.uniform(-bound, bound, self.flat.size)

    def _pack_one(self, number, weights, half):
        assert not half
        return tuple(None if w is None else w.copy() for w in weights)


# --------------------------------------------------------------------------------------- the engine


@dataclasses.dataclass
class Tape:
    shape: tuple
    x_shape: tuple
    y_shape: tuple
    symbols: bool
    kept: list  # for each direction (weights, order of steps, inputs and values of each step)
    index: np.ndarray | None
    used: bool = False
    nbytes: int = 8

    def copy(self):
        return dataclasses.replace(self)

    def release(self):
        self.used = True


def step(weights, x, h, c, n):
    """Return the values (h, c, n) after a step, and what their derivatives need."""
    W, R, N, P, *b = weights
    u = np.tanh(x @ W.T + h @ R.T)
    c = KEEP * c + u
    n = n / 2 + x @ N.T
    z = np.tanh(c @ P.T + sum(b))
    return (z + SHARE * n.sum(-1, keepdims=True), c, n), (u, z)


@np.errstate(all="ignore")
def forward(kind, x, index, weights, reverse, initial, y, final, keep, workspace, time=None,
            source="time", target="time"):
    assert kind == "three"
    assert time is None
    D, I, H = len(weights), weights[0][0].shape[1], weights[0][0].shape[0]
    given = x
    if index is not None:
        x = (np.eye(I, dtype=y.dtype) if x is None else x)[index]
    T, B = x.shape[:2]
    assert y.shape == (T, B, D * (H - 1))
    assert [a.shape for a in final] == [(D, B, width) for width in (H - 1, H, M)]
    kept = []
    for d in range(D):
        order = range(T)[:: -1 if reverse[d] else 1]
        state = tuple(np.zeros(a.shape[1:], y.dtype) if initial is None or initial[i] is None
                      else initial[i][d].copy() for i, a in enumerate(final))
        steps = {}
        for t in order:
            before = state
            state, values = step(weights[d], x[t], *state)
            steps[t] = before, state, values
            y[t, :, d * (H - 1) : (d + 1) * (H - 1)] = state[0]
        for a, s in zip(final, state, strict=True):
            a[d] = s
        kept.append((weights[d], order, steps))
    if not keep:
        return None
    x_shape = x.shape if index is None else () if given is None else given.shape
    return Tape((T, B, I, H), x_shape, y.shape, index is not None, [x, *kept], index)


@np.errstate(all="ignore")
def backward(tape, dy, dfinal, dx, dinitial, grads, record=()):
    if tape.used:
        raise RuntimeError("backward: this tape was used already")
    tape.used = True
    (T, B, _, H), (x, *kept) = tape.shape, tape.kept
    into = np.zeros(x.shape)
    recorded = {f"d{name}": np.zeros((T, B, len(kept), width))
                for name, width in (("h", H - 1), ("c", H), ("n", M))} | {
                    "h": np.zeros((T, B, len(kept), H - 1)), "x": x}
    for d, ((W, R, N, P, *_), order, steps) in enumerate(kept):
        dh, dc, dn = (np.zeros(a.shape[1:]) if dfinal is None or dfinal[i] is None
                      else dfinal[i][d].copy() for i, a in enumerate(dinitial))
        dW, dR, dN, dP, *db = grads[d]
        for t in reversed(order):
            (h, _, _), (_, c, _), (u, z) = steps[t]
            if dy is not None:
                dh = dh + dy[t, :, d * (H - 1) : (d + 1) * (H - 1)]
            dz = dh * (1 - z * z)
            dc = dc + dz @ P
            dn = dn + SHARE * dh.sum(-1, keepdims=True)
            for name, value in (("dh", dh), ("dc", dc), ("dn", dn), ("h", h)):
                recorded[name][t, :, d] = value
            dP += dz.T @ c
            for own in db:
                own += dz.sum(0)
            du = dc * (1 - u * u)
            dW += du.T @ x[t]
            dR += du.T @ h
            dN += dn.T @ x[t]
            into[t] += du @ W + dn @ N
            dh, dc, dn = du @ R, KEEP * dc, dn / 2
        for a, s in zip(dinitial, (dh, dc, dn), strict=True):
            a[d] = s
    if dx is not None and tape.index is not None:
        dx[...] = 0
        np.add.at(dx, tape.index, into)
    elif dx is not None:
        dx[...] = into
    return {name: recorded[name] for name in record}
