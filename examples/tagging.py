"""Many to many in step: say of each character of Python source what it is part of.

The text is Python's standard library, the tags are those of Python's own tokenizer: name, keyword,
number, string, comment, operator, space. A bidirectional GRU reads windows of 100 characters; files
of the test set were never read in training.
"""

import io
import keyword
import tokenize

import numpy as np
from common import chart, parser, record

from fastrnn import GRU, optim, text, training
from fastrnn.batches import Samples
from fastrnn.model import SequenceModel
from fastrnn.schedules import cosine

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
    """Return (bytes (T, N), tags (T, N)) of the files' windows."""
    xs, ys = [], []
    for path in files:
        source = path.read_text("utf-8", "replace")
        if not source.isascii():
            continue
        n = len(source) // T * T
        xs.append(np.frombuffer(source[:n].encode(), np.uint8).reshape(-1, T))
        ys.append(tags_of(source)[:n].reshape(-1, T))
    return np.concatenate(xs).T.astype(np.int32), np.concatenate(ys).T


def main(argv=None):
    """Return the share of characters of the test set that are tagged right, and by tag."""
    args = parser(__doc__, "seconds: 20 files, few units").parse_args(argv)
    files = [f for f in text.find_files() if f.stat().st_size < 200_000]
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    train, test = (files[:20], files[20:25]) if args.quick else (files[:400], files[400:480])
    H, steps = (24, 300) if args.quick else (96, 6000)
    x, y = windows(train)
    model = SequenceModel(GRU(32, H, bidirectional=True, seed=0), len(TAGS), symbols=256, seed=0)
    training.fit(model, Samples(x, y, 32, seed=0), optim.Adam(model, 5e-3), steps=steps,
                 schedule=cosine())
    x, y = windows(test)
    outputs, _ = model.eval()(x)
    said = outputs.argmax(-1)
    right = float((said == y).mean())
    most = float((y == np.bincount(y.ravel()).argmax()).mean())
    by_tag = {tag: float((said == y)[y == i].mean())
              for i, tag in enumerate(TAGS) if (y == i).any()}
    print(f"{100 * right:.2f}% of {y.size:,} characters of {len(test)} unseen files are right "
          f"(the most frequent tag: {100 * most:.1f}%)")
    print(", ".join(f"{tag} {100 * share:.1f}%" for tag, share in by_tag.items()))
    if not args.quick:
        record("tagging", {"hidden": H, "steps": steps, "batch": 32, "lr": 5e-3, "window": T},
               {"right": right, "most frequent tag": most, "by tag": by_tag})
        with chart("tagging") as axes:
            axes.bar(list(by_tag), [100 * share for share in by_tag.values()])
            axes.set(ylabel="% right",
                     title=f"characters of unseen files: {100 * right:.2f}% right")
    return right, by_tag


if __name__ == "__main__":
    main()
