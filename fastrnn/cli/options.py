"""The arguments of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import fastrnn
from fastrnn import _checks
from fastrnn.cells import vanilla
from fastrnn.models.losses import LOSSES
from fastrnn.models.sequence import READOUTS

SAMPLE = 400  # characters of a sample
PROMPT = "def "
TEMPERATURE = 0.7
RATE = 4e-3  # Adam's first learning rate
SIZES: dict[str, Any] = {"cell": "lstm", "hidden": 256, "layers": 1, "embedding": 64}
DEFAULT_FILE = "fastrnn-model.safetensors"
_GIVEN = argparse.SUPPRESS  # an option that is not given has no attribute
_DEFAULT = " (default: %(default)s)"


def parser() -> argparse.ArgumentParser:
    """Return the parser; the command's function is its `run`."""
    made = argparse.ArgumentParser(
        prog="fastrnn",
        description="Recurrent networks on CPUs: train and sample byte-level language models.")
    made.add_argument("--version", action="version", version=f"fastrnn {fastrnn.__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_train, _add_sample, _add_gradflow):
        add(commands)
    _add_convert(commands)
    _add_cells(commands)
    info = commands.add_parser("info", help="show instruction set, threads and versions")
    info.set_defaults(run=lambda _: fastrnn.show_config())
    return made


def _path(text: str) -> Path:
    """Return a path; an empty one would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty, expected a file or folder")
    return Path(text)


def _command(commands: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description)
    made.add_argument("--threads", type=int, default=_GIVEN, metavar="N",
                      help="at most the CPUs that this process may use (default: all of them)")
    return made


def _add_train(commands: Any) -> None:
    train = _command(
        commands, "train", "train a byte-level language model",
        "Train a byte-level language model on files, on folders, or, without any, on the source of "
        "Python's standard library. Ctrl-C stops and saves.")
    train.add_argument("paths", nargs="*", default=[], metavar="PATH",
                       help="text files and folders")
    train.add_argument("--cell", choices=("rnn", "lstm", "gru"), default=_GIVEN,
                       help="kind of the layers (default: lstm)")
    for name, letter, summary in (
            ("hidden", "H", "units of a layer"), ("layers", "L", "stacked layers"),
            ("embedding", "E", "width of a byte's vector")):
        train.add_argument(f"--{name}", type=int, default=_GIVEN, metavar=letter,
                           help=f"{summary} (default: {SIZES[name]})")
    train.add_argument("--from", dest="source", type=_path, default=_GIVEN, metavar="MODEL",
                       help="go on from this trained model, with any text and options; it has the "
                       "sizes")
    train.add_argument("--batch", type=int, default=32, metavar="B",
                       help="rows read side by side" + _DEFAULT)
    train.add_argument("--bptt", type=int, default=64, metavar="T",
                       help="characters that a gradient goes back" + _DEFAULT)
    train.add_argument("--lr", type=float, default=_GIVEN, help="Adam's first learning rate "
                       f"(default: {RATE}; with --resume that of the run)")
    length = train.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=_GIVEN,
                        help="how long to train (default: 1)")
    length.add_argument("--steps", type=int, default=_GIVEN,
                        help="how many steps to train instead; the result is then reproducible")
    train.add_argument("--seed", type=int, default=0,
                       help="of the first weights, and of the order of files" + _DEFAULT)
    train.add_argument("--folder", type=_path, default=_GIVEN, metavar="FOLDER",
                       help="keep checkpoints here: the latest, and the best on held-out text")
    train.add_argument("--checkpoint-every", type=int, default=1000, metavar="N",
                       help="steps between checkpoints" + _DEFAULT)
    train.add_argument("--resume", action="store_true",
                       help="go on from the folder's latest, which has the sizes, as if there had "
                       "been no stop")
    train.add_argument("-o", "--output", type=_path, default=Path(DEFAULT_FILE), metavar="FILE",
                       help="where the model is written at the end (default: %(default)s; an "
                       "earlier file of that name gets a number, another FILE is replaced)")
    train.set_defaults(run=_train)


def _add_sample(commands: Any) -> None:
    sample = _command(commands, "sample", "continue a text",
                      "Continue a text with a trained model.")
    sample.add_argument("model", type=_path, metavar="MODEL", help="file that train wrote")
    sample.add_argument("--prompt", default=_GIVEN, metavar="TEXT",
                        help=f"the text to continue (default: {PROMPT!r}, or the first character "
                        "of a model that lacks one of these)")
    sample.add_argument("--length", type=int, default=SAMPLE, help="characters to add" + _DEFAULT)
    sample.add_argument("--temperature", type=float, default=TEMPERATURE,
                        help="below 1: more cautious; 0: always the likeliest character"
                        + _DEFAULT)
    sample.add_argument("--top-k", type=int, default=_GIVEN, metavar="K",
                        help="draw from the K likeliest characters only")
    sample.add_argument("--top-p", type=float, default=_GIVEN, metavar="P",
                        help="draw from the fewest characters whose probabilities sum to P")
    sample.add_argument("--seed", type=int, default=0, help="of the draws" + _DEFAULT)
    sample.set_defaults(run=_sample)


def _add_gradflow(commands: Any) -> None:
    flow = _command(
        commands, "gradflow", "see how a model's gradient flows back through time",
        "Send the loss of the last of many characters back through a trained model, say whether "
        "its gradient vanishes or explodes, and draw it.")
    flow.add_argument("model", type=_path, metavar="MODEL", help="file that train wrote")
    flow.add_argument("paths", nargs="*", default=[], metavar="PATH",
                      help="text files and folders")
    flow.add_argument("--bptt", type=int, default=100, metavar="T",
                      help="characters to go back" + _DEFAULT)
    flow.add_argument("--batch", type=int, default=16, metavar="B",
                      help="rows side by side" + _DEFAULT)
    flow.add_argument("-o", "--output", type=_path, default=Path("gradflow"), metavar="FOLDER",
                      help="where the pictures are written" + _DEFAULT)
    flow.set_defaults(run=_gradflow)


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert", help="convert a model's file: from PyTorch, Keras or RTNeural, to PyTorch, ONNX "
        "or RTNeural",
        description="Load a model and save it in another format. The content of IN decides what it "
        "is. The suffix of OUT decides what is written: .safetensors (fastrnn's, with the "
        "configuration), .pt, .onnx, .json (RTNeural). Of Keras, chains are converted that fastrnn "
        "can train; a graph of ONNX cannot be written again.")
    convert.add_argument("source", type=_path, metavar="IN")
    convert.add_argument("target", type=_path, metavar="OUT")
    convert.add_argument("--map", action="append", default=[], metavar="THEIRS=OURS",
                         help="of PyTorch's names: rename modules of IN to embedding, layers.0, "
                         "layers.1, ... and head; an empty OURS leaves one out")
    convert.add_argument("--prefix", default="", help="only tensors below this name")
    convert.add_argument("--not-strict", action="store_true",
                         help="leave out tensors that no part of the model needs")
    convert.add_argument("--nonlinearity", default="tanh", choices=tuple(vanilla()),
                         help="of an RNN (default: tanh)")
    convert.add_argument("--loss", default="softmax", choices=LOSSES,
                         help="of a model with a head (default: softmax)")
    convert.add_argument("--readout", default="every", choices=READOUTS,
                         help="which step's h the head reads (default: every)")
    convert.add_argument("--names", action="append", default=[], metavar="OURS=THEIRS",
                         help="write a state_dict for PyTorch with its module's names of parts; "
                         "--names torch keeps fastrnn's")
    convert.set_defaults(run=_convert)


def _add_cells(commands: Any) -> None:
    cells = commands.add_parser(
        "cells", help="show the zoo of cells, or check equations of your own",
        description="List the cells that fastrnn has as equations, show one of them, or read "
        "equations from a file and say what they define or what is wrong with them.",
        epilog="The exit status is 2 if the equations of the file are wrong.")
    cells.add_argument("name", nargs="?", metavar="NAME", help="a cell of the zoo")
    cells.add_argument("--file", type=_path, metavar="FILE", help="a text file with equations")
    cells.set_defaults(run=_cells)


# What a command needs is imported when it runs.


def _train(args: argparse.Namespace) -> None:
    from fastrnn.cli import train

    _set_threads(args)
    train.run(args)


def _sample(args: argparse.Namespace) -> None:
    from fastrnn.cli import sample

    _set_threads(args)
    sample.run(args)


def _gradflow(args: argparse.Namespace) -> None:
    from fastrnn.cli import gradflow

    _set_threads(args)
    gradflow.run(args)


def _convert(args: argparse.Namespace) -> None:
    from fastrnn.cli import convert

    convert.run(args)


def _cells(args: argparse.Namespace) -> int:
    from fastrnn.cli import cells

    return cells.run(args)


def _set_threads(args: argparse.Namespace) -> None:
    from fastrnn._kernels.runtime import cpu_limit

    if hasattr(args, "threads"):
        fastrnn.set_num_threads(min(_checks.positive("--threads", args.threads), cpu_limit()))
