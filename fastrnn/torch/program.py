"""A whole program, accelerated: the functions that all modules of torch.nn call are exchanged."""

from __future__ import annotations

import torch
from torch import nn
from torch.jit import _builtins

from fastrnn.torch import scripted as overriding
from fastrnn.torch import traceable
from fastrnn.torch.operators import FUNCTIONS

__all__ = ["is_patched", "patch", "unpatch"]


def patch(scripted: bool = False) -> None:
    """Let fastrnn compute every recurrent module of this process.

    The functions of torch._VF that torch.nn.RNN, LSTM, GRU and the single cells call are
    exchanged. So modules that exist already and classes that are derived from them are included,
    and no class, module or file changes. A second call with the same argument does nothing.

    Parameters
    ----------
    scripted : bool
        Include what does not call torch._VF: models that torch.jit.script or torch.jit.trace has
        compiled, and callers in C++. They need the interpreter's lock at the start of a call. A
        call that goes to PyTorch takes about 5 microseconds longer then.

    See Also
    --------
    unpatch : Undo it.
    """
    for name, function in FUNCTIONS.items():
        # TorchScript looks functions up by identity
        _builtins._register_builtin(function, f"aten::{name}")
        setattr(torch._VF, name, function)
    traceable.permit(nn.RNNBase)
    if scripted:
        overriding.override()


def unpatch() -> None:
    """Undo `patch`."""
    for name in FUNCTIONS:
        vars(torch._VF).pop(name, None)
    traceable.forbid(nn.RNNBase)
    overriding.restore()


def is_patched() -> bool:
    """Return whether `patch` is in force."""
    return all(vars(torch._VF).get(name) is function for name, function in FUNCTIONS.items())
