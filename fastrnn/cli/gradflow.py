"""The command `fastrnn gradflow`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn.cli.sample import load_language_model
from fastrnn.training import checkpoint, language, text
from fastrnn.training.data import Windows


def run(args: argparse.Namespace) -> None:
    """Say and draw what the gradient of a model's loss does on its way back through time."""
    import matplotlib

    from fastrnn import gradflow, plot

    T, B = args.bptt, _checks.positive("--batch", args.batch)
    if T < 2:
        raise ValueError(f"--bptt is {T}, expected a whole number of at least 2: a character, and "
                         "one before it")
    model = load_language_model(args.model)
    found = text.search(args.paths)
    if complaint := found.complaint():
        print(f"fastrnn gradflow: {complaint}", file=sys.stderr)
    symbols = language.symbols_of(model, text.read(found.files))
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
    matplotlib.use("agg")
    pictures: dict[str, Any] = {"unfolded": plot.unfolded(model.layers[0])}
    for i, (layer, flow) in enumerate(zip(model.layers, flows, strict=True)):
        print(gradflow.verdict(flow))
        pictures[f"layers.{i}.norms"] = plot.gradient_norms(flow)
        for number in range(layer.num_layers):
            for kind, draw in (("heatmap", plot.gradient_heatmap), ("shares", plot.shares),
                               ("saturation", plot.saturation)):
                pictures[f"layers.{i}.{number}.{kind}"] = draw(flow, number)
    x = model.parameters()["embedding.weight"][batch.inputs[0]]
    jacobians = gradflow.jacobians(model.layers[0], x, distance=T - 1)
    print(gradflow.verdict(jacobians))
    memory = jacobians.memory()
    print(f"effective memory: {text.amount(memory, 'step') if memory else f'over {T - 1} steps'}")
    pictures["layers.0.jacobians"] = plot.jacobian_norms(jacobians)
    history = checkpoint.history(args.model)
    if history is not None and history.norms:
        print(f"training: {gradflow.verdict(history)}")
        pictures["training"] = history.plot()[0]
    for name, axes in pictures.items():
        axes.get_figure(root=True).savefig(args.output / f"{name}.png", dpi=120)
    print(f"drawn in {args.output}")
