"""torch.compile: accelerated calls are one operator in its graphs, in forward and in backward."""

import copy
import gc

import pytest
import twins

torch = pytest.importorskip("torch")
pytest.importorskip("torch._dynamo.testing")
bridge = twins.bridge

from torch import nn  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

from fastrnn.torch import compiled as operators  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
per_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def afresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def taken(monkeypatch):
    """For each backward that an operator computed: whether it found forward's tape."""
    found = []
    own = operators._take

    def take(*args):
        result = own(*args)
        found.append(result is not None)
        return result

    monkeypatch.setattr(operators, "_take", take)
    return found


class Model(nn.Module):
    """A layer between operations that a compiler fuses, and a cell."""

    def __init__(self, cell, **options):
        super().__init__()
        kind, extra = twins.LAYERS[cell]
        self.layer = getattr(nn, kind)(3, 5, 2, bidirectional=True, **extra, **options)
        kind, extra = twins.SINGLE_CELLS[cell]
        self.cell = getattr(nn, kind)(10, 4, **extra)
        self.head = nn.Linear(4, 2)

    def forward(self, x, hx=None):
        y, _ = self.layer(torch.sin(x), hx)
        last = twins.as_tuple(self.cell(torch.relu(y)[-1]))
        return self.head(last[0]) + last[-1].sum()


def models(cell, **options):
    """Return a model in double precision and its accelerated copy."""
    torch.manual_seed(0)
    theirs = Model(cell, **options).double()
    return theirs, bridge.accelerate(copy.deepcopy(theirs))


def gradients(model, function, *inputs):
    """Return the result, and the gradients of the inputs and parameters."""
    leaves = [twins.fresh(x) for x in inputs]
    model.zero_grad()
    y = function(*leaves)
    y.square().sum().backward()
    return [y.detach(), *(x.grad for x in leaves), *(p.grad for p in model.parameters())]


