"""RNN, LSTM and GRU with the semantics of torch.nn, on NumPy arrays.

A layer holds parameters and shapes and turns whatever a caller may pass into what the kernels take;
one call goes on to fastrnn/_kernels/sequence.pyx once per stacked layer. Letters: T steps, B batch,
I input, H hidden, G gates, L layers, D directions (2 if bidirectional).
"""

from __future__ import annotations

import copy
import math
import threading
import warnings
from typing import Any

import numpy as np

from fastrnn import _checks, bfloat16
from fastrnn._kernels import sequence
from fastrnn._kernels.runtime import Workspace, get_isa
from fastrnn._kernels.stream import Stream
from fastrnn.functional import cell_of
from fastrnn.parameters import UNSET, Parametrized

__all__ = ["GRU", "LSTM", "RNN"]


def _rows(T: int, B: int, N: int, dtype: Any, turned: bool) -> np.ndarray:
    """Return a new (T, B, N) that lies in memory as that, or, if turned, as (B, T, N)."""
    if turned:
        return np.empty((B, T, N), dtype).transpose(1, 0, 2)
    return np.empty((T, B, N), dtype)


class Recurrent(Parametrized):
    """What the three layers share: everything but the name of the cell."""

    def __init__(
        self, cell: str, input_size: int, hidden_size: int, num_layers: int, bias: bool,
        batch_first: bool, dropout: float, bidirectional: bool, dtype: Any, seed: Any,
    ) -> None:
        owner = type(self).__name__
        self.cell = cell
        self.input_size = _checks.positive(owner, "input_size", input_size)
        self.hidden_size = _checks.positive(owner, "hidden_size", hidden_size)
        self.num_layers = _checks.positive(owner, "num_layers", num_layers)
        self.bias = bool(bias)
        self.batch_first = bool(batch_first)
        self.dropout = _checks.probability(owner, "dropout", dropout)
        self.bidirectional = bool(bidirectional)
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                f"{owner}: dropout works between layers; with num_layers = 1 it does nothing",
                stacklevel=3,
            )
        self._kind = sequence.CELLS.index(cell)
        self._has_c = cell in sequence.CELLS_WITH_C
        self._reverse = (False, True) if self.bidirectional else (False,)
        self._workspace = Workspace()
        self._tapes: list[tuple[sequence.Tape, np.ndarray | None]] | None = None
        self._taped = (True, False)  # batched, turned
        # what each backward leaves in `seen`, as `flow` would return it
        self.watch: tuple[str, ...] = ()
        self.seen: list[dict[str, np.ndarray]] = []
        self._packs: list[tuple[sequence.Packed, ...]] | None = None
        self._packed_for = ""
        self._half = False
        self._lock = threading.Lock()

        D, H, GH = len(self._reverse), self.hidden_size, sequence.GATES[cell] * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.num_layers):
            I = self.input_size if layer == 0 else D * H
            for direction in ("", "_reverse")[:D]:
                named: dict[str, tuple[int, ...]] = {"weight_ih": (GH, I), "weight_hh": (GH, H)}
                if self.bias:
                    named |= {"bias_ih": (GH,), "bias_hh": (GH,)}
                shapes |= {f"{k}_l{layer}{direction}": shape for k, shape in named.items()}
        super().__init__(shapes, _checks.float_dtype(owner, dtype))
        weights, masks = _checks.seeds(owner, None if seed is UNSET else seed, 2)
        bound = 1 / math.sqrt(H)
        if seed is not UNSET:
            self.flat[:] = np.random.default_rng(weights).uniform(-bound, bound, self.flat.size)
        self._masks = np.random.default_rng(masks)

    # ---- calls ------------------------------------------------------------------------------

    def __call__(self, x: Any, state: Any = None) -> tuple[np.ndarray, Any]:
        """Run the layers over a batch of sequences.

        Parameters
        ----------
        x : array (T, B, I), or (B, T, I) with batch_first, or (T, I): one sequence
            Of the layer's dtype. In training mode leave it as it is until backward.
        state : array (L*D, B, H) or None; of an LSTM a pair (h0, c0) of such
            The initial state, (L*D, H) for one sequence; None means zeros.

        Returns
        -------
        y : array (T, B, D*H), or (B, T, D*H), or (T, D*H)
            The last layer's states h, forward and reverse side by side.
        hn : array (L*D, B, H) or (L*D, H); of an LSTM the pair (hn, cn)
            The state after the last processed step of every layer and direction.

        Raises
        ------
        TypeError
            If an argument is not numeric or of another dtype, or the state is not of the cell.
        ValueError
            If a shape does not fit.
        RuntimeError
            If another thread is using this layer in training mode.
        """
        owner, I = type(self).__name__, self.input_size
        x = _checks.numeric(owner, "x", x, self.dtype)
        if x.ndim == 2:
            x = _checks.array(owner, "x", x, self.dtype, ("T", I), self._x_is)
            y, state = self.run(x[:, None], None, state, batched=False)
            return y[:, 0], state
        shape = ("B", "T", I) if self.batch_first else ("T", "B", I)
        x = _checks.array(owner, "x", x, self.dtype, shape, self._x_is)
        if not self.batch_first:
            return self.run(x, None, state)
        y, state = self.run(x.transpose(1, 0, 2), None, state, turned=True)
        return y.transpose(1, 0, 2), state

    def _x_is(self, x: np.ndarray) -> str:
        if x.ndim not in (2, 3):
            return f" or (T, {self.input_size})"
        if x.shape[-1] != self.input_size:
            return f": x has {x.shape[-1]} features, weight_ih_l0 expects {self.input_size}"
        return ""

    def run(
        self, x: Any, index: np.ndarray | None, state: Any, *, batched: bool = True,
        turned: bool = False, keep: bool = True,
    ) -> tuple[np.ndarray, Any]:
        """Run the layers over checked input: what `__call__` and a model of symbols share.

        Parameters
        ----------
        x : array (T, B, I); with `index` an embedding (V, I), or None: one-hot rows
        index : None, or int32 (T, B): the rows of x that are the input, or where their 1 is
        state : as for a call; without `batched` its arrays have no B
        turned : bool
            Whether y shall lie in memory as (B, T, D*H).
        keep : bool
            Whether training mode keeps what backward needs.

        Returns
        -------
        y : array (T, B, D*H)
        hn, or (hn, cn) : the final state, shaped as `state`
        """
        owner = type(self).__name__
        T, B = x.shape[:2] if index is None else index.shape
        L, D, H = self.num_layers, len(self._reverse), self.hidden_size
        shape = (L * D, B, H) if batched else (L * D, H)
        h0, c0 = _checks.states(owner, "state" if self._has_c else "h0", state, self._has_c,
                                self.dtype, shape)
        h0, c0 = (None if s is None else s.reshape(L * D, B, H) for s in (h0, c0))
        hn = np.empty((L * D, B, H), self.dtype)
        cn = np.empty_like(hn) if self._has_c else None
        training = self.training and keep
        weights = self._weights if self.training else self._packed()
        tapes = []
        if training:
            self._take(owner)
        try:
            if training:
                self._drop_tapes()
            for layer in range(L):
                y = _rows(T, B, D * H, self.dtype, turned)
                own = slice(layer * D, (layer + 1) * D)
                tape = sequence.forward(
                    self._kind, x, index, weights[layer], self._reverse,
                    None if h0 is None else h0[own], None if c0 is None else c0[own], y, hn[own],
                    None if cn is None else cn[own], training, self._workspace,
                )
                mask = None
                if self.training and self.dropout and layer < L - 1:
                    mask = self._mask(y)
                    y *= mask
                tapes.append((tape, mask))
                x, index = y, None
            if training:
                self._tapes, self._taped = tapes, (batched, turned)
        finally:
            if training:
                self._lock.release()
        return y, hn.reshape(shape) if cn is None else (hn.reshape(shape), cn.reshape(shape))

    def _take(self, owner: str) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(f"{owner}: another thread is using this layer in training mode")

    def backward(self, dy: Any = None, dstate: Any = None, *, need_dx: bool = True) -> Any:
        """Backpropagate the latest training-mode call through time, and add to `grads`.

        Parameters
        ----------
        dy : array like y, or None
            Gradient of the loss with respect to y; None means zero.
        dstate : array like hn, or None; of an LSTM a pair (dhn, dcn)
            Gradient with respect to the final state; None, as a whole or of one, means zero.
        need_dx : bool
            False saves the work for the gradient of the input.

        Returns
        -------
        dx : array like x, or None
            Gradient with respect to x; None without `need_dx`.
        dh0 : array like hn; of an LSTM the pair (dh0, dc0)
            Gradient with respect to the initial state.

        Raises
        ------
        RuntimeError
            If there was no training-mode call, or it has had its backward.
        TypeError, ValueError
            If a gradient is not one of y or of the state; the call can then be repeated.
        """
        dx, dstate0, flows = self._backward("backward", dy, dstate, need_dx, self.watch)
        self.seen = flows if self.watch else []
        return dx, dstate0

    def flow(
        self, names: tuple[str, ...], dy: Any = None, dstate: Any = None
    ) -> list[dict[str, np.ndarray]]:
        """Go back as `backward` does and return what that computes on its way, layer by layer.

        Parameters
        ----------
        names : tuple of str
            Any of "dh", "dc" (of an LSTM), "gates", "dgates_x", "dgates_h", "x" and "h".
        dy, dstate : as of `backward`

        Returns
        -------
        list of L dicts
            The arrays named, time-major, in the order of time for both directions:
            dh, dc (T, B, D, H), the whole derivatives with respect to h(t) and c(t), through y(t),
            the gates and later steps; gates (T, B, D, G, H), the activated gates; dgates_x and
            dgates_h (T, B, D, G, H), the gradients of W_ih x(t) + b_ih and of W_hh h(t-1) + b_hh,
            which differ for n of a GRU alone; x (T, B, I), the layer's input, of one-hot symbols
            their numbers (T, B); h (T, B, D, H), the state that a step began with.

        Raises
        ------
        RuntimeError, TypeError, ValueError
            As `backward`, or if a name is another; the call can then be repeated.
        """
        return self._backward("flow", dy, dstate, False, names)[2]

    def _backward(
        self, name: str, dy: Any, dstate: Any, need_dx: bool, flow: tuple[str, ...] = ()
    ) -> tuple[Any, Any, list[dict[str, np.ndarray]]]:
        owner = f"{type(self).__name__}.{name}"
        self._take(owner)
        try:
            return self._walk_back(owner, dy, dstate, need_dx, flow)
        finally:
            self._lock.release()

    def _walk_back(
        self, owner: str, dy: Any, dstate: Any, need_dx: bool, flow: tuple[str, ...]
    ) -> tuple[Any, Any, list[dict[str, np.ndarray]]]:
        if self._tapes is None:
            raise RuntimeError(f"{owner}: no call to go back through: each training-mode call "
                               "serves one backward, and eval-mode calls none")
        T, B, _, H = self._tapes[0][0].shape
        L, D = self.num_layers, len(self._reverse)
        batched, turned = self._taped
        if dy is not None:
            y_shape = (B, T, D * H) if turned else (T, B, D * H) if batched else (T, D * H)
            dy = _checks.array(owner, "dy", dy, self.dtype, y_shape)
            dy = dy.transpose(1, 0, 2) if turned else dy.reshape(T, B, D * H)
        shape = (L * D, B, H) if batched else (L * D, H)
        dhn, dcn = _checks.states(owner, "dstate" if self._has_c else "dhn", dstate, self._has_c,
                                  self.dtype, shape)
        dhn, dcn = (None if s is None else s.reshape(L * D, B, H) for s in (dhn, dcn))
        dh0 = np.empty((L * D, B, H), self.dtype)
        dc0 = np.empty_like(dh0) if self._has_c else None
        grads = self._grads
        dx, flows = None, []
        for layer in reversed(range(L)):
            tape, mask = self._tapes[layer]
            if mask is not None and dy is not None:
                dy *= mask
            own = slice(layer * D, (layer + 1) * D)
            dx = None
            if layer or need_dx:
                dx = (np.empty(tape.x_shape, self.dtype) if len(tape.x_shape) == 2
                      else _rows(T, B, tape.x_shape[2], self.dtype, turned))
            flows.append(sequence.backward(
                tape, dy, None if dhn is None else dhn[own], None if dcn is None else dcn[own],
                dx, dh0[own], None if dc0 is None else dc0[own], grads[layer], flow,
            ))
            dy = dx
        self._tapes = None
        if dx is not None and dx.ndim == 3:
            dx = dx.transpose(1, 0, 2) if turned else dx if batched else dx[:, 0]
        dh0 = dh0.reshape(shape)
        return dx, dh0 if dc0 is None else (dh0, dc0.reshape(shape)), flows[::-1]

    def _mask(self, y: np.ndarray) -> np.ndarray:
        """Return zeros with probability `dropout`, and elsewhere what keeps the mean."""
        keep = self._masks.random(y.shape, np.float32) >= np.float32(self.dropout)
        scale = 1 / (1 - self.dropout) if self.dropout < 1 else 0
        return np.multiply(keep, scale, dtype=self.dtype)

    def _drop_tapes(self) -> None:
        for tape, _ in self._tapes or ():
            tape.release()
        self._tapes = None

    # ---- weights ----------------------------------------------------------------------------

    def _hold(self, flat: np.ndarray, flat_grads: np.ndarray) -> None:
        super()._hold(flat, flat_grads)
        self._weights, self._grads = self._by_layer(self._params), self._by_layer(self.grads)

    def _by_layer(self, named: dict[str, np.ndarray]) -> list[tuple[Any, ...]]:
        """Per layer, per direction: (weight_ih, weight_hh, bias_ih or None, bias_hh or None)."""
        return [
            tuple(
                tuple(named.get(f"{k}_l{layer}{'_reverse' if reverse else ''}")
                      for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
                for reverse in self._reverse
            )
            for layer in range(self.num_layers)
        ]

    def _packed(self) -> list[tuple[sequence.Packed, ...]]:
        """Per layer, per direction: the weights in the kernels' panels."""
        if self._packs is None or self._packed_for != get_isa():
            packs = [tuple(map(self._pack, layer)) for layer in self._weights]
            if self.training:
                return packs
            self._packs, self._packed_for = packs, get_isa()
        return self._packs

    def _pack(self, weights: sequence.Weights) -> sequence.Packed:
        if self.training or not self._half:
            return sequence.Packed(self._kind, weights)
        (w_ih, words_ih), (w_hh, words_hh) = map(bfloat16.pair, weights[:2])
        return sequence.Packed(self._kind, (w_ih, w_hh, *weights[2:]), (words_ih, words_hh))

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self._packs = None
        if not mode:
            self._packed()
        return self

    def eval(self, weights: str = "float32") -> Any:
        """Choose evaluation mode and return self.

        The weights are packed once, for all calls to come, and every array of parameters becomes
        read-only until `train`.

        Parameters
        ----------
        weights : {"float32", "bfloat16"}
            bfloat16 lets steps read half the bytes: faster where few rows meet weights that do not
            fit into the caches near the core. Each weight is rounded to a relative error of at most
            2^-8; states, sums and activations stay float32. `parameters` keep their values. Layers
            of float64 are packed as they are with "float32".

        Raises
        ------
        ValueError
            If `weights` is another, or bfloat16 is asked of a layer of float64.
        """
        owner = f"{type(self).__name__}.eval"
        if not isinstance(weights, str) or weights not in ("float32", "bfloat16"):
            raise ValueError(f"{owner}: weights is {_checks.show(weights)}, expected 'float32' or "
                             "'bfloat16'")
        if weights == "bfloat16" and self.dtype != np.float32:
            raise ValueError(f"{owner}: weights is 'bfloat16', expected 'float32' for a layer of "
                             f"{self.dtype}")
        self._half = weights == "bfloat16"
        return self.train(False)

    def stream(
        self, batch_size: int = 1, embedding: np.ndarray | None = None, *, one_hot: bool = False
    ) -> Stream:
        """Return a preallocated single step with its own state, which starts at zero.

        Parameters
        ----------
        batch_size : int
            Rows B that advance together.
        embedding : array (V, I), optional
            If given, a step takes whole numbers (B,): rows of this array.
        one_hot : bool
            Whether a step takes whole numbers (B,) below I, for a row with its 1 there.

        Returns
        -------
        Stream
            ``step(x)`` or ``step(x, out=y)`` takes x (B, I) and gives the last layer's h (B, H);
            ``step.state`` is the state, h (L, B, H) or the pair (h, c), and can be set;
            ``step.reset()`` zeroes it. It keeps the weights of this moment.

        Raises
        ------
        ValueError
            If the layer is bidirectional: the reverse direction needs the whole sequence. If an
            embedding is given and `one_hot` too.
        """
        owner = f"{type(self).__name__}.stream"
        batch_size = _checks.positive(owner, "batch_size", batch_size)
        if self.bidirectional:
            raise ValueError(f"{owner}: the layer is bidirectional, a single step has no future "
                             "to walk back from")
        if embedding is not None and one_hot:
            raise ValueError(f"{owner}: embedding is given and one_hot is True, expected one of "
                             "them")
        if embedding is not None:
            embedding = _checks.array(owner, "embedding", embedding, self.dtype,
                                      ("V", self.input_size))
        packs = [directions[0] for directions in self._packed()]
        return Stream(owner, packs, batch_size, self.dtype, embedding, bool(one_hot))

    @property
    def directions(self) -> int:
        """How many there are: D."""
        return len(self._reverse)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make a layer of the same shapes, and which class takes them."""
        names = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
                 "bidirectional"]
        names += ["nonlinearity"] if isinstance(self, RNN) else []
        return {"layer": type(self).__name__, **{name: getattr(self, name) for name in names},
                "dtype": self.dtype.name}

    @property
    def masks(self) -> dict[str, Any]:
        """The state of the generator that draws dropout's masks; a checkpoint keeps it."""
        return dict(self._masks.bit_generator.state)

    @masks.setter
    def masks(self, state: dict[str, Any]) -> None:
        self._masks.bit_generator.state = state

    # ---- copies and print -------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        for name in ("_tapes", "_packs", "_lock", "_workspace", "_weights", "_grads", "seen"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._tapes = self._packs = None
        self.seen = []
        self._lock, self._workspace = threading.Lock(), Workspace()
        super().__setstate__(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Recurrent:
        # as copy would do it, but for the buffers, which __setstate__ copies, and the generator,
        # whose own copy takes longer than a small layer's forward
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        state = self.__getstate__()
        kept = {name: state.pop(name) for name in ("flat", "flat_grads", "_shapes")}
        bits = np.random.PCG64(0)
        bits.state = state.pop("_masks").bit_generator.state
        twin.__setstate__(copy.deepcopy(state, memo) | kept
                          | {"_masks": np.random.Generator(bits)})
        return twin

    def __repr__(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        if self.cell.startswith("rnn_") and self.cell != "rnn_tanh":
            parts.append(f"nonlinearity={self.cell[4:]!r}")
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0,
                    "bidirectional": False}
        parts += [f"{k}={getattr(self, k)!r}" for k, v in defaults.items() if getattr(self, k) != v]
        if self.dtype != np.float32:
            parts.append(f"dtype={self.dtype.name}")
        return f"{type(self).__name__}({', '.join(parts)})"


_PARAMETERS = """

    Parameters
    ----------
    input_size : int
        Features I of the input.
    hidden_size : int
        Units H.
    num_layers : int
        Layers L; each reads the states of the one below.
    %s\
bias : bool
        Whether there are the two biases.
    batch_first : bool
        Whether x, y and their gradients are (B, T, ...) instead of (T, B, ...). States are not
        affected.
    dropout : float in [0, 1]
        Share of the states between layers that is set to zero in training mode, while the others
        grow by 1 / (1 - dropout).
    bidirectional : bool
        Whether a second direction walks from the last step to the first; y holds both side by side.
    dtype : float32 or float64
        Of parameters, inputs and results.
    seed : int or None
        Of the initial weights (uniform in +-1/sqrt(H), as torch's) and of dropout; None: any.

    Attributes
    ----------
    flat, flat_grads, grads, training
        See fastrnn.parameters.Parametrized.

    Raises
    ------
    ValueError
        If a size is not a whole number of at least 1, or another argument is out of its range.

    Examples
    --------
    %s
    """


class RNN(Recurrent):
    """Elman's simple recurrent network, h(t) = phi(W_ih x(t) + b_ih + W_hh h(t-1) + b_hh)."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh",
        bias: bool = True, batch_first: bool = False, dropout: float = 0.0,
        bidirectional: bool = False, *, dtype: Any = np.float32, seed: Any = None,
    ) -> None:
        cell = cell_of(type(self).__name__, nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(cell, input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, dtype, seed)


class LSTM(Recurrent):
    """Long short-term memory with forget gates: torch.nn.LSTM's equations, gate order i f g o."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, *,
        dtype: Any = np.float32, seed: Any = None,
    ) -> None:
        super().__init__("lstm", input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, dtype, seed)


class GRU(Recurrent):
    """Gated recurrent units, reset after the product: torch.nn.GRU's equations, order r z n."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, *,
        dtype: Any = np.float32, seed: Any = None,
    ) -> None:
        super().__init__("gru", input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, dtype, seed)


_EXAMPLE = """>>> {0} = fastrnn.{1}(64, 128, seed=0)
    >>> y, {2} = {0}(np.zeros((100, 16, 64), np.float32))  # (T, B, I)
    >>> y.shape
    (100, 16, 128)
    >>> dx, {3} = {0}.backward(np.ones_like(y))  # {0}.grads now holds the gradients"""
_NONLINEARITY = """nonlinearity : {"tanh", "relu", "sigmoid"}
        The activation phi.
    """

for _layer, _extra, _words in (
    (RNN, _NONLINEARITY, ("rnn", "RNN", "hn", "dh0")),
    (LSTM, "", ("lstm", "LSTM", "(hn, cn)", "(dh0, dc0)")),
    (GRU, "", ("gru", "GRU", "hn", "dh0")),
):
    _layer.__doc__ = str(_layer.__doc__) + _PARAMETERS % (_extra, _EXAMPLE.format(*_words))

LAYERS: dict[str, type[Recurrent]] = {layer.__name__: layer for layer in (RNN, LSTM, GRU)}
