"""What changes while a call runs: the process is stopped, moved to other CPUs, or has less of them.

FASTRNN_SECONDS=60 makes each run as long as docs/reliability.md reports.
"""

import contextlib
import hashlib
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import children
import numpy as np
import pytest

import fastrnn
from fastrnn._kernels import runtime

SECONDS = float(os.environ.get("FASTRNN_SECONDS", "1"))
linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")

# Calls that split rows, units and steps between the threads; prints how many there were
PROGRAM = """
import sys, time
import numpy as np
import fastrnn
fastrnn.set_num_threads(int(sys.argv[2]))
wide, deep = fastrnn.GRU(128, 128, seed=0), fastrnn.LSTM(40, 70, 2, bidirectional=True, seed=0)
stream = fastrnn.LSTM(512, 512, seed=0).eval().stream()
x = np.sin(np.arange(100 * 128, dtype=np.float32)).reshape(100, 1, 128)
rows = np.sin(np.arange(50 * 24 * 40, dtype=np.float32)).reshape(50, 24, 40)
long = np.sin(np.arange(3000 * 16 * 128, dtype=np.float32)).reshape(3000, 16, 128)

def job(k):
    found = []
    for layer, given in ((wide, x), (deep, rows), *(((wide, long),) if k % 50 == 0 else ())):
        layer.zero_grad()
        y, _, p = layer.forward(given)
        found += [y, p.backward(y)[0], *layer.grads.values()]
    stream.reset()
    found += [stream(np.ones((1, 512), np.float32)).copy() for _ in range(5)]
    return hash(b"".join(a.tobytes() for a in found))

expected = job(0), job(1)
print("begun", flush=True)
end, count = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < end:
    assert job(count) == expected[count % 50 != 0], count
    count += 1
print(count)
"""


def during(act, seconds=SECONDS, threads=2, **changes):
    """Run the program, and act(pid, k) every few milliseconds; return how often, and its calls."""
    with children.begun(PROGRAM, seconds, threads, **changes) as process:
        count = 0
        while process.poll() is None and count < 1e6:
            act(process.pid, count)
            count += 1
            time.sleep(0.003)
        out, err = process.communicate(timeout=60 + 10 * seconds)
    assert process.returncode == 0, err
    assert int(out) > 0
    return count, int(out)


@linux
@pytest.mark.parametrize("threads", [2, 5])
def test_a_process_that_is_stopped_and_goes_on(threads):
    def act(pid, k):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.02 if k % 10 == 0 else 0.002)
        os.kill(pid, signal.SIGCONT)

    count, calls = during(act, threads=threads, FASTRNN_OVERSUBSCRIBE=str(int(threads > 2)))
    print(f"{threads} threads: stopped {count} times in {calls} calls")


@linux
@pytest.mark.parametrize("threads", [2, 5])
def test_cpus_that_are_taken_and_given(threads):
    """Of the whole process, and of single threads of the pool."""
    cpus = sorted(os.sched_getaffinity(0))

    def act(pid, k):
        some = [cpus[:1], cpus, cpus[-1:], cpus][k % 4]
        tasks = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        for task in tasks if k % 3 else tasks[-1:]:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(task, some)

    count, calls = during(act, threads=threads, FASTRNN_OVERSUBSCRIBE=str(int(threads > 2)))
    print(f"{threads} threads: moved {count} times in {calls} calls")


@pytest.fixture
def group():
    """Return a cgroup (version 1 or 2) with a quota, and what sets it: per cent of one CPU."""
    first, second = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    home = first if (first / "cpu.cfs_quota_us").exists() or first.is_dir() else second
    folder = home / f"fastrnn-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("cgroups cannot be written here")
    try:
        if (folder / "cpu.cfs_quota_us").exists():
            yield folder, lambda share: (folder / "cpu.cfs_quota_us").write_text(
                str(share * 1000) if share else "-1")
        elif (folder / "cpu.max").exists():
            yield folder, lambda share: (folder / "cpu.max").write_text(
                f"{share * 1000} 100000" if share else "max 100000")
        else:
            pytest.skip("cgroups have no quota here")
    finally:
        for _ in range(100):
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.05)


