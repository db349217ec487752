"""Cells from equations that tests share.

`MANY` has three states of three widths and everything that a definition may declare: a further
size, constants, masks of steps, sequences and weights, a fixed weight and a weight that is another
matrix than its parameter. `PLAIN` is the same without masks, whose output is no state's width H.

Letters: I input, H hidden, P a further size.
"""

import numpy as np

import fastrnn

I, H, P = 3, 4, 2

TEXT = """
    size P = H // 2
    constant rate = 0.3
    state s[P]
    learned p = 0.5
    weight A = antisymmetric(0.1)
    fixed R = sparse(0.8, 0.9)
    {connections}
    f, c = W x + U h + b
    r = tanh(R r + V x + p * h){step}
    s = 0.5 * s + Q r{sequence}
    h = sigmoid(f) * h + (1 - sigmoid(f)) * tanh(c) + O s + 0.1 * A h
"""
MANY = fastrnn.cell(TEXT.format(
    connections="weight U = dropconnect(rate)", step=" * dropout(rate)",
    sequence=" * sequence_dropout(rate)"), name="Many", paper="Nobody 2024")
PLAIN = fastrnn.cell(TEXT.format(
    connections="constant unused = 1", step=" * rate", sequence=" * unused"), name="Plain")
LSTM = fastrnn.cell("""
    i, f, g, o = W x + U h + b
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(c)
""", name="LSTM of equations")
PROJECTED = fastrnn.cell("""
    size P = 2
    i, f, g, o = W x + U h + b
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h[P] = O (sigmoid(o) * tanh(c))
""", name="Projected")
WIDTHS = (H, H, P)  # of the states h, r, s


def layer_of(cell=MANY, inputs=I, hidden=H, *, seed=0, dtype=np.float64, **options):
    return fastrnn.Layer(cell, inputs, hidden, seed=seed, dtype=dtype, **options)


def draw(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def check_slopes(function, pairs, count=3, step=1e-6):
    """Hold gradients against differences of a function of nothing; pairs of (array, gradient)."""
    rng = np.random.default_rng(0)
    for array, gradient in pairs:
        assert array.shape == gradient.shape
        for _ in range(count):
            place = tuple(rng.integers(n) for n in array.shape)
            before, values = array[place], []
            for change in (step, -step):
                array[place] = before + change
                values.append(function())
            array[place] = before
            expected = (values[0] - values[1]) / (2 * step)
            assert abs(gradient[place] - expected) <= 1e-7 + 1e-6 * abs(expected), (
                gradient[place], expected)


class same_masks:  # noqa: N801, used as a function
    """While it is entered, and again each time, the layers of a target draw the same masks."""

    def __init__(self, target):
        self.target, self.state = target, target.dropout_state

    def __enter__(self):
        self.target.dropout_state = self.state

    def __exit__(self, *error):
        pass


def learned(part):
    """Return (parameter, gradient) of all that is not fixed."""
    fixed = {name for prefix, of in part.parts().items() for name in (
        f"{prefix}.{own}" if prefix else own for own in of.fixed_parameters)}
    return [(a, part.grads[name]) for name, a in part.parameters().items() if name not in fixed]
