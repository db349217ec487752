"""The command `fastrnn sample`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from fastrnn import _checks
from fastrnn.cli.options import PROMPT
from fastrnn.formats import load
from fastrnn.models import LanguageModel

__all__ = ["continued", "load_language_model", "reads", "run"]


def run(args: argparse.Namespace) -> None:
    """Continue a text with a trained model."""
    model = load_language_model(args.model)
    _checks.positive("--seed", args.seed, least=0)
    if hasattr(args, "prompt"):
        prompt = args.prompt
        if not prompt:
            raise ValueError("--prompt is empty, expected at least one character")
    else:
        prompt = PROMPT if reads(model, PROMPT) else model.decode([0])
    options = {name: getattr(args, name) for name in ("top_k", "top_p") if hasattr(args, name)}
    print(continued(model, prompt, args.length, temperature=args.temperature, seed=args.seed,
                    **options))


def reads(model: LanguageModel, text: str) -> bool:
    """Return whether a model of bytes or characters has symbols for a text."""
    return model.characters is None or set(text) <= set(model.characters)


def continued(model: LanguageModel, prompt: str, length: int, **options: Any) -> str:
    """Return a prompt and what a model makes of it.

    For a model of bytes the prompt is the bytes that were typed, and what they and the model's
    bytes do not make valid UTF-8 is shown as replacement characters.
    """
    if model.characters is not None:
        return prompt + str(model.sample(prompt, length, **options))
    start = os.fsencode(prompt)
    return (start + bytes(model.sample(start, length, **options))).decode(errors="replace")


def load_language_model(path: Path) -> LanguageModel:
    """Return a language model of bytes or characters, in evaluation mode."""
    model = load(path)
    if not isinstance(model, LanguageModel) or (
            model.vocab_size != 256 and model.characters is None):
        raise ValueError(f"{str(path)!r} is a {type(model).__name__}, expected a language model of "
                         "bytes or characters, as train writes them")
    return model
