from fastrnn._kernels.runtime cimport Buffer, Workspace
from fastrnn._kernels.timeline cimport Timeline
from fastrnn._kernels.walk cimport Pass


cdef class BaseTape:
    """What backward needs of one forward call. Serves one backward."""
    cdef int count            # directions
    cdef Buffer buffer
    cdef Workspace workspace
    cdef object kept          # the arrays that the passes point into: x, index, and others
    cdef tuple weights
    cdef tuple reverse
    cdef Timeline time        # of rows of different lengths, or None
    cdef str source           # with time, the layout of x
    cdef str target           # and of y
    cdef ptrdiff_t embedding_rows  # V
    cdef object used_rows          # (U,) the rows of the embedding, or symbols, that x names
    cdef readonly object dtype
    cdef readonly tuple shape      # (T, B, I, features of y of one direction)
    cdef readonly bint used
    cdef public object shadow      # with FASTRNN_CHECK=1, the same call by the scalar table
    cdef ptrdiff_t copy_to(self, BaseTape twin) except? -1
    cdef own_weights(self)
    cdef own(self, list weights)
    cdef object places(self, bint reverse)
    cdef object input(self)


cdef class Tape(BaseTape):
    """The tape of a hand-written cell."""
    cdef Pass passes[2]
    cdef readonly int kind    # index of the cell
    cdef object recorded(self, str name)


cdef give_back(Workspace workspace, Buffer buffer)
cdef void copy_rows(char *target, ptrdiff_t stride, object places, const char *source,
                    ptrdiff_t source_stride, object taken, ptrdiff_t N, ptrdiff_t size) noexcept
cdef tuple checked_input(BaseTape tape, object x, object index, ptrdiff_t I, object dtype,
                         tuple rows)
cdef tuple copies_of(object arrays)
cdef object numbers_at(BaseTape tape, char *data, object count)
cdef check_outer(BaseTape tape, object dy, object dx, tuple grads)
