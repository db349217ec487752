"""How gradients flow back through time: their norms, each step's share, saturated gates.

`gradient_flow` measures one backward of a layer, `model_flow` one of a model's loss. Parameters,
gradients, modes, passes and the generators of dropout stay as they are. Letters: T steps, B batch,
I input, H hidden, G gates, L stacked layers, D directions.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.cells import CELLS
from fastrnn.cells.table import AnyCell
from fastrnn.gradflow import finite
from fastrnn.gradflow.finite import NotFinite
from fastrnn.gradflow.measure import PARTS, check_parts, measure, norm, to_record
from fastrnn.layers.parameters import full_name
from fastrnn.layers.passes import Recorded
from fastrnn.layers.recurrent import Recurrent
from fastrnn.models.model import Model
from fastrnn.models.passes import LossPass
from fastrnn.models.ragged import Ragged, as_list, is_list, one_sequence
from fastrnn.models.stack import arrays_of

__all__ = ["GradientFlow", "check_layer", "gradient_flow", "model_flow"]

Sources = tuple[tuple[NotFinite | None, ...], ...]  # [layer][direction]


@dataclasses.dataclass(frozen=True)
class GradientFlow:
    """What `gradient_flow` measured. What was not asked for is None.

    Step t is step t of the input, also in a reverse direction. Arrays are float64. Behind the end
    of a row the norms are 0, and its gates do not count.

    Attributes
    ----------
    cell : str
        "rnn_tanh", "rnn_relu", "rnn_sigmoid", "lstm" or "gru", or the name of another cell: of
        equations, an LSTM with proj_size, a GRU with reset_after=False. These have no gates here,
        so no shares and no saturation, and h is the first state.
    norms : array (L, D, T, B)
        2-norm of dL/dh(t), the whole derivative, for every sequence.
    c_norms : array (L, D, T, B)
        The same for dL/dc(t); only for an LSTM, or for the memory of another cell.
    state_norms : dict of arrays (L, D, T, B)
        The same for every state by its name, h among them.
    units : array (L, D, T, H)
        2-norm of dL/dh(t) over the batch, for every unit.
    terms_ih, terms_hh : array (L, D, T)
        Frobenius norm of what step t adds to the gradient of weight_ih, dG(t)^T x(t), and of
        weight_hh, dG(t)^T h(t-1), where dG (B, G*H) is the gradient of the gates' arguments.
    shares_ih, shares_hh : array (L, D, T)
        The component of each of these terms along the whole gradient, divided by the norm of the
        whole gradient. The shares of all steps sum to 1; a step with a negative share works against
        the others. All are 0 where the whole gradient is 0.
    saturation : array (L, D, T, G, 2)
        Which part of a gate's values, over batch and units, is saturated at the lower and at the
        upper end: at most 0.05 and at least 0.95 of a sigmoid, -0.95 and 0.95 of a tanh; at most 0
        of a relu.
    dead : array (L, D)
        Which part of the relu units is 0 at every step of every sequence; None for other cells.
    not_finite : L tuples of D entries, each a NotFinite or None
        Where values that are not finite come from, in each layer and direction; None where all
        values are finite, or where the gradient became too large on its way back. It comes with the
        part "norms".
    lengths : integers (B,) or None
        The steps of each row, if they are of different lengths.
    begins : booleans (D, T, B) or None
        Where each direction begins a sequence or an episode, so that no gradient goes further back.
    memory_state : str or None
        The state that is carried from step to step without a matrix product: that of `c_norms`, or
        h if there are none.
    first_state : str
        The name of the state that is h in these descriptions: the first of the cell.
    """

    cell: str
    norms: np.ndarray | None = None
    c_norms: np.ndarray | None = None
    state_norms: Mapping[str, np.ndarray] | None = None
    units: np.ndarray | None = None
    terms_ih: np.ndarray | None = None
    terms_hh: np.ndarray | None = None
    shares_ih: np.ndarray | None = None
    shares_hh: np.ndarray | None = None
    saturation: np.ndarray | None = None
    dead: np.ndarray | None = None
    not_finite: Sources | None = None
    lengths: np.ndarray | None = None
    memory_state: str | None = None
    first_state: str = "h"
    begins: np.ndarray | None = None

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the G gates of `saturation`."""
        cell = CELLS.get(self.cell)
        return () if cell is None else tuple(gate.name for gate in cell.gates)

    @property
    def batch_norms(self) -> np.ndarray | None:
        """(L, D, T): 2-norm of dL/dh(t) over the whole batch."""
        return None if self.norms is None else norm(self.norms, -1)


