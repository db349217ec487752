"""The command line from end to end: train, sample, gradflow, info."""

import re
import sys

import numpy as np
import pytest

import fastrnn
from fastrnn import LanguageModel, SequenceModel, cli
from fastrnn.cli import train
from fastrnn.training import checkpoint, text


def notes_of(path):
    from fastrnn.formats import safetensors

    with safetensors.opened(path) as file:
        return file.about["notes"]


def test_train_and_sample_from_end_to_end(corpus, small, command, tmp_path):
    model = tmp_path / "m.safetensors"
    done = command("train", corpus, *small, "--steps", 300, "--lr", 0.01, "--seed", 1, "-o", model)
    assert done.returncode == 0, done.stderr
    out, err = done.stdout.decode(), done.stderr.decode()
    assert re.search(r"4 files, [\d,]+ characters to train on, [\d,]+ held out", out)
    assert re.search(r"^LSTM 32: 15,872 parameters, 1 thread, \w+$", out, re.M)
    bits = float(re.search(r"held-out text: ([\d.]+) bits/char", out)[1])
    assert bits < 2
    assert re.search(r"^done after 300 steps and [\d.]+ s: 38,400 characters, [\d,]+ a second$",
                     out, re.M)
    assert f"saved {model}\n" in out
    assert "a sample:\n\ndef " in out
    assert len(out.split("a sample:\n\n")[1]) == 4 + 400 + 1
    assert re.search(r"100%\|.*[\d,]+ characters/s, [\d.]+ bits/character", err)
    notes = notes_of(model)
    assert notes["held-out bits per character"] == pytest.approx(bits, abs=1e-3)
    assert (notes["steps"], notes["characters"], notes["seed"]) == (300, 38400, 1)

    first, again = (command("sample", model, "--prompt", "line 1", "--length", 80, "--seed", 2,
                            "--threads", n).stdout.decode() for n in (1, 2))
    assert first == again
    assert first.startswith("line 1")
    assert len(first) == len("line 1") + 80 + 1
    other = command("sample", model, "--prompt", "line 1", "--length", 80, "--seed", 3)
    assert other.stdout.decode() != first


def test_steps_and_seed_make_the_same_file(corpus, small, tmp_path):
    made = []
    for name in "ab":
        path = tmp_path / f"{name}.safetensors"
        assert cli.main(["train", str(corpus), *small, "--steps", "5", "-o", str(path)]) == 0
        made.append(path.read_bytes())
    assert made[0] == made[1]


def test_sampling_from_few_characters(tmp_path, capsys):
    model = tmp_path / "m"
    fastrnn.save(LanguageModel(256, 2, 3, seed=0), model)
    args = ["sample", str(model), "--length", "50", "--temperature", "100"]
    shown = {}
    for name, more in (("all", []), ("k", ["--top-k", "1"]), ("p", ["--top-p", "1e-9"]),
                       ("likeliest", ["--temperature", "0"])):
        assert cli.main([*args, *more]) == 0
        shown[name] = capsys.readouterr().out
    assert shown["k"] == shown["p"] == shown["likeliest"] != shown["all"]


def test_a_model_of_characters_is_sampled_and_goes_on(tmp_path, capsys):
    model, out = tmp_path / "m", tmp_path / "out"
    text = tmp_path / "text"
    text.write_text("añb€\n" * 300)
    fastrnn.save(LanguageModel(embedding_size=4, hidden_size=8, characters="añb€\n", seed=0), model)
    assert cli.main(["sample", str(model), "--prompt", "añ", "--length", "30"]) == 0
    shown = capsys.readouterr().out
    assert len(shown) == 2 + 30 + 1
    assert set(shown) <= set("añb€\n")
    assert cli.main(["sample", str(model), "--prompt", "ax"]) == 1
    assert "has the character 'x'" in capsys.readouterr().err
    args = ["--bptt", "9", "--batch", "4", "-o"]
    assert cli.main(["train", str(text), "--from", str(model), "--steps", "150", "--lr", "0.03",
                     *args, str(model)]) == 0
    shown = capsys.readouterr().out
    assert float(re.search(r"held-out text: ([\d.]+)", shown)[1]) < 0.5
    assert "añb€\nañb€" in shown.split("a sample:\n\n")[1]
    pytest.importorskip("matplotlib")
    assert cli.main(["gradflow", str(model), str(text), *args, str(out)]) == 0


