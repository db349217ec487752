"""Many steps of a stack of layers in one call: what `Stream.block` runs."""

from libc.stdint cimport int32_t

from fastrnn._kernels.c cimport fr_barrier
from fastrnn._kernels.runtime cimport Buffer
from fastrnn._kernels.stack cimport Stack
from fastrnn._kernels.walk cimport Pass


cdef struct Block:
    Stack *stack
    fr_barrier barrier
    Pass *layers             # of each layer: what `project` reads
    ptrdiff_t itemsize
    ptrdiff_t T, n           # steps and rows of this call
    ptrdiff_t chunk          # steps of a layer before the next layer takes them
    bint joined              # all layers take x and h in one chain: x is not projected before
    bint by_units            # threads split hidden units and outputs, not rows
    const char *x            # (T, n, I), or NULL
    const int32_t *numbers   # (T, n) symbols, or NULL
    const char *embedding    # (V, I): its rows are x, or NULL
    char *y                  # (T, n, H), with a head (T, n, N)
    # memory of a chunk; each thread has a part of its own, for its rows
    ptrdiff_t row, pitch     # the widest of all layers
    char *rows               # (chunk, n, I) rows of the embedding
    char *gates              # (chunk, n, row) projected x of one layer
    char *h[2]               # (chunk, n, pitch) of one layer and of the one before, in turn


cdef class Scratch:
    """The memory of all blocks of one stream."""
    cdef Buffer buffer
    cdef Buffer weights                  # of x, unpacked from bfloat16
    cdef Buffer row_weights              # of h, in the order in which one row takes them
    cdef Buffer symbols
    cdef Block block
    cdef ptrdiff_t most_rows, few_rows   # rows of all steps of a chunk
    cdef int32_t *symbols_for(self, object count) except? NULL
    cdef object prepare(self, ptrdiff_t T, ptrdiff_t n)
    cdef object unpack(self)
    cdef object pack_rows(self)


cdef Scratch make_scratch(tuple groups, Stack *stack, bint first_is_projected, ptrdiff_t looked_up,
                          object dtype, ptrdiff_t B)
cdef void walk_block(void *arg, int rank, int size) noexcept nogil
