"""What was measured, in words: gradients vanish, explode, are healthy, or are not finite.

Letters: T steps, B batch, L stacked layers, D directions, n distances.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.cells import CELLS, Cell
from fastrnn.gradflow.finite import NotFinite
from fastrnn.gradflow.flow import GradientFlow
from fastrnn.gradflow.jacobians import Jacobians
from fastrnn.gradflow.measure import norm
from fastrnn.training.history import History

__all__ = ["growth", "verdict"]

# The factor over all steps that still counts as healthy.
HEALTHY = (1e-2, 1e2)

# What to try; `verdict` names the sources.
SMALLER = "smaller or orthogonal recurrent weights"
EXPLODING = f"{SMALLER}, and clipping the gradient's norm"
VANISHING = {  # by the activation of a cell without gates
    "tanh": "orthogonal recurrent weights, or an LSTM or GRU",
    "relu": "recurrent weights that begin as the identity, or an LSTM or GRU",
    "sigmoid": "tanh, whose slope is four times as large, or an LSTM or GRU",
}

# What NotFinite means, by its source.
NOT_FINITE = {
    "parameter": "not finite: {name} has values that are {value}; set or load the parameters again",
    "input": "not finite: the input is {value} at step {step}; look at the data",
    "layer below": "not finite: the output of the layer below is {value} at step {step}",
    "initial state": "not finite: the initial state is {value}; look at what gives it",
    "state": "exploding: the state is {value} from step {step} on, though input and parameters are "
             f"finite; try {SMALLER}",
    "products": "not finite: the state is {value} from step {step} on, though input and parameters "
                "are finite: their products are too large; look at the scale of both",
    "other state": "not finite: a state besides the first is {value} at step {step}, though input "
                   "and parameters are finite; look at the initial state and at what it adds up",
    "loss": "not finite: the loss is {value}; look at its targets, their weights and the outputs",
    "entering gradient": "not finite: the gradient that comes from the loss is {value} at step "
                         "{step}; look at the loss",
    "layer above": "not finite: the gradient that comes from the layer above is {value} at step "
                   "{step}",
}
THROUGH = {  # a source that has reached the state
    "input": "not finite: the state is {state} from step {state_step} on; look at the input, which "
             "is {value} at step {step}",
    "layer below": "not finite: the state is {state} from step {state_step} on, as is the output "
                   "of the layer below",
}


@public
def growth(norms: Any) -> float:
    """Return the factor per step of a line fitted to the logarithms of norms.

    Parameters
    ----------
    norms : array (n,)
        In the order of backward. Those that are 0 or not finite are left out.

    Returns
    -------
    float
        NaN if fewer than two norms are left.

    Raises
    ------
    TypeError, ValueError
        If `norms` are not numbers in one dimension.
    """
    norms = _checks.numbers("norms", norms)
    if norms.ndim != 1:
        raise RefusedValue(f"norms has shape {norms.shape}, expected (n,)")
    with np.errstate(over="ignore", under="ignore"):
        return float(np.exp(_slope(norms)))


def _slope(norms: np.ndarray) -> float:
    """Return the logarithm of `growth`."""
    usable = np.flatnonzero((norms > 0) & np.isfinite(norms))
    if usable.size < 2:
        return math.nan
    return float(np.polyfit(usable, np.log(norms[usable]), 1)[0])


@public
def verdict(of: GradientFlow | Jacobians | History) -> str:
    """Describe whether gradients vanish, explode or are healthy, and what to try.

    `growth` fits a factor per step to the norms, for an LSTM to those of the memory c. To the power
    of the number of steps, the factor decides: below 0.01 gradients vanish, above 100 they explode.
    Where the loss enters at every step, the gradients that enter late hide what reaches back from
    the last step. Rows of different lengths are compared at equal distances from their ends, and of
    rows with resets the last episode that has a gradient counts: none goes further back. For a
    History the norms are those of the whole gradient at each step of the
    training: it explodes where one is above 100 times the median of the steps around it.

    Values that are not finite do not count as exploding where they come from the input, from
    parameters, from an initial state or from the loss; the verdict then begins with "not finite"
    and names the source.

    Parameters
    ----------
    of : GradientFlow, Jacobians or History

    Returns
    -------
    str
        One line for each layer and direction; for Jacobians and a History one line.

    Raises
    ------
    TypeError, ValueError
        If `of` is something else, a flow without norms, or a history without steps.

    References
    ----------
    Clipping: Pascanu, Mikolov and Bengio, ICML 2013; identity weights of relu units: Q. V. Le,
    N. Jaitly and G. E. Hinton, "A simple way to initialize recurrent networks of rectified linear
    units", 2015; the forget gate's bias: R. Jozefowicz, W. Zaremba and I. Sutskever, "An empirical
    exploration of recurrent network architectures", ICML 2015.
    """
    if isinstance(of, History):
        return _of_training(of)
    if isinstance(of, Jacobians):
        return _of_jacobians(of)
    if not isinstance(of, GradientFlow):
        raise RefusedType(f"of is {_checks.kind(of)}, expected a GradientFlow, Jacobians or "
                          "History")
    cell = CELLS.get(of.cell)
    memory = (of.memory_state or "h") if cell is None else cell.memory
    norms = of.norms if of.c_norms is None else of.c_norms
    if norms is None:
        raise RefusedValue("of is a GradientFlow without norms, expected parts with 'norms'")
    with np.errstate(over="ignore", invalid="ignore"):
        whole = _backward(norms, of.lengths, of.begins)
    directions = ("forward", "reverse") if len(whole) == 2 else ("",)
    lines = []
    for layer in range(len(norms)):
        for d, direction in enumerate(directions):
            found = None if of.not_finite is None else of.not_finite[layer][d]
            text = _not_finite(found) if found else _describe(
                f"|dL/d{memory}|", cell, whole[d][layer], 0)
            lines.append(f"layer {layer} {direction}".rstrip() + f": {text}")
    return "\n".join(lines)


def _backward(
    norms: np.ndarray, lengths: np.ndarray | None, begins: np.ndarray | None
) -> list[np.ndarray]:
    """Return, for each direction, root mean squares (L, n), over the rows, of norms (L, D, T, B).

    They are in the order of backward: place k is k steps from the end of each row, and a reverse
    direction ends at step 0. With resets the end is that of the row's last episode that has a
    gradient, and no place lies before this episode. The longest row has n steps.
    """
    T, B = norms.shape[2:]
    ends = np.full(B, T) if lengths is None else lengths
    k = np.arange(T)[:, None]
    found = []
    for d in range(norms.shape[1]):
        places = np.broadcast_to(k, (T, B)) if d else ends - 1 - k
        real, places = (places >= 0) & (places < ends), np.clip(places, 0, T - 1)
        own = np.where(real, np.take_along_axis(norms[:, d], places[None], 1), 0)  # (L, T, B)
        if begins is not None:
            begin = np.take_along_axis(begins[d], places, 0) & real
            episode: np.ndarray = np.cumsum(begin, 0) - begin  # of each place
            lives = (own != 0).any(0)
            last: np.ndarray = np.take_along_axis(episode, lives.argmax(0)[None], 0)
            real &= (episode == last) & (lives.any(0) | ~lives.any())
            moved = k + real.argmax(0)
            real = np.take_along_axis(real, np.minimum(moved, T - 1), 0) & (moved < T)
            own = np.take_along_axis(own, np.minimum(moved, T - 1)[None], 1)
        n = int(real.sum(0).max())
        found.append(norm(np.where(real, own, 0), 2)[:, :n] / np.sqrt(real.sum(1)[:n]))
    return found


def _not_finite(found: NotFinite) -> str:
    sentences = NOT_FINITE if found.state is None else THROUGH
    return sentences[found.source].format(**vars(found))


def _of_jacobians(found: Jacobians) -> str:
    if found.not_finite is not None:
        return _not_finite(found.not_finite)
    cell = CELLS.get(found.cell)
    memory = (found.memory_state or "h") if cell is None else cell.memory
    norms = found.norms if found.c_norms is None else found.c_norms
    text = _describe(f"||d{found.first_state}(t)/d{memory}(k)||", cell, norms[1:], 1)
    if found.threshold is None:
        return text
    value = found.singular_values[0]
    bound = "below {:g}: gradients must vanish" if value < found.threshold else "not below {:g}"
    return (f"{text}; the largest singular value of W_hh is {value:.3g}, "
            + bound.format(found.threshold))


def _of_training(history: History) -> str:
    """Describe the norms of a training's gradients, and what clipping did."""
    norms, n = np.array(history.norms, np.float64), len(history.norms)
    if not n:
        raise RefusedValue("of is a History without steps, expected at least one")
    if not (np.isfinite(norms).all() and np.isfinite(history.losses).all()):
        return _broken_training(np.array(history.losses), norms)
    at = int(norms.argmax())
    if not norms[at]:
        return f"vanishing: the gradient's norm is 0 at each of {n} steps"
    middle = float(np.median(norms))
    text = (f"the gradient's norm has a median of {middle:.3g} and is at most {norms[at]:.3g}, at "
            f"step {at + 1}")
    clipped = len(history.clipped)
    acted = ("no limit was set" if history.clip is None else
             f"clipped above {history.clip:g} at {clipped} of {n} steps")
    jumps = np.flatnonzero(norms > HEALTHY[1] * _usual(norms))
    if jumps.size:
        at = int(jumps[norms[jumps].argmax()])
        text = (f"the gradient's norm has a median of {middle:.3g} and jumps to {norms[at]:.3g}, "
                f"at step {at + 1}")
        advice = EXPLODING if history.clip is None else "a smaller learning rate if the loss jumps"
        return f"exploding: {text}; {acted}; try {advice}"
    often = "; so often it acts as a smaller learning rate" if 2 * clipped > n else ""
    return f"healthy: {text}; {acted}{often}"


