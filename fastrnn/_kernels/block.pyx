"""Many steps of a stack of layers in one call: what `Stream.block` runs.

The steps go through the layers in chunks: a layer takes a chunk of steps, then the next layer takes
what it has left, then the head. So x is projected for many steps at once, whose rows share the
weights, and the memory has a fixed size for any number of steps.

Threads split the rows, which needs no barrier, or, for few rows, the hidden units, with a barrier
after every step. Either way a number is computed by one thread in one order.

Letters: T steps, n rows, I input, H hidden, S slots of a tape row, N outputs of the head.
"""

from libc.stdint cimport int32_t
from libc.string cimport memcpy

from fastrnn._kernels.c cimport fr_forward, fr_product
from fastrnn._kernels.check cimport Carver
from fastrnn._kernels.machine cimport NEW, Run, Step
from fastrnn._kernels.machine cimport meet as meet_in_step
from fastrnn._kernels.packed cimport Packed, panels_width
from fastrnn._kernels.project cimport pack_row, project, unpack_halves
from fastrnn._kernels.runtime cimport Buffer, flush_denormals, restore, wait_step
from fastrnn._kernels.stack cimport Layer, Stack, advance_run
from fastrnn._kernels.walk cimport Pass, part, rows_of, sized

# A chunk's projections take about so many bytes: they are still in L2 when they are used.
cdef ptrdiff_t CHUNK_BYTES = 256 * 1024

# So many rows of x at least make a product that uses the weights well.
cdef ptrdiff_t PRODUCT_ROWS = 24

# As many rows use weights well by themselves: a step then takes x and h in one chain. So does a
# layer with so few inputs, or so few weights of them, that a projection costs more to store than to
# make (5 to 15% of a step).
cdef ptrdiff_t JOINED_ROWS = 16
cdef ptrdiff_t JOINED_INPUTS = 4
cdef ptrdiff_t JOINED_WEIGHTS = 256  # I * H

# A step of fewer rows begins with the panels that the step before read last.
cdef ptrdiff_t MANY_ROWS = 8


# ---- memory -------------------------------------------------------------------------------------

