"""Passes: any number of them in flight, whatever happens meanwhile, back once or more."""

import copy
import itertools
import pickle
import tracemalloc

import cases
import numpy as np
import pytest
import stacks
from flights import KINDS, Call, alone, call_of, layer_of, per_layout

import fastrnn
from fastrnn._kernels import runtime

# ------------------------------------------------------------------------------ several in flight


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "in reverse"])
@per_layout
@stacks.per_dtype
@stacks.per_cell
def test_two_passes_give_what_each_gives_alone(cell, dtype, layout, order):
    layer = layer_of(cell, dtype, layout)
    calls = [call_of(layer, layout, T, seed=T) for T in (6, 5)]
    expected = alone(calls)
    flights = [call.forward() for call in calls]
    for k in order:
        out, p = flights[k]
        assert not p.spent
        layer.zero_grad()
        got = out | calls[k].backward(p) | dict(layer.grads)
        assert p.spent
        stacks.assert_same(got, expected[k])


@per_layout
@stacks.per_cell
def test_passes_add_up_as_calls_one_after_the_other(cell, layout):
    layer = layer_of(cell, layout=layout)
    calls = [call_of(layer, layout, T, seed=T) for T in (6, 5, 6)]
    other = copy.deepcopy(layer)
    for call in calls:
        call = Call(other, call.data, layout)
        call.backward(call.forward()[1])
    passes = [call.forward()[1] for call in calls]
    for call, p in zip(calls, passes, strict=True):
        call.backward(p)
    assert np.any(layer.flat_grads)
    assert layer.flat_grads.tobytes() == other.flat_grads.tobytes()


def test_a_hundred_passes_in_flight():
    layer = layer_of("lstm")
    calls = [call_of(layer, T=1 + k % 4, B=1 + k % 3, seed=k) for k in range(100)]
    expected = alone(calls)
    passes = [call.forward() for call in calls]
    for k in np.random.default_rng(0).permutation(100):
        out, p = passes[k]
        stacks.assert_same(out | calls[k].gradients(p), expected[k])


def refused(error, call, *arguments):
    with pytest.raises(error):
        call(*arguments)


DISTURBANCES = {
    "an eval-mode call": lambda layer, x: layer.eval()(x) and layer.train(),
    "an eval-mode pass": lambda layer, x: layer.eval().forward(x)[2].backward(
        grads=layer.new_grads()) and layer.train(),
    "forward without grad": lambda layer, x: layer.forward(x, grad=False),
    "a pass that is dropped": lambda layer, x: layer.forward(x),
    "a training call": lambda layer, x: layer(x),
    "a stream": lambda layer, x: [layer.stream(3)(step) for step in x],
    "bfloat16": lambda layer, x: layer.eval("bfloat16")(x) and layer.train(),
    "a refused call": lambda layer, x: refused(ValueError, layer, x[..., 1:]),
    "a refused forward": lambda layer, x: refused(TypeError, layer.forward, x, "h"),
    "copies": lambda layer, x: pickle.loads(pickle.dumps(copy.deepcopy(layer)))(x),
    "a state dict": lambda layer, x: layer.state_dict(),
}


@pytest.mark.parametrize("what", DISTURBANCES)
@stacks.per_cell
def test_what_happens_between_forward_and_backward_changes_nothing(cell, what):
    layer = cases.LAYERS[cell](7, 9, 2, seed=0)
    call = call_of(layer)
    expected = call.alone(layer.dropout_state)
    out, p = call.forward()
    DISTURBANCES[what](layer, call_of(layer, T=6, seed=5).data["x"])
    assert not np.any(layer.flat_grads)
    stacks.assert_same(out | call.backward(p) | dict(layer.grads), expected)


@stacks.per_kind
def test_the_mode_may_change_between_forward_and_backward(cell):
    layer = layer_of(cell, dropout=0)
    call = call_of(layer)
    expected = call.alone(layer.dropout_state)
    modes = (layer.train, layer.eval, lambda: layer.eval("bfloat16"))
    for before, after in itertools.product(modes[:2], modes):
        before()
        out, p = call.forward()
        after()
        stacks.assert_same(out | call.gradients(p), expected)


def test_the_instruction_set_may_change_between_forward_and_backward(isa):
    layer = layer_of("gru")
    for mode in (layer.train, layer.eval):
        mode()
        state = layer.dropout_state
        runtime.set_isa(isa)
        call = call_of(layer)
        expected = call.alone(state)
        out, p = call.forward()
        runtime.set_isa("scalar")
        stacks.assert_same(out | call.gradients(p), expected)


# ------------------------------------------------------------------------------- more than once


@per_layout
@stacks.per_dtype
@stacks.per_cell
def test_a_retained_pass_gives_the_same_bits_each_time(cell, dtype, layout):
    layer = layer_of(cell, dtype, layout)
    call = call_of(layer, layout)
    expected = call.alone(layer.dropout_state)
    out, p = call.forward()
    for _ in range(3):
        stacks.assert_same(out | call.gradients(p, retain=True), expected)
        assert not p.spent
        call_of(layer, layout, seed=8).forward()  # over memory that may have been given back
    stacks.assert_same(out | call.gradients(p), expected)
    assert p.spent
    for again in (p.backward, lambda: p.backward(retain=True)):
        with pytest.raises(RuntimeError, match=r"^backward: this pass .*; use backward\(retain="):
            again()
    assert not np.any(layer.flat_grads)


def test_a_retained_pass_keeps_its_memory_and_no_more():
    layer = fastrnn.LSTM(8, 64, seed=0)
    x = np.ones((100, 8, 8), np.float32)
    _, _, p = layer.forward(x)
    nbytes = p.nbytes
    p.backward(retain=True)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10):
            p.backward(retain=True)
        assert tracemalloc.get_traced_memory()[0] - before < nbytes / 2
    finally:
        tracemalloc.stop()
    assert p.nbytes == nbytes
    p.backward()
    assert p.nbytes == 0


