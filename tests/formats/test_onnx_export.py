"""Models written as ONNX: the checker accepts them, and outputs are equal everywhere."""

import numpy as np
import pytest
from cases import tolerance
from onnx_models import fastrnn_onnx, load, runtime

import fastrnn
from fastrnn import GRU, LSTM, RNN, LanguageModel, SequenceModel, Stack
from fastrnn.formats.models import model_from

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


def check(model, feeds, expected, *, times=1, **options):
    """Compare a written model with the outputs that it should have, here and in ONNX Runtime."""
    data = fastrnn_onnx().dumps(model, **options)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    back = load(data)
    assert back.unused == ()
    assert back.input_names == tuple(feeds)
    results = [back(feeds)]
    if model.dtype == np.float32:
        results.append(runtime(data, feeds))
    tol = 8 * times * tolerance(model.dtype, 64, 8)  # stacked layers, and a head
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


@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (0, 0)])
@pytest.mark.parametrize("kind", [GRU, LSTM, RNN])
def test_no_step_and_no_sequence(kind, shape, tmp_path):
    layer = kind(3, 4, 2, bidirectional=True, seed=0)
    fastrnn_onnx().save(layer, tmp_path / "m.onnx")
    found, = load(tmp_path / "m.onnx")(np.zeros((*shape, 3), np.float32))
    assert found.shape == layer(np.zeros((*shape, 3), np.float32))[0].shape == (*shape, 8)


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


class Own(GRU):
    pass


@pytest.mark.parametrize(("model", "error"), [
    (lambda: fastrnn.EncoderDecoder(Stack(GRU(3, 4)), SequenceModel(GRU(2, 4), 2)), "its encoder"),
    (lambda: fastrnn.GRUCell(3, 4), "model is of type GRUCell"),
    (lambda: Own(3, 4), r"model is Own\(3, 4\), expected RNN, LSTM, GRU or a layer of a cell from"),
    (lambda: Stack([GRU(2, 3), Own(3, 4)]), r"layers\[1\] is Own\(3, 4\), expected RNN"),
    # its parameters are zeros that nobody touches, which take no memory
    (lambda: model_from("RNN", {"input_size": 1, "hidden_size": 23_200}),
     "model has 2153238400 bytes of parameters, expected less than 2 GB"),
    (lambda: 3, "model is of type int"), (lambda: None, "model is None"),
])
def test_what_cannot_be_written_is_refused_and_leaves_no_file(model, error, tmp_path):
    for call in (lambda: fastrnn_onnx().save(model(), tmp_path / "a", states=True),
                 lambda: fastrnn_onnx().dumps(model(), states=True)):
        with pytest.raises((ValueError, TypeError), match=f"^(save|dumps): .*{error}"):
            call()
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    for path in (tmp_path / "none" / "a.onnx", tmp_path):
        with pytest.raises(OSError, match=str(path)):
            fastrnn_onnx().save(GRU(2, 3), path)
    assert not list(tmp_path.iterdir())


# ---- cells that are a Scan -----------------------------------------------------------------------

EQUATIONS = """
size P = H // 2
constant alpha = 0.3
learned gain[H] = normal(1, 0.1)
i, f, g = W x + U h + V p + b
q = W_q (sigmoid(i) * gain) + b_q
c = where(f > alpha, hard_sigmoid(f), 0.5 - f) * c + softsign(g) - clip(g * i, -0.5, 0.25)
m = mean(c) + sum(i) / 10
h = gelu(c) * silu(q) + m * elu(i, 0.7) ** 2 - leaky_relu(f) / (2 + abs(g)) + max(i, min(f, 0.1))
p[P] = W_p rms_norm(h) + thresholded_relu(W_r g, 0.1) + scaled_tanh(W_s c, 0.8, 1.2)
"""


def options_of(definition):
    """Return sizes that are not equal where a cell allows it."""
    return (4, 4) if definition.equal_sizes else (3, 8)  # a multiple of 4, for blocks


def check_layer(layer, T=5, B=4, times=8):
    """Compare a layer in evaluation mode, without and with states and lengths."""
    x = normal(T, B, layer.input_size)
    layer.eval()
    y, _ = layer(x)
    check(layer, {"x": x}, [y], times=times)
    state = tuple(0.5 * abs(normal(*shape)) for shape in layer.state_shapes(B))
    n = np.array([T, 1, 3, 2], np.int32)
    y, final = layer(x, state if len(state) > 1 else state[0], lengths=n)
    names = [f"{name}0" for name in layer.cell.states]
    feeds = {"x": x, "lengths": n} | dict(zip(names, state, strict=True))
    check(layer, feeds, [y, *as_tuple(final)], times=times, states=True, lengths=True)


