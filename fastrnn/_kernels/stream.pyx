"""One step at a time, everything allocated beforehand: what `layer.stream()` returns.

Letters: L layers, B batch, I input, H hidden, V symbols.
"""

import numpy as np

from fastrnn import _checks

cimport numpy as cnp
from libc.math cimport INFINITY
from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport fr_barrier, fr_forward
from fastrnn._kernels.runtime cimport (
    Buffer,
    flush_denormals,
    pitch_of,
    restore,
    run,
    threads_for,
    wait,
)
from fastrnn._kernels.packed cimport Packed
from fastrnn._kernels.walk cimport Pass, forward_panels, part, project_symbols, rows_of, sized

cnp.import_array()


# A step that reads fewer bytes of weights than this (about 30 us from a shared cache) stays on the
# caller's thread: between two steps the others may have gone to sleep.
cdef ptrdiff_t HEAVY = 2 * 1024 * 1024


cdef struct Layer:
    fr_forward step
    void (*forward)(const fr_forward *) noexcept nogil


cdef struct Stack:
    Layer *layers
    int count
    fr_barrier barrier


cdef void walk_stack(void *arg, int rank, int size) noexcept nogil:
    """One step of all layers, the hidden units split between threads."""
    cdef Stack *stack = <Stack *> arg
    cdef fr_forward step
    cdef unsigned state = flush_denormals()
    cdef int i
    for i in range(stack.count):
        step = stack.layers[i].step
        step.panel0 = part(step.panel1, rank, size)
        step.panel1 = part(step.panel1, rank + 1, size)
        stack.layers[i].forward(&step)
        wait(&stack.barrier, size)
    restore(state)


