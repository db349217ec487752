"""Keras's activations: as functions of NumPy arrays, and as equations for a recurrent cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn.formats.activations import elu, erf, softmax
from fastrnn.models.generate import sigmoid

__all__ = ["activation", "activation_name", "equation", "layer_activation"]

Function = Callable[[np.ndarray], np.ndarray]

_ALPHA, _SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017, SELU


def _softplus(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return y


def _leaky_relu(slope: float, x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, slope * x)


def _hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x / 6 + 0.5, 0, 1)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    y: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return y


_FUNCTIONS: dict[str, Function] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": partial(_leaky_relu, 0.2),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "hard_sigmoid": _hard_sigmoid,
    "softmax": softmax,
    "log_softmax": _log_softmax,
    "softplus": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "elu": elu,
    "celu": elu,
    "selu": lambda x: _SCALE * elu(x, _ALPHA),
    "gelu": lambda x: x * (0.5 + 0.5 * erf(x * math.sqrt(0.5))),
    "silu": lambda x: x * sigmoid(x),
    "hard_silu": lambda x: x * _hard_sigmoid(x),
    "exponential": np.exp,
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "tanh_shrink": lambda x: x - np.tanh(x),
    "log_sigmoid": lambda x: -_softplus(-x),
    "squareplus": lambda x: (x + np.sqrt(x * x + 4)) / 2,
    "sparse_sigmoid": lambda x: np.clip(0.5 * x + 0.5, 0, 1),
}

# The same of one unit in the language of equations. A softmax is of all units, and the exact gelu
# is no function of the language.
_EQUATIONS = {
    "linear": "({0})",
    "relu": "relu({0})",
    "relu6": "clip({0}, 0, 6)",
    "leaky_relu": "leaky_relu({0}, 0.2)",
    "tanh": "tanh({0})",
    "sigmoid": "sigmoid({0})",
    "hard_sigmoid": "clip({0} / 6 + 0.5, 0, 1)",
    "softplus": "softplus({0})",
    "softsign": "softsign({0})",
    "elu": "elu({0}, 1)",
    "celu": "elu({0}, 1)",
    "selu": f"({_SCALE!r} * elu({{0}}, {_ALPHA!r}))",
    "silu": "silu({0})",
    "hard_silu": "({0} * clip({0} / 6 + 0.5, 0, 1))",
    "exponential": "exp({0})",
    "mish": "({0} * tanh(softplus({0})))",
    "hard_tanh": "clip({0}, -1, 1)",
    "tanh_shrink": "({0} - tanh({0}))",
    "log_sigmoid": "(0 - softplus(0 - {0}))",
    "squareplus": "(({0} + sqrt({0} * {0} + 4)) / 2)",
    "sparse_sigmoid": "clip(0.5 * {0} + 0.5, 0, 1)",
    "keras2_hard_sigmoid": "clip(0.2 * {0} + 0.5, 0, 1)",
}
_FUNCTIONS["keras2_hard_sigmoid"] = lambda x: np.clip(0.2 * x + 0.5, 0, 1)

_ALIASES = {"swish": "silu", "hard_swish": "hard_silu"}


def activation_name(value: Any, keras_2: bool = False) -> str:
    """Return the name of a configuration's activation, or refuse one that is not of Keras."""
    if value is None:
        return "linear"
    if isinstance(value, dict):  # of a function, as older versions write it
        if value.get("class_name") != "function":
            raise RefusedValue(f"its activation is {_checks.show(value.get('class_name'))}, "
                               "expected a name")
        value = value.get("config")
    name = _ALIASES.get(value, value) if isinstance(value, str) else value
    if keras_2 and name == "hard_sigmoid":  # Keras 3 has another slope
        return "keras2_hard_sigmoid"
    return _checks.one_of("its activation", name, [
        of for of in _FUNCTIONS if of != "keras2_hard_sigmoid"])


@dataclass(frozen=True)
class _Activation:
    """One of `_FUNCTIONS`; it can be pickled."""

    name: str

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return _FUNCTIONS[self.name](x)


def activation(name: str) -> Function:
    """Return an activation by the name that `activation_name` returned."""
    return _Activation(name)


def equation(name: str) -> str:
    """Return an activation as a text with {0} for its argument, for a cell from equations."""
    if name not in _EQUATIONS:
        raise RefusedValue(f"its activation {name!r} is none that a recurrent layer can have here, "
                           f"expected one of {list(_EQUATIONS)}")
    return _EQUATIONS[name]


def _softmax_along(shown: str, axes: Any, x: np.ndarray) -> np.ndarray:
    try:
        return softmax(x, axes)
    except ValueError as error:  # x has no such axis
        raise RefusedValue(f"{shown}: {error}") from error


def _relu(bound: float, slope: float, least: float, x: np.ndarray) -> np.ndarray:
    return np.where(x >= least, np.minimum(x, bound), slope * (x - least))


def layer_activation(kind: str, config: dict[str, Any]) -> tuple[Function, str]:
    """Return the function of an activation layer, and how it is shown."""

    def number(name: str, default: float) -> float:
        value = config.get(name, default)
        if isinstance(value, dict):  # an array of NumPy in Keras's JSON
            value = value.get("config", {}).get("value")
        return _checks.at_least(name, value, -math.inf)

    if kind == "Softmax":
        axis = config.get("axis", -1)
        axes = tuple(axis) if isinstance(axis, list) else axis
        if not all(type(a) is int for a in (axes if isinstance(axes, tuple) else (axes,))):
            raise RefusedValue(f"axis is {_checks.show(axis)}, expected whole numbers")
        shown = f"Softmax(axis={axis})"
        return partial(_softmax_along, shown, axes), shown
    if kind == "LeakyReLU":
        slope = number("negative_slope", number("alpha", 0.3))
        return partial(_leaky_relu, slope), f"LeakyReLU({slope:g})"
    if kind == "ELU":
        alpha = number("alpha", 1.0)
        return partial(elu, alpha=alpha), f"ELU({alpha:g})"
    bound = math.inf if config.get("max_value") is None else number("max_value", math.inf)
    slope, least = number("negative_slope", 0.0), number("threshold", 0.0)
    return partial(_relu, bound, slope, least), "ReLU()"
