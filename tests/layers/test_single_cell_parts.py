"""RNNCell, LSTMCell and GRUCell as parts: parameters, modes, copies, files, training, bad input."""

import copy
import pickle

import cases
import numpy as np
import pytest
import stacks
from singles import H, I, as_tuple, bits, one_or_pair, one_step

import fastrnn
from fastrnn import gradflow, init, optim
from fastrnn._kernels import runtime
from fastrnn.layers.single import SINGLE

per_cell = stacks.per_cell
per_dtype = stacks.per_dtype


@pytest.mark.parametrize("bias", [True, False])
@per_dtype
@per_cell
def test_parameters_have_torchs_names_and_a_layers_numbers(cell, dtype, bias):
    single = cases.SINGLE_CELLS[cell](I, H, bias, dtype=dtype, seed=3)
    layer = cases.LAYERS[cell](I, H, bias=bias, dtype=dtype, seed=3)
    G = cases.GATES[cell]
    shapes = {"weight_ih": (G * H, I), "weight_hh": (G * H, H)}
    if bias:
        shapes |= {"bias_ih": (G * H,), "bias_hh": (G * H,)}
    assert {name: p.shape for name, p in single.parameters().items()} == shapes
    assert {name: g.shape for name, g in single.grads.items()} == shapes
    assert single.num_parameters == single.flat.size == layer.num_parameters
    assert single.flat.tobytes() == layer.flat.tobytes()
    assert single.dtype == dtype
    assert cases.SINGLE_CELLS[cell](I, H, bias, dtype=dtype).flat.tobytes() != single.flat.tobytes()


def test_the_arguments_of_torch():
    cell = fastrnn.RNNCell(I, H, False, "relu")
    assert (cell.input_size, cell.hidden_size, cell.bias) == (I, H, False)
    assert cell.nonlinearity == "relu"
    with pytest.raises(TypeError, match="positional"):
        fastrnn.GRUCell(I, H, True, np.float64)


