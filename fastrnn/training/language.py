"""Training language models on text, and their bits per character.

Letters: N symbols of a text, T steps of a window (truncated backpropagation through time), B rows
that are read side by side.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.layers.parameters import evaluating
from fastrnn.models import LanguageModel
from fastrnn.models.ragged import as_list
from fastrnn.training import text as texts
from fastrnn.training.data import SeriesWindows, Windows
from fastrnn.training.folder import goes_on
from fastrnn.training.history import History
from fastrnn.training.loop import fit
from fastrnn.training.schedules import CosineDecay
from fastrnn.training.validation import evaluate

__all__ = ["bits_per_character", "train", "train_on"]


@public
def train(
    model: LanguageModel, text: Any, *, batch_size: int = 32, window: int = 64,
    lr: float | None = None, decay: bool = True, validation: Any = None, **options: Any,
) -> History:
    """Train a model to predict a text symbol by symbol: `fit` with windows of the text and Adam.

    Parameters
    ----------
    model : LanguageModel
    text : str, bytes, or whole numbers (N,); or a list of them
        What the model's `encode` takes. The texts of a list are sequences of their own: nothing of
        one helps to predict another. They are read one after the other, in rows as long as
        windows of one text have, and the state is zero before each text's first character, in the
        middle of a window too. (Where a row begins, it is zero as well.)
    batch_size, window : int
        Rows B and steps T of a step.
    lr : float, optional
        The first learning rate. None: 2e-3 of Adam; of an `optimizer` that is given, its own; of a
        run that is resumed, that of the checkpoint.
    decay : bool
        Whether the learning rate falls to a twentieth along half a cosine.
    validation : text, or list of texts, optional
        A text whose loss for each symbol is the validation loss.
    options
        As of fit: `steps` or `minutes`, `folder`, `progress` and others; an `optimizer` or a
        `schedule` is used instead of Adam or of the half cosine.

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        If the text is shorter than one window of every row, if the model has no symbol for a
        character, or if an option is out of its range.
    """
    return _train(model, _symbols(model, "text", text), batch_size, window, lr, decay, validation,
                  options)


def _train(
    model: LanguageModel, symbols: Any, batch_size: int, window: int, lr: float | None,
    decay: bool, validation: Any, options: dict[str, Any],
) -> History:
    B = _checks.positive("batch_size", batch_size)
    T = _checks.positive("window", window)
    if (found := _predictions(symbols)) < B * T:
        several = isinstance(symbols, list)
        raise RefusedValue(
            f"the text{'s have' if several else ' has'} "
            f"{texts.amount(found + (not several), 'character')}"
            f"{' after their first ones' * several}, expected at least {B * T + (not several):,}: "
            f"{texts.amount(B, 'row')} of {texts.amount(T, 'character')}"
            f"{'' if several else ' and the next one'}; give more text, or a smaller batch_size or "
            "window")
    if validation is not None:
        options["validation"] = _validation(model, validation, B, T)
    schedule = CosineDecay(final=0.05) if _checks.flag("decay", decay) else None
    if lr is None and "optimizer" not in options and not goes_on(
            options.get("folder"), options.get("resume")):
        lr = 2e-3
    return fit(model, _windows(symbols, T, B), lr=lr,
               **{"optimizer": "adam", "schedule": schedule} | options)


def _predictions(symbols: Any) -> int:
    """Return how many symbols of a text, or of texts, are predicted: all but each first."""
    of = symbols if isinstance(symbols, list) else [symbols]
    return sum(max(0, len(text) - 1) for text in of)


def _windows(symbols: Any, T: int, B: int) -> Windows:
    """Return windows of a text, or of texts one after the other."""
    if not isinstance(symbols, list):
        return Windows(symbols, T, B)
    used = [text for text in symbols if len(text) > 1]
    start = np.zeros(_predictions(used), bool)
    start[np.cumsum([0, *(len(text) - 1 for text in used[:-1])])] = True
    x, targets = (np.concatenate([text[part] for text in used])
                  for part in (slice(None, -1), slice(1, None)))
    return Windows(x, T, B, targets, start)


def _validation(
    model: LanguageModel, text: Any, batch_size: int, window: int
) -> Callable[[], float]:
    """Return what computes the loss for each symbol of a text, in nats."""
    kinds = (str, bytes, bytearray, memoryview, list, tuple)
    if not isinstance(text, kinds) and not hasattr(text, "__array__"):
        raise RefusedType(f"validation is {_checks.kind(text)}, expected a text: str, bytes, or "
                          "whole numbers")
    symbols = _symbols(model, "validation", text)
    _check_two(symbols, "validation")
    return lambda: math.log(2) * _bits(model, symbols, batch_size, window)


@public
def train_on(model: LanguageModel, text: Any, **options: Any) -> History:
    """Train a model on a text, or on files and folders.

    Parameters
    ----------
    model : LanguageModel
    text : str, bytes, whole numbers (N,), or a list of them; or a pathlib.Path, or a list of Paths
        A str is the text itself; one that is the name of a file is refused. The texts of a list
        are sequences of their own: see `train`. Files and folders are found and joined to one
        text by fastrnn.training.text; a model with characters of its own reads them as UTF-8.
    options
        As of `train`. Without `epochs`, `steps` or `minutes` it trains for a minute. A short text
        is read in fewer rows, and in shorter windows. A `validation` of "held out" validates on
        the last twentieth of the text, or of all texts, instead of training on it.

    Returns
    -------
    History

    Raises
    ------
    OSError
        If a file cannot be read, or none is found.
    TypeError, ValueError
        As of `train`, but that a text of two symbols is long enough.
    """
    symbols = _symbols(model, "text", _text_of(model, text))
    _check_two(symbols)
    if isinstance(options.get("validation"), str) and options["validation"] == "held out":
        if (found := _predictions(symbols) + 1) < 2 * texts.HELD_OUT:
            raise RefusedValue(f"the text has {texts.amount(found, 'character')}, expected "
                               f"at least {2 * texts.HELD_OUT} to hold out one in {texts.HELD_OUT}")
        symbols, options["validation"] = (
            _split if isinstance(symbols, list) else texts.split)(symbols)
    if all(options.get(name) is None for name in ("epochs", "steps", "minutes")):
        options["minutes"] = 1
    window = _checks.positive("window", options.get("window", 64))
    rows = _checks.positive("batch_size", options.get("batch_size", 32))
    options["window"] = window = min(window, _predictions(symbols))
    options["batch_size"] = min(rows, _predictions(symbols) // window)
    return train(model, symbols, **options)


def _text_of(model: LanguageModel, text: Any) -> Any:
    """Return the text of files, if that is what is given."""
    text = as_list(text)
    several = isinstance(text, (list, tuple))
    if isinstance(text, os.PathLike) or (
            several and any(isinstance(t, os.PathLike) for t in text)):
        return symbols_of(model, texts.find_files(text))
    names = os.path.isfile if several else os.path.exists  # a word may be a folder's name, too
    for i, one in enumerate(text if several else [text]):
        if isinstance(one, str) and len(one) < 4096 and "\n" not in one and names(one):
            what = "file" if os.path.isfile(one) else "folder"
            raise RefusedValue(f"text{f'[{i}]' * several} is {_checks.show(one)}, the name of a "
                               f"{what}, expected a text or a path: give pathlib.Path(...)")
    return text


def _split(symbols: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return (to train on, held out): the last symbols of all texts together.

    Texts of one symbol, in which nothing is predicted, are in neither.
    """
    symbols = [text for text in symbols if len(text) > 1]
    total = sum(map(len, symbols))
    left = total - total // texts.HELD_OUT
    trained, held_out = [], []
    for text in symbols:
        trained.append(text[: max(0, left)])
        held_out.append(text[max(0, left) :])
        left -= len(text)
    return trained, held_out


