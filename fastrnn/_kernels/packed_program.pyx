"""Programs and weights ready for the kernels: laid out for a dtype and an instruction set, packed.

Letters: T steps, B batch, K columns of a weight.
"""

import numpy as np

cimport numpy as cnp
from libc.string cimport memset

from fastrnn._kernels.c cimport FR_REGISTER_BYTES, FR_RNN_TANH
from fastrnn._kernels.check cimport Carver, check_flat, pointer
from fastrnn._kernels.layout cimport make_machine
from fastrnn._kernels.machine cimport Machine, Run, Weight
from fastrnn._kernels.machine_packs cimport pack_run
from fastrnn._kernels.runtime cimport Buffer, flush_denormals, restore, table_for
from fastrnn._kernels.timeline cimport even_times
from fastrnn._kernels.walk cimport ceil_div

cnp.import_array()


class Compiled:
    """A program and its machines, one for each dtype and instruction set that asks.

    Parameters
    ----------
    program : Program
        See fastrnn/cells/schedule.py.
    recording : callable
        Returns the program whose backward also keeps the gradients of the states.
    """

    def __init__(self, program, recording):
        self.program = program
        self.recording = recording
        self.made = {}

    def machine(self, dtype, bint records=False):
        """Return the machine for a dtype and the instruction set in use."""
        key = dtype, <size_t> table_for(dtype), records
        found = self.made.get(key)
        if found is None:
            program = self.recording() if records else self.program
            found = self.made.setdefault(key, make_machine(program, dtype))
        return found


cdef void use_machine(Run *r, Machine m, int phases) noexcept:
    """Set what a run knows of its machine; phases 0: forward, 1: without a tape, 2: backward."""
    r.table = m.table
    r.state_count = m.state_count
    r.weight_count = m.weight_count
    r.packing_count = m.packing_count
    r.row_count = m.row_count
    r.bias_count = m.bias_count
    r.gradient_count = m.gradient_count
    r.vector_gradient_count = m.vector_gradient_count
    r.state = m.states
    r.weight = m.weights
    r.packing = m.packings
    r.row = m.rows
    r.bias = m.biases
    r.gradient = m.gradients
    r.vector_gradient = m.vector_gradients
    r.phases = m.backward if phases == 2 else m.lean if phases else m.forward
    r.lean = phases == 1
    r.x_offset = m.x_offset
    r.dx_offset = m.dx_offset
    r.output_state = m.output_state
    r.output_width = m.output_width
    r.output = m.output_lean if phases == 1 else m.output
    r.dy = m.dy
    r.registers_size = ceil_div(r.phases.registers * FR_REGISTER_BYTES, 64) * 64
    r.record_count = m.record_count
    r.record = m.records


cdef Run sized_run(Machine m, ptrdiff_t T, ptrdiff_t B, bint keep) noexcept:
    """A run of even rows; its pass looks like a plain cell of H = x_columns units."""
    cdef Run r
    memset(&r, 0, sizeof(r))
    use_machine(&r, m, 0 if keep else 1)
    r.p.table = m.table
    r.p.cell = &m.table.cell[<int> FR_RNN_TANH]
    r.p.times = even_times(T, B)
    r.p.I = m.input_size
    r.p.H = m.x_columns
    r.p.pitch = r.p.H
    r.p.row = m.row if keep else m.lean_row
    r.p.panels = ceil_div(r.p.H, m.table.lanes * m.table.plain_vectors)
    r.p.training = keep
    return r


cdef tuple check_parameters(Machine m, object parameters, bint gradient):
    """Refuse arrays that are not those of the machine; None: a gradient that is not wanted."""
    cdef int i
    if not isinstance(parameters, tuple) or len(parameters) != len(m.shapes):
        raise ValueError(f"weights: expected a tuple of {len(m.shapes)} arrays")
    for i in range(len(m.shapes)):
        if parameters[i] is not None or not gradient:
            check_flat(f"weights[{i}]", parameters[i], m.dtype, m.shapes[i], gradient)
    return parameters


