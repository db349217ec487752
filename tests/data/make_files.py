"""Writes one file of each kind that fastrnn saves, with inputs and what must come out.

``python tests/data/make_files.py`` is run once for each released version, and makes the folder
``files-X.Y`` beside this file. The folders are never changed afterwards: every later version
loads them all (tests/formats/test_kept_files.py). A folder that exists is refused.

Letters: T steps, B batch, N sequences, I input, V symbols.
"""

from __future__ import annotations

import hashlib
import signal
import tomllib
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn import cells, optim, schedules, training

HERE = Path(__file__).parent
T, B = 5, 3
SPLIT = """
    constant rate = 0.5
    f, c = W x + U h + b
    m = rate * m + (1 - rate) * tanh(c)
    h = sigmoid(f) * h + (1 - sigmoid(f)) * m
"""


def models():
    """Return (model, suffix) by the name of its file."""
    def sequence(*args, **options):
        return fastrnn.SequenceModel(*args, seed=1, **options)

    made = {
        "rnn": fastrnn.RNN(3, 4, 2, nonlinearity="relu", seed=1),
        "rnn_float64": fastrnn.RNN(3, 4, bias=False, dtype=np.float64, seed=1),
        "lstm": fastrnn.LSTM(3, 4, 2, bidirectional=True, seed=1),
        "lstm_float64": fastrnn.LSTM(3, 4, batch_first=True, dtype=np.float64, seed=1),
        "lstm_projected": fastrnn.LSTM(3, 5, proj_size=2, seed=1),
        "gru": fastrnn.GRU(3, 4, 2, dropout=0.3, seed=1),
        "gru_bfloat16_mode": fastrnn.GRU(3, 4, seed=1).eval("bfloat16"),
        "gru_reset_before": fastrnn.GRU(3, 4, reset_after=False, seed=1),
        "rnn_cell": fastrnn.RNNCell(3, 4, nonlinearity="sigmoid", seed=1),
        "lstm_cell": fastrnn.LSTMCell(3, 4, seed=1),
        "gru_cell": fastrnn.GRUCell(3, 4, dtype=np.float64, seed=1),
        "equations": fastrnn.Layer(fastrnn.cell(SPLIT, name="Split", paper="none"), 3, 4, 2,
                                   rate=0.25, seed=1),
        "zoo": fastrnn.Layer(cells.PeepholeLSTM, 3, 4, bidirectional=True, seed=1),
        "zoo_float64": fastrnn.Layer(cells.LEM, 3, 4, dtype=np.float64, seed=1),
        "zoo_fixed": fastrnn.Layer(cells.LeakyESN, 3, 4, seed=1),
        "zoo_antisymmetric": fastrnn.Layer(cells.AntisymmetricRNN, 3, 4, seed=1),
        "stack": fastrnn.Stack([fastrnn.LSTM(3, 4, seed=1),
                                fastrnn.Layer(cells.LiGRU, 4, 2, seed=1)]),
        "stack_symbols": fastrnn.Stack(fastrnn.GRU(3, 4, seed=1), vocab_size=6, seed=1),
        "sequence_classes": sequence(fastrnn.GRU(6, 4, seed=1), 6, vocab_size=6, one_hot=True),
        "sequence_numbers": sequence(fastrnn.LSTM(3, 4, bidirectional=True, seed=1), 2,
                                     loss="mse", readout="last"),
        "sequence_context": sequence([fastrnn.GRU(3, 4, seed=1)], 1, loss="bce", context_size=2),
        "language_bytes": fastrnn.LanguageModel(256, 2, 3, cell="gru", seed=1),
        "language_characters": fastrnn.LanguageModel(
            embedding_size=2, hidden_size=4, num_layers=2, characters="abcdéf", seed=1),
        "language_zoo": fastrnn.LanguageModel(6, 2, 4, cell="minGRU", seed=1),
        "encoder_decoder": fastrnn.EncoderDecoder(
            fastrnn.Stack(fastrnn.LSTM(3, 4, seed=1)),
            sequence(fastrnn.LSTM(2, 4, seed=1), 6, vocab_size=6)),
        "encoder_decoder_shared": shared(),
    }
    suffixes = dict.fromkeys(made, ".safetensors")
    for name, model, suffix in (
            ("other_rtneural", sequence(fastrnn.GRU(3, 4, seed=1), 2, loss="mse"), ".json"),
            ("other_onnx", fastrnn.GRU(3, 4, seed=1), ".onnx"),
            ("other_torch", sequence(fastrnn.LSTM(3, 4, seed=1), 2, loss="mse"), ".pt")):
        made[name], suffixes[name] = model, suffix
    return {name: (model, suffixes[name]) for name, model in made.items()}


def shared():
    """Return an encoder-decoder whose two sides have one layer in common."""
    layer = fastrnn.GRU(6, 4, seed=1)
    return fastrnn.EncoderDecoder(
        fastrnn.Stack(layer, vocab_size=6, one_hot=True),
        fastrnn.SequenceModel(layer, 6, vocab_size=6, one_hot=True, seed=1))


