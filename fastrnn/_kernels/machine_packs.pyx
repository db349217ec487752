"""Packs the weights, vectors and biases of a program.

Letter: K columns of a weight.
"""

from libc.string cimport memcpy

from fastrnn._kernels.machine cimport Packing, Run, Weight
from fastrnn._kernels.walk cimport AS_IT_IS, at, ceil_div, part


cdef void fill(const Run *r, char *target, double value, ptrdiff_t n) noexcept nogil:
    cdef ptrdiff_t i
    for i in range(n):
        if r.table.itemsize == 4:
            (<float *> target)[i] = <float> value
        else:
            (<double *> target)[i] = value


cdef void pack_run(const Run *r, int rank, int size) noexcept nogil:
    """Weights into panels, learned vectors and constants into rows, biases into starts."""
    cdef const Weight *w
    cdef const Packing *packing
    cdef ptrdiff_t vectors, lanes = r.table.lanes, slot
    cdef const char *source
    cdef int i, g
    for i in range(r.packing_count):
        packing = &r.packing[i]
        w = &r.weight[packing.weight]
        vectors = w.blocks * ceil_div(w.width, lanes)
        r.table.pack_slots(at(r.packs, packing.packed, &r.p), r.parameters[packing.weight], w.K,
                           w.width, packing.vectors, part(vectors, rank, size),
                           part(vectors, rank + 1, size))
    if rank:
        return
    for i in range(r.row_count):
        source = NULL
        if r.row[i].vector >= 0:
            source = <const char *> r.parameters[r.weight_count + r.row[i].vector]
        if source == NULL:
            fill(r, at(r.vectors, r.row[i].offset, &r.p), r.row[i].value,
                 ceil_div(r.row[i].width, lanes) * lanes)
        else:
            memcpy(at(r.vectors, r.row[i].offset, &r.p),
                   at(source, r.row[i].block * r.row[i].width, &r.p),
                   r.row[i].width * r.table.itemsize)
    for i in range(r.bias_count):
        source = <const char *> r.parameters[r.weight_count + r.bias[i].vector]
        slot = ceil_div(r.bias[i].width, lanes) * lanes
        for g in range(r.bias[i].blocks):
            r.table.add_rows(at(r.starts, r.bias[i].offset + g * slot, &r.p), 0,
                             at(source, g * r.bias[i].width, &r.p), 0, NULL, 1, r.bias[i].width)


cdef void pack_back(const Run *r, int rank, int size) noexcept nogil:
    """Weights for the gradients of what they multiply."""
    cdef const Weight *w
    cdef ptrdiff_t panels, offset
    cdef int i, x
    for i in range(r.weight_count):
        w = &r.weight[i]
        panels = ceil_div(w.K, r.table.lanes * r.table.plain_vectors)
        for x in range(2):
            offset = w.back_x if x else w.back
            if offset >= 0 and (r.p.need_dx or not x):
                r.table.pack_plain(at(r.back, offset, &r.p), r.parameters[i], w.blocks * w.width,
                                   w.K, 1, AS_IT_IS, part(panels, rank, size),
                                   part(panels, rank + 1, size))
