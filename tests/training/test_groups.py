"""Which parameters an optimiser moves: shared parts, frozen ones, groups with settings."""

import copy
import json
import math
import pickle

import cases
import numpy as np
import pytest
from optimisers import (
    OPTIMIZERS,
    assert_equal_states,
    layer_of,
    set_grads,
    some_grads,
    take_steps,
    values,
)

import fastrnn
from fastrnn import optim
from fastrnn.layers.parameters import distinct
from fastrnn.models import EncoderDecoder, LanguageModel, SequenceModel, Stack


def model_of(seed=0, dtype=np.float64):
    return LanguageModel(7, 3, 5, dtype=dtype, seed=seed)


def names_of(target):
    return list(target.parameters())


def moved(target, before):
    """Return the names of the parameters that are not as they were."""
    return [name for name, p in target.parameters().items()
            if p.tobytes() != before[name].tobytes()]


@pytest.mark.parametrize("freeze", [
    "embedding", ["embedding"], "embedding.*", "*embed*", {"embedding"},
    lambda model: model.embedding, lambda model: [model.embedding]], ids=str)
def test_a_frozen_part_stays_and_may_be_in_evaluation_mode(made, freeze):
    model = model_of()
    if callable(freeze):
        freeze = freeze(model)
    optimizer = type(made(model))(model, 0.1, freeze=freeze)
    before = model.state_dict()
    model.embedding.eval()
    for g in some_grads(model, 2):
        set_grads(model, g)
        moving = [a for name, a in model.grads.items() if name != "embedding.weight"]
        assert optimizer.step() == pytest.approx(
            math.sqrt(sum((a * a).sum() for a in moving)), rel=1e-12)
    assert moved(model, before) == [n for n in names_of(model) if n != "embedding.weight"]
    assert list(optimizer.trained) == ["layers.0", "head"]
    assert json.loads(json.dumps(optimizer.config))["freeze"] == optimizer.config["freeze"]
    assert not any(name.startswith("embedding") for name in optimizer.state_dict())


def test_single_parameters_freeze_and_their_gradients_are_in_no_norm():
    model = model_of()
    optimizer = optim.SGD(model, 0.1, freeze=["*.weight_hh_*", "head.bias"])
    before = model.state_dict()
    set_grads(model, some_grads(model, 1)[0])
    model.grads["head.bias"][:] = np.inf  # nobody looks
    assert np.isfinite(optimizer.step())
    frozen = {"layers.0.weight_hh_l0", "head.bias"}
    assert set(moved(model, before)) == set(names_of(model)) - frozen
    optimizer.zero_grad()
    assert not any(g.any() for g in model.grads.values())


def test_neighbours_with_equal_settings_are_one_range():
    model = model_of()
    assert [r[:3] for r in optim.Adam(model)._choice.ranges] == [
        (i, 0, part.flat.size) for i, part in enumerate(distinct(model))]
    ranges = optim.Adam(model, 1e-3, groups={"*bias*": {"weight_decay": 0.5},
                                             "head": {"lr": 1e-2}})._choice.ranges
    assert [(r.part, r.lr_scale, r.weight_decay) for r in ranges] == [
        (0, 1, 0), (0, 1, 0.5), (1, 1, 0), (2, pytest.approx(10), 0), (2, 1, 0.5)]


def test_a_groups_rate_keeps_its_ratio():
    model = model_of()
    optimizer = optim.SGD(model, 0.1, groups={"head": {"lr": 0.3}})
    optimizer.lr = 0.01
    before = model.state_dict()
    for part in distinct(model):
        part.flat_grads[:] = 1
    optimizer.step()
    for name, p in model.parameters().items():
        np.testing.assert_allclose(before[name] - p, 0.03 if "head" in name else 0.01, rtol=1e-9)
    config = optimizer.config
    assert config["groups"] == {"head": {"lr": pytest.approx(0.03)}}
    again = getattr(optim, config.pop("optimizer"))(model, **json.loads(json.dumps(config)))
    assert again._choice.ranges == [pytest.approx(r) for r in optimizer._choice.ranges]


