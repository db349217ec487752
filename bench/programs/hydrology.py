"""Rainfall and runoff: the models and the loss of NeuralHydrology, 180 days, 256 rows a batch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from neuralhydrology.modelzoo import get_model
from neuralhydrology.training import get_loss_obj
from neuralhydrology.utils.config import Config

T, BATCH, HIDDEN = 180, 256, 64
DYNAMIC = ["prcp", "srad", "tmax", "tmin", "vp"]
STATIC = ["area", "slope", "forest", "soil"]


def _batches(count: int) -> list[dict[str, object]]:
    """Return batches: runoff is rain of the past that drains away at 5% a day."""
    batches: list[dict[str, object]] = []
    for _ in range(count):
        x = torch.randn(T, BATCH, len(DYNAMIC))
        stored, runoff = torch.zeros(BATCH), []
        for rain in x[:, :, 0].clamp(min=0):
            stored = 0.95 * (stored + rain)
            runoff.append(0.05 * stored)
        batches.append({
            "x_d": {name: x[:, :, k : k + 1].transpose(0, 1) for k, name in enumerate(DYNAMIC)},
            "x_s": torch.randn(BATCH, len(STATIC)),
            "y": torch.stack(runoff, 1)[:, :, None],
            "per_basin_target_stds": torch.ones(BATCH, 1, 1),
        })
    return batches


def _make(model: str, short: bool) -> Callable[[], object]:
    batches = _batches(2 if short else 40)

    def act() -> None:
        with tempfile.TemporaryDirectory() as folder:
            config = Config({
                "run_dir": Path(folder), "model": model, "head": "regression",
                "hidden_size": HIDDEN, "initial_forget_bias": 3, "output_dropout": 0.4,
                "dynamic_inputs": DYNAMIC, "static_attributes": STATIC, "loss": "NSE",
                "target_variables": ["qobs"], "predict_last_n": 1, "seq_length": T,
                "use_frequencies": [], "optimizer": "Adam", "clip_gradient_norm": 1,
            })
            net, loss = get_model(config), get_loss_obj(config)
            optimizer = torch.optim.Adam(net.parameters(), 1e-3)
            for batch in batches:
                optimizer.zero_grad()
                value = loss(net(batch), batch)
                (value[0] if isinstance(value, tuple) else value).backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip_gradient_norm)
                optimizer.step()

    return act


def gru(*, short: bool) -> Callable[[], object]:
    """Return the training of the class GRU."""
    return _make("gru", short)


def lstm(*, short: bool) -> Callable[[], object]:
    """Return the training of the class CudaLSTM."""
    return _make("cudalstm", short)
