"""Optimisers and clipping against plain NumPy and PyTorch."""

import copy
import json
import math
import pickle

import cases
import numpy as np
import pytest

import fastrnn
from fastrnn import optim
from fastrnn.layers.parameters import distinct
from fastrnn.models import EncoderDecoder, LanguageModel, SequenceModel, Stack

OPTIMIZERS = {
    "sgd": (optim.SGD, {"lr": 0.1}),
    "momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "rmsprop": (optim.RMSProp, {"lr": 0.01, "alpha": 0.9, "eps": 1e-6, "weight_decay": 0.01}),
    "rmsprop momentum": (optim.RMSProp, {"lr": 0.01, "momentum": 0.8}),
    "adam": (optim.Adam, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}),
    "adamw": (optim.AdamW, {"lr": 0.01}),
}


def layer_of(dtype=np.float64, H=7):
    return fastrnn.GRU(3, H, dtype=dtype, seed=0)


def some_grads(target, steps, seed=1):
    size = sum(part.flat.size for part in distinct(target))
    return np.random.default_rng(seed).standard_normal((steps, size))


def set_grads(target, g):
    """Give every distinct part its piece of g."""
    start = 0
    for part in distinct(target):
        part.flat_grads[:] = g[start : start + part.flat.size]
        start += part.flat.size


def values(target):
    return np.concatenate([part.flat for part in distinct(target)])


def run(optimizer, grads, **clipping):
    """Take a step along each row of grads."""
    for g in grads:
        set_grads(optimizer.target, g)
        optimizer.step(**clipping)


@pytest.fixture(params=OPTIMIZERS)
def made(request):
    """Return a function that makes an optimiser of a layer."""
    cls, options = OPTIMIZERS[request.param]
    return lambda target: cls(target, **options)


# ---------------------------------------------------------------------------------------- steps


def test_adam_is_the_papers_algorithm():
    layer = layer_of()
    adam = optim.Adam(layer, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    expected, m, v = layer.flat.copy(), 0, 0
    for t, g in enumerate(some_grads(layer, 5), 1):
        layer.flat_grads[:] = g
        assert adam.step(clip=2.0) == pytest.approx(np.linalg.norm(g))
        g = g * min(1, 2.0 / np.linalg.norm(g))
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        step = 0.01 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)
        expected = expected * (1 - 0.01 * 0.1) - step
        cases.assert_close("parameters", layer.flat, expected, 1e-13)
    assert adam.steps == 5


def test_adamw_is_adam_with_decay():
    layers = layer_of(), layer_of()
    run(optim.AdamW(layers[0], 0.02), some_grads(layers[0], 3))
    run(optim.Adam(layers[1], 0.02, weight_decay=0.01), some_grads(layers[1], 3))
    assert layers[0].flat.tobytes() == layers[1].flat.tobytes()
    assert layers[0].flat.tobytes() != layer_of().flat.tobytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_steps_are_torchs(name, dtype):
    torch = pytest.importorskip("torch")
    cls, options = OPTIMIZERS[name]
    layer = layer_of(dtype)
    optimizer = cls(layer, **options)
    flat = torch.nn.Parameter(torch.tensor(layer.flat))
    theirs = {"SGD": torch.optim.SGD, "RMSProp": torch.optim.RMSprop, "Adam": torch.optim.Adam,
              "AdamW": torch.optim.AdamW}[cls.__name__]([flat], **options)
    for t, g in enumerate(some_grads(layer, 12).astype(dtype)):
        layer.flat_grads[:] = g
        flat.grad = torch.tensor(g)
        torch.nn.utils.clip_grad_value_([flat], 1.5)
        torch.nn.utils.clip_grad_norm_([flat], 4.0)
        optimizer.lr = theirs.param_groups[0]["lr"] = options["lr"] / (1 + t)
        optimizer.step(clip=4.0, clip_value=1.5)
        theirs.step()
    # torch divides by the norm plus 1e-6
    cases.assert_close("parameters", layer.flat, flat.detach().numpy(),
                       1e-6 + cases.tolerance(dtype, 16, 12))


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_step_is_the_same_bits_on_any_number_of_threads(made, dtype):
    results, threads = [], fastrnn.get_num_threads()
    try:
        for n in (1, 2, 3):
            fastrnn.set_num_threads(n)
            layer = layer_of(dtype, H=101)
            run(made(layer), some_grads(layer, 2), clip=3.0, clip_value=1.0)
            results.append(layer.flat.tobytes())
    finally:
        fastrnn.set_num_threads(threads)
    assert results[0] == results[1] == results[2]


