"""One step at a time, everything allocated beforehand: what `layer.stream()` returns.

Letters: L layers, B batch, I input, H hidden, V symbols, K inputs and N outputs of the head.
"""

import reprlib

import numpy as np

cimport cython
cimport numpy as cnp
from libc.math cimport INFINITY
from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport fr_forward, fr_product
from fastrnn._kernels.check cimport Carver, as_array, check_out, numbers, parts_of_state
from fastrnn._kernels.packed cimport Head, Packed, checked_groups, packed_sizes
from fastrnn._kernels.runtime cimport Buffer, pitch_of, run, threads_for
from fastrnn._kernels.stack cimport Layer, Stack, is_matrix, overlap, walk_stack
from fastrnn._kernels.walk cimport (
    Pass,
    forward_panels,
    project_symbols,
    rows_of,
    sized,
    unpack_halves,
)

cnp.import_array()


# A step that reads fewer bytes of weights than this (about 30 us from a shared cache) stays on the
# caller's thread: between two steps the others may have gone to sleep.
cdef ptrdiff_t HEAVY = 2 * 1024 * 1024

# The rows of an embedding of at most so many symbols are multiplied by W_ih beforehand.
cdef ptrdiff_t TABLE_ROWS = 4096


# ---- the stream ---------------------------------------------------------------------------------

