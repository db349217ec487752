"""Training a language model by truncated backpropagation through time, and judging it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn import text as texts
from fastrnn.functional import State
from fastrnn.model import LanguageModel
from fastrnn.optim import Adam

__all__ = ["Interrupt", "Progress", "evaluate", "train"]


@dataclasses.dataclass
class Progress:
    """Where a training stands.

    Attributes
    ----------
    steps, characters : int
        Steps taken, and characters read in them.
    seconds : float
        Since the first step.
    bits : float
        Training loss in bits per character, a mean that forgets (time constant 100 steps).
    share : float
        Of the run that is done, 0 to 1.
    interrupted : bool
        Whether Ctrl-C ended it.
    """

    steps: int = 0
    characters: int = 0
    seconds: float = 0.0
    bits: float = math.nan
    share: float = 0.0
    interrupted: bool = False

    @property
    def speed(self) -> float:
        """Characters per second."""
        return self.characters / self.seconds if self.seconds else 0.0


class Interrupt:
    """While it is entered, the first Ctrl-C only sets `asked`; the second raises KeyboardInterrupt.

    So a step is never cut in half. Signals reach only the main thread; elsewhere it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupt:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)


def _rate(share: float) -> float:
    """Learning rate as a part of the first one: half a cosine down to a twentieth."""
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def train(
    model: LanguageModel, text: np.ndarray, *, batch_size: int = 32, bptt: int = 64,
    lr: float = 2e-3, clip: float = 1.0, steps: int | None = None, minutes: float | None = None,
    decay: bool = True, progress: Callable[[Progress], Any] | None = None,
    interrupt: Interrupt | None = None,
) -> Progress:
    """Train a model to predict a text byte by byte.

    The text is read in `batch_size` rows side by side. Each step backpropagates through a window of
    `bptt` characters; the state is carried on to the next window, the gradient is not.

    Parameters
    ----------
    model : LanguageModel
        Changed in place and left in training mode.
    text : uint8 (N,)
    batch_size, bptt : int
        Rows B and steps T of a window.
    lr : float
        Adam's first learning rate.
    clip : float
        Greatest global norm of the gradients.
    steps, minutes : int or float
        When to stop; exactly one of them. With `steps` the result is the same bits for the same
        model and text, on any number of threads.
    decay : bool
        Whether the learning rate falls to a twentieth along half a cosine.
    progress : callable, optional
        Called with the Progress after every step.
    interrupt : Interrupt, optional
        One that the caller has entered already; by default training's own.

    Returns
    -------
    Progress
        The last one. After Ctrl-C `interrupted` is set and the model is that of the last whole
        step; a second Ctrl-C raises KeyboardInterrupt at once.

    Raises
    ------
    ValueError
        If an option is out of its range, or the text is shorter than one window of every row.
    FloatingPointError
        If the loss or the gradients' norm is not finite; the model is that of the step before.

    References
    ----------
    R. J. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training of
    recurrent network trajectories", Neural Computation 2, 1990: truncated backpropagation through
    time.
    """
    if (steps is None) == (minutes is None):
        raise ValueError(f"train: steps is {steps} and minutes is {minutes}, expected one of them")
    limit = _checks.above("train", "steps", steps) if steps is not None else _checks.above(
        "train", "minutes", minutes) * 60
    _checks.above("train", "clip", clip)
    _checks.positive("train", "batch_size", batch_size)
    _checks.positive("train", "bptt", bptt)
    optimizer = Adam(model, lr)
    model.train()
    state: State = None
    now, mean = Progress(), 0.0
    with contextlib.nullcontext(interrupt) if interrupt else Interrupt() as interrupt:
        start = time.perf_counter()
        for symbols, targets, first in texts.windows(text, bptt, batch_size, endless=True):
            model.zero_grad()
            loss, state = model.loss(symbols, targets, None if first else state)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"train: the loss is {loss} at step {now.steps + 1}, expected a finite "
                    "number; try a smaller lr"
                )
            model.backward()
            optimizer.lr = lr * _rate(now.share) if decay else lr
            optimizer.step(clip)
            mean = 0.99 * mean + 0.01 * loss
            now.steps += 1
            now.characters += symbols.size
            now.seconds = time.perf_counter() - start
            now.bits = mean / (1 - 0.99**now.steps) / math.log(2)
            now.share = min(1.0, (now.steps if steps is not None else now.seconds) / limit)
            now.interrupted = interrupt.asked
            if progress is not None:
                progress(now)
            if now.share >= 1 or interrupt.asked:
                break
    return now


def evaluate(
    model: LanguageModel, text: np.ndarray, *, batch_size: int = 32, bptt: int = 64
) -> float:
    """Return a model's bits per character on a text.

    The text is read as in training, each character predicted from all before it in its row.

    Parameters
    ----------
    model : LanguageModel
        Its mode is the same afterwards.
    text : uint8 (N,)
    batch_size, bptt : int
        At most; a short text is read in fewer rows and shorter windows.

    Raises
    ------
    ValueError
        If the text has fewer than two characters.
    """
    if len(text) < 2:
        raise ValueError(f"evaluate: the text has {len(text)} characters, expected at least 2")
    B = max(1, min(batch_size, (len(text) - 1) // bptt))
    T = min(bptt, (len(text) - 1) // B)
    training = model.training
    if training:
        model.eval()
    state: State = None
    losses = []
    for symbols, targets, _ in texts.windows(text, T, B):
        loss, state = model.loss(symbols, targets, state)
        losses.append(loss)
    if training:
        model.train()
    return float(np.mean(losses)) / math.log(2)
