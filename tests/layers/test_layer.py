"""Layer: a recurrent layer of a cell from equations, with several states of different widths.

Letters: T steps, B batch, I input, H hidden, L layers, D directions.
"""

import copy
import itertools
import pickle
import threading

import numpy as np
import pytest
from equations import LSTM as EQUATIONS
from equations import (
    MANY,
    PLAIN,
    PROJECTED,
    WIDTHS,
    H,
    I,
    P,
    check_slopes,
    draw,
    layer_of,
    learned,
    same_masks,
)

import fastrnn
from fastrnn import init
from fastrnn.cells import evaluate
from fastrnn.cells.reach import carried, recurrent_weights
from fastrnn.gradflow import gradient_flow

T, B = 6, 3
per_kind = pytest.mark.parametrize(("L", "D"), [(1, 1), (2, 1), (2, 2)])


def state_of(layer, seed=1, batch=B):
    return tuple(draw(*shape, seed=seed + i) for i, shape in enumerate(layer.state_shapes(batch)))


def flags():
    reset = np.zeros((T, B), bool)
    reset[2, 0] = reset[0, 1] = reset[5, 2] = True
    return reset


CALLS = {
    "plain": {}, "lengths": {"lengths": [T, 0, 3]}, "reset": {"reset": flags()},
    "initial": {"reset": flags(), "reset_to": "initial"},
    "both": {"lengths": [4, T, 2], "reset": flags()},
}


# ------------------------------------------------------------------------------------------ calls


@per_kind
def test_shapes(L, D):
    layer = layer_of(num_layers=L, bidirectional=D == 2)
    assert layer.state_widths == WIDTHS
    y, state = layer(draw(T, B, I))
    assert y.shape == (T, B, D * H)
    assert [a.shape for a in state] == [(L * D, B, width) for width in WIDTHS]
    dx, dstate = layer.backward(np.ones_like(y))
    assert dx.shape == (T, B, I)
    assert [a.shape for a in dstate] == [a.shape for a in state]
    assert repr(layer).startswith("Layer(Many, 3, 4, ")


@per_kind
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("cell", [MANY, PLAIN], ids=lambda cell: cell.name)
def test_gradients_are_those_of_differences(cell, call, L, D):
    layer = layer_of(cell, num_layers=L, bidirectional=D == 2, dropout=0.25 if L > 1 else 0)
    x, state, options = draw(T, B, I), state_of(layer), CALLS[call]
    dy, dstate = draw(T, B, layer.width, seed=7), state_of(layer, 8)
    masks = same_masks(layer)

    def loss():
        with masks:
            y, final, _ = layer.forward(x, state, **options)
        return (y * dy).sum() + sum((a * d).sum() for a, d in zip(final, dstate, strict=True))

    with masks:
        *_, p = layer.forward(x, state, **options)
    dx, dstate0 = p.backward(dy, dstate)
    check_slopes(loss, [(x, dx), *zip(state, dstate0, strict=True), *learned(layer)], count=2)


def test_evaluation_is_the_plain_evaluation():
    layer = layer_of(dtype=np.float64).eval()
    x, state = draw(T, B, I), state_of(layer)
    y, final = layer(x, state)
    params = {name.removesuffix("_l0"): a for name, a in layer.parameters().items()}
    expected, last = evaluate.forward(MANY, x, [s[0] for s in state], params)
    np.testing.assert_allclose(y, expected, rtol=1e-10)
    for got, own in zip(final, last, strict=True):
        np.testing.assert_allclose(got[0], own, rtol=1e-10, atol=1e-12)


def test_masks_are_drawn_in_training_alone():
    layer, x = layer_of(), draw(T, B, I)
    first, second = layer(x)[0], layer(x)[0]
    assert not np.array_equal(first, second)
    assert np.array_equal(layer.forward(x, grad=False)[0], layer.eval()(x)[0])
    before = layer.dropout_state
    layer(x)
    assert layer.dropout_state == before
    plain = layer_of(PLAIN)
    before = plain.dropout_state
    assert np.array_equal(plain(x)[0], plain(x)[0])
    assert plain.dropout_state == before


