"""What a call of a recurrent operator computes, apart from its tensors, and calls made from it.

T steps, B batch, N rows of a packed sequence, I input, H hidden, L layers, D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from fastrnn.torch.door import Call, Operator, read_cell, read_sequence
from fastrnn.torch.projected import ProjectedCall, has_projection, read_projected

__all__ = ["Problem", "arguments_of", "layer_by_layer", "problem_of", "read_steps", "readable"]

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
    projected = has_projection(operator, *args[4:8])
    return (read_projected if projected else read_sequence)(operator, *args)


# ---- what torch.compile traces, too --------------------------------------------------------------


def arguments_of(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the nine arguments of an operator of several steps in one order.

    Parameters
    ----------
    args : tuple
        (input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first), or
        (data, batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional).

    Returns
    -------
    x, batch_sizes, hx, weights, bias, num_layers, dropout, directions, batch_first
        dropout is 0 if there is none between layers in this call.
    """
    batch_sizes, batch_first = None, False
    if isinstance(args[3], (list, tuple)):
        x, batch_sizes, hx, weights, bias, L, dropout, train, both = args
    else:
        x, hx, weights, bias, L, dropout, train, both, batch_first = args
    dropout = dropout if train and L > 1 else 0.0
    return x, batch_sizes, hx, weights, bias, L, dropout, 2 if both else 1, batch_first


def layer_by_layer(
    run: Callable[..., Sequence[Tensor]], x: Tensor, h0: Tensor, c0: Tensor | None, weights: Any,
    num_layers: int, directions: int, dropout: float,
) -> list[Tensor]:
    """Compute the layers one by one, with PyTorch's dropout between them.

    PyTorch computes with time first and draws a mask for each layer's whole output, so here the
    masks are the same.

    Parameters
    ----------
    run : function
        Computes one layer from its input, h0, c0 and weights; returns y, hn, and cn if there is c0.
    x : Tensor (T, B, I) or (N, I)
    h0, c0 : Tensor (L*D, B, H); c0 may be None
    weights : list of Tensor
    num_layers, directions : int
    dropout : float

    Returns
    -------
    list of Tensor: y, hn, and cn if there is c0
    """
    count = len(weights) // num_layers
    y, finals = x, []
    for layer in range(num_layers):
        if layer:
            y = torch.dropout(y, dropout, True)
        rows = slice(layer * directions, (layer + 1) * directions)
        y, *states = run(y, h0[rows], None if c0 is None else c0[rows],
                         weights[layer * count:(layer + 1) * count])
        finals.append(states)
    return [y, *[torch.cat(parts) for parts in zip(*finals, strict=True)]]
