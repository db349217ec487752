"""The gradients of a program's weights, vectors and input: sums over the rows of all steps.

Letters: R rows, N rows of all steps together, I input, K columns of a weight.
"""

from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport fr_gradient, fr_product, fr_rows
from fastrnn._kernels.machine cimport (
    NEW,
    TAPE,
    Gradient,
    Run,
    RunJob,
    VectorGradient,
    row_in,
)
from fastrnn._kernels.walk cimport Pass, at, ceil_div, part, rows_of, sum_symbols


cdef void input_gradient(const Run *r, fr_rows rows, ptrdiff_t r0, ptrdiff_t r1) noexcept nogil:
    """dx of rows [r0, r1), from rows of the tape or of symbols."""
    cdef const Pass *p = &r.p
    cdef const Gradient *of
    cdef fr_product g
    cdef bint more = p.add_dx
    cdef ptrdiff_t i, lanes = r.table.lanes
    cdef char *target
    cdef int n
    if r.dx_offset >= 0 or not more:
        for i in range(r0, r1):
            target = row_in(r, p.dx, i)
            if r.dx_offset < 0:
                memset(target, 0, p.I * r.table.itemsize)
            elif more:
                r.table.add_rows(target, 0, at(rows.base, i * rows.inner + r.dx_offset, p), 0, NULL,
                                 1, p.I)
            else:
                memcpy(target, at(rows.base, i * rows.inner + r.dx_offset, p),
                       p.I * r.table.itemsize)
        more = r.dx_offset >= 0 or more
    for n in range(r.gradient_count):
        of = &r.gradient[n]
        if not of.of_x:
            continue
        g.c = p.dx
        g.a = rows_of(at(rows.base, of.offset, p), rows.count, 0, rows.inner)
        g.runs = of.blocks
        g.run = of.width
        g.run_stride = ceil_div(of.width, lanes) * lanes
        g.b = at(r.back, r.weight[of.weight].back_x, p)
        g.bias = NULL
        g.accumulate = more
        g.row0 = r0
        g.row1 = r1
        g.panel0 = 0
        g.panel1 = ceil_div(p.I, lanes * r.table.plain_vectors)
        g.n = p.I
        g.pitch = 0
        r.table.product_plain(&g)
        more = True


cdef fr_rows source_rows(const Run *r, const Gradient *of) noexcept nogil:
    """The rows of all steps that a weight multiplied."""
    cdef const Pass *p = &r.p
    cdef fr_rows rows
    cdef int s = of.source.number
    if of.of_x:
        return p.x
    if of.source.space == TAPE:
        return rows_of(at(p.gates, of.source.offset, p), p.times.N, 0, p.row)
    rows = rows_of(r.states[s], p.times.N, 0, r.state[s].pitch)
    if of.source.space == NEW:
        rows.base = at(r.states[s], p.times.R * r.state[s].pitch, p)
    else:
        rows.at = p.before
    return rows


cdef void sum_gradient(const Run *r, fr_gradient *w, char *c, char *bias, ptrdiff_t blocks,
                       ptrdiff_t width, ptrdiff_t offset, int rank, int size) noexcept nogil:
    """The gradient of `blocks` blocks, four at a time."""
    cdef ptrdiff_t g, i, lanes = r.table.lanes, slot = ceil_div(width, lanes) * lanes
    w.h = width
    w.u0 = part(width, rank, size)
    w.u1 = part(width, rank + 1, size)
    for g in range(0, blocks, 4):
        w.c = c + g * width * w.n * r.table.itemsize
        w.bias = NULL if bias == NULL else bias + g * width * r.table.itemsize
        w.gates = min(blocks - g, 4)
        for i in range(w.gates):
            w.slot[i] = offset + (g + i) * slot
        r.table.gradient(w)


cdef void parameter_gradients(Run *r, RunJob *job, int rank, int size) noexcept nogil:
    """dx and the gradients of weights and vectors: products over all of time."""
    cdef Pass *p = &r.p
    cdef ptrdiff_t n = p.times.N
    cdef fr_rows rows = rows_of(p.gates, n, 0, p.row), inputs = rows
    cdef const Gradient *of
    cdef fr_gradient w
    cdef char *weight
    cdef char *bias
    cdef int i
    if p.index:
        sum_symbols(p, &job.job.everyone, rank, size)
        n = p.V
        inputs = rows_of(p.symbols, n, 0, p.row)
    if p.need_dx:
        input_gradient(r, inputs, part(n, rank, size), part(n, rank + 1, size))
    w.scratch = job.job.scratch + rank * job.job.scratch_size
    w.fresh = False
    for i in range(r.gradient_count):
        of = &r.gradient[i]
        weight = bias = NULL
        if of.weight >= 0 and not (of.of_x and r.symbols_ready):
            weight = <char *> r.grads[of.weight]  # NULL: it is fixed
        if of.bias >= 0:
            bias = <char *> r.grads[r.weight_count + of.bias]
        if weight == NULL and bias == NULL:
            continue
        w.a = w.b = rows
        w.k = p.times.N
        w.n = 0  # the bias alone
        if weight != NULL:
            w.a = inputs if of.of_x else rows
            w.b = source_rows(r, of)
            w.k = n if of.of_x else p.times.N
            w.n = of.K
        sum_gradient(r, &w, weight, bias, of.blocks, of.width, of.offset, rank, size)
    vector_gradients(r, part(r.vector_gradient_count, rank, size),
                     part(r.vector_gradient_count, rank + 1, size))


cdef void add_sums(const Run *r, ptrdiff_t b0, ptrdiff_t b1) noexcept nogil:
    """Add the sums of rows [b0, b1) to their totals, and begin again."""
    cdef char *sums = at(r.sums, b0 * r.sums_row, &r.p)
    r.table.add_rows(at(r.totals, b0 * r.sums_row, &r.p), r.sums_row, sums, r.sums_row, NULL,
                     b1 - b0, r.sums_row)
    memset(sums, 0, (b1 - b0) * r.sums_row * r.table.itemsize)


cdef void vector_gradients(const Run *r, int first, int last) noexcept nogil:
    """The gradients of vectors [first, last), which lie side by side, from the rows' totals."""
    cdef const VectorGradient *v
    cdef ptrdiff_t begin, size
    cdef char *whole
    cdef void *target
    cdef int i
    if first == last:
        return
    v = &r.vector_gradient[last - 1]
    begin = r.vector_gradient[first].offset
    size = v.offset + ceil_div(v.width, r.table.lanes) * r.table.lanes - begin
    whole = at(r.totals, r.p.times.R * r.sums_row + begin, &r.p)
    r.table.sum_rows(whole, at(r.totals, begin, &r.p), r.sums_row, r.p.times.R, size)
    for i in range(first, last):
        v = &r.vector_gradient[i]
        target = r.grads[r.weight_count + v.vector]
        if target != NULL:
            r.table.add_rows(at(target, v.block * v.width, &r.p), 0,
                             at(whole, v.offset - begin, &r.p), 0, NULL, 1, v.width)
