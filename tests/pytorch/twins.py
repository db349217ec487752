"""A module of torch.nn, its accelerated twin, and one way to compare what both compute.

T steps, B sequences, I inputs, H hidden units, L layers, D directions.
"""

import cases
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from fastrnn import torch as bridge  # noqa: E402

LAYERS = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
}
SINGLE_CELLS = {cell: (f"{kind}Cell", extra) for cell, (kind, extra) in LAYERS.items()}
DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
KINDS = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")

per_cell = pytest.mark.parametrize("cell", LAYERS)
per_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
# every layer, and the LSTM with a projection
per_layer = pytest.mark.parametrize(
    ("cell", "options"), [*((cell, {}) for cell in LAYERS), ("lstm", {"proj_size": 2})],
    ids=[*LAYERS, "projected"])
per_kind = pytest.mark.parametrize("kind", KINDS)


def twins(cell, *sizes, dtype=torch.float64, single=False, seed=0, **options):
    """Return a module of torch.nn and ours, with equal weights."""
    kind, extra = (SINGLE_CELLS if single else LAYERS)[cell]
    torch.manual_seed(seed)
    theirs = getattr(torch.nn, kind)(*sizes, dtype=dtype, **extra, **options)
    ours = getattr(bridge, kind)(*sizes, dtype=dtype, **extra, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def normal(*shape, dtype=torch.float64, seed=1):
    """Draw a leaf that wants its gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def state_of(module, B=None, seed=2):
    """Draw h0, or (h0, c0) of an LSTM; B is None for one sequence without a batch axis."""
    lead = () if B is None else (B,)
    if isinstance(module, torch.nn.RNNBase):
        lead = (module.num_layers * (1 + module.bidirectional), *lead)
    H = getattr(module, "proj_size", 0) or module.hidden_size
    dtype = next(module.parameters()).dtype
    h = normal(*lead, H, dtype=dtype, seed=seed)
    if not isinstance(module, (torch.nn.LSTM, torch.nn.LSTMCell)):
        return h
    return h, normal(*lead, module.hidden_size, dtype=dtype, seed=seed + 100)


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def fresh(value):
    """Copy tensors, tuples of them and packed sequences to leaves with the same strides."""
    if value is None:
        return None
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return value._replace(data=fresh(value.data))
    if isinstance(value, tuple):
        return tuple(map(fresh, value))
    copy = torch.empty(0, dtype=value.dtype)
    copy.set_(value.detach().untyped_storage().clone(), value.storage_offset(), value.size(),
              value.stride())
    return copy.requires_grad_(value.requires_grad)


def outputs_of(module, x, hx):
    """Return the tensors of a call by name: y, hn, and cn of an LSTM; a cell has no y."""
    result = module(x) if hx is None else module(x, hx)
    if isinstance(module, torch.nn.RNNBase):
        y, state = result
        y = y.data if isinstance(y, torch.nn.utils.rnn.PackedSequence) else y
        return {"y": y, **dict(zip(("hn", "cn"), as_tuple(state), strict=False))}
    return dict(zip(("hn", "cn"), as_tuple(result), strict=False))


def results(module, x, hx=None, *, into=("y", "hn", "cn"), backward=True):
    """Return outputs, and gradients of x, hx and all parameters, as arrays by name.

    into : the outputs that a gradient, drawn from a seed, comes back to
    """
    x, hx = fresh(x), fresh(hx)
    module.zero_grad()
    out = outputs_of(module, x, hx)
    arrays = {name: tensor.detach().clone() for name, tensor in out.items()}
    if backward:
        chosen = [name for name in out if name in into]
        torch.autograd.backward([out[name] for name in chosen],
                                [normal(*out[name].shape, dtype=out[name].dtype, seed=10 + k)
                                 .detach() for k, name in enumerate(chosen)])
        leaves = {"dx": getattr(x, "data", x) if isinstance(x, tuple) else x}
        if hx is not None:
            leaves |= dict(zip(("dh0", "dc0"), as_tuple(hx), strict=False))
        leaves |= dict(module.named_parameters())
        arrays |= {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {name: tensor.numpy() for name, tensor in arrays.items()}


def bounds(module, T, B):
    """Return the relative errors, forward and backward, that two computations may differ by.

    Each of both rounds, so the tolerance of tests/cases.py counts twice.
    """
    L, both = getattr(module, "num_layers", 1), getattr(module, "bidirectional", False)
    H, D = module.hidden_size, 1 + both
    gates = module.state_dict()["weight_hh_l0" if hasattr(module, "num_layers") else "weight_hh"]
    widest = max(module.input_size, D * H if L > 1 else 0) + H
    dtype = DTYPES[gates.dtype]
    return (2 * cases.tolerance(dtype, widest, T * L),
            2 * cases.tolerance(dtype, max(widest, len(gates), B), T * L, backward=True,
                                bidirectional=both))


def assert_same(got, expected, module, T, B):
    """Fail unless two dicts of arrays have the same names and values.

    One step is judged element by element, everything else by norm. Where rows cancel in the
    gradient of a parameter, as they may in a bias of few units, rounding stays as large as it is
    in an average element of all gradients; the norm is no less than that of such elements.
    """
    assert list(got) == list(expected)
    forward, backward = bounds(module, T, B)
    gradients = [a for name, a in expected.items() if name not in ("y", "hn", "cn")]
    count = max(1, sum(a.size for a in gradients))
    average = np.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in gradients) / count)
    for name, array in expected.items():
        tolerance = forward if name in ("y", "hn", "cn") else backward
        if T > 1 and tolerance == backward and array.size:
            norm = np.linalg.norm(array.astype(np.float64))
            tolerance *= max(1, average * array.size ** 0.5 / max(norm, 1e-30))
        cases.assert_close(name, got[name], array, tolerance, elementwise=T == 1)


def assert_near(got, expected):
    """Fail unless two tensors agree as torch.testing has it, the absolute error in their scale."""
    scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
    rtol, atol = (1e-5, 1e-5) if expected.dtype is torch.float32 else (1e-7, 1e-7)
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol * max(1.0, scale))


def assert_all_near(got, expected):
    """Fail unless the tensors of two lists agree, each with its own."""
    for one, other in zip(got, expected, strict=True):
        assert_near(one, other)


def assert_twins(theirs, ours, x, hx=None, **options):
    """Fail unless both modules compute the same from the same, ours without PyTorch's code."""
    data = x.data if isinstance(x, torch.nn.utils.rnn.PackedSequence) else x
    T, B = max(1, len(data)), max(1, data.numel() // max(1, data.shape[-1]))
    assert_same(results(ours, x, hx, **options), results(theirs, x, hx, **options), theirs, T, B)
    assert_accelerated(ours)


def counts(model=None):
    """Return how many calls of a model ran accelerated, and how many fell back."""
    rows = bridge.report(model).rows
    return sum(row.accelerated for row in rows), sum(row.fallback for row in rows)


def assert_accelerated(model):
    accelerated, fallback = counts(model)
    assert accelerated, str(bridge.report(model))
    assert not fallback, str(bridge.report(model))


def assert_fell_back(model):
    """Fail unless some call fell back, and the report says why."""
    rows = [row for row in bridge.report(model).rows if row.fallback]
    assert rows, str(bridge.report(model))
    assert all(row.reason for row in rows)


def outcome(function, *args, **keywords):
    """Return what a call gives, or its exception's type and message."""
    try:
        return function(*args, **keywords)
    except Exception as error:
        return type(error), str(error)


def refused(result):
    """Whether an outcome is an exception's."""
    return isinstance(result, tuple) and isinstance(result[0], type)


def assert_same_outcome(theirs, ours, *args):
    """Fail unless both raise the same, or both return tensors of the same values."""
    expected, got = outcome(theirs, *args), outcome(ours, *args)
    if refused(expected):
        assert got == expected
        return
    for a, b in zip(flat(got), flat(expected), strict=True):
        torch.testing.assert_close(a, b)


def flat(value):
    """Return the tensors of nested tuples in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value if part is not None for tensor in flat(part)]
