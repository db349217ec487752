from libc.stdint cimport int32_t

from fastrnn._kernels.packed_program cimport PackedProgram
from fastrnn._kernels.runtime cimport Buffer
from fastrnn._kernels.stack cimport Layer


cdef struct StateRows:
    char *base
    ptrdiff_t width, pitch


cdef ptrdiff_t inputs_of(object layer) except -1
cdef ptrdiff_t outputs_of(object layer) except -1
cdef tuple states_of(object layer)
cdef tuple checked_groups(str name, object groups, object dtype)
cdef tuple checked_parts(str name, object state, object layer, object dtype, ptrdiff_t layers,
                         ptrdiff_t n)

cdef Buffer place_program(Layer *layer, PackedProgram packed, ptrdiff_t B)
cdef ptrdiff_t work_of(const Layer *layer) noexcept
cdef Buffer place_workers(Layer *layers, int count, int threads)
cdef StateRows state_rows(const Layer *layer, int s) noexcept nogil
cdef void place_output(Layer *layer) noexcept nogil
cdef void lend_program(Layer *layer, const int32_t *chosen, ptrdiff_t n) noexcept nogil
cdef void take_back_program(Layer *layer, const int32_t *chosen, ptrdiff_t n) noexcept nogil
cdef Buffer program_symbols(PackedProgram packed, object embedding)
