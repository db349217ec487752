"""RNNCell, LSTMCell and GRUCell: the numbers of single steps and of loops over them, and passes."""

import copy
import dataclasses
import threading

import cases
import numpy as np
import pytest
import stacks
from singles import B, H, I, as_tuple, bits, one_or_pair, one_step

import fastrnn
from fastrnn import optim, reference
from fastrnn._kernels import runtime
from fastrnn.layers import CellPass

per_cell = stacks.per_cell
per_dtype = stacks.per_dtype


def case_of(cell, T=1, B=B, I=I, H=H, dtype=np.float64, **options):
    return cases.make_case(cell, T, B, I, H, dtype, **options)


def cell_of(case):
    """Return a single cell with the weights of a case."""
    _, _, I, H = case.sizes
    cell = cases.SINGLE_CELLS[case.cell](I, H, case.bias_ih is not None, dtype=case.dy.dtype)
    cell.load_state_dict({name: array for name, array in case.inputs().items()
                          if name in cases.PARAMETERS})
    return cell


def layer_of(case):
    """Return a layer with the weights of a case."""
    _, _, I, H = case.sizes
    layer = cases.LAYERS[case.cell](I, H, bias=case.bias_ih is not None, dtype=case.dy.dtype)
    layer.load_state_dict({f"{name}_l0": array for name, array in case.inputs().items()
                           if name in cases.PARAMETERS})
    return layer


def states_of(case):
    """Return the initial state and the gradient of the final one."""
    return one_or_pair(case.h0, case.c0), one_or_pair(case.dhn, case.dcn)


def unrolled(cell, case):
    """Return the outputs and gradients of a loop over all steps, forward and then backward."""
    (state, dstate), passes, y = states_of(case), [], []
    for x in case.x:
        state, p = cell.forward(x, state)
        passes.append(p)
        y.append(as_tuple(state)[0])
    out = {"y": np.array(y), **stacks.named("hn", "cn", state)}
    dx = []
    for dy, p in zip(case.dy[::-1], passes[::-1], strict=True):
        dh, *dc = as_tuple(dstate)
        step, dstate = p.backward(one_or_pair(dh + dy, *dc or [None]))
        dx.append(step)
    return out | {"dx": np.array(dx[::-1]), **stacks.named("dh0", "dc0", dstate)}


def of_layer(layer, case):
    """Return the same of one call of a layer."""
    state, dstate = (tuple(a[None] for a in as_tuple(s)) for s in states_of(case))
    y, final, p = layer.forward(case.x, state if layer.has_c else state[0])
    dx, initial = p.backward(case.dy, dstate if layer.has_c else dstate[0])
    final, initial = (tuple(a[0] for a in as_tuple(s)) for s in (final, initial))
    return {"y": y, **stacks.named("hn", "cn", final),
            "dx": dx, **stacks.named("dh0", "dc0", initial)}


# ---- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", cases.SHAPES, ids=str)
@per_dtype
@per_cell
def test_a_loop_over_a_cell_is_the_layer_bit_for_bit(cell, dtype, sizes, isa):
    case = case_of(cell, *sizes, dtype)
    single, layer = cell_of(case), layer_of(case)
    for mode in (True, False):
        single.train(mode).zero_grad()
        layer.train(mode).zero_grad()
        cases.assert_same_bytes(unrolled(single, case), of_layer(layer, case), f"{isa} {mode} ")
        for name, grad in single.grads.items():
            cases.assert_close(f"{isa} {mode} {name}", grad, layer.grads[f"{name}_l0"],
                               case.tolerance(backward=True))


@pytest.mark.parametrize("B", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100])
@per_cell
def test_every_batch_size_has_the_bits_of_the_layer(cell, B):
    case = case_of(cell, 4, B, 19, 37, np.float32)
    cases.assert_same_bytes(unrolled(cell_of(case), case), of_layer(layer_of(case), case))


@per_cell
def test_without_biases_too(cell):
    case = case_of(cell, 4, bias=False)
    single = cell_of(case)
    assert list(single.parameters()) == ["weight_ih", "weight_hh"]
    cases.assert_same_bytes(unrolled(single, case), of_layer(layer_of(case), case))


@per_cell
def test_threads_change_no_bit(cell, threads):
    case = case_of(cell, 3, 40, 65, 260, np.float32)
    layer, single = layer_of(case), cell_of(case)
    runtime.set_num_threads(1)
    expected, grads = of_layer(layer, case), None
    for count in threads:
        runtime.set_num_threads(count)
        single.zero_grad()
        cases.assert_same_bytes(unrolled(single, case), expected, f"{count} threads ")
        grads = grads or single.flat_grads.tobytes()
        assert single.flat_grads.tobytes() == grads


@pytest.mark.parametrize("bias", [True, False])
@per_dtype
@per_cell
def test_one_step_is_the_references(cell, dtype, bias):
    case = case_of(cell, 1, 4, 17, 9, dtype, bias=bias)
    case = dataclasses.replace(case, dy=np.zeros_like(case.dy))  # of h there is one gradient: dhn
    exact = cases.run(reference, case.astype(np.float64))
    single = cell_of(case)
    got = unrolled(single, case) | dict(single.grads)
    assert got.keys() == exact.keys()
    for name, expected in exact.items():
        backward = name not in ("y", "hn", "cn")
        cases.assert_close(name, got[name], expected, case.tolerance(backward=backward), True,
                           dtype=dtype)


