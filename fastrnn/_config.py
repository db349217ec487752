"""What fastrnn runs on, and the choices a process can make."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._kernels.runtime import (
    cpu_limit,
    get_flush_denormals,
    get_isa,
    get_num_threads,
    isa_names,
    set_flush_denormals,
    set_num_threads,
)

__all__ = [
    "get_flush_denormals",
    "get_num_threads",
    "set_flush_denormals",
    "set_num_threads",
    "show_config",
]


def version() -> str:
    """Return the version of the installed package."""
    from importlib import metadata  # loads json, zipfile and more

    try:
        return metadata.version("fastrnn")
    except metadata.PackageNotFoundError:  # imported from a source tree
        return "unknown"


@_checks.public
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print the instruction set in use, those available, threads and versions.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print, or return a dictionary instead.

    Returns
    -------
    dict or None

    Raises
    ------
    ValueError
        If the mode is another.

    Notes
    -----
    FASTRNN_ISA in the environment chooses an instruction set. FASTRNN_NUM_THREADS chooses the
    number of threads, else OMP_NUM_THREADS; affinity and the cgroup's quota limit it.
    """
    _checks.one_of("mode", mode, ("stdout", "dicts"))
    names = isa_names()
    config = {
        "fastrnn": version(),
        "instruction set": get_isa(),
        "available": [name for name, has in names.items() if has],
        "built for": list(names),
        "threads": get_num_threads(),
        "CPUs allowed": cpu_limit(),
        "denormals": "flushed to zero" if get_flush_denormals() else "kept",
        "numpy": np.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    }
    if mode == "dicts":
        return config
    for key, value in config.items():
        print(f"{key:16} {', '.join(value) if isinstance(value, list) else value}")
    return None
