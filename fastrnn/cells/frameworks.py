"""Cells that other frameworks and ONNX have, as equations.

The names of gates are torch's: i input, f forget, g candidate, o output; r reset, z keep, n
candidate; a before a name is a sum that has no activation yet. Letters: I input, H hidden, P the
width of a projected h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastrnn import _checks
from fastrnn._checks import RefusedValue, public
from fastrnn.cells.definition import Definition, cell
from fastrnn.cells.tree import FUNCTIONS

__all__ = ["ONNX_ACTIVATIONS", "ClippedLSTM", "CoupledLSTM", "PeepholeLSTM", "ProjectedLSTM",
           "ProjectedPeepholeLSTM", "ResetBeforeGRU", "clipped_lstm", "elman", "onnx_gru",
           "onnx_lstm", "onnx_rnn"]

# ---- LSTM ----------------------------------------------------------------------------------------

PeepholeLSTM: Definition = cell("""
# the gates see the cell: i and f its old value, o its new one
learned p_i = uniform(-0.1, 0.1)
learned p_f = uniform(-0.1, 0.1)
learned p_o = uniform(-0.1, 0.1)
ai, af, ag, ao = W x + U h + b
i = sigmoid(ai + p_i * c)
f = sigmoid(af + p_f * c)
c = f * c + i * tanh(ag)
h = sigmoid(ao + p_o * c) * tanh(c)
""", name="PeepholeLSTM", paper="F. A. Gers and J. Schmidhuber, \"Recurrent nets that time and "
                                "count\", IJCNN 2000")

CoupledLSTM: Definition = cell("""
# what comes in is what goes out: f = 1 - i
ai, ag, ao = W x + U h + b
i = sigmoid(ai)
c = (1 - i) * c + i * tanh(ag)
h = sigmoid(ao) * tanh(c)
""", name="CoupledLSTM", paper="K. Greff, R. K. Srivastava, J. Koutnik, B. R. Steunebrink and "
                               "J. Schmidhuber, \"LSTM: a search space odyssey\", IEEE TNNLS 28, "
                               "2017: CIFG")

ProjectedLSTM: Definition = cell("""
# torch's proj_size: what recurs, and what is given, is a projection of P units
size P = H // 2
ai, af, ag, ao = W x + U h + b
c = sigmoid(af) * c + sigmoid(ai) * tanh(ag)
h[P] = R (sigmoid(ao) * tanh(c))
""", name="ProjectedLSTM", paper="H. Sak, A. Senior and F. Beaufays, \"Long short-term memory "
                                 "recurrent neural network architectures for large scale acoustic "
                                 "modeling\", Interspeech 2014; as PyTorch has it: no peepholes")

ProjectedPeepholeLSTM: Definition = cell("""
size P = H // 2
learned p_i = uniform(-0.1, 0.1)
learned p_f = uniform(-0.1, 0.1)
learned p_o = uniform(-0.1, 0.1)
ai, af, ag, ao = W x + U h + b
i = sigmoid(ai + p_i * c)
f = sigmoid(af + p_f * c)
c = f * c + i * tanh(ag)
h[P] = R (sigmoid(ao + p_o * c) * tanh(c))
""", name="ProjectedPeepholeLSTM", paper="H. Sak, A. Senior and F. Beaufays, \"Long short-term "
                                         "memory recurrent neural network architectures for large "
                                         "scale acoustic modeling\", Interspeech 2014")


@public
def clipped_lstm(cell_clip: float | None = 10.0, gate_clip: float | None = None) -> Definition:
    """Return an LSTM whose values are clipped; where they are, no gradient passes.

    Parameters
    ----------
    cell_clip : float or None
        Bounds the new c, as TensorFlow's cell_clip: |c| <= cell_clip. A layer can be given another
        value. None: not bounded.
    gate_clip : float or None
        Bounds the arguments of the activations of the four gates, as ONNX's clip (which bounds the
        argument of the last tanh too; see `onnx_lstm`).

    Returns
    -------
    Definition

    Raises
    ------
    ValueError
        If a bound is not above 0, or neither is given.
    """
    constants, a = "", ["ai", "af", "ag", "ao"]
    if cell_clip is None and gate_clip is None:
        raise RefusedValue("cell_clip and gate_clip are None, expected a number for one of them")
    if gate_clip is not None:
        constants += f"constant gate_clip = {_checks.above('gate_clip', gate_clip)!r}\n"
        a = [f"clip({name}, -gate_clip, gate_clip)" for name in a]
    c = f"sigmoid({a[1]}) * c + sigmoid({a[0]}) * tanh({a[2]})"
    if cell_clip is not None:
        constants += f"constant cell_clip = {_checks.above('cell_clip', cell_clip)!r}\n"
        c = f"clip({c}, -cell_clip, cell_clip)"
    return cell(constants + f"ai, af, ag, ao = W x + U h + b\nc = {c}\n"
                            f"h = sigmoid({a[3]}) * tanh(c)\n", name="ClippedLSTM",
                paper="TensorFlow's LSTMCell(cell_clip=)")


ClippedLSTM: Definition = clipped_lstm()

# ---- GRU and RNN ---------------------------------------------------------------------------------

ResetBeforeGRU: Definition = cell("""
# the reset gate multiplies h before its product with U_n; z keeps the old state
ar, az = W x + U h + b
n = tanh(W_n x + U_n (sigmoid(ar) * h) + b_n)
h = (1 - sigmoid(az)) * n + sigmoid(az) * h
""", name="ResetBeforeGRU", paper="K. Cho et al., \"Learning phrase representations using RNN "
                                  "encoder-decoder for statistical machine translation\", EMNLP "
                                  "2014; Keras: reset_after=False, ONNX: linear_before_reset=0")


@public
def elman(activation: str = "tanh", *numbers: float) -> Definition:
    """Return Elman's network h = phi(W x + U h + b) of any activation of the language.

    Parameters
    ----------
    activation : str
        A function of one value: "silu", "leaky_relu", ...
    *numbers : float
        Its further arguments, such as a slope.

    Returns
    -------
    Definition

    Raises
    ------
    ValueError
        If the language has no such function, or it takes more or fewer numbers.
    """
    of = FUNCTIONS[_checks.one_of("activation", activation, _OF_ONE)]
    least, most = of.least - 1, of.most - 1
    if not least <= len(numbers) <= most:
        raise RefusedValue(f"numbers are {len(numbers)}, expected {least}"
                           + f" to {most}" * (most > least) + f" with {activation!r}")
    more = "".join(f", {_number('a number', value)}" for value in numbers)
    return cell(f"h = {activation}(W x + U h + b{more})\n", name=f"RNN[{activation}]",
                paper="J. L. Elman, \"Finding structure in time\", Cognitive Science 14, 1990")


_OF_ONE = tuple(name for name, function in FUNCTIONS.items() if function.values == 1)

# ---- ONNX ----------------------------------------------------------------------------------------

# ONNX's activation: the function, and its defaults alpha and beta where it has them
ONNX_ACTIVATIONS: dict[str, tuple[str, tuple[float, ...]]] = {
    "Affine": ("affine", (1.0, 0.0)),
    "Relu": ("relu", ()),
    "LeakyRelu": ("leaky_relu", (0.01,)),
    "ThresholdedRelu": ("thresholded_relu", (1.0,)),
    "Tanh": ("tanh", ()),
    "ScaledTanh": ("scaled_tanh", (1.0, 1.0)),
    "Sigmoid": ("sigmoid", ()),
    "HardSigmoid": ("hard_sigmoid", (0.2, 0.5)),
    "Elu": ("elu", (1.0,)),
    "Softsign": ("softsign", ()),
    "Softplus": ("softplus", ()),
}


class _Activations:
    """Writes ONNX's activations as expressions."""

    def __init__(self, names: Any, count: int, alphas: Any, betas: Any, clip: float | None) -> None:
        if not isinstance(names, (tuple, list)) or len(names) != count:
            raise RefusedValue(f"activations is {_checks.show(names)}, expected {count} of "
                               f"{list(ONNX_ACTIVATIONS)}")
        self.names = [_checks.one_of("an activation", name, ONNX_ACTIVATIONS) for name in names]
        self.given = [_each("alphas", alphas, count), _each("betas", betas, count)]
        for what, values, least in zip(("alpha", "beta"), self.given, (1, 2), strict=True):
            for name, value in zip(self.names, values, strict=True):
                if value is not None and len(ONNX_ACTIVATIONS[name][1]) < least:
                    raise RefusedValue(f"{name} is given the {what} {value!r}, expected None: it "
                                       "has none")
        self.clip = None if clip is None else _checks.above("clip", clip)

    def __call__(self, which: int, argument: str, clips: bool = True) -> str:
        """Return the activation of this number, of an argument, which may be bounded."""
        function, defaults = ONNX_ACTIVATIONS[self.names[which]]
        numbers = [default if given[which] is None else given[which]
                   for default, given in zip(defaults, self.given, strict=False)]
        if self.clip is not None and clips:
            argument = f"clip({argument}, {-self.clip!r}, {self.clip!r})"
        return f"{function}({', '.join([argument, *map(repr, numbers)])})"


