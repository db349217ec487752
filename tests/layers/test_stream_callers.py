"""layer.stream() with many callers: some rows at a time, many steps in one call."""

import copy
import gc
import pickle
import sys
import threading
import tracemalloc

import cases
import numpy as np
import pytest

import fastrnn

I, H, B = 7, 21, 12

per_cell = pytest.mark.parametrize("cell", cases.CELLS)
per_mode = pytest.mark.parametrize("mode", ["float32", "bfloat16", "float64"])


def draw(shape, dtype=np.float32, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def layer_of(cell, mode="float32", num_layers=2):
    dtype = np.float64 if mode == "float64" else np.float32
    layer = cases.LAYERS[cell](I, H, num_layers, dtype=dtype, seed=0)
    return layer.eval("bfloat16" if mode == "bfloat16" else "float32")


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def assert_same_state(a, b):
    for one, two in zip(parts(a), parts(b), strict=True):
        np.testing.assert_array_equal(one, two)


# ------------------------------------------------------------------------------------ same bytes


@per_mode
@per_cell
def test_callers_of_different_lengths_each_as_if_alone(cell, mode):
    layer = layer_of(cell, mode)
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, B)
    x = draw((8, B, I), layer.dtype)
    step = layer.stream(B)
    results = np.zeros((8, B, H), layer.dtype)
    done = np.zeros(B, int)
    while (done < lengths).any():
        waiting = rng.permutation(np.flatnonzero(done < lengths))
        rows = waiting[:rng.integers(1, len(waiting) + 1)]
        results[done[rows], rows] = step(x[done[rows], rows], rows=rows)
        done[rows] += 1
    for row, length in enumerate(lengths):
        y, state = layer(x[:length, row:row + 1])
        np.testing.assert_array_equal(results[:length, row:row + 1], y)
        assert_same_state(step.rows[[row]], state)


@per_mode
@per_cell
def test_a_block_is_the_layers_call_from_any_state(cell, mode):
    layer = layer_of(cell, mode)
    for rows in (1, 3, 20):
        step, x = layer.stream(rows), draw((150, rows, I), layer.dtype)
        y, state = layer(x)
        np.testing.assert_array_equal(step.block(x), y)
        assert_same_state(step.state, state)
        again, after = layer(x[:31], state)
        np.testing.assert_array_equal(step.block(x[:31]), again)
        assert_same_state(step.state, after)
        step.state = state
        np.testing.assert_array_equal(np.stack([step(one) for one in x[:31]]), again)


@per_mode
@per_cell
def test_blocks_of_symbols(cell, mode):
    layer = layer_of(cell, mode)
    for V, one_hot in ((11, False), (5000, False), (I, True)):
        x = np.random.default_rng(0).integers(0, V, (40, 3))
        rows = np.eye(I, dtype=layer.dtype) if one_hot else draw((V, I), layer.dtype)
        y, state = layer(rows[x])
        step = layer.stream(3, None if one_hot else rows, one_hot=one_hot)
        np.testing.assert_array_equal(step.block(x), y)
        assert_same_state(step.state, state)
        step.reset([2, 0])
        np.testing.assert_array_equal(step.block(x[:, [2, 0]], rows=[2, 0]), y[:, [2, 0]])
        assert_same_state(step.state, state)


def test_blocks_of_any_instruction_set_and_number_of_threads(isa, threads):
    layer = fastrnn.LSTM(I, 130, 2, seed=0).eval()
    x = draw((70, 10, I))
    y, state = layer(x)
    for count in threads:
        fastrnn.set_num_threads(count)
        step = layer.stream(10)
        np.testing.assert_array_equal(step.block(x), y)
        assert_same_state(step.state, state)


# ---------------------------------------------------------------------------------------- states


@per_cell
def test_a_caller_leaves_and_another_takes_its_row(cell):
    layer = layer_of(cell)
    step, x = layer.stream(B), draw((6, B, I))
    step.block(x)
    before = step.state
    step.reset([4])
    y, state = layer(x[:, 4:5])
    np.testing.assert_array_equal(step.block(x[:, 4:5], rows=[4]), y)
    assert_same_state(step.rows[[4]], state)
    assert_same_state(step.state, before)  # the same caller came again
    kept = step.rows[3:5]
    step.reset(slice(3, 5))
    step.rows[[4, 3]] = step.rows[[8, 9]]
    assert_same_state(step.rows[[3, 4]], step.rows[[9, 8]])
    step.rows[3:5] = kept
    assert_same_state(step.state, before)


