"""The folder of a run: its latest checkpoint and its best model."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn.formats.files import as_folder
from fastrnn.training.history import History
from fastrnn.training.optim import Optimizer
from fastrnn.training.options import Saving

__all__ = ["BEST", "LATEST", "CheckpointError", "Folder"]

LATEST, BEST = "latest.safetensors", "best.safetensors"


class CheckpointError(OSError):
    """A file of a training could not be written in the end; the training itself went well.

    Attributes
    ----------
    history : History
        The history of the whole training; the model is that after its last step.
    errno, strerror, filename
        As of OSError.
    """

    history: History


def goes_on(folder: Any, resume: Any) -> bool:
    """Return whether a run with these options goes on from a checkpoint."""
    return bool(resume) and folder is not None and (as_folder(folder, "folder") / LATEST).exists()


class Folder:
    """Where a run writes its files.

    Parameters
    ----------
    saving : Saving
        With a folder.
    about : dict
        What a resumed run must have in common with the one before; JSON values.
    """

    def __init__(self, saving: Saving, about: dict[str, Any]) -> None:
        # the program may go to another folder meanwhile
        self.path = as_folder(saving.folder, "folder").absolute()
        self.every, self._about = saving.checkpoint_every, about
        self._failed: dict[str, OSError | MemoryError] = {}
        self._old_best = saving.overwrite
        self.goes_on = goes_on(self.path, saving.resume)
        earlier = [name for name in (LATEST, BEST) if (self.path / name).exists()]
        if earlier and not saving.resume and not saving.overwrite:
            raise RefusedValue(f"the folder {str(self.path)!r} has {earlier[0]} of an earlier run, "
                               "expected none: give resume=True to go on with it, overwrite=True "
                               "to replace it, or another folder")

    def try_write(self, model: Any, optimizer: Optimizer) -> None:
        """Make the folder, and do all that a checkpoint takes, before there is work to lose."""
        from fastrnn.formats import describe
        from fastrnn.training import checkpoint

        describe(model)
        self.path.mkdir(parents=True, exist_ok=True)
        checkpoint.try_save(self.path / LATEST, model, optimizer, self._about)

    def load(self, model: Any, optimizer: Optimizer, lr: float | None, made_here: bool
             ) -> tuple[History, Any]:
        """Go on from the latest checkpoint; refuse that of another run.

        Parameters
        ----------
        model : model
        optimizer : Optimizer
        lr : float or None
            The rate that fit goes on with; None: the checkpoint's, which the optimizer has then.
        made_here : bool
            Whether fit made the optimizer, so that its rate is nobody's choice.
        """
        from fastrnn.training import checkpoint

        path = self.path / LATEST
        kept = checkpoint.about(path)
        if kept is None:
            raise RefusedValue(f"{str(path)!r} is a model and no checkpoint, expected one to "
                               "resume")
        differs = [_difference(name, kept.get(name), self._about.get(name))
                   for name in dict.fromkeys([*self._about, *kept])
                   if name != "lr" and kept.get(name) != self._about.get(name)]
        if differs:
            raise RefusedValue(f"{str(path)!r} is the checkpoint of a run with other options: "
                               f"{'; '.join(differs)}; expected the same to resume")
        rate, own = kept.get("lr"), optimizer.lr
        if not isinstance(rate, float):
            raise RefusedValue(f"{str(path)!r} has the lr {_checks.show(rate)}, expected a number")
        if lr is None and not made_here and own != rate:
            raise RefusedValue(f"the optimizer's lr is {own}, expected {rate} as in the checkpoint "
                               f"{str(path)!r}; to go on with another rate, give fit lr={own}")
        optimizer.lr = rate
        try:
            history, state, _ = checkpoint.load(path, model, optimizer)
        except BaseException:
            optimizer.lr = own
            raise
        return history, state

    def save_latest(self, model: Any, optimizer: Optimizer, state: Any, history: History) -> None:
        """Write a checkpoint; a failure is kept for `finish`."""
        from fastrnn.training import checkpoint

        about = self._about | {"lr": float(optimizer.lr)}
        def write(path: Path) -> None:
            checkpoint.save(path, model, optimizer, optimizer.lr, state, history, about)
            if self._old_best:  # of the run that is overwritten
                (self.path / BEST).unlink(missing_ok=True)
                self._old_best = False

        self._write(LATEST, write)

    def save_best(self, model: Any) -> None:
        """Write the model; a failure is kept for `finish`."""
        from fastrnn.formats import save

        self._write(BEST, lambda path: save(model, path))
        self._old_best = False

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        path = self.path / name
        try:
            write(path)
        except (OSError, MemoryError) as error:
            self._failed[name] = error
            warnings.warn(f"fit: {str(path)!r} could not be written: {error}; training goes on",
                          RuntimeWarning, stacklevel=6)
        else:
            self._failed.pop(name, None)

    def finish(self, history: History) -> None:
        """Raise the first failure that no later write has made good."""
        for name, error in self._failed.items():
            number = getattr(error, "errno", None) or (
                errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO)
            raised = CheckpointError(number, getattr(error, "strerror", None) or str(error),
                                     str(self.path / name))
            raised.history = history
            raise raised from error


def _difference(name: str, kept: Any, own: Any) -> str:
    if name == "data":
        shapes = [[tuple(a["shape"]) for a in of] if isinstance(of, list) else None
                  for of in (kept, own)]
        if shapes[0] != shapes[1]:
            return f"its data has the shapes {shapes[0]}, not {shapes[1]}"
        return "its data has other values"
    return f"its {name} is {kept}, not {own}"
