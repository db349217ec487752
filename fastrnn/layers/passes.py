"""A pass: what one forward of a layer leaves for its backward.

A forward returns a pass, and the pass goes back. It holds the tapes of all stacked layers and the
masks of dropout, so any number of passes through one layer may be in flight, in any number of
threads. Letters: T steps, B batch, I input, H hidden, G gates, L layers, D directions.
"""

from __future__ import annotations

import copy
import math
import os
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, overload

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue, public
from fastrnn._kernels.sequence import RECORD
from fastrnn._kernels.timeline import Timeline
from fastrnn.layers.engine import AnyTape, Engine

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # typing's has a default from Python 3.13 on

    from fastrnn.cells.table import AnyCell
    from fastrnn.layers.parameters import Part
    from fastrnn.layers.recurrent import Recurrent

    S = TypeVar("S", default=Any)  # the state of a cell: an array, or a tuple of arrays
else:
    from typing import TypeVar

    S = TypeVar("S")

__all__ = ["RECORD", "Pass", "Recorded"]

States = tuple["np.ndarray | None", ...] | None
Recorded = list[dict[str, np.ndarray]]  # one dict for each stacked layer


def rows(T: int, B: int, N: int, dtype: Any, batch_first: bool) -> np.ndarray:
    """Return a new (T, B, N) that lies in memory as that, or as (B, T, N)."""
    if batch_first:
        return _checks.empty((B, T, N), dtype).transpose(1, 0, 2)
    return _checks.empty((T, B, N), dtype)


class Layout(NamedTuple):
    """How the caller's arrays lie: with a batch or as one sequence, time first or batch first.

    With `rows` they are rows (M, N) of a layout of a Timeline.
    """

    batched: bool = True
    batch_first: bool = False
    rows: bool = False

    def shape(self, T: int, B: int, N: int) -> tuple[int, ...]:
        """Return the shape of the caller's sequences of N features."""
        return (B, T, N) if self.batch_first else (T, B, N) if self.batched else (T, N)

    def sizes(self, x: np.ndarray) -> tuple[int, int]:
        """Return T and B of a caller's sequences."""
        T, B = x.shape[:2] if self.batched else (len(x), 1)
        return (B, T) if self.batch_first else (T, B)

    def from_caller(self, a: np.ndarray) -> np.ndarray:
        """Return a caller's sequence as (T, B, N)."""
        return a.transpose(1, 0, 2) if self.batch_first else a if self.batched else a[:, None]

    def to_caller(self, a: np.ndarray) -> np.ndarray:
        """Return (T, B, N) as the caller has it."""
        return a.transpose(1, 0, 2) if self.batch_first else a if self.batched else a[:, 0]

    @property
    def grid(self) -> str:
        """The layout of a Timeline that the caller's sequences have as rows."""
        return "batch" if self.batch_first else "time"


def as_rows(a: np.ndarray) -> np.ndarray:
    """Return (..., N) as (M, N), a copy if its rows do not lie side by side."""
    return np.ascontiguousarray(a).reshape(-1, a.shape[-1])


def some_of(states: States, number: int, D: int) -> Any:
    """Return the rows of a stacked layer out of (L*D, B, width) of each state, or None."""
    if states is None:
        return None
    own = slice(number * D, (number + 1) * D)
    return tuple([None if a is None else a[own] for a in states])


class Kept(NamedTuple):
    """What a pass keeps of its forward, without the layer: a layer keeps that of its latest call.

    Attributes
    ----------
    tapes : list
        The tape of each stacked layer, with its dropout mask (in the shape of y) or None.
    layout : Layout
    version : int
        Version of the layer's parameters.
    time : Timeline or None
        Lengths and resets; the arrays of the tapes are rows (M, N) then.
    kernels : module
        What made the tapes.
    """

    tapes: list[tuple[AnyTape, np.ndarray | None]]
    layout: Layout
    version: int
    time: Timeline | None
    kernels: Engine | None


_SPENT = Kept([], Layout(), 0, None, None)


