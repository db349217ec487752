"""Random definitions, and what it takes to run them: numbers, the kernels, the reference.

`write` draws the text of a cell; any `random.Random` decides, so hypothesis's shrinks it too
(`texts`). `Case` holds the numbers of one call, `run` hands them to the kernels, and `expected` to
the NumPy evaluation. Letters: T steps, B batch, I input, H hidden, P and Q further sizes, D
directions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fastrnn._kernels import program
from fastrnn._kernels.packed_program import PackedProgram
from fastrnn._kernels.runtime import Workspace
from fastrnn.cells import Definition, DefinitionError, cell
from fastrnn.cells.evaluate import forward as evaluate
from fastrnn.cells.instance import Instance, Plan
from fastrnn.cells.masks import drawn_mask

# ------------------------------------------------------------------------------------- the text

BOUNDED = ("sigmoid({})", "tanh({})", "softsign({})", "tanh({})", "sigmoid({})")
SMOOTH = ("silu({})", "gelu({})", "softplus({})", "elu({})", "scaled_tanh({}, 0.5, 1.5)",
          "affine({}, 0.5, -0.25)", "({})**2", "({})**3", "exp(tanh({}))", "log(1.5 + ({})**2)",
          "sqrt(0.5 + ({})**2)", "(1.2 + ({})**2)**-1", "(1.2 + ({})**2)**0.5",
          "(1.2 + ({})**2)**-0.5", "(1.2 + ({})**2)**1.5", "(1.1 + ({})**2)**-2.5", "-({})",
          "1 - ({})", "({}) / 2", "1 / (1.5 + ({})**2)", "({})**1", "({})**(1 + 1)", "({})**0")
KINKED = ("relu({})", "abs({})", "leaky_relu({})", "leaky_relu({}, 0.2)", "hard_sigmoid({})",
          "hard_sigmoid({}, 0.3, 0.4)", "thresholded_relu({}, 0.1)", "clip({}, -0.5, 0.75)",
          "elu({}, 0.7)")
PAIRS = ("({}) + ({})", "({}) - ({})", "({}) * ({})", "({}) * ({})", "({}) / (1.5 + ({})**2)",
         "({}) + ({})", "({}) / exp(tanh({}))")
POWER = "(1.5 + tanh({}))**({})"  # a computed exponent
CHOICES = ("min({}, {})", "max({}, {})")
OVER_UNITS = ("norm({})", "norm({}, 0.1)", "rms_norm({})", "rms_norm({}, 0.01)")
REDUCED = ("mean({})", "sum({})")
MASKS = ("dropout(0.3)", "sequence_dropout(0.25)", "step_mask(0.6)", "sequence_mask(0.5)")


class Writer:
    """Draws one definition."""

    def __init__(self, rng: random.Random, *, masks: bool, powers: bool, deep: int, most: int
                 ) -> None:
        self.rng = rng
        self.masks = masks
        self.pairs = (*PAIRS, POWER) if powers else PAIRS
        self.deep = deep
        self.most = most  # states, and other targets
        self.lines: list[str] = []
        self.equal = rng.random() < 0.25  # I and H meet
        self.sizes = ["H", *(s for s in "PQ" if rng.random() < 0.35)]
        self.widths = [*self.sizes, "I"]
        self.known: dict[str, str] = {"x": "H" if self.equal else "I"}
        self.states: dict[str, str] = {}
        self.scalars: list[str] = []
        self.constants: list[str] = []
        self.learned: list[tuple[str, str]] = []
        self.reads: set[str] = set()     # what the equation at hand reads, past comparisons
        self.seen: set[str] = set()      # what was read so far, anyhow
        self.compared = False

    def pick(self, options: Any) -> Any:
        return self.rng.choice(list(options))

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    # -- values

    def read(self, name: str) -> str:
        self.seen.add(name)
        if not self.compared:
            self.reads.add(name)
        return name

    def names(self, width: str) -> list[str]:
        return [name for name, own in self.known.items() if own == width]

    def leaf(self, width: str) -> str:
        if self.chance(0.1) and not self.compared:
            return self.vector(width)
        names = self.names(width)
        return self.read(self.pick(names)) if names else self.product(width, 0)

    def vector(self, width: str) -> str:
        own = [name for name, of in self.learned if of == width]
        if own and self.chance(0.5):
            return str(self.pick(own))
        name = f"p{len(self.learned)}"
        self.learned.append((name, width))
        return name

    def operand(self, depth: int) -> tuple[str, str]:
        """Return (width, text) of what a matrix multiplies."""
        width = self.pick(self.widths) if self.chance(0.5) else self.pick(self.known.values())
        width = "H" if width == "I" and self.equal else width
        if depth > 0 and self.chance(0.4):
            return width, f"({self.value(width, depth - 1)})"
        if self.names(width):
            name = self.read(self.pick(self.names(width)))
            return width, self.pick((name, f"({name})", f"@ {name}"))
        return ("H", self.read("x")) if self.equal else ("I", self.read("x"))

    def product(self, width: str, depth: int, blocks: int = 1) -> str:
        columns, text = self.operand(depth)
        return f"{self.pick('UVW')}{blocks if blocks > 1 else ''}_{width}{columns} {text}"

    def products(self, width: str, depth: int, blocks: int = 1) -> str:
        """Return a sum of products and biases."""
        many = blocks if blocks > 1 else ""
        text = self.product(width, depth, blocks)
        if blocks > 1 and self.chance(0.1):
            text = f"-({text})"
        for _ in range(self.pick((0, 0, 1, 1, 2, 3))):
            sign = self.pick("+++-")
            if self.chance(0.35):
                text += f" {sign} b{many}_{width}{self.pick('ab')}"
            elif blocks == 1 and self.chance(0.15):
                text += f" {sign} ({self.value(width, depth - 1)})"
            else:
                more = self.product(width, depth, blocks)
                text += f" {sign} " + self.pick((more, more, f"({more} + {more})"))
        return text

    def scalar(self, depth: int) -> str:
        """Return a value of width 1."""
        kind = self.rng.random()
        if kind < 0.25:
            return str(self.pick((0.5, 2, 1, -0.75, 0, "1.5e-1")))
        if kind < 0.45:
            if not self.constants or self.chance(0.3):
                self.constants.append(f"k{len(self.constants)}")
            return str(self.pick(self.constants))
        if kind < 0.6 and self.scalars:
            return self.read(self.pick(self.scalars))
        text = self.pick(REDUCED).format(self.value(self.pick(self.sizes), depth - 1))
        return self.pick(BOUNDED).format(text) if self.chance(0.6) else text

    def value(self, width: str, depth: int) -> str:
        """Return a value of a width that has names or products."""
        if depth <= 0:
            return self.leaf(width)
        kind = self.rng.random()
        deeper = lambda: self.value(width, depth - 1)  # noqa: E731
        if kind < 0.10:
            return self.leaf(width)
        if kind < 0.28:
            return self.products(width, depth - 1)
        if kind < 0.40:
            return self.pick(BOUNDED).format(deeper())
        if kind < 0.50:
            return self.pick(SMOOTH).format(deeper())
        if kind < 0.56:
            return self.pick(KINKED).format(deeper())
        if kind < 0.72:
            return self.pick(self.pairs).format(deeper(), deeper())
        if kind < 0.76:
            return self.pick(CHOICES).format(deeper(), deeper())
        if kind < 0.82:
            return self.pick(OVER_UNITS).format(deeper())
        if kind < 0.90:
            pair = [deeper(), self.scalar(depth - 1)]
            self.rng.shuffle(pair)
            return self.pick(PAIRS[:4]).format(*pair)
        if kind < 0.95:
            return self.where(width, depth)
        if self.masks and not self.compared:
            return f"{self.pick(MASKS)} * ({deeper()})"
        return deeper()

    def where(self, width: str, depth: int) -> str:
        before, self.compared = self.compared, True
        left = self.leaf(width)
        right = self.pick((self.leaf(width), self.pick(("0.25", "0", "-0.5"))))
        operator = self.pick(("<", "<=", ">", ">=", "==", "!="))
        if operator in ("==", "!="):
            right = left if self.chance(0.5) else right
        pair = [left, right]
        self.rng.shuffle(pair)
        self.compared = before
        return (f"where({pair[0]} {operator} {pair[1]}, {self.value(width, depth - 1)}, "
                f"{self.pick((self.value(width, depth - 1), self.scalar(0)))})")

    # -- equations

    def write(self) -> str:
        self.states = {f"s{k}": self.pick((*self.sizes, "H", "H", *("I" * (not self.equal))))
                       for k in range(self.rng.randint(1, self.most))}
        values = [f"t{k}" for k in range(self.rng.randint(0, self.most))]
        order = [*self.states, *values]
        self.rng.shuffle(order)
        self.known |= self.states
        self.graph: dict[str, set[str]] = {}
        self.equations: list[tuple[list[str], str, str]] = []
        left = list(order)
        while left:
            name = left.pop(0)
            width = self.states.get(name) or self.pick(self.widths)
            width = "H" if width == "I" and self.equal else width
            self.reads = set()
            targets = [name]
            if self.chance(0.25):  # several targets at once
                for other in list(left):
                    if self.states.get(other, width) == width and len(targets) < 6:
                        targets.append(other)
                        left.remove(other)
            text = self.equation(targets, width)
            for state in targets:
                if state in self.states and state not in self.seen and len(targets) == 1:
                    text = self.pick(("({}) + 0.5 * {}", "({}) * {}", "{1} + ({0})")).format(
                        text, self.read(state))
            if len(targets) > 1:
                for state in targets:
                    if state in self.states and state not in self.seen:
                        text += f" + U{len(targets)}_{width}{width} {self.read(state)}"
            scalar = len(targets) == 1 and name not in self.states and self.chance(0.12)
            if scalar:
                text = self.pick(REDUCED).format(text)
                self.scalars.append(name)
            for target in targets:
                self.graph[target] = set(self.reads)
                if not scalar:
                    self.known[target] = width
            self.equations.append((targets, "1" if scalar else width, text))
        return self.finish(order)

    def equation(self, targets: list[str], width: str) -> str:
        if len(targets) > 1:
            return self.products(width, 1, len(targets))
        state = targets[0] in self.states
        kind = self.rng.random()
        if state and kind < 0.2:  # it passes, swaps, copies or forgets
            if kind < 0.04:
                return str(self.pick((0.5, 0, -1)))
            return self.leaf(width)
        text = self.value(width, self.deep)
        if state and kind < 0.9:
            return self.pick(BOUNDED).format(text)
        return text

    def finish(self, order: list[str]) -> str:
        """Choose the output, and let all that was assigned influence it."""
        names = [n for n in order if n not in self.scalars]
        output = self.pick(names)
        single = [k for k, (targets, _, _) in enumerate(self.equations)
                  if len(targets) == 1 and targets[0] not in self.scalars]
        reached = self.reached(output)
        missing = [n for n in order if n not in reached]
        reads_x = "x" in set().union(*(self.graph[n] for n in reached))
        if single and (missing or not reads_x):
            output = self.equations[single[-1]][0][0]
        reached = self.reached(output)
        missing = [n for n in order if n not in reached]
        reads_x = "x" in set().union(*(self.graph[n] for n in reached))
        if missing or not reads_x:
            width = self.known[output]
            more = []
            for name in missing:
                own = self.known.get(name, "1")
                more.append(self.pick((f"tanh({name})", f"0.5 * {name}"))
                            if own in (width, "1") else f"sigmoid(mean({name}))")
            if not reads_x:
                more.append(f"W_{width}{self.known['x']} x")
            self.equations.append((["z"], width, " + ".join([output, *more])))
            output = "z"
        body = []
        for targets, width, text in self.equations:
            size = "" if width in ("1", "H") else f"[{width}]"
            body.append(", ".join(t + size for t in targets) + f" = {text}")
        used = set(re.findall(r"\w+", " ".join(body)))
        learned = [f"learned {name}[{width}] = 0.1" for name, width in self.learned if name in used]
        used |= set(re.findall(r"\w+", " ".join(learned)))
        return "\n".join([
            *(f"size {s} = {self.pick(('H', 'H * 2', 'I', '3', '1', 'H'))}"
              for s in self.sizes[1:] if s in used),
            *(f"constant {k} = {self.pick((0.5, -0.3, 1.25, 0))}"
              for k in self.constants if k in used),
            *learned, f"output {output}", *body])

    def reached(self, output: str) -> set[str]:
        found, waiting = {output}, [output]
        while waiting:
            for name in self.graph[waiting.pop()]:
                if name not in found and name in self.graph:
                    found.add(name)
                    waiting.append(name)
        return found


def write(rng: random.Random, *, masks: bool = True, powers: bool = True, deep: int = 3,
          most: int = 4) -> str:
    """Return the text of a random definition.

    Parameters
    ----------
    rng : random.Random
    masks : bool
        Whether there may be dropout and other masks.
    powers : bool
        Whether exponents may be computed. Such powers are exp(b log a), which is not what NumPy
        has where a or b is not finite: its NaN ** 0 and 1 ** inf are 1.
    deep : int
        How deep expressions nest.
    most : int
        Most states, and most other targets.
    """
    return Writer(rng, masks=masks, powers=powers, deep=deep, most=most).write()


@st.composite
def texts(draw: Any, **options: Any) -> str:
    """Definitions for hypothesis."""
    return write(draw(st.randoms(use_true_random=False)), **options)


# -------------------------------------------------------------------------------- numbers and calls


@dataclasses.dataclass(frozen=True)
class Case:
    """The numbers of one call of one direction."""

    kind: Plan
    x: np.ndarray                        # (T, B, I)
    state: tuple[np.ndarray, ...]        # (B, width)
    parameters: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...] | None
    dy: np.ndarray                       # (T, B, O)
    dfinal: tuple[np.ndarray, ...]

    @property
    def definition(self) -> Any:
        return self.kind.instance.definition

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of `parameters`."""
        return (*self.definition.weights, *self.definition.vectors)

    def astype(self, dtype: Any) -> Case:
        """Return the same numbers in another dtype."""
        def cast(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(cast, value))
            return None if value is None else value.astype(dtype)

        return dataclasses.replace(self, **{
            f.name: cast(getattr(self, f.name)) for f in dataclasses.fields(self)
            if f.name != "kind"})

    def rows(self, rows: slice) -> Case:
        """Return the case of some sequences."""
        T, B, _ = self.x.shape
        masks = None if self.masks is None else tuple(
            np.ascontiguousarray(mask.reshape(T, B, -1)[:, rows]).reshape(-1, mask.shape[1])
            if drawn.each_step else mask[rows]
            for mask, drawn in zip(self.masks, self.kind.masks, strict=True))
        return dataclasses.replace(
            self, x=self.x[:, rows].copy(), state=tuple(s[rows].copy() for s in self.state),
            masks=masks, dy=self.dy[:, rows].copy(),
            dfinal=tuple(s[rows].copy() for s in self.dfinal))


