"""Softmax cross-entropy and its gradient in one pass, threaded.

Letters: R rows, N classes. The sum over all rows runs over fixed blocks, so that it is the same
bits for any number of threads.
"""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from fastrnn._kernels.c cimport fr_table
from fastrnn._kernels.runtime cimport (
    flush_denormals,
    keep_denormals,
    restore,
    run,
    table_for,
    threads_for,
)
from fastrnn._kernels.check cimport check_flat
from fastrnn._kernels.walk cimport ceil_div, part

cnp.import_array()

cdef ptrdiff_t BLOCK = 16  # rows


cdef struct Softmax:
    const fr_table *table
    ptrdiff_t R, N, blocks
    char *grad
    const char *logits
    const int32_t *target
    const double *weights
    double scale
    double *partial            # (blocks)


cdef void walk_softmax(void *arg, int rank, int size) noexcept nogil:
    cdef Softmax *s = <Softmax *> arg
    cdef const double *weights = s.weights
    cdef unsigned state = flush_denormals()
    cdef ptrdiff_t i, r, offset
    for i in range(part(s.blocks, rank, size), part(s.blocks, rank + 1, size)):
        r = i * BLOCK
        offset = r * s.N * s.table.itemsize
        if s.weights != NULL:
            weights = s.weights + r
        s.partial[i] = s.table.softmax_loss(
            NULL if s.grad == NULL else s.grad + offset, s.logits + offset, s.target + r,
            weights, min(BLOCK, s.R - r), s.N, s.scale)
    restore(state)


cdef object checked_targets(targets, weights, ptrdiff_t R, ptrdiff_t N):
    """Return a copy of the targets as int32, with 0 where the row's weight is 0.

    The copy is what is checked and what is used: another thread may change the caller's array.
    """
    if not isinstance(targets, np.ndarray) or targets.dtype.kind not in "iu":
        raise TypeError("targets: expected an array of whole numbers, got "
                        f"{getattr(targets, 'dtype', type(targets).__name__)}")
    if targets.shape != (R,):
        raise ValueError(f"targets: has shape {targets.shape}, expected {(R,)}")
    wide = targets.astype(np.int64, order="C")
    copy = np.empty(R, np.int32)
    cdef const int64_t *source = <const int64_t *> cnp.PyArray_DATA(wide)
    cdef int32_t *target = <int32_t *> cnp.PyArray_DATA(copy)
    cdef const double *weight = NULL
    cdef ptrdiff_t r
    if weights is not None:
        weight = <const double *> cnp.PyArray_DATA(weights)
    for r in range(R):
        if weight != NULL and weight[r] == 0:
            target[r] = 0
        elif 0 <= source[r] < N:
            target[r] = <int32_t> source[r]
        else:
            raise IndexError(f"targets: has the number {source[r]}, expected 0 to {N - 1}")
    return copy


def softmax_cross_entropy(logits, targets, double scale=1.0, grad=None, weights=None):
    """Return the sum over the rows of weight * -log softmax(logits)[target], in nats.

    Parameters
    ----------
    logits : (R, N) float32 or float64, C-contiguous
    targets : (R,) integers in [0, N); any number where the row's weight is 0
    scale : of the gradient
    grad : out (R, N), or None; weight * (softmax - onehot) * scale. May be `logits` itself
    weights : (R,) float64, or None: 1. A row of weight 0 counts for nothing, whatever is in it
    """
    cdef Softmax s
    cdef int threads
    cdef unsigned state
    cdef double total = 0
    cdef ptrdiff_t i
    memset(&s, 0, sizeof(s))
    dtype = logits.dtype
    R, N = logits.shape
    check_flat("logits", logits, dtype, (R, N))
    if weights is not None:
        check_flat("weights", weights, np.float64, (R,))
        weights = weights.copy()
        s.weights = <const double *> cnp.PyArray_DATA(weights)
    targets = checked_targets(targets, weights, R, N)
    s.target = <const int32_t *> cnp.PyArray_DATA(targets)
    if grad is not None:
        check_flat("grad", grad, dtype, (R, N), True)
        s.grad = <char *> cnp.PyArray_DATA(grad)
    s.table = table_for(dtype)
    s.R = R
    s.N = N
    s.blocks = ceil_div(s.R, BLOCK)
    partial = np.zeros(s.blocks)
    s.partial = <double *> cnp.PyArray_DATA(partial)
    s.logits = <const char *> cnp.PyArray_DATA(logits)
    s.scale = scale
    with nogil:
        threads = threads_for(30.0 * s.R * s.N)
        run(walk_softmax, &s, threads)
        state = keep_denormals()
        for i in range(s.blocks):
            total += s.partial[i]
        restore(state)
    return total
