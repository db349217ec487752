"""Tapes: how often they serve, what memory they hold, and that copies are whole."""

import copy
import gc
import pickle
import tracemalloc

import calls
import cases
import numpy as np
import pytest

from fastrnn._kernels import sequence
from fastrnn._kernels.runtime import Workspace

KINDS = ("dense", "embedding", "one_hot")
per_cell = pytest.mark.parametrize("cell", cases.CELLS)


@per_cell
@pytest.mark.parametrize("source", KINDS)
def test_a_copy_serves_a_second_backward_with_the_same_bits(cell, source):
    call = calls.make(cell, 7, 3, 5, 9, D=2, source=source)
    _, tape = call.forward(keep=True)
    twin = tape.copy()
    third = copy.deepcopy(twin)
    first = call.backward(tape)
    assert tape.used
    assert tape.nbytes == 0
    # memory that the first tape has given back is used by somebody else before the copy is
    # and there other things lie where this tape had its symbols
    other = calls.make(cell, 7, 3, 5, 9, D=2, seed=1)
    expected = other.backward(other.forward(keep=True)[1])
    other.workspace = call.workspace
    _, busy = other.forward(keep=True)
    calls.assert_same(call.backward(twin), first)
    calls.assert_same(call.backward(third), first)
    calls.assert_same(other.backward(busy), expected)


@per_cell
def test_a_copy_records_the_same(cell):
    call = calls.make(cell, 6, 2, 4, 5, D=2)
    record = tuple(name for name in sequence.RECORD if name != "dc" or cell == "lstm")
    _, tape = call.forward(keep=True)
    twin = tape.copy()
    first, second = call.backward(tape, record), call.backward(twin, record)
    assert len(first) == len(second) >= 6 + len(record)
    calls.assert_same(first, second)


def test_record_is_what_the_reference_walks_through():
    call = calls.make("gru", 5, 2, 3, 4, dtype=np.float64)
    _, tape = call.forward(keep=True)
    got = call.backward(tape, ("h", "x", "dgates_x", "dgates_h"))
    y, _ = call.forward(keep=False)
    np.testing.assert_array_equal(got["h"][1:, :, 0], y["y"][:-1])
    np.testing.assert_array_equal(got["h"][0, :, 0], call.h0[0])
    np.testing.assert_array_equal(got["x"], call.x)
    # a weight's gradient is the sum over steps of its gates' gradients times what it multiplied
    for name, of in (("dgates_x", call.x), ("dgates_h", got["h"][:, :, 0])):
        gates = got[name][:, :, 0].reshape(-1, 12)
        expected = gates.T @ of.reshape(10, -1)
        weight = got["dweight0"] if name == "dgates_x" else got["dweight1"]
        np.testing.assert_allclose(weight, expected, rtol=1e-12)


def test_a_used_tape_refuses():
    call = calls.make("lstm", 3, 2, 3, 4)
    _, tape = call.forward(keep=True)
    call.backward(tape)
    for again in (lambda: call.backward(tape), tape.copy, lambda: copy.copy(tape)):
        with pytest.raises(RuntimeError, match="used already"):
            again()
    _, tape = call.forward(keep=True)
    tape.release()
    tape.release()
    with pytest.raises(RuntimeError, match="used already"):
        call.backward(tape)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(tape)


def test_a_refused_backward_leaves_the_tape_whole():
    call = calls.make("lstm", 3, 2, 3, 4)
    _, tape = call.forward(keep=True)
    with pytest.raises(ValueError, match="record"):
        call.backward(tape, ("dx",))
    _, other = call.forward(keep=True)
    calls.assert_same(call.backward(tape), call.backward(other))


def test_a_dropped_tape_gives_its_memory_back():
    call = calls.make("lstm", 50, 8, 16, 32)
    tracemalloc.start()
    try:
        outputs, tape = call.forward(keep=True)
        nbytes = tape.nbytes
        kept = tracemalloc.get_traced_memory()[0]
        del tape
        # the workspace holds it, and hands it out again
        assert tracemalloc.get_traced_memory()[0] > kept - nbytes // 2
        again, tape = call.forward(keep=True)
        assert tracemalloc.get_traced_memory()[0] < kept + nbytes // 2
    finally:
        tracemalloc.stop()
    assert tape.nbytes == nbytes > 50 * 8 * 32 * 4 * 5
    calls.assert_same(again, outputs)


