"""`accelerate` and `restore`: the same module object, and all that programs do with modules."""

import copy
import io
import pickle
import sys
import threading

import pytest
import twins

torch = pytest.importorskip("torch")
bridge = twins.bridge

from fastrnn.torch import modules  # noqa: E402

nn = torch.nn


class Tagger(nn.Module):
    """Recurrent modules in places of every kind, one of them twice."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.layers = nn.ModuleList([nn.GRU(4, 3, 2, bidirectional=True), nn.LSTM(6, 5)])
        self.parts = nn.ModuleDict({"cell": nn.LSTMCell(5, 5), "rnn": nn.RNN(5, 5)})
        self.again = self.parts["rnn"]
        self.steps = nn.ModuleList([nn.GRUCell(5, 5), nn.RNNCell(5, 5)])
        self.head = nn.Linear(5, 2)

    def forward(self, symbols):
        x = self.encoder(self.embedding(symbols))
        for layer in self.layers:
            x = layer(x)[0]
        x = self.again(self.parts["rnn"](x)[0])[0]
        h, _ = self.parts["cell"](x[-1])
        for cell in self.steps:
            h = cell(h)
        return self.head(h)


SYMBOLS = torch.tensor([[1, 2], [3, 4], [0, 10]])


def tagger(seed=0):
    torch.manual_seed(seed)
    return Tagger().double()


def recurrent(model):
    return [m for m in model.modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))]


def example(kind):
    return torch.randn(2, 3) if "Cell" in kind else torch.randn(4, 2, 3)


class OwnLSTM(nn.LSTM):
    """A user's class: arguments, a forward and an attribute of its own."""

    scale = 3

    def __init__(self, size):
        super().__init__(size, 5)
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, hx=None):
        y, state = super().forward(x, hx)
        return y * self.gain * self.scale, state


class OwnCell(nn.GRUCell):
    pass


def test_accelerate_swaps_in_place():
    model = tagger()
    before, expected = list(model.modules()), model(SYMBOLS)
    assert bridge.accelerate(model) is model
    for module, same in zip(model.modules(), before, strict=True):
        assert module is same
    for module in recurrent(model):
        kind = type(module).__name__
        assert type(module) is getattr(bridge, kind)
        assert isinstance(module, getattr(nn, kind))
    assert type(model) is Tagger
    torch.testing.assert_close(model(SYMBOLS), expected)
    twins.assert_accelerated(model)


@twins.per_kind
def test_a_model_that_is_one_module(kind):
    module = getattr(nn, kind)(3, 5)
    expected = twins.flat(module(x := example(kind)))
    assert bridge.accelerate(module) is module
    assert type(module) is getattr(bridge, kind)
    torch.testing.assert_close(twins.flat(module(x)), expected)
    bridge.restore(module)
    assert type(module) is getattr(nn, kind)


def test_accelerate_twice_and_restore_twice():
    model = bridge.accelerate(bridge.accelerate(tagger()))
    classes = [type(m) for m in model.modules()]
    assert classes == [type(m) for m in bridge.accelerate(model).modules()]
    bridge.restore(bridge.restore(model))
    assert [type(m) for m in model.modules()] == [type(m) for m in tagger().modules()]


def snapshot(model):
    return [(type(m), list(m.__dict__), id(m)) for m in model.modules()]


@twins.per_kind
def test_a_method_that_was_kept_works_after_restore(kind):
    module = bridge.accelerate(getattr(torch.nn, kind)(3, 5))
    kept = module.forward
    module.forward = lambda *args: kept(*args)
    x = twins.normal(4, 2, 3, dtype=torch.float32)
    x = x[0] if kind.endswith("Cell") else x
    before = twins.flat(module(x))
    bridge.restore(module)
    torch.testing.assert_close(twins.flat(module(x)), before)


def test_restore_leaves_no_trace():
    model = tagger()
    before = snapshot(model)
    bridge.accelerate(model)(SYMBOLS).sum().backward()
    model.eval()(SYMBOLS)
    assert bridge.restore(model) is model
    assert snapshot(model) == before


