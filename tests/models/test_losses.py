"""Losses against plain NumPy in float64, their gradients against central differences."""

import cases
import numpy as np
import pytest

import fastrnn
from fastrnn import losses
from fastrnn.models.losses import LOSSES

PUBLIC = {"softmax": losses.softmax_cross_entropy, "mse": losses.mean_squared_error,
          "bce": losses.binary_cross_entropy}
per_loss = pytest.mark.parametrize("name", PUBLIC)


def some(name, shape=(4, 3), N=5, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    outputs = rng.standard_normal((*shape, N)).astype(dtype)
    targets = {"softmax": rng.integers(0, N, shape), "mse": rng.standard_normal((*shape, N)),
               "bce": rng.random((*shape, N))}[name]
    weights = rng.random(shape)
    weights.flat[1::3] = 0
    return outputs, targets.astype(dtype) if name != "softmax" else targets, weights


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 3), (2, 3, 2), (40, 5)])
@pytest.mark.parametrize("N", [1, 5, 17])
@pytest.mark.parametrize("weighted", [False, True])
@per_loss
def test_the_loss_is_the_plain_one(name, weighted, N, shape):
    outputs, targets, weights = some(name, shape, N)
    options = {"weights": weights} if weighted else {}
    call = PUBLIC[name]
    loss, grad = call(outputs, targets, **options)
    expected = cases.plain_loss(name, outputs, targets, weights if weighted else np.ones(shape))
    assert type(loss) is float
    assert loss == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert call(outputs, targets, need_grad=False, **options) == (loss, None)
    inplace = outputs.copy()
    again, out = call(inplace, targets, out=inplace, **options)
    assert out is inplace
    assert again == loss
    np.testing.assert_array_equal(out, grad)
    mean, total, grad = LOSSES[name](outputs, targets, **options)
    assert mean == loss
    assert total == pytest.approx(weights.sum() if weighted else np.prod(shape), rel=1e-15)
    np.testing.assert_array_equal(out, grad)


@pytest.mark.parametrize("weighted", [False, True])
@per_loss
def test_the_gradient_against_central_differences(name, weighted):
    outputs, targets, weights = some(name)
    options = {"weights": weights} if weighted else {}
    _, grad = PUBLIC[name](outputs, targets, **options)
    differences = cases.differences(
        lambda: PUBLIC[name](outputs, targets, need_grad=False, **options)[0], outputs)
    cases.assert_close("gradient", grad, differences, 1e-6)


@per_loss
def test_float32_agrees_with_float64(name):
    outputs, targets, weights = some(name, (70, 5), 33, np.float32)
    loss, grad = PUBLIC[name](outputs, targets, weights)
    if name != "softmax":
        targets = targets.astype(np.float64)
    expected, slope = PUBLIC[name](outputs.astype(np.float64), targets, weights)
    assert loss == pytest.approx(expected, rel=1e-6)
    cases.assert_close("gradient", grad, slope, 1e-6, dtype=np.float32)


ANYTHING = {"softmax": [-100, -1, 7, 10**9], "mse": [np.nan, np.inf, -np.inf, 1e30],
            "bce": [np.nan, -1, 2, np.inf]}


@pytest.mark.parametrize("dtype", cases.DTYPES)
@per_loss
def test_rows_of_weight_zero_count_for_nothing_whatever_they_hold(name, dtype):
    outputs, targets, weights = some(name, dtype=dtype)
    loss, grad = PUBLIC[name](outputs, targets, weights)
    assert not grad[weights == 0].any()
    off = np.flatnonzero(weights == 0)
    assert len(off) == 4
    for junk in ANYTHING[name]:
        for fill in (np.nan, np.inf, -1e30):
            other, goals = outputs.copy(), targets.copy()
            other.reshape(-1, 5)[off] = fill
            goals.reshape(12, -1)[off] = junk
            before = other.copy(), goals.copy()
            again, slope = PUBLIC[name](other, goals, weights)
            assert again == loss
            np.testing.assert_array_equal(slope, grad)
            np.testing.assert_array_equal(other, before[0])
            np.testing.assert_array_equal(goals, before[1])
            PUBLIC[name](other, goals, weights, out=other)
            np.testing.assert_array_equal(other, grad)


