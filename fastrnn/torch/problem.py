"""What a call of a recurrent operator computes, apart from its tensors, and calls made from it.

T steps, B batch, N rows of a packed sequence, I input, H hidden, L layers, D directions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastrnn.torch.door import Call, Operator, read_cell, read_sequence
from fastrnn.torch.projected import ProjectedCall, read_projected

__all__ = ["Problem", "problem_of", "read_steps", "readable"]

Tensor = torch.Tensor


class Problem(NamedTuple):
    """What a call computes, beside its tensors; names are those of Call."""

    op: Operator
    batch_sizes: Tensor | None
    bias: bool
    num_layers: int
    directions: int
    batch_first: bool


def problem_of(call: Call | ProjectedCall) -> Problem:
    """Return what a call computes; nothing of it refers to the call's tensors."""
    return Problem(call.op, call.batch_sizes, call.bias, call.num_layers, call.directions,
                   call.batch_first)


def readable(
    problem: Problem, x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor],
) -> Call | ProjectedCall | str:
    """Return a call, of copies if the tensors cannot be read as they lie; a str: why it cannot be.

    Parameters
    ----------
    problem : Problem
    x : Tensor (T, B, I), (B, T, I), or with batch_sizes (N, I); of a single cell (B, I)
    h0, c0 : Tensor (L*D, B, H), of a single cell (B, H), or None: zero
    weights : list of Tensor
        In the order of PyTorch's `_flat_weights`.
    """
    call = _read(problem, x, h0, c0, weights)
    if isinstance(call, str):
        copies = [None if tensor is None else tensor.detach().resolve_neg().clone()
                  for tensor in (x, h0, c0, *weights)]
        call = _read(problem, copies[0], copies[1], copies[2], copies[3:])
    return call


def _read(problem: Problem, x: Any, h0: Any, c0: Any, weights: Any) -> Call | ProjectedCall | str:
    if problem.op.is_cell:
        return read_cell(problem.op, x, h0, c0, weights)
    call: Call | ProjectedCall | str = read_steps(
        problem.op, x, problem.batch_sizes, h0, c0, weights, *problem[2:])
    return call


def read_steps(operator: Operator, *args: Any) -> Any:
    """Return the call of several steps, or a str: why PyTorch must compute it.

    Parameters
    ----------
    operator : Operator
    args
        As of `read_sequence` and `read_projected`.
    """
    weights, bias, L, D = args[4:8]
    projected = operator.has_c and len(weights) == L * D * (5 if bias else 3)
    return (read_projected if projected else read_sequence)(operator, *args)
