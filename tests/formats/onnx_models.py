"""What the tests of ONNX files share: small models, ONNX Runtime, and the recurrent operators.

`recurrent` follows the text of the standard, row by row and step by step, in float64. Letters: T
steps, B batch, I input, H hidden, G gates, D directions.
"""

import importlib
import io
import warnings

import numpy as np
import pytest

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


def fastrnn_onnx():
    return importlib.import_module("fastrnn.onnx")


def load(source):
    """Load a model; of one in memory nothing may be in use any more."""
    if not isinstance(source, bytes):
        return fastrnn_onnx().load(source)
    data = bytearray(source)
    model = fastrnn_onnx().load(data)
    data.clear()  # BufferError if somebody has a view of it
    return model


def exported(module, arguments, opset, **options):
    """Return the bytes of a module that torch's exporter from traces wrote."""
    import torch

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is called deprecated
        torch.onnx.export(module.eval(), arguments, file, dynamo=False, opset_version=opset,
                          **options)
    return file.getvalue()


def node(op, inputs, outputs, **attributes):
    from onnx import helper

    name = attributes.pop("name", f"the {op}")
    return helper.make_node(op, inputs, outputs, name=name, **attributes)


def info(name, dtype, shape):
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
                                         shape)


def graph(nodes, inputs, outputs, tensors=()):
    """Return a graph; inputs are arrays by name, outputs names, or (name, dtype)."""
    from onnx import helper, numpy_helper

    outputs = [of if isinstance(of, tuple) else (of, np.float32) for of in outputs]
    return helper.make_graph(
        nodes, "a graph", [info(name, a.dtype, [None] * a.ndim) for name, a in inputs.items()],
        [info(name, dtype, None) for name, dtype in outputs],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in dict(tensors).items()])


