"""Where values that are not finite come from: parameters, input, states, or the loss's gradient.

One NaN spreads over everything that is computed from it, so a gradient that is not finite need not
have exploded. The search goes the way of the computation and stops at the first place that is not
finite. Letters: T steps, B batch, I input, H hidden, D directions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

__all__ = ["Computed", "NotFinite", "all_finite", "broken_parameter", "kind", "search"]


@dataclasses.dataclass(frozen=True)
class NotFinite:
    """The first place that is not finite, in the order in which one direction of a layer computes.

    Attributes
    ----------
    source : str
        "parameter"; "input" or, for a layer that reads another one, "layer below"; "initial state";
        "state", which has grown beyond all numbers, or "products", of finite inputs and parameters
        that are too large; "other state", of a cell with others than h and c, at the end; "loss";
        "entering gradient", of the loss with respect to the layer's outputs or final state, or
        "layer above", where that gradient comes from.
    value : {"NaN", "inf"}
    step : int or None
        Where in time it begins; None if the source has no steps.
    name : str
        Name of the parameter.
    state, state_step : str and int, or None
        The kind and the step of the first h(t) that is not finite, if the source is an input.
    """

    source: str
    value: str
    step: int | None = None
    name: str = ""
    state: str | None = None
    state_step: int | None = None


def all_finite(a: np.ndarray) -> bool:
    """Return whether all of an array is finite; whole numbers are.

    Call it inside np.errstate: NumPy warns where the sum overflows.
    """
    if a.dtype.kind != "f":
        return True
    # one pass without an array of booleans; if the sum overflows, each number is checked
    return math.isfinite(a.sum()) or bool(np.isfinite(a).all())


def kind(a: np.ndarray) -> str:
    """Return "NaN" if there is one in an array that is not finite, else "inf"."""
    return "NaN" if np.isnan(a).any() else "inf"


def _first(a: np.ndarray, backwards: bool = False) -> tuple[int, str] | None:
    """Return the first step, from either end, at which (T, ...) is not finite, and its kind."""
    if all_finite(a):
        return None
    bad = np.flatnonzero(~np.isfinite(a).reshape(len(a), -1).all(1))
    step = int(bad[-1 if backwards else 0])
    return step, kind(a[step])


def broken_parameter(parameters: Mapping[str, np.ndarray]) -> NotFinite | None:
    """Return the first parameter that is not finite."""
    for name, param in parameters.items():
        if not all_finite(param):
            return NotFinite("parameter", kind(param), name=name)
    return None


@dataclasses.dataclass(frozen=True)
class Computed:
    """One stacked layer's forward and backward.

    Attributes
    ----------
    x : array (T, B, I), or whole numbers (T, B)
    h : array (T, B, D, H)
        The state before each step: h(t-1), or h(t+1) for the reverse direction.
    final : (h,) or (h, c), each (D, B, H), or of another cell its states; or ()
        The states after the last step; () if they are not known.
    norms : array (D, T, B)
        Norms of the gradient with respect to the state after each step.
    has_c : bool
        Whether the cell is an LSTM, with a state c.
    lengths : integers (B,), or None: all T
        Steps of each row; behind them x, h and norms are zero.
    """

    x: np.ndarray
    h: np.ndarray
    final: tuple[np.ndarray, ...]
    norms: np.ndarray
    has_c: bool
    lengths: np.ndarray | None = None

    @property
    def last(self) -> np.ndarray:
        """The last step (B,) of each row, -1 of an empty one."""
        T, B = self.h.shape[:2]
        return np.full(B, T - 1) if self.lengths is None else self.lengths - 1

    def all_finite(self) -> bool:
        """Return whether everything is finite."""
        return all(map(all_finite, (self.x, self.h, *self.final, self.norms)))


def search(
    layers: list[Computed], dy: np.ndarray | None, loss: float
) -> list[tuple[NotFinite | None, ...]]:
    """Return, for each of some stacked layers and its directions, what is not finite first.

    Parameters
    ----------
    layers : list of Computed
        Each reads the one before, or what the caller gives.
    dy : array (T, ...) or None
        The gradient with respect to the last layer's outputs, if it is known.
    loss : float
        The loss's value.

    Returns
    -------
    list of tuples, each D entries
        None where everything is finite, or where the gradient became too large on its way back.
    """
    if all(layer.all_finite() for layer in layers):
        return [(None,) * len(layer.norms) for layer in layers]
    forward: list[list[NotFinite | None]] = []
    for layer in layers:
        below = bool(forward) and any(forward[-1])
        forward.append([_in_forward(layer, d, below) for d in range(len(layer.norms))])
    above, found = None, []
    for layer, states in zip(reversed(layers), reversed(forward), strict=True):
        found.append(tuple(state or _in_gradient(layer, d, dy, above, loss)
                           for d, state in enumerate(states)))
        dy, above = None, np.isfinite(layer.norms).all((0, 2))
    return found[::-1]


def _in_forward(layer: Computed, d: int, below: bool) -> NotFinite | None:
    """Return what is not finite first in a direction's forward; below: x is another's output."""
    reverse, x, h = d == 1, layer.x, layer.h[:, :, d]
    final = [state[d] for state in layer.final]
    if all_finite(x) and all_finite(h) and all(map(all_finite, final)):
        return None
    rows, last = np.arange(h.shape[1]), layer.last
    if not all_finite(initial := h[last, rows] if reverse else h[0]):
        return NotFinite("initial state", kind(initial))
    parts = [*final[:1], *h[:-1]] if reverse else [*h[1:], *final[:1]]
    known = np.stack(parts) if parts else h[:0]  # h(t) in the order of time
    if layer.lengths is not None and final and not reverse:
        known[-1] = 0
        known[last[last >= 0], rows[last >= 0]] = final[0][last >= 0]
    state = _first(known, reverse) if len(known) else None
    if state is not None and reverse and not final:  # h(0) is missing
        state = state[0] + 1, state[1]
    source = _first(x, reverse)
    if source is not None and (state is None or (source[0] >= state[0] if reverse else
                                                 source[0] <= state[0])):
        return NotFinite("layer below" if below else "input", source[1], source[0],
                         state=state and state[1], state_step=state and state[0])
    if state is None:  # another state than h
        value = next(kind(s) for s in final[::-1] if not all_finite(s))
        if layer.has_c:  # c grows by at most 1 a step, so a final c that is not finite began so
            return NotFinite("initial state", value)
        return NotFinite("other state", value, 0 if reverse else int(last.max()))
    step, value = state
    x_size, h_size = (float(np.abs(a[step]).max(initial=0)) for a in (x, h))
    if h_size > max(1.0, x_size):
        return NotFinite("state", value, step)
    # the first h of an LSTM is finite unless its initial c is not, or a product
    first = step in last if reverse else step == 0
    if layer.has_c and first and x_size < math.sqrt(np.finfo(h.dtype).max):
        return NotFinite("initial state", value)
    return NotFinite("products", value, step)


def _in_gradient(
    layer: Computed, d: int, dy: np.ndarray | None, above: np.ndarray | None, loss: float
) -> NotFinite | None:
    """Return where a gradient that is not finite enters a direction, if it does from outside.

    above (T,) is whether the layer above has finite norms.
    """
    norms, reverse = layer.norms[d], d == 1
    found = _first(norms, not reverse)
    if found is None:
        return None
    if not math.isfinite(loss):
        return NotFinite("loss", "NaN" if math.isnan(loss) else "inf")
    step, value = found
    if above is not None and len(above) == len(norms) and not above[step]:
        return NotFinite("layer above", value, step)
    # at the step where the way back begins, the gradient is nothing but what enters
    begins = step == 0
    if not reverse:
        begins = bool((~np.isfinite(norms[step]) & (layer.last == step)).any())
    if begins or (dy is not None and not all_finite(dy[step])):
        return NotFinite("entering gradient", value, step)
    return None
