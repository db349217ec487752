"""Models' outputs and losses against plain NumPy, every gradient against central differences."""

import copy
import tracemalloc

import cases
import numpy as np
import pytest
from kinds import (
    F64,
    KINDS,
    B,
    N,
    T,
    V,
    arrays,
    data_of,
    grads_of,
    language_of,
    model_of,
    pair_data,
    pair_of,
    some_text,
)

import fastrnn
from fastrnn import GRU, LSTM, SequenceModel, Stack, reference

ONE_WAY = [kind for kind, options in KINDS.items() if not options.get("both")]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_loss_are_those_of_layers_and_plain_numpy(kind):
    model = model_of(kind)
    x, targets, weights, context = data_of(model)
    outputs, state = model(x, context=context)
    p = model.parameters()
    y = x
    if model.vocab_size:
        y = np.eye(V)[x] if model.one_hot else p["embedding.weight"][x]
    start = None
    if context is not None:
        start = context @ p["context.weight"].T + p["context.bias"]
    for layer in copy.deepcopy(model.layers):
        begin = None
        if start is not None:
            shape = (layer.num_layers * layer.directions, layer.hidden_size)
            parts = []
            for _ in range(2 if isinstance(layer, LSTM) else 1):
                own, start = np.split(start, [shape[0] * shape[1]], 1)
                parts.append(own.reshape(B, *shape).swapaxes(0, 1))
            begin = tuple(parts) if len(parts) == 2 else parts[0]
        y, _ = layer(y, begin)
    if model.readout == "last":
        y = np.concatenate([y[-1, :, :5], y[0, :, 5:]], -1)
        np.testing.assert_array_equal(arrays(state)[-1][0], y[:, :5])
    cases.assert_close("outputs", outputs, y @ p["head.weight"].T + p["head.bias"], 1e-13)
    expected = cases.plain_loss(model.loss_name, outputs, targets, weights)
    for mode in (True, False):
        for options in ({}, {"recompute_every": 2}):
            if options and kind not in ONE_WAY:
                continue
            loss = model.train(mode).loss(x, targets, weights=weights, context=context, **options)
            assert loss.value == pytest.approx(expected, rel=1e-12)
            assert loss.weight == pytest.approx(weights.sum(), rel=1e-15)
            for a, b in zip(arrays(loss.state), arrays(state), strict=True):
                np.testing.assert_array_equal(a, b)


def plain_logits(model, symbols):
    """Return what a one-layer language model gives, from the reference and a product."""
    p = model.parameters()
    weights = [p[f"layers.0.{name}_l0"] for name in cases.PARAMETERS]
    run = getattr(reference, model.config["cell"] + "_forward")
    y, _, _ = run(symbols, None, *weights, embedding=p["embedding.weight"])
    return y @ p["head.weight"].T + p["head.bias"]


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_language_models_logits_and_loss_are_the_references(cell):
    model = language_of(cell)
    symbols, targets = some_text()
    expected = plain_logits(model, symbols)
    cases.assert_close("logits", model(symbols)[0], expected, 1e-13)
    right = cases.plain_loss("softmax", expected, targets, np.ones(targets.shape))
    for mode in (True, False):
        p = model.train(mode).loss(symbols, targets)
        assert p.value == pytest.approx(right, rel=1e-13)
        assert p.weight == targets.size


# --------------------------------------------------------------------------- central differences


def check_gradients(model, run, p, **more):
    """Hold a pass's gradients against central differences of run(), its loss.

    `more` are further arrays that the loss depends on, with the gradients that backward returned.
    """
    got = grads_of(model)
    assert any(g.any() for g in got.values())
    for name, param in model.parameters().items():
        cases.assert_close(name, got[name], cases.differences(run, param), 1e-6)
    for name, (array, gradient) in more.items():
        cases.assert_close(name, gradient, cases.differences(run, array), 1e-6)


