"""layer.stream(): one step at a time, the same bytes as the whole sequence at once."""

import collections
import gc
import sys
import threading
import tracemalloc

import cases
import numpy as np
import pytest

import fastrnn

I, H = 7, 5

per_cell = pytest.mark.parametrize("cell", cases.CELLS)
per_kind = pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])


def draw(shape, dtype=np.float32, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def draw_state(layer, B, seed=2):
    shape = (layer.num_layers, B, layer.hidden_size)
    h, c = draw(shape, layer.dtype, seed), draw(shape, layer.dtype, seed + 100)
    return (h, c) if layer.cell.name == "lstm" else h


def zero_state(layer, B):
    state = draw_state(layer, B)
    return tuple(map(np.zeros_like, state)) if isinstance(state, tuple) else np.zeros_like(state)


def as_bytes(state):
    return b"".join(a.tobytes() for a in (state if isinstance(state, tuple) else (state,)))


def assert_steps(stream, layer, x, state=None):
    """Step through x; outputs and final state are those of the layer's call."""
    y, final = layer(x, state)
    for t in range(len(x)):
        got = stream(x[t])
        assert got.shape == y[t].shape
        assert got.dtype == y.dtype
        assert got.tobytes() == y[t].tobytes(), f"step {t}"
    assert as_bytes(stream.state) == as_bytes(final)


# ------------------------------------------------------------------------------------ same bytes


@pytest.mark.parametrize("B", [1, 2, 5, 16])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=lambda dtype: dtype.__name__)
@per_cell
def test_steps_are_the_sequence(cell, dtype, num_layers, B):
    for sizes, bias in (((I, H), True), ((17, 33), False), ((64, 64), True), ((3, 130), True)):
        layer = cases.LAYERS[cell](*sizes, num_layers, bias=bias, dtype=dtype, seed=0)
        for mode in (True, False):
            stream = layer.train(mode).stream(B)
            x = draw((9, B, sizes[0]), dtype)
            assert_steps(stream, layer, x)
            state = draw_state(layer, B)
            stream.state = state
            assert_steps(stream, layer, x, state)


def test_one_row_is_the_default_and_sizes_can_be_read():
    layer = fastrnn.LSTM(I, H, 2, dtype=np.float64, seed=0)
    stream = layer.stream()
    assert (stream.batch_size, stream.input_size, stream.hidden_size, stream.num_layers) == (
        1, I, H, 2)
    assert stream.dtype == np.float64
    assert_steps(stream, layer, draw((4, 1, I), np.float64))


@per_kind
def test_out(cell):
    layer = cases.LAYERS[cell](I, H, 2, seed=0).eval()
    x = draw((9, 3, I))
    y, _ = layer(x)
    stream, out = layer.stream(3), np.full((3, H), np.nan, np.float32)
    for t in range(9):
        assert stream(x[t], out=out) is out
        assert out.tobytes() == y[t].tobytes()
    stream.reset()
    assert stream(x[0], out) is out
    assert out.tobytes() == y[0].tobytes()


@pytest.mark.parametrize("shift", [0, 16, -16])
@pytest.mark.parametrize("num_layers", [1, 2])
@per_kind
def test_out_that_overlaps_x_is_right_or_refused(cell, num_layers, shift):
    layer = cases.LAYERS[cell](96, 96, num_layers, seed=0).eval()
    memory = draw(512)
    x, out = (memory[k : k + 480].reshape(5, 96) for k in (16, 16 + shift))
    expected = layer.stream(5)(x.copy())
    try:
        layer.stream(5)(x, out)
    except ValueError as error:
        assert "out" in str(error)  # noqa: PT017 - either is right
    else:
        assert out.tobytes() == expected.tobytes()


@per_kind
def test_new_results_are_the_callers(cell):
    layer = cases.LAYERS[cell](I, H, seed=0).eval()
    x = draw((3, 2, I))
    y, _ = layer(x)
    stream = layer.stream(2)
    first = stream(x[0])
    kept = first.copy()
    first.fill(np.nan)
    second = stream(x[1])
    assert second.tobytes() == y[1].tobytes()
    assert kept.tobytes() == y[0].tobytes()


