"""How gradients flow back through time: their norms, what each step adds, and what stops them.

`gradient_flow` looks at one backward of a layer, `model_flow` at one of a model, `jacobians` at how
much one state still depends on an earlier one, and `verdict` puts any of them into words, and the
history of a training with its clipped steps. They work on copies: gradients, tapes, modes and
dropout stay as they are. Letters: T steps, B batch, I input, H hidden, G gates, L layers, D
directions.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn.history import History
from fastrnn.jacobians import Jacobians, check_layer, jacobians
from fastrnn.layers import Recurrent
from fastrnn.stack import recurrent_layers

__all__ = ["GradientFlow", "Jacobians", "gradient_flow", "growth", "jacobians", "model_flow",
           "verdict"]

PARTS = ("norms", "units", "shares", "saturation")

# Of every cell the activated gates, in torch's order, and how they saturate.
GATES = {
    "rnn_tanh": {"h": "tanh"},
    "rnn_relu": {"h": "relu"},
    "rnn_sigmoid": {"h": "sigmoid"},
    "lstm": {"i": "sigmoid", "f": "sigmoid", "g": "tanh", "o": "sigmoid"},
    "gru": {"r": "sigmoid", "z": "sigmoid", "n": "tanh"},
}
LIMITS = {"tanh": (-0.95, 0.95), "sigmoid": (0.05, 0.95), "relu": (0.0, math.inf)}

# What to try, by cell: sources as in `verdict`.
VANISHING = {
    "rnn_tanh": "orthogonal recurrent weights, or an LSTM or GRU",
    "rnn_relu": "recurrent weights that begin as the identity, or an LSTM or GRU",
    "rnn_sigmoid": "tanh, whose slope is four times as large, or an LSTM or GRU",
    "lstm": "a bias of 1 or more at the forget gate",
    "gru": "a positive bias at the gate z, which keeps the old state",
}
EXPLODING = "smaller or orthogonal recurrent weights, and clipping the gradient's norm"

# What a norm may be multiplied by over all steps and still be called healthy.
HEALTHY = (1e-2, 1e2)


@dataclasses.dataclass(frozen=True)
class GradientFlow:
    """What `gradient_flow` found; of a part that was not asked for, None.

    Time runs as that of x, also in a reverse direction. Everything is float64.

    Attributes
    ----------
    cell : str
        "rnn_tanh", "rnn_relu", "rnn_sigmoid", "lstm" or "gru".
    norms : array (L, D, T, B)
        2-norm of dL/dh(t), the whole derivative, of every sequence.
    c_norms : array (L, D, T, B)
        Likewise of dL/dc(t); of an LSTM alone.
    units : array (L, D, T, H)
        2-norm of dL/dh(t) of every unit, over the batch.
    terms_ih, terms_hh : array (L, D, T)
        Frobenius norm of what step t adds to the gradient of weight_ih, dG(t)^T x(t), and of
        weight_hh, dG(t)^T h(t-1), with dG (B, G*H) the gradients of the gates' arguments.
    shares_ih, shares_hh : array (L, D, T)
        The same terms' components along the whole gradient, divided by its norm: they sum to 1, and
        a step below 0 works against the others. All are 0 where the whole gradient is 0.
    saturation : array (L, D, T, G, 2)
        Share of a gate's values, over batch and units, at its lower and at its upper end: at most
        0.05 and at least 0.95 of a sigmoid, -0.95 and 0.95 of a tanh; at most 0 of a relu.
    dead : array (L, D)
        Share of relu units that are 0 at every step of every sequence; None for other cells.
    """

    cell: str
    norms: np.ndarray | None = None
    c_norms: np.ndarray | None = None
    units: np.ndarray | None = None
    terms_ih: np.ndarray | None = None
    terms_hh: np.ndarray | None = None
    shares_ih: np.ndarray | None = None
    shares_hh: np.ndarray | None = None
    saturation: np.ndarray | None = None
    dead: np.ndarray | None = None

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the G gates of `saturation`."""
        return tuple(GATES[self.cell])

    @property
    def batch_norms(self) -> np.ndarray | None:
        """(L, D, T): 2-norm of dL/dh(t) over the whole batch."""
        return None if self.norms is None else _norm(self.norms, -1)