cdef class Scratch:
    cdef int32_t *symbols_for(self, object count) except? NULL:
        """Return room for so many symbols; it grows and is kept."""
        if self.symbols is None or self.symbols.nbytes < 4 * count:
            self.symbols = Buffer(4 * count)
        return <int32_t *> self.symbols.data

    cdef object prepare(self, ptrdiff_t T, ptrdiff_t n):
        """Set the sizes of a block; unpack bfloat16 weights when they are first needed."""
        cdef Block *b = &self.block
        b.T = T
        b.n = n
        b.joined = n >= JOINED_ROWS
        b.chunk = max(1, (self.most_rows if b.joined else self.few_rows) // max(1, n))
        if not b.joined and self.weights is None:
            self.unpack()
        if n == 1 and self.row_weights is None:
            self.pack_rows()

    cdef object unpack(self):
        cdef Block *b = &self.block
        cdef Pass *p
        cdef int i
        carver = Carver(b.itemsize)
        offsets = [0] * b.stack.count
        for i in range(b.stack.count):
            if b.layers[i].half:
                offsets[i] = carver.add_rows(panels_width(&b.layers[i]), b.layers[i].I)
        self.weights = Buffer(carver.bytes)
        for i in range(b.stack.count):
            p = &b.layers[i]
            if p.half:
                p.wx = self.weights.data + <ptrdiff_t> offsets[i]
                with nogil:
                    unpack_halves(p, 0, p.panels)

    cdef object pack_rows(self):
        cdef Block *b = &self.block
        cdef Pass *p
        cdef void *target
        cdef int i
        carver = Carver(b.itemsize)
        offsets = [0] * b.stack.count
        for i in range(b.stack.count):
            if walks(&b.layers[i]):
                offsets[i] = carver.add_rows(panels_width(&b.layers[i]), b.layers[i].H)
        self.row_weights = Buffer(carver.bytes)
        for i in range(b.stack.count):
            p = &b.layers[i]
            if walks(p):
                target = self.row_weights.data + <ptrdiff_t> offsets[i]
                pack_row(p, target, p.wh)
                p.wh_row = target


cdef bint walks(const Pass *p) noexcept nogil:
    """Whether one row of this layer goes over many steps in one call of the C side."""
    return p.wh != NULL and p.panels <= p.table.row_panels


cdef Scratch make_scratch(tuple groups, Stack *stack, bint first_is_projected, ptrdiff_t looked_up,
                          object dtype, ptrdiff_t B):
    """Return the memory for blocks of up to B rows.

    Parameters
    ----------
    groups : tuples of Packed or PackedProgram
    stack : where the layers lie
    first_is_projected : whether the first layer has an x
    looked_up : I if rows of an embedding are looked up, or 0
    dtype : float32 or float64
    B : rows of the stream
    """
    cdef Scratch scratch = Scratch.__new__(Scratch)
    cdef Block *block = &scratch.block
    cdef Packed packed
    cdef Pass *p
    cdef ptrdiff_t row = 0, pitch = 0, h_at, passes_at, gates_at, rows_at, other_at
    cdef bint programs = False
    cdef int i = 0
    itemsize = dtype.itemsize
    carver = Carver(1)
    passes_at = carver.add(stack.count * <object> sizeof(Pass))
    for group in groups:
        for one in group:
            if stack.layers[i].run != NULL:
                row = max(row, stack.layers[i].run.p.row)
                programs = True
            else:
                packed = one
                row = max(row, packed.cell.slots * stack.layers[i].step.pitch)
            pitch = max(pitch, stack.layers[i].step.pitch)
            i += 1
    block.itemsize = itemsize
    block.row = row
    block.pitch = pitch
    scratch.few_rows = max(CHUNK_BYTES // (row * block.itemsize), JOINED_ROWS + PRODUCT_ROWS)
    scratch.most_rows = max(CHUNK_BYTES // (row * block.itemsize), B)
    most = int(max(scratch.few_rows, scratch.most_rows))
    # programs project x of any number of rows
    gates_at = carver.add((most if programs else int(scratch.few_rows)) * row * itemsize)
    h_at = carver.add(most * pitch * itemsize)
    other_at = carver.add(most * pitch * itemsize)
    rows_at = carver.add(most * looked_up * itemsize)
    scratch.buffer = Buffer(carver.bytes)
    block.stack = stack
    block.layers = <Pass *> (scratch.buffer.data + passes_at)
    block.gates = scratch.buffer.data + gates_at
    block.h[0] = scratch.buffer.data + h_at
    block.h[1] = scratch.buffer.data + other_at
    block.rows = scratch.buffer.data + rows_at
    i = 0
    for group in groups:
        for one in group:
            p = &block.layers[i]
            i += 1
            if stack.layers[i - 1].run != NULL:
                p[0] = stack.layers[i - 1].run.p
                continue
            packed = one
            p[0] = sized(packed.kind, dtype, 0, 0, packed.input_size, packed.hidden_size)
            p.wx = packed.wx
            p.wx_half = packed.wx_half
            p.wh = packed.wh
            p.start = packed.start
            p.half = packed.half and (i > 1 or first_is_projected)
    return scratch


# ---- the walk -----------------------------------------------------------------------------------

cdef struct Share:
    int rank, size
    bint together            # the threads share the units of each step
    ptrdiff_t b0, b1         # rows
    # this thread's part of the block's arrays (chunk, b1 - b0, ...), or all of them by units
    char *rows
    char *gates
    char *h[2]


cdef Share share_of(const Block *b, int rank, int size) noexcept nogil:
    cdef Share s
    cdef ptrdiff_t before
    s.rank = rank
    s.size = size
    s.together = b.by_units and size > 1
    s.b0 = 0 if b.by_units else part(b.n, rank, size)
    s.b1 = b.n if b.by_units else part(b.n, rank + 1, size)
    before = b.chunk * s.b0 * b.itemsize
    s.rows = b.rows + before * b.stack.layers[0].step.x_row
    s.gates = b.gates + before * b.row
    s.h[0] = b.h[0] + before * b.pitch
    s.h[1] = b.h[1] + before * b.pitch
    return s


cdef bint meet(Block *b, Share *s) noexcept nogil:
    """Wait for the threads that share the units; return whether this one goes on.

    After a wait that was too long the first goes on alone.
    """
    if not s.together or wait_step(&b.barrier, s.size):
        return True
    s.together = False
    return s.rank == 0


cdef bint walk_program(Block *b, int i, ptrdiff_t t0, ptrdiff_t steps, Share *s) noexcept nogil:
    """What walk_layer does, for a layer that is a program."""
    cdef const Layer *layer = &b.stack.layers[i]
    cdef Run *r = layer.run
    cdef const Pass *p = &b.layers[i]
    cdef fr_forward io = layer.step
    cdef ptrdiff_t size = b.itemsize, rows = s.b1 - s.b0, t
    cdef ptrdiff_t x_step = rows * io.x_row
    cdef bint indexed = i == 0 and io.index != NULL
    cdef bint last = i == b.stack.count - 1 and not b.stack.has_head
    cdef const char *x = NULL
    cdef Step one
    one.b0 = s.b0
    one.rows = rows
    one.worker = s.rank
    one.rank = s.rank if s.together else 0
    one.size = s.size if s.together else 1
    if i > 0:
        x = s.h[(i - 1) % 2]
    elif b.embedding != NULL:
        x = s.rows
    elif not indexed:
        x = b.x + (t0 * b.n + s.b0) * io.x_row * size
        x_step = b.n * io.x_row
    if not indexed and p.H:
        project(p, rows_of(x, rows, x_step, io.x_row), rows_of(s.gates, rows, rows * p.row, p.row),
                0, steps * rows, part(p.panels, one.rank, one.size),
                part(p.panels, one.rank + 1, one.size))
        if one.size > 1 and not meet_in_step(r, &one):
            return False
    io.input = 0
    for t in range(steps):
        one.t = layer.turn + t0 + t
        one.tape = s.gates + t * rows * p.row * size
        if indexed:
            io.index = b.numbers + (t0 + t) * b.n + s.b0
        else:
            io.x = x + t * x_step * size
        if last:
            io.y = b.y + ((t0 + t) * b.n + s.b0) * io.y_row * size
        else:
            io.y = s.h[i % 2] + t * rows * io.pitch * size
            io.y_row = io.pitch
        if not advance_run(r, &one, &io):
            return False
        # somebody is going to read what thread 0 has just written, or to write what it has read
        if one.size > 1 and (t == steps - 1 or r.output.space != NEW) and not meet_in_step(r, &one):
            return False
    s.together = one.size > 1
    return True


cdef bint walk_layer(Block *b, int i, ptrdiff_t t0, ptrdiff_t steps, Share *s) noexcept nogil:
    """Steps [t0, t0 + steps) of layer i; its h of these steps goes to s.h[i % 2].

    Return whether this thread goes on.
    """
    cdef fr_forward step = b.stack.layers[i].step
    cdef const Pass *p = &b.layers[i]
    cdef ptrdiff_t size = b.itemsize, rows = s.b1 - s.b0, t
    cdef ptrdiff_t state = step.pitch * size, x_row = step.x_row, x_step = rows * x_row
    cdef char *h_state = <char *> step.h_prev + s.b0 * state
    cdef const char *x = NULL
    cdef bint indexed = i == 0 and step.index != NULL
    cdef bint joined = (b.joined or p.I <= JOINED_INPUTS or p.I * p.H <= JOINED_WEIGHTS)
    cdef bint last = i == b.stack.count - 1 and not b.stack.has_head
    step.rows = rows
    if s.together:
        step.panel0 = part(step.panel1, s.rank, s.size)
        step.panel1 = part(step.panel1, s.rank + 1, s.size)
    if i > 0:
        x = s.h[(i - 1) % 2]
    elif b.embedding != NULL:
        x = s.rows
    elif not indexed:
        x = b.x + (t0 * b.n + s.b0) * x_row * size
        x_step = b.n * x_row
    if x != NULL and not joined:
        project(p, rows_of(x, rows, x_step, x_row), rows_of(s.gates, rows, rows * p.row, p.row),
                0, steps * rows, step.panel0, step.panel1)
        step.input = 0
        step.start_row = p.row
    if step.c != NULL:
        step.c = <char *> step.c + s.b0 * state
        step.c_prev = step.c
    step.h_prev = h_state
    if p.wh_row != NULL and b.n == 1 and not s.together:
        step.rows = steps
        step.wh = p.wh_row
        step.x = x
        if indexed:
            step.index = b.numbers + t0
        elif not joined:
            step.start = s.gates
        step.h = s.h[i % 2]
        if last:
            step.y = b.y + t0 * step.y_row * size
        p.cell.walk(&step)
        memcpy(h_state, step.h + (steps - 1) * state, state)
        return True
    for t in range(steps):
        if indexed:
            step.index = b.numbers + (t0 + t) * b.n + s.b0
        elif joined:
            step.x = x + t * x_step * size
        else:
            step.start = s.gates + t * rows * p.row * size
        step.h = s.h[i % 2] + t * rows * state
        if last:
            step.y = b.y + ((t0 + t) * b.n + s.b0) * step.y_row * size
        step.down = t & 1 and rows < MANY_ROWS
        b.stack.layers[i].forward(&step)
        step.h_prev = step.h
        if not meet(b, s):
            return False
        if not s.together:
            step.panel0 = 0
            step.panel1 = b.stack.layers[i].step.panel1
    if s.rank == 0 or not b.by_units:
        memcpy(h_state, step.h_prev, rows * state)
    return True


cdef void look_up(const Block *b, ptrdiff_t t0, ptrdiff_t steps, const Share *s) noexcept nogil:
    """The rows of the embedding that these steps take."""
    cdef ptrdiff_t size = b.stack.layers[0].step.x_row * b.itemsize, t, row
    cdef char *target = s.rows
    for t in range(t0, t0 + steps):
        for row in range(s.b0, s.b1):
            memcpy(target, b.embedding + b.numbers[t * b.n + row] * size, size)
            target += size


cdef void walk_head(const Block *b, ptrdiff_t t0, ptrdiff_t steps, const Share *s) noexcept nogil:
    cdef fr_product head = b.stack.head
    cdef ptrdiff_t rows = s.b1 - s.b0, pitch = head.a.inner, N = head.c.inner
    head.a = rows_of(s.h[(b.stack.count - 1) % 2], rows, rows * pitch, pitch)
    head.c = rows_of(b.y + (t0 * b.n + s.b0) * N * b.itemsize, rows, b.n * N, N)
    head.row1 = steps * rows
    if s.together:
        head.panel0 = part(head.panel1, s.rank, s.size)
        head.panel1 = part(head.panel1, s.rank + 1, s.size)
    b.stack.product(&head)


cdef void walk_block(void *arg, int rank, int size) noexcept nogil:
    """All steps of a Block; h of its layers' h_prev and c are replaced by those after the last."""
    cdef Block *b = <Block *> arg
    cdef unsigned state = flush_denormals()
    cdef ptrdiff_t t0 = 0, steps
    cdef Share s = share_of(b, rank, size)
    cdef bint goes_on
    cdef int i
    while t0 < b.T and s.b0 < s.b1:
        steps = min(b.chunk, b.T - t0)
        if b.embedding != NULL:
            if rank == 0 or not b.by_units:
                look_up(b, t0, steps, &s)
            if not meet(b, &s):
                break
        for i in range(b.stack.count):
            if b.stack.layers[i].run != NULL:
                goes_on = walk_program(b, i, t0, steps, &s)
            else:
                goes_on = walk_layer(b, i, t0, steps, &s)
            if not goes_on:
                restore(state)
                return
        if b.stack.has_head:
            walk_head(b, t0, steps, &s)
        if not meet(b, &s):  # nobody overwrites what another thread still reads
            break
        t0 += steps
    restore(state)