@per_kind
def test_x_in_any_memory_layout(cell):
    layer = cases.LAYERS[cell](I, H, 2, seed=0).eval()
    x = draw((3, I))
    wide = np.zeros((6, 2 * I), np.float32)
    wide[::2, ::2] = x
    raw = np.zeros(x.nbytes + 1, np.uint8)
    shifted = raw[1:].view(np.float32).reshape(x.shape)
    shifted[...] = x
    locked = x.copy()
    locked.flags.writeable = False
    expected = layer.stream(3)(x)
    for view in (wide[::2, ::2], np.asfortranarray(x), x.astype(">f4"), shifted, locked,
                 x[::-1].copy()[::-1], x.tolist()):
        kept = np.array(view)
        assert layer.stream(3)(view).tobytes() == expected.tobytes()
        np.testing.assert_array_equal(view, kept)
    row = np.broadcast_to(x[:1], x.shape)
    assert layer.stream(3)(row).tobytes() == layer.stream(3)(row.copy()).tobytes()


@per_kind
def test_nan_stays_in_its_row(cell):
    layer = cases.LAYERS[cell](I, H, 2, seed=0).eval()
    x = draw((4, 3, I))
    clean = layer.stream(3)
    expected = [clean(step) for step in x]
    stream = layer.stream(3)
    x[1, 1, 2] = np.nan
    for t in range(4):
        y = stream(x[t])
        assert np.all(np.isnan(y[1])) == (t >= 1)
        assert y[::2].tobytes() == expected[t][::2].tobytes()
    stream.reset()
    assert np.all(np.isfinite(stream(x[0])))


# ----------------------------------------------------------------------------------------- state


@per_kind
def test_the_state_is_a_copy_and_can_be_set(cell):
    layer = cases.LAYERS[cell](I, H, 2, seed=0).eval()
    x = draw((6, 3, I))
    stream = layer.stream(3)
    assert as_bytes(stream.state) == as_bytes(zero_state(layer, 3))
    for t in range(3):
        stream(x[t])
    middle = stream.state
    assert isinstance(middle, tuple) == (cell == "lstm")
    kept = as_bytes(middle)
    rest = [stream(x[t]).tobytes() for t in range(3, 6)]
    assert as_bytes(middle) == kept
    other = layer.stream(3)
    other(x[0])
    for make in (lambda s: s, np.asfortranarray, lambda s: s.astype(">f4"), lambda s: s.tolist()):
        given = tuple(map(make, middle)) if cell == "lstm" else make(middle)
        for target in (stream, other):
            target.state = given
            assert as_bytes(target.state) == kept
            assert [target(x[t]).tobytes() for t in range(3, 6)] == rest
    stream.state = middle
    for array in middle if cell == "lstm" else (middle,):
        array.fill(np.nan)  # what was given stays the caller's
    assert as_bytes(stream.state) == kept


@per_kind
def test_reset_and_none_are_zero(cell):
    layer = cases.LAYERS[cell](I, H, 2, seed=0).eval()
    x, zero = draw((5, 3, I)), zero_state(layer, 3)
    stream = layer.stream(3)
    for back in (stream.reset, lambda: setattr(stream, "state", None)):
        for count in (1, 2):  # the states change places with every step
            for t in range(count):
                stream(x[t])
            assert back() is None
            assert as_bytes(stream.state) == as_bytes(zero)
            assert_steps(stream, layer, x)
            back()


def test_half_of_an_lstm_state_may_be_missing():
    layer = fastrnn.LSTM(I, H, 2, seed=0).eval()
    h, c = draw_state(layer, 3)
    stream = layer.stream(3)
    stream(draw((3, I)))
    stream.state = h, None
    assert as_bytes(stream.state) == as_bytes((h, np.zeros_like(c)))
    stream.state = [None, c]
    assert as_bytes(stream.state) == as_bytes((np.zeros_like(h), c))


# --------------------------------------------------------------------------------------- weights


@per_kind
def test_the_weights_are_those_of_the_moment_it_was_made(cell):
    layer = cases.LAYERS[cell](I, H, 2, seed=0)
    other = cases.LAYERS[cell](I, H, 2, seed=1)
    original = cases.LAYERS[cell](I, H, 2, seed=0).eval()
    x = draw((4, 3, I))
    streams = [layer.stream(3), layer.eval().stream(3), layer.train().stream(3)]
    layer.flat[:] = other.flat
    streams.append(layer.stream(3))
    layer.eval()
    streams.append(layer.stream(3))
    layer.load_state_dict(original.state_dict())
    streams.append(layer.stream(3))
    for stream, source in zip(streams, [original] * 3 + [other] * 2 + [original], strict=True):
        assert_steps(stream, source, x)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@per_kind
