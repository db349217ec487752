"""The cells of the tuned NumPy peer, with the signatures of fastrnn.reference.

sigmoid(a) = (1 + tanh(a/2)) / 2: the rows of sigmoid gates come first and carry the factor 1/2 in
their weights, so a step is one product, one tanh over all gates and one multiply-add. So LSTM gates
lie here as i f o g, GRU's as r z n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_SIGMOIDS = {"rnn": 0, "gru": 2, "lstm": 3}
_ORDER = {"rnn": (0,), "gru": (0, 1, 2), "lstm": (0, 1, 3, 2)}
Array = np.ndarray
_prepared: dict[int, tuple[Any, Weights]] = {}


class Weights:
    """One layer's weights in the order and scale of this file."""

    def __init__(self, kind: str, w_ih: Array, w_hh: Array, b_ih: Any, b_hh: Any) -> None:
        GH, H = w_hh.shape
        self.kind, self.H, self.sigmoids = kind, H, _SIGMOIDS[kind] * H
        self.rows = np.concatenate([np.arange(k * H, (k + 1) * H) for k in _ORDER[kind]])
        self.plain_ih, self.plain_hh = w_ih[self.rows], w_hh[self.rows]  # for backward
        scale = np.ones((GH, 1), w_hh.dtype)
        scale[: self.sigmoids] = 0.5
        zero = np.zeros(GH, w_hh.dtype)
        b_x = (zero if b_ih is None else b_ih)[self.rows] * scale[:, 0]
        b_h = (zero if b_hh is None else b_hh)[self.rows] * scale[:, 0]
        # GRU's n keeps the bias of h apart: r multiplies it
        shared = 2 * H if kind == "gru" else GH
        b_x[:shared] += b_h[:shared]
        self.b_x, self.b_n = b_x, b_h[shared:]
        self.w_ih, self.w_hh = self.plain_ih * scale, self.plain_hh * scale
        self.w_hh_t = np.ascontiguousarray(self.w_hh.T)  # (H, G*H)

    def restore(self, a: Array) -> Array:
        """Return an array whose rows are gates in torch's order."""
        out = np.empty_like(a)
        out[self.rows] = a
        return out


def prepare(kind: str, params: tuple[Any, ...], keep: bool) -> Weights:
    """Return the weights; kept between calls as long as they are not trained."""
    if not keep:
        return Weights(kind, *params)
    known = _prepared.get(id(params[1]))
    if known is None or known[0] is not params[1]:
        known = _prepared[id(params[1])] = (params[1], Weights(kind, *params))
    return known[1]


def forget() -> None:
    """Drop all kept weights."""
    _prepared.clear()


def to_sigmoid(s: Array) -> None:
    """Turn tanh(a/2) into sigmoid(a), in place."""
    np.multiply(s, 0.5, s)
    np.add(s, 0.5, s)


def activation(nonlinearity: str) -> Callable[..., Any]:
    """Return the ufunc of a vanilla cell."""
    if nonlinearity == "tanh":
        return np.tanh
    if nonlinearity == "relu":
        return lambda a, out: np.maximum(a, 0, out=out)
    raise NotImplementedError(nonlinearity)


def _begin(kind: str, x: Array, h0: Array, params: tuple[Any, ...], reverse: bool,
           training: bool) -> tuple[Weights, Array, Array, Array]:
    w = prepare(kind, params, not training)
    x = x[::-1] if reverse else x
    T, B, I = x.shape
    gates = np.dot(x.reshape(T * B, I), w.w_ih.T).reshape(T, B, -1)  # (T, B, G*H)
    gates += w.b_x
    h = np.empty((T + 1, B, w.H), x.dtype)
    h[0] = h0
    return w, x, gates, h


def _end(h: Array, reverse: bool) -> Array:
    return h[:0:-1] if reverse else h[1:]


