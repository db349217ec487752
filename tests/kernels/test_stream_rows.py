"""Streams that step some of their rows: the bits of each row alone, states, refusals."""

import copy
import gc
import pickle
import threading

import cases
import numpy as np
import pytest
from stacked import RNG, draw, flat, group, make

from fastrnn._kernels.stream import Stream
from fastrnn._kernels.stream_states import Rows

per_cell = pytest.mark.parametrize("cell", cases.CELLS)
per_half = pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])


def some_rows(B):
    return RNG.permutation(B)[:RNG.integers(0, B + 1)]


# ------------------------------------------------------------------------------------------ bits


def check_alone(stream, alone, x_of, calls=8):
    """Step random rows of `stream`; each row has the bits of its stream in `alone`."""
    B = stream.batch_size
    for call in range(calls):
        rows = some_rows(B) if call % 4 else np.arange(B)
        x = x_of(len(rows))
        got = stream(x, rows=rows) if call % 4 else stream(x)
        assert got.shape == (len(rows), stream.output_size)
        for k, row in enumerate(rows):
            assert alone[row](x[k:k + 1]).tobytes() == got[k:k + 1].tobytes()
        for row in range(B):  # the others, too
            assert flat(stream.rows[[row]]) == flat(alone[row].state)


@per_half
@per_cell
def test_each_row_is_as_if_it_was_alone(isa, cell, half):
    for source in ("dense", "embedding", "one_hot"):
        for B in (1, 2, 9, 37):
            stream, x_of = make(cell, B, source, half=half)
            check_alone(stream, [make(cell, 1, source, half=half)[0] for _ in range(B)], x_of)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@per_cell
def test_each_row_alone_in_float64(isa, cell, layers, head):
    options = {"dtype": np.float64, "layers": layers, "head": head}
    stream, x_of = make(cell, 6, **options)
    check_alone(stream, [make(cell, 1, **options)[0] for _ in range(6)], x_of)


def test_each_row_alone_with_an_embedding_that_is_too_large_for_a_table(isa):
    stream, x_of = make("gru", 5, "embedding", V=5000)
    check_alone(stream, [make("gru", 1, "embedding", V=5000)[0] for _ in range(5)], x_of)


def test_a_heavy_step_of_some_rows_on_any_number_of_threads(threads):
    from fastrnn._kernels import runtime
    _, packs = group("lstm", 300, 512)
    x, rows = draw(4, 3, 300), np.array([4, 0, 2])
    results = set()
    for count in threads:
        runtime.set_num_threads(count)
        stream = Stream([packs], 5, np.float32)
        stream(draw(5, 300) * 0 + 0.5)
        results.add(b"".join(stream(step, rows=rows).tobytes() for step in x)
                    + b"".join(flat(stream.state)))
    assert len(results) == 1


# ----------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("rows", [
    [4, 1], (4, 1), np.array([4, 1]), np.array([4, 1], np.int32), np.array([4, 1], np.uint8),
    np.array([4, 1], np.uint64), np.array([4, 1], ">i4"), np.array([4, 0, 1, 0])[::2],
    slice(4, None, -3)], ids=repr)
def test_rows_of_any_form(rows):
    (stream, x_of), (other, _) = make("gru", 5), make("gru", 5)
    x = x_of(2)
    expected = other(x, rows=np.array([4, 1]))
    assert stream(x, rows=rows).tobytes() == expected.tobytes()
    assert flat(stream.state) == flat(other.state)
    assert flat(stream.rows[rows]) == flat(other.rows[[4, 1]])
    stream.reset(rows)
    other.reset(np.array([4, 1]))
    assert flat(stream.state) == flat(other.state)


@pytest.mark.parametrize("form", [list, np.array])
def test_booleans_are_a_mask(form):
    (stream, x_of), (other, _) = make("gru", 5), make("gru", 5)
    mask = form([False, True, False, False, True])
    x = x_of(2)
    assert stream(x, rows=mask).tobytes() == other(x, rows=[1, 4]).tobytes()
    assert flat(stream.rows[mask]) == flat(other.rows[[1, 4]])
    stream.reset(mask)
    other.reset([1, 4])
    assert flat(stream.state) == flat(other.state)
    assert stream(x_of(0), rows=form([False] * 5)).shape == (0, 5)


