"""Checks of what the other modules are given, and where its arrays lie in memory.

Letters: T steps, B batch, I input, H hidden, G gates, V rows of an embedding, U of them in use.
Nothing below this module and its callers checks again.
"""

import reprlib
import sys

import numpy as np

cimport numpy as cnp
from libc.math cimport INFINITY, fabs
from libc.stdint cimport int32_t
from libc.string cimport memcpy

from fastrnn._kernels.timeline cimport Timeline
from fastrnn._kernels.walk cimport rows_of

cnp.import_array()

cdef ptrdiff_t LARGEST = sys.maxsize - 64  # bytes of one buffer
cdef double TOO_LARGE = 2.0**128 - 2.0**103  # from here on float32 rounds to infinity

cdef extern from *:
    """
    /* Whether a * b or a * b + c is more than a ptrdiff_t can hold; else *sum is a * b + c. */
    static int fr_overflows(ptrdiff_t a, ptrdiff_t b, ptrdiff_t c, ptrdiff_t *sum) {
      return __builtin_mul_overflow(a, b, sum) || __builtin_add_overflow(*sum, c, sum);
    }
    """
    int fr_overflows(ptrdiff_t a, ptrdiff_t b, ptrdiff_t c, ptrdiff_t *sum)


cdef bint is_flat(object array, object dtype, tuple shape, bint writeable):
    """Whether an array is all that check_flat asks for, found out quickly."""
    cdef cnp.ndarray a
    cdef int i
    if not (isinstance(array, cnp.ndarray) and isinstance(dtype, cnp.dtype)):
        return False
    a = <cnp.ndarray> array
    if not (cnp.PyArray_TYPE(a) == (<cnp.dtype> dtype).type_num
            and (cnp.PyArray_ISCARRAY(a) if writeable else cnp.PyArray_ISCARRAY_RO(a))
            and cnp.PyArray_NDIM(a) == len(shape)):
        return False
    for i in range(len(shape)):
        if cnp.PyArray_DIM(a, i) != shape[i]:
            return False
    return True


cdef check(str name, object array, object dtype, tuple shape, bint writeable=False):
    """Refuse what the kernels could not read or write safely. Rows must be contiguous."""
    cdef ptrdiff_t size
    cdef bint even = True
    if is_flat(array, dtype, shape, writeable):
        return
    if not isinstance(array, np.ndarray) or array.dtype != dtype or not array.dtype.isnative:
        raise TypeError(f"{name}: expected a native {np.dtype(dtype)} array, got "
                        f"{getattr(array, 'dtype', type(array).__name__)}")
    if array.shape != shape:
        raise ValueError(f"{name}: has shape {array.shape}, expected {shape}")
    if writeable and not array.flags.writeable:
        raise ValueError(f"{name}: is read-only, expected a writeable array")
    size = array.itemsize
    for stride in array.strides:
        even = even and stride % size == 0
    if array.size and (array.shape[array.ndim - 1] > 1 and array.strides[array.ndim - 1] != size
                       or not array.flags.aligned or not even):
        raise ValueError(f"{name}: has strides {array.strides}, expected aligned contiguous rows")


cdef check_flat(str name, object array, object dtype, tuple shape, bint writeable=False):
    """Refuse what is not C-contiguous, besides what `check` refuses."""
    if is_flat(array, dtype, shape, writeable):
        return
    check(name, array, dtype, shape, writeable)
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: has strides {array.strides}, expected a C-contiguous array")


cdef check_weights(tuple weights, int gates, object dtype, ptrdiff_t I, ptrdiff_t H, bint gradient):
    """Check the four parameters of one direction, or, with `gradient`, their gradients.

    A bias may be None, and so may any gradient: it is not wanted.
    """
    cdef ptrdiff_t rows = gates * H
    w_ih, w_hh, b_ih, b_hh = weights
    if not gradient or w_ih is not None:
        check_flat("dweight_ih" if gradient else "weight_ih", w_ih, dtype, (rows, I), gradient)
    if not gradient or w_hh is not None:
        check_flat("dweight_hh" if gradient else "weight_hh", w_hh, dtype, (rows, H), gradient)
    if b_ih is not None:
        check_flat("dbias_ih" if gradient else "bias_ih", b_ih, dtype, (rows,), gradient)
    if b_hh is not None:
        check_flat("dbias_hh" if gradient else "bias_hh", b_hh, dtype, (rows,), gradient)


cdef void *pointer(object array) noexcept:
    """Return where an array's elements begin; NULL for None."""
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray> array)


