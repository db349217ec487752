"""fastrnn.functional against fastrnn.reference: every cell, dtype, instruction set and layout."""

import dataclasses
import functools

import cases
import numpy as np
import pytest
from cases import assert_same_bytes, misaligned, read_only, replace, run

from fastrnn import functional, reference
from fastrnn._kernels import runtime

SUPPORTED = [name for name, has in runtime.isa_names().items() if has]
OUTPUTS = ("y", "hn", "cn")
ODD = (4, 5, 11, 13)  # T, B, I, H: no size is whole vectors or whole tiles


@pytest.fixture
def denormals():
    before = runtime.get_flush_denormals()
    yield
    runtime.set_flush_denormals(before)


def exact(case, **options):
    """Return what the reference makes of the same numbers in float64."""
    return run(reference, case.astype(np.float64), **options)


def assert_as_exact(case, got, expected, prefix="", last=-1):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        ours = got[name]
        # By norm, as few as one number of a last state would be held against what cancellation
        # left of it. So hn counts as part of y, which it is to the bit, and cn beside its start.
        if name == "hn" and len(case.dy):
            assert ours.tobytes() == got["y"][last].tobytes()
            continue
        if name == "cn":
            ours, array = (np.stack([case.c0, a]) for a in (ours, array))
        cases.assert_close(
            prefix + name, ours, array, case.tolerance(backward=name not in OUTPUTS),
            case.elementwise, dtype=case.dy.dtype,
        )


def arrays_of(case):
    names = (field.name for field in dataclasses.fields(case))
    return {name: a for name in names if isinstance(a := getattr(case, name), np.ndarray)}


# ------------------------------------------------------------------------------ the right numbers


@functools.cache
def drawn(cell, shape, dtype, reverse):
    case = cases.make_case(cell, *shape, dtype)
    return case, exact(case, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True], ids=["ahead", "reverse"])
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_outputs_and_every_gradient(isa, cell, dtype, shape, reverse):
    case, expected = drawn(cell, shape, dtype, reverse)
    got = run(functional, case, reverse=reverse)
    assert_as_exact(case, got, expected, last=0 if reverse else -1)


# src_c/tmpl/gradient.h takes gradients of gates in blocks of 288, inputs in blocks of 1024, rows in
# blocks of 256; for 128 inputs and more it copies them
@pytest.mark.parametrize("shape", [(3, 2, 5, 288), (3, 2, 5, 290), (2, 3, 1024, 5),
                                   (2, 3, 1027, 5), (130, 2, 135, 131)], ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_sizes_around_the_blocks_of_the_gradients(isa, cell, dtype, shape):
    case, expected = drawn(cell, shape, dtype, False)
    assert_as_exact(case, run(functional, case), expected)


@pytest.mark.parametrize("missing", [(), ("bias_ih",), ("bias_hh",), ("bias_ih", "bias_hh")],
                         ids="-".join)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_each_bias_may_be_left_out(isa, cell, dtype, missing):
    case = replace(cases.make_case(cell, *ODD, dtype), **dict.fromkeys(missing))
    got = run(functional, case)
    assert not set(missing) & set(got)
    assert_as_exact(case, got, exact(case))


@pytest.mark.parametrize("reverse", [False, True], ids=["ahead", "reverse"])
@pytest.mark.parametrize("vocabulary", [1, 3, 50], ids="{}rows".format)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_embedding(isa, cell, dtype, vocabulary, reverse):
    case = cases.make_case(cell, 6, 5, 11, 13, dtype, vocabulary=vocabulary)
    got = run(functional, case, reverse=reverse)
    assert_as_exact(case, got, exact(case, reverse=reverse), last=0 if reverse else -1)
    if vocabulary == 50:  # more rows than steps: some stay unused
        unused = np.setdiff1d(np.arange(50), case.x)
        assert unused.size
        assert not got["dx"][unused].any()


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.uint64, ">i4"], ids=str)
def test_embedding_takes_any_whole_numbers(kind):
    case = cases.make_case("gru", *ODD, vocabulary=7)
    expected = run(functional, case)
    assert_same_bytes(run(functional, replace(case, x=case.x.astype(kind))), expected)
    assert_same_bytes(run(functional, replace(case, x=np.asfortranarray(case.x))), expected)
    assert_same_bytes(run(functional, replace(case, x=case.x.tolist())), expected)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 7, 65, 34), (67, 4, 5, 16), (2, 5, 17, 260)],
                         ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_every_instruction_set_agrees_with_scalar(isa, cell, dtype, shape):
    case = cases.make_case(cell, *shape, dtype, seed=1)
    got = run(functional, case)
    runtime.set_isa("scalar")
    assert_as_exact(case, got, run(functional, case), f"{isa} ")


