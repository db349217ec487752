"""ONNX files: `load` makes a function of one, `save` writes a model as one.

The package onnx parses the file (``pip install onnx``). Recurrent nodes run in fastrnn's layers,
the few operators around them in NumPy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrnn import _checks
from fastrnn._checks import Refused, RefusedType, RefusedValue, public
from fastrnn.formats.files import as_path, check_ordinary, refusing
from fastrnn.formats.onnx_export import dumps, save
from fastrnn.formats.onnx_graph import Compiler, Program
from fastrnn.formats.onnx_nodes import Tensors, dtype_of, package
from fastrnn.formats.onnx_wire import Source, light
from fastrnn.layers.recurrent import Recurrent

__all__ = ["OnnxModel", "Value", "dumps", "load", "save"]

_TYPED = "tensor_type"
_KIND = "an ONNX model that fastrnn can run"


class Value(NamedTuple):
    """An input or output of a model: its name, dtype, and shape.

    A size that the file does not fix is a name, or None. The shape is None if the file has none.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...] | None


class OnnxModel:
    """The model of an ONNX file, as a function; `fastrnn.onnx.load` makes it.

    Attributes
    ----------
    inputs, outputs : tuple of Value
        Name, dtype and shape of each.
    layers : dict
        Of each recurrent node with constant weights, by the node's name: its layers in evaluation
        mode, one, or one for each direction.
    unused : tuple of str
        The names of what the file has and no output depends on: tensors, nodes, and branches of an
        If whose condition is constant.
    opset : int
        The version of the file's operators.

    Examples
    --------
    >>> model = fastrnn.onnx.load("tagger.onnx")
    >>> (logits,) = model(x)
    >>> y, hn = model(x=x, h0=h0)
    """

    def __init__(
        self, label: str, program: Program, inputs: tuple[Value, ...], outputs: tuple[Value, ...],
        compiler: Compiler,
    ) -> None:
        self._label, self._program = label, program
        self.inputs, self.outputs = inputs, outputs
        self.layers: dict[str, tuple[Recurrent, ...]] = compiler.layers
        self.unused, self.opset = tuple(compiler.unused), compiler.opset

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs, in order."""
        return tuple(value.name for value in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs, in order."""
        return tuple(value.name for value in self.outputs)

    def __copy__(self) -> OnnxModel:
        made = OnnxModel.__new__(OnnxModel)
        made.__dict__.update(self.__dict__)
        return made

    def __reduce__(self) -> Any:
        raise TypeError("an OnnxModel cannot be pickled or deeply copied, fastrnn.load makes "
                        "another")

    def __repr__(self) -> str:
        return f"OnnxModel({', '.join(self.input_names)} -> {', '.join(self.output_names)})"

    @public
    def __call__(self, *arrays: Any, **named: Any) -> tuple[np.ndarray, ...]:
        """Compute the outputs.

        Parameters
        ----------
        *arrays : arrays, or one dict
            The inputs in order; or a dict of them by name, for names that no keyword can have.
        **named : arrays
            The inputs by name.

        Returns
        -------
        tuple of arrays
            One for each output, in order.

        Raises
        ------
        TypeError
            If an input is missing or unknown, or has another dtype.
        ValueError
            If a shape does not fit, the dtype cannot hold a number of a list, or a node cannot
            compute; it names the node.
        """
        if len(arrays) == 1 and isinstance(arrays[0], Mapping):
            named, arrays = {**arrays[0], **named}, ()
        given = dict(zip(self.input_names, arrays, strict=False))
        twice = [name for name in named if name in given]
        unknown = [name for name in named if name not in self.input_names]
        missing = [name for name in self.input_names if name not in given and name not in named]
        if len(arrays) > len(self.inputs) or twice or unknown or missing:
            problems = [f"{what} {names}" for what, names in (
                ("missing", missing), ("unknown", unknown), ("given twice", twice)) if names]
            raise RefusedType(f"{len(arrays)} inputs are given in order and {len(named)} by name"
                              f"{''.join('; ' + p for p in problems)}, expected "
                              f"{list(self.input_names)}")
        given |= named
        values = [_checked(value, given[value.name]) for value in self.inputs]
        try:
            with np.errstate(all="ignore"):
                results = self._program(*values)
        except Refused as error:
            kind = RefusedType if isinstance(error, RefusedType) else RefusedValue
            raise kind(f"{self._label}, {error}") from error
        except MemoryError as error:
            raise MemoryError(f"{self._label}, {error}") from error
        return tuple(_own(a) for a in results)


def _own(a: np.ndarray) -> np.ndarray:
    """Return a copy, which no constant and no input shares."""
    return np.array(a, order="C")


