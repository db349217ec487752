"""tools/coverage: how counts of C become counts of lines of Cython and of templates."""

import importlib.machinery
import importlib.util

import pytest
from test_package import ROOT

C = """\
/* "fastrnn/_kernels/x.pyx":3
 * def f(n):             # <<<<<<<<<<<<<<
*/
static int f(int n) {
  /* "fastrnn/_kernels/x.pyx":4
 *     if n > 1:             # <<<<<<<<<<<<<<
*/
  __pyx_t_1 = n > 1;
  if (__pyx_t_1) {
    /* "fastrnn/_kernels/x.pyx":5
 *         n = g(n)             # <<<<<<<<<<<<<<
*/
    n = g(n); if (unlikely(n < 0)) __PYX_ERR(0, 5, error)
  }
  /* "fastrnn/_kernels/x.pyx":3
 * def f(n):             # <<<<<<<<<<<<<<
*/
  /* function exit code */
  error: n = 0;
  return n;
}
static void utility(void) {
  other();
}
""".splitlines()


@pytest.fixture(scope="module")
def tool():
    path = ROOT / "tools" / "coverage"
    loader = importlib.machinery.SourceFileLoader("coverage_tool", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def gcov_line(text, count, *branches):
    number = next(i for i, line in enumerate(C, 1) if text in line)
    return {"line_number": number, "count": count, "branches": [{"count": n} for n in branches]}


def test_a_statement_of_cython_has_the_count_of_its_c(tool):
    lines = [gcov_line("static int f", 7), gcov_line("__pyx_t_1 = n", 7),
             gcov_line("if (__pyx_t_1)", 7, 0, 7), gcov_line("n = g(n); if", 0, 0, 0),
             gcov_line("error:", 7), gcov_line("return n;", 7), gcov_line("other();", 9)]
    found = {number: (count, ways) for _, number, count, ways in tool.statements(C, lines)}
    assert found == {3: (7, []), 4: (7, [0, 7]), 5: (0, [])}


def test_a_line_is_covered_by_one_copy_and_the_others_are_named(tool):
    lines = tool.Lines()
    for number, avx2, scalar in ((1, 5, 5), (2, 5, 0), (3, 0, 0)):
        lines.add(number, avx2, name="avx2")
        lines.add(number, scalar, name="scalar")
    assert lines.missed() == [3]
    assert lines.elsewhere() == {"scalar": [2]}
    assert lines.totals() == (3, 2, 0, 0)


def test_both_ways_of_a_condition_must_be_taken_by_one_copy(tool):
    lines = tool.Lines()
    for number, counts in ((1, (3, 0, 0, 4)), (2, (3, 0, 2, 4)), (3, (1, 1))):
        line = {"branches": [{"count": n} for n in counts]}
        lines.add(number, 1, tool.ways_of_c(line))
    assert lines.half() == [1]
    assert lines.totals() == (3, 3, 6, 5)


def test_lines_without_code_between_do_not_split_a_region(tool):
    assert tool.regions([3, 4, 8, 12], {3, 4, 8, 10, 12}) == [[3, 8], [12, 12]]
    assert tool.regions([], {1}) == []


def test_a_region_needs_a_reason(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "SOURCE", tmp_path)
    (tmp_path / "x.c").write_text("a\nb\nc\n")
    lines = tool.Lines()
    for number, count in ((1, 1), (2, 0), (3, 1)):
        lines.add(number, count)
    table = list(tool.uncovered({"x.c": lines}, {"x.c": {"b": "because"}}))
    assert table[2:] == ["| x.c:2 | `b` | because |"]
    assert "no reason" in list(tool.uncovered({"x.c": lines}, {"x.c": {"c": "because"}}))[2]
