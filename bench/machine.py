"""The machine and the environment that peers run in."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# Variables that bend one library or another: a peer runs as its users run it.
_BENDING = ("OPENBLAS_", "OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_", "ATEN_", "TORCH_",
            "XLA_", "JAX_", "OV_", "ORT_", "NVPL_", "BLIS_", "NPY_")


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker with a number of threads."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(_BENDING)}
    for name in ("OMP", "OPENBLAS", "MKL", "FASTRNN", "BLIS"):
        env[f"{name}_NUM_THREADS"] = str(threads)
    env["JAX_PLATFORMS"] = "cpu"
    if threads == 1:
        env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH"))))
    return env


def cores(count: int) -> list[int]:
    """Return the CPUs to pin to: of distinct cores if there are enough, the last ones first.

    The first CPU often serves the interrupts.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0), reverse=True)
    chosen: list[int] = []
    seen: set[str] = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings = path.read_text().strip() if path.exists() else str(cpu)
        if siblings not in seen:
            seen.add(siblings)
            chosen.append(cpu)
    chosen += [cpu for cpu in allowed if cpu not in chosen]
    return chosen[:count]


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text().split("\n\n")[0].splitlines()
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}


def _commit() -> str:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, check=True,
                              capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def describe() -> dict[str, Any]:
    """Return the CPU, its caches, the systems below, the date and the commit."""
    info = _cpuinfo()
    flags = info.get("flags", info.get("Features", "")).split()
    known = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / f).read_text().strip() for f in ("level", "type", "size"))
        caches[f"L{level} {kind.lower()}"] = size
    return {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "vector extensions": [flag for flag in known if flag in flags],
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "caches": caches,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def load_average() -> float:
    """Return how many processes wanted to run in the last minute; 0 where no one counts."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
