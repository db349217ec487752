"""The configuration of a Keras model as a chain of layers; a graph that branches is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fastrnn import _checks
from fastrnn._checks import RefusedValue

__all__ = ["Chain", "Entry", "chain_of", "config_of_layers", "entry_of"]

# The groups of a file that have variables are named after the class, with a number from the second
# layer of a class on.
GROUPS = {
    "SimpleRNN": "simple_rnn", "LSTM": "lstm", "GRU": "gru", "RNN": "rnn",
    "Bidirectional": "bidirectional", "Embedding": "embedding", "Dense": "dense",
    "TimeDistributed": "time_distributed", "BatchNormalization": "batch_normalization",
    "LayerNormalization": "layer_normalization", "Sequential": "sequential",
    "Functional": "functional",
}
MODELS = ("Sequential", "Functional", "Model")
_RECURRENT = ("SimpleRNN", "LSTM", "GRU", "RNN", "Bidirectional")
# After these a sequence has other steps, or none: no mask goes on.
_MASK_ENDS = ("Reshape", "Flatten", "GlobalAveragePooling1D", "GlobalMaxPooling1D", *MODELS)


class Entry(NamedTuple):
    """A layer: its class, name and configuration, its group in the file, and what it reads.

    `reads` is the number of an output of the layer before.
    """

    kind: str
    name: str
    config: Mapping[str, Any]
    path: str
    reads: int = 0


class Chain(NamedTuple):
    """Layers in their order, and which outputs of the last are the model's; None: all."""

    entries: list[Entry]
    outputs: tuple[int, ...] | None


def config_of_layers(layers: Any) -> dict[str, Any]:
    """Return a configuration of (class name, options) pairs."""
    if not isinstance(layers, (list, tuple)) or not layers:
        raise RefusedValue(f"layers is {_checks.show(layers)}, expected a list of pairs "
                           "('LSTM', {...})")
    return {"class_name": "Sequential", "config": {"name": "sequential", "layers": [
        _of_pair(pair, f"layer {number}") for number, pair in enumerate(layers)]}}


def _of_pair(pair: Any, name: str) -> dict[str, Any]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], str) or (
            not isinstance(pair[1], Mapping)):
        raise RefusedValue(f"{name} is {_checks.show(pair)}, expected a pair ('LSTM', {{...}})")
    options = {"name": name} | dict(pair[1])
    for key in ("layer", "backward_layer", "cell"):
        if isinstance(options.get(key), (list, tuple)):
            options[key] = _of_pair(options[key], f"{key} of {name}")
    return {"class_name": pair[0], "config": options}


def entry_of(described: Any, path: str = "", reads: int = 0) -> Entry:
    """Return the layer that an object of a configuration describes; it must be one of Keras."""
    if not isinstance(described, Mapping):
        raise RefusedValue(f"a layer is {_checks.show(described)}, expected an object")
    kind, config = described.get("class_name"), described.get("config")
    if not isinstance(kind, str) or not isinstance(config, Mapping):
        raise RefusedValue(f"a layer is {_checks.show(described)}, expected one with class_name "
                           "and config")
    name = described.get("name") or config.get("name") or kind
    if not isinstance(name, str):
        raise RefusedValue(f"the name of a layer is {_checks.show(name)}, expected a text")
    module, registered = described.get("module"), described.get("registered_name")
    if (module is not None and str(module).partition(".")[0] not in ("keras", "tf_keras")) or (
            registered not in (None, kind)):
        raise RefusedValue(f"layer {_checks.show(name)} is a {_checks.show(kind)} of "
                           f"{_checks.show(module)}, expected a layer of Keras: code of others is "
                           "not run")
    if kind == "Lambda":
        raise RefusedValue(f"layer {_checks.show(name)} is a Lambda, expected a layer without "
                           "Python code: code of a file is never run")
    if "build_config" in described:  # it stands beside the options
        config = {**config, "build_config": described["build_config"]}
    return Entry(kind, name, config, path, reads)


