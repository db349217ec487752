"""Packed weights: what they hold, that they train, and that they can be copied."""

import copy
import pickle

import calls
import cases
import numpy as np
import pytest

from fastrnn._kernels.packed import Packed
from fastrnn.layers.packs import pair

per_cell = pytest.mark.parametrize("cell", cases.CELLS)
per_source = pytest.mark.parametrize("source", ["dense", "embedding", "one_hot"])


def halves(kind, weights):
    """Return weights rounded to bfloat16, and packed so."""
    (w_ih, words_ih), (w_hh, words_hh) = map(pair, weights[:2])
    rounded = (w_ih, w_hh, *weights[2:])
    return rounded, Packed(kind, rounded, (words_ih, words_hh))


@per_source
@per_cell
def test_backward_reads_the_weights_of_a_pack(isa, cell, source):
    call = calls.make(cell, 6, 3, 5, 9, D=2, source=source)
    expected, tape = call.forward(keep=True)
    gradients = call.backward(tape)
    packs = tuple(Packed(call.kind, w) for w in call.weights)
    assert all(a is b for a, b in zip(packs[0].weights, call.weights[0], strict=True))
    for keep in (True, False):
        got, tape = call.forward(keep=keep, weights=packs)
        calls.assert_same(got, expected)
    assert tape is None
    _, tape = call.forward(keep=True, weights=packs)
    assert tape.biases == (True, True)
    del packs
    calls.assert_same(call.backward(tape), gradients)


def test_one_direction_may_be_packed():
    call = calls.make("gru", 6, 3, 5, 9, D=2)
    expected, tape = call.forward(keep=True)
    mixed = (Packed(call.kind, call.weights[0]), call.weights[1])
    got, other = call.forward(keep=True, weights=mixed)
    calls.assert_same(got, expected)
    calls.assert_same(call.backward(other), call.backward(tape))


@pytest.mark.parametrize("T", [1, 8, 9, 40])
@pytest.mark.parametrize("B", [1, 3, 15, 33])
@per_source
@per_cell
def test_halves_compute_with_the_rounded_weights(isa, cell, source, B, T):
    call = calls.make(cell, T, B, 7, 21, D=2, source=source)
    rounded, packs = zip(*(halves(call.kind, w) for w in call.weights), strict=True)
    expected, _ = call.forward(keep=False, weights=rounded)
    got, _ = call.forward(keep=False, weights=packs)
    calls.assert_same(got, expected)
    assert all(pack.weights is None for pack in packs)


def test_halves_have_no_backward():
    call = calls.make("lstm", 2, 1, 3, 4)
    _, pack = halves(call.kind, call.weights[0])
    with pytest.raises(ValueError, match="packed as bfloat16, expected float32 with keep=True"):
        call.forward(keep=True, weights=(pack,))
    call.forward(keep=False, weights=(pack,))


@pytest.mark.parametrize(("I", "H"), [(512, 512), (600, 40), (33, 256), (1, 1)])
@per_cell
def test_halves_take_no_more_bytes(cell, I, H):
    call = calls.make(cell, 1, 1, I, H)
    whole = Packed(call.kind, call.weights[0])
    _, half = halves(call.kind, call.weights[0])
    floats = cases.GATES[cell] * H * (I + H) * 4
    assert half.nbytes <= whole.nbytes
    if H >= 256:  # panels are nearly full
        assert half.nbytes < 0.6 * floats
        assert floats < whole.nbytes < 1.1 * floats


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@per_source
@per_cell
def test_copies_compute_the_same(isa, cell, source, half):
    call = calls.make(cell, 5, 2, 5, 19, source=source)
    pack = halves(call.kind, call.weights[0])[1] if half else Packed(call.kind, call.weights[0])
    expected, _ = call.forward(keep=False, weights=(pack,))
    assert copy.copy(pack) is pack
    # a pack is of the moment when it was made, and so are its copies
    for array in call.weights[0]:
        array += 1
    for twin in (pickle.loads(pickle.dumps(pack)), copy.deepcopy(pack)):
        assert twin is not pack
        assert (twin.kind, twin.half, twin.nbytes) == (pack.kind, half, pack.nbytes)
        got, _ = call.forward(keep=False, weights=(twin,))
        calls.assert_same(got, expected)
        assert half or not np.shares_memory(twin.weights[0], call.weights[0][0])
    got, _ = call.forward(keep=False, weights=(pack,))
    calls.assert_same(got, expected)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("H", [1, 16, 47, 49, 100])
@per_cell
def test_what_was_packed_is_found_again(isa, cell, H, dtype):
    call = calls.make(cell, 1, 1, 13, H, dtype=dtype)
    twin = pickle.loads(pickle.dumps(Packed(call.kind, call.weights[0])))
    for got, expected in zip(twin.weights, call.weights[0], strict=True):
        np.testing.assert_array_equal(got, expected)


def test_packs_of_something_else_are_refused():
    call = calls.make("lstm", 2, 1, 3, 4)
    other = calls.make("gru", 2, 1, 3, 4)
    with pytest.raises(ValueError, match="packed for another cell"):
        call.forward(keep=False, weights=(Packed(other.kind, other.weights[0]),))
    for I, H in ((4, 4), (3, 5)):
        wide = calls.make("lstm", 2, 1, I, H)
        with pytest.raises((ValueError, TypeError), match="expected"):
            call.forward(keep=False, weights=(Packed(wide.kind, wide.weights[0]),))
    double = calls.make("lstm", 2, 1, 3, 4, dtype=np.float64)
    with pytest.raises(TypeError, match="expected float32 for bfloat16"):
        Packed(double.kind, double.weights[0], tuple(double.weights[0][:2]))
    for kind in (-1, 5):
        with pytest.raises(ValueError, match="kind"):
            Packed(kind, call.weights[0])
