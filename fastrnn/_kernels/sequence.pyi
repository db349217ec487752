import numpy as np

from fastrnn._kernels.packed import Packed, Weights
from fastrnn._kernels.runtime import Workspace
from fastrnn._kernels.tape import Tape
from fastrnn._kernels.timeline import Timeline

RECORD: tuple[str, ...]

def forward(
    kind: int, x: np.ndarray | None, index: np.ndarray | None,
    weights: tuple[Weights | Packed, ...], reverse: tuple[bool, ...], h0: np.ndarray | None,
    c0: np.ndarray | None, y: np.ndarray, hn: np.ndarray, cn: np.ndarray | None, keep: bool,
    workspace: Workspace, time: Timeline | None = None, source: str = "time",
    target: str = "time",
) -> Tape | None: ...
def backward(
    tape: Tape, dy: np.ndarray | None, dhn: np.ndarray | None, dcn: np.ndarray | None,
    dx: np.ndarray | None, dh0: np.ndarray, dc0: np.ndarray | None,
    grads: tuple[Weights, ...], record: tuple[str, ...] = (),
) -> dict[str, np.ndarray]: ...