@pytest.mark.parametrize("cell", [MANY, PLAIN, PROJECTED], ids=lambda cell: cell.name)
def test_an_unbatched_call_is_that_of_one_row(cell):
    layer, x, reset = layer_of(cell), draw(T, I), flags()[:, 0]
    state = state_of(layer, batch=1)
    own = tuple(a[:, 0] for a in state)
    masks = same_masks(layer)
    for options in ({}, {"lengths": 4}, {"reset": reset}):
        wide = {"lengths": {"lengths": [4]}, "reset": {"reset": reset[:, None]}}
        with masks:
            y, final, p = layer.forward(x, own, **options)
        with masks:
            expected, last, q = layer.forward(x[:, None], state,
                                              **(wide[next(iter(options))] if options else {}))
        np.testing.assert_array_equal(y, expected[:, 0])
        for a, b in zip(final, last, strict=True):
            np.testing.assert_array_equal(a, b[:, 0])
        dx, dstate = p.backward(y, final)
        dwide, dlast = q.backward(expected, last)
        np.testing.assert_array_equal(dx, dwide[:, 0])
        for a, b in zip(dstate, dlast, strict=True):
            np.testing.assert_array_equal(a, b[:, 0])


@pytest.mark.parametrize("call", CALLS)
def test_batch_first_is_the_same_turned(call):
    layer, other = layer_of(num_layers=2), layer_of(num_layers=2, batch_first=True)
    x, options = draw(T, B, I), dict(CALLS[call])
    turned = options | ({"reset": options["reset"].T} if "reset" in options else {})
    y, state, p = layer.forward(x, **options)
    z, final, q = other.forward(x.swapaxes(0, 1), **turned)
    np.testing.assert_array_equal(y, z.swapaxes(0, 1))
    for a, b in zip(state, final, strict=True):
        np.testing.assert_array_equal(a, b)
    dx, _ = p.backward(y)
    dz, _ = q.backward(z)
    np.testing.assert_array_equal(dx, dz.swapaxes(0, 1))


@pytest.mark.parametrize("D", [1, 2])
def test_packed_rows_are_those_of_lengths(D):
    layer = layer_of(num_layers=2, bidirectional=D == 2)
    lengths, masks = [6, 4, 1], same_masks(layer)
    x = draw(T, B, I)
    sizes = [sum(n > t for n in lengths) for t in range(T)]
    data = np.concatenate([x[t, :n] for t, n in enumerate(sizes)])
    with masks:
        y, state, p = layer.forward_packed(data, sizes)
    with masks:
        expected, final, q = layer.forward(x, lengths=lengths)
    for t, (start, n) in enumerate(zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True)):
        np.testing.assert_array_equal(y[start : start + n], expected[t, :n])
    for a, b in zip(state, final, strict=True):
        np.testing.assert_array_equal(a, b)
    into, own = layer.new_grads(), layer.new_grads()
    p.backward(y, state, grads=into)
    q.backward(expected, final, grads=own)
    for name in own:
        np.testing.assert_allclose(into[name], own[name], rtol=1e-10, atol=1e-13)


def test_lengths_and_resets_are_those_of_each_episode():
    layer = layer_of(PLAIN, bidirectional=True, num_layers=2)
    x, reset, lengths = draw(T, B, I), flags(), [4, T, 2]
    y, state = layer(x, lengths=lengths, reset=reset)
    for b, n in enumerate(lengths):
        borders = [0, *np.flatnonzero(reset[1:n, b]) + 1, n]
        for start, stop in itertools.pairwise(borders):
            own, last = layer(x[start:stop, b : b + 1])
            np.testing.assert_array_equal(y[start:stop, b : b + 1], own)
            if stop == n:
                for a, c in zip(state, last, strict=True):
                    np.testing.assert_array_equal(a[0, b], c[0, 0])
        assert not y[n:, b].any()


def test_the_equations_of_an_lstm_are_the_lstm():
    x = draw(T, B, I)
    lstm, layer = fastrnn.LSTM(I, H, 2, dtype=np.float64, seed=0), layer_of(EQUATIONS, num_layers=2)
    for number in range(2):
        for name, of in (("W", "weight_ih"), ("U", "weight_hh"), ("b", "bias_ih")):
            layer.parameters()[f"{name}_l{number}"] = lstm.parameters()[f"{of}_l{number}"]
        lstm.parameters()[f"bias_hh_l{number}"] = np.zeros(4 * H)
    y, state = layer(x)
    expected, final = lstm(x)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    np.testing.assert_allclose(state[1], final[1], rtol=1e-12)


# ----------------------------------------------------------------------------------------- passes


def test_several_passes_are_in_flight():
    layer = layer_of(num_layers=2, bidirectional=True)
    xs = [draw(n, B, I, seed=n) for n in (3, 6, 4)]
    state, alone = layer.dropout_state, []
    for x in xs:
        y, _, p = layer.forward(x)
        into = layer.new_grads()
        alone.append((p.backward(y, grads=into)[0], into))
    layer.dropout_state = state
    flown = [layer.forward(x) for x in xs]
    for i in (2, 0, 1):
        y, _, p = flown[i]
        into = layer.new_grads()
        dx, _ = p.backward(y, grads=into)
        np.testing.assert_array_equal(dx, alone[i][0])
        for name, a in into.items():
            np.testing.assert_array_equal(a, alone[i][1][name])
    assert not layer.flat_grads.any()


