"""What saving and loading take: little more than the model, and an error where that is too much."""

import subprocess
import sys

import pytest

import fastrnn

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status")
SIZE = 1500  # units: files of 72 and 36 MB

PROGRAM = """
import gc, resource, sys
import numpy as np
import fastrnn
from fastrnn.formats import load, save
from fastrnn.training import checkpoint
import fastrnn.models, fastrnn.optim

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

def limit(extra):
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + int(extra), -1))

path, SIZE, args = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
fastrnn.save(fastrnn.GRU(2, 3), path + ".small")  # what is imported at first use
fastrnn.load(path + ".small")
"""


def run(code, path, *args):
    done = subprocess.run([sys.executable, "-c", PROGRAM + code, str(path), str(SIZE),
                           *map(str, args)], text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.split("\n")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "m"
    fastrnn.LSTM(SIZE, SIZE, seed=0).save(path)
    return path


@linux
def test_loading_peaks_at_twice_the_file(path):
    peak, = map(int, run("""
reset_peak()
before = status("VmHWM")
model = load(path)
print(status("VmHWM") - before, end="")
""", path))
    assert peak <= 2.05 * path.stat().st_size  # parameters and packed weights
    assert peak >= path.stat().st_size  # it was measured


@linux
def test_saving_takes_no_memory_to_speak_of(path, tmp_path):
    peak, = map(int, run("""
model = fastrnn.LSTM(SIZE, SIZE)
reset_peak()
before = status("VmHWM")
save(model, path)
print(status("VmHWM") - before, end="")
""", tmp_path / "m"))
    assert peak <= 0.02 * path.stat().st_size
    # with a few megabytes left a process saves all the same
    assert run("""
model = fastrnn.LSTM(SIZE, SIZE, seed=0)
gc.collect()
limit(3e6)
save(model, path)
print("saved", end="")
""", tmp_path / "m") == ["saved"]
    assert (tmp_path / "m").read_bytes() == path.read_bytes()


@linux
@pytest.mark.parametrize("times", [0.1, 0.6, 1.2, 2.2, 2.8])
def test_too_little_memory_to_load_is_an_error_or_enough(path, times):
    out = run("""
import os
limit(float(args[0]) * os.path.getsize(path))
try:
    load(path)
    print("loaded", end="")
except MemoryError as error:
    print(error, end="")
""", path, times)
    # twice the gradients' buffer, which takes no memory before it is used, but is counted here
    assert out == [f"not enough memory to load {str(path)!r}"] or (
        times > 2 and out == ["loaded"]), out


@linux
@pytest.mark.parametrize("times", [0.5, 1.5, 3.5])
def test_too_little_memory_for_a_checkpoint_changes_nothing(path, tmp_path, times):
    """Saving may need copies of the optimiser's arrays; that must be an error, never a crash."""
    out = run("""
import os
from fastrnn.training import History
model = fastrnn.LSTM(SIZE // 2, SIZE // 2, seed=0)
optimizer = fastrnn.optim.Adam(model)
checkpoint.save(path, model, optimizer, 1e-3, None, History(), {})
before = open(path, "rb").read(), model.flat.tobytes()
limit(float(args[0]) * model.flat.nbytes)
for call in (lambda: checkpoint.save(path, model, optimizer, 1e-3, None, History(), {"b": 1}),
             lambda: checkpoint.load(path, model, optimizer)):
    try:
        call()
        print("done")
    except MemoryError:
        print("refused")
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert model.flat.tobytes() == before[1]
assert fastrnn.load(path).flat.tobytes() == before[1]
print(sorted(os.listdir(os.path.dirname(path))), end="")
""", tmp_path / "m", times)
    assert set(out[:2]) <= {"done", "refused"}
    assert out[2] == "['m', 'm.small']"
