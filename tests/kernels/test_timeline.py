"""Tables of fastrnn._kernels.timeline against an obvious count in Python.

Letters: T steps, B sequences, N rows of all steps together.
"""

import copy
import itertools
import pickle

import episodes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrnn._kernels.timeline import GRIDS, LAYOUTS, Timeline

per_layout = pytest.mark.parametrize("layout", LAYOUTS)


def cut(lengths, reset):
    """Return (sequence, first step, steps) of every episode, the longest first."""
    found = []
    for b, n in enumerate(lengths):
        borders = [0, *(t for t in range(1, n) if reset is not None and reset[t, b]), n]
        found += [(b, begin, end - begin)
                  for begin, end in itertools.pairwise(borders) if end > begin]
    return sorted(found, key=lambda episode: -episode[2])  # equals stay in their order


def walked(lengths, reset, reverse):
    """Return (step, sequence) of every row of the walk, in its order."""
    order = cut(lengths, reset)
    return [(begin + (n - 1 - t if reverse else t), b)
            for t in range(max((n for _, _, n in order), default=0))
            for b, begin, n in order if t < n]


def placed(layout, T, lengths, reset):
    """Return the number of (step, sequence) in a layout, for all that it has."""
    B = len(lengths)
    everything = {
        "time": lambda: [(t, b) for t in range(T) for b in range(B)],
        "batch": lambda: [(t, b) for b in range(B) for t in range(T)],
        "packed": lambda: walked(lengths, None, False),  # as torch: without resets
        "sequences": lambda: [(t, b) for b in range(B) for t in range(lengths[b])],
        "walk": lambda: walked(lengths, reset, False),
    }
    return {place: number for number, place in enumerate(everything[layout]())}


def rows_of(timeline, layout, reverse):
    rows = timeline.rows(layout, reverse)
    if rows is None:
        return list(range(timeline.N))
    assert rows.dtype == np.int32
    assert rows.shape == (timeline.N,)
    return rows.tolist()


def assert_tables(T, lengths, reset, to_initial=False):
    timeline = Timeline(np.array(lengths, np.int64), T, reset, to_initial)
    order = cut(lengths, reset)
    assert timeline.T == T
    assert len(lengths) == timeline.B
    assert timeline.lengths.tolist() == list(lengths)
    assert timeline.steps == max((n for _, _, n in order), default=0)
    assert sum(lengths) == timeline.N
    for layout in LAYOUTS:
        places = placed(layout, T, lengths, reset)
        assert timeline.size(layout) == len(places)
        for reverse in (False, True):
            expected = [places[place] for place in walked(lengths, reset, reverse)]
            assert rows_of(timeline, layout, reverse) == expected, (layout, reverse)
            again = timeline.rows(layout, reverse)  # made once
            assert again is None or again is timeline.rows(layout, reverse)
    return timeline


@st.composite
def grids(draw):
    """Draw T, lengths and flags."""
    T, B = draw(st.integers(0, 9)), draw(st.integers(0, 8))
    lengths = draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
    chance = draw(st.sampled_from([0, 0.1, 0.5, 1]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return T, lengths, rng.random((T, B)) < chance


@given(grid=grids(), to_initial=st.booleans(), marked=st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_where_every_row_lies_in_every_layout(grid, to_initial, marked):
    T, lengths, reset = grid
    assert_tables(T, lengths, reset if marked else None, to_initial)


@pytest.mark.parametrize("name", episodes.PLANS)
def test_the_plans_of_the_other_tests(name):
    plan = episodes.PLANS[name]
    lengths = plan.get("lengths", np.full(episodes.B, episodes.T))
    assert_tables(episodes.T, lengths.tolist(), plan.get("reset"),
                  plan.get("reset_to") == "initial")


def test_many_rows_of_many_steps():
    rng = np.random.default_rng(0)
    T, B = 70, 41
    assert_tables(T, rng.integers(0, T + 1, B).tolist(), rng.random((T, B)) < 0.05)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_what_a_flag_at_the_first_step_and_in_the_padding_is(dtype):
    """`resets` is whether some row does not go on from one state to the next."""
    lengths = np.array([3, 0, 2], dtype)

    def resets(*places, to_initial=False):
        reset = np.zeros((4, 3), bool)
        for place in places:
            reset[place] = True
        return Timeline(lengths, 4, reset, to_initial).resets

    assert not Timeline(lengths, 4).resets
    assert not resets((3, 0), (1, 1), (2, 2))  # padding
    assert resets((2, 0))  # the last step of its row
    assert resets((0, 0))
    assert not resets((0, 0), to_initial=True)  # it begins with the initial state anyway
    assert resets((1, 0), to_initial=True)


def test_in_its_own_order_no_table_is_made():
    lengths, reset = np.array([2, 4, 4]), np.zeros((4, 3), bool)
    assert Timeline(lengths, 4).rows("walk") is None
    assert Timeline(lengths, 4, reset).rows("packed") is None
    assert Timeline(lengths, 4).rows("packed", True) is not None
    reset[1, 1] = True
    cut_up = Timeline(lengths, 4, reset)
    assert cut_up.rows("walk") is None
    assert cut_up.rows("packed") is not None


@per_layout
def test_sizes(layout):
    timeline = Timeline(np.array([2, 0, 4]), 5)
    assert timeline.size(layout) == (15 if layout in GRIDS else 6)


def test_it_never_changes():
    lengths, reset = np.array([2, 0, 4, 4]), np.zeros((5, 4), bool)
    reset[1, 2] = True
    timeline = Timeline(lengths, 5, reset)
    n, flags = lengths.tolist(), reset.copy()
    lengths[:], reset[:] = 1, False
    assert timeline.lengths.tolist() == n
    places = placed("batch", 5, n, flags)
    expected = [places[place] for place in walked(n, flags, True)]
    assert rows_of(timeline, "batch", True) == expected
    with pytest.raises(ValueError, match="read-only"):
        timeline.lengths[0] = 3
    for name in ("T", "B", "lengths", "resets", "N", "steps"):
        with pytest.raises(AttributeError):
            setattr(timeline, name, 1)


def test_it_is_its_own_copy():
    timeline = Timeline(np.array([2, 1]), 3)
    assert copy.copy(timeline) is copy.deepcopy(timeline) is timeline
    with pytest.raises(TypeError, match="a Timeline cannot be pickled"):
        pickle.dumps(timeline)


def test_more_rows_than_their_numbers_can_hold_are_refused():
    large = Timeline(np.array([3, 0]), 2**30)
    for layout in GRIDS:
        with pytest.raises(MemoryError, match=r"^1073741824 steps of 2 sequences .* 2\*\*31 plac"):
            large.rows(layout)
        assert Timeline(np.array([3]), 2**31 - 1).rows(layout).tolist() == [0, 1, 2]
    for layout in ("packed", "sequences", "walk"):  # their rows are few
        assert large.rows(layout, True).tolist() == [2, 1, 0]
    with pytest.raises(MemoryError, match=r"^lengths have a sum of 2147483648, expected less"):
        Timeline(np.full(2, 2**30), 2**30)
