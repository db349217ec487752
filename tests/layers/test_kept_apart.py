"""What a call was given and what it gives is nobody else's; numbers and flags are what they say."""

import copy

import numpy as np
import pytest

import fastrnn
from fastrnn import functional
from fastrnn.cells import ClippedLSTM, VariationalLSTM

X = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)


@pytest.mark.parametrize("make", [
    lambda: fastrnn.GRU(3, 4, seed=0),
    lambda: fastrnn.Layer(fastrnn.cell("h = tanh(W x + U h)"), 3, 4, seed=0),
    lambda: fastrnn.GRU(3, 4, 2, seed=0)], ids=["GRU", "equations", "two layers"])
def test_recorded_inputs_are_copies(make):
    layer, x = make(), X.copy()
    y, _, p = layer.forward(x)
    expected = p.backward(y, retain=True)[0]
    record = p.backward(y, record=("x",), retain=True)[2]
    for part in record:
        part["x"][...] = 7
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(p.backward(y)[0], expected)


def test_a_mask_of_a_weight_may_change_after_the_call():
    cell = fastrnn.cell("weight V = dropconnect(0.5)\nh = tanh(W x + V h)")
    rng = np.random.default_rng(0)
    parameters = {"W": rng.standard_normal((4, 3)).astype("f"),
                  "V": rng.standard_normal((4, 4)).astype("f")}
    mask = np.ones((4, 4), np.float32)
    found = []
    for changed in (False, True):
        y, _, tape = functional.cell_forward(cell, X, None, parameters, masks={"V": mask})
        if changed:
            mask[...] = 0
        found.append(functional.cell_backward(y, None, tape)[2]["V"])
    np.testing.assert_array_equal(*found)


def test_an_array_of_a_constant_may_change_after_the_constructor():
    clip = np.array(3.0)
    layer = fastrnn.Layer(ClippedLSTM, 3, 4, cell_clip=clip, seed=0)
    clip[...] = 99
    assert layer.config["cell_clip"] == 3


@pytest.mark.parametrize("value", [10**400, True, np.True_, "3", None, float("nan")], ids=repr)
def test_constants_that_are_no_numbers(value):
    with pytest.raises((TypeError, ValueError), match=r"^Layer: cell_clip is .* expected a"):
        fastrnn.Layer(ClippedLSTM, 3, 4, cell_clip=value)


def test_a_first_value_that_the_dtype_cannot_hold():
    cell = fastrnn.cell("learned p = 1e39\nh = tanh(W x + U h) * p")
    with pytest.raises(ValueError, match=r"p has 1e.39 at .*, which float32 cannot hold"):
        fastrnn.Layer(cell, 3, 4)
    assert fastrnn.Layer(cell, 3, 4, dtype=np.float64).flat.max() == 1e39


def test_updates_of_several_parameters_are_all_made_or_none():
    layer = fastrnn.RNN(2, 3, seed=0)
    before, version = layer.flat.copy(), layer.version
    good = np.ones((3, 2))
    for bad in ({"weight_hh_l0": np.ones((1, 2))}, {"weight_hh_l0": "no"}, {"other": good},
                {"weight_hh_l0": np.full((3, 3), 1e39)}):
        with pytest.raises((TypeError, ValueError)):
            layer.parameters().update({"weight_ih_l0": good} | bad)
        with pytest.raises((TypeError, ValueError)):
            layer.parameters().update([("weight_ih_l0", good)], **bad)
    np.testing.assert_array_equal(layer.flat, before)
    assert layer.version == version
    layer.parameters().update({"weight_ih_l0": good}, bias_ih_l0=[1, 2, 3])
    assert (layer.weight_ih_l0 == 1).all()
    assert layer.bias_ih_l0.tolist() == [1, 2, 3]
    assert layer.version > version


