"""Named parameters in one flat buffer: what layers and models have in common.

A `Composite` is made of parts that have such parameters, and of some of its own: the parts' buffers
become slices of its buffer.

`flat` holds every parameter, in the order of the names and without gaps; `parameters()` are views
of it, and `grads` and `flat_grads` are the same for the gradients. So an optimiser, a norm or a
file needs one array, and a model can hold its layers' parameters in its own buffer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from fastrnn import _checks

Shapes = dict[str, tuple[int, ...]]

# In place of a seed: parameters that a file will bring stay zero, and take no memory until then.
UNSET = np.random.SeedSequence(0)


def seeds_of(owner: str, seed: Any, count: int) -> list[Any]:
    """Return seeds for the parts of a model."""
    if seed is UNSET:
        return [UNSET] * count
    return [int(s.generate_state(1, np.uint64)[0]) for s in _checks.seeds(owner, seed, count)]


def _views(flat: np.ndarray, shapes: Shapes) -> dict[str, np.ndarray]:
    views, start = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        views[name] = flat[start : start + size].reshape(shape)
        start += size
    return views


class Parametrized:
    """Parameters, their gradients, and the two modes: training, and evaluation with fixed weights.

    Attributes
    ----------
    flat, flat_grads : array (P,)
        All parameters and all gradients.
    grads : dict of arrays
        Gradients by name, views of `flat_grads`; backward adds to them.
    training : bool
        False after `eval`: then the parameters are read-only.
    """

    flat: np.ndarray
    flat_grads: np.ndarray
    grads: dict[str, np.ndarray]
    training: bool

    def __init__(self, shapes: Shapes, dtype: Any) -> None:
        self._shapes = shapes
        size = sum(map(math.prod, shapes.values()))
        self.training = True
        try:
            self._hold(np.zeros(size, dtype), np.zeros(size, dtype))
        except (MemoryError, ValueError, OverflowError) as error:
            raise MemoryError(f"{type(self).__name__}: these sizes make {size:.3g} parameters, "
                              "more than there is memory for") from error

    def _hold(self, flat: np.ndarray, flat_grads: np.ndarray) -> None:
        """Take these buffers as the home of the parameters, whatever they hold."""
        self.flat, self.flat_grads = flat, flat_grads
        self._params = _views(flat, self._shapes)
        self.grads = _views(flat_grads, self._shapes)

    @property
    def dtype(self) -> np.dtype:
        """Of parameters, inputs and outputs: float32 or float64."""
        return self.flat.dtype

    def parameters(self) -> dict[str, np.ndarray]:
        """Return the parameters by name, views of `flat`, named as torch names them."""
        return dict(self._params)

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self.flat_grads.fill(0)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return a copy of every parameter by name."""
        return {name: param.copy() for name, param in self._params.items()}

    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        """Copy parameters from a mapping such as state_dict() of this class or of torch's.

        Parameters
        ----------
        mapping : mapping of names to arrays
            Exactly this object's names and shapes; other float dtypes are converted.

        Raises
        ------
        ValueError
            If names are missing or unexpected, or shapes differ; the sentence lists them all, and
            no parameter has changed.
        TypeError
            If a value is not an array of numbers.
        """
        arrays = _checks.named_arrays(f"{type(self).__name__}.load_state_dict", mapping,
                                      self._shapes)
        training = self.training
        self.train()
        for name, array in arrays.items():
            self._params[name][...] = array
        self.train(training)

    def train(self, mode: bool = True) -> Self:
        """Choose training mode (or, with False, evaluation mode); return self."""
        self._set_writeable(bool(mode))
        self.training = bool(mode)
        return self

    def eval(self, weights: str = "float32") -> Self:
        """Choose evaluation mode and return self.

        The weights are packed once, for all calls to come, and every array of parameters becomes
        read-only until `train`, so that no pack goes stale. (A slice that was taken of one before
        stays writeable, as NumPy has it; what is written through it is not seen.)
        """
        return self.train(False)

    def _set_writeable(self, on: bool) -> None:
        # `flat` first: a view cannot be made writeable while its base is not
        for array in (self.flat, *self._params.values()):
            array.flags.writeable = on

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the views: they would come back as copies."""
        state = self.__dict__.copy()
        for name in ("_params", "grads"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # copies: an unpickled array may lie in a bytes object, which no flag makes writeable again
        self._hold(self.flat.copy(), self.flat_grads.copy())
        self.train(self.training)


class Composite(Parametrized):
    """Parts with parameters, and some of its own, in one buffer: a model of layers.

    The parts' parameters come first, in their order, named "part.name"; then the own ones.

    Parameters
    ----------
    parts : dict of Parametrized
        They keep the values that they have; from now on their buffers are slices of this one's.
    own : dict of shapes
        Of parameters that start at zero.
    dtype : float32 or float64
    """

    def __init__(self, parts: Mapping[str, Parametrized], own: Shapes, dtype: Any) -> None:
        self._parts = dict(parts)
        shapes = {f"{name}.{k}": shape for name, part in parts.items()
                  for k, shape in part._shapes.items()}
        initial = [part.flat for part in parts.values()]
        super().__init__(shapes | own, dtype)
        start = 0
        for values in initial:
            if values.any():
                self.flat[start : start + values.size] = values
            start += values.size

    def _hold(self, flat: np.ndarray, flat_grads: np.ndarray) -> None:
        super()._hold(flat, flat_grads)
        start = 0
        for part in self._parts.values():
            stop = start + sum(map(math.prod, part._shapes.values()))
            part._hold(flat[start:stop], flat_grads[start:stop])
            start = stop

    def train(self, mode: bool = True) -> Self:  # noqa: D102, the base class says it
        super().train(mode)
        for part in self._parts.values():
            part.train(mode)
        return self

    def eval(self, weights: str = "float32") -> Self:
        """Choose evaluation mode; `weights` is that of the recurrent layers' eval."""
        self._set_writeable(False)
        self.training = False
        for part in self._parts.values():
            part.eval(weights)
        return self
