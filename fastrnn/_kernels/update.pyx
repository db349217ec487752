"""The norm of the gradients and the optimisers, each one threaded pass over all parameters.

A row is a range of parameters with its gradient and the optimiser's buffers. Work is cut into fixed
blocks within a row, so that results are the same bits for any number of threads and for any
grouping of rows. Sums of squares are taken in float64: see norms().
"""

import numpy as np

cimport numpy as cnp
from libc.math cimport INFINITY, frexp, ldexp, pow, sqrt
from libc.string cimport memset

from fastrnn._kernels.c cimport fr_optimizer, fr_table, fr_update
from fastrnn._kernels.runtime cimport (
    Buffer,
    flush_denormals,
    keep_denormals,
    restore,
    run,
    table_for,
    table_of,
    threads_for,
)
from fastrnn._kernels.check cimport check_flat
from fastrnn._kernels.walk cimport ceil_div, part

cnp.import_array()

cdef ptrdiff_t NORM_BLOCK = 32768  # elements per block of a sum of squares
cdef ptrdiff_t UPDATE_BLOCK = 256  # elements per block of an optimiser's step
cdef enum:
    FEW = 64                       # blocks of a norm whose sums fit on the stack

# A sum of squares beyond these bounds may have lost terms to overflow or underflow. The squares are
# then those of the elements times a power of two. The largest float64 is just below 2^1024, and the
# smallest is 2^-1074.
cdef double SMALL = ldexp(1.0, -960)
cdef double DOWN = ldexp(1.0, -600)
cdef double UP = ldexp(1.0, 600)


cdef struct Row:
    fr_update own              # pointers; the other fields are set at each step
    ptrdiff_t n
    int bits                   # 32 or 64
    double lr_scale, weight_decay
    ptrdiff_t update_block     # blocks of the rows before
    ptrdiff_t norm_block


cdef struct Norm:
    const fr_table *table[2]   # float32, float64
    const Row *rows
    int count
    ptrdiff_t blocks
    double limit
    double scale[2]            # of all elements; of limited ones
    double *partial            # (2, blocks)


cdef struct Step:
    const fr_table *table[2]
    const Row *rows
    int count
    ptrdiff_t blocks
    fr_update shared           # without pointers; step_size and decay are set for each row
    double lr, correction
    double first_scale[2]      # float32, float64
    double grad_scale[2]
    bint decoupled             # decay is lr * weight_decay
    fr_optimizer optimizer[2]


cdef ptrdiff_t set_blocks(Row *rows, int count) noexcept nogil:
    """Number the blocks of all rows; return how many a norm has."""
    cdef ptrdiff_t updates = 0, norms = 0
    cdef int i
    for i in range(count):
        rows[i].update_block = updates
        rows[i].norm_block = norms
        updates += ceil_div(rows[i].n, UPDATE_BLOCK)
        norms += ceil_div(rows[i].n, NORM_BLOCK)
    return norms


cdef double elements(const Row *rows, int count) noexcept nogil:
    cdef double n = 0
    cdef int i
    for i in range(count):
        n += rows[i].n
    return n


# ---- norms --------------------------------------------------------------------------------------

cdef void walk_norm(void *arg, int rank, int size) noexcept nogil:
    cdef Norm *s = <Norm *> arg
    cdef unsigned state = keep_denormals()
    cdef ptrdiff_t block = part(s.blocks, rank, size), end = part(s.blocks, rank + 1, size), begin
    cdef const fr_table *table
    cdef const Row *row = s.rows
    cdef const char *x
    cdef ptrdiff_t n
    while block < end:
        while block >= row.norm_block + ceil_div(row.n, NORM_BLOCK):
            row += 1
        table = s.table[row.bits == 64]
        begin = (block - row.norm_block) * NORM_BLOCK
        n = min(NORM_BLOCK, row.n - begin)
        x = <const char *> row.own.grad + begin * table.itemsize
        s.partial[block] = table.sum_squares(x, n, INFINITY, s.scale[0])
        if s.limit < INFINITY:  # the block is still in a cache
            s.partial[s.blocks + block] = table.sum_squares(x, n, s.limit, s.scale[1])
        block += 1
    restore(state)


