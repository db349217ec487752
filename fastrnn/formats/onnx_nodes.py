"""Tensors and nodes of an ONNX file, checked: what a file claims is compared with what it holds.

A tensor becomes a NumPy array, a node an object with attributes of known types. The package onnx
only parses the file; nothing of it is needed after loading.
"""

from __future__ import annotations

import importlib
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn.formats.onnx_wire import RAW, Payload, Payloads, Source

__all__ = ["DTYPES", "Node", "Tensors", "dtype_of", "package"]

# numbers of TensorProto.DataType, and the field of each that has the numbers if raw_data has not
_TYPES: dict[int, tuple[str, str]] = {
    1: ("float32", "float_data"), 2: ("uint8", "int32_data"), 3: ("int8", "int32_data"),
    4: ("uint16", "int32_data"), 5: ("int16", "int32_data"), 6: ("int32", "int32_data"),
    7: ("int64", "int64_data"), 9: ("bool", "int32_data"), 10: ("float16", "int32_data"),
    11: ("float64", "double_data"), 12: ("uint32", "uint64_data"), 13: ("uint64", "uint64_data")}
_NUMBERS = {"float_data": 4, "int32_data": 5, "int64_data": 7, "double_data": 10, "uint64_data": 11}
DTYPES = {number: np.dtype(name) for number, (name, _) in _TYPES.items()}
_MOST_AXES = 32  # of an array
_EXTERNAL = 1  # TensorProto.EXTERNAL


def package() -> Any:
    """Return the package onnx."""
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ModuleNotFoundError("ONNX files need the package onnx: pip install onnx",
                                  name="onnx") from error


def dtype_of(number: int, what: str) -> np.dtype:
    """Return the dtype of a number of TensorProto.DataType."""
    if number not in DTYPES:
        raise RefusedValue(f"{what} has the ONNX data type {number}, expected one of "
                           f"{sorted(dtype.name for dtype in DTYPES.values())}")
    return DTYPES[number]


