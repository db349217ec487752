"""The door: checks what comes from Python, allocates, and sends the walk (walk.pyx) through time.

Letters: T steps, B batch, I input, H hidden, G gates, V rows of an embedding, D directions. Nothing
below checks again.
"""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport fr_barrier, fr_rows
from fastrnn._kernels.runtime cimport Buffer, Workspace, run
from fastrnn._kernels.walk cimport (
    Job,
    Pass,
    at,
    h_at,
    pack_forward,
    pack_weights,
    plan,
    rows_of,
    sized,
    walk_backward,
    walk_forward,
)

cnp.import_array()

# The order is that of fr_cell in fastrnn.h.
CELLS = ("rnn_tanh", "rnn_relu", "rnn_sigmoid", "lstm", "gru")
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "rnn_sigmoid": 1, "lstm": 4, "gru": 3}
CELLS_WITH_C = ("lstm",)

# What backward can hand out of its way; see there.
FLOW = ("dh", "dc", "gates", "dgates_x", "dgates_h", "x", "h")

# Input projections of this many bytes are made at once: they are still in L2 when they are used.
cdef ptrdiff_t CHUNK_BYTES = 256 * 1024


INT32 = np.dtype(np.int32)


cdef bint is_flat(object array, object dtype, tuple shape, bint writeable):
    """Whether an array is all that check_flat asks for, found out quickly."""
    cdef int i
    if not (isinstance(array, np.ndarray) and isinstance(dtype, np.dtype)
            and cnp.PyArray_TYPE(array) == (<cnp.dtype> dtype).type_num
            and (cnp.PyArray_ISCARRAY(array) if writeable else cnp.PyArray_ISCARRAY_RO(array))
            and cnp.PyArray_NDIM(array) == len(shape)):
        return False
    for i in range(len(shape)):
        if cnp.PyArray_DIM(array, i) != shape[i]:
            return False
    return True


cdef check(str name, object array, object dtype, tuple shape, bint writeable=False):
    """Refuse what the kernels could not read or write safely. Rows must be contiguous."""
    if is_flat(array, dtype, shape, writeable):
        return
    if not isinstance(array, np.ndarray) or array.dtype != dtype or not array.dtype.isnative:
        raise TypeError(f"{name}: expected a native {np.dtype(dtype)} array, got "
                        f"{getattr(array, 'dtype', type(array).__name__)}")
    if array.shape != shape:
        raise ValueError(f"{name}: has shape {array.shape}, expected {shape}")
    if writeable and not array.flags.writeable:
        raise ValueError(f"{name}: is read-only, expected a writeable array")
    cdef ptrdiff_t size = array.itemsize
    if array.size and (array.shape[array.ndim - 1] > 1 and array.strides[array.ndim - 1] != size
                       or not array.flags.aligned
                       or any(stride % size for stride in array.strides)):
        raise ValueError(f"{name}: has strides {array.strides}, expected aligned contiguous rows")


cdef check_flat(str name, object array, object dtype, tuple shape, bint writeable=False):
    if is_flat(array, dtype, shape, writeable):
        return
    check(name, array, dtype, shape, writeable)
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: has strides {array.strides}, expected a C-contiguous array")


cdef void *pointer(object array) noexcept:
    return NULL if array is None else cnp.PyArray_DATA(array)


cdef void load_state(char *slot, object source, const Pass *p):
    """Fill one (B, pitch) slot from a (B, H) array, or with zeros."""
    cdef ptrdiff_t b
    cdef const char *data = <const char *> pointer(source)
    memset(slot, 0, p.B * p.pitch * p.table.itemsize)
    if data != NULL:
        for b in range(p.B):
            memcpy(at(slot, b * p.pitch, p), at(data, b * p.H, p), p.H * p.table.itemsize)


cdef void store_state(object target, const char *slot, const Pass *p):
    """Copy one (B, pitch) slot into a (B, H) array."""
    cdef ptrdiff_t b
    cdef char *data = <char *> pointer(target)
    for b in range(p.B):
        memcpy(at(data, b * p.H, p), at(slot, b * p.pitch, p), p.H * p.table.itemsize)


