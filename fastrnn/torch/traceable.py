"""What torch.compile shall trace, where it would stop, and what it shall not trace.

Accelerated modules are traced (`permit`), and the node of autograd is not (`hide`).

torch.compile breaks its graph at every torch.nn.RNN, LSTM and GRU, unless
``torch._dynamo.config.allow_rnn`` is set: a graph of one node for each operation of each time step
would be too large. The accelerated operators are one node, so this reason does not hold for them.
The setting is on while torch.compile meets an accelerated module, and for such modules only.

torch.compile has no public way to say so. If the private one that is used here does not exist in a
version of PyTorch, the graph breaks, and the modules run accelerated outside it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["forbid", "hide", "permit"]

_BUILDER = "torch._dynamo.variables.builder"

_permitted: set[type] = set()


def permit(kind: type) -> None:
    """Let torch.compile trace modules of a class, and of those derived from it."""
    _permitted.add(kind)
    _extend_when_imported()


def forbid(kind: type) -> None:
    """Undo `permit`; graphs that exist stay."""
    _permitted.discard(kind)


def hide(function: Callable[..., Any]) -> None:
    """Let compilers call a function, and never trace it nor what it calls.

    ``torch.compiler.disable`` does that, too, but adds to the time of each call, and imports the
    compiler. A PyTorch without the private functions traces.
    """
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    frames = torch._C._dynamo.eval_frame
    set_strategy = getattr(frames, "set_code_exec_strategy", None)
    if set_strategy is not None:
        skip = frames._FrameAction.SKIP
        set_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))


def _extend(builder: types.ModuleType) -> None:
    """Turn the setting on for the modules that are permitted."""
    variables = getattr(builder, "VariableBuilder", None)
    own = getattr(variables, "wrap_module", None)
    config = getattr(builder, "config", None)
    if own is None or not hasattr(config, "allow_rnn") or hasattr(own, "_fastrnn"):
        return
    assert config is not None

    @functools.wraps(own)
    def wrap_module(self: Any, value: Any) -> Any:
        if not isinstance(value, tuple(_permitted)):
            return own(self, value)
        with config.patch(allow_rnn=True):
            return own(self, value)

    wrap_module._fastrnn = True  # type: ignore[attr-defined]
    variables.wrap_module = wrap_module  # type: ignore[union-attr]


# ---- when torch.compile is used for the first time -----------------------------------------------


class _Loader(importlib.abc.Loader):
    """Loads a module as another loader does, and extends it."""

    def __init__(self, own: importlib.abc.Loader) -> None:
        self.own = own

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__loader__ = self.own
        assert module.__spec__ is not None  # importlib has set it
        module.__spec__.loader = self.own
        self.own.exec_module(module)
        _extend(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Waits for the import of the module that is to be extended, because it takes a second."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _BUILDER:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


_finder = _Finder()


def _extend_when_imported() -> None:
    if _BUILDER in sys.modules:
        _extend(sys.modules[_BUILDER])
    elif _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
