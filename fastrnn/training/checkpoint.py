"""A training as a file: model, optimiser, carried state, masks and history, to go on bitwise."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn import files
from fastrnn.history import History, Progress
from fastrnn.optim import Optimizer
from fastrnn.stack import arrays_of, recurrent_layers

__all__ = ["history", "load", "save"]

_CURVES = ("losses", "norms", "rates")  # of a History: arrays


def save(
    path: Path, model: Any, optimizer: Optimizer, lr: float, state: Any, history: History
) -> None:
    """Write everything that a training needs to go on; `lr` is the optimizer's first."""
    tensors = model.state_dict()
    tensors |= {f"optimizer.{k}": a for k, a in optimizer.state_dict().items()}
    for i, of in enumerate(state):
        tensors |= {f"state.{i}.{j}": np.ascontiguousarray(a)
                    for j, a in enumerate(arrays_of(of))}
    tensors |= {f"history.{k}": np.array(getattr(history, k), np.float64) for k in _CURVES}
    told = {k: v for k, v in dataclasses.asdict(history).items() if k not in _CURVES}
    files.write(path, tensors, files.describe(model) | {
        "notes": {}, "optimizer": optimizer.config | {"lr": lr}, "history": told,
        "dropout": [layer.masks for layer in recurrent_layers(model)]})


def load(path: Path, model: Any, optimizer: Optimizer) -> tuple[History, Any]:
    """Bring model and optimizer to where a checkpoint left them; return its history and state."""
    tensors, about = files.read(path, "checkpoint")
    mine = files.describe(model)
    for what, theirs, own in (
        ("model", {k: about.get(k) for k in mine}, mine),
        ("optimizer", about.get("optimizer"), optimizer.config),
    ):
        if theirs != own:
            raise ValueError(f"fit: {str(path)!r} is a checkpoint of another {what}: {theirs}, "
                             f"expected {own}")
    with files.refusing(path, "checkpoint"):
        parts: dict[str, dict[str, np.ndarray]] = {
            "optimizer": {}, "state": {}, "history": {}, "": {}}
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            parts[head if head in parts else ""][rest if head in parts else name] = tensor
        told = _history(about["history"], parts["history"])
        state: list[list[np.ndarray]] = []
        for name in sorted(parts["state"], key=lambda n: [*map(int, n.split("."))]):
            i, j = map(int, name.split("."))
            state += [[]] if j == 0 else []
            state[i].append(parts["state"][name])
        optimizer.load_state_dict(parts["optimizer"])
        model.load_state_dict(parts[""])
        for layer, masks in zip(recurrent_layers(model), about["dropout"], strict=True):
            layer.masks = masks
    return told, tuple(tuple(of) if len(of) > 1 else of[0] for of in state)


def history(path: str | Path) -> History | None:
    """Return the history of a checkpoint; None for a model without one.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a file of fastrnn.
    """
    tensors, about = files.read(path, wanted=lambda name: name.startswith("history."))
    if "history" not in about:
        return None
    with files.refusing(path, "checkpoint"):
        return _history(about["history"],
                        {k.removeprefix("history."): a for k, a in tensors.items()})


def _history(told: dict[str, Any], curves: dict[str, np.ndarray]) -> History:
    made = History(**told, **{k: curves[k].tolist() for k in _CURVES})
    made.progress = Progress(**told["progress"])
    made.validations = [(int(step), loss) for step, loss in made.validations]
    return made
