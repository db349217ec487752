"""The NumPy evaluation of definitions against fastrnn.reference and against plain formulas."""

import numpy as np
import pytest

from fastrnn import reference
from fastrnn.cells import cell
from fastrnn.cells.evaluate import forward
from fastrnn.cells.weights import initial, shape
from fastrnn.functional import cell_forward

DTYPES = (np.float32, np.float64)
RTOL = {np.float32: 2e-5, np.float64: 1e-12}
LSTM = """
i, f, g, o = W x + b_ih + U h + b_hh
c = sigmoid(f) * c + sigmoid(i) * tanh(g)
h = sigmoid(o) * tanh(c)
"""
GRU = """
r = sigmoid(W_r x + c_r + U_r h + b_r)
z = sigmoid(W_z x + c_z + U_z h + b_z)
n = tanh(W_n x + c_n + r * (U_n h + b_n))
h = (1 - z) * n + z * h
""".replace("c_", "bias_")
SPECIAL = [0.0, -0.0, 1e-30, 0.5, -0.5, 1.0, -1.0, 1.5, -3.0, 20.0, -20.0, 100.0, -100.0,
           np.inf, -np.inf, np.nan]


def draw(definition, I, H, dtype, seed=0, **sizes):
    rng = np.random.default_rng(seed)
    numbers = definition.resolve(I, H, sizes)
    return {name: rng.normal(0, 0.5, shape(of, numbers)).astype(dtype)
            for name, of in {**definition.weights, **definition.vectors}.items()}


def normal(seed, *size, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=size).astype(dtype)


