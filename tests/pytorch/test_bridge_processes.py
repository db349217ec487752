"""Other processes and pools: forked workers, DDP, spawned processes."""

import os
import subprocess
import sys
import textwrap
import types

import pytest
import twins

torch = pytest.importorskip("torch")
bridge = twins.bridge

from fastrnn.torch import team  # noqa: E402


def start(tmp_path, script, **environment):
    """Run a script in a process of its own, which has no other test's threads; return its words."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script))
    run = subprocess.run([sys.executable, str(path)], cwd=tmp_path, text=True, timeout=120,
                         capture_output=True, check=False,
                         env=os.environ | {"OMP_NUM_THREADS": "2"} | environment)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.mark.parametrize("threads", [1, 2])
def test_workers_of_a_loader_that_fork(tmp_path, threads):
    words = start(tmp_path, f"""
        import torch
        from fastrnn import torch as bridge
        torch.set_num_threads({threads})
        bridge.set_mode("always")
        torch.manual_seed(0)
        model = bridge.accelerate(torch.nn.GRU(8, 16, 2))
        inputs = torch.randn(6, 10, 8)
        with torch.no_grad():
            before = [model(x)[0] for x in inputs]  # both pools have run before the fork

        class Data(torch.utils.data.Dataset):
            def __len__(self):
                return len(inputs)

            def __getitem__(self, k):
                y, _ = model(inputs[k])
                model.zero_grad()
                y.sum().backward()
                assert model.weight_hh_l0.grad.abs().sum() > 0
                return y.detach()

        loader = torch.utils.data.DataLoader(Data(), num_workers=2, batch_size=2,
                                             multiprocessing_context="fork")
        got = torch.cat(list(loader))
        torch.testing.assert_close(got, torch.stack(before))
        model(inputs[0])[0].sum().backward()  # the parent goes on
        print("equal")
    """)
    assert words == ["equal"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_share_a_model(tmp_path, method):
    words = start(tmp_path, f"""
        import torch
        import torch.multiprocessing as multiprocessing
        from fastrnn import torch as bridge

        def work(model, x, expected, queue):
            torch.set_num_threads(1)
            bridge.set_mode("always")
            with torch.no_grad():
                torch.testing.assert_close(model(x)[0], expected)
                model.bias_hh_l0.fill_(3)  # the other process sees it
            queue.put("equal")

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            torch.manual_seed(0)
            model = bridge.accelerate(torch.nn.LSTM(4, 5)).requires_grad_(False)
            model.share_memory()
            x, queue = torch.randn(3, 2, 4), context.Queue()
            y = model(x)[0].clone()
            process = context.Process(target=work, args=(model, x, y, queue))
            process.start()
            print(queue.get(timeout=100))
            process.join()
            assert not torch.equal(model(x)[0], y)
            print(process.exitcode)
    """)
    assert words == ["equal", "0"]


def test_one_process_of_ddp(tmp_path):
    words = start(tmp_path, """
        import os
        import torch
        import torch.distributed as distributed
        from torch.nn.parallel import DistributedDataParallel
        from fastrnn import torch as bridge

        bridge.set_mode("always")
        distributed.init_process_group("gloo", init_method=f"file://{os.getcwd()}/store",
                                       rank=0, world_size=1)
        seen = []
        for accelerated in (False, True):
            torch.manual_seed(0)
            model = torch.nn.GRU(4, 5, 2, bidirectional=True).double()
            if accelerated:
                bridge.accelerate(model)
            wrapped = DistributedDataParallel(model)
            optimiser = torch.optim.SGD(wrapped.parameters(), 0.1)
            x = torch.randn(3, 2, 4, dtype=torch.float64)
            for _ in range(3):
                optimiser.zero_grad()
                wrapped(x)[0].square().sum().backward()
                optimiser.step()
            seen.append([p.detach() for p in model.parameters()])
        torch.testing.assert_close(seen[1], seen[0])
        assert sum(row.accelerated for row in bridge.report(model).rows) == 3
        distributed.destroy_process_group()
        print("equal")
    """)
    assert words == ["equal"]


def test_two_threads_of_both_pools(tmp_path):
    """The number of threads may change between calls; the values do not."""
    words = start(tmp_path, """
        import torch
        from fastrnn import torch as bridge

        bridge.set_mode("always")
        torch.manual_seed(0)
        model = bridge.GRU(32, 64, 2)
        x = torch.randn(20, 16, 32)
        weight = torch.randn(500, 500)
        seen = []
        for count in (1, 2, 4, 2, 1):
            torch.set_num_threads(count)
            assert torch.get_num_threads() == count
            weight @ weight
            model.zero_grad()
            y = model(x)[0]
            y.square().sum().backward()
            seen.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
        for values in seen[1:]:
            for a, b in zip(values, seen[0]):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        print("close")
    """, FASTRNN_OVERSUBSCRIBE="1")
    assert words == ["close"]


def test_torch_from_another_thread_first(tmp_path):
    """The first call of all, and its backward, in a thread that ends before the next."""
    words = start(tmp_path, """
        import threading
        import torch
        from fastrnn import torch as bridge

        bridge.set_mode("always")
        model = bridge.RNN(4, 5)
        run = lambda: model(torch.randn(3, 2, 4))[0].sum().backward()
        for _ in range(3):
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        run()
        print(sum(row.accelerated for row in bridge.report(model).rows))
    """)
    assert words == ["4"]


LEARN = """
    import sys
    import torch
    from fastrnn import torch as bridge
    from fastrnn._kernels import runtime

    bridge.set_mode("always")

    def gradient(threads, seed=0):
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        model = bridge.accelerate(torch.nn.LSTM(40, 64, 2, bidirectional=True))
        head = torch.nn.Linear(128, 128)
        x = torch.randn(20, 16, 40)
        head(model(x)[0]).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])
