"""PyTorch's own threads, on which the kernels compute what PyTorch calls them for.

Two pools of threads in one process take the CPUs away from each other: the threads of the one wait
awake for more work while those of the other compute.
"""

import contextlib
import ctypes
import os

import torch

from fastrnn._kernels import runtime

__all__ = ["join"]

# GNU OpenMP's functions; other OpenMP libraries have them too.
_NAMES = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


def join() -> None:
    """Let calls with borrowed threads run on PyTorch's, if it uses OpenMP; else on the pool's."""
    if "parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return
    place = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
    with contextlib.suppress(OSError, AttributeError):  # another system, another OpenMP
        # PyTorch has loaded it; the search goes through the libraries that it depends on
        library = ctypes.CDLL(place)
        runtime.set_team(*(ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
                           for name in _NAMES))