# -------------------------------------------------------------------------- against the reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("phi", ["tanh", "relu", "sigmoid"])
def test_the_vanilla_rnn(dtype, phi):
    definition = cell(f"h = {phi}(W x + b_ih + U h + b_hh)")
    p = draw(definition, 3, 5, dtype)
    x, h0 = normal(1, 6, 2, 3, dtype=dtype), normal(2, 2, 5, dtype=dtype)
    y, (h,) = forward(definition, x, (h0,), p)
    expected, hn, _ = reference.rnn_forward(x, h0, p["W"], p["U"], p["b_ih"], p["b_hh"],
                                            nonlinearity=phi)
    assert y.dtype == h.dtype == dtype
    np.testing.assert_allclose(y, expected, RTOL[dtype], RTOL[dtype])
    np.testing.assert_allclose(h, hn, RTOL[dtype], RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_lstm(dtype):
    definition = cell(LSTM)
    p = draw(definition, 3, 5, dtype)
    x, h0, c0 = (normal(seed, *size, dtype=dtype) for seed, size in enumerate(
        [(6, 2, 3), (2, 5), (2, 5)]))
    y, (h, c) = forward(definition, x, (h0, c0), p)
    expected, (hn, cn), _ = reference.lstm_forward(x, (h0, c0), p["W"], p["U"], p["b_ih"],
                                                   p["b_hh"])
    assert {y.dtype, h.dtype, c.dtype} == {np.dtype(dtype)}
    for ours, theirs in ((y, expected), (h, hn), (c, cn)):
        np.testing.assert_allclose(ours, theirs, RTOL[dtype], RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gru(dtype):
    definition = cell(GRU)
    p = draw(definition, 3, 5, dtype)
    x, h0 = normal(1, 6, 2, 3, dtype=dtype), normal(2, 2, 5, dtype=dtype)
    y, (h,) = forward(definition, x, (h0,), p)
    stacked = [np.concatenate([p[f"{name}_{gate}"] for gate in "rzn"])
               for name in ("W", "U", "bias", "b")]
    expected, hn, _ = reference.gru_forward(x, h0, *stacked)
    np.testing.assert_allclose(y, expected, RTOL[dtype], RTOL[dtype])
    np.testing.assert_allclose(h, hn, RTOL[dtype], RTOL[dtype])


def test_no_state_is_zeros_and_no_bias_is_zeros():
    definition = cell(LSTM)
    p = draw(definition, 3, 5, np.float64)
    x, zeros = normal(1, 4, 2, 3), np.zeros((2, 5))
    expected, _, _ = reference.lstm_forward(x, (zeros, zeros), p["W"], p["U"])
    y, _ = forward(definition, x, None, {name: p[name] for name in "WU"}, bias=False)
    np.testing.assert_allclose(y, expected, 1e-12)
    y, _ = forward(definition, x, None, p, bias=False)  # given, and left alone
    np.testing.assert_allclose(y, expected, 1e-12)
    expected, _, _ = reference.lstm_forward(x, (zeros, zeros), p["W"], p["U"], p["b_ih"],
                                            p["b_hh"])
    np.testing.assert_allclose(forward(definition, x, None, p)[0], expected, 1e-12)


def test_declared_vectors_are_no_biases():
    definition = cell("learned p = 0\nh = W x + p + b + h")
    p = draw(definition, 3, 5, np.float64)
    x = normal(1, 1, 2, 3)
    y, _ = forward(definition, x, None, p, bias=False)
    np.testing.assert_allclose(y[0], x[0] @ p["W"].T + p["p"], 1e-12)


def test_no_steps_and_no_rows():
    definition = cell(LSTM)
    p = draw(definition, 3, 5, np.float64)
    h0, c0 = normal(1, 2, 5), normal(2, 2, 5)
    y, (h, c) = forward(definition, np.zeros((0, 2, 3)), (h0, c0), p)
    assert y.shape == (0, 2, 5)
    np.testing.assert_array_equal(h, h0)
    np.testing.assert_array_equal(c, c0)
    y, (h, _) = forward(definition, np.zeros((4, 0, 3)), None, p)
    assert y.shape == (4, 0, 5)
    assert h.shape == (0, 5)


# --------------------------------------------------------------------------- functions, by formula


def sigmoid(a):
    return np.where(np.isnan(a), a, 1 / (1 + np.exp(-a)))


def unit(expression, a, dtype=np.float64, head="", **constants):
    """Return an expression of `a`, by an equation of a row whose input is `a`."""
    definition = cell(f"{head}\na = x\ns[I] = 0 * s\nh[I] = {expression} + s")
    y, _ = forward(definition, np.asarray(a, dtype)[None], None, {}, sizes={"H": 1},
                   constants=constants)
    return y[0]


FORMULAS = {
    "sigmoid(a)": sigmoid,
    "tanh(a)": np.tanh,
    "relu(a)": lambda a: np.maximum(a, 0),
    "exp(a)": np.exp,
    "log(a)": np.log,
    "sqrt(a)": np.sqrt,
    "abs(a)": np.abs,
    "softplus(a)": lambda a: np.logaddexp(0, a),
    "silu(a)": lambda a: a * sigmoid(a),
    "gelu(a)": lambda a: a / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))),
    "softsign(a)": lambda a: a / (1 + np.abs(a)),
    "leaky_relu(a)": lambda a: np.where(a >= 0, a, 0.01 * a),
    "leaky_relu(a, 0.3)": lambda a: np.where(a >= 0, a, 0.3 * a),
    "elu(a)": lambda a: np.where(a > 0, a, np.exp(a) - 1),
    "elu(a, 0.5)": lambda a: np.where(a > 0, a, 0.5 * (np.exp(a) - 1)),
    "hard_sigmoid(a)": lambda a: np.clip(0.2 * a + 0.5, 0, 1),
    "hard_sigmoid(a, 0.1, 0.3)": lambda a: np.clip(0.1 * a + 0.3, 0, 1),
    "affine(a, 2, -1)": lambda a: 2 * a - 1,
    "scaled_tanh(a, 2, 0.5)": lambda a: 2 * np.tanh(0.5 * a),
    "thresholded_relu(a)": lambda a: np.where(a > 1, a, 0),
    "thresholded_relu(a, -2)": lambda a: np.where(a > -2, a, 0),
    "clip(a, -0.5, 2)": lambda a: np.clip(a, -0.5, 2),
    "min(a, 0.5)": lambda a: np.minimum(a, 0.5),
    "max(-1, a)": lambda a: np.maximum(-1, a),
    "min(a, a * a)": lambda a: np.minimum(a, a * a),
    "where(a > 0.5, a, 1)": lambda a: np.where(a > 0.5, a, 1),
    "where(a <= a * a, 1, -a)": lambda a: np.where(a <= a * a, 1, -a),
    "where(a == 1, 7, 8)": lambda a: np.where(a == 1, 7, 8),
    "where(a != 1, 7, 8)": lambda a: np.where(a != 1, 7, 8),
    "where(a < 1, 7, 8)": lambda a: np.where(a < 1, 7, 8),
    "where(a >= 1, 7, 8)": lambda a: np.where(a >= 1, 7, 8),
    "a - 2 * a / (a + 4) - -a": lambda a: a - 2 * a / (a + 4) + a,
    "a ** 2": lambda a: a**2,
    "a ** 65": lambda a: a**65,
    "a ** -66": lambda a: a**-66,
    "a ** 0.5": lambda a: a**0.5,
    "2 ** a": lambda a: 2**a,
    "-a ** 2": lambda a: -(a**2),
    "2 ** 3 ** a": lambda a: 2.0 ** (3**a),
    "exp(1) * a - log(2) / 3": lambda a: np.exp(1) * a - np.log(2) / 3,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("expression", "formula"), FORMULAS.items(), ids=list(FORMULAS))
