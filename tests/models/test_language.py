"""The language model and its loss against plain NumPy and central differences."""

import copy
import pickle

import cases
import numpy as np
import pytest

from fastrnn import reference
from fastrnn.language_model import LanguageModel
from fastrnn.losses import softmax_cross_entropy

SIZES = {"symbols": 7, "embedding_size": 3, "hidden_size": 5}


def model_of(cell="lstm", **options):
    return LanguageModel(**{**SIZES, "cell": cell, "dtype": np.float64, "seed": 3, **options})


def some_text(T=4, B=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 7, (T, B)), rng.integers(0, 7, (T, B))


def plain_logits(model, symbols):
    """Return what a one-layer model should say, from the reference and a product."""
    p = model.parameters()
    weights = [p[f"layers.0.{name}_l0"] for name in cases.PARAMETERS]
    run = getattr(reference, model.config["cell"] + "_forward")
    y, _, _ = run(symbols, None, *weights, embedding=p["embedding.weight"])
    return y @ p["head.weight"].T + p["head.bias"]


def plain_loss(logits, targets):
    logits = logits - logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, targets[..., None], -1).mean()


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_logits_and_loss_are_the_references(cell):
    model = model_of(cell)
    symbols, targets = some_text()
    expected = plain_logits(model, symbols)
    logits, _ = model(symbols)
    cases.assert_close("logits", logits, expected, 1e-13)
    for mode in (True, False):
        loss, _ = model.train(mode).loss(symbols, targets)
        assert loss == pytest.approx(plain_loss(expected, targets), rel=1e-13)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_every_gradient_against_central_differences(cell, layers):
    model = model_of(cell, num_layers=layers)
    symbols, targets = some_text()
    _, state = model(symbols)
    model.loss(symbols, targets, state)
    _, (dstate,) = model.backward()
    (state,) = state

    def loss():
        return model.loss(symbols, targets, (state,))[0]

    for name, param in model.parameters().items():
        cases.assert_close(name, model.grads[name], cases.differences(loss, param), 1e-6)
    lstm = cell == "lstm"
    for name, h, dh in zip("hc", state if lstm else (state,), dstate if lstm else (dstate,),
                           strict=False):
        cases.assert_close(f"d{name}0", dh, cases.differences(loss, h), 1e-6)


def test_backward_after_a_call_takes_the_logits_gradient():
    model = model_of()
    symbols, targets = some_text()
    model.loss(symbols, targets)
    model.backward()
    expected = model.flat_grads.copy()
    model.zero_grad()
    logits, _ = model(symbols)
    with pytest.raises(ValueError, match="doutputs is None after a call"):
        model.backward()
    model.backward(softmax_cross_entropy(logits, targets)[1])
    np.testing.assert_array_equal(model.flat_grads, expected)
    with pytest.raises(RuntimeError, match="no call to go back through"):
        model.backward()
    model.loss(symbols, targets)
    with pytest.raises(ValueError, match="doutputs is given after loss"):
        model.backward(np.zeros((4, 3, 7)))


def test_all_parameters_lie_in_one_buffer():
    model = model_of(num_layers=2)
    names = list(model.parameters())
    assert names[0] == "layers.0.weight_ih_l0"
    assert names[-3:] == ["embedding.weight", "head.weight", "head.bias"]
    assert sum(p.size for p in model.parameters().values()) == model.flat.size
    before = model.layers[0].parameters()["weight_hh_l1"].copy()
    model.flat += 1
    np.testing.assert_array_equal(model.layers[0].parameters()["weight_hh_l1"], before + 1)


def test_eval_mode_is_read_only_through_and_through():
    model = model_of().eval()
    for array in (model.flat, model.layers[0].flat, *model.parameters().values(),
                  *model.layers[0].parameters().values()):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    model.train().flat[:] = 0
    assert model(some_text()[0])[0].any() == 0


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("mode", [True, False])
def test_a_copy_is_equal_and_apart(copier, mode):
    model = model_of(num_layers=2).train(mode)
    other = copier(model)
    symbols, targets = some_text()
    assert other.training == mode
    assert other.loss(symbols, targets)[0] == model.loss(symbols, targets)[0]
    assert np.shares_memory(other.flat, other.layers[0].flat)
    assert not np.shares_memory(other.flat, model.flat)


