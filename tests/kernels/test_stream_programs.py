"""Streams with layers that are programs: bits of a sequence, states, copies, threads, misuse."""

import copy
import pickle

import cases
import numpy as np
import pytest
import stacked
from programs import CELLS, SQUARE, Made, packs, sequence_of, stack
from stacked import RNG, draw, flat

from fastrnn._kernels import runtime
from fastrnn._kernels.linear import linear_forward
from fastrnn._kernels.packed import Packed
from fastrnn._kernels.packed_program import PackedProgram
from fastrnn._kernels.stream import Stream

per_cell = pytest.mark.parametrize("cell", CELLS)
per_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)


def inputs_of(cell, H):
    return H if cell in SQUARE else 6


def parts(state):
    return state if isinstance(state, tuple) else (state,)


# ------------------------------------------------------------------------------------------ bits


@per_dtype
@per_cell
def test_steps_and_blocks_are_a_sequence(isa, cell, dtype):
    for B in (1, 3, 17):
        for H in (1, 7, 16, 33):
            I = inputs_of(cell, H)
            made = stack(cell, I, H, 2, dtype=dtype)
            x = draw(7, B, I, dtype=dtype)
            expected, final = sequence_of(made, x)
            step = Stream([packs(made)], B, dtype)
            assert (step.input_size, step.output_size) == (I, expected.shape[2])
            for t in range(7):
                assert step(x[t]).tobytes() == expected[t].tobytes(), (B, H, t)
            assert flat(step.state) == flat(final)
            assert [part.shape for part in parts(step.state)] == [
                (2, B, width) for width in made[0].widths]
            step.reset()
            assert step.block(x[:5]).tobytes() == expected[:5].tobytes()
            assert step(x[5]).tobytes() == expected[5].tobytes()
            assert step.block(x[6:]).tobytes() == expected[6:].tobytes()
            assert step.block(x[:0]).shape == (0, *expected.shape[1:])
            assert flat(step.state) == flat(final)


@per_cell
def test_out_is_filled_and_may_be_x(cell):
    made = stack(cell, 6 if cell not in SQUARE else 7, 7)
    I, O = made[0].program.input_size, made[0].program.output_width
    x = draw(4, 2, I)
    expected, _ = sequence_of(made, x)
    step, out = Stream([packs(made)], 2, np.float32), np.full((2, O), np.nan, np.float32)
    for t in range(4):
        assert step(x[t], out=out) is out
        assert out.tobytes() == expected[t].tobytes()
    step.reset()
    whole = np.full((4, 2, O), np.nan, np.float32)
    assert step.block(x, out=whole) is whole
    assert whole.tobytes() == expected.tobytes()
    if I == O:
        step.reset()
        both = x.copy()
        for t in range(4):
            step(both[t], both[t])
        assert both.tobytes() == expected.tobytes()


@per_cell
def test_a_state_that_is_set_is_where_a_sequence_begins(cell):
    I = inputs_of(cell, 7)
    made = stack(cell, I, 7, 2)
    step = Stream([packs(made)], 3, np.float32, name="S")
    states = tuple(draw(2, 3, width) for width in made[0].widths)
    x = draw(3, 3, I)
    expected, final = sequence_of(made, x, states)
    step(x[0])  # so that the other rows of each state are the present ones
    for k in range(2):
        step.state = states if len(states) > 1 else states[0]
        assert flat(step.state) == flat(states)
        got = step.block(x) if k else np.stack([step(x_t) for x_t in x])
        assert got.tobytes() == expected.tobytes()
        assert flat(step.state) == flat(final)
    step.state = None
    assert flat(step.state) == flat(tuple(np.zeros_like(state) for state in states))


# ---------------------------------------------------------------------------------------- symbols


@per_dtype
@per_cell
def test_rows_of_an_embedding(isa, cell, dtype):
    I = inputs_of(cell, 9)
    made = stack(cell, I, 9, dtype=dtype)
    for V in (1, 30, 5000):
        embedding = draw(V, I, dtype=dtype)
        symbols = RNG.integers(0, V, (4, 3)).astype(np.int32)
        expected, final = made[0].call(embedding, symbols)
        dense, _ = sequence_of(made, embedding[symbols])
        assert expected.tobytes() == dense.tobytes()
        step = Stream([packs(made)], 3, dtype, embedding)
        embedding[:] = np.nan  # the stream has its own
        for t in range(4):
            assert step(symbols[t]).tobytes() == expected[t].tobytes()
        assert flat(parts(step.state)) == flat(final)
        step.reset()
        assert step.block(symbols).tobytes() == expected.tobytes()
        assert flat(parts(step.state)) == flat(final)


