"""Text as bytes: files are found, read and joined, and a part is held out.

Bytes are kept as they are, whatever the encoding. N is the number of bytes or symbols of a text.
"""

from __future__ import annotations

import os
import stat
import sysconfig
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, public

__all__ = ["HELD_OUT", "Found", "amount", "find_files", "read", "search", "split"]

_LOOKED_AT = 8192  # a zero byte in so many first bytes: the file is not text
HELD_OUT = 20  # one of so many characters is held out


class Found(NamedTuple):
    """What a search for text files has found.

    Attributes
    ----------
    files : list of Path
        Each file once, however often it was named.
    unreadable : list of OSError
        For the files and folders, below the folders searched, that could not be read.
    """

    files: list[Path]
    unreadable: list[OSError]

    def complaint(self) -> str:
        """Return one line about what could not be read; empty if everything could."""
        count = len(self.unreadable)
        if not count:
            return ""
        first = self.unreadable[0]
        return (f"left out {amount(count, 'file or folder', 'files or folders')} that could "
                f"not be read, the first {first.filename!r}: {first.strerror}")


def search(paths: Any = ()) -> Found:
    """Find the text files that `paths` name, as `find_files`, and say what could not be read."""
    files: dict[Any, Path] = {}  # each file by what it is on disk
    unreadable: list[OSError] = []
    if paths is None:
        paths = ()
    elif isinstance(paths, (str, bytes, os.PathLike)):
        paths = (paths,)
    elif not isinstance(paths, Iterable):
        raise RefusedType(f"paths is {_checks.show(paths)}, expected a path or a list of paths")
    paths = list(paths)

    def add(found: list[Path], is_text: Callable[[Path], bool]) -> None:
        for path in found:
            try:
                if is_text(path):
                    files.setdefault(_identity(path), path)
            except OSError as error:
                unreadable.append(error)

    if not paths:
        add(_standard_library(), lambda path: True)
    for path in map(_as_path, paths):
        if path.is_dir():
            add(_below(path, unreadable), _is_text)
        else:
            if stat.S_ISREG(path.stat().st_mode):
                path.open("rb").close()  # may it be read? A pipe may be opened only once
            files.setdefault(_identity(path), path)
    if not files:
        where = ", ".join(repr(os.fsdecode(p)) for p in paths) or "the standard library's folder"
        more = f"; {complaint}" if (complaint := Found([], unreadable).complaint()) else ""
        raise FileNotFoundError(f"no text files in {where}, expected at least one{more}")
    return Found(list(files.values()), unreadable)


@public
def find_files(paths: Any = ()) -> list[Path]:
    """Return the text files that `paths` name, each once.

    One warning counts the files and folders, below the folders named, that could not be read.

    Parameters
    ----------
    paths : path, or sequence of files and folders
        A folder means all files below it, sorted, without hidden files and files with a zero byte
        near the beginning. A named file is always read. None: the source of Python's
        standard library on this machine.

    Returns
    -------
    list of Path

    Raises
    ------
    OSError
        If a path does not exist or cannot be read, or no file is found.
    TypeError
        If something is not a path.
    """
    found = search(paths)
    if complaint := found.complaint():
        warnings.warn(f"find_files: {complaint}", stacklevel=3)
    return found.files


def _as_path(path: Any) -> Path:
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise RefusedType(f"a path is {_checks.kind(path)}, expected the name of a file or "
                          "folder") from None
    if not name or not os.path.exists(name):
        raise FileNotFoundError(f"no file or folder {name!r}, expected text to train on")
    return Path(name)


def _identity(path: Path) -> tuple[int, int]:
    """Return what is the same for all names of one file."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)


def _below(folder: Path, unreadable: list[OSError]) -> list[Path]:
    """Return all files below a folder, sorted, but for hidden ones."""
    def note(error: OSError) -> None:
        if error.filename == str(folder):
            raise error  # it was named
        unreadable.append(error)

    found = []
    for at, folders, files in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(at, name) for name in files if not name.startswith(".")]
    return sorted(found)


def _is_text(path: Path) -> bool:
    """Return whether an ordinary file has no zero byte near its beginning."""
    if not path.is_file():
        return False
    with path.open("rb", buffering=0) as file:
        return b"\0" not in file.read(_LOOKED_AT)


@public
def read(files: Iterable[Path], seed: int = 0, between: bytes = b"\n") -> np.ndarray:
    """Return the bytes of all files, in an order drawn from the seed, as uint8 (N,).

    Parameters
    ----------
    files : list of paths
    seed : int
    between : bytes
        What comes between two files, if the first does not end with it.

    Raises
    ------
    OSError
        If a file cannot be read; it names the file.
    """
    if isinstance(files, (str, bytes, os.PathLike)) or not isinstance(files, Iterable):
        raise RefusedType(f"files is {_checks.show(files)}, expected a list of paths")
    files = [_as_path(file) for file in files]
    text = bytearray()
    for i in np.random.default_rng(*_checks.seeds(seed, 1)).permutation(len(files)):
        if text and not text.endswith(between):
            text += between
        text += files[i].read_bytes()
    return np.frombuffer(text, np.uint8)


def split(text: np.ndarray, part: int = HELD_OUT) -> tuple[np.ndarray, np.ndarray]:
    """Return (training text, held-out text): the last of so many equal parts is held out."""
    cut = len(text) - len(text) // part
    return text[:cut], text[cut:]


def amount(count: int, what: str, several: str = "") -> str:
    """Return a number and its unit, in the singular or the plural."""
    return f"{count:,} {what if count == 1 else several or what + 's'}"
