"""PyTorch's recurrent operators (torch._VF.lstm, gru, ...), each with two ways to be computed.

A call goes to fastrnn's kernels if they can compute it and are faster, and to PyTorch's own code in
all other cases. `run` decides. So a wrong call gets PyTorch's own error.

Letters: T steps, B batch, N rows of a packed sequence, I input, H hidden, L layers, D directions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from fastrnn._kernels.timeline import Timeline
from fastrnn.torch import choice, compute
from fastrnn.torch.compute import OPERATORS, Operator, Problem, array
from fastrnn.torch.gradient import ORIGINALS, Recurrent, original

__all__ = ["FUNCTIONS", "run_cell", "run_sequence"]

Tensor = torch.Tensor

_PLAIN = (Tensor, torch.nn.Parameter)
_NOT_HERE = (ValueError, TypeError, IndexError)  # what the kernels' checks raise

# Functions of PyTorch that say in which mode the interpreter is. Some are private: a PyTorch
# without one of them is treated as if the mode did not exist.
_transforms: Callable[[], Any] = getattr(torch._C._functorch, "peek_interpreter_stack",
                                         lambda: None)
_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_tracing: Callable[[], Any] = torch._C._get_tracing_state


def _mode_refusal() -> str:
    """Return why the interpreter's mode needs PyTorch's own code, or an empty string."""
    if torch.compiler.is_compiling():
        return "torch.compile"
    if _transforms() is not None:
        return "torch.func"
    if _dispatch_modes():
        return "dispatch mode"
    if _tracing() is not None:
        return "tracing"
    if torch.is_autocast_enabled("cpu"):
        return "autocast"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    return ""


def _tensor_refusal(tensors: list[Tensor]) -> str:
    """Return why these tensors need PyTorch's own code, or an empty string."""
    dtype = tensors[0].dtype
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            return f"a tensor is of type {type(tensor).__name__}"
        if tensor.layout is not torch.strided:
            return f"a tensor is {str(tensor.layout).removeprefix('torch.')}"
        if tensor.device.type != "cpu":
            return f"device {tensor.device.type}"
        if tensor.dtype is not dtype or dtype not in (torch.float32, torch.float64):
            return f"dtype {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.is_neg():
            return "a tensor is a negated view"
        if 0 in tensor.shape:
            return "a tensor is empty"
    return ""


def _compact(tensor: Tensor) -> Tensor:
    """Return a tensor whose rows the kernels can read."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _bucket(count: int) -> int:
    """Return the same number for counts of similar size, whose times are alike."""
    return count if count <= 4 else 4 + count.bit_length()


def _timeline(batch_sizes: Tensor) -> tuple[int, int, Timeline | None]:
    """Return T, B and when the rows of a packed sequence are alive; None: they are equally long."""
    sizes = batch_sizes.numpy()
    T, B = len(sizes), int(sizes[0])
    if sizes[-1] == B:
        return T, B, None
    lengths = T - np.searchsorted(sizes[::-1], np.arange(B), "right")
    return T, B, Timeline(lengths.astype(np.int64), T)


def run_sequence(operator: Operator, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Compute a call of torch._VF.lstm, gru, rnn_tanh or rnn_relu.

    Parameters
    ----------
    operator : Operator
    args : tuple
        (input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first), or
        (data, batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional).
    """
    function: Callable[..., tuple[Tensor, ...]] = getattr(ORIGINALS, operator.function)
    reason = "" if choice.get_mode() != "never" else "mode never"
    reason = reason or _mode_refusal()
    if reason:
        return _theirs(operator, function, args, reason)
    batch_sizes: Tensor | None = None
    try:
        if isinstance(args[3], (list, tuple)):
            x, batch_sizes, hx, params, bias, L, dropout, train, bidirectional = args
            batch_first = False
        else:
            x, hx, params, bias, L, dropout, train, bidirectional, batch_first = args
        h0, c0 = hx if operator.has_c else (hx, None)
        D = 2 if bidirectional else 1
        if len(params) != L * D * (4 if bias else 2):
            return _theirs(operator, function, args, "projection")
        tensors = [x, h0, *params] if c0 is None else [x, h0, c0, *params]
        reason = _tensor_refusal(tensors)
        if not reason and x.dim() != (3 if batch_sizes is None else 2):
            reason = "shape of the input"
        if reason:
            return _theirs(operator, function, args, reason)
        if dropout and train and L > 1:
            return _with_dropout(operator, x, batch_sizes, h0, c0, params, bias, L, dropout, D,
                                 batch_first)
        return _decided(operator, x, batch_sizes, h0, c0, params, bias, L, D, batch_first)
    except _NOT_HERE as error:
        return _theirs(operator, function, args, f"not computable: {error}")


