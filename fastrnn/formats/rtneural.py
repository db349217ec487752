"""RTNeural's JSON, as plugins for audio effects read it: LSTM, GRU and dense layers in a chain.

Weights have Keras's layout: kernels are (I, G*H), the gates of an LSTM are in the order i f g o and
those of a GRU in the order z r n. A GRU has two biases, a row each; its reset gate multiplies the
product. Letters: T steps, B batch, I input, H hidden, G gates, K and N inputs and outputs of a
dense layer.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from json.decoder import JSONArray  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.formats.activations import elu, softmax
from fastrnn.formats.files import NamedError, in_evaluation, write_file
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.standard import GRU, LSTM
from fastrnn.models import SequenceModel, Stack
from fastrnn.models.generate import sigmoid
from fastrnn.models.linear import Linear

__all__ = ["RTNeuralModel", "encoded", "load", "read", "save", "state_dict"]

_LONGEST = 100_000_000  # bytes of a file
_SPACE = r"[ \t\n\r]*+"
_NUMBER = rf"{_SPACE}-?(?:0|[1-9]\d*+)(?:\.\d++)?+(?:[eE][+-]?\d++)?+{_SPACE}"
_ROW = re.compile(rf"{_NUMBER}(?:,{_NUMBER})*+\]", re.ASCII)
_FREE = 10_000  # of each mark, and of numbers outside of rows, that a file of any length may have
_BETWEEN = 64  # bytes for each one more
_MARKS = ("[", "{", '"', "null", "true", "false")
_FREE_NUMBERS, _PER_NUMBER = 1_000_000, 5  # the same of commas: a number takes 4 bytes
_BLOCK = 1 << 20  # characters that become numbers at once
_GATES = {"lstm": (0, 1, 2, 3), "gru": (1, 0, 2)}  # where a gate of theirs is in ours
_DENSE = ("dense", "time-distributed-dense")
_KEYS = ("in_shape", "layers")  # of a file
_LAYER_KEYS = ("type", "shape", "weights", "activation", "name")

Make = Callable[[str, dict[str, Any]], Any]


def _relu(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(x, 0))


_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh, "relu": _relu, "sigmoid": sigmoid, "softmax": softmax, "elu": elu}


def _prelu(slope: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return max(x, 0) + a min(x, 0), with a number a for each feature."""
    return np.asarray(np.maximum(x, 0) + slope * np.minimum(x, 0))


Step = Recurrent | Linear | Callable[[np.ndarray], np.ndarray]


class RTNeuralModel:
    """A chain of recurrent layers, dense layers and activations, which is called as a Stack.

    Attributes
    ----------
    layers : tuple of LSTM and GRU
    steps : tuple
        All of the chain in its order: recurrent layers, linear maps, functions of an array.
    unused : tuple of str
        What the file has beside the model.
    """

    unused: tuple[str, ...] = ()

    def __init__(self, input_size: int, steps: Sequence[Step]) -> None:
        self.input_size = input_size
        self.steps = tuple(steps)
        self.layers = tuple(step for step in steps if isinstance(step, Recurrent))

    @public
    def __call__(self, x: Any, state: Any = None) -> tuple[np.ndarray, tuple[Any, ...]]:
        """Run the chain over a batch of sequences.

        Parameters
        ----------
        x : array (T, B, I) of float32
        state : tuple with a state for each recurrent layer, or None: zeros

        Returns
        -------
        y : array (T, B, N)
        state : tuple
            Every recurrent layer's final state.

        Raises
        ------
        TypeError, ValueError
            If x or the state does not fit.
        """
        x = _checks.array("x", x, np.float32, ("T", "B", self.input_size))
        if state is None:
            state = (None,) * len(self.layers)
        if not isinstance(state, (tuple, list)) or len(state) != len(self.layers):
            raise RefusedType(f"state is {_checks.show(state)}, expected a tuple with one entry "
                              f"for each of {len(self.layers)} layers")
        before, after = iter(state), []
        for step in self.steps:
            if isinstance(step, Recurrent):
                x, final = step(x, next(before))
                after.append(final)
            elif isinstance(step, Linear):
                x = step.apply(x)
            else:
                x = step(x)
        return x, tuple(after)

    def __repr__(self) -> str:
        steps = (repr(step) if isinstance(step, (Recurrent, Linear)) else _name(step)
                 for step in self.steps)
        return f"RTNeuralModel: {', '.join(steps)}"


def _name(step: Step) -> str:
    return next((name for name, known in _ACTIVATIONS.items() if known is step), "prelu")


