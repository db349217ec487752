"""A cell from equations that differs from RNN, LSTM and GRU in all that layers may not assume.

Three states of three widths, the output narrower than H, no gates. Letters: I input, H hidden,
O = H - 1 features of h.
"""

import numpy as np

import fastrnn

KEEP, SHARE, M = 0.75, 0.25, 2
THREE = fastrnn.cell("""
    size M = 2
    size O = H
    constant keep = 0.75
    c = keep * c + tanh(W x + R h)
    n[M] = n / 2 + N x
    h[O] = tanh(P c + b) + sum(n) / 4
""", name="three")


class ThreeLayer(fastrnn.Layer):
    """A layer of this cell."""

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
                 dropout=0.0, bidirectional=False, *, dtype=np.float64, seed=None, cell=THREE,
                 **options):
        options.setdefault("O", hidden_size - 1)
        super().__init__(cell, input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, dtype=dtype, seed=seed, **options)


CELL = ThreeLayer(2, 5).cell  # of five units


def step(weights, x, h, c, n):
    """Return the values (h, c, n) after a step, and what their derivatives need."""
    W, R, N, P, b = weights
    u = np.tanh(x @ W.T + h @ R.T)
    c = KEEP * c + u
    n = n / 2 + x @ N.T
    z = np.tanh(c @ P.T + (0 if b is None else b))
    return (z + SHARE * n.sum(-1, keepdims=True), c, n), (u, z)