@per_dtype
@per_cell
def test_one_hot_rows(isa, cell, dtype):
    I = inputs_of(cell, 9)
    made = stack(cell, I, 9, dtype=dtype)
    symbols = RNG.integers(0, I, (4, 3)).astype(np.int32)
    expected, final = made[0].call(None, symbols)
    step = Stream([packs(made)], 3, dtype, one_hot=True)
    for t in range(4):
        assert step(symbols[t]).tobytes() == expected[t].tobytes()
    assert flat(parts(step.state)) == flat(final)
    step.reset()
    assert step.block(symbols).tobytes() == expected.tobytes()
    with pytest.raises(IndexError, match=f"expected 0 to {I - 1}: one-hot symbols"):
        step([0, I, 0])


# ------------------------------------------------------------------------------------- mixed stacks


def mixed(B, *, seed=0, H=12, **options):
    """Return a stream of all kinds of layers with a head, and what gives its y of x from zeros."""
    lstm = stacked.group("lstm", 6, H, 2, seed=seed)
    three = stack("three", H, H, 2, seed=seed + 1)
    gru = stacked.group("gru", 5, H, seed=seed + 2)
    gated = stack("gated", H, H, seed=seed + 3)
    rng = np.random.default_rng(seed)
    head = rng.standard_normal((4, H)).astype(np.float32), None
    groups = [lstm[1], packs(three), gru[1], packs(gated)]

    def run(x):
        for made in (lstm[0], three, gru[0], gated):
            if isinstance(made[0], Made):
                x, _ = sequence_of(made, x)
                continue
            for call in made:
                call.x, call.index = x, None
                T, rows = x.shape[:2]
                units = call.weights[0][1].shape[1]
                call.dy = np.empty((T, rows, units), np.float32)
                call.h0 = np.zeros((1, rows, units), np.float32)
                call.c0 = np.zeros_like(call.h0) if call.cell == "lstm" else None
                x = call.forward(keep=False)[0]["y"]
        return np.stack([linear_forward(x_t, *head) for x_t in x])

    return Stream(groups, B, np.float32, head=head, nested=True, name="S", **options), run


@pytest.mark.parametrize("B", [1, 3, 16, 33])
def test_programs_among_other_layers_and_a_head(isa, B):
    step, run = mixed(B)
    x = draw(9, B, 6)
    expected = run(x)
    assert (step.num_layers, step.input_size, step.hidden_size, step.output_size) == (6, 6, 12, 4)
    for t in range(9):
        assert step(x[t]).tobytes() == expected[t].tobytes()
    after = step.state
    assert [[part.shape for part in parts(state)] for state in after] == [
        [(2, B, 12), (2, B, 12)], [(2, B, 5), (2, B, 12), (2, B, 12)], [(1, B, 12)], [(1, B, 12)]]
    step.reset()
    assert step.block(x).tobytes() == expected.tobytes()
    assert flat(step.state) == flat(after)


@pytest.mark.parametrize("first", ["lstm", "three"])
def test_symbols_of_a_mixed_stack(first):
    layers = {"lstm": stacked.group("lstm", 5, 5)[1], "three": packs(stack("three", 5, 8))}
    groups = [layers.pop(first), *layers.values()]
    embedding, symbols = draw(5000, 5), RNG.integers(0, 5000, (6, 2))
    for rows in (embedding, embedding[:40]):
        dense, step, other = (Stream(groups, 2, np.float32, e, nested=True)
                              for e in (None, rows, rows))
        expected = [dense(rows[s % len(rows)]).tobytes() for s in symbols]
        assert [step(s % len(rows)).tobytes() for s in symbols] == expected
        assert other.block(symbols % len(rows)).tobytes() == b"".join(expected)


