"""Gradient flow over sequences of different lengths: what each sequence alone has, no padding."""

import cases
import numpy as np
import pytest
from flows import layer_of, scaled

from fastrnn import GRU, LSTM, RNN, EncoderDecoder, SequenceModel, Stack
from fastrnn.gradflow import gradient_flow, jacobians, model_flow, verdict

LENGTHS = (5, 0, 7, 1, 3)
START = [np.arange(n) % 3 == 2 for n in LENGTHS]
TOL = cases.tolerance(np.float64, 64, 8, backward=True, bidirectional=True)
per_layer = pytest.mark.parametrize("both", [False, True])
F64 = {"dtype": np.float64}


def data_of(layer, seed=0):
    rng = np.random.default_rng(seed)
    return ([rng.standard_normal((n, layer.input_size)) for n in LENGTHS],
            [rng.standard_normal((n, layer.width)) for n in LENGTHS])


def padded(arrays, fill):
    made = np.full((max(map(len, arrays)) + 2, len(arrays), *arrays[0].shape[1:]), fill)
    for b, a in enumerate(arrays):
        made[: len(a), b] = a
    return made


@pytest.mark.parametrize("cell", cases.CELLS)
@per_layer
def test_norms_are_those_of_each_sequence_alone_and_0_behind_it(cell, both):
    layer = layer_of(cell, num_layers=2, bidirectional=both)
    x, dy = data_of(layer)
    flow = gradient_flow(layer, x, dy)
    assert flow.norms.shape == (2, 1 + both, 7, 5)
    np.testing.assert_array_equal(flow.lengths, LENGTHS)
    names = ["norms"] + ["c_norms"] * (cell == "lstm")
    for b, n in enumerate(LENGTHS):
        for name in names:
            assert not getattr(flow, name)[..., n:, b].any()
            if n:
                alone = gradient_flow(layer, x[b][:, None], dy[b][:, None])
                cases.assert_close(name, getattr(flow, name)[..., :n, b],
                                   getattr(alone, name)[..., 0], TOL)
    assert flow.not_finite == ((None,) * (1 + both),) * 2


@pytest.mark.parametrize("cell", cases.CELLS)
@per_layer
def test_a_padded_array_with_lengths_gives_what_the_list_gives(cell, both):
    for first in (False, True):
        layer = layer_of(cell, bidirectional=both, batch_first=first)
        x, dy = data_of(layer)
        expected = gradient_flow(layer, x, dy, reset=START)
        arrays = [padded(a, np.nan) for a in (x, dy)] + [padded(START, fill=True)]
        arrays = [a.swapaxes(0, 1) if first else a for a in arrays]
        found = gradient_flow(layer, *arrays[:2], lengths=LENGTHS, reset=arrays[2])
        for name in ("norms", "units", "terms_ih", "terms_hh", "shares_ih", "shares_hh",
                     "saturation"):
            a, b = getattr(found, name), getattr(expected, name)
            cases.assert_close(name, a[:, :, :7], b, TOL)
            assert not a[:, :, 7:].any()
        assert found.not_finite == expected.not_finite


@pytest.mark.parametrize("cell", cases.CELLS)
@per_layer
def test_shares_and_saturation_count_real_steps_alone(cell, both):
    layer = layer_of(cell, bidirectional=both, seed=3)
    layer.flat[...] *= 4
    x, dy = data_of(layer)
    flow = gradient_flow(layer, x, dy)
    for side in ("shares_ih", "shares_hh"):
        np.testing.assert_allclose(getattr(flow, side).sum(2), 1, rtol=1e-9)
    rows = np.zeros((7, 1 + both, layer.cell.G, 2))
    for b, n in enumerate(LENGTHS):
        if n:
            alone = gradient_flow(layer, x[b][:, None], dy[b][:, None], parts=("saturation",))
            rows[:n] += alone.saturation[0].swapaxes(0, 1)
    alive = (np.arange(7)[:, None] < LENGTHS).sum(1)
    np.testing.assert_allclose(flow.saturation[0].swapaxes(0, 1),
                               rows / alive[:, None, None, None], atol=1e-12)
    assert (flow.saturation > 0).any()


def test_units_that_are_dead_in_all_real_steps():
    layer = RNN(3, 4, nonlinearity="relu", seed=1, **F64)
    layer.bias_ih_l0 = np.array([-99.0, -99.0, 99.0, 99.0])
    layer.weight_hh_l0 = np.eye(4)
    x, dy = data_of(layer)
    assert gradient_flow(layer, x, dy).dead[0, 0] == 0.5


