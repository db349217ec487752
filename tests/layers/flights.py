"""Calls of layers in every layout, their passes, and what each gives alone."""

import copy
import dataclasses

import cases
import numpy as np
import pytest
import stacks

from fastrnn.layers.recurrent import Recurrent

V = 9  # rows of the embedding
KINDS = ("time_first", "batch_first", "unbatched", "embedding")

per_layout = pytest.mark.parametrize("layout", KINDS)


@dataclasses.dataclass
class Call:
    """A layer's call: what goes in, and the gradients that go back."""

    layer: Recurrent
    data: dict
    layout: str

    def forward(self, grad=True):
        """Return (the outputs by name, the pass)."""
        layer, data = self.layer, self.data
        state = stacks.state_of(data, "h0", "c0")
        if self.layout == "embedding":
            y, final, p = layer.run(data["x"], data["index"], state, grad=grad,
                                    dropout=grad and layer.training)
        else:
            y, final, p = layer.forward(data["x"], state, grad=grad)
        return {"y": y, **stacks.named("hn", "cn", final)}, p

    def backward(self, p, **options):
        """Go back; return the gradients, and what was recorded, by name."""
        dx, initial, *recorded = p.backward(self.data["dy"],
                                            stacks.state_of(self.data, "dhn", "dcn"), **options)
        got = {} if dx is None else {"dx": dx}
        for number, arrays in enumerate(recorded[0] if recorded else []):
            got |= {f"{name}_{number}": array for name, array in arrays.items()}
        return got | stacks.named("dh0", "dc0", initial)

    def gradients(self, p, **options):
        """Go back into new gradients; return all gradients by name."""
        grads = self.layer.new_grads()
        return self.backward(p, grads=grads, **options) | grads

    def alone(self, dropout_state):
        """Return the results of this call done singly, by a copy of the layer."""
        layer = copy.deepcopy(self.layer)
        layer.dropout_state = dropout_state
        call = Call(layer, self.data, self.layout)
        out, p = call.forward()
        return out | call.gradients(p)


def layer_of(cell, dtype=np.float32, layout="time_first", *, dropout=0.4, seed=0, **options):
    return cases.LAYERS[cell](7, 9, 2, bidirectional=True, dropout=dropout, dtype=dtype, seed=seed,
                              batch_first=layout == "batch_first", **options)


def call_of(layer, layout="time_first", T=6, B=3, seed=1):
    data = stacks.draw(layer, T, 1 if layout == "unbatched" else B, seed)
    if layout == "embedding":
        rng = np.random.default_rng(seed)
        data["index"] = rng.integers(V, size=data["x"].shape[:2], dtype=np.int32)
        data["x"] = rng.standard_normal((V, layer.input_size)).astype(layer.dtype)
        return Call(layer, data, layout)
    return Call(layer, stacks.one_for_all(data, layout), layout)


def alone(calls):
    """Return each call's results, as done one after the other, and the masks' states between."""
    layer = calls[0].layer
    states, results = [layer.dropout_state], []
    for call in calls:
        other = copy.deepcopy(layer)
        other.dropout_state = states[-1]
        results.append(call.alone(states[-1]))
        Call(other, call.data, call.layout).forward()
        states.append(other.dropout_state)
    return results
