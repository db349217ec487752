from libc.stdint cimport int32_t

from fastrnn._kernels.packed cimport Head
from fastrnn._kernels.runtime cimport Buffer
from fastrnn._kernels.stack cimport Layer, Stack


cdef class States:
    """The layers of a stream, each with its weights, and the states of its B rows.

    Attributes
    ----------
    num_layers, batch_size, input_size, hidden_size, output_size : int
        L, B, I, H of the last layer, N (without a head H).
    dtype : numpy.dtype
    """

    cdef str name
    cdef tuple groups          # of tuples of Packed or PackedProgram
    cdef Buffer buffer         # layers, states, rows and symbols of a call
    cdef list memory           # of each program
    cdef Buffer work           # of each thread that runs programs
    cdef int workers           # how many those are
    cdef bint has_programs
    cdef Layer *layers         # NULL before the stream is complete
    cdef Stack stack
    cdef Head head
    cdef ptrdiff_t nbytes      # of all weights
    cdef bint heavy            # worth several threads
    cdef ptrdiff_t light_rows  # a step of at most so many rows keeps the GIL
    cdef readonly int num_layers
    cdef readonly ptrdiff_t batch_size, input_size, hidden_size, output_size
    cdef readonly object dtype
    cdef int typenum
    cdef ptrdiff_t itemsize
    cdef bint nested
    cdef bint indexed          # x is symbols
    cdef ptrdiff_t V           # how many there are
    cdef object embedding      # (V, I) a copy, or None
    cdef Buffer symbols        # (V, S*pitch): the symbols behind the first layer's projection
    cdef ptrdiff_t symbols_row
    cdef int32_t *row_numbers  # (B,)
    cdef char *rows_of_x       # (B, I): rows of an embedding that is too large for a table
    cdef int32_t *chosen       # (B,) the rows of a call that names some
    cdef char *marks           # (B,) zeros
    cdef bint busy             # a call is at work, or the stream is not complete

    cdef object place(self, object B)
    cdef object staff(self, int threads)
    cdef void prepare_programs(self) noexcept nogil
    cdef void turn_programs(self, ptrdiff_t steps) noexcept nogil
    cdef void place_head(self, ptrdiff_t B, ptrdiff_t pitch) noexcept
    cdef int enter(self) except -1
    cdef object refuse(self)
    cdef object row_array(self, rows)
    cdef object refuse_rows(self, array)
    cdef ptrdiff_t copy_rows(self, array, int32_t *target, bint distinct) except -1
    cdef ptrdiff_t choose(self, rows) except -1
    cdef void lend(self, ptrdiff_t n) noexcept nogil
    cdef void take_back(self, ptrdiff_t n, bint stepped) noexcept nogil
    cdef object states(self, ptrdiff_t n, const int32_t *rows)
    cdef list checked_states(self, object state, ptrdiff_t n)
    cdef object put_states(self, list states, ptrdiff_t n, const int32_t *rows)
    cdef void move(self, array, int first, int count, int s, bint into, ptrdiff_t n,
                   const int32_t *rows) noexcept
