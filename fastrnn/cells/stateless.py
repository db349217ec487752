"""A cell from equations over a sequence: one layer in one direction, with nothing kept.

What fastrnn.functional offers. Programs are kept by definition, sizes and constants, none of which
changes. Letters: T steps, B batch, N rows of all steps together, I input, H hidden, V rows of an
embedding, O features of the output.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue
from fastrnn._kernels import program
from fastrnn._kernels.program_tape import ProgramTape
from fastrnn._kernels.runtime import Workspace
from fastrnn._kernels.timeline import Timeline
from fastrnn.cells.definition import Definition
from fastrnn.cells.instance import Instance, Plan
from fastrnn.cells.weights import shape

__all__ = ["CellTape", "Walk", "backward", "forward"]

KEPT = 128  # programs

_workspace = Workspace()


class Walk(NamedTuple):
    """How a call goes over the steps: see fastrnn.functional.rnn_forward."""

    reverse: Any = False
    training: Any = True
    embedding: Any = None
    lengths: Any = None
    reset: Any = None
    reset_to: Any = "zero"


class CellTape:
    """What cell_backward needs of a cell_forward.

    Attributes
    ----------
    definition : Definition
    used : bool
        Whether it has served its one backward.
    nbytes : int
    """

    def __init__(self, tape: ProgramTape, plan: Plan, names: tuple[str, ...],
                 weight_masks: dict[int, np.ndarray]) -> None:
        self.tape, self.plan, self.names, self.weight_masks = tape, plan, names, weight_masks

    def __copy__(self) -> CellTape:
        """Return a tape with memory of its own, which serves one more backward."""
        return CellTape(self.tape.copy(), self.plan, self.names, self.weight_masks)

    @property
    def definition(self) -> Definition:
        """Of the forward."""
        return self.plan.instance.definition

    @property
    def used(self) -> bool:
        """Whether it has served its one backward."""
        return self.tape.used

    @property
    def nbytes(self) -> int:
        """Bytes of the tape."""
        return self.tape.nbytes


@functools.lru_cache(maxsize=KEPT)
def _plan(definition: Definition, sizes: tuple[tuple[str, int], ...],
          constants: tuple[tuple[str, float], ...], bias: bool) -> Plan:
    given: dict[str, Any] = dict(sizes)
    I, H = given.pop("I"), given.pop("H")
    return Plan(Instance(definition, given | dict(constants)), I, H, bias)


def forward(
    definition: Any, x: Any, state: Any, parameters: Any, walk: Walk, options: Any, masks: Any,
) -> tuple[np.ndarray, Any, CellTape | None]:
    """Run a cell over a sequence: see fastrnn.functional.cell_forward."""
    if not isinstance(definition, Definition):
        raise RefusedType(f"definition is {_checks.kind(definition)}, expected what fastrnn.cell "
                          "makes of equations")
    arrays, dtype = _arrays(
        definition, parameters, x if walk.embedding is None else walk.embedding)
    given = _mapping("options", options)
    embedding = None
    if walk.embedding is None:
        x = _checks.array("x", x, dtype, ("T", "B", "I"))
        I = x.shape[2]
    else:
        embedding = _checks.array("embedding", walk.embedding, dtype, ("V", "I"))
        x, I = _checks.whole_numbers(x, ("T", "B")), embedding.shape[1]
    if I < 1:
        raise RefusedValue("x has 0 features, expected at least 1")
    reverse = _checks.flag("reverse", walk.reverse)
    H = _hidden(definition, arrays, state, given.pop("H", None))
    bias = any(vector.bias and name in arrays for name, vector in definition.vectors.items())
    instance = Instance(definition, given)
    plan = _plan(definition, tuple(instance.sizes(I, H).items()),
                 tuple(instance.constants.items()), bias)
    plan.check_numbers(dtype)
    names = tuple(plan.instance.parameters(I, H, bias))
    weights = _checked(plan, names, arrays, dtype)
    T, B = x.shape[:2]
    time = _checks.timeline(walk.lengths, walk.reset, walk.reset_to, T, B)
    index = None
    if embedding is not None:
        if time is not None:
            x = _checks.without_padding(x, time.lengths)
        index = _checks.rows(x, ("T", "B"), len(embedding))
    widths = [plan.sizes[s.width] for s in definition.states]
    initial = _states(definition, "state", "", state, dtype, [(B, width) for width in widths])
    drawn, weight_masks = _masks(plan, _mapping("masks", masks), (T, B), reverse, time, dtype)
    O = plan.sizes[definition.output_width]
    y = _checks.empty((T, B, O), dtype)
    final = tuple(_checks.empty((1, B, width), dtype) for width in widths)
    source: Any = x if embedding is None else embedding
    out = y
    if time is not None:
        out = y.reshape(T * B, O)
        if index is None:
            source = np.ascontiguousarray(x).reshape(T * B, I)
        else:
            index = index.reshape(-1)
    tape = program.forward(
        plan, source, index, ((plan.matrices(weights, weight_masks), drawn),),
        (reverse,), _checks.with_direction(initial), out, final,
        _checks.flag("training", walk.training), _workspace, time)
    kept = None if tape is None else CellTape(tape, plan, names, weight_masks)
    return y, _checks.without_direction(final), kept


def backward(
    dy: Any, dstate: Any, kept: Any, need_dx: bool, grads: Any
) -> tuple[np.ndarray | None, Any, dict[str, np.ndarray]]:
    """Go back through a tape: see fastrnn.functional.cell_backward."""
    if not isinstance(kept, CellTape):
        raise RefusedType(f"tape is {_checks.kind(kept)}, expected one of cell_forward with "
                          "training=True")
    if kept.used:
        raise RuntimeError("cell_backward: this tape has already served its one backward; run "
                           "cell_forward again for a new one")
    tape, plan = kept.tape, kept.plan
    definition = kept.definition
    (T, B, I, O), dtype = tape.shape, tape.dtype
    need_dx = _checks.flag("need_dx", need_dx)
    if dy is not None:
        dy = _checks.array("dy", dy, dtype, (T, B, O))
        if len(tape.y_shape) == 2:  # with lengths or resets
            dy = np.ascontiguousarray(dy).reshape(tape.y_shape)
    widths = [plan.sizes[s.width] for s in definition.states]
    dfinal = _states(definition, "dstate", "n", dstate, dtype, [(B, width) for width in widths])
    shapes = {name: shape(_of(plan, name), plan.sizes) for i, name in enumerate(kept.names)
              if i not in plan.fixed}
    if grads is None:
        grads = {name: np.zeros(own, dtype) for name, own in shapes.items()}
    _checks.names("grads", grads, shapes)
    for name, own in shapes.items():
        _checks.output(f"grads[{name!r}]", grads[name], dtype, own)
    into = tuple(grads.get(name) for name in kept.names)
    made = plan.new_gradients(into, dtype)
    dx = np.empty(tape.x_shape, dtype) if need_dx else None
    dinitial = tuple(_checks.empty((1, B, width), dtype) for width in widths)
    program.backward(tape, dy, _checks.with_direction(dfinal), dx, dinitial,
                     (made,))
    plan.add_gradients(into, made, kept.weight_masks)
    if dx is not None and not tape.symbols:
        dx = dx.reshape(T, B, I)
    return dx, _checks.without_direction(dinitial), grads


# ---- arguments -----------------------------------------------------------------------------------


def _mapping(name: str, value: Any) -> dict[Any, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise RefusedType(f"{name} is {_checks.kind(value)}, expected a mapping or None")
    return dict(value or {})


def _arrays(
    definition: Definition, parameters: Any, x: Any,
) -> tuple[dict[str, Any], np.dtype]:
    """Return the parameters that were given, and their dtype; without any, that of x."""
    known = [*definition.weights, *definition.vectors]
    if not isinstance(parameters, Mapping):
        raise RefusedType(f"parameters is {_checks.kind(parameters)}, expected a dict of arrays by "
                          f"the names {known}")
    arrays = {name: a for name, a in parameters.items() if a is not None}
    for name in arrays:
        if name not in known:
            raise RefusedValue(f"parameters has {_checks.show(name)}, expected names out of "
                               f"{known}")
    biases = [name for name, vector in definition.vectors.items() if vector.bias]
    needed = [name for name in known if name not in biases or any(b in arrays for b in biases)]
    for name in needed:
        if name not in arrays:
            raise RefusedValue(f"parameters lacks {name!r}, expected {known}; of the biases none "
                               "or all")
    if not known:
        own = getattr(x, "dtype", None)
        double = isinstance(own, np.dtype) and own.newbyteorder("=") == np.float64
        return {}, np.dtype(np.float64 if double else np.float32)
    dtype = getattr(arrays.get(known[0]), "dtype", None)
    if not isinstance(dtype, np.dtype) or dtype.newbyteorder("=") not in (np.float32, np.float64):
        raise RefusedType(f"parameters[{known[0]!r}] is {dtype or _checks.kind(arrays[known[0]])}, "
                          "expected an array of float32 or float64")
    return arrays, dtype.newbyteorder("=")


def _hidden(definition: Definition, arrays: dict[str, Any], state: Any, given: Any) -> int:
    """Return H as it is given, or as a parameter or state shows it."""
    if given is not None:
        return _checks.positive("options['H']", given)
    rows = {name: (w.rows, w.blocks) for name, w in definition.weights.items()}
    rows |= {name: (v.width, v.blocks) for name, v in definition.vectors.items()}
    for name, (width, blocks) in rows.items():
        if width == "H" and name in arrays and np.ndim(arrays[name]):
            return max(1, int(np.shape(arrays[name])[0]) // blocks)
    states = state if isinstance(state, (tuple, list)) else (state,)
    for found, array in zip(definition.states, states, strict=False):
        if found.width == "H" and np.ndim(array) == 2:
            return max(1, int(np.shape(array)[1]))
    raise RefusedValue("no parameter shows H, expected it in options: {'H': ...}")


def _of(plan: Plan, name: str) -> Any:
    definition = plan.instance.definition
    return definition.weights.get(name) or definition.vectors[name]


def _checked(plan: Plan, names: tuple[str, ...], arrays: dict[str, Any], dtype: np.dtype
             ) -> tuple[np.ndarray, ...]:
    return tuple(np.ascontiguousarray(_checks.array(
        f"parameters[{name!r}]", arrays[name], dtype, shape(_of(plan, name), plan.sizes)))
        for name in names)


def _states(definition: Definition, name: str, after: str, value: Any, dtype: np.dtype,
            shapes: list[tuple[int, int]]) -> tuple[np.ndarray | None, ...]:
    names = tuple(state.name for state in definition.states)
    return _checks.states(name if len(names) > 1 else f"d{names[0]}n" if after else f"{names[0]}0",
                          value, names, dtype, shapes)


def _masks(
    plan: Plan, masks: dict[Any, Any], grid: tuple[int, int], reverse: bool, time: Timeline | None,
    dtype: np.dtype,
) -> tuple[tuple[np.ndarray, ...] | None, dict[int, np.ndarray]]:
    """Return the masks of steps and sequences as the walk has them, and those of weights."""
    definition, (T, B) = plan.instance.definition, grid
    weights = {weight.name: (i, weight) for i, weight in plan.reparametrised
               if weight.kind == "dropconnect"}
    known = [*range(len(plan.masks)), *weights]
    for key in masks:
        if isinstance(key, bool) or key not in known:
            raise RefusedValue(f"masks has {_checks.show(key)}, expected keys out of {known}: the "
                               f"number of a mask of {definition.name}, or a dropconnect weight")
    weight_masks = {
        i: np.array(_checks.array(f"masks[{name!r}]", masks[name], dtype,
                                  shape(weight, plan.sizes)))  # backward needs it as it is now
        for name, (i, weight) in weights.items() if name in masks}
    if not any(i in masks for i in range(len(plan.masks))):
        return None, weight_masks
    drawn = []
    for i, mask in enumerate(plan.masks):
        expected = (T, B, mask.width) if mask.each_step else (B, mask.width)
        if i not in masks:  # its mean
            rows = T * B if mask.each_step else B
            if mask.each_step and time is not None:
                rows = time.N
            drawn.append(np.full((rows, mask.width), mask.mean, dtype))
            continue
        own = _checks.array(f"masks[{i}]", masks[i], dtype, expected)
        if mask.each_step:
            order: Any = slice(None)
            if time is not None:
                order = time.rows("time", reverse)
            elif reverse:
                own = own[::-1]
            own = own.reshape(T * B, mask.width)[order]
        drawn.append(np.ascontiguousarray(own))
    return tuple(drawn), weight_masks
