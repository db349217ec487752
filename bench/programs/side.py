"""One side of a program, in a process of its own: `python -m bench.programs.side`.

It reads requests and writes answers as lines of JSON; what a program prints goes to stderr.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.programs.inside import Inside

SEED = 1


def record(losses: list[torch.Tensor]) -> None:
    """Keep every loss whose `backward` is called from now on."""
    backward = torch.Tensor.backward

    def recorded(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        losses.append(self.detach().clone())
        backward(self, *args, **kwargs)

    torch.Tensor.backward = recorded


def seed() -> None:
    """Let every generator begin anew."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  # the one that the programs draw from
    torch.manual_seed(SEED)


def timed(act: Callable[[], object]) -> float:
    """Return the seconds of one run."""
    seed()
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def main() -> None:
    """Serve until stdin ends."""
    function, way, threads, short = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(int(threads))
    if way == "fastrnn":
        import fastrnn.torch

        fastrnn.torch.patch()
    where, name = function.split(":")
    try:
        make = getattr(importlib.import_module(f"bench.programs.{where}"), name)
        seed()
        run = make(short=True)
    except ModuleNotFoundError as error:
        answers.write(json.dumps({"missing": str(error)}) + "\n")
        return
    first = timed(run)
    seed()
    act = make(short=bool(int(short)))
    losses: list[torch.Tensor] = []
    record(losses)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    answers.write(json.dumps({"versions": versions, "first_run": first}) + "\n")
    for line in sys.stdin:
        losses.clear()
        if json.loads(line)["do"] == "inside":
            with Inside() as inside:
                answer = {"seconds": timed(act)}
            answer["inside"] = inside.seconds
        else:
            answer = {"seconds": timed(act), "losses": [loss.item() for loss in losses]}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
