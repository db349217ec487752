"""How much a state of a recurrent layer still depends on an earlier one: dh(t)/dh(k).

Letters: T steps, B batch, I input, H hidden, G gates, L stacked layers, D directions, n distances.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue, public
from fastrnn.gradflow import finite
from fastrnn.gradflow.finite import NotFinite
from fastrnn.gradflow.flow import check_layer
from fastrnn.layers.parameters import UNSET
from fastrnn.layers.recurrent import Recurrent

__all__ = ["Jacobians", "jacobians"]


@dataclasses.dataclass(frozen=True)
class Jacobians:
    """What `jacobians` computed. Arrays of n entries have one for each distance d = t - k, from 0.

    Attributes
    ----------
    cell : str
        "rnn_tanh", "rnn_relu", "rnn_sigmoid", "lstm" or "gru".
    matrices : array (n, H, H)
        dh(t)/dh(k), of the layer's dtype: row i is the gradient of h_i(t). For an LSTM c(k) is held
        constant.
    norms : array (n,)
        Their 2-norms.
    c_norms : array (n,) or None
        2-norms of dh(t)/dc(k); only for an LSTM, whose memory is c.
    bounds : array (n,) or None
        (||W_hh||_2 gamma)^d, which no norm exceeds, with gamma the greatest slope of the
        activation; None for gated cells.
    singular_values, spectral_radii : array (G,)
        The largest singular value and the largest absolute eigenvalue of each gate's part of W_hh.
    threshold : float or None
        1/gamma. Gradients must vanish if the singular value is below it, and can explode only if it
        is above. 1 for tanh and relu, 4 for sigmoid, None for gated cells.
    not_finite : NotFinite or None
        Where values that are not finite come from; None where all values are finite, or where the
        derivatives became too large on their way back.
    """

    cell: str
    matrices: np.ndarray
    norms: np.ndarray
    c_norms: np.ndarray | None
    bounds: np.ndarray | None
    singular_values: np.ndarray
    spectral_radii: np.ndarray
    threshold: float | None
    not_finite: NotFinite | None = None

    @public
    def memory(self, level: float = 1 / math.e) -> int | None:
        """Return the effective length of memory in steps.

        Parameters
        ----------
        level : float
            Above 0 and below 1.

        Returns
        -------
        int or None
            The first distance whose norm is below `level` times that of distance 1; None if no norm
            is.

        Raises
        ------
        ValueError
            If `level` is out of its range.
        """
        level = _checks.above("level", level, 0, 1)
        below = np.flatnonzero(self.norms[1:] < level * self.norms[1:2])
        return int(below[0]) + 1 if below.size else None


@public
def jacobians(
    layer: Recurrent, x: Any, state: Any = None, *, t: int | None = None, sequence: int = 0,
    distance: int = 100, number: int = 0, reverse: bool = False,
) -> Jacobians:
    """Compute how a state depends on earlier ones, dh(t)/dh(k), for one sequence.

    One backward gives them all: its batch is H copies of the sequence, and the gradient of the
    final states is the identity. Dropout is left out.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
    x, state
        As for a call of the layer.
    t : int, optional
        The step whose state is differentiated, from 0; by default the direction's last step.
    sequence : int
        Row of the batch.
    distance : int
        The largest t - k; fewer if the sequence begins before.
    number : int
        Which of the stacked layers, from 0.
    reverse : bool
        The reverse direction of a bidirectional layer, whose earlier states are those of later
        steps: the distance is then k - t.

    Returns
    -------
    Jacobians

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit the layer or is out of its range, or if recurrent weights are
        not finite.

    References
    ----------
    R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural
    networks", ICML 2013, equations 5 to 7: the product of Jacobians and its bound.
    """
    check_layer(layer)
    L, D, H = layer.num_layers, layer.directions, layer.hidden_size
    x = _checks.numeric("x", x, layer.dtype)
    batched = x.ndim != 2
    if not batched:
        x = x[:, None]
    elif layer.batch_first and x.ndim == 3:
        x = x.swapaxes(0, 1)
    x = _checks.array("x", x, layer.dtype, ("T", "B", layer.input_size))
    T, B, _ = x.shape
    if not x.size:
        raise RefusedValue(f"x has {T} steps of {B} sequences, expected at least one of each")
    states = _checks.states("state", state, layer.has_c, layer.dtype,
                            (L * D, B, H) if batched else (L * D, H))
    b = _checks.below("sequence", sequence, B)
    number, d = _checks.below("number", number, L), int(bool(reverse))
    distance = _checks.positive("distance", distance)
    t = (0 if d else T - 1) if t is None else _checks.below("t", t, T)
    if d and D == 1:
        raise RefusedValue("reverse is True, expected False: the layer has one direction")
    before = [s.reshape(L, D, B, H)[:, :, b] for s in states if s is not None]
    return _of_one(layer, x[:, b : b + 1], before, number, d, t, distance)


def _of_one(
    layer: Recurrent, x: np.ndarray, before: list[np.ndarray], number: int, d: int, t: int,
    distance: int,
) -> Jacobians:
    """Compute the Jacobians of direction d for one sequence x (T, 1, I).

    before: the initial state, [h] or [h, c], each (L, D, H), or [].
    """
    cell, H, name = layer.cell, layer.hidden_size, f"weight_hh_l{number}{'_reverse' * d}"
    w_hh = layer.parameters()[name].astype(np.float64).reshape(-1, H, H)  # (G, H, H)
    if not np.isfinite(w_hh).all():
        raise RefusedValue(f"{name} has values that are not finite")
    x = _input(layer, x, before, number)
    one, x = _direction(layer, number, d), x[::-1] if d else x
    t = len(x) - 1 - t if d else t
    start, initial = max(0, t - distance), _initial(before, number, d)
    _, state, _ = one.forward(x[:start], initial, grad=False)
    copies = tuple(s.repeat(H, 1) for s in state) if cell.has_c else state.repeat(H, 1)
    y, _, p = one.forward(x[start : t + 1].repeat(H, 1), copies)
    assert p is not None  # forward keeps one unless it is asked not to
    identity = np.eye(H, dtype=layer.dtype)[None]
    _, _, (recorded,) = p.backward(
        None, (identity, None) if cell.has_c else identity, need_dx=False,
        record=("dh", "dc") if cell.has_c else ("dh",))
    matrices = recorded["dh"][::-1, :, 0]
    singular_values = np.linalg.norm(w_hh, 2, axis=(1, 2))
    bounds = threshold = None
    if cell.slope is not None:
        threshold = 1 / cell.slope
        with np.errstate(over="ignore", under="ignore"):
            bounds = (singular_values * cell.slope) ** np.arange(len(matrices))
    return Jacobians(
        cell.name, matrices, matrix_norms(matrices),
        matrix_norms(recorded["dc"][::-1, :, 0]) if cell.has_c else None, bounds, singular_values,
        np.abs(np.linalg.eigvals(w_hh)).max(1), threshold, 
    )
