"""Every call of a kernel, computed by the scalar table too: FASTRNN_CHECK=1 in the environment.

For users who report a fault: it shows whether the kernels of this CPU's instruction set are at
fault. `install` puts functions and classes of the same names in the place of the compiled modules'
entries (sequence, program, linear, loss, update, packed, packed_program, stream). Each runs the
call as it is, and again by the scalar table (`runtime.use_scalar`, for this thread alone) on
copies of what the call changes; then it compares all outputs, states and gradients. What the caller
gets is what the call itself computed. What lives longer than a call has a twin that the scalar
table reads: a tape its `shadow`, packed weights and streams likewise. With the scalar instruction
set there is nothing to compare. compared.py states the tolerance.

Letters: T steps, B batch, I input, H hidden, D directions, K terms of a sum.
"""

from __future__ import annotations

import functools
import math
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastrnn._kernels import (
    linear,
    loss,
    packed,
    packed_program,
    program,
    runtime,
    sequence,
    stream,
    update,
)
from fastrnn._kernels.compared import Call, Change, Named, WrongResult, judge, norm, scalar

__all__ = ["WrongResult", "install"]

CELLS = ("rnn_tanh", "rnn_relu", "rnn_sigmoid", "lstm", "gru")  # in the order of fr_cell


# ---- copies -------------------------------------------------------------------------------------

def each(act: Callable[[np.ndarray], np.ndarray], value: Any) -> Any:
    """Return act of arrays, also in tuples; everything else as it is."""
    if isinstance(value, tuple | list):
        return type(value)(each(act, one) for one in value)
    return act(value) if isinstance(value, np.ndarray) else value


def copied(value: Any) -> Any:
    """Return a copy of arrays, also in tuples; everything else as it is."""
    return each(lambda a: np.array(a, order="C"), value)


def fresh(value: Any) -> Any:
    """Return new arrays of the same shapes, also in tuples; everything else as it is."""
    return each(lambda a: np.empty(a.shape, a.dtype), value)


def outline(value: Any) -> Any:
    """Return arrays of the same shapes without memory of their own, also in tuples."""
    return each(lambda a: np.broadcast_to(np.empty((), a.dtype), a.shape), value)


def plain(value: Any) -> Any:
    """Return packed weights as the scalar table reads them, also in tuples."""
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value))
    return value.shadow if isinstance(value, Packed | PackedProgram) else value


def named(prefix: str, value: Any) -> Named:
    """Return the arrays in tuples by name: dinitial[0], grads[0][1], ..."""
    if isinstance(value, tuple | list):
        return {name: array for i, one in enumerate(value)
                for name, array in named(f"{prefix}[{i}]", one).items()}
    return {prefix: value} if isinstance(value, np.ndarray | float) else {}


def matrices(weights: Any) -> list[tuple[int, ...]]:
    """Return the shapes of all weights of one direction; masks do not count."""
    if isinstance(weights, Packed | PackedProgram):
        return weights.shapes
    if weights and isinstance(weights[0], tuple | PackedProgram):  # a program's, with masks
        return matrices(weights[0])
    return [array.shape for array in weights if array is not None and array.ndim == 2]


def twice(call: Callable[[], Any], by_scalar: Callable[[], Any]) -> tuple[Any, Any]:
    """Return the results of a call by the scalar table and as it is, in this order.

    What the arguments refuse is refused by the call itself.
    """
    try:
        with scalar():
            expected = by_scalar()
    except Exception:
        call()
        raise
    return expected, call()


# ---- sequences ----------------------------------------------------------------------------------

class Shadow:
    """What the scalar table has made of a forward call: the tape, and how to make another.

    Attributes
    ----------
    tape : Tape or ProgramTape
    call : Call
    again : callable
        Takes a Change and returns results and a tape of changed arguments.
    """

    def __init__(self, tape: Any, call: Call, again: Callable[[Change], tuple[Named, Any]]) -> None:
        self.tape, self.call, self.again = tape, call, again

    def copy(self) -> Shadow:
        """Return what serves one more backward."""
        return Shadow(self.tape.copy(), self.call, self.again)


