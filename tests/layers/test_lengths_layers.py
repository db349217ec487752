"""Layers with lengths and resets: stacked, in two directions, in every layout and mode.

Letters: T steps, B batch, I input, H hidden.
"""

import copy
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
import ragged
import stacks
from episodes import LENGTHS, PLANS, RESET, B, T
from hypothesis import given, settings
from hypothesis import strategies as st
from stacks import per_cell, per_dtype, per_kind

import fastrnn
from fastrnn._kernels import runtime
from fastrnn._kernels.timeline import Timeline
from fastrnn.layers.packs import pair
from fastrnn.layers.passes import Layout

SUPPORTED = [name for name, has in runtime.isa_names().items() if has]
FULL = {"lengths": np.full(B, T), "reset": np.zeros((T, B), bool), "reset_to": "initial"}

per_plan = pytest.mark.parametrize("plan", PLANS)


# ------------------------------------------------------------------------ what the results are


@per_plan
@per_dtype
@per_cell
def test_stacked_layers_of_two_directions(cell, dtype, plan):
    plan = PLANS[plan]
    layer = ragged.layer_of(cell, dtype=dtype, batch_first=plan.get("reset") is RESET)
    data = stacks.draw(layer, T, B)
    if "lengths" in plan:
        data = ragged.spoilt(data, LENGTHS)
    record = ragged.record_of(layer)
    got = ragged.run(layer, data, record, **plan)
    ragged.assert_alone(layer, data, got, ragged.alone(layer, data, record, **plan),
                        plan.get("reset_to", "zero"))
    plain = {name: array for name, array in got.items() if name[-2:] not in ("_0", "_1")}
    stacks.assert_composed(layer, plain, data, **plan)


