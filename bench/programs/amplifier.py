"""A guitar amplifier: the LSTM of neural-amp-modeler with its Lightning module and data set."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytorch_lightning as lightning
import torch
from nam.data import Dataset
from nam.train.lightning_module import LightningModule

RATE, BURN_IN, SAMPLES = 48_000, 4096, 8192

CONFIG = {
    "net": {"name": "LSTM", "config": {"hidden_size": 24, "num_layers": 1,
                                       "train_burn_in": BURN_IN, "train_truncate": 512}},
    "optimizer": {"lr": 0.01},
    "lr_scheduler": {"class": "ExponentialLR", "kwargs": {"gamma": 0.995}},
    "loss": {"val_loss": "mse", "mask_first": BURN_IN, "pre_emph_weight": 1.0,
             "pre_emph_coef": 0.85},
}


def _audio(seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return decaying strings, and what a stage that saturates makes of them."""
    rng = np.random.default_rng(1)
    t = np.arange(int(seconds * RATE)) / RATE
    x = np.zeros_like(t)
    for start in np.arange(0, seconds, 0.25):
        age = np.maximum(t - start, 0)
        x += np.sin(2 * np.pi * rng.uniform(80, 600) * age) * np.exp(-6 * age) * (t >= start)
    x = 0.3 * x + 0.01 * rng.standard_normal(len(t))
    x *= 0.9 / np.abs(x).max()
    y = 0.7 * (np.tanh(4 * x + 0.3) - np.tanh(0.3))  # below 1: more is refused as clipped
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


def lstm(*, short: bool) -> Callable[[], object]:
    """Return the training of one layer of 24 units, batches of 16 pieces."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    x, y = _audio(4 if short else 12)

    def act() -> None:
        module = LightningModule.init_from_config(CONFIG)
        module.net.sample_rate = RATE
        data = Dataset(x=x, y=y, nx=1, ny=SAMPLES, sample_rate=RATE)
        loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True, drop_last=True)
        trainer = lightning.Trainer(
            max_epochs=1 if short else 6, accelerator="cpu", logger=False,
            enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
        trainer.fit(module, loader)

    return act
