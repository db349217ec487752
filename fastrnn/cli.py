"""The command `fastrnn`: train, sample, gradflow, info."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastrnn

HELD_OUT = 2**20  # bytes at most that the final judgement reads
JUDGED = 2**16  # bytes of them that are read while it trains
SAMPLE = 400  # characters shown after training
PROMPT = "def "
DEFAULT_FILE = "fastrnn-model.safetensors"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastrnn",
        description="Recurrent networks on CPUs: train and sample byte-level language models.")
    parser.add_argument("--version", action="version", version=f"fastrnn {fastrnn.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train", help="train a byte-level language model",
        description="Train a byte-level language model on files, on folders, or, without any, on "
        "the source of Python's standard library. Ctrl-C stops and saves.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    train.add_argument("paths", nargs="*", metavar="PATH", help="text files and folders")
    train.add_argument("--cell", choices=("rnn", "lstm", "gru"), default="lstm")
    train.add_argument("--hidden", type=int, default=256, metavar="H", help="units of a layer")
    train.add_argument("--layers", type=int, default=1, metavar="L", help="stacked layers")
    train.add_argument("--embedding", type=int, default=64, metavar="E", help="width of a byte's "
                       "vector")
    train.add_argument("--batch", type=int, default=32, metavar="B", help="rows read side by side")
    train.add_argument("--bptt", type=int, default=64, metavar="T",
                       help="characters that a gradient goes back")
    train.add_argument("--lr", type=float, default=4e-3, help="Adam's first learning rate")
    length = train.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=argparse.SUPPRESS,
                        help="how long to train (default: 1)")
    length.add_argument("--steps", type=int, default=argparse.SUPPRESS,
                        help="how many steps to train instead; the result is then reproducible")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--folder", type=Path, default=argparse.SUPPRESS, metavar="FOLDER",
                       help="keep checkpoints here: the latest, and the best on held-out text")
    train.add_argument("--save-every", type=int, default=1000, metavar="N",
                       help="steps between checkpoints")
    train.add_argument("--resume", action="store_true",
                       help="go on from the folder's latest, as if there had been no stop")
    _add_threads(train)
    train.add_argument("-o", "--output", type=Path, default=Path(DEFAULT_FILE), metavar="FILE")
    train.set_defaults(run=_train)

    sample = commands.add_parser(
        "sample", help="continue a text", description="Continue a text with a trained model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    sample.add_argument("model", type=Path, metavar="MODEL", help="file that train wrote")
    sample.add_argument("--prompt", default=PROMPT)
    sample.add_argument("--length", type=int, default=SAMPLE, help="characters to add")
    sample.add_argument("--temperature", type=float, default=0.7,
                        help="below 1: more cautious; 0: always the likeliest character")
    sample.add_argument("--seed", type=int, default=0)
    _add_threads(sample)
    sample.set_defaults(run=_sample)

    flow = commands.add_parser(
        "gradflow", help="see how a model's gradient flows back through time",
        description="Send the loss of the last of many characters back through a trained model, "
        "say whether its gradient vanishes or explodes, and draw it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flow.add_argument("model", type=Path, metavar="MODEL", help="file that train wrote")
    flow.add_argument("paths", nargs="*", metavar="PATH", help="text files and folders")
    flow.add_argument("--bptt", type=int, default=100, metavar="T", help="characters to go back")
    flow.add_argument("--batch", type=int, default=16, metavar="B", help="rows side by side")
    _add_threads(flow)
    flow.add_argument("-o", "--output", type=Path, default=Path("gradflow"), metavar="FOLDER")
    flow.set_defaults(run=_gradflow)

    info = commands.add_parser("info", help="show instruction set, threads and versions")
    info.set_defaults(run=lambda _: fastrnn.show_config())
    return parser


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=argparse.SUPPRESS,
                        help="(default: as many as this process may use)")


def _train(args: argparse.Namespace) -> None:
    from fastrnn import files, text, training
    from fastrnn._kernels.runtime import get_isa
    from fastrnn.language_model import LanguageModel

    if not args.output.parent.is_dir():
        raise FileNotFoundError(f"-o: no folder {str(args.output.parent)!r} for the model file")
    if args.output.is_dir():
        raise IsADirectoryError(f"-o: {str(args.output)!r} is a folder, expected a file's name")
    found = text.find_files(args.paths)
    train_text, held_out = text.split(text.read(found, args.seed))
    model = LanguageModel(
        embedding_size=args.embedding, hidden_size=args.hidden, num_layers=args.layers,
        cell=args.cell, seed=args.seed)
    if len(held_out) < 2:
        raise ValueError(f"the text has {len(train_text) + len(held_out)} bytes, expected at least "
                         "40: the last twentieth is held out")
    what = "Python's standard library" if not args.paths else ", ".join(args.paths)
    print(f"{what}: {_count(len(found), 'file')}, {len(train_text):,} characters to train on, "
          f"{len(held_out):,} held out")
    layers = f"{args.layers} x " if args.layers > 1 else ""
    print(f"{layers}{args.cell.upper()} {args.hidden}: {model.flat.size:,} parameters, "
          f"{_count(fastrnn.get_num_threads(), 'thread')}, {get_isa()}", flush=True)

    steps = getattr(args, "steps", None)
    minutes = getattr(args, "minutes", None if steps is not None else 1)
    folder: dict[str, Any] = {}
    if hasattr(args, "folder"):
        few = held_out[:JUDGED]
        folder = {
            "folder": args.folder, "resume": args.resume, "save_every": args.save_every,
            "validate_every": args.save_every, "validate": lambda: math.log(2) * training.evaluate(
                model, few, batch_size=args.batch, bptt=args.bptt)}
    elif args.resume:
        raise ValueError("--resume is given without --folder, expected both")
    with training.Interrupt() as interrupt:
        with training.bar("{0.speed:,.0f} characters/s, {0.bits:.3f} bits/character".format) as bar:
            history = training.train(
                model, train_text, batch_size=args.batch, bptt=args.bptt, lr=args.lr, steps=steps,
                minutes=minutes, progress=bar, interrupt=interrupt, **folder)
        done = history.progress
        notes = {
            "trained on": what, "steps": done.steps, "characters": done.seen,
            "batch": args.batch, "bptt": args.bptt, "lr": args.lr, "seed": args.seed,
            "training bits per character": round(done.bits, 4),
        }
        files.save_model(model, args.output, notes)  # what follows may be interrupted
    how = "stopped" if history.stopped == "interrupted" else "done"
    print(f"{how} after {_count(done.steps, 'step')} and "
          f"{done.seconds:.1f} s: {done.seen:,} characters, {done.speed:,.0f} a second")
    print(f"saved {args.output}", flush=True)
    bits = training.evaluate(model, held_out[:HELD_OUT], batch_size=args.batch, bptt=args.bptt)
    print(f"held-out text: {bits:.3f} bits/character")
    files.save_model(model, args.output, notes | {"held-out bits per character": round(bits, 4)})
    print(f"a sample:\n\n{_continue(model, PROMPT, SAMPLE, 0.7, args.seed)}")


def _sample(args: argparse.Namespace) -> None:
    from fastrnn import files

    model = files.load_model(args.model)
    if not args.prompt:
        raise ValueError("--prompt is empty, expected at least one character")
    print(_continue(model, args.prompt, args.length, args.temperature, args.seed))


def _gradflow(args: argparse.Namespace) -> None:
    import matplotlib

    from fastrnn import checkpoint, files, gradflow, plot, text
    from fastrnn.batches import Windows

    model = files.load_model(args.model)
    if getattr(model, "symbols", None) != 256:
        raise ValueError(f"{str(args.model)!r} is a {type(model).__name__}, expected a model of "
                         "bytes, as train writes them")
    batch = Windows(text.read(text.find_files(args.paths)), args.bptt, args.batch)(0)
    weights = np.zeros((args.bptt, args.batch))
    weights[-1] = 1
    flows = gradflow.model_flow(
        model, lambda m: m.loss(*batch.inputs, batch.targets, weights=weights))
    print(f"the loss of character {args.bptt}, back through the {args.bptt} before it:")
    args.output.mkdir(parents=True, exist_ok=True)
    matplotlib.use("agg")
    pictures = {"unfolded": plot.unfolded(model.layers[0])}
    for i, (layer, flow) in enumerate(zip(model.layers, flows, strict=True)):
        print(gradflow.verdict(flow))
        pictures[f"layers.{i}.norms"] = plot.gradient_norms(flow)
        for number in range(layer.num_layers):
            for kind, draw in (("heatmap", plot.gradient_heatmap), ("shares", plot.shares),
                               ("saturation", plot.saturation)):
                pictures[f"layers.{i}.{number}.{kind}"] = draw(flow, number)
    x = model.parameters()["embedding.weight"][batch.inputs[0]]
    found = gradflow.jacobians(model.layers[0], x, distance=args.bptt - 1)
    print(gradflow.verdict(found))
    memory = found.memory()
    print("effective memory: " + (f"{memory} steps" if memory else f"over {args.bptt - 1} steps"))
    pictures["layers.0.jacobians"] = plot.jacobian_norms(found)
    history = checkpoint.history(args.model)
    if history is not None and history.norms:
        print(f"training: {gradflow.verdict(history)}")
        pictures["training"] = history.plot()[0]
    for name, axes in pictures.items():
        figure = axes.get_figure(root=True)
        assert figure is not None  # it has just been drawn
        figure.savefig(args.output / f"{name}.png", dpi=120)
    print(f"drawn in {args.output}")


def _continue(model: Any, prompt: str, length: int, temperature: float, seed: int) -> str:
    start = prompt.encode()
    more = model.sample(list(start), length, temperature, seed)
    return (start + bytes(more.tolist())).decode(errors="replace")


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for an error, 130 for a hard Ctrl-C."""
    args = _parser().parse_args(argv)
    try:
        if hasattr(args, "threads"):
            fastrnn.set_num_threads(args.threads)
        args.run(args)
    except ModuleNotFoundError as error:
        print(f"fastrnn {args.command}: needs {error.name}, expected it to be installed: "
              "pip install 'fastrnn[cli]'", file=sys.stderr)
        return 1
    except (OSError, ValueError, TypeError, IndexError, MemoryError, FloatingPointError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        name = getattr(error, "filename", None)
        print(f"fastrnn {args.command}: {said}{f': {name}' if name else ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nfastrnn {args.command}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
