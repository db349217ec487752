"""The kept files of each loader, and changes of them, raise declared errors alone."""

import importlib
import random
import re

import pytest

from fuzz.loaders import LOADERS, NEEDS, check
from fuzz.mutations import mutated
from fuzz.seeds import FOLDER, read

CHANGES = 200  # of each file


def files_of(name):
    pytest.importorskip(NEEDS.get(name, "numpy"))
    return read(name)


@pytest.mark.parametrize("name", LOADERS)
def test_the_kept_files(name):
    files = files_of(name)
    whole = [check(name, data, memory=True) for data in files.values()]
    assert any(whole)
    assert any(not check(name, data[: len(data) // 2]) for data in files.values())


@pytest.mark.parametrize("name", LOADERS)
def test_seeded_changes_of_the_kept_files(name):
    found = files_of(name)
    files = [data for key, data in found.items() if not re.fullmatch("[0-9a-f]{12}", key)]
    for number, data in enumerate(files):
        rng = random.Random(number)
        for change in range(CHANGES):
            check(name, mutated(data, files, rng), memory=change % 20 == 0)


def test_the_corpus_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 300_000
    assert {path.name for path in FOLDER.iterdir()} == set(LOADERS)


@pytest.mark.parametrize(("bad", "match"), [
    (lambda data: {}["a"], "a"), (lambda data: (_ for _ in ()).throw(ValueError("no")), "name the"),
    (lambda data: bytearray(20_000_000).hex(), "bytes of memory")])
def test_a_fault_is_found(monkeypatch, bad, match):
    loaders = importlib.import_module("fuzz.loaders")
    monkeypatch.setitem(loaders.LOADERS, "rtneural", bad)
    with pytest.raises((KeyError, AssertionError), match=match):
        check("rtneural", b"{}", memory=True)