@given(
    cell=st.sampled_from(cases.CELLS), dtype=st.sampled_from(cases.DTYPES), T=st.integers(0, 12),
    B=st.integers(0, 30), I=st.integers(1, 20), H=st.integers(1, 40), L=st.integers(1, 3),
    D=st.integers(1, 2), batch_first=st.booleans(), chance=st.sampled_from([0, 0.05, 0.3, 1]),
    reset_to=st.sampled_from(["zero", "initial"]), threads=st.sampled_from([1, 2, 3, 8]),
    isa=st.sampled_from(SUPPORTED), seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_lengths_and_resets(cell, dtype, T, B, I, H, L, D, batch_first, chance, reset_to,
                                threads, isa, seed):
    before = runtime.get_isa(), runtime.get_num_threads()
    runtime.set_isa(isa)
    fastrnn.set_num_threads(threads)
    try:
        layer = ragged.layer_of(cell, I, H, L, D=D, dtype=dtype, seed=seed,
                                batch_first=batch_first)
        plan = ragged.plan_of(T, B, seed, chance, reset_to)
        data = ragged.spoilt(stacks.draw(layer, T, B, seed), plan["lengths"])
        got = ragged.run(layer, data, **plan)
        ragged.assert_alone(layer, data, got, ragged.alone(layer, data, **plan), reset_to)
        if cell != "rnn_relu":  # a rounding beside the kink moves a whole gradient
            stacks.assert_composed(layer, got, data, **plan)
    finally:
        runtime.set_isa(before[0])
        fastrnn.set_num_threads(before[1])


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("batch_first", [False, True])
@per_kind
def test_full_lengths_and_no_flags_change_nothing(cell, batch_first, dropout):
    layer = ragged.layer_of(cell, L=3, dropout=dropout, batch_first=batch_first)
    data = stacks.draw(layer, T, B)
    record = ragged.record_of(layer)
    state = layer.dropout_state
    expected = ragged.run(layer, data, record)
    for names in (["lengths"], ["reset"], ["reset_to"], list(FULL)):
        plan = {name: FULL[name] for name in names}
        layer.dropout_state = state
        out, p = ragged.forward(layer, data, **plan)
        assert p.kept.time is None  # the way of a call without them
        stacks.assert_same(out | ragged.backward(layer, data, p, record), expected)


# --------------------------------------------------------------------------- layouts and arrays


@per_plan
@per_kind
def test_the_batch_first_and_arrays_with_gaps(cell, plan):
    plan = PLANS[plan]
    layer = ragged.layer_of(cell)
    data = stacks.draw(layer, T, B)
    expected = ragged.run(layer, data, **plan)
    other = ragged.layer_of(cell, batch_first=True)
    other.load_state_dict(layer.state_dict())
    stacks.assert_same(ragged.run(other, data, **plan), expected)

    def laid_out(array, order):
        """Return the same values in memory that is ordered otherwise, with gaps."""
        room = np.full((*(array.shape[k] for k in order), 2), np.nan, array.dtype)
        view = room[..., 0].transpose(np.argsort(order))
        view[...] = array
        return view

    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        moved = data | {name: laid_out(data[name], order) for name in ("x", "dy")}
        for each in (layer, other):
            stacks.assert_same(ragged.run(each, moved, **plan), expected)
    for name in ("x", "dy"):  # views that need no copy: rows lie apart, batch first in memory
        wide = np.full((B, T, data[name].shape[2] + 3), np.nan, np.float32)
        wide[..., :-3] = data[name].swapaxes(0, 1)
        moved = data | {name: wide[..., :-3].swapaxes(0, 1)}
        for each in (layer, other):
            stacks.assert_same(ragged.run(each, moved, **plan), expected)


@pytest.mark.parametrize("batch_first", [False, True])
@per_kind
def test_one_sequence(cell, batch_first):
    layer = ragged.layer_of(cell, batch_first=batch_first)
    data = ragged.spoilt(stacks.draw(layer, 8, 1), np.array([5]))
    reset = np.array([False, False, True, False, False, False, True, False])
    single = stacks.one_for_all(data, "unbatched")
    for plan in ({"lengths": 5}, {"lengths": np.int8(5)}, {"lengths": np.array(5)},
                 {"lengths": 5, "reset": reset}, {"lengths": 5, "reset": reset.tolist()},
                 {"lengths": 5, "reset": reset, "reset_to": "initial"}, {"lengths": 0}):
        many = plan | {"lengths": np.array([plan["lengths"]])}
        if "reset" in plan:
            many["reset"] = reset[:, None]
        expected = ragged.run(layer, data, **many)
        grads = layer.new_grads()
        y, state, p = layer.forward(single["x"], stacks.state_of(single, "h0", "c0"), **plan)
        dx, dstate = p.backward(single["dy"], stacks.state_of(single, "dhn", "dcn"), grads=grads)
        got = {"y": y[:, None], "dx": dx[:, None], **grads}
        states = stacks.named("hn", "cn", state) | stacks.named("dh0", "dc0", dstate)
        got |= {name: array[:, None] for name, array in states.items()}
        stacks.assert_same(got, expected)


@pytest.mark.parametrize("plan", ["lengths", "both"])
@per_kind
def test_one_hot_symbols_and_an_embedding(cell, plan):
    """As models call their layers: lengths of symbols, in each layout of a Timeline."""
    plan = PLANS[plan]
    layer = ragged.layer_of(cell, I=4)
    rng = np.random.default_rng(0)
    index = rng.integers(4, size=(T, B), dtype=np.int32)
    table = rng.standard_normal((4, 4)).astype(np.float32)
    data = stacks.draw(layer, T, B)
    state, dstate = stacks.state_of(data, "h0", "c0"), stacks.state_of(data, "dhn", "dcn")
    time = Timeline(LENGTHS, T, plan.get("reset"), False)
    places = np.full((T, B), -1)
    for x, same in ((table, table[index]), (None, np.eye(4, dtype=np.float32)[index])):
        expected = ragged.run(layer, data | {"x": same}, ("h", "dgates_x"), **plan)
        for layout in ("time", "batch", "packed", "sequences", "walk"):
            rows, grid = time.rows(layout), time.rows("time")
            rows = np.arange(time.N) if rows is None else rows
            places[...] = -1
            places.reshape(-1)[grid] = rows
            alive = places >= 0
            symbols = np.full(time.size(layout), -7, np.int32)
            symbols[places[alive]] = index[alive]
            dy = np.full((time.size(layout), 18), np.nan, np.float32)
            dy[places[alive]] = data["dy"][alive]
            y, final, p = layer.run(x, symbols, state, grad=True, dropout=False, time=time,
                                    source=layout, target=layout, layout=Layout(rows=True))
            grads = layer.new_grads()
            dx, initial, recorded = p.backward(dy, dstate, grads=grads,
                                               record=("x", "h", "dgates_x"))
            got = np.zeros_like(expected["y"])
            got[alive] = y[places[alive]]
            close = {"y": got, **stacks.named("hn", "cn", final),
                     **stacks.named("dh0", "dc0", initial), **grads}
            for number in (0, 1):
                for name in ("h", "dgates_x"):
                    close[f"{name}_{number}"] = recorded[number][name]
            for name, array in close.items():
                cases.assert_close(f"{layout} {name}", array, expected[name],
                                   stacks.tolerance(layer, data, "dx"))
            assert not y[~np.isin(np.arange(len(y)), places)].any()  # padding
            first = recorded[0]["x"]
            if x is None:
                assert dx is None
                np.testing.assert_array_equal(first, np.where(alive, index, 0))
            else:
                np.testing.assert_array_equal(first, np.where(alive[..., None], table[index], 0))
                total = np.zeros((4, 4))
                np.add.at(total, index[alive], expected["dx"][alive])
                cases.assert_close("dx", dx, total.astype(np.float32),
                                   stacks.tolerance(layer, data, "dx"))


# ------------------------------------------------------------------------------ modes and passes


@per_plan
@per_kind
def test_modes(cell, plan):
    plan = PLANS[plan]
    layer = ragged.layer_of(cell, dropout=0.5)
    data = stacks.draw(layer, T, B)
    expected, _ = ragged.forward(layer, data, grad=False, **plan)
    y, state = layer.eval()(data["x"], stacks.state_of(data, "h0", "c0"), **plan)
    stacks.assert_same({"y": y, **stacks.named("hn", "cn", state)}, expected)
    out, p = ragged.forward(layer, data, **plan)  # a pass of an evaluation
    stacks.assert_same(out, expected)
    twin = ragged.layer_of(cell)
    twin.load_state_dict(layer.state_dict())
    stacks.assert_same(out | ragged.backward(layer, data, p), ragged.run(twin, data, **plan))


@pytest.mark.parametrize("T", [6, 40])  # weights of few steps are not unpacked
@per_kind
def test_bfloat16(cell, T, threads):
    layer = ragged.layer_of(cell, 11, 20)
    for sizes in ((T, 5), (T, 40)):
        data = stacks.draw(layer, *sizes)
        plan = ragged.plan_of(*sizes)
        data = ragged.spoilt(data, plan["lengths"])
        rounded = layer.state_dict()
        for name, array in rounded.items():
            if name.startswith("weight"):
                rounded[name] = pair(array)[0]
        other = ragged.layer_of(cell, 11, 20)
        other.load_state_dict(rounded)
        expected, _ = ragged.forward(other.eval(), data, grad=False, **plan)
        half = copy.deepcopy(layer).eval("bfloat16")
        for count in threads:
            fastrnn.set_num_threads(count)
            stacks.assert_same(ragged.forward(half, data, grad=False, **plan)[0], expected)


@per_plan
@per_kind
def test_the_short_form(cell, plan):
    plan = PLANS[plan]
    layer = ragged.layer_of(cell)
    data = stacks.draw(layer, T, B)
    expected = ragged.run(layer, data, **plan)
    y, state = layer(data["x"], stacks.state_of(data, "h0", "c0"), **plan)
    got = {"y": y, **stacks.named("hn", "cn", state)}
    stacks.assert_same(got | stacks.backward(layer, data), expected)
    y, _ = layer(data["x"], stacks.state_of(data, "h0", "c0"), **plan)
    dx, _ = layer.backward(data["dy"], need_dx=False)
    assert dx is None


@per_plan
@per_kind
def test_a_pass_may_be_kept_and_many_may_be_in_flight(cell, plan):
    plan = PLANS[plan]
    layer = ragged.layer_of(cell, dropout=0.3)
    data, other = stacks.draw(layer, T, B), stacks.draw(layer, T + 3, B + 2, 2)
    record = ragged.record_of(layer)
    state = layer.dropout_state
    out, p = ragged.forward(layer, data, **plan)
    more = ragged.plan_of(T + 3, B + 2)
    second = layer.dropout_state
    later, q = ragged.forward(layer, other, **more)
    expected = ragged.backward(layer, data, p, record, retain=True)
    stacks.assert_same(ragged.backward(layer, data, p, record, retain=True), expected)
    theirs = ragged.backward(layer, other, q)
    stacks.assert_same(ragged.backward(layer, data, p, record), expected)
    assert p.spent
    layer.dropout_state = second
    stacks.assert_same(ragged.run(layer, other, **more), later | theirs)
    layer.dropout_state = state
    stacks.assert_same(ragged.run(layer, data, record, **plan), out | expected)


@per_kind
def test_many_threads_of_one_layer(cell):
    layer = ragged.layer_of(cell, 20, 30)
    calls = [(stacks.draw(layer, 9, 20, seed), ragged.plan_of(9, 20, seed)) for seed in range(6)]
    expected = [ragged.run(layer, data, ("dh", "h"), **plan) for data, plan in calls]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            results = pool.map(lambda call: ragged.run(layer, call[0], ("dh", "h"), **call[1]),
                               calls)
            for got, right in zip(results, expected, strict=True):
                stacks.assert_same(got, right)


@per_kind
def test_the_masks_are_zero_in_no_padding_and_drawn_for_real_rows_alone(cell):
    layer = ragged.layer_of(cell, dropout=0.5)
    data = stacks.draw(layer, T, B)
    state = layer.dropout_state
    expected = ragged.run(layer, data, **PLANS["both"])
    longer = {name: np.concatenate([array, np.full_like(array, np.nan)])
              if name in ("x", "dy") else array for name, array in data.items()}
    layer.dropout_state = state
    plan = PLANS["both"] | {"reset": np.concatenate([RESET, RESET])}
    got = ragged.run(layer, longer, **plan)  # more padding draws no other masks
    for name in ("y", "dx"):
        assert not got[name][T:].any()
        got[name] = got[name][:T]
    stacks.assert_same(got, expected)
    layer.dropout_state = state
    layer.dropout = 0.0
    kept = ragged.run(layer, data, **PLANS["both"])
    assert kept["y"].tobytes() != expected["y"].tobytes()
