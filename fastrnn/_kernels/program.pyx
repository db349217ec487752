"""Runs one layer of a cell that is a program over a sequence, forward and backward.

What sequence.pyx is for the hand-written cells: checks, allocates, and sends the walk (machine.pyx)
through time. Nothing below checks again.

Letters: T steps, B batch, R rows of the walk, N rows of all steps together, I input, O features of
one direction's output, D directions, V rows of an embedding, U rows of it in use.
"""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport FR_REGISTER_BYTES, FR_RNN_TANH, fr_barrier, fr_place, fr_rows
from fastrnn._kernels.check cimport (
    Carver,
    caller_rows,
    check,
    check_flat,
    named_rows,
    pointer,
    put_rows,
    take_rows,
)
from fastrnn._kernels.layout cimport make_machine
from fastrnn._kernels.machine cimport (
    Machine,
    Run,
    RunJob,
    Spot,
    pack_run,
    plan_runs,
    run_backward,
    run_forward,
    state_at,
)
from fastrnn._kernels.runtime cimport Buffer, Workspace, pitch_of, run, table_for
from fastrnn._kernels.sequence cimport check_state, chunk_of, lay_out_taken, use_index
from fastrnn._kernels.state cimport add_states, load_state
from fastrnn._kernels.tape cimport copy_rows, give_back, input_of, places_of
from fastrnn._kernels.timeline cimport Timeline, even_times, length_of
from fastrnn._kernels.walk cimport Pass, at, ceil_div, rows_of

cnp.import_array()

INT32 = np.dtype(np.int32)


class Compiled:
    """A program and its machines, one for each dtype and instruction set that asks.

    Parameters
    ----------
    program : Program
        See fastrnn/cells/schedule.py.
    recording : callable
        Returns the program whose backward also keeps the gradients of the states.
    """

    def __init__(self, program, recording):
        self.program = program
        self.recording = recording
        self.made = {}

    def machine(self, dtype, bint records=False):
        """Return the machine for a dtype and the instruction set in use."""
        key = dtype, <size_t> table_for(dtype), records
        found = self.made.get(key)
        if found is None:
            program = self.recording() if records else self.program
            found = self.made.setdefault(key, make_machine(program, dtype))
        return found


# ---- what forward and backward share ------------------------------------------------------------

cdef void use_machine(Run *r, Machine m, int phases) noexcept:
    """Set what a run knows of its machine; phases 0: forward, 1: without a tape, 2: backward."""
    r.table = m.table
    r.state_count = m.state_count
    r.weight_count = m.weight_count
    r.vector_count = m.vector_count
    r.packing_count = m.packing_count
    r.row_count = m.row_count
    r.bias_count = m.bias_count
    r.gradient_count = m.gradient_count
    r.vector_gradient_count = m.vector_gradient_count
    r.state = m.states
    r.weight = m.weights
    r.packing = m.packings
    r.row = m.rows
    r.bias = m.biases
    r.gradient = m.gradients
    r.vector_gradient = m.vector_gradients
    r.phases = m.backward if phases == 2 else m.lean if phases else m.forward
    r.lean = phases == 1
    r.x_offset = m.x_offset
    r.dx_offset = m.dx_offset
    r.output_state = m.output_state
    r.output_width = m.output_width
    r.output = m.output_lean if phases == 1 else m.output
    r.dy = m.dy
    r.registers_size = ceil_div(r.phases.registers * FR_REGISTER_BYTES, 64) * 64
    r.record_count = m.record_count
    r.record = m.records


cdef Run sized_run(Machine m, ptrdiff_t T, ptrdiff_t B, bint keep) noexcept:
    """A run of even rows; its pass looks like a plain cell of H = x_columns units."""
    cdef Run r
    memset(&r, 0, sizeof(r))
    use_machine(&r, m, 0 if keep else 1)
    r.p.table = m.table
    r.p.cell = &m.table.cell[<int> FR_RNN_TANH]
    r.p.times = even_times(T, B)
    r.p.I = m.input_size
    r.p.H = m.x_columns
    r.p.pitch = r.p.H
    r.p.row = m.row if keep else m.lean_row
    r.p.panels = ceil_div(r.p.H, m.table.lanes * m.table.plain_vectors)
    r.p.training = keep
    return r


