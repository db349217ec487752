"""Whole programs train the same with and without acceleration."""

import cases
import numpy as np
import pytest
import twins

torch = pytest.importorskip("torch")
bridge = twins.bridge

from torch import nn  # noqa: E402

STEPS, VOCABULARY, CLASSES = 50, 23, 4


class Tagger(nn.Module):
    """An embedding, a packed bidirectional GRU of two layers, and a linear head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.gru = nn.GRU(8, 12, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, symbols, lengths):
        x = nn.utils.rnn.pack_padded_sequence(self.embedding(symbols), lengths, batch_first=True,
                                              enforce_sorted=False)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.gru(x)[0], batch_first=True)
        return self.head(y)


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        lengths = torch.from_numpy(rng.integers(1, 12, 6))
        symbols = torch.from_numpy(rng.integers(VOCABULARY, size=(6, int(lengths.max()))))
        targets = symbols % CLASSES
        targets[torch.arange(symbols.shape[1]) >= lengths[:, None]] = -100
        yield symbols, lengths, targets


def losses(dtype, change=lambda model: model, threads=1, data=None):
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model = change(Tagger().to(dtype))
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    values = []
    for symbols, lengths, targets in data or batches():
        loss = nn.functional.cross_entropy(model(symbols, lengths).flatten(0, 1),
                                           targets.flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        values.append(loss.item())
    return np.array(values), model


def test_a_packed_tagger_in_float64():
    expected, _ = losses(torch.float64)
    got, model = losses(torch.float64, bridge.accelerate)
    assert expected[-1] < 0.95 * expected[0]
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert twins.counts(model) == (STEPS, 0)


def test_a_packed_tagger_in_float32():
    """As close as two numbers of threads are, or as float32 rounds in a loss's longest sum."""
    expected, _ = losses(torch.float32)
    other, _ = losses(torch.float32, threads=2)
    exact, _ = losses(torch.float64)
    got, model = losses(torch.float32, bridge.accelerate)
    scatter = max(abs(other - expected).max(), abs(expected - exact).max())
    rounding = cases.tolerance(np.float32, 36, 2 * 11, backward=True, bidirectional=True)
    assert abs(got - expected).max() <= 2 * max(scatter, rounding)
    assert twins.counts(model) == (STEPS, 0)


def test_a_patched_program():
    expected, _ = losses(torch.float64)
    bridge.patch()
    before = twins.counts()[0]
    got, _ = losses(torch.float64)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert twins.counts()[0] - before == STEPS


def test_accelerated_in_the_middle_and_restored():
    expected, _ = losses(torch.float64)
    models, seen = [], []

    def swap():
        for k, batch in enumerate(batches()):
            if k % 10 == 0:
                (bridge.restore if k % 20 else bridge.accelerate)(models[0])
            seen.append(isinstance(models[0].gru, bridge.GRU))
            yield batch

    got, model = losses(torch.float64, lambda model: models.append(model) or model, data=swap())
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert twins.counts(model)[0] == sum(seen) == 30


def test_the_mode_auto():
    expected, _ = losses(torch.float64)
    with bridge.mode("auto"):
        got, _ = losses(torch.float64, bridge.accelerate)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


@twins.per_cell
def test_a_loop_over_cells_learns(cell):
    """Truncated backpropagation: the state is passed on, detached."""
    theirs, ours = twins.twins(cell, 3, 5, single=True)
    seen = []
    for module in (theirs, ours):
        optimiser, state, values = torch.optim.Adam(module.parameters(), 0.01), None, []
        for k in range(6):
            x = twins.normal(4, 2, 3, seed=k).detach()
            for row in x:
                state = module(row) if state is None else module(row, state)
            loss = twins.as_tuple(state)[0].square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            parts = tuple(part.detach() for part in twins.as_tuple(state))
            state = parts if isinstance(state, tuple) else parts[0]
            values.append(loss.item())
        seen.append(values)
    np.testing.assert_allclose(seen[1], seen[0], rtol=1e-10)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop", "LBFGS"])
def test_optimisers(name):
    theirs, ours = twins.twins("lstm", 3, 5, 2)
    x = twins.normal(4, 2, 3).detach()
    for module in (theirs, ours):
        optimiser = getattr(torch.optim, name)(module.parameters(), lr=0.01)

        def closure(module=module, optimiser=optimiser):
            optimiser.zero_grad()
            loss = module(x)[0].square().sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimiser.step(closure)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
