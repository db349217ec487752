"""Stacks of packed layers for the tests of streams."""

import calls
import numpy as np

from fastrnn._kernels.packed import Packed
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
