"""What a type checker knows of fastrnn: the files that carry types, and uses, right and wrong."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn

HERE = Path(__file__).parent
PACKAGE = Path(fastrnn.__file__).parent
WRONG = (HERE / "types_wrong.py").read_text().splitlines()


def test_every_compiled_module_has_a_stub():
    modules = [*PACKAGE.rglob("*.so"), *PACKAGE.rglob("*.pyd")]
    assert modules
    assert [path for path in modules
            if not path.with_name(path.name.split(".")[0] + ".pyi").exists()] == []


def test_the_package_says_that_it_has_types():
    assert (PACKAGE / "py.typed").exists()


def test_right_uses_run():
    runpy.run_path(str(HERE / "types_right.py"))


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Return a function that runs mypy over a file and returns its lines."""
    pytest.importorskip("mypy")
    pytest.importorskip("numpy", "2.3")  # types of earlier ones have no defaults
    folder = tmp_path_factory.mktemp("mypy")
    env = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    if PACKAGE.parent.name not in ("site-packages", "dist-packages"):  # there mypy finds it itself
        env["MYPYPATH"] = str(PACKAGE.parent)

    def run(path):
        found = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--config-file=",
             "--cache-dir", "cache", "--no-error-summary", str(path)],
            cwd=folder, env=env, capture_output=True, text=True)
        assert not found.stderr
        return found.stdout.splitlines()

    return run


def test_right_uses_have_their_types(check):
    assert check(HERE / "types_right.py") == []


def test_wrong_uses_are_refused(check, tmp_path):
    assert check(HERE / "types_wrong.py") == []
    # and without the comments each of them is an error, in its own line
    bare = tmp_path / "bare.py"
    bare.write_text("\n".join(line.split("  # type: ignore")[0] for line in WRONG))
    found = {int(match[1]) for line in check(bare) if (match := re.search(r":(\d+): error", line))}
    expected = {i for i, line in enumerate(WRONG, 1) if "  # type: ignore" in line}
    assert found == expected
    assert len(found) > 30
