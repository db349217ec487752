"""Write docs/cells.md, docs/cells.json and the pictures of docs/cells: the zoo, cell by cell.

    python docs/make_cells.py                    everything; the costs need an idle machine
    python docs/make_cells.py --without-costs    the costs stay as docs/cells.json has them

Letters: T steps, B sequences of a batch, I inputs, H hidden units.
"""

import argparse
import io
import json
import statistics
import time
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn.cells.zoo import definitions
from fastrnn.cli.cells import count, equations, options
from fastrnn.gradflow.measure import norm

DOCS = Path(__file__).parent
NUMBERS, PICTURES, PAGE = DOCS / "cells.json", DOCS / "cells", DOCS / "cells.md"
T, B, SIZE = 100, 16, 128  # SIZE is I and H
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
    """Return the largest gradient of a state at step 1, as a part of that at step T."""
    first, last = (max(of[t] for of in norms.values()) for t in (0, -1))
    return float(f"{first / last:.0e}")


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
    """Return the median of the quotients of times of calls that take turns."""
    quotients = []
    for turn in range(rounds + 3):
        before = time.perf_counter()
        ours()
        between = time.perf_counter()
        other()
        after = time.perf_counter()
        if turn >= 3:  # the first calls allocate
            quotients.append((between - before) / (after - between))
    return float(f"{statistics.median(quotients):.2g}")


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
from fastrnn.cells.zoo import definitions

zoo = definitions()                                            # names and definitions
layer = fastrnn.Layer(zoo["{example}"], 64, 128, seed=0)
y, state = layer(np.zeros((100, 16, 64), np.float32))          # (T, B, I)
```

RNN, LSTM and GRU are classes of their own with kernels written by hand.

**Parameters** are those of one layer with I = H = {SIZE}, where I is the number of inputs and H the
number of hidden units. Sizes and constants have their defaults.

**Forward** and **training** compare times: that of a layer of the cell over that of `fastrnn.LSTM`
of the same size, for I = H = {SIZE}, B = {B} sequences of T = {T} steps, float32 and one
thread{machine}. *Forward* is a call in evaluation mode. *Training* is a call in training mode and
its backward.

**Gradient** says how much of the gradient is left {before} steps before the loss, before any
training: the norm of the gradient at step 1 divided by that at step {T}, for the state where it is
largest. The loss L is the sum of the outputs of step {T}, and x is random. The pictures show the
norm of ∂L/∂s(t) at each step t for each state s, and in grey that of the LSTM's h. A line that
falls to the left is a gradient that vanishes: what happened long ago hardly changes the weights.
Weights have the initial values that the definition names, else uniform ones between ±1/√H, as in
PyTorch.

"""


def page(zoo, numbers):
    """Return the text of docs/cells.md, from definitions and measured numbers."""
    isa = numbers["machine"]
    text = INTRODUCTION.format(SIZE=SIZE, B=B, T=T, before=T - 1, example=next(iter(zoo)),
                               machine=f", with {isa}" if isa else "")
    text += "| cell | states | parameters | forward | training | gradient |\n" + "|---" * 6 + "|\n"
    for name, definition in zoo.items():
        states = ", ".join(state.name for state in definition.states)
        text += (f"| [{name}](#{anchor(name)}) | {states} | {count(definition):,} | "
                 f"{cost(numbers, name, 'forward')} | {cost(numbers, name, 'training')} | "
                 f"{numbers['gradients'].get(name, NOT_MEASURED)} |\n")
    return text + "".join(section(name, of, numbers) for name, of in zoo.items())


def anchor(name):
    """Return the part of a link that leads to a heading, as GitHub makes it."""
    return "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def cost(numbers, name, what):
    """Return a cost as it is shown."""
    return numbers["costs"].get(name, {}).get(what, NOT_MEASURED)


def section(name, definition, numbers):
    """Return the section of one cell."""
    lines = [f"\n## {name}\n"]
    if definition.paper:
        lines.append(f"{definition.paper}\n")
    lines.append(f"```text\n{equations(definition)}\n```\n")
    taken = options(definition)
    said = [f"{count(definition):,} parameters."]
    if taken:
        said.append(f"Keyword arguments of the layer, with their defaults: {', '.join(taken)}.")
    if name in numbers["costs"]:
        said.append(f"Forward takes {cost(numbers, name, 'forward')} times as long as the LSTM's, "
                    f"training {cost(numbers, name, 'training')} times.")
    else:
        said.append("Its times were not measured yet.")
    said.append(f"Of the gradient {numbers['gradients'].get(name, NOT_MEASURED)} is left after "
                f"{T - 1} steps.")
    lines.append(" ".join(said) + "\n")
    lines.append(f"![norm of the gradient at each step of {name}](cells/{name}.png)\n")
    return "\n".join(lines)


def main(argv=None):
    """Measure, draw and write."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0])
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
    numbers["gradients"] = {}
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
