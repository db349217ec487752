"""The safetensors format: arrays under their names, and a JSON dictionary beside them.

A file is 8 bytes with the length of the header, the header in JSON, then the arrays' bytes without
gaps. It is read and written here, with NumPy alone, array by array: what is written comes straight
from the arrays and what is read goes straight into them, so that neither takes the memory of a
second copy. All entries of a header are checked before they are used.

Specification: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue

__all__ = ["File", "NamedError", "as_path", "check_ordinary", "opened", "refusing", "try_write",
           "write", "write_bytes"]

FORMAT = 3  # of what fastrnn keeps in the metadata
_KEY = "fastrnn"  # of the metadata
_LONGEST = 100_000_000  # bytes of a header, as the specification has it
_MOST_AXES = 32  # of an array
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
           "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1"}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_BFLOAT16 = "BF16"  # the upper halves of float32; NumPy has no dtype for it


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


# ---- writing -------------------------------------------------------------------------------------


def write(
    path: Any, arrays: Mapping[str, np.ndarray], about: dict[str, Any] | None
) -> None:
    """Write arrays and JSON values to a file.

    The file is written beside its place and then put there, so that at any moment the old file or
    the new one is there, whole. A link stays, and the file that it leads to is the new one.

    Parameters
    ----------
    path : path
    arrays : mapping of names to arrays
        Arrays of numbers; they are not copied.
    about : dict or None
        What JSON can hold; None for a plain file of tensors, as other programs write them.

    Raises
    ------
    OSError
        If the file cannot be written; it names the file, and whatever was there is unchanged.
    TypeError
        If JSON cannot hold `about`.
    """
    _put(as_path(path), *_encoded(arrays, about))


def write_bytes(path: Any, data: bytes | memoryview) -> None:
    """Write any file in the same way: whole or not at all."""
    _put(as_path(path), b"", iter([memoryview(data)]))


def _put(path: Path, header: bytes, chunks: Iterator[memoryview]) -> None:
    """Write a file beside its place, and then put it there."""
    with _naming(path), _beside(path, header, chunks) as (beside, place):
        os.replace(beside, place)
        _sync_folder(place.parent)


def try_write(path: Any, arrays: Mapping[str, np.ndarray], about: dict[str, Any]) -> None:
    """Do all that `write` does, but take the new file away instead of putting it in its place.

    Called before long work whose result shall be written.

    Raises
    ------
    OSError, TypeError
        As of `write`.
    """
    path = as_path(path)
    with _naming(path), _beside(path, *_encoded(arrays, about)) as (beside, _):
        os.unlink(beside)


@contextlib.contextmanager
def _beside(
    path: Path, header: bytes, chunks: Iterator[memoryview]
) -> Iterator[tuple[Path, Path]]:
    """Give a new file with this content, and the place that it is for; it is gone after an error.

    The process's umask is not touched: the system applies it when the file is made.
    """
    place = Path(os.path.realpath(path))
    _check_place(place)
    beside = place.parent / f".fastrnn-{secrets.token_hex(8)}"
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0),
                     0o666)
    try:
        with open(handle, "wb") as file:
            file.write(header)
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        yield beside, place
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


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let the system's errors name the file that was asked for."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _encoded(
    arrays: Mapping[str, np.ndarray], about: dict[str, Any] | None
) -> tuple[bytes, Iterator[memoryview]]:
    """Return a file's bytes before the arrays, and then those of the arrays, one by one."""
    metadata = {"format": "pt"}  # readers of files with PyTorch's names ask for it
    if about is not None:
        try:
            metadata = {_KEY: json.dumps({"format": FORMAT} | about, default=_plain)}
        except (TypeError, ValueError) as error:
            raise RefusedType(f"what is to be kept beside the arrays is not JSON: {error}"
                              ) from error
    header: dict[str, Any] = {"__metadata__": metadata}
    at, ordered = 0, []
    # wide numbers first: then every array is aligned to its numbers' size
    for name, array in sorted(arrays.items(), key=lambda item: -item[1].itemsize):
        dtype = array.dtype.newbyteorder("<").str
        header[name] = {"dtype": _NAMES[dtype], "shape": list(array.shape),
                        "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
        if array.size:
            ordered.append((array, dtype))
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    # no copy of an array that lies in memory as it lies in a file
    chunks = (_bytes(np.ascontiguousarray(array, dtype)) for array, dtype in ordered)
    return len(encoded).to_bytes(8, "little") + encoded, chunks


def _plain(value: Any) -> Any:
    """Return a number of NumPy as one of Python."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _bytes(array: np.ndarray) -> memoryview:
    """Return the bytes of a C-contiguous array, not a copy of them."""
    return array.reshape(-1).view(np.uint8).data


# ---- reading -------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """An array of a file: its dtype as NumPy names it, its shape, and where its bytes begin.

    The numbers of a bfloat16 array are whole numbers of 16 bits here.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    bfloat16: bool = False


class File:
    """An open file whose header has been checked.

    Attributes
    ----------
    path : Path
    about : dict
        The JSON values that `write` was given; {} of a plain file.
    entries : dict of name to Entry
    """

    def __init__(
        self, path: Path, file: BinaryIO, entries: dict[str, Entry], about: dict[str, Any]
    ) -> None:
        self.path, self._file, self.entries, self.about = path, file, entries, about

    def names(self, *without: str) -> list[str]:
        """Return the names of the arrays, without those that begin so."""
        return [name for name in self.entries if not name.startswith(without)]

    def array(self, name: str) -> np.ndarray:
        """Return a new array with the values of one of the file's."""
        entry = self.entries[name]
        array = np.empty(entry.shape, np.dtype(entry.dtype).newbyteorder("="))
        self.read_into(name, array)
        return array

    def read_float(self, name: str, array: np.ndarray) -> None:
        """Read floats into an array of the same shape, whose dtype holds each of them."""
        entry = self.entries[name]
        if entry.bfloat16:
            array[...] = (self.array(name).astype(np.uint32) << 16).view(np.float32)
        elif np.dtype(entry.dtype).newbyteorder("=") == array.dtype:
            self.read_into(name, array)
        else:
            array[...] = self.array(name)

    def read_into(self, name: str, array: np.ndarray) -> None:
        """Read values into a C-contiguous array of the same dtype and shape."""
        entry = self.entries[name]
        if array.dtype != np.dtype(entry.dtype).newbyteorder("=") or array.shape != entry.shape:
            raise RefusedValue(f"{name} is {np.dtype(entry.dtype).name} {entry.shape}, expected "
                               f"{array.dtype.name} {array.shape}")
        if not array.size:
            return
        self._file.seek(entry.start)
        left = _bytes(array)
        while left:
            count = self._file.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise RefusedValue("it ends too early")
            left = left[count:]
        if sys.byteorder == "big":
            array.byteswap(inplace=True)


@contextlib.contextmanager
def opened(path: Any, what: str = "file", plain: bool = False) -> Iterator[File]:
    """Give a file of fastrnn, its header read and checked.

    Whatever does not fit while it is open is a ValueError that names it.

    Parameters
    ----------
    path : path
    what : str
        What the file should be, for the error's sentence: "model", "checkpoint".
    plain : bool
        Whether it may be a file that has nothing of fastrnn beside the arrays.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a safetensors file, or not one of fastrnn.
    MemoryError
        If there is not enough memory for it.
    """
    path = as_path(path)
    with refusing(path, what):
        check_ordinary(path)
        with open(path, "rb", buffering=0) as file:
            with refusing(path, ""):
                entries, metadata = _read_header(file)
            about = {}
            if _KEY in metadata or not plain:
                about = json.loads(metadata[_KEY])
                if about["format"] != FORMAT:
                    raise RefusedValue(f"its format is {_checks.show(about['format'])}, expected "
                                       f"{FORMAT}")
            yield File(path, file, entries, about)


def check_ordinary(path: Path) -> None:
    """Refuse what is no file: opening a pipe would wait."""
    if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():
        raise RefusedValue("it is not an ordinary file")


@contextlib.contextmanager
def refusing(path: Path, what: str) -> Iterator[None]:
    """Turn whatever fails inside into an error that names the file.

    A file can be anything, so anything can fail: a RecursionError of JSON, an OverflowError of a
    size. Only lack of memory or of a package, and the system's errors, keep their kind.
    """
    try:
        yield
    except (OSError, NamedError, ImportError):  # a package that reads the file is not installed
        raise
    except MemoryError as error:
        raise MemoryError(f"not enough memory to load {str(path)!r}") from error
    except Exception as error:
        why = f"its metadata lacks {error}" if isinstance(error, KeyError) else error
        kind = f"{what} of fastrnn" if what else "safetensors file"
        raise NamedError(f"{str(path)!r} is not a {kind}: {why}") from error


class NamedError(RefusedValue):
    """An error that names its file already."""


def _read_header(file: BinaryIO) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the arrays that a file has, and its metadata."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _LONGEST):
        raise RefusedValue(f"it has {size} {'byte' if size == 1 else 'bytes'}, too few for its "
                           "header")
    header = json.loads(_exactly(file, length).decode(), object_pairs_hook=_distinct)
    if not isinstance(header, dict):
        raise RefusedValue("its header is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise RefusedValue("its metadata are not strings")
    entries, at = {}, 8 + length
    for name, described in sorted(header.items(), key=lambda item: _offsets(item[1])):
        shape, (begin, end) = described["shape"], _offsets(described)
        if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(
                type(n) is int and n >= 0 for n in shape):
            raise RefusedValue(f"the shape of {name!r} is {_checks.show(shape)}")
        bfloat16 = described["dtype"] == _BFLOAT16
        dtype = "<u2" if bfloat16 else _DTYPES.get(described["dtype"])
        if dtype is None:
            raise RefusedValue(f"{name!r} is {_checks.show(described['dtype'])}, expected one of "
                               f"{[*_DTYPES, _BFLOAT16]}")
        if 8 + length + begin != at or end - begin != math.prod(shape) * np.dtype(dtype).itemsize:
            raise RefusedValue(f"the bytes of {name!r} are not where they should be")
        entries[name] = Entry(dtype, tuple(shape), at, bfloat16)
        at += end - begin
    if at != size:
        raise RefusedValue(f"it has {size} bytes, its header says {at}")
    return entries, metadata


def _offsets(described: Any) -> tuple[int, int]:
    """Return where an array begins and ends."""
    begin, end = described["data_offsets"]
    if type(begin) is not int or type(end) is not int:
        raise RefusedValue("its offsets are not whole numbers")
    return begin, end


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dictionary of a JSON object, if no key is there twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise RefusedValue("a name is there twice")
    return made


def _exactly(file: BinaryIO, count: int) -> bytes:
    parts = []
    while count:
        part = file.read(count)
        if not part:
            raise RefusedValue("it ends too early")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
