"""What is measured: one shape of one job, and its numbers. Shapes come from grids.py.

Letters: T steps, B batch, I input, H hidden, G gates, L layers, D directions.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bench.definitions import LAYERNORM

KINDS = ("stream", "infer", "train", "lm", "callers", "block")
STREAM_STEPS = 8  # of a stream are checked; one of them is timed again and again
DRAWS = 64  # sets of callers, one after the other
VOCABULARY = 256  # of the language model: bytes


def _tests_cases() -> ModuleType:
    """Return tests/cases.py by its path: another package named `tests` may lie on sys.path."""
    name = "fastrnn_tests_cases"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "tests" / "cases.py"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"bench: no {path}")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


shared = _tests_cases()
GATES: dict[str, int] = shared.GATES | {LAYERNORM: 4}
PARAMETERS: tuple[str, ...] = shared.PARAMETERS


@dataclasses.dataclass(frozen=True)
class Case:
    """One job of one shape.

    Attributes
    ----------
    kind : {"stream", "infer", "train", "lm", "callers", "block"}
        One step per call that carries its state; a whole sequence forward; forward, and backward of
        sum(y * dy) with the gradients of the weights and of x; a training step of a byte-level
        language model (embedding of I, cell, head, cross-entropy, clip, Adam); one step of `step`
        of the B callers of a stream; T steps of a stream in one call, from a state of zeros.
    cell : str
        As in tests/cases.py, or bench.definitions.LAYERNORM.
    need : float or None
        The least ratio to the best peer that we aim at.
    need_torch : float or None
        The least ratio to PyTorch.
    denormal : bool
        Whether x and the initial state are denormal numbers.
    weights : {"float32", "bfloat16"}
        What fastrnn evaluates with; peers know only float32.
    lengths : {"", "equal", "random"}
        No lengths; T for each row; drawn from 1..T, the longest set to T.
    resets : float or None
        The share of steps that begin with a state of zeros; None: no flags.
    step : int
        Callers that make a step at once, of B.
    dx : bool
        Whether training wants the gradient of x: of a first layer nobody does.
    """

    kind: str
    cell: str
    T: int
    B: int
    I: int
    H: int
    L: int = 1
    D: int = 1
    bias: bool = True
    dtype: str = "float32"
    need: float | None = None
    name: str = ""
    denormal: bool = False
    weights: str = "float32"
    lengths: str = ""
    resets: float | None = None
    step: int = 0
    need_torch: float | None = None
    dx: bool = True

    @property
    def G(self) -> int:
        """Gates."""
        return GATES[self.cell]

    @property
    def has_c(self) -> bool:
        """Whether the state has a c beside h."""
        return self.cell in ("lstm", LAYERNORM)

    @property
    def shape(self) -> str:
        """The sizes in words, without the cell."""
        stack = f" L{self.L}" * (self.L > 1) + " bi" * (self.D > 1) + " nobias" * (not self.bias)
        dtype = f" {self.dtype}" * (self.dtype != "float32")
        dtype += f" {self.weights} weights" * (self.weights != "float32")
        rows = f" {self.lengths} lengths" * bool(self.lengths)
        rows += "" if self.resets is None else f" {self.resets:.0%} resets"
        rows += f" step {self.step}" * bool(self.step) + " without dx" * (not self.dx)
        return f"{self.kind} {self.B} {self.T} {self.I} {self.H}{stack}{dtype}{rows}"

    @property
    def label(self) -> str:
        """What tables and filters call the case."""
        return f"{self.name}: {self.shape}" if self.name else self.shape

    def width(self, layer: int) -> int:
        """Return the input features of a layer."""
        return self.I if layer == 0 else self.D * self.H

    def names(self, layer: int, reverse: int) -> dict[str, str]:
        """Return torch's names of the parameters of one layer and direction, by PARAMETERS."""
        suffix = f"_l{layer}{'_reverse' if reverse else ''}"
        return {p: p + suffix for p in PARAMETERS if self.bias or "bias" not in p}

    @property
    def extras(self) -> set[str]:
        """Return what a peer must know beside whole sequences of one length."""
        extras = {self.kind} & {"callers", "block"}
        extras |= set() if self.dx else {"training without dx"}
        return (extras | ({"lengths"} if self.lengths else set())
                | ({"resets"} if self.resets is not None else set()))

    def draw_lengths(self) -> np.ndarray:
        """Return the length of each row, int64 (B,)."""
        if self.lengths != "random":
            return np.full(self.B, self.T)
        drawn = np.random.default_rng([self.T, self.B]).integers(1, self.T + 1, self.B)
        drawn[drawn.argmax()] = self.T
        return drawn

    @property
    def live(self) -> np.ndarray:
        """Return how many rows each step has, (T,)."""
        if self.step:
            return np.array([self.step])
        return (np.arange(self.T)[:, None] < self.draw_lengths()).sum(1)

    @property
    def flops(self) -> float:
        """Of the matrix products: forward 2 G H (I + H) per row, step, layer and direction."""
        terms = sum(self.D * self.G * self.H * (self.width(k) + self.H) for k in range(self.L))
        if self.kind == "lm":
            terms += VOCABULARY * self.H
        products = 3 * terms if self.kind in ("train", "lm") else terms
        if not self.dx:
            products -= self.D * self.G * self.H * self.I
        return 2.0 * int(self.live.sum()) * products

    def tolerance(self) -> float:
        """Return the relative error, by norm, that rounding may cause: tests/cases.py's formula."""
        if self.weights == "bfloat16":
            return 2.0**-7  # each weight is rounded to 2^-8
        widths = self.I + self.H
        steps = (STREAM_STEPS if self.kind in ("stream", "callers") else self.T) * self.L
        K = max(widths, self.G * self.H, self.B) if self.kind == "train" else widths
        tol = shared.tolerance(self.dtype, K, steps, backward=self.kind == "train",
                               bidirectional=self.D == 2)
        if self.kind == "train" and self.cell == "rnn_relu":
            # a unit that is zero but for rounding may lie on either side of relu's kink; its
            # gradient, one of T B H, comes or goes as a whole: allow a handful of them
            tol += 3 * (self.T * self.B * self.H) ** -0.5
        return tol

    def asdict(self) -> dict[str, Any]:
        """Return what `Case(**...)` takes, for JSON, without what an older Case may not know."""
        new = {field.name: field.default for field in dataclasses.fields(self)
               if field.name in ("lengths", "resets", "step", "need_torch", "dx")}
        return {name: value for name, value in dataclasses.asdict(self).items()
                if name not in new or value != new[name]}


