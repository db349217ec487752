"""Runs one layer over a sequence, forward and backward.

Checks what comes from Python, allocates, and sends the walk (walk.pyx) through time. Nothing below
checks again.

Letters: T steps, B batch, I input, H hidden, G gates, D directions, V rows of an embedding, U rows
of it in use.
"""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int32_t
from libc.string cimport memset

from fastrnn._kernels.c cimport FR_CELLS, fr_barrier
from fastrnn._kernels.check cimport (
    Carver,
    caller_rows,
    check,
    check_flat,
    check_weights,
    pointer,
    put_rows,
    take_rows,
)
from fastrnn._kernels.packed cimport Packed, margin, panels_width
from fastrnn._kernels.runtime cimport Buffer, Workspace, run
from fastrnn._kernels.state cimport add_states, load_state, pair_of, store_state
from fastrnn._kernels.tape cimport Tape, check_outer, checked_input, give_back
from fastrnn._kernels.timeline cimport Timeline
from fastrnn._kernels.walk cimport (
    Job,
    Pass,
    plan,
    rows_of,
    sized,
    walk_backward,
    walk_forward,
)

cnp.import_array()

# What backward can record; see there.
RECORD = ("dh", "dc", "gates", "dgates_x", "dgates_h", "x", "h")

# Input projections of this many bytes are made at once: they are still in L2 when they are used.
cdef ptrdiff_t CHUNK_BYTES = 256 * 1024

# So many steps at most read bfloat16 weights of the input as they are, step by step. More unpack
# them first (which takes about as long as five readings) and project several steps at once.
cdef ptrdiff_t FEW_STEPS = 8


# ---- what forward and backward share ------------------------------------------------------------

cdef check_state(str name, object array, object dtype, tuple shape, bint writeable=False):
    if array is not None:
        check_flat(name, array, dtype, shape, writeable)


# ---- forward ------------------------------------------------------------------------------------

cdef struct TapeLayout:
    # offsets in bytes
    ptrdiff_t gates, h, c, symbols


cdef struct PackLayout:
    ptrdiff_t wx, wh, start, bias_n


cdef TapeLayout lay_out_tape(Carver carver, const Pass *p) except *:
    cdef TapeLayout layout
    cdef ptrdiff_t B = p.times.R, N = p.times.N, rows = N
    if not p.training:
        rows = min(p.times.T, p.chunk) * B if p.V == 0 and p.I else 0
    layout.gates = carver.add_rows(rows, p.row)
    layout.h = carver.add_rows(B + N if p.keeps_h else 3 * B, p.pitch)
    layout.c = carver.add_rows(0 if not p.cell.has_c else B + N if p.training else B, p.pitch)
    layout.symbols = carver.add_rows(p.V, p.row)
    return layout


cdef bint unpacks_halves(Packed packed, const Pass *p, bint dense):
    """Whether the input's bfloat16 weights are wanted as float32."""
    return packed.half and p.I > 0 and (p.times.T > FEW_STEPS or not dense)


cdef PackLayout lay_out_packs(Carver carver, object weights, const Pass *p, bint dense) except *:
    """Room for what is packed for this call alone."""
    cdef PackLayout layout
    memset(&layout, 0, sizeof(layout))
    if isinstance(weights, Packed):
        if unpacks_halves(weights, p, dense):
            layout.wx = carver.add_rows(panels_width(p), p.I)
        return layout
    layout.wx = carver.add_rows(panels_width(p), p.I)
    layout.wh = carver.add_rows(panels_width(p), p.H)
    layout.start = carver.add_rows(1, p.row + margin(p))
    layout.bias_n = carver.add_rows(1, p.pitch + margin(p))
    return layout


cdef void use_packs(Pass *p, char *packs, const PackLayout *layout) noexcept:
    """Set what a pass reads of weights that the walk packs."""
    p.wx = packs + layout.wx
    p.wh = packs + layout.wh
    p.start = packs + layout.start
    p.bias_n = packs + layout.bias_n


cdef void use_packed(Pass *p, Packed packed, char *packs, const PackLayout *layout,
                     bint dense) noexcept:
    """Set what a pass reads of weights that were packed before."""
    p.packed = True
    p.half = packed.half
    p.wx = packed.wx
    p.wh = packed.wh
    p.wx_half = packed.wx_half
    p.wh_half = packed.wh_half
    p.start = packed.start
    p.bias_n = packed.bias_n
    if unpacks_halves(packed, p, dense):
        p.wx = packs + layout.wx


