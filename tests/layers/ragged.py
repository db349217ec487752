"""Calls of layers with lengths and resets, and the same from each episode alone.

Letters: T steps, B batch, H hidden, L layers, D directions.
"""

import itertools

import cases
import numpy as np
import stacks

RECORD = ("dh", "dc", "gates", "dgates_x", "dgates_h", "x", "h")


def layer_of(cell, I=7, H=9, L=2, *, D=2, seed=0, **options):
    return cases.LAYERS[cell](I, H, L, bidirectional=D == 2, seed=seed, **options)


def plan_of(T, B, seed=0, chance=0.2, reset_to="zero"):
    """Draw lengths and flags."""
    rng = np.random.default_rng(seed)
    plan = {"lengths": rng.integers(0, T + 1, B), "reset": rng.random((T, B)) < chance}
    return plan | {"reset_to": reset_to}


def record_of(layer):
    return tuple(name for name in RECORD if name != "dc" or layer.has_c)


def turned(layer, array):
    """Turn (T, B, ...) into (B, T, ...) for a layer that has the batch first, or back."""
    return array.swapaxes(0, 1) if layer.batch_first else array


def forward(layer, data, *, grad=True, **plan):
    """Return (the outputs by name, the pass) of a call whose arrays are time-major here."""
    if plan.get("reset") is not None:
        plan["reset"] = turned(layer, plan["reset"])
    y, state, p = layer.forward(turned(layer, data["x"]), stacks.state_of(data, "h0", "c0"),
                                grad=grad, **plan)
    return {"y": turned(layer, y), **stacks.named("hn", "cn", state)}, p


def backward(layer, data, p, record=(), **options):
    """Go back into new gradients; return all gradients, and what was recorded, by name."""
    grads = layer.new_grads()
    dx, dstate, *recorded = p.backward(turned(layer, data["dy"]),
                                       stacks.state_of(data, "dhn", "dcn"), grads=grads,
                                       record=record, **options)
    got = {"dx": turned(layer, dx), **stacks.named("dh0", "dc0", dstate), **grads}
    for number, arrays in enumerate(recorded[0] if recorded else []):
        got |= {f"{name}_{number}": array for name, array in arrays.items()}
    return got


def run(layer, data, record=(), **plan):
    out, p = forward(layer, data, **plan)
    return out | backward(layer, data, p, record)


def spoilt(data, lengths, value=np.nan):
    """Return data whose x and dy have a value in the padding that no result may show."""
    past = np.arange(len(data["x"]))[:, None] >= lengths
    changed = {name: data[name].copy() for name in ("x", "dy")}
    for array in changed.values():
        array[past] = value
    return data | changed


def episodes_of(T, b, lengths, reset):
    """Return the steps of each episode of a sequence."""
    n = T if lengths is None else int(lengths[b])
    marked = [t for t in range(1, n) if reset is not None and reset[t, b]]
    borders = [0, *marked, n]
    return [slice(*ends) for ends in itertools.pairwise(borders)]


def alone(layer, data, record=(), lengths=None, reset=None, reset_to="zero"):
    """Return the results of `run`, put together from a call of its own for each episode."""
    L, D, H = layer.num_layers, layer.directions, layer.hidden_size
    T, B = data["x"].shape[:2]
    states = [name for name in ("h0", "c0") if name in data]
    expected = {"y": np.zeros_like(data["dy"]), "dx": np.zeros_like(data["x"])}
    for name in states:
        expected |= {f"{name[0]}n": np.full_like(data[name], np.nan),
                     f"d{name}": np.zeros_like(data[name])}
    expected |= {name: np.zeros_like(array) for name, array in layer.parameters().items()}
    for b in range(B):
        row = slice(b, b + 1)
        steps = episodes_of(T, b, lengths, reset)
        for k, span in enumerate(steps):
            first, last = k == 0, k == len(steps) - 1
            fresh = reset is not None and span.stop > 0 and bool(reset[0, b])
            begins = [first and not (fresh and reset_to == "zero"), last]  # with the row's state
            begins = np.array([value or reset_to == "initial" for value in begins][:D] * L)
            ends = np.array([last, first][:D] * L)
            own = {name: data[name][span, row] for name in ("x", "dy")}
            for name in states:
                own[name] = np.where(begins[:, None, None], data[name][:, row], 0)
                final = f"d{name[0]}n"
                own[final] = np.where(ends[:, None, None], data[final][:, row], 0)
            own = {name: array.astype(layer.dtype) for name, array in own.items()}
            for name, array in run(layer, own, record).items():
                if name in ("hn", "cn"):
                    expected[name][ends, b] = array[ends, 0]
                elif name in ("dh0", "dc0"):
                    expected[name][begins, b] += array[begins, 0]
                elif name in ("y", "dx"):
                    expected[name][span, row] = array
                elif name in layer.grads:
                    expected[name] += array
                else:
                    shape = (T, B, *array.shape[2:])
                    expected.setdefault(name, np.zeros(shape, array.dtype))[span, row] = array
    assert expected["y"].shape[-1] == D * H
    return expected


def assert_alone(layer, data, got, expected, reset_to="zero"):
    """Hold a call against its episodes: bit for bit what is not a sum over rows."""
    sums = {*layer.grads, *(["dh0", "dc0"] if reset_to == "initial" else [])}
    assert got.keys() == expected.keys()
    exact = got.keys() - sums
    stacks.assert_same({name: got[name] for name in exact},
                       {name: expected[name] for name in exact})
    for name in sums & got.keys():
        cases.assert_close(name, got[name], expected[name], stacks.tolerance(layer, data, name))
