"""Layers of a cell that is no row of the table: states of several widths, another engine.

The cell of three.py stands for all of them. Letters: T steps, B batch, I input, H hidden, L layers,
D directions, O features of one direction's output.
"""

import copy
import pickle

import numpy as np
import pytest
import three
from three import CELL, ThreeLayer

import fastrnn

T, B, I, H = 4, 3, 2, 5
WIDTHS = (H - 1, H, three.M)

per_kind = pytest.mark.parametrize(("L", "D"), [(1, 1), (2, 1), (2, 2)])


def layer_of(L=1, D=1, **options):
    return ThreeLayer(I, H, L, bidirectional=D == 2, seed=0, **options)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def state_of(layer, seed=1):
    return tuple(draw(*shape, seed=seed + i) for i, shape in enumerate(layer.state_shapes(B)))


def slope(function, array, place, step=1e-6):
    """Return the derivative of a function of nothing with respect to one number of an array."""
    before = array[place]
    array[place] = before + step
    above = function()
    array[place] = before - step
    below = function()
    array[place] = before
    return (above - below) / (2 * step)


def check_slopes(function, pairs):
    """Hold gradients against differences; pairs of (array, gradient)."""
    rng = np.random.default_rng(0)
    for array, gradient in pairs:
        assert array.shape == gradient.shape
        for _ in range(3):
            place = tuple(rng.integers(n) for n in array.shape)
            assert gradient[place] == pytest.approx(slope(function, array, place), abs=1e-7)


# ------------------------------------------------------------------------------------------- shapes


@per_kind
def test_sizes_and_names(L, D):
    layer = layer_of(L, D)
    assert layer.state_widths == WIDTHS
    assert (layer.output_size, layer.width) == (H - 1, D * (H - 1))
    assert layer.has_c is False
    assert layer.state_shapes(7) == [(L * D, 7, width) for width in WIDTHS]
    expected = {f"{name}_l{number}{suffix}": shape
                for number in range(L) for suffix in ("", "_reverse")[:D]
                for name, shape in CELL.parameters(I if number == 0 else layer.width, H,
                                                   True).items()}
    assert {name: a.shape for name, a in layer.parameters().items()} == expected
    y, state = layer(draw(T, B, I))
    assert y.shape == (T, B, layer.width)
    assert [a.shape for a in state] == layer.state_shapes(B)


def test_stacked_directions_are_the_steps_of_the_cell():
    layer = layer_of(2, 2)
    x, initial = draw(T, B, I), state_of(layer)
    y, final = layer(x, initial)
    for number in range(2):
        outputs = []
        for d, suffix in enumerate(("", "_reverse")):
            weights = [layer.parameters()[f"{name}_l{number}{suffix}"] for name in "WRNPb"]
            row, h = 2 * number + d, []
            state = tuple(a[row] for a in initial)
            for at in x[:: 1 - 2 * d]:
                state, _ = three.step(weights, at, *state)
                h.append(state[0])
            outputs.append(np.array(h)[:: 1 - 2 * d])
            for a, s in zip(final, state, strict=True):
                assert np.allclose(a[row], s, rtol=0, atol=1e-14)
        x = np.concatenate(outputs, -1)
    assert np.allclose(y, x, rtol=0, atol=1e-14)


def test_one_sequence_and_the_batch_first():
    layer, first = layer_of(2), layer_of(2, batch_first=True)
    x, initial = draw(T, 1, I), tuple(a[:, :1] for a in state_of(layer_of(2)))
    y, final, p = layer.forward(x, initial)
    dx, dinitial = p.backward(y, final)
    one, ends, p = layer.forward(x[:, 0], tuple(a[:, 0] for a in initial))
    assert np.array_equal(one, y[:, 0])
    dx_one, dinitial_one = p.backward(one, ends)
    assert np.array_equal(dx_one, dx[:, 0])
    for a, b in ((final, ends), (dinitial, dinitial_one)):
        assert [s.shape for s in b] == [(2, width) for width in WIDTHS]
        assert all(np.array_equal(s[:, 0], t) for s, t in zip(a, b, strict=True))
    turned, ends = first(x.swapaxes(0, 1), initial)
    assert np.array_equal(turned, y.swapaxes(0, 1))
    assert all(np.array_equal(s, t) for s, t in zip(final, ends, strict=True))