def checked_forward(entry: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the forward of sequence or program with a check."""
    @functools.wraps(original)
    def forward(
        kind: Any, x: Any, index: Any, weights: Any, reverse: Any, initial: Any, y: Any, final: Any,
        keep: Any, workspace: Any, time: Any = None, source: Any = "time", target: Any = "time",
    ) -> Any:
        def run_fast() -> Any:
            return original(kind, x, index, weights, reverse, initial, y, final, keep, workspace,
                            time, source, target)

        if runtime.get_isa() == "scalar":
            return run_fast()
        began = copied(initial)  # the caller may change it after forward
        # In PyTorch y keeps a graph, and the graph the tape: a tape that kept y would never go.
        outputs = outline((y, final))

        def run_plain(x: Any, weights: Any, initial: Any) -> tuple[Named, Any]:
            out, ends = fresh(outputs)
            tape = original(kind, x, index, weights, reverse, initial, out, ends, keep,
                            runtime.Workspace(), time, source, target)
            return {"y": out} | named("final", ends), tape

        def again(change: Change) -> tuple[Named, Any]:
            return run_plain(change(x), change(weights), change(began))

        (expected, shadow), tape = twice(run_fast, lambda: run_plain(x, plain(weights), began))
        T, B = ((x if index is None else index).shape[:2] if time is None else (time.T, time.B))
        shapes = matrices(weights[0])
        cell = CELLS[kind] if isinstance(kind, int) else "a cell from equations"
        sizes = (f"{cell}, T {T}, B {B}{'' if time is None else ' with lengths or resets'}, "
                 f"weights {', '.join(map(str, shapes))}, {len(weights)} "
                 f"direction{'s' if len(weights) > 1 else ''}, {y.dtype}")
        call = Call(entry, sizes, y.dtype, sum(shape[1] for shape in shapes), T)
        if tape is not None:
            back = max(call.K, B, *(shape[0] for shape in shapes))
            tape.shadow = Shadow(shadow, call._replace(
                entry=entry.replace("forward", "backward"), K=back, factor=2 * len(weights)), again)
        judge(call, {"y": y} | named("final", final), expected, lambda change: again(change)[0])
        return tape

    return forward


def checked_backward(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the backward of sequence or program with a check."""
    @functools.wraps(original)
    def backward(
        tape: Any, dy: Any, dfinal: Any, dx: Any, dinitial: Any, grads: Any, record: Any = (),
        **options: Any,
    ) -> Any:
        shadow = getattr(tape, "shadow", None)
        given: Any = copied((dy, dfinal, grads)) if shadow else None
        got = original(tape, dy, dfinal, dx, dinitial, grads, record, **options)
        if shadow is None:
            return got

        def run_plain(tape: Any, given: Any) -> Named:
            below, before, into = fresh(dx), fresh(dinitial), copied(given[2])
            recorded = original(tape, *given[:2], below, before, into, record, **options)
            return results(below, before, into, recorded)

        def again(change: Change) -> Named:
            tape = shadow.again(change)[1]
            for numbers in tape.memory():  # rounded too: 1 - h^2 loses digits where h is near 1
                numbers[...] = change.near(numbers)
            return run_plain(tape, (*change(given[:2]), given[2]))

        with scalar():
            expected = run_plain(shadow.tape, given)
        judge(shadow.call, results(dx, dinitial, grads, got), expected, again)
        return got

    return backward


def results(dx: Any, dinitial: Any, grads: Any, recorded: Mapping[str, Any]) -> Named:
    """Return all that a backward call has written, by name."""
    return (named("dx", dx) | named("dinitial", dinitial) | named("grads", grads)
            | {f"record {name}": array for name, array in recorded.items()})


# ---- packed weights -----------------------------------------------------------------------------

class Packed(packed.Packed):
    """Packed weights with the same weights packed for the scalar table."""

    def __init__(self, kind: Any, weights: Any, halves: Any = None) -> None:
        self.shapes = [array.shape for array in weights[:2]]
        self.shadow = None
        if runtime.get_isa() != "scalar":
            with scalar():
                self.shadow = BASE["Packed"](kind, weights, halves)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), super().__reduce__()[1]

    def changed(self, change: Change) -> Any:
        """Return changed weights, packed for the scalar table; bfloat16 words stay as they are."""
        assert self.shadow is not None
        kind, weights, halves = self.shadow.__reduce__()[1]
        return self.shadow if halves else BASE["Packed"](kind, change(weights))


