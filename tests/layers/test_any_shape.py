"""Layers of any shape that hypothesis can think of, against the float64 reference."""

import cases
import numpy as np
import stacks
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = st.integers(1, 40)


@given(
    cell=st.sampled_from(cases.CELLS), dtype=st.sampled_from(cases.DTYPES), T=st.integers(0, 9),
    B=SIZES, I=SIZES, H=SIZES, num_layers=st.integers(1, 3), bias=st.booleans(),
    bidirectional=st.booleans(), seed=st.integers(0, 2**16),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_forward_and_backward_of_any_shape(cell, dtype, T, B, I, H, num_layers, bias,
                                           bidirectional, seed):
    layer = cases.LAYERS[cell](I, H, num_layers, bias=bias, bidirectional=bidirectional,
                               dtype=dtype, seed=seed)
    data = stacks.draw(layer, T, B, seed)
    if cell == "rnn_relu":  # a rounding beside the kink moves a whole gradient: forward alone
        got, expected = stacks.forward(layer, data)["y"], stacks.composed(layer, data)["y"]
        cases.assert_close("y", got, expected, stacks.tolerance(layer, data, "y"),
                           dtype=np.dtype(dtype))
    else:
        stacks.assert_composed(layer, stacks.both(layer, data), data)
