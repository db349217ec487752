"""PyTorch, LightGBM, scikit-learn, Polars and fastrnn in one process, imported in any order.

Each has threads of its own, and each computes before and after the others: same results, no crash,
no hang. A process for each order.
"""

import itertools
import subprocess
import sys

import children
import pytest

LIBRARIES = ("fastrnn", "torch", "lightgbm", "sklearn", "polars")

PROGRAM = """
import sys, threading, warnings
import numpy as np

order, start = sys.argv[1].split(","), {}
rng = np.random.default_rng(0)
a = rng.standard_normal((400, 20)).astype(np.float32)
goals = (a[:, 0] > 0).astype(int)

def start_fastrnn():
    import fastrnn
    fastrnn.set_num_threads(2)
    x = a.reshape(20, 20, 20)
    def job():
        layer = fastrnn.LSTM(20, 70, seed=0)
        y, _, p = layer.forward(x)
        dx, _ = p.backward(y)
        return b"".join(g.tobytes() for g in (y, dx, *layer.grads.values()))
    return job

def start_torch():
    import torch
    torch.set_num_threads(2)
    def job():
        torch.manual_seed(0)
        gru = torch.nn.GRU(20, 70)
        y, _ = gru(torch.from_numpy(a.reshape(20, 20, 20)))
        y.sum().backward()
        return y.detach().numpy().round(3).tobytes()
    return job

def start_lightgbm():
    import lightgbm
    def job():
        model = lightgbm.LGBMClassifier(n_estimators=5, n_jobs=2, verbose=-1, seed=0,
                                        deterministic=True, force_row_wise=True)
        model.fit(a, goals)
        return model.booster_.predict(a).tobytes()
    return job

def start_sklearn():
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression
    def job():
        means = KMeans(3, n_init=1, random_state=0).fit(a)
        return (LogisticRegression().fit(a, goals).predict(a).tobytes()
                + means.cluster_centers_.round(3).tobytes())
    return job

def start_polars():
    import polars
    def job():
        frame = polars.DataFrame({"k": np.arange(20000) % 97, "v": np.arange(20000.0)})
        return repr(frame.lazy().group_by("k").agg(polars.col("v").sum()).sort("k").collect()
                    .to_dict(as_series=False)).encode()
    return job

jobs = {}
for name in order:  # each computes at once: its threads are warm when the next is imported
    jobs[name] = globals()[f"start_{name}"]()
    jobs[name]()
first = {name: job() for name, job in jobs.items()}
for name in reversed(order):
    assert jobs[name]() == first[name], name
# all at once, each from a thread of its own
wrong = []
def beside(name):
    for _ in range(2):
        if jobs[name]() != first[name]:
            wrong.append(name)
threads = [threading.Thread(target=beside, args=(name,)) for name in order if name != "lightgbm"]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not wrong, wrong
import hashlib
print(hashlib.sha256(first["fastrnn"]).hexdigest())
"""


def run(order):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(order)], capture_output=True, text=True,
        timeout=120, check=False, env=children.environment(FASTRNN_OVERSUBSCRIBE="1"))
    assert done.returncode == 0, (order, done.returncode, done.stderr[-2000:])
    return done.stdout.split()[-1]


@pytest.mark.parametrize("order", [
    ("fastrnn", "torch", "sklearn"), ("sklearn", "torch", "fastrnn")], ids=", ".join)
def test_a_few_orders(order):
    for name in order:
        pytest.importorskip(name)
    assert run(order) == run(("fastrnn",))


@pytest.mark.slow
def test_every_order():
    for name in LIBRARIES:
        pytest.importorskip(name)
    expected, count = run(("fastrnn",)), 0
    for order in itertools.permutations(LIBRARIES):
        assert run(order) == expected, order
        count += 1
        print(count, *order, flush=True)
    print(f"{count} orders of {len(LIBRARIES)} libraries")
    assert count == 120
