"""Cells of ONNX against ONNX Runtime.

Letters: T steps, B batch, I input, H hidden, G gates.
"""

import numpy as np
import pytest

import fastrnn
from fastrnn import cells

T, B, I, H = 6, 4, 3, 7


def close(mine, theirs):
    """ONNX Runtime computes in float32."""
    np.testing.assert_allclose(mine, theirs, 2e-5, 2e-5)

ONNX_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.fixture(name="onnx_run")
def runner():
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    def run(op, feeds, **attributes):
        """Return Y of an operator, (T, B, H), computed in float32."""
        feeds = {name: np.asarray(a, np.float32) for name, a in feeds.items()}
        names = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
        inputs = [name if name in feeds else "" for name in names]
        while not inputs[-1]:
            del inputs[-1]
        node = helper.make_node(op, inputs, ["Y"], hidden_size=feeds["R"].shape[-1], **attributes)
        graph = helper.make_graph(
            [node], "one", [helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape)
                            for name, a in feeds.items()],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, list("TDBH"))])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)])
        model.ir_version = 8
        onnx.checker.check_model(model)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(model.SerializeToString(), options,
                                       providers=["CPUExecutionProvider"])
        return session.run(None, feeds)[0][:, 0]

    return run


def onnx_feeds(op, peepholes=False, scale=0.5, seed=0):
    rng = np.random.default_rng(seed)
    G = ONNX_GATES[op]
    feeds = {"X": rng.normal(0, 1, (T, B, I)), "W": rng.normal(0, scale, (1, G * H, I)),
             "R": rng.normal(0, scale, (1, G * H, H)), "B": rng.normal(0, scale, (1, 2 * G * H)),
             "initial_h": rng.normal(0, 0.5, (1, B, H))}
    if op == "LSTM":
        feeds["initial_c"] = rng.normal(0, 0.5, (1, B, H))
    if peepholes:
        feeds["P"] = rng.normal(0, scale, (1, 3 * H))
    return feeds


def ours_of(definition, op, feeds, coupled=False):
    """Run a layer of a definition with an ONNX operator's arrays."""
    layer = fastrnn.Layer(definition, I, H, dtype=np.float64)
    W, R, bias = feeds["W"][0], feeds["R"][0], feeds["B"][0]
    G = ONNX_GATES[op]
    halves = bias[: G * H], bias[G * H :]
    if op == "GRU":
        k = 2 * H
        values = {"W": W[:k], "R": R[:k], "b_W": halves[0][:k], "b_R": halves[1][:k], "W_h": W[k:],
                  "R_h": R[k:], "b_Wh": halves[0][k:], "b_Rh": halves[1][k:]}
    else:
        rows = np.r_[: 2 * H, 3 * H : 4 * H] if coupled else np.arange(G * H)
        values = {"W": W[rows], "R": R[rows], "b_W": halves[0][rows], "b_R": halves[1][rows]}
    if "P" in feeds:
        values |= {"p_i": feeds["P"][0, :H], "p_o": feeds["P"][0, H : 2 * H]}
        if not coupled:
            values["p_f"] = feeds["P"][0, 2 * H :]
    layer.load_state_dict({f"{name}_l0": a for name, a in values.items()})
    state = (feeds["initial_h"], feeds["initial_c"]) if op == "LSTM" else feeds["initial_h"]
    return layer(feeds["X"], state)[0]


# activation: alpha and beta that differ from the defaults
WITH_NUMBERS = {"Affine": (0.5, 0.1), "Relu": (), "LeakyRelu": (0.3,), "ThresholdedRelu": (0.2,),
                "Tanh": (), "ScaledTanh": (1.2, 0.7), "Sigmoid": (), "HardSigmoid": (0.3, 0.4),
                "Elu": (0.6,), "Softsign": (), "Softplus": ()}
# ONNX Runtime takes 0 where the standard says nothing, and for ThresholdedRelu, where it says 1
HAS_DEFAULTS = [name for name in WITH_NUMBERS
                if name not in ("Affine", "ScaledTanh", "ThresholdedRelu")]


def onnx_numbers(names, numbers):
    """Return activation_alpha and activation_beta of a node, and alphas and betas of ours."""
    given = [numbers.get(name, ()) for name in names]
    theirs = {f"activation_{what}": [float(n[k]) for n in given if len(n) > k]
              for k, what in enumerate(("alpha", "beta")) if any(len(n) > k for n in given)}
    ours = {what: [n[k] if len(n) > k else None for n in given]
            for k, what in enumerate(("alphas", "betas"))}
    return theirs, ours


@pytest.mark.parametrize("activation", WITH_NUMBERS)
def test_an_rnn_of_every_activation_is_onnx_runtimes(onnx_run, activation):
    feeds = onnx_feeds("RNN", scale=0.3)
    theirs, ours = onnx_numbers([activation], WITH_NUMBERS)
    expected = onnx_run("RNN", feeds, activations=[activation], **theirs)
    close(ours_of(cells.onnx_rnn((activation,), **ours), "RNN", feeds), expected)


@pytest.mark.parametrize("activation", HAS_DEFAULTS)
def test_the_defaults_of_alpha_and_beta_are_onnx_runtimes(onnx_run, activation):
    feeds = onnx_feeds("RNN", scale=0.5)
    expected = onnx_run("RNN", feeds, activations=[activation])
    close(ours_of(cells.onnx_rnn((activation,)), "RNN", feeds), expected)


