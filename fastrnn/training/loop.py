"""Training: a loop over batches with validation, checkpoints and early stopping.

Truncated backpropagation through time: a batch that goes on where the one before ended begins with
its final state; the gradient is not carried. Letters: N sequences, T steps, I features, K numbers
of an output, C size of a context.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any, Unpack

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.layers.parameters import distinct, modes
from fastrnn.training.arrays import read
from fastrnn.training.data import Data, batch_of
from fastrnn.training.folder import Folder
from fastrnn.training.history import History, Progress
from fastrnn.training.interrupt import Interrupt
from fastrnn.training.optim import OPTIMIZERS, Optimizer
from fastrnn.training.options import (
    Descent,
    Length,
    Options,
    Reading,
    Saving,
    Stopping,
    check_known,
    grouped,
)
from fastrnn.training.progress import shown
from fastrnn.training.step import NotFiniteError, Step, check_model
from fastrnn.training.validation import Validation

__all__ = ["fit"]


@public
def fit(
    model: Any, x: Any, y: Any = None, *, epochs: int | None = None, steps: int | None = None,
    minutes: float | None = None, batch_size: int = 32, optimizer: Any = "adam",
    lr: float | None = None, validation: Any = None, **options: Unpack[Options],
) -> History:
    """Train a model.

    Parameters
    ----------
    model : SequenceModel, EncoderDecoder or LanguageModel
        Changed in place; its modes are afterwards what they were before.
    x : array (N, T, I), or a function of the step that returns a Batch
        Arrays are sequences first, of any number dtype; lists of arrays, columns and tables of
        pandas, and, with I = 1, also (N, T). One series may be (T, I) or (T,). Symbols are (N, T)
        or (T,). The arrays of a list, (T_i, I) or (T_i,), may differ in their number of steps:
        only real steps are computed, and only these count in the loss. For functions see
        fastrnn.training.data: Windows, SeriesWindows, Samples, Generated; then batch_size, shuffle
        and seed have no effect on the batches, and window, weights, context and episode_start are
        refused: a Batch has its own. An EncoderDecoder takes functions only: Samples with a source,
        or one whose batches are Batch((source, inputs), targets).
    y : array (N, T, K), or (N, K) with readout "last"; with a list x a list of arrays (T_i, K)
        For classes, or with K = 1, without the K. None: each target is the next step of x.
        (In this place a function of the step may be followed by the optimizer.)
    epochs, steps, minutes : int, int or float
        When to stop; exactly one of them. With epochs or steps the result is the same bits for the
        same model, data and options, on any number of threads.
    batch_size : int
        Sequences of a step; the last batch of an epoch has the rest.
    optimizer : {"adam", "adamw", "sgd", "rmsprop"}, class or object of fastrnn.optim
        An object is of this model, or of parts of it: what it leaves out is frozen.
    lr : float, optional
        The first learning rate. None: the default of the optimizer's class, the rate of an
        optimizer object, or that of the checkpoint if the run is resumed. A given rate is always
        used.
    validation : (x, y), (x, y, weights), a dict, a fraction such as 0.1, or a function, optional
        What the validation loss is computed on; less is better. A dict has x, and y, weights,
        context and episode_start if there are such. A fraction holds out the last sequences or,
        with `window`, the last steps of each. A function takes nothing and returns the loss.
        Windows and Samples are read once.
    window : int, optional
        Read long series in windows of so many steps and carry the state on: truncated
        backpropagation through time. The series of x are the rows, batch_size of them at a time;
        one series is cut into up to batch_size rows. The order is that of time. Series of a list
        may end at different steps; those that have ended are not computed any more.
    weights : array (N, T) or (N,), or a list of arrays (T_i,), optional
        Weight of each output or sequence in the loss; 0 or False leaves it out: padding. Without y
        there is an output less than steps: (N, T - 1).
    context : array (N, C), optional
        For a model with a context_size.
    episode_start : booleans (N, T), or a list of arrays (T_i,), optional
        True where a new episode begins. There the state before the step is zero, also if one was
        carried on from the window before, and no gradient flows back to earlier steps. Without y,
        the last step of an episode has no target.
    shuffle : bool
        Whether the order of the sequences is drawn anew for each epoch; by default it is.
    seed : int
        Seed of the order; 0 by default.
    schedule : callable, optional
        Takes the step and the fraction of the run that is done, and returns a factor on the first
        learning rate: see fastrnn.schedules.
    clip : float or None
        Greatest global norm of the gradients, 1.0 by default.
    clip_value : float, optional
        Greatest size of each of their elements, before that.
    omega : float
        Weight of the regulariser of Pascanu et al. on every RNN layer: see
        fastrnn.training.regularisers. It is in the gradients, not in the losses of the history.
    recompute_every : int, optional
        Gradient checkpointing: see SequenceModel.loss.
    validate_every : int, optional
        Steps from one validation to the next; by default an epoch, or 1000 where there are none.
        The last step is followed by a validation, too.
    patience : int, optional
        Stop after as many validations without a better one.
    target_loss : float, optional
        Stop after a validation below it.
    folder : path, optional
        Where `latest.safetensors` is written, every `checkpoint_every` steps and at the end, and
        `best.safetensors`, the best validation's. Both are models, and latest is a checkpoint too.
        That this is possible is tried before the first step. A file that cannot be written later
        is a warning, and training goes on; if that was the last attempt, CheckpointError is raised
        in the end.
    checkpoint_every : int
        1000 by default.
    resume : bool
        Go on from the folder's latest, if there is one: bitwise as if it had never stopped. A run
        validates once more when it ends; if it is resumed, this validation can still be the best,
        but patience does not count it. A run that patience or target_loss has ended takes no
        further step, unless they changed. Data, window, seed and batch_size must be those of the
        checkpoint; what a function of your own returns is not compared. Learning rates of an
        optimizer's groups are those that it has now.
    overwrite : bool
        Replace the files of an earlier run in the folder.
    progress : bool or callable, optional
        True for a progress bar (extra [cli]), False for none, or a function that is called with the
        Progress after every step. By default a bar if standard error is a terminal and tqdm is
        there.
    interrupt : Interrupt, optional
        One that the caller has entered already; by default training's own.

    Returns
    -------
    History
        After Ctrl-C `stopped` is "interrupted" and the model is that of the last whole step; a
        second Ctrl-C raises KeyboardInterrupt at once.

    Raises
    ------
    TypeError, ValueError, IndexError
        If an argument does not fit, the folder has an earlier run, or the checkpoint is of another
        model, optimizer, data or options: no step was taken. Also if a function that was given (a
        schedule, a validation, data) fails or returns what does not fit: then the steps before it
        were taken.
    OSError
        If the folder cannot be written. No step was taken.
    CheckpointError
        If a file could not be written at the end; it has the `history`, and the model is trained.
    NotFiniteError
        A FloatingPointError: the loss or the gradients' norm is not finite. The message names the
        place where it began, in the data or elsewhere; `history` is that of the steps before, the
        model is that after the last of them, and the files do not change.

    References
    ----------
    R. J. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training of
    recurrent network trajectories", Neural Computation 2, 1990: truncated backpropagation through
    time.
    """
    check_known(options, fit)
    if isinstance(y, Optimizer) or (callable(x) and isinstance(y, (str, type))):
        if optimizer != "adam":
            raise RefusedValue(f"optimizer is {_checks.show(optimizer)}, expected none: one is in "
                               "the place of y")
        optimizer, y = y, None
    length = Length(epochs, steps, minutes)
    reading = grouped(Reading, options | {"batch_size": batch_size})
    descent, stopping = grouped(Descent, options), grouped(Stopping, options)
    saving = grouped(Saving, options)
    stopping.check(validation)
    progress = shown(options.get("progress"))
    interrupt = Interrupt() if options.get("interrupt") is None else options["interrupt"]
    if not isinstance(interrupt, Interrupt):
        raise RefusedType(f"interrupt is {_checks.show(interrupt)}, expected an Interrupt")
    data, source = read(check_model(model), x, y, reading, validation)
    made_here = not isinstance(optimizer, Optimizer)
    optimizer = _optimizer(model, optimizer, lr)
    folder = None if saving.folder is None else Folder(saving, _about(data, reading))
    run = Run(
        model, data, optimizer, length, Step(model, optimizer, descent), length.limit(data),
        None if source is None else Validation(model, source, stopping, data), folder,
        History(clip=descent.clip))
    with contextlib.ExitStack() as stack:
        stack.enter_context(modes(model))
        _set_modes(model, optimizer)
        if folder is not None:
            folder.try_write(model, optimizer)
            if folder.goes_on:
                run.history, run.state = folder.load(model, optimizer, lr, made_here)
                run.history.stopped, run.history.clip = run.why_ended(), descent.clip
        own, begun = optimizer.lr, run.history.progress.steps
        if lr is not None:
            optimizer.lr = lr
        run.show = stack.enter_context(progress)
        if options.get("interrupt") is None:
            stack.enter_context(interrupt)
        try:
            run.go(interrupt)
        except BaseException:
            if run.history.progress.steps == begun:  # the first batch was refused
                optimizer.lr = own
            raise
    return run.history


def _optimizer(model: Any, optimizer: Any, lr: float | None) -> Optimizer:
    """Return the optimizer of a run, made with `lr` if it is a name or a class."""
    given = {} if lr is None else {"lr": _checks.above("lr", lr)}
    if isinstance(optimizer, Optimizer):
        own = {id(part) for part in distinct(model)}
        strange = [name for name, part in optimizer.trained.items() if id(part) not in own]
        if strange:
            raise RefusedValue(f"optimizer is of another model, with {strange[0] or 'a layer'!r}, "
                               "expected one of this model or of parts of it")
        return optimizer
    kind: Any = optimizer
    if isinstance(kind, str):
        kind = OPTIMIZERS[_checks.one_of("optimizer", kind.lower(), OPTIMIZERS)]
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)) or kind is Optimizer:
        raise RefusedType(f"optimizer is {_checks.show(optimizer)}, expected one of "
                          f"{list(OPTIMIZERS)}, or a class or an object of fastrnn.optim")
    make: Any = kind
    made: Optimizer = make(model, **given)
    return made


def _set_modes(model: Any, optimizer: Optimizer) -> None:
    """Choose training mode for what is trained; frozen parts may stay in evaluation mode."""
    for part in optimizer.trained.values():
        part.set_mode("training")
    for part in distinct(model):
        if part.mode == "bfloat16":  # rounded weights have no backward
            part.set_mode("evaluation")


def _about(data: Data, reading: Reading) -> dict[str, Any]:
    """Return what a run that is resumed must have in common with the one before."""
    fingerprint = getattr(data, "fingerprint", dict)
    return {"seed": int(reading.seed), **fingerprint()}


@dataclasses.dataclass
class Run:
    """A training under way.

    Attributes
    ----------
    limit : float
        Steps or seconds of the whole run.
    state : tuple or None
        What is carried from step to step.
    """

    model: Any
    data: Data
    optimizer: Optimizer
    length: Length
    step: Step
    limit: float
    validation: Validation | None
    folder: Folder | None
    history: History
    state: Any = None
    show: Callable[[Progress], Any] | None = None

    def go(self, interrupt: Interrupt) -> None:
        """Take steps until the run is over."""
        history, now = self.history, self.history.progress
        now.fraction = self.length.fraction(now, self.limit)
        start = time.perf_counter() - now.seconds
        while now.fraction < 1 and history.stopped == "done":
            self._advance(start)
            if self.show is not None:
                self.show(now)
            if interrupt.asked:
                history.stopped = "interrupted"
            if self.validation is not None and (
                    now.fraction >= 1 or now.steps % self.validation.every == 0):
                self._validate(self.validation)
            if self.folder is not None and (
                    now.fraction >= 1 or history.stopped != "done"
                    or now.steps % self.folder.every == 0):
                self.folder.save_latest(self.model, self.optimizer, self.state, history)
        if self.folder is not None:
            self.folder.finish(history)

    def _advance(self, start: float) -> None:
        """Take one step and write it down."""
        history, now = self.history, self.history.progress
        batch = batch_of(self.data, now.steps)
        try:
            loss, norm, clipped, rate, self.state = self.step(batch, self.state, now.steps,
                                                              now.fraction)
        except NotFiniteError as error:
            error.history = history
            raise
        history.losses.append(loss)
        history.norms.append(norm)
        history.rates.append(rate)
        now.steps += 1
        if clipped:
            history.clipped.append(now.steps)
        now.seen += batch.size
        now.seconds = time.perf_counter() - start
        # a mean over the last 100 steps or so, and from the first one on
        now.loss = loss if now.steps == 1 else now.loss + max(0.01, 1 / now.steps) * (
            loss - now.loss)
        now.fraction = self.length.fraction(now, self.limit)

    def why_ended(self) -> str:
        """Return why the run that is resumed shall take no further step; "done": it shall."""
        found, steps = self.history.validations, self.history.progress.steps
        if (self.validation is None or not found or found[-1][0] != steps
                or steps in self.history.ends):
            return "done"
        return self.validation.stop(self.history) or "done"

    def _validate(self, validation: Validation) -> None:
        """Validate, keep the best model, and see whether to stop."""
        history = self.history
        if validation(history) and self.folder is not None:
            self.folder.save_best(self.model)
        if history.progress.fraction < 1 and history.stopped == "done":
            history.stopped = validation.stop(history) or "done"
