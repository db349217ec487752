"""`python tests/soak.py`: streams of 1e9 steps beside float64, and 100,000 training steps.

    python tests/soak.py                       # everything in full: a quarter of an hour of CPU
    python tests/soak.py --scale 0.01          # a hundredth of the steps
    python tests/soak.py block single training --cells lstm

A stream in float32 and one in float64 have the same weights and inputs. Every piece of steps ends
with a checkpoint: the error is below a bound that follows from the weights, no number is NaN,
infinite or denormal. Every eighth piece is silence, so that all states decay to zero. In the
training the second half has nothing to learn, so that the optimiser's averages decay. The memory
of the process stays as it was after the first pieces.

Letters: I input, H hidden, u the unit roundoff of float32, k the factor by which a step grows an
error of the state.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn import GRU, LSTM, RNN, SequenceModel, optim

CELLS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
I, H = 2, 8
STEPS = {"block": 1_000_000_000, "single": 1_000_000_000, "training": 100_000}
PIECE = 200_000  # steps between checkpoints
SILENT = 8  # every so many pieces are silent
WARM = 10  # pieces, or thousandths of the training, until memory counts
GROWTH = 2_000_000  # bytes: what the allocator may still keep
U = 2.0**-24
ULPS = 2.5 * 2 * U  # of an activation up to 1: docs/architecture.md, Numerical results
TINY = {np.float32: np.finfo(np.float32).tiny, np.float64: np.finfo(np.float64).tiny}


# ------------------------------------------------------------------------------------- the bound


def row_sums(matrix: np.ndarray, gate: int) -> float:
    """Return the largest sum of absolute weights of a row of one gate."""
    return float(np.abs(matrix[gate * H : (gate + 1) * H].astype(np.float64)).sum(1).max())


def sigmoid(x: float) -> float:
    """Return the logistic function."""
    return 1 / (1 + float(np.exp(-x)))


def bound(cell: str, w_ih: np.ndarray, w_hh: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the growth of an error in one step, and the largest error of the states (h, or c, h).

    The growth is a matrix: what an error of each state adds to each state of the next step.

    For |x| <= 1 and no biases, so |h| <= 1. A sum of n products is off by at most n u times the sum
    of their absolute values; a sigmoid passes a quarter of it on. An error e of one step and a
    growth k < 1 give e / (1 - k) after any number of steps. A hundredth more covers products of
    errors and the float64 side.
    """
    gates = len(w_hh) // H
    of_x = [row_sums(w_ih, g) for g in range(gates)]
    of_h = [row_sums(w_hh, g) for g in range(gates)]
    sums = [a + b for a, b in zip(of_x, of_h, strict=True)]
    off = [(I + H + 2) * U * each for each in sums]
    if cell == "rnn":
        growth, error = np.array([[of_h[0]]]), np.array([off[0] + ULPS])
    elif cell == "lstm":  # i f g o; c' = f c + i g, h' = o tanh c'
        forget = sigmoid(sums[1])
        most = 1 / (1 - forget)  # of |c|
        from_h = most * of_h[1] / 4 + of_h[0] / 4 + of_h[2]
        growth = np.array([[forget, from_h], [forget, from_h + of_h[3] / 4]])
        of_c = (most * (off[1] / 4 + ULPS) + off[0] / 4 + ULPS + off[2] + ULPS + 3 * U * (most + 1))
        error = np.array([of_c, of_c + off[3] / 4 + 2 * ULPS + U])
    else:  # r z n; n = tanh(x_n + r h_n), h' = (1 - z) n + z h
        keep = sigmoid(sums[1])
        growth = np.array([[keep + of_h[1] / 2 + keep * (of_h[2] + of_h[0] / 4 * of_h[2])]])
        of_n = of_h[2] * (off[0] / 4 + ULPS) + 2 * off[2] + ULPS
        error = np.array([2 * (off[1] / 4 + ULPS) + keep * of_n + 4 * U])
    if radius(growth) >= 1:
        return growth, np.full(len(error), np.inf)
    return growth, 1.01 * np.linalg.solve(np.eye(len(error)) - growth, error)


def radius(growth: np.ndarray) -> float:
    """Return k, the factor by which an error grows in the long run."""
    return float(np.abs(np.linalg.eigvals(growth)).max())


def twins(cell: str) -> tuple[fastrnn.Layer, fastrnn.Layer, np.ndarray]:
    """Return a float32 layer and the same in float64, and the bound of the error of their states.

    The recurrent weights are as large as a growth of 0.9 allows.
    """
    layer = CELLS[cell](I, H, bias=False, seed=0)
    state = {name: array.copy() for name, array in layer.state_dict().items()}
    while True:
        growth, errors = bound(cell, state["weight_ih_l0"], state["weight_hh_l0"])
        if radius(growth) <= 0.9:
            break
        state["weight_hh_l0"] *= np.float32(0.95)
    layer.load_state_dict(state)
    wide = CELLS[cell](I, H, bias=False, seed=0, dtype=np.float64)
    wide.load_state_dict({name: array.astype(np.float64) for name, array in state.items()})
    return layer.eval(), wide.eval(), errors


# ------------------------------------------------------------------------------------ the watches