cdef void use_parameters(Pass *p, tuple weights) noexcept:
    p.w_ih = pointer(weights[0])
    p.w_hh = pointer(weights[1])
    p.b_ih = pointer(weights[2])
    p.b_hh = pointer(weights[3])


cdef object check_packed(Packed packed, const Pass *p, ptrdiff_t I, bint keep):
    if (packed.kind != p.cell - &p.table.cell[0] or packed.table != p.table
            or packed.input_size != I or packed.hidden_size != p.H):
        raise ValueError("weights: packed for another cell, dtype, size or instruction set")
    if keep and packed.half:
        raise ValueError("weights: are packed as bfloat16, expected float32 with keep=True: "
                         "bfloat16 weights have no backward")


cdef object use_index(Pass *p, object index, bint reverse, Timeline time):
    """Set the symbols of each step; return an array that must stay alive, or None."""
    p.index = <const int32_t *> pointer(index)
    if time is not None:
        if reverse:
            index = take_rows(index, time.rows("walk", True))
            p.index = <const int32_t *> pointer(index)
        return index
    p.index_t = p.times.R
    if reverse and p.times.T > 0:
        p.index += (p.times.T - 1) * p.times.R
        p.index_t = -p.times.R
    return None


cdef object use_one_hot(Pass *p, object weights, object used_rows):
    """Set the column of W_ih for each symbol; return arrays that must stay alive, or None."""
    p.column = <const int32_t *> pointer(used_rows)
    if not isinstance(weights, Packed):
        p.gathered = pointer(weights[0])
        p.gather_at = p.column
        p.gather_width = p.columns
        return None
    columns = (<Packed> weights).columns(used_rows.astype(np.int64))
    numbers = np.arange(p.V, dtype=np.int32)
    p.gathered = pointer(columns)
    p.gather_at = <const int32_t *> pointer(numbers)
    p.gather_width = p.V
    return columns, numbers