@per_loss
def test_nothing_to_take_a_mean_of(name):
    outputs, targets, weights = some(name)
    for w in (np.zeros_like(weights), np.zeros(weights.shape, bool)):
        loss, grad = PUBLIC[name](outputs, targets, w)
        assert loss == 0
        assert not grad.any()
        assert LOSSES[name](outputs, targets, w)[1] == 0
    empty = np.empty((0, 3))
    loss, grad = PUBLIC[name](empty, np.empty(0, int) if name == "softmax" else empty)
    assert loss == 0
    assert grad.shape == (0, 3)


@per_loss
def test_masks_of_booleans_are_weights_of_zero_and_one(name):
    outputs, targets, weights = some(name)
    mask = weights > 0
    loss, grad = PUBLIC[name](outputs, targets, mask.astype(float))
    for w in (mask, mask.tolist(), mask.astype(int), mask.astype("f4"), np.asfortranarray(mask)):
        again, slope = PUBLIC[name](outputs, targets, w)
        assert again == loss
        np.testing.assert_array_equal(slope, grad)


@pytest.mark.parametrize("parts", [1, 2, 5, 12])
@per_loss
def test_values_times_weights_of_parts_sum_to_the_whole(name, parts):
    outputs, targets, weights = some(name, (12,))
    weights *= np.arange(12) ** 2  # far from equal
    whole, total, grad = LOSSES[name](outputs, targets, weights)
    pieces = [LOSSES[name](*own) for own in zip(
        *(np.array_split(a, parts) for a in (outputs, targets, weights)), strict=True)]
    assert sum(w for _, w, _ in pieces) == pytest.approx(total, rel=1e-14)
    assert sum(v * w for v, w, _ in pieces) == pytest.approx(whole * total, rel=1e-12)
    joined = np.concatenate([g * w for _, w, g in pieces]) / total
    np.testing.assert_allclose(joined, grad, rtol=1e-12, atol=1e-17)


def test_scaled_weights_are_the_same_loss():
    for name in PUBLIC:
        outputs, targets, weights = some(name)
        loss, grad = PUBLIC[name](outputs, targets, weights)
        for factor in (1e-30, 1e30):
            again, slope = PUBLIC[name](outputs, targets, weights * factor)
            assert again == pytest.approx(loss, rel=1e-12)
            np.testing.assert_allclose(slope, grad, rtol=1e-12, atol=1e-18)


# ---------------------------------------------------------------------------------- ignore_index


def test_rows_with_the_ignored_label_have_weight_zero():
    logits = np.zeros((3, 3))
    assert losses.softmax_cross_entropy(logits, [1, -100, 2])[0] == pytest.approx(np.log(3))
    mean, total, grad = LOSSES["softmax"](logits, [1, -100, 2], [2, 3, 4])
    assert (mean, total) == (pytest.approx(np.log(3)), 6)
    assert not grad[1].any()
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((6, 4)), np.array([0, 1, 3, 3, 1, 0])
    for ignored in (-100, -1, 3, 99):
        labels = np.where(targets == 3, ignored, targets)
        got = LOSSES["softmax"](logits, labels, ignore_index=ignored)
        expected = LOSSES["softmax"](logits, targets, targets != 3)
        assert got[:2] == expected[:2]
        np.testing.assert_array_equal(got[2], expected[2])
    assert losses.softmax_cross_entropy(logits, targets, ignore_index=None)[0] == pytest.approx(
        cases.plain_loss("softmax", logits, targets, np.ones(6)))
    with pytest.raises(IndexError, match="targets has numbers from -100 to 3"):
        losses.softmax_cross_entropy(logits, np.where(targets == 0, -100, targets),
                                     ignore_index=None)
    with pytest.raises(IndexError, match="targets has numbers from -1 to 3"):
        losses.softmax_cross_entropy(logits, np.where(targets == 0, -1, targets))
    assert losses.softmax_cross_entropy(logits, np.full(6, -100, np.int8))[0] == 0


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "i4", "i8", "u8", ">i4"])
def test_labels_of_any_dtype_of_whole_numbers(dtype):
    logits, targets, weights = some("softmax")
    right = losses.softmax_cross_entropy(logits, targets, weights)[0]
    assert losses.softmax_cross_entropy(logits, targets.astype(dtype), weights)[0] == right


