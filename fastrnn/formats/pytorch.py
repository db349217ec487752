"""Weights under PyTorch's names: safetensors files of any program, and PyTorch's own files.

PyTorch's own files are pickles in a zip archive. They are read by torch.load(weights_only=True),
which makes tensors and containers of them only; without torch they are refused. Letters: V symbols,
N outputs.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue
from fastrnn.formats import safetensors
from fastrnn.formats.files import (
    TORCH,
    NamedError,
    as_path,
    check_directory,
    in_evaluation,
    refusing,
    suffix,
    write_file,
)
from fastrnn.formats.structure import ROLES, Choices, Found, find
from fastrnn.layers.layer import Layer
from fastrnn.layers.parameters import Parametrized
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.single import SINGLE, SingleCell
from fastrnn.layers.standard import GRU, RNN
from fastrnn.models.model import Model

__all__ = ["Options", "load_arrays", "load_safetensors", "load_torch", "save", "state_dict"]

_WRAPPERS = ("state_dict", "model_state_dict")
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
_BLOCK = 1 << 20  # numbers that are converted at once
_SHARED = 2**20  # bytes that tensors of a small file may have in common
# bytes that the pickle of a small file may have: a byte of it can become an object of sixty
_PICKLE = 2**18


class Options(NamedTuple):
    """How a file with PyTorch's names is read; see fastrnn.load."""

    mapping: Mapping[str, Any] | None = None
    prefix: str = ""
    strict: bool = True
    nonlinearity: str = "tanh"
    loss: str = "softmax"
    readout: str = "every"


class _Tensor(NamedTuple):
    """A tensor of a file: `fill` writes its values into an array of its shape.

    `dtype` is that of an array which holds all its values; None if it is no array of floats, and
    `instead` says what it has.
    """

    shape: tuple[int, ...]
    dtype: np.dtype | None
    fill: Callable[[np.ndarray], None]
    instead: str = "no floats"


Make = Callable[[str, dict[str, Any]], Any]


# ---- reading -------------------------------------------------------------------------------------


def load_safetensors(file: safetensors.File, options: Options, make: Make) -> Any:
    """Return the model of an open safetensors file without anything of fastrnn."""
    tensors = {}
    for name, entry in file.entries.items():
        dtype: np.dtype | None = np.dtype(entry.dtype).newbyteorder("=")
        if entry.bfloat16:
            dtype = np.dtype(np.float32)
        tensors[name] = _Tensor(entry.shape, dtype if dtype in _FLOATS else None,
                                functools.partial(file.read_float, name))
    with _explaining(file.path):
        return _load(tensors, options, make)


def load_torch(path: Path, options: Options, make: Make) -> Any:
    """Return the model of a file that torch.save wrote, read by torch with weights_only."""
    with _explaining(path), open(path, "rb", buffering=0) as file:
        tensors = _read_torch(path, file, options.prefix)
        return _load(tensors, options, make, in_order=list(tensors) != sorted(tensors))


def load_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], options: Options, make: Make
) -> Any:
    """Return the model of a file's arrays of floats with PyTorch's names."""
    with _explaining(path):
        return _load({name: _Tensor(a.shape, a.dtype, functools.partial(_copy, a))
                      for name, a in arrays.items()}, options, make)


def _copy(a: np.ndarray, into: np.ndarray) -> None:
    into[...] = a


