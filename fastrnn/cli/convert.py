"""The command `fastrnn convert`: a model's file in another format."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from fastrnn.formats import load, save
from fastrnn.formats.files import WRITTEN, suffix

__all__ = ["run"]

_SHOWN = 20  # names of what is not used


def run(args: argparse.Namespace) -> None:
    """Load a model, save it, and say what of the file it does not have."""
    if args.target.exists() and os.path.samefile(args.source, args.target):
        raise ValueError(f"{str(args.source)!r} is IN and OUT, expected two files")
    if args.target.suffix and suffix(args.target) not in WRITTEN:
        raise ValueError(f"OUT is {str(args.target)!r}, expected a name that ends with one of "
                         f"{', '.join(WRITTEN)}")
    mapping = {theirs: ours or None for theirs, ours in _pairs("--map", args.map)}
    names: Any = None
    if args.names == ["torch"]:
        names = "torch"
    elif args.names:
        names = {ours: theirs or None for ours, theirs in _pairs("--names", args.names)}
    try:
        model = load(args.source, mapping=mapping or None, prefix=args.prefix,
                     strict=not args.not_strict, nonlinearity=args.nonlinearity, loss=args.loss,
                     readout=args.readout)
        unused = getattr(model, "unused", ())
        if hasattr(model, "to_model"):  # of Keras: what is saved is one of fastrnn's classes
            model = model.to_model().eval()
        save(model, args.target, names=names)
    except ImportError as error:  # its sentence says what to install
        raise ValueError(str(error)) from error
    print(f"model: {model!r}".partition("\n")[0])
    print(f"parameters: {model.num_parameters:,} of {model.dtype}")
    if unused:
        print(f"not used, {len(unused)}:")
        for name in unused[:_SHOWN]:
            print(f"  {name}")
        if len(unused) > _SHOWN:
            print(f"  and {len(unused) - _SHOWN} more")
    else:
        print("not used: nothing")
    print(f"wrote {args.target} ({args.target.stat().st_size:,} bytes)")


def _pairs(option: str, given: Sequence[str]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for text in given:
        left, equals, right = text.partition("=")
        if not equals or not left:
            raise ValueError(f"{option} is {text!r}, expected two names with = between them")
        if left in dict(pairs):
            raise ValueError(f"{option} has {left!r} twice, expected each name once")
        pairs.append((left, right))
    return pairs
