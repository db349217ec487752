"""PyTorch: torch.nn modules, inference under inference_mode, training through autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch

from bench.cases import Arrays, Case
from bench.peers import Way, stream_way

CAN = {"lengths", "callers", "training without dx"}
_MODULES = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
_ONE_STEP = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}


def version() -> str:
    """Return the version."""
    return torch.__version__


def setup(threads: int) -> None:
    """Set the thread counts, and full float32 products."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    torch.set_float32_matmul_precision("highest")


def around(case: Case) -> AbstractContextManager:
    """Return inference_mode but for training: under plain eval torch runs its training kernel."""
    return torch.inference_mode(case.kind in ("stream", "infer", "callers"))


def _tensors(a: Arrays) -> tuple[torch.Tensor, object]:
    h0 = torch.tensor(a.h0)
    return torch.tensor(a.x), h0 if a.c0 is None else (h0, torch.tensor(a.c0))


def _long(a: np.ndarray) -> torch.Tensor:
    return torch.tensor(a, dtype=torch.long)


def load(case: Case, a: Arrays, prepare: Callable[[Any], Any] = lambda module: module
         ) -> list[Way]:
    """Return the ways to run the case; `prepare` gets the module of whole sequences first."""
    if case.kind == "lm":
        from bench import lm

        return [lm.way(name, case, lm.torch_step(case, name == "fused"), _long)
                for name in ("fused", "foreach")]
    make = _MODULES.get(case.cell)
    if make is None:
        make = partial(torch.nn.RNN, nonlinearity=case.cell.partition("_")[2])
    module = make(case.I, case.H, case.L, bias=case.bias, bidirectional=case.D == 2,
                  dtype=getattr(torch, case.dtype))
    module.load_state_dict({name: torch.tensor(p) for name, p in a.params.items()})
    module = prepare(module)
    if case.kind == "stream":
        return [_module_stream(a, module.eval()), _cell_stream(case, a)]
    if case.kind == "callers":
        return [_callers(case, a)]
    if case.kind == "infer":
        module.eval()
    make_way = _infer if case.kind == "infer" else partial(_train, need_dx=case.dx)
    if a.lengths is None:
        return [make_way(a, module)]
    return [make_way(a, module, _Packed(a, whole)) for whole in (False, True)]


class Accelerated:
    """The same modules after `fastrnn.torch.accelerate`."""

    CAN = frozenset({"lengths", "training without dx"})
    version, setup, around = staticmethod(version), staticmethod(setup), staticmethod(around)

    @staticmethod
    def load(case: Case, a: Arrays) -> list[Way]:
        """Return the ways to run the case."""
        from fastrnn.torch import accelerate

        return load(case, a, accelerate)


def _module_stream(a: Arrays, module: torch.nn.Module) -> Way:
    x, initial = _tensors(a)
    state = initial

    def reset() -> None:
        nonlocal state
        state = initial

    def step(x: torch.Tensor) -> torch.Tensor:  # (1, B, I)
        nonlocal state
        y, state = module(x, state)
        return y

    return stream_way("module", step, reset, x[:, None], lambda y: y[0].numpy())


def _cell_stream(case: Case, a: Arrays) -> Way:
    """nn.LSTMCell and its like, one per layer."""
    make = _ONE_STEP.get(case.cell)
    if make is None:
        make = partial(torch.nn.RNNCell, nonlinearity=case.cell.partition("_")[2])
    cells = []
    for layer in range(case.L):
        cell = make(case.width(layer), case.H, bias=case.bias, dtype=getattr(torch, case.dtype))
        cell.load_state_dict({parameter: torch.tensor(a.params[name])
                              for parameter, name in case.names(layer, 0).items()})
        cells.append(cell.eval())
    xs, initial = _tensors(a)
    states: list = []

    def reset() -> None:
        states[:] = list(zip(*initial, strict=True)) if case.has_c else list(initial)

    reset()

    def step(x: torch.Tensor) -> torch.Tensor:  # (B, I)
        for k, cell in enumerate(cells):
            states[k] = cell(x, states[k])
            x = states[k][0] if case.has_c else states[k]
        return x

    return stream_way("cell", step, reset, list(xs), lambda y: y.numpy())


