"""What training and looking at gradients cost beside the kernels: fastrnn against itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import fastrnn
from bench.lead import say
from fastrnn import SequenceModel, gradflow, optim
from fastrnn.layers.standard import LAYERS
from fastrnn.training import Windows

LOOP = 1.05  # times the bare steps, at most
FLOW = 3.0  # backward passes, at most
T, B, H, V = 64, 32, 128, 64
FLOWS = ((64, 32, 128, 128), (100, 32, 256, 256), (100, 32, 16, 16), (50, 8, 16, 16))  # T B I H


def run(threads: int, rounds: int, *, short: bool = False) -> list[dict[str, Any]]:
    """Measure and print; return one row a check."""
    print(f"\nthe loop and the gradient flow, {threads} thread(s)")
    before = fastrnn.get_num_threads()
    fastrnn.set_num_threads(threads)
    try:
        checks = [_loop(name, rounds, 2 if short else 60) for name in LAYERS]
        return checks + [_flow(name, shape, rounds) for name in LAYERS for shape in FLOWS]
    finally:
        fastrnn.set_num_threads(before)


def _alternating(one: Callable[[], Any], other: Callable[[], Any], rounds: int,
                 before: Callable[[], Any] | None = None) -> float:
    """Return the time of `one` over that of `other`: the median over pairs, after one of each."""
    ratios = []
    for _ in range(1 + rounds):
        if before is not None:
            before()
        spent = []
        for act in (one, other):
            start = time.perf_counter()
            act()
            spent.append(time.perf_counter() - start)
        ratios.append(spent[0] / spent[1])
    return statistics.median(ratios[1:])


def _loop(name: str, rounds: int, steps: int) -> dict[str, Any]:
    """Time fit against the calls that it makes, on batches that are there already."""
    model = SequenceModel(LAYERS[name](V, H, seed=0), V, vocab_size=V, seed=0)
    data = Windows(np.random.default_rng(0).integers(0, V, 20 * T * B + B), T, B)
    batches = [data(k) for k in range(data.count)]

    def bare() -> None:
        optimizer, state = optim.Adam(model, 1e-3), None
        for k in range(steps):
            batch = batches[k % len(batches)]
            model.zero_grad()
            p = model.loss(*batch.inputs, batch.targets, state)
            state = p.state
            p.backward()
            optimizer.step(1.0)

    ratio = _alternating(
        lambda: fastrnn.fit(model, data, optimizer=optim.Adam(model, 1e-3), steps=steps), bare,
        rounds)
    return say(f"{name} {T} {B} {V} {H}: fit over its bare steps", ratio, LOOP, False)


def _flow(name: str, shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Time the norms of all dL/dh(t), forward included, against one backward."""
    T, B, I, H = shape
    layer = LAYERS[name](I, H, seed=0)
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((T, B, n)).astype(np.float32) for n in (I, H))
    ratio = _alternating(
        lambda: gradflow.gradient_flow(layer, x, dy, parts=("norms",)),
        lambda: layer.backward(dy), 10 * rounds, before=lambda: layer(x))
    return say(f"{name} {' '.join(map(str, shape))}: backward passes that the norms take",
               ratio, FLOW, False)
