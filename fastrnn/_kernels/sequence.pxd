from fastrnn._kernels.check cimport Carver
from fastrnn._kernels.timeline cimport Timeline
from fastrnn._kernels.walk cimport Pass


cdef check_state(str name, object array, object dtype, tuple shape, bint writeable=*)
cdef object use_index(Pass *p, object index, bint reverse, Timeline time)
cdef ptrdiff_t chunk_of(const Pass *p) except -1
cdef ptrdiff_t lay_out_taken(Carver carver, Pass *p, int threads) except -1
