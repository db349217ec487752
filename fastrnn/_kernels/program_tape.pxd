from fastrnn._kernels.machine cimport Machine, Run
from fastrnn._kernels.runtime cimport Buffer, Workspace
from fastrnn._kernels.timeline cimport Timeline


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
