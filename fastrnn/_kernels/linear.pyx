"""The linear map of a head or a context, forward and backward, threaded.

Letters: R rows, K inputs, N outputs. Sums over all rows run over fixed blocks, so that results are
the same bits for any number of threads. Arrays are C-contiguous, float32 or float64.
"""

import numpy as np

cimport numpy as cnp
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport fr_barrier, fr_gradient, fr_product, fr_table
from fastrnn._kernels.runtime cimport (
    Buffer,
    Workspace,
    flush_denormals,
    restore,
    run,
    table_for,
    threads_for,
    wait,
)
from fastrnn._kernels.check cimport check_flat
from fastrnn._kernels.walk cimport AS_IT_IS, ceil_div, part, rows_of

cnp.import_array()

cdef Workspace workspace = Workspace()


cdef struct Linear:
    const fr_table *table
    ptrdiff_t R, K, N
    const void *weight          # (N, K)
    void *pack
    fr_product product          # forward, or dx
    bint product_wanted
    fr_gradient gradient
    bint backward
    char *scratch
    fr_barrier barrier


cdef void walk_linear(void *arg, int rank, int size) noexcept nogil:
    cdef Linear *s = <Linear *> arg
    cdef fr_product g = s.product
    cdef fr_gradient w = s.gradient
    cdef unsigned state = flush_denormals()
    cdef ptrdiff_t p0 = part(g.panel1, rank, size), p1 = part(g.panel1, rank + 1, size)
    if s.product_wanted:
        if s.backward:
            s.table.pack_plain(s.pack, s.weight, s.N, s.K, 1, AS_IT_IS, p0, p1)
        else:
            s.table.pack_plain_t(s.pack, s.weight, s.K, s.N, p0, p1)
        wait(&s.barrier, size)
        g.row0 = part(s.R, rank, size)
        g.row1 = part(s.R, rank + 1, size)
        s.table.product_plain(&g)
    if s.backward:
        w.u0 = part(s.N, rank, size)
        w.u1 = part(s.N, rank + 1, size)
        w.scratch = s.scratch + rank * s.table.gradient_scratch
        s.table.gradient(&w)
    restore(state)


cdef object setup(Linear *s, dtype, R, K, N, ptrdiff_t k, ptrdiff_t n):
    """Fill in what both ways share: C (R, n) = A (R, k) times packed weights."""
    memset(s, 0, sizeof(Linear))
    s.table = table_for(dtype)
    s.R = R
    s.K = K
    s.N = N
    s.product.runs = 1
    s.product.run = k
    s.product.n = n
    s.product.panel1 = ceil_div(n, s.table.plain_vectors * s.table.lanes)
    return <object> s.product.panel1 * s.table.plain_vectors * s.table.lanes * s.table.itemsize


def linear_forward(x, weight, bias=None, out=None):
    """Return x W^T + b, (R, N), in `out` if given, for x (R, K), weight (N, K), bias (N,)."""
    cdef Linear s
    cdef Buffer buffer
    cdef char *row
    cdef int threads
    dtype = weight.dtype
    N, K = weight.shape
    R = x.shape[0]
    check_flat("x", x, dtype, (R, K))
    check_flat("weight", weight, dtype, (N, K))
    width = setup(&s, dtype, R, K, N, K, N)
    if out is None:
        out = np.empty((R, N), dtype)
    check_flat("out", out, dtype, (R, N), True)
    buffer = workspace.take(width * (K + 1))
    s.weight = cnp.PyArray_DATA(weight)
    s.pack = buffer.data
    if bias is not None:
        check_flat("bias", bias, dtype, (N,))
        row = buffer.data + <ptrdiff_t> (width * K)  # behind the panels
        memset(row, 0, width)
        memcpy(row, cnp.PyArray_DATA(bias), N * <object> s.table.itemsize)
        s.product.bias = row
    s.product.c = rows_of(cnp.PyArray_DATA(out), R, 0, N)
    s.product.a = rows_of(cnp.PyArray_DATA(x), R, 0, K)
    s.product.b = s.pack
    s.product_wanted = True
    with nogil:
        threads = threads_for(2.0 * s.R * s.K * s.N)
        run(walk_linear, &s, threads)
    workspace.give(buffer)
    return out


def linear_backward(dy, x, weight, dweight, dbias=None, need_dx=True, dx=None):
    """Return dx (R, K), or None, for dy (R, N); add to dweight (N, K) and dbias (N,)."""
    cdef Linear s
    cdef Buffer buffer
    cdef int threads
    dtype = weight.dtype
    N, K = weight.shape
    R = x.shape[0]
    check_flat("dy", dy, dtype, (R, N))
    check_flat("x", x, dtype, (R, K))
    check_flat("weight", weight, dtype, (N, K))
    check_flat("dweight", dweight, dtype, (N, K), True)
    if dbias is not None:
        check_flat("dbias", dbias, dtype, (N,), True)
    width = setup(&s, dtype, R, K, N, N, K)
    threads = threads_for(4.0 * R * K * N)
    if need_dx:
        if dx is None:
            dx = np.empty((R, K), dtype)
        check_flat("dx", dx, dtype, (R, K), True)
    pack = (width * N + 63) // 64 * 64
    buffer = workspace.take(pack + threads * <object> s.table.gradient_scratch)
    s.weight = cnp.PyArray_DATA(weight)
    s.pack = buffer.data
    s.scratch = buffer.data + <ptrdiff_t> pack
    s.backward = True
    s.product_wanted = need_dx
    if need_dx:
        s.product.c = rows_of(cnp.PyArray_DATA(dx), R, 0, K)
        s.product.a = rows_of(cnp.PyArray_DATA(dy), R, 0, N)
        s.product.b = s.pack
    s.gradient.c = cnp.PyArray_DATA(dweight)
    s.gradient.bias = NULL if dbias is None else cnp.PyArray_DATA(dbias)
    s.gradient.a = rows_of(cnp.PyArray_DATA(dy), R, 0, N)
    s.gradient.b = rows_of(cnp.PyArray_DATA(x), R, 0, K)
    s.gradient.k = R
    s.gradient.n = K
    s.gradient.gates = 1
    s.gradient.fresh = False
    s.gradient.h = N
    with nogil:
        run(walk_linear, &s, threads)
    workspace.give(buffer)
    return dx if need_dx else None
