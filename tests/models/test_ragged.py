"""Sequences of different lengths in models: as each alone, as padded ones, in every kind."""

import cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import F64, KINDS, N, arrays, grads_of, language_of, layers_of, model_of, pair_of
from lists import LENGTHS, assert_same, grid, lists_of, pair_lists

from fastrnn import GRU, LSTM, RNN, EncoderDecoder, SequenceModel, Stack, set_num_threads

TOL = cases.tolerance(np.float64, 64, 16, backward=True, bidirectional=True)


def loss_and_grads(model, *args, dstate=None, **options):
    """Return the pass of a loss, its gradients, and what backward returns."""
    model.zero_grad()
    p = model.loss(*args, grad=True, **options)
    back = p.backward(dstate, need_dx=True)
    return p, grads_of(model), back


def assert_same_grads(got, expected):
    for name, grad in expected.items():
        assert_same(got[name], grad, name)


def assert_close_grads(got, expected, tol=TOL):
    for name, grad in expected.items():
        cases.assert_close(name, got[name], grad, tol)


def ones_like(state):
    return tuple(tuple(map(np.ones_like, of)) if isinstance(of, tuple) else np.ones_like(of)
                 for of in state)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_states_are_those_of_each_sequence_alone(kind):
    model = model_of(kind)
    data = lists_of(model)
    outputs, state = model(data.x, **data.own)
    assert isinstance(outputs, list) == data.every
    for i in range(len(LENGTHS)):
        x, _, _, _, context = data.alone(i)
        alone, final = model(x, **context)
        assert_same(outputs[i], alone[:, 0] if data.every else alone[0])
        for got, expected in zip(arrays(state), arrays(final), strict=True):
            assert_same(got[:, i], expected[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_the_sequences_alone(kind):
    model = model_of(kind)
    data = lists_of(model)
    p, grads, (dx, dstate0) = loss_and_grads(model, data.x, data.targets, weights=data.weights,
                                             **data.own)
    total = {name: np.zeros_like(grad) for name, grad in grads.items()}
    value = weight = 0.0
    for i in range(len(LENGTHS)):
        x, targets, weights, _, context = data.alone(i)
        one, own, (own_dx, own_dstate0) = loss_and_grads(model, x, targets, weights=weights,
                                                         **context)
        share = one.weight / p.weight
        value, weight = value + share * one.value, weight + one.weight
        for name, grad in own.items():
            total[name] += share * grad
        if dx is not None:
            cases.assert_close("dx", dx[i], share * own_dx[:, 0], TOL)
        if data.context is not None:
            cases.assert_close("dcontext", dstate0[i], share * own_dstate0[0], TOL)
    np.testing.assert_allclose([p.value, p.weight], [value, weight], rtol=1e-12)
    assert_close_grads(grads, total)


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_array_with_lengths_gives_the_bits_of_the_list(kind, start):
    model = model_of(kind)
    data = lists_of(model)
    x, targets, weights, flags = data.padded()
    of_list = {"episode_start": data.start} if start else {}
    of_array = {"lengths": data.lengths} | ({"episode_start": flags} if start else {})
    outputs, state = model(data.x, **data.own, **of_list)
    padded, padded_state = model(x, **data.own, **of_array)
    assert_same(padded, grid(outputs, 2, 0) if data.every else outputs)
    for got, expected in zip(arrays(padded_state), arrays(state), strict=True):
        assert_same(got, expected)
    dstate = ones_like(state)
    p, grads, (dx, dstate0) = loss_and_grads(model, data.x, data.targets, dstate=dstate,
                                             weights=data.weights, **data.own, **of_list)
    q, padded_grads, (padded_dx, padded_dstate0) = loss_and_grads(
        model, x, targets, dstate=dstate, weights=weights, **data.own, **of_array)
    assert (p.value, p.weight) == (q.value, q.weight)
    assert_same_grads(padded_grads, grads)
    if dx is not None:
        assert_same(padded_dx, grid(dx, 2, 0))
    for got, expected in zip(arrays(padded_dstate0), arrays(dstate0), strict=True):
        assert_same(got, expected)


ONWARD = [kind for kind in KINDS if "both" not in KINDS[kind]]
TAGGERS = [kind for kind in KINDS if "readout" not in KINDS[kind]]


@pytest.mark.parametrize("kind", [kind for kind in ONWARD if kind in TAGGERS])
def test_padding_of_weight_0_gives_the_same(kind):
    model = model_of(kind)
    data = lists_of(model)
    p, grads, _ = loss_and_grads(model, data.x, data.targets, weights=data.weights, **data.own)
    q, padded, _ = loss_and_grads(model, *(grid(a, 2, 0) for a in (data.x, data.targets)),
                                  weights=grid(data.weights, 2, 0), **data.own)
    np.testing.assert_allclose([p.value, p.weight], [q.value, q.weight], rtol=1e-12)
    assert_close_grads(grads, padded)


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_equal_lengths_is_a_batch(kind):
    model = model_of(kind)
    data = lists_of(model, (5, 5, 5))
    x, targets, weights, flags = data.padded(0)
    outputs, _ = model(data.x, **data.own)
    assert_same(grid(outputs) if data.every else outputs, model(x, **data.own)[0])
    p, grads, _ = loss_and_grads(model, data.x, data.targets, weights=data.weights, **data.own)
    q, batch, _ = loss_and_grads(model, x, targets, weights=weights, lengths=[5] * 3,
                                 episode_start=np.zeros_like(flags), **data.own)
    np.testing.assert_allclose([p.value, p.weight], [q.value, q.weight], rtol=1e-12)
    assert_close_grads(grads, batch)
    _, plain, _ = loss_and_grads(model, x, targets, weights=weights, **data.own)
    assert_same_grads(batch, plain)  # and that is the very same computation


def test_the_mean_is_over_real_steps():
    model = model_of("tags of symbols")
    data = lists_of(model)
    x, targets, _, _ = data.padded()
    p = model.loss(data.x, data.targets)
    assert p.weight == sum(LENGTHS)
    assert model.loss(x, targets, lengths=data.lengths).value == p.value
    each = [2.0, 1.0, 0.0, 3.0, 0.5, 1.0]  # one for each sequence
    spread = [np.full(n, w) for n, w in zip(LENGTHS, each, strict=True)]
    mask = [np.full(n, w > 0) for n, w in zip(LENGTHS, each, strict=True)]
    for given_each in (each, tuple(each), np.array(each)):
        q = model.loss(data.x, data.targets, weights=given_each)
        assert q.value == model.loss(data.x, data.targets, weights=spread).value
        assert q.weight == np.dot(each, LENGTHS)
    assert model.loss(data.x, data.targets, weights=mask).weight == sum(LENGTHS) - LENGTHS[2]
    assert model.loss(x, targets, lengths=LENGTHS, weights=grid(mask, 2)).weight == sum(
        LENGTHS) - LENGTHS[2]
    data.targets[0][1] = -100
    assert model.loss(data.x, data.targets).weight == sum(LENGTHS) - 1


@pytest.mark.parametrize("kind", ["numbers", "tags of symbols", "a number"])
def test_what_forward_gives_goes_back_as_a_loss_does(kind):
    model = model_of(kind)
    data = lists_of(model)
    x, _, _, _ = data.padded()
    rng = np.random.default_rng(1)
    outputs, _, p = model.forward(data.x)
    doutputs = ([rng.standard_normal(o.shape) for o in outputs] if data.every
                else rng.standard_normal(outputs.shape))
    model.zero_grad()
    dx, _ = p.backward(doutputs, need_dx=True)
    grads = grads_of(model)
    _, _, p = model.forward(x, lengths=LENGTHS)
    model.zero_grad()
    padded_dx, _ = p.backward(grid(doutputs, 2) if data.every else doutputs, need_dx=True)
    assert_same_grads(grads_of(model), grads)
    if dx is not None:
        assert_same(padded_dx, grid(dx, 2, 0))
    # each sequence alone
    model.zero_grad()
    for i in range(len(LENGTHS)):
        _, _, p = model.forward(data.alone(i)[0])
        own_dx, _ = p.backward(doutputs[i][:, None] if data.every else doutputs[i : i + 1],
                               need_dx=True)
        if dx is not None:
            cases.assert_close("dx", dx[i], own_dx[:, 0], TOL)
    assert_close_grads(grads, grads_of(model))


@pytest.mark.parametrize("symbols", [False, True])
def test_a_stack_takes_and_gives_lists(symbols):
    stack = Stack(layers_of(3, both=True), vocab_size=6 if symbols else None, seed=1)
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 6, n) if symbols else rng.standard_normal((n, 3)) for n in LENGTHS]
    y, state, p = stack.forward(x)
    assert [a.shape for a in y] == [(n, 10) for n in LENGTHS]
    dy = [rng.standard_normal(a.shape) for a in y]
    stack.zero_grad()
    dx, dstate0 = p.backward(dy, ones_like(state))
    grads = grads_of(stack)
    padded, _, p = stack.forward(grid(x, 1), lengths=LENGTHS)
    assert_same(padded, grid(y, 1, 0))
    assert_same(stack(grid(x, 1), lengths=LENGTHS)[0], padded)
    stack.zero_grad()
    padded_dx, padded_dstate0 = p.backward(grid(dy, 1), ones_like(state))
    assert_same_grads(grads_of(stack), grads)
    for got, expected in zip(arrays(padded_dstate0), arrays(dstate0), strict=True):
        assert_same(got, expected)
    if not symbols:
        assert_same(padded_dx, grid(dx, 1, 0))
    for i, a in enumerate(x):
        assert_same(stack(a[:, None])[0][:, 0], y[i])


