"""What collects the nodes and tensors of an ONNX file that is written."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.formats.onnx_graph import needed

__all__ = ["Graph"]

OPSET = 17
IR = 8  # the version of the file format that goes with it


class Graph:
    """Collects the nodes and tensors of a file, or of a graph in it.

    Parameters
    ----------
    onnx : module
    dtype : dtype
        Of the numbers, where nothing else is said.
    around : Graph or None
        The graph of the file, which has the tensors, if this is one inside it.
    """

    def __init__(self, onnx: Any, dtype: np.dtype, around: Graph | None = None) -> None:
        self.onnx, self.dtype = onnx, dtype
        self.nodes: list[Any] = []
        self.tensors: dict[str, np.ndarray] = {} if around is None else around.tensors
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._count: list[int] = [0] if around is None else around._count

    def name(self, prefix: str) -> str:
        """Return a name that no other value has."""
        self._count[0] += 1
        return f"{prefix}_{self._count[0]}"

    def inside(self) -> Graph:
        """Return a graph for an attribute of a node."""
        return Graph(self.onnx, self.dtype, self)

    def add(self, op: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any
            ) -> Any:
        """Add a node; return the name of its output, or the names of several."""
        name = name or self.name(op)
        made = [f"{name}.out{i or ''}" for i in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), made, name=name,
                                                     **attributes))
        return made[0] if outputs == 1 else made

    def tensor(self, name: str, array: Any) -> str:
        """Add a tensor of the file; return its name."""
        self.tensors[name] = np.asarray(array, order="C")
        return name

    def axes(self, *numbers: int) -> str:
        """Return the name of a tensor of whole numbers."""
        return self.tensor("numbers." + "_".join(map(str, numbers)), np.array(numbers, np.int64))

    def number(self, value: float) -> str:
        """Return the name of a tensor with one number."""
        value = float(value)
        return self.tensor(f"number.{value!r}", np.array(value, self.dtype).reshape(()))

    def _info(self, name: str, dtype: Any, shape: tuple[Any, ...]) -> Any:
        helper = self.onnx.helper
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
                                             list(shape))

    def input(self, name: str, shape: tuple[Any, ...], dtype: Any = None) -> str:
        """Add an input; return its name."""
        self.inputs.append(self._info(name, dtype or self.dtype, shape))
        return name

    def output(self, name: str, value: str, shape: tuple[Any, ...]) -> None:
        """Add an output: this value under a name of its own."""
        self.nodes.append(self.onnx.helper.make_node("Identity", [value], [name],
                                                     name=f"to_{name}"))
        self.outputs.append(self._info(name, self.dtype, shape))

    def graph(self, name: str, tensors: bool = False) -> Any:
        """Return the GraphProto: the nodes, and if wanted the tensors, that outputs depend on."""
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs)
        nodes, read = needed(graph, [value.name for value in self.outputs])
        made = [self.onnx.numpy_helper.from_array(a, key) for key, a in self.tensors.items()
                if key in read] if tensors else []
        return helper.make_graph(nodes, name, self.inputs, self.outputs, made)

    def model(self, name: str) -> Any:
        """Return the ModelProto."""
        helper = self.onnx.helper
        return helper.make_model(self.graph(name, tensors=True), ir_version=IR,
                                 opset_imports=[helper.make_opsetid("", OPSET)],
                                 producer_name="fastrnn")
