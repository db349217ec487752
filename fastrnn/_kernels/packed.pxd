from fastrnn._kernels.c cimport fr_cell_row, fr_table
from fastrnn._kernels.runtime cimport Buffer
from fastrnn._kernels.walk cimport Pass


cdef class Packed:
    """The weights of one direction of one layer in the kernels' panels, for forward.

    Parameters
    ----------
    kind : int
        Index of the cell, in the order of fr_cell.
    weights : tuple
        weight_ih (G*H, I), weight_hh (G*H, H), bias_ih (G*H,) or None, bias_hh (G*H,) or None.
    halves : tuple, optional
        The words (G*H, (I+1)//2) and (G*H, (H+1)//2) of bfloat16.pair; `weights` are then the
        rounded weights, and only their shapes and the biases are used.
    """
    cdef Buffer buffer
    cdef const fr_table *table
    cdef const fr_cell_row *cell
    cdef readonly int kind
    cdef readonly ptrdiff_t input_size, hidden_size
    cdef readonly object dtype
    cdef readonly tuple weights  # as they came, for backward; None with halves
    cdef tuple biases            # as they were when the weights were packed
    cdef readonly bint half
    cdef void *wx       # (panels, I, vectors * lanes), NULL with halves
    cdef void *wh       # (panels, H, vectors * lanes), NULL with halves
    cdef void *wx_half  # (panels, (I + 1) / 2, vectors * lanes): bfloat16, two in a word
    cdef void *wh_half  # (panels, (H + 1) / 2, vectors * lanes)
    cdef void *start    # (S, pitch)
    cdef void *bias_n   # (pitch)
    cdef void fill(self, const Pass *p, void *wx, const void *w_ih, void *wh, const void *w_hh)
    cdef object columns(self, object columns)
    cdef tuple unpacked(self)


cdef class Head:
    """Weight (N, K) and bias (N,) of a linear layer, packed."""
    cdef Buffer buffer
    cdef const fr_table *table
    cdef void *weight       # (panels, K, plain_vectors * lanes)
    cdef void *bias         # padded to whole panels, or NULL
    cdef ptrdiff_t panels, inputs, outputs
    cdef object dtype
    cdef tuple unpacked(self)


cdef ptrdiff_t panels_width(const Pass *p) noexcept
cdef ptrdiff_t margin(const Pass *p) noexcept
cdef object unpack(const fr_table *table, const fr_cell_row *cell, const void *panels, object dtype,
                   ptrdiff_t K, ptrdiff_t H, object columns=*, bint halves=*)