@contextlib.contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Name the file in what is refused."""
    try:
        yield
    except NamedError:
        raise
    except _checks.Refused as error:
        raise NamedError(f"{str(path)!r} gives no model: {error}") from error


def _load(
    tensors: dict[str, _Tensor], options: Options, make: Make, in_order: bool = False
) -> Any:
    """Find the model, make it once everything fits, and fill it."""
    below = _below(tensors, options.prefix)
    names, choices = _chosen(below, options)
    choices = choices._replace(in_order=in_order)
    renamed = {new: below[old] for new, old in names.items()}
    found = find({name: tensor.shape for name, tensor in renamed.items()}, choices)
    dtype = _common_dtype(found, renamed, names)
    model = _made(found, dtype, make)
    params = model.parameters()
    # the largest first: tensors in memory give way to the model, and the last ones are small
    for ours, theirs in sorted(found.names.items(), key=lambda item: -params[item[0]].nbytes):
        renamed[theirs].fill(params[ours])
    for ours in params:
        if ours not in found.names:  # the bias of a head that has none
            params[ours][...] = 0
    in_evaluation(model)
    used = {_dotted(options.prefix) + names[theirs] for theirs in found.names.values()}
    model.unused = tuple(name for name in tensors if name not in used)
    return model


def _dotted(prefix: str) -> str:
    return f"{prefix}." if prefix and not prefix.endswith(".") else prefix


def _below(tensors: dict[str, _Tensor], prefix: Any) -> dict[str, _Tensor]:
    """Return the tensors below a prefix by names without it."""
    if not isinstance(prefix, str):
        raise RefusedType(f"prefix is {_checks.show(prefix)}, expected the beginning of names")
    dotted = _dotted(prefix)
    below = {name[len(dotted):]: tensor for name, tensor in tensors.items()
             if name.startswith(dotted)}
    if tensors and not below:
        raise RefusedValue(f"no tensor is below the prefix {prefix!r}, it has "
                           f"{_checks.show(list(tensors))}")
    return below


def _chosen(
    tensors: Mapping[str, _Tensor], options: Options
) -> tuple[dict[str, str], Choices]:
    """Return the file's names by those that count, and what the mapping chooses.

    A mapping has roles ({"head": "fc"}) or renames ({"fc": "head"}): then what it calls embedding,
    layers.0, layers.1, ... and head has these roles.
    """
    mapping = {} if options.mapping is None else options.mapping
    if not isinstance(mapping, Mapping) or not all(isinstance(key, str) for key in mapping):
        raise RefusedType(f"mapping is {_checks.show(mapping)}, expected a dictionary of names")
    roles: dict[str, Any] = {}
    names = {name: name for name in tensors}
    if mapping and all(key in ROLES for key in mapping):
        roles = dict(mapping)
    elif mapping:
        names = _renamed("mapping", tensors, mapping)
        new = {name.rpartition(".")[0] for name, old in names.items() if name != old}
        for role in ("embedding", "head"):
            if role in new:
                roles[role] = role
        if any(name.startswith("layers.") for name in new):
            roles["layers"] = _numbered(new, names)
    return names, Choices(roles, _checks.flag("strict", options.strict), options.nonlinearity,
                          options.loss, options.readout)


def _numbered(new: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return layers.0, layers.1, ...: those that a mapping has named, and the file's own."""
    own = {name.rpartition(".")[0] for name in names}
    numbers = {_number(name) for name in new if name.startswith("layers.")} | {
        _number(name) for name in own if re.fullmatch(r"layers\.\d{1,6}", name)}
    if missing := [n for n in range(len(numbers)) if n not in numbers]:
        raise RefusedValue(f"mapping has layers.{max(numbers)} and no layers.{missing[0]}, "
                           "expected layers.0, layers.1, ... without a gap")
    return [f"layers.{n}" for n in sorted(numbers)]


def _number(layer: str) -> int:
    number = layer.removeprefix("layers.")
    if not number.isdecimal() or len(number) > 6 or number != str(int(number)):
        raise RefusedValue(f"mapping has the layer {layer!r}, expected layers.0, layers.1, ...")
    return int(number)


def _renamed(
    argument: str, tensors: Mapping[str, Any], mapping: Mapping[str, Any]
) -> dict[str, str]:
    """Return the names of tensors by new ones, without those that are mapped to None."""
    names: dict[str, str] = {}
    met = set()
    for name in tensors:
        old = max((key for key in mapping if name == key or name.startswith(f"{key}.")),
                  key=len, default=None)
        new = name
        if old is not None:
            met.add(old)
            to = mapping[old]
            if to is None:
                continue
            if not isinstance(to, str):
                raise RefusedType(f"{argument}[{old!r}] is {_checks.show(to)}, expected a name")
            new = to + name[len(old):]
        if new in names:
            raise RefusedValue(f"{argument} calls both {names[new]} and {name} {new!r}")
        names[new] = name
    if unmet := [key for key in mapping if key not in met]:
        raise RefusedValue(f"{argument} has {unmet[0]!r}, expected names of tensors or modules: it "
                           f"has {_checks.show(list(tensors))}")
    return names


