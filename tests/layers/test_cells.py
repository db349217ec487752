"""The table of cells against the C side's, and against fastrnn.reference, which knows neither."""

import copy
import dataclasses
import pickle

import cases
import numpy as np
import pytest

import fastrnn
from fastrnn import reference
from fastrnn._kernels import runtime
from fastrnn.cells import BY_NUMBER, CELLS, vanilla
from fastrnn.functional import Tape
from fastrnn.layers.passes import RECORD

ACTIVATIONS = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0), "sigmoid": reference.sigmoid}
OPEN, SHUT = 1e3, -1e3  # biases of a sigmoid that is 1 or 0
POINTS = np.array([-3.0, -1.0, -0.25, 0.0, 0.5, 1.0, 2.0])

per_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=lambda cell: cell.name)
per_gate = pytest.mark.parametrize(("cell", "gate"), [
    pytest.param(cell, gate, id=f"{cell.name}-{gate.name}")
    for cell in CELLS.values() for gate in cell.gates])


def step(cell, biases_ih=None, biases_hh=None, h0=0.0, c0=0.0):
    """Return the reference's state after one step of one unit with biases alone, by gate's name."""
    zeros = np.zeros((cell.G, 1))
    ih, hh = (np.array([(biases or {}).get(gate.name, 0.0) for gate in cell.gates])
              for biases in (biases_ih, biases_hh))
    case = cases.Case(cell.name, np.zeros((1, 1, 1)), np.full((1, 1), h0), np.full((1, 1), c0),
                      zeros, zeros, ih, hh, None, None, None)
    out, _ = cases.forward(reference, case)
    return {"h": out["hn"].item(), **({"c": out["cn"].item()} if "cn" in out else {})}


# From a cell and a gate to the activation of that gate at `a`, through what the step gives.
GATE_VALUES = {
    ("lstm", "i"): lambda cell, a: step(cell, {"i": a, "g": OPEN})["c"],
    ("lstm", "f"): lambda cell, a: step(cell, {"f": a, "i": SHUT}, c0=1.0)["c"],
    ("lstm", "g"): lambda cell, a: step(cell, {"g": a, "i": OPEN})["c"],
    ("lstm", "o"): lambda cell, a: step(
        cell, {"o": a, "f": OPEN, "i": SHUT}, c0=1.0)["h"] / np.tanh(1),
    ("gru", "r"): lambda cell, a: np.arctanh(
        step(cell, {"r": a, "z": SHUT}, {"n": 1.0})["h"]),
    ("gru", "z"): lambda cell, a: step(cell, {"z": a}, h0=1.0)["h"],
    ("gru", "n"): lambda cell, a: step(cell, {"n": a, "z": SHUT})["h"],
}


def gate_value(cell, gate, a):
    """Return the activation of a gate at `a`, as the reference has it."""
    if cell.slope is not None:
        return step(cell, {gate.name: a})["h"]
    return GATE_VALUES[cell.name, gate.name](cell, a)


# ---------------------------------------------------------------------------------- the reference


@per_gate
def test_every_gate_has_the_name_the_place_and_the_activation_of_the_reference(cell, gate):
    for a in POINTS:
        expected = ACTIVATIONS[gate.activation](a)
        assert gate_value(cell, gate, a) == pytest.approx(expected, abs=1e-12), a


@per_cell
def test_the_number_of_gates_and_the_states_are_the_references(cell):
    for G in range(1, 6):
        case = cases.make_case(cell.name, 2, 1, 3, 4)
        case = cases.replace(case, **{
            name: np.zeros((G * 4, *getattr(case, name).shape[1:])) for name in cases.PARAMETERS})
        if G == cell.G:
            out, _ = cases.forward(reference, case)
            assert tuple(name[0] for name in out if name != "y") == cell.states
        else:
            with pytest.raises(ValueError, match=f"with G = {cell.G}"):
                cases.forward(reference, case)
    assert cell.has_c is ("c" in cell.states)
    assert cell.memory == cell.states[-1]


@per_cell
def test_the_slope_is_the_greatest_of_the_activation(cell):
    if cell.G > 1:
        assert cell.slope is None
        return
    (gate,) = cell.gates
    a = np.linspace(-8, 8, 3201)  # 0, where tanh and sigmoid are steepest, lies between two
    a = a[a != 0]
    values = np.array([gate_value(cell, gate, point) for point in a])
    assert (np.diff(values) / np.diff(a)).max() == pytest.approx(cell.slope, rel=1e-4)


