"""One to many: from the class of a digit, draw it row by row.

scikit-learn's digits (8 x 8). The class, as a vector of ten numbers, makes the initial state. Each
row is predicted from the rows above it; to draw, each drawn row is the next input. A classifier
that has seen real images only (k nearest neighbours, k = 3) reads the drawn digits.
"""

import numpy as np
from common import chart, parser, record
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from fastrnn import LSTM, SequenceModel, fit


def main(argv=None):
    """Return the share of drawn digits that the classifier reads as what they should be."""
    args = parser(__doc__, "seconds: little training").parse_args(argv)
    H, steps = (64, 600) if args.quick else (128, 6000)
    data = load_digits()
    images = data.images / 16  # (N, rows, columns)
    above = np.concatenate([np.zeros_like(images[:, :1]), images[:, :-1]], 1)
    model = SequenceModel(LSTM(8, H, seed=0), 8, loss="bce", context_size=10, seed=0)
    fit(model, above, images, context=np.eye(10)[data.target], steps=steps, batch_size=64, lr=3e-3)

    drawn = model.generate(np.zeros((10, 8), np.float32), 8,  # (rows, digits, columns)
                           context=np.eye(10, dtype=np.float32))
    classifier = KNeighborsClassifier(3).fit(images.reshape(-1, 64), data.target)
    classes = classifier.predict(drawn.swapaxes(0, 1).reshape(10, 64))
    right = float((classes == np.arange(10)).mean())
    print(f"the classifier reads {100 * right:.0f}% of the ten drawn digits as what they should "
          f"be: {classes}")
    if not args.quick:
        record("drawing", {"hidden": H, "steps": steps, "batch": 64, "lr": 3e-3},
               {"read as": classes.tolist()})
        with chart("drawing", 1, 10, (9, 1.4)) as axes:
            for i, ax in enumerate(axes):
                ax.imshow(drawn[:, i], cmap="gray_r", vmin=0, vmax=1)
                ax.set(title=str(i), xticks=[], yticks=[])
    return right


if __name__ == "__main__":
    main()
