"""The tape of one forward call: where it lies, how it is copied, and what can be read from it.

Letters: T steps, B batch, I input, H hidden, G gates, D directions, V rows of an embedding, U rows
of it in use.
"""

import numpy as np

cimport numpy as cnp
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport fr_barrier
from fastrnn._kernels.check cimport take_rows
from fastrnn._kernels.runtime cimport Buffer, Workspace
from fastrnn._kernels.walk cimport Pass

cnp.import_array()


cdef give_back(Workspace workspace, Buffer buffer):
    """Give a buffer back to its workspace; where even a list's place is missing, free it."""
    try:
        workspace.give(buffer)
    except MemoryError:
        pass


cdef object rows_of_tape(const char *data, const Pass *p, object dtype, ptrdiff_t steps,
                         ptrdiff_t slots):
    """Return a view (steps, B, slots, H) of rows of `pitch` elements."""
    cdef cnp.npy_intp[4] shape = [steps, p.B, slots, p.pitch]
    rows = cnp.PyArray_SimpleNewFromData(4, shape, dtype.num, <void *> data)
    return rows[..., :p.H]


cdef inline void move(char **pointer, ptrdiff_t distance) noexcept:
    pointer[0] += distance


cdef class Tape:
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
        """Return a tape with memory of its own, which serves one more backward.

        Raises
        ------
        RuntimeError
            If this tape was used or released.
        """
        cdef Tape twin = Tape()
        cdef Buffer source = self.buffer, target
        cdef Pass *p
        cdef int d
        cdef ptrdiff_t distance
        if source is None:
            raise RuntimeError("copy: this tape was used already, a tape serves one backward")
        target = self.workspace.take(source.nbytes)
        memcpy(target.data, source.data, <ptrdiff_t> source.nbytes)
        distance = target.data - source.data
        for d in range(self.count):
            p = &twin.passes[d]
            p[0] = self.passes[d]
            move(&p.gates, distance)
            move(&p.h, distance)
            move(&p.c, distance)
            move(&p.symbols, distance)
            memset(&p.barrier, 0, sizeof(fr_barrier))
        twin.count = self.count
        twin.workspace = self.workspace
        twin.kept = self.kept
        twin.weights = self.weights
        twin.reverse = self.reverse
        twin.embedding_rows = self.embedding_rows
        twin.used_rows = self.used_rows
        twin.dtype = self.dtype
        twin.kind = self.kind
        twin.shape = self.shape
        twin.buffer = target
        return twin

    def __reduce__(self):
        raise TypeError("a Tape cannot be pickled, copy() makes another")

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

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

    cdef object recorded(self, str name):
        """Copy gates, dgates_x or dgates_h (T, B, D, G, H), or h (T, B, D, H).

        The order of time and of gates is torch's.
        """
        cdef int d, D = self.count, G = self.passes[0].cell.gates, g
        cdef const Pass *p
        T, B, _, H = self.shape
        copied = np.empty((T, B, D, H) if name == "h" else (T, B, D, G, H), self.dtype)
        for d in range(D):
            p = &self.passes[d]
            out = copied[::-1, :, d] if self.reverse[d] else copied[:, :, d]
            if name == "h":
                out[...] = rows_of_tape(p.h if p.keeps_h else p.c, p, self.dtype, p.T, 1)[:, :, 0]
            elif name == "gates" and p.cell.plain:  # the one gate is h
                out[...] = rows_of_tape(p.h, p, self.dtype, p.T + 1, 1)[1:]
            else:
                slots = rows_of_tape(p.gates, p, self.dtype, p.T, p.cell.slots)
                for g in range(G):  # W_ih x and W_hh h may have their gradients in two slots
                    if name == "dgates_h":
                        out[:, :, g] = slots[:, :, p.cell.slot_h[g]]
                    else:
                        out[:, :, p.cell.order_x[g]] = slots[:, :, g]
        return copied

    cdef object input(self):
        """Return forward's x, (T, B, I); for one-hot symbols the index (T, B)."""
        x, index = self.kept
        if index is None:
            return x
        return take_rows(self.used_rows if x is None else x, index)