def make(definition: Any, T: int, B: int, I: int, H: int, dtype: Any = np.float64, *,
         seed: int = 0, masks: bool = False) -> Case:
    """Draw the numbers of a call."""
    definition = cell(definition) if isinstance(definition, str) else definition
    instance = Instance(definition)
    kind = Plan(instance, I, H, True)
    rng = np.random.default_rng(seed)
    sizes = instance.sizes(I, H)
    B_T = T * B

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    shapes = instance.parameters(I, H, True)
    parameters = tuple((normal(*shape) / max(1, shape[-1]) ** 0.5 if len(shape) == 2
                        else normal(*shape) / 2).astype(dtype) for shape in shapes.values())
    widths = instance.state_widths({"I": I, "H": H})
    drawn = None
    if masks:
        drawn = tuple(drawn_mask(rng, (B_T if m.each_step else B, m.width), m.rate, m.kind, dtype)
                      for m in kind.masks)
    O = sizes[definition.output_width]
    return Case(kind, normal(T, B, I), tuple(normal(B, w) / 2 for w in widths), parameters, drawn,
                normal(T, B, O), tuple(normal(B, w) for w in widths))


def reference_masks(case: Case) -> dict[int | str, np.ndarray]:
    """Return the masks as the evaluation takes them."""
    if case.masks is None:
        return {}
    T, B, _ = case.x.shape
    return {i: mask.reshape(T, B, -1) if drawn.each_step else mask
            for i, (mask, drawn) in enumerate(zip(case.masks, case.kind.masks, strict=True))}


