"""What a definition says: states, sizes, weights, vectors, widths, and their numbers."""

import copy
import pickle

import cases
import numpy as np
import pytest

import fastrnn
from fastrnn import cells
from fastrnn.cells import Definition, cell
from fastrnn.cells.definition import Initial, Size, State, fold
from fastrnn.cells.grammar import Name, Product, parse, post_order

LSTM = """
i, f, g, o = W x + b_ih + U h + b_hh
c = sigmoid(f) * c + sigmoid(i) * tanh(g)
h = sigmoid(o) * tanh(c)
"""


def states(definition):
    return [(state.name, state.width) for state in definition.states]


def shapes(definition):
    return {w.name: (w.blocks, w.rows, w.columns) for w in definition.weights.values()}


def vectors(definition):
    return {v.name: (v.blocks, v.width, v.bias) for v in definition.vectors.values()}


# ----------------------------------------------------------------------------------------- a whole


def test_an_lstm():
    lstm = cell(LSTM, name="LSTM", paper="Hochreiter and Schmidhuber 1997")
    assert (lstm.text, lstm.name, lstm.paper) == (LSTM, "LSTM", "Hochreiter and Schmidhuber 1997")
    assert states(lstm) == [("h", "H"), ("c", "H")]
    assert shapes(lstm) == {"W": (4, "H", "I"), "U": (4, "H", "H")}
    assert vectors(lstm) == {"b_ih": (4, "H", True), "b_hh": (4, "H", True)}
    assert (lstm.output, lstm.output_width) == ("h", "H")
    assert dict(lstm.sizes) == dict(lstm.constants) == {}
    assert [len(equation.targets) for equation in lstm.equations] == [4, 1, 1]
    assert lstm.equal_sizes == ()
    assert all(w.kind == "plain" and w.learned and w.initial == Initial("uniform")
               for w in lstm.weights.values())
    assert repr(lstm) == "<Definition 'LSTM': h, c>"


def test_a_cell_of_everything():
    definition = cell("""
        size P = H // 2
        size Q = 3
        constant alpha = 0.5
        learned p = 0.1
        learned q[Q] = normal(0, alpha)
        weight U = orthogonal
        weight V = blocks(Q)
        fixed R = sparse(0.1, 0.9)
        state s[Q]
        output y
        a, z = W x + U h + b
        s = V2 (q * s) + S x
        r = R r + tanh(a * p)
        h[P] = T (r * sigmoid(z) + V r)
        y = alpha * (K s) + mean(h) * dropout(0.1)
    """)
    assert dict(definition.sizes) == {"P": Size("P", "H", 1, 2), "Q": Size("Q", "1", 3)}
    assert dict(definition.constants) == {"alpha": 0.5}
    assert shapes(definition) == {
        "W": (2, "H", "I"), "U": (2, "H", "P"), "V2": (1, "Q", "Q"), "S": (1, "Q", "I"),
        "R": (1, "H", "H"), "T": (1, "P", "H"), "V": (1, "H", "H"), "K": (1, "H", "Q")}
    assert list(definition.weights) == ["W", "U", "V2", "S", "R", "V", "T", "K"]
    assert vectors(definition) == {
        "b": (2, "H", True), "q": (1, "Q", False), "p": (1, "H", False)}
    assert states(definition) == [("s", "Q"), ("r", "H"), ("h", "P")]
    assert (definition.output, definition.output_width) == ("y", "H")
    weights = definition.weights
    assert weights["U"].initial == Initial("orthogonal")
    assert (weights["V"].kind, weights["V"].arguments) == ("blocks", ("Q",))
    assert weights["R"].initial == Initial("sparse", (0.1, 0.9))
    assert not weights["R"].learned
    assert weights["V"].learned
    assert definition.vectors["q"].initial == Initial("normal", (0.0, "alpha"))
    assert definition.vectors["p"].initial == Initial("number", (0.1,))
    assert definition.vectors["b"].initial == Initial("uniform")
    assert definition.resolve(5, 6) == {"I": 5, "H": 6, "P": 3, "Q": 3}
    assert [call.function for call in definition.masks] == ["dropout"]


