"""One step of a stack of layers and its head: what a Stream runs, with everything in its place."""

from libc.string cimport memcpy

from fastrnn._kernels.c cimport fr_forward, fr_place, fr_product
from fastrnn._kernels.machine cimport Run, Step, meet, place, run_phases
from fastrnn._kernels.project cimport project
from fastrnn._kernels.runtime cimport flush_denormals, restore, wait
from fastrnn._kernels.walk cimport Pass, at, part, rows_of


cdef bint advance_run(Run *r, Step *s, const fr_forward *io) noexcept nogil:
    """One step of a stream; False: leave.

    Of `io` it reads x, unless `input` is 0: then it is projected already. Or it reads `index`,
    which names rows of `start`: rows of the tape with x projected, and x behind it if phases read
    it. The output goes to y, unless that is NULL. The pointers are those of the first of the rows.
    """
    cdef const Pass *p = &r.p
    cdef ptrdiff_t size = r.table.itemsize, bytes = p.H * size, b
    cdef bint projects = io.index == NULL and io.input > 0 and p.H > 0
    cdef fr_place source
    if projects:
        project(p, rows_of(io.x, s.rows, 0, io.x_row), rows_of(s.tape, s.rows, 0, p.row), 0,
                s.rows, part(p.panels, s.rank, s.size), part(p.panels, s.rank + 1, s.size))
    if s.rank == 0 and io.index != NULL:
        if r.x_offset >= 0:
            bytes = (r.x_offset + p.I) * size
        for b in range(s.rows):
            memcpy(at(s.tape, b * p.row, p), at(io.start, io.index[b] * io.start_row, p), bytes)
    elif s.rank == 0 and r.x_offset >= 0:
        for b in range(s.rows):
            memcpy(at(s.tape, b * p.row + r.x_offset, p), at(io.x, b * io.x_row, p), p.I * size)
    if s.size > 1 and (projects or io.index != NULL or r.x_offset >= 0) and not meet(r, s):
        return False
    if not run_phases(r, s):
        return False
    if s.rank == 0 and io.y != NULL:
        source = place(r, &r.output, s)
        for b in range(s.rows):
            memcpy(at(io.y, b * io.y_row, p), at(source.base, b * source.row, p),
                   r.output_width * size)
    return True


cdef bint walk_program(Layer *layer, int rank, int *size) noexcept nogil:
    """One step of a layer that is a program; False: this thread leaves, the first goes on alone."""
    cdef Step s
    s.t = layer.turn
    s.b0 = 0
    s.rows = layer.step.rows
    s.tape = layer.run.p.gates
    s.worker = s.rank = rank
    s.size = size[0]
    if not advance_run(layer.run, &s, &layer.step):
        return False
    # somebody is going to read the rows that thread 0 has just written
    if s.size > 1 and layer.step.y != NULL and not meet(layer.run, &s):
        return False
    size[0] = s.size
    return True


cdef void walk_stack(void *arg, int rank, int size) noexcept nogil:
    """One step of all layers and the head, units and outputs split between threads."""
    cdef Stack *stack = <Stack *> arg
    cdef fr_forward step
    cdef fr_product head
    cdef unsigned state = flush_denormals()
    cdef int i
    for i in range(stack.count):
        if stack.layers[i].run != NULL:
            if not walk_program(&stack.layers[i], rank, &size):
                restore(state)
                return
            continue
        if size == 1:
            stack.layers[i].forward(&stack.layers[i].step)
            continue
        step = stack.layers[i].step
        step.panel0 = part(step.panel1, rank, size)
        step.panel1 = part(step.panel1, rank + 1, size)
        stack.layers[i].forward(&step)
        wait(&stack.barrier, size)
    if stack.has_head:
        head = stack.head
        head.a.base = stack.layers[stack.count - 1].step.h
        head.panel0 = part(head.panel1, rank, size)
        head.panel1 = part(head.panel1, rank + 1, size)
        stack.product(&head)
    restore(state)
