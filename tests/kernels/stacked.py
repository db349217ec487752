"""Stacks of packed layers for the tests of streams."""

import calls
import numpy as np

from fastrnn._kernels.packed import Packed
from fastrnn._kernels.stream import Stream
from fastrnn.layers.packs import pair

RNG = np.random.default_rng(0)


def draw(*shape, dtype=np.float32):
    return (RNG.standard_normal(shape) / 2).astype(dtype)


def group(cell, I, H, layers=1, *, half=False, dtype=np.float32, seed=0):
    """Return the calls and the packs of a stack of equal cells."""
    made = [calls.make(cell, 1, 1, H if k else I, H, dtype=dtype, seed=seed + k)
            for k in range(layers)]
    packs = []
    for call in made:
        weights, words = call.weights[0], None
        if half:
            (w_ih, ih), (w_hh, hh) = map(pair, weights[:2])
            weights, words = (w_ih, w_hh, *weights[2:]), (ih, hh)
            call.weights = (weights,)
        packs.append(Packed(call.kind, weights, words))
    return made, packs


def flat(state):
    return [a.tobytes() for part in (state if isinstance(state, tuple) else (state,))
            for a in (part if isinstance(part, tuple) else (part,))]


def make(cell, B, source="dense", *, dtype=np.float32, half=False, head=True, layers=2, V=11):
    """Return a stream of a stack of two groups, and what draws x of a shape."""
    I, H = 7, 21
    _, first = group(cell, I, H, layers, half=half, dtype=dtype)
    _, second = group("lstm", H, 9, half=half, dtype=dtype, seed=5)
    rng = np.random.default_rng(3)
    options = {"head": (rng.standard_normal((5, 9)).astype(dtype), None)} if head else {}
    if source == "embedding":
        options["embedding"] = rng.standard_normal((V, I)).astype(dtype)
    elif source == "one_hot":
        options["one_hot"] = True

    def x_of(*shape):
        if source == "dense":
            return draw(*shape, I, dtype=dtype)
        return RNG.integers(0, I if source == "one_hot" else V, shape)

    return Stream([first, second], B, dtype, nested=True, name="S", **options), x_of