# ------------------------------------------------------------------- options that change no number


@pytest.mark.parametrize("reverse", [False, True], ids=["ahead", "reverse"])
@pytest.mark.parametrize("vocabulary", [None, 6], ids=["x", "embedding"])
@pytest.mark.parametrize("shape", [(1, 1, 3, 5), ODD, (300, 2, 3, 70)], ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_training_changes_no_bit(isa, cell, dtype, shape, vocabulary, reverse):
    case = cases.make_case(cell, *shape, dtype, vocabulary=vocabulary)
    expected, tape = cases.forward(functional, case, reverse=reverse)
    assert isinstance(tape, functional.Tape)
    got, tape = cases.forward(functional, case, reverse=reverse, training=False)
    assert tape is None
    assert_same_bytes(got, expected)


@pytest.mark.parametrize("vocabulary", [None, 6], ids=["x", "embedding"])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_need_dx_changes_nothing_else(isa, cell, vocabulary):
    case = cases.make_case(cell, *ODD, vocabulary=vocabulary)
    expected = run(functional, case)
    del expected["dx"]
    assert_same_bytes(run(functional, case, need_dx=False), expected)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_gradients_accumulate_into_the_given_arrays(isa, cell, dtype, bias):
    case = cases.make_case(cell, *ODD, dtype, bias=bias)
    names = [name for name in cases.PARAMETERS if bias or "bias" not in name]
    rng = np.random.default_rng(1)
    before = {name: rng.standard_normal(getattr(case, name).shape).astype(dtype) for name in names}
    grads = {name: array.copy() for name, array in before.items()}
    got = run(functional, case, grads=grads)
    expected = exact(case)
    for name in names:
        assert got[name] is grads[name]
        expected[name] += before[name]
    assert_as_exact(case, got, expected)


@pytest.mark.parametrize("missing", ["dy", "dhn", "dcn"])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_a_missing_gradient_is_a_zero_gradient(isa, cell, missing):
    case = cases.make_case(cell, *ODD)
    if getattr(case, missing) is None:
        return  # only lstm has dcn
    zero = replace(case, **{missing: np.zeros_like(getattr(case, missing))})
    out, tape = cases.forward(functional, case)
    got = out | cases.backward(functional, replace(case, **{missing: None}), tape)
    assert_same_bytes(got, run(functional, zero))


@pytest.mark.parametrize("cell", cases.CELLS)
def test_a_backward_without_any_gradient_gives_zeros(cell):
    case = cases.make_case(cell, *ODD)
    _, tape = cases.forward(functional, case)
    back = getattr(functional, cell.partition("_")[0] + "_backward")
    dx, dstate, grads = back(None, None, tape)
    for array in (dx, *(dstate if cell == "lstm" else [dstate]), *grads.values()):
        assert not array.any()


@pytest.mark.parametrize("cell", cases.CELLS)
def test_a_missing_state_is_a_zero_state(isa, cell):
    case = cases.make_case(cell, *ODD)
    states = {name: getattr(case, name) for name in ("h0", "c0") if getattr(case, name) is not None}
    expected = run(functional, replace(case, **{n: np.zeros_like(s) for n, s in states.items()}))
    forward = getattr(functional, cell.partition("_")[0] + "_forward")
    extra = {"nonlinearity": cell.partition("_")[2]} if "_" in cell else {}
    y, _, _ = forward(case.x, None, *(getattr(case, name) for name in cases.PARAMETERS), **extra)
    assert y.tobytes() == expected["y"].tobytes()
    for name, state in states.items():  # each alone, too
        alone = run(functional, replace(case, **{name: None}))
        zero = run(functional, replace(case, **{name: np.zeros_like(state)}))
        assert_same_bytes(alone, zero)


@pytest.mark.parametrize("vocabulary", [None, 3], ids=["x", "embedding"])
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (3, 0, 3, 4), (0, 0, 3, 4)], ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["ahead", "reverse"])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_no_steps_and_no_rows(isa, cell, reverse, shape, vocabulary):
    case = cases.make_case(cell, *shape, vocabulary=vocabulary)
    got = run(functional, case, reverse=reverse)
    expected = exact(case, reverse=reverse)
    assert_same_bytes(got, expected)
    assert got["hn"] is not case.h0
    assert not any(np.any(got[name]) for name in cases.PARAMETERS)
    evaluated, _ = cases.forward(functional, case, reverse=reverse, training=False)
    assert_same_bytes(evaluated, {name: expected[name] for name in evaluated})


