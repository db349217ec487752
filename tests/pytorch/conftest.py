"""One thread, the mode "always" and no patch, before each test and after it."""

import contextlib

import pytest

pytest.register_assert_rewrite("twins")


@pytest.fixture(autouse=True)
def deterministic():
    """Leave PyTorch and the bridge as they were."""
    try:
        import torch

        from fastrnn import torch as bridge
    except ModuleNotFoundError:
        yield  # the test files are skipped
        return
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)  # two pools of threads would wait for each other
    torch.manual_seed(0)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.callback(torch.set_default_dtype, dtype)
        stack.callback(bridge.unpatch)
        stack.enter_context(bridge.mode("always"))
        yield
