"""One to many: from the name of a digit, draw it row by row.

scikit-learn's digits (8 x 8). The class, a vector of ten, makes the initial state; each row is
predicted from those above, and when drawing freely each drawn row is the next input. Judged by a
classifier that has seen real images only (k nearest neighbours, k = 3).
"""

import numpy as np
from common import chart, parser, record
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from fastrnn import LSTM, optim, training
from fastrnn.batches import Batch, Drawn
from fastrnn.model import SequenceModel


def main(argv=None):
    """Return the share of drawn digits that are taken for what they should be."""
    args = parser(__doc__, "seconds: little training").parse_args(argv)
    H, steps = (64, 600) if args.quick else (128, 6000)
    data = load_digits()
    images = (data.images / 16).astype(np.float32)  # (N, rows, columns)
    names = np.eye(10, dtype=np.float32)[data.target]
    model = SequenceModel(LSTM(8, H, seed=0), 8, loss="bce", vector_size=10, seed=0)

    def draw(rng):
        at = rng.integers(0, len(images), 64)
        rows = images[at].transpose(1, 0, 2)  # (T, B, columns)
        return Batch((np.concatenate([np.zeros_like(rows[:1]), rows[:-1]]),), rows,
                     vector=names[at])

    training.fit(model, Drawn(draw), optim.Adam(model, 3e-3), steps=steps)
    drawn = model.eval().generate(np.zeros((10, 8), np.float32), 8, vector=np.eye(10, dtype="f"))
    judge = KNeighborsClassifier(3).fit(images.reshape(-1, 64), data.target)
    taken = judge.predict(drawn.transpose(1, 0, 2).reshape(10, 64))
    right = float((taken == np.arange(10)).mean())
    print(f"{100 * right:.0f}% of the ten drawn digits are taken for what they should be: {taken}")
    if not args.quick:
        record("drawing", {"hidden": H, "steps": steps, "batch": 64, "lr": 3e-3},
               {"taken for": taken.tolist()})
        with chart("drawing", 1, 10, (9, 1.4)) as axes:
            for i, ax in enumerate(axes):
                ax.imshow(drawn[:, i], cmap="gray_r", vmin=0, vmax=1)
                ax.set(title=str(i), xticks=[], yticks=[])
    return right


if __name__ == "__main__":
    main()
