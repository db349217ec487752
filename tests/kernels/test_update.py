"""Norms and optimisers against plain NumPy in float64, with the equations of their papers."""

import gc
import math
import warnings
import weakref

import cases
import numpy as np
import pytest
from cases import drawer, read_only

from fastrnn._kernels import runtime
from fastrnn._kernels.update import Ranges, norms

SUPPORTED = [name for name, has in runtime.isa_names().items() if has]
FUSED = [name for name in SUPPORTED if name != "scalar"]
SIZES = [0, 1, 2, 7, 16, 17, 31, 32, 33, 63, 65, 1023, 1025, 32768, 32769, 100_003]


@pytest.fixture(autouse=True)
def restored():
    before = runtime.get_num_threads(), runtime.get_isa()
    yield
    runtime.set_num_threads(before[0])
    runtime.set_isa(before[1])


def exact_norm(*arrays):
    """Return the norm in extended precision, which has more exponents than float64."""
    assert np.finfo(np.longdouble).maxexp > 1024
    squares = [np.square(a.astype(np.longdouble)).sum() for a in arrays]
    return float(np.sqrt(np.sum(squares)))


def wide(*arrays):
    return [array.astype(np.float64) for array in arrays]


# ------------------------------------------------------------------------------------ the norm


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_norm(isa, dtype, n):
    x = drawer(dtype)(n)
    got, limited = norms([x])
    assert isinstance(got, float)
    assert got == limited
    assert got == pytest.approx(exact_norm(x), rel=1e-14, abs=0)


# float32 as far as it goes, with denormal numbers; float64 far beyond where squares are numbers
EXTREME = [(np.float32, size) for size in (1e20, 3e38, 1e-23, 1e-38, 1e-45)]
EXTREME += [(np.float64, size) for size in (1e200, 1.5e307, 1e155, 1e-150, 1e-200, 1e-300)]


@pytest.mark.parametrize(("dtype", "size"), EXTREME)
def test_the_norm_of_huge_and_of_tiny_numbers(isa, dtype, size):
    x = np.full(1000, size, dtype)
    x[::3] *= dtype(-0.5)
    assert norms([x])[0] == pytest.approx(exact_norm(x), rel=1e-14, abs=0)
    limit = size / 4
    assert norms([x], limit)[1] == pytest.approx(
        exact_norm(np.clip(x, dtype(-limit), dtype(limit))), rel=1e-14, abs=0)
    assert norms([x], limit)[0] == norms([x])[0]


def test_the_norm_of_arrays_of_several_dtypes_and_sizes(isa):
    huge, tiny = np.full(100, 3e38, np.float32), np.full(50, 1e-40, np.float32)
    for more in (1e300, 1e200, 1.0, 1e-200, 1e-300, 0.0):
        double = np.full(33, more)
        for arrays in ([huge, double], [double, tiny], [huge, tiny, double], [double, double]):
            assert norms(arrays)[0] == pytest.approx(exact_norm(*arrays), rel=1e-14, abs=0)
    assert norms([np.array([1e200, 1e-200])], 1e-190) == pytest.approx((1e200, 1e-190), abs=0)
    assert norms([]) == norms([np.zeros(0), np.zeros(3, np.float32)], 1.0) == (0.0, 0.0)


def test_the_norm_of_more_blocks_than_fit_on_the_stack():
    x = np.random.default_rng(0).standard_normal(70 * 32768 + 5, np.float32)
    assert norms([x])[0] == pytest.approx(np.linalg.norm(x.astype(float)), rel=1e-12)


