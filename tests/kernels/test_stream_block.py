"""Many steps of a stream in one call: the bits of single steps, threads, memory, misuse."""

import copy
import pickle

import cases
import numpy as np
import pytest
from stacked import RNG, draw, flat, group, make

from fastrnn._kernels import runtime
from fastrnn._kernels.stream import Stream

per_cell = pytest.mark.parametrize("cell", cases.CELLS)
per_half = pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])


def check_block(stream, other, x, rows=None):
    """Give x to `stream` in one call and to `other` step by step."""
    got = stream.block(x, rows=rows)
    n = x.shape[1]
    assert got.shape == (len(x), n, stream.output_size)
    assert got.dtype == stream.dtype
    for t, step in enumerate(x):
        assert got[t].tobytes() == other(step, rows=rows).tobytes(), f"step {t}"
    assert flat(stream.state) == flat(other.state)


def check_blocks(stream, other, x_of, lengths):
    """Check blocks of several lengths one after the other, with single steps in between."""
    B = stream.batch_size
    for T in lengths:
        check_block(stream, other, x_of(T, B))
        rows = RNG.permutation(B)[:RNG.integers(1, B + 1)]
        check_block(stream, other, x_of(T, len(rows)), rows)
        x = x_of(B)
        assert stream(x).tobytes() == other(x).tobytes()


# ------------------------------------------------------------------------------------------ bits


@per_half
@per_cell
def test_a_block_is_its_steps(isa, cell, half):
    for source in ("dense", "embedding", "one_hot"):
        for B in (1, 2, 15, 16, 33):
            (stream, x_of), (other, _) = (make(cell, B, source, half=half) for _ in range(2))
            check_blocks(stream, other, x_of, (1, 0, 3, 10))


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@per_cell
def test_a_block_is_its_steps_in_float64(isa, cell, layers, head):
    made = [make(cell, 3, dtype=np.float64, layers=layers, head=head) for _ in range(2)]
    check_blocks(made[0][0], made[1][0], made[0][1], (7, 1, 2))


@per_half
@pytest.mark.parametrize("B", [1, 5, 40])
def test_rows_of_an_embedding_that_is_too_large_for_a_table(isa, B, half):
    made = [make("lstm", B, "embedding", half=half, V=5000) for _ in range(2)]
    check_blocks(made[0][0], made[1][0], made[0][1], (5, 40))


@per_half
@pytest.mark.parametrize(("I", "H"), [(4, 90), (5, 90), (16, 16), (17, 16), (40, 6), (64, 64)])
@per_cell
def test_layers_that_project_and_layers_that_do_not(isa, cell, I, H, half):
    packs = [group(cell, I, H, 2, half=half)[1]]
    stream, other = (Stream(packs, 2, np.float32) for _ in range(2))
    check_block(stream, other, draw(30, 2, I))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@per_cell
def test_one_row_of_every_width(isa, cell, dtype):
    """A row with few units has a walk of its own, with the bits of steps, many rows, a layer."""
    for H in range(1, 71):
        for I in (1, 30):
            (call,), packs = group(cell, I, H, dtype=dtype)
            one, other, many = (Stream([packs], B, dtype) for B in (1, 1, 3))
            for T in (6, 1):
                check_block(one, other, draw(T, 1, I, dtype=dtype))
            for row in range(3):
                many.rows[[row]] = one.state
            x = draw(5, 3, I, dtype=dtype)
            call.x, call.dy = x[:, 1:2].copy(), np.empty((5, 1, H), dtype)
            call.h0, *c0 = parts(one.state)
            call.c0 = c0[0] if c0 else None
            got = one.block(call.x)
            assert got.tobytes() == many.block(x)[:, 1:2].tobytes(), (H, I)
            assert flat(one.state) == flat(many.rows[[1]]), (H, I)
            assert got.tobytes() == call.forward(keep=False)[0]["y"].tobytes(), (H, I)


def parts(state):
    return state if isinstance(state, tuple) else (state,)