cdef double added(const double *partial, ptrdiff_t blocks) noexcept nogil:
    cdef double total = 0
    cdef ptrdiff_t i
    for i in range(blocks):
        total += partial[i]
    return total


cdef double rescaling(double total, bint wide) noexcept nogil:
    """The power of two by which to multiply float64 elements whose squares add up to `total`."""
    if not wide or SMALL <= total < INFINITY or total != total:
        return 1.0
    return UP if total < SMALL else DOWN


cdef tuple norms_of(const Row *rows, int count, ptrdiff_t blocks, double limit):
    cdef Norm s
    cdef double few[2 * FEW]
    cdef double total[2]
    cdef bint wide = False
    cdef int i, threads
    cdef unsigned state
    s.table[0] = table_of(32)
    s.table[1] = table_of(64)
    s.rows = rows
    s.count = count
    s.blocks = blocks
    s.limit = limit
    s.scale[0] = s.scale[1] = 1.0
    s.partial = few
    if blocks > FEW:
        partial = np.empty(2 * blocks)
        s.partial = <double *> cnp.PyArray_DATA(partial)
    with nogil:
        state = keep_denormals()
        for i in range(count):
            wide |= rows[i].bits == 64
        threads = threads_for(2.0 * elements(rows, count))
        run(walk_norm, &s, threads)
        total[0] = added(s.partial, blocks)
        total[1] = added(s.partial + blocks, blocks) if limit < INFINITY else total[0]
        s.scale[0] = rescaling(total[0], wide)
        s.scale[1] = rescaling(total[1], wide)
        if s.scale[0] != 1 or s.scale[1] != 1:
            run(walk_norm, &s, threads)
            total[0] = added(s.partial, blocks)
            total[1] = added(s.partial + blocks, blocks) if limit < INFINITY else total[0]
        for i in range(2):
            total[i] = sqrt(total[i]) / s.scale[i]
        restore(state)
    return total[0], total[1]


def norms(flats, double limit=INFINITY):
    """Return the 2-norm of all arrays together, and that of their elements limited to +-limit.

    Right wherever the norm is a float64: infinity and NaN come from such elements alone, or from a
    norm above 1.8e308.

    Parameters
    ----------
    flats : sequence of arrays (n,), C-contiguous, float32 or float64, of one dtype or several
    limit : at least 0

    Returns
    -------
    pair of floats
    """
    flats = list(flats)
    cdef int count = len(flats), i
    cdef Buffer buffer = Buffer(count * sizeof(Row))
    cdef Row *rows = <Row *> buffer.data
    memset(rows, 0, count * sizeof(Row))
    for i in range(count):
        set_row(&rows[i], f"flats[{i}]", flats[i])
    return norms_of(rows, count, set_blocks(rows, count), limit)


cdef set_row(Row *row, str name, grad):
    """Check a gradient and fill in what a norm needs."""
    if not isinstance(grad, np.ndarray):
        raise TypeError(f"{name}: is {type(grad).__name__}, expected an array")
    check_flat(name, grad, grad.dtype, (grad.size,))
    row.bits = <int> (8 * table_for(grad.dtype).itemsize)
    row.own.grad = cnp.PyArray_DATA(grad)
    row.n = grad.size


# ---- optimisers ---------------------------------------------------------------------------------

