"""Many calls, with and without errors: memory, objects and reference counts stay where they are.

FASTRNN_CALLS=100000 makes as many calls as docs/reliability.md reports.
"""

import os

import children
import pytest

CALLS = int(os.environ.get("FASTRNN_CALLS", "2000"))
ROUNDS = 4

PROGRAM = """
import contextlib, gc, sys
import numpy as np
import fastrnn
from fastrnn import functional, optim
from fastrnn._kernels.linear import linear_backward, linear_forward
from fastrnn._kernels.loss import softmax_cross_entropy
from fastrnn._kernels.update import Ranges, norms

fastrnn.set_num_threads(2)
calls, rounds, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rng = np.random.default_rng(0)
T, B, I, H = 6, 3, 4, 5
x, dy = (rng.standard_normal((T, B, n)).astype(np.float32) for n in (I, H))
symbols = rng.integers(0, I, (T, B))
lengths, reset = np.array([T, 0, 3]), rng.random((T, B)) < 0.3
layers = {"rnn": fastrnn.RNN(I, H, seed=0), "gru": fastrnn.GRU(I, H, 2, dropout=0.2, seed=0),
          "lstm": fastrnn.LSTM(I, H, bidirectional=True, seed=0),
          "program": fastrnn.LSTM(I, H, proj_size=2, seed=0)}
model = fastrnn.SequenceModel(fastrnn.GRU(I, H, seed=0), 3, seed=0)
language = fastrnn.LanguageModel(I, 3, H, seed=0)
optimizer = optim.Adam(model)
goals = rng.integers(0, 3, (T, B))
stream, text = layers["rnn"].stream(B), layers["rnn"].stream(B, one_hot=True)
cell = fastrnn.GRUCell(I, H, seed=0)
weights = [np.ones(s, np.float32) for s in ((H, I), (H, H), (H,), (H,))]
logits, classes = rng.standard_normal((9, 4)).astype(np.float32), rng.integers(0, 4, 9)
state = np.ones((1, B, H), np.float32)

def refuse(act, *kinds):
    # the exception's traceback holds the frames of the failed call until it is dropped
    with contextlib.suppress(kinds or (ValueError, TypeError, IndexError)):
        act()
        raise AssertionError("not refused")

def one_layer(name, k):
    layer = layers[name]
    options = ({}, {"lengths": lengths}, {"reset": reset, "reset_to": "initial"})[k % 3]
    y, _, p = layer.forward(x, **options)
    if k % 4:
        p.backward(np.ones_like(y), retain=k % 4 == 3)
    y, _, p = layer.forward(x)
    refuse(lambda: p.backward(dy[:2]))
    p.backward(np.ones_like(y))
    refuse(lambda: p.backward(np.ones_like(y)), RuntimeError)
    refuse(lambda: layer.forward(x[..., :2]))
    refuse(lambda: layer.forward(x, lengths=[1, 2, T + 1]))
    refuse(lambda: layer.forward("x"))
    refuse(lambda: layer.forward(x, (state[:, :1],)))
    layer.eval()
    layer(x)
    layer.train()

def one_model(k):
    p = model.loss(x, goals, recompute_every=(None, 2)[k % 2])
    p.backward()
    optimizer.step(1e-3)
    model.zero_grad()
    refuse(lambda: model.loss(x, goals + 5))
    refuse(lambda: model.loss(x, goals[:2]))
    model.predict(x.swapaxes(0, 1))
    language.loss(symbols, symbols).backward()
    refuse(lambda: language.loss(symbols + I, symbols))
    language.zero_grad()
    if k % 10 == 0:
        language.sample([1], 3, seed=0)
        refuse(lambda: language.sample([], 3))

def one_stream(k):
    stream(x[0])
    stream.block(x)
    stream(x[0, :2], rows=[2, 0])
    stream.rows[[1]] = stream.rows[[0]]
    twin = stream.copy()
    twin.state = stream.state
    text(symbols[0])
    text.block(symbols)
    refuse(lambda: stream(x))
    refuse(lambda: stream(x[0], rows=[0, 0, 1]))
    refuse(lambda: text(symbols[0] + I))
    refuse(lambda: text(symbols[0] - I))
    refuse(lambda: stream.rows[[B]])
    refuse(lambda: stream(x[0], np.ones((1, 1))))
    if k % 20 == 0:
        layers["program"].stream(B)(x[0])
    stream.reset()
    text.reset()

def one_kernel(k):
    h = functional.rnn_forward(x, state[0], *weights)
    functional.rnn_backward(dy, None, h[2])
    refuse(lambda: functional.rnn_forward(x, state, weights[1]))
    after = cell(x[0])
    refuse(lambda: cell(x))
    softmax_cross_entropy(logits, classes)
    refuse(lambda: softmax_cross_entropy(logits, classes + 4))
    refuse(lambda: softmax_cross_entropy(logits, classes[:2]))
    refuse(lambda: softmax_cross_entropy(logits, classes, 1.0, logits.astype(float)))
    y = linear_forward(x[0], weights[0])
    linear_backward(y, x[0], weights[0], np.zeros_like(weights[0]))
    refuse(lambda: linear_forward(x[0], weights[1]))
    rows = Ranges([(weights[1].ravel(), np.ones(H * H, np.float32),
                    {"m": np.zeros(H * H, np.float32)}, 1.0, 0.0)])
    rows.norms()
    rows.sgd(1e-9, 0.9)
    refuse(lambda: rows.adam(0.1, 0.9, 0.9, 1e-8, 1))
    refuse(lambda: Ranges([(weights[1], weights[0], {}, 1.0, 0.0)]))
    refuse(lambda: norms([weights[0].astype(int).ravel()]))

def one_torch(k):
    with torch.set_grad_enabled(k % 2 == 0):
        y, _ = module(tensor)
        if k % 2 == 0:
            y.sum().backward()
            module.zero_grad()
        refuse(lambda: module(tensor[..., :2]), RuntimeError)
        refuse(lambda: module(tensor, (hidden, hidden)), RuntimeError)
        module(torch.nn.utils.rnn.pack_padded_sequence(tensor, torch.tensor([6, 5, 2])))

if name == "torch":
    import torch
    from fastrnn import torch as bridge
    bridge.set_mode("always")
    module, tensor = bridge.accelerate(torch.nn.LSTM(I, H)), torch.randn(T, B, I)
    hidden = torch.zeros(2, B, H)
WORK = {"model": one_model, "stream": one_stream, "kernel": one_kernel, "torch": one_torch,
        **{n: lambda k, n=n: one_layer(n, k) for n in layers}}[name]
# what every call passes: nobody may keep a reference
shared = [x, dy, symbols, lengths, reset, state, goals, logits, classes, *weights, None, True,
          x.dtype, *layers.values(), model, language, optimizer, stream, text, cell,
          np.dtype(np.int64)]
# From CPython 3.12 some live for ever, and their counts mean nothing: None, True, NumPy's dtypes.
shared = [one for one in shared if sys.getrefcount(one) < 2**30]

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def look():
    gc.collect()
    counts = [sys.getrefcount(a) for a in shared]
    return resident(), len(gc.get_objects()), counts, sys.getallocatedblocks()

warm = max(200, calls // 20)
for k in range(warm):
    WORK(k)
looks = [look()]
for _ in range(rounds):
    for k in range(calls // rounds):
        WORK(k)
    looks.append(look())
growths = [(b[0] - a[0], b[1] - a[1], max(abs(j - i) for i, j in zip(a[2], b[2])), b[3] - a[3])
           for a, b in zip(looks, looks[1:])]
print(*map(min, zip(*growths)))
"""


@pytest.mark.parametrize(("name", "changes"), [
    *((name, {}) for name in ("rnn", "gru", "lstm", "program", "model", "stream", "kernel",
                              "torch")),
    ("torch", {"FASTRNN_CHECK": "1"})], ids=lambda part: "".join(part))
def test_calls_leave_nothing_behind(name, changes):
    if name == "torch":
        pytest.importorskip("torch")
    # A leak grows in every round; what CPython keeps once, such as a table that doubles, in one.
    calls = CALLS // ROUNDS // (5 if changes else 1)
    grown, objects, references, blocks = map(int, children.words(
        PROGRAM, ROUNDS * calls, ROUNDS, name, timeout=60 + CALLS // 5, **changes))
    print(f"{name}: in the best of {ROUNDS} times {calls} calls: {grown:+,} bytes, "
          f"{objects:+} objects, {blocks:+} blocks, reference counts {references:+}")
    # a leaked reference to a singleton shows as one a call; some counts of None waver
    assert references < min(100, calls / 5)
    assert objects < min(100, calls / 5)
    assert blocks < max(100, calls / 4)
    assert grown < 1e6 + 10 * calls  # fewer bytes than the smallest object that a call may leak
