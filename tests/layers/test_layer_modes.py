"""Parameters of layers, their two modes, copies, and memory."""

import copy
import doctest
import gc
import math
import pickle
import sys
import tracemalloc

import cases
import numpy as np
import pytest
import stacks

import fastrnn

# ---------------------------------------------------------------------- parameters and gradients


@stacks.per_cell
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_parameters_are_views_in_torchs_order(cell, bias):
    layer = cases.LAYERS[cell](3, 5, 2, bias=bias, bidirectional=True)
    rows = cases.GATES[cell] * 5
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if bias else [])]
    order = [f"{n}_l{k}{d}" for k in range(2) for d in ("", "_reverse") for n in names]
    params = layer.parameters()
    assert list(params) == list(layer.grads) == order
    widths = {"weight_ih_l0": 3, "weight_hh_l0": 5, "weight_ih_l1_reverse": 10}
    for name, width in widths.items():
        assert params[name].shape == layer.grads[name].shape == (rows, width)
    if bias:
        assert params["bias_hh_l1"].shape == (rows,)
    assert layer.flat.dtype == layer.flat_grads.dtype == layer.dtype == np.float32
    stacks.assert_views(layer)
    assert not np.any(layer.flat_grads)


@stacks.per_cell
def test_gradients_accumulate_until_zero_grad(cell):
    layer = cases.LAYERS[cell](3, 4, 2, dtype=np.float64, seed=0)
    first, second = stacks.draw(layer, 5, 2, seed=1), stacks.draw(layer, 3, 3, seed=2)
    alone = []
    for data in (first, second):
        stacks.both(layer, data)
        alone.append(layer.flat_grads.copy())
        layer.zero_grad()
        assert not np.any(layer.flat_grads)
    stacks.both(layer, first)
    stacks.both(layer, second)
    cases.assert_close("flat_grads", layer.flat_grads, sum(alone), 1e-14)


@stacks.per_kind
def test_need_dx_changes_nothing_else(cell):
    layer = cases.LAYERS[cell](3, 4, 2, bidirectional=True, seed=0)
    data = stacks.draw(layer, 5, 2)
    full = stacks.both(layer, data)
    layer.zero_grad()
    without = stacks.forward(layer, data) | stacks.backward(layer, data, need_dx=False)
    assert without.pop("dx") is None
    del full["dx"]
    stacks.assert_same(without, full)


def test_initial_weights_are_uniform_and_come_from_the_seed():
    layer = fastrnn.LSTM(100, 64, seed=7)
    bound = 1 / 8
    scaled = np.sort(layer.flat.astype(np.float64) / bound)
    assert -1 <= scaled[0] < -0.999 < 0.999 < scaled[-1] <= 1
    ideal = (np.arange(scaled.size) + 0.5) / scaled.size * 2 - 1
    assert abs(scaled - ideal).max() / 2 < 2 / math.sqrt(scaled.size)  # Kolmogorov-Smirnov, 1e-3
    assert layer.flat.tobytes() == fastrnn.LSTM(100, 64, seed=7).flat.tobytes()
    for other in (8, None):
        assert np.mean(layer.flat == fastrnn.LSTM(100, 64, seed=other).flat) < 0.01
    assert np.mean(fastrnn.GRU(9, 9).flat == fastrnn.GRU(9, 9).flat) < 0.01
    double = fastrnn.LSTM(100, 64, seed=7, dtype=np.float64)
    np.testing.assert_array_equal(double.flat.astype(np.float32), layer.flat)


# ------------------------------------------------------------------------------------- two modes


@stacks.per_dtype
@stacks.per_cell
def test_eval_gives_the_bytes_of_train(cell, dtype):
    for num_layers, bidirectional in ((1, False), (2, True)):
        layer = cases.LAYERS[cell](7, 17, num_layers, bidirectional=bidirectional, dtype=dtype,
                                   seed=0)
        data = stacks.draw(layer, 9, 3)
        trained = stacks.forward(layer, data)
        assert layer.training is True
        assert layer.eval() is layer
        assert layer.training is False
        for _ in range(2):
            stacks.assert_same(stacks.forward(layer, data), trained)
        assert layer.train() is layer
        assert layer.training is True
        stacks.assert_same(stacks.forward(layer, data), trained)


