"""Where a pass adds its gradients, from which threads, and what makes it refuse."""

import gc
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
import stacks
from flights import call_of, layer_of, per_layout

import fastrnn
from fastrnn import init

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
        for _ in range(4):  # what was in use at once is used again, and no more
            kept = [layer.forward(x)[2] for _ in range(4)]
            assert 2 * nbytes < tracemalloc.get_traced_memory()[0] - before < 4 * nbytes
            del kept
        assert tracemalloc.get_traced_memory()[0] - before < 3.5 * nbytes
        del layer
        assert tracemalloc.get_traced_memory()[0] < before
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
