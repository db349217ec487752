"""Each example runs with --quick, and shows what it must show."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Return a function that imports a script afresh."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for script in EXAMPLES.glob("*.py"):
        monkeypatch.delitem(sys.modules, script.stem, raising=False)
    return importlib.import_module


def test_unfolded_every_derivative_is_the_finite_difference(example, capsys):
    assert example("unfolded").main([]) < 1e-7
    out = capsys.readouterr().out
    assert out.count("finite differences") == 10
    assert out.count("fastrnn's backward") == 3


def test_digits_are_read(example):
    pytest.importorskip("sklearn")
    found = example("digits").main(["--quick"])
    assert set(found) == {"RNN tanh", "RNN relu", "GRU", "LSTM"}
    assert all(accuracies[0] > 0.9 for accuracies in found.values()), found


def test_the_adding_problem_is_solved_by_gates(example):
    found = example("adding").main(["--quick"])
    best = {cell: min(error for _, error in curve) for (cell, _), curve in found.items()}
    assert best["GRU"] < 0.01, best
    assert best["LSTM"] < 0.03, best
    assert best["RNN tanh"] > 0.1, best


def test_gates_remember_what_they_copy(example):
    found, baseline = example("copying").main(["--quick"])
    last = {name: curve[-1][1] for name, curve in found.items()}
    assert last["GRU"] < 0.6 * baseline, last
    assert last["RNN tanh"] > 0.8 * baseline, last


def test_gradients_reach_as_far_as_the_cell_lets_them(example):
    found = example("distance").main(["--quick"])
    left = {name: before[-1] for name, (before, _) in found.items()}
    assert left["RNN relu, identity"] > 0.1, left
    assert left["RNN sigmoid"] < 1e-12, left
    assert left["RNN tanh"] < 1e-6, left
    assert all(np.isfinite(curve).all() for curves in found.values() for curve in curves)


def test_omega_solves_what_clipping_alone_does_not(example):
    found = example("temporal_order").main(["--quick"])
    wrong = {method: runs[0][0] for (method, _), runs in found.items()}
    assert wrong["SGD, clipped, Omega"] < 0.01, wrong
    assert wrong["SGD"] > 0.3, wrong
    assert wrong["SGD, clipped"] > 0.1, wrong


def test_characters_of_unseen_files_are_tagged(example):
    right, by_tag = example("tagging").main(["--quick"])
    assert right > 0.9
    assert by_tag["name"] > 0.9


def test_a_chaotic_series_is_forecast(example):
    found = example("forecasting").main(["--quick"])
    assert found["GRU"][0] < 0.02, found
    assert found["GRU"][1] < 0.7 * found["the mean"][1], found
    assert found["the last value"][0] > 0.1, found


def test_digits_are_drawn_from_their_names(example):
    pytest.importorskip("sklearn")
    assert example("drawing").main(["--quick"]) >= 0.8


def test_an_encoder_and_a_decoder_add(example):
    assert example("sums").main(["--quick"]) > 0.8
