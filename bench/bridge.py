"""Accelerated modules of PyTorch beside PyTorch's own: ``python -m bench.bridge --threads 1``.

Both ways are timed in turns in one process, since they are the two ways of one program; the ratio
is the time of PyTorch's module over that of the accelerated one, the median over rounds. Rounds go
on until an interval 2% wide holds the median with about 95% certainty, 60 at most: on a shared
machine seven rounds of one and the same call differ by up to 20%. The accelerated module has seen
the sizes before, so the way that it chose is in force.

Letters: B sequences, T steps, I input, H hidden.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

KINDS = ("RNN", "GRU", "LSTM")
SIZES = tuple(itertools.product((4, 32, 128, 512, 1024), (1, 8, 64, 256), (1, 10, 100)))  # H, B, T
FEWEST, MOST_ROUNDS, SECONDS, WIDTH = 7, 60, 0.02, 0.02
MOST = 3e10  # floating-point operations of one call


def seconds(call: Callable[[], Any], count: int) -> float:
    """Return the time of one of `count` calls."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def ratio(theirs: Callable[[], Any], ours: Callable[[], Any]) -> tuple[float, float]:
    """Return the time of `ours`, and the median ratio over rounds in turns."""
    for call in (theirs, ours, theirs, ours):
        call()
    count = max(1, min(200, int(SECONDS / max(seconds(theirs, 1), 1e-7))))
    best, ratios = math.inf, list[float]()
    while len(ratios) < FEWEST or (len(ratios) < MOST_ROUNDS and _width(ratios) > WIDTH):
        their, own = seconds(theirs, count), seconds(ours, count)
        best = min(best, own)
        ratios.append(their / own)
    return best, statistics.median(ratios)


def _width(ratios: list[float]) -> float:
    """Return the relative width of the interval that holds the median with about 95% certainty."""
    ordered, count = sorted(ratios), len(ratios)
    reach = 0.98 * math.sqrt(count)  # order statistics on each side of the median, by the binomial
    low, high = max(0, int(count / 2 - reach)), min(count - 1, math.ceil(count / 2 + reach))
    return (ordered[high] - ordered[low]) / statistics.median(ratios)


def main() -> None:
    """Print a row for each cell, size and job, and the lowest ratio."""
    import torch

    import fastrnn.torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mode", choices=fastrnn.torch.choice.MODES, default="auto")
    parser.add_argument("--every", type=int, default=1, help="only each n-th size")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    fastrnn.torch.set_mode(args.mode)
    found = []
    for kind, (H, B, T) in itertools.product(KINDS, SIZES[:: args.every]):
        theirs = getattr(torch.nn, kind)(H, H)
        ours = fastrnn.torch.accelerate(copy.deepcopy(theirs))
        gates = theirs.weight_hh_l0.shape[0]
        if 4.0 * T * B * H * gates > MOST:
            continue
        x, dy = torch.randn(T, B, H), torch.ones(T, B, H)

        def infer(module: Any, x: Any = x) -> None:
            with torch.inference_mode():
                module(x)

        def train(module: Any, x: Any = x, dy: Any = dy) -> None:
            module(x)[0].backward(dy)

        for job in (infer, train):
            own, value = ratio(lambda m=theirs, job=job: job(m), lambda m=ours, job=job: job(m))
            found.append((value, f"{kind} {job.__name__} B {B} T {T} H {H}"))
            print(f"{found[-1][1]:34} {own * 1e6:12.1f} us {value:8.2f}", flush=True)
    for value, name in sorted(found)[:10]:
        print(f"lowest {value:.3f}  {name}")
    below = sum(value < 0.98 for value, _ in found)
    print(f"{below} of {len(found)} rows below 0.98")


if __name__ == "__main__":
    main()
