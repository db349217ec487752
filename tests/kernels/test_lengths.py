"""Kernels with rows of different lengths, and with resets.

Their results are those of fastrnn.reference within rounding, and those of each episode alone, see
episodes.py, bit for bit. Letters: T steps, B batch, I input, H hidden.
"""

import cases
import episodes
import numpy as np
import pytest
from cases import assert_same_bytes, replace
from episodes import LENGTHS, PLANS, RESET, B, T

import fastrnn
from fastrnn import functional, reference
from fastrnn._kernels import runtime

ODD = (T, B, 11, 13)
V = 7  # rows of the embedding
COUNTS = (1, 2, 3, 8)

# (T, B, I, H), how long rows are, how often they begin anew: all are above the work
# that is worth a thread. Together they meet every way of walk.pyx.
SHAPES = {
    "units": ((9, 3, 40, 260), "any", 0),  # few rows, wide layers: the hidden units are split
    "units, resets": ((9, 2, 33, 256), "any", 0.2),
    "pairs of rows": ((300, 7, 9, 24), "any", 0),  # small steps; several chunks of projections
    "chunks": ((120, 9, 20, 70), "any", 0.01),
    "joined": ((12, 40, 20, 40), "any", 0),  # x and h in one chain, later fewer than 16 rows
    "joined chunks": ((60, 24, 40, 96), "falling", 0),
    "many episodes": ((30, 20, 17, 33), "any", 0.3),
    "a long row": ((200, 19, 10, 40), "one", 0.02),
}

per_cell = pytest.mark.parametrize("cell", cases.CELLS)
per_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=lambda dtype: dtype.__name__)
per_plan = pytest.mark.parametrize("plan", PLANS)
per_direction = pytest.mark.parametrize("reverse", [False, True], ids=["ahead", "reverse"])
per_source = pytest.mark.parametrize("vocabulary", [None, V], ids=["x", "embedding"])
per_reset_to = pytest.mark.parametrize("reset_to", ["zero", "initial"])


@pytest.fixture(autouse=True)
def restored():
    before = runtime.get_num_threads()
    yield
    fastrnn.set_num_threads(before)


def run(case, **options):
    return cases.run(functional, case, **options)


