"""fastrnn.reference: plain NumPy, written to be read."""

from __future__ import annotations

from functools import partial

import numpy as np

from bench import stack
from bench.cases import Arrays, Case
from bench.peers import UnsupportedError, Way, stream_way
from fastrnn import reference

MODULE = reference


def version() -> str:
    """Return NumPy's version and its BLAS."""
    blas = np.show_config("dicts")["Build Dependencies"]["blas"]
    return f"numpy {np.__version__} ({blas['name']} {blas['version']})"


def setup(threads: int) -> None:
    """Do nothing: the environment has set the threads."""


def load(case: Case, a: Arrays) -> list[Way]:
    """Return the ways to run the case."""
    return [way(reference, case, a)]


def way(module: object, case: Case, a: Arrays) -> Way:
    """Return the way over a module with the signatures of fastrnn.reference."""
    if case.kind == "lm":
        raise UnsupportedError("no language model here")
    if case.kind == "stream":
        stepper = stack.Stepper(module, case, a)
        return stream_way("step", stepper, stepper.reset, a.x)
    if case.kind == "infer":
        return Way("numpy", partial(stack.forward, module, case, a, False),
                   lambda: stack.forward(module, case, a, False)[0])
    call = partial(stack.train, module, case, a)
    return Way("numpy", call, call)
