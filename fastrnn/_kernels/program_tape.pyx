"""The tape of one forward call of a program: where it lies, how it is copied, what is read from it.

Letters: T steps, B batch, D directions.
"""

import numpy as np

cimport numpy as cnp

from fastrnn._kernels.machine cimport Run
from fastrnn._kernels.packed_program cimport PackedProgram, set_pointers
from fastrnn._kernels.tape cimport copies_of, copy_rows, numbers_at

cnp.import_array()


cdef class ProgramTape(BaseTape):
    def copy(self):
        """Return a tape with memory of its own, which serves one more backward.

        Raises
        ------
        RuntimeError
            If this tape was used or released.
        """
        cdef ProgramTape twin = ProgramTape()
        cdef Run *r
        cdef int d, s
        cdef ptrdiff_t distance = self.copy_to(twin)
        twin.machine = self.machine
        twin.kind = self.kind
        twin.notes = self.notes
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
        return twin

    cdef own_weights(self):
        cdef int d
        own = []
        for d in range(self.count):
            arrays = self.weights[d]
            if isinstance(arrays, PackedProgram):
                arrays = (<PackedProgram> arrays).parameters
            own.append(copies_of(arrays))
            set_pointers(self.runs[d].parameters, own[d])
        self.own(own)

    def memory(self):
        """Return the values and states that backward reads, as flat views; for checked.py."""
        cdef Run *r
        cdef int d, s
        found = []
        for d in range(self.count):
            r = &self.runs[d]
            found.append(numbers_at(self, r.p.gates, r.p.times.N * <object> r.p.row))
            for s in range(r.state_count):
                found.append(numbers_at(self, r.states[s],
                                        (r.p.times.R + r.p.times.N) * <object> r.state[s].pitch))
        return found

    @property
    def state_names(self):
        return tuple(name for name, _ in self.machine.program.states)

    @property
    def recordable(self):
        """The names of what backward can record."""
        return (*(f"d{name}" for name in self.state_names), "x", *self.state_names)

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
                      self.places(self.reverse[d]), r.states[s],
                      r.state[s].pitch * r.table.itemsize, before, r.p.times.N, size)
        return found