def _usual(norms: np.ndarray) -> np.ndarray:
    """Return the median of the up to 101 norms around each step: a training's norms drift."""
    reach = 50
    if len(norms) < 2 * reach + 1:
        return np.full(len(norms), np.median(norms))
    middle = np.median(np.lib.stride_tricks.sliding_window_view(norms, 2 * reach + 1), axis=1)
    return np.pad(middle, (reach, len(norms) - len(middle) - reach), mode="edge")


def _broken_training(losses: np.ndarray, norms: np.ndarray) -> str:
    """Describe a training with a loss or a gradient's norm that is NaN or infinite."""
    bad_losses, bad_norms = (np.flatnonzero(~np.isfinite(a)) for a in (losses, norms))
    if bad_losses.size and not (bad_norms.size and bad_norms[0] < bad_losses[0]):
        at = bad_losses[0]
        return (f"not finite: the loss is {losses[at]:g} at step {at + 1}; look at the inputs and "
                "targets of that step")
    at = bad_norms[0]
    text = f"the gradient's norm is {norms[at]:g} at step {at + 1}"
    if at:
        text += f", after at most {norms[:at].max():.3g} before"
    if np.isinf(norms[at]):
        return f"exploding: {text}; try {EXPLODING}"
    if at < len(losses):
        text += f", though the loss is {losses[at]:.3g}"
    return f"not finite: {text}; measure that step's batch with model_flow"