@pytest.mark.parametrize(("kind", "every"), [
    (kind, every) for kind in KINDS for every in (None, 2) if not every or kind in ONE_WAY
])
def test_every_gradient_against_central_differences(kind, every):
    model = model_of(kind)
    x, targets, weights, context = data_of(model)
    dstate = tuple(model(x, context=context)[1])
    state = None if context is not None else copy.deepcopy(dstate)
    options = {"weights": weights, "context": context, "recompute_every": every}
    p = model.loss(x, targets, state, **options)
    dx, dstate0 = p.backward(dstate, need_dx=True)

    def run():
        p = model.loss(x, targets, state, grad=False, **options)
        return p.value + sum((a * d).sum() for a, d in zip(arrays(p.state), arrays(dstate),
                                                           strict=True))

    more = {}
    assert (dx is None) == (model.vocab_size is not None)
    if dx is not None:
        more["dx"] = x, dx
    if context is not None:
        more["dcontext"] = context, dstate0
    else:
        more |= {f"dstate0[{i}]": pair
                 for i, pair in enumerate(zip(arrays(state), arrays(dstate0), strict=True))}
    check_gradients(model, run, p, **more)


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("last", ["h and c", "h", "c", "none"])
def test_a_readout_of_an_lstms_last_state_adds_to_its_gradient(last, every):
    model = SequenceModel([GRU(3, 4, seed=1, **F64), LSTM(4, 3, 2, seed=2, **F64)], N,
                          readout="last", seed=0)
    x, targets, _, _ = data_of(model)
    h, c = model(x)[1][1]
    own = {"h and c": (h, c), "h": (h, None), "c": (None, c), "none": None}[last]
    p = model.loss(x, targets, recompute_every=every)
    dx, _ = p.backward((None, own), need_dx=True)

    def run():
        p = model.loss(x, targets, grad=False)
        return p.value + sum((a * d).sum() for a, d in zip(p.state[1], own or (), strict=False)
                             if d is not None)

    check_gradients(model, run, p, dx=(x, dx))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_every_gradient_of_a_language_model(cell, layers):
    model = language_of(cell, num_layers=layers)
    symbols, targets = some_text()
    _, state = model(symbols)
    p = model.loss(symbols, targets, state)
    _, dstate0 = p.backward()

    def run():
        return model.loss(symbols, targets, state, grad=False).value

    more = {f"dstate0[{i}]": pair
            for i, pair in enumerate(zip(arrays(state), arrays(dstate0), strict=True))}
    check_gradients(model, run, p, **more)


def test_every_gradient_of_encoder_and_decoder():
    model = pair_of()
    source, inputs, targets, weights = pair_data()
    p = model.loss(source, inputs, targets, weights=weights)
    dx, dstate0 = p.backward()
    assert dx is None
    assert len(dstate0) == 2

    def run():
        return model.loss(source, inputs, targets, weights=weights, grad=False).value

    assert np.abs(model.grads["encoder.embedding.weight"]).max() > 1e-4
    check_gradients(model, run, p)


def test_encoder_and_decoder_of_real_vectors():
    encoder = Stack(GRU(2, 3, seed=0, **F64), seed=0)
    model = fastrnn.EncoderDecoder(encoder, SequenceModel(GRU(1, 3, seed=1, **F64), 1, loss="mse",
                                                          seed=2))
    rng = np.random.default_rng(0)
    source, inputs, targets = (rng.standard_normal(s) for s in ((4, B, 2), (3, B, 1), (3, B, 1)))
    dstate = (rng.standard_normal((1, B, 3)),)
    p = model.loss(source, inputs, targets)
    dx, _ = p.backward(dstate, need_dx=True)

    def run():
        p = model.loss(source, inputs, targets, grad=False)
        return p.value + (p.state[0] * dstate[0]).sum()

    check_gradients(model, run, p, dx=(source, dx))


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_its_pass_take_the_outputs_gradient(kind):
    model = model_of(kind)
    x, _, _, context = data_of(model)
    rng = np.random.default_rng(7)
    outputs, state, p = model.forward(x, context=context)
    doutputs = rng.standard_normal(outputs.shape)
    dstate = tuple(model(x, context=context)[1])
    dx, _ = p.backward(doutputs, dstate, need_dx=True)

    def run():
        outputs, state, none = model.forward(x, context=context, grad=False)
        assert none is None
        return (outputs * doutputs).sum() + sum(
            (a * d).sum() for a, d in zip(arrays(state), arrays(dstate), strict=True))

    assert len(arrays(state)) == len(arrays(dstate))
    check_gradients(model, run, p, **({} if dx is None else {"dx": (x, dx)}))


@pytest.mark.parametrize("symbols", [False, True])
def test_a_stacks_pass(symbols):
    stack = (Stack([LSTM(3, 4, seed=0, **F64), GRU(4, 2, seed=1, **F64)],
                   **({"vocab_size": V} if symbols else {}), seed=2))
    rng = np.random.default_rng(0)
    x = rng.integers(0, V, (T, B)) if symbols else rng.standard_normal((T, B, 3))
    y, _, p = stack.forward(x)
    dy, dstate = rng.standard_normal(y.shape), stack(x)[1]
    dx, _ = p.backward(dy, dstate)

    def run():
        y, state, _ = stack.forward(x, grad=False)
        return (y * dy).sum() + sum((a * d).sum() for a, d in zip(arrays(state), arrays(dstate),
                                                                  strict=True))

    check_gradients(stack, run, p, **({} if symbols else {"dx": (x, dx)}))