cdef Pass like_state(const Run *r, int s) noexcept:
    """A pass with the sizes of a state, for state.pyx."""
    cdef Pass p = r.p
    p.H = r.state[s].width
    p.pitch = r.state[s].pitch
    return p


cdef tuple check_parameters(Machine m, object parameters, bint gradient):
    """Refuse arrays that are not those of the machine; None: a gradient that is not wanted."""
    cdef int i
    if not isinstance(parameters, tuple) or len(parameters) != len(m.shapes):
        raise ValueError(f"weights: expected a tuple of {len(m.shapes)} arrays")
    for i in range(len(m.shapes)):
        if parameters[i] is not None or not gradient:
            check_flat(f"weights[{i}]", parameters[i], m.dtype, m.shapes[i], gradient)
    return parameters


cdef void set_pointers(void **pointers, tuple arrays) noexcept:
    cdef int i
    for i in range(len(arrays)):
        pointers[i] = pointer(arrays[i])


cdef class PackedProgram:
    def __cinit__(self, kind, dtype, tuple parameters):
        cdef Run r
        cdef Machine m = kind.machine(np.dtype(dtype))
        check_parameters(m, parameters, False)
        self.machine = m
        self.parameters = parameters
        carver = Carver(m.table.itemsize)
        packs = carver.add(m.packs_size)
        vectors = carver.add(m.vectors_size)
        starts = carver.add(m.biases_size)
        pointers = carver.add(ceil_div(len(parameters) * sizeof(void *), m.table.itemsize))
        self.buffer = Buffer(carver.bytes)
        memset(self.buffer.data, 0, self.buffer.nbytes)
        self.packs = self.buffer.data + <ptrdiff_t> packs
        self.vectors = self.buffer.data + <ptrdiff_t> vectors
        self.starts = self.buffer.data + <ptrdiff_t> starts
        r = sized_run(m, 0, 0, False)
        r.packs = self.packs
        r.vectors = self.vectors
        r.starts = self.starts
        r.parameters = <void **> (self.buffer.data + <ptrdiff_t> pointers)
        set_pointers(r.parameters, parameters)
        with nogil:
            pack_run(&r, 0, 1)

    def __reduce__(self):
        raise TypeError("a PackedProgram cannot be pickled")

    @property
    def nbytes(self):
        return self.buffer.nbytes


cdef struct Places:
    # offsets in bytes, of one direction
    ptrdiff_t tape, symbols, packs, vectors, starts, scratch, registers, places, parameters
    ptrdiff_t states, masks, mask_row, mask_steps


cdef ptrdiff_t add_pointers(Carver carver, int count, size_t size) except -1:
    return carver.add(ceil_div(count * size, <ptrdiff_t> carver.itemsize))


# ---- masks --------------------------------------------------------------------------------------

cdef object padded_mask(Machine m, object mask, object given, Timeline time, ptrdiff_t B,
                        ptrdiff_t N):
    """Return a mask's rows, padded, in the order of the walk; without `given` one row of its mean.
    """
    cdef ptrdiff_t pitch = pitch_of(mask.width, m.table.itemsize)
    if given is None:
        rows = np.full((1, pitch), mask.mean, m.dtype)
        return rows
    expected = (N if mask.each_step else B, mask.width)
    check_flat("mask", given, m.dtype, expected)
    if time is not None and not mask.each_step:
        given = given[time.place % time.B]
    rows = np.zeros((len(given), pitch), m.dtype)
    rows[:, : mask.width] = given
    return rows


# ---- forward ------------------------------------------------------------------------------------

