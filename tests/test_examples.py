"""The examples, in the small: each script's --quick run, and what it must show."""

import importlib
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("common", "unfolded", "digits"):
        monkeypatch.delitem(sys.modules, name, raising=False)
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