# ---- reading -------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """Return the JSON of a file; its lists of numbers are arrays."""
    if (size := path.stat().st_size) > _LONGEST:
        raise RefusedValue(f"it has {size} bytes, expected at most {_LONGEST}")
    try:
        file = _parsed(path.read_text("utf-8"))
    except ValueError as error:
        raise NamedError(f"{str(path)!r} is not JSON: {error}") from None
    if not isinstance(file, dict):
        raise RefusedValue("it is JSON, expected an object")
    return file


def state_dict(file: dict[str, Any]) -> tuple[dict[str, np.ndarray], tuple[str, ...]] | None:
    """Return the arrays of JSON with PyTorch's names, and the keys beside them; None of a chain.

    Programs that train models of amplifiers write {"state_dict": {"rec.weight_ih_l0": ...}}, or
    the arrays alone.
    """
    held = file.get("state_dict", file)
    if any(key in file for key in _KEYS) or not isinstance(held, dict):
        return None
    arrays = {}
    for value in held.values():
        rows = value if isinstance(value, list) else [value]
        if not rows or not all(isinstance(row, np.ndarray) and len(row) == len(rows[0])
                               for row in rows):
            return None
    for name, value in list(held.items()):
        shape = (len(value),) if isinstance(value, np.ndarray) else (len(value), len(value[0]))
        arrays[name] = _array(name, value, shape)
        held[name] = None  # the rows: the model takes their memory
    return (arrays, () if held is file else tuple(k for k in file if k != "state_dict")) if (
        arrays) else None


def load(file: dict[str, Any], make: Make) -> Any:
    """Return the model of a file's JSON.

    Recurrent layers alone are one layer or a Stack; with one dense layer at the end they are a
    SequenceModel of the mean squared error; any other chain is an RTNeuralModel.
    """
    if not all(isinstance(file.get(key), (list, np.ndarray)) for key in _KEYS):
        raise RefusedValue("it is JSON without the lists in_shape and layers, which RTNeural's "
                           "files have")
    if not len(file["layers"]):
        raise RefusedValue("it has no layers")
    width = input_size = _last("in_shape", file["in_shape"])
    read = []
    for number, layer in enumerate(file["layers"]):
        found = _read_layer(f"layers[{number}]", layer, width)
        width = found.width
        read.append(found)
    model = _model(input_size, read, make)
    model.unused = (*(key for key in file if key not in _KEYS),
                    *(f"layers[{number}].{key}" for number, layer in enumerate(file["layers"])
                      for key in layer if key not in _LAYER_KEYS))
    return model


