"""Processes that others start, after the pool has: joblib, concurrent.futures, Dask, Ray.

fork, spawn and forkserver by themselves are in tests/kernels/test_threads.py. Each worker computes
the same bits as the parent, on its own pool, and nobody hangs.
"""

import subprocess
import sys
import textwrap

import children
import pytest

# Importable by every worker: `work(k)` returns a hash of a training step and of a stream's step.
MODULE = """
import hashlib
import numpy as np
import fastrnn
from fastrnn._kernels import runtime

def work(k=0):
    layer = fastrnn.LSTM(40, 70, seed=k)
    x = np.sin(np.arange(6 * 24 * 40, dtype=np.float32) + k).reshape(6, 24, 40)
    y, _, p = layer.forward(x)
    dx, _ = p.backward(y)
    step = layer.eval().stream(24)
    parts = (y, dx, *layer.grads.values(), step(x[0]))
    return hashlib.sha256(b"".join(a.tobytes() for a in parts)).hexdigest()

def call(layer, x):
    return layer(x)[0]
"""

START = """
import os, sys, threading, warnings
import numpy as np
import fastrnn
from fastrnn._kernels import runtime
import work

warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)

def main():
    fastrnn.set_num_threads(3)
    expected = [work.work(k) for k in range(8)]
    assert runtime.pool_workers() >= 2
    layer = fastrnn.GRU(4, 8, seed=0).eval()
    x = np.ones((5, 3, 4), np.float32)
    y = layer(x)[0]
    stop = threading.Event()
    busy = threading.Thread(target=lambda: [work.work() for _ in iter(stop.is_set, True)])
    busy.start()  # the pool is in use while workers start
    try:
        run(expected, layer, x, y)
    finally:
        stop.set()
        busy.join()
    assert [work.work(k) for k in range(8)] == expected  # and the parent goes on
    print("equal")

"""

RUNS = {
    "futures": """
def run(expected, layer, x, y):
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    for method in multiprocessing.get_all_start_methods():
        with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
            assert list(pool.map(work.work, range(8))) == expected, method
            assert pool.submit(work.call, layer, x).result().tobytes() == y.tobytes()
""",
    "pool": """
def run(expected, layer, x, y):
    import multiprocessing
    for method in multiprocessing.get_all_start_methods():
        for _ in range(2):
            with multiprocessing.get_context(method).Pool(2, maxtasksperchild=2) as pool:
                assert pool.map(work.work, range(8), 1) == expected, method
                assert pool.apply(work.call, (layer, x)).tobytes() == y.tobytes()
""",
    "joblib": """
def run(expected, layer, x, y):
    import joblib
    for backend in ("loky", "threading", "multiprocessing"):
        jobs = joblib.Parallel(2, backend=backend)
        for _ in range(2):
            assert jobs(joblib.delayed(work.work)(k) for k in range(8)) == expected, backend
        a, b = jobs(joblib.delayed(work.call)(layer, x) for _ in range(2))
        assert a.tobytes() == b.tobytes() == y.tobytes()
    from joblib.externals.loky import get_reusable_executor
    get_reusable_executor().shutdown(wait=True)
""",
    "dask": """
def run(expected, layer, x, y):
    import dask
    tasks = [dask.delayed(work.work)(k) for k in range(8)]
    tasks.append(dask.delayed(work.call)(layer, x))
    for scheduler in ("threads", "processes", "synchronous"):
        *found, last = dask.compute(*tasks, scheduler=scheduler, num_workers=2)
        assert found == expected, scheduler
        assert last.tobytes() == y.tobytes()
""",
    "distributed": """
def run(expected, layer, x, y):
    import distributed
    for processes in (True, False):
        with distributed.LocalCluster(n_workers=2, threads_per_worker=2, processes=processes,
                                      dashboard_address=None) as cluster:
            with distributed.Client(cluster) as client:
                assert client.gather(client.map(work.work, range(8))) == expected
                assert client.submit(work.call, layer, x).result().tobytes() == y.tobytes()
""",
    "ray": """
def run(expected, layer, x, y):
    import ray
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    f, g = ray.remote(work.work), ray.remote(work.call)
    assert ray.get([f.remote(k) for k in range(8)]) == expected
    kept = ray.put(x)  # read-only memory that the workers share
    assert all(ray.get(g.remote(layer, kept)).tobytes() == y.tobytes() for _ in range(3))
    Actor = ray.remote(type("Actor", (), {
        "__init__": lambda self, layer: setattr(self, "step", layer.stream(3)),
        "step_on": lambda self, x: self.step(x)}))
    actor, step = Actor.remote(layer), layer.stream(3)
    for t in range(5):
        assert ray.get(actor.step_on.remote(x[t])).tobytes() == step(x[t]).tobytes()
    ray.shutdown()
""",
}
PACKAGES = {"joblib": ["joblib"], "dask": ["dask", "cloudpickle"], "distributed": ["distributed"],
            "ray": ["ray"]}


def run(folder, name):
    for package in PACKAGES.get(name, ()):
        pytest.importorskip(package)
    (folder / "work.py").write_text(textwrap.dedent(MODULE))
    program = folder / "main.py"
    program.write_text(START + RUNS[name] + "\nif __name__ == '__main__':\n    main()\n")
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=300, check=False,
        env=children.environment(
            FASTRNN_OVERSUBSCRIBE="1", PYTHONPATH=f"{children.HOME}:{folder}",
            RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0"))
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    assert done.stdout.split()[-1] == "equal"


@pytest.mark.parametrize("name", ["futures", "joblib"])
def test_workers_that_start_after_the_pool(tmp_path, name):
    run(tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("futures", "joblib")])
def test_workers_of_other_libraries(tmp_path, name):
    run(tmp_path, name)
