"""What all kernels share: the instruction set in use, the number of threads, aligned memory.

The only module that is linked with the C side (src_c/), so that there is one pool and one choice
of instruction set in a process.
"""

import os
import warnings

import numpy as np

cimport cython
cimport numpy as cnp

from libc.stdint cimport int32_t

from fastrnn._kernels.c cimport (
    FR_CELLS,
    FR_MAX_THREADS,
    FR_OPERATIONS,
    FR_REGISTER_BYTES,
    fr_any_number,
    fr_barrier,
    fr_cell_row,
    fr_elementwise,
    fr_flush_denormals,
    fr_instruction,
    fr_isa_count,
    fr_isa_name,
    fr_isa_supported,
    fr_isa_table,
    fr_pitch,
    fr_place,
    fr_refused,
    fr_restore,
    fr_number,
    fr_run,
    fr_set_team,
    fr_table,
    fr_team,
    fr_wait,
    fr_wait_step,
    fr_work,
    fr_workers,
)

cnp.import_array()

# Spare buffers of a workspace: enough for the layers of a stack, forward and backward.
cdef int SPARE = 16

# Work below this many floating-point operations (5 to 10 us) stays on the caller's thread.
cdef double SERIAL = 1e6

cdef extern from *:
    """
    static _Thread_local int fr_borrowed;
    static _Thread_local int fr_plain; /* calls of this thread use the scalar table */
    /* Calls read the settings without the GIL, while another thread may change them. */
    #define fr_read(setting) __atomic_load_n(&(setting), __ATOMIC_RELAXED)
    #define fr_write(setting, value) __atomic_store_n(&(setting), value, __ATOMIC_RELAXED)
    #define fr_take(setting) __atomic_exchange_n(&(setting), 0, __ATOMIC_RELAXED)
    """
    int fr_borrowed
    int fr_plain
    int fr_read(int) noexcept nogil
    void fr_write(int, int) noexcept nogil
    int fr_take(int) noexcept nogil
    # The system may refuse a thread where the GIL is not held.
    int Py_AddPendingCall(int (*function)(void *) noexcept, void *argument) nogil

cdef object FLOAT32 = np.dtype(np.float32)
cdef object FLOAT64 = np.dtype(np.float64)

cdef int isa = -1
cdef int threads = 1
cdef bint flush = True
cdef bint warned = False
cdef bint warns_of_refused = True


def isa_names():
    """Names of the instruction sets of this build, each with whether this CPU has it."""
    return {fr_isa_name(i).decode(): bool(fr_isa_supported(i)) for i in range(fr_isa_count())}


def get_isa():
    """Name of the instruction set in use."""
    return fr_isa_name(0 if fr_plain else fr_read(isa)).decode()


def set_isa(name=None):
    """Choose the instruction set for every later call; None: the widest that this CPU has."""
    known = isa_names()
    if name is None:
        *_, name = (n for n, has in known.items() if has)
    if name not in known:
        raise ValueError(
            f"FASTRNN_ISA: unknown instruction set {name!r}, this build has {', '.join(known)}")
    if not known[name]:
        raise ValueError(f"FASTRNN_ISA: this CPU does not have {name!r}, it has "
                         + ", ".join(n for n, has in known.items() if has))
    fr_write(isa, list(known).index(name))


def use_scalar(bint on):
    """Let calls of this thread use the scalar table, the first, or no longer; see checked.py."""
    global fr_plain
    fr_plain = on


