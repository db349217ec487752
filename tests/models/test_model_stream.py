"""A model step by step: the same bits as a call, with a head, from and to any state."""

import copy
import pickle

import cases
import numpy as np
import pytest
from kinds import F64, KINDS, B, N, T, V, arrays, data_of, model_of
from stacks import per_cell, per_dtype

from fastrnn import GRU, LSTM, RNN, LanguageModel, SequenceModel

ONE_WAY = [kind for kind, options in KINDS.items() if not options.get("both")]


def same(a, b):
    for one, two in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(one, two)


def every_step(model, x, state=None, **options):
    """Return the outputs of every step of a call; a readout "last" has but one."""
    if model.readout == "every":
        return model(x, state, **options)
    outputs = []
    for row in x:
        out, state = model(row[None], state, **options)
        outputs.append(out)
        options = {}
    return np.stack(outputs), state


@pytest.mark.parametrize("mode", ["training", "evaluation"])
@pytest.mark.parametrize("kind", ONE_WAY)
def test_a_stream_is_the_model_step_by_step(kind, mode):
    model = model_of(kind)
    x, _, _, context = data_of(model)
    outputs, after = every_step(model, x, context=context)
    start, _ = model.initial_state(None, context, B)
    getattr(model, "train" if mode == "training" else "eval")()
    step = model.stream(B)
    step.state = start
    out = np.empty((B, N))
    for t in range(T):
        row = x[t].astype(np.int32) if model.vocab_size else x[t]
        if t % 2:
            np.testing.assert_array_equal(step(row), outputs[t])
        else:
            assert step(row, out=out) is out
            np.testing.assert_array_equal(out, outputs[t])
    same(step.state, after)
    step.reset()
    assert not any(a.any() for a in arrays(step.state))
    assert [a.shape for a in arrays(step.state)] == [a.shape for a in arrays(after)]


@pytest.mark.parametrize("B", [1, 2, 5, 16, 33])
@pytest.mark.parametrize("N", [1, 7, 64, 300])
@per_dtype
def test_any_batch_and_any_head(isa, dtype, N, B):
    layers = [LSTM(5, 17, 2, dtype=dtype, seed=0), RNN(17, 64, dtype=dtype, seed=1),
              GRU(64, 9, dtype=dtype, seed=2)]
    model = SequenceModel(layers, N, loss="mse", seed=3).eval()
    x = np.random.default_rng(0).standard_normal((4, B, 5)).astype(dtype)
    outputs, after = model(x)
    step = model.stream(B)
    for row, expected in zip(x, outputs, strict=True):
        got = step(row)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, expected)
    same(step.state, after)


@pytest.mark.parametrize("mode", ["float32", "bfloat16"])
@per_cell
def test_symbols_of_every_kind(cell, mode):
    for symbols, one_hot in ((11, False), (11, True), (5000, False)):
        layer = cases.LAYERS[cell](symbols if one_hot else 6, 37, 2, seed=0)
        model = SequenceModel(layer, 3, vocab_size=symbols, one_hot=one_hot, seed=1).eval(mode)
        x = np.random.default_rng(0).integers(0, symbols, (6, 4))
        outputs, after = model(x)
        step = model.stream(4)
        for row, expected in zip(x, outputs, strict=True):
            np.testing.assert_array_equal(step(row), expected)
        same(step.state, after)
        match = rf"SequenceModel\.stream: x has numbers .* 0 to {symbols - 1}"
        with pytest.raises(IndexError, match=match):
            step(np.array([0, 1, 2, symbols]))


@pytest.mark.parametrize("kind", ONE_WAY)
def test_a_block_is_the_model_and_rows_are_their_own(kind):
    model = model_of(kind).eval()
    x, _, _, context = data_of(model)
    outputs, after = every_step(model, x, context=context)
    start, _ = model.initial_state(None, context, B)
    step = model.stream(B)
    step.state = start
    np.testing.assert_array_equal(step.block(x), outputs)
    same(step.state, after)
    step.state = start
    before = step.rows[[1]]
    np.testing.assert_array_equal(step.block(x[:, [2, 0]], rows=[2, 0]), outputs[:, [2, 0]])
    same(step.rows[[1]], before)
    out = np.empty((1, N))
    for row, expected in zip(x, outputs, strict=True):
        assert step(row[[1]], rows=[1], out=out) is out
        np.testing.assert_array_equal(out, expected[[1]])
    same(step.state, after)
    step.rows[[0, 1]] = step.rows[[2, 2]]
    same(step.rows[:], [a[:, [2, 2, 2]] for a in arrays(after)])
    step.reset([1])
    assert not any(a.any() for a in arrays(step.rows[[1]]))
    same(step.rows[[0, 2]], [a[:, [2, 2]] for a in arrays(after)])


