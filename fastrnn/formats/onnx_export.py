"""Models of fastrnn as ONNX files.

A file has the operators RNN, LSTM and GRU of opset 14 and the few around them, and calls them as a
layer or a model is called: time first, or batch first for a layer with `batch_first`. Letters: T
steps, B batch, I input, H hidden, D directions, V symbols, N outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.formats.onnx_nodes import package
from fastrnn.formats.onnx_recurrent import RECURRENT
from fastrnn.formats.safetensors import as_path, write_bytes
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.standard import GRU, LSTM, RNN
from fastrnn.models import EncoderDecoder, SequenceModel, Stack

__all__ = ["dumps", "save"]

OPSET = 17
IR = 8  # the version of the file format that goes with it


class _Graph:
    """Collects the nodes and tensors of a file."""

    def __init__(self, onnx: Any, dtype: np.dtype) -> None:
        self.onnx, self.dtype = onnx, dtype
        self.nodes: list[Any] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._count = 0

    def add(self, op: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any
            ) -> Any:
        """Add a node; return the name of its output, or the names of several."""
        self._count += 1
        name = name or f"{op}_{self._count}"
        made = [f"{name}.out{i or ''}" for i in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), made, name=name,
                                                     **attributes))
        return made[0] if outputs == 1 else made

    def tensor(self, name: str, array: Any) -> str:
        """Add a tensor of the file; return its name."""
        self.tensors[name] = np.ascontiguousarray(array)
        return name

    def axes(self, *numbers: int) -> str:
        """Return the name of a tensor of whole numbers."""
        return self.tensor("numbers." + "_".join(map(str, numbers)), np.array(numbers, np.int64))

    def _info(self, name: str, dtype: Any, shape: tuple[Any, ...]) -> Any:
        helper = self.onnx.helper
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
                                             list(shape))

    def input(self, name: str, shape: tuple[Any, ...], dtype: Any = None) -> str:
        """Add an input; return its name."""
        self.inputs.append(self._info(name, dtype or self.dtype, shape))
        return name

    def output(self, name: str, value: str, shape: tuple[Any, ...]) -> None:
        """Add an output: this value under a name of its own."""
        self.nodes.append(self.onnx.helper.make_node("Identity", [value], [name],
                                                     name=f"to_{name}"))
        self.outputs.append(self._info(name, self.dtype, shape))

    def model(self, name: str) -> Any:
        """Return the ModelProto."""
        helper = self.onnx.helper
        tensors = [self.onnx.numpy_helper.from_array(a, key) for key, a in self.tensors.items()]
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)],
                                 ir_version=IR, producer_name="fastrnn")


# ---- layers --------------------------------------------------------------------------------------


def _check_layer(name: str, layer: Recurrent) -> str:
    """Return the operator of a layer, or refuse one that ONNX has no operator for."""
    op = next((kind.__name__ for kind in (RNN, LSTM, GRU) if type(layer) is kind), None)
    if op is None:
        raise RefusedValue(f"{name} is {layer!r}, expected RNN, LSTM or GRU: ONNX has no operator "
                           "for other cells")
    if getattr(layer, "proj_size", 0):
        raise RefusedValue(f"{name} is {layer!r}, expected proj_size 0: ONNX's LSTM has no "
                           "projection")
    return op


def _rows(a: np.ndarray, op: str) -> np.ndarray:
    """Return an array with the gates in ONNX's order."""
    kind = RECURRENT[op]
    gates = np.split(a, kind.gates)
    return np.concatenate([gates[kind.order.index(k)] for k in range(kind.gates)])


def _weights(graph: _Graph, name: str, layer: Recurrent, number: int, op: str) -> list[str]:
    """Add the tensors W, R and B of one stacked layer; return their names."""
    params, suffixes = layer.parameters(), ("", "_reverse")[: layer.directions]

    def stacked(*parts: str) -> np.ndarray:
        return np.stack([np.concatenate([_rows(params[f"{part}_l{number}{suffix}"], op)
                                         for part in parts]) for suffix in suffixes])

    made = [graph.tensor(f"{name}.W", stacked("weight_ih")),
            graph.tensor(f"{name}.R", stacked("weight_hh"))]
    return [*made, graph.tensor(f"{name}.B", stacked("bias_ih", "bias_hh")) if layer.bias else ""]


