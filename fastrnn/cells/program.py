"""The program of a cell: phases of one step, and where each value lies.

A step is a list of phases. An element-wise phase applies operations to rows of one width; a phase
of sums adds up the units of a row; a phase of products multiplies rows by packed weights. A value
that is read in the phase that makes it alone is a register: a tile of rows and units. Others lie in
one of these spaces, as a row of its width for each row of the batch:

    TAPE      kept for backward; without backward, what is projected from the input beforehand
    SCRATCH   gone after the step
    OLD, NEW  the states before and after the step
    CARRY     the gradients of the states, which backward passes on
    VECTOR    learned vectors and constants: one row for all
    MASK      what training draws
    SUMS      the gradients of learned vectors, which each row of the batch adds up over its steps

Letter: K columns of a weight.
"""

from __future__ import annotations

from typing import NamedTuple

from fastrnn.cells.graph import Mask

__all__ = ["Back", "Code", "Gradient", "GroupPlan", "Phase", "Product", "Program", "Spot", "Sum"]

TAPE, SCRATCH, OLD, NEW, CARRY, VECTOR, MASK, SUMS = range(8)
Spot = tuple[int, int]  # space, index there

OPERATIONS = ("copy", "add", "sub", "mul", "div", "fma", "fnma", "min", "max", "abs", "relu",
              "less", "less_equal", "sigmoid", "tanh", "exp", "log", "sqrt", "softplus", "dsigmoid",
              "dtanh", "splat")  # in the order of fr_operation
NUMBER = {op: i for i, op in enumerate(OPERATIONS)}


class Code(NamedTuple):
    """An element-wise phase: instructions (op, d, a, b, c, e) on places, then registers."""

    width: int
    spots: tuple[Spot, ...]
    instructions: tuple[tuple[int, int, int, int, int, int], ...]
    registers: int


class Sum(NamedTuple):
    """The sum of `width` units."""

    target: Spot
    source: Spot
    width: int


class Product(NamedTuple):
    """target (blocks of rows) = start + weight times source (rows of K)."""

    target: Spot          # the first of the blocks
    blocks: int
    width: int
    source: Spot
    K: int
    weight: str
    begins: bool          # whether the chain starts here: at the biases, or at zero
    group: int


class Back(NamedTuple):
    """target (rows of K) += the gradients of `blocks` blocks times the weight."""

    target: Spot
    K: int
    source: Spot
    blocks: int
    width: int
    weight: str
    begins: bool          # whether target starts at zero


class Gradient(NamedTuple):
    """The gradient of a weight: the sum over rows of its blocks' gradients times its source.

    The sum of the gradients themselves is that of the bias. A bias that has no product to be
    summed with has a row without a weight.
    """

    weight: str | None
    bias: str | None
    source: Spot | None   # None: the input
    slot: int             # the first of the blocks, on the tape
    blocks: int
    width: int
    K: int


class GroupPlan(NamedTuple):
    """A sum of products: its biases, and the weight of its product with the input or None."""

    number: int
    blocks: int
    width: int
    biases: tuple[str, ...]
    weight: str | None


Phase = Code | list[Sum] | list[Product] | list[Back]


class Program(NamedTuple):
    """All that the kernels need of a cell of given sizes.

    Attributes
    ----------
    input_size : int
    states : tuple of (name, width), the output first if it is a state
    output : Spot of forward's output
    tape : widths of the slots of a tape row; the first `projected` of them are products with the
        input, in the order of the groups; the next is a copy of the input if `x_slot`
    """

    input_size: int
    states: tuple[tuple[str, int], ...]
    output_width: int
    output_state: int                 # or -1
    output: Spot                      # in training, if it is no state
    output_inference: Spot
    tape: tuple[int, ...]
    projected: int
    x_slot: int                       # or -1
    dx_slot: int                      # where the gradient of x past the products is, or -1
    groups: tuple[GroupPlan, ...]     # in the order of their slots, those with the input first
    scratch: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    vectors: tuple[tuple[str, float, int, int], ...]  # name ("" of a constant), value, block, width
    vector_names: tuple[str, ...]     # of the learned ones
    vector_sizes: tuple[int, ...]
    masks: tuple[Mask, ...]
    forward: tuple[Phase, ...]
    inference: tuple[Phase, ...]
    backward: tuple[Phase, ...]
    dy_slot: int                      # of backward's scratch, if the output is no state, or -1
    records: tuple[tuple[int, int], ...]  # state and slot of backward's scratch: dL/dstate
    weights: tuple[tuple[str, int, int, int], ...]  # name, blocks, width, K
    gradients: tuple[Gradient, ...]
    vector_gradients: tuple[tuple[str, int, int], ...]  # vector, its block, width; as in SUMS
