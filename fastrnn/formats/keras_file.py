"""Keras's files: a configuration, and variables under their names in an HDF5 file.

A `.keras` file is a zip archive with config.json, metadata.json and model.weights.h5. A
`.weights.h5` file has the variables alone. A whole-model `.h5` file has the configuration as an
attribute, and other names. Nothing here runs code of a file. A variable's shape and place are
checked before it is read: it must lie in the file itself, contiguous and as large as its shape
says. So what is read is never more than the file.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import os
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn.formats.files import as_path, check_directory, check_json, check_ordinary, refusing

__all__ = ["File", "Owner", "Variable", "opened"]

Shape = tuple[int | None, ...]

_HDF5 = b"\x89HDF\r\n\x1a\n"
_HEAP = b"GCOL\1\0\0\0"  # where texts of any length are
_ATTRIBUTES = b"model_config", b"keras_version", b"layer_names", b"weight_names"
_ANY_LENGTH, _TEXT = 9, 1  # HDF5's class of types whose values have lengths of their own; its kind
_ZIP = b"PK\x03\x04"
_WEIGHTS = "model.weights.h5"
_LONGEST = 10_000_000  # bytes of a configuration
_DEEPEST = 12  # groups inside groups
_BLOCK = 1 << 20  # bytes that are read at once


class Variable:
    """An array of a file: its name and shape were checked, its values were not read yet."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name, self._dataset = name, dataset
        self.shape: tuple[int, ...] = dataset.shape

    def blocks(self, dtype: np.dtype) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the values for a layer of this dtype: some rows at a time, and which they are."""
        own = self._dataset.dtype
        if own.itemsize > dtype.itemsize:
            raise RefusedValue(f"{self.name} is {own}, expected {dtype}: the dtype of its layer")
        step = max(1, _BLOCK // max(1, own.itemsize * math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            rows = slice(start, start + step)
            yield rows, self._dataset[rows]

    def values(self, dtype: np.dtype) -> np.ndarray:
        """Return the values as a new array."""
        array = np.empty(self.shape, dtype)
        for rows, block in self.blocks(dtype):
            array[rows] = block
        return array


class Owner:
    """The variables of one layer.

    Parameters
    ----------
    file : File
    names : list of str or None
        The names in the layer's order; None: they are found by `prefix`.
    prefix : str
        The group of the layer.
    """

    def __init__(self, file: File, names: list[str] | None, prefix: str) -> None:
        self._file, self._names, self._prefix = file, names, prefix
        self._next = 0

    def take(self, part: str, **shapes: Shape) -> dict[str, Variable]:
        """Return variables by the names of `shapes`, whose order is that of the file.

        Parameters
        ----------
        part : str
            Which object inside the layer has them: "", "cell", "forward_layer/cell".
        **shapes : shapes
            None in a shape fits any size.
        """
        if self._names is None:
            group = "/".join(filter(None, (self._prefix, part, "vars")))
            found = self._file.inside(group)
        else:
            group = self._prefix
            found = self._names[self._next : self._next + len(shapes)]
            self._next += len(found)
        if len(found) != len(shapes):
            raise RefusedValue(f"{group} has {len(found)} variables, expected {len(shapes)}: "
                               f"{', '.join(shapes)}")
        return {of: self._file.variable(name, of, shape)
                for name, (of, shape) in zip(found, shapes.items(), strict=True)}

    def shape(self, part: str, number: int) -> tuple[int, ...] | None:
        """Return the shape of one variable that `take` would return next; None: there is none."""
        if self._names is None:
            found = self._file.inside("/".join(filter(None, (self._prefix, part, "vars"))))
        else:
            found = self._names[self._next :]
        return self._file.shape(found[number]) if number < len(found) else None

    def finish(self) -> None:
        """Refuse a layer of the older format that has more variables than were taken."""
        if self._names is not None and self._next < len(self._names):
            raise RefusedValue(f"unexpected variables {self._names[self._next:]}")


class File:
    """The HDF5 part of an open file.

    Attributes
    ----------
    config : dict or None
        The configuration of the model.
    version : str
        The version of Keras that wrote it, "" if unknown.
    legacy : bool
        Whether the names are those of the whole-model format of Keras 1 and 2.
    """

    def __init__(self, root: Any, size: int, config: Any, version: str) -> None:
        self.config, self.version, self._size = config, version, size
        self._taken: set[str] = set()
        self._bytes = 0
        self._datasets: dict[str, Any] = {}
        self._left = 1000 + size // 64  # objects that a file of this size can have
        self._walk(root, "", 0)
        attributes = root.attrs
        self.legacy = "layer_names" in attributes or "model_weights" in root
        self._inner: dict[str, dict[str, list[str]]] | None = None  # made when it is needed
        self._top = "layers/"  # how the names of the layers' variables begin
        if self.legacy:
            self._top = "model_weights/" if "model_weights" in root else ""
            if config is None and "model_config" in attributes:
                self.config = _json(attributes["model_config"], size)
            self._group = root.get("model_weights", root)
            self.version = version or _text(attributes.get("keras_version", "")) or _text(
                self._group.attrs.get("keras_version", ""))

    def _walk(self, group: Any, prefix: str, depth: int) -> None:
        """Find the datasets; only those that the file itself has."""
        h5py = _h5py()
        if depth > _DEEPEST:
            raise RefusedValue(f"its groups are deeper than {_DEEPEST}: {prefix[:100]}...")
        for key in group:
            name = f"{prefix}{key}"
            self._left -= 1
            if self._left < 0:
                raise RefusedValue("it has more objects than its size allows")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise RefusedValue(f"{name} is a link to another place, expected a variable")
            item = group[key]
            if isinstance(item, h5py.Group):
                self._walk(item, f"{name}/", depth + 1)
            elif isinstance(item, h5py.Dataset):
                self._datasets[name] = item

    def owner(self, path: str, name: str) -> Owner:
        """Return the variables of a layer, by its group's path or, in older files, its name."""
        if not self.legacy:
            return Owner(self, None, f"{self._top}{path}")
        if name in self._group:
            names = _names(self._group[name], "weight_names")
            return Owner(self, [f"{self._top}{name}/{of}" for of in names], name)
        # a model inside the model has one group, with the names of its layers' weights
        if self._inner is None:
            self._inner = {}
            for group in self._group:
                for of in _names(self._group[group], "weight_names"):
                    for part in dict.fromkeys(of.split("/")[:-1]):
                        self._inner.setdefault(part, {}).setdefault(group, []).append(
                            f"{self._top}{group}/{of}")
        inside = list(self._inner.get(name, {}).values())
        if len(inside) > 1:
            raise RefusedValue(f"{len(inside)} models inside the model have a layer of this name, "
                               "expected one")
        return Owner(self, inside[0] if inside else [], name)

    def inside(self, group: str) -> list[str]:
        """Return the names of the variables 0, 1, ... of a group."""
        found = [name for name in self._datasets if name.rpartition("/")[0] == group]
        return sorted(found, key=lambda name: (len(name), name))

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a variable, None if there is no such."""
        dataset = self._datasets.get(name)
        return None if dataset is None else dataset.shape

    def variable(self, name: str, of: str, shape: Shape) -> Variable:
        """Return a variable that has this shape and lies in the file."""
        dataset = self._datasets.get(name)
        if dataset is None:
            raise RefusedValue(f"{name} ({of}) is missing")
        if dataset.shape is None or len(dataset.shape) != len(shape) or any(
                b is not None and a != b for a, b in zip(dataset.shape, shape, strict=True)):
            expected = tuple("any" if n is None else n for n in shape)
            raise RefusedValue(f"{name} ({of}) has shape {dataset.shape}, expected {expected}")
        if dataset.dtype.kind != "f":
            raise RefusedValue(f"{name} ({of}) is {dataset.dtype}, expected floating point")
        size = dataset.size * dataset.dtype.itemsize
        if (dataset.is_virtual or dataset.external or dataset.chunks is not None
                or dataset.id.get_storage_size() != size):
            raise RefusedValue(f"{name} ({of}) is not stored contiguously in the file itself")
        self._bytes += size
        if name in self._taken:
            raise RefusedValue(f"{name} ({of}) is another variable already")
        if self._bytes > self._size:
            raise RefusedValue(f"{name} ({of}) needs more bytes than the file has")
        self._taken.add(name)
        return Variable(name, dataset)

    def unused(self) -> tuple[str, ...]:
        """Return the names that no layer took; refuse variables that a layer should have taken.

        Layers have generators of random numbers for dropout, and a stateful layer its state. They
        are not needed.
        """
        left = [name for name in self._datasets if name not in self._taken]
        if not self.legacy:
            more = [name for name in left if name.startswith(self._top)
                    and "seed_generator" not in name]
            if more:
                raise RefusedValue(f"unexpected variables {more[:5]}: no layer of the "
                                   "configuration has them")
        return tuple(left)

    def found(self) -> dict[str, list[tuple[int, ...]]]:
        """Return the shapes of the variables by the first group, for a sentence."""
        shapes: dict[str, list[tuple[int, ...]]] = {}
        for name, dataset in self._datasets.items():
            parts = name.removeprefix(self._top).split("/")
            if name.startswith(self._top) and "seed_generator" not in parts and dataset.shape:
                shapes.setdefault(parts[0], []).append(dataset.shape)
        return shapes


def _names(group: Any, attribute: str) -> list[str]:
    """Return a list of names that is an attribute, or several if it is long."""
    attributes, found = group.attrs, []
    if attribute in attributes:
        found = list(attributes[attribute])
    else:
        number = 0
        while f"{attribute}{number}" in attributes:
            found += list(attributes[f"{attribute}{number}"])
            number += 1
    return [_text(name) for name in found]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _json(text: Any, size: int) -> Any:
    if len(text) > _LONGEST:
        raise RefusedValue(f"its configuration has {len(text)} bytes, expected at most {_LONGEST}")
    check_json(text := _text(text), size, "its configuration")
    return json.loads(text)


# ---- opening -------------------------------------------------------------------------------------


class _Part(io.RawIOBase):
    """The bytes of a file from one place on, as a file."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(count)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


