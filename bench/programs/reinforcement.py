"""Proximal policy optimisation with a recurrent policy, from sb3-contrib."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
from sb3_contrib import RecurrentPPO


def ppo(*, short: bool) -> Callable[[], object]:
    """Return the training of the default policy, LSTMs of 256 units, in one environment."""
    def act() -> None:
        model = RecurrentPPO("MlpLstmPolicy", gymnasium.make("CartPole-v1"), seed=1, device="cpu",
                             n_steps=128, n_epochs=2 if short else 10)
        model.learn(128 if short else 1536)

    return act
