from typing import Any

import numpy as np

from fastrnn._kernels.packed_program import Compiled
from fastrnn._kernels.program_tape import ProgramTape
from fastrnn._kernels.runtime import Workspace
from fastrnn._kernels.timeline import Timeline

_States = tuple[np.ndarray | None, ...] | None

def forward(
    kind: Compiled, x: np.ndarray | None, index: np.ndarray | None,
    weights: tuple[Any, ...], reverse: tuple[bool, ...], initial: _States, y: np.ndarray,
    final: tuple[np.ndarray, ...], keep: bool, workspace: Workspace, time: Timeline | None = None,
    source: str = "time", target: str = "time",
) -> ProgramTape | None: ...
def backward(
    tape: ProgramTape, dy: np.ndarray | None, dfinal: _States, dx: np.ndarray | None,
    dinitial: tuple[np.ndarray, ...], grads: tuple[Any, ...], record: tuple[str, ...] = (),
) -> dict[str, np.ndarray]: ...
