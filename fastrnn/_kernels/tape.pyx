"""The tape of one forward call: where it lies, how it is copied, and what can be read from it.

Letters: T steps, B batch, I input, H hidden, G gates, D directions, V rows of an embedding, U rows
of it in use.
"""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport fr_barrier
from fastrnn._kernels.check cimport check, check_flat, named_rows, take_rows
from fastrnn._kernels.runtime cimport Buffer, Workspace
from fastrnn._kernels.walk cimport Pass, at

cnp.import_array()

INT32 = np.dtype(np.int32)


cdef give_back(Workspace workspace, Buffer buffer):
    """Give a buffer back to its workspace; where even a list's place is missing, free it."""
    try:
        workspace.give(buffer)
    except MemoryError:
        pass


cdef void copy_rows(char *target, ptrdiff_t stride, object places, const char *source,
                    ptrdiff_t source_stride, object taken, ptrdiff_t N, ptrdiff_t size) noexcept:
    """target[places[n]] = source[taken[n]] for n < N, rows of `size` bytes; None: n itself."""
    cdef const int32_t *to = NULL if places is None else <const int32_t *> cnp.PyArray_DATA(places)
    cdef const int32_t *of = NULL if taken is None else <const int32_t *> cnp.PyArray_DATA(taken)
    cdef ptrdiff_t n
    for n in range(N):
        memcpy(target + (to[n] if to != NULL else n) * stride,
               source + (of[n] if of != NULL else n) * source_stride, size)


cdef inline void move(char **pointer, ptrdiff_t distance) noexcept:
    pointer[0] += distance


cdef tuple checked_input(BaseTape tape, object x, object index, ptrdiff_t I, object dtype,
                         tuple rows):
    """Check the input of a forward call, and note it; return x, index and the layout they have.

    tape : its `time` and `source` are set
    x : (*rows, I), or with `index` an embedding (V, I), or None: one-hot rows
    index : None, or int32 (*rows,); the index that is returned names the rows in use by their
        numbers, and x has these rows alone
    """
    source = tape.source
    if index is None:
        check("x", x, dtype, (*rows, I))
        return x, None, source
    check_flat("x", index, INT32, rows)
    if x is not None:
        check("embedding", x, dtype, (x.shape[0], I))
        tape.embedding_rows = x.shape[0]
    if tape.time is not None:  # padding names nothing
        places, source = tape.time.rows(source), "walk"
        index = index if places is None else take_rows(index, places)
    index, tape.used_rows = named_rows(index, I if x is None else tape.embedding_rows)
    return (None if x is None else take_rows(x, tape.used_rows)), index, source


cdef check_outer(BaseTape tape, object dy, object dx, tuple grads):
    """Check what backward is given at both ends, and that there are gradients of each direction."""
    if dy is not None:
        check("dy", dy, tape.dtype, tape.y_shape)
    if dx is not None:
        if not tape.x_shape:
            raise ValueError("dx: is an array, expected None: x was one-hot")
        check("dx", dx, tape.dtype, tape.x_shape, True)
    if len(grads) != tape.count:
        raise ValueError(f"grads: {len(grads)} directions, expected {tape.count}")


cdef tuple copies_of(object arrays):
    """Return copies of arrays, None as it is."""
    return tuple([None if a is None else a.copy() for a in arrays])


cdef object numbers_at(BaseTape tape, char *data, object count):
    """Return a view (count,) of a tape's memory, valid as long as the tape has it."""
    cdef cnp.npy_intp[1] shape
    shape[0] = count
    return cnp.PyArray_SimpleNewFromData(1, shape, tape.dtype.num, data)