@per_cell
def test_gradients_are_finite_differences(cell):
    case = case_of(cell, 3, 2, 4, 3)
    single = cell_of(case)
    # through the live parameters, and whatever else the loss depends on
    inputs = {"x": case.x, "h0": case.h0, "c0": case.c0, **single.parameters()}

    def loss():
        state, total = states_of(case)[0], 0.0
        for x, dy in zip(case.x, case.dy, strict=True):
            state = single(x, state)
            total += np.vdot(as_tuple(state)[0], dy)
        return total + sum(map(np.vdot, as_tuple(state), as_tuple(states_of(case)[1])))

    got = unrolled(single, case) | dict(single.grads)
    for name, array in inputs.items():
        if array is not None:
            gradient = got[name if name in cases.PARAMETERS else f"d{name}"]
            cases.assert_close(name, gradient, cases.differences(loss, array), 1e-7)


@per_dtype
@per_cell
def test_a_call_keeps_no_pass_and_has_the_bits_of_forward(cell, dtype):
    single = cases.SINGLE_CELLS[cell](I, H, dtype=dtype, seed=0)
    x, state, _ = one_step(single)
    for given in (state, None):
        expected, p = single.forward(x, given)
        assert isinstance(p, CellPass)
        without, none = single.forward(x, given, grad=False)
        assert none is None
        assert bits(without) == bits(single(x, given)) == bits(single.eval()(x, given))
        assert bits(without) == bits(expected)
        single.train()
    assert not hasattr(single, "backward")


@per_cell
def test_no_state_is_a_state_of_zeros(cell):
    single = cases.SINGLE_CELLS[cell](I, H, seed=0)
    x, state, dstate = one_step(single)
    zeros = tuple(np.zeros_like(a) for a in as_tuple(state))
    empty = one_or_pair(*zeros, *[None] * (2 - len(zeros)))
    expected, p = single.forward(x, empty)
    got, q = single.forward(x)
    assert bits(got) == bits(expected)
    assert bits(*q.backward(dstate)) == bits(*p.backward(dstate))
    if single.has_c:
        h, c = state
        assert bits(single(x, (None, c))) == bits(single(x, (zeros[0], c)))
        assert bits(single(x, [h, None])) == bits(single(x, (h, zeros[1])))


@per_dtype
@per_cell
def test_one_row_without_a_batch(cell, dtype):
    single = cases.SINGLE_CELLS[cell](I, H, dtype=dtype, seed=0)
    x, state, dstate = one_step(single)
    row = slice(1, 2)
    batch, one = (
        [tuple(a[k] for a in as_tuple(s)) for s in (state, dstate)] for k in (row, 1))
    if not single.has_c:
        batch, one = ([s[0] for s in states] for states in (batch, one))
    expected, p = single.forward(x[row], batch[0])
    got, q = single.forward(x[1], one[0])
    dx, dstate0 = q.backward(one[1])
    assert dx.shape == (I,)
    assert all(a.shape == (H,) for a in (*as_tuple(got), *as_tuple(dstate0)))
    assert bits(got, dx, dstate0) == bits(expected, *p.backward(batch[1]))


@per_cell
def test_no_rows(cell):
    single = cases.SINGLE_CELLS[cell](I, H, seed=0)
    state, p = single.forward(np.zeros((0, I), np.float32))
    dx, dstate0 = p.backward(state)
    assert dx.shape == (0, I)
    assert all(a.shape == (0, H) for a in (*as_tuple(state), *as_tuple(dstate0)))
    assert not single.flat_grads.any()