class Pass(Generic[S]):
    """One forward of a recurrent layer, to go back through: ``y, state, p = layer.forward(x)``.

    It refers to x, to the weights and to an embedding: leave them as they are until backward.

    Attributes
    ----------
    layer : RNN, LSTM or GRU
    spent : bool
        Whether it has had its backward.
    """

    def __init__(self, layer: Recurrent[S], kept: Kept) -> None:
        self.layer = layer
        self.kept = kept
        self.spent = False

    def __copy__(self) -> Pass[S]:
        """Return a pass through the same layer that goes back by itself."""
        made = type(self)(self.layer, self.kept._replace(
            tapes=[(tape.copy(), mask) for tape, mask in self.kept.tapes]))
        made.spent = self.spent
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Pass[S]:
        made = memo[id(self)] = type(self)(self.layer, self.kept)
        made.spent = self.spent
        made.layer = copy.deepcopy(self.layer, memo)
        made.kept = self.kept._replace(tapes=copy.deepcopy(self.kept.tapes, memo))
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of the tapes."""
        return sum(tape.nbytes for tape, _ in self.kept.tapes)

    @overload
    def backward(
        self, dy: Any = None, dstate: Any = None, *, need_dx: Literal[True] = True,
        record: tuple[()] = (), grads: Mapping[str, np.ndarray] | None = None,
        retain: bool = False,
    ) -> tuple[np.ndarray, S]: ...
    @overload
    def backward(
        self, dy: Any = None, dstate: Any = None, *, need_dx: bool,
        record: tuple[()] = (), grads: Mapping[str, np.ndarray] | None = None,
        retain: bool = False,
    ) -> tuple[np.ndarray | None, S]: ...
    @overload
    def backward(
        self, dy: Any = None, dstate: Any = None, *, need_dx: bool = True,
        record: tuple[str, *tuple[str, ...]], grads: Mapping[str, np.ndarray] | None = None,
        retain: bool = False,
    ) -> tuple[np.ndarray | None, S, Recorded]: ...
    @overload
    def backward(
        self, dy: Any = None, dstate: Any = None, *, need_dx: bool = True,
        record: tuple[str, ...], grads: Mapping[str, np.ndarray] | None = None,
        retain: bool = False,
    ) -> Any: ...
    @public
    def backward(
        self, dy: Any = None, dstate: Any = None, *, need_dx: bool = True,
        record: tuple[str, ...] = (), grads: Mapping[str, np.ndarray] | None = None,
        retain: bool = False,
    ) -> Any:
        """Backpropagate through time, and add to the layer's `grads` or to those given.

        Parameters
        ----------
        dy : array like y, or None
            Gradient of the loss with respect to y; None means zero.
        dstate : array like hn, or None; for an LSTM a pair (dhn, dcn)
            Gradient with respect to the final state; None, as a whole or of one, means zero.
        need_dx : bool
            False saves the work for the gradient of the input.
        record : tuple of str
            What to return besides: names out of "dh", "dc" (LSTM), "gates", "dgates_x",
            "dgates_h", "x" and "h".
        grads : mapping of names to arrays, optional
            Arrays to add the parameters' gradients to, instead of to the layer's own: see
            `new_grads`. Then several threads can go back through one layer at once.
        retain : bool
            Keep the pass, so that it can go back again. It costs one copy of the tapes.

        Returns
        -------
        dx : array like x, or None
            Gradient with respect to x; None without `need_dx`.
        dstate0 : array like hn; for an LSTM the pair (dh0, dc0)
            Gradient with respect to the initial state.
        recorded : list of L dicts
            Only with `record`: the arrays named, for each stacked layer, time-major, in the order
            of time for both directions. dh, dc (T, B, D, H): the whole derivatives with respect to
            h(t) and c(t), through y(t), the gates and later steps. gates (T, B, D, G, H): the
            activated gates. dgates_x and dgates_h (T, B, D, G, H): the gradients of W_ih x(t) +
            b_ih and of W_hh h(t-1) + b_hh, which differ only for n of a GRU. x (T, B, I): the
            layer's input; numbers (T, B) for one-hot symbols. h (T, B, D, H): the state before a
            step.

        Raises
        ------
        RuntimeError
            If the pass is spent, if the library has changed the parameters since forward, or if
            another thread is adding to the same gradients.
        TypeError, ValueError
            If an argument does not fit; the pass can then be used again.
        """
        return self._backward(dy, dstate, need_dx, record, grads, retain)

    def _backward(
        self, dy: Any, dstate: Any, need_dx: bool = True, record: tuple[str, ...] = (),
        grads: Mapping[str, np.ndarray] | None = None, retain: bool = False,
    ) -> Any:
        layer, (tapes, layout, version, time, kernels) = self.layer, self.kept
        need_dx, retain = _checks.flag("need_dx", need_dx), _checks.flag("retain", retain)
        check_unspent(self.spent, layer, version)
        assert kernels is not None  # as long as it is unspent
        first = tapes[0][0]
        T, B, I = first.shape[:3]
        L, D, dtype, width = layer.num_layers, layer.directions, layer.dtype, layer.width
        padded = L * D, B
        if dy is not None:
            like_y = tapes[-1][0].y_shape
            expected = (math.prod(like_y[:-1]), width) if layout.rows else layout.shape(T, B, width)
            dy = _checks.array("dy", dy, dtype, expected)
            if layout.rows or time is not None:
                dy = as_rows(dy).reshape(like_y)
            else:
                dy = layout.from_caller(dy)
        dfinal: States = None
        if dstate is not None:
            dfinal = layer._checked_state(("dstate", "d", "n"), dstate,
                                          padded if layout.batched else padded[:1], padded)
        record = checked_record(record, (layer.cell,))
        into = layer.grads_by_layer(grads)
        own = layer._grads if grads is None else grads
        # a cell from equations may have no parameters, then nobody can be in the way
        first_grad = next((own[name] for name in layer._shapes), np.empty(0))

        dinitial = layer._new_states(L * D, B)
        with adding(first_grad):
            if retain:
                tapes = [(tape.copy(), mask) for tape, mask in tapes]
            else:
                self.spent, self.kept = True, _SPENT
            dx, recorded = None, []
            for number in reversed(range(L)):
                tape, mask = tapes[number]
                if mask is not None and dy is not None:
                    dy *= mask
                dx = None
                if number or need_dx:
                    dx = self._like_x(tape, layout)
                after, before = (dfinal, dinitial) if L == 1 else (
                    some_of(dfinal, number, D), some_of(dinitial, number, D))
                recorded.append(kernels.backward(tape, dy, after, dx, before, into[number], record))
                dy = dx
        if dx is not None and not first.symbols:
            if layout.rows:
                dx = dx.reshape(-1, I)
            else:
                dx = layout.to_caller(dx) if time is None else dx.reshape(layout.shape(T, B, I))
        if not layout.batched:
            dinitial = tuple([a[:, 0] for a in dinitial])
        dstate0 = dinitial[0] if len(dinitial) == 1 else dinitial
        return (dx, dstate0, recorded[::-1]) if record else (dx, dstate0)

    def _like_x(self, tape: AnyTape, layout: Layout) -> np.ndarray | None:
        """Return a new array for the gradient of a layer's input; None for one-hot symbols."""
        if not tape.x_shape:
            return None
        if len(tape.x_shape) == 2:  # an embedding, or rows
            return np.empty(tape.x_shape, self.layer.dtype)
        T, B, I = tape.x_shape
        return rows(T, B, I, self.layer.dtype, layout.batch_first)


