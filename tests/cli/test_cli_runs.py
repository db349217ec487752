"""Runs that stop, go on, or begin from a model; and places that cannot be written."""

import errno
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

import fastrnn
from fastrnn import LanguageModel, cli
from fastrnn.training import checkpoint, text

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX's files and signals")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0,
                          reason="only root can become nobody")


def values(path):
    return {name: a.tobytes() for name, a in fastrnn.load(path).parameters().items()}


def start(*args, stderr=subprocess.PIPE):
    """Start `fastrnn train`, and return the process when training has begun."""
    process = subprocess.Popen([sys.executable, "-u", "-m", "fastrnn", *map(str, args)],
                               stdout=subprocess.PIPE, stderr=stderr, text=True)
    process.stderr.read(1)  # of the progress bar
    return process


@posix
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(corpus, small, tmp_path, capsys):
    args = ["train", str(corpus), *small, "--steps", "300", "-o"]
    run = ["--folder", str(tmp_path / "run"), "--checkpoint-every", "100"]
    whole, rest = tmp_path / "whole.safetensors", tmp_path / "rest.safetensors"
    rate = ["--lr", "0.01"]  # no default
    assert cli.main([*args, str(whole), *rate]) == 0
    process = start(*args, rest, *run, *rate)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "stopped after" in out
    assert "a sample:" in out
    assert cli.main([*args, str(rest), *run, "--resume"]) == 0
    assert "done after 300 steps" in capsys.readouterr().out
    assert values(rest) == values(whole)

    latest = tmp_path / "run" / "latest.safetensors"
    assert sorted(os.listdir(tmp_path / "run")) == ["best.safetensors", "latest.safetensors"]
    history = checkpoint.history(latest)
    assert [step for step, _ in history.validations][-3:] == [100, 200, 300]
    assert len(history.losses) == 300
    pytest.importorskip("matplotlib")
    assert cli.main(["gradflow", str(latest), str(corpus), "--bptt", "30",
                     "-o", str(tmp_path / "drawn")]) == 0
    assert re.search(r"^training: \w+: .* 300 steps", capsys.readouterr().out, re.M)
    assert (tmp_path / "drawn" / "training.png").exists()


@posix
@pytest.mark.parametrize("after", [0.0, 0.5])
def test_ctrl_c_stops_cleanly_and_saves(corpus, small, tmp_path, after):
    model = tmp_path / "m.safetensors"
    process = start("train", corpus, *small, "--minutes", "5", "-o", model)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "stopped after" in out
    assert "held-out text" in out
    assert fastrnn.load(model).config["hidden_size"] == 32


@posix
def test_ctrl_c_while_numpy_is_loaded_prints_no_traceback(tmp_path):
    program = (
        "import sys\n"
        "import fastrnn.cli\n"
        "assert 'numpy' not in sys.modules\n"
        "import signal\n"
        # a process in the background of a shell is started with SIGINT ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, *args):\n"
        "        if name == sys.argv[1]: signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.exit(fastrnn.cli.main(['train']))\n")
    for module in ("numpy", "fastrnn.cli.options", "fastrnn._kernels.stream", "numpy.random",
                   "fastrnn.training.loop", "fastrnn.formats"):
        done = subprocess.run([sys.executable, "-c", program, module], capture_output=True,
                              text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == 130, (module, done.stderr)
        assert re.fullmatch(r"\nfastrnn( train)?: interrupted\n", done.stderr), done.stderr


# ---- another run than the one before -------------------------------------------------------------


@pytest.fixture
def run(corpus, small, tmp_path):
    """Return the arguments of a run that has had five steps."""
    args = ["train", str(corpus), "--folder", str(tmp_path / "run"), *small, "--lr", "0.01",
            "-o", str(tmp_path / "m")]
    assert cli.main([*args, "--steps", "5"]) == 0
    return args


def refused(args, tmp_path, capsys):
    """Run something that must be refused, and return the sentence; nothing may change."""
    def files():
        return {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}

    before = files()
    capsys.readouterr()
    assert cli.main(args) == 1
    assert files() == before
    err = [line for line in capsys.readouterr().err.splitlines() if line and "%|" not in line]
    assert len(err) == 1
    return err[0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--batch", "4"], r"--resume: the run in '.*run' has another --batch \(8, not 4\)$"),
        (["--bptt", "8"], r"has another --bptt \(16, not 8\)$"),
        (["--seed", "5"], r"has another --seed \(0, not 5\)$"),
        (["--bptt", "8", "--seed", "1"],
         r"has another --bptt \(16, not 8\), another --seed \(0, not 1\)$"),
        (["--hidden", "16"], r"--hidden is 16, expected 32, which '.*latest.*' has, or no --hid"),
        (["--cell", "rnn"], "--cell is rnn, expected lstm, which '.*latest.*' has, or no --cell$"),
    ],
)
def test_resume_refuses_other_options(run, tmp_path, capsys, options, match):
    said = refused([*run, "--resume", "--steps", "9", *options], tmp_path, capsys)
    assert re.search(match, said), said