def _theirs(
    operator: Operator, function: Callable[..., Any], args: tuple[Any, ...], reason: str,
) -> Any:
    """Let PyTorch compute a call as it came, and note why."""
    weights = next((arg for arg in args[2:4] if isinstance(arg, (list, tuple))), args[2:3])
    weight = weights[0] if len(weights) else None
    x = args[0]
    shape = "x".join(map(str, getattr(x, "shape", ())))
    key = (operator.function, shape, "refused")
    known = choice.choices.get(key)
    if known is None:
        known = choice.choices.setdefault(key, choice.Choice(operator.name, shape, False))
    choice.note(id(weight), key, known, reason)
    return function(*args)


def _with_dropout(
    operator: Operator, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None,
    params: list[Tensor], bias: bool, L: int, dropout: float, D: int, batch_first: bool,
) -> tuple[Tensor, ...]:
    """Compute the layers one by one, with PyTorch's dropout between them.

    PyTorch computes with time first, so its masks have this order, and here they are the same.
    """
    count = len(params) // L
    y, finals = x.transpose(0, 1) if batch_first else x, []
    for layer in range(L):
        if layer:
            y = torch.dropout(y, dropout, True)
        rows = slice(layer * D, (layer + 1) * D)
        y, *final = _decided(
            operator, y, batch_sizes, h0[rows], None if c0 is None else c0[rows],
            params[layer * count:(layer + 1) * count], bias, 1, D, False)
        finals.append(final)
    states = [torch.cat(parts) for parts in zip(*finals, strict=True)]
    return (y.transpose(0, 1) if batch_first else y, *states)


def _decided(
    operator: Operator, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None,
    params: Any, bias: bool, L: int, D: int, batch_first: bool,
) -> tuple[Tensor, ...]:
    """Compute layers without dropout the faster way."""
    time = None
    shape = x.shape
    if batch_sizes is None:
        T, B = (shape[1], shape[0]) if batch_first else (shape[0], shape[1])
    else:
        T, B, time = _timeline(batch_sizes)
        if time is None:
            x = x.reshape(T, B, shape[1])
    problem = Problem(operator, L, D, bool(bias), bool(batch_first), time,
                      torch.get_num_threads())
    result = _faster(problem, batch_sizes if time is not None else None, x, h0, c0, params,
                     (_bucket(T), B if time is None else _bucket(B), bool(batch_first)))
    if batch_sizes is not None and time is None:
        return (result[0].reshape(shape[0], result[0].shape[-1]), *result[1:])
    return result


def run_cell(operator: Operator, args: tuple[Any, ...]) -> Any:
    """Compute a call of torch._VF.lstm_cell, gru_cell, rnn_tanh_cell or rnn_relu_cell.

    Parameters
    ----------
    operator : Operator
    args : tuple
        (input, hx, w_ih, w_hh, b_ih, b_hh).
    """
    function: Callable[..., Any] = getattr(ORIGINALS, operator.function)
    reason = "" if choice.get_mode() != "never" else "mode never"
    reason = reason or _mode_refusal()
    if reason:
        return _theirs(operator, function, args, reason)
    try:
        x, hx, w_ih, w_hh, b_ih, b_hh = (*args, None, None)[:6]
        h0, c0 = hx if operator.has_c else (hx, None)
        bias = b_ih is not None
        if bias != (b_hh is not None):
            return _theirs(operator, function, args, "one bias of two")
        params = [w_ih, w_hh, b_ih, b_hh] if bias else [w_ih, w_hh]
        tensors = [x, h0, *params] if c0 is None else [x, h0, c0, *params]
        reason = _tensor_refusal(tensors) or ("" if x.dim() == 2 else "shape of the input")
        if reason:
            return _theirs(operator, function, args, reason)
        problem = Problem(operator, 1, 1, bias, False, None, torch.get_num_threads())
        result = _faster(problem, None, x, h0, c0, params, (1, len(x), False))
    except _NOT_HERE as error:
        return _theirs(operator, function, args, f"not computable: {error}")
    return result if operator.has_c else result[0]


