"""The main job: text, training, files, and the command line from end to end."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import fastrnn
from fastrnn import checkpoint, cli, files, text, training
from fastrnn.batches import Windows
from fastrnn.language_model import LanguageModel

SMALL = ["--hidden", "32", "--embedding", "8", "--batch", "8", "--bptt", "16"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Return a folder of text with structure to learn: lines that count."""
    folder = tmp_path_factory.mktemp("corpus")
    for k in range(4):
        lines = [f"line {i} of file {k}: def f_{i % 7}(x): return x + {i % 10}" for i in range(300)]
        (folder / f"{k}.txt").write_text("\n".join(lines))
    (folder / "binary").write_bytes(b"\0" * 10000)
    (folder / ".hidden").write_text("x" * 10000)
    return folder


def run_cli(*args, **options):
    return subprocess.run([sys.executable, "-m", "fastrnn.cli", *map(str, args)], text=True,
                          capture_output=True, timeout=120, **options)


# --------------------------------------------------------------------------------------- text


def test_files_of_a_folder_but_hidden_and_binary_ones(corpus):
    assert [f.name for f in text.find_files([corpus])] == ["0.txt", "1.txt", "2.txt", "3.txt"]
    assert text.find_files([corpus / "binary"]) == [corpus / "binary"]  # named: taken as it is
    assert len(text.find_files()) > 100
    assert all(f.suffix == ".py" for f in text.find_files())


def test_reading_joins_all_files_in_an_order_of_the_seed(corpus):
    found = text.find_files([corpus])
    whole = text.read(found, 0)
    assert len(whole) == sum(f.stat().st_size + 1 for f in found)
    np.testing.assert_array_equal(whole, text.read(found, 0))
    assert any(not np.array_equal(whole, text.read(found, s)) for s in range(1, 5))
    train, held_out = text.split(whole)
    assert len(held_out) == len(whole) // 20
    np.testing.assert_array_equal(np.concatenate([train, held_out]), whole)


def test_windows_walk_every_row_once_and_targets_follow():
    data = np.arange(101, dtype=np.uint8)
    windows = Windows(data, 7, 4)
    assert windows.count == 3  # rows of 25
    for i in range(3):
        batch = windows(i)
        (symbols,), targets, first = batch.inputs, batch.targets, batch.first
        assert symbols.dtype == targets.dtype == np.int32
        expected = np.arange(7)[:, None] + 7 * i + 25 * np.arange(4)
        np.testing.assert_array_equal(symbols, expected)
        np.testing.assert_array_equal(targets, expected + 1)
        assert first == (i == 0)
    assert [windows(k).first for k in range(7)] == [True, False, False] * 2 + [True]
    with pytest.raises(ValueError, match="has 101 elements, expected at least 105"):
        Windows(data, 26, 4)


# ----------------------------------------------------------------------------------- training


def small_model(**options):
    return LanguageModel(embedding_size=8, hidden_size=32, seed=0, **options)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_training_lowers_the_loss_on_text_not_seen(corpus, cell):
    train, held_out = text.split(text.read(text.find_files([corpus])))
    model = small_model(cell=cell)
    before = training.evaluate(model, held_out)
    assert 7.5 < before < 8.5  # log2(256)
    done = training.train(model, train, batch_size=8, bptt=16, lr=1e-2, steps=300)
    assert done.stopped == "done"
    assert done.progress.steps == len(done.losses) == 300
    assert done.progress.seen == 300 * 8 * 16
    assert done.progress.share == 1
    assert done.progress.bits < 3
    assert training.evaluate(model, held_out) < 2


def test_training_is_the_same_bits_on_any_number_of_threads(corpus):
    train, _ = text.split(text.read(text.find_files([corpus])))
    results, threads = [], fastrnn.get_num_threads()
    try:
        for n in (1, 2, 3):
            fastrnn.set_num_threads(n)
            model = small_model(num_layers=2, dropout=0.3)
            training.train(model, train, batch_size=8, bptt=16, steps=20)
            results.append(model.flat.tobytes())
    finally:
        fastrnn.set_num_threads(threads)
    assert results[0] == results[1] == results[2]