@linux
def test_a_quota_that_changes(group):
    folder, set_share = group

    def act(pid, k):
        if k == 0:
            (folder / "cgroup.procs").write_text(str(pid))
        if k % 10 == 0:
            set_share([30, 100, 150, 0][k // 10 % 4])

    count, calls = during(act)
    print(f"quota changed {count // 10} times in {calls} calls")


@linux
@pytest.mark.skipif(runtime.cpu_limit() < 2, reason="one CPU")
@pytest.mark.parametrize("share", [0, 30, 100, 150])
def test_the_quota_of_the_own_group_is_a_limit(group, share):
    """Not only that of the topmost one, which a process outside of a container is not in."""
    folder, set_share = group
    set_share(share)
    below = folder / "below"
    below.mkdir()
    try:
        code = """
import os, sys
with open(sys.argv[1], "w") as file:
    file.write(str(os.getpid()))
import fastrnn
print(fastrnn.get_num_threads())
"""
        for place in (folder, below):
            found, = children.words(code, place / "cgroup.procs")
            expected = runtime.cpu_limit() if share == 0 else max(1, round(share / 100))
            assert int(found) == min(expected, runtime.cpu_limit())
    finally:
        below.rmdir()


# ---- Python's threads ----------------------------------------------------------------------------


def test_64_threads_share_a_model_in_evaluation_mode():
    before = fastrnn.get_num_threads()
    fastrnn.set_num_threads(2)
    rng = np.random.default_rng(0)
    model = fastrnn.SequenceModel(
        fastrnn.LSTM(8, 70, 2, dropout=0.5, bidirectional=True, seed=0), 4, seed=0).eval()
    text = fastrnn.LanguageModel(20, 8, 32, seed=0).eval()
    inputs = [rng.standard_normal((3 + k % 4, 30, 8)).astype(np.float32) for k in range(64)]
    prompts = [rng.integers(0, 20, 5) for _ in range(64)]

    def one(k):
        y, *_ = model(inputs[k].swapaxes(0, 1))
        return [y.tobytes(), model.predict(inputs[k]).tobytes(),
                text.sample(prompts[k], 9, seed=k).tobytes(),
                model.layers[0](inputs[k].swapaxes(0, 1))[0].tobytes()]

    expected = [one(k) for k in range(64)]
    start, end = threading.Barrier(64), time.monotonic() + SECONDS

    def serve(k):
        start.wait()
        count = 0
        while count < 3 or time.monotonic() < end:
            assert one(k) == expected[k]
            count += 1
        return count

    try:
        with ThreadPoolExecutor(64) as pool:
            counts = list(pool.map(serve, range(64)))
    finally:
        fastrnn.set_num_threads(before)
    print(f"64 threads: {sum(counts)} rounds")


def pure(stop, count):
    while not stop.is_set():
        count[0] += 1


DATA = bytes(40_000_000)


def shares(act, seconds):
    """Return a counting thread's rate beside act() by its rate beside hashlib, and by its idle one.

    hashlib gives the GIL away for the whole of a call, too, and takes a CPU. The three are measured
    in turns, so that all see the same machine.
    """
    count, stop = [0], threading.Event()
    thread = threading.Thread(target=pure, args=(stop, count))
    thread.start()
    works = act, lambda: hashlib.sha256(DATA), lambda: time.sleep(0.05)
    done, spent = [0, 0, 0], [0.0, 0.0, 0.0]
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for which, work in enumerate(works):
                begin, before = time.perf_counter(), count[0]
                work()
                done[which] += count[0] - before
                spent[which] += time.perf_counter() - begin
    finally:
        stop.set()
        thread.join()
    own, other, idle = (n / time for n, time in zip(done, spent, strict=True))
    return own / other, own / idle


@pytest.mark.skipif(runtime.cpu_limit() < 2, reason="one CPU")
@pytest.mark.parametrize("which", ["forward", "backward", "stream", "program", "loss"])
def test_a_call_leaves_the_interpreter_to_others(which):
    """The counter has at least 0.8 of the rate that it has beside a call that surely does.

    On a quiet machine with two CPUs that is its idle rate. On a busy one a thread may lose its CPU
    in any moment: there are five tries.
    """
    before, isa = fastrnn.get_num_threads(), runtime.get_isa()
    fastrnn.set_num_threads(1)
    runtime.set_isa("scalar")  # long, yet small
    try:
        made = {"program": lambda: fastrnn.LSTM(128, 128, proj_size=64, seed=0)}
        layer = made.get(which, lambda: fastrnn.LSTM(128, 128, seed=0))()
        x = np.ones((60, 16, 128), np.float32)
        y, _, p = layer.forward(x)
        model = fastrnn.SequenceModel(fastrnn.RNN(4, 4, seed=0), 4000, seed=0)
        goals = np.zeros((20, 64), int)
        inputs = np.ones((20, 64, 4), np.float32)
        stream = fastrnn.LSTM(128, 128, seed=0).eval().stream(16) if which == "stream" else None
        act = {"forward": lambda: layer.forward(x, grad=False),
               "backward": lambda: p.backward(y, retain=True),
               "program": lambda: layer.forward(x, grad=False),
               "stream": lambda: stream.block(x), "loss": lambda: model.loss(inputs, goals)}[which]
        found = []
        for _ in range(5):
            found.append(shares(act, max(1.0, SECONDS / 5)))
            print(f"{which}: {found[-1][0]:.2f} of the rate beside hashlib, {found[-1][1]:.2f} of "
                  "the idle one")
            if found[-1][0] >= 0.8:
                break
        assert max(found)[0] >= 0.8
    finally:
        fastrnn.set_num_threads(before)
        runtime.set_isa(isa)
