"""fastrnn.functional against fastrnn.reference: every cell, dtype, instruction set and layout."""

import dataclasses
import functools
import inspect

import cases
import numpy as np
import pytest

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


def replace(case, **arrays):
    return dataclasses.replace(case, **arrays)


def run(module, case, *, need_dx=True, grads=None, **options):
    """Return outputs and gradients by name."""
    out, tape = cases.forward(module, case, **options)
    return out | cases.backward(module, case, tape, need_dx=need_dx, grads=grads)


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


def assert_same_bytes(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name


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


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def backwards(a):
    turn = (slice(None, None, -1),) * a.ndim
    return a[turn].copy()[turn]


def rows_backwards(a):
    """Negative strides but for the rows, which kernels read in place."""
    turn = (slice(None, None, -1),) * (a.ndim - 1)
    return a[turn].copy()[turn]


def misaligned(a):
    room = np.zeros(a.nbytes + 1, np.uint8)[1:]
    moved = room.view(a.dtype).reshape(a.shape)
    moved[...] = a
    assert not moved.flags.aligned or a.itemsize == 1
    return moved


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


# ------------------------------------------------------------------------------- the interface


@pytest.mark.parametrize("name", [n for n in reference.__all__ if "ward" in n])
def test_signatures_are_the_references(name):
    mine, theirs = (
        [(p.name, p.kind, p.default)
         for p in inspect.signature(getattr(module, name)).parameters.values()]
        for module in (functional, reference)
    )
    assert mine == theirs


@pytest.mark.parametrize("cell", cases.CELLS)
def test_a_tape_serves_once(cell):
    case = cases.make_case(cell, 3, 2, 3, 4)
    _, tape = cases.forward(functional, case)
    cases.backward(functional, case, tape)
    name = cell.partition("_")[0]
    match = rf"^{name}_backward: this tape has already served .*; run {name}_forward again"
    with pytest.raises(RuntimeError, match=match):
        cases.backward(functional, case, tape)


def refusals():
    """(change of the case, change of grads, error, match) of backward calls of a gru."""
    return [
        ({"dy": np.ones((2, 2, 4))}, {}, ValueError,
         r"dy has shape \(2, 2, 4\), expected \(3, 2, 4\)"),
        ({"dy": np.ones((3, 2, 4), np.float32)}, {}, TypeError, "dy is float32, expected float64"),
        ({"dy": "y"}, {}, TypeError, "dy is of type str, expected numbers"),
        ({"dhn": np.ones((2, 5))}, {}, ValueError,
         r"dhn has shape \(2, 5\), expected \(2, 4\)"),
        ({"dhn": (np.ones((2, 4)),) * 2}, {}, TypeError,
         "dhn is a tuple of 2, expected one array"),
        ({}, {"bias_hh": None}, TypeError, r"grads\['bias_hh'\] is None, expected .* float64"),
        ({}, {"bias_hh": np.ones(12, np.float32)}, TypeError,
         r"grads\['bias_hh'\] is float32, expected an array of float64"),
        ({}, {"bias_hh": np.ones(12, ">f8")}, TypeError,
         r"grads\['bias_hh'\] is >f8, expected an array of float64"),
        ({}, {"weight_ih": np.ones((3, 12))}, ValueError,
         r"grads\['weight_ih'\] has shape \(3, 12\), expected \(12, 3\)"),
        ({}, {"weight_ih": np.ones((3, 12)).T}, ValueError,
         r"grads\['weight_ih'\] must be C-contiguous, aligned and writeable"),
        ({}, {"weight_hh": read_only(np.ones((12, 4)))}, ValueError,
         r"grads\['weight_hh'\] must be C-contiguous, aligned and writeable"),
        ({}, {"weight_hh": misaligned(np.ones((12, 4)))}, ValueError,
         r"grads\['weight_hh'\] must be C-contiguous, aligned and writeable"),
        ({}, {"weight": np.ones((12, 4))}, ValueError,
         r"grads has keys \['bias_hh', .*'weight', .*\], expected \['bias_hh', 'bias_ih', "),
    ]


@pytest.mark.parametrize(("change", "grads", "error", "match"), refusals())
def test_a_refused_backward_leaves_the_tape_unspent(change, grads, error, match):
    case = cases.make_case("gru", 3, 2, 3, 4)
    expected = run(functional, case)
    out, tape = cases.forward(functional, case)
    given = {name: np.zeros_like(getattr(case, name)) for name in cases.PARAMETERS}
    with pytest.raises(error, match=match) as caught:
        cases.backward(functional, replace(case, **change), tape, grads=given | grads)
    assert_is_one_sentence(caught, "gru_backward")
    assert not any(array.any() for array in given.values())
    assert_same_bytes(out | cases.backward(functional, case, tape), expected)


def test_refused_lstm_gradients_name_their_half():
    case = cases.make_case("lstm", 3, 2, 3, 4)
    _, tape = cases.forward(functional, case)
    for dstate, error, match in [
        ((case.dhn, np.ones((2, 5))), ValueError, r"dstate\[1\] has shape \(2, 5\), expected"),
        (case.dhn, TypeError, r"dstate is ndarray of 2, expected a pair \(h, c\)"),
        ((case.dhn,), TypeError, r"dstate is tuple of 1, expected a pair \(h, c\)"),
        (5, TypeError, r"dstate is 5, expected a pair \(h, c\)"),
    ]:
        with pytest.raises(error, match=match) as caught:
            functional.lstm_backward(case.dy, dstate, tape)
        assert_is_one_sentence(caught, "lstm_backward")
    cases.backward(functional, case, tape)


def test_tapes_are_not_exchangeable():
    drawn = {cell: cases.make_case(cell, 3, 2, 3, 4) for cell in ("rnn_tanh", "lstm", "gru")}
    for made, case in drawn.items():
        _, tape = cases.forward(functional, case)
        for cell in drawn.keys() - {made}:
            name = cell.partition("_")[0]
            match = rf"^{name}_backward: tape is one of {made}, expected one of {name}_forward$"
            with pytest.raises(TypeError, match=match):
                cases.backward(functional, drawn[cell], tape)
        cases.backward(functional, case, tape)  # still good
    _, tape = cases.forward(reference, drawn["gru"])
    with pytest.raises(TypeError, match=r"^gru_backward: tape is .*, expected one of gru_fo"):
        cases.backward(functional, drawn["gru"], tape)
    _, tape = cases.forward(functional, drawn["gru"], training=False)
    match = "^gru_backward: tape is None, expected one of gru_forward with training=True$"
    with pytest.raises(TypeError, match=match):
        cases.backward(functional, drawn["gru"], tape)


def test_any_number_of_tapes_may_be_in_flight(isa):
    drawn = [
        cases.make_case(cell, *shape, dtype, seed)
        for seed, dtype in enumerate(cases.DTYPES)
        for cell in cases.CELLS
        for shape in (ODD, (2, 3, 7, 5), ODD)  # the same size twice: memory must not be shared
    ]
    expected = [run(functional, case) for case in drawn]
    flights = [cases.forward(functional, case) for case in drawn]
    cases.forward(functional, drawn[0])  # a tape that nobody wants
    order = np.random.default_rng(0).permutation(len(drawn))
    for k in order:
        out, tape = flights[k]
        assert_same_bytes(out | cases.backward(functional, drawn[k], tape), expected[k])


def assert_is_one_sentence(caught, owner):
    message = str(caught.value)
    assert message.startswith(f"{owner}: ")
    assert "\n" not in message
    assert len(message) < 200


FIVE_ROWS = np.ones((5, 3))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": np.ones((3, 2, 12))}, ValueError,
         r"x has shape \(3, 2, 12\), expected \(T, B, 3\)"),
        ({"x": np.ones((3, 3))}, ValueError, r"x has shape \(3, 3\), expected \(T, B, 3\)"),
        ({"x": np.ones((3, 2, 3), np.float32)}, TypeError, "x is float32, expected float64"),
        ({"x": np.ones((3, 2, 3), int)}, TypeError, "x is int64, expected float64"),
        ({"x": None}, TypeError, "x is None, expected numbers"),
        ({"x": [["a"]]}, TypeError, "x is of type list, expected numbers"),
        ({"x": [[1.0], [1.0, 2.0]]}, ValueError, "x is a ragged sequence, expected an array"),
        ({"h0": np.ones((2, 5))}, ValueError, r"h0 has shape \(2, 5\), expected \(2, 4\)"),
        ({"h0": np.ones((1, 2, 4))}, ValueError, r"h0 has shape \(1, 2, 4\), expected \(2, 4\)"),
        ({"h0": (np.ones((2, 4)),) * 2}, TypeError, "h0 is a tuple of 2, expected one array"),
        ({"weight_ih": np.ones((4, 3))}, ValueError,
         r"weight_ih has shape \(4, 3\), expected \(12, I\)"),
        ({"weight_ih": np.ones((12, 0))}, ValueError, "H = 4 and I = 0, expected at least 1"),
        ({"weight_ih": None}, TypeError, "weight_ih is None, expected numbers"),
        ({"weight_hh": np.ones((16, 4))}, ValueError,
         r"weight_hh has shape \(16, 4\), expected \(12, 4\)"),
        ({"weight_hh": np.ones(4)}, ValueError, r"weight_hh has shape \(4,\), expected \(G\*H, H"),
        ({"weight_hh": np.ones((12, 4), int)}, TypeError,
         "weight_hh is int64, expected an array of float32 or float64"),
        ({"weight_hh": np.ones((12, 4), np.float16)}, TypeError,
         "weight_hh is float16, expected an array of float32 or float64"),
        ({"weight_hh": [[1.0]]}, TypeError,
         "weight_hh is list, expected an array of float32 or float64"),
        ({"bias_hh": np.ones(4)}, ValueError, r"bias_hh has shape \(4,\), expected \(12,\)"),
        ({"bias_ih": np.ones(12, np.float32)}, TypeError, "bias_ih is float32, expected float64"),
        ({"embedding": FIVE_ROWS}, TypeError, "x is float64, expected whole numbers"),
        ({"embedding": FIVE_ROWS, "x": np.ones((3, 2), bool)}, TypeError, "x is bool, expected"),
        ({"embedding": FIVE_ROWS, "x": np.ones(3, int)}, ValueError,
         r"x has shape \(3,\), expected \(T, B\)"),
        ({"embedding": FIVE_ROWS, "x": np.full((3, 2), 5)}, IndexError,
         "x has .*numbers from 5 to 5, expected 0 to 4"),
        ({"embedding": FIVE_ROWS, "x": np.full((3, 2), -1)}, IndexError,
         "x has .*numbers from -1 to -1, expected 0 to 4"),
        ({"embedding": FIVE_ROWS, "x": np.full((3, 2), 2**63, np.uint64)}, IndexError,
         f"from {2**63} to {2**63}, expected 0 to 4"),
        ({"embedding": np.ones((5, 4)), "x": np.ones((3, 2), int)}, ValueError,
         r"embedding has shape \(5, 4\), expected \(V, 3\)"),
    ],
)
def test_errors_name_the_argument(change, error, match):
    case = cases.make_case("gru", 3, 2, 3, 4)
    with pytest.raises(error, match=f"^gru_forward: .*{match}") as caught:
        cases.forward(functional, replace(case, **change))
    assert_is_one_sentence(caught, "gru_forward")


