"""Named parameters: a `Part` owns them in one flat buffer for life, a model is made of parts.

`Part.flat` holds every parameter of a layer, a head or an embedding, in the order of the names and
without gaps; `parameters()` are views of it, and `flat_grads` and `grads` are the same for the
gradients. These buffers never move: an array that was handed out is the live one for ever. Whoever
needs all parameters (an optimiser, a file, a norm) walks over the distinct parts of what it was
given, so a part may belong to several models. Letter: P number of parameters.
"""

from __future__ import annotations

import abc
import contextlib
import math
import re
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Self

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public

Shapes = dict[str, tuple[int, ...]]

MOST_LAYERS = 10_000  # the names of their parameters take 30 MB
MODES = ("training", "evaluation", "bfloat16")

_OF_A_LAYER = re.compile(r"_l\d+(_reverse)?$")  # how the name of a layer's parameter ends

# In place of a seed: parameters that a file will bring stay zero, and take no memory until then.
UNSET = np.random.SeedSequence(0)


def spawn(seed: Any, count: int) -> list[Any]:
    """Return seeds for the parts of a model, drawn from the model's seed."""
    if seed is UNSET:
        return [UNSET] * count
    return [int(s.generate_state(1, np.uint64)[0]) for s in _checks.seeds(seed, count)]


class Named(MutableMapping[str, np.ndarray]):
    """Live arrays by name. Assigning to a name copies the values into its array.

    Parameters
    ----------
    arrays : dict of arrays
    parts : dict of parts, optional
        Whose parameters the arrays are; they notice an assignment.
    """

    def __init__(self, arrays: dict[str, np.ndarray], parts: dict[str, Part] | None = None) -> None:
        self._arrays = arrays
        self._parts = parts or {}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    @public
    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self._arrays:
            raise RefusedValue(f"there is no {name!r}, expected one of {list(self._arrays)}")
        assign(name, self._arrays[name], value)
        if name in self._parts:
            self._parts[name].changed()

    @public
    def update(self, *given: Any, **named: Any) -> None:
        """Assign to several names; if one does not fit, to none."""
        try:
            values = dict(*given, **named)
        except (TypeError, ValueError):
            raise RefusedType(f"its argument is {_checks.show(given[0] if given else None)}, "
                              "expected arrays by name") from None
        for name, value in values.items():
            if name not in self._arrays:
                raise RefusedValue(f"there is no {name!r}, expected one of {list(self._arrays)}")
            values[name] = np.array(fitting(name, self._arrays[name], value))
        for name, value in values.items():
            self[name] = value

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name!r} cannot be deleted: the names of the parameters are fixed")

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{k!r}: {a.shape}" for k, a in self._arrays.items()) + "}"


def assign(name: str, array: np.ndarray, value: Any) -> None:
    """Copy values into a live array of the same shape."""
    if value is not array:  # `named[k] += a` has changed the array already
        array[...] = fitting(name, array, value)


def fitting(name: str, array: np.ndarray, value: Any) -> np.ndarray:
    """Return values as numbers that can be copied into a live array."""
    values = _checks.numbers(name, value)
    if values.shape != array.shape:
        raise RefusedValue(f"{name} has shape {values.shape}, expected {array.shape}")
    writeable(array.flags.writeable)
    return _checks.held(name, values, array.dtype)


def writeable(training: bool) -> None:
    """Refuse to change parameters in evaluation mode."""
    if not training:
        raise RefusedValue("the parameters are read-only in evaluation mode, expected training "
                           "mode: call train() first")


def _views(flat: np.ndarray, shapes: Shapes) -> dict[str, np.ndarray]:
    views, start = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        views[name] = flat[start : start + size].reshape(shape)
        start += size
    return views