def _common_dtype(
    found: Found, tensors: Mapping[str, _Tensor], names: Mapping[str, str]
) -> np.dtype:
    """Return float64 if a tensor of the model has it, else float32, which holds all others."""
    wide = False
    for theirs in found.names.values():
        dtype = tensors[theirs].dtype
        if dtype is None:
            raise RefusedType(f"{names[theirs]} has {tensors[theirs].instead}, expected float16, "
                              "bfloat16, float32 or float64")
        wide |= dtype == np.float64
    return np.dtype(np.float64 if wide else np.float32)


def _made(found: Found, dtype: np.dtype, make: Make) -> Any:
    config = dict(found.config)
    if "layers" in config:
        config["layers"] = [layer | {"dtype": dtype.name} for layer in config["layers"]]
    else:
        config["dtype"] = dtype.name
    return make(found.kind, config)


# ---- PyTorch's own files -------------------------------------------------------------------------


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ModuleNotFoundError(
            "a file of PyTorch is read and written by torch, expected it to be installed: pip "
            "install torch, or, where torch is, convert the file: "
            "safetensors.torch.save_file(state_dict, 'model.safetensors')", name="torch"
        ) from error
    return torch


def _read_torch(path: Path, file: BinaryIO, prefix: Any) -> dict[str, _Tensor]:
    torch = _torch()
    size = os.path.getsize(path)
    archive = zipfile.is_zipfile(path)
    little = archive and _check_archive(file, size)
    with refusing(path, "a file that torch.load(weights_only=True) reads"), \
            warnings.catch_warnings(), open(path, "rb") as whole:
        warnings.simplefilter("ignore")  # of old files; what matters is checked here
        options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
        source: Any = _Bounded(whole, size)
        # mapped, so the tensors are pages of the file, and no copies; torch goes by this suffix
        if archive and suffix(path) != ".safetensors":
            source, options["mmap"] = path, True
        try:
            read = torch.load(source, **options)
        except pickle.UnpicklingError as error:
            # torch's advice, to trust the file, is long
            known = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            if known is None:
                raise
            raise RefusedValue(f"it has an object of {known[1]}, expected tensors alone, as "
                               "torch.save(model.state_dict(), path) writes them") from error
    if not isinstance(read, Mapping):
        raise RefusedValue(f"it is {_checks.kind(read)}, expected a state_dict")
    read = _unwrapped(read, prefix)
    places = _Places(path, file, little)
    tensors, total = {}, 0
    for name, value in read.items():
        if not isinstance(name, str):
            raise RefusedValue(f"a name in it is {_checks.show(name)}, expected a text")
        if not isinstance(value, torch.Tensor):  # such as a version
            tensors[name] = _Tensor((), None, lambda _: None)
            continue
        tensors[name] = tensor = _torch_tensor(torch, name, value.detach(), places)
        total += math.prod(tensor.shape) * value.element_size()
    if total > 2 * size + _SHARED:  # tensors may share numbers, as an embedding and a head do
        raise RefusedValue(f"its tensors have {_checks.show(total)} bytes, the file {size}")
    return tensors


def _unwrapped(read: Mapping[Any, Any], prefix: Any) -> Mapping[Any, Any]:
    """Return the parameters of a checkpoint: those of its state_dicts, and what lies beside them.

    A state_dict that is alone is taken without its name, unless the prefix begins with that. The
    names of several begin with their own, and are sorted: their order is no module's. What has no
    weights and biases is left out: an optimizer's state, numbers, averages of the data.
    """
    inner = {key: value for key, value in read.items()
             if isinstance(key, str) and isinstance(value, Mapping)
             and (key in _WRAPPERS or any(map(_is_parameter, value, value.values())))}
    if not inner:
        return read
    beside = {key: value for key, value in read.items() if _is_parameter(key, value)}
    first = next(iter(inner))
    if len(inner) == 1 and not beside and not f"{prefix}.".startswith(f"{first}."):
        return inner[first]
    return dict(sorted((beside | {f"{key}.{name}": value for key, of in inner.items()
                                  for name, value in of.items()}).items()))


