"""The engine of cells from equations: what a step multiplies by, masks, and the kernels' calls.

Letters: T steps, B batch, N rows of all steps together, D directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn._checks import RefusedValue
from fastrnn._kernels import program
from fastrnn._kernels.packed_program import PackedProgram
from fastrnn.cells.instance import Plan
from fastrnn.cells.masks import drawn_mask

if TYPE_CHECKING:
    from fastrnn._kernels.runtime import Workspace
    from fastrnn._kernels.timeline import Timeline
    from fastrnn.layers.engine import States

__all__ = ["PROGRAMS", "Drawn"]

Arrays = tuple[np.ndarray, ...]


class Held(NamedTuple):
    """What one direction draws once a call: masks of sequences by their numbers, and of weights."""

    masks: dict[int, np.ndarray]
    weight_masks: dict[int, np.ndarray]


class Drawn(NamedTuple):
    """The parameters of one direction, and the masks that one call in training draws."""

    parameters: Arrays
    masks: tuple[np.ndarray, ...] | None
    weight_masks: dict[int, np.ndarray]


def hold(kind: Plan, rng: np.random.Generator, B: int, dtype: Any) -> Held:
    """Draw what a call of B sequences draws once."""
    masks = {i: drawn_mask(rng, (B, mask.width), mask.rate, mask.kind, dtype)
             for i, mask in enumerate(kind.masks) if not mask.each_step}
    return Held(masks, kind.weight_masks(rng, dtype))


def draw(kind: Plan, parameters: Arrays, rng: np.random.Generator, B: int, N: int, dtype: Any,
         held: Held | None = None) -> Drawn:
    """Return parameters with masks for a call of B sequences and N rows of all steps."""
    if held is None:
        held = hold(kind, rng, B, dtype)
    else:
        for mask in held.masks.values():
            if len(mask) != B:
                raise RefusedValue(f"x has B = {B} sequences, expected {len(mask)}, as hold_masks "
                                   "had")
    masks = tuple(drawn_mask(rng, (N, mask.width), mask.rate, mask.kind, dtype)
                  if mask.each_step else held.masks[i] for i, mask in enumerate(kind.masks))
    return Drawn(parameters, masks, held.weight_masks)


class Programs:
    """Runs one layer of a cell from equations over a sequence: see fastrnn.layers.engine."""

    def forward(
        self, kind: Plan, x: np.ndarray | None, index: np.ndarray | None, weights: Any,
        reverse: tuple[bool, ...], initial: States, y: np.ndarray, final: Arrays, keep: bool,
        workspace: Workspace, time: Timeline | None = None, source: str = "time",
        target: str = "time",
    ) -> Any:
        """Fill y and the final states; return a tape if it is to be kept."""
        given, masks = [], []
        for own in weights:
            drawn = own if isinstance(own, Drawn) else Drawn(own, None, {})
            parameters = drawn.parameters
            if kind.reparametrised and not isinstance(parameters, PackedProgram):
                parameters = kind.matrices(parameters, drawn.weight_masks)
            given.append((parameters, drawn.masks))
            masks.append(drawn.weight_masks)
        tape = program.forward(kind, x, index, tuple(given), reverse, initial, y, final, keep,
                               workspace, time, source, target)
        if tape is not None:
            tape.notes = kind, masks
        return tape

    def backward(
        self, tape: Any, dy: np.ndarray | None, dfinal: States, dx: np.ndarray | None,
        dinitial: Arrays, grads: Any, record: tuple[str, ...] = (),
    ) -> dict[str, np.ndarray]:
        """Fill dx and dinitial, add to the gradients, and return what is to be recorded."""
        plan, masks = tape.notes
        into = grads
        if plan.reparametrised or plan.fixed:
            into = tuple(plan.new_gradients(own, tape.dtype) for own in grads)
        found = program.backward(tape, dy, dfinal, dx, dinitial, into, record)
        for own, of, weight_masks in zip(grads, into, masks, strict=True):
            plan.add_gradients(own, of, weight_masks)
        return found


PROGRAMS = Programs()