class Parametrized(abc.ABC):
    """What parts and models have in common: parameters by name, gradients, modes, files."""

    @abc.abstractmethod
    def parts(self) -> dict[str, Part]:
        """Return the parts that own the parameters, by name; of a part itself {"": self}."""

    def _full_names(self) -> Iterator[tuple[str, str, Part]]:
        """Yield the full name, the part's own name, and the part of every parameter."""
        for prefix, part in self.parts().items():
            for name in part._params:
                yield full_name(prefix, name), name, part

    def parameters(self) -> Named:
        """Return the live parameters by name, named as torch names them.

        Assigning to a name, ``model.parameters()["head.bias"] = a``, copies the values in.
        """
        names = list(self._full_names())
        return Named({full: part._params[name] for full, name, part in names},
                     {full: part for full, _, part in names})

    @property
    def grads(self) -> Named:
        """The live gradients by name; backward adds to them."""
        return Named({full: part._grads[name] for full, name, part in self._full_names()})

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters have together."""
        return sum(part.flat.size for part in self.parts().values())

    @property
    @abc.abstractmethod
    def dtype(self) -> np.dtype:
        """Dtype of parameters, inputs and outputs: float32 or float64."""

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for part in self.parts().values():
            part.flat_grads.fill(0)

    def new_grads(self) -> dict[str, np.ndarray]:
        """Return zeros in the shapes of the parameters, by name.

        A backward adds to them instead of to `grads` if it is given them, so that several threads
        can go back through one model at once.
        """
        return {name: np.zeros_like(param) for name, param in self.parameters().items()}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return a copy of every parameter by name."""
        return {name: param.copy() for name, param in self.parameters().items()}

    @public
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
        params = self.parameters()
        arrays = _checks.named_arrays(mapping, {name: p.shape for name, p in params.items()})
        # converted, and copied if they lie in these buffers, before anything changes
        flats = [part.flat for part in self.parts().values()]
        arrays = {name: a.copy() if any(np.may_share_memory(a, f) for f in flats) else
                  _checks.held(name, a, self.dtype) for name, a in arrays.items()}
        with modes(self):
            self.train()
            for name, array in arrays.items():
                params[name][...] = array
            for part in self.parts().values():
                part.changed()

    @property
    def training(self) -> bool:
        """Whether any part is in training mode."""
        return any(part.mode == "training" for part in self.parts().values())

    @public
    def train(self, mode: bool = True) -> Self:
        """Choose training mode (or, with False, evaluation mode); return self."""
        training = _checks.flag("mode", mode)
        for part in self.parts().values():
            part.set_mode("training" if training else "evaluation")
        return self

    @public
    def eval(self, weights: str = "float32") -> Self:
        """Choose evaluation mode and return self.

        The weights are packed once, for all calls to come, and every array of parameters becomes
        read-only until `train`, so that no pack goes stale. (A slice that was taken of an array
        before stays writeable, as NumPy has it; what is written through it is not seen.)

        Parameters
        ----------
        weights : {"float32", "bfloat16"}
            With "bfloat16" recurrent layers of float32 step with weights of half the bytes: faster
            where few rows meet weights that do not fit into the caches near the core. Each weight
            is rounded to a relative error of at most 2^-8; states, sums and activations stay
            float32, and `parameters` keep their values. With "float32" the weights are used as they
            are, those of float64 layers too.

        Raises
        ------
        ValueError
            If `weights` is another word, or bfloat16 is asked of float64.
        """
        if not isinstance(weights, str) or weights not in ("float32", "bfloat16"):
            raise RefusedValue(f"weights is {_checks.show(weights)}, expected 'float32' or "
                               "'bfloat16'")
        if weights == "bfloat16" and self.dtype != np.float32:
            raise RefusedValue(f"weights is 'bfloat16', expected 'float32' for {self.dtype}")
        for part in self.parts().values():
            part.set_mode("bfloat16" if weights == "bfloat16" else "evaluation")
        return self

    @property
    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """What makes an object of the same shapes; fit for JSON."""

    def save(self, path: Any, notes: dict[str, Any] | None = None) -> None:
        """Write parameters and configuration to a safetensors file; see fastrnn.save."""
        from fastrnn.formats import save  # a package above: files need the classes they can make

        save(self, path, notes)