@pytest.mark.parametrize("limit", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_norm_of_limited_elements(isa, dtype, limit):
    x = drawer(dtype)(65_537)
    x[::3] *= 3
    whole, limited = norms([x], limit)
    assert whole == norms([x])[0]
    assert limited == pytest.approx(exact_norm(np.clip(x, dtype(-limit), dtype(limit))), rel=1e-13)
    x[777] = np.nan
    assert np.isnan(norms([x], limit)).all()
    x[777] = np.inf
    whole, limited = norms([x], limit)
    assert math.isinf(whole)
    assert math.isfinite(limited)


@pytest.mark.parametrize("n", [5, 40, 1000])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_norm_of_what_is_not_finite(isa, dtype, n):
    x = drawer(dtype)(n)
    for bad, expected in ((np.nan, math.isnan), (np.inf, math.isinf), (-np.inf, math.isinf)):
        x[n - 2] = bad
        assert expected(norms([x])[0])
    assert norms([np.full(4, 1.5e308)])[0] == math.inf  # 3e308 is no float64


@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-30])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_norm_has_the_same_bits_on_every_instruction_set_and_number_of_threads(dtype, scale):
    x = drawer(dtype)(600_001) * dtype(scale)
    parts = [x[:77], x[77:40_000], x[40_000:]]
    results = set()
    for name in SUPPORTED:
        runtime.set_isa(name)
        for threads in (1, 2, 3, 8):
            runtime.set_num_threads(threads)
            results.add((norms(parts, 0.3), norms([x[:31]]), norms([x], 0.3)))
    assert len(results) == 1
    cases.fill_pool(lambda: norms([x]), 7)


# ---------------------------------------------------------------------------------------- Adam

SETTINGS = {"lr": 0.02, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8}


def adam(param, m, v, grad, step, *, lr, beta1, beta2, eps, weight_decay, grad_scale):
    """Kingma & Ba 2015, algorithm 1, and Loshchilov & Hutter 2019, algorithm 2, as they stand."""
    g = grad_scale * grad
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    return param - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * param), m, v


def ranges(param, grad, m=None, v=None, lr_scale=1.0, weight_decay=0.0):
    """Return Ranges of one row."""
    buffers = {name: a for name, a in (("m", m), ("v", v)) if a is not None}
    return Ranges([(param, grad, buffers, lr_scale, weight_decay)])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1], ids="decay{}".format)
@pytest.mark.parametrize("n", [1, 3, 8, 17, 31, 255, 257, 1000])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_adam_over_several_steps(isa, dtype, n, weight_decay):
    draw = drawer(dtype)
    state = draw(n), np.zeros(n, dtype), np.zeros(n, dtype)
    grad = np.empty(n, dtype)
    row = ranges(state[0], grad, *state[1:], weight_decay=weight_decay)
    expected = wide(*state)
    for step in range(1, 8):
        grad[:] = draw(n) * dtype(10.0 ** (step - 4))
        kept = grad.copy()
        options = SETTINGS | {"grad_scale": 0.7**step}
        assert row.adam(**options, step=step) is None
        assert grad.tobytes() == kept.tobytes()
        expected = adam(*expected, grad.astype(np.float64), step, weight_decay=weight_decay,
                        **options)
        for name, got, right in zip(("param", "m", "v"), state, expected, strict=True):
            cases.assert_close(f"{name} of step {step}", got, right, cases.tolerance(dtype, 8, 8),
                               dtype=dtype)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_adam_moves_by_the_learning_rate_first_whatever_the_gradient(isa, dtype):
    grad = np.array([1e-3, -1e-3, 5, -5e4], dtype)
    param, m, v = np.zeros(4, dtype), np.zeros(4, dtype), np.zeros(4, dtype)
    ranges(param, grad, m, v).adam(**SETTINGS, step=1)
    np.testing.assert_allclose(param, -0.02 * np.sign(grad), rtol=2e-5)


def test_adam_late_steps(isa):
    state = [np.ones(20), np.full(20, 0.1), np.full(20, 0.2)]
    step = 2**31 - 1
    expected = adam(*state, np.full(20, 0.3), step, **SETTINGS, weight_decay=0.01, grad_scale=1.0)
    ranges(state[0], np.full(20, 0.3), *state[1:], weight_decay=0.01).adam(**SETTINGS, step=step)
    for name, got, right in zip(("param", "m", "v"), state, expected, strict=True):
        cases.assert_close(name, got, right, 1e-14)


