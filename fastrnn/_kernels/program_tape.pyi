from typing import Any

import numpy as np

from fastrnn._kernels.tape import BaseTape

class ProgramTape(BaseTape):
    notes: Any
    @property
    def recordable(self) -> tuple[str, ...]: ...
    def memory(self) -> list[np.ndarray]: ...