def test_resume_refuses_another_text(run, corpus, tmp_path, capsys):
    other = tmp_path / "other.txt"
    texts = {"another": b"something else entirely, 0123456789\n" * 600}
    # one character of the same text is another, and so is one that is missing
    whole = b"".join((corpus / f"{k}.txt").read_bytes() + b"\n" for k in range(4))
    texts |= {"one": whole[:-1000] + b"#" + whole[-999:], "shorter": whole[:-1]}
    for content in texts.values():
        other.write_bytes(content)
        args = [str(other) if a == str(corpus) else a for a in run]
        said = refused([*args, "--resume", "--steps", "9"], tmp_path, capsys)
        assert said.endswith("has another text"), said


def test_resume_goes_on_with_another_length_rate_and_place(run, tmp_path, capsys):
    out = str(tmp_path / "again")
    assert cli.main([*run, "--resume", "--steps", "9", "--lr", "0.001", "-o", out]) == 0
    history = checkpoint.history(tmp_path / "run" / "latest.safetensors")
    assert history.progress.steps == len(history.rates) == 9
    assert max(history.rates[5:]) <= 0.001 < max(history.rates)


def test_resume_in_an_empty_folder_begins_and_says_so(corpus, small, tmp_path, capsys):
    folder = str(tmp_path / "new" / "run")
    args = ["train", str(corpus), *small, "--folder", folder, "--resume",
            "--steps", "3", "-o", f"{folder}/models/m"]  # a folder in it is made, too
    assert cli.main(args) == 0
    out, err = capsys.readouterr()
    assert "done after 3 steps" in out
    word = f"fastrnn train: --folder '{folder}' has no latest.safetensors to go on with: a new run"
    assert word in err
    assert cli.main(args) == 0
    assert word not in capsys.readouterr().err


def test_an_earlier_run_is_not_overwritten(run, tmp_path, capsys):
    said = refused([*run, "--steps", "9"], tmp_path, capsys)
    assert re.search(r"--folder '.*run' has an earlier run, expected another folder, or --resume",
                     said), said
    (tmp_path / "run" / "latest.safetensors").unlink()
    assert "has an earlier run" in refused([*run, "--steps", "9"], tmp_path, capsys)