class PackedProgram(packed_program.PackedProgram):
    """Packed parameters with the same parameters packed for the scalar table."""

    def __init__(self, kind: Any, dtype: Any, parameters: Any) -> None:
        self.shapes = [array.shape for array in parameters if array.ndim == 2]
        self.kind = kind
        self.shadow = None
        if runtime.get_isa() != "scalar":
            with scalar():
                self.shadow = BASE["PackedProgram"](kind, dtype, parameters)

    def changed(self, change: Change) -> Any:
        """Return changed parameters, packed for the scalar table."""
        assert self.shadow is not None
        _, dtype, parameters = self.shadow.__reduce__()[1]
        return BASE["PackedProgram"](self.kind, dtype, change(parameters))


@functools.wraps(packed_program.restored)
def restored(program: Any, dtype: Any, parameters: Any) -> PackedProgram:
    """Return a pickled PackedProgram."""
    return PackedProgram(packed_program.Compiled(program, None), dtype, parameters)


# ---- streams ------------------------------------------------------------------------------------

class Stream(stream.Stream):
    """A stream with a twin of the scalar table, which begins each call with the stream's state."""

    twin: Any = None

    def __init__(
        self, groups: Any, batch_size: Any, dtype: Any, embedding: Any = None, one_hot: Any = False,
        head: Any = None, nested: Any = False, name: str = "Stream",
    ) -> None:
        super().__init__(groups, batch_size, dtype, embedding, one_hot, head, nested, name)
        self._groups, self._name, self._lock = groups, name, threading.Lock()
        if runtime.get_isa() != "scalar":
            with scalar():
                self.twin = BASE["Stream"](plain(groups), batch_size, dtype, embedding, one_hot,
                                           head, nested, name)

    def __call__(self, x: Any, out: Any = None, *, rows: Any = None) -> Any:
        """Advance one step."""
        return self._checked("__call__", x, out, rows)

    def block(self, x: Any, out: Any = None, *, rows: Any = None) -> Any:
        """Advance T steps in one call."""
        return self._checked("block", x, out, rows)

    def _checked(self, method: str, x: Any, out: Any, rows: Any) -> Any:
        advance = getattr(BASE["Stream"], method)
        if self.twin is None:
            return advance(self, x, out, rows=rows)
        if not self._lock.acquire(blocking=False):  # a step and its check belong together
            raise RuntimeError(f"{self._name}: this stream is in use by another thread, make one "
                               "stream per thread")
        try:
            return self._compared(method, advance, x, out, rows)
        finally:
            self._lock.release()

    def _compared(self, method: str, advance: Any, x: Any, out: Any, rows: Any) -> Any:
        before, given, chosen = self.state, copied(x), copied(rows)
        y = advance(self, x, out, rows=rows)

        def run_plain(twin: Any, state: Any, x: Any) -> Named:
            twin.state = state
            return {"y": advance(twin, x, rows=chosen)} | named("state", twin.state)

        def again(change: Change) -> Named:
            _, batch_size, dtype, embedding, one_hot, head, *rest = self.twin.__reduce__()[1]
            twin = BASE["Stream"](change(self._groups), batch_size, dtype, change(embedding),
                                  one_hot, change(head), *rest)
            return run_plain(twin, change(before), change(given))

        with scalar():
            expected = run_plain(self.twin, before, given)
        layers = [one.shapes for group in self._groups for one in group]
        T = len(y) if method == "block" else 1
        sizes = (f"T {T}, B {self.batch_size}, {len(layers)} layers with the weights "
                 f"{', '.join(str(shape) for shapes in layers for shape in shapes)}, {self.dtype}")
        K = max(sum(shape[1] for shape in shapes) for shapes in layers)
        entry = "Stream.block" if method == "block" else "Stream"
        judge(Call(entry, sizes, self.dtype, K, max(1, T) * len(layers)),
              {"y": y} | named("state", self.state), expected, again)
        return y

    def copy(self) -> Any:
        """Return a stream with the same weights and a copy of the state."""
        new = super().copy()
        new._groups, new._name, new._lock = self._groups, self._name, threading.Lock()
        if self.twin is not None:
            with scalar():
                new.twin = self.twin.copy()
        return new


