"""Models of Keras: `.keras`, `.weights.h5` and whole-model `.h5` files of layers in a chain.

A chain comes back as a `KerasModel`, which computes in inference what Keras computes: its recurrent
layers are fastrnn's, the few other layers are NumPy. Code of a file is never run. Letters: N
sequences, T steps, I input, H hidden.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.formats.keras_config import Chain, Entry, chain_of, config_of_layers
from fastrnn.formats.keras_file import File, opened
from fastrnn.formats.keras_layers import dtype_of, step_of
from fastrnn.formats.keras_steps import (
    Dense,
    Embedding,
    Nothing,
    Recurrence,
    Reshape,
    States,
    Step,
    Value,
)
from fastrnn.layers.recurrent import Recurrent
from fastrnn.models import SequenceModel, Stack

__all__ = ["KerasModel", "load"]


@public
def load(path: Any, *, config: Any = None, layers: Any = None) -> KerasModel:
    """Load a model of Keras whose layers are a chain.

    Parameters
    ----------
    path : path
        A `.keras` file, a whole-model `.h5` file, or a `.weights.h5` file.
    config : dict or str, optional
        The architecture of a file that has weights alone: what ``model.to_json()`` of Keras
        returned, or the same as a dictionary.
    layers : list of (str, dict), optional
        The architecture as pairs of a class of Keras and its options,
        ``[("LSTM", {"return_sequences": True}), ("Dense", {"activation": "softmax"})]``. Sizes
        are those of the file; an option that is left out has Keras's default. A wrapper's layer is
        such a pair: ``("Bidirectional", {"layer": ("GRU", {})})``.

    Returns
    -------
    KerasModel

    Raises
    ------
    OSError
        If the file cannot be read.
    ModuleNotFoundError
        If h5py is not installed.
    ValueError
        If it is not a file of Keras, its variables do not fit its configuration, its layers are not
        a chain, or a layer has no counterpart here; the sentence names the file, and the layer or
        variable. If a file of weights alone comes without `config` and `layers`, or another file
        with one of them.
    TypeError
        If `config` is something else.

    Notes
    -----
    Variables are read from the file into the layers block by block, so loading takes the memory of
    the layers.
    """
    given = _given(config, layers)
    with opened(path) as file:
        if file.config is None and given is None:
            raise RefusedValue("it has weights alone, expected config=model.to_json() of Keras, or "
                               "layers=[('LSTM', {...}), ...]: it has "
                               f"{_checks.show(file.found())}")
        if file.config is not None and given is not None:
            raise RefusedValue("it has its configuration, expected neither config nor layers")
        chain = chain_of(given if file.config is None else file.config)
        keras_2 = file.version.partition(".")[0] in ("1", "2")
        steps, takes = _steps(chain, file, keras_2)
        return KerasModel(steps, takes, chain.outputs, file.unused(), _input_dtype(chain))


def _given(config: Any, layers: Any) -> Any:
    if layers is not None:
        if config is not None:
            raise RefusedValue("config and layers are given, expected one of them")
        return config_of_layers(layers)
    if isinstance(config, str):
        try:
            return json.loads(config)
        except ValueError as error:
            raise RefusedValue(f"config is not JSON: {error}") from None
    if config is not None and not isinstance(config, Mapping):
        raise RefusedType(f"config is {_checks.kind(config)}, expected a dictionary or JSON")
    return config


def _input_dtype(chain: Chain) -> np.dtype:
    """Return what a floating-point input is converted to."""
    layers = [entry for entry in chain.entries if entry.kind != "InputLayer"]
    return dtype_of(layers[0].config)


def _steps(chain: Chain, file: File, keras_2: bool) -> tuple[list[Step], list[int]]:
    """Return the layers, and which output of the layer before each of them reads."""
    steps: list[Step] = []
    takes: list[int] = []
    for number, entry in enumerate(chain.entries):
        try:
            if entry.kind == "InputLayer":
                _check_input(entry, first=number == 0)
                continue
            step = step_of(entry, file.owner(entry.path, entry.name), keras_2)
            _check_place(step, steps, entry.reads, chain)
        except KeyError as error:
            raise RefusedValue(f"layer {_checks.show(entry.name)} has no {error}") from error
        except (ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise RefusedValue(f"layer {_checks.show(entry.name)}: {error}") from error
        steps.append(step)
        takes.append(entry.reads)
    if not steps:
        raise RefusedValue("it has no layers")
    if max(chain.outputs or (0,)) >= _outputs(steps[-1]):
        raise RefusedValue(f"layer {_checks.show(steps[-1].name)} has {_outputs(steps[-1])} "
                           f"outputs, the model has the outputs {chain.outputs}")
    return steps, takes


def _check_input(entry: Entry, first: bool) -> None:
    if not first:
        raise RefusedValue("it is an input inside the chain, expected one at its beginning")
    for name in ("sparse", "ragged"):
        if entry.config.get(name):
            raise RefusedValue(f"{name} is True, expected False")


def _outputs(step: Step) -> int:
    """Return how many outputs a layer has."""
    if not isinstance(step, Recurrence):
        return 1
    more = sum(len(direction.layer.cell.states) for direction in step.directions)
    return (2 if len(step.directions) == 2 and step.merge is None else 1) + (
        more if step.gives_state else 0)


def _check_place(step: Step, before: list[Step], reads: int, chain: Chain) -> None:
    """Refuse a layer that does not fit what it reads."""
    if isinstance(step, Embedding) and before:
        raise RefusedValue("it has another layer before it, expected it at the beginning")
    if not before:
        return
    outputs = _outputs(before[-1])
    if reads >= outputs or (outputs > 1 and chain.outputs is None):
        raise RefusedValue(f"the layer before it has {outputs} outputs, expected one that it reads")
    needed = step.recurrent[0].input_size if isinstance(step, Recurrence) else (
        step.inputs if isinstance(step, Dense) else None)
    width = _width(before, reads)
    if None not in (needed, width) and needed != width:
        raise RefusedValue(f"its kernel has {needed} rows, expected {width}: the features of the "
                           "layer before it")


def _width(steps: list[Step], reads: int) -> int | None:
    """Return the features that the layers give; None if that depends on more than their sizes."""
    for step in reversed(steps):
        if isinstance(step, Recurrence):
            if reads or step.merge != "concat":
                return int(step.recurrent[0].output_size)
            return sum(int(direction.layer.output_size) for direction in step.directions)
        if isinstance(step, Dense):
            return int(step.outputs)
        if isinstance(step, Embedding):
            return int(step.weight.shape[1])
        if isinstance(step, Reshape):
            return None
        reads = 0
    return None


class KerasModel:
    """A chain of layers with the weights and the outputs of a Keras model, in inference.

    Attributes
    ----------
    steps : tuple
        The layers of the chain in their order, as `repr` shows them.
    layers : tuple of recurrent layers
        Those of fastrnn that the chain computes with, in evaluation mode. A Bidirectional is one
        bidirectional layer if its two layers are alike, else two layers.
    unused : tuple of str
        The names of the file's variables that inference does not need: those of the optimiser, of
        metrics, and the random generators of dropout.
    stateful : bool
        Whether a layer of the chain is stateful: then a call takes a state and returns the next.

    Notes
    -----
    A layer with ``stateful=True`` keeps its state between calls in Keras. Here a call keeps
    nothing: ``y, state = model(x, state)``. Layers with float16, or with mixed precision, are
    computed in float32.

    Examples
    --------
    >>> model = fastrnn.load("model.keras")
    >>> y = model(x)  # x (N, T, I), or whole numbers (N, T) of an Embedding
    """

    def __init__(self, steps: list[Step], reads: list[int], outputs: tuple[int, ...] | None,
                 unused: tuple[str, ...], dtype: np.dtype) -> None:
        self.steps, self._reads, self._outputs = tuple(steps), tuple(reads), outputs
        self.layers: tuple[Recurrent, ...] = tuple(
            layer for step in steps for layer in step.recurrent)
        self.unused, self.dtype = unused, dtype
        self._stateful = [step for step in steps
                          if isinstance(step, Recurrence) and step.stateful]
        self.stateful = bool(self._stateful)

    def __repr__(self) -> str:
        return "KerasModel: " + " -> ".join(map(repr, self.steps))

    @public
    def initial_state(self, N: int) -> tuple[States, ...]:
        """Return the zero state of a stateful model for N sequences.

        Parameters
        ----------
        N : int

        Returns
        -------
        tuple
            For each stateful layer a tuple of arrays (N, H): h, and c of an LSTM; of a
            Bidirectional those of the forward direction and then those of the other.
        """
        N = _checks.positive("N", N)
        return tuple(step.initial_state(N) for step in self._stateful)

    @public
    def __call__(self, x: Any, state: Any = None) -> Any:
        """Return what the Keras model returns in inference.

        Parameters
        ----------
        x : array (N, T, I), or whole numbers (N, T) for an Embedding
        state : tuple, optional
            Of a stateful model: what `initial_state`, or the call before, returned. None: zeros.

        Returns
        -------
        y : array, or a tuple of arrays if the Keras model has several outputs
        state : tuple
            Of a stateful model only: the state after the last step.

        Raises
        ------
        TypeError, ValueError, IndexError
            If x or the state do not fit, or a symbol is not below V.
        """
        symbols = isinstance(self.steps[0], Embedding)
        x = _checks.numbers("x", x)
        if not symbols:
            x = x.astype(self.dtype, copy=False)
        if x.ndim < (1 if symbols else 2):
            raise RefusedValue(f"x has shape {x.shape}, expected (N, T{'' if symbols else ', I'})")
        states = self._states(state, len(x))
        values: tuple[Value, ...] = (Value(x),)
        finals: list[States] = []
        for step, reads in zip(self.steps, self._reads, strict=True):
            if isinstance(step, Recurrence) and step.stateful:
                values, final = step.run(values[reads], states[len(finals)] if states else None)
                finals.append(final)
            else:
                values = step(values[reads])
        chosen = range(len(values)) if self._outputs is None else self._outputs
        outputs = tuple(_apart(values[number].x, x) for number in chosen)
        y = outputs[0] if len(outputs) == 1 else outputs
        return (y, tuple(finals)) if self.stateful else y

    def _states(self, state: Any, N: int) -> list[States]:
        """Return the checked state of each stateful layer; empty: zeros."""
        if state is None:
            return []
        if not self.stateful:
            raise RefusedValue("state is given, expected none: no layer of the model is stateful")
        if not isinstance(state, (tuple, list)) or len(state) != len(self._stateful):
            raise RefusedValue(f"state is {_checks.show(state)}, expected a tuple of "
                               f"{len(self._stateful)}, one for each stateful layer")
        checked = []
        for own, step in zip(state, self._stateful, strict=True):
            zeros = step.initial_state(N)
            if not isinstance(own, (tuple, list)) or len(own) != len(zeros):
                raise RefusedValue(f"the state of {step.name} is {_checks.show(own)}, expected a "
                                   f"tuple of {len(zeros)} arrays")
            checked.append(tuple(
                _checks.array(f"the state of {step.name}", h, zero.dtype, zero.shape)
                for h, zero in zip(own, zeros, strict=True)))
        return checked

    @public
    def to_model(self) -> SequenceModel | Stack:
        """Return a trainable model of fastrnn with copies of the weights, if the chain is one.

        That is an Embedding (or none), recurrent layers that walk forward or are a Bidirectional
        with merge_mode "concat", and one Dense (or none; then the result is a Stack). Dropout and
        the like are left out. A Dense with softmax becomes the loss "softmax", one with sigmoid
        "bce", a linear one "mse": the model's outputs are then what the Dense has before its
        activation. Calls of the result have time first: x (T, B, I).

        Returns
        -------
        SequenceModel or Stack
            In training mode.

        Raises
        ------
        ValueError
            If the chain is another.
        """
        steps = [step for step in self.steps if not isinstance(step, Nothing)]
        embedding = head = None
        if steps and isinstance(steps[0], Embedding):
            embedding = steps[0]
        if steps and isinstance(steps[-1], Dense):
            head = steps[-1]
        layers = _recurrent(steps[embedding is not None : len(steps) - (head is not None)], head)
        if embedding is not None and embedding.mask_zero:
            raise RefusedValue(f"{embedding!r} masks steps, expected an Embedding without "
                               "mask_zero: a model of fastrnn takes lengths")
        V = None if embedding is None else len(embedding.weight)
        copies = [_trainable(step.recurrent[0]) for step in layers]
        if head is None:
            model: Any = Stack(copies, vocab_size=V, seed=0)
        else:
            model = SequenceModel(
                copies, head.outputs, vocab_size=V, loss=_LOSSES[head.activation],
                readout="every" if layers[-1].sequences else "last", seed=0)
            model.head.load_state_dict(head.linear.state_dict())
        if embedding is not None:
            model.embedding.parameters()["weight"][...] = embedding.weight
        return model  # type: ignore[no-any-return]


_LOSSES = {"softmax": "softmax", "sigmoid": "bce", "linear": "mse"}


def _apart(y: np.ndarray, x: Any) -> np.ndarray:
    """Return a contiguous array that shares no memory with the input of a call."""
    return y.copy() if np.may_share_memory(y, x) else np.ascontiguousarray(y)


def _recurrent(steps: list[Step], head: Dense | None) -> list[Recurrence]:
    """Return the layers between embedding and head, or refuse a chain that is no model."""
    layers = []
    for number, step in enumerate(steps):
        plain = (isinstance(step, Recurrence) and not step.directions[0].backwards
                 and not step.gives_state and (len(step.directions) == 1 or (
                     step.fused and step.merge == "concat")))
        if not isinstance(step, Recurrence) or not plain:
            raise RefusedValue(f"the chain has {step!r}, which no layer of a model of fastrnn is")
        if not step.sequences and (number < len(steps) - 1 or head is None):
            raise RefusedValue(f"{step!r} returns one step, expected return_sequences=True without "
                               "a Dense after it")
        layers.append(step)
    if not layers:
        raise RefusedValue("the chain has no recurrent layer")
    if head is not None and head.activation not in _LOSSES:
        raise RefusedValue(f"{head!r} has an activation that no loss has, expected one of "
                           f"{list(_LOSSES)}")
    return layers


def _trainable(layer: Recurrent) -> Recurrent:
    """Return a copy of a layer in training mode, with time first."""
    config = {name: value for name, value in layer.config.items() if name != "layer"}
    made: Recurrent = type(layer)(**config | {"batch_first": False}, seed=0)
    made.load_state_dict(layer.state_dict())
    return made
