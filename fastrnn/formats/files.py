"""What files of every kind share: their names, how they are written, and what fails while reading.

A file is written beside its place and then put there: the old one or the new one is whole at any
moment. A file that is read can hold anything, so anything can fail; `refusing` makes one sentence
of it, which names the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue
from fastrnn.layers.parameters import Parametrized, Part, distinct

__all__ = ["KERAS", "TORCH", "WRITTEN", "NamedError", "as_folder", "as_path", "check_directory",
           "check_json", "check_ordinary", "in_evaluation", "refusing", "suffix", "write_bytes",
           "write_file"]

# suffixes
TORCH = (".pt", ".pth", ".bin")
KERAS = (".keras", ".h5", ".hdf5")
WRITTEN = (".safetensors", *TORCH, ".onnx", ".json")

P = TypeVar("P", bound=Parametrized)

# What JSON makes takes up to a hundred times its text. So brackets, braces, quotes and commas are
# counted before: a file of any length may have so many, and one more for so many bytes.
_FREE, _BETWEEN = 100_000, 16
_DIRECTORY = 1 << 18  # bytes that the directory of a small zip archive may have
# Of seeks to places that a damaged file names; all other numbers are the system's own failures.
_OF_THE_CONTENT = (errno.EINVAL, errno.EOVERFLOW)
# How packages say in other errors that memory is short.
_SHORT = ("allocate memory", "memory allocation failed")


class NamedError(RefusedValue):
    """An error that names its file already."""


def as_path(path: Any, name: str = "path", of: str = "the name of a file") -> Path:
    """Return a path as a Path, or refuse what is none."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise RefusedType(f"{name} is {_checks.kind(path)}, expected {of}") from None
    try:
        usable = bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # a character that names of files cannot have
        usable = False
    if not usable:
        raise RefusedValue(f"{name} is {_checks.show(text)}, expected {of}")
    return Path(text)


def as_folder(path: Any, name: str) -> Path:
    """Return the path of a folder, which need not exist, or refuse that of a file."""
    folder = as_path(path, name, "a path")
    if folder.exists() and not folder.is_dir():
        raise RefusedValue(f"{name} is {str(folder)!r}, which is a file, expected a folder")
    return folder


def suffix(path: Path) -> str:
    """Return the suffix that says what a file is; capitals do not matter."""
    return path.suffix.lower()


# ---- reading -------------------------------------------------------------------------------------


def check_ordinary(path: Path) -> None:
    """Refuse what is no file: opening a pipe would wait."""
    if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():
        raise RefusedValue("it is not an ordinary file")


def check_json(text: str, size: int, what: str) -> None:
    """Refuse JSON of a file of this size that takes much more memory than the file."""
    count = sum(map(text.count, '[{",'))
    if count > _FREE + size // _BETWEEN:
        raise RefusedValue(f"{what} has {count} lists, objects and values, too many for {size} "
                           "bytes")


def check_directory(file: BinaryIO, size: int) -> None:
    """Refuse a zip archive whose directory takes much more memory than the file.

    A member's entry has at least 46 bytes there, and becomes an object of ten times that.
    """
    tail = min(size, 2**16 + 22 + 20)  # the longest comment, the last record and a locator
    file.seek(size - tail)
    end = file.read(tail)
    at = end.rfind(b"PK\5\6")
    if at < 0 or len(end) < at + 22:
        return  # no archive, as its reader will say
    length = struct.unpack("<L", end[at + 12 : at + 16])[0]
    if at >= 20 and end[at - 20 : at - 16] == b"PK\6\7":  # of a long archive
        file.seek(min(size, struct.unpack("<Q", end[at - 12 : at - 4])[0]))
        record = file.read(56)
        if len(record) == 56:
            length = max(length * (length < 2**32 - 1), struct.unpack("<Q", record[40:48])[0])
    if length > _DIRECTORY + size // 64:
        raise RefusedValue(f"the directory of its archive has {length} bytes, too many for {size}")


