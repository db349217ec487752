"""Whatever a caller may pass to a layer: refused in one sentence, or as good as a plain copy."""

import re

import cases
import numpy as np
import pytest

import fastrnn

T, B, I, H = 3, 2, 64, 5


def draw(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X, DY, STATE = draw(T, B, I), draw(T, B, H, seed=2), draw(2, B, H, seed=3)
WRONG = draw(2, B, H + 1)
RAGGED = [[[1.0] * I], [[1.0] * I, [1.0] * I]]
MASKED = np.ma.masked_greater(X, 1.0)
MASKED_DY = np.ma.masked_greater(DY, 1.0)


class Opaque:
    """An object no array can be made of, and without a length."""


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def state_for(layer, state=STATE):
    return (state, -state) if layer.cell.name == "lstm" else state


def forward(layer):
    y, state = layer(X, state_for(layer))
    return [y.tobytes(), *(s.tobytes() for s in as_tuple(state))]


def backward(layer):
    dx, dstate = layer.backward(DY, state_for(layer))
    return [a.tobytes() for a in (dx, *as_tuple(dstate), layer.flat_grads)]


def zeros_of(layer, **changes):
    """Return a state dict of zeros with some values changed."""
    return {name: np.zeros_like(a) for name, a in layer.parameters().items()} | changes


# ------------------------------------------------------------------- refused, in one sentence

# (cells, what to do with a layer of two layers, error, pattern of the whole message)
ALL = ("rnn_tanh", "lstm", "gru")
X_SHAPE = r"expected \(T, B, 64\)"
CALLS = [
    (ALL, lambda a: a(X[..., :12]), ValueError,
     rf"x has shape \(3, 2, 12\), {X_SHAPE}: x has 12 features, weight_ih_l0 expects 64"),
    (ALL, lambda a: a(X[:, 0, :12]), ValueError,
     r"x has shape \(3, 12\), expected \(T, 64\): x has 12 features, weight_ih_l0 expects 64"),
    (ALL, lambda a: a(X[..., :0]), ValueError, r"x has shape .*: x has 0 features, weight_ih_.*"),
    (ALL, lambda a: a(X[0, 0]), ValueError, rf"x has shape \(64,\), {X_SHAPE} or \(T, 64\)"),
    (ALL, lambda a: a(X[None]), ValueError, rf"x has shape \(1, 3, 2, 64\), {X_SHAPE} or .*"),
    (ALL, lambda a: a(np.float32(3)), ValueError, rf"x has shape \(\), {X_SHAPE} or \(T, 64\)"),
    (ALL, lambda a: a(3.0), ValueError, rf"x has shape \(\), {X_SHAPE} or \(T, 64\)"),
    (ALL, lambda a: a([]), ValueError, rf"x has shape \(0,\), {X_SHAPE} or \(T, 64\)"),
    *((ALL, lambda a, k=kind: a(X.astype(k)), TypeError, f"x is {kind}, expected float32")
      for kind in ("float64", "float16", "int64", "uint8", "bool", "complex64", "object")),
    (ALL, lambda a: a(X.astype("U3")), TypeError, "x is <U3, expected float32"),
    (ALL, lambda a: a(np.full(X.shape, None)), TypeError, "x is object, expected float32"),
    (ALL, lambda a: a(np.zeros(X.shape, "M8[s]")), TypeError, r"x is datetime64\[s\], expected .*"),
    (ALL, lambda a: a(np.zeros(X.shape, [("a", "f4")])), TypeError, "x is .*, expected float32"),
    (ALL, lambda a: a(None), TypeError, r"x is None, expected numbers \(float32\)"),
    (ALL, lambda a: a("text"), TypeError, r"x is of type str, expected numbers \(float32\)"),
    (ALL, lambda a: a(b"text"), TypeError, r"x is of type bytes, expected numbers \(float32\)"),
    (ALL, lambda a: a(Opaque()), TypeError, r"x is of type Opaque, expected numbers \(float32\)"),
    (ALL, lambda a: a({"x": X}), TypeError, r"x is of type dict, expected numbers \(float32\)"),
    (ALL, lambda a: a(iter(X)), TypeError, r"x is of type \w+, expected numbers \(float32\)"),
    (ALL, lambda a: a([["1"] * I]), TypeError, r"x is \[.*\], expected numbers \(float32\)"),
    (ALL, lambda a: a([[None] * I]), TypeError, r"x is \[.*\], expected numbers .*"),
    (ALL, lambda a: a([[1j] * I]), TypeError, r"x is \[.*\], expected numbers .*"),
    (ALL, lambda a: a([[10**400] * I]), TypeError, r"x is \[.*\], expected numbers .*"),
    (ALL, lambda a: a(RAGGED), ValueError, "x is a ragged sequence, expected an array of float32"),
    (ALL, lambda a: a(MASKED), TypeError, "x is a masked array with masked places, expected .*"),
    (ALL, lambda a: a.backward(MASKED_DY), TypeError,
     "dy is a masked array with masked places, .*"),
    # states
    (("rnn_tanh", "gru"), lambda a: a(X, (STATE, STATE)), TypeError,
     "h0 is a tuple of 2, expected one array"),
    (("rnn_tanh", "gru"), lambda a: a(X, (STATE,)), TypeError,
     "h0 is a tuple of 1, expected one array"),
    (("rnn_tanh", "gru"), lambda a: a(X, [STATE, STATE]), ValueError,
     r"h0 has shape \(2, 2, 2, 5\), expected \(2, 2, 5\)"),
    (("rnn_tanh", "gru"), lambda a: a(X, WRONG), ValueError,
     r"h0 has shape \(2, 2, 6\), expected \(2, 2, 5\)"),
    (("rnn_tanh", "gru"), lambda a: a(X, STATE[0]), ValueError,
     r"h0 has shape \(2, 5\), expected \(2, 2, 5\)"),
    (("rnn_tanh", "gru"), lambda a: a(X[:, 0], STATE), ValueError,
     r"h0 has shape \(2, 2, 5\), expected \(2, 5\)"),
    (("rnn_tanh", "gru"), lambda a: a(X, STATE.astype(float)), TypeError,
     "h0 is float64, expected float32"),
    (("rnn_tanh", "gru"), lambda a: a(X, "text"), TypeError, "h0 is of type str, expected .*"),
    (("rnn_tanh", "gru"), lambda a: a(X, RAGGED), ValueError, "h0 is a ragged sequence, .*"),
    *(
        (("lstm",), lambda a, s=state: a(X, s), error, message)
        for state, error, message in (
            (STATE, TypeError, r"state is ndarray of 2, expected a pair \(h, c\)"),
            ((STATE,) * 3, TypeError, r"state is tuple of 3, expected a pair \(h, c\)"),
            ((STATE,), TypeError, r"state is tuple of 1, expected a pair \(h, c\)"),
            ("hc", TypeError, r"state is str of 2, expected a pair \(h, c\)"),
            (3, TypeError, r"state is 3, expected a pair \(h, c\)"),
            (np.array(3.0), TypeError, r"state is .*, expected a pair \(h, c\)"),
            (Opaque, TypeError, r"state is .*, expected a pair \(h, c\)"),
            (dict, TypeError, r"state is .*, expected a pair \(h, c\)"),
            ({"h": STATE, "c": STATE}, TypeError, r"state is dict of 2, expected a pair \(h, c\)"),
            ((WRONG, STATE), ValueError, r"state\[0\] has shape \(2, 2, 6\), expected \(2, 2, 5\)"),
            ((STATE, WRONG), ValueError, r"state\[1\] has shape \(2, 2, 6\), expected \(2, 2, 5\)"),
            ((STATE, STATE.astype(int)), TypeError, r"state\[1\] is int64, expected float32"),
            (("text", STATE), TypeError, r"state\[0\] is of type str, expected numbers .*"),
            ((STATE, RAGGED), ValueError, r"state\[1\] is a ragged sequence, expected .*"),
        )
    ),
    # backward
    (ALL, lambda a: a.backward(DY[1:]), ValueError,
     r"dy has shape \(2, 2, 5\), expected \(3, 2, 5\)"),
    (ALL, lambda a: a.backward(X), ValueError, r"dy has shape \(3, 2, 64\), expected \(3, 2, 5\)"),
    (ALL, lambda a: a.backward(DY[:, 0]), ValueError, r"dy has shape \(3, 5\), expected .*"),
    (ALL, lambda a: a.backward(DY.astype(float)), TypeError, "dy is float64, expected float32"),
    (ALL, lambda a: a.backward("text"), TypeError, r"dy is of type str, expected numbers .*"),
    (ALL, lambda a: a.backward(RAGGED), ValueError, "dy is a ragged sequence, expected .*"),
    (("rnn_tanh", "gru"), lambda a: a.backward(DY, (STATE, STATE)), TypeError,
     "dhn is a tuple of 2, expected one array"),
    (("rnn_tanh", "gru"), lambda a: a.backward(DY, WRONG), ValueError,
     r"dhn has shape \(2, 2, 6\), expected \(2, 2, 5\)"),
    (("lstm",), lambda a: a.backward(DY, STATE), TypeError,
     r"dstate is ndarray of 2, expected a pair \(h, c\)"),
    (("lstm",), lambda a: a.backward(DY, np.array(3.0)), TypeError,
     r"dstate is .*, expected a pair \(h, c\)"),
    (("lstm",), lambda a: a.backward(DY, (STATE, WRONG)), ValueError,
     r"dstate\[1\] has shape \(2, 2, 6\), expected \(2, 2, 5\)"),
    # loading
    (ALL, lambda a: a.load_state_dict({}), ValueError,
     r"missing \['weight_ih_l0', .*'bias_hh_l1'\]"),
    (ALL, lambda a: a.load_state_dict(zeros_of(a, more=STATE)), ValueError,
     r"unexpected \['more'\]"),
    (ALL, lambda a: a.load_state_dict(zeros_of(a, weight_hh_l1=STATE)), ValueError,
     r"weight_hh_l1 has shape \(2, 2, 5\), expected \(\d+, 5\)"),
    (ALL, lambda a: a.load_state_dict(zeros_of(a, weight_hh_l1="text")), TypeError,
     "weight_hh_l1 is .*, expected numbers"),
    (ALL, lambda a: a.load_state_dict(zeros_of(a, weight_hh_l1=None)), TypeError,
     "weight_hh_l1 is .*, expected numbers"),
    (ALL, lambda a: a.load_state_dict(zeros_of(a, weight_hh_l1=RAGGED)), (TypeError, ValueError),
     "weight_hh_l1 is a ragged sequence, expected .*"),
    (ALL, lambda a: a.load_state_dict(None), TypeError, ".*None.*, expected a mapping.*"),
    (ALL, lambda a: a.load_state_dict(3), TypeError, ".*(3|int).*, expected a mapping.*"),
    (ALL, lambda a: a.load_state_dict(a.flat), TypeError, ".*ndarray.*, expected a mapping.*"),
]


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("cell", "call", "error", "message"),
    [(cell, *row) for cells, *row in CALLS for cell in cells],
    ids=[f"{k}-{cell}" for k, (cells, *_) in enumerate(CALLS) for cell in cells],
)
def test_a_refused_call_says_why_and_changes_nothing(cell, call, error, message, mode):
    layer = cases.LAYERS[cell](I, H, 2, seed=0)
    expected = [forward(layer), backward(layer)]
    layer.zero_grad()
    got = [forward(layer)]  # the call that awaits its backward
    layer.train(mode)
    before = layer.flat.tobytes(), layer.flat_grads.tobytes()
    owner = re.escape(type(layer).__name__)
    with pytest.raises(error) as caught:
        call(layer)
    assert re.fullmatch(rf"{owner}(\.\w+)?: {message}", str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert (layer.flat.tobytes(), layer.flat_grads.tobytes()) == before
    assert layer.training is mode
    assert layer.flat.flags.writeable is mode
    got.append(backward(layer))
    assert got == expected
    assert forward(layer) == expected[0]


SIZES = ("input_size", "hidden_size", "num_layers")
BAD_ARGUMENTS = [
    *(
        (name, value, ValueError, rf"{name} is .*, expected a whole number of at least 1")
        for name in SIZES
        for value in (0, -1, True, False, 2.0, np.float32(2), "2", None, [2], np.zeros((2, 2)))
    ),
    *(
        ("dropout", value, ValueError, "dropout is .*, expected a number from 0 to 1")
        for value in (-0.1, 1.1, np.nan, np.inf, True, "0.5", None, [0.5], np.zeros((2, 2)), 1j)
    ),
    *(
        ("dtype", value, TypeError, "dtype is .*, expected float32 or float64")
        for value in (int, np.int32, np.float16, "float16", "foo", "", ",", ">f4", complex, object,
                      3, [], {}, {"names": 3}, None)
    ),
    *(
        ("seed", value, ValueError, "seed is .*, expected a whole number of at least 0, or None")
        for value in (-1, 1.5, "1", "text", b"1", [-1], {}, Opaque(), np.random.default_rng(0),
                      np.random.SeedSequence(0))
    ),
]


@pytest.mark.parametrize("cell", ALL)
@pytest.mark.parametrize(("name", "value", "error", "message"), BAD_ARGUMENTS,
                         ids=[f"{k}-{row[0]}" for k, row in enumerate(BAD_ARGUMENTS)])
def test_bad_arguments_of_a_constructor(cell, name, value, error, message):
    arguments = {"input_size": 3, "hidden_size": 4, "num_layers": 2} | {name: value}
    with pytest.raises(error) as caught:
        cases.LAYERS[cell](**arguments)
    owner = {"rnn_tanh": "RNN"}.get(cell, cell.upper())
    assert re.fullmatch(rf"{owner}: {message}", str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["softsign", "TANH", "", None, 3, ["tanh"], np.array(["tanh"]), np.zeros(3)], ids=repr
)
def test_an_unknown_nonlinearity(value):
    with pytest.raises(ValueError, match=r"^RNN: nonlinearity is .*, expected one of \['tanh', "):
        fastrnn.RNN(3, 4, nonlinearity=value)


@pytest.mark.parametrize("sizes", [(2**40, 2**40), (2**62, 4), (4, 2**62), (2**33, 2**30)], ids=str)
def test_sizes_that_no_memory_holds_are_named(sizes):
    with pytest.raises((ValueError, MemoryError)) as caught:
        fastrnn.LSTM(*sizes)
    assert re.match("LSTM: .*size", str(caught.value)), str(caught.value)


@pytest.mark.parametrize("size", [np.int8(3), np.int64(3), np.uint16(3)], ids=repr)
def test_numpys_whole_numbers_are_sizes(size):
    layer = fastrnn.LSTM(size, size, size, seed=np.uint32(0), dropout=np.float32(0))
    for name in SIZES:
        assert type(getattr(layer, name)) is int
    assert layer.flat.tobytes() == fastrnn.LSTM(3, 3, 3, seed=0).flat.tobytes()


# ------------------------------------------------------------------------------ NaN and infinity


def outputs(layer, x, state):
    """Return y, the state, dx and the state's gradient, each with B first."""
    y, final = layer(x, state_for(layer, state))
    dy = np.ones_like(y)
    dx, dstate = layer.backward(dy, state_for(layer, np.ones_like(state)))
    return [a.swapaxes(0, 1) for a in (y, *as_tuple(final), dx, *as_tuple(dstate))]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("where", ["x", "state"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_nan_and_infinity_stay_in_their_row(cell, bidirectional, where, value):
    layer = cases.LAYERS[cell](7, 17, 2, bidirectional=bidirectional, seed=0)
    x, state = draw(6, 5, 7), draw(2 + 2 * bidirectional, 5, 17)
    with np.errstate(all="raise"):
        clean = outputs(layer, x, state)
        {"x": x, "state": state}[where][0, 2, 3] = value
        for mode in (True, False):
            layer.train(mode)
            y, _ = layer(x, state_for(layer, state))
            if np.isnan(value):
                assert np.all(np.isnan(y[0 if where == "x" else -1, 2]))
            others = np.delete(y, 2, axis=1)
            assert others.tobytes() == np.delete(clean[0].swapaxes(0, 1), 2, axis=1).tobytes()
        dirty = outputs(layer.train(), x, state)
    for got, expected in zip(dirty, clean, strict=True):
        assert np.delete(got, 2, axis=0).tobytes() == np.delete(expected, 2, axis=0).tobytes()


@pytest.mark.parametrize("cell", cases.CELLS)
def test_nan_reaches_every_later_step_of_its_row_and_no_earlier_one(cell):
    layer = cases.LAYERS[cell](7, 17, 2, seed=0).eval()
    x = draw(6, 3, 7)
    clean, _ = layer(x)
    x[2, 1, 4] = np.nan
    y, _ = layer(x)
    assert np.all(np.isnan(y[2:, 1]))
    assert y[:2].tobytes() == clean[:2].tobytes()


@pytest.mark.parametrize("cell", cases.CELLS)
def test_nan_in_a_gradient_stays_in_its_row(cell):
    layer = cases.LAYERS[cell](7, 17, 2, bidirectional=True, seed=0)
    x, dy = draw(6, 5, 7), draw(6, 5, 34)
    layer(x)
    clean, _ = layer.backward(dy)
    layer.zero_grad()
    dy[3, 2, 20] = np.nan
    layer(x)
    dx, _ = layer.backward(dy)
    assert np.any(np.isnan(dx[:, 2]))
    assert np.delete(dx, 2, axis=1).tobytes() == np.delete(clean, 2, axis=1).tobytes()
    assert np.any(np.isnan(layer.flat_grads))


# ------------------------------------------------------------------- as good as a plain copy


def strided(a):
    wide = np.zeros([2 * n for n in a.shape], a.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def padded(a):
    """Contiguous rows, and gaps between them."""
    wide = np.zeros((*a.shape[:-1], a.shape[-1] + 3), a.dtype)
    wide[..., :-3] = a
    return wide[..., :-3]


def misaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def half_aligned(a):
    """Aligned rows whose distance is no whole number of items."""
    raw = np.zeros((*a.shape[:-1], a.shape[-1] * a.itemsize + a.itemsize // 2), np.uint8)
    view = np.lib.stride_tricks.as_strided(
        raw[..., : a.itemsize].view(a.dtype), a.shape, (*raw.strides[:-1], a.itemsize))
    view[...] = a
    return view


def read_only(a):
    b = a.copy()
    b.flags.writeable = False
    return b


def turned(axes):
    """Return the array with its axes in another order of memory."""
    back = np.argsort(axes)
    return lambda a: np.ascontiguousarray(a.transpose(axes)).transpose(back)


class Wrapper:
    """What other libraries' arrays are to NumPy."""

    def __init__(self, a):
        self.a = a

    def __array__(self, dtype=None, copy=None):
        return self.a


LAYOUTS = {
    "strided": strided,
    "padded rows": padded,
    "fortran": np.asfortranarray,
    "axes 1 0 2": turned((1, 0, 2)),
    "axes 0 2 1": turned((0, 2, 1)),
    "backwards": lambda a: a[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
    "backwards in time": lambda a: a[::-1].copy()[::-1],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "big-endian strided": lambda a: strided(a.astype(a.dtype.newbyteorder(">"))),
    "read-only": read_only,
    "misaligned": misaligned,
    "half aligned": half_aligned,
    "zero stride of steps": lambda a: np.broadcast_to(a[:1], a.shape),
    "zero stride of rows": lambda a: np.broadcast_to(a[:, :1], a.shape),
    "zero stride of features": lambda a: np.broadcast_to(a[..., :1], a.shape),
    "zero strides": lambda a: np.broadcast_to(a[:1, :1, :1], a.shape),
    "overlapping": lambda a: np.lib.stride_tricks.as_strided(
        np.resize(a, a.size * 2), a.shape, (a.itemsize * 2, a.itemsize * 3, a.itemsize)),
    "masked": np.ma.asarray,
    "memoryview": lambda a: memoryview(a.copy()),
    "lists": lambda a: a.tolist(),
    "__array__": Wrapper,
}


def plain(value, dtype):
    return np.array(np.asarray(value), dtype, order="C")


@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("cell", ALL)
def test_any_memory_layout_is_as_good_as_a_plain_copy(cell, dtype, layout, batch_first):
    layer = cases.LAYERS[cell](7, 5, 2, bidirectional=True, batch_first=batch_first, dtype=dtype,
                               seed=0)
    lead = (3, 6) if batch_first else (6, 3)
    make = LAYOUTS[layout]
    x, dy = make(draw(*lead, 7).astype(dtype)), make(draw(*lead, 10, seed=2).astype(dtype))
    h, c, dh, dc = (make(draw(4, 3, 5, seed=k).astype(dtype)) for k in range(3, 7))
    given = (x, dy, h, c, dh, dc)
    copies = [plain(a, dtype) for a in given]

    def run(x, dy, h, c, dh, dc):
        layer.train().zero_grad()
        lstm = cell == "lstm"
        y, state = layer(x, (h, c) if lstm else h)
        dx, dstate = layer.backward(dy, (dh, dc) if lstm else dh)
        again, _ = layer.eval()(x, (h, c) if lstm else h)
        arrays = (y, again, dx, *as_tuple(state), *as_tuple(dstate), layer.flat_grads)
        return [a.tobytes() for a in arrays]

    expected = run(*copies)
    assert run(*given) == expected
    for value, copy in zip(given, copies, strict=True):
        assert plain(value, dtype).tobytes() == copy.tobytes()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "axes" not in name])
def test_any_memory_layout_of_one_sequence(layout):
    layer = fastrnn.LSTM(7, 5, seed=0)
    x = LAYOUTS[layout](draw(6, 3, 7))
    x = [row[1] for row in x] if isinstance(x, list) else np.asarray(x)[:, 1]
    copy = plain(x, np.float32)
    y, _ = layer(x)
    dx, _ = layer.backward(y)
    expected, _ = layer(copy)
    expected_dx, _ = layer.backward(expected)
    assert y.tobytes() == expected.tobytes()
    assert dx.tobytes() == expected_dx.tobytes()


def test_one_array_may_be_several_arguments():
    layer = fastrnn.LSTM(5, 5, 2, seed=0)
    a = draw(2, 3, 5)
    kept = a.copy()
    y, (hn, cn) = layer(a, (a, a))
    dx, (dh, dc) = layer.backward(a, (a, a))
    assert a.tobytes() == kept.tobytes()
    got = [r.tobytes() for r in (y, hn, cn, dx, dh, dc)]
    y, (hn, cn) = layer(a.copy(), (a.copy(), a.copy()))
    dx, (dh, dc) = layer.backward(a.copy(), (a.copy(), a.copy()))
    assert got == [r.tobytes() for r in (y, hn, cn, dx, dh, dc)]


def test_results_may_be_the_next_arguments():
    layer = fastrnn.LSTM(5, 5, 2, seed=0)
    x = draw(4, 3, 5)
    y, state = layer(x)
    got, _ = layer(y, state)
    expected, _ = layer(y.copy(), tuple(s.copy() for s in state))
    assert got.tobytes() == expected.tobytes()


def test_whole_numbers_in_lists_are_numbers():
    layer = fastrnn.GRU(2, 3, seed=0)
    y, _ = layer([[1, 2], [3, 4]])
    expected, _ = layer(np.array([[1, 2], [3, 4]], np.float32))
    assert y.tobytes() == expected.tobytes()


def test_a_value_that_cannot_be_shown_is_named_by_its_type():
    with pytest.raises(ValueError, match=r"RNN: hidden_size is .{,90}, expected a whole number"):
        fastrnn.RNN(3, -10**5000)  # more digits than Python converts


@pytest.mark.parametrize(("said", "error"), [
    ("reduce returned NULL without setting an exception", MemoryError),
    ("unknown opcode", SystemError)])
def test_numpys_error_where_there_is_no_memory_is_one_of_memory(said, error):
    class Array:
        def __array__(self, *arguments, **options):
            raise SystemError(said)

    with pytest.raises(error) as raised:
        fastrnn.RNN(3, 4)(Array())
    assert said in str(raised.value.__cause__ or raised.value)
