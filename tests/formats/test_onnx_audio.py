"""Networks for audio, of convolutions and recurrent layers: published files, and their kind."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from onnx_models import exported, load, runtime

pytest.importorskip("onnx")
RNG = np.random.default_rng(0)


def silero():
    """Return the files of the package silero-vad, which is not imported."""
    found = importlib.util.find_spec("silero_vad")
    if found is None or not found.submodule_search_locations:
        return []
    return sorted(Path(found.submodule_search_locations[0], "data").glob("*.onnx"))


@pytest.mark.skipif(not silero(), reason="the package silero-vad is not installed")
@pytest.mark.parametrize("path", silero(), ids=lambda path: path.name)
def test_a_voice_activity_detector_step_by_step(path):
    made, data = load(path), path.read_bytes()
    # one file chooses its weights by the rate in each call
    assert made.layers or path.name == "silero_vad_op18_ifless.onnx"
    rates = (16000, 8000) if "sr" in made.input_names else (16000,)
    for rate in rates:
        x = [0.1 * RNG.normal(size=(1, 576 * rate // 16000)).astype(np.float32) for _ in range(5)]
        feeds = {value.name: np.zeros([n if isinstance(n, int) else 1 for n in value.shape],
                                      value.dtype) for value in made.inputs}
        feeds |= {"sr": np.array(rate)} if "sr" in feeds else {}
        theirs = dict(feeds)
        for part in x:
            feeds["input"] = theirs["input"] = part
            got, expected = made(feeds), runtime(data, theirs)
            for mine, right in zip(got, expected, strict=True):
                np.testing.assert_allclose(mine, right, 1e-5, 1e-5)
            # states follow the probability, in the order of the inputs
            states = [name for name in made.input_names if name not in ("input", "sr")]
            feeds |= dict(zip(states, got[1:], strict=True))
            theirs |= dict(zip(states, expected[1:], strict=True))


def check(module, arguments, opset, **options):
    import torch

    names = [f"x{i}" for i in range(len(arguments))]
    data = exported(module, arguments, opset, input_names=names, **options)
    feeds = {name: a.numpy() for name, a in zip(names, arguments, strict=True)}
    with torch.no_grad():
        expected = module(*arguments)
    made = load(data)
    got = made(feeds)
    for mine, right, theirs in zip(got, expected, runtime(data, feeds), strict=True):
        np.testing.assert_allclose(mine, right.numpy(), 2e-5, 1e-5)
        np.testing.assert_allclose(mine, theirs, 2e-5, 1e-5)
    return made


@pytest.mark.parametrize("opset", [12, 17])
def test_a_filter_network(opset):
    """Separable convolutions in both directions, grouped products, and a GRU between them."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def separable(inner, out, stride, up=False):
        kind = nn.ConvTranspose2d if up else nn.Conv2d
        more = {"output_padding": (0, stride - 1)} if up else {}
        return nn.Sequential(
            kind(inner, inner, (1, 3), (1, stride), (0, 1), groups=inner, bias=False, **more),
            nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.ConstantPad2d((0, 0, 2, 0), 0.0),
                                       nn.Conv2d(2, 8, (3, 3), padding=(0, 1), groups=2),
                                       nn.BatchNorm2d(8), nn.LeakyReLU(0.2))
            self.down, self.up = separable(8, 12, 2), separable(12, 8, 2, up=True)
            self.groups = nn.Parameter(torch.randn(4, 18, 5) / 4)
            self.gru = nn.GRU(20, 24, 2, batch_first=True)
            self.norm = nn.LayerNorm(24)
            self.back = nn.Linear(24, 72)
            self.last = nn.Conv2d(8, 1, (1, 3), padding=(0, 1))

        def forward(self, x, h):
            a = self.first(x)
            d = self.down(a)                                    # (B, 12, T, 6)
            e = d.permute(0, 2, 3, 1).flatten(2)
            e = e.reshape(e.shape[0], e.shape[1], 4, 18)
            e = torch.einsum("btgi,gih->btgh", e, self.groups).flatten(2)
            y, h = self.gru(e, h)
            y = self.back(self.norm(y))
            z = y.reshape(y.shape[0], y.shape[1], 6, 12).permute(0, 3, 1, 2)
            mask = torch.sigmoid(self.last(self.up(d + z) + a))
            power = torch.log10(torch.clamp(x.pow(2).sum(1, keepdim=True).sqrt(), min=1e-3))
            return mask * power, power.mean(dim=(1, 2)), h

    torch.manual_seed(0)
    network = Network()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    made = check(network, (torch.randn(2, 2, 7, 12), torch.randn(2, 2, 24)), opset,
                 dynamic_axes={"x0": {0: "batch", 2: "time"}, "x1": {1: "batch"}})
    assert len(made.layers) == 2


def test_a_detector_with_a_transform_of_windows():
    """A Fourier transform as a convolution, its magnitudes, convolutions and an LSTM."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.basis = nn.Conv1d(1, 34, 32, stride=16, bias=False)
            self.encoder = nn.Sequential(
                nn.Conv1d(17, 12, 3, padding=1), nn.ReLU(),
                nn.Conv1d(12, 12, 5, padding=2, groups=12), nn.ReLU(),
                nn.Conv1d(12, 10, 3, stride=2, padding=1), nn.ReLU())
            self.lstm = nn.LSTM(10, 10, 2)
            self.head = nn.Conv1d(10, 1, 1)

        def forward(self, x, h, c):
            x = nn.functional.pad(x, (16, 16), "reflect")
            real, imaginary = self.basis(x[:, None]).chunk(2, 1)
            a = self.encoder(torch.sqrt(real**2 + imaginary**2))
            y, (h, c) = self.lstm(a.permute(2, 0, 1), (h, c))
            p = torch.sigmoid(self.head(torch.relu(y).permute(1, 2, 0)))
            return p.mean(2), h, c

    torch.manual_seed(0)
    made = check(Network(), (torch.randn(3, 256), torch.randn(2, 3, 10), torch.randn(2, 3, 10)),
                 17)
    assert len(made.layers) == 2
