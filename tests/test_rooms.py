"""The rules of the rooms that import-linter does not see: Cython's imports, sizes of files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "fastrnn" / "_kernels").glob("*.p[xy][xid]"))
SOURCES = [path for folder, endings in (("fastrnn", ("*.py", "*.pyx", "*.pxd")),
                                        ("src_c", ("*.c", "*.h")))
           for ending in endings for path in sorted((ROOT / folder).rglob(ending))
           if path.with_suffix(".pyx") == path or path.suffix != ".c" or folder == "src_c"]
LONGEST = 550  # lines: a longer file holds two things


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_kernels_import_nothing_of_the_rooms_above(path):
    names = re.findall(r"^\s*(?:from|import|cimport)\s+(fastrnn[\w.]*)(?:\s+import\s+(\w+))?",
                       path.read_text(), re.M)
    for module, name in names:
        assert f"{module}.{name}".startswith("fastrnn._kernels"), f"{path.name} imports {module}"


def test_the_sources_are_found():
    assert len(SOURCES) > 60
    assert any(path.suffix == ".pyx" for path in SOURCES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_holds_two_things(path):
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix in (".py", ".pyx")],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_carries_the_name_of_its_caller(path):
    assert not re.search(r"\bowner\s*:\s*str\b|\bstr owner\b", path.read_text())
