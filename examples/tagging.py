"""Many to many: for each character of Python source, the kind of token that it belongs to.

The text is Python's standard library. The tags come from Python's own tokenizer: name, keyword,
number, string, comment, operator, space. A bidirectional GRU reads windows of 100 characters; the
last window of a file is shorter. The files of the test set are not in the training set. Letters: T
steps of a window, N windows, H units.
"""

import io
import keyword
import tokenize

import numpy as np
from common import chart, parser, record

from fastrnn import GRU, SequenceModel, fit
from fastrnn.schedules import CosineDecay
from fastrnn.training import find_files

TAGS = ("space", "name", "keyword", "number", "string", "comment", "operator")
T = 100


def tags_of(source):
    """Return a tag for each character."""
    starts = np.cumsum([0] + [len(line) for line in source.splitlines(keepends=True)])
    tags = np.zeros(len(source), int)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.COMMENT: "comment",
                tokenize.OP: "operator"}.get(token.type)
        if token.type == tokenize.NAME:
            kind = "keyword" if keyword.iskeyword(token.string) else "name"
        if kind:
            (row, column), (last, end) = token.start, token.end
            tags[starts[row - 1] + column : starts[last - 1] + end] = TAGS.index(kind)
    return tags


def windows(files):
    """Return two lists of N arrays, each of up to T: the bytes and the tags of all windows."""
    xs, ys = [], []
    for path in files:
        source = path.read_text("utf-8", "replace")
        if not source.isascii():
            continue
        borders = range(T, len(source), T)
        xs += np.split(np.frombuffer(source.encode(), np.uint8), borders)
        ys += np.split(tags_of(source), borders)
    return xs, ys


def main(argv=None):
    """Return the accuracy on the test set's characters, and that of each tag."""
    args = parser(__doc__, "seconds: 20 files, few units").parse_args(argv)
    files = [f for f in find_files() if f.stat().st_size < 200_000]
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    train, test = (files[:20], files[20:25]) if args.quick else (files[:400], files[400:480])
    H, steps = (24, 300) if args.quick else (96, 6000)
    model = SequenceModel(GRU(32, H, bidirectional=True, seed=0), len(TAGS), vocab_size=256, seed=0)
    fit(model, *windows(train), steps=steps, batch_size=32, lr=5e-3, schedule=CosineDecay())
    x, y = windows(test)
    y = np.concatenate(y)
    right = np.concatenate(model.predict(x)).argmax(-1) == y
    accuracy = float(right.mean())
    most = float((y == np.bincount(y).argmax()).mean())
    by_tag = {tag: float(right[y == i].mean()) for i, tag in enumerate(TAGS) if (y == i).any()}
    print(f"{100 * accuracy:.2f}% of {y.size:,} characters of {len(test)} unseen files are right "
          f"(the most frequent tag: {100 * most:.1f}%)")
    print(", ".join(f"{tag} {100 * share:.1f}%" for tag, share in by_tag.items()))
    if not args.quick:
        record("tagging", {"hidden": H, "steps": steps, "batch": 32, "lr": 5e-3, "window": T},
               {"right": accuracy, "most frequent tag": most, "by tag": by_tag})
        with chart("tagging") as axes:
            axes.bar(list(by_tag), [100 * share for share in by_tag.values()])
            axes.set(ylabel="accuracy, %",
                     title=f"characters of unseen files: {100 * accuracy:.2f}% right")
    return accuracy, by_tag


if __name__ == "__main__":
    main()
