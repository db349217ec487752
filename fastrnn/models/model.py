"""What all models share: a list of parts, modes, copies, a table to print, predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn.layers.parameters import Parametrized, Part
from fastrnn.layers.recurrent import Recurrent

__all__ = ["Model"]


class Model(Parametrized):
    """Parts under names. It owns no parameters, so a part may belong to several models.

    Parameters
    ----------
    parts : dict of parts and models
        In the order in which `parameters` has them. The parts of a model are named
        "model.part".

    Attributes
    ----------
    distinct : tuple of parts
        Each once, even if it has several names.
    """

    _parts: dict[str, Part]
    distinct: tuple[Part, ...]
    _fixed: frozenset[str] = frozenset(["_parts", "distinct"])  # cannot be set again

    def __init__(self, parts: Mapping[str, Parametrized]) -> None:
        self._parts = {f"{name}.{inner}" if inner else name: part for name, of in parts.items()
                       for inner, part in of.parts().items()}
        self.distinct = tuple({id(part): part for part in self._parts.values()}.values())

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to replace what the model is made of, and to hide what looks like a buffer."""
        kind = type(self).__name__
        if name in ("flat", "flat_grads"):
            raise AttributeError(f"{kind} has no buffer of its own, each of its parts has one: see "
                                 "parts()")
        if name in self._fixed and name in self.__dict__:
            raise AttributeError(f"{name} is fixed when the {kind} is made; copy values in with "
                                 "load_state_dict, or make another model")
        if name in ("grads", "training"):
            raise AttributeError(f"{name} cannot be set; use train(), eval() or zero_grad()")
        object.__setattr__(self, name, value)

    def parts(self) -> dict[str, Part]:
        """Return the parts that own the parameters, by name."""
        return dict(self._parts)

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters have together; those of shared parts count once."""
        return sum(part.flat.size for part in self.distinct)

    @property
    def dtype(self) -> np.dtype:
        """Dtype of parameters, inputs and outputs: float32 or float64."""
        return self.distinct[0].flat.dtype

    @property
    def recurrent(self) -> list[Recurrent]:
        """All recurrent layers, in order."""
        return [part for part in self._parts.values() if isinstance(part, Recurrent)]

    @property
    def dropout_state(self) -> list[dict[str, Any]]:
        """The states of the generators that draw dropout's masks, of each recurrent layer."""
        return [layer.dropout_state for layer in self.recurrent]

    @dropout_state.setter
    def dropout_state(self, states: list[dict[str, Any]]) -> None:
        layers = self.recurrent
        if not isinstance(states, (list, tuple)) or len(states) != len(layers):
            raise ValueError(f"dropout_state is {_checks.show(states)}, expected a list with one "
                             f"state for each of {len(layers)} recurrent layers")
        for layer, state in zip(layers, states, strict=True):
            layer.dropout_state = state

    def _shapes_out(self) -> dict[str, str]:
        """Return what each part's output looks like, for the table, by the part's name."""
        return {}

    def __str__(self) -> str:
        """Return a table of the parts: output shapes, parameters, mode, dtype."""
        shapes = self._shapes_out()
        head = ("part", "layer", "output", "parameters", "mode", "dtype")
        lines = [(name, repr(part), shapes.get(name, ""), f"{part.flat.size:,}", part.mode,
                  part.dtype.name) for name, part in self._parts.items()]
        last = ("total", "", "", f"{self.num_parameters:,}", "", "")
        widths = [max(len(line[i]) for line in (head, *lines, last)) for i in range(len(head))]

        def line(cells: tuple[str, ...]) -> str:
            return "  ".join(cell.rjust(width) if i == 3 else cell.ljust(width)
                             for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
                             ).rstrip()

        return "\n".join([f"{self!r}", line(head), *map(line, lines), line(last)])

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {', '.join(map(repr, self.recurrent))}"
