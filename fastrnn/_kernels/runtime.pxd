from fastrnn._kernels.c cimport fr_barrier, fr_table, fr_work

cdef const fr_table *table_for(object dtype) except NULL
cdef const fr_table *table_of(int bits) noexcept nogil  # of float32 or float64
cdef int threads_for(double operations) noexcept nogil

# The C functions that keep state live in this module's copy of the C side; the other modules reach
# them through here.
cdef void run(fr_work work, void *arg, int threads) noexcept nogil
cdef void wait(fr_barrier *barrier, int size) noexcept nogil
cdef bint wait_step(fr_barrier *barrier, int size) noexcept nogil
cdef unsigned flush_denormals() noexcept nogil  # sets the kernels' floating-point state
cdef unsigned keep_denormals() noexcept nogil   # the same without flushing
cdef void restore(unsigned state) noexcept nogil
cdef ptrdiff_t pitch_of(ptrdiff_t hidden, ptrdiff_t itemsize) noexcept nogil


cdef class Buffer:
    """64-byte aligned memory that Python owns."""
    cdef object owner
    cdef char *data
    cdef readonly ptrdiff_t nbytes


cdef class Workspace:
    """Hands out buffers and takes them back, so that a training loop faults its pages in once."""
    cdef list spare  # the oldest first
    cdef Buffer take(self, ptrdiff_t nbytes)
    cdef void give(self, Buffer buffer)
