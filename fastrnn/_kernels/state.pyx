"""Initial and final states of the sequences, and their gradients: from a caller's arrays and back.

A caller has them as (D, B, H). The walk has a slot (R, pitch) with a row for each row of the walk;
without lengths and resets these are the B sequences themselves, else those of a Timeline.

Letters: B sequences, R rows of the walk, H hidden, D directions.
"""

from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

from fastrnn._kernels.check cimport pointer
from fastrnn._kernels.runtime cimport keep_denormals, restore
from fastrnn._kernels.timeline cimport length_of
from fastrnn._kernels.walk cimport Pass, at, c_at, h_at


cdef tuple pair_of(str name, tuple arrays, bint has_c):
    """Return h and c of a tuple with an entry for each state; c is None for cells without it."""
    if arrays is None:
        return None, None
    if len(arrays) != 1 + has_c:
        raise ValueError(f"{name}: has {len(arrays)} states, expected {1 + has_c}")
    return arrays if has_c else (arrays[0], None)


cdef void load_state(char *slot, object source, int d, const Pass *p, ptrdiff_t B,
                     object begins) noexcept:
    """Fill one (R, pitch) slot from row d of a (D, B, H) array, or with zeros.

    begins : int32 (R,), the B that each row takes, -1: zeros; or None: R = B, its own
    """
    cdef ptrdiff_t r, b
    cdef const char *data = <const char *> pointer(source)
    cdef const int32_t *taken = <const int32_t *> pointer(begins)
    memset(slot, 0, p.times.R * p.pitch * p.table.itemsize)
    if data != NULL:
        for r in range(p.times.R):
            b = taken[r] if taken != NULL else r
            if b >= 0:
                memcpy(at(slot, r * p.pitch, p), at(data, (d * B + b) * p.H, p),
                       p.H * p.table.itemsize)


cdef void store_state(object target, object initial, int d, const Pass *p, ptrdiff_t B,
                      object ends, bint c) noexcept:
    """Copy the final h or c of every sequence into row d of a (D, B, H) array.

    ends : int32 (B,), the row whose end it is, -1: `initial` stays; or None: R = B, its own
    """
    cdef ptrdiff_t r, b, t
    cdef const int32_t *taken = <const int32_t *> pointer(ends)
    for b in range(B):
        r = taken[b] if taken != NULL else b
        t = length_of(&p.times, r) if r >= 0 else 0
        store_row(target, initial, d, p, B, b,
                  NULL if r < 0 else c_at(p, t, r) if c else h_at(p, t, r))


cdef void store_row(object target, object initial, int d, const Pass *p, ptrdiff_t B, ptrdiff_t b,
                    const char *row) noexcept:
    """Copy a row, or, without one, that of `initial` or zero, to row b of d of (D, B, H)."""
    cdef ptrdiff_t size = p.H * p.table.itemsize
    cdef const char *start = <const char *> pointer(initial)
    cdef char *to = at(pointer(target), (d * B + b) * p.H, p)
    if row == NULL and start != NULL:
        row = at(start, (d * B + b) * p.H, p)
    if row == NULL:
        memset(to, 0, size)
    else:
        memcpy(to, row, size)


cdef void add_states(object target, object dfinal, int d, const Pass *p, const char *carry,
                     ptrdiff_t B, object begins, object ends) noexcept:
    """Write the gradient of the initial states to row d of a (D, B, H) array.

    It is the sum of the carries of the rows that begin with it. An empty sequence's is that of its
    final state. None: nobody wants it.
    """
    if target is None:
        return
    cdef ptrdiff_t r, b, size = p.H * p.table.itemsize
    cdef char *data = at(pointer(target), d * B * p.H, p)
    cdef const char *final = <const char *> pointer(dfinal)
    cdef const int32_t *taken = <const int32_t *> pointer(begins)
    cdef const int32_t *end = <const int32_t *> pointer(ends)
    cdef unsigned state
    if taken == NULL:
        for b in range(B):
            memcpy(at(data, b * p.H, p), at(carry, b * p.pitch, p), size)
        return
    memset(data, 0, B * size)
    state = keep_denormals()
    for r in range(p.times.R):
        if taken[r] >= 0:
            add_row(at(data, taken[r] * p.H, p), at(carry, r * p.pitch, p), p)
    restore(state)
    for b in range(B):
        if end[b] < 0 and final != NULL:
            memcpy(at(data, b * p.H, p), at(final, (d * B + b) * p.H, p), size)


cdef void add_row(char *sums, const char *row, const Pass *p) noexcept:
    cdef ptrdiff_t i
    for i in range(p.H):
        if p.table.itemsize == 4:
            (<float *> sums)[i] += (<const float *> row)[i]
        else:
            (<double *> sums)[i] += (<const double *> row)[i]
