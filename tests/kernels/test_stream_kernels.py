"""Streams of several groups, with a head, with symbols: bits, states, copies, misuse."""

import copy
import pickle
import threading

import cases
import numpy as np
import pytest
from stacked import RNG, draw, flat, group

from fastrnn._kernels import runtime
from fastrnn._kernels.linear import linear_forward
from fastrnn._kernels.stream import Stream

per_cell = pytest.mark.parametrize("cell", cases.CELLS)


def sequence_of(groups, x, states=None):
    """Walk all steps layer by layer; return h of the last layer, and the states per group."""
    final = []
    for k, made in enumerate(groups):
        ends = []
        for layer, call in enumerate(made):
            T, B, _ = x.shape
            H = call.weights[0][1].shape[1]
            call.x, call.index, call.dy = x, None, np.empty((T, B, H), x.dtype)
            state = None if states is None else states[k]
            h, c = state if isinstance(state, tuple) else (state, None)
            call.h0 = np.zeros((1, B, H), x.dtype) if h is None else h[layer:layer + 1].copy()
            call.c0 = None
            if call.cell == "lstm":
                call.c0 = np.zeros_like(call.h0) if c is None else c[layer:layer + 1].copy()
            out, _ = call.forward(keep=False)
            ends.append(out)
            x = out["y"]
        h = np.concatenate([out["hn"] for out in ends])
        final.append((h, np.concatenate([out["cn"] for out in ends])) if "cn" in ends[0] else h)
    return x, tuple(final)


# ------------------------------------------------------------------------------------------ bits


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("B", [1, 3, 17])
def test_groups_of_different_cells_are_one_step(isa, B, half):
    parts = [group("lstm", 7, 21, 2, half=half), group("gru", 21, 34, half=half, seed=5),
             group("rnn_relu", 34, 9, 2, half=half, seed=9)]
    groups, packs = [made for made, _ in parts], [p for _, p in parts]
    x = draw(5, B, 7)
    expected, states = sequence_of(groups, x)
    step = Stream(packs, B, np.float32, nested=True)
    assert (step.num_layers, step.input_size, step.hidden_size, step.output_size) == (5, 7, 9, 9)
    for t in range(5):
        assert step(x[t]).tobytes() == expected[t].tobytes()
    assert flat(step.state) == flat(states)
    assert isinstance(step.state, tuple)
    assert [type(part) for part in step.state] == [tuple, np.ndarray, np.ndarray]
    step.state = None
    assert step(x[0]).tobytes() == expected[0].tobytes()
    step.state = states
    assert step(x[0]).tobytes() == sequence_of(groups, x[:1], states)[0][0].tobytes()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("B", [1, 2, 3, 19])
@pytest.mark.parametrize("N", [1, 2, 7, 16, 33, 47, 48, 49, 150])
def test_a_head_gives_the_bits_of_linear_forward(isa, N, B, bias, dtype):
    made, packs = group("gru", 5, 13, dtype=dtype)
    head = draw(N, 13, dtype=dtype), draw(N, dtype=dtype) if bias else None
    x = draw(4, B, 5, dtype=dtype)
    h, _ = sequence_of([made], x)
    expected = [linear_forward(h_t, *head) for h_t in h]
    step, out = Stream([packs], B, dtype, head=head), np.empty((B, N), dtype)
    assert step.output_size == N
    for k in range(2):
        head[0][:] = 0  # the stream has its own
        for t in range(4):
            got = step(x[t], out) if k else step(x[t])
            assert got is out or not k
            assert got.tobytes() == expected[t].tobytes()
        step.reset()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_large_head_is_the_same_for_any_number_of_threads(threads):
    made, packs = group("lstm", 3, 64)
    head = draw(20_001, 64), draw(20_001)
    x = draw(3, 2, 3)
    h, _ = sequence_of([made], x)
    before = runtime.get_num_threads()
    runtime.set_num_threads(threads)
    try:
        step = Stream([packs], 2, np.float32, head=head)
        for t in range(3):
            assert step(x[t]).tobytes() == linear_forward(h[t], *head).tobytes()
    finally:
        runtime.set_num_threads(before)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("V", [1, 30, 5000])