# ---------------------------------------------------------------------------- layouts and ownership


def every_second(a):
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def within_wider_rows(a):
    """Rows stay contiguous, so kernels read them in place; NaN lies between them."""
    wide = np.zeros((*a.shape[:-1], a.shape[-1] + 3), a.dtype)
    if a.dtype.kind == "f":
        wide.fill(np.nan)
    wide[..., 1:-2] = a
    return wide[..., 1:-2]


def big_endian(a):
    return a.astype(a.dtype.newbyteorder(">"))


def backwards(a):
    turn = (slice(None, None, -1),) * a.ndim
    return a[turn].copy()[turn]


def rows_backwards(a):
    """Negative strides but for the rows, which kernels read in place."""
    turn = (slice(None, None, -1),) * (a.ndim - 1)
    return a[turn].copy()[turn]


LAYOUTS = (every_second, within_wider_rows, np.asfortranarray, big_endian, read_only, backwards,
           rows_backwards, misaligned)


@pytest.mark.parametrize("vocabulary", [None, 6], ids=["x", "embedding"])
@pytest.mark.parametrize("shape", [ODD, (3, 4, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_layouts_change_no_bit_and_inputs_stay(cell, dtype, layout, shape, vocabulary):
    case = cases.make_case(cell, *shape, dtype, vocabulary=vocabulary)
    odd = replace(case, **{name: layout(array) for name, array in arrays_of(case).items()})
    assert_same_bytes(run(functional, odd), run(functional, case))
    for name, array in arrays_of(odd).items():
        np.testing.assert_array_equal(array, getattr(case, name), err_msg=name)
        if layout is within_wider_rows and array.dtype.kind == "f":
            assert np.isnan(array.base).sum() == 3 * array.size // array.shape[-1], name


@pytest.mark.parametrize("axis", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("shape", [ODD, (3, 4, 1, 1)], ids=str)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_zero_strides_change_no_bit(cell, shape, axis):
    case = cases.make_case(cell, *shape)
    flat = {
        name: np.broadcast_to(array.take([0], axis), array.shape)
        for name, array in arrays_of(case).items()
    }
    copies = {name: array.copy() for name, array in flat.items()}
    assert_same_bytes(run(functional, replace(case, **flat)),
                      run(functional, replace(case, **copies)))


@pytest.mark.parametrize("cell", cases.CELLS)
def test_lists_are_arrays(cell):
    case = cases.make_case(cell, 3, 2, 3, 4)
    lists = {name: getattr(case, name).tolist()
             for name in ("x", "h0", "bias_ih", "weight_ih", "dhn")}
    assert_same_bytes(run(functional, replace(case, **lists)), run(functional, case))


@pytest.mark.parametrize("cell", cases.CELLS)
def test_outputs_are_the_callers(isa, cell):
    case = cases.make_case(cell, *ODD)
    expected = run(functional, case)
    out, tape = cases.forward(functional, case)
    for array in out.values():
        assert array.flags.writeable
        assert array.flags.c_contiguous
        array.fill(np.nan)  # writing into the outputs must not reach the tape
    case.h0.fill(np.nan)  # nor does what the tape does not refer to
    got = cases.backward(functional, case, tape)
    assert_same_bytes(got, {name: expected[name] for name in got})
    assert all(array.flags.writeable for array in got.values())


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("vocabulary", [None, 6], ids=["x", "embedding"])
@pytest.mark.parametrize("shape", [ODD, (1, 2, 34, 17)], ids=str)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_what_an_earlier_call_left_in_memory_does_not_matter(isa, cell, shape, vocabulary,
                                                             training):
    case = cases.make_case(cell, *shape, np.float32, vocabulary=vocabulary)
    expected = exact(case)
    poison = replace(case, **{name: np.full_like(array, np.nan)
                              for name, array in arrays_of(case).items()
                              if array.dtype.kind == "f"})
    for _ in range(3):  # working memory is kept for the next call of its size
        cases.forward(functional, poison, training=training)
        run(functional, poison)
        out, _ = cases.forward(functional, case, training=training)
        assert_as_exact(case, out, {name: expected[name] for name in out})
        assert_as_exact(case, run(functional, case), expected)


# --------------------------------------------------------------------------- numbers off the road


@pytest.mark.parametrize("reverse", [False, True], ids=["ahead", "reverse"])
@pytest.mark.parametrize("name", ["x", "weight_ih", "weight_hh", "h0", "c0", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", [cell for cell in cases.CELLS if cell != "rnn_relu"])
def test_saturating_numbers_stay_finite(isa, cell, dtype, name, reverse):
    case = cases.make_case(cell, *ODD, dtype)
    if getattr(case, name) is None:
        return
    case = replace(case, **{name: getattr(case, name) * 1e4})
    out, tape = cases.forward(functional, case, reverse=reverse)
    for key, array in (out | cases.backward(functional, case, tape)).items():
        assert np.isfinite(array).all(), key
    for key, array in out.items():  # |h| never grows beyond 1, |c| by at most 1 a step
        start = case.c0 if key == "cn" else case.h0
        assert np.abs(array).max() <= max(1, np.abs(start).max()) + len(case.dy), key


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_saturated_gates_are_the_references(isa, cell, dtype):
    case = cases.make_case(cell, *ODD, dtype)
    # an odd number of terms of +-1e4: no argument is near 0, where rounding would decide its sign
    case = replace(case, x=np.copysign(dtype(1e4), case.x),
                   weight_ih=np.copysign(dtype(1), case.weight_ih))
    assert_as_exact(case, run(functional, case), exact(case))


def assert_same_kinds(got, expected):
    """NaN where expected is NaN, the same infinity where it is infinite, finite elsewhere."""
    for name, array in expected.items():
        for kind in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(kind(got[name]), kind(array), f"{name}: {kind.__name__}")


def rows_along(name, array):
    """Return the array with the batch first, or None if all rows share it."""
    if name in ("y", "dx"):
        return array.swapaxes(0, 1)
    return array if name in ("hn", "cn", "dh0", "dc0") else None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("name", ["x", "h0", "c0", "dy", "dhn", "dcn"])
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_what_is_not_finite_stays_in_its_row(isa, cell, dtype, name, bad):
    case = cases.make_case(cell, *ODD, dtype)
    if getattr(case, name) is None:
        return
    array = getattr(case, name).copy()
    row = 3
    array[(1, row, 2) if array.ndim == 3 else (row, 2)] = bad
    clean = run(functional, case)
    case = replace(case, **{name: array})
    got = run(functional, case)
    for key, array in got.items():
        rows, whole = rows_along(key, array), rows_along(key, clean[key])
        if rows is not None:
            others = np.delete(rows, row, axis=0)
            assert others.tobytes() == np.delete(whole, row, axis=0).tobytes(), key
    with np.errstate(all="ignore"):
        assert_same_kinds(got, exact(case))


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("used", [True, False], ids=["used", "unused"])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_what_is_not_finite_in_an_embedding(isa, cell, used, bad):
    case = cases.make_case(cell, *ODD, vocabulary=6)
    case.x[case.x == 4] = 2
    case.x[1, 3] = 4 if used else 2
    embedding = case.embedding.copy()
    embedding[4, 2] = bad
    case = replace(case, embedding=embedding)
    with np.errstate(all="ignore"):
        assert_same_kinds(run(functional, case), exact(case))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_denormals_count_as_zero_or_as_they_are(isa, denormals, dtype, threads):
    tiny = np.finfo(dtype).tiny
    T, B, H = 3, 64, 48  # enough work for two threads
    halves = np.eye(H, dtype=dtype) / 2
    h0 = np.full((B, H), tiny, dtype)
    x = np.zeros((T, B, H), dtype)
    before = runtime.get_num_threads()
    runtime.set_num_threads(threads)
    try:
        for flush in (True, False):
            runtime.set_flush_denormals(flush)
            assert runtime.get_flush_denormals() is flush
            y, hn, tape = functional.rnn_forward(x, h0, halves, halves, nonlinearity="relu")
            _, dh0, _ = functional.rnn_backward(None, h0, tape)
            expected = np.zeros(T) if flush else tiny * 0.5 ** np.arange(1, T + 1)
            np.testing.assert_array_equal(y[:, 0, 0], expected)
            assert (y == y[:, :1, :1]).all()
            np.testing.assert_array_equal(hn, y[-1])
            np.testing.assert_array_equal(dh0, np.zeros_like(h0) if flush else h0 / 8)
            y, _, _ = functional.rnn_forward(x + tiny / 2, None, halves * 2, halves,
                                             nonlinearity="relu")
            assert (y[0] == (0 if flush else tiny / 2)).all()
            half = np.full(1, tiny) / dtype(2)
            assert half > 0, "the caller's floating-point state was not restored"
    finally:
        runtime.set_num_threads(before)