def test_each_function_is_its_formula_also_of_infinities_and_nan(expression, formula, dtype):
    a = np.array([SPECIAL, *np.random.default_rng(0).normal(0, 2, (3, len(SPECIAL)))], dtype)
    with np.errstate(all="ignore"):
        expected = np.asarray(formula(a.astype(np.float64))).astype(dtype)
    found = unit(expression, a, dtype)
    assert found.dtype == dtype
    tiny = 1e-6 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(found, expected, RTOL[dtype], tiny)


@pytest.mark.parametrize(("expression", "formula"), FORMULAS.items(), ids=list(FORMULAS))
def test_each_compiled_function_is_its_formula(expression, formula):
    """Of the programs that layers run, whose operations are made by other code."""
    a = np.array([[[0.0, 0.5, -0.5, 1.0, -1.0, 1.1, 1.5, -1.7, 2.5, -2.25, 0.75, 0.3]]])
    definition = cell(f"learned p = 1\na = x + h\nh = p * ({expression})")  # h begins at 0
    found, _, _ = cell_forward(definition, a, None, {"p": np.ones(a.shape[2])}, training=False)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(found, formula(a), 1e-12, 1e-14)


@pytest.mark.parametrize("function", ["sigmoid", "tanh", "relu", "softplus", "silu", "gelu", "abs",
                                      "softsign", "leaky_relu", "elu", "hard_sigmoid", "exp"])
def test_nan_stays_nan(function):
    assert np.isnan(unit(f"{function}(a)", [[np.nan]])).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalisations_and_reductions(dtype):
    a = normal(0, 4, 7, dtype=dtype)
    mean, std2 = a.mean(1, keepdims=True), a.var(1, keepdims=True)
    square = (a * a).mean(1, keepdims=True)
    for expression, expected in {
        "norm(a)": (a - mean) / np.sqrt(std2 + 1e-5),
        "norm(a, 0.5)": (a - mean) / np.sqrt(std2 + 0.5),
        "rms_norm(a)": a / np.sqrt(square + 1e-5),
        "rms_norm(a, 0.5)": a / np.sqrt(square + 0.5),
        "a - mean(a)": a - mean,
        "a * sum(a * a)": a * (a * a).sum(1, keepdims=True),
        "mean(a)": np.broadcast_to(mean, a.shape),
        "where(mean(a) > 0, sum(a), a)": np.where(mean > 0, a.sum(1, keepdims=True), a),
    }.items():
        np.testing.assert_allclose(unit(expression, a, dtype), expected, 1e-4
                                   if dtype == np.float32 else 1e-12, 1e-6, err_msg=expression)


