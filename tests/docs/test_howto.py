"""The pages of docs/howto are programs: their blocks run, and assert what they show."""

import os
import re

import pytest
from pages import DOCS, blocks, run

os.environ.setdefault("KERAS_BACKEND", "numpy")  # the default is not installed
PAGES = sorted(path for path in (DOCS / "howto").glob("*.md") if path.name != "README.md")
NEEDS = {"classify": "sklearn", "keras": "keras", "onnx": "onnx", "learns-not": "matplotlib",
         "pytorch-programs": "torch"}


# of Keras: its variables as arrays
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page, tmp_path, monkeypatch):
    needed = pytest.importorskip(NEEDS[page.stem]) if page.stem in NEEDS else None
    if page.stem == "learns-not":
        needed.use("agg")
    monkeypatch.chdir(tmp_path)
    run(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_asserts_its_result(page):
    assert "assert " in "".join(code for _, code in blocks(page.read_text("utf-8")))


def test_the_index_has_every_page():
    index = (DOCS / "howto" / "README.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| \[(\S+)\]\(\1\)", index, re.M)) == [p.name for p in PAGES]


@pytest.mark.parametrize("page", [
    *sorted((DOCS / "howto").glob("*.md")), DOCS / "tutorial.md", DOCS / "results" / "README.md",
    DOCS.parent / "README.md", DOCS.parent / "examples" / "README.md"], ids=str)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing, missing
