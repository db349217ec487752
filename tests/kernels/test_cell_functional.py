"""functional.cell_forward and cell_backward: a cell from equations without a layer.

Letters: T steps, B batch, I input, H hidden, P a further size.
"""

import itertools

import numpy as np
import pytest

import fastrnn
from fastrnn import functional
from fastrnn.cells import evaluate

T, B, I, H, P = 5, 3, 2, 4, 3
CELL = fastrnn.cell("""
    size P = H
    constant rate = 0.25
    state s[P]
    weight U = dropconnect(rate)
    weight A = antisymmetric(0.1)
    fixed R = sparse(1, 0.9)
    f, c = W x + U h + b
    r = tanh(R r + V x) * dropout(rate)
    s = 0.5 * s + Q r * sequence_dropout(rate)
    h = sigmoid(f) * h + (1 - sigmoid(f)) * tanh(c) + O s + 0.1 * A h
""", name="Many")
STATES = (H, H, P)  # h, r, s


def draw(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def parameters(dtype=np.float64):
    layer = fastrnn.Layer(CELL, I, H, P=P, dtype=dtype, seed=0)
    return {name.removesuffix("_l0"): a.copy() for name, a in layer.parameters().items()}


def masks_of(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {0: (T, B, H), 1: (B, P), "U": (2 * H, H)}
    return {key: (rng.random(shape) < 0.75) / 0.75 for key, shape in shapes.items()}


def state_of():
    return tuple(draw(B, width, seed=i + 5) for i, width in enumerate(STATES))


def options_of(kind):
    reset = np.zeros((T, B), bool)
    reset[2, 1] = True
    return {"plain": {}, "lengths": {"lengths": [5, 0, 3]}, "reset": {"reset": reset},
            "initial": {"reset": reset, "reset_to": "initial"}}[kind]


@pytest.mark.parametrize("masked", [False, True])
def test_forward_is_that_of_the_plain_evaluation(masked):
    x, state, given = draw(T, B, I), state_of(), parameters()
    masks = masks_of() if masked else None
    expected = evaluate.forward(CELL, x, state, given, sizes={"P": P}, masks=masks)
    y, final, tape = functional.cell_forward(CELL, x, state, given, options={"P": P}, masks=masks,
                                             training=False)
    assert tape is None
    np.testing.assert_allclose(y, expected[0], rtol=1e-10, atol=1e-12)
    for got, own in zip(final, expected[1], strict=True):
        np.testing.assert_allclose(got, own, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["plain", "lengths", "reset", "initial"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_call_is_that_of_each_episode_alone(kind, reverse):
    x, state, given, masks = draw(T, B, I), state_of(), parameters(), masks_of()
    options = options_of(kind)
    y, final, _ = functional.cell_forward(CELL, x, state, given, options={"P": P}, masks=masks,
                                          reverse=reverse, **options)
    lengths, reset = options.get("lengths", [T] * B), options.get("reset", np.zeros((T, B), bool))
    for b, n in enumerate(lengths):
        borders = [0, *np.flatnonzero(reset[1:n, b]) + 1, n]
        episodes = list(itertools.pairwise(borders))
        first = episodes[-1 if reverse else 0]
        for start, stop in episodes:
            order = slice(start, stop)
            own = {0: masks[0][order, b : b + 1], 1: masks[1][b : b + 1], "U": masks["U"]}
            turn = slice(None, None, -1 if reverse else 1)
            own[0] = own[0][turn]
            begin = tuple(s[b : b + 1] for s in state)
            if (start, stop) != first and kind != "initial":
                begin = None
            expected, last = evaluate.forward(CELL, x[order, b : b + 1][turn], begin, given,
                                              sizes={"P": P}, masks=own)
            np.testing.assert_allclose(y[order, b : b + 1], expected[turn], rtol=1e-10, atol=1e-12)
            if stop == (n if not reverse else borders[1]):
                for got, one in zip(final, last, strict=True):
                    np.testing.assert_allclose(got[b], one[0], rtol=1e-10, atol=1e-12)
        assert not y[n:, b].any()


@pytest.mark.parametrize("kind", ["plain", "lengths", "reset", "initial"])
@pytest.mark.parametrize("embedded", [False, True])
def test_gradients_are_those_of_differences(kind, embedded):
    given, state, masks = parameters(), state_of(), masks_of()
    read = draw(7, I) if embedded else draw(T, B, I)
    symbols = np.random.default_rng(1).integers(7, size=(T, B))
    dy, dstate = draw(T, B, H, seed=2), tuple(draw(B, w, seed=3) for w in STATES)

    def run():
        options = {"embedding": read} if embedded else {}
        return functional.cell_forward(CELL, symbols if embedded else read, state, given,
                                       options={"P": P}, masks=masks, reverse=True,
                                       **options, **options_of(kind))

    def loss():
        y, final, _ = run()
        return (y * dy).sum() + sum((a * d).sum() for a, d in zip(final, dstate, strict=True))

    *_, tape = run()
    dx, dstate0, grads = functional.cell_backward(dy, dstate, tape)
    assert set(grads) == set(given) - {"R"}
    pairs = [(read, dx), *zip(state, dstate0, strict=True),
             *((given[name], grads[name]) for name in grads)]
    rng = np.random.default_rng(0)
    for array, gradient in pairs:
        for _ in range(3):
            place = tuple(rng.integers(n) for n in array.shape)
            before, values = array[place], []
            for change in (1e-6, -1e-6):
                array[place] = before + change
                values.append(loss())
            array[place] = before
            assert gradient[place] == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-7)


def test_a_layer_has_the_same_bits():
    layer = fastrnn.Layer(CELL, I, H, P=P, seed=0)
    given = {name.removesuffix("_l0"): a for name, a in layer.parameters().items()}
    x, dy = draw(T, B, I, dtype=np.float32), draw(T, B, H, dtype=np.float32)
    expected, _ = layer.eval()(x)
    y, _, tape = functional.cell_forward(CELL, x, None, given, options={"P": P})
    np.testing.assert_array_equal(y, expected)
    _, _, p = layer.forward(x)
    p.backward(dy)
    into = {name: np.ones_like(a) for name, a in given.items() if name != "R"}
    dx, _, grads = functional.cell_backward(dy, None, tape, need_dx=False, grads=into)
    assert dx is None
    assert grads is into
    for name, a in grads.items():
        np.testing.assert_allclose(a, 1 + layer.grads[f"{name}_l0"], rtol=1e-5, atol=1e-6)


def test_one_state_is_an_array_and_biases_may_be_missing():
    cell = fastrnn.cell("h = tanh(W x + U h + b)")
    given = {"W": draw(H, I), "U": draw(H, H)}
    h0 = draw(B, H)
    y, hn, tape = functional.cell_forward(cell, draw(T, B, I), h0, given)
    np.testing.assert_array_equal(y[-1], hn)
    dx, dh0, grads = functional.cell_backward(draw(T, B, H), None, tape)
    assert (dx.shape, dh0.shape, set(grads)) == ((T, B, I), (B, H), {"W", "U"})
    with pytest.raises(RuntimeError, match=r"^cell_backward: this tape has already served"):
        functional.cell_backward(None, None, tape)


def test_options_and_programs_that_are_kept():
    cell = fastrnn.cell("constant k = 0.5\nh = k * h + W x")
    x, given = draw(T, B, I), {"W": draw(H, I)}
    for k in (0.5, 0.25, 0.5):
        y, _, _ = functional.cell_forward(cell, x, None, given, options={"k": k})
        expected, _ = evaluate.forward(cell, x, None, given, constants={"k": k})
        np.testing.assert_allclose(y, expected, rtol=1e-12)
    leaky = fastrnn.cell("h = 0.5 * h + 0.5 * x")
    y, _, _ = functional.cell_forward(leaky, draw(T, B, I, dtype=np.float32), None, {},
                                      options={"H": I})
    assert y.shape == (T, B, I)


@pytest.mark.parametrize(("text", "state"), [
    ("h = 0.5 * h + sum(x)", draw(B, H)),
    ("size P = 2\nlearned p[P] = 1\ns[P] = s + p * sum(x)\nh = 0.5 * h + sum(s)",
     (draw(B, H), draw(B, 2)))])
def test_the_state_shows_the_hidden_size_where_no_parameter_does(text, state):
    cell, x = fastrnn.cell(text), draw(T, B, I)
    given = {name: np.full(2, 0.5) for name in cell.vectors}
    if not given:  # then the dtype is float32
        x, state = x.astype(np.float32), state.astype(np.float32)
    y, _, _ = functional.cell_forward(cell, x, state, given)
    expected, _ = evaluate.forward(cell, x, state if given else (state,), given)
    np.testing.assert_allclose(y, expected, rtol=1e-5 if not given else 1e-12, atol=1e-6)
    with pytest.raises(ValueError, match="cell_forward: no parameter shows H, expected it in opt"):
        functional.cell_forward(cell, x, None, given)


def test_a_mask_that_is_missing_is_its_mean_also_of_padded_sequences():
    x, given, masks, lengths = draw(T, B, I), parameters(), masks_of(), {"lengths": [5, 0, 3]}
    y, _, _ = functional.cell_forward(CELL, x, None, given, options={"P": P},
                                      masks={1: masks[1]}, **lengths)
    means = {0: np.ones_like(masks[0]), 1: masks[1]}
    expected, _, _ = functional.cell_forward(CELL, x, None, given, options={"P": P}, masks=means,
                                             **lengths)
    np.testing.assert_array_equal(y, expected)
    other, _, _ = functional.cell_forward(CELL, x, None, given, options={"P": P}, **lengths)
    assert (y != other).any()


@pytest.mark.parametrize(("change", "match"), [
    ({"definition": "h"}, "cell_forward: definition is of type str"),
    ({"parameters": [1]}, "parameters is of type list, expected a dict"),
    ({"parameters": {"W": draw(H, I)}}, "parameters lacks 'U'"),
    ({"parameters": {"Z": draw(H, I)}}, "parameters has 'Z', expected names out of"),
    ({"parameters": parameters() | {"b": draw(3)}}, r"parameters\['b'\] has shape \(3,\)"),
    ({"parameters": parameters(np.float32) | {"W": draw(2 * H, I)}}, "float64"),
    ({"parameters": parameters() | {"W": np.ones((2 * H, I), int)}},
     r"parameters\['W'\] is int64, expected an array of float32 or float64"),
    ({"parameters": parameters() | {"W": [[1.0]]}}, r"parameters\['W'\] is of type list"),
    ({"x": draw(T, I)}, r"x has shape \(5, 2\)"),
    ({"x": draw(T, B, 0)}, "x has 0 features"),
    ({"state": draw(B, H)}, r"expected a tuple \(h, r, s\)"),
    ({"options": {"Q": 3}}, "Many has no size or constant 'Q'"),
    ({"options": {"P": [3]}}, r"P is \[3\], expected a whole number"),
    ({"options": 3}, "options is of type int, expected a mapping"),
    ({"masks": {2: draw(B, P)}}, r"masks has 2, expected keys out of \[0, 1, 'U'\]"),
    ({"masks": {True: draw(B, P)}}, "masks has True"),
    ({"masks": {1: draw(B, H)}}, r"masks\[1\] has shape \(3, 4\), expected \(3, 3\)"),
    ({"masks": {"U": draw(B, H)}}, r"masks\['U'\] has shape"),
    ({"lengths": [T + 1] * B}, "lengths"),
])
def test_arguments_that_do_not_fit(change, match):
    given = {"definition": CELL, "x": draw(T, B, I), "state": None, "parameters": parameters(),
             "options": {"P": P}} | change
    with pytest.raises((TypeError, ValueError), match=match):
        functional.cell_forward(given.pop("definition"), given.pop("x"), given.pop("state"),
                                given.pop("parameters"), **given)


def test_backward_refuses_what_does_not_fit():
    *_, tape = functional.cell_forward(CELL, draw(T, B, I), None, parameters(), options={"P": P})
    with pytest.raises(TypeError, match="tape is None, expected one of cell_forward"):
        functional.cell_backward(None, None, None)
    with pytest.raises(ValueError, match="dy has shape"):
        functional.cell_backward(draw(T, B, 2), None, tape)
    with pytest.raises(ValueError, match=r"grads has keys \['W'\], expected"):
        functional.cell_backward(None, None, tape, grads={"W": draw(2 * H, I)})
    assert not tape.used
    assert tape.nbytes > 0
    assert tape.definition is CELL
    functional.cell_backward(None, None, tape)
    assert tape.used


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_of_wide_vectors_over_many_rows(isa, dtype):
    """Whole numbers, so that the sums are exact; more columns and more rows than one block has."""
    rows, width = 300, 600
    wide = fastrnn.cell("learned p = 1\nlearned q = 1\nh = p * x + q * h", name="Wide")
    rng = np.random.default_rng(0)
    x, dy, h = (rng.integers(-8, 9, (rows, width)).astype(dtype) for _ in range(3))
    given = {name: np.full(width, 2, dtype) for name in "pq"}
    _, _, tape = functional.cell_forward(wide, x[None], h, given)
    dx, dh, grads = functional.cell_backward(dy[None], None, tape)
    np.testing.assert_array_equal(dx[0], 2 * dy)
    np.testing.assert_array_equal(dh, 2 * dy)
    np.testing.assert_array_equal(grads["p"], (dy * x).sum(0))
    np.testing.assert_array_equal(grads["q"], (dy * h).sum(0))
