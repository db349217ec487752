from libc.stdint cimport int32_t

from fastrnn._kernels.c cimport fr_barrier, fr_cell_row, fr_rows, fr_table
from fastrnn._kernels.timeline cimport Times, row_of, state_of


cdef struct Pass:
    const fr_table *table
    const fr_cell_row *cell
    Times times              # steps T, rows B, and which of them are alive
    ptrdiff_t I, H
    ptrdiff_t V              # rows of the embedding, or symbols, in use; 0: x is dense
    ptrdiff_t pitch, row     # of a state row; of a tape row (S * pitch)
    ptrdiff_t panels         # of the forward products
    ptrdiff_t panels_h, panels_i  # of plain products with H and with I columns
    bint training
    bint keeps_h             # the tape has h of all steps; without, backward puts it in c's place
    # input: x (T, B, I), or x (V, I) and index (T, B), or index and column: I is then 0, and row v
    # of x would have a 1 in column[v] of `columns`. Its product with W_ih is then column
    # gather_at[v] of `gathered`, which is W_ih or a copy of its columns in use. Of rows of
    # different lengths x, y, dy, dx and what is recorded have tables of places (timeline.pyx), and
    # index (N) is in the order of the walk.
    fr_rows x
    const int32_t *index
    ptrdiff_t index_t
    char *taken              # rows of x that were copied side by side, and their places, per thread
    ptrdiff_t taken_size     # bytes per thread; 0: x is read where it lies
    ptrdiff_t taken_rows     # at most
    const int32_t *column
    ptrdiff_t columns
    const void *gathered     # (G*H, gather_width)
    const int32_t *gather_at
    ptrdiff_t gather_width
    # weights, torch's layout, and their packs
    const void *w_ih         # (G*H, I)
    const void *w_hh         # (G*H, H)
    const void *b_ih         # (G*H) or NULL
    const void *b_hh
    bint packed
    void *wx                 # with `half`: room for W_ih unpacked, or NULL: not wanted
    void *wh
    void *start
    void *bias_n
    const void *wh_row       # W_hh packed for `walk`, or NULL: one row steps as many do
    bint half                # step with bfloat16 weights, two in a word
    void *wx_half
    void *wh_half
    # tape; without training gates holds one chunk and c one step. N = T*B if all rows are equally
    # long.
    char *gates              # (N, or chunk*B, S*pitch)
    char *h                  # (B + N, or h0 and two in turn, pitch)
    char *c                  # (B + N, or B, pitch)
    char *symbols            # (V, S*pitch): projected symbols; going back, their gradients
    ptrdiff_t chunk
    fr_rows y                # of H
    # backward
    fr_rows dy               # of H; base NULL: zero
    char *dh                 # (B, pitch) carries
    char *dc
    fr_rows dh_out           # of H; base NULL: not wanted
    fr_rows dc_out
    void *wb                 # packed W_hh, (panels_h, G*H, ...)
    void *wi                 # packed W_ih, (panels_i, G*H, ...)
    fr_rows dx
    bint need_dx, add_dx
    const int32_t *before    # (N) the state that each row begins its step with, or NULL: its own
    void *dw_ih
    void *dw_hh
    void *db_ih
    void *db_hh
    bint fresh               # these four have no values yet
    fr_barrier barrier


cdef struct Job:
    Pass *passes
    int count
    bint by_units            # a team splits hidden units, not rows
    fr_barrier everyone
    char *scratch
    ptrdiff_t scratch_size   # per thread


cdef inline char *at(const void *base, ptrdiff_t elements, const Pass *p) noexcept nogil:
    return <char *> base + elements * p.table.itemsize


cdef inline char *h_at(const Pass *p, ptrdiff_t t, ptrdiff_t b) noexcept nogil:
    """Row b of h(t); h(0) is h0."""
    if p.keeps_h:
        return at(p.h, state_of(&p.times, t, b) * p.pitch, p)
    return at(p.h, ((0 if t == 0 else 1 + (t - 1) % 2) * p.times.R + b) * p.pitch, p)


cdef inline char *c_at(const Pass *p, ptrdiff_t t, ptrdiff_t b) noexcept nogil:
    """Row b of c(t); c(0) is c0. Without training there is one for all steps."""
    return at(p.c, (state_of(&p.times, t, b) if p.training else b) * p.pitch, p)


cdef inline char *step_of(const Pass *p, fr_rows rows, ptrdiff_t t, ptrdiff_t b) noexcept nogil:
    """Where step t of rows from b on begins; with a table of places, where all rows begin."""
    if rows.at:
        return <char *> rows.base
    if p.times.first:
        return at(rows.base, row_of(&p.times, t, b) * rows.inner, p)
    return at(rows.base, t * rows.outer + b * rows.inner, p)


cdef inline const int32_t *places(const Pass *p, fr_rows rows, ptrdiff_t t,
                                  ptrdiff_t b) noexcept nogil:
    """The places of step t of rows from b on, or NULL: side by side."""
    return rows.at + row_of(&p.times, t, b) if rows.at else NULL


cdef inline ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline fr_rows rows_of(const void *base, ptrdiff_t count, ptrdiff_t outer,
                            ptrdiff_t inner) noexcept nogil:
    cdef fr_rows rows
    rows.base = <void *> base
    rows.count = count if count > 0 else 1
    rows.outer = outer
    rows.inner = inner
    rows.at = NULL
    return rows


cdef struct Share:
    int first, last          # passes of the team
    int rank, size           # in the team
    int worker               # number of the thread among all
    bint alone               # no other thread computes
    bint by_units


cdef int[4] AS_IT_IS

cdef Pass sized(int kind, object dtype, ptrdiff_t T, ptrdiff_t B, ptrdiff_t I,
                ptrdiff_t H) except *
cdef ptrdiff_t forward_panels(const fr_table *table, const fr_cell_row *cell,
                              ptrdiff_t H) noexcept nogil
cdef ptrdiff_t part(ptrdiff_t n, int rank, int size) noexcept nogil
cdef int plan(Job *job) noexcept nogil
cdef Share share_of(const Job *job, int rank, int size) noexcept nogil
cdef ptrdiff_t part_rows(const Times *times, int rank, int size) noexcept nogil
cdef void project_chunk(const Pass *p, const Share *s, ptrdiff_t t0, ptrdiff_t t1, ptrdiff_t b0,
                        ptrdiff_t b1, ptrdiff_t panel0, ptrdiff_t panel1) noexcept nogil
cdef ptrdiff_t chunk_end(const Pass *p, ptrdiff_t t0, ptrdiff_t b0, ptrdiff_t b1) noexcept nogil
cdef const int32_t *index_at(const Pass *p, ptrdiff_t t) noexcept nogil
cdef void sum_symbols(const Pass *p, fr_barrier *everyone, int rank, int size) noexcept nogil
cdef void walk_forward(void *arg, int rank, int size) noexcept nogil
cdef void walk_backward(void *arg, int rank, int size) noexcept nogil
