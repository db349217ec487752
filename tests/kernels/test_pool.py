"""The thread pool: what a larger thread count leaves behind, signals, fork, limits, memory."""

import os
import signal
import threading
import time
from pathlib import Path

import cases
import numpy as np
import pytest
from children import words

from fastrnn._kernels import linear, runtime

TASKS = Path("/proc/self/task")


@pytest.fixture(autouse=True)
def restored():
    before = runtime.get_num_threads()
    yield
    runtime.set_num_threads(before)


X, WEIGHT = (cases.drawer(np.float32)(*shape) for shape in ((64, 128), (128, 128)))
EXPECTED = linear.linear_forward(X, WEIGHT).tobytes()


def job():
    """Give every thread something to do: just enough to be shared."""
    return linear.linear_forward(X, WEIGHT).tobytes()


@pytest.mark.skipif(runtime.cpu_limit() < 2, reason="one CPU")
def test_two_threads_take_no_longer_after_64_were_used():
    # In a new process: other tests have used many threads already. The machine may be busy, so the
    # bar is wide and there are five tries.
    code = """
import statistics, time
import numpy as np
from fastrnn._kernels import linear, runtime
x, weight = np.ones((64, 128), np.float32), np.ones((128, 128), np.float32)

def seconds():
    times = []
    for _ in range(2000):
        start = time.perf_counter()
        linear.linear_forward(x, weight)
        times.append(time.perf_counter() - start)
    return statistics.median(times)

runtime.set_num_threads(2)
seconds()
before = seconds()
runtime.set_num_threads(64)
end = time.monotonic() + 10
while runtime.pool_workers() < 63 and time.monotonic() < end:  # it may be alone for a while
    linear.linear_forward(x, weight)
assert runtime.pool_workers() == 63
runtime.set_num_threads(2)
print(before, seconds())
"""
    ratios = []
    for _ in range(5):
        before, after = map(float, words(code, FASTRNN_OVERSUBSCRIBE="1"))
        ratios.append(after / before)
        if ratios[-1] < 1.3:
            return
    pytest.fail(f"after 64 threads, two take {ratios} times as long")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.skipif(not TASKS.exists(), reason="no /proc")
def test_workers_block_all_signals():
    runtime.set_num_threads(4)
    own = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    # a fork has no workers, so all that it finds beside itself are new
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            job()
            masks = [line.split()[1] for task in TASKS.iterdir() if int(task.name) != os.getpid()
                     for line in (task / "status").read_text().splitlines()
                     if line.startswith("SigBlk")]
            os.write(write, " ".join(masks).encode())
        finally:
            os._exit(0)  # pytest must not go on in the child
    os.close(write)
    with os.fdopen(read) as file:
        masks = file.read().split()
    os.waitpid(pid, 0)
    assert len(masks) == 3
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGRTMAX):
        for mask in masks:
            assert int(mask, 16) >> (number - 1) & 1, f"{signal.Signals(number).name}: {mask}"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == own


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_children_of_a_busy_pool_work():
    runtime.set_num_threads(8)
    stop = threading.Event()

    def keep_busy():
        while not stop.is_set():
            job()

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        for threads in (2, 3, 8, 64, 2):
            runtime.set_num_threads(threads)
            pid = os.fork()
            if not pid:
                right = False
                try:
                    right = runtime.pool_workers() == 0 and all(
                        job() == EXPECTED for _ in range(20)) and (
                        runtime.pool_workers() == threads - 1)
                finally:
                    os._exit(0 if right else 1)
            end = time.monotonic() + 20
            while (done := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
                time.sleep(0.005)
            if done == (0, 0):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            assert done == (pid, 0), f"{threads} threads"
    finally:
        stop.set()
        thread.join()


def test_every_number_of_threads_after_every_other():
    # workers sleep in between now and then, and each must find its own job
    for pause in (0, 0.001):
        for threads in (2, 64, 3, 2, 8, 1, 5, 64, 4):
            runtime.set_num_threads(threads)
            for _ in range(5):
                assert job() == EXPECTED
                time.sleep(pause)
    runtime.set_num_threads(64)
    cases.fill_pool(job, 63)


def test_two_python_threads_share_the_pool():
    runtime.set_num_threads(3)
    wrong = []

    def serve():
        wrong.extend(job() != EXPECTED for _ in range(500))

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 2000
    assert not any(wrong)


def test_settings_change_while_other_threads_compute():
    # the thread sanitizer sees whether they are atomic
    stop, wrong, flush = threading.Event(), [], runtime.get_flush_denormals()

    def serve():
        while not stop.is_set():
            wrong.append(job() != EXPECTED)

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in (2, 8, 1, 3) * 25:
            runtime.set_num_threads(number)
            runtime.set_flush_denormals(number % 2 == 0)
            runtime.set_isa(runtime.get_isa())
            time.sleep(0.001)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        runtime.set_flush_denormals(flush)
    assert wrong
    assert not any(wrong)


# ---------------------------------------------------------------------------------------- limits


SHOW = ("from fastrnn._kernels import runtime as r; print(r.get_num_threads(), r.cpu_limit());"
        "r.set_num_threads(10**6); print(r.get_num_threads())")
QUIET = ("-W", "ignore::RuntimeWarning")  # test_pressure.py has the warning


def test_more_threads_than_cpus_are_not_used():
    count, limit, most = map(int, words(SHOW, options=QUIET, FASTRNN_NUM_THREADS="1000"))
    assert count == limit == most == min(64, runtime.cpu_limit())
    count, _, most = map(int, words(SHOW, options=QUIET, FASTRNN_NUM_THREADS="50",
                                    FASTRNN_OVERSUBSCRIBE="1"))
    assert (count, most) == (50, 64)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_the_limit_is_taken_at_the_call():
    code = ("import os; from fastrnn._kernels import runtime as r;"
            "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); r.set_num_threads(9);"
            "print(r.get_num_threads())")
    assert words(code, options=QUIET) == ["1"]


def test_rows_of_the_cells():
    rows = runtime.cell_rows()
    assert [row["gates"] for row in rows] == [cases.GATES[cell] for cell in cases.CELLS]
    assert [row["has_c"] for row in rows] == [False, False, False, True, False]
    lstm, gru = rows[3:]
    assert lstm == {"gates": 4, "slots": 4, "has_c": True, "order_x": [0, 1, 2, 3],
                    "slot_h": [0, 1, 2, 3], "vectors": 4, "plain": False, "apart": -1}
    assert gru == {"gates": 3, "slots": 4, "has_c": False, "order_x": [2, 0, 1],
                   "slot_h": [1, 2, 3], "vectors": 3, "plain": False, "apart": 2}