cdef fr_rows grid(object array, ptrdiff_t offset, bint reverse):
    """The (T, B) grid of rows of a 3-D array, from column `offset` on, in the order of the walk."""
    cdef ptrdiff_t size = array.itemsize, T = array.shape[0]
    cdef ptrdiff_t outer = array.strides[0] // size, inner = array.strides[1] // size
    cdef char *base = <char *> pointer(array) + offset * size
    if reverse and T > 0:
        base += (T - 1) * outer * size
        outer = -outer
    return rows_of(base, array.shape[1], outer, inner)


cdef check_weights(tuple weights, int gates, object dtype, ptrdiff_t I, ptrdiff_t H, bint gradient):
    cdef str d = "d" if gradient else ""
    w_ih, w_hh, b_ih, b_hh = weights
    check_flat(d + "weight_ih", w_ih, dtype, (gates * H, I), gradient)
    check_flat(d + "weight_hh", w_hh, dtype, (gates * H, H), gradient)
    for name, bias in ((d + "bias_ih", b_ih), (d + "bias_hh", b_hh)):
        if bias is not None:
            check_flat(name, bias, dtype, (gates * H,), gradient)


cdef class Carver:
    """Lays several arrays of one dtype into one buffer, each at a multiple of 64 bytes."""
    cdef object total
    cdef object itemsize

    def __cinit__(self, itemsize):
        self.total = 0
        self.itemsize = itemsize

    cdef object add(self, object elements):
        offset = self.total
        self.total = offset + (elements * self.itemsize + 63) // 64 * 64
        return offset


cdef object packed_sizes(const Pass *p):
    """Elements of wx, wh, start (panels are read whole: a margin of one panel) and bias_n."""
    width = int(p.panels) * p.cell.vectors * p.table.lanes
    margin = p.cell.vectors * p.table.lanes
    return (width * p.I, width * p.H, int(p.row) + margin, int(p.pitch) + margin)


