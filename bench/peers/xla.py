"""JAX: one jitted function per case, lax.scan over time, jax.vjp for training.

The input is projected before the scan by one product, as flax's optimised cells do; the weights are
kept transposed. Unrolled by 1 and by 4: the faster counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.cases import PARAMETERS, Arrays, Case
from bench.peers import UnsupportedError, Way, stream_way

UNROLLS = (1, 4)
COMPILES = True  # on the first call


def version() -> str:
    """Return the version."""
    return jax.__version__


def setup(threads: int) -> None:
    """Allow float64; the environment has set the threads."""
    jax.config.update("jax_enable_x64", True)


def _step(cell: str, H: int) -> Callable[[Any, Any, Any, Any], Any]:
    """Return step(state, a, W, b): a is the input's side of the gates; W (H, G*H), b (G*H,)."""
    kind, _, phi = cell.partition("_")
    sigmoid, act = jax.nn.sigmoid, {"relu": jax.nn.relu}.get(phi, jnp.tanh)

    def rnn(state: Any, a: Any, W: Any, b: Any) -> Any:
        return (act(a + state[0] @ W + b),)

    def lstm(state: Any, a: Any, W: Any, b: Any) -> Any:
        i, f, g, o = jnp.split(a + state[0] @ W + b, 4, axis=-1)
        c = sigmoid(f) * state[1] + sigmoid(i) * jnp.tanh(g)
        return sigmoid(o) * jnp.tanh(c), c

    def gru(state: Any, a: Any, W: Any, b: Any) -> Any:
        m = state[0] @ W + b
        r, z = jnp.split(sigmoid(a[:, : 2 * H] + m[:, : 2 * H]), 2, axis=-1)
        n = jnp.tanh(a[:, 2 * H :] + r * m[:, 2 * H :])
        return (n + z * (state[0] - n),)

    return {"rnn": rnn, "lstm": lstm, "gru": gru}[kind]


def _forward(case: Case, unroll: int, params: Any, x: Any, states: Any) -> Any:
    """Map x (T, B, I), states (h,) or (h, c) of (L*D, B, H) to y (T, B, D*H), last states."""
    step = _step(case.cell, case.H)
    last = []
    for layer in range(case.L):
        ys = []
        for reverse in range(case.D):
            k = layer * case.D + reverse
            W_ih, W_hh, *biases = params[k]
            b_ih, b_hh = biases or (jnp.zeros((), x.dtype),) * 2
            a = x @ W_ih + b_ih  # (T, B, G*H)
            if case.cell != "gru":
                a, b_hh = a + b_hh, jnp.zeros((), x.dtype)

            def walk(state: Any, a_t: Any, W: Any = W_hh, b: Any = b_hh) -> Any:
                state = step(state, a_t, W, b)
                return state, state[0]

            state, y = jax.lax.scan(walk, tuple(s[k] for s in states), a, reverse=bool(reverse),
                                    unroll=unroll)
            ys.append(y)
            last.append(state)
        x = ys[0] if case.D == 1 else jnp.concatenate(ys, axis=-1)
    return x, tuple(jnp.stack(parts) for parts in zip(*last, strict=True))


def load(case: Case, a: Arrays) -> list[Way]:
    """Return the ways to run the case."""
    if case.kind == "lm":
        raise UnsupportedError("no language model here")
    params = [
        [jnp.asarray(a.params[name].T) for name in case.names(layer, reverse).values()]
        for layer in range(case.L) for reverse in range(case.D)
    ]
    states = tuple(jnp.asarray(s) for s in (a.h0, a.c0) if s is not None)
    if case.kind == "stream":
        return [_stream(case, a, params, states)]
    make = _infer if case.kind == "infer" else _train
    x = jnp.asarray(a.x)
    return [make(case, a, params, x, states, unroll) for unroll in UNROLLS if unroll <= case.T]


def _infer(case: Case, a: Arrays, params: Any, x: Any, states: Any, unroll: int) -> Way:
    run = jax.jit(partial(_forward, case, unroll))

    def call() -> Any:
        return jax.block_until_ready(run(params, x, states))

    def results() -> dict[str, np.ndarray]:
        y, last = call()
        return {"y": np.array(y)} | dict(zip(("hn", "cn"), map(np.array, last), strict=False))

    return Way(f"unroll {unroll}", call, results)


def _train(case: Case, a: Arrays, params: Any, x: Any, states: Any, unroll: int) -> Way:
    @jax.jit
    def run(params: Any, x: Any, states: Any, dy: Any) -> Any:
        y, back = jax.vjp(lambda p, x: _forward(case, unroll, p, x, states)[0], params, x)
        return y, back(dy)

    dy = jnp.asarray(a.dy)

    def call() -> Any:
        return jax.block_until_ready(run(params, x, states, dy))

    def results() -> dict[str, np.ndarray]:
        y, (grads, dx) = call()
        named = {}
        for layer in range(case.L):
            for reverse in range(case.D):
                names = case.names(layer, reverse)
                for p, g in zip((p for p in PARAMETERS if p in names),
                                grads[layer * case.D + reverse], strict=True):
                    named[names[p]] = np.array(g).T
        return {"y": np.array(y), "dx": np.array(dx), **named}

    return Way(f"unroll {unroll}", call, results)


def _stream(case: Case, a: Arrays, params: Any, initial: Any) -> Way:
    @jax.jit
    def run(params: Any, x: Any, states: Any) -> Any:
        y, states = _forward(case, 1, params, x[None], states)
        return y[0], states

    states = initial

    def reset() -> None:
        nonlocal states
        states = initial

    def step(x: Any) -> Any:  # (B, I)
        nonlocal states
        y, states = run(params, x, states)
        return jax.block_until_ready(y)

    return stream_way("jit", step, reset, [jnp.asarray(x) for x in a.x], np.array)