def chain_of(config: Any, nested: bool = True) -> Chain:
    """Return the layers of a model's configuration in their order."""
    model = entry_of(config)
    if model.kind not in MODELS:
        raise RefusedValue(f"its model is a {_checks.show(model.kind)}, expected a Sequential, or "
                           "a functional model that is a chain")
    layers = model.config.get("layers")
    if not isinstance(layers, list):
        raise RefusedValue(f"its layers are {_checks.show(layers)}, expected a list")
    chain = _sequence(layers) if model.kind == "Sequential" else _graph(model.config, layers)
    entries: list[Entry] = []
    for entry, described in zip(chain.entries, _in_order(chain, layers), strict=True):
        if entry.kind not in MODELS:
            entries.append(entry)
            continue
        if not nested or entry.reads:
            raise RefusedValue(f"layer {_checks.show(entry.name)} is a model inside a model "
                               "inside a model, expected a chain of layers")
        inner = chain_of(described, nested=False)
        if inner.outputs not in (None, (0,)):
            raise RefusedValue(f"layer {_checks.show(entry.name)} has several outputs")
        entries += [part._replace(path=f"{entry.path}/layers/{part.path}")
                    for part in inner.entries if part.kind != "InputLayer"]
    return Chain(entries, chain.outputs)


def _in_order(chain: Chain, layers: list[Any]) -> Iterator[Any]:
    by_name = {entry_of(layer).name: layer for layer in layers}
    for entry in chain.entries:
        yield by_name[entry.name]


def _placed(layers: list[Any]) -> list[Entry]:
    """Return the layers with their groups."""
    counts: dict[str, int] = {}
    entries, names = [], set()
    for described in layers:
        entry = entry_of(described)
        group = GROUPS.get(entry.kind, "")
        number = counts[group] = counts.get(group, -1) + 1
        if entry.name in names:
            raise RefusedValue(f"two layers have the name {_checks.show(entry.name)}")
        names.add(entry.name)
        entries.append(entry._replace(path=f"{group}_{number}" if number else group))
    return entries


def _sequence(layers: list[Any]) -> Chain:
    return Chain(_placed(layers), None)


def _graph(config: Mapping[str, Any], layers: list[Any]) -> Chain:
    """Return the layers of a functional model, from its input to its output."""
    entries = {entry.name: entry for entry in _placed(layers)}
    masks = _masks(layers)
    for name in masks:
        del entries[name]
    masked: dict[str, str] = {}  # the operator whose mask a layer is called with
    after: dict[str, tuple[str, int]] = {}  # the layer that reads each layer, and which output
    for described in layers:
        name = entry_of(described).name
        nodes = described.get("inbound_nodes", [])
        if not nodes or name in masks:
            continue
        if len(nodes) > 1:
            raise RefusedValue(f"layer {_checks.show(name)} is used {len(nodes)} times, expected a "
                               "chain")
        sources = _sources(name, nodes[0])
        if len(sources) == 2 and sources[1][0] in masks:
            masked[name] = sources.pop()[0]
        if len(sources) != 1:
            raise RefusedValue(f"layer {_checks.show(name)} has {len(sources)} inputs, expected a "
                               "chain: one input for each layer")
        source, output = sources[0]
        if source in after or source not in entries:
            what = "is read by two layers" if source in after else "is missing"
            raise RefusedValue(f"layer {_checks.show(source)} {what}, expected a chain")
        after[source] = name, output
    starts = _ends("input", config.get("input_layers"))
    ends = _ends("output", config.get("output_layers"))
    if len(starts) != 1 or len({name for name, _ in ends}) != 1:
        raise RefusedValue(f"it has the inputs {_checks.show([n for n, _ in starts])} and the "
                           f"outputs {_checks.show([n for n, _ in ends])}, expected one of each: "
                           "a chain")
    name, reads, ordered = starts[0][0], 0, []
    while True:
        if name not in entries:
            raise RefusedValue(f"layer {_checks.show(name)} is missing, or read twice")
        ordered.append(entries.pop(name)._replace(reads=reads))
        if name not in after:
            break
        name, reads = after[name]
    if name != ends[0][0]:
        raise RefusedValue(f"the chain ends with layer {_checks.show(name)}, the output is that of "
                           f"{_checks.show(ends[0][0])}: expected a chain")
    _check_masks(ordered, masks, masked)
    if entries:
        raise RefusedValue(f"layers {_checks.show(list(entries))} are not between the input and "
                           "the output, expected a chain")
    return Chain(ordered, tuple(output for _, output in ends))