@contextlib.contextmanager
def refusing(source: Path | str, kind: str) -> Iterator[None]:
    """Turn whatever fails inside into an error that names the file.

    These keep their kind: lack of memory, a package that is not installed, and the system's errors.
    An OSError without a number is no error of the system: a package that reads the file says so
    that the bytes are not what it expects.

    Parameters
    ----------
    source : Path or str
        The file, or what to call it.
    kind : str
        What it should be, with an article: "a model of fastrnn".
    """
    label = repr(str(source)) if isinstance(source, Path) else source
    try:
        yield
    except (NamedError, ImportError):
        raise
    except Exception as error:
        if _is_short(error):
            or_else = "" if isinstance(error, MemoryError) else ", or it is damaged"
            raise MemoryError(f"there is not enough memory to load {label}{_size_of(source)}"
                              f"{or_else}") from error
        if isinstance(error, OSError) and error.errno not in (None, *_OF_THE_CONTENT):
            if error.filename is not None or not isinstance(source, Path):
                raise
            raise OSError(error.errno, error.strerror, str(source)) from error
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        why = " ".join(why.split()) or type(error).__name__
        raise NamedError(f"{label} is not {kind}: {why}") from error


def _is_short(error: Exception) -> bool:
    """Whether an error says that memory is short."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or any(word in str(error) for word in _SHORT)
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _SHORT)


def _size_of(source: Path | str) -> str:
    """Return how large a file is, for the end of a sentence."""
    if isinstance(source, Path):
        with contextlib.suppress(OSError):
            return f", a file of {source.stat().st_size:,} bytes"
    return ""


def in_evaluation(model: P) -> P:
    """Put a model that was loaded into evaluation mode, and return it.

    `eval()` would pack the weights now, which takes the model's memory once more. Here the first
    call packs them.
    """
    for part in distinct(model):
        Part.set_mode(part, "evaluation")
    return model


# ---- writing -------------------------------------------------------------------------------------


def write_bytes(path: Any, data: bytes | memoryview) -> None:
    """Write a file whose bytes are known: whole or not at all."""
    write_file(path, lambda file: file.write(data))


def write_file(
    path: Any, fill: Callable[[BinaryIO], Any], *, size: int | None = None, keep: bool = True
) -> None:
    """Write a file beside its place, and then put it there: whole or not at all.

    A link stays, and the file that it leads to is the new one.

    Parameters
    ----------
    path : path
    fill : function
        Writes the content to an open file.
    size : int, optional
        How many bytes that will be, if it is known: for the sentence of a MemoryError.
    keep : bool
        False: the new file is taken away again instead of being put in its place.

    Raises
    ------
    OSError, MemoryError
        If the file cannot be written; it names the file, and whatever was there is unchanged.
    """
    path = as_path(path)
    try:
        place = Path(os.path.realpath(path))
        _check_place(place)
        with _beside(place, fill) as beside:
            if keep:
                os.replace(beside, place)
                _sync_folder(place.parent)
            else:
                os.unlink(beside)
    except MemoryError as error:
        of = "" if size is None else f", a file of {size:,} bytes"
        raise MemoryError(f"there is not enough memory to write {str(path)!r}{of}") from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def _beside(place: Path, fill: Callable[[BinaryIO], Any]) -> Iterator[Path]:
    """Give a new file with this content; it is gone after an error.

    It may be read and written by those who may read and write the file that is there. The process's
    umask is not touched: the system applies it when the file is made.
    """
    beside = place.parent / f".fastrnn-{secrets.token_hex(8)}"
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0),
                     0o666)
    try:
        with open(handle, "wb") as file:
            with contextlib.suppress(FileNotFoundError):
                os.chmod(beside, stat.S_IMODE(os.stat(place).st_mode))
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        yield beside
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def _check_place(place: Path) -> None:
    """Refuse what a rename cannot replace, or must not."""
    try:
        found = os.stat(place)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"{str(place)!r} is a folder, expected a file's name")
    if not stat.S_ISREG(found.st_mode):  # such as /dev/null, which a rename would replace
        raise OSError(f"{str(place)!r} is not an ordinary file, expected a file's name")
    folder = os.stat(place.parent)
    me = os.geteuid() if hasattr(os, "geteuid") else 0
    if folder.st_mode & stat.S_ISVTX and me not in (0, found.st_uid, folder.st_uid):
        raise PermissionError(f"{str(place)!r} is another user's, expected a file that may be "
                              "replaced")


def _sync_folder(folder: Path) -> None:
    """Wait until a rename is on disk, if the system supports that."""
    with contextlib.suppress(OSError):  # a folder that may be written, but not read
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
