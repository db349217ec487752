"""Declarations of src_c/fastrnn.h for Cython. That file has the contracts."""

from libc.stdint cimport int32_t

cdef extern from *:
    """
    #include <complex.h> /* before NumPy's headers include it: it takes the letter I */
    #undef I
    """

cdef extern from "fastrnn.h" nogil:
    enum:
        FR_MAX_THREADS
        FR_RNN_TANH
        FR_RNN_RELU
        FR_RNN_SIGMOID
        FR_LSTM
        FR_GRU
        FR_CELLS

    ctypedef struct fr_rows:
        void *base
        ptrdiff_t count, outer, inner
        const int32_t *at

    ctypedef struct fr_product:
        fr_rows c, a
        ptrdiff_t runs, run, run_stride
        const void *b
        const void *bias
        int accumulate
        ptrdiff_t row0, row1, panel0, panel1, n, pitch

    ctypedef struct fr_gradient:
        void *c
        void *bias
        fr_rows a, b
        ptrdiff_t k, n, gates, h
        ptrdiff_t slot[4]
        ptrdiff_t u0, u1
        void *scratch
        int fresh

    ctypedef struct fr_forward:
        ptrdiff_t rows, panel0, panel1, hidden, pitch
        int down
        void *h
        void *c
        void *y
        ptrdiff_t y_row
        const int32_t *y_at
        void *gates
        ptrdiff_t gates_row
        const void *start
        ptrdiff_t start_row
        const int32_t *index
        const void *x
        const void *wx
        ptrdiff_t input, x_row
        const void *h_prev
        const void *wh
        const void *c_prev
        const void *bias_n

    ctypedef struct fr_backward:
        ptrdiff_t rows, panel0, panel1, hidden, pitch
        int down
        void *gates
        ptrdiff_t gates_row
        void *dh
        void *dc
        void *dh_out
        void *dc_out
        ptrdiff_t out_row
        const int32_t *out_at
        const void *next
        const void *wb
        const void *dy
        ptrdiff_t dy_row
        const int32_t *dy_at
        const void *h
        const void *h_prev
        void *c
        const void *c_prev

    ctypedef struct fr_update:
        void *param
        void *m
        void *v
        const void *grad
        double limit, first_scale, grad_scale, step_size, beta1, beta2, eps, decay
        int nesterov

    ctypedef void (*fr_optimizer)(const fr_update *, ptrdiff_t, ptrdiff_t) noexcept nogil

    ctypedef struct fr_cell_row:
        int gates, slots, has_c
        int order_x[4]
        int slot_h[4]
        int vectors, plain, apart
        void (*forward)(const fr_forward *) noexcept nogil
        void (*forward_half)(const fr_forward *) noexcept nogil
        void (*walk)(const fr_forward *) noexcept nogil
        void (*backward)(const fr_backward *) noexcept nogil

    enum:
        FR_REGISTER_BYTES
        FR_OPERATIONS

    ctypedef struct fr_instruction:
        int32_t op, d, a, b, c, e

    ctypedef struct fr_place:
        void *base
        ptrdiff_t row

    ctypedef struct fr_elementwise:
        const fr_instruction *code
        ptrdiff_t count
        const fr_place *places
        ptrdiff_t registers
        void *scratch
        ptrdiff_t rows, u0, u1, tile

    ctypedef struct fr_table:
        const char *name
        ptrdiff_t itemsize, lanes, plain_vectors, row_panels, gradient_scratch
        fr_cell_row cell[5]
        void (*pack_plain)(void *, const void *, ptrdiff_t, ptrdiff_t, int, const int *,
                           ptrdiff_t, ptrdiff_t) noexcept nogil
        void (*pack_plain_t)(void *, const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                             ptrdiff_t) noexcept nogil
        void (*pack_gates)(void *, const void *, ptrdiff_t, ptrdiff_t, int, const int *,
                           ptrdiff_t, ptrdiff_t) noexcept nogil
        void (*pack_slots)(void *, const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                           ptrdiff_t) noexcept nogil
        void (*pack_bias)(void *, void *, const void *, const void *, ptrdiff_t, ptrdiff_t,
                          const fr_cell_row *) noexcept nogil
        void (*product_plain)(const fr_product *) noexcept nogil
        void (*product_gates)(const fr_product *, int) noexcept nogil
        void (*gradient)(const fr_gradient *) noexcept nogil
        void (*sum_rows)(void *, const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t) noexcept nogil
        void (*scatter_add)(void *, const void *, ptrdiff_t, const int32_t *, ptrdiff_t,
                            ptrdiff_t, ptrdiff_t) noexcept nogil
        void (*gather_columns)(void *, const void *, const void *, const int32_t *, ptrdiff_t,
                               ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                               const fr_cell_row *) noexcept nogil
        void (*scatter_columns)(void *, void *, const void *, const int32_t *, ptrdiff_t,
                                ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                                const fr_cell_row *) noexcept nogil
        double (*softmax_loss)(void *, const void *, const int32_t *, const double *,
                               ptrdiff_t, ptrdiff_t, double) noexcept nogil
        double (*sum_squares)(const void *, ptrdiff_t, double, double) noexcept nogil
        fr_optimizer sgd, rmsprop, adam
        void (*elementwise)(const fr_elementwise *) noexcept nogil
        void (*sum_units)(void *, ptrdiff_t, const void *, ptrdiff_t, ptrdiff_t,
                          ptrdiff_t) noexcept nogil
        void (*add_rows)(void *, ptrdiff_t, const void *, ptrdiff_t, const int32_t *, ptrdiff_t,
                         ptrdiff_t) noexcept nogil
        void (*activate)(void *, const void *, ptrdiff_t, int) noexcept nogil

    ctypedef void (*fr_work)(void *, int, int) noexcept nogil

    ctypedef struct fr_barrier:
        int count, phase, sleepers

    int fr_isa_count()
    const char *fr_isa_name(int)
    int fr_isa_supported(int)
    const fr_table *fr_isa_table(int, int)
    unsigned fr_flush_denormals(int)
    void fr_restore(unsigned)
    ptrdiff_t fr_pitch(ptrdiff_t, ptrdiff_t)
    void fr_run(fr_work, void *, int, int)
    ctypedef void (*fr_team)(void (*share)(void *), void *, unsigned, unsigned) noexcept nogil
    ctypedef int (*fr_number)() noexcept nogil
    void fr_set_team(fr_team, fr_number, fr_number)
    int fr_workers()
    int fr_refused()
    void fr_wait(fr_barrier *, int)
    int fr_wait_step(fr_barrier *, int)
    void fr_any_number(int)