def _is_parameter(name: Any, value: Any) -> bool:
    """Return whether it is a weight or a bias by its name, and a tensor of floats with an axis."""
    return (isinstance(name, str) and name.rpartition(".")[2].startswith(("weight", "bias"))
            and bool(getattr(value, "ndim", 0)) and value.is_floating_point())


def _check_archive(file: BinaryIO, size: int) -> bool:
    """Refuse an archive that is larger than its file; torch does not pack what it writes.

    Return whether its numbers are little-endian.
    """
    check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        order = [archive.read(info) for info in members
                 if info.filename.endswith("/byteorder") and info.file_size < 10]
    if any(info.filename.endswith("/constants.pkl") for info in members):
        raise RefusedValue("it is of TorchScript, expected a state_dict: that of torch.jit.load")
    unpacked = sum(info.file_size for info in members)
    if unpacked > size:
        raise RefusedValue(f"it unpacks to {_checks.show(unpacked)} bytes, expected at most its "
                           f"own {size}")
    pickled = sum(info.file_size for info in members if info.filename.endswith(".pkl"))
    if pickled > _PICKLE + size // 16:
        raise RefusedValue(f"its pickle has {pickled} bytes beside the tensors, too many for a "
                           f"file of {size}")
    return order in ([], [b"little"])


class _Bounded:
    """A file for torch, which asks for as many bytes as a text in the file claims to have."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.readinto = file.readinto  # type: ignore[attr-defined]
        self.seek, self.tell, self.readline = file.seek, file.tell, file.readline

    def read(self, count: int = -1) -> bytes:
        """Return so many bytes, or those that are left."""
        left = max(0, self._size - self.tell())
        return self._file.read(left if count < 0 else min(count, left))


class _Places:
    """Where the tensors of a mapped file are in it.

    What is read there does not take the memory of a mapped page, which stays until the file is
    closed. Linux says where a file is mapped; elsewhere no place is known.
    """

    def __init__(self, path: Path, file: BinaryIO, usable: bool) -> None:
        self._path, self._file = path, file
        self._ranges: list[tuple[int, int, int]] = []  # addresses, and what of the file is there
        if usable and sys.platform == "linux" and sys.byteorder == "little":
            of = os.fstat(file.fileno())
            own = [f"{os.major(of.st_dev):02x}:{os.minor(of.st_dev):02x}", str(of.st_ino)]
            with contextlib.suppress(OSError), open("/proc/self/maps") as lines:
                for line in lines:
                    addresses, _, offset, *found = line.split(maxsplit=5)[:5]
                    if found == own:
                        start, end = (int(address, 16) for address in addresses.split("-"))
                        self._ranges.append((start, end, int(offset, 16)))

    def fill(self, value: Any, dtype: str, bfloat16: bool, array: np.ndarray) -> bool:
        """Read a tensor's numbers into an array, if it is known where they are."""
        start = value.data_ptr()
        end = start + value.numel() * value.element_size()
        for first, last, offset in self._ranges:
            if first <= start and end <= last and value.is_contiguous():
                entry = safetensors.Entry(dtype, tuple(value.shape), start - first + offset,
                                          bfloat16)
                safetensors.File(self._path, self._file, {"": entry}, {}).read_float("", array)
                return True
        return False


