"""Weights packed for the kernels, and weights as bfloat16, two in a 32-bit word.

With bfloat16 a step reads half the bytes.

A word holds the weight of an even k in its low half, as a bfloat16 (the upper 16 bits of a
float32), and that of the next, odd k in the word itself, read as a float32: its upper half is
chosen so that the whole word, low half included, comes nearest to the weight. So one shift by 16
bits unpacks two weights, and both are off by at most 2^-8 of themselves (2^-9 and a half more where
rounding meets a power of two).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn._kernels import sequence
from fastrnn._kernels.packed import Packed
from fastrnn._kernels.runtime import get_isa
from fastrnn.cells import Cell
from fastrnn.layers.engine import Engine
from fastrnn.layers.parameters import Part, Shapes

if TYPE_CHECKING:
    from fastrnn._kernels.packed import _Weights as Weights
    from fastrnn.cells.table import AnyCell
    from fastrnn.layers.engine import States

__all__ = ["PackedPart", "pack", "pair"]

_SIGN, _LARGEST = np.uint32(0x8000_0000), np.int64(0x7F7F)  # the largest finite upper half


def _upper_half(bits: np.ndarray, below: np.ndarray | int) -> np.ndarray:
    """Return the upper halves that, with `below` as lower halves, come nearest to float32 bits."""
    magnitude = (bits & ~_SIGN).astype(np.int64)
    rounded = (magnitude - below + 0x8000) >> 16
    rounded = np.where(magnitude > _LARGEST << 16, magnitude >> 16, rounded.clip(0, _LARGEST))
    return rounded.astype(np.uint32) | ((bits & _SIGN) >> 16)


def pack(number: int, weights: Weights, half: bool) -> Packed:
    """Return one direction's weights in the kernels' panels.

    Parameters
    ----------
    number : int
        Number of the cell, see fastrnn.cells.
    weights : tuple
        (weight_ih, weight_hh, bias_ih or None, bias_hh or None).
    half : bool
        Whether steps shall read bfloat16 words.
    """
    if not half:
        return Packed(number, weights)
    (w_ih, words_ih), (w_hh, words_hh) = map(pair, weights[:2])
    return Packed(number, (w_ih, w_hh, *weights[2:]), (words_ih, words_hh))


def pair(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round weights and pair them.

    Parameters
    ----------
    weight : float32 (N, K)

    Returns
    -------
    rounded : float32 (N, K)
        The weights that a step with these words computes with.
    words : float32 (N, (K + 1) // 2)
        Words of columns 2j and 2j + 1; the last of an odd K has no second.
    """
    N, K = weight.shape
    bits = np.zeros((N, K + K % 2), np.uint32)
    bits[:, :K] = np.ascontiguousarray(weight).view(np.uint32)
    low = _upper_half(bits[:, 0::2], 0)
    words = (_upper_half(bits[:, 1::2], low.astype(np.int64)) << 16) | low
    bits[:, 0::2], bits[:, 1::2] = low << 16, words
    return np.ascontiguousarray(bits[:, :K]).view(np.float32), words.view(np.float32)