def test_threads_go_back_with_gradients_of_their_own():
    layer = layer_of()
    made = [layer.forward(draw(T, B, I, seed=i)) for i in range(4)]
    grads = [layer.new_grads() for _ in made]
    threads = [threading.Thread(target=p.backward, args=(y,), kwargs={"grads": into})
               for (y, _, p), into in zip(made, grads, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (_, _, p), into in zip(made, grads, strict=True):
        assert p.spent
        assert all(a.any() for name, a in into.items() if name != "R_l0")


def test_retain_goes_back_again_with_the_same_masks():
    layer = layer_of(num_layers=2, dropout=0.3)
    y, final, p = layer.forward(draw(T, B, I))
    first, second = layer.new_grads(), layer.new_grads()
    dx, dstate = p.backward(y.copy(), final, grads=first, retain=True)
    again, dagain = p.backward(y.copy(), final, grads=second)
    np.testing.assert_array_equal(dx, again)
    for a, b in zip(dstate, dagain, strict=True):
        np.testing.assert_array_equal(a, b)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    with pytest.raises(RuntimeError, match="this pass has had its one backward"):
        p.backward(y)


def test_a_pass_notices_that_parameters_have_changed():
    layer = layer_of()
    y, _, p = layer.forward(draw(T, B, I))
    layer.b_l0 = np.zeros(2 * H)
    with pytest.raises(RuntimeError, match="the parameters have changed since forward"):
        p.backward(y)


def test_what_backward_records():
    layer = layer_of(PLAIN)
    x, dstate, dy = draw(T, B, I), state_of(layer, 3), draw(T, B, H, seed=9)
    _, _, p = layer.forward(x)
    names = ("dh", "dr", "ds", "h", "s", "x")
    _, _, (found,) = p.backward(dy.copy(), dstate, record=names)
    assert set(found) == set(names)
    np.testing.assert_array_equal(found["x"], x)
    for k in range(1, T):  # from a state after k steps on, with what a step's new states feed
        _, state, _ = layer.forward(x[:k], grad=False)
        np.testing.assert_array_equal(found["h"][k, :, 0], state[0][0])
        np.testing.assert_array_equal(found["s"][k, :, 0], state[2][0])
        _, _, p = layer.forward(x[k:], state)
        _, (dh, dr, ds) = p.backward(dy[k:].copy(), dstate)
        dh = dh[0] + dy[k - 1]
        ds = ds[0] + dh @ layer.O_l0
        dr = dr[0] + ds @ layer.Q_l0
        for name, expected in (("dh", dh), ("ds", ds), ("dr", dr)):
            np.testing.assert_allclose(found[name][k - 1, :, 0], expected, rtol=1e-9, atol=1e-12)
    _, _, p = layer.forward(x)
    with pytest.raises(ValueError, match=r"record is \('gates',\), expected names out of"):
        p.backward(None, dstate, record=("gates",))


# -------------------------------------------------------------------------------- modes and copies


def test_parameters_are_read_only_in_evaluation():
    layer = layer_of().eval()
    with pytest.raises(ValueError, match="read-only"):
        layer.W_l0[...] = 0
    with pytest.raises(ValueError, match="read-only in evaluation mode"):
        layer.W_l0 = np.zeros((2 * H, I))
    layer.train().W_l0[...] = 0
    assert not layer.eval()(np.ones((1, 1, I)))[0].any() or layer.b_l0.any()


def test_a_copy_draws_the_same_masks():
    layer, x = layer_of(num_layers=2, dropout=0.25), draw(T, B, I)
    layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        masks = same_masks(layer)
        with masks:
            expected, _ = layer(x)
        layer.dropout_state = masks.state
        np.testing.assert_array_equal(other(x)[0], expected)
        assert other.definition.text == layer.definition.text
        assert other.fixed_parameters == layer.fixed_parameters == {"R_l0", "R_l1"}


def test_bfloat16_rounds_the_weights():
    layer, x = layer_of(dtype=np.float32), draw(T, B, I, dtype=np.float32)
    exact = layer.eval()(x)[0]
    rounded = layer.eval("bfloat16")(x)[0]
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=0.05)


# -------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("name", ["bias", "num_layers", "seed", "dtype", "cell", "input_size",
                                  "layer", "batch_first"])