@pytest.mark.parametrize("rows", [[], (), np.zeros(0, np.int64), np.zeros(0), slice(0, 0)])
@pytest.mark.parametrize("source", ["dense", "embedding"])
def test_no_rows_are_no_step(source, rows):
    stream, x_of = make("lstm", 3, source)
    stream(x_of(3))
    before = flat(stream.state)
    out = np.empty((0, 5), np.float32)
    assert stream(x_of(0), rows=rows).shape == (0, 5)
    assert stream(x_of(0), rows=rows, out=out) is out
    h, c = stream.rows[rows][0]
    assert h.shape == c.shape == (2, 0, 21)
    stream.rows[rows] = None
    stream.reset(rows)
    assert flat(stream.state) == before


def test_out_of_some_rows():
    (stream, x_of), (other, _) = make("gru", 5), make("gru", 5)
    x, out = x_of(2), np.full((2, 5), np.nan, np.float32)
    assert stream(x, rows=[3, 0], out=out) is out
    assert out.tobytes() == other(x, rows=[3, 0]).tobytes()
    _, packs = group("gru", 6, 6)
    stream, other = Stream([packs], 5, np.float32), Stream([packs], 5, np.float32)
    memory = draw(3, 6)
    x, out = memory[:2], memory[1:]
    expected = other(x.copy(), rows=[2, 1])
    assert stream(x, rows=[2, 1], out=out).tobytes() == expected.tobytes()


# ---------------------------------------------------------------------------------------- misuse

@pytest.mark.parametrize(("rows", "error", "match"), [
    ([0, 5], IndexError, "S: rows has numbers from 0 to 5, expected 0 to 4"),
    ([-1, 0], IndexError, "rows has numbers from -1 to 0"),
    (np.array([0, 2**32]), IndexError, f"to {2**32}"),
    (np.array([0, 2**64 - 1], np.uint64), IndexError, f"to {2**64 - 1}, expected 0 to 4"),
    ([0.0, 1.0], TypeError, r"S: rows is float64, expected whole numbers \(n,\) or bool"),
    ("ab", ValueError, r"rows has shape \(\)"),
    (3, ValueError, r"S: rows has shape \(\), expected whole numbers \(n,\) or booleans \(5,\)"),
    ([[0, 1]], ValueError, r"rows has shape \(1, 2\)"),
    ([[0], [1, 2]], ValueError, "rows is a ragged sequence"),
    ([True, False], ValueError, r"rows has shape \(2,\), expected booleans \(5,\)"),
    (np.ma.masked_array([1, 2], [0, 1]), TypeError, "rows is a masked array"),
    ([1, 1], ValueError, "S: rows names a row twice, expected different rows"),
    ([0, 1, 2, 3, 4, 0], ValueError, "S: rows has 6 numbers, expected at most 5 different ones"),
])
@pytest.mark.parametrize("source", ["dense", "embedding"])
def test_wrong_rows_change_nothing(source, rows, error, match):
    (stream, x_of), (other, _) = make("lstm", 5, source), make("lstm", 5, source)
    x, first = x_of(2), x_of(5)
    stream(first)
    other(first)
    uses = [lambda: stream(x, rows=rows), lambda: stream.reset(rows),
            lambda: stream.block(x[None], rows=rows),
            lambda: stream.rows.__setitem__(rows, None)]
    if "different" not in match:  # to read a row twice is no mistake
        uses.append(lambda: stream.rows[rows])
    for use in uses:
        with pytest.raises(error, match=match) as raised:
            use()
        assert str(raised.value).startswith("S: ")
        assert "\n" not in str(raised.value)
        assert flat(stream.state) == flat(other.state)
    every = [4, 3, 2, 1, 0]
    assert stream(first, rows=every).tobytes() == other(first, rows=every).tobytes()