def rnn_forward(x: Array, h0: Array, *params: Any, nonlinearity: str = "tanh",
                reverse: bool = False, training: bool = True) -> tuple[Array, Array, Any]:
    """As fastrnn.reference.rnn_forward."""
    w, x, gates, h = _begin("rnn", x, h0, params, reverse, training)
    phi, product = activation(nonlinearity), np.empty_like(h[0])
    for t in range(len(x)):
        np.dot(h[t], w.w_hh_t, product)
        np.add(product, gates[t], product)
        phi(product, h[t + 1])
    return _end(h, reverse), h[-1], (w, x, h, nonlinearity, reverse)


def lstm_forward(x: Array, state: Any, *params: Any, reverse: bool = False, training: bool = True
                 ) -> tuple[Array, Any, Any]:
    """As fastrnn.reference.lstm_forward."""
    w, x, gates, h = _begin("lstm", x, state[0], params, reverse, training)
    H, S = w.H, w.sigmoids
    c, tanh_c = np.empty_like(h), np.empty_like(h)
    c[0] = state[1]
    product, ig = np.empty_like(gates[0]), np.empty_like(h[0])
    for t in range(len(x)):
        a = gates[t]
        np.dot(h[t], w.w_hh_t, product)
        np.add(a, product, a)
        np.tanh(a, a)
        to_sigmoid(a[:, :S])
        np.multiply(a[:, H : 2 * H], c[t], c[t + 1])
        np.multiply(a[:, :H], a[:, S:], ig)
        np.add(c[t + 1], ig, c[t + 1])
        np.tanh(c[t + 1], tanh_c[t + 1])
        np.multiply(a[:, 2 * H : S], tanh_c[t + 1], h[t + 1])
    return _end(h, reverse), (h[-1], c[-1]), (w, x, h, c, tanh_c, gates, reverse)


def gru_forward(x: Array, h0: Array, *params: Any, reverse: bool = False, training: bool = True
                ) -> tuple[Array, Array, Any]:
    """As fastrnn.reference.gru_forward."""
    w, x, gates, h = _begin("gru", x, h0, params, reverse, training)
    H, S = w.H, w.sigmoids
    product, part = np.empty_like(gates[0]), np.empty_like(h[0])
    m = np.empty((len(x) if training else 1, *part.shape), x.dtype)
    for t in range(len(x)):
        rz, n = gates[t, :, :S], gates[t, :, S:]
        np.dot(h[t], w.w_hh_t, product)
        np.add(rz, product[:, :S], rz)
        np.tanh(rz, rz)
        to_sigmoid(rz)
        m_t = m[t if training else 0]
        np.add(product[:, S:], w.b_n, m_t)
        np.multiply(rz[:, :H], m_t, part)
        np.add(n, part, n)
        np.tanh(n, n)
        np.subtract(h[t], n, part)
        np.multiply(part, rz[:, H:], part)
        np.add(part, n, h[t + 1])
    return _end(h, reverse), h[-1], (w, x, h, m, gates, reverse)


def _grads(w: Weights, x: Array, h: Array, da_x: Array, da_h: Array,
           reverse: bool) -> tuple[Array, dict[str, Array]]:
    flat_x, flat_h = (a.reshape(-1, a.shape[-1]) for a in (da_x, da_h))  # (T*B, G*H)
    grads = {
        "weight_ih": np.dot(flat_x.T, x.reshape(len(flat_x), -1)),
        "weight_hh": np.dot(flat_h.T, h[:-1].reshape(len(flat_h), -1)),
        "bias_ih": flat_x.sum(axis=0), "bias_hh": flat_h.sum(axis=0),
    }
    dx = np.dot(flat_x, w.plain_ih).reshape(x.shape)
    return dx[::-1] if reverse else dx, {name: w.restore(g) for name, g in grads.items()}


