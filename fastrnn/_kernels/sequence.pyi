import numpy as np

from fastrnn._kernels.packed import Packed, _Weights
from fastrnn._kernels.runtime import Workspace
from fastrnn._kernels.tape import Tape
from fastrnn._kernels.timeline import Timeline

RECORD: tuple[str, ...]

_States = tuple[np.ndarray | None, ...] | None  # an entry for each state of the cell

def forward(
    kind: int, x: np.ndarray | None, index: np.ndarray | None,
    weights: tuple[_Weights | Packed, ...], reverse: tuple[bool, ...], initial: _States,
    y: np.ndarray, final: tuple[np.ndarray, ...], keep: bool, workspace: Workspace,
    time: Timeline | None = None, source: str = "time", target: str = "time",
) -> Tape | None: ...
def backward(
    tape: Tape, dy: np.ndarray | None, dfinal: _States, dx: np.ndarray | None,
    dinitial: _States, grads: tuple[_Weights, ...], record: tuple[str, ...] = (),
    fresh: bool = False,
) -> dict[str, np.ndarray]: ...
