"""Interpreters that are set up in another way, and places that are poorer than a usual machine."""

import os
import subprocess
import sys
import sysconfig

import children
import numpy as np
import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc")

# A training, an evaluation and a stream; the words are the same wherever they are computed. Without
# hashlib: with CPython 3.12.1 it makes a program with subinterpreters abort at its end.
WORK = """
import zlib
import numpy as np
import fastrnn
rng = np.random.default_rng(0)
x, y = rng.standard_normal((8, 20, 3)).astype(np.float32), rng.integers(0, 4, (8, 20))
model = fastrnn.SequenceModel(fastrnn.GRU(3, 8, 2, dropout=0.1, seed=0), 4, seed=0)
history = fastrnn.fit(model, x, y, epochs=2, seed=0)
text = fastrnn.LanguageModel(256, 8, 8, seed=0).sample("abc", 20, seed=0)
step = fastrnn.LSTM(3, 8, seed=0).stream()
found = [model.predict(x), step(x[0, :1]), np.array(history.losses)]
print(zlib.crc32(b"".join(np.asarray(a).tobytes() for a in found) + text.encode()))
"""


@pytest.fixture(scope="module")
def expected():
    return children.words(WORK)


@pytest.mark.parametrize("options", [("-O",), ("-OO",), ("-X", "dev"), ("-W", "error"), ("-B",),
                                     ("-X", "faulthandler", "-W", "error"), ("-X", "utf8=0"),
                                     ("-E",), ("-X", "frozen_modules=off")], ids=" ".join)
def test_options_of_the_interpreter_change_nothing(options, expected):
    code = f"import sys; sys.path[:0] = [{str(children.HOME)!r}]\n" + WORK
    assert children.words(code, options=options) == expected


@pytest.mark.parametrize("options", [("-I",), ("-I", "-S"), ("-S",)], ids=" ".join)
def test_an_interpreter_without_site(options, expected):
    numpy_home = os.path.dirname(os.path.dirname(np.__file__))
    paths = [str(children.HOME), numpy_home]
    code = f"import sys; sys.path += {paths!r}\n" + WORK
    assert children.words(code, options=options) == expected


# ---- importing -----------------------------------------------------------------------------------

PROBE = """
import os, signal, sys, threading, warnings, locale, random
import numpy as np, json, hashlib

def seen():
    handlers = {n: signal.getsignal(n) for n in signal.valid_signals()}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with open("/proc/self/status") as file:
        status = [line for line in file if line.startswith(("SigIgn", "SigCgt", "Umask"))]
    return {
        "tasks": len(os.listdir("/proc/self/task")), "threads": threading.active_count(),
        "files": sorted(os.listdir("/proc/self/fd")), "handlers": handlers, "mask": mask,
        "status": status, "environment": dict(os.environ), "filters": list(warnings.filters),
        "folder": os.getcwd(), "here": sorted(os.listdir(".")),
        "recursion": sys.getrecursionlimit(),
        "hooks": [sys.excepthook, sys.displayhook, threading.excepthook, sys.unraisablehook,
                  sys.gettrace(), sys.getprofile()], "path": list(sys.path),
        "meta": list(sys.meta_path), "locale": locale.setlocale(locale.LC_ALL),
        "random": random.getstate(), "numpy": np.random.get_state()[1].tolist(),
        "errors": np.geterr(), "switch": sys.getswitchinterval(),
        "affinity": os.sched_getaffinity(0), "exits": atexit_count(),
        "stdio": [sys.stdin, sys.stdout, sys.stderr],
    }

def atexit_count():
    import atexit
    return atexit._ncallbacks()

before = seen()
opened = []
sys.addaudithook(lambda event, args: opened.append((event, args)) if event in (
    "open", "subprocess.Popen", "os.system", "socket.connect", "os.mkdir", "os.remove",
    "os.rename", "os.putenv", "os.fork", "_thread.start_new_thread", "ctypes.dlopen") else None)
exec(sys.argv[1])
after = seen()
wrong = [key for key in before if before[key] != after[key]]
writes = [args for event, args in opened if event == "open" and isinstance(args[2], int)
          and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)]
others = {event for event, _ in opened} - {"open"}
assert not wrong and not writes and not others, (wrong, writes, others)
"""


@linux
@pytest.mark.parametrize("code", [
    "import fastrnn; [getattr(fastrnn, name) for name in fastrnn.__all__ if name != 'plot']",
    "import fastrnn.training, fastrnn.formats, fastrnn.cli, fastrnn.cells.zoo, fastrnn.gradflow",
    "import fastrnn; fastrnn.LSTM(3, 4)(__import__('numpy').zeros((2, 1, 3), 'f4'))",
], ids=["names", "packages", "a call"])
def test_an_import_has_no_side_effects(tmp_path, code):
    """No threads, files, handlers, variables, filters, seeds: all is as it was."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROBE, code], cwd=tmp_path, capture_output=True, text=True,
        timeout=60, check=False, env=children.environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
    assert os.listdir(tmp_path) == []


# ---- subinterpreters -----------------------------------------------------------------------------

SUB = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import sys
work = sys.argv[1]
first = sys.argv[2] == "first"
if first:
    exec(work)  # NumPy is this interpreter's
for _ in range(2):
    one = interpreters.create()
    code = "import sys; sys.path[:0] = %r; sys.argv = ['']\\n" % (sys.path,)
    code += "try:\\n" + "".join(f"    {line}\\n" for line in work.splitlines())
    code += "except ImportError as error:\\n    print('refused')\\n"
    try:
        failed = interpreters.run_string(one, code)
        if failed is not None:
            print("failed", failed)
    except Exception as error:
        print("failed", error)
    sys.stdout.flush()
    interpreters.destroy(one)
try:
    exec(work)
except ImportError as error:  # NumPy is another interpreter's
    assert not first and "cannot load module more than once per process" in str(error), error
    print("refused")
"""


