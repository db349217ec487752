"""The main job: a training step of a byte-level language model, in NumPy, PyTorch and fastrnn.

Embedding of I = 64, one recurrent layer, a linear head; mean cross-entropy, global norm clipped to
1, Adam 2e-3; the state goes on to the next window, the gradient does not. All start from the same
parameters and read the same windows; their first losses are compared with those of a float64 step
over fastrnn.reference. (Parameters after Adam would be a poor test: where a gradient is nearly
zero, its first steps are a sign.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.cases import PARAMETERS, VOCABULARY, Case, shared
from bench.peers import Way

if TYPE_CHECKING:
    import torch

RATE, BETAS, EPS, CLIP = 2e-3, (0.9, 0.999), 1e-8, 1.0
CHECKED = 4  # steps whose losses are compared
WINDOWS = 8
Build = Callable[[], Callable[[Any, Any], Any]]  # -> step(symbols, targets) -> loss


def parameters(case: Case) -> dict[str, np.ndarray]:
    """Return the initial parameters; the names are those of our LanguageModel."""
    rng = np.random.default_rng(1)
    drawn = shared.make_case(case.cell, 1, 1, case.I, case.H, case.dtype)
    bound = case.H**-0.5
    return {
        "embedding.weight": rng.standard_normal((VOCABULARY, case.I)).astype(case.dtype),
        **{f"layers.0.{p}_l0": getattr(drawn, p) for p in PARAMETERS},
        "head.weight": rng.uniform(-bound, bound, (VOCABULARY, case.H)).astype(case.dtype),
        "head.bias": rng.uniform(-bound, bound, VOCABULARY).astype(case.dtype),
    }


def windows(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (symbols, targets), int32 (T, B) each, of the windows that are read in turn."""
    rng = np.random.default_rng(2)
    text = rng.integers(VOCABULARY, size=(WINDOWS * case.T + 1, case.B), dtype=np.int32)
    return [(text[k : k + case.T], text[k + 1 : k + 1 + case.T])
            for k in range(0, WINDOWS * case.T, case.T)]


def way(name: str, case: Case, build: Build, convert: Callable[[np.ndarray], Any] = np.array
        ) -> Way:
    """Return the way of a training step that `build` makes."""
    data = [(convert(symbols), convert(targets)) for symbols, targets in windows(case)]
    step, turn = build(), itertools.cycle(data)

    def call() -> Any:
        return step(*next(turn))

    def results() -> dict[str, np.ndarray]:
        fresh = build()
        return {"losses": np.array([float(fresh(*data[k])) for k in range(CHECKED)], case.dtype)}

    return Way(name, call, results)


# ---------------------------------------------------------------------------------------- fastrnn


def fastrnn_step(case: Case) -> Build:
    """Return the builder of fastrnn's step: the body of the loop of fastrnn.fit."""
    from fastrnn import LanguageModel
    from fastrnn.optim import Adam

    def build() -> Callable[[Any, Any], Any]:
        model = LanguageModel(VOCABULARY, case.I, case.H, cell=case.cell.partition("_")[0],
                              dtype=case.dtype)
        model.load_state_dict(parameters(case))
        optimizer = Adam(model, RATE, BETAS, EPS)
        state = None

        def step(symbols: np.ndarray, targets: np.ndarray) -> float:
            nonlocal state
            model.zero_grad()
            p = model.loss(symbols, targets, state)
            state = p.state
            p.backward()
            optimizer.step(CLIP)
            return p.value

        return step

    return build


# ------------------------------------------------------------------------------------------ torch


def torch_step(case: Case, fused: bool) -> Build:
    """Return the builder of PyTorch's step, with its fused Adam or its plain one."""
    import torch
    from torch.nn.functional import cross_entropy

    make = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN}[case.cell]

    def build() -> Callable[[Any, Any], Any]:
        model = torch.nn.ModuleDict({
            "embedding": torch.nn.Embedding(VOCABULARY, case.I),
            "layers": torch.nn.ModuleList([make(case.I, case.H)]),
            "head": torch.nn.Linear(case.H, VOCABULARY),
        }).to(getattr(torch, case.dtype))
        model.load_state_dict({k: torch.tensor(p) for k, p in parameters(case).items()})
        weights = list(model.parameters())
        optimizer = torch.optim.Adam(weights, RATE, BETAS, EPS, fused=fused)
        state: Any = None

        def step(symbols: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            nonlocal state
            optimizer.zero_grad()
            y, state = model["layers"][0](model["embedding"](symbols), state)
            loss = cross_entropy(model["head"](y).view(-1, VOCABULARY), targets.view(-1))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            optimizer.step()
            state = tuple(s.detach() for s in state) if case.has_c else state.detach()
            return loss.detach()

        return step

    return build


# -------------------------------------------------------------------------------------- reference


def expected(case: Case) -> np.ndarray:
    """Return the first losses in float64, from fastrnn.reference."""
    from fastrnn import reference

    params = {k: p.astype(np.float64) for k, p in parameters(case).items()}
    means = {k: (np.zeros_like(p), np.zeros_like(p)) for k, p in params.items()}
    state, losses = None, []
    for k, (symbols, targets) in enumerate(windows(case)[:CHECKED], 1):
        loss, grads, state = _loss(reference, case, params, symbols, targets, state)
        losses.append(loss)
        norm = np.sqrt(sum(np.vdot(g, g) for g in grads.values()))
        for name, p in params.items():
            g = grads[name] * min(1.0, CLIP / norm)
            m, v = means[name]
            m += (1 - BETAS[0]) * (g - m)
            v += (1 - BETAS[1]) * (g * g - v)
            p -= RATE * m / (1 - BETAS[0]**k) / (np.sqrt(v / (1 - BETAS[1]**k)) + EPS)
    return np.array(losses)


def _loss(
    reference: Any, case: Case, params: dict[str, np.ndarray], symbols: np.ndarray,
    targets: np.ndarray, state: Any,
) -> tuple[float, dict[str, np.ndarray], Any]:
    kind = case.cell.partition("_")[0]
    cell = [params[f"layers.0.{p}_l0"] for p in PARAMETERS]
    y, state, tape = getattr(reference, f"{kind}_forward")(
        symbols, state, *cell, embedding=params["embedding.weight"])
    logits = y @ params["head.weight"].T + params["head.bias"]  # (T, B, V)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    chosen = np.take_along_axis(p, targets[..., None], axis=-1)
    dlogits = p.copy()
    np.put_along_axis(dlogits, targets[..., None], chosen - 1, axis=-1)
    dlogits /= targets.size
    dx, _, grads = getattr(reference, f"{kind}_backward")(
        dlogits @ params["head.weight"], None, tape)
    named = {f"layers.0.{name}_l0": g for name, g in grads.items()}
    named |= {"embedding.weight": dx, "head.bias": dlogits.sum(axis=(0, 1)),
              "head.weight": np.tensordot(dlogits, y, axes=((0, 1), (0, 1)))}
    return float(-np.log(chosen).mean()), named, state
