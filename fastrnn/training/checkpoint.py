"""A training as a file, from which it goes on bit for bit as if it had never stopped.

A checkpoint is a model's file with more in it: the optimiser's arrays and options, the state that
truncated backpropagation through time carries, dropout's generators, the history, and the
caller's notes on the data and the options of the run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn.formats import safetensors
from fastrnn.formats.files import NamedError
from fastrnn.formats.models import BESIDE, check_entries, describe
from fastrnn.layers.recurrent import Recurrent
from fastrnn.training.history import History, Progress

if TYPE_CHECKING:
    from fastrnn.training.optim import Optimizer

__all__ = ["about", "history", "load", "save", "try_save"]

# What a History has for each step: arrays in the file, with their dtype.
_CURVES = {"losses": np.float64, "norms": np.float64, "rates": np.float64, "clipped": np.int64}


def save(
    path: Any, model: Any, optimizer: Optimizer, lr: float, state: Any, history: History,
    about: dict[str, Any],
) -> None:
    """Write everything that a training needs to go on, whole or not at all.

    Parameters
    ----------
    path : path
    model : model or layer
    optimizer : Optimizer
    lr : float
        The optimizer's first learning rate: what a schedule multiplies.
    state : None, array, or tuples of such
        What is carried to the next step.
    history : History
    about : dict
        JSON values: what must be the same when the training goes on.

    Raises
    ------
    TypeError
        If the model cannot be saved; see fastrnn.save.
    OSError
        If the file cannot be written.
    """
    arrays, beside = _content(model, optimizer, lr, state, history, about)
    safetensors.write(path, arrays, beside)


def try_save(path: Any, model: Any, optimizer: Optimizer, about: dict[str, Any]) -> None:
    """Do all that `save` does at the start of a training, but leave the place as it was."""
    arrays, beside = _content(model, optimizer, optimizer.lr, None, History(), about)
    safetensors.try_write(path, arrays, beside)


def _content(
    model: Any, optimizer: Optimizer, lr: float, state: Any, history: History,
    about: dict[str, Any],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return a checkpoint's arrays, and what is beside them."""
    beside = describe(model)
    arrays = dict(model.parameters())
    arrays["optimizer.steps"] = np.array(optimizer.steps, np.int64)
    # the buffers themselves: a state_dict() would take the memory of two more models
    arrays |= {f"optimizer.{name}": buffer for name, buffer in optimizer._state().items()}
    states: list[np.ndarray] = []
    tree = _numbered(state, states)
    arrays |= {f"state.{i}": array for i, array in enumerate(states)}
    arrays |= {f"history.{name}": np.array(getattr(history, name), dtype)
               for name, dtype in _CURVES.items()}
    rest = {field.name: getattr(history, field.name) for field in dataclasses.fields(history)
            if field.name not in _CURVES}
    rest["progress"] = dataclasses.asdict(history.progress)
    return arrays, beside | {
        "notes": {}, "optimizer": optimizer.config | {"lr": lr}, "state": tree, "history": rest,
        "dropout": [layer.dropout_state for layer in _recurrent(model)], "about": about}


def load(
    path: Any, model: Any, optimizer: Optimizer
) -> tuple[History, Any, dict[str, Any]]:
    """Bring model and optimizer to where a checkpoint left them.

    Parameters
    ----------
    path : path
    model : model or layer
        It has the class and configuration of the one saved.
    optimizer : Optimizer
        It has the class and options of the one saved; only its learning rates may differ.

    Returns
    -------
    history : History
    state : None, array, or tuples of such
    about : dict
        As they were saved.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a checkpoint, or one of another model or optimizer; the sentence names what
        differs, and nothing has changed.
    """
    mine = describe(model)
    with safetensors.opened(path, "a checkpoint") as file:
        kept = file.about
        _compare(path, "model", {name: kept[name] for name in mine}, mine)
        _compare(path, "optimizer", *map(_without_rates, (kept["optimizer"], optimizer.config)))
        if not isinstance(kept["about"], dict):
            raise RefusedValue(f"its about is {_checks.show(kept['about'])}")
        params = model.parameters()
        check_entries(file, params)
        arrays = {name: file.array(name) for name in file.names()}
        parts = {prefix: {name.removeprefix(prefix): array for name, array in arrays.items()
                          if name.startswith(prefix)} for prefix in BESIDE}
        past = _history(kept["history"], parts["history."])
        state = _tree(kept["state"], parts["state."])
        dropout = _generators(kept["dropout"], _recurrent(model))
        optimizer.load_state_dict(parts["optimizer."])  # changes nothing if something does not fit
    model.load_state_dict({name: arrays[name] for name in params})
    for layer, generator in zip(_recurrent(model), dropout, strict=True):
        layer.dropout_state = generator
    return past, state, kept["about"]


