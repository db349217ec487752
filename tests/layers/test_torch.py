"""fastrnn's layers in the place of torch.nn's: the same names, weights, results and gradients."""

import cases
import numpy as np
import pytest

import fastrnn

torch = pytest.importorskip("torch")

# name: (kind, further arguments); torch has no sigmoid
CELLS = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
}
SIZES = [(3, 2, 7, 5), (5, 4, 5, 17), (2, 3, 33, 8)]  # T, B, I, H: wide, square and narrow

per_cell = pytest.mark.parametrize("cell", CELLS)
per_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=lambda dtype: dtype.__name__)


@pytest.fixture(autouse=True)
def one_thread():
    """Two pools of threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(cell, *sizes, dtype=np.float64, seed=0, **options):
    """Return torch's layer and ours with its weights; torch's computes in float64."""
    kind, extra = CELLS[cell]
    torch.manual_seed(seed)
    theirs = getattr(torch.nn, kind)(*sizes, **extra, **options)
    ours = getattr(fastrnn, kind)(*sizes, **extra, **options, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs.double(), ours


def tensors(arrays):
    return tuple(torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays)


def one_or_pair(states):
    return states[0] if len(states) == 1 else tuple(states)


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def results_of_torch(layer, x, states, dy, dstates):
    x, *states = tensors((x, *states))
    y, final = layer(x, one_or_pair(states))
    finals = as_tuple(final)
    torch.autograd.backward((y, *finals), tuple(map(torch.tensor, (dy, *dstates))))
    named = {"y": y, "dx": x.grad}
    for k, letter in enumerate("hc"[: len(finals)]):
        named |= {f"{letter}n": finals[k], f"d{letter}0": states[k].grad}
    named |= {name: param.grad for name, param in layer.named_parameters()}
    return {name: tensor.detach().numpy() for name, tensor in named.items()}


def results_of_ours(layer, x, states, dy, dstates):
    y, final = layer(x, one_or_pair(states))
    dx, initial = layer.backward(dy, one_or_pair(dstates))
    named = {"y": y, "dx": dx}
    for letter, end, start in zip("hc", as_tuple(final), as_tuple(initial), strict=False):
        named |= {f"{letter}n": end, f"d{letter}0": start}
    return named | dict(layer.grads)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("layout", ["time_first", "batch_first", "unbatched", "unbatched_bf"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@per_dtype
@per_cell
def test_results_and_gradients(cell, dtype, num_layers, bidirectional, bias, layout, sizes):
    T, B, I, H = sizes
    D = 1 + bidirectional
    batch_first = layout in ("batch_first", "unbatched_bf")
    theirs, ours = pair(cell, I, H, num_layers, bias=bias, batch_first=batch_first,
                        bidirectional=bidirectional, dtype=dtype)
    if layout.startswith("unbatched"):
        lead, states = (T,), (num_layers * D, H)
    else:
        lead, states = (B, T) if batch_first else (T, B), (num_layers * D, B, H)
    count = 1 + (cell == "lstm")
    rng = np.random.default_rng(1)
    x, dy, *rest = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((*lead, I), (*lead, D * H), *[states] * 2 * count)
    )
    arrays = x, rest[:count], dy, rest[count:]
    expected = results_of_torch(theirs, *arrays)
    got = results_of_ours(ours, *arrays)
    assert list(got) == list(expected)
    widest = max(I, D * H if num_layers > 1 else 0) + H
    forward = cases.tolerance(dtype, widest, T * num_layers)
    backward = cases.tolerance(dtype, max(widest, cases.GATES[cell] * H, B), T * num_layers,
                               backward=True, bidirectional=bidirectional)
    for name, array in got.items():
        tolerance = forward if name in ("y", "hn", "cn") else backward
        cases.assert_close(name, array, expected[name], tolerance, dtype=dtype)


@per_cell
def test_missing_states_are_zeros_as_in_torch(cell):
    theirs, ours = pair(cell, 7, 5, 2, bidirectional=True)
    x = np.random.default_rng(1).standard_normal((4, 3, 7))
    expected, _ = theirs(torch.tensor(x))
    got, _ = ours(x)
    cases.assert_close("y", got, expected.detach().numpy(), cases.tolerance(np.float64, 15, 8))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@per_cell
def test_parameters_have_torchs_names_order_and_shapes(cell, num_layers, bidirectional, bias):
    theirs, ours = pair(cell, 7, 5, num_layers, bidirectional=bidirectional, bias=bias)
    expected = [(name, tuple(param.shape)) for name, param in theirs.named_parameters()]
    assert [(name, param.shape) for name, param in ours.parameters().items()] == expected
    assert list(ours.state_dict()) == list(theirs.state_dict())
    flat = torch.nn.utils.parameters_to_vector(theirs.parameters()).detach().numpy()
    np.testing.assert_array_equal(ours.flat, flat)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@per_dtype
@per_cell
def test_state_dicts_go_both_ways(cell, dtype, mode):
    kind, extra = CELLS[cell]
    torch_dtype = torch.float32 if dtype == np.float32 else torch.float64
    theirs = getattr(torch.nn, kind)(7, 5, 2, bidirectional=True, dtype=torch_dtype, **extra)
    ours = getattr(fastrnn, kind)(7, 5, 2, bidirectional=True, dtype=dtype, seed=0, **extra)
    ours.train(mode)
    sent = ours.state_dict()
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in sent.items()})
    for name, tensor in theirs.state_dict().items():
        assert tensor.numpy().tobytes() == sent[name].tobytes(), name
    with torch.no_grad():
        for param in theirs.parameters():
            param.normal_()
    ours.load_state_dict(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert ours.parameters()[name].tobytes() == tensor.numpy().tobytes(), name
        assert not np.shares_memory(ours.parameters()[name], tensor.numpy())
    assert ours.training is mode


def test_a_state_dict_of_another_architecture_is_refused():
    theirs = torch.nn.LSTM(7, 5, 2, proj_size=3)
    ours = fastrnn.LSTM(7, 5, seed=0)
    before = ours.flat.tobytes()
    with pytest.raises(ValueError, match=r"unexpected \['weight_hr_l0', .*weight_hh_l0 has shape"):
        ours.load_state_dict(theirs.state_dict())
    assert ours.flat.tobytes() == before


@per_dtype
@per_cell
def test_tensors_are_arrays(cell, dtype):
    _, ours = pair(cell, 7, 5, 2, dtype=dtype)
    rng = np.random.default_rng(1)
    x, dy = (rng.standard_normal((4, 3, n)).astype(dtype) for n in (7, 5))
    expected_y, _ = ours(x)
    expected_dx, _ = ours.backward(dy)
    got_y, _ = ours(torch.tensor(x))
    got_dx, _ = ours.backward(torch.tensor(dy))
    assert got_y.tobytes() == expected_y.tobytes()
    assert got_dx.tobytes() == expected_dx.tobytes()
    with pytest.raises(TypeError, match="x is float16, expected float"):
        ours(torch.tensor(x).half())


@per_cell
def test_initial_weights_have_torchs_spread(cell):
    theirs, _ = pair(cell, 64, 50)
    kind, extra = CELLS[cell]
    ours = getattr(fastrnn, kind)(64, 50, seed=0, **extra)
    for name, param in theirs.named_parameters():
        expected, got = param.detach().numpy(), ours.parameters()[name]
        bound = 1 / np.sqrt(50)
        for array in (expected, got):
            assert abs(array).max() <= np.float32(bound)
            spread = bound / np.sqrt(3)
            assert abs(array.mean()) < 5 * spread / np.sqrt(array.size)
            assert abs(array.std() / spread - 1) < 5 / np.sqrt(array.size)


@per_cell
def test_tensors_that_are_no_arrays_are_refused_in_one_sentence(cell):
    theirs, ours = pair(cell, 7, 5)
    before, name = ours.flat.tobytes(), type(ours).__name__
    half = {key: tensor.bfloat16() for key, tensor in theirs.state_dict().items()}
    match = rf"^{name}.load_state_dict: weight_ih_l0 is of type Tensor, expected an array of numbe"
    with pytest.raises(TypeError, match=match) as caught:
        ours.load_state_dict(half)
    assert "\n" not in str(caught.value)
    x = torch.zeros(4, 3, 7, dtype=torch.float64, requires_grad=True)
    with pytest.raises(TypeError, match=rf"^{name}: x is of type Tensor, expected an array of"):
        ours(x)
    step = ours.stream(3)
    for row in (x[0], x[0].bfloat16()):
        with pytest.raises(TypeError, match=rf"^{name}.stream: x is of type Tensor, expected an"):
            step(row)
    assert ours.flat.tobytes() == before
    ours.load_state_dict({key: tensor.half() for key, tensor in theirs.state_dict().items()})
