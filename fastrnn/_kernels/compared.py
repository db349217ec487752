"""Are two results the same but for rounding? The tolerance of FASTRNN_CHECK=1; see checked.py.

A result of one table has the relative error 4 (1 + backward) (1 + bidirectional)
ceil(log2(K T)) eps (tests/cases.py: by norm, and of a single step also for each element, where
numbers below 1 count as 1), so two tables differ by at most twice that. K is the number of terms of
the longest sum, T the steps that it passes through. Numbers that the kernels flush to zero do not
count. NaN and infinities must be at the same places.

This holds for a well-conditioned call. Others enlarge rounding errors: chaotic states do over many
steps, cancellation in a sum, saturated gates in backward, a ReLU near its kink. So before a larger
difference is called an error, the scalar table computes the call again with numbers that are
changed at random by rounding's size, 4 ceil(log2(K T)) eps of themselves; in backward those of the
tape too. If its results move by more than a quarter of the difference, rounding explains it. A kink
may be missed by one such change, so there are up to RUNS. Results that move by more than a quarter
of themselves have no digit to compare. Nor have those of a call whose sums overflow (infinity or
NaN out of finite numbers, or finite numbers near the largest one): a fused multiply-add overflows
later than a product that is rounded by itself.

Letters: T steps, K terms of a sum.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastrnn._kernels import runtime

__all__ = ["Call", "Change", "Named", "WrongResult", "judge", "norm", "scalar"]

RUNS = 24     # changed calls: each misses a kink with a probability of about 1/2
MARGIN = 4    # rounding may be a few times as unlucky as a random change
REPORT = ('Please report it, with the output of fastrnn.show_config(): see "Check every call" in '
          "CONTRIBUTING.md.")

Named = dict[str, Any]  # arrays or numbers by name
Again = Callable[["Change"], Named]


class WrongResult(RuntimeError):
    """Two instruction sets differ in a result by more than rounding explains.

    The outputs of the call are complete, as the instruction set in use has made them.
    """


class Change:
    """Changes numbers at random by a relative size, in copies.

    Attributes
    ----------
    finite, large : bool
        Whether all numbers so far, the tape's not counted, were finite, and any nearly infinite.
    """

    def __init__(self, seed: int, size: float) -> None:
        self.rng, self.size = np.random.default_rng(seed), size
        self.finite, self.large = True, False

    def __call__(self, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(self, value))
        if hasattr(value, "changed"):  # packed weights
            return value.changed(self)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            return value
        self.finite = self.finite and bool(np.isfinite(value).all())
        self.large = self.large or is_large(value)
        return self.near(value)

    def near(self, numbers: np.ndarray) -> np.ndarray:
        """Return changed numbers."""
        factor = 1 + self.size * self.rng.uniform(-1, 1, numbers.shape)
        return (numbers * factor).astype(numbers.dtype)


class Call(NamedTuple):
    """What an error says of a call, and what the tolerance depends on.

    `least` has, for results that are differences of larger numbers, the norm of those: their error
    is relative to it.
    """

    entry: str
    sizes: str
    dtype: Any
    K: float = 1
    T: int = 1
    factor: int = 1
    least: Mapping[str, float] = {}

    @property
    def change(self) -> float:
        """Relative size of rounding in a sum of K terms over T steps."""
        depth = max(1, math.ceil(math.log2(max(2, self.K * self.T))))
        return 4 * depth * float(np.finfo(self.dtype).eps)

    @property
    def allowed(self) -> float:
        """Relative difference of two tables, each with the tolerance of tests/cases.py."""
        return 2 * self.factor * self.change


@contextlib.contextmanager
def scalar() -> Iterator[None]:
    """Let this thread's calls use the scalar table."""
    runtime.use_scalar(True)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        runtime.use_scalar(False)


# ---- comparison ---------------------------------------------------------------------------------

def norm(a: np.ndarray) -> float:
    """Return the 2-norm, without the threads of a BLAS: they would wait for those of the pool."""
    return math.sqrt(float(np.square(a).sum()))


