"""RTNeural's compile-time classes, called from C, in libraries that you build beside this.

The variable FASTRNN_RTNEURAL names them, separated as in PATH: one for each of RTNeural's backends
and sets of compiler flags; the fastest counts. Each has these functions, I and H being the sizes of
``ModelT<float, I, H, LSTMLayerT<float, I, H>>`` or the GRU of it, arrays float32 in torch's layout
and order of gates::

    const char *cell_name(void);
    const char *cell_activations(void);                              how tanh and sigmoid are made
    void *cell_new(int gru, int I, int H, const float *weight_ih, const float *weight_hh,
                   const float *bias_ih, const float *bias_hh);      NULL: no class of this size
    void cell_reset(void *);                                         state = 0
    void cell_run(void *, const float *x, float *y, long T);         x (T, I) -> y (T, H)
    double cell_seconds(void *, const float *x, long T, long n);     of n times T forward calls
    void cell_free(void *);

`cell_seconds` runs the loop over samples and reads the clock, so that no call from Python is part
of its time. Of fastrnn's time one call a block is.
"""

from __future__ import annotations

import ctypes
import os
from functools import partial
from typing import Any

import numpy as np

from bench.cases import PARAMETERS, Arrays, Case
from bench.peers import UnsupportedError, Way

CAN = {"block"}
_FLOATS = np.ctypeslib.ndpointer(np.float32, flags="C_CONTIGUOUS")


def _load(path: str) -> Any:
    library = ctypes.CDLL(os.path.abspath(path))
    library.cell_name.restype = library.cell_activations.restype = ctypes.c_char_p
    library.cell_new.restype = ctypes.c_void_p
    library.cell_new.argtypes = [ctypes.c_int] * 3 + [_FLOATS] * 4
    library.cell_reset.argtypes = library.cell_free.argtypes = [ctypes.c_void_p]
    library.cell_run.argtypes = [ctypes.c_void_p, _FLOATS, _FLOATS, ctypes.c_long]
    library.cell_seconds.argtypes = [ctypes.c_void_p, _FLOATS, ctypes.c_long, ctypes.c_long]
    library.cell_seconds.restype = ctypes.c_double
    return library


_paths = [path for path in os.environ.get("FASTRNN_RTNEURAL", "").split(os.pathsep) if path]
if not _paths:
    raise ImportError("FASTRNN_RTNEURAL names no library, see bench/peers/rtneural.py")
try:
    _libraries = [_load(path) for path in _paths]
except (OSError, AttributeError) as error:  # no such file, or no such function in it
    raise ImportError(f"FASTRNN_RTNEURAL: {error}") from error


def version() -> str:
    """Return the names of the libraries, and their activations."""
    return "; ".join(f"{library.cell_name().decode()} ({library.cell_activations().decode()})"
                     for library in _libraries)


def setup(threads: int) -> None:
    """Do nothing: one sample is one thread's work."""


def load(case: Case, a: Arrays) -> list[Way]:
    """Return the ways to run the case."""
    if case.kind != "block":
        raise UnsupportedError("sample by sample only")
    if case.cell not in ("lstm", "gru") or case.L * case.D * case.B > 1 or not case.bias:
        raise UnsupportedError("one LSTM or GRU of one direction, with biases, and one row")
    if case.dtype != "float32":
        raise UnsupportedError(f"no {case.dtype}")
    ways = [_way(library, case, a) for library in _libraries]
    if None in ways:
        raise UnsupportedError(f"no class of {case.I} inputs and {case.H} units was compiled")
    return [way for way in ways if way is not None]


class _Model:
    """Owns what cell_new returns."""

    def __init__(self, library: Any, case: Case, a: Arrays) -> None:
        names = case.names(0, 0)
        self.library = library
        self.address = library.cell_new(int(case.cell == "gru"), case.I, case.H,
                                        *(a.params[names[p]] for p in PARAMETERS))

    def __del__(self) -> None:
        if self.address:
            self.library.cell_free(self.address)


def _way(library: Any, case: Case, a: Arrays) -> Way | None:
    model = _Model(library, case, a)
    if not model.address:
        return None
    x = np.ascontiguousarray(a.x[:, 0])  # (2 T, I): two blocks
    y = np.empty((len(x), case.H), np.float32)
    first = x[: case.T]

    def results() -> dict[str, np.ndarray]:
        library.cell_reset(model.address)
        for block in (slice(0, case.T), slice(case.T, 2 * case.T)):
            library.cell_run(model.address, x[block], y[block], case.T)
        return {"y": y[:, None].copy()}

    def seconds(count: int) -> float:
        return library.cell_seconds(model.address, first, case.T, count)

    return Way(library.cell_name().decode(), partial(seconds, 1), results, keep=model,
               seconds=seconds)