def test_options_that_have_the_name_of_an_argument(name):
    constant = fastrnn.cell(f"constant {name} = 0.5\nh = tanh(W x + U h) * {name}")
    with pytest.raises(ValueError, match=f"^Layer: cell has a constant '{name}', expected another"):
        fastrnn.Layer(constant, I, H)
    size = fastrnn.cell(f"size {name} = 3\nh[{name}] = tanh(W x + U h)")
    with pytest.raises(ValueError, match=f"^Layer: cell has a size '{name}', expected another"):
        fastrnn.Layer(size, I, H)


@pytest.mark.parametrize(("options", "match"), [
    ({"Q": 3}, "Many has no size or constant 'Q', expected one of P, rate"),
    ({"P": 0}, "P is 0, expected a whole number from 1 on"),
    ({"P": 1.5}, "P is 1.5, expected a whole number"),
    ({"rate": "much"}, "rate is 'much', expected a number"),
    ({"rate": 1.5}, "expected 0 <= "), ({"rate": np.nan}, "rate is nan, expected a finite"),
])
def test_options_that_do_not_fit(options, match):
    with pytest.raises((TypeError, ValueError), match=match):
        layer_of(**options)


def test_cells_of_equal_equations_and_options_are_equal():
    cell, other = layer_of(PLAIN).cell, layer_of(PLAIN, hidden=6).cell
    assert cell == other
    assert hash(cell) == hash(other)
    assert cell == pickle.loads(pickle.dumps(cell))
    for differs in (layer_of(MANY).cell, layer_of(PLAIN, P=3).cell, "Plain", None):
        assert cell != differs
    assert len({cell, other, layer_of(MANY).cell}) == 2


def test_a_cell_that_is_none():
    with pytest.raises(TypeError, match=r"^Layer: cell is of type str, expected what fastrnn.cell"):
        fastrnn.Layer("h = W x", I, H)


# -------------------------------------------------------------------------------- initial values


def test_what_is_carried_and_what_is_recurrent():
    assert carried(MANY) == ("h", "s")
    assert carried(EQUATIONS) == ("c",)
    assert carried(fastrnn.cell("h = tanh(W x + U h)")) == ()
    assert recurrent_weights(MANY) == ("U", "R", "Q", "O", "A")
    assert recurrent_weights(fastrnn.cell("output y\nc = 0.5 * c + W x\ny = V c")) == ()
    late = fastrnn.cell("a = W x\nb_, d = U h + V a\nh = tanh(b_) * d + R (a * h)")
    assert recurrent_weights(late) == ("U", "R")
    assert layer_of(EQUATIONS).cell.memory == "c"
    assert layer_of(fastrnn.cell("h = tanh(W x + U h)")).cell.memory == "h"


def blocks(array, count):
    return array.reshape(count, -1, array.shape[-1])


def test_orthogonal_recurrent_weights():
    layer = init.orthogonal(layer_of(EQUATIONS, num_layers=2), 2.0, seed=0)
    before = layer_of(EQUATIONS, num_layers=2)
    for number in range(2):
        for block in blocks(layer.parameters()[f"U_l{number}"], 4):
            np.testing.assert_allclose(block @ block.T, 4 * np.eye(H), atol=1e-12)
        for name in ("W", "b"):
            np.testing.assert_array_equal(layer.parameters()[f"{name}_l{number}"],
                                          before.parameters()[f"{name}_l{number}"])
    narrow = init.orthogonal(layer_of(PROJECTED), seed=0)
    np.testing.assert_allclose(narrow.O_l0 @ narrow.O_l0.T, np.eye(2), atol=1e-12)
    for block in blocks(narrow.U_l0, 4):
        np.testing.assert_allclose(block.T @ block, np.eye(2), atol=1e-12)
    diagonal = init.orthogonal(layer_of(fastrnn.cell("weight U = blocks(2)\nh = tanh(W x + U h)")))
    for block in blocks(diagonal.U_l0, 2):
        np.testing.assert_allclose(block @ block.T, np.eye(2), atol=1e-12)


def test_a_layer_of_equations_has_the_bits_of_the_lstm():
    lstm = init.orthogonal(fastrnn.LSTM(I, H, dtype=np.float64, seed=0), seed=5)
    np.testing.assert_array_equal(init.orthogonal(layer_of(EQUATIONS), seed=5).U_l0,
                                  lstm.weight_hh_l0)


