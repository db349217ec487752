"""Every cell of the zoo: its program against plain NumPy, its gradients against differences.

A cell that is new in fastrnn.cells.zoo is covered without a line here. Letters: T steps, B batch,
I input, H hidden.
"""

import pickle

import numpy as np
import pytest

import fastrnn
from fastrnn import cells
from fastrnn._kernels.runtime import Workspace
from fastrnn.cells import evaluate
from fastrnn.cells.instance import Instance, Plan
from fastrnn.layers.programs import PROGRAMS, Drawn

T, B = 4, 3
# the first ones that a cell takes: some want I = H, or widths that go into blocks
SIZES = [(3, 5), (5, 5), (4, 6), (6, 6), (8, 8), (12, 12), (16, 16)]
MOST = 24  # numbers of an array that are held against differences

ZOO = cells.definitions()
per_cell = pytest.mark.parametrize("name", ZOO)


class Run:
    """A cell with random parameters, states, masks and gradients of its results."""

    def __init__(self, definition, bias=True, masked=True, seed=0):
        self.definition, self.bias = definition, bias
        self.rng = rng = np.random.default_rng(seed)
        self.instance = Instance(definition)
        self.I, self.H = self.sizes()
        self.kind = Plan(self.instance, self.I, self.H, bias)
        self.parameters = {name: self.parameter(name, shape) for name, shape in
                           self.instance.parameters(self.I, self.H, bias).items()}
        self.x = rng.standard_normal((T, B, self.I))
        sizes = {"I": self.I, "H": self.H}
        self.widths = self.instance.state_widths(sizes)
        self.state = [rng.normal(0, 0.5, (B, width)) for width in self.widths]
        self.dy = rng.standard_normal((T, B, self.instance.output_width(sizes)))
        self.dfinals = [rng.standard_normal((B, width)) for width in self.widths]
        self.masks, self.weight_masks = None, {}
        if masked:
            self.masks = [self.mask(mask) for mask in self.kind.masks]
            self.weight_masks = {i: self.zeros_or(2.0, array.shape) for i, (array, weight) in
                                 enumerate(zip(self.parameters.values(),
                                               definition.weights.values(), strict=False))
                                 if weight.kind == "dropconnect"}

    def sizes(self):
        for I, H in SIZES:
            try:
                self.instance.sizes(I, H)
            except ValueError:
                continue
            return I, H
        raise AssertionError(f"{self.definition.name} takes none of {SIZES}")

    def parameter(self, name, shape):
        """Return numbers that are none of those that a parameter may begin with, such as zeros."""
        if name in self.definition.vectors and not self.definition.vectors[name].bias:
            first = self.instance.draw(name, self.rng, self.I, self.H, np.float64)
            return first + self.rng.normal(0, 0.1, shape)  # it may have to be positive
        return self.rng.normal(0, 0.5, shape)

    def zeros_or(self, value, shape):
        return self.rng.choice([0.0, value], shape)

    def mask(self, mask):
        shape = (T * B if mask.each_step else B, mask.width)
        return self.zeros_or(2.0 if mask.kind == "dropout" else 1.0, shape)

    def expected(self):
        """Return what plain NumPy computes."""
        masks = {} if self.masks is None else {
            i: mask.reshape(T, B, -1) if len(mask) == T * B else mask
            for i, mask in enumerate(self.masks)}
        names = list(self.definition.weights)
        masks |= {names[i]: mask for i, mask in self.weight_masks.items()}
        return evaluate.forward(self.definition, self.x, self.state, self.parameters,
                                masks=masks, bias=self.bias, sizes={"H": self.H})

    def loss(self):
        y, finals = self.expected()
        return (y * self.dy).sum() + sum((a * d).sum() for a, d in
                                         zip(finals, self.dfinals, strict=True))

    def forward(self, keep):
        """Return y, the final states and the tape of the program."""
        y, finals = np.empty_like(self.dy), tuple(np.empty((1, B, w)) for w in self.widths)
        masks = None if self.masks is None else tuple(self.masks)
        drawn = Drawn(tuple(self.parameters.values()), masks, self.weight_masks)
        tape = PROGRAMS.forward(self.kind, self.x, None, (drawn,), (False,),
                                tuple(a[None] for a in self.state), y, finals, keep, Workspace())
        return y, [a[0] for a in finals], tape

    def backward(self, tape):
        """Return the gradients of x, the states and the parameters by name."""
        dx, dstate = np.empty_like(self.x), tuple(np.empty((1, B, w)) for w in self.widths)
        grads = {name: np.zeros_like(array) for name, array in self.parameters.items()}
        PROGRAMS.backward(tape, self.dy.copy(), tuple(d[None] for d in self.dfinals), dx, dstate,
                          (tuple(grads.values()),))
        names = [state.name for state in self.definition.states]
        return {"x": dx} | {f"state {name}": d[0] for name, d in
                            zip(names, dstate, strict=True)} | grads

    def arrays(self):
        """Return what the loss depends on, by the names of `backward`."""
        names = [state.name for state in self.definition.states]
        return {"x": self.x} | {f"state {name}": a for name, a in
                                zip(names, self.state, strict=True)} | self.parameters