def test_a_head_of_fifty_thousand_outputs():
    model = LanguageModel(50_000, 8, 33, seed=0).eval()
    x = np.random.default_rng(0).integers(0, 50_000, (3, 2))
    outputs, _ = model(x)
    step = model.stream(2)
    y, _ = model.layers[0](model.embedding.weight[x])
    for t in range(3):
        got = step(x[t])
        np.testing.assert_array_equal(got, outputs[t])
        cases.assert_close("outputs", got, y[t].astype(np.float64) @ model.head.weight.T
                           + model.head.bias, 1e-5, dtype=np.float32)


def test_a_state_is_set_read_and_set_back():
    model = model_of("tags of symbols").eval()
    x, *_ = data_of(model)
    outputs, _ = model(x)
    half, state = model(x[:3])
    step = model.stream(B)
    step.state = state
    for t in range(3, T):
        np.testing.assert_array_equal(step(x[t]), outputs[t])
    step.state = None
    np.testing.assert_array_equal(step(x[0]), outputs[0])
    (h, _), *_ = kept = step.state
    h[...] = 9  # a copy
    assert not any((a == 9).any() for a in arrays(step.state))
    step.state = (None, None, kept[2])
    assert not any(a.any() for a in arrays(step.state[:2]))
    step.state = state
    for bad, match in (((None, None), "state"), (3, "state"), ((state[0][0], *state[1:]), "state"),
                       ((state[0], state[1][:, 1:], state[2]), "has shape")):
        with pytest.raises((TypeError, ValueError), match=match) as raised:
            step.state = bad
        assert str(raised.value).startswith("SequenceModel.stream: ")
        same(step.state, state)
    for copier in (copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))):
        other = copier(step)
        np.testing.assert_array_equal(other(x[3]), outputs[3])
        same(step.state, state)  # the copy has a state of its own
    np.testing.assert_array_equal(half[-1], outputs[2])


def test_a_stream_keeps_the_weights_of_its_moment_head_and_all():
    for vocab_size in (None, V, 5000):
        model = SequenceModel([LSTM(3, 4, seed=0, **F64), GRU(4, 5, seed=1, **F64)], 2, loss="mse",
                              vocab_size=vocab_size, seed=2)
        x = (np.random.default_rng(0).standard_normal((T, B, 3)) if vocab_size is None
             else np.random.default_rng(0).integers(0, V, (T, B)))
        expected, _ = model(x)
        step = model.stream(B)
        model.load_state_dict({name: a * 0 for name, a in model.state_dict().items()})
        for row, output in zip(x, expected, strict=True):
            np.testing.assert_array_equal(step(row), output)


def test_errors_of_a_stream():
    model = model_of("numbers")
    for size in (0, -1, 2.5, True, "x", None):
        with pytest.raises(ValueError, match=r"SequenceModel\.stream: batch_size is"):
            model.stream(size)
    with pytest.raises(ValueError, match=r"SequenceModel\.stream: the layer is bidirectional"):
        model_of("both directions").stream()
    step = model.stream(B)
    for x, error, match in ((np.zeros((B, 3)), ValueError, r"x has shape \(3, 3\), exp.* \(3, 2"),
                            (np.zeros((B, 2), "f4"), TypeError, "x is float32, expected float64"),
                            ("text", TypeError, "x is of type str")):
        with pytest.raises(error, match=match) as raised:
            step(x)
        assert str(raised.value).startswith("SequenceModel.stream: ")
    for out in (np.zeros((B, N), "f4"), np.zeros((B, N + 1)), np.zeros((B, 2 * N))[:, ::2],
                cases.read_only(np.zeros((B, N)))):
        with pytest.raises((TypeError, ValueError), match="out "):
            step(np.zeros((B, 2)), out=out)
    expected = model(np.zeros((1, B, 2)))[0][0]
    np.testing.assert_array_equal(step(np.zeros((B, 2))), expected)  # nothing had moved


def test_a_stream_begins_with_a_context():
    model = SequenceModel(LSTM(2, 3, seed=0), 2, loss="mse", context_size=4, seed=0).eval()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 3, 2), np.float32)
    context = rng.standard_normal((3, 4), np.float32)
    outputs, after = model(x, context=context)
    step = model.stream(3, context=context)
    for t in range(5):
        np.testing.assert_array_equal(step(x[t]), outputs[t])
    same(step.state, after)
    with pytest.raises(ValueError, match=r"context has shape \(3, 4\), expected \(2, 4\)"):
        model.stream(2, context=context)
    with pytest.raises(ValueError, match="context is given, expected none"):
        SequenceModel(LSTM(2, 3), 2, loss="mse").stream(3, context=context)