@public
def gradient_flow(
    layer: Recurrent, x: Any, dy: Any = None, dstate: Any = None, state: Any = None, *,
    lengths: Any = None, reset: Any = None, reset_to: str = "zero", parts: tuple[str, ...] = PARTS,
) -> GradientFlow:
    """Run a layer over a batch and back, and measure what flows back through time.

    Parameters
    ----------
    layer : RNN, LSTM, GRU or Layer
        Any number of stacked layers, one or two directions. It runs as in training mode, with the
        dropout masks that its next call would draw.
    x, state, lengths, reset, reset_to
        As for a call of the layer. x may also be a list of B arrays (T_i, I), with reset a list of
        booleans (T_i,).
    dy, dstate
        As for the layer's backward: where the loss enters; with a list x dy is a list, too. Without
        both, the loss is the sum of the last layer's final states h. A loss that enters at the last
        step alone shows best how far back a gradient reaches.
    parts : tuple of str
        What to measure. "norms" costs little beside the backward itself; "units"; "shares";
        "saturation", which copies the gates.

    Returns
    -------
    GradientFlow

    Raises
    ------
    TypeError, ValueError
        If `layer` or a part is something else, if x has no steps or no rows, or as the layer's
        forward and backward raise.
    """
    check_layer(layer)
    check_parts(parts)
    if layer.mode == "bfloat16" or (layer.draws and not layer.training):
        layer = copy.deepcopy(layer).train()
    x = as_list(x)
    if is_list(x):
        x, dy, lengths, reset = _padded(layer, x, dy, lengths, reset)
    with _same_dropout(layer):
        y, final, p = layer.forward(x, state, lengths=lengths, reset=reset, reset_to=reset_to)
        if not y.size:
            raise RefusedValue(f"x has shape {np.shape(x)}, expected at least one step and one row")
        assert p is not None  # forward keeps one unless it is asked not to
        if dy is None and dstate is None:
            first, *others = arrays_of(final)
            dhn = np.zeros_like(first)
            dhn[-layer.directions :] = 1
            dstate = (dhn, *(None for _ in others)) if others else dhn
        grads, names = layer.new_grads(), to_record(tuple(parts), layer.cell)
        time = p.kept.time
        _, _, *recorded = p.backward(dy, dstate, need_dx=False, record=names, grads=grads)
    if dy is not None:
        dy = np.asarray(dy)
        dy = dy.swapaxes(0, 1) if layer.batch_first and dy.ndim == 3 else dy
    ragged = None
    if time is not None:
        grid = None if reset is None else np.asarray(reset)
        if grid is not None and layer.batch_first:
            grid = grid.swapaxes(0, -1)
        ragged = Ragged(time, None if grid is None else grid.reshape(time.T, time.B), "time", "x")
    if dy is not None and ragged is not None and dy.ndim == 3:  # padding does not count
        dy = np.where(ragged.alive.T[..., None], dy, 0)
    return _Backward(layer, {"": layer}, recorded, grads, (final,), dy, ragged=(ragged,)
                     ).flows(parts)[0]


def _padded(
    layer: Recurrent, x: Any, dy: Any, lengths: Any, reset: Any
) -> tuple[np.ndarray, Any, np.ndarray, Any]:
    """Return x, dy, lengths and reset of a list of sequences as a call of the layer takes them."""
    if lengths is not None:
        raise RefusedValue("lengths is given with a list, expected None: each sequence of x has a "
                           "length of its own")
    rows, ragged = Ragged.of_list(
        "x", x, lambda name, a: one_sequence(name, a, layer.dtype, layer.input_size), reset,
        "reset")
    grids = [ragged.padded(rows), ragged.episode_start]
    if dy is not None:
        dy = ragged.padded(ragged.joined("dy", dy, (layer.width,)))
    x, reset, dy = (a.swapaxes(0, 1) if layer.batch_first and a is not None else a
                    for a in (*grids, dy))
    return x, dy, ragged.time.lengths, reset


