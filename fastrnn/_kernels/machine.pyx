"""Walks time for a cell that is a program: its phases step by step, forward and backward.

A `Run` is one direction of one layer. Its `Pass` describes the rows, the input and the tape; there
the products with the input look like a plain cell of H = `x_columns` units, so that walk.pyx and
project.pyx make them. Threads share the rows, or the units of each step, as in walk.pyx; with units
they wait for each other after every phase.

Letters: T steps, R rows, N rows of all steps together, I input, K columns of a weight, V symbols.
Nothing here holds the GIL, allocates or checks: program.pyx does.
"""

from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport (
    fr_elementwise,
    fr_place,
    fr_product,
)
from fastrnn._kernels.machine_gradients cimport add_sums, parameter_gradients
from fastrnn._kernels.machine_packs cimport pack_back, pack_run
from fastrnn._kernels.project cimport project_symbols
from fastrnn._kernels.runtime cimport flush_denormals, restore, threads_for, wait, wait_step
from fastrnn._kernels.timeline cimport alive_at, row_of, state_of
from fastrnn._kernels.walk cimport (
    Pass,
    Share,
    at,
    ceil_div,
    chunk_end,
    index_at,
    part,
    part_rows,
    places,
    project_chunk,
    rows_of,
    share_of,
    step_of,
)


# Threads share the units of a step that takes one thread so many microseconds for each time that
# they wait for each other in it.
cdef double WORTH_A_WAIT = 0.75

# A row adds up the gradients of vectors over so many steps at most before it begins a new sum: long
# sums of float32 lose digits.
cdef ptrdiff_t SUM_STEPS = 256


# ---- where things lie ---------------------------------------------------------------------------

cdef char *state_at(const Run *r, int s, ptrdiff_t t, ptrdiff_t b) noexcept nogil:
    """Row b of a state before step t; t = 0: the initial one."""
    cdef ptrdiff_t row
    if r.lean:
        row = t % 2 * r.p.times.R + b
    else:
        row = state_of(&r.p.times, t, b)
    return at(r.states[s], row * r.state[s].pitch, &r.p)


cdef fr_place place(const Run *r, const Spot *spot, const Step *s) noexcept nogil:
    cdef fr_place found
    cdef int n = spot.number
    if spot.space == TAPE:
        found.base = at(s.tape, spot.offset, &r.p)
        found.row = r.p.row
    elif spot.space == SCRATCH:
        found.base = at(r.scratch, s.b0 * r.phases.scratch + spot.offset, &r.p)
        found.row = r.phases.scratch
    elif spot.space == OLD:
        found.base = state_at(r, n, s.t, s.b0)
        found.row = r.state[n].pitch
    elif spot.space == NEW:
        found.base = state_at(r, n, s.t + 1, s.b0)
        found.row = r.state[n].pitch
    elif spot.space == CARRY:
        found.base = at(r.carries[n], s.b0 * r.state[n].pitch, &r.p)
        found.row = r.state[n].pitch
    elif spot.space == VECTOR:
        found.base = at(r.vectors, spot.offset, &r.p)
        found.row = 0
    elif spot.space == SUMS:
        found.base = at(r.sums, s.b0 * r.sums_row + spot.offset, &r.p)
        found.row = r.sums_row
    else:
        found.row = r.mask_row[n]
        found.base = at(r.masks[n], (row_of(&r.p.times, s.t, s.b0) if r.mask_steps[n] else s.b0)
                        * found.row, &r.p)
    return found


cdef inline const char *x_row(const Pass *p, ptrdiff_t t, ptrdiff_t b) noexcept nogil:
    """Row b of the input of step t."""
    cdef ptrdiff_t row
    if p.index:
        return at(p.x.base, index_at(p, t)[b] * p.x.inner, p)
    if p.taken_size:
        row = row_of(&p.times, t, b)
        return at(p.x.base, (p.x.at[row] if p.x.at else row) * p.x.inner, p)
    return at(p.x.base, t * p.x.outer + b * p.x.inner, p)


# ---- one step -----------------------------------------------------------------------------------