def cpu_limit():
    """Threads that may run at once here: the affinity mask, cut by the quotas of control groups."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    for folder in control_groups():
        try:
            if os.path.exists(f"{folder}/cpu.max"):
                quota, period = read(f"{folder}/cpu.max").split()
            else:
                quota = read(f"{folder}/cpu.cfs_quota_us")
                period = read(f"{folder}/cpu.cfs_period_us")
            if quota != "max" and float(quota) > 0:
                count = min(count, max(1, round(float(quota) / float(period))))
        except (OSError, ValueError):
            continue
    return count


def control_groups():
    """Folders of the groups, of both versions, that this process is in, and of those above them.

    In a container its own group is usually the topmost that can be seen.
    """
    folders = ["/sys/fs/cgroup", "/sys/fs/cgroup/cpu"]
    try:
        lines = read("/proc/self/cgroup").splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            home = folders[bool(controllers)]
            names = path.strip("/").split("/")
            folders += ["/".join((home, *names[:n + 1])) for n in range(len(names)) if names[n]]
    return folders


def read(path):
    with open(path) as file:
        return file.read().strip()


def set_num_threads(n):
    """Set how many threads a call may use.

    Parameters
    ----------
    n : int
        At least 1. Results are the same bits for any number. Small work stays on one thread. A
        number above that of the CPUs that may be used (affinity mask, cgroup quota) counts as
        that number, and the first one is a warning: more threads would wait for each other. If the
        mask shrinks later, calls follow it. FASTRNN_OVERSUBSCRIBE=1 in the environment allows
        more, for tests.

    Raises
    ------
    ValueError
        If `n` is not a whole number of at least 1.
    """
    global warned
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"set_num_threads: n is {n!r}, expected a whole number of at least 1")
    any_number = os.environ.get("FASTRNN_OVERSUBSCRIBE") == "1"
    fr_any_number(any_number)
    most = FR_MAX_THREADS if any_number else min(FR_MAX_THREADS, cpu_limit())
    fr_write(threads, min(n, most))
    if n > most and not any_number and not warned:
        warned = True
        warnings.warn(f"set_num_threads: {n} threads are asked for, {most} are used: this process "
                      f"may use {most} CPU{'s' if most > 1 else ''}", RuntimeWarning, stacklevel=1)


def get_num_threads():
    """Return how many threads a call may use."""
    return fr_read(threads)


def borrow_threads(int n):
    """Let calls of this Python thread use n threads, whatever set_num_threads says; 0: no more.

    For calls on behalf of another library, which has its own number of threads.
    """
    global fr_borrowed
    fr_borrowed = n


def set_team(size_t parallel, size_t rank, size_t size):
    """Run calls with borrowed threads on another library's threads; see fr_set_team.

    Parameters
    ----------
    parallel, rank, size : int
        Addresses of the three functions; 0: the pool's own threads.
    """
    fr_set_team(<fr_team> parallel, <fr_number> rank, <fr_number> size)


def cell_rows():
    """Return what the C side knows of each cell, a dict in the order of fr_cell (fastrnn.h)."""
    cdef const fr_cell_row *row
    rows = []
    for kind in range(FR_CELLS):
        row = &table_of(32).cell[<int> kind]
        rows.append({
            "gates": row.gates, "slots": row.slots, "has_c": bool(row.has_c),
            "order_x": [row.order_x[g] for g in range(row.gates)],
            "slot_h": [row.slot_h[g] for g in range(row.gates)],
            "vectors": row.vectors, "plain": bool(row.plain), "apart": row.apart,
        })
    return rows


def pool_workers():
    """Threads that the pool has made beside the caller's."""
    return fr_workers()


def set_flush_denormals(on):
    """Choose whether kernels treat denormal numbers as zero.

    Parameters
    ----------
    on : bool
        True (the default): inside kernels, numbers below the smallest normal one (1.2e-38 in
        float32) count as zero, which keeps decaying states fast. The caller's own
        floating-point state is restored on return. False: IEEE arithmetic throughout.

    Raises
    ------
    TypeError
        If `on` is neither True nor False.
    """
    if not isinstance(on, (bool, int, np.bool_, np.integer)) or on not in (0, 1):
        raise TypeError(f"set_flush_denormals: on is {on!r}, expected True or False")
    fr_write(flush, bool(on))


def get_flush_denormals():
    """Return whether kernels treat denormal numbers as zero."""
    return bool(fr_read(flush))


def _from_environment():
    set_isa(os.environ.get("FASTRNN_ISA") or None)
    count = cpu_limit()
    for name in ("FASTRNN_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").strip()
        if not text:
            continue
        if text.isdecimal() and int(text) >= 1:
            set_num_threads(int(text) if name == "FASTRNN_NUM_THREADS" else min(count, int(text)))
            return
        if name == "FASTRNN_NUM_THREADS":
            raise ValueError(f"{name} is {text!r}, expected a whole number of at least 1")
    set_num_threads(count)


