"""fastrnn.functional from outside: its signatures, tapes, and what it refuses."""

import inspect

import cases
import numpy as np
import pytest
from cases import assert_same_bytes, misaligned, read_only, replace, run

from fastrnn import functional, reference

ODD = (4, 5, 11, 13)  # T, B, I, H


@pytest.mark.parametrize("name", [n for n in reference.__all__ if "ward" in n])
def test_signatures_are_the_references(name):
    mine, theirs = (
        [(p.name, p.kind, p.default)
         for p in inspect.signature(getattr(module, name)).parameters.values()]
        for module in (functional, reference)
    )
    assert mine == theirs


@pytest.mark.parametrize("cell", cases.CELLS)
def test_a_tape_serves_once(cell):
    case = cases.make_case(cell, 3, 2, 3, 4)
    _, tape = cases.forward(functional, case)
    cases.backward(functional, case, tape)
    name = cell.partition("_")[0]
    match = rf"^{name}_backward: this tape has already served .*; run {name}_forward again"
    with pytest.raises(RuntimeError, match=match):
        cases.backward(functional, case, tape)


def refusals():
    """(change of the case, change of grads, error, match) of backward calls of a gru."""
    return [
        ({"dy": np.ones((2, 2, 4))}, {}, ValueError,
         r"dy has shape \(2, 2, 4\), expected \(3, 2, 4\)"),
        ({"dy": np.ones((3, 2, 4), np.float32)}, {}, TypeError, "dy is float32, expected float64"),
        ({"dy": "y"}, {}, TypeError, "dy is of type str, expected numbers"),
        ({"dhn": np.ones((2, 5))}, {}, ValueError,
         r"dhn has shape \(2, 5\), expected \(2, 4\)"),
        ({"dhn": (np.ones((2, 4)),) * 2}, {}, TypeError,
         "dhn is a tuple of 2, expected one array"),
        ({}, {"bias_hh": None}, TypeError, r"grads\['bias_hh'\] is None, expected .* float64"),
        ({}, {"bias_hh": np.ones(12, np.float32)}, TypeError,
         r"grads\['bias_hh'\] is float32, expected an array of float64"),
        ({}, {"bias_hh": np.ones(12, ">f8")}, TypeError,
         r"grads\['bias_hh'\] is >f8, expected an array of float64"),
        ({}, {"weight_ih": np.ones((3, 12))}, ValueError,
         r"grads\['weight_ih'\] has shape \(3, 12\), expected \(12, 3\)"),
        ({}, {"weight_ih": np.ones((3, 12)).T}, ValueError,
         r"grads\['weight_ih'\] must be C-contiguous, aligned and writeable"),
        ({}, {"weight_hh": read_only(np.ones((12, 4)))}, ValueError,
         r"grads\['weight_hh'\] must be C-contiguous, aligned and writeable"),
        ({}, {"weight_hh": misaligned(np.ones((12, 4)))}, ValueError,
         r"grads\['weight_hh'\] must be C-contiguous, aligned and writeable"),
        ({}, {"weight": np.ones((12, 4))}, ValueError,
         r"grads has keys \['bias_hh', .*'weight', .*\], expected \['bias_hh', 'bias_ih', "),
    ]


@pytest.mark.parametrize(("change", "grads", "error", "match"), refusals())
def test_a_refused_backward_leaves_the_tape_unspent(change, grads, error, match):
    case = cases.make_case("gru", 3, 2, 3, 4)
    expected = run(functional, case)
    out, tape = cases.forward(functional, case)
    given = {name: np.zeros_like(getattr(case, name)) for name in cases.PARAMETERS}
    with pytest.raises(error, match=match) as caught:
        cases.backward(functional, replace(case, **change), tape, grads=given | grads)
    assert_is_one_sentence(caught, "gru_backward")
    assert not any(array.any() for array in given.values())
    assert_same_bytes(out | cases.backward(functional, case, tape), expected)