def test_dropout_draws_the_same_masks_for_a_list_and_for_its_padded_array():
    def model():
        return SequenceModel([LSTM(3, 4, 3, dropout=0.5, seed=1, **F64)], N, seed=1)

    data = lists_of(model())
    x, targets, _, _ = data.padded()
    first, second, third = model(), model(), model()
    p, grads, _ = loss_and_grads(first, data.x, data.targets)
    q, padded, _ = loss_and_grads(second, x, targets, lengths=LENGTHS)
    assert p.value == q.value
    assert_same_grads(padded, grads)
    assert first.dropout_state == second.dropout_state != third.dropout_state
    third.layers[0].dropout = 0
    assert loss_and_grads(third, data.x, data.targets)[0].value != p.value


@pytest.mark.parametrize("every", [1, 2, 4, 6, 50])
@pytest.mark.parametrize("form", ["list", "array", "resets"])
@pytest.mark.parametrize("kind", ONWARD)
def test_gradient_checkpointing_changes_no_gradient(kind, form, every):
    model = model_of(kind)
    data = lists_of(model)
    x, targets, weights, flags = data.padded()
    args, options = (data.x, data.targets), {"weights": data.weights, "episode_start": data.start}
    if form != "list":
        args, options = (x, targets), {"weights": weights, "lengths": LENGTHS,
                                       "episode_start": flags}
    if form == "array":
        del options["episode_start"]
    options |= data.own
    state = model.loss(*args, **options).state
    p, grads, (dx, dstate0) = loss_and_grads(model, *args, dstate=ones_like(state), **options)
    q, again, (again_dx, again_dstate0) = loss_and_grads(
        model, *args, dstate=ones_like(state), recompute_every=every, **options)
    np.testing.assert_allclose(q.value, p.value, rtol=1e-13)
    assert q.weight == p.weight
    assert_close_grads(again, grads)
    for got, expected in zip(arrays(q.state), arrays(p.state), strict=True):
        assert_same(got, expected)
    for got, expected in zip(arrays(again_dstate0), arrays(dstate0), strict=True):
        cases.assert_close("dstate0", got, expected, TOL)
    assert (again_dx is None) == (dx is None)
    if dx is not None:
        for got, expected in zip(again_dx, dx, strict=True):
            cases.assert_close("dx", got, expected, TOL)


