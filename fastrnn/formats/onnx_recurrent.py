"""The operators RNN, LSTM and GRU of ONNX: layers of fastrnn with the weights of a node.

With the default activations and without clip, peepholes and input_forget the layers are RNN, LSTM
and GRU, and else layers of cells from equations (`cells.onnx_lstm` and so on). Letters: T steps, B
batch, I input, H hidden, G gates, D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue
from fastrnn.formats.onnx_nodes import Node
from fastrnn.layers.parameters import UNSET
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.standard import GRU, LSTM, RNN

__all__ = ["RECURRENT", "Directions", "RecurrentNode"]

_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
_LISTS = ("activation_alpha", "activation_beta")


class _Kind(NamedTuple):
    """What ONNX says about one of the operators.

    `order` has for each gate of fastrnn, in its order, the number of ONNX's gate.
    """

    gates: int
    order: tuple[int, ...]
    activations: tuple[str, ...]
    states: int


RECURRENT = {
    "RNN": _Kind(1, (0,), ("Tanh",), 1),
    "LSTM": _Kind(4, (0, 2, 3, 1), ("Sigmoid", "Tanh", "Tanh"), 2),  # i o f c becomes i f g o
    "GRU": _Kind(3, (1, 0, 2), ("Sigmoid", "Tanh"), 1),              # z r h becomes r z n
}


def _rows(a: np.ndarray, gates: Sequence[int], H: int) -> np.ndarray:
    """Return the rows of gates, in this order, of an array with H rows for each gate."""
    return np.concatenate([a[gate * H : (gate + 1) * H] for gate in gates])


class Directions:
    """The layers of one node, and which of them walk backwards.

    Attributes
    ----------
    layers : tuple of layers
        One, which may be bidirectional, or one for each direction.
    """

    def __init__(self, layers: Sequence[Recurrent], backwards: Sequence[bool]) -> None:
        self.layers = tuple(layers)
        self._backwards = tuple(backwards)

    def packed(self) -> Directions:
        """Return them with layers in evaluation mode."""
        for layer in self.layers:
            layer.eval()
        return self

    def __call__(
        self, x: np.ndarray, states: Sequence[np.ndarray | None], lengths: np.ndarray | None
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Return y (T, B, D*H) and final states (D, B, H) for x (T, B, I) and initial states."""
        T, B, _ = x.shape
        if T == 0 or B == 0:
            return self._of_no_steps(x, states)
        ys, finals, at = [], [], 0
        back = None
        for layer, backwards in zip(self.layers, self._backwards, strict=True):
            D = layer.directions
            own = tuple(None if s is None else s[at : at + D] for s in states)
            given = None if all(s is None for s in own) else tuple(
                np.zeros((D, B, width), x.dtype) if s is None else s
                for s, width in zip(own, layer.state_widths, strict=True))
            if backwards and back is None:
                back = _Backwards(T, B, lengths)
            y, final = layer(
                back(x) if back is not None and backwards else x,
                given if given is None or len(given) > 1 else given[0], lengths=lengths)
            ys.append(back(y) if back is not None and backwards else y)
            finals.append(final if isinstance(final, tuple) else (final,))
            at += D
        if len(ys) == 1:
            return ys[0], finals[0]
        return np.concatenate(ys, -1), tuple(np.concatenate(of) for of in zip(*finals, strict=True))

    def _of_no_steps(
        self, x: np.ndarray, states: Sequence[np.ndarray | None]
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        T, B, _ = x.shape
        D, H = sum(layer.directions for layer in self.layers), self.layers[0].hidden_size
        return np.zeros((T, B, D * H), x.dtype), tuple(
            np.zeros((D, B, H), x.dtype) if s is None else s.copy() for s in states)


class _Backwards:
    """Turns the steps of each row around; what follows a row's end stays where it is."""

    def __init__(self, T: int, B: int, lengths: np.ndarray | None) -> None:
        self._index = None
        if lengths is not None:
            t = np.arange(T)[:, None]
            self._index = np.where(t < lengths, lengths - 1 - t, t), np.arange(B)

    def __call__(self, a: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(a[::-1]) if self._index is None else a[self._index]


class RecurrentNode:
    """A node RNN, LSTM or GRU: its attributes, checked.

    Parameters
    ----------
    node : Node
    """

    def __init__(self, node: Node) -> None:
        self.op = node.op
        self.kind = kind = RECURRENT[node.op]
        node.check_inputs(3, 8 if node.op == "LSTM" else 6)
        if len(node.outputs) > 1 + kind.states:
            raise RefusedValue(f"it has {len(node.outputs)} outputs, expected at most "
                               f"{1 + kind.states}")
        self.direction = _checks.one_of("its direction", node.text("direction", "forward"),
                                        _DIRECTIONS)
        self.D = _DIRECTIONS[self.direction]
        self.hidden_size = node.whole("hidden_size")
        self.layout = node.flag("layout")
        self.linear = node.flag("linear_before_reset") if node.op == "GRU" else False
        self.coupled = node.flag("input_forget") if node.op == "LSTM" else False
        if node.opset < 7:
            node.flag("output_sequence")  # says only whether Y is wanted
        self.clip = node.number("clip")
        if self.clip is not None:
            self.clip = _checks.above("its clip", self.clip)
        self._read_activations(node)

    def _read_activations(self, node: Node) -> None:
        """Set the activations and their numbers, for each direction."""
        n = len(self.kind.activations)
        names = node.texts("activations", self.kind.activations * self.D)
        if len(names) != n * self.D:
            raise RefusedValue(f"its activations are {_checks.show(names)}, expected {n * self.D}")
        from fastrnn.cells.frameworks import ONNX_ACTIVATIONS  # takes milliseconds: only when used

        # some exporters write small letters
        proper = {name.lower(): name for name in ONNX_ACTIVATIONS}
        names = [proper.get(name.lower(), name) for name in names]
        for name in names:
            _checks.one_of("an activation", name, ONNX_ACTIVATIONS)
        numbers = []
        for i, what in enumerate(_LISTS):
            takes = [len(ONNX_ACTIVATIONS[name][1]) > i for name in names]
            numbers.append(_assigned(what, node.numbers(what, ()), takes))
        self.settings = [tuple((tuple(a[d * n : (d + 1) * n])) for a in (names, *numbers))
                         for d in range(self.D)]

    # ---- layers -----------------------------------------------------------------------------

    def layers(
        self, W: np.ndarray, R: np.ndarray, B: np.ndarray | None, P: np.ndarray | None
    ) -> Directions:
        """Return the layers of weights W (D, G*H, I), R (D, G*H, H), B (D, 2*G*H), P (D, 3*H)."""
        G, D = self.kind.gates, self.D
        H = R.shape[-1] if R.ndim else 0
        if R.ndim != 3 or R.shape != (D, G * H, H) or not H:
            raise RefusedValue(f"its R has the shape {R.shape}, expected (D, {G}*H, H) with D = "
                               f"{D} and H at least 1")
        if self.hidden_size not in (None, H):
            raise RefusedValue(f"its hidden_size is {self.hidden_size}, but R has the shape "
                               f"{R.shape}")
        if W.ndim != 3 or W.shape[:2] != (D, G * H) or not W.shape[2]:
            raise RefusedValue(f"its W has the shape {W.shape}, expected ({D}, {G * H}, I) with I "
                               "at least 1")
        for name, a, width in (("B", B, 2 * G * H), ("P", P, 3 * H)):
            if a is not None and a.shape != (D, width):
                raise RefusedValue(f"its {name} has the shape {a.shape}, expected {(D, width)}")
        for name, a in (("W", W), ("R", R), ("B", B), ("P", P)):
            if a is not None and (a.dtype.kind != "f" or a.dtype != W.dtype):
                raise RefusedType(f"its {name} is {a.dtype.name}, expected float32, float64 or "
                                  "float16, the same for all weights")
        if W.dtype == np.float16:
            W, R, B, P = (None if a is None else a.astype(np.float32)  # type: ignore[assignment]
                          for a in (W, R, B, P))
        one = self.settings[0]
        make = self._standard if self._is_standard(P) else self._from_equations
        backwards = [False, True][-D:] if self.direction != "forward" else [False]
        if len(set(self.settings)) == 1 and D == 2:
            return Directions([make(one, W, R, B, P, slice(0, 2))], [False])
        return Directions([make(setting, W, R, B, P, slice(d, d + 1))
                           for d, setting in enumerate(self.settings)], backwards)

    def _is_standard(self, P: np.ndarray | None) -> bool:
        """Return whether the table's cells compute this."""
        if self.clip is not None or self.coupled or P is not None:
            return False
        if self.op == "RNN":
            return all(names[0] in ("Tanh", "Relu", "Sigmoid") for names, *_ in self.settings)
        return all(names == self.kind.activations for names, *_ in self.settings)

    def _standard(
        self, setting: Any, W: np.ndarray, R: np.ndarray, B: np.ndarray | None,
        P: np.ndarray | None, which: slice,
    ) -> Recurrent:
        """Return a layer RNN, LSTM or GRU."""
        H, order = R.shape[2], self.kind.order
        options: dict[str, Any] = {
            "bias": B is not None, "bidirectional": which.stop - which.start == 2,
            "dtype": W.dtype, "seed": UNSET}
        layer: Recurrent
        if self.op == "RNN":
            layer = RNN(W.shape[2], H, nonlinearity=setting[0][0].lower(), **options)
        elif self.op == "LSTM":
            layer = LSTM(W.shape[2], H, **options)
        else:
            layer = GRU(W.shape[2], H, reset_after=self.linear, **options)
        params = layer.parameters()
        for d, suffix in zip(range(which.start, which.stop), ("", "_reverse"), strict=False):
            arrays = {"weight_ih": W[d], "weight_hh": R[d]}
            if B is not None:
                arrays |= zip(("bias_ih", "bias_hh"), np.split(B[d], 2), strict=True)
            for name, a in arrays.items():
                param = params[f"{name}_l0{suffix}"]  # gate by gate: no copy of the whole
                for k, gate in enumerate(order):
                    param[k * H : (k + 1) * H] = a[gate * H : (gate + 1) * H]
        return layer

    def _from_equations(
        self, setting: Any, W: np.ndarray, R: np.ndarray, B: np.ndarray | None,
        P: np.ndarray | None, which: slice,
    ) -> Recurrent:
        """Return a layer of ONNX's cell in equations."""
        from fastrnn.cells import frameworks
        from fastrnn.layers.layer import Layer

        names, alphas, betas = setting
        options: dict[str, Any] = {"alphas": alphas, "betas": betas, "clip": self.clip}
        if self.op == "RNN":
            definition = frameworks.onnx_rnn(names, **options)
        elif self.op == "LSTM":
            definition = frameworks.onnx_lstm(names, input_forget=self.coupled,
                                              peepholes=P is not None, **options)
        else:
            definition = frameworks.onnx_gru(names, self.linear, **options)
        H = R.shape[2]
        layer = Layer(definition, W.shape[2], H, bias=B is not None, dtype=W.dtype, seed=UNSET,
                      bidirectional=which.stop - which.start == 2)
        params = layer.parameters()
        for d, suffix in zip(range(which.start, which.stop), ("", "_reverse"), strict=False):
            for name, a in self._named(W[d], R[d], None if B is None else B[d],
                                       None if P is None else P[d], H).items():
                params[f"{name}_l0{suffix}"] = a
        return layer

    def _named(
        self, W: np.ndarray, R: np.ndarray, B: np.ndarray | None, P: np.ndarray | None, H: int
    ) -> dict[str, np.ndarray]:
        """Return one direction's arrays under the names of the equations."""
        arrays = {"W": W, "R": R}
        if B is not None:
            arrays |= zip(("b_W", "b_R"), np.split(B, 2), strict=True)
        if self.op == "GRU":  # z and r, and then the candidate
            later = {"W": "W_h", "R": "R_h", "b_W": "b_Wh", "b_R": "b_Rh"}
            arrays |= {later[name]: a[2 * H :] for name, a in arrays.items()}
            return {name: a[: 2 * H] if name in later else a for name, a in arrays.items()}
        if self.coupled:  # without the rows of f
            arrays = {name: _rows(a, (0, 1, 3), H) for name, a in arrays.items()}
        if P is not None:
            p = dict(zip(("p_i", "p_o", "p_f"), np.split(P, 3), strict=True))
            if self.coupled:
                del p["p_f"]
            arrays |= p
        return arrays

    # ---- a call -----------------------------------------------------------------------------

    def run(
        self, of: Directions, x: np.ndarray, lengths: np.ndarray | None,
        *states: np.ndarray | None,
    ) -> tuple[np.ndarray, ...]:
        """Return Y, Y_h and, of an LSTM, Y_c."""
        layer, D = of.layers[0], self.D
        I, H, dtype = layer.input_size, layer.hidden_size, layer.dtype
        half = x.dtype == np.float16 and dtype == np.float32
        if x.dtype != dtype and not half:
            raise RefusedType(f"its X is {x.dtype.name}, expected {dtype.name} like its weights")
        if x.ndim != 3 or x.shape[2] != I:
            raise RefusedValue(f"its X has the shape {x.shape}, expected three axes, the last of "
                               f"size {I}")
        x = x.swapaxes(0, 1) if self.layout else x
        T, B, _ = x.shape
        given = []
        for name, a in zip(("initial_h", "initial_c"), states, strict=False):
            if a is not None:
                expected = (B, D, H) if self.layout else (D, B, H)
                if a.shape != expected:
                    raise RefusedValue(f"its {name} has the shape {a.shape}, expected {expected}")
                if a.dtype.kind != "f":
                    raise RefusedType(f"its {name} is {a.dtype.name}, expected {x.dtype.name}")
                a = np.ascontiguousarray(a.swapaxes(0, 1) if self.layout else a, dtype)
            given.append(a)
        if lengths is not None:
            if lengths.dtype not in (np.int32, np.int64) or lengths.shape != (B,):
                raise RefusedValue(f"its sequence_lens is {lengths.dtype.name} {lengths.shape}, "
                                   f"expected int32 ({B},)")
            if B and not (lengths.min() >= 0 and lengths.max() <= T):
                raise RefusedValue(f"its sequence_lens is {lengths.min()} to {lengths.max()}, "
                                   f"expected 0 to {T}")
            lengths = lengths.astype(np.int64)
        y, final = of(np.ascontiguousarray(x, dtype), given, lengths)
        y = y.reshape(T, B, D, H).transpose((1, 0, 2, 3) if self.layout else (0, 2, 1, 3))
        outputs = (y, *(a.swapaxes(0, 1) if self.layout else a for a in final))
        return tuple(a.astype(np.float16) for a in outputs) if half else outputs

    def compiled(
        self, weights: Sequence[np.ndarray | None] | None
    ) -> tuple[Callable[..., tuple[Any, ...]], tuple[Recurrent, ...]]:
        """Return what computes the node, and its layers if they are made once.

        Parameters
        ----------
        weights : [W, R, B, P], or None
            If they are given, they are constant: the function takes X, sequence_lens, initial_h and
            initial_c. The layers are still in training mode, so that these arrays can go before the
            weights are packed. With None the function takes all inputs of the node, and makes the
            layers in each call.
        """
        n = self.kind.states
        if weights is not None:
            W, R, B, P = weights
            assert W is not None
            assert R is not None
            made = self.layers(W, R, B, P)

            def fixed(x: np.ndarray, lengths: Any = None, *states: Any) -> tuple[Any, ...]:
                return self.run(made, x, lengths, *(*states, None, None)[:n])

            return fixed, made.layers

        def anew(
            x: np.ndarray, W: np.ndarray, R: np.ndarray, B: Any = None, lengths: Any = None,
            h: Any = None, c: Any = None, P: Any = None,
        ) -> tuple[Any, ...]:
            return self.run(self.layers(W, R, B, P).packed(), x, lengths, *(h, c)[:n])

        return anew, ()


def _assigned(what: str, values: Sequence[float], takes: Sequence[bool]) -> list[float | None]:
    """Return one number for each activation, None where it is the default or there is none.

    The list of a file has the numbers of those activations that have one; some exporters write one
    for each activation.
    """
    if len(values) > sum(takes):
        if len(values) != len(takes):
            raise RefusedValue(f"its {what} has {len(values)} numbers, expected at most "
                               f"{sum(takes)}")
        return [float(value) if taken else None for value, taken in zip(values, takes, strict=True)]
    rest = iter(values)
    numbers = (next(rest, None) if taken else None for taken in takes)
    return [None if value is None else float(value) for value in numbers]