def symbols_of(model: LanguageModel, files: Iterable[Path], seed: int = 0) -> Any:
    """Return a model's symbols (N,) of files: their bytes, or the characters that these encode.

    The files are joined, in an order drawn from the seed, by line ends; by nothing if the model has
    no symbol for a line's end.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If a model of characters lacks one, or the bytes are not UTF-8.
    """
    if model.characters is None:
        return _symbols(model, "the text", texts.read(files, seed))
    text = texts.read(files, seed, b"\n" if "\n" in model.characters else b"")
    try:
        characters = text.tobytes().decode()
    except UnicodeDecodeError as error:
        raise RefusedValue(f"the text is not UTF-8: {error.reason} at byte {error.start:,}; "
                           "expected it for a model of characters") from error
    return _symbols(model, "the text", characters)


def _symbols(model: Any, name: str, text: Any) -> Any:
    """Return a model's symbols of a text (N,), or a list of those of several texts."""
    if not isinstance(model, LanguageModel):
        raise RefusedType(f"model is {_checks.kind(model)}, expected a LanguageModel")
    if isinstance(text, np.ndarray) and text.dtype == np.uint8 and text.ndim == 1 \
            and model.vocab_size == 256:
        return text  # bytes, one each: no copy of four
    text = as_list(text)
    if isinstance(text, (list, tuple)) and any(hasattr(t, "__len__") for t in text):
        return [model._encode(f"{name}[{i}]", t) for i, t in enumerate(text)]
    return model._encode(name, text)


