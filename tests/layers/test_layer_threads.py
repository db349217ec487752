"""Layers on several threads: the same bits, many callers of one layer, and forks."""

import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
from cases import assert_same_bytes
from children import start

import fastrnn
from fastrnn._kernels import runtime

COUNTS = (1, 2, 3, 4, 8)

# (T, B, I, H), all above the work that is worth a thread: see tests/kernels/test_threads.py
UNITS = [(9, 1, 40, 260), (4, 2, 33, 256), (3, 5, 30, 270)]
ROWS = [(5, 33, 20, 70), (9, 64, 17, 33)]


@pytest.fixture(autouse=True)
def restored():
    threads = runtime.get_num_threads()
    yield
    fastrnn.set_num_threads(threads)


def layer_of(cell, I, H, dtype, **options):
    return cases.LAYERS[cell](I, H, bidirectional=True, dtype=dtype, seed=3, **options)


def both_ways(layer, x, dy):
    """Return outputs and gradients of a bidirectional layer by name."""
    layer.flat_grads.fill(0)
    y, state = layer(x)
    dx, dstate = layer.backward(dy)
    states = {
        f"{prefix}{k}": array
        for prefix, s in (("state", state), ("dstate", dstate))
        for k, array in enumerate(s if isinstance(s, tuple) else (s,))
    }
    return {"y": y, "dx": dx, **states, "grads": layer.flat_grads.copy()}


@pytest.mark.parametrize("shape", UNITS + ROWS, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_two_directions_have_the_same_bits_on_any_number_of_threads(cell, dtype, shape):
    T, B, I, H = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, B, I)).astype(dtype)
    dy = rng.standard_normal((T, B, 2 * H)).astype(dtype)
    layer = layer_of(cell, I, H, dtype)
    fastrnn.set_num_threads(1)
    expected = both_ways(layer, x, dy)
    for threads in COUNTS:
        fastrnn.set_num_threads(threads)
        for _ in range(2):
            assert_same_bytes(both_ways(layer, x, dy), expected, f"{threads} threads: ")
    layer.eval()
    for threads in COUNTS:
        fastrnn.set_num_threads(threads)
        assert layer(x)[0].tobytes() == expected["y"].tobytes()


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_a_stream_of_wide_layers_has_the_same_bits_on_any_number_of_threads(cell):
    layer = cases.LAYERS[cell](130, 520, 2, seed=0).eval()  # past the size that is worth threads
    x = np.random.default_rng(0).standard_normal((5, 3, 130)).astype(np.float32)
    fastrnn.set_num_threads(1)
    expected, _ = layer(x)
    for threads in COUNTS:
        fastrnn.set_num_threads(threads)
        step = layer.stream(3)
        np.testing.assert_array_equal(np.stack([step(frame) for frame in x]), expected)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_64_threads_on_one_layer_in_eval_mode(cell, threads):
    layer = layer_of(cell, 24, 50, np.float32, num_layers=2).eval()
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((1 + k % 9, 1 + k % 5, 24)).astype(np.float32) for k in range(64)]
    fastrnn.set_num_threads(1)
    expected = [layer(x)[0].tobytes() for x in inputs]
    fastrnn.set_num_threads(threads)
    start = threading.Barrier(64)

    def serve(k):
        start.wait()
        return [layer(inputs[(k + i) % 64])[0].tobytes() for i in range(8)]

    with ThreadPoolExecutor(64) as pool:
        for k, got in enumerate(pool.map(serve, range(64))):
            assert got == [expected[(k + i) % 64] for i in range(8)]


@pytest.mark.parametrize("threads", [1, 2])
def test_two_threads_in_one_layer_in_training_mode(threads):
    fastrnn.set_num_threads(threads)
    T, B, I, H = 20, 8, 30, 60
    layer = layer_of("lstm", I, H, np.float32, num_layers=2)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, B, I)).astype(np.float32)
    dy = rng.standard_normal((T, B, 2 * H)).astype(np.float32)
    expected = both_ways(layer, x, dy)
    refused, wrong, right = [], [], []
    end = time.monotonic() + 0.5

    def train():
        while time.monotonic() < end:
            for name, act in (("y", lambda: layer(x)), ("dx", lambda: layer.backward(dy))):
                try:
                    same = act()[0].tobytes() == expected[name].tobytes()
                except RuntimeError as error:
                    refused.append(str(error))
                else:
                    (right if same else wrong).append(name)

    two = [threading.Thread(target=train) for _ in range(2)]
    for thread in two:
        thread.start()
    for thread in two:
        thread.join()
    assert not wrong
    assert {"y", "dx"} <= set(right)
    for message in set(refused):
        assert re.match(
            r"(LSTM\.)?backward: (another thread is adding|no call to go back|this tape was used)",
            message)
    assert_same_bytes(both_ways(layer, x, dy), expected)


# Python's threads may be anywhere when a process forks, also in the middle of adding gradients.
FORK = """
import os, signal, sys, threading, time, warnings
import numpy as np
import fastrnn

warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads
layer = fastrnn.LSTM(40, 96, 2, bidirectional=True, dropout=0.5, seed=0)
rng = np.random.default_rng(0)
x = rng.standard_normal((12, 24, 40)).astype(np.float32)
dy = rng.standard_normal((12, 24, 192)).astype(np.float32)
start = layer.dropout_state


def train(form):
    layer.zero_grad()
    layer.dropout_state = start
    if form == "short":
        y, _ = layer(x)
        layer.backward(dy)
    else:
        y, _, p = layer.forward(x)
        p.backward(dy)
    return y.tobytes() + layer.flat_grads.tobytes()


def status_of_child(act):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            status = 0 if act() else 2
        except BaseException as error:
            print("in the child:", error, file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return "hang"


fastrnn.set_num_threads(2)
form = sys.argv[1]
expected = train(form)
stop, failed = threading.Event(), []


def keep_busy():
    try:
        while not stop.is_set():
            train(form)
    except BaseException as error:
        failed.append(error)


thread = threading.Thread(target=keep_busy)
thread.start()
try:
    found = [status_of_child(lambda: train(form) == expected) for _ in range(40)]
finally:
    stop.set()
    thread.join()
assert found == [0] * 40, found
assert not failed, failed

# and while another thread draws masks, which takes too little time to be met by chance
held, over = threading.Event(), threading.Event()


def draw():
    with layer._masks.bit_generator.lock:
        held.set()
        over.wait()


thread = threading.Thread(target=draw)
thread.start()
held.wait()
try:
    assert status_of_child(lambda: train(form) == expected) == 0
finally:
    over.set()
    thread.join()
assert train(form) == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("form", ["short", "pass"])
def test_a_child_forked_during_another_threads_training_call_can_train(form):
    done = start(FORK, form, timeout=180)
    assert done.returncode == 0, done.stderr


MASKS = """
import os
import numpy as np
import fastrnn

layer = fastrnn.LSTM(3, 40, 2, dropout=0.5, seed=0)
x = np.ones((4, 2, 3), np.float32)
layer(x)
read, write = os.pipe()
child = os.fork()
if child == 0:
    os.write(write, layer(x)[0].tobytes())
    os._exit(0)
os.close(write)
with open(read, "rb") as pipe:
    assert pipe.read() == layer(x)[0].tobytes()
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_draws_the_masks_that_its_parent_draws():
    done = start(MASKS, timeout=180)
    assert done.returncode == 0, done.stderr
