#!/usr/bin/env python3
"""Print a hash of what the kernels compute, for each instruction set of this CPU and each dtype.

Two builds of one source compute the same bits if they print the same lines. NumPy is used for the
inputs only.
"""

import hashlib

import numpy as np

import fastrnn
from fastrnn import SequenceModel, optim
from fastrnn._kernels import runtime

HIDDEN = (1, 3, 8, 17, 64, 130)
LAYERS = {"RNN": fastrnn.RNN, "LSTM": fastrnn.LSTM, "GRU": fastrnn.GRU}
OPTIMISERS = {"SGD": lambda model: optim.SGD(model, lr=0.1, momentum=0.9),
              "RMSProp": lambda model: optim.RMSProp(model, lr=0.01),
              "Adam": lambda model: optim.Adam(model, lr=0.01),
              "AdamW": lambda model: optim.AdamW(model, lr=0.01)}


def arrays(found):
    """Yield the arrays in nested tuples, lists and dicts."""
    if isinstance(found, dict):
        found = tuple(found.values())
    if isinstance(found, (tuple, list)):
        for item in found:
            yield from arrays(item)
    elif found is not None:
        yield np.ascontiguousarray(found)


def digest(*found):
    """Return the hash of all arrays."""
    total = hashlib.sha256()
    for array in arrays(found):
        total.update(array.tobytes())
    return total.hexdigest()[:16]


def layers(make, dtype):
    """Yield what a kind of layer computes: training, evaluation, bfloat16, lengths, streams."""
    rng = np.random.default_rng(0)
    for H in HIDDEN:
        layer = make(5, H, num_layers=2, bidirectional=H % 2 == 1, dtype=dtype, seed=H)
        for B in (1, 3, 9):
            x = (3 * rng.standard_normal((6, B, 5))).astype(dtype)
            layer.train()
            layer.zero_grad()
            y, state = layer(x)
            yield y, state, layer.backward(np.cos(y).round(3)), layer.grads
            yield layer(x, lengths=np.arange(B) % 6 + 1)
            for mode in ("float32", "bfloat16")[: 1 + (dtype == np.float32)]:
                layer.eval(mode) if mode == "bfloat16" else layer.eval()
                yield layer(x)
            layer.eval()
            if not layer.bidirectional:
                step = layer.stream(B)
                yield [step(row).copy() for row in x]
                yield layer.stream(B).block(x)


def programs(dtype):
    """Yield what layers of all cells of the zoo compute, in training and in evaluation."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((5, 3, 20)).astype(dtype)
    for definition in fastrnn.cells.definitions().values():
        layer = fastrnn.Layer(definition, 20, 20, dtype=dtype, seed=0)
        y, state = layer(x)
        yield y, state, layer.backward(np.cos(y).round(3)), layer.grads
        layer.eval()
        yield layer(x)


def models(dtype):
    """Yield losses, gradients and parameters after steps of each optimiser."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 7, 5)).astype(dtype)
    for loss, goals in (("mse", x[:, :, :3]), ("softmax", rng.integers(0, 3, (4, 7)))):
        for make in OPTIMISERS.values():
            model = SequenceModel(fastrnn.GRU(5, 19, dtype=dtype, seed=0), output_size=3, loss=loss,
                                  seed=0)
            optimiser = make(model)
            for _ in range(3):
                optimiser.zero_grad()
                found = model.loss(x, goals)
                found.backward()
                optimiser.step(clip=1.0)
            yield np.float64(found.value), [part.flat for part in model.parts().values()]


def main():
    """Print the lines."""
    fastrnn.set_num_threads(1)
    for isa, supported in runtime.isa_names().items():
        if not supported:
            continue
        runtime.set_isa(isa)
        for dtype in (np.float32, np.float64):
            for name, make in LAYERS.items():
                print(isa, np.dtype(dtype).name, name, digest(list(layers(make, dtype))))
            for made in (programs, models):
                print(isa, np.dtype(dtype).name, made.__name__, digest(list(made(dtype))))


if __name__ == "__main__":
    main()