@contextlib.contextmanager
def opened(path: Any) -> Iterator[File]:
    """Give a file of Keras, the places of its variables found.

    Whatever does not fit while it is open is a ValueError that names it.

    Parameters
    ----------
    path : path

    Raises
    ------
    OSError
        If the file cannot be read.
    ModuleNotFoundError
        If h5py is not installed.
    ValueError
        If it is not a file of Keras, or one that cannot be loaded.
    """
    path = as_path(path)
    with refusing(path, "a model of Keras that can be loaded"):
        check_ordinary(path)
        with open(path, "rb") as file:
            start = file.read(8)
            size = os.fstat(file.fileno()).st_size
            if start.startswith(_ZIP):
                check_directory(file, size)
                with zipfile.ZipFile(file) as archive:
                    config = _json(_member(archive, "config.json", size).read(_LONGEST + 1), size)
                    version = ""
                    if "metadata.json" in archive.namelist():
                        about = _json(_member(archive, "metadata.json", size).read(_LONGEST + 1),
                                      size)
                        version = _checks.show(about["keras_version"]).strip("'")
                    held = max(size, archive.getinfo(_WEIGHTS).file_size)  # if it is compressed
                    with _weights(archive, file, size) as weights, _h5(weights) as root:
                        yield File(root, held, config, version)
            elif start == _HDF5:
                file.seek(0)
                with _h5(file) as root:
                    yield File(root, size, None, "")
            else:
                raise RefusedValue("it is neither a zip archive nor an HDF5 file")