def forward(kind, x, index, tuple weights, tuple reverse, initial, y, tuple final, bint keep,
            Workspace workspace, Timeline time=None, str source="time", str target="time"):
    """Run one layer over a sequence.

    Parameters
    ----------
    kind : Compiled
    x : (T, B, I), contiguous rows; with `index`, the embedding (V, I), or None: one-hot rows
    index : None, or int32 (T, B): rows of x, or where the 1 is among I
    weights : per direction a pair: the parameters, in the order of Program.weights and
        Program.vector_names, or a PackedProgram; and a tuple of masks, (B, width) for one that is
        drawn once a sequence, (N, width) for each step in the walk's order, or None: their means
    reverse : per direction, whether it walks from T-1 to 0
    initial : for each state (D, B, width) or None: zero; or None
    y : out (T, B, D*O), contiguous rows
    final : for each state out (D, B, width)
    keep : whether to keep a tape
    workspace, time, source, target : see sequence.forward

    Returns
    -------
    ProgramTape or None
    """
    cdef int D = len(weights), d, i, s, threads
    cdef bint one_hot = x is None, dense = index is None, rows_of_eye
    cdef ptrdiff_t taken = 0, B, N, state
    cdef Machine m
    cdef ProgramTape tape = ProgramTape()
    cdef Run *r
    cdef Run like
    cdef Places[2] at_
    cdef Buffer buffer, temporary
    cdef RunJob job
    cdef PackedProgram packed
    cdef Pass p
    dtype = y.dtype
    m = kind.machine(dtype)
    if D not in (1, 2) or len(reverse) != D:
        raise ValueError(f"weights: {D} directions, expected 1 or 2")
    I, O = m.input_size, m.output_width
    rows_of_eye = one_hot and m.x_offset >= 0  # x itself is wanted
    shape = x.shape[: x.ndim - 1] if dense else index.shape
    T, B = shape if time is None else (time.T, time.B)
    rows = shape if time is None else (time.size(source),)
    like = sized_run(m, T, B, keep)
    if time is not None:
        like.p.times = time.times
    N = like.p.times.N
    if dense:
        check("x", x, dtype, (*rows, I))
    else:
        check_flat("x", index, INT32, rows)
        if not one_hot:
            check("embedding", x, dtype, (x.shape[0], I))
            tape.embedding_rows = x.shape[0]
        if time is not None:  # padding names nothing
            places, source = time.rows(source), "walk"
            index = index if places is None else take_rows(index, places)
        index, tape.used_rows = named_rows(index, I if one_hot else tape.embedding_rows)
        if rows_of_eye:
            x, one_hot = np.zeros((len(tape.used_rows), I), dtype), False
            x[np.arange(len(x)), tape.used_rows] = 1
        elif not one_hot:
            x = take_rows(x, tape.used_rows)
    check("y", y, dtype, (T, B, D * O) if time is None else (time.size(target), D * O), True)
    if initial is not None and len(initial) != m.state_count or len(final) != m.state_count:
        raise ValueError(f"states: expected {m.state_count}")
    for s in range(m.state_count):
        check_flat("final", final[s], dtype, (D, B, m.states[s].width), True)
        if initial is not None:
            check_state("initial", initial[s], dtype, (D, B, m.states[s].width))
    for d in range(D):
        if isinstance(weights[d][0], PackedProgram):
            packed = weights[d][0]
            if packed.machine is not m:
                raise ValueError("weights: packed for another cell, dtype, size or instruction set")
        else:
            check_parameters(m, weights[d][0], False)

    like.p.chunk = chunk_of(&like.p)
    like.p.V = 0 if dense else len(tape.used_rows)
    like.p.columns = I
    memset(&job, 0, sizeof(job))
    job.runs = &like
    job.job.count = D
    threads = plan_runs(&job, m.operations, m.weight_bytes)
    carver = Carver(m.table.itemsize)      # lives as long as the tape
    brief = Carver(m.table.itemsize)       # this call alone
    if time is not None and dense:
        taken = lay_out_taken(brief, &like.p, threads)
    tape_rows = N if keep else min(<object> T, like.p.chunk) * like.p.times.R
    for d in range(D):
        at_[d].tape = carver.add(tape_rows * <object> like.p.row)
        at_[d].symbols = carver.add(<object> like.p.V * like.p.row)
        at_[d].parameters = add_pointers(carver, len(m.shapes), sizeof(void *))
        at_[d].masks = add_pointers(carver, m.mask_count, sizeof(char *))
        at_[d].mask_row = add_pointers(carver, m.mask_count, sizeof(ptrdiff_t))
        at_[d].mask_steps = add_pointers(carver, m.mask_count, sizeof(bint))
        at_[d].states = add_pointers(carver, m.state_count, sizeof(char *))
        at_[d].vectors = carver.add(m.vectors_size)
        at_[d].scratch = brief.add(like.p.times.R * <object> like.phases.scratch)
        at_[d].packs = brief.add(m.packs_size)
        at_[d].starts = brief.add(m.biases_size)
    registers = brief.add(threads * like.registers_size // m.table.itemsize)
    found = add_pointers(brief, threads * like.phases.places, sizeof(fr_place))
    state_places = [[carver.add((like.p.times.R + N if keep else 3 * like.p.times.R)
                                * <object> m.states[s].pitch) for s in range(m.state_count)]
                    for d in range(D)]
    buffer = workspace.take(carver.bytes)
    temporary = workspace.take(brief.bytes)

    alive, parameters = [None] * D, [None] * D
    for d in range(D):
        r = &tape.runs[d]
        r[0] = like
        r.p.gates = buffer.data + at_[d].tape
        r.p.symbols = buffer.data + at_[d].symbols
        r.parameters = <void **> (buffer.data + at_[d].parameters)
        r.scratch = temporary.data + at_[d].scratch
        r.registers = temporary.data + <ptrdiff_t> registers
        r.places = <fr_place *> (temporary.data + <ptrdiff_t> found)
        r.states = <char **> (buffer.data + at_[d].states)
        parameters[d], masks = weights[d]
        if isinstance(parameters[d], PackedProgram):
            packed = parameters[d]
            r.p.packed = True
            r.packs = packed.packs
            r.vectors = packed.vectors
            r.starts = packed.starts
        else:
            r.packs = temporary.data + at_[d].packs
            r.vectors = buffer.data + at_[d].vectors
            r.starts = temporary.data + at_[d].starts
            memset(r.starts, 0, m.biases_size * m.table.itemsize)
            memset(r.vectors, 0, m.vectors_size * m.table.itemsize)
        arrays = (<PackedProgram> parameters[d]).parameters if r.p.packed else parameters[d]
        set_pointers(r.parameters, arrays)
        r.p.wx = r.packs + m.x_packed * m.table.itemsize
        r.p.start = r.starts
        r.masks = <char **> (buffer.data + at_[d].masks)
        r.mask_row = <ptrdiff_t *> (buffer.data + at_[d].mask_row)
        r.mask_steps = <bint *> (buffer.data + at_[d].mask_steps)
        held = []
        for i in range(m.mask_count):
            mask = m.program.masks[i]
            given = None if masks is None else masks[i]
            drawn = padded_mask(m, mask, given, time, B, N)
            held.append(drawn)
            r.masks[i] = <char *> pointer(drawn)
            r.mask_row[i] = 0 if given is None else drawn.shape[1]
            r.mask_steps[i] = given is not None and mask.each_step
        if dense:
            r.p.x = caller_rows(x, 0, reverse[d], time, source)
            r.p.taken = NULL if time is None else temporary.data + taken
            alive[d] = held, arrays
        else:
            alive[d] = held, arrays, use_index(&r.p, index, reverse[d], time)
            if one_hot:
                project_one_hot(r, m, arrays, tape.used_rows)
            else:
                r.p.x = rows_of(pointer(x), r.p.V, 0, x.strides[0] // x.itemsize)
        r.p.y = caller_rows(y, d * O, reverse[d], time, target)
        begins = None if time is None else time.begins(reverse[d])
        for s in range(m.state_count):
            r.states[s] = buffer.data + <ptrdiff_t> state_places[d][s]
            p = like_state(r, s)
            load_state(r.states[s], None if initial is None else initial[s], d, &p, B, begins)

    job.runs = tape.runs
    if N > 0:
        with nogil:
            run(run_forward, &job, threads)
    for d in range(D):
        r = &tape.runs[d]
        ends = None if time is None else time.ends(reverse[d])
        for s in range(m.state_count):
            store_final(final[s], None if initial is None else initial[s], d, r, s, B, ends)
    if time is not None:
        time.blank(y, target)
    give_back(workspace, temporary)
    if not keep:
        give_back(workspace, buffer)
        return None
    tape.count = D
    tape.machine = m
    tape.workspace = workspace
    tape.kept = (None if rows_of_eye else x, index, (alive, x), kind)
    tape.time = time
    tape.source = source
    tape.target = target
    tape.weights = tuple(parameters)
    tape.reverse = reverse
    tape.dtype = dtype
    tape.shape = (T, B, I, O)
    tape.buffer = buffer
    return tape


cdef object project_one_hot(Run *r, Machine m, tuple arrays, object used):
    """Fill the rows of symbols: the biases and the columns of the weights that are in use."""
    cdef ptrdiff_t U = len(used), lanes = m.table.lanes, at_ = 0, row = r.p.row
    symbols = np.zeros((U, row), m.dtype)
    names = m.program.vector_names
    weights = {w[0]: i for i, w in enumerate(m.program.weights)}
    for group in m.program.groups:
        if group.weight is None:
            continue
        columns = arrays[weights[group.weight]][:, used].T  # (U, blocks * width)
        start = np.zeros(group.blocks * group.width, m.dtype)
        for bias in group.biases:
            start += arrays[m.weight_count + <ptrdiff_t> names.index(bias)]
        for g in range(group.blocks):
            own = slice(g * group.width, (g + 1) * group.width)
            symbols[:, at_: at_ + group.width] = columns[:, own] + start[own]
            at_ += ceil_div(group.width, lanes) * lanes
    memcpy(r.p.symbols, cnp.PyArray_DATA(symbols), U * row * m.table.itemsize)
    r.symbols_ready = True


cdef void store_final(object target, object initial, int d, const Run *r, int s, ptrdiff_t B,
                      object ends) noexcept:
    """Copy the final state of every sequence into row d of a (D, B, width) array."""
    cdef ptrdiff_t row, b, width = r.state[s].width, size = width * r.table.itemsize
    cdef char *data = <char *> pointer(target)
    cdef const char *start = <const char *> pointer(initial)
    cdef const int32_t *taken = <const int32_t *> pointer(ends)
    cdef char *to
    for b in range(B):
        row = taken[b] if taken != NULL else b
        to = at(data, (d * B + b) * width, &r.p)
        if row >= 0:
            memcpy(to, state_at(r, s, length_of(&r.p.times, row), row), size)
        elif start == NULL:
            memset(to, 0, size)
        else:
            memcpy(to, at(start, (d * B + b) * width, &r.p), size)


# ---- backward -----------------------------------------------------------------------------------

cdef object check_back(ProgramTape tape, dy, dfinal, dx, tuple dinitial, tuple grads, tuple record):
    cdef Machine m = tape.machine
    cdef int D = tape.count, s, d
    _, B, I, O = tape.shape
    if dy is not None:
        check("dy", dy, tape.dtype, tape.y_shape)
    if dfinal is not None and len(dfinal) != m.state_count or len(dinitial) != m.state_count:
        raise ValueError(f"states: expected {m.state_count}")
    for s in range(m.state_count):
        shape = (D, B, m.states[s].width)
        check_flat("dinitial", dinitial[s], tape.dtype, shape, True)
        if dfinal is not None:
            check_state("dfinal", dfinal[s], tape.dtype, shape)
    if dx is not None:
        if not tape.x_shape:
            raise ValueError("dx: is an array, expected None: x was one-hot")
        check("dx", dx, tape.dtype, tape.x_shape, True)
    if len(grads) != D:
        raise ValueError(f"grads: {len(grads)} directions, expected {D}")
    for d in range(D):
        check_parameters(m, grads[d], True)
    names = tape.recordable
    for name in record:
        if name not in names:
            raise ValueError(f"record: has {name!r}, expected names out of {names}")


def backward(ProgramTape tape, dy, dfinal, dx, tuple dinitial, tuple grads, tuple record=()):
    """Backpropagate one forward call through time; the tape is used up.

    Parameters
    ----------
    tape : what a forward call with keep=True returned
    dy : like forward's y, contiguous rows, or None: zero
    dfinal : for each state (D, B, width) or None: zero; or None
    dx : out, like forward's x, or None: not wanted, or one-hot
    dinitial : for each state out (D, B, width)
    grads : per direction the parameters' gradients, which accumulate; None: not wanted
    record : names to return besides: "d" + a state's name, a state's name, and "x"

    Returns
    -------
    dict of the arrays named in `record`: see sequence.backward. A state is the one before the step.
    """
    cdef int D = tape.count, d, s, threads
    cdef Machine m = tape.machine
    cdef Run *r
    cdef RunJob job
    cdef Buffer buffer, memory
    cdef Pass p
    if tape.used or tape.buffer is None:
        raise RuntimeError("backward: this tape was used already, a tape serves one backward")
    check_back(tape, dy, dfinal, dx, dinitial, grads, record)
    T, B, I, O = tape.shape
    derivatives = [name for name in record if name != "x" and name not in tape.state_names]
    if derivatives:
        m = tape.kept[3].machine(tape.dtype, True)
    out = {}
    for s, (name, width) in enumerate(m.program.states):
        if f"d{name}" in derivatives:
            out[f"d{name}"] = np.zeros((T * B, D * width), tape.dtype)
    if "x" in record:
        out["x"] = input_of(tape.kept[0], tape.kept[1], tape.used_rows, tape.time, tape.source,
                            tape.shape)

    memset(&job, 0, sizeof(job))
    for d in range(D):
        use_machine(&tape.runs[d], m, 2)
    job.runs = tape.runs
    job.job.count = D
    threads = plan_runs(&job, m.operations, m.weight_bytes)
    job.job.scratch_size = m.table.gradient_scratch
    carver = Carver(m.table.itemsize)
    scratch = carver.add(threads * <object> job.job.scratch_size // m.table.itemsize)
    registers = carver.add(threads * tape.runs[0].registers_size // m.table.itemsize)
    found = add_pointers(carver, threads * tape.runs[0].phases.places, sizeof(fr_place))
    R = tape.runs[0].p.times.R
    places = []
    for d in range(D):
        places.append((
            carver.add(R * <object> tape.runs[0].phases.scratch), carver.add(m.back_size),
            add_pointers(carver, m.state_count, sizeof(char *)),
            add_pointers(carver, len(m.shapes), sizeof(void *)),
            add_pointers(carver, m.state_count, sizeof(fr_rows)),
            add_pointers(carver, m.state_count, sizeof(ptrdiff_t)),
            [carver.add(R * <object> m.states[s].pitch) for s in range(m.state_count)]))
    buffer = tape.workspace.take(carver.bytes)
    begins, ends, owners = [None] * D, [None] * D, None
    if tape.time is not None:
        begins = [tape.time.begins(reverse) for reverse in tape.reverse]
        ends = [tape.time.ends(reverse) for reverse in tape.reverse]
    whole, used = dx, tape.used_rows
    if dx is not None and used is not None:
        dx = np.empty((len(used), I), tape.dtype)
    job.job.scratch = buffer.data + <ptrdiff_t> scratch
    for d in range(D):
        r = &tape.runs[d]
        own = places[d]
        r.scratch = buffer.data + <ptrdiff_t> own[0]
        r.back = buffer.data + <ptrdiff_t> own[1]
        r.carries = <char **> (buffer.data + <ptrdiff_t> own[2])
        r.grads = <void **> (buffer.data + <ptrdiff_t> own[3])
        r.record_rows = <fr_rows *> (buffer.data + <ptrdiff_t> own[4])
        r.record_width = <ptrdiff_t *> (buffer.data + <ptrdiff_t> own[5])
        r.registers = buffer.data + <ptrdiff_t> registers
        r.places = <fr_place *> (buffer.data + <ptrdiff_t> found)
        set_pointers(r.grads, grads[d])
        r.p.before = NULL
        if tape.time is not None:
            r.p.before = <const int32_t *> pointer(tape.time.before())
            owners = tape.time.owners(ends[d])
        for s in range(m.state_count):
            r.carries[s] = buffer.data + <ptrdiff_t> own[6][s]
            p = like_state(r, s)
            load_state(r.carries[s], None if dfinal is None else dfinal[s], d, &p, B, owners)
            name = "d" + m.program.states[s][0]
            r.record_width[s] = m.states[s].width
            r.record_rows[s] = rows_of(NULL, 1, 0, 0)
            if name in out:
                r.record_rows[s] = record_rows(out[name], d * m.states[s].width, tape, d)
        r.p.dy = rows_of(NULL, 1, 0, 0)
        if dy is not None:
            r.p.dy = caller_rows(dy, d * O, tape.reverse[d], tape.time, tape.target)
        r.p.need_dx = dx is not None
        r.p.add_dx = d > 0
        if dx is not None and used is not None:
            r.p.dx = rows_of(pointer(dx), r.p.V, 0, dx.strides[0] // dx.itemsize)
        elif dx is not None:
            r.p.dx = caller_rows(dx, 0, tape.reverse[d], tape.time, tape.source)
        memset(&r.barrier, 0, sizeof(fr_barrier))

    # from here on nobody else can give the tape's memory away
    memory, _alive = tape.buffer, (tape.kept, tape.weights, tape.time)
    if memory is None:
        raise RuntimeError("backward: this tape was used already, a tape serves one backward")
    tape.used = True
    tape.buffer = None
    if tape.runs[0].p.times.N > 0:
        with nogil:
            run(run_backward, &job, threads)
    elif dx is not None:
        dx.fill(0)
    for d in range(D):
        r = &tape.runs[d]
        for s in range(m.state_count):
            p = like_state(r, s)
            add_states(dinitial[s], None if dfinal is None else dfinal[s], d, &p, r.carries[s], B,
                       begins[d], ends[d])
        if r.symbols_ready:
            add_one_hot(r, m, grads[d], used)
    if dx is not None and used is None and tape.time is not None:
        tape.time.blank(dx, tape.source)
    if dx is not whole:
        whole.fill(0)
        put_rows(whole, used, dx)
    for s, (name, width) in enumerate(m.program.states):
        if f"d{name}" in out:
            out[f"d{name}"] = out[f"d{name}"].reshape(T, B, D, width)
        if name in record:
            out[name] = tape.states_before(s)
    give_back(tape.workspace, buffer)
    give_back(tape.workspace, memory)
    tape.release()
    return out


cdef fr_rows record_rows(object array, ptrdiff_t offset, ProgramTape tape, int d) except *:
    """Where the walk's rows lie in (T * B, D * width)."""
    cdef ptrdiff_t size = cnp.PyArray_ITEMSIZE(array), stride = cnp.PyArray_STRIDE(array, 0) // size
    cdef ptrdiff_t T, B
    cdef fr_rows rows
    if tape.time is not None:
        return caller_rows(array, offset, tape.reverse[d], tape.time, "time")
    T, B = tape.shape[:2]
    rows = rows_of(<char *> pointer(array) + offset * size, B, B * stride, stride)
    if tape.reverse[d] and T > 0:
        rows.base = <char *> rows.base + (T - 1) * B * stride * size
        rows.outer = -rows.outer
    return rows


cdef object add_one_hot(Run *r, Machine m, tuple grads, object used):
    """Add the gradients of the columns in use, from the rows of symbols."""
    cdef ptrdiff_t U = len(used), lanes = m.table.lanes, g
    cdef int i
    symbols = np.empty((U, r.p.row), m.dtype)
    memcpy(cnp.PyArray_DATA(symbols), r.p.symbols, U * r.p.row * m.table.itemsize)
    for i in range(m.gradient_count):
        of = m.gradients[i]
        if not of.of_x or grads[of.weight] is None:
            continue
        slot = ceil_div(of.width, lanes) * lanes
        for g in range(of.blocks):
            own = slice(g * of.width, (g + 1) * of.width)
            start = of.offset + g * slot
            grads[of.weight][own, used] += symbols[:, start: start + of.width].T


# ---- the tape -----------------------------------------------------------------------------------

cdef class ProgramTape:
    def release(self):
        """Give the memory back; backward is not possible any more."""
        buffer = self.buffer
        self.used = True
        self.buffer = self.kept = self.weights = None
        if buffer is not None:
            give_back(self.workspace, buffer)

    def __del__(self):
        self.release()

    def copy(self):
        """Return a tape with memory of its own, which serves one more backward."""
        cdef ProgramTape twin = ProgramTape()
        cdef Buffer source = self.buffer, target
        cdef Run *r
        cdef int d, s
        cdef ptrdiff_t distance
        if source is None:
            raise RuntimeError("copy: this tape was used already, a tape serves one backward")
        target = self.workspace.take(source.nbytes)
        memcpy(target.data, source.data, <ptrdiff_t> source.nbytes)
        distance = target.data - source.data
        for d in range(self.count):
            r = &twin.runs[d]
            r[0] = self.runs[d]
            r.p.gates += distance
            r.p.symbols += distance
            r.parameters = <void **> (<char *> r.parameters + distance)
            r.masks = <char **> (<char *> r.masks + distance)
            r.mask_row = <ptrdiff_t *> (<char *> r.mask_row + distance)
            r.mask_steps = <bint *> (<char *> r.mask_steps + distance)
            r.states = <char **> (<char *> r.states + distance)
            if not r.p.packed:
                r.vectors += distance
            for s in range(r.state_count):
                r.states[s] += distance
        twin.count = self.count
        twin.machine = self.machine
        twin.workspace = self.workspace
        twin.kept = self.kept
        twin.notes = self.notes
        twin.weights = self.weights
        twin.reverse = self.reverse
        twin.time = self.time
        twin.source = self.source
        twin.target = self.target
        twin.embedding_rows = self.embedding_rows
        twin.used_rows = self.used_rows
        twin.dtype = self.dtype
        twin.shape = self.shape
        twin.buffer = target
        return twin

    def __reduce__(self):
        raise TypeError("a ProgramTape cannot be pickled, copy() makes another")

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    @property
    def nbytes(self):
        """Bytes of the tape."""
        return 0 if self.buffer is None else self.buffer.nbytes

    @property
    def symbols(self):
        """Whether x was symbols."""
        return self.used_rows is not None

    @property
    def state_names(self):
        return tuple(name for name, _ in self.machine.program.states)

    @property
    def recordable(self):
        """The names of what backward can record."""
        return (*(f"d{name}" for name in self.state_names), "x", *self.state_names)

    @property
    def x_shape(self):
        """Shape of dx; () of one-hot symbols; see Tape.x_shape."""
        T, B, I, _ = self.shape
        if self.used_rows is not None:
            return (self.embedding_rows, I) if self.embedding_rows else ()
        return (T, B, I) if self.time is None else (self.time.size(self.source), I)

    @property
    def y_shape(self):
        """Shape of y: (T, B, D*O), or with lengths or resets (M, D*O)."""
        T, B, _, O = self.shape
        rows = (T, B) if self.time is None else (self.time.size(self.target),)
        return (*rows, self.count * O)

    def states_before(self, int s):
        """Return the state that each step began with, (T, B, D, width); padding is zero."""
        cdef const Run *r
        cdef int d
        cdef ptrdiff_t width = self.machine.states[s].width, size = width * self.dtype.itemsize
        T, B = self.shape[:2]
        found = np.zeros((T, B, self.count, width), self.dtype)
        for d in range(self.count):
            r = &self.runs[d]
            before = None if self.time is None else self.time.before()
            copy_rows(<char *> cnp.PyArray_DATA(found) + d * cnp.PyArray_STRIDE(found, 2),
                      cnp.PyArray_STRIDE(found, 1), places_of(self.time, self.shape, self.reverse[d]), r.states[s],
                      r.state[s].pitch * r.table.itemsize, before, r.p.times.N, size)
        return found
