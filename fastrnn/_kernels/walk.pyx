"""Walks time: forward over a sequence, and backward through it, for a layer of 1 or 2 directions.

Letters: T steps, B batch, I input, H hidden, G gates, S slots of a tape row, V rows of an
embedding.
A `Pass` is one direction of one layer; a direction that walks back in time is a pass whose strides
of time are negative, so that step t of the pass is always step t of its tape.

Threads: a team of threads has one pass (two directions on an even number of threads) or all of
them, one after the other. Within a team either the rows of the batch are split, which needs no
barrier at all, or, for few rows, the hidden units, with a barrier after every step. Either way a
number is computed by one thread in one order.

Nothing here holds the GIL, allocates or checks: sequence.pyx and stream.pyx do.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport fr_backward, fr_forward, fr_gradient, fr_product, fr_rows, fr_table
from fastrnn._kernels.runtime cimport (
    flush_denormals,
    pitch_of,
    restore,
    table_for,
    threads_for,
    wait,
)

AS_IT_IS[:] = [0, 1, 2, 3]

# A step whose recurrent product takes less than this many microseconds on one thread is not worth
# a barrier (about 0.3 us) after every step.
cdef double WORTH_A_BARRIER = 1.5

# A step of fewer rows waits for its weights; it begins with the panels that the step before read
# last, which are still in the cache. With more rows it computes, and up and down only costs.
cdef ptrdiff_t MANY_ROWS = 8

# As many rows use weights well by themselves: a step then takes x and h in one chain. Fewer project
# x for several steps at once, whose rows share the weights.
cdef ptrdiff_t JOINED_ROWS = 16


cdef struct Share:
    int first, last          # passes of the team
    int rank, size           # in the team
    bint by_units


cdef Pass sized(int kind, object dtype, ptrdiff_t T, ptrdiff_t B, ptrdiff_t I,
                ptrdiff_t H) except *:
    cdef Pass p
    memset(&p, 0, sizeof(p))
    p.table = table_for(dtype)
    p.cell = &p.table.cell[kind]
    p.T = T
    p.B = B
    p.I = I
    p.H = H
    p.pitch = pitch_of(H, p.table.itemsize)
    p.row = p.cell.slots * p.pitch
    p.panels = forward_panels(p.table, p.cell, H)
    p.panels_h = ceil_div(H, p.table.lanes * p.table.plain_vectors)
    p.panels_i = ceil_div(I, p.table.lanes * p.table.plain_vectors)
    return p


cdef ptrdiff_t forward_panels(const fr_table *table, const fr_cell_row *cell,
                              ptrdiff_t H) noexcept nogil:
    return ceil_div(H, table.lanes * cell.vectors if cell.plain else table.lanes)


# ---- who does what ------------------------------------------------------------------------------

cdef int plan(Job *job) noexcept nogil:
    """Threads to use, and whether teams split units or rows."""
    cdef const Pass *p = job.passes
    cdef double G = p.cell.gates
    cdef int threads = threads_for(2.0 * p.T * p.B * G * p.H * (p.I + p.H) * job.count)
    cdef int teams = 2 if job.count == 2 and threads % 2 == 0 else 1
    cdef int members = threads // teams
    # one thread: 1e5 operations a microsecond, 6e4 bytes of weights a microsecond
    cdef double step = max(2.0 * p.B * G * p.H * p.H / 1e5,
                           G * p.H * p.H * p.table.itemsize / 6e4)
    job.by_units = False
    if members > 1 and p.B < 4 * members:
        if step >= WORTH_A_BARRIER:
            job.by_units = True
            members = <int> min(members, p.panels, p.panels_h)
        else:
            members = <int> max(1, min(members, p.B // 2))
    return teams * members


cdef Share share_of(const Job *job, int rank, int size) noexcept nogil:
    cdef Share s
    cdef int teams = 2 if job.count == 2 and size % 2 == 0 else 1
    s.size = size // teams
    s.first = rank // s.size if teams == 2 else 0
    s.last = s.first + 1 if teams == 2 else job.count
    s.rank = rank % s.size
    s.by_units = job.by_units and s.size > 1
    return s


cdef ptrdiff_t part(ptrdiff_t n, int rank, int size) noexcept nogil:
    """Where part `rank` of n things begins, or, for rank + 1, ends."""
    return n * rank // size


# ---- forward ------------------------------------------------------------------------------------

cdef void pack_weights(const Pass *p, void *panels, const void *weight, ptrdiff_t K,
                       ptrdiff_t panel0, ptrdiff_t panel1) noexcept nogil:
    """weight (G*H, K) into the panels of the forward products."""
    if p.cell.plain:
        p.table.pack_plain_t(panels, weight, K, p.H, panel0, panel1)
    else:
        p.table.pack_gates(panels, weight, K, p.H, p.cell.vectors, p.cell.order_x, panel0, panel1)


cdef void pack_forward(Pass *p, ptrdiff_t panel0, ptrdiff_t panel1, bint bias) noexcept nogil:
    pack_weights(p, p.wx, p.w_ih, p.I, panel0, panel1)
    pack_weights(p, p.wh, p.w_hh, p.H, panel0, panel1)
    if bias:
        p.table.pack_bias(p.start, p.bias_n, p.b_ih, p.b_hh, p.H, p.pitch, p.cell)


cdef void unpack_halves(const Pass *p, ptrdiff_t panel0, ptrdiff_t panel1) noexcept nogil:
    """The weights of wx_half, two in a word, into wx; see layers/packs.py."""
    cdef ptrdiff_t width = p.cell.vectors * p.table.lanes, words = (p.I + 1) // 2
    cdef ptrdiff_t panel, j, lane
    cdef const uint32_t *source
    cdef uint32_t *target
    for panel in range(panel0, panel1):
        for j in range(words):
            source = <const uint32_t *> p.wx_half + (panel * words + j) * width
            target = <uint32_t *> p.wx + (panel * p.I + 2 * j) * width
            for lane in range(width):
                target[lane] = source[lane] << 16
            if 2 * j + 1 < p.I:
                memcpy(target + width, source, width * sizeof(uint32_t))


cdef void project(const Pass *p, fr_rows x, fr_rows out, ptrdiff_t row0, ptrdiff_t row1,
                  ptrdiff_t panel0, ptrdiff_t panel1) noexcept nogil:
    """out = x W_ih + b for rows [row0, row1) of both."""
    cdef fr_product g
    g.c = out
    g.a = x
    g.runs = 1
    g.run = p.I
    g.run_stride = 0
    g.b = p.wx
    g.bias = p.start
    g.accumulate = 0
    g.row0 = row0
    g.row1 = row1
    g.panel0 = panel0
    g.panel1 = panel1
    g.n = p.H
    g.pitch = p.pitch
    if p.cell.plain:
        p.table.product_plain(&g)
    else:
        p.table.product_gates(&g, p.cell.vectors)


cdef void project_symbols(const Pass *p, ptrdiff_t row0, ptrdiff_t row1) noexcept nogil:
    """symbols = x W_ih + b for rows [row0, row1) of the embedding, or of one-hot x."""
    if p.column:
        p.table.gather_columns(p.symbols, p.start, p.gathered, p.gather_at, row0, row1,
                               p.gather_width, p.H, p.pitch, p.row, p.cell)
    else:
        project(p, p.x, rows_of(p.symbols, p.V, 0, p.row), row0, row1, 0, p.panels)


cdef void forward_pass(Pass *p, const Share *s) noexcept nogil:
    cdef fr_forward step
    cdef ptrdiff_t b0 = 0, b1 = p.B, panel0 = 0, panel1 = p.panels
    cdef ptrdiff_t t, t0, t1, base
    cdef bint joined
    cdef void (*forward)(const fr_forward *) noexcept nogil
    if not p.packed:
        pack_forward(p, part(p.panels, s.rank, s.size), part(p.panels, s.rank + 1, s.size),
                     s.rank == 0)
        wait(&p.barrier, s.size)
    elif p.half and p.wx != NULL:
        unpack_halves(p, part(p.panels, s.rank, s.size), part(p.panels, s.rank + 1, s.size))
        wait(&p.barrier, s.size)
    if p.index:
        project_symbols(p, part(p.V, s.rank, s.size), part(p.V, s.rank + 1, s.size))
        wait(&p.barrier, s.size)
    if s.by_units:
        panel0 = part(p.panels, s.rank, s.size)
        panel1 = part(p.panels, s.rank + 1, s.size)
    else:
        b0 = part(p.B, s.rank, s.size)
        b1 = part(p.B, s.rank + 1, s.size)
        if b0 == b1:
            return

    memset(&step, 0, sizeof(step))
    step.rows = b1 - b0
    step.panel0 = panel0
    step.panel1 = panel1
    step.hidden = p.H
    step.pitch = p.pitch
    step.y_row = p.y_b
    step.gates_row = step.start_row = p.row
    step.wh = p.wh_half if p.half else p.wh
    step.bias_n = p.bias_n
    forward = p.cell.forward_half if p.half else p.cell.forward
    joined = not p.index and (p.wx == NULL or not s.by_units and step.rows >= JOINED_ROWS)
    if joined:
        step.start = p.start
        step.start_row = 0
        step.input = p.I
        step.wx = p.wx_half if p.half else p.wx
        step.x_row = p.x.inner
    t1 = 0
    while t1 < p.T:
        t0 = t1
        t1 = min(t0 + p.chunk, p.T)
        base = 0 if p.training else t0  # tape row of step t: t - base
        if not p.index and not joined:
            project(p, rows_of(at(p.x.base, t0 * p.x.outer + b0 * p.x.inner, p), b1 - b0,
                               p.x.outer, p.x.inner),
                    rows_of(at(p.gates, ((t0 - base) * p.B + b0) * p.row, p), b1 - b0,
                            p.B * p.row, p.row),
                    0, (t1 - t0) * (b1 - b0), panel0, panel1)
        for t in range(t0, t1):
            if p.index:
                step.start = p.symbols
                step.index = p.index + t * p.index_t + b0
            elif joined:
                step.x = at(p.x.base, t * p.x.outer + b0 * p.x.inner, p)
            else:
                step.start = at(p.gates, ((t - base) * p.B + b0) * p.row, p)
            if p.training:
                step.gates = at(p.gates, (t * p.B + b0) * p.row, p)
                step.c_prev = at(p.c, (t * p.B + b0) * p.pitch, p)
                step.c = at(p.c, ((t + 1) * p.B + b0) * p.pitch, p)
            else:
                step.c_prev = step.c = at(p.c, b0 * p.pitch, p)
            step.h_prev = h_at(p, t, b0)
            step.h = h_at(p, t + 1, b0)
            step.y = at(p.y, t * p.y_t + b0 * p.y_b, p)
            step.down = t & 1 and step.rows < MANY_ROWS
            forward(&step)
            if s.by_units:
                wait(&p.barrier, s.size)


cdef void walk_forward(void *arg, int rank, int size) noexcept nogil:
    cdef Job *job = <Job *> arg
    cdef Share s = share_of(job, rank, size)
    cdef unsigned state = flush_denormals()
    cdef int d
    for d in range(s.first, s.last):
        forward_pass(&job.passes[d], &s)
    restore(state)


# ---- backward -----------------------------------------------------------------------------------

cdef fr_product plain_product(const Pass *p, fr_rows c, fr_rows a, const void *b,
                              ptrdiff_t n) noexcept nogil:
    """c (rows of n) = gate gradients (rows of G runs of H) times packed weights."""
    cdef fr_product g
    g.c = c
    g.a = a
    g.runs = p.cell.gates
    g.run = p.H
    g.run_stride = p.pitch
    g.b = b
    g.bias = NULL
    g.accumulate = 1
    g.panel0 = 0
    g.panel1 = ceil_div(n, p.table.lanes * p.table.plain_vectors)
    g.n = n
    g.pitch = 0
    return g


cdef void backward_pass(Pass *p, const Share *s) noexcept nogil:
    """Gate gradients of all steps, written over the gates, and dh, dc of the initial state."""
    cdef fr_backward step
    cdef fr_product g
    cdef ptrdiff_t b0 = 0, b1 = p.B, panel0 = 0, panel1 = p.panels_h, t
    cdef ptrdiff_t k = p.cell.gates * p.H
    p.table.pack_plain(p.wb, p.w_hh, k, p.H, p.cell.gates, AS_IT_IS,
                       part(p.panels_h, s.rank, s.size), part(p.panels_h, s.rank + 1, s.size))
    if p.need_dx:
        p.table.pack_plain(p.wi, p.w_ih, k, p.I, p.cell.gates, p.cell.order_x,
                           part(p.panels_i, s.rank, s.size), part(p.panels_i, s.rank + 1, s.size))
    wait(&p.barrier, s.size)
    if s.by_units:
        panel0 = part(p.panels_h, s.rank, s.size)
        panel1 = part(p.panels_h, s.rank + 1, s.size)
    else:
        b0 = part(p.B, s.rank, s.size)
        b1 = part(p.B, s.rank + 1, s.size)
        if b0 == b1:
            return

    memset(&step, 0, sizeof(step))
    step.rows = b1 - b0
    step.panel0 = panel0
    step.panel1 = panel1
    step.hidden = p.H
    step.pitch = p.pitch
    step.gates_row = p.row
    step.dy_row = p.dy_b
    step.out_row = p.out_b
    step.wb = p.wb
    step.dh = at(p.dh, b0 * p.pitch, p)
    step.dc = at(p.dc, b0 * p.pitch, p)
    for t in range(p.T - 1, -1, -1):
        step.next = step.gates
        step.gates = at(p.gates, (t * p.B + b0) * p.row, p)
        if p.dy != NULL:
            step.dy = at(p.dy, t * p.dy_t + b0 * p.dy_b, p)
        if p.dh_out != NULL:
            step.dh_out = at(p.dh_out, t * p.out_t + b0 * p.out_b, p)
        if p.dc_out != NULL:
            step.dc_out = at(p.dc_out, t * p.out_t + b0 * p.out_b, p)
        step.h_prev = h_at(p, t, b0)
        step.h = h_at(p, t + 1, b0)
        step.c_prev = at(p.c, (t * p.B + b0) * p.pitch, p)
        step.c = at(p.c, ((t + 1) * p.B + b0) * p.pitch, p)
        step.down = t & 1 and step.rows < MANY_ROWS
        p.cell.backward(&step)
        if s.by_units:
            wait(&p.barrier, s.size)
    if not p.keeps_h:
        # backward has put h(t) in the place of c(t); h0 is what is missing
        k = p.table.lanes * p.table.plain_vectors
        for t in range(b0, b1):
            memcpy(at(p.c, t * p.pitch + panel0 * k, p), at(p.h, t * p.pitch + panel0 * k, p),
                   (min(panel1 * k, p.pitch) - panel0 * k) * p.table.itemsize)
    if p.T > 0:
        g = plain_product(p, rows_of(p.dh, p.B, 0, p.pitch),
                          rows_of(at(p.gates, p.cell.slot_h[0] * p.pitch, p), p.B, 0, p.row),
                          p.wb, p.H)
        g.row0 = b0
        g.row1 = b1
        g.panel0 = panel0
        g.panel1 = panel1
        p.table.product_plain(&g)


cdef void parameter_gradients(Pass *p, Job *job, int rank, int size) noexcept nogil:
    """dx and the weights' gradients: products over all of time."""
    cdef ptrdiff_t n = p.T * p.B, per, c0, c1
    cdef fr_rows gates = rows_of(p.gates, n, 0, p.row), inputs = gates
    cdef fr_gradient w
    cdef fr_product g
    cdef int i
    if p.index:
        # all rows with one symbol count as one row
        per = ceil_div(ceil_div(p.row, size), 16) * 16
        c0 = min(rank * per, p.row)
        c1 = min(c0 + per, p.row)
        for i in range(p.V):
            memset(at(p.symbols, i * p.row + c0, p), 0, (c1 - c0) * p.table.itemsize)
        for i in range(p.T):
            p.table.scatter_add(p.symbols, at(p.gates, i * p.B * p.row, p), p.row,
                                p.index + i * p.index_t, p.B, c0, c1)
        wait(&job.everyone, size)
        n = p.V
        inputs = rows_of(p.symbols, n, 0, p.row)
    if p.need_dx:
        g = plain_product(p, p.dx, inputs, p.wi, p.I)
        g.accumulate = p.add_dx
        g.row0 = part(n, rank, size)
        g.row1 = part(n, rank + 1, size)
        p.table.product_plain(&g)

    w.gates = p.cell.gates
    w.h = p.H
    w.u0 = part(p.H, rank, size)
    w.u1 = part(p.H, rank + 1, size)
    w.scratch = job.scratch + rank * job.scratch_size

    if p.column:
        p.table.scatter_columns(p.dw_ih, p.db_ih, p.symbols, p.column, n, p.columns, p.H, p.pitch,
                                p.row, w.u0, w.u1, p.cell)
    else:
        w.c = p.dw_ih
        w.bias = p.db_ih
        w.a = inputs
        w.b = p.x
        w.k = n
        w.n = p.I
        for i in range(p.cell.gates):
            w.slot[p.cell.order_x[i]] = i * p.pitch
        p.table.gradient(&w)

    w.c = p.dw_hh
    w.bias = p.db_hh
    w.a = gates
    w.b = rows_of(p.h if p.keeps_h else p.c, p.T * p.B, 0, p.pitch)
    w.k = p.T * p.B
    w.n = p.H
    for i in range(p.cell.gates):
        w.slot[i] = p.cell.slot_h[i] * p.pitch
    p.table.gradient(&w)


cdef void walk_backward(void *arg, int rank, int size) noexcept nogil:
    cdef Job *job = <Job *> arg
    cdef Share s = share_of(job, rank, size)
    cdef unsigned state = flush_denormals()
    cdef int d
    for d in range(s.first, s.last):
        backward_pass(&job.passes[d], &s)
    for d in range(job.count):
        wait(&job.everyone, size)  # gates are whole; the second direction adds to the first's dx
        parameter_gradients(&job.passes[d], job, rank, size)
    restore(state)
