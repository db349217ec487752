from fastrnn._kernels.machine cimport Machine, Run
from fastrnn._kernels.runtime cimport Buffer


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


cdef void use_machine(Run *r, Machine m, int phases) noexcept
cdef Run sized_run(Machine m, ptrdiff_t T, ptrdiff_t B, bint keep) noexcept
cdef tuple check_parameters(Machine m, object parameters, bint gradient)
cdef void set_pointers(void **pointers, tuple arrays) noexcept
