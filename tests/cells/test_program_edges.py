"""Programs at the edges: what random programs showed, long and deep texts, no steps, no rows.

Letters: T steps, B batch, I input, H hidden.
"""

import dataclasses

import cases
import numpy as np
import pytest
import random_cells
from random_cells import about, backward, expected, forward, make, run
from slopes import check_gradients

import fastrnn
from fastrnn._kernels import program
from fastrnn.cells import cell
from fastrnn.cells.build import build
from fastrnn.cells.instance import Instance, Plan

LSTM = """
i, f, g, o = W x + U h + b
c = sigmoid(f) * c + sigmoid(i) * tanh(g)
h = sigmoid(o) * tanh(c)
"""


def check(case):
    """Compare outputs, and gradients where they are finite, with the reference."""
    got = run(case)
    lean, _ = forward(case, keep=False, packed=True)
    with np.errstate(all="ignore"), about(case):
        for name, array in expected(case).items():
            np.testing.assert_allclose(got[name], array, 1e-8, 1e-8, err_msg=name)
            np.testing.assert_array_equal(lean[name], got[name])
        if case.x.size and random_cells.tame(case):
            check_gradients(case, got, np.random.default_rng(0))
    return got


FAULTS = {  # each was wrong once
    "a sign before products of two targets": "a, z = -(W x + b) - (-(U h))\nh = tanh(a) * z",
    "an exponent of numbers": "h = tanh(W x + U h)**(1 + 1)",
    "a sum of ones": "h = tanh(W x + U h) + sum(h**0)",
    "a sum of a constant of a width": "size P = 4\nv[P] = 0.5\nh = tanh(W x + h) + sum(v) + V v",
    "a sum of what becomes constant": "h = tanh(W x + h) + sum(clip(h**0, -0.5, 0.75))",
    "a sum of a learned vector": "learned p = 0.1\nh = tanh(W x + h) * sum(p)",
    "a sum of x": "h = tanh(W x + h) * sum(x)",
    "products of a learned vector": "learned p = 0.1\na, s = V p\nh = tanh(W x + h + a) + s",
    "a product that nothing reads": "h = tanh(W x + 0.5 * h) + (U tanh(h + x))**0",
    "a state that is a constant": "t = mean(s)\ns = 0\nh = max(W x, p) + tanh(mean(s)) + t + h",
}
FAULTS["a state that is a constant"] = "learned p = 0.1\n" + FAULTS["a state that is a constant"]


@pytest.mark.parametrize("name", FAULTS)
def test_what_was_wrong_once(name):
    case = make(FAULTS[name], 3, 2, 3, 3)
    got = check(case)
    assert all(np.isfinite(array).all() for array in got.values())


@pytest.mark.parametrize("exponent", [1.5, 2.5, 3, 2])
def test_powers_have_a_slope_where_their_base_is_zero(exponent):
    case = make(f"h = 0.5 * abs(h)**{exponent} + (W x)**2", 3, 2, 3, 3)
    got = run(dataclasses.replace(case, state=(np.zeros((2, 3)),)))
    assert not got["dh0"].any()
    assert np.isfinite(got["grad W"]).all()


@pytest.mark.parametrize("exponent", [-1, -2, -3, -4, -5, -64])
def test_negative_powers_have_the_slope_of_their_formula(exponent):
    """At 0 and infinity, too, where 1 / (x x) gone back through would be 0 times infinity."""
    x = np.array([0.0, np.inf, -np.inf, 2.0, -0.5])
    layer = fastrnn.Layer(fastrnn.cell(f"h = x**({exponent})\nm = 0.5*m + h\noutput m"), 5, 5,
                          dtype=np.float64)
    _, _, p = layer.forward(x[None, None])
    with np.errstate(divide="ignore"):
        slope = exponent * x ** (exponent - 1.0)
    np.testing.assert_allclose(p.backward(np.ones((1, 1, 5)))[0].ravel(), slope, 1e-12)


def test_records_of_a_state_that_is_a_constant():
    case = make(FAULTS["a state that is a constant"], 3, 2, 3, 3)
    plain = run(case)
    recorded = run(case, record=("ds", "dh"))
    for name, array in plain.items():
        np.testing.assert_array_equal(recorded[name], array, err_msg=name)
    # s is read by h, whose slope is 1 where s is 0, in this step and in the next
    of_h = recorded["record dh"].sum(-1) / 3
    of_h[:-1] += of_h[1:]
    np.testing.assert_allclose(recorded["record ds"][:-1, ..., 0], of_h[:-1], 1e-12)


# ------------------------------------------------------------------------------- long, deep, many


def deep():
    text = "h"
    for k in range(48):
        text = f"tanh({text} + x)" if k % 2 else f"sigmoid({text})"
    return f"h = {text}"


def many_operations():
    lines = [f"a{k} = tanh(a{k - 1} * {0.5 + k / 1000} + a{max(0, k - 7)})" for k in range(1, 334)]
    return "\n".join(["a0 = tanh(W x + U h)", *lines, "h = a333"])


def many_norms():
    lines = [f"a{k} = norm(a{k - 1} * {0.5 + k / 1000} + a{max(0, k - 7)})" for k in range(1, 50)]
    return "\n".join(["a0 = norm(W x + U h)", *lines, "h = a49"])


