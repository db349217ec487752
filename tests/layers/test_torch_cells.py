"""fastrnn's single cells in the place of torch.nn's: the same names, results and gradients."""

import cases
import numpy as np
import pytest
import stacks
from singles import as_tuple, one_or_pair

import fastrnn

torch = pytest.importorskip("torch")

# name: (kind, further arguments); torch has no sigmoid
CELLS = {
    "rnn_tanh": ("RNNCell", {}),
    "rnn_relu": ("RNNCell", {"nonlinearity": "relu"}),
    "lstm": ("LSTMCell", {}),
    "gru": ("GRUCell", {}),
}
SIZES = [(1, 2, 7, 5), (4, 4, 5, 17), (3, 3, 33, 8), (7, 1, 1, 1)]  # T, B, I, H

per_cell = pytest.mark.parametrize("cell", CELLS)


@pytest.fixture(autouse=True)
def one_thread():
    """Two pools of threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(cell, I, H, dtype=np.float64, **options):
    """Return torch's cell and ours with its weights; torch's computes in float64."""
    kind, extra = CELLS[cell]
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(I, H, **extra, **options)
    ours = getattr(fastrnn, kind)(I, H, **extra, **options, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs.double(), ours


def results_of_torch(cell, x, state, dy, dstate):
    x, *initial = (torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x, *state))
    state, y = one_or_pair(*initial, *[None] * (2 - len(initial))), []
    for step in x:
        state = cell(step, state)
        y.append(as_tuple(state)[0])
    finals = as_tuple(state)
    torch.autograd.backward((*y, *finals), tuple(map(torch.tensor, (*dy, *dstate))))
    named = {"y": torch.stack(y), "dx": x.grad}
    for letter, end, start in zip("hc", finals, initial, strict=False):
        named |= {f"{letter}n": end, f"d{letter}0": start.grad}
    named |= {name: param.grad for name, param in cell.named_parameters()}
    return {name: tensor.detach().numpy() for name, tensor in named.items()}


def results_of_ours(cell, x, state, dy, dstate):
    passes, y, dx = [], [], []
    state, dstate = (one_or_pair(*s, *[None] * (2 - len(s))) for s in (state, dstate))
    for step in x:
        state, p = cell.forward(step, state)
        passes.append(p)
        y.append(as_tuple(state)[0])
    for p, above in zip(reversed(passes), reversed(dy), strict=True):
        dh, *dc = as_tuple(dstate)
        step, dstate = p.backward(one_or_pair(dh + above, *dc or [None]))
        dx.append(step)
    return {"y": np.array(y), "dx": np.array(dx[::-1]), **stacks.named("hn", "cn", state),
            **stacks.named("dh0", "dc0", dstate), **cell.grads}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("batched", [True, False], ids=["batch", "row"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@stacks.per_dtype
@per_cell
def test_values_and_every_gradient(cell, dtype, bias, batched, sizes):
    T, B, I, H = sizes
    theirs, ours = pair(cell, I, H, dtype, bias=bias)
    draw, rows = cases.drawer(dtype), (B,) if batched else ()
    x, dy = draw(T, *rows, I), draw(T, *rows, H)
    state, dstate = ([draw(*rows, H) for _ in range(1 + ours.has_c)] for _ in range(2))
    expected = results_of_torch(theirs, x, state, dy.astype(np.float64),
                                [a.astype(np.float64) for a in dstate])
    got = results_of_ours(ours, x, state, dy, dstate)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        backward = name not in ("y", "hn", "cn")
        K = max(I + H, ours.cell.G * H, B) if backward else I + H
        cases.assert_close(name, got[name], array,
                           cases.tolerance(dtype, K, T, backward=backward), dtype=dtype)


@per_cell
def test_without_a_state(cell):
    theirs, ours = pair(cell, 7, 5)
    for shape in ((3, 7), (7,)):
        x = cases.drawer(np.float64)(*shape)
        for mine, their in zip(as_tuple(ours(x)), as_tuple(theirs(torch.tensor(x))), strict=True):
            cases.assert_close("state", mine, their.detach().numpy(),
                               cases.tolerance(np.float64, 12, 1))


@per_cell
def test_a_tensor_is_an_array(cell):
    _, ours = pair(cell, 7, 5)
    x = cases.drawer(np.float64)(3, 7)
    assert all(np.array_equal(a, b) for a, b in
               zip(as_tuple(ours(torch.tensor(x))), as_tuple(ours(x)), strict=True))


@per_cell
def test_the_state_dict_goes_both_ways(cell):
    theirs, ours = pair(cell, 7, 5)
    assert list(ours.parameters()) == list(theirs.state_dict())
    ours.flat[:] = np.arange(ours.flat.size)
    theirs.load_state_dict({name: torch.tensor(a) for name, a in ours.state_dict().items()})
    assert np.array_equal(theirs.weight_hh.detach().numpy(), ours.weight_hh)


@pytest.mark.parametrize("shapes", [  # of x, and of the states
    [(2, 3, 7)], [(1, 1, 3, 7)], [(2, 8)], [(8,)], [(2, 7), (3, 5)], [(2, 7), (2, 4)],
    [(2, 7), (1, 2, 5)], [(7,), (4,)], [(7,), (1, 2, 5)],
], ids=str)
@per_cell
def test_what_torch_refuses_is_refused(cell, shapes):
    theirs, ours = pair(cell, 7, 5)
    x, *state = (np.zeros(shape) for shape in shapes)
    state = None if not state else (state[0],) * 2 if ours.has_c else state[0]
    with pytest.raises((ValueError, RuntimeError)):
        theirs(torch.tensor(x), None if state is None else
               tuple(map(torch.tensor, state)) if ours.has_c else torch.tensor(state))
    with pytest.raises(ValueError, match=f"^{type(ours).__name__}: .* has shape"):
        ours(x, state)
