"""The adding problem: the sum of two marked numbers among T, long after they were read.

Each step has a number in [0, 1] and a mark; two are marked, one in each half (Hochreiter and
Schmidhuber 1997, in the form of Bai, Kolter and Koltun 2018). Whoever always says 1 is off by 1/6 =
0.1667 in the mean square: the variance of the sum. Cells: tanh RNN, relu RNN that starts as the
identity (IRNN: Le, Jaitly and Hinton 2015), GRU, LSTM.
"""


import numpy as np
from common import chart, parser, record

from fastrnn import GRU, LSTM, RNN, init, optim, training
from fastrnn.batches import Batch, Drawn
from fastrnn.model import SequenceModel

GUESS = 1 / 6
SOLVED = 0.01
CELLS = {
    "RNN tanh": (lambda H, seed: RNN(2, H, seed=seed), 1e-3),
    "IRNN": (lambda H, seed: init.identity(RNN(2, H, nonlinearity="relu", seed=seed), seed=seed),
             1e-3),
    "GRU": (lambda H, seed: GRU(2, H, seed=seed), 2e-3),
    "LSTM": (lambda H, seed: init.forget_bias(LSTM(2, H, seed=seed), 1.0), 2e-3),
}


def problem(T, B):
    """Return the function that draws a batch."""

    def draw(rng):
        x = np.zeros((T, B, 2), np.float32)
        x[..., 0] = rng.random((T, B))
        for half in (rng.integers(0, T // 2, B), rng.integers(T // 2, T, B)):
            x[half, np.arange(B), 1] = 1
        return Batch((x,), (x[..., 0] * x[..., 1]).sum(0)[:, None])

    return draw


def run(cell, T, H, B, steps, seed, every):
    """Train until it is solved or the steps are over; return [(step, test error)]."""
    make, lr = CELLS[cell]
    model = SequenceModel(make(H, seed), 1, loss="mse", readout="last", seed=seed)
    test = Drawn(problem(T, 500), 12345)
    solved = training.Interrupt()

    def validate():
        error = training.judge(model, test, 2)
        solved.asked = error < SOLVED / 4
        return error

    history = training.fit(model, Drawn(problem(T, B), seed), optim.Adam(model, lr), steps=steps,
                           validate=validate, validate_every=every, interrupt=solved)
    return history.validations


def main(argv=None):
    """Return {(cell, T): [(step, test error)]}."""
    args = parser(__doc__, "half a minute: T = 30").parse_args(argv)
    settings = ({"H": 32, "B": 32, "steps": 1500, "every": 100} if args.quick
                else {"H": 100, "B": 50, "steps": 8000, "every": 200})
    found = {}
    for T in (30,) if args.quick else (200, 400):
        for cell in CELLS:
            curve = run(cell, T, settings["H"], settings["B"], settings["steps"], 0,
                        settings["every"])
            found[cell, T] = curve
            best = min(error for _, error in curve)
            print(f"T = {T}, {cell:9}: {best:.5f} after {curve[-1][0]} steps, "
                  f"{'solved' if best < SOLVED else 'not solved'} (a guess: {GUESS:.4f})",
                  flush=True)
    if not args.quick:
        record("adding", settings, {f"{cell} T={T}": curve for (cell, T), curve in found.items()})
        with chart("adding", 1, 2, (10, 4)) as axes:
            for ax, T in zip(axes, (200, 400), strict=True):
                for cell in CELLS:
                    ax.semilogy(*zip(*found[cell, T], strict=True), label=cell)
                ax.axhline(GUESS, color="k", lw=0.8, ls="--", label="always 1")
                ax.set(title=f"adding problem, T = {T}", xlabel="step", ylabel="test mean square")
            axes[0].legend()
    return found


if __name__ == "__main__":
    main()
