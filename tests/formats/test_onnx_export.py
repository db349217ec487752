"""Models written as ONNX: the checker accepts them, and outputs are equal everywhere."""

import numpy as np
import pytest
from cases import tolerance
from onnx_models import fastrnn_onnx, load, runtime

import fastrnn
from fastrnn import GRU, LSTM, RNN, LanguageModel, SequenceModel, Stack

onnx = pytest.importorskip("onnx")

LAYERS = {
    "lstm": LSTM, "gru": GRU, "rnn_tanh": RNN,
    "gru_before": lambda *args, **options: GRU(*args, reset_after=False, **options),
    "rnn_relu": lambda *args, **options: RNN(*args, nonlinearity="relu", **options),
    "rnn_sigmoid": lambda *args, **options: RNN(*args, nonlinearity="sigmoid", **options)}
RNG = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def check(model, feeds, expected, **options):
    """Compare a written model with the outputs that it should have, here and in ONNX Runtime."""
    data = fastrnn_onnx().dumps(model, **options)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    back = load(data)
    assert back.unused == ()
    assert back.input_names == tuple(feeds)
    results = [back(feeds)]
    if model.dtype == np.float32:
        results.append(runtime(data, feeds))
    tol = 8 * tolerance(model.dtype, 64, 8)  # stacked layers, and a head
    for got in results:
        for mine, right in zip(got, expected, strict=True):
            assert mine.shape == right.shape
            assert mine.dtype == right.dtype
            np.testing.assert_allclose(mine, right, tol, tol)
    return back


@pytest.mark.parametrize("batch_first", [False, True], ids=["", "batch_first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["", "both"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer(kind, layers, bidirectional, batch_first):
    layer = LAYERS[kind](3, 5, layers, bidirectional=bidirectional, batch_first=batch_first,
                         seed=0)
    x = normal(6, 4, 3)
    B, T = (6, 4) if batch_first else (4, 6)
    check(layer, {"x": x}, [layer(x)[0]])
    state = tuple(normal(*shape) for shape in layer.state_shapes(B))
    lengths = RNG.integers(1, T + 1, B).astype(np.int32)
    y, final = layer(x, state if len(state) > 1 else state[0], lengths=lengths)
    feeds = {"x": x, "lengths": lengths} | dict(zip(("h0", "c0"), state, strict=False))
    back = check(layer, feeds, [y, *as_tuple(final)], states=True, lengths=True)
    assert back.output_names == ("y", "hn", "cn")[: 1 + len(state)]


def test_a_layer_without_bias_and_one_of_float64():
    for layer in (LSTM(3, 5, 2, bias=False, seed=0), GRU(3, 5, dtype=np.float64, seed=0)):
        x = normal(4, 2, 3, dtype=layer.dtype)
        check(layer.eval(), {"x": x}, [layer(x)[0]])


@pytest.mark.parametrize("states", [False, True])
def test_a_stack_of_several_kinds(states):
    stack = Stack([LSTM(3, 4, 2, bidirectional=True, seed=0), GRU(8, 5, seed=1), RNN(5, 2, seed=2)])
    x = normal(6, 4, 3)
    first = (normal(4, 4, 4), normal(4, 4, 4)), normal(1, 4, 5), normal(1, 4, 2)
    y, final = stack(x, first if states else None)
    feeds, expected = {"x": x}, [y]
    if states:
        feeds |= {"layers.0.h0": first[0][0], "layers.0.c0": first[0][1], "layers.1.h0": first[1],
                  "layers.2.h0": first[2]}
        expected += [*final[0], *final[1:]]
    check(stack, feeds, expected, states=states)


@pytest.mark.parametrize("lengths", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize("readout", ["every", "last"])
@pytest.mark.parametrize("symbols", ["vectors", "embedding", "one_hot"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_sequence_model(kind, symbols, readout, lengths):
    options = {} if symbols == "vectors" else {"vocab_size": 7, "one_hot": symbols == "one_hot"}
    layer = LAYERS[kind](7 if symbols == "one_hot" else 3, 5, 2, bidirectional=True, dropout=0.5,
                         seed=0)
    model = SequenceModel(layer, 4, readout=readout, seed=1, **options).eval()
    x = normal(6, 4, 3) if symbols == "vectors" else RNG.integers(0, 7, (6, 4))
    n = np.array([6, 1, 3, 2], np.int32)
    outputs, _ = model(x, lengths=n if lengths else None)
    check(model, {"x": x} | ({"lengths": n} if lengths else {}), [outputs], lengths=lengths)


def test_a_language_model(tmp_path):
    model = LanguageModel(embedding_size=3, hidden_size=5, num_layers=2, cell="gru", seed=0).eval()
    x = model.encode("a text that is written")[:, None].astype(np.int64)
    outputs, (state,) = model(x)
    check(model, {"x": x}, [outputs])
    first = np.zeros((2, 1, 5), np.float32)
    path = tmp_path / "model.onnx"
    fastrnn_onnx().save(model, path, states=True)
    back = load(path)
    got = [first]
    for t in range(len(x)):  # step by step
        y, *got = back({"x": x[t : t + 1], "layers.0.h0": got[0]})
        np.testing.assert_allclose(y[0], outputs[t], 1e-5, 1e-5)
    np.testing.assert_allclose(got[0], state, 1e-5, 1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_the_mode_of_a_model_stays_and_its_dropout_is_left_out():
    model = SequenceModel(GRU(3, 4, 2, dropout=0.5, seed=0), 2, seed=0)
    x = normal(5, 2, 3)
    expected, _, _ = model.forward(x, grad=False)
    check(model, {"x": x}, [expected])
    assert model.training


def test_a_written_model_has_its_own_weights():
    layer = GRU(3, 4, seed=0)
    x = normal(5, 2, 3)
    back, y = load(fastrnn_onnx().dumps(layer)), layer(x)[0]
    layer.flat[:] = 0
    np.testing.assert_allclose(back(x)[0], y, 1e-6, 1e-6)


CELL = "h = tanh(W x + U h + b)"


@pytest.mark.parametrize(("model", "error"), [
    (lambda: LSTM(3, 5, proj_size=2), "expected proj_size 0"),
    (lambda: fastrnn.Layer(fastrnn.cell(CELL, name="Own"), 3, 4), "ONNX has no operator"),
    (lambda: Stack([GRU(3, 4), LSTM(4, 5, proj_size=2)]), r"layers\[1\] is LSTM"),
    (lambda: SequenceModel(GRU(3, 4), 2, context_size=3), "has a context_size"),
    (lambda: fastrnn.EncoderDecoder(Stack(GRU(3, 4)), SequenceModel(GRU(2, 4), 2)), "is of type"),
    (lambda: fastrnn.GRUCell(3, 4), "model is of type GRUCell"),
    (lambda: 3, "model is of type int"), (lambda: None, "model is None"),
])
def test_what_cannot_be_written_is_refused_and_leaves_no_file(model, error, tmp_path):
    for call in (lambda: fastrnn_onnx().save(model(), tmp_path / "a"),
                 lambda: fastrnn_onnx().dumps(model())):
        with pytest.raises((ValueError, TypeError), match=f"^(save|dumps): .*{error}"):
            call()
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    for path in (tmp_path / "none" / "a.onnx", tmp_path):
        with pytest.raises(OSError, match=str(path)):
            fastrnn_onnx().save(GRU(2, 3), path)
    assert not list(tmp_path.iterdir())