def test_constants_and_their_values():
    a = normal(0, 2, 3)
    head = "constant k = 0.25"
    np.testing.assert_allclose(unit("k * a", a, head=head), 0.25 * a)
    np.testing.assert_allclose(unit("k * a", a, head=head, k=3), 3 * a)
    np.testing.assert_allclose(unit("leaky_relu(a, k / 2)", a, head=head, k=3),
                               np.where(a > 0, a, 1.5 * a))
    np.testing.assert_allclose(unit("affine(a, -k, 1 - k)", a, head=head), -0.25 * a + 0.75)


# ------------------------------------------------------------------------------ products and names


def test_a_projection_a_further_size_and_an_output():
    definition = cell("""
        size P = 2
        learned p[P] = 0
        c = W x + U h + b
        h[P] = R tanh(c) + p
        y = V (h * p) - T c + b_y
        output y
    """)
    p = draw(definition, 3, 4, np.float64)
    x, h0 = normal(1, 5, 2, 3), normal(2, 2, 2)
    y, (h,) = forward(definition, x, (h0,), p)
    for t in range(5):
        c = x[t] @ p["W"].T + h0 @ p["U"].T + p["b"]
        h0 = np.tanh(c) @ p["R"].T + p["p"]
        np.testing.assert_allclose(
            y[t], (h0 * p["p"]) @ p["V"].T - c @ p["T"].T + p["b_y"], 1e-12)
    np.testing.assert_allclose(h, h0, 1e-12)


def test_a_name_has_the_old_value_before_its_assignment_and_the_new_one_behind():
    definition = cell("a[I] = h + x\nh[I] = 2 * h + a\ny[I] = h - a + s\ns[I] = y\noutput y")
    x, h0, s0 = normal(0, 3, 2, 4), normal(1, 2, 4), normal(2, 2, 4)
    assert [state.name for state in definition.states] == ["h", "s"]
    y, (h, s) = forward(definition, x, (h0, s0), {}, sizes={"H": 4})
    for t in range(3):
        a = h0 + x[t]
        h0 = 2 * h0 + a
        s0 = h0 - a + s0
        np.testing.assert_allclose(y[t], s0, 1e-12)
    np.testing.assert_allclose(h, h0, 1e-12)
    np.testing.assert_allclose(s, s0, 1e-12)


def test_row_blocks_with_signs():
    definition = cell("a, z = -(W x - b) - U h\nh = a * tanh(z)")
    p = draw(definition, 3, 4, np.float64)
    x, h0 = normal(1, 1, 2, 3), normal(2, 2, 4)
    y, _ = forward(definition, x, (h0,), p)
    a, z = np.split(-(x[0] @ p["W"].T - p["b"]) - h0 @ p["U"].T, 2, 1)
    np.testing.assert_allclose(y[0], a * np.tanh(z), 1e-12)


def test_what_is_one_wide_fills_an_output_and_a_state():
    definition = cell("size P = 3\nstate s[P]\nh = 0 * sum(s) + sum(x)\ns = mean(x)")
    x = normal(1, 2, 2, 4)
    y, (s,) = forward(definition, x, None, {}, sizes={"H": 5})
    np.testing.assert_allclose(y, np.broadcast_to(x.sum(2, keepdims=True), (2, 2, 5)), 1e-12)
    np.testing.assert_allclose(s, np.broadcast_to(x[1].mean(1, keepdims=True), (2, 3)), 1e-12)


def test_a_product_of_a_learned_vector_and_of_a_mask():
    definition = cell("learned p[I] = 0\nh = W x + W p + U (dropout(0.5)) + 0 * h")
    p = draw(definition, 3, 4, np.float64)
    x = normal(1, 1, 2, 3)
    y, _ = forward(definition, x, None, p)
    np.testing.assert_allclose(
        y[0], (x[0] + p["p"]) @ p["W"].T + p["U"].sum(1), 1e-12)