@pytest.mark.parametrize("give", [
    lambda s: s([[1e39, 0, 0]]), lambda s: s.block([[[0, 0, 0]], [[0, -1e39, 0]]]),
    lambda s: setattr(s, "state", ([[[1e39] * 4]], None)),
    lambda s: s.rows.__setitem__([0], ([[[1e39] * 4]], [[[0] * 4]]))],
    ids=["step", "block", "state", "rows"])
def test_a_stream_refuses_numbers_of_lists_that_float32_cannot_hold(give):
    stream = fastrnn.LSTM(3, 4, seed=0).stream()
    stream([[1, 2, 3]])
    before = [a.copy() for a in stream.state]
    with pytest.raises(ValueError, match=r"has -?1e.39, which float32 cannot hold"):
        give(stream)
    for a, b in zip(stream.state, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_parameters_that_change_places():
    layer = fastrnn.GRU(4, 4, seed=0)
    of = layer.parameters()
    x, h = of["weight_ih_l0"].copy(), of["weight_hh_l0"].copy()
    of.update({"weight_ih_l0": of["weight_hh_l0"], "weight_hh_l0": of["weight_ih_l0"]})
    np.testing.assert_array_equal(of["weight_ih_l0"], h)
    np.testing.assert_array_equal(of["weight_hh_l0"], x)


@pytest.mark.parametrize("call", [
    lambda layer: fastrnn.GRUCell(3, 4).forward(X[0], grad="no"),
    lambda layer: layer.forward(X)[2].backward(need_dx="no"),
    lambda layer: layer.forward(X)[2].backward(retain=np.array([0, 1])),
    lambda layer: fastrnn.GRUCell(3, 4).forward(X[0])[1].backward(None, retain="no"),
    lambda layer: fastrnn.Stack(layer).forward(X, grad="no"),
    lambda layer: functional.rnn_backward(
        None, None, functional.rnn_forward(X, None, *layer.parameters().values())[2],
        need_dx="no"),
    lambda layer: fastrnn.losses.mean_squared_error(X, X, need_grad="no"),
    lambda layer: fastrnn.gradflow.jacobians(layer, X, reverse="no"),
    lambda layer: layer.stream(embedding=np.ones((2, 3), "f"), one_hot=np.array([0, 1])),
    lambda layer: fastrnn.set_flush_denormals("no"),
    lambda layer: fastrnn.optim.SGD(layer, nesterov="no"),
    lambda layer: layer.forward(X, grad="no"), lambda layer: layer.train("evaluation"),
    lambda layer: layer.stream(one_hot="no"),
    lambda layer: functional.rnn_forward(X, None, *layer.parameters().values(), reverse="no"),
    lambda layer: functional.rnn_forward(X, None, *layer.parameters().values(), training="no"),
    lambda layer: functional.cell_forward(fastrnn.cell("h = 0.5 * h + x"), X, None, {},
                                          options={"H": 3}, reverse="no"),
], ids=["cell's grad", "need_dx", "retain", "cell's retain", "stack's grad", "functional need_dx",
        "need_grad", "jacobians", "two one_hot", "denormals", "nesterov", "grad", "train",
        "one_hot", "reverse", "training", "cell"])
def test_words_are_no_flags(call):
    layer = fastrnn.RNN(3, 4, seed=0)
    with pytest.raises(TypeError, match="expected True or False"):
        call(layer)
    assert layer.training


def test_functions_name_what_they_refuse():
    w, u = np.ones((4, 3), np.float32), np.ones((4, 4), np.float32)

    class Other:
        dtype = "a dtype of another library"

    with pytest.raises(TypeError, match="weight_hh is a dtype of another library, expected an arr"):
        functional.rnn_forward(X, None, w, Other())
    y, _, tape = functional.rnn_forward(X, None, w, u)
    for grads, match in ((3, "grads is 3, expected a mapping"), (["weight_ih"], "expected a map"),
                         ({1: w, "weight_hh": u}, "grads has keys")):
        with pytest.raises((TypeError, ValueError), match=match):
            functional.rnn_backward(y, None, tape, grads=grads)
    functional.rnn_backward(y, None, tape)  # nothing of it was used up


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_cell_without_parameters_has_the_dtype_of_its_input(dtype):
    y, _, _ = functional.cell_forward(fastrnn.cell("h = 0.5 * h + x"), X.astype(dtype), None, {},
                                      options={"H": 3})
    assert y.dtype == dtype


@pytest.mark.parametrize("make", [
    lambda: fastrnn.LSTM(3, 4, 2, dropout=0.5, seed=0),
    lambda: fastrnn.Layer(ClippedLSTM, 3, 4, seed=0)], ids=["LSTM", "equations"])
def test_a_copy_of_a_pass_goes_back_by_itself(make):
    layer = make()
    y, _, p = layer.forward(X)
    other = copy.deepcopy(p)
    assert other.layer is not layer
    found = [(each.backward(y)[0], each.layer.flat_grads.copy()) for each in (p, other)]
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
    assert found[0][1].any()


def test_a_constant_that_the_dtype_cannot_hold():
    cell = fastrnn.cell("constant k = 1\nh = tanh(W x + k * h)")
    with pytest.raises(ValueError, match=r"k is 1e.39, which float32 cannot hold"):
        fastrnn.Layer(cell, 3, 4, k=1e39, seed=0)
    with pytest.raises(ValueError, match=r"k is 1e.39, which float32 cannot hold"):
        fastrnn.Layer(fastrnn.cell("constant k = 1e39\nh = tanh(W x + k * h)"), 3, 4, seed=0)
    assert np.isfinite(fastrnn.Layer(cell, 3, 4, k=1e39, dtype="d", seed=0)(X.astype("d"))[0]).all()
    for text in ("h = tanh(W x + U h + 1e39)", "h = tanh(W x + (1e30 * 1e30) * h)"):
        with pytest.raises(ValueError, match=r"number of the equations is 1e.* cannot hold"):
            fastrnn.Layer(fastrnn.cell(text), 3, 4, seed=0)
        layer = fastrnn.Layer(fastrnn.cell(text), 3, 4, dtype="d", seed=0)
        arrays = {name[0]: array.astype("f") for name, array in layer.parameters().items()}
        with pytest.raises(ValueError, match=r"number of the equations is 1e.* cannot hold"):
            functional.cell_forward(layer.definition, X, None, arrays)


def test_batch_first_is_true_or_false_also_when_it_is_set():
    layer = fastrnn.GRU(3, 4, seed=0)
    with pytest.raises(TypeError, match="batch_first is 'no', expected True or False"):
        layer.batch_first = "no"
    layer.batch_first = 1
    assert layer.batch_first is True
    np.testing.assert_array_equal(layer(X.transpose(1, 0, 2))[0].transpose(1, 0, 2),
                                  fastrnn.GRU(3, 4, seed=0)(X)[0])


@pytest.mark.parametrize("evaluation", [False, True], ids=["training", "evaluation"])
@pytest.mark.parametrize("make", [
    lambda: fastrnn.GRU(3, 4, 2, dtype="d", seed=0),
    lambda: fastrnn.RNN(3, 4, dtype="d", seed=0),
    lambda: fastrnn.LSTM(3, 4, bidirectional=True, dtype="d", seed=0),
    lambda: fastrnn.LSTM(3, 4, proj_size=2, dtype="d", seed=0),
    lambda: fastrnn.Layer(ClippedLSTM, 3, 4, dtype="d", seed=0)],
    ids=["GRU", "RNN", "both ways", "projected", "equations"])
def test_a_copy_of_a_pass_has_the_weights_of_the_copied_layer(make, evaluation):
    """Whatever happens to the layer that it was copied from, or has happened to it before."""
    layer, x = make(), X.astype("d")
    layer.load_state_dict(layer.state_dict())
    if evaluation:
        layer.eval()
    y, _, p = layer.forward(x, grad=True)
    expected = copy.deepcopy(p)
    other, q = copy.deepcopy((layer, p))
    assert q.layer is other
    one = expected.backward(y)[0]
    layer.train().flat_grads.fill(1)
    layer.flat = layer.flat * -3
    two = q.backward(y)[0]
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(other.flat_grads, expected.layer.flat_grads)
    assert other.flat_grads.any()
    with pytest.raises(RuntimeError, match="the parameters have changed since forward"):
        p.backward(y)
    with pytest.raises(RuntimeError, match="the parameters have changed since forward"):
        copy.deepcopy(p).backward(y)


def test_copies_of_passes_of_cells_and_models():
    cell = fastrnn.GRUCell(3, 4, dtype="d", seed=0)
    h, p = cell.forward(X[0].astype("d"), np.ones((2, 4)))
    model = fastrnn.SequenceModel(fastrnn.LSTM(3, 4, 2, dtype="d", seed=0), 2, seed=0)
    model.load_state_dict(model.state_dict())
    model.head.weight = np.arange(8).reshape(2, 4)
    targets = np.zeros(X.shape[:2], int)
    for whole, pass_, back in ((cell, p, lambda p: p.backward(h)[0]),
                               (model, model.loss(X.astype("d"), targets), lambda p: p.backward())):
        expected = copy.deepcopy((whole, pass_))
        back(expected[1])
        other, q = copy.deepcopy((whole, pass_))
        for part in whole.parts().values():
            part.flat = part.flat * -3
        back(q)
        for name, grad in other.grads.items():
            np.testing.assert_array_equal(grad, expected[0].grads[name])
            assert grad.any()


def test_held_masks_are_of_so_many_sequences():
    layer = fastrnn.Layer(VariationalLSTM, 3, 4, seed=0)
    layer.hold_masks(5)
    with pytest.raises(ValueError, match=r"x has B = 2 sequences, expected 5, as hold_masks had"):
        layer.forward(X)
    layer.hold_masks(2)
    y = layer(X)[0]
    np.testing.assert_array_equal(layer(X)[0], y)


def test_a_copied_pass_goes_back_by_itself():
    """Of a layer, a cell, a model, a loss, and the tape of a function."""
    layer = fastrnn.GRU(4, 4, dtype="d", seed=0)
    model = fastrnn.SequenceModel(fastrnn.GRU(4, 4, seed=0, dtype="d"), 2, loss="mse", seed=0)
    cell = fastrnn.LSTMCell(4, 4, dtype="d", seed=0)
    x = np.random.default_rng(0).standard_normal((5, 2, 4))
    of = {"layer": layer.forward(x), "cell": cell.forward(x[0]), "model": model.forward(x)}
    for name, (out, *_, p) in of.items():
        other = copy.copy(p)
        grads = [part.new_grads() for part in 2 * [{"layer": layer, "cell": cell}.get(name, model)]]
        for each, own in zip((p, other), grads, strict=True):
            each.backward(out, grads=own)
        for key, array in grads[0].items():
            np.testing.assert_array_equal(array, grads[1][key])
        assert all(grads[0][key].any() for key in grads[0] if "weight_ih" in key)
        assert copy.copy(p).spent
    p = model.loss(x, x[..., :2])
    other, got = copy.copy(p), []
    for each in (p, other):
        got.append(model.new_grads())
        each.backward(grads=got[-1])
    for key, array in got[0].items():
        np.testing.assert_array_equal(array, got[1][key])
    p = model.loss(x, x[..., :2], recompute_every=2)
    assert copy.copy(p).inner._other is not p.inner._other  # whose dropout backward sets
    kind = fastrnn.cell("h = tanh(W x + U h)")
    weights = {"W": x[0, :1].repeat(3, 0), "U": np.eye(3)}
    y, _, tape = functional.cell_forward(kind, x, None, weights)
    other = copy.copy(tape)
    for one, two in zip(functional.cell_backward(y, None, tape)[2].values(),
                        functional.cell_backward(y, None, other)[2].values(), strict=True):
        np.testing.assert_array_equal(one, two)