# ------------------------------------------------------------------------------------------- rows


@per_cell
def test_named_rows_advance_alone(isa, cell):
    I = inputs_of(cell, 7)
    made = stack(cell, I, 7, 2)
    step = Stream([packs(made)], 6, np.float32)
    alone = [Stream([packs(made)], 1, np.float32) for _ in range(6)]
    rng = np.random.default_rng(1)
    for turn in range(12):
        rows = rng.permutation(6)[:rng.integers(0, 7)]
        T = turn % 4
        x = draw(T, len(rows), I)
        got = step(x[0], rows=rows)[None] if T == 1 else step.block(x, rows=rows)
        for k, row in enumerate(rows):
            for t in range(T):
                assert got[t, k].tobytes() == alone[row](x[t, k:k + 1]).tobytes()
        if turn % 3 == 0:
            x = draw(6, I)
            assert step(x).tobytes() == b"".join(
                one(x[k:k + 1]).tobytes() for k, one in enumerate(alone))
        for row in range(6):
            assert flat(step.rows[[row]]) == flat(alone[row].state)


@per_cell
def test_states_of_named_rows(cell):
    I = inputs_of(cell, 7)
    step = Stream([packs(stack(cell, I, 7, 2))], 5, np.float32)
    step(draw(5, I))
    before = parts(step.state)
    step.rows[[4, 0]] = step.rows[[1, 2]]
    after = parts(step.state)
    for old, new in zip(before, after, strict=True):
        assert new.tobytes() == old[:, [2, 1, 2, 3, 1]].tobytes()
    step.reset([1, 3])
    for new, got in zip(after, parts(step.state), strict=True):
        new[:, [1, 3]] = 0
        assert new.tobytes() == got.tobytes()
    step.rows[np.array([True, False, True, False, False])] = None
    assert all(not part[:, [0, 1, 2, 3]].any() for part in parts(step.state))


def test_a_wrong_call_changes_nothing():
    made = stack("three", 6, 7)
    step = Stream([packs(made)], 3, np.float32, name="S")
    step(draw(3, 6))
    before = flat(step.state)
    for use, error, match in (
        (lambda: step(draw(3, 5)), ValueError, r"S: x has shape \(3, 5\), expected \(3, 6\)"),
        (lambda: step(draw(2, 6), rows=[0, 0]), ValueError, "names a row twice"),
        (lambda: step(draw(1, 6), rows=[3]), IndexError, "expected 0 to 2"),
        (lambda: step(draw(3, 6), np.empty((3, 7), np.float32)), ValueError, "S: out"),
        (lambda: step.block(draw(3, 6)), ValueError, r"expected \(T, 3, 6\)"),
    ):
        with pytest.raises(error, match=match):
            use()
        assert flat(step.state) == before


# ----------------------------------------------------------------------------------------- copies


@per_cell
def test_copies_go_on_alone_with_the_same_bits(isa, cell):
    I = inputs_of(cell, 7)
    for options in ({}, {"embedding": draw(9, I)}, {"embedding": draw(5000, I)},
                    {"one_hot": True}):
        made = stack(cell, I, 7, 2)
        step = Stream([packs(made)], 2, np.float32, **options)
        x = RNG.integers(0, min(I, 9), (5, 2)) if options else draw(5, 2, I)
        step(x[0])
        before = flat(step.state)
        twins = [step.copy(), copy.copy(step), copy.deepcopy(step),
                 pickle.loads(pickle.dumps(step))]
        expected = [step(x_t).tobytes() for x_t in x]
        for twin in twins:
            assert flat(twin.state) == before
            assert [twin(x_t).tobytes() for x_t in x[:2]] == expected[:2]
            assert twin.block(x[2:]).tobytes() == b"".join(expected[2:])
            assert flat(twin.state) == flat(step.state)
        twins[0].reset()
        assert flat(twins[1].state) == flat(step.state) != flat(twins[0].state)


def test_copies_of_mixed_stacks():
    step, _ = mixed(2)
    x = draw(4, 2, 6)
    step(x[0])
    twins = [step.copy(), pickle.loads(pickle.dumps(step))]
    expected = step.block(x).tobytes()
    assert [twin.block(x).tobytes() for twin in twins] == [expected] * 2


