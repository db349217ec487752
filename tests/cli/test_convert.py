"""`fastrnn convert`: files in, files out, what was not used, and errors of one line."""

import json
import os
import sys
import warnings

import numpy as np
import pytest

import fastrnn
from fastrnn import GRU, SequenceModel, cli
from fastrnn.formats import safetensors

rng = np.random.default_rng(1)


@pytest.fixture
def plain(tmp_path):
    """Return a file with PyTorch's names, and something that no part needs."""
    model = SequenceModel(GRU(1, 5, seed=1), 2, seed=0)
    names = {"layers.0": "net.rnn", "head": "net.out"}
    arrays = fastrnn.formats.pytorch.state_dict(model, names)
    path = tmp_path / "in.safetensors"
    safetensors.write(path, arrays | {"net.norm.weight": np.zeros(3, "f")}, None)
    return path


def test_it_converts_and_says_what_was_not_used(plain, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert cli.main(["convert", str(plain), str(out), "--not-strict", "--loss", "mse"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("model: SequenceModel: GRU(1, 5), 2 outputs, loss 'mse'")
    assert "parameters: 132 of float32" in said
    assert "not used, 1:\n  net.norm.weight\n" in said
    assert f"wrote {out} ({out.stat().st_size:,} bytes)" in said
    other = tmp_path / "out.json"
    assert cli.main(["convert", str(out), str(other)]) == 0
    assert "not used: nothing" in capsys.readouterr().out
    x = rng.standard_normal((4, 3, 1)).astype("f")
    np.testing.assert_allclose(fastrnn.load(other)(x)[0], fastrnn.load(out)(x)[0], rtol=1e-5)


def test_names_in_both_directions(plain, tmp_path):
    out = tmp_path / "out.safetensors"
    assert cli.main(["convert", str(plain), str(out), "--prefix", "net", "--map", "rnn=layers.0",
                     "--map", "norm=", "--names", "layers.0=r", "--names", "head=h"]) == 0
    with safetensors.opened(out, plain=True) as file:
        assert {name.split(".")[0] for name in file.entries} == {"r", "h"}
    assert cli.main(["convert", str(out), str(tmp_path / "t"), "--names", "torch"]) == 0
    with safetensors.opened(tmp_path / "t", plain=True) as file:
        assert "layers.0.weight_ih_l0" in file.entries


def test_twenty_names_of_what_is_not_used_are_shown(plain, tmp_path, capsys):
    with safetensors.opened(plain, plain=True) as file:
        arrays = {name: file.array(name) for name in file.entries}
    arrays |= {f"net.norm.weight_{k:02}": np.zeros(3, "f") for k in range(24)}
    safetensors.write(plain, arrays, None)
    assert cli.main(["convert", str(plain), str(tmp_path / "out"), "--not-strict"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("not used, 25:")
    assert sum(line.startswith("  net.norm.weight") for line in lines) == 20
    assert lines[first + 21:first + 23] == ["  and 5 more", lines[-1]]


@pytest.mark.parametrize(("options", "said"), [
    ([], "no part of a SequenceModel needs ['net.norm.weight']"),
    (["--map", "x"], "--map is 'x', expected two names with = between them"),
    (["--names", "=x"], "--names is '=x', expected two names"),
    (["--names", "head=a", "--names", "head=b"], "--names has 'head' twice"),
    (["--map", "a=head", "--map", "a=body"], "--map has 'a' twice"),
    (["--prefix", "x"], "no tensor is below the prefix 'x'"),
])
def test_an_error_is_one_line_and_nothing_is_written(plain, tmp_path, capsys, options, said):
    out = tmp_path / "out.safetensors"
    assert cli.main(["convert", str(plain), str(out), *options]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("fastrnn convert: ")
    assert said in errors
    assert errors.count("\n") == 1
    assert not out.exists()


def test_options_have_the_words_of_load(plain, tmp_path, capsys):
    for option in ("--loss", "--readout", "--nonlinearity"):
        with pytest.raises(SystemExit):
            cli.main(["convert", str(plain), str(tmp_path / "out"), option, "first"])
        assert f"{option}: invalid choice: 'first'" in capsys.readouterr().err


def test_files_that_cannot_be(plain, tmp_path, capsys, monkeypatch):
    assert cli.main(["convert", str(tmp_path / "no"), str(tmp_path / "out")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert cli.main(["convert", str(plain), str(plain)]) == 1
    assert "is IN and OUT, expected two files" in capsys.readouterr().err
    (tmp_path / "m.json").write_text(json.dumps({"a": 1}))
    assert cli.main(["convert", str(tmp_path / "m.json"), str(tmp_path / "out")]) == 1
    assert "without the lists in_shape and layers" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["convert", str(plain), str(tmp_path / "m.pt"), "--not-strict"]) == 1
    assert "pip install torch" in capsys.readouterr().err


def test_a_chain_of_keras_becomes_a_model_for_pytorch(tmp_path, capsys):
    pytest.importorskip("h5py")
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    with warnings.catch_warnings():  # of Keras with its NumPy backend
        warnings.simplefilter("ignore")
        keras = pytest.importorskip("keras")
        theirs = keras.Sequential([
            keras.layers.Input((None, 3)), keras.layers.GRU(4, return_sequences=True),
            keras.layers.Dense(2)])
        source, out = tmp_path / "m.keras", tmp_path / "m.safetensors"
        theirs.save(source)
        x = rng.standard_normal((2, 5, 3)).astype(np.float32)
        expected = np.asarray(theirs(x))
    assert cli.main(["convert", str(source), str(out), "--names", "torch"]) == 0
    assert "model: SequenceModel" in capsys.readouterr().out
    ours = fastrnn.load(out, loss="mse")
    np.testing.assert_allclose(ours(x.swapaxes(0, 1))[0].swapaxes(0, 1), expected, rtol=2e-5,
                               atol=2e-5)
