"""Optimisers and gradients that several test files use."""

import numpy as np

import fastrnn
from fastrnn import optim
from fastrnn.layers.parameters import distinct

OPTIMIZERS = {
    "sgd": (optim.SGD, {"lr": 0.1}),
    "momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "rmsprop": (optim.RMSProp, {"lr": 0.01, "alpha": 0.9, "eps": 1e-6, "weight_decay": 0.01}),
    "rmsprop momentum": (optim.RMSProp, {"lr": 0.01, "momentum": 0.8}),
    "adam": (optim.Adam, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}),
    "adamw": (optim.AdamW, {"lr": 0.01}),
}


def layer_of(dtype=np.float64, H=7):
    return fastrnn.GRU(3, H, dtype=dtype, seed=0)


def some_grads(target, steps, seed=1):
    size = sum(part.flat.size for part in distinct(target))
    return np.random.default_rng(seed).standard_normal((steps, size))


def set_grads(target, g):
    """Give every distinct part its piece of g."""
    start = 0
    for part in distinct(target):
        part.flat_grads[:] = g[start : start + part.flat.size]
        start += part.flat.size


def values(target):
    return np.concatenate([part.flat for part in distinct(target)])


def take_steps(optimizer, grads, **clipping):
    """Take a step along each row of grads."""
    for g in grads:
        set_grads(optimizer.target, g)
        optimizer.step(**clipping)


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name
