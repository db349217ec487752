"""Passes: any number of them in flight, each with its own gradients, whatever happens meanwhile."""

import copy
import dataclasses
import gc
import itertools
import pickle
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
import stacks

import fastrnn
from fastrnn import init
from fastrnn._kernels import runtime
from fastrnn.layers.recurrent import Recurrent

V = 9  # rows of the embedding
KINDS = ("time_first", "batch_first", "unbatched", "embedding")

per_layout = pytest.mark.parametrize("layout", KINDS)


@dataclasses.dataclass
class Call:
    """A layer's call: what goes in, and the gradients that go back."""

    layer: Recurrent
    data: dict
    layout: str

    def forward(self, grad=True):
        """Return (the outputs by name, the pass)."""
        layer, data = self.layer, self.data
        state = stacks.state_of(data, "h0", "c0")
        if self.layout == "embedding":
            y, final, p = layer.run(data["x"], data["index"], state, grad=grad,
                                    dropout=grad and layer.training)
        else:
            y, final, p = layer.forward(data["x"], state, grad=grad)
        return {"y": y, **stacks.named("hn", "cn", final)}, p

    def backward(self, p, **options):
        """Go back; return the gradients, and what was recorded, by name."""
        dx, initial, *recorded = p.backward(self.data["dy"],
                                            stacks.state_of(self.data, "dhn", "dcn"), **options)
        got = {} if dx is None else {"dx": dx}
        for number, arrays in enumerate(recorded[0] if recorded else []):
            got |= {f"{name}_{number}": array for name, array in arrays.items()}
        return got | stacks.named("dh0", "dc0", initial)

    def gradients(self, p, **options):
        """Go back into new gradients; return all gradients by name."""
        grads = self.layer.new_grads()
        return self.backward(p, grads=grads, **options) | grads

    def alone(self, dropout_state):
        """Return the results of this call done singly, by a copy of the layer."""
        layer = copy.deepcopy(self.layer)
        layer.dropout_state = dropout_state
        call = Call(layer, self.data, self.layout)
        out, p = call.forward()
        return out | call.gradients(p)


def layer_of(cell, dtype=np.float32, layout="time_first", *, dropout=0.4, seed=0, **options):
    return cases.LAYERS[cell](7, 9, 2, bidirectional=True, dropout=dropout, dtype=dtype, seed=seed,
                              batch_first=layout == "batch_first", **options)


def call_of(layer, layout="time_first", T=6, B=3, seed=1):
    data = stacks.draw(layer, T, 1 if layout == "unbatched" else B, seed)
    if layout == "embedding":
        rng = np.random.default_rng(seed)
        data["index"] = rng.integers(V, size=data["x"].shape[:2], dtype=np.int32)
        data["x"] = rng.standard_normal((V, layer.input_size)).astype(layer.dtype)
        return Call(layer, data, layout)
    return Call(layer, stacks.one_for_all(data, layout), layout)


def alone(calls):
    """Return each call's results, as done one after the other, and the masks' states between."""
    layer = calls[0].layer
    states, results = [layer.dropout_state], []
    for call in calls:
        other = copy.deepcopy(layer)
        other.dropout_state = states[-1]
        results.append(call.alone(states[-1]))
        Call(other, call.data, call.layout).forward()
        states.append(other.dropout_state)
    return results


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


# -------------------------------------------------------------------------- gradients of one's own


@per_layout
@stacks.per_cell
def test_gradients_of_ones_own_leave_the_layers_alone(cell, layout):
    layer = layer_of(cell, layout=layout)
    call = call_of(layer, layout)
    expected = call.alone(layer.dropout_state)
    layer.flat_grads[:] = before = np.arange(layer.flat_grads.size)
    grads = layer.new_grads()
    assert list(grads) == list(layer.parameters())
    out, p = call.forward()
    stacks.assert_same(out | call.backward(p, grads=grads) | grads, expected)
    np.testing.assert_array_equal(layer.flat_grads, before.astype(np.float32))
    # they accumulate as the layer's own do
    layer.zero_grad()
    for into in (None, grads):
        for array in grads.values():
            array.fill(0)
        for seed in (1, 2):
            other = call_of(layer, layout, seed=seed)
            layer.dropout_state = fastrnn.LSTM(1, 1, seed=0).dropout_state
            other.backward(other.forward()[1], grads=into)
    stacks.assert_same(grads, layer.grads)


def test_more_gradients_than_the_layers_are_fine():
    layer = layer_of("gru")
    call = call_of(layer)
    grads = layer.new_grads() | {"head.weight": None}
    call.backward(call.forward()[1], grads=grads)
    assert grads["head.weight"] is None
    assert np.any(grads["weight_hh_l1"])


