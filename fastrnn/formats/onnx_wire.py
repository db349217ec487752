"""ONNX files read piece by piece: the graph without its tensors' numbers, and where these are.

A parser of the whole file would hold all weights once more. So a walk over the fields of the file
copies what describes the graph, and notes the place of each tensor's numbers, which are read into
their array when it is made. The format is that of Protocol Buffers: a message is a list of fields,
each with a number, a type, and, if it is a text, an array or a message, its length.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fastrnn._checks import RefusedValue

__all__ = ["Payload", "Payloads", "Source", "light"]

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE = range(6)
# of each message the numbers of the fields that are kept, and which of them are messages like these
_KEPT: tuple[dict[int, int | None], ...] = (
    {1: None, 7: _GRAPH, 8: None},
    {1: _NODE, 2: None, 5: _TENSOR, 11: None, 12: None, 15: _SPARSE},
    {1: None, 2: None, 3: None, 4: None, 5: _ATTRIBUTE, 7: None},
    {**dict.fromkeys((1, 2, 3, 4, 7, 8, 9, 14, 15, 20, 21)), 5: _TENSOR, 6: _GRAPH, 10: _TENSOR,
     11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14)),
    {1: _TENSOR, 2: _TENSOR, 3: None})
RAW = 9  # the field of a tensor with its bytes
_NUMBERS = (4, 5, 7, RAW, 10, 11)  # the fields of a tensor with its numbers
# bytes of memory that a graph takes for each node, each other message, and each other field; and
# how many it may take beside the file: tiny messages would take a hundred times their bytes
_OF_NODE, _OF_MESSAGE, _OF_FIELD, _ROOM = 1500, 200, 32, 14 * 2**20
_DEEPEST = 100  # messages inside messages, as the parser has it
_PART = 2**17  # bytes of whole numbers that are decoded at a time
_OWN_PAGES = 2**20  # bytes from which on an array has pages of its own
_VARINT, _EIGHT, _SIZED, _FOUR = 0, 1, 2, 5  # the types of fields


class Source:
    """A file, or bytes in memory, that is read at any place.

    Parameters
    ----------
    given : binary file or memoryview
    size : int
        Its bytes.
    """

    def __init__(self, given: BinaryIO | memoryview, size: int) -> None:
        self._given, self.size = given, size

    def get(self, at: int, count: int) -> bytes:
        """Return bytes, fewer at the end."""
        if isinstance(self._given, memoryview):
            return bytes(self._given[at : at + count])
        self._given.seek(at)
        return self._given.read(count)

    def into(self, at: int, array: np.ndarray) -> None:
        """Fill an array with bytes."""
        flat = array.reshape(-1).view(np.uint8).data
        if isinstance(self._given, memoryview):
            flat[:] = self._given[at : at + len(flat)]
            return
        self._given.seek(at)
        done = 0
        while done < len(flat):
            count = self._given.readinto(flat[done:])  # type: ignore[attr-defined]
            if not count:
                raise RefusedValue("it became shorter while it was read")
            done += count


class Payload(NamedTuple):
    """Where the numbers of a tensor are: the number of their field, and the bytes."""

    field: int
    at: int
    size: int


class Payloads:
    """The numbers of a file's tensors, which are read when they are needed."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._places: list[Payload] = []

    def note(self, field: int, at: int, size: int) -> bytes:
        """Keep a place; return the key that stands for it in a tensor's raw_data."""
        self._places.append(Payload(field, at, size))
        return (len(self._places) - 1).to_bytes(8, "little")

    def of(self, tensor: Any) -> Payload | None:
        """Return the place of a TensorProto's numbers, None if it has none there."""
        return self._places[int.from_bytes(tensor.raw_data, "little")] if tensor.HasField(
            "raw_data") else None

    def array(self, payload: Payload, dtype: np.dtype, count: int) -> np.ndarray:
        """Return this many numbers of little-endian bytes."""
        a = _room(dtype, count)
        self._source.into(payload.at, a)
        return a

    def wholes(self, payload: Payload, dtype: np.dtype, count: int) -> np.ndarray | None:
        """Return whole numbers of 7 bits a byte as a flat array, None if they are not `count`.

        The last byte of a number is below 128, its first byte has the lowest bits.
        """
        ends = sum(int(np.count_nonzero(b < 128)) for b in self._parts(payload))
        if ends != count:
            return None
        a, at, rest = np.empty(count, dtype), 0, np.zeros(0, np.uint8)
        for part in self._parts(payload):
            b = np.concatenate([rest, part])
            last = np.flatnonzero(b < 128)
            first = np.concatenate([[0], last[:-1] + 1]) if last.size else last
            value = np.zeros(last.size, np.uint64)
            longest = int((last - first).max(initial=-1)) + 1
            if longest > 10:
                return None
            for k in range(longest):
                inside = first + k <= last
                bits = (b[np.minimum(first + k, last)] & 127).astype(np.uint64)
                value |= np.where(inside, bits << np.uint64(7 * k), np.uint64(0))
            a[at : at + last.size] = value.astype(np.int64).astype(dtype)
            at += last.size
            rest = b[last[-1] + 1 :] if last.size else b
            if rest.size > 10:
                return None
        return None if rest.size else a

    def _parts(self, payload: Payload) -> Iterator[np.ndarray]:
        for at in range(0, payload.size, _PART):
            yield np.frombuffer(self._source.get(payload.at + at, min(_PART, payload.size - at)),
                                np.uint8)