cdef class Stream:
    """A stack of layers, and a head if there is one, that advances one time step per call.

    Calling it, ``step(x, out=None)``, takes x (B, I), or whole numbers (B,) if it was made for
    symbols, and returns the last layer's h (B, H), with a head its outputs (B, N): a new array, or
    `out` if one was given. The weights are those of the moment when it was made. One stream serves
    one thread at a time; a copy has a state of its own.

    Parameters
    ----------
    groups : list of lists of Packed
        One list for each recurrent layer object: cells of one kind and size.
    batch_size : int
        B.
    dtype : float32 or float64
    embedding : array (V, I), optional
        Steps take rows of it.
    one_hot : bool
        Steps take whole numbers below I, for a row with its 1 there.
    head : tuple, optional
        weight (N, H) and bias (N,) or None.
    nested : bool
        Whether the state is a tuple with one state for each group.
    name : str
        What errors begin with.

    Attributes
    ----------
    num_layers, batch_size, input_size, hidden_size, output_size : int
        L, B, I, H of the last layer, N (without a head H).
    dtype : numpy.dtype
    """

    cdef str name
    cdef tuple groups          # of tuples of Packed
    cdef Buffer buffer         # layers, states, symbols of a step
    cdef Layer *layers         # NULL before the stream is complete
    cdef Stack stack
    cdef Head head
    cdef bint heavy            # worth several threads
    cdef readonly int num_layers
    cdef readonly ptrdiff_t batch_size, input_size, hidden_size, output_size
    cdef readonly object dtype
    cdef int typenum
    cdef ptrdiff_t itemsize
    cdef bint nested
    cdef bint indexed          # x is symbols
    cdef ptrdiff_t V           # how many there are
    cdef object embedding      # (V, I) a copy, or None
    cdef Buffer symbols        # (V, S*pitch): the symbols behind the first layer's projection
    cdef ptrdiff_t symbols_row
    cdef int32_t *row_numbers  # (B,)
    cdef char *rows            # (B, I): rows of an embedding that is too large for a table
    cdef bint busy             # a call is at work, or the stream is not complete

    def __cinit__(self, *_, **__):
        self.busy = True

    def __init__(self, groups, batch_size, dtype, embedding=None, bint one_hot=False, head=None,
                 bint nested=False, str name="Stream"):
        cdef Packed first, last
        if self.layers != NULL:
            raise RuntimeError(f"{name}: this stream is complete, expected a new one")
        if (isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer))
                or batch_size < 1):
            raise ValueError(f"{name}: batch_size is {reprlib.repr(batch_size)}, "
                             "expected a whole number of at least 1")
        dtype = np.dtype(dtype)
        groups = checked_groups(name, groups, dtype)
        if not nested and len(groups) > 1:
            raise ValueError(f"{name}: {len(groups)} groups, expected 1 with nested=False")
        if embedding is not None and one_hot:
            raise ValueError(f"{name}: embedding is given and one_hot is True, expected one of "
                             "them")
        first, last = groups[0][0], groups[len(groups) - 1][0]
        self.name = name
        self.groups = groups
        self.dtype = dtype
        self.typenum = dtype.num
        self.itemsize = dtype.itemsize
        self.nested = nested
        self.input_size = first.input_size
        self.hidden_size = self.output_size = last.hidden_size
        self.head = None if head is None else Head(name, head, dtype, self.hidden_size)
        if head is not None:
            self.output_size = self.head.outputs
        self.indexed = False
        self.embedding = self.symbols = None
        if embedding is not None or one_hot:
            self.set_symbols(embedding, first)
        self.place(int(batch_size))

    cdef object set_symbols(self, embedding, Packed first):
        """Make the table of the rows of an embedding, or, without, of one-hot rows."""
        cdef Pass p = sized(first.kind, self.dtype, 1, 1, first.input_size, first.hidden_size)
        cdef Buffer wx
        self.indexed = True
        self.V = first.input_size
        if embedding is not None:
            shape = np.shape(embedding)
            if len(shape) != 2 or not 1 <= shape[0] < 2**31 or shape[1] != first.input_size:
                raise ValueError(f"{self.name}: embedding has shape {shape}, "
                                 f"expected (V, {first.input_size})")
            embedding = numbers(f"{self.name}: embedding", embedding, self.dtype, shape)
            self.embedding = embedding.copy()
            self.V = shape[0]
        if embedding is not None and self.V > TABLE_ROWS:
            return
        p.V = self.V
        p.start = first.start
        self.symbols = Buffer(<object> self.V * p.row * self.itemsize)
        self.symbols_row = p.row
        p.symbols = self.symbols.data
        every = np.arange(self.V, dtype=np.int32)
        if embedding is None:
            columns = first.columns(np.arange(first.input_size, dtype=np.int64))
            p.column = p.gather_at = <const int32_t *> cnp.PyArray_DATA(every)
            p.columns = p.gather_width = self.V
            p.gathered = cnp.PyArray_DATA(columns)
        else:
            rows = self.embedding
            p.x = rows_of(cnp.PyArray_DATA(rows), self.V, 0, first.input_size)
            p.wx = first.wx
            if first.half:
                wx = Buffer(packed_sizes(&p)[0] * self.itemsize)
                p.wx = wx.data
                p.wx_half = first.wx_half
                unpack_halves(&p, 0, p.panels)
        with nogil:
            project_symbols(&p, 0, self.V)

    cdef object place(self, object B):
        """Lay out the layers and their states, zeros, for a batch of B; the stream is complete."""
        cdef Packed packed
        cdef Layer *layers
        cdef fr_forward *step = NULL
        cdef ptrdiff_t state, before = 0
        cdef ptrdiff_t numbers_at, rows_at
        cdef int i = 0, count = 0
        nbytes = 0 if self.head is None else self.head.buffer.nbytes
        carver = Carver(1)
        for group in self.groups:
            count += len(group)
        carver.add(count * <object> sizeof(Layer))
        numbers_at = carver.add(B * 4 if self.indexed else 0)
        rows_at = carver.add(B * self.input_size * self.itemsize
                             if self.indexed and self.symbols is None else 0)
        states_at = carver.bytes
        for group in self.groups:
            packed = group[0]
            carver.add(3 * len(group) * B * pitch_of(packed.hidden_size, self.itemsize)
                       * self.itemsize)
        cdef Buffer buffer = Buffer(carver.bytes)
        memset(buffer.data, 0, buffer.nbytes)
        layers = <Layer *> buffer.data
        cdef char *slot = buffer.data + <ptrdiff_t> states_at
        for group in self.groups:
            for packed in group:
                layers[i].forward = (packed.cell.forward_half if packed.half
                                     else packed.cell.forward)
                step = &layers[i].step
                step.rows = B
                step.panel1 = forward_panels(packed.table, packed.cell, packed.hidden_size)
                step.hidden = packed.hidden_size
                step.pitch = pitch_of(packed.hidden_size, self.itemsize)
                state = step.rows * step.pitch * self.itemsize
                step.h_prev = slot
                step.h = slot + state
                step.c = slot + 2 * state
                step.c_prev = step.c
                slot += 3 * state
                step.start = packed.start
                step.wx = packed.wx_half if packed.half else packed.wx
                step.wh = packed.wh_half if packed.half else packed.wh
                step.bias_n = packed.bias_n
                step.input = packed.input_size
                step.x_row = before if i else packed.input_size
                before = step.pitch
                nbytes += packed.buffer.nbytes
                i += 1
        if self.head is None:
            step.y_row = self.hidden_size
        else:
            self.place_head(step.rows, step.pitch)
        self.row_numbers = <int32_t *> (buffer.data + numbers_at)
        self.rows = buffer.data + rows_at
        step = &layers[0].step
        if self.symbols is not None:
            step.start = self.symbols.data
            step.start_row = self.symbols_row
            step.index = self.row_numbers
            step.input = 0
        elif self.indexed:
            step.x = self.rows
        self.heavy = nbytes >= HEAVY
        self.batch_size = B
        self.num_layers = count
        self.buffer = buffer
        self.stack.count = count
        self.stack.layers = self.layers = layers
        self.busy = False

    cdef void place_head(self, ptrdiff_t B, ptrdiff_t pitch) noexcept:
        cdef fr_product *g = &self.stack.head
        self.stack.has_head = True
        self.stack.product = self.head.table.product_plain
        g.a = rows_of(NULL, B, 0, pitch)
        g.c = rows_of(NULL, B, 0, self.head.outputs)
        g.runs = 1
        g.run = self.head.inputs
        g.b = self.head.weight
        g.bias = self.head.bias
        g.row1 = B
        g.panel1 = self.head.panels
        g.n = self.head.outputs

    @cython.final
    cdef inline int enter(self) except -1:
        """Take the stream for one call; whoever does sets `busy` back."""
        if self.busy:
            self.refuse()
        self.busy = True
        return 0

    cdef object refuse(self):
        if self.layers == NULL:
            raise RuntimeError(f"{type(self).__name__}: this stream was never completed, make one "
                               "by layer.stream()")
        raise RuntimeError(f"{self.name}: this stream is in use by another thread, make one stream "
                           "per thread")

    def __call__(self, x, out=None):
        """Advance one step.

        Parameters
        ----------
        x : array (B, I), or whole numbers (B,) of a stream made for symbols
        out : array (B, H), or (B, N) with a head, optional
            Written to and returned.

        Returns
        -------
        array (B, H) or (B, N)
        """
        cdef cnp.npy_intp[2] shape
        cdef fr_forward *step
        cdef void *h
        cdef int i
        if not (self.indexed
                or is_matrix(x, self.typenum, self.batch_size, self.input_size)):
            if self.layers == NULL:
                self.refuse()
            x = numbers(f"{self.name}: x", x, self.dtype, (self.batch_size, self.input_size))
        if out is None:
            shape[0] = self.batch_size
            shape[1] = self.output_size
            out = cnp.PyArray_SimpleNew(2, shape, self.typenum)
        else:
            if not (is_matrix(out, self.typenum, self.batch_size, self.output_size)
                    and cnp.PyArray_ISCARRAY(out)):
                check_out(f"{self.name}: out", out, self.dtype,
                          (self.batch_size, self.output_size))
            if not self.indexed and overlap(<object> x, <object> out):
                x = x.copy()
        step = &self.layers[0].step
        if self.indexed:
            self.take_symbols(x)
        else:
            if self.busy:  # only now: what came before may have let another thread run
                self.refuse()
            step.x = cnp.PyArray_DATA(x)
        if self.stack.has_head:
            self.stack.head.c.base = cnp.PyArray_DATA(out)
        else:
            self.layers[self.num_layers - 1].step.y = cnp.PyArray_DATA(out)
        self.busy = True  # nothing fails until it is False again
        with nogil:
            for i in range(1, self.num_layers):
                self.layers[i].step.x = self.layers[i - 1].step.h
            run(walk_stack, &self.stack, threads_for(INFINITY) if self.heavy else 1)
            for i in range(self.num_layers):
                step = &self.layers[i].step
                h = step.h
                step.h = <void *> step.h_prev
                step.h_prev = h
                step.down ^= 1  # what this step has just read is still in the cache
        self.busy = False
        return out

    @cython.final
    cdef object take_symbols(self, x):
        """Copy the numbers of x into `row_numbers`, check the copy, and look up large rows."""
        cdef ptrdiff_t i, size = self.input_size * self.itemsize
        cdef int typenum = cnp.PyArray_TYPE(x) if cnp.PyArray_CheckExact(x) else -1
        cdef bint good = True
        cdef cnp.int64_t number
        given = x
        if not ((typenum == cnp.NPY_INT64 or typenum == cnp.NPY_INT32)
                and cnp.PyArray_NDIM(x) == 1 and cnp.PyArray_ISCARRAY_RO(x)
                and cnp.PyArray_DIM(x, 0) == self.batch_size):
            given, x = self.whole_numbers(x)
            typenum = cnp.NPY_INT64
        if self.busy:
            self.refuse()
        for i in range(self.batch_size):
            if typenum == cnp.NPY_INT64:
                number = (<const cnp.int64_t *> cnp.PyArray_DATA(x))[i]
            else:
                number = (<const int32_t *> cnp.PyArray_DATA(x))[i]
            self.row_numbers[i] = <int32_t> number
            good = (good and self.row_numbers[i] == number and self.row_numbers[i] >= 0
                    and self.row_numbers[i] < self.V)
        if not good:
            raise IndexError(f"{self.name}: x has numbers from {given.min()} to {given.max()}, "
                             f"expected 0 to {self.V - 1}: {self.symbols_name()}")
        if self.symbols is None:
            for i in range(self.batch_size):
                memcpy(self.rows + i * size,
                       <const char *> cnp.PyArray_DATA(self.embedding) + self.row_numbers[i] * size,
                       size)

    cdef str symbols_name(self):
        return "one-hot symbols" if self.embedding is None else "rows of the embedding"

    cdef tuple whole_numbers(self, x):
        """Return x as an array, and the same as int64 (B,)."""
        array = as_array(f"{self.name}: x", x, "whole numbers")
        if array.size and array.dtype.kind not in "iu":
            raise TypeError(f"{self.name}: x is {array.dtype}, expected whole numbers: "
                            f"{self.symbols_name()}")
        if array.shape != (self.batch_size,):
            raise ValueError(f"{self.name}: x has shape {array.shape}, "
                             f"expected ({self.batch_size},)")
        return array, np.require(array, np.int64, ("C", "A"))

    # ---- state ------------------------------------------------------------------------------

    def reset(self):
        """Set the state to zero."""
        self.enter()
        try:
            self.put_states(None)
        finally:
            self.busy = False

    @property
    def state(self):
        """The state after the latest step, a copy; it can be set, None means zeros.

        h (L, B, H), or (h, c) for an LSTM; with several layer objects a tuple of these.
        """
        self.enter()
        try:
            return self.states()
        finally:
            self.busy = False

    @state.setter
    def state(self, state):
        self.enter()
        try:
            self.put_states(self.checked_states(state))
        finally:
            self.busy = False

    cdef object states(self):
        cdef Packed packed
        cdef int i = 0, k = 0
        states = [None] * len(self.groups)
        for group in self.groups:
            packed = group[0]
            h = np.empty((len(group), self.batch_size, packed.hidden_size), self.dtype)
            self.move(h, i, len(group), False, False)
            states[k] = h
            if packed.cell.has_c:
                c = np.empty_like(h)
                self.move(c, i, len(group), True, False)
                states[k] = h, c
            i += len(group)
            k += 1
        return tuple(states) if self.nested else states[0]

    cdef list checked_states(self, object state):
        """Return (h or None, c or None) of every group."""
        cdef Packed packed
        cdef int k = 0, count = len(self.groups)
        checked = [None] * count
        if self.nested and state is not None:
            if not isinstance(state, (tuple, list)):
                raise TypeError(f"{self.name}: state is of type {type(state).__name__}, expected a "
                                f"tuple of {count}")
            if len(state) != count:
                raise ValueError(f"{self.name}: state is a {type(state).__name__} of {len(state)}, "
                                 f"expected a tuple of {count}")
        for group in self.groups:
            packed = group[0]
            of, name = state, f"{self.name}: state"
            if self.nested and state is not None:
                of, name = state[k], f"{self.name}: state[{k}]"
            shape = (len(group), self.batch_size, packed.hidden_size)
            checked[k] = parts_of_state(name, of, packed.cell.has_c, self.dtype, shape)
            k += 1
        return checked

    cdef object put_states(self, list states):
        """Set h and c of every group; None means zeros."""
        cdef Packed packed
        cdef int i = 0, k = 0
        for group in self.groups:
            packed = group[0]
            h, c = (None, None) if states is None else states[k]
            self.move(h, i, len(group), False, True)
            if packed.cell.has_c:
                self.move(c, i, len(group), True, True)
            i += len(group)
            k += 1

    cdef void move(self, array, int first, int count, bint c, bint into) noexcept:
        """Copy h or c of `count` layers between `array` (count, B, H) and the padded states."""
        cdef char *data = NULL if array is None else <char *> cnp.PyArray_DATA(array)
        cdef char *row
        cdef const fr_forward *step
        cdef ptrdiff_t size, b
        cdef int i
        for i in range(first, first + count):
            step = &self.layers[i].step
            size = step.hidden * self.itemsize
            for b in range(self.batch_size):
                row = <char *> (step.c if c else <void *> step.h_prev)
                row += b * step.pitch * self.itemsize
                if data == NULL:
                    memset(row, 0, size)
                elif into:
                    memcpy(row, data + ((i - first) * self.batch_size + b) * size, size)
                else:
                    memcpy(data + ((i - first) * self.batch_size + b) * size, row, size)

    # ---- copies -----------------------------------------------------------------------------

    def copy(self):
        """Return a stream with the same weights and a copy of the state."""
        cdef Stream twin = type(self).__new__(type(self))
        cdef ptrdiff_t size
        cdef int i
        self.enter()
        try:
            twin.name = self.name
            twin.groups = self.groups
            twin.head = self.head
            twin.input_size = self.input_size
            twin.hidden_size = self.hidden_size
            twin.output_size = self.output_size
            twin.dtype = self.dtype
            twin.typenum = self.typenum
            twin.itemsize = self.itemsize
            twin.nested = self.nested
            twin.indexed = self.indexed
            twin.V = self.V
            twin.embedding = self.embedding
            twin.symbols = self.symbols
            twin.symbols_row = self.symbols_row
            twin.place(self.batch_size)
            for i in range(self.num_layers):
                size = self.batch_size * self.layers[i].step.pitch * self.itemsize
                memcpy(<void *> twin.layers[i].step.h_prev, self.layers[i].step.h_prev, size)
                memcpy(twin.layers[i].step.c, self.layers[i].step.c, size)
        finally:
            self.busy = False
        return twin

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def __reduce__(self):
        """Pickle the weights of the moment when the stream was made, and the state."""
        self.enter()
        try:
            head = None if self.head is None else self.head.unpacked()
            one_hot = self.indexed and self.embedding is None
            arguments = (self.groups, self.batch_size, self.dtype, self.embedding, one_hot, head,
                         self.nested, self.name)
            return type(self), arguments, self.states()
        finally:
            self.busy = False

    def __setstate__(self, state):
        self.state = state