cdef class Packed:
    def __cinit__(self, int kind, tuple weights, tuple halves=None):
        """`halves`: the words (G*H, (I+1)//2) and (G*H, (H+1)//2) of bfloat16.pair, or None."""
        w_ih, w_hh = weights[0], weights[1]
        cdef Pass p = sized(kind, w_hh.dtype, 0, 0, w_ih.shape[1], w_hh.shape[1])
        check_weights(weights, p.cell.gates, w_hh.dtype, p.I, p.H, False)
        carver = Carver(p.table.itemsize)
        offsets = [carver.add(size) for size in packed_sizes(&p)]
        self.half = halves is not None
        if self.half:
            if p.cell.forward_half == NULL:
                raise TypeError(f"weights: are {w_hh.dtype}, expected float32 for bfloat16 words")
            check_flat("halves[0]", halves[0], np.float32, (p.cell.gates * p.H, (p.I + 1) // 2))
            check_flat("halves[1]", halves[1], np.float32, (p.cell.gates * p.H, (p.H + 1) // 2))
            offsets += [carver.add((n + 1) // 2 * int(p.panels) * p.cell.vectors * p.table.lanes)
                        for n in (p.I, p.H)]
        self.buffer = Buffer(carver.total)
        self.w_ih = w_ih
        self.table = p.table
        self.cell = p.cell
        self.kind = kind
        self.input_size = p.I
        self.hidden_size = p.H
        self.wx = p.wx = self.buffer.data + <ptrdiff_t> offsets[0]
        self.wh = p.wh = self.buffer.data + <ptrdiff_t> offsets[1]
        self.start = p.start = self.buffer.data + <ptrdiff_t> offsets[2]
        self.bias_n = p.bias_n = self.buffer.data + <ptrdiff_t> offsets[3]
        p.w_ih = pointer(w_ih)
        p.w_hh = pointer(w_hh)
        p.b_ih = pointer(weights[2])
        p.b_hh = pointer(weights[3])
        with nogil:
            pack_forward(&p, 0, p.panels, True)
        if self.half:
            self.wx_half = self.buffer.data + <ptrdiff_t> offsets[4]
            self.wh_half = self.buffer.data + <ptrdiff_t> offsets[5]
            p.w_ih = pointer(halves[0])
            p.w_hh = pointer(halves[1])
            with nogil:
                pack_weights(&p, self.wx_half, p.w_ih, (p.I + 1) // 2, 0, p.panels)
                pack_weights(&p, self.wh_half, p.w_hh, (p.H + 1) // 2, 0, p.panels)


cdef class Tape:
    """What backward needs of one forward call. Serves one backward."""
    cdef Pass passes[2]
    cdef int count
    cdef Buffer buffer
    cdef Workspace workspace
    cdef object kept      # the arrays that the passes point into
    cdef tuple weights
    cdef tuple reverse
    cdef ptrdiff_t embedding_rows  # V
    cdef object used_rows          # (U,) the rows of the embedding, or symbols, that x names
    cdef readonly object dtype
    cdef readonly int kind     # index into CELLS
    cdef readonly tuple shape  # (T, B, I, H)
    cdef readonly bint used

    def release(self):
        """Give the memory back; backward is not possible any more."""
        self.used = True
        if self.buffer is not None:
            self.workspace.give(self.buffer)
        self.buffer = self.kept = self.weights = None

    @property
    def nbytes(self):
        """Bytes of the tape."""
        return 0 if self.buffer is None else self.buffer.nbytes

    @property
    def biases(self):
        """Whether forward had bias_ih and bias_hh."""
        return self.passes[0].b_ih != NULL, self.passes[0].b_hh != NULL

    @property
    def x_shape(self):
        """Shape of dx: (T, B, I), or (V, I) of an embedding; () of one-hot symbols."""
        T, B, I, _ = self.shape
        if self.used_rows is None:
            return (T, B, I)
        return (self.embedding_rows, I) if self.embedding_rows else ()


cdef tuple named_rows(index, ptrdiff_t V):
    """Number the rows that `index` names from 0 to U-1; return (the new index, those rows (U,)).

    All work on symbols is then over the U of them in use: a large vocabulary costs nothing, and
    what stands in the other rows, be it NaN, touches nothing.
    """
    cdef ptrdiff_t i, n = index.size, U = 0
    numbers = np.full(V, -1, np.int32)  # (V,) -1, later the row's number among those in use
    renumbered = np.empty_like(index)
    cdef const int32_t *source = <const int32_t *> pointer(index)
    cdef int32_t *target = <int32_t *> pointer(renumbered)
    cdef int32_t *number = <int32_t *> pointer(numbers)
    for i in range(n):
        if not 0 <= source[i] < V:
            raise IndexError(f"x: has the row number {source[i]}, expected 0 to {V - 1}")
        number[source[i]] = 0
    for i in range(V):
        if number[i] == 0:
            number[i] = <int32_t> U
            U += 1
    for i in range(n):
        target[i] = number[source[i]]
    return renumbered, np.flatnonzero(numbers >= 0).astype(np.int32)


def forward(int kind, x, index, tuple weights, tuple reverse, h0, c0, y, hn, cn, bint training,
            Workspace workspace):
    """Run one layer over a sequence.

    Parameters
    ----------
    kind : index into CELLS
    x : (T, B, I), contiguous rows; with `index`, the embedding (V, I), or None: one-hot rows
    index : None, or int32 (T, B): rows of x, or where the 1 is among I
    weights : per direction (weight_ih, weight_hh, bias_ih, bias_hh) or a Packed
    reverse : per direction, whether it walks from T-1 to 0
    h0, c0 : (D, B, H) or None
    y : out (T, B, D*H), contiguous rows
    hn, cn : out (D, B, H); cn is None for cells without c
    training : whether to keep a tape

    Returns
    -------
    Tape or None
    """
    cdef int D = len(weights), d
    cdef Packed packed
    dtype = y.dtype
    first = weights[0]
    if isinstance(first, Packed):
        I, H = first.input_size, first.hidden_size
    else:
        I, H = first[0].shape[1], first[1].shape[1]
    T, B = x.shape[:2] if index is None else index.shape
    cdef bint one_hot = x is None

    cdef Tape tape = Tape()
    cdef Pass *p
    cdef Pass like = sized(kind, dtype, T, B, 0 if one_hot else I, H)
    if D not in (1, 2) or len(reverse) != D:
        raise ValueError(f"weights: {D} directions, expected 1 or 2")
    if index is None:
        check("x", x, dtype, (T, B, I))
    else:
        check_flat("x", index, INT32, (T, B))
        if not one_hot:
            check("embedding", x, dtype, (x.shape[0], I))
            tape.embedding_rows = x.shape[0]
        index, tape.used_rows = named_rows(index, I if one_hot else tape.embedding_rows)
        if not one_hot:
            x = x[tape.used_rows]
    check("y", y, dtype, (T, B, D * H), True)
    check_flat("hn", hn, dtype, (D, B, H), True)
    if h0 is not None:
        check_flat("h0", h0, dtype, (D, B, H))
    if like.cell.has_c:
        check_flat("cn", cn, dtype, (D, B, H), True)
        if c0 is not None:
            check_flat("c0", c0, dtype, (D, B, H))

    # sizes in Python's integers: they do not overflow
    rows = T * B
    chunk = max(1, CHUNK_BYTES // max(1, <object> like.row * like.table.itemsize * B),
                -(-24 // max(1, B)))
    like.chunk = chunk
    like.training = training
    like.keeps_h = training and not like.cell.has_c
    like.V = 0 if index is None else len(tape.used_rows)
    like.columns = I
    steps = T if training else (min(T, chunk) if index is None else 0)
    slots_h = T + 1 if like.keeps_h else 3
    slots_c = T + 1 if training else 1
    tape_part = Carver(like.table.itemsize)
    pack_part = Carver(like.table.itemsize)
    offsets = []
    for d in range(D):
        offsets.append((
            tape_part.add(steps * B * <object> like.row),
            tape_part.add(slots_h * B * <object> like.pitch),
            tape_part.add(slots_c * B * <object> like.pitch if like.cell.has_c else 0),
            tape_part.add(<object> like.V * like.row),
            None if isinstance(weights[d], Packed)
            else [pack_part.add(size) for size in packed_sizes(&like)],
        ))
    tape.buffer = workspace.take(tape_part.total)
    cdef Buffer packs = workspace.take(pack_part.total) if pack_part.total else None

    for d in range(D):
        p = &tape.passes[d]
        p[0] = like
        gates, h, c, symbols, pack = offsets[d]
        p.gates = tape.buffer.data + <ptrdiff_t> gates
        p.h = tape.buffer.data + <ptrdiff_t> h
        p.c = tape.buffer.data + <ptrdiff_t> c
        p.symbols = tape.buffer.data + <ptrdiff_t> symbols
        if pack is None:
            packed = weights[d]
            if (packed.kind != kind or packed.table != like.table or packed.input_size != I
                    or packed.hidden_size != H):
                raise ValueError("weights: packed for another cell, dtype, size or instruction set")
            p.packed = True
            p.w_ih = pointer(packed.w_ih)
            p.wx = packed.wx
            p.wh = packed.wh
            p.start = packed.start
            p.bias_n = packed.bias_n
            p.half = packed.half
            p.wx_half = packed.wx_half
            p.wh_half = packed.wh_half
        else:
            check_weights(weights[d], p.cell.gates, dtype, I, H, False)
            p.w_ih = pointer(weights[d][0])
            p.w_hh = pointer(weights[d][1])
            p.b_ih = pointer(weights[d][2])
            p.b_hh = pointer(weights[d][3])
            p.wx = packs.data + <ptrdiff_t> pack[0]
            p.wh = packs.data + <ptrdiff_t> pack[1]
            p.start = packs.data + <ptrdiff_t> pack[2]
            p.bias_n = packs.data + <ptrdiff_t> pack[3]
        if index is None:
            p.x = grid(x, 0, reverse[d])
        else:
            if one_hot:
                p.column = <const int32_t *> pointer(tape.used_rows)
            else:
                p.x = rows_of(pointer(x), p.V, 0, x.strides[0] // x.itemsize)
            p.index = <const int32_t *> pointer(index)
            p.index_t = p.B
            if reverse[d]:
                p.index += (p.T - 1) * p.B
                p.index_t = -p.B
        out = grid(y, d * H, reverse[d])
        p.y = <char *> out.base
        p.y_t = out.outer
        p.y_b = out.inner
        load_state(p.h, None if h0 is None else h0[d], p)
        if p.cell.has_c:
            load_state(p.c, None if c0 is None else c0[d], p)

    cdef Job job
    memset(&job, 0, sizeof(job))
    job.passes = tape.passes
    job.count = D
    cdef int threads
    if rows > 0:
        with nogil:
            threads = plan(&job)
            run(walk_forward, &job, threads)
    if packs is not None:
        workspace.give(packs)
    for d in range(D):
        p = &tape.passes[d]
        store_state(hn[d], h_at(p, T, 0), p)
        if p.cell.has_c:
            store_state(cn[d], at(p.c, (T if training else 0) * B * p.pitch, p), p)
    if not training:
        workspace.give(tape.buffer)
        return None
    tape.count = D
    tape.workspace = workspace
    tape.kept = (x, index)
    tape.weights = weights
    tape.reverse = reverse
    tape.dtype = dtype
    tape.kind = kind
    tape.shape = (T, B, I, H)
    return tape


cdef object padded(const char *data, const Pass *p, object dtype, ptrdiff_t steps,
                   ptrdiff_t slots):
    """A view (steps, B, slots, H) of rows of `pitch` elements."""
    cdef cnp.npy_intp[4] shape = [steps, p.B, slots, p.pitch]
    rows = cnp.PyArray_SimpleNewFromData(4, shape, dtype.num, <void *> data)
    return rows[..., :p.H]


cdef object from_tape(Tape tape, str name):
    """Copy an array (T, B, D, G, H), or h (T, B, D, H), in torch's order of time and gates."""
    cdef int d
    cdef const Pass *p
    parts = []
    for d in range(tape.count):
        p = &tape.passes[d]
        if name == "h":
            rows = padded(p.h if p.keeps_h else p.c, p, tape.dtype, p.T, 1)[:, :, 0]
        elif name == "gates" and p.cell.plain:  # the one gate is h
            rows = padded(p.h, p, tape.dtype, p.T + 1, 1)[1:]
        else:
            slots = ([p.cell.slot_h[i] for i in range(p.cell.gates)] if name == "dgates_h"
                     else np.argsort([p.cell.order_x[i] for i in range(p.cell.gates)]))
            rows = padded(p.gates, p, tape.dtype, p.T, p.cell.slots)[:, :, slots]
        parts.append(rows[::-1] if tape.reverse[d] else rows)
    return np.stack(parts, axis=2)


def backward(Tape tape, dy, dhn, dcn, dx, dh0, dc0, tuple grads, tuple flow=()):
    """Backpropagate one forward call through time; the tape is used up.

    Parameters
    ----------
    tape : of a forward call with training
    dy : (T, B, D*H), contiguous rows, or None: zero
    dhn, dcn : (D, B, H) or None: zero
    dx : out, like forward's x, or None: not wanted, or one-hot
    dh0, dc0 : out (D, B, H); dc0 is None for cells without c
    grads : per direction (weight_ih, weight_hh, bias_ih, bias_hh), which accumulate
    flow : names of FLOW: what to hand out besides

    Returns
    -------
    dict of the arrays named in `flow`, in torch's order of time, also of the reverse direction
        dh, dc : (T, B, D, H), the whole derivatives with respect to h(t) and c(t)
        gates : (T, B, D, G, H), after their activations
        dgates_x, dgates_h : (T, B, D, G, H), gradients of W_ih x(t) + b_ih and of
            W_hh h(t-1) + b_hh; they differ for n of a GRU alone, where r comes between
        x : forward's, no copy; of one-hot rows the index (T, B)
        h : (T, B, D, H), the state that step t began with: h(t-1), in reverse h(t+1)
    """
    cdef int D = tape.count, d, G
    cdef Pass *p
    if tape.used:
        raise RuntimeError("backward: this tape was used already, a tape serves one backward")
    T, B, I, H = tape.shape
    dtype = tape.dtype
    G = tape.passes[0].cell.gates
    if dy is not None:
        check("dy", dy, dtype, (T, B, D * H))
    if dhn is not None:
        check_flat("dhn", dhn, dtype, (D, B, H))
    check_flat("dh0", dh0, dtype, (D, B, H), True)
    if tape.passes[0].cell.has_c:
        check_flat("dc0", dc0, dtype, (D, B, H), True)
        if dcn is not None:
            check_flat("dcn", dcn, dtype, (D, B, H))
    if dx is not None:
        if not tape.x_shape:
            raise ValueError("dx: is an array, expected None: x was one-hot")
        check("dx", dx, dtype, tape.x_shape, True)
    if len(grads) != D:
        raise ValueError(f"grads: {len(grads)} directions, expected {D}")
    for d in range(D):
        check_weights(grads[d], G, dtype, I, H, True)
    for name in flow:
        if name not in FLOW or name == "dc" and not tape.passes[0].cell.has_c:
            raise ValueError(f"flow: has {name!r}, expected names out of {FLOW}, dc of an LSTM "
                             "alone")
    out = {name: np.empty((T, B, D * H), dtype) for name in flow if name in ("dh", "dc")}
    if "gates" in flow:
        out["gates"] = from_tape(tape, "gates")  # the walk overwrites them

    cdef Job job
    memset(&job, 0, sizeof(job))
    job.passes = tape.passes
    job.count = D
    cdef int threads = plan(&job)
    job.scratch_size = tape.passes[0].table.gradient_scratch
    carver = Carver(tape.passes[0].table.itemsize)
    scratch_at = carver.add(threads * job.scratch_size // <object> tape.passes[0].table.itemsize)
    offsets = []
    for d in range(D):
        p = &tape.passes[d]
        width = <object> p.table.lanes * p.table.plain_vectors
        offsets.append((
            carver.add(B * <object> p.pitch),
            carver.add(B * <object> p.pitch if p.cell.has_c else 0),
            carver.add(p.panels_h * width * G * H),
            carver.add(p.panels_i * width * G * H if dx is not None else 0),
        ))
    cdef Buffer buffer = tape.workspace.take(carver.total)
    whole, used = dx, tape.used_rows
    if dx is not None and used is not None:
        dx = np.empty((len(used), I), dtype)
    job.scratch = buffer.data + <ptrdiff_t> scratch_at
    for d in range(D):
        p = &tape.passes[d]
        dh, dc, wb, wi = offsets[d]
        p.dh = buffer.data + <ptrdiff_t> dh
        p.dc = buffer.data + <ptrdiff_t> dc
        p.wb = buffer.data + <ptrdiff_t> wb
        p.wi = buffer.data + <ptrdiff_t> wi
        load_state(p.dh, None if dhn is None else dhn[d], p)
        if p.cell.has_c:
            load_state(p.dc, None if dcn is None else dcn[d], p)
        p.dy = NULL
        if dy is not None:
            rows = grid(dy, d * H, tape.reverse[d])
            p.dy = <char *> rows.base
            p.dy_t = rows.outer
            p.dy_b = rows.inner
        if "dh" in out:
            rows = grid(out["dh"], d * H, tape.reverse[d])
            p.dh_out = <char *> rows.base
            p.out_t = rows.outer
            p.out_b = rows.inner
        if "dc" in out:
            rows = grid(out["dc"], d * H, tape.reverse[d])
            p.dc_out = <char *> rows.base
            p.out_t = rows.outer
            p.out_b = rows.inner
        p.need_dx = dx is not None
        p.add_dx = d > 0
        if dx is not None and used is not None:
            p.dx = rows_of(pointer(dx), p.V, 0, dx.strides[0] // dx.itemsize)
        elif dx is not None:
            p.dx = grid(dx, 0, tape.reverse[d])
        p.dw_ih = pointer(grads[d][0])
        p.dw_hh = pointer(grads[d][1])
        p.db_ih = pointer(grads[d][2])
        p.db_hh = pointer(grads[d][3])
        memset(&p.barrier, 0, sizeof(fr_barrier))

    tape.used = True
    with nogil:
        run(walk_backward, &job, threads)
    for d in range(D):
        p = &tape.passes[d]
        store_state(dh0[d], p.dh, p)
        if p.cell.has_c:
            store_state(dc0[d], p.dc, p)
    if dx is not whole:
        whole.fill(0)
        whole[used] = dx
    for name in flow:
        if name in ("dh", "dc"):
            out[name] = out[name].reshape(T, B, D, H)
        elif name == "x":
            x, index = tape.kept
            out["x"] = x if index is None else (used if x is None else x)[index]
        elif name != "gates":
            out[name] = from_tape(tape, name)
    tape.workspace.give(buffer)
    tape.release()
    return out
