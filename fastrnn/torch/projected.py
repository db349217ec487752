"""Calls of PyTorch's LSTM with a projected h (`proj_size`), computed by the program of this form.

`read_projected` and `ProjectedCall` are for such calls what `read_sequence` and `Call` of door.pyx
are for all others. The cell is a program (fastrnn.cells.forms), so this module works with arrays of
NumPy on the memory of the tensors.

Letters: T steps, B batch, N rows of a packed sequence, I input, H hidden, P projected h, L layers,
D directions.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from fastrnn._kernels.runtime import Workspace, borrow_threads
from fastrnn._kernels.timeline import Timeline
from fastrnn.cells.forms import Form
from fastrnn.cells.instance import Instance, Plan
from fastrnn.layers.programs import PROGRAMS
from fastrnn.torch.door import Operator, bucket, read_tensor
from fastrnn.torch.reading import DIRECTIONS, read_lengths, sizes_of

__all__ = ["ProjectedCall", "has_projection", "read_projected"]

Tensor = torch.Tensor

_TYPES = {torch.float32: np.float32, torch.float64: np.float64}

_workspace = Workspace()


@functools.lru_cache(maxsize=128)
def _plan(P: int, I: int, H: int, bias: bool) -> tuple[Plan, tuple[int, ...]]:
    """Return the program, and of each of its parameters the place among PyTorch's."""
    form = Form("lstm_projected", {"P": P})
    theirs = list(form.parameters(I, H, bias))
    return Plan(form, I, H, bias), tuple(
        theirs.index(name) for name in Instance.parameters(form, I, H, bias))