# --------------------------------------------------------------------------------------- the rest


@per_loss
def test_the_same_bits_on_any_number_of_threads(name, threads):
    outputs, targets, weights = some(name, (301, 7), 33, np.float32)
    results = []
    for n in threads:
        fastrnn.set_num_threads(n)
        loss, grad = PUBLIC[name](outputs, targets, weights)
        results.append((loss, grad.tobytes()))
    assert all(one == results[0] for one in results)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_far_logits_stay_finite(dtype):
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype)
    for name, targets in (("bce", np.eye(2, dtype=dtype)), ("softmax", [0, 1])):
        loss, grad = PUBLIC[name](logits, targets)
        assert loss == 0
        assert not grad.any()
        loss, grad = PUBLIC[name](-logits, targets)
        assert loss > 1e3
        assert np.isfinite(grad).all()


def test_a_loss_that_overflows_is_infinite_without_a_warning():
    outputs = np.full((2, 1), 1e30, np.float32)
    loss, _ = losses.mean_squared_error(outputs, np.zeros_like(outputs))
    assert loss == np.inf
    loss, _ = losses.mean_squared_error(outputs * np.float32(np.nan), np.zeros_like(outputs))
    assert np.isnan(loss)
    for name in ("softmax", "bce"):
        logits, targets, _ = some(name, dtype=np.float32)
        logits[0] = np.nan
        assert np.isnan(PUBLIC[name](logits, targets)[0])


@per_loss
def test_any_memory_layout(name):
    outputs, targets, weights = some(name, (6, 4))
    loss, grad = PUBLIC[name](outputs, targets, weights)
    layouts = (np.asfortranarray, cases.read_only, cases.misaligned,
               lambda a: np.repeat(a, 2, 0)[::2], lambda a: a[::-1].copy()[::-1],
               lambda a: a.astype(a.dtype.newbyteorder()), lambda a: a.tolist())
    for layout in layouts:
        for changed in range(3):
            args = [outputs, targets, weights]
            args[changed] = layout(args[changed])
            again, slope = PUBLIC[name](*args)
            assert again == loss
            np.testing.assert_array_equal(slope, grad)