@public
def model_flow(
    model: Model, run: Callable[[Any], LossPass] | LossPass, *, parts: tuple[str, ...] = PARTS
) -> list[GradientFlow]:
    """Measure what flows back through the recurrent layers of a model.

    Parameters
    ----------
    model : SequenceModel, EncoderDecoder or LanguageModel
    run : callable, or the pass of a loss
        A function that takes the model and returns the pass of a loss:
        ``lambda m: m.loss(x, targets)``. Weights that are 0 except at the last step show best how
        far back a gradient reaches. If a part of the model is not in training mode, the function
        gets a copy that is. A pass that you have already, ``p = model.loss(x, targets)``, can still
        go back afterwards.
    parts : tuple of str
        As for gradient_flow.

    Returns
    -------
    list of GradientFlow
        One for each of the model's recurrent layers, the encoder's first.

    Raises
    ------
    TypeError, ValueError
        If the model has no recurrent layer, if `run` returns something else, if the loss has no
        steps or no rows, if a part is something else, or as `run` and backward raise.
    RuntimeError
        If the pass has had its backward, or was computed in evaluation mode.
    """
    check_parts(parts)
    if not isinstance(model, Model) or not model.recurrent:
        raise RefusedType(f"model is {_checks.kind(model)}, expected a model with recurrent layers")
    retain = isinstance(run, LossPass)
    given = model
    if not retain and any(part.mode != "training" for part in model.parts().values()):
        model = copy.deepcopy(model).train()
    layers = {name: part for name, part in model.parts().items() if isinstance(part, Recurrent)}
    with _same_dropout(*layers.values()):
        p = _pass(run, model)
        if p.inner is not None and p.inner._model not in (model, given):
            raise RefusedValue(f"run gives the loss of another {type(p.inner._model).__name__}, "
                               "expected one of this model")
        ragged = [None] * len(layers) if p.inner is None else p.inner.ragged_of_layers
        grads = model.new_grads()
        names = tuple({name: None for layer in layers.values()
                       for name in to_record(tuple(parts), layer.cell)})
        _, _, *recorded = p.backward(record=names, grads=grads, retain=retain)
    recorded = recorded[0] if recorded else []
    for of_layer in recorded:
        if of_layer[0]:
            _check_size(next(iter(of_layer[0].values())))
    states = (None,) * (len(layers) - len(p.state)) + tuple(p.state)  # a decoder's are the last
    return _Backward(model, layers, recorded, grads, states, None, p.value, tuple(ragged)
                     ).flows(parts)


def _pass(run: Any, model: Model) -> LossPass:
    """Return the pass of a loss that was given, or that a given function returns."""
    if isinstance(run, LossPass):
        return run
    if not callable(run):
        raise RefusedType(f"run is {_checks.kind(run)}, expected a function that takes the model, "
                          "or the pass of model.loss(...)")
    p = run(model)
    if not isinstance(p, LossPass):
        raise RefusedType(f"run returned {_checks.show(p)}, expected the pass of a loss: "
                          "lambda m: m.loss(...)")
    return p


def _check_size(array: np.ndarray) -> None:
    """Refuse a loss over nothing, from an array (T, B, ...) that backward recorded."""
    if 0 in array.shape[:2]:
        raise RefusedValue(f"the loss is over {array.shape[0]} steps of {array.shape[1]} rows, "
                           "expected at least one of each")


def check_layer(layer: Any) -> None:
    """Refuse what is no recurrent layer."""
    if not isinstance(layer, Recurrent):
        raise RefusedType(f"layer is {_checks.kind(layer)}, expected an RNN, LSTM, GRU or Layer")


@contextlib.contextmanager
def _same_dropout(*layers: Recurrent) -> Iterator[None]:
    """On leaving, set the generators of dropout to where they were."""
    before = [(layer, layer.dropout_state) for layer in layers if layer.draws]
    try:
        yield
    finally:
        for layer, state in before:
            layer.dropout_state = state


