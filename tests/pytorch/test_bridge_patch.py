"""`patch`: every recurrent module of a process, and programs run by `python -m fastrnn.torch`."""

import os
import py_compile
import runpy
import subprocess
import sys

import pytest
import twins

torch = pytest.importorskip("torch")
bridge = twins.bridge

from torch import _VF, nn  # noqa: E402

FUNCTIONS = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell",
             "rnn_relu_cell")


@pytest.fixture
def ran():
    """Return a function that counts the accelerated calls since it was last called."""
    seen = [twins.counts()[0]]

    def since():
        before, seen[0] = seen[0], twins.counts()[0]
        return seen[0] - before

    return since


def functions():
    return {name: getattr(_VF, name) for name in FUNCTIONS}


def test_patch_and_unpatch_leave_no_trace():
    before, classes, names = functions(), [getattr(nn, kind) for kind in twins.KINDS], set(dir(_VF))
    assert not bridge.is_patched()
    bridge.patch()
    assert bridge.is_patched()
    assert all(getattr(_VF, name) is not before[name] for name in FUNCTIONS)
    assert [getattr(nn, kind) for kind in twins.KINDS] == classes
    bridge.unpatch()
    assert not bridge.is_patched()
    assert functions() == before
    assert set(dir(_VF)) == names


def test_patch_and_unpatch_are_idempotent():
    before = functions()
    bridge.unpatch()
    assert functions() == before
    bridge.patch()
    patched = functions()
    bridge.patch()
    assert functions() == patched
    bridge.unpatch()
    bridge.unpatch()
    assert functions() == before


@pytest.mark.parametrize("single", [False, True], ids=["layer", "cell"])
@twins.per_dtype
@twins.per_cell
def test_modules_made_before_and_after(cell, dtype, single, ran):
    theirs, _ = twins.twins(cell, 3, 5, dtype=dtype, single=single)
    lead = (2,) if single else (4, 2)
    x, hx = twins.normal(*lead, 3, dtype=dtype), twins.state_of(theirs, 2)
    expected = twins.results(theirs, x, hx)
    bridge.patch()
    assert not ran()
    twins.assert_same(twins.results(theirs, x, hx), expected, theirs, 4, 2)
    assert ran() == 1
    later, _ = twins.twins(cell, 3, 5, dtype=dtype, single=single)
    twins.assert_same(twins.results(later, x, hx), expected, theirs, 4, 2)
    assert ran() == 1
    bridge.unpatch()
    twins.results(theirs, x, hx)
    assert not ran()


@twins.per_cell
def test_packed_sequences(cell, ran):
    theirs, _ = twins.twins(cell, 3, 5, 2, bidirectional=True)
    x = nn.utils.rnn.pack_sequence([twins.normal(n, 3, seed=n).detach() for n in (2, 5, 3)],
                                   enforce_sorted=False)
    expected = twins.results(theirs, x)
    bridge.patch()
    twins.assert_same(twins.results(theirs, x), expected, theirs, 5, 3)
    assert ran() == 1


class OwnGRU(nn.GRU):
    def forward(self, x):
        return super().forward(x)[0] * 2


def test_subclasses(ran):
    model, x = OwnGRU(3, 5), torch.randn(4, 2, 3)
    expected = model(x)
    bridge.patch()
    torch.testing.assert_close(model(x), expected)
    assert ran() == 1


def test_a_module_that_calls_the_functions_itself(ran):
    theirs, _ = twins.twins("lstm", 3, 5)
    x = twins.normal(4, 2, 3)
    hx = list(twins.state_of(theirs, 2))
    arguments = (x, hx, theirs._flat_weights, True, 1, 0.0, False, False, False)
    expected = _VF.lstm(*arguments)
    bridge.patch()
    for got, right in zip(_VF.lstm(*arguments), expected, strict=True):
        torch.testing.assert_close(got, right)
    assert ran() == 1


def test_patch_over_accelerate(ran):
    theirs, ours = twins.twins("gru", 3, 5)
    bridge.patch()
    x = twins.normal(4, 2, 3)
    expected = theirs(x)[0]
    torch.testing.assert_close(ours(x)[0], expected)
    torch.testing.assert_close(bridge.accelerate(theirs)(x)[0], expected)
    bridge.unpatch()
    torch.testing.assert_close(theirs(x)[0], expected)


def test_double_backward(ran):
    theirs, _ = twins.twins("lstm", 3, 5)

    def second():
        x = twins.normal(4, 2, 3)
        slope, = torch.autograd.grad(theirs(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), list(theirs.parameters()))

    expected = second()
    bridge.patch()
    torch.testing.assert_close(second(), expected)


def test_bad_calls_are_torchs_errors():
    theirs, _ = twins.twins("lstm", 3, 5)
    bad = [(torch.zeros(4, 2, 4, dtype=torch.float64),), (torch.zeros(4, 2, 3),),
           (torch.zeros(0, 2, 3, dtype=torch.float64),)]
    expected = [twins.outcome(theirs, *arguments) for arguments in bad]
    bridge.patch()
    assert [twins.outcome(theirs, *arguments) for arguments in bad] == expected
    assert twins.outcome(_VF.lstm)[0] is TypeError


def test_mode_never_is_torchs_own(ran):
    theirs, _ = twins.twins("gru", 3, 5)
    bridge.patch()
    with bridge.mode("never"):
        theirs(twins.normal(4, 2, 3))
    assert not ran()