cdef void walk_update(void *arg, int rank, int size) noexcept nogil:
    cdef Step *s = <Step *> arg
    cdef unsigned state = flush_denormals()
    cdef ptrdiff_t first = part(s.blocks, rank, size), last = part(s.blocks, rank + 1, size)
    cdef ptrdiff_t begin, end
    cdef const Row *row
    cdef fr_update u = s.shared
    cdef int i, wide
    for i in range(s.count):
        row = &s.rows[i]
        begin = max(0, (first - row.update_block) * UPDATE_BLOCK)
        end = min(row.n, (last - row.update_block) * UPDATE_BLOCK)
        if begin >= end:
            continue
        wide = row.bits == 64
        u.param = row.own.param
        u.grad = row.own.grad
        u.m = row.own.m
        u.v = row.own.v
        u.first_scale = s.first_scale[wide]
        u.grad_scale = s.grad_scale[wide]
        u.step_size = s.lr * row.lr_scale * s.correction
        u.decay = row.weight_decay
        if s.decoupled:
            u.decay *= s.lr * row.lr_scale
        s.optimizer[wide](&u, begin, end)
    restore(state)


cdef void split_scale(double scale, double smallest, double *first, double *second) noexcept:
    """scale = first * second, neither of them denormal where it can be helped; first is mostly 1.

    smallest: the smallest normal number of the dtype.
    """
    cdef int exponent
    first[0] = 1.0
    second[0] = scale
    if 0 < scale < smallest:
        frexp(scale, &exponent)
        first[0] = max(ldexp(1.0, exponent // 2), smallest)
        second[0] = scale / first[0]


cdef class Ranges:
    """Ranges of parameters that an optimiser moves together. Built once, checked once.

    Parameters
    ----------
    rows : sequence of tuples (param, grad, buffers, lr_scale, weight_decay)
        param, grad: arrays (n,) of one dtype, C-contiguous; rows may differ in dtype. buffers: a
        dict with arrays (n,) under "m" and "v", as far as the optimiser keeps them. lr_scale: a
        factor on the rate. No two arrays may share memory.

    Notes
    -----
    The arrays are kept alive. Nothing is checked again at a step, not even whether param may be
    written: that is for the caller to know.
    """

    cdef list arrays
    cdef Buffer buffer
    cdef Row *rows
    cdef int count
    cdef ptrdiff_t norm_blocks
    cdef double elements
    cdef bint has_m, has_v     # every row has it

    def __cinit__(self, rows):
        cdef Row *row
        cdef int i
        rows = list(rows)
        self.count = len(rows)
        self.buffer = Buffer(self.count * sizeof(Row))
        self.rows = <Row *> self.buffer.data
        memset(self.rows, 0, self.count * sizeof(Row))
        self.arrays = []
        self.has_m = self.has_v = True
        taken = []  # (address, end, written, name)
        for i in range(self.count):
            param, grad, buffers, lr_scale, weight_decay = rows[i]
            row = &self.rows[i]
            set_row(row, f"rows[{i}]: grad", grad)
            unknown = set(buffers) - {"m", "v"}
            if unknown:
                raise ValueError(f"rows[{i}]: has buffers {sorted(unknown)}, expected m and v")
            check_flat(f"rows[{i}]: param", param, grad.dtype, grad.shape)
            for name, array in buffers.items():
                check_flat(f"rows[{i}]: {name}", array, grad.dtype, grad.shape, True)
            m, v = buffers.get("m"), buffers.get("v")
            self.has_m &= m is not None
            self.has_v &= v is not None
            row.own.param = cnp.PyArray_DATA(param)
            row.own.m = NULL if m is None else cnp.PyArray_DATA(m)
            row.own.v = NULL if v is None else cnp.PyArray_DATA(v)
            row.lr_scale = lr_scale
            row.weight_decay = weight_decay
            for name, array in (("param", param), ("grad", grad), *buffers.items()):
                self.arrays.append(array)
                if array.size:
                    start = <size_t> cnp.PyArray_DATA(array)
                    taken.append((start, start + <size_t> array.nbytes, f"rows[{i}]: {name}"))
        taken.sort()
        for (_, end, name), (start, _, other) in zip(taken, taken[1:]):
            if start < end:
                raise ValueError(f"{other} shares memory with {name}, expected distinct arrays")
        self.norm_blocks = set_blocks(self.rows, self.count)
        self.elements = elements(self.rows, self.count)

    def norms(self, double limit=INFINITY):
        """Return the 2-norm of all gradients together, and that of them limited to +-limit."""
        return norms_of(self.rows, self.count, self.norm_blocks, limit)

    cdef step(self, Step *s, double lr, double correction, double limit, double grad_scale):
        """Fill in what all optimisers share, and take the step."""
        cdef const Row *last = &self.rows[self.count - 1]
        cdef int threads
        if self.count == 0:
            return
        s.rows = self.rows
        s.count = self.count
        s.blocks = last.update_block + ceil_div(last.n, UPDATE_BLOCK)
        s.lr = lr
        s.correction = correction
        s.shared.limit = limit
        split_scale(grad_scale, ldexp(1.0, -126), &s.first_scale[0], &s.grad_scale[0])
        split_scale(grad_scale, ldexp(1.0, -1022), &s.first_scale[1], &s.grad_scale[1])
        with nogil:
            threads = threads_for(20.0 * self.elements)
            run(walk_update, s, threads)

    def sgd(self, double lr, double momentum=0.0, bint nesterov=False, double limit=INFINITY,
            double grad_scale=1.0):
        """Take one step of gradient descent. torch.optim.SGD's equations.

        Rows without "m" have no momentum. `limit` bounds each element of the gradient, then
        `grad_scale` multiplies it: clipping costs no pass of its own.
        """
        cdef Step s
        memset(&s, 0, sizeof(s))
        s.optimizer[0] = table_of(32).sgd
        s.optimizer[1] = table_of(64).sgd
        s.shared.beta1 = momentum
        s.shared.nesterov = nesterov
        self.step(&s, lr, 1.0, limit, grad_scale)

    def rmsprop(self, double lr, double alpha=0.99, double eps=1e-8, double momentum=0.0,
                double limit=INFINITY, double grad_scale=1.0):
        """Take one step of RMSProp. torch.optim.RMSprop's equations, not centred.

        Every row needs "v"; rows without "m" have no momentum. The rest is as in sgd.
        """
        cdef Step s
        if not self.has_v:
            raise ValueError("rows: have no buffer v, expected one in every row")
        memset(&s, 0, sizeof(s))
        s.optimizer[0] = table_of(32).rmsprop
        s.optimizer[1] = table_of(64).rmsprop
        s.shared.beta1 = momentum
        s.shared.beta2 = alpha
        s.shared.eps = eps
        self.step(&s, lr, 1.0, limit, grad_scale)

    def adam(self, double lr, double beta1, double beta2, double eps, ptrdiff_t step,
             double limit=INFINITY, double grad_scale=1.0):
        """Take one step of Adam with decoupled weight decay. `step` counts from 1.

        Every row needs "m" and "v"; the rest is as in sgd. Kingma & Ba 2015, algorithm 1;
        Loshchilov & Hutter 2019.
        """
        cdef Step s
        if not (self.has_m and self.has_v):
            raise ValueError("rows: have no buffer m or v, expected both in every row")
        if step < 1:
            raise ValueError(f"step: is {step}, expected at least 1")
        cdef unsigned state = keep_denormals()
        cdef double correction, both
        try:  # the caller may round in another way
            correction = sqrt(1 - pow(beta2, step))
            both = correction / (1 - pow(beta1, step))
            eps *= correction
        finally:
            restore(state)
        memset(&s, 0, sizeof(s))
        s.optimizer[0] = table_of(32).adam
        s.optimizer[1] = table_of(64).adam
        s.shared.beta1 = beta1
        s.shared.beta2 = beta2
        s.shared.eps = eps
        s.decoupled = True
        self.step(&s, lr, both, limit, grad_scale)