cdef class BaseTape:
    def release(self):
        """Give the memory back; backward is not possible any more."""
        buffer = self.buffer
        self.used = True
        self.buffer = self.kept = self.weights = self.shadow = None
        if buffer is not None:
            give_back(self.workspace, buffer)

    def __dealloc__(self):  # with the stable ABI Cython calls no __del__
        # The garbage collector may have been here.
        if self.buffer is not None and self.workspace is not None:
            give_back(self.workspace, self.buffer)

    cdef ptrdiff_t copy_to(self, BaseTape twin) except? -1:
        """Copy all but the passes; return how many bytes the twin's memory lies beyond this one's.

        Raises
        ------
        RuntimeError
            If this tape was used or released.
        """
        cdef Buffer source = self.buffer, target
        if source is None:
            raise RuntimeError("copy: this tape was used already, a tape serves one backward")
        target = self.workspace.take(source.nbytes)
        memcpy(target.data, source.data, <ptrdiff_t> source.nbytes)
        twin.count = self.count
        twin.workspace = self.workspace
        twin.kept = self.kept
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
        twin.shadow = None if self.shadow is None else self.shadow.copy()
        return target.data - source.data

    def __reduce__(self):
        raise TypeError(f"a {type(self).__name__} cannot be pickled, copy() makes another")

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        """Return a copy with weights of its own, as a copied layer has them; x is the same."""
        twin = self.copy()
        (<BaseTape> twin).own_weights()
        if twin.shadow is not None:
            (<BaseTape> twin.shadow.tape).own_weights()
        return twin

    cdef own_weights(self):
        """Copy the weights, and point to the copies."""
        raise NotImplementedError

    cdef own(self, list weights):
        """Keep weights; the caller's stay alive: what only forward uses still points there."""
        if len(self.kept) == 3:
            self.kept = (*self.kept, self.weights)
        self.weights = tuple(weights)

    @property
    def nbytes(self):
        """Bytes of the tape."""
        return 0 if self.buffer is None else self.buffer.nbytes

    @property
    def symbols(self):
        """Whether x was symbols."""
        return self.used_rows is not None

    @property
    def x_shape(self):
        """Shape of dx: (T, B, I), or (V, I) of an embedding; () of one-hot symbols.

        With lengths or resets (M, I), M rows of the layout of x.
        """
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

    cdef object places(self, bint reverse):
        """Return where the walk's rows are in a grid (T, B, ...), int32; None: in their order."""
        cdef ptrdiff_t t, b, T, B
        if self.time is not None:
            return self.time.rows("time", reverse)
        if not reverse:
            return None
        T, B = self.shape[:2]
        places = np.empty(T * B, np.int32)
        for t in range(T):
            for b in range(B):
                (<int32_t *> cnp.PyArray_DATA(places))[t * B + b] = <int32_t> ((T - 1 - t) * B + b)
        return places

    cdef object input(self):
        """Return a copy of x, (T, B, I); for one-hot symbols the index (T, B). Padding is zero."""
        x, index = self.kept[:2]
        if index is not None:
            x = take_rows(self.used_rows if not self.embedding_rows else x, index)
        if self.time is None:
            return x.copy() if index is None else x
        T, B = self.shape[:2]
        padded = np.zeros((T, B, *x.shape[1:]), x.dtype)
        copy_rows(<char *> cnp.PyArray_DATA(padded), cnp.PyArray_STRIDE(padded, 1),
                  self.time.rows("time"), <const char *> cnp.PyArray_DATA(x),
                  cnp.PyArray_STRIDE(x, 0),
                  None if index is not None else self.time.rows(self.source), self.time.N,
                  cnp.PyArray_ITEMSIZE(x) * (cnp.PyArray_DIM(x, 1) if x.ndim > 1 else 1))
        return padded


cdef class Tape(BaseTape):
    def copy(self):
        """Return a tape with memory of its own, which serves one more backward.

        Raises
        ------
        RuntimeError
            If this tape was used or released.
        """
        cdef Tape twin = Tape()
        cdef Pass *p
        cdef int d
        cdef ptrdiff_t distance = self.copy_to(twin)
        twin.kind = self.kind
        for d in range(self.count):
            p = &twin.passes[d]
            p[0] = self.passes[d]
            move(&p.gates, distance)
            move(&p.h, distance)
            move(&p.c, distance)
            move(&p.symbols, distance)
            memset(&p.barrier, 0, sizeof(fr_barrier))
        return twin

    cdef own_weights(self):
        cdef int d
        own = []
        for d in range(self.count):
            arrays = copies_of(self.weights[d])
            self.passes[d].w_ih = cnp.PyArray_DATA(arrays[0])
            self.passes[d].w_hh = cnp.PyArray_DATA(arrays[1])
            own.append(arrays)
        self.own(own)

    def memory(self):
        """Return the gates and states that backward reads, as flat views; for checked.py."""
        cdef Pass *p
        cdef int d
        found = []
        for d in range(self.count):
            p = &self.passes[d]
            states = (p.times.R + p.times.N) * <object> p.pitch
            found.append(numbers_at(self, p.gates, p.times.N * <object> p.row))
            found.append(numbers_at(self, p.h if p.keeps_h else p.c, states))
        return found

    @property
    def biases(self):
        """Whether forward had bias_ih and bias_hh."""
        return self.passes[0].b_ih != NULL, self.passes[0].b_hh != NULL

    cdef object recorded(self, str name):
        """Copy gates, dgates_x or dgates_h (T, B, D, G, H), or h (T, B, D, H).

        The order of time and of gates is torch's. Padding is zero.
        """
        cdef int d, g, D = self.count, G = self.passes[0].cell.gates
        cdef const Pass *p
        cdef ptrdiff_t size, stride
        T, B, _, H = self.shape
        make = np.empty if self.time is None else np.zeros
        copied = make((T, B, D, H) if name == "h" else (T, B, D, G, H), self.dtype)
        cdef char *target
        for d in range(D):
            p = &self.passes[d]
            size = p.H * p.table.itemsize
            stride = cnp.PyArray_STRIDE(copied, 1)
            places = self.places(self.reverse[d])
            target = <char *> cnp.PyArray_DATA(copied) + d * cnp.PyArray_STRIDE(copied, 2)
            if name == "h":
                before = None if self.time is None else self.time.before()
                copy_rows(target, stride, places, p.h if p.keeps_h else p.c,
                          p.pitch * p.table.itemsize, before, p.times.N, size)
            elif name == "gates" and p.cell.plain:  # the one gate is h
                copy_rows(target, stride, places, at(p.h, p.times.R * p.pitch, p),
                          p.pitch * p.table.itemsize, None, p.times.N, size)
            else:
                for g in range(G):  # W_ih x and W_hh h may have their gradients in two slots
                    copy_rows(target + size * (g if name == "dgates_h" else p.cell.order_x[g]),
                              stride, places,
                              at(p.gates, p.pitch * (p.cell.slot_h[g] if name == "dgates_h" else g),
                                 p),
                              p.row * p.table.itemsize, None, p.times.N, size)
        return copied
