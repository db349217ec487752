"""The command `fastrnn gradflow`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn.cli.sample import load_language_model
from fastrnn.formats.files import as_folder
from fastrnn.training import checkpoint, language, text
from fastrnn.training.data import Windows


def run(args: argparse.Namespace) -> None:
    """Print and draw how the gradient of a model's loss changes backward through time."""
    import matplotlib

    from fastrnn import gradflow, plot

    matplotlib.use("agg")
    B = _checks.positive("--batch", args.batch)
    T = _checks.positive("--bptt", args.bptt, least=2)  # a character, and one before it
    as_folder(args.output, "--output")
    model = load_language_model(args.model)
    found = text.search(args.paths)
    if complaint := found.complaint():
        print(f"fastrnn gradflow: {complaint}", file=sys.stderr)
    symbols = language.symbols_of(model, found.files)
    if len(symbols) < B * T + 1:
        raise ValueError(
            f"the text has {text.amount(len(symbols), 'character')}, expected at least "
            f"{B * T + 1:,}: {text.amount(B, 'row')} of {text.amount(T, 'character')} and the next "
            "one; give more text, or a smaller --batch or --bptt")
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=args.output):  # may anything be written here?
        pass

    batch = Windows(symbols, T, B)(0)
    weights = np.zeros((T, B))
    weights[-1] = 1
    flows = gradflow.model_flow(
        model, lambda m: m.loss(*batch.inputs, batch.targets, weights=weights))
    print(f"the loss of character {T}, back through the {T} before it:")
    _save(plot.unfolded(model.layers[0]), args.output, "unfolded")
    for i, (layer, flow) in enumerate(zip(model.layers, flows, strict=True)):
        print(gradflow.verdict(flow))
        _save(plot.gradient_norms(flow), args.output, f"layers.{i}.norms")
        for number in range(layer.num_layers):
            drawn: list[tuple[str, Any]] = [("heatmap", plot.gradient_heatmap)]
            if flow.gates:  # cells from equations have none
                drawn += [("shares", plot.shares), ("saturation", plot.saturation)]
            for kind, draw in drawn:
                _save(draw(flow, number), args.output, f"layers.{i}.{number}.{kind}")
    x = model.parameters()["embedding.weight"][batch.inputs[0]]
    jacobians = gradflow.jacobians(model.layers[0], x, distance=T - 1)
    print(gradflow.verdict(jacobians))
    memory = jacobians.memory()
    print(f"effective memory: {text.amount(memory, 'step') if memory else f'over {T - 1} steps'}")
    _save(plot.jacobian_norms(jacobians), args.output, "layers.0.jacobians")
    history = checkpoint.history(args.model)
    if history is not None and history.norms:
        print(f"training: {gradflow.verdict(history)}")
        _save(history.plot()[0], args.output, "training")
    print(f"drawn in {args.output}")


def _save(axes: Any, folder: Path, name: str) -> None:
    """Write a picture, and forget it."""
    from matplotlib import pyplot

    figure = axes.get_figure(root=True)
    figure.savefig(folder / f"{name}.png", dpi=120)
    pyplot.close(figure)