@pytest.mark.parametrize(("source", "x", "error", "match"), [
    ("dense", np.zeros((5, 7), np.float32), ValueError,
     r"x has shape \(5, 7\), expected \(2, 7\)"),
    ("dense", np.zeros((2, 7)), TypeError, "x is float64, expected float32"),
    ("dense", np.zeros((2, 6), np.float32), ValueError, r".*expected \(2, 7\)"),
    ("embedding", [1, 2, 3], ValueError, r"x has shape \(3,\), expected \(2,\)"),
    ("embedding", [1, 11], IndexError, "x has numbers from 1 to 11, expected 0 to 10"),
    ("one_hot", [-1, 1], IndexError, "x has numbers from -1 to 1, expected 0 to 6: one-hot"),
])
def test_wrong_x_or_out_of_some_rows_changes_nothing(source, x, error, match):
    (stream, x_of), (other, _) = make("gru", 5, source), make("gru", 5, source)
    first, good = x_of(5), x_of(2)
    stream(first)
    other(first)
    with pytest.raises(error, match="^S: " + match):
        stream(x, rows=[3, 1])
    for out in (np.zeros((5, 5), np.float32), np.zeros((2, 5)), np.zeros((5, 2), np.float32).T):
        with pytest.raises((TypeError, ValueError), match=r"^S: out"):
            stream(good, rows=[3, 1], out=out)
    assert flat(stream.state) == flat(other.state)
    assert stream(good, rows=[3, 1]).tobytes() == other(good, rows=[3, 1]).tobytes()


def test_rows_are_read_once():
    """A conversion that runs Python code cannot change what was checked, nor use the stream."""
    stream, x_of = make("gru", 5)
    rows, seen = np.array([3, 1]), []

    class Late:
        def __array__(self, dtype=None, copy=None):
            rows[:] = 99
            with pytest.raises(RuntimeError, match="in use"):
                stream(x_of(5))
            seen.append(True)
            return x

    x = x_of(2)
    other, _ = make("gru", 5)
    assert stream(Late(), rows=rows).tobytes() == other(x, rows=[3, 1]).tobytes()
    assert seen
    assert flat(stream.state) == flat(other.state)


# ---------------------------------------------------------------------------------------- states


@per_cell
def test_states_of_some_rows_are_read_and_set(cell):
    (stream, x_of), (other, _) = make(cell, 6), make(cell, 6)
    stream(x_of(6))
    state, index = stream.state, np.array([5, 0, 5, 2])
    for rows in (index, index.tolist(), slice(1, 4), np.arange(6) % 2 == 0):
        expected = tuple(tuple(a[:, rows] for a in part) if isinstance(part, tuple)
                         else part[:, rows] for part in state)
        got = stream.rows[rows]
        assert flat(got) == flat(expected)
        assert [type(part) for part in got] == [type(part) for part in state]
    other.rows[[0, 2, 5]] = stream.rows[[0, 2, 5]]
    assert flat(other.rows[[2, 5, 0]]) == flat(stream.rows[[2, 5, 0]])
    assert not any(a.strip(b"\0") for a in flat(other.rows[[1, 3, 4]]))
    other.rows[[5]] = None
    assert not any(a.strip(b"\0") for a in flat(other.rows[[5]]))
    assert flat(other.rows[[2, 0]]) == flat(stream.rows[[2, 0]])
    kept = stream.rows[[1]]
    before = flat(kept)
    stream(x_of(6))
    assert flat(kept) == before  # a copy


@per_cell
def test_a_beam_search_reorders_its_rows_in_one_line(cell):
    stream, x_of = make(cell, 8)
    stream(x_of(8))
    before = stream.state
    beams, parents = np.array([2, 3, 4, 5]), np.array([5, 5, 2, 3])
    stream.rows[beams] = stream.rows[parents]
    order = np.arange(8)
    order[beams] = parents
    after = tuple(tuple(a[:, order] for a in part) if isinstance(part, tuple) else part[:, order]
                  for part in before)
    assert flat(stream.state) == flat(after)