# ------------------------------------------------------------------------------- the short form


@pytest.mark.parametrize("layout", KINDS[:3])
@stacks.per_cell
def test_the_short_form_gives_the_bits_of_the_pass(cell, layout):
    layer = layer_of(cell, layout=layout)
    call = call_of(layer, layout)
    expected = call.alone(layer.dropout_state)
    stacks.assert_same(stacks.both(layer, call.data), expected)
    with pytest.raises(RuntimeError, match=r"^[A-Z]+\.backward: no call to go back through"):
        layer.backward(call.data["dy"])


def test_the_short_form_and_passes_do_not_meet():
    layer = layer_of("lstm", dropout=0)
    first, second = call_of(layer, T=6), call_of(layer, T=4)
    expected = first.alone(layer.dropout_state), second.alone(layer.dropout_state)
    out = stacks.forward(layer, first.data)
    other, p = second.forward()
    stacks.assert_same(out | stacks.backward(layer, first.data), expected[0])
    stacks.assert_same(other | second.gradients(p), expected[1])
    _, p = second.forward()
    stacks.forward(layer, first.data)
    second.gradients(p)
    layer.zero_grad()
    stacks.assert_same(out | stacks.backward(layer, first.data), expected[0])


# ---------------------------------------------------------------------- evaluation, and bfloat16


@per_layout
@stacks.per_dtype
@stacks.per_cell
def test_a_pass_in_evaluation_mode_is_one_in_training_mode_without_dropout(cell, dtype, layout):
    layer = layer_of(cell, dtype, layout, dropout=0)
    expected = call_of(layer, layout).alone(layer.dropout_state)
    layer = layer_of(cell, dtype, layout, dropout=0.4).eval()
    state = layer.dropout_state
    call = call_of(layer, layout)
    for _ in range(2):
        out, p = call.forward()
        layer.zero_grad()
        stacks.assert_same(out | call.backward(p) | dict(layer.grads), expected)
    assert layer.mode == "evaluation"
    assert layer.dropout_state == state
    with pytest.raises(RuntimeError, match=r"\.backward: no call to go back through"):
        layer.backward(call.data["dy"])


@stacks.per_kind
def test_forward_without_grad_leaves_dropout_out(cell):
    layer = layer_of(cell)
    state, call = layer.dropout_state, call_of(layer)
    out, p = call.forward(grad=False)
    assert p is None
    assert layer.dropout_state == state
    stacks.assert_same(out, call_of(layer.eval()).forward(grad=False)[0])


def test_bfloat16_has_no_backward():
    layer = fastrnn.LSTM(3, 4, 2, seed=0).eval("bfloat16")
    x = np.ones((5, 2, 3), np.float32)
    match = r"^LSTM\.forward: a pass is wanted in the mode 'bfloat16', expected eval\(\) or train"
    with pytest.raises(ValueError, match=match):
        layer.forward(x)
    y, _, p = layer.forward(x, grad=False)
    assert p is None
    assert y.tobytes() == layer(x)[0].tobytes()
    assert layer.mode == "bfloat16"


# ----------------------------------------------------------------------------------------- record


@per_layout
@stacks.per_cell
def test_what_is_recorded(cell, layout):
    layer = layer_of(cell, np.float64, layout, dropout=0)
    call = call_of(layer, layout)
    expected = call.alone(layer.dropout_state)
    T, B = (6, 1) if layout == "unbatched" else (6, 3)
    D, G, H = 2, layer.cell.G, 9
    names = ["dh", "gates", "dgates_x", "dgates_h", "x", "h", *(["dc"] if layer.has_c else [])]
    for record in (names, tuple(reversed(names)), ("x",)):
        out, p = call.forward()
        got = out | call.gradients(p, record=record)
        recorded = {name: got.pop(name) for name in list(got) if name[-2:] in ("_0", "_1")}
        stacks.assert_same(got, expected)
        assert recorded.keys() == {f"{name}_{k}" for name in record for k in (0, 1)}
        if len(record) < 2:
            continue
        for k, I in ((0, 7), (1, 18)):
            assert recorded[f"x_{k}"].shape == (T, B, I)
            for name in ("dh", "h", *(["dc"] if layer.has_c else [])):
                assert recorded[f"{name}_{k}"].shape == (T, B, D, H)
            for name in ("gates", "dgates_x", "dgates_h"):
                assert recorded[f"{name}_{k}"].shape == (T, B, D, G, H)
            for d, suffix in enumerate(("", "_reverse")):
                # a weight's gradient: its gates' gradients times what it multiplied, summed
                for side, source in (("x", recorded[f"x_{k}"]), ("h", recorded[f"h_{k}"][:, :, d])):
                    gates = recorded[f"dgates_{side}_{k}"][:, :, d].reshape(T * B, G * H)
                    weight = f"weight_{'ih' if side == 'x' else 'hh'}_l{k}{suffix}"
                    cases.assert_close(weight, gates.T @ source.reshape(T * B, -1), got[weight],
                                       1e-12)


def test_dc_is_an_lstms_alone():
    for layer, has in ((fastrnn.LSTM(3, 4, seed=0), True), (fastrnn.GRU(3, 4, seed=0), False)):
        _, _, p = layer.forward(np.ones((5, 2, 3), np.float32))
        if has:
            assert p.backward(record=("dc",))[2][0]["dc"].shape == (5, 2, 1, 4)
        else:
            with pytest.raises(ValueError, match=r"record is .*dc.*, expected names out of"):
                p.backward(record=("dc",))
