from libc.stdint cimport int32_t


cdef struct Times:
    ptrdiff_t T, R, N         # steps of the walk, rows, rows of all steps together
    const ptrdiff_t *first    # (T + 1,) where the rows of each step begin; NULL: t * R
    const int32_t *length     # (R,) steps of each row, the longest first; NULL: T


cdef inline Times even_times(ptrdiff_t T, ptrdiff_t B) noexcept:
    """B rows that are all alive for T steps."""
    cdef Times times
    times.T = T
    times.R = B
    times.N = T * B
    times.first = NULL
    times.length = NULL
    return times


cdef inline ptrdiff_t row_of(const Times *times, ptrdiff_t t, ptrdiff_t r) noexcept nogil:
    """Where row r of step t is among the rows of all steps; r = 0 and t = T: N."""
    return (times.first[t] if times.first else t * times.R) + r


cdef inline ptrdiff_t alive_at(const Times *times, ptrdiff_t t) noexcept nogil:
    """How many rows are alive at step t: they are the first ones. 0 at t = T."""
    if t >= times.T:
        return 0
    return times.first[t + 1] - times.first[t] if times.first else times.R


cdef inline ptrdiff_t state_of(const Times *times, ptrdiff_t t, ptrdiff_t r) noexcept nogil:
    """Where the state that row r begins step t with is among all states; t = 0: the initial."""
    return r if t == 0 else times.R + row_of(times, t - 1, r)


cdef inline ptrdiff_t length_of(const Times *times, ptrdiff_t r) noexcept nogil:
    return times.length[r] if times.length else times.T


cdef class Timeline:
    """Which rows are alive at which step, and where they lie for a caller."""
    cdef Times times
    cdef readonly ptrdiff_t T, B   # of the caller's grid
    cdef readonly object lengths   # (B,) int64
    cdef readonly bint resets      # some sequence has more than one episode, or begins with zero
    cdef readonly bint to_initial
    cdef object first              # (steps + 1,) intp: `times` points there
    cdef object length             # (R,) int32, likewise
    cdef object place              # (R,) int64: t * B + b of an episode's first step
    cdef object starts             # (B,) int64: the rows of all sequences before
    cdef object fresh              # (B,) int8: whether a reset comes before step 0
    cdef dict tables               # that were made already
    cdef object made_rows(self, str layout, bint reverse)
    cdef object begins(self, bint reverse)
    cdef object ends(self, bint reverse)
    cdef object owners(self, object ends)
    cdef bint is_outer(self, ptrdiff_t r, bint last) noexcept
    cdef object before(self)
    cdef object blank(self, object rows, str layout)
