from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    /* DLPack 1.x; the names and the order of the fields are the specification's. */
    typedef struct { uint32_t major, minor; } fr_dl_version;
    typedef struct { int32_t device_type, device_id; } fr_dl_device;
    typedef struct { uint8_t code, bits; uint16_t lanes; } fr_dl_dtype;
    typedef struct {
        void *data;
        fr_dl_device device;
        int32_t ndim;
        fr_dl_dtype dtype;
        int64_t *shape, *strides;
        uint64_t byte_offset;
    } fr_dl_tensor;
    typedef struct fr_dl_managed {
        fr_dl_version version;
        void *context;
        void (*free)(struct fr_dl_managed *self);
        uint64_t flags;
        fr_dl_tensor tensor;
    } fr_dl_managed;
    typedef struct {
        fr_dl_version version;
        void *prev_api;
        void *allocate;
        void *managed_from_object;
        int (*to_object)(void *managed, void **object);
        int (*from_object)(void *object, fr_dl_tensor *out);
        void *current_stream;
    } fr_dl_exchange;
    """
    ctypedef struct fr_dl_version:
        uint32_t major, minor
    ctypedef struct fr_dl_device:
        int32_t device_type, device_id
    ctypedef struct fr_dl_dtype:
        uint8_t code, bits
        uint16_t lanes
    ctypedef struct fr_dl_tensor:
        void *data
        fr_dl_device device
        int32_t ndim
        fr_dl_dtype dtype
        int64_t *shape
        int64_t *strides
        uint64_t byte_offset
    ctypedef struct fr_dl_managed:
        fr_dl_version version
        void (*free)(fr_dl_managed *self) noexcept nogil
        fr_dl_tensor tensor
    ctypedef struct fr_dl_exchange:
        fr_dl_version version
        int (*to_object)(void *managed, void **object) except -1
        int (*from_object)(void *object, fr_dl_tensor *out) except -1


cdef class Exchange:
    cdef const fr_dl_exchange *api
    cdef object convert, create  # used if api is NULL
    cpdef object view(self, object tensor, bint writeable=*)
    cpdef object empty(self, tuple shape, int size)
    cdef object empty_like(self, object array)
    cdef object allocate(self, int axes, const int64_t *shape, int size)
    cdef bint lies_at(self, object tensor, object array) except -1
