"""A tagger of words, as those of part-of-speech or names: packed sentences, a softmax a word."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

WORDS, TAGS, EMBEDDING, HIDDEN, BATCH, LONGEST = 5000, 17, 100, 256, 32, 60


class Tagger(nn.Module):
    """Embedding, two layers in both directions over packed rows, a linear layer."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, EMBEDDING, padding_idx=0)
        self.recurrent = getattr(nn, layer)(EMBEDDING, HIDDEN, num_layers=2, bidirectional=True,
                                            batch_first=True)
        self.head = nn.Linear(2 * HIDDEN, TAGS)

    def forward(self, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, T, TAGS) of words (B, T) in sentences that are not sorted."""
        packed = pack_padded_sequence(self.embedding(words), lengths, batch_first=True,
                                      enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
        return self.head(hidden)


def _sentences(count: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return batches of words, tags and lengths: a tag is that of the word and the one before."""
    batches = []
    for _ in range(count):
        lengths = torch.randint(5, LONGEST + 1, (BATCH,))
        words = [torch.randint(1, WORDS, (n,)) for n in lengths.tolist()]
        tags = [(each + each.roll(1)) % TAGS for each in words]
        batches.append((pad_sequence(words, batch_first=True),
                        pad_sequence(tags, batch_first=True, padding_value=-100), lengths))
    return batches


def _make(layer: str, short: bool) -> Callable[[], None]:
    batches = _sentences(2 if short else 30)

    def act() -> None:
        model = Tagger(layer)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for words, tags, lengths in batches:
            optimizer.zero_grad()
            scores = model(words, lengths)
            nn.functional.cross_entropy(scores.transpose(1, 2), tags, ignore_index=-100).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()

    return act


def gru(*, short: bool) -> Callable[[], None]:
    """Return the training of a GRU."""
    return _make("GRU", short)


def lstm(*, short: bool) -> Callable[[], None]:
    """Return the training of an LSTM."""
    return _make("LSTM", short)