def slope(function, array, place, step=1e-6):
    before = array[place]
    array[place] = before + step
    above = function()
    array[place] = before - step
    below = function()
    array[place] = before
    return (above - below) / (2 * step)


@pytest.mark.parametrize("masked", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@per_cell
def test_the_program_computes_the_equations(name, bias, masked):
    run = Run(ZOO[name], bias, masked)
    y, finals = run.expected()
    assert np.isfinite(y).all()
    assert y.std() > 1e-3
    for keep in (False, True):
        mine, mine_finals, _ = run.forward(keep)
        np.testing.assert_allclose(mine, y, 1e-12, 1e-12)
        for a, b in zip(mine_finals, finals, strict=True):
            np.testing.assert_allclose(a, b, 1e-12, 1e-12)


@pytest.mark.parametrize("masked", [True, False], ids=["training", "evaluation"])
@per_cell
def test_the_gradients_are_the_slopes(name, masked):
    run = Run(ZOO[name], masked=masked, seed=1)
    found = run.backward(run.forward(True)[2])
    for of, array in run.arrays().items():
        gradient = found[of]
        assert gradient.shape == array.shape
        if of in run.instance.fixed:
            assert not gradient.any(), of
            continue
        places = list(np.ndindex(array.shape))
        if len(places) > MOST:
            places = [places[i] for i in run.rng.choice(len(places), MOST, replace=False)]
        slopes = [slope(run.loss, array, place) for place in places]
        np.testing.assert_allclose([gradient[p] for p in places], slopes, 1e-6, 1e-7, err_msg=of)


@per_cell
def test_a_layer_of_it_begins_with_finite_results_and_gradients(name):
    run = Run(ZOO[name])
    layer = fastrnn.Layer(ZOO[name], run.I, run.H, bidirectional=True, seed=0)
    x = run.x.astype(np.float32)
    y, _ = layer(x)
    assert y.shape == (T, B, 2 * layer.output_size)
    assert np.isfinite(y).all()
    dx, _ = layer.backward(np.ones_like(y))
    assert np.isfinite(dx).all()
    assert np.isfinite(layer.flat_grads).all()
    fixed = {f"{weight}_l0{suffix}" for weight in run.instance.fixed for suffix in ("", "_reverse")}
    assert {of for of, grad in layer.grads.items() if not grad.any()} >= fixed
    assert layer.flat_grads.any() == (fixed != set(layer.grads))


@per_cell
def test_the_table_names_it(name):
    definition = getattr(cells, name)
    assert definition is ZOO[name]
    assert definition.name == name
    assert definition.paper
    assert name in dir(cells)
    again = pickle.loads(pickle.dumps(definition))
    assert (again.text, again.name, again.paper) == (definition.text, name, definition.paper)