@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("peepholes", [False, True], ids=["", "peepholes"])
@pytest.mark.parametrize("coupled", [False, True], ids=["", "input_forget"])
def test_an_lstm_is_onnx_runtimes(onnx_run, coupled, peepholes, clip):
    feeds = onnx_feeds("LSTM", peepholes)
    more = {} if clip is None else {"clip": clip}
    expected = onnx_run("LSTM", feeds, input_forget=int(coupled), **more)
    definition = cells.onnx_lstm(input_forget=coupled, peepholes=peepholes, clip_c=False, **more)
    close(ours_of(definition, "LSTM", feeds, coupled), expected)


def test_the_standards_clip_bounds_c_on_its_way_to_h():
    feeds = onnx_feeds("LSTM")
    feeds["initial_c"] *= 4
    y = ours_of(cells.onnx_lstm(("Sigmoid", "Tanh", "Affine"), clip=0.4), "LSTM", feeds)
    assert abs(y).max() < 0.4 / (1 + np.exp(-0.4)) + 1e-12
    free = ours_of(cells.onnx_lstm(("Sigmoid", "Tanh", "Affine"), clip=0.4, clip_c=False), "LSTM",
                   feeds)
    assert abs(free).max() > 0.4


def test_numbers_that_onnx_runtime_does_not_have_by_default():
    for name, numbers in (("Affine", (1, 0)), ("ScaledTanh", (1, 1)), ("ThresholdedRelu", (1,))):
        feeds = onnx_feeds("RNN")
        given = onnx_numbers([name], {name: numbers})[1]
        np.testing.assert_array_equal(ours_of(cells.onnx_rnn((name,)), "RNN", feeds),
                                      ours_of(cells.onnx_rnn((name,), **given), "RNN", feeds))


@pytest.mark.parametrize("names", [
    ("HardSigmoid", "Softsign", "ScaledTanh"), ("Sigmoid", "Elu", "Affine"),
    ("Softsign", "LeakyRelu", "Tanh"), ("Sigmoid", "ThresholdedRelu", "HardSigmoid"),
    ("Affine", "Softplus", "Relu")], ids="-".join)
def test_an_lstm_of_other_activations_is_onnx_runtimes(onnx_run, names):
    feeds = onnx_feeds("LSTM", True, scale=0.3)
    theirs, ours = onnx_numbers(names, WITH_NUMBERS)
    expected = onnx_run("LSTM", feeds, activations=list(names), **theirs)
    close(ours_of(cells.onnx_lstm(names, peepholes=True, **ours), "LSTM", feeds), expected)


@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("names", [("Sigmoid", "Tanh"), ("HardSigmoid", "Softsign"),
                                   ("Sigmoid", "LeakyRelu"), ("Softsign", "ScaledTanh")],
                         ids="-".join)
@pytest.mark.parametrize("linear", [False, True], ids=["before", "after"])
def test_a_gru_is_onnx_runtimes(onnx_run, linear, names, clip):
    feeds = onnx_feeds("GRU")
    theirs, ours = onnx_numbers(names, WITH_NUMBERS)
    more = {} if clip is None else {"clip": clip}
    expected = onnx_run("GRU", feeds, activations=list(names), linear_before_reset=int(linear),
                        **theirs, **more)
    close(ours_of(cells.onnx_gru(names, linear, **ours, **more), "GRU", feeds), expected)


def test_an_rnn_with_clip_is_onnx_runtimes(onnx_run):
    feeds = onnx_feeds("RNN")
    expected = onnx_run("RNN", feeds, clip=0.4)
    close(ours_of(cells.onnx_rnn(clip=0.4), "RNN", feeds), expected)


def test_the_zoos_peepholes_and_coupled_gates_are_onnx_runtimes(onnx_run):
    """ONNX has the order i o f c, the zoo i f g o."""
    for name, rows in (("PeepholeLSTM", (0, 2, 3, 1)), ("CoupledLSTM", (0, 3, 1))):
        peepholes = name == "PeepholeLSTM"
        feeds = onnx_feeds("LSTM", peepholes)
        expected = onnx_run("LSTM", feeds, input_forget=int(not peepholes))
        take = np.concatenate([np.arange(r * H, (r + 1) * H) for r in rows])
        values = {"W": feeds["W"][0, take], "U": feeds["R"][0, take],
                  "b": feeds["B"][0, take] + feeds["B"][0, 4 * H + take]}
        if peepholes:
            values |= dict(zip(("p_i", "p_o", "p_f"), np.split(feeds["P"][0], 3), strict=True))
        layer = fastrnn.Layer(getattr(cells, name), I, H, dtype=np.float64)
        layer.load_state_dict({f"{key}_l0": a for key, a in values.items()})
        y, _ = layer(feeds["X"], (feeds["initial_h"], feeds["initial_c"]))
        close(y, expected)


@pytest.mark.parametrize(("call", "error"), [
    (lambda: cells.onnx_lstm(("Sigmoid", "Tanh")), "activations is .*, expected 3 of"),
    (lambda: cells.onnx_lstm(("Sigmoid", "Tanh", "Gelu")), "an activation is 'Gelu', expected one"),
    (lambda: cells.onnx_rnn(("Tanh",), alphas=(0.5,)), "Tanh is given the alpha 0.5"),
    (lambda: cells.onnx_rnn(("Elu",), betas=(0.5,)), "Elu is given the beta 0.5"),
    (lambda: cells.onnx_rnn(("Elu",), alphas=(0.5, 1)), "alphas is .*, expected 1 numbers"),
    (lambda: cells.onnx_rnn(("Elu",), alphas=("a",)), "one of alphas is 'a', expected a number"),
    (lambda: cells.onnx_gru(clip=0), "clip is 0, expected a number above 0"),
])
def test_wrong_arguments(call, error):
    with pytest.raises(ValueError, match=error):
        call()