@pytest.mark.parametrize("name", fastrnn.cells.ZOO)
def test_every_cell_of_the_zoo(name):
    definition = getattr(fastrnn.cells, name)
    I, H = options_of(definition)
    check_layer(fastrnn.Layer(definition, I, H, seed=0, bidirectional=True))


@pytest.mark.parametrize("bias", [True, False])
def test_a_cell_with_every_kind_of_function(bias):
    definition = fastrnn.cell(EQUATIONS, name="Own")
    check_layer(fastrnn.Layer(definition, 3, 6, 2, bias, seed=0, alpha=0.2))


@pytest.mark.parametrize("text", [
    "learned a = normal(0, 1)\nh = tanh(W x + U h) * norm(h + a)",
    "learned a = normal(0, 1)\nc = a\nh = h * c + x", "s[H] = 0.5\nh = s * h + W x",
    "m = 2\nh = h / m + W x", "h = affine(h, 0.5, 0.25) + W x",
    "size P = 3\nlearned a[P] = normal(0, 1)\nr, z = V a\nh = sigmoid(r) * h + z * (W x)"])
def test_values_that_have_no_rows(text):
    I = 4 if "+ x" in text else 3
    check_layer(fastrnn.Layer(fastrnn.cell(text), I, 4, seed=0))


@pytest.mark.parametrize("mask", ["step_mask(0.5)", "sequence_mask(0.25)", "dropout(0.5)",
                                  "sequence_dropout(0.3)"])
@pytest.mark.parametrize("use", [
    "h = tanh(W x + U h + b) * sum({})", "h = tanh(W x + U h + b) * norm({})",
    "h = tanh(W x + U h + V {} + b)", "m = {}\nh = tanh(W x + U h + b) * m",
    "a, b = W x\nh = {} * a + (1 - {}) * h + b"])
def test_masks_inside_a_term(use, mask):
    """They have their mean, for every unit."""
    check_layer(fastrnn.Layer(fastrnn.cell(use.replace("{}", mask)), 3, 4, seed=0))


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"bias": False},
                                     {"batch_first": True}], ids=str)
def test_a_projection(options):
    layer = LSTM(3, 5, 2, proj_size=2, seed=0, **options)
    if not layer.batch_first:
        check_layer(layer, times=1)
    x = normal(4, 4, 3)
    check(layer.eval(), {"x": x}, [layer(x)[0]])


def test_a_model_of_other_cells_and_readout_last():
    layers = [LSTM(3, 6, proj_size=4, seed=0), fastrnn.Layer(fastrnn.cells.LiGRU, 4, 5, seed=1)]
    model = SequenceModel(layers, 2, readout="last", seed=2).eval()
    x, n = normal(6, 4, 3), np.array([6, 1, 3, 2], np.int32)
    check(model, {"x": x}, [model(x)[0]])
    check(model, {"x": x, "lengths": n}, [model(x, lengths=n)[0]], lengths=True)


@pytest.mark.parametrize("kind", ["lstm", "gru", "projected"])
def test_a_context(kind):
    layer = (LSTM(3, 5, 2, proj_size=2, bidirectional=True, seed=0) if kind == "projected"
             else LAYERS[kind](3, 5, 2, bidirectional=True, seed=0))
    model = SequenceModel(layer, 4, context_size=3, seed=1).eval()
    x, context = normal(6, 4, 3), normal(4, 3)
    check(model, {"x": x, "context": context}, [model(x, context=context)[0]])


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("symbols", [False, True])
def test_an_encoder_and_a_decoder(symbols, lengths):
    encoder = Stack([LSTM(3, 5, 2, seed=0), GRU(5, 4, seed=1)],
                    **({"vocab_size": 9, "seed": 2} if symbols else {}))
    decoder = SequenceModel([LSTM(2, 5, 2, seed=3), GRU(5, 4, seed=4)], 7, seed=5,
                            **({"vocab_size": 7} if symbols else {}))
    model = fastrnn.EncoderDecoder(encoder, decoder).eval()
    source, x = ((RNG.integers(0, 9, (6, 4)), RNG.integers(0, 7, (5, 4))) if symbols
                 else (normal(6, 4, 3), normal(5, 4, 2)))
    n = [np.array(a, np.int32) if lengths else None for a in ([6, 1, 3, 2], [2, 5, 1, 4])]
    _, state = encoder(source, lengths=n[0])
    outputs, _ = decoder(x, state, lengths=n[1])
    feeds = ({"source": source, "source_lengths": n[0], "x": x, "lengths": n[1]} if lengths
             else {"source": source, "x": x})
    check(model, feeds, [outputs], lengths=lengths)
