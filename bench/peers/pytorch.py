"""PyTorch: torch.nn modules, inference under inference_mode, training through autograd."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch

from bench.cases import Arrays, Case
from bench.peers import Way, stream_way

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
    return torch.inference_mode(case.kind in ("stream", "infer"))


def _tensors(a: Arrays) -> tuple[torch.Tensor, object]:
    h0 = torch.tensor(a.h0)
    return torch.tensor(a.x), h0 if a.c0 is None else (h0, torch.tensor(a.c0))


def _long(a: np.ndarray) -> torch.Tensor:
    return torch.tensor(a, dtype=torch.long)


def load(case: Case, a: Arrays) -> list[Way]:
    """Return the ways to run the case."""
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
    if case.kind == "stream":
        return [_module_stream(a, module.eval()), _cell_stream(case, a)]
    if case.kind == "infer":
        return [_infer(a, module.eval())]
    return [_train(a, module)]


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


def _infer(a: Arrays, module: torch.nn.Module) -> Way:
    call = partial(module, *_tensors(a))

    def results() -> dict[str, np.ndarray]:
        y, state = call()
        states = (state,) if a.c0 is None else state
        named = zip(("hn", "cn"), states, strict=False)
        return {"y": y.numpy(), **{name: s.numpy() for name, s in named}}

    return Way("module", call, results)


def _train(a: Arrays, module: torch.nn.Module) -> Way:
    x, state = _tensors(a)
    x.requires_grad_()
    dy = torch.tensor(a.dy)
    leaves = {"dx": x, **dict(module.named_parameters())}

    def call() -> torch.Tensor:
        for leaf in leaves.values():
            leaf.grad = None
        y, _ = module(x, state)
        y.backward(dy)  # the gradient of sum(y * dy)
        return y

    def results() -> dict[str, np.ndarray]:
        y = call().detach().numpy()
        return {"y": y, **{name: leaf.grad.numpy() for name, leaf in leaves.items()}}

    return Way("module", call, results)