def test_groups_are_the_plain_equations():
    """AdamW by hand: no decay on biases, another rate for the head."""
    model = model_of()
    optimizer = optim.AdamW(model, 0.01, groups={"*bias*": {"weight_decay": 0},
                                                 "head": {"lr": 0.05, "weight_decay": 0.3}})
    expected = model.state_dict()
    m = dict.fromkeys(expected, 0)
    v = dict(m)
    for t, g in enumerate(some_grads(model, 4), 1):
        set_grads(model, g)
        optimizer.step()
        for name, p in expected.items():
            lr, decay = 0.01, 0.01
            if name == "head.weight":
                lr, decay = 0.05, 0.3
            elif "bias" in name:
                decay = 0
            grad = model.grads[name]
            m[name] = 0.9 * m[name] + 0.1 * grad
            v[name] = 0.999 * v[name] + 0.001 * grad * grad
            p *= 1 - lr * decay
            p -= lr * (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-8)
    for name, p in model.parameters().items():
        cases.assert_close(name, p, expected[name], 1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(
    ("options", "groups_of"),
    [
        ({"freeze": "embedding"},
         lambda named, o: [{"params": named("layers") + named("head")}]),
        ({"weight_decay": 0.1, "groups": {"*bias*": {"weight_decay": 0}}},
         lambda named, o: [{"params": named("weight"), "weight_decay": 0.1},
                           {"params": named("bias"), "weight_decay": 0}]),
        ({"groups": {"head": {"lr": 0.05}}},
         lambda named, o: [{"params": named("layers") + named("embedding")},
                           {"params": named("head"), "lr": 0.05}]),
    ], ids=["freeze", "decay", "rate"])
def test_groups_are_torchs_parameter_groups(name, dtype, options, groups_of):
    torch = pytest.importorskip("torch")
    cls, own = OPTIMIZERS[name]
    model = model_of(dtype=dtype)
    if cls is optim.Adam and "weight_decay" in options:  # torch's Adam has no decoupled decay
        cls = optim.AdamW
    optimizer = cls(model, **(own | options))
    tensors = {n: torch.nn.Parameter(torch.tensor(p.copy()))
               for n, p in model.parameters().items()}

    def named(part):
        return [p for n, p in tensors.items() if part in n and
                (part != "weight" or "bias" not in n)]

    kind = {"SGD": torch.optim.SGD, "RMSProp": torch.optim.RMSprop, "Adam": torch.optim.Adam,
            "AdamW": torch.optim.AdamW}[cls.__name__]
    theirs = kind(groups_of(named, own), **own)
    moving = [p for group in theirs.param_groups for p in group["params"]]
    for g in some_grads(model, 8).astype(dtype):
        set_grads(model, g)
        for n, p in tensors.items():
            p.grad = torch.tensor(model.grads[n].copy())
        norm = torch.nn.utils.clip_grad_norm_(moving, 4.0)
        assert optimizer.step(clip=4.0) == pytest.approx(float(norm), rel=1e-5)
        theirs.step()
    for n, p in model.parameters().items():
        cases.assert_close(n, p, tensors[n].detach().numpy(),
                           1e-6 + cases.tolerance(dtype, 16, 8))


def shared():
    """Return an encoder, and two models that have it."""
    gru = fastrnn.GRU(3, 8, dtype=np.float64, seed=0)
    return gru, [SequenceModel(gru, n, loss="mse", seed=n) for n in (1, 2)]


def test_one_encoder_in_two_models_learns_in_both():
    encoder, models = shared()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 4, 3))
    ys = [rng.standard_normal((6, 4, n)) for n in (1, 2)]
    W = encoder.parameters()["weight_hh_l0"]
    optimizers = [optim.SGD(model, 0.1) for model in models]
    for model, y, optimizer in zip(models, ys, optimizers, strict=True):
        before, first = encoder.flat.copy(), model.loss(x, y).value
        for _ in range(10):
            model.zero_grad()
            model.loss(x, y).backward()
            optimizer.step(clip=1.0)
        assert (encoder.flat != before).any()
        assert model.loss(x, y).value < first
    for model in models:
        np.testing.assert_array_equal(model.state_dict()["layers.0.weight_hh_l0"], W)
        assert model.parameters()["layers.0.weight_hh_l0"] is W
    # gradients add, and one step over both models moves the encoder once
    single = []
    for model, y in zip(models, ys, strict=True):
        encoder.zero_grad()
        model.loss(x, y).backward()
        single.append(encoder.flat_grads.copy())
    for model in models:
        model.zero_grad()
    for model, y in zip(models, ys, strict=True):
        model.loss(x, y).backward()
    np.testing.assert_allclose(encoder.flat_grads, single[0] + single[1], rtol=1e-12, atol=1e-15)
    before = encoder.flat.copy()
    both = optim.SGD(models, 0.1)
    assert list(both.trained) == ["0.layers.0", "0.head", "1.head"]
    both.step()
    np.testing.assert_allclose(encoder.flat, before - 0.1 * encoder.flat_grads, rtol=1e-12)
    assert optim.grad_norm(models) == pytest.approx(np.sqrt(sum(
        (part.flat_grads**2).sum() for part in (encoder, models[0].head, models[1].head))))


