"""Training language models on text, and their bits per character.

Letters: N symbols of a text, T steps of a window (truncated backpropagation through time), B rows
that are read side by side.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.layers.parameters import evaluating
from fastrnn.models import LanguageModel
from fastrnn.training import text as texts
from fastrnn.training.data import Windows
from fastrnn.training.history import History
from fastrnn.training.loop import fit
from fastrnn.training.schedules import CosineDecay

__all__ = ["bits_per_character", "train", "train_on"]


@public
def train(
    model: LanguageModel, text: Any, *, batch_size: int = 32, window: int = 64, lr: float = 2e-3,
    decay: bool = True, validation: Any = None, **options: Any,
) -> History:
    """Train a model to predict a text symbol by symbol: `fit` with windows of the text and Adam.

    Parameters
    ----------
    model : LanguageModel
    text : str, bytes, or whole numbers (N,)
        What the model's `encode` takes.
    batch_size, window : int
        Rows B and steps T of a step.
    lr : float
        Adam's first learning rate.
    decay : bool
        Whether the learning rate falls to a twentieth along half a cosine.
    validation : text, optional
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
    model: LanguageModel, symbols: np.ndarray, batch_size: int, window: int, lr: float,
    decay: bool, validation: Any, options: dict[str, Any],
) -> History:
    B = _checks.positive("batch_size", batch_size)
    T = _checks.positive("window", window)
    if len(symbols) < B * T + 1:
        raise RefusedValue(
            f"the text has {texts.amount(len(symbols), 'character')}, expected at least "
            f"{B * T + 1:,}: {texts.amount(B, 'row')} of {texts.amount(T, 'character')} and the "
            "next one; give more text, or a smaller batch_size or window")
    if validation is not None:
        options["validation"] = _validation(model, validation, B, T)
    schedule = CosineDecay(final=0.05) if _checks.flag("decay", decay) else None
    return fit(model, Windows(symbols, T, B), lr=lr,
               **{"optimizer": "adam", "schedule": schedule} | options)


def _validation(
    model: LanguageModel, text: Any, batch_size: int, window: int
) -> Callable[[], float]:
    """Return what computes the loss for each symbol of a text, in nats."""
    if not isinstance(text, (str, bytes, bytearray, np.ndarray, list, tuple)):
        raise RefusedType(f"validation is {_checks.kind(text)}, expected a text: str, bytes, or "
                          "whole numbers")
    symbols = _symbols(model, "validation", text)
    if len(symbols) < 2:
        raise RefusedValue(f"validation has {texts.amount(len(symbols), 'character')}, expected at "
                           "least 2")
    return lambda: math.log(2) * _bits(model, symbols, batch_size, window)


@public
def train_on(model: LanguageModel, text: Any, **options: Any) -> History:
    """Train a model on a text, or on files and folders.

    Parameters
    ----------
    model : LanguageModel
    text : str, bytes, whole numbers (N,); or a pathlib.Path, or a list of files and folders
        A str is the text itself. Files are found and joined by fastrnn.training.text; a model with
        characters of its own reads them as UTF-8.
    options
        As of `train`. Without `epochs`, `steps` or `minutes` it trains for a minute. A short text
        is read in fewer rows, and in shorter windows. A `validation` of "held out" validates on
        the last twentieth of the text instead of training on it.

    Returns
    -------
    History

    Raises
    ------
    OSError
        If a file cannot be read, or none is found.
    TypeError, ValueError
        As of `train`.
    """
    symbols = _symbols(model, "text", _text_of(model, text))
    _check_two(symbols)
    if isinstance(options.get("validation"), str) and options["validation"] == "held out":
        if len(symbols) < 2 * texts.HELD_OUT:
            raise RefusedValue(f"the text has {texts.amount(len(symbols), 'character')}, expected "
                               f"at least {2 * texts.HELD_OUT} to hold out one in {texts.HELD_OUT}")
        symbols, options["validation"] = texts.split(symbols)
    if all(options.get(name) is None for name in ("epochs", "steps", "minutes")):
        options["minutes"] = 1
    window = _checks.positive("window", options.get("window", 64))
    rows = _checks.positive("batch_size", options.get("batch_size", 32))
    options["window"] = window = min(window, len(symbols) - 1)
    options["batch_size"] = min(rows, (len(symbols) - 1) // window)
    return train(model, symbols, **options)


def _text_of(model: LanguageModel, text: Any) -> Any:
    """Return the text of files, if that is what is given."""
    if isinstance(text, str):
        if len(text) < 4096 and "\n" not in text and os.path.exists(text):
            raise RefusedValue(f"text is {_checks.show(text)}, the name of a file, expected a text "
                               "or a path: give pathlib.Path(...)")
        return text
    several = isinstance(text, (list, tuple)) and text and all(
        isinstance(t, (str, os.PathLike)) for t in text)
    if not isinstance(text, os.PathLike) and not several:
        return text
    return symbols_of(model, texts.read(texts.find_files(text)))


def symbols_of(model: LanguageModel, text: np.ndarray) -> np.ndarray:
    """Return a model's symbols (N,) of a file's bytes: these, or the characters that they encode.

    Raises
    ------
    ValueError
        If a model of characters lacks one, or the bytes are not UTF-8.
    """
    if model.characters is None:
        return _symbols(model, "the text", text)
    try:
        characters = text.tobytes().decode()
    except UnicodeDecodeError as error:
        raise RefusedValue(f"the text is not UTF-8: {error.reason} at byte {error.start:,}; "
                           "expected it for a model of characters") from error
    return _symbols(model, "the text", characters)


def _symbols(model: Any, name: str, text: Any) -> np.ndarray:
    if not isinstance(model, LanguageModel):
        raise RefusedType(f"model is {_checks.kind(model)}, expected a LanguageModel")
    if isinstance(text, np.ndarray) and text.dtype == np.uint8 and text.ndim == 1 \
            and model.vocab_size == 256:
        return text  # bytes, one each: no copy of four
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
    text : str, bytes, or whole numbers (N,)
    batch_size : int
        Rows B that the text is cut into, at most; the first character of a row is predicted
        without a past. A short text is read in fewer rows.
    window : int
        Steps T that are computed at once; the result is the same for any of them.

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


def _check_two(symbols: np.ndarray) -> None:
    if len(symbols) < 2:
        raise RefusedValue(f"the text has {texts.amount(len(symbols), 'character')}, expected at "
                           "least 2")


def _bits(model: LanguageModel, symbols: np.ndarray, batch_size: int, window: int) -> float:
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