def test_from_goes_on_with_a_model_on_another_text(run, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("something else entirely, 0123456789\n" * 600)
    before, out = values(tmp_path / "m"), tmp_path / "next"
    args = ["train", str(other), "--from", str(tmp_path / "m"), "--batch", "4", "--bptt", "32",
            "-o", str(out)]
    assert cli.main([*args, "--steps", "1", "--lr", "1e-30"]) == 0
    assert "LSTM 32: " in capsys.readouterr().out
    # it began with the model's parameters: a step of no size leaves them
    for name, param in fastrnn.load(out).parameters().items():
        np.testing.assert_array_equal(param, np.frombuffer(before[name], "f4").reshape(param.shape))
    assert cli.main([*args, "--steps", "200", "--hidden", "32", "--cell", "lstm"]) == 0
    bits = float(re.search(r"held-out text: ([\d.]+)", capsys.readouterr().out)[1])
    assert bits < 3
    assert values(tmp_path / "m") == before


def test_from_a_model_into_a_folder_is_resumed(corpus, small, tmp_path, capsys):
    source = tmp_path / "source"
    fastrnn.save(LanguageModel(embedding_size=4, hidden_size=8, cell="gru", seed=7), source)
    args = ["train", str(corpus), "--from", str(source), *small[4:], "--steps", "6", "-o"]
    assert cli.main([*args, str(tmp_path / "whole")]) == 0
    folder = ["--folder", str(tmp_path / "run")]
    short = [a if a != "6" else "3" for a in args]
    assert cli.main([*short, str(tmp_path / "half"), *folder]) == 0
    capsys.readouterr()
    assert cli.main([*args, str(tmp_path / "rest"), *folder, "--resume"]) == 0
    assert "--from is not read again" in capsys.readouterr().err
    assert checkpoint.history(tmp_path / "run" / "latest.safetensors").progress.steps == 6


def test_from_and_output_may_be_one_file(run, corpus, small, tmp_path):
    path = str(tmp_path / "m")
    before = values(path)
    assert cli.main(["train", str(corpus), "--from", path, "--steps", "2", "-o", path]) == 0
    assert values(path) != before


# ---- models that are there, and models that would be lost ----------------------------------------


def test_a_model_of_the_default_name_is_kept_under_another(corpus, small, tmp_path, monkeypatch,
                                                           capsys):
    monkeypatch.chdir(tmp_path)
    args = ["train", str(corpus), *small, "--steps"]
    made = []
    for steps in ("1", "2", "3"):
        assert cli.main([*args, steps]) == 0
        made.append(values("fastrnn-model.safetensors"))
    assert "the earlier fastrnn-model.safetensors is fastrnn-model-2.safetensors now\n" in (
        capsys.readouterr().out)
    assert [values(f"fastrnn-model{n}.safetensors") for n in ("-1", "-2", "")] == made
    assert len(os.listdir()) == 3


@pytest.mark.parametrize("name", ["fastrnn-model.safetensors", "./fastrnn-model.safetensors"])
def test_the_notes_name_the_source_as_it_is_called_in_the_end(corpus, tmp_path, monkeypatch, name):
    from fastrnn.formats import safetensors

    monkeypatch.chdir(tmp_path)
    fastrnn.save(LanguageModel(256, 8, 8, cell="rnn"), name)
    assert cli.main(["train", str(corpus), "--from", name, "--steps", "1", "--bptt", "9"]) == 0
    with safetensors.opened(pathlib.Path("fastrnn-model.safetensors")) as file:
        assert file.about["notes"]["from"] == "fastrnn-model-1.safetensors"


@pytest.mark.parametrize("folder", [False, True])
def test_a_model_whose_loss_is_not_finite_any_more_is_kept(corpus, small, tmp_path, monkeypatch,
                                                           capsys, folder):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "rescued"))
    (tmp_path / "rescued").mkdir()
    (tmp_path / "m").write_bytes(b"old")
    args = ["train", str(corpus), *small, "--steps", "9", "--lr", "1e38", "-o",
            str(tmp_path / "m")]
    assert cli.main([*args, *(["--folder", str(tmp_path / "run")] * folder)]) == 1
    *_, kept, said = capsys.readouterr().err.splitlines()
    assert said.startswith("fastrnn train: the loss is ")
    name = re.fullmatch("fastrnn train: the model after its last step is kept in (.*)", kept)[1]
    assert all(np.isfinite(a).all() for a in fastrnn.load(name).parameters().values())
    assert os.listdir(tmp_path / "rescued") == [os.path.basename(name)]
    assert (tmp_path / "m").read_bytes() == b"old"


def test_a_model_that_no_place_takes_is_one_error(corpus, small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    args = ["train", str(corpus), *small, "--steps", "9", "--lr", "1e38", "-o", str(tmp_path / "m")]
    assert cli.main(args) == 1
    err = capsys.readouterr().err
    assert "the loss is" in err.splitlines()[-1]
    assert "is kept in" not in err


# ---- places that cannot be written --------------------------------------------------------------


# what it needs is imported before: the folder of the package may be closed to nobody
NOBODY = """
import importlib, os, pkgutil, sys
import fastrnn, fastrnn.cli, locale, numpy.random, tqdm
for module in pkgutil.walk_packages(fastrnn.__path__, "fastrnn."):
    if not module.name.endswith(("__main__", "plot", "unfolded", ".torch")):  # with extras
        importlib.import_module(module.name)
os.setgid(65534); os.setuid(65534)
sys.exit(fastrnn.cli.main())
"""


@posix
@root
def test_places_that_nobody_may_write_are_refused_before_training(small):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o777)
        (folder / "closed").mkdir(mode=0o555)
        (folder / "text").write_text("the quick brown fox\n" * 400)
        for args in (["-o", folder / "closed" / "m"],
                     ["--folder", folder / "closed", "-o", folder / "m"],
                     ["--folder", folder / "closed" / "new", "-o", folder / "m"]):
            done = subprocess.run(
                [sys.executable, "-c", NOBODY, "train", folder / "text", *small, "--steps", "5",
                 *args], capture_output=True, text=True, timeout=60, cwd=folder)
            assert done.returncode == 1
            last = done.stderr.splitlines()[-1]
            assert re.search(r"Permission denied: .*closed", last), done.stderr
            assert not re.search(r"[1-9]\d?%", done.stderr), done.stderr  # no step was taken
            assert sorted(os.listdir(folder)) == ["closed", "text"]