def _describe(what: str, cell: Cell | None, norms: np.ndarray, first: int) -> str:
    """Describe norms in the order of backward, the first of them `first` steps back."""
    unbounded = np.flatnonzero(~np.isfinite(norms))
    if unbounded.size:
        return f"exploding: {what} is not finite {first + unbounded[0]} steps back; try {EXPLODING}"
    if norms.size and not norms.any():
        return f"vanishing: {what} is 0 at every step; try {_cure(cell)}"
    if norms.size and norms[-1] == 0:
        zero = first + np.flatnonzero(norms)[-1] + 1
        return f"vanishing: {what} is 0 from {zero} steps back on; try {_cure(cell)}"
    slope, steps = _slope(norms), len(norms) - 1
    if math.isnan(slope):
        return f"healthy: {what} has too few steps to grow or shrink"
    with np.errstate(over="ignore", under="ignore"):
        rate, factor = np.exp([slope, steps * slope])
    text = f"{what} changes by a factor of {rate:.4g} a step, {factor:.2g} over {steps} step"
    text += "s" * (steps > 1)
    if factor < HEALTHY[0]:
        return f"vanishing: {text}; try {_cure(cell)}"
    if factor > HEALTHY[1]:
        return f"exploding: {text}; try {EXPLODING}"
    return f"healthy: {text}"


def _cure(cell: Cell | None) -> str:
    """Return what to try against vanishing gradients; the cell is None if it is not the table's."""
    if cell is None:
        return "orthogonal recurrent weights, or a state that is carried without a matrix product"
    if cell.keep_gate is None:
        return VANISHING[cell.gates[0].activation]
    name = cell.gates[cell.keep_gate].name
    return f"a positive bias, 1 or more, at the gate {name}, which keeps the old state"
