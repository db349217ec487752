from typing import Any

import numpy as np
from typing_extensions import disjoint_base

GRIDS: tuple[str, ...]
LAYOUTS: tuple[str, ...]

@disjoint_base
class Timeline:
    T: int
    B: int
    lengths: np.ndarray
    resets: bool
    to_initial: bool
    def __init__(
        self, lengths: Any, T: int, reset: np.ndarray | None = None, to_initial: bool = False
    ) -> None: ...
    def __copy__(self) -> Timeline: ...
    def __deepcopy__(self, memo: Any) -> Timeline: ...
    @property
    def steps(self) -> int: ...
    @property
    def N(self) -> int: ...
    def size(self, layout: str) -> int: ...
    def rows(self, layout: str, reverse: bool = False) -> np.ndarray | None: ...
