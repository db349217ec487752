"""The layers of a stream and the states of its rows: where they lie, how they are read and set.

Letters: L layers, B batch, I input, H hidden, n rows of a call that names some.
"""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport fr_barrier, fr_forward, fr_product
from fastrnn._kernels.check cimport Carver, as_array
from fastrnn._kernels.packed cimport Packed
from fastrnn._kernels.packed_program cimport PackedProgram
from fastrnn._kernels.runtime cimport Buffer, pitch_of
from fastrnn._kernels.stack cimport Layer, is_index
from fastrnn._kernels.stream_program cimport (
    StateRows,
    checked_parts,
    lend_program,
    place_output,
    place_program,
    place_workers,
    state_rows,
    states_of,
    take_back_program,
    work_of,
)
from fastrnn._kernels.walk cimport forward_panels, rows_of

cnp.import_array()

# A step that reads fewer bytes of weights than this (about 30 us from a shared cache) stays on the
# caller's thread: between two steps the others may have gone to sleep.
cdef ptrdiff_t HEAVY = 2 * 1024 * 1024

# A step that reads fewer bytes of weights, counted once for four rows, takes about a microsecond.
# It keeps the GIL: to release it and take it again takes 0.03 us.
cdef ptrdiff_t LIGHT = 160 * 1024


cdef class Rows:
    """The states of some rows of a stream: ``step.rows[index]``, to read and to set.

    An index is whole numbers (n,) from 0 to B - 1, booleans (B,), or a slice. Reading gives what
    ``step.state`` gives, with n rows in place of B, as copies; a row may be named several times.
    Setting takes the same, or None for zeros; there each row may be named once. Only the named rows
    are read or written, so the cost does not depend on B.
    """

    cdef States states

    def __init__(self):
        raise TypeError("Rows: expected step.rows of a stream")

    def __getitem__(self, index):
        cdef States states = self.states
        cdef ptrdiff_t n
        states.enter()
        try:
            array = states.row_array(index)
            copy = np.empty(cnp.PyArray_SIZE(array), np.int32)
            n = states.copy_rows(array, <int32_t *> cnp.PyArray_DATA(copy), False)
            return states.states(n, <const int32_t *> cnp.PyArray_DATA(copy))
        finally:
            states.busy = False

    def __setitem__(self, index, state):
        cdef States states = self.states
        cdef ptrdiff_t n
        states.enter()
        try:
            n = states.choose(index)
            states.put_states(states.checked_states(state, n), n, states.chosen)
        finally:
            states.busy = False