def test_ten_thousand_terms():
    definition = cell("h[I] = x" + " + 0.5 * h" * 5_000)
    y, _ = forward(definition, np.ones((1, 1, 2)), (np.ones((1, 2)),), {}, sizes={"H": 1})
    np.testing.assert_array_equal(y, np.full((1, 1, 2), 2501.0))


# -------------------------------------------------------------------------------------------- masks

MASKED = ("constant q = 0.3\nh[I] = dropout(0.5) * x + sequence_dropout(q) * h * 10\n"
          "y[I] = h * step_mask(q) + x * sequence_mask(0.25)\noutput y")


def test_masks_in_evaluation():
    definition = cell(MASKED)
    x, h0 = normal(0, 2, 3, 4), normal(1, 3, 4)
    for constants, q in ((None, 0.3), ({"q": 0.7}, 0.7)):
        y, (h,) = forward(definition, x, (h0,), {}, sizes={"H": 1}, constants=constants)
        h1 = x[0] + 10 * h0
        h2 = x[1] + 10 * h1
        np.testing.assert_allclose(y, np.stack([h1, h2]) * q + x * 0.25, 1e-12)
        np.testing.assert_allclose(h, h2, 1e-12)


def test_masks_that_are_given_stand_in_the_order_of_the_text():
    definition = cell(MASKED)
    assert [call.function for call in definition.masks] == [
        "dropout", "sequence_dropout", "step_mask", "sequence_mask"]
    x, h0 = normal(0, 2, 3, 4), normal(1, 3, 4)
    masks = {0: normal(2, 2, 3, 4), 1: normal(3, 3, 4), 2: normal(4, 2, 3, 4), 3: normal(5, 3, 4)}
    y, _ = forward(definition, x, (h0,), {}, sizes={"H": 1}, masks=masks)
    h1 = masks[0][0] * x[0] + masks[1] * h0 * 10
    h2 = masks[0][1] * x[1] + masks[1] * h1 * 10
    np.testing.assert_allclose(y, np.stack([h1, h2]) * masks[2] + x * masks[3], 1e-12)
    some, _ = forward(definition, x, (h0,), {}, sizes={"H": 1}, masks={0: masks[0]})
    np.testing.assert_allclose(
        some[0], (masks[0][0] * x[0] + h0 * 10) * 0.3 + x[0] * 0.25, 1e-12)


# -------------------------------------------------------------------------------- kinds of weights


def test_kinds_of_weights():
    definition = cell("""
        constant gamma = 0.1
        weight U = antisymmetric(gamma)
        weight V = dropconnect(0.5)
        weight R = blocks(2)
        h = W x + U h + V h + R h
    """)
    p = draw(definition, 3, 4, np.float64)
    x, h0, mask = normal(1, 1, 2, 3), normal(2, 2, 4), normal(3, 4, 4)
    R = np.zeros((4, 4))
    R[:2, :2], R[2:, 2:] = p["R"][:2], p["R"][2:]
    for gamma in (0.1, 2.0):
        for masks in ({}, {"V": mask}):
            U = p["U"] - p["U"].T - gamma * np.eye(4)
            V = p["V"] * masks.get("V", 1)
            y, _ = forward(definition, x, (h0,), p, constants={"gamma": gamma}, masks=masks)
            np.testing.assert_allclose(y[0], x[0] @ p["W"].T + h0 @ (U + V + R).T, 1e-12)


# -------------------------------------------------------------------------------------- what is H


@pytest.mark.parametrize(("text", "state"), [
    ("h = W x + U h", True), ("h = W x + h", False), ("learned p = 0\nh = sum(x) * p + h", False),
    ("h = 0.5 * h + sum(x)", True), ("size P = 2\na[P] = V x\nh = W a + h", False),
    ("learned q = 1\nlearned p = 0\nh = sum(x * q) * p + h", False)])
def test_a_parameter_or_the_state_shows_the_hidden_size(text, state):
    definition = cell(text)
    p = draw(definition, 3, 4, np.float64)
    y, _ = forward(definition, normal(0, 2, 2, 3), (normal(1, 2, 4),) if state else None, p)
    assert y.shape == (2, 2, 4)


