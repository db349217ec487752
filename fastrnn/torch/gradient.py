"""The accelerated operators as nodes of PyTorch's autograd graph."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import Function

from fastrnn.torch import compute
from fastrnn.torch.compute import Problem

__all__ = ["Recurrent", "original"]

Tensor = torch.Tensor
# PyTorch's own operators: torch._VF finds its functions here if they are not patched.
ORIGINALS: Any = torch._C._VariableFunctions


def original(
    problem: Problem, batch_sizes: Tensor | None, x: Tensor, h0: Tensor, c0: Tensor | None,
    weights: Any,
) -> tuple[Tensor, ...]:
    """Compute a problem with PyTorch's own operator, as part of the graph if there is one."""
    operator = problem.operator
    function = getattr(ORIGINALS, operator.function)
    state: Any = (h0, c0) if operator.has_c else h0
    if operator.is_cell:
        result = function(x, state, *weights)
        return result if operator.has_c else (result,)
    common = (list(weights), problem.bias, problem.num_layers, 0.0, True, problem.directions == 2)
    made: tuple[Tensor, ...]
    if batch_sizes is not None:
        made = function(x, batch_sizes, state, *common)
    else:
        made = function(x, state, *common, problem.batch_first)
    return made


class Recurrent(Function):
    """A call of an operator whose result has a gradient.

    Backward uses the tape up. A second backward through the same node (`retain_graph=True`)
    computes forward again, from the tensors that autograd has saved. A backward that must itself be
    differentiable (`create_graph=True`) goes through PyTorch's own operator.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, problem: Problem, batch_sizes: Tensor | None, x: Tensor, h0: Tensor,
        c0: Tensor | None, *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        # Under hooks on saved tensors (activation checkpointing, offloading) the user wants the
        # memory of intermediate values back: backward computes forward again.
        hooked = _hooks_on_saved_tensors()
        outputs, ctx.tapes = compute.forward(problem, x, h0, c0, list(weights), not hooked)
        ctx.problem, ctx.batch_sizes = problem, batch_sizes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, c0, *weights)
        return outputs

    @staticmethod
    def backward(ctx: Any, *doutputs: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        problem: Problem = ctx.problem
        saved = ctx.saved_tensors  # PyTorch's error if one was changed in place
        x, h0, c0, *weights = saved
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return _differentiable(problem, ctx.batch_sizes, saved, doutputs, needs)
        tapes, ctx.tapes = ctx.tapes, None
        if tapes is None:
            _, tapes = compute.forward(problem, x, h0, c0, weights, True)
        assert tapes is not None
        if problem.operator.is_cell:
            doutputs = (None, *doutputs)
        dy, dhn, *rest = doutputs
        dx, dh0, dc0, dweights = compute.backward(
            problem, tapes, x, h0, tuple(weights), dy, dhn, rest[0] if rest else None, needs[2])
        return (
            None, None, dx, dh0 if needs[3] else None, dc0 if needs[4] else None,
            *(dweight if need else None for dweight, need in zip(dweights, needs[5:], strict=True)))


def _differentiable(
    problem: Problem, batch_sizes: Tensor | None, saved: tuple[Tensor | None, ...],
    doutputs: tuple[Tensor | None, ...], needs: tuple[bool, ...],
) -> tuple[Any, ...]:
    """Return the gradients as differentiable functions of the inputs and of `doutputs`."""
    x, h0, c0, *weights = saved
    assert x is not None
    assert h0 is not None
    outputs = original(problem, batch_sizes, x, h0, c0, weights)
    pairs = [(y, dy) for y, dy in zip(outputs, doutputs, strict=True) if dy is not None]
    wanted = [tensor for tensor, need in zip(saved, needs[2:], strict=True)
              if need and tensor is not None]
    found = iter(torch.autograd.grad([y for y, _ in pairs], wanted, [dy for _, dy in pairs],
                                     create_graph=True, allow_unused=True))
    return (None, None, *(next(found) if need and tensor is not None else None
                          for tensor, need in zip(saved, needs[2:], strict=True)))


def _hooks_on_saved_tensors() -> bool:
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is not None and top(False) is not None
