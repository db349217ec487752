"""What tests of models share: one model of every kind, with data for it."""

import numpy as np

from fastrnn import GRU, LSTM, RNN, EncoderDecoder, LanguageModel, SequenceModel, Stack

T, B, V, N = 5, 3, 6, 4
F64 = {"dtype": np.float64}


def layers_of(I, *, both=False):
    """Return three layers of different kinds and sizes, the first stacked itself."""
    return [LSTM(I, 3, 2, bidirectional=both, seed=1, **F64),
            RNN(6 if both else 3, 4, nonlinearity="relu", seed=2, **F64),
            GRU(4, 5, bidirectional=both, seed=3, **F64)]


KINDS = {
    "tags of symbols": {"vocab_size": V, "width": 3},
    "one-hot symbols": {"vocab_size": V, "width": V, "one_hot": True},
    "both directions": {"width": 3, "both": True},
    "a class": {"width": 3, "readout": "last", "both": True},
    "a number": {"width": 3, "readout": "last", "loss": "mse"},
    "numbers": {"width": 2, "loss": "mse"},
    "labels": {"vocab_size": V, "width": 3, "loss": "bce"},
    "from a context": {"vocab_size": V, "width": 3, "context_size": 2},
}


def model_of(kind, layers=layers_of):
    options = dict(KINDS[kind])
    made = layers(options.pop("width"), both=options.pop("both", False))
    return SequenceModel(made, N, seed=4, **options)


def data_of(model, seed=0):
    """Return (x, targets, weights, context) for a model; no weight of the last row counts."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(0, model.vocab_size, (T, B)) if model.vocab_size
         else rng.standard_normal((T, B, model.input_size)))
    rows = (T, B) if model.readout == "every" else (B,)
    targets = {"softmax": rng.integers(0, N, rows), "mse": rng.standard_normal((*rows, N)),
               "bce": rng.random((*rows, N))}[model.loss_name]
    weights = rng.random(rows)
    weights[..., -1] = 0
    context = None if model.context_size is None else rng.standard_normal((B, model.context_size))
    return x, targets, weights, context


def pair_of(*, cells=(LSTM, GRU)):
    first, second = cells
    encoder = Stack([first(3, 4, seed=1, **F64), second(4, 2, seed=2, **F64)], vocab_size=V, seed=3)
    decoder = SequenceModel([first(2, 4, seed=4, **F64), second(4, 2, seed=5, **F64)], V,
                            vocab_size=V, seed=6)
    return EncoderDecoder(encoder, decoder)


def pair_data(seed=0):
    """Return (source, inputs, targets, weights) for `pair_of`."""
    rng = np.random.default_rng(seed)
    return *(rng.integers(0, V, (n, B)) for n in (7, T, T)), rng.random((T, B))


def language_of(cell="lstm", **options):
    sizes = {"vocab_size": 7, "embedding_size": 3, "hidden_size": 5}
    return LanguageModel(**{**sizes, "cell": cell, "dtype": np.float64, "seed": 3, **options})


def some_text(seed=0, symbols=7):
    rng = np.random.default_rng(seed)
    return rng.integers(0, symbols, (4, B)), rng.integers(0, symbols, (4, B))


def arrays(state):
    """Return the arrays of a state of a model, in order."""
    return [a for of in state for a in (of if isinstance(of, tuple) else (of,))]


def grads_of(model):
    """Return copies of a model's gradients, by name."""
    return {name: grad.copy() for name, grad in model.grads.items()}


def scale(model, factor):
    """Multiply every parameter: small models are far from uniform then."""
    for part in model.parts().values():
        part.flat[...] *= factor
    return model


def models():
    """Return models of all kinds by name."""
    return {**{kind: model_of(kind) for kind in KINDS}, "pair": pair_of(),
            "stack": Stack([LSTM(3, 3, 2, seed=1, **F64), GRU(3, 5, seed=3, **F64)], seed=0),
            "language": language_of(num_layers=2),
            "characters": language_of(vocab_size=256, characters="abc")}


def some_output(model):
    """Return something that a model computes."""
    if isinstance(model, EncoderDecoder):
        return model.generate(pair_data()[0], np.zeros(B, int), 6)
    if not isinstance(model, SequenceModel):
        return model(np.random.default_rng(0).standard_normal((T, B, 3)))[0]
    if model.output_size == N:
        x, _, _, context = data_of(model)
        return model(x, context=context)[0]
    return model(some_text(symbols=model.vocab_size)[0])[0]