def test_a_stream_outlives_its_layer(cell, mode):
    layer = cases.LAYERS[cell](64, 65, 3, seed=0).train(mode)
    x = draw((6, 3, 64))
    y, _ = layer(x)
    stream = layer.stream(3)
    stream(x[0])
    del layer
    gc.collect()
    junk = [np.full((65 * 4, 65), np.nan, np.float32) for _ in range(50)]  # over what was freed
    for t in range(1, 6):
        assert stream(x[t]).tobytes() == y[t].tobytes()
    del junk


@per_kind
def test_streams_of_one_layer_are_independent(cell):
    layer = cases.LAYERS[cell](I, H, 2, seed=0).eval()
    xs = [draw((8, B, I), seed=B) for B in (1, 2, 3, 3)]
    ys = [layer(x)[0] for x in xs]
    streams = [layer.stream(x.shape[1]) for x in xs]
    for t in range(8):
        for stream, x, y in zip(streams, xs, ys, strict=True):
            assert stream(x[t]).tobytes() == y[t].tobytes()
    streams[2].reset()
    streams[0].state = draw_state(layer, 1)
    assert as_bytes(streams[3].state) == as_bytes(layer(xs[3])[1])


def test_training_goes_on_beside_a_stream():
    layer, alone = (fastrnn.GRU(I, H, 2, seed=0) for _ in range(2))
    x, dy = draw((4, 3, I)), draw((4, 3, H))
    for one in (layer, alone):
        one(x)
        if one is layer:
            stream = layer.stream(3)
            for step in x:
                stream(step)
        one.backward(dy)
    assert layer.flat_grads.tobytes() == alone.flat_grads.tobytes()


# ------------------------------------------------------------------------------------- embedding


@pytest.mark.parametrize("V", [1, 11, 4096, 4097])  # a table of projections up to 4096 rows
@per_cell
def test_steps_over_an_embedding_are_steps_over_its_rows(cell, V):
    layer = cases.LAYERS[cell](I, H, 2, seed=0).eval()
    embedding = draw((V, 2 * I))[:, :I]
    x = np.random.default_rng(3).integers(V, size=(6, 3))
    y, _ = layer(embedding[x])
    stream = layer.stream(3, embedding)
    embedding[...] = np.nan  # it is that of the moment, too
    for t, kind in enumerate((np.int64, np.int32, np.min_scalar_type(V), np.uint64, ">i4")):
        assert stream(x[t].astype(kind)).tobytes() == y[t].tobytes()
    assert stream(x[5].tolist()).tobytes() == y[5].tobytes()


def test_an_embedding_takes_whole_numbers_below_its_size():
    layer = fastrnn.GRU(I, H, seed=0).eval()
    stream = layer.stream(2, draw((4, I)))
    stream([0, 3])
    before = as_bytes(stream.state)
    for x, error, match in (
        ([0, 4], IndexError, "x has numbers from 0 to 4, expected 0 to 3"),
        ([-1, 0], IndexError, "x has numbers from -1 to 0, expected 0 to 3"),
        ([2**40, 0], IndexError, "expected 0 to 3"),
        ([0.0, 1.0], TypeError, "x is float64, expected whole numbers"),
        ([True, False], TypeError, "x is bool, expected whole numbers"),
        ("01", TypeError, "x is <U2, expected whole numbers"),
        ([0, 1, 2], ValueError, r"x has shape \(3,\), expected \(2,\)"),
        (draw((2, I)), TypeError, "x is float32, expected whole numbers"),
    ):
        with pytest.raises(error, match="^GRU.stream: .*" + match):
            stream(x)
    assert as_bytes(stream.state) == before
    for embedding, error, match in (
        (draw((4, I + 1)), ValueError, rf"embedding has shape \(4, {I + 1}\), expected \(V, {I}\)"),
        (draw(I), ValueError, "embedding has shape"),
        (draw((4, I), np.float64), TypeError, "embedding is float64, expected float32"),
        ("text", TypeError, "embedding is of type str"),
    ):
        with pytest.raises(error, match="^GRU.stream: .*" + match):
            layer.stream(2, embedding)