@dataclasses.dataclass(frozen=True)
class _Backward:
    """One backward of recurrent layers, each of which reads the one before, and what it recorded.

    Attributes
    ----------
    whole : layer or model
    layers : dict of recurrent layers
        By their names in the whole.
    recorded : list of lists of dicts
        What backward recorded, for each layer and stacked layer; [] if nothing.
    grads : mapping
        The gradients of this backward alone, by the parameters' names in the whole.
    states : tuple
        The final state of each layer; None if it is not known.
    dy : array (T, ...) or None
        The gradient with respect to the last layer's outputs, if it is known.
    loss : float
        The value of the loss.
    ragged : tuple
        For each layer where its rows and their episodes begin and end, or None: all have T steps.
    """

    whole: Recurrent | Model
    layers: Mapping[str, Recurrent]
    recorded: list[Recorded]
    grads: Mapping[str, np.ndarray]
    states: tuple[Any, ...]
    dy: np.ndarray | None = None
    loss: float = 0.0
    ragged: tuple[Ragged | None, ...] = ()

    @property
    def lengths(self) -> list[np.ndarray | None]:
        """For each layer the steps (B,) of its rows, or None."""
        return [None if of is None else of.time.lengths for of in self.ragged]

    def flows(self, parts: tuple[str, ...]) -> list[GradientFlow]:
        """Return the flow of each layer."""
        if not self.recorded:
            return [GradientFlow(layer.cell.name, memory_state=layer.cell.memory,
                                 first_state=layer.cell.states[0])
                    for layer in self.layers.values()]
        with np.errstate(all="ignore"):  # gradients that are not finite are a result, too
            measured = [
                [measure(layer.cell, recorded, self._gradients(name, number, parts), parts, own)
                 for number, recorded in enumerate(of_layer)]
                for (name, layer), of_layer, own in zip(
                    self.layers.items(), self.recorded, self.lengths, strict=True)
            ]
            found = self._not_finite(measured) if "norms" in parts else [None] * len(measured)
        return [
            GradientFlow(layer.cell.name, not_finite=sources, lengths=own,
                         memory_state=layer.cell.memory, first_state=layer.cell.states[0],
                         begins=None if of is None else of.begins[: layer.directions],
                         **_joined(layer.cell, of_layer))
            for layer, of_layer, sources, own, of in zip(
                self.layers.values(), measured, found, self.lengths, self.ragged, strict=True)
        ]

    def _gradients(
        self, layer: str, number: int, parts: tuple[str, ...]
    ) -> dict[str, list[np.ndarray]]:
        """Return the gradients of weight_ih and weight_hh of a stacked layer, by direction."""
        if "shares" not in parts or not self.layers[layer].cell.gates:
            return {}
        suffixes = ("", "_reverse")[: self.layers[layer].directions]
        return {side: [self.grads[full_name(layer, f"weight_{side}_l{number}{suffix}")]
                       for suffix in suffixes] for side in ("ih", "hh")}

    def _not_finite(self, measured: list[list[dict[str, np.ndarray]]]) -> list[Sources | None]:
        """Return, for each layer, where values that are not finite come from."""
        computed = [
            finite.Computed(recorded["x"], recorded[layer.cell.states[0]],
                            self._final(layer, state, number),
                            _together(one), layer.has_c, own)
            for layer, state, of_layer, of_measured, own in zip(
                self.layers.values(), self.states, self.recorded, measured, self.lengths,
                strict=True)
            for number, (recorded, one) in enumerate(zip(of_layer, of_measured, strict=True))
        ]
        found = finite.search(computed, self.dy, self.loss)
        # a parameter explains what was found anywhere, and zeros in its own layer
        broken = [not finite.all_finite(layer.flat) for layer in self.layers.values()]
        parameter = None
        if any(broken) or any(map(any, found)):
            parameter = finite.broken_parameter(self.whole.parameters())
        sources: list[Sources | None] = []
        for layer, own in zip(self.layers.values(), broken, strict=True):
            rows, found = found[: layer.num_layers], found[layer.num_layers :]
            if parameter is not None:
                rows = [tuple(parameter if a or own else None for a in row) for row in rows]
            sources.append(tuple(rows))
        return sources

    @staticmethod
    def _final(layer: Recurrent, state: Any, number: int) -> tuple[np.ndarray, ...]:
        """Return a stacked layer's final states, each (D, B, width); () if not known."""
        if state is None:
            return ()
        return tuple(s.reshape(layer.num_layers, layer.directions, -1, width)[number]
                     for s, width in zip(arrays_of(state), layer.state_widths, strict=True))


def _together(measured: dict[str, np.ndarray]) -> np.ndarray:
    """Return the sum of the norms (D, T, B) of all states: finite if all are."""
    total = measured["norms"] + measured.get("c_norms", 0)
    for name, norms in measured.items():
        if name.startswith("norms "):
            total = total + norms
    return total


def _joined(cell: AnyCell, measured: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Return what was measured of stacked layers along a new first axis, norms also by state."""
    found: dict[str, Any] = {name: _stack([one[name] for one in measured]) for name in measured[0]}
    own = {name: found.pop(f"norms {name}", None) for name in cell.states}
    if "norms" in found:
        kept = {cell.memory: found.get("c_norms"), cell.states[0]: found["norms"]}
        found["state_norms"] = {name: kept.get(name, a) for name, a in own.items()}
    return found


def _stack(arrays: list[np.ndarray]) -> np.ndarray:
    """Return arrays along a new first axis, without a copy if it is one."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
