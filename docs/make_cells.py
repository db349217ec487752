"""Write docs/cells.md, docs/cells.json and the pictures of docs/cells: the zoo, cell by cell.

    python docs/make_cells.py                    everything; the costs need an idle machine
    python docs/make_cells.py --without-costs    the costs stay as docs/cells.json has them

Letters: T steps, B sequences of a batch, I inputs, H hidden units.
"""

import argparse
import io
import json
import textwrap
import time
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn.cells import definitions
from fastrnn.cli.cells import count, equations, options
from fastrnn.gradflow.measure import norm

DOCS = Path(__file__).parent
NUMBERS, PICTURES, PAGE = DOCS / "cells.json", DOCS / "cells", DOCS / "cells.md"
T, B, SIZE = 100, 16, 128  # SIZE is I and H
LSTM = "fastrnn.LSTM"  # what cells are compared with
NOT_MEASURED = "not measured"


# ---- what is measured ----------------------------------------------------------------------------


def gradients(layer):
    """Return {state: norms (T,)} of dL/dstate(t), where L is the sum of the last output."""
    x = np.random.default_rng(0).standard_normal((T, B, SIZE))
    y, _, p = layer.forward(x)
    dy = np.zeros_like(y)
    dy[-1] = 1
    states = layer.cell.states
    recorded = p.backward(dy, need_dx=False, record=tuple(f"d{state}" for state in states))[2]
    return {state: norm(recorded[0][f"d{state}"].reshape(T, -1), 1) for state in states}


def left(norms):
    """Return the largest gradient of a state at step 1, divided by that at the last step."""
    largest = np.max(list(norms.values()), 0)
    last = np.flatnonzero(largest)[-1]  # T, unless the output reads the states before the step
    return float(f"{largest[0] / largest[last]:.0e}")


def costs(definition, rounds):
    """Return how long forward and training take, as multiples of the LSTM's times."""
    x = np.random.default_rng(0).standard_normal((T, B, SIZE)).astype(np.float32)
    ours, lstm = fastrnn.Layer(definition, SIZE, SIZE, seed=0), fastrnn.LSTM(SIZE, SIZE, seed=0)

    def train(layer):
        y, _ = layer(x)
        layer.backward(y)

    training = ratio(lambda: train(ours), lambda: train(lstm), rounds)
    ours.eval()
    lstm.eval()
    return {"forward": ratio(lambda: ours(x), lambda: lstm(x), rounds), "training": training}


def ratio(ours, other, rounds):
    """Return the quotient of the shortest times of calls that take turns."""
    times = []
    for _ in range(rounds):
        before = time.perf_counter()
        ours()
        between = time.perf_counter()
        other()
        times.append((between - before, time.perf_counter() - between))
    shortest, of_other = np.min(times, 0)
    return float(f"{shortest / of_other:.2g}")


def draw(name, norms, lstm):
    """Write the picture of a cell: the norms of its states, and those of an LSTM's h."""
    from matplotlib.figure import Figure
    from PIL import Image  # comes with matplotlib

    figure = Figure(figsize=(5.2, 2.6), layout="constrained", dpi=90)
    axes = figure.subplots()
    axes.semilogy(range(1, T + 1), lstm["h"], color="0.7", label="LSTM, h")
    for number, (state, values) in enumerate(norms.items()):
        shown = np.where((values > 0) & np.isfinite(values), values, np.nan)
        axes.semilogy(range(1, T + 1), shown, "-" if number == 0 else "--", color=f"C{number}",
                      label=state)
    axes.set(xlabel="step t", ylabel="norm of the gradient", xlim=(1, T))
    axes.legend(fontsize="small")
    drawn = io.BytesIO()
    figure.savefig(drawn)
    few = Image.open(drawn).convert("RGB").quantize(32)  # colours: a third of the bytes
    few.save(PICTURES / f"{name}.png", optimize=True)


# ---- the page ------------------------------------------------------------------------------------

INTRODUCTION = """\
# The zoo

<!-- Written by docs/make_cells.py: change that, and run it again. -->

These cells come with fastrnn as equations. Each of them is a definition that `fastrnn.Layer` takes,
and a text to copy and change; [equations.md](equations.md) explains the language. `fastrnn cells`
lists them on the command line.

```python
import numpy as np
import fastrnn

layer = fastrnn.Layer(fastrnn.cells.{example}, 64, 128, seed=0)
y, state = layer(np.zeros((100, 16, 64), np.float32))          # (T, B, I)
print(fastrnn.cells.{example}.text)
zoo = fastrnn.cells.definitions()                              # all of them, by their names
```

RNN, LSTM and GRU are classes of their own: their kernels are written by hand. In
`fastrnn.cells` there are also functions that return a definition: `elman` for any activation,
`clipped_lstm`, and `onnx_rnn`, `onnx_lstm` and `onnx_gru` with the attributes of ONNX.

The table and the sections say three things about each cell. Letters: T time steps, B sequences of
a batch, I inputs, H hidden units.

**Parameters** is the number of learned parameters of one layer with I = H = {SIZE}. Sizes and
constants have their defaults.

**Forward** and **training** are times, divided by those of `fastrnn.LSTM` of the same size: 1.2
means that the cell takes 1.2 times as long. I = H = {SIZE}, B = {B}, T = {T}, float32, one
thread{machine}. *Forward* is a call in evaluation mode. *Training* is a call in training mode and
its backward.

**Gradient** is the factor by which the gradient changes on its way back from step {T} to step 1,
before any training. L is the sum of the outputs of step {T}, and x is random. The factor is the
norm of ∂L/∂s(1) divided by that of ∂L/∂s({T}), where s is the state with the largest norm. The
pictures show the norm of ∂L/∂s(t) for each state s and step t, and in grey that of the LSTM's h. A
line that falls to the left is a gradient that vanishes: what happened long ago hardly changes the
weights. The weights have the initial values that the definition names, else uniform ones between
±1/√H, as in PyTorch.

"""


