from fastrnn._kernels.c cimport fr_rows
from fastrnn._kernels.timeline cimport Timeline


cdef class Carver:
    """Lays several arrays of one dtype into one buffer, each at a multiple of 64 bytes."""
    cdef ptrdiff_t bytes   # of all arrays so far
    cdef ptrdiff_t itemsize
    cdef ptrdiff_t add(self, object elements) except -1
    cdef ptrdiff_t add_rows(self, ptrdiff_t rows, ptrdiff_t elements) except -1


cdef check(str name, object array, object dtype, tuple shape, bint writeable=*)
cdef check_flat(str name, object array, object dtype, tuple shape, bint writeable=*)
cdef check_weights(tuple weights, int gates, object dtype, ptrdiff_t I, ptrdiff_t H, bint gradient)
cdef void *pointer(object array) noexcept
cdef fr_rows grid(object array, ptrdiff_t offset, bint reverse)
cdef fr_rows caller_rows(object array, ptrdiff_t offset, bint reverse, Timeline time, str layout)
cdef tuple named_rows(object index, ptrdiff_t V)
cdef object take_rows(object array, object index)
cdef void put_rows(object array, object index, object rows) noexcept
cdef object as_array(str name, object value, object of)
cdef object numbers(str name, object value, object dtype, tuple shape)
cdef object check_out(str name, object out, object dtype, tuple shape)
cdef tuple parts_of_state(str name, object state, bint has_c, object dtype, tuple shape)
