"""Runs one layer of a cell that is a program over a sequence, forward and backward.

What sequence.pyx is for the hand-written cells: checks, allocates, and sends the walk (machine.pyx)
through time. Nothing below checks again.

Letters: T steps, B batch, R rows of the walk, N rows of all steps together, I input, O features of
one direction's output, D directions, V rows of an embedding, U rows of it in use.
"""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int32_t
from libc.string cimport memset

from fastrnn._kernels.c cimport fr_barrier, fr_place, fr_rows
from fastrnn._kernels.check cimport (
    Carver,
    caller_rows,
    check,
    check_flat,
    pointer,
    put_rows,
)
from fastrnn._kernels.machine cimport (
    Gradient,
    Machine,
    Run,
    RunJob,
    plan_runs,
    run_backward,
    run_forward,
    state_at,
)
from fastrnn._kernels.packed_program cimport (
    PackedProgram,
    check_parameters,
    set_pointers,
    sized_run,
    use_machine,
)
from fastrnn._kernels.program_tape cimport ProgramTape
from fastrnn._kernels.runtime cimport (
    Buffer,
    Workspace,
    keep_denormals,
    pitch_of,
    restore,
    run,
)
from fastrnn._kernels.sequence cimport check_state, chunk_of, lay_out_taken, use_index
from fastrnn._kernels.state cimport add_states, load_state, store_row
from fastrnn._kernels.tape cimport check_outer, checked_input, give_back
from fastrnn._kernels.timeline cimport Timeline, length_of
from fastrnn._kernels.walk cimport Pass, ceil_div, rows_of

cnp.import_array()


cdef Pass like_state(const Run *r, int s) noexcept:
    """A pass with the sizes of a state, for state.pyx."""
    cdef Pass p = r.p
    p.H = r.state[s].width
    p.pitch = r.state[s].pitch
    return p


cdef struct Places:
    # offsets in bytes, of one direction
    ptrdiff_t tape, symbols, packs, vectors, starts, scratch, parameters
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
    cdef ptrdiff_t taken = 0, B, N
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
    tape.time = time
    tape.source = source
    x, index, source = checked_input(tape, x, index, I, dtype, rows)
    if rows_of_eye:
        x, one_hot = np.zeros((len(tape.used_rows), I), dtype), False
        x[np.arange(len(x)), tape.used_rows] = 1
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
    state_places = [[carver.add((like.p.times.R + N if keep else 2 * like.p.times.R)
                                * <object> m.states[s].pitch) for s in range(m.state_count)]
                    for _ in range(D)]
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
    tape.kept = (x, index, alive)
    tape.kind = kind
    tape.target = target
    tape.weights = tuple(parameters)
    tape.reverse = reverse
    tape.dtype = dtype
    tape.shape = (T, B, I, O)
    tape.buffer = buffer
    return tape


cdef object project_one_hot(Run *r, Machine m, tuple arrays, object used):
    """Fill the rows of symbols: the biases and the columns of the weights that are in use."""
    cdef ptrdiff_t U = len(used), lanes = m.table.lanes, at_ = 0, row = r.p.row, width, g, b
    cdef ptrdiff_t size = m.table.itemsize
    cdef unsigned state
    cdef char *target
    names = m.program.vector_names
    weights = {w[0]: i for i, w in enumerate(m.program.weights)}
    memset(r.p.symbols, 0, U * row * size)
    for group in m.program.groups:
        if group.weight is None:
            continue
        weight = arrays[weights[group.weight]]
        width = group.width
        start = np.zeros(group.blocks * width, m.dtype)
        biases = [arrays[m.weight_count + <ptrdiff_t> names.index(bias)] for bias in group.biases]
        state = keep_denormals()  # the caller may round in another way
        for b in range(len(biases)):
            m.table.add_rows(pointer(start), 0, pointer(biases[b]), 0, NULL, 1,
                             cnp.PyArray_SIZE(start))
        for g in range(group.blocks):
            target = <char *> r.p.symbols + at_ * size
            add_columns(target, row, pointer(weight), cnp.PyArray_DIM(weight, 1), used, g * width,
                        width, size, False)
            m.table.add_rows(target, row, <char *> pointer(start) + g * width * size, 0, NULL, U,
                             width)
            at_ += ceil_div(width, lanes) * lanes
        restore(state)
    r.symbols_ready = True