@stacks.per_kind
def test_eval_makes_parameters_read_only(cell):
    layer = cases.LAYERS[cell](3, 4, 2, seed=0)
    early = layer.parameters()
    data = stacks.draw(layer, 5, 2)
    before, out = layer.flat.tobytes(), stacks.forward(layer, data)
    layer.eval()
    for array in (layer.flat, *layer.parameters().values(), *early.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        with pytest.raises(ValueError, match="read-only"):
            array += 1
    with pytest.raises(ValueError, match="read-only"):
        layer.flat -= 1
    assert layer.flat.tobytes() == before
    stacks.assert_same(stacks.forward(layer, data), out)
    layer.flat_grads += 1  # gradients stay writeable
    layer.train()
    layer.flat -= 1
    early["weight_hh_l1"][...] = 0
    assert not np.any(layer.parameters()["weight_hh_l1"])
    stacks.assert_views(layer)


@stacks.per_kind
def test_new_weights_show_in_both_modes(cell):
    layer, other = (cases.LAYERS[cell](3, 4, 2, seed=seed) for seed in (0, 1))
    data = stacks.draw(layer, 5, 2)
    layer.eval()
    stacks.forward(layer, data)
    layer.train()
    layer.flat[:] = other.flat
    expected = stacks.forward(other, data)
    stacks.assert_same(stacks.forward(layer, data), expected)
    layer.eval()
    stacks.assert_same(stacks.forward(layer, data), expected)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@stacks.per_dtype
@stacks.per_kind
def test_load_state_dict(cell, dtype, mode):
    source = cases.LAYERS[cell](3, 4, 2, bidirectional=True, dtype=np.float64, seed=1)
    layer = cases.LAYERS[cell](3, 4, 2, bidirectional=True, dtype=dtype, seed=2).train(mode)
    data = stacks.draw(layer, 5, 2)
    state = source.state_dict()
    copies = copy.deepcopy(state)
    flat = layer.flat
    layer.load_state_dict(dict(reversed(state.items())))
    assert layer.training is mode
    assert layer.flat is flat
    assert flat.flags.writeable is mode
    np.testing.assert_array_equal(flat, source.flat.astype(dtype))
    stacks.assert_same(state, copies)
    source = cases.LAYERS[cell](3, 4, 2, bidirectional=True, dtype=dtype)
    source.flat[:] = flat
    stacks.assert_same(stacks.forward(layer, data), stacks.forward(source, data))
    stacks.assert_views(layer)


def test_state_dict_copies():
    layer = fastrnn.GRU(3, 4, 2, seed=0)
    for mode in (True, False):
        layer.train(mode)
        state = layer.state_dict()
        stacks.assert_same(state, layer.parameters())
        for array in state.values():
            assert not np.shares_memory(array, layer.flat)
            array[...] = 0
        assert np.all(layer.flat)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_load_state_dict_lists_every_problem_and_changes_nothing(mode):
    layer = fastrnn.GRU(3, 4, 2, seed=0).train(mode)
    data = stacks.draw(layer, 5, 2)
    before, expected = layer.flat.tobytes(), stacks.forward(layer, data)
    state = {name: np.zeros_like(array) for name, array in layer.parameters().items()}
    del state["bias_ih_l0"], state["weight_hh_l1"]
    state |= {"fc.weight": np.zeros(3), "bias_ih_l2": np.zeros(12)}
    state |= {"weight_ih_l0": np.zeros((12, 7)), "bias_hh_l1": np.zeros((1, 12))}
    with pytest.raises(ValueError, match=r"^GRU\.load_state_dict: ") as error:
        layer.load_state_dict(state)
    for part in (
        "missing ['bias_ih_l0', 'weight_hh_l1']",
        "unexpected ['fc.weight', 'bias_ih_l2']",
        "weight_ih_l0 has shape (12, 7), expected (12, 3)",
        "bias_hh_l1 has shape (1, 12), expected (12,)",
    ):
        assert part in str(error.value)
    state = layer.state_dict() | {"bias_hh_l1": np.array(["a"] * 12)}
    state["weight_ih_l0"][...] = 0
    with pytest.raises(TypeError, match="bias_hh_l1 is <U1, expected numbers"):
        layer.load_state_dict(state)
    assert layer.flat.tobytes() == before
    assert layer.training is mode
    assert layer.flat.flags.writeable is mode
    stacks.assert_same(stacks.forward(layer, data), expected)


# ---------------------------------------------------------------------------- forward and backward


@stacks.per_kind
def test_eval_calls_do_not_disturb_the_way_back(cell):
    layer = cases.LAYERS[cell](3, 4, 2, bidirectional=True, seed=0)
    data, other = stacks.draw(layer, 5, 2), stacks.draw(layer, 5, 2, seed=9)
    expected = stacks.both(layer, data)
    for back_in_train in (True, False):
        layer.train()
        layer.zero_grad()
        got = stacks.forward(layer, data)
        layer.eval()
        for B in (2, 7):
            stacks.forward(layer, stacks.draw(layer, 11, B))
        stacks.forward(layer, other)
        layer.train(back_in_train)
        stacks.assert_same(got | stacks.backward(layer, data), expected)


@stacks.per_kind
def test_backward_needs_a_training_call_of_its_own(cell):
    layer = cases.LAYERS[cell](3, 4, seed=0)
    data = stacks.draw(layer, 5, 2)
    steps = [lambda: None, lambda: stacks.forward(layer.eval(), data),
             lambda: stacks.both(layer.train(), data)]
    for step in steps:
        step()
        grads = layer.flat_grads.tobytes()
        with pytest.raises(RuntimeError, match=r"backward: no call to go back through"):
            stacks.backward(layer, data)
        assert layer.flat_grads.tobytes() == grads


@stacks.per_kind
def test_a_refused_backward_can_be_repeated(cell):
    layer = cases.LAYERS[cell](3, 4, 2, bidirectional=True, seed=0)
    data = stacks.draw(layer, 5, 2)
    expected = stacks.both(layer, data)
    layer.zero_grad()
    stacks.forward(layer, data)
    for name in ("dy", "dhn", "dcn"):
        if name not in data:
            continue
        for wrong, error in (
            (data[name][:-1], ValueError), (data[name][..., :-1], ValueError),
            (data[name][0], ValueError), (data[name].astype(np.float64), TypeError),
            ("text", TypeError),
        ):
            with pytest.raises(error, match=r"\.backward: d\S+ (has shape|is) .* expected"):
                stacks.backward(layer, data | {name: wrong})
            assert not np.any(layer.flat_grads)
    stacks.assert_same({n: a for n, a in expected.items() if n not in ("y", "hn", "cn")},
                stacks.backward(layer, data))


def test_the_latest_call_is_the_one_to_go_back_through():
    layer = fastrnn.LSTM(3, 4, 2, seed=0)
    first, latest = stacks.draw(layer, 5, 2), stacks.draw(layer, 4, 3)
    expected = stacks.both(layer, latest)
    layer.zero_grad()
    stacks.forward(layer, first)
    stacks.assert_same(stacks.both(layer, latest), expected)


@stacks.per_kind
def test_results_are_the_callers(cell):
    layer = cases.LAYERS[cell](3, 4, 2, seed=0)
    data = stacks.draw(layer, 5, 2)
    copies = copy.deepcopy(data)
    expected = copy.deepcopy(stacks.both(layer, data))
    layer.zero_grad()
    out = stacks.forward(layer, data)
    for array in out.values():
        array.fill(np.nan)  # writing into outputs must not reach the tape
    got = stacks.backward(layer, data)
    stacks.assert_same(got, {name: expected[name] for name in got})
    stacks.both(layer, stacks.draw(layer, 5, 2, seed=3))
    stacks.assert_same({n: a for n, a in got.items() if n in ("dx", "dh0", "dc0")},
                {n: a for n, a in expected.items() if n in ("dx", "dh0", "dc0")})
    stacks.assert_same(data, copies)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("sizes", [(0, 2), (3, 0), (0, 0)], ids=["T=0", "B=0", "T=B=0"])
@stacks.per_cell
def test_no_steps_or_no_rows(cell, sizes, mode):
    layer = cases.LAYERS[cell](3, 4, 2, bidirectional=True, seed=0).train(mode)
    data = stacks.draw(layer, *sizes)
    out = stacks.forward(layer, data)
    assert out["y"].shape == data["dy"].shape
    ends = {"hn": "h0", "cn": "c0"}
    stacks.assert_same({n: a for n, a in out.items() if n != "y"},
                {n: data[ends[n]] for n in out if n != "y"})
    if mode:
        got = stacks.backward(layer, data)
        assert got["dx"].shape == data["x"].shape
        initial = tuple(got[n] for n in ("dh0", "dc0") if n in got)
        stacks.assert_same(stacks.named("dhn", "dcn", initial),
                           {n: data[n] for n in ("dhn", "dcn") if n in data})
        assert not np.any(layer.flat_grads)


def test_no_steps_unbatched_and_batch_first():
    layer = fastrnn.GRU(3, 4, batch_first=True, seed=0)
    for x, y_shape in ((np.zeros((0, 3), np.float32), (0, 4)),
                       (np.zeros((2, 0, 3), np.float32), (2, 0, 4))):
        y, hn = layer(x)
        assert y.shape == y_shape
        assert not np.any(hn)
        dx, _ = layer.backward(y)
        assert dx.shape == x.shape


# ------------------------------------------------------------------------------- copies and print


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@stacks.per_copy
@stacks.per_kind
def test_copies(cell, protocol, mode):
    layer = cases.LAYERS[cell](9, 8, 2, bidirectional=True, dropout=0.5, seed=0)
    data = stacks.draw(layer, 5, 2)
    for _ in range(2):
        stacks.both(layer, data)
    pending = stacks.forward(layer, data)
    layer.train(mode)
    again = (copy.deepcopy(layer) if protocol is None
             else pickle.loads(pickle.dumps(layer, protocol)))
    assert again.training is mode
    assert repr(again) == repr(layer)
    assert again.flat.tobytes() == layer.flat.tobytes()
    assert again.flat_grads.tobytes() == layer.flat_grads.tobytes()
    assert not np.shares_memory(again.flat, layer.flat)
    stacks.assert_views(again)
    assert again.flat.flags.writeable is mode
    for param in again.parameters().values():
        assert param.flags.writeable is mode
    with pytest.raises(RuntimeError, match="no call to go back through"):
        stacks.backward(again, data)
    stacks.backward(layer, data)  # the copy has not taken the original's tape
    again.flat_grads[:] = layer.flat_grads
    stacks.assert_same(stacks.forward(again, data), stacks.forward(layer, data))
    again.train()
    layer.train()
    for _ in range(2):  # the masks go on as the original's
        stacks.assert_same(stacks.both(again, data), stacks.both(layer, data))
    assert np.any(stacks.forward(again, data)["y"] != pending["y"])
    stacks.assert_views(again)
    layer.flat[:] = 0
    assert np.all(again.flat)


def test_a_shallow_copy_cannot_make_a_pack_stale():
    layer = fastrnn.LSTM(3, 4, seed=0).eval()
    data = stacks.draw(layer, 5, 2)
    other = copy.copy(layer).train()
    other.flat[:] = 0
    fresh = fastrnn.LSTM(3, 4)
    fresh.load_state_dict(layer.state_dict())
    stacks.assert_same(stacks.forward(layer, data), stacks.forward(fresh, data))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (lambda: fastrnn.LSTM(3, 4), "LSTM(3, 4)"),
        (lambda: fastrnn.GRU(3, 4, 2, True, True), "GRU(3, 4, num_layers=2, batch_first=True)"),
        (lambda: fastrnn.RNN(3, 4, 1, "relu", False), "RNN(3, 4, nonlinearity='relu', bias=False)"),
        (lambda: fastrnn.RNN(3, 4), "RNN(3, 4)"),
        (
            lambda: fastrnn.LSTM(3, 4, 2, dropout=0.5, bidirectional=True, dtype="float64"),
            "LSTM(3, 4, num_layers=2, dropout=0.5, bidirectional=True, dtype=float64)",
        ),
    ],
)
def test_repr(layer, text):
    assert repr(layer()) == text