def _room(dtype: np.dtype, count: int) -> np.ndarray:
    """Return an array to fill.

    A large one has pages of its own, which go back to the system with it; from the heap they would
    stay beside the layers.
    """
    size = count * dtype.itemsize
    if size < _OWN_PAGES:
        return np.empty(count, dtype)
    try:
        return np.frombuffer(mmap.mmap(-1, size), dtype)
    except OSError as error:
        raise MemoryError(f"{size} bytes for a tensor") from error


def light(source: Source) -> tuple[bytes, Payloads]:
    """Return a ModelProto as bytes without the numbers of its tensors, and these.

    Each tensor has a key in its raw_data, which stands for the place of its numbers.
    """
    payloads = Payloads(source)
    return _Walk(source, payloads).message(_MODEL, 0, source.size, 0), payloads


class _Walk:
    """Copies the fields of messages."""

    def __init__(self, source: Source, payloads: Payloads) -> None:
        self._source, self._payloads = source, payloads
        self._left = _ROOM + source.size

    def message(self, kind: int, at: int, end: int, depth: int) -> bytes:
        """Return the bytes of a message from `at` to `end` without numbers of tensors."""
        if depth > _DEEPEST:
            raise RefusedValue(f"its messages are nested, expected at most {_DEEPEST} one in "
                               "another")
        made = bytearray()
        kept = _KEPT[kind]
        while at < end:
            begin = at
            tag, at = self._number(at)
            field, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                _, stop = self._number(at)
            elif wire == _SIZED:
                length, at = self._number(at)
                stop = at + length
            elif wire in (_EIGHT, _FOUR):
                stop = at + (8 if wire == _EIGHT else 4)
            else:
                raise RefusedValue(f"it is damaged at the byte {begin}")
            if stop > end or not field:
                raise RefusedValue(f"it is cut off or damaged at the byte {begin}")
            inner = kept.get(field)
            self._left -= _OF_FIELD if inner is None else (
                _OF_NODE if inner == _NODE else _OF_MESSAGE)
            if self._left < 0:
                raise RefusedValue(f"its graph has too many nodes and names for a file of "
                                   f"{self._source.size} bytes")
            if inner is not None and wire == _SIZED:
                part = self.message(inner, at, stop, depth + 1)
                made += _varint(field << 3 | _SIZED) + _varint(len(part)) + part
            elif kind == _TENSOR and field in _NUMBERS and wire == _SIZED:
                made += _varint(RAW << 3 | _SIZED) + b"\x08"
                made += self._payloads.note(field, at, stop - at)
            elif field in kept and inner is None and not (kind == _TENSOR and field == RAW):
                made += self._source.get(begin, stop - begin)
            at = stop
        return bytes(made)

    def _number(self, at: int) -> tuple[int, int]:
        """Return a whole number of 7 bits a byte, and where it ends."""
        value = 0
        for k, byte in enumerate(self._source.get(at, 10)):
            value |= (byte & 127) << 7 * k
            if byte < 128:
                return value, at + k + 1
        raise RefusedValue(f"it is cut off or damaged at the byte {at}")


def _varint(value: int) -> bytes:
    """Return a whole number as bytes of 7 bits."""
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)
