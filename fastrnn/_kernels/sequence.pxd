from fastrnn._kernels.c cimport fr_cell_row, fr_table
from fastrnn._kernels.runtime cimport Buffer


cdef class Packed:
    """The weights of one direction of one layer in the kernels' panels, for forward only."""
    cdef Buffer buffer
    cdef object w_ih   # (G*H, I), as it came
    cdef const fr_table *table
    cdef const fr_cell_row *cell
    cdef readonly int kind
    cdef readonly ptrdiff_t input_size, hidden_size
    cdef void *wx      # (panels, I, vectors * lanes)
    cdef void *wh      # (panels, H, vectors * lanes)
    cdef readonly bint half
    cdef void *wx_half  # (panels, (I + 1) / 2, vectors * lanes): bfloat16, two in a word
    cdef void *wh_half  # (panels, (H + 1) / 2, vectors * lanes)
    cdef void *start   # (S, pitch)
    cdef void *bias_n  # (pitch)


cdef check_flat(str name, object array, object dtype, tuple shape, bint writeable=*)