LONG = {
    "deep": deep(),
    "a thousand operations": many_operations(),
    "fifty norms": many_norms(),
    "sixty states": "\n".join(f"s{k} = tanh(W{k} x + 0.5 * s{k} + U s{(k + 1) % 60})"
                              for k in range(60)) + "\nh = " + " + ".join(
                                  f"s{k}" for k in range(60)),
    "forty targets": ", ".join(f"t{k}" for k in range(40)) + " = W x + U h + b\nh = tanh("
                     + " + ".join(f"t{k} * {k % 3 - 1}.5" for k in range(40)) + ")",
    "forty products": "h = tanh(" + " + ".join(f"W{k} x + U{k} h" for k in range(40)) + ")",
    "one matrix forty times": "h = tanh(W x + " + " + ".join(
        f"U tanh(h * 0.{k + 1})" for k in range(40)) + ")",
    "a long sum": "h = tanh(U h + W x + " + " + ".join(["0.001 * h"] * 1000) + ")",
    "a long sum without a product": "p = " + " + ".join(["0.001 * h"] * 1000)
                                    + "\nh = tanh(W x) + p",
    "many registers": "\n".join(f"a{k} = tanh(h * {k}.25)" for k in range(150))
                      + "\nh = tanh(W x + " + " + ".join(
                          f"a{k} * a{k * 37 % 150} * a{149 - k}" for k in range(150)) + ")",
}


@pytest.mark.parametrize("name", LONG)
def test_long_texts(name):
    case = make(LONG[name], 2, 2, 3, 3)
    if name == "many registers":
        assert max(code.registers for code in case.kind.program.backward
                   if hasattr(code, "registers")) > 100
    check(case)


@pytest.mark.parametrize("name", ["a thousand operations", "fifty norms", "a long sum",
                                  "sixty states"])
def test_compilation_takes_no_time(name):
    definition = cell(LONG[name])

    def plan():
        Plan(Instance(definition), 3, 3, True).machine(np.dtype(np.float32))

    assert cases.cpu_time(plan, 3) < 10 * cases.cpu_time(cases.compiling, 5)


def test_a_short_text_takes_a_fourth_of_a_module_of_python():
    def plan():
        Plan(Instance(cell(LSTM)), 3, 3, True).machine(np.dtype(np.float32))

    assert cases.cpu_time(plan, 20) < 0.25 * cases.cpu_time(cases.compiling, 5)


# ---------------------------------------------------------------------------- numbers, and no more


@pytest.mark.parametrize("text", [
    "h = tanh(W x + U h) * 2**0.7", "constant c = 3\nh = tanh(W x + U h) * c**(-0.3)",
    "h = tanh(W x + U h) * sqrt(2)", "constant k = 3\nh = tanh(W x + U h)**k",
    "learned p = 0.5\nweight W\nh = tanh(W x + U h) * p**2 - log(4)"])
def test_functions_and_powers_of_numbers(text):
    got = check(make(text, 3, 2, 3, 3))
    assert all(np.isfinite(array).all() for array in got.values())


@pytest.mark.parametrize(("number", "expected"), [
    ("(1 / sqrt(0))", np.inf), ("sqrt(-1)", np.nan), ("log(-2)", np.nan), ("exp(1000)", np.inf)])
def test_numbers_that_are_not_finite(number, expected):
    got = check(make(f"h = abs(W x + 0 * h) * {number}", 1, 2, 3, 3))
    np.testing.assert_array_equal(got["y"], np.full_like(got["y"], expected))


def test_a_node_shows_its_operation_and_its_operands():
    graph = build(cell("h = 0.5 * h + x"), {"I": 3, "H": 3}, {})
    shown = {node.op: repr(node) for node in graph.nodes}
    assert shown["constant"] == "#1 constant() 0.5"
    assert shown["fma"] == "#4 fma(#1, #0, #3)"


# ------------------------------------------------------------------------------------- few or none


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (0, 0, 3, 4), (1, 1, 1, 1),
                                   (3, 2, 1, 1), (2, 1, 7, 1)])
@pytest.mark.parametrize("text", [LSTM, "h = norm(W x + U h) + mean(h)",
                                  "size P = 1\ns[P] = tanh(V x + s)\nh = tanh(W x + U h + Q s)"])
def test_few_steps_rows_and_units(text, shape):
    case = make(text, *shape)
    got = check(case)
    if not case.x.size:
        for s, state in enumerate(case.definition.states):
            np.testing.assert_array_equal(got[f"{state.name}n"], case.state[s])
            np.testing.assert_array_equal(got[f"d{state.name}0"], case.dfinal[s])
        assert not any(array.any() for name, array in got.items() if name.startswith("grad"))


def test_division_by_zero():
    case = make("h = W x / (h - h)", 3, 2, 3, 3)
    got = check(case)
    assert np.isinf(got["y"][0]).all()
    assert np.isnan(got["y"][1:]).all()


def test_gradients_that_nobody_wants():
    case = make(LSTM, 3, 2, 3, 4)
    wanted = run(case)
    _, tape = forward(case)
    grads = tuple(None if k != 1 else np.zeros_like(p) for k, p in enumerate(case.parameters))
    program.backward(tape, case.dy, tuple(s[None] for s in case.dfinal), None,
                     tuple(np.empty_like(s[None]) for s in case.state), (grads,))
    np.testing.assert_array_equal(grads[1], wanted["grad U"])


def test_a_tape_serves_once_and_its_copy_once_more():
    case = make(LSTM, 3, 2, 3, 4)
    _, tape = forward(case)
    copy = tape.copy()
    first, second = backward(case, tape), backward(case, copy)
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)
    for used in (tape, copy):
        with pytest.raises(RuntimeError, match="a tape serves one backward"):
            backward(case, used)
