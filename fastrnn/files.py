"""Models as safetensors files: parameters under torch's names, the configuration beside them."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fastrnn.model import LanguageModel

__all__ = ["load_model", "save_model"]

_KEY = "fastrnn"  # of the file's metadata
_FORMAT = 1


def save_model(model: LanguageModel, path: str | Path, notes: dict[str, Any] | None = None) -> None:
    """Write a model to a safetensors file.

    The file is written beside its place and then put there, so that at any moment the old file or
    the new one is there, whole.

    Parameters
    ----------
    model : LanguageModel
    path : path
    notes : dict, optional
        Kept in the file's metadata: how the model came about. JSON values.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    path = Path(path)
    about = {"format": _FORMAT, "config": model.config, "notes": notes or {}}
    data = save(model.state_dict(), {_KEY: json.dumps(about)})
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


def load_model(path: str | Path) -> LanguageModel:
    """Read a model that save_model wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    LanguageModel
        In evaluation mode; its outputs are the same bits as those of the model saved.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a safetensors file, or not a model of fastrnn.
    """
    path = Path(path)
    with open(path, "rb"):  # safe_open's errors say less than the system's
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, np.ndarray] = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{str(path)!r} is not a safetensors file: {error}") from error
    try:
        about = json.loads(metadata[_KEY])
        config, version = about["config"], about["format"]
        if version != _FORMAT:
            raise ValueError(f"its format is {version!r}, expected {_FORMAT}")
        # before anything is allocated: a file may claim any size
        V, E = tensors["embedding.weight"].shape
        found = {
            "symbols": V, "embedding_size": E, "hidden_size": tensors["head.weight"].shape[1],
            "num_layers": sum(name.startswith("recurrent.weight_hh") for name in tensors),
        }
        for name, size in found.items():
            if config[name] != size:
                raise ValueError(f"its configuration has {name} {config[name]!r}, its tensors "
                                 f"have {size}")
        model = LanguageModel(**config, seed=0)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        why = f"its metadata lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{str(path)!r} is not a model of fastrnn: {why}") from error
    model.eval()
    return model
