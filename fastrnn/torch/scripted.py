"""Calls that do not pass torch._VF: of models that were scripted before `patch`, and of C++.

They call PyTorch's operators (aten::lstm, ...) by themselves. PyTorch has one implementation of
such an operator, made of others, for every device and with or without gradients. `override`
registers another one for CPUs, which asks the same functions as torch._VF does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from fastrnn.torch import gradient, operators

__all__ = ["override", "restore"]

# With gradients, and in inference mode.
_KEYS = ("AutogradCPU", "CPU")

_library: Any = None
_own = gradient.ORIGINALS
_inside = threading.local()


class _Originals:
    """PyTorch's operators, which take PyTorch's way though they are overridden."""

    def __init__(self) -> None:
        self.__dict__ |= {name: _direct(name) for name in operators.FUNCTIONS}


def _direct(name: str) -> Callable[..., Any]:
    function = getattr(_own, name)

    def direct(*args: Any, **kwargs: Any) -> Any:
        before = getattr(_inside, "direct", False)
        _inside.direct = True
        try:
            return function(*args, **kwargs)
        finally:
            _inside.direct = before

    return direct


def _kernel(name: str, overload: Any) -> Callable[..., Any]:
    """Return the implementation of an operator for CPUs."""
    accelerated = operators.FUNCTIONS[name]
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    count = len(overload._schema.arguments)

    def kernel(*args: Any) -> Any:
        # exported graphs have PyTorch's operators
        if getattr(_inside, "direct", False) or torch.compiler.is_compiling():
            return overload._op_dk(composite, *args)
        # PyTorch leaves out what has its default value
        return accelerated(*args, *[None] * (count - len(args)))

    return kernel


def _set_originals(originals: Any) -> None:
    for module in (gradient, operators):
        module.__dict__["ORIGINALS"] = originals


def override() -> None:
    """Let the operators of PyTorch ask fastrnn, whoever calls them."""
    global _library
    if _library is not None:
        return
    make: Any = torch.library.Library
    _library = make("aten", "IMPL")
    _set_originals(_Originals())
    for name in operators.FUNCTIONS:
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            if overload in ("default", "input", "data"):
                for key in _KEYS:
                    _library.impl(f"{name}.{overload}".removesuffix(".default"),
                                  _kernel(name, getattr(packet, overload)), key)


def restore() -> None:
    """Undo `override`."""
    global _library
    if _library is not None:
        library, _library = _library, None
        library._destroy()
        _set_originals(_own)