def test_a_model_of_characters_without_a_line_end(tmp_path, capsys):
    model, texts = tmp_path / "m", [tmp_path / "a", tmp_path / "b"]
    for path in texts:
        path.write_text("abc " * 100)
    fastrnn.save(LanguageModel(embedding_size=2, hidden_size=3, characters="abc ", seed=0), model)
    assert cli.main(["sample", str(model), "--length", "9"]) == 0
    assert re.fullmatch(r"[abc ]{10}\n", capsys.readouterr().out)
    assert cli.main(["train", *map(str, texts), "--from", str(model), "--steps", "2", "--bptt", "9",
                     "--batch", "4", "-o", str(tmp_path / "out")]) == 0
    assert "2 files, 760 characters to train on, 40 held out" in capsys.readouterr().out


@pytest.mark.parametrize("bptt", [2, 30])
def test_gradflow_says_and_draws_what_the_gradient_does(corpus, tmp_path, capsys, bptt):
    pytest.importorskip("matplotlib")
    model = tmp_path / "m.safetensors"
    fastrnn.save(LanguageModel(embedding_size=8, hidden_size=32, num_layers=2, cell="gru", seed=0),
                 model)
    args = ["gradflow", str(model), str(corpus), "-o", str(tmp_path / "drawn"), "--bptt"]
    assert cli.main([*args, str(bptt)]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^layer [01]: \w+", out, re.M)) == 2
    assert re.search(r"^effective memory: ", out, re.M)
    drawn = {p.name for p in (tmp_path / "drawn").iterdir()}
    assert drawn == {"unfolded.png", "layers.0.norms.png", "layers.0.jacobians.png"} | {
        f"layers.0.{n}.{kind}.png" for n in (0, 1) for kind in ("heatmap", "shares", "saturation")}


@pytest.mark.parametrize(
    ("args", "match"),
    [(["--bptt", "1"], "--bptt is 1, expected a whole number of at least 2"),
     (["--bptt", "0"], "--bptt is 0"), (["--bptt", "-5"], "--bptt is -5"),
     (["--batch", "0"], "--batch is 0, expected a whole number of at least 1"),
     (["--bptt", "100000"], "has 53,559 characters, expected at least 1,600,001: 16 rows of 100,0"),
     (["-o", "MODEL"], "--output is 'MODEL', which is a file, expected a folder"),
     (["-o", "MODEL/x"], "Not a directory")])
def test_gradflow_refuses_before_it_starts(corpus, tmp_path, capsys, monkeypatch, args, match):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    fastrnn.save(LanguageModel(embedding_size=2, hidden_size=3, seed=0), "MODEL")
    assert cli.main(["gradflow", "MODEL", str(corpus), *args]) == 1
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert re.search(match, err), err
    assert [p.name for p in tmp_path.iterdir()] == ["MODEL"]


def test_gradflow_needs_a_model_alone(capsys):
    with pytest.raises(SystemExit):
        cli.main(["gradflow"])
    assert "the following arguments are required: MODEL\n" in capsys.readouterr().err


def test_gradflow_without_matplotlib_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["gradflow", "m", str(tmp_path)]) == 1
    assert capsys.readouterr() == ("", (
        "fastrnn gradflow: needs matplotlib, expected it to be installed: "
        "pip install matplotlib\n"))


