"""Layers of a stream that are programs, and what both kinds of layers tell a stream of themselves.

All that a step of a program needs lies in memory of the stream: the rows in which x is projected,
scratch, and of each state two rows in turn, for all rows and for those that a call names.

Letters: L layers, B batch, I input, n rows of a call that names some, V symbols.
"""

import reprlib

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport fr_forward, fr_place, fr_table
from fastrnn._kernels.check cimport Carver, numbers, parts_of_state
from fastrnn._kernels.machine cimport CODE, NEW, Machine, Run, state_at
from fastrnn._kernels.packed cimport Packed
from fastrnn._kernels.packed_program cimport PackedProgram, sized_run
from fastrnn._kernels.project cimport project
from fastrnn._kernels.runtime cimport (
    Buffer,
    flush_denormals,
    keep_denormals,
    pitch_of,
    restore,
    table_for,
)
from fastrnn._kernels.stack cimport Layer
from fastrnn._kernels.walk cimport rows_of

cnp.import_array()


# ---- layers of both kinds -----------------------------------------------------------------------

cdef ptrdiff_t inputs_of(object layer) except -1:
    if isinstance(layer, Packed):
        return (<Packed> layer).input_size
    return (<PackedProgram?> layer).machine.input_size


cdef ptrdiff_t outputs_of(object layer) except -1:
    if isinstance(layer, Packed):
        return (<Packed> layer).hidden_size
    return (<PackedProgram?> layer).machine.output_width


cdef tuple states_of(object layer):
    """Return the (name, width) of each state, in the order in which a caller gives them."""
    cdef Packed packed
    if isinstance(layer, Packed):
        packed = layer
        names = ("h", "c") if packed.cell.has_c else ("h",)
        return tuple([(name, packed.hidden_size) for name in names])
    return (<PackedProgram?> layer).machine.program.states


cdef object alike(object layer):
    """Return what all layers of a group have in common."""
    if isinstance(layer, Packed):
        return (<Packed> layer).kind, (<Packed> layer).hidden_size
    return states_of(layer), outputs_of(layer)


cdef tuple checked_groups(str name, object groups, object dtype):
    """Return the groups as tuples of Packed or PackedProgram that fit each other."""
    cdef const fr_table *table = table_for(dtype)
    cdef bint fits
    cdef Py_ssize_t i
    if not isinstance(groups, (list, tuple)) or not groups:
        raise ValueError(f"{name}: groups is {reprlib.repr(groups)}, "
                         "expected a list of lists of Packed")
    checked = [None] * len(groups)
    before = None
    for i in range(len(groups)):
        group = groups[i]
        if not isinstance(group, (list, tuple)) or not group:
            raise ValueError(f"{name}: groups[{i}] is {reprlib.repr(group)}, "
                             "expected a list of Packed")
        for one in group:
            if isinstance(one, Packed):
                fits = (<Packed> one).table == table
            elif isinstance(one, PackedProgram):
                fits = (<PackedProgram> one).machine.table == table
            else:
                raise TypeError(f"{name}: groups[{i}] holds a {type(one).__name__}, "
                                "expected Packed or PackedProgram")
            if not fits:
                raise ValueError(f"{name}: groups[{i}] was packed for another dtype or "
                                 f"instruction set, expected {dtype} and the one in use")
            if alike(one) != alike(group[0]):
                raise ValueError(f"{name}: groups[{i}] has cells of different kinds or sizes, "
                                 "expected equal ones")
            if before is not None and inputs_of(one) != outputs_of(before):
                raise ValueError(f"{name}: groups[{i}] has a layer of input size "
                                 f"{inputs_of(one)} behind one of hidden size "
                                 f"{outputs_of(before)}, expected the same")
            before = one
        checked[i] = tuple(group)
    return tuple(checked)


cdef tuple checked_parts(str name, object state, object layer, object dtype, ptrdiff_t layers,
                         ptrdiff_t n):
    """Return the states (L, n, width) of a group, one for each that a layer has; None: zeros."""
    if isinstance(layer, Packed):
        return parts_of_state(name, state, (<Packed> layer).cell.has_c, dtype,
                              (layers, n, (<Packed> layer).hidden_size))
    states = states_of(layer)
    if state is None:
        return (None,) * len(states)
    if len(states) == 1:
        if isinstance(state, tuple):
            raise TypeError(f"{name} is a tuple of {len(state)}, expected one array")
        return (numbers(name, state, dtype, (layers, n, states[0][1])),)
    if not isinstance(state, (tuple, list)) or len(state) != len(states):
        try:
            came = f"{type(state).__name__} of {len(state)}"
        except TypeError:  # it has no length
            came = reprlib.repr(state)
        kind = "pair" if len(states) == 2 else "tuple"
        names = ", ".join([state_name for state_name, _ in states])
        raise TypeError(f"{name} is {came}, expected a {kind} ({names})")
    return tuple([
        None if part is None else numbers(f"{name}[{i}]", part, dtype, (layers, n, width))
        for i, (part, (_, width)) in enumerate(zip(state, states))])


