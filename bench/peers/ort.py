"""ONNX Runtime, inference only: `run` on NumPy arrays, and bound buffers."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any

import numpy as np
import onnxruntime

from bench.cases import Arrays, Case
from bench.peers import UnsupportedError, Way, onnx_model, stream_way

CAN = {"lengths", "callers"}
_threads = 1


def version() -> str:
    """Return the version."""
    return onnxruntime.__version__


def setup(threads: int) -> None:
    """Remember the thread count; it belongs to a session."""
    global _threads
    _threads = threads


def load(case: Case, a: Arrays) -> list[Way]:
    """Return the ways to run the case."""
    if case.kind in ("train", "lm"):
        raise UnsupportedError("inference only")
    if case.dtype == "float64" and case.cell in ("lstm", "gru"):
        raise UnsupportedError("no float64")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if case.kind == "callers":
        return _callers(case, a, options)
    T = 1 if case.kind == "stream" else case.T
    session = onnxruntime.InferenceSession(onnx_model.build(case, a, T), options,
                                           providers=["CPUExecutionProvider"])
    if case.kind == "stream":
        return [_run_stream(session, case, a), _bound_stream(session, case, a)]
    return [_run(session, case, a), _bound(session, case, a)]


Session = onnxruntime.InferenceSession


def _bind(session: Session, arrays: dict[str, np.ndarray], outputs: dict[str, np.ndarray]
          ) -> onnxruntime.IOBinding:
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    return binding


def _run(session: Session, case: Case, a: Arrays) -> Way:
    inputs, outputs = onnx_model.arrays(case, a, case.T)
    call = partial(session.run, list(outputs), inputs)
    return Way("run", call, lambda: dict(zip(outputs, call(), strict=True)))


def _bound(session: Session, case: Case, a: Arrays) -> Way:
    inputs, outputs = onnx_model.arrays(case, a, case.T)
    binding = _bind(session, inputs, outputs)
    call = partial(session.run_with_iobinding, binding)

    def results() -> dict[str, np.ndarray]:
        call()
        return {name: array.copy() for name, array in outputs.items()}

    return Way("binding", call, results, keep=(inputs, outputs))


def _callers(case: Case, a: Arrays, options: onnxruntime.SessionOptions) -> list[Way]:
    """Return one call for all the callers of a step, and one call a caller."""
    def session(B: int) -> Session:
        model = onnx_model.build(dataclasses.replace(case, B=B), a, 1)
        return Session(model, options, providers=["CPUExecutionProvider"])

    ways = [_call_together("one call", session(case.step), case, a)]
    if case.step < case.B:
        ways.append(_call_each("a call a caller", session(1), case, a))
    return ways


def _call_together(name: str, session: Session, case: Case, a: Arrays) -> Way:
    """Gather the states of the callers, run once, and put the new states back."""
    letters = ("h", "c") if case.has_c else ("h",)
    outputs = ["y", *(f"{letter}n" for letter in letters)]
    states: dict[str, np.ndarray] = {}
    every = case.step == case.B

    def reset() -> None:
        states.update({letter: getattr(a, f"{letter}0").copy() for letter in letters})

    def step(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        feed = {"x": x[None]}
        for letter, state in states.items():
            feed[f"{letter}0"] = state if every else state[:, rows]
        y, *new = session.run(outputs, feed)
        for letter, value in zip(letters, new, strict=True):
            if every:
                states[letter] = value
            else:
                states[letter][:, rows] = value
        return y[0]

    return _way(name, step, reset, a, lambda: states)


def _call_each(name: str, session: Session, case: Case, a: Arrays) -> Way:
    """Run once for each caller, on buffers of its own: its state lies where the run wants it."""
    letters = ("h", "c") if case.has_c else ("h",)
    x_value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, case.I), case.dtype))
    y = np.empty((1, 1, case.H), case.dtype)
    values, bindings, turns = [], [], [0] * case.B
    for b in range(case.B):
        pair = [{letter: onnxruntime.OrtValue.ortvalue_from_numpy(
            np.ascontiguousarray(getattr(a, f"{letter}0")[:, b : b + 1])) for letter in letters}
            for _ in range(2)]
        values.append(pair)
        bindings.append([])
        for k in range(2):
            binding = session.io_binding()
            binding.bind_ortvalue_input("x", x_value)
            binding.bind_output("y", "cpu", 0, y.dtype, y.shape, y.ctypes.data)
            for letter in letters:
                binding.bind_ortvalue_input(f"{letter}0", pair[k][letter])
                binding.bind_ortvalue_output(f"{letter}n", pair[1 - k][letter])
            bindings[b].append(binding)

    def reset() -> None:
        turns[:] = [0] * case.B
        for b, pair in enumerate(values):
            for letter in letters:
                start = np.ascontiguousarray(getattr(a, f"{letter}0")[:, b : b + 1])
                pair[0][letter].update_inplace(start)

    def step(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), case.H), case.dtype)
        for k, b in enumerate(rows.tolist()):
            x_value.update_inplace(x[None, k : k + 1])
            session.run_with_iobinding(bindings[b][turns[b]])
            turns[b] = 1 - turns[b]
            out[k] = y[0, 0]
        return out

    def states() -> dict[str, np.ndarray]:
        return {letter: np.concatenate([pair[turn][letter].numpy() for pair, turn in
                                        zip(values, turns, strict=True)], axis=1)
                for letter in letters}

    return _way(name, step, reset, a, states)


def _way(name: str, step: Any, reset: Any, a: Arrays, states: Any) -> Way:
    def results() -> dict[str, np.ndarray]:
        reset()
        ys = [step(x, rows) for x, rows in zip(a.x, a.rows, strict=False)]
        return {"y": np.stack(ys), **{f"{k}n": v.copy() for k, v in states().items()}}

    reset()
    draws = itertools.cycle(a.rows)
    return Way(name, lambda: step(a.x[0], next(draws)), results)


def _run_stream(session: Session, case: Case, a: Arrays) -> Way:
    feed, _ = onnx_model.arrays(case, a, 1)
    initial = {name: feed[name] for name in feed if name != "x"}
    names = ["y", *(f"{letter[0]}n" for letter in initial)]

    def reset() -> None:
        feed.update(initial)

    def step(x: np.ndarray) -> np.ndarray:  # (1, B, I)
        feed["x"] = x
        y, *states = session.run(names, feed)
        for name, state in zip(initial, states, strict=True):
            feed[name] = state
        return y

    return stream_way("run", step, reset, list(a.x[:, None]), lambda y: y[0])


def _bound_stream(session: Session, case: Case, a: Arrays) -> Way:
    """Two bindings in turn: each reads the state that the other has written."""
    first, outputs = onnx_model.arrays(case, a, 1)
    x, y = first.pop("x"), outputs.pop("y")
    values = [
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in first.items()}
        for _ in range(2)
    ]
    x_value = onnxruntime.OrtValue.ortvalue_from_numpy(x)
    bindings = []
    for k in range(2):
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", x_value)
        binding.bind_output("y", "cpu", 0, y.dtype, y.shape, y.ctypes.data)
        for name in first:
            binding.bind_ortvalue_input(name, values[k][name])
            binding.bind_ortvalue_output(f"{name[0]}n", values[1 - k][name])
        bindings.append(binding)
    turn = 0

    def reset() -> None:
        nonlocal turn
        turn = 0
        for name, array in first.items():
            values[0][name].update_inplace(array)

    def step(new_x: np.ndarray) -> np.ndarray:  # (1, B, I)
        nonlocal turn
        x_value.update_inplace(new_x)
        session.run_with_iobinding(bindings[turn])
        turn = 1 - turn
        return y

    return stream_way("binding", step, reset, list(a.x[:, None]), lambda y: y[0])