@per_dtype
@per_cell
def test_a_pickle_has_the_weights_of_the_moment_when_they_were_packed(isa, cell, dtype):
    I = inputs_of(cell, 17)
    made = Made(cell, I, 17, dtype, 0)
    pack, x = made.packed(), draw(3, I, dtype=dtype)
    step = Stream([[pack]], 3, dtype)
    parameters = [array.copy() for array in made.parameters]
    for array in made.parameters:
        array[:] = 0
    _, arguments = pickle.loads(pickle.dumps(pack)).__reduce__()
    assert [a.tobytes() for a in arguments[2]] == [a.tobytes() for a in parameters]
    twins = [step.copy(), pickle.loads(pickle.dumps(step)), Stream([[copy.copy(pack)]], 3, dtype)]
    expected = step(x).tobytes()
    assert [twin(x).tobytes() for twin in twins] == [expected] * 3
    assert isinstance(pack, PackedProgram)
    assert pack.nbytes >= sum(a.nbytes for a in parameters[-1:])


def test_a_pickle_goes_to_another_instruction_set():
    sets = [name for name, has in runtime.isa_names().items() if has]
    step, x = mixed(2)[0], draw(3, 2, 6)
    step(x[0])
    data, expected = pickle.dumps(step), step.block(x)
    before = runtime.get_isa()
    try:
        for name in sets:
            runtime.set_isa(name)
            got = pickle.loads(data).block(x)
            assert np.abs(got - expected).max() < 1e-5
    finally:
        runtime.set_isa(before)


# ---------------------------------------------------------------------------------------- threads


@per_cell
def test_any_number_of_threads_gives_the_same_bits(threads, cell):
    """Few rows: threads share the units, with barriers; many rows: a block shares the rows."""
    H = 750 if cell not in ("own", "highway", "masked", "ligru") else 900
    I = H if cell in SQUARE else 40
    made = stack(cell, I, H, 1 if cell == "own" else 2, seed=3)
    groups, O = [packs(made)], made[-1].program.output_width
    if cell == "own":  # it is too light for threads by itself
        groups.append(stacked.group("lstm", H, 400)[1])
        O = 400
    head = draw(70, O), None
    for B in (1, 2, 13):
        x, rows = draw(12, B, I), RNG.permutation(B)[:(B + 1) // 2]
        results = set()
        for count in (1, 2, 3):
            runtime.set_num_threads(count)
            step = Stream(groups, B, np.float32, head=head, nested=True)
            got = [step(x_t).tobytes() for x_t in x[:5]]
            got += [step(x_t[:len(rows)], rows=rows).tobytes() for x_t in x[:2]]
            got += [step.block(x).tobytes(), step.block(x[:, :len(rows)], rows=rows).tobytes()]
            results.add(b"".join(got + [b for state in step.state for b in flat(state)]))
        assert len(results) == 1, B


def test_threads_of_a_block_of_light_layers(threads):
    x = draw(400, 30, 6)
    results = set()
    for count in threads:
        runtime.set_num_threads(count)
        step, run = mixed(30)
        results.add(step.block(x).tobytes())
        results.add(step.block(x[:0]).tobytes() or run(x).tobytes())
    assert len(results) == 1


def test_threads_in_different_layers_have_registers_of_their_own(threads):
    """Of each width of registers there are some layers, so that threads are often in two."""
    groups = [packs(stack(name, 60, 60, seed=k))
              for k, name in enumerate(("own", "lstm", "own", "gated", "own", "lstm"))]
    x, results = draw(300, 40, 60), set()
    for count in (1, 2, 3, 4):
        runtime.set_num_threads(count)
        step = Stream(groups, 40, np.float32, nested=True)
        for _ in range(3):
            step.reset()
            results.add(step.block(x).tobytes())
    assert len(results) == 1


def test_the_number_of_threads_may_grow_later(threads):
    made = stack("three", 600, 700)
    x = draw(4, 1, 600)
    runtime.set_num_threads(1)
    step = Stream([packs(made)], 1, np.float32)
    results = set()
    for count in (1, 3, 2, 4):
        runtime.set_num_threads(count)
        step.reset()
        results.add(b"".join(step(x_t).tobytes() for x_t in x))
        step.reset()
        results.add(step.block(x).tobytes())
    assert len(results) == 1


# rows of three chunks, and parts of them; more rows than a chunk has otherwise
@pytest.mark.parametrize("B", [1, 2, 50, 90])
def test_blocks_longer_than_a_chunk(B):
    groups = [packs(stack("lstm", 5, 250)), stacked.group("gru", 250, 3)[1],
              packs(stack("gated", 3, 90)), stacked.group("rnn_tanh", 90, 4)[1]]
    step, other = (Stream(groups, B, np.float32, nested=True) for _ in range(2))
    for T in (64, 65, 131):
        x = draw(T, B, 5)
        assert step.block(x).tobytes() == b"".join(other(x_t).tobytes() for x_t in x)
        assert [flat(s) for s in step.state] == [flat(s) for s in other.state]


# ----------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(("cell", "state", "error", "match"), [
    ("three", np.zeros((1, 2, 5), np.float32), TypeError,
     r"S: state is ndarray of 1, expected a tuple \(h, c, n\)"),
    ("three", (None, None), TypeError,
     r"S: state is tuple of 2, expected a tuple \(h, c, n\)"),
    ("three", 3, TypeError, r"S: state is 3, expected a tuple \(h, c, n\)"),
    ("three", (None, np.zeros((1, 2, 5), np.float32), None), ValueError,
     r"S: state\[1\] has shape \(1, 2, 5\), expected \(1, 2, 7\)"),
    ("three", (np.zeros((1, 2, 5)), None, None), TypeError, r"S: state\[0\] is float64"),
    ("lstm", np.zeros((1, 2, 7), np.float32), TypeError,
     r"S: state is ndarray of 1, expected a pair \(h, c\)"),
    ("ligru", (np.zeros((1, 2, 7), np.float32),), TypeError,
     "S: state is a tuple of 1, expected one array"),
    ("ligru", np.zeros((2, 7), np.float32), ValueError,
     r"S: state has shape \(2, 7\), expected \(1, 2, 7\)"),
])
def test_a_wrong_state_changes_nothing(cell, state, error, match):
    step = Stream([packs(stack(cell, 6, 7))], 2, np.float32, name="S")
    step(draw(2, 6))
    before = flat(step.state)
    with pytest.raises(error, match=match):
        step.state = state
    with pytest.raises(error):
        step.rows[:] = state
    assert flat(step.state) == before
    if cell == "three":
        h, c, n = step.state
        step.state = [None, c + 1, n]
        assert flat(step.state) == flat((np.zeros_like(h), c + 1, n))


