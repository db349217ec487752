"""Training: a loop over batches with everything around it, and what judges a model.

Truncated backpropagation through time: a batch that goes on where the one before ended gets its
final state; the gradient is not carried.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from fastrnn import _checks, regularisers
from fastrnn.batches import Batch, Windows
from fastrnn.history import History, Progress
from fastrnn.language_model import LanguageModel
from fastrnn.layers import RNN
from fastrnn.optim import Adam, Optimizer
from fastrnn.schedules import cosine
from fastrnn.stack import arrays_of, recurrent_layers

__all__ = ["History", "Interrupt", "Progress", "bar", "evaluate", "fit", "judge", "train"]

Data = Callable[[int], Batch]
Show = Callable[[Progress], Any]
LATEST, BEST = "latest.safetensors", "best.safetensors"


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


def fit(
    model: Any, data: Data, optimizer: Optimizer, *, steps: int | None = None,
    minutes: float | None = None, schedule: Callable[[int, float], float] | None = None,
    clip: float | None = 1.0, clip_value: float | None = None, omega: float = 0.0,
    validate: Callable[[], float] | None = None, validate_every: int = 1000,
    patience: int | None = None, target: float | None = None, segment: int | None = None,
    folder: str | Path | None = None, save_every: int = 1000, resume: bool = False,
    progress: bool | Show = False, interrupt: Interrupt | None = None,
) -> History:
    """Train a model.

    Parameters
    ----------
    model : SequenceModel, EncoderDecoder or LanguageModel
        Changed in place and left in training mode.
    data : callable
        The batch of a step, which counts from 0: see fastrnn.batches.
    optimizer : Optimizer
        Of this model.
    steps, minutes : int or float
        When to stop; exactly one of them. With `steps` the result is the same bits for the same
        model, data and optimizer, on any number of threads.
    schedule : callable, optional
        Takes the step and the share of the run that is done, and gives what the optimizer's first
        learning rate is multiplied with: see fastrnn.schedules.
    clip : float or None
        Greatest global norm of the gradients.
    clip_value : float or None
        Greatest size of each of their elements, before that.
    omega : float
        Weight of the regulariser of Pascanu et al. on every RNN layer: see fastrnn.regularisers. It
        is in the gradients, not in the losses told.
    validate : callable, optional
        Judges the model, less is better; called every `validate_every` steps and at the end.
    patience : int, optional
        Stop after as many validations that brought nothing better.
    target : float, optional
        Stop after a validation below it.
    segment : int, optional
        Keep activations of so many steps only and run the rest anew: see SequenceModel.loss.
    folder : path, optional
        Where `latest.safetensors` is written, every `save_every` steps and at the end, and
        `best.safetensors`, the best validation's. Both are models, and latest is a checkpoint too.
    resume : bool
        Go on from the folder's latest, if there is one: bitwise as if it had never stopped.
    progress : bool or callable
        True for a progress bar (extra [cli]), or what is called with the Progress after every step.
    interrupt : Interrupt, optional
        One that the caller has entered already; by default training's own.

    Returns
    -------
    History
        After Ctrl-C `stopped` is "interrupted" and the model is that of the last whole step; a
        second Ctrl-C raises KeyboardInterrupt at once.

    Raises
    ------
    ValueError
        If an option is out of its range, or the checkpoint is of another model or optimizer.
    FloatingPointError
        If the loss or the gradients' norm is not finite; it names the step and where it began. The
        model is that of the step before, and the files in the folder stay as they are.

    References
    ----------
    R. J. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training of
    recurrent network trajectories", Neural Computation 2, 1990: truncated backpropagation through
    time.
    """
    if (steps is None) == (minutes is None):
        raise ValueError(f"fit: steps is {steps} and minutes is {minutes}, expected one of them")
    limit = _checks.above("fit", "steps", steps) if steps is not None else _checks.above(
        "fit", "minutes", minutes) * 60
    for name, value in (("clip", clip), ("clip_value", clip_value)):
        if value is not None:
            _checks.above("fit", name, value)
    for name, count in (("validate_every", validate_every), ("save_every", save_every),
                        ("patience", 1 if patience is None else patience)):
        _checks.positive("fit", name, count)
    omega = _checks.at_least("fit", "omega", omega)
    layers = [layer for layer in recurrent_layers(model) if isinstance(layer, RNN)] if omega else []
    if omega and (not layers or segment is not None):
        raise ValueError(f"fit: omega is {omega} for a model {'in segments' if layers else ''}"
                         f"{'without an RNN' if not layers else ''}, expected one with an RNN and "
                         "whole windows")
    trained: Any = optimizer.target
    if trained is not model:
        raise ValueError("fit: optimizer is of another model, expected one of this model")
    for name, given in (("patience", patience), ("target", target)):
        if given is not None and validate is None:
            raise ValueError(f"fit: {name} is given without validate, expected both")
    if target is not None:
        _checks.above("fit", "target", target, -math.inf)
    history, state = History(clip=clip), None
    run = None if folder is None else Path(folder)
    if run is not None:
        from fastrnn import checkpoint, files  # safetensors

        run.mkdir(parents=True, exist_ok=True)
        if resume and (run / LATEST).exists():
            history, state = checkpoint.load(run / LATEST, model, optimizer)
            history.stopped, history.clip = "done", clip
    model.train()
    now, lr = history.progress, optimizer.lr
    now.share = min(1.0, (now.steps if steps is not None else now.seconds) / limit)
    best = min((loss for _, loss in history.validations), default=math.inf)
    with _watching(layers), _restoring(optimizer), _shown(progress) as show, \
            contextlib.nullcontext(interrupt) if interrupt else Interrupt() as interrupt:
        before = now.seconds
        start = time.perf_counter()
        while now.share < 1 and history.stopped == "done":
            batch = data(now.steps)
            model.zero_grad()
            loss, state = _loss(model, batch, state, segment)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"fit: the loss is {loss} at step {now.steps + 1}, {_where(model, state)}; "
                    "expected a finite number: try a smaller lr, or clip")
            model.backward()
            for layer in layers:
                regularisers.omega(layer, omega)
            if schedule is not None:
                optimizer.lr = lr * schedule(now.steps, now.share)
            try:
                norm = optimizer.step(clip, clip_value)
            except FloatingPointError:
                raise FloatingPointError(
                    f"fit: the gradients' norm is not finite at step {now.steps + 1}, "
                    f"{_where(model, state)}; no parameter has changed: try clip, or a smaller lr"
                ) from None
            history.losses.append(loss)
            history.norms.append(norm)
            history.rates.append(optimizer.lr)
            now.steps += 1
            now.seen += batch.size
            now.seconds = before + time.perf_counter() - start
            # a mean over the last 100 steps or so, and from the first one on
            now.loss = loss if now.steps == 1 else now.loss + max(0.01, 1 / now.steps) * (
                loss - now.loss)
            now.share = min(1.0, (now.steps if steps is not None else now.seconds) / limit)
            if show is not None:
                show(now)
            if interrupt.asked:
                history.stopped = "interrupted"
            over = now.share >= 1 or history.stopped != "done"
            if validate is not None and (now.share >= 1 or now.steps % validate_every == 0):
                judged = float(validate())
                model.train()
                history.validations.append((now.steps, judged))
                if judged < best:
                    best = judged
                    if run is not None:
                        files.save_model(model, run / BEST)
                worse = len(history.validations) - 1 - min(
                    range(len(history.validations)), key=lambda i: history.validations[i][1])
                if target is not None and judged < target and not over:
                    history.stopped, over = "target", True
                if patience is not None and worse >= patience and not over:
                    history.stopped, over = "patience", True
            if run is not None and (over or now.steps % save_every == 0):
                checkpoint.save(run / LATEST, model, optimizer, lr, state, history)
    return history


@contextlib.contextmanager
def _watching(layers: list[RNN]) -> Iterator[None]:
    """While it is entered, backward leaves what omega needs."""
    for layer in layers:
        layer.watch = regularisers.OMEGA_NEEDS
    try:
        yield
    finally:
        for layer in layers:
            layer.watch, layer.seen = (), []


@contextlib.contextmanager
def _restoring(optimizer: Optimizer) -> Iterator[None]:
    """Give an optimizer its own learning rate back after a schedule, also after an error."""
    lr = optimizer.lr
    try:
        yield
    finally:
        optimizer.lr = lr


@contextlib.contextmanager
def bar(
    say: Callable[[Progress], str] = "loss {0.loss:.4g}, {0.speed:,.0f}/s".format
) -> Iterator[Show]:
    """Give what draws a progress bar (tqdm), with what `say` makes of a Progress before it."""
    from tqdm import tqdm

    layout = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
    with tqdm(total=1, bar_format=layout, mininterval=0.2) as drawn:

        def show(now: Progress) -> None:
            drawn.set_description_str(say(now), refresh=False)
            drawn.update(now.share - drawn.n)

        yield show


def _shown(progress: bool | Show) -> contextlib.AbstractContextManager[Show | None]:
    if isinstance(progress, bool):
        return bar() if progress else contextlib.nullcontext()
    return contextlib.nullcontext(progress)


def _loss(
    model: Any, batch: Batch, state: Any, segment: int | None = None
) -> tuple[float, Any]:
    """Return the loss of a batch and the state after it."""
    options = {"weights": batch.weights, "vector": batch.vector, "segment": segment,
               "state": None if batch.first else state}
    given = {name: value for name, value in options.items() if value is not None}
    loss, state = model.loss(*batch.inputs, batch.targets, **given)
    return loss, state


def _where(model: Any, state: Any) -> str:
    """Say where the first number is that is not finite."""
    places = [(f"parameter {name}", p) for name, p in model.parameters().items()]
    places += [(f"the state of layers.{i}", a) for i, of in enumerate(state)
               for a in arrays_of(of)]
    places += [(f"the gradient of {name}", g) for name, g in model.grads.items()]
    return next((f"first in {name}" for name, a in places if not np.isfinite(a).all()),
                "in the outputs or the targets")


# ---- judging -------------------------------------------------------------------------------------


def judge(model: Any, data: Data, count: int) -> float:
    """Return a model's mean loss over `count` batches, in evaluation mode.

    Parameters
    ----------
    model : SequenceModel, EncoderDecoder or LanguageModel
        Its mode is the same afterwards.
    data : callable
        The batch of a step, 0 to count - 1; the state is carried where a batch goes on.
    count : int
    """
    count = _checks.positive("judge", "count", count)
    training = model.training
    if training:
        model.eval()
    state, losses = None, []
    try:
        for step in range(count):
            loss, state = _loss(model, data(step), state)
            losses.append(loss)
    finally:
        if training:
            model.train()
    return float(np.mean(losses))


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
    windows = Windows(text, min(bptt, (len(text) - 1) // B), B)
    return judge(model, windows, windows.count) / math.log(2)


# ---- the main job --------------------------------------------------------------------------------


def train(
    model: LanguageModel, text: np.ndarray, *, batch_size: int = 32, bptt: int = 64,
    lr: float = 2e-3, decay: bool = True, **options: Any,
) -> History:
    """Train a model to predict a text byte by byte: `fit` with Windows of the text and Adam.

    Parameters
    ----------
    model : LanguageModel
    text : uint8 (N,)
    batch_size, bptt : int
        Rows B and steps T of a window.
    lr : float
        Adam's first learning rate.
    decay : bool
        Whether the learning rate falls to a twentieth along half a cosine.
    options
        As of fit.

    Raises
    ------
    ValueError
        If the text is shorter than one window of every row, or an option is out of its range.
    """
    _checks.positive("train", "batch_size", batch_size)
    _checks.positive("train", "bptt", bptt)
    data = Windows(text, bptt, batch_size)
    return fit(model, data, Adam(model, lr), schedule=cosine(final=0.05) if decay else None,
               **options)
