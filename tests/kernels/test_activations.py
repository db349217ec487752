"""sigmoid, tanh and exp of the kernels, in units of the last place (ULP).

One ULP is the distance between neighbouring numbers around the exact result. Below the smallest
normal number kernels promise no more than to stay below it: denormals count as zero there, and exp
is clamped just above (vmath.h, EXP_LOW).
"""

import functools

import cases
import numpy as np
import pytest

from fastrnn._kernels import runtime

SUPPORTED = [name for name, has in runtime.isa_names().items() if has]
FUSED = [name for name in SUPPORTED if name != "scalar"]
OPS = ("sigmoid", "tanh", "exp")
LIMIT = 2.5  # ULP
BITS = {np.float32: np.uint32, np.float64: np.uint64}
WIDER = {np.float32: np.float64, np.float64: np.longdouble}
# musl on AArch64 has a wide type, but its tanh is that of float64.
WIDE = np.finfo(np.longdouble).eps < 2.0**-60 and all(
    op(np.longdouble("0.3")) != np.float64(op(np.longdouble("0.3"))) for op in (np.exp, np.tanh))
DTYPES = [
    np.float32,
    pytest.param(np.float64, marks=pytest.mark.skipif(
        not WIDE, reason="nothing wider than float64 here")),
]


def exact(x, op):
    """Return op(x) in the next wider type, rounded there only."""
    x = x.astype(WIDER[x.dtype.type])
    with np.errstate(all="ignore"):
        if op == "tanh":
            return np.tanh(x)
        if op == "exp":
            return np.exp(x)
        e = np.exp(-np.abs(x))
        return np.where(x >= 0, 1, e) / (1 + e)


def ulps(got, expected):
    """Return the errors in ULP of got's dtype; where expected is below normal numbers, 0 or inf."""
    info = np.finfo(got.dtype)
    _, exponent = np.frexp(expected)
    ulp = np.ldexp(np.ones_like(expected), np.maximum(exponent, info.minexp + 1) - info.nmant - 1)
    error = np.abs(got - expected) / ulp
    small = np.abs(expected) < 1.01 * info.tiny
    error[small] = np.where(np.abs(got[small]) < 1.01 * info.tiny, 0, np.inf)
    return error


def judge(x, op):
    """Return the largest error in ULP over all of x but NaN, which must come back as NaN."""
    got = runtime.activate(x, op)
    assert got.dtype == x.dtype
    assert got.shape == x.shape
    nan = np.isnan(x)
    np.testing.assert_array_equal(np.isnan(got), nan)
    x, got = x[~nan], got[~nan]
    if op == "tanh":
        assert not np.any(np.abs(got) > 1)
        assert not np.any((got > 0) & (x < 0) | (got < 0) & (x > 0))
    else:
        assert not np.any((got < 0) | (got > 1))
    if not x.size:
        return 0.0
    error = ulps(got, exact(x, op))
    worst = error.argmax()
    assert error[worst] <= LIMIT, f"{op}({x[worst]!r}) is {got[worst]!r}, off by {error[worst]} ULP"
    return float(error[worst])


@functools.cache
def samples(dtype, op):
    """Return over a million numbers: all exponents alike, the curved part, and every seam."""
    rng = np.random.default_rng(0)
    bits = BITS[dtype]
    info = np.finfo(dtype)
    seams = np.array([0, 0.625, 87.33, 87.3365, 88.37, 88.73, 89, 103.98, 104, 708.39, 708.4,
                      709.79, 710.13, 710.2, 745.2, 9.01, 19.07, 0.3466, 1, info.tiny,
                      info.smallest_subnormal, info.max, info.eps, np.inf], dtype)
    around = (seams.view(bits)[:, None] + np.arange(-300, 300).astype(bits)).view(dtype)
    x = np.concatenate([
        rng.integers(0, np.iinfo(bits).max, 600_000, bits, endpoint=True).view(dtype),
        rng.uniform(-20, 20, 300_000),
        rng.uniform(-1, 1, 100_000),
        rng.uniform(-110, 110, 100_000),
        rng.uniform(-800, 800, 100_000),
        (np.arange(-1100, 1100)[:, None] * np.log(2) + np.linspace(-0.01, 0.01, 21) / 2).ravel(),
        around.ravel(), -around.ravel(), [np.nan, -np.nan, -0.0],
    ], dtype=dtype, casting="same_kind")
    return -np.abs(x) if op == "exp" else x