def test_evaluation_is_the_mean_over_the_whole_text_and_changes_nothing(corpus):
    data = text.read(text.find_files([corpus]))[:1001]
    model = small_model()
    flat = model.flat.copy()
    bits = training.evaluate(model, data, batch_size=1, bptt=100)
    logits, _ = model.eval()(data[:-1, None].astype(int))
    p = np.exp(logits[:, 0].astype(float))
    expected = -np.log2(p[np.arange(1000), data[1:]] / p.sum(-1)).mean()
    assert bits == pytest.approx(expected, rel=1e-5)
    model.train()
    training.evaluate(model, data)
    assert model.training
    np.testing.assert_array_equal(model.flat, flat)
    assert training.evaluate(model.eval("bfloat16"), data) != training.evaluate(model.eval(), data)
    assert np.isfinite(training.evaluate(model, data[:2]))
    with pytest.raises(ValueError, match="1 characters, expected at least 2"):
        training.evaluate(model, data[:1])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "steps is None and minutes is None"),
        ({"steps": 1, "minutes": 1}, "expected one of them"),
        ({"steps": 0}, "steps is 0"),
        ({"minutes": -1}, "minutes is -1"),
        ({"steps": 1, "clip": 0}, "clip is 0"),
        ({"steps": 1, "lr": -1}, "lr is -1"),
        ({"steps": 1, "batch_size": 0}, "batch_size is 0"),
        ({"steps": 1, "bptt": 0}, "bptt is 0"),
        ({"steps": 1, "batch_size": 1000}, "give more or smaller windows"),
    ],
)
def test_errors_of_training(options, match):
    model = small_model()
    before = model.flat.copy()
    with pytest.raises(ValueError, match=match):
        training.train(model, np.zeros(5000, np.uint8), **options)
    np.testing.assert_array_equal(model.flat, before)


def test_a_loss_that_is_not_finite_stops_before_the_step():
    model = small_model()
    model.flat[-1] = np.nan
    before = model.flat.copy()
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        training.train(model, np.zeros(5000, np.uint8), steps=3)
    np.testing.assert_array_equal(model.flat, before)


# -------------------------------------------------------------------------------------- files