def test_an_embedding_without_rows_is_still_an_embedding():
    with pytest.raises((ValueError, IndexError), match=r"embedding|x has numbers"):
        fastrnn.GRU(I, H, seed=0).stream(2, np.empty((0, I), np.float32))([0, 0])


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("attempt", "error", "match"),
    [
        (lambda s, x: s(x[:2]), ValueError, r"x has shape \(2, 7\), expected \(3, 7\)"),
        (lambda s, x: s(x[:, :6]), ValueError, r"x has shape \(3, 6\), expected \(3, 7\)"),
        (lambda s, x: s(x[0]), ValueError, r"x has shape \(7,\)"),
        (lambda s, x: s(x[None]), ValueError, r"x has shape \(1, 3, 7\)"),
        (lambda s, x: s(x.astype(np.float64)), TypeError, "x is float64, expected float32"),
        (lambda s, x: s(x.astype(int)), TypeError, "x is int64, expected float32"),
        (lambda s, x: s(None), TypeError, "x is None"),
        (lambda s, x: s("text"), TypeError, "x is of type str"),
        (lambda s, x: s([[1], [2, 3], [4]]), ValueError, "x is a ragged sequence"),
        (lambda s, x: s(x, x[:, :4]), ValueError, r"out has shape \(3, 4\), expected \(3, 5\)"),
        (lambda s, x: s(x, np.zeros((3, 5))), TypeError, "out is float64, expected .*float32"),
        (lambda s, x: s(x, np.zeros((3, 5), ">f4")), TypeError, "out is >f4, expected .*float32"),
        (lambda s, x: s(x, [[0.0] * 5] * 3), TypeError, "out is of type list"),
        (lambda s, x: s(x, np.zeros((5, 3), "f").T), ValueError, "out must be C-contiguous"),
        (lambda s, x: s(x, x[:, :5]), ValueError, "out must be C-contiguous"),
        (lambda s, x: s(x, np.broadcast_to(x[:, :1], (3, 5))), ValueError, "out must be C-cont"),
        (lambda s, x: s(x, np.frombuffer(bytes(60), "f").reshape(3, 5)), ValueError, "writeable"),
        (lambda s, x: s(x, np.frombuffer(bytearray(61), "f", 15, 1).reshape(3, 5)), ValueError,
         "out must be C-contiguous, aligned"),
    ],
)
@per_kind
def test_a_refused_step_changes_nothing(cell, attempt, error, match):
    layer = cases.LAYERS[cell](I, H, 2, seed=0).eval()
    x = draw((3, I))
    stream, other = layer.stream(3), layer.stream(3)
    stream(x)
    other(x)
    with pytest.raises(error, match="^[A-Z]+.stream: .*" + match) as caught:
        attempt(stream, x)
    assert "\n" not in str(caught.value)
    assert as_bytes(stream.state) == as_bytes(other.state)
    assert stream(x).tobytes() == other(x).tobytes()


STATE, WRONG = np.ones((2, 3, H), np.float32), np.ones((2, 3, H + 1), np.float32)


@pytest.mark.parametrize(
    ("cell", "state", "error", "match"),
    [
        ("gru", (STATE, STATE), TypeError, "state is a tuple of 2, expected one array"),
        ("gru", (STATE,), TypeError, "state is a tuple of 1, expected one array"),
        ("gru", WRONG, ValueError, r"state has shape \(2, 3, 6\), expected \(2, 3, 5\)"),
        ("gru", STATE[0], ValueError, r"state has shape \(3, 5\)"),
        ("gru", STATE.astype(np.float64), TypeError, "state is float64, expected float32"),
        ("gru", "text", TypeError, "state is of type str"),
        ("lstm", STATE, TypeError, r"state is ndarray of 2, expected a pair \(h, c\)"),
        ("lstm", (STATE,) * 3, TypeError, r"state is tuple of 3, expected a pair \(h, c\)"),
        ("lstm", 3, TypeError, r"state is 3, expected a pair \(h, c\)"),
        ("lstm", np.array(3.0), TypeError, r"state is .*, expected a pair \(h, c\)"),
        ("lstm", (WRONG, STATE), ValueError, r"state\[0\] has shape \(2, 3, 6\)"),
        ("lstm", (STATE, WRONG), ValueError, r"state\[1\] has shape \(2, 3, 6\)"),
        ("lstm", (STATE, "text"), TypeError, r"state\[1\] is of type str"),
    ],
)
def test_a_refused_state_changes_nothing(cell, state, error, match):
    layer = cases.LAYERS[cell](I, H, 2, seed=0).eval()
    x = draw((3, I))
    stream, other = layer.stream(3), layer.stream(3)
    stream(x)
    other(x)
    with pytest.raises(error, match="^[A-Z]+.stream: " + match):
        stream.state = state
    assert as_bytes(stream.state) == as_bytes(other.state)
    assert stream(x).tobytes() == other(x).tobytes()


