"""What a weight of a definition is as a parameter, and as the matrix that a step multiplies by.

Letters: G row blocks of a weight (the targets of its equation), n diagonal blocks.

A plain weight is its own matrix, (G * rows, columns). The others:

- antisymmetric(gamma): each of the G square blocks U gives U - U^T - gamma 1.
- dropconnect(rate): the parameter times a mask of its shape, or the parameter itself without one.
- blocks(n): the parameter is (G * rows, columns // n), and the matrix is zero but for n diagonal
  blocks in each of the G row blocks. In row block g the rows d * rows/n to (d+1) * rows/n of the
  parameter are the matrix's in columns d * columns/n to (d+1) * columns/n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn.cells.definition import block_count
from fastrnn.cells.numbers import value_of
from fastrnn.cells.records import Vector, Weight

__all__ = ["effective", "initial", "pull_back", "shape"]

Sizes = Mapping[str, int]
Constants = Mapping[str, float]


def shape(of: Weight | Vector, sizes: Sizes) -> tuple[int, ...]:
    """Return the shape of the parameter of a weight or vector."""
    if isinstance(of, Vector):
        return (of.blocks * sizes[of.width],)
    n = block_count(of, sizes) if of.kind == "blocks" else 1
    return of.blocks * sizes[of.rows], sizes[of.columns] // n


def effective(
    weight: Weight, parameter: np.ndarray, sizes: Sizes, constants: Constants,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Return the matrix (G * rows, columns) that a step multiplies by.

    Parameters
    ----------
    weight : Weight
    parameter : array of shape `shape(weight, sizes)`
    sizes, constants : mappings
        As `Definition.resolve` and `Definition.numbers` return them.
    mask : array of the parameter's shape, optional
        The multipliers of dropconnect.

    Returns
    -------
    array
        The parameter itself where nothing changes it.
    """
    if weight.kind == "antisymmetric":
        U = parameter.reshape(weight.blocks, sizes[weight.rows], sizes[weight.columns])
        gamma = parameter.dtype.type(value_of(weight.arguments[0], constants))
        eye = np.eye(sizes[weight.rows], dtype=parameter.dtype)
        return np.asarray(U - U.transpose(0, 2, 1) - gamma * eye).reshape(parameter.shape)
    if weight.kind == "dropconnect" and mask is not None:
        return np.asarray(parameter * mask)
    if weight.kind == "blocks":
        G, n, rows, columns = _split(weight, sizes)
        matrix = np.zeros((G, n, rows, n, columns), parameter.dtype)
        d = np.arange(n)
        matrix[:, d, :, d] = parameter.reshape(G, n, rows, columns).transpose(1, 0, 2, 3)
        return matrix.reshape(G * n * rows, n * columns)
    return parameter


def pull_back(
    weight: Weight, d_effective: np.ndarray, sizes: Sizes, constants: Constants,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Return the gradient of the parameter from that of the matrix of `effective`."""
    if weight.kind == "antisymmetric":
        d = d_effective.reshape(weight.blocks, sizes[weight.rows], sizes[weight.columns])
        return np.asarray(d - d.transpose(0, 2, 1)).reshape(d_effective.shape)
    if weight.kind == "dropconnect" and mask is not None:
        return np.asarray(d_effective * mask)
    if weight.kind == "blocks":
        G, n, rows, columns = _split(weight, sizes)
        diagonal = np.arange(n)
        blocks = d_effective.reshape(G, n, rows, n, columns)[:, diagonal, :, diagonal]
        return np.ascontiguousarray(blocks.transpose(1, 0, 2, 3)).reshape(G * n * rows, columns)
    return d_effective


def _split(weight: Weight, sizes: Sizes) -> tuple[int, int, int, int]:
    """Return G, n, and the rows and columns of one diagonal block."""
    n = block_count(weight, sizes)
    return weight.blocks, n, sizes[weight.rows] // n, sizes[weight.columns] // n


def initial(
    of: Weight | Vector, generator: np.random.Generator, sizes: Sizes, constants: Constants,
    dtype: Any = np.float32,
) -> np.ndarray:
    """Return the first value of a parameter.

    Numbers are drawn in float64 and rounded, so that a seed gives the same ones in every dtype.

    Parameters
    ----------
    of : Weight or Vector
    generator : numpy.random.Generator
    sizes, constants : mappings
        As `Definition.resolve` and `Definition.numbers` return them.
    dtype : dtype

    Raises
    ------
    ValueError
        If a sparse matrix was drawn that has no spectral radius to scale.
    """
    wanted = shape(of, sizes)
    kind = of.initial.kind
    arguments = [value_of(argument, constants) for argument in of.initial.arguments]
    if kind == "uniform":
        bound = 1 / math.sqrt(sizes["H"])
        low, high = arguments or (-bound, bound)
        drawn = generator.uniform(low, high, wanted)
    elif kind == "normal":
        mean, std = arguments if len(arguments) == 2 else (0.0, arguments[0])
        drawn = generator.normal(mean, std, wanted)
    elif kind == "number":
        drawn = np.full(wanted, arguments[0])
    elif kind == "zeros":
        drawn = np.zeros(wanted)
    else:
        rows, columns = wanted[0] // of.blocks, wanted[1]
        drawn = np.concatenate([_DRAWS[kind](generator, rows, columns, *arguments)
                                for _ in range(of.blocks)])
    return _checks.held(of.name, drawn, np.dtype(dtype))


def _orthogonal(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return orthonormal rows or columns, uniform over all such matrices."""
    q, r = np.linalg.qr(generator.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return q if rows >= columns else q.T


def _identity(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return np.eye(rows, columns)


def _sparse(
    generator: np.random.Generator, rows: int, columns: int, density: float, radius: float,
) -> np.ndarray:
    """Return a square matrix of that share of non-zeros and that spectral radius (Jaeger 2001).

    The radius needs all eigenvalues, rows^3 operations. A small matrix with few numbers may be
    nilpotent, which leaves no radius to scale; then it is drawn anew.
    """
    for _ in range(100):
        matrix = generator.uniform(-1, 1, (rows, columns))
        matrix *= generator.random((rows, columns)) < density
        largest = np.abs(np.linalg.eigvals(matrix)).max() if matrix.any() else 0.0
        if largest >= 1e-6:  # else nilpotent, to rounding
            return np.asarray(matrix * (radius / largest))
    raise RefusedValue(f"sparse({density:g}, {radius:g}) drew matrices of {rows} rows whose "
                       "eigenvalues are all 0: expected a greater density")


_DRAWS: dict[str, Callable[..., np.ndarray]] = {
    "orthogonal": _orthogonal, "identity": _identity, "sparse": _sparse}