def test_backward_of_a_checkpointed_loss_draws_the_same_dropout_again():
    model = SequenceModel([GRU(3, 4, 2, dropout=0.5, seed=1, **F64)], N, seed=1)
    data = lists_of(model)
    p = model.loss(data.x, data.targets, recompute_every=2)
    step, before = 1e-6, grads_of(model)
    p.backward()
    # the slope of the very loss that was computed: its generator is set back for each value
    weight, state = model.parameters()["layers.0.weight_hh_l1"], model.dropout_state

    def loss(d):
        fresh = SequenceModel([GRU(3, 4, 2, dropout=0.5, seed=1, **F64)], N, seed=1)
        fresh.parameters()["layers.0.weight_hh_l1"][0, 0] += d
        return fresh.loss(data.x, data.targets, recompute_every=2).value

    slope = (loss(step) - loss(-step)) / (2 * step)
    got = model.grads["layers.0.weight_hh_l1"][0, 0] - before["layers.0.weight_hh_l1"][0, 0]
    assert abs(slope - got) < 1e-8 + 1e-5 * abs(slope)
    assert weight.flags.writeable
    assert model.dropout_state == state


@pytest.mark.parametrize("cell", [LSTM, GRU, RNN])
def test_bfloat16_evaluation_gives_the_bits_of_each_alone(cell):
    model = SequenceModel([cell(3, 16, 2, bidirectional=True, seed=1)], N, seed=1).eval("bfloat16")
    data = lists_of(model)
    outputs, _ = model(data.x)
    for i in range(len(LENGTHS)):
        assert_same(outputs[i], model(data.alone(i)[0])[0][:, 0])
    assert_same(model(data.padded()[0], lengths=LENGTHS)[0], grid(outputs, 2, 0))
    with pytest.raises(ValueError, match="bfloat16"):
        model.loss(data.x, data.targets, grad=True)


