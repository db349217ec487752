"""Threads change no bit, survive fork, and leave the interpreter to others."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
from cases import assert_same_bytes, replace, run
from children import start

import fastrnn
from fastrnn import functional
from fastrnn._kernels import runtime

COUNTS = (1, 2, 3, 4, 8)
FUSED = [name for name, has in runtime.isa_names().items() if has and name != "scalar"]
PATIENCE = 10  # seconds until a child counts as hanging

# (T, B, I, H), all above the work that is worth a thread: few rows split the hidden units, more
# split rows, and few rows of small steps split into pairs of rows (walk.pyx, plan)
UNITS = [(9, 1, 40, 260), (4, 2, 33, 256), (3, 5, 30, 270)]
ROWS = [(5, 33, 20, 70), (9, 64, 17, 33), (300, 7, 9, 20)]


@pytest.fixture(autouse=True)
def restored():
    threads, isa = runtime.get_num_threads(), runtime.get_isa()
    yield
    fastrnn.set_num_threads(threads)
    runtime.set_isa(isa)


# ---------------------------------------------------------------------------------- no other bits


@pytest.mark.parametrize("vocabulary", [None, 30], ids=["x", "embedding"])
@pytest.mark.parametrize("shape", UNITS + ROWS, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_one_direction_has_the_same_bits_on_any_number_of_threads(cell, dtype, shape, vocabulary):
    case = cases.make_case(cell, *shape, dtype, vocabulary=vocabulary)
    fastrnn.set_num_threads(1)
    expected = run(functional, case, reverse=True)
    for threads in (*COUNTS, *COUNTS[::-1]):
        fastrnn.set_num_threads(threads)
        assert fastrnn.get_num_threads() == threads
        assert_same_bytes(run(functional, case, reverse=True), expected, f"{threads} threads: ")
    fastrnn.set_num_threads(COUNTS[-1])
    cases.fill_pool(lambda: run(functional, case), 2)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(4, 13, 20, 37), (3, 9, 40, 130)], ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_a_row_of_a_batch_is_that_row_alone(cell, dtype, shape, threads):
    case = cases.make_case(cell, *shape, dtype)
    fastrnn.set_num_threads(threads)
    whole = run(functional, case)
    for b in range(shape[1]):
        names = ("x", "h0", "c0", "dy", "dhn", "dcn")
        alone = run(functional, replace(case, **{
            name: array[..., b : b + 1, :]
            for name in names if (array := getattr(case, name)) is not None
        }))
        for name in alone.keys() - set(cases.PARAMETERS):
            row = whole[name][..., b : b + 1, :]
            assert alone[name].tobytes() == row.tobytes(), f"row {b}: {name}"


@pytest.mark.skipif(len(FUSED) < 2, reason="this CPU has one instruction set with FMA")
@pytest.mark.parametrize("vocabulary", [None, 7], ids=["x", "embedding"])
@pytest.mark.parametrize("shape", [*cases.SHAPES, UNITS[0], ROWS[1]], ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_instruction_sets_with_fma_have_the_same_bits(cell, dtype, shape, vocabulary):
    case = cases.make_case(cell, *shape, dtype, vocabulary=vocabulary)
    runtime.set_isa(FUSED[0])
    expected = run(functional, case)
    for isa in FUSED[1:]:
        runtime.set_isa(isa)
        assert_same_bytes(run(functional, case), expected, f"{isa}: ")


# -------------------------------------------------------------------------------------- processes


def work():
    """Return the bytes of a threaded forward and backward, always of the same numbers."""
    case = cases.make_case("lstm", 6, 24, 30, 70, np.float32)
    return b"".join(array.tobytes() for array in run(functional, case).values())


def answer(pipe):
    pipe.send_bytes(work())


def child_status(act, patience=PATIENCE):
    """Fork, run act() in the child, and return its exit status; a hanging child is killed."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            status = 0 if act() else 2
        finally:
            os._exit(status)  # pytest must not go on in the child
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hang"


# Python 3.12 warns of any fork beside threads: the pool's are the point here
quiet_fork = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@quiet_fork
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_after_the_pool_has_started():
    fastrnn.set_num_threads(4)
    expected = work()
    cases.fill_pool(work, 3)

    def act():
        return (runtime.pool_workers() == 0 and work() == expected
                and runtime.pool_workers() == 3  # and again, a level down
                and child_status(lambda: work() == expected) == 0)

    for _ in range(10):
        assert child_status(act) == 0
        assert work() == expected


@quiet_fork
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_the_pool_is_at_work():
    fastrnn.set_num_threads(3)
    expected = work()
    stop = threading.Event()
    wrong = []

    def keep_busy():
        while not stop.is_set():
            if work() != expected:
                wrong.append("the parent's result changed")

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        for _ in range(20):
            assert child_status(lambda: work() == expected) == 0
    finally:
        stop.set()
        thread.join()
    assert not wrong


@quiet_fork
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing(method):
    fastrnn.set_num_threads(4)
    expected = work()
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=answer, args=(theirs,))
    child.start()
    theirs.close()
    try:
        assert ours.poll(PATIENCE), "the child hangs"
        assert ours.recv_bytes() == expected
        child.join(PATIENCE)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()
        ours.close()


# --------------------------------------------------------------------------------- Python's threads


