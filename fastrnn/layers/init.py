"""Initial parameters, set in place: torch's, and what the literature found for recurrent networks.

Each function takes a layer, which may be one of a model's `layers`, or a single cell such as an
LSTMCell. It treats every stacked layer and direction alike, gate by gate, and returns what it was
given. The same seed gives the same numbers (drawn in float64, then rounded). A function changes
what its summary names and nothing else, so that they combine::

    init.chrono(init.orthogonal(init.glorot(layer, seed=0), seed=1), T_max=784, seed=2)

Letters: H hidden, G gates, N inputs of a weight. A gate's bias is the sum of its two: what is set
goes to bias_ih, and bias_hh becomes 0.

Of a Layer, a cell from equations, the "gates" are the row blocks of its weights, and the recurrent
weights are those between old states and new ones. Declared vectors and fixed weights stay as they
are. Nobody knows which of its biases keeps a state: forget_bias and chrono are for LSTM and GRU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.cells.table import AnyCell
from fastrnn.layers.packs import PackedPart
from fastrnn.layers.parameters import writeable

__all__ = ["chrono", "forget_bias", "glorot", "identity", "normal", "orthogonal", "sparse",
           "torch_uniform"]

Target = TypeVar("Target")


def _recurrent(layer: Any) -> tuple[PackedPart, AnyCell]:
    """Return the layer and its cell, of a form of LSTM or GRU the table's, if it may be set."""
    if not isinstance(layer, PackedPart):
        raise RefusedType(f"layer is {_checks.kind(layer)}, expected an RNN, LSTM or GRU, alone or "
                          "of a model's layers, or a single cell")
    writeable(layer.training)
    return layer, layer.cell.form_of or layer.cell


def _rng(seed: Any) -> np.random.Generator:
    return np.random.default_rng(*_checks.seeds(seed, 1))


def _of_equations(layer: PackedPart) -> bool:
    """Return whether a layer is of a cell from equations."""
    return layer.cell.form_of is None


def _named(layer: PackedPart, kind: str) -> Iterator[np.ndarray]:
    """Yield each parameter of a kind by gate: weights (G, H, N), biases (G, H).

    A projection is one block (1, P, H). Of a Layer they are by row block, weights of blocks by
    diagonal block.
    """
    if _of_equations(layer):
        from fastrnn.layers.layer import arrays_of_kind

        yield from list(arrays_of_kind(layer, kind))  # all of them, or none is set
        return
    for name, param in layer.parameters().items():
        if name.startswith(kind):
            rows = len(param) if name.startswith("weight_hr") else layer.hidden_size
            yield param.reshape(-1, rows, *param.shape[1:])


def _recurrent_weights(layer: PackedPart) -> list[np.ndarray]:
    """Return the recurrent weights by gate, (G, H, H), if the layer has some."""
    found = list(_named(layer, "weight_hh"))
    if not found:
        raise RefusedValue(f"layer is {layer!r}, expected one with recurrent weights")
    return found


