"""What reads or rewrites modules: TorchScript, export, fx, compile, quantisation, autocast."""

import copy
import io

import pytest
import twins

torch = pytest.importorskip("torch")
bridge = twins.bridge

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*(TorchScript|torch.jit|ScriptModule|tracer):UserWarning"),
    # tracing with a batch size: PyTorch's word on its own modules
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self.*flat_weights:UserWarning"),
]


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.gru = nn.GRU(3, 5, 2, bidirectional=True)
        self.lstm = nn.LSTM(10, 4)
        self.cell = nn.RNNCell(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, symbols):
        x = self.embedding(symbols)
        x, _ = self.gru(x)
        x, _ = self.lstm(x)
        return self.head(self.cell(x[-1]))


SYMBOLS = torch.tensor([[1, 2], [3, 4], [0, 6], [5, 5]])
OTHERS = torch.tensor([[1, 1], [6, 2], [0, 0], [4, 3]])


def tagger():
    """Return a model and its accelerated copy."""
    torch.manual_seed(0)
    theirs = Tagger().eval()
    return theirs, bridge.accelerate(copy.deepcopy(theirs))


@pytest.fixture(params=["accelerate", "patch"])
def models(request):
    """PyTorch's model and one that runs accelerated, by either way in."""
    theirs, ours = tagger()
    if request.param == "accelerate":
        return theirs, ours
    expected = {id(s): theirs(s).detach() for s in (SYMBOLS, OTHERS)}
    model = copy.deepcopy(theirs)
    bridge.patch()
    return (lambda symbols: expected[id(symbols)]), model


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_script(models):
    theirs, ours = models
    scripted = torch.jit.script(ours)
    close(scripted(SYMBOLS), theirs(SYMBOLS))
    scripted(SYMBOLS).sum().backward()
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    close(torch.jit.load(file)(OTHERS), theirs(OTHERS))
    close(ours(OTHERS), theirs(OTHERS))


def test_trace(models):
    theirs, ours = models
    traced = torch.jit.trace(ours, (SYMBOLS,))
    close(traced(OTHERS), theirs(OTHERS))
    traced(OTHERS).sum().backward()
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    close(torch.jit.load(file)(OTHERS), theirs(OTHERS))
    assert "gru" in str(traced.inlined_graph)  # PyTorch's operators, which any program can load


class Holder(nn.Module):
    """TorchScript takes a recurrent layer in a model only."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@twins.per_kind
def test_script_of_each_class(kind):
    torch.manual_seed(0)
    module = getattr(bridge, kind)(3, 5)
    x = torch.randn(2, 3) if "Cell" in kind else torch.randn(4, 2, 3)
    expected = module(x)
    for got, right in zip(twins.flat(torch.jit.script(Holder(module))(x)), twins.flat(expected),
                          strict=True):
        close(got, right)


def test_export(models):
    theirs, ours = models
    program = torch.export.export(ours, (SYMBOLS,))
    close(program.module()(OTHERS), theirs(OTHERS))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    close(torch.export.load(file).module()(OTHERS), theirs(OTHERS))


def test_fx_symbolic_trace():
    theirs, ours = tagger()
    graphs = [torch.fx.symbolic_trace(model) for model in (theirs, ours)]
    close(graphs[1](OTHERS), theirs(OTHERS))
    for a, b in zip(*(graph.graph.nodes for graph in graphs), strict=True):
        assert (a.op, a.name, a.target, str(a.args)) == (b.op, b.name, b.target, str(b.args))


class OwnTracer(torch.fx.Tracer):
    """A tracer with a kind of proxy of its own, as programs that rewrite graphs have it."""

    def proxy(self, node):
        return type("OwnProxy", (torch.fx.Proxy,), {})(node, self)


class FromState(torch.nn.Module):
    """A layer whose input is a parameter and whose state comes from the caller."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.x = layer, torch.nn.Parameter(torch.ones(3, 2, 4))

    def forward(self, h, c=None):
        return self.layer(self.x, h if c is None else (h, c))[0]


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_fx_tracers_and_proxies_of_any_kind(kind):
    theirs, ours = tagger()
    graphs = [torch.fx.GraphModule(model, OwnTracer().trace(model)) for model in (theirs, ours)]
    close(graphs[1](OTHERS), theirs(OTHERS))
    layer = getattr(torch.nn, kind)(4, 4)
    states = [torch.ones(1, 2, 4)] * (2 if kind == "LSTM" else 1)
    args = None if kind == "LSTM" else {"c": None}
    both = [torch.fx.symbolic_trace(FromState(of), args)
            for of in (layer, bridge.accelerate(copy.deepcopy(layer)))]
    for graph in both:
        close(graph(*states), layer(torch.ones(3, 2, 4), tuple(states) if args is None
                                    else states[0])[0])
    for a, b in zip(*(graph.graph.nodes for graph in both), strict=True):
        assert (a.op, a.name, a.target, str(a.args)) == (b.op, b.name, b.target, str(b.args))