class Tensors:
    """Makes arrays of the tensors of a file, and of files beside it.

    Parameters
    ----------
    folder : Path or None
        Where tensors may be that are in files of their own; None: nowhere.
    payloads : Payloads
        The numbers of the tensors that are in the file.
    """

    def __init__(self, folder: Path | None, payloads: Payloads) -> None:
        self._folder, self._payloads = folder, payloads

    def array(self, tensor: Any) -> np.ndarray:
        """Return the array of a TensorProto, if what it claims is what it holds."""
        name = f"the tensor {_checks.show(tensor.name)}"
        dtype, field = dtype_of(tensor.data_type, name), _TYPES[tensor.data_type][1]
        shape = tuple(tensor.dims)
        if len(shape) > _MOST_AXES or any(n < 0 for n in shape):
            raise RefusedValue(f"{name} has the shape {_checks.show(shape)}")
        size = math.prod(shape)
        if size == 0 and math.prod(n for n in shape if n) > 2**62:  # NumPy could not count it
            raise RefusedValue(f"{name} has the shape {_checks.show(shape)}")
        if tensor.HasField("segment"):
            raise RefusedValue(f"{name} is a segment, expected a whole tensor")
        if tensor.data_location == _EXTERNAL:
            return self._beside(tensor, name, dtype, shape)
        payload = self._payloads.of(tensor)
        if payload is None:
            numbers = getattr(tensor, field)  # one by one, as no writer has them, or none
            if len(numbers) != size:
                raise RefusedValue(f"{name} has {len(numbers)} numbers, expected {size} for "
                                   f"{dtype.name} {shape}")
            return _of_bits(np.fromiter(
                numbers, np.int64 if dtype == np.float16 else dtype, size), dtype).reshape(shape)
        if payload.field != RAW:
            return self._packed(payload, name, field, dtype, shape)
        if payload.size != size * dtype.itemsize:
            raise RefusedValue(f"{name} has {payload.size} bytes, expected "
                               f"{size * dtype.itemsize} for {dtype.name} {shape}")
        return self._of_bytes(payload, dtype, size).reshape(shape)

    def _of_bytes(self, payload: Payload, dtype: np.dtype, size: int) -> np.ndarray:
        if dtype.kind == "b":
            a = self._payloads.array(payload, np.dtype(np.uint8), size)
            np.minimum(a, 1, out=a)
            return a.view(bool)
        return _native(self._payloads.array(payload, dtype.newbyteorder("<"), size))

    def _packed(
        self, payload: Payload, name: str, field: str, dtype: np.dtype, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Return the array of numbers that are in the field of their type."""
        size = math.prod(shape)
        a: np.ndarray | None = None
        if payload.field == _NUMBERS[field]:
            if dtype.itemsize >= 4 and dtype.kind == "f":
                if payload.size == size * dtype.itemsize:
                    a = self._of_bytes(payload, dtype, size)
            else:
                kind = np.dtype(np.uint16) if dtype == np.float16 else dtype
                a = self._payloads.wholes(payload, kind, size)
        if a is None:
            raise RefusedValue(f"{name} has other than {size} numbers, expected {size} for "
                               f"{dtype.name} {shape}, or they are in a field of another type")
        return _of_bits(a, dtype).reshape(shape)

    def _beside(
        self, tensor: Any, name: str, dtype: np.dtype, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Return the array of a tensor that is in another file of the same folder."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if self._folder is None:
            raise RefusedValue(f"{name} is in the file {_checks.show(location)}, expected it here: "
                               "bytes have no folder")
        parts = PurePosixPath(location).parts
        folder = place = Path(os.path.realpath(self._folder))
        if parts and not set("\\\0") & set(location):
            place = Path(os.path.realpath(folder.joinpath(*parts)))  # where links lead
        if place == folder or parts[0] == "/" or ".." in parts or folder not in place.parents:
            raise RefusedValue(f"{name} is in the file {_checks.show(location)}, expected a file "
                               "in the folder of the model")
        size = math.prod(shape) * dtype.itemsize
        offset, length = (_whole(name, entries, key, other)
                          for key, other in (("offset", 0), ("length", size)))
        if length != size:
            raise RefusedValue(f"{name} has {length} bytes, expected {size} for {dtype.name} "
                               f"{shape}")
        about = os.stat(place)
        if not stat.S_ISREG(about.st_mode) or offset + size > about.st_size:
            raise RefusedValue(f"{name} is at the bytes {offset} to {offset + size} of "
                               f"{_checks.show(location)}, which ends before, or is no ordinary "
                               "file")
        with open(place, "rb") as file:
            try:
                beside = Payloads(Source(file, about.st_size))
                return Tensors(None, beside)._of_bytes(
                    Payload(RAW, offset, size), dtype, math.prod(shape)).reshape(shape)
            except RefusedValue as error:
                raise RefusedValue(f"{_checks.show(location)} ends before {name}") from error


def _native(a: np.ndarray) -> np.ndarray:
    """Return an array in the byte order of the machine."""
    return a if a.dtype.isnative else a.astype(a.dtype.newbyteorder("="))


def _of_bits(a: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return numbers, which for float16 are its bits."""
    return a.astype(np.uint16).view(dtype) if dtype == np.float16 else a


def _whole(name: str, entries: dict[str, str], key: str, other: int) -> int:
    text = entries.get(key, str(other))
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise RefusedValue(f"{name} has the {key} {_checks.show(text)}, expected a whole number")
    return int(text)


# ---- nodes ---------------------------------------------------------------------------------------

# by the number of AttributeProto.AttributeType: what its value is
_FLOAT, _INT, _STRING, _TENSOR, _GRAPH, _FLOATS, _INTS, _STRINGS = 1, 2, 3, 4, 5, 6, 7, 8
_FIELDS = {_FLOAT: "f", _INT: "i", _STRING: "s", _TENSOR: "t", _GRAPH: "g", _FLOATS: "floats",
           _INTS: "ints", _STRINGS: "strings"}
_WORDS = {_FLOAT: "a number", _INT: "a whole number", _STRING: "a text", _TENSOR: "a tensor",
          _GRAPH: "a graph", _FLOATS: "numbers", _INTS: "whole numbers", _STRINGS: "texts"}


class Node:
    """A node of a graph: its operator, names, and attributes.

    Attributes
    ----------
    op, name : str
        The operator, and what the node is called in messages.
    inputs, outputs : tuple of str
        Names of values; "" is an input that is not given, or an output that nobody wants.
    opset : int
        The version of the operators.
    """

    __slots__ = ("_attributes", "_tensors", "domain", "inputs", "key", "op", "opset", "outputs")

    def __init__(self, proto: Any, opset: int, tensors: Tensors) -> None:
        self.op: str = proto.op_type
        self.domain: str = proto.domain
        self.inputs: tuple[str, ...] = tuple(proto.input)
        self.outputs: tuple[str, ...] = tuple(proto.output)
        self.key: str = proto.name or next(filter(None, self.outputs), "")
        self.opset = opset
        self._tensors = tensors
        self._attributes = {attribute.name: attribute for attribute in proto.attribute}

    @property
    def name(self) -> str:
        """What the node is called in messages."""
        return f"node {_checks.show(self.key)} ({_checks.show(self.op)[1:-1]})"

    def _take(self, name: str, kind: int, other: Any) -> Any:
        """Return the value of an attribute, which counts as used from then on."""
        attribute = self._attributes.pop(name, None)
        if attribute is None:
            return other
        if attribute.type != kind or attribute.ref_attr_name:
            raise RefusedValue(f"its attribute {name!r} is not {_WORDS[kind]}")
        return getattr(attribute, _FIELDS[kind])

    def whole(self, name: str, other: Any = None) -> Any:
        """Return a whole number, or `other` if there is no such attribute."""
        return self._take(name, _INT, other)

    def flag(self, name: str) -> bool:
        """Return whether a whole number is 1 and not 0, which it is if it is not given."""
        value = self.whole(name, 0)
        if value not in (0, 1):
            raise RefusedValue(f"its attribute {name!r} is {value}, expected 0 or 1")
        return bool(value)

    def number(self, name: str, other: Any = None) -> Any:
        """Return a number."""
        return self._take(name, _FLOAT, other)

    def wholes(self, name: str, other: Any = None) -> Any:
        """Return whole numbers as a tuple."""
        value = self._take(name, _INTS, None)
        return other if value is None else tuple(value)

    def numbers(self, name: str, other: Any = None) -> Any:
        """Return numbers as a tuple."""
        value = self._take(name, _FLOATS, None)
        return other if value is None else tuple(value)

    def text(self, name: str, other: str) -> Any:
        """Return a text."""
        value = self._take(name, _STRING, None)
        return other if value is None else value.decode("utf-8", "replace")

    def texts(self, name: str, other: Any = None) -> Any:
        """Return texts as a tuple."""
        value = self._take(name, _STRINGS, None)
        return other if value is None else tuple(a.decode("utf-8", "replace") for a in value)

    def array(self, name: str) -> np.ndarray | None:
        """Return the array of a tensor, or None."""
        value = self._take(name, _TENSOR, None)
        return None if value is None else self._tensors.array(value)

    def graph(self, name: str) -> Any:
        """Return a graph."""
        value = self._take(name, _GRAPH, None)
        if value is None:
            raise RefusedValue(f"it has no attribute {name!r}")
        return value

    def check_all_used(self) -> None:
        """Refuse attributes that no code has asked for."""
        if self._attributes:
            raise RefusedValue(f"it has the attributes {_checks.show(sorted(self._attributes))}, "
                               "which its operator does not have in fastrnn")

    def check_inputs(self, least: int, most: int) -> None:
        """Refuse a node with too few or too many inputs, or without a needed one."""
        n = len(self.inputs)
        if not least <= n <= most or not all(self.inputs[:least]):
            expected = str(least) if least == most else f"{least} to {most}"
            raise RefusedValue(f"it has {sum(map(bool, self.inputs))} inputs, expected {expected}")


# What a node computes: arrays in the order of its inputs (None: not given), outputs as a tuple.
Run = Callable[..., tuple[Any, ...]]