@per_cell
def test_rows_of_an_embedding(isa, cell, V, half):
    made, packs = group(cell, 6, 19, half=half)
    embedding = draw(V, 6)
    symbols = RNG.integers(0, V, (4, 3))
    expected, _ = sequence_of([made], embedding[symbols])
    step = Stream([packs], 3, np.float32, embedding)
    embedding[:] = np.nan  # the stream has its own
    for kind in (np.int64, np.int32, np.uint8, np.uint64, ">i4", list):
        step.reset()
        for t in range(4):
            x = symbols[t] % 251 if kind is np.uint8 and V > 256 else symbols[t]
            if kind is np.uint8 and V > 256:
                continue
            given = x.tolist() if kind is list else x.astype(kind)
            assert step(given).tobytes() == expected[t].tobytes()
    step.reset()
    wide = np.repeat(symbols, 2, axis=1)
    assert step(wide[0, ::2]).tobytes() == expected[0].tobytes()


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@per_cell
def test_one_hot_rows(isa, cell, half):
    made, packs = group(cell, 11, 19, half=half)
    symbols = RNG.integers(0, 11, (4, 3))
    expected, _ = sequence_of([made], np.eye(11, dtype=np.float32)[symbols])
    step = Stream([packs], 3, np.float32, one_hot=True)
    for t in range(4):
        assert step(symbols[t]).tobytes() == expected[t].tobytes()


@pytest.mark.parametrize(("x", "error", "match"), [
    ([0, 4], IndexError, r"S: x has numbers from 0 to 4, expected 0 to 3: rows of the embedding"),
    ([-1, 0], IndexError, "from -1 to 0"),
    (np.array([2**32, 0]), IndexError, f"to {2**32}"),
    (np.array([2**64 - 1, 0], np.uint64), IndexError, f"to {2**64 - 1}"),
    ([0, 1, 2], ValueError, r"S: x has shape \(3,\), expected \(2,\)"),
    ([[0, 1]], ValueError, r"x has shape \(1, 2\)"),
    ([0.0, 1.0], TypeError, "x is float64, expected whole numbers: rows of the embedding"),
    ([True, False], TypeError, "x is bool"),
    ([[0], [1, 2]], ValueError, "ragged"),
])
def test_wrong_symbols_change_nothing(x, error, match):
    _, packs = group("gru", 3, 4)
    step = Stream([packs], 2, np.float32, draw(4, 3), name="S")
    step([0, 3])
    before = flat(step.state)
    with pytest.raises(error, match=match):
        step(x)
    assert flat(step.state) == before
    step([3, 0])


# ---------------------------------------------------------------------------------------- states


def test_a_wrong_state_changes_nothing_at_all():
    packs = [group("lstm", 3, 4)[1], group("gru", 4, 5)[1]]
    step = Stream(packs, 2, np.float32, nested=True, name="S")
    step(draw(2, 3))
    good = step.state
    h, c = good[0]
    for state, error, match in (
        (((h + 1, c), np.zeros((1, 2, 4), np.float32)), ValueError,
         r"S: state\[1\] has shape \(1, 2, 4\), expected \(1, 2, 5\)"),
        (((h + 1, c.astype(float)), good[1]), TypeError, r"S: state\[0\]\[1\] is float64"),
        ((h + 1, good[1]), TypeError, r"state\[0\] is ndarray of 1, expected a pair"),
        (((h, c),), ValueError, "state is a tuple of 1, expected a tuple of 2"),
        (h, TypeError, "expected a tuple of 2"),
    ):
        with pytest.raises(error, match=match):
            step.state = state
        assert flat(step.state) == flat(good)
    step.state = ((None, c), None)
    expected = ((np.zeros_like(h), c), np.zeros_like(good[1]))
    assert flat(step.state) == flat(expected)


# ---------------------------------------------------------------------------------------- copies


def make_streams():
    _, lstm = group("lstm", 6, 9, 2)
    _, gru = group("gru", 9, 7)
    _, half = group("lstm", 6, 9, half=True)
    head = draw(5, 7), draw(5)
    yield Stream([lstm, gru], 2, np.float32, head=head, nested=True, name="A"), draw(4, 2, 6)
    yield Stream([lstm], 2, np.float32, draw(8, 6)), RNG.integers(0, 8, (4, 2))
    yield Stream([half], 2, np.float32, draw(5000, 6)), RNG.integers(0, 5000, (4, 2))
    yield Stream([half], 2, np.float32, one_hot=True), RNG.integers(0, 6, (4, 2))
    _, double = group("gru", 6, 9, dtype=np.float64)
    head = draw(50, 9, dtype=np.float64), None
    yield Stream([double], 2, np.float64, head=head), draw(4, 2, 6, dtype=np.float64)