# rows of the widest layer of 250 units in one chunk: 65 (256 KB of 4 * 1008 bytes)
@pytest.mark.parametrize("T", [64, 65, 66, 131])
@pytest.mark.parametrize("B", [1, 3, 17, 70])
@per_half
def test_blocks_longer_than_a_chunk(B, T, half):
    packs = [group("lstm", 5, 250, half=half)[1], group("gru", 250, 3, half=half)[1]]
    head = draw(4, 3), None
    stream, other = (Stream(packs, B, np.float32, head=head, nested=True) for _ in range(2))
    x = draw(T, B, 5)
    check_block(stream, other, x)
    rows = RNG.permutation(B)[:(B + 1) // 2]
    check_block(stream, other, x[:, :len(rows)], rows)


@pytest.mark.parametrize("B", [2, 11, 32])
@pytest.mark.parametrize("source", ["dense", "embedding"])
def test_any_number_of_threads_gives_the_same_bits(threads, source, B):
    """Layers of very different widths: each thread has memory of its own."""
    results = set()
    packs = [group("gru", 40, 150)[1], group("rnn_tanh", 150, 10)[1], group("lstm", 10, 97)[1]]
    head = draw(33, 97), None
    options = {"embedding": draw(5000, 40)} if source == "embedding" else {}
    x = RNG.integers(0, 5000, (300, B)) if options else draw(300, B, 40)
    rows = RNG.permutation(B)
    for count in threads:
        runtime.set_num_threads(count)
        stream = Stream(packs, B, np.float32, head=head, nested=True, **options)
        results.add(stream.block(x).tobytes() + stream.block(x[:70], rows=rows).tobytes()
                    + b"".join(flat(stream.state)))
    assert len(results) == 1


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("source", ["dense", "embedding"])
def test_threads_split_the_units_of_a_heavy_block_of_few_rows(threads, source, layers):
    _, packs = group("lstm", 300, 512, layers)
    options = {"embedding": draw(5000, 300)} if source == "embedding" else {}
    x = RNG.integers(0, 5000, (80, 1)) if options else draw(80, 1, 300)
    head = draw(70, 512), None
    results = set()
    for count in threads:
        runtime.set_num_threads(count)
        stream = Stream([packs], 1, np.float32, head=head, **options)
        results.add(stream.block(x).tobytes() + b"".join(flat(stream.state)))
    assert len(results) == 1
    single = Stream([packs], 1, np.float32, head=head, **options)
    steps = b"".join(single(step).tobytes() for step in x)
    assert results == {steps + b"".join(flat(single.state))}


def test_threads_share_a_wide_layer_beside_one_that_walks_alone(threads):
    packs = [group("lstm", 30, 500)[1], group("gru", 500, 20)[1]]
    x, results = draw(90, 1, 30), set()
    for count in threads:
        runtime.set_num_threads(count)
        stream = Stream(packs, 1, np.float32, nested=True)
        results.add(stream.block(x).tobytes() + b"".join(flat(stream.state)))
    assert len(results) == 1


# ----------------------------------------------------------------------------------------- forms


def test_out_and_x_in_any_memory_layout():
    stream, x_of = make("gru", 3)
    x = x_of(4, 3)
    expected = stream.block(x)
    out, wide = np.full((4, 3, 5), np.nan, np.float32), np.repeat(x, 2, axis=1)
    for given in (x, x.tolist(), np.asfortranarray(x), wide[:, ::2], x.astype(">f4"),
                  cases.read_only(x.copy())):
        stream.reset()
        assert stream.block(given, out) is out
        assert out.tobytes() == expected.tobytes()
        stream.reset()
        assert stream.block(given).tobytes() == expected.tobytes()
    assert x_of(0, 3).shape == (0, 3, 7)
    before = flat(stream.state)
    assert stream.block(x_of(0, 3)).shape == (0, 3, 5)
    assert stream.block(x_of(9, 0), rows=[]).shape == (9, 0, 5)
    assert flat(stream.state) == before


def test_symbols_of_any_type():
    stream, x_of = make("gru", 3, "embedding")
    x = x_of(4, 3)
    expected = stream.block(x)
    for given in (x.astype(np.int32), x.astype(np.uint8), x.astype(np.uint64), x.tolist(),
                  x.astype(">i4"), np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
        stream.reset()
        assert stream.block(given).tobytes() == expected.tobytes()


def test_out_that_overlaps_x():
    _, packs = group("lstm", 9, 9, 2)
    stream, other = (Stream([packs], 2, np.float32) for _ in range(2))
    for shift in (0, 1, 2):
        memory = draw(50, 2, 9)
        x, out = memory[shift:shift + 40], memory[1:41]
        expected = other.block(x.copy())
        assert stream.block(x, out) is out
        assert out.tobytes() == expected.tobytes()


# ---------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(("source", "x", "error", "match"), [
    ("dense", np.zeros((3, 7), np.float32), ValueError,
     r"x has shape \(3, 7\), expected \(T, 3, 7\)"),
    ("dense", np.zeros((2, 2, 7), np.float32), ValueError, r"x has shape \(2, 2, 7\)"),
    ("dense", np.zeros((2, 3, 8), np.float32), ValueError, r"expected \(T, 3, 7\)"),
    ("dense", np.zeros((2, 3, 7)), TypeError, "x is float64, expected float32"),
    ("dense", 3.0, ValueError, r"x has shape \(\)"),
    ("dense", None, ValueError, r"x has shape \(\)"),
    ("dense", [[[1], [2, 3]]], ValueError, "x is a ragged sequence"),
    ("dense", [[["a"] * 7] * 3], TypeError, "x is of type list"),
    ("embedding", [1, 2, 3], ValueError, r"x has shape \(3,\), expected \(T, 3\)"),
    ("embedding", [[1, 2]], ValueError, r"x has shape \(1, 2\), expected \(T, 3\)"),
    ("embedding", [[1, 2, 3], [0, 11, 2]], IndexError, "x has numbers from 0 to 11, exp.* 0 to 10"),
    ("embedding", [[1.0, 2, 3]], TypeError, "x is float64, expected whole numbers"),
    ("one_hot", [[-1, 2, 3]], IndexError, "x has numbers from -1 to 3, expected 0 to 6: one-hot"),
])
def test_wrong_blocks_change_nothing(source, x, error, match):
    (stream, x_of), (other, _) = make("lstm", 3, source), make("lstm", 3, source)
    good = x_of(4, 3)
    for one in (stream, other):
        one.block(good)
    with pytest.raises(error, match="^S: .*" + match) as raised:
        stream.block(x)
    assert "\n" not in str(raised.value)
    for out in (np.zeros((4, 3, 6), np.float32), np.zeros((4, 3, 5)), [],
                np.zeros((5, 3, 5), np.float32), np.zeros((3, 4, 5), np.float32).swapaxes(0, 1)):
        with pytest.raises((TypeError, ValueError), match=r"^S: out"):
            stream.block(good, out)
    assert flat(stream.state) == flat(other.state)
    assert stream.block(good).tobytes() == other.block(good).tobytes()