def test_weights_of_all_kinds():
    layer = layer_of(EQUATIONS)
    layer.b_l0[...] = 1
    init.glorot(layer, seed=0)
    bound = np.sqrt(6 / (I + H))
    assert 0.8 * bound < abs(layer.W_l0).max() <= bound
    assert not layer.b_l0.any()
    init.normal(layer, 1e-3, seed=0)
    assert abs(layer.flat).max() < 1e-2
    np.testing.assert_array_equal(init.torch_uniform(layer, seed=0).W_l0, layer_of(EQUATIONS).W_l0)
    init.sparse(layer, 0.9, nonzeros=2, seed=0)
    for block in blocks(layer.U_l0, 4):
        assert (np.count_nonzero(block, axis=1) == 2).all()
        assert abs(np.linalg.eigvals(block)).max() == pytest.approx(0.9)


def test_fixed_weights_and_declared_vectors_stay():
    layer = layer_of(fastrnn.cell("fixed R = sparse(1, 0.9)\nlearned p = 0.25\n"
                                  "h = tanh(R h + W x + U (p * h) + b)"))
    before = layer.state_dict()
    for change in (lambda: init.glorot(layer), lambda: init.normal(layer, 1.0),
                   lambda: init.orthogonal(layer), lambda: init.sparse(layer, 0.5)):
        change()
        for name in ("R_l0", "p_l0"):
            np.testing.assert_array_equal(layer.parameters()[name], before[name])


@pytest.mark.parametrize(("change", "match"), [
    (lambda: init.orthogonal(layer_of()), "whose A is antisymmetric, expected weights"),
    (lambda: init.glorot(layer_of()), "whose A is antisymmetric"),
    (lambda: init.sparse(layer_of(PROJECTED), 0.9), r"\(4, 2\), expected square ones"),
    (lambda: init.orthogonal(layer_of(fastrnn.cell("h = 0.5 * h + W x"))),
     "expected one with recurrent weights"),
    (lambda: init.identity(layer_of(PLAIN)), "equations declare it: weight U = identity"),
    (lambda: init.forget_bias(layer_of(EQUATIONS)), "expected an LSTM; set the bias"),
    (lambda: init.chrono(layer_of(EQUATIONS), 10), "or a GRU; set the bias of its equations"),
    (lambda: init.glorot(layer_of(PLAIN).eval()), "read-only in evaluation mode"),
])
def test_what_initial_values_say_that_fit_no_layer(change, match):
    with pytest.raises(ValueError, match=match):
        change()


def test_a_refused_initial_value_changes_nothing():
    layer = layer_of()
    before = layer.flat.copy()
    with pytest.raises(ValueError, match="antisymmetric"):
        init.glorot(layer)
    np.testing.assert_array_equal(layer.flat, before)


def test_measuring_draws_no_mask():
    layer = layer_of()
    before = layer.dropout_state
    gradient_flow(layer, draw(T, B, I))
    assert layer.dropout_state == before
    assert P == 2


HIGHWAY = fastrnn.cell("""
    a, f = W x + U h + b
    h = sigmoid(f) * x + (1 - sigmoid(f)) * tanh(a)   # x itself is read, and it has a gradient
""")


def test_both_directions_add_to_the_gradient_of_an_input_that_the_cell_reads_itself():
    both = fastrnn.Layer(HIGHWAY, 4, 4, bidirectional=True, dtype=np.float64, seed=0)
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((5, 3, 4)), rng.standard_normal((5, 3, 8))
    y, _ = both(x)
    dx, _ = both.backward(dy)
    total = 0
    for d, suffix in enumerate(("", "_reverse")):
        one = fastrnn.Layer(HIGHWAY, 4, 4, dtype=np.float64, seed=0)
        for name, array in one.parameters().items():
            array[...] = both.parameters()[name + suffix]
        order = slice(None, None, -1 if d else 1)
        part, _ = one(np.ascontiguousarray(x[order]))
        assert (y[..., 4 * d:4 * d + 4] == part[order]).all()
        own, _ = one.backward(np.ascontiguousarray(dy[order, :, 4 * d:4 * d + 4]))
        total = total + own[order]
    np.testing.assert_allclose(dx, total, rtol=1e-14, atol=1e-15)


def test_a_pass_of_evaluation_is_retained():
    layer = fastrnn.Layer(HIGHWAY, 4, 4, dtype=np.float64, seed=0)
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((5, 3, 4)), rng.standard_normal((5, 3, 4))
    layer(x)
    dx, dh = layer.backward(dy)
    layer.eval()
    _, _, p = layer.forward(x)
    for retain in (True, True, False):
        again, more = p.backward(dy, retain=retain, grads=layer.new_grads())
        assert again.tobytes() == dx.tobytes()
        assert more.tobytes() == dh.tobytes()