def test_any_optimizer_descends(made):
    layer = layer_of()
    x = np.random.default_rng(0).standard_normal((5, 2, 3))
    optimizer, losses = made(layer), []
    for _ in range(30):
        y, _ = layer(x)
        losses.append((y * y).sum() / 2)
        layer.zero_grad()
        layer.backward(y)
        optimizer.step(clip=1.0)
    assert losses[-1] < 0.7 * losses[0]


# ------------------------------------------------------------------------------------- clipping


def test_clipping_scales_to_the_norm_and_no_further():
    layer = layer_of()
    layer.flat_grads[:] = 2
    norm = optim.clip_grad_norm(layer, 1.0)
    assert norm == pytest.approx(2 * math.sqrt(layer.flat.size))
    assert optim.grad_norm(layer) == pytest.approx(1)
    before = layer.flat_grads.copy()
    optim.clip_grad_norm(layer, 5.0)
    np.testing.assert_array_equal(layer.flat_grads, before)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_clipping_by_value_limits_each_element(dtype):
    layer = layer_of(dtype)
    layer.flat_grads[:] = g = some_grads(layer, 1)[0].astype(dtype)
    assert optim.clip_grad_value(layer, 0.5) is None
    np.testing.assert_array_equal(layer.flat_grads, np.clip(g, dtype(-0.5), dtype(0.5)))
    assert layer.flat_grads.max() == 0.5
    layer.flat_grads[3] = np.nan
    optim.clip_grad_value(layer, 0.5)
    assert np.isnan(layer.flat_grads[3])


@pytest.mark.parametrize("clipping", [{}, {"clip": 0.7}, {"clip_value": 0.3}, {"clip": 100.0},
                                      {"clip": 0.7, "clip_value": 0.3}], ids=str)
def test_a_step_clips_as_the_functions_would(made, clipping):
    layers = layer_of(), layer_of()
    ours, plain = map(made, layers)
    for g in some_grads(layers[0], 3):
        for layer in layers:
            layer.flat_grads[:] = g
        assert ours.step(**clipping) == pytest.approx(np.linalg.norm(g), rel=1e-14)
        np.testing.assert_array_equal(layers[0].flat_grads, g)
        if "clip_value" in clipping:
            optim.clip_grad_value(layers[1], clipping["clip_value"])
        if "clip" in clipping:
            optim.clip_grad_norm(layers[1], clipping["clip"])
        plain.step()
        assert layers[0].flat.tobytes() == layers[1].flat.tobytes()


# ---------------------------------------------------------------------------- refusals and state


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clipping", [{}, {"clip": 1.0, "clip_value": 0.5}], ids=["free", "clip"])
def test_gradients_that_are_not_finite_change_nothing(made, bad, clipping):
    layer = layer_of()
    optimizer = made(layer)
    run(optimizer, some_grads(layer, 2))
    before, state = layer.flat.copy(), optimizer.state_dict()
    layer.flat_grads[5] = bad
    with pytest.raises(FloatingPointError, match=r"norm is (nan|inf) at step 3, expected a fin"):
        optimizer.step(**clipping)
    np.testing.assert_array_equal(layer.flat, before)
    assert_equal_states(optimizer.state_dict(), state)


def test_evaluation_mode_is_refused(made):
    layer = layer_of()
    optimizer = made(layer)
    layer.eval()
    with pytest.raises(ValueError, match=r"GRU is in evaluation mode .* expected training"):
        optimizer.step()
    assert optimizer.steps == 0
    assert layer.flat.tobytes() == layer_of().flat.tobytes()
    model = LanguageModel(7, 3, 5, seed=0)
    optimizer = made(model)
    model.embedding.eval()
    with pytest.raises(ValueError, match=r"step: embedding is in evaluation mode and its param"):
        optimizer.step()


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_going_on_is_never_having_stopped(made, dtype, how):
    whole, part = layer_of(dtype), layer_of(dtype)
    grads = some_grads(whole, 7)
    one, first = made(whole), made(part)
    run(one, grads, clip=3.0)
    run(first, grads[:4], clip=3.0)
    if how == "state_dict":
        config = json.loads(json.dumps(first.config))
        state = first.state_dict()
        assert state["steps"].dtype == np.int64
        assert state["steps"] == 4
        other = layer_of(dtype)
        other.load_state_dict(part.state_dict())
        second = getattr(optim, config.pop("optimizer"))(other, **config)
        run(first, grads[4:])  # must not reach into the copies
        second.load_state_dict(state)
    else:
        second = (copy.deepcopy(first) if how == "deepcopy"
                  else pickle.loads(pickle.dumps(first)))
    run(second, grads[4:], clip=3.0)
    assert second.target.flat.tobytes() == whole.flat.tobytes()
    assert second.steps == 7
    assert_equal_states(second.state_dict(), one.state_dict())


