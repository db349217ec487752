"""A case as an ONNX model, for ONNX Runtime and OpenVINO.

ONNX orders LSTM gates i o f c and GRU gates z r h; its R is W_hh; B holds both biases; the GRU of
PyTorch is linear_before_reset=1. Outputs Y (T, D, B, H) of a layer become (T, B, D*H).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.cases import Arrays, Case

_ORDER = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}  # ONNX's gates among torch's


def _reorder(a: np.ndarray, kind: str, H: int) -> np.ndarray:
    return np.concatenate([a[k * H : (k + 1) * H] for k in _ORDER[kind]])


def build(case: Case, a: Arrays, T: int) -> bytes:
    """Return the model: x (T, B, I), h0, c0 of an LSTM -> y, hn, cn of an LSTM.

    If the case has lengths, they are an input (B,) too.

    Parameters
    ----------
    case, a : Case, Arrays
    T : int
        Steps; 1 for a stream.
    """
    kind, _, nonlinearity = case.cell.partition("_")
    B, H, D, LD = case.B, case.H, case.D, case.L * case.D
    element = helper.np_dtype_to_tensor_dtype(np.dtype(case.dtype))
    nodes, weights = [], []
    letters = ("h", "c") if case.has_c else ("h",)

    def constant(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    for letter in letters:
        parts = [f"{letter}0_{layer}" for layer in range(case.L)]
        if case.L == 1:
            nodes.append(helper.make_node("Identity", [f"{letter}0"], parts))
        else:
            nodes.append(helper.make_node("Split", [f"{letter}0"], parts, axis=0,
                                          num_outputs=case.L))
    x = "x"
    for layer in range(case.L):
        W, R, bias = [], [], []
        for reverse in range(D):
            params = {p: _reorder(a.params[name], kind, H)
                      for p, name in case.names(layer, reverse).items()}
            W.append(params["weight_ih"])
            R.append(params["weight_hh"])
            if case.bias:
                bias.append(np.concatenate([params["bias_ih"], params["bias_hh"]]))
        inputs = [x, constant(f"W{layer}", np.stack(W)), constant(f"R{layer}", np.stack(R)),
                  constant(f"B{layer}", np.stack(bias)) if case.bias else "",
                  "lengths" if case.lengths else "",
                  *(f"{letter}0_{layer}" for letter in letters)]
        outputs = [f"Y{layer}", *(f"{letter}n_{layer}" for letter in letters)]
        options: dict = {"hidden_size": H, "direction": "bidirectional" if D == 2 else "forward"}
        if kind == "gru":
            options["linear_before_reset"] = 1
        if kind == "rnn":
            options["activations"] = [nonlinearity.capitalize()] * D
        nodes.append(helper.make_node(kind.upper(), inputs, outputs, **options))
        x = "y" if layer == case.L - 1 else f"x{layer + 1}"
        if D == 1:
            axes = constant(f"axes{layer}", np.array([1]))
            nodes.append(helper.make_node("Squeeze", [f"Y{layer}", axes], [x]))
        else:
            shape = constant(f"shape{layer}", np.array([T, B, D * H]))
            nodes.append(helper.make_node("Transpose", [f"Y{layer}"], [f"Z{layer}"],
                                          perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"Z{layer}", shape], [x]))
    for letter in letters:
        parts = [f"{letter}n_{layer}" for layer in range(case.L)]
        nodes.append(helper.make_node("Concat", parts, [f"{letter}n"], axis=0))

    def info(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, element, shape)

    lengths = [helper.make_tensor_value_info("lengths", TensorProto.INT32, (B,))]
    graph = helper.make_graph(
        nodes, "case",
        [info("x", T, B, case.I), *(info(f"{letter}0", LD, B, H) for letter in letters),
         *(lengths if case.lengths else [])],
        [info("y", T, B, D * H), *(info(f"{letter}n", LD, B, H) for letter in letters)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert element in (TensorProto.FLOAT, TensorProto.DOUBLE)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def arrays(case: Case, a: Arrays, T: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the model's inputs, and empty outputs, by name."""
    inputs = {"x": a.x[:T].copy(), "h0": a.h0.copy()}
    outputs = {"y": np.empty((T, case.B, case.D * case.H), case.dtype), "hn": np.empty_like(a.h0)}
    if a.c0 is not None:
        inputs["c0"] = a.c0.copy()
        outputs["cn"] = np.empty_like(a.c0)
    if a.lengths is not None:
        inputs["lengths"] = a.lengths.astype(np.int32)
    return inputs, outputs