# ---- memory of a program ------------------------------------------------------------------------

cdef Buffer place_program(Layer *layer, PackedProgram packed, ptrdiff_t B):
    """Set a layer that is zeros for a program and B rows; return its memory, which is zeros too."""
    cdef Machine m = packed.machine
    cdef Run r = sized_run(m, 1, B, False)
    cdef fr_forward *step = &layer.step
    cdef Run *run
    cdef Buffer buffer
    cdef ptrdiff_t state, size = m.table.itemsize, pitch = pitch_of(m.output_width, size)
    cdef ptrdiff_t run_at, own_at, lent_at, masks_at, mask_rows_at, mask_steps_at
    cdef ptrdiff_t rows_at, scratch_at, out_at, offset
    cdef int s, i
    rows = <object> B
    carver = Carver(1)
    run_at = carver.add(sizeof(Run))
    own_at = carver.add(m.state_count * <object> sizeof(char *))
    lent_at = carver.add(m.state_count * <object> sizeof(char *))
    masks_at = carver.add(m.mask_count * <object> sizeof(char *))
    mask_rows_at = carver.add(m.mask_count * <object> sizeof(ptrdiff_t))
    mask_steps_at = carver.add(m.mask_count * <object> sizeof(bint))
    rows_at = carver.add(rows * r.p.row * size)
    scratch_at = carver.add(rows * r.phases.scratch * size)
    out_at = carver.add(0 if r.output.space == NEW else rows * pitch * size)
    state_places = [(carver.add(2 * rows * m.states[s].pitch * size),
                     carver.add(2 * rows * m.states[s].pitch * size))
                    for s in range(m.state_count)]
    means = [np.full(pitch_of(mask.width, size), mask.mean, m.dtype) for mask in m.program.masks]
    mask_places = [carver.add(mean.nbytes) for mean in means]
    buffer = Buffer(carver.bytes)
    memset(buffer.data, 0, buffer.nbytes)
    layer.run = run = <Run *> (buffer.data + run_at)
    run[0] = r
    run.states = <char **> (buffer.data + own_at)
    layer.lent = <char **> (buffer.data + lent_at)
    for s in range(m.state_count):
        offset, state = state_places[s]
        run.states[s] = buffer.data + offset
        layer.lent[s] = buffer.data + state
    run.masks = <char **> (buffer.data + masks_at)
    run.mask_row = <ptrdiff_t *> (buffer.data + mask_rows_at)
    run.mask_steps = <bint *> (buffer.data + mask_steps_at)
    for i in range(m.mask_count):
        offset = mask_places[i]
        run.masks[i] = buffer.data + offset
        memcpy(run.masks[i], cnp.PyArray_DATA(means[i]), cnp.PyArray_NBYTES(means[i]))
    run.p.gates = buffer.data + rows_at
    run.scratch = buffer.data + scratch_at
    run.packs = packed.packs
    run.vectors = packed.vectors
    run.starts = packed.starts
    run.p.packed = True
    run.p.wx = packed.packs + m.x_packed * size
    run.p.start = packed.starts
    if r.output.space != NEW:
        layer.out = buffer.data + out_at
    step.rows = B
    step.hidden = m.output_width
    step.pitch = pitch
    step.input = m.input_size
    step.y = layer.out
    step.y_row = pitch
    return buffer


cdef ptrdiff_t work_of(const Layer *layer) noexcept:
    """Bytes of weights that are as much work as the element-wise phases of a row."""
    cdef const Run *r = layer.run
    cdef ptrdiff_t values = 0
    cdef int i
    for i in range(r.phases.count):
        if r.phases.phase[i].kind == CODE:
            values += r.phases.phase[i].units * r.phases.phase[i].count
    return values * r.table.itemsize


cdef Buffer place_workers(Layer *layers, int count, int threads):
    """Give each of the threads registers and places, for whichever program it comes to."""
    cdef ptrdiff_t registers = 0, registers_at, places_at
    cdef int places = 0, i
    cdef Run *r
    cdef Buffer buffer
    for i in range(count):
        r = layers[i].run
        if r != NULL:
            registers = max(registers, r.registers_size)
            places = max(places, r.phases.places)
    carver = Carver(1)
    registers_at = carver.add(threads * <object> registers)
    places_at = carver.add(threads * places * <object> sizeof(fr_place))
    buffer = Buffer(carver.bytes)
    for i in range(count):
        r = layers[i].run
        if r != NULL:
            r.registers = buffer.data + registers_at
            r.registers_size = registers
            r.places = <fr_place *> (buffer.data + places_at)
            r.phases.places = places
    return buffer