def wrong_grads():
    good = fastrnn.GRU(3, 4, seed=0).new_grads()
    return [
        ({k: a for k, a in good.items() if k != "bias_hh_l0"}, ValueError, "grads lacks 'bias_hh"),
        ({}, ValueError, "grads lacks 'weight_ih_l0', expected an array for each parameter"),
        (good | {"bias_ih_l0": None}, TypeError, r"grads\['bias_ih_l0'\] is None, expected an arr"),
        (good | {"bias_ih_l0": [0.0] * 12}, TypeError, r"grads\['bias_ih_l0'\] is of type list"),
        (good | {"bias_ih_l0": np.zeros(12)}, TypeError, r"is float64, expected .*float32"),
        (good | {"bias_ih_l0": np.zeros(11, "f")}, ValueError, r"shape \(11,\), expected \(12,\)"),
        (good | {"weight_ih_l0": np.zeros((3, 12), "f").T}, ValueError, "must be C-contiguous"),
        (good | {"bias_ih_l0": cases.read_only(np.zeros(12, "f"))}, ValueError, "and writeable"),
        (good | {"bias_ih_l0": cases.misaligned(np.zeros(12, "f"))}, ValueError, "aligned and"),
        (5, TypeError, "grads is of type int, expected a mapping"),
        (np.zeros(100, "f"), TypeError, "grads is of type ndarray, expected a mapping"),
    ]


def refusals():
    """(arguments of backward, error, match) for a GRU of (3, 4), T = 5, B = 2."""
    dy, dhn = np.ones((5, 2, 4), np.float32), np.ones((1, 2, 4), np.float32)
    return [
        *(((dy, dhn), {"grads": grads}, *row) for grads, *row in wrong_grads()),
        ((dy[1:],), {}, ValueError, r"dy has shape \(4, 2, 4\), expected \(5, 2, 4\)"),
        ((dy.astype(float),), {}, TypeError, "dy is float64, expected float32"),
        ((dy, dhn[0]), {}, ValueError, r"dhn has shape \(2, 4\), expected \(1, 2, 4\)"),
        ((dy, (dhn, dhn)), {}, TypeError, "dhn is a tuple of 2, expected one array"),
        *((((dy,)), {"record": record}, ValueError, r"record is .*, expected names out of \['dh', ")
          for record in ("dh", ("x", "y"), ("dc",), ["gate"], (None,), ([],), 5, None, {"x"})),
    ]


@pytest.mark.parametrize(("arguments", "options", "error", "match"), refusals())
def test_a_refused_backward_leaves_the_pass_as_it_was(arguments, options, error, match):
    layer = fastrnn.GRU(3, 4, seed=0)
    call = call_of(layer, T=5, B=2)
    expected = call.alone(layer.dropout_state)
    out, p = call.forward()
    with pytest.raises(error, match=rf"^Pass\.backward: .*{match}") as caught:
        p.backward(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert not np.any(layer.flat_grads)
    assert not p.spent
    stacks.assert_same(out | call.gradients(p), expected)


# --------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("kernel_threads", [1, 2])
@per_layout
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_eight_threads_with_gradients_of_their_own(cell, layout, kernel_threads, threads):
    layer = layer_of(cell, layout=layout, dropout=0)
    calls = [call_of(layer, layout, T=3 + k % 4, seed=k) for k in range(8)]
    expected = [call.alone(layer.dropout_state) for call in calls]
    fastrnn.set_num_threads(kernel_threads)
    start = threading.Barrier(8)

    def serve(k):
        start.wait()
        results = []
        for i in range(6):
            call = calls[(k + i) % 8]
            out, p = call.forward()
            if i % 2:
                layer(calls[k].data["x"]) if layout != "embedding" else None
            results.append(out | call.gradients(p))
        return results

    with ThreadPoolExecutor(8) as pool:
        for k, results in enumerate(pool.map(serve, range(8))):
            for i, got in enumerate(results):
                stacks.assert_same(got, expected[(k + i) % 8])
    assert not np.any(layer.flat_grads)


@pytest.mark.parametrize("which", ["the layer's", "given"])
def test_threads_that_add_to_the_same_gradients_are_refused_or_right(which):
    layer = fastrnn.LSTM(20, 64, seed=0)
    x = np.random.default_rng(0).standard_normal((30, 6, 20)).astype(np.float32)
    dy = np.ones((30, 6, 64), np.float32)
    shared = layer.new_grads()
    grads = shared if which == "given" else None
    added, refused, start = [], [], threading.Barrier(4)

    def serve(_):
        passes = [layer.forward(x)[2] for _ in range(40)]
        start.wait()
        for p in passes:
            try:
                p.backward(dy, grads=grads)
                added.append(p)
            except RuntimeError as error:
                refused.append(str(error))
                assert not p.spent

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(serve, range(4)))
    assert len(added) + len(refused) == 160
    assert set(refused) <= {
        "backward: another thread is adding to the same gradients; give each thread its own: "
        "backward(grads=model.new_grads())"}
    other = fastrnn.LSTM(20, 64, seed=0)
    for _ in added:
        other.forward(x)[2].backward(dy)
    stacks.assert_same(shared if grads else layer.grads, other.grads)