LAYOUTS = {
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "fortran": np.asfortranarray,
    "backwards": lambda a: a[::-1].copy()[::-1],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read-only": cases.read_only,
    "misaligned": cases.misaligned,
    "zero stride": lambda a: np.broadcast_to(a[:1], a.shape),
    "list": np.ndarray.tolist,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_any_memory_layout_is_as_good_as_a_plain_copy(cell, layout):
    single = cases.SINGLE_CELLS[cell](I, H, seed=0)
    x, state, dstate = one_step(single)
    given = [LAYOUTS[layout](a) for a in (x, *as_tuple(state), *as_tuple(dstate))]
    plain = [np.array(a, np.float32) for a in given]
    results = []
    for x, *states in (given, plain):
        single.zero_grad()
        c, dc = (states[1], states[3]) if single.has_c else (None, None)
        final, p = single.forward(x, one_or_pair(states[0], c))
        back = p.backward(one_or_pair(states[2 if single.has_c else 1], dc))
        results.append(bits(final, *back, single.flat_grads))
    assert results[0] == results[1]


# ---- passes --------------------------------------------------------------------------------------


@per_cell
def test_passes_may_go_back_in_any_order(cell):
    single = cases.SINGLE_CELLS[cell](I, H, seed=0)
    steps = [one_step(single, seed) for seed in range(4)]
    alone = []
    for x, state, dstate in steps:
        _, p = single.forward(x, state)
        grads = single.new_grads()
        alone.append(bits(*p.backward(dstate, grads=grads), *grads.values()))
    flying = [single.forward(x, state)[1] for x, state, _ in steps]
    for k in (2, 0, 3, 1):
        grads = single.new_grads()
        assert bits(*flying[k].backward(steps[k][2], grads=grads), *grads.values()) == alone[k]
    assert not single.flat_grads.any()


@per_cell
def test_gradients_accumulate(cell):
    single = cases.SINGLE_CELLS[cell](I, H, dtype=np.float64, seed=0)
    x, state, dstate = one_step(single)
    single.forward(x, state)[1].backward(dstate)
    once = single.flat_grads.copy()
    assert once.any()
    single.forward(x, state)[1].backward(dstate)
    np.testing.assert_allclose(single.flat_grads, 2 * once, rtol=1e-12)


@per_cell
def test_a_pass_has_one_backward_unless_it_is_retained(cell):
    single = cases.SINGLE_CELLS[cell](I, H, seed=0)
    x, state, dstate = one_step(single)
    _, p = single.forward(x, state)
    assert p.nbytes > 0
    assert p.cell is single
    first = bits(*p.backward(dstate, retain=True))
    assert not p.spent
    assert bits(*p.backward(dstate)) == first
    assert p.spent
    assert p.nbytes == 0
    for retain in (False, True):
        with pytest.raises(RuntimeError, match="has had its one backward already; use backward"):
            p.backward(dstate, retain=retain)


@per_cell
def test_need_dx_saves_dx_alone(cell):
    single = cases.SINGLE_CELLS[cell](I, H, seed=0)
    x, state, dstate = one_step(single)
    _, p = single.forward(x, state)
    grads, others = single.new_grads(), single.new_grads()
    _, expected = p.backward(dstate, retain=True, grads=grads)
    dx, got = p.backward(dstate, need_dx=False, grads=others)
    assert dx is None
    assert bits(got, *others.values()) == bits(expected, *grads.values())


def test_a_gradient_that_is_none_is_zero():
    single = fastrnn.LSTMCell(I, H, seed=0)
    x, state, (dh, dc) = one_step(single)
    _, p = single.forward(x, state)
    zero = np.zeros_like(dh)
    for given, same in (((dh, None), (dh, zero)), ((None, dc), (zero, dc)), (None, (zero, zero))):
        assert bits(*p.backward(given, retain=True)) == bits(*p.backward(same, retain=True))


@per_cell
def test_the_state_may_change_after_forward_and_is_not_changed(cell):
    single = cases.SINGLE_CELLS[cell](I, H, seed=0)
    x, state, dstate = one_step(single)
    given = copy.deepcopy((x, state, dstate))
    _, p = single.forward(x, state)
    expected = bits(*p.backward(dstate))
    final, p = single.forward(x, state)
    assert bits(x, state, dstate) == bits(*given)
    for array in (*as_tuple(state), *as_tuple(final)):
        array.fill(np.nan)
    assert bits(*p.backward(dstate)) == expected


def test_changed_parameters_make_a_pass_invalid():
    single = fastrnn.GRUCell(I, H, seed=0)
    x, state, dh = one_step(single)
    for change in (lambda: setattr(single, "weight_hh", np.ones((3 * H, H))),
                   lambda: single.load_state_dict(single.state_dict()),
                   lambda: optim.SGD(single, lr=1).step()):
        _, p = single.forward(x, state)
        change()
        with pytest.raises(RuntimeError, match="the parameters have changed since forward"):
            p.backward(dh)
        assert not p.spent


@per_cell
def test_a_refused_gradient_leaves_the_pass_usable(cell):
    single = cases.SINGLE_CELLS[cell](I, H, seed=0)
    x, state, dstate = one_step(single)
    _, p = single.forward(x, state)
    for wrong, options in ((np.zeros((B, H + 1), np.float32), {}), (dstate, {"grads": {}}),
                           (dstate, {"grads": 3}), (3, {})):
        with pytest.raises((TypeError, ValueError), match=r"^CellPass\.backward: "):
            p.backward(wrong, **options)
    assert not single.flat_grads.any()
    assert not p.spent
    p.backward(dstate)
    assert single.flat_grads.any()


def test_threads_with_gradients_of_their_own():
    single = fastrnn.LSTMCell(I, H, seed=0)
    steps = [one_step(single, seed) for seed in range(8)]

    def gradients(step, out):
        for _ in range(50):
            grads = single.new_grads()
            x, state, dstate = step
            final, p = single.forward(x, state)
            out.append(bits(final, *p.backward(dstate, grads=grads), *grads.values()))

    outs = [[] for _ in steps]
    workers = [threading.Thread(target=gradients, args=pair)
               for pair in zip(steps, outs, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for step, out in zip(steps, outs, strict=True):
        alone = []
        gradients(step, alone)
        assert out == alone