def _faster(
    problem: Problem, batch_sizes: Tensor | None, x: Tensor, h0: Tensor, c0: Tensor | None,
    params: Any, sizes: tuple[int, int, bool],
) -> tuple[Tensor, ...]:
    """Compute a problem the way that was measured to be faster."""
    operator = problem.operator
    x, h0 = _compact(x), h0.contiguous()
    c0 = None if c0 is None else c0.contiguous()
    weights = [weight.contiguous() for weight in params]
    _check_shapes(problem, x, h0, c0, weights)
    needs = ()
    if torch.is_grad_enabled():
        needs = (x.requires_grad, h0.requires_grad, c0 is not None and c0.requires_grad,
                 any(weight.requires_grad for weight in weights))
    keep = any(needs)
    key = (operator.function, sizes, x.shape[-1], h0.shape[-1], problem.num_layers,
           problem.directions, problem.bias, problem.time is None, x.dtype,
           needs[:1] if keep else None, problem.threads)
    known = choice.chosen(
        key, operator.name, lambda: _described(problem, x, h0, keep),
        lambda: _ways(problem, batch_sizes, x, h0, c0, weights, keep))
    slower = not known.accelerated and choice.get_mode() == "auto"
    choice.note(id(params[0]), key, known, "slower here" if slower else "")
    if slower:
        return original(problem, batch_sizes, x, h0, c0, weights)
    if keep:
        made: tuple[Tensor, ...] = Recurrent.apply(problem, batch_sizes, x, h0, c0, *weights)
        return made
    return compute.forward(problem, x, h0, c0, weights, False)[0]


def _check_shapes(
    problem: Problem, x: Tensor, h0: Tensor, c0: Tensor | None, weights: list[Tensor],
) -> None:
    """Refuse what the kernels' checks would refuse in the midst of a call."""
    G, L, D = problem.operator.gates, problem.num_layers, problem.directions
    I, H = x.shape[-1], h0.shape[-1]
    B = h0.shape[-2]
    if problem.operator.is_cell:
        rows: tuple[int, ...] = (len(x), H)
    elif problem.time is not None:
        rows = (L * D, problem.time.B, H)
    else:
        rows = (L * D, x.shape[0 if problem.batch_first else 1], H)
    if h0.shape != rows or (c0 is not None and c0.shape != rows) or B < 1:
        raise ValueError("the shape of hx")
    count = 4 if problem.bias else 2
    for layer in range(L):
        width = D * H if layer else I
        expected = ((G * H, width), (G * H, H), (G * H,), (G * H,))[:count]
        for d in range(D):
            first = (layer * D + d) * count
            for weight, shape in zip(weights[first:first + count], expected, strict=True):
                if weight.shape != shape:
                    raise ValueError("the shape of a weight")


def _described(problem: Problem, x: Tensor, h0: Tensor, keep: bool) -> str:
    """Return the sizes of a problem for people."""
    if problem.time is not None:
        rows = f"T {problem.time.T} B {problem.time.B} packed"
    elif problem.operator.is_cell:
        rows = f"B {x.shape[0]}"
    else:
        T, B = (x.shape[1], x.shape[0]) if problem.batch_first else x.shape[:2]
        rows = f"T {T} B {B}"
    layers = f" layers {problem.num_layers}" if problem.num_layers > 1 else ""
    both = " bidirectional" if problem.directions == 2 else ""
    return (f"{rows} I {x.shape[-1]} H {h0.shape[-1]}{layers}{both} "
            f"{'training' if keep else 'inference'} {str(x.dtype).removeprefix('torch.')}")


def _ways(
    problem: Problem, batch_sizes: Tensor | None, x: Tensor, h0: Tensor, c0: Tensor | None,
    weights: list[Tensor], keep: bool,
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return functions that compute a call, ours and PyTorch's, on tensors of their own."""
    own = [None if tensor is None else tensor.detach().requires_grad_(keep and tensor.requires_grad)
           for tensor in (x, h0, c0, *weights)]
    leaves = [tensor for tensor in own if tensor is not None and tensor.requires_grad]

    def ours() -> object:
        if not keep:
            return compute.forward(problem, own[0], own[1], own[2], own[3:], False)
        return finish(Recurrent.apply(problem, batch_sizes, *own))

    def theirs() -> object:
        return finish(original(problem, batch_sizes, own[0], own[1], own[2], own[3:]))

    def finish(outputs: tuple[Tensor, ...]) -> object:
        if not keep:
            return outputs
        return torch.autograd.grad(outputs[0], leaves, torch.ones_like(outputs[0]),
                                   allow_unused=True)

    return ours, theirs


def _function(operator: Operator) -> Callable[..., Any]:
    """Return what can stand in the place of a function of torch._VF."""
    run = run_cell if operator.is_cell else run_sequence

    def function(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            return getattr(ORIGINALS, operator.function)(*args, **kwargs)
        return run(operator, args)

    function.__name__ = function.__qualname__ = operator.function
    return function


FUNCTIONS = {name: _function(operator) for name, operator in OPERATORS.items()}
