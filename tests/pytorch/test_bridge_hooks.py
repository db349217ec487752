"""What watches a program: hooks on saved tensors, checkpointing, anomaly mode, a default device."""

import weakref

import pytest
import twins

torch = pytest.importorskip("torch")

from torch.autograd.graph import saved_tensors_hooks  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import fastrnn.torch as bridge  # noqa: E402

FORMS = ["rnn_tanh", "rnn_relu", "lstm", "gru", "lstm, projection", "gru, packed", "lstm, cell",
         "gru, two layers"]


@pytest.fixture(params=FORMS)
def pair(request):
    """Return two functions (x) -> y of PyTorch's module and of its twin, the twin, and x."""
    cell, _, form = request.param.partition(", ")
    options = {"projection": {"proj_size": 2}, "two layers": {"num_layers": 2}}.get(form, {})
    modules = twins.twins(cell, 3, 5, single=form == "cell", **options)
    x = twins.normal(*((4, 3) if form == "cell" else (4, 2, 3))).detach()

    def function(module):
        def call(x):
            if form == "packed":
                return module(pack_padded_sequence(x, torch.tensor([4, 3])))[0].data
            return module(x)[0]

        return call

    return *map(function, modules), *modules, x


def identity(tensor):
    return tensor


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
def test_checkpoints_in_every_mode(pair, mode):
    *functions, theirs, ours, x = pair
    gradients = []
    with bridge.mode(mode):
        for function, module in zip(functions, (theirs, ours), strict=True):
            for _ in range(2):  # the first call with a size may be timed
                leaf = x.clone().requires_grad_()
                y = checkpoint(function, leaf, use_reentrant=False)
                found = torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()],
                                            allow_unused=True)
            gradients.append(found)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_backward_has_its_inputs_from_the_hooks(pair):
    """What is changed after it was saved as a copy changes no gradient."""
    *functions, theirs, ours, x = pair
    gradients = []
    for function, module in zip(functions, (theirs, ours), strict=True):
        leaf = x.clone().requires_grad_()
        given = leaf * 1
        with saved_tensors_hooks(torch.clone, identity):
            y = function(given).square().sum()
        for tensor in (given, *module.parameters()):
            tensor.data.zero_()
        gradients.append(torch.autograd.grad(y, [leaf, *module.parameters()], allow_unused=True))
    torch.testing.assert_close(gradients[1], gradients[0])
    assert any(gradient is not None and gradient.any() for gradient in gradients[1])


def test_hooks_give_the_memory_of_the_input_back(pair):
    *functions, _, _, x = pair
    alive = []
    for function in functions:
        given = x.clone().requires_grad_() * 1
        reference = weakref.ref(given)
        with saved_tensors_hooks(torch.clone, identity):
            y = function(given)
        del given
        alive.append(reference() is not None)
        assert y.requires_grad
    assert alive == [False, False]


def test_hooks_see_the_tensors_of_one_call():
    """Not those of the calls that find out which way is faster."""
    module = bridge.GRU(3, 6)
    seen = []
    with bridge.mode("auto"):
        for _ in range(2):
            with saved_tensors_hooks(lambda tensor: seen.append(tensor) or tensor, identity):
                module(torch.randn(5, 2, 3))
            seen.append(None)
    first, second = seen.index(None), len(seen) - 2 - seen.index(None)
    assert 0 < first == second


@pytest.mark.parametrize(("call", "error"), [
    (lambda: bridge.report(3), TypeError), (lambda: bridge.set_mode(torch.ones(2)), ValueError)])
def test_errors_of_the_bridge_name_what_came(call, error):
    with pytest.raises(error, match=r"(model|name) is .*, expected"):
        call()


def test_a_hook_that_gives_back_another_tensor_is_an_error():
    module = bridge.GRU(3, 6)
    with bridge.mode("always"), saved_tensors_hooks(torch.Tensor.double, identity):
        y, _ = module(torch.randn(5, 2, 3))
    module.zero_grad()
    y.sum().backward()  # all of float64: they fit each other
    assert module.weight_hh_l0.grad.dtype == torch.float32
    with bridge.mode("always"), saved_tensors_hooks(lambda tensor: tensor[:1], identity):
        y, _ = module(torch.randn(5, 2, 3))
    with pytest.raises(RuntimeError, match="GRU: a tensor that backward needs cannot be read"):
        y.sum().backward()


def test_anomaly_mode_looks_for_nan_in_the_users_backward_alone(pair):
    *functions, x = *pair[:2], pair[4]
    x = x.clone()
    x[0] = float("nan")
    for function in functions:
        with bridge.mode("auto"), torch.autograd.set_detect_anomaly(True):
            y = function(x.requires_grad_())
            with pytest.raises(RuntimeError, match="nan values"):
                y.sum().backward()


@pytest.mark.parametrize("how", ["default", "context"])
def test_the_cpu_as_device_changes_nothing(how):
    module = bridge.GRU(3, 6)
    with bridge.mode("always"):
        if how == "context":
            with torch.device("cpu"):
                module(torch.randn(5, 2, 3))
        else:
            torch.set_default_device("cpu")
            try:
                module(torch.randn(5, 2, 3))
            finally:
                torch.set_default_device(None)
    twins.assert_accelerated(module)
