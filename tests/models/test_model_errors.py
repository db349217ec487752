"""What models refuse: the sentence names the function, the argument, what came, what fits."""

import cases
import numpy as np
import pytest
from kinds import F64, B, T, data_of, model_of, pair_data, pair_of

from fastrnn import GRU, LSTM, RNN, EncoderDecoder, SequenceModel, Stack

ONE = RNN(3, 3, seed=0)
X = np.zeros((4, 3, 2))
Y = np.zeros((4, 3, 4))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: SequenceModel([], 2), TypeError, r"layers is \[\], expected recurrent layers"),
        (lambda: SequenceModel("LSTM", 2), TypeError, "layers is 'LSTM', expected recurrent layer"),
        (lambda: SequenceModel(None, 2), TypeError, "layers is None"),
        (lambda: SequenceModel([3], 2), TypeError, r"layers\[0\] is of type int, expected RNN, LS"),
        (lambda: SequenceModel([{"layer": "ELMAN"}], 2), ValueError,
         r"layers\[0\]\['layer'\] is 'ELMAN', expected one of \['RNN', 'LSTM', 'GRU', 'Layer'\]"),
        (lambda: SequenceModel([LSTM(2, 3), LSTM(4, 3)], 2), ValueError,
         r"layers\[1\] has input_size 4, expected 3: what layers\[0\] gives"),
        (lambda: SequenceModel([LSTM(2, 2), LSTM(2, 2, **F64)], 2), ValueError,
         r"layers\[1\] is float64, expected float32 like layers\[0\]"),
        (lambda: SequenceModel([ONE, ONE], 2), ValueError, r"layers\[1\] is there twice"),
        (lambda: SequenceModel(LSTM(2, 3, batch_first=True), 2), ValueError, "has batch_first, ex"),
        (lambda: SequenceModel(LSTM(2, 3), 0), ValueError, "output_size is 0, expected a whole"),
        (lambda: SequenceModel(LSTM(2, 3), 2, loss="hinge"), ValueError,
         r"loss is 'hinge', expected one of \['softmax', 'mse', 'bce'\]"),
        (lambda: SequenceModel(LSTM(2, 3), 2, readout="first"), ValueError, "readout is 'first',"),
        (lambda: SequenceModel(LSTM(2, 3), 2, vocab_size=0), ValueError, "vocab_size is 0"),
        (lambda: SequenceModel(LSTM(2, 3), 2, context_size=1.5), ValueError, "context_size is 1.5"),
        (lambda: SequenceModel(LSTM(2, 3), 2, seed=-3), ValueError, "seed is -3, expected a whole"),
    ],
)
def test_models_that_cannot_be_made(call, error, match):
    with pytest.raises(error, match=match) as raised:
        call()
    assert str(raised.value).startswith("SequenceModel: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m, o: m.loss(np.zeros((4, 3, 1)), Y, **o), ValueError,
         r"x has shape \(4, 3, 1\), expected \(T, B, 2\)"),
        (lambda m, o: m.loss(X.astype("f"), Y, **o), TypeError, "x is float32, expected float64"),
        (lambda m, o: m.loss([[0], [1, 2]], Y, **o), ValueError, "x is a ragged sequence"),
        (lambda m, o: m.loss("x", Y, **o), TypeError, "x is of type str, expected numbers"),
        (lambda m, o: m.loss(np.ma.masked_array(X, X == 0), Y, **o), TypeError, "x is a masked ar"),
        (lambda m, o: m.loss(X, np.ma.masked_array(Y, Y == 0), **o), TypeError, "targets is a mas"),
        (lambda m, o: m.loss(X, Y[..., :1], **o), ValueError,
         r"targets has shape \(4, 3, 1\), expected \(4, 3, 4\)"),
        (lambda m, o: m.loss(X, Y[1:], **o), ValueError,
         r"targets has shape \(3, 3, 4\), expected \(4, 3, 4\)"),
        (lambda m, o: m.loss(X, np.zeros((5, 3, 4)), **o), ValueError,
         r"targets has shape \(5, 3, 4\), expected \(4, 3, 4\)"),
        (lambda m, o: m.loss(X, None, **o), TypeError, "targets is None, expected numbers"),
        (lambda m, o: m.loss(X, [[1], [1, 2]], **o), ValueError, "targets is a ragged sequence"),
        (lambda m, o: m.loss(X, Y, weights=[1], **o), ValueError,
         r"weights has shape \(1,\), expected \(4, 3\)"),
        (lambda m, o: m.loss(X, Y, weights=np.ones((5, 3)), **o), ValueError,
         r"weights has shape \(5, 3\), expected \(4, 3\)"),
        (lambda m, o: m.loss(X, Y, weights=-np.ones((4, 3)), **o), ValueError,
         "weights has numbers from -1.0 to -1.0"),
        (lambda m, o: m.loss(X, Y, 3, **o), TypeError, "state is 3, expected a tuple with one ent"),
        (lambda m, o: m.loss(X, Y, (None, None), **o), TypeError, "one entry for each of 3 layers"),
        (lambda m, o: m.loss(X, Y, (X, None, None), **o), TypeError,
         r"state\[0\] is ndarray of 4, expected a pair \(h, c\)"),
        (lambda m, o: m.loss(X, Y, ((X, X), None, None), **o), ValueError,
         r"state\[0\]\[0\] has shape \(4, 3, 2\), expected \(2, 3, 3\)"),
        (lambda m, o: m.loss(X, Y, (None, (X, X), None), **o), TypeError,
         r"state\[1\] is a tuple of 2, expected one array"),
        (lambda m, o: m.loss(X, Y, (None, None, np.zeros((1, 2, 5))), **o), ValueError,
         r"state\[2\] has shape \(1, 2, 5\), expected \(1, 3, 5\)"),
        (lambda m, o: m.loss(X, Y, context=np.zeros((3, 1)), **o), ValueError,
         "context is given, expected none: the model has no context_size"),
    ],
)
def test_a_loss_that_is_refused(call, error, match, every):
    model = model_of("numbers")
    before = model.state_dict()
    with pytest.raises(error, match=match) as raised:
        call(model, {"recompute_every": every})
    assert str(raised.value).startswith("SequenceModel.loss: ")
    assert "\n" not in str(raised.value)
    cases.assert_same_bytes(model.state_dict(), before)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: m(np.zeros((4, 3, 1))), ValueError, r"SequenceModel: x has shape \(4, 3, 1\)"),
        (lambda m: m(X.astype("f")), TypeError, "SequenceModel: x is float32, expected float64"),
        (lambda m: m(X, state=(None,)), TypeError, "SequenceModel: state .* each of 3 layers"),
        (lambda m: m(X, context=X), ValueError, "SequenceModel: context is given, expected none"),
        (lambda m: m.forward(X[0]), ValueError, r"SequenceModel\.forward: x has shape \(3, 2\)"),
        (lambda m: m.loss(X, Y, recompute_every=0), ValueError, "loss: recompute_every is 0"),
        (lambda m: m.loss(X, Y, recompute_every=2.5), ValueError, "loss: recompute_every is 2.5"),
        (lambda m: m.eval("int8"), ValueError, "eval: weights is 'int8', expected 'float32' or"),
        (lambda m: m.eval("bfloat16"), ValueError, "'bfloat16', expected 'float32' for float64"),
        (lambda m: Stack(LSTM(2, 3))(X), TypeError, "Stack: x is float64, expected float32"),
        (lambda m: Stack(LSTM(2, 3)).forward(3), ValueError, r"Stack\.forward: x has shape \(\)"),
    ],
)
def test_calls_that_are_refused(call, error, match):
    model = model_of("numbers")
    with pytest.raises(error, match=match) as raised:
        call(model)
    assert "\n" not in str(raised.value)
    assert model.training


