"""Text: files are found once, read as they are, and what cannot be read is named."""

import errno
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from fastrnn.training import text

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX's files")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0,
                          reason="only root can become nobody")


@pytest.fixture
def corpus(tmp_path):
    for k in range(4):
        (tmp_path / f"{k}.txt").write_text(f"line of file {k}\n" * 100)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "last").write_bytes(b"\xe9t\xe9 in Latin-1")
    (tmp_path / "binary").write_bytes(b"x" * 8000 + b"\0")
    (tmp_path / ".hidden").write_text("x" * 10000)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x" * 10000)
    return tmp_path


def names(paths):
    return [path.name for path in text.find_files(paths)]


def test_files_of_a_folder_but_hidden_and_binary_ones(corpus):
    assert names([corpus]) == ["0.txt", "1.txt", "2.txt", "3.txt", "last"]
    for one in (corpus / "binary", corpus / ".hidden", str(corpus / "binary")):
        assert text.find_files([one]) == text.find_files(one) == [pathlib.Path(one)]
    assert names([corpus / ".git"]) == ["config"]
    assert len(text.find_files()) > 100
    assert all(f.suffix == ".py" for f in text.find_files())


@posix
def test_a_file_counts_once_however_often_it_is_named(corpus, monkeypatch):
    monkeypatch.chdir(corpus)
    assert names(["0.txt", "0.txt", "./0.txt", corpus / "0.txt", "below/../0.txt"]) == ["0.txt"]
    assert names(["2.txt", corpus, "below", "3.txt"]) == [
        "2.txt", "0.txt", "1.txt", "3.txt", "last"]
    (corpus / "4.txt").symlink_to("0.txt")
    os.link("1.txt", "5.txt")
    (corpus / "again").symlink_to("below")  # a link to a folder is not followed
    assert names([corpus]) == ["0.txt", "1.txt", "2.txt", "3.txt", "last"]
    assert len(text.read(text.find_files([corpus, "4.txt", "again"]))) == 4 * 1500 + 14


def test_reading_joins_all_files_in_an_order_of_the_seed(corpus):
    found = text.find_files([corpus])
    whole = text.read(found, 0)
    assert len(whole) == 4 * 1500 + 14  # nothing follows the file that lacks a line's end
    assert whole.tobytes().endswith(b"\xe9t\xe9 in Latin-1")
    other = text.read(found, 1).tobytes()
    assert b"\xe9t\xe9 in Latin-1\n" in other
    assert not other.endswith(b"Latin-1")
    assert len(text.read(found, 1, b"")) == 4 * 1500 + 14
    np.testing.assert_array_equal(whole, text.read(found, 0))
    assert any(not np.array_equal(whole, text.read(found, s)) for s in range(1, 5))
    train, held_out = text.split(whole)
    assert len(held_out) == len(whole) // 20
    np.testing.assert_array_equal(np.concatenate([train, held_out]), whole)


def test_only_the_beginning_of_a_file_is_read_to_see_whether_it_is_text(corpus, monkeypatch):
    large = corpus / "large"
    with large.open("wb") as file:
        file.write(b"x" * 8192)
        file.truncate(10**12)  # a terabyte of zeros, which takes no place
    assert "large" in names([corpus])
    with large.open("wb") as file:
        file.write(b"x" * 8191 + b"\0")
    assert "large" not in names([corpus])


@pytest.mark.parametrize(
    ("paths", "error", "match"),
    [
        ([""], FileNotFoundError, "no file or folder '', expected text"),
        ("", FileNotFoundError, "no file or folder '', expected text"),
        (["FOLDER", ""], FileNotFoundError, "no file or folder ''"),
        (["nowhere"], FileNotFoundError, "no file or folder 'nowhere'"),
        (["EMPTY"], FileNotFoundError, r"no text files in '.*empty', expected at least one$"),
        ([3], TypeError, "a path is of type int"), ([None], TypeError, "a path is None"),
    ],
)
def test_errors_of_finding(corpus, paths, error, match):
    (corpus / "empty").mkdir()
    there = {"FOLDER": corpus, "EMPTY": corpus / "empty"}
    paths = [there.get(p, p) for p in paths] if isinstance(paths, list) else paths
    with pytest.raises(error, match=match):
        text.find_files(paths)


