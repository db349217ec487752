from typing import Any

from fastrnn._kernels.tape import BaseTape

class ProgramTape(BaseTape):
    notes: Any
    @property
    def recordable(self) -> tuple[str, ...]: ...