cdef void run_code(const Run *r, const Phase *phase, const Step *s) noexcept nogil:
    cdef fr_elementwise e
    cdef ptrdiff_t lanes = r.table.lanes
    cdef fr_place *found = r.places + s.worker * r.phases.places
    cdef int i
    e.u0 = part(phase.units // lanes, s.rank, s.size) * lanes
    e.u1 = part(phase.units // lanes, s.rank + 1, s.size) * lanes
    if e.u0 == e.u1:
        return
    for i in range(phase.places):
        found[i] = place(r, &phase.spots[i], s)
    e.code = phase.code
    e.count = phase.count
    e.places = found
    e.registers = phase.places
    e.scratch = r.registers + s.worker * r.registers_size
    e.rows = s.rows
    e.tile = phase.tile
    r.table.elementwise(&e)


cdef void run_product(const Run *r, const Phase *phase, const Step *s) noexcept nogil:
    cdef fr_product g
    cdef fr_place target = place(r, &phase.target, s), source = place(r, &phase.source, s)
    cdef ptrdiff_t panels
    g.c = rows_of(target.base, s.rows, 0, target.row)
    g.a = rows_of(source.base, s.rows, 0, source.row)
    g.accumulate = not phase.begins
    g.row0 = 0
    g.row1 = s.rows
    g.pitch = 0
    if phase.kind == PRODUCT:
        g.runs = 1
        g.run = phase.K
        g.run_stride = 0
        g.b = at(r.packs, phase.weight, &r.p)
        g.bias = NULL if phase.bias < 0 else at(r.starts, phase.bias, &r.p)
        g.n = phase.columns
    else:
        g.runs = phase.blocks
        g.run = phase.K
        g.run_stride = phase.slot
        g.b = at(r.back, phase.weight, &r.p)
        g.bias = NULL
        g.n = phase.n
    panels = ceil_div(g.n, r.table.lanes * r.table.plain_vectors)
    g.panel0 = part(panels, s.rank, s.size)
    g.panel1 = part(panels, s.rank + 1, s.size)
    if g.panel0 < g.panel1:
        r.table.product_plain(&g)


cdef bint run_phases(Run *r, Step *s) noexcept nogil:
    """One step; False: the thread is to leave, because thread 0 goes on alone."""
    cdef fr_place target, source
    cdef const Phase *phase
    cdef int i
    for i in range(r.phases.count):
        phase = &r.phases.phase[i]
        if phase.kind == CODE:
            run_code(r, phase, s)
        elif phase.kind != SUM:
            run_product(r, phase, s)
        elif s.rank == 0:
            target = place(r, &phase.target, s)
            source = place(r, &phase.source, s)
            r.table.sum_units(target.base, target.row, source.base, source.row, s.rows, phase.n)
        if phase.waits and s.size > 1 and not meet(r, s):
            return False
    return True


cdef bint meet(Run *r, Step *s) noexcept nogil:
    """Wait for the team; False: leave."""
    if wait_step(&r.barrier, s.size):
        return True
    if s.rank:
        return False
    s.size = 1
    return True


# ---- forward ------------------------------------------------------------------------------------

cdef int plan_runs(RunJob *job, double operations, double weight_bytes) noexcept nogil:
    """Threads to use, and whether teams split units or rows; see walk.plan."""
    cdef const Run *r = job.runs
    cdef int count = job.job.count, waits = 1, i
    cdef int threads = threads_for(r.p.times.N * operations * count)
    cdef int teams = 2 if count == 2 and threads % 2 == 0 else 1
    cdef int members = threads // teams
    cdef double step = max(r.p.times.R * operations / 1e5, weight_bytes / 6e4)
    for i in range(r.phases.count):
        waits += r.phases.phase[i].waits
    job.job.by_units = False
    if members > 1 and r.p.times.R < 4 * members:
        if step >= WORTH_A_WAIT * waits:
            job.job.by_units = True
        else:
            members = <int> max(1, min(members, r.p.times.R // 2))
    return teams * members


cdef ptrdiff_t take_share(const Pass *p, const Share *share, Step *s) noexcept nogil:
    """Set what a thread computes of each step: units of all rows, or rows [s.b0, the result)."""
    s.worker = share.worker
    s.rank = share.rank if share.by_units else 0
    s.size = share.size if share.by_units else 1
    s.b0 = 0 if share.by_units else part_rows(&p.times, share.rank, share.size)
    return p.times.R if share.by_units else part_rows(&p.times, share.rank + 1, share.size)


cdef void take_input(const Run *r, const Step *s) noexcept nogil:
    """Put what is projected of symbols, and x itself, into the rows of a step."""
    cdef const Pass *p = &r.p
    cdef ptrdiff_t b
    cdef const int32_t *index
    if p.index and p.H:
        index = index_at(p, s.t) + s.b0
        for b in range(s.rows):
            memcpy(at(s.tape, b * p.row, p), at(p.symbols, index[b] * p.row, p),
                   p.H * r.table.itemsize)
    if r.x_offset >= 0:
        for b in range(s.rows):
            memcpy(at(s.tape, b * p.row + r.x_offset, p), x_row(p, s.t, s.b0 + b),
                   p.I * r.table.itemsize)


cdef ptrdiff_t own_units(const Run *r, const Step *s, ptrdiff_t width,
                         ptrdiff_t *u0) noexcept nogil:
    """The units of rows of this width that are the thread's in run_code: how many, and the first.

    What a thread has computed there is its own until it computes the next step's.
    """
    cdef ptrdiff_t lanes = r.table.lanes, vectors = ceil_div(width, lanes)
    u0[0] = part(vectors, s.rank, s.size) * lanes
    return min(part(vectors, s.rank + 1, s.size) * lanes, width) - u0[0]


cdef void put_output(const Run *r, const Step *s) noexcept nogil:
    cdef const Pass *p = &r.p
    cdef fr_place source = place(r, &r.output, s)
    cdef char *y = step_of(p, p.y, s.t, s.b0)
    cdef const int32_t *to = places(p, p.y, s.t, s.b0)
    cdef ptrdiff_t b, u0, n = own_units(r, s, r.output_width, &u0)
    if n <= 0:
        return
    for b in range(s.rows):
        memcpy(at(y, (to[b] if to else b) * p.y.inner + u0, p),
               at(source.base, b * source.row + u0, p), n * r.table.itemsize)


cdef void forward_run(Run *r, const Share *share) noexcept nogil:
    cdef Pass *p = &r.p
    cdef Step s
    cdef ptrdiff_t b0, b1, panel0, panel1, t, t0, t1 = 0, row
    cdef bint takes = p.index != NULL or r.x_offset >= 0
    if not p.packed:
        pack_run(r, share.rank, share.size)
        wait(&r.barrier, share.size)
    if p.index and not r.symbols_ready:
        project_symbols(p, part(p.V, share.rank, share.size), part(p.V, share.rank + 1, share.size))
        wait(&r.barrier, share.size)
    b1 = take_share(p, share, &s)
    b0 = s.b0
    if b0 == b1:
        return
    while t1 < p.times.T and b0 < alive_at(&p.times, t1):
        t0 = t1
        t1 = chunk_end(p, t0, b0, b1)
        row = p.chunk * b0
        if not p.index and p.H:
            panel0 = part(p.panels, s.rank, s.size)
            panel1 = part(p.panels, s.rank + 1, s.size)
            if panel0 < panel1:
                project_chunk(p, share, t0, t1, b0, b1, panel0, panel1)
            if s.size > 1 and not meet(r, &s):
                return
        for t in range(t0, t1):
            s.t = t
            s.rows = min(b1, alive_at(&p.times, t)) - b0
            if s.rows <= 0:
                break
            s.tape = at(p.gates, (row_of(&p.times, t, b0) if p.training else row) * p.row, p)
            row += s.rows
            if takes:
                if s.rank == 0:
                    take_input(r, &s)
                if s.size > 1 and not meet(r, &s):
                    return
            if not run_phases(r, &s):
                return
            put_output(r, &s)


cdef void run_forward(void *arg, int rank, int size) noexcept nogil:
    cdef RunJob *job = <RunJob *> arg
    cdef Share s = share_of(&job.job, rank, size)
    cdef unsigned state = flush_denormals()
    cdef int d
    for d in range(s.first, s.last):
        forward_run(&job.runs[d], &s)
    restore(state)


# ---- backward -----------------------------------------------------------------------------------

cdef void take_dy(const Run *r, const Step *s) noexcept nogil:
    """Add dy to the gradient of the output's state, or put it where backward reads it."""
    cdef const Pass *p = &r.p
    cdef const char *dy = NULL
    cdef const int32_t *of = NULL
    cdef fr_place target
    cdef Spot spot = r.dy
    cdef ptrdiff_t b, u0, n = own_units(r, s, r.output_width, &u0)
    if n <= 0:
        return
    if p.dy.base != NULL:
        dy = at(step_of(p, p.dy, s.t, s.b0), u0, p)
        of = places(p, p.dy, s.t, s.b0)
    if r.output_state >= 0:
        spot.space = CARRY
        spot.number = r.output_state
    elif spot.space != SCRATCH:
        return
    target = place(r, &spot, s)
    target.base = at(target.base, u0, p)
    if r.output_state < 0:
        for b in range(s.rows):
            memset(at(target.base, b * target.row, p), 0, n * r.table.itemsize)
    if dy != NULL:
        r.table.add_rows(target.base, target.row, dy, p.dy.inner, of, s.rows, n)


cdef void put_records(const Run *r, const Step *s) noexcept nogil:
    cdef fr_place source
    cdef ptrdiff_t b, u0, n
    cdef int i
    for i in range(r.record_count):
        if r.record_rows[i].base == NULL:
            continue
        n = own_units(r, s, r.record_width[i], &u0)
        if n <= 0:
            continue
        source = place(r, &r.record[i], s)
        for b in range(s.rows):
            memcpy(at(row_in(r, r.record_rows[i], row_of(&r.p.times, s.t, s.b0 + b)), u0, &r.p),
                   at(source.base, b * source.row + u0, &r.p), n * r.table.itemsize)


cdef bint dy_is_whole(const Run *r) noexcept nogil:
    """Whether the first phase reads of dy what its thread has taken alone."""
    cdef const Phase *first = r.phases.phase
    cdef ptrdiff_t lanes = r.table.lanes
    return r.phases.count == 0 or (
        first.kind == CODE and first.units == ceil_div(r.output_width, lanes) * lanes)


cdef void backward_run(Run *r, const Share *share) noexcept nogil:
    """Gradients of all products, on the tape, and of the initial states, in the carries."""
    cdef Pass *p = &r.p
    cdef Step s
    cdef ptrdiff_t b0, b1, t
    cdef bint whole = dy_is_whole(r)
    pack_back(r, share.rank, share.size)
    wait(&r.barrier, share.size)
    b1 = take_share(p, share, &s)
    b0 = s.b0
    if b0 == b1:
        return
    for t in range(p.times.T - 1, -1, -1):
        s.t = t
        s.rows = min(b1, alive_at(&p.times, t)) - b0
        if s.rows <= 0:
            continue
        s.tape = at(p.gates, row_of(&p.times, t, b0) * p.row, p)
        take_dy(r, &s)
        if s.size > 1 and not whole and not meet(r, &s):
            return
        if not run_phases(r, &s):
            return
        put_records(r, &s)
        if r.sums_row and t % SUM_STEPS == 0:
            if s.rank == 0:
                add_sums(r, b0, b1)
            if s.size > 1 and not meet(r, &s):
                return


cdef void run_backward(void *arg, int rank, int size) noexcept nogil:
    cdef RunJob *job = <RunJob *> arg
    cdef Share s = share_of(&job.job, rank, size)
    cdef unsigned state = flush_denormals()
    cdef int d
    for d in range(s.first, s.last):
        backward_run(&job.runs[d], &s)
    for d in range(job.job.count):
        wait(&job.job.everyone, size)  # the tape is whole; the second direction adds to dx
        parameter_gradients(&job.runs[d], job, rank, size)
    restore(state)
