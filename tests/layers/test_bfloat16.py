"""Evaluation with bfloat16 weights: what is rounded, by how much, and that nothing else changes."""

import gc
import tracemalloc

import cases
import numpy as np
import pytest

import fastrnn
from fastrnn.layers.packs import pair


def layer_of(cell, I, H, seed=0, **options):
    return cases.LAYERS[cell](I, H, seed=seed, **options)


def rounded(layer):
    """Return a layer of float32 whose weights are those that bfloat16 steps compute with."""
    state = layer.state_dict()
    for name, array in state.items():
        if name.startswith("weight"):
            state[name] = pair(array)[0]
    other = layer_of(layer.cell.name, layer.input_size, layer.hidden_size,
                     num_layers=layer.num_layers, bidirectional=layer.bidirectional)
    other.load_state_dict(state)
    return other.eval()


@pytest.mark.parametrize("K", [1, 2, 7, 64])
def test_every_weight_is_within_two_to_the_minus_eighth(K):
    rng = np.random.default_rng(K)
    exponents = rng.uniform(-30, 30, (500, K))
    weight = (rng.choice([-1, 1], (500, K)) * 2.0**exponents).astype(np.float32)
    got, words = pair(weight)
    assert words.shape == (500, (K + 1) // 2)
    error = np.abs(got.astype(float) - weight) / np.abs(weight)
    assert error.max() <= 2.0**-8
    # the even ones are bfloat16, rounded to nearest
    assert error[:, 0::2].max() <= 2.0**-8
    assert not (got[:, 0::2].copy().view(np.uint32) & 0xFFFF).any()


def test_words_hold_both_weights():
    weight = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    got, words = pair(weight)
    np.testing.assert_array_equal(words, got[:, 1::2])
    low = words.view(np.uint32) << 16
    np.testing.assert_array_equal(low.view(np.float32), got[:, 0::2])


def test_special_weights_stay_what_they_are():
    tiny, big = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    weight = np.array([[0, 0, -0.0, tiny], [np.inf, -np.inf, np.inf, np.inf],
                       [big, big, -big, -big], [1, 0, -1, 0]], np.float32)
    got, _ = pair(weight)
    # beside a weight that is not zero an infinity becomes NaN: neither is a model's weight
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(weight))
    assert np.abs(got[0]).max() < 2 * tiny
    np.testing.assert_array_equal(got[3, ::2], [1, -1])
    assert np.abs(got[3, 1::2]).max() < tiny  # a zero beside a weight becomes a denormal
    nan, _ = pair(np.array([[np.nan, np.nan]], np.float32))
    assert np.isnan(nan).all()


@pytest.mark.parametrize("B", [1, 2, 3, 9, 33])
@pytest.mark.parametrize(("I", "H"), [(1, 1), (5, 17), (16, 32), (33, 50)])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_results_are_those_of_the_rounded_weights_to_the_bit(isa, cell, I, H, B):
    layer = layer_of(cell, I, H, num_layers=2, bidirectional=True)
    x = np.random.default_rng(1).standard_normal((4, B, I)).astype(np.float32)
    expected, _ = rounded(layer)(x)
    got, _ = layer.eval("bfloat16")(x)
    np.testing.assert_array_equal(got, expected)
    assert not np.array_equal(got, layer.eval()(x)[0]) or H == 1


@pytest.mark.parametrize("cell", cases.CELLS)
def test_a_stream_agrees_with_the_sequence(isa, cell):
    layer = layer_of(cell, 11, 21, num_layers=2).eval("bfloat16")
    x = np.random.default_rng(1).standard_normal((6, 3, 11)).astype(np.float32)
    y, _ = layer(x)
    step = layer.stream(3)
    np.testing.assert_array_equal(np.stack([step(frame) for frame in x]), y)


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_outputs_are_near_those_of_float32(cell):
    layer = layer_of(cell, 64, 256)
    x = np.random.default_rng(1).standard_normal((100, 4, 64)).astype(np.float32)
    exact, _ = layer.eval()(x)
    got, _ = layer.eval("bfloat16")(x)
    error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
    # each weight is off by 2^-9 on average, at random: so is a sum of them
    assert 2.0**-14 < error < 2.0**-7


def test_training_and_parameters_keep_their_precision():
    layer = layer_of("gru", 8, 16)
    x = np.ones((3, 2, 8), np.float32)
    before, exact = layer.flat.tobytes(), layer(x)[0]
    assert not np.array_equal(layer.eval("bfloat16")(x)[0], exact)
    assert layer.flat.tobytes() == before
    np.testing.assert_array_equal(layer.train()(x)[0], exact)
    np.testing.assert_array_equal(layer.stream(2)(x[0]), exact[0])
    np.testing.assert_array_equal(layer.eval()(x)[0], exact)


def test_loading_keeps_the_format():
    layer = layer_of("gru", 8, 16).eval("bfloat16")
    x = np.ones((3, 2, 8), np.float32)
    other = layer_of("gru", 8, 16, seed=5)
    layer.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(layer(x)[0], other.eval("bfloat16")(x)[0])


@pytest.mark.parametrize("cell", cases.CELLS)
def test_it_takes_no_more_memory_than_float32(cell):
    layer, sizes = layer_of(cell, 256, 256), []
    for weights in ("float32", "bfloat16"):
        gc.collect()
        tracemalloc.start()
        try:
            layer.eval(weights)
            sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        layer.train()
    assert 0.4 * sizes[0] < sizes[1] < 0.6 * sizes[0]
    assert sizes[0] > layer.flat.nbytes * 0.95


def test_a_model_hands_it_on():
    model = fastrnn.LanguageModel(9, 4, 16, seed=0)
    symbols = np.arange(6).reshape(3, 2)
    exact = model.eval()(symbols)[0]
    got = model.eval("bfloat16")(symbols)[0]
    assert 0 < np.abs(got - exact).max() < 0.05
    assert not model.training


def test_what_it_cannot_do_is_one_sentence():
    with pytest.raises(ValueError, match=r"LSTM.eval: weights is 'int8', expected 'float32' or"):
        fastrnn.LSTM(3, 4).eval("int8")
    layer = fastrnn.LSTM(3, 4, dtype=np.float64)
    with pytest.raises(ValueError, match=r"expected 'float32' for float64"):
        layer.eval("bfloat16")
    assert layer.training
