"""Models in several threads, and in children that were forked meanwhile."""

import concurrent.futures as futures
import os
import signal
import sys
import threading

import cases
import numpy as np
import pytest
from kinds import (
    KINDS,
    B,
    arrays,
    data_of,
    grads_of,
    language_of,
    model_of,
    pair_data,
    pair_of,
    some_text,
)

import fastrnn
from fastrnn import GRU, LSTM, LanguageModel, SequenceModel

THREADS = 8


@pytest.fixture(autouse=True)
def _switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(function, count=THREADS, *, times=3):
    """Return function(i) for every i, computed in as many threads that start together."""
    start = threading.Barrier(count)

    def one(i):
        start.wait()
        for _ in range(times):
            result = function(i)
        return result

    with futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def losses_of(name):
    kind, _, every = name.partition(", every ")
    options = {"recompute_every": int(every)} if every else {}
    if kind == "pair":
        model = pair_of()
        data = [pair_data(seed) for seed in range(THREADS)]
        return model, lambda i, **more: model.loss(*data[i][:3], weights=data[i][3], **more)
    if kind == "language":
        model = language_of(num_layers=2)
        data = [some_text(seed) for seed in range(THREADS)]
        return model, lambda i, **more: model.loss(*data[i], **more)
    model = model_of(kind)
    data = [data_of(model, seed) for seed in range(THREADS)]

    def loss(i, **more):
        x, targets, weights, context = data[i]
        return model.loss(x, targets, weights=weights, context=context, **options, **more)

    return model, loss


NAMES = [*KINDS, "numbers, every 2", "from a context, every 2", "pair", "language"]


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_backward_in_threads_with_gradients_of_their_own(name):
    model, loss = losses_of(name)

    def one(i):
        p, grads = loss(i), model.new_grads()
        dx, dstate0 = p.backward(grads=grads, need_dx=True)
        return {"value": np.array(p.value), **grads,
                **({} if dx is None else {"dx": dx}),
                **{f"dstate0[{k}]": a for k, a in enumerate(
                    arrays(dstate0) if isinstance(dstate0, tuple) else [dstate0])}}

    expected = [one(i) for i in range(THREADS)]
    for got, right in zip(in_threads(one), expected, strict=True):
        cases.assert_same_bytes(got, right)
    assert not any(grad.any() for grad in model.grads.values())


def test_in_threads_of_kernels_that_use_threads_themselves():
    rng = np.random.default_rng(0)
    model = SequenceModel([LSTM(16, 128, seed=0), GRU(128, 64, seed=1)], 50, seed=2)
    x = rng.standard_normal((THREADS, 12, 8, 16)).astype("f4")
    targets = rng.integers(0, 50, (THREADS, 12, 8))

    def one(i):
        grads = model.new_grads()
        p = model.loss(x[i], targets[i])
        p.backward(grads=grads)
        return {"value": np.array(p.value), **grads}

    expected = [one(i) for i in range(THREADS)]
    for got, right in zip(in_threads(one, times=2), expected, strict=True):
        cases.assert_same_bytes(got, right)


@pytest.mark.parametrize("mode", ["evaluation", "bfloat16", "training"])
def test_evaluation_losses_in_threads(mode):
    rng = np.random.default_rng(0)
    model = LanguageModel(64, 16, 32, 2, dropout=0.5 if mode == "training" else 0, seed=0)
    if mode != "training":
        model.eval("bfloat16" if mode == "bfloat16" else "float32")
    xs, ys = (rng.integers(0, 64, (THREADS, 20, 32)) for _ in range(2))

    def one(i):
        x, y = xs[i].T, ys[i].T
        return (model.loss(xs[i], ys[i], grad=False).value, model.evaluate(x, y, batch_size=9),
                model.predict(x).tobytes(), model.generate(xs[i][0], 5, seed=i).tobytes(),
                model.sample(xs[i][0], 5, seed=i).tobytes())

    before = model.dropout_state
    expected = [one(i) for i in range(THREADS)]
    assert in_threads(one, 4) == expected[:4]
    assert model.dropout_state == before
    assert [part.mode for part in model.parts().values()] == [mode] * 3