def _add_layer(
    graph: _Graph, name: str, layer: Recurrent, x: str, states: list[str], lengths: str,
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
    op, D = _check_layer(name, layer), layer.directions
    attributes: dict[str, Any] = {"hidden_size": layer.hidden_size}
    if D == 2:
        attributes["direction"] = "bidirectional"
    if isinstance(layer, GRU):
        attributes["linear_before_reset"] = int(layer.reset_after)
    if isinstance(layer, RNN):
        attributes["activations"] = [layer.nonlinearity.capitalize()] * D
    finals: list[list[str]] = [[] for _ in range(RECURRENT[op].states)]
    for number in range(layer.num_layers):
        own = f"{name}.{number}"
        initial = [graph.add("Slice", state, graph.axes(number * D), graph.axes(number * D + D),
                             graph.axes(0)) for state in states]
        inputs = [x, *_weights(graph, own, layer, number, op), lengths, *initial]
        while not inputs[-1]:
            inputs.pop()
        y, *after = graph.add(op, *inputs, name=own, outputs=1 + len(finals), **attributes)
        for of, final in zip(finals, after, strict=True):
            of.append(final)
        if number == layer.num_layers - 1 and not steps:
            return "", finals
        y = graph.add("Transpose", y, perm=[0, 2, 1, 3])  # (T, D, B, H) becomes (T, B, D, H)
        x = graph.add("Reshape", y, graph.axes(0, 0, -1))
    return x, finals


def _add_states(
    graph: _Graph, prefix: str, layer: Recurrent
) -> tuple[list[str], list[tuple[str, tuple[Any, ...]]]]:
    """Add the inputs of a layer's initial states; return them, and the outputs of the final."""
    shape = (layer.num_layers * layer.directions, "B", layer.hidden_size)
    names = layer.cell.states
    return ([graph.input(f"{prefix}{name}0", shape) for name in names],
            [(f"{prefix}{name}n", shape) for name in names])


def _joined(graph: _Graph, names: list[str]) -> str:
    return names[0] if len(names) == 1 else str(graph.add("Concat", *names, axis=0))


def _export_layer(graph: _Graph, layer: Recurrent, states: bool, lengths: bool) -> None:
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


def _vectors(graph: _Graph, model: Stack) -> str:
    """Add the input of a model and return the name of the first layer's (T, B, I)."""
    if model.vocab_size is None:
        return graph.input("x", ("T", "B", model.input_size))
    x = graph.input("x", ("T", "B"), np.int64)
    if model.embedding is not None:
        return str(graph.add("Gather", graph.tensor("embedding", model.embedding.weight), x))
    column = graph.add("Unsqueeze", x, graph.axes(-1))
    symbols = graph.tensor("symbols", np.arange(model.vocab_size))
    number = graph.onnx.helper.np_dtype_to_tensor_dtype(graph.dtype)
    return str(graph.add("Cast", graph.add("Equal", column, symbols), to=number))


def _export_model(graph: _Graph, model: Stack, states: bool, lengths: bool) -> None:
    x = _vectors(graph, model)
    n = graph.input("lengths", ("B",), np.int32) if lengths else ""
    after, finals = [], []
    last = model.layers[-1]
    of_steps = not isinstance(model, SequenceModel) or model.readout == "every"
    for i, layer in enumerate(model.layers):
        prefix = f"layers.{i}."
        initial, names = _add_states(graph, prefix, layer) if states else ([], [])
        x, of = _add_layer(graph, f"layers.{i}", layer, x, initial, n,
                           of_steps or layer is not last)
        after += names
        finals += of
    width: tuple[Any, ...] = ("T", "B", model.width)
    if isinstance(model, SequenceModel):
        if not of_steps:
            hidden = finals[-len(last.cell.states)][-1]  # (D, B, H) of the topmost layer
            x = graph.add("Reshape", graph.add("Transpose", hidden, perm=[1, 0, 2]),
                          graph.axes(0, -1))
        x = graph.add("MatMul", x, graph.tensor("head.weight", model.head.weight.T))
        x = graph.add("Add", x, graph.tensor("head.bias", model.head.bias))
        width = ("T", "B", model.output_size) if of_steps else ("B", model.output_size)
        if lengths and of_steps:
            x = _without_padding(graph, x, n)
    graph.output("outputs" if isinstance(model, SequenceModel) else "y", x, width)
    for (name, shape), each in zip(after, finals, strict=False):
        graph.output(name, _joined(graph, each), shape)


def _without_padding(graph: _Graph, x: str, lengths: str) -> str:
    """Return the name of (T, B, N) that is zero past each row's end, as a model gives it."""
    T = graph.add("Squeeze", graph.add("Shape", x, start=0, end=1))
    steps = graph.add("Range", graph.tensor("zero", np.array(0, np.int64)), T,
                      graph.tensor("one", np.array(1, np.int64)))
    n = graph.add("Cast", lengths, to=graph.onnx.TensorProto.INT64)
    alive = graph.add("Less", graph.add("Unsqueeze", steps, graph.axes(1)), n)
    nothing = graph.tensor("nothing", np.zeros((), graph.dtype))
    return str(graph.add("Where", graph.add("Unsqueeze", alive, graph.axes(2)), x, nothing))


# ---- files ---------------------------------------------------------------------------------------


def _proto(model: Any, states: Any, lengths: Any) -> Any:
    """Return the ModelProto of a model or layer."""
    states, lengths = _checks.flag("states", states), _checks.flag("lengths", lengths)
    if isinstance(model, EncoderDecoder) or not isinstance(model, (Stack, Recurrent)):
        raise RefusedType(f"model is {_checks.kind(model)}, expected RNN, LSTM, GRU, Stack, "
                          "SequenceModel or LanguageModel")
    if isinstance(model, SequenceModel) and model.context_size is not None:
        raise RefusedValue("model has a context_size, expected none: a file would need another "
                           "input")
    for i, layer in enumerate(model.layers if isinstance(model, Stack) else [model]):
        _check_layer(f"layers[{i}]" if isinstance(model, Stack) else "model", layer)
    graph = _Graph(package(), model.dtype)
    if isinstance(model, Stack):
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
    model : RNN, LSTM, GRU, Stack, SequenceModel or LanguageModel
    path : path
        A file that is there is replaced.
    states : bool
        Whether initial states are inputs and final states outputs: ``h0``, ``c0``, ``hn``, ``cn``
        (L*D, B, H) of a layer, ``layers.0.h0`` and so on of a model.
    lengths : bool
        Whether there is an input ``lengths`` (B,) of int32: the steps of each row.

    Raises
    ------
    ModuleNotFoundError
        If the package onnx is not installed.
    TypeError, ValueError
        If ONNX has no operator for the model: cells from equations, a projection, a context.
    OSError
        If the file cannot be written.

    Notes
    -----
    ONNX Runtime computes float32. A float64 model makes a valid file, which `load` reads, but
    which ONNX Runtime 1.32 has no kernels for.
    """
    path = as_path(path)  # before the work
    write_bytes(path, _bytes(model, states, lengths))
