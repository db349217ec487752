import numpy as np

from fastrnn._kernels.packed import Packed, Weights
from fastrnn._kernels.runtime import Workspace
from fastrnn._kernels.tape import Tape
from fastrnn._kernels.timeline import Timeline

RECORD: tuple[str, ...]

States = tuple[np.ndarray | None, ...] | None  # an entry for each state of the cell

def forward(
    kind: int, x: np.ndarray | None, index: np.ndarray | None,
    weights: tuple[Weights | Packed, ...], reverse: tuple[bool, ...], initial: States,
    y: np.ndarray, final: tuple[np.ndarray, ...], keep: bool, workspace: Workspace,
    time: Timeline | None = None, source: str = "time", target: str = "time",
) -> Tape | None: ...
def backward(
    tape: Tape, dy: np.ndarray | None, dfinal: States, dx: np.ndarray | None,
    dinitial: States, grads: tuple[Weights, ...], record: tuple[str, ...] = (),
    fresh: bool = False,
) -> dict[str, np.ndarray]: ...