def test_a_wrong_state_of_some_rows_changes_nothing():
    stream, x_of = make("gru", 4)
    stream(x_of(4))
    before = flat(stream.state)
    two, three = stream.rows[[0, 1]], stream.rows[[0, 1, 2]]
    for state, error, match in (
        (three, ValueError, r"S: state\[0\] has shape \(2, 3, 21\), expected \(2, 2, 21\)"),
        (stream.state, ValueError, "has shape"),
        ((two[0] + 1, three[1]), ValueError, r"S: state\[1\]\[0\] has shape"),
        ((two[0].astype(float), two[1]), TypeError, "is float64"),
        (two[0], TypeError, "expected a tuple of 2"),
        (3, TypeError, "expected a tuple of 2"),
    ):
        with pytest.raises(error, match=match):
            stream.rows[[3, 1]] = state
        assert flat(stream.state) == before


def test_reset_of_some_rows():
    stream, x_of = make("lstm", 4)
    stream(x_of(4))
    kept = flat(stream.rows[[1, 2]])
    assert stream.reset([3, 0]) is None
    assert flat(stream.rows[[1, 2]]) == kept
    assert not any(a.strip(b"\0") for a in flat(stream.rows[[3, 0]]))
    stream.reset()
    assert not any(a.strip(b"\0") for a in flat(stream.state))


def test_rows_belong_to_their_stream():
    stream, x_of = make("gru", 3)
    rows = stream.rows
    twin = stream.copy()
    twin(x_of(3))
    assert not any(a.strip(b"\0") for a in flat(rows[:]))
    del stream
    gc.collect()
    rows[[1]] = twin.rows[[2]]
    assert flat(rows[[1]]) == flat(twin.rows[[2]])
    with pytest.raises(TypeError, match=r"expected step\.rows"):
        Rows()
    with pytest.raises(AttributeError):
        twin.rows = twin.state


# ---------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("copier", [
    Stream.copy, copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("source", ["dense", "embedding"])
def test_copies_between_calls_of_some_rows(isa, source, copier):
    stream, x_of = make("gru", 5, source)
    stream(x_of(5))
    stream(x_of(2), rows=[4, 2])
    twin = copier(stream)
    assert flat(twin.state) == flat(stream.state)
    x = x_of(3)
    expected = stream(x, rows=[1, 4, 0])
    assert twin(x, rows=[1, 4, 0]).tobytes() == expected.tobytes()
    twin(x, rows=[1, 2, 3])
    assert flat(twin.state) != flat(stream.state)


def test_a_busy_stream_refuses_rows():
    _, packs = group("lstm", 512, 1024)
    stream = Stream([packs], 64, np.float32)
    x, rows, count = draw(64, 512), np.arange(64), []
    uses = {"rows": lambda: stream.rows[rows], "set": lambda: stream.rows.__setitem__(rows, None),
            "reset": lambda: stream.reset(rows), "step": lambda: stream(x, rows=rows),
            "block": lambda: stream.block(x[None], rows=rows)}
    refused, messages = set(), set()

    def work():
        while len(count) < 30:
            try:
                stream(x, rows=rows)
                count.append(True)
            except RuntimeError:  # one of the calls below came first
                continue

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        for name, use in uses.items():
            try:
                if name not in refused:
                    use()
            except RuntimeError as error:
                messages.add(str(error))
                refused.add(name)
    thread.join()
    assert refused == set(uses)
    assert all("in use by another thread" in message for message in messages)


@pytest.mark.parametrize("source", ["dense", "embedding"])
def test_a_step_of_some_rows_with_out_allocates_nothing(source):
    stream, x_of = make("lstm", 50, source)
    x, rows = x_of(20), RNG.permutation(50)[:20]
    out = np.zeros((20, 5), np.float32)
    stream(x, rows=rows, out=out)

    def steps():
        for _ in range(10):
            stream(x, rows=rows, out=out)

    assert cases.peak(steps) < 500
