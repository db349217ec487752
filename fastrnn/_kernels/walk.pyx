"""Walks time: forward over a sequence, and backward through it, for a layer of 1 or 2 directions.

Letters: T steps, B batch, I input, H hidden, G gates, S slots of a tape row, V rows of an
embedding.
A `Pass` is one direction of one layer; a direction that walks back in time is a pass whose strides
of time are negative, so that step t of the pass is always step t of its tape. Rows may be of
different lengths: timeline.pyx says which ones are alive at a step.

Threads: a team of threads has one pass (two directions on an even number of threads) or all of
them, one after the other. Within a team either the rows of the batch are split, which needs no
barrier at all, or, for few rows, the hidden units, with a barrier after every step. Either way a
number is computed by one thread in one order. If a team that splits units has to wait too long for
one of its threads, thread 0 takes all units of the other steps.

Nothing here holds the GIL, allocates or checks: sequence.pyx and stream.pyx do.
"""

from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport (
    fr_backward,
    fr_barrier,
    fr_forward,
    fr_gradient,
    fr_product,
    fr_rows,
    fr_table,
)
from fastrnn._kernels.project cimport (
    pack_forward,
    pack_weights,
    project,
    project_symbols,
    unpack_halves,
)
from fastrnn._kernels.runtime cimport (
    flush_denormals,
    pitch_of,
    restore,
    table_for,
    threads_for,
    wait,
    wait_step,
)
from fastrnn._kernels.timeline cimport alive_at, even_times

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