def gradient_flow(
    layer: Recurrent, x: Any, dy: Any = None, dstate: Any = None, state: Any = None, *,
    parts: tuple[str, ...] = PARTS,
) -> GradientFlow:
    """Run a layer over a batch and back, and measure what flows back through time.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Any number of layers and both directions; of a model, its recurrent layers. It runs in
        training mode, with the dropout that its next call would draw.
    x, state : as of a call of the layer
    dy, dstate : as of the layer's backward
        Where the loss enters. Without both it is the sum of the last layer's final states h. A loss
        at the last step alone shows best how far a gradient reaches.
    parts : tuple of str
        What to compute: "norms" costs little beside backward itself; "units"; "shares"; and
        "saturation", which copies the gates.

    Returns
    -------
    GradientFlow

    Raises
    ------
    TypeError, ValueError
        As the layer's call and backward, or if `layer` or a part is something else.
    """
    owner = "gradient_flow"
    check_layer(owner, layer)
    _check_parts(owner, parts)
    twin = _twin(layer)
    _, final = twin(x, state)
    D, lstm = twin.directions, twin.cell == "lstm"
    if dy is None and dstate is None:
        dhn = np.zeros_like(final[0] if lstm else final)
        dhn[-D:] = 1
        dstate = (dhn, None) if lstm else dhn
    return _flow(twin, twin.flow(_names(twin, parts), dy, dstate), parts)


def model_flow(
    model: Any, run: Callable[[Any], Any], *, parts: tuple[str, ...] = PARTS
) -> list[GradientFlow]:
    """Measure what flows back through the recurrent layers of a model.

    Parameters
    ----------
    model : SequenceModel, EncoderDecoder or LanguageModel
    run : callable
        Takes a copy of the model, in training mode, and computes a loss:
        ``lambda m: m.loss(x, targets)``. Weights that are 0 but at the last step show best how far
        a gradient reaches.
    parts : tuple of str
        As of gradient_flow.

    Returns
    -------
    list of GradientFlow
        One for each of the model's layers, the encoder's first.

    Raises
    ------
    TypeError, ValueError
        As `run` and backward, or if the model has no recurrent layer or a part is something else.
    """
    owner = "model_flow"
    _check_parts(owner, parts)
    if isinstance(model, Recurrent) or not recurrent_layers(model):
        raise TypeError(f"{owner}: model is {_checks.kind(model)}, expected a model of recurrent "
                        "layers")
    twin = _twin(model)
    layers = recurrent_layers(twin)
    for layer in layers:
        layer.watch = _names(layer, parts)
    run(twin)
    twin.backward()
    return [_flow(layer, layer.seen, parts) for layer in layers]


def _twin(of: Any) -> Any:
    """Return a copy in training mode, without gradients, that takes turns at the same memory."""
    twin = copy.deepcopy(of).train()
    twin.zero_grad()
    for layer, original in zip(recurrent_layers(twin), recurrent_layers(of), strict=True):
        layer._workspace = original._workspace  # its pages are there already
    return twin


def _check_parts(owner: str, parts: Any) -> None:
    if not isinstance(parts, (tuple, list)) or any(p not in PARTS for p in parts):
        raise ValueError(f"{owner}: parts is {_checks.show(parts)}, expected a tuple of names out "
                         f"of {PARTS}")


