"""The one table of shapes and tolerances, shared by tests and bench.

A `Case` holds everything one call forward and backward needs, drawn from a seed; `forward` and
`backward` hand it to any module with the interface of fastrnn.reference (fastrnn.functional is the
other one) and return named arrays, so that a test is a loop over names.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import math
import time
import tracemalloc

import numpy as np

import fastrnn
from fastrnn._kernels import runtime

CELLS = ("rnn_tanh", "rnn_relu", "rnn_sigmoid", "lstm", "gru")
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "rnn_sigmoid": 1, "lstm": 4, "gru": 3}
LAYERS = {
    "rnn_tanh": fastrnn.RNN,
    "rnn_relu": functools.partial(fastrnn.RNN, nonlinearity="relu"),
    "rnn_sigmoid": functools.partial(fastrnn.RNN, nonlinearity="sigmoid"),
    "lstm": fastrnn.LSTM,
    "gru": fastrnn.GRU,
}
SINGLE_CELLS = {
    "rnn_tanh": fastrnn.RNNCell,
    "rnn_relu": functools.partial(fastrnn.RNNCell, nonlinearity="relu"),
    "rnn_sigmoid": functools.partial(fastrnn.RNNCell, nonlinearity="sigmoid"),
    "lstm": fastrnn.LSTMCell,
    "gru": fastrnn.GRUCell,
}
DTYPES = (np.float32, np.float64)
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

# (T, B, I, H). Kernels compute tiles of rows (B, or T*B) by vectors (H or I), so what matters is
# where a size stands to a multiple of 4, 8 or 16 lanes and of a tile's rows. 17, 34, 65, 130, 260
# are oneDNN's odd tails (tests/benchdnn/inputs/rnn).
SHAPES = [
    (1, 1, 1, 1),
    (1, 1, 3, 5),
    (2, 1, 1, 17),  # I = 1: a product of one term
    (9, 2, 17, 1),  # H = 1
    (1, 2, 34, 17),
    (3, 2, 5, 7),
    (5, 3, 17, 34),
    (2, 4, 34, 65),
    (4, 5, 11, 13),
    (3, 7, 65, 34),
    (6, 8, 16, 32),  # nothing but whole vectors
    (2, 13, 130, 65),
    (3, 16, 64, 130),
    (2, 33, 29, 31),
    (2, 1, 260, 130),
    (1, 3, 130, 260),
    (2, 5, 17, 260),
    (23, 3, 7, 11),
    (101, 1, 2, 3),  # long, and T*B over two blocks of no round size
    (67, 4, 5, 16),  # T*B = 268: a weight gradient's sum passes one block of 256 rows
]


def tolerance(dtype, K, T, *, backward=False, bidirectional=False):
    """Return the relative error that rounding alone may cause.

    4 (1 + backward) (1 + bidirectional) ceil(log2(K T)) eps: the formula of oneDNN's benchdnn
    (tests/benchdnn/rnn). K is the number of terms of the longest sum, T the number of steps it
    passes through, so log2(K T) is the depth of a balanced tree over all terms that meet in one
    element; backward and a summed pair of directions double it each. It applies elementwise to
    one layer of one step, and by norm to everything else; see assert_close.

    Parameters
    ----------
    dtype : dtype
        Of the result under test; gives eps.
    K : int
        Terms of the longest sum, see Case.tolerance.
    T : int
        Steps.
    backward : bool
        Whether the result is a gradient.
    bidirectional : bool
        Whether the outputs of two directions are summed.
    """
    depth = max(1, math.ceil(math.log2(max(2, K * T))))
    return 4 * (1 + backward) * (1 + bidirectional) * depth * float(np.finfo(dtype).eps)


def assert_close(name, got, expected, tol, elementwise=False, *, dtype=None):
    """Fail unless two arrays agree: shape, dtype, every value finite, and the error within tol.

    By norm: ||got - expected|| <= tol max(||expected||, tiny) in the 2-norm. Elementwise:
    |got - expected| <= tol max(|expected|, 1). Errors are computed in float64.

    Parameters
    ----------
    name : str
        What the message calls the array.
    got, expected : arrays
        The result under test and what it should be.
    tol : float
        Relative tolerance.
    elementwise : bool
        Judge each element instead of the norm.
    dtype : dtype, optional
        What `got` must have; by default what `expected` has.
    """
    assert isinstance(got, np.ndarray), f"{name}: {type(got).__name__}, expected an array"
    dtype = np.dtype(expected.dtype if dtype is None else dtype)
    assert got.dtype == dtype, f"{name}: dtype {got.dtype}, expected {dtype}"
    assert got.shape == expected.shape, f"{name}: shape {got.shape}, expected {expected.shape}"
    for label, array in (("result", got), ("expected", expected)):
        bad = array.size - np.count_nonzero(np.isfinite(array))
        assert not bad, f"{name}: {bad} of {array.size} values of the {label} are not finite"
    if not got.size:
        return
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    if elementwise:
        errors = np.abs(got - expected) / np.maximum(np.abs(expected), 1)
        error = errors.max()
        place = f" at {tuple(int(k) for k in np.unravel_index(errors.argmax(), errors.shape))}"
    else:
        tiny = float(np.finfo(dtype).tiny)
        error = np.linalg.norm(got - expected) / max(np.linalg.norm(expected), tiny)
        place = " by norm"
    assert error <= tol, f"{name}: relative error {error:.3g}{place}, tolerance {tol:.3g}"


STEP = 1e-5  # near eps^(1/3), where a central difference's truncation and rounding errors meet


def differences(loss, array):
    """Return the gradient of loss() with respect to an array, which is changed in place."""
    result = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value, ends = array[index], []
        for step in (STEP, -STEP):
            array[index] = value + step
            ends.append(loss())
        array[index] = value
        result[index] = (ends[0] - ends[1]) / (2 * STEP)
    return result


def distance_to_kink(module, case, reverse):
    """Return the smallest |argument| of relu, recomputed from the outputs alone."""
    x = case.x if case.embedding is None else case.embedding[case.x]
    y = forward(module, case, reverse=reverse)[0]["y"]
    h = np.concatenate([y[1:], case.h0[None]] if reverse else [case.h0[None], y[:-1]])
    bias = 0 if case.bias_ih is None else case.bias_ih + case.bias_hh
    return np.abs(x @ case.weight_ih.T + h @ case.weight_hh.T + bias).min()


@dataclasses.dataclass(frozen=True)
class Case:
    """The arrays of one call; c0 and dcn are None but for lstm, embedding but on request."""

    cell: str
    x: np.ndarray  # (T, B, I), or row numbers (T, B) with embedding
    h0: np.ndarray  # (B, H)
    c0: np.ndarray | None  # (B, H)
    weight_ih: np.ndarray  # (G*H, I)
    weight_hh: np.ndarray  # (G*H, H)
    bias_ih: np.ndarray | None  # (G*H,)
    bias_hh: np.ndarray | None  # (G*H,)
    dy: np.ndarray  # (T, B, H)
    dhn: np.ndarray  # (B, H)
    dcn: np.ndarray | None  # (B, H)
    embedding: np.ndarray | None = None  # (V, I)

    @property
    def sizes(self):
        """T, B, I, H."""
        T, B, H = self.dy.shape
        return T, B, self.weight_ih.shape[1], H

    @property
    def elementwise(self):
        """Whether the tolerance holds for each element: of one step it does, see tolerance."""
        return len(self.dy) == 1

    def inputs(self):
        """Return the arrays that a loss has gradients with respect to, by name."""
        names = ("x" if self.embedding is None else "embedding", "h0", "c0", *PARAMETERS)
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def astype(self, dtype):
        """Return the same numbers in another dtype: exact from float32 to float64."""
        floats = {
            field.name: getattr(self, field.name).astype(dtype)
            for field in dataclasses.fields(self)
            if getattr(getattr(self, field.name), "dtype", np.dtype(int)).kind == "f"
        }
        return dataclasses.replace(self, **floats)

    def tolerance(self, *, backward=False, bidirectional=False):
        """Return the tolerance that this case's longest sum earns.

        Forward an element sums I + H terms; backward also G*H (dx and dh) or, over all steps, B
        (weights).
        """
        T, B, *widths = self.sizes
        K = max(sum(widths), len(self.weight_hh), B) if backward else sum(widths)
        return tolerance(self.dy.dtype, K, T, backward=backward, bidirectional=bidirectional)


def make_case(cell, T, B, I, H, dtype=np.float64, seed=0, bias=True, *, vocabulary=None):
    """Draw a case: torch's uniform +-1/sqrt(H) weights, everything else normal, nothing zero.

    Numbers are drawn in float64 and rounded, so both dtypes of a seed agree. With a `vocabulary`
    V the input is an embedding (V, I), and x the numbers of its rows.
    """
    rng = np.random.default_rng(seed)
    rows, bound = GATES[cell] * H, 1 / math.sqrt(H)

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    def uniform(*shape):
        return rng.uniform(-bound, bound, shape).astype(dtype)

    lstm = cell == "lstm"
    return Case(
        cell=cell,
        x=normal(T, B, I) if vocabulary is None else rng.integers(vocabulary, size=(T, B)),
        h0=normal(B, H),
        c0=normal(B, H) if lstm else None,
        weight_ih=uniform(rows, I),
        weight_hh=uniform(rows, H),
        bias_ih=uniform(rows) if bias else None,
        bias_hh=uniform(rows) if bias else None,
        dy=normal(T, B, H),
        dhn=normal(B, H),
        dcn=normal(B, H) if lstm else None,
        embedding=None if vocabulary is None else normal(vocabulary, I),
    )


def forward(module, case, **options):
    """Call the case's forward of `module`; return ({y, hn, and cn of lstm}, tape)."""
    kind, _, nonlinearity = case.cell.partition("_")
    if nonlinearity:
        options["nonlinearity"] = nonlinearity
    if case.embedding is not None:
        options["embedding"] = case.embedding
    state = (case.h0, case.c0) if kind == "lstm" else case.h0
    run = getattr(module, f"{kind}_forward")
    y, state, tape = run(case.x, state, *(getattr(case, p) for p in PARAMETERS), **options)
    return {"y": y, **_named("", state, "n")}, tape


