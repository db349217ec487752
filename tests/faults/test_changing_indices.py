"""Indices, labels, lengths and resets that another thread changes during the call.

Each is read once, into a copy that is checked and used. So a call gives the result of one of the
values that were there, or refuses them, and touches nothing outside of its arrays: the arrays that
are looked up end at a page without access, so that a wrong row kills the process. (A guard of this
kind sees reads; `FASTRNN_SANITIZE=address` builds see every other wrong access.)
"""

import sys

import children
import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="mprotect")

PROGRAM = """
import ctypes, faulthandler, mmap, sys, threading, time
import numpy as np
import fastrnn
from fastrnn import functional
from fastrnn._kernels.loss import softmax_cross_entropy
from fastrnn._kernels.timeline import Timeline

faulthandler.enable()
sys.setswitchinterval(1e-5)
seconds, name = float(sys.argv[1]), sys.argv[2]
libc = ctypes.CDLL(None)
libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
libc.memcpy.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t

def fenced(array):
    # an array that ends where no byte may be read
    pages = -(-array.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1024) * mmap.PAGESIZE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert not libc.mprotect(base + pages * mmap.PAGESIZE, 1024 * mmap.PAGESIZE, 0)
    moved = np.frombuffer(memory, array.dtype, array.size, pages * mmap.PAGESIZE - array.nbytes)
    moved = moved.reshape(array.shape)
    moved[...] = array
    return moved

T, B, I, H, V = 40, 30, 8, 8, 16
rng = np.random.default_rng(0)
x = fenced(rng.standard_normal((T, B, I)).astype(np.float32))
table = fenced(rng.standard_normal((V, I)).astype(np.float32))
layer = fastrnn.LSTM(I, H, seed=0)
weights = [fenced(w) for w in layer.parameters().values()]
language = fastrnn.LanguageModel(V, 8, H, seed=0)
one_hot = fastrnn.SequenceModel(fastrnn.LSTM(V, H, seed=0), V, vocab_size=V, one_hot=True, seed=0)
chances = fastrnn.SequenceModel(fastrnn.LSTM(I, H, seed=0), 1, loss="bce", seed=0)
logits = fenced(rng.standard_normal((T * B, V)).astype(np.float32))
zeros = np.zeros((1, B, H), np.float32)
symbols_stream = layer.stream(B, embedding=table)
large_stream = layer.stream(B, embedding=np.repeat(table, 512, 0))
rows_stream = layer.stream(B)

def forward_backward(**options):
    y, _, p = layer.forward(x, **options)
    p.backward(y)

def functional_call(index):
    y, _, tape = functional.lstm_forward(index, None, *weights, embedding=table)
    functional.lstm_backward(y, None, tape)

def packed(sizes):
    y, _, p = layer.forward_packed(x.reshape(T * B, I)[:-1], sizes)
    p.backward(y)

# name: the array that changes, good values, bad values, the call
good, bad = rng.integers(0, V, (T, B)), [-2**31, -1, V, 2**31 - 1, 2**40]
CASES = {
    "embedding": ((T, B), np.int64, V, bad, lambda a: language.loss(a, good).backward()),
    "embedding int32": ((T, B), np.int32, V, bad[:-1],
                        lambda a: language.loss(a, good).backward()),
    "one-hot": ((T, B), np.int64, V, bad, lambda a: one_hot.loss(a, good).backward()),
    "targets": ((T, B), np.int64, V, [*bad, -100], lambda a: language.loss(good, a).backward()),
    "targets uint64": ((T, B), np.uint64, V, [V, 2**63, 2**64 - 1],
                       lambda a: language.loss(good, a).backward()),
    "ignored targets": ((T, B), np.int64, V, [-100, V, 2**40],
                        lambda a: fastrnn.losses.softmax_cross_entropy(
                            logits.reshape(T, B, V), a, ignore_index=7)),
    "kernel targets": ((T * B,), np.int64, V, bad,
                       lambda a: softmax_cross_entropy(logits, a)),
    "functional": ((T, B), np.int64, V, bad, functional_call),
    "lengths": ((B,), np.int64, T + 1, [-1, T + 1, 2**31, 2**40],
                lambda a: forward_backward(lengths=a)),
    "reset": ((T, B), bool, 2, [True, False], lambda a: forward_backward(reset=a)),
    "timeline": ((T, B), bool, 2, [True, False],
                 lambda a: Timeline(np.full(B, T), T, a).rows("time")),
    "batch sizes": ((T,), np.int64, 1, [-1, B, B + 1, 2**40], packed),
    "stream": ((B,), np.int64, V, bad, lambda a: symbols_stream(a)),
    "stream int32": ((B,), np.int32, V, bad[:-1], lambda a: symbols_stream(a)),
    "large stream": ((B,), np.int64, V, bad, lambda a: large_stream(a)),
    "block": ((T, B), np.int64, V, bad, lambda a: symbols_stream.block(a)),
    "large block": ((T, B), np.int64, V, bad, lambda a: large_stream.block(a)),
    "rows": ((4,), np.int64, 4, [-1, B, 2**31, 2**40],
             lambda a: rows_stream(x[0, :4], rows=a)),
    "rows of a state": ((4,), np.int64, 4, [-1, B, 2**31, 2**40], lambda a: rows_stream.rows[a]),
    "reset of rows": ((4,), np.int64, 4, [-1, B, 2**31, 2**40], lambda a: rows_stream.reset(a)),
    "booleans": ((B,), bool, 2, [True, False], lambda a: rows_stream.reset(a)),
    "prompt": ((9,), np.int64, V, bad, lambda a: language.sample(a, 2)),
    "decode": ((T * B,), np.int64, V, bad, lambda a: language.generate(a[:4], 2)),
    "predict": ((B, T), np.int64, V, bad, lambda a: language.predict(a)),
    "chances": ((T, B, 1), np.float32, 1, [-1, 2, np.nan], lambda a: chances.loss(x, a).backward()),
}
if name == "torch_batch_sizes":
    import torch
    from fastrnn.torch.reading import read_lengths

    def lengths_of(sizes):
        found = read_lengths(torch.from_numpy(sizes), T * B)
        if found is None:
            raise ValueError
        steps, batch, time = found
        assert (steps * batch if time is None else time.N) == T * B, found

    CASES["torch batch sizes"] = (T,), np.int64, 1, [-1, B, B + 1, 2**40], lengths_of
if name == "names":
    print(*(n.replace(" ", "_") for n in CASES))
    sys.exit()
shape, dtype, count, wrong, call = CASES[name.replace("_", " ")]
start = rng.integers(0, count, shape).astype(dtype)
if name == "rows" or "rows_" in name or "_rows" in name:
    start = np.arange(4)
elif name.endswith("batch_sizes"):
    start = np.full(T, B)
    start[-1] -= 1  # rows of different lengths
    start[0] += 1 if name.startswith("torch") else 0
start = np.ascontiguousarray(start, dtype)
shared = start.copy()
call(shared)  # it is right without the other thread
stop = threading.Event()

def write():
    k, size = 0, shared.itemsize
    places = [a.ctypes.data for a in (shared, start)]
    others = [np.full(shape, value).astype(dtype) for value in wrong]
    # bad and good values in turns, many times in one call, in which NumPy holds no GIL
    rows = (1 + 10**6 // shared.size, 2, shared.size)
    strided = np.lib.stride_tricks.as_strided
    turns = [strided(np.stack([a.reshape(-1), start.reshape(-1)]), rows, (0, start.nbytes, size))
             for a in others]
    target = strided(shared, rows, (0, 0, size))
    while not stop.is_set():
        k += 1
        # ctypes gives the GIL away: the other thread goes on while bytes are written
        if k % 20 == 0:
            np.copyto(target, turns[k // 20 % len(turns)])
        elif k % 3:
            at = k * 7919 % shared.size
            libc.memcpy(places[0] + at * size, others[k % len(others)].ctypes.data, size)
            libc.memcpy(places[0] + at * size, places[1] + at * size, size)
        else:
            libc.memcpy(places[0], others[k % len(others)].ctypes.data, shared.nbytes)
            libc.memcpy(places[0], places[1], shared.nbytes)

thread = threading.Thread(target=write)
thread.start()
calls = refused = 0
end = time.monotonic() + seconds
try:
    while time.monotonic() < end or calls < 20:
        calls += 1
        try:
            call(shared)
        except (IndexError, ValueError) as error:
            refused += 1
finally:
    stop.set()
    thread.join()
call(start)
print(calls, refused)
"""

NAMES = ["embedding", "embedding_int32", "one-hot", "targets", "targets_uint64", "ignored_targets",
         "kernel_targets", "functional", "lengths", "reset", "timeline", "batch_sizes", "stream",
         "stream_int32", "large_stream", "block", "large_block", "rows", "rows_of_a_state",
         "reset_of_rows", "booleans", "prompt", "decode", "predict", "chances"]


def test_all_are_named():
    assert children.words(PROGRAM, 0, "names") == NAMES


def run(name, seconds):
    calls, refused = map(int, children.words(PROGRAM, seconds, name, timeout=seconds + 120))
    print(f"{name}: {calls} calls, {refused} refused")
    return calls, refused


@linux
@pytest.mark.parametrize("name", ["embedding", "timeline", "targets", "stream", "rows", "lengths"])
def test_another_thread_may_change_them(name):
    run(name, 0.5)


@linux
def test_another_thread_may_change_a_tensor():
    pytest.importorskip("torch")
    assert run("torch_batch_sizes", 1)[1] > 0


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_another_thread_may_change_them_for_long(name):
    _, refused = run(name, 10)
    if name not in ("reset", "timeline", "booleans"):  # any booleans will do
        assert refused > 0
