"""Layers that are programs, for the tests of streams: cells from equations, packed, and called."""

import numpy as np

from fastrnn._kernels.packed_program import Compiled, PackedProgram
from fastrnn._kernels.program import forward
from fastrnn._kernels.runtime import Workspace
from fastrnn.cells.definition import cell
from fastrnn.cells.instance import Instance, Plan

CELLS = {
    "lstm": """
        i, f, g, o = W x + U h + b
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
    """,
    # one state, sums over the units, a product with what a phase makes
    "ligru": """
        a, z = W x + U h + b
        h = sigmoid(z) * h + (1 - sigmoid(z)) * relu(norm(a))
    """,
    # three states of two widths
    "three": """
        size P = 5
        i, f, g, o = W x + U h + b
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        n = sigmoid(f) * n + sigmoid(i)
        h[P] = V (sigmoid(o) * c / (1 + abs(n)))
    """,
    # x itself is read, and is not projected; no matrix at all
    "own": """
        learned p = 0.5
        learned q = 0.25
        h = tanh(p * h + q * x)
    """,
    # x itself is read, and projected
    "highway": """
        a, f = W x + b
        c = sigmoid(f) * c + (1 - sigmoid(f)) * tanh(a)
        h = x + tanh(c)
    """,
    # the output is no state, but made by operations, a product, a product with the states before
    "gated": """
        output y
        a, o = W x + U c + b
        c = 0.5 * c + 0.5 * tanh(a)
        y = sigmoid(o) * c
    """,
    "readout": """
        size P = 3
        output y
        s = tanh(W x + U s + b)
        y[P] = V s + b_y
    """,
    "before": """
        output y
        y = V s + R x
        s = tanh(W x + U s + b)
    """,
    # masks have their means
    "masked": """
        m = step_mask(0.3)
        k = sequence_mask(0.25)
        c = k * c + (1 - k) * tanh(W x + U h + b)
        h = m * h + (1 - m) * dropout(0.5) * c
    """,
}
SQUARE = ("own", "highway")  # I = H


class Made:
    """A layer that is a program: its kind, its parameters, and what a sequence gives."""

    def __init__(self, name, I, H, dtype, seed):
        rng = np.random.default_rng(seed)
        self.program = Plan(Instance(cell(CELLS[name], name=f"{name} program")), I, H, True).program
        self.kind = Compiled(self.program, None)
        self.dtype = np.dtype(dtype)
        shapes = [(blocks * width, K) for _, blocks, width, K in self.program.weights]
        shapes += [(size,) for size in self.program.vector_sizes]
        self.parameters = tuple((rng.standard_normal(shape) / 3).astype(dtype) for shape in shapes)
        self.widths = [width for _, width in self.program.states]

    def packed(self):
        return PackedProgram(self.kind, self.dtype, self.parameters)

    def call(self, x, index=None, states=None):
        """Return y (T, B, O) and the final states of a sequence, without a tape."""
        T, B = x.shape[:2] if index is None else index.shape
        y = np.empty((T, B, self.program.output_width), self.dtype)
        final = tuple(np.empty((1, B, width), self.dtype) for width in self.widths)
        forward(self.kind, x, index, ((self.packed(), None),), (False,), states, y, final, False,
                Workspace())
        return y, final


def stack(name, I, H, layers=1, *, dtype=np.float32, seed=0):
    """Return layers of one group."""
    made = [Made(name, I, H, dtype, seed)]
    for k in range(1, layers):
        made.append(Made(name, made[0].program.output_width, H, dtype, seed + k))
    return made


def packs(made):
    return [layer.packed() for layer in made]


def sequence_of(made, x, states=None):
    """Walk all steps layer by layer; return y of the last layer and the states of the group."""
    ends = []
    for k, layer in enumerate(made):
        own = None
        if states is not None:
            parts = states if isinstance(states, tuple) else (states,)
            own = tuple(part[k:k + 1].copy() for part in parts)
        x, final = layer.call(x, None, own)
        ends.append(final)
    parts = tuple(np.concatenate(each) for each in zip(*ends, strict=True))
    return x, parts[0] if len(parts) == 1 else parts
