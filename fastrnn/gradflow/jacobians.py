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
from fastrnn.layers.recurrent import Recurrent
from fastrnn.models.ragged import as_list, is_list, one_sequence
from fastrnn.models.stack import arrays_of

__all__ = ["Jacobians", "jacobians"]

ITERATIONS = 100  # of the power iteration, at most


@dataclasses.dataclass(frozen=True)
class Jacobians:
    """What `jacobians` computed. Arrays of n entries have one for each distance d = t - k, from 0.

    Attributes
    ----------
    cell : str
        "rnn_tanh", "rnn_relu", "rnn_sigmoid", "lstm" or "gru", or the name of another cell, whose
        first state is h here.
    matrices : array (n, H, H)
        dh(t)/dh(k), of the layer's dtype: row i is the gradient of h_i(t). Other states, c(k) of an
        LSTM, are held constant.
    norms : array (n,)
        Their 2-norms.
    c_norms : array (n,) or None
        2-norms of dh(t)/dc(k); only for an LSTM, whose memory is c, or for the memory of another
        cell.
    bounds : array (n,) or None
        (||W_hh||_2 gamma)^d, which no norm exceeds, with gamma the greatest slope of the
        activation; None for gated cells.
    singular_values, spectral_radii : array (G,)
        The largest singular value and the largest absolute eigenvalue of each gate's part of W_hh;
        none of a cell without gates.
    threshold : float or None
        1/gamma. Gradients must vanish if the singular value is below it, and can explode only if it
        is above. 1 for tanh and relu, 4 for sigmoid, None for gated cells.
    not_finite : NotFinite or None
        Where values that are not finite come from; None where all values are finite, or where the
        derivatives became too large on their way back.
    memory_state : str or None
        The state that is carried from step to step without a matrix product: that of `c_norms`, or
        h if there are none.
    first_state : str
        The name of the state that is h in these descriptions: the first of the cell.
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
    memory_state: str | None = None
    first_state: str = "h"

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
    final states is the identity. Dropout is left out, and masks of equations have their means.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
    x, state
        As for a call of the layer; x may also be a list of B arrays (T_i, I).
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
    L, D = layer.num_layers, layer.directions
    reverse = _checks.flag("reverse", reverse)
    x = as_list(x)
    if is_list(x):
        return _of_list(layer, x, state, t, sequence, distance, number, reverse)
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
    shapes: list[tuple[int, ...]] = list(layer.state_shapes(B))
    if not batched:
        shapes = [(rows, width) for rows, _, width in layer.state_shapes(B)]
    states = _checks.states("state", state, layer.cell.states, layer.dtype, shapes)
    b = _checks.below("sequence", sequence, B)
    number, d = _checks.below("number", number, L), int(bool(reverse))
    distance = _checks.positive("distance", distance)
    t = (0 if d else T - 1) if t is None else _checks.below("t", t, T)
    if d and D == 1:
        raise RefusedValue("reverse is True, expected False: the layer has one direction")
    initial = tuple(None if s is None else s.reshape(L, D, B, -1)[:, :, b] for s in states)
    return _Direction(layer, number, d, initial).jacobians(x[:, b : b + 1], t, distance)


def _of_list(
    layer: Recurrent, x: Any, state: Any, t: int | None, sequence: int, distance: int, number: int,
    reverse: bool,
) -> Jacobians:
    """Do it for one sequence of a list: the others have no part in it."""
    if not x:
        raise RefusedValue("x is an empty list, expected at least one sequence")
    b = _checks.below("sequence", sequence, len(x))
    one = one_sequence(f"x[{b}]", x[b], layer.dtype, layer.input_size)
    own = tuple(None if s is None else s[:, b] for s in
                _checks.states("state", state, layer.cell.states, layer.dtype,
                               layer.state_shapes(len(x))))
    return jacobians(layer, one, None if state is None else _as_state(own), t=t,
                     distance=distance, number=number, reverse=reverse)


@dataclasses.dataclass(frozen=True)
class _Direction:
    """One direction of one stacked layer, for one sequence.

    Attributes
    ----------
    layer : RNN, LSTM or GRU
    number, d : int
        Which of the stacked layers, and which direction.
    initial : tuple, for each state (L, D, width) or None: zero
    """

    layer: Recurrent
    number: int
    d: int
    initial: tuple[np.ndarray | None, ...]

    @property
    def suffix(self) -> str:
        """What the names of its parameters end with."""
        return f"_l{self.number}{'_reverse' * self.d}"

    def jacobians(self, x: np.ndarray, t: int, distance: int) -> Jacobians:
        """Differentiate the state of step t of a sequence x (T, 1, I)."""
        cell, H, T = self.layer.cell, self.layer.state_widths[0], len(x)
        w_hh = np.zeros((0, H, H))
        if cell.gates:
            w_hh = self.layer.parameters()["weight_hh" + self.suffix].astype(np.float64)
        if not np.isfinite(w_hh).all():
            raise RefusedValue(f"weight_hh{self.suffix} has values that are not finite, expected "
                               "finite ones")
        w_hh = w_hh.reshape(-1, H, H)  # (G, H, H)
        for number in range(self.number):  # the layers below give the input
            x = np.concatenate([dataclasses.replace(self, number=number, d=d).outputs(x)
                                for d in range(self.layer.directions)], 2)
        x, one = x[:: 1 - 2 * self.d], self.alone()
        x = x[: T - t if self.d else t + 1]  # in the order in which the direction reads it
        start = max(0, len(x) - 1 - distance)
        y_before, before, _ = one.forward(x[:start], self.state(), grad=False)
        y, _, p = one.forward(
            x[start:].repeat(H, 1),
            _as_state(tuple(s.repeat(H, 1) for s in arrays_of(before))))
        assert p is not None  # forward keeps one unless it is asked not to
        identity = np.eye(H, dtype=self.layer.dtype)[None]
        names = dict.fromkeys((f"d{cell.states[0]}", f"d{cell.memory}"))
        _, _, (recorded,) = p.backward(
            None, _as_state((identity, *(None for _ in cell.states[1:]))), need_dx=False,
            record=tuple(names))
        matrices, *of_memory = (recorded[name][::-1, :, 0] for name in names)
        singular_values = np.linalg.norm(w_hh, 2, axis=(1, 2))
        bounds = threshold = None
        if cell.slope is not None:
            threshold = 1 / cell.slope
            with np.errstate(over="ignore", under="ignore"):
                bounds = (singular_values * cell.slope) ** np.arange(len(matrices))
        return Jacobians(
            cell.name, matrices, matrix_norms(matrices),
            matrix_norms(of_memory[0]) if of_memory else None, bounds, singular_values,
            np.abs(np.linalg.eigvals(w_hh)).max(1), threshold,
            self.not_finite(x, np.concatenate([y_before, y[:, :1]]), T), cell.memory,
            cell.states[0])

    def alone(self) -> Recurrent:
        """Return a copy as a layer of its own, which goes from step 0 on."""
        params, layer = self.layer.parameters(), self.layer
        one = layer.alone(layer.width if self.number else layer.input_size)
        for name, param in one.parameters().items():
            param[...] = params[name.removesuffix("_l0") + self.suffix]
        return one.eval()

    def state(self) -> Any:
        """Return its initial state, as a call takes it."""
        own = tuple(None if s is None else s[self.number, self.d][None, None] for s in self.initial)
        return _as_state(own)

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Return its outputs (T, 1, H) for a sequence (T, 1, I), in the order of time."""
        turn = 1 - 2 * self.d
        return self.alone().forward(x[::turn], self.state(), grad=False)[0][::turn]

    @np.errstate(all="ignore")
    def not_finite(self, x: np.ndarray, y: np.ndarray, T: int) -> NotFinite | None:
        """Return where values that are not finite come from.

        x and y (steps, 1, ...) are inputs and states in the direction's order; T is the number of
        steps of the whole sequence.
        """
        ends = (self.suffix, *(f"_l{k}{end}" for k in range(self.number)
                               for end in ("", "_reverse")))
        used = {name: param for name, param in self.layer.parameters().items()
                if name.endswith(ends)}
        if (broken := finite.broken_parameter(used)) is not None:
            return broken
        states = [None if s is None else s[self.number, self.d] for s in self.initial]
        for s in states:
            if s is not None and not finite.all_finite(s):
                return NotFinite("initial state", finite.kind(s))
        h = np.concatenate([np.zeros_like(y[:1]), y])  # its own, which is finite, is first
        computed = finite.Computed(x, h[:-1, :, None], (h[-1:],), np.zeros((1, len(x), 1)),
                                   self.layer.has_c)
        ((found,),) = finite.search([computed], None, 0.0)
        if found is None:
            return None

        def at(step: int | None) -> int | None:
            return T - 1 - step if self.d and step is not None else step

        source = "layer below" if self.number and found.source == "input" else found.source
        return dataclasses.replace(found, source=source, step=at(found.step),
                                   state_step=at(found.state_step))


