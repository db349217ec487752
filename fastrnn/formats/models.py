"""Models and layers as files: what can be saved, and how it is made again.

A file keeps the class's name, the configuration that makes an object of the same shapes, and the
parameters under their names. Letters: I input, H hidden, D directions, E width of a symbol's
vector, V symbols, N outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.formats import safetensors
from fastrnn.formats.definitions import check_definition, read_cell
from fastrnn.layers.kinds import KINDS
from fastrnn.layers.layer import Layer
from fastrnn.layers.parameters import UNSET, Parametrized
from fastrnn.layers.single import SINGLE
from fastrnn.layers.standard import LAYERS
from fastrnn.models import EncoderDecoder, LanguageModel, SequenceModel, Stack
from fastrnn.models.model import Model

__all__ = ["BESIDE", "describe", "load", "model_from", "save", "try_save"]

_CLASSES: tuple[type[Parametrized], ...] = (
    SequenceModel, EncoderDecoder, LanguageModel, Stack, *LAYERS.values(), Layer,
    *SINGLE.values())
MODELS = {known.__name__: known for known in _CLASSES}

# Stacked layers that have no parameters, so that no array of a file shows how many there are.
_UNHELD = 16

# With these begin the names of what a checkpoint has beside the model.
BESIDE = ("optimizer.", "state.", "history.")


def describe(model: Any) -> dict[str, Any]:
    """Return what makes an object of the same shapes: the name of its class, and its config.

    Parameters
    ----------
    model : model or layer

    Raises
    ------
    TypeError
        If it is something else, or of a subclass: nobody could make it again from a file.
    ValueError
        If a layer's definition is larger than a file's may be.
    """
    _check_class("model", model)
    if isinstance(model, EncoderDecoder):
        _check_class("encoder", model.encoder)
        _check_class("decoder", model.decoder)
    if isinstance(model, Model):
        for layer in model.recurrent:
            _check_class("a layer of the model", layer)
    for layer in model.recurrent if isinstance(model, Model) else [model]:
        if isinstance(layer, Layer):
            check_definition(layer.definition)
    return {"model": type(model).__name__, "config": model.config}


def _check_class(name: str, of: Any) -> None:
    """Refuse what nobody could make again from a file."""
    if MODELS.get(type(of).__name__) is not type(of):
        base = next((c.__name__ for c in type(of).__mro__ if c in _CLASSES), None)
        why = "" if base is None else (f": a subclass of {base} cannot be made again from a file, "
                                       "but its state_dict() can be saved")
        raise RefusedType(f"{name} is {_checks.kind(of)}, expected one of {list(MODELS)}{why}")


@public
def save(model: Any, path: Any, notes: dict[str, Any] | None = None) -> None:
    """Write a model or a layer to a safetensors file, whole or not at all.

    Parameters
    ----------
    model : SequenceModel, EncoderDecoder, LanguageModel, Stack, RNN, LSTM, GRU, Layer, single cell
    path : path
        A file that is there is replaced.
    notes : dict, optional
        Kept in the file's metadata: how the model came about. JSON values.

    Raises
    ------
    TypeError, ValueError
        If the model is of another kind, the notes are not JSON values, or the equations of a layer
        are larger than those of a file may be.
    OSError
        If the file cannot be written; it names the file.

    See Also
    --------
    load : Make the model again.
    """
    about = describe(model) | {"notes": notes or {}}
    safetensors.write(path, model.parameters(), about)


@public
def try_save(model: Any, path: Any) -> None:
    """Do all that `save` does, but leave the place as it was: called before a long training.

    Raises
    ------
    TypeError, OSError
        As of `save`.
    """
    safetensors.try_write(path, model.parameters(), describe(model))


@public
def load(path: Any) -> Any:
    """Make the model or layer that `save`, or training as a checkpoint, wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    model or layer
        In evaluation mode; its outputs are the same bits as those of what was saved.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a safetensors file, or not a model of fastrnn.
    MemoryError
        If there is not enough memory for it.

    See Also
    --------
    save : Write the file.
    """
    with safetensors.opened(path, "model") as file:
        names = file.names(*BESIDE)
        numbers = sum(math.prod(file.entries[name].shape) for name in names)
        name, config = file.about["model"], file.about["config"]
        _check_size(name, config, numbers, len(names))
        model = model_from(name, config)
        params = model.parameters()
        check_entries(file, params)
        for name, param in params.items():
            file.read_into(name, param)
        return model.eval()


def check_entries(file: safetensors.File, params: Mapping[str, np.ndarray]) -> None:
    """Refuse a file that does not have just these parameters."""
    found = {name: file.entries[name] for name in file.names(*BESIDE)}
    problems = [f"{what} {names}" for what, names in (
        ("missing", [name for name in params if name not in found]),
        ("unexpected", [name for name in found if name not in params])) if names]
    problems += [
        f"{name} is {np.dtype(found[name].dtype).name} {found[name].shape}, expected "
        f"{param.dtype.name} {param.shape}"
        for name, param in params.items() if name in found and (
            found[name].shape != param.shape
            or np.dtype(found[name].dtype).newbyteorder("=") != param.dtype)]
    if problems:
        raise RefusedValue("; ".join(problems))


def model_from(name: str, config: dict[str, Any]) -> Any:
    """Return the model of a configuration; its parameters are zero until a file brings them."""
    if name == "EncoderDecoder":
        encoder, decoder = model_from("Stack", config["encoder"]), dict(config["decoder"])
        name = _decoder_class(decoder)
        decoder.pop("model", None)
        if shared := config.get("shared"):
            decoder["layers"] = list(decoder["layers"])
            for theirs, own in shared:  # numbers of layers
                decoder["layers"][own] = encoder.layers[theirs]
        return EncoderDecoder(encoder, model_from(name, decoder))
    made: Any = MODELS[name]
    if name in KINDS or name in SINGLE:
        config = {key: value for key, value in config.items() if key != "layer"}
    return made(**config, seed=UNSET)


def _decoder_class(config: dict[str, Any]) -> str:
    return _checks.one_of("decoder", config.get("model", "SequenceModel"),
                          ("SequenceModel", "LanguageModel"))


# ---- sizes that a file claims --------------------------------------------------------------------


def _check_size(name: str, config: dict[str, Any], numbers: int, arrays: int) -> None:
    """Refuse a configuration of more parameters than a file has, before anything is made."""
    layers, claimed = _claimed(_checks.one_of("model", name, MODELS), config, numbers)
    if layers > arrays or claimed > numbers:
        raise RefusedValue(f"its configuration has {_checks.show(claimed)} parameters in "
                           f"{_checks.show(layers)} layers, its arrays have {numbers} numbers")


def _claimed(name: str, config: dict[str, Any], held: int) -> tuple[int, int]:
    """Return how many stacked layers a configuration has, and at least how many parameters.

    The file has `held` numbers.
    """
    if name == "EncoderDecoder":
        encoder = _claimed("Stack", config["encoder"], held)
        decoder = _claimed(_decoder_class(config["decoder"]), config["decoder"], held)
        return encoder[0] + decoder[0], encoder[1] + decoder[1]
    if name in KINDS:
        return _claimed_by_layer(name, config, held)
    if name in SINGLE:
        return _claimed_by_layer(name.removesuffix("Cell"), config | {"num_layers": 1}, held)
    if name == "LanguageModel":
        E, H, L = (_size(config, key) for key in ("embedding_size", "hidden_size", "num_layers"))
        V = len(config["characters"] or "") or _size(config, "vocab_size")
        layer: dict[str, Any] = {"input_size": E, "hidden_size": H, "num_layers": L}
        kind = str(config["cell"]).upper()
        if isinstance(config["cell"], dict):
            kind = "Layer"
            layer["cell"] = config["cell"]
        layers, numbers = _claimed_by_layer(kind, layer, held)
        width = read_cell(kind, layer, held).output_width({"I": E, "H": H})
        return layers, numbers + V * (E + width)
    inner = [_claimed_by_layer(layer["layer"], layer, held) for layer in config["layers"]]
    layers, numbers = (sum(values) for values in zip(*inner, strict=True))
    I, last = _size(config["layers"][0], "input_size"), config["layers"][-1]
    sizes = {key[0].upper(): _size(last, key) for key in ("input_size", "hidden_size")}
    cell = read_cell(last["layer"], last, held)
    if config["vocab_size"] is not None and not config["one_hot"]:
        numbers += _size(config, "vocab_size") * I
    if name == "SequenceModel":
        numbers += _size(config, "output_size") * cell.output_width(sizes)
        if config["context_size"] is not None:
            numbers += _size(config, "context_size") * sum(cell.state_widths(sizes))
    return layers, numbers


def _claimed_by_layer(name: str, config: dict[str, Any], held: int) -> tuple[int, int]:
    I, H, L = (_size(config, key) for key in ("input_size", "hidden_size", "num_layers"))
    cell = read_cell(name, config, held)
    D = 2 if config.get("bidirectional") else 1
    first, more = (sum(map(math.prod, cell.parameters(inputs, H, False).values()))
                   for inputs in (I, D * cell.output_width({"I": I, "H": H}) if L > 1 else I))
    stacked = L * D
    if first == 0 and L <= _UNHELD:
        stacked = 0
    return stacked, D * (first + (L - 1) * more)


def _size(config: dict[str, Any], name: str) -> int:
    return _checks.positive(name, config[name])
