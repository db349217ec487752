"""PyTorch without a module for the cell: the LayerNorm LSTM of bench/layernorm.py as a loop.

Written as its users write it for speed: the inputs of all steps meet their weights in one product,
a step's four gates are normalised by one call and, but for compilers, squashed by one. It runs as
it is (`loop`), as TorchScript (`script`), with the step compiled (`step`), and compiled as a whole
(`whole`): Inductor sees the loop unrolled.

Letters: T steps, B batch, I input, H hidden.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import layer_norm, linear

from bench.cases import Arrays, Case
from bench.definitions import LAYERNORM
from bench.peers import UnsupportedError, Way, pytorch

Tensor = torch.Tensor
Walk = Callable[..., tuple[Tensor, Tensor, Tensor]]


def _inputs(x: Tensor, weight_ih: Tensor, gain_ih: Tensor, shift: Tensor) -> Tensor:
    """Return what all steps take from x, (T, B, 4, H)."""
    a = linear(x, weight_ih).unflatten(-1, (4, -1))
    return torch.addcmul(shift, layer_norm(a, a.shape[-1:], eps=1e-5), gain_ih)


def _step(a: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor, gain_hh: Tensor, gain_c: Tensor,
          shift_c: Tensor) -> tuple[Tensor, Tensor]:
    u = linear(h, weight_hh).unflatten(-1, (4, -1))
    z = torch.addcmul(a, layer_norm(u, u.shape[-1:], eps=1e-5), gain_hh)
    i, f, _, o = torch.sigmoid(z).unbind(-2)
    c = torch.addcmul(f * c, i, torch.tanh(z[:, 2]))
    return o * torch.tanh(layer_norm(c, c.shape[-1:], gain_c, shift_c, 1e-5)), c


def _walk(x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, gain_ih: Tensor,
          gain_hh: Tensor, shift: Tensor, gain_c: Tensor, shift_c: Tensor
          ) -> tuple[Tensor, Tensor, Tensor]:
    ys = []
    for a in _inputs(x, weight_ih, gain_ih, shift).unbind(0):
        h, c = _step(a, h, c, weight_hh, gain_hh, gain_c, shift_c)
        ys.append(h)
    return torch.stack(ys), h, c


def _step_apart(a: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor, gain_hh: Tensor,
                gain_c: Tensor, shift_c: Tensor) -> tuple[Tensor, Tensor]:
    """Squash each gate by itself: compiled it is one loop all the same.

    Of `_step` Inductor 2.13 computes wrong gradients, as of two steps with 128 units.
    """
    u = linear(h, weight_hh).unflatten(-1, (4, -1))
    i, f, g, o = (a + layer_norm(u, u.shape[-1:], eps=1e-5) * gain_hh).unbind(-2)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(layer_norm(c, c.shape[-1:], gain_c, shift_c, 1e-5)), c


def _walker(step: Callable[..., tuple[Tensor, Tensor]]) -> Walk:
    """Return `_walk` with another step."""

    def walk(x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor,
             gain_ih: Tensor, gain_hh: Tensor, shift: Tensor, gain_c: Tensor, shift_c: Tensor
             ) -> tuple[Tensor, Tensor, Tensor]:
        ys = []
        for a in _inputs(x, weight_ih, gain_ih, shift).unbind(0):
            h, c = step(a, h, c, weight_hh, gain_hh, gain_c, shift_c)
            ys.append(h)
        return torch.stack(ys), h, c

    return walk


class _Peer:
    """One way to run the loop: see bench.peers."""

    version = staticmethod(pytorch.version)
    around = staticmethod(pytorch.around)

    def __init__(self, name: str, make: Callable[[], Walk], compiles: bool = False) -> None:
        self.name, self.make, self.compiles = name, make, compiles

    def setup(self, threads: int) -> None:
        """Set the thread counts, and let Inductor compile anew: the time of that is reported."""
        pytorch.setup(threads)
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

    def load(self, case: Case, a: Arrays) -> list[Way]:
        """Return the way to run the case."""
        if case.cell != LAYERNORM or case.kind not in ("infer", "train"):
            raise UnsupportedError("no loop for it here")
        if self.compiles and shutil.which("g++") is None:
            raise UnsupportedError("no g++")
        torch.compiler.reset()
        make = _train if case.kind == "train" else _infer
        return [make(self.name, self.make(), a)]


loop = _Peer("loop", lambda: _walk)
script = _Peer("TorchScript", lambda: torch.jit.script(_walk))
step = _Peer("compiled step", lambda: _walker(torch.compile(_step_apart, dynamic=False)), True)
whole = _Peer("compiled loop", lambda: torch.compile(_walker(_step_apart), dynamic=False), True)


def _tensors(a: Arrays) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the inputs, and the parameters."""
    assert a.c0 is not None
    inputs = {"x": a.x, "h": a.h0[0], "c": a.c0[0]}
    return ({name: torch.tensor(value) for name, value in inputs.items()},
            {name: torch.tensor(value) for name, value in a.params.items()})


def _infer(name: str, walk: Walk, a: Arrays) -> Way:
    inputs, params = _tensors(a)

    def call() -> tuple[Tensor, ...]:
        return walk(**inputs, **params)

    def results() -> dict[str, np.ndarray]:
        y, h, c = call()
        return {"y": y.numpy(), "hn": h[None].numpy(), "cn": c[None].numpy()}

    return Way(name, call, results)


def _train(name: str, walk: Walk, a: Arrays) -> Way:
    inputs, params = _tensors(a)
    dy = torch.tensor(a.dy)
    leaves = {"dx": inputs["x"], **params}
    for leaf in leaves.values():
        leaf.requires_grad_()

    def call() -> Tensor:
        for leaf in leaves.values():
            leaf.grad = None
        y, _, _ = walk(**inputs, **params)
        y.backward(dy)  # the gradient of sum(y * dy)
        return y

    def results() -> dict[str, np.ndarray]:
        y = call().detach().numpy()
        return {"y": y, **{name: leaf.grad.numpy() for name, leaf in leaves.items()}}

    return Way(name, call, results)