def _each(name: str, values: Any, count: int) -> list[float | None]:
    if values is None:
        return [None] * count
    if not isinstance(values, (tuple, list)) or len(values) != count:
        raise RefusedValue(f"{name} is {_checks.show(values)}, expected {count} numbers, or None "
                           "for a default")
    return [None if value is None else _number(f"one of {name}", value) for value in values]


def _number(name: str, value: Any) -> float:
    return _checks.above(name, value, -math.inf)


@public
def onnx_lstm(
    activations: Sequence[str] = ("Sigmoid", "Tanh", "Tanh"), *,
    alphas: Sequence[float | None] | None = None, betas: Sequence[float | None] | None = None,
    clip: float | None = None, clip_c: bool = True, input_forget: bool = False,
    peepholes: bool = False,
) -> Definition:
    """Return ONNX's LSTM: its weights W, R and Wb, Rb have ONNX's order i o f c.

    Parameters
    ----------
    activations : sequence of 3 str
        Of the gates, of the candidate, and of c on its way to h.
    alphas, betas : sequence of 3 numbers or None, optional
        One for each activation, None where it has the default; so None also for an activation
        without one. (In an ONNX file the list has no entries for the latter.)
    clip : float or None
        Bounds the argument of every activation.
    clip_c : bool
        Whether it bounds that of the last one too, as the standard has it. ONNX Runtime 1.32 leaves
        c as it is.
    input_forget : bool
        Whether f = 1 - i. Then W, R and the biases have no rows for f: they are in the order i o c.
    peepholes : bool
        Whether there are ONNX's P, here p_i, p_o and p_f.

    Returns
    -------
    Definition

    Raises
    ------
    TypeError, ValueError
        If an activation is none of ONNX's, or a number does not fit.

    Notes
    -----
    Affine and ScaledTanh have no defaults in the standard; here alpha is 1 and beta 0 or 1. The
    default of ThresholdedRelu is 1 as in the standard; ONNX Runtime 1.32 takes 0 for all of these.
    """
    phi = _Activations(activations, 3, alphas, betas, clip)
    coupled = _checks.flag("input_forget", input_forget)
    gates = "i o c" if coupled else "i o f c"
    seen = dict.fromkeys(gates.split(), "")
    text = ""
    if _checks.flag("peepholes", peepholes):
        for gate in gates.split()[:-1]:
            text += f"learned p_{gate} = uniform(-0.1, 0.1)\n"
            seen[gate] = f" + p_{gate} * C"
    text += f"{', '.join('a' + gate for gate in seen)} = W x + R h + b_W + b_R\n"
    text += f"i = {phi(0, 'ai' + seen['i'])}\n"
    text += "f = 1 - i\n" if coupled else f"f = {phi(0, 'af' + seen['f'])}\n"
    text += f"C = f * C + i * {phi(1, 'ac')}\n"
    text += f"h = {phi(0, 'ao' + seen['o'])} * {phi(2, 'C', _checks.flag('clip_c', clip_c))}\n"
    return cell(text, name="ONNX LSTM", paper="ONNX operator LSTM")


