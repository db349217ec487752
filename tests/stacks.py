"""What tests of layers share: data of a layer, both ways through it, and the reference, stacked."""

import dataclasses
import pickle

import cases
import numpy as np
import pytest

from fastrnn import reference

SEQUENCES = ("x", "y", "dx", "dy")  # what has a time axis

per_cell = pytest.mark.parametrize("cell", cases.CELLS)
per_kind = pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
per_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=lambda dtype: dtype.__name__)
per_copy = pytest.mark.parametrize("protocol", [None, *range(2, pickle.HIGHEST_PROTOCOL + 1)],
                                   ids=lambda p: "deepcopy" if p is None else f"pickle{p}")


def draw(layer, T, B, seed=1):
    """Return x, dy, h0, dhn and, of an lstm, c0, dcn: normal, time-major."""
    rng = np.random.default_rng(seed)
    D = 1 + layer.bidirectional
    state = (layer.num_layers * D, B, layer.hidden_size)
    shapes = {"x": (T, B, layer.input_size), "dy": (T, B, D * layer.hidden_size)}
    shapes |= {"h0": state, "dhn": state}
    if layer.cell.name == "lstm":
        shapes |= {"c0": state, "dcn": state}
    return {name: rng.standard_normal(s).astype(layer.dtype) for name, s in shapes.items()}


def state_of(data, h, c):
    return (data[h], data[c]) if c in data else data[h]


def named(h, c, state):
    return dict(zip((h, c), state if isinstance(state, tuple) else (state,), strict=False))


def forward(layer, data):
    y, state = layer(data["x"], state_of(data, "h0", "c0"))
    return {"y": y, **named("hn", "cn", state)}


def backward(layer, data, **options):
    """Go back; return dx, the gradients of the states, and copies of layer.grads, by name."""
    dx, dstate = layer.backward(data["dy"], state_of(data, "dhn", "dcn"), **options)
    grads = {name: grad.copy() for name, grad in layer.grads.items()}
    return {"dx": dx, **named("dh0", "dc0", dstate), **grads}


def both(layer, data):
    return forward(layer, data) | backward(layer, data)


def composed(layer, data, **plan):
    """Return the results of `both` from fastrnn.reference: layer by layer, in float64.

    plan : the keywords lengths, reset, reset_to
    """
    data, params = (
        {name: array.astype(np.float64) for name, array in arrays.items()}
        for arrays in (data, layer.parameters())
    )
    L, D, H = layer.num_layers, 1 + layer.bidirectional, layer.hidden_size
    x, walks, finals = data["x"], {}, []
    for k in range(L):
        ys = []
        for d in range(D):
            names = [f"{name}_l{k}{'_reverse' * d}" for name in cases.PARAMETERS]
            own = {name: data[name][k * D + d] for name in data if name not in SEQUENCES}
            case = cases.Case(
                cell=layer.cell.name, x=x, h0=own["h0"], c0=own.get("c0"), dy=None, dhn=own["dhn"],
                dcn=own.get("dcn"),
                **dict(zip(cases.PARAMETERS, map(params.get, names), strict=True)),
            )
            out, tape = cases.forward(reference, case, reverse=bool(d), **plan)
            ys.append(out.pop("y"))
            finals.append(out)
            walks[k, d] = case, tape, names
        x = np.concatenate(ys, axis=2)
    result = {"y": x} | {name: np.stack([out[name] for out in finals]) for name in finals[0]}
    dy, initials = data["dy"], {}
    for k in reversed(range(L)):
        dx = 0
        for d in range(D):
            case, tape, names = walks[k, d]
            case = dataclasses.replace(case, dy=dy[:, :, d * H : (d + 1) * H])
            got = cases.backward(reference, case, tape)
            dx = dx + got.pop("dx")
            full = dict(zip(cases.PARAMETERS, names, strict=True))
            result |= {full[name]: got.pop(name) for name in cases.PARAMETERS if name in got}
            initials[k, d] = got
        dy = dx
    result["dx"] = dy
    for name in initials[0, 0]:
        result[name] = np.stack([initials[key][name] for key in sorted(initials)])
    return result


def tolerance(layer, data, name):
    """Return the formula's tolerance: K of the widest layer, T * L steps."""
    T, B, I = data["x"].shape
    L, D, H = layer.num_layers, 1 + layer.bidirectional, layer.hidden_size
    K = max(I, D * H if L > 1 else 0) + H
    if name in ("y", "hn", "cn"):
        return cases.tolerance(layer.dtype, K, T * L)
    K = max(K, cases.GATES[layer.cell.name] * H, B)
    return cases.tolerance(layer.dtype, K, T * L, backward=True, bidirectional=D == 2)


def assert_composed(layer, got, data, **plan):
    expected = composed(layer, data, **plan)
    assert set(got) == set(expected)
    elementwise = len(data["x"]) * layer.num_layers == 1
    for name, array in got.items():
        cases.assert_close(name, array, expected[name], tolerance(layer, data, name), elementwise,
                           dtype=layer.dtype)


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, array in got.items():
        assert array.dtype == expected[name].dtype, name
        assert array.shape == expected[name].shape, name
        assert array.tobytes() == expected[name].tobytes(), name


def assert_views(layer):
    """Parameters and gradients tile flat and flat_grads without gaps, in order."""
    for flat, views in ((layer.flat, layer.parameters()), (layer.flat_grads, layer.grads)):
        start = flat.__array_interface__["data"][0]
        for name, view in views.items():
            assert view.__array_interface__["data"][0] == start, name
            assert view.flags.c_contiguous, name
            start += view.nbytes
        assert start == flat.__array_interface__["data"][0] + flat.nbytes


def one_for_all(data, layout):
    """Rearrange time-major arrays for a call: (T, B), (B, T) or, of one row, without B."""
    if layout == "unbatched":
        return {n: a[:, 0] if a.ndim == 3 and "_l" not in n else a for n, a in data.items()}
    if layout == "batch_first":
        return {n: a.swapaxes(0, 1) if n in SEQUENCES else a for n, a in data.items()}
    return data