def test_half_of_the_state_of_a_row_may_be_missing():
    step = fastrnn.LSTM(I, H, seed=0).stream(3)
    step(draw((3, I)))
    h, c = step.state
    step.rows[[1]] = None, c[:, [1]]
    h[:, 1] = 0
    assert_same_state(step.state, (h, c))


def test_what_step_state_was_it_is():
    step = fastrnn.LSTM(I, H, 2, seed=0).stream(3)
    step(draw((3, I)))
    h, c = step.state
    assert step.state[0].tobytes() == h.tobytes()
    np.testing.assert_array_equal(step.state, [h, c])
    step.state = h + 1, c
    assert step.rows[:][0].tobytes() == (h + 1).tobytes()


@per_cell
@pytest.mark.parametrize("copier", [
    lambda s: s.copy(), copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_serve_callers_too(cell, copier):
    step, x = layer_of(cell).stream(B), draw((9, B, I))
    step.block(x)
    twin = copier(step)
    for rows in ([3, 1], slice(None), np.arange(B) % 2 == 0):
        some = x[0][rows]
        assert twin(some, rows=rows).tobytes() == step(some, rows=rows).tobytes()
        some = x[:, rows]
        assert twin.block(some, rows=rows).tobytes() == step.block(some, rows=rows).tobytes()
    assert_same_state(twin.state, step.state)


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(("attempt", "error", "match"), [
    (lambda s, x: s(x, rows=[0, B]), IndexError, f"rows has numbers from 0 to {B}"),
    (lambda s, x: s(x, rows=[0, 0]), ValueError, "rows names a row twice"),
    (lambda s, x: s(x, rows=[0]), ValueError, r"x has shape \(2, 7\), expected \(1, 7\)"),
    (lambda s, x: s.block(x, rows=[0, 1]), ValueError, r"x has shape .*, expected \(T, 2, 7\)"),
    (lambda s, x: s.block(x[None]), ValueError, r"x has shape .*, expected \(T, 12, 7\)"),
    (lambda s, x: s.block(x[None], x[None], rows=[0, 1]), ValueError, "out has shape"),
    (lambda s, x: s.reset([B]), IndexError, "rows has numbers from"),
    (lambda s, x: s.rows[[-1]], IndexError, "rows has numbers from -1"),
    (lambda s, x: s.rows.__setitem__([0], x), (TypeError, ValueError), "state"),
])
@per_cell
def test_refusals_change_nothing(cell, attempt, error, match):
    layer = layer_of(cell)
    (step, other), x = (layer.stream(B) for _ in range(2)), draw((B, I))
    step(x)
    other(x)
    with pytest.raises(error, match="^[A-Z]+.stream: " + match) as caught:
        attempt(step, x[:2])
    assert "\n" not in str(caught.value)
    assert_same_state(step.state, other.state)
    assert step(x).tobytes() == other(x).tobytes()


# ------------------------------------------------------------------------------ threads and memory


def test_threads_that_serve_one_stream_are_refused_or_right():
    """Each thread has rows of its own; a refused call is tried again."""
    layer, T = fastrnn.LSTM(64, 256, seed=0).eval(), 60
    x, step, results = draw((T, 8, 64)), layer.stream(8), {}

    def work(rows):
        done = []
        while len(done) < T:
            try:
                done.append(step(x[len(done)][rows], rows=rows))
            except RuntimeError as error:
                assert "in use by another thread" in str(error)  # noqa: PT017
        results[rows[0]] = np.stack(done)

    workers = [threading.Thread(target=work, args=(rows,)) for rows in ([0, 5, 2], [1, 3], [7, 4])]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    y, _ = layer(x)
    for rows in ([0, 5, 2], [1, 3], [7, 4]):
        np.testing.assert_array_equal(results[rows[0]], y[:, rows])


def test_calls_do_not_leak():
    layer = fastrnn.LSTM(I, H, 2, seed=0).eval()
    x, rows, step = draw((2, 3, I)), np.array([4, 0, 1]), layer.stream(B)
    clear_caches = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache

    def memory_after(rounds):
        for _ in range(rounds):
            step(x[0], rows=rows)
            step.block(x, rows=rows.tolist())
            step.rows[rows] = step.rows[rows]
            step.reset(rows)
            for wrong in ([1, 1], [99], "x", 2.5):
                for use in (lambda r: step(x[0], rows=r), step.reset,
                            lambda r: step.rows.__setitem__(r, None)):
                    with pytest.raises((ValueError, TypeError, IndexError)):
                        use(wrong)
            layer.stream(2).block(x[:, :2])
        gc.collect()
        clear_caches()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = memory_after(30)
        assert memory_after(100) - before < 3000
    finally:
        tracemalloc.stop()
