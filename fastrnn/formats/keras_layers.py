"""From a layer's configuration and variables to what computes it.

Sizes of a configuration are compared with the shapes of the file before anything is allocated.
Letters: I input, H hidden, G gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn.cells.definition import Definition, cell
from fastrnn.formats.files import in_evaluation
from fastrnn.formats.keras_config import Entry, entry_of
from fastrnn.formats.keras_file import Owner, Variable
from fastrnn.formats.keras_functions import activation, activation_name, equation, layer_activation
from fastrnn.formats.keras_steps import (
    Dense,
    Direction,
    Elementwise,
    Embedding,
    Masking,
    Nothing,
    Pooling,
    Recurrence,
    Reshape,
    Step,
)
from fastrnn.layers.layer import Layer
from fastrnn.layers.parameters import UNSET
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.standard import GRU, LSTM, RNN
from fastrnn.models.linear import Linear

__all__ = ["SUPPORTED", "dtype_of", "step_of"]

GATES = {"SimpleRNN": 1, "LSTM": 4, "GRU": 3}
_NOTHING = ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianNoise",
            "GaussianDropout", "AlphaDropout", "ActivityRegularization", "Identity")
_ACTIVATIONS = ("ReLU", "LeakyReLU", "ELU", "Softmax")
_DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float32,
           "mixed_float16": np.float32, "mixed_bfloat16": np.float32}


class Given(NamedTuple):
    """What a layer is made of."""

    entry: Entry
    owner: Owner
    keras_2: bool
    part: str = ""  # of the owner, inside a TimeDistributed

    @property
    def config(self) -> Mapping[str, Any]:
        """The layer's own configuration."""
        return self.entry.config

    @property
    def dtype(self) -> np.dtype:
        """What the layer computes in."""
        return dtype_of(self.config)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return an option that is true or false."""
        value = self.config.get(name)
        return default if value is None else _checks.flag(name, value)

    def size(self, name: str, number: int, axis: int) -> int:
        """Return a size, that of a variable if the configuration does not have it."""
        if name in self.config:
            return _checks.positive(name, self.config[name])
        shape = self.owner.shape(self.part, number)
        if shape is None or len(shape) <= axis:
            raise RefusedValue(f"it has no {name}")
        return _checks.positive(name, shape[axis])

    def activation(self, name: str, default: str) -> str:
        """Return the name of an activation."""
        return activation_name(self.config.get(name, default), self.keras_2)


def dtype_of(config: Mapping[str, Any]) -> np.dtype:
    """Return what a layer of this configuration computes in; halves are computed in float32."""
    policy = config.get("dtype") or "float32"
    if isinstance(policy, Mapping):
        policy = policy["config"]["name"]
    return np.dtype(_DTYPES[_checks.one_of("dtype", policy, _DTYPES)])


def step_of(entry: Entry, owner: Owner, keras_2: bool) -> Step:
    """Return what computes a layer of the chain."""
    if entry.kind not in _BUILDERS:
        raise RefusedValue(f"it is a {_checks.show(entry.kind)}, expected one of "
                           f"{', '.join(SUPPORTED)}")
    dtype_of(entry.config)
    step = _BUILDERS[entry.kind](Given(entry, owner, keras_2))
    owner.finish()
    return step


def _nothing(given: Given) -> Step:
    return Nothing(given.entry.name, given.entry.kind)


def _activation(given: Given) -> Step:
    name = given.activation("activation", "linear")
    return Elementwise(given.entry.name, f"Activation({name!r})", activation(name))


def _activation_layer(given: Given) -> Step:
    function, shown = layer_activation(given.entry.kind, dict(given.config))
    return Elementwise(given.entry.name, shown, function, given.entry.kind == "Softmax")


def _embedding(given: Given) -> Step:
    V, E = given.size("input_dim", 0, 0), given.size("output_dim", 0, 1)
    _plain(given)
    weight = given.owner.take(given.part, embeddings=(V, E))["embeddings"].values(given.dtype)
    return Embedding(given.entry.name, weight, given.flag("mask_zero"))


def _masking(given: Given) -> Step:
    value = given.config.get("mask_value", 0.0)
    if isinstance(value, Mapping):  # a number of NumPy in Keras's JSON
        value = value.get("config", {}).get("value")
    number = float(value) if isinstance(value, (int, float)) else None
    if number is None:
        raise RefusedValue(f"mask_value is {_checks.show(value)}, expected a number")
    return Masking(given.entry.name, number)


def _dense(given: Given, timed: bool = False) -> Step:
    N = given.size("units", 0, 1)
    _plain(given)
    name = given.activation("activation", "linear")
    shapes: dict[str, tuple[int | None, ...]] = {"kernel": (None, N)}
    if given.flag("use_bias", True):
        shapes["bias"] = (N,)
    found = given.owner.take(given.part, **shapes)
    linear = Linear(found["kernel"].shape[0], N, dtype=given.dtype, seed=UNSET)
    params = linear.parameters()
    _fill(params["weight"], found["kernel"])
    if "bias" in found:
        params["bias"][...] = found["bias"].values(given.dtype)
    return Dense(given.entry.name, in_evaluation(linear), name, activation(name), timed)


def _plain(given: Given) -> None:
    """Refuse what changes the values of a kernel."""
    for name in ("lora_rank", "quantization_config", "quantization_mode"):
        if given.config.get(name) is not None:
            raise RefusedValue(f"{name} is {_checks.show(given.config[name])}, expected none")


def _time_distributed(given: Given) -> Step:
    inner = entry_of(given.config["layer"])
    own = given._replace(entry=inner._replace(name=given.entry.name), part="layer")
    if inner.kind == "Dense":
        return _dense(own, timed=True)
    if inner.kind not in (*_NOTHING, "Activation", *_ACTIVATIONS):
        raise RefusedValue(f"it has a {_checks.show(inner.kind)} inside, expected a Dense or an "
                           "activation")
    step = _BUILDERS[inner.kind](own)
    step.shown = f"TimeDistributed({step.shown})"
    return step


def _flatten(given: Given) -> Step:
    if given.config.get("data_format") == "channels_first":
        raise RefusedValue("data_format is 'channels_first', expected 'channels_last'")
    return Reshape(given.entry.name, "Flatten", (-1,))


def _reshape(given: Given) -> Step:
    shape = given.config["target_shape"]
    if not isinstance(shape, list) or len(shape) > 8 or not all(
            type(n) is int and -1 <= n < 2**31 for n in shape) or shape.count(-1) > 1:
        raise RefusedValue(f"target_shape is {_checks.show(shape)}, expected sizes")
    return Reshape(given.entry.name, f"Reshape({', '.join(map(str, shape))})", tuple(shape))


def _pooling(given: Given) -> Step:
    if given.config.get("data_format") == "channels_first":
        raise RefusedValue("data_format is 'channels_first', expected 'channels_last'")
    kind = given.entry.kind
    return Pooling(given.entry.name, kind, kind == "GlobalMaxPooling1D", given.flag("keepdims"))


def _normalization(given: Given) -> Step:
    """Return batch normalisation with its running averages, or layer normalisation."""
    batch = given.entry.kind == "BatchNormalization"
    axis = given.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    built = given.config.get("build_config") or {}
    shape = built.get("input_shape") if isinstance(built, Mapping) else None
    if axis != -1 and not (isinstance(shape, list) and axis == len(shape) - 1):
        raise RefusedValue(f"axis is {_checks.show(axis)}, expected -1")
    if given.config.get("rms_scaling"):
        raise RefusedValue("rms_scaling is True, expected False")
    names = [name for name, on in (("gamma", given.flag("scale", True)),
                                   ("beta", given.flag("center", True)),
                                   ("moving_mean", batch), ("moving_variance", batch)) if on]
    first = given.owner.shape(given.part, 0)
    width = first[0] if names and first is not None and len(first) == 1 else None
    found = {name: variable.values(given.dtype) for name, variable in given.owner.take(
        given.part, **dict.fromkeys(names, (width,))).items()}
    eps = _checks.at_least("epsilon", given.config.get("epsilon", 1e-3))
    gamma, beta = found.get("gamma", 1), found.get("beta", 0)

    def of_layer(x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scale = gamma / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        y: np.ndarray = centred * scale + beta
        return y

    if not batch:
        return Elementwise(given.entry.name, "LayerNormalization", of_layer)
    scale = gamma / np.sqrt(found["moving_variance"] + eps)
    shift = beta - found["moving_mean"] * scale
    return Elementwise(given.entry.name, "BatchNormalization", lambda x: x * scale + shift)


# ---- recurrent layers ----------------------------------------------------------------------------


class _Cell(NamedTuple):
    """What a recurrent layer computes in one step."""

    kind: str
    H: int
    phi: str
    rho: str  # of the gates
    bias: bool
    reset_after: bool
    dtype: np.dtype

    @property
    def standard(self) -> bool:
        """Whether fastrnn has a layer with just these activations."""
        if self.kind == "SimpleRNN":
            return self.phi in ("tanh", "relu", "sigmoid")
        return (self.phi, self.rho) == ("tanh", "sigmoid")

    def layer(self, I: int, bidirectional: bool) -> Recurrent:
        """Return a layer whose parameters are zero."""
        options: dict[str, Any] = {
            "bias": self.bias, "batch_first": True, "bidirectional": bidirectional,
            "dtype": self.dtype, "seed": UNSET}
        if not self.standard:
            return Layer(self.definition(), I, self.H, **options)
        if self.kind == "LSTM":
            return LSTM(I, self.H, **options)
        if self.kind == "GRU":
            return GRU(I, self.H, reset_after=self.reset_after, **options)
        return RNN(I, self.H, nonlinearity=self.phi, **options)

    def definition(self) -> Definition:
        """Return the equations, in which gates have the order of Keras."""
        phi, rho = equation(self.phi).format, equation(self.rho).format
        if self.kind == "SimpleRNN":
            text = f"a = W x + U h + b\nh = {phi('a')}\n"
        elif self.kind == "LSTM":
            text = ("ai, af, ac, ao = W x + U h + b\n"
                    f"c = {rho('af')} * c + {rho('ai')} * {phi('ac')}\n"
                    f"h = {rho('ao')} * {phi('c')}\n")
        elif self.reset_after:
            text = ("az, ar = W x + U h + b_x + b_h\nu = U_n h + b_hn\nv = W_n x + b_xn\n"
                    f"r = {rho('ar')}\nz = {rho('az')}\na = v + r * u\n"
                    f"h = z * h + (1 - z) * {phi('a')}\n")
        else:
            text = ("az, ar = W x + U h + b_x\n"
                    f"r = {rho('ar')}\nz = {rho('az')}\na = W_n x + U_n (r * h) + b_xn\n"
                    f"h = z * h + (1 - z) * {phi('a')}\n")
        return cell(text, name=f"Keras {self.kind}", paper="Keras")

    def take(self, owner: Owner, part: str) -> dict[str, Variable]:
        """Return the variables, whose shapes were compared."""
        G, H = GATES[self.kind], self.H
        shapes: dict[str, tuple[int | None, ...]] = {
            "kernel": (None, G * H), "recurrent_kernel": (H, G * H)}
        if self.bias:
            two = self.kind == "GRU" and self.reset_after
            shapes["bias"] = (2, G * H) if two else (G * H,)
        return owner.take(part, **shapes)

    def fill(self, layer: Recurrent, suffix: str, found: dict[str, Variable]) -> None:
        """Copy the variables of one direction into a layer."""
        H, params = self.H, layer.parameters()
        every = np.arange(GATES[self.kind] * H)
        if self.kind == "GRU" and self.standard:  # z r h becomes r z n
            every = np.concatenate([every[H : 2 * H], every[:H], every[2 * H :]])
        matrices = {"kernel": "weight_ih", "recurrent_kernel": "weight_hh"}
        vectors = [("bias_ih", 0), ("bias_hh", 1)]
        parts = {"": every}
        if not self.standard:
            matrices = {"kernel": "W", "recurrent_kernel": "U"}
            vectors = [("b", 0)]
            if self.kind == "GRU":
                vectors = [("b_x", 0), ("b_h", 1)]
                parts = {"": every[: 2 * H], "n": every[2 * H :]}
        for of, name in matrices.items():
            for more, columns in parts.items():
                target = name + (f"_{more}" if more else "")
                _fill(params[f"{target}_l0{suffix}"], found[of], columns)
        if not self.bias:
            return
        bias = np.atleast_2d(found["bias"].values(self.dtype))
        for (name, row), (more, columns) in (
                (vector, part) for vector in vectors for part in parts.items()):
            if row < len(bias):
                params[f"{name}{more}_l0{suffix}"][...] = bias[row, columns]


def _fill(weight: np.ndarray, kernel: Variable, columns: Any = slice(None)) -> None:
    """Copy a kernel (I, rows) into a weight (rows, I), block by block."""
    for rows, block in kernel.blocks(weight.dtype):
        weight[:, rows] = block[:, columns].T


class _Walk(NamedTuple):
    """A recurrent layer's cell, and how it walks."""

    cell: _Cell
    sequences: bool
    state: bool
    backwards: bool
    stateful: bool
    zero: bool