def test_refused_lstm_gradients_name_their_half():
    case = cases.make_case("lstm", 3, 2, 3, 4)
    _, tape = cases.forward(functional, case)
    for dstate, error, match in [
        ((case.dhn, np.ones((2, 5))), ValueError, r"dstate\[1\] has shape \(2, 5\), expected"),
        (case.dhn, TypeError, r"dstate is ndarray of 2, expected a pair \(h, c\)"),
        ((case.dhn,), TypeError, r"dstate is tuple of 1, expected a pair \(h, c\)"),
        (5, TypeError, r"dstate is 5, expected a pair \(h, c\)"),
    ]:
        with pytest.raises(error, match=match) as caught:
            functional.lstm_backward(case.dy, dstate, tape)
        assert_is_one_sentence(caught, "lstm_backward")
    cases.backward(functional, case, tape)


def test_tapes_are_not_exchangeable():
    drawn = {cell: cases.make_case(cell, 3, 2, 3, 4) for cell in ("rnn_tanh", "lstm", "gru")}
    for made, case in drawn.items():
        _, tape = cases.forward(functional, case)
        for cell in drawn.keys() - {made}:
            name = cell.partition("_")[0]
            match = rf"^{name}_backward: tape is one of {made}, expected one of {name}_forward$"
            with pytest.raises(TypeError, match=match):
                cases.backward(functional, drawn[cell], tape)
        cases.backward(functional, case, tape)  # still good
    _, tape = cases.forward(reference, drawn["gru"])
    with pytest.raises(TypeError, match=r"^gru_backward: tape is .*, expected one of gru_fo"):
        cases.backward(functional, drawn["gru"], tape)
    _, tape = cases.forward(functional, drawn["gru"], training=False)
    match = "^gru_backward: tape is None, expected one of gru_forward with training=True$"
    with pytest.raises(TypeError, match=match):
        cases.backward(functional, drawn["gru"], tape)


def test_any_number_of_tapes_may_be_in_flight(isa):
    drawn = [
        cases.make_case(cell, *shape, dtype, seed)
        for seed, dtype in enumerate(cases.DTYPES)
        for cell in cases.CELLS
        for shape in (ODD, (2, 3, 7, 5), ODD)  # the same size twice: memory must not be shared
    ]
    expected = [run(functional, case) for case in drawn]
    flights = [cases.forward(functional, case) for case in drawn]
    cases.forward(functional, drawn[0])  # a tape that nobody wants
    order = np.random.default_rng(0).permutation(len(drawn))
    for k in order:
        out, tape = flights[k]
        assert_same_bytes(out | cases.backward(functional, drawn[k], tape), expected[k])


def assert_is_one_sentence(caught, owner):
    message = str(caught.value)
    assert message.startswith(f"{owner}: ")
    assert "\n" not in message
    assert len(message) < 200