def test_layers_that_do_not_fit_each_other_are_refused():
    lstm, three = packs(stack("lstm", 6, 7)), packs(stack("three", 6, 7))
    hand = stacked.group("lstm", 7, 7)[1]
    wide, double = packs(stack("lstm", 7, 9)), packs(stack("lstm", 6, 7, dtype=np.float64))
    for groups, match in (
        ([lstm + hand], r"groups\[0\] has cells of different kinds or sizes, expected equal ones"),
        ([lstm + wide], "different kinds or sizes"),
        ([three, hand], "input size 7 behind one of hidden size 5, expected the same"),
        ([hand, three], "input size 6 behind one of hidden size 7"),
        ([double], "packed for another dtype or instruction set, expected float32"),
    ):
        with pytest.raises(ValueError, match=match):
            Stream(groups, 1, np.float32, nested=True)
    with pytest.raises(TypeError, match=r"groups\[1\] holds a Made, expected Packed or Packed"):
        Stream([lstm, stack("three", 7, 7)], 1, np.float32, nested=True)
    with pytest.raises(MemoryError):
        Stream([lstm], 2**50, np.float32)
    assert isinstance(hand[0], Packed)


def test_a_stream_made_under_another_instruction_set_still_runs(isa):
    step, run = mixed(2)
    x = draw(3, 2, 6)
    expected = run(x)
    before = runtime.get_isa()
    try:
        for name, has in runtime.isa_names().items():
            if has:
                runtime.set_isa(name)
                step.reset()
                assert step.block(x).tobytes() == expected.tobytes()
    finally:
        runtime.set_isa(before)