@per_cell
def test_the_gates_that_keep_and_let_in(cell):
    if cell.G == 1:
        assert cell.keep_gate is cell.input_gate is None
        return
    names = [gate.name for gate in cell.gates]
    keep = {names[cell.keep_gate]: OPEN}
    if cell.input_gate is not None:
        keep[names[cell.input_gate]] = SHUT
    candidate = {"lstm": "g", "gru": "n"}[cell.name]
    for old in (0.75, -0.5):
        state = {cell.memory + "0": old}
        got = step(cell, keep | {candidate: 2.0}, **state)
        assert got[cell.memory] == pytest.approx(old)
        turned = {name: -bias for name, bias in keep.items()}
        got = step(cell, turned | {candidate: 2.0}, **state)
        assert got[cell.memory] == pytest.approx(np.tanh(2.0))


# ------------------------------------------------------------------------------------- the kernels


def test_the_table_is_the_c_sides():
    rows = runtime.cell_rows()
    assert len(rows) == len(CELLS)
    for cell, row in zip(CELLS.values(), rows, strict=True):
        assert row["gates"] == cell.G
        assert cell.has_c is row["has_c"]
        assert (cell.slope is not None) is row["plain"]
        assert sorted(row["order_x"]) == list(range(cell.G))
        # of each gate in torch's order: where W_hh h has its gradient, and where W_ih x has its own
        for g, slot in enumerate(row["slot_h"]):
            apart = slot >= cell.G or row["order_x"][slot] != g
            assert apart == (g == row["apart"])
        assert row["slots"] == cell.G + (row["apart"] >= 0)
    assert [row["apart"] for row in rows] == [
        [gate.name for gate in cell.gates].index("n") if cell.name == "gru" else -1
        for cell in CELLS.values()]


@per_cell
def test_the_kernels_compute_this_cell_under_its_number(cell):
    case = cases.make_case(cell.name, 3, 2, 3, 4)
    _, tape = cases.forward(fastrnn.functional, case)
    assert isinstance(tape, Tape)
    assert tape.kind == cell.number
    assert BY_NUMBER[cell.number] is cell
    layer = cases.LAYERS[cell.name](3, 4, seed=0)
    assert layer.cell is cell
    _, _, p = layer.forward(np.ones((2, 1, 3), np.float32))
    _, _, (recorded,) = p.backward(record=("gates",))
    assert recorded["gates"].shape == (2, 1, 1, cell.G, 4)
    # sigmoids are between 0 and 1, so a gate out of order would show
    for g, gate in enumerate(cell.gates):
        values = recorded["gates"][:, :, 0, g]
        low = {"tanh": -1, "sigmoid": 0, "relu": 0}[gate.activation]
        assert np.all(values >= low)
        assert np.any(values < 0) or low == 0


# -------------------------------------------------------------------------------- the table itself


def test_names_and_numbers():
    assert list(CELLS) == [cell.name for cell in CELLS.values()] == list(cases.CELLS)
    assert [cell.number for cell in CELLS.values()] == list(range(5))
    assert tuple(CELLS.values()) == BY_NUMBER
    assert {name: cell.G for name, cell in CELLS.items()} == cases.GATES
    assert list(vanilla()) == ["tanh", "relu", "sigmoid"]
    assert list(vanilla().values()) == list(BY_NUMBER[:3])


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@per_cell
def test_the_shapes_of_the_parameters(cell, bias):
    layer = cases.LAYERS[cell.name](3, 5, bias=bias, seed=0)
    shapes = {name.removesuffix("_l0"): a.shape for name, a in layer.parameters().items()}
    assert cell.parameters(3, 5, bias) == shapes
    assert shapes["weight_hh"] == (cases.GATES[cell.name] * 5, 5)


@per_cell
def test_the_widths_of_states_and_output_are_those_of_a_layer(cell):
    sizes = {"I": 3, "H": 5}
    assert cell.state_widths(sizes) == (5,) * len(cell.states)
    assert cell.output_width(sizes) == 5
    assert cell.output == cell.states[0] == "h"
    layer = cases.LAYERS[cell.name](3, 5, num_layers=2, bidirectional=True, seed=0)
    assert (layer.state_widths, layer.output_size, layer.width) == (cell.state_widths(sizes), 5, 10)
    _, state = layer(np.zeros((1, 2, 3), np.float32))
    arrays = state if isinstance(state, tuple) else (state,)
    assert [a.shape for a in arrays] == layer.state_shapes(2)


@per_cell
def test_what_can_be_recorded_is_what_backward_records(cell):
    layer = cases.LAYERS[cell.name](3, 5, seed=0)
    _, _, p = layer.forward(np.zeros((1, 2, 3), np.float32))
    _, _, (recorded,) = p.backward(record=cell.recordable)
    assert set(recorded) == set(cell.recordable)
    assert set(cell.recordable) == set(RECORD) - (set() if cell.has_c else {"dc"})


@per_cell
def test_a_copy_of_a_row_is_the_row(cell):
    assert copy.deepcopy(cell) is cell
    assert pickle.loads(pickle.dumps(cell)) is cell


def test_a_row_cannot_be_changed():
    for row in (CELLS["lstm"], CELLS["lstm"].gates[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            row.name = "other"
