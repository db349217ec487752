"""A cell of the zoo against a loop in torch that says the paper's equations once more.

Letters: T steps, B batch, I input, H hidden.
"""

import numpy as np
import pytest

from fastrnn import Layer

SIZES = [(3, 4, 2), (5, 36, 7)]  # I, H, B: less than a vector of units, and more than one of rows


def make(definition, I, H, *, seed=0, **options):
    """Return a layer whose parameters are all of moderate size, and none what it begins with."""
    layer = Layer(definition, I, H, dtype=np.float64, seed=seed, **options)
    rng = np.random.default_rng(seed)
    for array in layer.parameters().values():
        array += rng.normal(0, 0.3, array.shape)
    return layer


def drawn(layer, T, B, seed=1):
    """Return x, the initial states, and gradients of the outputs and of the final states."""
    rng = np.random.default_rng(seed)
    states = [rng.normal(0, 0.5, (B, width)) for width in layer.state_widths]
    final = [rng.normal(size=(B, width)) for width in layer.state_widths]
    return (rng.normal(size=(T, B, layer.input_size)), states,
            rng.normal(size=(T, B, layer.output_size)), final)


def run(layer, x, states, dy, final):
    """Return a layer's outputs, final states, gradients of x and states, and of parameters."""
    y, ends = layer(x, _as_state(states))
    layer.zero_grad()
    dx, starts = layer.backward(dy, _as_state(final))
    return y, _as_list(ends), dx, _as_list(starts), layer.grads


def _as_state(arrays):
    found = tuple(a[None] for a in arrays)
    return found if len(found) > 1 else found[0]


def _as_list(state):
    return [a[0] for a in (state if isinstance(state, tuple) else (state,))]


def unrolled(layer, step, x, states, dy, final):
    """Return what `run` returns, from torch: step(p, x, states) gives the output and new states."""
    torch = pytest.importorskip("torch")
    p = {name.removesuffix("_l0"): torch.tensor(array, requires_grad=True)
         for name, array in layer.parameters().items()}
    x, *starts = (torch.tensor(a, requires_grad=True) for a in (x, *states))
    outputs, now = [], tuple(starts)
    for t in range(len(x)):
        y, now = step(p, x[t], now)
        outputs.append(y)
    y = torch.stack(outputs)
    loss = (y * torch.tensor(dy)).sum()
    for end, d in zip(now, final, strict=True):
        loss = loss + (end * torch.tensor(d)).sum()
    loss.backward()
    grads = {f"{name}_l0": a.grad for name, a in p.items()}
    return y.detach(), [a.detach() for a in now], x.grad, [a.grad for a in starts], grads


def assert_same(layer, step, *, T=6, B=2, seed=1):
    """Check forward and gradients of a layer in float64 against a loop over a step in torch."""
    given = drawn(layer, T, B, seed)
    assert_equal(layer, run(layer, *given), unrolled(layer, step, *given))


def assert_equal(layer, ours, theirs):
    """Check what `run` returns against what `unrolled` returns."""
    def close(what, a, b):
        np.testing.assert_allclose(a, np.zeros_like(a) if b is None else b.numpy(), 1e-9, 1e-10,
                                   err_msg=what)

    names = layer.definition.states
    close("y", ours[0], theirs[0])
    close("dx", ours[2], theirs[2])
    for state, end, expected, start, gradient in zip(names, ours[1], theirs[1], ours[3], theirs[3],
                                                     strict=True):
        close(f"final {state.name}", end, expected)
        close(f"d initial {state.name}", start, gradient)
    assert ours[4].keys() == theirs[4].keys()
    for name, gradient in ours[4].items():
        if name.removesuffix("_l0") in layer.cell.fixed:
            assert not gradient.any()
        else:
            close(f"d {name}", gradient, theirs[4][name])
