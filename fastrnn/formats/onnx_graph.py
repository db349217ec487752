"""Graphs of ONNX files as programs: lists of steps, each a function of arrays.

A program is made once. Whatever depends on constants alone is computed then, if it is small, and a
recurrent node with constant weights gets its layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrnn import _checks
from fastrnn._checks import Refused, RefusedType, RefusedValue
from fastrnn.formats.onnx_conv import CONVOLUTIONS
from fastrnn.formats.onnx_nodes import Node, Run, Tensors
from fastrnn.formats.onnx_operators import OPERATORS
from fastrnn.formats.onnx_recurrent import RECURRENT, RecurrentNode
from fastrnn.formats.onnx_scan import Scan
from fastrnn.formats.onnx_shapes import TooLargeNow, at_most
from fastrnn.layers.recurrent import Recurrent

__all__ = ["Compiler", "Program", "needed"]

DEEPEST = 16  # graphs inside graphs
_WITH_GRAPHS = ("If", "Scan")
_FREE = 2**20  # bytes that computed constants may have, whatever the size of the file


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Let an error name the node."""
    try:
        yield
    except _Named:
        raise
    except Exception as error:
        raise _named(name, error) from error


def _named(name: str, error: Exception) -> Exception:
    """Return an error that names the node."""
    if isinstance(error, MemoryError):
        return MemoryError(f"{name}: not enough memory")
    kind = _NamedType if isinstance(error, RefusedType) else _NamedValue
    return kind(f"{name}: {error}")


class _Named(Exception):
    """An error that names its node."""


class _NamedType(_Named, RefusedType):
    pass


class _NamedValue(_Named, RefusedValue):
    pass


class Step(NamedTuple):
    """A node that computes: the names of it and of what it reads, gives and is the last to read.

    It does not have the node, which has the file.
    """

    name: str
    run: Run
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...]


