"""docs/tutorial.md is a program: its blocks run, and draw the pictures that it shows."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"


def test_the_tutorial_runs_and_draws_its_pictures(tmp_path, monkeypatch, capsys):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    exec(compile(program, str(PAGE), "exec"), {"__name__": "tutorial"})
    shown = set(re.findall(r"\]\(tutorial/(\w+\.png)\)", text))
    assert shown
    assert {p.name for p in tmp_path.iterdir()} == shown
    assert all((PAGE.parent / "tutorial" / name).exists() for name in shown)
    assert "vanishing" in capsys.readouterr().out