cdef Pass sized(int kind, object dtype, ptrdiff_t T, ptrdiff_t B, ptrdiff_t I,
                ptrdiff_t H) except *:
    cdef Pass p
    memset(&p, 0, sizeof(p))
    p.table = table_for(dtype)
    p.cell = &p.table.cell[kind]
    p.times = even_times(T, B)
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
    cdef int threads = threads_for(2.0 * p.times.N * G * p.H * (p.I + p.H) * job.count)
    cdef int teams = 2 if job.count == 2 and threads % 2 == 0 else 1
    cdef int members = threads // teams
    # one thread: 1e5 operations a microsecond, 6e4 bytes of weights a microsecond
    cdef double step = max(2.0 * p.times.R * G * p.H * p.H / 1e5,
                           G * p.H * p.H * p.table.itemsize / 6e4)
    job.by_units = False
    if members > 1 and p.times.R < 4 * members:
        if step >= WORTH_A_BARRIER:
            job.by_units = True
            members = <int> min(members, p.panels, p.panels_h)
        else:
            members = <int> max(1, min(members, p.times.R // 2))
    return teams * members


cdef Share share_of(const Job *job, int rank, int size) noexcept nogil:
    cdef Share s
    cdef int teams = 2 if job.count == 2 and size % 2 == 0 else 1
    s.worker = rank
    s.size = size // teams
    s.first = rank // s.size if teams == 2 else 0
    s.last = s.first + 1 if teams == 2 else job.count
    s.rank = rank % s.size
    s.by_units = job.by_units and s.size > 1
    s.alone = size == 1
    return s


cdef ptrdiff_t part(ptrdiff_t n, int rank, int size) noexcept nogil:
    """Where part `rank` of n things begins, or, for rank + 1, ends."""
    return n * rank // size


cdef const int32_t *index_at(const Pass *p, ptrdiff_t t) noexcept nogil:
    """The symbols of step t."""
    return p.index + (p.times.first[t] if p.times.first else t * p.index_t)


# ---- forward ------------------------------------------------------------------------------------

cdef ptrdiff_t part_rows(const Times *times, int rank, int size) noexcept nogil:
    """Where the rows of part `rank` begin, or, for rank + 1, end: parts of like many steps."""
    cdef ptrdiff_t r = 0, steps = 0, wanted
    if times.length == NULL or rank == 0:
        return part(times.R, rank, size)
    wanted = part(times.N, rank, size)
    while r < times.R and steps + times.length[r] // 2 < wanted:
        steps += times.length[r]
        r += 1
    return times.R if rank == size else r


cdef ptrdiff_t take_rows(const Pass *p, char *taken, int32_t *place, ptrdiff_t t0, ptrdiff_t t1,
                         ptrdiff_t b0, ptrdiff_t b1) noexcept nogil:
    """Copy x of rows [b0, b1) that are alive in steps [t0, t1) side by side; return how many.

    `place` gets their row numbers, counted from row b0 of step t0.
    """
    cdef ptrdiff_t t, b, row, count = 0, size = p.I * p.table.itemsize
    for t in range(t0, t1):
        for b in range(b0, min(b1, alive_at(&p.times, t))):
            row = row_of(&p.times, t, b)
            memcpy(taken + count * size,
                   at(p.x.base, (p.x.at[row] if p.x.at else row) * p.x.inner, p), size)
            place[count] = <int32_t> (row - row_of(&p.times, t0, b0))
            count += 1
    return count


cdef void project_chunk(const Pass *p, const Share *s, ptrdiff_t t0, ptrdiff_t t1, ptrdiff_t b0,
                        ptrdiff_t b1, ptrdiff_t panel0, ptrdiff_t panel1) noexcept nogil:
    """x W_ih + b of rows [b0, b1) in steps [t0, t1), into their tape rows, or side by side.

    Without a tape these rows have a place of their own, chunk * (b1 - b0) rows: other threads may
    be at other chunks.
    """
    cdef ptrdiff_t count, tape_row = row_of(&p.times, t0, b0) if p.training else p.chunk * b0
    cdef char *taken = p.taken + s.worker * p.taken_size
    cdef int32_t *place
    cdef fr_rows rows
    if not p.taken_size:
        project(p, rows_of(at(p.x.base, t0 * p.x.outer + b0 * p.x.inner, p), b1 - b0, p.x.outer,
                           p.x.inner),
                rows_of(at(p.gates, tape_row * p.row, p), b1 - b0,
                        (p.times.R if p.training else b1 - b0) * p.row, p.row),
                0, (t1 - t0) * (b1 - b0), panel0, panel1)
        return
    if p.x.at == NULL and b1 - b0 == p.times.R:  # they lie side by side already
        count = row_of(&p.times, t1, 0) - row_of(&p.times, t0, 0)
        project(p, rows_of(at(p.x.base, row_of(&p.times, t0, 0) * p.x.inner, p), count, 0,
                           p.x.inner),
                rows_of(at(p.gates, tape_row * p.row, p), count, 0, p.row), 0, count, panel0,
                panel1)
        return
    place = <int32_t *> (taken + p.taken_size) - p.taken_rows
    count = take_rows(p, taken, place, t0, t1, b0, b1)
    rows = rows_of(at(p.gates, tape_row * p.row, p), count, 0, p.row)
    if p.training:
        rows.at = place
    project(p, rows_of(taken, count, 0, p.I), rows, 0, count, panel0, panel1)


cdef ptrdiff_t chunk_end(const Pass *p, ptrdiff_t t0, ptrdiff_t b0, ptrdiff_t b1) noexcept nogil:
    """Where the chunk of steps that begins with t0 ends for rows [b0, b1).

    It has at most chunk * (b1 - b0) rows.
    """
    cdef ptrdiff_t t = min(t0 + p.chunk, p.times.T), room = p.chunk * (b1 - b0)
    if p.times.first:
        t = t0
        while t < p.times.T and room >= min(b1, alive_at(&p.times, t)) - b0:
            room -= min(b1, alive_at(&p.times, t)) - b0  # below zero: no row is alive any more
            t += 1
    return t


cdef bint is_once(const Pass *p, bint alone) noexcept nogil:
    """Whether a thread that computes alone reads the weights for one step only.

    Then each panel is used as soon as it is packed, in the place of the panel before.
    """
    return alone and p.times.T == 1


cdef void forward_once(const Pass *p, fr_forward *step) noexcept nogil:
    """A step that packs its weights, panel by panel."""
    cdef ptrdiff_t panel, width = p.cell.vectors * p.table.lanes
    for panel in range(p.panels):
        step.wx = at(p.wx, -panel * width * p.I, p)  # kernels count panels from the first
        step.wh = at(p.wh, -panel * width * p.H, p)
        pack_weights(p, <void *> step.wx, p.w_ih, p.I, panel, panel + 1)
        pack_weights(p, <void *> step.wh, p.w_hh, p.H, panel, panel + 1)
        step.panel0, step.panel1 = panel, panel + 1
        p.cell.forward(step)


cdef void forward_pass(Pass *p, const Share *s) noexcept nogil:
    cdef fr_forward step
    cdef ptrdiff_t b0 = 0, b1 = p.times.R, panel0 = 0, panel1 = p.panels
    cdef ptrdiff_t t, t0, t1, row
    cdef bint joined, together = s.by_units  # the team shares the units of each step
    cdef bint once = is_once(p, s.alone) and not p.packed and not p.index
    cdef void (*forward)(const fr_forward *) noexcept nogil
    if once:
        p.table.pack_bias(p.start, p.bias_n, p.b_ih, p.b_hh, p.H, p.pitch, p.cell)
    elif not p.packed:
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
        b0 = part_rows(&p.times, s.rank, s.size)
        b1 = part_rows(&p.times, s.rank + 1, s.size)
        if b0 == b1:
            return

    memset(&step, 0, sizeof(step))
    step.panel0 = panel0
    step.panel1 = panel1
    step.hidden = p.H
    step.pitch = p.pitch
    step.y_row = p.y.inner
    step.gates_row = p.row
    step.wh = p.wh_half if p.half else p.wh
    step.wx = p.wx_half if p.half else p.wx
    step.bias_n = p.bias_n
    forward = p.cell.forward_half if p.half else p.cell.forward
    t1 = 0
    while t1 < p.times.T and b0 < alive_at(&p.times, t1):
        t0 = t1
        t1 = chunk_end(p, t0, b0, b1)
        row = p.chunk * b0  # of what is projected, without a tape
        step.rows = min(b1, alive_at(&p.times, t0)) - b0
        joined = not p.index and (once or p.wx == NULL
                                  or not s.by_units and step.rows >= JOINED_ROWS)
        if not p.index and not joined:
            project_chunk(p, s, t0, t1, b0, b1, panel0, panel1)
        step.input = p.I if joined else 0
        step.start_row = 0 if joined else p.row
        for t in range(t0, t1):
            step.rows = min(b1, alive_at(&p.times, t)) - b0
            if step.rows <= 0:
                break
            if p.index:
                step.start = p.symbols
                step.index = index_at(p, t) + b0
            elif joined:
                step.start = p.start
                step_input(p, s, &step, t, b0)
            else:
                step.start = at(p.gates, (row_of(&p.times, t, b0) if p.training else row) * p.row,
                                p)
                row += step.rows
            if p.training:
                step.gates = at(p.gates, row_of(&p.times, t, b0) * p.row, p)
            step.c_prev = c_at(p, t, b0)
            step.c = c_at(p, t + 1, b0)
            step.h_prev = h_at(p, t, b0)
            step.h = h_at(p, t + 1, b0)
            step.y = step_of(p, p.y, t, b0)
            step.y_at = places(p, p.y, t, b0)
            step.down = t & 1 and step.rows < MANY_ROWS
            if once:
                forward_once(p, &step)
                return
            forward(&step)
            if together and not wait_step(&p.barrier, s.size):
                if s.rank:
                    return
                together = False
                step.panel0 = panel0 = 0
                step.panel1 = panel1 = p.panels


cdef void step_input(const Pass *p, const Share *s, fr_forward *step, ptrdiff_t t,
                     ptrdiff_t b0) noexcept nogil:
    """Let a step read x itself, side by side."""
    cdef char *taken = p.taken + s.worker * p.taken_size
    if p.taken_size and p.x.at == NULL:
        step.x = at(p.x.base, row_of(&p.times, t, b0) * p.x.inner, p)
        step.x_row = p.x.inner
    elif p.taken_size:
        take_rows(p, taken, <int32_t *> (taken + p.taken_size) - p.taken_rows, t, t + 1, b0,
                  b0 + step.rows)
        step.x = taken
        step.x_row = p.I
    else:
        step.x = at(p.x.base, t * p.x.outer + b0 * p.x.inner, p)
        step.x_row = p.x.inner


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


cdef void step_back(const Pass *p, fr_backward *step, ptrdiff_t t, ptrdiff_t b0, ptrdiff_t b1,
                    bint last) noexcept nogil:
    """Step t of rows [b0, b1), for which it is the last one or not."""
    step.rows = b1 - b0
    if step.rows <= 0:
        return
    step.next = NULL if last else at(p.gates, row_of(&p.times, t + 1, b0) * p.row, p)
    step.gates = at(p.gates, row_of(&p.times, t, b0) * p.row, p)
    step.dh = at(p.dh, b0 * p.pitch, p)
    step.dc = at(p.dc, b0 * p.pitch, p)
    if p.dy.base != NULL:
        step.dy = step_of(p, p.dy, t, b0)
        step.dy_at = places(p, p.dy, t, b0)
    if p.dh_out.base != NULL:
        step.dh_out = step_of(p, p.dh_out, t, b0)
    if p.dc_out.base != NULL:
        step.dc_out = step_of(p, p.dc_out, t, b0)
    step.out_at = places(p, p.dh_out, t, b0)
    step.h_prev = h_at(p, t, b0)
    step.h = h_at(p, t + 1, b0)
    step.c_prev = c_at(p, t, b0)
    step.c = c_at(p, t + 1, b0)
    step.down = t & 1 and step.rows < MANY_ROWS
    p.cell.backward(step)


cdef void backward_pass(Pass *p, const Share *s) noexcept nogil:
    """Gate gradients of all steps, written over the gates, and dh, dc of the initial state."""
    cdef fr_backward step
    cdef fr_product g
    cdef ptrdiff_t b0 = 0, b1 = p.times.R, panel0 = 0, panel1 = p.panels_h, t, going, alive
    cdef ptrdiff_t k = p.cell.gates * p.H
    cdef bint together = s.by_units
    cdef bint once = is_once(p, s.alone)
    if not once:
        p.table.pack_plain(p.wb, p.w_hh, k, p.H, p.cell.gates, AS_IT_IS,
                           part(p.panels_h, s.rank, s.size), part(p.panels_h, s.rank + 1, s.size))
        if p.need_dx:
            p.table.pack_plain(p.wi, p.w_ih, k, p.I, p.cell.gates, p.cell.order_x,
                               part(p.panels_i, s.rank, s.size),
                               part(p.panels_i, s.rank + 1, s.size))
    wait(&p.barrier, s.size)
    if s.by_units:
        panel0 = part(p.panels_h, s.rank, s.size)
        panel1 = part(p.panels_h, s.rank + 1, s.size)
    else:
        b0 = part_rows(&p.times, s.rank, s.size)
        b1 = part_rows(&p.times, s.rank + 1, s.size)
        if b0 == b1:
            return

    memset(&step, 0, sizeof(step))
    step.panel0 = panel0
    step.panel1 = panel1
    step.hidden = p.H
    step.pitch = p.pitch
    step.gates_row = p.row
    step.dy_row = p.dy.inner
    step.out_row = p.dh_out.inner
    step.wb = p.wb
    going = b0  # rows [b0, going) have a step t+1
    for t in range(p.times.T - 1, -1, -1):
        alive = min(b1, alive_at(&p.times, t))
        step_back(p, &step, t, b0, going, False)
        step_back(p, &step, t, going, alive, True)
        going = max(b0, alive)
        if together and not wait_step(&p.barrier, s.size):
            if s.rank:
                return
            together = False
            step.panel0 = panel0 = 0
            step.panel1 = panel1 = p.panels_h
    if not p.keeps_h:
        # backward has put h(t) in the place of c(t); h0 is what is missing
        k = p.table.lanes * p.table.plain_vectors
        for t in range(b0, b1):
            memcpy(at(p.c, t * p.pitch + panel0 * k, p), at(p.h, t * p.pitch + panel0 * k, p),
                   (min(panel1 * k, p.pitch) - panel0 * k) * p.table.itemsize)
    if p.times.T > 0:
        g = plain_product(p, rows_of(p.dh, p.times.R, 0, p.pitch),
                          rows_of(at(p.gates, p.cell.slot_h[0] * p.pitch, p), p.times.R, 0, p.row),
                          p.wb, p.H)
        g.row0 = b0
        g.row1 = b1
        g.panel0 = panel0
        g.panel1 = panel1
        if once:
            multiply_once(p, &g, p.wb, p.w_hh, AS_IT_IS)
        else:
            p.table.product_plain(&g)


cdef void multiply_once(const Pass *p, fr_product *g, void *place, const void *weight,
                        const int *order) noexcept nogil:
    """A product with a weight (G*H, n) that is packed for it, panel by panel."""
    cdef ptrdiff_t panel, last = g.panel1, k = p.cell.gates * p.H
    cdef ptrdiff_t size = k * p.table.lanes * p.table.plain_vectors
    for panel in range(g.panel0, last):
        g.b = at(place, -panel * size, p)
        p.table.pack_plain(<void *> g.b, weight, k, g.n, p.cell.gates, order, panel, panel + 1)
        g.panel0, g.panel1 = panel, panel + 1
        p.table.product_plain(g)


cdef void sum_symbols(const Pass *p, fr_barrier *everyone, int rank, int size) noexcept nogil:
    """The gradients of all rows with one symbol into one row, columns of the tape by thread."""
    cdef ptrdiff_t i, per = ceil_div(ceil_div(p.row, size), 16) * 16
    cdef ptrdiff_t c0 = min(rank * per, p.row), c1 = min(rank * per + per, p.row)
    for i in range(p.V):
        memset(at(p.symbols, i * p.row + c0, p), 0, (c1 - c0) * p.table.itemsize)
    for i in range(p.times.T):
        p.table.scatter_add(p.symbols, at(p.gates, row_of(&p.times, i, 0) * p.row, p), p.row,
                            index_at(p, i), alive_at(&p.times, i), c0, c1)
    wait(everyone, size)


cdef void write_to(fr_gradient *w, void *c, ptrdiff_t n) noexcept nogil:
    """Set where a gradient (G*H, n) goes; NULL: nobody wants it, perhaps that of the bias."""
    w.c = c if c != NULL else w.scratch
    w.n = n if c != NULL else 0


cdef void parameter_gradients(Pass *p, Job *job, int rank, int size) noexcept nogil:
    """dx and the weights' gradients: products over all of time."""
    cdef ptrdiff_t n = p.times.N
    cdef fr_rows gates = rows_of(p.gates, n, 0, p.row), inputs = gates
    cdef fr_gradient w
    cdef fr_product g
    cdef int i
    if p.index:
        sum_symbols(p, &job.everyone, rank, size)
        n = p.V
        inputs = rows_of(p.symbols, n, 0, p.row)
    if p.need_dx:
        g = plain_product(p, p.dx, inputs, p.wi, p.I)
        g.accumulate = p.add_dx
        g.row0 = part(n, rank, size)
        g.row1 = part(n, rank + 1, size)
        if is_once(p, size == 1):
            multiply_once(p, &g, p.wi, p.w_ih, p.cell.order_x)
        else:
            p.table.product_plain(&g)

    w.gates = p.cell.gates
    w.h = p.H
    w.fresh = p.fresh
    w.u0 = part(p.H, rank, size)
    w.u1 = part(p.H, rank + 1, size)
    w.scratch = job.scratch + rank * job.scratch_size

    if p.dw_ih == NULL and p.db_ih == NULL:
        pass  # nobody wants them
    elif p.column:
        p.table.scatter_columns(p.dw_ih, p.db_ih, p.symbols, p.column, n, p.columns, p.H, p.pitch,
                                p.row, w.u0, w.u1, p.cell)
    else:
        w.bias = p.db_ih
        w.a = inputs
        w.b = p.x
        w.k = n
        write_to(&w, p.dw_ih, p.I)
        for i in range(p.cell.gates):
            w.slot[p.cell.order_x[i]] = i * p.pitch
        p.table.gradient(&w)

    if p.dw_hh == NULL and p.db_hh == NULL:
        return
    w.bias = p.db_hh
    w.a = gates
    w.b = rows_of(p.h if p.keeps_h else p.c, p.times.N, 0, p.pitch)
    w.b.at = p.before
    w.k = p.times.N
    write_to(&w, p.dw_hh, p.H)
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
