"""Another library's rounding mode, flushing and traps: same bits, and its state is as it was."""

import sys

import children
import pytest

x86 = pytest.mark.skipif(sys.platform != "linux", reason="fesetround by its number in glibc")

# Everything that kernels compute, for each cell; prints in which states the bits are others
PROGRAM = """
import ctypes, mmap, platform, sys
import numpy as np
import fastrnn
from fastrnn._kernels.loss import softmax_cross_entropy
from fastrnn._kernels.update import Ranges

c = ctypes.CDLL("libm.so.6")
UP, DOWN, ZERO = (0x800, 0x400, 0xc00) if platform.machine() == "x86_64" else (
    0x400000, 0x800000, 0xc00000)

def code(*instructions):
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(bytes(instructions))
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))

if platform.machine() == "x86_64":  # stmxcsr [rdi]; ret, and ldmxcsr [rdi]; ret
    kept = code(0x0f, 0xae, 0x1f, 0xc3), code(0x0f, 0xae, 0x17, 0xc3)
    store, put = (ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address) for _, address in kept)

    def state():
        word = ctypes.c_uint32()
        store(ctypes.byref(word))
        return word.value

    def set_state(value):
        put(ctypes.byref(ctypes.c_uint32(value)))

    # rounding up, down, to zero; FTZ, DAZ and both; rounding and both; all of it
    STATES = [0x1f80 | bits for bits in (0x2000, 0x4000, 0x6000, 0x8000, 0x40, 0x8040, 0xc040,
                                         0xe040)]
    STATES += [0x1f80 & ~0x900]  # what is denormal or becomes so traps
else:
    state, set_state = c.fegetround, c.fesetround
    STATES = [UP, DOWN, ZERO]

threads = int(sys.argv[1])
fastrnn.set_num_threads(threads)
rng = np.random.default_rng(0)
x = rng.standard_normal((30, 24, 20)).astype(np.float32)
dy = rng.standard_normal((30, 24, 48)).astype(np.float32)
x[3] *= 1e-38
lengths = rng.integers(1, 31, 24)
reset = rng.random((30, 24)) < 0.1
labels = rng.integers(0, 48, 720)
scores = np.ascontiguousarray(dy.reshape(720, 48))
table = rng.standard_normal((9, 20)).astype(np.float32)
symbols = rng.integers(0, 9, (30, 24))
drawn = [np.sin(np.arange(9999, dtype=np.float32) + k) for k in range(4)]
np.abs(drawn[3], out=drawn[3])
layers = [fastrnn.RNN(20, 48, seed=0), fastrnn.GRU(20, 48, seed=0), fastrnn.LSTM(20, 48, seed=0),
          fastrnn.LSTM(20, 48, seed=0, proj_size=24),
          fastrnn.GRU(20, 48, seed=0, reset_after=False)]
models = [fastrnn.SequenceModel(layer, 9, vocab_size=20, one_hot=True, seed=0) for layer in layers]
models += [fastrnn.LanguageModel(9, 20, 48, seed=0)]

def results():
    found = []
    for layer in layers:
        out = dy[..., : layer.output_size]
        for ragged in (False, True):
            layer.zero_grad()
            options = {"lengths": lengths, "reset": reset, "reset_to": "initial"} if ragged else {}
            y, _, p = layer.forward(x, **options)
            dx, dstate = p.backward(np.ascontiguousarray(out))
            dstate = dstate if isinstance(dstate, tuple) else (dstate,)
            found += [y, dx, *dstate, *(g.copy() for g in layer.grads.values())]
        step = layer.stream(24)
        found += [step(x[0]).copy(), step.block(x).copy()]
        for options in ({"embedding": table}, {"one_hot": True}):
            found.append(layer.stream(24, **options)(symbols[0]).copy())
    for model in models:
        model.zero_grad()
        model.loss(symbols, symbols).backward()
        found += [g.copy() for g in model.grads.values()]
    grad = np.empty_like(scores)
    found.append(np.array(softmax_cross_entropy(scores, labels, 1 / 3, grad)))
    found.append(grad)
    for name in ("sgd", "adam", "rmsprop"):
        arrays = [a.copy() for a in drawn]
        row = Ranges([(arrays[0], arrays[1], {"m": arrays[2], "v": arrays[3]}, 1.0, 0.1)])
        found.append(np.array(row.norms(0.5)))
        getattr(row, name)(*{"adam": (1e-3, 0.9, 0.999, 1e-8, 3), "sgd": (1e-3, 0.9),
                             "rmsprop": (1e-3,)}[name])
        found += arrays
    return [a.tobytes() for a in found]

expected = results()
usual = state()
mask = ~0x3f if platform.machine() == "x86_64" else -1  # without the flags of what has happened
for flags in STATES:
    set_state(flags)
    try:
        got = results()
        after = state()
    finally:
        set_state(usual)
    print(hex(flags), after & mask == flags & mask,
          ",".join(str(i) for i, (a, b) in enumerate(zip(got, expected)) if a != b) or "-")
"""


@x86
@pytest.mark.parametrize("threads", [1, 3])
def test_another_librarys_state_changes_no_bit_and_is_restored(threads):
    done = children.start(PROGRAM, threads, FASTRNN_OVERSUBSCRIBE="1")
    assert done.returncode == 0, (done.returncode, done.stderr)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) >= 3
    assert all((restored, others) == ("True", "-") for _, restored, others in lines), done.stdout
