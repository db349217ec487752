"""fastrnn.reference against what no one had to derive: differences, scalar loops, identities."""

import dataclasses
import inspect
import itertools
import math
import warnings

import cases
import numpy as np
import pytest
from cases import replace

from fastrnn import reference

TOLERANCE = 1e-6  # of a central difference in float64
STEP = 1e-5  # near eps^(1/3), where a central difference's truncation and rounding errors meet


def gradient_name(name):
    """Return what cases.backward calls the gradient of this input."""
    return {"x": "dx", "embedding": "dx", "h0": "dh0", "c0": "dc0"}.get(name, name)


def loss(case, **options):
    """Return the scalar whose gradients backward computes: sum of outputs times their gradients."""
    out, _ = cases.forward(reference, case, training=False, **options)
    return sum(
        np.vdot(weight, out[name])
        for name, weight in (("y", case.dy), ("hn", case.dhn), ("cn", case.dcn))
        if weight is not None
    )


def differences(case, name, **options):
    """Return the gradient of loss with respect to one input by central differences."""
    array = getattr(case, name)
    result = np.empty_like(array)
    for index in np.ndindex(array.shape):
        ends = []
        for step in (STEP, -STEP):
            moved = array.copy()
            moved[index] += step
            ends.append(loss(replace(case, **{name: moved}), **options))
        result[index] = (ends[0] - ends[1]) / (2 * STEP)
    return result


def smooth_case(cell, shape, reverse, **options):
    """Return a case; for relu one whose arguments all stay 100 steps away from its kink."""
    drawn = (cases.make_case(cell, *shape, seed=seed, **options) for seed in itertools.count())
    return next(case for case in drawn
                if cell != "rnn_relu"
                or cases.distance_to_kink(reference, case, reverse) > 100 * STEP)


