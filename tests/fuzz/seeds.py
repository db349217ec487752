"""The files that fuzzing begins with: kept in the folder beside, made by this module.

Files whose names are hexadecimal were found by runs guided by coverage: they reach other lines.
`python -m tests.fuzz.seeds` makes those that are missing; it needs torch, h5py and onnx.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

__all__ = ["FOLDER", "read"]

FOLDER = Path(__file__).parent / "corpus"
SMALL = Path(__file__).parents[1] / "data" / "small.keras"


def read(name: str) -> dict[str, bytes]:
    """Return the kept files of a loader."""
    return {path.name: path.read_bytes() for path in sorted((FOLDER / name).iterdir())}


def _of(write: object, path: Path) -> bytes:
    write(path)  # type: ignore[operator]
    return path.read_bytes()


def _safetensors(path: Path) -> Iterator[tuple[str, bytes]]:
    import fastrnn
    from fastrnn.formats import safetensors

    gru = fastrnn.GRU(1, 2, bidirectional=True, seed=0)
    pair = fastrnn.EncoderDecoder(fastrnn.Stack(fastrnn.GRU(2, 2, seed=0)),
                                  fastrnn.SequenceModel(fastrnn.GRU(2, 2, seed=0), 3, vocab_size=3))
    for name, model in (("language", fastrnn.LanguageModel(3, 2, 2, seed=0)), ("gru", gru),
                        ("pair", pair), ("cell", fastrnn.LSTMCell(1, 2, seed=0)),
                        ("layer", fastrnn.Layer(fastrnn.cells.LiGRU, 1, 2, seed=0))):
        yield name, _of(model.save, path)
    tensors = gru.state_dict()
    for name, dtype in (("f2", "f2"), ("f8", "f8"), ("i4", "i4")):
        yield name, _of(lambda p, d=dtype: safetensors.write(
            p, {f"rnn.{k}": a.astype(d) for k, a in tensors.items()}, None), path)


def _pt(path: Path) -> Iterator[tuple[str, bytes]]:
    import torch

    model = torch.nn.ModuleDict({"emb": torch.nn.Embedding(3, 2), "rnn": torch.nn.GRU(2, 2),
                                 "fc": torch.nn.Linear(2, 3)})
    for name, saved in (("model", model.state_dict()),
                        ("half", {k: v.half() for k, v in model.state_dict().items()}),
                        ("bfloat16", {"model_state_dict": model.bfloat16().state_dict()}),
                        ("lstm", torch.nn.LSTM(1, 2).state_dict())):
        yield name, _of(lambda p, s=saved: torch.save(s, p), path)
    yield "old", _of(lambda p: torch.save(torch.nn.RNN(1, 2).state_dict(), p,
                                          _use_new_zipfile_serialization=False), path)


def _keras(path: Path) -> Iterator[tuple[str, bytes]]:
    yield "small", SMALL.read_bytes()
    with zipfile.ZipFile(SMALL) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    yield "packed", packed.getvalue()
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    yield "stored", stored.getvalue()


def _h5(path: Path) -> Iterator[tuple[str, bytes]]:
    import h5py

    shapes = {"gru/cell/vars/0": (1, 6), "gru/cell/vars/1": (2, 6), "gru/cell/vars/2": (2, 6),
              "dense/vars/0": (2, 1), "dense/vars/1": (1,)}

    def weights(path: Path) -> None:
        with h5py.File(path, "w") as root:
            for name, shape in shapes.items():
                root[f"layers/{name}"] = np.ones(shape, "f4")

    def whole(path: Path) -> None:
        config = {"class_name": "Sequential", "config": {"layers": [
            {"class_name": "SimpleRNN", "config": {"name": "a", "units": 2}}]}}
        with h5py.File(path, "w", track_order=False) as root:
            root.attrs["model_config"] = json.dumps(config)
            root.attrs["keras_version"] = "2.4.0"
            group = root.create_group("model_weights")
            group.attrs["layer_names"] = [b"a"]
            own = group.create_group("a")
            own.attrs["weight_names"] = [b"k:0", b"r:0", b"b:0"]
            for name, shape in (("k:0", (1, 2)), ("r:0", (2, 2)), ("b:0", (2,))):
                own[name] = np.ones(shape, "f4")

    yield "weights", _of(weights, path)
    yield "whole", _of(whole, path)


def _onnx(path: Path) -> Iterator[tuple[str, bytes]]:
    import fastrnn
    from fastrnn.formats import onnx

    for name, model in (("lstm", fastrnn.LSTM(1, 2, bidirectional=True, seed=0)),
                        ("gru", fastrnn.GRU(1, 2, 2, seed=0)),
                        ("model", fastrnn.LanguageModel(3, 2, 2, cell="rnn", seed=0))):
        yield name, onnx.dumps(model)


def _rtneural(path: Path) -> Iterator[tuple[str, bytes]]:
    import fastrnn

    def lists(a: np.ndarray) -> object:
        return a.round(3).tolist()

    model = fastrnn.SequenceModel([fastrnn.GRU(1, 2, seed=0), fastrnn.LSTM(2, 2, seed=0)], 1,
                                  loss="mse", seed=0)
    path = path.with_suffix(".json")
    yield "model", _of(lambda p: fastrnn.save(model, p), path)
    yield "lstm", _of(lambda p: fastrnn.save(fastrnn.LSTM(1, 2, seed=0), p), path)
    yield "chain", json.dumps({"in_shape": [None, None, 2], "layers": [
        {"type": "dense", "shape": [None, None, 1], "activation": "relu",
         "weights": [[[0.5], [1.5]], [0]]},
        {"type": "prelu", "shape": [None, None, 1], "weights": [[[0.25]]]},
        {"type": "activation", "shape": [None, None, 1], "activation": "elu"}]}).encode()
    yield "tensors", json.dumps({"model_data": {}, "state_dict": {
        f"rec.{name}": lists(a) for name, a in fastrnn.LSTM(1, 2, seed=0).state_dict().items()
    }}).encode()


def _checkpoints(path: Path) -> Iterator[tuple[str, bytes]]:
    from fastrnn import GRU, SequenceModel, optim
    from fastrnn.training import History, checkpoint

    model = SequenceModel(GRU(2, 3, 2, dropout=0.5, seed=0), 1, loss="mse", seed=0)
    history = History([1.0, 2.0], [3.0, 4.0], [0.1, 0.1], 1.0, [1, 2], [(2, 0.5)])
    history.progress.steps = 2
    state = (np.ones((2, 1, 3), np.float32),)
    yield "checkpoint", _of(lambda p: checkpoint.save(
        p, model, optim.Adam(model, 0.1), 0.1, state, history, {"seed": 0, "lr": 0.1}), path)


def _equations(path: Path) -> Iterator[tuple[str, bytes]]:
    from fastrnn.cells import definitions

    for number, (name, definition) in enumerate(definitions().items()):
        if number % 4 == 0:
            yield name, definition.text.encode()


MAKERS = {"safetensors": _safetensors, "pt": _pt, "keras": _keras, "h5": _h5, "onnx": _onnx,
          "rtneural": _rtneural, "checkpoints": _checkpoints, "equations": _equations}

if __name__ == "__main__":
    import tempfile

    for loader, make in MAKERS.items():
        (FOLDER / loader).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            for name, data in make(Path(folder) / "m"):
                if not (FOLDER / loader / name).exists():
                    (FOLDER / loader / name).write_bytes(data)
