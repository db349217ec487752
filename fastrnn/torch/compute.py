"""Forward and backward of recurrent operators of PyTorch, on the kernels, without autograd.

Letters: T steps, B batch, N rows of a packed sequence, I input, H hidden, L layers, D directions.
A tensor is read and written where it lies (`EXCHANGE`); nothing here keeps anything between calls,
except for spare memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from fastrnn._kernels import sequence
from fastrnn._kernels.exchange import Exchange
from fastrnn._kernels.runtime import Workspace, borrow_threads
from fastrnn._kernels.timeline import Timeline
from fastrnn.cells.table import CELLS

__all__ = ["Operator", "Problem", "array", "backward", "forward"]

Tensor = torch.Tensor

REVERSE = ((), (False,), (False, True))
_WORKSPACE = Workspace()


def _converted(tensor: Tensor) -> np.ndarray | None:
    """Return the array of a tensor of a PyTorch without DLPack's C interface."""
    if tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.float64):
        return None
    return tensor.detach().numpy()


EXCHANGE = Exchange(getattr(Tensor, "__dlpack_c_exchange_api__", None), _converted)
array = EXCHANGE.view


class Operator(NamedTuple):
    """One of PyTorch's recurrent operators.

    Attributes
    ----------
    name : str
        As reports have it: "LSTM", "GRU", "RNN", "LSTMCell", ...
    function : str
        Its name in torch._VF.
    kind : int
        The cell's place in the table of the kernels.
    has_c : bool
        Whether a state is a pair (h, c).
    is_cell : bool
        Whether it is one step of a single cell.
    gates : int
    """

    name: str
    function: str
    kind: int
    has_c: bool
    is_cell: bool
    gates: int


def _operators() -> dict[str, Operator]:
    made = {}
    for function, cell, name in (("lstm", "lstm", "LSTM"), ("gru", "gru", "GRU"),
                                 ("rnn_tanh", "rnn_tanh", "RNN"), ("rnn_relu", "rnn_relu", "RNN")):
        row = CELLS[cell]
        for suffix, is_cell in (("", False), ("_cell", True)):
            made[function + suffix] = Operator(
                name + ("Cell" if is_cell else ""), function + suffix, row.number,
                len(row.states) == 2, is_cell, len(row.gates))
    return made


OPERATORS = _operators()


class Problem(NamedTuple):
    """What a call computes, beside its tensors.

    Attributes
    ----------
    operator : Operator
    num_layers, directions : int
    bias : bool
    batch_first : bool
        Whether the input is (B, T, I), not (T, B, I).
    time : Timeline or None
        The lengths of the rows of a packed sequence; the input is then (N, I).
    threads : int
        How many threads the call may use.
    """

    operator: Operator
    num_layers: int
    directions: int
    bias: bool
    batch_first: bool
    time: Timeline | None
    threads: int


def layer_weights(problem: Problem, arrays: list[Any], layer: int) -> tuple[tuple[Any, ...], ...]:
    """Return (weight_ih, weight_hh, bias_ih, bias_hh) of each direction of a layer."""
    count = 4 if problem.bias else 2
    first = layer * problem.directions * count
    groups = [tuple(arrays[first + d * count:first + (d + 1) * count])
              for d in range(problem.directions)]
    return tuple(groups if problem.bias else [(*group, None, None) for group in groups])


def _states(h: Any, c: Any, layer: int, problem: Problem) -> tuple[Any, ...]:
    """Return the rows (D, B, H) of a layer of the states (L*D, B, H)."""
    if problem.num_layers > 1:
        rows = slice(layer * problem.directions, (layer + 1) * problem.directions)
        h, c = None if h is None else h[rows], None if c is None else c[rows]
    return (h, c) if problem.operator.has_c else (h,)


def _outer(problem: Problem, tensor: Tensor, writeable: bool = False) -> np.ndarray:
    """Return the array (T, B, ...) of an input or an output, or (N, ...) of packed rows."""
    view = array(tensor, writeable)
    if problem.operator.is_cell:
        return view.reshape(1, *view.shape)
    return view.transpose(1, 0, 2) if problem.batch_first else view


def _state_array(problem: Problem, tensor: Tensor | None, writeable: bool = False) -> Any:
    """Return the array (L*D, B, H) of a state."""
    if tensor is None:
        return None
    view = array(tensor, writeable)
    return view.reshape(1, *view.shape) if problem.operator.is_cell else view


