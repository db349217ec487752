"""Models that run freely: what comes out is what goes in, and how symbols are drawn."""

import cases
import numpy as np
import pytest
from kinds import F64, B, V, language_of, layers_of, pair_data, pair_of, scale

import fastrnn
from fastrnn import GRU, LSTM, EncoderDecoder, SequenceModel, Stack
from fastrnn.models.generate import Sampling

# chi-squared of so many degrees of freedom exceeds these once in a thousand; seeds are fixed
CHI = {1: 10.8, 2: 13.8, 3: 16.3, 6: 22.5}


def test_outputs_are_fed_back():
    model = SequenceModel(layers_of(2), 2, loss="mse", context_size=3, seed=0)
    rng = np.random.default_rng(0)
    context, x = rng.standard_normal((B, 3)), rng.standard_normal((B, 2))
    given = model.generate(x, 6, context=context)
    assert given.shape == (6, B, 2)
    outputs, state = model(np.concatenate([x[None], given[:-1]]), context=context)
    np.testing.assert_array_equal(given, outputs)
    on = model.generate(given[-1], 3, state)
    np.testing.assert_array_equal(on, model.generate(x, 9, context=context)[6:])


def test_chances_are_fed_back():
    model = SequenceModel(layers_of(2), 2, loss="bce", seed=0)
    given = model.generate(np.zeros((B, 2)), 3)
    logits, _ = model(np.concatenate([np.zeros((1, B, 2)), given[:-1]]))
    cases.assert_close("chances", given, 1 / (1 + np.exp(-logits)), 1e-12)
    far = SequenceModel(GRU(1, 4, seed=0), 1, loss="bce", seed=0)
    far.head.bias = [-200.0]  # whose exponential overflows float32
    assert not far.generate(np.ones((1, 1), "f4"), 3).any()
    far.head.bias = [200.0]
    assert (far.generate(np.ones((1, 1), "f4"), 3) == 1).all()