class PackedPart(Part):
    """A part with the weights of a recurrent cell: evaluation's modes keep them packed.

    Attributes
    ----------
    cell : Cell
        Its row of the table in fastrnn.cells, or another cell.
    input_size, hidden_size : int
    bias : bool
    has_c : bool
        Whether a state is the pair (h, c) of the table's LSTM.
    state_widths : tuple of int
        The width of each state of the cell: H for the table's cells.
    output_size : int
        Features O of one direction's output: H for the table's cells.
    """

    cell: AnyCell
    input_size: int
    hidden_size: int
    bias: bool
    has_c: bool
    state_widths: tuple[int, ...]
    output_size: int
    _kernels: Engine = sequence  # what computes the cell
    _kinds: list[Any]            # what it computes, by stacked layer
    _weights: list[tuple[Weights, ...]]  # by stacked layer and direction
    _packs: list[tuple[Packed, ...]] | None = None
    _packed_for = ""  # the instruction set
    _masked = False  # whether a step of the cell has masks that training draws

    def _use_cell(self, cell: AnyCell) -> None:
        """Set the cell, and what follows from it and the sizes."""
        sizes = {"I": self.input_size, "H": self.hidden_size}
        self.cell = cell
        self.has_c = isinstance(cell, Cell) and cell.has_c
        self.state_widths = tuple(cell.state_widths(sizes))
        self.output_size = cell.output_width(sizes)

    def _draw(self, rng: np.random.Generator) -> None:
        """Draw the initial parameters."""
        if self.cell.form_of is not None:
            bound = 1 / math.sqrt(self.hidden_size)
            self.flat[:] = rng.uniform(-bound, bound, self.flat.size)
            return
        for number, directions in enumerate(self._weights):
            I = self._input_size_of(number)
            names = self.cell.parameters(I, self.hidden_size, self.bias)
            for arrays in directions:
                for name, array in zip(names, arrays, strict=True):
                    array[...] = self.cell.draw(  # type: ignore[index, attr-defined]
                        name, rng, I, self.hidden_size, self.flat.dtype)

    @property
    def _levels(self) -> int:
        """How many layers are stacked."""
        return 1

    def _input_size_of(self, number: int) -> int:
        """Return the features that a stacked layer reads."""
        return self.input_size

    def _own(self, shapes: Shapes, flat: np.ndarray, flat_grads: np.ndarray) -> None:
        super()._own(shapes, flat, flat_grads)
        self._choose_kernels()

    def _choose_kernels(self) -> None:
        """Set what computes the cell: the kernels of the table's cells, or the cell's programs."""
        if isinstance(self.cell, Cell):
            self.__dict__["_kinds"] = [self.cell.number] * self._levels
            return
        # takes milliseconds, which the table's cells save
        from fastrnn.cells.instance import Plan
        from fastrnn.layers.programs import PROGRAMS

        kinds: dict[int, Any] = {}
        for number in range(self._levels):
            I = self._input_size_of(number)
            if I not in kinds:
                kinds[I] = Plan(self.cell, I, self.hidden_size, self.bias)  # type: ignore[arg-type]
        self.__dict__ |= {"_kernels": PROGRAMS, "_kinds": [
            kinds[self._input_size_of(number)] for number in range(self._levels)],
            "_masked": any(kind.draws for kind in kinds.values())}

    def _checked_state(
        self, names: tuple[str, str, str], value: Any, shape: tuple[int, ...],
        padded: tuple[int, ...],
    ) -> States:
        """Return the arrays of a state, or of a gradient of one, as the kernels take them.

        Parameters
        ----------
        names : tuple of str
            What a tuple of arrays is called, and, before and after the state's name, a single one.
        shape, padded : tuples of int
            What the caller's arrays have before their widths, and what the kernels' have.
        """
        states, name, shapes = self.cell.states, names[0], []
        if len(states) == 1:
            name = names[1] + states[0] + names[2]
        for width in self.state_widths:
            shapes.append((*shape, width))
        arrays = _checks.states(name, value, states, self.flat.dtype, shapes)
        if shape == padded:
            return arrays
        return tuple([None if a is None else a.reshape(*padded, a.shape[-1]) for a in arrays])

    def _new_states(self, rows: int, B: int) -> tuple[np.ndarray, ...]:
        """Return an array (rows, B, width) for each state."""
        made, dtype = [], self.flat.dtype
        for width in self.state_widths:
            made.append(_checks.empty((rows, B, width), dtype))
        return tuple(made)

    def check_pass(self) -> None:
        """Refuse a pass in the mode "bfloat16"."""
        if self.mode == "bfloat16":
            raise RefusedValue("a pass is wanted in the mode 'bfloat16', expected eval() or "
                               "train(): rounded weights have no backward")

    def _packed(self) -> list[tuple[Packed, ...]]:
        """Return, for each layer and direction, the weights in the kernels' panels."""
        if self.mode == "training":
            return self._pack("training")
        packs = self._packs
        if packs is None or self._packed_for != get_isa():
            packs = self._pack(self.mode)
            self.__dict__ |= {"_packs": packs, "_packed_for": get_isa()}
        return packs

    def _pack(self, mode: str) -> list[tuple[Packed, ...]]:
        half = mode == "bfloat16"
        return [tuple(self._pack_one(number, weights, half) for weights in directions)
                for number, directions in enumerate(self._weights)]

    def _pack_one(self, number: int, weights: Weights, half: bool) -> Packed:
        """Return one direction's weights as the kernels read them in evaluation."""
        kind = self._kinds[number]
        if isinstance(self.cell, Cell):
            return pack(kind, weights, half)
        if half:  # rounded as the other cells' are, but not stored in half the bytes
            weights = tuple(  # type: ignore[assignment]
                a if a is None or a.ndim == 1 else pair(a)[0] for a in weights)
        return kind.packed(weights, self.flat.dtype)  # type: ignore[no-any-return]

    def set_mode(self, mode: str) -> None:
        """Choose one of MODES; the weights are packed on entering one of evaluation's."""
        if mode == self.mode:
            return
        packs = None if mode == "training" else self._pack(mode)
        super().set_mode(mode)
        self.__dict__ |= {"_packs": packs, "_packed_for": get_isa()}