def test_tapes_in_use_have_memory_of_their_own():
    call, other = (calls.make("gru", 9, 2, 3, 4, seed=seed) for seed in (0, 1))
    other.workspace = call.workspace
    _, tape = call.forward(keep=True)
    expected = call.backward(tape.copy())
    tapes = [other.forward(keep=True)[1] for _ in range(3)]
    del tapes[0]
    other.forward(keep=True)
    calls.assert_same(call.backward(tape), expected)


@per_cell
def test_states_are_as_many_as_the_cell_has(cell):
    call = calls.make(cell, 2, 2, 3, 4)
    own = calls.states(call.h0, call.c0)
    for states in ((), own[:-1], (*own, call.h0)):
        found = rf"has {len(states)} states, expected {len(own)}"
        with pytest.raises(ValueError, match=f"initial: {found}"):
            sequence.forward(call.kind, call.x, None, call.weights, call.reverse, states, call.dy,
                             own, True, call.workspace)
        with pytest.raises(ValueError, match=f"final: {found}"):
            sequence.forward(call.kind, call.x, None, call.weights, call.reverse, own, call.dy,
                             states, True, call.workspace)
        _, tape = call.forward(keep=True)
        with pytest.raises(ValueError, match=f"dfinal: {found}"):
            sequence.backward(tape, call.dy, states, None, own, call.weights)
        with pytest.raises(ValueError, match=f"dinitial: {found}"):
            sequence.backward(tape, call.dy, None, None, states, call.weights)
        assert not tape.used


GIVEN = ((True, True, True, True), (True, True, False, False), (False, True, True, False),
         (True, False, False, True), (False, False, True, True), (False, False, False, False))


@per_cell
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 3, 5, 17), (300, 2, 70, 33)])
def test_gradients_without_values_yet_are_written(cell, dtype, sizes, isa):
    """With fresh=True what was there does not count; gradients that are None are not computed."""
    call = calls.make(cell, *sizes, D=2, dtype=dtype)
    shapes = [[array.shape for array in one] for one in call.weights]

    def gradients(given, value, **options):
        grads = tuple(tuple(np.full(shape, value, dtype) if want else None
                            for shape, want in zip(one, given, strict=True)) for one in shapes)
        _, tape = call.forward(keep=True)
        sequence.backward(tape, call.dy, None, None, None, grads, **options)
        return grads

    every = gradients(GIVEN[0], 0)
    for given in GIVEN:
        got = gradients(given, np.nan, fresh=True)
        for one, whole in zip(got, every, strict=True):
            for array, expected, want in zip(one, whole, given, strict=True):
                assert (array is not None) == want
                if want:
                    np.testing.assert_array_equal(array, expected)


def test_symbols_have_no_gradients_without_values():
    call = calls.make("gru", 3, 2, 4, 5, source="one_hot")
    _, tape = call.forward(keep=True)
    with pytest.raises(ValueError, match="fresh: is True"):
        sequence.backward(tape, None, None, None, None, call.weights, fresh=True)


@per_cell
def test_a_tape_in_a_cycle_gives_whole_memory_back(cell):
    """The garbage collector clears what is unreachable before a tape gives its buffer back."""
    assert not gc.is_tracked(Workspace())
    call = calls.make(cell, 9, 3, 5, 17, D=2)
    expected = call.forward(keep=False)[0]
    for _ in range(5):
        _, tape = call.forward(keep=True)
        cycle = [tape]
        cycle.append(cycle)
        nbytes = tape.nbytes
        del tape, cycle
        gc.collect()
        noise = [np.full(nbytes + 64, 255, np.uint8) for _ in range(3)]  # where freed memory was
        got, tape = call.forward(keep=True)
        assert all((array == 255).all() for array in noise)
        calls.assert_same(got, expected)
        calls.assert_same(call.backward(tape), call.backward(call.forward(keep=True)[1]))
