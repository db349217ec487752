from fastrnn._kernels.runtime cimport Buffer, Workspace
from fastrnn._kernels.timeline cimport Timeline
from fastrnn._kernels.walk cimport Pass


cdef class Tape:
    """What backward needs of one forward call. Serves one backward."""
    cdef Pass passes[2]
    cdef int count
    cdef Buffer buffer
    cdef Workspace workspace
    cdef object kept      # the arrays that the passes point into
    cdef tuple weights
    cdef tuple reverse
    cdef Timeline time        # of rows of different lengths, or None
    cdef str source           # with time, the layout of x
    cdef str target           # and of y
    cdef ptrdiff_t embedding_rows  # V
    cdef object used_rows          # (U,) the rows of the embedding, or symbols, that x names
    cdef readonly object dtype
    cdef readonly int kind     # index of the cell
    cdef readonly tuple shape  # (T, B, I, H)
    cdef readonly bint used
    cdef object recorded(self, str name)
    cdef object places(self, bint reverse)
    cdef object input(self)


cdef give_back(Workspace workspace, Buffer buffer)
cdef void copy_rows(char *target, ptrdiff_t stride, object places, const char *source,
                    ptrdiff_t source_stride, object taken, ptrdiff_t N, ptrdiff_t size) noexcept
cdef object places_of(Timeline time, tuple shape, bint reverse)
cdef object input_of(object x, object index, object used_rows, Timeline time, str source,
                     tuple shape)
