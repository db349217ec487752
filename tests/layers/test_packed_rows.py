"""forward_packed: rows in the layout of torch's PackedSequence, as padded and as in torch.

Letters: T steps, B batch, N rows of all steps together.
"""

import cases
import numpy as np
import pytest
import ragged
import stacks
from stacks import per_cell, per_dtype, per_kind

from fastrnn._kernels.timeline import Timeline

T, B = 9, 6
LENGTHS = {
    "falling": [9, 7, 7, 4, 1, 1],
    "one row": [5],
    "one step": [1, 1, 1],
    "long and short": [9, 1, 1],
    "equal": [9, 9, 9],
    "many": np.sort(np.random.default_rng(0).integers(1, 30, 40))[::-1].tolist(),
}

per_lengths = pytest.mark.parametrize("name", LENGTHS)


def sizes_of(lengths):
    """Return how many rows each step has."""
    return [sum(n > t for n in lengths) for t in range(max(lengths))]


def packed(array, lengths):
    """Return the rows of (T, B, ...) as a PackedSequence has them."""
    return np.concatenate([array[t, :k] for t, k in enumerate(sizes_of(lengths))])


def padded(rows, lengths):
    """Return rows (N, ...) as (T, B, ...) with zeros."""
    array = np.zeros((max(lengths), len(lengths), *rows.shape[1:]), rows.dtype)
    begin = 0
    for t, k in enumerate(sizes_of(lengths)):
        array[t, :k] = rows[begin : begin + k]
        begin += k
    return array


def run(layer, data, lengths, record=(), reset=None, **plan):
    """Return results by name, padded, of a packed call."""
    if reset is not None:
        plan["reset"] = packed(reset, lengths)
    y, state, p = layer.forward_packed(packed(data["x"], lengths), sizes_of(lengths),
                                       stacks.state_of(data, "h0", "c0"), **plan)
    assert y.shape == (sum(lengths), layer.width)
    out = {"y": padded(y, lengths), **stacks.named("hn", "cn", state)}
    grads = layer.new_grads()
    dx, dstate, *recorded = p.backward(packed(data["dy"], lengths),
                                       stacks.state_of(data, "dhn", "dcn"), grads=grads,
                                       record=record)
    assert dx.shape == (sum(lengths), layer.input_size)
    out |= {"dx": padded(dx, lengths), **stacks.named("dh0", "dc0", dstate), **grads}
    for number, arrays in enumerate(recorded[0] if recorded else []):
        out |= {f"{name}_{number}": array for name, array in arrays.items()}
    return out


@per_lengths
@per_dtype
@per_cell
def test_packed_rows_have_the_bits_of_padded_ones(cell, dtype, name):
    lengths = LENGTHS[name]
    layer = ragged.layer_of(cell, dtype=dtype, batch_first=name == "falling", dropout=0.4)
    data = stacks.draw(layer, max(lengths), len(lengths))
    record, state = ragged.record_of(layer), layer.dropout_state
    expected = ragged.run(layer, data, record, lengths=lengths)
    layer.dropout_state = state  # the masks are drawn in the same order
    got = run(layer, data, lengths, record)
    stacks.assert_same(got, expected)


@per_lengths
@pytest.mark.parametrize("reset_to", ["zero", "initial"])
@per_kind
def test_packed_rows_with_resets(cell, reset_to, name):
    lengths = LENGTHS[name]
    layer = ragged.layer_of(cell)
    data = stacks.draw(layer, max(lengths), len(lengths))
    reset = np.random.default_rng(1).random((max(lengths), len(lengths))) < 0.3
    reset[0, 0] = True
    plan = {"reset": reset, "reset_to": reset_to}
    record = ragged.record_of(layer)
    got = run(layer, data, lengths, record, **plan)
    ragged.assert_alone(layer, data, got, ragged.alone(layer, data, record, lengths, **plan),
                        reset_to)
    lists = run(layer, data, lengths, record, reset_to=reset_to, reset=reset.astype(bool))
    stacks.assert_same(lists, got)
    none = run(layer, data, lengths, reset=np.zeros_like(reset), reset_to=reset_to)
    stacks.assert_same(none, run(layer, data, lengths))