@public
def onnx_gru(
    activations: Sequence[str] = ("Sigmoid", "Tanh"), linear_before_reset: bool = False, *,
    alphas: Sequence[float | None] | None = None, betas: Sequence[float | None] | None = None,
    clip: float | None = None,
) -> Definition:
    """Return ONNX's GRU: z and r have the weights W, R and biases b_W, b_R, h has W_h, R_h, ...

    Parameters
    ----------
    activations : sequence of 2 str
        Of the gates z and r, and of the candidate.
    linear_before_reset : bool
        Whether r multiplies the product R_h h + b_Rh, instead of h.
    alphas, betas, clip
        As of onnx_lstm.

    Returns
    -------
    Definition

    Raises
    ------
    TypeError, ValueError
        As onnx_lstm.
    """
    phi = _Activations(activations, 2, alphas, betas, clip)
    text = "az, ar = W x + R h + b_W + b_R\n" + f"z = {phi(0, 'az')}\nr = {phi(0, 'ar')}\n"
    if _checks.flag("linear_before_reset", linear_before_reset):
        text += "u = R_h h + b_Rh\nv = W_h x + b_Wh\na = v + r * u\n"
    else:
        text += "a = W_h x + R_h (r * h) + b_Wh + b_Rh\n"
    text += f"h = (1 - z) * {phi(1, 'a')} + z * h\n"
    return cell(text, name="ONNX GRU", paper="ONNX operator GRU")


@public
def onnx_rnn(
    activations: Sequence[str] = ("Tanh",), *, alphas: Sequence[float | None] | None = None,
    betas: Sequence[float | None] | None = None, clip: float | None = None,
) -> Definition:
    """Return ONNX's RNN, h = phi(W x + R h + b_W + b_R).

    Parameters
    ----------
    activations : sequence of 1 str
    alphas, betas, clip
        As of onnx_lstm.

    Returns
    -------
    Definition

    Raises
    ------
    TypeError, ValueError
        As onnx_lstm.
    """
    phi = _Activations(activations, 1, alphas, betas, clip)
    return cell(f"a = W x + R h + b_W + b_R\nh = {phi(0, 'a')}\n", name="ONNX RNN",
                paper="ONNX operator RNN")
