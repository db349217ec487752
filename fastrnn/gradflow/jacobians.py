"""How much a state of a recurrent layer still depends on an earlier one: dh(t)/dh(k).

Letters: T steps, B batch, I input, H hidden, G gates, L layers, D directions.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn.layers import Recurrent

__all__ = ["Jacobians", "jacobians"]

# The largest slope of the activation; the gated cells have no such bound.
SLOPES = {"rnn_tanh": 1.0, "rnn_relu": 1.0, "rnn_sigmoid": 0.25}


@dataclasses.dataclass(frozen=True)
class Jacobians:
    """What `jacobians` found. n is the number of distances, index and distance d = t - k are one.

    Attributes
    ----------
    cell : str
    matrices : array (n, H, H)
        dh(t)/dh(k), of the layer's dtype: row i is the gradient of h_i(t). Of an LSTM, with c(k)
        held.
    norms : array (n,)
        Their 2-norms.
    c_norms : array (n,) or None
        Of an LSTM, those of dh(t)/dc(k): memory lives there.
    bounds : array (n,) or None
        (||W_hh||_2 gamma)^d, which no norm exceeds; None for gated cells.
    singular_values, spectral_radii : array (G,)
        The largest singular value and the largest absolute eigenvalue of each gate's part of W_hh.
    threshold : float or None
        1/gamma: gradients must vanish if the singular value is below, and can explode only if it is
        above. 1 for tanh and relu, 4 for sigmoid, None for gated cells.
    """

    cell: str
    matrices: np.ndarray
    norms: np.ndarray
    c_norms: np.ndarray | None
    bounds: np.ndarray | None
    singular_values: np.ndarray
    spectral_radii: np.ndarray
    threshold: float | None

    def memory(self, level: float = 1 / math.e) -> int | None:
        """Return the effective length of memory in steps.

        Parameters
        ----------
        level : float
            In (0, 1).

        Returns
        -------
        int or None
            The first distance whose norm is below `level` times that of distance 1; None if all
            that were looked at are above.
        """
        level = _checks.above("memory", "level", level, 0, 1)
        below = np.flatnonzero(self.norms[1:] < level * self.norms[1:2])
        return int(below[0]) + 1 if below.size else None


def jacobians(
    layer: Recurrent, x: Any, state: Any = None, *, t: int | None = None, sequence: int = 0,
    distance: int = 100, number: int = 0, reverse: bool = False,
) -> Jacobians:
    """Compute how a state depends on earlier ones, dh(t)/dh(k), for one sequence.

    One backward gives them all: its batch is H copies of the sequence, and the gradient of the
    final states the identity. Dropout is left out.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
    x, state : as of a call of the layer
    t : int, optional
        The step whose state is differentiated, from 0; by default the last that is walked.
    sequence : int
        Row of the batch.
    distance : int
        The largest t - k to look at; fewer if the sequence begins before.
    number : int
        The layer of the stack, from 0.
    reverse : bool
        The reverse direction of a bidirectional layer, whose earlier states are those of later
        steps: distance is k - t then.

    Returns
    -------
    Jacobians

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit the layer or is out of its range.

    References
    ----------
    R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural
    networks", ICML 2013, equations 5 to 7: the product of Jacobians and its bound.
    """
    owner = "jacobians"
    check_layer(owner, layer)
    L, D, H = layer.num_layers, layer.directions, layer.hidden_size
    x = _checks.numeric(owner, "x", x, layer.dtype)
    batched = x.ndim != 2
    if not batched:
        x = x[:, None]
    elif layer.batch_first and x.ndim == 3:
        x = x.swapaxes(0, 1)
    x = _checks.array(owner, "x", x, layer.dtype, ("T", "B", layer.input_size))
    T, B, _ = x.shape
    if not x.size:
        raise ValueError(f"{owner}: x has {T} steps of {B} sequences, expected at least one")
    lstm = layer.cell == "lstm"
    h0, c0 = _checks.states(owner, "state", state, lstm, layer.dtype,
                            (L * D, B, H) if batched else (L * D, H))
    b = _checks.below(owner, "sequence", sequence, B)
    number, reverse = _checks.below(owner, "number", number, L), bool(reverse)
    distance = _checks.positive(owner, "distance", distance)
    t = (0 if reverse else T - 1) if t is None else _checks.below(owner, "t", t, T)
    if reverse and D == 1:
        raise ValueError(f"{owner}: reverse is True, expected False: the layer has one direction")

    def initial(k: int, d: int) -> Any:
        own = [None if s is None else s.reshape(L * D, B, H)[k * D + d, b][None, None]
               for s in (h0, c0)]
        return own if lstm else own[0]

    x = x[:, b : b + 1]
    for k in range(number):  # the layers below give the input
        ys = [_single(layer, k, d)(x[:: 1 - 2 * d], initial(k, d))[0][:: 1 - 2 * d]
              for d in range(D)]
        x = np.concatenate(ys, 2)
    one = _single(layer, number, reverse)
    w_hh = one.parameters()["weight_hh_l0"].astype(np.float64).reshape(-1, H, H)  # (G, H, H)
    if not np.isfinite(w_hh).all():
        raise ValueError(f"{owner}: weight_hh_l{number} has values that are not finite")
    if reverse:
        x, t = x[::-1], T - 1 - t
    start = max(0, t - distance)
    _, before = one(x[:start], initial(number, reverse))
    before = [s.repeat(H, 1) for s in before] if lstm else before.repeat(H, 1)
    one(x[start : t + 1].repeat(H, 1), before)
    identity = np.eye(H, dtype=layer.dtype)[None]
    (flow,) = one.flow(("dh", "dc") if lstm else ("dh",), None,
                       (identity, None) if lstm else identity)
    matrices = flow["dh"][::-1, :, 0]
    singular_values = np.linalg.norm(w_hh, 2, axis=(1, 2))
    slope = SLOPES.get(layer.cell)
    with np.errstate(over="ignore", under="ignore"):
        bounds = None if slope is None else (singular_values * slope) ** np.arange(len(matrices))
    return Jacobians(
        layer.cell, matrices, _matrix_norms(matrices),
        _matrix_norms(flow["dc"][::-1, :, 0]) if lstm else None, bounds, singular_values,
        np.abs(np.linalg.eigvals(w_hh)).max(1), None if slope is None else 1 / slope,
    )


def _single(layer: Recurrent, number: int, reverse: int) -> Recurrent:
    """Return a copy of one direction of one layer of a stack, as a layer that walks upwards."""
    suffix = f"_l{number}{'_reverse' * reverse}"
    params = layer.parameters()
    I = params["weight_ih" + suffix].shape[1]
    one = Recurrent(layer.cell, I, layer.hidden_size, 1, layer.bias, False, 0.0, False,
                    layer.dtype, 0)
    for name, param in one.parameters().items():
        param[...] = params[name.replace("_l0", suffix)]
    return one


def _matrix_norms(a: np.ndarray) -> np.ndarray:
    """Return the 2-norms (n,) of matrices (n, H, H); infinite where a value is not finite.

    Of H above 128 by power iteration on J J^T with 8 vectors at once, from below, to about 1e-5.
    """
    norms = np.full(len(a), np.inf)
    finite = np.isfinite(a).all((1, 2))
    if a.shape[1] <= 128:
        norms[finite] = np.linalg.norm(a[finite].astype(np.float64), 2, axis=(1, 2))
        return norms
    u = np.random.default_rng(0).standard_normal((a.shape[1], 8))
    for i in np.flatnonzero(finite):
        scale = float(np.abs(a[i]).max()) or 1.0
        j = a[i] / np.float64(scale)  # one after the other: each stays in the cache
        value, before = 0.0, -1.0
        while value - before > 1e-6 * value:
            # where the last matrix was stretched most: one step further back changes that little
            u = np.linalg.qr(j @ (j.T @ u))[0]
            before, value = value, float(np.linalg.norm(j.T @ u, 2))
        norms[i] = value * scale
    return norms


def check_layer(owner: str, layer: Any) -> None:
    if not isinstance(layer, Recurrent):
        raise TypeError(f"{owner}: layer is {_checks.kind(layer)}, expected an RNN, LSTM or GRU")
