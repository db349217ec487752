from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import disjoint_base

@disjoint_base
class Operator:
    name: str
    function: str
    kind: int
    gates: int
    has_c: bool
    is_cell: bool
    def __init__(
        self, name: str, function: str, kind: int, gates: int, has_c: bool, is_cell: bool
    ) -> None: ...

@disjoint_base
class Call:
    op: Operator
    num_layers: int
    directions: int
    T: int
    B: int
    input_size: int
    hidden_size: int
    bias: bool
    batch_first: bool
    keep: bool
    batch_sizes: torch.Tensor | None
    x: torch.Tensor
    h0: torch.Tensor | None
    c0: torch.Tensor | None
    weights: list[torch.Tensor]
    key: tuple[Any, ...]
    threads: int
    def state_shape(self) -> tuple[int, ...]: ...
    def tensors(self) -> list[torch.Tensor | None]: ...
    def own_x(self, with_grad: bool = False) -> None: ...
    def split(
        self, needs: tuple[bool, ...],
    ) -> tuple[list[torch.Tensor | None], Sequence[torch.Tensor | None], Sequence[int | None]]: ...
    def is_in_place(self, with_x: bool) -> bool: ...
    def forward(self, keep: bool) -> tuple[tuple[torch.Tensor, ...], list[Any] | None]: ...
    def backward(
        self, tapes: list[Any] | None, dy: torch.Tensor | None, dhn: torch.Tensor | None,
        dcn: torch.Tensor | None, needs: tuple[bool, ...],
    ) -> tuple[torch.Tensor | None, ...]: ...

def bucket(count: int) -> int: ...
def read_tensor(tensor: Any, size: int) -> Any: ...
def read_sequence(
    op: Operator, x: Any, batch_sizes: Any, h0: Any, c0: Any, weights: Any, bias: bool,
    num_layers: int, directions: int, batch_first: bool,
) -> Call | str: ...
def read_cell(op: Operator, x: Any, h0: Any, c0: Any, weights: list[Any]) -> Call | str: ...
def read_module(op: Operator, module: torch.nn.Module, x: Any, hx: Any) -> Call | None: ...