def rnn_backward(dy: Array, dhn: None, tape: Any) -> tuple[Array, Any, dict[str, Array]]:
    """As fastrnn.reference.rnn_backward; dhn is zero."""
    w, x, h, nonlinearity, reverse = tape
    dy = dy[::-1] if reverse else dy
    da = h[1:] > 0 if nonlinearity == "relu" else 1 - np.square(h[1:])
    da = da.astype(h.dtype, copy=False)
    dh = np.zeros_like(h[0])
    for t in reversed(range(len(dy))):
        np.add(dh, dy[t], dh)
        np.multiply(da[t], dh, da[t])
        np.dot(da[t], w.plain_hh, dh)
    dx, grads = _grads(w, x, h, da, da, reverse)
    return dx, dh, grads


def lstm_backward(dy: Array, dstate: None, tape: Any) -> tuple[Array, Any, dict[str, Array]]:
    """As fastrnn.reference.lstm_backward; dstate is zero."""
    w, x, h, c, tanh_c, gates, reverse = tape
    H, S = w.H, w.sigmoids
    dy = dy[::-1] if reverse else dy
    da = np.empty_like(gates)
    np.subtract(1, gates[..., :S], da[..., :S])  # the slopes of all gates at once
    np.multiply(da[..., :S], gates[..., :S], da[..., :S])
    np.subtract(1, np.square(gates[..., S:]), da[..., S:])
    slope_c = 1 - np.square(tanh_c[1:])  # (T, B, H)
    slope_c *= gates[..., 2 * H : S]
    dh, dc, part = np.zeros_like(h[0]), np.zeros_like(h[0]), np.empty_like(h[0])
    for t in reversed(range(len(dy))):
        i, f, g = gates[t, :, :H], gates[t, :, H : 2 * H], gates[t, :, S:]
        np.add(dh, dy[t], dh)
        np.multiply(dh, slope_c[t], part)
        np.add(dc, part, dc)
        np.multiply(dh, tanh_c[t + 1], part)
        for gate, factor, value in ((slice(0, H), g, dc), (slice(H, 2 * H), c[t], dc),
                                    (slice(S, None), i, dc)):
            d = da[t, :, gate]
            np.multiply(d, factor, d)
            np.multiply(d, value, d)
        d = da[t, :, 2 * H : S]
        np.multiply(d, part, d)
        np.multiply(dc, f, dc)
        np.dot(da[t], w.plain_hh, dh)
    dx, grads = _grads(w, x, h, da, da, reverse)
    return dx, (dh, dc), grads


def gru_backward(dy: Array, dhn: None, tape: Any) -> tuple[Array, Any, dict[str, Array]]:
    """As fastrnn.reference.gru_backward; dhn is zero."""
    w, x, h, m, gates, reverse = tape
    H, S = w.H, w.sigmoids
    dy = dy[::-1] if reverse else dy
    r, z, n = gates[..., :H], gates[..., H:S], gates[..., S:]
    da = np.empty_like(gates)  # of W_ih x + b_ih
    np.subtract(1, gates[..., :S], da[..., :S])
    np.multiply(da[..., :S], gates[..., :S], da[..., :S])
    da[..., H:S] *= h[:-1] - n
    np.multiply(1 - np.square(n), 1 - z, da[..., S:])
    da[..., :H] *= m
    da_h = np.empty_like(gates)  # of W_hh h + b_hh
    dh, part = np.zeros_like(h[0]), np.empty_like(h[0])
    for t in reversed(range(len(dy))):
        np.add(dh, dy[t], dh)
        dr, dz, dn = da[t, :, :H], da[t, :, H:S], da[t, :, S:]
        np.multiply(dz, dh, dz)
        np.multiply(dn, dh, dn)
        np.multiply(dr, dn, dr)
        da_h[t, :, :S] = da[t, :, :S]
        np.multiply(dn, r[t], da_h[t, :, S:])
        np.multiply(dh, z[t], part)
        np.dot(da_h[t], w.plain_hh, dh)
        np.add(dh, part, dh)
    dx, grads = _grads(w, x, h, da, da_h, reverse)
    return dx, dh, grads
