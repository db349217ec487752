"""Every allocation in turn fails, in every entry: MemoryError or the right result, and it works on.

tests/kernels/test_no_memory.py has the kernels of the hand-written cells, their packs and streams.
Here are programs, head, loss, update, layers, models and the door to torch. First Python's
allocations fail, then those of the C library, which hold the data of arrays. A process for each:
`python tests/faults/test_no_memory_everywhere.py layers python`; the last line that it printed says
what it was doing.
"""

import os
import subprocess
import sys

import failing
import numpy as np
import pytest

import fastrnn
from fastrnn import optim
from fastrnn._kernels import linear
from fastrnn._kernels.loss import softmax_cross_entropy
from fastrnn._kernels.update import Ranges, norms

pytest.importorskip("_testcapi")

T, B, I, H = 4, 3, 3, 5
rng = np.random.default_rng(0)
X = rng.standard_normal((T, B, I)).astype(np.float32)
SYMBOLS = rng.integers(0, I, (T, B))
LENGTHS = np.array([T, 0, 2])


def same(expected, again, get=None):
    """Return a check: the result, if there is one, and another one with memory are as expected."""
    def check(result):
        for found in ([] if result is None else [result]) + [again()]:
            found = found if get is None else get(found)
            assert len(found) == len(expected)
            for a, b in zip(found, expected, strict=True):
                assert a.tobytes() == b.tobytes()
    return check


def sweep(where, name, act):
    """Let every allocation of act() fail; it returns arrays, the same ones each time."""
    act()
    expected = [np.array(a) for a in act()]
    # small arrays come from memory that NumPy keeps: then nothing needs the C library's
    least = int(isinstance(where, failing.Python))
    failed = failing.every_failure(name, act, same(expected, act), where, least=least)
    print(name, "failed", failed)


def layer_calls(where, layer):
    kind = f"{type(layer).__name__} {layer.hidden_size}"
    out = layer.output_size * (2 if layer.bidirectional else 1)
    dy = rng.standard_normal((T, B, out)).astype(np.float32)
    state = tuple(np.ones((layer.num_layers * (2 if layer.bidirectional else 1), B, w), np.float32)
                  for w in layer.state_widths)
    state = state if len(state) > 1 else state[0]

    def train(**options):
        layer.zero_grad()
        y, last, p = layer.forward(X, state, **options)
        dx, dstate = p.backward(dy)
        several = [a for s in (last, dstate) for a in (s if isinstance(s, tuple) else (s,))]
        return [y, dx, *several, *layer.grads.values()]

    sweep(where, f"{kind} train", train)
    sweep(where, f"{kind} lengths", lambda: train(lengths=LENGTHS))
    layer.train(False)
    sweep(where, f"{kind} evaluate", lambda: [layer(X, state)[0]])
    layer.train()

    def modes():
        layer.eval()
        try:
            return [layer(X)[0]]
        finally:
            where.disarm()
            layer.train()

    sweep(where, f"{kind} eval()", modes)
    if layer.bidirectional:
        return
    sweep(where, f"{kind} stream", lambda: [layer.stream(B)(X[0])])
    step = layer.stream(B)

    def stepped():
        try:
            return [step(X[0]).copy(), step.block(X).copy(), step(X[0, :2], rows=[0, 2]).copy()]
        finally:
            where.disarm()
            step.reset()

    sweep(where, f"{kind} steps", stepped)
    sweep(where, f"{kind} symbols", lambda: [
        layer.stream(B, one_hot=True)(SYMBOLS[0]).copy(),
        layer.stream(B, embedding=np.ones((7, I), np.float32)).block(SYMBOLS).copy()])


def layers(where):
    for layer in (fastrnn.RNN(I, H, seed=0), fastrnn.GRU(I, H, 2, seed=0),
                  fastrnn.LSTM(I, H, bidirectional=True, seed=0)):
        layer_calls(where, layer)
    for cell in (fastrnn.LSTMCell(I, H, seed=0), fastrnn.GRUCell(I, H, seed=0)):
        def step(cell=cell):
            state = cell(X[0])
            return list(state) if isinstance(state, tuple) else [state]

        sweep(where, type(cell).__name__, step)


def programs(where):
    layer_calls(where, fastrnn.LSTM(I, H, proj_size=2, seed=0))
    layer_calls(where, fastrnn.GRU(I, H, reset_after=False, seed=0))


