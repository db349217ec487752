"""Weights packed for the kernels, and weights as bfloat16, two in a 32-bit word.

With bfloat16 a step reads half the bytes.

A word holds the weight of an even k in its low half, as a bfloat16 (the upper 16 bits of a
float32), and that of the next, odd k in the word itself, read as a float32: its upper half is
chosen so that the whole word, low half included, comes nearest to the weight. So one shift by 16
bits unpacks two weights, and both are off by at most 2^-8 of themselves (2^-9 and a half more where
rounding meets a power of two).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastrnn._checks import RefusedValue
from fastrnn._kernels.packed import Packed
from fastrnn._kernels.runtime import get_isa
from fastrnn.layers.parameters import Part

if TYPE_CHECKING:
    from fastrnn._kernels.packed import Weights
    from fastrnn.cells import Cell

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
        Its row of the table in fastrnn.cells.
    input_size, hidden_size : int
    bias : bool
    """

    cell: Cell
    input_size: int
    hidden_size: int
    bias: bool
    _weights: list[tuple[Weights, ...]]  # by stacked layer and direction
    _packs: list[tuple[Packed, ...]] | None = None
    _packed_for = ""  # the instruction set

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
        return [tuple(pack(self.cell.number, weights, half) for weights in directions)
                for directions in self._weights]

    def set_mode(self, mode: str) -> None:
        """Choose one of MODES; the weights are packed on entering one of evaluation's."""
        if mode == self.mode:
            return
        packs = None if mode == "training" else self._pack(mode)
        super().set_mode(mode)
        self.__dict__ |= {"_packs": packs, "_packed_for": get_isa()}
