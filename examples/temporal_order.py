"""The temporal order problem of Pascanu, Mikolov and Bengio (2013): what clipping and Omega do.

A sequence of L symbols has L - 2 distractors and two symbols that are A or B, the first at a step
in [0.1 L, 0.2 L), the second in [0.5 L, 0.6 L). The class, one of four, is which two and in which
order. A tanh RNN of 50 units learns it by plain SGD, by SGD with the gradient's norm clipped, and
by that with the regulariser Omega. A run succeeds when less than 1% of 10,000 test sequences are
wrong. It counts as failed, with all sequences wrong, when the loss or the gradient is not finite.
The gradient's norm is computed in float64, so a large norm alone ends no run: a gradient of any
finite size is clipped, or, without clipping, is a step of that size.
"""

import functools

import numpy as np
from common import chart, mapping, parser, record

from fastrnn import RNN, SequenceModel, fit, init
from fastrnn.training import Batch, Generated

SYMBOLS, UNITS, BATCH, RATE, CLIP, OMEGA = 6, 50, 20, 0.01, 1.0, 4.0
METHODS = {
    "SGD": {"clip": None, "omega": 0.0},
    "SGD, clipped": {"clip": CLIP, "omega": 0.0},
    "SGD, clipped, Omega": {"clip": CLIP, "omega": OMEGA},
}


def problem(L, B):
    """Return the function that draws a batch of B sequences: symbols 0 and 1 are A and B."""

    def draw(rng):
        x = rng.integers(2, SYMBOLS, (L, B))
        first, second = rng.integers(0, 2, (2, B))
        x[rng.integers(L // 10, max(L // 5, L // 10 + 1), B), np.arange(B)] = first
        x[rng.integers(L // 2, max(6 * L // 10, L // 2 + 1), B), np.arange(B)] = second
        return Batch(x, 2 * first + second)

    return draw


def run(L, method, seed, steps, test_size):
    """Train until it succeeds, fails or the steps are over; return (share wrong, steps)."""
    layer = init.normal(RNN(SYMBOLS, UNITS, seed=seed), 0.1, seed=seed)
    model = SequenceModel(layer, 4, vocab_size=SYMBOLS, one_hot=True, readout="last", seed=seed)
    test = Generated(problem(L, test_size), 12345)(0)
    x, classes = test.inputs[0].T, test.targets  # (N, L), (N,)

    def wrong():
        return float((model.predict(x).argmax(-1) != classes).mean())

    try:
        history = fit(
            model, Generated(problem(L, BATCH), seed), steps=steps, optimizer="sgd", lr=RATE,
            validation=wrong, validate_every=1000, target_loss=0.01, **METHODS[method])
    except FloatingPointError:  # it exploded
        return 1.0, steps
    return history.validations[-1][1], history.progress.steps


def main(argv=None):
    """Return {(method, L): [(share wrong, steps) of each seed]}."""
    options = parser(__doc__, "seconds: L = 20, one seed")
    options.add_argument("--lengths", type=int, nargs="+", default=[20, 50, 100, 150, 200])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--steps", type=int, default=200_000)
    args = options.parse_args(argv)
    lengths, seeds, steps = ([20], 1, 3_000) if args.quick else (
        args.lengths, args.seeds, args.steps)
    cases = [(L, method, seed) for L in lengths for method in METHODS for seed in range(seeds)]
    one = functools.partial(run, steps=steps, test_size=2000 if args.quick else 10_000)
    found = {}
    with mapping(args.processes) as each:
        outcomes = each(one, *zip(*cases, strict=True))
        for (L, method, seed), (wrong, n) in zip(cases, outcomes, strict=True):
            found.setdefault((method, L), []).append((wrong, n))
            print(f"L = {L}, {method:20} seed {seed}: {100 * wrong:.1f}% wrong after {n} steps",
                  flush=True)
    if not args.quick:
        record("temporal_order", {"units": UNITS, "batch": BATCH, "lr": RATE, "clip": CLIP,
                                  "omega": OMEGA, "steps": steps, "seeds": seeds},
               {f"{method}, L = {L}": runs for (method, L), runs in found.items()})
        with chart("temporal_order") as axes:
            for method, style in zip(METHODS, ("s-", "o--", "^-"), strict=True):
                axes.plot(lengths, [np.mean([wrong < 0.01 for wrong, _ in found[method, L]])
                                    for L in lengths], style, label=method)
            axes.set(xlabel="length L", ylabel="share of runs that succeed", ylim=(-0.05, 1.05),
                     title=f"temporal order, {seeds} seeds, at most {steps:,} steps")
            axes.legend()
    return found


if __name__ == "__main__":
    main()