def expected(case: Case) -> dict[str, np.ndarray]:
    """Return y and the final states of the reference."""
    y, finals = evaluate(case.definition, case.x, case.state,
                         dict(zip(case.names, case.parameters, strict=True)),
                         sizes={"H": case.kind.sizes["H"]}, masks=reference_masks(case))
    return {"y": y, **{f"{s.name}n": f for s, f in
                       zip(case.definition.states, finals, strict=True)}}


WORKSPACE = Workspace()


def forward(case: Case, *, keep: bool = True, packed: bool = False, reverse: bool = False,
            time: Any = None, layout: str = "time", index: Any = None, embedding: Any = None,
            put: Any = lambda array, rows=False: array.copy()) -> tuple[dict[str, Any], Any]:
    """Return outputs by name, and the tape."""
    T, B, _ = case.x.shape
    dtype = case.dy.dtype
    O = case.dy.shape[-1]
    parameters: Any = tuple(put(p) for p in case.parameters)
    if packed:
        parameters = PackedProgram(case.kind, dtype, parameters)
    y = put(np.full((T, B, O) if time is None else (time.size(layout), O), 7, dtype), True)
    final = tuple(put(np.full((1, *s.shape), 7, dtype)) for s in case.state)
    initial = tuple(put(s[None]) for s in case.state)
    x = put(case.x, True) if index is None else None if embedding is None else put(embedding, True)
    tape = program.forward(
        case.kind, x, None if index is None else put(index), ((parameters, case.masks),),
        (reverse,), initial, y, final, keep, WORKSPACE, time, layout, layout)
    out = {"y": y, **{f"{s.name}n": f[0] for s, f in
                      zip(case.definition.states, final, strict=True)}}
    return out, tape


