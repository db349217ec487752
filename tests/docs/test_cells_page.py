"""docs/cells.md is what docs/make_cells.py makes of the zoo: no cell and no equation is missing."""

import importlib.util
import json
import re

import pytest
from pages import DOCS, run

from fastrnn import Layer, cells
from fastrnn.cells.grammar import parse

TEXT = (DOCS / "cells.md").read_text("utf-8")
NUMBERS = json.loads((DOCS / "cells.json").read_text())
ZOO = cells.definitions()
AGAIN = "run: python docs/make_cells.py --without-costs"


@pytest.fixture(scope="module")
def script():
    """Return docs/make_cells.py as a module."""
    spec = importlib.util.spec_from_file_location("make_cells", DOCS / "make_cells.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sections():
    """Return {heading: text}."""
    parts = re.split(r"^## (.*)$", TEXT, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_cell_of_the_zoo_has_a_section():
    assert list(sections()) == list(ZOO), AGAIN


@pytest.mark.parametrize("name", ZOO)
def test_a_section_has_the_definition(name):
    text = sections()[name]
    shown = re.search(r"^```text\n(.*?)^```", text, re.M | re.S)[1]
    definition = cells.cell(shown)
    assert re.findall(r"\S+", shown) == re.findall(r"\S+", ZOO[name].text), AGAIN
    assert definition.states == ZOO[name].states
    assert len(parse(shown)[1]) == len(ZOO[name].equations)
    assert ZOO[name].paper.rstrip(".") in text
    layer = Layer(ZOO[name], 128, 128)
    learned = sum(array.size for parameter, array in layer.parameters().items()
                  if parameter.removesuffix("_l0") not in layer.cell.fixed)
    assert f"\n{learned:,} parameters" in text
    fixed = layer.num_parameters - learned
    assert (f" and {fixed:,} numbers that are not learned" in " ".join(text.split())) == (fixed > 0)


def test_the_page_is_what_the_script_writes(script):
    assert script.page(ZOO, NUMBERS) == TEXT, AGAIN


def test_the_gradients_are_those_of_the_cells(script):
    assert set(NUMBERS["gradients"]) == {*ZOO, script.LSTM}, AGAIN
    for name, definition in ZOO.items():
        layer = Layer(definition, script.SIZE, script.SIZE, dtype="float64", seed=0)
        shown, found = NUMBERS["gradients"][name], script.left(script.gradients(layer))
        assert found == pytest.approx(shown, rel=0.5), name  # one digit


def test_every_cell_has_a_small_picture():
    pictures = {path.stem: path for path in (DOCS / "cells").iterdir()}
    assert set(pictures) == set(ZOO), AGAIN
    assert all(path.stat().st_size <= 20_000 for path in pictures.values())
    assert re.findall(r"^!\[.*\]\(cells/(\w+)\.png\)$", TEXT, re.M) == list(ZOO)


def test_costs_are_of_cells_of_the_zoo():
    for name, cost in NUMBERS["costs"].items():
        assert name in ZOO
        assert all(value > 0 for value in cost.values())
        assert set(cost) == {"forward", "training"}


def test_a_ratio_of_equal_calls_is_about_one(script):
    assert script.ratio(lambda: sum(range(20_000)), lambda: sum(range(20_000)), 9) == pytest.approx(
        1, rel=0.5)
    assert script.ratio(lambda: sum(range(200_000)), lambda: sum(range(2_000)), 9) > 10


def test_the_page_runs(capsys):
    names = run(DOCS / "cells.md")
    assert names["y"].shape[:2] == (100, 16)
    assert set(names["zoo"]) == set(ZOO)
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", ["cells.md", "equations.md"])
def test_links_lead_somewhere(page):
    text = (DOCS / page).read_text("utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert links
    assert [link for link in links if not (DOCS / link).exists()] == []
    headings = {re.sub(r"[^\w-]", "", h.lower().replace(" ", "-"))
                for h in re.findall(r"^#+ (.*)$", text, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