def page(zoo, numbers):
    """Return the text of docs/cells.md, from definitions and measured numbers."""
    isa = numbers["machine"]
    text = INTRODUCTION.format(SIZE=SIZE, B=B, T=T, before=T - 1, example=next(iter(zoo)),
                               machine=f", with {isa}" if isa else "")
    text += "| cell | states | parameters | forward | training | gradient |\n" + "|---" * 6 + "|\n"
    lstm = fastrnn.LSTM(SIZE, SIZE).num_parameters
    text += f"| `{LSTM}` | h, c | {lstm:,} | 1 | 1 | {gradient(numbers, LSTM)} |\n"
    for name, definition in zoo.items():
        states = ", ".join(state.name for state in definition.states)
        text += (f"| [{name}](#{anchor(name)}) | {states} | {count(definition):,} | "
                 f"{cost(numbers, name, 'forward')} | {cost(numbers, name, 'training')} | "
                 f"{gradient(numbers, name)} |\n")
    return text + "".join(section(name, of, numbers) for name, of in zoo.items())


def anchor(name):
    """Return the part of a link that leads to a heading, as GitHub makes it."""
    return "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def cost(numbers, name, what):
    """Return a cost as it is shown."""
    return numbers["costs"].get(name, {}).get(what, NOT_MEASURED)


def gradient(numbers, name):
    """Return a factor as it is shown."""
    value = numbers["gradients"][name]
    return f"{value:.0f}" if 1 <= value < 1000 else f"{value:.1g}"


def section(name, definition, numbers):
    """Return the section of one cell."""
    taken = options(definition)
    fixed = count(definition, learned=False)
    said = [f"{count(definition):,} parameters"
            + (f", and {fixed:,} numbers that are not learned." if fixed else ".")]
    if taken:
        said.append(f"Keyword arguments of the layer: `{'`, `'.join(taken)}`.")
    if name in numbers["costs"]:
        said.append(f"Forward takes {cost(numbers, name, 'forward')} times as long as the LSTM's, "
                    f"training {cost(numbers, name, 'training')} times.")
    said.append(f"The gradient changes by a factor of {gradient(numbers, name)} from step {T} "
                "to step 1.")
    paper = f"{definition.paper.rstrip('.')}.\n\n" if definition.paper else ""
    return (f"\n## {name}\n\n{paper}```text\n{equations(definition)}\n```\n\n"
            f"{textwrap.fill(' '.join(said), 100, break_on_hyphens=False)}\n\n"
            f"![norm of the gradient at each step of {name}](cells/{name}.png)\n")


def main(argv=None):
    """Measure, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--without-costs", action="store_true",
                        help="keep the costs that docs/cells.json has")
    parser.add_argument("--rounds", type=int, default=41, help="timed calls of each cell")
    args = parser.parse_args(argv)
    zoo = definitions()
    numbers = {"machine": "", "costs": {}, "gradients": {}}
    if NUMBERS.exists():
        numbers |= json.loads(NUMBERS.read_text())
    PICTURES.mkdir(exist_ok=True)
    lstm = gradients(fastrnn.LSTM(SIZE, SIZE, dtype=np.float64, seed=0))
    numbers["gradients"] = {LSTM: left(lstm)}
    for name, definition in zoo.items():
        norms = gradients(fastrnn.Layer(definition, SIZE, SIZE, dtype=np.float64, seed=0))
        numbers["gradients"][name] = left(norms)
        draw(name, norms, lstm)
    for picture in PICTURES.glob("*.png"):
        if picture.stem not in zoo:
            picture.unlink()
    if not args.without_costs:
        fastrnn.set_num_threads(1)
        numbers["machine"] = str(fastrnn.show_config("dicts")["instruction set"])
        numbers["costs"] = {}
        for name, definition in zoo.items():
            numbers["costs"][name] = costs(definition, args.rounds)
            print(f"{name:20} {numbers['costs'][name]}", flush=True)
    numbers["costs"] = {name: of for name, of in numbers["costs"].items() if name in zoo}
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n")
    PAGE.write_text(page(zoo, numbers), "utf-8")


if __name__ == "__main__":
    main()