@pytest.mark.parametrize("layer", [fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU])
def test_the_examples_in_the_docstrings_run(layer):
    runner, tests = doctest.DocTestRunner(), doctest.DocTestFinder(recurse=False).find(
        layer, globs={"np": np, "fastrnn": fastrnn})
    for test in tests:
        runner.run(test)
    assert runner.tries >= 4
    assert runner.failures == 0


# ----------------------------------------------------------------------------------------- memory


@stacks.per_dtype
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
def test_the_tape_of_an_lstm_is_at_most_six_numbers_per_unit_step_and_row(bidirectional, dtype):
    T, B, H = 50, 8, 64
    layer = fastrnn.LSTM(3, H, 3, bidirectional=bidirectional, dtype=dtype, seed=0)
    *_, p = layer.forward(np.zeros((T, B, 3), dtype))
    units = B * H * (1 + bidirectional) * np.dtype(dtype).itemsize
    assert 3 * 4 * T * units < p.nbytes <= 3 * ((6 * T + 2) * units + 4096)


def test_a_training_call_takes_the_memory_of_the_one_before():
    layer = fastrnn.LSTM(3, 64, seed=0)
    x = np.zeros((200, 8, 3), np.float32)
    nbytes = layer.forward(x)[2].nbytes
    tracemalloc.start()
    try:
        layer(x)
        for _ in range(5):
            size = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            layer(x)  # nobody can go back through the call before it
            assert tracemalloc.get_traced_memory()[1] - size < nbytes / 2
    finally:
        tracemalloc.stop()


