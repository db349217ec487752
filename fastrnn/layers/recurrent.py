"""What RNN, LSTM and GRU share: calls, passes, packed weights, streams, with torch.nn's semantics.

A layer owns parameters and turns whatever a caller may pass into what the kernels take; one call
goes on to fastrnn/_kernels/sequence.pyx, or the engine of another cell, once for each stacked
layer. Letters: T steps, B batch, I input, H hidden, G gates, L layers, D directions (2 if
bidirectional), V rows of an embedding, O features of one direction's output (H of RNN, LSTM, GRU).
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, overload

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue, public
from fastrnn._kernels.runtime import Workspace
from fastrnn._kernels.stream import Stream
from fastrnn._kernels.timeline import Timeline
from fastrnn.cells import Cell
from fastrnn.layers.dropout import Dropout
from fastrnn.layers.parameters import UNSET, Shapes, check_count, check_grads
from fastrnn.layers.passes import Kept, Layout, Pass, S, as_rows, rows, some_of

if TYPE_CHECKING:
    from fastrnn._kernels.packed import Packed
    from fastrnn._kernels.packed import _Weights as Weights
    from fastrnn.cells.table import AnyCell

__all__ = ["Recurrent"]

State = Any  # (L*D, B, H), or a tuple of such, one for each state of the cell, or None
_BATCHED = Layout()
_UNBATCHED = Layout(batched=False)
_BATCH_FIRST = Layout(batch_first=True)
_ROWS = Layout(rows=True)


class Recurrent(Dropout, Generic[S]):
    """What RNN, LSTM and GRU share: everything but the constructor's arguments.

    Attributes
    ----------
    cell : Cell
        Its row of the table in fastrnn.cells, or another cell.
    has_c : bool
        Whether a state is a pair (h, c): that of an LSTM.
    state_widths : tuple of int
        The width of each state of the cell, for an LSTM (H, H).
    output_size : int
        Features O of one direction's output: H of RNN, LSTM and GRU.
    directions, width : int
        The number of directions D, and the features D*O of an output.
    """

    _fixed = frozenset(["cell", "input_size", "hidden_size", "num_layers", "bias", "bidirectional",
                        "has_c", "state_widths", "output_size", "directions", "width"])
    _flags = frozenset(["batch_first"])
    directions: int
    width: int
    _reverse: tuple[bool, ...]
    _own_grads: list[tuple[Weights, ...]]

    def __init__(
        self, cell: AnyCell, input_size: int, hidden_size: int, num_layers: int = 1,
        bias: bool = True, batch_first: bool = False, dropout: float = 0.0,
        bidirectional: bool = False, dtype: Any = np.float32, seed: Any = None,
    ) -> None:
        self.input_size = _checks.positive("input_size", input_size)
        self.hidden_size = _checks.positive("hidden_size", hidden_size)
        self.num_layers = _checks.positive("num_layers", num_layers)
        self.bias = _checks.flag("bias", bias)
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = _checks.flag("bidirectional", bidirectional)
        self._use_cell(cell)
        self.directions = 2 if self.bidirectional else 1
        self.width = self.directions * self.output_size
        above = {"I": self.width, "H": self.hidden_size}  # of the second layer
        if self.num_layers > 1 and (self.state_widths, self.output_size) != (
                cell.state_widths(above), cell.output_width(above)):
            raise RefusedValue(f"num_layers is {self.num_layers}, expected 1: the widths of the "
                               f"states and the output of {cell.name} depend on the width of its "
                               "input")
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                f"{type(self).__name__}: dropout works between layers; with num_layers = 1 it does "
                "nothing", stacklevel=4,
            )
        dtype = _checks.float_dtype(dtype)
        self._check_size(dtype)
        self._workspace = Workspace()
        self._last: Kept | None = None  # of the latest call in training mode
        super().__init__(self._parameter_shapes(), dtype)
        weights, masks = _checks.seeds(None if seed is UNSET else seed, 2)
        if seed is not UNSET:
            self._draw(np.random.default_rng(weights))
        self._masks, self._masks_pid = np.random.default_rng(masks), os.getpid()

    def _check_size(self, dtype: np.dtype) -> None:
        """Refuse sizes that no memory can hold before naming every parameter."""
        H = self.hidden_size
        first, more = (sum(map(math.prod, self.cell.parameters(I, H, False).values()))
                       for I in (self.input_size, self._input_size_of(self.num_layers - 1)))
        check_count(type(self).__name__, self.directions * (first + more * (self.num_layers - 1)),
                    self.num_layers, dtype)

    def _parameter_shapes(self) -> Shapes:
        shapes: Shapes = {}
        for number in range(self.num_layers):
            I = self._input_size_of(number)
            for direction in self._suffixes:
                own = self.cell.parameters(I, self.hidden_size, self.bias)
                shapes |= {f"{name}_l{number}{direction}": shape for name, shape in own.items()}
        return shapes

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    # ---- calls ------------------------------------------------------------------------------

    @public
    def __call__(
        self, x: Any, state: State = None, *, lengths: Any = None, reset: Any = None,
        reset_to: str = "zero",
    ) -> tuple[np.ndarray, S]:
        """Run the layers over a batch of sequences.

        In training mode the layer keeps the pass of its latest call, for `backward`; `forward`
        returns the pass instead.

        Parameters
        ----------
        x : array (T, B, I), or (B, T, I) with batch_first, or (T, I): one sequence
            It has the layer's dtype. In training mode do not change it before backward.
        state : array (L*D, B, H) or None; for an LSTM a pair (h0, c0) of such
            The initial state, (L*D, H) for one sequence; None means zeros.
        lengths : whole numbers (B,), each 0 to T, optional
            The number of steps of each row. What follows in x is padding and may be anything, NaN
            too; only the real steps are computed. The reverse direction starts at each row's own
            end. For one sequence it is one whole number.
        reset : booleans (T, B), (B, T) with batch_first, or (T,) for one sequence, optional
            True where a new episode begins. The forward direction starts anew at this step, the
            reverse direction at the step before. No gradient flows from one episode to another.
        reset_to : {"zero", "initial"}
            The state that an episode begins with: zero, or the row's initial state.

        Returns
        -------
        y : array (T, B, D*H), or (B, T, D*H), or (T, D*H)
            The last layer's states h, forward and reverse side by side; zero past a row's end.
        hn : array (L*D, B, H) or (L*D, H); for an LSTM the pair (hn, cn)
            The state of every layer and direction after the last step that it reads, which is each
            row's own. A row of length 0 keeps its initial state.

        Raises
        ------
        TypeError
            If an argument is not numeric or of another dtype, or the state is not of the cell.
        ValueError
            If a shape does not fit, or a length is not in 0 to T.
        """
        training = self.mode == "training"
        y, state, p = self._forward(x, state, training, lengths, reset, reset_to, latest=training)
        if p is not None:
            self.__dict__["_last"] = p.kept
        return y, state

    @overload
    def forward(
        self, x: Any, state: State = None, *, lengths: Any = None, reset: Any = None,
        reset_to: str = "zero", grad: Literal[True] = True,
    ) -> tuple[np.ndarray, S, Pass[S]]: ...
    @overload
    def forward(
        self, x: Any, state: State = None, *, lengths: Any = None, reset: Any = None,
        reset_to: str = "zero", grad: bool,
    ) -> tuple[np.ndarray, S, Pass[S] | None]: ...
    @public
    def forward(
        self, x: Any, state: State = None, *, lengths: Any = None, reset: Any = None,
        reset_to: str = "zero", grad: bool = True,
    ) -> tuple[np.ndarray, S, Pass[S] | None]:
        """Run the layers over a batch of sequences, and return the pass to go back through.

        Parameters
        ----------
        x, state, lengths, reset, reset_to : as of a call
        grad : bool
            Whether a pass is wanted. Without one the layer computes as in evaluation: dropout is
            left out.

        Returns
        -------
        y, state : as of a call
        p : Pass or None
            ``p.backward(dy, dstate)``; None without `grad`.

        Raises
        ------
        TypeError, ValueError
            As of a call; also if a pass is wanted of a layer in the mode "bfloat16".
        """
        return self._forward(x, state, grad, lengths, reset, reset_to)

    @public
    def forward_packed(
        self, data: Any, batch_sizes: Any, state: State = None, *, reset: Any = None,
        reset_to: str = "zero", grad: bool = True,
    ) -> tuple[np.ndarray, S, Pass[S] | None]:
        """Run the layers over rows in the layout of torch's PackedSequence, without padding.

        Without `reset` the layers compute in this order, so nothing is copied.

        Parameters
        ----------
        data : array (N, I)
            The rows of step 0, the longest sequence first, then those of step 1, and so on.
        batch_sizes : whole numbers (T,)
            How many sequences each step has, none more than the one before; their sum is N.
        state : as of a call, with B = batch_sizes[0] rows in the order of data
        reset : booleans (N,), optional
        reset_to, grad : as of `forward`

        Returns
        -------
        y : array (N, D*H)
        state : as of a call
        p : Pass or None
            ``p.backward(dy, dstate)`` takes dy (N, D*H) and returns dx (N, I).

        Raises
        ------
        TypeError, ValueError
            As of a call; also if batch_sizes are not in descending order, or not those of data.
        """
        _checks.refuse_packed("data", data)
        data = _checks.array("data", data, self.flat.dtype, ("N", self.input_size))
        T, B, time = _checks.packed_timeline(batch_sizes, len(data), reset, reset_to)
        drops = grad and self.mode == "training"
        if time is None:  # all rows are equally long
            y, state, p = self.run(data.reshape(T, B, -1), None, state, grad=grad, dropout=drops,
                                   layout=_BATCHED)
            if p is not None:
                p.kept = p.kept._replace(layout=_ROWS)
            return y.reshape(len(data), -1), state, p
        return self.run(data, None, state, grad=grad, dropout=drops, layout=_ROWS, time=time,
                        source="packed", target="packed")

    def _forward(
        self, x: Any, state: State, grad: bool, lengths: Any = None, reset: Any = None,
        reset_to: str = "zero", latest: bool = False,
    ) -> tuple[np.ndarray, S, Pass[S] | None]:
        I, dtype, grad = self.input_size, self.flat.dtype, _checks.flag("grad", grad)
        if type(x) is not np.ndarray:
            _checks.refuse_packed("x", x)
            x = _checks.numeric("x", x, dtype)
        shape: _checks.Shape
        if x.ndim == 2:
            layout, shape = _UNBATCHED, ("T", I)
        elif self.batch_first:
            layout, shape = _BATCH_FIRST, ("B", "T", I)
        else:
            layout, shape = _BATCHED, ("T", "B", I)
        x = _checks.array("x", x, dtype, shape, self._explain)
        drops = grad and self.mode == "training"
        if (lengths is not None or reset is not None or type(reset_to) is not str
                or reset_to != "zero"):
            T, B = layout.sizes(x)
            if not layout.batched:
                lengths = _checks.of_one(lengths, 0)
                reset = _checks.of_one(reset, 1, ("reset", (T,)))
            time = _checks.timeline(lengths, reset, reset_to, T, B, layout.batch_first)
            if time is not None:
                y, state, p = self.run(as_rows(x), None, state, grad=grad, dropout=drops,
                                       layout=layout, latest=latest, time=time,
                                       source=layout.grid, target=layout.grid)
                return y.reshape(layout.shape(T, B, self.width)), state, p
        if layout is _BATCHED:
            return self.run(x, None, state, grad=grad, dropout=drops, latest=latest)
        y, state, p = self.run(layout.from_caller(x), None, state, grad=grad, dropout=drops,
                               layout=layout, latest=latest)
        return layout.to_caller(y), state, p

    def _explain(self, x: np.ndarray) -> str:
        """Return what to add to the sentence about an x of a wrong shape."""
        if x.ndim not in (2, 3):
            return f" or (T, {self.input_size})"
        return f": x has {x.shape[-1]} features, weight_ih_l0 expects {self.input_size}"

    def state_shapes(self, B: int) -> list[tuple[int, int, int]]:
        """Return the shape (L*D, B, width) of each state."""
        return [(self.num_layers * self.directions, B, width) for width in self.state_widths]

    def run(
        self, x: Any, index: np.ndarray | None, state: State, *, grad: bool, dropout: bool,
        layout: Layout = _BATCHED, latest: bool = False, time: Timeline | None = None,
        source: str = "time", target: str = "time",
    ) -> tuple[np.ndarray, S, Pass[S] | None]:
        """Run the layers over checked input: what calls of a layer and of a model share.

        Parameters
        ----------
        x : array (T, B, I); with `index` an embedding (V, I), or None: one-hot rows
        index : None, or int32 (T, B): the rows of x that are the input, or where their 1 is
        state : as for a call; without a batch its arrays have no B
        grad : bool
            Whether to keep what backward needs.
        dropout : bool
            Whether to draw masks between layers.
        layout : Layout
            How y shall lie in memory, and whether states have a batch.
        latest : bool
            Whether the pass of the latest call is dropped, so that its memory is used again.
        time : Timeline, optional
            Lengths and resets. Then x is rows (M, I), or index (M,), of its layout `source`, and y
            is rows (M, D*H) of its layout `target`.

        Returns
        -------
        y : array (T, B, D*H)
        hn, or (hn, cn) : the final state, shaped as `state`
        p : Pass or None
        """
        # a call of one step takes a few microseconds: what need not be done is not done
        T, B = (time.T, time.B) if time is not None else (
            x.shape[:2] if index is None else index.shape)
        L, D, dtype = self.num_layers, self.directions, self.flat.dtype
        initial: Any = None
        if state is not None:
            padded = L * D, B
            initial = self._checked_state(("state", "", "0"), state,
                                          padded if layout.batched else padded[:1], padded)
        final = self._new_states(L * D, B)
        if grad:
            self.check_pass()
        weights = self._weights if self.mode == "training" else self._packed()
        if latest:  # nothing is refused from here on
            self.__dict__["_last"] = None
        tapes, kernels = [], self._kernels
        draws = dropout and self._masked
        for number in range(L):
            onto = target if number == L - 1 else "walk"  # between layers there is no padding
            y = rows(T, B, self.width, dtype, layout.batch_first) if time is None else (
                _checks.empty((time.size(onto), self.width), dtype))
            before, after = (initial, final) if L == 1 else (
                some_of(initial, number, D), some_of(final, number, D))
            tape = kernels.forward(
                self._kinds[number], x, index,
                self._drawn(number, B, T * B if time is None else time.N) if draws else
                weights[number], self._reverse, before, y, after, grad, self._workspace, time,
                source, onto,
            )
            mask = None
            if dropout and self.dropout and number < L - 1:
                mask = self._mask(y)
                y *= mask
            if tape is not None:
                tapes.append((tape, mask))
            x, index, source = y, None, onto
        if not layout.batched:
            final = tuple([a[:, 0] for a in final])
        p = Pass(self, Kept(tapes, layout, self.version, time, kernels)) if grad else None
        of_cell: Any = final[0] if len(final) == 1 else final
        return y, of_cell, p

    @overload
    def backward(
        self, dy: Any = None, dstate: State = None, *, need_dx: Literal[True] = True
    ) -> tuple[np.ndarray, S]: ...
    @overload
    def backward(
        self, dy: Any = None, dstate: State = None, *, need_dx: bool
    ) -> tuple[np.ndarray | None, S]: ...
    @public
    def backward(
        self, dy: Any = None, dstate: State = None, *, need_dx: bool = True
    ) -> tuple[np.ndarray | None, S]:
        """Backpropagate the latest training-mode call through time, and add to `grads`.

        The short form of `Pass.backward`, for one call at a time.

        Parameters
        ----------
        dy : array like y, or None
            Gradient of the loss with respect to y; None means zero.
        dstate : array like hn, or None; for an LSTM a pair (dhn, dcn)
            Gradient with respect to the final state; None, as a whole or of one, means zero.
        need_dx : bool
            False saves the work for the gradient of the input.

        Returns
        -------
        dx : array like x, or None
            Gradient with respect to x; None without `need_dx`.
        dh0 : array like hn; for an LSTM the pair (dh0, dc0)
            Gradient with respect to the initial state.

        Raises
        ------
        RuntimeError
            If there was no training-mode call, or it has had its backward.
        TypeError, ValueError
            If a gradient is not one of y or of the state; the call can then be repeated.
        """
        last = self._last
        if last is None:
            raise RuntimeError(f"{type(self).__name__}.backward: no call to go back through: each "
                               "training-mode call serves one backward, and eval-mode calls none")
        p = Pass(self, last)
        try:
            dx, dstate0 = p._backward(dy, dstate, need_dx)[:2]
            return dx, dstate0
        finally:
            if p.spent and self._last is last:
                self.__dict__["_last"] = None

    # ---- weights ----------------------------------------------------------------------------

    def _own(self, shapes: Shapes, flat: np.ndarray, flat_grads: np.ndarray) -> None:
        super()._own(shapes, flat, flat_grads)
        self.__dict__ |= {"_reverse": (False, True)[: self.directions],
                          "_weights": self._by_layer(self._params)}
        self.__dict__["_own_grads"] = self._by_layer(self._grads)

    def _by_layer(self, named: Mapping[str, np.ndarray]) -> list[tuple[Weights, ...]]:
        """Return, for each layer and direction, the cell's parameters in their order."""
        cell, H = self.cell, self.hidden_size
        names = cell.parameters(self.input_size, H, self.bias or isinstance(cell, Cell))
        return [  # a bias of the table's cells may be missing: None
            tuple(cell.arranged({name: named.get(f"{name}_l{number}{direction}") for name in names},
                                self._input_size_of(number), H) for direction in self._suffixes)
            for number in range(self.num_layers)
        ]

    @property
    def _levels(self) -> int:
        return self.num_layers

    def _input_size_of(self, number: int) -> int:
        return self.width if number else self.input_size

    def _drawn(self, number: int, B: int, N: int) -> tuple[Any, ...]:
        """Return the parameters of each direction, with the masks of one call in training."""
        from fastrnn.layers.programs import draw

        held = self._held[number] if self._held else (None,) * self.directions
        return tuple(
            draw(self._kinds[number], own, self._generator(), B, N, self.flat.dtype,  # type: ignore[arg-type]
                 of) for own, of in zip(self._weights[number], held, strict=True))

    def grads_by_layer(self, grads: Mapping[str, Any] | None) -> list[tuple[Weights, ...]]:
        """Return a mapping's gradient arrays (None: the layer's own) by layer and direction."""
        if grads is None:
            return self._own_grads
        check_grads(self, grads)
        return self._by_layer(grads)

    @public
    def stream(
        self, batch_size: int = 1, embedding: np.ndarray | None = None, *, one_hot: bool = False
    ) -> Stream:
        """Return a preallocated single step with its own state, which starts at zero.

        Parameters
        ----------
        batch_size : int
            Rows B that advance together.
        embedding : array (V, I), optional
            If given, a step takes whole numbers (B,): rows of this array.
        one_hot : bool
            Whether a step takes whole numbers (B,) below I, for a row with its 1 there.

        Returns
        -------
        Stream
            ``step(x)`` or ``step(x, out=y)`` takes x (B, I) and gives the last layer's h (B, H);
            ``step.state`` is the state, h (L, B, H) or the pair (h, c), and can be set;
            ``step.reset()`` zeroes it. It keeps the weights that the layer has now.
            ``step.block(x)`` takes x (T, B, I), many steps in one call.
            With many callers in one stream, ``step(x, rows=index)`` advances n of its rows, x
            (n, I); ``step.rows[index]`` is the state of these rows and can be set, and
            ``step.reset(index)`` zeroes it. All results are the same bits as one by one.

        Raises
        ------
        ValueError
            If the layer is bidirectional: the reverse direction needs the whole sequence. If an
            embedding is given and `one_hot` too.
        """
        one_hot = _checks.flag("one_hot", one_hot)
        if embedding is not None and one_hot:
            raise RefusedValue("embedding is given and one_hot is True, expected one of them")
        if embedding is not None:
            embedding = _checks.array("embedding", embedding, self.dtype, ("V", self.input_size))
        B = _checks.positive("batch_size", batch_size)
        return Stream([self.stream_packs()], B, self.dtype, embedding, one_hot,
                      name=f"{type(self).__name__}.stream")

    def stream_packs(self) -> list[Packed]:
        """Return the packed weights of each stacked layer, as a Stream takes them."""
        if self.bidirectional:
            raise RefusedValue("the layer is bidirectional, expected one direction: a single step "
                               "has no future to walk back from")
        return [directions[0] for directions in self._packed()]

    # ---- copies and print -------------------------------------------------------------------

    def alone(self, input_size: int) -> Self:
        """Return a layer of one direction and no stack, whose parameters are zero."""
        config = self.config | {"input_size": input_size, "num_layers": 1, "dropout": 0.0,
                                "batch_first": False, "bidirectional": False, "seed": UNSET}
        del config["layer"]
        return type(self)(**config)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make a layer of the same shapes, and its class as "layer"."""
        names = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
                 "bidirectional"]
        return {"layer": type(self).__name__, **{name: getattr(self, name) for name in names},
                "dtype": self.dtype.name}

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_last", "_packs", "_workspace", "_weights", "_own_grads", "_reverse",
                    "_kinds", "_kernels")
        state = {name: value for name, value in super().__getstate__().items()
                 if name not in left_out}
        return state | {"_masks": copy.deepcopy(self._generator())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_last": None, "_workspace": Workspace()})

    def __repr__(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"nonlinearity": "tanh", "num_layers": 1, "bias": True, "batch_first": False,
                    "dropout": 0.0, "bidirectional": False, "proj_size": 0, "reset_after": True}
        parts += [f"{name}={self.config[name]!r}" for name, default in defaults.items()
                  if self.config.get(name, default) != default]
        if self.dtype != np.float32:
            parts.append(f"dtype={self.dtype.name}")
        return f"{type(self).__name__}({', '.join(parts)})"