@per_kind
def test_no_padding_and_no_table_is_made(cell):
    lengths = LENGTHS["falling"]
    layer = ragged.layer_of(cell, L=1, D=1)
    data = stacks.draw(layer, T, B)
    _, _, p = layer.forward_packed(packed(data["x"], lengths), sizes_of(lengths))
    assert isinstance(p.kept.time, Timeline)
    assert p.kept.time.rows("packed") is None  # they are read where they lie
    p.backward(packed(data["dy"], lengths))
    _, _, p = layer.forward_packed(packed(data["x"], [T] * B), [B] * T)
    assert p.kept.time is None


@per_kind
def test_what_is_given_may_lie_anywhere(cell):
    lengths = LENGTHS["falling"]
    layer = ragged.layer_of(cell)
    data = stacks.draw(layer, T, B)
    rows, dy = packed(data["x"], lengths), packed(data["dy"], lengths)
    sizes = sizes_of(lengths)
    y, _, p = layer.forward_packed(rows, sizes)
    dx, _ = p.backward(dy)

    def wider(array):
        return np.concatenate([array, array], axis=1)[:, : array.shape[1]]

    for move in (wider, np.asfortranarray, cases.read_only, cases.misaligned,
                 lambda a: a[::-1].copy()[::-1]):
        for given in (sizes, np.array(sizes, np.uint8), tuple(sizes)):
            got, _, p = layer.forward_packed(move(rows), given)
            assert got.tobytes() == y.tobytes()
            assert p.backward(move(dy))[0].tobytes() == dx.tobytes()
    got, _, p = layer.forward_packed(rows.tolist(), sizes)
    assert got.tobytes() == y.tobytes()


@per_lengths
@per_kind
def test_modes_and_passes(cell, name):
    lengths = LENGTHS[name]
    layer = ragged.layer_of(cell)
    data = stacks.draw(layer, max(lengths), len(lengths))
    rows, sizes = packed(data["x"], lengths), sizes_of(lengths)
    state = stacks.state_of(data, "h0", "c0")
    expected, final, p = layer.forward_packed(rows, sizes, state)
    first, dh, _ = p.backward(packed(data["dy"], lengths), retain=True, record=("dh",))
    second, _, again = p.backward(packed(data["dy"], lengths), record=("dh",))
    assert first.tobytes() == second.tobytes()
    assert len(again) == 2
    zero, dh = p.layer.forward_packed(rows, sizes, state)[2].backward()
    assert not zero.any()
    assert not any(a.any() for a in (dh if isinstance(dh, tuple) else (dh,)))
    layer.eval()
    for grad in (False, True):
        y, got, p = layer.forward_packed(rows, sizes, state, grad=grad)
        assert (p is None) is not grad
        assert y.tobytes() == expected.tobytes()
        stacks.assert_same(stacks.named("hn", "cn", got), stacks.named("hn", "cn", final))
    layer.eval("bfloat16")
    y, _, p = layer.forward_packed(rows, sizes, state, grad=False)
    whole, _ = layer(data["x"], state, lengths=lengths)
    assert padded(y, lengths).tobytes() == whole.tobytes()


def test_one_long_row_among_many_short_ones():
    """Nothing has the size of the padded grid, of 2.5e9 places."""
    layer = ragged.layer_of("gru", 1, 2, L=1, D=1)
    n = 50_000
    rows = np.random.default_rng(0).standard_normal((2 * n, 1)).astype(np.float32)
    y, hn, p = layer.forward_packed(rows, [n + 1] + [1] * (n - 1))
    first = np.concatenate([rows[:1], rows[n + 1 :]])
    expected, last, q = layer.forward(first)
    assert np.concatenate([y[:1], y[n + 1 :]]).tobytes() == expected.tobytes()
    assert hn[:, 0].tobytes() == last.tobytes()
    assert hn[0, 1:].tobytes() == y[1 : n + 1].tobytes()
    dx, _ = p.backward(y)
    assert np.concatenate([dx[:1], dx[n + 1 :]]).tobytes() == q.backward(expected)[0].tobytes()


