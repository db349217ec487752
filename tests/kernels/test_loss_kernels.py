"""The kernel of softmax cross-entropy against plain NumPy in float64."""

import math
import threading
import time

import cases
import numpy as np
import pytest
from cases import drawer, read_only

from fastrnn._kernels import linear, runtime
from fastrnn._kernels.loss import softmax_cross_entropy

# (R, N): tails of every vector width and of blocks of 16 rows
SHAPES = [(1, 1), (2, 5), (7, 17), (8, 32), (9, 1), (13, 31), (17, 130), (257, 11), (300, 3),
          (3, 127), (520, 1030)]


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
    R, N = shape
    logits, targets = draw_logits(R, N, dtype, spread)
    kept = logits.copy()
    expected, gradient = softmax_loss(logits, targets, 0.25)
    tol = cases.tolerance(dtype, N, 1)  # however large the logits: their differences are exact
    grad = np.full_like(logits, np.nan)
    loss = softmax_cross_entropy(logits, targets, 0.25, grad)
    assert isinstance(loss, float)
    assert abs(loss - expected) <= tol * max(R, expected)
    cases.assert_close("grad", grad, gradient, tol, dtype=dtype, elementwise=True)
    assert logits.tobytes() == kept.tobytes()
    assert softmax_cross_entropy(logits, targets) == loss
    assert softmax_cross_entropy(logits, targets, 0.25, logits) == loss  # in place
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
        assert softmax_cross_entropy(logits, targets, 1, grad) == 0
        np.testing.assert_allclose(grad, np.zeros((N, N)), atol=2 * np.finfo(dtype).tiny)
    loss = softmax_cross_entropy(np.array([[0, -1e4]], dtype), np.ones(1, np.int32))
    assert loss == 1e4
    equal = np.full((3, N), 1e4, dtype)
    loss = softmax_cross_entropy(equal, np.zeros(3, np.int32))
    assert loss == pytest.approx(3 * math.log(N), rel=1e-3 if dtype is np.float32 else 1e-11)


@pytest.mark.parametrize("at", [0, 5, 18])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_nan_among_the_logits_makes_its_row_nan(isa, dtype, at):
    logits, targets = draw_logits(5, 19, dtype)
    _, gradient = softmax_loss(logits, targets)
    logits[2, at] = np.nan
    grad = np.empty_like(logits)
    assert math.isnan(softmax_cross_entropy(logits, targets, 1.0, grad))
    assert np.isnan(grad[2]).all()
    others = np.delete(grad, 2, axis=0)
    cases.assert_close("grad", others, np.delete(gradient, 2, axis=0),
                       cases.tolerance(dtype, 19, 1), dtype=dtype)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 33)], ids=str)
def test_softmax_gradient_against_central_differences(isa, shape):
    logits, targets = draw_logits(*shape, np.float64)
    grad = np.empty_like(logits)
    softmax_cross_entropy(logits, targets, 1.0, grad)
    expected = np.empty_like(logits)
    for index in np.ndindex(logits.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = logits.copy()
            moved[index] += step
            ends.append(softmax_cross_entropy(moved, targets))
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
        return softmax_cross_entropy(linear.linear_forward(x, weight, bias), targets)

    logits = linear.linear_forward(x, weight, bias)
    softmax_cross_entropy(logits, targets, 1.0, logits)
    got = {"weight": np.zeros_like(weight), "bias": np.zeros_like(bias)}
    got["x"] = linear.linear_backward(logits, x, weight, got["weight"], got["bias"])
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
    assert softmax_cross_entropy(nothing, np.empty(0, np.int32), 1.0, nothing) == 0


# ---------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_weights_multiply_rows(isa, dtype):
    logits, targets = draw_logits(37, 19, dtype)
    weights = np.random.default_rng(2).uniform(0.1, 2, 37)
    loss, grad = 0.0, np.empty_like(logits)
    got = softmax_cross_entropy(logits, targets, 0.25, grad, weights)
    for r in range(37):
        row, expected = slice(r, r + 1), np.empty((1, 19), dtype)
        loss += weights[r] * softmax_cross_entropy(logits[row], targets[row])
        softmax_cross_entropy(logits[row], targets[row], 0.25 * weights[r], expected)
        cases.assert_close("grad", grad[row], expected, cases.tolerance(dtype, 2, 1))
    assert got == pytest.approx(loss, rel=1e-14)


@pytest.mark.parametrize("number", [-100, -1, 19, 2**31, 2**40, -(2**63)])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_row_of_weight_0_is_not_looked_at(isa, dtype, number):
    logits, targets = draw_logits(21, 19, dtype)
    targets = targets.astype(np.int64)
    weights = np.ones(21)
    out = np.array([0, 3, 20])
    weights[out] = 0
    expected, grad = np.zeros_like(logits), np.full_like(logits, np.nan)
    kept = np.delete(np.arange(21), out)
    part = np.empty((18, 19), dtype)
    loss = softmax_cross_entropy(logits[kept], targets[kept], 1.0, part)
    expected[kept] = part
    logits[out], targets[out] = np.nan, number
    given = targets.copy()
    assert softmax_cross_entropy(logits, targets, 1.0, grad, weights) == pytest.approx(loss)
    np.testing.assert_array_equal(grad, expected)
    np.testing.assert_array_equal(targets, given)
    weights[3] = 0.5
    with pytest.raises(IndexError, match=f"^targets: has the number {number}, expected 0 to 18$"):
        softmax_cross_entropy(logits, targets, 1.0, grad, weights)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int64, np.uint64, ">i4"])
