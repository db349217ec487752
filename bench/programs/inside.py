"""The time that a program spends inside PyTorch's recurrent modules."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.modules import module as modules

_RECURRENT = (torch.nn.RNNBase, torch.nn.RNNCellBase)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of nested tuples; a PackedSequence is one."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors(each)


class Inside:
    """A context whose `seconds` are those inside recurrent modules, forward and backward.

    The backward of a module is taken from the gradient of an output to the last gradient of its
    parameters and inputs. If a module is called many times before backward, the time in between
    counts too. This holds where backward runs on the calling thread, as it does on a CPU.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth, self._entered = 0, 0.0
        self._began: float | None = None  # a backward that is under way
        self._ended: float | None = None  # its latest gradient
        self._known: dict[int, torch.nn.Parameter] = {}  # by id: == of tensors is another thing
        self._handles: list[Any] = []

    def __enter__(self) -> Inside:
        self._handles = [
            modules.register_module_forward_pre_hook(self._before),
            modules.register_module_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
        for handle in self._handles:
            handle.remove()

    def _before(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, _RECURRENT):
            self._depth += 1
            if self._depth == 1:
                self._close()
                self._entered = time.perf_counter()

    def _after(self, module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(module, _RECURRENT):
            return
        self._depth -= 1
        if self._depth:
            return
        self.seconds += time.perf_counter() - self._entered
        if not torch.is_grad_enabled():
            return
        for tensor in tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(self._begin)
        for tensor in tensors(inputs):
            if tensor.requires_grad:
                tensor.register_hook(self._end)
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in self._known:
                self._known[id(parameter)] = parameter
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._end))

    def _begin(self, gradient: torch.Tensor) -> None:
        if self._ended is not None:
            self._close()
        if self._began is None:
            self._began = time.perf_counter()

    def _end(self, tensor: torch.Tensor) -> None:
        if self._began is not None:
            self._ended = time.perf_counter()

    def _close(self) -> None:
        if self._began is not None and self._ended is not None:
            self.seconds += self._ended - self._began
        self._began = self._ended = None