@pytest.mark.parametrize("k", range(5))
def test_copies_go_on_alone_with_the_same_bits(isa, k):
    step, x = list(make_streams())[k]
    step(x[0])
    before = flat(step.state)
    twins = [step.copy(), copy.copy(step), copy.deepcopy(step), pickle.loads(pickle.dumps(step))]
    expected = [step(x[t]).tobytes() for t in range(1, 4)]
    for twin in twins:
        assert flat(twin.state) == before
        assert [twin(x[t]).tobytes() for t in range(1, 4)] == expected
        assert flat(twin.state) == flat(step.state)
        for name in ("num_layers", "batch_size", "input_size", "hidden_size", "output_size",
                     "dtype"):
            assert getattr(twin, name) == getattr(step, name)
    # their states are their own
    twins[0].reset()
    assert flat(twins[1].state) == flat(step.state) != flat(twins[0].state)
    del step
    assert twins[0](x[0]).shape == twins[1](x[0]).shape


def test_a_copy_of_weights_that_change_later_is_of_the_old_ones():
    made, packs = group("gru", 3, 4)
    step, x = Stream([packs], 1, np.float32), draw(1, 3)
    for array in made[0].weights[0]:
        array[:] = 0
    twins = [step.copy(), pickle.loads(pickle.dumps(step))]
    expected = step(x).tobytes()
    assert [twin(x).tobytes() for twin in twins] == [expected] * 2


# ---------------------------------------------------------------------------------------- misuse