# ---- linear maps, loss, updates -----------------------------------------------------------------

@functools.wraps(linear.linear_forward)
def linear_forward(x: Any, weight: Any, bias: Any = None, out: Any = None) -> Any:
    """Return x W^T + b."""
    original = BASE["linear_forward"]
    if runtime.get_isa() == "scalar":
        return original(x, weight, bias, out)
    expected, got = twice(lambda: original(x, weight, bias, out),
                          lambda: original(x, weight, bias))
    (N, K), R = weight.shape, len(x)
    call = Call("linear_forward", f"R {R}, K {K}, N {N}, {weight.dtype}", weight.dtype, K)
    judge(call, {"y": got}, {"y": expected},
          lambda change: {"y": original(change(x), change(weight), change(bias))})
    return got


@functools.wraps(linear.linear_backward)
def linear_backward(
    dy: Any, x: Any, weight: Any, dweight: Any, dbias: Any = None, need_dx: Any = True,
    dx: Any = None,
) -> Any:
    """Return dx, and add to dweight and dbias."""
    original = BASE["linear_backward"]
    if runtime.get_isa() == "scalar":
        return original(dy, x, weight, dweight, dbias, need_dx, dx)
    before = copied((dweight, dbias))

    def run_plain(dy: Any, x: Any, weight: Any) -> Named:
        own = copied(before)
        below = original(dy, x, weight, *own, need_dx)
        return named("dx", below) | named("grads", own)

    expected, got = twice(lambda: original(dy, x, weight, dweight, dbias, need_dx, dx),
                          lambda: run_plain(dy, x, weight))
    (N, K), R = weight.shape, len(x)
    call = Call("linear_backward", f"R {R}, K {K}, N {N}, {weight.dtype}", weight.dtype,
                max(R, K, N), factor=2)
    judge(call, named("dx", got) | named("grads", (dweight, dbias)), expected,
          lambda change: run_plain(change(dy), change(x), change(weight)))
    return got


@functools.wraps(loss.softmax_cross_entropy)
def softmax_cross_entropy(
    logits: Any, targets: Any, scale: Any = 1.0, grad: Any = None, weights: Any = None,
) -> Any:
    """Return the loss, and write its gradient."""
    original = BASE["softmax_cross_entropy"]
    if runtime.get_isa() == "scalar":
        return original(logits, targets, scale, grad, weights)
    given = copied(logits)  # `grad` may be the same array

    def run_plain(logits: Any) -> Named:
        own = fresh(grad)
        return {"loss": logits.dtype.type(original(logits, targets, scale, own, weights))
                } | named("grad", own)

    expected, got = twice(lambda: original(logits, targets, scale, grad, weights),
                          lambda: run_plain(logits))
    R, N = given.shape
    # A sure row has the logarithm of a sum near 1, and p - 1 for p near 1: rounded as 1 is.
    rows = np.ones(R) if weights is None else np.asarray(weights)
    with np.errstate(over="ignore"):  # weights of any size
        least = {"loss": float(rows.sum()), "grad": abs(scale) * norm(rows)}
        found = {"loss": given.dtype.type(got)} | named("grad", grad)
    judge(Call("softmax_cross_entropy", f"R {R}, N {N}, {given.dtype}", given.dtype, R * N,
               least=least), found, expected, lambda change: run_plain(change(given)))
    return got


@functools.wraps(update.norms)
def norms(flats: Any, limit: Any = math.inf) -> Any:
    """Return the norm of all arrays together, and of their elements limited to +-limit."""
    original, flats = BASE["norms"], list(flats)
    if runtime.get_isa() == "scalar":
        return original(flats, limit)
    return checked_norms("norms", flats, lambda given: original(given, limit))


def checked_norms(entry: str, grads: list[Any], run: Callable[[list[Any]], Any]) -> Any:
    """Check what `run` makes of gradients."""
    expected, got = twice(lambda: run(grads), lambda: run(grads))
    size = sum(array.size for array in grads)
    judge(Call(entry, f"{len(grads)} arrays, {size} numbers", np.float64, size),
          named("norms", got), named("norms", expected),
          lambda change: named("norms", run(change(grads))))
    return got


