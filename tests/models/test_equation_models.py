"""Models of layers of cells from equations: states of several widths, masks, all kinds of input.

Letters: T steps, B batch, I input, H hidden, N outputs, V symbols, C size of a context.
"""

import numpy as np
import pytest
from equations import (
    MANY,
    PLAIN,
    PROJECTED,
    H,
    I,
    check_slopes,
    draw,
    layer_of,
    learned,
    same_masks,
)

import fastrnn
from fastrnn import LSTM, EncoderDecoder, LanguageModel, SequenceModel, Stack, fit
from fastrnn.gradflow import model_flow

T, B, N, V, C = 7, 3, 2, 5, 2


def layers_of(inputs=I, cell=MANY):
    return [layer_of(cell, inputs), LSTM(H, 3, dtype=np.float64, seed=1),
            layer_of(PROJECTED, 3, seed=2, num_layers=2, P=4)]


def model_of(*, inputs=I, cell=MANY, **options):
    return SequenceModel(layers_of(inputs, cell), N, seed=3, **({"loss": "mse"} | options))


def flags(shape=(T, B)):
    return np.random.default_rng(0).random(shape) < 0.3


def targets_of(readout, seed=2):
    return draw(*((T, B, N) if readout == "every" else (B, N)), seed=seed)


READS = {"plain": {}, "lengths": {"lengths": [T, 0, 4]}, "episodes": {"episode_start": flags()}}


@pytest.mark.parametrize("readout", ["every", "last"])
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("every", [None, 3])
def test_gradients_are_those_of_differences(readout, read, every):
    model = model_of(readout=readout, context_size=C)
    x, context, targets = draw(T, B, I), draw(B, C), targets_of(readout)
    masks = same_masks(model)

    def pass_of():
        with masks:
            return model.loss(x, targets, context=context, recompute_every=every, **READS[read])

    p = pass_of()
    dx, dcontext = p.backward(need_dx=True)
    check_slopes(lambda: pass_of().value,
                 [(x, dx), (context, dcontext), *learned(model)], count=1)


@pytest.mark.parametrize("one_hot", [True, False], ids=["one_hot", "embedding"])
@pytest.mark.parametrize("every", [None, 2])
def test_symbols(one_hot, every):
    model = SequenceModel(layers_of(V if one_hot else I), V, vocab_size=V, one_hot=one_hot, seed=0)
    x = np.random.default_rng(0).integers(V, size=(T, B))
    masks = same_masks(model)

    def pass_of():
        with masks:
            return model.loss(x, x, recompute_every=every)

    pass_of().backward()
    check_slopes(lambda: pass_of().value, learned(model), count=2)


def test_a_list_has_the_bits_of_its_padded_array():
    model = model_of()
    lengths, masks = [T, 0, 4], same_masks(model)
    x, targets = draw(T, B, I), targets_of("every")
    weights = (np.arange(T)[:, None] < lengths).astype(float)
    with masks:
        p = model.loss(x, targets, weights=weights, lengths=lengths)
    with masks:
        q = model.loss([x[:n, b] for b, n in enumerate(lengths)],
                       [targets[:n, b] for b, n in enumerate(lengths)])
    assert p.value == q.value
    into, own = model.new_grads(), model.new_grads()
    p.backward(grads=into)
    q.backward(grads=own)
    for name, a in own.items():
        np.testing.assert_array_equal(into[name], a)


STEPS = fastrnn.cell("h = sigmoid(W x + U h + b) * dropout(0.4) + 0.3 * h")
ONCE = fastrnn.cell("""
    weight U = dropconnect(0.4)
    h = tanh(W x + U (h * sequence_dropout(0.4)) + b)
""")


@pytest.mark.parametrize("cell", [STEPS, ONCE], ids=["each step", "once"])
@pytest.mark.parametrize("readout", ["every", "last"])
def test_pieces_have_the_masks_of_the_whole(cell, readout):
    """One kind of mask is drawn in the order of the whole; masks of sequences go over pieces."""
    model = SequenceModel(layer_of(cell), N, loss="mse", readout=readout, seed=1)
    x, targets, masks = draw(T, B, I), targets_of(readout), same_masks(model)
    found = []
    for every in (None, 1, 3, T):
        with masks:
            p = model.loss(x, targets, recompute_every=every)
        after, grads = model.dropout_state, model.new_grads()
        model.loss(x, targets)  # another pass changes no masks of this one
        p.backward(grads=grads)
        found.append((p.value, grads, after))
    for value, grads, after in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-12)
        assert after == found[0][2]
        for name, a in grads.items():
            np.testing.assert_allclose(a, found[0][1][name], rtol=1e-9, atol=1e-13)


def test_pieces_of_ragged_rows_are_recomputed_with_their_masks():
    model = model_of()
    xs = [draw(n, I, seed=n) for n in (7, 2, 5)]
    targets, masks = [draw(len(x), N, seed=1) for x in xs], same_masks(model)
    with masks:
        p = model.loss(xs, targets, recompute_every=3)
    value, grads = p.value, model.new_grads()
    model(xs)
    p.backward(grads=grads, retain=True)
    again = model.new_grads()
    p.backward(grads=again)
    for name in grads:
        np.testing.assert_array_equal(grads[name], again[name])
    with masks:
        assert model.loss(xs, targets, recompute_every=3).value == value