def _member(archive: zipfile.ZipFile, name: str, size: int) -> Any:
    """Return a member of the archive, opened, if it is not much larger than the archive."""
    names = archive.namelist()
    if names.count(name) != 1:
        of = "is missing" if name not in names else "is there twice"
        raise RefusedValue(f"{name} {of} in the archive")
    info = archive.getinfo(name)
    limit = max(2 * size, _BLOCK)
    if info.file_size > limit:
        raise RefusedValue(f"{name} has {info.file_size} bytes when it is unpacked, expected at "
                           f"most {limit} in an archive of {size}")
    return archive.open(name)


@contextlib.contextmanager
def _weights(archive: zipfile.ZipFile, file: BinaryIO, size: int) -> Iterator[Any]:
    """Give the HDF5 member as a file: in its place if it is not compressed, as Keras has it.

    A compressed one is unpacked to a temporary file, since memory is for the model.
    """
    with contextlib.ExitStack() as stack:
        info = archive.getinfo(_WEIGHTS)
        with _member(archive, _WEIGHTS, size) as member:
            if info.compress_type == zipfile.ZIP_STORED:
                while member.read(_BLOCK):  # compares the checksum
                    pass
                file.seek(info.header_offset)
                name, extra = struct.unpack("<HH", file.read(30)[26:30])
                part: Any = _Part(file, info.header_offset + 30 + name + extra, info.file_size)
            else:
                part = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(member, part, _BLOCK)
        yield part


def _h5py() -> Any:
    try:
        return importlib.import_module("h5py")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("files of Keras need h5py: pip install h5py",
                                  name="h5py") from error


