"""Every allocation in turn fails: MemoryError or the right result, and nothing is broken after.

The sweeps run in a process of
their own, one per cell: `python tests/kernels/test_no_memory.py lstm`. The last line that it
printed says what it was doing.
"""

import os
import subprocess
import sys

import calls
import numpy as np
import pytest
from failing import every_failure

from fastrnn._kernels.packed import Packed
from fastrnn._kernels.stream import Stream
from fastrnn._kernels.timeline import LAYOUTS, Timeline
from fastrnn.layers.packs import pair

pytest.importorskip("_testcapi")


def sweep_layer(call, packed):
    """Forward, backward and a copied tape."""
    weights = tuple(Packed(call.kind, w) for w in call.weights) if packed else None
    expected, tape = call.forward(keep=True, weights=weights)
    record = ("dh", "gates", "h", "x", "dgates_h")
    gradients = call.backward(tape, record)

    def forward_again(result):
        if result is not None:
            calls.assert_same(result[0], expected)
        fresh, tape = call.forward(keep=True, weights=weights)
        calls.assert_same(fresh, expected)
        calls.assert_same(call.backward(tape, record), gradients)

    every_failure("forward", lambda: call.forward(keep=True, weights=weights), forward_again)

    def backward():
        nonlocal tape
        return call.backward(tape, record)

    def backward_again(result):
        nonlocal tape
        if result is not None:
            calls.assert_same(result, gradients)
        elif not tape.used:
            calls.assert_same(call.backward(tape, record), gradients)
        _, tape = call.forward(keep=True, weights=weights)

    _, tape = call.forward(keep=True, weights=weights)
    every_failure("backward", backward, backward_again)

    _, tape = call.forward(keep=True, weights=weights)

    def copied(twin):
        if twin is not None:
            calls.assert_same(call.backward(twin, record), gradients)

    every_failure("tape.copy", tape.copy, copied)
    calls.assert_same(call.backward(tape, record), gradients)


def sweep_packed(call):
    """Packing, and forward with what was packed."""
    weights, words = call.weights[0], None
    for half in (False, True):
        if half:
            (w_ih, ih), (w_hh, hh) = map(pair, weights[:2])
            weights, words = (w_ih, w_hh, *weights[2:]), (ih, hh)
        expected, _ = call.forward(keep=False, weights=(weights,))

        def check(pack, expected=expected):
            if pack is not None:
                got, _ = call.forward(keep=False, weights=(pack,))
                calls.assert_same(got, expected)

        every_failure("Packed", lambda w=weights, h=words: Packed(call.kind, w, h), check)
        pack = Packed(call.kind, weights, words)

        def same(result, expected=expected, pack=pack):
            if result is not None:
                calls.assert_same(result[0], expected)
            check(pack)

        every_failure("forward of packs",
                      lambda p=pack: call.forward(keep=False, weights=(p,)), same)


def sweep_stream(call, x, **options):
    """Make a stream, and take steps, states and copies."""
    pack = Packed(call.kind, call.weights[0])
    head = np.ones((3, call.weights[0][1].shape[1]), np.float32), np.ones(3, np.float32)

    def make():
        return Stream([[pack]], 2, np.float32, head=head, **options)

    step = make()
    first, second = step(x).copy(), step(x).copy()

    def right(step):
        if step is not None:
            assert step(x).tobytes() == first.tobytes()
            assert step(x).tobytes() == second.tobytes()

    every_failure("Stream", make, right)

    def act():
        return step(x)

    def step_again(y):
        if y is not None:
            assert y.tobytes() == first.tobytes()
        step.reset()
        right(step)
        step.reset()

    step.reset()
    every_failure("step", act, step_again)
    given, x = x, x.tolist()
    every_failure("step of a list", act, step_again)
    x = given
    step(x)

    def go_on(twin):
        if twin is not None:
            assert twin(x).tobytes() == second.tobytes()

    every_failure("stream.copy", step.copy, go_on)
    every_failure("stream.__reduce__", step.__reduce__,
                  lambda made: go_on(None if made is None else rebuilt(made)))
    every_failure("stream.state", lambda: step.state, lambda _: None)
    state = step.state

    def put():
        step.state = state
        return True

    every_failure("stream.state =", put, lambda _: None)
    go_on(step)
    sweep_rows(make, x)