def assert_close(case, got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        backward = name not in ("y", "hn", "cn")
        cases.assert_close(name, got[name], array, case.tolerance(backward=backward))


def assert_alone(case, got, expected, reset_to="zero"):
    """Hold a call against its episodes: bit for bit what is not a sum over rows."""
    sums = {*cases.PARAMETERS, *(["dx"] if case.embedding is not None else []),
            *(["dh0", "dc0"] if reset_to == "initial" else [])}
    assert got.keys() == expected.keys()
    exact = got.keys() - sums
    assert_same_bytes({name: got[name] for name in exact}, {name: expected[name] for name in exact})
    for name in sums & got.keys():
        cases.assert_close(name, got[name], expected[name], case.tolerance(backward=True))


def plan_of(shape, how, chance, seed=0, reset_to="zero"):
    """Draw lengths, and flags that begin an episode with this chance."""
    rng = np.random.default_rng(seed)
    steps, batch = shape[:2]
    lengths = rng.integers(0, steps + 1, batch)
    if how == "falling":
        lengths = np.linspace(steps, 1, batch).astype(int)
    elif how == "one":
        lengths = np.minimum(lengths, 9)
        lengths[batch // 2] = steps
    plan = {"lengths": lengths}
    return plan | ({"reset": rng.random((steps, batch)) < chance, "reset_to": reset_to}
                   if chance else {})


def spoilt(case, lengths, value=np.nan):
    """Return a case whose x and dy have a value in the padding that no result may show."""
    past = episodes.padding(case, lengths)
    dy = case.dy.copy()
    dy[past] = value
    x = case.x.copy()
    x[past] = value if case.embedding is None else -(2**31)
    return replace(case, x=x, dy=dy)


# ------------------------------------------------------------------------ what the results are


@per_direction
@per_source
@per_plan
@per_dtype
@per_cell
def test_results_are_those_of_the_reference_and_of_each_episode(cell, dtype, plan, vocabulary,
                                                                reverse, isa):
    case = cases.make_case(cell, *ODD, dtype, vocabulary=vocabulary)
    options = {"reverse": reverse, **PLANS[plan]}
    if "lengths" in options:
        case = spoilt(case, LENGTHS)
    got = run(case, **options)
    assert_close(case, got, cases.run(reference, case, **options))
    assert_alone(case, got, episodes.alone(functional, case, **options),
                 options.get("reset_to", "zero"))
    out, tape = cases.forward(functional, case, training=False, **options)
    assert tape is None
    assert_same_bytes(out, {name: got[name] for name in out})


@per_source
@pytest.mark.parametrize("seed", range(25))
def test_random_lengths_and_resets_of_random_shapes(seed, vocabulary, isa):
    rng = np.random.default_rng(seed)
    shape = [int(rng.integers(0, most)) for most in (20, 30)]
    shape += [int(rng.integers(1, 40)) for _ in "IH"]
    cell, dtype = cases.CELLS[seed % 5], cases.DTYPES[seed % 2]
    case = cases.make_case(cell, *shape, dtype, seed, bool(rng.integers(2)), vocabulary=vocabulary)
    reset_to = str(rng.choice(["zero", "initial"]))
    plan = plan_of(shape, "any", float(rng.choice([0.05, 0.5, 1])), seed, reset_to)
    options = {"reverse": bool(rng.integers(2)), **plan}
    case = spoilt(case, plan["lengths"])
    got = run(case, **options)
    assert_close(case, got, cases.run(reference, case, **options))
    assert_alone(case, got, episodes.alone(functional, case, **options), reset_to)


@pytest.mark.parametrize("shape", SHAPES)
@per_dtype
@per_cell
def test_any_number_of_threads_has_the_same_bits(cell, dtype, shape):
    sizes, how, chance = SHAPES[shape]
    number = list(SHAPES).index(shape) + cases.CELLS.index(cell)
    case = cases.make_case(cell, *sizes, dtype, vocabulary=V if number % 3 == 2 else None)
    plan = plan_of(sizes, how, chance)
    options = {"reverse": bool(number % 2), **plan}
    case = spoilt(case, plan["lengths"])
    fastrnn.set_num_threads(1)
    expected = run(case, **options)
    if cell != "rnn_relu":  # a rounding beside the kink moves a whole gradient
        assert_close(case, expected, cases.run(reference, case, **options))
    assert_alone(case, expected, episodes.alone(functional, case, **options))
    for threads in COUNTS:
        fastrnn.set_num_threads(threads)
        assert_same_bytes(run(case, **options), expected, f"{threads} threads: ")
        out, _ = cases.forward(functional, case, training=False, **options)
        assert_same_bytes(out, {name: expected[name] for name in out}, f"{threads} threads: ")
    cases.fill_pool(lambda: run(case, **options), 2)


@pytest.mark.parametrize("shape", ["units", "joined chunks"])
@per_cell
def test_threads_may_change_between_forward_and_backward(cell, shape):
    sizes, how, chance = SHAPES[shape]
    case = cases.make_case(cell, *sizes, np.float32)
    plan = plan_of(sizes, how, chance)
    expected = run(case, **plan)
    for first, second in ((1, 8), (8, 1), (2, 3)):
        fastrnn.set_num_threads(first)
        out, tape = cases.forward(functional, case, **plan)
        fastrnn.set_num_threads(second)
        assert_same_bytes(out | cases.backward(functional, case, tape), expected)


@pytest.mark.parametrize("shape", ["units, resets", "joined", "many episodes"])
@per_cell
def test_instruction_sets_with_fma_have_the_same_bits(cell, shape):
    fused = [name for name, has in runtime.isa_names().items() if has and name != "scalar"]
    if len(fused) < 2:
        pytest.skip("this CPU has one instruction set with FMA")
    sizes, how, chance = SHAPES[shape]
    case = cases.make_case(cell, *sizes, np.float32)
    options = {"reverse": True, **plan_of(sizes, how, chance)}
    before = runtime.get_isa()
    try:
        results = []
        for name in fused:
            runtime.set_isa(name)
            results.append(run(case, **options))
    finally:
        runtime.set_isa(before)
    assert_same_bytes(results[1], results[0])


# ---------------------------------------------------------------------- what changes no result


@per_direction
@per_source
@per_cell
def test_full_lengths_and_no_flags_change_no_bit(cell, vocabulary, reverse):
    for sizes in (ODD, SHAPES["joined"][0]):
        case = cases.make_case(cell, *sizes, np.float32, vocabulary=vocabulary)
        expected = run(case, reverse=reverse)
        steps, batch = sizes[:2]
        plan = {"lengths": np.full(batch, steps), "reset": np.zeros((steps, batch), bool),
                "reset_to": "initial"}
        for names in (["lengths"], ["reset"], ["reset_to"], list(plan)):
            got = run(case, reverse=reverse, **{name: plan[name] for name in names})
            assert_same_bytes(got, expected, f"{names}: ")


@per_direction
@per_reset_to
@per_cell
def test_the_padding_is_neither_read_nor_counted(cell, reset_to, reverse):
    plan = {"lengths": LENGTHS, "reset": RESET, "reset_to": reset_to, "reverse": reverse}
    case = cases.make_case(cell, *ODD, np.float32)
    past = episodes.padding(case, LENGTHS)
    expected = run(case, **plan)
    for name in ("y", "dx"):
        assert expected[name].any()
        assert expected[name][past].tobytes() == bytes(expected[name][past].nbytes)
    for value in (np.nan, np.inf, 1e30):
        assert_same_bytes(run(spoilt(case, LENGTHS, value), **plan), expected, f"{value}: ")
    flipped = RESET ^ past
    assert (flipped != RESET).any()
    assert_same_bytes(run(case, **plan | {"reset": flipped}), expected)


@per_direction
@per_cell
def test_symbols_in_the_padding_may_be_anything(cell, reverse):
    plan = {"lengths": LENGTHS, "reset": RESET, "reverse": reverse}
    case = cases.make_case(cell, *ODD, np.float32, vocabulary=3)
    past = episodes.padding(case, LENGTHS)
    expected = run(case, **plan)
    for value in (-1, 3, 2**62, -(2**63)):
        x = case.x.copy()
        x[past] = value
        for given in (x, x.tolist(), np.asfortranarray(x)):
            assert_same_bytes(run(replace(case, x=given), **plan), expected, f"{value}: ")
    x = np.where(past, 1, 2)  # row 0 stands for nothing: it is not in any sum
    embedding = case.embedding.copy()
    embedding[:2] = np.nan
    got = run(replace(case, x=x, embedding=embedding), **plan)
    assert all(np.isfinite(array).all() for array in got.values())
    assert not got["dx"][:2].any()
    assert got["dx"][2].any()


@per_direction
@per_source
@per_reset_to
@per_cell
def test_rows_of_no_steps(cell, reset_to, vocabulary, reverse, threads):
    plan = {"lengths": np.zeros(B, int), "reset": np.ones((T, B), bool), "reset_to": reset_to,
            "reverse": reverse}
    case = cases.make_case(cell, *ODD, np.float32, vocabulary=vocabulary)
    expected = cases.run(reference, case, **plan)
    assert expected["hn"].tobytes() == case.h0.tobytes()
    for count in threads:
        fastrnn.set_num_threads(count)
        assert_same_bytes(run(case, **plan), expected)
    zero = replace(case, h0=None, c0=None)
    assert_same_bytes(run(zero, **plan), cases.run(reference, zero, **plan))
    silent = {"dhn": None, "dcn": None}
    got, tape = cases.forward(functional, case, **plan)
    got |= cases.backward(functional, replace(case, **silent), tape)
    assert not any(got[name].any() for name in got.keys() - {"hn", "cn"})


@per_reset_to
@per_cell
def test_no_step_no_row(cell, reset_to):
    for steps, batch in ((0, B), (T, 0), (0, 0)):
        case = cases.make_case(cell, steps, batch, 3, 4)
        plan = {"lengths": np.zeros(batch, int), "reset": np.ones((steps, batch), bool),
                "reset_to": reset_to}
        for reverse in (False, True):
            assert_same_bytes(run(case, reverse=reverse, **plan),
                              cases.run(reference, case, reverse=reverse, **plan))


@per_direction
@per_cell
def test_states_and_gradients_that_are_not_given_are_zero(cell, reverse):
    plan = {**PLANS["both to initial"], "reverse": reverse}
    case = cases.make_case(cell, *ODD)
    none, zeros = ({name: value(getattr(case, name)) for name in ("h0", "c0", "dhn", "dcn", "dy")
                    if getattr(case, name) is not None}
                   for value in (lambda _: None, np.zeros_like))
    out, tape = cases.forward(functional, replace(case, h0=None, c0=None), **plan)
    expected, other = cases.forward(functional, replace(case, **zeros), **plan)
    assert_same_bytes(out, expected)
    only_dy = {name: zeros[name] for name in zeros if name != "dy"}
    assert_same_bytes(
        cases.backward(functional, replace(case, dhn=None, dcn=None), tape.copy()),
        cases.backward(functional, replace(case, **only_dy), other.copy()))
    assert_same_bytes(cases.backward(functional, replace(case, **none | {
        name: getattr(case, name) for name in ("dhn", "dcn")}), tape),
        cases.backward(functional, replace(case, dy=np.zeros_like(case.dy)), other))


@per_direction
@per_cell
def test_nothing_flows_over_a_border(cell, reverse):
    """NaN before a border leaves what comes after it as it was, and NaN dy the other way."""
    case = cases.make_case(cell, *ODD)
    reset = np.zeros((T, B), bool)
    reset[3] = True
    options = {"reset": reset, "reverse": reverse}
    first, second = (slice(3, None), slice(3)) if reverse else (slice(3), slice(3, None))
    expected = run(case, **options)
    x = case.x.copy()
    x[first] = np.nan
    out, _ = cases.forward(functional, replace(case, x=x), **options)
    assert np.isnan(out["y"][first]).all()
    assert out["y"][second].tobytes() == expected["y"][second].tobytes()
    assert out["hn"].tobytes() == expected["hn"].tobytes()
    dy = case.dy.copy()
    dy[second] = np.nan
    got = run(replace(case, dy=dy, dhn=np.full_like(case.dhn, np.nan)), **options)
    assert np.isnan(got["dx"][second]).all()
    assert got["dx"][first].tobytes() == expected["dx"][first].tobytes()
    for name in {"dh0", "dc0"} & expected.keys():
        assert got[name].tobytes() == expected[name].tobytes()


# --------------------------------------------------------------------------- arrays and tapes


@per_source
@per_cell
def test_what_is_given_may_lie_anywhere(cell, vocabulary):
    case = cases.make_case(cell, *ODD, np.float32, vocabulary=vocabulary)
    plan = {"lengths": LENGTHS, "reset": RESET, "reset_to": "initial"}
    expected = run(case, **plan)

    def strided(array):
        return np.repeat(array, 2, axis=-1)[..., ::2]

    def wider(array):
        return np.concatenate([array, array], axis=-1)[..., : array.shape[-1]]

    def backwards(array):
        return array[::-1].copy()[::-1]

    def swapped(array):
        return array.astype(array.dtype.newbyteorder())

    for move in (strided, wider, backwards, swapped, np.asfortranarray, cases.read_only,
                 cases.misaligned):
        moved = replace(case, x=move(case.x), dy=move(case.dy))
        got = run(moved, **{name: a if isinstance(a, str) else move(a) for name, a in plan.items()})
        assert_same_bytes(got, expected, f"{move.__name__}: ")
    for given in (LENGTHS.tolist(), tuple(LENGTHS), LENGTHS.astype("u1"), LENGTHS.astype("i2")):
        assert_same_bytes(run(case, **plan | {"lengths": given, "reset": RESET.tolist()}), expected)


@per_direction
@per_cell
def test_lengths_and_flags_may_change_after_forward(cell, reverse):
    case = cases.make_case(cell, *ODD, np.float32)
    lengths, reset = LENGTHS.copy(), RESET.copy()
    plan = {"lengths": lengths, "reset": reset, "reset_to": "initial", "reverse": reverse}
    expected = run(case, **plan)
    out, tape = cases.forward(functional, case, **plan)
    lengths[:], reset[:] = 2, False
    assert_same_bytes(out | cases.backward(functional, case, tape), expected)


@per_source
@per_cell
def test_a_copied_tape_and_many_tapes_in_flight(cell, vocabulary):
    case = cases.make_case(cell, *ODD, np.float32, vocabulary=vocabulary)
    plans = [{**plan, "reverse": reverse} for plan in ({}, *PLANS.values())
             for reverse in (False, True)]
    expected = [run(case, **plan) for plan in plans]
    flights = [cases.forward(functional, case, **plan) for plan in plans]
    copies = [tape.copy() for _, tape in flights]
    for k in np.random.default_rng(0).permutation(len(plans)):
        out, tape = flights[k]
        assert_same_bytes(out | cases.backward(functional, case, tape), expected[k])
    for k, tape in enumerate(copies):
        assert_same_bytes(flights[k][0] | cases.backward(functional, case, tape), expected[k])


@per_cell
def test_gradients_are_added_and_dx_may_be_left_out(cell):
    case = cases.make_case(cell, *ODD)
    expected = run(case, **PLANS["both"])
    grads = {name: np.ones_like(getattr(case, name)) for name in cases.PARAMETERS}
    got = run(case, need_dx=False, grads=grads, **PLANS["both"])
    assert "dx" not in got
    for name, array in got.items():
        more = 1 if name in cases.PARAMETERS else 0
        cases.assert_close(name, array, expected[name] + more, case.tolerance(backward=True))