def _places(file: Any) -> tuple[list[int], list[int]]:
    """Return where the heaps of a file begin, and the names of attributes that have texts."""
    heaps: list[int] = []
    names: list[int] = []
    at, before = 0, b""
    longest = max(map(len, (_HEAP, *_ATTRIBUTES)))
    marks = re.compile(b"|".join(map(re.escape, (_HEAP, *_ATTRIBUTES))))
    file.seek(0)
    while block := file.read(_BLOCK):
        data = before + block
        for found in marks.finditer(data):
            if found.end() > len(before):  # else it was found in the block before
                (heaps if found[0] == _HEAP else names).append(at - len(before) + found.start())
        at += len(block)
        before = data[1 - longest :]
    return heaps, names


def _check_texts(file: Any, names: list[int]) -> None:
    """Refuse an attribute with a text that is longer than the file.

    HDF5 takes memory for a text before it looks whether the text is there. `names` are the places
    of attributes' names, in order.
    """
    size, behind = file.seek(0, 2), 0
    for place in names:
        for version, before in ((1, 8), (2, 8), (3, 9)):
            file.seek(place - before)
            head = file.read(8)
            if len(head) < 8 or head[0] != version:
                continue
            if place < behind:  # real ones do not overlap, and each is read once
                raise RefusedValue("it has attributes that lie in each other")
            file.seek(place - before)
            lengths, end = _text_lengths(file, version, before)
            behind = max(behind, place - before + end)
            if any(length > size for length in lengths):
                raise RefusedValue("it has an attribute with a text longer than the file")


def _text_lengths(file: Any, version: int, at: int) -> tuple[list[int], int]:
    """Return the lengths of an attribute's texts with the size of an entry, and where it ends.

    An attribute has a version, the sizes of three parts, and the parts: its name at `at`, its type
    and its shape. Then each text has its length (4 bytes), the place of a heap (8), a number (4).
    Of an attribute that has no texts the list is empty and the end 0.
    """
    head = file.read(at)
    sizes = struct.unpack_from("<3H", head, 2)
    name, kind, shape = (-(-size // 8) * 8 for size in sizes) if version == 1 else sizes
    file.seek(name, 1)
    entry = file.read(8)
    if len(entry) < 8 or entry[0] & 15 != _ANY_LENGTH:
        return [], 0
    if entry[1] & 15 != _TEXT:  # HDF5 2.0 crashes at kinds that do not exist
        raise RefusedValue("it has an attribute of another type, expected a text")
    file.seek(kind - 8, 1)
    form = file.read(shape)
    first = 8 if form[:1] == b"\1" else 4
    if len(form) < first:
        return [], 0
    dims = struct.unpack_from(f"<{max(0, min(form[1], (len(form) - first) // 8))}Q", form, first)
    texts = file.read(16 * min(math.prod(dims), _BLOCK // 16))
    whole = texts[: len(texts) // 16 * 16]
    lengths = [length for length, _, _ in struct.iter_unpack("<LQL", whole)]
    return [struct.unpack_from("<L", entry, 4)[0], *lengths], at + name + kind + shape + len(texts)


def _check_heaps(file: Any, heaps: list[int]) -> None:
    """Refuse a heap of texts whose entries do not follow each other to its end.

    HDF5 2.0 can search such a heap for ever.
    """
    end = file.seek(0, 2)
    for place in heaps:
        file.seek(place + 8)
        left = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0] - 16
        if left > end:
            raise RefusedValue("it has a heap that is larger than the file")
        while left >= 16:
            entry = file.read(16)
            if len(entry) < 16:
                raise RefusedValue("it has a heap that ends too early")
            number, _, size = struct.unpack("<HxxLQ", entry)
            needed = 16 + -(-size // 8) * 8 if number else size  # 0: what is free, to the end
            if needed > left or (not number and size != left):
                raise RefusedValue("it has a heap whose entries do not fit")
            left -= needed
            file.seek(needed - 16, 1)


@contextlib.contextmanager
def _h5(file: Any) -> Iterator[Any]:
    file.seek(0)
    start = file.read(16)
    if not start.startswith(_HDF5) or len(start) < 16:
        raise RefusedValue("its variables are no HDF5 file")
    lengths = start[14] if start[8] < 2 else start[10]
    if lengths != 8:
        raise RefusedValue(f"it has lengths of {lengths} bytes, expected 8")
    heaps, names = _places(file)
    _check_heaps(file, heaps)
    _check_texts(file, names)
    with _h5py().File(file, "r") as root:
        yield root