# --------------------------------------------------------------------------------- in torch


def results_of_torch(torch, layer, x, lengths, states, dy, dstates):
    """Return the results of PyTorch's layer for x (T, B, I) packed, and its packed arrays."""
    rnn = torch.nn.utils.rnn
    x, *states = (torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x, *states))
    given = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, final = layer(given, states[0] if len(states) == 1 else tuple(states))
    finals = final if isinstance(final, tuple) else (final,)
    whole, _ = rnn.pad_packed_sequence(y, total_length=len(x))
    torch.autograd.backward((whole, *finals),
                            tuple(torch.tensor(a.astype(np.float64)) for a in (dy, *dstates)))
    named = {"y": whole, "dx": x.grad}
    for k, letter in enumerate("hc"[: len(finals)]):
        named |= {f"{letter}n": finals[k], f"d{letter}0": states[k].grad}
    named |= {name: param.grad for name, param in layer.named_parameters()}
    return {name: tensor.detach().numpy() for name, tensor in named.items()}, given, y


@pytest.mark.parametrize("lengths", [[9, 7, 7, 4, 1, 1], [3, 9, 1, 9, 4, 2], [9] * 6], ids=str)
@pytest.mark.parametrize("L", [1, 2])
@per_dtype
@pytest.mark.parametrize("cell", [cell for cell in cases.CELLS if cell != "rnn_sigmoid"])
def test_torchs_packed_sequences(cell, dtype, L, lengths):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    kind, _, nonlinearity = cell.partition("_")
    options = {"nonlinearity": nonlinearity} if nonlinearity else {}
    theirs = getattr(torch.nn, kind.upper())(7, 9, L, bidirectional=True, **options)
    layer = ragged.layer_of(cell, L=L, dtype=dtype)
    layer.load_state_dict(theirs.state_dict())
    data = stacks.draw(layer, T, B)
    names = ("h0", "c0") if layer.has_c else ("h0",)
    expected, given, out = results_of_torch(
        torch, theirs.double(), data["x"], lengths, [data[name] for name in names], data["dy"],
        [data[f"d{name[0]}n"] for name in names])

    def close(got):
        assert got.keys() == expected.keys()
        for name, array in got.items():
            cases.assert_close(name, array, expected[name], stacks.tolerance(layer, data, name),
                               dtype=dtype)

    close(ragged.run(layer, data, lengths=lengths))
    # their packed arrays as they are, in the order of the longest first
    order = given.sorted_indices.numpy()
    state = stacks.state_of({name: data[name][:, order] for name in names}, "h0", "c0")
    y, final, p = layer.forward_packed(given.data.detach().numpy().astype(dtype),
                                       given.batch_sizes, state)
    cases.assert_close("y", y, out.data.detach().numpy(), stacks.tolerance(layer, data, "y"),
                       dtype=dtype)
    packed_dy = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(data["dy"]), lengths, enforce_sorted=False)
    packed_dx = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(expected["dx"]), lengths, enforce_sorted=False)
    dstate = stacks.state_of({f"d{name[0]}n": data[f"d{name[0]}n"][:, order] for name in names},
                             "dhn", "dcn")
    grads = layer.new_grads()
    dx, dstate0 = p.backward(packed_dy.data, dstate, grads=grads)
    cases.assert_close("dx", dx, packed_dx.data.numpy(), stacks.tolerance(layer, data, "dx"),
                       dtype=dtype)
    back = np.argsort(order)
    states = stacks.named("hn", "cn", final) | stacks.named("dh0", "dc0", dstate0)
    for name, array in ({name: a[:, back] for name, a in states.items()} | grads).items():
        cases.assert_close(name, array, expected[name], stacks.tolerance(layer, data, name),
                           dtype=dtype)
