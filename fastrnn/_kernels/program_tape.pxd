from fastrnn._kernels.machine cimport Machine, Run
from fastrnn._kernels.tape cimport BaseTape


cdef class ProgramTape(BaseTape):
    """The tape of a program."""
    cdef Run runs[2]
    cdef Machine machine
    cdef object kind             # the Compiled that forward was given
    cdef public object notes     # of who called forward
