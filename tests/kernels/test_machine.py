"""The vector machine: element-wise programs, sums over units, rows that are added.

A program is rows of op, d, a, b, c, e (src_c/fastrnn.h). Here its first places are arrays, whose
units are padded to whole vectors; registers follow.
"""

import cases
import numpy as np
import pytest
from test_activations import BITS, DTYPES, FUSED, WIDER, samples, ulps

from fastrnn._kernels import runtime

SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0)
SHAPES = [(1, 1), (1, 48), (2, 17), (3, 100), (7, 5), (33, 33)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# Each operation with its operands' number and what it is in NumPy; the order is fr_operation's.
# Then, for those that may round: the limit of the error, in eps times the last function.
OPERATIONS = {
    "copy": (1, lambda a: a),
    "add": (2, np.add),
    "sub": (2, np.subtract),
    "mul": (2, np.multiply),
    "div": (2, np.divide),
    "fma": (3, lambda a, b, c: a * b + c, 1, lambda a, b, c: abs(a * b) + abs(c)),
    "fnma": (3, lambda a, b, c: c - a * b, 1, lambda a, b, c: abs(a * b) + abs(c)),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "abs": (1, np.abs),
    "relu": (1, lambda a: np.maximum(a, 0)),
    "less": (4, lambda a, b, c, e: np.where(a < b, c, e)),
    "less_equal": (4, lambda a, b, c, e: np.where(a <= b, c, e)),
    "sigmoid": (1, sigmoid, 2.5, sigmoid),
    "tanh": (1, np.tanh, 2.5, lambda a: abs(np.tanh(a))),
    "exp": (1, np.exp, 2.5, np.exp),
    "log": (1, np.log, 2.5, lambda a: abs(np.log(a))),
    "sqrt": (1, np.sqrt),
    "softplus": (1, lambda a: np.logaddexp(a, 0), 4, lambda a: np.logaddexp(a, 0)),
    "dsigmoid": (2, lambda a, b: a * b * (1 - b), 3, lambda a, b: abs(a) * (abs(b) + b * b)),
    "dtanh": (2, lambda a, b: a * (1 - b * b), 3, lambda a, b: abs(a) * (1 + b * b)),
    "splat": (1, lambda a: np.broadcast_to(a[:, :1], a.shape)),
}
NUMBER = {name: i for i, name in enumerate(OPERATIONS)}


def ins(op, d, *operands):
    """Return one instruction; operands that it does not have name place 0."""
    return (NUMBER[op], d, *operands, *(4 - len(operands)) * (0,))


def pad(array):
    """Return a copy whose units are padded with zeros to whole vectors of every instruction set."""
    rows, units = array.shape
    wide = np.zeros((rows, (units + 15) // 16 * 16), array.dtype)
    wide[:, :units] = array
    return wide


def draw(rng, shape, dtype):
    return (4 * rng.standard_normal(shape)).astype(dtype)


def operands(op, shape, dtype, seed=0):
    """Return arrays for op; some numbers are special, and some are in two of them."""
    rng = np.random.default_rng(seed)
    drawn = [draw(rng, shape, dtype) for _ in range(OPERATIONS[op][0])]
    finite = op.startswith("d") and op != "div"  # the second is a sigmoid's or tanh's value
    for array in drawn[:1] if finite else drawn:
        some = rng.random(shape) < 0.2
        array[some] = rng.choice(SPECIAL, some.sum())
    if len(drawn) > 1 and not finite:
        some = rng.random(shape) < 0.2
        drawn[1][some] = drawn[0][some]
    return drawn


def apply(op, arrays, tile=256):
    """Return op of arrays that lie in memory."""
    units = arrays[0].shape[1]
    places = [*map(pad, arrays), pad(np.full_like(arrays[0], 7))]
    runtime.elementwise([ins(op, len(arrays), *range(len(arrays)))], places, 0, tile, 0, units)
    return places[-1][:, :units]


def same_bits(got, expected):
    """Assert equal bits; NaN is NaN."""
    bits = BITS[expected.dtype.type]
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(bits), expected[~nan].view(bits))


def sets_apart(names, compute):
    """Return compute() under each of the instruction sets."""
    before = runtime.get_isa()
    results = []
    try:
        for name in names:
            runtime.set_isa(name)
            results.append(compute())
    finally:
        runtime.set_isa(before)
    return results


# ---------------------------------------------------------------------------------- one operation


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("op", OPERATIONS)
def test_each_operation_is_that_of_numpy(isa, op, dtype, shape):
    arrays = operands(op, shape, dtype)
    got = apply(op, arrays)
    _, formula, *bound = OPERATIONS[op]
    with np.errstate(all="ignore"):
        if not bound:
            np.testing.assert_array_equal(got, formula(*arrays))
            return
        wide = [a.astype(WIDER[dtype]) for a in arrays]
        expected = formula(*wide)
        limit = bound[0] * np.finfo(dtype).eps * bound[1](*wide)
    known = np.isfinite(expected)
    np.testing.assert_array_equal(got[~known], expected[~known].astype(dtype))
    assert (np.abs(got[known] - expected[known]) <= limit[known]).all()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("op", OPERATIONS)
def test_registers_shared_rows_and_results_over_operands(isa, op, dtype):
    shape, count = (5, 37), OPERATIONS[op][0]
    arrays = operands(op, shape, dtype)
    expected = apply(op, arrays)

    places = [*map(pad, arrays), pad(np.zeros(shape, dtype))]
    first = len(places)  # the first register
    code = [ins("copy", first + k, k) for k in range(count)]
    result = first + count
    code += [ins(op, result, *range(first, result)), ins("copy", count, result)]
    runtime.elementwise(code, places, count + 1, 96, 0, shape[1])
    same_bits(places[-1][:, :37], expected)

    for over in range(count):
        places = list(map(pad, arrays))
        runtime.elementwise([ins(op, over, *range(count))], places, 0, 96, 0, shape[1])
        same_bits(places[over][:, :37], expected)

    for shared in range(count):
        one = [np.repeat(a[2:3], 5, axis=0) if k == shared else a for k, a in enumerate(arrays)]
        places = [*map(pad, one), pad(np.zeros(shape, dtype))]
        places[shared] = np.broadcast_to(places[shared][:1], places[shared].shape)
        assert places[shared].strides[0] == 0
        runtime.elementwise([ins(op, count, *range(count))], places, 0, 96, 0, shape[1])
        same_bits(places[-1][:, :37], apply(op, one))


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_sign_of_zero_and_operands_that_are_equal(isa, dtype):
    zero = np.array([[0.0, -0.0]], dtype)
    for op in ("copy", "tanh", "sqrt"):
        np.testing.assert_array_equal(np.signbit(apply(op, [zero])), np.signbit(zero))
    assert not np.signbit(apply("abs", [zero])).any()
    a, c, e = (np.full((1, 3), x, dtype) for x in (2, 3, 4))
    assert (apply("less", [a, a, c, e]) == 4).all()
    assert (apply("less_equal", [a, a, c, e]) == 3).all()


# ------------------------------------------------------------------------------------- a program

# Places 0 to 3 are arrays, of which 3 is the result; 4 to 7 are registers.
PROGRAM = [
    ins("fma", 4, 0, 1, 2), ins("tanh", 5, 4), ins("sigmoid", 6, 1), ins("softplus", 7, 2),
    ins("sub", 4, 7, 5), ins("fnma", 7, 6, 5, 4), ins("splat", 5, 1), ins("less", 4, 5, 7, 7, 6),
    ins("splat", 6, 4), ins("add", 4, 4, 6), ins("abs", 5, 4), ins("exp", 6, 0),
    ins("add", 5, 5, 6), ins("log", 5, 5), ins("dtanh", 5, 5, 6), ins("max", 3, 5, 7),
    ins("div", 0, 3, 6), ins("add", 3, 0, 3),
]


def run_program(shape, dtype, tile, cuts=(0,), program=PROGRAM):
    """Return what the program leaves in its four arrays, computed from one cut to the next."""
    rng = np.random.default_rng(1)
    places = [pad(draw(rng, shape, dtype)) for _ in range(4)]
    for u0, u1 in zip(cuts, (*cuts[1:], shape[1]), strict=True):
        runtime.elementwise(program, places, 4, tile, u0, u1)
    return np.array([p[:, :shape[1]] for p in places])


@pytest.mark.parametrize("shape", [(1, 48), (4, 128), (13, 33), (3, 600), (40, 1)])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_tiles_of_every_size_have_the_same_bits(isa, dtype, shape):
    # a register's first number is that of the tile: such splats fit only where tiles hold all units
    program = [i for i in PROGRAM if i != ins("splat", 6, 4)]
    expected = run_program(shape, dtype, 512, program=program)
    assert not np.isnan(expected).any()
    for tile in (1, 16, 48, 100, 500):
        same_bits(run_program(shape, dtype, tile, program=program), expected)
    if shape[1] > 48:
        same_bits(run_program(shape, dtype, 160, (0, 16, 48), program), expected)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_program_of_many_operations(isa, dtype):
    shape = (9, 60)
    rng = np.random.default_rng(1)
    a, b, c, _ = (draw(rng, shape, dtype).astype(np.float64) for _ in range(4))
    tanh, s, plus = np.tanh(a * b + c), sigmoid(b), np.logaddexp(c, 0)
    r7 = plus - tanh - s * tanh
    r4 = np.where(b[:, :1] < r7, r7, s)
    r4 = r4 + r4[:, :1]
    exp = np.exp(a)
    d = np.maximum(np.log(abs(r4) + exp) * (1 - exp * exp), r7)
    got = run_program(shape, dtype, 300)
    eps = np.finfo(dtype).eps * 300 * (1 + exp * exp)
    assert (np.abs(got[0] - d / exp) <= eps * (1 + 1 / exp)).all()
    assert (np.abs(got[3] - (d / exp + d)) <= eps * (1 + 1 / exp)).all()


@pytest.mark.skipif(len(FUSED) < 2, reason="this CPU has one instruction set with FMA")
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_instruction_sets_with_fma_have_the_same_bits(dtype):
    def compute():
        alone = [apply(op, operands(op, (20, 50), dtype)) for op in OPERATIONS]
        return np.concatenate([*alone, *run_program((20, 50), dtype, 512)])

    first, *others = sets_apart(FUSED, compute)
    for got in others:
        same_bits(got, first)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_units_and_rows_that_are_not_named_stay(isa, dtype):
    whole = np.full((6, 96), 5, dtype)
    places = [np.ones((4, 96), dtype), whole[1:5]]
    runtime.elementwise([ins("copy", 2, 0), ins("copy", 1, 2)], places, 1, 64, 16, 80)
    expected = np.full((6, 96), 5, dtype)
    expected[1:5, 16:80] = 1
    np.testing.assert_array_equal(whole, expected)
    runtime.elementwise([ins("abs", 1, 0)], places, 0, 64, 32, 32)  # no units: nothing happens
    runtime.elementwise([], places, 0, 64)
    np.testing.assert_array_equal(whole, expected)


def test_what_the_machine_does_not_take():
    place = np.zeros((2, 16), np.float32)
    code = [ins("copy", 0, 1)]
    runtime.elementwise(code, [place], 1, 64)
    for message, arguments in [
        ("names operations or places", ([ins("copy", 0, 2)], [place], 1, 64)),
        ("names operations or places", ([(len(OPERATIONS), 0, 0, 0, 0, 0)], [place], 1, 64)),
        ("tile is 1025", (code, [place], 1, 1025)),
        ("17 units are no multiple", (code, [np.zeros((2, 17), np.float32)], 1, 64)),
        ("differ in shape", (code, [place, place[:, ::2]], 1, 64)),
        ("differ in shape", (code, [place, place.astype(np.float64)], 1, 64)),
        (r"units \[16, 32\) of 16", (code, [place], 1, 64, 16, 32)),
    ]:
        with pytest.raises(ValueError, match=message):
            runtime.elementwise(*arguments)


# ------------------------------------------------------------------------- errors of functions

LIMITS = {"exp": 2.5, "log": 2.5, "softplus": 4}  # ULP
BEYOND = {  # where results begin to be normal numbers, where exp's end, and where log turns to 2 x
    np.float32: [-87.33654, 88.72283, 0.70710677, 1.4142135, -0.8813736, 0.8813736, 0.41421357],
    np.float64: [-708.3964185322641, 709.782712893384, 0.7071067811865475, 1.4142135623730951,
                 -0.881373587019543, 0.881373587019543, 0.41421356237309503],
}


def of_many(op, x):
    """Return op of a vector of any length."""
    width = 1008
    return apply(op, [np.append(x, np.ones(-x.size % width, x.dtype)).reshape(-1, width)],
                 512).ravel()[:x.size]


def exact(op, x):
    """Return op(x) in the next wider type, rounded there only."""
    with np.errstate(all="ignore"):
        x = x.astype(WIDER[x.dtype.type])
        if op == "softplus":
            return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
        return getattr(np, op)(x)


def judge(op, x):
    """Return the largest error in ULP over x; what is no normal number has to be exact."""
    got, expected = of_many(op, x), exact(op, x)
    tiny = np.finfo(x.dtype).tiny
    if op == "log":
        small = np.abs(x) < tiny  # denormals count as zero
        assert (got[small] == -np.inf).all()
        x, got, expected = x[~small], got[~small], expected[~small]
    with np.errstate(over="ignore"):
        plain = np.isfinite(expected.astype(x.dtype)) & ~(np.abs(expected) < tiny)
    rest = expected[~plain]
    rest[np.abs(rest) < tiny] = 0
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got[~plain], rest.astype(x.dtype))
    assert not np.isnan(got[plain]).any()
    plain &= expected != 0
    if not plain.any():
        return 0.0
    x, got, expected = x[plain], got[plain], expected[plain]
    error = ulps(got, expected)
    worst = error.argmax()
    assert error[worst] <= LIMITS[op], (
        f"{op}({x[worst]!r}) is {got[worst]!r}, off by {error[worst]} ULP")
    return float(error[worst])


def many(dtype):
    """Return over a million numbers, with what lies around 1 and around each seam."""
    rng = np.random.default_rng(2)
    around = np.array(BEYOND[dtype], dtype).view(BITS[dtype])[:, None]
    one = 1 + rng.standard_normal(200_000) * 2.0 ** rng.uniform(-30, 0, 200_000)
    nan = (BITS[dtype](1) << np.arange(0, np.finfo(dtype).nmant, 3, BITS[dtype])) | np.array(
        np.inf, dtype).view(BITS[dtype])
    seams = (around + np.arange(-300, 300).astype(BITS[dtype])).view(dtype)
    return np.concatenate([samples(dtype, "sigmoid"), one.astype(dtype), seams.ravel(),
                           nan.view(dtype), -nan.view(dtype)])


@pytest.mark.parametrize("op", LIMITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_of_a_million_numbers(isa, dtype, op, record_property):
    worst = judge(op, many(dtype))
    record_property("ulp", worst)
    print(f"{op} {np.dtype(dtype).name} {isa}: {worst:.3f} ULP")


@pytest.mark.slow
@pytest.mark.parametrize("op", LIMITS)
def test_errors_of_every_float32(isa, op, record_property):
    worst = 0.0
    for first in range(0, 2**32, 2**22):
        x = np.arange(first, first + 2**22, dtype=np.uint32).view(np.float32)
        worst = max(worst, judge(op, x))
    record_property("ulp", worst)
    print(f"{op} float32 {isa}: {worst:.4f} ULP over all bit patterns")


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_special_numbers(isa, dtype):
    info = np.finfo(dtype)
    inf, nan, tiny, huge = np.inf, np.nan, info.tiny, info.max
    for op, x, expected in [
        ("exp", [0, -0.0, tiny, inf, huge, 1e4, -inf, -huge, -1e4, nan, -nan],
         [1, 1, 1, inf, inf, inf, 0, 0, 0, nan, nan]),
        ("log", [1, 0, -0.0, -1, -tiny, -inf, inf, nan, -nan],
         [0, -inf, -inf, nan, nan, nan, inf, nan, nan]),
        ("softplus", [-inf, -huge, -1e4, 1e4, huge, inf, nan, -nan],
         [0, 0, 0, 1e4, huge, inf, nan, nan]),
    ]:
        got = of_many(op, np.array(x, dtype))
        np.testing.assert_array_equal(got, np.array(expected, dtype), f"{op} of {x}")
        assert not np.signbit(got[got == 0]).any()


@pytest.mark.skipif(len(FUSED) < 2, reason="this CPU has one instruction set with FMA")
@pytest.mark.parametrize("op", LIMITS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_functions_have_the_same_bits_with_fma(dtype, op):
    x = many(dtype)
    first, *others = sets_apart(FUSED, lambda: of_many(op, x))
    for got in others:
        same_bits(got, first)


# ----------------------------------------------------------------------------- sums over units


def ordered_sum(row):
    """Return the sum in the order that fr_table names: 64 bytes of lanes, then halves."""
    lanes = 64 // row.itemsize
    wide = np.zeros(-(-row.size // lanes) * lanes, row.dtype)
    wide[:row.size] = row
    total = np.zeros(lanes, row.dtype)
    for part in wide.reshape(-1, lanes):
        total = total + part
    while total.size > 1:
        total = total[:total.size // 2] + total[total.size // 2:]
    return total[0]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 63, 100, 257, 1000])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_sums_over_units_come_in_one_order(isa, dtype, n):
    wide = np.full((7, n + 21), np.nan, dtype)  # NaN lies wherever no number is to be read
    x = wide[:, :n]
    x[:] = draw(np.random.default_rng(n), x.shape, dtype)
    got = runtime.sum_units(x)
    same_bits(got, np.array([ordered_sum(row) for row in x]))
    exact = x.sum(axis=1, dtype=np.longdouble)
    assert (np.abs(got - exact) <= 12 * np.finfo(dtype).eps * np.abs(x).sum(axis=1)).all()
    x[2, n // 2], x[4, -1], x[5, 0] = np.nan, np.inf, -np.inf
    got = runtime.sum_units(x)
    np.testing.assert_array_equal(got[[2, 4, 5]], [np.nan, np.inf, -np.inf])
    assert np.isfinite(got[[0, 1, 3, 6]]).all()


# --------------------------------------------------------------------------- rows that are added


@pytest.mark.parametrize("n", [1, 3, 4, 5, 7, 8, 15, 16, 17, 33, 100])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_added_rows(isa, dtype, n):
    rng = np.random.default_rng(n)
    source = np.full((5, n + 17), np.nan, dtype)
    x = source[:, :n]
    x[:] = draw(rng, x.shape, dtype)
    for at in (None, [4, 0, 0, 2]):
        wide = np.full((4, n + 18), 3, dtype)
        y = wide[:, :n]
        y[:] = draw(rng, y.shape, dtype)
        expected = y + (x[:4] if at is None else x[at])
        runtime.add_rows(y, x, at)
        np.testing.assert_array_equal(y, expected)
        assert (wide[:, n:] == 3).all()