def test_the_same_seed_is_the_same_model():
    assert np.array_equal(model_of().flat, model_of().flat)
    assert not np.array_equal(model_of().flat, model_of(seed=4).flat)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_sample_follows_the_models_own_probabilities(cell, layers):
    model = model_of(cell, num_layers=layers)
    model.flat *= 3  # far from uniform
    drawn = model.sample([1, 2], 6, temperature=0)
    text = [1, 2, *drawn.tolist()]
    for i, symbol in enumerate(drawn, 2):
        logits, _ = model.eval()(np.array(text[:i])[:, None])
        assert logits[-1, 0].argmax() == symbol
    same = [model.sample([3], 20, seed=5).tolist() for _ in range(2)]
    assert same[0] == same[1] != model.sample([3], 20, seed=6).tolist()


def test_sampling_frequencies_are_the_softmax():
    model = model_of()
    logits, _ = model.eval()(np.array([[4]]))
    p = np.exp(logits[0, 0] / 0.5)
    p /= p.sum()
    draws = np.array([model.sample([4], 1, temperature=0.5, seed=s)[0] for s in range(4000)])
    counts = np.bincount(draws, minlength=7)
    # chi-squared with 6 degrees of freedom exceeds 22.5 once in a thousand; the seeds are fixed
    assert ((counts - 4000 * p) ** 2 / (4000 * p)).sum() < 22.5


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: LanguageModel(cell="elman"), ValueError, "cell is 'elman', expected one of"),
        (lambda m: LanguageModel(symbols=0), ValueError, "symbols is 0, expected a whole number"),
        (lambda m: LanguageModel(hidden_size=-1), ValueError, "hidden_size is -1"),
        (lambda m: m([[7]]), IndexError, "symbols has numbers from 7 to 7, expected 0 to 6"),
        (lambda m: m([[0.5]]), TypeError, "symbols is float64, expected whole numbers"),
        (lambda m: m([1]), ValueError, r"symbols has shape \(1,\), expected \(T, B\)"),
        (lambda m: m.loss([[1]], [[1, 2]]), ValueError, r"targets has shape \(1, 2\)"),
        (lambda m: m.loss([[1]], [[9]]), IndexError, "targets has numbers from 9 to 9"),
        (lambda m: m.backward(), RuntimeError, "no call to go back through"),
        (lambda m: m.sample([], 3), ValueError, "prompt is empty"),
        (lambda m: m.sample([1], 0), ValueError, "length is 0"),
        (lambda m: m.sample([1], 1, -1), ValueError, "temperature is -1"),
        (lambda m: m.sample([1], 1, seed="x"), ValueError, "seed is .x."),
        (lambda m: m.load_state_dict({}), ValueError, "missing .*embedding.weight"),
    ],
)
def test_errors_name_the_argument(call, error, match):
    model = model_of()
    before = model.flat.copy()
    with pytest.raises(error, match=match) as raised:
        call(model)
    assert "\n" not in str(raised.value)
    np.testing.assert_array_equal(model.flat, before)


# ---------------------------------------------------------------------------------------- loss


def test_the_loss_of_any_leading_shape_and_its_gradient():
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((4, 3, 11)), rng.integers(0, 11, (4, 3))
    loss, grad = softmax_cross_entropy(logits, targets)
    assert loss == pytest.approx(plain_loss(logits, targets), rel=1e-14)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    p[np.arange(4)[:, None], np.arange(3), targets] -= 1
    cases.assert_close("dlogits", grad, p / 12, 1e-13)
    assert softmax_cross_entropy(logits, targets, need_grad=False) == (loss, None)
    out = logits.copy()
    assert softmax_cross_entropy(out, targets, out=out)[1] is out
    np.testing.assert_array_equal(out, grad)
    assert softmax_cross_entropy(np.empty((0, 3)), np.empty(0, int))[0] == 0


@pytest.mark.parametrize(
    ("logits", "targets", "error", "match"),
    [
        (np.zeros((2, 3), int), [0, 1], TypeError, "logits: dtype is"),
        (np.zeros((2, 0)), [0, 1], ValueError, r"logits has shape \(2, 0\)"),
        (np.zeros((2, 3)), [0], ValueError, r"targets has shape \(1,\), expected \(2,\)"),
        (np.zeros((2, 3)), [0, 3], IndexError, "expected 0 to 2"),
        (np.zeros((2, 3)), [0.0, 1.0], TypeError, "targets is float64"),
    ],
)
def test_errors_of_the_loss(logits, targets, error, match):
    with pytest.raises(error, match=match):
        softmax_cross_entropy(logits, targets)
