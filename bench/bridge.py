"""Accelerated modules of PyTorch beside PyTorch's own: ``python -m bench.bridge --threads 1``.

Both ways are timed in turns in one process, since they are the two ways of one program; the ratio
is the time of PyTorch's module over that of the accelerated one, the median over rounds. Rounds go
on until an interval 2% wide holds the median with about 95% certainty, 60 at most: on a shared
machine seven rounds of one and the same call differ by up to 20%. The accelerated module has seen
the sizes before, so the way that it chose is in force.

``--overhead`` measures the smallest call instead, one step of four units: what is left is the way
into and out of the kernels. Beside PyTorch's own module stands one whose operator is an empty node
of autograd: it saves the input and the weights and returns new gradients, without computing any.

Letters: B sequences, T steps, I input, H hidden.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def empty_operator(kind: str) -> Iterator[None]:
    """Let modules of torch.nn call a node of autograd that computes nothing."""
    import torch

    name = {"RNN": "rnn_tanh"}.get(kind, kind.lower())

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, outputs: Any, x: Any, *weights: Any) -> Any:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x, *weights)
            return tuple(y.detach() for y in outputs)

        @staticmethod
        def backward(ctx: Any, *doutputs: Any) -> Any:
            return None, None, *map(torch.empty_like, ctx.saved_tensors[1:])

    def operator(x: Any, hx: Any, weights: Any, *options: Any) -> Any:
        states = hx if isinstance(hx, tuple) else (hx,)
        return Node.apply((x, *states), x, *weights)  # four inputs, so y is like x

    setattr(torch._VF, name, operator)
    try:
        yield
    finally:
        delattr(torch._VF, name)


def small_calls(kind: str, rounds: int = 40, count: int = 200) -> dict[str, list[float]]:
    """Return the microseconds of one step of four units, each way, in each of some rounds."""
    import torch

    import fastrnn.torch

    theirs = getattr(torch.nn, kind)(4, 4)
    ours = fastrnn.torch.accelerate(copy.deepcopy(theirs))
    x, dy = torch.randn(1, 1, 4), torch.ones(1, 1, 4)

    def train(module: Any) -> None:
        module(x)[0].backward(dy)
        for parameter in module.parameters():
            parameter.grad = None

    def infer(module: Any) -> None:
        with torch.no_grad():
            module(x)

    ways = {"PyTorch": (train, theirs), "fastrnn": (train, ours), "empty": (train, theirs),
            "PyTorch infers": (infer, theirs), "fastrnn infers": (infer, ours)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 5):
        for name, (job, module) in ways.items():
            with empty_operator(kind) if name == "empty" else contextlib.nullcontext():
                taken = seconds(functools.partial(job, module), count)
            if number >= 5:  # before, caches and allocators fill
                times[name].append(taken * 1e6)
    return times


def overhead() -> None:
    """Print what a small call costs beyond torch.nn's own Python code and a node of autograd."""
    print(f"{'':5}{'forward and backward':^42}{'without gradients':^22}")
    print(f"{'':5}{'PyTorch':>10}{'fastrnn':>10}{'empty node':>12}{'more':>10}"
          f"{'PyTorch':>12}{'fastrnn':>10}")
    for kind in KINDS:
        times = small_calls(kind)
        times["more"] = [a - b for a, b in zip(times["fastrnn"], times["empty"], strict=True)]
        own, ours, empty, more, infers, we_infer = (
            statistics.median(times[name]) for name in (
                "PyTorch", "fastrnn", "empty", "more", "PyTorch infers", "fastrnn infers"))
        print(f"{kind:5}{own:10.1f}{ours:10.1f}{empty:12.1f}{more:10.1f}{infers:12.1f}"
              f"{we_infer:10.1f}", flush=True)


def main() -> None:
    """Print a row for each cell, size and job, and the lowest ratio."""
    import torch

    import fastrnn.torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mode", choices=fastrnn.torch.choice.MODES, default="auto")
    parser.add_argument("--every", type=int, default=1, help="only each n-th size")
    parser.add_argument("--overhead", action="store_true", help="measure the smallest call instead")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    fastrnn.torch.set_mode(args.mode)
    if args.overhead:
        overhead()
        return
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