def test_dropout_in_threads_keeps_what_it_drew():
    # which masks a thread draws is left to chance, but its gradients are those of its masks
    model = SequenceModel(LSTM(3, 4, 3, dropout=0.5, dtype=np.float64, seed=0), 4, loss="mse",
                          seed=0)
    x, targets, weights = np.ones((6, 2, 3)), np.ones((6, 2, 4)), np.ones((6, 2))
    weights[-1] = 0

    def one(every):
        p, grads = model.loss(x, targets, weights=weights, recompute_every=every), model.new_grads()
        _, _, recorded = p.backward(grads=grads, record=("x", "h"), retain=True)
        # the states that backward went through give the loss of forward
        outputs = recorded[0][2]["h"][1:, :, 0] @ model.head.weight.T + model.head.bias
        assert p.value == pytest.approx(((outputs - 1) ** 2).mean(), rel=1e-12)
        # where a mask was zero, the layer above read zero
        reads = [recorded[0][k]["x"] == 0 for k in (1, 2)]
        again = model.new_grads()
        _, _, twice = p.backward(grads=again, record=("x", "h"))
        same = all(np.array_equal(twice[0][k]["x"] == 0, reads[k - 1]) for k in (1, 2))
        return same, all(np.array_equal(grads[n], again[n]) for n in grads), reads

    for result in in_threads(lambda i: one(2 if i % 2 else None), times=20):
        assert result[0]
        assert result[1]
        assert any(read.any() for read in result[2])


@pytest.mark.parametrize("every", [None, 2])
def test_two_threads_that_add_to_the_models_gradients_are_refused_or_right(every):
    model, loss = losses_of("numbers")
    x, targets, weights, _ = data_of(model, 0)

    def one(i):
        done = 0
        for _ in range(30):
            p = model.loss(x, targets, weights=weights, recompute_every=every)
            try:
                p.backward()
                done += 1
            except RuntimeError as error:
                assert "another thread is adding to the same gradients" in str(error)  # noqa: PT017
        return done

    loss(0).backward()
    single = grads_of(model)
    model.zero_grad()
    done = sum(in_threads(one, times=1))
    assert done
    for name, grad in grads_of(model).items():  # whoever was refused has added nothing
        np.testing.assert_allclose(grad, done * single[name], rtol=1e-9, atol=1e-15)


def in_child(function):
    """Run a function in a forked child; fail unless it returns true within 20 s."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        ok = False
        try:
            ok = function()
        finally:
            os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_during_another_threads_call_can_train(threads):
    fastrnn.set_num_threads(2)
    rng = np.random.default_rng(0)
    model = LanguageModel(64, 32, 128, 2, seed=0)
    x, y = rng.integers(0, 64, (2, 30, 16))
    model.loss(x, y).backward()
    expected = grads_of(model)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            model.loss(x, y).backward()

    def train():
        model.zero_grad()
        model.loss(x, y).backward()
        return all(np.array_equal(grad, expected[name])
                   for name, grad in model.grads.items())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(12):
            in_child(train)
    finally:
        stop.set()
        thread.join()


def test_a_model_in_one_thread_while_another_copies_and_prints_it():
    model, loss = losses_of("numbers")
    expected = []
    for i in range(THREADS):
        model.zero_grad()
        loss(i).backward()
        expected.append(grads_of(model))

    def one(i):
        if i:
            return str(model), model.state_dict(), model.predict(np.zeros((2, B, 2)))
        found = []
        for k in range(THREADS):
            grads = model.new_grads()
            loss(k).backward(grads=grads)
            found.append(grads)
        return found

    for got, right in zip(in_threads(one, 3)[0], expected, strict=True):
        cases.assert_same_bytes(got, right)
