"""fastrnn._kernels.dense against plain NumPy in float64."""

import math
import warnings

import cases
import numpy as np
import pytest

from fastrnn._kernels import dense, runtime

SUPPORTED = [name for name, has in runtime.isa_names().items() if has]
FUSED = [name for name in SUPPORTED if name != "scalar"]

# (R, K, N): tails of every vector width, of tiles of 8 rows, of blocks of 256 rows and 16 losses
SHAPES = [(1, 1, 1), (2, 3, 5), (7, 1, 17), (8, 16, 32), (9, 17, 1), (13, 33, 31), (17, 65, 130),
          (257, 7, 11), (300, 40, 3), (3, 260, 127), (520, 9, 1030)]
LARGE = (301, 67, 130)  # worth several threads


@pytest.fixture
def threads():
    before = runtime.get_num_threads()
    yield (1, 2, 3, 4, 8)
    runtime.set_num_threads(before)


def drawer(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.standard_normal(shape).astype(dtype)


def assert_close(name, got, expected, K, dtype, **options):
    cases.assert_close(name, got, expected, cases.tolerance(dtype, K, 1, **options), dtype=dtype)


def wide(*arrays):
    return [array.astype(np.float64) for array in arrays]


# ------------------------------------------------------------------------------- the linear head


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_linear_forward(isa, dtype, shape, bias):
    R, K, N = shape
    draw = drawer(dtype)
    x, weight, b, out = draw(R, K), draw(N, K), draw(N), draw(R, N)
    x64, weight64, b64 = wide(x, weight, b)
    expected = x64 @ weight64.T + (b64 if bias else 0)
    got = dense.linear_forward(x, weight, b if bias else None)
    assert_close("y", got, expected, K + bias, dtype)
    assert dense.linear_forward(x, weight, b if bias else None, out) is out
    assert out.tobytes() == got.tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_linear_backward(isa, dtype, shape):
    R, K, N = shape
    draw = drawer(dtype)
    dy, x, weight, dweight, dbias, dx = (
        draw(R, N), draw(R, K), draw(N, K), draw(N, K), draw(N), draw(R, K))
    dy64, x64, weight64, dweight64, dbias64 = wide(dy, x, weight, dweight, dbias)
    expected = {"dx": dy64 @ weight64, "dweight": dweight64 + dy64.T @ x64,
                "dbias": dbias64 + dy64.sum(axis=0)}
    ours = dweight.copy(), dbias.copy()
    got = {"dx": dense.linear_backward(dy, x, weight, *ours), "dweight": ours[0],
           "dbias": ours[1]}
    for name, terms in (("dx", N), ("dweight", R), ("dbias", R)):
        assert_close(name, got[name], expected[name], terms, dtype, backward=True)
    again = dweight.copy(), dbias.copy()
    assert dense.linear_backward(dy, x, weight, *again, True, dx) is dx
    assert dx.tobytes() == got["dx"].tobytes()
    again = dweight.copy()  # neither dx nor dbias
    assert dense.linear_backward(dy, x, weight, again, None, False) is None
    assert again.tobytes() == got["dweight"].tobytes()


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_linear_of_no_rows(isa, dtype):
    draw = drawer(dtype)
    weight, dweight, dbias = draw(5, 3), draw(5, 3), draw(5)
    before = dweight.copy(), dbias.copy()
    x, dy = draw(0, 3), draw(0, 5)
    assert dense.linear_forward(x, weight, dbias).shape == (0, 5)
    assert dense.linear_backward(dy, x, weight, dweight, dbias).shape == (0, 3)
    np.testing.assert_array_equal(dweight, before[0])
    np.testing.assert_array_equal(dbias, before[1])


# ------------------------------------------------------------------------- softmax cross-entropy


def softmax_loss(logits, targets, scale=1.0):
    """Return (loss, gradient) in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    rows = np.arange(len(targets))
    grad = np.exp(shifted) / total
    grad[rows, targets] -= 1
    return (np.log(total[:, 0]) - shifted[rows, targets]).sum(), scale * grad


def draw_logits(R, N, dtype, spread=3):
    logits = (drawer(dtype)(R, N) * dtype(spread)).astype(dtype)
    return logits, np.random.default_rng(1).integers(N, size=R, dtype=np.int32)


@pytest.mark.parametrize("spread", [0.01, 3, 100, 1e4], ids="x{}".format)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_softmax_cross_entropy(isa, dtype, shape, spread):
    R, _, N = shape
    logits, targets = draw_logits(R, N, dtype, spread)
    kept = logits.copy()
    expected, gradient = softmax_loss(logits, targets, 0.25)
    tol = cases.tolerance(dtype, N, 1)  # however large the logits: their differences are exact
    grad = np.full_like(logits, np.nan)
    loss = dense.softmax_cross_entropy(logits, targets, 0.25, grad)
    assert isinstance(loss, float)
    assert abs(loss - expected) <= tol * max(R, expected)
    cases.assert_close("grad", grad, gradient, tol, dtype=dtype, elementwise=True)
    assert logits.tobytes() == kept.tobytes()
    assert dense.softmax_cross_entropy(logits, targets) == loss
    assert dense.softmax_cross_entropy(logits, targets, 0.25, logits) == loss  # in place
    assert logits.tobytes() == grad.tobytes()


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_softmax_of_extreme_logits_is_finite_and_right(isa, dtype):
    N = 19
    top = np.finfo(dtype).max / 4
    for high, low in ((0, -top), (top, 0), (top, -top), (1e4, -1e4), (0, -np.inf)):
        logits = np.full((N, N), low, dtype)
        np.fill_diagonal(logits, high)
        targets = np.arange(N, dtype=np.int32)
        grad = np.empty_like(logits)
        assert dense.softmax_cross_entropy(logits, targets, 1, grad) == 0
        np.testing.assert_allclose(grad, np.zeros((N, N)), atol=2 * np.finfo(dtype).tiny)
    loss = dense.softmax_cross_entropy(np.array([[0, -1e4]], dtype), np.ones(1, np.int32))
    assert loss == 1e4
    equal = np.full((3, N), 1e4, dtype)
    loss = dense.softmax_cross_entropy(equal, np.zeros(3, np.int32))
    assert loss == pytest.approx(3 * math.log(N), rel=1e-3 if dtype is np.float32 else 1e-11)


@pytest.mark.parametrize("at", [0, 5, 18])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_nan_among_the_logits_makes_its_row_nan(isa, dtype, at):
    logits, targets = draw_logits(5, 19, dtype)
    _, gradient = softmax_loss(logits, targets)
    logits[2, at] = np.nan
    grad = np.empty_like(logits)
    assert math.isnan(dense.softmax_cross_entropy(logits, targets, 1.0, grad))
    assert np.isnan(grad[2]).all()
    others = np.delete(grad, 2, axis=0)
    assert_close("grad", others, np.delete(gradient, 2, axis=0), 19, dtype)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 33)], ids=str)
def test_softmax_gradient_against_central_differences(isa, shape):
    logits, targets = draw_logits(*shape, np.float64)
    grad = np.empty_like(logits)
    dense.softmax_cross_entropy(logits, targets, 1.0, grad)
    expected = np.empty_like(logits)
    for index in np.ndindex(logits.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = logits.copy()
            moved[index] += step
            ends.append(dense.softmax_cross_entropy(moved, targets))
        expected[index] = (ends[0] - ends[1]) / 2e-5
    if shape[1] == 1:
        assert not grad.any()
    else:
        cases.assert_close("grad", grad, expected, 1e-6)


def test_head_gradients_against_central_differences(isa):
    draw = drawer(np.float64)
    x, weight, bias = draw(4, 7), draw(5, 7), draw(5)
    targets = np.array([0, 4, 2, 2], np.int32)

    def loss():
        return dense.softmax_cross_entropy(dense.linear_forward(x, weight, bias), targets)

    logits = dense.linear_forward(x, weight, bias)
    dense.softmax_cross_entropy(logits, targets, 1.0, logits)
    got = {"weight": np.zeros_like(weight), "bias": np.zeros_like(bias)}
    got["x"] = dense.linear_backward(logits, x, weight, got["weight"], got["bias"])
    for name, array in (("x", x), ("weight", weight), ("bias", bias)):
        expected = np.empty_like(array)
        for index in np.ndindex(array.shape):
            ends, middle = [], array[index]
            for step in (1e-5, -1e-5):
                array[index] = middle + step
                ends.append(loss())
            array[index] = middle
            expected[index] = (ends[0] - ends[1]) / 2e-5
        cases.assert_close(name, got[name], expected, 1e-6)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_softmax_of_no_rows(isa, dtype):
    nothing = np.empty((0, 5), dtype)
    assert dense.softmax_cross_entropy(nothing, np.empty(0, np.int32), 1.0, nothing) == 0


# ------------------------------------------------------------------------------------- the norm


@pytest.mark.parametrize("n", [0, 1, 2, 7, 16, 17, 63, 64, 65, 1023, 1025, 32768, 32769, 100_003])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_sum_of_squares(isa, dtype, n):
    x = drawer(dtype)(n)
    got = dense.sum_of_squares(x)
    assert isinstance(got, float)
    # 16 terms a lane in the dtype, the rest in float64
    assert got == pytest.approx(np.square(x.astype(np.float64)).sum(),
                                rel=cases.tolerance(dtype, 16, 1), abs=0)


@pytest.mark.parametrize("limit", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_sums_of_squares_also_of_limited_elements(isa, dtype, limit):
    x = drawer(dtype)(65_537)
    x[::3] *= 3
    whole, limited = dense.sums_of_squares(x, limit)
    assert whole == dense.sum_of_squares(x)
    expected = np.square(np.clip(x.astype(np.float64), -limit, limit)).sum()
    # of many equal terms the errors are alike and add up
    assert limited == pytest.approx(expected, rel=cases.tolerance(dtype, x.size, 1), abs=0)
    assert dense.sums_of_squares(x) == (whole, whole)
    x[777] = np.nan
    assert np.isnan(dense.sums_of_squares(x, limit)).all()
    x[777] = np.inf
    whole, limited = dense.sums_of_squares(x, limit)
    assert math.isinf(whole)
    assert math.isfinite(limited)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_sum_of_squares_of_what_is_not_finite(isa, dtype):
    x = drawer(dtype)(1000)
    for bad, expected in ((np.nan, math.isnan), (np.inf, math.isinf), (-np.inf, math.isinf)):
        x[777] = bad
        assert expected(dense.sum_of_squares(x))


# ----------------------------------------------------------------------------------------- Adam

SETTINGS = {"lr": 0.02, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8}


def adam(param, m, v, grad, step, *, lr, beta1, beta2, eps, weight_decay, grad_scale):
    """Kingma & Ba 2015, algorithm 1, and Loshchilov & Hutter 2019, algorithm 2, as they stand."""
    g = grad_scale * grad
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    return param - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * param), m, v


@pytest.mark.parametrize("weight_decay", [0.0, 0.1], ids="decay{}".format)
@pytest.mark.parametrize("n", [1, 3, 8, 17, 31, 255, 257, 1000])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_adam_over_several_steps(isa, dtype, n, weight_decay):
    draw = drawer(dtype)
    state = draw(n), np.zeros(n, dtype), np.zeros(n, dtype)
    expected = wide(*state)
    for step in range(1, 8):
        grad = draw(n) * dtype(10.0 ** (step - 4))
        kept = grad.copy()
        options = SETTINGS | {"weight_decay": weight_decay, "grad_scale": 0.7**step}
        done = dense.adam_step(state[0], grad, *state[1:], step=step, **options)
        assert done is None
        assert grad.tobytes() == kept.tobytes()
        expected = adam(*expected, grad.astype(np.float64), step, **options)
        for name, got, right in zip(("param", "m", "v"), state, expected, strict=True):
            cases.assert_close(f"{name} of step {step}", got, right, cases.tolerance(dtype, 8, 8),
                               dtype=dtype)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_adam_moves_by_the_learning_rate_first_whatever_the_gradient(isa, dtype):
    grad = np.array([1e-3, -1e-3, 5, -5e4], dtype)
    param, m, v = np.zeros(4, dtype), np.zeros(4, dtype), np.zeros(4, dtype)
    dense.adam_step(param, grad, m, v, step=1, weight_decay=0, **SETTINGS)
    np.testing.assert_allclose(param, -0.02 * np.sign(grad), rtol=2e-5)


def test_adam_late_steps(isa):
    state = [np.ones(20), np.full(20, 0.1), np.full(20, 0.2)]
    options = SETTINGS | {"weight_decay": 0.01, "grad_scale": 1.0}
    step = 2**31 - 1
    expected = adam(*state, np.full(20, 0.3), step, **options)
    dense.adam_step(state[0], np.full(20, 0.3), *state[1:], step=step, **options)
    for name, got, right in zip(("param", "m", "v"), state, expected, strict=True):
        cases.assert_close(name, got, right, 1e-14)


def test_adam_of_nothing():
    nothing = np.empty(0)
    dense.adam_step(nothing, nothing, nothing, nothing, step=1, weight_decay=0, **SETTINGS)


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
    options = {"lr": 0.02, "momentum": momentum, "weight_decay": 0.1}
    options |= {"nesterov": momentum > 0} if rule is sgd else {"alpha": 0.9, "eps": 1e-6}
    buffers = [np.zeros(n, dtype) for _ in range(1 if rule is sgd else 2)]
    given = buffers if momentum else buffers[:-1]  # without momentum it keeps no m
    param = draw(n)
    expected = wide(param, *buffers)
    for step in range(1, 8):
        grad, scale = draw(n), 0.7**step
        kept = grad.copy()
        step_of = dense.sgd_step if rule is sgd else dense.rmsprop_step
        done = step_of(param, grad, *given, **options, limit=0.5, grad_scale=scale)
        assert done is None
        assert grad.tobytes() == kept.tobytes()
        g = scale * np.clip(grad.astype(np.float64), -0.5, 0.5)
        expected = rule(expected[0], g, *expected[1:], **options)
        for name, got, right in zip(("param", "a", "b"), (param, *given), expected, strict=False):
            cases.assert_close(f"{name} of step {step}", got, right, cases.tolerance(dtype, 8, 8),
                               dtype=dtype)


# ------------------------------------------------------------------------------ bits and threads


def everything(dtype):
    """Return the bytes of all results at a size that is worth several threads."""
    R, K, N = LARGE
    draw = drawer(dtype)
    x, weight, bias = draw(R, K), draw(N, K), draw(N)
    dweight, dbias, grad = draw(N, K), draw(N), draw(R, N)
    logits = dense.linear_forward(x, weight, bias)
    targets = np.random.default_rng(1).integers(N, size=R, dtype=np.int32)
    loss = dense.softmax_cross_entropy(logits, targets, 0.1, grad)
    dx = dense.linear_backward(grad, x, weight, dweight, dbias)
    flat, m, v, step = draw(300_001), draw(300_001), abs(draw(300_001)), draw(300_001)
    norms = dense.sums_of_squares(flat, 0.3)
    dense.adam_step(flat, step, m, v, step=3, weight_decay=0.1, **SETTINGS)
    dense.sgd_step(flat, step, m, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    dense.rmsprop_step(flat, step, v, m, lr=0.1, alpha=0.9, eps=1e-8, momentum=0.9,
                       weight_decay=0.1, limit=0.3)
    results = {"logits": logits, "grad": grad, "dx": dx, "dweight": dweight, "dbias": dbias,
               "param": flat, "m": m, "v": v, "loss and norms": np.array([loss, *norms])}
    return {name: array.tobytes() for name, array in results.items()}


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_same_bits_on_any_number_of_threads(isa, threads, dtype):
    runtime.set_num_threads(1)
    expected = everything(dtype)
    for count in (*threads, *threads[::-1]):
        runtime.set_num_threads(count)
        got = everything(dtype)
        for name, array in expected.items():
            assert got[name] == array, f"{count} threads: {name}"
    assert runtime.pool_workers() >= 7, "the pool was not used"


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_row_is_that_row_alone(isa, dtype):
    R, K, N = 21, 17, 37
    draw = drawer(dtype)
    x, weight, bias = draw(R, K), draw(N, K), draw(N)
    targets = np.random.default_rng(1).integers(N, size=R, dtype=np.int32)
    logits = dense.linear_forward(x, weight, bias)
    grad = np.empty_like(logits)
    dense.softmax_cross_entropy(logits, targets, 1.0, grad)
    for r in range(R):
        row = slice(r, r + 1)
        alone = dense.linear_forward(x[row], weight, bias)
        assert alone.tobytes() == logits[row].tobytes()
        dense.softmax_cross_entropy(alone, targets[row], 1.0, alone)
        assert alone.tobytes() == grad[row].tobytes()


@pytest.mark.skipif(len(FUSED) < 2, reason="this CPU has one instruction set with FMA")
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_linear_and_optimizers_have_the_same_bits_with_fma(dtype):
    # softmax and the norm add up lanes, as many as a vector has: the same to rounding only
    before = runtime.get_isa()
    results = {}
    try:
        for name in FUSED:
            runtime.set_isa(name)
            draw = drawer(dtype)
            x, weight, bias, dweight = draw(9, 67), draw(130, 67), draw(130), draw(130, 67)
            y = dense.linear_forward(x, weight, bias)
            dx = dense.linear_backward(y, x, weight, dweight, bias)
            flat = draw(777), draw(777), draw(777), abs(draw(777))
            dense.adam_step(*flat, step=3, weight_decay=0.1, **SETTINGS)
            dense.sgd_step(*flat[:3], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
            dense.rmsprop_step(flat[0], flat[1], flat[3], flat[2], lr=0.1, alpha=0.9, eps=1e-8,
                               momentum=0.9, weight_decay=0.1)
            results[name] = [a.tobytes() for a in (y, dx, dweight, bias, *flat)]
    finally:
        runtime.set_isa(before)
    for name in FUSED[1:]:
        assert results[name] == results[FUSED[0]], name


# ---------------------------------------------------------------------------------------- errors


def call(name, **changed):
    draw = drawer(np.float64)
    R, K, N = 4, 3, 5
    arguments = {
        "linear_forward": {"x": draw(R, K), "weight": draw(N, K), "bias": draw(N),
                           "out": draw(R, N)},
        "linear_backward": {"dy": draw(R, N), "x": draw(R, K), "weight": draw(N, K),
                            "dweight": draw(N, K), "dbias": draw(N), "dx": draw(R, K)},
        "softmax_cross_entropy": {"logits": draw(R, N), "targets": np.zeros(R, np.int32),
                                  "grad": draw(R, N)},
        "sum_of_squares": {"flat": draw(N)},
        "sgd_step": {"param": draw(N), "grad": draw(N), "m": draw(N), "lr": 0.1, "momentum": 0.9,
                     "nesterov": False, "weight_decay": 0.0},
        "rmsprop_step": {"param": draw(N), "grad": draw(N), "v": abs(draw(N)), "m": draw(N),
                         "lr": 0.1, "alpha": 0.9, "eps": 1e-8, "momentum": 0.9,
                         "weight_decay": 0.0},
        "adam_step": {"param": draw(N), "grad": draw(N), "m": draw(N), "v": draw(N), "step": 1,
                      "weight_decay": 0.0, **SETTINGS},
    }[name]
    assert changed.keys() <= arguments.keys()
    return getattr(dense, name)(**arguments | changed)


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("name", "changed", "error", "match"),
    [
        ("linear_forward", {"x": np.ones((4, 2))}, ValueError, r"x: has shape \(4, 2\).*\(4, 3\)"),
        ("linear_forward", {"x": np.ones((4, 3), np.float32)}, TypeError,
         "x: expected a native float64 array, got float32"),
        ("linear_forward", {"x": np.ones((4, 3), ">f8")}, TypeError, "x: expected a native float"),
        ("linear_forward", {"x": np.ones((4, 6))[:, ::2]}, ValueError,
         r"x: has strides \(48, 16\), expected aligned contiguous rows"),
        ("linear_forward", {"x": np.ones((4, 5))[:, :3]}, ValueError,
         r"x: has strides \(40, 8\), expected a C-contiguous array"),
        ("linear_forward", {"weight": np.ones((5, 3), int), "x": np.ones((4, 3), int)}, TypeError,
         "dtype is int64, expected float32 or float64"),
        ("linear_forward", {"bias": np.ones(4)}, ValueError, r"bias: has shape \(4,\).*\(5,\)"),
        ("linear_forward", {"out": np.ones((5, 4))}, ValueError, r"out: has shape \(5, 4\)"),
        ("linear_forward", {"out": read_only(np.ones((4, 5)))}, ValueError, "out: is read-only"),
        ("linear_backward", {"dy": np.ones((4, 4))}, ValueError, r"dy: has shape \(4, 4\)"),
        ("linear_backward", {"x": np.ones((3, 3))}, ValueError, r"\(4, 5\), expected \(3, 5\)"),
        ("linear_backward", {"dweight": np.ones((3, 5))}, ValueError, "dweight: has shape"),
        ("linear_backward", {"dweight": np.ones((5, 6))[:, ::2]}, ValueError, "dweight: has stri"),
        ("linear_backward", {"dbias": read_only(np.ones(5))}, ValueError, "dbias: is read-only"),
        ("linear_backward", {"dx": np.ones((4, 4))}, ValueError, r"dx: has shape \(4, 4\)"),
        ("softmax_cross_entropy", {"targets": np.zeros(4, np.int64)}, TypeError,
         "targets: expected a native int32 array, got int64"),
        ("softmax_cross_entropy", {"targets": np.zeros(3, np.int32)}, ValueError,
         r"targets: has shape \(3,\), expected \(4,\)"),
        ("softmax_cross_entropy", {"targets": np.full(4, 5, np.int32)}, IndexError,
         "targets: has the number 5, expected 0 to 4"),
        ("softmax_cross_entropy", {"targets": np.full(4, -1, np.int32)}, IndexError,
         "targets: has the number -1, expected 0 to 4"),
        ("softmax_cross_entropy", {"logits": np.ones((4, 10))[:, ::2]}, ValueError, "logits: has"),
        ("softmax_cross_entropy", {"logits": np.ones((4, 0))}, IndexError,
         "targets: has the number 0"),
        ("softmax_cross_entropy", {"grad": np.ones((4, 4))}, ValueError, "grad: has shape"),
        ("softmax_cross_entropy", {"grad": np.ones((4, 5), np.float32)}, TypeError, "grad: expec"),
        ("softmax_cross_entropy", {"grad": read_only(np.ones((4, 5)))}, ValueError,
         "grad: is read-only, expected a writeable array"),
        ("sum_of_squares", {"flat": np.ones((2, 2))}, ValueError, r"flat: has shape \(2, 2\)"),
        ("sum_of_squares", {"flat": np.ones(6)[::2]}, ValueError, "flat: has strides"),
        ("sum_of_squares", {"flat": np.ones(6, int)}, TypeError, "dtype is int64, expected float"),
        ("sgd_step", {"m": np.ones(4)}, ValueError, r"m: has shape \(4,\), expected \(5,\)"),
        ("sgd_step", {"grad": np.ones(5, np.float32)}, TypeError, "grad: expected a native float"),
        ("rmsprop_step", {"v": np.ones(4)}, ValueError, r"v: has shape \(4,\), expected \(5,\)"),
        ("rmsprop_step", {"v": None}, TypeError, "v: expected a native float64 array"),
        ("rmsprop_step", {"m": read_only(np.ones(5))}, ValueError, "m: is read-only"),
        ("adam_step", {"m": None}, TypeError, "m: expected a native float64 array"),
        ("adam_step", {"grad": np.ones(4)}, ValueError, r"grad: has shape \(4,\), expected \(5,"),
        ("adam_step", {"grad": np.ones(5, np.float32)}, TypeError, "grad: expected a native floa"),
        ("adam_step", {"param": read_only(np.ones(5))}, ValueError, "param: is read-only"),
        ("adam_step", {"m": np.ones(10)[::2]}, ValueError, "m: has strides"),
        ("adam_step", {"v": np.ones(6)}, ValueError, r"v: has shape \(6,\), expected \(5,\)"),
        ("adam_step", {"step": 0}, ValueError, "step is 0, expected at least 1"),
    ],
)
def test_errors_name_the_argument(name, changed, error, match):
    before = {key: np.array(value) for key, value in changed.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=match) as caught:
            call(name, **changed)
    assert "\n" not in str(caught.value)
    for key, value in changed.items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize("name", ["linear_forward", "linear_backward", "softmax_cross_entropy",
                                  "sum_of_squares", "sgd_step", "rmsprop_step", "adam_step"])
def test_what_the_error_table_changes_is_otherwise_accepted(name):
    call(name)