# ------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_of_a_million_numbers(isa, dtype, op, record_property):
    x = samples(dtype, op)
    assert x.size > 1_000_000
    worst = judge(x, op)
    record_property("ulp", worst)
    print(f"{op} {np.dtype(dtype).name} {isa}: {worst:.3f} ULP")


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_errors_of_every_float32(isa, op, record_property):
    worst = 0.0
    for first in range(0, 2**32, 2**22):
        x = np.arange(first, first + 2**22, dtype=np.uint32).view(np.float32)
        if op == "exp":
            x = x[~(x > 0)]
        worst = max(worst, judge(x, op))
    record_property("ulp", worst)
    print(f"{op} float32 {isa}: {worst:.4f} ULP over all bit patterns")


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_special_numbers(isa, dtype):
    info = np.finfo(dtype)
    inf, tiny, huge = np.inf, info.tiny, info.max
    for op, x, expected in [
        ("sigmoid", [-inf, -huge, -1e4, 0, -0.0, 1e4, huge, inf], [0, 0, 0, 0.5, 0.5, 1, 1, 1]),
        ("sigmoid", [tiny, -tiny, tiny / 4, -tiny / 4], [0.5] * 4),
        ("tanh", [-inf, -huge, -1e4, 0, -0.0, 1e4, huge, inf], [-1, -1, -1, 0, 0, 1, 1, 1]),
        ("tanh", [tiny, -tiny], [tiny, -tiny]),
        ("exp", [0, -0.0, -tiny, -tiny / 4], [1] * 4),
    ]:
        got = runtime.activate(np.array(x, dtype), op)
        np.testing.assert_array_equal(got, np.array(expected, dtype), f"{op} of {x}")
    for op in OPS:
        assert np.isnan(runtime.activate(np.array([np.nan, -np.nan], dtype), op)).all()
    gone = runtime.activate(np.array([-inf, -huge, -1e4, info.min], dtype), "exp")
    assert (gone < 1.01 * tiny).all()
    assert (gone >= 0).all()


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_tanh_is_odd_to_the_bit(isa, dtype):
    x = samples(dtype, "tanh")
    x = np.abs(x[~np.isnan(x)])
    got = runtime.activate(-x, "tanh")
    np.testing.assert_array_equal(got.view(BITS[dtype]),
                                  (-runtime.activate(x, "tanh")).view(BITS[dtype]))


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_denormals_count_as_zero_or_as_they_are(isa, dtype):
    info = np.finfo(dtype)
    x = np.array([info.tiny / 2, info.tiny / 1024, info.smallest_subnormal], dtype)
    before = runtime.get_flush_denormals()
    try:
        runtime.set_flush_denormals(True)
        assert not runtime.activate(x, "tanh").any()
        runtime.set_flush_denormals(False)
        np.testing.assert_array_equal(runtime.activate(x, "tanh"), x)
        np.testing.assert_array_equal(runtime.activate(-x, "tanh"), -x)
    finally:
        runtime.set_flush_denormals(before)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 100])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_every_length_and_shape(isa, dtype, n):
    x = np.linspace(-9, 0, 200, dtype=dtype)
    for op in OPS:
        whole = runtime.activate(x, op)
        assert runtime.activate(x[:n], op).tobytes() == whole[:n].tobytes()
        assert runtime.activate(x[::2], op).tobytes() == whole[::2].tobytes()
        assert runtime.activate(x.reshape(10, 20), op).tobytes() == whole.tobytes()


@pytest.mark.skipif(len(FUSED) < 2, reason="this CPU has one instruction set with FMA")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_instruction_sets_with_fma_have_the_same_bits(dtype, op):
    before = runtime.get_isa()
    x = samples(dtype, op)
    x = x[~np.isnan(x)]
    results = []
    try:
        for name in FUSED:
            runtime.set_isa(name)
            results.append(runtime.activate(x, op))
    finally:
        runtime.set_isa(before)
    for got in results[1:]:
        np.testing.assert_array_equal(got.view(BITS[dtype]), results[0].view(BITS[dtype]))


def test_what_activate_does_not_know():
    with pytest.raises(TypeError, match="dtype is int64, expected float32 or float64"):
        runtime.activate(np.ones(3, np.int64), "tanh")
    with pytest.raises(ValueError, match=r"tuple\.index"):
        runtime.activate(np.ones(3), "relu")