@posix
def test_pipes_and_links_that_lead_nowhere_are_read_if_they_are_named(corpus):
    os.mkfifo(corpus / "pipe")
    (corpus / "lost").symlink_to("nowhere")
    assert names([corpus]) == ["0.txt", "1.txt", "2.txt", "3.txt", "last"]
    assert names([corpus / "pipe"]) == ["pipe"]  # nothing is read from it yet
    with pytest.raises(FileNotFoundError, match=r"no file or folder '.*lost'"):
        text.find_files([corpus / "lost"])


def test_what_the_system_does_not_open_is_an_error_if_it_is_named_and_else_counted(
        corpus, monkeypatch):
    closed = {os.fspath(corpus / name) for name in ("1.txt", "below")}

    def guarded(function):
        def call(path, *arguments, **options):
            if os.fspath(path) in closed:
                raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
            return function(path, *arguments, **options)

        return call

    monkeypatch.setattr(os, "scandir", guarded(os.scandir))
    monkeypatch.setattr(pathlib.Path, "open", guarded(pathlib.Path.open))
    found = text.search([corpus])
    assert [path.name for path in found.files] == ["0.txt", "2.txt", "3.txt"]
    assert {error.filename for error in found.unreadable} == closed
    left_out = "left out 2 files or folders that could not be read, the first '"
    assert found.complaint().startswith(left_out)
    with pytest.warns(UserWarning, match=f"^find_files: {left_out}.*: Permission denied$") as seen:
        assert text.find_files([corpus]) == found.files
    assert seen[0].filename == __file__
    for path in closed:
        with pytest.raises(PermissionError, match="Permission denied"):
            text.find_files([path])


@posix
@root
def test_what_cannot_be_read_is_an_error_if_it_is_named_and_else_counted():
    program = (
        "import os, sys, warnings\n"
        "from fastrnn.training import text\n"
        "os.setgid(65534); os.setuid(65534); os.chdir(sys.argv[1])\n"
        "found = text.search('.')\n"
        "print(*found.files, '|', found.complaint())\n"
        "for path in ('closed.txt', 'closed', 'only'):\n"
        "    try: text.search([path]); print('found')\n"
        "    except OSError as error: print(type(error).__name__, error)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    text.find_files('.')\n"
        "print(len(caught), str(caught[0].message), caught[0].filename)\n")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        (folder / "open.txt").write_text("text")
        (folder / "only").mkdir()
        for closed in ("closed.txt", "other.txt", "only/one.txt"):
            (folder / closed).write_text("text")
            (folder / closed).chmod(0o600)
        (folder / "closed").mkdir(mode=0o700)
        (folder / "closed" / "a.txt").write_text("text")
        done = subprocess.run([sys.executable, "-c", program, name], text=True, capture_output=True,
                              timeout=60)
    out = done.stdout.splitlines()
    left_out = "left out 4 files or folders that could not be read, the first "
    assert out[0].startswith(f"open.txt | {left_out}"), done.stderr
    assert out[0].endswith(": Permission denied")
    assert out[1] == "PermissionError [Errno 13] Permission denied: 'closed.txt'"
    assert out[2] == "PermissionError [Errno 13] Permission denied: 'closed'"
    assert out[3].startswith("FileNotFoundError no text files in 'only', expected at least one; "
                             "left out 1 file or folder that could not be read, the first 'only/")
    assert out[4].startswith(f"1 find_files: {left_out}")
    assert out[4].endswith(" <string>")  # the warning points to the caller
