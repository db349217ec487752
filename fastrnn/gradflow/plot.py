"""Pictures of how gradients flow, and of a network unfolded in time; needs matplotlib.

Install it with ``pip install 'fastrnn[plot]'``; it is imported when something is drawn. Every
function draws into the axes that it is given, or into new ones, and returns them. Letters: T steps,
I input, H hidden, G gates, L stacked layers, D directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.gradflow.flow import GradientFlow
from fastrnn.gradflow.jacobians import Jacobians
from fastrnn.layers.recurrent import Recurrent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["gradient_heatmap", "gradient_norms", "jacobian_norms", "saturation", "shares",
           "unfolded"]


def _axes(ax: Axes | None, size: tuple[float, float] = (6.4, 4.0)) -> Axes:
    if ax is None:
        try:
            import matplotlib.pyplot as plt
        except ModuleNotFoundError as error:
            name = str(error.name).partition(".")[0]
            raise ModuleNotFoundError(f"pictures need {name}, expected it to be installed: "
                                      "pip install 'fastrnn[plot]'", name=name) from error
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    return ax


def _array(flow: Any, name: str, part: str) -> np.ndarray:
    """Return an array of a GradientFlow that has this part."""
    if not isinstance(flow, GradientFlow):
        raise RefusedType(f"flow is {_checks.kind(flow)}, expected a GradientFlow")
    array: np.ndarray | None = getattr(flow, name)
    if array is None:
        raise RefusedValue(f"flow has no {name}, expected parts with {part!r}")
    return array


def _one(flow: Any, name: str, part: str, layer: Any, direction: Any) -> tuple[np.ndarray, str]:
    """Return one layer's and direction's part of an array (L, D, ...), and words for a title."""
    array = _array(flow, name, part)
    L, D = array.shape[:2]
    layer = _checks.below("layer", layer, L)
    direction = _checks.below("direction", direction, D)
    return array[layer, direction], _name(layer, direction, D)


def _drawable(values: np.ndarray) -> np.ndarray:
    """Return values for a logarithmic axis, with NaN for those that it cannot show."""
    return np.where((values > 0) & np.isfinite(values), values, np.nan)


def _line(ax: Axes, values: np.ndarray, style: str, **options: Any) -> None:
    """Draw values against 0, 1, ... on a logarithmic axis; a single value as a point."""
    shown = _drawable(values)
    marker = "." if np.isfinite(shown).sum() == 1 else None
    ax.semilogy(range(len(shown)), shown, style, marker=marker, **options)


def _note_if_empty(ax: Axes, values: np.ndarray) -> None:
    """Write into a picture with a logarithmic scale that it has nothing to show."""
    if np.isnan(_drawable(values)).all():
        text = "0 everywhere" if not values.any() else "no finite value above 0"
        ax.text(0.5, 0.5, text, ha="center", va="center", color="0.4", transform=ax.transAxes)


def _name(layer: int, direction: int, D: int) -> str:
    return f"layer {layer}" + (f", {('forward', 'reverse')[direction]}" if D == 2 else "")


@public
def gradient_norms(flow: GradientFlow, ax: Axes | None = None) -> Axes:
    """Draw the norm of dL/dh(t) over the batch against t, a line per layer and direction.

    Parameters
    ----------
    flow : GradientFlow
        With its part "norms". Norms that are 0 or not finite are left out: the axis is
        logarithmic.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default new axes.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If `flow` is something else, or lacks the part.
    """
    norms = _array(flow, "batch_norms", "norms")
    L, D, _ = norms.shape
    ax = _axes(ax)
    for layer in range(L):
        for d in range(D):
            _line(ax, norms[layer, d], "--" if d else "-", color=f"C{layer}",
                  label=_name(layer, d, D))
    ax.set(xlabel="step t", ylabel=r"$\|\partial L/\partial h(t)\|$", title="Gradient norms")
    _note_if_empty(ax, norms)
    if L * D > 1:
        ax.legend()
    return ax


@public
def gradient_heatmap(
    flow: GradientFlow, layer: int = 0, direction: int = 0, ax: Axes | None = None
) -> Axes:
    """Draw |dL/dh(t)| of every unit and step as a map, logarithmic in colour.

    Parameters
    ----------
    flow : GradientFlow
        With its part "units". Places are white where the gradient is 0 or
        not finite.
    layer, direction : int
        Which one to draw, from 0.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default new axes.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If `flow` is something else or lacks the part, or there is no such layer or direction.
    """
    units, name = _one(flow, "units", "units", layer, direction)
    ax = _axes(ax)
    from matplotlib.colors import LogNorm

    shown = np.ma.masked_invalid(_drawable(units))
    drawn = shown.count() > 0
    image = ax.imshow(shown.T, aspect="auto", origin="lower", interpolation="nearest",
                      norm=LogNorm(shown.min(), shown.max()) if drawn else None)
    if drawn:
        ax.figure.colorbar(image, ax=ax, label=r"$|\partial L/\partial h_u(t)|$")
    _note_if_empty(ax, units)
    ax.set(xlabel="step t", ylabel="unit u", title=f"Gradient by unit: {name}")
    return ax


@public
def jacobian_norms(jacobians: Jacobians, ax: Axes | None = None) -> Axes:
    """Draw ||dh(t)/dh(k)|| against t - k, with the bound where the cell has one.

    Parameters
    ----------
    jacobians : Jacobians
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default new axes.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError
        If `jacobians` is something else.
    """
    if not isinstance(jacobians, Jacobians):
        raise RefusedType(f"jacobians is {_checks.kind(jacobians)}, expected Jacobians")
    ax = _axes(ax)
    for norms, style, label in (
        (jacobians.norms, "-", r"$\|\partial h(t)/\partial h(k)\|$"),
        (jacobians.c_norms, "-", r"$\|\partial h(t)/\partial c(k)\|$"),
        (jacobians.bounds, "k:", r"bound $(\|W_{hh}\|\,\gamma)^{t-k}$"),
    ):
        if norms is not None:
            _line(ax, norms, style, label=label)
    memory = jacobians.memory()
    if memory is not None:
        ax.axvline(memory, color="0.7", linewidth=1, zorder=0, label=f"memory: {memory} steps")
    ax.set(xlabel="distance t - k", ylabel="2-norm", title="Dependence of a state on earlier ones")
    _note_if_empty(ax, jacobians.norms)
    ax.legend()
    return ax


@public
def shares(flow: GradientFlow, layer: int = 0, direction: int = 0, ax: Axes | None = None) -> Axes:
    """Draw each step's share of the gradients of weight_ih and weight_hh as bars.

    Parameters
    ----------
    flow : GradientFlow
        With its part "shares".
    layer, direction : int
        Which one to draw, from 0.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default new axes.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If `flow` is something else or lacks the part, or there is no such layer or direction.
    """
    ih, name = _one(flow, "shares_ih", "shares", layer, direction)
    hh, _ = _one(flow, "shares_hh", "shares", layer, direction)
    ax = _axes(ax)
    t = np.arange(len(ih))
    ax.bar(t - 0.2, ih, 0.4, label=r"of $\partial L/\partial W_{ih}$")
    ax.bar(t + 0.2, hh, 0.4, label=r"of $\partial L/\partial W_{hh}$")
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.set(xlabel="step t", ylabel="share", title=f"What each step adds: {name}")
    ax.legend()
    return ax


@public
def saturation(
    flow: GradientFlow, layer: int = 0, direction: int = 0, ax: Axes | None = None
) -> Axes:
    """Draw which part of each gate is saturated against t: the upper end above 0, the lower below.

    Parameters
    ----------
    flow : GradientFlow
        With its part "saturation".
    layer, direction : int
        Which one to draw, from 0.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default new axes.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If `flow` is something else or lacks the part, or there is no such layer or direction.
    """
    ends, name = _one(flow, "saturation", "saturation", layer, direction)
    ax = _axes(ax)
    for g, gate in enumerate(flow.gates):
        ax.plot(ends[:, g, 1], color=f"C{g}", label=gate)
        ax.plot(-ends[:, g, 0], color=f"C{g}")
    ax.axhline(0, color="0.3", linewidth=0.8)
    limit = 1.1 * max(0.1, ends.max(initial=0))
    ax.set(xlabel="step t", ylabel="share at the lower (-) and upper (+) end",
           ylim=(-limit, limit), title=f"Saturated gates: {name}")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


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
    ax = _axes(ax, (0.75 * (right - left), 0.75 * (up * (L * D + 1) + 1)))
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