def test_fx_interpreter_and_shapes():
    from torch.fx.passes.shape_prop import ShapeProp

    theirs, ours = tagger()
    graph = torch.fx.symbolic_trace(ours)
    close(ShapeProp(graph).propagate(SYMBOLS), theirs(SYMBOLS))


def test_make_fx(models):
    from torch.fx.experimental.proxy_tensor import make_fx

    theirs, ours = models
    close(make_fx(ours)(SYMBOLS)(OTHERS), theirs(OTHERS))


def test_fake_tensors(models):
    from torch._subclasses.fake_tensor import FakeTensorMode

    _, ours = models
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert ours(fake.from_tensor(SYMBOLS)).shape == (2, 2)


def test_dispatch_and_function_modes(models):
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    theirs, ours = models
    for context in (Operators(), Functions()):
        with context:
            close(ours(SYMBOLS), theirs(SYMBOLS))


def test_flop_counter():
    from torch.utils.flop_counter import FlopCounterMode

    totals = []
    for model in tagger():
        with FlopCounterMode(display=False) as counter:
            model(SYMBOLS)
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1] > 0


def test_profiler(models):
    theirs, ours = models
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        close(ours(SYMBOLS), theirs(SYMBOLS))


class Tagged(torch.Tensor):
    """A subclass of tensors that changes nothing."""


@twins.per_cell
def test_subclasses_of_tensors(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    x = twins.normal(4, 2, 3).detach().as_subclass(Tagged)
    expected, got = theirs(x)[0], ours(x)[0]
    assert type(got) is type(expected)
    torch.testing.assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("whole", [True, False], ids=["no break", "breaks"])
def test_compile(models, whole):
    """Dynamo breaks its graph at torch.nn's recurrent modules unless allow_rnn is set."""
    from torch._inductor import exc

    theirs, ours = models
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=whole)
    try:
        with torch._dynamo.config.patch(allow_rnn=whole):
            close(compiled(SYMBOLS), theirs(SYMBOLS))
    except exc.InductorError as error:
        pytest.skip(f"no compiler: {error}")
    close(compiled(OTHERS), theirs(OTHERS))
    ours.zero_grad()
    compiled(OTHERS).sum().backward()
    grads = [p.grad.clone() for p in ours.parameters()]
    ours.zero_grad()
    ours(OTHERS).sum().backward()
    for grad, p in zip(grads, ours.parameters(), strict=True):
        close(grad, p.grad)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_without_a_compiler(models, backend):
    theirs, ours = models
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend=backend)
    close(compiled(OTHERS), theirs(OTHERS))
    compiled(OTHERS).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