def given_to(model):
    """Return inputs for a model, by name."""
    rng = np.random.default_rng(0)
    if isinstance(model, fastrnn.EncoderDecoder):
        return {"source": inputs_of(model.encoder, rng), "inputs": inputs_of(model.decoder, rng),
                "targets": rng.integers(0, model.decoder.output_size, (T, B))}
    given = {"x": inputs_of(model, rng)}
    if getattr(model, "context_size", None):
        given["context"] = rng.standard_normal((B, model.context_size)).astype(model.dtype)
    return given


def inputs_of(model, rng):
    """Return symbols (T, B) or vectors (T, B, I); of a single cell (B, I)."""
    if getattr(model, "vocab_size", None):
        return rng.integers(0, model.vocab_size, (T, B))
    shape = (B, T) if getattr(model, "batch_first", False) else (T, B)
    if not hasattr(model, "num_layers") and not hasattr(model, "layers"):
        shape = (B,)
    return rng.standard_normal((*shape, model.input_size)).astype(model.dtype)


def results_of(model, given):
    """Return what a model in evaluation mode makes of inputs, as arrays."""
    if isinstance(model, fastrnn.EncoderDecoder):
        p = model.loss(**given, grad=False)
        return [np.array(p.value, model.encoder.dtype), *arrays_in(p.state)]
    given = dict(given)
    return arrays_in(model(given.pop("x"), **given))


def arrays_in(nested):
    """Return the arrays of nested tuples and lists, in order."""
    if isinstance(nested, (tuple, list)):
        return [array for part in nested for array in arrays_in(part)]
    return [np.asarray(nested)]


def fingerprint(model):
    """Return a hash of the bits of all parameters, by their names."""
    found = hashlib.sha256()
    for name, array in model.parameters().items():
        found.update(f"{name} {array.dtype.name} {array.shape}".encode())
        found.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()


# ---- trainings ------------------------------------------------------------------------------


def series():
    """Return a series (T, 1) to learn."""
    return np.sin(np.arange(120) / 5)[:, None]


def trainings():
    """Return the function that starts, or goes on with, a training into a folder, by its name."""
    def adam(folder, **options):
        model = fastrnn.SequenceModel(
            [fastrnn.LSTM(1, 4, 2, dropout=0.3, dtype=np.float64, seed=1)], 1, loss="mse", seed=1)
        return model, fastrnn.fit(
            model, training.Windows(series(), 6, 2), steps=12, folder=folder, clip=0.5,
            optimizer=optim.AdamW(model, 1e-2), schedule=schedules.CosineDecay(),
            validation=(series()[None, :40], series()[None, 1:41]),
            validate_every=2, **options)

    def sgd(folder, **options):
        model = fastrnn.SequenceModel(fastrnn.GRU(1, 3, seed=1), 1, loss="mse", seed=1)
        x = series().reshape(12, 10, 1).astype(np.float32)
        return model, fastrnn.fit(model, x, epochs=3, batch_size=4, folder=folder, seed=3,
                                  optimizer=optim.SGD(model, 0.1, momentum=0.9), **options)

    def rmsprop(folder, **options):
        model = fastrnn.SequenceModel(
            fastrnn.Layer(cells.RecurrentDropoutLSTM, 1, 3, dtype=np.float64, seed=1), 1,
            loss="mse", readout="last", seed=1)
        x = series().reshape(12, 10, 1)
        return model, fastrnn.fit(model, x[:, :-1], x[:, -1], epochs=3, batch_size=4, seed=3,
                                  folder=folder, optimizer=optim.RMSProp(model, 1e-2), **options)

    return {"adam": adam, "sgd": sgd, "rmsprop": rmsprop}


def stop_in_the_middle(now):
    """Interrupt a training after five steps, as Ctrl-C does."""
    if now.steps == 5:
        signal.raise_signal(signal.SIGINT)


# ---- the folder -----------------------------------------------------------------------------


def main():
    """Write the folder of this version."""
    about = tomllib.loads((HERE.parent.parent / "pyproject.toml").read_text())
    folder = HERE / ("files-" + ".".join(about["project"]["version"].split(".")[:2]))
    folder.mkdir()
    kept = {}
    for name, (model, suffix) in models().items():
        notes = {"made": "by make_files"} if suffix == ".safetensors" else None
        fastrnn.save(model, folder / (name + suffix), notes)
        loaded = fastrnn.load(folder / (name + suffix))
        given = given_to(model)
        kept |= {f"{name}/given/{key}": value for key, value in given.items()}
        kept |= {f"{name}/result/{i}": value
                 for i, value in enumerate(results_of(loaded, given))}
        if hasattr(loaded, "parameters"):
            kept[f"{name}/parameters"] = np.array(fingerprint(loaded))
            kept[f"{name}/kind"] = np.array(type(loaded).__name__)
    for name, run in trainings().items():
        model, history = run(None)  # one that never stopped
        run(folder / f"training_{name}", progress=stop_in_the_middle)
        kept |= {f"training_{name}/losses": np.array(history.losses),
                 f"training_{name}/norms": np.array(history.norms)}
        kept |= {f"training_{name}/after/{key}": np.array(value)
                 for key, value in model.parameters().items()}
    np.savez_compressed(folder / "expected.npz", **kept)


if __name__ == "__main__":
    main()
