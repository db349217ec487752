"""Training's other pieces, fused and threaded: the linear head, softmax cross-entropy, the norm of
the gradient, the optimisers.

Letters: R rows, K inputs, N outputs. Sums over all rows run over fixed blocks, so that results are
the same bits for any number of threads. Arrays are C-contiguous, float32 or float64.
"""

import numpy as np

cimport numpy as cnp
from libc.math cimport INFINITY, pow, sqrt
from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport (
    fr_barrier,
    fr_gradient,
    fr_optimizer,
    fr_product,
    fr_table,
    fr_update,
)
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
from fastrnn._kernels.sequence cimport check_flat
from fastrnn._kernels.walk cimport AS_IT_IS, ceil_div, part, rows_of

cnp.import_array()

cdef ptrdiff_t LOSS_ROWS = 16      # rows per block of a loss
cdef ptrdiff_t NORM_BLOCK = 32768  # elements per block of a sum of squares

INT32 = np.dtype(np.int32)
FLOAT64 = np.dtype(np.float64)

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
    s.gradient.h = N
    with nogil:
        run(walk_linear, &s, threads)
    workspace.give(buffer)
    return dx if need_dx else None


# Work over fixed blocks; a thread takes neighbouring ones.
cdef struct Blocks:
    const fr_table *table
    ptrdiff_t n, block, count
    double *partial
    # softmax
    char *grad
    const char *logits
    const int32_t *target
    const double *weights
    ptrdiff_t N
    double scale
    # norm
    const char *x
    double limit
    # optimisers
    fr_optimizer optimizer
    const fr_update *update


cdef void walk_softmax(void *arg, int rank, int size) noexcept nogil:
    cdef Blocks *s = <Blocks *> arg
    cdef const double *weights = s.weights
    cdef unsigned state = flush_denormals()
    cdef ptrdiff_t i, r, offset
    for i in range(part(s.count, rank, size), part(s.count, rank + 1, size)):
        r = i * s.block
        offset = r * s.N * s.table.itemsize
        if s.weights != NULL:
            weights = s.weights + r
        s.partial[i] = s.table.softmax_loss(
            NULL if s.grad == NULL else s.grad + offset, s.logits + offset, s.target + r,
            weights, min(s.block, s.n - r), s.N, s.scale)
    restore(state)


cdef void walk_squares(void *arg, int rank, int size) noexcept nogil:
    cdef Blocks *s = <Blocks *> arg
    cdef unsigned state = flush_denormals()
    cdef ptrdiff_t i, r, n
    cdef const char *x
    for i in range(part(s.count, rank, size), part(s.count, rank + 1, size)):
        r = i * s.block
        x = s.x + r * s.table.itemsize
        n = min(s.block, s.n - r)
        s.partial[i] = s.table.sum_squares(x, n, INFINITY)
        if s.limit < INFINITY:  # the block is still in a cache
            s.partial[s.count + i] = s.table.sum_squares(x, n, s.limit)
    restore(state)


cdef void walk_update(void *arg, int rank, int size) noexcept nogil:
    cdef Blocks *s = <Blocks *> arg
    cdef unsigned state = flush_denormals()
    s.optimizer(s.update, part(s.count, rank, size) * s.block,
                min(s.n, part(s.count, rank + 1, size) * s.block))
    restore(state)


def softmax_cross_entropy(logits, targets, double scale=1.0, grad=None, weights=None):
    """Return the sum over rows of -log softmax(logits)[target], in nats.

    logits (R, N); targets (R,) int32 in [0, N); weights (R,) float64: of each row's term, where 0
    leaves it out. With `grad` (R, N), which may be `logits` itself, also write
    weight * (softmax - onehot) * scale there.
    """
    cdef Blocks s
    cdef int threads
    memset(&s, 0, sizeof(s))
    dtype = logits.dtype
    R, N = logits.shape
    cdef ptrdiff_t r, classes = N
    check_flat("logits", logits, dtype, (R, N))
    check_flat("targets", targets, INT32, (R,))
    if weights is not None:
        check_flat("weights", weights, FLOAT64, (R,))
        s.weights = <const double *> cnp.PyArray_DATA(weights)
    s.target = <const int32_t *> cnp.PyArray_DATA(targets)
    for r in range(<ptrdiff_t> R):
        if not 0 <= s.target[r] < classes:
            raise IndexError(f"targets: has the number {s.target[r]}, expected 0 to {N - 1}")
    if grad is not None:
        check_flat("grad", grad, dtype, (R, N), True)
        s.grad = <char *> cnp.PyArray_DATA(grad)
    s.table = table_for(dtype)
    s.n = R
    s.N = N
    s.block = LOSS_ROWS
    s.count = ceil_div(s.n, s.block)
    partial = np.zeros(s.count)
    s.partial = <double *> cnp.PyArray_DATA(partial)
    s.logits = <const char *> cnp.PyArray_DATA(logits)
    s.scale = scale
    with nogil:
        threads = threads_for(30.0 * s.n * s.N)
        run(walk_softmax, &s, threads)
    return float(partial.sum())