# -------------------------------------------------------------------------------- SGD, RMSProp


def sgd(param, grad, m, *, lr, momentum, nesterov, weight_decay):
    """torch.optim.SGD's equations, as its page has them."""
    g = grad + weight_decay * param
    m = momentum * m + g
    return param - lr * (g + momentum * m if nesterov else m), m


def rmsprop(param, grad, v, m, *, lr, alpha, eps, momentum, weight_decay):
    """torch.optim.RMSprop's equations, not centred, as its page has them."""
    g = grad + weight_decay * param
    v = alpha * v + (1 - alpha) * g * g
    m = momentum * m + g / (np.sqrt(v) + eps)
    return param - lr * m, v, m


@pytest.mark.parametrize("n", [1, 3, 17, 31, 255, 257])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("rule", [sgd, rmsprop], ids=["sgd", "rmsprop"])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_sgd_and_rmsprop_over_several_steps(isa, dtype, rule, momentum, n):
    draw = drawer(dtype)
    options = {"lr": 0.02, "momentum": momentum}
    options |= {"nesterov": momentum > 0} if rule is sgd else {"alpha": 0.9, "eps": 1e-6}
    names = ("m",) if rule is sgd else ("v", "m")
    buffers = {name: np.zeros(n, dtype) for name in names}
    expected_buffers = wide(*buffers.values())
    if not momentum:
        del buffers["m"]  # without momentum it keeps none
    param, grad = draw(n), np.empty(n, dtype)
    row = ranges(param, grad, **buffers, weight_decay=0.1)
    expected = [*wide(param), *expected_buffers]
    for step in range(1, 8):
        grad[:], scale = draw(n), 0.7**step
        kept = grad.copy()
        take = row.sgd if rule is sgd else row.rmsprop
        assert take(**options, limit=0.5, grad_scale=scale) is None
        assert grad.tobytes() == kept.tobytes()
        g = scale * np.clip(grad.astype(np.float64), -0.5, 0.5)
        expected = rule(expected[0], g, *expected[1:], **options, weight_decay=0.1)
        right = dict(zip(("param", *names), expected, strict=True))
        for name, got in {"param": param, **buffers}.items():
            cases.assert_close(f"{name} of step {step}", got, right[name],
                               cases.tolerance(dtype, 8, 8), dtype=dtype)


# ------------------------------------------------------------------------------------ clipping


