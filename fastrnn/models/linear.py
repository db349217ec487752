"""Parts beside the recurrent layers: linear maps and tables of symbols' vectors.

Letters: R rows, K inputs, N outputs, V symbols, E width of a symbol's vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import public
from fastrnn._kernels import linear
from fastrnn.layers.parameters import UNSET, Part
from fastrnn.layers.passes import adding

__all__ = ["Embedding", "Linear"]


class Scratch:
    """Arrays that are done with, kept for the next computation of the same shape.

    So a training loop writes to the same pages of memory again. An array belongs to one computation
    from `take` until `give`.
    """

    def __init__(self) -> None:
        self._spare: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an array with any values."""
        for i, spare in enumerate(self._spare):
            if spare.shape == shape and spare.dtype == dtype:
                try:
                    taken = self._spare.pop(i)  # atomic: no other thread gets it
                except IndexError:
                    break
                if taken.shape == shape and taken.dtype == dtype:
                    return taken
                break  # another thread has moved the list: this one is dropped
        return _checks.empty(shape, dtype)

    def give(self, array: np.ndarray) -> None:
        """Take back an array that nobody uses any more."""
        self._spare.append(array)
        if len(self._spare) > 3:
            del self._spare[0]

    def __reduce__(self) -> Any:
        return Scratch, ()


class Linear(Part):
    """y = x W^T + b: the head of a model, or the map from a context to an initial state.

    Parameters
    ----------
    inputs, outputs : int
        K and N: weight is (N, K), bias (N,).
    dtype : float32 or float64
    seed : int or None
        Seed of the initial values, uniform in +-1/sqrt(K) as torch's.

    Raises
    ------
    ValueError
        If a size is not a whole number of at least 1.
    """

    weight: np.ndarray
    bias: np.ndarray

    @public
    def __init__(self, inputs: int, outputs: int, *, dtype: Any = np.float32, seed: Any = None
                 ) -> None:
        K, N = _checks.positive("inputs", inputs), _checks.positive("outputs", outputs)
        rng = _generator(seed)
        super().__init__({"weight": (N, K), "bias": (N,)}, _checks.float_dtype(dtype))
        self.scratch = Scratch()
        if rng is not None:
            bound = 1 / math.sqrt(K)
            for param in self._params.values():
                param[...] = rng.uniform(-bound, bound, param.shape)

    def apply(self, x: np.ndarray, scratch: bool = False) -> np.ndarray:
        """Return y (..., N) for x (..., K), in an array to give back if it is from `scratch`."""
        N, K = self._shapes["weight"]
        shape = (*x.shape[:-1], N)
        y = self.scratch.take(shape, self.dtype) if scratch else _checks.empty(shape, self.dtype)
        linear.linear_forward(np.ascontiguousarray(x).reshape(-1, K), self._params["weight"],
                              self._params["bias"], y.reshape(-1, N))
        return y

    def backward(
        self, dy: np.ndarray, x: np.ndarray, grads: Mapping[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """Return dx (..., K) for dy (..., N), from `scratch`; add to `grads`, None: its own."""
        N, K = self._shapes["weight"]
        into = self._grads if grads is None else grads
        dx = self.scratch.take(x.shape, self.dtype)
        with adding(into["weight"]):
            linear.linear_backward(
                np.ascontiguousarray(dy).reshape(-1, N), np.ascontiguousarray(x).reshape(-1, K),
                self._params["weight"], into["weight"], into["bias"], dx=dx.reshape(-1, K))
        return dx

    @property
    def config(self) -> dict[str, Any]:
        """The sizes, and the class as "part"."""
        N, K = self._shapes["weight"]
        return {"part": "Linear", "inputs": K, "outputs": N, "dtype": self.dtype.name}

    def __repr__(self) -> str:
        N, K = self._shapes["weight"]
        return f"Linear({K}, {N})"


class Embedding(Part):
    """A vector (E,) for each of V symbols.

    Parameters
    ----------
    symbols, width : int
        V and E: weight is (V, E).
    dtype : float32 or float64
    seed : int or None
        Seed of the initial values, normal as torch's.

    Raises
    ------
    ValueError
        If a size is not a whole number of at least 1.
    """

    weight: np.ndarray

    @public
    def __init__(self, symbols: int, width: int, *, dtype: Any = np.float32, seed: Any = None
                 ) -> None:
        shape = _checks.positive("symbols", symbols), _checks.positive("width", width)
        rng = _generator(seed)
        super().__init__({"weight": shape}, _checks.float_dtype(dtype))
        if rng is not None:
            self._params["weight"][...] = rng.standard_normal(shape)

    def add(self, dweight: np.ndarray, grads: Mapping[str, np.ndarray] | None = None) -> None:
        """Add a gradient (V, E) to `grads`, None: the part's own."""
        into = self._grads if grads is None else grads
        with adding(into["weight"]):
            into["weight"][...] += dweight

    @property
    def config(self) -> dict[str, Any]:
        """The sizes, and the class as "part"."""
        V, E = self._shapes["weight"]
        return {"part": "Embedding", "symbols": V, "width": E, "dtype": self.dtype.name}

    def __repr__(self) -> str:
        V, E = self._shapes["weight"]
        return f"Embedding({V}, {E})"


def _generator(seed: Any) -> np.random.Generator | None:
    """Return a generator of initial values; None if a file will bring them."""
    if seed is UNSET:
        return None
    _checks.seeds(seed, 0)
    return np.random.default_rng(seed)


def inside(grads: Mapping[str, np.ndarray] | None, part: str) -> Mapping[str, np.ndarray] | None:
    """Return the arrays of one part under its own names: "head.bias" becomes "bias"."""
    if grads is None:
        return None
    prefix = part + "."
    return {name.removeprefix(prefix): array for name, array in grads.items()
            if name.startswith(prefix)}