def targets(counter):
    """Return the names of the functions in the graphs."""
    return [[str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
            for graph in counter.graphs]


def compiled(model, backend="eager", **options):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(model, backend=counter, fullgraph=True, **options), counter


@per_backend
@twins.per_cell
def test_values_and_gradients(cell, backend, taken):
    theirs, ours = models(cell)
    function, counter = compiled(ours, backend)
    for T, B in ((4, 2), (7, 3), (9, 6)):
        x = twins.normal(T, B, 3)
        torch.testing.assert_close(gradients(ours, function, x), gradients(theirs, theirs, x))
    assert taken == [True] * 6
    assert all(sum("recurrent" in name for name in names) == 2 for names in targets(counter))
    with torch.no_grad():
        torch.testing.assert_close(function(x), theirs(x))
    with torch.inference_mode():
        torch.testing.assert_close(function(x.detach()), theirs(x.detach()))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph_serves_all_sizes(backend):
    theirs, ours = models("gru")
    function, counter = compiled(ours, backend, dynamic=True)
    graphs = []
    for T, B in ((4, 2), (7, 3), (9, 6), (3, 8)):
        x = twins.normal(T, B, 3)
        torch.testing.assert_close(gradients(ours, function, x), gradients(theirs, theirs, x))
        graphs.append(counter.frame_count)
    assert graphs == graphs[:1] * 4


def test_sizes_that_are_marked_as_dynamic():
    theirs, ours = models("lstm")
    x = twins.normal(4, 2, 3).detach()
    torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.mark_dynamic(x, 1)
    function, counter = compiled(ours, "aot_eager")
    function(x)
    for T, B in ((6, 3), (9, 5)):
        x = twins.normal(T, B, 3)
        torch.testing.assert_close(gradients(ours, function, x), gradients(theirs, theirs, x))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("sizes", [(4, 0, 3), (1, 1, 3), (4, 1, 3), (1, 2, 3)])
def test_small_sizes(sizes):
    theirs, ours = twins.twins("gru", 3, 5, 2, bidirectional=True)
    function, _ = compiled(lambda x: ours(x)[0], "aot_eager")
    x = twins.normal(*sizes)
    torch.testing.assert_close(gradients(ours, function, x),
                               gradients(theirs, lambda x: theirs(x)[0], x))


@pytest.mark.parametrize("batch_first", [False, True])
@twins.per_cell
def test_a_given_state_and_both_layouts(cell, batch_first):
    theirs, ours = twins.twins(cell, 3, 5, batch_first=batch_first, bias=False)
    x, hx = twins.normal(4, 2, 3), twins.state_of(theirs, 4 if batch_first else 2)
    function, _ = compiled(lambda x, *hx: ours(x, hx if len(hx) > 1 else hx[0])[0], "aot_eager")
    torch.testing.assert_close(
        gradients(ours, function, x, *twins.as_tuple(hx)),
        gradients(theirs, lambda x, *hx: theirs(x, hx if len(hx) > 1 else hx[0])[0], x,
                  *twins.as_tuple(hx)))


class Doubled(nn.GRU):
    def forward(self, x, hx=None):
        return super().forward(2 * x, hx)


@pytest.mark.parametrize("way", ["accelerate", "patch", "direct"])
@pytest.mark.parametrize("kind", [nn.GRU, Doubled])
def test_every_way_in(way, kind):
    torch.manual_seed(0)
    theirs = kind(3, 5).double()
    x = twins.normal(4, 2, 3)
    expected = gradients(theirs, lambda x: theirs(x)[0], x)
    ours = copy.deepcopy(theirs)
    if way == "patch":
        bridge.patch()
    elif way == "direct" and kind is nn.GRU:
        ours = bridge.GRU(3, 5).double()
        ours.load_state_dict(theirs.state_dict())
    else:
        bridge.accelerate(ours)
    function, counter = compiled(lambda x: ours(x)[0], "aot_eager")
    torch.testing.assert_close(gradients(ours, function, x), expected)
    assert "fastrnn.recurrent" in str(targets(counter))


def test_a_module_that_is_not_accelerated_is_met_as_before():
    compiled(bridge.GRU(3, 5))[0](torch.randn(4, 2, 3))
    assert torch._dynamo.config.allow_rnn is False
    with pytest.raises(torch._dynamo.exc.Unsupported, match="allow_rnn"):
        compiled(nn.GRU(3, 5))[0](torch.randn(4, 2, 3))
    bridge.patch()
    compiled(nn.GRU(3, 5))[0](torch.randn(4, 2, 3))
    bridge.unpatch()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="allow_rnn"):
        compiled(nn.LSTM(3, 5))[0](torch.randn(4, 2, 3))


def test_a_graph_ends_with_its_patch():
    model, x = nn.GRUCell(3, 5), torch.randn(2, 3)
    function, counter = compiled(model)
    for patched in (False, True, False, True):
        (bridge.patch if patched else bridge.unpatch)()
        torch.testing.assert_close(function(x), model(x))
    assert ["recurrent" in names for names in map(str, targets(counter))] == [False, True]


def test_the_mode_of_each_call():
    theirs, ours = models("lstm")
    function, counter = compiled(ours)
    x = twins.normal(4, 2, 3)
    function(x)
    with bridge.mode("never"), torch._dynamo.config.patch(allow_rnn=True):
        torch.testing.assert_close(function(x), theirs(x))
    assert ["recurrent" in names for names in map(str, targets(counter))] == [True, False]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@twins.per_cell
def test_dropout_between_layers(cell, backend):
    theirs, ours = models(cell, dropout=0.4)
    function, counter = compiled(ours, backend)
    x = twins.normal(4, 2, 3)
    torch.manual_seed(3)
    expected = gradients(theirs, theirs, x)
    torch.manual_seed(3)
    torch.testing.assert_close(gradients(ours, function, x), expected)
    assert str(targets(counter)).count("recurrent") == 3


def test_a_projection(taken):
    theirs, ours = twins.twins("lstm", 3, 5, 2, dropout=0.3, proj_size=2, bidirectional=True)
    function, _ = compiled(lambda x: ours(x)[0], "aot_eager")
    x = twins.normal(4, 2, 3)
    torch.manual_seed(3)
    expected = gradients(theirs, lambda x: theirs(x)[0], x)
    torch.manual_seed(3)
    torch.testing.assert_close(gradients(ours, function, x), expected)
    assert taken == [True, True]


