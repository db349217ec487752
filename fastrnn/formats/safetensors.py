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
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue
from fastrnn.formats.files import (
    as_path,
    check_json,
    check_ordinary,
    refusing,
    write_file,
)

__all__ = ["File", "opened", "try_write", "write"]

FORMAT = 3  # of what fastrnn keeps in the metadata
_KEY = "fastrnn"  # of the metadata
_LONGEST = 100_000_000  # bytes of a header, as the specification has it
_MOST_AXES = 32  # of an array
_BLOCK = 1 << 20  # bytes that are converted at once
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
           "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1"}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_BFLOAT16 = "BF16"  # the upper halves of float32; NumPy has no dtype for it
# bits of the numbers that are not read; a file may have such arrays beside those that are
_UNREAD = {"C64": 64, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8,
           "F8_E4M3FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}


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
    fill, size = _writer(arrays, about)
    write_file(path, fill, size=size)


def try_write(path: Any, arrays: Mapping[str, np.ndarray], about: dict[str, Any]) -> None:
    """Do all that `write` does, but take the new file away instead of putting it in its place.

    Called before long work whose result shall be written.

    Raises
    ------
    OSError, TypeError
        As of `write`.
    """
    fill, size = _writer(arrays, about)
    write_file(path, fill, size=size, keep=False)


def _writer(
    arrays: Mapping[str, np.ndarray], about: dict[str, Any] | None
) -> tuple[Callable[[BinaryIO], None], int]:
    """Return what writes arrays and JSON to an open file, and how many bytes these are."""
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
    text = json.dumps(header, separators=(",", ":"))
    text += " " * (-len(text) % 8)  # it is ASCII
    size = 8 + len(text) + at
    check_json(text, size, "what is to be kept beside the arrays")
    encoded = text.encode()

    def fill(file: BinaryIO) -> None:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for array, dtype in ordered:
            for piece in _pieces(array, dtype):
                file.write(piece)

    return fill, size


def _pieces(array: np.ndarray, dtype: str) -> Iterator[memoryview]:
    """Yield the bytes of an array: no copy if it lies in memory as it lies in a file.

    Another one is copied some rows at a time.
    """
    if array.flags.c_contiguous and array.dtype.str == dtype:
        yield _bytes(array)
        return
    rows = np.atleast_1d(array)
    step = max(1, _BLOCK * len(rows) // rows.nbytes)
    for start in range(0, len(rows), step):
        yield _bytes(np.ascontiguousarray(rows[start : start + step], dtype))


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

    The numbers of a bfloat16 array are whole numbers of 16 bits here. An array of numbers that are
    not read has the dtype "|V1", bytes.
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
        if not entry.bfloat16 and np.dtype(entry.dtype).newbyteorder("=") == array.dtype:
            self.read_into(name, array)
            return
        if array.shape != entry.shape:
            raise RefusedValue(f"{name} is {entry.shape}, expected {array.shape}")
        flat = array.reshape(-1)
        block = np.empty(min(flat.size, _BLOCK // np.dtype(entry.dtype).itemsize), entry.dtype)
        self._file.seek(entry.start)
        for start in range(0, flat.size, max(1, block.size)):
            values = block[: flat.size - start]
            self._fill(_bytes(values))
            if entry.bfloat16:
                values = (values.astype(np.uint32) << 16).view(np.float32)
            flat[start : start + values.size] = values

    def read_into(self, name: str, array: np.ndarray) -> None:
        """Read values into a C-contiguous array of the same dtype and shape."""
        entry = self.entries[name]
        if array.dtype != np.dtype(entry.dtype).newbyteorder("=") or array.shape != entry.shape:
            raise RefusedValue(f"{name} is {np.dtype(entry.dtype).name} {entry.shape}, expected "
                               f"{array.dtype.name} {array.shape}")
        if not array.size:
            return
        self._file.seek(entry.start)
        self._fill(_bytes(array))
        if sys.byteorder == "big":
            array.byteswap(inplace=True)

    def _fill(self, left: memoryview) -> None:
        """Read until memory is full."""
        while left:
            count = self._file.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise RefusedValue("it ends too early")
            left = left[count:]


@contextlib.contextmanager
def opened(path: Any, what: str = "a file", plain: bool = False) -> Iterator[File]:
    """Give a file of fastrnn, its header read and checked.

    Whatever does not fit while it is open is a ValueError that names it.

    Parameters
    ----------
    path : path
    what : str
        What the file should be, for the error's sentence: "a model", "a checkpoint".
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
    with refusing(path, f"{what} of fastrnn"):
        check_ordinary(path)
        with open(path, "rb", buffering=0) as file:
            with refusing(path, "a safetensors file"):
                entries, metadata = _read_header(file)
            about = {}
            if _KEY in metadata or not plain:
                text = metadata.pop(_KEY)
                check_json(text, os.fstat(file.fileno()).st_size, "its metadata")
                about = json.loads(text)
                del text
                if about["format"] != FORMAT:
                    raise RefusedValue(f"its format is {_checks.show(about['format'])}, expected "
                                       f"{FORMAT}")
            yield File(path, file, entries, about)


def _read_header(file: BinaryIO) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the arrays that a file has, and its metadata."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _LONGEST):
        raise RefusedValue(f"it has {size} {'byte' if size == 1 else 'bytes'}, too few for its "
                           "header")
    text = _exactly(file, length).decode()
    check_json(text, size, "its header")
    header = json.loads(text, object_pairs_hook=_distinct)
    del text
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
        dtype = "<u2" if bfloat16 else _DTYPES.get(described["dtype"], "|V1")
        bits = _UNREAD.get(described["dtype"], 8 * np.dtype(dtype).itemsize)
        if dtype == "|V1" and described["dtype"] not in _UNREAD:
            raise RefusedValue(f"{name!r} is {_checks.show(described['dtype'])}, expected one of "
                               f"{[*_DTYPES, _BFLOAT16, *_UNREAD]}")
        if 8 + length + begin != at or 8 * (end - begin) != math.prod(shape) * bits:
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
