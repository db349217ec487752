"""The README's blocks run as they are written, and those of the README before it."""

import importlib.util
import re

import numpy as np
from pages import ROOT, run

import fastrnn

# Of the release before: "today's README stays valid as the short form".
BEFORE = '''
```python
import numpy as np, fastrnn

lstm = fastrnn.LSTM(64, 128, num_layers=2, bidirectional=True, seed=0)
x = np.random.default_rng(0).standard_normal((100, 16, 64)).astype(np.float32)  # (T, B, I)
y, (hn, cn) = lstm(x)                       # y (T, B, 2*128)
dx, (dh0, dc0) = lstm.backward(y - 1)       # backpropagation through time, adds to lstm.grads
lstm.parameters()["weight_ih_l0"]           # torch's names; views of the one array lstm.flat

gru = fastrnn.GRU(40, 40).eval()            # evaluation: weights are packed once, and read-only
step = gru.stream()                         # sample by sample, nothing allocated
for frame in np.zeros((1000, 1, 40), np.float32):
    y = step(frame)                         # (1, 40); step.state, step.reset()
```

```python
from fastrnn import gradflow, optim, training
from fastrnn.batches import Windows
from fastrnn.model import SequenceModel

wave = np.sin(np.arange(5000) / 9).astype(np.float32)[:, None]                   # (N, I)
model = SequenceModel(fastrnn.GRU(1, 32, seed=0), output_size=1, loss="mse", seed=0)
data = Windows(wave, T=50, B=8)             # truncated backpropagation: the state is carried on
history = training.fit(model, data, optim.Adam(model, 1e-2), steps=200)
print(history.losses[-1])                   # next-step error
for flow in gradflow.model_flow(model, lambda m: m.loss(*data(0).inputs, data(0).targets)):
    print(gradflow.verdict(flow))           # vanishing, exploding or healthy, and what to try
```
'''


def check_layers(names):
    """Check what the block about bare layers leaves."""
    assert names["dx"].shape == (100, 16, 64)
    assert names["dh0"].shape == names["dc0"].shape == names["hn"].shape == (4, 16, 128)
    lstm = names["lstm"]
    assert all(g.any() for g in lstm.grads.values())
    assert np.shares_memory(lstm.parameters()["weight_ih_l0"], lstm.flat)
    assert names["y"].shape == (1, 40)


def check_equations(names):
    """Check what the block about a cell from equations leaves."""
    layer, x = names["layer"], names["x"]
    assert names["output"].shape == (100, 16, 256)
    assert names["dh"].shape == (4, 16, 128)
    assert names["dx"].shape == x.shape
    assert all(g.any() for g in layer.grads.values())
    assert [state.name for state in names["peephole"].definition.states] == ["h", "c"]


def test_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run(ROOT / "README.md")
    assert float(capsys.readouterr().out.split()[0]) < 1e-3  # a flat line's error is 0.5
    assert names["forecast"].shape == (200, 1)
    assert np.abs(names["forecast"][50:-1, 0] - names["wave"][-149:]).max() < 0.1
    assert (tmp_path / "wave.safetensors").exists()
    check_layers(names)
    check_equations(names)


def test_the_readme_of_the_release_before_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run(ROOT / "README before.md", BEFORE)
    error, *verdicts = capsys.readouterr().out.splitlines()
    assert float(error) < 1e-2
    assert len(verdicts) == 1
    assert verdicts[0].startswith("layer 0: ")
    check_layers(names | {"y": np.empty((1, 40))})
    assert names["step"].state.shape == (1, 1, 40)


def test_names_in_the_readme_exist():
    names = set(re.findall(r"\bfastrnn\.(\w+)", (ROOT / "README.md").read_text("utf-8")))
    assert "torch" in names
    if importlib.util.find_spec("torch") is None:  # fastrnn.torch needs it
        names.remove("torch")
    for name in names:
        assert hasattr(fastrnn, name), name
