"""Models of fastrnn as ONNX files.

A file has the operators RNN, LSTM and GRU of opset 14, Scan for other cells, and the few around
them, and calls them as a layer or a model is called: time first, or batch first for a layer with
`batch_first`. Letters: T steps, B batch, I input, H hidden, D directions, L layers, V symbols, N
outputs, S steps of a source, C size of a context.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.cells.instance import Instance
from fastrnn.formats.files import as_path, write_bytes
from fastrnn.formats.onnx_equations import add_scans, rows_alive
from fastrnn.formats.onnx_nodes import package
from fastrnn.formats.onnx_recurrent import RECURRENT
from fastrnn.formats.onnx_writer import Graph
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.standard import GRU, LSTM, RNN
from fastrnn.models import EncoderDecoder, SequenceModel, Stack

__all__ = ["dumps", "save"]

# ---- layers --------------------------------------------------------------------------------------


def _operator(name: str, layer: Recurrent) -> str:
    """Return the operator of a layer, or refuse one that has no equations either."""
    op = next((kind.__name__ for kind in (RNN, LSTM, GRU) if type(layer) is kind), None)
    if op is not None and not getattr(layer, "proj_size", 0):
        return op
    if not isinstance(layer.cell, Instance):
        raise RefusedValue(f"{name} is {layer!r}, expected RNN, LSTM, GRU or a layer of a cell "
                           "from equations")
    return "Scan"


def _rows(a: np.ndarray, op: str) -> np.ndarray:
    """Return an array with the gates in ONNX's order."""
    kind = RECURRENT[op]
    gates = np.split(a, kind.gates)
    return np.concatenate([gates[kind.order.index(k)] for k in range(kind.gates)])


def _weights(graph: Graph, name: str, layer: Recurrent, number: int, op: str) -> list[str]:
    """Add the tensors W, R and B of one stacked layer; return their names."""
    params, suffixes = layer.parameters(), ("", "_reverse")[: layer.directions]

    def stacked(*parts: str) -> np.ndarray:
        return np.stack([np.concatenate([_rows(params[f"{part}_l{number}{suffix}"], op)
                                         for part in parts]) for suffix in suffixes])

    made = [graph.tensor(f"{name}.W", stacked("weight_ih")),
            graph.tensor(f"{name}.R", stacked("weight_hh"))]
    return [*made, graph.tensor(f"{name}.B", stacked("bias_ih", "bias_hh")) if layer.bias else ""]


def _add_layer(
    graph: Graph, name: str, layer: Recurrent, x: str, states: list[str], lengths: str,
    steps: bool = True,
) -> tuple[str, list[list[str]]]:
    """Add the nodes of a layer.

    Parameters
    ----------
    x : str
        The name of (T, B, I).
    states : list of str
        The names of initial states (L*D, B, H), or empty: zero.
    lengths : str
        The name of the rows' lengths, or "".
    steps : bool
        Whether the output of every step is wanted.

    Returns
    -------
    y : str
        The name of (T, B, D*H); "" if it is not wanted.
    finals : list of lists of str
        For each state the names of (D, B, H), one for each stacked layer.
    """
    op, D = _operator(name, layer), layer.directions
    finals: list[list[str]] = [[] for _ in layer.cell.states]
    attributes = _attributes(layer)
    for number in range(layer.num_layers):
        own = f"{name}.{number}"
        initial = [graph.add("Slice", state, graph.axes(number * D), graph.axes(number * D + D),
                             graph.axes(0)) for state in states]
        if op == "Scan":
            x, after = add_scans(graph, own, layer, number, x, initial, lengths)
        else:
            inputs = [x, *_weights(graph, own, layer, number, op), lengths, *initial]
            while not inputs[-1]:
                inputs.pop()
            y, *after = graph.add(op, *inputs, name=own, outputs=1 + len(finals), **attributes)
        for of, final in zip(finals, after, strict=True):
            of.append(final)
        if number == layer.num_layers - 1 and not steps:
            return "", finals
        if op != "Scan":
            y = graph.add("Transpose", y, perm=[0, 2, 1, 3])  # (T, D, B, H) becomes (T, B, D, H)
            x = graph.add("Reshape", y, graph.axes(0, 0, layer.directions * layer.hidden_size))
    return x, finals


def _attributes(layer: Recurrent) -> dict[str, Any]:
    """Return the attributes of a node RNN, LSTM or GRU."""
    attributes: dict[str, Any] = {"hidden_size": layer.hidden_size}
    if layer.directions == 2:
        attributes["direction"] = "bidirectional"
    if isinstance(layer, GRU):
        attributes["linear_before_reset"] = int(layer.reset_after)
    if isinstance(layer, RNN):
        attributes["activations"] = [layer.nonlinearity.capitalize()] * layer.directions
    return attributes


def _add_states(
    graph: Graph, prefix: str, layer: Recurrent
) -> tuple[list[str], list[tuple[str, tuple[Any, ...]]]]:
    """Add the inputs of a layer's initial states; return them, and the outputs of the final."""
    shapes = [(layer.num_layers * layer.directions, "B", width) for width in layer.state_widths]
    named = list(zip(layer.cell.states, shapes, strict=True))
    return ([graph.input(f"{prefix}{name}0", shape) for name, shape in named],
            [(f"{prefix}{name}n", shape) for name, shape in named])


