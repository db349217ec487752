"""Pictures of how gradients flow; needs matplotlib.

Install it with ``pip install matplotlib``; it is imported when something is drawn. Every
function draws into the axes that it is given, or into new ones, and returns them. Letters: T steps,
H hidden, G gates, L stacked layers, D directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.gradflow.flow import GradientFlow
from fastrnn.gradflow.jacobians import Jacobians
from fastrnn.gradflow.measure import norm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["axes_or_new", "gradient_heatmap", "gradient_norms", "jacobian_norms", "saturation",
           "shares"]


def axes_or_new(ax: Axes | None, size: tuple[float, float] = (6.4, 4.0)) -> Axes:
    """Return `ax`, or new axes of a size in inches."""
    if ax is None:
        try:
            import matplotlib.pyplot as plt
        except ModuleNotFoundError as error:
            name = str(error.name).partition(".")[0]
            raise ModuleNotFoundError(f"pictures need {name}, expected it to be installed: "
                                      f"pip install {name}", name=name) from error
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    if not hasattr(ax, "add_patch"):
        raise RefusedType(f"ax is {_checks.kind(ax)}, expected matplotlib's Axes")
    return ax


def _array(flow: Any, name: str, part: str) -> np.ndarray:
    """Return an array of a GradientFlow that has this part."""
    if not isinstance(flow, GradientFlow):
        raise RefusedType(f"flow is {_checks.kind(flow)}, expected a GradientFlow")
    array: np.ndarray | None = getattr(flow, name)
    if array is None and part in ("shares", "saturation") and not flow.gates:
        raise RefusedValue(f"flow has no {name}, expected the flow of a cell whose gates are "
                           f"recorded: those of {flow.cell!r} are not")
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
def gradient_norms(
    flow: GradientFlow, ax: Axes | None = None, *, state: str | None = None
) -> Axes:
    """Draw the norm of dL/dh(t) over the batch against t, a line per layer and direction.

    Parameters
    ----------
    flow : GradientFlow
        With its part "norms". Norms that are 0 or not finite are left out: the axis is
        logarithmic.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default new axes.
    state : str, optional
        Another state than h whose gradient is drawn, by its name: "c" of an LSTM.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If `flow` is something else, or lacks the part, or has no such state.
    """
    norms = _array(flow, "batch_norms", "norms")
    if state is not None:
        states = flow.state_norms or {}
        norms = norm(states[_checks.one_of("state", state, states)], -1)
    L, D, _ = norms.shape
    ax = axes_or_new(ax)
    for layer in range(L):
        for d in range(D):
            _line(ax, norms[layer, d], "--" if d else "-", color=f"C{layer}",
                  label=_name(layer, d, D))
    of = state or flow.first_state
    ax.set(xlabel="step t", ylabel=rf"$\|\partial L/\partial {of}(t)\|$", title="Gradient norms")
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
    ax = axes_or_new(ax)
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
    ax = axes_or_new(ax)
    h = jacobians.first_state
    for norms, style, label in (
        (jacobians.norms, "-", rf"$\|\partial {h}(t)/\partial {h}(k)\|$"),
        (jacobians.c_norms, "-",
         rf"$\|\partial {h}(t)/\partial {jacobians.memory_state or 'c'}(k)\|$"),
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
    ax = axes_or_new(ax)
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
    ax = axes_or_new(ax)
    for g, gate in enumerate(flow.gates):
        ax.plot(ends[:, g, 1], color=f"C{g}", label=gate)
        ax.plot(-ends[:, g, 0], color=f"C{g}")
    ax.axhline(0, color="0.3", linewidth=0.8)
    limit = 1.1 * max(0.1, ends.max(initial=0))
    ax.set(xlabel="step t", ylabel="share at the lower (-) and upper (+) end",
           ylim=(-limit, limit), title=f"Saturated gates: {name}")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
