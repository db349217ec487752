"""docs/tutorial.md is a program: its blocks run, and draw the pictures that it shows."""

import re

import pytest
from pages import DOCS, run


def test_the_tutorial_runs_and_draws_its_pictures(tmp_path, monkeypatch, capsys):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    page = DOCS / "tutorial.md"
    run(page)
    shown = set(re.findall(r"\]\(tutorial/(\w+\.png)\)", page.read_text("utf-8")))
    assert shown
    assert {p.name for p in tmp_path.iterdir()} == shown
    assert all((DOCS / "tutorial" / name).exists() for name in shown)
    assert "vanishing" in capsys.readouterr().out
