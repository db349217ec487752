"""The command `fastrnn train`."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import fastrnn
from fastrnn import _checks
from fastrnn._kernels.runtime import get_isa
from fastrnn.cli import streams
from fastrnn.cli.options import (
    DEFAULT_FILE,
    PROMPT,
    RATE,
    SAMPLE,
    SIZES,
    TEMPERATURE,
)
from fastrnn.cli.sample import continued, load_language_model, reads
from fastrnn.formats import save
from fastrnn.formats.files import KERAS, WRITTEN, as_folder, suffix
from fastrnn.formats.models import try_save
from fastrnn.models import LanguageModel
from fastrnn.training import CheckpointError, NotFiniteError, checkpoint, language, text
from fastrnn.training.data import Windows
from fastrnn.training.folder import BEST, LATEST, goes_on
from fastrnn.training.interrupt import Interrupt
from fastrnn.training.progress import progress_bar
from fastrnn.training.text import amount

TESTED = 2**20  # characters at most that the final test reads
VALIDATED = 2**16  # characters of them that are read while it trains


def run(args: argparse.Namespace) -> None:
    """Train a language model, save it, test it, and show a sample.

    The model is the result: standard output may go away meanwhile.
    """
    out = streams.Lasting(sys.stdout, "standard output")
    with contextlib.redirect_stdout(out):
        _train(args)
    if out.error is not None and not isinstance(out.error, BrokenPipeError):
        raise out.error


def _train(args: argparse.Namespace) -> None:
    _check(args)
    found = text.search(args.paths)
    if complaint := found.complaint():
        print(f"fastrnn train: {complaint}", file=sys.stderr)
    if args.output.exists() and any(map(args.output.samefile, found.files)):
        raise ValueError(f"--output is {str(args.output)!r}, a text to train on, expected another "
                         "file")
    model = _model(args)
    symbols = language.symbols_of(model, found.files, args.seed)
    check_length(symbols, args.batch, args.bptt)
    trained, held_out = text.split(symbols)
    if args.resume:
        _check_run(args, trained)
    if hasattr(args, "folder") and args.folder.resolve() in args.output.resolve().parents:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    try_save(model, args.output)

    what = "Python's standard library" if not args.paths else ", ".join(args.paths)
    print(f"{what}: {amount(len(found.files), 'file')}, {len(trained):,} characters to train on, "
          f"{len(held_out):,} held out")
    layer = model.layers[0]
    layers = f"{layer.num_layers} x " if layer.num_layers > 1 else ""
    print(f"{layers}{_name(model).upper()} {layer.hidden_size}: {model.num_parameters:,} "
          f"parameters, {amount(fastrnn.get_num_threads(), 'thread')}, {get_isa()}", flush=True)

    rate = _rate(args)
    notes = {"trained on": what, "batch": args.batch, "bptt": args.bptt, "lr": rate,
             "seed": args.seed}
    if hasattr(args, "source"):
        notes["from"] = str(args.source)
    failure = None
    with Interrupt() as interrupt:
        try:
            with progress_bar(
                    "{0.speed:,.0f} characters/s, {0.bits:.3f} bits/character".format) as bar:
                history = language.train(
                    model, trained, batch_size=args.batch, window=args.bptt, lr=rate,
                    seed=args.seed, progress=bar, interrupt=interrupt, **_length(args),
                    **_folder(args, held_out))
        except CheckpointError as error:  # the training itself went well
            failure, history = error, error.history
        except NotFiniteError as error:
            if error.history.progress.steps:
                _rescue(model, notes)
            raise
        done = history.progress
        notes |= {"steps": done.steps, "characters": done.seen,
                  "training bits per character": round(done.bits, 4)}
        notes = _save(model, args.output, notes)  # what follows may be interrupted
    how = "stopped" if history.stopped == "interrupted" else "done"
    print(f"{how} after {amount(done.steps, 'step')} and {done.seconds:.1f} s: {done.seen:,} "
          f"characters, {done.speed:,.0f} a second")
    print(f"saved {args.output}", flush=True)
    bits = language.bits_per_character(model, held_out[:TESTED], batch_size=args.batch,
                                       window=args.bptt)
    print(f"held-out text: {bits:.3f} bits/character")
    save(model, args.output, notes | {"held-out bits per character": round(bits, 4)})
    prompt = PROMPT if reads(model, PROMPT) else model.decode(held_out[: len(PROMPT)])
    sample = continued(model, prompt, SAMPLE, temperature=TEMPERATURE, seed=args.seed)
    print(f"a sample:\n\n{sample}", flush=True)
    if failure is not None:
        raise failure


def _save(model: LanguageModel, path: Path, notes: dict[str, Any]) -> dict[str, Any]:
    """Save a trained model; keep the file of the default name that is there.

    Returns the notes as they were saved: the file that is kept may be what the model began from.
    """
    try:
        if path == Path(DEFAULT_FILE) and path.exists():
            numbered = (Path(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(1))
            earlier = next(free for free in numbered if not free.exists())
            if "from" in notes and Path(notes["from"]).resolve() == path.resolve():
                notes = notes | {"from": str(earlier)}
            path.rename(earlier)
            print(f"the earlier {path} is {earlier} now")
        save(model, path, notes)
    except (OSError, MemoryError):
        _rescue(model, notes)
        raise
    return notes


def _rescue(model: LanguageModel, notes: dict[str, Any]) -> None:
    """Keep a model that cannot be where it should, or is not what was asked for, and say where."""
    with contextlib.suppress(OSError, MemoryError):  # there is no place at all
        handle, name = tempfile.mkstemp(".safetensors", "fastrnn-model-")
        os.close(handle)
        try:
            save(model, name, notes)
        except BaseException:
            os.unlink(name)
            raise
        print(f"fastrnn train: the model after its last step is kept in {name}", file=sys.stderr)


def _check(args: argparse.Namespace) -> None:
    """Refuse what needs no text and no model to be seen."""
    for name in ("batch", "bptt", "checkpoint_every", "steps", "hidden", "layers", "embedding"):
        if hasattr(args, name):
            _checks.positive(f"--{name.replace('_', '-')}", getattr(args, name))
    for name in ("lr", "minutes"):
        if hasattr(args, name):
            _checks.above(f"--{name}", getattr(args, name))
    _checks.positive("--seed", args.seed, least=0)
    if suffix(args.output) in {*WRITTEN, *KERAS} - {".safetensors"}:
        raise ValueError(f"--output is {args.output.name!r}, expected a name for a safetensors "
                         "file; `fastrnn convert` makes one for PyTorch or ONNX of it")
    if not hasattr(args, "folder"):
        if args.resume:
            raise ValueError("--resume is given without --folder, expected both")
        return
    as_folder(args.folder, "--folder")
    if args.output.resolve() in [args.folder.resolve() / name for name in (LATEST, BEST)]:
        raise ValueError(f"--output is {str(args.output)!r}, a file of the --folder's own, "
                         "expected another")
    earlier = any((args.folder / name).exists() for name in (LATEST, BEST))
    if earlier and not args.resume:
        raise ValueError(f"--folder {str(args.folder)!r} has an earlier run, expected another "
                         "folder, or --resume to go on with it")


def least(batch_size: int, window: int) -> int:
    """Return how long a text must be, so that its two parts can be used.

    B rows of one window and the next character are trained on, and at least two are held out.
    """
    trained = batch_size * window + 1
    N = max(trained, 2 * text.HELD_OUT)
    while (lacking := trained - (N - N // text.HELD_OUT)) > 0:
        N += lacking
    return N


def check_length(symbols: np.ndarray, batch_size: int, window: int) -> None:
    """Refuse a text that is too short to train on and to hold a part out."""
    needed = least(batch_size, window)
    if len(symbols) < needed:
        raise ValueError(
            f"the text has {amount(len(symbols), 'character')}, expected at least {needed:,}: "
            f"{amount(batch_size, 'row')} of {amount(window, 'character')} to train on, and one "
            f"in {text.HELD_OUT} that is held out; give more text, or a smaller --batch or --bptt")


def _model(args: argparse.Namespace) -> LanguageModel:
    """Return the model to train: a new one, or the one to go on from."""
    given = {name: getattr(args, name) for name in SIZES if hasattr(args, name)}
    source = getattr(args, "source", None)
    if hasattr(args, "folder") and goes_on(args.folder, args.resume):
        if source is not None:
            print(f"fastrnn train: the run in {str(args.folder)!r} goes on; --from is not read "
                  "again", file=sys.stderr)
        source = args.folder / LATEST
    if source is None:
        sizes = SIZES | given
        return LanguageModel(embedding_size=sizes["embedding"], hidden_size=sizes["hidden"],
                             num_layers=sizes["layers"], cell=sizes["cell"], seed=args.seed)
    model = load_language_model(source)
    layer = model.layers[0]
    own = {"cell": _name(model), "hidden": layer.hidden_size, "layers": layer.num_layers,
           "embedding": layer.input_size}
    for name, value in given.items():
        if value != own[name]:
            raise ValueError(f"--{name} is {value}, expected {own[name]}, which "
                             f"{str(source)!r} has, or no --{name}")
    return model


def _name(model: LanguageModel) -> str:
    """Return the name of a model's cell, also of one from equations."""
    return str(getattr(model.cell, "name", model.cell))