cdef class States:
    def __cinit__(self, *_, **__):
        self.busy = True

    cdef object place(self, object B):
        """Lay out the layers and their states, zeros, for a batch of B; the stream is complete."""
        cdef Packed packed
        cdef Layer *layers
        cdef fr_forward *step = NULL
        cdef ptrdiff_t state, before = 0
        cdef ptrdiff_t numbers_at, rows_at, chosen_at, marks_at
        cdef int i = 0, count = 0
        memory = []
        nbytes = 0 if self.head is None else self.head.buffer.nbytes
        carver = Carver(1)
        for group in self.groups:
            count += len(group)
        carver.add(count * <object> sizeof(Layer))
        numbers_at = carver.add(B * 4 if self.indexed else 0)
        rows_at = carver.add(B * self.input_size * self.itemsize
                             if self.indexed and self.symbols is None else 0)
        chosen_at = carver.add(B * 4)
        marks_at = carver.add(B)
        states_at = carver.bytes
        for group in self.groups:
            if isinstance(group[0], PackedProgram):
                continue  # it has memory of its own
            packed = group[0]
            carver.add((5 if packed.cell.has_c else 3) * len(group) * B
                       * pitch_of(packed.hidden_size, self.itemsize) * self.itemsize)
        cdef Buffer buffer = Buffer(carver.bytes)
        memset(buffer.data, 0, buffer.nbytes)
        layers = <Layer *> buffer.data
        cdef char *slot = buffer.data + <ptrdiff_t> states_at
        for group in self.groups:
            for one in group:
                step = &layers[i].step
                step.x_row = before if i else self.input_size
                if isinstance(one, PackedProgram):
                    memory.append(place_program(&layers[i], one, B))
                    nbytes += (<PackedProgram> one).buffer.nbytes + work_of(&layers[i])
                    before = step.pitch
                    i += 1
                    continue
                packed = one
                layers[i].forward = (packed.cell.forward_half if packed.half
                                     else packed.cell.forward)
                step.rows = B
                step.panel1 = forward_panels(packed.table, packed.cell, packed.hidden_size)
                step.hidden = packed.hidden_size
                step.pitch = pitch_of(packed.hidden_size, self.itemsize)
                state = step.rows * step.pitch * self.itemsize
                step.h_prev = slot
                step.h = slot + state
                layers[i].h_rows = slot + 2 * state
                slot += 3 * state
                if packed.cell.has_c:
                    step.c_prev = step.c = slot
                    layers[i].c_rows = slot + state
                    slot += 2 * state
                step.start = packed.start
                step.wx = packed.wx_half if packed.half else packed.wx
                step.wh = packed.wh_half if packed.half else packed.wh
                step.bias_n = packed.bias_n
                step.input = packed.input_size
                before = step.pitch
                nbytes += packed.buffer.nbytes
                i += 1
        if self.head is None:
            step.y_row = self.hidden_size
        else:
            self.place_head(step.rows, step.pitch)
        self.row_numbers = <int32_t *> (buffer.data + numbers_at)
        self.rows_of_x = buffer.data + rows_at
        self.chosen = <int32_t *> (buffer.data + chosen_at)
        self.marks = buffer.data + marks_at
        step = &layers[0].step
        if self.symbols is not None:
            step.start = self.symbols.data
            step.start_row = self.symbols_row
            step.index = self.row_numbers
            step.input = 0
        elif self.indexed:
            step.x = self.rows_of_x
        self.nbytes = nbytes
        self.heavy = nbytes >= HEAVY
        self.light_rows = 4 * LIGHT // nbytes if nbytes <= LIGHT else 0
        self.batch_size = B
        self.num_layers = count
        self.buffer = buffer
        self.memory = memory
        if memory:
            self.work = place_workers(layers, count, 1)
            self.workers = 1
        self.stack.count = count
        self.stack.layers = self.layers = layers
        self.has_programs = bool(memory)
        self.busy = False

    cdef object staff(self, int threads):
        """Let programs be run by so many threads at least; the stream is taken."""
        if self.has_programs and self.workers < threads:
            self.work = place_workers(self.layers, self.num_layers, threads)
            self.workers = threads

    cdef void prepare_programs(self) noexcept nogil:
        """Set where the next step puts outputs, and the barriers."""
        cdef int i
        for i in range(self.num_layers):
            if self.layers[i].run != NULL:
                place_output(&self.layers[i])
                memset(&self.layers[i].run.barrier, 0, sizeof(fr_barrier))

    cdef void turn_programs(self, ptrdiff_t steps) noexcept nogil:
        """The states lie now where this many steps have put them."""
        cdef int i
        for i in range(self.num_layers):
            self.layers[i].turn = (self.layers[i].turn + steps) & 1

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

    cdef int enter(self) except -1:
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

    # ---- which rows -------------------------------------------------------------------------

    cdef object row_array(self, rows):
        """Return row numbers, a mask or a slice as an array that `copy_rows` can read."""
        if isinstance(rows, slice):
            return np.arange(*rows.indices(self.batch_size))
        array = as_array(f"{self.name}: rows", rows, "whole numbers")
        if array.dtype.kind == "b" and array.shape != (self.batch_size,):
            raise ValueError(f"{self.name}: rows has shape {array.shape}, expected booleans "
                             f"({self.batch_size},) or whole numbers (n,)")
        if array.ndim != 1:
            raise ValueError(f"{self.name}: rows has shape {array.shape}, expected whole numbers "
                             f"(n,) or booleans ({self.batch_size},)")
        if array.dtype.kind == "b":
            return np.flatnonzero(array)
        if array.size and array.dtype.kind not in "iu":
            raise TypeError(f"{self.name}: rows is {array.dtype}, expected whole numbers (n,) or "
                            f"booleans ({self.batch_size},)")
        if array.size and array.dtype.kind == "u" and array.max() >= self.batch_size:
            self.refuse_rows(array)  # before numbers above those of int64 come out negative
        return np.require(array, np.int64, ("C", "A"))

    cdef object refuse_rows(self, array):
        raise IndexError(f"{self.name}: rows has numbers from {array.min()} to {array.max()}, "
                         f"expected 0 to {self.batch_size - 1}")

    cdef ptrdiff_t copy_rows(self, array, int32_t *target, bint distinct) except -1:
        """Copy row numbers (n,) into `target` (n,) and check the copy; return n."""
        cdef ptrdiff_t i, n = cnp.PyArray_DIM(array, 0), fine = 0
        cdef bint wide = cnp.PyArray_TYPE(array) == cnp.NPY_INT64, twice = False
        cdef cnp.int64_t row
        if distinct and n > self.batch_size:
            raise ValueError(f"{self.name}: rows has {n} numbers, expected at most "
                             f"{self.batch_size} different ones")
        for i in range(n):
            if wide:
                row = (<const cnp.int64_t *> cnp.PyArray_DATA(array))[i]
            else:
                row = (<const int32_t *> cnp.PyArray_DATA(array))[i]
            if not 0 <= row < self.batch_size:
                break
            target[i] = <int32_t> row
            fine += 1
            if distinct:
                twice = twice or self.marks[row]
                self.marks[row] = 1
        if distinct:
            for i in range(fine):
                self.marks[target[i]] = 0
        if fine < n:
            self.refuse_rows(array)
        if twice:
            raise ValueError(f"{self.name}: rows names a row twice, expected different rows")
        return n

    cdef ptrdiff_t choose(self, rows) except -1:
        """Copy the numbers of different rows into `chosen`; return how many."""
        if not (is_index(rows) and cnp.PyArray_NDIM(rows) == 1):
            rows = self.row_array(rows)
        return self.copy_rows(rows, self.chosen, True)

    cdef void lend(self, ptrdiff_t n) noexcept nogil:
        """Copy the states of the n chosen rows and let the layers run on these copies."""
        cdef Layer *layer
        cdef fr_forward *step
        cdef ptrdiff_t size, b
        cdef int i
        for i in range(self.num_layers):
            layer = &self.layers[i]
            if layer.run != NULL:
                lend_program(layer, self.chosen, n)
                continue
            step = &layer.step
            size = step.pitch * self.itemsize
            layer.h_all = <void *> step.h_prev
            layer.c_all = step.c
            for b in range(n):
                memcpy(<char *> layer.h_rows + b * size,
                       <const char *> layer.h_all + self.chosen[b] * size, size)
            step.h_prev = layer.h_rows
            if layer.c_rows != NULL:
                for b in range(n):
                    memcpy(<char *> layer.c_rows + b * size,
                           <const char *> layer.c_all + self.chosen[b] * size, size)
                step.c_prev = step.c = layer.c_rows
            step.rows = n
        self.stack.head.row1 = n

    cdef void take_back(self, ptrdiff_t n, bint stepped) noexcept nogil:
        """Undo `lend` and write the states back; h lies where a step puts it, or in h_prev."""
        cdef Layer *layer
        cdef fr_forward *step
        cdef const char *h
        cdef ptrdiff_t size, b
        cdef int i
        for i in range(self.num_layers):
            layer = &self.layers[i]
            if layer.run != NULL:
                take_back_program(layer, self.chosen, n)
                continue
            step = &layer.step
            size = step.pitch * self.itemsize
            h = <const char *> step.h if stepped else <const char *> step.h_prev
            step.h_prev = layer.h_all
            for b in range(n):
                memcpy(<char *> layer.h_all + self.chosen[b] * size, h + b * size, size)
            if layer.c_rows != NULL:
                step.c_prev = step.c = layer.c_all
                for b in range(n):
                    memcpy(<char *> layer.c_all + self.chosen[b] * size,
                           <const char *> layer.c_rows + b * size, size)
            step.rows = self.batch_size
            step.down ^= 1  # what this step has just read is still in the cache
        self.stack.head.row1 = self.batch_size

    # ---- states -----------------------------------------------------------------------------

    def reset(self, rows=None):
        """Set the state to zero.

        Parameters
        ----------
        rows : whole numbers (n,), booleans (B,) or slice, optional
            Whose state; by default that of all rows.
        """
        cdef ptrdiff_t n
        self.enter()
        try:
            if rows is None:
                self.put_states(None, self.batch_size, NULL)
            else:
                n = self.choose(rows)
                self.put_states(None, n, self.chosen)
        finally:
            self.busy = False

    @property
    def rows(self):
        """The states of some rows: ``step.rows[index]`` can be read and set.

        See Rows. A beam search goes on from the rows `parents` of its beams by
        ``step.rows[beams] = step.rows[parents]``.
        """
        cdef Rows rows = Rows.__new__(Rows)
        if self.layers == NULL:
            self.refuse()
        rows.states = self
        return rows

    @property
    def state(self):
        """The state after the latest step, a copy; it can be set, None means zeros.

        h (L, B, H), or (h, c) for an LSTM; a tuple of arrays of a cell with several states. With
        several layer objects a tuple of these.
        """
        self.enter()
        try:
            return self.states(self.batch_size, NULL)
        finally:
            self.busy = False

    @state.setter
    def state(self, state):
        self.enter()
        try:
            self.put_states(self.checked_states(state, self.batch_size), self.batch_size, NULL)
        finally:
            self.busy = False

    cdef object states(self, ptrdiff_t n, const int32_t *rows):
        """Return copies of the states of `rows` (n,), NULL: of all n."""
        cdef int i = 0, k = 0, s
        states = [None] * len(self.groups)
        for group in self.groups:
            parts = [np.empty((len(group), n, width), self.dtype)
                     for _, width in states_of(group[0])]
            for s in range(len(parts)):
                self.move(parts[s], i, len(group), s, False, n, rows)
            states[k] = parts[0] if len(parts) == 1 else tuple(parts)
            i += len(group)
            k += 1
        return tuple(states) if self.nested else states[0]

    cdef list checked_states(self, object state, ptrdiff_t n):
        """Return the array or None of each state of every group, for n rows."""
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
            of, name = state, f"{self.name}: state"
            if self.nested and state is not None:
                of, name = state[k], f"{self.name}: state[{k}]"
            checked[k] = checked_parts(name, of, group[0], self.dtype, len(group), n)
            k += 1
        return checked

    cdef object put_states(self, list states, ptrdiff_t n, const int32_t *rows):
        """Set the states of every group, of `rows` (n,), NULL: of all n; None means zeros."""
        cdef int i = 0, k = 0, s
        for group in self.groups:
            for s in range(len(states_of(group[0]))):
                self.move(None if states is None else states[k][s], i, len(group), s, True, n, rows)
            i += len(group)
            k += 1

    cdef void move(self, array, int first, int count, int s, bint into, ptrdiff_t n,
                   const int32_t *rows) noexcept:
        """Copy state s of `count` layers between `array` (count, n, width) and the padded rows."""
        cdef StateRows of
        cdef char *data = NULL if array is None else <char *> cnp.PyArray_DATA(array)
        cdef char *row
        cdef ptrdiff_t size, b
        cdef int i
        for i in range(first, first + count):
            of = state_rows(&self.layers[i], s)
            size = of.width * self.itemsize
            for b in range(n):
                row = of.base + (b if rows == NULL else <ptrdiff_t> rows[b]) * (
                    of.pitch * self.itemsize)
                if data == NULL:
                    memset(row, 0, size)
                elif into:
                    memcpy(row, data + ((i - first) * n + b) * size, size)
                else:
                    memcpy(data + ((i - first) * n + b) * size, row, size)