def test_one_pass_goes_back_once_however_many_threads_try():
    layer = fastrnn.LSTM(20, 64, seed=0)
    x = np.ones((30, 6, 20), np.float32)
    expected = layer.new_grads()
    layer.forward(x)[2].backward(np.ones((30, 6, 64), np.float32), grads=expected)
    for _ in range(20):
        _, _, p = layer.forward(x)
        start, done = threading.Barrier(4), []

        def serve(_, p=p, start=start, done=done):
            grads = layer.new_grads()
            start.wait()
            try:
                p.backward(np.ones((30, 6, 64), np.float32), grads=grads)
            except RuntimeError:
                assert not any(array.any() for array in grads.values())
            else:
                done.append(grads)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(serve, range(4)))
        (grads,) = done
        stacks.assert_same(grads, expected)


# ---------------------------------------------------------------------------- changed parameters


def double_all(layer):
    layer.flat *= 2


def double_one(layer):
    layer.weight_hh_l0 *= 2


def double_named(layer):
    layer.parameters()["bias_ih_l0"] *= 2


CHANGES = {
    "load_state_dict": lambda a: a.load_state_dict(a.state_dict()),
    "flat =": lambda a: setattr(a, "flat", a.flat * 2),
    "flat *=": double_all,
    "weight =": lambda a: setattr(a, "weight_hh_l0", a.weight_hh_l0 * 2),
    "weight *=": double_one,
    "parameters()[] =": lambda a: a.parameters().update(weight_hh_l0=a.weight_hh_l0 * 2),
    "parameters()[] *=": double_named,
    "init": lambda a: init.orthogonal(a, seed=1),
}


@pytest.mark.parametrize("which", CHANGES)
def test_parameters_that_the_library_changed_make_backward_an_error(which):
    layer = fastrnn.GRU(3, 4, 2, seed=0)
    call = call_of(layer)
    _, p = call.forward()
    layer(call.data["x"])
    CHANGES[which](layer)
    for back in (p.backward, layer.backward):
        with pytest.raises(RuntimeError, match=r"^backward: the parameters have changed since"):
            back(call.data["dy"])
    assert not np.any(layer.flat_grads)
    out, p = call.forward()
    stacks.assert_same(out | call.gradients(p), call.alone(layer.dropout_state))


def test_a_change_through_a_model_counts_too():
    layer = fastrnn.GRU(3, 4, seed=0)
    stack = fastrnn.Stack([layer])
    for change in (lambda: stack.load_state_dict(stack.state_dict()),
                   lambda: stack.parameters().update({"layers.0.bias_ih_l0": np.ones(12)})):
        _, _, p = layer.forward(np.ones((2, 1, 3), np.float32))
        change()
        with pytest.raises(RuntimeError, match="the parameters have changed since forward"):
            p.backward()


def test_what_changes_no_parameter_does_not_count():
    layer = fastrnn.GRU(3, 4, 2, seed=0)
    call = call_of(layer)
    expected = call.alone(layer.dropout_state)
    out, p = call.forward()
    layer.zero_grad()
    layer.grads["bias_ih_l0"] = np.ones(12)
    layer.flat_grads = np.zeros(layer.flat.size)
    with pytest.raises(ValueError, match="has shape"):
        layer.flat = np.ones(3)
    with pytest.raises(ValueError, match="unexpected"):
        layer.load_state_dict(layer.state_dict() | {"more": np.ones(3)})
    layer.eval().train()
    stacks.assert_same(out | call.backward(p) | dict(layer.grads), expected)


# ---------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_a_dropped_pass_gives_its_memory_back(mode):
    layer = fastrnn.LSTM(3, 64, 2, seed=0).train(mode)
    x = np.zeros((200, 8, 3), np.float32)
    nbytes = layer.forward(x)[2].nbytes
    assert nbytes > 200 * 8 * 64 * 4 * 5 * 2
    tracemalloc.start()
    try:
        _, _, p = layer.forward(x)
        del p
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(5):
            tracemalloc.reset_peak()
            layer.forward(x)
            assert tracemalloc.get_traced_memory()[1] - before < nbytes  # y is what is new
        kept = [layer.forward(x)[2] for _ in range(4)]
        assert tracemalloc.get_traced_memory()[0] - before > 2 * nbytes
        del kept
        layer.forward(x)
        assert tracemalloc.get_traced_memory()[0] - before < 3 * nbytes
    finally:
        tracemalloc.stop()


def test_a_layer_is_freed_without_the_garbage_collector():
    x = np.zeros((20, 8, 3), np.float32)
    gc.collect()
    gc.disable()
    try:
        for pending in (True, False):
            layer = fastrnn.LSTM(3, 64, seed=0)
            y, _ = layer(x)
            if not pending:
                layer.backward(y)
            gone = weakref.ref(layer)
            del layer
            assert gone() is None
        layer = fastrnn.LSTM(3, 64, seed=0)
        y, _, p = layer.forward(x)
        gone = weakref.ref(layer)
        del layer
        assert gone() is p.layer  # what the pass needs lives as long as the pass
        p.backward(y)
        del p
        assert gone() is None
    finally:
        gc.enable()


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
