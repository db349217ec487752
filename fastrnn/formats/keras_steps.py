"""The layers of a Keras chain: what each computes from arrays and a mask.

A step is called with a `Value` and returns one or several. It keeps nothing between calls. Letters:
N sequences, T steps, I input, H hidden, V symbols, E width of a symbol's vector.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn.layers.recurrent import Recurrent
from fastrnn.models.linear import Linear

__all__ = ["Dense", "Direction", "Elementwise", "Embedding", "Masking", "Nothing", "Pooling",
           "Recurrence", "Reshape", "Step", "Value"]

Function = Callable[[np.ndarray], np.ndarray]
States = tuple[np.ndarray, ...]  # (N, H), one for each state of each direction


class Value(NamedTuple):
    """What one layer gives to the next: an array, and which of its steps are real.

    `mask` is booleans (N, T), or None: all steps are.
    """

    x: np.ndarray
    mask: np.ndarray | None = None


class Step(abc.ABC):
    """A layer of the chain.

    Parameters
    ----------
    name : str
        The layer's name in the file.
    shown : str
        How the chain shows it.

    Attributes
    ----------
    stateful : bool
        Whether the layer takes and returns a state.
    recurrent : tuple of recurrent layers of fastrnn
    """

    stateful = False
    recurrent: tuple[Recurrent, ...] = ()

    def __init__(self, name: str, shown: str) -> None:
        self.name, self.shown = name, shown

    @abc.abstractmethod
    def __call__(self, value: Value) -> tuple[Value, ...]:
        """Return the outputs for an input."""

    def __repr__(self) -> str:
        return self.shown


class Elementwise(Step):
    """A function of each number, or of the numbers of one step; a mask passes through."""

    def __init__(self, name: str, shown: str, function: Function,
                 refuses_mask: bool = False) -> None:
        super().__init__(name, shown)
        self._function, self._refuses_mask = function, refuses_mask

    def __call__(self, value: Value) -> tuple[Value, ...]:  # noqa: D102
        if self._refuses_mask and value.mask is not None:
            raise RefusedValue(f"{self.name} would have a mask, which it cannot here")
        return (Value(_applied(self._function, value.x), value.mask),)


class Nothing(Step):
    """What changes nothing in inference: dropout, noise, the identity."""

    def __call__(self, value: Value) -> tuple[Value, ...]:  # noqa: D102
        return (value,)


def _applied(function: Function, x: np.ndarray) -> np.ndarray:
    """Return f(x), which may be infinite: as in Keras, that is no error."""
    with np.errstate(over="ignore", invalid="ignore"):
        return function(x)


class Embedding(Step):
    """The vector of each symbol: x is whole numbers (N, T) below V."""

    def __init__(self, name: str, weight: np.ndarray, mask_zero: bool) -> None:
        V, E = weight.shape
        super().__init__(name, f"Embedding({V}, {E}{', mask_zero=True' if mask_zero else ''})")
        self.weight, self.mask_zero = weight, mask_zero

    def __call__(self, value: Value) -> tuple[Value, ...]:  # noqa: D102
        index = _checks.rows(value.x, value.x.shape, len(self.weight), of=self.name)
        return (Value(self.weight[index], index != 0 if self.mask_zero else None),)


class Masking(Step):
    """Leaves out the steps whose numbers all have one value."""

    def __init__(self, name: str, value: float) -> None:
        super().__init__(name, f"Masking({value:g})")
        self._value = value

    def __call__(self, value: Value) -> tuple[Value, ...]:  # noqa: D102
        _dimensions(self.name, value.x, 3)
        with np.errstate(over="ignore"):  # infinite, as in Keras
            masked = value.x.dtype.type(self._value)
        real = (value.x != masked).any(-1)
        return (Value(np.where(real[..., None], value.x, value.x.dtype.type(0)), real),)


class Dense(Step):
    """phi(x W + b) of each row."""

    def __init__(self, name: str, linear: Linear, activation: str,
                 function: Function, timed: bool = False) -> None:
        self.outputs, self.inputs = linear.weight.shape
        more = "" if activation == "linear" else f", {activation!r}"
        shown = f"Dense({self.inputs}, {self.outputs}{more})"
        super().__init__(name, f"TimeDistributed({shown})" if timed else shown)
        self.linear, self.activation = linear, activation
        self._function, self._least = function, 3 if timed else 2

    def __call__(self, value: Value) -> tuple[Value, ...]:  # noqa: D102
        x = value.x.astype(self.linear.dtype, copy=False)
        if x.ndim < self._least or x.shape[-1] != self.inputs:
            raise RefusedValue(f"{self.name} has an input of shape {x.shape}, expected "
                               f"{self.inputs} features in at least {self._least} dimensions")
        return (Value(_applied(self._function, self.linear.apply(x)), value.mask),)


class Reshape(Step):
    """Another shape of each sequence; the mask ends here."""

    def __init__(self, name: str, shown: str, shape: tuple[int, ...]) -> None:
        super().__init__(name, shown)
        self._shape = shape

    def __call__(self, value: Value) -> tuple[Value, ...]:  # noqa: D102
        x = value.x
        try:
            return (Value(x.reshape(len(x), *self._shape)),)
        except ValueError:
            raise RefusedValue(f"{self.name} has an input of shape {x.shape}, expected one that "
                               f"has the numbers of {self._shape} in each sequence") from None


class Pooling(Step):
    """The mean of the real steps, or the greatest value of all steps (Keras ignores the mask)."""

    def __init__(self, name: str, shown: str, greatest: bool, keepdims: bool) -> None:
        super().__init__(name, shown)
        self._greatest, self._keepdims = greatest, keepdims

    def __call__(self, value: Value) -> tuple[Value, ...]:  # noqa: D102
        x, mask = _dimensions(self.name, value.x, 3), value.mask
        if self._greatest:
            return (Value(x.max(1, keepdims=self._keepdims)),)
        if mask is None:
            return (Value(x.mean(1, keepdims=self._keepdims)),)
        total = np.where(mask[..., None], x, x.dtype.type(0)).sum(1, keepdims=self._keepdims)
        count = mask.sum(1).astype(x.dtype).reshape((-1,) + (1,) * (total.ndim - 1))
        with np.errstate(invalid="ignore"):  # as Keras: the mean of no step is NaN
            return (Value(total / count),)


# ---- recurrent layers ----------------------------------------------------------------------------


class Direction(NamedTuple):
    """A recurrent layer of fastrnn with one direction, as Keras walks over it.

    With `backwards` it reads the last step first, and its output begins with that step. With `zero`
    its output is zero at steps that are not real, else that of the step before.
    """

    layer: Recurrent
    backwards: bool
    zero: bool


class Recurrence(Step):
    """A recurrent layer, or a Bidirectional of two.

    Parameters
    ----------
    name : str
    directions : tuple of one or two Direction
        Two with one layer: a bidirectional layer that computes both.
    merge : str or None
        How the outputs of two directions become one; None: they stay two.
    """

    def __init__(
        self, name: str, directions: tuple[Direction, ...], merge: str | None, sequences: bool,
        gives_state: bool, stateful: bool,
    ) -> None:
        self.directions, self.merge = directions, merge
        self.recurrent = tuple({id(d.layer): d.layer for d in directions}.values())
        self.sequences, self.gives_state, self.stateful = sequences, gives_state, stateful
        self.fused = len(self.recurrent) < len(directions)
        super().__init__(name, self._show())

    def _show(self) -> str:
        options = [] if len(self.directions) == 1 else [f"merge_mode={self.merge!r}"]
        options += [f"{name}=True" for name, on in (
            ("return_sequences", self.sequences), ("return_state", self.gives_state),
            ("go_backwards", self.directions[0].backwards), ("stateful", self.stateful)) if on]
        parts = [repr(layer) for layer in self.recurrent]
        inner = ", ".join([*parts, *options])
        if len(self.directions) == 2:
            return f"Bidirectional({inner})"
        return f"{parts[0][:-1]}, {', '.join(options)})" if options else parts[0]

    def initial_state(self, N: int) -> States:
        """Return zeros."""
        return tuple(np.zeros((N, width), d.layer.dtype)
                     for d in self.directions for width in d.layer.state_widths)

    def __call__(self, value: Value) -> tuple[Value, ...]:  # noqa: D102
        return self.run(value, None)[0]

    def run(self, value: Value, state: States | None) -> tuple[tuple[Value, ...], States]:
        """Return the outputs, and the state of each direction after its last real step."""
        first = self.recurrent[0]
        x = _dimensions(self.name, value.x, 3).astype(first.dtype, copy=False)
        if x.shape[2] != first.input_size:
            raise RefusedValue(f"{self.name} has an input of shape {x.shape}, expected "
                               f"{first.input_size} features")
        if not x.shape[1]:
            raise RefusedValue(f"the input of {self.name} has no steps, expected at least 1")
        if self.fused:
            outputs, final = self._both(x, value.mask, state)
        else:
            outputs, final = [], ()
            for direction in self.directions:
                count = len(direction.layer.cell.states)
                own = None if state is None else state[len(final) : len(final) + count]
                y, end = self._one(direction, x, value.mask, own)
                outputs.append(y)
                final += end
            if len(outputs) == 2 and self.sequences:
                outputs[1] = outputs[1][:, ::-1]
        merged = outputs if len(outputs) == 1 or self.merge is None else [
            _MERGES[self.merge](*outputs)]
        mask = value.mask if self.sequences else None
        values = [Value(y, mask) for y in merged]
        if self.gives_state:
            values += [Value(h) for h in final]
        return tuple(values), final

    def _one(
        self, direction: Direction, x: np.ndarray, mask: np.ndarray | None, state: States | None
    ) -> tuple[np.ndarray, States]:
        if direction.backwards:
            x, mask = x[:, ::-1], None if mask is None else mask[:, ::-1]
        initial = None if state is None else _as_layer(tuple(h[None] for h in state))
        y, final = _walk(direction.layer, x, mask, initial)
        states = tuple(h[0] for h in _as_tuple(final))
        if mask is not None:
            if self.sequences:
                y = _spread(y, mask, direction.zero)
            else:
                y = _last(y, mask)
                if direction.zero:
                    y[~mask[:, -1]] = 0
        elif not self.sequences:
            y = y[:, -1]
        return y, states

    def _both(
        self, x: np.ndarray, mask: np.ndarray | None, state: States | None
    ) -> tuple[list[np.ndarray], States]:
        layer = self.recurrent[0]
        H, per = layer.output_size, len(layer.cell.states)
        initial = None
        if state is not None:
            initial = _as_layer(tuple(np.stack([state[i], state[per + i]]) for i in range(per)))
        y, final = _walk(layer, x, mask, initial)
        states = tuple(h[i] for i in range(2) for h in _as_tuple(final))
        if self.sequences:
            if mask is not None:
                y = _spread(y, mask, zero=True)
            return [y[..., :H], y[..., H:]], states
        if mask is None:
            return [y[:, -1, :H], y[:, 0, H:]], states
        real = np.asarray(mask.any(1))[:, None]
        return [_last(y[..., :H], mask), np.where(real, y[:, 0, H:], 0)], states


_MERGES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "concat": lambda a, b: np.concatenate([a, b], -1),
    "sum": np.add,
    "mul": np.multiply,
    "ave": lambda a, b: (a + b) / 2,
}


def _walk(layer: Recurrent, x: np.ndarray, mask: np.ndarray | None, state: Any) -> Any:
    """Run a layer over the real steps alone, which come first in its output."""
    if mask is None:
        return layer(x, state)
    if np.any(mask[:, 1:] & ~mask[:, :-1]):  # a real step follows one that is not
        order = np.argsort(~mask, 1, kind="stable")
        x = np.take_along_axis(x, order[..., None], 1)
    return layer(x, state, lengths=mask.sum(1))


def _spread(y: np.ndarray, mask: np.ndarray, zero: bool) -> np.ndarray:
    """Put the output of real steps at their places; the others have the last one before, or 0."""
    place = np.cumsum(mask, 1) - 1
    y = np.take_along_axis(y, np.maximum(place, 0)[..., None], 1)
    absent: np.ndarray = ~mask if zero else place < 0
    y[absent] = 0
    return y


def _last(y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the output of each row's last real step, zero if it has none."""
    count = mask.sum(1)
    last = np.take_along_axis(y, np.maximum(count - 1, 0)[:, None, None], 1)[:, 0]
    last[count == 0] = 0
    return last


def _as_tuple(state: Any) -> States:
    return state if isinstance(state, tuple) else (state,)


def _as_layer(states: States) -> Any:
    return states[0] if len(states) == 1 else states


def _dimensions(name: str, x: np.ndarray, ndim: int) -> np.ndarray:
    if x.ndim != ndim:
        raise RefusedValue(f"{name} has an input of shape {x.shape}, expected {ndim} dimensions")
    return x