def refused(call, *args):
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        call(*args)


def test_calls_do_not_leak():
    layers = [cases.LAYERS[cell](3, 8, 2, bidirectional=True, dropout=0.5, seed=0)
              for cell in ("rnn_tanh", "lstm", "gru")]
    data = [stacks.draw(layer, 6, 3) for layer in layers]
    wrong = np.zeros((6, 3, 4), np.float32)

    def round_of_calls():
        for layer, arrays in zip(layers, data, strict=True):
            layer.train()
            stacks.forward(layer, arrays)
            stacks.forward(layer, arrays)  # drops the tape before
            refused(layer, wrong)
            refused(layer, arrays["x"], "h")
            refused(layer.backward, wrong)
            refused(layer.stream)
            refused(layer.load_state_dict, {"x": wrong})
            stacks.backward(layer, arrays)
            refused(layer.backward, arrays["dy"])
            layer.load_state_dict(layer.state_dict())
            stacks.forward(layer.eval(), arrays)

    clear_caches = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache

    def memory_after(rounds):
        for _ in range(rounds):
            round_of_calls()
        gc.collect()
        clear_caches()  # CPython keeps names of looked-up methods there
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = memory_after(30)
        assert memory_after(100) - before < 3000  # one object a round would be more
    finally:
        tracemalloc.stop()
