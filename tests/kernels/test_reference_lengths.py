"""Lengths and resets of fastrnn.reference: each episode alone, differences, what has no effect."""

import itertools

import cases
import episodes
import numpy as np
import pytest
from cases import assert_same_bytes, replace
from episodes import LENGTHS, PLANS, RESET, B, T

from fastrnn import reference

TOLERANCE = 1e-6  # of a central difference in float64
SHAPE = (T, B, 3, 4)

per_cell = pytest.mark.parametrize("cell", cases.CELLS)
per_plan = pytest.mark.parametrize("plan", PLANS)
per_direction = pytest.mark.parametrize("reverse", [False, True], ids=["ahead", "reverse"])
per_source = pytest.mark.parametrize("vocabulary", [None, 3], ids=["x", "embedding"])
per_reset_to = pytest.mark.parametrize("reset_to", ["zero", "initial"])


def run(case, **options):
    return cases.run(reference, case, **options)


def assert_close(case, got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        backward = name not in ("y", "hn", "cn")
        cases.assert_close(name, got[name], array, case.tolerance(backward=backward))


# ------------------------------------------------------------------------ what the results are


@per_direction
@per_source
@per_plan
@per_cell
def test_each_episode_of_each_row_is_a_call_of_its_own(cell, plan, vocabulary, reverse):
    case = cases.make_case(cell, *SHAPE, vocabulary=vocabulary)
    got = run(case, reverse=reverse, **PLANS[plan])
    expected = episodes.alone(reference, case, reverse=reverse, **PLANS[plan])
    assert_close(case, got, expected)


@per_direction
@per_source
@pytest.mark.parametrize("seed", range(20))
def test_random_lengths_and_resets(seed, vocabulary, reverse):
    rng = np.random.default_rng(seed)
    steps, batch = (int(n) for n in rng.integers(0, 9, size=2))
    cell = cases.CELLS[seed % len(cases.CELLS)]
    dtype = cases.DTYPES[seed // len(cases.CELLS) % 2]
    case = cases.make_case(cell, steps, batch, 2, 3, dtype, seed=seed, vocabulary=vocabulary)
    plan = {
        "lengths": rng.integers(0, steps + 1, size=batch).astype(rng.choice(["u1", "i2", "i8"])),
        "reset": rng.random((steps, batch)) < rng.choice([0.1, 0.5, 1]),
        "reset_to": str(rng.choice(["zero", "initial"])),
    }
    got = run(case, reverse=reverse, **plan)
    assert_close(case, got, episodes.alone(reference, case, reverse=reverse, **plan))


def smooth_case(cell, reverse, vocabulary, plan):
    """Return a case; for relu one whose arguments all stay 100 steps away from its kink."""
    for seed in itertools.count():
        case = cases.make_case(cell, T, B, 2, 3, seed=seed, vocabulary=vocabulary)
        if cell != "rnn_relu" or all(
            cases.distance_to_kink(reference, episode.case, reverse) > 100 * cases.STEP
            for episode in episodes.episodes(case, reverse=reverse, **plan)
            if episode.steps.stop > episode.steps.start
        ):
            return case
    return None


@per_direction
@per_source
@per_plan
@per_cell
def test_every_gradient_against_central_differences(cell, plan, vocabulary, reverse):
    options = {"reverse": reverse, **PLANS[plan]}
    case = smooth_case(cell, reverse, vocabulary, PLANS[plan])
    got = run(case, **options)

    def loss():
        out, _ = cases.forward(reference, case, training=False, **options)
        return sum(np.vdot(getattr(case, f"d{name}"), array) for name, array in out.items())

    names = {"x": "dx", "embedding": "dx", "h0": "dh0", "c0": "dc0"}
    for name, array in case.inputs().items():
        expected = cases.differences(loss, array)
        cases.assert_close(name, got[names.get(name, name)], expected, TOLERANCE)


@per_direction
@per_cell
def test_a_row_of_no_steps_gives_back_its_state_and_gradient(cell, reverse):
    case = cases.make_case(cell, *SHAPE)
    got = run(case, reverse=reverse, lengths=np.zeros(B, int))
    expected = {name: np.zeros_like(array) for name, array in got.items()}
    expected |= {"hn": case.h0, "dh0": case.dhn}
    if cell == "lstm":
        expected |= {"cn": case.c0, "dc0": case.dcn}
    assert_same_bytes(got, expected)
    stateless, _ = cases.forward(reference, replace(case, h0=None, c0=None), reverse=reverse,
                                 lengths=np.zeros(B, int))
    assert not any(array.any() for array in stateless.values())


@per_cell
def test_no_step_no_row_and_no_symbol(cell):
    for steps, batch in ((0, B), (T, 0), (0, 0)):
        case = cases.make_case(cell, steps, batch, 3, 4)
        plan = {"lengths": np.zeros(batch, int), "reset": np.ones((steps, batch), bool)}
        for reverse in (False, True):
            for reset_to in ("zero", "initial"):
                got = run(case, reverse=reverse, reset_to=reset_to, **plan)
                assert_same_bytes(got, run(case, reverse=reverse))
    case = cases.make_case(cell, *SHAPE, vocabulary=3)
    case = replace(case, embedding=case.embedding[:0])
    got = run(case, lengths=np.zeros(B, int))
    assert got["dx"].shape == (0, 3)
    np.testing.assert_array_equal(got["hn"], case.h0)


# ---------------------------------------------------------------------- what changes no result


@per_direction
@per_source
@per_cell
def test_full_lengths_and_no_resets_change_no_bit(cell, vocabulary, reverse):
    case = cases.make_case(cell, *SHAPE, vocabulary=vocabulary)
    expected = run(case, reverse=reverse)
    plan = {"lengths": np.full(B, T), "reset": np.zeros((T, B), bool)}
    for names in (["lengths"], ["reset"], ["lengths", "reset"]):
        got = run(case, reverse=reverse, **{name: plan[name] for name in names})
        assert_same_bytes(got, expected, f"{names}: ")


@per_direction
@per_reset_to
@per_cell
def test_the_padding_is_neither_read_nor_counted(cell, reset_to, reverse):
    plan = {"lengths": LENGTHS, "reset": RESET, "reset_to": reset_to, "reverse": reverse}
    case = cases.make_case(cell, *SHAPE)
    past = episodes.padding(case, LENGTHS)
    expected = run(case, **plan)
    for name in ("y", "dx"):
        assert expected[name].any()
        assert not expected[name][past].any()
    for value in (np.nan, np.inf, 1e300):
        x, dy = case.x.copy(), case.dy.copy()
        x[past] = dy[past] = value
        assert_same_bytes(run(replace(case, x=x, dy=dy), **plan), expected, f"{value}: ")
    flipped = RESET ^ past
    assert (flipped != RESET).any()
    assert_same_bytes(run(case, **plan | {"reset": flipped}), expected)


@per_direction
@per_cell
def test_symbols_in_the_padding_may_be_anything(cell, reverse):
    plan = {"lengths": LENGTHS, "reset": RESET, "reverse": reverse}
    case = cases.make_case(cell, *SHAPE, vocabulary=3)
    past = episodes.padding(case, LENGTHS)
    expected = run(case, **plan)
    for value in (-1, 3, 2**62, -(2**63)):
        x = case.x.copy()
        x[past] = value
        assert_same_bytes(run(replace(case, x=x), **plan), expected, f"{value}: ")
    x = np.where(past, 1, 2)  # row 0 stands for nothing: it is not in any sum
    embedding = case.embedding.copy()
    embedding[:2] = np.nan
    got = run(replace(case, x=x, embedding=embedding), **plan)
    assert all(np.isfinite(array).all() for array in got.values())
    assert not got["dx"][:2].any()


@per_direction
@per_reset_to
@per_cell
def test_infinite_weights_do_not_make_nan_of_padding(cell, reset_to, reverse):
    # at x = 0 they give 0 * inf = NaN, which no result may contain
    case = cases.make_case(cell, *SHAPE)
    weight_ih = case.weight_ih.copy()
    weight_ih[:, 0] = np.inf
    case = replace(case, weight_ih=weight_ih)
    plan = {"lengths": np.zeros(B, int), "reset": np.ones((T, B), bool), "reset_to": reset_to}
    with np.errstate(invalid="ignore"):
        got = run(case, reverse=reverse, **plan)
    np.testing.assert_array_equal(got["hn"], case.h0)
    np.testing.assert_array_equal(got["dh0"], case.dhn)
    assert not any(got[name].any() for name in ("y", "dx", *cases.PARAMETERS))


@per_cell
def test_a_flag_at_step_zero(cell):
    case = cases.make_case(cell, *SHAPE)
    reset = np.zeros((T, B), bool)
    reset[0] = True
    expected = {reverse: run(case, reverse=reverse) for reverse in (False, True)}
    for reset_to in ("zero", "initial"):
        assert_same_bytes(run(case, reset=reset, reset_to=reset_to, reverse=True), expected[True])
    assert_same_bytes(run(case, reset=reset, reset_to="initial"), expected[False])
    zero = replace(case, h0=None, c0=None)
    states = {"dh0", "dc0"}
    expected = {name: np.zeros_like(array) if name in states else array
                for name, array in run(zero).items()}
    assert_same_bytes(run(case, reset=reset), expected)
    assert_same_bytes(run(zero, reset=reset, reset_to="initial"), run(zero))


@per_direction
@per_cell
def test_nothing_flows_over_a_border(cell, reverse):
    """NaN before a border leaves what comes after it as it was, and NaN dy the other way."""
    case = cases.make_case(cell, *SHAPE)
    reset = np.zeros((T, B), bool)
    reset[3] = True
    options = {"reset": reset, "reverse": reverse}
    first, second = (slice(3, None), slice(3)) if reverse else (slice(3), slice(3, None))
    expected = run(case, **options)
    x = case.x.copy()
    x[first] = np.nan
    with np.errstate(invalid="ignore"):
        out, _ = cases.forward(reference, replace(case, x=x), **options)
    assert np.isnan(out["y"][first]).all()
    assert out["y"][second].tobytes() == expected["y"][second].tobytes()
    assert out["hn"].tobytes() == expected["hn"].tobytes()
    dy = case.dy.copy()
    dy[second] = np.nan
    got = run(replace(case, dy=dy, dhn=np.full_like(case.dhn, np.nan)), **options)
    assert np.isnan(got["dx"][second]).all()
    for name in ("dh0", "dc0"):
        if name in expected:
            assert got[name].tobytes() == expected[name].tobytes()
    assert got["dx"][first].tobytes() == expected["dx"][first].tobytes()


@per_cell
def test_lengths_and_flags_may_change_after_forward(cell):
    case = cases.make_case(cell, *SHAPE)
    lengths, reset = LENGTHS.copy(), RESET.copy()
    plan = {"lengths": lengths, "reset": reset, "reset_to": "initial"}
    expected = run(case, **plan)
    out, tape = cases.forward(reference, case, **plan)
    lengths[:], reset[:] = 2, False
    assert_same_bytes(out | cases.backward(reference, case, tape), expected)
    frozen = {name: cases.read_only(array) for name, array in PLANS["both"].items()}
    assert_same_bytes(run(case, **frozen), run(case, **PLANS["both"]))


# --------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("plan", "error", "match"),
    [
        ({"lengths": np.array([4, 0, -1, 1, 5])}, ValueError,
         r"^gru: lengths has numbers in \[-1, 5\], expected \[0, 6\] for T = 6$"),
        ({"lengths": np.array([4, 0, 7, 1, 5])}, ValueError,
         r"^gru: lengths has numbers in \[0, 7\], expected \[0, 6\] for T = 6$"),
        ({"lengths": np.array([2**64 - 1] * B, np.uint64)}, ValueError, r"expected \[0, 6\]"),
        ({"lengths": LENGTHS.astype(float)}, TypeError,
         "^gru: lengths is float64, expected an array of integer$"),
        ({"lengths": LENGTHS > 1}, TypeError, "lengths is bool, expected an array of integer"),
        ({"lengths": LENGTHS.tolist()}, TypeError, "lengths is list, expected an array of integer"),
        ({"lengths": 3}, TypeError, "lengths is int, expected an array of integer"),
        ({"lengths": LENGTHS[:4]}, ValueError,
         r"^gru: lengths has shape \(4,\), expected \(B\) with B = 5$"),
        ({"lengths": LENGTHS[None]}, ValueError, r"lengths has shape \(1, 5\), expected \(B\)"),
        ({"reset": RESET.astype(int)}, TypeError,
         "^gru: reset is int64, expected an array of bool_?$"),
        ({"reset": RESET.tolist()}, TypeError, "reset is list, expected an array of bool_?"),
        ({"reset": True}, TypeError, "reset is bool, expected an array of bool_?"),
        ({"reset": RESET.T}, ValueError,
         r"^gru: reset has shape \(5, 6\), expected \(T, B\) with T = 6, B = 5$"),
        ({"reset": RESET[1:]}, ValueError, r"reset has shape \(5, 5\), expected \(T, B\)"),
        ({"reset": RESET[0]}, ValueError, r"reset has shape \(5,\), expected \(T, B\)"),
        ({"reset_to": "h0"}, ValueError, "^gru: reset_to is 'h0', expected 'zero' or 'initial'$"),
        ({"reset": RESET, "reset_to": None}, ValueError, "reset_to is None, expected 'zero' or"),
    ],
)
@per_direction
def test_errors_name_the_argument(plan, error, match, reverse):
    case = cases.make_case("gru", *SHAPE)
    with pytest.raises(error, match=match):
        cases.forward(reference, case, reverse=reverse, **plan)


def test_a_real_symbol_out_of_range_is_an_error():
    case = cases.make_case("gru", *SHAPE, vocabulary=3)
    x = case.x.copy()
    x[0, 1] = 9  # the row has no steps
    x[3, 0] = 3  # the last step of its row
    with pytest.raises(IndexError, match=r"gru: x has row numbers in \[0, 3\], expected \[0, 3\)"):
        cases.forward(reference, replace(case, x=x), lengths=LENGTHS)


# ------------------------------------------------------------------ PyTorch's packed sequences


@per_direction
@pytest.mark.parametrize("cell", [cell for cell in cases.CELLS if cell != "rnn_sigmoid"])
def test_lengths_are_pytorchs_packed_sequences(cell, reverse):
    torch = pytest.importorskip("torch")
    case = cases.make_case(cell, *SHAPE)
    lengths = np.maximum(LENGTHS, 1)  # torch takes no row of no steps
    kind, _, nonlinearity = cell.partition("_")
    options = {"nonlinearity": nonlinearity} if nonlinearity else {}
    layer = getattr(torch.nn, kind.upper())(3, 4, bidirectional=reverse, **options).double()
    suffix = "_l0_reverse" if reverse else "_l0"
    for name in cases.PARAMETERS:
        getattr(layer, name + suffix).data = torch.tensor(getattr(case, name))
    x, *states = (torch.tensor(a, requires_grad=True)
                  for a in (case.x, case.h0, case.c0) if a is not None)
    # torch has no reverse direction alone: its other one gets no gradient
    given = [torch.stack([state] * 2) if reverse else state[None] for state in states]
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    packed, final = layer(packed, given[0] if len(given) == 1 else tuple(given))
    y = torch.nn.utils.rnn.pad_packed_sequence(packed, total_length=T)[0][..., -4:]
    finals = [state[-1] for state in (final if isinstance(final, tuple) else (final,))]
    dstates = [d for d in (case.dhn, case.dcn) if d is not None]
    torch.autograd.backward((y, *finals), tuple(map(torch.tensor, (case.dy, *dstates))))
    expected = {"y": y, "dx": x.grad}
    for letter, state, last in zip("hc", states, finals, strict=False):
        expected |= {f"{letter}n": last, f"d{letter}0": state.grad}
    expected |= {name: getattr(layer, name + suffix).grad for name in cases.PARAMETERS}
    got = run(case, reverse=reverse, lengths=lengths)
    expected = {name: tensor.detach().numpy() for name, tensor in expected.items()}
    assert_close(case, got, expected)
