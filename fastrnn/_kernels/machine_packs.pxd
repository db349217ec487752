from fastrnn._kernels.machine cimport Run


cdef void pack_run(const Run *r, int rank, int size) noexcept nogil
cdef void pack_back(const Run *r, int rank, int size) noexcept nogil