def test_a_stream_that_was_never_made_refuses():
    for step in (Stream.__new__(Stream), broken()):
        for use in (lambda s: s(np.zeros((1, 1), np.float32)), lambda s: s(), Stream.reset,
                    lambda s: s.state, lambda s: setattr(s, "state", None), Stream.copy,
                    copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises((RuntimeError, TypeError), match=r"never completed|positional"):
                use(step)


def broken():
    step = Stream.__new__(Stream)
    with pytest.raises(ValueError, match="groups"):
        step.__init__([], 1, np.float32)
    return step


def test_a_live_stream_is_not_made_again():
    _, packs = group("gru", 3, 4)
    step, x = Stream([packs], 1, np.float32), draw(1, 3)
    step(x)
    state = step.state
    with pytest.raises(RuntimeError, match="complete"):
        step.__init__([packs], 5, np.float32)
    assert flat(step.state) == flat(state)
    assert step.batch_size == 1
    later = broken()
    later.__init__([packs], 1, np.float32)
    later.state = state
    assert later(x).tobytes() == step(x).tobytes()


@pytest.mark.parametrize(("change", "error", "match"), [
    ({"groups": []}, ValueError, "S: groups is"),
    ({"groups": [[]]}, ValueError, r"S: groups\[0\] is"),
    ({"groups": None}, ValueError, "S: groups is"),
    ({"groups": [[None]]}, TypeError, r"groups\[0\] holds a NoneType, expected Packed"),
    ({"batch_size": 0}, ValueError, "S: batch_size is 0, expected"),
    ({"batch_size": True}, ValueError, "batch_size is True"),
    ({"batch_size": 1.5}, ValueError, "batch_size is 1.5"),
    ({"batch_size": 2**63}, MemoryError, "cannot allocate"),
    ({"batch_size": 2**200}, MemoryError, "cannot allocate"),
    ({"batch_size": 2**50}, MemoryError, "cannot allocate"),
    ({"dtype": np.float64}, ValueError, "packed for another dtype"),
    ({"dtype": np.int32}, TypeError, "expected float32 or float64"),
    ({"head": (np.zeros((5, 3), np.float32), None)}, ValueError, r"head\[0\] has shape \(5, 3\)"),
    ({"head": (np.zeros((0, 4), np.float32), None)}, ValueError, r"head\[0\] has shape"),
    ({"head": (np.zeros((5, 4)), None)}, TypeError, r"S: head\[0\] is float64, expected float32"),
    ({"head": (np.zeros((5, 4), np.float32), np.zeros(4, np.float32))}, ValueError,
     r"head\[1\] has shape \(4,\), expected \(5,\)"),
    ({"head": 3}, TypeError, "head is of type int"),
    ({"embedding": np.zeros((5, 4), np.float32)}, ValueError, "embedding has shape"),
    ({"embedding": np.zeros((5, 3), np.float32), "one_hot": True}, ValueError, "expected one of"),
])
def test_what_makes_no_stream_is_refused(change, error, match):
    _, packs = group("gru", 3, 4)
    arguments = {"groups": [packs], "batch_size": 1, "dtype": np.float32, "name": "S"} | change
    with pytest.raises(error, match=match):
        Stream(**arguments)


def test_packs_that_do_not_fit_each_other_are_refused():
    gru, other, lstm = group("gru", 3, 4)[1], group("gru", 3, 4)[1], group("lstm", 4, 4)[1]
    for groups, match in (([gru + other], "input size 3 behind one of hidden size 4"),
                          ([gru, other], "input size 3 behind"),
                          ([gru + lstm], "different kinds")):
        with pytest.raises(ValueError, match=match):
            Stream(groups, 1, np.float32, nested=True)
    with pytest.raises(ValueError, match="2 groups, expected 1 with nested=False"):
        Stream([gru, lstm], 1, np.float32)


@pytest.mark.parametrize(("x", "error", "match"), [
    (np.zeros(3, np.float32), ValueError, r"S: x has shape \(3,\), expected \(1, 3\)"),
    (np.zeros((1, 3)), TypeError, "S: x is float64, expected float32"),
    (None, TypeError, "x is None, expected numbers"),
    ("abc", TypeError, "x is of type str"),
    ([[1, 2], [3]], ValueError, "ragged"),
])
def test_wrong_steps_change_nothing(x, error, match):
    _, packs = group("gru", 3, 4)
    step, good = Stream([packs], 1, np.float32, name="S"), [[1, 2, 3.5]]
    expected = step(good)
    step.reset()
    with pytest.raises(error, match=match):
        step(x)
    for out in (np.zeros((1, 5), np.float32), np.zeros((1, 4)), [], np.zeros((4, 1)).T):
        with pytest.raises((TypeError, ValueError), match="S: out"):
            step(good, out)
    assert step(good).tobytes() == expected.tobytes()


def test_a_running_stream_refuses_everything_else():
    _, packs = group("lstm", 512, 1024)
    step = Stream([packs], 64, np.float32)
    x, done, refused, messages = draw(64, 512), [], set(), set()

    def work():
        while len(done) < 30:
            try:
                step(x)
                done.append(True)
            except RuntimeError:  # one of the calls below came first
                continue

    uses = {"state": lambda: step.state, "reset": step.reset, "copy": step.copy,
            "set": lambda: setattr(step, "state", None), "call": lambda: step(x),
            "pickle": step.__reduce__}
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        for name, use in uses.items():
            try:
                if name not in refused:
                    use()
            except RuntimeError as error:
                refused.add(name)
                messages.add(str(error))
    thread.join()
    assert refused == set(uses)
    assert all("in use by another thread" in message for message in messages)
    step.reset()
    step(x)  # nobody is left in it


# ---------------------------------------------------------------------------------------- calls


class Plain(Stream):
    """A class of Python, which may inherit the fast way of calls."""


class Doubled(Stream):
    """A class of Python with a way of its own."""

    def __call__(self, x, **options):
        return 2 * super().__call__(x, **options)


@pytest.mark.parametrize("kind", [Stream, Plain, Doubled])
def test_every_way_to_write_a_call(kind):
    _, packs = group("gru", 3, 4)
    x, out = draw(2, 3), np.empty((2, 4), np.float32)
    factor = 2 if kind is Doubled else 1
    expected = factor * Stream([packs], 2, np.float32)(x)
    step, rows = kind([packs], 2, np.float32), [0, 1]
    for call in (lambda: step(x), lambda: step(x=x), lambda: step(x, out=out),
                 lambda: step(x, out=None), lambda: step(out=out, x=x),
                 lambda: step(x, rows=None), lambda: step(x, rows=rows),
                 lambda: step(x, rows=rows, out=out), lambda: step(x, out=out, rows=rows),
                 lambda: step(x, **{"".join(["ro", "ws"]): rows}), lambda: step(*[x], out=out),
                 lambda: step.__call__(x), lambda: kind.__call__(step, x, rows=rows)):
        step.reset()
        assert call().tobytes() == expected.tobytes()
    if kind is not Doubled:
        for call in (lambda: step(x, out), lambda: step(x, None, rows=rows), lambda: step(x, None)):
            step.reset()
            assert call().tobytes() == expected.tobytes()
    step.reset()
    for call, match in ((lambda: step(), "argument"), (lambda: step(out=out), "argument"),
                        (lambda: step(x, out, rows), "argument"),
                        (lambda: step(x, x=x), "x|argument"),
                        (lambda: step(x, out, out=out), "out|argument"),
                        (lambda: step(x, outt=out), "outt")):
        with pytest.raises(TypeError, match=match):
            call()
    assert step(x).tobytes() == expected.tobytes()
