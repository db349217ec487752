from libc.stdint cimport int32_t

from fastrnn._kernels.c cimport fr_barrier, fr_instruction, fr_place, fr_rows, fr_table
from fastrnn._kernels.runtime cimport Buffer
from fastrnn._kernels.walk cimport Job, Pass, at


cdef enum Space:
    TAPE, SCRATCH, OLD, NEW, CARRY, VECTOR, MASK, SUMS


cdef enum Kind:
    CODE, SUM, PRODUCT, BACK


cdef struct Spot:
    int space
    int number               # of a state or mask
    ptrdiff_t offset         # elements, in a row of the tape, of scratch, of vectors or of sums


cdef struct Phase:
    int kind
    bint waits               # a team that shares units waits after it
    # CODE
    ptrdiff_t units          # whole vectors
    ptrdiff_t tile
    int places, registers
    ptrdiff_t count
    const Spot *spots
    const fr_instruction *code
    # SUM: target = sum of n units of source. PRODUCT: target (columns) = start + weight (K) source.
    # BACK: target (n) += the weight's gradients: `blocks` runs of K, `slot` apart, of source
    Spot target, source
    ptrdiff_t n, K, columns, slot
    int blocks
    bint begins
    ptrdiff_t weight         # elements from the packs' beginning
    ptrdiff_t bias           # -1: zero


cdef struct Phases:
    const Phase *phase
    int count
    ptrdiff_t scratch        # elements of a row of scratch
    int registers            # the most of a phase
    int places


cdef struct State:
    ptrdiff_t width, pitch


cdef struct Weight:
    ptrdiff_t blocks, width, K
    ptrdiff_t back           # elements from the beginning of backward's packs; -1: none
    ptrdiff_t back_x         # the same for the gradient of x


cdef struct Packing:         # a weight in panels of forward
    int weight
    ptrdiff_t packed         # elements from the packs' beginning
    ptrdiff_t vectors        # of the panels, before it


cdef struct Row:             # a vector that all rows share
    int vector               # number of the learned vector, or -1: a constant
    double value
    ptrdiff_t block, width, offset


cdef struct Bias:            # where a learned vector is added at the beginning of chains
    int vector
    ptrdiff_t blocks, width, offset


cdef struct Gradient:
    int weight
    int bias                 # of the same blocks, or -1: another product has them
    Spot source
    bint of_x
    ptrdiff_t offset         # of the gradients in a tape row
    ptrdiff_t blocks, width, K


cdef struct VectorGradient:  # of one block
    int vector
    ptrdiff_t block, offset, width


cdef class Machine:
    """A program laid out for one dtype and instruction set. It never changes."""
    cdef Buffer buffer
    cdef object alive            # arrays that the pointers below point into
    cdef readonly object program
    cdef readonly object dtype
    cdef const fr_table *table
    cdef ptrdiff_t input_size, row, lean_row  # I; elements of a tape row with and without a tape
    cdef ptrdiff_t x_columns     # of the products with the input, whole vectors
    cdef ptrdiff_t x_offset, dx_offset  # slots in a tape row, -1: none
    cdef int state_count, weight_count, mask_count, gradient_count
    cdef int row_count, bias_count, vector_gradient_count
    cdef State *states
    cdef Weight *weights
    cdef int packing_count
    cdef Packing *packings
    cdef Row *rows
    cdef Bias *biases
    cdef Gradient *gradients
    cdef VectorGradient *vector_gradients
    cdef ptrdiff_t sums_size     # of a row of all vectors' gradients
    cdef int output_state
    cdef ptrdiff_t output_width
    cdef Spot output, output_lean, dy
    cdef int record_count
    cdef Spot *records           # of each state
    cdef Phases forward, lean, backward
    cdef ptrdiff_t vectors_size, biases_size, packs_size, back_size, x_packed
    cdef double operations       # of a row and step, all products forward
    cdef double weight_bytes     # that a step reads
    cdef tuple shapes            # of the weights, then the vectors


cdef struct Run:
    Pass p                       # times, x, the tape's rows and the projection; see project()
    const fr_table *table
    int state_count, weight_count, row_count, bias_count, gradient_count
    int vector_gradient_count
    const State *state
    const Weight *weight
    int packing_count
    const Packing *packing
    const Row *row
    const Bias *bias
    const Gradient *gradient
    const VectorGradient *vector_gradient
    Phases phases
    bint lean                    # without a tape
    bint symbols_ready           # p.symbols has its rows already
    ptrdiff_t x_offset, dx_offset
    int output_state
    ptrdiff_t output_width
    Spot output, dy
    # memory
    void **parameters            # weights, then learned vectors; NULL with `packed`
    char *packs
    char *back
    char *vectors                # rows that all rows share
    char *starts                 # biases, laid out as tape rows
    char *scratch                # (R, phases.scratch)
    char *registers              # of each thread
    ptrdiff_t registers_size
    fr_place *places             # of each thread
    char **states                # (R + N, pitch), or without a tape two in turn (2, R, pitch)
    char **carries               # (R, pitch)
    char **masks
    ptrdiff_t *mask_row          # elements between rows; 0: one row for all
    bint *mask_steps             # whether it has a row for each step
    int record_count
    const Spot *record           # scratch that holds dL/dstate
    fr_rows *record_rows         # where it goes
    ptrdiff_t *record_width
    void **grads
    ptrdiff_t sums_row
    char *sums               # (R, sums_row) of the vectors' gradients in the last steps
    char *totals             # (R + 1, sums_row) of those before, and room for their sum
    fr_barrier barrier


cdef struct RunJob:
    Job job                      # how many runs, and who does what
    Run *runs


cdef struct Step:
    ptrdiff_t t, b0, rows
    char *tape               # its first row
    int worker               # number of the thread among all
    int rank, size           # in a team that shares the units


cdef inline char *row_in(const Run *r, fr_rows rows, ptrdiff_t i) noexcept nogil:
    """Row i of the rows of all steps."""
    if rows.at:
        return at(rows.base, rows.at[i] * rows.inner, &r.p)
    return at(rows.base, i // rows.count * rows.outer + i % rows.count * rows.inner, &r.p)


cdef char *state_at(const Run *r, int s, ptrdiff_t t, ptrdiff_t b) noexcept nogil
cdef fr_place place(const Run *r, const Spot *spot, const Step *s) noexcept nogil
cdef bint run_phases(Run *r, Step *s) noexcept nogil
cdef bint meet(Run *r, Step *s) noexcept nogil
cdef int plan_runs(RunJob *job, double operations, double weight_bytes) noexcept nogil
cdef void run_forward(void *arg, int rank, int size) noexcept nogil
cdef void run_backward(void *arg, int rank, int size) noexcept nogil
