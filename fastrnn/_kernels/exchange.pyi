from collections.abc import Callable
from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class Exchange:
    def __init__(
        self, capsule: Any, convert: Callable[[Any], Any],
        create: Callable[[tuple[int, ...], int], Any],
    ) -> None: ...
    @property
    def fast(self) -> bool: ...
    def view(self, tensor: Any, writeable: bool = False) -> Any: ...
    def empty(self, shape: tuple[int, ...], size: int) -> Any: ...