def _torch_tensor(torch: Any, name: str, value: Any, places: _Places) -> _Tensor:
    shape = tuple(value.shape)
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        instead = ("quantised numbers" if value.is_quantized
                   else f"the layout {value.layout}" if value.layout is not torch.strided
                   else f"the device {value.device.type}")
        return _Tensor(shape, None, lambda _: None, instead)
    dtypes: dict[Any, np.dtype] = {
        torch.float64: np.dtype(np.float64), torch.float32: np.dtype(np.float32),
        torch.float16: np.dtype(np.float16), torch.bfloat16: np.dtype(np.float32),
    }
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise RefusedValue(f"{name} is {shape}, expected as many numbers as it holds")
    held = [value]

    def fill(array: np.ndarray) -> None:
        # its memory, if it is no page of the file, is for the model
        tensor = held.pop().resolve_neg()
        bfloat16 = tensor.dtype == torch.bfloat16
        dtype = "<u2" if bfloat16 else f"<f{tensor.element_size()}"
        if places.fill(tensor, dtype, bfloat16, array):
            return
        rows, into = (tensor, array) if tensor.ndim else (tensor.reshape(1), array.reshape(1))
        step = max(1, _BLOCK * len(rows) // max(1, rows.numel()))
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            into[start : start + step] = (block.float() if bfloat16 else block).numpy()

    return _Tensor(shape, dtypes.get(value.dtype), fill)


# ---- writing -------------------------------------------------------------------------------------


def state_dict(model: Any, names: Any = "torch") -> dict[str, np.ndarray]:
    """Return a model's parameters as load_state_dict of a torch module takes them.

    Parameters
    ----------
    model : SequenceModel, LanguageModel, Stack, RNN, LSTM, GRU, single cell
    names : "torch" or mapping
        The module's names of parts or parameters: {"layers.0": "rnn", "head": "fc"}. What it has
        no name for keeps its own; so "torch" changes none. None leaves a bias of zeros out.

    Returns
    -------
    dict of arrays
        The live parameters, not copies.

    Raises
    ------
    TypeError, ValueError
        If a layer is none of torch.nn's, or the names do not fit.
    """
    if not isinstance(model, Parametrized):
        raise RefusedType(f"model is {_checks.kind(model)}, expected a model or layer of fastrnn")
    for layer in model.recurrent if isinstance(model, Model) else [model]:
        _check_of_torch(layer)
    params = dict(model.parameters())
    if isinstance(names, str) and names == "torch":
        return params
    if not isinstance(names, Mapping) or not all(isinstance(key, str) for key in names):
        raise RefusedType(f"names is {_checks.show(names)}, expected 'torch', or a dictionary of "
                          "names")
    renamed = _renamed("names", params, names)
    kept = set(renamed.values())
    for name, array in params.items():
        if name not in kept and array.any():
            raise RefusedValue(f"{name} is to be left out, but it is not zero")
    return {new: params[old] for new, old in renamed.items()}


def _check_of_torch(layer: Any) -> None:
    """Refuse a layer whose equations no module of torch.nn has."""
    why = ""
    if isinstance(layer, Layer):
        why = f"its cell {layer.definition.name} is from equations"
    elif isinstance(layer, GRU) and not layer.reset_after:
        why = "it has reset_after=False"
    elif isinstance(layer, (RNN, SINGLE["RNNCell"])) and layer.nonlinearity == "sigmoid":
        why = "its nonlinearity is sigmoid"
    elif not isinstance(layer, (Recurrent, SingleCell)):
        why = "it is no recurrent layer"
    if why:
        raise RefusedValue(f"{layer!r} is no module of torch.nn: {why}")


def save(model: Any, path: Any, names: Any = "torch") -> None:
    """Write a state_dict: with torch to .pt, .pth and .bin, and else as safetensors."""
    arrays = state_dict(model, names)
    path = as_path(path)
    if suffix(path) not in TORCH:
        safetensors.write(path, arrays, None)
        return
    torch = _torch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arrays that are read-only: torch reads them, too
        tensors = {name: torch.from_numpy(a) for name, a in arrays.items()}

    def fill(file: BinaryIO) -> None:
        output = _Output(file)
        torch.save(tensors, output)
        if output.error is not None:
            raise output.error

    write_file(path, fill)


class _Output:
    """A file for torch's C++ code, which makes other errors of a write that fails.

    Attributes
    ----------
    error : OSError or None
        The first that a write had; what came afterwards was dropped.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all bytes."""
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Leave the bytes where they are: `write_file` flushes."""
