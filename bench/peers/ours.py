"""fastrnn itself."""

from __future__ import annotations

from functools import partial

import numpy as np

import fastrnn
from bench.cases import Arrays, Case
from bench.peers import Way

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
        return [_stream(case, a, layer.eval(case.weights))]
    if case.kind == "infer":
        return [_infer(a, layer.eval(case.weights))]
    return [_train(a, layer)]


def _stream(case: Case, a: Arrays, layer: fastrnn.LSTM) -> Way:
    stream = layer.stream(case.B)
    y = np.empty((case.B, case.H), case.dtype)

    def results() -> dict[str, np.ndarray]:
        stream.state = a.state
        return {"y": np.stack([stream(x, out=y).copy() for x in a.x])}

    return Way("stream", partial(stream, a.x[0], out=y), results)


def _infer(a: Arrays, layer: fastrnn.LSTM) -> Way:
    call = partial(layer, a.x, a.state)

    def results() -> dict[str, np.ndarray]:
        y, state = call()
        if a.c0 is None:
            return {"y": y, "hn": state}
        return {"y": y, "hn": state[0], "cn": state[1]}

    return Way("layer", call, results)


def _train(a: Arrays, layer: fastrnn.LSTM) -> Way:
    x, state, dy = a.x, a.state, a.dy

    def call() -> tuple[np.ndarray, np.ndarray]:
        layer.zero_grad()
        y, _ = layer(x, state)
        dx, _ = layer.backward(dy)
        return y, dx

    def results() -> dict[str, np.ndarray]:
        y, dx = call()
        return {"y": y, "dx": dx, **{name: g.copy() for name, g in layer.grads.items()}}

    return Way("layer", call, results)
