"""Omega, the regulariser that keeps gradients from vanishing on their way back through time.

Letters: T steps, B batch, H hidden, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn._kernels import linear
from fastrnn.layers import RNN
from fastrnn.layers.parameters import check_grads
from fastrnn.layers.passes import Recorded

__all__ = ["OMEGA_NEEDS", "omega"]

OMEGA_NEEDS = ("dgates_h", "h")  # what a backward records for it

# phi' from h = phi(a)
SLOPES = {
    "tanh": lambda h: 1 - h * h,
    "sigmoid": lambda h: h * (1 - h),
    "relu": lambda h: (h > 0).astype(h.dtype),
}


@public
def omega(
    layer: RNN, recorded: Recorded, weight: float, grads: Mapping[str, np.ndarray] | None = None,
    *, first: np.ndarray | None = None,
) -> float:
    """Add the gradient of `weight` times Omega to a layer's, and return that product.

    With a(k) the argument of phi and g(k) = dL/da(k),

        Omega = sum over k of (|g(k+1) W_hh phi'(a(k))| / |g(k+1)| - 1)^2,

    a mean over the batch: 0 if every step back leaves the norm as it is. As in the paper its
    gradient is the immediate one: g and a are held, and W_hh alone varies. Steps whose g is 0 count
    for nothing.

    Parameters
    ----------
    layer : RNN
        All stacked layers and directions count.
    recorded : list of L dicts
        What ``p.backward(record=OMEGA_NEEDS)`` returned for this layer.
    weight : float
        Above 0. The paper takes 4 with a mean loss.
    grads : mapping of the layer's parameter names to arrays, optional
        Where to add the gradient; by default the layer's own.
    first : booleans (2, T, B), optional
        The steps at which each direction begins a sequence or an episode, so that no gradient goes
        further back; by default the one that it reads first.

    Returns
    -------
    float
        The weight times Omega.

    Raises
    ------
    TypeError
        If the layer is no RNN: gated cells pass a gradient on along c or z too. If `grads` is no
        mapping, or an array has another dtype.
    ValueError
        If `recorded` is not what is needed, or `grads` or `first` does not fit the layer. Nothing
        has been added then.

    References
    ----------
    R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural networks",
    ICML 2013, equations 9 and 10.

    Examples
    --------
    >>> y, _, p = rnn.forward(x)
    >>> dx, dh0, recorded = p.backward(dy, record=OMEGA_NEEDS)
    >>> omega(rnn, recorded, 4.0)  # doctest: +SKIP
    """
    if not isinstance(layer, RNN):
        raise RefusedType(f"layer is {_checks.kind(layer)}, expected an RNN")
    weight = _checks.above("weight", weight)
    L = layer.num_layers
    if not isinstance(recorded, list) or len(recorded) != L or not all(
            isinstance(of, dict) and set(OMEGA_NEEDS) <= set(of) for of in recorded):
        raise RefusedValue(f"recorded is {_checks.show(recorded)}, expected a list of {L} dicts: "
                           f"what backward(record={OMEGA_NEEDS}) returns for this layer")
    D, H = layer.directions, layer.hidden_size
    for number, of in enumerate(recorded):
        where = f"recorded[{number}]"
        dgates = _checks.array(f"{where}['dgates_h']", of["dgates_h"], layer.dtype,
                               ("T", "B", D, 1, H))
        T, B = dgates.shape[:2]
        _checks.array(f"{where}['h']", of["h"], layer.dtype, (T, B, D, H))
        if first is not None:
            first = _checks.booleans("first", first, (2, T, B))
    if grads is not None:
        check_grads(layer, grads)
    into = layer.grads if grads is None else grads
    total = 0.0
    for number, of in enumerate(recorded):
        for direction, suffix in enumerate(("", "_reverse")[: layer.directions]):
            name = f"weight_hh_l{number}{suffix}"
            order = slice(None, None, -1 if suffix else 1)  # as the direction walks
            g = of["dgates_h"][order, :, direction, 0]  # (T, B, H)
            if first is not None:
                g = np.where(first[direction][order][..., None], 0, g)
            h = of["h"][order, :, direction]
            slope = SLOPES[layer.nonlinearity](h[1:])
            total += _add(layer.parameters()[name], into[name], g[1:], slope, weight)
    return total


def _add(
    w: np.ndarray, dw: np.ndarray, g: np.ndarray, slope: np.ndarray, weight: float
) -> float:
    """Do it for one direction, with g(k+1) and phi'(a(k)), both (T-1, B, H)."""
    B, H = g.shape[1:]
    slope = slope.reshape(-1, H)
    # far back g is as small as a float can be: only unit vectors are multiplied
    g, before = _unit(np.ascontiguousarray(g).reshape(-1, H))
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
