"""Omega, the regulariser that keeps gradients from vanishing on their way back through time."""

from __future__ import annotations

import numpy as np

from fastrnn import _checks
from fastrnn._kernels import linear
from fastrnn.layers import RNN

__all__ = ["OMEGA_NEEDS", "omega"]

OMEGA_NEEDS = ("dgates_h", "h")  # of a layer's `watch`

# phi' from h = phi(a)
SLOPES = {
    "tanh": lambda h: 1 - h * h,
    "sigmoid": lambda h: h * (1 - h),
    "relu": lambda h: (h > 0).astype(h.dtype),
}


def omega(layer: RNN, weight: float) -> float:
    """Add the gradient of `weight` times Omega to a layer's, and return that product.

    With a(k) what phi is taken of and g(k) = dL/da(k),

        Omega = sum over k of (|g(k+1) W_hh phi'(a(k))| / |g(k+1)| - 1)^2,

    a mean over the batch: 0 if every step back leaves the norm as it is. As in the paper its
    gradient is the immediate one: g and a are held, and W_hh alone varies. Steps whose g is 0 count
    for nothing.

    Parameters
    ----------
    layer : RNN
        After a backward with `layer.watch` = OMEGA_NEEDS; all stacked layers and directions count.
    weight : float
        Above 0. The paper takes 4 with a mean loss.

    Raises
    ------
    TypeError
        If the layer is no RNN: gated cells pass a gradient on along c or z too.
    ValueError
        If it has seen no backward with what is needed.

    References
    ----------
    R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural networks",
    ICML 2013, equations 9 and 10.
    """
    if not isinstance(layer, RNN):
        raise TypeError(f"omega: layer is {_checks.kind(layer)}, expected an RNN")
    weight = _checks.above("omega", "weight", weight)
    if not layer.seen or any(name not in layer.seen[0] for name in OMEGA_NEEDS):
        raise ValueError(f"omega: the layer has watched {layer.watch}, expected a backward with "
                         f"watch = {OMEGA_NEEDS} first")
    total = 0.0
    for number, seen in enumerate(layer.seen):
        for direction, suffix in enumerate(("", "_reverse")[: layer.directions]):
            name = f"weight_hh_l{number}{suffix}"
            order = slice(None, None, -1 if suffix else 1)  # as the direction walks
            g = seen["dgates_h"][order, :, direction, 0]  # (T, B, H)
            h = seen["h"][order, :, direction]
            total += _add(layer, name, np.ascontiguousarray(g[1:]), h[1:], weight)
    return total


def _add(layer: RNN, name: str, g: np.ndarray, h: np.ndarray, weight: float) -> float:
    """Do it for one direction: g(k+1) and h(k), (T-1, B, H)."""
    w, dw = layer.parameters()[name], layer.grads[name]
    B, H = h.shape[1:]
    slope = SLOPES[layer.nonlinearity](h).reshape(-1, H)
    # far back g is as small as a float can be: only unit vectors are multiplied
    g, before = _unit(g.reshape(-1, H))
    u = linear.linear_forward(g, np.ascontiguousarray(w.T))
    u *= slope
    u, after = _unit(u)
    excess = np.where(before > 0, after - 1, 0)
    # d|u| / dW = g' (u phi') / |u|
    g *= (2 * weight / max(1, B) * excess).astype(g.dtype)[:, None]
    u *= slope
    linear.linear_backward(g, u, w, dw, None, False)
    return float(weight * np.square(excess).sum() / max(1, B))


def _unit(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a, (N, H), each of length 1 or 0, and their lengths (N,) in float64."""
    length = np.sqrt(np.einsum("nh,nh->n", a, a, dtype=np.float64))
    return a / np.where(length > 0, length, 1).astype(a.dtype)[:, None], length