@pytest.mark.parametrize("clip", [1.0, 1e-6])
@pytest.mark.parametrize(("dtype", "size"), EXTREME)
def test_a_step_clipped_by_the_norm_of_huge_and_of_tiny_gradients(isa, dtype, size, clip):
    grad = np.full(9, size, dtype)
    grad[::2] *= dtype(-0.25)
    param, m = np.zeros(9, dtype), np.zeros(9, dtype)
    row = ranges(param, grad, m)
    norm, _ = row.norms()
    scale = 1.0 if norm <= clip else clip / norm
    row.sgd(1.0, 0.5, grad_scale=scale)
    with np.errstate(under="ignore"):
        expected = -grad.astype(np.longdouble) * np.longdouble(min(1, clip / exact_norm(grad)))
    if np.abs(expected).max() < np.finfo(dtype).tiny:
        expected *= 0  # kernels count denormal numbers as 0
    np.testing.assert_allclose(param, expected.astype(np.float64), rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(m, -param)
    if size > 1:
        assert np.linalg.norm(param.astype(np.float64)) == pytest.approx(clip, rel=1e-6)


@pytest.mark.parametrize("exponent", [-30, -37, -38, -44, -45, -46, -60, -70])
def test_a_scale_that_is_no_normal_float32_scales_all_the_same(isa, exponent):
    scale = 10.0**exponent
    grad = np.array([3e38, -1e38, 1e37, 0], np.float32)
    param = np.zeros(4, np.float32)
    ranges(param, grad).sgd(1.0, grad_scale=scale)
    np.testing.assert_allclose(param, -grad.astype(np.float64) * scale, rtol=3e-7)
    assert param[0] < 0
    param[:] = 0
    ranges(param, np.array([np.nan, np.inf, -np.inf, 1], np.float32)).sgd(1.0, grad_scale=scale)
    np.testing.assert_array_equal(param[:3], [np.nan, -np.inf, np.inf])


def test_a_scale_of_zero_is_zero(isa):
    param = np.ones(4, np.float32)
    ranges(param, np.full(4, 3e38, np.float32)).sgd(1.0, grad_scale=0.0)
    np.testing.assert_array_equal(param, 1)


# -------------------------------------------------------------------------------- several rows


def rows_of_all_kinds(seed=0, large=1):
    """Return rows of both dtypes, several sizes, rates and decays; some are slices of a buffer."""
    rng = np.random.default_rng(seed)
    rows = []
    for k, n in enumerate((5, 0, 256, 257 * large, 1, 1000 * large, 33)):
        dtype = cases.DTYPES[k % 2]
        room = rng.standard_normal((4, n + 3)).astype(dtype)
        param, grad, m, v = (a[1 : n + 1] for a in room)
        rows.append((param, grad, {"m": m, "v": np.abs(v, out=v)}, 1 + k / 4, k / 100))
    return rows


STEPS = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "rmsprop": {"lr": 0.1, "alpha": 0.9, "eps": 1e-8, "momentum": 0.9},
    "adam": {**SETTINGS, "step": 3},
}


def bytes_of(rows):
    return b"".join(a.tobytes() for param, _, buffers, *_ in rows
                    for a in (param, buffers["m"], buffers["v"]))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("rule", STEPS)
def test_rows_together_are_rows_one_by_one(isa, rule, threads):
    options = STEPS[rule] | {"limit": 0.7, "grad_scale": 0.3}
    together, alone = rows_of_all_kinds(large=100), rows_of_all_kinds(large=100)
    runtime.set_num_threads(1)
    for param, grad, buffers, lr_scale, weight_decay in alone:
        row = Ranges([(param, grad, buffers, 1.0, weight_decay)])
        getattr(row, rule)(**options | {"lr": options["lr"] * lr_scale})
    runtime.set_num_threads(threads)
    getattr(Ranges(together), rule)(**options)
    assert bytes_of(together) == bytes_of(alone) != bytes_of(rows_of_all_kinds(large=100))
    assert Ranges(together).norms(0.5) == norms([grad for _, grad, *_ in together], 0.5)


@pytest.mark.skipif(len(FUSED) < 2, reason="this CPU has one instruction set with FMA")
@pytest.mark.parametrize("rule", STEPS)
def test_instruction_sets_with_fma_take_the_same_step(rule):
    results = set()
    for name in FUSED:
        runtime.set_isa(name)
        rows = rows_of_all_kinds()
        getattr(Ranges(rows), rule)(**STEPS[rule])
        results.add(bytes_of(rows))
    assert len(results) == 1


def test_steps_of_nothing():
    nothing = np.empty(0)
    for rule, options in STEPS.items():
        getattr(Ranges([]), rule)(**options)
        getattr(ranges(nothing, nothing, nothing, nothing), rule)(**options)
    assert Ranges([]).norms() == (0, 0)


def test_arrays_live_as_long_as_the_ranges():
    # views, of which ranges keep the base alive
    param, grad = np.zeros(8), np.ones(8)
    gone = [weakref.ref(param), weakref.ref(grad)]
    row = ranges(param[2:], grad[2:])
    del param, grad
    gc.collect()
    assert all(ref() is not None for ref in gone)
    row.sgd(1.0)
    np.testing.assert_array_equal(gone[0](), [0, 0] + [-1] * 6)
    del row
    gc.collect()
    assert all(ref() is None for ref in gone)


