cimport numpy as cnp

from fastrnn._kernels.c cimport fr_barrier, fr_forward, fr_product
from fastrnn._kernels.machine cimport Run, Step


cdef struct Layer:
    fr_forward step
    void (*forward)(const fr_forward *) noexcept nogil
    Run *run                 # a program (machine.pyx); NULL: a hand-written cell
    # a call that names some rows runs on copies of their states (n, pitch); see stream_states.pyx
    void *h_rows
    void *c_rows             # NULL: the cell has no c
    void *h_all              # meanwhile: the states of all rows (B, pitch)
    void *c_all
    # of a program. Of `step` it reads x, the symbols, and y; h is where its output is going to lie
    ptrdiff_t turn           # 0 or 1: which of the two rows of each state is the present one
    char **lent              # states of named rows, two in turn; meanwhile those of all rows
    ptrdiff_t turn_all       # meanwhile: the turn of all rows
    char *out                # (B, pitch) the output, NULL: it is a state


cdef struct Stack:
    Layer *layers
    int count
    bint has_head
    fr_product head
    void (*product)(const fr_product *) noexcept nogil
    fr_barrier barrier


cdef void walk_stack(void *arg, int rank, int size) noexcept nogil
cdef bint advance_run(Run *r, Step *s, const fr_forward *io) noexcept nogil


cdef inline bint overlap(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether two C-contiguous arrays share memory."""
    cdef const char *a0 = cnp.PyArray_BYTES(a)
    cdef const char *b0 = cnp.PyArray_BYTES(b)
    return a0 < b0 + cnp.PyArray_NBYTES(b) and b0 < a0 + cnp.PyArray_NBYTES(a)


cdef inline bint is_flat(object a, int typenum, int ndim) noexcept:
    """Whether it is a C-contiguous, aligned, native array of this dtype and number of axes."""
    # <cnp.ndarray>: Cython would test the type once more at each use
    return (cnp.PyArray_CheckExact(a) and cnp.PyArray_TYPE(<cnp.ndarray> a) == typenum
            and cnp.PyArray_NDIM(<cnp.ndarray> a) == ndim
            and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> a))


cdef inline bint is_matrix(object a, int typenum, ptrdiff_t rows, ptrdiff_t columns) noexcept:
    """The same of a matrix of this shape."""
    return (is_flat(a, typenum, 2) and cnp.PyArray_DIM(<cnp.ndarray> a, 0) == rows
            and cnp.PyArray_DIM(<cnp.ndarray> a, 1) == columns)


cdef inline bint is_index(object a) noexcept:
    """Whether it is a C-contiguous, aligned, native array of int32 or int64."""
    return (cnp.PyArray_CheckExact(a) and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> a)
            and (cnp.PyArray_TYPE(<cnp.ndarray> a) == cnp.NPY_INT64
                 or cnp.PyArray_TYPE(<cnp.ndarray> a) == cnp.NPY_INT32))