def test_parameters_are_shared_and_keep_their_shape():
    model = tagger()
    before = {name: (p, p.data_ptr(), p.shape, p.stride()) for name, p in model.named_parameters()}
    optimiser = torch.optim.Adam(model.parameters(), 0.1)
    bridge.accelerate(model)
    for _ in range(2):
        model(SYMBOLS).square().sum().backward()
        optimiser.step()
    for name, p in model.named_parameters():
        assert p is before[name][0]
        assert (p.data_ptr(), p.shape, p.stride()) == before[name][1:]
    assert list(model.state_dict()) == list(tagger().state_dict())
    assert repr(model) == repr(tagger())


@pytest.mark.parametrize("own", [OwnLSTM, OwnCell])
def test_subclasses(own):
    module = OwnLSTM(3) if own is OwnLSTM else OwnCell(3, 5)
    x = torch.randn(4, 3) if own is OwnCell else torch.randn(4, 2, 3)
    expected = twins.flat(module(x))
    bridge.accelerate(module)
    ours = bridge.LSTM if own is OwnLSTM else bridge.GRUCell
    assert isinstance(module, own)
    assert isinstance(module, ours)
    assert type(module).__name__ == own.__name__
    torch.testing.assert_close(twins.flat(module(x)), expected)
    twins.assert_accelerated(module)
    bridge.restore(module)
    assert type(module) is own


def test_a_model_that_derives_from_torchs_class():
    class Outer(nn.GRU):
        def __init__(self):
            super().__init__(3, 5)
            self.inner = nn.LSTM(5, 2)

        def forward(self, x):
            return self.inner(super().forward(x)[0])[0]

    torch.manual_seed(0)
    model, x = Outer(), torch.randn(4, 2, 3)
    expected = model(x)
    bridge.accelerate(model)
    torch.testing.assert_close(model(x), expected)
    twins.assert_accelerated(model)
    bridge.restore(model)
    assert (type(model), type(model.inner)) == (Outer, nn.LSTM)


def test_two_modules_of_one_subclass_share_a_class():
    pair = bridge.accelerate(nn.ModuleList([OwnCell(3, 5), OwnCell(3, 5)]))
    assert type(pair[0]) is type(pair[1])


def test_a_class_with_the_arguments_of_no_other():
    """A class of our own may be derived from, too."""
    class Mine(bridge.LSTM):
        def forward(self, x):
            return super().forward(x)[0]

    assert Mine(3, 5)(torch.randn(4, 2, 3)).shape == (4, 2, 5)


def test_hooks_stay_and_may_change():
    model, calls = tagger(), []
    model.layers[0].register_forward_hook(lambda m, given, out: calls.append("old"))
    bridge.accelerate(model)
    handle = model.layers[0].register_forward_pre_hook(lambda m, given: calls.append("pre"))
    model.layers[1].register_forward_hook(lambda m, given, out: (out[0] * 0, out[1]))
    y = model(SYMBOLS)
    assert calls == ["pre", "old"]
    handle.remove()
    bridge.restore(model)
    torch.testing.assert_close(model(SYMBOLS), y)
    assert calls == ["pre", "old", "old"]


def test_training_flag_and_flags_of_parameters_stay():
    model = tagger().eval()
    model.layers[1].weight_hh_l0.requires_grad_(False)
    bridge.accelerate(model)
    assert not any(m.training for m in model.modules())
    assert not model.layers[1].weight_hh_l0.requires_grad


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(protocol):
    model = bridge.accelerate(tagger())
    expected = model(SYMBOLS)
    twin = pickle.loads(pickle.dumps(model, protocol))
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    torch.testing.assert_close(twin(SYMBOLS), expected)
    twins.assert_accelerated(twin)


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["deepcopy", "save", "pickle"])
@pytest.mark.parametrize("own", [False, True], ids=["torchs", "subclass"])
def test_copies_stay_accelerated_and_can_be_restored(own, copied):
    model = nn.ModuleList([OwnLSTM(3) if own else nn.LSTM(3, 5)])
    x = torch.randn(4, 2, 3)
    expected, _ = model[0](x)
    bridge.accelerate(model)
    model[0](x)
    twin = copied(model)
    assert isinstance(twin[0], bridge.LSTM)
    torch.testing.assert_close(twin[0](x)[0], expected)
    assert twin[0].weight_hh_l0.data_ptr() != model[0].weight_hh_l0.data_ptr()
    with torch.no_grad():  # a copy goes its own way
        twin[0].weight_hh_l0.zero_()
    torch.testing.assert_close(model[0](x)[0], expected)
    bridge.restore(twin)
    assert type(twin[0]) is (OwnLSTM if own else nn.LSTM)
    assert isinstance(model[0], bridge.LSTM)