def _gradients(module, shape, packed, go_back):
    """Return the gradients of three steps; `go_back` runs a backward."""
    found = []
    for step in range(3):
        x, hx = twins.normal(*shape, seed=step), twins.state_of(module, 2)
        given = nn.utils.rnn.PackedSequence(x, torch.tensor([2, 2, 1, 1])) if packed else x
        outputs = twins.outputs_of(module, given, hx)
        module.zero_grad()
        go_back(sum(output.square().sum() for output in outputs.values()))
        leaves = [x, *twins.as_tuple(hx), *module.parameters()]
        found.append([leaf.grad.clone() for leaf in leaves])
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("cell", "single", "options", "packed"), [
    ("gru", False, {}, False), ("lstm", False, {}, False), ("rnn_tanh", False, {}, True),
    ("lstm", False, {"proj_size": 2}, False), ("gru", False, {"num_layers": 2}, True),
    ("gru", True, {}, False), ("lstm", True, {"bias": False}, False),
], ids=["gru", "lstm", "rnn packed", "projected", "layers packed", "gru cell", "lstm cell"])
def test_backward_alone_is_compiled(cell, single, options, packed):
    """A compiler that traces a backward calls the node, whose tape it cannot see."""
    from torch._dynamo import compiled_autograd

    torch._dynamo.reset()

    def go_back(loss):
        with compiled_autograd._enable(torch.compile(backend="aot_eager")):
            loss.backward()

    theirs, ours = twins.twins(cell, 3, 5, single=single, **options)
    shape = (6, 3) if packed else (2, 3) if single else (4, 2, 3)
    torch.testing.assert_close(_gradients(ours, shape, packed, go_back),
                               _gradients(theirs, shape, packed, torch.Tensor.backward))


@pytest.mark.parametrize("kinds", [{nn.LSTM}, {nn.GRU}, {nn.LSTM, nn.GRU, nn.RNNCell, nn.Linear}],
                         ids=["lstm", "gru", "all"])
def test_quantize_dynamic(models, kinds):
    """PyTorch finds modules by their exact class, so an accelerated model is restored first."""
    ours = bridge.restore(models[1])
    torch.backends.quantized.engine = next(
        name for name in ("onednn", "fbgemm", "x86", "qnnpack")
        if name in torch.backends.quantized.supported_engines)
    theirs = tagger()[0]
    expected = torch.ao.quantization.quantize_dynamic(theirs, kinds)
    got = torch.ao.quantization.quantize_dynamic(ours, kinds)
    torch.testing.assert_close(got(SYMBOLS), expected(SYMBOLS))
    for a, b in zip(got.children(), expected.children(), strict=True):
        assert type(a) is type(b)