@pytest.mark.parametrize("one_hot", [False, True])
def test_the_likeliest_symbol(one_hot):
    model = scale(SequenceModel(layers_of(V if one_hot else 3), V, vocab_size=V, one_hot=one_hot,
                                seed=0), 3)
    for options in ({"temperature": 0}, {"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-300}):
        drawn = model.generate([1, 2, 3], 6, seed=5, **options)
        assert drawn.dtype == np.int32
        logits, _ = model(np.concatenate([[[1, 2, 3]], drawn[:-1]]))
        np.testing.assert_array_equal(logits.argmax(-1), drawn)


def test_seeds(threads):
    model = scale(SequenceModel(layers_of(3), V, vocab_size=V, seed=0), 3)
    found = []
    for n in threads:
        fastrnn.set_num_threads(n)
        found.append(model.generate([1, 2, 3], 20, seed=0).tolist())
    assert all(one == found[0] for one in found)
    assert found[0] != model.generate([1, 2, 3], 20, seed=1).tolist()
    assert model.generate([1, 2, 3], 20, seed=np.int64(0)).tolist() == found[0]
    assert model.generate([1] * 40, 20).tolist() != model.generate([1] * 40, 20).tolist()


def test_no_rows():
    symbols = SequenceModel(GRU(3, 4, seed=0), V, vocab_size=V, seed=0)
    assert symbols.generate([], 4).shape == (4, 0)
    assert symbols.generate(np.zeros(0, int), 4).dtype == np.int32
    reals = SequenceModel(GRU(2, 4, seed=0), 2, loss="mse", seed=0)
    assert reals.generate(np.zeros((0, 2), "f4"), 4).shape == (4, 0, 2)
    pair = pair_of()
    assert pair.generate(np.zeros((3, 0), int), np.zeros(0, int), 4).shape == (4, 0)


def test_first_is_not_changed_and_may_have_any_layout():
    model = SequenceModel(GRU(2, 4, seed=0, **F64), 2, loss="mse", seed=0)
    x = np.arange(6.0).reshape(3, 2)
    expected = model.generate(x, 4)
    for layout in (np.asfortranarray, cases.read_only, cases.misaligned, np.ndarray.tolist):
        np.testing.assert_array_equal(model.generate(layout(x), 4), expected)
    np.testing.assert_array_equal(x, np.arange(6.0).reshape(3, 2))


# ------------------------------------------------------------------------------------- the draws

LOGITS = np.log([[0.4, 0.3, 0.15, 0.1, 0.05, 0.0]], where=[[True] * 5 + [False]],
                out=np.full((1, 6), -np.inf))
DRAWS = 40_000


def probabilities(**options):
    """Return how often each symbol is drawn, and check that against `expected`."""
    rows = np.repeat(LOGITS, DRAWS, 0)
    drawn = Sampling.checked(**({"temperature": 1, "top_k": None, "top_p": 1.0, "seed": 3}
                                | options)).draw(rows)
    assert drawn.dtype == np.int32
    return np.bincount(drawn, minlength=6)


@pytest.mark.parametrize(("options", "expected"), [
    ({}, [0.4, 0.3, 0.15, 0.1, 0.05, 0]),
    ({"temperature": 0.5}, [0.16, 0.09, 0.0225, 0.01, 0.0025, 0]),
    ({"temperature": np.float32(0.5)}, [0.16, 0.09, 0.0225, 0.01, 0.0025, 0]),
    ({"temperature": 2}, np.sqrt([0.4, 0.3, 0.15, 0.1, 0.05, 0])),
    ({"top_k": 1}, [1, 0, 0, 0, 0, 0]),
    ({"top_k": 2}, [4, 3, 0, 0, 0, 0]),
    ({"top_k": np.int8(4)}, [0.4, 0.3, 0.15, 0.1, 0, 0]),
    ({"top_k": 6}, [0.4, 0.3, 0.15, 0.1, 0.05, 0]),
    ({"top_k": 100}, [0.4, 0.3, 0.15, 0.1, 0.05, 0]),
    ({"top_p": 0.39}, [1, 0, 0, 0, 0, 0]),
    ({"top_p": 0.41}, [4, 3, 0, 0, 0, 0]),
    ({"top_p": 0.69}, [4, 3, 0, 0, 0, 0]),
    ({"top_p": 0.71}, [0.4, 0.3, 0.15, 0, 0, 0]),
    ({"top_p": np.float32(0.96)}, [0.4, 0.3, 0.15, 0.1, 0.05, 0]),
    ({"top_p": 1}, [0.4, 0.3, 0.15, 0.1, 0.05, 0]),
    ({"top_p": 1e-12}, [1, 0, 0, 0, 0, 0]),
    ({"top_p": 0.71, "top_k": 2}, [4, 3, 0, 0, 0, 0]),
    ({"top_p": 0.41, "top_k": 5}, [4, 3, 0, 0, 0, 0]),
    ({"top_p": 0.7, "temperature": 0.5}, [16, 9, 0, 0, 0, 0]),  # of the sharper probabilities
])
def test_symbols_are_drawn_with_these_probabilities(options, expected):
    counts, p = probabilities(**options), np.array(expected) / np.sum(expected)
    assert not counts[p == 0].any()
    k = np.count_nonzero(p) - 1
    if k:
        used = p > 0
        chi = ((counts[used] - DRAWS * p[used]) ** 2 / (DRAWS * p[used])).sum()
        assert chi < {4: 18.5}.get(k, CHI.get(k)), counts


def test_at_the_edges():
    halves = np.log([[0.5, 0.25, 0.25]])  # top_p is reached by the first alone
    rows = np.repeat(halves, 500, 0)
    assert not Sampling.checked(1, None, 0.5, 0).draw(rows).any()
    assert set(Sampling.checked(1, None, 0.5000001, 0).draw(rows)) == {0, 1}

    class Zeros:
        def random(self, size):
            return np.zeros(size)

    impossible = np.array([[-np.inf, -np.inf, 1.0, 2.0]])  # are not drawn, not even by 0.0
    assert Sampling(1.0, None, 1.0, Zeros()).draw(impossible).tolist() == [2]


def test_rows_are_drawn_apart():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((50, 7)) * 9
    for options in ({"top_k": 2, "top_p": 1.0}, {"top_k": None, "top_p": 0.8}):
        drawn = np.stack([Sampling.checked(1, options["top_k"], options["top_p"], s).draw(logits)
                          for s in range(200)])
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        for row in range(50):
            order = np.argsort(-p[row])
            allowed = order[:2] if options["top_k"] else order[
                : 1 + np.searchsorted(p[row][order].cumsum(), 0.8)]
            assert set(drawn[:, row]) <= set(allowed.tolist())


def test_a_model_is_drawn_from_with_its_softmax():
    model = language_of()
    logits, _ = model(np.array([[4]]))
    p = np.exp(logits[0, 0] / 0.5)
    p /= p.sum()
    draws = model.generate(np.full(DRAWS, 4), 1, temperature=0.5, seed=0)[0]
    counts = np.bincount(draws, minlength=7)
    assert ((counts - DRAWS * p) ** 2 / (DRAWS * p)).sum() < CHI[6]


def test_logits_that_are_not_finite_are_refused_in_a_sentence():
    model = SequenceModel(GRU(3, 4, seed=0), V, vocab_size=V, seed=0)
    model.head.bias = np.full(V, np.nan)
    with pytest.raises(ValueError, match=r"SequenceModel\.generate: the model's outputs are"):
        model.generate([1], 3)
    model.head.bias = np.where(np.arange(V) == 2, np.inf, 0)
    for options in ({}, {"top_k": 2}, {"top_p": 0.5}):
        with pytest.raises(ValueError, match="outputs are not finite"):
            model.generate([1], 3, **options)


# ---------------------------------------------------------------------------- encoder, decoder


def test_a_decoder_goes_on_from_what_the_encoder_read():
    model = scale(pair_of(), 2)
    source = pair_data()[0]
    drawn = model.generate(source, np.zeros(B, int), 5)
    _, state = model.encoder(source)
    logits, _ = model.decoder(np.concatenate([np.zeros((1, B), int), drawn[:-1]]), state)
    np.testing.assert_array_equal(logits.argmax(-1), drawn)
    assert drawn.tolist() != model.generate(source[::-1], np.zeros(B, int), 5).tolist()
    found = [model.generate(source, np.zeros(B, int), 40, temperature=1.0, seed=s).tolist()
             for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    k = model.generate(source, np.zeros(B, int), 5, temperature=1.0, top_k=1)
    np.testing.assert_array_equal(k, drawn)
    p = model.generate(source, np.zeros(B, int), 5, temperature=1.0, top_p=1e-9)
    np.testing.assert_array_equal(p, drawn)


def test_generating_leaves_out_dropout():
    encoder = Stack(LSTM(3, 8, 2, dropout=0.9, seed=0), vocab_size=V, seed=1)
    decoder = SequenceModel(LSTM(3, 8, 2, dropout=0.9, seed=2), V, vocab_size=V, seed=3)
    for model, args in ((EncoderDecoder(encoder, decoder), (pair_data()[0], np.zeros(B, int), 9)),
                        (decoder, (np.zeros(B, int), 9))):
        before = model.dropout_state
        drawn = model.generate(*args, temperature=0)
        assert model.dropout_state == before
        np.testing.assert_array_equal(drawn, model.eval().generate(*args, temperature=0))
        model.train()


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(("options", "error", "match"), [
    ({"length": 0}, ValueError, "length is 0, expected a whole number of at least 1"),
    ({"length": 2.0}, ValueError, "length is 2.0"),
    ({"temperature": -1}, ValueError, "temperature is -1, expected a number of at least 0"),
    ({"temperature": np.nan}, ValueError, "temperature is nan"),
    ({"temperature": np.inf}, ValueError, "temperature is inf"),
    ({"temperature": "hot"}, ValueError, "temperature is 'hot'"),
    ({"top_k": 0}, ValueError, "top_k is 0, expected a whole number of at least 1"),
    ({"top_k": 1.5}, ValueError, "top_k is 1.5"),
    ({"top_p": 0}, ValueError, "top_p is 0, expected a number above 0"),
    ({"top_p": 1.5}, ValueError, "top_p is 1.5, expected a number from 0 to 1"),
    ({"top_p": np.nan}, ValueError, "top_p is nan"),
    ({"top_p": None}, ValueError, "top_p is None"),
    ({"seed": -1}, ValueError, "seed is -1"),
    ({"seed": "x"}, ValueError, "seed is 'x'"),
    ({"first": [V]}, IndexError, f"first has numbers from {V} to {V}, expected 0 to {V - 1}"),
    ({"first": [-1]}, IndexError, "first has numbers from -1"),
    ({"first": [0.5]}, TypeError, "first is float64, expected whole numbers"),
    ({"first": 3}, ValueError, r"first has shape \(\), expected \(B,\)"),
    ({"first": [[1]]}, ValueError, r"first has shape \(1, 1\), expected \(B,\)"),
    ({"first": "ab"}, TypeError, "first is <U2, expected whole numbers"),
    ({"state": 3}, TypeError, "state is 3, expected a tuple"),
    ({"state": (np.zeros((1, 2, 4)),)}, ValueError, r"state\[0\] has shape \(1, 2, 4\), .*1, 1, 4"),
    ({"context": np.zeros((1, 2))}, ValueError, "context is given, expected none: the model has"),
])
def test_errors_name_the_argument(options, error, match):
    model = SequenceModel(GRU(3, 4, seed=0, **F64), V, vocab_size=V, seed=0)
    args = {"first": [1], "length": 3} | options
    with pytest.raises(error, match=match) as raised:
        model.generate(**args)
    assert str(raised.value).startswith("SequenceModel.generate: ")
    assert "\n" not in str(raised.value)


def test_outputs_that_cannot_be_inputs():
    for model, match in (
            (SequenceModel(GRU(3, 4), 4, loss="mse"), "4 outputs of mse cannot be inputs, .* 3 of"),
            (SequenceModel(GRU(3, 4), 3), "3 outputs of softmax cannot be .* 3 of mse or bce"),
            (SequenceModel(GRU(3, 4), 5, vocab_size=6), "5 outputs of softmax .* 6 of softmax"),
            (SequenceModel(GRU(3, 4), 6, vocab_size=6, loss="bce"), "6 outputs of bce .* of softm"),
            (SequenceModel(GRU(3, 4, bidirectional=True), 6, vocab_size=6), "is bidirectional")):
        first = [1] if model.vocab_size else np.zeros((1, 3), "f4")
        with pytest.raises(ValueError, match=match):
            model.generate(first, 3)
    model = SequenceModel(GRU(3, 4), 6, vocab_size=6, context_size=2)
    with pytest.raises(ValueError, match="neither state nor context is given, expected one"):
        model.generate([1], 3)
    with pytest.raises(ValueError, match=r"context has shape \(3, 2\), expected \(1, 2\)"):
        model.generate([1], 3, context=np.zeros((3, 2), "f4"))
    pair = pair_of()
    with pytest.raises(ValueError, match=r"EncoderDecoder\.generate: first has 2 rows, expected 3"):
        pair.generate(pair_data()[0], [1, 2], 3)
    with pytest.raises(IndexError, match=r"EncoderDecoder\.generate: source has numbers from 9 to"):
        pair.generate([[9]], [1], 3)


def test_parameters_that_are_nan_give_no_symbols_at_temperature_0_either():
    model = fastrnn.LanguageModel(hidden_size=4, embedding_size=2, seed=0)
    model.head.flat[0] = np.nan
    for temperature in (0, 1.0):
        with pytest.raises(ValueError, match="outputs are not finite"):
            model.sample("a", 3, temperature)


@pytest.mark.parametrize("length", [10**15, 2**62, 2**63, 10**30])
def test_more_steps_than_memory_is_said_in_one_sentence(length):
    model = fastrnn.LanguageModel(hidden_size=4, embedding_size=2, seed=0)
    with pytest.raises(MemoryError, match="LanguageModel: there is not enough memory for"):
        model.sample("a", length)