@pytest.mark.parametrize("cells", [(LSTM, GRU), (RNN, LSTM)])
def test_an_encoder_decoder_reads_sources_and_inputs_of_their_own_lengths(cells):
    model = pair_of(cells=cells)
    source, inputs, targets, weights = pair_lists()
    model.zero_grad()
    p = model.loss(source, inputs, targets, weights=weights, grad=True)
    p.backward()
    grads = grads_of(model)
    total, value = {name: np.zeros_like(g) for name, g in grads.items()}, 0.0
    for i in range(len(LENGTHS)):
        one = [a[i][:, None] for a in (source, inputs, targets, weights)]
        model.zero_grad()
        q = model.loss(*one[:3], weights=one[3], grad=True)
        q.backward()
        value += q.value * q.weight / p.weight
        for name, grad in grads_of(model).items():
            total[name] += grad * q.weight / p.weight
    np.testing.assert_allclose(p.value, value, rtol=1e-12)
    assert p.weight == pytest.approx(sum(w.sum() for w in weights))
    assert_close_grads(grads, total)
    first = np.arange(6)
    written = model.generate(source, first, 5)
    for i in range(6):
        np.testing.assert_array_equal(
            written[:, i : i + 1], model.generate(source[i][:, None], first[i : i + 1], 5))


def test_an_encoder_decoder_of_numbers_gives_the_gradient_of_each_source():
    encoder = Stack([LSTM(2, 4, seed=1, **F64)])
    decoder = SequenceModel([LSTM(3, 4, seed=2, **F64)], N, loss="mse", seed=3)
    model = EncoderDecoder(encoder, decoder)
    rng = np.random.default_rng(0)
    source = [rng.standard_normal((n, 2)) for n in LENGTHS]
    inputs = rng.standard_normal((3, 6, 3))  # a plain batch, beside a list
    targets = rng.standard_normal((3, 6, N))
    dx, _ = model.loss(source, inputs, targets).backward(need_dx=True)
    assert [a.shape for a in dx] == [a.shape for a in source]
    for i in range(6):
        one = model.loss(source[i][:, None], inputs[:, i : i + 1], targets[:, i : i + 1])
        own, _ = one.backward(need_dx=True)
        cases.assert_close("dx", dx[i], own[:, 0] / 6, TOL)


@pytest.mark.parametrize("kind", TAGGERS)
def test_an_episode_begins_as_a_sequence_of_its_own(kind):
    model = model_of(kind)
    data = lists_of(model, (7, 3))
    data.start = [np.array([1, 0, 0, 1, 0, 1, 1], bool), np.array([1, 0, 1], bool)]
    outputs, _ = model(data.x, **data.own, episode_start=data.start)
    p, grads, _ = loss_and_grads(model, data.x, data.targets, episode_start=data.start, **data.own)
    episodes, goals = (
        [one for a, s in zip(of, data.start, strict=True) for one in
         np.split(a, np.flatnonzero(s)[1:])] for of in (data.x, data.targets))
    zeros = {} if data.context is None else {
        "state": model.initial_state(None, 0 * data.context[:1].repeat(6, 0), 6)[0]}
    if zeros:  # an episode begins with zero, not with what the context gives
        zeros["state"] = tuple(tuple(0 * a for a in of) if isinstance(of, tuple) else 0 * of
                               for of in zeros["state"])
    alone, _ = model(episodes, **zeros)
    for got, expected in zip(np.split(outputs[0], np.flatnonzero(data.start[0])[1:]), alone[:4],
                             strict=True):
        if model.layers[0].directions == 1:
            assert_same(got, expected)
    q, own, _ = loss_and_grads(model, episodes, goals, **zeros)
    np.testing.assert_allclose(p.value, q.value, rtol=1e-12)
    assert_close_grads({k: g for k, g in grads.items() if "context" not in k},
                       {k: g for k, g in own.items() if "context" not in k})


