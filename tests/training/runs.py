"""A small training that several test files run."""

import dataclasses

import numpy as np

from fastrnn import GRU, LSTM, optim, training
from fastrnn.layers.parameters import distinct
from fastrnn.models import SequenceModel
from fastrnn.schedules import CosineDecay
from fastrnn.training import Windows


def sine(n=400):
    return np.sin(np.arange(n) / 5).astype(np.float32)[:, None]


def model_of(seed=0, **options):
    return SequenceModel([LSTM(1, 8, 2, dropout=0.3, seed=seed), GRU(8, 4, seed=seed)], 1,
                         loss="mse", seed=seed, **options)


def run(folder=None, steps=30, make=model_of, data=None, **options):
    """Train; return (model, optimizer, history)."""
    model = make()
    optimizer = options.pop("optimizer", None) or optim.Adam(model, 1e-2)
    history = training.fit(model, data or Windows(sine(), 7, 3), optimizer=optimizer, steps=steps,
                           folder=folder, schedule=CosineDecay(), **options)
    return model, optimizer, history


def values(model):
    """Return all parameters, one after another."""
    return np.concatenate([part.flat for part in distinct(model)])


def state_of(model, optimizer, history):
    """Return all that a resumed run must have in common with one that never stopped."""
    kept = dataclasses.asdict(history) | {"progress": None}
    return (values(model).tobytes(), model.dropout_state, optimizer.steps,
            {name: a.tobytes() for name, a in optimizer.state_dict().items()}, kept)
