"""A picture of a network unfolded in time; needs matplotlib.

Letters: I input, H hidden, L stacked layers, D directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, public
from fastrnn.gradflow.plot import axes_or_new
from fastrnn.layers.recurrent import Recurrent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["unfolded"]


@public
def unfolded(network: Any, steps: int = 4, ax: Axes | None = None) -> Axes:
    """Draw a network unfolded in time: x(t) through U to h(t), W from step to step, V to o(t).

    Parameters
    ----------
    network : RNN, LSTM or GRU, or tuple of int
        A tuple holds sizes: (I, H), (I, H, H) for two layers, and so on.
    steps : int
        How many steps to show.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default new axes.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If `network` is something else, or a size or `steps` is not a whole number of at least 1.
    """
    if isinstance(network, Recurrent):
        sizes = [network.input_size] + [network.hidden_size] * network.num_layers
        D = network.directions
    elif isinstance(network, (tuple, list)) and len(network) >= 2:
        sizes, D = [_checks.positive("network", size) for size in network], 1
    else:
        raise RefusedType(f"network is {_checks.show(network)}, expected an RNN, LSTM or GRU, or "
                          "a tuple of at least two sizes")
    steps = _checks.positive("steps", steps)
    return _draw_unfolded(ax, sizes, D, steps)


def _draw_unfolded(ax: Axes | None, sizes: list[int], D: int, steps: int) -> Axes:
    """Draw x at the bottom, a row per layer and direction above, o on top; a column per step."""
    L, radius = len(sizes) - 1, 0.42
    # the two directions are drawn apart, so that no edge runs through a node
    across, up, sides = (2.2, 1.6, (0.0,)) if D == 1 else (3.6, 1.8, (-0.8, 0.8))
    upwards, onwards = (0.5, 0.5) if D == 1 else (0.3, 0.65)  # names lie off where edges cross
    left = across * (D - 1) * 0.1 - sides[-1] - 1.4
    right = across * (steps + D - 1) + sides[-1] + 0.6
    ax = axes_or_new(ax, (0.75 * (right - left), 0.75 * (up * (L * D + 1) + 1)))
    from matplotlib.patches import Circle

    def at(t: int, layer: int, d: int = 0) -> np.ndarray:
        """Return the place of h of a layer; layer -1 is x, layer L is o."""
        if layer < 0:
            return np.array([across * t, 0.0])
        if layer == L:
            return np.array([across * t, up * (L * D + 1)])
        return np.array([across * t + sides[d], up * (layer * D + d + 1)])

    def node(place: np.ndarray, text: str, color: str) -> None:
        ax.add_patch(Circle((place[0], place[1]), radius, facecolor=color, edgecolor="0.25"))
        ax.text(place[0], place[1], text, ha="center", va="center")

    def edge(start: np.ndarray, end: np.ndarray, text: str, where: float) -> None:
        along = (end - start) / np.linalg.norm(end - start) * radius
        start, end = start + along, end - along
        ax.annotate("", tuple(end), tuple(start), arrowprops={"arrowstyle": "-|>", "color": "0.25",
                                                "shrinkA": 0, "shrinkB": 0})
        x, y = start + where * (end - start)
        ax.text(x, y, text, ha="center", va="center", color="C3",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})

    def name(letter: str, layer: int | None, d: int) -> str:
        return letter + (f"_{{{layer + 1}}}" if L > 1 and layer is not None else "") + "'" * d

    for t in range(1, steps + 1):
        node(at(t, -1), f"$x({t})$", "#dbe9f6")
        node(at(t, L), f"$o({t})$", "#fde5cf")
        for d in range(D):
            edge(at(t, L - 1, d), at(t, L), f"${name('V', None, d)}$", upwards)
            for layer in range(L):
                here, before = at(t, layer, d), t + (1 if d else -1)
                node(here, f"${name('h', layer, d)}({t})$", "#ddf0dd")
                if before in (0, steps + 1):
                    node(at(before, layer, d), f"${name('h', layer, d)}({before})$", "white")
                edge(at(before, layer, d), here, f"${name('W', layer, d)}$", onwards)
                for source in range(D if layer else 1):
                    # of the two edges that share a matrix, one bears its name
                    edge(at(t, layer - 1, source), here,
                         f"${name('U', layer, d)}$" if d == source or not layer else "", upwards)
    for layer, size in enumerate(sizes):
        y = float(np.mean([at(0, layer - 1, d)[1] for d in range(D)]))
        ax.text(left, y, f"{'H' if layer else 'I'} = {size}", ha="left", va="center", color="0.4")
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set(xlim=(left, right), ylim=(-0.5, up * (L * D + 1) + 0.5))
    return ax