def test_a_stream_that_was_never_made_has_no_block():
    for source in (np.zeros((1, 1, 1), np.float32), [[1]]):
        step = Stream.__new__(Stream)
        for use in (lambda s, x: s.block(x), lambda s, x: s(x[0], rows=[0]), lambda s, x: s.rows,
                    lambda s, x: s.reset([0])):
            with pytest.raises(RuntimeError, match="never completed"):
                use(step, source)


# ---------------------------------------------------------------------------------------- memory


@per_half
@pytest.mark.parametrize("copier", [
    Stream.copy, copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("source", ["dense", "embedding"])
def test_copies_between_blocks(isa, source, copier, half):
    stream, x_of = make("lstm", 3, source, half=half)
    stream.block(x_of(5, 3))
    twin = copier(stream)
    assert flat(twin.state) == flat(stream.state)
    x = x_of(9, 3)
    expected = stream.block(x).tobytes()
    assert twin.block(x).tobytes() == expected
    assert flat(twin.state) == flat(stream.state)
    twin.block(x)
    assert flat(twin.state) != flat(stream.state)
    del stream
    assert twin.block(x).shape == (9, 3, 5)


@per_half
@pytest.mark.parametrize("source", ["dense", "embedding"])
def test_a_block_with_out_allocates_nothing_after_the_first(source, half):
    stream, x_of = make("lstm", 5, source, half=half)
    x, out, rows = x_of(300, 5), np.zeros((300, 5, 5), np.float32), np.arange(5)
    stream.block(x, out)

    def blocks():
        for T in (1, 300, 150):
            stream.block(x[:T], out[:T])
            stream.block(x[:T], out[:T], rows=rows)

    assert cases.peak(blocks) < 1000