def arguments(**changes):
    definition = cell("size P = H\nweight U = dropconnect(0)\nc[P] = W x + V c + b\n"
                      "h = U h + T c * dropout(0.5)")
    given = {"definition": definition, "x": normal(0, 2, 2, 3),
             "state": (normal(1, 2, 4), normal(2, 2, 4)),
             "parameters": draw(definition, 3, 4, np.float64)}
    parameters = {**given["parameters"], **changes.pop("parameters", {})}
    parameters = {name: a for name, a in parameters.items() if a is not None}
    return {**given, **changes, "parameters": parameters}


@pytest.mark.parametrize(("changes", "error", "match"), [
    ({"x": np.zeros((2, 3))}, TypeError, "x is no array"),
    ({"x": np.zeros((2, 2, 3), int)}, TypeError, "x is no array"),
    ({"x": [[[1.0]]]}, TypeError, "x is no array"),
    ({"x": normal(0, 2, 2, 3, dtype=np.float32)}, ValueError, "is float64 .*, expected float32"),
    ({"x": normal(0, 2, 2, 5)}, ValueError, r"W is float64 \(4, 3\), expected float64 \(4, 5\)"),
    ({"state": (normal(1, 2, 4),)}, ValueError, "state has 1 arrays, expected 2: h, c"),
    ({"state": (normal(1, 3, 4), normal(2, 2, 4))}, ValueError, r"state h is .*, expected .*2, 4"),
    ({"parameters": {"b": None}}, ValueError, "the parameter b is missing"),
    ({"parameters": {"W": None}}, ValueError, "the parameter W is missing"),
    ({"parameters": {"q": np.zeros(3)}}, ValueError, "'q' is no parameter of Cell, expected: W"),
    ({"parameters": {"b": np.zeros(3)}}, ValueError, r"b is float64 \(3,\), expected .* \(4,\)"),
    ({"sizes": {"P": 2}}, ValueError, r"b is float64 \(4,\), expected float64 \(2,\)"),
    ({"sizes": {"Q": 2}}, ValueError, "'Q' is no further size of Cell"),
    ({"constants": {"q": 2}}, ValueError, "'q' is no constant of Cell"),
    ({"masks": {1: np.ones((2, 2, 4))}}, ValueError, "masks has 1, expected the index of a call"),
    ({"masks": {"h": np.ones((2, 2, 4))}}, ValueError, "masks has 'h', expected the index"),
    ({"masks": {0: np.ones((2, 4))}}, ValueError, r"mask 0 is .*, expected float64 \(2, 2, 4\)"),
    ({"masks": {"V": np.ones((4, 4))}}, ValueError, "V has a mask, and is no dropconnect weight"),
    ({"masks": {"U": np.ones(4)}}, ValueError, "the mask of U is"),
])
def test_arguments_that_do_not_fit(changes, error, match):
    with pytest.raises(error, match=match):
        forward(**arguments(**changes))


def test_a_size_that_nothing_shows():
    assert forward(**arguments())[0].shape == (2, 2, 4)
    with pytest.raises(ValueError, match="no parameter shows H"):
        forward(cell("h = sum(x) + 0.5 * h"), np.zeros((2, 2, 3)), None, {})


def test_evaluation_changes_none_of_its_arguments():
    given = arguments()
    before = [np.copy(a) for a in (given["x"], *given["state"], *given["parameters"].values())]
    y, finals = forward(**given)
    y += 1
    for final in finals:
        final += 1
    after = (given["x"], *given["state"], *given["parameters"].values())
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_initial_values_are_a_start_that_runs():
    definition = cell(LSTM)
    sizes = definition.resolve(3, 5)
    rng = np.random.default_rng(0)
    p = {name: initial(of, rng, sizes, definition.numbers(), np.float32)
         for name, of in {**definition.weights, **definition.vectors}.items()}
    y, _ = forward(definition, normal(0, 3, 2, 3, dtype=np.float32), None, p)
    assert y.dtype == np.float32
    assert np.abs(y).max() < 1
