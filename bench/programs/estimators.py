"""A classifier of sequences under scikit-learn's interface: skorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from skorch import NeuralNetClassifier
from torch import nn

T, INPUT, HIDDEN, CLASSES = 100, 16, 64, 4


class Classifier(nn.Module):
    """A recurrent layer, and a linear one on its last step."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.recurrent = getattr(nn, layer)(INPUT, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, CLASSES) of x (B, T, INPUT)."""
        return self.head(self.recurrent(x)[0][:, -1])


def _make(layer: str, epochs: int, short: bool) -> Callable[[], object]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((256 if short else 4096, T, INPUT)).astype(np.float32)
    y = x[:, -20:, :CLASSES].sum(1).argmax(1)

    def act() -> None:
        NeuralNetClassifier(
            Classifier, module__layer=layer, criterion=nn.CrossEntropyLoss, max_epochs=1 if short
            else epochs, optimizer=torch.optim.Adam, lr=1e-3, batch_size=64, verbose=0).fit(x, y)

    return act


def gru(*, short: bool) -> Callable[[], object]:
    """Return the training of a GRU."""
    return _make("GRU", 4, short)


def lstm(*, short: bool) -> Callable[[], object]:
    """Return the training of an LSTM."""
    return _make("LSTM", 12, short)


def rnn(*, short: bool) -> Callable[[], object]:
    """Return the training of an RNN."""
    return _make("RNN", 12, short)