def _joined(graph: Graph, names: list[str]) -> str:
    return names[0] if len(names) == 1 else str(graph.add("Concat", *names, axis=0))


def _export_layer(graph: Graph, layer: Recurrent, states: bool, lengths: bool) -> None:
    axes = ("B", "T") if layer.batch_first else ("T", "B")
    x = graph.input("x", (*axes, layer.input_size))
    n = graph.input("lengths", ("B",), np.int32) if lengths else ""
    initial, after = _add_states(graph, "", layer) if states else ([], [])
    if layer.batch_first:
        x = graph.add("Transpose", x, perm=[1, 0, 2])
    y, finals = _add_layer(graph, "layer", layer, x, initial, n)
    if layer.batch_first:
        y = graph.add("Transpose", y, perm=[1, 0, 2])
    graph.output("y", y, (*axes, layer.width))
    for (name, shape), of in zip(after, finals, strict=False):
        graph.output(name, _joined(graph, of), shape)


# ---- models --------------------------------------------------------------------------------------


def _vectors(graph: Graph, model: Stack, name: str = "x", T: str = "T") -> str:
    """Add the input of a model and return the name of the first layer's (T, B, I)."""
    if model.vocab_size is None:
        return graph.input(name, (T, "B", model.input_size))
    x = graph.input(name, (T, "B"), np.int64)
    own = "" if name == "x" else f"{name}."
    if model.embedding is not None:
        table = graph.tensor(f"{own}embedding", model.embedding.weight)
        return str(graph.add("Gather", table, x))
    column = graph.add("Unsqueeze", x, graph.axes(-1))
    symbols = graph.tensor(f"{own}symbols", np.arange(model.vocab_size))
    number = graph.onnx.helper.np_dtype_to_tensor_dtype(graph.dtype)
    return str(graph.add("Cast", graph.add("Equal", column, symbols), to=number))


def _export_model(graph: Graph, model: Stack, states: bool, lengths: bool) -> None:
    x = _vectors(graph, model)
    n = graph.input("lengths", ("B",), np.int32) if lengths else ""
    initial: list[list[str]] = [[] for _ in model.layers]
    if isinstance(model, SequenceModel) and model.context is not None and not states:
        initial = _from_context(graph, model)
    after = []
    if states:
        for i, layer in enumerate(model.layers):
            initial[i], names = _add_states(graph, f"layers.{i}.", layer)
            after += names
    y, finals = _add_layers(graph, model, x, initial, n)
    _add_output(graph, model, y, finals, n)
    for (name, shape), each in zip(after, (of for own in finals for of in own), strict=False):
        graph.output(name, _joined(graph, each), shape)


def _from_context(graph: Graph, model: SequenceModel) -> list[list[str]]:
    """Add the input of a context (B, C); return the names of each layer's initial states."""
    assert model.context is not None
    x = graph.input("context", ("B", model.context_size))
    x = graph.add("MatMul", x, graph.tensor("context.weight", model.context.weight.T))
    x = graph.add("Add", x, graph.tensor("context.bias", model.context.bias))
    initial, start = [], 0
    for layer in model.layers:
        own = []
        for L, _, width in layer.state_shapes(1):  # the layers and directions of a row together
            part = graph.add("Slice", x, graph.axes(start), graph.axes(start + L * width),
                             graph.axes(1))
            part = graph.add("Reshape", part, graph.axes(0, L, width))
            own.append(graph.add("Transpose", part, perm=[1, 0, 2]))
            start += L * width
        initial.append(own)
    return initial


def _add_layers(
    graph: Graph, model: Stack, x: str, initial: list[list[str]], lengths: str, prefix: str = "",
    steps: bool = True,
) -> tuple[str, list[list[list[str]]]]:
    """Add the layers of a model; return y, and the final states of each as of `_add_layer`."""
    of_steps = steps and (not isinstance(model, SequenceModel) or model.readout == "every")
    finals = []
    for i, layer in enumerate(model.layers):
        last = i == len(model.layers) - 1
        x, of = _add_layer(graph, f"{prefix}layers.{i}", layer, x, initial[i], lengths,
                           of_steps or not last)
        finals.append(of)
    return x, finals


def _add_output(
    graph: Graph, model: Stack, x: str, finals: list[list[list[str]]], lengths: str
) -> None:
    """Add the output of a model: y, or what the head makes of it."""
    if not isinstance(model, SequenceModel):
        graph.output("y", x, ("T", "B", model.width))
        return
    of_steps = model.readout == "every"
    if not of_steps:
        hidden = finals[-1][0][-1]  # (D, B, H) of the topmost layer
        x = graph.add("Reshape", graph.add("Transpose", hidden, perm=[1, 0, 2]), graph.axes(0, -1))
    x = graph.add("MatMul", x, graph.tensor("head.weight", model.head.weight.T))
    x = graph.add("Add", x, graph.tensor("head.bias", model.head.bias))
    if lengths and of_steps:
        x = _without_padding(graph, x, lengths)
    graph.output("outputs", x, (*(("T", "B") if of_steps else ("B",)), model.output_size))