def test_what_the_kernels_refuse():
    """PyTorch's operator breaks the graph as its modules do, unless the user says otherwise."""
    theirs, ours = twins.twins("lstm", 3, 5, dtype=torch.bfloat16)
    x = torch.randn(4, 2, 3).to(torch.bfloat16)
    function, counter = compiled(lambda x: ours(x)[0])
    with pytest.raises(torch._dynamo.exc.Unsupported):
        function(x)
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(lambda x: 2 * ours(2 * x)[0], backend=counter)
    torch.testing.assert_close(function(x), 2 * theirs(2 * x)[0])
    assert all(kind not in str(targets(counter)) for kind in ("recurrent", "lstm"))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        function, counter = compiled(lambda x: ours(x)[0])
        torch.testing.assert_close(function(x), theirs(x)[0])
    assert "lstm" in str(targets(counter))


@pytest.mark.parametrize(("inputs", "dtype"), [(3, torch.bfloat16), (0, torch.float32)])
@twins.per_cell
def test_a_cell_that_the_kernels_refuse_is_pytorchs_operator(cell, inputs, dtype):
    theirs, ours = twins.twins(cell, 3, 5, dtype=dtype, single=True)
    for module in (theirs, ours):
        module.input_size, module.weight_ih = inputs, nn.Parameter(module.weight_ih[:, :inputs])
    x = torch.randn(2, inputs).to(dtype)
    function, counter = compiled(ours)
    torch.testing.assert_close(function(x), theirs(x))
    assert "recurrent" not in str(targets(counter))
    assert theirs.__class__.__name__.lower()[:3] in str(targets(counter))


def test_autocast():
    theirs, ours = twins.twins("gru", 3, 5, dtype=torch.float32)
    x = torch.randn(4, 2, 3)

    def run(module):
        with torch.autocast("cpu", torch.bfloat16):
            return module(x)[0]

    function = torch.compile(lambda: run(ours), backend="aot_eager")
    torch.testing.assert_close(function(), run(theirs), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev])
def test_transforms(transform):
    theirs, ours = twins.twins("gru", 3, 5)
    x = twins.normal(4, 2, 3).detach()
    function = transform(lambda x: ours(x)[0].square().sum())
    got = torch.compile(function, backend="aot_eager")(x)
    torch.testing.assert_close(got, transform(lambda x: theirs(x)[0].square().sum())(x))


def test_tensors_that_are_views():
    """Conjugates and slices that the kernels cannot read are copied."""
    theirs, ours = twins.twins("gru", 3, 5)
    x = torch.randn(4, 2, 3, dtype=torch.complex128)
    function, _ = compiled(lambda x: ours(x.conj().imag)[0])
    torch.testing.assert_close(function(x), theirs(x.conj().imag)[0])
    x = twins.normal(2, 3, 4).detach().permute(2, 0, 1)
    torch.testing.assert_close(compiled(lambda x: ours(x)[0])[0](x), theirs(x)[0])


def test_packed_sequences():
    """PyTorch's own functions of packed sequences break the graph; the values are the same."""
    theirs, ours = twins.twins("gru", 3, 5, 2, bidirectional=True)
    lengths = torch.tensor([2, 6, 5, 3])

    def run(module, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(module(packed)[0])[0] * 2

    x = twins.normal(6, 4, 3)
    function = torch.compile(lambda x: run(ours, x), backend="aot_eager")
    torch.testing.assert_close(gradients(ours, function, x),
                               gradients(theirs, lambda x: run(theirs, x), x))


def test_packed_rows_are_one_operator(taken):
    theirs, ours = twins.twins("lstm", 3, 5)
    packed = nn.utils.rnn.pack_padded_sequence(torch.zeros(6, 4, 3), torch.tensor([6, 5, 3, 2]))
    x, hx = twins.normal(len(packed.data), 3), twins.state_of(theirs, 4)

    def run(module, x, *hx):
        return torch._VF.lstm(x, packed.batch_sizes, hx, module._flat_weights, True, 1, 0.0, True,
                              False)[0]

    expected = gradients(theirs, lambda *args: run(theirs, *args), x, *hx)
    bridge.patch()
    function, counter = compiled(lambda *args: run(ours, *args), "aot_eager")
    torch.testing.assert_close(gradients(ours, function, x, *hx), expected)
    assert taken == [True]
    assert "recurrent" in str(targets(counter))


def test_a_second_backward_computes_forward_again(taken):
    theirs, ours = models("lstm")
    x = twins.normal(4, 2, 3)
    found = []
    for model in (theirs, compiled(ours)[0]):
        y = model(x).square().sum()
        found.append([torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2)])
    torch.testing.assert_close(found[1], found[0])
    assert taken == [True, True, False, False]


