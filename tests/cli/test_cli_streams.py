"""Standard output and error of every kind: no encoding, no reader, or none at all."""

import io
import os
import re
import runpy
import subprocess
import sys

import pytest

import fastrnn
from fastrnn import LanguageModel, cli

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shells and pipes of POSIX")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m"
    fastrnn.save(LanguageModel(256, 2, 3, seed=0), path)
    return path


@pytest.fixture
def train(corpus, small):
    return ["train", corpus, *small, "--steps", "5", "-o", "m"]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "shift_jis"])
def test_stdout_of_any_encoding(command, train, model, encoding):
    env = {"PYTHONIOENCODING": encoding}
    for args in (train, ["sample", model, "--prompt", "añ€\U0001f600", "--length", "200"]):
        done = command(*args, env=env)
        assert done.returncode == 0, done.stderr
        done.stdout.decode(encoding)
    whole = command("sample", model, "--prompt", "añ€", "--length", "5", env=env).stdout
    assert whole.startswith("añ€".encode(encoding, "replace"))


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_locales_without_utf8(command, model, locale):
    env = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = command("sample", model, "--prompt", "añ", "--length", "50", env=env)
    assert done.returncode == 0, done.stderr


def test_a_prompt_of_bytes_in_any_encoding(command, model):
    done = command("sample", model, "--prompt", b"caf\xe9", "--length", "30")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().startswith("caf�")
    # the model has read the byte itself, not what stands for it
    sampled = fastrnn.load(model).sample(b"caf\xe9", 30, 0.7, 0)
    assert done.stdout.decode() == (b"caf\xe9" + sampled).decode(errors="replace") + "\n"


def test_text_in_another_encoding_is_kept_as_it_is(command, small, tmp_path):
    (tmp_path / "latin").write_bytes("déjà vu, déjà lu\n".encode("latin-1") * 500)
    done = command("train", "latin", *small, "--steps", "150", "--lr", "0.01", "-o", "m")
    assert done.returncode == 0, done.stderr
    likeliest = fastrnn.load(tmp_path / "m").sample(b"d", 16, 0)
    assert "déjà".encode("latin-1") in b"d" + likeliest
    done = command("sample", "m", "--prompt", "d", "--length", "16", "--temperature", "0")
    assert "d�j�" in done.stdout.decode()


def test_names_of_files_that_are_not_utf8(command, small, corpus, tmp_path):
    os.link(corpus / "0.txt", os.fsencode(tmp_path) + b"/caf\xe9")
    done = command("train", b"caf\xe9", *small, "--steps", "2", "-o", b"mod\xe8le")
    assert done.returncode == 0, done.stderr
    assert b"mod\xe8le" in os.listdir(os.fsencode(tmp_path))
    done = command("sample", b"mod\xe8le.none")
    assert done.returncode == 1
    assert b"No such file" in done.stderr


# ---- closed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["2>&-", ">&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams(command, train, model, tmp_path, shell):
    done = command(*train, shell=shell)
    assert done.returncode == 0, done.stderr
    assert fastrnn.load(tmp_path / "m").config["hidden_size"] == 32  # nothing else is in the file
    assert ("a sample:" in done.stdout.decode()) == (not re.search(r"(^|\s)>&-", shell))
    for args, status in ((["sample", model], 0), (["sample", "nowhere"], 1), (["--help"], 0),
                         (["train", "--bad"], 2)):
        assert command(*args, shell=shell).returncode == status


@pytest.mark.parametrize("args", [
    ["sample", "MODEL"], ["sample", "MODEL", "--prompt", "x" * 100_000], ["info"], ["--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_ends_a_command_quietly(command, model, args, unbuffered):
    env = {"PYTHONUNBUFFERED": unbuffered}
    args = [model if a == "MODEL" else a for a in args]
    program = ("import subprocess, sys\n"
               "command = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)\n"
               "command.stdout.close()\n"
               "print(command.wait())\n")
    done = subprocess.run(
        [sys.executable, "-c", program, sys.executable, "-m", "fastrnn", *map(str, args)],
        capture_output=True, text=True, timeout=60, env={**os.environ, **env})
    assert done.stderr == ""
    assert done.stdout in ("141\n", "0\n")
    done = command(*args, shell="| head -c 1", env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout) == 1


@pytest.mark.parametrize("shell", ["| head -n 1", "2>&1 | head -c 1",
                                   "2>&1 >/dev/null | head -c 1", "2>&1 | true"])
def test_training_goes_on_when_its_reader_has_gone(command, train, tmp_path, shell):
    done = command(*train, "--folder", "run", shell=shell)
    assert b"Broken" not in done.stderr
    assert b"Traceback" not in done.stderr
    assert fastrnn.load(tmp_path / "m").config["hidden_size"] == 32


def test_a_full_device_is_one_sentence_and_the_model_is_saved(command, train, model, tmp_path):
    for args in (train, ["sample", model], ["info"]):
        done = command(*args, shell=">/dev/full")
        assert done.returncode == 1
        last = done.stderr.decode().splitlines()[-1]
        assert re.fullmatch(r"fastrnn( \w+)?: No space left on device: standard output", last), last
        assert b"Traceback" not in done.stderr
        assert b"Exception ignored" not in done.stderr
    fastrnn.load(tmp_path / "m")


def test_standard_output_may_be_any_text_stream(monkeypatch):
    monkeypatch.setattr(sys, "stdout", shown := io.StringIO())
    assert cli.main(["info"]) == 0
    assert "instruction set" in shown.getvalue()


@pytest.mark.parametrize("module", ["fastrnn.__main__", "fastrnn.torch.__main__"])
def test_a_spawned_process_imports_the_main_module_and_runs_nothing(module, monkeypatch):
    if "torch" in module:
        pytest.importorskip("torch")
    monkeypatch.setattr(sys, "argv", ["fastrnn", "--help"])
    assert callable(runpy.run_module(module, run_name="__mp_main__")["main"])


def test_usage_errors_are_argparse_s(capsys):
    for args in ([], ["fly"], ["train", "--hidden", "x"],
                 ["train", "--minutes", "1", "--steps", "1"]):
        with pytest.raises(SystemExit) as raised:
            cli.main(args)
        assert raised.value.code == 2
        assert "usage: fastrnn" in capsys.readouterr().err
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"fastrnn {fastrnn.__version__}\n"
