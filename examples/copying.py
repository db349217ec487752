"""Copying memory: repeat, after T blanks, the ten symbols that were read first.

Eight symbols, a blank, and a mark after which the ten are to be written (Hochreiter and Schmidhuber
1997; Arjovsky, Shah and Bengio 2016). Without a memory the best is to write blanks and then every
symbol with probability 1/8: a loss of 10 ln 8 / (T + 20) nats a step. Letters: T blanks, B
sequences of a batch, H hidden units.
"""

import math

import numpy as np
from common import chart, parser, record

from fastrnn import GRU, LSTM, RNN, SequenceModel, fit, init
from fastrnn.training import Batch, Generated, evaluate

SYMBOLS, COPIED = 10, 10  # 8 symbols, blank, mark; how many are to be copied
BLANK, MARK = 8, 9


def problem(T, B):
    """Return the function that draws a batch of sequences of T + 20 steps."""

    def draw(rng):
        copied = rng.integers(0, 8, (COPIED, B))
        x = np.full((T + 2 * COPIED, B), BLANK)
        x[:COPIED], x[T + COPIED - 1] = copied, MARK
        targets = np.full_like(x, BLANK)
        targets[-COPIED:] = copied
        return Batch(x, targets)

    return draw


def cells(T):
    """Return how each layer is made for T blanks."""
    return {
        "RNN tanh": lambda H, seed: RNN(SYMBOLS, H, seed=seed),
        "GRU": lambda H, seed: init.chrono(GRU(SYMBOLS, H, seed=seed), T, seed=seed),
        "LSTM": lambda H, seed: init.chrono(LSTM(SYMBOLS, H, seed=seed), T, seed=seed),
    }


def main(argv=None):
    """Return {cell: [(step, loss)]} and the loss without a memory."""
    args = parser(__doc__, "seconds: T = 10").parse_args(argv)
    T, H, lr, steps, every = (10, 100, 5e-3, 1500, 500) if args.quick else (
        100, 128, 2e-3, 6000, 100)
    baseline = COPIED * math.log(8) / (T + 2 * COPIED)
    test = Generated(problem(T, 200), 12345)
    found = {}
    for name, make in cells(T).items():
        model = SequenceModel(make(H, 0), SYMBOLS, vocab_size=SYMBOLS, one_hot=True, seed=0)
        history = fit(
            model, Generated(problem(T, 32), 0), steps=steps, lr=lr,
            validation=lambda: evaluate(model, test, 1), validate_every=every)  # noqa: B023
        found[name] = history.validations
        print(f"T = {T}, {name:9}: {found[name][-1][1]:.5f} nats a step; without a memory "
              f"{baseline:.5f}", flush=True)
    if not args.quick:
        record("copying", {"T": T, "H": H, "steps": steps, "batch": 32, "lr": lr},
               found | {"baseline": baseline})
        with chart("copying") as axes:
            for name, curve in found.items():
                axes.semilogy(*zip(*curve, strict=True), label=name)
            axes.axhline(baseline, color="k", lw=0.8, ls="--", label="without a memory")
            axes.set(title=f"copying memory, T = {T}", xlabel="step", ylabel="nats a step")
            axes.legend()
    return found, baseline


if __name__ == "__main__":
    main()
