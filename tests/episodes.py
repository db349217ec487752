"""Rows of different lengths, cut into episodes: what is right, from each episode computed alone.

Letters: T steps, B batch. `alone` hands every episode of every row, as a call of its own without
lengths and resets, to any module with the interface of fastrnn.reference.
"""

from __future__ import annotations

import dataclasses
import itertools

import cases
import numpy as np

T, B = 6, 5

LENGTHS = np.array([4, 0, 6, 1, 5])  # none, all and some of the steps, in no order
RESET = np.zeros((T, B), bool)
RESET[[0, 2], 0] = True  # at the first step too
RESET[3, 1] = True  # with LENGTHS in a row of no steps
RESET[[1, 2, 5], 2] = True  # two in a row, and at the last step
RESET[[1, 4], 3] = True  # with LENGTHS in the padding alone, at its first step
RESET[5, 4] = True  # the same

# the keywords of a call, by name
PLANS = {
    "lengths": {"lengths": LENGTHS},
    "resets": {"reset": RESET},
    "resets to initial": {"reset": RESET, "reset_to": "initial"},
    "both": {"lengths": LENGTHS, "reset": RESET},
    "both to initial": {"lengths": LENGTHS, "reset": RESET, "reset_to": "initial"},
}


@dataclasses.dataclass(frozen=True)
class Episode:
    """Steps of one row, as a case of one row that is a call of its own."""

    row: slice
    steps: slice
    case: cases.Case
    from_state: bool  # begins with the row's initial state; others begin with zero
    last: bool  # in the order of the walk: its end is the row's


def episodes(case, *, reverse=False, lengths=None, reset=None, reset_to="zero"):
    """Yield the episodes of all rows, those of a row in the order of the walk.

    A row of no steps is one episode of no steps.
    """
    all_steps, batch, _, _ = case.sizes
    for b in range(batch):
        n = all_steps if lengths is None else int(lengths[b])
        marked = [t for t in range(n) if reset is not None and reset[t, b]]
        borders = [0, *(t for t in marked if t > 0), n]
        cut = [slice(*ends) for ends in itertools.pairwise(borders)]
        if reverse:
            cut.reverse()
        for k, steps in enumerate(cut):
            begins_marked = k > 0 or (not reverse and 0 in marked)
            from_state = not begins_marked or reset_to == "initial"
            last = k == len(cut) - 1
            row = slice(b, b + 1)
            arrays = {"x": case.x[steps, row], "dy": case.dy[steps, row]}
            for name, keep in (("h0", from_state), ("c0", from_state), ("dhn", last),
                               ("dcn", last)):
                state = getattr(case, name)
                if state is not None:
                    arrays[name] = state[row] if keep else np.zeros_like(state[row])
            yield Episode(row, steps, cases.replace(case, **arrays), from_state, last)


def alone(module, case, *, reverse=False, **plan):
    """Return outputs and gradients by name, put together from the episodes."""
    result = {"y": np.zeros_like(case.dy), "hn": np.full_like(case.h0, np.nan)}
    if case.c0 is not None:
        result["cn"] = np.full_like(case.c0, np.nan)
    names = {"x": "dx", "embedding": "dx", "h0": "dh0", "c0": "dc0"}
    result |= {names.get(name, name): np.zeros_like(a) for name, a in case.inputs().items()}
    for episode in episodes(case, reverse=reverse, **plan):
        row, steps = episode.row, episode.steps
        for name, array in cases.run(module, episode.case, reverse=reverse).items():
            if name in ("hn", "cn"):
                if episode.last:
                    result[name][row] = array
            elif name in ("dh0", "dc0"):
                if episode.from_state:
                    result[name][row] += array
            elif name == "y" or (name == "dx" and case.embedding is None):
                result[name][steps, row] = array
            else:
                result[name] += array
    return result


def padding(case, lengths):
    """Return which steps (T, B) lie past the end of their row."""
    return np.arange(len(case.dy))[:, None] >= lengths