def _as_state(arrays: tuple[np.ndarray | None, ...]) -> Any:
    """Return arrays, one for each state of a cell, as a call takes them."""
    return arrays[0] if len(arrays) == 1 else arrays


def matrix_norms(a: np.ndarray) -> np.ndarray:
    """Return the 2-norms (n,) of matrices (n, H, H); infinite where a value is not finite.

    If H is above 128, by power iteration on J J^T with 8 vectors at once: from below, to about
    1e-5.
    """
    norms = np.full(len(a), np.inf)
    bounded = np.isfinite(a).all((1, 2))
    if a.shape[1] <= 128:
        norms[bounded] = np.linalg.norm(a[bounded].astype(np.float64), 2, axis=(1, 2))
        return norms
    rng = np.random.default_rng(0)
    u = rng.standard_normal((a.shape[1], 8))
    for i in np.flatnonzero(bounded):
        scale = float(np.abs(a[i]).max()) or 1.0
        j = a[i] / np.float64(scale)  # one after the other: each stays in the cache
        # where the last matrix was stretched most, for one more step back changes that little, and
        # new vectors, for what was nothing before may be most of it now
        u[:, 4:] = rng.standard_normal((len(u), 4))
        value, before = 0.0, -1.0
        for _ in range(ITERATIONS):
            if value - before <= 1e-6 * value:
                break
            u = np.linalg.qr(j @ (j.T @ u))[0]
            before, value = value, float(np.linalg.norm(j.T @ u, 2))
        norms[i] = value * scale
    return norms