# ------------------------------------------------------------------------------- states, the output


@pytest.mark.parametrize(("text", "expected", "output"), [
    ("h = W x + h", ["h"], "h"),
    ("h = W x + U h\ny = V h\noutput y", ["h"], "y"),
    ("y = W x + U y", ["y"], "y"),
    ("a, c = W x + U c\ny, z = V a + V2 c\nc2 = y + z", ["c"], "c2"),
    ("e = W x + d\nd, c = V e + U c + T d", ["d", "c"], "d"),
    ("c = W x + c * h\nh = tanh(c)", ["h", "c"], "h"),
    ("c = W x + c * y\ny = tanh(c)", ["y", "c"], "y"),
    ("e = W x + d + e\nd = c + h\nc = e\nh = d", ["h", "e", "d", "c"], "h"),
    ("h = c + V h\nc = W x", ["h", "c"], "h"),
    ("h1 = W x + U h1\nh = V h1 + T h", ["h", "h1"], "h"),
    ("a, z = W x + U z\nh = a + z", ["z"], "h"),
])
def test_a_name_that_is_read_before_its_assignment_is_a_state(text, expected, output):
    definition = cell(text)
    assert [name for name, _ in states(definition)] == expected
    assert definition.output == output


def test_a_name_of_several_targets_may_be_the_output():
    definition = cell("y, a = W x + U a + V y")
    assert definition.output == "y"
    assert states(definition) == [("y", "H"), ("a", "H")]


# ------------------------------------------------------------------------------------------- biases


@pytest.mark.parametrize(("equation", "biases"), [
    ("h = W x + U h + b", {"b"}),
    ("h = tanh(b + W x + U h)", {"b"}),
    ("h = W x - b + U h", {"b"}),
    ("h = W x + (-b) + U h", {"b"}),
    ("h = W x + -(b_1 - bias) + h", {"b_1", "bias"}),
    ("h = (W x + b1) + (U h + b2)", {"b1", "b2"}),
    ("h = tanh(W x + b1 + sigmoid(h) * (U h + b2))", {"b1", "b2"}),
    ("h = sigmoid(h) * (U h) + x * (W x) + b", {"b"}),
    ("h = norm(W x) + norm(U h) + b", {"b"}),
    ("h = b + 0.5 * rms_norm(W x) + h", {"b"}),
    ("h = W (x + V x + b) + h", {"b"}),
    ("h = W x + b + tanh(U h + b2) + h", {"b", "b2"}),
])
def test_a_term_of_a_sum_with_a_product_that_begins_with_b_is_a_bias(equation, biases):
    definition = cell(equation)
    assert set(definition.vectors) == biases
    assert all(vector.bias for vector in definition.vectors.values())


def test_many_signs_take_the_time_of_one_pass():
    """A hundred times as many take a hundred times as long, and not the square of it."""
    times = []
    for count in (600, 60_000):
        definition = cell("a, z = W x + U h + " + "-" * count + "b\nh = tanh(a) * z")
        times.append(cases.cpu_time(lambda of=definition: fastrnn.Layer(of, 3, 4)))
    assert times[1] < 1000 * times[0]


@pytest.mark.parametrize(("sum_", "like"), [
    ("W x + U h + -b", "W x + U h - b"), ("-b + W x + U h", "W x - b + U h"),
    ("W x + - -b + U h", "W x + b + U h"), ("W x - -b + U h", "W x + b + U h"),
    ("-(W x + -b) - U h", "b - W x - U h"), ("-(-b - W x) + U h", "b + W x + U h")])