def _walk(given: Given) -> _Walk:
    config, kind = dict(given.config), given.entry.kind
    if kind == "RNN":
        inner = entry_of(config["cell"])
        kind = inner.kind.removesuffix("Cell")
        config = {**inner.config, **config}
    if kind not in GATES:
        raise RefusedValue(f"it has a {_checks.show(kind)} inside, expected one of {list(GATES)}")
    of = given._replace(entry=given.entry._replace(config=config))
    if of.flag("time_major"):
        raise RefusedValue("time_major is True, expected False")
    H = of.size("units", 1, 0)
    after = of.flag("reset_after", len(of.owner.shape(of.part, 2) or (0, 0)) == 2)
    made = _Cell(kind, H, of.activation("activation", "tanh"),
                 of.activation("recurrent_activation", "sigmoid") if kind != "SimpleRNN" else
                 "linear", of.flag("use_bias", True), after, of.dtype)
    return _Walk(made, of.flag("return_sequences"), of.flag("return_state"),
                 of.flag("go_backwards"), of.flag("stateful"), of.flag("zero_output_for_mask"))


def _recurrent(given: Given) -> Step:
    own = given._replace(part="cell")
    walk = _walk(own)
    found = walk.cell.take(own.owner, own.part)
    layer = walk.cell.layer(found["kernel"].shape[0], bidirectional=False)
    walk.cell.fill(layer, "", found)
    direction = Direction(in_evaluation(layer), walk.backwards, walk.zero)
    return Recurrence(given.entry.name, (direction,), None, walk.sequences, walk.state,
                      walk.stateful)