cdef inline bint overlap(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether two C-contiguous arrays share memory."""
    cdef const char *a0 = cnp.PyArray_BYTES(a)
    cdef const char *b0 = cnp.PyArray_BYTES(b)
    return a0 < b0 + cnp.PyArray_NBYTES(b) and b0 < a0 + cnp.PyArray_NBYTES(a)


cdef class Stream:
    """A stack of layers that advances one time step per call. Made by ``layer.stream()``.

    Calling it, ``step(x, out=None)``, takes x (B, I) and returns the last layer's h (B, H): a new
    array, or `out` if one was given. The weights are those of the moment it was made. One stream
    serves one thread at a time.
    """

    cdef str owner
    cdef list packs            # keeps the packed weights alive
    cdef Buffer buffer         # layers, states
    cdef Layer *layers
    cdef Stack stack
    cdef bint heavy            # worth several threads
    cdef char *start           # of the states in `buffer`
    cdef readonly int num_layers
    cdef readonly ptrdiff_t batch_size, input_size, hidden_size
    cdef readonly object dtype
    cdef int typenum
    cdef bint has_c
    cdef ptrdiff_t pitch, itemsize
    cdef bint indexed          # x is symbols
    cdef ptrdiff_t V           # how many there are
    cdef object embedding      # kept if it is too large for a table
    cdef Buffer symbols        # (V, S*pitch): the symbols behind the first layer's projection
    cdef bint busy

    def __init__(self, str owner, list packs, ptrdiff_t batch_size, dtype, embedding=None,
                 bint one_hot=False):
        cdef Packed first = packs[0], packed
        cdef fr_forward *step
        cdef int i
        self.owner = owner
        self.packs = packs
        self.num_layers = len(packs)
        self.batch_size = batch_size
        self.input_size = first.input_size
        self.hidden_size = first.hidden_size
        self.dtype = np.dtype(dtype)
        self.typenum = self.dtype.num
        self.itemsize = self.dtype.itemsize
        self.has_c = first.cell.has_c
        self.pitch = pitch_of(self.hidden_size, self.itemsize)
        cdef ptrdiff_t head = (self.num_layers * sizeof(Layer) + 63) // 64 * 64
        state = <object> self.pitch * self.itemsize * batch_size * self.num_layers
        self.buffer = Buffer(head + 3 * state)
        self.layers = <Layer *> self.buffer.data
        self.stack.layers = self.layers
        self.stack.count = self.num_layers
        weights = sum((<object> p.input_size + p.hidden_size) * p.hidden_size for p in packs)
        self.heavy = weights * first.cell.gates * self.itemsize // (2 if first.half else 1) >= HEAVY
        self.start = self.buffer.data + head
        memset(self.buffer.data, 0, self.buffer.nbytes)
        for i in range(self.num_layers):
            packed = packs[i]
            self.layers[i].forward = (packed.cell.forward_half if packed.half
                                      else packed.cell.forward)
            step = &self.layers[i].step
            step.rows = batch_size
            step.panel1 = forward_panels(packed.table, packed.cell, packed.hidden_size)
            step.hidden = packed.hidden_size
            step.pitch = self.pitch
            step.h_prev = self.slot(i, 0)
            step.h = self.slot(i, 1)
            step.c = self.slot(i, 2)
            step.c_prev = step.c
            step.start = packed.start
            step.wx = packed.wx_half if packed.half else packed.wx
            step.wh = packed.wh_half if packed.half else packed.wh
            step.bias_n = packed.bias_n
            step.input = packed.input_size
            step.x_row = self.pitch if i else packed.input_size
        self.layers[self.num_layers - 1].step.y_row = self.hidden_size
        if embedding is not None or one_hot:
            self.set_symbols(embedding, first)

    cdef char *slot(self, int layer, int which) noexcept:
        """One of a layer's three (B, pitch) states: h, the other h, c."""
        return self.start + (layer * 3 + which) * self.batch_size * self.pitch * self.itemsize

    cdef set_symbols(self, embedding, Packed first):
        """Make the table of the rows of an embedding, or, without, of one-hot rows."""
        cdef Pass p = sized(first.kind, self.dtype, 1, 1, first.input_size, first.hidden_size)
        cdef fr_forward *step = &self.layers[0].step
        self.indexed = True
        self.V = first.input_size if embedding is None else embedding.shape[0]
        if self.V > 4096 and embedding is not None:
            self.embedding = embedding.copy()
            return
        p.V = self.V
        p.wx = first.wx
        columns = first.columns(np.arange(first.input_size)); p.gathered = cnp.PyArray_DATA(columns); p.gather_width = self.V
        p.start = first.start
        self.symbols = Buffer(<object> self.V * p.row * self.itemsize)
        p.symbols = self.symbols.data
        every = np.arange(self.V, dtype=np.int32)
        if embedding is None:
            p.gather_at = p.column = <const int32_t *> cnp.PyArray_DATA(every)
            p.columns = self.V
        else:
            p.x = rows_of(cnp.PyArray_DATA(embedding), self.V, 0,
                          embedding.strides[0] // self.itemsize)
        with nogil:
            project_symbols(&p, 0, self.V)
        step.start = self.symbols.data
        step.start_row = p.row
        step.input = 0

    def __call__(self, x, out=None):
        cdef cnp.npy_intp[2] shape
        cdef const void *source
        cdef void *target
        cdef fr_forward *step
        cdef int i
        if self.indexed:
            x = self.rows_of_embedding(x)
        elif not (cnp.PyArray_Check(x) and cnp.PyArray_TYPE(x) == self.typenum
                  and cnp.PyArray_NDIM(x) == 2 and cnp.PyArray_ISCARRAY_RO(x)
                  and cnp.PyArray_DIM(x, 0) == self.batch_size
                  and cnp.PyArray_DIM(x, 1) == self.input_size):
            x = np.ascontiguousarray(_checks.array(
                self.owner, "x", x, self.dtype, (self.batch_size, self.input_size)))
        if out is None:
            shape[0] = self.batch_size
            shape[1] = self.hidden_size
            out = cnp.PyArray_SimpleNew(2, shape, self.typenum)
        elif not (cnp.PyArray_Check(out) and cnp.PyArray_TYPE(out) == self.typenum
                  and cnp.PyArray_NDIM(out) == 2 and cnp.PyArray_ISCARRAY(out)
                  and cnp.PyArray_DIM(out, 0) == self.batch_size
                  and cnp.PyArray_DIM(out, 1) == self.hidden_size):
            _checks.output(self.owner, "out", out, self.dtype,
                           (self.batch_size, self.hidden_size))
        if self.busy:
            raise RuntimeError(f"{self.owner}: this stream is in use by another thread, "
                               "make one stream per thread")
        self.busy = True
        source = cnp.PyArray_DATA(x)
        target = cnp.PyArray_DATA(out)
        if overlap(<object> x, <object> out):
            x = x.copy()
            source = cnp.PyArray_DATA(x)
        with nogil:
            self.layers[self.num_layers - 1].step.y = target
            step = &self.layers[0].step
            if step.input:
                step.x = source
            else:
                step.index = <const int32_t *> source
            for i in range(1, self.num_layers):
                self.layers[i].step.x = self.layers[i - 1].step.h
            run(walk_stack, &self.stack, threads_for(INFINITY) if self.heavy else 1)
            for i in range(self.num_layers):
                step = &self.layers[i].step
                target = step.h
                step.h = <void *> step.h_prev
                step.h_prev = target
                step.down ^= 1  # what this step has just read is still in the cache
        self.busy = False
        return out

    cdef rows_of_embedding(self, x):
        x = _checks.rows(self.owner, x, (self.batch_size,), self.V)
        return x if self.embedding is None else self.embedding[x]

    def reset(self):
        """Set the state to zero."""
        cdef int i
        for i in range(self.num_layers):
            for which in range(3):
                memset(self.slot(i, which), 0, self.batch_size * self.pitch * self.itemsize)

    @property
    def state(self):
        """The state after the latest step: h (L, B, H), or (h, c) for an LSTM. Copies; settable."""
        h = np.empty((self.num_layers, self.batch_size, self.hidden_size), self.dtype)
        self.move(h, False, False)
        if not self.has_c:
            return h
        c = np.empty_like(h)
        self.move(c, True, False)
        return h, c

    @state.setter
    def state(self, state):
        shape = (self.num_layers, self.batch_size, self.hidden_size)
        h, c = _checks.states(self.owner, "state", state, self.has_c, self.dtype, shape)
        if h is None:
            h = np.zeros(shape, self.dtype)
        if self.has_c:
            self.move(np.zeros(shape, self.dtype) if c is None else c, True, True)
        self.move(h, False, True)

    cdef move(self, array, bint c, bint into):
        """Copy all layers' h or c between `array` (L, B, H) and the padded states."""
        cdef char *data = <char *> cnp.PyArray_DATA(array)
        cdef char *row
        cdef ptrdiff_t size = self.hidden_size * self.itemsize, b
        cdef int i
        for i in range(self.num_layers):
            for b in range(self.batch_size):
                row = <char *> self.layers[i].step.h_prev
                if c:
                    row = <char *> self.layers[i].step.c
                row += b * self.pitch * self.itemsize
                if into:
                    memcpy(row, data, size)
                else:
                    memcpy(data, row, size)
                data += size
