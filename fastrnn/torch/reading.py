"""What reading a call needs beside its fast half, door.pyx: lengths of packed rows, odd tensors.

Letters: T steps, B batch, N rows of a packed sequence.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from fastrnn._kernels.timeline import Timeline

__all__ = ["DIRECTIONS", "FLOATS", "converted", "created", "kind_of", "read_lengths", "sizes_of"]

Tensor = torch.Tensor

FLOATS = (torch.float32, torch.float64)
# Whether each of D directions walks back in time.
DIRECTIONS = ((), (False,), (False, True))


def converted(tensor: Tensor) -> Any:
    """Return the array of a tensor of a PyTorch without DLPack's C interface; None: unreadable."""
    if (tensor.device.type != "cpu" or tensor.dtype not in FLOATS
            or tensor.layout is not torch.strided or tensor.data_ptr() % tensor.element_size()):
        return None
    return tensor.detach().numpy()


def created(shape: tuple[int, ...], size: int) -> Tensor:
    """Return a new tensor of numbers of `size` bytes, of a PyTorch without DLPack's C interface."""
    return torch.empty(shape, dtype=FLOATS[size == 8], device="cpu")


def read_lengths(batch_sizes: Tensor, N: int) -> tuple[int, int, Timeline | None] | None:
    """Return T, B and the Timeline (None: all rows have T steps) of N packed rows; None: no fit."""
    sizes = batch_sizes.numpy().copy()  # another thread may change the tensor
    if sizes.ndim != 1 or not len(sizes) or sizes.dtype != np.int64:
        return None
    T, B = len(sizes), int(sizes[0])
    if sizes[T - 1] < 1 or (sizes[1:] > sizes[:T - 1]).any() or sizes.sum() != N:
        return None
    if sizes[T - 1] == B:
        return T, B, None
    lengths = T - np.searchsorted(sizes[::-1], np.arange(B), "right")
    return T, B, Timeline(lengths.astype(np.int64), T)


def kind_of(tensor: Tensor) -> str:
    """Return what a tensor is that the kernels cannot read, or not together with the input."""
    if tensor.device.type != "cpu":
        return f"device {tensor.device.type}"
    if tensor.layout is not torch.strided:
        return f"layout {str(tensor.layout).removeprefix('torch.')}"
    if tensor._is_zerotensor():
        return "a tensor is zeros without memory"
    if tensor.numel() * tensor.element_size() > sys.maxsize:
        return "a tensor is too large"
    if tensor.dtype in FLOATS and tensor.data_ptr() % tensor.element_size():
        return "a tensor is not aligned"
    return f"dtype {str(tensor.dtype).removeprefix('torch.')}"


def sizes_of(call: Any, projected: str = "") -> str:
    """Return the sizes of a call for people."""
    rows = f"B {call.B}" if call.op.is_cell else f"T {call.T} B {call.B}"
    packed = "" if call.batch_sizes is None else " packed"
    layers = f" layers {call.num_layers}" if call.num_layers > 1 else ""
    both = " bidirectional" if call.directions == 2 else ""
    return (f"{rows}{packed} I {call.input_size} H {call.hidden_size}{projected}{layers}{both} "
            f"{'training' if call.keep else 'inference'} "
            f"{str(call.x.dtype).removeprefix('torch.')}")