@twins.per_cell
def test_weight_norm(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    for module in (theirs, ours):
        parametrizations.weight_norm(module, "weight_hh_l0")
        with torch.no_grad():
            module.parametrizations.weight_hh_l0.original0.mul_(1.5)
    twins.assert_same_outcome(*(lambda m=m: m(twins.normal(4, 2, 3))[0] for m in (theirs, ours)))
    gradients = []
    for module in (theirs, ours):
        module(twins.normal(4, 2, 3))[0].square().sum().backward()
        gradients.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


@twins.per_cell
def test_weight_norm_of_old(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    gradients = []
    for module in (theirs, ours):
        nn.utils.weight_norm(module, "weight_hh_l0")
        optimiser = torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(2):
            optimiser.zero_grad()
            module(twins.normal(4, 2, 3))[0].square().sum().backward()
            optimiser.step()
        gradients.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("cached", [True, False])
@twins.per_cell
def test_parametrizations_of_every_weight(cell, cached):
    theirs, ours = twins.twins(cell, 3, 5)
    bridge.accelerate(ours)
    gradients = []
    for module in (theirs, ours):
        for name in list(dict(module.named_parameters())):
            parametrize.register_parametrization(module, name, Doubled())
        if cached:
            with parametrize.cached():
                y = module(twins.normal(4, 2, 3))[0]
        else:
            y = module(twins.normal(4, 2, 3))[0]
        y.square().sum().backward()
        gradients.append([y, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("own", [nn.LSTM, nn.GRUCell])
def test_a_parametrised_module_is_accelerated_and_restored(own):
    """Register_parametrization changes the class, too."""
    torch.manual_seed(0)
    model = nn.ModuleList([own(3, 5)])
    name = "weight_hh" if own is nn.GRUCell else "weight_hh_l0"
    parametrize.register_parametrization(model[0], name, Doubled())
    x, kind = torch.randn(2, 3) if own is nn.GRUCell else torch.randn(4, 2, 3), type(model[0])
    expected = twins.flat(model[0](x))
    bridge.accelerate(model)
    torch.testing.assert_close(twins.flat(model[0](x)), expected)
    bridge.restore(model)
    assert type(model[0]) is kind
    bridge.accelerate(model)
    parametrize.remove_parametrizations(model[0], name)
    torch.testing.assert_close(twins.flat(model[0](x)), expected)


@twins.per_cell
def test_weight_drop(cell):
    """The weight is kept under another name, and a plain tensor set in its place."""
    theirs, ours = twins.twins(cell, 3, 5)
    gradients = []
    for module in (theirs, ours):
        raw = module.weight_hh_l0
        del module._parameters["weight_hh_l0"]
        module.register_parameter("weight_hh_l0_raw", raw)
        for seed in (1, 2):
            torch.manual_seed(seed)
            module.weight_hh_l0 = nn.functional.dropout(raw, 0.5)
            module(twins.normal(4, 2, 3))[0].square().sum().backward()
        gradients.append([raw.grad, module.weight_ih_l0.grad])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("single", [False, True], ids=["layer", "cell"])
@twins.per_cell
def test_autocast(cell, single):
    theirs, ours = twins.twins(cell, 3, 5, dtype=torch.float32, single=single)
    x = torch.randn(2, 3) if single else torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = (twins.outcome(module, x) for module in (theirs, ours))
    if twins.refused(expected):  # PyTorch's LSTM, on CPUs without AVX-512
        assert (cell, single) == ("lstm", False)
        assert "AVX512" not in torch.backends.cpu.get_cpu_capability()
        assert got == expected
    else:
        outputs, gradients = [twins.flat(expected), twins.flat(got)], []
        for module, output in zip((theirs, ours), outputs, strict=True):
            output[0].float().square().sum().backward()
            gradients.append([p.grad for p in module.parameters()])
        for pair in (outputs, gradients):
            for a, b in zip(*pair, strict=True):
                assert a.dtype == b.dtype
                torch.testing.assert_close(b, a, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", enabled=False):
        torch.testing.assert_close(twins.flat(ours(x)), twins.flat(theirs(x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half], ids=str)
@pytest.mark.parametrize("single", [False, True], ids=["layer", "cell"])
@twins.per_cell
def test_half_precision(cell, single, dtype):
    theirs, ours = twins.twins(cell, 3, 5, dtype=dtype, single=single)
    x = (torch.randn(2, 3) if single else torch.randn(4, 2, 3)).to(dtype)
    twins.assert_same_outcome(theirs, ours, x)
    twins.assert_fell_back(ours)


@twins.per_cell
def test_layers_of_complex_numbers(cell):
    theirs, ours = twins.twins(cell, 3, 5, dtype=torch.complex128)
    x = torch.randn(4, 2, 3, dtype=torch.complex128)
    twins.assert_same_outcome(theirs, ours, x)


@twins.per_kind
def test_meta_device(kind):
    module = getattr(bridge, kind)(3, 5, device="meta")
    x = torch.zeros((2, 3) if "Cell" in kind else (4, 2, 3), device="meta")
    expected = twins.flat(getattr(nn, kind)(3, 5, device="meta")(x))
    for got, right in zip(twins.flat(module(x)), expected, strict=True):
        assert got.is_meta
        assert got.shape == right.shape
    real = module.to_empty(device="cpu")
    for p in real.parameters():
        nn.init.zeros_(p)
    assert not twins.flat(real(torch.zeros(x.shape)))[0].any()


@twins.per_cell
def test_skip_init_and_default_dtype(cell):
    torch.set_default_dtype(torch.float64)
    kind, extra = twins.LAYERS[cell]
    layer = getattr(bridge, kind)(3, 5, **extra)
    kind, extra = twins.SINGLE_CELLS[cell]
    single = torch.nn.utils.skip_init(getattr(bridge, kind), 3, 5, **extra)
    single.reset_parameters()
    for module, x in ((layer, torch.randn(4, 2, 3)), (single, torch.randn(2, 3))):
        assert twins.flat(module(x))[0].dtype is torch.float64
        twins.assert_accelerated(module)


def test_parametrised_after_it_is_accelerated():
    theirs, ours = twins.twins("lstm", 3, 5)
    bridge.restore(ours)
    bridge.accelerate(ours)
    x = twins.normal(4, 2, 3)
    for module in (theirs, ours):
        parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    bridge.restore(ours)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    bridge.accelerate(ours)
    for module in (theirs, ours):
        parametrize.remove_parametrizations(module, "weight_hh_l0")
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
