"""fastrnn with cells from equations: what bench/definitions.py writes, as a fastrnn.Layer."""

from __future__ import annotations

import fastrnn
from bench.cases import Arrays, Case
from bench.definitions import PARTS, put_back, taken, text_of
from bench.peers import UnsupportedError, Way, ours

version, setup = ours.version, ours.setup


def load(case: Case, a: Arrays) -> list[Way]:
    """Return the ways to run the case."""
    if case.cell not in PARTS or case.L > 1 or case.D > 1 or not case.bias or case.kind == "lm":
        raise UnsupportedError("no equations for it here")
    definition = fastrnn.cell(text_of(case.cell), name=case.cell)
    layer = fastrnn.Layer(definition, case.I, case.H, dtype=case.dtype)
    layer.load_state_dict(taken(case.cell, a.params, case.H))
    if case.kind == "train":
        return [_train(case, a, layer)]
    layer.eval(case.weights)
    if case.kind == "infer":
        return [ours.infer(a, layer)]
    try:
        return [ours.stream(case, a, layer)]
    except TypeError as error:  # streams of programs are newer than layers of them
        raise UnsupportedError(str(error)) from error


def _train(case: Case, a: Arrays, layer: fastrnn.Layer) -> Way:
    way = ours.train(a, layer)

    def results() -> dict:
        found = way.results()
        grads = {name: found.pop(name) for name in PARTS[case.cell]}
        return found | put_back(case.cell, grads, a.params, case.H)

    return way._replace(results=results)