class Part(Parametrized):
    """Something that owns parameters: a recurrent layer, a linear map, an embedding.

    Attributes
    ----------
    flat, flat_grads : array (P,)
        All parameters and all gradients, for life. Assigning to one copies the values in.
    mode : {"training", "evaluation", "bfloat16"}
        In the two modes of evaluation the parameters are read-only.
    version : int
        Grows when the library changes the parameters, so that a backward can notice.
    """

    mode: str
    flat: np.ndarray
    flat_grads: np.ndarray
    version: int
    _shapes: Shapes
    _params: dict[str, np.ndarray]
    _grads: dict[str, np.ndarray]
    _fixed: frozenset[str] = frozenset()  # attributes that cannot be set again
    _flags: frozenset[str] = frozenset()  # that are True or False

    def __init__(self, shapes: Shapes, dtype: Any) -> None:
        size = sum(map(math.prod, shapes.values()))
        try:
            flat, flat_grads = np.zeros(size, dtype), np.zeros(size, dtype)
        except (MemoryError, ValueError, OverflowError) as error:
            raise MemoryError(f"{type(self).__name__}: these sizes make {min(size, 10**300):.3g} "
                              "parameters, more than there is memory for") from error
        self._own(shapes, flat, flat_grads)

    def _own(self, shapes: Shapes, flat: np.ndarray, flat_grads: np.ndarray) -> None:
        """Take these buffers for life."""
        self.__dict__ |= {
            "_shapes": shapes, "flat": flat, "flat_grads": flat_grads,
            "_params": _views(flat, shapes), "_grads": _views(flat_grads, shapes),
            "mode": "training", "version": 0}

    def parts(self) -> dict[str, Part]:  # noqa: D102, documented in the base class
        return {"": self}

    @property
    def fixed_parameters(self) -> frozenset[str]:
        """The names of the parameters that no optimiser changes; their gradients are zero."""
        return frozenset()

    # what the base class finds by walking over the parts, at once

    @property
    def dtype(self) -> np.dtype:
        """Dtype of parameters, inputs and outputs: float32 or float64."""
        return self.flat.dtype

    @property
    def training(self) -> bool:
        """Whether it is in training mode."""
        return self.mode == "training"

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self.flat_grads.fill(0)

    def __getattr__(self, name: str) -> np.ndarray:
        """Return a parameter by its name."""
        params: dict[str, np.ndarray] = self.__dict__.get("_params", {})
        if name in params:
            return params[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @public
    def __setattr__(self, name: str, value: Any) -> None:
        """Copy values into a parameter, or set an ordinary attribute."""
        own = self.__dict__
        if name in own.get("_params", ()):
            assign(name, own["_params"][name], value)
            self.changed()
        elif name == "flat":
            assign(name, self.flat, value)
            self.changed()
        elif name == "flat_grads":
            assign(name, self.flat_grads, value)
        elif name in ("mode", "version", "grads", "training"):
            raise AttributeError(f"{name} cannot be set; use train(), eval() or zero_grad()")
        elif name in self._fixed and name in own:
            raise AttributeError(f"{name} is fixed when the {type(self).__name__} is made")
        elif name.startswith(("weight", "bias_")) or _OF_A_LAYER.search(name):
            raise AttributeError(f"{type(self).__name__} has no parameter {name!r}, it has "
                                 f"{list(own.get('_params', ()))}")
        else:
            flag = name in self._flags
            object.__setattr__(self, name, _checks.flag(name, value) if flag else value)

    def changed(self) -> None:
        """Note that the parameters have new values."""
        self.__dict__["version"] += 1

    def set_mode(self, mode: str) -> None:
        """Choose one of MODES; nothing happens if it is the mode already."""
        if mode != self.mode:
            # `flat` first: a view cannot be made writeable while its base is not
            for array in (self.flat, *self._params.values()):
                array.flags.writeable = mode == "training"
            self.__dict__["mode"] = mode

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the views, which would come back as copies."""
        return {name: value for name, value in self.__dict__.items()
                if name not in ("_params", "_grads")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        # copies: an unpickled array may lie in a bytes object, which no flag makes writeable again
        self._own(self._shapes, self.flat.copy(), self.flat_grads.copy())
        self.set_mode(state["mode"])
        self.__dict__["version"] = state["version"]  # passes that are copied with it have it


# ---- targets: a part, a model, or several of them ------------------------------------------------


def full_name(part: str, name: str) -> str:
    """Return the name of a part's parameter in the whole."""
    return f"{part}.{name}" if part else name


def parts_of(target: Any) -> list[tuple[str, Part]]:
    """Return (name, part) for every part of a layer, a model, or a list of them.

    A part that belongs to several models appears once for each. In a list the names begin with the
    position: "1.head".

    Raises
    ------
    RefusedType
        If the target is something else.
    """
    if isinstance(target, Parametrized):
        return list(target.parts().items())
    if isinstance(target, (list, tuple)) and target and all(
            isinstance(t, Parametrized) for t in target):
        return [(f"{i}.{name}" if name else str(i), part)
                for i, t in enumerate(target) for name, part in t.parts().items()]
    raise RefusedType(f"target is {_checks.kind(target)}, expected a layer, a model, or a list of "
                      "them")


def distinct(target: Any) -> list[Part]:
    """Return each part of a target once."""
    return list({id(part): part for _, part in parts_of(target)}.values())


def check_count(kind: str, size: int, layers: int, dtype: np.dtype) -> None:
    """Refuse so many parameters in so many layers if no memory can hold them."""
    if size * dtype.itemsize > sys.maxsize or layers > MOST_LAYERS:
        raise MemoryError(f"{kind}: these sizes make {min(size, 10**300):.3g} parameters in "
                          f"{min(layers, 10**300):.3g} layer{'s' * (layers > 1)}, more than there "
                          "is memory for")


def check_grads(of: Parametrized, grads: Any) -> None:
    """Refuse a mapping without an array, for each parameter, to add its gradient to."""
    if not isinstance(grads, Mapping):
        raise RefusedType(f"grads is {_checks.kind(grads)}, expected a mapping of names to "
                          "arrays: see new_grads()")
    for name, param in of.parameters().items():
        if name not in grads:
            raise RefusedValue(f"grads lacks {name!r}, expected an array for each parameter: see "
                               "new_grads()")
        own = _checks.output(f"grads[{name!r}]", grads[name], of.dtype, param.shape)
        if any(np.may_share_memory(own, part.flat) for part in of.parts().values()):
            raise RefusedValue(f"grads[{name!r}] is a parameter itself, expected an array for a "
                               "gradient: see new_grads()")


@contextlib.contextmanager
def modes(target: Any) -> Iterator[None]:
    """Restore the mode of every part on leaving."""
    before = [(part, part.mode) for part in distinct(target)]
    try:
        yield
    finally:
        for part, mode in before:
            part.set_mode(mode)


@contextlib.contextmanager
def evaluating(target: Any) -> Iterator[None]:
    """While it is entered, no part is in training mode: weights are packed once, not at each call.

    A part that is in one of the modes of evaluation keeps it.
    """
    with modes(target):
        for part in distinct(target):
            if part.mode == "training":
                part.set_mode("evaluation")
        yield