def _masks(layers: list[Any]) -> dict[str, tuple[str, Any]]:
    """Return the operators that compute masks: the layer that each compares, and with what.

    A functional model has them as steps of its own, NotEqual and perhaps Any, with a Cast before
    them if the layers have another dtype, and calls the layers that read a mask with their result.
    """
    found: dict[str, tuple[str, Any]] = {}
    casts: dict[str, str] = {}  # what each reads
    for described in layers:
        entry = entry_of(described)
        if entry.kind not in ("Cast", "NotEqual", "Any"):
            continue
        node = described["inbound_nodes"][0]
        source, _ = _sources(entry.name, node)[0]
        if entry.kind == "Cast":
            casts[entry.name] = source
        elif entry.kind == "NotEqual":
            found[entry.name] = casts.get(source, source), node["args"][1]
            if source in casts:
                found[source] = found[entry.name]
        elif source in found:  # over the features
            found[entry.name] = found[source]
    return found


def _check_masks(
    ordered: list[Entry], masks: Mapping[str, tuple[str, Any]], masked: Mapping[str, str]
) -> None:
    """Refuse a mask that is not the one which the chain itself gives its layer."""
    now: tuple[str, Any] | None = None
    for before, entry in itertools.pairwise(ordered):
        if entry.name in masked and masks[masked[entry.name]] != now:
            raise RefusedValue(f"layer {_checks.show(entry.name)} has a mask of its own, expected "
                               "that of a Masking or an Embedding before it")
        if masks and now and entry.kind in _RECURRENT and entry.name not in masked:
            raise RefusedValue(f"layer {_checks.show(entry.name)} is called without the mask "
                               "before it, expected with it")
        if entry.kind == "Masking":
            now = before.name, entry.config.get("mask_value", 0.0)
        elif entry.kind == "Embedding" and entry.config.get("mask_zero"):
            now = before.name, 0
        elif entry.kind in _MASK_ENDS or (
                entry.kind in _RECURRENT and not _has_sequences(entry.config)):
            now = None


def _has_sequences(config: Mapping[str, Any]) -> bool:
    """Return whether a recurrent layer, or the one in a Bidirectional, gives all steps."""
    return bool(config.get("layer", {"config": config})["config"].get("return_sequences"))


def _sources(name: str, node: Any) -> list[tuple[str, int]]:
    """Return the layers that a layer reads, and which of their outputs."""
    if isinstance(node, list):  # of Keras 2: [layer, node, output, other arguments]
        for source in node:
            options = source[3] if len(source) > 3 else {}
            if any(value is not None for of, value in options.items() if of != "training" or value):
                raise RefusedValue(f"layer {_checks.show(name)} is called with "
                                   f"{list(options)}, expected its input alone")
        return [_reference(source) for source in node]
    kwargs = node["kwargs"]
    if kwargs.get("training"):
        raise RefusedValue(f"layer {_checks.show(name)} is called with training=True, expected "
                           "inference")
    return [*_tensors(node["args"]), *_tensors(kwargs)]


def _tensors(tree: Any) -> Iterator[tuple[str, int]]:
    if isinstance(tree, list):
        for branch in tree:
            yield from _tensors(branch)
    elif isinstance(tree, dict):
        if tree.get("class_name") == "__keras_tensor__":
            yield _reference(tree["config"]["keras_history"])
        else:
            yield from _tensors(list(tree.values()))


def _reference(history: Any) -> tuple[str, int]:
    layer, _, output = history[:3]
    if not isinstance(layer, str) or type(output) is not int or not 0 <= output < 8:
        raise RefusedValue(f"a layer reads {_checks.show(history)}, expected the name of a layer "
                           "and two numbers")
    return layer, output


def _ends(what: str, given: Any) -> list[tuple[str, int]]:
    """Return the layers at an end of the graph, and which of their outputs."""
    if isinstance(given, dict):
        given = list(given.values())
    if not isinstance(given, list) or not given:
        raise RefusedValue(f"its {what} layers are {_checks.show(given)}, expected one")
    return [_reference(given)] if isinstance(given[0], str) else [_reference(g) for g in given]
