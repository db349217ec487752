"""What a backward records of itself: against finite differences, the reference and layer.grads."""

import copy

import cases
import numpy as np
import pytest
import stacks
from flows import layer_of, recorded, walk

from fastrnn._kernels import runtime


@stacks.per_cell
@pytest.mark.parametrize(("T", "B"), [(1, 2), (5, 3)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dh_and_dc_are_the_whole_derivatives(cell, T, B, bidirectional):
    layer = layer_of(cell, num_layers=2, bidirectional=bidirectional)
    data = stacks.draw(layer, T, B)
    names = ("dh", "dc") if cell == "lstm" else ("dh",)
    flows = recorded(layer, data, names)
    for name in names:
        push = np.zeros((2, T, B, 1 + bidirectional, 5))
        option = {"push" if name == "dh" else "push_c": push}
        expected = cases.differences(lambda option=option: walk(layer, data, **option)[0], push)
        cases.assert_close(name, np.stack([flow[name] for flow in flows]), expected, 1e-8)


@stacks.per_cell
@stacks.per_dtype
def test_the_gates_and_what_the_gradients_are_made_of(cell, dtype):
    layer = layer_of(cell, 7, 17, dtype=dtype, num_layers=2, bidirectional=True)
    data = stacks.draw(layer, 6, 3)
    flows = recorded(layer, data)
    wide = {name: array.astype(np.float64) for name, array in data.items()}
    tol = stacks.tolerance(layer, data, "dx")
    for k, (flow, gates) in enumerate(zip(flows, walk(layer, wide)[1], strict=True)):
        cases.assert_close("gates", flow["gates"], gates, tol, dtype=dtype)
        for d, suffix in enumerate(("", "_reverse")):
            for side, source in (("ih", flow["x"]), ("hh", flow["h"][:, :, d])):
                dgates = flow[f"dgates_{'x' if side == 'ih' else 'h'}"][:, :, d].reshape(6, 3, -1)
                grads = {"weight": np.tensordot(dgates, source, ((0, 1), (0, 1))),
                         "bias": dgates.sum((0, 1))}
                for name, grad in grads.items():
                    name = f"{name}_{side}_l{k}{suffix}"
                    cases.assert_close(name, layer.grads[name], grad, tol, dtype=dtype)


@stacks.per_kind
@pytest.mark.parametrize("H", [1, 13, 34, 65])
def test_every_instruction_set_records_the_same(cell, H, isa):
    exact = layer_of(cell, 7, H, bidirectional=True)
    layer = layer_of(cell, 7, H, bidirectional=True, dtype=np.float32)
    exact.load_state_dict(layer.state_dict())
    data = stacks.draw(layer, 4, 5)
    names = ("dh", "dc") if cell == "lstm" else ("dh",)
    (got,) = recorded(layer, data, names)
    runtime.set_isa("scalar")
    (expected,) = recorded(exact, {k: v.astype(np.float64) for k, v in data.items()}, names)
    for name in names:
        cases.assert_close(name, got[name], expected[name], stacks.tolerance(layer, data, "dx"),
                           dtype=np.float32)


@stacks.per_cell
def test_recording_changes_no_result(cell):
    layer = layer_of(cell, 7, 17, num_layers=2, bidirectional=True, dtype=np.float32)
    data, other = stacks.draw(layer, 5, 3), copy.deepcopy(layer)
    stacks.both(layer, data)
    recorded(other, data)
    assert layer.flat_grads.tobytes() == other.flat_grads.tobytes()
