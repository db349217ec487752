"""scikit-learn's digits (1,797 images of 8 x 8) read row by row: accuracy of each cell.

Many to one: eight steps of eight pixels, the class read from the final state. The test set is a
fifth of the images, the same share of each class, and is looked at once, after the last pass.
"""

import functools

import numpy as np
from common import chart, parser, record
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastrnn import GRU, LSTM, RNN, optim, training
from fastrnn.batches import Samples
from fastrnn.model import SequenceModel
from fastrnn.schedules import cosine

HIDDEN, BATCH, LR = 64, 32, 4e-3
CELLS = {
    "RNN tanh": lambda seed: RNN(8, HIDDEN, seed=seed),
    "RNN relu": lambda seed: RNN(8, HIDDEN, nonlinearity="relu", seed=seed),
    "GRU": lambda seed: GRU(8, HIDDEN, seed=seed),
    "LSTM": lambda seed: LSTM(8, HIDDEN, seed=seed),
}


@functools.cache
def digits():
    """Return (x (8, N, 8) in 0..1, classes (N,)) to train on and to test on."""
    data = load_digits()
    x = (data.images / 16).astype(np.float32)  # (N, rows, columns)
    parts = train_test_split(x, data.target, test_size=0.2, random_state=0, stratify=data.target)
    return [(np.ascontiguousarray(x.transpose(1, 0, 2)), y)
            for x, y in zip(parts[:2], parts[2:], strict=True)]


def accuracy(make, seed, passes):
    """Train one model; return its share of right answers on the test set."""
    (x, y), (test_x, test_y) = digits()
    model = SequenceModel(make(seed), 10, readout="last", seed=seed)
    data = Samples(x, y, BATCH, axis=0, seed=seed)
    training.fit(model, data, optim.Adam(model, LR), steps=passes * data.per_pass,
                 schedule=cosine())
    outputs, _ = model.eval()(test_x)
    return float((outputs.argmax(-1) == test_y).mean())


def main(argv=None):
    """Return {cell: accuracies}."""
    args = parser(__doc__, "seconds: fewer passes, one seed").parse_args(argv)
    passes, seeds = (15, [0]) if args.quick else (100, [0, 1, 2, 3, 4])
    found = {}
    for name, make in CELLS.items():
        found[name] = [accuracy(make, seed, passes) for seed in seeds]
        print(f"{name:9} {100 * np.mean(found[name]):.1f}% right "
              f"({', '.join(f'{100 * a:.1f}' for a in found[name])})", flush=True)
    if not args.quick:
        record("digits", {"hidden": HIDDEN, "batch": BATCH, "lr": LR, "passes": passes,
                          "seeds": seeds}, found)
        with chart("digits") as axes:
            axes.bar(list(found), [100 * np.mean(a) for a in found.values()], color="C0", alpha=0.5)
            for i, a in enumerate(found.values()):
                axes.plot([i] * len(a), 100 * np.array(a), "k.")
            axes.set(ylim=(90, 100), ylabel="% right of 360 test images",
                     title="digits read row by row, 64 units, 5 seeds")
    return found


if __name__ == "__main__":
    main()