def history(path: Any) -> History | None:
    """Return the history of a checkpoint; None for a model without one.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a file of fastrnn.
    """
    with safetensors.opened(path, "a checkpoint") as file:
        if "history" not in file.about:
            return None
        return _history(file.about["history"], {
            name.removeprefix("history."): file.array(name) for name in file.entries
            if name.startswith("history.")})


def about(path: Any) -> dict[str, Any] | None:
    """Return the notes that `save` was given about a run; None for a model without a checkpoint.

    Raises
    ------
    OSError, ValueError
        As of `history`.
    """
    with safetensors.opened(path, "a checkpoint") as file:
        kept = file.about.get("about")
        if kept is not None and not isinstance(kept, dict):
            raise RefusedValue(f"its about is {_checks.show(kept)}")
        return kept


def _recurrent(model: Any) -> list[Recurrent]:
    return [model] if isinstance(model, Recurrent) else model.recurrent


# ---- what differs --------------------------------------------------------------------------------


def _compare(path: Any, what: str, theirs: Any, own: Any) -> None:
    """Refuse a checkpoint whose values are not those of this run."""
    differences = list(_differences(theirs, json.loads(json.dumps(own))))
    if differences:
        raise NamedError(f"{str(Path(path))!r} is a checkpoint of another {what}: "
                                     f"{'; '.join(differences)}")


def _without_rates(config: dict[str, Any]) -> dict[str, Any]:
    """Return an optimiser's options but its learning rates, which may change between two runs."""
    groups = {pattern: {key: value for key, value in settings.items() if key != "lr"}
              for pattern, settings in config.get("groups", {}).items()}
    return {key: value for key, value in config.items() if key != "lr"} | {"groups": groups}


def _differences(theirs: Any, own: Any, name: str = "") -> Iterator[str]:
    """Yield a few words for each value that is not the same."""
    if isinstance(theirs, dict) and isinstance(own, dict):
        for key in dict.fromkeys([*own, *theirs]):
            yield from _differences(theirs.get(key), own.get(key), f"{name}.{key}" if name else key)
    elif isinstance(theirs, list) and isinstance(own, list) and len(theirs) == len(own):
        for i, pair in enumerate(zip(theirs, own, strict=True)):
            yield from _differences(*pair, f"{name}[{i}]")
    elif theirs != own:
        yield f"its {name} is {_checks.show(theirs)}, expected {_checks.show(own)}"


# ---- values out of a file, each checked ----------------------------------------------------------


def _numbered(tree: Any, arrays: list[np.ndarray]) -> Any:
    """Return a tree with a number in each array's place, and append the arrays."""
    if tree is None:
        return None
    if isinstance(tree, (tuple, list)):
        return [_numbered(branch, arrays) for branch in tree]
    arrays.append(np.asarray(tree))
    return len(arrays) - 1


def _tree(tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return a tree with arrays in the numbers' places."""
    if tree is None:
        return None
    if isinstance(tree, list):
        return tuple(_tree(branch, arrays) for branch in tree)
    return arrays[str(_checks.below("state", tree, len(arrays)))]


def _generators(states: Any, layers: list[Recurrent]) -> list[dict[str, Any]]:
    """Return the states of dropout's generators, if a generator takes each of them."""
    if not isinstance(states, list) or len(states) != len(layers):
        raise RefusedValue(f"its states of dropout are {_checks.show(states)}, expected "
                           f"{len(layers)}")
    for state, layer in zip(states, layers, strict=True):
        trial = np.random.default_rng(0).bit_generator
        if state["bit_generator"] != layer.dropout_state["bit_generator"]:
            raise RefusedValue(f"its dropout is of {_checks.show(state['bit_generator'])}")
        trial.state = state
    return states


def _history(kept: dict[str, Any], curves: dict[str, np.ndarray]) -> History:
    """Return the history of a file, if its values are of the right kinds."""
    past = History(**kept, **{name: curves[name].tolist() for name in _CURVES})
    past.progress = Progress(**kept["progress"])
    past.validations = [(int(step), float(loss)) for step, loss in past.validations]
    past.ends = [int(step) for step in past.ends]
    for of in (past, past.progress):
        for field in dataclasses.fields(of):
            value, default = getattr(of, field.name), field.default
            if isinstance(default, (int, float, str)) and not isinstance(
                    value, (int, float) if isinstance(default, float) else type(default)):
                raise RefusedValue(f"its {field.name} is {_checks.show(value)}")
    steps = past.progress.steps
    if steps < 0 or any(len(getattr(past, name)) != steps for name in ("losses", "norms", "rates")):
        raise RefusedValue(f"its history has {len(past.losses)} losses of {steps} steps")
    return past
