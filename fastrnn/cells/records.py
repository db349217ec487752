"""What a definition consists of: its sizes, weights, vectors and states, and initial values.

Sizes are named: I the input's, H the hidden size, and those a definition declares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastrnn.cells.tree import Place

__all__ = ["Argument", "Initial", "Size", "State", "Vector", "Weight"]

Argument = float | str  # a number, or the name of a constant or size


@dataclass(frozen=True, slots=True)
class Size:
    """A further size, by default base * times // over.

    Attributes
    ----------
    name : str
    base : str
        I, H, an earlier size, or "1" if the default is a whole number.
    times, over : int
    """

    name: str
    base: str
    times: int = 1
    over: int = 1
    at: Place = field(default=Place(1, 1), compare=False)

    def default(self, sizes: Mapping[str, int]) -> int:
        """Return the default as a number, from the numbers of the earlier sizes."""
        base = 1 if self.base == "1" else sizes[self.base]
        return base * self.times // self.over


@dataclass(frozen=True, slots=True)
class Initial:
    """How the first values are drawn.

    Attributes
    ----------
    kind : str
        "uniform" without arguments is +-1/sqrt(H), with them (lo, hi); "normal" has (std,) for a
        weight and (mean, std) for a vector; "number" has one argument; "sparse" has (density,
        spectral radius); "orthogonal", "identity" and "zeros" have none.
    arguments : tuple
        Numbers, or names of constants.
    """

    kind: str
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix (blocks * rows, columns) that multiplies from the left.

    Attributes
    ----------
    name : str
    blocks : int
        Row blocks: the number of targets of the equations that use it.
    rows, columns : str
        Names of sizes; rows are those of one block.
    kind : {"plain", "antisymmetric", "dropconnect", "blocks"}
        What the step multiplies by; weights.py computes it from the parameter.
    arguments : tuple
        Of the kind: (gamma,), (rate,) or (number of blocks,).
    learned : bool
    initial : Initial
    at : Place
        Of the declaration, or else of the first use.
    """

    name: str
    blocks: int
    rows: str
    columns: str
    kind: str
    arguments: tuple[Argument, ...]
    learned: bool
    initial: Initial
    at: Place


@dataclass(frozen=True, slots=True)
class Vector:
    """A learned vector (blocks * width,): a bias, or a declared one, which has one block.

    Attributes
    ----------
    name : str
    blocks : int
    width : str
        Name of a size.
    initial : Initial
    bias : bool
    at : Place
        Of the declaration, or else of the first use.
    """

    name: str
    blocks: int
    width: str
    initial: Initial
    bias: bool
    at: Place


@dataclass(frozen=True, slots=True)
class State:
    """A state and the name of its width."""

    name: str
    width: str