def test_nothing_flows_back_over_the_border_of_an_episode():
    layer = GRU(3, 4, seed=1, **F64)
    x = [np.random.default_rng(0).standard_normal((6, 3))]
    dy = [np.zeros((6, 4))]
    dy[0][-1] = 1
    flow = gradient_flow(layer, x, dy, reset=[np.array([0, 0, 0, 1, 0, 0], bool)])
    assert not flow.norms[0, 0, :3].any()
    assert flow.norms[0, 0, 3:].all()
    alone = gradient_flow(layer, x[0][3:, None], dy[0][3:, None])
    cases.assert_close("norms", flow.norms[:, :, 3:], alone.norms, TOL)
    initial = np.ones((1, 1, 4))
    begun = gradient_flow(layer, x[0][:, None], dy[0][:, None], state=initial,
                          reset=np.arange(6)[:, None] == 3, reset_to="initial")
    expected = gradient_flow(layer, x[0][3:, None], dy[0][3:, None], state=initial)
    cases.assert_close("norms", begun.norms[:, :, 3:], expected.norms, TOL)


# ------------------------------------------------------------------------------- models


def model_of(**options):
    layers = [LSTM(3, 5, 2, seed=1, **F64), GRU(5, 4, bidirectional=True, seed=2, **F64)]
    return SequenceModel(layers, 2, loss="mse", seed=1, **options)


def goals(seed=1):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, 2)) for n in LENGTHS]


def test_a_models_flow_is_that_of_each_sequence_alone():
    model, y = model_of(), goals()
    x, _ = data_of(model.layers[0])
    flows = model_flow(model, lambda m: m.loss(x, y))
    again = model_flow(model, model.loss(x, y))
    for flow, other in zip(flows, again, strict=True):
        np.testing.assert_array_equal(flow.norms, other.norms)
        np.testing.assert_array_equal(flow.lengths, LENGTHS)
    for b, n in enumerate(LENGTHS):
        if n:
            alone = model_flow(model, lambda m, b=b: m.loss(x[b][:, None], y[b][:, None]))
        for number, flow in enumerate(flows):
            assert not flow.norms[..., n:, b].any()
            if n:
                cases.assert_close("norms", flow.norms[..., :n, b],
                                   alone[number].norms[..., 0] * n / sum(LENGTHS), TOL)


@pytest.mark.parametrize("every", [None, 3])
def test_padded_arrays_checkpointing_and_episodes(every):
    model, y = model_of(), goals()
    if every:
        model = SequenceModel([LSTM(3, 5, 2, seed=1, **F64)], 2, loss="mse", seed=1)
    x, _ = data_of(model.layers[0])
    expected = model_flow(model, lambda m: m.loss(x, y, episode_start=START))
    found = model_flow(model, lambda m: m.loss(
        padded(x, np.nan), padded(y, np.nan), lengths=LENGTHS, episode_start=padded(START, True),
        recompute_every=every))
    for a, b in zip(found, expected, strict=True):
        cases.assert_close("norms", a.norms[:, :, :7], b.norms, TOL)
        cases.assert_close("saturation", a.saturation[:, :, :7], b.saturation, TOL)
        np.testing.assert_array_equal(a.lengths, LENGTHS)


def test_encoder_and_decoder_have_lengths_of_their_own():
    model = EncoderDecoder(Stack([GRU(3, 4, seed=1, **F64)]),
                           SequenceModel([GRU(2, 4, seed=2, **F64)], 2, loss="mse", seed=3))
    source, _ = data_of(model.encoder.layers[0])
    y = goals()[::-1]
    encoder, decoder = model_flow(model, lambda m: m.loss(source, y, y))
    np.testing.assert_array_equal(encoder.lengths, LENGTHS)
    np.testing.assert_array_equal(decoder.lengths, LENGTHS[::-1])
    for b, n in enumerate(LENGTHS):
        assert not encoder.norms[..., n:, b].any()
        assert (encoder.norms[..., :n, b] > 0).all() == bool(n and LENGTHS[::-1][b]) or not n


# ------------------------------------------------------------------------------- verdicts


def test_the_verdict_compares_rows_at_equal_distances_from_their_ends():
    layer = scaled(0.7)
    layer.weight_ih_l0[...] = 0  # the slope stays that of the one activation, at 0
    layer.bias_ih_l0[...] = layer.bias_hh_l0[...] = 0
    rng = np.random.default_rng(0)
    lengths = (40, 33, 21, 40, 27)
    x = [rng.standard_normal((n, 3)) for n in lengths]
    text = verdict(gradient_flow(layer, x))
    assert "a factor of 0.7 a step" in text, text
    alone = verdict(gradient_flow(layer, x[0][:, None]))
    assert alone.split(" over")[0].split(",")[0] == text.split(" over")[0].split(",")[0]