# ---------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@per_kind
def test_gradients_are_those_of_differences(L, D, bias):
    layer = layer_of(L, D, bias=bias)
    x, initial = draw(T, B, I), state_of(layer)
    dy, dfinal = draw(T, B, layer.width, seed=5), state_of(layer, seed=6)

    def loss():
        y, final = layer(x, initial)
        return (y * dy).sum() + sum((a * d).sum() for a, d in zip(final, dfinal, strict=True))

    _, _, p = layer.forward(x, initial)
    again = p.backward(dy, dfinal, retain=True, grads=layer.new_grads())
    dx, dinitial, recorded = p.backward(dy, dfinal, record=CELL.recordable)
    assert np.array_equal(again[0], dx)
    check_slopes(loss, [(x, dx), *zip(initial, dinitial, strict=True),
                        *((param, layer.grads[name])
                          for name, param in layer.parameters().items())])
    assert [list(of) for of in recorded] == [list(CELL.recordable)] * L
    for of in recorded:
        assert of["dn"].shape == (T, B, D, three.M)
        assert of["dh"].shape == of["h"].shape == (T, B, D, H - 1)


def test_a_gradient_of_one_state_alone():
    layer = layer_of()
    x, dn = draw(T, B, I), draw(1, B, three.M)
    layer(x)
    dx, dinitial = layer.backward(None, (None, None, dn))
    assert np.allclose(dinitial[2], dn / 2**T)
    assert not dinitial[0].any()
    assert not dinitial[1].any()
    assert dx.any()


# --------------------------------------------------------------------------------- modes and copies


def test_evaluation_computes_with_what_the_layer_packs():
    layer = layer_of(2, 2)
    x = draw(T, B, I)
    expected, _ = layer(x)
    layer.eval()
    assert np.array_equal(layer(x)[0], expected)
    layer.train()
    layer.W_l1_reverse[...] = 0
    layer.eval()
    got = layer(x)[0]
    assert np.array_equal(got[..., : H - 1], expected[..., : H - 1])
    assert not np.array_equal(got, expected)


@pytest.mark.parametrize("copied", [
    copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"])
def test_copies(copied):
    layer = layer_of(2, 2)
    twin = copied(layer)
    assert twin.cell == CELL
    x = draw(T, B, I)
    assert np.array_equal(twin(x)[0], layer(x)[0])
    twin.W_l0[...] = 0
    assert layer.W_l0.any()


def test_a_layer_alone_has_the_cell_and_the_engine():
    one = layer_of(2, 2).alone(7)
    assert isinstance(one, ThreeLayer)
    assert (one.cell, one.input_size, one.num_layers, one.directions) == (CELL, 7, 1, 1)
    assert not one.flat.any()


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(("state", "said"), [
    (np.zeros((1, B, H)), r"state is ndarray of 1, expected a tuple \(h, c, n\)"),
    ((None, None), r"state is tuple of 2, expected a tuple \(h, c, n\)"),
    ((None, None, np.zeros((1, B, H))), r"state\[2\] has shape \(1, 3, 5\), expected \(1, 3, 2\)"),
    ((np.zeros((1, B, H)), None, None), r"state\[0\] has shape \(1, 3, 5\), expected \(1, 3, 4\)"),
    (3, r"state is 3, expected a tuple \(h, c, n\)"),
])
def test_states_that_do_not_fit(state, said):
    layer = layer_of()
    with pytest.raises((TypeError, ValueError), match=f"^ThreeLayer: {said}$"):
        layer(draw(T, B, I), state)
    y, _, p = layer.forward(draw(T, B, I))
    with pytest.raises((TypeError, ValueError), match=f"d{said}"):
        p.backward(y, state)
    p.backward(y)


@pytest.mark.parametrize("record", [("gates",), ("dc", "m"), ("h0",)])
def test_what_cannot_be_recorded(record):
    _, _, p = layer_of().forward(draw(T, B, I))
    with pytest.raises(ValueError, match=r"expected names out of \['dh', 'dc', 'x', 'h', 'dn', 'c', 'n'\]"):
        p.backward(record=record)


def test_names_of_a_state_and_of_its_gradient():
    layer = fastrnn.Layer(fastrnn.cell("s = tanh(W x + U s)"), I, H)
    with pytest.raises(ValueError, match=r"s0 has shape \(1, 1\)"):
        layer(np.zeros((T, B, I), np.float32), np.zeros((1, 1), np.float32))


def test_a_pair_of_other_states():
    layer = fastrnn.Layer(fastrnn.cell("s = s / 2 + W x\nh = tanh(U h) + s"), I, H)
    with pytest.raises(TypeError, match=r"state is list of 1, expected a pair \(h, s\)"):
        layer(np.zeros((T, B, I), np.float32), [None])


def test_parameters_are_set_by_their_names():
    layer = layer_of()
    version = layer.version
    layer.W_l0 = np.ones((H, I))
    assert (layer.parameters()["W_l0"] == 1).all()
    assert layer.version == version + 1
    with pytest.raises(AttributeError, match=r"no parameter 'W_l1', it has \['W_l0', 'R_l0'"):
        layer.W_l1 = np.ones((H, I))
