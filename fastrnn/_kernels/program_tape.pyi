from typing import Any, Self

import numpy as np
from typing_extensions import disjoint_base

from fastrnn._kernels.tape import BaseTape

@disjoint_base
class ProgramTape(BaseTape):
    notes: Any
    @property
    def state_names(self) -> tuple[str, ...]: ...
    @property
    def recordable(self) -> tuple[str, ...]: ...
    def states_before(self, s: int) -> np.ndarray: ...
    def copy(self) -> Self: ...
    def memory(self) -> list[np.ndarray]: ...
