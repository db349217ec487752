"""Recommendation of the next item: GRU4Rec of RecBole, its trainer, on made-up visits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import GRU4Rec
from recbole.trainer import Trainer
from recbole.utils import init_seed

for _old, _new in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
    setattr(np, _old, _new)  # RecBole asks for these names, which NumPy 2 no longer has

USERS, ITEMS, VISITS = 300, 1000, 60


def _write(folder: Path, users: int) -> None:
    """Write visits in RecBole's format: an item follows from the one before, or is any."""
    rng = np.random.default_rng(1)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(users):
        item = int(rng.integers(ITEMS))
        for t in range(VISITS):
            lines.append(f"{user}\t{item}\t{t}")
            item = (item * 7 + 3) % ITEMS if rng.random() < 0.7 else int(rng.integers(ITEMS))
    folder.mkdir(exist_ok=True)
    (folder / f"{folder.name}.inter").write_text("\n".join(lines) + "\n")


def gru4rec(*, short: bool) -> Callable[[], object]:
    """Return the training of GRU4Rec as its defaults have it: 128 units, 50 items."""
    logging.disable(logging.WARNING)
    name = "visits-short" if short else "visits"
    _write(Path.cwd() / name, 20 if short else USERS)
    config = Config(model="GRU4Rec", dataset=name, config_dict={
        "data_path": str(Path.cwd()), "use_gpu": False, "epochs": 1, "seed": 1,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "train_neg_sample_args": None, "show_progress": False})
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)

    def act() -> None:
        init_seed(config["seed"], config["reproducibility"])
        train.generator.manual_seed(config["seed"])  # another run draws the same batches
        model = GRU4Rec(config, train.dataset)
        Trainer(config, model).fit(train, saved=False, show_progress=False, verbose=False)

    return act
