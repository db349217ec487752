"""`patch(scripted=True)`: operators of PyTorch that are called without torch._VF."""

import copy
import io
import threading

import pytest
import twins

torch = pytest.importorskip("torch")
bridge = twins.bridge

from torch import nn  # noqa: E402

from fastrnn.torch import operators  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Model(nn.Module):
    def __init__(self, cell, **options):
        super().__init__()
        kind, extra = twins.LAYERS[cell]
        self.layer = getattr(nn, kind)(3, 5, 2, bidirectional=True, **extra, **options)
        kind, extra = twins.SINGLE_CELLS[cell]
        self.cell = getattr(nn, kind)(10, 4, **extra)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y, _ = self.layer(x)
        h = self.cell(y[-1])
        if isinstance(h, tuple):
            h = h[0]
        return self.head(h)


def gradients(model, x):
    x = twins.fresh(x)
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]


def made(cell, **options):
    """Return a model, and two that were scripted and traced from it before the patch."""
    torch.manual_seed(0)
    model = Model(cell, **options).double()
    x = twins.normal(4, 2, 3)
    return model, x, (torch.jit.script(copy.deepcopy(model)),
                      torch.jit.trace(copy.deepcopy(model), (x,), check_trace=False))


@pytest.fixture
def accelerated(monkeypatch):
    """Return the names of operators that fastrnn computed, one for each call."""
    names = []
    own = operators._faster

    def faster(call, weight):
        names.append(call.op.function)
        return own(call, weight)

    monkeypatch.setattr(operators, "_faster", faster)
    return names


@twins.per_cell
def test_models_that_were_compiled_before(cell, accelerated):
    model, x, earlier = made(cell)
    expected = gradients(model, x)
    bridge.patch(scripted=True)
    for function, names in zip(earlier, ([cell, f"{cell}_cell"], [cell]), strict=True):
        accelerated.clear()  # a trace has the single cell in its parts
        torch.testing.assert_close(gradients(function, x), expected)
        assert accelerated == names
        with torch.no_grad():
            torch.testing.assert_close(function(x), expected[0])
        with torch.inference_mode():
            torch.testing.assert_close(function(x.detach()), expected[0])
        assert accelerated == names * 3


def test_a_file_that_is_loaded(accelerated):
    model, x, (scripted, _) = made("gru")
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    bridge.patch(scripted=True)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), model(x))
    assert accelerated == ["gru", "gru_cell"] * 2


def test_packed_sequences(accelerated):
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(3, 5)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            return nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0])[0]

    model, x, lengths = Packed(), torch.randn(6, 3, 3), torch.tensor([2, 6, 4])
    scripted, expected = torch.jit.script(model), model(x, lengths)
    bridge.patch(scripted=True)
    torch.testing.assert_close(scripted(x, lengths), expected)
    assert accelerated == ["lstm"]


def test_what_falls_back_does_so_once():
    model, x, (scripted, _) = made("gru")
    model, scripted, x = (part.to(torch.bfloat16) for part in (model, scripted, x.detach()))
    expected = model(x)
    bridge.patch(scripted=True)
    for function in (model, scripted):
        before = sum(row.fallback for row in bridge.report().rows)
        torch.testing.assert_close(function(x), expected)
        assert sum(row.fallback for row in bridge.report().rows) == before + 2


def test_the_mode_never_and_the_mode_auto():
    model, x, (scripted, _) = made("lstm")
    expected = gradients(model, x)
    bridge.patch(scripted=True)
    with bridge.mode("never"):
        torch.testing.assert_close(gradients(scripted, x), expected)
    with bridge.mode("auto"):
        torch.testing.assert_close(gradients(scripted, x), expected)
        torch.testing.assert_close(gradients(model, x), expected)


def test_unpatch_leaves_no_trace(accelerated):
    def tables():
        return [torch._C._dispatch_dump(f"aten::{name}{overload}")
                for name in operators.FUNCTIONS
                for overload in ([""] if "cell" in name else [".input", ".data"])]

    _, x, (scripted, _) = made("gru")
    before = tables()
    for _ in range(3):
        bridge.patch(scripted=True)
        bridge.patch()
        bridge.patch(scripted=True)
        assert tables() != before
        bridge.unpatch()
        assert tables() == before
    assert operators.ORIGINALS is torch._C._VariableFunctions
    scripted(x)
    assert not accelerated


def test_transforms_tracing_and_export():
    from torch.fx.experimental.proxy_tensor import make_fx

    model, x, _ = made("gru")
    x = x.detach()
    runs = {
        "grad": lambda: torch.func.grad(lambda x: model(x).sum())(x),
        "jvp": lambda: torch.func.jvp(model, (x,), (x,)),
        "functional_call": lambda: torch.func.functional_call(
            model, dict(model.named_parameters()), (x,)),
        "trace": lambda: str(torch.jit.trace(model, (x,)).inlined_graph).split("aten::gru(")[1:],
        "fx": lambda: str(make_fx(model)(x).graph),
        "export": lambda: str(torch.export.export(model, (x,)).graph),
        "decompositions": lambda: torch.export.export(model, (x,)).run_decompositions().module()(x),
    }
    expected = {name: run() for name, run in runs.items()}
    bridge.patch(scripted=True)
    for name, run in runs.items():
        got = run()
        if name == "trace":
            assert len(got) == len(expected[name])
        elif isinstance(got, str):
            assert got == expected[name], name
        else:
            torch.testing.assert_close(got, expected[name])


def test_second_and_differentiable_backward():
    model, x, (scripted, _) = made("gru")
    found = []
    for function, patched in ((model, False), (scripted, True)):
        if patched:
            bridge.patch(scripted=True)
        y = function(x).square().sum()
        first, = torch.autograd.grad(y, x, retain_graph=True)
        dx, = torch.autograd.grad(y, x, create_graph=True)
        found.append([first, dx.detach(), torch.autograd.grad(dx.square().sum(), x)[0]])
    torch.testing.assert_close(found[1], found[0])


def test_errors_are_pytorchs():
    def run():
        return torch.ops.aten.gru.input(x, torch.zeros(1, 3, 5), weights, False, 1, 0.0, False,
                                        False, False)

    x, weights = torch.zeros(4, 2, 3), [torch.zeros(15, 3), torch.zeros(15, 5)]
    expected = twins.outcome(run)
    bridge.patch(scripted=True)
    assert twins.outcome(run) == expected


def test_threads():
    model, x, _ = made("gru")
    expected = gradients(model, x)
    models = [torch.jit.script(copy.deepcopy(model)) for _ in range(4)]
    bridge.patch(scripted=True)
    results = [None] * 4

    def run(i):
        for _ in range(10):
            results[i] = gradients(models[i], x)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        torch.testing.assert_close(result, expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend):
    model, x, _ = made("gru")
    expected = gradients(model, x)
    bridge.patch(scripted=True)
    torch._dynamo.reset()
    function = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(gradients(model, x), expected)
    y = function(x)
    torch.testing.assert_close(y.detach(), expected[0])