@linux
@pytest.mark.parametrize("order", ["first", "last"])
def test_subinterpreters_are_right_or_refused(order, expected):
    """NumPy serves the interpreter that imports it first, and refuses others with ImportError.

    CPython refuses both NumPy and the kernels in an interpreter with a GIL of its own (the default
    from 3.12), and the main one is right then.
    """
    done = children.start(SUB, WORK, order)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    found = done.stdout.split()
    assert set(found) <= {expected[0], "refused"}, done.stdout
    assert len(found) == 3 + (order == "first")
    assert expected[0] in (found[0], found[-1])
    if order == "first":
        assert found[0] == found[-1]


# ---- poor places ---------------------------------------------------------------------------------


def test_no_home_and_no_folder_to_write_to(tmp_path, expected):
    """The folder is closed; without a name in /etc/passwd the home is unknown as well."""
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    home = str(tmp_path / "nowhere")
    for changes in ({"HOME": home, "TMPDIR": home, "XDG_CACHE_HOME": home},
                    {"HOME": "", "TMPDIR": "", "PATH": ""}):
        code = f"import os; os.chdir({str(closed)!r})\n" + WORK
        assert children.words(code, **changes) == expected
    assert os.listdir(closed) == []
    closed.chmod(0o755)


@linux
def test_a_working_folder_that_is_gone(tmp_path, expected):
    code = ("import os, sys; folder = sys.argv[1]; os.mkdir(folder); os.chdir(folder);"
            "os.rmdir(folder)\n")
    assert children.words(code + WORK, tmp_path / "gone") == expected


@linux
def test_a_file_system_that_is_read_only(expected):
    """All that is mounted becomes read-only, in a namespace of its own."""
    remount = ("for m in $(awk '$4 !~ /^ro/ {print $2}' /proc/mounts | grep -v '^/proc'); do "
               "mount -o remount,bind,ro $m 2>/dev/null; done; ! touch /tmp/x 2>/dev/null")
    command = ["unshare", "-m", "sh", "-c", f'{remount} && exec "$@"', "sh"]
    try:
        if subprocess.run([*command, "true"], capture_output=True, timeout=30).returncode:
            pytest.skip("only root may make a file system read-only")
    except FileNotFoundError:
        pytest.skip("needs unshare")
    done = subprocess.run([*command, sys.executable, "-c", WORK], capture_output=True, text=True,
                          timeout=60, check=False, env=children.environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == expected


@linux
@pytest.mark.parametrize("extra", [2**20, 2**23, 2**26, 2**28, 2**31])
def test_a_limit_of_address_space(extra):
    """`ulimit -v`: MemoryError or the right result, and after it is lifted the same as ever."""
    words = children.words("""
import resource, sys
import numpy as np
import fastrnn
layer = fastrnn.LSTM(100, 300, seed=0)
x = np.ones((200, 20, 100), np.float32)
def job():
    layer.zero_grad()
    y, _, p = layer.forward(x)
    dx, _ = p.backward(y)
    return b"".join(a.tobytes() for a in (y, dx, *layer.grads.values()))
expected = job()
layer = fastrnn.LSTM(100, 300, seed=0)
with open("/proc/self/status") as file:
    now = next(int(line.split()[1]) for line in file if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]), -1))
try:
    print("right" if job() == expected else "wrong")
except MemoryError as error:
    print("refused")
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert job() == expected
""", extra)
    assert words in (["right"], ["refused"])
    if extra == 2**31:
        assert words == ["right"]


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors of POSIX")
@pytest.mark.parametrize("closed", ["stdout", "stderr", "all", "full"])
def test_closed_streams_of_output(tmp_path, closed):
    """A training reports its progress to nobody; it ends, and its files are whole."""
    numbers = {"stdout": (1,), "stderr": (2,), "all": (0, 1, 2), "full": (2,)}[closed]
    path = tmp_path / "m"
    code = """
import os, sys
for number in map(int, sys.argv[3:]):
    os.close(number)
if sys.argv[2] == "full":
    assert os.open("/dev/full", os.O_WRONLY) == 2
import numpy as np
import fastrnn
x = np.sin(np.arange(400, dtype=np.float32)).reshape(4, 100, 1)
model = fastrnn.SequenceModel(fastrnn.GRU(1, 8, seed=0), 1, loss="mse", seed=0)
fastrnn.fit(model, x, epochs=3, seed=0, progress=True)
fastrnn.save(model, sys.argv[1])
os._exit(0)
"""
    assert children.start(code, path, closed, *numbers).returncode == 0
    import fastrnn

    layer = fastrnn.load(path).layers[0]
    assert np.isfinite(layer.weight_hh_l0).all()


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="other rules")
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_command_whose_output_is_full_or_closed(tmp_path):
    import fastrnn

    path = tmp_path / "m.safetensors"
    fastrnn.LanguageModel(256, 8, 8, seed=0).save(path)
    command = [sys.executable, "-m", "fastrnn", "sample", str(path), "--length", "5000"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
                              check=False, env=children.environment())
    assert done.returncode > 0
    assert "Traceback" not in done.stderr, done.stderr
    assert "No space left" in done.stderr
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` does when it has enough
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60,
                          check=False, env=children.environment())
    os.close(writing)
    assert "Traceback" not in done.stderr, done.stderr