cdef ptrdiff_t chunk_of(const Pass *p) except -1:
    """Steps whose input projections are made at once, at most T."""
    step = <object> (max(p.row, p.I) if p.times.first else p.row) * p.table.itemsize * p.times.R
    steps = max(CHUNK_BYTES // max(1, step), -(-24 // max(1, p.times.R)))
    return max(1, min(p.times.T, steps))


cdef ptrdiff_t lay_out_taken(Carver carver, Pass *p, int threads) except -1:
    """Room for rows of x side by side, for each thread, if the walk takes them from a table."""
    rows = min(<object> p.chunk * p.times.R, p.times.N)
    nbytes = (rows * p.I * p.table.itemsize + rows * 4 + 63) // 64 * 64
    p.taken_rows = rows
    p.taken_size = nbytes
    return carver.add(threads * nbytes // p.table.itemsize)


def forward(int kind, x, index, tuple weights, tuple reverse, tuple initial, y, tuple final,
            bint keep, Workspace workspace, Timeline time=None, str source="time",
            str target="time"):
    """Run one layer over a sequence.

    Parameters
    ----------
    kind : index of the cell, in the order of fr_cell
    x : (T, B, I), contiguous rows; with `index`, the embedding (V, I), or None: one-hot rows
    index : None, or int32 (T, B): rows of x, or where the 1 is among I
    weights : per direction (weight_ih, weight_hh, bias_ih, bias_hh) or a Packed
    reverse : per direction, whether it walks from T-1 to 0
    initial : for each state (D, B, H) or None: zero; or None
    y : out (T, B, D*H), contiguous rows
    final : for each state out (D, B, H)
    keep : whether to keep a tape
    workspace : where the tape's memory comes from
    time : the lengths and resets of the rows, or None: all go on for T steps without one
    source, target : with `time`, the layouts of x or index and of y (see timeline.pyx). They are
        then (M, I) or int32 (M,), and (M, D*H); rows of y that are padding become zero.

    Returns
    -------
    Tape or None
    """
    cdef int D = len(weights), d, threads
    cdef bint one_hot = x is None, dense = index is None
    cdef ptrdiff_t taken = 0, B
    cdef Tape tape = Tape()
    cdef Pass *p
    cdef Pass like
    cdef TapeLayout[2] tape_layouts
    cdef PackLayout[2] pack_layouts
    cdef Buffer packs = None
    cdef Job job
    if D not in (1, 2) or len(reverse) != D:
        raise ValueError(f"weights: {D} directions, expected 1 or 2")
    if not 0 <= kind < FR_CELLS:
        raise ValueError(f"kind: is {kind}, expected 0 to 4")
    dtype = y.dtype
    first = weights[0]
    if isinstance(first, Packed):
        I, H = first.input_size, first.hidden_size
    else:
        I, H = first[0].shape[1], first[1].shape[1]
    shape = x.shape[: x.ndim - 1] if dense else index.shape
    T, B = shape if time is None else (time.T, time.B)
    rows = shape if time is None else (time.size(source),)
    like = sized(kind, dtype, T, B, 0 if one_hot else I, H)
    if time is not None:
        like.times = time.times
    tape.time = time
    tape.source = source
    x, index, source = checked_input(tape, x, index, I, dtype, rows)
    h0, c0 = pair_of("initial", initial, like.cell.has_c)
    hn, cn = pair_of("final", final, like.cell.has_c)
    check("y", y, dtype, (T, B, D * H) if time is None else (time.size(target), D * H), True)
    check_flat("hn", hn, dtype, (D, B, H), True)
    check_state("h0", h0, dtype, (D, B, H))
    if like.cell.has_c:
        check_flat("cn", cn, dtype, (D, B, H), True)
        check_state("c0", c0, dtype, (D, B, H))
    for d in range(D):
        if isinstance(weights[d], Packed):
            check_packed(weights[d], &like, I, keep)
        else:
            check_weights(weights[d], like.cell.gates, dtype, I, H, False)

    like.chunk = chunk_of(&like)
    like.training = keep
    like.keeps_h = keep and not like.cell.has_c
    like.V = 0 if dense else len(tape.used_rows)
    like.columns = I
    memset(&job, 0, sizeof(job))
    job.passes = &like
    job.count = D
    threads = plan(&job)
    carver = Carver(like.table.itemsize)
    pack_carver = Carver(like.table.itemsize)
    if time is not None and dense:
        taken = lay_out_taken(pack_carver, &like, threads)
    for d in range(D):
        tape_layouts[d] = lay_out_tape(carver, &like)
        pack_layouts[d] = lay_out_packs(pack_carver, weights[d], &like, dense)
    cdef Buffer buffer = workspace.take(carver.bytes)
    if pack_carver.bytes:
        packs = workspace.take(pack_carver.bytes)

    alive = [None] * D
    parameters = [None] * D
    for d in range(D):
        p = &tape.passes[d]
        p[0] = like
        p.gates = buffer.data + tape_layouts[d].gates
        p.h = buffer.data + tape_layouts[d].h
        p.c = buffer.data + tape_layouts[d].c
        p.symbols = buffer.data + tape_layouts[d].symbols
        parameters[d] = weights[d]
        if isinstance(weights[d], Packed):
            use_packed(p, weights[d], NULL if packs is None else packs.data, &pack_layouts[d],
                       dense)
            parameters[d] = (<Packed> weights[d]).weights
        else:
            use_packs(p, packs.data, &pack_layouts[d])
        if parameters[d] is not None:
            use_parameters(p, parameters[d])
        if dense:
            p.x = caller_rows(x, 0, reverse[d], time, source)
            p.taken = NULL if time is None else packs.data + taken
        else:
            alive[d] = use_index(p, index, reverse[d], time)
            if one_hot:
                alive[d] = alive[d], use_one_hot(p, weights[d], tape.used_rows)
            else:
                p.x = rows_of(pointer(x), p.V, 0, x.strides[0] // x.itemsize)
        p.y = caller_rows(y, d * H, reverse[d], time, target)
        begins = None if time is None else time.begins(reverse[d])
        load_state(p.h, h0, d, p, B, begins)
        if p.cell.has_c:
            load_state(p.c, c0, d, p, B, begins)

    job.passes = tape.passes
    if like.times.N > 0:
        with nogil:
            run(walk_forward, &job, threads)
    for d in range(D):
        p = &tape.passes[d]
        ends = None if time is None else time.ends(reverse[d])
        store_state(hn, h0, d, p, B, ends, False)
        if p.cell.has_c:
            store_state(cn, c0, d, p, B, ends, True)
    if time is not None:
        time.blank(y, target)
    if packs is not None:
        give_back(workspace, packs)
    if not keep:
        give_back(workspace, buffer)
        return None
    tape.count = D
    tape.workspace = workspace
    tape.kept = (x, index, alive)
    tape.target = target
    tape.weights = tuple(parameters)
    tape.reverse = reverse
    tape.dtype = dtype
    tape.kind = kind
    tape.shape = (T, B, I, H)
    tape.buffer = buffer
    return tape


# ---- backward -----------------------------------------------------------------------------------

cdef struct BackLayout:
    # offsets in bytes
    ptrdiff_t dh, dc, wb, wi


cdef BackLayout lay_out_back(Carver carver, const Pass *p, ptrdiff_t H, bint need_dx) except *:
    cdef BackLayout layout
    cdef ptrdiff_t width = p.table.lanes * p.table.plain_vectors
    layout.dh = carver.add_rows(p.times.R, p.pitch)
    layout.dc = carver.add_rows(p.times.R if p.cell.has_c else 0, p.pitch)
    layout.wb = carver.add_rows(p.panels_h * width, p.cell.gates * H)
    layout.wi = carver.add_rows(p.panels_i * width if need_dx else 0, p.cell.gates * H)
    return layout


cdef object check_back(Tape tape, dy, dhn, dcn, dx, dh0, dc0, tuple grads, tuple record,
                       bint fresh):
    cdef int D = tape.count, d, G = tape.passes[0].cell.gates
    cdef bint has_c = tape.passes[0].cell.has_c
    _, B, I, H = tape.shape
    dtype = tape.dtype
    check_outer(tape, dy, dx, grads)
    check_state("dhn", dhn, dtype, (D, B, H))
    check_state("dh0", dh0, dtype, (D, B, H), True)
    if has_c:
        check_state("dc0", dc0, dtype, (D, B, H), True)
        check_state("dcn", dcn, dtype, (D, B, H))
    for d in range(D):
        check_weights(grads[d], G, dtype, I, H, True)
        if grads[d][0] is None and grads[d][2] is not None and tape.passes[d].column != NULL:
            raise ValueError("grads: weight_ih is None, expected an array: x was one-hot")
    if fresh and tape.used_rows is not None:
        raise ValueError("fresh: is True, expected False: x was symbols")
    for name in record:
        if name not in RECORD or name == "dc" and not has_c:
            raise ValueError(f"record: has {name!r}, expected names out of {RECORD}, dc of an LSTM "
                             "alone")


cdef object use_states(Pass *p, object dhn, object dcn, int d, char *memory,
                       const BackLayout *layout, ptrdiff_t B, Timeline time, object ends):
    """Set the carries, and what the walk packs."""
    p.dh = memory + layout.dh
    p.dc = memory + layout.dc
    p.wb = memory + layout.wb
    p.wi = memory + layout.wi
    p.before = NULL
    owners = None
    if time is not None:
        p.before = <const int32_t *> pointer(time.before())
        owners = time.owners(ends)
    load_state(p.dh, dhn, d, p, B, owners)
    if p.cell.has_c:
        load_state(p.dc, dcn, d, p, B, owners)
    memset(&p.barrier, 0, sizeof(fr_barrier))


cdef object use_gradients(Pass *p, object dy, dict out, int d, Tape tape):
    """Set dy, and where dL/dh(t) and dL/dc(t) go."""
    cdef bint reverse = tape.reverse[d]
    p.dy = p.dh_out = p.dc_out = rows_of(NULL, 1, 0, 0)
    if dy is not None:
        p.dy = caller_rows(dy, d * p.H, reverse, tape.time, tape.target)
    if "dc" in out:
        p.dc_out = p.dh_out = caller_rows(out["dc"], d * p.H, reverse, tape.time, "time")
        p.dh_out.base = NULL
    if "dh" in out:
        p.dh_out = caller_rows(out["dh"], d * p.H, reverse, tape.time, "time")


cdef void use_outputs(Pass *p, tuple grads) noexcept:
    p.dw_ih = pointer(grads[0])
    p.dw_hh = pointer(grads[1])
    p.db_ih = pointer(grads[2])
    p.db_hh = pointer(grads[3])


def backward(Tape tape, dy, tuple dfinal, dx, tuple dinitial, tuple grads, tuple record=(),
             bint fresh=False):
    """Backpropagate one forward call through time; the tape is used up.

    Parameters
    ----------
    tape : what a forward call with keep=True returned
    dy : like forward's y, contiguous rows, or None: zero
    dfinal : for each state (D, B, H) or None: zero; or None
    dx : out, like forward's x, or None: not wanted, or one-hot
    dinitial : for each state out (D, B, H) or None: not wanted; or None
    grads : per direction (weight_ih, weight_hh, bias_ih, bias_hh), which accumulate; None: not
        wanted (weight_ih of one-hot rows only together with bias_ih)
    record : names out of RECORD: what to return besides
    fresh : whether `grads` have no values yet, so that they are written; not with symbols

    Returns
    -------
    dict of the arrays named in `record`, in torch's order of time, also for the reverse direction
        (zero in padding)
        dh, dc : (T, B, D, H), the whole derivatives with respect to h(t) and c(t)
        gates : (T, B, D, G, H), after their activations
        dgates_x, dgates_h : (T, B, D, G, H), gradients of W_ih x(t) + b_ih and of
            W_hh h(t-1) + b_hh; they differ for n of a GRU alone, where r comes between
        x : forward's, no copy; for one-hot rows the index (T, B)
        h : (T, B, D, H), the state that step t began with: h(t-1), in reverse h(t+1)
    """
    cdef int D = tape.count, d, threads
    cdef Pass *p
    cdef Job job
    cdef BackLayout[2] layouts
    cdef Buffer buffer, memory
    cdef ptrdiff_t scratch
    if tape.used or tape.buffer is None:
        raise RuntimeError("backward: this tape was used already, a tape serves one backward")
    dhn, dcn = pair_of("dfinal", dfinal, tape.passes[0].cell.has_c)
    dh0, dc0 = pair_of("dinitial", dinitial, tape.passes[0].cell.has_c)
    check_back(tape, dy, dhn, dcn, dx, dh0, dc0, grads, record, fresh)
    T, B, I, H = tape.shape
    out = {}
    for name in record:
        if name in ("dh", "dc"):
            out[name] = np.empty((T, B, D * H), tape.dtype)
            if tape.time is not None:
                out[name] = np.zeros((T * B, D * H), tape.dtype)
        elif name == "gates":
            out[name] = tape.recorded(name)  # the walk overwrites them
        elif name == "x":
            out[name] = tape.input()

    memset(&job, 0, sizeof(job))
    job.passes = tape.passes
    job.count = D
    threads = plan(&job)
    job.scratch_size = tape.passes[0].table.gradient_scratch
    carver = Carver(tape.passes[0].table.itemsize)
    scratch = carver.add_rows(threads, job.scratch_size // tape.passes[0].table.itemsize)
    for d in range(D):
        layouts[d] = lay_out_back(carver, &tape.passes[d], H, dx is not None)
    buffer = tape.workspace.take(carver.bytes)
    begins, ends = [None] * D, [None] * D
    if tape.time is not None:
        begins = [tape.time.begins(reverse) for reverse in tape.reverse]
        ends = [tape.time.ends(reverse) for reverse in tape.reverse]
    whole, used = dx, tape.used_rows
    if dx is not None and used is not None:
        dx = np.empty((len(used), I), tape.dtype)
    job.scratch = buffer.data + scratch
    for d in range(D):
        p = &tape.passes[d]
        use_states(p, dhn, dcn, d, buffer.data, &layouts[d], B, tape.time, ends[d])
        use_gradients(p, dy, out, d, tape)
        use_outputs(p, grads[d])
        p.fresh = fresh
        p.need_dx = dx is not None
        p.add_dx = d > 0
        if dx is not None and used is not None:
            p.dx = rows_of(pointer(dx), p.V, 0, dx.strides[0] // dx.itemsize)
        elif dx is not None:
            p.dx = caller_rows(dx, 0, tape.reverse[d], tape.time, tape.source)

    # from here on nobody else can give the tape's memory away
    memory, _alive = tape.buffer, (tape.kept, tape.weights, tape.time)
    if memory is None:
        raise RuntimeError("backward: this tape was used already, a tape serves one backward")
    tape.used = True
    tape.buffer = None
    with nogil:
        run(walk_backward, &job, threads)
    for d in range(D):
        p = &tape.passes[d]
        add_states(dh0, dhn, d, p, p.dh, B, begins[d], ends[d])
        if p.cell.has_c:
            add_states(dc0, dcn, d, p, p.dc, B, begins[d], ends[d])
    if dx is not None and used is None and tape.time is not None:
        tape.time.blank(dx, tape.source)
    if dx is not whole:
        whole.fill(0)
        put_rows(whole, used, dx)
    for name in record:
        if name in ("dh", "dc"):
            out[name] = out[name].reshape(T, B, D, H)
        elif name not in ("gates", "x"):
            out[name] = tape.recorded(name)
    give_back(tape.workspace, buffer)
    give_back(tape.workspace, memory)
    tape.release()
    return out
