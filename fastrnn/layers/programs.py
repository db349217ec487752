"""The engine of cells from equations: what a step multiplies by, masks, and the kernels' calls.

Letters: T steps, B batch, N rows of all steps together, D directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn._kernels import program
from fastrnn._kernels.packed_program import Compiled, PackedProgram
from fastrnn.cells.instance import Instance, Plan, drawn_mask

if TYPE_CHECKING:
    from fastrnn._kernels.runtime import Workspace
    from fastrnn._kernels.timeline import Timeline
    from fastrnn.layers.engine import States

__all__ = ["PROGRAMS", "Drawn", "Kind"]

Arrays = tuple[np.ndarray, ...]


class Kind(Compiled):
    """The program of one stacked layer, and its plan."""

    def __init__(self, instance: Instance, I: int, H: int, bias: bool) -> None:
        self.plan: Plan = instance.plan(I, H, bias)
        super().__init__(self.plan.program, self.plan.recording)

    @property
    def draws(self) -> bool:
        """Whether a call in training draws masks."""
        return bool(self.plan.masks) or any(
            weight.kind == "dropconnect" for _, weight in self.plan.reparametrised)

    def packed(self, parameters: Arrays, dtype: Any) -> PackedProgram:
        """Return one direction's parameters in the kernels' panels."""
        return PackedProgram(self, dtype, self.plan.matrices(parameters, {}))


class Held(NamedTuple):
    """What one direction draws once a call: masks of sequences by their numbers, and of weights."""

    masks: dict[int, np.ndarray]
    weight_masks: dict[int, np.ndarray]


class Drawn(NamedTuple):
    """The parameters of one direction, and the masks that one call in training draws."""

    parameters: Arrays
    masks: tuple[np.ndarray, ...] | None
    weight_masks: dict[int, np.ndarray]


def hold(kind: Kind, rng: np.random.Generator, B: int, dtype: Any) -> Held:
    """Draw what a call of B sequences draws once."""
    masks = {i: drawn_mask(rng, (B, mask.width), mask.rate, mask.kind, dtype)
             for i, mask in enumerate(kind.plan.masks) if not mask.each_step}
    return Held(masks, kind.plan.weight_masks(rng, dtype))


def draw(kind: Kind, parameters: Arrays, rng: np.random.Generator, B: int, N: int, dtype: Any,
         held: Held | None = None) -> Drawn:
    """Return parameters with masks for a call of B sequences and N rows of all steps."""
    held = held or hold(kind, rng, B, dtype)
    masks = tuple(drawn_mask(rng, (N, mask.width), mask.rate, mask.kind, dtype)
                  if mask.each_step else held.masks[i] for i, mask in enumerate(kind.plan.masks))
    return Drawn(parameters, masks, held.weight_masks)


class Programs:
    """Runs one layer of a cell from equations over a sequence: see fastrnn.layers.engine."""

    def forward(
        self, kind: Kind, x: np.ndarray | None, index: np.ndarray | None, weights: Any,
        reverse: tuple[bool, ...], initial: States, y: np.ndarray, final: Arrays, keep: bool,
        workspace: Workspace, time: Timeline | None = None, source: str = "time",
        target: str = "time",
    ) -> Any:
        """Fill y and the final states; return a tape if it is to be kept."""
        given, masks = [], []
        for own in weights:
            drawn = own if isinstance(own, Drawn) else Drawn(own, None, {})
            parameters = drawn.parameters
            if kind.plan.reparametrised and not isinstance(parameters, PackedProgram):
                parameters = kind.plan.matrices(parameters, drawn.weight_masks)
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
        kind, masks = tape.notes
        plan, into = kind.plan, grads
        if plan.reparametrised or plan.fixed:
            into = tuple(self._own(tape, plan, own) for own in grads)
        found = program.backward(tape, dy, dfinal, dx, dinitial, into, record)
        if plan.reparametrised:
            for own, of, weight_masks in zip(grads, into, masks, strict=True):
                plan.add_gradients(own, of, weight_masks)
        return found

    @staticmethod
    def _own(tape: Any, plan: Plan, grads: Arrays) -> tuple[np.ndarray | None, ...]:
        """Return where the kernels add: nowhere for what is fixed, zeros for what is made."""
        into: list[np.ndarray | None] = list(grads)
        for i, weight in plan.reparametrised:
            rows = weight.blocks * plan.sizes[weight.rows]
            into[i] = np.zeros((rows, plan.sizes[weight.columns]), tape.dtype)
        for i in plan.fixed:
            into[i] = None
        return tuple(into)


PROGRAMS = Programs()
