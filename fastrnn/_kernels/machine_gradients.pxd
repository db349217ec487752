from fastrnn._kernels.machine cimport Run, RunJob


cdef void add_sums(const Run *r, ptrdiff_t b0, ptrdiff_t b1) noexcept nogil
cdef void parameter_gradients(Run *r, RunJob *job, int rank, int size) noexcept nogil
