"""Encoder and decoder: read "573+86" character by character, write "659".

The addition task of Zaremba and Sutskever ("Learning to execute", 2014), whole numbers of up to
three digits. In training the decoder reads the right result (teacher forcing); in the test it reads
what it has written. The source is read from its end, as Sutskever, Vinyals and Le (2014) found
better. Sums and results have different lengths: a batch is a list of arrays, without padding.
Letters: T characters, B sums of a batch.
"""

import numpy as np
from common import chart, parser, record

from fastrnn import LSTM, EncoderDecoder, SequenceModel, Stack, fit
from fastrnn.schedules import CosineDecay
from fastrnn.training import Batch, Generated

SYMBOLS = "0123456789+ "  # a blank begins and ends a result


def problem(B, digits, training):
    """Return the function that draws sums; about every fifth pair is for the test alone.

    Which pairs these are has nothing to do with their last digits: a model that never sees a pair
    whose last digits are equal learns that there are none.
    """

    def draw(rng):
        a, b = rng.integers(0, 10**digits, (2, 8 * B + 200))
        use = ((7919 * a + 104729 * b) % 1009 % 5 != 0) == training
        a, b = a[use][:B], b[use][:B]
        pairs = list(zip(a, b, strict=True))
        source = symbols(f"{i}+{j}"[::-1] for i, j in pairs)
        inputs, targets = (symbols(word.format(i + j) for i, j in pairs) for word in (" {}", "{} "))
        return Batch((source, inputs), targets)

    return draw


def symbols(words):
    """Return B words as arrays of numbers (T,)."""
    return [np.array([SYMBOLS.index(c) for c in word]) for word in words]


def main(argv=None):
    """Return the share of unseen sums whose result is right in every digit."""
    args = parser(__doc__, "seconds: numbers of two digits").parse_args(argv)
    digits, H, steps = (2, 128, 2500) if args.quick else (3, 256, 12_000)
    V, batch = len(SYMBOLS), 64
    model = EncoderDecoder(
        Stack(LSTM(16, H, seed=0), vocab_size=V, seed=0),
        SequenceModel(LSTM(16, H, seed=1), V, vocab_size=V, seed=1))
    history = fit(model, Generated(problem(batch, digits, True)), steps=steps, lr=3e-3,
                  schedule=CosineDecay())
    test = Generated(problem(500, digits, False), 12345)(0)
    source, targets = test.inputs[0], test.targets
    start = np.full(len(source), SYMBOLS.index(" "))
    written = model.generate(source, start, digits + 2).T  # (B, T)
    right = float(np.mean([(row[: len(target)] == target).all()
                           for row, target in zip(written, targets, strict=True)]))
    for asked, row in zip(source[:4], written, strict=False):
        print("".join(SYMBOLS[c] for c in asked[::-1]), "=",
              "".join(SYMBOLS[c] for c in row).split(" ")[0])
    print(f"{100 * right:.1f}% of {len(source)} unseen sums are right")
    if not args.quick:
        record("sums", {"digits": digits, "hidden": H, "steps": steps, "batch": batch, "lr": 3e-3},
               {"right": right})
        with chart("sums") as axes:
            axes.semilogy(history.losses, lw=0.5)
            axes.set(xlabel="step", ylabel="loss with teacher forcing",
                     title=f"sums of three-digit numbers: {100 * right:.1f}% of unseen ones right")
    return right


if __name__ == "__main__":
    main()