@per_layer
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_found_at_its_step(both, bad):
    layer = LSTM(3, 5, bidirectional=both, seed=1, **F64)
    x, dy = data_of(layer)
    word = "NaN" if np.isnan(bad) else "inf"
    x[4][2, 1] = bad  # the last step of a short row
    if np.isnan(bad):
        flow = gradient_flow(layer, x, dy)
        assert f"the input, which is {word} at step 2" in verdict(flow)
        assert {found.source for found in flow.not_finite[0]} == {"input"}
        assert flow.not_finite[0][0].state_step == 2
    x, dy = data_of(layer)
    dy[4][2, [1, -1]] = bad
    for found in gradient_flow(layer, x, dy).not_finite[0]:
        assert (found.source, found.value, found.step) == ("entering gradient", word, 2)
    arrays = padded(x, np.nan), padded(data_of(layer)[1], np.nan)
    flow = gradient_flow(layer, *arrays, lengths=LENGTHS)
    assert flow.not_finite == ((None,) * (1 + both),)
    state = np.zeros((1 + both, 5, 5))
    state[-1, 4, 0] = np.nan  # of a row that ends at step 2
    flow = gradient_flow(layer, *data_of(layer), state=(state, None))
    assert flow.not_finite[0][-1].source == "initial state"


def test_a_state_that_grows_beyond_all_numbers_at_the_end_of_a_short_row():
    layer = RNN(1, 1, nonlinearity="relu", **F64)
    layer.load_state_dict({"weight_ih_l0": [[1.0]], "weight_hh_l0": [[1e200]],
                           "bias_ih_l0": [0.0], "bias_hh_l0": [0.0]})
    x = [np.array([[0.0]] * 6), np.array([[1.0]] * 3)]
    found = gradient_flow(layer, x).not_finite[0][0]
    assert (found.source, found.value, found.step) == ("state", "inf", 2)


# ------------------------------------------------------------------------------- Jacobians


@pytest.mark.parametrize("cell", [LSTM, GRU])
@per_layer
def test_jacobians_of_one_sequence_of_a_list(cell, both):
    layer = cell(3, 4, 2, bidirectional=both, seed=1, **F64)
    x, _ = data_of(layer)
    rng = np.random.default_rng(2)
    state = tuple(rng.standard_normal((2 * (1 + both), 5, 4)) for _ in layer.cell.states)
    for options in ({}, {"reverse": True} if both else {"t": 4}, {"number": 1, "distance": 2}):
        found = jacobians(layer, x, state if cell is LSTM else state[0], sequence=2, **options)
        own = tuple(s[:, 2:3] for s in state)
        expected = jacobians(layer, x[2][:, None], own if cell is LSTM else own[0], **options)
        np.testing.assert_array_equal(found.matrices, expected.matrices)
    np.testing.assert_array_equal(jacobians(layer, x).matrices,
                                  jacobians(layer, x[0][:, None]).matrices)


LAYER = LSTM(3, 4, seed=1, **F64)
X, DY = data_of(LAYER)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gradient_flow(LAYER, []), ValueError, "gradient_flow: x is an empty list"),
        (lambda: gradient_flow(LAYER, X[1:2]), ValueError, "expected at least one step and"),
        (lambda: gradient_flow(LAYER, [X[0], X[2][:, :2]]), ValueError,
         r"x\[1\] has shape \(7, 2\), expected \(T, 3\)"),
        (lambda: gradient_flow(LAYER, [X[0], X[2].astype(np.float32)]), TypeError,
         r"x\[1\] is float32, expected float64"),
        (lambda: gradient_flow(LAYER, X, DY[1:]), ValueError, "dy has 4 sequences, expected 5"),
        (lambda: gradient_flow(LAYER, X, DY[::-1]), ValueError, r"dy\[0\] has shape \(3, 4\)"),
        (lambda: gradient_flow(LAYER, X, lengths=LENGTHS), ValueError,
         "lengths is given with a list, expected None"),
        (lambda: gradient_flow(LAYER, X, reset=np.zeros((7, 5), bool)), TypeError,
         "reset is of type ndarray, expected a list like x"),
        (lambda: gradient_flow(LAYER, X, reset=[np.zeros(5)] * 5), TypeError,
         r"reset\[0\] is float64, expected booleans"),
        (lambda: jacobians(LAYER, []), ValueError, "jacobians: x is an empty list"),
        (lambda: jacobians(LAYER, X, sequence=5), ValueError, "sequence is 5, expected a whole"),
        (lambda: jacobians(LAYER, X, sequence=1), ValueError, "x has 0 steps of 1 sequences"),
        (lambda: jacobians(LAYER, [X[0][:, :2]]), ValueError, r"x\[0\] has shape \(5, 2\)"),
        (lambda: model_flow(model_of(), lambda m: m.loss(X[1:2], [np.zeros((0, 2))])), ValueError,
         "the loss is over 0 steps of 1 rows"),
    ],
)
def test_what_does_not_fit_is_one_sentence(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