def _biases(layer: PackedPart) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return bias_ih and bias_hh, (G, H), of each stacked layer and direction."""
    if not layer.bias:
        raise RefusedValue("layer has bias False, expected one with biases")
    return list(zip(_named(layer, "bias_ih"), _named(layer, "bias_hh"), strict=True))


def _set_it(layer: PackedPart) -> str:
    """Return what to do where nobody knows which bias of a cell from equations is meant."""
    return "; set the bias of its equations itself: layer.b_l0[...] = 1" * _of_equations(layer)


def _assign(
    layer: PackedPart, drawn: Iterable[tuple[np.ndarray, Any]], why: str = "",
    what: str = "a weight",
) -> None:
    """Copy numbers into parameters: into all, or into none if one is too large for their dtype.

    `why` names the argument that makes it so large.
    """
    held = []
    for place, numbers in drawn:
        numbers = np.broadcast_to(np.asarray(numbers, np.float64), place.shape)
        fitting = _checks.held(f"{why}: {what}", numbers, place.dtype)
        if not np.isfinite(fitting).all():
            raise RefusedValue(f"{why}: {what} would be infinite")
        held.append((place, fitting))
    layer.changed()
    for place, fitting in held:
        place[...] = fitting


def _no_biases(layer: PackedPart) -> Iterator[tuple[np.ndarray, int]]:
    """Yield each bias and what it becomes: 0."""
    for bias in _named(layer, "bias"):
        yield bias, 0


@public
def torch_uniform(layer: Target, seed: Any = None) -> Target:
    """Set all parameters to U(-1/sqrt(H), 1/sqrt(H)), as torch.nn and a new layer have them.

    A Layer's become those that its definition declares.

    Parameters
    ----------
    layer : RNN, LSTM or GRU, alone or of a model's layers, or a single cell
    seed : int or None
        A layer's own seed gives its own first parameters.

    Returns
    -------
    layer

    Raises
    ------
    TypeError
        If `layer` is another thing.
    ValueError
        If it is in evaluation mode, or the seed is no whole number.
    """
    (recurrent, _), rng = _recurrent(layer), _rng(seed)
    recurrent.changed()
    PackedPart._draw(recurrent, rng)
    return layer


@public
def normal(layer: Target, std: float, seed: Any = None) -> Target:
    """Set all weights to N(0, std^2), and the biases to 0.

    Parameters
    ----------
    layer, seed : as of torch_uniform
    std : float
        Above 0.

    Returns
    -------
    layer

    Raises
    ------
    TypeError, ValueError
        As torch_uniform; also if `std` is not above 0.
    """
    (recurrent, _), rng = _recurrent(layer), _rng(seed)
    std = _checks.above("std", std)
    drawn = [(weight, rng.normal(0, std, weight.shape)) for weight in _named(recurrent, "weight")]
    _assign(recurrent, [*drawn, *_no_biases(recurrent)], f"std is {std:g}")
    return layer


@public
def glorot(layer: Target, seed: Any = None) -> Target:
    """Set all weights to U(-a, a), a = sqrt(6 / (N + H)) for a gate's (H, N), and the biases to 0.

    Parameters
    ----------
    layer, seed : as of torch_uniform

    Returns
    -------
    layer

    Raises
    ------
    TypeError, ValueError
        As torch_uniform.

    References
    ----------
    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010, equation 16.
    """
    (recurrent, _), rng = _recurrent(layer), _rng(seed)
    drawn = []
    for weight in _named(recurrent, "weight"):
        _, H, N = weight.shape
        bound = math.sqrt(6 / (N + H))
        drawn.append((weight, rng.uniform(-bound, bound, weight.shape)))
    _assign(recurrent, [*drawn, *_no_biases(recurrent)])
    return layer


@public
def orthogonal(layer: Target, gain: float = 1.0, seed: Any = None) -> Target:
    """Set each gate's recurrent weights (H, H) to a random rotation or reflection, times gain.

    Those that are not square, of a Layer or behind a projection, get orthonormal rows or columns;
    weight_hr stays as it is.

    Parameters
    ----------
    layer, seed : as of torch_uniform
    gain : float
        All singular values; above 0.

    Returns
    -------
    layer

    Raises
    ------
    TypeError, ValueError
        As torch_uniform; also if `gain` is not above 0.

    References
    ----------
    A. M. Saxe, J. L. McClelland and S. Ganguli, "Exact solutions to the nonlinear dynamics of
    learning in deep linear neural networks", ICLR 2014; F. Mezzadri, "How to generate random
    matrices from the classical compact groups", Notices of the AMS 54, 2007: the signs.
    """
    (recurrent, _), rng = _recurrent(layer), _rng(seed)
    gain = _checks.above("gain", gain)
    drawn = []
    for weight in _recurrent_weights(recurrent):
        _, H, N = weight.shape
        tall = weight if N <= H else weight.swapaxes(1, 2)
        q, r = np.linalg.qr(rng.standard_normal(tall.shape))
        # q alone depends on how the QR picks signs; with r's diagonal above 0 it is uniform
        signs = np.sign(np.diagonal(r, axis1=-2, axis2=-1))  # (G, H)
        drawn.append((tall, gain * q * signs[:, None, :]))
    _assign(recurrent, drawn, f"gain is {gain:g}")
    return layer


@public
def identity(layer: Target, scale: float = 1.0, seed: Any = None) -> Target:
    """Set a relu network's recurrent weights to the identity, times scale: an IRNN.

    Input weights become N(0, 0.001^2), the biases 0.

    Parameters
    ----------
    layer : RNN with nonlinearity "relu"
    scale : float
        Above 0; below 1 the network forgets.
    seed : as of torch_uniform

    Returns
    -------
    layer

    Raises
    ------
    TypeError, ValueError
        As torch_uniform; also if the layer is another one, or `scale` is not above 0.

    References
    ----------
    Q. V. Le, N. Jaitly and G. E. Hinton, "A simple way to initialize recurrent networks of
    rectified linear units", arXiv:1504.00941, 2015.
    """
    (recurrent, cell), rng = _recurrent(layer), _rng(seed)
    scale = _checks.above("scale", scale)
    if cell.name != "rnn_relu":
        declared = "; equations declare it: weight U = identity" * _of_equations(recurrent)
        raise RefusedValue(f"layer is {recurrent!r}, expected an RNN with nonlinearity "
                           f"'relu'{declared}")
    eye = scale * np.eye(recurrent.hidden_size)
    drawn = [(weight, rng.normal(0, 0.001, weight.shape))
             for weight in _named(recurrent, "weight_ih")]
    drawn += [(weight, eye) for weight in _named(recurrent, "weight_hh")]
    _assign(recurrent, [*drawn, *_no_biases(recurrent)], f"scale is {scale:g}")
    return layer


@public
def sparse(
    layer: Target, spectral_radius: float, nonzeros: int = 15, seed: Any = None
) -> Target:
    """Set each gate's recurrent weights (H, H) to a sparse matrix of a given spectral radius.

    Parameters
    ----------
    layer, seed : as of torch_uniform
    spectral_radius : float
        Greatest absolute value of an eigenvalue; above 0.
    nonzeros : int
        Connections into each unit, at most H; normal before they are scaled.

    Returns
    -------
    layer

    Raises
    ------
    TypeError, ValueError
        As torch_uniform; also if `spectral_radius` or `nonzeros` is out of its range, or the layer
        has a projection.

    References
    ----------
    I. Sutskever, J. Martens, G. Dahl and G. Hinton, "On the importance of initialization and
    momentum in deep learning", ICML 2013, section 3; H. Jaeger and H. Haas, "Harnessing
    nonlinearity", Science 304, 2004.
    """
    (recurrent, _), rng = _recurrent(layer), _rng(seed)
    if not _of_equations(recurrent) and recurrent.output_size != recurrent.hidden_size:
        raise RefusedValue(f"layer is {recurrent!r}, expected one without a projection: only "
                           "square matrices have eigenvalues")
    spectral_radius = _checks.above("spectral_radius", spectral_radius)
    count = _checks.positive("nonzeros", nonzeros)
    weights = _recurrent_weights(recurrent)
    for weight in weights:
        if weight.shape[1] != weight.shape[2]:
            raise RefusedValue(f"layer is {recurrent!r} with recurrent weights "
                               f"{weight.shape[1:]}, expected square ones: others have no spectral "
                               "radius")
    drawn = []
    for weight in weights:
        for gate in weight:
            matrix, own = np.zeros(gate.shape), min(count, len(gate))
            for row in matrix:
                row[rng.choice(len(row), own, replace=False)] = rng.standard_normal(own)
            # not 0: each unit has a connection, so there are cycles
            matrix *= spectral_radius / abs(np.linalg.eigvals(matrix)).max()
            drawn.append((gate, matrix))
    _assign(recurrent, drawn, f"spectral_radius is {spectral_radius:g}")
    return layer


@public
def forget_bias(layer: Target, value: float = 1.0) -> Target:
    """Set the biases of an LSTM's forget gates.

    Parameters
    ----------
    layer : LSTM
    value : float
        1 or 2 is usual: gates begin open.

    Returns
    -------
    layer

    Raises
    ------
    TypeError, ValueError
        As torch_uniform; also if the layer is no LSTM or has no biases, or `value` is not finite.

    References
    ----------
    F. A. Gers, J. Schmidhuber and F. Cummins, "Learning to forget", Neural Computation 12, 2000;
    R. Jozefowicz, W. Zaremba and I. Sutskever, "An empirical exploration of recurrent network
    architectures", ICML 2015.
    """
    recurrent, cell = _recurrent(layer)
    value = _checks.above("value", value, -math.inf)
    if cell.name != "lstm" or cell.keep_gate is None:
        raise RefusedValue(f"layer is {recurrent!r}, expected an LSTM{_set_it(recurrent)}")
    keep = cell.keep_gate
    new = [(bias[keep], number) for pair in _biases(recurrent)
           for bias, number in zip(pair, (value, 0), strict=True)]
    _assign(recurrent, new, f"value is {value:g}", "a bias")
    return layer


@public
def chrono(layer: Target, T_max: float, seed: Any = None) -> Target:
    """Set the biases of the gates that keep the state so that units remember up to T_max steps.

    A unit that keeps the share s of its state at each step remembers for about 1 / (1 - s) = T
    steps. With s = sigmoid(b), b = log(T - 1), and T is drawn from U(2, T_max). An LSTM has b in
    the forget gate, and -b in the input gate; a GRU, h(t) = (1 - z) n + z h(t-1), has b in z, whose
    1 - z is the input gate's share already.

    Parameters
    ----------
    layer : LSTM or GRU
    T_max : float
        Longest expected dependency in steps; at least 2.
    seed : as of torch_uniform

    Returns
    -------
    layer

    Raises
    ------
    TypeError, ValueError
        As torch_uniform; also if the layer is an RNN or has no biases, or `T_max` is below 2.

    References
    ----------
    C. Tallec and Y. Ollivier, "Can recurrent neural networks warp time?", ICLR 2018.
    """
    (recurrent, cell), rng = _recurrent(layer), _rng(seed)
    _checks.at_least("T_max", T_max, 2)
    if cell.keep_gate is None:
        raise RefusedValue(f"layer is {recurrent!r}, expected an LSTM or a "
                           f"GRU{_set_it(recurrent)}")
    new: list[tuple[np.ndarray, Any]] = []
    for bias_ih, bias_hh in _biases(recurrent):
        keep = np.log(rng.uniform(1, T_max - 1, recurrent.hidden_size))
        new += [(bias_ih[cell.keep_gate], keep), (bias_hh[cell.keep_gate], 0)]
        if cell.input_gate is not None:
            new += [(bias_ih[cell.input_gate], -keep), (bias_hh[cell.input_gate], 0)]
    _assign(recurrent, new)
    return layer
