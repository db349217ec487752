"""Optimisers and clipping against plain NumPy and PyTorch."""

import copy
import json
import math
import pickle

import cases
import numpy as np
import pytest
from optimisers import OPTIMIZERS, assert_equal_states, layer_of, some_grads, take_steps, values

import fastrnn
from fastrnn import optim
from fastrnn.models import LanguageModel

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
    take_steps(optim.AdamW(layers[0], 0.02), some_grads(layers[0], 3))
    take_steps(optim.Adam(layers[1], 0.02, weight_decay=0.01), some_grads(layers[1], 3))
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
            take_steps(made(layer), some_grads(layer, 2), clip=3.0, clip_value=1.0)
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
    take_steps(optimizer, some_grads(layer, 2))
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


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_going_on_is_never_having_stopped(made, dtype, how):
    whole, part = layer_of(dtype), layer_of(dtype)
    grads = some_grads(whole, 7)
    one, first = made(whole), made(part)
    take_steps(one, grads, clip=3.0)
    take_steps(first, grads[:4], clip=3.0)
    if how == "state_dict":
        config = json.loads(json.dumps(first.config))
        state = first.state_dict()
        assert state["steps"].dtype == np.int64
        assert state["steps"] == 4
        other = layer_of(dtype)
        other.load_state_dict(part.state_dict())
        second = getattr(optim, config.pop("optimizer"))(other, **config)
        take_steps(first, grads[4:])  # must not reach into the copies
        second.load_state_dict(state)
    else:
        second = (copy.deepcopy(first) if how == "deepcopy"
                  else pickle.loads(pickle.dumps(first)))
    take_steps(second, grads[4:], clip=3.0)
    assert second.target.flat.tobytes() == whole.flat.tobytes()
    assert second.steps == 7
    assert_equal_states(second.state_dict(), one.state_dict())


def test_a_model_is_a_target(made):
    model = LanguageModel(7, 3, 5, seed=0)
    before = values(model)
    take_steps(made(model), some_grads(model, 1))
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
    take_steps(adam, some_grads(layer, 2))
    before, state = adam.state_dict(), other.state_dict()
    if changes is not None:
        state = {k: v for k, v in (state | changes).items() if v is not None}
    with pytest.raises(error, match=match) as raised:
        adam.load_state_dict(None if changes is None else state)
    assert "\n" not in str(raised.value)
    assert_equal_states(adam.state_dict(), before)


@pytest.mark.parametrize("name", ["m", "v"])
def test_numbers_that_the_dtype_cannot_hold_are_no_state(name):
    layer = fastrnn.GRU(3, 4, seed=0)
    adam = optim.Adam(layer)
    take_steps(adam, some_grads(layer, 2))
    before = adam.state_dict()
    with pytest.raises(ValueError, match=rf"{name} has 1e\+300 at \[0\], which float32 cannot h"):
        adam.load_state_dict(before | {name: np.full(layer.flat.shape, 1e300)})
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


@pytest.mark.parametrize(("make", "name", "value"), [
    (optim.SGD, "momentum", 0.5), (optim.SGD, "weight_decay", 0.5), (optim.SGD, "nesterov", True),
    (optim.RMSProp, "alpha", 5), (optim.RMSProp, "eps", "a"), (optim.RMSProp, "momentum", 0.5),
    (optim.Adam, "betas", (2, 3)), (optim.Adam, "eps", -1), (optim.Adam, "weight_decay", 0.5),
])
def test_arguments_are_fixed_but_for_lr(make, name, value):
    """A step would not have the new value, or have it unchecked, and `config` would show it."""
    optimizer = make(fastrnn.GRU(2, 3, seed=0), lr=0.1)
    before = optimizer.config
    with pytest.raises(AttributeError, match=f"{name} is fixed when the {make.__name__} is made"):
        setattr(optimizer, name, value)
    assert optimizer.config == before
    optimizer.lr = 0.2
    assert optimizer.lr == 0.2
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.config == optimizer.config
        with pytest.raises(AttributeError, match="is fixed"):
            setattr(other, name, value)
