from collections.abc import Callable
from typing import Any, Self

import numpy as np
from typing_extensions import disjoint_base

from fastrnn._kernels.machine import Machine

class Compiled:
    program: Any
    recording: Callable[[], Any] | None
    def __init__(self, program: Any, recording: Callable[[], Any] | None) -> None: ...
    def machine(self, dtype: np.dtype, records: bool = False) -> Machine: ...

@disjoint_base
class PackedProgram:
    def __new__(cls, kind: Compiled, dtype: Any, parameters: tuple[np.ndarray, ...]) -> Self: ...
    @property
    def machine(self) -> Machine: ...
    @property
    def nbytes(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...
    def __copy__(self) -> Self: ...

def restored(
    program: Any, dtype: np.dtype, parameters: tuple[np.ndarray, ...]
) -> PackedProgram: ...
