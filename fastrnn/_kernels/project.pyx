"""Packs the weights of the forward products, and multiplies inputs by them for many steps at once.

Letters: G gates, H hidden, K inputs of a product, V rows of an embedding.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from fastrnn._kernels.c cimport fr_product, fr_rows
from fastrnn._kernels.walk cimport Pass, rows_of


cdef void pack_weights(const Pass *p, void *panels, const void *weight, ptrdiff_t K,
                       ptrdiff_t panel0, ptrdiff_t panel1) noexcept nogil:
    """weight (G*H, K) into the panels of the forward products."""
    if p.cell.plain:
        p.table.pack_plain_t(panels, weight, K, p.H, panel0, panel1)
    else:
        p.table.pack_gates(panels, weight, K, p.H, p.cell.vectors, p.cell.order_x, panel0, panel1)


cdef void pack_forward(Pass *p, ptrdiff_t panel0, ptrdiff_t panel1, bint bias) noexcept nogil:
    pack_weights(p, p.wx, p.w_ih, p.I, panel0, panel1)
    pack_weights(p, p.wh, p.w_hh, p.H, panel0, panel1)
    if bias:
        p.table.pack_bias(p.start, p.bias_n, p.b_ih, p.b_hh, p.H, p.pitch, p.cell)


cdef void pack_row(const Pass *p, void *target, const void *wh) noexcept nogil:
    """The panels of W_hh (panels, H, width) into the order of `walk`, (H, panels, width)."""
    cdef ptrdiff_t size = p.cell.vectors * p.table.lanes * p.table.itemsize, panel, k
    for k in range(p.H):
        for panel in range(p.panels):
            memcpy(<char *> target + (k * p.panels + panel) * size,
                   <const char *> wh + (panel * p.H + k) * size, size)


cdef void unpack_halves(const Pass *p, ptrdiff_t panel0, ptrdiff_t panel1) noexcept nogil:
    """The weights of wx_half, two in a word, into wx; see layers/packs.py."""
    cdef ptrdiff_t width = p.cell.vectors * p.table.lanes, words = (p.I + 1) // 2
    cdef ptrdiff_t panel, j, lane
    cdef const uint32_t *source
    cdef uint32_t *target
    for panel in range(panel0, panel1):
        for j in range(words):
            source = <const uint32_t *> p.wx_half + (panel * words + j) * width
            target = <uint32_t *> p.wx + (panel * p.I + 2 * j) * width
            for lane in range(width):
                target[lane] = source[lane] << 16
            if 2 * j + 1 < p.I:
                memcpy(target + width, source, width * sizeof(uint32_t))


cdef void project(const Pass *p, fr_rows x, fr_rows out, ptrdiff_t row0, ptrdiff_t row1,
                  ptrdiff_t panel0, ptrdiff_t panel1) noexcept nogil:
    """out = x W_ih + b for rows [row0, row1) of both."""
    cdef fr_product g
    g.c = out
    g.a = x
    g.runs = 1
    g.run = p.I
    g.run_stride = 0
    g.b = p.wx
    g.bias = p.start
    g.accumulate = 0
    g.row0 = row0
    g.row1 = row1
    g.panel0 = panel0
    g.panel1 = panel1
    g.n = p.H
    g.pitch = p.pitch
    if p.cell.plain:
        p.table.product_plain(&g)
    else:
        p.table.product_gates(&g, p.cell.vectors)


cdef void project_symbols(const Pass *p, ptrdiff_t row0, ptrdiff_t row1) noexcept nogil:
    """symbols = x W_ih + b for rows [row0, row1) of the embedding, or of one-hot x."""
    if p.column:
        p.table.gather_columns(p.symbols, p.start, p.gathered, p.gather_at, row0, row1,
                               p.gather_width, p.H, p.pitch, p.row, p.cell)
    else:
        project(p, p.x, rows_of(p.symbols, p.V, 0, p.row), row0, row1, 0, p.panels)