def backward(case: Case, tape: Any, *, record: tuple[str, ...] = (), dy: Any = None,
             put: Any = lambda array, rows=False: array.copy()) -> dict[str, np.ndarray]:
    """Return gradients by name."""
    dtype = case.dy.dtype
    dx = put(np.full(tape.x_shape, 7, dtype), True) if tape.x_shape else None
    dinitial = tuple(put(np.full((1, *s.shape), 7, dtype)) for s in case.state)
    grads = tuple(put(np.zeros(p.shape, dtype)) for p in case.parameters)
    dy = case.dy if dy is None else dy
    found = program.backward(tape, put(dy, True), tuple(put(s[None]) for s in case.dfinal), dx,
                             dinitial, (grads,), record)
    names = [s.name for s in case.definition.states]
    return {**({} if dx is None else {"dx": dx}),
            **{f"d{n}0": d[0] for n, d in zip(names, dinitial, strict=True)},
            **{f"grad {n}": g for n, g in zip(case.names, grads, strict=True)},
            **{f"record {n}": a for n, a in found.items()}}


def run(case: Case, *, record: tuple[str, ...] = (), dy: Any = None, **options: Any
        ) -> dict[str, np.ndarray]:
    """Return outputs and gradients by name."""
    out, tape = forward(case, **options)
    more = {"put": options["put"]} if "put" in options else {}
    return out | backward(case, tape, record=record, dy=dy, **more)