class Ranges(update.Ranges):
    """Ranges of parameters whose norms and steps are checked."""

    _rows: list[Any]

    def __new__(cls, rows: Any) -> Ranges:
        rows = list(rows)
        self = super().__new__(cls, rows)
        self._rows = rows
        return self

    def __init__(self, rows: Any) -> None:
        """Take what __new__ has kept."""

    def norms(self, limit: Any = math.inf) -> Any:
        """Return the norm of all gradients together, and of them limited to +-limit."""
        if runtime.get_isa() == "scalar":
            return super().norms(limit)
        grads = [row[1] for row in self._rows]
        original = super().norms

        def run(given: list[Any]) -> Any:
            return original(limit) if given is grads else BASE["norms"](given, limit)

        return checked_norms("Ranges.norms", grads, run)

    def sgd(self, *arguments: Any, **options: Any) -> None:
        """Take one step of gradient descent."""
        self._step("sgd", arguments, options)

    def rmsprop(self, *arguments: Any, **options: Any) -> None:
        """Take one step of RMSProp."""
        self._step("rmsprop", arguments, options)

    def adam(self, *arguments: Any, **options: Any) -> None:
        """Take one step of Adam with decoupled weight decay."""
        self._step("adam", arguments, options)

    def _step(self, method: str, arguments: Any, options: Any) -> None:
        move = getattr(BASE["Ranges"], method)
        if runtime.get_isa() == "scalar":
            move(self, *arguments, **options)
            return
        before = [(param.copy(), grad.copy(), {k: a.copy() for k, a in buffers.items()}, *rest)
                  for param, grad, buffers, *rest in self._rows]

        def run_plain(rows: list[Any]) -> Named:
            move(BASE["Ranges"](rows), *arguments, **options)
            return written(rows)

        def again(change: Change) -> Named:
            return run_plain([(change(param), change(grad),
                               {k: change(a) for k, a in buffers.items()}, *rest)
                              for param, grad, buffers, *rest in before])

        own = [(param.copy(), grad, {k: a.copy() for k, a in buffers.items()}, *rest)
               for param, grad, buffers, *rest in before]
        expected, _ = twice(lambda: move(self, *arguments, **options), lambda: run_plain(own))
        size = sum(row[0].size for row in self._rows)
        dtypes = [row[0].dtype for row in self._rows] or [np.dtype(np.float32)]
        widest = max(dtypes, key=lambda dtype: float(np.finfo(dtype).eps))
        # a step is ten to twenty operations for each element
        judge(Call(f"Ranges.{method}", f"{len(before)} ranges, {size} numbers, {widest}, "
                   f"arguments {arguments} {options}", widest, 16),
              written(self._rows), expected, again)


def written(rows: list[Any]) -> Named:
    """Return what a step has written, by name."""
    return {name: array for i, (param, _, buffers, *_) in enumerate(rows)
            for name, array in ((f"param[{i}]", param),
                                *((f"{k}[{i}]", a) for k, a in buffers.items()))}


# ---- installation -------------------------------------------------------------------------------

ENTRIES: tuple[tuple[Any, tuple[Any, ...]], ...] = (
    (packed, (Packed,)), (packed_program, (PackedProgram, restored)), (stream, (Stream,)),
    (linear, (linear_forward, linear_backward)), (loss, (softmax_cross_entropy,)),
    (update, (norms, Ranges)),
)
BASE: dict[str, Any] = {  # what the modules have without a check
    entry.__name__: getattr(module, entry.__name__) for module, own in ENTRIES for entry in own}


def install() -> None:
    """Let every later call be checked; for modules that are imported afterwards."""
    for module, own in ENTRIES:
        for entry in own:
            if isinstance(entry, type):  # pickles name the module's own class
                entry.__module__ = module.__name__
            setattr(module, entry.__name__, entry)
    for engine in (sequence, program):
        short = engine.__name__.rpartition(".")[2]
        engine.forward = checked_forward(  # type: ignore[attr-defined]
            f"{short}.forward", engine.forward)
        engine.backward = checked_backward(engine.backward)  # type: ignore[attr-defined]
    if runtime.get_isa() == "scalar":
        warnings.warn("FASTRNN_CHECK=1 compares nothing: the instruction set in use is the scalar "
                      "one", RuntimeWarning, stacklevel=2)