cdef void set_pointers(void **pointers, tuple arrays) noexcept:
    cdef int i
    for i in range(len(arrays)):
        pointers[i] = pointer(arrays[i])


cdef class PackedProgram:
    def __cinit__(self, kind, dtype, tuple parameters):
        cdef Run r
        cdef unsigned state
        cdef Machine m = kind.machine(np.dtype(dtype))
        check_parameters(m, parameters, False)
        self.machine = m
        self.parameters = parameters
        self.learned = tuple([vector.copy() for vector in parameters[m.weight_count:]])
        carver = Carver(m.table.itemsize)
        packs = carver.add(m.packs_size)
        vectors = carver.add(m.vectors_size)
        starts = carver.add(m.biases_size)
        pointers = carver.add(ceil_div(len(parameters) * sizeof(void *), m.table.itemsize))
        self.buffer = Buffer(carver.bytes)
        memset(self.buffer.data, 0, self.buffer.nbytes)
        self.packs = self.buffer.data + <ptrdiff_t> packs
        self.vectors = self.buffer.data + <ptrdiff_t> vectors
        self.starts = self.buffer.data + <ptrdiff_t> starts
        r = sized_run(m, 0, 0, False)
        r.packs = self.packs
        r.vectors = self.vectors
        r.starts = self.starts
        r.parameters = <void **> (self.buffer.data + <ptrdiff_t> pointers)
        set_pointers(r.parameters, parameters)
        with nogil:
            state = flush_denormals()
            pack_run(&r, 0, 1)
            restore(state)

    cdef object panel_rows(self, ptrdiff_t packed, ptrdiff_t vectors, ptrdiff_t K):
        """Return the rows (vectors * lanes, K) of panels, a copy."""
        cdef Machine m = self.machine
        cdef ptrdiff_t width = m.table.plain_vectors * m.table.lanes
        cdef cnp.npy_intp[3] shape
        shape[0] = ceil_div(vectors, m.table.plain_vectors)
        shape[1] = K
        shape[2] = width
        panels = cnp.PyArray_SimpleNewFromData(3, shape, m.dtype.num,
                                               self.packs + packed * m.table.itemsize)
        rows = panels.transpose(0, 2, 1).reshape(shape[0] * width, K)
        return rows[: vectors * m.table.lanes].copy()

    cdef tuple unpacked(self):
        """Return the parameters as they were when they were packed.

        A weight that no step reads is zero.
        """
        cdef Machine m = self.machine
        cdef const Weight *w
        cdef ptrdiff_t lanes = m.table.lanes, slot, g
        cdef int i
        weights = [np.zeros(m.shapes[i], m.dtype) for i in range(m.weight_count)]
        for i in range(m.packing_count):
            w = &m.weights[m.packings[i].weight]
            slot = ceil_div(w.width, lanes)
            rows = self.panel_rows(m.packings[i].packed, m.packings[i].vectors + w.blocks * slot,
                                   w.K)
            for g in range(w.blocks):
                begin = (m.packings[i].vectors + g * slot) * lanes
                weights[m.packings[i].weight][g * w.width: (g + 1) * w.width] = rows[
                    begin: begin + w.width]
        return (*weights, *self.learned)

    def __reduce__(self):
        """Copy and pickle the parameters themselves: another machine has other panels."""
        return restored, (self.machine.program, self.machine.dtype, self.unpacked())

    def __copy__(self):
        """Return itself: nothing in it ever changes."""
        return self

    @property
    def nbytes(self):
        """Bytes that it holds beside the layer's own arrays."""
        nbytes = self.buffer.nbytes
        for vector in self.learned:
            nbytes += vector.nbytes
        return nbytes


def restored(program, dtype, parameters):
    """Return a pickled PackedProgram, for streams: it is packed for a cell of its own."""
    return PackedProgram(Compiled(program, None), dtype, parameters)