class ProjectedCall:
    """One call of the LSTM with a projection: its tensors, what it computes, and how.

    Attributes
    ----------
    op : Operator
    num_layers, directions : int
    bias, batch_first : bool
    batch_sizes : Tensor or None
        Of a packed sequence; the input is then (N, I).
    T, B, input_size, hidden_size, proj_size : int
    x, h0, c0 : Tensor
    weights : list of Tensor
        In the order of PyTorch's `_flat_weights`.
    keep : bool
        Whether backward will follow.
    key : tuple
        What the time of the call depends on.
    places : list of int
        Addresses of x and the weights.
    """

    def __init__(
        self, op: Operator, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor,
        weights: list[Tensor], bias: bool, num_layers: int, directions: int, batch_first: bool,
    ) -> None:
        self.op, self.batch_sizes, self.bias, self.batch_first = op, batch_sizes, bias, batch_first
        self.num_layers, self.directions = num_layers, directions
        self.x = x if x.dim() and x.stride(-1) == 1 else x.contiguous()
        self.h0, self.c0 = h0.contiguous(), c0.contiguous()
        self.weights = [weight.contiguous() for weight in weights]
        self.input_size, self.proj_size = x.shape[-1], h0.shape[-1]
        self.hidden_size = c0.shape[-1]
        self.T = self.B = 0
        self.time: Timeline | None = None
        self.threads = torch.get_num_threads()
        self.keep = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in self.tensors())
        self.key: tuple[Any, ...] = ()
        self.places = self._places()

    def tensors(self) -> list[Tensor]:
        """Return x, h0, c0 and the weights."""
        return [self.x, self.h0, self.c0, *self.weights]

    def own_x(self, with_grad: bool = False) -> None:
        """Copy a batch-first input (without or with gradient), as PyTorch does: it may change."""
        if self.batch_first and self.x.requires_grad == with_grad:
            self.x = self.x.clone()
            self.places = self._places()

    def split(self, needs: tuple[bool, ...]) -> tuple[list[Tensor], tuple[()], tuple[()]]:
        """Return the tensors that autograd must save: all; what it need not, and the versions."""
        self.own_x()
        return self.tensors(), (), ()

    def is_in_place(self, with_x: bool) -> bool:
        """Whether what backward reads lies where it lay."""
        return self._places() == self.places

    def _places(self) -> list[int]:
        return [tensor.data_ptr() for tensor in (self.x, *self.weights)]

    def __str__(self) -> str:
        return sizes_of(self, f" P {self.proj_size}")

    # ---- what is computed ------------------------------------------------------------------------

    def read(self) -> str | None:
        """Find T, B and the lengths; return why PyTorch must compute the call, or None."""
        if self.x.dim() != (3 if self.batch_sizes is None else 2):
            return "the shape of the input"
        if self.batch_sizes is None:
            self.T, self.B = self.x.shape[self.batch_first], self.x.shape[not self.batch_first]
        else:
            lengths = read_lengths(self.batch_sizes, len(self.x))
            if lengths is None:
                return "the batch sizes"
            self.T, self.B, self.time = lengths
        rows, H, P = self.num_layers * self.directions, self.hidden_size, self.proj_size
        if min(self.T, self.B, self.input_size, H, P) < 1:
            return "a size is 0"
        if self.h0.shape != (rows, self.B, P) or self.c0.shape != (rows, self.B, H):
            return "the shape of hx"
        expected: list[tuple[int, ...]] = []
        for layer in range(self.num_layers):
            width = self.directions * P if layer else self.input_size
            own: list[tuple[int, ...]] = [(4 * H, width), (4 * H, P)]
            own += [(4 * H,), (4 * H,)] if self.bias else []
            expected += [*own, (P, H)] * self.directions
        if [tuple(weight.shape) for weight in self.weights] != expected:
            return "the shape of a weight"
        self.key = (self.op.function, "projected", bucket(self.T), bucket(self.B),
                    self.input_size, H, P, self.num_layers, self.directions, self.bias,
                    self.batch_first, self.time is None, self.x.element_size(),
                    self.keep + (self.keep and self.x.requires_grad), self.threads)
        return None

    def _outer(self, array: np.ndarray) -> np.ndarray:
        """Return the array (T, B, ...) of an input or output, or (N, ...) of ragged rows."""
        if self.batch_sizes is not None:
            return array if self.time is not None else array.reshape(self.T, self.B, -1)
        return array.transpose(1, 0, 2) if self.batch_first else array

    def _rows(self, layer: int) -> slice:
        """Return where a layer is among the rows (L*D) of a state."""
        return slice(layer * self.directions, (layer + 1) * self.directions)

    def _layer(self, arrays: list[np.ndarray | None], layer: int) -> tuple[Any, ...]:
        """Return the arrays of each direction of a layer, in the order of the program."""
        order = self._program(layer)[1]
        return tuple(
            tuple(arrays[row * len(order) + place] for place in order)
            for row in range(self._rows(layer).start, self._rows(layer).stop))

    def _program(self, layer: int) -> tuple[Plan, tuple[int, ...]]:
        I = self.directions * self.proj_size if layer else self.input_size
        return _plan(self.proj_size, I, self.hidden_size, self.bias)

    def forward(self, keep: bool) -> tuple[tuple[Tensor, ...], list[Any] | None]:
        """Compute the outputs.

        Returns
        -------
        outputs : tuple of Tensor
            (y, hn, cn).
        tapes : list or None
            One for each layer, if `keep`.
        """
        dtype, width = self.x.dtype, self.directions * self.proj_size
        hn, cn = torch.empty(self.h0.shape, dtype=dtype), torch.empty(self.c0.shape, dtype=dtype)
        if self.batch_first:  # it lies in memory as PyTorch's own; in place, so it is no view
            y = torch.empty((self.T, self.B, width), dtype=dtype).transpose_(0, 1)
        else:
            y = torch.empty((*self.x.shape[:-1], width), dtype=dtype)
        weights: list[np.ndarray | None] = [_borrowed(weight) for weight in self.weights]
        h0, c0 = map(_borrowed, (self.h0, self.c0))
        h_final, c_final = map(_array, (hn, cn))
        layout = "time" if self.time is None else "packed"
        source, tapes = self._outer(_borrowed(self.x)), []
        borrow_threads(self.threads)
        try:
            for layer in range(self.num_layers):
                rows = self._rows(layer)
                target = np.empty((*source.shape[:-1], width), source.dtype)
                if layer == self.num_layers - 1:
                    target = self._outer(_array(y))
                tapes.append(PROGRAMS.forward(
                    self._program(layer)[0], source, None, self._layer(weights, layer),
                    DIRECTIONS[self.directions], (h0[rows], c0[rows]), target,
                    (h_final[rows], c_final[rows]), keep, _workspace, self.time, layout, layout))
                source = target
        finally:
            borrow_threads(0)
        return (y, hn, cn), tapes if keep else None

    def backward(
        self, tapes: list[Any] | None, dy: Tensor | None, dhn: Tensor | None, dcn: Tensor | None,
        needs: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        """Compute the gradients from those of the outputs; uses the tapes up.

        Parameters
        ----------
        tapes : what forward returned
        dy, dhn, dcn : Tensor or None
        needs : tuple of bool
            Which gradients are wanted, in the order of `tensors`.

        Returns
        -------
        tuple of Tensor or None
            In the order of `tensors`.
        """
        assert tapes is not None
        made = [torch.zeros(tensor.shape, dtype=self.x.dtype) if need else None
                for tensor, need in zip(self.tensors(), needs, strict=True)]
        dx = made[0]
        arrays = [None if tensor is None else _array(tensor) for tensor in made[3:]]
        dh, dc = (np.empty(like.shape, _TYPES[self.x.dtype]) if tensor is None else _array(tensor)
                  for tensor, like in zip(made[1:3], (self.h0, self.c0), strict=True))
        above, dh_final, dc_final = map(self._gradient, (dy, dhn, dcn))
        above = None if above is None else self._outer(above)
        borrow_threads(self.threads)
        try:
            for layer in range(self.num_layers - 1, -1, -1):
                rows, below = self._rows(layer), None
                if layer:
                    below = np.empty(tapes[layer].x_shape, dh.dtype)
                elif dx is not None:
                    below = self._outer(_array(dx))
                PROGRAMS.backward(
                    tapes[layer], above,
                    tuple(None if a is None else a[rows] for a in (dh_final, dc_final)), below,
                    (dh[rows], dc[rows]), self._layer(arrays, layer))
                above = below
        finally:
            borrow_threads(0)
        return tuple(made)

    def _gradient(self, tensor: Tensor | None) -> np.ndarray | None:
        """Return the array of an output's gradient, or None: zero."""
        if tensor is None or tensor._is_zerotensor():
            return None
        plain = tensor.detach().resolve_neg().to(self.x.dtype).contiguous()
        array: np.ndarray | str = read_tensor(plain, 0)
        if isinstance(array, str):  # of a subclass, or not aligned
            array = _array(plain.as_subclass(torch.Tensor).clone())
        return array


def _borrowed(tensor: Tensor) -> np.ndarray:
    """Return the array of a user's tensor, whose memory the user can still free or resize."""
    array: np.ndarray = read_tensor(tensor, 0)
    return array


def _array(tensor: Tensor) -> np.ndarray:
    """Return the array of a new tensor, to be written to."""
    array: np.ndarray = tensor.detach().numpy()
    return array


def has_projection(
    op: Operator, weights: Any, bias: bool, num_layers: int, directions: int,
) -> bool:
    """Whether weights are those of an LSTM with a projection, by their number."""
    return op.function == "lstm" and len(weights) == num_layers * directions * (5 if bias else 3)


def read_projected(
    op: Operator, x: Any, batch_sizes: Any, h0: Any, c0: Any, weights: Any, bias: bool,
    num_layers: int, directions: int, batch_first: bool,
) -> ProjectedCall | str:
    """Return the call of an LSTM with a projection, or a str: why PyTorch must compute it.

    Parameters
    ----------
    op : Operator
    x : Tensor (T, B, I), (B, T, I), or with batch_sizes (N, I)
    batch_sizes : Tensor int64 (T,), or None
    h0 : Tensor (L*D, B, P)
    c0 : Tensor (L*D, B, H)
    weights : list of Tensor
        Of each layer and direction weight_ih, weight_hh, bias_ih, bias_hh and weight_hr.
    bias : bool
    num_layers, directions : int
    batch_first : bool
    """
    if not has_projection(op, weights, bias, num_layers, directions):
        return "the number of weights"
    size = 0
    for tensor in (x, h0, c0, *weights):
        array = read_tensor(tensor, size)
        if isinstance(array, str):
            return array
        size = array.itemsize
    if x.dim() < 2 or h0.dim() != 3 or c0.dim() != 3:
        return "the shape of the input or of hx"
    call = ProjectedCall(op, x, batch_sizes, h0, c0, list(weights), bias, num_layers, directions,
                         batch_first)
    return call.read() or call