def test_a_differentiable_backward():
    theirs, ours = models("gru")
    x = twins.normal(4, 2, 3)
    found = []
    for model in (theirs, compiled(ours)[0]):
        dx, = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), x)[0])
    torch.testing.assert_close(found[1], found[0])


def test_a_tape_dies_with_its_graph(taken):
    _, ours = models("gru")
    function, _ = compiled(ours, "aot_eager")
    y = function(twins.normal(4, 2, 3))
    assert len(operators._kept) == 2
    y.sum().backward()
    assert taken == [True, True]
    for _ in range(2):
        y = function(twins.normal(4, 2, 3))
    del y
    gc.collect()
    assert not operators._kept


def test_an_input_that_has_moved_is_not_read(taken):
    """What a compiler that computes inputs again for backward does to an operator."""
    op = torch.ops.fastrnn
    weights = [torch.randn(15, n, dtype=torch.float64) for n in (3, 5)]
    x, h0 = twins.normal(4, 2, 3).detach(), torch.zeros(1, 2, 5, dtype=torch.float64)
    rest = (None, h0, None, weights, False, 1, 1, False)
    y, _, tape = op.recurrent("gru", True, x, *rest)
    again = x.clone()
    x.fill_(torch.nan)
    got = op.recurrent_backward("gru", tape, [torch.ones_like(y), None], [True] * 2 + [False] +
                                [True] * 2, again, *rest)
    leaves = [again.requires_grad_(), h0.requires_grad_(), *map(torch.Tensor.requires_grad_,
                                                                weights)]
    y = torch.gru(again, h0, weights, False, 1, 0.0, True, False, False)[0]
    torch.testing.assert_close(got, list(torch.autograd.grad(y.sum(), leaves)))
    assert taken == [False]


@pytest.mark.slow
@twins.per_cell
def test_the_operators_as_pytorch_checks_them(cell):
    """Schemas, shapes, gradients and symbolic sizes, by torch.library.opcheck."""
    G = {"lstm": 4, "gru": 3}.get(cell, 1)
    weights = [p.requires_grad_() for p in (torch.randn(G * 5, 3), torch.randn(G * 5, 5))]
    for name, x, h in ((cell, torch.randn(4, 2, 3), torch.randn(1, 2, 5)),
                       (f"{cell}_cell", torch.randn(2, 3), torch.randn(2, 5))):
        c = torch.randn(h.shape, requires_grad=True) if cell == "lstm" else None
        torch.library.opcheck(
            torch.ops.fastrnn.recurrent.default,
            (name, False, x.requires_grad_(), None, h.requires_grad_(), c, weights, False, 1, 1,
             False))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_have_pytorchs_operators(strict):
    theirs, ours = models("gru")
    x = twins.normal(4, 2, 3).detach()
    program = torch.export.export(ours, (x,), strict=strict)
    assert "fastrnn" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), theirs(x))


def test_checkpointing(taken):
    from torch.utils.checkpoint import checkpoint

    theirs, ours = models("gru")
    x = twins.normal(4, 2, 3)
    function, _ = compiled(lambda x: checkpoint(ours, x, use_reentrant=False), "aot_eager")
    torch.testing.assert_close(gradients(ours, function, x), gradients(theirs, theirs, x))
