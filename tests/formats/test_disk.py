"""Disks that are full, closed or cut off: the old file or the new one is there, whole."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import children
import numpy as np
import pytest

import fastrnn
from fastrnn import GRU, SequenceModel, optim
from fastrnn.training import History, checkpoint

TRIALS = int(os.environ.get("FASTRNN_TRIALS", "50"))
NEEDS = {".pt": "torch", ".onnx": "onnx"}
SUFFIXES = ("", ".safetensors", ".pt", ".json", ".onnx", ".checkpoint")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX's limits and signals")

PROGRAM = """
import os, resource, signal, sys
import numpy as np
import fastrnn
from fastrnn import GRU, LSTM, SequenceModel, optim
from fastrnn.training import History, checkpoint

def model(seed):
    return SequenceModel(LSTM(9, 64, seed=seed), 5, loss="mse", seed=seed)

def save(path, seed):
    if path.endswith(".checkpoint"):
        one = model(seed)
        checkpoint.save(path, one, optim.Adam(one), 1e-3, None, History(), {"seed": seed})
    else:
        fastrnn.save(model(seed), path)

def fails(path, seed=1):
    try:
        save(path, seed)
    except OSError as error:
        print(error.errno, error.filename == path)
    else:
        print("saved")
"""


def run(code, *args):
    done = subprocess.run([sys.executable, "-c", PROGRAM + code, *map(str, args)], text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout.splitlines()


def need(suffix):
    pytest.importorskip(NEEDS.get(suffix, "numpy"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("limit", [0, 1, 5000, 50_000])
def test_a_limit_of_file_size_leaves_the_old_file(tmp_path, suffix, limit):
    need(suffix)
    path = tmp_path / f"m{suffix}"
    out = run("""
