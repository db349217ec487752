"""Calls of the recurrent operators inside torch.compile: operators that compilers do not look into.

`in_graph` returns what torch.compile traces in place of a function of torch._VF: a call of
``torch.ops.fastrnn.recurrent``, which computes forward on the kernels, while
``torch.ops.fastrnn.recurrent_backward`` computes backward.

Forward returns its tape as a tensor of one number. The memory of this tensor owns the tape, so the
tape lives and dies with it. If backward does not find the tape, or if the inputs lie somewhere else
now, it computes forward again from the inputs, which are saved.

Letters: T steps, B batch, N rows of a packed sequence, I input, H hidden, L layers, D directions.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.autograd import forward_ad

from fastrnn.torch import choice
from fastrnn.torch.door import Call, Operator
from fastrnn.torch.gradient import ORIGINALS, differentiable, original, transforms
from fastrnn.torch.problem import Problem, arguments_of, layer_by_layer, readable
from fastrnn.torch.projected import ProjectedCall, has_projection

__all__ = ["in_graph"]

Tensor = torch.Tensor

OPERATORS: dict[str, Operator] = {}

# A PyTorch without this function cannot say whether it exports.
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)

# Keeps torch.compile out of a function, without importing it.
_disabled: Callable[[Any], Any] = getattr(torch, "_disable_dynamo", lambda function: function)

_SIGNATURE = ("Tensor x, Tensor? batch_sizes, Tensor h0, Tensor? c0, Tensor[] weights, bool bias, "
              "int num_layers, int directions, bool batch_first")

_torch_library: Any = torch.library  # it has no types
_library = _torch_library.Library("fastrnn", "FRAGMENT")


# ---- what torch.compile traces -------------------------------------------------------------------


def in_graph(operator: Operator) -> Callable[..., Any]:
    """Return what torch.compile traces in the place of a function of torch._VF.

    It is traced, not run: only what can be traced may be in it.

    Parameters
    ----------
    operator : Operator
    """
    OPERATORS[operator.function] = operator
    theirs = getattr(ORIGINALS, operator.function)
    name, has_c = operator.function, operator.has_c

    def cell(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 6 or _needs_original():
            return theirs(*args, **kwargs)
        x, hx, *weights = args
        bias = weights[2] is not None
        if bias != (weights[3] is not None):
            return theirs(*args)
        h0, c0 = hx if has_c else (hx, None)
        weights = weights if bias else weights[:2]
        if not _computable(x, (h0, *weights)):
            return theirs(*args)
        outputs = torch.ops.fastrnn.recurrent(
            name, torch.is_grad_enabled(), x, None, h0, c0, weights, bias, 1, 1, False)
        return (outputs[0], outputs[1]) if has_c else outputs[0]

    def fallback(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_dynamo_compiling() or _is_exporting() or _may_unroll():
            return theirs(*args, **kwargs)
        return outside(*args, **kwargs)

    @_disabled
    def outside(*args: Any, **kwargs: Any) -> Any:
        """Break the graph: in a graph, PyTorch's operator is a node for each step and operation."""
        return theirs(*args, **kwargs)

    def sequence(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 9 or _needs_original():
            return fallback(*args, **kwargs)
        x, batch_sizes, hx, weights, bias, L, dropout, D, batch_first = arguments_of(args)
        h0, c0 = hx if has_c else (hx, None)
        fits = has_projection(operator, weights, bias, L, D) or (
            len(weights) == L * D * (4 if bias else 2))
        if not fits or not _computable(x, (h0, *weights)):
            return fallback(*args)
        keep = torch.is_grad_enabled()
        if not dropout:
            outputs = torch.ops.fastrnn.recurrent(
                name, keep, x, batch_sizes, h0, c0, weights, bias, L, D, batch_first)
            return tuple(outputs[:3 if has_c else 2])

        def run(y: Tensor, h0: Tensor, c0: Tensor | None, weights: list[Tensor]) -> list[Tensor]:
            outputs: list[Tensor] = torch.ops.fastrnn.recurrent(
                name, keep, y, batch_sizes, h0, c0, weights, bias, 1, D, False)
            return outputs[:3 if has_c else 2]

        y, *states = layer_by_layer(run, x.transpose(0, 1) if batch_first else x, h0, c0, weights,
                                    L, D, dropout)
        return (y.transpose(0, 1) if batch_first else y, *states)

    return cell if operator.is_cell else sequence


def _needs_original() -> bool:
    """Whether the mode of the compiler needs PyTorch's own operator; is traced."""
    return (not torch.compiler.is_dynamo_compiling() or _is_exporting()
            or choice.get_mode() == "never" or torch.is_autocast_enabled("cpu") or _transformed())


def _transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is in force."""
    return transforms() is not None or forward_ad._current_level >= 0


def _may_unroll() -> bool:
    """Whether the user wants PyTorch's operators in graphs."""
    return bool(torch._dynamo.config.allow_rnn)


# The tracer calls them and keeps the answers: a graph is valid for one stack of transforms only.
for _function in (_transformed, _may_unroll):
    _function._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _computable(x: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether the kernels can compute a call; is traced."""
    if x.dtype not in (torch.float32, torch.float64):
        return False
    if x.device.type != "cpu" or not x.shape[-1] or not others[0].shape[-1]:
        return False
    return all(tensor.dtype == x.dtype and tensor.device.type == "cpu" for tensor in others)


# ---- the operators -------------------------------------------------------------------------------


class _Kept(np.ndarray[Any, Any]):
    """The memory of the tensor that stands for a tape.

    Attributes
    ----------
    call : Call
    tapes : list or None
        None after one backward.
    places : tuple
        Where the call's inputs lie.
    """

    call: Call | ProjectedCall
    tapes: list[Any] | None
    places: tuple[Any, ...]


_kept: weakref.WeakValueDictionary[int, _Kept] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def _places(x: Tensor, weights: list[Tensor]) -> tuple[Any, ...]:
    """Return where the tensors lie that a tape points to; it has a copy of the initial state."""
    return tuple((tensor.data_ptr(), tensor.stride()) for tensor in (x, *weights))


def _hand_over(call: Call | ProjectedCall, tapes: list[Any], places: tuple[Any, ...]) -> Tensor:
    """Return a tensor that owns a tape."""
    number = next(_numbers)
    memory = np.array([number], np.int64).view(_Kept)
    memory.call, memory.tapes, memory.places = call, tapes, places
    _kept[number] = memory
    return torch.from_numpy(memory)


def _take(
    tape: Tensor, places: tuple[Any, ...],
) -> tuple[Call | ProjectedCall, list[Any]] | None:
    """Return the call and the tape that a tensor stands for; None if they cannot serve.

    A compiler may compute an input of forward again for backward, and use its memory meanwhile for
    something else. So the inputs must lie where they were: then they are there now.
    """
    memory = _kept.get(int(tape[0])) if tape.numel() else None
    if memory is None:
        return None
    tapes, memory.tapes = memory.tapes, None
    return (memory.call, tapes) if tapes is not None and memory.places == places else None


def _forward(
    function: str, keep: bool, x: Tensor, batch_sizes: Tensor | None, h0: Tensor,
    c0: Tensor | None, weights: list[Tensor], bias: bool, num_layers: int, directions: int,
    batch_first: bool,
) -> list[Tensor]:
    """Compute the outputs of a call, and its tape if that is to be kept."""
    problem = Problem(OPERATORS[function], batch_sizes, bias, num_layers, directions, batch_first)
    call = readable(problem, x, h0, c0, weights)
    if isinstance(call, str):  # sizes of 0, or PyTorch's error
        outputs = [y.detach().clone(memory_format=torch.contiguous_format)
                   for y in original(cast(Call, problem), x, h0, c0, weights)]
        return [*outputs, torch.zeros(1, dtype=torch.int64)] if keep else outputs
    made, tapes = call.forward(keep)
    if tapes is None:
        return list(made)
    return [*made, _hand_over(call, tapes, _places(x, weights))]


def _backward(
    function: str, tape: Tensor, doutputs: list[Tensor | None], needs: list[bool], x: Tensor,
    batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None, weights: list[Tensor], bias: bool,
    num_layers: int, directions: int, batch_first: bool,
) -> list[Tensor]:
    """Compute the gradients that are wanted, in the order x, h0, c0, weights."""
    taken = _take(tape, _places(x, weights))
    if taken is None:
        problem = Problem(OPERATORS[function], batch_sizes, bias, num_layers, directions,
                           batch_first)
        call = readable(problem, x, h0, c0, weights)
        if isinstance(call, str):  # no step or no sequence
            return [torch.zeros_like(tensor, memory_format=torch.contiguous_format)
                    for tensor, need in zip((x, h0, c0, *weights), needs, strict=True)
                    if need and tensor is not None]
        tapes = call.forward(True)[1]
    else:
        call, tapes = taken
    given = [dy if dy is None else dy.resolve_neg() for dy in doutputs]
    dy, dhn, dcn = (None, *given, None)[:3] if call.op.is_cell else (*given, None)[:3]
    gradients = call.backward(tapes, dy, dhn, dcn, tuple(needs))
    return [gradient for gradient in gradients if gradient is not None]


# ---- shapes --------------------------------------------------------------------------------------


def _shapes(
    function: str, keep: bool, x: Tensor, batch_sizes: Tensor | None, h0: Tensor,
    c0: Tensor | None, weights: list[Tensor], bias: bool, num_layers: int, directions: int,
    batch_first: bool,
) -> list[Tensor]:
    outputs = [h0.new_empty(h0.shape)]
    if not OPERATORS[function].is_cell:
        width = directions * h0.shape[-1]
        y = x.new_empty((*x.shape[:-1], width))
        if batch_first:  # steps outside
            B, T, _ = x.shape
            y = x.new_empty_strided((B, T, width), (width, B * width, 1))
        outputs.insert(0, y)
    if c0 is not None:
        outputs.append(c0.new_empty(c0.shape))
    if keep:
        outputs.append(x.new_empty((1,), dtype=torch.int64))
    return outputs


def _gradient_shapes(
    function: str, tape: Tensor, doutputs: list[Tensor | None], needs: list[bool], x: Tensor,
    batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None, weights: list[Tensor], *rest: Any,
) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape)
            for tensor, need in zip((x, h0, c0, *weights), needs, strict=True)
            if need and tensor is not None]


# ---- gradients -----------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    function, keep, x, batch_sizes, h0, c0, weights, *ctx.rest = inputs
    ctx.function, ctx.count = function, len(output) - keep
    tape = output[-1] if keep else h0.new_zeros((1,), dtype=torch.int64)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(tape, batch_sizes, x, h0, c0, *weights)


def _differentiate(ctx: Any, doutputs: Sequence[Tensor | None]) -> tuple[Any, ...]:
    tape, batch_sizes, x, h0, c0, *weights = ctx.saved_tensors
    has_c = c0 is not None
    _, _, dx, _, dh0, dc0, dweights, *_ = ctx.needs_input_grad
    needs = [dx, dh0, has_c and dc0, *dweights]
    given = tuple(doutputs[:ctx.count])
    if torch.is_grad_enabled():
        problem = Problem(OPERATORS[ctx.function], batch_sizes, *ctx.rest)
        found = differentiable(cast(Call, problem), (x, h0, c0, *weights), given, tuple(needs))
    else:
        gradients = iter(torch.ops.fastrnn.recurrent_backward(
            ctx.function, tape, list(given), needs, x, batch_sizes, h0, c0, weights, *ctx.rest))
        found = [next(gradients) if need else None for need in needs]
    return (None, None, found[0], None, found[1], found[2], found[3:],
            *(None for _ in ctx.rest))


# ---- registration --------------------------------------------------------------------------------


def _register() -> None:
    """Make the operators known to PyTorch, once in a process, however often this is imported."""
    if hasattr(torch.ops.fastrnn, "recurrent"):
        return
    _library.define(f"recurrent(str function, bool keep, {_SIGNATURE}) -> Tensor[]")
    _library.define("recurrent_backward(str function, Tensor tape, Tensor?[] doutputs, "
                    f"bool[] needs, {_SIGNATURE}) -> Tensor[]")
    _library.impl("recurrent", _forward, "CPU")
    _library.impl("recurrent_backward", _backward, "CPU")
    _torch_library.register_fake("fastrnn::recurrent", _shapes, lib=_library)
    _torch_library.register_fake("fastrnn::recurrent_backward", _gradient_shapes, lib=_library)
    _torch_library.register_autograd("fastrnn::recurrent", _differentiate, setup_context=_save,
                                     lib=_library)


_register()