def test_state_dicts_go_both_ways():
    model, other = bridge.accelerate(tagger(0)), tagger(1)
    expected = other(SYMBOLS)
    model(SYMBOLS)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(SYMBOLS), expected)
    model.load_state_dict({k: v.clone() for k, v in other.state_dict().items()}, assign=True)
    torch.testing.assert_close(model(SYMBOLS), expected)
    torch.testing.assert_close(model.state_dict(), other.state_dict())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))


def test_other_dtypes_and_back():
    model = bridge.accelerate(tagger())
    expected = model(SYMBOLS)
    torch.testing.assert_close(model.float()(SYMBOLS).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.to(torch.float64)(SYMBOLS), expected, rtol=1e-5, atol=1e-5)


@twins.per_kind
def test_flat_weights_and_all_weights(kind):
    module = getattr(bridge, kind)(3, 5)
    if "Cell" in kind:
        pytest.skip("cells have none")
    assert all(a is b for a, b in zip(module._flat_weights, module.parameters(), strict=True))
    assert [[id(w) for w in layer] for layer in module.all_weights] == [
        [id(w) for w in module.parameters()]]
    assert module.flatten_parameters() is None
    x = torch.randn(4, 2, 3)
    module(x)
    module.weight_hh_l0 = nn.Parameter(torch.zeros_like(module.weight_hh_l0))
    assert module._flat_weights[1] is module.weight_hh_l0
    theirs = getattr(nn, kind)(3, 5)
    theirs.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x)[0], theirs(x)[0])


def test_reset_parameters_and_init_are_seen():
    theirs, ours = twins.twins("lstm", 3, 5)
    x = twins.normal(4, 2, 3)
    ours(x)
    for module in (theirs, ours):
        torch.manual_seed(3)
        module.reset_parameters()
        nn.init.orthogonal_(module.weight_hh_l0)
    twins.assert_twins(theirs, ours, x)


@pytest.mark.parametrize("shared", [["weight_hh_l0"], ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0",
                                                      "bias_hh_l0"]], ids=["one", "all"])
@twins.per_cell
def test_tied_weights(cell, shared):
    gradients = []
    for which in (0, 1):
        one, two = twins.twins(cell, 5, 5)[which], twins.twins(cell, 5, 5, seed=1)[which]
        for name in shared:
            setattr(two, name, getattr(one, name))
        x = twins.normal(4, 2, 5)
        two(one(x)[0])[0].square().sum().backward()
        gradients.append([x.grad, *(p.grad for m in (one, two) for p in m.parameters())])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_one_parameter_twice_in_a_module():
    theirs, ours = twins.twins("gru", 5, 5)
    for module in (theirs, ours):
        module.weight_ih_l0 = module.weight_hh_l0
        module.bias_ih_l0 = module.bias_hh_l0
    x = twins.normal(4, 2, 5)
    twins.assert_same(twins.results(ours, x), twins.results(theirs, x), theirs, 4, 2)


def test_share_memory():
    model = bridge.accelerate(tagger())
    expected = model(SYMBOLS)
    model.share_memory()
    assert model.layers[0].weight_hh_l0.is_shared()
    torch.testing.assert_close(model(SYMBOLS), expected)
    with torch.no_grad():
        model.layers[0].weight_hh_l0.zero_()
    assert not torch.equal(model(SYMBOLS), expected)


def test_apply_to_and_named_modules():
    model, names = bridge.accelerate(tagger()), []
    model.apply(lambda m: names.append(type(m).__name__))
    assert names.count("GRU") == 1
    assert dict(model.named_modules()).keys() == dict(tagger().named_modules()).keys()
    assert isinstance(model.cpu().requires_grad_(False).layers[0], bridge.GRU)


def test_a_module_is_freed():
    import gc
    import weakref

    model = bridge.accelerate(tagger())
    model(SYMBOLS).sum().backward()
    seen = [weakref.ref(m) for m in recurrent(model)]
    seen.append(weakref.ref(model.layers[0].weight_hh_l0))
    del model
    gc.collect()
    assert not any(ref() is not None for ref in seen)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "nograd"])