def forward(
    problem: Problem, x: Tensor, h0: Tensor, c0: Tensor | None, weights: list[Any], keep: bool,
) -> tuple[tuple[Tensor, ...], list[Any] | None]:
    """Compute the outputs of a call.

    Parameters
    ----------
    problem : Problem
    x : (T, B, I), (B, T, I), (N, I) if packed, (B, I) of a single cell
        Its last axis is contiguous.
    h0, c0 : (L*D, B, H), contiguous; (B, H) of a single cell
    weights : list of tensors, contiguous
        In the order of PyTorch's `_flat_weights`.
    keep : bool
        Whether backward will follow.

    Returns
    -------
    outputs : tuple of tensors
        (y, hn) or (y, hn, cn); of a single cell (h,) or (h, c).
    tapes : list or None
        One for each layer.
    """
    operator, L, D = problem.operator, problem.num_layers, problem.directions
    H, dtype = h0.shape[-1], x.dtype
    source = _outer(problem, x)
    arrays = [array(weight) for weight in weights]
    h, c = _state_array(problem, h0), _state_array(problem, c0)
    hn = torch.empty(h0.shape, dtype=dtype)
    cn = torch.empty(h0.shape, dtype=dtype) if operator.has_c else None
    h_final, c_final = _state_array(problem, hn, True), _state_array(problem, cn, True)
    y = None if operator.is_cell else torch.empty((*x.shape[:-1], D * H), dtype=dtype)
    layout = "time" if problem.time is None else "packed"
    tapes: list[Any] | None = [] if keep else None
    borrow_threads(problem.threads)
    try:
        for layer in range(L):
            if y is not None and layer == L - 1:
                target = _outer(problem, y, True)
            else:
                target = np.empty((*source.shape[:-1], D * H), source.dtype)
            tape = sequence.forward(
                operator.kind, source, None, layer_weights(problem, arrays, layer), REVERSE[D],
                _states(h, c, layer, problem), target, _states(h_final, c_final, layer, problem),
                keep, _WORKSPACE, problem.time, layout, layout)
            if tapes is not None:
                tapes.append(tape)
            source = target
    finally:
        borrow_threads(0)
    outputs = (hn,) if y is None else (y, hn)
    return (outputs if cn is None else (*outputs, cn)), tapes


def _rows(problem: Problem, tensor: Tensor | None, like: Tensor) -> np.ndarray | None:
    """Return the array of an output's gradient; copied if its rows are not contiguous."""
    if tensor is None:
        return None
    if tensor.dtype != like.dtype:
        tensor = tensor.to(like.dtype)
    return _outer(problem, tensor.contiguous())


def backward(
    problem: Problem, tapes: list[Any], x: Tensor, h0: Tensor, weights: tuple[Tensor, ...],
    dy: Tensor | None, dhn: Tensor | None, dcn: Tensor | None, need_dx: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None, list[Tensor]]:
    """Compute the gradients of a call from those of its outputs; uses the tapes up.

    Parameters
    ----------
    problem, x, h0, weights : as of forward
    tapes : what forward returned
    dy, dhn, dcn : tensors like y, hn and cn, or None: zero
    need_dx : bool

    Returns
    -------
    dx, dh0, dc0 : tensors, or None
    dweights : list of tensors
    """
    operator, L, D = problem.operator, problem.num_layers, problem.directions
    above = _rows(problem, dy, x)
    dh_final = _state_array(problem, None if dhn is None else dhn.contiguous())
    dc_final = _state_array(problem, None if dcn is None else dcn.contiguous())
    dx = torch.empty(x.shape, dtype=x.dtype) if need_dx else None
    dh0 = torch.empty(h0.shape, dtype=x.dtype)
    dc0 = torch.empty(h0.shape, dtype=x.dtype) if operator.has_c else None
    dh, dc = _state_array(problem, dh0, True), _state_array(problem, dc0, True)
    dweights = [torch.zeros(weight.shape, dtype=x.dtype) for weight in weights]
    arrays = [array(dweight, True) for dweight in dweights]
    borrow_threads(problem.threads)
    try:
        for layer in range(L - 1, -1, -1):
            below = None
            if layer:
                T, B, I, _ = tapes[layer].shape
                rows = (T, B) if problem.time is None else (problem.time.N,)
                below = np.empty((*rows, I), tapes[layer].dtype)
            elif dx is not None:
                below = _outer(problem, dx, True)
            sequence.backward(
                tapes[layer], above, _states(dh_final, dc_final, layer, problem), below,
                _states(dh, dc, layer, problem), layer_weights(problem, arrays, layer))
            above = below
    finally:
        borrow_threads(0)
    return dx, dh0, dc0, dweights
