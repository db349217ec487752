"""Models and checkpoints as safetensors files: arrays under their names, the rest beside them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fastrnn import _checks
from fastrnn.encoder_decoder import EncoderDecoder
from fastrnn.language_model import LanguageModel
from fastrnn.model import SequenceModel
from fastrnn.parameters import UNSET, Parametrized
from fastrnn.stack import Stack

__all__ = ["load_model", "read", "save_model", "write"]

MODELS: dict[str, type[Any]] = {
    model.__name__: model for model in (EncoderDecoder, LanguageModel, SequenceModel, Stack)}
_KEY = "fastrnn"  # of the file's metadata
_FORMAT = 2


def write(path: str | Path, tensors: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Write arrays and JSON values to a safetensors file.

    The file is written beside its place and then put there, so that at any moment the old file or
    the new one is there, whole.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    path = Path(path)
    data = save(tensors, {_KEY: json.dumps({"format": _FORMAT} | about)})
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(beside, 0o666 & ~mask)  # mkstemp's files are private
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def read(
    path: str | Path, what: str = "file", wanted: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays, of those whose names are wanted, and the JSON values that `write` wrote.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a safetensors file, or not one of fastrnn.
    """
    path = Path(path)
    with open(path, "rb"):  # safe_open's errors say less than the system's
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, np.ndarray] = {
                k: file.get_tensor(k) for k in file.keys() if wanted(k)}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{str(path)!r} is not a safetensors file: {error}") from error
    with refusing(path, what):
        about = json.loads(metadata[_KEY])
        if about["format"] != _FORMAT:
            raise ValueError(f"its format is {about['format']!r}, expected {_FORMAT}")
        return tensors, about


class refusing:  # noqa: N801, it reads like a word of the language
    """While it is entered, whatever does not fit becomes a ValueError about the file."""

    def __init__(self, path: str | Path, what: str) -> None:
        self.path, self.what = str(path), what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (KeyError, TypeError, ValueError, IndexError, AttributeError,
                              MemoryError)):
            why = f"its metadata lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{self.path!r} is not a {self.what} of fastrnn: {why}") from error


def save_model(model: Parametrized, path: str | Path, notes: dict[str, Any] | None = None) -> None:
    """Write a model to a safetensors file, whole or not at all.

    Parameters
    ----------
    model : SequenceModel, EncoderDecoder, LanguageModel or Stack
    path : path
    notes : dict, optional
        Kept in the file's metadata: how the model came about. JSON values.

    Raises
    ------
    TypeError
        If the model is of another kind.
    OSError
        If the file cannot be written.
    """
    write(path, model.state_dict(), describe(model) | {"notes": notes or {}})


def describe(model: Any) -> dict[str, Any]:
    """Return what makes a model of the same shapes: the name of its class and its config."""
    name = type(model).__name__
    if MODELS.get(name) is not type(model):
        raise TypeError(f"save_model: model is {name}, expected one of {list(MODELS)}")
    return {"model": name, "config": model.config}


def load_model(path: str | Path) -> Any:
    """Read a model that save_model, or training as a checkpoint, wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    model
        In evaluation mode; its outputs are the same bits as those of the model saved.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a safetensors file, or not a model of fastrnn.
    """
    beside = ("optimizer.", "state.", "history.")  # of a checkpoint
    tensors, about = read(path, "model", lambda name: not name.startswith(beside))
    with refusing(path, "model"):
        # before anything is made: a file may claim any size
        largest = sum(t.size for t in tensors.values())
        layers = 0
        for name, size in _sizes(about["config"]):
            layers += size if name == "num_layers" else 0
            if size > largest or layers > len(tensors):
                raise ValueError(f"its configuration has {name} {size}, its tensors have {largest} "
                                 "numbers")
        model = model_from(about["model"], about["config"])
        model.load_state_dict(tensors)
    model.eval()
    return model


def model_from(name: str, config: dict[str, Any]) -> Any:
    """Return the model of a configuration; its parameters are zero until a file brings them."""
    if name == "EncoderDecoder":
        return EncoderDecoder(model_from("Stack", config["encoder"]),
                              model_from("SequenceModel", config["decoder"]))
    return MODELS[_checks.one_of("model_from", "name", name, MODELS)](**config, seed=UNSET)


def _sizes(config: Any) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers of a configuration by name."""
    for name, value in config.items():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield from _sizes(inner)
            elif isinstance(inner, int) and not isinstance(inner, bool):
                yield name, inner
