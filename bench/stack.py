"""Layers and directions around any single pass with the signatures of fastrnn.reference.

So the reference itself and the tuned NumPy peer run every case, and `expected` is what every peer
is held against.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench.cases import PARAMETERS, Arrays, Case, arrays
from bench.definitions import LAYERNORM

Named = dict[str, np.ndarray]


def _options(case: Case) -> tuple[str, dict[str, str]]:
    kind, _, nonlinearity = case.cell.partition("_")
    return kind, {"nonlinearity": nonlinearity} if nonlinearity else {}


def forward(module: Any, case: Case, a: Arrays, training: bool) -> tuple[Named, list[Any]]:
    """Run all layers; return {y, hn, cn of an LSTM}, and the tapes for backward."""
    kind, options = _options(case)
    run = getattr(module, f"{kind}_forward")
    x, hn, cn, tapes = a.x, [], [], []
    for layer in range(case.L):
        ys = []
        for reverse in range(case.D):
            k = layer * case.D + reverse
            state = a.h0[k] if a.c0 is None else (a.h0[k], a.c0[k])
            names = case.names(layer, reverse)
            params = [a.params.get(names.get(p, "")) for p in PARAMETERS]
            y, state, tape = run(x, state, *params, reverse=bool(reverse), training=training,
                                 **options)
            ys.append(y)
            tapes.append(tape)
            hn.append(state[0] if case.has_c else state)
            cn.append(state[1] if case.has_c else None)
        x = ys[0] if case.D == 1 else np.concatenate(ys, axis=-1)
    out = {"y": x, "hn": np.stack(hn)}
    return out | ({"cn": np.stack(cn)} if case.has_c else {}), tapes


def backward(module: Any, case: Case, dy: np.ndarray, tapes: list[Any]) -> Named:
    """Run all layers back; return the gradients by torch's names, and dx."""
    run = getattr(module, f"{_options(case)[0]}_backward")
    grads: Named = {}
    for layer in reversed(range(case.L)):
        dx = None
        for reverse in range(case.D):
            part = dy[..., reverse * case.H : (reverse + 1) * case.H]
            dx_part, _, named = run(np.ascontiguousarray(part), None,
                                    tapes[layer * case.D + reverse])
            for parameter, name in case.names(layer, reverse).items():
                grads[name] = named[parameter]
            dx = dx_part if dx is None else dx + dx_part
        dy = dx
    return grads | {"dx": dy}


def train(module: Any, case: Case, a: Arrays) -> Named:
    """Return y, dx and the gradients of the parameters."""
    out, tapes = forward(module, case, a, True)
    return {"y": out["y"]} | backward(module, case, a.dy, tapes)


def pieces(case: Case, a: Arrays) -> Iterator[tuple[int, slice, Arrays]]:
    """Yield each row alone, cut where its state begins afresh: its number, its steps, its numbers.

    No piece has less than a step, and nothing flows from one to the next.
    """
    for b in range(case.B):
        n = case.T if a.lengths is None else int(a.lengths[b])
        fresh = set() if a.reset is None else set(np.flatnonzero(a.reset[:n, b]))
        starts = sorted(fresh | {0})
        for t0, t1 in zip(starts, [*starts[1:], n], strict=True):
            row, keep = slice(b, b + 1), float(t0 not in fresh)
            yield b, slice(t0, t1), Arrays(
                a.x[t0:t1, row], a.h0[:, row] * keep,
                None if a.c0 is None else a.c0[:, row] * keep, a.dy[t0:t1, row], a.params)


def apart(module: Any, case: Case, a: Arrays) -> Named:
    """Run lengths and resets the plain way: piece by piece, each a sequence of its own."""
    training = case.kind == "train"
    out: Named = {"y": np.zeros_like(a.dy)}
    if training:
        out |= {"dx": np.zeros_like(a.x)} | {k: np.zeros_like(p) for k, p in a.params.items()}
    else:
        out |= {"hn": a.h0.copy()} | ({"cn": a.c0.copy()} if a.c0 is not None else {})
    for b, steps, piece in pieces(case, a):
        made = train(module, case, piece) if training else forward(module, case, piece, False)[0]
        for name, value in made.items():
            if name in ("y", "dx"):
                out[name][steps, b] = value[:, 0]
            elif name in ("hn", "cn"):
                out[name][:, b] = value[:, 0]
            else:
                out[name] += value
    return out


def call_on(module: Any, case: Case, a: Arrays) -> Named:
    """Step the callers of each draw; return their outputs (steps, n, H), and all states."""
    states = {"hn": a.h0.copy()} | ({"cn": a.c0.copy()} if a.c0 is not None else {})
    ys = []
    for x, rows in zip(a.x, a.rows, strict=False):  # more draws than steps are checked
        c0 = states["cn"][:, rows] if "cn" in states else None
        out, _ = forward(module, case,
                         Arrays(x[None], states["hn"][:, rows], c0, x, a.params), False)
        for name, state in states.items():
            state[:, rows] = out[name]
        ys.append(out["y"][0])
    return {"y": np.stack(ys), **states}


def expected(case: Case) -> Named:
    """Return what is right, from fastrnn.reference in float64."""
    from fastrnn import reference

    if case.kind == "lm":
        from bench import lm

        return {"losses": lm.expected(case)}
    if case.cell == LAYERNORM:
        from bench import layernorm

        return layernorm.expected(case)
    a = arrays(case).astype(np.float64)
    if case.kind == "callers":
        return call_on(reference, case, a)
    if a.lengths is not None or a.reset is not None:
        return apart(reference, case, a)
    if case.kind == "train":
        return train(reference, case, a)
    out, _ = forward(reference, case, a, False)
    return {"y": out["y"]} if case.kind in ("stream", "block") else out


class Stepper:
    """One step per call over a module like the reference: stacks of one direction."""

    def __init__(self, module: Any, case: Case, a: Arrays) -> None:
        self.module, self.case, self.a = module, case, a
        self.reset()

    def reset(self) -> None:
        """Go back to the initial state."""
        self.h, self.c = self.a.h0, self.a.c0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Advance: x (B, I) -> h (B, H)."""
        a = SimpleNamespace(x=x[None], h0=self.h, c0=self.c, params=self.a.params)
        out, _ = forward(self.module, self.case, a, False)  # type: ignore[arg-type]
        self.h, self.c = out["hn"], out.get("cn")
        return out["y"][0]
