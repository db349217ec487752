"""The file format: other programs read it, and a file is whole or is not there."""

import errno
import json
import os
import pathlib
import stat
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from fastrnn.formats import safetensors
from fastrnn.formats.files import write_file

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX's files")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0,
                          reason="only root can become nobody")

ARRAYS = {
    "bytes": np.arange(3, dtype=np.uint8), "weight": np.linspace(-1, 1, 12).reshape(3, 4),
    "steps": np.array(7), "empty": np.zeros((0, 5), np.float32),
    "half": np.arange(4, dtype=np.float16), "mask": np.array([True, False]),
    "strided": np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::3],
    "big-endian": np.arange(5, dtype=">i4"),
}
ABOUT = {"notes": {"why": "a tést\n\"quoted\""},
         "numbers": [1, 2.5, None, True, np.float32(0.5), np.int64(3), np.True_]}


def equal(a, b):
    np.testing.assert_array_equal(a, b)
    assert a.dtype == b.dtype.newbyteorder("=")
    assert a.shape == b.shape


def read(path):
    with safetensors.opened(path) as file:
        return {name: file.array(name) for name in file.names()}, file.about


def test_what_was_written_is_read(tmp_path):
    safetensors.write(tmp_path / "a", ARRAYS, ABOUT)
    arrays, about = read(tmp_path / "a")
    assert set(arrays) == set(ARRAYS)
    for name, array in arrays.items():
        equal(array, ARRAYS[name])
    assert about == ABOUT | {"format": 3}


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    from safetensors import safe_open

    safetensors.write(tmp_path / "a", ARRAYS, ABOUT)
    for name, array in numpy.load_file(tmp_path / "a").items():
        equal(array, ARRAYS[name])
    with safe_open(tmp_path / "a", "numpy") as file:
        assert set(file.keys()) == set(ARRAYS)
        assert json.loads(file.metadata()["fastrnn"]) == ABOUT | {"format": 3}
    # every array begins at a multiple of its numbers' size: it can be mapped into memory
    with safetensors.opened(tmp_path / "a") as ours:
        for entry in ours.entries.values():
            assert entry.start % np.dtype(entry.dtype).itemsize == 0


def test_we_read_what_the_safetensors_library_writes(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {k: np.array(a, a.dtype.newbyteorder("="), order="C") for k, a in ARRAYS.items()}
    numpy.save_file(arrays, tmp_path / "a", {"fastrnn": json.dumps({"format": 3})})
    found = read(tmp_path / "a")[0]
    assert set(found) == set(ARRAYS)
    for name, array in found.items():
        equal(array, ARRAYS[name])


def test_an_array_of_another_dtype_or_shape_is_not_filled(tmp_path):
    safetensors.write(tmp_path / "a", ARRAYS, ABOUT)
    for reader in ("read_into", "read_float"):
        with (pytest.raises(ValueError, match=r"a' is not a file of fastrnn: weight is .*\(3, 4\), "
                                              r"expected .*\(4, 3\)"),
              safetensors.opened(tmp_path / "a") as file):
            getattr(file, reader)("weight", np.zeros((4, 3)))
    with (pytest.raises(ValueError, match=r"half is \(4,\), expected \(3,\)"),
          safetensors.opened(tmp_path / "a") as file):
        file.read_float("half", np.zeros(3, np.float32))
    with (pytest.raises(ValueError, match=r"half is float16 \(4,\), expected float32 \(4,\)"),
          safetensors.opened(tmp_path / "a") as file):
        file.read_into("half", np.zeros(4, np.float32))


def test_files_need_numpy_alone(tmp_path):
    program = (
        "import sys, fastrnn\n"
        "sys.modules['safetensors'] = None\n"
        "fastrnn.save(fastrnn.GRU(2, 3, seed=0), sys.argv[1])\n"
        "print(fastrnn.load(sys.argv[1]))")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "m")], text=True,
                          capture_output=True, timeout=60)
    assert done.stdout == "GRU(2, 3)\n", done.stderr


# ---- whole, or not at all ------------------------------------------------------------------------


def fail_with(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))
    return fail


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_an_error_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch, call, number):
    path = tmp_path / "a"
    safetensors.write(path, ARRAYS, ABOUT)
    before = path.read_bytes()
    monkeypatch.setattr(os, call, fail_with(number))
    with pytest.raises(OSError, match=r"a'$") as raised:
        safetensors.write(path, {}, {})
    assert (raised.value.errno, raised.value.filename) == (number, str(path))
    assert isinstance(raised.value, PermissionError) == (number == errno.EACCES)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_an_interrupt_leaves_the_old_file(tmp_path, monkeypatch):
    safetensors.write(tmp_path / "a", ARRAYS, ABOUT)
    before = (tmp_path / "a").read_bytes()

    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        safetensors.write(tmp_path / "a", {}, {})
    assert (tmp_path / "a").read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