def test_64_threads_train_through_functional():
    fastrnn.set_num_threads(2)
    drawn = [cases.make_case(cases.CELLS[k % 5], 3, 8, 30, 40 + k % 3, seed=k) for k in range(64)]
    expected = [run(functional, case) for case in drawn]
    start = threading.Barrier(64)

    def serve(k):
        start.wait()
        return [run(functional, drawn[k]) for _ in range(3)]

    with ThreadPoolExecutor(64) as pool:
        for k, results in enumerate(pool.map(serve, range(64))):
            for got in results:
                assert_same_bytes(got, expected[k], f"{drawn[k].cell}: ")


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_a_long_call_leaves_the_interpreter_to_others(which):
    # On a shared machine the counter may lose its core to somebody else, so the bar is low and
    # there are three tries. A call that holds the GIL scores near zero.
    runtime.set_isa("scalar")  # long, yet small
    fastrnn.set_num_threads(1)
    case = cases.make_case("lstm", 250, 16, 128, 128)
    count, stop = [0], threading.Event()

    def counter():
        while not stop.is_set():
            count[0] += 1

    def rate(act):
        begin, before = time.perf_counter(), count[0]
        act()
        return (count[0] - before) / (time.perf_counter() - begin), time.perf_counter() - begin

    thread = threading.Thread(target=counter)
    thread.start()
    try:
        for _ in range(3):
            idle, _ = rate(lambda: time.sleep(0.1))
            if which == "forward":
                beside, seconds = rate(
                    lambda: cases.forward(functional, case, training=False))
            else:
                _, tape = cases.forward(functional, case)
                beside, seconds = rate(lambda: cases.backward(functional, case, tape))  # noqa: B023
            assert seconds > 0.05, "the call is too short to tell"
            if beside > 0.3 * idle:
                return
    finally:
        stop.set()
        thread.join()
    pytest.fail(f"the counter ran at {beside / idle:.2f} of its idle rate")


# -------------------------------------------------------------------------------------- settings


SHOW = ("import fastrnn; from fastrnn._kernels import runtime as r; "
        "print(fastrnn.get_num_threads(), r.get_isa())")
LIMIT = runtime.cpu_limit()
WIDEST = [name for name, has in runtime.isa_names().items() if has][-1]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (LIMIT, WIDEST)),
        ({"FASTRNN_NUM_THREADS": "3"}, (3, WIDEST)),
        ({"FASTRNN_NUM_THREADS": " 3 ", "OMP_NUM_THREADS": "1"}, (3, WIDEST)),
        ({"FASTRNN_NUM_THREADS": "", "FASTRNN_ISA": ""}, (LIMIT, WIDEST)),
        ({"FASTRNN_NUM_THREADS": "1000"}, (64, WIDEST)),
        ({"OMP_NUM_THREADS": "1"}, (1, WIDEST)),
        ({"OMP_NUM_THREADS": "1000"}, (LIMIT, WIDEST)),
        ({"OMP_NUM_THREADS": "all"}, (LIMIT, WIDEST)),  # not ours to judge
        ({"FASTRNN_ISA": "scalar"}, (LIMIT, "scalar")),
    ],
    ids=str,
)
def test_the_environment_decides(environment, expected):
    done = start(SHOW, FASTRNN_OVERSUBSCRIBE="1", **environment)
    assert done.stderr == ""
    assert done.stdout.split() == [str(part) for part in expected]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("FASTRNN_ISA", "sse9",
         "FASTRNN_ISA: unknown instruction set 'sse9', this build has scalar"),
        ("FASTRNN_ISA", "AVX2", "FASTRNN_ISA: unknown instruction set 'AVX2', this build has"),
        *(("FASTRNN_NUM_THREADS", value,
           f"FASTRNN_NUM_THREADS is {value!r}, expected a whole number of at least 1")
          for value in ("0", "-1", "1.5", "two", "²")),
    ],
)
def test_an_environment_that_makes_no_sense_is_one_sentence(name, value, sentence):
    done = start(SHOW, **{name: value})
    assert done.returncode == 1
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith(f"ValueError: {sentence}")
    assert done.stderr.count("Traceback") == 1, done.stderr


def test_an_instruction_set_can_be_missing():
    absent = [name for name, has in runtime.isa_names().items() if not has]
    for name in absent:
        with pytest.raises(ValueError, match=f"^FASTRNN_ISA: this CPU does not have '{name}'"):
            runtime.set_isa(name)
    with pytest.raises(ValueError, match=r"^FASTRNN_ISA: unknown instruction set .sse9., "):
        runtime.set_isa("sse9")
    runtime.set_isa(None)
    assert runtime.get_isa() == WIDEST


@pytest.mark.parametrize("n", [0, -1, 1.0, 2.5, "2", None, True, np.True_, float("nan"), [2]],
                         ids=repr)
def test_set_num_threads_refuses(n):
    before = fastrnn.get_num_threads()
    match = r"^set_num_threads: n is .*, expected a whole number of at least 1$"
    with pytest.raises(ValueError, match=match) as caught:
        fastrnn.set_num_threads(n)
    assert repr(n) in str(caught.value)
    assert fastrnn.get_num_threads() == before


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (np.int64(5), 5), (64, 64), (10**30, 64)])
def test_set_num_threads_takes_whole_numbers(n, expected):
    fastrnn.set_num_threads(n)
    assert fastrnn.get_num_threads() == expected
    assert type(fastrnn.get_num_threads()) is int
