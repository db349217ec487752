"""OpenVINO, inference only, from the same ONNX model as ONNX Runtime."""

from __future__ import annotations

import numpy as np
import openvino

from bench.cases import Arrays, Case
from bench.peers import UnsupportedError, Way, onnx_model, stream_way

_threads = 1


def version() -> str:
    """Return the version."""
    return openvino.__version__.partition("-")[0]


def setup(threads: int) -> None:
    """Remember the thread count; it belongs to a compiled model."""
    global _threads
    _threads = threads


def load(case: Case, a: Arrays) -> list[Way]:
    """Return the ways to run the case."""
    if case.kind in ("train", "lm"):
        raise UnsupportedError("inference only")
    if case.dtype != "float32":
        raise UnsupportedError(f"no {case.dtype}")
    core = openvino.Core()
    T = 1 if case.kind == "stream" else case.T
    compiled = core.compile_model(core.read_model(onnx_model.build(case, a, T)), "CPU", {
        "INFERENCE_NUM_THREADS": _threads,
        "INFERENCE_PRECISION_HINT": "f32",  # otherwise bfloat16 where the CPU has it
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # the process is pinned already
    })
    if case.kind == "stream":
        return [_stream(compiled, case, a)]
    inputs, outputs = onnx_model.arrays(case, a, T)
    request = _request(compiled, inputs)

    def call() -> None:
        request.infer(share_inputs=True, share_outputs=True)

    def results() -> dict[str, np.ndarray]:
        call()
        return {name: request.get_tensor(name).data.copy() for name in outputs}

    return [Way("request", call, results, keep=inputs)]


def _request(compiled: openvino.CompiledModel, arrays: dict[str, np.ndarray]
             ) -> openvino.InferRequest:
    request = compiled.create_infer_request()
    for name, array in arrays.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    return request


def _stream(compiled: openvino.CompiledModel, case: Case, a: Arrays) -> Way:
    """Two requests in turn: each reads the state that the other has written."""
    first, outputs = onnx_model.arrays(case, a, 1)
    x, y = first.pop("x"), outputs.pop("y")
    states = [{name: array.copy() for name, array in first.items()} for _ in range(2)]
    requests = [
        _request(compiled, {"x": x, "y": y, **states[k],
                            **{f"{name[0]}n": array for name, array in states[1 - k].items()}})
        for k in range(2)
    ]
    turn = 0

    def reset() -> None:
        nonlocal turn
        turn = 0
        for name, array in first.items():
            states[0][name][...] = array

    def step(new_x: np.ndarray) -> np.ndarray:  # (1, B, I)
        nonlocal turn
        x[...] = new_x
        requests[turn].infer(share_inputs=True, share_outputs=True)
        turn = 1 - turn
        return y

    return stream_way("request", step, reset, list(a.x[:, None]), lambda y: y[0])