def test_a_state_goes_on_where_no_episode_begins():
    model = SequenceModel([LSTM(3, 4, seed=1, **F64), GRU(4, 4, seed=2, **F64)], N, seed=1)
    rng = np.random.default_rng(0)
    x, start = rng.standard_normal((4, 3, 3)), np.zeros((4, 3), bool)
    _, state = model(rng.standard_normal((5, 3, 3)))
    whole, _ = model(x, state)
    start[0, 1] = start[2, 2] = True
    outputs, final = model(x, state, episode_start=start)
    assert_same(outputs[:, 0], whole[:, 0])
    assert_same(outputs[:2, 2], whole[:2, 2])
    assert_same(outputs[:, 1], model(x)[0][:, 1])
    assert_same(outputs[2:, 2], model(x[2:])[0][:, 2])
    # step by step, as an agent does
    now, steps = state, []
    for t in range(4):
        out, now = model(x[t : t + 1], now, episode_start=start[t : t + 1])
        steps.append(out[0])
    assert_same(np.stack(steps), outputs)
    for got, expected in zip(arrays(now), arrays(final), strict=True):
        assert_same(got, expected)


def test_threads_change_no_bit(threads):
    model = SequenceModel([LSTM(16, 48, 2, seed=1), GRU(48, 32, bidirectional=True, seed=2)], N,
                          seed=1)
    data = lists_of(model, tuple(np.random.default_rng(3).integers(0, 40, 24)))
    found = []
    for count in threads[:3]:
        set_num_threads(count)
        p, grads, (dx, _) = loss_and_grads(model, data.x, data.targets, episode_start=data.start)
        found.append((p.value, {**grads, **{f"dx{i}": a for i, a in enumerate(dx)}}))
    for value, grads in found[1:]:
        assert value == found[0][0]
        assert_same_grads(grads, found[0][1])


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=7), both=st.booleans(),
       start=st.booleans(), layers=st.integers(1, 2), cell=st.sampled_from([LSTM, GRU, RNN]),
       dtype=st.sampled_from([np.float32, np.float64]), symbols=st.booleans(),
       seed=st.integers(0, 9))
def test_any_lengths(lengths, both, start, layers, cell, dtype, symbols, seed):
    model = SequenceModel([cell(3, 5, layers, bidirectional=both, seed=1, dtype=dtype)], N,
                          vocab_size=3 if symbols else None, one_hot=symbols, seed=1)
    data = lists_of(model, lengths, seed)
    of_list = {"episode_start": data.start} if start else {}
    p, grads, (dx, _) = loss_and_grads(model, data.x, data.targets, **of_list)
    x, targets, _, flags = data.padded()
    q, padded, (padded_dx, _) = loss_and_grads(
        model, x, targets, lengths=lengths, **({"episode_start": flags} if start else {}))
    assert (p.value, p.weight) == (q.value, sum(lengths))
    assert_same_grads(padded, grads)
    outputs, _ = model(data.x, **of_list)
    for i in range(len(lengths)):
        one = {"episode_start": data.start[i][:, None]} if start else {}
        assert_same(outputs[i], model(data.alone(i)[0], **one)[0][:, 0])
    if not symbols:
        assert_same(padded_dx, grid(dx, 2, 0))


def test_a_language_model_takes_lists_of_encoded_texts():
    model = language_of(vocab_size=256, characters="abcd")
    texts = [model.encode(t) for t in ("abba", "", "dacad", "a")]
    p = model.loss([t[:-1] for t in texts], [t[1:] for t in texts], grad=False)
    values = [model.loss(t[:-1, None], t[1:, None], grad=False) for t in texts if len(t) > 1]
    assert p.weight == 7
    assert p.value == pytest.approx(sum(q.value * q.weight for q in values) / 7)
    assert [o.shape for o in model(texts)[0]] == [(4, 4), (0, 4), (5, 4), (1, 4)]
