"""The accelerated operators as nodes of PyTorch's autograd graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.function import Function

from fastrnn.torch import traceable
from fastrnn.torch.door import Call
from fastrnn.torch.problem import Problem, problem_of, readable

__all__ = ["ORIGINALS", "Recurrent", "differentiable", "has_hooks", "original", "transforms"]

Tensor = torch.Tensor
# PyTorch's own operators: torch._VF finds its functions here if they are not patched.
ORIGINALS: Any = torch._C._VariableFunctions
# Says whether a transform of torch.func is in force. A PyTorch without it has no transforms.
transforms: Callable[[], Any] = getattr(torch._C._functorch, "peek_interpreter_stack",
                                        lambda: None)
# Says whether a tensor is one of several that a transform computes at once.
_is_batched: Callable[[Tensor], bool] = getattr(torch._C._functorch, "is_legacy_batchedtensor",
                                                lambda tensor: False)

# Gives the hooks on saved tensors that are in force. A PyTorch without it has no hooks.
_top_hooks: Callable[[bool], Any] = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks",
                                            lambda ignore: None)


def original(
    call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Any,
) -> tuple[Tensor, ...]:
    """Compute what a call does with PyTorch's own operator, on these tensors."""
    function = getattr(ORIGINALS, call.op.function)
    if h0 is None:
        h0 = x.new_zeros(call.state_shape())
    if c0 is None:
        c0 = torch.zeros_like(h0)
    state: Any = (h0, c0) if call.op.has_c else h0
    if call.op.is_cell:
        result = function(x, state, *weights)
        return result if call.op.has_c else (result,)
    common = (list(weights), call.bias, call.num_layers, 0.0, True, call.directions == 2)
    made: tuple[Tensor, ...]
    if call.batch_sizes is not None:
        made = function(x, call.batch_sizes, state, *common)
    else:
        made = function(x, state, *common, call.batch_first)
    return made


class Recurrent(Function):
    """A call of an operator whose result has a gradient.

    Backward uses the tape up. What it does not read (see `Call.split`), such as the states that the
    call began with, may change. A second backward through the same node (`retain_graph=True`)
    computes forward again, and one that must itself be differentiable (`create_graph=True`) goes
    through PyTorch's own operator. Both need all tensors, as they were.
    """

    @staticmethod
    def forward(
        ctx: Any, call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        """Compute the outputs of a call."""
        # Under hooks on saved tensors (activation checkpointing, offloading) the user wants memory
        # back: of intermediate values, so backward computes forward again, and of the inputs, so
        # backward has them from the hooks alone.
        hooked = has_hooks()
        ctx.problem, ctx.rest, ctx.versions = problem_of(call), (), ()
        if hooked:
            call.own_x()
            saved = call.tensors()
        else:
            saved, ctx.rest, ctx.versions = call.split(ctx.needs_input_grad[1:])
        outputs, tapes = call.forward(not hooked)
        ctx.kept = [] if hooked else [(call, tapes)]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        return outputs

    @staticmethod
    def backward(ctx: Any, *doutputs: Tensor | None) -> tuple[Any, ...]:
        """Compute the gradients of the inputs."""
        saved = ctx.saved_tensors  # PyTorch's error if one was changed in place
        needs = ctx.needs_input_grad[1:]
        if not any(dy is not None for dy in doutputs):
            return (None, *[None] * len(needs))
        again = torch.is_grad_enabled() or transforms() is not None
        for dy in doutputs:
            again = again or (dy is not None and _is_batched(dy))
        if again:
            saved = _all_tensors(ctx, saved)
            return (None, *differentiable(_read(ctx.problem, saved), saved, doutputs, needs))
        # At once, for another thread may go back, too; and they have the tensors, which autograd
        # frees after this.
        try:
            call, tapes = ctx.kept.pop()
        except IndexError:
            call = tapes = None
        if call is None or not call.is_in_place(not ctx.rest or ctx.rest[0] is None):
            call = _read(ctx.problem, _all_tensors(ctx, saved))
            _, tapes = call.forward(True)
        dy, dhn, dcn = (None, *doutputs, None)[:3] if call.op.is_cell else (*doutputs, None)[:3]
        return (None, *call.backward(tapes, dy, dhn, dcn, needs))


traceable.hide(Recurrent.backward)  # what it reads is no part of a graph


def _all_tensors(ctx: Any, saved: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Return all tensors of a call; what autograd has not saved must be unchanged."""
    for tensor, version in zip(ctx.rest, ctx.versions, strict=True):
        if version is not None and tensor._version != version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: a tensor of shape {tuple(tensor.shape)} of a call of "
                f"{ctx.problem.op.name} is at version {tensor._version}, expected version "
                f"{version}; a second backward, or one with create_graph=True, computes the call "
                "again")
    if not ctx.rest:
        return saved
    return tuple(own if kept is None else kept
                 for own, kept in zip(ctx.rest, saved, strict=True))


def _read(problem: Problem, tensors: Sequence[Any]) -> Any:
    """Make the call of a node's tensors again."""
    for tensor in tensors:
        if (tensor is not None and tensor.layout is torch.strided and tensor.numel()
                and not tensor.untyped_storage().nbytes()):
            raise RuntimeError(f"{problem.op.name}: the memory of a tensor of shape "
                               f"{tuple(tensor.shape)} was freed, expected it to be back for "
                               "backward")
    call = readable(problem, tensors[0], tensors[1], tensors[2], list(tensors[3:]))
    if isinstance(call, str):
        raise RuntimeError(f"{problem.op.name}: a tensor that backward needs cannot be read "
                           f"({call}), expected it as it was in forward: its `.data` is another "
                           "since, or a hook on saved tensors gave back another tensor")
    return call


def differentiable(
    call: Call, saved: tuple[Tensor | None, ...], doutputs: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    """Return the gradients as differentiable functions of the inputs and of `doutputs`.

    The saved tensors still have their history, in which one may depend on another, and one tensor
    may stand in two places. A view of each has the partial derivatives alone.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        own: list[Any] = [_view(tensor, need) for tensor, need in zip(saved, needs, strict=True)]
        outputs = original(call, own[0], own[1], own[2], own[3:])
    pairs = [(y, dy) for y, dy in zip(outputs, doutputs, strict=True) if dy is not None]
    wanted = [tensor for tensor, need in zip(own, needs, strict=True) if need]
    found = iter(torch.autograd.grad([y for y, _ in pairs], wanted, [dy for _, dy in pairs],
                                     create_graph=create_graph,
                                     allow_unused=True))
    return [next(found) if need else None for need in needs]


def _view(tensor: Tensor | None, needs_grad: bool) -> Tensor | None:
    """Return a view that has a gradient if forward's had: the user may have switched it off since.

    Then the tensor is a leaf; the view still leads to it.
    """
    if tensor is None or tensor.requires_grad or not needs_grad:
        return None if tensor is None else tensor.view_as(tensor)
    tensor.requires_grad_(True)
    try:
        return tensor.view_as(tensor)
    finally:
        tensor.requires_grad_(False)


def has_hooks() -> bool:
    """Return whether hooks on saved tensors are in force."""
    return _top_hooks(False) is not None
