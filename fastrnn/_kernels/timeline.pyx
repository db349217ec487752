"""Which rows are alive at which step of a walk: rows of different lengths, and resets inside them.

A caller has B sequences in a grid of T steps. Here each episode, from one reset of a sequence to
the next, is a row of its own, because nothing flows over a reset. The walk sorts the rows by their
lengths, the longest first, and lets all of them begin at its step 0; a direction that goes back in
time begins with an episode's last step. So the rows that are alive at a step are always the first
ones, a row that has ended leaves no gap, and products run over real rows only.

The rows of all steps are numbered step by step (`row_of`): the tape has them in this order. Where
they lie in an array of the caller is a table (`rows`) of the array's layout:

    time       (T, B) grid, step by step
    batch      (B, T) grid, sequence by sequence
    packed     as torch's PackedSequence: step by step, the longest sequence first, no padding
    sequences  one sequence after the other, no padding
    walk       as the walk forward in time has them

Letters: T steps, B sequences, R rows (episodes), N rows of all steps together.
"""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

cnp.import_array()

GRIDS = ("time", "batch")
LAYOUTS = (*GRIDS, "packed", "sequences", "walk")


cdef class Timeline:
    """Which rows are alive at which step, and where they lie for a caller. It never changes.

    Parameters
    ----------
    lengths : int64 (B,), each 0 to T
    T : int
    reset : bool (T, B), optional
        Where an episode begins. What it has past a sequence's end does not count.
    to_initial : bool
        Whether an episode begins with the initial state of its sequence, instead of zero.

    Attributes
    ----------
    T, B : int
        The caller's grid.
    lengths : int64 (B,)
    steps, N : int
        Steps of the walk, and rows of all steps together.
    """

    def __init__(self, lengths, T, reset=None, bint to_initial=False):
        cdef ptrdiff_t b, t, begin, r = 0, count = 0, total = 0
        cdef const cnp.npy_bool *flag = NULL
        cdef const int64_t *own
        cdef int64_t *start
        cdef int64_t *place
        cdef int64_t *length
        lengths = np.array(lengths, np.int64)
        lengths.setflags(write=False)
        self.T = T
        self.B = cnp.PyArray_DIM(lengths, 0)
        self.lengths = lengths
        self.to_initial = to_initial
        self.tables = {}
        if reset is not None:
            reset = np.array(reset, order="C")  # it is read twice: nobody else knows the copy
            if reset.dtype != bool or reset.shape != (self.T, self.B):
                raise ValueError(f"reset: is {reset.dtype} of shape {reset.shape}, expected bool "
                                 f"of shape {(self.T, self.B)}")
            flag = <const cnp.npy_bool *> cnp.PyArray_DATA(reset)
        own = <const int64_t *> cnp.PyArray_DATA(lengths)
        self.starts = np.empty(self.B, np.int64)
        start = <int64_t *> cnp.PyArray_DATA(self.starts)
        for b in range(self.B):
            if not 0 <= own[b] <= self.T:
                raise ValueError(f"lengths: has {own[b]}, expected 0 to {self.T}")
            start[b] = total
            total += own[b]
            count += own[b] > 0
            if flag != NULL:
                for t in range(1, own[b]):
                    count += flag[t * self.B + b] != 0
        if total >= 2**31:
            raise MemoryError(f"lengths have a sum of {total}, expected less than 2**31")
        # the episodes in the order of the sequences, then the longest first
        unsorted, steps = np.empty(count, np.int64), np.empty(count, np.int64)
        place = <int64_t *> cnp.PyArray_DATA(unsorted)
        length = <int64_t *> cnp.PyArray_DATA(steps)
        for b in range(self.B):
            begin = 0
            for t in range(1 if flag != NULL else max(1, own[b]), own[b] + 1):
                if t == own[b] or flag != NULL and flag[t * self.B + b]:
                    place[r] = begin * self.B + b
                    length[r] = t - begin
                    self.resets = self.resets or begin > 0
                    begin = t
                    r += 1
        order, self.first = longest_first(steps)
        self.place, self.length = np.empty(count, np.int64), np.empty(count, np.int32)
        sorted_to(<int64_t *> cnp.PyArray_DATA(self.place),
                  <int32_t *> cnp.PyArray_DATA(self.length), place, length, order)
        self.fresh = np.zeros(self.B, np.int8)
        for b in range(self.B if flag != NULL and not to_initial and self.T > 0 else 0):
            (<cnp.npy_int8 *> cnp.PyArray_DATA(self.fresh))[b] = flag[b] != 0
            self.resets = self.resets or flag[b] != 0
        self.times.T = cnp.PyArray_DIM(self.first, 0) - 1
        self.times.R = count
        self.times.N = total
        self.times.first = <const ptrdiff_t *> cnp.PyArray_DATA(self.first)
        self.times.length = <const int32_t *> cnp.PyArray_DATA(self.length)

    def __copy__(self):  # it never changes
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        raise TypeError("a Timeline cannot be pickled")

    @property
    def steps(self):
        return self.times.T

    @property
    def N(self):
        return self.times.N

    def size(self, str layout):
        """Return how many rows an array of this layout has."""
        return self.T * self.B if layout in GRIDS else self.times.N

    def rows(self, str layout, bint reverse=False):
        """Return where the walk's rows (N,) lie in a layout, int32; None: in their own order."""
        if layout == "packed" and not self.resets:
            layout = "walk"
        if layout == "walk" and not reverse:
            return None
        key = layout, reverse
        found = self.tables.get(key)
        return self.tables.setdefault(key, self.made_rows(layout, reverse)
                                      ) if found is None else found

    cdef object made_rows(self, str layout, bint reverse):
        """Return the number that a layout gives to each of the walk's rows.

        In every layout this is start[r], of a row's first step in time, plus what each later step
        adds: `stride`, or the rows of all steps between.
        """
        cdef ptrdiff_t t, b, r, now, stride = 0
        cdef const ptrdiff_t *first = self.times.first
        cdef const int32_t *length = self.times.length
        cdef const ptrdiff_t *begin = first   # where each step's rows begin in the layout
        cdef const int64_t *place = <const int64_t *> cnp.PyArray_DATA(self.place)
        cdef const int64_t *before = <const int64_t *> cnp.PyArray_DATA(self.starts)
        if layout in GRIDS and <object> self.T * self.B >= 2**31:
            raise MemoryError(f"{self.T} steps of {self.B} sequences of different lengths have "
                              "2**31 places or more, expected less")
        rows, starts = np.empty(self.times.N, np.int32), np.empty(self.times.R, np.int64)
        ranks = np.empty(self.B, np.int64)
        cdef int32_t *row = <int32_t *> cnp.PyArray_DATA(rows)
        cdef int64_t *start = <int64_t *> cnp.PyArray_DATA(starts)
        cdef int64_t *rank = <int64_t *> cnp.PyArray_DATA(ranks)
        if layout == "packed":
            order, firsts = longest_first(self.lengths)
            begin = <const ptrdiff_t *> cnp.PyArray_DATA(firsts)
            for r in range(self.B):
                rank[(<const ptrdiff_t *> cnp.PyArray_DATA(order))[r]] = r
        elif layout != "walk":
            stride = self.B if layout == "time" else 1
        for r in range(self.times.R):
            t, b = place[r] // self.B, place[r] % self.B
            if layout == "walk":
                start[r] = r
            elif layout == "packed":
                start[r] = rank[b]
            elif layout == "time":
                start[r] = place[r]
            else:
                start[r] = t + (b * self.T if layout == "batch" else before[b])
        for t in range(self.times.T):
            for r in range(first[t + 1] - first[t]):
                now = length[r] - 1 - t if reverse else t
                if stride:
                    now = now * stride
                elif layout == "walk":
                    now = begin[now]
                else:
                    now = begin[place[r] // self.B + now]
                row[first[t] + r] = <int32_t> (start[r] + now)
        return rows

    cdef object begins(self, bint reverse):
        """Return whose initial state each row (R,) begins with, int32; -1: it begins with zero."""
        cdef ptrdiff_t r, b
        begins = np.empty(self.times.R, np.int32)
        cdef int32_t *taken = <int32_t *> cnp.PyArray_DATA(begins)
        cdef const cnp.npy_int8 *fresh = <const cnp.npy_int8 *> cnp.PyArray_DATA(self.fresh)
        for r in range(self.times.R):
            b = (<const int64_t *> cnp.PyArray_DATA(self.place))[r] % self.B
            taken[r] = -1
            if self.to_initial or self.is_outer(r, reverse) and (reverse or not fresh[b]):
                taken[r] = <int32_t> b
        return begins

    cdef object ends(self, bint reverse):
        """Return the row (B,) whose end is each sequence's final state, int32; -1: it is empty."""
        cdef ptrdiff_t r, b
        ends = np.empty(self.B, np.int32)
        cdef int32_t *end = <int32_t *> cnp.PyArray_DATA(ends)
        for b in range(self.B):
            end[b] = -1
        for r in range(self.times.R):
            if self.is_outer(r, not reverse):
                end[(<const int64_t *> cnp.PyArray_DATA(self.place))[r] % self.B] = <int32_t> r
        return ends

    cdef object owners(self, object ends):
        """Return whose final state the end of each row (R,) is, int32; -1: of none."""
        cdef ptrdiff_t r, b
        owners = np.empty(self.times.R, np.int32)
        cdef int32_t *owner = <int32_t *> cnp.PyArray_DATA(owners)
        cdef const int32_t *end = <const int32_t *> cnp.PyArray_DATA(ends)
        for r in range(self.times.R):
            owner[r] = -1
        for b in range(self.B):
            if end[b] >= 0:
                owner[end[b]] = <int32_t> b
        return owners

    cdef bint is_outer(self, ptrdiff_t r, bint last) noexcept:
        """Whether a row is the first episode of its sequence, or, with `last`, the last one."""
        cdef int64_t place = (<const int64_t *> cnp.PyArray_DATA(self.place))[r]
        if not last:
            return place < self.B
        return (place // self.B + self.times.length[r]
                == (<const int64_t *> cnp.PyArray_DATA(self.lengths))[place % self.B])

    cdef object before(self):
        """Return which state (N,) each row begins its step with, int32: see state_of."""
        cdef ptrdiff_t t, r
        cdef int32_t *row
        found = self.tables.get("before")
        if found is None:
            found = np.empty(self.times.N, np.int32)
            row = <int32_t *> cnp.PyArray_DATA(found)
            for t in range(self.times.T):
                for r in range(alive_at(&self.times, t)):
                    row[row_of(&self.times, t, r)] = <int32_t> state_of(&self.times, t, r)
            found = self.tables.setdefault("before", found)
        return found

    cdef object blank(self, object rows, str layout):
        """Write zeros to the rows of an array (M, ...), contiguous rows, that are padding."""
        cdef ptrdiff_t b, t, size, stride
        cdef const int64_t *length = <const int64_t *> cnp.PyArray_DATA(self.lengths)
        cdef char *data = <char *> cnp.PyArray_DATA(rows)
        size = cnp.PyArray_DIM(rows, 1) * cnp.PyArray_ITEMSIZE(rows)
        stride = cnp.PyArray_STRIDE(rows, 0)
        if layout == "batch":
            for b in range(self.B):
                for t in range(length[b], self.T):
                    memset(data + (b * self.T + t) * stride, 0, size)
        elif layout == "time":
            for t in range(self.T):
                for b in range(self.B):
                    if t >= length[b]:
                        memset(data + (t * self.B + b) * stride, 0, size)


cdef void sorted_to(int64_t *places, int32_t *lengths, const int64_t *place, const int64_t *length,
                    object order) noexcept:
    """Write the places and lengths of rows in another order."""
    cdef ptrdiff_t r
    cdef const ptrdiff_t *old = <const ptrdiff_t *> cnp.PyArray_DATA(order)
    for r in range(cnp.PyArray_DIM(order, 0)):
        places[r] = place[old[r]]
        lengths[r] = <int32_t> length[old[r]]


cdef tuple longest_first(object lengths):
    """Return an order (R,) of rows by length, the longest first, and where each step's rows begin.

    Parameters
    ----------
    lengths : int64 (R,)

    Returns
    -------
    order : intp (R,); rows of equal length stay in their order
    first : intp (steps + 1,)
    """
    cdef ptrdiff_t i, t, steps = 0, R = cnp.PyArray_DIM(lengths, 0)
    order = np.empty(R, np.intp)
    cdef const int64_t *length = <const int64_t *> cnp.PyArray_DATA(lengths)
    cdef ptrdiff_t *place = <ptrdiff_t *> cnp.PyArray_DATA(order)
    for i in range(R):
        steps = max(steps, length[i])
    alive = np.zeros(steps + 1, np.intp)  # (steps + 1,) how many rows are longer than t
    cdef ptrdiff_t *longer = <ptrdiff_t *> cnp.PyArray_DATA(alive)
    for i in range(R):
        if length[i]:
            longer[length[i] - 1] += 1
    for t in range(steps - 1, 0, -1):
        longer[t - 1] += longer[t]
    first = np.zeros(steps + 1, np.intp)
    for t in range(steps):
        (<ptrdiff_t *> cnp.PyArray_DATA(first))[t + 1] = (
            (<ptrdiff_t *> cnp.PyArray_DATA(first))[t] + longer[t])
    # rows of length n come after those that are longer
    for i in range(R):
        place[longer[length[i]]] = i
        longer[length[i]] += 1
    return order, first
