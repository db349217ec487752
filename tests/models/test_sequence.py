"""Sequence models: sequences in, out or both, every loss and readout, by central differences."""

import copy
import pickle
import tracemalloc

import cases
import numpy as np
import pytest

import fastrnn
from fastrnn import GRU, LSTM, RNN, files
from fastrnn.encoder_decoder import EncoderDecoder
from fastrnn.model import SequenceModel
from fastrnn.stack import Stack

T, B, V, N = 5, 3, 6, 4
F64 = {"dtype": np.float64}


def layers_of(I, *, both=False):
    """Return three layers of different kinds and sizes, the first stacked itself."""
    return [LSTM(I, 3, 2, bidirectional=both, seed=1, **F64),
            RNN(6 if both else 3, 4, nonlinearity="relu", seed=2, **F64),
            GRU(4, 5, bidirectional=both, seed=3, **F64)]


KINDS = {
    "tags of symbols": {"symbols": V, "width": 3},
    "one-hot symbols": {"symbols": V, "width": V, "one_hot": True},
    "both directions": {"width": 3, "both": True},
    "a class": {"width": 3, "readout": "last", "both": True},
    "a number": {"width": 3, "readout": "last", "loss": "mse"},
    "numbers": {"width": 2, "loss": "mse"},
    "labels": {"symbols": V, "width": 3, "loss": "bce"},
    "from a vector": {"symbols": V, "width": 3, "vector_size": 2},
}


def model_of(kind, layers=layers_of):
    options = dict(KINDS[kind])
    made = layers(options.pop("width"), both=options.pop("both", False))
    return SequenceModel(made, N, seed=4, **options)