def backward(module, case, tape, **options):
    """Call the case's backward of `module`; return {dx, dh0, dc0 of lstm, and the parameters'}.

    The names weight_ih ... stand for the gradients of these parameters; dx is left out with
    need_dx=False.
    """
    kind = case.cell.partition("_")[0]
    dstate = (case.dhn, case.dcn) if kind == "lstm" else case.dhn
    run = getattr(module, f"{kind}_backward")
    dx, dstate, grads = run(case.dy, dstate, tape, **options)
    return {**({} if dx is None else {"dx": dx}), **_named("d", dstate, "0"), **grads}


def replace(case, **arrays):
    return dataclasses.replace(case, **arrays)


def run(module, case, *, need_dx=True, grads=None, **options):
    """Return outputs and gradients by name."""
    out, tape = forward(module, case, **options)
    return out | backward(module, case, tape, need_dx=need_dx, grads=grads)


def fill_pool(call, workers):
    """Call until the pool has so many workers: beside busy programs it is alone for a while."""
    end = time.monotonic() + 20
    while runtime.pool_workers() < workers and time.monotonic() < end:
        call()
    assert runtime.pool_workers() >= workers, "the pool was not used"


def cpu_time(call, count=1):
    """Return the CPU time of a call, the least of so many."""
    found = []
    for _ in range(count):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return min(found)