def test_a_context_that_does_not_fit():
    model = model_of("from a context")
    x, targets, _, context = data_of(model)
    state = model(x, context=context)[1]
    for call in (lambda **o: model(x, **o), lambda **o: model.forward(x, **o),
                 lambda **o: model.loss(x, targets, **o),
                 lambda **o: model.loss(x, targets, recompute_every=2, **o)):
        for options, match in (
                ({}, "neither state nor context is given, expected one: the model has a context_s"),
                ({"context": context, "state": state}, "context is given, expected none: state is"),
                ({"context": context[:, :1]}, r"context has shape \(3, 1\), expected \(3, 2\)"),
                ({"context": context[:2]}, r"context has shape \(2, 2\), expected \(3, 2\)")):
            with pytest.raises(ValueError, match=match) as raised:
                call(**options)
            assert str(raised.value).startswith("SequenceModel")
        call(state=state)
        call(context=context)


def test_recomputing_wants_one_direction():
    model = model_of("both directions")
    x, targets, _, _ = data_of(model)
    with pytest.raises(ValueError, match="recompute_every is 2 with a bidirectional layer"):
        model.loss(x, targets, recompute_every=2)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: EncoderDecoder(m, m), TypeError, "encoder is of type SequenceModel, expected a"),
        (lambda m: EncoderDecoder(Stack(LSTM(2, 3)), 5), TypeError, "decoder is of type int"),
        (lambda m: EncoderDecoder(5, m), TypeError, "encoder is of type int, expected a Stack"),
        (lambda m: EncoderDecoder(Stack(LSTM(2, 3)), m), ValueError, "expected the same: the stat"),
        (lambda m: EncoderDecoder(Stack(LSTM(2, 3)), SequenceModel(LSTM(2, 3), 2, readout="last")),
         ValueError, "decoder has readout 'last' and context_size None, expected 'every' and None"),
        (lambda m: EncoderDecoder(Stack(LSTM(2, 3)), SequenceModel(LSTM(2, 3), 2, context_size=1)),
         ValueError, "decoder has readout 'every' and context_size 1"),
        (lambda m: EncoderDecoder(Stack(LSTM(2, 3)), SequenceModel(GRU(2, 3), 2)), ValueError,
         "expected the same"),
    ],
)
def test_pairs_that_do_not_fit(call, error, match):
    with pytest.raises(error, match=match) as raised:
        call(model_of("numbers"))
    assert str(raised.value).startswith("EncoderDecoder: ")