save(sys.argv[1], 0)
before = open(sys.argv[1], "rb").read()
assert len(before) > 50_000
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
fails(sys.argv[1])
fails(sys.argv[1] + ".new" + sys.argv[3])
assert open(sys.argv[1], "rb").read() == before
""", path, limit, suffix)
    assert out == [f"{errno.EFBIG} True"] * 2
    assert os.listdir(tmp_path) == [path.name]


@pytest.fixture
def small_disk(tmp_path):
    """Return the folder of a file system of 2 MB, and what mounts it again read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("only root may mount a file system")

    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root may mount a file system")
    mount("-t", "tmpfs", "-o", "size=2m", "none")
    yield folder, lambda: mount("-o", "remount,ro")
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_the_old_file(small_disk, suffix):
    need(suffix)
    folder, _ = small_disk
    path = folder / f"m{suffix}"
    out = run("""
save(sys.argv[1], 0)
before = open(sys.argv[1], "rb").read()
free = os.statvfs(sys.argv[1])
with open(sys.argv[1] + ".other", "wb") as file:
    file.write(bytes(free.f_bavail * free.f_bsize - len(before) // 2))
fails(sys.argv[1])
assert open(sys.argv[1], "rb").read() == before
""", path)
    assert out == [f"{errno.ENOSPC} True"]
    assert set(os.listdir(folder)) == {path.name, f"{path.name}.other"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_is_read_only_leaves_the_old_file(small_disk, suffix):
    need(suffix)
    folder, close = small_disk
    path = folder / f"m{suffix}"
    run("save(sys.argv[1], 0)", path)
    before = path.read_bytes()
    close()
    assert run("fails(sys.argv[1]); fails(sys.argv[1] + sys.argv[2])", path, suffix) == [
        f"{errno.EROFS} True"] * 2
    assert path.read_bytes() == before
    assert os.listdir(folder) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_that_is_closed_leaves_the_old_file(tmp_path, suffix):
    """Root may write anywhere, so the process becomes nobody."""
    need(suffix)
    if os.geteuid() == 0:
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
    path = tmp_path / f"m{suffix}"
    run("save(sys.argv[1], 0)", path)
    before = path.read_bytes()
    tmp_path.chmod(0o555)
    out = run("""
save(sys.argv[2], 0)  # imports what nobody may not read
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
fails(sys.argv[1])
""", path, tmp_path.with_name(f"other{suffix}"))
    tmp_path.chmod(0o755)
    assert out == [f"{errno.EACCES} True"]
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_device_is_never_replaced(tmp_path, suffix):
    need(suffix)
    link = tmp_path / f"m{suffix}"
    link.symlink_to("/dev/full")
    before = os.stat("/dev/full")
    model = SequenceModel(GRU(2, 3, seed=0), 1, seed=0)
    if suffix == ".json":
        model = GRU(2, 3, seed=0)
    save = fastrnn.save
    if suffix == ".checkpoint":
        def save(model, path):
            checkpoint.save(path, model, optim.Adam(model), 1e-3, None, History(), {})
    with pytest.raises(OSError, match="'/dev/full' is not an ordinary file, expected a file's"):
        save(model, link)
    after = os.stat("/dev/full")
    assert (before.st_ino, before.st_mode, before.st_rdev) == (
        after.st_ino, after.st_mode, after.st_rdev)
    assert os.listdir(tmp_path) == [link.name]


# ---- killed at any moment ------------------------------------------------------------------------

SAVING = PROGRAM + """
save(sys.argv[1], 0)
print("begun", flush=True)
seed = 0
while True:
    seed = 1 - seed
    save(sys.argv[1], seed)
"""

TRAINING = """
import sys, numpy as np
from fastrnn import GRU, SequenceModel, optim, training
from fastrnn.training import Windows
x = np.sin(np.arange(3000) / 5).astype(np.float32)[:, None]
model = SequenceModel(GRU(1, 64, seed=0), 1, loss="mse", seed=0)
def begun(now):
    if now.steps == 3:
        print("begun", flush=True)
training.fit(model, Windows(x, 10, 4), optim.Adam(model, 1e-3), minutes=1, folder=sys.argv[1],
             validation=Windows(x[:200], 10, 4), validate_every=2, checkpoint_every=1,
             progress=begun)
"""


def whole(path, suffix):
    """Return what tells two whole files apart; reading one that is not whole fails."""
    if suffix == ".checkpoint":
        model = SequenceModel(fastrnn.LSTM(9, 64, seed=5), 5, loss="mse", seed=5)
        return checkpoint.load(path, model, optim.Adam(model))[2]["seed"]
    model = fastrnn.load(path)
    if suffix == ".onnx":
        return model(np.ones((3, 1, 9), np.float32))[0].tobytes()
    return model.layers[0].weight_hh_l0.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_kill_at_any_moment_of_saving(tmp_path, suffix):
    need(suffix)
    path = tmp_path / f"m{suffix}"
    expected = set()
    for seed in (0, 1):
        run(f"save(sys.argv[1], {seed})", path)
        expected.add(whole(path, suffix))
    assert len(expected) == 2
    seen, cut = set(), 0
    for _ in range(TRIALS):
        assert children.cut_off(SAVING, path, signal.SIGKILL, 0.1)[0] == -signal.SIGKILL
        seen.add(whole(path, suffix))
        beside = [other for other in tmp_path.iterdir() if other != path]
        cut += len(beside)
        for other in beside:
            other.unlink()
    assert seen <= expected
    print(f"{suffix}: {TRIALS} kills, {cut} of them while a file was written; "
          f"{len(seen)} of 2 files seen")


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_training(tmp_path):
    cut = 0
    for trial in range(TRIALS):
        folder = tmp_path / str(trial)
        assert children.cut_off(TRAINING, folder, signal.SIGKILL, 0.3)[0] == -signal.SIGKILL
        model = SequenceModel(GRU(1, 64, seed=0), 1, loss="mse", seed=0)
        past, _, _ = checkpoint.load(folder / "latest.safetensors", model, optim.Adam(model))
        assert past.progress.steps == len(past.losses) >= 1
        fastrnn.load(folder / "best.safetensors")
        cut += len(list(folder.iterdir())) - 2
    print(f"{TRIALS} kills, {cut} of them while a file was written")