def _export_pair(graph: Graph, model: EncoderDecoder, lengths: bool) -> None:
    """Add an encoder that reads `source`, and the decoder that reads `x` from its final state."""
    source = _vectors(graph, model.encoder, "source", "S")
    of_source = graph.input("source_lengths", ("B",), np.int32) if lengths else ""
    x = _vectors(graph, model.decoder)
    n = graph.input("lengths", ("B",), np.int32) if lengths else ""
    none: list[list[str]] = [[] for _ in model.encoder.layers]
    _, finals = _add_layers(graph, model.encoder, source, none, of_source, "encoder.", False)
    initial = [[_joined(graph, of) for of in own] for own in finals]
    y, finals = _add_layers(graph, model.decoder, x, initial, n, "decoder.")
    _add_output(graph, model.decoder, y, finals, n)


def _without_padding(graph: Graph, x: str, lengths: str) -> str:
    """Return the name of (T, B, N) that is zero past each row's end, as a model gives it."""
    nothing = graph.tensor("nothing", np.zeros((), graph.dtype))
    return str(graph.add("Where", rows_alive(graph, x, lengths), x, nothing))


# ---- files ---------------------------------------------------------------------------------------


def _proto(model: Any, states: Any, lengths: Any) -> Any:
    """Return the ModelProto of a model or layer."""
    states, lengths = _checks.flag("states", states), _checks.flag("lengths", lengths)
    if not isinstance(model, (Stack, Recurrent, EncoderDecoder)):
        raise RefusedType(f"model is {_checks.kind(model)}, expected RNN, LSTM, GRU, Layer, Stack, "
                          "SequenceModel, LanguageModel or EncoderDecoder")
    if isinstance(model, EncoderDecoder) and states:
        raise RefusedValue("states is True, expected False for an EncoderDecoder: save its encoder "
                           "and its decoder with states, to write step by step")
    for i, layer in enumerate([model] if isinstance(model, Recurrent) else model.recurrent):
        _operator("model" if layer is model else f"layers[{i}]", layer)
    graph = Graph(package(), model.dtype)
    if isinstance(model, EncoderDecoder):
        _export_pair(graph, model, lengths)
    elif isinstance(model, Stack):
        _export_model(graph, model, states, lengths)
    else:
        _export_layer(graph, model, states, lengths)
    return graph.model(type(model).__name__)


@public
def dumps(model: Any, *, states: bool = False, lengths: bool = False) -> bytes:
    """Return a model or a layer as the bytes of an ONNX file.

    Parameters
    ----------
    model, states, lengths
        As of `save`.

    Returns
    -------
    bytes

    Raises
    ------
    TypeError, ValueError
        As of `save`.
    """
    return _bytes(model, states, lengths)


def _bytes(model: Any, states: Any, lengths: Any) -> bytes:
    size = sum(part.flat.nbytes for part in model.parts().values()) if hasattr(
        model, "parts") else 0
    if size > 2**31 - 2**20:
        raise RefusedValue(f"model has {size} bytes of parameters, expected less than 2 GB, the "
                           "most that an ONNX file can have")
    return _proto(model, states, lengths).SerializeToString()  # type: ignore[no-any-return]


@public
def save(model: Any, path: Any, *, states: bool = False, lengths: bool = False) -> None:
    """Write a model or a layer to an ONNX file, whole or not at all.

    The inputs and outputs are those of a call in evaluation mode: ``x`` (T, B, I), or (B, T, I) for
    a layer with `batch_first`, or symbols (T, B) of int64; ``y``, or the ``outputs`` of a model
    with a head, which are logits for softmax and bce.

    Parameters
    ----------
    model : RNN, LSTM, GRU, Layer, Stack, SequenceModel, LanguageModel or EncoderDecoder
        Cells from equations, and LSTM with a projection, become a Scan over the steps. Masks have
        their values in evaluation. An encoder and decoder have a further input ``source``; a model
        with a context has an input ``context`` (B, C) instead of initial states.
    path : path
        A file that is there is replaced.
    states : bool
        Whether initial states are inputs and final states outputs: ``h0``, ``c0``, ``hn``, ``cn``
        (L*D, B, H) of a layer, ``layers.0.h0`` and so on of a model.
    lengths : bool
        Whether there is an input ``lengths`` (B,) of int32: the steps of each row; of an encoder
        and decoder also ``source_lengths``.

    Raises
    ------
    ModuleNotFoundError
        If the package onnx is not installed.
    TypeError, ValueError
        If it is no such model, or has `states` and is an EncoderDecoder.
    OSError
        If the file cannot be written.

    Notes
    -----
    ONNX Runtime computes float32. A float64 model makes a valid file, which `load` reads, but
    which ONNX Runtime 1.32 has no kernels for.
    """
    path = as_path(path)  # before the work
    write_bytes(path, _bytes(model, states, lengths))
