"""Weights in the order in which the kernels read them, made once for many calls.

Letters: I input, H hidden, G gates, S slots of a tape row, K columns of a weight, U columns in use,
N outputs of a head. `lanes` and `vectors` are those of fr_table and fr_cell_row.
"""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastrnn._kernels.c cimport FR_CELLS, fr_cell_row, fr_table
from fastrnn._kernels.check cimport Carver, check_flat, check_weights, numbers, pointer
from fastrnn._kernels.project cimport pack_weights
from fastrnn._kernels.runtime cimport Buffer, flush_denormals, restore, table_for
from fastrnn._kernels.walk cimport Pass, ceil_div, sized

cnp.import_array()


cdef ptrdiff_t panels_width(const Pass *p) noexcept:
    """Elements of wx or wh for each column of the weight."""
    return p.panels * margin(p)


cdef ptrdiff_t margin(const Pass *p) noexcept:
    """Elements of a panel, which the kernels read whole, also at the end of a bias."""
    return p.cell.vectors * p.table.lanes


cdef object unpack(const fr_table *table, const fr_cell_row *cell, const void *panels, object dtype,
                   ptrdiff_t K, ptrdiff_t H, object columns=None, bint halves=False):
    """Return the weight (G*H, K) that pack_weights has packed.

    With `columns`, int64 (U,), return these columns of it alone. The inverse of pack_plain_t and
    pack_gates. With `halves` the K are words of layers.packs.pair, and `columns` are
    those of the weights in them, two in a word.
    """
    cdef ptrdiff_t U = K if columns is None else cnp.PyArray_SIZE(columns)
    cdef ptrdiff_t i, k, row, unit, source, lanes = table.lanes, width = cell.vectors * table.lanes
    cdef ptrdiff_t per = width if cell.plain else lanes  # units in a panel
    cdef const cnp.int64_t *column = <const cnp.int64_t *> pointer(columns)
    cdef int gate, vector
    cdef uint32_t word
    weight = np.empty((cell.gates * <object> H, U), dtype)
    cdef void *target = pointer(weight)
    with nogil:
        for vector in range(cell.gates):
            gate = 0 if cell.plain else cell.order_x[vector]
            for unit in range(H):
                row = (gate * H + unit) * U
                source = unit // per * K * width + unit % per
                if not cell.plain:
                    source += vector * lanes
                for i in range(U):
                    k = column[i] if column != NULL else i
                    if halves:
                        word = (<const uint32_t *> panels)[source + k // 2 * width]
                        (<uint32_t *> target)[row + i] = word if k % 2 else word << 16
                    elif table.itemsize == 4:
                        (<uint32_t *> target)[row + i] = (
                            <const uint32_t *> panels)[source + k * width]
                    else:
                        (<uint64_t *> target)[row + i] = (
                            <const uint64_t *> panels)[source + k * width]
    return weight


cdef class Packed:
    def __cinit__(self, int kind, tuple weights, tuple halves=None):
        cdef ptrdiff_t wx, wh, start, bias_n
        cdef Pass p
        if not 0 <= kind < FR_CELLS:
            raise ValueError(f"kind: is {kind}, expected 0 to 4")
        w_ih, w_hh, b_ih, b_hh = weights
        p = sized(kind, w_hh.dtype, 0, 0, w_ih.shape[1], w_hh.shape[1])
        if p.I < 1 or p.H < 1:
            raise ValueError(f"weights: have I = {p.I} and H = {p.H}, expected at least 1")
        check_weights(weights, p.cell.gates, w_hh.dtype, p.I, p.H, False)
        self.half = halves is not None
        self.table = p.table
        self.cell = p.cell
        self.kind = kind
        self.input_size = p.I
        self.hidden_size = p.H
        self.dtype = w_hh.dtype
        self.weights = None if self.half else weights
        self.biases = (None if b_ih is None else b_ih.copy(), None if b_hh is None else b_hh.copy())
        if self.half:
            if p.cell.forward_half == NULL:
                raise TypeError(f"weights: are {w_hh.dtype}, expected float32 for bfloat16 words")
            w_ih, w_hh = halves
            check_flat("halves[0]", w_ih, np.float32, (p.cell.gates * p.H, (p.I + 1) // 2))
            check_flat("halves[1]", w_hh, np.float32, (p.cell.gates * p.H, (p.H + 1) // 2))
            p.I = (p.I + 1) // 2  # words

        carver = Carver(p.table.itemsize)
        wx = carver.add_rows(panels_width(&p), p.I)
        wh = carver.add_rows(panels_width(&p), (p.H + 1) // 2 if self.half else p.H)
        start = carver.add_rows(1, p.row + margin(&p))
        bias_n = carver.add_rows(1, p.pitch + margin(&p))
        self.buffer = Buffer(carver.bytes)
        self.start = self.buffer.data + start
        self.bias_n = self.buffer.data + bias_n
        if self.half:
            self.wx_half = self.buffer.data + wx
            self.wh_half = self.buffer.data + wh
        else:
            self.wx = self.buffer.data + wx
            self.wh = self.buffer.data + wh
        self.fill(&p, self.buffer.data + wx, pointer(w_ih), self.buffer.data + wh, pointer(w_hh))

    cdef void fill(self, const Pass *p, void *wx, const void *w_ih, void *wh, const void *w_hh):
        """Pack both weights, or both weights' words, of which `p.I` has the count for w_ih."""
        cdef ptrdiff_t K = (p.H + 1) // 2 if self.half else p.H
        cdef const void *b_ih = pointer(self.biases[0])
        cdef const void *b_hh = pointer(self.biases[1])
        cdef unsigned state
        with nogil:
            state = flush_denormals()
            pack_weights(p, wx, w_ih, p.I, 0, p.panels)
            pack_weights(p, wh, w_hh, K, 0, p.panels)
            p.table.pack_bias(self.start, self.bias_n, b_ih, b_hh, p.H, p.pitch, p.cell)
            restore(state)

    @property
    def nbytes(self):
        """Bytes that it holds beside the layer's own arrays."""
        nbytes = self.buffer.nbytes
        for bias in self.biases:
            nbytes += 0 if bias is None else bias.nbytes
        return nbytes

    cdef object columns(self, object columns):
        """Return these columns of weight_ih, (G*H, U), for int64 (U,)."""
        if self.half:
            return unpack(self.table, self.cell, self.wx_half, self.dtype,
                          (self.input_size + 1) // 2, self.hidden_size, columns, True)
        return unpack(self.table, self.cell, self.wx, self.dtype, self.input_size,
                      self.hidden_size, columns)

    cdef tuple unpacked(self):
        """Return the weights and halves of the moment when they were packed."""
        cdef ptrdiff_t words_x = (self.input_size + 1) // 2, words_h = (self.hidden_size + 1) // 2
        w_ih = self.columns(np.arange(self.input_size, dtype=np.int64))
        if not self.half:
            w_hh = unpack(self.table, self.cell, self.wh, self.dtype, self.hidden_size,
                          self.hidden_size)
            return (w_ih, w_hh, *self.biases), None
        w_hh = unpack(self.table, self.cell, self.wh_half, self.dtype, words_h, self.hidden_size,
                      np.arange(self.hidden_size, dtype=np.int64), True)
        words_ih = unpack(self.table, self.cell, self.wx_half, self.dtype, words_x,
                          self.hidden_size)
        words_hh = unpack(self.table, self.cell, self.wh_half, self.dtype, words_h,
                          self.hidden_size)
        return (w_ih, w_hh, *self.biases), (words_ih, words_hh)

    def __reduce__(self):
        """Copy and pickle the weights themselves: another machine has other panels."""
        weights, halves = self.unpacked()
        return Packed, (self.kind, weights, halves)

    def __copy__(self):
        """Return itself: nothing in it ever changes."""
        return self


cdef class Head:
    def __cinit__(self, str name, head, dtype, ptrdiff_t K):
        cdef ptrdiff_t width, weight, bias
        cdef const void *source
        if not isinstance(head, (tuple, list)) or len(head) != 2:
            raise TypeError(f"{name}: head is of type {type(head).__name__}, "
                            "expected a pair (weight, bias)")
        matrix, vector = head
        shape = np.shape(matrix)
        if len(shape) != 2 or shape[0] < 1 or shape[1] != K:
            raise ValueError(f"{name}: head[0] has shape {shape}, expected (N, {K})")
        matrix = numbers(f"{name}: head[0]", matrix, dtype, shape)
        if vector is not None:
            vector = numbers(f"{name}: head[1]", vector, dtype, (shape[0],))
        self.dtype = dtype
        self.table = table_for(dtype)
        self.inputs = K
        self.outputs = shape[0]
        width = self.table.plain_vectors * self.table.lanes
        self.panels = ceil_div(self.outputs, width)
        carver = Carver(self.table.itemsize)
        weight = carver.add(<object> self.panels * width * K)
        bias = carver.add(<object> self.panels * width)
        self.buffer = Buffer(carver.bytes)
        self.weight = self.buffer.data + weight
        source = cnp.PyArray_DATA(matrix)
        with nogil:
            self.table.pack_plain_t(self.weight, source, K, self.outputs, 0, self.panels)
        if vector is not None:
            self.bias = self.buffer.data + bias
            memset(self.bias, 0, self.panels * width * self.table.itemsize)
            memcpy(self.bias, cnp.PyArray_DATA(vector), self.outputs * self.table.itemsize)

    cdef tuple unpacked(self):
        """Return (weight, bias or None) as they came."""
        weight = unpack(self.table, &self.table.cell[0], self.weight, self.dtype, self.inputs,
                        self.outputs)
        if self.bias == NULL:
            return weight, None
        bias = np.empty(self.outputs, self.dtype)
        memcpy(cnp.PyArray_DATA(bias), self.bias, self.outputs * self.table.itemsize)
        return weight, bias