FIVE_ROWS = np.ones((5, 3))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": np.ones((3, 2, 12))}, ValueError,
         r"x has shape \(3, 2, 12\), expected \(T, B, 3\)"),
        ({"x": np.ones((3, 3))}, ValueError, r"x has shape \(3, 3\), expected \(T, B, 3\)"),
        ({"x": np.ones((3, 2, 3), np.float32)}, TypeError, "x is float32, expected float64"),
        ({"x": np.ones((3, 2, 3), int)}, TypeError, "x is int64, expected float64"),
        ({"x": None}, TypeError, "x is None, expected numbers"),
        ({"x": [["a"]]}, TypeError, r"x is \[.*\], expected numbers"),
        ({"x": [[1.0], [1.0, 2.0]]}, ValueError, "x is a ragged sequence, expected an array"),
        ({"h0": np.ones((2, 5))}, ValueError, r"h0 has shape \(2, 5\), expected \(2, 4\)"),
        ({"h0": np.ones((1, 2, 4))}, ValueError, r"h0 has shape \(1, 2, 4\), expected \(2, 4\)"),
        ({"h0": (np.ones((2, 4)),) * 2}, TypeError, "h0 is a tuple of 2, expected one array"),
        ({"weight_ih": np.ones((4, 3))}, ValueError,
         r"weight_ih has shape \(4, 3\), expected \(12, I\)"),
        ({"weight_ih": np.ones((12, 0))}, ValueError, "H = 4 and I = 0, expected at least 1"),
        ({"weight_ih": None}, TypeError, "weight_ih is None, expected numbers"),
        ({"weight_hh": np.ones((16, 4))}, ValueError,
         r"weight_hh has shape \(16, 4\), expected \(12, 4\)"),
        ({"weight_hh": np.ones(4)}, ValueError, r"weight_hh has shape \(4,\), expected \(G\*H, H"),
        ({"weight_hh": np.ones((12, 4), int)}, TypeError,
         "weight_hh is int64, expected an array of float32 or float64"),
        ({"weight_hh": np.ones((12, 4), np.float16)}, TypeError,
         "weight_hh is float16, expected an array of float32 or float64"),
        ({"weight_hh": [[1.0]]}, TypeError,
         "weight_hh is list, expected an array of float32 or float64"),
        ({"bias_hh": np.ones(4)}, ValueError, r"bias_hh has shape \(4,\), expected \(12,\)"),
        ({"bias_ih": np.ones(12, np.float32)}, TypeError, "bias_ih is float32, expected float64"),
        ({"embedding": FIVE_ROWS}, TypeError, "x is float64, expected whole numbers"),
        ({"embedding": FIVE_ROWS, "x": np.ones((3, 2), bool)}, TypeError, "x is bool, expected"),
        ({"embedding": FIVE_ROWS, "x": np.ones(3, int)}, ValueError,
         r"x has shape \(3,\), expected \(T, B\)"),
        ({"embedding": FIVE_ROWS, "x": np.full((3, 2), 5)}, IndexError,
         "x has .*numbers from 5 to 5, expected 0 to 4"),
        ({"embedding": FIVE_ROWS, "x": np.full((3, 2), -1)}, IndexError,
         "x has .*numbers from -1 to -1, expected 0 to 4"),
        ({"embedding": FIVE_ROWS, "x": np.full((3, 2), 2**63, np.uint64)}, IndexError,
         f"from {2**63} to {2**63}, expected 0 to 4"),
        ({"embedding": np.ones((5, 4)), "x": np.ones((3, 2), int)}, ValueError,
         r"embedding has shape \(5, 4\), expected \(V, 3\)"),
    ],
)
def test_errors_name_the_argument(change, error, match):
    case = cases.make_case("gru", 3, 2, 3, 4)
    with pytest.raises(error, match=f"^gru_forward: .*{match}") as caught:
        cases.forward(functional, replace(case, **change))
    assert_is_one_sentence(caught, "gru_forward")


@pytest.mark.parametrize(
    ("state", "error", "match"),
    [
        (np.ones((2, 4)), TypeError, r"state is ndarray of 2, expected a pair \(h, c\)"),
        ((np.ones((2, 4)),), TypeError, r"state is tuple of 1, expected a pair \(h, c\)"),
        (5, TypeError, r"state is 5, expected a pair \(h, c\)"),
        ((None, np.ones((2, 5))), ValueError,
         r"state\[1\] has shape \(2, 5\), expected \(2, 4\)"),
        ((np.ones((2, 4), np.float32), None), TypeError, r"state\[0\] is float32"),
    ],
)
def test_errors_of_an_lstm_state(state, error, match):
    case = cases.make_case("lstm", 3, 2, 3, 4)
    with pytest.raises(error, match=f"^lstm_forward: {match}") as caught:
        functional.lstm_forward(case.x, state, *(getattr(case, name) for name in cases.PARAMETERS))
    assert_is_one_sentence(caught, "lstm_forward")


def test_an_unknown_nonlinearity_is_an_error():
    case = cases.make_case("rnn_tanh", 3, 2, 3, 4)
    match = r"^rnn_forward: nonlinearity is 'softsign', expected one of \['tanh', 'relu', 'sigm"
    with pytest.raises(ValueError, match=match):
        cases.forward(functional, replace(case, cell="rnn_softsign"))


@pytest.mark.parametrize("tape", [5, "tape", object()], ids=lambda t: type(t).__name__)
def test_what_is_no_tape_is_an_error(tape):
    case = cases.make_case("gru", 3, 2, 3, 4)
    match = f"^gru_backward: tape is .*{type(tape).__name__}, expected one of gru_forward$"
    with pytest.raises(TypeError, match=match):
        cases.backward(functional, case, tape)
