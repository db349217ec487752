"""The long runs of tests/soak.py in short, and that their checks can fail."""

import numpy as np
import pytest
import soak

per_cell = pytest.mark.parametrize("cell", soak.CELLS)


@pytest.mark.parametrize("single", [False, True], ids=["block", "single"])
@per_cell
def test_a_stream_stays_beside_float64(cell, single):
    figures = soak.run_stream(cell, 20_000, single, piece=1_000)
    assert figures["steps"] == 20_000
    assert 0 < figures["error"] <= figures["bound"] < 1e-4


@per_cell
def test_a_wrong_weight_is_beyond_the_bound(monkeypatch, cell):
    layer, wide, bounds = soak.twins(cell)
    wide.train()
    wide.flat[0] += 1e-2
    monkeypatch.setattr(soak, "twins", lambda cell: (layer, wide.eval(), bounds))
    with pytest.raises(AssertionError, match="bounds"):
        soak.run_stream(cell, 1_000, False, piece=1_000)


@per_cell
def test_an_error_grows_no_faster_than_the_bound_says(cell):
    layer, wide, _ = soak.twins(cell)
    weights = layer.state_dict()
    growth, _ = soak.bound(cell, weights["weight_ih_l0"], weights["weight_hh_l0"])
    rng = np.random.default_rng(0)
    B = 500
    streams, shape = (wide.stream(B), wide.stream(B)), (1, B, soak.H)
    for stream in streams:
        h, c = rng.uniform(-1, 1, (2, *shape))
        stream.state = (h, c) if cell == "lstm" else h
    apart = differences(*streams)
    for x in rng.uniform(-1, 1, (20, B, soak.I)):
        for stream in streams:
            stream(x)
        apart = growth @ apart
        assert (differences(*streams) <= apart).all()


def differences(one, other):
    """Return the largest difference of each state."""
    pairs = zip(soak.states_of(one), soak.states_of(other), strict=True)
    return np.array([np.abs(a - b).max() for a, b in pairs])


def test_a_training_stays_finite():
    figures = soak.run_training(1_000)
    assert figures["loss"] < figures["loss at half"] < 0.05  # without a memory: 1/12


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e-39])
def test_bad_numbers_are_seen(bad):
    soak.check_numbers("y", np.zeros(3, np.float32))
    with pytest.raises(AssertionError, match=r"^y: .*(not finite|denormal)"):
        soak.check_numbers("y", np.array([1, bad, 0], np.float32))


def test_growing_memory_is_seen():
    with pytest.raises(AssertionError, match="memory grew"):
        soak.check_memory(1_000_000, 6_000_000)
