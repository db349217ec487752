"""The LayerNorm LSTM of the grid `cells`: its numbers, and what is right, in plain NumPy.

Ba, Kiros and Hinton 2016, each gate's sums of H units normalised by themselves (so do the cells of
TensorFlow's contrib and of the equations of bench/definitions.py):

    z_k = gain_ih_k norm(W_k x) + gain_hh_k norm(U_k h) + shift_k    for the gates k = i f g o
    c = sigmoid(z_f) c + sigmoid(z_i) tanh(z_g)
    h = sigmoid(z_o) tanh(gain_c norm(c) + shift_c)

Letters: T steps, B batch, I input, H hidden; 4 is the number of gates.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from bench.cases import Arrays, Case
from bench.cases import arrays as plain_arrays

EPS = 1e-5
GAIN_HH = 0.2  # see `arrays`
NAMES = ("weight_ih", "weight_hh", "gain_ih", "gain_hh", "shift", "gain_c", "shift_c")


def arrays(case: Case) -> Arrays:
    """Draw the numbers of a case: an LSTM's, and gains and shifts, all different from 1 and 0.

    The gains of what comes from h are small: with 1 this cell is chaotic, and after a hundred steps
    rounding errors have grown beyond what one could check.
    """
    made = plain_arrays(dataclasses.replace(case, cell="lstm"))
    rng = np.random.default_rng([case.T, case.B, 2])

    def about(mean: float, *shape: int) -> np.ndarray:
        return (mean + 0.05 * rng.standard_normal(shape)).astype(case.dtype)

    params = (made.params["weight_ih_l0"], made.params["weight_hh_l0"], about(1, 4, case.H),
              about(GAIN_HH, 4, case.H), about(0, 4, case.H), about(1, case.H), about(0, case.H))
    return dataclasses.replace(made, params=dict(zip(NAMES, params, strict=True)))


def _sigmoid(a: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * a))


def _norm(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a with mean 0 and variance 1 over the last axis, and the deviations."""
    away = a - a.mean(-1, keepdims=True)
    deviation = np.sqrt((away * away).mean(-1, keepdims=True) + EPS)
    return away / deviation, deviation


def _norm_back(d: np.ndarray, normed: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    mean, along = d.mean(-1, keepdims=True), (d * normed).mean(-1, keepdims=True)
    return (d - mean - normed * along) / deviation


class _Step(NamedTuple):
    """What backward needs of a step."""

    h: np.ndarray  # of the step before
    c: np.ndarray  # of the step before
    hidden: tuple[np.ndarray, np.ndarray]  # norm of U h, (B, 4, H)
    gates: tuple[np.ndarray, ...]  # i f g o behind their activations
    cell: tuple[np.ndarray, np.ndarray]  # norm of the new c
    squashed: np.ndarray  # tanh of what the output gate multiplies


def _forward(a: Arrays) -> tuple[dict[str, np.ndarray], Any]:
    p, h = a.params, a.h0[0]
    assert a.c0 is not None
    c = a.c0[0]
    inputs = _norm((a.x @ p["weight_ih"].T).reshape(*a.x.shape[:2], 4, -1))
    ys, tape = [], []
    for n in inputs[0]:
        before = h, c
        hidden = _norm((h @ p["weight_hh"].T).reshape(n.shape))
        z = n * p["gain_ih"] + hidden[0] * p["gain_hh"] + p["shift"]
        i, f, o = (_sigmoid(z[:, k]) for k in (0, 1, 3))
        g = np.tanh(z[:, 2])
        c = f * c + i * g
        cell = _norm(c)
        squashed = np.tanh(cell[0] * p["gain_c"] + p["shift_c"])
        h = o * squashed
        ys.append(h)
        tape.append(_Step(*before, hidden, (i, f, g, o), cell, squashed))
    return {"y": np.stack(ys), "hn": h[None], "cn": c[None]}, (inputs, tape)


def _backward(a: Arrays, tape: Any) -> dict[str, np.ndarray]:
    p, ((normed, deviation), steps) = a.params, tape
    grads = {name: np.zeros_like(value) for name, value in p.items()}
    dz_all = np.empty_like(normed)
    dh, dc = np.zeros_like(a.h0[0]), np.zeros_like(a.h0[0])
    for t in reversed(range(len(steps))):
        s: _Step = steps[t]
        i, f, g, o = s.gates
        dh = dh + a.dy[t]
        du = dh * o * (1 - s.squashed**2)
        grads["gain_c"] += (du * s.cell[0]).sum(0)
        grads["shift_c"] += du.sum(0)
        dc = dc + _norm_back(du * p["gain_c"], *s.cell)
        dz_all[t] = dz = np.stack([dc * g * i * (1 - i), dc * s.c * f * (1 - f),
                                   dc * i * (1 - g * g), dh * s.squashed * o * (1 - o)], 1)
        grads["gain_hh"] += (dz * s.hidden[0]).sum(0)
        d = _norm_back(dz * p["gain_hh"], *s.hidden).reshape(len(dh), -1)
        grads["weight_hh"] += d.T @ s.h
        dh, dc = d @ p["weight_hh"], dc * f
    grads["shift"] = dz_all.sum((0, 1))
    grads["gain_ih"] = (dz_all * normed).sum((0, 1))
    d = _norm_back(dz_all * p["gain_ih"], normed, deviation).reshape(*a.x.shape[:2], -1)
    grads["weight_ih"] = np.tensordot(d, a.x, ((0, 1), (0, 1)))
    return grads | {"dx": d @ p["weight_ih"]}


def expected(case: Case) -> dict[str, np.ndarray]:
    """Return what is right, in float64: see bench.stack.expected."""
    a = arrays(case).astype(np.float64)
    out, tape = _forward(a)
    return {"y": out["y"]} | _backward(a, tape) if case.kind == "train" else out
