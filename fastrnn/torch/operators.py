"""PyTorch's recurrent operators (torch._VF.lstm, gru, ...), each with two ways to be computed.

A call goes to fastrnn's kernels if they can compute it and are faster, and to PyTorch's own code in
all other cases. So a wrong call gets PyTorch's own error.

Letters: T steps, B batch, N rows of a packed sequence, I input, H hidden, L layers, D directions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import forward_ad

from fastrnn.cells.table import CELLS
from fastrnn.torch import choice
from fastrnn.torch.compiled import in_graph
from fastrnn.torch.door import Call, Operator, read_cell, read_module
from fastrnn.torch.gradient import ORIGINALS, Recurrent, has_hooks, original, transforms
from fastrnn.torch.problem import arguments_of, layer_by_layer, read_steps

__all__ = ["FUNCTIONS", "OPERATORS", "run_module"]

# So much is timed of a call, about 3 ms of forward, but not fewer steps.
_MOST_OPERATIONS, _LEAST_STEPS = 3e8, 8

Tensor = torch.Tensor

# Functions of PyTorch that say in which mode the interpreter is. Some are private: a PyTorch
# without one of them is treated as if the mode did not exist.
_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_function_modes: Callable[[], int] = getattr(torch._C, "_len_torch_function_stack", lambda: 0)
_mode_stack: Callable[[], list[Any]] = getattr(
    torch.overrides, "_get_current_function_mode_stack", lambda: [None])
_tracing: Callable[[], Any] = torch._C._get_tracing_state
_is_autocast = torch.is_autocast_enabled


def _is_harmless(mode: Any) -> bool:
    """Return whether a mode only chooses the CPU: `torch.set_default_device("cpu")`."""
    device = getattr(mode, "device", None)
    return (type(mode).__name__ == "DeviceContext" and isinstance(device, torch.device)
            and device.type == "cpu")


def _refusal() -> str:
    """Return why the mode of the interpreter needs PyTorch's own code, or an empty string."""
    if choice.get_mode() == "never":
        return "mode never"
    if transforms() is not None:
        return "torch.func"
    if _dispatch_modes():
        return "dispatch mode"
    if _tracing() is not None:
        return "tracing"
    if _function_modes() and not all(map(_is_harmless, _mode_stack())):
        return "function mode"
    if _is_autocast("cpu"):
        return "autocast"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    return ""


def _run_sequence(operator: Operator, args: tuple[Any, ...]) -> Any:
    """Compute a call of torch._VF.lstm, gru, rnn_tanh or rnn_relu.

    Parameters
    ----------
    operator : Operator
    args : tuple
        As of `arguments_of`.
    """
    reason = _refusal()
    if reason or len(args) != 9:
        return _theirs(operator, args, reason or "the number of arguments")
    x, batch_sizes, hx, weights, bias, L, dropout, D, batch_first = arguments_of(args)
    pair = _pair(operator, hx)
    if pair is None:
        return _theirs(operator, args, "hx is no pair")
    h0, c0 = pair
    call = read_steps(operator, x, batch_sizes, h0, c0, weights, bias, L, D, batch_first)
    if isinstance(call, str):
        return _theirs(operator, args, call)
    if not dropout:
        return _faster(call, weights[0])

    def run(y: Tensor, h0: Tensor, c0: Tensor | None, weights: list[Tensor]) -> tuple[Tensor, ...]:
        one = read_steps(operator, y, batch_sizes, h0, c0, weights, bias, 1, D, False)
        assert not isinstance(one, str)
        return _faster(one, weights[0])

    y = x
    if batch_first:  # the caller's may change: see Call.own_x
        y = x.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    y, *states = layer_by_layer(run, y, h0, c0, weights, L, D, dropout)
    return (y.transpose(0, 1) if batch_first else y, *states)


def _run_cell(operator: Operator, args: tuple[Any, ...]) -> Any:
    """Compute a call of torch._VF.lstm_cell, gru_cell, rnn_tanh_cell or rnn_relu_cell.

    Parameters
    ----------
    operator : Operator
    args : tuple
        (input, hx, w_ih, w_hh, b_ih, b_hh).
    """
    reason = _refusal()
    if reason or len(args) != 6 or (args[4] is None) != (args[5] is None):
        return _theirs(operator, args, reason or "the arguments")
    x, hx, *weights = args
    pair = _pair(operator, hx)
    if pair is None:
        return _theirs(operator, args, "hx is no pair")
    call = read_cell(operator, x, *pair, weights if weights[2] is not None else weights[:2])
    if isinstance(call, str):
        return _theirs(operator, args, call)
    result = _faster(call, weights[0])
    return result if operator.has_c else result[0]


def _pair(operator: Operator, hx: Any) -> tuple[Any, Any] | None:
    """Return (h0, c0), where c0 is None for cells without it; None if it is something else."""
    if not operator.has_c:
        return None if hx is None else (hx, None)
    pair = tuple(hx) if isinstance(hx, (list, tuple)) and len(hx) == 2 else (None, None)
    return None if pair[0] is None or pair[1] is None else pair


def _theirs(operator: Operator, args: tuple[Any, ...], reason: str) -> Any:
    """Let PyTorch compute a call as it came, and note why."""
    # behind the states, which may be a pair: the last list of a sequence's arguments
    weight = next((arg[0] for arg in args[3:1:-1] if isinstance(arg, (list, tuple)) and len(arg)),
                  args[2] if len(args) > 2 else None)
    note_refused(operator, weight, args[0] if args else None, reason)
    return getattr(ORIGINALS, operator.function)(*args)


