"""The adding problem: the sum of two marked numbers among T, long after they were read.

Each step has a number in [0, 1] and a mark. Two steps are marked, one in each half (Hochreiter and
Schmidhuber 1997, in the form of Bai, Kolter and Koltun 2018). An answer of 1 to everything has a
mean squared error of 1/6 = 0.1667, the variance of the sum. Cells: tanh RNN; relu RNN whose
recurrent weights begin as the identity (IRNN: Le, Jaitly and Hinton 2015); GRU; LSTM with chrono
initialisation of its biases (Tallec and Ollivier 2018). At T = 600 also what Bai et al. compare:
networks of about 70,000 parameters, all with torch's initialisation, the LSTM with a forget bias of
1. Letters: T steps, B sequences of a batch, H hidden units.
"""

import functools

import numpy as np
from common import chart, mapping, parser, record

from fastrnn import GRU, LSTM, RNN, SequenceModel, fit, init
from fastrnn.training import Batch, Generated, evaluate

ALWAYS_1 = 1 / 6
SOLVED = 0.01
CELLS = {  # how a layer is made for T steps, and Adam's learning rate
    "RNN tanh": (lambda H, T, seed: RNN(2, H, seed=seed), 1e-3),
    "IRNN": (lambda H, T, seed: init.identity(RNN(2, H, nonlinearity="relu", seed=seed), seed=seed),
             1e-4),  # at 1e-3 it explodes in some runs, and at T = 400 it does not learn
    "GRU": (lambda H, T, seed: GRU(2, H, seed=seed), 2e-3),
    "LSTM": (lambda H, T, seed: init.chrono(LSTM(2, H, seed=seed), T, seed=seed), 2e-3),
    "LSTM, forget 1": (lambda H, T, seed: init.forget_bias(LSTM(2, H, seed=seed), 1.0), 2e-3),
}
FIRST = ("RNN tanh", "IRNN", "GRU", "LSTM")
BAI = {"RNN tanh": 262, "GRU": 151, "LSTM, forget 1": 130}  # units, for 70,000 parameters
BAI_REPORTED = {"RNN tanh": 0.177, "GRU": 5.3e-5, "LSTM, forget 1": 0.164}  # their Table 1


def problem(T, B):
    """Return the function that draws a batch."""

    def draw(rng):
        x = np.zeros((T, B, 2), np.float32)
        x[..., 0] = rng.random((T, B))
        for step in (rng.integers(0, T // 2, B), rng.integers(T // 2, T, B)):
            x[step, np.arange(B), 1] = 1
        return Batch(x, (x[..., 0] * x[..., 1]).sum(0)[:, None])

    return draw


def run(cell, T, H, target, B, steps, every, seed=0):
    """Train until the test error is below `target`; return [(step, test error)]."""
    make, lr = CELLS[cell]
    model = SequenceModel(make(H, T, seed), 1, loss="mse", readout="last", seed=seed)
    test = Generated(problem(T, 500), 12345)
    history = fit(
        model, Generated(problem(T, B), seed), steps=steps, lr=lr, target_loss=target,
        validation=lambda: evaluate(model, test, 2), validate_every=every)
    return history.validations


def main(argv=None):
    """Return {(cell, T): [(step, test error)]}."""
    args = parser(__doc__, "half a minute: T = 30").parse_args(argv)
    settings = ({"B": 32, "steps": 1500, "every": 100} if args.quick
                else {"B": 50, "steps": 16_000, "every": 200})
    lengths, H = ((30,), 32) if args.quick else ((200, 400), 100)
    cases = [(cell, T, H, SOLVED / 4) for T in lengths for cell in FIRST]
    if not args.quick:
        cases += [(cell, 600, H, min(BAI_REPORTED.values())) for cell, H in BAI.items()]
    found = {}
    with mapping(args.processes) as each:
        curves = each(functools.partial(run, **settings), *zip(*cases, strict=True))
        for (cell, T, *_), curve in zip(cases, curves, strict=True):
            found[cell, T] = curve
            best = min(error for _, error in curve)
            print(f"T = {T}, {cell:14}: {best:.2g} after {curve[-1][0]} steps, "
                  f"{'solved' if best < SOLVED else 'not solved'} (always 1: {ALWAYS_1:.4f}"
                  f"{f'; Bai et al.: {BAI_REPORTED[cell]:.2g}' if T == 600 else ''})", flush=True)
    if not args.quick:
        record("adding", settings, {f"{cell} T={T}": curve for (cell, T), curve in found.items()})
        with chart("adding", 1, 3, (13, 4)) as axes:
            colours = {cell: f"C{i}" for i, cell in enumerate(CELLS)}
            for ax, T in zip(axes, (*lengths, 600), strict=True):
                for cell in (cell for cell, length in found if length == T):
                    ax.semilogy(*zip(*found[cell, T], strict=True), label=cell,
                                color=colours[cell])
                ax.axhline(ALWAYS_1, color="k", lw=0.8, ls="--", label="always 1")
                ax.set(title=f"adding problem, T = {T}", xlabel="step",
                       ylabel="mean squared error on the test set")
                ax.legend(fontsize="small", framealpha=0.5)
    return found


if __name__ == "__main__":
    main()
