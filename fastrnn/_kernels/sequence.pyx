"""Runs one layer over a sequence, forward and backward.

Checks what comes from Python, allocates, and sends the walk (walk.pyx) through time. Nothing below
checks again.

Letters: T steps, B batch, I input, H hidden, G gates, D directions, V rows of an embedding, U rows
of it in use.
"""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport FR_CELLS, fr_barrier, fr_rows
from fastrnn._kernels.check cimport (
    Carver,
    check,
    check_flat,
    check_weights,
    grid,
    named_rows,
    pointer,
    put_rows,
    take_rows,
)
from fastrnn._kernels.packed cimport Packed, packed_sizes
from fastrnn._kernels.runtime cimport Buffer, Workspace, run
from fastrnn._kernels.tape cimport Tape, give_back
from fastrnn._kernels.walk cimport (
    Job,
    Pass,
    at,
    h_at,
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

INT32 = np.dtype(np.int32)


# ---- what forward and backward share ------------------------------------------------------------

cdef check_state(str name, object array, object dtype, tuple shape):
    if array is not None:
        check_flat(name, array, dtype, shape)


cdef void load_state(char *slot, object source, int d, const Pass *p) noexcept:
    """Fill one (B, pitch) slot from row d of a (D, B, H) array, or with zeros."""
    cdef ptrdiff_t b
    cdef const char *data = <const char *> pointer(source)
    memset(slot, 0, p.B * p.pitch * p.table.itemsize)
    if data != NULL:
        for b in range(p.B):
            memcpy(at(slot, b * p.pitch, p), at(data, (d * p.B + b) * p.H, p),
                   p.H * p.table.itemsize)


cdef void store_state(object target, int d, const char *slot, const Pass *p) noexcept:
    """Copy one (B, pitch) slot into row d of a (D, B, H) array."""
    cdef ptrdiff_t b
    cdef char *data = <char *> pointer(target)
    for b in range(p.B):
        memcpy(at(data, (d * p.B + b) * p.H, p), at(slot, b * p.pitch, p), p.H * p.table.itemsize)


cdef fr_rows own_rows(object array, int d, bint reverse, const Pass *p):
    """The (T, B) grid of rows of direction d of a (T, B, D*H) array."""
    return grid(array, d * p.H, reverse)


# ---- forward ------------------------------------------------------------------------------------

cdef struct TapeLayout:
    # offsets in bytes
    ptrdiff_t gates, h, c, symbols


cdef struct PackLayout:
    ptrdiff_t wx, wh, start, bias_n


cdef TapeLayout lay_out_tape(Carver carver, const Pass *p) except *:
    cdef TapeLayout layout
    T, B, row, pitch = p.T, p.B, p.row, p.pitch  # Python's integers: they do not overflow
    steps = T if p.training else min(T, p.chunk) if p.V == 0 and p.I else 0
    layout.gates = carver.add(steps * B * row)
    layout.h = carver.add((T + 1 if p.keeps_h else 3) * B * pitch)
    layout.c = carver.add((T + 1 if p.training else 1) * B * pitch if p.cell.has_c else 0)
    layout.symbols = carver.add(<object> p.V * row)
    return layout


cdef bint unpacks_halves(Packed packed, const Pass *p, bint dense):
    """Whether the input's bfloat16 weights are wanted as float32."""
    return packed.half and p.I > 0 and (p.T > FEW_STEPS or not dense)


cdef PackLayout lay_out_packs(Carver carver, object weights, const Pass *p, bint dense) except *:
    """Room for what is packed for this call alone."""
    cdef PackLayout layout
    memset(&layout, 0, sizeof(layout))
    wx, wh, start, bias_n = packed_sizes(p)
    if isinstance(weights, Packed):
        if unpacks_halves(weights, p, dense):
            layout.wx = carver.add(wx)
        return layout
    layout.wx = carver.add(wx)
    layout.wh = carver.add(wh)
    layout.start = carver.add(start)
    layout.bias_n = carver.add(bias_n)
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


cdef void use_dense(Pass *p, object x, bint reverse):
    p.x = grid(x, 0, reverse)


cdef void use_index(Pass *p, object index, bint reverse) noexcept:
    p.index = <const int32_t *> pointer(index)
    p.index_t = p.B
    if reverse and p.T > 0:
        p.index += (p.T - 1) * p.B
        p.index_t = -p.B


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
    """Steps whose input projections are made at once."""
    step = <object> p.row * p.table.itemsize * p.B
    return max(1, CHUNK_BYTES // max(1, step), -(-24 // max(1, p.B)))


def forward(int kind, x, index, tuple weights, tuple reverse, h0, c0, y, hn, cn, bint keep,
            Workspace workspace):
    """Run one layer over a sequence.

    Parameters
    ----------
    kind : index of the cell, in the order of fr_cell
    x : (T, B, I), contiguous rows; with `index`, the embedding (V, I), or None: one-hot rows
    index : None, or int32 (T, B): rows of x, or where the 1 is among I
    weights : per direction (weight_ih, weight_hh, bias_ih, bias_hh) or a Packed
    reverse : per direction, whether it walks from T-1 to 0
    h0, c0 : (D, B, H) or None
    y : out (T, B, D*H), contiguous rows
    hn, cn : out (D, B, H); cn is None for cells without c
    keep : whether to keep a tape
    workspace : where the tape's memory comes from

    Returns
    -------
    Tape or None
    """
    cdef int D = len(weights), d, threads
    cdef bint one_hot = x is None, dense = index is None
    cdef Tape tape = Tape()
    cdef Pass *p
    cdef Pass like
    cdef fr_rows rows
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
    T, B = x.shape[:2] if dense else index.shape
    like = sized(kind, dtype, T, B, 0 if one_hot else I, H)
    if dense:
        check("x", x, dtype, (T, B, I))
    else:
        check_flat("x", index, INT32, (T, B))
        if not one_hot:
            check("embedding", x, dtype, (x.shape[0], I))
            tape.embedding_rows = x.shape[0]
        index, tape.used_rows = named_rows(index, I if one_hot else tape.embedding_rows)
        if not one_hot:
            x = take_rows(x, tape.used_rows)
    check("y", y, dtype, (T, B, D * H), True)
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
    carver = Carver(like.table.itemsize)
    pack_carver = Carver(like.table.itemsize)
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
            use_dense(p, x, reverse[d])
        else:
            use_index(p, index, reverse[d])
            if one_hot:
                alive[d] = use_one_hot(p, weights[d], tape.used_rows)
            else:
                p.x = rows_of(pointer(x), p.V, 0, x.strides[0] // x.itemsize)
        rows = own_rows(y, d, reverse[d], p)
        p.y = <char *> rows.base
        p.y_t = rows.outer
        p.y_b = rows.inner
        load_state(p.h, h0, d, p)
        if p.cell.has_c:
            load_state(p.c, c0, d, p)

    memset(&job, 0, sizeof(job))
    job.passes = tape.passes
    job.count = D
    if like.T > 0 and like.B > 0:
        with nogil:
            threads = plan(&job)
            run(walk_forward, &job, threads)
    for d in range(D):
        p = &tape.passes[d]
        store_state(hn, d, h_at(p, p.T, 0), p)
        if p.cell.has_c:
            store_state(cn, d, at(p.c, (p.T if keep else 0) * p.B * p.pitch, p), p)
    if packs is not None:
        give_back(workspace, packs)
    if not keep:
        give_back(workspace, buffer)
        return None
    tape.count = D
    tape.workspace = workspace
    tape.kept = (x, index)
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
    width = <object> p.table.lanes * p.table.plain_vectors * p.cell.gates * H
    state = <object> p.B * p.pitch
    layout.dh = carver.add(state)
    layout.dc = carver.add(state if p.cell.has_c else 0)
    layout.wb = carver.add(p.panels_h * width)
    layout.wi = carver.add(p.panels_i * width if need_dx else 0)
    return layout


cdef object check_back(Tape tape, dy, dhn, dcn, dx, dh0, dc0, tuple grads, tuple record):
    cdef int D = tape.count, d, G = tape.passes[0].cell.gates
    cdef bint has_c = tape.passes[0].cell.has_c
    T, B, I, H = tape.shape
    dtype = tape.dtype
    if dy is not None:
        check("dy", dy, dtype, (T, B, D * H))
    check_state("dhn", dhn, dtype, (D, B, H))
    check_flat("dh0", dh0, dtype, (D, B, H), True)
    if has_c:
        check_flat("dc0", dc0, dtype, (D, B, H), True)
        check_state("dcn", dcn, dtype, (D, B, H))
    if dx is not None:
        if not tape.x_shape:
            raise ValueError("dx: is an array, expected None: x was one-hot")
        check("dx", dx, dtype, tape.x_shape, True)
    if len(grads) != D:
        raise ValueError(f"grads: {len(grads)} directions, expected {D}")
    for d in range(D):
        check_weights(grads[d], G, dtype, I, H, True)
    for name in record:
        if name not in RECORD or name == "dc" and not has_c:
            raise ValueError(f"record: has {name!r}, expected names out of {RECORD}, dc of an LSTM "
                             "alone")


cdef void use_states(Pass *p, object dhn, object dcn, int d, char *memory,
                     const BackLayout *layout) noexcept:
    """Set the carries, and what the walk packs."""
    p.dh = memory + layout.dh
    p.dc = memory + layout.dc
    p.wb = memory + layout.wb
    p.wi = memory + layout.wi
    load_state(p.dh, dhn, d, p)
    if p.cell.has_c:
        load_state(p.dc, dcn, d, p)
    memset(&p.barrier, 0, sizeof(fr_barrier))


cdef object use_gradients(Pass *p, object dy, dict out, int d, bint reverse):
    """Set dy, and where dL/dh(t) and dL/dc(t) go."""
    cdef fr_rows rows
    p.dy = p.dh_out = p.dc_out = NULL
    if dy is not None:
        rows = own_rows(dy, d, reverse, p)
        p.dy = <char *> rows.base
        p.dy_t = rows.outer
        p.dy_b = rows.inner
    if "dh" in out:
        rows = own_rows(out["dh"], d, reverse, p)
        p.dh_out = <char *> rows.base
        p.out_t = rows.outer
        p.out_b = rows.inner
    if "dc" in out:
        rows = own_rows(out["dc"], d, reverse, p)
        p.dc_out = <char *> rows.base
        p.out_t = rows.outer
        p.out_b = rows.inner


cdef void use_outputs(Pass *p, tuple grads) noexcept:
    p.dw_ih = pointer(grads[0])
    p.dw_hh = pointer(grads[1])
    p.db_ih = pointer(grads[2])
    p.db_hh = pointer(grads[3])


def backward(Tape tape, dy, dhn, dcn, dx, dh0, dc0, tuple grads, tuple record=()):
    """Backpropagate one forward call through time; the tape is used up.

    Parameters
    ----------
    tape : what a forward call with keep=True returned
    dy : (T, B, D*H), contiguous rows, or None: zero
    dhn, dcn : (D, B, H) or None: zero
    dx : out, like forward's x, or None: not wanted, or one-hot
    dh0, dc0 : out (D, B, H); dc0 is None for cells without c
    grads : per direction (weight_ih, weight_hh, bias_ih, bias_hh), which accumulate
    record : names out of RECORD: what to return besides

    Returns
    -------
    dict of the arrays named in `record`, in torch's order of time, also for the reverse direction
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
    check_back(tape, dy, dhn, dcn, dx, dh0, dc0, grads, record)
    T, B, I, H = tape.shape
    out = {}
    for name in record:
        if name in ("dh", "dc"):
            out[name] = np.empty((T, B, D * H), tape.dtype)
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
    scratch = carver.add(threads * <object> job.scratch_size // tape.passes[0].table.itemsize)
    for d in range(D):
        layouts[d] = lay_out_back(carver, &tape.passes[d], H, dx is not None)
    buffer = tape.workspace.take(carver.bytes)
    whole, used = dx, tape.used_rows
    if dx is not None and used is not None:
        dx = np.empty((len(used), I), tape.dtype)
    job.scratch = buffer.data + scratch
    for d in range(D):
        p = &tape.passes[d]
        use_states(p, dhn, dcn, d, buffer.data, &layouts[d])
        use_gradients(p, dy, out, d, tape.reverse[d])
        use_outputs(p, grads[d])
        p.need_dx = dx is not None
        p.add_dx = d > 0
        if dx is not None and used is not None:
            p.dx = rows_of(pointer(dx), p.V, 0, dx.strides[0] // dx.itemsize)
        elif dx is not None:
            p.dx = grid(dx, 0, tape.reverse[d])

    # from here on nobody else can give the tape's memory away
    memory, _alive = tape.buffer, (tape.kept, tape.weights)
    if memory is None:
        raise RuntimeError("backward: this tape was used already, a tape serves one backward")
    tape.used = True
    tape.buffer = None
    with nogil:
        run(walk_backward, &job, threads)
    for d in range(D):
        p = &tape.passes[d]
        store_state(dh0, d, p.dh, p)
        if p.cell.has_c:
            store_state(dc0, d, p.dc, p)
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
