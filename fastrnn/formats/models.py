"""Models and layers as files: what can be saved, and how it is made again.

A file keeps the class's name, the configuration that makes an object of the same shapes, and the
parameters under their names. Letters: I input, H hidden, D directions, E width of a symbol's
vector, V symbols, N outputs.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.formats import pytorch, rtneural, safetensors
from fastrnn.formats.definitions import check_definition, read_cell
from fastrnn.formats.files import (
    KERAS,
    TORCH,
    NamedError,
    as_path,
    check_directory,
    check_ordinary,
    in_evaluation,
    refusing,
    suffix,
)
from fastrnn.layers.kinds import KINDS
from fastrnn.layers.layer import Layer
from fastrnn.layers.parameters import UNSET, Parametrized
from fastrnn.layers.single import SINGLE
from fastrnn.layers.standard import LAYERS
from fastrnn.models import EncoderDecoder, LanguageModel, SequenceModel, Stack
from fastrnn.models.losses import LOSSES
from fastrnn.models.model import Model
from fastrnn.models.sequence import READOUTS

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
def save(
    model: Any, path: Any, notes: dict[str, Any] | None = None, *, names: Any = None
) -> None:
    """Write a model or a layer to a file, whole or not at all.

    The suffix decides what is written; capitals do not matter.

    =====================  =====================================================================
    suffix                 file
    =====================  =====================================================================
    .pt, .pth, .bin        a state_dict with PyTorch's names, written by torch
    .onnx                  an ONNX graph
    .json                  RTNeural's JSON: LSTM or GRU, and a head
    .keras, .h5, .hdf5     refused: files of Keras are read, and not written
    any other              safetensors, from which `load` makes this model again; with `names` a
                           plain file of tensors, for PyTorch
    =====================  =====================================================================

    Parameters
    ----------
    model : SequenceModel, EncoderDecoder, LanguageModel, Stack, RNN, LSTM, GRU, Layer, single cell
    path : path
        A file that is there is replaced.
    notes : dict, optional
        Kept in the metadata of a safetensors file: how the model came about. JSON values.
    names : "torch" or mapping, optional
        Write a state_dict that a torch module loads: with the model's own names, which are torch's
        inside each part, or with other names of parts: {"layers.0": "rnn", "head": "fc"}.

    Raises
    ------
    TypeError, ValueError
        If the model is of another kind, or the file's format has no place for it; if the notes are
        not JSON values, or the equations of a layer are larger than those of a file may be.
    OSError
        If the file cannot be written; it names the file.

    See Also
    --------
    load : Make the model again.
    """
    place = _place(path)
    if notes is not None and not isinstance(notes, Mapping):
        raise RefusedType(f"notes is {_checks.show(notes)}, expected a dictionary of JSON values")
    if names is None and suffix(place) not in (*TORCH, ".json", ".onnx"):
        about = describe(model) | {"notes": dict(notes or {})}
        safetensors.write(place, model.parameters(), about)
        return
    if notes:
        raise RefusedValue(f"notes is given for {place.name!r}, expected none: only files from "
                           "which fastrnn makes the model again keep them")
    if names is None and suffix(place) == ".onnx":
        from fastrnn.formats import onnx

        onnx.save(model, place)
    elif names is None and suffix(place) == ".json":
        rtneural.save(model, place)
    else:
        if suffix(place) in (".json", ".onnx"):
            raise RefusedValue(f"names is given for {place.name!r}, expected None")
        pytorch.save(model, place, "torch" if names is None else names)


def _place(path: Any) -> Path:
    place = as_path(path)
    if suffix(place) in KERAS:
        raise RefusedValue(f"path is {place.name!r}, expected another suffix: files of Keras are "
                           "read here, and not written")
    return place


@public
def try_save(model: Any, path: Any) -> None:
    """Do all that `save` does, but leave the place as it was: called before a long training.

    Raises
    ------
    TypeError, ValueError, OSError
        As of `save`; of a file that is not safetensors, it is not tried whether it can be written.
    """
    place = _place(path)
    if suffix(place) in TORCH:
        pytorch.state_dict(model)
    elif suffix(place) == ".json":
        rtneural.encoded(model)
    elif suffix(place) == ".onnx":
        raise RefusedValue(f"path is {place.name!r}, expected a safetensors file, which can be "
                           "converted to ONNX afterwards")
    else:
        about = describe(model)
        safetensors.try_write(place, model.parameters(), about)


@public
def load(
    path: Any, *, mapping: Mapping[str, Any] | None = None, prefix: str = "", strict: bool = True,
    nonlinearity: str = "tanh", loss: str = "softmax", readout: str = "every",
    config: Any = None, layers: Any = None,
) -> Any:
    """Make the model or layer of a file: of fastrnn, PyTorch, Keras, ONNX or RTNeural.

    The content decides what the file is. A file that `save`, or training as a checkpoint, wrote
    gives the same model again, with outputs of the same bits. In safetensors files without
    fastrnn's configuration, and in PyTorch's own files (.pt, .pth, .bin; they need torch, and are
    read with weights_only), the recurrent layers, an embedding and a head are found by names and
    shapes:

    - one recurrent module alone gives a layer or a single cell;
    - several whose widths fit, or an embedding without a head, give a Stack;
    - with a head it is a SequenceModel, or a LanguageModel if it has all that of one.

    Parameters
    ----------
    path : path
    mapping : mapping, optional
        Roles of modules of the file, ``{"embedding": "emb", "layers": ["rnn"], "head": "fc"}``,
        None for a role that no module has; or new names for those of the file, ``{"emb":
        "embedding", "rnn": "layers.0", "fc": "head"}``, None to leave tensors out. What a mapping
        does not say is found.
    prefix : str
        Only tensors below it count: "model.encoder".
    strict : bool
        Whether a tensor that no part needs is an error.
    nonlinearity : {"tanh", "relu", "sigmoid"}
        Of an RNN.
    loss, readout : str
        As of a SequenceModel. With a head of one output "softmax" is taken as "mse".
    config : dict or str, optional
        The architecture of a Keras file that has weights alone: what ``model.to_json()`` of Keras
        returned.
    layers : list of (str, dict), optional
        The same as pairs of a class of Keras and its options, ``[("LSTM", {"return_sequences":
        True}), ("Dense", {"activation": "softmax"})]``; see fastrnn.formats.keras.load.

    Returns
    -------
    model or layer
        In evaluation mode. Its attribute `unused` has the names of what is in the file but not in
        the model. A Keras or ONNX file, or RTNeural JSON, that none of fastrnn's classes fits gives
        an object of its own that is called in the same way.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is none of these files, or does not fit what it says; it names the file.
    ModuleNotFoundError
        If the file needs a package that is not installed: torch, h5py or onnx.
    MemoryError
        If there is not enough memory for it.

    See Also
    --------
    save : Write the file.
    """
    options = pytorch.Options(mapping, prefix, strict, nonlinearity,
                              _checks.one_of("loss", loss, LOSSES),
                              _checks.one_of("readout", readout, READOUTS))
    place = as_path(path)
    with refusing(place, "a model of fastrnn"):
        kind = _kind(place)
        if kind != "keras":
            for name, value in (("config", config), ("layers", layers)):
                if value is not None:
                    raise NamedError(f"{name} is {_checks.show(value)}, expected None: "
                                     f"{str(place)!r} is a file of {kind}, and a file of Keras's "
                                     "weights alone needs it")
        if kind == "torch":
            return pytorch.load_torch(place, options, model_from)
        if kind == "safetensors":
            return _load_safetensors(place, options)
        if kind == "rtneural":
            return _load_json(place, options)
        _check_without(place, options, kind)
    if kind == "keras":
        from fastrnn.formats import keras

        return keras.load(place, config=config, layers=layers)
    from fastrnn.formats import onnx

    return onnx.load(place)


def _kind(path: Path) -> str:
    """Return what a file is, by its first bytes; by its name where these do not say."""
    check_ordinary(path)
    with open(path, "rb") as file:
        start = file.read(64)
    if start[4:9] == b"\0\0\0\0{":  # 8 bytes of a length below 2^32, and JSON
        return "safetensors"
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras"
    if start.startswith(b"PK\x03\x04"):
        return "keras" if _is_keras(path) else "torch"
    if suffix(path) == ".onnx":
        return "onnx"
    if start.lstrip().startswith(b"{"):
        return "rtneural"
    # a protobuf whose first field is the version of the format, or a pickle
    if start[:1] == b"\x08" and len(start) > 8 and start[2] in b"\x12\x1a\x22\x3a\x42":
        return "onnx"
    if suffix(path) in TORCH and start[:1] == b"\x80":
        return "torch"
    if suffix(path) in KERAS:
        return "keras"
    if suffix(path) in (".json", ".safetensors"):
        return "rtneural" if suffix(path) == ".json" else "safetensors"
    raise RefusedValue("its content is none of what can be loaded: safetensors, a file of PyTorch, "
                       "Keras or ONNX, or RTNeural's JSON")


def _is_keras(path: Path) -> bool:
    """Whether a zip archive has the weights of a Keras model."""
    try:
        with open(path, "rb") as file:
            check_directory(file, path.stat().st_size)
            with zipfile.ZipFile(file) as archive:
                return "model.weights.h5" in archive.namelist()
    except zipfile.BadZipFile:
        return suffix(path) == ".keras"


def _check_without(path: Path, options: pytorch.Options, kind: str) -> None:
    """Refuse options for files with PyTorch's names where they have no meaning."""
    for name, default in pytorch.Options._field_defaults.items():
        value = getattr(options, name)
        if value is not default and not (np.isscalar(value) and value == default):
            raise NamedError(
                f"{name} is {_checks.show(value)}, expected {default!r}: {str(path)!r} is a file "
                f"of {kind}, without PyTorch's names")


def _load_json(path: Path, options: pytorch.Options) -> Any:
    file = rtneural.read(path)
    found = rtneural.state_dict(file)
    if found is None:
        _check_without(path, options, "rtneural")
        return rtneural.load(file, model_from)
    arrays, beside = found
    model = pytorch.load_arrays(path, arrays, options, model_from)
    model.unused = (*beside, *model.unused)
    return model


def _load_safetensors(path: Path, options: pytorch.Options) -> Any:
    with safetensors.opened(path, "a model", plain=True) as file:
        if not file.about:
            return pytorch.load_safetensors(file, options, model_from)
        _check_without(path, options, "fastrnn")
        names = file.names(*BESIDE)
        numbers = sum(math.prod(file.entries[name].shape) for name in names)
        name, config = file.about["model"], file.about["config"]
        _check_size(name, config, numbers, len(names))
        model = model_from(name, config)
        params = model.parameters()
        check_entries(file, params)
        for name, param in params.items():
            file.read_into(name, param)
        in_evaluation(model)
        model.unused = tuple(name for name in file.entries if name.startswith(BESIDE))
        return model


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