# ------------------------------------------------------------------------ gradient checkpointing


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("every", [1, 2, 3, 5, 9])
def test_recomputing_gives_the_whole_sequences_loss_and_gradients(every, weighted):
    model = SequenceModel([LSTM(3, 4, 2, seed=1, **F64), GRU(4, 3, seed=2, **F64)], N, seed=0)
    x, targets, weights, _ = data_of(model)
    results = []
    for option in (None, every):
        model.zero_grad()
        p = model.loss(x, targets, weights=weights if weighted else None, recompute_every=option)
        dx, dstate = p.backward(need_dx=True)
        results.append([p.value, p.weight, dx, *arrays(p.state), *arrays(dstate),
                        *grads_of(model).values()])
    for whole, parts in zip(*results, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("every", [2, 9])
def test_recomputing_drops_what_the_whole_sequence_drops(every):
    model = SequenceModel(LSTM(3, 4, 2, dropout=0.4, seed=1, **F64), N, seed=0)
    x, targets, _, _ = data_of(model)
    before, found, ends = model.dropout_state, [], []
    for option in (None, every):
        model.dropout_state = before
        model.zero_grad()
        p = model.loss(x, targets, recompute_every=option)
        after = model.dropout_state
        assert after != before
        p.backward()
        assert model.dropout_state == after  # backward draws again, elsewhere
        found.append([p.value, *grads_of(model).values()])
        ends.append(after)
    assert ends[0] == ends[1]
    for whole, parts in zip(*found, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-11, atol=1e-15)


def test_dropout_of_a_recomputed_loss_against_central_differences():
    model = SequenceModel(LSTM(3, 4, 3, dropout=0.4, seed=1, **F64), N, seed=0)
    x, targets, _, _ = data_of(model)
    before = model.dropout_state

    def run():
        model.dropout_state = before
        return model.loss(x, targets, recompute_every=2)

    p = run()
    p.backward()
    check_gradients(model, lambda: run().value, p)


def test_a_recomputed_loss_keeps_its_masks_whatever_happens_before_backward():
    model = SequenceModel(LSTM(3, 4, 2, dropout=0.4, seed=1, **F64), N, seed=0)
    x, targets, _, _ = data_of(model)
    before = model.dropout_state
    model.loss(x, targets, recompute_every=2).backward()
    expected = grads_of(model)
    for between in (lambda: model.eval(), lambda: model.loss(x, targets),
                    lambda: setattr(model.layers[0], "dropout", 0.1)):
        model.train().zero_grad()
        model.layers[0].dropout = 0.4
        model.dropout_state = before
        p = model.loss(x, targets, recompute_every=2)
        between()
        p.backward()
        cases.assert_same_bytes(grads_of(model), expected)
    # and a loss without dropout has none when it runs again in training mode
    model.eval().zero_grad()
    model.loss(x, targets, grad=True).backward()
    expected = grads_of(model)
    model.zero_grad()
    p = model.loss(x, targets, grad=True, recompute_every=2)
    model.train()
    p.backward()
    for name, grad in grads_of(model).items():
        np.testing.assert_allclose(grad, expected[name], rtol=1e-11, atol=1e-15)


def test_a_long_sequence_recomputed_takes_the_memory_of_one_piece():
    rng = np.random.default_rng(0)
    model = SequenceModel(LSTM(1, 16, seed=0), 1, loss="mse", seed=0)
    x = rng.standard_normal((100_000, 1, 1)).astype(np.float32)
    losses, grads, peaks = [], [], []
    for every in (None, 500):
        model.zero_grad()
        tracemalloc.start()
        p = model.loss(x, x, recompute_every=every)
        losses.append(p.value)
        p.backward()
        del p
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        grads.append(grads_of(model))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, grad in grads[1].items():
        np.testing.assert_allclose(grad, grads[0][name], rtol=1e-3, atol=1e-5)
    assert peaks[1] < peaks[0] / 8


# ------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [(0, B), (T, 0)], ids=["no steps", "no rows"])
def test_nothing_to_read_has_a_loss_of_zero_and_no_gradient(kind, steps):
    model = model_of(kind)
    x, targets, _, context = data_of(model)
    T, B = steps
    own = np.s_[:T, :B] if model.readout == "every" else np.s_[:B]
    context = None if context is None else context[:B]
    for every in (None, 2):
        if every and kind not in ONE_WAY:
            continue
        p = model.loss(x[:T, :B], targets[own], context=context, recompute_every=every)
        if model.readout == "last" and B:
            continue  # the head reads zeros
        assert p.value == 0
        assert p.weight == 0
        _, _, recorded = p.backward(record=("h",))
        assert [len(layer) for layer in recorded] == [2, 1, 1]
        assert not any(grad.any() for grad in model.grads.values())


def test_results_are_the_same_bits_on_any_number_of_threads():
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((20, 8, 16)), rng.integers(0, 9, (20, 8))
    threads, results = fastrnn.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            fastrnn.set_num_threads(n)
            model = SequenceModel([LSTM(16, 64, seed=0), GRU(64, 48, seed=1)], 9, seed=2)
            model.loss(x.astype(np.float32), targets, recompute_every=7).backward()
            results.append({name: g.tobytes() for name, g in model.grads.items()})
    finally:
        fastrnn.set_num_threads(threads)
    assert results[0] == results[1] == results[2]