def _bidirectional(given: Given) -> Step:
    merge = given.config.get("merge_mode", "concat")
    if merge is not None:
        _checks.one_of("merge_mode", merge, ("concat", "sum", "mul", "ave"))
    ahead = entry_of(given.config["layer"])
    if given.config.get("backward_layer") is None:
        back = ahead._replace(config={**ahead.config, "go_backwards": True})
    else:
        back = entry_of(given.config["backward_layer"])
    walks, found = [], []
    for entry, part in ((ahead, "forward_layer/cell"), (back, "backward_layer/cell")):
        own = given._replace(entry=entry, part=part)
        walks.append(_walk(own))
        found.append(walks[-1].cell.take(own.owner, part))
    one, two = walks
    if one.backwards == two.backwards or (one.sequences, one.state, one.stateful) != (
            two.sequences, two.state, two.stateful):
        raise RefusedValue("its layers walk in the same direction, or differ in what they return")
    I, other = (of["kernel"].shape[0] for of in found)
    if other != I:
        raise RefusedValue(f"{found[1]['kernel'].name} has shape {found[1]['kernel'].shape}, "
                           f"expected {I} rows as in the other direction")
    if one.cell == two.cell and two.backwards:
        layer = one.cell.layer(I, bidirectional=True)
        layers = [layer, layer]
        for suffix, of in zip(("", "_reverse"), found, strict=True):
            one.cell.fill(layer, suffix, of)
    else:
        layers = [walk.cell.layer(I, bidirectional=False) for walk in walks]
        for walk, layer, of in zip(walks, layers, found, strict=True):
            walk.cell.fill(layer, "", of)
    directions = tuple(Direction(in_evaluation(layer), walk.backwards, one.sequences)
                       for layer, walk in zip(layers, walks, strict=True))
    return Recurrence(given.entry.name, directions, merge, one.sequences, one.state, one.stateful)


_BUILDERS: dict[str, Callable[[Given], Step]] = {
    **dict.fromkeys(GATES, _recurrent), "RNN": _recurrent, "Bidirectional": _bidirectional,
    "Embedding": _embedding, "Masking": _masking, "Dense": _dense,
    "TimeDistributed": _time_distributed, "Activation": _activation,
    **dict.fromkeys(_ACTIVATIONS, _activation_layer), **dict.fromkeys(_NOTHING, _nothing),
    "Flatten": _flatten, "Reshape": _reshape,
    "GlobalAveragePooling1D": _pooling, "GlobalMaxPooling1D": _pooling,
    "BatchNormalization": _normalization, "LayerNormalization": _normalization,
}
SUPPORTED = ("InputLayer", *_BUILDERS)