def test_several_python_threads(grad):
    model, n = bridge.accelerate(tagger()), 8
    inputs = [torch.randint(11, (k + 1, k + 2)) for k in range(n)]

    def run(symbols):
        if not grad:
            with torch.no_grad():
                return [model(symbols)]
        y = model(symbols)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), list(model.parameters()))]

    expected, got = [run(symbols) for symbols in inputs], [None] * n

    def work(k):
        for _ in range(5):
            got[k] = run(inputs[k])

    with torch.no_grad() if not grad else torch.enable_grad():
        threads = [threading.Thread(target=work, args=(k,)) for k in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    torch.testing.assert_close(got, expected)


def test_one_thread_each_while_weights_change_between():
    theirs, ours = twins.twins("lstm", 3, 5)
    x, seen = twins.normal(4, 2, 3).detach(), []
    for k in range(4):
        for module in (theirs, ours):
            module.weight_hh_l0.data.fill_(k / 10)
        thread = threading.Thread(target=lambda: seen.append(ours(x)[0].detach()))
        thread.start()
        thread.join()
        torch.testing.assert_close(seen[-1], theirs(x)[0].detach())


@twins.per_dtype
def test_numbers_of_threads(dtype):
    theirs, ours = twins.twins("gru", 20, 40, dtype=dtype)
    x, seen = twins.normal(10, 16, 20, dtype=dtype), []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        twins.assert_twins(theirs, ours, x)
        seen.append(ours(x)[0].detach())
    for y in seen[1:]:
        assert torch.equal(y, seen[0])


@pytest.mark.parametrize("bad", [None, 3, "model", nn.Parameter(torch.zeros(1)), nn.LSTM])
@pytest.mark.parametrize("function", [bridge.accelerate, bridge.restore])
def test_what_is_no_module_is_refused(function, bad):
    with pytest.raises(TypeError, match="model"):
        function(bad)


def test_other_classes_of_pytorchs_own_are_left():
    """They are derived from torch.nn's, and compute something else."""
    kind = type("LSTM", (nn.LSTM,), {"__module__": "torch.ao.nn.made"})
    model = nn.ModuleList([kind(3, 5), nn.LSTM(3, 5)])
    bridge.accelerate(model)
    assert type(model[0]) is kind
    assert type(model[1]) is bridge.LSTM
    bridge.restore(model)
    assert [type(module) for module in model] == [kind, nn.LSTM]


def test_what_accelerated_modules_call_beside_recurrent_functions_is_pytorchs():
    names = sys.modules[nn.LSTM.__module__]._VF, modules._VF
    assert names[1].lstm is not names[0].lstm
    assert names[1].batch_norm is names[0].batch_norm
    with pytest.raises(AttributeError, match="no_function"):
        names[1].no_function  # noqa: B018


def test_a_model_without_recurrent_modules_is_left():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    before = snapshot(model)
    assert bridge.restore(bridge.accelerate(model)) is model
    assert snapshot(model) == before


@twins.per_kind
def test_a_module_that_was_parametrized_before(kind):
    """Its weights are computed anew for each call, before and after the change of its class."""
    name = "weight_hh" if "Cell" in kind else "weight_hh_l0"

    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.manual_seed(0)
    module = getattr(nn, kind)(3, 4)
    nn.utils.parametrize.register_parametrization(module, name, Doubled())
    own, x = type(module), example(kind)

    def values():
        module.zero_grad()
        first = twins.as_tuple(module(x))[0]
        first.square().sum().backward()
        grad = module.parametrizations[name].original.grad
        return first.detach().clone(), grad.clone()

    expected = values()
    bridge.accelerate(module)
    assert isinstance(module, getattr(bridge, kind))
    torch.testing.assert_close(values(), expected)
    assert bridge.report(module).rows[0].accelerated
    other = name.replace("hh", "ih")
    nn.utils.parametrize.register_parametrization(module, other, Doubled())
    values()
    nn.utils.parametrize.remove_parametrizations(module, other, leave_parametrized=False)
    torch.testing.assert_close(values(), expected)
    bridge.restore(module)
    assert type(module) is own
    torch.testing.assert_close(values(), expected)
    bridge.accelerate(module)
    nn.utils.parametrize.remove_parametrizations(module, name)
    assert type(module) is getattr(bridge, kind)
    torch.testing.assert_close(twins.as_tuple(module(x))[0].detach(), expected[0])
    assert type(bridge.restore(module)) is getattr(nn, kind)
