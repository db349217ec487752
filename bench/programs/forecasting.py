"""Forecasts of time series: GluonTS, darts, NeuralForecast."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

QUIET = {"enable_progress_bar": False, "logger": False, "enable_model_summary": False,
         "enable_checkpointing": False, "accelerator": "cpu"}


def _series(count: int, T: int) -> np.ndarray:
    """Return series (count, T) of days and weeks of hours, with noise, above zero."""
    rng = np.random.default_rng(1)
    t = np.arange(T) + rng.integers(0, 168, (count, 1))
    height = rng.uniform(1, 10, (count, 1))
    waves = 3 + np.sin(2 * np.pi * t / 24) + 0.5 * np.sin(2 * np.pi * t / 168)
    return (height * (waves + 0.2 * rng.standard_normal((count, T)))).astype(np.float32)


def deepar(*, short: bool) -> Callable[[], object]:
    """Return the training of GluonTS's DeepAR as its defaults have it."""
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import DeepAREstimator

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = ListDataset([{"start": "2020-01-01", "target": row} for row in _series(100, 1000)],
                       freq="h")

    def act() -> None:
        settings = {k: v for k, v in QUIET.items() if k != "enable_checkpointing"}
        DeepAREstimator(freq="h", prediction_length=24,
                        num_batches_per_epoch=2 if short else 50,
                        trainer_kwargs=settings | {"max_epochs": 1 if short else 6}).train(data)

    return act


def _darts(layer: str, epochs: int, short: bool) -> Callable[[], object]:
    from darts import TimeSeries
    from darts.models import RNNModel

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    series = TimeSeries.from_values(_series(1, 150 if short else 2500)[0] / 10)

    def act() -> None:
        RNNModel(input_chunk_length=24, training_length=72, model=layer, hidden_dim=25,
                 batch_size=32, n_epochs=1 if short else epochs, random_state=1,
                 pl_trainer_kwargs=dict(QUIET)).fit(series)

    return act


def darts_gru(*, short: bool) -> Callable[[], object]:
    """Return the training of darts' RNNModel with a GRU of 25 units."""
    return _darts("GRU", 6, short)


def darts_lstm(*, short: bool) -> Callable[[], object]:
    """Return the training of darts' RNNModel with an LSTM of 25 units."""
    return _darts("LSTM", 12, short)


def neural_gru(*, short: bool) -> Callable[[], object]:
    """Return the training of NeuralForecast's GRU as its defaults have it."""
    import pandas
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MAE
    from neuralforecast.models import GRU

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    count, T = (5, 200) if short else (50, 500)
    table = pandas.DataFrame({"unique_id": np.repeat(np.arange(count), T),
                              "ds": np.tile(np.arange(T), count), "y": _series(count, T).ravel()})

    def act() -> None:
        settings: dict[str, Any] = dict(QUIET)
        model = GRU(h=24, input_size=48, loss=MAE(), max_steps=2 if short else 30, **settings)
        NeuralForecast([model], freq=1).fit(table)

    return act
