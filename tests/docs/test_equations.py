"""docs/equations.md: its blocks run and print what it shows, and its tables are the language's."""

import re

import numpy as np
import pytest
from pages import DOCS, run

from fastrnn.cells import cell
from fastrnn.cells.evaluate import forward
from fastrnn.cells.grammar import DEEPEST, LONGEST, LONGEST_NAME
from fastrnn.cells.tree import FUNCTIONS, KINDS, MASKS

PAGE = DOCS / "equations.md"
TEXT = PAGE.read_text("utf-8")


def rows(heading):
    """Return the cells of the first table below a heading."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\|(.*)\|$", section, re.M)[2:]
    return [[part.strip() for part in line.split(" | ")] for line in lines]


def test_the_page_runs_and_prints_what_it_shows(capsys):
    shown = re.findall(r"^```text\n(.*?)^```", TEXT, re.M | re.S)
    run(PAGE)
    assert capsys.readouterr().out == "".join(shown)
    assert len(shown) >= 4


def test_every_function_is_in_the_tables_with_its_defaults():
    calls = re.findall(r"`(\w+)\(([^`]*)\)`", "\n".join(
        row[0] for heading in ("Operators and functions", "Masks") for row in rows(heading)))
    assert {name for name, _ in calls} == set(FUNCTIONS)
    for name, arguments in calls:
        given = arguments.split(", ")
        function = FUNCTIONS[name]
        defaults = tuple(float(a.split("=")[1]) for a in given if re.search(r"\w=\S", a))
        assert (len(given), defaults) == (function.most, function.defaults), name


PYTHON = [("\u2212", "-"), ("\u00b7", "*"), ("\u00b2", "**2"), ("\u00b3", "**3"),
          ("0.044715 a", "0.044715 * a"), ("\u221a(2/\u03c0)", "(2 / 3.141592653589793) ** 0.5"),
          ("\u221a(", "sqrt(")]


@pytest.mark.parametrize("row", [
    row for row in rows("Operators and functions") if re.match(r"`\w+\(a[^`]*\)`$", row[0])
    and not re.search("sum|mean|where", row[0])], ids=lambda row: row[0])
def test_a_formula_is_what_the_function_computes(row):
    """The formula of the table, as a cell of its own, gives what the function gives."""
    call, formula = row[0].strip("`"), row[1].partition(":")[0]
    numbers = dict(re.findall(r"(\w+)=([^,)]+)", call)) | {
        "alpha": "0.7", "beta": "0.4", "low": "-0.3", "high": "0.6"}
    call = re.sub(r"(\w+)=[^,)]+", r"\1", call)
    for sign, written in PYTHON:
        formula = formula.replace(sign, written)
    formula = re.sub(r"^(.*) if (.*), else (.*)$", r"where(\2, \1, \3)", formula)
    for name, number in numbers.items():
        call, formula = (re.sub(rf"\b{name}\b", number, text) for text in (call, formula))
    x = np.random.default_rng(0).normal(0, 2, (3, 4, 5))
    came, expected = (
        forward(cell(f"a = x + 0 * h\nh = {text}"), x, None, {}, sizes={"H": 5})[0]
        for text in (call, formula))
    np.testing.assert_allclose(came, expected, rtol=1e-12, atol=1e-14)
    assert np.ptp(came) > 0


EQUATIONS = {  # that use what a line declares
    "size P": "k[P] = W x\nh = tanh(V k + U h)", "constant alpha": "h = tanh(W x + alpha * h)",
    "learned p": "h = tanh(W x + p * h)", "learned p[P]": "h = tanh(W x + V p + h)",
    "weight U": "h = tanh(W x + U h)", "fixed U": "h = tanh(W x + U h)",
    "state s[P]": "s = W x + V s\nh = tanh(K s)", "output y": "h = tanh(W x + U h)\ny = h"}
NUMBERS = {"(gamma)": "(0.1)", "(rate)": "(0.1)", "(n)": "(2)", "(density, radius)": "(0.5, 0.9)"}


def test_every_declaration_is_in_the_table():
    lines = [row[0].strip("`") for row in rows("Declarations")]
    assert {line.split()[0] for line in lines} == set(KINDS)
    for line in lines:
        text = line
        for named, number in NUMBERS.items():
            text = text.replace(named, number)
        size = "size P = 4\n" if "[P]" in line else ""
        definition = cell(f"{size}{text}\n{EQUATIONS[line.partition(' =')[0]]}")
        assert definition.output == ("y" if line == "output y" else "h")


def test_masks_are_as_the_table_says():
    assert {row[0].strip("`").partition("(")[0] for row in rows("Masks")} == set(MASKS)
    for call, _, evaluation, drawn in rows("Masks"):
        text = call.strip("`").replace("(p)", "(0.25)")
        definition = cell(f"h = {text} + 0 * (x + h)")
        y, _ = forward(definition, np.zeros((2, 1, 3)), None, {}, sizes={"H": 3})
        assert (y == (1 if evaluation == "1" else 0.25)).all()
        once = definition.masks[0].function.startswith("sequence")
        assert drawn == ("once a sequence" if once else "each step")


def test_the_limits_are_those_of_the_parser():
    limits = TEXT.split("\n## Limits\n")[1]
    for number in (f"{LONGEST:,} characters", f"at most {LONGEST_NAME}", f"at most {DEEPEST} deep"):
        assert number in " ".join(limits.split())