@np.errstate(all="ignore")
def errors(got: Any, expected: Any, single: bool, least: float = 0) -> dict[str, float]:
    """Return the relative difference by norm and, of a single step, the largest of an element."""
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return {"in shape or dtype": math.inf}
    if got.dtype.kind != "f":
        return {"in any element": 0.0 if np.array_equal(got, expected) else math.inf}
    limits = np.finfo(got.dtype)
    # halves, so that no difference overflows
    a, b = got.astype(np.float64) / 2, expected.astype(np.float64) / 2
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return {"in kind (NaN or infinity)": math.inf}
        a, b = a[finite], b[finite]
    difference = np.abs(a - b)
    if not difference.any():
        return {"by norm": 0.0} | ({"of an element": 0.0} if single else {})
    unit = max(difference.max(), np.abs(b).max())
    flushed = math.sqrt(a.size) * float(limits.tiny) / float(limits.eps)
    scale = max(norm(b / unit), flushed / unit, least / 2 / unit)
    found = {"by norm": norm(difference / unit) / scale}
    if single:
        small = max(0.5, least / 2 / math.sqrt(a.size))
        found["of an element"] = float((difference / np.maximum(np.abs(b), small)).max())
    return found


@np.errstate(all="ignore")
def is_large(array: Any) -> bool:
    """Return whether finite numbers are so large that a sum of them may overflow."""
    array = np.asarray(array)
    if array.dtype.kind != "f":
        return False
    size = np.abs(array)
    largest = float(np.finfo(array.dtype).max)
    return bool(((size > largest / 2**20) & (size <= largest)).any())  # terms of a long sum


def overflows(inputs: Change, results: Named) -> bool:
    """Return whether sums of a call overflow, or nearly so."""
    if inputs.large or any(map(is_large, results.values())):
        return True
    return inputs.finite and not all(np.isfinite(array).all() for array in results.values())


def judge(call: Call, got: Named, expected: Named, again: Again) -> None:
    """Raise WrongResult if results differ by more than rounding explains.

    Parameters
    ----------
    call : Call
    got, expected : dict of arrays or numbers
        Of the instruction set in use, and of the scalar table.
    again : callable
        Takes a Change and returns what `expected` has for changed numbers; called under `scalar`.
    """
    single, least = call.T == 1, call.least.get
    doubtful = {}  # (name, measure): error, allowed
    for name, array in expected.items():
        for measure, error in errors(got[name], array, single, least(name, 0)).items():
            if not error <= call.allowed:
                doubtful[name, measure] = error, call.allowed
    if not doubtful:
        return
    change = Change(0, 0)
    with scalar():
        unmoved = again(change)
    if overflows(change, unmoved):
        return
    for seed in range(RUNS):
        with scalar():
            moved = again(Change(seed, call.change))
        for (name, measure), (error, allowed) in list(doubtful.items()):
            movement = errors(moved[name], unmoved[name], single, least(name, 0))
            # a change of kind has another name, and is as large as can be
            explained = MARGIN * movement.get(measure, max(movement.values()))
            doubtful[name, measure] = error, max(allowed, explained)
            if error <= max(allowed, explained) or explained >= 1:
                del doubtful[name, measure]
        if not doubtful:
            return
    raise WrongResult(describe(call, got, expected, doubtful))


def describe(call: Call, got: Named, expected: Named, wrong: Mapping[tuple[str, str], Any]) -> str:
    """Return the text of an error."""
    parts = []
    for (name, measure), (error, allowed) in wrong.items():
        a, b = np.atleast_1d(got[name]), np.atleast_1d(expected[name])
        place = ""
        if a.shape == b.shape and a.size:
            with np.errstate(all="ignore"):
                distance = np.abs(a.astype(np.float64) - b.astype(np.float64))
            distance[np.isnan(a) != np.isnan(b)] = math.inf
            distance = np.nan_to_num(distance, nan=0.0, posinf=math.inf)
            at = tuple(int(k) for k in np.unravel_index(distance.argmax(), distance.shape))
            place = f", most at {at}: {a[at]:.9g}, expected {b[at]:.9g}"
        parts.append(f"{name} differs by {error:.3g} {measure}, allowed are {allowed:.3g}{place}")
    return (f"FASTRNN_CHECK: {call.entry}: the results of the instruction set {runtime.get_isa()} "
            f"are not those of the scalar one: {'; '.join(parts)}. The call: {call.sizes}, "
            f"{runtime.get_num_threads()} threads. {REPORT}")