cdef fr_rows grid(object array, ptrdiff_t offset, bint reverse):
    """Return the (T, B) grid of rows of a 3-D array, from column `offset` on.

    With `reverse` the first row is that of the last step.
    """
    cdef ptrdiff_t size = cnp.PyArray_ITEMSIZE(array), T = cnp.PyArray_DIM(array, 0)
    cdef ptrdiff_t outer = cnp.PyArray_STRIDE(array, 0) // size
    cdef ptrdiff_t inner = cnp.PyArray_STRIDE(array, 1) // size
    cdef char *base = <char *> cnp.PyArray_DATA(array) + offset * size
    if reverse and T > 0:
        base += (T - 1) * outer * size
        outer = -outer
    return rows_of(base, cnp.PyArray_DIM(array, 1), outer, inner)


cdef fr_rows caller_rows(object array, ptrdiff_t offset, bint reverse, Timeline time, str layout):
    """Return where the walk's rows lie in an array (T, B, N), or (M, N) of a layout of `time`.

    They begin at column `offset`.
    """
    cdef fr_rows rows
    cdef ptrdiff_t size
    if time is None:
        return grid(array, offset, reverse)
    size = cnp.PyArray_ITEMSIZE(array)
    rows = rows_of(<char *> cnp.PyArray_DATA(array) + offset * size, cnp.PyArray_DIM(array, 0), 0,
                   cnp.PyArray_STRIDE(array, 0) // size)
    places = time.rows(layout, reverse)
    if places is None:
        rows.outer = rows.inner
        rows.count = 1
    else:
        rows.at = <const int32_t *> pointer(places)
    return rows


cdef class Carver:
    def __cinit__(self, ptrdiff_t itemsize):
        self.bytes = 0
        self.itemsize = itemsize

    cdef ptrdiff_t add(self, object elements) except -1:
        """Return where an array of so many elements begins.

        `elements` is one of Python's integers, which do not overflow.
        """
        if elements > LARGEST:
            raise MemoryError(f"cannot allocate {elements * self.itemsize} bytes of working memory")
        return self.add_rows(elements, 1)

    cdef ptrdiff_t add_rows(self, ptrdiff_t rows, ptrdiff_t elements) except -1:
        """Return where an array of so many rows of so many elements begins."""
        cdef ptrdiff_t offset = self.bytes, nbytes
        if (fr_overflows(rows, elements, 0, &nbytes)
                or fr_overflows(nbytes, self.itemsize, offset + 63, &nbytes) or nbytes > LARGEST):
            wanted = offset + <object> rows * elements * self.itemsize
            raise MemoryError(f"cannot allocate {wanted} bytes of working memory")
        self.bytes = nbytes // 64 * 64
        return offset


cdef tuple named_rows(object index, ptrdiff_t V):
    """Number the rows that `index` names from 0 to U-1; return (the new index, those rows (U,)).

    Work on symbols is then over the U rows in use. A large vocabulary costs nothing, and what the
    other rows hold, be it NaN, touches nothing. The caller's array is read once, into a copy that
    no other thread knows.
    """
    cdef ptrdiff_t i, n, U = 0
    renumbered = np.array(index, order="C")
    numbers = np.full(V, -1, np.int32)  # (V,) -1, later the row's number among those in use
    cdef int32_t *row = <int32_t *> pointer(renumbered)
    cdef int32_t *number = <int32_t *> pointer(numbers)
    n = cnp.PyArray_SIZE(renumbered)
    for i in range(n):
        if not 0 <= row[i] < V:
            raise IndexError(f"x: has the row number {row[i]}, expected 0 to {V - 1}")
        number[row[i]] = 0
    for i in range(V):
        if number[i] == 0:
            number[i] = <int32_t> U
            U += 1
    for i in range(n):
        row[i] = number[row[i]]
    return renumbered, np.flatnonzero(numbers >= 0).astype(np.int32)


cdef object take_rows(object array, object index):
    """Return array[index] for an array (V, I) with contiguous rows, or (V,), and int32 index.

    Where an allocation fails, NumPy's own may return NULL without an exception.
    """
    cdef ptrdiff_t i, n = cnp.PyArray_SIZE(index), stride = cnp.PyArray_STRIDE(array, 0)
    cdef ptrdiff_t size = cnp.PyArray_ITEMSIZE(array)
    cdef const int32_t *row = <const int32_t *> pointer(index)
    shape = index.shape
    if cnp.PyArray_NDIM(array) == 2:
        shape += (array.shape[1],)
        size *= cnp.PyArray_DIM(array, 1)
    taken = np.empty(shape, array.dtype)
    cdef char *target = <char *> pointer(taken)
    cdef const char *source = <const char *> pointer(array)
    for i in range(n):
        memcpy(target + i * size, source + row[i] * stride, size)
    return taken


cdef void put_rows(object array, object index, object rows) noexcept:
    """Write rows (U, I), contiguous, to array[index] of an array (V, I) with contiguous rows."""
    cdef ptrdiff_t i, size = cnp.PyArray_ITEMSIZE(array) * cnp.PyArray_DIM(array, 1)
    cdef const int32_t *row = <const int32_t *> pointer(index)
    cdef char *target = <char *> pointer(array)
    for i in range(cnp.PyArray_SIZE(index)):
        memcpy(target + row[i] * cnp.PyArray_STRIDE(array, 0),
               <const char *> pointer(rows) + i * size, size)


# ---- what people pass, not only other modules ----------------------------------------------------

def in_range(array, ptrdiff_t count):
    """Return whole numbers as a C-contiguous int32 copy; None if one is not in [0, count)."""
    numbers = np.array(array, np.int64, order="C")
    result = np.empty(numbers.shape, np.int32)
    cdef const cnp.int64_t *source = <const cnp.int64_t *> pointer(numbers)
    cdef int32_t *target = <int32_t *> pointer(result)
    cdef ptrdiff_t i
    for i in range(cnp.PyArray_SIZE(numbers)):
        if not 0 <= source[i] < count:
            return None
        target[i] = <int32_t> source[i]
    return result


def all_are(numbers, ptrdiff_t value):
    """Whether all of an int32 array are this number."""
    cdef const int32_t *each = <const int32_t *> pointer(numbers)
    cdef ptrdiff_t i
    for i in range(cnp.PyArray_SIZE(numbers)):
        if each[i] != value:
            return False
    return True


def is_masked(value):
    """Whether it is a masked array with masked places; numpy.ma is there if somebody made one."""
    ma = sys.modules.get("numpy.ma")
    return ma is not None and isinstance(value, ma.MaskedArray) and bool(ma.is_masked(value))


cdef object as_array(str name, object value, object of):
    if is_masked(value):
        raise TypeError(f"{name} is a masked array with masked places, expected an array of {of}: "
                        "fill the places")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is a ragged sequence, expected an array of {of}") from error
    except (RuntimeError, TypeError) as error:  # a tensor of a graph, or of bfloat16
        raise TypeError(f"{name} is of type {type(value).__name__}, expected an array of {of}: "
                        f"{error}") from error


cdef object numbers(str name, object value, object dtype, tuple shape):
    """Return `value` as a C-contiguous array; arrays must have the dtype, lists are converted."""
    cdef const double *source
    cdef ptrdiff_t i
    array = as_array(name, value, dtype)
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        if array.dtype.newbyteorder("=") != dtype:
            raise TypeError(f"{name} is {array.dtype}, expected {dtype}")
    elif array.dtype.kind not in "fiu":
        came = "None" if value is None else f"of type {type(value).__name__}"
        raise TypeError(f"{name} is {came}, expected numbers ({dtype})")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    if array.dtype == np.float64 and dtype == np.float32:  # a list of numbers
        array = np.require(array, None, ("C", "A"))
        source = <const double *> pointer(array)
        # a loop: NumPy's any() has no MemoryError
        for i in range(cnp.PyArray_SIZE(<cnp.ndarray> array)):
            if TOO_LARGE <= fabs(source[i]) < INFINITY:
                raise ValueError(f"{name} has {source[i]}, which {dtype} cannot hold")
    return np.require(array, dtype, ("C", "A"))


cdef object check_out(str name, object out, object dtype, tuple shape):
    """Refuse what a result cannot be written into."""
    if not isinstance(out, np.ndarray) or out.dtype != dtype or not out.dtype.isnative:
        came = out.dtype if isinstance(out, np.ndarray) else f"of type {type(out).__name__}"
        raise TypeError(f"{name} is {came}, expected an array of {dtype}")
    if out.shape != shape:
        raise ValueError(f"{name} has shape {out.shape}, expected {shape}")
    if not (out.flags.c_contiguous and out.flags.writeable and out.flags.aligned):
        raise ValueError(f"{name} must be C-contiguous, aligned and writeable")


cdef tuple parts_of_state(str name, object state, bint has_c, object dtype, tuple shape):
    """Return (h, c) of one stack of layers; None means zeros."""
    h, c = state, None
    if has_c and state is not None:
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            try:
                came = f"{type(state).__name__} of {len(state)}"
            except TypeError:  # it has no length
                came = reprlib.repr(state)
            raise TypeError(f"{name} is {came}, expected a pair (h, c)")
        h, c = state
        h = None if h is None else numbers(f"{name}[0]", h, dtype, shape)
        c = None if c is None else numbers(f"{name}[1]", c, dtype, shape)
        return h, c
    if isinstance(state, tuple):
        raise TypeError(f"{name} is a tuple of {len(state)}, expected one array")
    return None if h is None else numbers(name, h, dtype, shape), None
