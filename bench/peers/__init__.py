"""The peers. Each is one module that knows one library, and each is optional.

A peer module has

- ``version()``: what to print,
- ``setup(threads)``: called once, before anything is loaded; the environment is set already,
- ``load(case, arrays)``: a list of ways to run the case. A library that offers several (a module or
  a cell, unrolled or not) gives all: each is checked, and its fastest counts.
- ``around()``, optional: a context to run in,
- ``CAN``, optional: what it knows beside whole sequences of one length: "lengths", "resets",
  "callers", "block" and "training without dx" (see `Case.extras`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

# name on the command line: (module here, what it imports)
PEERS = {
    "fastrnn": ("ours", ("fastrnn",)),
    "before": ("ours", ("fastrnn",)),  # of another checkout: see --against
    "torch": ("pytorch", ("torch",)),
    "ort": ("ort", ("onnxruntime", "onnx")),
    "openvino": ("ov", ("openvino", "onnx")),
    "jax": ("xla", ("jax",)),
    "rtneural": ("rtneural", ()),
    "numpy": ("tuned", ("numpy",)),
    "reference": ("plain", ("fastrnn",)),
}
# Of the grid `cells`: the peer is an object of the module where a colon stands.
LOOPS = {
    "equations": ("equations", ("fastrnn",)),
    "loop": ("loops:loop", ("torch",)),
    "script": ("loops:script", ("torch",)),
    "step": ("loops:step", ("torch",)),  # torch.compile of a step
    "whole": ("loops:whole", ("torch",)),  # and of all steps
    "scan": ("scan", ("jax",)),
}
# Of the grid `modules`, beside torch.
BRIDGE = {"bridge": ("pytorch:Accelerated", ("torch", "fastrnn"))}


class Way(NamedTuple):
    """One way to run a case."""

    name: str
    call: Callable[[], Any]  # what is timed
    results: Callable[[], dict[str, np.ndarray]]  # from the start, outside of timing
    keep: Any = None  # buffers that a library knows by address only
    seconds: Callable[[int], float] | None = None  # of so many calls, by a library's own clock

    def elapsed(self, count: int) -> float:
        """Return the seconds that `count` calls take."""
        if self.seconds is not None:
            return self.seconds(count)
        start = time.perf_counter()
        for _ in itertools.repeat(None, count):
            self.call()
        return time.perf_counter() - start


class UnsupportedError(Exception):
    """The peer does not run this case; the text says why."""


def packing(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return the order of the rows, the longest first, how many each step has, and where they lie.

    The last is an index (step, row) of a padded (T, B, ...): the rows of each step in that order.
    """
    order = np.argsort(-lengths, kind="stable")
    live = np.arange(lengths.max())[:, None] < lengths[order]  # (T, B)
    steps, places = np.nonzero(live)
    return order, live.sum(1), (steps, order[places])


def stream_way(
    name: str, step: Callable[[Any], Any], reset: Callable[[], None], xs: Any,
    to_numpy: Callable[[Any], np.ndarray] = np.array,
) -> Way:
    """Return the way of a stream: step(x) takes x (B, I), keeps its state, returns h (B, H)."""

    def results() -> dict[str, np.ndarray]:
        reset()
        return {"y": np.stack([np.array(to_numpy(step(x))) for x in xs])}

    return Way(name, partial(step, xs[0]), results)