def test_parameters_may_be_read_only_when_ranges_are_made():
    ranges(read_only(np.ones(3)), read_only(np.ones(3)))


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"grad": np.ones(4)}, ValueError, r"^rows\[0\]: param: has shape \(5,\), expected \(4,\)"),
        ({"grad": np.ones(5, np.float32)}, TypeError,
         r"^rows\[0\]: param: expected a native float32 array, got float64$"),
        ({"grad": np.ones(5, int)}, TypeError, "dtype is int64, expected float32 or float64"),
        ({"grad": np.ones((5, 1))}, ValueError, r"^rows\[0\]: grad: has shape \(5, 1\), expected "),
        ({"grad": np.ones(10)[::2]}, ValueError, r"^rows\[0\]: grad: has strides"),
        ({"grad": [1.0] * 5}, TypeError, r"^rows\[0\]: grad: is list, expected an array$"),
        ({"param": np.ones(10)[::2]}, ValueError, r"^rows\[0\]: param: has strides"),
        ({"buffers": {"m": np.ones(4)}}, ValueError, r"^rows\[0\]: m: has shape \(4,\), expected "),
        ({"buffers": {"v": read_only(np.ones(5))}}, ValueError, r"^rows\[0\]: v: is read-only"),
        ({"buffers": {"m": None}}, TypeError, r"^rows\[0\]: m: expected a native float64 array"),
        ({"buffers": {"square": np.ones(5)}}, ValueError,
         r"^rows\[0\]: has buffers \['square'\], expected m and v$"),
    ],
)
def test_errors_name_the_row_and_the_argument(changed, error, match):
    good = {"param": np.ones(5), "grad": np.ones(5), "buffers": {"m": np.ones(5)},
            "lr_scale": 1.0, "weight_decay": 0.0}
    Ranges([tuple(good.values())])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=match) as caught:
            Ranges([tuple((good | changed).values())])
    assert "\n" not in str(caught.value)


def test_arrays_that_share_memory_are_refused():
    a = np.ones(20)
    match = r"^rows\[1\]: param shares memory with rows\[0\]: param, expected distinct arrays$"
    with pytest.raises(ValueError, match=match):
        Ranges([(a[:11], np.ones(11), {}, 1.0, 0.0), (a[10:], np.ones(10), {}, 1.0, 0.0)])
    with pytest.raises(ValueError, match=r"shares memory with"):
        ranges(a, a)
    Ranges([(a[:10], np.ones(10), {}, 1.0, 0.0), (a[10:], np.ones(10), {}, 1.0, 0.0)])


def test_a_step_needs_its_buffers():
    row = ranges(np.ones(3), np.ones(3), m=np.ones(3))
    with pytest.raises(ValueError, match=r"^rows: have no buffer v, expected one in every row$"):
        row.rmsprop(0.1)
    with pytest.raises(ValueError, match=r"^rows: have no buffer m or v, expected both"):
        row.adam(**SETTINGS, step=1)
    full = ranges(np.ones(3), np.ones(3), np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match=r"^step: is 0, expected at least 1$"):
        full.adam(**SETTINGS, step=0)


@pytest.mark.parametrize(
    ("flats", "error", "match"),
    [
        ([np.ones((2, 2))], ValueError, r"^flats\[0\]: has shape \(2, 2\)"),
        ([np.ones(2), np.ones(6)[::2]], ValueError, r"^flats\[1\]: has strides"),
        ([np.ones(6, int)], TypeError, "dtype is int64, expected float32 or float64"),
        ([3.0], TypeError, r"^flats\[0\]: is float, expected an array$"),
    ],
)
def test_errors_of_norms(flats, error, match):
    with pytest.raises(error, match=match):
        norms(flats)
