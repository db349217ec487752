"""The least time that a case can take on the probed machine.

A step of the recurrence takes at least the larger of its flops at the peak and the reading of its
weights at the bandwidth of the level that holds them. What does not wait for the step before counts
its flops only: the input's product, and in backward the three products that come after the walk
(dW_ih, dW_hh, dx). A stream reads both weight matrices at each step, and all layers' weights share
one level. Training walks twice, so its bound is the sum over both walks; for B = 1 that is more
than three times the forward flops.
"""

from __future__ import annotations

import math
from typing import Any

from bench.cases import VOCABULARY, Case


def bandwidth(probe: dict[str, Any], size: float) -> float:
    """Return the bytes per second at which a working set of `size` bytes can be read.

    Interpolated on a logarithmic scale; never below what a larger set reached, which is noise.
    """
    points = sorted(probe["read_gbs"])
    sizes = [math.log(s) for s, _ in points]
    speeds = [max(speed for _, speed in points[k:]) for k in range(len(points))]
    at = math.log(max(size, 1))
    if at <= sizes[0]:
        return speeds[0] * 1e9
    for k in range(1, len(sizes)):
        if at <= sizes[k]:
            share = (at - sizes[k - 1]) / (sizes[k] - sizes[k - 1])
            return (speeds[k - 1] + share * (speeds[k] - speeds[k - 1])) * 1e9
    return speeds[-1] * 1e9


def limit(case: Case, probe: dict[str, Any]) -> float:
    """Return the least time of one call in seconds."""
    itemsize = 8 if case.dtype == "float64" else 4
    peak = probe["fma_gflops"] * 1e9 * 4 / itemsize
    live, GH, H = case.live, case.G * case.H, case.H  # rows of each step
    rows = int(live.sum())
    widths = [case.width(layer) for layer in range(case.L)]
    if case.kind in ("stream", "callers"):
        size = sum(GH * (I + H) for I in widths) * itemsize
        return max(case.flops / peak, size / bandwidth(probe, size))
    size = GH * H * itemsize
    reading = size / bandwidth(probe, size)
    walk = sum(max(2 * int(n) * GH * H / peak, reading) for n in live)
    total = 0.0
    for I in widths:
        from_x = 2 * rows * GH * I / peak
        total += case.D * (from_x + walk)
        if case.kind in ("train", "lm"):
            after = 2 * rows * GH * H / peak  # dW_hh
            total += case.D * (2 * from_x + after + walk)
    if case.kind == "lm":
        total += 3 * 2 * rows * VOCABULARY * H / peak
    return total
