"""The operator Scan of ONNX: a graph that is computed for each step of a sequence in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn.formats.onnx_nodes import Node
from fastrnn.formats.onnx_shapes import axis_of, sized

__all__ = ["Scan"]


class Scan:
    """A node Scan: states go from step to step, sequences are cut along an axis.

    The inputs of the node and of its body are states, and then sequences or their steps; the
    outputs are final states, and then sequences.

    Parameters
    ----------
    node : Node
    """

    def __init__(self, node: Node) -> None:
        if node.opset < 9:
            raise RefusedValue("it has the form before opset 9, expected a later one")
        self._sequences = node.whole("num_scan_inputs", 0)
        self._lists = {name: node.wholes(name) for name in (
            "scan_input_axes", "scan_input_directions", "scan_output_axes",
            "scan_output_directions")}
        node.check_all_used()

    def read(self, node: Node, outputs: int) -> None:
        """Check the attributes, now that the number of the body's outputs is known."""
        self._states = len(node.inputs) - self._sequences
        made = outputs - self._states
        if self._sequences < 1 or self._states < 0 or made < 0 or len(node.outputs) > outputs:
            raise RefusedValue(f"it has {len(node.inputs)} inputs, {self._sequences} of them "
                               f"sequences, and {len(node.outputs)} outputs; its body has "
                               f"{outputs}")
        self._axes, self._backwards, self._out_axes, self._out_backwards = (
            self._list(name, count) for name, count in zip(
                self._lists, (self._sequences, self._sequences, made, made), strict=True))

    def _list(self, name: str, count: int) -> tuple[int, ...]:
        numbers = self._lists[name]
        if numbers is None:
            return (0,) * count
        if len(numbers) != count or ("directions" in name and not set(numbers) <= {0, 1}):
            raise RefusedValue(f"its {name} is {_checks.show(numbers)}, expected {count} numbers")
        return tuple(numbers)

    def __call__(
        self, step: Callable[..., tuple[Any, ...]], inputs: Sequence[np.ndarray],
        around: Sequence[Any],
    ) -> tuple[Any, ...]:
        """Return the outputs for inputs, and values of the graphs around that a step reads."""
        n = self._states
        states, sequences = tuple(inputs[:n]), [
            np.moveaxis(a, axis_of(axis, a.ndim), 0)[:: -1 if backwards else 1]
            for a, axis, backwards in zip(inputs[n:], self._axes, self._backwards, strict=True)]
        T = len(sequences[0])
        if any(len(a) != T for a in sequences) or T < 1:
            raise RefusedValue(f"its sequences have {[len(a) for a in sequences]} steps, expected "
                               "the same number, at least 1")
        made: list[np.ndarray] = []
        for t in range(T):
            results = step(*states, *(a[t] for a in sequences), *around)
            states, parts = results[:n], results[n:]
            if not t:
                made = [np.empty(sized((T, *a.shape)), a.dtype) for a in parts]
            for whole, part in zip(made, parts, strict=True):
                if part.shape != whole.shape[1:] or part.dtype != whole.dtype:
                    raise RefusedValue(f"an output of its body has the shape {whole.shape[1:]}, "
                                       f"and in step {t} {part.shape}")
                whole[t] = part
        return *states, *(
            np.moveaxis(a[:: -1 if backwards else 1], 0, axis_of(axis, a.ndim))
            for a, axis, backwards in zip(made, self._out_axes, self._out_backwards, strict=True))
