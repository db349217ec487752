"""The cells of the grid `cells` as equations, and where their parameters lie in those of a case.

Letters: I input, H hidden, G gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

LAYERNORM = "layernorm_lstm"  # a cell that has no hand-written layer

# A sum of gates has torch's order: i f g o, r z n. i, f, o, r and z are the gates' arguments.
TEXTS = {
    "rnn_tanh": "h = tanh(W x + U h + b + b_h)",
    "gru": """
        r, z = W x + U h + b + b_h
        m = U_n h + b_m
        n = tanh(W_n x + b_n + sigmoid(r) * m)
        h = (1 - sigmoid(z)) * n + sigmoid(z) * h
    """,
    "lstm": """
        i, f, g, o = W x + U h + b + b_h
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
    """,
}



def text_of(cell: str) -> str:
    """Return the equations of a cell; those of LAYERNORM normalise each gate by itself."""
    if cell != LAYERNORM:
        return TEXTS[cell]
    from fastrnn.cells import LayerNormLSTM  # other peers' processes do not need it

    return LayerNormLSTM.text


# ten lines for the time of the first use
TEN_LINES = """
learned p_i = 0.1
learned p_f = 0.1
learned p_o = 0.1
ai, af, ag, ao = W x + U h + b
i = sigmoid(norm(ai) + p_i * c)
f = sigmoid(norm(af) + p_f * c)
g = tanh(norm(ag))
c = f * c + i * g
o = sigmoid(norm(ao) + p_o * c)
h = o * tanh(norm(c))
"""


class Part(NamedTuple):
    """The rows of a parameter of a case that are one parameter of the equations.

    Without rows it is the whole parameter; `rows` counts blocks of H rows or, of an array (G, H),
    is one row.
    """

    of: str
    rows: slice | int | None = None


_WHOLE = {"W_l0": Part("weight_ih_l0"), "U_l0": Part("weight_hh_l0"),
          "b_l0": Part("bias_ih_l0"), "b_h_l0": Part("bias_hh_l0")}
_GATES, _NEW = slice(0, 2), slice(2, 3)  # of a GRU: r and z, n

# by the names of a layer's parameters
PARTS: dict[str, dict[str, Part]] = {
    "rnn_tanh": _WHOLE,
    "lstm": _WHOLE,
    "gru": {
        **{name: Part(part.of, _GATES) for name, part in _WHOLE.items()},
        "W_n_l0": Part("weight_ih_l0", _NEW), "U_n_l0": Part("weight_hh_l0", _NEW),
        "b_n_l0": Part("bias_ih_l0", _NEW), "b_m_l0": Part("bias_hh_l0", _NEW),
    },
    LAYERNORM: {
        "W_l0": Part("weight_ih"), "U_l0": Part("weight_hh"),
        **{f"{letter}_{gate}_l0": Part(of, row)
           for letter, of in (("p", "gain_ih"), ("q", "gain_hh"), ("b", "shift"))
           for row, gate in enumerate("ifgo")},
        "p_c_l0": Part("gain_c"), "b_c_l0": Part("shift_c"),
    },
}


def _view(array: np.ndarray, part: Part, H: int) -> np.ndarray:
    if isinstance(part.rows, slice):
        return array[part.rows.start * H : part.rows.stop * H]
    return array if part.rows is None else array[part.rows]


def taken(cell: str, params: Mapping[str, np.ndarray], H: int) -> dict[str, np.ndarray]:
    """Return the parameters of the equations, from those of a case."""
    return {name: _view(params[part.of], part, H) for name, part in PARTS[cell].items()}


def put_back(cell: str, grads: Mapping[str, np.ndarray], params: Mapping[str, np.ndarray], H: int
             ) -> dict[str, np.ndarray]:
    """Return the gradients of a case's parameters, from those of the equations'."""
    made = {name: np.full_like(param, np.nan) for name, param in params.items()}
    for name, part in PARTS[cell].items():
        _view(made[part.of], part, H)[...] = grads[name]
    return made
