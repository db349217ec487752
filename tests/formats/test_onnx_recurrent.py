"""Nodes RNN, LSTM and GRU against the text of the standard, and against ONNX Runtime."""

import numpy as np
import pytest
from onnx_models import (
    DEFAULTS,
    GATES,
    draw,
    graph,
    load,
    model,
    node,
    phi,
    recurrent,
    recurrent_node,
    runtime,
)

pytest.importorskip("onnx")

OPS = ("RNN", "LSTM", "GRU")
DIRECTIONS = ("forward", "reverse", "bidirectional")
OUTPUTS = {"RNN": ["Y", "Y_h"], "GRU": ["Y", "Y_h"], "LSTM": ["Y", "Y_h", "Y_c"]}


def run(op, feeds, outputs=None, **attributes):
    """Run a node whose weights are tensors of the file; return the model and its outputs."""
    weights = {name: feeds[name] for name in ("W", "R", "B", "P") if name in feeds}
    inputs = {name: a for name, a in feeds.items() if name not in weights}
    names = OUTPUTS[op] if outputs is None else list(filter(None, outputs))
    data = model([recurrent_node(op, feeds, outputs, **attributes)], inputs, names, weights)
    loaded = load(data)
    return loaded, loaded(inputs)


def check(op, feeds, functions=None, directions="forward", **attributes):
    """Compare with the standard in float64."""
    settings = {name: attributes[name] for name in (
        "clip", "input_forget", "linear_before_reset") if name in attributes}
    if "clip" in settings:  # a file has float32
        settings["clip"] = float(np.float32(settings["clip"]))
    expected = recurrent(op, feeds, functions, direction=directions, **settings)
    loaded, got = run(op, feeds, direction=directions, **attributes)
    for mine, right in zip(got, expected, strict=True):
        assert mine.shape == right.shape
        np.testing.assert_allclose(mine, right, 1e-11, 1e-11)
    return loaded, got


