"""Models that PyTorch exported: embedding, stacked layers, head, in every form of its opsets."""

import warnings

import numpy as np
import pytest
from onnx_models import exported, load, runtime

pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

import fastrnn.torch  # noqa: E402 - needs torch

CASES = {
    "lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN,
    "rnn_relu": lambda *args, **options: torch.nn.RNN(*args, nonlinearity="relu", **options)}


class Tagger(torch.nn.Module):
    """Symbols (B, T) in, probabilities (B, T, 3) and final states out."""

    def __init__(self, kind, bidirectional=True, batch_first=True, bias=True):
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 5)
        self.layers = CASES[kind](5, 7, 2, bias=bias, bidirectional=bidirectional,
                                  batch_first=batch_first)
        self.head = torch.nn.Linear(14 if bidirectional else 7, 3)

    def forward(self, x):
        y, state = self.layers(self.embedding(x))
        return torch.softmax(self.head(y), -1), *(state if isinstance(state, tuple) else (state,))


class Classifier(torch.nn.Module):
    """Vectors, lengths and a state in, log-probabilities of the last states out."""

    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 6, batch_first=True)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, x, h0, c0):
        _, (h, _) = self.lstm(torch.relu(x), (h0, c0))
        return torch.log_softmax(self.head(h[-1]), -1)


def close(got, expected):
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, 2e-5, 2e-6)


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 20])
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("dynamic", [False, True], ids=["", "dynamic"])
def test_a_tagger(kind, opset, dynamic):
    torch.manual_seed(0)
    module, x = Tagger(kind), torch.randint(0, 11, (3, 6))
    names = ["p", "hn", "cn"][: 3 if kind == "lstm" else 2]
    data = exported(module, (x,), opset, input_names=["x"], output_names=names,
                    dynamic_axes={"x": {0: "batch", 1: "time"}} if dynamic else None)
    model = load(data)
    assert model.output_names == tuple(names)
    assert len(model.layers) == 2
    assert model.unused == ()
    if dynamic:
        x = torch.randint(0, 11, (5, 9))
    with torch.no_grad():
        expected = [a.numpy() for a in module(x)]
    close(model(x=x.numpy()), expected)
    close(runtime(data, {"x": x.numpy()}), expected)


@pytest.mark.parametrize("options", [{"bias": False}, {"bidirectional": False},
                                     {"batch_first": False}], ids=str)
@pytest.mark.parametrize("kind", CASES)
def test_options(kind, options):
    torch.manual_seed(1)
    module, x = Tagger(kind, **options), torch.randint(0, 11, (3, 6))
    model = load(exported(module, (x,), 17, input_names=["x"]))
    with torch.no_grad():
        close(model(x.numpy()), [a.numpy() for a in module(x)])


@pytest.mark.parametrize("opset", [11, 17])
def test_a_classifier_with_a_state(opset):
    torch.manual_seed(2)
    module = Classifier()
    arguments = torch.randn(3, 5, 4), torch.randn(1, 3, 6), torch.randn(1, 3, 6)
    model = load(exported(module, arguments, opset, input_names=["x", "h0", "c0"]))
    x, h, c = (a.numpy() for a in arguments)
    with torch.no_grad():
        expected = module(*arguments).numpy()
    close(model(x, h, c), [expected])
    close(model(x, c0=c, h0=h), [expected])
    close(model({"c0": c, "x": x, "h0": h}), [expected])


@pytest.mark.parametrize("accelerated", [False, True], ids=["", "accelerated"])
@pytest.mark.parametrize("kind", CASES)
def test_the_exporter_from_programs(kind, accelerated):
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    module, x = Tagger(kind).eval(), torch.randint(0, 11, (3, 6))
    if accelerated:
        fastrnn.torch.accelerate(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # its T is a constant: in a process only the first program of a cell has a dynamic one
        program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    model = load(program.model_proto.SerializeToString())
    with torch.no_grad():
        close(model(x.numpy()), [a.numpy() for a in module(x)])