MASKED = np.ma.masked_array(np.zeros((2, 3)), [[1, 0, 0], [0, 0, 0]])
O = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("name", "args", "error", "match"),
    [
        ("softmax", (O, [0, 3]), IndexError, "targets has numbers from 0 to 3, expected 0 to 2"),
        ("softmax", (O, [0, -1]), IndexError, "targets has numbers from -1 to 0"),
        ("softmax", (O, [0, 3], [1, 1]), IndexError, "targets has numbers from 0 to 3"),
        ("softmax", (O, [0.0, 1.0]), TypeError, "targets is float64, expected whole numbers"),
        ("softmax", (O, [True, False]), TypeError, r"targets is \[.*\], expected whole numbers"),
        ("softmax", (O, [0, 1, 2]), ValueError, r"targets has shape \(3,\), expected \(2,\)"),
        ("softmax", (O, [[0], [1, 2]]), ValueError, "targets is a ragged sequence"),
        ("softmax", (O, None), TypeError, "targets is None, expected whole numbers"),
        ("softmax", (O, "ab"), TypeError, "targets is of type str, expected whole numbers"),
        ("softmax", (O.astype(int), [0, 1]), TypeError, "logits' dtype is .*int64"),
        ("softmax", (O.astype("f2"), [0, 1]), TypeError, "logits' dtype is .*float16"),
        ("softmax", (np.zeros((2, 0)), [0, 1]), ValueError, r"logits has shape \(2, 0\)"),
        ("softmax", (np.float64(1), 0), ValueError, r"logits has shape \(\)"),
        ("softmax", (MASKED, [0, 1]), TypeError, "logits is a masked array with masked places"),
        ("softmax", (O, np.ma.masked_array([0, 1], [1, 0])), TypeError, "targets is a masked arr"),
        ("softmax", (O, [0, 1], np.ma.masked_array([1.0, 1], [1, 0])), TypeError,
         "weights is a masked array"),
        ("softmax", (O, [0, 1], np.ma.masked_array([True, True], [1, 0])), TypeError,
         "weights is a masked array"),
        ("softmax", (O, [0, 1], [[1], [1, 2]]), ValueError, "weights is a ragged sequence"),
        ("softmax", (O, [0, 1], "ab"), TypeError, "weights is of type str, expected numbers"),
        ("softmax", (O, [0, 1], [[1, 1]]), ValueError, r"weights has shape \(1, 2\)"),
        ("mse", (O, np.zeros((2, 4))), ValueError, r"targets has shape \(2, 4\), expected \(2, 3"),
        ("mse", (O, np.zeros(3)), ValueError, r"targets has shape \(3,\)"),
        ("mse", (O, np.zeros((2, 3), "f")), TypeError, "targets is float32, expected float64"),
        ("mse", (np.zeros((2, 0)), np.zeros((2, 0))), ValueError, "N >= 1"),
        ("mse", (O, O, [1, np.nan]), ValueError, "weights has numbers from nan to nan"),
        ("mse", (O, O, [1, np.inf]), ValueError, "weights has numbers from 1.0 to inf"),
        ("mse", (O, O, [1, -1]), ValueError, "expected finite ones of at least 0"),
        ("mse", (O, O, [[1, 1]]), ValueError, r"weights has shape \(1, 2\), expected \(2,\)"),
        ("mse", (O, MASKED), TypeError, "targets is a masked array"),
        ("mse", (MASKED, O), TypeError, "outputs is a masked array"),
        ("bce", (O, np.full((2, 3), 1.5)), ValueError, "targets has numbers from 1.5 to 1.5"),
        ("bce", (O, np.full((2, 3), np.nan), [1, 0]), ValueError, "from nan to nan"),
        ("bce", (O, np.zeros((2, 3), int)), TypeError, "targets is int64, expected float64"),
    ],
)
def test_errors_name_the_argument(name, args, error, match):
    with pytest.raises(error, match=match) as raised:
        PUBLIC[name](*args)
    assert str(raised.value).startswith(PUBLIC[name].__name__ + ": ")
    assert "\n" not in str(raised.value)


def test_errors_of_the_options():
    call, labels = losses.softmax_cross_entropy, [0, 1]
    for ignored in (1.0, True, "x"):
        with pytest.raises(ValueError, match=r"ignore_index is .*, expected a whole number"):
            call(O, labels, ignore_index=ignored)
        for loss in ("mse", "bce"):
            with pytest.raises(ValueError, match=r"ignore_index is .*, expected a whole number"):
                LOSSES[loss](O, np.zeros_like(O), ignore_index=ignored)
    assert call(O, labels, ignore_index=np.int64(5))[0] == pytest.approx(np.log(3))
    with pytest.raises(ValueError, match=r"out has shape \(3, 3\), expected \(2, 3\)"):
        call(O, labels, out=np.zeros((3, 3)))
    with pytest.raises(TypeError, match="out is float32, expected an array of float64"):
        call(O, labels, out=np.zeros((2, 3), "f"))
    with pytest.raises(ValueError, match="out must be C-contiguous"):
        call(O, labels, out=np.zeros((2, 6))[:, ::2])
    full = np.ones((2, 3))  # a call that is refused leaves `out` as it was
    with pytest.raises(IndexError, match="targets has numbers"):
        call(full, [0, 9], out=full)
    assert (full == 1).all()


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "mean_squared_error",
                                  "binary_cross_entropy"])
def test_weights_whose_sum_cannot_be_divided_by_are_refused(name):
    loss = getattr(fastrnn.losses, name)
    outputs = np.zeros((4, 3), np.float32)
    targets = np.zeros(4, int) if name.startswith("softmax") else outputs
    for size in (1e308, 1e-320):
        with pytest.raises(ValueError, match=r"weights has the sum .*, expected 0, or a sum from"):
            loss(outputs, targets, np.full(4, size))
    assert loss(outputs, targets, np.full(4, 1e290))[0] == pytest.approx(
        loss(outputs, targets)[0], rel=1e-12)