def model(nodes, inputs, outputs, tensors=(), opset=14):
    """Return the bytes of a model."""
    from onnx import helper

    made = helper.make_model(graph(nodes, inputs, outputs, tensors),
                             opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made.SerializeToString()


def varint(value):
    """Return a whole number as Protocol Buffers have it."""
    made = b""
    while value > 127:
        made += bytes([value & 127 | 128])
        value >>= 7
    return made + bytes([value])


def runtime(data, feeds):
    """Return what ONNX Runtime gives for a model's bytes."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)


# ---- single operators ----------------------------------------------------------------------------

_BOOLEANS = ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")
_CASTS = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}


def of_form(op, arrays, attributes, opset, fixed=(), outputs=1):
    """Return the bytes of a model with one node, and its inputs; some are tensors of the file."""
    from onnx import numpy_helper

    named = {f"x{i}": np.asarray(a) for i, a in enumerate(arrays) if a is not None}
    dtype = next(iter(named.values())).dtype if named else np.float32
    if op in _BOOLEANS:
        dtype = bool
    elif op in ("Shape", "Size", "ArgMax", "ArgMin"):
        dtype = np.int64
    elif op == "Cast":
        dtype = _CASTS[attributes["to"]]
    elif op == "ConstantOfShape":
        dtype = np.int64 if attributes else np.float32
    elif op == "Where":
        dtype = np.float32
    attributes = {name: numpy_helper.from_array(a) if isinstance(a, np.ndarray) else a
                  for name, a in attributes.items()}
    names = [f"y{i}" for i in range(2 if op == "Split" else outputs)]
    feeds = {name: a for name, a in named.items() if int(name[1:]) not in fixed}
    tensors = {name: a for name, a in named.items() if name not in feeds}
    inputs = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
    return model([node(op, inputs, names, **attributes)], feeds,
                 [(name, dtype) for name in names], tensors, opset), feeds


def check_form(op, arrays, attributes, opset, rtol=2e-6, atol=1e-6, outputs=1):
    """Compare a node with ONNX Runtime: at run time, the shapes known, all computed at load."""
    data, feeds = of_form(op, arrays, attributes, opset, outputs=outputs)
    expected = runtime(data, feeds)
    n = len(arrays)
    for fixed in ((), range(1, n), range(n)):
        data, feeds = of_form(op, arrays, attributes, opset, fixed, outputs)
        got = load(data)(feeds)
        for mine, theirs in zip(got, expected, strict=True):
            assert mine.dtype == theirs.dtype
            assert mine.shape == theirs.shape
            np.testing.assert_allclose(mine, theirs, rtol, atol)


# ---- the recurrent operators ---------------------------------------------------------------------


def draw(op, T=5, B=4, I=3, H=6, D=1, seed=0, dtype=np.float64, **wanted):
    """Return the inputs of a node; bias, state, peepholes and lengths if they are wanted."""
    rng, G = np.random.default_rng(seed), GATES[op]

    def normal(scale, *shape):
        return rng.normal(0, scale, shape).astype(dtype)

    feeds = {"X": normal(1, T, B, I), "W": normal(0.6, D, G * H, I), "R": normal(0.5, D, G * H, H)}
    if wanted.get("bias", True):
        feeds["B"] = normal(0.5, D, 2 * G * H)
    if wanted.get("lengths"):
        feeds["sequence_lens"] = np.resize([T, 2, 0, 1, T - 1], B).astype(np.int32)
    if wanted.get("state", True):
        feeds["initial_h"] = normal(0.7, D, B, H)
        if op == "LSTM":
            feeds["initial_c"] = normal(0.7, D, B, H)
    if wanted.get("peepholes"):
        feeds["P"] = normal(0.5, D, 3 * H)
    return feeds


def recurrent_node(op, feeds, outputs=None, **attributes):
    inputs = [name if name in feeds else "" for name in INPUTS]
    if op != "LSTM":
        inputs = inputs[:6]
    while not inputs[-1]:
        del inputs[-1]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2] if outputs is None else outputs
    return node(op, inputs, outputs, **attributes)


def phi(name, alpha, beta):
    """Return an activation of the standard."""
    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    return {
        "Sigmoid": sigmoid, "Tanh": np.tanh, "Relu": lambda a: np.maximum(a, 0),
        "Softsign": lambda a: a / (1 + abs(a)), "Softplus": lambda a: np.log1p(np.exp(a)),
        "Affine": lambda a: alpha * a + beta, "LeakyRelu": lambda a: np.where(a < 0, alpha * a, a),
        "ThresholdedRelu": lambda a: np.where(a > alpha, a, 0),
        "ScaledTanh": lambda a: alpha * np.tanh(beta * a),
        "HardSigmoid": lambda a: np.clip(alpha * a + beta, 0, 1),
        "Elu": lambda a: np.where(a < 0, alpha * (np.exp(np.minimum(a, 0)) - 1), a)}[name]


def recurrent(op, feeds, functions=None, *, direction="forward", clip=None, input_forget=0,
              linear_before_reset=0):
    """Return Y, Y_h and, of an LSTM, Y_c of a node with layout 0."""
    X, W, R = feeds["X"], feeds["W"], feeds["R"]
    T, B, _ = X.shape
    D, H, G = len(W), R.shape[2], GATES[op]
    bias = feeds.get("B", np.zeros((D, 2 * G * H)))
    P = feeds.get("P", np.zeros((D, 3 * H)))
    lengths = feeds.get("sequence_lens", np.full(B, T))
    zero = np.zeros((D, B, H))
    state = [feeds.get("initial_h", zero).copy(), feeds.get("initial_c", zero).copy()]
    functions = functions or [phi(name, None, None) for name in DEFAULTS[op] * D]
    Y = np.zeros((T, D, B, H))

    def bounded(function):
        return lambda a: function(a if clip is None else np.clip(a, -clip, clip))

    for d in range(D):
        f, *more = map(bounded, functions[d * len(DEFAULTS[op]):][: len(DEFAULTS[op])])
        w, r, b = W[d], R[d], np.split(bias[d], 2)
        backwards = direction == "reverse" or d == 1
        for row in range(B):
            h, c = state[0][d, row], state[1][d, row]
            steps = range(lengths[row])
            for t in reversed(steps) if backwards else steps:
                x = X[t, row]
                if op == "RNN":
                    h = f(w @ x + r @ h + b[0] + b[1])
                elif op == "GRU":
                    wz, wr, wh = np.split(w @ x + b[0], 3)
                    z = f(wz + (r[:H] @ h) + b[1][:H])
                    reset = f(wr + r[H : 2 * H] @ h + b[1][H : 2 * H])
                    if linear_before_reset:
                        n = more[0](wh + reset * (r[2 * H :] @ h + b[1][2 * H :]))
                    else:
                        n = more[0](wh + r[2 * H :] @ (reset * h) + b[1][2 * H :])
                    h = (1 - z) * n + z * h
                else:
                    ai, ao, af, ac = np.split(w @ x + r @ h + b[0] + b[1], 4)
                    pi, po, pf = np.split(P[d], 3)
                    i = f(ai + pi * c)
                    forget = 1 - i if input_forget else f(af + pf * c)
                    c = forget * c + i * more[0](ac)
                    h = f(ao + po * c) * more[1](c)
                Y[t, d, row] = h
            state[0][d, row], state[1][d, row] = h, c
    return [Y, *state[: 2 if op == "LSTM" else 1]]