@pytest.mark.parametrize(("cell", "text"), [
    (lambda: fastrnn.LSTMCell(7, 5), "LSTMCell(7, 5)"),
    (lambda: fastrnn.GRUCell(7, 5, False, dtype="float64"),
     "GRUCell(7, 5, bias=False, dtype=float64)"),
    (lambda: fastrnn.RNNCell(7, 5, nonlinearity="relu"), "RNNCell(7, 5, nonlinearity='relu')"),
    (lambda: fastrnn.RNNCell(7, 5), "RNNCell(7, 5)"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_repr(cell, text):
    assert repr(cell()) == text


@pytest.mark.parametrize("mode", ["training", "evaluation", "bfloat16"])
@stacks.per_copy
@per_cell
def test_copies(cell, protocol, mode):
    single = cases.SINGLE_CELLS[cell](I, H, False, seed=0)
    single.set_mode(mode)
    x, state, _ = one_step(single)
    other = (copy.deepcopy(single) if protocol is None
             else pickle.loads(pickle.dumps(single, protocol)))
    assert type(other) is type(single)
    assert other.mode == mode
    assert other.config == single.config
    assert repr(other) == repr(single)
    assert bits(other(x, state)) == bits(single(x, state))
    other.train().flat[:] = 0.1  # a cell of its own
    assert np.all(single.flat != 0.1)
    other.forward(abs(x), state)[1].backward(state)
    assert other.grads["weight_hh"].any()
    assert not single.flat_grads.any()


def test_a_pickle_holds_every_number_once():
    single = fastrnn.LSTMCell(50, 60, seed=0).eval()
    single(np.zeros((1, 50), np.float32))
    assert len(pickle.dumps(single)) < single.flat.nbytes + single.flat_grads.nbytes + 2000


@per_dtype
@per_cell
def test_save_and_load(cell, dtype, tmp_path):
    single = cases.SINGLE_CELLS[cell](I, H, dtype=dtype, seed=0)
    single.save(tmp_path / "a", {"from": "a test"})
    fastrnn.save(single, tmp_path / "b")
    x, state, _ = one_step(single)
    for name in "ab":
        other = fastrnn.load(tmp_path / name)
        assert type(other) is type(single)
        assert other.mode == "evaluation"
        assert other.config == single.config
        assert bits(other.flat, other(x, state)) == bits(single.flat, single(x, state))


def test_a_file_of_another_size_is_refused(tmp_path):
    path = tmp_path / "cell"
    fastrnn.LSTMCell(I, H, seed=0).save(path)
    path.write_bytes(path.read_bytes().replace(b'hidden_size\\": 5', b'hidden_size\\": 9'))
    with pytest.raises(ValueError, match=r"its configuration has .* parameters in 1 layers, its"):
        fastrnn.load(path)


@per_cell
def test_evaluation_packs_once_and_training_at_each_call(cell):
    single = cases.SINGLE_CELLS[cell](I, H, seed=0)
    x, state, _ = one_step(single)
    before = bits(single(x, state))
    packs = single.eval()._packed()
    single(x, state)
    single.forward(x, state)
    assert single._packed() is packs
    assert not single.training
    with pytest.raises(ValueError, match="read-only"):
        single.weight_ih[0, 0] = 1
    single.train().weight_ih[:] = 0  # no method of the cell sees this
    assert bits(single(x, state)) != before
    assert bits(single(x, state)) == bits(single(np.zeros_like(x), state))


def test_another_instruction_set_packs_again(isa):
    single = fastrnn.GRUCell(I, H, seed=0)
    x, state, _ = one_step(single)
    expected = bits(single(x, state))
    for other in (name for name, has in runtime.isa_names().items() if has):
        runtime.set_isa(other)
        single.train().eval()
        runtime.set_isa(isa)
        assert bits(single(x, state)) == expected


@per_cell
def test_bfloat16(cell):
    single = cases.SINGLE_CELLS[cell](65, 130, seed=0)
    layer = cases.LAYERS[cell](65, 130, seed=0)
    x, state, _ = one_step(single)
    exact = as_tuple(single(x, state))[0]
    h = as_tuple(single.eval("bfloat16")(x, state))[0]
    padded = tuple(a[None] for a in as_tuple(state))
    y, _ = layer.eval("bfloat16")(x[None], padded if single.has_c else padded[0])
    assert h.tobytes() == y[0].tobytes()
    assert 0 < np.abs(h - exact).max() < 0.05
    with pytest.raises(ValueError, match="a pass is wanted in the mode 'bfloat16', expected eval"):
        single.forward(x, state)
    assert single.forward(x, state, grad=False)[1] is None


@pytest.mark.parametrize("optimiser", [optim.SGD, optim.RMSProp, optim.Adam, optim.AdamW])
@per_cell
def test_an_optimiser_trains_a_cell(cell, optimiser):
    single = cases.SINGLE_CELLS[cell](2, 16, seed=0)
    steps = optimiser(single, lr=0.005)
    x = cases.drawer(np.float32)(4, 8, 2)
    goal = np.full((8, 16), 0.3, np.float32)

    def once():
        state, passes = None, []
        for step in x:
            state, p = single.forward(step, state)
            passes.append(p)
        h, *c = as_tuple(state)
        dstate = one_or_pair(h - goal, *[np.zeros_like(a) for a in c] or [None])
        for p in reversed(passes):
            _, dstate = p.backward(dstate, need_dx=False)
        steps.step()
        single.zero_grad()
        return ((h - goal) ** 2).sum()

    losses = [once() for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_an_optimiser_of_several_parts():
    model = fastrnn.SequenceModel(fastrnn.GRU(3, 4, seed=0), 2, seed=0)
    single = fastrnn.LSTMCell(I, H, seed=0)
    steps = optim.Adam([model, single], freeze=["1.bias_ih"])
    before = single.state_dict()
    single.flat_grads[:] = 1
    steps.step()
    changed = {name for name, array in before.items()
               if np.any(single.parameters()[name] != array)}
    assert changed == {"weight_ih", "weight_hh", "bias_hh"}


@pytest.mark.parametrize("start", [
    lambda a: init.torch_uniform(a, seed=1), lambda a: init.normal(a, 0.1, seed=1),
    lambda a: init.glorot(a, seed=1), lambda a: init.orthogonal(a, seed=1),
    lambda a: init.sparse(a, 0.9, 2, seed=1), lambda a: init.forget_bias(a, 2),
    lambda a: init.chrono(a, 50, seed=1)])
def test_initial_values_are_those_of_a_layer(start):
    single, layer = fastrnn.LSTMCell(I, H, seed=0), fastrnn.LSTM(I, H, seed=0)
    before = single.flat.copy()
    assert start(single) is single
    assert single.flat.tobytes() == start(layer).flat.tobytes() != before.tobytes()


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("use", [
    lambda cell: fastrnn.SequenceModel(cell, 2),
    lambda cell: fastrnn.SequenceModel([fastrnn.LSTM(3, 3), cell], 2),
    lambda cell: fastrnn.SequenceModel(cell.config, 2),
    lambda cell: fastrnn.Stack(cell),
    lambda cell: gradflow.gradient_flow(cell, np.zeros((2, 1, 3))),
    lambda cell: gradflow.jacobians(cell, np.zeros((2, 1, 3)))])
@pytest.mark.parametrize("name", SINGLE)
def test_what_needs_time_refuses_a_cell(use, name):
    match = rf"^\w+: layers?\S* is .*{name}.*, expected .*RNN.*LSTM.*GRU"
    with pytest.raises((TypeError, ValueError), match=match):
        use(getattr(fastrnn, name)(3, 3))


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(("make", "args", "error", "match"), [
    ("GRUCell", (zeros(2, 3, 7),), ValueError,
     r"x has shape \(2, 3, 7\), expected \(B, 7\) or \(7,\): one step"),
    ("GRUCell", (np.float32(3),), ValueError, r"x has shape \(\), expected \(B, 7\) or \(7,\)"),
    ("GRUCell", (zeros(2, 8),), ValueError,
     r"x has shape \(2, 8\), expected \(B, 7\): x has 8 features, weight_ih expects 7"),
    ("RNNCell", (zeros(8),), ValueError, r"x has shape \(8,\), expected \(7,\): x has 8 features"),
    ("GRUCell", (zeros(2, 7, dtype=np.float64),), TypeError, "x is float64, expected float32"),
    ("GRUCell", (None,), TypeError, "x is None, expected"),
    ("GRUCell", ("a",), TypeError, "x is .*, expected numbers"),
    ("GRUCell", (zeros(2, 7), zeros(3, 5)), ValueError,
     r"h0 has shape \(3, 5\), expected \(2, 5\)"),
    ("GRUCell", (zeros(2, 7), zeros(1, 2, 5)), ValueError,
     r"h0 has shape \(1, 2, 5\), expected \(2, 5\)"),
    ("RNNCell", (zeros(2, 7), zeros(2, 4)), ValueError,
     r"h0 has shape \(2, 4\), expected \(2, 5\)"),
    ("RNNCell", (zeros(2, 7), zeros(5)), ValueError, r"h0 has shape \(5,\), expected \(2, 5\)"),
    ("RNNCell", (zeros(7), zeros(1, 5)), ValueError, r"h0 has shape \(1, 5\), expected \(5,\)"),
    ("GRUCell", (zeros(2, 7), (zeros(2, 5), zeros(2, 5))), TypeError,
     "h0 is a tuple of 2, expected one array"),
    ("LSTMCell", (zeros(2, 7), zeros(2, 5)), TypeError,
     r"state is ndarray of 2, expected a pair \(h, c\)"),
    ("LSTMCell", (zeros(2, 7), zeros(3, 5)), TypeError, r"state is .*, expected a pair \(h, c\)"),
    ("LSTMCell", (zeros(2, 7), (zeros(2, 5),)), TypeError,
     r"state is tuple of 1, expected a pair \(h, c\)"),
    ("LSTMCell", (zeros(2, 7), (zeros(2, 5), zeros(3, 5))), ValueError,
     r"state\[1\] has shape \(3, 5\), expected \(2, 5\)"),
    ("LSTMCell", (zeros(7), (zeros(5), zeros(1, 5))), ValueError,
     r"state\[1\] has shape \(1, 5\), expected \(5,\)"),
    ("LSTMCell", (zeros(2, 7), (zeros(2, 5), zeros(2, 5, dtype=np.float64))), TypeError,
     r"state\[1\] is float64, expected float32"),
])
def test_bad_calls(make, args, error, match):
    single = getattr(fastrnn, make)(I, H, seed=0)
    with pytest.raises(error, match=f"^{make}: {match}"):
        single(*args)
    with pytest.raises(error, match=rf"^{make}\.forward: {match}"):
        single.forward(*args)


@pytest.mark.parametrize(("make", "error", "match"), [
    (lambda: fastrnn.LSTMCell(0, 5), ValueError, "LSTMCell: input_size is 0, expected a whole"),
    (lambda: fastrnn.GRUCell(7, -1), ValueError, "GRUCell: hidden_size is -1, expected a whole"),
    (lambda: fastrnn.GRUCell(7, 2.0), ValueError, "GRUCell: hidden_size is 2.0, expected a whole"),
    (lambda: fastrnn.RNNCell(7, 5, "no"), TypeError, "RNNCell: bias is 'no', expected True or Fal"),
    (lambda: fastrnn.RNNCell(7, 5, nonlinearity="sin"), ValueError,
     r"RNNCell: nonlinearity is 'sin', expected one of \['tanh', 'relu', 'sigmoid'\]"),
    (lambda: fastrnn.LSTMCell(7, 5, dtype="float16"), TypeError, "LSTMCell: dtype is 'float16'"),
    (lambda: fastrnn.LSTMCell(7, 5, seed=-1), ValueError, "LSTMCell: seed is -1, expected a whole"),
    (lambda: fastrnn.LSTMCell(10**200, 10**200), MemoryError, "LSTMCell: these sizes make 1e+"),
    (lambda: setattr(fastrnn.LSTMCell(7, 5), "hidden_size", 6), AttributeError,
     "hidden_size is fixed when the LSTMCell is made"),
    (lambda: setattr(fastrnn.RNNCell(7, 5), "nonlinearity", "relu"), AttributeError,
     "nonlinearity is fixed when the RNNCell is made"),
    (lambda: setattr(fastrnn.LSTMCell(7, 5), "weight_hh_l0", 6), AttributeError,
     "LSTMCell has no parameter 'weight_hh_l0', it has"),
    (lambda: fastrnn.LSTMCell(7, 5).load_state_dict(fastrnn.LSTM(7, 5).state_dict()), ValueError,
     r"LSTMCell.load_state_dict: missing \['weight_ih', .*; unexpected \['weight_ih_l0', "),
])
def test_bad_cells(make, error, match):
    with pytest.raises(error, match=f"^{match}"):
        make()