def record_names(case: Case) -> tuple[str, ...]:
    """Return all that backward can record."""
    names = [s.name for s in case.definition.states]
    return (*(f"d{n}" for n in names), *names, "x")


# ------------------------------------------------------------------------------ plain random cases


def definition_of(rng: random.Random, **options: Any) -> Definition:
    """Return a random definition; the few texts that the language refuses are left out."""
    while True:
        try:
            return cell(write(rng, **options))
        except DefinitionError:
            continue


def tame(case: Case) -> bool:
    """Whether the outputs are finite and of moderate size, so that errors stay small."""
    return all(np.isfinite(a).all() and (np.abs(a) < 1e3).all() for a in expected(case).values())


def drawn(seed: int, T: int, B: int, I: int | None = None, H: int | None = None,
          dtype: Any = np.float64, **options: Any) -> Case:
    """Return a tame case of a random definition; I and H are random unless given."""
    rng = random.Random(seed)
    while True:
        definition = definition_of(rng, **{"deep": rng.choice((1, 2, 3)),
                                           "most": rng.choice((1, 2, 4)), **options})
        h = H or rng.randint(1, 9)
        i = h if definition.equal_sizes else I or rng.randint(1, 9)
        case = make(definition, T, B, i, h, seed=seed, masks=True)
        if tame(case):
            return case.astype(dtype)


@contextlib.contextmanager
def about(case: Case, *more: Any) -> Iterator[None]:
    """Let a failure tell the definition and the sizes."""
    try:
        yield
    except Exception as error:
        sizes = case.kind.sizes
        error.add_note(f"{more} T, B = {case.x.shape[:2]}, {sizes}\n{case.definition.text}")
        raise
