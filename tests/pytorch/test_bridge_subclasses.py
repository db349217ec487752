"""Users' own classes of recurrent modules: overridden methods, copies, and classes that refuse."""

import copy
import gc
import pickle
import weakref

import pytest
import twins

torch = pytest.importorskip("torch")

import fastrnn.torch as bridge  # noqa: E402


class Counting(bridge.GRU):
    """Its check of the arguments counts them."""

    calls = 0

    def check_forward_args(self, input, hidden, batch_sizes):
        self.calls += 1
        super().check_forward_args(input, hidden, batch_sizes)


class CountingTheirs(torch.nn.GRU):
    calls = 0

    def check_forward_args(self, input, hidden, batch_sizes):
        self.calls += 1
        super().check_forward_args(input, hidden, batch_sizes)


class Remade(torch.nn.GRU):
    """Copies of it are made from its sizes, and have no weights of it."""

    def __reduce__(self):
        return type(self), (self.input_size, self.hidden_size)


class RemadeByFunction(torch.nn.GRU):
    def __reduce__(self):
        return remade, (self.input_size, self.hidden_size, self.state_dict())


def remade(I, H, weights):
    module = RemadeByFunction(I, H)
    module.load_state_dict(weights)
    return module


class RemadeByMethod(torch.nn.GRU):
    def __reduce__(self):
        return type(self).make, (type(self), self.input_size, self.hidden_size, self.state_dict())

    @classmethod
    def make(cls, kind, I, H, weights):
        module = kind(I, H)
        module.load_state_dict(weights)
        return module


class Registered(torch.nn.GRU):
    known = []

    def __init_subclass__(cls, name, **options):
        super().__init_subclass__(**options)
        Registered.known.append((name, cls))


class Final(type):
    def __new__(cls, name, bases, content):
        if any(isinstance(base, Final) for base in bases):
            raise TypeError(f"{name}: its base is final")
        return super().__new__(cls, name, bases, content)


class Alone(torch.nn.GRU, metaclass=Final):
    pass


@pytest.mark.parametrize("make", [
    Counting, lambda *sizes: bridge.accelerate(CountingTheirs(*sizes))],
    ids=["ours", "accelerated"])
def test_methods_that_a_subclass_overrides_are_called(make):
    module = make(3, 4)
    with bridge.mode("always"):
        module(torch.randn(5, 2, 3))
        module(torch.randn(5, 2, 3))
    assert module.calls == 2
    twins.assert_accelerated(module)


def test_a_subclass_without_methods_is_as_fast_as_ours():
    class Plain(bridge.LSTM):
        pass

    assert Plain._is_plain
    assert not Counting._is_plain


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", [Remade, RemadeByFunction, RemadeByMethod])
def test_copies_that_a_subclass_makes_itself(kind, copied):
    module = bridge.accelerate(kind(3, 4))
    made = copied(module)
    assert type(made) is type(module)
    x = torch.randn(5, 2, 3)
    with bridge.mode("always"):
        assert made(x)[0].shape == (5, 2, 4)
        if kind is not Remade:  # they hand their weights on
            assert torch.equal(made(x)[0], module(x)[0])
    twins.assert_accelerated(made)
    assert type(bridge.restore(made)) is kind


def test_a_class_from_which_none_can_be_derived_changes_nothing():
    model = torch.nn.Sequential(torch.nn.GRU(3, 4), torch.nn.ModuleList([Alone(4, 4)]))
    with pytest.raises(TypeError, match=r"accelerate: from Alone no class can be derived: .*final"):
        bridge.accelerate(model)
    assert type(model[0]) is torch.nn.GRU
    assert type(model[1][0]) is Alone


def test_a_users_hook_on_subclasses_is_called_for_the_users_own_alone():
    module = bridge.accelerate(Registered(3, 4))
    assert Registered.known == []
    with bridge.mode("always"):
        module(torch.randn(5, 2, 3))
    twins.assert_accelerated(module)

    class Own(type(module), name="own"):
        pass
    assert Registered.known == [("own", Own)]
    Registered.known.clear()


def test_classes_are_not_kept():
    def accelerated():
        class Own(torch.nn.GRU):
            pass
        modules = bridge.accelerate(Own(3, 4)), bridge.accelerate(Own(3, 4))
        assert type(modules[0]) is type(modules[1])
        return weakref.ref(Own)
    of = accelerated()
    gc.collect()
    assert of() is None


@pytest.mark.parametrize("kind", ["GRU", "LSTMCell"])
def test_a_method_that_is_replaced_in_pytorchs_class_is_called(kind, monkeypatch):
    theirs = getattr(torch.nn, kind)
    modules, of = (theirs(3, 4), bridge.accelerate(theirs(3, 4))), theirs.forward
    modules[1].load_state_dict(modules[0].state_dict())
    calls = []

    def forward(self, *args):
        calls.append(self)
        return of(self, *args)
    monkeypatch.setattr(theirs, "forward", forward)
    with bridge.mode("always"):
        for module in modules:
            module(torch.randn(5, 3))
    assert calls == list(modules)
    assert f"{kind}.forward of PyTorch was replaced" in str(bridge.report(modules[1]))


@pytest.fixture
def swapping():
    """PyTorch swaps parameters with others, which it refuses for tensors with weak references."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.usefixtures("swapping")
def test_parameters_that_pytorch_swaps():
    model = bridge.accelerate(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.GRUCell(3, 4)))
    with bridge.mode("always"):
        model(torch.zeros(2, 3))
        twins.assert_accelerated(model)
        model.double()
        assert model(torch.zeros(2, 3, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.usefixtures("swapping")
def test_functional_calls_while_parameters_are_swapped():
    module, x = bridge.GRU(3, 4), torch.randn(5, 2, 3)
    weights = {name: w.detach() for name, w in module.named_parameters()}
    found = torch.func.grad(
        lambda w: torch.func.functional_call(module, w, (x,))[0].square().sum())(weights)
    module(x)[0].square().sum().backward()
    for name, w in module.named_parameters():
        torch.testing.assert_close(found[name], w.grad)