def test_info_prints_the_configuration(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for name in ("instruction set", "available", "threads", "numpy", "fastrnn"):
        assert re.search(rf"^{name} +\S", out, re.M), name
    config = fastrnn.show_config("dicts")
    assert config["instruction set"] in config["available"]
    for mode in ("loud", None):
        with pytest.raises(ValueError, match=f"^show_config: mode is {mode!r}, expected one of"):
            fastrnn.show_config(mode)


@pytest.mark.parametrize("args", [
    ["train", "-o", ""], ["train", "--folder", ""], ["train", "--from", ""], ["sample", ""],
    ["gradflow", ""], ["gradflow", "MODEL", "-o", ""]])
def test_an_empty_name_is_not_the_current_folder(args, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(args)
    assert "it is empty, expected a file or folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- one sentence each ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["train", "nowhere"], "no file or folder 'nowhere'"),
        (["train", ""], "no file or folder '', expected text"),
        (["train", "LONG", ""], "no file or folder ''"),
        (["train", "EMPTY"], r"the text has 0 characters, expected at least 2,156: 32 rows of 64 "),
        (["train", "EMPTY", "--batch", "1", "--bptt", "1"], "0 characters, expected at least 40:"),
        (["train", "EMPTYDIR"], "no text files in 'EMPTYDIR'"),
        (["train", "SHORT"], "the text has 120 characters, expected at least 2,156"),
        (["train", "LONG", "--bptt", "1" + "0" * 400], "text has 6,001 characters, expected at"),
        (["train", "LONG", "--hidden", "0"], "--hidden is 0, expected a whole number of at "),
        (["train", "LONG", "--layers", "1000000000"], "more than there is memory for"),
        (["train", "LONG", "--hidden", "1" + "0" * 30], "more than there is memory for"),
        (["train", "LONG", "--batch", "0"], "--batch is 0"),
        (["train", "LONG", "--bptt", "-3"], "--bptt is -3"),
        (["train", "LONG", "--lr", "-1"], "--lr is -1"),
        (["train", "LONG", "--lr", "nan"], "--lr is nan"),
        (["train", "LONG", "--minutes", "0"], "--minutes is 0"),
        (["train", "LONG", "--steps", "0"], "--steps is 0"),
        (["train", "LONG", "--threads", "0"], "--threads is 0, expected a whole number of at "),
        (["train", "LONG", "--seed", "-1"], "--seed is -1, expected a whole number of at least 0$"),
        (["train", "LONG", "-o", "no/folder/m"], r"No such file or directory: no/folder/m"),
        (["train", "LONG", "-o", "."], "is a folder"),
        (["train", "LONG", "-o", "SHORT/m"], "Not a directory: SHORT/m"),
        (["train", "LONG", "-o", "x" * 300], "File name too long: x"),
        (["train", "LONG", "--resume"], "--resume is given without --folder"),
        (["train", "LONG", "--folder", "SHORT"], "--folder is 'SHORT', which is a file"),
        (["train", "LONG", "--folder", "x", "--checkpoint-every", "0"], "--checkpoint-every is 0"),
        (["train", "LONG", "--folder", "x", "--steps", "0"], "--steps is 0"),
        (["train", "LONG", "--from", "nowhere"], "No such file or directory: nowhere"),
        (["train", "LONG", "--from", "SHORT"], "'SHORT' is not a model of fastrnn"),
        (["train", "LONG", "--from", "NUMBERS"], "'NUMBERS' is a SequenceModel, expected a "),
        (["train", "LONG", "--from", "MODEL", "--hidden", "64"], "--hidden is 64, expected 3, "),
        (["train", "LONG", "--from", "MODEL", "--cell", "gru"], "--cell is gru, expected lstm,"),
        (["sample", "nowhere"], "No such file or directory: nowhere"),
        (["sample", "SHORT"], "'SHORT' is not a model of fastrnn: its content is none"),
        (["sample", "NUMBERS"], "is a SequenceModel, expected a language model of bytes"),
        (["sample", "LAYER"], "is a GRU, expected a language model"),
        (["sample", "SYMBOLS"], "is a LanguageModel, expected a language model of bytes"),
        (["sample", "MODEL", "--prompt", ""], "--prompt is empty"),
        (["sample", "MODEL", "--length", "0"], ": --length is 0"),
        (["sample", "MODEL", "--length", "1" + "0" * 17], "not enough|[Uu]nable to allocate"),
        (["sample", "MODEL", "--temperature", "-1"], ": --temperature is -1"),
        (["sample", "MODEL", "--top-k", "0"], ": --top-k is 0"),
        (["sample", "MODEL", "--top-p", "0"], ": --top-p is 0"),
        (["gradflow", "SYMBOLS", "LONG"], "expected a language model of bytes"),
        (["gradflow", "MODEL", ""], "no file or folder ''"),
    ],
)
def test_errors_are_one_sentence_before_any_work(args, match, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").touch()
    (tmp_path / "EMPTYDIR").mkdir()
    (tmp_path / "SHORT").write_text("short " * 20)
    (tmp_path / "LONG").write_text("long enough \n" * 461 + "to train")
    fastrnn.save(LanguageModel(256, 2, 3, seed=0), "MODEL")
    fastrnn.save(LanguageModel(7, 2, 3, seed=0), "SYMBOLS")
    fastrnn.save(SequenceModel(fastrnn.GRU(2, 3, seed=0), 1, loss="mse", seed=0), "NUMBERS")
    fastrnn.save(fastrnn.GRU(2, 3, seed=0), "LAYER")
    before = sorted(p.name for p in tmp_path.iterdir())
    assert cli.main(args) == 1
    out, err = capsys.readouterr()
    assert re.search(match, err), err
    assert "a sample" not in out
    assert "saved" not in out
    lines = [line for line in err.splitlines() if line and "0%" not in line]
    assert len(lines) == 1
    assert lines[-1].startswith(f"fastrnn {args[0]}: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_threads_beyond_the_cpus_allowed_are_as_many_as_those(tmp_path, capsys):
    from fastrnn._kernels.runtime import cpu_limit

    fastrnn.save(LanguageModel(256, 2, 3, seed=0), tmp_path / "m")
    before = fastrnn.get_num_threads()
    try:
        for n in ("64", "9" * 30):
            assert cli.main(["sample", str(tmp_path / "m"), "--length", "5", "--threads", n]) == 0
            assert fastrnn.get_num_threads() <= cpu_limit()
    finally:
        fastrnn.set_num_threads(before)


def test_an_existing_file_is_replaced(corpus, small, tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"old")
    assert cli.main(["train", str(corpus), *small, "--steps", "1", "-o", str(path)]) == 0
    assert fastrnn.load(path).config["hidden_size"] == 32
    assert checkpoint.history(path) is None
    assert np.isfinite(fastrnn.load(path).head.bias).all()


def test_the_shortest_text_is_just_long_enough():
    for B in (1, 2, 3, 8, 32, 100):
        for T in (1, 2, 5, 64):
            N = train.least(B, T)
            trained, held_out = text.split(np.zeros(N, np.uint8))
            assert len(trained) >= B * T + 1
            assert len(held_out) >= 2
            train.check_length(np.zeros(N, np.uint8), B, T)
            shorter = text.split(np.zeros(N - 1, np.uint8))
            assert len(shorter[0]) < B * T + 1 or len(shorter[1]) < 2
            with pytest.raises(ValueError, match=f"expected at least {N:,}: "):
                train.check_length(np.zeros(N - 1, np.uint8), B, T)
    match = (r"^the text has 1 character, expected at least 40: 1 row of 1 character to train on, "
             "and one in 20 that is held out; give more text, or a smaller --batch or --bptt$")
    with pytest.raises(ValueError, match=match):
        train.check_length(np.zeros(1, np.uint8), 1, 1)
    train.least(10**30, 10**300)  # numbers of any size