def check_unspent(spent: bool, part: Part, version: int) -> None:
    """Refuse a second backward, and one whose parameters are not those of forward."""
    if spent:
        raise RuntimeError("backward: this pass has had its one backward already; use "
                           "backward(retain=True) to go back more than once")
    if part.version != version:
        raise RuntimeError("backward: the parameters have changed since forward, expected the same "
                           "ones: run forward again after an optimiser's step")


def checked_record(record: Any, cells: Iterable[AnyCell]) -> tuple[str, ...]:
    """Return the names if backward can record each of them of one of the cells."""
    if type(record) is tuple and not record:
        return ()
    recordable = [name for cell in cells for name in cell.recordable]
    others = dict.fromkeys(name for name in recordable if name not in RECORD)
    known = [*(name for name in RECORD if name in recordable), *others]
    if not isinstance(record, (tuple, list)) or any(name not in known for name in record):
        raise RefusedValue(f"record is {_checks.show(record)}, expected names out of {known}")
    return tuple(record)


_ADDING: dict[tuple[int, int], int] = {}  # (process, gradient array): the thread adding to it


class adding:  # noqa: N801, used as a function
    """While it is entered, this thread alone adds to the gradients that this array belongs to.

    Who is adding is noted by process, so a child that was forked meanwhile starts free.
    """

    __slots__ = ("_key",)

    def __init__(self, grad: np.ndarray) -> None:
        self._key = os.getpid(), id(grad)

    def __enter__(self) -> None:
        me = threading.get_ident()
        if _ADDING.setdefault(self._key, me) != me:  # atomic
            raise RuntimeError("backward: another thread is adding to the same gradients; give "
                               "each thread its own: backward(grads=model.new_grads())")

    def __exit__(self, *error: object) -> None:
        _ADDING.pop(self._key, None)