cdef void add_columns(void *rows, ptrdiff_t row, void *weight, ptrdiff_t symbols, object used,
                      ptrdiff_t first, ptrdiff_t width, ptrdiff_t size, bint to_weight) noexcept:
    """Add columns of a weight (units, symbols) to rows (U, width), or the rows to them.

    Row u belongs to the column `used[u]`, and its unit i to the weight's row first + i.
    """
    cdef const int32_t *column = <const int32_t *> pointer(used)
    cdef ptrdiff_t u, i, of_row, of_weight
    for u in range(cnp.PyArray_SIZE(used)):
        for i in range(width):
            of_row, of_weight = u * row + i, column[u] + (first + i) * symbols
            if size == 4 and to_weight:
                (<float *> weight)[of_weight] += (<float *> rows)[of_row]
            elif size == 4:
                (<float *> rows)[of_row] += (<float *> weight)[of_weight]
            elif to_weight:
                (<double *> weight)[of_weight] += (<double *> rows)[of_row]
            else:
                (<double *> rows)[of_row] += (<double *> weight)[of_weight]


cdef void store_final(object target, object initial, int d, const Run *r, int s, ptrdiff_t B,
                      object ends) noexcept:
    """Copy the final state of every sequence into row d of a (D, B, width) array."""
    cdef ptrdiff_t row, b
    cdef const int32_t *taken = <const int32_t *> pointer(ends)
    cdef Pass p = like_state(r, s)
    for b in range(B):
        row = taken[b] if taken != NULL else b
        store_row(target, initial, d, &p, B, b,
                  NULL if row < 0 else state_at(r, s, length_of(&r.p.times, row), row))


# ---- backward -----------------------------------------------------------------------------------

cdef object check_back(ProgramTape tape, dy, dfinal, dx, tuple dinitial, tuple grads, tuple record):
    cdef Machine m = tape.machine
    cdef int D = tape.count, s, d
    _, B, _, _ = tape.shape
    check_outer(tape, dy, dx, grads)
    if dfinal is not None and len(dfinal) != m.state_count or len(dinitial) != m.state_count:
        raise ValueError(f"states: expected {m.state_count}")
    for s in range(m.state_count):
        shape = (D, B, m.states[s].width)
        check_flat("dinitial", dinitial[s], tape.dtype, shape, True)
        if dfinal is not None:
            check_state("dfinal", dfinal[s], tape.dtype, shape)
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
        m = tape.kind.machine(tape.dtype, True)
    out = {}
    for name, width in m.program.states:
        if f"d{name}" in derivatives:
            out[f"d{name}"] = np.zeros((T * B, D * width), tape.dtype)
    if "x" in record:
        out["x"] = tape.input()

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
    sums_row = pitch_of(m.sums_size, m.table.itemsize) if m.sums_size else 0
    places = []
    for _ in range(D):
        places.append((
            carver.add(R * <object> tape.runs[0].phases.scratch), carver.add(m.back_size),
            carver.add((2 * R + 1) * <object> sums_row),
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
        r.sums_row = sums_row
        r.sums = buffer.data + <ptrdiff_t> own[2]
        r.totals = r.sums + <ptrdiff_t> R * r.sums_row * m.table.itemsize
        memset(r.sums, 0, (2 * <ptrdiff_t> R + 1) * r.sums_row * m.table.itemsize)
        r.carries = <char **> (buffer.data + <ptrdiff_t> own[3])
        r.grads = <void **> (buffer.data + <ptrdiff_t> own[4])
        r.record_rows = <fr_rows *> (buffer.data + <ptrdiff_t> own[5])
        r.record_width = <ptrdiff_t *> (buffer.data + <ptrdiff_t> own[6])
        r.registers = buffer.data + <ptrdiff_t> registers
        r.places = <fr_place *> (buffer.data + <ptrdiff_t> found)
        set_pointers(r.grads, grads[d])
        r.p.before = NULL
        if tape.time is not None:
            r.p.before = <const int32_t *> pointer(tape.time.before())
            owners = tape.time.owners(ends[d])
        for s in range(m.state_count):
            r.carries[s] = buffer.data + <ptrdiff_t> own[7][s]
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
    memory, _alive = tape.buffer, (tape.kept, tape.kind, tape.weights, tape.time)
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


cdef void add_one_hot(Run *r, Machine m, tuple grads, object used) noexcept:
    """Add the gradients of the columns in use, from the rows of symbols."""
    cdef ptrdiff_t lanes = m.table.lanes, size = m.table.itemsize, slot, g
    cdef const Gradient *of
    cdef unsigned state = keep_denormals()  # the caller may round in another way
    cdef int i
    for i in range(m.gradient_count):
        of = &m.gradients[i]
        if not of.of_x or grads[of.weight] is None:
            continue
        slot = ceil_div(of.width, lanes) * lanes
        for g in range(of.blocks):
            add_columns(<char *> r.p.symbols + (of.offset + g * slot) * size, r.p.row,
                        pointer(grads[of.weight]), cnp.PyArray_DIM(grads[of.weight], 1), used,
                        g * of.width, of.width, size, True)
    restore(state)