SCRIPT = """
import sys
import torch
from fastrnn import torch as bridge
model = torch.nn.GRU(3, 5).eval()
y, _ = model(torch.zeros(4, 2, 3))
rows = bridge.report().rows
print(__name__, sys.argv, __file__, sum(row.accelerated + row.fallback for row in rows))
sys.exit(int(sys.argv[1]))
"""


def start(*arguments, folder, **changes):
    return subprocess.run([sys.executable, *arguments], cwd=folder, text=True, capture_output=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"} | changes, timeout=60,
                          check=False)


def test_a_script_runs_patched(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    run = start("-m", "fastrnn.torch", "script.py", "3", "--flag", folder=tmp_path)
    assert run.stdout.split() == ["__main__", "['script.py',", "'3',", "'--flag']",
                                  str(tmp_path / "script.py"), "1"], run.stderr
    assert run.returncode == 3


def test_a_script_finds_its_files_after_a_change_of_folder(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "script.py").write_text(
        "import os, sys; os.chdir('/'); print(open(__file__).read() != '', sys.argv[0], __file__)")
    script = os.path.join("below", "script.py")
    run = start("-m", "fastrnn.torch", script, folder=tmp_path)
    assert run.stdout == start(script, folder=tmp_path).stdout, run.stderr
    assert run.stdout.split() == ["True", script, str(tmp_path / script)]


def test_a_script_has_its_own_future_and_may_be_compiled(tmp_path):
    source = "def f(x: int): pass\nprint(f.__annotations__, __loader__.__class__.__name__)"
    (tmp_path / "script.py").write_text(source)
    run = start("-m", "fastrnn.torch", "script.py", folder=tmp_path)
    assert run.stdout == start("script.py", folder=tmp_path).stdout, run.stderr
    py_compile.compile(str(tmp_path / "script.py"), str(tmp_path / "script.pyc"))
    assert "<class 'int'>" in start("-m", "fastrnn.torch", "script.pyc", folder=tmp_path).stdout


def test_a_script_imports_its_neighbours(tmp_path):
    (tmp_path / "neighbour.py").write_text("value = 7")
    (tmp_path / "script.py").write_text("import neighbour; print(neighbour.value)")
    run = start("-m", "fastrnn.torch", "script.py", folder=tmp_path)
    assert run.stdout.split() == ["7"], run.stderr


def test_a_link_to_a_script_imports_the_scripts_neighbours(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "neighbour.py").write_text("value = 7")
    (tmp_path / "below" / "script.py").write_text("import neighbour; print(neighbour.value)")
    (tmp_path / "link.py").symlink_to(tmp_path / "below" / "script.py")
    run = start("-m", "fastrnn.torch", "link.py", folder=tmp_path)
    assert run.stdout.split() == ["7"], run.stderr


def test_a_module_without_a_name_is_wrong_usage(tmp_path):
    run = start("-m", "fastrnn.torch", "-m", folder=tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith("usage:")


@pytest.mark.parametrize("safe", ["", "1"])
def test_a_script_imports_nothing_of_the_folder_it_is_started_in(tmp_path, safe):
    (tmp_path / "below").mkdir()
    (tmp_path / "neighbour.py").write_text("value = 7")
    (tmp_path / "below" / "script.py").write_text("import neighbour")
    run = start("-m", "fastrnn.torch", os.path.join("below", "script.py"), folder=tmp_path,
                PYTHONSAFEPATH=safe)
    assert "No module named 'neighbour'" in run.stderr


def test_a_module_runs_patched(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "program.py").write_text(SCRIPT.rpartition("sys.exit")[0])
    run = start("-m", "fastrnn.torch", "-m", "package.program", "3", folder=tmp_path,
                PYTHONSAFEPATH="")
    name, arguments, _, path, calls = run.stdout.split()
    assert (name, calls) == ("__main__", "1")
    assert arguments == f"['{path}',"
    assert path == str(tmp_path / "package" / "program.py")
    assert run.returncode == 0


def test_a_script_that_raises(tmp_path):
    (tmp_path / "script.py").write_text("raise KeyError('mine')")
    run = start("-m", "fastrnn.torch", "script.py", folder=tmp_path)
    assert run.returncode == 1
    assert "KeyError: 'mine'" in run.stderr


@pytest.mark.parametrize("arguments", [[], ["absent.py"]], ids=["none", "absent"])
def test_no_script(arguments, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fastrnn.torch", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = functions()
    with pytest.raises((SystemExit, OSError)) as caught:
        runpy.run_module("fastrnn.torch", run_name="__main__")
    said = f"{caught.value} {capsys.readouterr()}".lower()
    assert (arguments or ["script"])[0] in said
    bridge.unpatch()
    assert functions() == before


def test_importing_patches_nothing(tmp_path):
    (tmp_path / "script.py").write_text(
        "import torch; before = torch._VF.lstm; import fastrnn.torch; "
        "print(torch._VF.lstm == before, 'lstm' in vars(torch._VF))")
    run = start("script.py", folder=tmp_path)
    assert run.stdout.split() == ["True", "False"], run.stderr


def test_without_pytorch_the_error_says_what_to_install(tmp_path):
    run = start("-c", "import sys; sys.modules['torch'] = None; import fastrnn.torch",
                folder=tmp_path)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: fastrnn.torch needs PyTorch, expected it to be installed: "
        "pip install torch")


def test_fastrnn_alone_imports_no_torch(tmp_path):
    run = start("-c", "import sys, fastrnn; fastrnn.LSTM(2, 3); print('torch' in sys.modules)",
                folder=tmp_path)
    assert run.stdout.split() == ["False"], run.stderr