def test_a_loss_of_a_pair_that_is_refused():
    model = pair_of()
    source, inputs, targets, weights = pair_data()
    for args, options, error, match in (
            ((source[0], inputs, targets), {}, ValueError, r"source has shape \(3,\)"),
            ((source + 9, inputs, targets), {}, IndexError, "source has numbers from 9"),
            ((source, inputs[0], targets), {}, ValueError, r"inputs has shape \(3,\)"),
            ((source, inputs + 9, targets), {}, IndexError, "inputs has numbers from"),
            ((source, inputs[:, 1:], targets), {}, ValueError, "inputs has 2 rows, expected 3: as"),
            ((source, inputs, targets[1:]), {}, ValueError, r"targets has shape \(4, 3\)"),
            ((source, inputs, targets), {"weights": weights[0]}, ValueError, "weights has shape"),
            ((source, inputs, targets), {"ignore_index": 0.5}, ValueError, "ignore_index is 0.5")):
        with pytest.raises(error, match=match) as raised:
            model.loss(*args, **options)
        assert str(raised.value).startswith("EncoderDecoder.loss: ")
    masked = targets.copy()
    masked[2] = -100
    assert model.loss(source, inputs, masked).weight == (T - 1) * B
    assert model.loss(source, inputs, masked).value == model.loss(
        source, inputs, targets, weights=masked >= 0).value


@pytest.mark.parametrize("grad", ["no", 2, []])
def test_a_word_does_not_ask_for_a_pass(grad):
    model = SequenceModel(GRU(3, 4), 2)
    x, y = np.zeros((5, 2, 3), np.float32), np.zeros((5, 2), int)
    with pytest.raises(TypeError, match=r"SequenceModel\.loss: grad is .*, expected True or False"):
        model.loss(x, y, grad=grad)
