"""The calls whose instructions tools/counts.py counts.

`make` returns them: small, with sizes that are no multiples of a vector, and with fixed data.
Letters: T steps, B batch, I input, H hidden, V symbols.
"""

import numpy as np

import fastrnn
from fastrnn import LanguageModel, Layer, SequenceModel, cells, optim

T, B, I, H, V = 6, 5, 19, 44, 30
CELLS = {
    "RNN": fastrnn.RNN,
    "LSTM": fastrnn.LSTM,
    "GRU": fastrnn.GRU,
    "LayerNormLSTM": lambda *sizes, **options: Layer(cells.LayerNormLSTM, *sizes, **options),
}


def draw(*shape, dtype=np.float32):
    """Return normal numbers, the same for the same shape."""
    return np.random.default_rng(shape).standard_normal(shape).astype(dtype)


def evaluation(layer, *shape, mode="float32", **options):
    """Return a call of a layer in evaluation."""
    x = draw(*shape, dtype=layer.dtype)
    layer.eval(mode)
    return lambda: layer(x, **options)


def training(layer, *shape, **options):
    """Return forward and backward of a layer."""
    x, dy = draw(*shape, dtype=layer.dtype), draw(*shape[:2], layer.width, dtype=layer.dtype)

    def call():
        layer(x, **options)
        layer.backward(dy)

    return call


def packed(layer):
    """Return forward and backward of rows in the layout of PyTorch's packed sequences."""
    sizes = np.array([5, 5, 4, 2, 2, 1])
    x, dy = draw(sizes.sum(), I), draw(sizes.sum(), H)

    def call():
        _, _, p = layer.forward_packed(x, sizes)
        p.backward(dy)

    return call


def stream(layer, batch_size=1, rows=None):
    """Return one step of a stream."""
    step = layer.eval().stream(batch_size)
    x = draw(batch_size if rows is None else len(rows), I)
    return (lambda: step(x)) if rows is None else (lambda: step(x, rows=rows))


def block(layer):
    """Return several steps of a stream in one call."""
    step, x = layer.eval().stream(), draw(T, 1, I)
    return lambda: step.block(x)


def single(cell):
    """Return one step of a single LSTM cell, forward and backward."""
    x, dstate = draw(B, I), (draw(B, H), draw(B, H))

    def call():
        _, p = cell.forward(x)
        p.backward(dstate)

    return call


def loss(model, x, goals):
    """Return the loss of a model and its gradients."""
    return lambda: model.loss(x, goals).backward()


def update(make, **options):
    """Return one step of an optimiser, with gradients that stay as they are."""
    layer = fastrnn.GRU(I, H, seed=0)
    layer.flat_grads[:] = draw(len(layer.flat_grads))
    optimiser = make(layer, lr=1e-3)
    return lambda: optimiser.step(**options)


def make(only=""):
    """Return the calls by name, those whose name begins with `only`."""
    made = {}
    for name, cell in CELLS.items():
        made[f"{name}, evaluation"] = evaluation(cell(I, H, seed=0), T, B, I)
        made[f"{name}, training"] = training(cell(I, H, seed=0), T, B, I)
        made[f"{name}, a step of a stream"] = stream(cell(I, H, seed=0))
    lengths, rng = np.array([6, 1, 4, 4, 2]), np.random.default_rng(0)
    reset = rng.random((T, B)) < 0.2
    symbols, classes = rng.integers(0, V, (T, B)), rng.integers(0, 7, (T, B))
    made |= {
        "LSTM, T = 1, B = 1": evaluation(fastrnn.LSTM(I, H, seed=0), 1, 1, I),
        "GRU, T = 1, B = 1, training": training(fastrnn.GRU(I, H, seed=0), 1, 1, I),
        "LSTMCell, forward and backward": single(fastrnn.LSTMCell(I, H, seed=0)),
        "LSTM, lengths": training(fastrnn.LSTM(I, H, seed=0), T, B, I, lengths=lengths),
        "GRU, resets": training(fastrnn.GRU(I, H, seed=0), T, B, I, reset=reset),
        "GRU, packed rows": packed(fastrnn.GRU(I, H, seed=0)),
        "LSTM, projection": training(fastrnn.LSTM(I, H, proj_size=10, seed=0), T, B, I),
        "GRU, two layers, bidirectional": training(
            fastrnn.GRU(I, H, 2, bidirectional=True, seed=0), T, B, I),
        "LSTM, float64": training(fastrnn.LSTM(I, H, dtype=np.float64, seed=0), T, B, I),
        "GRU, float64, evaluation": evaluation(fastrnn.GRU(I, H, dtype=np.float64, seed=0),
                                               T, B, I),
        "LSTM, bfloat16": evaluation(fastrnn.LSTM(I, H, seed=0), T, B, I, mode="bfloat16"),
        "LSTM, 3 of 8 callers": stream(fastrnn.LSTM(I, H, seed=0), 8, np.array([6, 0, 3])),
        "GRU, steps of a stream": block(fastrnn.GRU(I, H, seed=0)),
        "softmax": loss(SequenceModel(fastrnn.RNN(I, 8, seed=0), 7, seed=0), draw(T, B, I),
                        classes),
        "mean squared error": loss(SequenceModel(fastrnn.RNN(I, 8, seed=0), 7, loss="mse", seed=0),
                                   draw(T, B, I), draw(T, B, 7)),
        "embedding": loss(LanguageModel(V, I, H, cell="gru", seed=0), symbols, symbols),
        "one-hot": loss(SequenceModel(fastrnn.LSTM(V, H, seed=0), V, vocab_size=V, one_hot=True,
                                      seed=0), symbols, symbols),
        "Adam": update(optim.Adam),
        "SGD, clipped": update(optim.SGD, clip=1.0),
    }
    return {name: call for name, call in made.items() if name.startswith(only)}
