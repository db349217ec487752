from fastrnn._kernels.walk cimport Pass


cdef tuple pair_of(str name, tuple arrays, bint has_c)
cdef void load_state(char *slot, object source, int d, const Pass *p, ptrdiff_t B,
                     object begins) noexcept
cdef void store_state(object target, object initial, int d, const Pass *p, ptrdiff_t B,
                      object ends, bint c) noexcept
cdef void store_row(object target, object initial, int d, const Pass *p, ptrdiff_t B, ptrdiff_t b,
                    const char *row) noexcept
cdef void add_states(object target, object dfinal, int d, const Pass *p, const char *carry,
                     ptrdiff_t B, object begins, object ends) noexcept
