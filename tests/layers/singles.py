"""What tests of single cells share."""

import cases

SIZES = B, I, H = 3, 7, 5


def one_or_pair(h, c):
    return h if c is None else (h, c)


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def bits(*arrays):
    return [array.tobytes() for value in arrays for array in as_tuple(value)]


def one_step(cell, seed=1):
    """Return x, a state, and a gradient of the state, for B rows."""
    draw = cases.drawer(cell.dtype, seed)
    H, c = cell.hidden_size, cell.has_c
    return (draw(B, cell.input_size), one_or_pair(draw(B, H), draw(B, H) if c else None),
            one_or_pair(draw(B, H), draw(B, H) if c else None))