def sweep_rows(make, x):
    """Take steps of some rows, many steps in one call, and the states of some rows."""
    step, other = make(), make()
    steps = np.stack([x, x, x])
    block, after = other.block(steps).copy(), other.state

    def same(y):
        if y is not None:
            assert y.tobytes() == block.tobytes()
        else:
            assert not any(a.any() for a in (step.state if isinstance(step.state, tuple)
                                             else (step.state,)))
        step.reset()

    every_failure("a first block", lambda: make().block(steps), same)
    every_failure("block", lambda: step.block(steps), same)
    every_failure("block of a list", lambda: step.block(steps.tolist()), same)
    for rows in (np.array([0, 1]), [0, 1], np.array([True, True])):
        every_failure("block of rows", lambda r=rows: step.block(steps, rows=r), same)
        every_failure("step of rows", lambda r=rows: step(x, rows=r), lambda y: same(
            None if y is None else np.concatenate([y[None], block[1:]])))
        if isinstance(rows, list):  # an array of whole numbers needs no memory
            every_failure("reset of rows", lambda r=rows: step.reset(r) or True, lambda _: None)
        every_failure("rows", lambda r=rows: step.rows[r], lambda _: None)

        def put(rows=rows):
            step.rows[rows] = after
            return True

        every_failure("rows =", put, lambda _: None)
        assert step(x).tobytes() == other(x).tobytes()
        step.reset()
        other.state = after


def rebuilt(made):
    make, arguments, state = made
    step = make(*arguments)
    step.state = state
    return step


def sweep_timeline():
    """Make one, and its tables."""
    lengths, reset = np.array([5, 0, 3]), np.ones((5, 3), bool)
    every_failure("Timeline", lambda: Timeline(lengths, 5, reset), lambda _: None)
    for reverse in (False, True):
        for layout in LAYOUTS:
            time = Timeline(lengths, 5, reset)
            if layout == "walk" and not reverse:
                continue
            expected = time.rows(layout, reverse).tolist()

            def act(layout=layout, reverse=reverse):
                time = Timeline(lengths, 5, reset)
                return time, time.rows(layout, reverse)

            def right(made, expected=expected, layout=layout, reverse=reverse):
                if made is not None:
                    assert made[1].tolist() == expected
                    assert made[0].rows(layout, reverse) is made[1]

            every_failure(f"Timeline.rows {layout}", act, right)


def sweep(cell):
    sweep_timeline()
    reset = np.zeros((5, 3), bool)
    reset[1:3, 0] = True
    for source in ("dense", "embedding", "one_hot"):
        for packed in (False, True):
            sweep_layer(calls.make(cell, 5, 2, 4, 6, D=2, source=source), packed)
            layout = "batch" if packed else "packed"
            sweep_layer(calls.make_ragged(cell, [5, 0, 3], 5, 4, 6, reset, packed, layout, D=2,
                                          source=source), packed)
        sweep_packed(calls.make(cell, 12, 2, 4, 6, source=source))
    call = calls.make(cell, 5, 2, 4, 6)
    sweep_stream(call, call.x[0].copy())
    sweep_stream(call, np.array([3, 1]), one_hot=True)
    sweep_stream(call, np.array([3, 1]), embedding=call.x[:, 0].copy())


@pytest.mark.skipif((3, 12) <= sys.version_info < (3, 14), reason="PyFunction_NewWithQualName of "
                    "CPython 3.12.1 and 3.13.0 reads a null pointer when its allocation fails")
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_every_allocation_may_fail(cell):
    done = subprocess.run(
        [sys.executable, __file__, cell], capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    *_, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, f"after {last!r}: {done.stderr}"
    assert last == "done"


if __name__ == "__main__":
    sweep(sys.argv[1])
    print("done")