_from_environment()


cdef const fr_table *table_for(object dtype) except NULL:
    if dtype is FLOAT32 or dtype == np.float32:  # the first is quicker, and nearly always it
        return table_of(32)
    if dtype is FLOAT64 or dtype == np.float64:
        return table_of(64)
    raise TypeError(f"dtype is {dtype}, expected float32 or float64")


cdef const fr_table *table_of(int bits) noexcept nogil:
    return fr_isa_table(0 if fr_plain else fr_read(isa), bits)


cdef int threads_for(double operations) noexcept nogil:
    if operations <= SERIAL:
        return 1
    return min(fr_borrowed, FR_MAX_THREADS) if fr_borrowed > 0 else fr_read(threads)


cdef void run(fr_work work, void *arg, int n) noexcept nogil:
    fr_run(work, arg, n, fr_borrowed > 0)
    if n > 1 and fr_read(warns_of_refused) and fr_refused() and fr_take(warns_of_refused):
        Py_AddPendingCall(warn_of_refused, NULL)


cdef int warn_of_refused(void *unused) noexcept with gil:
    """Warn, as soon as Python's main thread runs, that the pool got fewer threads than it wants."""
    warnings.warn(f"fastrnn: the system refused a thread, so calls run on {1 + fr_workers()} of "
                  f"{threads} threads: a limit of processes, or of memory, may be too low",
                  RuntimeWarning, stacklevel=1)
    return 0


cdef void wait(fr_barrier *barrier, int size) noexcept nogil:
    fr_wait(barrier, size)


cdef bint wait_step(fr_barrier *barrier, int size) noexcept nogil:
    return fr_wait_step(barrier, size)


cdef unsigned flush_denormals() noexcept nogil:
    return fr_flush_denormals(fr_read(flush))


cdef unsigned keep_denormals() noexcept nogil:
    return fr_flush_denormals(0)


cdef void restore(unsigned state) noexcept nogil:
    fr_restore(state)


cdef ptrdiff_t pitch_of(ptrdiff_t hidden, ptrdiff_t itemsize) noexcept nogil:
    return fr_pitch(hidden, itemsize)


# The garbage collector must not take these two apart: a tape that it drops gives its buffer back in
# __dealloc__, when what it refers to may have been cleared. They refer to nothing that leads back.
@cython.no_gc
cdef class Buffer:
    def __cinit__(self, nbytes):
        # Python's integers do not overflow, and NumPy refuses what no memory can hold.
        try:
            self.owner = np.empty(nbytes + 64, np.uint8)
        except (ValueError, MemoryError, OverflowError):
            raise MemoryError(f"cannot allocate {nbytes} bytes of working memory") from None
        self.nbytes = nbytes
        self.data = <char *> ((<size_t> cnp.PyArray_DATA(self.owner) + 63) & ~(<size_t> 63))


@cython.no_gc
cdef class Workspace:
    def __cinit__(self):
        self.spare = []

    def __reduce__(self):
        return Workspace, ()

    def __deepcopy__(self, memo):
        return Workspace()

    cdef Buffer take(self, ptrdiff_t nbytes):
        """Return the smallest spare buffer that fits well, or a new one.

        A new one takes the place of the oldest spare one, so that there are never more buffers
        than were once in use at the same time.
        """
        cdef Buffer buffer
        cdef ptrdiff_t i, best = -1, size = 0
        for i in range(len(self.spare)):
            buffer = self.spare[i]
            if (nbytes <= buffer.nbytes and buffer.nbytes // 2 <= nbytes + 2048
                    and (best < 0 or buffer.nbytes < size)):
                best, size = i, buffer.nbytes
        if best >= 0:
            buffer = self.spare[best]
            del self.spare[best]
            return buffer
        if self.spare:
            del self.spare[0]
        return Buffer(nbytes)

    cdef void give(self, Buffer buffer):
        try:
            self.spare.append(buffer)
        except MemoryError:  # then it is not kept
            return
        if len(self.spare) > SPARE:
            del self.spare[0]