@pytest.mark.parametrize(
    ("state", "error", "match"),
    [
        (np.ones((2, 4)), TypeError, r"state is ndarray of 2, expected a pair \(h, c\)"),
        ((np.ones((2, 4)),), TypeError, r"state is tuple of 1, expected a pair \(h, c\)"),
        (5, TypeError, r"state is 5, expected a pair \(h, c\)"),
        ((None, np.ones((2, 5))), ValueError,
         r"state\[1\] has shape \(2, 5\), expected \(2, 4\)"),
        ((np.ones((2, 4), np.float32), None), TypeError, r"state\[0\] is float32"),
    ],
)
def test_errors_of_an_lstm_state(state, error, match):
    case = cases.make_case("lstm", 3, 2, 3, 4)
    with pytest.raises(error, match=f"^lstm_forward: {match}") as caught:
        functional.lstm_forward(case.x, state, *(getattr(case, name) for name in cases.PARAMETERS))
    assert_is_one_sentence(caught, "lstm_forward")


def test_an_unknown_nonlinearity_is_an_error():
    case = cases.make_case("rnn_tanh", 3, 2, 3, 4)
    match = r"^rnn_forward: nonlinearity is 'softsign', expected one of \['tanh', 'relu', 'sigm"
    with pytest.raises(ValueError, match=match):
        cases.forward(functional, replace(case, cell="rnn_softsign"))


@pytest.mark.parametrize("tape", [5, "tape", object()], ids=lambda t: type(t).__name__)
def test_what_is_no_tape_is_an_error(tape):
    case = cases.make_case("gru", 3, 2, 3, 4)
    match = f"^gru_backward: tape is .*{type(tape).__name__}, expected one of gru_forward$"
    with pytest.raises(TypeError, match=match):
        cases.backward(functional, case, tape)
