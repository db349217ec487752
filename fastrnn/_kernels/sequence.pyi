from typing import Any

import numpy as np

from fastrnn._kernels.runtime import Workspace

CELLS: tuple[str, ...]
GATES: dict[str, int]
CELLS_WITH_C: tuple[str, ...]
FLOW: tuple[str, ...]

Weights = tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]

class Packed:
    kind: int
    input_size: int
    hidden_size: int
    half: bool
    def __init__(self, kind: int, weights: Weights,
                 halves: tuple[np.ndarray, np.ndarray] | None = None) -> None: ...

class Tape:
    dtype: np.dtype
    kind: int
    shape: tuple[int, int, int, int]
    used: bool
    nbytes: int
    biases: tuple[bool, bool]
    x_shape: tuple[int, ...]
    def release(self) -> None: ...

def forward(
    kind: int, x: np.ndarray | None, index: np.ndarray | None, weights: tuple[Any, ...],
    reverse: tuple[bool, ...], h0: np.ndarray | None, c0: np.ndarray | None, y: np.ndarray,
    hn: np.ndarray, cn: np.ndarray | None, training: bool, workspace: Workspace,
) -> Tape: ...  # None without training
def backward(
    tape: Tape, dy: np.ndarray | None, dhn: np.ndarray | None, dcn: np.ndarray | None,
    dx: np.ndarray | None, dh0: np.ndarray, dc0: np.ndarray | None, grads: tuple[Any, ...],
    flow: tuple[str, ...] = (),
) -> dict[str, np.ndarray]: ...