# ---- bits per character --------------------------------------------------------------------------


@public
def bits_per_character(
    model: LanguageModel, text: Any, *, batch_size: int = 32, window: int = 64
) -> float:
    """Return a model's bits per character on a text: the mean of -log2 p(character).

    Every character but the first is predicted once, from all before it in its row.

    Parameters
    ----------
    model : LanguageModel
        Its mode is the same afterwards.
    text : str, bytes, or whole numbers (N,); or a list of them
        Of a list, every character but the first of each text is predicted, from all before it in
        its text.
    batch_size : int
        Rows B that the text is cut into, at most; the first character of a row is predicted
        without a past. A text of fewer than B windows is read in fewer rows. Of a list so many
        texts are read at a time, none of them cut.
    window : int
        Steps T that are computed at once. The state goes on from one to the next, so the result
        depends on them only through the number of rows, if the text has fewer than B windows.

    Raises
    ------
    TypeError, ValueError
        If the text has fewer than two characters, or an argument does not fit.
    """
    symbols = _symbols(model, "text", text)
    B = _checks.positive("batch_size", batch_size)
    T = _checks.positive("window", window)
    _check_two(symbols)
    return _bits(model, symbols, B, T)


def _check_two(symbols: Any, name: str = "the text") -> None:
    if isinstance(symbols, list) and not _predictions(symbols):
        raise RefusedValue(f"{name} has {texts.amount(len(symbols), 'text')} of at most one "
                           "character, expected one of at least 2")
    if len(symbols) < 2 and not isinstance(symbols, list):
        raise RefusedValue(f"{name} has {texts.amount(len(symbols), 'character')}, expected at "
                           "least 2")


def _bits(model: LanguageModel, symbols: Any, batch_size: int, window: int) -> float:
    if isinstance(symbols, list):  # the longest first: few rows have ended at any time
        order = sorted((text for text in symbols if len(text) > 1), key=len, reverse=True)
        data = SeriesWindows([text[:-1] for text in order], window, batch_size,
                             [text[1:] for text in order])
        return evaluate(model, data, data.count) / math.log(2)
    N = len(symbols) - 1  # predictions
    B = max(1, min(batch_size, N // window))
    steps = -(-N // B)
    shape = (B, steps)
    real = np.arange(B * steps).reshape(shape) < N  # the last row may end early
    x, targets = np.zeros(shape, symbols.dtype), np.zeros(shape, symbols.dtype)
    x[real], targets[real] = symbols[:-1], symbols[1:]
    total = weight = 0.0
    state = None
    with evaluating(model):
        for t in range(0, steps, window):
            now = slice(t, t + window)
            p = model.loss(x[:, now].T, targets[:, now].T, state, weights=real[:, now].T,
                           grad=False)
            total += p.value * p.weight
            weight += p.weight
            state = p.state
    return total / weight / math.log(2)