def _checked(value: Value, given: Any) -> np.ndarray:
    """Return an input as an array if it has the dtype and the shape of the file."""
    a = _checks.as_array(value.name, given, value.dtype)
    if isinstance(given, np.ndarray) or hasattr(given, "__array__"):
        if a.dtype.newbyteorder("=") != value.dtype and not (
                a.dtype.kind in "iu" and np.can_cast(a.dtype, value.dtype)):
            raise RefusedType(f"{value.name} is {a.dtype.name}, expected {value.dtype.name}")
        a = a.astype(value.dtype, copy=False)
    else:
        # a list of whole numbers may become floats, and nothing else becomes something else
        if value.dtype.kind in "fiu" and a.dtype.kind in "fO" and all(
                type(number) is int for number in np.array(given, object).flat):
            a = _whole(value, given)  # beyond int64, for which NumPy has no dtype of its own
        elif a.size and a.dtype.kind not in {"f": "fiu", "i": "iu", "u": "iu"}.get(
                value.dtype.kind, value.dtype.kind):
            raise RefusedType(f"{value.name} is {_checks.show(given)}, expected an array of "
                              f"{value.dtype.name}")
        a = _held(value, a)
    if value.shape is not None and (len(a.shape) != len(value.shape) or any(
            isinstance(n, int) and n != m for n, m in zip(value.shape, a.shape, strict=True))):
        shown = tuple("?" if n is None else n for n in value.shape)
        raise RefusedValue(f"{value.name} has the shape {a.shape}, expected "
                           f"({', '.join(map(str, shown))})")
    return a


def _whole(value: Value, given: Any) -> np.ndarray:
    try:
        return np.array(given, value.dtype)
    except OverflowError as error:
        raise RefusedValue(f"{value.name} has whole numbers that {value.dtype.name} cannot "
                           "hold") from error


def _held(value: Value, a: np.ndarray) -> np.ndarray:
    """Return the numbers of a list in the dtype of an input; refuse those beyond it."""
    if value.dtype.kind == "f":
        return _checks.held(value.name, a, value.dtype)
    converted = a.astype(value.dtype)
    if not np.array_equal(converted, a):
        raise RefusedValue(f"{value.name} has {a[converted != a][0]}, which {value.dtype.name} "
                           "cannot hold")
    return converted


# ---- loading -------------------------------------------------------------------------------------


@public
def load(source: Any) -> OnnxModel:
    """Return the model of an ONNX file as a function.

    Parameters
    ----------
    source : path or bytes
        A file, or what a file contains. A file may have tensors in other files of its folder.

    Returns
    -------
    OnnxModel

    Raises
    ------
    ModuleNotFoundError
        If the package onnx is not installed.
    OSError
        If the file cannot be read.
    ValueError
        If it is no ONNX file, damaged, or has an operator or attribute that fastrnn does not have;
        the sentence names the file and the node.
    MemoryError
        If there is not enough memory for it.

    Notes
    -----
    The standard decides where ONNX Runtime 1.32 differs from it: `clip` bounds the argument of an
    LSTM's last activation too, and Affine, ScaledTanh and ThresholdedRelu have the defaults alpha =
    1 and beta = 0 or 1.
    """
    onnx = package()
    if isinstance(source, (bytes, bytearray, memoryview)):
        with refusing("the model", _KIND):
            view = memoryview(source).cast("B")
            return _model(onnx, "the model", Source(view, len(view)), None)
    path = as_path(source, "source", "the name of a file, or bytes")
    label = repr(str(path))
    with refusing(path, _KIND):
        check_ordinary(path)
        with open(path, "rb") as file:
            return _model(onnx, label, Source(file, os.fstat(file.fileno()).st_size), path.parent)


def _model(onnx: Any, label: str, source: Source, folder: Path | None) -> OnnxModel:
    """Return the model of a file."""
    data, payloads = light(source)
    proto = onnx.ModelProto()
    proto.ParseFromString(data)
    if not proto.HasField("graph"):
        raise RefusedValue("it has no graph")
    opset = next((a.version for a in proto.opset_import if a.domain in ("", "ai.onnx")), None)
    if opset is None or opset < 1:
        raise RefusedValue("it does not say which version of the operators it has")
    graph = proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = tuple(_value(a) for a in graph.input if a.name not in weights)
    outputs = tuple(_value(a) for a in graph.output)
    compiler = Compiler(opset, Tensors(folder, payloads), source.size)
    program = compiler.program(graph, [value.name for value in inputs],
                               compiler.tensors_of(graph))
    return OnnxModel(label, program, inputs, outputs, compiler)


def _value(info: Any) -> Value:
    """Return what a file says about an input or output."""
    name = f"{_checks.show(info.name)}"
    kind = info.type.WhichOneof("value")
    if kind != _TYPED:
        raise RefusedValue(f"{name} is of the kind {kind}, expected a tensor")
    tensor = info.type.tensor_type
    shape: tuple[Any, ...] | None = None
    if tensor.HasField("shape"):
        sizes = []
        for dim in tensor.shape.dim:
            fixed = dim.WhichOneof("value") == "dim_value"
            sizes.append((dim.dim_value if dim.dim_value >= 0 else None) if fixed
                         else dim.dim_param or None)
        shape = tuple(sizes)
    return Value(info.name, dtype_of(tensor.elem_type, name), shape)