@pytest.mark.parametrize("lengths", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize("state", [False, True], ids=["", "state"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", OPS)
def test_defaults(op, direction, bias, state, lengths):
    D = 2 if direction == "bidirectional" else 1
    feeds = draw(op, D=D, bias=bias, state=state, lengths=lengths)
    loaded, (y, *final) = check(op, feeds, directions=direction)
    (layers,) = loaded.layers.values()
    assert [type(layer).__name__ for layer in layers] == [op]
    assert not layers[0].training
    if lengths:  # a row of length 0 ends in its initial state
        assert (final[0][:, 2] == feeds.get("initial_h", np.zeros_like(final[0]))[:, 2]).all()
        assert not y[:, :, 2].any()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("linear", [0, 1])
def test_a_gru_that_resets_before_or_after_its_product(direction, linear):
    D = 2 if direction == "bidirectional" else 1
    check("GRU", draw("GRU", D=D, lengths=True), directions=direction, linear_before_reset=linear)
    for bias in (True, False):
        check("GRU", draw("GRU", D=D, bias=bias, lengths=True), directions=direction,
              linear_before_reset=linear, clip=0.5)


@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("peepholes", [False, True], ids=["", "peepholes"])
@pytest.mark.parametrize("coupled", [0, 1])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_options_of_an_lstm(direction, coupled, peepholes, clip):
    D = 2 if direction == "bidirectional" else 1
    more = {} if clip is None else {"clip": clip}
    check("LSTM", draw("LSTM", D=D, lengths=True, peepholes=peepholes), directions=direction,
          input_forget=coupled, **more)


# activation: its alpha and beta, if it has them
NUMBERS = {"Affine": (0.5, 0.125), "Relu": (), "LeakyRelu": (0.25,), "ThresholdedRelu": (0.25,),
           "Tanh": (), "ScaledTanh": (1.25, 0.75), "Sigmoid": (), "HardSigmoid": (0.375, 0.5),
           "Elu": (0.625,), "Softsign": (), "Softplus": ()}


def functions_of(names):
    return [phi(name, *[*NUMBERS[name], None, None][:2]) for name in names]


def numbers_of(names):
    return {f"activation_{what}": [NUMBERS[name][k] for name in names if len(NUMBERS[name]) > k]
            for k, what in enumerate(("alpha", "beta"))
            if any(len(NUMBERS[name]) > k for name in names)}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", NUMBERS)
def test_every_activation(name, direction):
    names = [name, "Softsign"][: 2 if direction == "bidirectional" else 1]
    check("RNN", draw("RNN", D=len(names), lengths=True), functions_of(names), direction,
          activations=names, **numbers_of(names))


@pytest.mark.parametrize(("op", "names"), [
    ("LSTM", ["HardSigmoid", "Softsign", "ScaledTanh", "Sigmoid", "Elu", "Affine"]),
    ("LSTM", ["Sigmoid", "Tanh", "Tanh", "HardSigmoid", "LeakyRelu", "Softplus"]),
    ("GRU", ["HardSigmoid", "ScaledTanh", "Sigmoid", "Elu"]),
    ("RNN", ["Relu", "Sigmoid"]), ("RNN", ["Relu", "Relu"])], ids=str)
def test_activations_that_differ_by_direction(op, names):
    loaded, _ = check(op, draw(op, D=2, lengths=True), functions_of(names), "bidirectional",
                      activations=names, **numbers_of(names))
    (layers,) = loaded.layers.values()
    half = len(names) // 2
    assert len(layers) == (1 if names[:half] == names[half:] else 2)


@pytest.mark.parametrize(("given", "expected"), [
    ({}, (0.2, 0.5)), ({"activation_alpha": [0.25]}, (0.25, 0.5)),
    ({"activation_alpha": [0.25, 9.0, 9.0], "activation_beta": [0.75, 9.0, 9.0]}, (0.25, 0.75))])
def test_numbers_of_activations(given, expected):
    """Numbers may be missing at the end; some exporters write one for each activation."""
    functions = [phi("HardSigmoid", *map(float, map(np.float64, expected))), np.tanh, np.tanh]
    check("LSTM", draw("LSTM"), functions, activations=["hardsigmoid", "tanh", "tanh"], **given)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", OPS)
def test_layout_1_has_the_batch_first(op, direction):
    D = 2 if direction == "bidirectional" else 1
    feeds = draw(op, D=D, lengths=True)
    expected = recurrent(op, feeds, direction=direction)
    turned = {name: a.swapaxes(0, 1) if name in ("X", "initial_h", "initial_c") else a
              for name, a in feeds.items()}
    _, (y, *final) = run(op, turned, direction=direction, layout=1)
    np.testing.assert_allclose(y, expected[0].transpose(2, 0, 1, 3), 1e-11, 1e-11)
    for mine, right in zip(final, expected[1:], strict=True):
        np.testing.assert_allclose(mine, right.swapaxes(0, 1), 1e-11, 1e-11)


@pytest.mark.parametrize("outputs", [["Y"], ["", "Y_h"], ["", "", "Y_c"], ["Y", "", "Y_c"]])
def test_any_output_may_be_absent(outputs):
    feeds = draw("LSTM")
    expected = dict(zip(("Y", "Y_h", "Y_c"), recurrent("LSTM", feeds), strict=True))
    loaded, got = run("LSTM", feeds, outputs, hidden_size=6)
    assert loaded.output_names == tuple(filter(None, outputs))
    for name, a in zip(loaded.output_names, got, strict=True):
        np.testing.assert_allclose(a, expected[name], 1e-11, 1e-11)


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("op", OPS)
def test_a_node_of_opset_1_says_whether_it_gives_every_step(op, wanted):
    feeds = draw(op)
    data = model([recurrent_node(op, feeds, output_sequence=wanted)], feeds, OUTPUTS[op], opset=1)
    for mine, right in zip(load(data)(feeds), recurrent(op, feeds), strict=True):
        np.testing.assert_allclose(mine, right, 1e-11, 1e-11)
    later = model([recurrent_node(op, feeds, output_sequence=wanted)], feeds, OUTPUTS[op])
    with pytest.raises(ValueError, match=r"attributes .'output_sequence'."):
        load(later)


def test_nodes_of_one_name_have_a_layer_each():
    feeds = draw("GRU", bias=False, state=False)
    nodes = [node("GRU", ["X", *weights], ["", h], name="same")
             for weights, h in ((("W", "R"), "h"), (("W2", "R"), "h2"))]
    weights = {name: feeds[name] for name in "WR"} | {"W2": 2 * feeds["W"]}
    loaded = load(model(nodes, {"X": feeds["X"]}, ["h", "h2"], weights))
    assert list(loaded.layers) == ["same", "same'"]
    for mine, W in zip(loaded(feeds["X"]), (feeds["W"], 2 * feeds["W"]), strict=True):
        np.testing.assert_allclose(mine, recurrent("GRU", feeds | {"W": W})[1], 1e-11, 1e-11)


@pytest.mark.parametrize("op", OPS)
def test_nan_past_a_rows_end_does_no_harm(op):
    feeds = draw(op, lengths=True)
    expected = recurrent(op, feeds)
    for row, n in enumerate(feeds["sequence_lens"]):
        feeds["X"][n:, row] = np.nan
    np.testing.assert_allclose(run(op, feeds)[1][0], expected[0], 1e-11, 1e-11)


@pytest.mark.parametrize("sizes", [{"T": 0}, {"B": 0}, {"T": 1, "B": 1, "I": 1, "H": 1}], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_small_sizes(op, sizes):
    feeds = draw(op, D=2, **sizes)
    for mine, right in zip(run(op, feeds, direction="bidirectional")[1], recurrent(op, feeds),
                           strict=True):
        np.testing.assert_allclose(mine, right, 1e-11, 1e-11)


# ---- where weights come from ---------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
def test_weights_may_be_inputs(op):
    feeds = draw(op, D=2, lengths=True, peepholes=op == "LSTM")
    data = model([recurrent_node(op, feeds, direction="bidirectional")], feeds, OUTPUTS[op])
    loaded = load(data)
    assert not loaded.layers
    for mine, right in zip(loaded(feeds), recurrent(op, feeds), strict=True):
        np.testing.assert_allclose(mine, right, 1e-11, 1e-11)


@pytest.mark.parametrize("op", OPS)
def test_weights_may_be_constants_or_folded(op):
    from onnx import numpy_helper

    feeds = draw(op)
    expected = recurrent(op, feeds)
    nodes = [node("Constant", [], ["W"], value=numpy_helper.from_array(feeds["W"])),
             node("Transpose", ["flat"], ["turned"], perm=[1, 0]),  # (H, G*H) becomes (G*H, H)
             node("Unsqueeze", ["turned", "zero"], ["R"]),
             node("Mul", ["halves", "two"], ["B"]), recurrent_node(op, feeds)]
    tensors = {"flat": feeds["R"][0].T, "zero": np.array([0]), "halves": feeds["B"] / 2,
               "two": np.array(2.0)}
    inputs = {name: a for name, a in feeds.items() if name not in ("W", "R", "B")}
    loaded = load(model(nodes, inputs, OUTPUTS[op], tensors))
    assert len(loaded.layers) == 1
    assert not loaded.unused
    for mine, right in zip(loaded(inputs), expected, strict=True):
        np.testing.assert_allclose(mine, right, 1e-11, 1e-11)


@pytest.mark.parametrize("constant", [None, True, False])
def test_weights_may_be_in_the_branches_of_an_if(constant):
    """One branch has an initialiser, the other one from the graph around it."""
    from onnx import numpy_helper

    feeds = draw("GRU", dtype=np.float32)
    other = draw("GRU", dtype=np.float32, seed=1)
    inner = numpy_helper.from_array(other["W"], "W2")
    deep = graph([node("GRU", ["X", "W2", "R", "B"], ["Y2"], name="then", hidden_size=6)], {},
                 ["Y2"])
    deep.initializer.append(inner)
    nested = graph([node("If", ["yes"], ["Z"], name="inner", then_branch=deep,
                         else_branch=graph([node("Identity", ["X"], ["X2"])], {}, ["X2"]))],
                   {}, ["Z"])
    flat = graph([node("GRU", ["X", "W", "R", "B"], ["Y3"], name="else", hidden_size=6)], {},
                 ["Y3"])
    inputs = {"X": feeds["X"]} | ({"which": np.array(True)} if constant is None else {})
    tensors = {name: feeds[name] for name in ("W", "R", "B")} | {"yes": np.array(True)}
    if constant is not None:
        tensors["which"] = np.array(constant)
    data = model([node("If", ["which"], ["Y"], then_branch=nested, else_branch=flat)],
                 inputs, ["Y"], tensors, opset=16)
    loaded = load(data)
    assert loaded.unused == (() if constant is None else (
        "the If.else_branch" if constant else "the If.then_branch",)) + (
        ("inner.else_branch",) if constant is not False else ())
    assert set(loaded.layers) == {None: {"then", "else"}, True: {"then"}, False: {"else"}}[constant]
    feeds = {name: feeds[name] for name in ("X", "W", "R", "B")}
    for which in (True, False) if constant is None else (constant,):
        given = inputs | ({"which": np.array(which)} if constant is None else {})
        expected = recurrent("GRU", feeds | ({"W": other["W"]} if which else {}))[0]
        (y,) = loaded(given)
        np.testing.assert_allclose(y, expected, 2e-5, 2e-5)
        np.testing.assert_allclose(y, runtime(data, given)[0], 2e-5, 2e-5)


def test_float16_computes_in_float32():
    feeds = draw("LSTM")
    half = {name: a.astype(np.float16) for name, a in feeds.items()}
    _, got = run("LSTM", half)
    assert all(a.dtype == np.float16 for a in got)
    for mine, right in zip(got, recurrent("LSTM", {k: a.astype(float) for k, a in half.items()}),
                           strict=True):
        np.testing.assert_allclose(mine, right, 2e-3, 2e-3)


# ---- ONNX Runtime --------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", OPS)
def test_outputs_are_onnx_runtimes(op, direction):
    """Rows have at least one step: of others ONNX Runtime gives zero states."""
    D = 2 if direction == "bidirectional" else 1
    feeds = draw(op, D=D, dtype=np.float32, peepholes=op == "LSTM")
    feeds["sequence_lens"] = np.array([5, 2, 1, 4], np.int32)
    names = {"RNN": ["Softsign"], "GRU": ["HardSigmoid", "Softsign"],
             "LSTM": ["HardSigmoid", "Softsign", "ScaledTanh"]}[op] + DEFAULTS[op] * (D - 1)
    for attributes in ({}, {"activations": names, **numbers_of(names)}):
        data = model([recurrent_node(op, feeds, direction=direction, hidden_size=6, **attributes)],
                     feeds, OUTPUTS[op])
        for mine, theirs in zip(load(data)(feeds), runtime(data, feeds), strict=True):
            np.testing.assert_allclose(mine, theirs, 2e-5, 2e-5)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "attributes", "error"), [
    ({}, {"hidden_size": 5}, "its hidden_size is 5, but R has the shape"),
    ({}, {"direction": "sideways"}, "its direction is 'sideways'"),
    ({}, {"activations": ["Tanh"]}, "its activations are .'Tanh',., expected 3"),
    ({}, {"activations": ["Sigmoid", "Tanh", "Gelu"]}, "an activation is 'Gelu'"),
    ({}, {"activation_alpha": [1.0]}, "its activation_alpha has 1 numbers, expected at most 0"),
    ({}, {"clip": -1.0}, "its clip is -1"),
    ({}, {"layout": 2}, "its attribute 'layout' is 2"),
    ({}, {"clip": 1}, "its attribute 'clip' is not a number"),
    ({}, {"surprise": 1}, "it has the attributes .'surprise'."),
    ({}, {"direction": "bidirectional"}, "its R has the shape"),
    ({"W": np.zeros((1, 24, 0))}, {}, "its W has the shape"),
    ({"W": np.zeros((1, 23, 3))}, {}, "its W has the shape"),
    ({"R": np.zeros((1, 24, 0))}, {}, "its R has the shape"),
    ({"R": np.zeros(3)}, {}, "its R has the shape"),
    ({"B": np.zeros((1, 24))}, {}, "its B has the shape"),
    ({"P": np.zeros((1, 24))}, {}, "its P has the shape"),
    ({"B": np.zeros((1, 48), np.float32)}, {}, "its B is float32"),
    ({"W": np.zeros((1, 24, 3), int)}, {}, "its W is int64"),
])
def test_weights_and_attributes_that_do_not_fit_are_refused_at_load(change, attributes, error):
    with pytest.raises(ValueError, match=f"load: the model .*node 'the LSTM' .LSTM.: {error}"):
        run("LSTM", draw("LSTM", bias=False) | change, **attributes)


@pytest.mark.parametrize(("change", "error"), [
    ({"X": np.zeros((5, 4, 2))}, "its X has the shape"), ({"X": np.zeros((5, 3))}, "its X has the"),
    ({"X": np.zeros((5, 4, 3), np.float32)}, "its X is float32"),
    ({"initial_h": np.zeros((1, 3, 6))}, "its initial_h has the shape"),
    ({"initial_c": np.zeros((2, 4, 6))}, "its initial_c has the shape"),
    ({"initial_c": np.zeros((1, 4, 6), int)}, "its initial_c is int64, expected float64"),
    ({"sequence_lens": np.array([1, 2, 3, 6], np.int32)}, "its sequence_lens is 1 to 6, expected"),
    ({"sequence_lens": np.array([1, 2, -3, 4], np.int32)}, "its sequence_lens is -3 to 4"),
    ({"sequence_lens": np.ones(3, np.int32)}, "its sequence_lens is int32 .3,."),
    ({"sequence_lens": np.ones(4, np.float32)}, "its sequence_lens is float32"),
])
def test_inputs_that_do_not_fit_are_refused_in_a_call(change, error):
    with pytest.raises((ValueError, TypeError),
                       match=f"OnnxModel: the model, node 'the LSTM' .LSTM.: {error}"):
        run("LSTM", draw("LSTM", lengths=True) | change)


def test_the_tables_agree():
    from fastrnn.formats.onnx_recurrent import RECURRENT

    assert {op: kind.gates for op, kind in RECURRENT.items()} == GATES
    assert {op: list(kind.activations) for op, kind in RECURRENT.items()} == DEFAULTS