@posix
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    program = (
        "import resource, sys, numpy as np\n"
        "from fastrnn.formats import safetensors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "for name in ('write', 'try_write'):\n"
        "    try: getattr(safetensors, name)(sys.argv[1], {'a': np.zeros(10**6)}, {})\n"
        "    except OSError as error: print(error.filename == sys.argv[1], error.strerror)")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "m")], text=True,
                          capture_output=True, timeout=60)
    assert done.stdout == "True File too large\n" * 2, done.stderr
    assert os.listdir(tmp_path) == []


def test_a_trial_leaves_everything_as_it_was(tmp_path):
    safetensors.try_write(tmp_path / "new", ARRAYS, ABOUT)
    assert os.listdir(tmp_path) == []
    safetensors.write(tmp_path / "a", ARRAYS, ABOUT)
    before = (tmp_path / "a").stat()
    safetensors.try_write(tmp_path / "a", {}, {})
    after = (tmp_path / "a").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    for place in (tmp_path / "none" / "a", tmp_path / "a" / "b", tmp_path):
        with pytest.raises(OSError, match=str(place)):
            safetensors.try_write(place, ARRAYS, ABOUT)


@posix
def test_a_file_of_others_in_a_folder_for_all_is_not_replaced(tmp_path, monkeypatch):
    safetensors.write(tmp_path / "a", ARRAYS, ABOUT)
    before, me = (tmp_path / "a").read_bytes(), os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    tmp_path.chmod(0o1777)
    with pytest.raises(PermissionError, match=r"a' is another user's, expected a file that may be"):
        safetensors.write(tmp_path / "a", {}, {})
    assert (tmp_path / "a").read_bytes() == before
    tmp_path.chmod(0o755)
    safetensors.write(tmp_path / "a", {}, {})
    assert read(tmp_path / "a")[0] == {}


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path, monkeypatch, umask):
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", fail_with(errno.EPERM))  # it is the whole process's
            safetensors.write(tmp_path / "a", ARRAYS, ABOUT)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_a_file_that_is_written_again_keeps_its_permissions(tmp_path, mode):
    """Who may not read the file before must not read the one in its place."""
    path, seen = tmp_path / "a", []
    safetensors.write(path, ARRAYS, ABOUT)
    path.chmod(mode)
    write_file(path, lambda file: seen.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode)))
    assert seen == [mode] == [stat.S_IMODE(path.stat().st_mode)]


@posix
def test_a_link_stays_and_special_files_are_refused(tmp_path):
    (tmp_path / "below").mkdir()
    safetensors.write(tmp_path / "below" / "a", {}, {})
    (tmp_path / "link").symlink_to("below/a")
    safetensors.write(tmp_path / "link", ARRAYS, ABOUT)
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "below" / "a")[1] == ABOUT | {"format": 3}
    assert os.listdir(tmp_path / "below") == ["a"]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is not an ordinary file"):
        safetensors.write(tmp_path / "pipe", {}, {})
    with pytest.raises(ValueError, match="not an ordinary file"):
        read(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(IsADirectoryError, match="is a folder"):
        safetensors.write(tmp_path / "below", {}, {})
    with pytest.raises(IsADirectoryError):
        read(tmp_path / "below")


@pytest.fixture
def open_folder():
    """Return a folder that everybody can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield pathlib.Path(name)


@posix
@root
def test_a_trial_finds_what_nobody_may_not_do(open_folder):
    (open_folder / "closed").mkdir(mode=0o755)
    (open_folder / "sticky").mkdir()
    (open_folder / "sticky").chmod(0o1777)
    (open_folder / "sticky" / "theirs").touch()
    program = (
        "import os, sys, numpy as np\n"
        "from fastrnn.formats import safetensors\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "for name in ('closed/a', 'sticky/theirs', 'sticky/mine'):\n"
        "    path = os.path.join(sys.argv[1], name)\n"
        "    try: safetensors.try_write(path, {'a': np.zeros(3)}, {})\n"
        "    except PermissionError as error: print(name, 'refused', path in str(error))\n"
        "    else: print(name, 'fine')")
    done = subprocess.run([sys.executable, "-c", program, str(open_folder)], text=True,
                          capture_output=True, timeout=60)
    assert done.stdout.splitlines() == [
        "closed/a refused True", "sticky/theirs refused True", "sticky/mine fine"], done.stderr


@pytest.mark.parametrize(
    ("path", "error", "match"),
    [(None, TypeError, "path is None, expected the name of a file"),
     (3, TypeError, "path is of type int"), ("", ValueError, "path is ''")])
def test_what_is_not_a_path_is_refused(path, error, match):
    for call in (lambda: safetensors.write(path, {}, {}), lambda: read(path)):
        with pytest.raises(error, match=match):
            call()


def test_what_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match="is not JSON: Object of type ndarray"):
        safetensors.write(tmp_path / "a", ARRAYS, {"notes": np.zeros(3)})
    circle = {}
    circle["notes"] = circle
    with pytest.raises(TypeError, match="is not JSON: Circular"):
        safetensors.write(tmp_path / "a", ARRAYS, circle)
    assert os.listdir(tmp_path) == []