@posix
@root
def test_what_cannot_be_read_in_a_folder_is_one_line(small):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o777)
        (folder / "text").write_text("the quick brown fox\n" * 400)
        for closed in ("a", "b"):
            (folder / closed).write_text("text")
            (folder / closed).chmod(0)
        args = [sys.executable, "-c", NOBODY, "train", *small, "--steps", "2", "-o", folder / "m"]
        done, named = (subprocess.run([*args, path], capture_output=True, text=True, timeout=60,
                                      cwd=folder) for path in (folder, folder / "b"))
    assert done.returncode == 0, done.stderr
    assert "1 file, " in done.stdout
    line = "fastrnn train: left out 2 files or folders that could not be read, the first "
    assert done.stderr.startswith(line)
    assert done.stderr.count("left out") == 1
    assert named.returncode == 1
    assert named.stderr == f"fastrnn train: Permission denied: {folder / 'b'}\n"


@pytest.mark.parametrize("name", ["train", "gradflow"])
def test_what_was_left_out_of_a_text_is_said_first(corpus, small, tmp_path, capsys, monkeypatch,
                                                   name):
    pytest.importorskip("matplotlib")
    found = text.search([corpus])
    found.unreadable.append(PermissionError(errno.EACCES, "Permission denied", "closed"))
    monkeypatch.setattr(text, "search", lambda paths: found)
    model = tmp_path / "m"
    fastrnn.save(LanguageModel(embedding_size=2, hidden_size=3, seed=0), model)
    args = {"train": [str(corpus), *small, "--steps", "1", "-o", str(model)],
            "gradflow": [str(model), str(corpus), "-o", str(tmp_path / "drawn"), "--bptt", "2"]}
    assert cli.main([name, *args[name]]) == 0
    assert capsys.readouterr().err.startswith(
        f"fastrnn {name}: left out 1 file or folder that could not be read, the first 'closed': "
        "Permission denied\n")


FULL = """
import os, sys, errno
import fastrnn.cli
from fastrnn.formats import safetensors
place, after = sys.argv[1], int(sys.argv[2])
replace = os.replace
def full(source, target):
    global after
    if os.path.basename(target) == place:
        after -= 1
        if after < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    replace(source, target)
os.replace = full
sys.exit(fastrnn.cli.main(sys.argv[3:]))
"""


@pytest.mark.parametrize(
    ("place", "after", "saved"),
    [("m", 0, False), ("m", 1, True), ("latest.safetensors", 0, True),
     ("latest.safetensors", 1, True), ("best.safetensors", 0, True)])
def test_a_disk_that_is_full_in_the_end_is_one_sentence_with_the_file(
        corpus, small, tmp_path, place, after, saved):
    args = ["train", corpus, *small, "--steps", "10", "--checkpoint-every", "5",
            "--folder", tmp_path / "run", "-o", tmp_path / "m"]
    rescued = tmp_path / "rescued"
    rescued.mkdir()
    done = subprocess.run([sys.executable, "-c", FULL, place, str(after), *map(str, args)],
                          capture_output=True, text=True, timeout=60,
                          env=os.environ | {"TMPDIR": str(rescued)})
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(rf"fastrnn train: No space left on device: .*{place}", last), done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr  # a checkpoint that fails is a sentence too
    kept = re.search(r"the model after its last step is kept in (.*)", done.stderr)
    assert (kept is None) == saved
    if kept is not None:
        assert values(kept[1]) == values(tmp_path / "run" / "latest.safetensors")
    assert len(list(rescued.iterdir())) == (not saved)
    assert ("saved" in done.stdout) == saved
    assert (tmp_path / "m").exists() == saved
    if saved:
        fastrnn.load(tmp_path / "m")
    if place != "m":
        assert "a sample:" in done.stdout  # the work goes on
        assert f"{place}' could not be written" in done.stderr


@pytest.mark.parametrize(("options", "match"), [
    (["-o", "m.pt"], "--output is 'm.pt', expected a name for a safetensors file; `fastrnn conv"),
    (["-o", "M.PTH"], "--output is 'M.PTH', expected a name for a safetensors file"),
    (["-o", "m.onnx"], "--output is 'm.onnx', expected a name for a safetensors file"),
    (["-o", "m.json"], "--output is 'm.json', expected a name for a safetensors file"),
    (["-o", "m.h5"], "--output is 'm.h5', expected a name for a safetensors file"),
    (["--folder", "run", "-o", "run/latest.safetensors"], "a file of the --folder's own"),
    (["--folder", "run", "-o", "run/best.safetensors"], "a file of the --folder's own"),
    (["--folder", "run", "-o", "run/../run/best.safetensors"], "a file of the --folder's own"),
    (["-o", "text"], "a text to train on, expected another file"),
], ids=" ".join)
def test_outputs_that_cannot_be_are_refused_before_training(
        corpus, small, tmp_path, monkeypatch, capsys, options, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("the quick brown fox\n" * 400)
    assert match in refused(["train", str(corpus), "text", *small, "--steps", "2", *options],
                            tmp_path, capsys)
