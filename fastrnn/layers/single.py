"""RNNCell, LSTMCell and GRUCell: one step at a time, with torch.nn's semantics.

For loops that are the caller's: a decoder whose input is its own last output, an agent and its
environment. A cell is a layer's step with the same kernels, so a loop over a cell gives the same
bits as a call of the layer. Letters: B batch, I input, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Literal, overload

import numpy as np

from fastrnn import _checks
from fastrnn._checks import public
from fastrnn._kernels.runtime import Workspace
from fastrnn.cells import CELLS, Cell, vanilla
from fastrnn.layers.engine import AnyTape
from fastrnn.layers.packs import PackedPart
from fastrnn.layers.parameters import UNSET, Shapes, check_grads
from fastrnn.layers.passes import S, adding, check_unspent

__all__ = ["SINGLE", "CellPass", "GRUCell", "LSTMCell", "RNNCell", "SingleCell"]

State = Any  # (B, H) or (H,), or a pair of such, or None
_FORWARD = (False,)  # one direction, not reversed


class SingleCell(PackedPart, Generic[S]):
    """What RNNCell, LSTMCell and GRUCell share: everything but the constructor's arguments.

    Attributes
    ----------
    cell : Cell
        Its row of the table in fastrnn.cells.
    has_c : bool
        Whether a state is a pair (h, c).
    state_widths, output_size
        As of a layer.
    """

    _fixed = frozenset(["cell", "input_size", "hidden_size", "bias", "has_c", "state_widths",
                        "output_size"])
    _own_grads: tuple[tuple[Any, ...], ...]

    def __init__(
        self, cell: Cell, input_size: int, hidden_size: int, bias: bool, dtype: Any, seed: Any
    ) -> None:
        self.input_size = _checks.positive("input_size", input_size)
        self.hidden_size = _checks.positive("hidden_size", hidden_size)
        self.bias = _checks.flag("bias", bias)
        self._use_cell(cell)
        self._workspace = Workspace()
        dtype = _checks.float_dtype(dtype)
        (weights,) = _checks.seeds(None if seed is UNSET else seed, 1)
        super().__init__(cell.parameters(self.input_size, self.hidden_size, self.bias), dtype)
        if seed is not UNSET:
            self._draw(np.random.default_rng(weights))

    # ---- calls ------------------------------------------------------------------------------

    @public
    def __call__(self, x: Any, state: State = None) -> S:
        """Compute one step, and keep nothing for a backward: `forward` returns the pass.

        Parameters
        ----------
        x : array (B, I), or (I,): one row
            It has the cell's dtype.
        state : array (B, H) or None; for an LSTMCell a pair (h, c) of such
            The state before the step, (H,) for one row; None means zeros.

        Returns
        -------
        h : array (B, H) or (H,); for an LSTMCell the pair (h, c)
            The state after the step.

        Raises
        ------
        TypeError
            If an argument is not numeric or of another dtype, or the state is not of the cell.
        ValueError
            If a shape does not fit.
        """
        return self._step(x, state, False)[0]

    @overload
    def forward(
        self, x: Any, state: State = None, *, grad: Literal[True] = True
    ) -> tuple[S, CellPass[S]]: ...
    @overload
    def forward(
        self, x: Any, state: State = None, *, grad: bool
    ) -> tuple[S, CellPass[S] | None]: ...
    @public
    def forward(
        self, x: Any, state: State = None, *, grad: bool = True
    ) -> tuple[S, CellPass[S] | None]:
        """Compute one step, and return the pass to go back through.

        Parameters
        ----------
        x, state : as of a call
            With a pass, do not change x before its backward; the state may change.
        grad : bool
            Whether a pass is wanted.

        Returns
        -------
        h : as of a call; for an LSTMCell the pair (h, c)
        p : CellPass or None
            ``p.backward(dh)``; None without `grad`.

        Raises
        ------
        TypeError, ValueError
            As of a call; also if a pass is wanted of a cell in the mode "bfloat16".
        """
        return self._step(x, state, grad)

    def _step(self, x: Any, state: State, grad: bool) -> tuple[S, CellPass[S] | None]:
        I, dtype, grad = self.input_size, self.flat.dtype, _checks.flag("grad", grad)
        if type(x) is not np.ndarray:
            x = _checks.numeric("x", x, dtype)
        batched = x.ndim != 1
        x = _checks.array("x", x, dtype, ("B", I) if batched else (I,), self._explain)
        x = x[None] if batched else x[None, None]
        B = x.shape[1]
        before = None
        if state is not None:
            before = self._checked_state(("state", "", "0"), state, (B,) if batched else (), (1, B))
        if grad:
            self.check_pass()
        (weights,) = self._weights if self.mode == "training" else self._packed()
        after, state = [], []  # arrays (1, B, width), and views as the caller has them
        for width in self.state_widths:
            after.append(a := _checks.empty((1, B, width), dtype))
            state.append(a[0] if batched else a[0, 0])
        # of one step the output is the final state: the kernel fills it once
        tape = self._kernels.forward(self._kinds[0], x, None, weights, _FORWARD, before, after[0],
                                     tuple(after), grad, self._workspace)
        p = None if tape is None else CellPass(self, tape, batched, self.version)
        of_cell: Any = state[0] if len(state) == 1 else tuple(state)
        return of_cell, p

    def _explain(self, x: np.ndarray) -> str:
        """Return what to add to the sentence about an x of a wrong shape."""
        if x.ndim not in (1, 2):
            return f" or ({self.input_size},): one step"
        return f": x has {x.shape[-1]} features, weight_ih expects {self.input_size}"

    # ---- weights ----------------------------------------------------------------------------

    def _own(self, shapes: Shapes, flat: np.ndarray, flat_grads: np.ndarray) -> None:
        super()._own(shapes, flat, flat_grads)
        self.__dict__ |= {"_weights": [(self._in_order(self._params),)],
                          "_own_grads": (self._in_order(self._grads),)}

    def _in_order(self, named: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
        """Return the cell's parameters in their order; a bias may be missing: None."""
        names = self.cell.parameters(self.input_size, self.hidden_size, True)
        return tuple(map(named.get, names))

    # ---- copies and print -------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make a cell of the same shapes, and its class as "layer"."""
        return {"layer": type(self).__name__, "input_size": self.input_size,
                "hidden_size": self.hidden_size, "bias": self.bias, "dtype": self.dtype.name}

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_packs", "_workspace", "_weights", "_own_grads", "_kinds", "_kernels")
        return {name: value for name, value in super().__getstate__().items()
                if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_workspace": Workspace()})

    def __repr__(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        parts += [f"{name}={self.config[name]!r}"
                  for name, default in {"bias": True, "nonlinearity": "tanh"}.items()
                  if self.config.get(name, default) != default]
        if self.dtype != np.float32:
            parts.append(f"dtype={self.dtype.name}")
        return f"{type(self).__name__}({', '.join(parts)})"


def _as_state(arrays: tuple[np.ndarray, ...], batched: bool) -> State:
    """Return arrays (1, B, H) as the caller has a state."""
    if len(arrays) == 1:
        return arrays[0][0] if batched else arrays[0][0, 0]
    return tuple([a[0] if batched else a[0, 0] for a in arrays])


class CellPass(Generic[S]):
    """One forward of a single cell, to go back through: ``h, p = cell.forward(x, h)``.

    It refers to x and to the weights: leave them as they are until backward. The state before the
    step is copied. Any number of passes of one cell may exist at once.

    Attributes
    ----------
    cell : RNNCell, LSTMCell or GRUCell
    spent : bool
        Whether it has had its backward.
    """

    __slots__ = ("_batched", "_tape", "_version", "cell", "spent")

    def __init__(
        self, cell: SingleCell[S], tape: AnyTape | None, batched: bool, version: int
    ) -> None:
        self.cell = cell
        self.spent = False
        self._tape = tape
        self._batched = batched
        self._version = version

    def __copy__(self) -> CellPass[S]:
        """Return a pass through the same cell that goes back by itself."""
        tape = None if self._tape is None else self._tape.copy()
        made = CellPass(self.cell, tape, self._batched, self._version)
        made.spent = self.spent
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of the tape."""
        return 0 if self._tape is None else self._tape.nbytes

    @overload
    def backward(
        self, dstate: Any, *, need_dx: Literal[True] = True,
        grads: Mapping[str, np.ndarray] | None = None, retain: bool = False,
    ) -> tuple[np.ndarray, S]: ...
    @overload
    def backward(
        self, dstate: Any, *, need_dx: bool,
        grads: Mapping[str, np.ndarray] | None = None, retain: bool = False,
    ) -> tuple[np.ndarray | None, S]: ...
    @public
    def backward(
        self, dstate: Any, *, need_dx: bool = True,
        grads: Mapping[str, np.ndarray] | None = None, retain: bool = False,
    ) -> tuple[np.ndarray | None, S]:
        """Backpropagate through the step, and add to the cell's `grads` or to those given.

        Parameters
        ----------
        dstate : array like h, or None; for an LSTMCell a pair (dh, dc)
            Gradient of the loss with respect to the state after the step: of what reads it, and of
            later steps, summed. None, as a whole or of one, means zero.
        need_dx : bool
            False saves the work for the gradient of the input.
        grads : mapping of names to arrays, optional
            Arrays to add the parameters' gradients to, instead of to the cell's own: see
            `new_grads`. Then several threads can go back through one cell at once.
        retain : bool
            Keep the pass, so that it can go back again. It costs one copy of the tape.

        Returns
        -------
        dx : array like x, or None
            Gradient with respect to x; None without `need_dx`.
        dstate0 : array like h; for an LSTMCell the pair (dh0, dc0)
            Gradient with respect to the state before the step.

        Raises
        ------
        RuntimeError
            If the pass is spent, if the library has changed the parameters since forward, or if
            another thread is adding to the same gradients.
        TypeError, ValueError
            If an argument does not fit; the pass can then be used again.
        """
        cell, tape = self.cell, self._tape
        check_unspent(self.spent or tape is None, cell, self._version)
        assert tape is not None
        dtype = cell.flat.dtype
        _, B, I = tape.shape[:3]
        after = None
        if dstate is not None:
            after = cell._checked_state(("dstate", "d", ""), dstate, (B,) if self._batched else (),
                                        (1, B))
        into = cell._own_grads
        if grads is not None:
            check_grads(cell, grads)
            into = (cell._in_order(grads),)
        wanted, retain = _checks.flag("need_dx", need_dx), _checks.flag("retain", retain)
        dx = np.empty((B, I) if self._batched else I, dtype) if wanted else None
        before = cell._new_states(1, B)
        with adding(into[0][0]):
            if retain:
                tape = tape.copy()
            else:
                self.spent, self._tape = True, None
            cell._kernels.backward(tape, None, after, None if dx is None else dx.reshape(1, B, I),
                                   before, into)
        return dx, _as_state(before, self._batched)


class RNNCell(SingleCell[np.ndarray]):
    """One step of Elman's network, h' = phi(W_ih x + b_ih + W_hh h + b_hh): torch.nn.RNNCell.

    Parameters
    ----------
    input_size : int
        Features I of the input.
    hidden_size : int
        Units H.
    bias : bool
        Whether there are the two biases.
    nonlinearity : {"tanh", "relu", "sigmoid"}
        The activation phi.
    dtype : float32 or float64
        Dtype of parameters, inputs and results.
    seed : int or None
        Seed of the initial weights (uniform in +-1/sqrt(H), as torch's): a layer of one direction
        has the same numbers for it. None: a random seed.

    Attributes
    ----------
    flat, flat_grads, grads, mode, training
        See fastrnn.layers.parameters.

    Raises
    ------
    ValueError
        If a size is not a whole number of at least 1, or another argument is out of its range.

    Examples
    --------
    >>> cell = fastrnn.RNNCell(8, 16, seed=0)
    >>> h, passes = None, []
    >>> for x in np.zeros((5, 3, 8), np.float32):  # T = 5 steps, B = 3 rows
    ...     h, p = cell.forward(x, h)
    ...     passes.append(p)
    >>> h.shape
    (3, 16)
    >>> dh = np.ones_like(h)
    >>> for p in reversed(passes):
    ...     dx, dh = p.backward(dh)  # adds to cell.grads
    """

    _fixed = SingleCell._fixed | {"nonlinearity"}

    @public
    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh", *,
        dtype: Any = np.float32, seed: Any = None,
    ) -> None:
        self.nonlinearity = _checks.one_of("nonlinearity", nonlinearity, vanilla())
        super().__init__(vanilla()[nonlinearity], input_size, hidden_size, bias, dtype, seed)

    @property
    def config(self) -> dict[str, Any]:  # noqa: D102, documented in the base class
        return super().config | {"nonlinearity": self.nonlinearity}


class LSTMCell(SingleCell[tuple[np.ndarray, np.ndarray]]):
    """One step of an LSTM with forget gates: torch.nn.LSTMCell's equations, gate order i f g o.

    Parameters
    ----------
    input_size, hidden_size, bias, dtype, seed
        As of RNNCell.

    Attributes
    ----------
    flat, flat_grads, grads, mode, training
        See fastrnn.layers.parameters.

    Raises
    ------
    ValueError
        If a size is not a whole number of at least 1, or another argument is out of its range.

    Examples
    --------
    >>> cell = fastrnn.LSTMCell(8, 16, seed=0)
    >>> x = np.zeros((3, 8), np.float32)  # B = 3 rows
    >>> h, c = cell(x)
    >>> (h, c), p = cell.forward(x, (h, c))
    >>> dx, (dh0, dc0) = p.backward((np.ones_like(h), None))  # cell.grads has the gradients
    """

    @public
    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, *, dtype: Any = np.float32,
        seed: Any = None,
    ) -> None:
        super().__init__(CELLS["lstm"], input_size, hidden_size, bias, dtype, seed)


class GRUCell(SingleCell[np.ndarray]):
    """One step of gated recurrent units: torch.nn.GRUCell's equations, gate order r z n.

    Parameters
    ----------
    input_size, hidden_size, bias, dtype, seed
        As of RNNCell.

    Attributes
    ----------
    flat, flat_grads, grads, mode, training
        See fastrnn.layers.parameters.

    Raises
    ------
    ValueError
        If a size is not a whole number of at least 1, or another argument is out of its range.

    Examples
    --------
    >>> cell = fastrnn.GRUCell(8, 16, seed=0)
    >>> x = np.zeros((3, 8), np.float32)  # B = 3 rows
    >>> h, p = cell.forward(x)
    >>> dx, dh0 = p.backward(np.ones_like(h))  # cell.grads has the gradients
    """

    @public
    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, *, dtype: Any = np.float32,
        seed: Any = None,
    ) -> None:
        super().__init__(CELLS["gru"], input_size, hidden_size, bias, dtype, seed)


SINGLE: dict[str, type[SingleCell]] = {
    single.__name__: single for single in (RNNCell, LSTMCell, GRUCell)}