def test_targets_of_any_kind_of_integer(kind):
    logits, targets = draw_logits(21, 19, np.float64)
    expected = softmax_cross_entropy(logits, targets)
    assert softmax_cross_entropy(logits, targets.astype(kind)) == expected
    assert softmax_cross_entropy(logits, np.repeat(targets, 2).astype(kind)[::2]) == expected
    with pytest.raises(IndexError, match=r"^targets: has the number -1, "):
        softmax_cross_entropy(logits, np.full(21, 2**64 - 1, np.uint64))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_targets_that_another_thread_changes(dtype):
    # once a segmentation fault: targets were checked, then read again
    logits, targets = draw_logits(2000, 50, np.float32)
    targets = targets.astype(dtype)
    stop = threading.Event()

    def change():
        while not stop.is_set():
            targets[:] = np.iinfo(dtype).max
            targets[:] = 0

    thread = threading.Thread(target=change)
    thread.start()
    try:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            try:
                assert math.isfinite(softmax_cross_entropy(logits, targets))
            except IndexError as error:
                assert str(error).startswith("targets: has the number ")  # noqa: PT017
    finally:
        stop.set()
        thread.join()


# ------------------------------------------------------------------------------ bits and threads


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_same_bits_on_any_number_of_threads(isa, threads, dtype):
    logits, targets = draw_logits(301, 130, dtype)
    results = set()
    for count in (*threads, *threads[::-1]):
        runtime.set_num_threads(count)
        grad = np.empty_like(logits)
        results.add((softmax_cross_entropy(logits, targets, 0.1, grad), grad.tobytes()))
    assert len(results) == 1
    runtime.set_num_threads(8)
    cases.fill_pool(lambda: softmax_cross_entropy(logits, targets, 0.1, grad), 7)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_row_is_that_row_alone(isa, dtype):
    logits, targets = draw_logits(21, 37, dtype)
    grad, alone = np.empty_like(logits), np.empty((1, 37), dtype)
    softmax_cross_entropy(logits, targets, 1.0, grad)
    for r in range(21):
        softmax_cross_entropy(logits[r : r + 1], targets[r : r + 1], 1.0, alone)
        assert alone.tobytes() == grad[r].tobytes()


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"targets": np.zeros(4)}, TypeError,
         "^targets: expected an array of whole numbers, got float64$"),
        ({"targets": [0, 1, 2, 3]}, TypeError, "whole numbers, got list$"),
        ({"targets": np.zeros(4, bool)}, TypeError, "got bool$"),
        ({"targets": np.zeros(3, np.int32)}, ValueError,
         r"^targets: has shape \(3,\), expected \(4,\)$"),
        ({"targets": np.full(4, 5, np.int32)}, IndexError,
         "^targets: has the number 5, expected 0 to 4$"),
        ({"targets": np.full(4, -1, np.int32)}, IndexError,
         "^targets: has the number -1, expected 0 to 4$"),
        ({"targets": np.full(4, 2**32)}, IndexError, "^targets: has the number 4294967296, "),
        ({"logits": np.ones((4, 10))[:, ::2]}, ValueError, "^logits: has strides"),
        ({"logits": np.ones((4, 5), int), "grad": None}, TypeError,
         "^dtype is int64, expected float32 or float64$"),
        ({"logits": np.ones((4, 0)), "grad": None}, IndexError, "^targets: has the number 0"),
        ({"grad": np.ones((4, 4))}, ValueError, "^grad: has shape"),
        ({"grad": np.ones((4, 5), np.float32)}, TypeError, "^grad: expected a native float64"),
        ({"grad": read_only(np.ones((4, 5)))}, ValueError,
         "^grad: is read-only, expected a writeable array$"),
        ({"weights": np.ones(3)}, ValueError, r"^weights: has shape \(3,\), expected \(4,\)$"),
        ({"weights": np.ones(4, np.float32)}, TypeError, "^weights: expected a native float64"),
    ],
)
def test_errors_name_the_argument(changed, error, match):
    draw = drawer(np.float64)
    given = {"logits": draw(4, 5), "targets": np.zeros(4, np.int32), "grad": draw(4, 5),
             "weights": np.ones(4)}
    softmax_cross_entropy(**given)
    with pytest.raises(error, match=match) as caught:
        softmax_cross_entropy(**given | changed)
    assert "\n" not in str(caught.value)
