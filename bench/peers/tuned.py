"""NumPy as fast as it gets per step: what a careful user would write without a library.

Whole sequences are in tuned_cells.py; here is the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench.cases import PARAMETERS, Arrays, Case
from bench.peers import Way, plain, stream_way, tuned_cells

version, setup = plain.version, plain.setup


def load(case: Case, a: Arrays) -> list[Way]:
    """Return the ways to run the case."""
    tuned_cells.forget()
    if case.kind != "stream":
        return [plain.way(tuned_cells, case, a)]
    return [_stream(name, case, a) for name in ("joined", "apart")[: 1 + (case.cell == "gru")]]


def _stream(name: str, case: Case, a: Arrays) -> Way:
    kind, _, phi = case.cell.partition("_")
    layers = [
        _Layer(kind, tuple(a.params.get(case.names(layer, 0).get(p, "")) for p in PARAMETERS),
               case.B, phi or "tanh", name == "apart")
        for layer in range(case.L)
    ]

    def reset() -> None:
        for k, layer in enumerate(layers):
            layer.h[...] = a.h0[k]
            if a.c0 is not None:
                layer.c[...] = a.c0[k]

    def step(x: np.ndarray) -> np.ndarray:  # (B, I) -> (B, H)
        for layer in layers:
            x = layer(x)
        return x

    reset()
    return stream_way(name, layers[0] if case.L == 1 else step, reset, list(a.x))


class _Layer:
    """One layer that advances one step per call, B rows: [x, h, 1] times one joined matrix.

    A GRU's joined matrix has rows r z n_x m, a third of n_x and m zeros; `apart` makes two products
    instead, which is better for large H.
    """

    def __init__(self, kind: str, params: tuple[Any, ...], B: int, phi: str, apart: bool) -> None:
        w = self.w = tuned_cells.Weights(kind, *params)
        I, H, S = w.w_ih.shape[1], w.H, w.sigmoids
        dtype = w.w_hh.dtype
        self.xh = np.zeros((B, I + H + 1), dtype)
        self.xh[:, -1] = 1
        self.x, self.h = self.xh[:, :I], self.xh[:, I : I + H]
        self.c = np.zeros((B, H), dtype)
        self.part = np.empty((B, H), dtype)
        joined = np.concatenate([w.w_ih, w.w_hh, w.b_x[:, None]], axis=1)  # (G*H, I+H+1)
        if kind == "gru":
            m = np.concatenate([0 * w.w_ih[S:], w.w_hh[S:], w.b_n[:, None]], axis=1)
            joined[S:, I : I + H] = 0
            joined = np.concatenate([joined, m])  # (4*H, I+H+1)
        self.gates = np.empty((B, len(joined)), dtype)
        self.sigmoids = self.gates[:, :S]
        self.products = [self._product(joined, self.xh, self.gates)]
        if apart:
            self.products = [
                self._product(joined[:S], self.xh, self.gates[:, :S]),
                self._product(joined[S : S + H, :I].copy(), self.x, self.gates[:, S : S + H]),
                self._product(joined[S + H :, I:].copy(), self.xh[:, I:], self.gates[:, S + H :]),
            ]
            self.apart_bias = w.b_x[S:]
        self.apart = apart
        self.phi = tuned_cells.activation(phi)
        self.advance = getattr(self, f"_{kind}")

    @staticmethod
    def _product(W: np.ndarray, v: np.ndarray, out: np.ndarray) -> Callable[[], Any]:
        if len(v) == 1:
            return partial(np.dot, W, v[0], out[0])
        return partial(np.matmul, v, W.T, out)

    def __call__(self, x: np.ndarray) -> np.ndarray:  # (B, I) -> (B, H)
        self.x[...] = x
        for product in self.products:
            product()
        self.advance()
        return self.h

    def _rnn(self) -> None:
        self.phi(self.gates, self.h)

    def _lstm(self) -> None:
        a, H, S = self.gates, self.w.H, self.w.sigmoids
        np.tanh(a, a)
        tuned_cells.to_sigmoid(self.sigmoids)
        np.multiply(self.c, a[:, H : 2 * H], self.c)
        np.multiply(a[:, :H], a[:, S:], self.part)
        np.add(self.c, self.part, self.c)
        np.tanh(self.c, self.part)
        np.multiply(self.part, a[:, 2 * H : S], self.h)

    def _gru(self) -> None:
        a, h, H, S = self.gates, self.h, self.w.H, self.w.sigmoids
        n, m = a[:, S : S + H], a[:, S + H :]
        np.tanh(self.sigmoids, self.sigmoids)
        tuned_cells.to_sigmoid(self.sigmoids)
        np.multiply(m, a[:, :H], m)
        np.add(n, m, n)
        if self.apart:
            np.add(n, self.apart_bias, n)
        np.tanh(n, n)
        np.subtract(h, n, h)
        np.multiply(h, a[:, H:S], h)
        np.add(h, n, h)
