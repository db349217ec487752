"""JAX: the LayerNorm LSTM of bench/layernorm.py, one jitted function with lax.scan over time.

As in peers/xla.py, one product takes the inputs of all steps, the weights are kept transposed, and
the scan is unrolled by 1 and by 4: the faster counts. Letters: T steps, B batch, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.cases import Arrays, Case
from bench.definitions import LAYERNORM
from bench.layernorm import EPS
from bench.peers import UnsupportedError, Way, xla

version, setup = xla.version, xla.setup
COMPILES = xla.COMPILES


def _norm(a: Any) -> Any:
    return jax.nn.standardize(a, axis=-1, epsilon=EPS)


def _forward(unroll: int, p: dict[str, Any], x: Any, state: Any) -> Any:
    """Map x (T, B, I) and the state (h, c) to y (T, B, H) and the last state."""

    def gates(product: Any) -> Any:
        return _norm(product.reshape(*product.shape[:-1], 4, -1))

    def step(state: Any, a: Any) -> Any:
        h, c = state
        z = a + p["gain_hh"] * gates(h @ p["weight_hh"])
        i, f, g, o = (z[:, k] for k in range(4))
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(p["gain_c"] * _norm(c) + p["shift_c"])
        return (h, c), h

    a = p["gain_ih"] * gates(x @ p["weight_ih"]) + p["shift"]  # (T, B, 4, H)
    state, y = jax.lax.scan(step, state, a, unroll=unroll)
    return y, state


def _turned(params: Any) -> dict[str, Any]:
    """Transpose the weights, there or back."""
    return {name: p.T if name.startswith("weight") else p for name, p in params.items()}


def load(case: Case, a: Arrays) -> list[Way]:
    """Return the ways to run the case."""
    if case.cell != LAYERNORM or case.kind not in ("infer", "train"):
        raise UnsupportedError("no scan for it here")
    assert a.c0 is not None
    params = {name: jnp.asarray(p) for name, p in _turned(a.params).items()}
    given = params, jnp.asarray(a.x), (jnp.asarray(a.h0[0]), jnp.asarray(a.c0[0]))
    make: Callable[..., Way] = _infer if case.kind == "infer" else _train
    return [make(given, a, unroll) for unroll in xla.UNROLLS]


def _infer(given: Any, a: Arrays, unroll: int) -> Way:
    run = jax.jit(partial(_forward, unroll))

    def call() -> Any:
        return jax.block_until_ready(run(*given))

    def results() -> dict[str, np.ndarray]:
        y, (h, c) = call()
        return {"y": np.array(y), "hn": np.array(h)[None], "cn": np.array(c)[None]}

    return Way(f"unroll {unroll}", call, results)


def _train(given: Any, a: Arrays, unroll: int) -> Way:
    @jax.jit
    def run(params: Any, x: Any, state: Any, dy: Any) -> Any:
        y, back = jax.vjp(lambda p, x: _forward(unroll, p, x, state)[0], params, x)
        return y, back(dy)

    dy = jnp.asarray(a.dy)

    def call() -> Any:
        return jax.block_until_ready(run(*given, dy))

    def results() -> dict[str, np.ndarray]:
        y, (grads, dx) = call()
        named = {name: np.ascontiguousarray(g) for name, g in _turned(grads).items()}
        return {"y": np.array(y), "dx": np.array(dx), **named}

    return Way(f"unroll {unroll}", call, results)
