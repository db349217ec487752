"""Reads the tensors of another library where they lie, as arrays of NumPy.

A library whose tensors have DLPack's C exchange interface gives the address, shape and strides of a
tensor in less than 0.1 us, which is a tenth of what its own conversion to NumPy takes.

Specification: https://dmlc.github.io/dlpack/latest/c_api.html
"""

import numpy as np

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset

cnp.import_array()

cdef enum:
    CPU = 1          # a device
    FLOAT = 2        # a code of a dtype
    MOST_AXES = 8

# The version of DLPack whose table this module knows.
cdef uint32_t MAJOR = 1


cdef class Exchange:
    """Makes arrays of NumPy that lie on the memory of another library's tensors.

    Parameters
    ----------
    capsule : the attribute `__dlpack_c_exchange_api__` of the tensors' class, or None
    convert : function
        Returns the array of a tensor; used if there is no capsule, or if its version is another.
    create : function
        Returns a new tensor of a shape and an element size; used in the same cases.
    """

    def __init__(self, capsule, convert, create):
        self.convert, self.create = convert, create
        self.api = NULL
        if capsule is not None:
            self.api = <const fr_dl_exchange *> PyCapsule_GetPointer(
                capsule, b"dlpack_exchange_api")
            if (self.api.version.major != MAJOR or self.api.from_object == NULL
                    or self.api.allocate == NULL or self.api.to_object == NULL):
                self.api = NULL

    @property
    def fast(self):
        """Whether DLPack's C interface is in use."""
        return self.api != NULL

    cpdef object view(self, object tensor, bint writeable=False):
        """Return the array of an aligned float32 or float64 tensor on the CPU; None for any other.

        Nothing is copied. The tensor lives as long as the array.
        """
        cdef char *data
        cdef fr_dl_tensor from_
        cdef cnp.npy_intp[MOST_AXES] shape
        cdef cnp.npy_intp[MOST_AXES] strides
        cdef int i, size, flags = cnp.NPY_ARRAY_WRITEABLE if writeable else 0
        cdef ptrdiff_t count = 1
        if self.api == NULL:
            return self.convert(tensor)
        try:
            self.api.from_object(<void *> tensor, &from_)
        except (BufferError, RuntimeError, NotImplementedError):  # it has no memory, or not here
            return None
        size = from_.dtype.bits // 8
        if (from_.device.device_type != CPU or from_.dtype.code != FLOAT or size not in (4, 8)
                or from_.dtype.lanes != 1 or from_.ndim > MOST_AXES):
            return None
        data = <char *> from_.data + from_.byte_offset
        if <size_t> data % size:
            return None
        for i in range(from_.ndim):
            shape[i] = from_.shape[i]
            strides[i] = from_.strides[i] * size
            count *= shape[i]
        if data == NULL and count:  # of zeros that autograd has not written anywhere
            return None
        array = cnp.PyArray_New(
            np.ndarray, from_.ndim, shape, cnp.NPY_FLOAT32 if size == 4 else cnp.NPY_FLOAT64,
            strides, data, 0,
            flags | cnp.NPY_ARRAY_ALIGNED, <object> NULL)
        Py_INCREF(tensor)
        cnp.PyArray_SetBaseObject(array, tensor)
        return array

    cpdef object empty(self, tuple shape, int size):
        """Return a new tensor on the CPU whose elements are of no known value.

        Parameters
        ----------
        shape : tuple of int
        size : int
            Bytes of an element: 4 is float32, 8 is float64.
        """
        cdef fr_dl_tensor like
        cdef int64_t[MOST_AXES] sizes
        cdef int i, axes = len(shape)
        cdef void *managed
        cdef void *made
        if self.api == NULL:
            return self.create(shape, size)
        for i in range(axes):
            sizes[i] = shape[i]
        memset(&like, 0, sizeof(like))
        like.device.device_type = CPU
        like.dtype.code, like.dtype.bits, like.dtype.lanes = FLOAT, 8 * size, 1
        like.ndim, like.shape = axes, sizes
        if self.api.allocate(&like, &managed, NULL, fr_dl_ignore):
            raise MemoryError(f"cannot allocate a tensor of shape {shape}")
        self.api.to_object(managed, &made)
        tensor = <object> made
        Py_DECREF(tensor)  # it was given to us
        return tensor