def test_windows_carry_the_state():
    model = model_of(cell=PLAIN, readout="every").eval()
    x = draw(T, B, I)
    whole, final = model(x)
    first, state = model(x[:4])
    second, state = model(x[4:], state)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    for of, own in zip(final, state, strict=True):
        for a, b in zip(of if isinstance(of, tuple) else (of,),
                        own if isinstance(own, tuple) else (own,), strict=True):
            np.testing.assert_array_equal(a, b)
    assert [len(of) for of in state] == [3, 2, 2]


@pytest.mark.parametrize("readout", ["every", "last"])
@pytest.mark.parametrize("listed", [False, True])
def test_fit_predict_and_evaluate(readout, listed):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 9, 1)).astype(np.float32)
    y = np.cumsum(x, axis=1)
    y = y if readout == "every" else y[:, -1]
    if listed:
        x = [a[: 5 + i % 4] for i, a in enumerate(x)]
        y = [np.cumsum(a, axis=0) for a in x] if readout == "every" else np.array(
            [a.sum(0) for a in x])
    layer = fastrnn.Layer(fastrnn.cell("""
        fixed R = sparse(0.5, 0.5)
        f, c = W x + U h + b
        r = tanh(R r + V x)
        h = h + tanh(c + O r) * sigmoid(f) * step_mask(0.95)
    """, name="Adder"), 1, 12, seed=0)
    model = SequenceModel(layer, 1, loss="mse", readout=readout, seed=0)
    before, fixed = model.evaluate(x, y), layer.R_l0.copy()
    history = fit(model, x, y, epochs=12, lr=1e-2, optimizer="adamw", progress=False)
    assert model.evaluate(x, y) < 0.4 * before
    assert len(history.losses) == history.progress.steps
    np.testing.assert_array_equal(layer.R_l0, fixed)
    found = model.predict(x)
    assert len(found) == len(x)
    flow, = model_flow(model, lambda m: m.loss(list(x) if listed else x.swapaxes(0, 1),
                                               list(y) if listed and readout == "every" else
                                               y if readout == "last" else y.swapaxes(0, 1)))
    assert set(flow.state_norms) == {"h", "r"}


def test_an_encoder_hands_all_states_to_a_decoder():
    encoder = Stack(layer_of(MANY))
    model = EncoderDecoder(encoder, SequenceModel(layer_of(MANY, I, seed=1), I, loss="mse", seed=2))
    source, inputs = [draw(n, I, seed=n) for n in (4, 7, 1)], draw(T, B, I, seed=1)
    masks = same_masks(model)

    def value():
        with masks:
            return model.loss(source, inputs, inputs)

    value().backward()
    check_slopes(lambda: value().value, learned(model), count=2)
    with pytest.raises(ValueError, match="expected the same: the state goes from one to the other"):
        EncoderDecoder(encoder, SequenceModel(layer_of(PLAIN, I), I, loss="mse"))


def test_an_output_that_is_no_state():
    cell = fastrnn.cell("output y\nc = 0.5 * c + W x\ny = tanh(V c)")
    with pytest.raises(ValueError, match="cell whose output y is no state, expected 'every'"):
        SequenceModel(layer_of(cell), N, readout="last")
    model = SequenceModel(layer_of(cell), N, loss="mse", seed=0)
    x, targets = draw(T, B, I), targets_of("every")
    model.loss(x, targets).backward()
    check_slopes(lambda: model.loss(x, targets).value, learned(model))


def test_a_language_model_of_a_definition():
    cell = fastrnn.cell("f, c = W x + U h + b\nh = sigmoid(f) * h + (1 - sigmoid(f)) * tanh(c)",
                        name="Keep")
    model = LanguageModel(characters="abc ", embedding_size=4, hidden_size=16, cell=cell, seed=0)
    assert model.cell is cell
    history = model.train_on("abc abc " * 200, steps=60, progress=False, lr=1e-2)
    assert history.losses[-1] < 0.5 * history.losses[0]
    other = LanguageModel(**model.config)
    assert other.cell.text == cell.text
    of_zoo = LanguageModel(cell="PeepholeLSTM", embedding_size=2, hidden_size=3)
    assert of_zoo.cell is fastrnn.cells.PeepholeLSTM
    assert LanguageModel(cell="gru", embedding_size=2, hidden_size=3).cell == "gru"
    for wrong in ("elman", 3, None, ["lstm"]):
        with pytest.raises(ValueError, match=r"^LanguageModel: cell is "):
            LanguageModel(cell=wrong)


def test_configurations_make_layers():
    model = model_of()
    other = SequenceModel([layer.config for layer in model.layers], N, loss="mse")
    assert [repr(layer) for layer in other.layers] == [repr(layer) for layer in model.layers]
    with pytest.raises(ValueError, match=r"layers\[0\]\['layer'\] is 'Elman', expected one of"):
        Stack([{"layer": "Elman"}])