@pytest.mark.parametrize("targets", ["a, z", "a"])
def test_signs_before_a_bias(sum_, like, targets):
    text = "{} = {}\nh = tanh(a)" + " * z" * (targets == "a, z")
    layers = [fastrnn.Layer(cell(text.format(targets, of)), 3, 4, dtype=np.float64, seed=0)
              for of in (sum_, like)]
    layers[1].load_state_dict(layers[0].state_dict())
    x = np.random.default_rng(0).standard_normal((5, 2, 3))
    found = []
    for layer in layers:
        layer.b_l0[:] = 0.3
        y, _, p = layer.forward(x)
        found.append([y, p.backward(np.ones_like(y))[0], *layer.grads.values()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_what_is_declared_or_assigned_is_no_bias():
    definition = cell("""
        constant beta = 0.5
        learned b = 0
        base = tanh(V x)
        h = W x + U h + beta + b + base
    """)
    assert vectors(definition) == {"b": (1, "H", False)}


def test_a_fixed_matrix_may_decide_comparisons_only():
    definition = cell("fixed V = orthogonal\nh = where(V x > 0, W x, h)")
    assert [w.learned for w in definition.weights.values()] == [False, True]


def test_row_blocks():
    definition = cell("r, z = W x - U h + b\nn = V x + T (r * h) + b_n\nh = z * n + (1 - z) * h")
    assert shapes(definition) == {
        "W": (2, "H", "I"), "U": (2, "H", "H"), "V": (1, "H", "I"), "T": (1, "H", "H")}
    assert vectors(definition) == {"b": (2, "H", True), "b_n": (1, "H", True)}


def test_a_product_inside_an_operand_has_one_block():
    definition = cell("a, z = W (V x + c) + b\nc = a * z")
    assert shapes(definition) == {"V": (1, "H", "I"), "W": (2, "H", "H")}


# ------------------------------------------------------------------------------------------- widths


def width_of(definition, name):
    """Return the widths of all occurrences of a name."""
    return {width for node, width in definition.widths.items()
            if isinstance(node, Name) and node.name == name}


@pytest.mark.parametrize(("text", "expected"), [
    ("h = W x + U h", {"x": "I", "h": "H"}),
    ("learned p = 0\nh = W (x * p) + h", {"x": "I", "p": "I"}),
    ("learned p = 0\nh = W x + p * h", {"p": "H"}),
    ("size P = H\nh[P] = W x + U h", {"h": "P"}),
    ("size P = H\nc[P] = W x + c\nd = c * 2\nh = V d + h", {"c": "P", "d": "P", "h": "H"}),
    ("size P = H\nlearned p[P] = 0\na = W x + p\nh = V a + h", {"a": "P", "p": "P"}),
    ("size P = H\nstate s[P]\ns = W x + s\nh = V s + h", {"s": "P", "h": "H"}),
    ("size P = H\nstate s\ns[P] = W x + s\nh = V s + h", {"s": "P", "h": "H"}),
    ("h = W x + U old\nold = x", {"old": "I", "x": "I"}),
    ("h = W (x * dropout(0.5)) + h", {"x": "I"}),
    ("size P = H\na[P] = W x\nh = V where(a > 0, 1, a) + h", {"a": "P"}),
    ("size P = H\na[P] = W x\nh = V (U a * norm(h) + 0 * h) + h", {"a": "P", "h": "H"}),
    ("m = mean(h)\nh = W x + m * h", {"m": "1", "h": "H"}),
    ("size P = 2\na[P] = mean(h)\nh = W x + V a + h", {"a": "P"}),
    ("m = mean(h)\nn = exp(m) + 1\nh = W x + n * h", {"m": "1", "n": "1"}),
    ("size P = H\nh = W x + U h + V s\ns = a * s\na[P] = T x + a", {"s": "P", "a": "P"}),
    ("size P = H\nh = W x + sum(a) * h\na[P] = T x + a", {"a": "P", "h": "H"}),
])
def test_widths_of_names(text, expected):
    definition = cell(text)
    assert {name: width_of(definition, name) for name in expected} == {
        name: {width} for name, width in expected.items()}


def test_every_node_has_a_width():
    definition = cell("constant a = 2\nm = mean(h)\nh = W (x * -2 ** a) + clip(h, 0, a) * m + h")
    nodes = [node for equation in definition.equations
             for node in post_order(equation.expression)]
    assert set(nodes) == set(definition.widths)
    product = next(node for node in nodes if isinstance(node, Product))
    assert definition.widths[product] == "H"
    assert definition.widths[product.operand] == "I"
    assert width_of(definition, "a") == {"1"}


def test_a_scalar_becomes_wide_in_a_state_and_in_the_output():
    definition = cell("size P = H\nstate s[P]\nm = mean(x)\nh = m * 2 + sum(s)\ns = m")
    assert definition.target_widths == {"m": "1", "h": "H", "s": "P"}
    assert definition.output_width == "H"
    assert states(definition) == [("s", "P")]
    assert cell("h = sum(x) + sum(h)").target_widths == {"h": "H"}


def test_the_output_is_h_wide_unless_the_text_says_something_else():
    assert cell("h = 0.9 * h + x").equal_sizes == (("I", "H"),)
    assert cell("h = 0.9 * h + x").output_width == "H"
    assert cell("h[I] = 0.9 * h + x").equal_sizes == ()
    assert cell("h[I] = 0.9 * h + x").output_width == "I"
    assert cell("state h[I]\nh = 0.9 * h + x").output_width == "I"
    assert states(cell("s = 0.9 * s + x\nh = W s")) == [("s", "I")]
    assert cell("size P = H\na[P] = W x + a\nh = tanh(a)").output_width == "P"


def test_one_matrix_may_be_used_several_times():
    definition = cell("a = W x + U h\nb2 = W (x * x) + U a\nh = U (a * b2)")
    assert shapes(definition) == {"W": (1, "H", "I"), "U": (1, "H", "H")}
    definition = cell("h = W x + U h\ny = W c + U h\nc = x + 0 * c\noutput y")
    assert width_of(definition, "c") == {"I"}


def test_a_matrix_decides_a_width_that_nothing_else_does():
    definition = cell("h = W x + U c\nc = 0.5 * c\nd = W c + h\ny = d\noutput y")
    assert width_of(definition, "c") == {"I"}
    assert shapes(definition)["U"] == (1, "H", "I")


# ---------------------------------------------------------------------------------- equal I and H


def test_the_input_may_meet_what_is_h_wide_if_both_numbers_are_equal():
    definition = cell("z = sigmoid(W x + U h)\nh = z * h + (1 - z) * x", name="Skip")
    assert definition.equal_sizes == (("I", "H"),)
    assert set(shapes(definition).values()) == {(1, "H", "H")}
    assert width_of(definition, "x") == {"H"}
    assert definition.resolve(4, 4) == {"I": 4, "H": 4}
    with pytest.raises(ValueError, match=r"I is 3 and H is 4, expected equal numbers: values of "
                       r"both widths meet in line 2, column \d+ of Skip"):
        definition.resolve(3, 4)
    assert cell("h = W x + U h").resolve(3, 4) == {"I": 3, "H": 4}


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(("default", "expected"), [
    ("H", 6), ("I", 5), ("7", 7), ("H * 3", 18), ("3 * H", 18), ("H // 2", 3), ("I // 2", 2),
    ("4 * 2", 8), ("9 // 2", 4), ("Q", 2), ("Q * 2", 4)])
def test_sizes_by_default(default, expected):
    definition = cell(f"size Q = 2\nsize P = {default}\nc[Q] = V c + S h\nh[P] = W x + U h + T c")
    assert definition.resolve(5, 6) == {"I": 5, "H": 6, "Q": 2, "P": expected}
    assert definition.resolve(5, 6, {"P": 9}) == {"I": 5, "H": 6, "Q": 2, "P": 9}


def test_a_size_follows_one_that_is_given():
    definition = cell("size Q = H\nsize P = Q // 2\nc[Q] = V c + S h\nh[P] = W x + U h + T c")
    assert definition.resolve(5, 6, {"Q": 20}) == {"I": 5, "H": 6, "Q": 20, "P": 10}


@pytest.mark.parametrize(("arguments", "error", "match"), [
    ((0, 4), ValueError, "I is 0, expected a whole number from 1 on"),
    ((3, -1), ValueError, "H is -1, expected a whole number from 1 on"),
    ((3, 4.0), TypeError, "H is 4.0, expected a whole number"),
    ((3, True), ValueError, "H is True, expected a whole number"),
    ((3, 4, {"P": "2"}), TypeError, "P is '2', expected a whole number"),
    ((3, 4, {"P": 0}), ValueError, "P is 0, expected a whole number from 1 on"),
    ((3, 4, {"R": 2}), ValueError, "'R' is no further size of Cell, expected one of: P"),
    ((3, 4, {"H": 2}), ValueError, "'H' is no further size of Cell"),
    ((3, 1), ValueError, "the default of P is H // 2, which is 0 for H = 1"),
])
def test_sizes_that_do_not_fit(arguments, error, match):
    with pytest.raises(error, match=match):
        cell("size P = H // 2\nh[P] = W x + U h").resolve(*arguments)


def test_blocks_go_into_rows_and_columns():
    definition = cell("size n = 2\nweight U = blocks(n)\nh = W x + U h")
    assert definition.resolve(3, 4)["n"] == 2
    with pytest.raises(ValueError, match="H is 5, expected a multiple of 2: U has as many blocks"):
        definition.resolve(3, 5)
    with pytest.raises(ValueError, match="H is 4, expected a multiple of 3"):
        definition.resolve(3, 4, {"n": 3})
    columns = cell("weight W = blocks(2)\nh = W x + h")
    with pytest.raises(ValueError, match="I is 3, expected a multiple of 2"):
        columns.resolve(3, 4)


def test_constants_by_default_and_given():
    definition = cell("constant a = 0.5\nconstant e = -2\nh = W x + a * dropout(a) * h + e")
    assert definition.numbers() == {"a": 0.5, "e": -2.0}
    assert definition.numbers({"a": 0}) == {"a": 0.0, "e": -2.0}
    assert dict(definition.constants) == {"a": 0.5, "e": -2.0}


@pytest.mark.parametrize(("constants", "error", "match"), [
    ({"q": 1}, ValueError, "'q' is no constant of Cell, expected one of: p, low"),
    ({"p": "0.1"}, ValueError, "p is '0.1', expected a finite number"),
    ({"p": None}, TypeError, "p is None, expected a number"),
    ({"p": float("nan")}, ValueError, "p is nan, expected a finite number"),
    ({"p": 1.0}, ValueError, r"the probability is 1, expected 0 <= p < 1 \(line 3 of Cell\)"),
    ({"low": 3}, ValueError, r"clip's bounds are 3 and 2, expected low <= high \(line 3"),
    ({"low": 1e200}, ValueError, "expected low <= high|finite"),
])
def test_constants_that_do_not_fit(constants, error, match):
    definition = cell("constant p = 0.5\nconstant low = 0\n"
                      "h = W x + dropout(p) * clip(h, low, 2)")
    with pytest.raises(error, match=match):
        definition.numbers(constants)


@pytest.mark.parametrize(("text", "expected"), [
    ("1 + 2 * a", 7.0), ("-a ** 2", -9.0), ("(1 - a) / 4", -0.5), ("a ** 0.5", 3**0.5),
    ("a", 3.0), ("- - 2", 2.0)])
def test_arithmetic_of_numbers_and_constants(text, expected):
    _, (equation,) = parse(f"y = {text}")
    assert fold(equation.expression, {"a": 3.0}) == expected


@pytest.mark.parametrize("text", ["1 / 0", "(-1) ** 0.5", "1e300 ** 2", "0 ** -1"])
def test_arithmetic_without_a_result(text):
    _, (equation,) = parse(f"y = {text}")
    value = fold(equation.expression, {})
    assert value != value


def test_what_is_no_arithmetic_has_no_number():
    _, (equation,) = parse("y = 1 + tanh(1)")
    with pytest.raises(TypeError, match="Call is no number"):
        fold(equation.expression, {})


# ---------------------------------------------------------------------------------------- an object


def test_a_definition_never_changes():
    definition = cell("constant a = 1\nsize P = H\nh[P] = W x + U h + a + b")
    for name in ("text", "weights", "anything"):
        with pytest.raises(AttributeError, match="never changes"):
            setattr(definition, name, 1)
    with pytest.raises(AttributeError, match="never changes"):
        del definition.text
    for held in (definition.sizes, definition.constants, definition.weights, definition.vectors,
                 definition.widths):
        with pytest.raises(TypeError):
            held["z"] = 1


def test_a_definition_is_itself_and_pickles_as_its_text():
    definition = cell(LSTM, name="L", paper="P")
    again = pickle.loads(pickle.dumps(definition))
    assert (again.text, again.name, again.paper) == (LSTM, "L", "P")
    assert states(again) == states(definition)
    assert again == definition
    assert len({definition, again}) == 1
    assert definition not in (cell(LSTM, name="M"), cell(f"{LSTM}# the same", name="L"), LSTM)
    assert copy.copy(definition) is copy.deepcopy(definition) is definition
    assert len(pickle.dumps(definition)) < 400


def test_names_of_cells_with_kernels_are_taken():
    for name in cells.CELLS:
        with pytest.raises(ValueError, match=f"cell: name is '{name}', expected another one"):
            cell("h = tanh(W x + U h)", name=name)


@pytest.mark.parametrize(("term", "message"), [
    ("h / k", "the divisor is 0, expected another number"),
    ("h * k ** (-2)", r"0 \*\* -2 is no number"),
])
def test_a_constant_that_would_divide_by_zero_is_refused_by_the_layer(term, message):
    kind = cell(f"constant k = 1\nh = W x + {term}")
    with pytest.raises(ValueError, match=f"Layer: {message}"):
        fastrnn.Layer(kind, 3, 4, k=0)


@pytest.mark.parametrize(("power", "value"), [
    ("0 ** 0.5", 0), ("0 ** 0", 1), ("(-2) ** 3", -8), ("(-2) ** (-1)", -0.5),
    ("2 ** 0.5", 2 ** 0.5),
])
def test_powers_of_numbers(power, value):
    layer = fastrnn.Layer(cell(f"h = 0 * h + x + {power}"), 1, 1, dtype="float64")
    np.testing.assert_allclose(layer(np.zeros((1, 1, 1)))[0].item(), value, rtol=1e-15)


@pytest.mark.parametrize(("numbers", "expected"), [
    (("clip", 1.0), "1, expected 2 with 'clip'"), (("tanh", 1.0), "1, expected 0 with 'tanh'"),
    (("hard_sigmoid", 1, 2, 3), "3, expected 0 to 2 with 'hard_sigmoid'")])
def test_elman_counts_its_numbers(numbers, expected):
    with pytest.raises(ValueError, match=f"elman: numbers are {expected}"):
        cells.elman(*numbers)
    assert cells.elman("hard_sigmoid", 0.5).states == cells.elman("tanh").states


def test_the_package_has_the_public_names():
    assert cells.cell is cell
    assert isinstance(cell("h = W x + h"), Definition)
    assert State("h", "H") == cell("h = W x + h").states[0]
    with pytest.raises(AttributeError, match="no attribute 'cel'"):
        _ = cells.cel


def test_a_definition_of_ten_lines_takes_a_fourth_of_a_module_of_python():
    text = "\n".join([
        "size P = H // 2", "constant alpha = 0.5", "learned p = 0.1", "weight U = orthogonal",
        "i, f, g, o = W x + U h + b",
        "c = sigmoid(f + p * c) * c + sigmoid(i + p * c) * tanh(g) * dropout(0.1)",
        "m = mean(c)", "q = sigmoid(o) * tanh(c - m) * alpha", "r = where(q > 0, q, 0.1 * q)",
        "h[P] = R r"])
    assert cases.cpu_time(lambda: cell(text), 20) < 0.25 * cases.cpu_time(cases.compiling, 5)
