"""What it costs to have the library: import time and installed size."""

from __future__ import annotations

import importlib.metadata
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import machine

IMPORT_MS, SIZE_MB = 60, 5  # of fastrnn, at most, beyond NumPy
# what a peer imports, and the distributions whose files are its own
_PEERS = {
    "fastrnn": ("fastrnn", ("fastrnn",)),
    "torch": ("torch", ("torch",)),
    "ort": ("onnxruntime", ("onnxruntime",)),
    "openvino": ("openvino", ("openvino",)),
    "jax": ("jax", ("jax", "jaxlib")),
}
_CODE = """
import time, numpy
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""
_NOT_INSTALLED = {".c", ".pyx", ".pxd", ".pyc"}  # of a source tree


def _import_seconds(module: str) -> float:
    done = subprocess.run([sys.executable, "-c", _CODE.format(module=module)], check=True,
                          capture_output=True, text=True, env=machine.environment(1))
    return float(done.stdout.splitlines()[-1])


def _size(distributions: tuple[str, ...], module: str) -> int:
    """Return the bytes of the files that the distributions install, or of the source tree's."""
    tree = machine.ROOT / module
    if tree.is_dir():
        paths = list(tree.rglob("*"))
    else:
        paths = [Path(str(f.locate())) for name in distributions
                 for f in importlib.metadata.files(name) or ()]
    return sum(p.stat().st_size for p in paths
               if p.is_file() and p.suffix not in _NOT_INSTALLED)


def run(peers: list[str], rounds: int) -> list[dict[str, Any]]:
    """Measure and print; return a row per peer."""
    print("\nimport beyond NumPy's own, and installed size without NumPy")
    times: dict[str, list[float]] = {peer: [] for peer in _PEERS if peer in peers}
    for _ in range(rounds):
        for peer in list(times):
            try:
                times[peer].append(_import_seconds(_PEERS[peer][0]))
            except subprocess.CalledProcessError:
                del times[peer]
                print(f"  {peer:10} not installed")
    rows = []
    for peer, seconds in times.items():
        module, distributions = _PEERS[peer]
        size = _size(distributions, module)
        row = {"peer": peer, "import_ms": statistics.median(seconds) * 1e3,
               "import_min_ms": min(seconds) * 1e3,
               "size_mb": size / 1e6}
        mark = ""
        if peer == "fastrnn":
            row |= {"need_import_ms": IMPORT_MS, "need_size_mb": SIZE_MB}
            within = row["import_ms"] <= IMPORT_MS and size / 1e6 <= SIZE_MB
            mark = f"  allowed {IMPORT_MS} ms, {SIZE_MB} MB{'' if within else '  SHORT'}"
        print(f"  {peer:10} {row['import_ms']:8.1f} ms {size / 1e6:8.1f} MB{mark}")
        rows.append(row)
    return rows