def _length(args: argparse.Namespace) -> dict[str, Any]:
    if hasattr(args, "steps"):
        return {"steps": args.steps}
    return {"minutes": getattr(args, "minutes", 1)}


def _rate(args: argparse.Namespace) -> Any:
    """Return the first learning rate: as given, of the run that goes on, or the default."""
    if hasattr(args, "lr"):
        return args.lr
    if hasattr(args, "folder") and goes_on(args.folder, args.resume):
        return (checkpoint.about(args.folder / LATEST) or {}).get("lr")
    return RATE


def _folder(args: argparse.Namespace, held_out: np.ndarray) -> dict[str, Any]:
    """Return the options of a training that keeps checkpoints."""
    if not hasattr(args, "folder"):
        return {}
    return {"folder": args.folder, "resume": args.resume,
            "checkpoint_every": args.checkpoint_every, "validate_every": args.checkpoint_every,
            "validation": held_out[:VALIDATED]}


def _check_run(args: argparse.Namespace, trained: np.ndarray) -> None:
    """Refuse to resume a run with another text or other options, in the command line's words."""
    if not goes_on(args.folder, args.resume):
        print(f"fastrnn train: --folder {str(args.folder)!r} has no {LATEST} to go on with: a new "
              "run begins", file=sys.stderr)
        return
    kept = checkpoint.about(args.folder / LATEST)
    if kept is None:
        return  # fit raises the error
    differs = [
        f"another --{option} ({kept.get(name)}, not {getattr(args, option)})"
        for option, name in (("batch", "batch_size"), ("bptt", "window"), ("seed", "seed"))
        if kept.get(name) != getattr(args, option)]
    if not differs and kept.get("data") != Windows(trained, args.bptt, args.batch
                                                   ).fingerprint()["data"]:
        differs = ["another text"]
    if differs:
        raise ValueError(f"--resume: the run in {str(args.folder)!r} has {', '.join(differs)}")
