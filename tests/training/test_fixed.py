"""Weights that are declared `fixed`: no optimiser changes them, whatever it is told.

Letters: I input, H hidden.
"""

import numpy as np
import pytest
from equations import MANY, H, I, draw, layer_of

import fastrnn
from fastrnn import SequenceModel, optim

RESERVOIR = fastrnn.cell("""
    fixed W = uniform
    fixed R = sparse(1, 0.9)
    h = tanh(W x + R h)
""")

MAKERS = {
    "sgd": lambda t, **o: optim.SGD(t, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1, **o),
    "rmsprop": lambda t, **o: optim.RMSProp(t, 0.1, momentum=0.9, weight_decay=0.1, **o),
    "adam": lambda t, **o: optim.Adam(t, 0.1, weight_decay=0.1, **o),
    "adamw": lambda t, **o: optim.AdamW(t, 0.1, **o),
}


def model_of(cell=MANY):
    return SequenceModel(layer_of(cell), 2, loss="mse", seed=1)


def train(model, optimizer, steps=3, **options):
    for i in range(steps):
        model.zero_grad()
        model.loss(draw(5, 3, I, seed=i), draw(5, 3, 2, seed=i)).backward()
        optimizer.step(**options)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("groups", [None, {"*": {"lr": 0.5, "weight_decay": 0.3}},
                                    {"layers.0.R_l0": {"weight_decay": 0.5}},
                                    {"layers": {"weight_decay": 0.5}}], ids=str)
@pytest.mark.parametrize("clip", [{}, {"clip": 0.01}, {"clip": 0.1, "clip_value": 0.01}], ids=str)
def test_they_stay(name, groups, clip):
    model = model_of()
    layer = model.layers[0]
    assert layer.fixed_parameters == {"R_l0"}
    before = model.state_dict()
    optimizer = MAKERS[name](model, groups=groups)
    train(model, optimizer, **clip)
    for parameter, a in model.parameters().items():
        assert np.array_equal(a, before[parameter]) == (parameter == "layers.0.R_l0"), parameter


def test_their_gradient_is_zero_and_in_no_norm():
    model = model_of()
    optimizer = optim.Adam(model)
    model.loss(draw(5, 3, I), draw(5, 3, 2)).backward()
    assert not model.layers[0].grads["R_l0"].any()
    norm = optim.grad_norm(model)
    others = [g for name, g in model.grads.items() if name != "layers.0.R_l0"]
    assert norm == pytest.approx(np.sqrt(sum((g**2).sum() for g in others)))
    model.layers[0].grads["R_l0"][...] = 1e6  # whatever somebody puts there
    assert optimizer.step() == pytest.approx(norm)


def test_a_group_or_freeze_may_name_them():
    model = model_of()
    optimizer = optim.Adam(model, 0.1, freeze="*.R_l0", groups={"*.W_l0": {"lr": 1.0}})
    before = model.state_dict()
    train(model, optimizer)
    assert np.array_equal(model.layers[0].R_l0, before["layers.0.R_l0"])


def test_they_are_shown_and_kept(tmp_path):
    model = model_of()
    assert "layers.0.R_l0" in model.parameters()
    fastrnn.save(model, tmp_path / "m")
    other = fastrnn.load(tmp_path / "m")
    np.testing.assert_array_equal(other.layers[0].R_l0, model.layers[0].R_l0)
    model.layers[0].R_l0 = np.eye(H)  # who sets one means it
    np.testing.assert_array_equal(model.layers[0].R_l0, np.eye(H))


def test_a_layer_of_fixed_weights_alone_trains_a_head():
    model = model_of(RESERVOIR)
    before = model.state_dict()
    optimizer = optim.AdamW(model, 0.1)
    assert list(optimizer.trained) == ["head"]
    train(model, optimizer)
    assert [name for name, a in model.parameters().items()
            if not np.array_equal(a, before[name])] == ["head.weight", "head.bias"]
    with pytest.raises(ValueError, match="target has nothing but fixed parameters"):
        optim.Adam(layer_of(RESERVOIR))
    with pytest.raises(ValueError, match="which leaves nothing to train"):
        optim.Adam(model, freeze="head")


def test_both_directions_and_all_layers():
    layer = layer_of(MANY, num_layers=2, bidirectional=True)
    assert layer.fixed_parameters == {"R_l0", "R_l0_reverse", "R_l1", "R_l1_reverse"}
    assert fastrnn.LSTM(2, 3).fixed_parameters == frozenset()


def test_omega_is_for_an_rnn_alone():
    layer = layer_of()
    with pytest.raises(TypeError, match=r"^omega: layer is of type Layer, expected an RNN"):
        fastrnn.training.regularisers.omega(layer, [{}], 1.0)
    with pytest.raises(ValueError, match="for a model without an RNN"):
        fastrnn.fit(model_of(), draw(4, 5, I), draw(4, 5, 2), omega=1.0, epochs=1,
                    progress=False)
