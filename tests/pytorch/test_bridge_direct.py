"""Calls of accelerated modules that go to the operator at once, and those that must not."""

import re

import pytest
import twins

torch = pytest.importorskip("torch")
bridge = twins.bridge

nn = torch.nn

KINDS = ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"]


def pair_of(kind, **options):
    """Return a module of torch.nn and ours with the same float64 parameters."""
    torch.manual_seed(3)
    theirs = getattr(nn, kind)(3, 5, **options).double()
    ours = getattr(bridge, kind)(3, 5, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def example(kind):
    return torch.randn(2, 3).double() if "Cell" in kind else torch.randn(4, 2, 3).double()


def flat(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else [
        tensor for part in outputs for tensor in flat(part)]


@pytest.fixture
def reads(monkeypatch):
    """Count the calls that PyTorch's own code reads."""
    seen = []
    for kind in KINDS:
        known = getattr(nn, kind).forward.__code__
        assert getattr(bridge, kind).forward.__wrapped__.__code__ is known
    vf = bridge.modules._VF
    for name, function in list(bridge.operators.FUNCTIONS.items()):
        def counted(*args, _function=function, **kwargs):
            seen.append(_function.__name__)
            return _function(*args, **kwargs)
        monkeypatch.setitem(vf.__dict__, name, counted)
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_plain_calls_have_torchs_values_and_gradients(kind, given, bias, reads):
    theirs, ours = pair_of(kind, bias=bias)
    results = []
    for module in (theirs, ours):
        torch.manual_seed(4)
        x = example(kind).requires_grad_()
        shape = (2, 5) if "Cell" in kind else (1, 2, 5)
        h = torch.randn(shape).double().requires_grad_()
        c = torch.randn(shape).double().requires_grad_()
        hx = ((h, c) if "LSTM" in kind else h) if given else None
        outputs = flat(module(x, hx))
        sum(((i + 1) * y.square()).sum() for i, y in enumerate(outputs)).backward()
        leaves = [x, *([h] if given else []), *([c] if given and "LSTM" in kind else []),
                  *module.parameters()]
        results.append([y.detach() for y in outputs] + [leaf.grad for leaf in leaves])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)
    assert not reads
    assert type(ours(example(kind))) is type(theirs(example(kind)))


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("options", [{"batch_first": True}, {"num_layers": 3},
                                     {"bidirectional": True, "num_layers": 2}])
def test_layers_directions_and_batch_first(kind, options, reads):
    theirs, ours = pair_of(kind, **options)
    for want, got in zip(flat(theirs(example(kind))), flat(ours(example(kind))), strict=True):
        assert want.shape == got.shape
    x = example(kind)
    for want, got in zip(flat(theirs(x)), flat(ours(x)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    assert not reads


@pytest.mark.parametrize("kind", ["RNN", "RNNCell"])
def test_relu(kind, reads):
    theirs, ours = pair_of(kind, nonlinearity="relu")
    x = example(kind)
    torch.testing.assert_close(flat(ours(x)), flat(theirs(x)), rtol=1e-12, atol=1e-14)
    assert not reads


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_arguments_get_torchs_own_error(kind):
    theirs, ours = pair_of(kind)
    good = example(kind)
    state = torch.zeros(2, 5).double() if "Cell" in kind else torch.zeros(1, 2, 5).double()
    wide = torch.zeros(*state.shape[:-1], 6).double()
    pair = "LSTM" in kind
    for x, hx in [
        (good.float(), None), (good[..., :2], None), (good[None, None], None), (None, None),
        ("text", None), (good, (wide, wide) if pair else wide), (good, 3),
        (good, state if pair else (state, state)),
        (good, (state, state, state)), (good, (state, None) if pair else (None,)),
    ]:
        try:
            theirs(x, hx)
        except Exception as error:
            with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
                ours(x, hx)
        else:
            ours(x, hx)


def test_a_state_in_a_list():
    theirs, ours = pair_of("LSTM")
    x, h, c = example("LSTM"), torch.ones(1, 2, 5).double(), torch.ones(1, 2, 5).double()
    torch.testing.assert_close(flat(ours(x, [h, c])), flat(theirs(x, [h, c])), rtol=1e-12,
                               atol=1e-14)


def test_a_replaced_weight_is_used():
    for kind, name in [("GRU", "weight_hh_l0"), ("GRUCell", "weight_hh")]:
        theirs, ours = pair_of(kind)
        x = example(kind)
        for module in (theirs, ours):
            module(x)
            setattr(module, name, nn.Parameter(torch.ones(15, 5).double()))
        torch.testing.assert_close(flat(ours(x)), flat(theirs(x)), rtol=1e-12, atol=1e-14)
        # behind the module's back: what functional_call does
        for module in (theirs, ours):
            module._parameters[name] = nn.Parameter(torch.full((15, 5), 0.5).double())
        torch.testing.assert_close(flat(ours(x)), flat(theirs(x)), rtol=1e-12, atol=1e-14)


def test_methods_of_a_users_class_are_called():
    called = []

    class Checked(nn.GRU):
        def check_forward_args(self, *args):
            called.append(args)
            return super().check_forward_args(*args)

    class Plain(nn.GRU):
        def forward(self, x, hx=None):
            return super().forward(2 * x, hx)

    for base, plain in ((Checked, False), (Plain, True)):
        module = bridge.accelerate(base(3, 5))
        assert type(module)._is_plain is plain
        module(torch.randn(4, 2, 3))
    assert len(called) == 1


def test_modes_of_the_interpreter_see_the_call():
    _, ours = pair_of("LSTM")
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(getattr(function, "__name__", ""))
            return function(*args, **(kwargs or {}))

    with Watch():
        ours(example("LSTM"))
    assert "lstm" in seen
    x = example("LSTM")
    with torch.device("meta"):  # where new tensors go; those of a call go where its input is
        y, _ = ours(x)
    assert y.device.type == "cpu"
    torch.testing.assert_close(y, ours(x)[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("function", sorted(bridge.operators.FUNCTIONS))
def test_no_state_is_an_error_of_the_operator(function):
    """torch._VF itself needs a state; only a module may leave it out."""
    operator = bridge.operators.OPERATORS[function]
    weights = [torch.zeros(5 * operator.gates, 3), torch.zeros(5 * operator.gates, 5)]
    x = torch.zeros(2, 3) if operator.is_cell else torch.zeros(4, 2, 3)
    args = ((x, None, *weights, None, None) if operator.is_cell
            else (x, None, weights, False, 1, 0.0, False, False, False))
    with pytest.raises((TypeError, RuntimeError)) as theirs:
        getattr(torch._C._VariableFunctions, function)(*args)
    with pytest.raises(type(theirs.value)):
        bridge.operators.FUNCTIONS[function](*args)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("wanted", [("weight_ih_l0",), ("bias_hh_l0",), ("bias_ih_l0",),
                                    ("weight_hh_l0", "bias_ih_l0"), ()])
def test_gradients_of_a_subset(kind, wanted):
    """Frozen weights have no gradient; those that are left keep theirs."""
    theirs, ours = pair_of(kind)
    x = example(kind).requires_grad_()
    grads = []
    for module in (theirs, ours):
        x.grad = None
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in wanted)
        y, _ = module(x)
        (y * torch.arange(1.0, y.numel() + 1).reshape(y.shape)).sum().backward()
        assert {name for name, p in module.named_parameters() if p.grad is not None} == set(wanted)
        grads.append([x.grad] + [p.grad for p in module.parameters() if p.grad is not None])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-11, atol=1e-11)
