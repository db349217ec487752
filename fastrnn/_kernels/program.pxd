from fastrnn._kernels.machine cimport Machine, Run
from fastrnn._kernels.runtime cimport Buffer, Workspace
from fastrnn._kernels.timeline cimport Timeline


cdef class PackedProgram:
    """The weights and learned vectors of one direction of one layer, packed for forward."""
    cdef readonly Machine machine
    cdef Buffer buffer
    cdef tuple parameters        # as they came, for backward
    cdef tuple learned           # the vectors as they were when they were packed
    cdef char *packs
    cdef char *vectors
    cdef char *starts
    cdef object panel_rows(self, ptrdiff_t packed, ptrdiff_t vectors, ptrdiff_t K)
    cdef tuple unpacked(self)


cdef class ProgramTape:
    """What backward needs of one forward call of a program. Serves one backward."""
    cdef Run runs[2]
    cdef int count
    cdef Machine machine
    cdef Buffer buffer
    cdef Workspace workspace
    cdef object kept             # the arrays that the runs point into
    cdef tuple weights
    cdef tuple reverse
    cdef Timeline time
    cdef str source, target
    cdef ptrdiff_t embedding_rows
    cdef object used_rows
    cdef readonly object dtype
    cdef readonly tuple shape    # (T, B, I, features of y of one direction)
    cdef readonly bint used
    cdef public object notes     # of who called forward


cdef Run sized_run(Machine m, ptrdiff_t T, ptrdiff_t B, bint keep) noexcept
