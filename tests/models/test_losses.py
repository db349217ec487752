"""Losses against plain NumPy in float64, their gradients against central differences."""

import cases
import numpy as np
import pytest

import fastrnn
from fastrnn.losses import LOSSES


def some(name, shape=(4, 3), N=5, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    outputs = rng.standard_normal((*shape, N)).astype(dtype)
    targets = {"softmax": rng.integers(0, N, shape), "mse": rng.standard_normal((*shape, N)),
               "bce": rng.random((*shape, N))}[name]
    weights = rng.random(shape)
    weights.flat[1::3] = 0
    return outputs, targets.astype(dtype) if name != "softmax" else targets, weights


@pytest.mark.parametrize("shape", [(1,), (3,), (4, 3), (2, 3, 2), (40, 5)])
@pytest.mark.parametrize("N", [1, 5, 17])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_plain_one(name, weighted, N, shape):
    outputs, targets, weights = some(name, shape, N)
    options = {"weights": weights} if weighted else {}
    loss, grad = LOSSES[name](outputs, targets, **options)
    expected = cases.plain_loss(name, outputs, targets, weights if weighted else np.ones(shape))
    assert loss == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert LOSSES[name](outputs, targets, need_grad=False, **options) == (loss, None)
    inplace = outputs.copy()
    again, out = LOSSES[name](inplace, targets, out=inplace, **options)
    assert out is inplace
    assert again == loss
    np.testing.assert_array_equal(out, grad)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_against_central_differences(name, weighted):
    outputs, targets, weights = some(name)
    options = {"weights": weights} if weighted else {}
    _, grad = LOSSES[name](outputs, targets, **options)
    differences = cases.differences(
        lambda: LOSSES[name](outputs, targets, need_grad=False, **options)[0], outputs)
    cases.assert_close("gradient", grad, differences, 1e-6)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_rows_of_weight_zero_count_for_nothing_whatever_they_hold(name, dtype):
    outputs, targets, weights = some(name, dtype=dtype)
    loss, grad = LOSSES[name](outputs, targets, weights)
    assert not grad[weights == 0].any()
    outputs[weights == 0] = np.nan
    again, other = LOSSES[name](outputs, targets, weights)
    assert again == loss
    np.testing.assert_array_equal(other, grad)
    assert LOSSES[name](outputs, targets, np.zeros_like(weights))[0] == 0


@pytest.mark.parametrize("name", LOSSES)
def test_the_same_bits_on_any_number_of_threads(name):
    outputs, targets, weights = some(name, (301, 7), 33, np.float32)
    threads, results = fastrnn.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            fastrnn.set_num_threads(n)
            loss, grad = LOSSES[name](outputs, targets, weights)
            results.append((loss, grad.tobytes()))
    finally:
        fastrnn.set_num_threads(threads)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_far_logits_stay_finite(dtype):
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype)
    for name, targets in (("bce", np.eye(2, dtype=dtype)), ("softmax", [0, 1])):
        loss, grad = LOSSES[name](logits, targets)
        assert loss == 0
        assert not grad.any()
        loss, grad = LOSSES[name](-logits, targets)
        assert loss > 1e3
        assert np.isfinite(grad).all()


@pytest.mark.parametrize(
    ("name", "args", "error", "match"),
    [
        ("softmax", (np.zeros((2, 3)), [0, 3]), IndexError, "targets has numbers from 0 to 3"),
        ("softmax", (np.zeros((2, 3)), [0.0, 1.0]), TypeError, "targets is float64"),
        ("softmax", (np.zeros((2, 3), int), [0, 1]), TypeError, "dtype is .*int64"),
        ("mse", (np.zeros((2, 3)), np.zeros((2, 4))), ValueError, r"targets has shape \(2, 4\)"),
        ("mse", (np.zeros((2, 3)), np.zeros((2, 3), "f")), TypeError, "targets is float32"),
        ("mse", (np.zeros((2, 0)), np.zeros((2, 0))), ValueError, "N >= 1"),
        ("mse", (np.zeros((2, 3)), np.zeros((2, 3)), [1, np.nan]), ValueError, "weights has"),
        ("mse", (np.zeros((2, 3)), np.zeros((2, 3)), [[1, 1]]), ValueError, r"expected \(2,\)"),
        ("bce", (np.zeros((2, 3)), np.full((2, 3), 1.5)), ValueError, "from 1.5 to 1.5"),
    ],
)
def test_errors_name_the_argument(name, args, error, match):
    with pytest.raises(error, match=match) as raised:
        LOSSES[name](*args)
    assert "\n" not in str(raised.value)