@pytest.mark.parametrize("reverse", [False, True], ids=["ahead", "reverse"])
@pytest.mark.parametrize("vocabulary", [None, 3], ids=["x", "embedding"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("shape", [(1, 2, 3, 2), (1, 1, 1, 1), (5, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_every_gradient_against_central_differences(cell, shape, bias, vocabulary, reverse):
    case = smooth_case(cell, shape, reverse, bias=bias, vocabulary=vocabulary)
    _, tape = cases.forward(reference, case, reverse=reverse)
    gradients = cases.backward(reference, case, tape)
    inputs = case.inputs()
    assert {gradient_name(name) for name in inputs} == set(gradients)
    for name in inputs:
        expected = differences(case, name, reverse=reverse)
        cases.assert_close(name, gradients[gradient_name(name)], expected, TOLERANCE)


@pytest.mark.parametrize("missing", ["dy", "dhn", "dcn"])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_a_missing_gradient_is_a_zero_gradient(cell, missing):
    case = cases.make_case(cell, 4, 2, 3, 5)
    if getattr(case, missing) is None:
        return  # only lstm has dcn
    zero = replace(case, **{missing: np.zeros_like(getattr(case, missing))})
    expected = cases.backward(reference, zero, cases.forward(reference, zero)[1])
    tape = cases.forward(reference, case)[1]
    got = cases.backward(reference, replace(case, **{missing: None}), tape)
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


@pytest.mark.parametrize("cell", cases.CELLS)
def test_a_missing_state_is_a_zero_state(cell):
    case = cases.make_case(cell, 4, 2, 3, 5)
    states = {name: getattr(case, name) for name in ("h0", "c0") if getattr(case, name) is not None}
    zero = replace(case, **{name: np.zeros_like(state) for name, state in states.items()})
    expected, _ = cases.forward(reference, zero)
    run = getattr(reference, cell.partition("_")[0] + "_forward")
    extra = {"nonlinearity": cell.partition("_")[2]} if "_" in cell else {}
    params = [getattr(case, name) for name in cases.PARAMETERS]
    y, _, _ = run(case.x, None, *params, **extra)
    np.testing.assert_array_equal(y, expected["y"])
    got, _ = cases.forward(reference, replace(case, **dict.fromkeys(states)))
    np.testing.assert_array_equal(got["y"], expected["y"])
    assert np.any(cases.forward(reference, case)[0]["y"] != expected["y"])


# ------------------------------------------------------------- one step, written with scalars


def dot(matrix, row, vector):
    return sum(float(matrix[row, k]) * float(vector[k]) for k in range(len(vector)))


def scalar_sigmoid(a):
    return 1 / (1 + math.exp(-a))


def scalar_rnn(phi):
    def step(x, h, c, w_ih, w_hh, b_ih, b_hh):
        return [
            phi(dot(w_ih, u, x) + b_ih[u] + dot(w_hh, u, h) + b_hh[u]) for u in range(len(h))
        ], None

    return step


def scalar_lstm(x, h, c, w_ih, w_hh, b_ih, b_hh):
    H = len(h)
    h_new, c_new = [], []
    for u in range(H):
        a = [
            dot(w_ih, gate * H + u, x) + b_ih[gate * H + u]
            + dot(w_hh, gate * H + u, h) + b_hh[gate * H + u]
            for gate in range(4)
        ]
        i, f, g, o = (scalar_sigmoid(a[0]), scalar_sigmoid(a[1]), math.tanh(a[2]),
                      scalar_sigmoid(a[3]))
        c_new.append(f * c[u] + i * g)
        h_new.append(o * math.tanh(c_new[u]))
    return h_new, c_new


def scalar_gru(x, h, c, w_ih, w_hh, b_ih, b_hh):
    H = len(h)
    h_new = []
    for u in range(H):
        from_x = [dot(w_ih, gate * H + u, x) + b_ih[gate * H + u] for gate in range(3)]
        from_h = [dot(w_hh, gate * H + u, h) + b_hh[gate * H + u] for gate in range(3)]
        r, z = scalar_sigmoid(from_x[0] + from_h[0]), scalar_sigmoid(from_x[1] + from_h[1])
        n = math.tanh(from_x[2] + r * from_h[2])
        h_new.append((1 - z) * n + z * h[u])
    return h_new, None


SCALAR_STEPS = {
    "rnn_tanh": scalar_rnn(math.tanh),
    "rnn_relu": scalar_rnn(lambda a: max(a, 0.0)),
    "rnn_sigmoid": scalar_rnn(scalar_sigmoid),
    "lstm": scalar_lstm,
    "gru": scalar_gru,
}


@pytest.mark.parametrize("reverse", [False, True], ids=["ahead", "reverse"])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_forward_is_the_scalar_step_repeated(cell, reverse):
    case = cases.make_case(cell, 3, 2, 3, 4, seed=5)
    T, B, _, _ = case.sizes
    expected = {"y": np.empty_like(case.dy), "hn": np.empty_like(case.h0)}
    if case.c0 is not None:
        expected["cn"] = np.empty_like(case.c0)
    params = [getattr(case, name) for name in cases.PARAMETERS]
    for b in range(B):
        h, c = case.h0[b], None if case.c0 is None else case.c0[b]
        for t in range(T - 1, -1, -1) if reverse else range(T):
            h, c = SCALAR_STEPS[cell](case.x[t, b], h, c, *params)
            expected["y"][t, b] = h
        expected["hn"][b] = h
        if case.c0 is not None:
            expected["cn"][b] = c
    got, _ = cases.forward(reference, case, reverse=reverse)
    assert got.keys() == expected.keys()
    for name in expected:
        cases.assert_close(name, got[name], expected[name], 1e-14, elementwise=True)


# ------------------------------------------------------------------------------- the interface


@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_float32_is_float64_within_the_tolerance(cell, shape):
    case = cases.make_case(cell, *shape, np.float32)
    strict = {"dtype": np.float32, "elementwise": case.elementwise}
    exact = case.astype(np.float64)
    out, tape = cases.forward(reference, case)
    expected, exact_tape = cases.forward(reference, exact)
    for name, array in out.items():
        cases.assert_close(name, array, expected[name], case.tolerance(), **strict)
    gradients = cases.backward(reference, case, tape)
    expected = cases.backward(reference, exact, exact_tape)
    assert out["y"].shape == case.dy.shape
    assert gradients["dx"].shape == case.x.shape
    for name, array in gradients.items():
        cases.assert_close(name, array, expected[name], case.tolerance(backward=True), **strict)


@pytest.mark.parametrize("cell", cases.CELLS)
def test_reverse_is_forward_on_flipped_time(cell):
    case = cases.make_case(cell, 5, 2, 3, 4)
    flipped = replace(case, x=case.x[::-1].copy(), dy=case.dy[::-1].copy())
    out, tape = cases.forward(reference, case, reverse=True)
    expected, flipped_tape = cases.forward(reference, flipped)
    gradients = cases.backward(reference, case, tape)
    expected |= cases.backward(reference, flipped, flipped_tape)
    for name, array in (out | gradients).items():
        along = expected[name][::-1] if name in ("y", "dx") else expected[name]
        cases.assert_close(name, array, along, 1e-14)


@pytest.mark.parametrize("reverse", [False, True], ids=["ahead", "reverse"])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_zero_steps(cell, reverse):
    case = cases.make_case(cell, 0, 2, 3, 4)
    out, tape = cases.forward(reference, case, reverse=reverse)
    assert out["y"].shape == (0, 2, 4)
    np.testing.assert_array_equal(out["hn"], case.h0)
    assert out["hn"] is not case.h0
    gradients = cases.backward(reference, case, tape)
    assert gradients["dx"].shape == (0, 2, 3)
    np.testing.assert_array_equal(gradients["dh0"], case.dhn)
    if cell == "lstm":
        np.testing.assert_array_equal(out["cn"], case.c0)
        np.testing.assert_array_equal(gradients["dc0"], case.dcn)
    for name in cases.PARAMETERS:
        assert gradients[name].shape == getattr(case, name).shape
        assert not np.any(gradients[name]), name


@pytest.mark.parametrize("cell", cases.CELLS)
def test_a_tape_serves_once(cell):
    case = cases.make_case(cell, 3, 2, 3, 4)
    _, tape = cases.forward(reference, case)
    cases.backward(reference, case, tape)
    with pytest.raises(RuntimeError, match="already served its one backward"):
        cases.backward(reference, case, tape)


@pytest.mark.parametrize("cell", cases.CELLS)
def test_a_refused_backward_leaves_the_tape_unspent(cell):
    case = cases.make_case(cell, 3, 2, 3, 4)
    _, tape = cases.forward(reference, case)
    with pytest.raises(ValueError, match=r"dy has shape \(2, 2, 4\), expected \(T, B, H\)"):
        cases.backward(reference, replace(case, dy=case.dy[1:]), tape)
    with pytest.raises(ValueError, match="grads has keys"):
        cases.backward(reference, case, tape, grads={"weight_ih": case.weight_ih.copy()})
    cases.backward(reference, case, tape)


def test_tapes_are_not_exchangeable():
    gru, lstm = (cases.make_case(cell, 3, 2, 3, 4) for cell in ("gru", "lstm"))
    _, tape = cases.forward(reference, gru)
    with pytest.raises(TypeError, match="expected one of lstm_forward"):
        cases.backward(reference, lstm, tape)
    out, tape = cases.forward(reference, gru, training=False)
    assert tape is None
    np.testing.assert_array_equal(out["y"], cases.forward(reference, gru)[0]["y"])
    with pytest.raises(TypeError, match="training=True"):
        cases.backward(reference, gru, tape)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_gradients_accumulate_into_the_given_arrays(cell, bias):
    case = cases.make_case(cell, 3, 2, 3, 4, bias=bias)
    names = [name for name in cases.PARAMETERS if bias or "bias" not in name]
    fresh = cases.backward(reference, case, cases.forward(reference, case)[1])
    assert {name for name in fresh if name in cases.PARAMETERS} == set(names)
    rng = np.random.default_rng(1)
    before = {name: rng.standard_normal(getattr(case, name).shape) for name in names}
    grads = {name: array.copy() for name, array in before.items()}
    tape = cases.forward(reference, case)[1]
    got = cases.backward(reference, case, tape, grads=grads)
    for name in names:
        assert got[name] is grads[name]
        cases.assert_close(name, grads[name], before[name] + fresh[name], 1e-14)


@pytest.mark.parametrize("cell", cases.CELLS)
def test_need_dx_changes_nothing_else(cell):
    case = cases.make_case(cell, 3, 2, 3, 4)
    full = cases.backward(reference, case, cases.forward(reference, case)[1])
    tape = cases.forward(reference, case)[1]
    without = cases.backward(reference, case, tape, need_dx=False)
    assert set(full) - set(without) == {"dx"}
    for name, array in without.items():
        np.testing.assert_array_equal(array, full[name], err_msg=name)


@pytest.mark.parametrize("reverse", [False, True], ids=["ahead", "reverse"])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_embedding_is_a_lookup(cell, reverse):
    case = cases.make_case(cell, 6, 3, 4, 5, vocabulary=4)
    dense = replace(case, x=case.embedding[case.x], embedding=None)
    out, tape = cases.forward(reference, case, reverse=reverse)
    expected, dense_tape = cases.forward(reference, dense, reverse=reverse)
    np.testing.assert_array_equal(out["y"], expected["y"])
    got = cases.backward(reference, case, tape)["dx"]
    dx = cases.backward(reference, dense, dense_tape)["dx"]
    rows = [dx[case.x == v].sum(axis=0) for v in range(4)]
    cases.assert_close("embedding", got, np.stack(rows), 1e-14)


@pytest.mark.parametrize("cell", cases.CELLS)
def test_inputs_and_outputs_are_the_callers(cell):
    case = cases.make_case(cell, 3, 2, 3, 4)
    arrays = {
        field.name: value
        for field in dataclasses.fields(case)
        if isinstance(value := getattr(case, field.name), np.ndarray)
    }
    copies = {name: array.copy() for name, array in arrays.items()}
    for array in arrays.values():
        array.flags.writeable = False
    expected = cases.backward(reference, case, cases.forward(reference, case)[1])
    out, tape = cases.forward(reference, case)
    for array in out.values():
        array.fill(np.nan)  # writing into the outputs must not reach the tape
    got = cases.backward(reference, case, tape)
    for name, array in got.items():
        assert array.flags.writeable, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, copies[name], err_msg=name)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_sigmoid_is_exact_and_silent_everywhere(dtype):
    x = np.array([-np.inf, -1e30, -800, -100, -20, -1, -0.0, 0, 1, 20, 100, 800, np.inf], dtype)
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        got = reference.sigmoid(x)
        assert np.isnan(reference.sigmoid(np.array([np.nan], dtype))[0])
    expected = [0 if a < -700 else 1 / (1 + math.exp(-a)) for a in x.tolist()]
    assert got.dtype == dtype
    np.testing.assert_allclose(got, np.array(expected, dtype), rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("cell", cases.CELLS)
def test_saturating_inputs_stay_finite_and_silent(cell):
    case = cases.make_case(cell, 4, 2, 3, 5)
    case = replace(case, x=case.x * 1e4)
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        out, tape = cases.forward(reference, case)
        gradients = cases.backward(reference, case, tape)
    for name, array in (out | gradients).items():
        assert np.all(np.isfinite(array)), name


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": np.ones((3, 2, 12))}, ValueError, r"gru: x has shape \(3, 2, 12\).* I = 3"),
        ({"x": np.ones((3, 2, 3), np.float32)}, TypeError, "x is float32.*float64"),
        ({"x": [[[0.0] * 3] * 2] * 3}, TypeError, "x is list"),
        ({"h0": np.ones((2, 5))}, ValueError, r"h0 has shape \(2, 5\).* B = 2, H = 4"),
        ({"weight_ih": np.ones((4, 3))}, ValueError, r"weight_ih has shape \(4, 3\).* G\*H = 12"),
        ({"weight_hh": np.ones((16, 4))}, ValueError, "weight_hh has shape .* G = 3"),
        ({"weight_hh": np.ones((12, 4), int)}, TypeError, "weight_hh is int64"),
        ({"bias_hh": np.ones(4)}, ValueError, r"bias_hh has shape \(4,\)"),
        ({"embedding": np.ones((5, 3))}, TypeError, "x is float64, expected an array of integer"),
        ({"embedding": np.ones((5, 3)), "x": np.full((3, 2), 5)}, IndexError, r"\[0, 5\)"),
        ({"embedding": np.ones((5, 3)), "x": np.full((3, 2), -1)}, IndexError, r"\[0, 5\)"),
    ],
)
def test_errors_name_the_argument(change, error, match):
    case = cases.make_case("gru", 3, 2, 3, 4)
    with pytest.raises(error, match=match):
        cases.forward(reference, replace(case, **change))


def test_an_unknown_nonlinearity_is_an_error():
    case = cases.make_case("rnn_tanh", 3, 2, 3, 4)
    with pytest.raises(ValueError, match="nonlinearity is 'softsign', expected one of"):
        cases.forward(reference, replace(case, cell="rnn_softsign"))


def test_signatures_are_the_contract():
    options = ("reverse=False, training=True, embedding=None, lengths=None, reset=None, "
               "reset_to='zero'")
    params = "weight_ih, weight_hh, bias_ih=None, bias_hh=None"
    expected = {
        "rnn_forward": f"(x, h0, {params}, *, nonlinearity='tanh', {options})",
        "lstm_forward": f"(x, state, {params}, *, {options})",
        "gru_forward": f"(x, h0, {params}, *, {options})",
        "rnn_backward": "(dy, dhn, tape, *, need_dx=True, grads=None)",
        "lstm_backward": "(dy, dstate, tape, *, need_dx=True, grads=None)",
        "gru_backward": "(dy, dhn, tape, *, need_dx=True, grads=None)",
    }
    got = {}
    for name in expected:
        signature = inspect.signature(getattr(reference, name))
        arguments = [a.replace(annotation=a.empty) for a in signature.parameters.values()]
        got[name] = str(inspect.Signature(arguments))
    assert got == expected


# ------------------------------------------------------------ the judge itself can say no


@pytest.mark.parametrize("elementwise", [False, True])
def test_assert_close_fails_when_it_should(elementwise):
    expected = np.linspace(1, 2, 6).reshape(2, 3)
    cases.assert_close("y", expected * (1 + 1e-9), expected, 1e-8, elementwise)
    cases.assert_close("y", expected[:0], expected[:0], 0, elementwise)
    wrong = expected.copy()
    wrong[1, 2] = np.nan
    for got, match in [
        (expected * (1 + 1e-6), "y: relative error .* tolerance 1e-08"),
        (expected[0], r"y: shape \(3,\)"),
        (expected.astype(np.float32), "y: dtype float32"),
        (wrong, "y: 1 of 6 values of the result are not finite"),
    ]:
        with pytest.raises(AssertionError, match=match):
            cases.assert_close("y", got, expected, 1e-8, elementwise)
    with pytest.raises(AssertionError, match="values of the expected"):
        cases.assert_close("y", expected, wrong, 1e-8, elementwise)
    with pytest.raises(AssertionError, match="relative error"):
        cases.assert_close("y", expected, np.zeros_like(expected), 1e-8, elementwise)


def test_tolerance_is_benchdnns_formula():
    eps = np.finfo(np.float32).eps
    assert cases.tolerance(np.float32, 64, 16) == pytest.approx(40 * eps)
    assert cases.tolerance(np.float32, 65, 16, backward=True) == pytest.approx(88 * eps)
    assert cases.tolerance(np.float32, 64, 16, bidirectional=True) == pytest.approx(80 * eps)
    assert cases.tolerance(np.float64, 1, 1) == pytest.approx(4 * np.finfo(np.float64).eps)
