"""The tape of one forward call of a program: where it lies, how it is copied, what is read from it.

Letters: T steps, B batch, I input, D directions, O features of one direction's output, V rows of an
embedding.
"""

import numpy as np

cimport numpy as cnp
from libc.string cimport memcpy

from fastrnn._kernels.machine cimport Run
from fastrnn._kernels.runtime cimport Buffer
from fastrnn._kernels.tape cimport copy_rows, give_back, places_of

cnp.import_array()


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
                      cnp.PyArray_STRIDE(found, 1),
                      places_of(self.time, self.shape, self.reverse[d]), r.states[s],
                      r.state[s].pitch * r.table.itemsize, before, r.p.times.N, size)
        return found