@per_kind
def test_a_bidirectional_layer_has_no_stream(cell):
    with pytest.raises(ValueError, match=r"^[A-Z]+\.stream: the layer is bidirectional"):
        cases.LAYERS[cell](I, H, bidirectional=True).stream()


@pytest.mark.parametrize("batch_size", [0, -1, 1.0, True, "1", None])
def test_the_batch_size_is_a_positive_whole_number(batch_size):
    with pytest.raises(ValueError, match=rf"LSTM.stream: batch_size is {batch_size!r}, expected"):
        fastrnn.LSTM(I, H).stream(batch_size)


def test_sizes_are_read_only():
    stream = fastrnn.LSTM(I, H).stream()
    for name in ("batch_size", "input_size", "hidden_size", "num_layers", "dtype"):
        with pytest.raises(AttributeError):
            setattr(stream, name, 9)


# --------------------------------------------------------------------------------------- threads


def in_threads(count, work):
    """Run work(k) in threads that start together; return what they raised."""
    errors, start = [], threading.Barrier(count)

    def run(k):
        start.wait()
        try:
            work(k)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@per_kind
def test_two_threads_on_one_stream_are_refused_or_right(cell):
    layer = cases.LAYERS[cell](64, 256, 2, seed=0).eval()
    x = draw((8, 64))
    stream, refused, results = layer.stream(8), [], ([], [])

    def work(k):
        for _ in range(100):
            try:
                results[k].append(stream(x).tobytes())
            except RuntimeError as error:
                refused.append(str(error))

    assert in_threads(2, work) == []
    done = sum(map(len, results))
    assert done + len(refused) == 200
    assert done >= 1
    assert all("in use by another thread" in message for message in refused)
    alone = layer.stream(8)
    expected = [alone(x).tobytes() for _ in range(done)]
    assert collections.Counter(results[0] + results[1]) == collections.Counter(expected)
    assert as_bytes(stream.state) == as_bytes(alone.state)


def test_a_stream_for_each_thread():
    layer = fastrnn.LSTM(64, 96, 2, seed=0).eval()
    x = draw((60, 2, 64))
    y, _ = layer(x)

    def work(_):
        for _ in range(2):
            assert_steps(layer.stream(2), layer, x)

    assert in_threads(4, work) == []
    assert layer(x)[0].tobytes() == y.tobytes()


# ---------------------------------------------------------------------------------------- memory


def test_steps_do_not_leak():
    layer = fastrnn.LSTM(I, H, 2, seed=0).eval()
    x, out = draw((3, I)), np.zeros((3, H), np.float32)
    stream = layer.stream(3)
    clear_caches = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache

    def memory_after(rounds):
        for _ in range(rounds):
            stream(x, out)
            stream(x)
            stream(x.tolist())
            stream.state = stream.state
            stream.reset()
            layer.stream(2)
            for wrong in (out, None):
                with pytest.raises((ValueError, TypeError)):
                    stream(wrong)
            with pytest.raises(TypeError):
                stream.state = x
        gc.collect()
        clear_caches()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = memory_after(50)
        assert memory_after(200) - before < 3000
    finally:
        tracemalloc.stop()


def test_a_step_with_out_allocates_nothing():
    layer = fastrnn.LSTM(64, 128, 2, seed=0).eval()
    x, out = draw((4, 64)), np.zeros((4, 128), np.float32)
    stream = layer.stream(4)
    stream(x, out)

    def steps():
        for _ in range(10):
            stream(x, out)

    assert cases.peak(steps) < 500


def test_masked_places_are_refused_and_subclasses_of_arrays_are_taken():
    x = np.ones((1, 3), np.float32)
    step = fastrnn.GRU(3, 4, seed=0).stream()
    expected = step(x)
    for bad in (np.ma.masked_all((1, 3), np.float32), np.ma.masked_array(x, [[0, 0, 1]])):
        with pytest.raises(TypeError, match=r"GRU\.stream: x is a masked array with masked places"):
            step(bad)
    with pytest.raises(TypeError, match="state is a masked array with masked places"):
        step.state = np.ma.masked_all((1, 1, 4), np.float32)
    symbols = fastrnn.GRU(3, 4, seed=0).stream(2, one_hot=True)
    with pytest.raises(TypeError, match="x is a masked array with masked places"):
        symbols(np.ma.masked_array([1, 2], [0, 1]))
    step.reset()
    out = np.zeros((1, 4), np.float32).view(np.recarray)
    assert step(np.ma.masked_array(x), out=out) is out
    assert (np.asarray(out) == expected).all()