"""


def test_calls_run_on_torchs_own_threads(tmp_path):
    """The pool makes no threads; the numbers are those of one thread, bit by bit."""
    words = start(tmp_path, textwrap.dedent(LEARN) + textwrap.dedent("""
        one = gradient(1)
        print(torch.equal(gradient(2), one), torch.equal(gradient(3), one), runtime.pool_workers())
        runtime.set_team(0, 0, 0)
        print(torch.equal(gradient(2), one), runtime.pool_workers())
    """), FASTRNN_OVERSUBSCRIBE="1")
    team, others, workers, alone, hired = words
    assert [team, others, alone] == ["True"] * 3
    if "parallel backend: OpenMP" in torch.__config__.parallel_info():
        assert workers == "0"
    assert int(hired) >= 1


def test_a_child_with_threads_of_its_own(tmp_path):
    """After fork OpenMP's threads are gone; a child that asks for two gets the pool's."""
    words = start(tmp_path, textwrap.dedent(LEARN) + textwrap.dedent("""
        import os
        torch.set_num_threads(2)
        model = bridge.accelerate(torch.nn.LSTM(40, 64, 2))
        x = torch.randn(20, 16, 40)
        with torch.no_grad():
            before = model(x)[0]
            child = os.fork()
            if not child:
                torch.set_num_threads(2)
                os._exit(0 if torch.equal(model(x)[0], before) else 1)
        print(os.waitpid(child, 0)[1], torch.equal(gradient(2), gradient(1)))
    """))
    assert words == ["0", "True"]


def test_several_python_threads_with_a_team_each(tmp_path):
    words = start(tmp_path, textwrap.dedent(LEARN) + textwrap.dedent("""
        from concurrent.futures import ThreadPoolExecutor
        one = gradient(1)
        torch.set_num_threads(2)
        model = bridge.accelerate(torch.nn.GRU(40, 64, 2))
        x = torch.randn(20, 16, 40)
        with torch.no_grad():
            expected = model(x)[0]
            with ThreadPoolExecutor(4) as pool:
                got = list(pool.map(lambda _: model(x)[0], range(200)))
        print(all(torch.equal(y, expected) for y in got), torch.equal(gradient(2), one))
    """))
    assert words == ["True", "True"]


def test_a_pytorch_with_other_threads_leaves_the_pool_its_own(monkeypatch):
    given = []
    monkeypatch.setattr(team, "runtime", types.SimpleNamespace(
        set_team=lambda *functions: given.append(functions)))
    monkeypatch.setattr(torch.__config__, "parallel_info",
                        lambda: "ATen parallel backend: native thread pool")
    team.join()
    assert given == []


def test_a_pytorch_without_the_exchange_interface(tmp_path):
    """PyTorch before 2.10: arrays come from Tensor.numpy(), new tensors from torch.empty."""
    words = start(tmp_path, """
        import torch
        if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
            del torch.Tensor.__dlpack_c_exchange_api__
        from fastrnn import torch as bridge

        bridge.set_mode("always")
        for kind in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"):
            torch.manual_seed(1)
            theirs = getattr(torch.nn, kind)(3, 5).double()
            ours = getattr(bridge, kind)(3, 5).double()
            ours.load_state_dict(theirs.state_dict())
            x = torch.randn(2, 3).double() if "Cell" in kind else torch.randn(4, 2, 3).double()
            grads = []
            for module in (theirs, ours):
                y = module(x)
                while not isinstance(y, torch.Tensor):
                    y = y[0]
                y.square().sum().backward()
                grads.append([y.detach(), *(p.grad for p in module.parameters())])
            torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-13)
            assert bridge.report(ours).rows[0].accelerated
            for other in (x.to_sparse(), x.half(), x.to("meta"), 3):
                errors = []
                for module in (theirs, ours):
                    try:
                        module(other)
                        errors.append("none")
                    except Exception as error:
                        errors.append(type(error).__name__)
                assert errors[0] == errors[1], (other, errors)
        print("equal")
    """)
    assert words == ["equal"]
