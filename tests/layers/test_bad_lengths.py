"""What is no length, no reset and no batch size: refused in one sentence, and nothing changes."""

import fractions
import types

import cases
import numpy as np
import pytest
from stacks import per_kind

T, B, I, H = 4, 3, 5, 6
LENGTHS = np.array([4, 0, 2])
RESET = np.zeros((T, B), bool)
RESET[2, 0] = True
SIZES = [3, 2, 2]  # of 7 rows
FLAGS = np.zeros(7, bool)


def draw(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


X, ROWS, DY = draw(T, B, I), draw(7, I), draw(T, B, H)

NOT_LENGTHS = [
    ([4, -1, 2], ValueError, "lengths has numbers from -1 to 4, expected 0 to 4, the steps of x"),
    ([4, 0, 5], ValueError, "lengths has numbers from 0 to 5, expected 0 to 4, the steps of x"),
    (np.full(B, 2**64 - 1, np.uint64), ValueError,
     f"lengths has numbers from {2**64 - 1} to {2**64 - 1}, expected 0 to 4, the steps of x"),
    ([-(2**63)] * B, ValueError, "lengths has numbers from -9223372036854775808 to -92.* 0 to 4.*"),
    ([2**70] * B, TypeError, "lengths is .*, expected whole numbers: .*"),
    ([4.0, 0.0, 2.0], TypeError, "lengths is float64, expected whole numbers: .*"),
    (LENGTHS.astype(np.float32), TypeError, "lengths is float32, expected whole numbers: .*"),
    ([4, 0, float("nan")], TypeError, "lengths is float64, expected whole numbers: .*"),
    (LENGTHS > 1, TypeError, "lengths is bool, expected whole numbers: .*"),
    ([True, False, True], TypeError, r"lengths is \[.*\], expected whole numbers: .*"),
    ([4, 0], ValueError, r"lengths has shape \(2,\), expected \(3,\): one for each row"),
    ([4, 0, 2, 1], ValueError, r"lengths has shape \(4,\), expected \(3,\): one for each row"),
    ([], ValueError, r"lengths has shape \(0,\), expected \(3,\): one for each row"),
    ([[4, 0, 2]], ValueError, r"lengths has shape \(1, 3\), expected \(3,\): one for each row"),
    (4, ValueError, r"lengths has shape \(\), expected \(3,\): one for each row"),
    ([[4], [0, 2], [2]], ValueError,
     "lengths is a ragged sequence, expected an array of whole numbers: steps of each row"),
    (["4", "0", "2"], TypeError, r"lengths is \[.*\], expected whole numbers: .*"),
    ("402", TypeError, "lengths is of type str, expected whole numbers: .*"),
    (b"402", TypeError, "lengths is of type bytes, expected whole numbers: .*"),
    ([4, None, 2], TypeError, r"lengths is \[.*\], expected whole numbers: .*"),
    ({4, 0, 2}, TypeError, "lengths is of type set, expected whole numbers: .*"),
    (object(), TypeError, "lengths is of type object, expected whole numbers: .*"),
    ([fractions.Fraction(1)] * B, TypeError, r"lengths is \[.*\], expected whole numbers: .*"),
    (np.zeros(B, "M8[s]"), TypeError, r"lengths is datetime64\[s\], expected whole numbers: .*"),
    (np.zeros(B, complex), TypeError, "lengths is complex128, expected whole numbers: .*"),
    (np.ma.masked_equal(LENGTHS, 0), TypeError, "lengths is a masked array with masked places, .*"),
]
NOT_FLAGS = [
    (RESET.T, ValueError, r"reset has shape \(3, 4\), expected \(4, 3\)"),
    (RESET[1:], ValueError, r"reset has shape \(3, 3\), expected \(4, 3\)"),
    (RESET[0], ValueError, r"reset has shape \(3,\), expected \(4, 3\)"),
    (RESET[..., None], ValueError, r"reset has shape \(4, 3, 1\), expected \(4, 3\)"),
    (True, ValueError, r"reset has shape \(\), expected \(4, 3\)"),
    ([], ValueError, r"reset has shape \(0,\), expected \(4, 3\)"),
    (RESET.astype(int), TypeError, "reset is int64, expected booleans"),
    (RESET.astype(np.uint8), TypeError, "reset is uint8, expected booleans"),
    (RESET.astype(np.float32), TypeError, "reset is float32, expected booleans"),
    (RESET.astype(object), TypeError, "reset is object, expected booleans"),
    (RESET.astype(str), TypeError, "reset is <U5, expected booleans"),
    (np.where(RESET, None, True), TypeError, "reset is object, expected booleans"),
    ("no", TypeError, "reset is <U2, expected booleans"),
    ([[True], [True, False]], ValueError, "reset is a ragged sequence, expected .* booleans"),
    (np.ma.masked_array(RESET, RESET), TypeError, "reset is a masked array with masked places, .*"),
]
NOT_STATES = [
    ("h0", "reset_to is 'h0', expected one of ['zero', 'initial']"),
    ("", "reset_to is '', expected one of ['zero', 'initial']"),
    ("ZERO", "reset_to is 'ZERO', expected one of ['zero', 'initial']"),
    (None, "reset_to is None, expected one of ['zero', 'initial']"),
    (0, "reset_to is 0, expected one of ['zero', 'initial']"),
    (b"zero", "reset_to is b'zero', expected one of ['zero', 'initial']"),
    (["zero"], "reset_to is ['zero'], expected one of ['zero', 'initial']"),
    (np.zeros(2), "reset_to is array([0., 0.]), expected one of ['zero', 'initial']"),
]
ORDER = r"expected numbers of at least 1, none larger than the one before: the longest rows .*"
NOT_SIZES = [
    ([2, 3, 2], ValueError, rf"batch_sizes is \[2, 3, 2\], {ORDER}"),
    ([1, 3, 3], ValueError, rf"batch_sizes is \[1, 3, 3\], {ORDER}"),
    ([4, 3, 0], ValueError, rf"batch_sizes is \[4, 3, 0\], {ORDER}"),
    ([5, 3, -1], ValueError, rf"batch_sizes is \[5, 3, -1\], {ORDER}"),
    ([0], ValueError, rf"batch_sizes is \[0\], {ORDER}"),
    ([2**63 + 7], ValueError, "batch_sizes .*"),
    ([2**62] * 4 + [7], ValueError, "batch_sizes .*"),  # their sum overflows
    ([3, 2, 1], ValueError, "batch_sizes has the sum 6, expected 7, the rows of data"),
    ([3, 3, 2], ValueError, "batch_sizes has the sum 8, expected 7, the rows of data"),
    ([], ValueError, r"batch_sizes has shape \(0,\), expected \(T,\), the rows of each of at .*"),
    (7, ValueError, r"batch_sizes has shape \(\), expected \(T,\), the rows of each .*"),
    ([SIZES], ValueError, r"batch_sizes has shape \(1, 3\), expected \(T,\), the rows of .*"),
    ([3.0, 2.0, 2.0], TypeError, "batch_sizes is float64, expected whole numbers: rows of each .*"),
    ([True] * 7, TypeError, r"batch_sizes is \[.*\], expected whole numbers"),
    (np.ones(7, bool), TypeError, "batch_sizes is bool, expected whole numbers"),
    (["3", "2", "2"], TypeError, r"batch_sizes is \[.*\], expected whole numbers"),
    ("322", TypeError, "batch_sizes is of type str, expected whole numbers"),
    ([3, None, 2], TypeError, r"batch_sizes is \[.*\], expected whole numbers"),
    (None, TypeError, "batch_sizes is None, expected whole numbers"),
    ([[3], [2, 2]], ValueError, "batch_sizes is a ragged sequence, expected an array of whole .*"),
]


class Unchanged:
    """A layer with a call to go back through, and gradients: a refused call changes neither."""

    def __init__(self, cell, **options):
        self.layer = cases.LAYERS[cell](I, H, seed=0, **options)
        self.layer.flat_grads[:] = 1
        self.turned = self.layer.batch_first
        x, dy = (X.swapaxes(0, 1), DY.swapaxes(0, 1)) if self.turned else (X, DY)
        self.dy, self.x = dy, x
        self.call()
        self.expected = self.layer.backward(dy)[0].tobytes()
        self.layer.flat_grads[:] = 1
        self.call()
        self.before = self.layer.flat_grads.tobytes(), self.layer.flat.tobytes()

    def call(self):
        return self.layer(self.x, lengths=LENGTHS)

    def refuses(self, act, error, match):
        with pytest.raises(error, match=match) as caught:
            act(self.layer)
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 200
        assert (self.layer.flat_grads.tobytes(), self.layer.flat.tobytes()) == self.before
        assert self.layer.backward(self.dy)[0].tobytes() == self.expected  # the call before
        self.layer.flat_grads[:] = 1
        self.call()


@per_kind
def test_lengths(cell):
    there = Unchanged(cell)
    name = type(there.layer).__name__
    for value, error, match in NOT_LENGTHS:
        there.refuses(lambda a, v=value: a(X, lengths=v), error, f"^{name}: {match}$")
        there.refuses(lambda a, v=value: a.forward(X, lengths=v), error,
                      rf"^{name}.forward: {match}$")


@per_kind
def test_lengths_of_one_sequence(cell):
    there = Unchanged(cell)
    name = type(there.layer).__name__
    for value, error, match in [
        (-1, ValueError, "lengths has numbers from -1 to -1, expected 0 to 4, the steps of x"),
        (5, ValueError, "lengths has numbers from 5 to 5, expected 0 to 4, the steps of x"),
        (2.0, TypeError, "lengths is float64, expected whole numbers: steps of each row"),
        (True, TypeError, "lengths is bool, expected whole numbers: steps of each row"),
        ("3", TypeError, "lengths is <U1, expected whole numbers: .*"),
        ([3, 3], ValueError, r"lengths has shape \(2,\), expected \(1,\): one for each row"),
    ]:
        there.refuses(lambda a, v=value: a(X[:, 0], lengths=v), error, f"^{name}: {match}$")
    there.refuses(lambda a: a(X[:, 0], reset=RESET[1:, 0]), ValueError,
                  rf"^{name}: reset has shape \(3,\), expected \(4,\)$")
    there.refuses(lambda a: a(X[:, 0], reset=RESET), ValueError, r"reset has shape \(4, 3\), exp")


@per_kind
def test_resets(cell):
    there = Unchanged(cell)
    name = type(there.layer).__name__
    for value, error, match in NOT_FLAGS:
        there.refuses(lambda a, v=value: a(X, reset=v), error, f"^{name}: {match}$")
        there.refuses(lambda a, v=value: a.forward(X, lengths=LENGTHS, reset=v), error,
                      rf"^{name}.forward: {match}$")
    first = Unchanged(cell, batch_first=True)
    first.refuses(lambda a: a(first.x, reset=RESET), ValueError,
                  rf"^{name}: reset has shape \(4, 3\), expected \(3, 4\)$")


@per_kind
def test_reset_to(cell):
    there = Unchanged(cell)
    name = type(there.layer).__name__
    for value, sentence in NOT_STATES:
        for options in ({}, {"reset": RESET}, {"lengths": LENGTHS}):
            with pytest.raises(ValueError, match="reset_to") as caught:
                there.layer(X, reset_to=value, **options)
            assert str(caught.value) == f"{name}: {sentence}"
        with pytest.raises(ValueError, match="reset_to") as caught:
            there.layer.forward_packed(ROWS, SIZES, reset_to=value)
        assert str(caught.value) == f"{name}.forward_packed: {sentence}"


@per_kind
def test_a_whole_packed_sequence_in_place_of_its_data(cell):
    there = Unchanged(cell)
    name = type(there.layer).__name__
    whole = types.SimpleNamespace(data=ROWS, batch_sizes=SIZES)
    there.refuses(lambda a: a.forward_packed(whole, SIZES), TypeError,
                  f"^{name}.forward_packed: data is of type SimpleNamespace, expected an array; ")
    there.refuses(lambda a: a(whole), TypeError,
                  rf"^{name}: x is of type .*, expected an array; of packed rows p pass ")


@per_kind
def test_batch_sizes(cell):
    there = Unchanged(cell)
    name = type(there.layer).__name__
    for value, error, match in NOT_SIZES:
        there.refuses(lambda a, v=value: a.forward_packed(ROWS, v), error,
                      rf"^{name}.forward_packed: {match}$")
    for value, error, match in [
        (FLAGS[1:], ValueError, r"reset has shape \(6,\), expected \(7,\)"),
        (FLAGS[:, None], ValueError, r"reset has shape \(7, 1\), expected \(7,\)"),
        (FLAGS.astype(int), TypeError, "reset is int64, expected booleans"),
        (RESET, ValueError, r"reset has shape \(4, 3\), expected \(7,\)"),
    ]:
        there.refuses(lambda a, v=value: a.forward_packed(ROWS, SIZES, reset=v), error,
                      rf"^{name}.forward_packed: {match}$")
    for data, error, match in [
        (X, ValueError, r"data has shape \(4, 3, 5\), expected \(N, 5\)"),
        (ROWS[:, 1:], ValueError, r"data has shape \(7, 4\), expected \(N, 5\)"),
        (ROWS[1:], ValueError, "batch_sizes has the sum 7, expected 6, the rows of data"),
        (ROWS[:0], ValueError, "batch_sizes has the sum 7, expected 0, the rows of data"),
        (ROWS.astype(float), TypeError, "data is float64, expected float32"),
        (None, TypeError, "data is None, expected numbers .*"),
    ]:
        there.refuses(lambda a, d=data: a.forward_packed(d, SIZES), error,
                      rf"^{name}.forward_packed: {match}$")
    state = draw(1, 2, H)
    state = (state, state) if there.layer.has_c else state
    there.refuses(lambda a: a.forward_packed(ROWS, SIZES, state), ValueError,
                  r"has shape \(1, 2, 6\), expected \(1, 3, 6\)$")


@per_kind
def test_gradients_of_another_shape_leave_the_pass_as_it_was(cell):
    layer = cases.LAYERS[cell](I, H, 2, bidirectional=True, dropout=0.5, seed=0)
    dy = draw(T, B, 2 * H)

    def tries(p, good, bad):
        expected = p.backward(good, retain=True)[0]
        for value, error, match in bad:
            with pytest.raises(error, match=rf"^Pass.backward: {match}$"):
                p.backward(value)
        assert p.backward(good)[0].tobytes() == expected.tobytes()

    tries(layer.forward(X, lengths=LENGTHS, reset=RESET)[2], dy, [
        (dy[1:], ValueError, r"dy has shape \(3, 3, 12\), expected \(4, 3, 12\)"),
        (dy.reshape(-1, 12), ValueError, r"dy has shape \(12, 12\), expected \(4, 3, 12\)"),
        (dy.swapaxes(0, 1), ValueError, r"dy has shape \(3, 4, 12\), expected \(4, 3, 12\)"),
        (dy.astype(float), TypeError, "dy is float64, expected float32"),
    ])
    rows = dy.reshape(-1, 12)[:7]
    for sizes, data in ((SIZES, ROWS), ([3, 3], ROWS[:6])):
        n = len(data)
        tries(layer.forward_packed(data, sizes)[2], rows[:n], [
            (rows[1:n], ValueError, rf"dy has shape \({n - 1}, 12\), expected \({n}, 12\)"),
            (dy, ValueError, rf"dy has shape \(4, 3, 12\), expected \({n}, 12\)"),
        ])