def compiling():
    """Let Python compile a long module of its own: what other times are compared with."""
    compile(inspect.getsource(argparse), "argparse", "exec")


def peak(call):
    """Return the bytes that Python allocates meanwhile, the least of three times.

    What a call allocates, it allocates each time; other parts of the process do it now and then.
    """
    found = []
    tracemalloc.start()
    try:
        for _ in range(3):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            call()
            found.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return min(found)


def assert_same_bytes(got, expected, label=""):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, f"{label}{name}"
        assert got[name].shape == array.shape, f"{label}{name}"
        assert got[name].tobytes() == array.tobytes(), f"{label}{name}"


def _named(prefix, state, suffix):
    """Return {h: state} or, of a tuple, {h: state[0], c: state[1]} with decorated names."""
    states = state if isinstance(state, tuple) else (state,)
    return {f"{prefix}{letter}{suffix}": array for letter, array in zip("hc", states, strict=False)}


def plain_loss(name, outputs, targets, weights):
    """Return the weighted mean over the rows of a loss of fastrnn.losses, in plain NumPy."""
    if name == "softmax":
        shifted = outputs - outputs.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        rows = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    elif name == "mse":
        rows = ((outputs - targets) ** 2).mean(-1)
    else:
        p = 1 / (1 + np.exp(-outputs))
        rows = -(targets * np.log(p) + (1 - targets) * np.log1p(-p)).mean(-1)
    return (rows * weights).sum() / weights.sum()


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def misaligned(a):
    room = np.zeros(a.nbytes + 1, np.uint8)[1:]
    moved = room.view(a.dtype).reshape(a.shape)
    moved[...] = a
    assert not moved.flags.aligned or a.itemsize == 1
    return moved


def drawer(dtype, seed=0):
    """Return a function that draws a normal array of a shape."""
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.standard_normal(shape).astype(dtype)
