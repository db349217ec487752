"""The text of a definition to its syntax tree, and what the parser refuses."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrnn.cells import DefinitionError, cell
from fastrnn.cells.grammar import (
    DEEPEST,
    FUNCTIONS,
    LONGEST,
    Binary,
    Call,
    Compare,
    Name,
    Negative,
    Number,
    Product,
    children,
    parse,
    post_order,
)


def show(node):
    """Return a tree with all its parentheses."""
    match node:
        case Number(value):
            return f"{value:g}"
        case Name(name):
            return name
        case Negative(operand):
            return f"(-{show(operand)})"
        case Binary(operator, left, right) | Compare(operator, left, right):
            return f"({show(left)} {operator} {show(right)})"
        case Product(weight, operand):
            return f"[{weight} {show(operand)}]"
        case Call(function, arguments):
            return f"{function}({', '.join(map(show, arguments))})"
    raise TypeError(node)


def tree(expression):
    _, equations = parse(f"y = {expression}")
    return show(equations[0].expression)


# ------------------------------------------------------------------------------------- expressions


@pytest.mark.parametrize(("text", "expected"), [
    ("a + b * c", "(a + (b * c))"),
    ("a - b - c", "((a - b) - c)"),
    ("a / b / c", "((a / b) / c)"),
    ("a - b + c * d / e", "((a - b) + ((c * d) / e))"),
    ("(a + b) * c", "((a + b) * c)"),
    ("-a ** 2", "(-(a ** 2))"),
    ("a ** -2", "(a ** (-2))"),
    ("a ** b ** c", "(a ** (b ** c))"),
    ("a ** b * c", "((a ** b) * c)"),
    ("- -a", "(-(-a))"),
    ("a - -b", "(a - (-b))"),
    ("-a * b", "((-a) * b)"),
    ("a * -b", "(a * (-b))"),
    ("1e-3 + .5 + 2. + 1E+2", "(((0.001 + 0.5) + 2) + 100)"),
    ("W x", "[W x]"),
    ("W @ x", "[W x]"),
    ("W x + U h", "([W x] + [U h])"),
    ("W (r * h)", "[W (r * h)]"),
    ("W(r * h)", "[W (r * h)]"),
    ("W @ (r * h)", "[W (r * h)]"),
    ("W tanh(h)", "[W tanh(h)]"),
    ("W (V (x))", "[W [V x]]"),
    ("a * W x ** 2", "(a * ([W x] ** 2))"),
    ("-W x", "(-[W x])"),
    ("W x * U h", "([W x] * [U h])"),
    ("tanh(-a)", "tanh((-a))"),
    ("min(a, max(b, 1))", "min(a, max(b, 1))"),
    ("where(a + 1 < b * 2, a, b)", "where(((a + 1) < (b * 2)), a, b)"),
    ("where(a >= b, -a, b)", "where((a >= b), (-a), b)"),
    ("where(a == b, where(a != 1, a, b), c)", "where((a == b), where((a != 1), a, b), c)"),
])
def test_what_binds_stronger(text, expected):
    assert tree(text) == expected


def test_arguments_that_are_left_out_have_their_defaults():
    assert tree("leaky_relu(a)") == "leaky_relu(a, 0.01)"
    assert tree("leaky_relu(a, 0.3)") == "leaky_relu(a, 0.3)"
    assert tree("hard_sigmoid(a)") == "hard_sigmoid(a, 0.2, 0.5)"
    assert tree("hard_sigmoid(a, 0.1)") == "hard_sigmoid(a, 0.1, 0.5)"
    assert tree("elu(a)") == "elu(a, 1)"
    assert tree("thresholded_relu(a)") == "thresholded_relu(a, 1)"
    assert tree("norm(a) + rms_norm(a)") == "(norm(a, 1e-05) + rms_norm(a, 1e-05))"


def test_every_function_has_as_many_defaults_as_arguments_that_may_be_left_out():
    for name, function in FUNCTIONS.items():
        assert name == function.name
        assert len(function.defaults) == function.most - function.least
        assert 0 <= function.values <= function.least


def test_places_are_those_of_the_text():
    _, (equation,) = parse("\n  # a comment\r\n\n\th = W x +\t(U\n h) # end")
    assert equation.at == (4, 2)
    plus = equation.expression
    assert plus.at == (4, 10)
    assert plus.left.at == (4, 6)
    assert plus.left.operand.at == (4, 8)
    assert plus.right.at == (4, 13)  # a parenthesis is no node
    assert plus.right.operand.at == (5, 2)


def test_signs_stand_where_they_are_written():
    _, (equation,) = parse("h = - -x")
    outer = equation.expression
    assert (outer.at, outer.operand.at, outer.operand.operand.at) == ((1, 5), (1, 7), (1, 8))


def test_lines_comments_and_parentheses_that_go_on():
    text = "a = W x # b\n\n   \r\n# c = 3\rh = (a\n + # d\n\n U h)\n"
    _, equations = parse(text)
    assert [(e.targets[0].name, show(e.expression)) for e in equations] == [
        ("a", "[W x]"), ("h", "(a + [U h])")]
    assert equations[1].at.line == 5


def test_targets():
    _, (equation,) = parse("a, z[P] , o = W x")
    assert [(t.name, t.size) for t in equation.targets] == [("a", None), ("z", "P"), ("o", None)]


@pytest.mark.parametrize(("text", "expected"), [
    ("size P = H", ("size", "P", None, "H")),
    ("size P = H // 2", ("size", "P", None, "(H // 2)")),
    ("size P = 3 * I", ("size", "P", None, "(3 * I)")),
    ("constant c = -0.5", ("constant", "c", None, "(-0.5)")),
    ("learned p[P] = 0", ("learned", "p", "P", "0")),
    ("state s[P]", ("state", "s", "P", None)),
    ("output y", ("output", "y", None, None)),
    ("weight U", ("weight", "U", None, None)),
    ("weight U = orthogonal", ("weight", "U", None, "orthogonal")),
])
def test_declarations(text, expected):
    (line,), _ = parse(f"{text}\nh = W x")
    value = None if line.value is None else show(line.value)
    assert (line.kind, line.name, line.size, value) == expected


def test_arguments_of_a_declaration():
    (line,), _ = parse("learned p = uniform(-1,\n gamma)\nh = W x")
    assert isinstance(line.value, Call)
    assert show(line.value) == "uniform((-1), gamma)"


def test_the_words_of_declarations_are_names_elsewhere():
    _, equations = parse("state = W x\noutput, size = W x + U state\nh = weight * learned")
    assert [e.targets[0].name for e in equations] == ["state", "output", "h"]


# --------------------------------------------------------------------------------- long texts, deep


def test_post_order_is_the_order_of_the_text_and_operands_come_first():
    _, (equation,) = parse("h = W (a + b) * c - -d")
    seen = set()
    names = []
    for node in post_order(equation.expression):
        assert all(child in seen for child in children(node))
        seen.add(node)
        names += [node.name] if isinstance(node, Name) else []
    assert names == ["a", "b", "c", "d"]


@pytest.mark.parametrize("operator", [" + ", " - ", " * ", " / "])
def test_thousands_of_terms(operator):
    definition = cell("h = W x" + f"{operator}h" * 10_000)
    assert definition.states[0].name == "h"
    assert len(definition.widths) == 20_002  # W x has two nodes


def test_thousands_of_signs():
    assert cell("h = W x + " + "-" * 50_000 + "h").output == "h"


@pytest.mark.parametrize(("before", "behind"), [
    ("(", ")"), ("tanh(", ")"), ("V (", ")"), ("1 + (", ")"), ("where(h < ", ", h, h)"),
    ("-h ** (", ")"), ("min(h, ", ")")])
@pytest.mark.parametrize("depth", [DEEPEST // 2, DEEPEST + 1, 1000])
def test_depth(before, behind, depth):
    text = f"h = W x + {before * depth}h{behind * depth}"
    if depth > DEEPEST:
        with pytest.raises(DefinitionError, match=f"nests deeper than {DEEPEST} here"):
            cell(text)
    else:
        assert cell(text).output == "h"


def test_a_chain_of_exponents_has_the_same_limit():
    assert cell("h = W x + h" + " ** h" * DEEPEST).output == "h"
    with pytest.raises(DefinitionError, match="nests deeper"):
        cell("h = W x + h" + " ** h" * (DEEPEST + 1))


def test_the_length_of_a_text_is_limited():
    start = "h = W x + h"
    assert cell(start + " " * (LONGEST - len(start))).output == "h"
    with pytest.raises(DefinitionError, match=f"has {LONGEST + 1} characters, expected at most"):
        cell(start + " " * (LONGEST + 1 - len(start)))


def test_thousands_of_equations():
    lines = ["a0 = W x + h"] + [f"a{i} = tanh(a{i - 1}) + a{i}" for i in range(1, 3000)]
    definition = cell("\n".join([*lines, "h = a2999"]))
    assert len(definition.states) == 3000


# ------------------------------------------------------------------------------------------- errors


def test_an_error_shows_the_line_and_the_place_below_it():
    with pytest.raises(DefinitionError) as caught:
        parse("a = W x\n\th = sigmod(a)  # here\n")
    assert str(caught.value).splitlines() == [
        "'sigmod' is no function, and a matrix of this name needs: weight sigmod; did you mean "
        "'sigmoid'? (line 2, column 6)",
        "     h = sigmod(a)  # here",
        "         ^"]
    assert caught.value.at == (2, 6)
    assert isinstance(caught.value, ValueError)


def test_an_error_shows_a_part_of_a_long_line():
    with pytest.raises(DefinitionError) as caught:
        parse("h = W x" + " + h" * 1000 + " + ? " + "+ h" * 1000)
    sentence, line, caret = str(caught.value).splitlines()
    assert "column 4011" in sentence
    assert len(line) < 100
    assert line[caret.index("^")] == "?"


def test_an_error_pickles():
    with pytest.raises(DefinitionError) as caught:
        parse("h = ?")
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.at == caught.value.at


PIECES = ["W x", "U h", "h", "x", "a", "b", "z", "1", "0.5", "1e999", "+", "-", "*", "/", "**", "@",
          "(", ")", ",", "=", "==", "<", "[", "]", "[P]", "\n", "\n", "\n", " ", "#", "//", "tanh(",
          "where(", "norm(", "mean(", "dropout(0.5)", "min(", "h = ", "a, z = ", "size P = H",
          "constant a = 1", "learned p = 0", "p", "weight U = orthogonal", "fixed W = zeros",
          "state h", "output a", "lambda", "None", "__import__", "\x00", "\u2212", "\ud800", "\r"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_pieces_give_a_definition_or_its_error(pieces):
    try:
        cell(" ".join(pieces))
    except DefinitionError as error:
        assert_shown(error)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_gives_a_definition_or_its_error(text):
    try:
        cell(text)
    except DefinitionError as error:
        assert_shown(error)


LSTM = """size P = H // 2
constant alpha = 0.5
i, f, g, o = W x + U h + b  # gates
c = sigmoid(f + alpha) * c + sigmoid(i) * tanh(g)
h[P] = V (sigmoid(o) * where(c > 1, c, tanh(c)))
"""


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(LSTM) - 1), st.integers(0, 9), st.sampled_from(["", *PIECES]))
def test_a_definition_with_a_wrong_spot_gives_a_definition_or_its_error(place, length, piece):
    try:
        cell(LSTM[:place] + piece + LSTM[place + length:])
    except DefinitionError as error:
        assert_shown(error)


def assert_shown(error):
    """Assert that an error about a place is one sentence, a line and a caret below it."""
    if error.at is None:
        assert "\n" not in str(error)
        return
    sentence, line, caret = str(error).splitlines()
    assert sentence.endswith(f"(line {error.at.line}, column {error.at.column})")
    assert len(sentence) < 400
    assert caret.strip() == "^"
    assert caret.index("^") <= len(line)