def _parsed(text: str) -> Any:
    """Return JSON whose lists of numbers are arrays of float32, which take less than the text.

    What takes much more memory than its text (lists, names, very short numbers) is counted first.
    """
    for mark in _MARKS:
        if text.count(mark) > _FREE + len(text) // _BETWEEN:
            raise ValueError(f"it has {text.count(mark)} of {mark}, too many for its length")
    if text.count(",") > _FREE_NUMBERS + len(text) // _PER_NUMBER:
        raise ValueError(f"it has {text.count(',')} numbers, too many for its length")
    return _Decoder(_FREE + len(text) // _BETWEEN).decode(text)


class _Decoder(json.JSONDecoder):
    """Reads a list of numbers at once; other numbers are objects, so only so many are allowed."""

    def __init__(self, numbers: int) -> None:
        super().__init__(parse_constant=_no_number, parse_float=self._counted,
                         parse_int=functools.partial(self._counted, of=int))
        self.parse_array = _row_or_list
        self._left = numbers
        self.scan_once = py_make_scanner(self)  # the one in C has lists of its own

    def _counted(self, text: str, of: Callable[[str], Any] = float) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError("it has too many numbers beside others that are none")
        return of(text)


def _row_or_list(place: tuple[str, int], scan: Any, **more: Any) -> tuple[Any, int]:
    """Return the list that begins at a place of a text, and where it ends."""
    text, start = place
    found = _ROW.match(text, start)
    if found is None:
        values, end = JSONArray(place, scan, **more)
        return values, end
    end = found.end() - 1
    row = np.empty(text.count(",", start, end) + 1, np.float32)
    at = 0
    with np.errstate(over="ignore"):
        while start < end:
            stop = text.find(",", min(start + _BLOCK, end), end)
            stop = end if stop < 0 else stop
            piece = np.fromstring(text[start:stop], np.float32, sep=",")
            row[at : at + len(piece)] = piece
            at += len(piece)
            start = stop + 1
    return row, found.end()


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


class _Read(NamedTuple):
    """A layer of a file, checked: its arrays by fastrnn's names, or its activations alone."""

    kind: str
    width: int
    arrays: dict[str, np.ndarray]
    activations: tuple[Step, ...] = ()


def _last(name: str, shape: Any) -> int:
    """Return the features of a shape such as [null, null, 8]."""
    if not isinstance(shape, (list, np.ndarray)) or not 1 <= len(shape) <= 3:
        raise RefusedValue(f"{name} is {_checks.show(shape)}, expected [null, null, features]")
    last = shape[-1]
    if isinstance(last, np.float32) and last < _LONGEST and last == int(last):
        last = int(last)
    return _checks.positive(f"the last of {name}", last)


def _read_layer(name: str, layer: Any, K: int) -> _Read:
    """Check one layer against the width K of what comes before it."""
    if not isinstance(layer, dict):
        raise RefusedValue(f"{name} is {_checks.show(layer)}, expected an object")
    kind = _checks.one_of(f"the type of {name}", layer.get("type"),
                          (*_GATES, *_DENSE, "activation", "prelu"))
    N = _last(f"the shape of {name}", layer.get("shape"))
    weights = layer.get("weights")
    activation = layer.get("activation", "")
    functions: tuple[Step, ...] = ()
    if kind in _GATES:  # Keras writes that of the cell here; RTNeural does not read it
        _checks.one_of(f"the activation of {name}", activation, ("", "tanh"))
    elif activation != "" or kind == "activation":
        functions = (_ACTIVATIONS[_checks.one_of(f"the activation of {name}", activation,
                                                 _ACTIVATIONS)],)
    if kind in ("activation", "prelu") and N != K:
        raise RefusedValue(f"{name} has {N} features, expected {K}: those of what comes before")
    if kind == "activation":
        return _Read(kind, N, {}, functions)
    shapes: dict[str, tuple[int, ...]] = {"kernel": (K, N), "bias": (N,)}
    if kind == "prelu":
        shapes = {"alpha": (1, N)}
    elif kind in _GATES:
        G = len(_GATES[kind])
        shapes = {"kernel": (K, G * N), "recurrent": (N, G * N),
                  "bias": (2, 3 * N) if kind == "gru" else (4 * N,)}
    if kind in _DENSE and isinstance(weights, list) and len(weights) == 1:
        weights = [*weights, np.zeros(N, np.float32)]  # use_bias=False
    if not isinstance(weights, list) or len(weights) != len(shapes):
        raise RefusedValue(f"the weights of {name} are {_checks.show(weights)}, expected "
                           f"{len(shapes)} arrays: {', '.join(shapes)}")
    arrays = {key: _array(f"{key} of {name}", value, shape)
              for value, (key, shape) in zip(weights, shapes.items(), strict=True)}
    layer["weights"] = weights = None  # the rows: the model takes their memory
    if kind == "prelu":
        return _Read(kind, N, {}, (*functions, functools.partial(_prelu, arrays["alpha"][0])))
    if kind in _DENSE:
        return _Read("dense", N, {"weight": arrays["kernel"].T, "bias": arrays["bias"]}, functions)
    return _Read(kind, N, _to_torch(kind, arrays))


def _array(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return rows of numbers as an array, if they have this shape."""
    rows = [value] if len(shape) == 1 else value
    if not isinstance(rows, list) or len(rows) != (1, *shape)[-2]:
        came = f"{len(rows)} entries" if isinstance(rows, list) else _checks.show(value)
        raise RefusedValue(f"{name} has {came}, expected the shape {shape}")
    for row in rows:
        if not isinstance(row, np.ndarray):
            raise RefusedValue(f"{name} has {_checks.show(row)}, expected rows of numbers")
        if len(row) != shape[-1]:
            raise RefusedValue(f"{name} has a row of {len(row)} numbers, expected the shape "
                               f"{shape}")
        if not np.isfinite(row).all():
            raise RefusedValue(f"{name} has a number that float32 cannot hold")
    return np.stack(rows).reshape(shape)


def _blocks(array: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Return the blocks of the last axis in another order."""
    blocks = array.reshape(*array.shape[:-1], len(order), -1)
    return blocks[..., list(order), :].reshape(array.shape)


def _to_torch(kind: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    kernel, recurrent, bias = (_blocks(a, _GATES[kind]) for a in arrays.values())
    own, other = bias if kind == "gru" else (bias, np.zeros_like(bias))
    return {"weight_ih_l0": kernel.T, "weight_hh_l0": recurrent.T, "bias_ih_l0": own,
            "bias_hh_l0": other}


def _model(I: int, read: list[_Read], make: Make) -> Any:
    """Make the model now that everything fits."""
    inputs = [I, *(layer.width for layer in read)]
    recurrent = [layer for layer in read if layer.kind in _GATES]
    configs: list[dict[str, Any]] = [
        {"layer": layer.kind.upper(), "input_size": K, "hidden_size": layer.width, "num_layers": 1}
        for layer, K in zip(read, inputs, strict=False) if layer.kind in _GATES]
    if len(read) == len(recurrent) == 1:
        model = make(configs[0]["layer"], configs[0])
        _fill(model, read[0].arrays)
        return in_evaluation(model)
    rest = read[len(recurrent):]
    first = recurrent and all(layer.kind in _GATES for layer in read[:len(recurrent)])
    if first and (not rest or (len(rest) == 1 and rest[0].kind == "dense"
                               and not rest[0].activations)):
        if rest:
            model = make("SequenceModel", {"layers": configs, "output_size": rest[0].width,
                                           "loss": "mse"})
            _fill(model.head, rest[0].arrays)
        else:
            model = make("Stack", {"layers": configs})
        for layer, found in zip(model.layers, recurrent, strict=True):
            _fill(layer, found.arrays)
        return in_evaluation(model)
    layers = iter(configs)
    steps: list[Step] = []
    for found, K in zip(read, inputs, strict=False):
        if found.arrays:
            if found.kind in _GATES:
                config = next(layers)
                part = make(config["layer"], config)
            else:
                part = Linear(K, found.width)
            _fill(part, found.arrays)
            steps.append(in_evaluation(part))
        steps += found.activations
    return RTNeuralModel(I, steps)


def _fill(part: Any, arrays: Mapping[str, np.ndarray]) -> None:
    params = part.parameters()
    for name, array in arrays.items():
        params[name][...] = array


# ---- writing -------------------------------------------------------------------------------------


def save(model: Any, path: Any) -> None:
    """Write a model that RTNeural can run: LSTM and GRU of one direction, and a head."""
    # row by row: as a list of Python's numbers, an array takes eight times its memory
    encoder = json.JSONEncoder(separators=(",", ":"), default=_rows)
    pieces = encoder.iterencode(encoded(model))
    write_file(path, lambda file: file.writelines(map(str.encode, pieces)))


def encoded(model: Any) -> dict[str, Any]:
    """Return what RTNeural's JSON has for a model, whose arrays are still arrays.

    Raises
    ------
    TypeError, ValueError
        If RTNeural cannot run the model.
    """
    head = None
    if isinstance(model, Stack):
        layers, inputs = model.layers, model.input_size
        if model.vocab_size is not None:
            raise RefusedValue("the model takes symbols, expected one of real vectors: RTNeural "
                               "has no embedding")
        if isinstance(model, SequenceModel):
            head = model.head
            if model.readout != "every" or model.context_size is not None:
                raise RefusedValue("the model has readout 'last' or a context_size, expected "
                                   "readout 'every' without: RTNeural gives an output each step")
    elif isinstance(model, (LSTM, GRU)):
        layers, inputs = (model,), model.input_size
    else:
        raise RefusedType(f"model is {_checks.kind(model)}, expected a SequenceModel or Stack of "
                          "LSTM and GRU, or one of them: RTNeural runs no others")
    written = [one for layer in layers for one in _layer(layer)]
    if head is not None:
        written.append({"type": "dense", "activation": "", "shape": [None, None, len(head.bias)],
                        "weights": [_finite(head.weight.T), _finite(head.bias)]})
    return {"in_shape": [None, None, inputs], "layers": written}


def _layer(layer: Recurrent) -> list[dict[str, Any]]:
    """Return a layer of RTNeural for each that is stacked."""
    projected = isinstance(layer, LSTM) and layer.proj_size
    before = isinstance(layer, GRU) and not layer.reset_after
    if type(layer) not in (LSTM, GRU) or layer.bidirectional or projected or before:
        raise RefusedValue(f"{layer!r} is no layer of RTNeural, expected LSTM or GRU of one "
                           "direction, without proj_size, and with reset_after=True")
    kind, H = type(layer).__name__.lower(), layer.hidden_size
    made, params = [], layer.parameters()
    back = tuple(sorted(_GATES[kind], key=_GATES[kind].index))
    order = [back.index(gate) for gate in range(len(back))]
    for number in range(layer.num_layers):
        rows = len(back) * H
        kernel, recurrent = (_blocks(params[f"weight_{of}_l{number}"].T, order)
                             for of in ("ih", "hh"))
        biases = [_blocks(params[f"bias_{of}_l{number}"] if layer.bias else np.zeros(rows), order)
                  for of in ("ih", "hh")]
        # an LSTM has one bias there: of float32 the sum is rounded by who reads it, not twice
        bias = np.array(biases) if kind == "gru" else biases[0].astype(np.float64) + biases[1]
        made.append({"type": kind, "activation": "", "shape": [None, None, H],
                     "weights": [_finite(kernel), _finite(recurrent), _finite(bias)]})
    return made


def _finite(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise RefusedValue("a parameter of the model is infinite or not a number, which JSON "
                           "cannot hold")
    return array


def _rows(array: np.ndarray) -> list[Any]:
    """Return a matrix as a list of its rows, and a row as a list of numbers."""
    return array.tolist() if array.ndim == 1 else list(array)
