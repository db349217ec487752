"""What reads bytes of strangers: one function a loader, and what it may raise.

A function returns if the bytes are a whole file, and raises ValueError or MemoryError with one
sentence that names the file if they are not. Everything else is a fault: other exceptions, a crash,
a hang, memory of more than twice the file and 16 MB.
"""

from __future__ import annotations

import contextlib
import importlib
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn import GRU, LSTM, SequenceModel, optim
from fastrnn.formats.definitions import read_definition
from fastrnn.formats.keras import load as load_keras
from fastrnn.layers.layer import Layer
from fastrnn.training import checkpoint

__all__ = ["ALLOWED", "LOADERS", "NEEDS", "check"]

for package in ("torch", "h5py", "onnx"):  # their memory is not that of a file which needs them
    with contextlib.suppress(ImportError):
        importlib.import_module(package)

ALLOWED = (ValueError, MemoryError)
MORE = 16_000_000  # bytes of memory that any file may take, beside twice its size
FOLDER = tempfile.TemporaryDirectory(prefix="fastrnn-fuzz-")
SIZE = 5_000  # numbers of a model that is run after it was read
NEEDS = {"pt": "torch", "keras": "h5py", "h5": "h5py", "onnx": "onnx"}


def _path(data: bytes, name: str) -> Path:
    path = Path(FOLDER.name) / name
    path.write_bytes(data)
    return path


def _run(model: object) -> None:
    """Run what was read over two steps, if it is a layer of vectors: its weights are packed."""
    if isinstance(model, (LSTM, GRU, fastrnn.RNN)) and model.num_parameters < SIZE:
        shape = (2, 1, model.input_size)
        model(np.zeros(shape, model.dtype))


def safetensors(data: bytes) -> None:
    """Read files of fastrnn, and those with PyTorch's names."""
    _run(fastrnn.load(_path(data, "m.safetensors")))


def pt(data: bytes) -> None:
    """Read files of torch.save."""
    _run(fastrnn.load(_path(data, "m.pt")))


def keras(data: bytes) -> None:
    """Read archives of Keras."""
    fastrnn.load(_path(data, "m.keras"))


def h5(data: bytes) -> None:
    """Read HDF5 files of Keras: weights alone, and whole models."""
    path = _path(data, "m.weights.h5")
    try:
        load_keras(path, layers=[("GRU", {"return_sequences": True}), ("Dense", {})])
    except ValueError as error:
        if "expected neither config nor layers" not in str(error):
            raise
        load_keras(path)


def onnx(data: bytes) -> None:
    """Read graphs of ONNX."""
    fastrnn.load(_path(data, "m.onnx"))


def rtneural(data: bytes) -> None:
    """Read JSON of RTNeural, and JSON with PyTorch's names."""
    _run(fastrnn.load(_path(data, "m.json")))


def checkpoints(data: bytes) -> None:
    """Go on from a checkpoint of a training; a file that does not fit changes nothing."""
    path = _path(data, "m")
    model = SequenceModel(GRU(2, 3, 2, dropout=0.5, seed=0), 1, loss="mse", seed=0)
    optimizer = optim.Adam(model, 0.1)
    before = [part.flat.tobytes() for part in model.parts().values()]
    try:
        checkpoint.load(path, model, optimizer)
    except ALLOWED:
        assert [part.flat.tobytes() for part in model.parts().values()] == before
        raise


def equations(data: bytes) -> None:
    """Compile and run the text of a cell's equations, as out of a file."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{FOLDER.name}: {error}") from None
    try:
        definition = read_definition({"text": text, "name": "a cell", "paper": ""})
        layer = Layer(definition, 3, 4, seed=0)
        if layer.num_parameters < SIZE:
            layer.eval()
            layer(np.zeros((2, 1, 3), np.float32))
    except ValueError as error:
        raise ValueError(f"{FOLDER.name}: {' '.join(str(error).split())}") from error


LOADERS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one for one in (safetensors, pt, keras, h5, onnx, rtneural, checkpoints,
                                  equations)}


def check(name: str, data: bytes, memory: bool = False) -> bool:
    """Read bytes; return whether they are a whole file. What is no allowed error is raised."""
    if memory:
        tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            LOADERS[name](data)
    except ModuleNotFoundError:  # the content says what the file is, and which package it needs
        return False
    except ALLOWED as error:
        said = str(error)
        assert FOLDER.name in said, f"the error does not name the file: {said}"
        assert "\n" not in said, f"the error has several lines: {said}"
        return False
    finally:
        peak = 0
        if memory:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak <= 2 * len(data) + MORE, f"{peak} bytes of memory for {len(data)} of a file"
    return True