def memory() -> int:
    """Return the resident bytes of this process, or 0 where nobody says it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def check_numbers(name: str, array: np.ndarray) -> None:
    """Fail on a number that is not finite, or denormal."""
    sizes = np.abs(array)
    assert np.isfinite(sizes.max(initial=0)), f"{name}: a number is not finite"
    denormal = np.count_nonzero((sizes > 0) & (sizes < TINY[array.dtype.type]))
    assert not denormal, f"{name}: {denormal} of {array.size} numbers are denormal"


def check_memory(before: int, now: int) -> int:
    """Return by how much memory has grown; fail if it is too much."""
    assert now - before <= GROWTH, f"memory grew from {before} to {now} bytes"
    return now - before


def states_of(stream: fastrnn.layers.Stream) -> list[np.ndarray]:
    """Return the states in the order of the bound: c first."""
    state = stream.state
    return list(state)[::-1] if isinstance(state, tuple) else [state]


# ---------------------------------------------------------------------------------------- the runs


def run_stream(cell: str, steps: int, single: bool, piece: int = PIECE) -> dict[str, float]:
    """Run a stream beside one in float64, in blocks or step by step; return figures.

    Single steps must also have the bits of blocks.
    """
    layer, wide, bounds = twins(cell)
    stream, other, reference = layer.stream(1), layer.stream(1), wide.stream(1)
    rng = np.random.default_rng(0)
    y = np.empty((piece, 1, H), np.float32)
    worst, before, seconds = np.zeros(len(bounds)), 0, {False: 0.0, True: 0.0}
    count = -(-steps // piece)
    for number in range(count):
        silent = number % SILENT == SILENT - 1
        x = np.zeros((piece, 1, I), np.float32)
        if not silent:
            rng.random(out=x, dtype=np.float32)
            x *= 2
            x -= 1
        begin = time.process_time()
        if single:
            for row, out in zip(x, y, strict=True):
                stream(row, out)
        else:
            y = stream.block(x)
        seconds[silent] += time.process_time() - begin
        exact = reference.block(x.astype(np.float64))
        check_numbers(f"piece {number}", y)
        if single:
            assert y.tobytes() == other.block(x).tobytes(), f"piece {number}: not a block's bits"
        errors = [np.abs(a - b).max() for a, b in
                  zip(states_of(stream), states_of(reference), strict=True)]
        errors[-1] = max(errors[-1], np.abs(y[-1000:] - exact[-1000:]).max())
        worst = np.maximum(worst, errors)
        assert (worst <= bounds).all(), f"piece {number}: errors {worst}, bounds {bounds}"
        if silent:
            assert not any(array.any() for array in states_of(stream)), "silence leaves a state"
        if number < WARM:
            before = memory()
    growth = check_memory(before, memory())
    pieces = {True: count // SILENT, False: count - count // SILENT}
    each = {key: seconds[key] / max(1, pieces[key]) / piece for key in seconds}
    return {"steps": count * piece, "error": float(worst[-1]), "bound": float(bounds[-1]),
            "ns a step": 1e9 * each[False], "silent to loud": each[True] / each[False],
            "growth in bytes": growth}


def run_training(steps: int) -> dict[str, float]:
    """Train a GRU to repeat what it saw a step ago, then on nothing at all; return figures."""
    model = SequenceModel(GRU(I, H, seed=0), 1, loss="mse", seed=0)
    optimiser = optim.Adam(model, 0.003)
    rng = np.random.default_rng(0)
    nothing = np.zeros((12, 4, I), np.float32), np.zeros((12, 4, 1), np.float32)
    times, before, loss, learned = np.ones(steps), 0, np.inf, np.inf
    for step in range(steps):
        x, goal = nothing
        if step < steps // 2:
            x = rng.random((12, 4, I), np.float32)
            goal = np.concatenate([np.zeros((1, 4, 1), np.float32), x[:-1, :, :1]])
        begin = time.process_time()
        optimiser.zero_grad()
        found = model.loss(x, goal)
        found.backward()
        optimiser.step(clip=1.0)
        times[step] = time.process_time() - begin
        loss = float(found.value)
        assert np.isfinite(loss), f"step {step}: the loss is {loss}"
        if step == steps // 2 - 1:
            learned = loss
        if step % max(1, steps // 1000) == 0:
            for name, part in model.parts().items():
                check_numbers(f"step {step}: {name}", part.flat)
                check_numbers(f"step {step}: gradients of {name}", part.flat_grads)
            for name, array in optimiser.state_dict().items():
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    check_numbers(f"step {step}: {name}", array)
        if step <= steps // 1000 * WARM:
            before = memory()
    growth = check_memory(before, memory())
    tenth = max(1, steps // 10)
    return {"steps": steps, "loss at half": learned, "loss": loss,
            "late to early": float(np.median(times[-tenth:]) / np.median(times[:tenth])),
            "growth in bytes": growth}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python tests/soak.py", description=__doc__)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(STEPS)}; by default all")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--scale", type=float, default=1, help="of the numbers of steps")
    args = parser.parse_args()
    if set(args.what) - set(STEPS):
        parser.error(f"what is {args.what}, expected some of {', '.join(STEPS)}")
    fastrnn.set_num_threads(1)
    for what in args.what or STEPS:
        steps = max(1, round(STEPS[what] * args.scale))
        if what == "training":
            report("training", run_training(steps))
            continue
        for cell in args.cells:
            report(f"{what} {cell}", run_stream(cell, steps, what == "single"))


def report(name: str, figures: dict[str, float]) -> None:
    """Print the figures of a run."""
    print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()),
          flush=True)


if __name__ == "__main__":
    main()