def _names(layer: Recurrent, parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return what backward must hand out for these parts."""
    wanted = {"norms": ("dh", "dc") if layer.cell == "lstm" else ("dh",), "units": ("dh",),
              "shares": ("dgates_x", "dgates_h", "x", "h"), "saturation": ("gates",)}
    return tuple({name for part in parts for name in wanted[part]})


def _flow(
    layer: Recurrent, flows: list[dict[str, np.ndarray]], parts: tuple[str, ...]
) -> GradientFlow:
    with np.errstate(over="ignore", invalid="ignore"):  # exploding gradients are a result too
        layers = [_measured(layer, number, flow, parts) for number, flow in enumerate(flows)]
    names = layers[0] if layers else ()
    return GradientFlow(layer.cell, **{k: np.stack([m[k] for m in layers]) for k in names})


def _measured(
    layer: Recurrent, number: int, flow: dict[str, np.ndarray], parts: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Return the arrays of a GradientFlow for one layer of the stack, without their axis L."""
    found: dict[str, np.ndarray] = {}
    if "norms" in parts:
        for name, of in (("norms", "dh"), ("c_norms", "dc")):
            if of in flow:
                found[name] = _norm(flow[of], 3).transpose(2, 0, 1)
    if "units" in parts:
        found["units"] = _norm(flow["dh"], 1).swapaxes(0, 1)
    if "shares" in parts:
        T, B, D, _ = flow["h"].shape
        for side, dgates in (("ih", "dgates_x"), ("hh", "dgates_h")):
            pairs = [
                _terms(flow[dgates][:, :, d].reshape(T, B, -1),
                       flow["h"][:, :, d] if side == "hh" else flow["x"],
                       layer.grads[f"weight_{side}_l{number}{'_reverse' * d}"])
                for d in range(D)
            ]
            terms, shares = zip(*pairs, strict=True)
            found |= {f"terms_{side}": np.stack(terms), f"shares_{side}": np.stack(shares)}
    if "saturation" in parts:
        gates = flow["gates"]  # (T, B, D, G, H)
        low, high = np.array([LIMITS[kind] for kind in GATES[layer.cell].values()], gates.dtype).T
        ends = [(gates <= low[:, None]).mean((1, 4)), (gates >= high[:, None]).mean((1, 4))]
        found["saturation"] = np.stack(ends, -1).swapaxes(0, 1)
        if layer.cell == "rnn_relu":
            found["dead"] = (gates <= 0).all((0, 1, 3)).mean(-1)
    return found


def _norm(a: np.ndarray, axis: int) -> np.ndarray:
    """Return 2-norms in float64; vanished gradients are far below the root of the least number."""
    if a.dtype == np.float32:  # whose squares float64 holds
        return np.asarray(np.sqrt(np.square(a, dtype=np.float64).sum(axis)))
    largest = np.abs(a).max(axis, keepdims=True, initial=0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1)
    norms: np.ndarray = np.linalg.norm(a / scale, axis=axis)
    return norms * scale.squeeze(axis).astype(np.float64)


def _terms(
    dgates: np.ndarray, source: np.ndarray, gradient: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each step's Frobenius norm and share (T,) of a weight gradient (N, K).

    dgates (T, B, N), source (T, B, K), or (T, B), where the 1 of one-hot rows is. For few rows no
    step's term is formed, but the smaller Gram matrices of its rows:
    ||sum_b g_b a_b^T||^2 = sum_bc (g_b . g_c) (a_b . a_c).
    """
    T, B, N = dgates.shape
    if one_hot := source.ndim == 2:
        used, source = np.unique(source, return_inverse=True)
        source, gradient = source.reshape(T, B), gradient[:, used]
    K = gradient.shape[1]
    whole = gradient.astype(np.float64)
    size = float(_norm(whole.reshape(-1), 0))
    norms, shares = np.zeros(T), np.zeros(T)
    steps = max(1, 2**20 // max(1, min(B * B, N * K), B * K))  # 8 MB of products at once
    for t in range(0, T, steps):
        now = slice(t, t + steps)
        g, a = dgates[now].astype(np.float64), source[now]
        a = a[..., None] == np.arange(K) if one_hot else a
        a = a.astype(np.float64)
        if B * B < N * K:
            squares = np.einsum("tbc,tbc->t", g @ g.swapaxes(1, 2), a @ a.swapaxes(1, 2))
            norms[now] = np.sqrt(np.maximum(squares, 0))  # rounding may leave less than nothing
        else:
            norms[now] = np.linalg.norm(g.swapaxes(1, 2) @ a, axis=(1, 2))
        if size > 0:
            shares[now] = np.einsum("tbk,tbk->t", g @ (whole / size), a) / size
    return norms, shares


def growth(norms: np.ndarray) -> float:
    """Return the factor per step of a line fitted to log norms; NaN for fewer than two norms.

    Parameters
    ----------
    norms : array (n,)
        In the order of backward; what is 0 or not finite is left out.
    """
    usable = np.flatnonzero((norms > 0) & np.isfinite(norms))
    if usable.size < 2:
        return math.nan
    return math.exp(np.polyfit(usable, np.log(norms[usable]), 1)[0])


def verdict(of: GradientFlow | Jacobians | History) -> str:
    """Say in words whether gradients vanish, explode or live, and what to try.

    `growth` fits a factor per step to the logarithm of the norms, of an LSTM those of c, where its
    memory lives. To the power of the number of steps, they vanish below 0.01 and explode above 100.
    Where the loss enters at every step, its newer parts cover what reaches back from the last. Of a
    History the norms are those of whole gradients, step by step of the training: they explode where
    one is above 100 times their median.

    Parameters
    ----------
    of : GradientFlow, Jacobians or History

    Returns
    -------
    str
        One line for each layer and direction; of a History one, with the steps that were clipped.

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
        return _trained(of)
    if not isinstance(of, (GradientFlow, Jacobians)):
        raise TypeError(f"verdict: of is {_checks.kind(of)}, expected a GradientFlow, Jacobians or "
                        "History")
    state = "c" if of.cell == "lstm" else "h"
    norms: np.ndarray | None = of.norms if of.c_norms is None else of.c_norms
    if norms is None:
        raise ValueError("verdict: of is a GradientFlow without norms, expected parts with 'norms'")
    if isinstance(of, Jacobians):
        said = _judged(f"||dh(t)/d{state}(k)||", of.cell, norms[1:], 1)
        if of.threshold is None:
            return said
        value = of.singular_values[0]
        bound = "below {}: gradients must vanish" if value < of.threshold else "not below {}"
        return (f"{said}; the largest singular value of W_hh is {value:.3g}, "
                + bound.format(f"{of.threshold:g}"))
    walks = _norm(norms, 3)  # (L, D, T)
    L, D, _ = walks.shape
    names = ("forward", "reverse") if D == 2 else ("",)
    return "\n".join(
        f"layer {layer} {name}".rstrip() + ": "
        + _judged(f"|dL/d{state}|", of.cell, walks[layer, d, :: 2 * d - 1], 0)
        for layer in range(L) for d, name in enumerate(names)
    )


def _trained(history: History) -> str:
    """Judge the norms of a training's gradients, and what clipping did."""
    norms, n = np.array(history.norms), len(history.norms)
    if not n:
        raise ValueError("verdict: of is a History without steps, expected at least one")
    middle, at = float(np.median(norms)), int(norms.argmax())
    said = (f"the gradient's norm has a median of {middle:.3g} and is at most {norms[at]:.3g}, at "
            f"step {at + 1}")
    clipped = len(history.clipped)
    acted = ("no limit was set" if history.clip is None else
             f"clipped above {history.clip:g} at {clipped} of {n} steps")
    if norms[at] > HEALTHY[1] * middle:
        advice = EXPLODING if history.clip is None else "a smaller learning rate if the loss jumps"
        return f"exploding: {said}; {acted}; try {advice}"
    often = "; so often it acts as a smaller learning rate" if 2 * clipped > n else ""
    return f"healthy: {said}; {acted}{often}"


def _judged(what: str, cell: str, norms: np.ndarray, first: int) -> str:
    """Judge norms in the order of backward, the first of them `first` steps back."""
    unbounded = np.flatnonzero(~np.isfinite(norms))
    if unbounded.size:
        return f"exploding: {what} is not finite {first + unbounded[0]} steps back; try {EXPLODING}"
    if norms.size and not norms.any():
        return f"vanishing: {what} is 0 at every step; try {VANISHING[cell]}"
    if norms.size and norms[-1] == 0:
        zero = first + np.flatnonzero(norms)[-1] + 1
        return f"vanishing: {what} is 0 from {zero} steps back on; try {VANISHING[cell]}"
    rate = growth(norms)
    if math.isnan(rate):
        return f"healthy: {what} has too few steps to grow or shrink"
    steps = len(norms) - 1
    factor = math.exp(min(700.0, steps * math.log(rate)))
    said = f"{what} changes by a factor of {rate:.4g} a step, {factor:.2g} over {steps} steps"
    if factor < HEALTHY[0]:
        return f"vanishing: {said}; try {VANISHING[cell]}"
    if factor > HEALTHY[1]:
        return f"exploding: {said}; try {EXPLODING}"
    return f"healthy: {said}"