def test_a_model_is_a_target(made):
    model = LanguageModel(7, 3, 5, seed=0)
    before = values(model)
    run(made(model), some_grads(model, 1))
    assert (values(model) != before).all()


def test_the_config_is_the_arguments_with_the_lr_of_now():
    adam = optim.AdamW(layer_of(), 0.1)
    adam.lr = 0.05
    assert adam.config == {"optimizer": "AdamW", "lr": 0.05, "betas": [0.9, 0.999], "eps": 1e-8,
                           "weight_decay": 0.01, "freeze": [], "groups": {}}
    assert optim.SGD(layer_of(), 1, 0.5, True).config == {
        "optimizer": "SGD", "lr": 1.0, "momentum": 0.5, "nesterov": True, "weight_decay": 0.0,
        "freeze": [], "groups": {}}
    assert optim.RMSProp(layer_of(), 1).config == {
        "optimizer": "RMSProp", "lr": 1.0, "alpha": 0.99, "eps": 1e-8, "momentum": 0.0,
        "weight_decay": 0.0, "freeze": [], "groups": {}}
    assert {"sgd": optim.SGD, "rmsprop": optim.RMSProp, "adam": optim.Adam,
                                "adamw": optim.AdamW} == optim.OPTIMIZERS


def test_only_the_buffers_that_are_needed_are_kept():
    assert list(optim.SGD(layer_of(), 1).state_dict()) == ["steps"]
    assert list(optim.SGD(layer_of(), 1, 0.9).state_dict()) == ["steps", "momentum"]
    assert list(optim.RMSProp(layer_of(), 1).state_dict()) == ["steps", "square"]
    assert list(optim.RMSProp(layer_of(), 1, momentum=0.9).state_dict()) == [
        "steps", "square", "momentum"]
    assert list(optim.Adam(layer_of()).state_dict()) == ["steps", "m", "v"]


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        (None, TypeError, "Adam.load_state_dict: the mapping is None, expected a map"),
        ({"m": None}, ValueError, r"missing \['m'\]$"),
        ({"square": np.zeros(3)}, ValueError, r"unexpected \['square'\]$"),
        ({"v": np.zeros(3)}, ValueError, r"v has shape \(3,\), expected \(252,\)$"),
        ({"v": "none"}, TypeError, "v is of type str, expected numbers"),
        ({"steps": np.zeros(2, int)}, ValueError, r"steps has shape \(2,\), expected \(\)$"),
        ({"steps": np.array(1.5)}, TypeError, "steps is float64, expected a whole number"),
        ({"steps": np.array(-1)}, ValueError, "steps is -1, expected at least 0"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(changes, error, match):
    layer = layer_of()
    adam, other = optim.Adam(layer), optim.Adam(layer_of())
    run(adam, some_grads(layer, 2))
    before, state = adam.state_dict(), other.state_dict()
    if changes is not None:
        state = {k: v for k, v in (state | changes).items() if v is not None}
    with pytest.raises(error, match=match) as raised:
        adam.load_state_dict(None if changes is None else state)
    assert "\n" not in str(raised.value)
    assert_equal_states(adam.state_dict(), before)


@pytest.mark.parametrize(
    ("cls", "options", "match"),
    [
        (optim.Adam, {"lr": 0}, "Adam: lr is 0, expected a number above 0"),
        (optim.Adam, {"lr": "fast"}, "lr is 'fast'"),
        (optim.Adam, {"lr": math.nan}, "lr is nan"),
        (optim.Adam, {"betas": (1, 0.9)},
         r"betas\[0\] is 1, expected a number above 0 and below 1"),
        (optim.Adam, {"betas": 0.9}, "betas is 0.9, expected a pair of numbers"),
        (optim.Adam, {"eps": -1}, "eps is -1"),
        (optim.Adam, {"weight_decay": -1}, "weight_decay is -1, expected a number of at least 0"),
        (optim.AdamW, {"eps": 0}, "AdamW: eps is 0"),
        (optim.SGD, {"lr": True}, "SGD: lr is True"),
        (optim.SGD, {"momentum": 1}, "momentum is 1, expected a number of at least 0 and below 1"),
        (optim.SGD, {"weight_decay": math.inf}, "weight_decay is inf"),
        (optim.SGD, {"nesterov": True}, "nesterov is True and momentum is 0, expected momentum"),
        (optim.RMSProp, {"alpha": 1}, "RMSProp: alpha is 1, expected a number above 0 and below 1"),
        (optim.RMSProp, {"eps": 0}, "eps is 0"),
        (optim.RMSProp, {"momentum": -0.1}, "momentum is -0.1"),
        (optim.RMSProp, {"weight_decay": "l2"}, "weight_decay is 'l2'"),
    ],
)
def test_errors_of_making_one(cls, options, match):
    with pytest.raises(ValueError, match=match) as raised:
        cls(layer_of(), **{"lr": 0.1} | options)
    assert "\n" not in str(raised.value)


def test_errors_name_the_argument(made):
    layer = layer_of()
    optimizer, name = made(layer), type(made(layer)).__name__
    layer.flat_grads[:] = 1
    with pytest.raises(ValueError, match=rf"^{name}\.lr: lr is -1, expected a number of at"):
        optimizer.lr = -1
    with pytest.raises(ValueError, match=rf"^{name}.step: clip is 0, expected a number above 0$"):
        optimizer.step(0)
    with pytest.raises(ValueError, match=rf"^{name}.step: clip_value is -1, expected"):
        optimizer.step(1.0, -1)
    with pytest.raises(TypeError, match=f"^{name}: target is None, expected a layer, a model"):
        made(None)
    with pytest.raises(ValueError, match=r"^clip_grad_norm: max_norm is 0"):
        optim.clip_grad_norm(layer, 0)
    with pytest.raises(ValueError, match=r"^clip_grad_value: value is 'x'"):
        optim.clip_grad_value(layer, "x")
    assert layer.flat.tobytes() == layer_of().flat.tobytes()
    assert (layer.flat_grads == 1).all()
    assert optimizer.steps == 0
    assert optimizer.lr == optimizer.config["lr"] > 0
    optimizer.lr = 0
    optimizer.step()
    assert layer.flat.tobytes() == layer_of().flat.tobytes()


# -------------------------------------------------------------- norms as small and large as floats


@pytest.mark.parametrize("size", [1e20, 1e-23, 1e38, 1e-42])
def test_norms_are_right_for_any_finite_gradient(size):
    layer = layer_of(np.float32)
    layer.flat_grads[:] = size
    expected = float(layer.flat_grads[0]) * math.sqrt(layer.flat.size)
    assert optim.grad_norm(layer) == pytest.approx(expected, rel=1e-12)
    assert optim.SGD(layer, 1.0).step(clip=1.0) == pytest.approx(expected, rel=1e-12)


def test_clipping_acts_on_gradients_whose_squares_no_float32_holds(made):
    layer, plain = layer_of(np.float32), layer_of(np.float32)
    g = some_grads(layer, 1)[0].astype(np.float32)
    direction = (g / np.linalg.norm(g.astype(float))).astype(np.float32)
    before = layer.flat.copy()
    layer.flat_grads[:] = g * np.float32(1e20)
    norm = np.linalg.norm(layer.flat_grads.astype(float))
    assert made(layer).step(clip=1.0) == pytest.approx(norm, rel=1e-12)
    plain.flat_grads[:] = direction
    made(plain).step()
    cases.assert_close("parameters", layer.flat - before, plain.flat - before, 1e-4)
    assert optim.clip_grad_norm(layer, 1.0) == pytest.approx(norm, rel=1e-12)
    cases.assert_close("gradients", layer.flat_grads, direction, 1e-6)


def test_clipping_by_less_than_the_smallest_float():
    layer = layer_of(np.float32)
    layer.flat_grads[:] = 1e38
    optim.clip_grad_norm(layer, 1e-3)  # a factor of 6e-43
    np.testing.assert_allclose(layer.flat_grads, 1e-3 / math.sqrt(layer.flat.size), rtol=1e-3)
    layer.flat_grads[:] = 1.0
    optim.clip_grad_value(layer, 1e300)
    assert (layer.flat_grads == 1).all()


# ----------------------------------------------------------------------- parts, freezing, groups


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
    run(optimizer, grads[:3])
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
    run(optimizer, grads[3:])
    run(second, grads[3:])
    assert values(second.target).tobytes() == values(models).tobytes()
    assert_equal_states(second.state_dict(), optimizer.state_dict())


def test_a_frozen_name_of_a_shared_part_freezes_it_under_all():
    encoder, models = shared()
    before = encoder.flat.copy()
    for freeze in ("1.layers.0", encoder, models[0].layers[0], "*layers*"):
        optimizer = optim.SGD(models, 0.1, freeze=freeze)
        run(optimizer, some_grads(models, 1))
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