# ---- states -------------------------------------------------------------------------------------

cdef StateRows state_rows(const Layer *layer, int s) noexcept nogil:
    """Where the rows of a layer's state lie at present."""
    cdef StateRows rows
    if layer.run != NULL:
        rows.base = state_at(layer.run, s, layer.turn, 0)
        rows.width = layer.run.state[s].width
        rows.pitch = layer.run.state[s].pitch
        return rows
    rows.base = <char *> (layer.step.c if s else <void *> layer.step.h_prev)
    rows.width = layer.step.hidden
    rows.pitch = layer.step.pitch
    return rows


cdef void place_output(Layer *layer) noexcept nogil:
    """Set h, and y if that is not the caller's, to where the next step puts the output."""
    if layer.out != NULL:
        layer.step.h = layer.out
    else:
        layer.step.h = state_at(layer.run, layer.run.output.number, layer.turn + 1, 0)


cdef void copy_states(const Layer *layer, char **all_states, ptrdiff_t turn_all, char **named,
                      ptrdiff_t turn, const int32_t *chosen, ptrdiff_t n, bint back) noexcept nogil:
    cdef const Run *r = layer.run
    cdef ptrdiff_t size, b
    cdef char *one
    cdef char *other
    cdef int s
    for s in range(r.state_count):
        size = r.state[s].pitch * r.table.itemsize
        for b in range(n):
            one = all_states[s] + (turn_all * r.p.times.R + chosen[b]) * size
            other = named[s] + (turn * r.p.times.R + b) * size
            if back:
                memcpy(one, other, size)
            else:
                memcpy(other, one, size)


cdef void lend_program(Layer *layer, const int32_t *chosen, ptrdiff_t n) noexcept nogil:
    """Copy the states of the n chosen rows and let the layer run on these copies."""
    cdef char **states = layer.run.states
    copy_states(layer, states, layer.turn, layer.lent, 0, chosen, n, False)
    layer.run.states = layer.lent
    layer.lent = states
    layer.turn_all = layer.turn
    layer.turn = 0
    layer.step.rows = n


cdef void take_back_program(Layer *layer, const int32_t *chosen, ptrdiff_t n) noexcept nogil:
    """Undo `lend_program` and write the states back."""
    cdef char **states = layer.lent
    copy_states(layer, states, layer.turn_all, layer.run.states, layer.turn, chosen, n, True)
    layer.lent = layer.run.states
    layer.run.states = states
    layer.turn = layer.turn_all
    layer.step.rows = layer.run.p.times.R


# ---- symbols ------------------------------------------------------------------------------------

cdef Buffer program_symbols(PackedProgram packed, object embedding):
    """Return a table (V, lean_row) of what a step reads of each row of an embedding (V, I).

    That is its product with the weights, and the row itself if phases read it. None: one-hot rows.
    """
    cdef Machine m = packed.machine
    cdef Run r = sized_run(m, 1, 1, False)
    cdef ptrdiff_t V, columns = m.x_columns, row = m.lean_row, size = m.table.itemsize
    cdef cnp.npy_intp[2] shape
    cdef unsigned state
    cdef Buffer buffer
    if embedding is None and m.x_offset >= 0:
        embedding = np.eye(m.input_size, dtype=m.dtype)
    V = m.input_size if embedding is None else len(embedding)
    buffer = Buffer(<object> V * row * size)
    memset(buffer.data, 0, buffer.nbytes)
    shape[0] = V
    shape[1] = row
    table = cnp.PyArray_SimpleNewFromData(2, shape, m.dtype.num, buffer.data)
    if embedding is None:
        table[:, :columns] = packed.panel_rows(m.x_packed, columns // m.table.lanes,
                                               m.input_size).T
        state = keep_denormals()
        m.table.add_rows(buffer.data, row, packed.starts, 0, NULL, V, columns)
        restore(state)
        return buffer
    r.p.wx = packed.packs + m.x_packed * size
    r.p.start = packed.starts
    if columns:
        state = flush_denormals()
        project(&r.p, rows_of(cnp.PyArray_DATA(embedding), V, 0, m.input_size),
                rows_of(buffer.data, V, 0, row), 0, V, 0, r.p.panels)
        restore(state)
    if m.x_offset >= 0:
        table[:, m.x_offset: m.x_offset + m.input_size] = embedding
    return buffer