def data_of(model, seed=0):
    """Return (x, targets, weights, vector) for a model."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(0, model.symbols, (T, B)) if model.symbols
         else rng.standard_normal((T, B, model.layers[0].input_size)))
    rows = (T, B) if model.readout == "every" else (B,)
    targets = {"softmax": rng.integers(0, N, rows), "mse": rng.standard_normal((*rows, N)),
               "bce": rng.random((*rows, N))}[model.loss_name]
    weights = rng.random(rows)
    weights[..., -1] = 0
    vector = None if model.vector_size is None else rng.standard_normal((B, model.vector_size))
    return x, targets, weights, vector


def arrays(state):
    return [a for of in state for a in (of if isinstance(of, tuple) else (of,))]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_loss_are_those_of_layers_and_plain_numpy(kind):
    model = model_of(kind)
    x, targets, weights, vector = data_of(model)
    outputs, state = model(x, vector=vector)
    p = model.parameters()
    y = x
    if model.symbols:
        y = np.eye(V)[x] if model.one_hot else p["embedding.weight"][x]
    start = None
    if vector is not None:
        start = vector @ p["start.weight"].T + p["start.bias"]
    for layer in copy.deepcopy(model.layers):
        begin = None
        if start is not None:
            shape = (layer.num_layers * (1 + layer.bidirectional), layer.hidden_size)
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
    for mode in (True, False):
        loss, _ = model.train(mode).loss(x, targets, weights=weights, vector=vector)
        expected = cases.plain_loss(model.loss_name, outputs, targets, weights)
        assert loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("kind", "segment"), [
    (kind, segment) for kind, options in KINDS.items() for segment in (None, 2)
    if not (segment and options.get("both"))  # the reverse direction begins at the end
])
def test_every_gradient_against_central_differences(kind, segment):
    model = model_of(kind)
    x, targets, weights, vector = data_of(model)
    dstate = tuple(model(x, vector=vector)[1])
    state = None if vector is not None else copy.deepcopy(dstate)
    options = {"weights": weights, "vector": vector, "segment": segment}
    model.zero_grad()
    model.loss(x, targets, state, **options)
    dx, dstart = model.backward(dstate=dstate, need_dx=True)

    def loss():
        value, after = model.loss(x, targets, state, **options)
        return value + sum((a * d).sum() for a, d in zip(arrays(after), arrays(dstate),
                                                         strict=True))

    for name, param in model.parameters().items():
        cases.assert_close(name, model.grads[name], cases.differences(loss, param), 1e-6)
    assert (dx is None) == (model.symbols is not None)
    if dx is not None:
        cases.assert_close("dx", dx, cases.differences(loss, x), 1e-6)
    if vector is not None:
        cases.assert_close("dvector", dstart, cases.differences(loss, vector), 1e-6)
    else:
        for given, d in zip(arrays(state), arrays(dstart), strict=True):
            cases.assert_close("dstate0", d, cases.differences(loss, given), 1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("segment", [1, 2, 3, 5, 9])
def test_segments_give_the_whole_sequences_loss_and_gradients(segment, weighted):
    model = SequenceModel([LSTM(3, 4, 2, seed=1, **F64), GRU(4, 3, seed=2, **F64)], N, seed=0)
    x, targets, weights, _ = data_of(model)
    results = []
    for option in (None, segment):
        model.zero_grad()
        loss, state = model.loss(x, targets, weights=weights if weighted else None, segment=option)
        dx, dstate = model.backward(need_dx=True)
        results.append([loss, model.flat_grads.copy(), dx, *arrays(state), *arrays(dstate)])
    for whole, parts in zip(*results, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-11, atol=1e-15)


def test_dropout_drops_the_same_when_a_segment_runs_anew():
    model = SequenceModel(LSTM(3, 4, 2, dropout=0.4, seed=1, **F64), N, seed=0)
    x, targets, _, _ = data_of(model)
    before = model.layers[0].masks

    def loss():
        model.layers[0].masks = before
        return model.loss(x, targets, segment=2)[0]

    loss()
    after = model.layers[0].masks
    model.backward()
    assert model.layers[0].masks == after != before
    grads = model.state_dict() | {k: g.copy() for k, g in model.grads.items()}
    for name, param in model.parameters().items():
        cases.assert_close(name, grads[name], cases.differences(loss, param), 1e-6)


def test_a_long_sequence_in_segments_takes_the_memory_of_one():
    rng = np.random.default_rng(0)
    model = SequenceModel(LSTM(1, 16, seed=0), 1, loss="mse", seed=0)
    x = rng.standard_normal((100_000, 1, 1)).astype(np.float32)
    losses, grads, peaks = [], [], []
    for segment in (None, 500):
        model.zero_grad()
        tracemalloc.start()
        losses.append(model.loss(x, x, segment=segment)[0])
        model.backward()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        grads.append(model.flat_grads.copy())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    np.testing.assert_allclose(grads[1], grads[0], rtol=1e-3, atol=1e-5)
    assert peaks[1] < peaks[0] / 8


# ------------------------------------------------------------------------------- step by step


def test_a_stream_is_the_model_step_by_step():
    model = model_of("tags of symbols").eval()
    x, *_ = data_of(model)
    outputs, state = model(x)
    step = model.stream(B)
    for t in range(T):
        np.testing.assert_allclose(step(x[t].astype(np.int32)), outputs[t], rtol=1e-12)
    for a, b in zip(arrays(step.state), arrays(state), strict=True):
        np.testing.assert_array_equal(a, b)
    step.reset()
    assert not any(a.any() for a in arrays(step.state))


def test_generation_feeds_outputs_back():
    model = SequenceModel(layers_of(2), 2, loss="mse", vector_size=3, seed=0).eval()
    rng = np.random.default_rng(0)
    vector, x = rng.standard_normal((B, 3)), rng.standard_normal((B, 2))
    given = model.generate(x, 6, vector=vector)
    assert given.shape == (6, B, 2)
    outputs, _ = model(np.concatenate([x[None], given[:-1]]), vector=vector)
    cases.assert_close("outputs", given, outputs, 1e-12)

    symbols = SequenceModel(layers_of(3), V, symbols=V, seed=0).eval()
    symbols.train().flat[:] *= 3
    symbols.eval()
    drawn = symbols.generate([1, 2, 3], 6, temperature=0)
    logits, _ = symbols(np.concatenate([[[1, 2, 3]], drawn[:-1]]))
    np.testing.assert_array_equal(logits.argmax(-1), drawn)
    a, b, c = (symbols.generate([1, 2, 3], 20, seed=s) for s in (0, 0, 1))
    assert a.tolist() == b.tolist() != c.tolist()

    chances = SequenceModel(layers_of(2), 2, loss="bce", seed=0).eval()
    given = chances.generate(np.zeros((B, 2)), 3)
    logits, _ = chances(np.zeros((1, B, 2)))
    cases.assert_close("chances", given[0], 1 / (1 + np.exp(-logits[0])), 1e-12)


# ---------------------------------------------------------------------------- encoder, decoder


def pair_of():
    encoder = Stack([LSTM(3, 4, seed=1, **F64), GRU(4, 2, seed=2, **F64)], symbols=V, seed=3)
    decoder = SequenceModel([LSTM(2, 4, seed=4, **F64), GRU(4, 2, seed=5, **F64)], V, symbols=V,
                            seed=6)
    return EncoderDecoder(encoder, decoder)


def test_encoder_and_decoder_against_central_differences():
    model = pair_of()
    rng = np.random.default_rng(0)
    source, inputs, targets = (rng.integers(0, V, (n, B)) for n in (7, T, T))
    weights = rng.random((T, B))
    model.loss(source, inputs, targets, weights=weights)
    model.backward()

    def loss():
        return model.loss(source, inputs, targets, weights=weights)[0]

    assert np.abs(model.grads["encoder.embedding.weight"]).max() > 1e-4
    for name, param in model.parameters().items():
        cases.assert_close(name, model.grads[name], cases.differences(loss, param), 1e-6)


def test_the_decoder_runs_freely_from_what_the_encoder_read():
    model = pair_of()
    model.flat *= 2
    rng = np.random.default_rng(0)
    source = rng.integers(0, V, (7, B))
    drawn = model.generate(source, np.zeros(B, int), 5)
    assert model.training
    model.eval()
    _, state = model.encoder(source)
    logits, _ = model.decoder(np.concatenate([np.zeros((1, B), int), drawn[:-1]]), state)
    np.testing.assert_array_equal(logits.argmax(-1), drawn)


# -------------------------------------------------------------------------------- files, copies


def models():
    return [model_of(kind) for kind in KINDS] + [pair_of(), Stack(layers_of(3), seed=0)]


@pytest.mark.parametrize("index", range(len(KINDS) + 2))
def test_a_loaded_or_copied_model_gives_the_same_bits(tmp_path, index):
    model = models()[index]
    files.save_model(model, tmp_path / "m.safetensors")
    loaded = files.load_model(tmp_path / "m.safetensors")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    copies = [loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    rng = np.random.default_rng(0)
    for other in copies:
        assert other.flat.tobytes() == model.flat.tobytes()
        if isinstance(model, EncoderDecoder):
            source = rng.integers(0, V, (4, B))
            one, two = (m.generate(source, np.zeros(B, int), 6) for m in (model, other))
        elif isinstance(model, SequenceModel):
            x, _, _, vector = data_of(model)
            one, two = (m.eval()(x, vector=vector)[0] for m in (model, other))
        else:
            x = rng.standard_normal((T, B, 3))
            one, two = (m.eval()(x)[0] for m in (model, other))
        assert one.tobytes() == two.tobytes()
        assert not np.shares_memory(other.flat, model.flat)


def test_parts_lie_in_one_buffer_under_their_names():
    layer = LSTM(3, 4, seed=0)
    expected = layer.state_dict()
    model = SequenceModel([layer, GRU(4, 2, seed=0)], 1, loss="mse", seed=0)
    assert model.layers[0] is layer
    assert list(model.parameters())[:5] == [
        "layers.0.weight_ih_l0", "layers.0.weight_hh_l0", "layers.0.bias_ih_l0",
        "layers.0.bias_hh_l0", "layers.1.weight_ih_l0"]
    for name, values in expected.items():
        np.testing.assert_array_equal(model.parameters()[f"layers.0.{name}"], values)
    model.flat[:] = 7
    assert (layer.parameters()["weight_hh_l0"] == 7).all()
    assert np.shares_memory(layer.flat_grads, model.flat_grads)
    model.eval()
    with pytest.raises(ValueError, match="read-only"):
        layer.flat[0] = 1


def test_results_are_the_same_bits_on_any_number_of_threads():
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((20, 8, 16)), rng.integers(0, 9, (20, 8))
    threads, results = fastrnn.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            fastrnn.set_num_threads(n)
            model = SequenceModel([LSTM(16, 64, seed=0), GRU(64, 48, seed=1)], 9, seed=2)
            model.loss(x.astype(np.float32), targets, segment=7)
            model.backward()
            results.append(model.flat_grads.tobytes())
    finally:
        fastrnn.set_num_threads(threads)
    assert results[0] == results[1] == results[2]


# -------------------------------------------------------------------------------------- errors

ONE = RNN(3, 3, seed=0)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: SequenceModel([], 2), TypeError, r"layers is \[\], expected recurrent layers"),
        (lambda m: SequenceModel([3], 2), TypeError, r"layers\[0\] is of type int"),
        (lambda m: SequenceModel([{"layer": "ELMAN"}], 2), ValueError, "is 'ELMAN', expected one"),
        (lambda m: SequenceModel([LSTM(2, 3), LSTM(4, 3)], 2), ValueError,
         r"layers\[1\] has input_size 4, expected 3: what layers\[0\] gives"),
        (lambda m: SequenceModel([LSTM(2, 2), LSTM(2, 2, **F64)], 2), ValueError,
         r"layers\[1\] is float64, expected float32 like layers\[0\]"),
        (lambda m: SequenceModel([ONE, ONE], 2), ValueError, "is there twice"),
        (lambda m: SequenceModel(LSTM(2, 3, batch_first=True), 2), ValueError, "has batch_first"),
        (lambda m: SequenceModel(LSTM(2, 3), 0), ValueError, "output_size is 0"),
        (lambda m: SequenceModel(LSTM(2, 3), 2, loss="hinge"), ValueError, "loss is 'hinge'"),
        (lambda m: SequenceModel(LSTM(2, 3), 2, readout="first"), ValueError, "readout is 'first'"),
        (lambda m: SequenceModel(LSTM(2, 3), 2, symbols=5, one_hot=True), ValueError,
         "one_hot with 5 symbols"),
        (lambda m: m(np.zeros((4, 3, 1))), ValueError, r"x has shape \(4, 3, 1\)"),
        (lambda m: m(np.zeros((4, 3, 2), "f")), TypeError, "x is float32, expected float64"),
        (lambda m: m(np.zeros((4, 3, 2)), state=(None,)), TypeError, "one entry for each of 3"),
        (lambda m: m(np.zeros((4, 3, 2)), vector=np.zeros((3, 1))), ValueError,
         "vector is given, expected none: the model has no vector_size"),
        (lambda m: m.loss(np.zeros((4, 3, 2)), np.zeros((4, 3, 1))), ValueError,
         r"SequenceModel.loss: targets has shape \(4, 3, 1\), expected \(4, 3, 4\)"),
        (lambda m: m.loss(np.zeros((4, 3, 2)), np.zeros((4, 3, 4)), weights=[1]), ValueError,
         r"weights has shape \(1,\), expected \(4, 3\)"),
        (lambda m: m.loss(np.zeros((4, 3, 2)), np.zeros((4, 3, 4)), weights=-np.ones((4, 3))),
         ValueError, "weights has numbers from -1.0 to -1.0"),
        (lambda m: m.loss(np.zeros((4, 3, 2)), np.zeros((4, 3, 4)), segment=0), ValueError,
         "segment is 0"),
        (lambda m: m.loss(np.zeros((4, 3, 2)), np.zeros((5, 3, 4)), segment=2), ValueError,
         r"targets has shape \(5, 3, 4\)"),
        (lambda m: m.backward(), RuntimeError, "no call to go back through"),
        (lambda m: m.generate(np.zeros((3, 2)), 4), ValueError, "4 outputs of mse cannot be"),
        (lambda m: EncoderDecoder(m, m), TypeError, "encoder is of type SequenceModel"),
        (lambda m: EncoderDecoder(Stack(LSTM(2, 3)), 5), TypeError, "decoder is of type int"),
        (lambda m: EncoderDecoder(Stack(LSTM(2, 3)), m), ValueError, "expected the same"),
        (lambda m: files.save_model(LSTM(2, 3), "x"), TypeError, "model is LSTM, expected one of"),
    ],
)
def test_errors_name_the_argument(call, error, match):
    model = model_of("numbers")
    before = model.flat.copy()
    with pytest.raises(error, match=match) as raised:
        call(model)
    assert "\n" not in str(raised.value)
    np.testing.assert_array_equal(model.flat, before)