class Program:
    """A graph that can be run.

    Attributes
    ----------
    reads : tuple of str
        The names of values from outside.
    outputs : tuple of str
    """

    def __init__(
        self, steps: Sequence[Step], constants: Mapping[str, np.ndarray], reads: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        self.reads, self.outputs = tuple(reads), tuple(outputs)
        self._steps, self._constants = tuple(steps), dict(constants)

    @property
    def is_constant(self) -> bool:
        """Whether the outputs are constants."""
        return not self.reads and not self._steps

    def __call__(self, *values: Any) -> tuple[Any, ...]:
        """Return the outputs for the values of `reads`."""
        known: dict[str, Any] = self._constants | dict(zip(self.reads, values, strict=True))
        for step in self._steps:
            known[""] = None  # an input that is not given; it may also name an unwanted output
            try:
                results = step.run(*[known[name] for name in step.inputs])
            except _Named:
                raise
            except Exception as error:
                raise _named(step.name, error) from error
            known.update(zip(step.outputs, results, strict=False))
            for name in step.last:
                known.pop(name, None)
        return tuple(known[name] for name in self.outputs)


class Compiler:
    """Makes programs of the graphs of one file.

    Parameters
    ----------
    opset : int
    tensors : Tensors
    size : int
        Bytes of the file: computed constants may have twice as many at a time.

    Attributes
    ----------
    layers : dict of str to tuple of layers
        Those of the recurrent nodes with constant weights.
    unused : list of str
    left : int
        How many bytes computed constants may still have.
    """

    def __init__(self, opset: int, tensors: Tensors, size: int) -> None:
        self.opset, self.tensors = opset, tensors
        self.layers: dict[str, tuple[Recurrent, ...]] = {}
        self.unused: list[str] = []
        self.left = max(_FREE, 2 * size)

    def tensors_of(self, graph: Any) -> dict[str, np.ndarray]:
        """Return the arrays of the tensors of a graph that its outputs depend on."""
        if len(graph.sparse_initializer):
            raise RefusedValue("it has sparse tensors, expected dense ones")
        _, wanted = needed(graph, [value.name for value in graph.output])
        arrays = {}
        for tensor in graph.initializer:
            if tensor.name in arrays:
                raise RefusedValue(f"the name {_checks.show(tensor.name)} is there twice")
            if tensor.name in wanted:
                arrays[tensor.name] = self.tensors.array(tensor)
            else:
                self.unused.append(tensor.name)
        return arrays

    def program(
        self, graph: Any, inputs: Sequence[str], arrays: dict[str, np.ndarray],
        outer: Mapping[str, np.ndarray] | None = None, known: frozenset[str] = frozenset(),
        depth: int = 0,
    ) -> Program:
        """Return the program of a graph.

        Parameters
        ----------
        graph : GraphProto
        inputs : sequence of str
            The names of its own inputs.
        arrays : dict of names to arrays
            Its own tensors, as of `tensors_of`.
        outer : mapping of names to arrays
            Constants of the graphs around it.
        known : set of str
            The names of other values of the graphs around it.
        depth : int
            How many graphs are around it.
        """
        scope = _Scope(self, graph, inputs, arrays, outer or {}, known, depth)
        for proto in scope.needed:
            scope.add(proto)
        return scope.program()

    def fold(self, node: Node, run: Run, arrays: Sequence[Any]) -> tuple[Any, ...] | None:
        """Return the outputs of a node whose inputs are constant, None if they cost too much."""
        if node.op == "Constant":
            return run()
        if node.op == "Einsum" or node.op in CONVOLUTIONS:
            return None  # a small file could ask for many products; no weights are made so
        try:
            with at_most(self.left // 4):
                results = run(*arrays)
        except TooLargeNow:
            return None
        # a small view would keep a large array alive
        results = tuple(np.array(a) if 2 * a.nbytes <= getattr(a.base, "nbytes", -1) else a
                        for a in results)
        return None if sum(a.nbytes for a in results) > self.left else results


class _Scope:
    """What is known while the nodes of one graph become steps."""

    def __init__(
        self, compiler: Compiler, graph: Any, inputs: Sequence[str],
        arrays: dict[str, np.ndarray], outer: Mapping[str, np.ndarray], known: frozenset[str],
        depth: int,
    ) -> None:
        if depth > DEEPEST:
            raise RefusedValue(f"its graphs are nested, expected at most {DEEPEST} one in another")
        self._compiler, self._depth, self._inputs = compiler, depth, tuple(inputs)
        self._outputs = tuple(value.name for value in graph.output)
        if not self._outputs or not all(self._outputs):
            raise RefusedValue("a graph has no outputs, or one without a name")
        self._steps: list[Step] = []
        self._around = known | outer.keys()
        self._charged: dict[str, int] = {}  # bytes of computed constants
        self._kept: set[str] = set()  # what steps read
        self._unpacked: tuple[Recurrent, ...] = ()  # a node's layers until its weights are gone
        own = {*inputs}
        if len(own) < len(inputs):
            raise RefusedValue("two inputs have one name")
        if own & arrays.keys():
            raise RefusedValue(f"the names {_checks.show(sorted(own & arrays.keys()))} are inputs "
                               "and tensors")
        self.needed, wanted = needed(graph, self._outputs)
        compiler.unused += [node.name or next(iter(node.output), node.op_type)
                            for node in graph.node if wanted.isdisjoint(filter(None, node.output))]
        own |= arrays.keys()
        self._constants = {**outer, **arrays}
        arrays.clear()  # so that they can go when nothing reads them any more
        self._own = own  # names that this graph defines
        self._known = set(known - own) | set(inputs)
        for name in inputs:
            self._constants.pop(name, None)
        # how often a constant is read, so that weights can go when their layers are made
        self._uses: dict[str, int] = {}
        for proto in self.needed:
            for name in _read_by(proto):
                self._uses[name] = self._uses.get(name, 0) + 1
        for name in self._outputs:
            self._uses[name] = self._uses.get(name, 0) + 1

    def add(self, proto: Any) -> None:
        """Turn a node into a step, or compute it."""
        compiler = self._compiler
        node = Node(proto, compiler.opset, compiler.tensors)
        with _naming(node.name):
            if node.domain not in ("", "ai.onnx") or not (
                    node.op in OPERATORS or node.op in RECURRENT or node.op in _WITH_GRAPHS):
                whose = "" if node.domain in ("", "ai.onnx") else f" of {_checks.show(node.domain)}"
                has = sorted([*OPERATORS, *RECURRENT, *_WITH_GRAPHS])
                raise RefusedValue(f"fastrnn does not have the operator {_checks.show(node.op)}"
                                   f"{whose}, expected one of {has}")
            for name in node.inputs:
                if name and name not in self._constants and name not in self._known:
                    raise RefusedValue(f"its input {_checks.show(name)} is no input of the graph, "
                                       "no tensor of the file and no output of a node before it")
            for name in filter(None, node.outputs):
                if name in self._own or name in self._around:
                    raise RefusedValue(f"the name {_checks.show(name)} of its output is there "
                                       "twice")
                self._own.add(name)
            self._add(node)
        for name in _read_by(proto):
            self._uses[name] -= 1
            if (not self._uses[name] and name in self._own and name in self._constants
                    and name not in self._kept):
                del self._constants[name]
                compiler.left += self._charged.pop(name, 0)
        for layer in self._unpacked:
            layer.eval()
        self._unpacked = ()

    def _add(self, node: Node) -> None:
        constant = all(not name or name in self._constants for name in node.inputs)
        arrays = [self._constants[name] if name else None for name in node.inputs] if constant \
            else []
        if node.op in RECURRENT:
            self._add_recurrent(node)
            return
        if node.op == "If":
            self._add_if(node)
            return
        if node.op == "Scan":
            self._add_scan(node)
            return
        run = OPERATORS[node.op](node)
        node.check_all_used()
        self._check_outputs(node)
        if constant:
            results = None
            try:
                with np.errstate(all="ignore"):
                    results = self._compiler.fold(node, run, arrays)
            except Refused:
                if not self._depth:  # a branch may never run
                    raise
            if results is not None:
                self._define(node.outputs, results, charge=node.op != "Constant")
                return
        self._step(node, run, node.inputs)

    def _check_outputs(self, node: Node) -> None:
        most = {"Split": 10_000, "Dropout": 2, "LayerNormalization": 3}.get(node.op, 1)
        if not 1 <= len(node.outputs) <= most:
            raise RefusedValue(f"it has {len(node.outputs)} outputs, expected 1 to {most}")

    def _define(
        self, names: Sequence[str], arrays: Sequence[np.ndarray], charge: bool = True
    ) -> None:
        for name, array in zip(names, arrays, strict=False):
            if name:
                self._constants[name] = array
                if charge:
                    self._charged[name] = array.nbytes
                    self._compiler.left -= array.nbytes

    def _step(self, node: Node, run: Run, inputs: Sequence[str]) -> None:
        self._steps.append(Step(node.name, run, tuple(inputs), node.outputs, ()))
        self._kept.update(inputs)
        for name in filter(None, node.outputs):
            self._known.add(name)

    def _add_recurrent(self, node: Node) -> None:
        recurrent = RecurrentNode(node)
        node.check_all_used()
        inputs = [*node.inputs, *[""] * (8 - len(node.inputs))]
        names = [inputs[i] for i in (1, 2, 3, 7)]
        if not all(not name or name in self._constants for name in names):
            run, _ = recurrent.compiled(None)
            self._step(node, run, inputs)
            return
        run, layers = recurrent.compiled([self._constants[name] if name else None
                                          for name in names])
        key = node.key
        while key in self._compiler.layers:  # nodes may have the same name
            key += "'"
        self._compiler.layers[key] = self._unpacked = layers
        self._step(node, run, [inputs[i] for i in (0, 4, 5, 6)])

    def _add_if(self, node: Node) -> None:
        node.check_inputs(1, 1)
        graphs = {True: node.graph("then_branch"), False: node.graph("else_branch")}
        node.check_all_used()
        for graph in graphs.values():
            if len(graph.input) or len(graph.output) != len(node.outputs):
                raise RefusedValue(f"a branch has {len(graph.input)} inputs and "
                                   f"{len(graph.output)} outputs, expected 0 and "
                                   f"{len(node.outputs)}")
        (condition,) = node.inputs
        if condition in self._constants:
            taken = _truth(self._constants[condition])
            other = "else_branch" if taken else "then_branch"
            self._compiler.unused.append(f"{node.key}.{other}")
            graphs = {taken: graphs[taken]}
        # a branch may not change how often the constants around it are used
        programs = {
            which: self._compiler.program(graph, (), self._compiler.tensors_of(graph),
                                          self._constants,
                                          frozenset(self._known), self._depth + 1)
            for which, graph in graphs.items()}
        reads = sorted({name for program in programs.values() for name in program.reads})
        places = {which: [reads.index(name) for name in program.reads]
                  for which, program in programs.items()}
        only = next(iter(programs)) if len(programs) == 1 else None

        def run(given: Any, *values: Any) -> tuple[Any, ...]:
            which = _truth(given) if only is None else only
            return programs[which](*[values[i] for i in places[which]])

        if only is not None and programs[only].is_constant:
            self._define(node.outputs, programs[only]())
            return
        self._step(node, run, (condition if only is None else "", *reads))

    def _add_scan(self, node: Node) -> None:
        graph, scan = node.graph("body"), Scan(node)
        inputs = [value.name for value in graph.input]
        if len(inputs) != len(node.inputs) or not all(node.inputs):
            raise RefusedValue(f"it has {len(node.inputs)} inputs, expected {len(inputs)}: those "
                               "of its body")
        scan.read(node, len(graph.output))
        compiler = self._compiler
        program = compiler.program(graph, inputs, compiler.tensors_of(graph), self._constants,
                                   frozenset(self._known), self._depth + 1)
        around = program.reads[len(inputs):]

        def run(*values: Any) -> tuple[Any, ...]:
            n = len(inputs)
            return scan(program, values[:n], values[n:])

        self._step(node, run, (*node.inputs, *around))

    def program(self) -> Program:
        """Return what was made of all nodes."""
        for name in self._outputs:
            if name not in self._constants and name not in self._known:
                raise RefusedValue(f"the output {_checks.show(name)} is given by no node")
        kept, later = [], set(self._outputs)
        for step in reversed(self._steps):
            used = set(step.inputs) | set(step.outputs)
            kept.append(step._replace(last=tuple(used - later - {""})))
            later |= used
        kept.reverse()
        made = {name for step in kept for name in step.outputs}
        constants = {name: a for name, a in self._constants.items() if name in later - made}
        # in the order of the graph's inputs; those that nothing reads, too
        reads = [*self._inputs, *sorted(later - made - set(constants) - set(self._inputs) - {""})]
        return Program(kept, constants, reads, self._outputs)


def _truth(value: Any) -> bool:
    """Return the condition of an If."""
    if value.dtype != bool or value.size != 1:
        raise RefusedValue(f"its condition is {value.dtype.name} {value.shape}, expected one "
                           "boolean")
    return bool(value.reshape(-1)[0])


# ---- what a graph needs --------------------------------------------------------------------------


def _read_by(node: Any, depth: int = 0) -> set[str]:
    """Return the names that a node reads, those that its branches read, too."""
    names = set(node.input) - {""}
    if depth <= DEEPEST:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                for inner in attribute.g.node:
                    names |= _read_by(inner, depth + 1)
                names |= {value.name for value in attribute.g.output}
    return names


def needed(graph: Any, outputs: Sequence[str]) -> tuple[list[Any], set[str]]:
    """Return the nodes that outputs depend on, in order, and the names of what is read."""
    wanted, found = set(outputs), []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(filter(None, node.output)):
            found.append(node)
            wanted |= _read_by(node)
    return found[::-1], wanted
