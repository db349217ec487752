"""fastrnn itself."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np

import fastrnn
from bench.cases import Arrays, Case
from bench.peers import Way, packing

CAN = {"lengths", "resets", "callers", "block"}
_CELLS = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU}


def version() -> str:
    """Return the version and the instruction set."""
    config = fastrnn.show_config("dicts")
    return f"{fastrnn.__version__} ({config['instruction set']})"


def setup(threads: int) -> None:
    """Set the thread count."""
    fastrnn.set_num_threads(threads)


def load(case: Case, a: Arrays) -> list[Way]:
    """Return the ways to run the case."""
    if case.kind == "lm":
        from bench import lm

        return [lm.way("model", case, lm.fastrnn_step(case))]
    make = _CELLS.get(case.cell)
    if make is None:
        make = partial(fastrnn.RNN, nonlinearity=case.cell.partition("_")[2])
    layer = make(case.I, case.H, case.L, bias=case.bias, bidirectional=case.D == 2,
                 dtype=case.dtype)
    layer.load_state_dict(a.params)
    if case.kind == "stream":
        return [stream(case, a, layer.eval(case.weights))]
    if case.kind == "callers":
        return [_callers(case, a, layer.eval(case.weights))]
    if case.kind == "block":
        return [_block(case, a, layer.eval(case.weights))]
    if case.kind == "infer":
        layer.eval(case.weights)
    ways = [infer(a, layer) if case.kind == "infer" else train(a, layer)]
    if case.lengths == "random" and a.reset is None:
        ways.append(_packed(case, a, layer))
    return ways


def stream(case: Case, a: Arrays, layer: fastrnn.LSTM | fastrnn.Layer) -> Way:
    """Return the way of a step per call."""
    step = layer.stream(case.B)
    y = np.empty((case.B, case.H), case.dtype)

    def results() -> dict[str, np.ndarray]:
        step.state = a.state
        return {"y": np.stack([step(x, out=y).copy() for x in a.x])}

    return Way("stream", partial(step, a.x[0], out=y), results)


def _callers(case: Case, a: Arrays, layer: fastrnn.LSTM) -> Way:
    """Step some callers of a stream, other ones in each call."""
    step = layer.stream(case.B)
    x, y = a.x[0], np.empty((case.step, case.H), case.dtype)
    if case.step == case.B:
        call: Any = partial(step, x, out=y)
    else:
        draws = itertools.cycle(a.rows)
        call = lambda: step(x, rows=next(draws), out=y)  # noqa: E731

    def results() -> dict[str, np.ndarray]:
        step.state = a.state
        ys = [step(x, rows=rows) for x, rows in zip(a.x, a.rows, strict=False)]
        return {"y": np.stack(ys), **_named(step.state)}

    return Way("stream", call, results)


def _block(case: Case, a: Arrays, layer: fastrnn.LSTM) -> Way:
    step = layer.stream(case.B)
    y = np.empty((case.T, case.B, case.H), case.dtype)

    def results() -> dict[str, np.ndarray]:
        step.reset()
        return {"y": np.concatenate([step.block(a.x[:case.T]), step.block(a.x[case.T:])])}

    return Way("block", partial(step.block, a.x[:case.T], out=y), results)


def _extras(a: Arrays) -> dict[str, np.ndarray]:
    """Return the lengths and flags of a case as arguments."""
    given = {"lengths": a.lengths, "reset": a.reset}
    return {name: value for name, value in given.items() if value is not None}


def _named(state: Any) -> dict[str, np.ndarray]:
    return dict(zip(("hn", "cn"), state if isinstance(state, tuple) else (state,), strict=False))


def infer(a: Arrays, layer: fastrnn.LSTM | fastrnn.Layer) -> Way:
    """Return the way of a call without gradients."""
    call = partial(layer, a.x, a.state, **_extras(a))

    def results() -> dict[str, np.ndarray]:
        y, state = call()
        return {"y": y, **_named(state)}

    return Way("layer", call, results)


def _packed(case: Case, a: Arrays, layer: fastrnn.LSTM) -> Way:
    """Run rows that lie packed already: step by step, the longest first."""
    order, sizes, at = packing(a.lengths)
    data, dy = a.x[at], a.dy[at]
    state = tuple(np.ascontiguousarray(s[:, order]) for s in (a.h0, a.c0) if s is not None)
    train = case.kind == "train"
    run = partial(layer.forward_packed, data, sizes, state if case.has_c else state[0], grad=train)

    def back() -> tuple[np.ndarray, np.ndarray]:
        layer.zero_grad()
        y, _, p = run()
        dx, _ = p.backward(dy)
        return y, dx

    def spread(rows: np.ndarray) -> np.ndarray:
        padded = np.zeros((case.T, case.B, rows.shape[-1]), rows.dtype)
        padded[at] = rows
        return padded

    def results() -> dict[str, np.ndarray]:
        if train:
            y, dx = back()
            return {"y": spread(y), "dx": spread(dx),
                    **{name: g.copy() for name, g in layer.grads.items()}}
        y, state, _ = run()
        named = {name: np.empty_like(value) for name, value in _named(state).items()}
        for name, value in _named(state).items():
            named[name][:, order] = value
        return {"y": spread(y), **named}

    return Way("packed", back if train else run, results)


def train(a: Arrays, layer: fastrnn.LSTM | fastrnn.Layer) -> Way:
    """Return the way of a call and its gradients."""
    x, state, dy, extras = a.x, a.state, a.dy, _extras(a)

    def call() -> tuple[np.ndarray, np.ndarray]:
        layer.zero_grad()
        y, _ = layer(x, state, **extras)
        dx, _ = layer.backward(dy)
        return y, dx

    def results() -> dict[str, np.ndarray]:
        y, dx = call()
        return {"y": y, "dx": dx, **{name: g.copy() for name, g in layer.grads.items()}}

    return Way("layer", call, results)