def test_a_loaded_model_is_the_same_bits(tmp_path):
    model = small_model(num_layers=2, cell="gru", dropout=0.1)
    files.save_model(model, tmp_path / "m.safetensors", {"why": "a test"})
    other = files.load_model(tmp_path / "m.safetensors")
    assert other.config == model.config
    assert not other.training
    symbols = np.arange(12).reshape(4, 3)
    np.testing.assert_array_equal(other(symbols)[0], model.eval()(symbols)[0])
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    files.save_model(small_model(), path)
    before = path.read_bytes()

    def refuse(*args):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no space"):
        files.save_model(small_model(cell="gru"), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def change_header(data, change):
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data[8 + size :]


def test_hostile_model_files_are_one_clear_error(tmp_path):
    path = tmp_path / "m.safetensors"
    files.save_model(LanguageModel(5, 2, 3, seed=0), path)
    data = path.read_bytes()

    def about(**changes):
        def change(header):
            known = json.loads(header["__metadata__"]["fastrnn"])
            known["config"] |= changes
            header["__metadata__"]["fastrnn"] = json.dumps(known)
        return change_header(data, change)

    def format_3(header):
        header["__metadata__"]["fastrnn"] = json.dumps({"config": {}, "format": 3})

    hostile = {
        "huge": about(hidden_size=10**9), "cell": about(cell="elman"), "more": about(more=1),
        "text": about(symbols="5"), "layers": about(num_layers=10**9),
        "format": change_header(data, format_3),
        "no metadata": change_header(data, lambda h: h.pop("__metadata__")),
        "not ours": change_header(data, lambda h: h["__metadata__"].pop("fastrnn")),
        "renamed": data.replace(b"head.bias", b"head.bios"),
        "header size": (2**62).to_bytes(8, "little") + data[8:],
    }
    hostile |= {f"cut at {n}": data[:n] for n in range(0, len(data), 7)}
    for name, content in hostile.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a (safetensors file|model of fastrnn)") as e:
            files.load_model(path)
        assert str(path) in str(e.value), name
    with pytest.raises(FileNotFoundError):
        files.load_model(tmp_path / "none")


# ------------------------------------------------------------------------------- command line


def test_train_and_sample_from_end_to_end(corpus, tmp_path):
    model = tmp_path / "m.safetensors"
    done = run_cli("train", corpus, *SMALL, "--steps", 300, "--lr", 0.01, "--seed", 1, "-o", model)
    assert done.returncode == 0, done.stderr
    assert re.search(r"4 files, [\d,]+ characters to train on, [\d,]+ held out", done.stdout)
    assert float(re.search(r"held-out text: ([\d.]+) bits/char", done.stdout)[1]) < 2
    assert "300 steps" in done.stdout
    assert "a sample:\n\ndef " in done.stdout
    assert "characters/s" in done.stderr
    assert "bits/character" in done.stderr
    first, again = (run_cli("sample", model, "--prompt", "line 1", "--length", 80, "--seed", 2,
                            "--threads", n) for n in (1, 2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    assert first.stdout.startswith("line 1")
    assert len(first.stdout) == len("line 1") + 80 + 1
    other = run_cli("sample", model, "--prompt", "line 1", "--length", 80, "--seed", 3)
    assert other.stdout != first.stdout


def test_steps_and_seed_make_the_same_file(corpus, tmp_path):
    made = []
    for name in "ab":
        path = tmp_path / f"{name}.safetensors"
        assert cli.main(["train", str(corpus), *SMALL, "--steps", "5", "-o", str(path)]) == 0
        made.append(path.read_bytes())
    assert made[0] == made[1]


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(corpus, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    args = ["train", str(corpus), *SMALL, "--steps", "300", "-o"]
    run = ["--folder", str(tmp_path / "run"), "--save-every", "100"]
    whole, rest = tmp_path / "whole.safetensors", tmp_path / "rest.safetensors"
    assert cli.main([*args, str(whole)]) == 0
    process = subprocess.Popen([sys.executable, "-u", "-m", "fastrnn.cli", *args, str(rest), *run],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "stopped after" in out
    assert cli.main([*args, str(rest), *run, "--resume"]) == 0
    assert "done after 300 steps" in capsys.readouterr().out
    assert files.load_model(rest).flat.tobytes() == files.load_model(whole).flat.tobytes()

    latest = tmp_path / "run" / "latest.safetensors"
    assert (tmp_path / "run" / "best.safetensors").exists()
    history = checkpoint.history(latest)
    assert [step for step, _ in history.validations][-3:] == [100, 200, 300]
    assert len(history.losses) == 300
    assert checkpoint.history(whole) is None
    assert cli.main(["gradflow", str(latest), str(corpus), "--bptt", "30",
                     "-o", str(tmp_path / "drawn")]) == 0
    assert re.search(r"^training: \w+: the gradient's norm has a median of .* clipped above 1 at "
                     r"\d+ of 300 steps", capsys.readouterr().out, re.M)
    assert (tmp_path / "drawn" / "training.png").exists()


@pytest.mark.parametrize("after", [0.0, 0.5])
def test_ctrl_c_stops_cleanly_and_saves(corpus, tmp_path, after):
    model = tmp_path / "m.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "fastrnn.cli", "train", str(corpus), *SMALL, "--minutes", "5",
         "-o", str(model)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stderr.read(1)  # the progress bar is there: training has begun
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "stopped after" in out
    assert "held-out text" in out
    assert files.load_model(model).config["hidden_size"] == 32


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["train", "nowhere"], "no file or folder 'nowhere'"),
        (["train", "EMPTY"], "has 1 bytes, expected at least 40"),
        (["train", "EMPTYDIR"], "no text files in"),
        (["train", "SHORT"], "give more or smaller windows"),
        (["train", "--hidden", "0"], "hidden_size is 0, expected a whole number of at least 1"),
        (["train", "--batch", "0"], "batch_size is 0"),
        (["train", "--lr", "-1"], "lr is -1"),
        (["train", "--minutes", "0"], "minutes is 0"),
        (["train", "--threads", "0"], "n is 0"),
        (["train", "--seed", "-1"], "seed"),
        (["train", "-o", "no/folder/m"], "no folder 'no/folder'"),
        (["train", "-o", "."], "is a folder"),
        (["train", "--resume"], "--resume is given without --folder"),
        (["train", "--folder", "SHORT"], "File exists: .*SHORT"),
        (["train", "--folder", "x", "--save-every", "0"], "every is 0, expected a whole number"),
        (["sample", "nowhere"], "No such file or directory: nowhere"),
        (["sample", "SHORT"], "is not a safetensors file"),
        (["sample", "MODEL", "--prompt", ""], "--prompt is empty"),
        (["sample", "MODEL", "--length", "0"], "length is 0"),
        (["sample", "MODEL", "--temperature", "-1"], "temperature is -1"),
    ],
)
def test_errors_of_the_command_line_are_one_sentence(args, match, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").touch()
    (tmp_path / "EMPTYDIR").mkdir()
    (tmp_path / "SHORT").write_text("short " * 20)
    files.save_model(LanguageModel(256, 2, 3, seed=0), tmp_path / "MODEL")
    before = sorted(p.name for p in tmp_path.iterdir())
    assert cli.main(args) == 1
    err = capsys.readouterr().err
    assert re.search(match, err), err
    lines = [line for line in err.splitlines() if not line.startswith("\r")]
    assert lines[-1].startswith(f"fastrnn {args[0]}: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_gradflow_says_and_draws_what_the_gradient_does(corpus, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    model = tmp_path / "m.safetensors"
    files.save_model(small_model(num_layers=2, cell="gru"), model)
    args = ["gradflow", str(model), str(corpus), "--bptt", "30", "-o", str(tmp_path / "drawn")]
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^layer [01]: \w+: \|dL/dh\| changes by", out, re.M)) == 2
    assert re.search(r"^effective memory: ", out, re.M)
    drawn = {p.name for p in (tmp_path / "drawn").iterdir()}
    assert drawn == {"unfolded.png", "layers.0.norms.png", "layers.0.jacobians.png"} | {
        f"layers.0.{n}.{kind}.png" for n in (0, 1) for kind in ("heatmap", "shares", "saturation")}
    assert cli.main([*args[:3], "--bptt", "100000"]) == 1
    assert "expected at least" in capsys.readouterr().err


def test_info_prints_the_configuration(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for name in ("instruction set", "available", "threads", "numpy", "fastrnn"):
        assert re.search(rf"^{name} +\S", out, re.M), name
    config = fastrnn.show_config("dicts")
    assert config["instruction set"] in config["available"]
    with pytest.raises(ValueError, match="mode is 'loud'"):
        fastrnn.show_config("loud")
