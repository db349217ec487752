"""The linear kernels against plain NumPy in float64."""

import warnings

import cases
import numpy as np
import pytest
from cases import drawer, read_only

from fastrnn._kernels import linear, runtime

FUSED = [name for name, has in runtime.isa_names().items() if has and name != "scalar"]

# (R, K, N): tails of every vector width, of tiles of 8 rows, of blocks of 256 rows
SHAPES = [(1, 1, 1), (2, 3, 5), (7, 1, 17), (8, 16, 32), (9, 17, 1), (13, 33, 31), (17, 65, 130),
          (257, 7, 11), (300, 40, 3), (3, 260, 127), (520, 9, 1030)]
LARGE = (301, 67, 130)  # worth several threads


def assert_close(name, got, expected, K, dtype, **options):
    cases.assert_close(name, got, expected, cases.tolerance(dtype, K, 1, **options), dtype=dtype)


def wide(*arrays):
    return [array.astype(np.float64) for array in arrays]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_linear_forward(isa, dtype, shape, bias):
    R, K, N = shape
    draw = drawer(dtype)
    x, weight, b, out = draw(R, K), draw(N, K), draw(N), draw(R, N)
    x64, weight64, b64 = wide(x, weight, b)
    expected = x64 @ weight64.T + (b64 if bias else 0)
    got = linear.linear_forward(x, weight, b if bias else None)
    assert_close("y", got, expected, K + bias, dtype)
    assert linear.linear_forward(x, weight, b if bias else None, out) is out
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
    got = {"dx": linear.linear_backward(dy, x, weight, *ours), "dweight": ours[0],
           "dbias": ours[1]}
    for name, terms in (("dx", N), ("dweight", R), ("dbias", R)):
        assert_close(name, got[name], expected[name], terms, dtype, backward=True)
    again = dweight.copy(), dbias.copy()
    assert linear.linear_backward(dy, x, weight, *again, True, dx) is dx
    assert dx.tobytes() == got["dx"].tobytes()
    again = dweight.copy()  # neither dx nor dbias
    assert linear.linear_backward(dy, x, weight, again, None, False) is None
    assert again.tobytes() == got["dweight"].tobytes()


@pytest.mark.parametrize("R", [2, 256, 259])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_gradients_of_rows_that_share_cache_sets(isa, dtype, R):
    """Rows a multiple of 4096 bytes apart are copied first; a column more, and they are not."""
    N, draw = 4096 // np.dtype(dtype).itemsize, drawer(dtype)
    dy, x = draw(R, N + 1), draw(R, 37)
    found = []
    for columns in (N, N + 1):
        weight, dweight = draw(columns, 37), np.zeros((columns, 37), dtype)
        dbias = np.zeros(columns, dtype)
        linear.linear_backward(np.ascontiguousarray(dy[:, :columns]), x, weight, dweight, dbias)
        found.append((dweight[:N].tobytes(), dbias[:N].tobytes()))
    assert found[0] == found[1]
    assert_close("dW", dweight, dy.astype(float).T @ x.astype(float), R, dtype)


@pytest.mark.parametrize("columns", [257, 300])
@pytest.mark.parametrize("R", [2, 255, 256, 259])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_gradients_have_the_same_bits_for_any_number_of_inputs(isa, dtype, R, columns):
    """Columns of dy that lie 1 KB apart and more may be copied for many inputs, not for few."""
    draw = drawer(dtype)
    dy, x = draw(R, columns), draw(R, 300)
    found = []
    for K in (300, 130, 60, 7):
        weight, dweight = draw(columns, K), np.zeros((columns, K), dtype)
        dbias = np.zeros(columns, dtype)
        linear.linear_backward(dy, np.ascontiguousarray(x[:, :K]), weight, dweight, dbias)
        assert_close("dW", dweight, dy.astype(float).T @ x[:, :K].astype(float), R, dtype)
        found.append((dweight[:, :7].tobytes(), dbias.tobytes()))
    assert found == found[:1] * 4


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_linear_of_no_rows(isa, dtype):
    draw = drawer(dtype)
    weight, dweight, dbias = draw(5, 3), draw(5, 3), draw(5)
    before = dweight.copy(), dbias.copy()
    x, dy = draw(0, 3), draw(0, 5)
    assert linear.linear_forward(x, weight, dbias).shape == (0, 5)
    assert linear.linear_backward(dy, x, weight, dweight, dbias).shape == (0, 3)
    np.testing.assert_array_equal(dweight, before[0])
    np.testing.assert_array_equal(dbias, before[1])


# ------------------------------------------------------------------------------ bits and threads


def everything(dtype, R, K, N):
    draw = drawer(dtype)
    x, weight, bias, dweight, dbias = draw(R, K), draw(N, K), draw(N), draw(N, K), draw(N)
    y = linear.linear_forward(x, weight, bias)
    dx = linear.linear_backward(y, x, weight, dweight, dbias)
    return {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias}


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_same_bits_on_any_number_of_threads(isa, threads, dtype):
    runtime.set_num_threads(1)
    expected = everything(dtype, *LARGE)
    for count in (*threads, *threads[::-1]):
        runtime.set_num_threads(count)
        cases.assert_same_bytes(everything(dtype, *LARGE), expected, f"{count} threads: ")
    runtime.set_num_threads(8)
    cases.fill_pool(lambda: everything(dtype, *LARGE), 7)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_row_is_that_row_alone(isa, dtype):
    draw = drawer(dtype)
    x, weight, bias = draw(21, 17), draw(37, 17), draw(37)
    y = linear.linear_forward(x, weight, bias)
    for r in range(len(x)):
        alone = linear.linear_forward(x[r : r + 1], weight, bias)
        assert alone.tobytes() == y[r].tobytes()


@pytest.mark.skipif(len(FUSED) < 2, reason="this CPU has one instruction set with FMA")
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_instruction_sets_with_fma_have_the_same_bits(dtype):
    before, results = runtime.get_isa(), {}
    try:
        for name in FUSED:
            runtime.set_isa(name)
            results[name] = everything(dtype, 9, 67, 130)
    finally:
        runtime.set_isa(before)
    for name in FUSED[1:]:
        cases.assert_same_bytes(results[name], results[FUSED[0]], f"{name}: ")


# ---------------------------------------------------------------------------------------- errors


def call(name, **changed):
    draw = drawer(np.float64)
    R, K, N = 4, 3, 5
    arguments = {
        "linear_forward": {"x": draw(R, K), "weight": draw(N, K), "bias": draw(N),
                           "out": draw(R, N)},
        "linear_backward": {"dy": draw(R, N), "x": draw(R, K), "weight": draw(N, K),
                            "dweight": draw(N, K), "dbias": draw(N), "dx": draw(R, K)},
    }[name]
    assert changed.keys() <= arguments.keys()
    return getattr(linear, name)(**arguments | changed)


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


@pytest.mark.parametrize("name", ["linear_forward", "linear_backward"])
def test_what_the_error_table_changes_is_otherwise_accepted(name):
    call(name)