def activate(x, op):
    """Apply one activation of the kernels elementwise: "sigmoid", "tanh" or "exp" (for x <= 0).

    x: contiguous array, any shape. For tests.
    """
    x = np.ascontiguousarray(x)
    cdef const fr_table *table = table_for(x.dtype)
    y = np.empty_like(x)
    cdef int code = ("sigmoid", "tanh", "exp").index(op)
    cdef void *target = cnp.PyArray_DATA(y)
    cdef const void *source = cnp.PyArray_DATA(x)
    cdef ptrdiff_t size = x.size
    cdef unsigned state
    with nogil:
        state = flush_denormals()
        table.activate(target, source, size, code)
        restore(state)
    return y


def elementwise(code, arrays, registers, tile, u0=0, u1=None):
    """Run an element-wise program (fr_elementwise) on arrays, which it changes in place. For tests.

    code: rows of op, d, a, b, c, e: a number of fr_operation and numbers of places. arrays: the
    places in memory, (rows, units) of one dtype, units next to each other and a multiple of 64
    bytes; a vector that all rows share is broadcast to that shape. registers: how many follow
    them. tile: numbers of a tile. [u0, u1), rounded to whole vectors: the units to compute.
    """
    code = np.ascontiguousarray(code, np.int32).reshape(-1, 6)
    rows, units = arrays[0].shape
    dtype = arrays[0].dtype
    cdef const fr_table *table = table_for(dtype)
    cdef ptrdiff_t lanes = table.lanes, size = table.itemsize
    cdef cnp.ndarray places = np.empty((len(arrays), 2), np.intp)  # of fr_place
    for i, array in enumerate(arrays):
        if (array.shape, array.dtype) != ((rows, units), dtype) or array.strides[1] != size:
            raise ValueError("elementwise: arrays differ in shape or dtype, or are not contiguous")
        places[i] = array.ctypes.data, array.strides[0] // size
    if units * size % 64:
        raise ValueError(f"elementwise: {units} units are no multiple of 64 bytes")
    if not 1 <= tile <= FR_REGISTER_BYTES // size:
        raise ValueError(f"elementwise: tile is {tile}, a register has {FR_REGISTER_BYTES} bytes")
    most = [FR_OPERATIONS, *5 * [len(arrays) + registers]]
    if np.any(code < 0) or np.any(code >= most):
        raise ValueError("elementwise: the code names operations or places that are not there")
    if u1 is None:
        u1 = units
    if not 0 <= u0 <= u1 <= units:
        raise ValueError(f"elementwise: units [{u0}, {u1}) of {units}")
    cdef Buffer scratch = Buffer(registers * FR_REGISTER_BYTES)
    cdef fr_elementwise s
    cdef unsigned state
    s.code = <const fr_instruction *> cnp.PyArray_DATA(code)
    s.count = len(code)
    s.places = <const fr_place *> cnp.PyArray_DATA(places)
    s.registers = len(arrays)
    s.scratch = scratch.data
    s.rows = rows
    s.u0 = u0 // lanes * lanes
    s.u1 = (u1 + lanes - 1) // lanes * lanes
    s.tile = tile
    with nogil:
        state = flush_denormals()
        table.elementwise(&s)
        restore(state)


def sum_units(x):
    """Return the sum of each row of x (rows, units). For tests; units are next to each other."""
    rows, n = x.shape
    y = np.empty(rows, x.dtype)
    cdef const fr_table *table = table_for(x.dtype)
    cdef ptrdiff_t row = x.strides[0] // table.itemsize
    table.sum_units(cnp.PyArray_DATA(y), 1, cnp.PyArray_DATA(x), row, rows, n)
    return y


def add_rows(y, x, at=None):
    """Add row at[m] of x (None: row m) to row m of y (rows, units), in place. For tests."""
    rows, n = y.shape
    if at is None:
        at = np.arange(rows)
    at = np.ascontiguousarray(at, np.int32)
    cdef const fr_table *table = table_for(x.dtype)
    cdef ptrdiff_t y_row = y.strides[0] // table.itemsize, x_row = x.strides[0] // table.itemsize
    table.add_rows(cnp.PyArray_DATA(y), y_row, cnp.PyArray_DATA(x), x_row,
                   <const int32_t *> cnp.PyArray_DATA(at), rows, n)
