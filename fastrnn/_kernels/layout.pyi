from collections.abc import Iterable

from typing_extensions import disjoint_base

@disjoint_base
class Layout: ...

def offsets(widths: Iterable[int], lanes: int) -> tuple[list[int], int]: ...