def sum_of_squares(flat):
    """Return the sum of the squares of a 1-D array, accumulated in float64."""
    return sums_of_squares(flat)[0]


def sums_of_squares(flat, double limit=INFINITY):
    """Return the sum of the squares of a 1-D array, and that of its elements limited to +-limit.

    One pass gives both.
    """
    cdef Blocks s
    cdef int threads
    memset(&s, 0, sizeof(s))
    check_flat("flat", flat, flat.dtype, (flat.size,))
    s.table = table_for(flat.dtype)
    s.n = flat.size
    s.block = NORM_BLOCK
    s.count = ceil_div(s.n, s.block)
    partial = np.zeros((2, s.count))
    s.partial = <double *> cnp.PyArray_DATA(partial)
    s.x = <const char *> cnp.PyArray_DATA(flat)
    s.limit = limit
    with nogil:
        threads = threads_for(2.0 * s.n)
        run(walk_squares, &s, threads)
    whole, limited = (float(sums.sum()) for sums in partial)
    return whole, limited if limit < INFINITY else whole


cdef object check_update(fr_update *u, param, grad, dict buffers, double limit, double grad_scale):
    """Fill in what all optimisers share; buffers has m and v, each if it is kept."""
    memset(u, 0, sizeof(fr_update))
    for name, array in (("param", param), *buffers.items()):
        check_flat(name, array, param.dtype, param.shape, True)
    check_flat("grad", grad, param.dtype, param.shape)
    m, v = buffers.get("m"), buffers.get("v")
    u.param = cnp.PyArray_DATA(param)
    u.grad = cnp.PyArray_DATA(grad)
    u.m = NULL if m is None else cnp.PyArray_DATA(m)
    u.v = NULL if v is None else cnp.PyArray_DATA(v)
    u.limit = limit
    u.grad_scale = grad_scale


cdef object run_update(const fr_table *table, fr_optimizer optimizer, const fr_update *u, n):
    cdef Blocks s
    cdef int threads
    memset(&s, 0, sizeof(s))
    s.table = table
    s.n = n
    s.block = 256
    s.count = ceil_div(s.n, s.block)
    s.optimizer = optimizer
    s.update = u
    with nogil:
        threads = threads_for(20.0 * s.n)
        run(walk_update, &s, threads)


def sgd_step(param, grad, m=None, *, double lr, double momentum, bint nesterov,
             double weight_decay, double limit=INFINITY, double grad_scale=1.0):
    """Update 1-D `param`, and `m` if given, in place by one step of gradient descent.

    Without `m` there is no momentum. `limit` bounds each element of the gradient first, then
    `grad_scale` multiplies it: clipping costs no pass of its own. torch.optim.SGD's equations.
    """
    cdef fr_update u
    cdef const fr_table *table = table_for(param.dtype)
    check_update(&u, param, grad, {} if m is None else {"m": m}, limit, grad_scale)
    u.step_size = lr
    u.beta1 = momentum
    u.nesterov = nesterov
    u.decay = weight_decay
    run_update(table, table.sgd, &u, param.size)


def rmsprop_step(param, grad, v, m=None, *, double lr, double alpha, double eps, double momentum,
                 double weight_decay, double limit=INFINITY, double grad_scale=1.0):
    """Update 1-D `param`, `v`, and `m` if given, in place by one step of RMSProp.

    The rest is as in sgd_step. torch.optim.RMSprop's equations, not centred.
    """
    cdef fr_update u
    cdef const fr_table *table = table_for(param.dtype)
    check_update(&u, param, grad, {"v": v} if m is None else {"v": v, "m": m}, limit, grad_scale)
    u.step_size = lr
    u.beta1 = momentum
    u.beta2 = alpha
    u.eps = eps
    u.decay = weight_decay
    run_update(table, table.rmsprop, &u, param.size)


def adam_step(param, grad, m, v, *, double lr, double beta1, double beta2, double eps,
              double weight_decay, ptrdiff_t step, double limit=INFINITY, double grad_scale=1.0):
    """Update 1-D `param`, `m` and `v` in place by one step of Adam, with decoupled weight decay.

    `step` counts from 1; `limit` and `grad_scale` are as in sgd_step. Kingma & Ba 2015,
    algorithm 1; Loshchilov & Hutter 2019.
    """
    cdef fr_update u
    cdef const fr_table *table = table_for(param.dtype)
    check_update(&u, param, grad, {"m": m, "v": v}, limit, grad_scale)
    if step < 1:
        raise ValueError(f"step is {step}, expected at least 1")
    cdef double correction = sqrt(1 - pow(beta2, step))
    u.step_size = lr * correction / (1 - pow(beta1, step))
    u.beta1 = beta1
    u.beta2 = beta2
    u.eps = eps * correction
    u.decay = lr * weight_decay
    run_update(table, table.adam, &u, param.size)