def kernels(where):
    weight, bias = rng.standard_normal((6, I)).astype(np.float32), np.ones(6, np.float32)
    dy = rng.standard_normal((T, 6)).astype(np.float32)
    x = np.ascontiguousarray(X[:, 0])
    sweep(where, "linear", lambda: [linear.linear_forward(x, weight, bias)])

    def backward():
        grads = np.zeros_like(weight), np.zeros_like(bias)
        return [linear.linear_backward(dy, x, weight, *grads), *grads]

    sweep(where, "linear back", backward)
    targets = np.array([0, 5, 1, 2])

    def loss(weights=None):
        grad = np.empty_like(dy)
        return [np.array(softmax_cross_entropy(dy, targets, 0.5, grad, weights)), grad]

    sweep(where, "loss", loss)
    sweep(where, "loss, weights", lambda: loss(np.ones(T)))

    def update(which, *options):
        arrays = [np.linspace(1, 2, 50, dtype=np.float32) + k for k in range(4)]
        row = Ranges([(*arrays[:2], {"m": arrays[2], "v": arrays[3]}, 1.0, 0.1)])
        found = np.array(row.norms(0.5))
        getattr(row, which)(*options)
        return [found, *arrays]

    sweep(where, "adam", lambda: update("adam", 0.1, 0.9, 0.99, 1e-8, 3))
    sweep(where, "sgd", lambda: update("sgd", 0.1, 0.9))
    sweep(where, "rmsprop", lambda: update("rmsprop", 0.1))
    many = [np.ones(40_000, np.float32)] * 40
    sweep(where, "norms", lambda: [np.array(norms(many))])


def models(where):
    model = fastrnn.SequenceModel(fastrnn.GRU(I, H, 2, seed=0), 4, seed=0)
    goals = rng.integers(0, 4, (T, B))

    def train(every=None):
        model.zero_grad()
        p = model.loss(X, goals, recompute_every=every)
        p.backward()
        return [np.array(p.value), *model.grads.values()]

    sweep(where, "model", train)
    sweep(where, "model recomputed", lambda: train(2))
    sweep(where, "model predicts", lambda: [model.predict(X.swapaxes(0, 1))])
    language = fastrnn.LanguageModel(I, 2, H, seed=0)

    def symbols():
        language.zero_grad()
        p = language.loss(SYMBOLS, SYMBOLS)
        p.backward()
        return [np.array(p.value), *language.grads.values()]

    sweep(where, "language model", symbols)

    def sample():
        try:
            return [language.sample([1, 2], 3, seed=0)]
        except RuntimeError as error:  # CPython's word for it, in NumPy's random generator
            if "can't allocate lock" in str(error):
                raise MemoryError from error
            raise

    sweep(where, "sample", sample)
    start = {name: a.copy() for name, a in model.parameters().items()}

    def step():
        for name, a in model.parameters().items():
            a[...] = start[name]
        optimizer = optim.Adam(model)
        optimizer.step(1e-3)
        return list(model.parameters().values())

    train()
    sweep(where, "optimizer", step)


def torch(where):
    torch = pytest.importorskip("torch")
    from fastrnn import torch as bridge

    bridge.set_mode("always")
    tensor = torch.from_numpy(X)
    for kind in ("LSTM", "GRU"):
        torch.manual_seed(0)
        module = bridge.accelerate(getattr(torch.nn, kind)(I, H))

        def act(module=module):
            y, _ = module(tensor)
            if not torch.is_grad_enabled():
                return [y.numpy()]
            grads = torch.autograd.grad(y, [*module.parameters()], torch.ones_like(y))
            return [y.detach().numpy(), *(grad.numpy() for grad in grads)]

        # PyTorch itself may say RuntimeError or SystemError where Python has no memory
        def guarded(act=act):
            try:
                return act()
            except (RuntimeError, SystemError) as error:
                where.disarm()
                raise MemoryError from error

        sweep(where, f"torch {kind}", guarded)
        with torch.no_grad():
            sweep(where, f"torch {kind}, no gradients", guarded)


ENTRIES = {"layers": layers, "programs": programs, "kernels": kernels, "models": models,
           "torch": torch}


def run(name, which, folder):
    changes = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "FASTRNN_NUM_THREADS": "1"}
    if which == "malloc":
        library = failing.preloaded(folder) if sys.platform == "linux" else None
        if library is None:
            pytest.skip("needs a compiler and glibc")
        changes["LD_PRELOAD"] = library
    done = subprocess.run([sys.executable, __file__, name, which], capture_output=True, text=True,
                          check=False, timeout=3000, env=os.environ | changes)
    *_, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, f"after {last!r}: {done.stderr[-3000:]}"
    assert last == "done"
    assert "Exception ignored in: 'fastrnn" not in done.stderr  # by compiled code
    failed = [int(line.split()[-1]) for line in done.stdout.splitlines() if " failed " in line]
    print(f"{name}, {which}: {sum(failed)} allocations failed in {len(failed)} calls")


@pytest.mark.parametrize(("name", "which"), [("kernels", "python"), ("kernels", "malloc"),
                                             ("programs", "malloc")])
def test_every_allocation_may_fail(name, which, tmp_path):
    run(name, which, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["python", "malloc"])
@pytest.mark.parametrize("name", ["layers", "programs", "models", "torch"])
def test_every_allocation_of_all_may_fail(name, which, tmp_path):
    if (name, which) == ("torch", "malloc"):
        pytest.skip("PyTorch's C++ ends the process where it has no memory")
    if name == "torch":
        pytest.importorskip("torch")
    run(name, which, tmp_path)


if __name__ == "__main__":
    ENTRIES[sys.argv[1]]({"python": failing.Python, "malloc": failing.Malloc}[sys.argv[2]]())
    print("done")
