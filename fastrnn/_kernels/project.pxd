from fastrnn._kernels.c cimport fr_rows
from fastrnn._kernels.walk cimport Pass


cdef void pack_weights(const Pass *p, void *panels, const void *weight, ptrdiff_t K,
                       ptrdiff_t panel0, ptrdiff_t panel1) noexcept nogil
cdef void pack_forward(Pass *p, ptrdiff_t panel0, ptrdiff_t panel1, bint bias) noexcept nogil
cdef void pack_row(const Pass *p, void *target, const void *wh) noexcept nogil
cdef void unpack_halves(const Pass *p, ptrdiff_t panel0, ptrdiff_t panel1) noexcept nogil
cdef void project(const Pass *p, fr_rows x, fr_rows out, ptrdiff_t row0, ptrdiff_t row1,
                  ptrdiff_t panel0, ptrdiff_t panel1) noexcept nogil
cdef void project_symbols(const Pass *p, ptrdiff_t row0, ptrdiff_t row1) noexcept nogil
