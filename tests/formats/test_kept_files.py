"""Files of every released version, kept in tests/data/files-X.Y: each later version loads them."""

import importlib.util
import shutil
from pathlib import Path

import cases
import numpy as np
import pytest

import fastrnn
from fastrnn.formats.models import MODELS

DATA = Path(__file__).parent.parent / "data"
FOLDERS = sorted(DATA.glob("files-*"))
NEEDS = {".onnx": "onnx", ".pt": "torch"}

spec = importlib.util.spec_from_file_location("make_files", DATA / "make_files.py")
make_files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_files)

# every file with a name that says from which version it is
FILES = {f"{folder.name}/{path.name}": path for folder in FOLDERS
         for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".npz"}
RUNS = {f"{folder.name}/{path.name}": path for folder in FOLDERS
        for path in sorted(folder.iterdir()) if path.is_dir()}


def expected(path):
    """Return what the folder's table has of a file, by the rest of the names."""
    with np.load(path.parent / "expected.npz") as kept:
        start = path.name.split(".")[0] + "/"
        return {key.removeprefix(start): kept[key] for key in kept.files if key.startswith(start)}


def under(kept, start):
    return {key.removeprefix(start): value for key, value in kept.items() if key.startswith(start)}


def tolerance(dtype, steps=make_files.T, backward=False):
    """Return what rounding may do: the longest sum has at most 16 terms, I + H or G*H."""
    return cases.tolerance(dtype, 16, steps, backward=backward)


def test_every_kind_that_is_saved_has_a_kept_file():
    kinds = {str(expected(path).get("kind")) for path in FILES.values()}
    assert set(MODELS) <= kinds
    assert len(FILES) >= 29
    assert len(RUNS) >= 3


@pytest.mark.parametrize("name", FILES)
def test_a_kept_file_gives_its_outputs(name):
    path = FILES[name]
    if path.suffix in NEEDS:
        pytest.importorskip(NEEDS[path.suffix])
    kept = expected(path)
    model = fastrnn.load(path)
    if "kind" in kept:
        assert type(model).__name__ == kept["kind"]
        assert make_files.fingerprint(model) == kept["parameters"]  # bit for bit
    results = make_files.results_of(model, under(kept, "given/"))
    wanted = list(under(kept, "result/").values())
    assert len(results) == len(wanted)
    for i, (got, want) in enumerate(zip(results, wanted, strict=True)):
        cases.assert_close(f"{name} {i}", got, want, tolerance(want.dtype))


@pytest.mark.parametrize("name", [n for n in FILES if n.endswith(".safetensors")])
def test_a_kept_file_is_written_again(name, tmp_path):
    model = fastrnn.load(FILES[name])
    model.save(tmp_path / "again.safetensors")
    again = fastrnn.load(tmp_path / "again.safetensors")
    assert make_files.fingerprint(again) == make_files.fingerprint(model)
    assert again.config == model.config


@pytest.mark.parametrize("name", RUNS)
def test_a_kept_training_goes_on(name, tmp_path):
    path = RUNS[name]
    kept = expected(path)
    run = make_files.trainings()[path.name.removeprefix("training_")]
    shutil.copytree(path, tmp_path / "run")
    model, history = run(tmp_path / "run", resume=True)
    assert history.losses[:5] == list(kept["losses"][:5])  # these are in the file
    steps = 10 * len(kept["losses"])  # a batch has at most 10 steps of time
    tol = tolerance(model.dtype, steps, backward=True)
    for curve in ("losses", "norms"):
        found, want = np.array(getattr(history, curve)), kept[curve]
        cases.assert_close(curve, found.astype(model.dtype), want.astype(model.dtype), tol)
    for key, want in under(kept, "after/").items():
        cases.assert_close(key, model.parameters()[key], want, tol)


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_is_also_a_model(name):
    for path in sorted(RUNS[name].iterdir()):
        model = fastrnn.load(path)
        assert np.isfinite(model.predict(make_files.series()[None])).all()
