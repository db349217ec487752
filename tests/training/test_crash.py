"""Training and saving that are cut off at any moment leave whole files.

FASTRNN_TRIALS=200 makes as many trials as docs/performance.md reports, each at another moment.
"""

import os
import signal
import sys

import children
import numpy as np
import pytest
from runs import values

import fastrnn
from fastrnn import GRU, optim, training
from fastrnn.models import SequenceModel
from fastrnn.training import Windows, checkpoint

TRIALS = int(os.environ.get("FASTRNN_TRIALS", "4"))

TRAINING = """
import sys, numpy as np
from fastrnn import GRU, optim, training
from fastrnn.models import SequenceModel
from fastrnn.training import Windows
x = np.sin(np.arange(3000) / 5).astype(np.float32)[:, None]
model = SequenceModel(GRU(1, 16, seed=0), 1, loss="mse", seed=0)
history = training.fit(
    model, Windows(x, 10, 4), optim.Adam(model, 1e-3), minutes=1, folder=sys.argv[1],
    checkpoint_every=3, progress=lambda now: now.steps == 1 and print("begun", flush=True))
print(history.stopped, history.progress.steps, flush=True)
"""

SAVING = """
import sys
from fastrnn import GRU, save
from fastrnn.models import SequenceModel
models = [SequenceModel(GRU(9, 64, seed=s), 5, seed=s) for s in (0, 1)]
save(models[0], sys.argv[1])
print("begun", flush=True)
while True:
    for model in models[::-1]:
        save(model, sys.argv[1])
"""

posix = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")


@posix
def test_ctrl_c_at_any_moment_leaves_a_checkpoint_of_the_last_step(tmp_path):
    longest = 0.0
    for trial in range(TRIALS):
        folder = tmp_path / str(trial)
        status, out, seconds = children.cut_off(TRAINING, folder, signal.SIGINT, 0.3)
        longest = max(longest, seconds)
        assert status == 0
        stopped, steps = out.split()
        assert stopped == "interrupted"
        history = checkpoint.history(folder / "latest.safetensors")
        assert history.progress.steps == len(history.losses) == int(steps)
        assert np.isfinite(values(fastrnn.load(folder / "latest.safetensors"))).all()
        assert [p.name for p in folder.iterdir()] == ["latest.safetensors"]
        goes_on(folder, int(steps))
    print(f"{TRIALS} trials: stopped within {longest:.2f} s")


def goes_on(folder, steps):
    """Check that a run that goes on is bitwise one that was never interrupted."""
    found = []
    for options in ({"folder": folder, "resume": True}, {}):
        model = SequenceModel(GRU(1, 16, seed=0), 1, loss="mse", seed=0)
        x = np.sin(np.arange(3000) / 5).astype(np.float32)[:, None]
        optimizer = optim.Adam(model, 1e-3)
        history = training.fit(model, Windows(x, 10, 4), optimizer, steps=steps + 3, **options)
        found.append((values(model).tobytes(), history.losses,
                      {name: a.tobytes() for name, a in optimizer.state_dict().items()}))
    assert len(found[0][1]) == steps + 3
    assert found[0] == found[1]


@posix
def test_a_kill_during_a_save_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "model.safetensors"
    whole = {values(SequenceModel(GRU(9, 64, seed=s), 5, seed=s)).tobytes() for s in (0, 1)}
    seen = set()
    for _ in range(TRIALS):
        assert children.cut_off(SAVING, path, signal.SIGKILL, 0.1)[0] == -signal.SIGKILL
        seen.add(values(fastrnn.load(path)).tobytes())
    assert seen <= whole
    beside = [p for p in tmp_path.iterdir() if p != path]
    print(f"{TRIALS} trials: {len(seen)} of 2 files seen, {len(beside)} cut off while they were "
          "written")