@dataclasses.dataclass
class Arrays:
    """The numbers of a case."""

    x: np.ndarray  # (T, B, I)
    h0: np.ndarray  # (L*D, B, H)
    c0: np.ndarray | None  # (L*D, B, H)
    dy: np.ndarray  # (T, B, D*H)
    params: dict[str, np.ndarray]  # by torch's names
    lengths: np.ndarray | None = None  # int64 (B,)
    reset: np.ndarray | None = None  # bool (T, B)
    rows: np.ndarray | None = None  # int64 (DRAWS, step): the callers of each step

    def astype(self, dtype: Any) -> Arrays:
        """Return the same numbers in another dtype."""
        return dataclasses.replace(
            self, x=self.x.astype(dtype), h0=self.h0.astype(dtype),
            c0=None if self.c0 is None else self.c0.astype(dtype), dy=self.dy.astype(dtype),
            params={name: param.astype(dtype) for name, param in self.params.items()},
        )

    @property
    def state(self) -> Any:
        """(h0, c0), or h0 for a cell without c."""
        return self.h0 if self.c0 is None else (self.h0, self.c0)


def arrays(case: Case) -> Arrays:
    """Draw the numbers of a case: the same in every process."""
    if case.cell == LAYERNORM:
        from bench import layernorm

        return layernorm.arrays(case)
    T = 2 * case.T if case.kind == "block" else case.T
    if case.kind in ("stream", "callers"):
        T = STREAM_STEPS
    params, h0, c0, dy, x = {}, [], [], [], None
    for layer in range(case.L):
        for reverse in range(case.D):
            last = layer == case.L - 1
            drawn = shared.make_case(
                case.cell, T if last or layer == 0 else 1, case.B, case.width(layer), case.H,
                case.dtype, seed=len(h0), bias=case.bias,
            )
            for parameter, name in case.names(layer, reverse).items():
                params[name] = getattr(drawn, parameter)
            h0.append(drawn.h0)
            c0.append(drawn.c0)
            if x is None:
                x = drawn.x
            if last:
                dy.append(drawn.dy)
    drawn_c0 = np.stack(c0) if case.has_c else None
    made = Arrays(x, np.stack(h0), drawn_c0, np.concatenate(dy, axis=-1), params)
    if case.denormal:
        tiny = np.finfo(case.dtype).tiny / 8
        for array in (made.x, made.h0, made.c0):
            if array is not None:
                array *= tiny
    rng = np.random.default_rng([case.T, case.B, 1])
    if case.lengths:
        made.lengths = case.draw_lengths()
    if case.resets is not None:
        made.reset = rng.random((case.T, case.B)) < case.resets
    if case.kind == "callers":
        made.x = np.ascontiguousarray(made.x[:, :case.step])
        every = np.arange(case.B)
        made.rows = np.stack([every if case.step == case.B else rng.permutation(every)[:case.step]
                              for _ in range(DRAWS)])
    if case.kind == "block":
        made.h0[:] = 0
        if made.c0 is not None:
            made.c0[:] = 0
    return made