@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_the_state_of_shared_parts_survives_once(made, how):
    _, models = shared()
    optimizer = made(models)
    grads = some_grads(models, 6)
    take_steps(optimizer, grads[:3])
    if how == "state_dict":
        state = optimizer.state_dict()
        assert not any(name.startswith("1.layers.0") for name in state)
        _, others = shared()
        for other, model in zip(others, models, strict=True):
            other.load_state_dict(model.state_dict())
        second = made(others)
        second.load_state_dict(state)
    else:
        second = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(
            pickle.dumps(optimizer))
        a, b = second.target
        assert a.layers[0] is b.layers[0]
    take_steps(optimizer, grads[3:])
    take_steps(second, grads[3:])
    assert values(second.target).tobytes() == values(models).tobytes()
    assert_equal_states(second.state_dict(), optimizer.state_dict())


def test_a_frozen_name_of_a_shared_part_freezes_it_under_all():
    encoder, models = shared()
    before = encoder.flat.copy()
    for freeze in ("1.layers.0", encoder, models[0].layers[0], "*layers*"):
        optimizer = optim.SGD(models, 0.1, freeze=freeze)
        take_steps(optimizer, some_grads(models, 1))
        np.testing.assert_array_equal(encoder.flat, before)
        assert list(optimizer.trained) == ["0.head", "1.head"]
    pair = EncoderDecoder(Stack(fastrnn.GRU(3, 4, seed=0), vocab_size=5, seed=0),
                          SequenceModel(fastrnn.GRU(3, 4, seed=1), 5, vocab_size=5, seed=1))
    for freeze in ("encoder", pair.encoder):
        assert list(optim.SGD(pair, 0.1, freeze=freeze).trained) == [
            "decoder.layers.0", "decoder.embedding", "decoder.head"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"freeze": "heads"}, ValueError,
         r"freeze has 'heads', expected names or patterns of \['layers.0.weight_ih_l0', .*'head.b"),
        ({"freeze": ["head", "*hh"]}, ValueError, r"freeze has '\*hh'"),
        ({"freeze": "*"}, ValueError, r"freeze is \['\*'\], which leaves nothing to train"),
        ({"freeze": 3}, TypeError, "freeze is 3, expected names, parts, or a list of them"),
        ({"freeze": [3]}, TypeError, "freeze has 3, expected names or parts"),
        ({"freeze": fastrnn.GRU(2, 2)}, ValueError, "freeze has a GRU that is not in the target"),
        ({"groups": ["head"]}, TypeError, "groups is of type list, expected a dict of names"),
        ({"groups": {"tail": {"lr": 1}}}, ValueError, "groups has 'tail', expected names or pat"),
        ({"groups": {3: {"lr": 1}}}, TypeError, "groups has the key 3"),
        ({"groups": {"head": 0.1}}, TypeError, r"groups\['head'\] is 0.1, expected a dict"),
        ({"groups": {"head": {"rate": 0.1}}}, ValueError,
         r"the setting in groups\['head'\] is 'rate', expected one of \['lr', 'weight_decay'\]"),
        ({"groups": {"head": {"lr": 0}}}, ValueError, r"groups\['head'\]\['lr'\] is 0"),
        ({"groups": {"head": {"weight_decay": -1}}}, ValueError,
         r"groups\['head'\]\['weight_decay'\] is -1"),
    ],
)
def test_errors_of_freezing_and_groups(made, options, error, match):
    kind = type(made(layer_of()))
    with pytest.raises(error, match=rf"^{kind.__name__}: {match}") as raised:
        kind(model_of(), 0.1, **options)
    assert "\n" not in str(raised.value)