def _callers(case: Case, a: Arrays) -> Way:
    """Gather the states of some callers, step a cell, and put them back."""
    cell = _ONE_STEP[case.cell](case.I, case.H, bias=case.bias)
    cell.load_state_dict({parameter: torch.tensor(a.params[name])
                          for parameter, name in case.names(0, 0).items()})
    xs, _ = _tensors(a)
    draws = torch.tensor(a.rows)
    every = case.step == case.B
    states: list[torch.Tensor] = []

    def reset() -> None:
        states[:] = [torch.tensor(s[0]) for s in (a.h0, a.c0) if s is not None]

    def step(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        old = states if every else [s[rows] for s in states]
        new = cell(x, tuple(old) if case.has_c else old[0])
        new = new if case.has_c else (new,)
        if every:
            states[:] = new
        else:
            for state, value in zip(states, new, strict=True):
                state[rows] = value
        return new[0]

    def results() -> dict[str, np.ndarray]:
        reset()
        ys = [step(x, rows).numpy() for x, rows in zip(xs, draws, strict=False)]
        named = zip(("hn", "cn"), states, strict=False)
        return {"y": np.stack(ys), **{name: s.numpy()[None].copy() for name, s in named}}

    reset()
    turn = itertools.cycle(draws)
    return Way("cell", lambda: step(xs[0], next(turn)), results)


class _Packed:
    """Around a module: rows packed once, beforehand, or (whole) in each call, and padded again."""

    def __init__(self, a: Arrays, whole: bool) -> None:
        self.lengths, self.whole = torch.tensor(a.lengths), whole
        self.name = "padded, packed, padded" if whole else "packed"

    def pack(self, x: torch.Tensor) -> torch.nn.utils.rnn.PackedSequence:
        return torch.nn.utils.rnn.pack_padded_sequence(x, self.lengths, enforce_sorted=False)

    def pad(self, y: torch.nn.utils.rnn.PackedSequence) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_packed_sequence(y)[0]


def _infer(a: Arrays, module: torch.nn.Module, packed: _Packed | None = None) -> Way:
    x, initial = _tensors(a)
    if packed is None:
        call = partial(module, x, initial)
    elif packed.whole:
        def call() -> tuple:
            y, state = module(packed.pack(x), initial)
            return packed.pad(y), state
    else:
        call = partial(module, packed.pack(x), initial)

    def results() -> dict[str, np.ndarray]:
        y, state = call()
        if packed is not None and not packed.whole:
            y = packed.pad(y)
        states = (state,) if a.c0 is None else state
        named = zip(("hn", "cn"), states, strict=False)
        return {"y": y.numpy(), **{name: s.numpy() for name, s in named}}

    return Way(packed.name if packed else "module", call, results)


def _train(a: Arrays, module: torch.nn.Module, packed: _Packed | None = None, *,
           need_dx: bool = True) -> Way:
    x, state = _tensors(a)
    dy = torch.tensor(a.dy)
    leaves = dict(module.named_parameters())
    wanted = x
    if packed is not None and not packed.whole:
        data, packed_dy = packed.pack(x), packed.pack(dy).data
        wanted = data.data
    if need_dx:
        leaves["dx"] = wanted.requires_grad_()

    def call() -> torch.Tensor:
        for leaf in leaves.values():
            leaf.grad = None
        if packed is None:
            y, _ = module(x, state)
        elif packed.whole:
            y = packed.pad(module(packed.pack(x), state)[0])
        else:
            y = module(data, state)[0]
            y.data.backward(packed_dy)
            return y
        y.backward(dy)  # the gradient of sum(y * dy)
        return y

    def results() -> dict[str, np.ndarray]:
        y = call()
        if packed is not None and not packed.whole:
            # the gradient of the packed rows, spread over x
            grads = {name: leaf.grad for name, leaf in leaves.items()}
            if need_dx:
                grads["dx"] = packed.pad(data._replace(data=grads["dx"]))
            named = {"y": packed.pad(y).detach(), **grads}
            return {name: value.numpy() for name, value in named.items()}
        y = y.detach().numpy()
        return {"y": y, **{name: leaf.grad.numpy() for name, leaf in leaves.items()}}

    return Way(packed.name if packed else "module", call, results)