def note_refused(operator: Operator, weight: Any, x: Any, reason: str) -> None:
    """Note why PyTorch computes a call; `weight` is the first weight of its module."""
    shape = "x".join(map(str, getattr(x, "shape", ())))
    key = (operator.function, shape, "refused")
    choice.note(weight, key, choice.refused(key, operator.name, shape), reason)


def _faster(call: Call, weight: Tensor) -> tuple[Tensor, ...]:
    """Compute a call the way that was measured to be faster."""
    # under hooks on saved tensors backward computes forward again: another problem
    hooked = call.keep and has_hooks()
    key = (*call.key, "hooks") if hooked else call.key
    known = choice.chosen(key, call.op.name, call, _ways, _apart, for_good=hooked)
    slower = not known.accelerated and choice.get_mode() == "auto"
    choice.note(weight, key, known, "slower here" if slower else "")
    if slower:
        return original(call, call.x, call.h0, call.c0, call.weights)
    if call.keep:
        call.own_x(True)  # before the node, which would keep the caller's
        return _apply(call, call.x, call.h0, call.c0, *call.weights)
    return call.forward(False)[0]


# Function.apply itself looks for transforms of torch.func, which _refusal has excluded.
_apply: Callable[..., tuple[Tensor, ...]] = super(torch.autograd.Function, Recurrent).apply


def _shorter(call: Call) -> Call:
    """Return a call like this one, with fewer time steps if it takes long."""
    if call.op.is_cell:
        return call
    step = (2.0 * call.B * call.op.gates * call.hidden_size * call.num_layers * call.directions
            * (call.input_size + call.hidden_size))
    T = max(_LEAST_STEPS, int(_MOST_OPERATIONS / step))
    if T >= call.T:
        return call
    sizes = call.batch_sizes
    if sizes is None:
        x = call.x.narrow(int(call.batch_first), 0, T)
    else:
        sizes = sizes[:T]
        x = call.x[:int(sizes.sum())]
    made: Call | str = read_steps(call.op, x, sizes, call.h0, call.c0, call.weights, call.bias,
                                  call.num_layers, call.directions, call.batch_first)
    return call if isinstance(made, str) else made


def _ways(whole: Call) -> tuple[Callable[[], object], Callable[[], object], float]:
    """Return functions that compute a call, ours and PyTorch's, on tensors of their own.

    They compute the first steps alone if the call takes long: a program of a few large batches
    would else spend much of its time on finding out. The third value is the share of all steps.
    """
    call = _shorter(whole)
    keep = call.keep
    own: list[Any] = [None if tensor is None else _leaf(tensor, keep and tensor.requires_grad)
                      for tensor in call.tensors()]
    leaves = [tensor for tensor in own if tensor is not None and tensor.requires_grad]

    def ours() -> object:
        return finish(_apply(call, *own)) if keep else call.forward(False)

    def theirs() -> object:
        return finish(original(call, own[0], own[1], own[2], own[3:]))

    def finish(outputs: tuple[Tensor, ...]) -> object:
        if not keep:
            return outputs
        return torch.autograd.grad(outputs[0], leaves, torch.ones_like(outputs[0]),
                                   allow_unused=True)

    return ours, theirs, call.T / whole.T


def _leaf(tensor: Tensor, needs_grad: bool) -> Tensor:
    """Return the same numbers apart from the user's graph, and from inference mode."""
    own = tensor.detach()
    if needs_grad and own.is_inference():
        own = own.clone()
    return own.requires_grad_(needs_grad)


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Keep what is timed from the user's hooks on saved tensors, and from the search for NaN."""
    with contextlib.ExitStack() as stack:
        if has_hooks():
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_same, _same))
        if torch.is_anomaly_enabled():
            stack.enter_context(torch.autograd.set_detect_anomaly(False))
        yield


def _same(tensor: Tensor) -> Tensor:
    return tensor


def run_module(operator: Operator, module: torch.nn.Module, x: Any, hx: Any) -> Any:
    """Compute a module's `forward` without PyTorch's reading of its arguments.

    Parameters
    ----------
    operator : Operator
    module : torch.nn.RNNBase or RNNCellBase
    x, hx
        The arguments of `forward`.

    Returns
    -------
    outputs
        What `forward` returns; None if PyTorch's own code must read the arguments.
    """
    call = None if _refusal() else read_module(operator, module, x, hx)
    if call is None:
        return None
    outputs = _faster(call, call.weights[0])
    if operator.is_cell:
        return outputs if operator.has_c else outputs[0]
    return (outputs[0], outputs[1:]) if operator.has_c else outputs


def _function(operator: Operator) -> Callable[..., Any]:
    """Return what can stand in the place of a function of torch._VF."""
    run, traced = _run_cell if operator.is_cell else _run_sequence, in_graph(operator)

    def function(*args: Any, **kwargs: Any) -> Any:
        # compilers and torch.export look into this function
        if kwargs or torch.compiler.is_compiling():
            return traced(*args, **kwargs)
        return run(operator, args)

    function.__name__ = function.__qualname__ = operator.function
    return function


def _operators() -> Iterator[Operator]:
    for cell, name in (("lstm", "LSTM"), ("gru", "GRU"), ("rnn_tanh", "RNN"), ("rnn_relu", "RNN")):
        row = CELLS[cell]
        for suffix in ("", "_cell"):
            yield Operator(name + suffix.removeprefix("_").capitalize(), cell + suffix, row.number,
                           len(row.gates), len(row.states) == 2, bool(suffix))


# By their names in torch._VF: the operators, and the accelerated functions.
OPERATORS = {operator.function: operator for operator in _operators()}
FUNCTIONS = {name: _function(operator) for name, operator in OPERATORS.items()}
