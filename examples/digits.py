"""scikit-learn's digits (1,797 images of 8 x 8) read row by row: accuracy of each cell.

Many to one: eight steps of eight pixels, and a class for the sequence, read from the final state. A
fifth of the images, with the same share of each class, is the test set. It is used once, after the
last epoch.
"""

import functools

import numpy as np
from common import chart, parser, record
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastrnn import GRU, LSTM, RNN, SequenceModel, fit
from fastrnn.schedules import CosineDecay

HIDDEN, BATCH, LR = 64, 32, 4e-3
CELLS = {
    "RNN tanh": lambda seed: RNN(8, HIDDEN, seed=seed),
    "RNN relu": lambda seed: RNN(8, HIDDEN, nonlinearity="relu", seed=seed),
    "GRU": lambda seed: GRU(8, HIDDEN, seed=seed),
    "LSTM": lambda seed: LSTM(8, HIDDEN, seed=seed),
}


@functools.cache
def digits():
    """Return images (N, rows, columns) in 0..1 and classes (N,): training x, test x, y, y."""
    data = load_digits()
    return train_test_split(data.images / 16, data.target, test_size=0.2, random_state=0,
                            stratify=data.target)


def accuracy(make, seed, epochs):
    """Train one model; return its accuracy on the test set."""
    x, test_x, y, test_y = digits()
    model = SequenceModel(make(seed), 10, readout="last", seed=seed)
    fit(model, x, y, epochs=epochs, batch_size=BATCH, lr=LR, schedule=CosineDecay(), seed=seed)
    return float((model.predict(test_x).argmax(-1) == test_y).mean())


def main(argv=None):
    """Return {cell: accuracies}."""
    args = parser(__doc__, "seconds: fewer epochs, one seed").parse_args(argv)
    epochs, seeds = (15, [0]) if args.quick else (100, [0, 1, 2, 3, 4])
    found = {}
    for name, make in CELLS.items():
        found[name] = [accuracy(make, seed, epochs) for seed in seeds]
        print(f"{name:9} accuracy {100 * np.mean(found[name]):.1f}% "
              f"({', '.join(f'{100 * a:.1f}' for a in found[name])})", flush=True)
    if not args.quick:
        record("digits", {"hidden": HIDDEN, "batch": BATCH, "lr": LR, "epochs": epochs,
                          "seeds": seeds}, found)
        with chart("digits") as axes:
            axes.bar(list(found), [100 * np.mean(a) for a in found.values()], color="C0", alpha=0.5)
            for i, a in enumerate(found.values()):
                axes.plot([i] * len(a), 100 * np.array(a), "k.")
            axes.set(ylim=(90, 100), ylabel="accuracy on 360 test images, %",
                     title="digits read row by row, 64 units, 5 seeds")
    return found


if __name__ == "__main__":
    main()
