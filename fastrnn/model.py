"""Sequence models: h(t) = phi(W h(t-1) + U x(t)), o(t) = V h(t), with a sequence in, out, or both.

A `SequenceModel` is a Stack of recurrent layers, the linear head V, and a loss. Letters: T steps, B
batch, I input, H hidden, D directions, L layers, N outputs, V symbols, C size of a vector that a
sequence is generated from.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._kernels import linear
from fastrnn._kernels.stream import Stream
from fastrnn.layers import LSTM
from fastrnn.losses import LOSSES
from fastrnn.parameters import UNSET, seeds_of
from fastrnn.stack import Stack, States, arrays_of

__all__ = ["SequenceModel"]

READOUTS = ("every", "last")


@dataclasses.dataclass
class _Segments:
    """What backward needs of a loss whose activations were not kept."""

    parts: list[Any]  # (slice of time, state before it, masks' generators, share of the loss)
    x: Any
    targets: Any
    weights: np.ndarray | None
    vector: np.ndarray | None
    read: np.ndarray | None  # with readout "last": what the head read, and the outputs' gradient
    grad: Any


class SequenceModel(Stack):
    """Recurrent layers and a linear head: o(t) = V h(t) + b, with a loss.

    =============  ===========================================================================
    in, out        how
    =============  ===========================================================================
    many to many   readout "every": a tag, a forecast, the next symbol for each step
    many to one    readout "last": a class or a number for the sequence, from the final state
    one to many    `generate`, from a state, or, with `vector_size`, from a vector
    =============  ===========================================================================

    Parameters
    ----------
    layers, symbols, one_hot
        As of a Stack.
    output_size : int
        Numbers N of an output.
    loss : {"softmax", "mse", "bce"}
        Softmax cross-entropy with targets of whole numbers, mean squared error, or binary
        cross-entropy of each output's sigmoid; see fastrnn.losses.
    readout : {"every", "last"}
        Whether every step has an output, or the sequence has one. The last is read from the final
        states of the last layer, the reverse direction's too.
    vector_size : int, optional
        If given, calls take a vector (B, C), and the initial state is a linear map of it.
    seed : int or None
        Of embedding, head (uniform in +-1/sqrt(D*H)) and the map of the vector.

    Raises
    ------
    TypeError, ValueError
        If layers and sizes do not fit, or an option is unknown.
    """

    def __init__(
        self, layers: Any, output_size: int, *, symbols: int | None = None, one_hot: bool = False,
        loss: str = "softmax", readout: str = "every", vector_size: int | None = None,
        seed: Any = None,
    ) -> None:
        owner = type(self).__name__
        self.output_size = _checks.positive(owner, "output_size", output_size)
        self.loss_name = _checks.one_of(owner, "loss", loss, LOSSES)
        self.readout = _checks.one_of(owner, "readout", readout, READOUTS)
        self.vector_size = None if vector_size is None else _checks.positive(
            owner, "vector_size", vector_size)
        self._pending: Any = None
        self._outputs: np.ndarray | None = None
        inner, head = seeds_of(owner, seed, 2)
        super().__init__(layers, symbols=symbols, one_hot=one_hot, seed=inner)
        if seed is UNSET:
            return
        rng, bound = np.random.default_rng(head), 1 / math.sqrt(self.width)
        for name in ("head.weight", "head.bias"):
            self._params[name][...] = rng.uniform(-bound, bound, self._shapes[name])
        if self.vector_size is not None:
            bound = 1 / math.sqrt(self.vector_size)
            self._params["start.weight"][...] = rng.uniform(-bound, bound,
                                                            self._shapes["start.weight"])

    def _own(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            "head.weight": (self.output_size, self.width), "head.bias": (self.output_size,)}
        if self.vector_size is not None:
            size = sum(math.prod(shape) for shapes in self._state_shapes(1) for shape in shapes)
            shapes |= {"start.weight": (size, self.vector_size), "start.bias": (size,)}
        return shapes

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make a model of the same shapes."""
        return super().config | {
            "output_size": self.output_size, "loss": self.loss_name, "readout": self.readout,
            "vector_size": self.vector_size}

    # ---- the initial state from a vector ----------------------------------------------------

    def _state_shapes(self, B: int) -> list[list[tuple[int, int, int]]]:
        """Return, per layer, the shapes of its h and, of an LSTM, its c."""
        return [[(layer.num_layers * layer.directions, B, layer.hidden_size)]
                * (2 if isinstance(layer, LSTM) else 1) for layer in self.layers]

    def _start(self, owner: str, state: Any, vector: Any) -> tuple[Any, np.ndarray | None]:
        """Return the initial state, and the vector if that is where it comes from."""
        if vector is None:
            if self.vector_size is not None and state is None:
                raise ValueError(f"{owner}: neither state nor vector is given, expected one: the "
                                 "model has a vector_size")
            return state, None
        if self.vector_size is None or state is not None:
            why = "the model has no vector_size" if self.vector_size is None else "state is given"
            raise ValueError(f"{owner}: vector is given, expected none: {why}")
        vector = _checks.array(owner, "vector", vector, self.dtype, ("B", self.vector_size))
        vector = np.ascontiguousarray(vector)
        flat = linear.linear_forward(vector, self._params["start.weight"],
                                    self._params["start.bias"])  # (B, all states of a row)
        states, at = [], 0
        for shapes in self._state_shapes(len(vector)):
            own = []
            for L, B, H in shapes:
                own.append(flat[:, at : at + L * H].reshape(B, L, H).swapaxes(0, 1))
                at += L * H
            states.append(tuple(own) if len(own) > 1 else own[0])
        return tuple(states), vector

    def _start_back(self, vector: np.ndarray, dstate: States) -> np.ndarray:
        """Return the vector's gradient (B, C), and add to the map's."""
        parts = [d.swapaxes(0, 1).reshape(len(vector), -1)
                 for of in dstate for d in arrays_of(of)]
        dvector = linear.linear_backward(
            np.ascontiguousarray(np.concatenate(parts, 1)), vector, self._params["start.weight"],
            self.grads["start.weight"], self.grads["start.bias"])
        assert dvector is not None  # it was asked for
        return dvector

    # ---- forward and backward ---------------------------------------------------------------

    def __call__(
        self, x: Any, state: States | None = None, *, vector: Any = None
    ) -> tuple[np.ndarray, States]:
        """Return the outputs for a batch of sequences.

        Parameters
        ----------
        x : array (T, B, I), or integers (T, B) below V
        state : tuple with a state for each layer, or None: zeros
        vector : array (B, C), optional
            What the initial state is made of, instead of `state`.

        Returns
        -------
        outputs : array (T, B, N), or (B, N) with readout "last"
            Logits, for softmax and bce.
        state : tuple
            Every layer's final state.

        Raises
        ------
        TypeError, ValueError, IndexError
            If x, state or vector do not fit, or a symbol is not below V.
        """
        owner = type(self).__name__
        state, vector = self._start(owner, state, vector)
        y, state = self.run(owner, x, state)
        read = self._read(y, state)
        outputs = self._head(read)
        if self.training:
            self._pending = (read, None, vector)
        return outputs, state

    def _read(self, y: np.ndarray, state: States) -> np.ndarray:
        """Return what the head reads: y (T, B, D*H), or the last layer's final h (B, D*H)."""
        if self.readout == "every":
            return y
        last = self.layers[-1]
        h = arrays_of(state[-1])[0][-last.directions :]  # (D, B, H)
        return np.ascontiguousarray(h.swapaxes(0, 1)).reshape(h.shape[1], self.width)

    def _head(self, read: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return outputs (..., N) of what is read (..., D*H)."""
        N = self.output_size
        flat = None if out is None else out.reshape(-1, N)
        outputs = linear.linear_forward(read.reshape(-1, self.width), self._params["head.weight"],
                                       self._params["head.bias"], flat)
        return outputs.reshape(*read.shape[:-1], N) if out is None else out

    def loss(
        self, x: Any, targets: Any, state: States | None = None, *, weights: Any = None,
        vector: Any = None, segment: int | None = None,
    ) -> tuple[float, States]:
        """Return the loss of the outputs, and the final state.

        Parameters
        ----------
        x, state, vector
            As for a call.
        targets : integers (T, B) below N for softmax, else array (T, B, N); with readout "last"
            without the T
        weights : array (T, B) or, with readout "last", (B,), optional
            Of each output, at least 0: a mask, or how much it counts.
        segment : int, optional
            Keep the state of every `segment` steps only, and let backward run the steps between
            anew: memory of a segment instead of the whole sequence, for one more forward. The
            gradients are those of the whole sequence (Chen et al. 2016, "Training deep nets with
            sublinear memory cost"). Not for bidirectional layers.

        Returns
        -------
        loss : float
            The weighted mean over the outputs, in nats for softmax and bce.
        state : tuple
            Every layer's final state.
        """
        owner = f"{type(self).__name__}.loss"
        state, vector = self._start(owner, state, vector)
        if segment is not None:
            return self._segmented(owner, x, targets, state, weights, vector, segment)
        y, state = self.run(owner, x, state)
        read = self._read(y, state)
        shape = (*read.shape[:-1], self.output_size)
        if self._outputs is None or self._outputs.shape != shape:
            self._outputs = np.empty(shape, self.dtype)
        outputs = self._head(read, self._outputs)
        loss = self._judge(owner, outputs, targets, weights, self.training)
        if self.training:
            self._pending = (read, outputs, vector)  # outputs hold their own gradient by now
        return loss, state

    def _judge(self, owner: str, outputs: np.ndarray, targets: Any, weights: Any, grad: bool
               ) -> float:
        """Return the loss; with `grad` the outputs become its gradient."""
        try:
            return LOSSES[self.loss_name](outputs, targets, weights, need_grad=grad,
                                          out=outputs if grad else None)[0]
        except (TypeError, ValueError, IndexError) as error:  # say who was called
            raise type(error)(f"{owner}: {str(error).partition(': ')[2]}") from None

    # ---- long sequences, segment by segment -------------------------------------------------

    def _segmented(
        self, owner: str, x: Any, targets: Any, state: Any, weights: Any, vector: Any, segment: int
    ) -> tuple[float, States]:
        """Do what `loss` does, but remember only where each segment begins."""
        segment = _checks.positive(owner, "segment", segment)
        if any(layer.bidirectional for layer in self.layers):
            raise ValueError(f"{owner}: segment is {segment} with a bidirectional layer, expected "
                             "layers that only go forward")
        T = len(x)
        if np.shape(targets)[: 1] != ((T,) if self.readout == "every" else np.shape(x)[1:2]):
            raise ValueError(f"{owner}: targets has shape {np.shape(targets)}, expected one for "
                             f"each output of x, {np.shape(x)[: 2]}")
        w = None if weights is None else np.asarray(weights, np.float64)
        parts: list[Any] = []
        loss = 0.0
        read = grad = None
        for t in range(0, T, segment):
            at = slice(t, t + segment)
            part = [at, state, [layer.masks for layer in self.layers], 1.0]
            y, state = self.run(owner, x[at], state, keep=False)
            if self.readout == "every":
                part[3] = len(y) / T if w is None else (w[at].sum() / w.sum() if w.any() else 0.0)
                loss += part[3] * self._judge(owner, self._head(y), targets[at],
                                              None if w is None else w[at], False)
            parts.append(part)
        if self.readout == "last":
            read = self._read(y, state)
            grad = self._head(read)
            loss = self._judge(owner, grad, targets, w, self.training)
        if self.training:
            self._pending = _Segments(parts, x, targets, w, vector, read, grad)
        return loss, state

    def _segments_back(self, owner: str, of: _Segments, dstate: States, need_dx: bool) -> Any:
        if of.read is not None:
            dstate = self._read_back(self._head_back(of.grad, of.read), dstate)
        after = [layer.masks for layer in self.layers]
        dxs = []
        for at, state, masks, share in reversed(of.parts):
            for layer, mask in zip(self.layers, masks, strict=True):
                layer.masks = mask
            y, _ = self.run(owner, of.x[at], state)
            dy = None
            if of.read is None:
                outputs = self._head(y)
                self._judge(owner, outputs, of.targets[at],
                            None if of.weights is None else of.weights[at], True)
                outputs *= self.dtype.type(share)
                dy = self._head_back(outputs, y)
            dx, dstate = self.back(owner, dy, dstate, need_dx)
            dxs.append(dx)
        for layer, mask in zip(self.layers, after, strict=True):
            layer.masks = mask
        return (np.concatenate(dxs[::-1]) if need_dx and self.symbols is None else None), dstate

    def backward(
        self, doutputs: Any = None, dstate: States | None = None, *, need_dx: bool = False
    ) -> tuple[Any, Any]:
        """Backpropagate the latest training-mode call or loss through time; adds to `grads`.

        Parameters
        ----------
        doutputs : array like the outputs
            After a call: the gradient with respect to them. After `loss`: leave it out.
        dstate : tuple with a gradient for each layer's final state, or None: zero
        need_dx : bool
            Whether the gradient of x is wanted.

        Returns
        -------
        dx : array (T, B, I) or None
            None without `need_dx`, and for symbols.
        dstate0 : tuple
            Gradient with respect to the initial state; if it came from a vector, (B, C): the
            vector's.

        Raises
        ------
        RuntimeError
            If there was no training-mode call, or it has had its backward.
        """
        owner = f"{type(self).__name__}.backward"
        if self._pending is None:
            raise RuntimeError(f"{owner}: no call to go back through: each training-mode call or "
                               "loss serves one backward")
        dstate = self._states(owner, dstate, "dstate")
        if isinstance(self._pending, _Segments):
            if doutputs is not None:
                raise ValueError(f"{owner}: doutputs is given after loss, expected None: it has "
                                 "its own")
            segments, self._pending = self._pending, None
            vector = segments.vector
            dx, dstate0 = self._segments_back(owner, segments, dstate, need_dx)
        else:
            read, from_loss, vector = self._pending
            if (doutputs is None) == (from_loss is None):
                came = "None after a call" if doutputs is None else "given after loss"
                raise ValueError(f"{owner}: doutputs is {came}, expected the outputs' gradient "
                                 "after a call and None after loss, which has its own")
            if from_loss is None:
                doutputs = np.ascontiguousarray(_checks.array(
                    owner, "doutputs", doutputs, self.dtype,
                    (*read.shape[:-1], self.output_size)))
            else:
                doutputs = from_loss
            self._pending = None
            dy: np.ndarray | None = self._head_back(doutputs, read)
            if self.readout == "last":
                dstate, dy = self._read_back(dy, dstate), None
            dx, dstate0 = self.back(owner, dy, dstate, need_dx)
        return dx, dstate0 if vector is None else self._start_back(vector, dstate0)

    def _head_back(self, doutputs: np.ndarray, read: np.ndarray) -> np.ndarray:
        """Return the gradient of what the head read (..., D*H), and add to the head's."""
        dread = linear.linear_backward(
            doutputs.reshape(-1, self.output_size), read.reshape(-1, self.width),
            self._params["head.weight"], self.grads["head.weight"], self.grads["head.bias"])
        assert dread is not None  # it was asked for
        return dread.reshape(read.shape)

    def _read_back(self, dread: Any, dstate: States) -> States:
        """Return dstate with the gradient dread (B, D*H) of the last layer's final h added."""
        last = self.layers[-1]
        D, H = last.directions, last.hidden_size
        dh = np.zeros((last.num_layers * D, len(dread), H), self.dtype)
        dh[-D:] = dread.reshape(len(dread), D, H).swapaxes(0, 1)
        has_c = isinstance(last, LSTM)
        given, dc = (dstate[-1] or (None, None)) if has_c else (dstate[-1], None)
        if given is not None:
            dh += given
        return (*dstate[:-1], (dh, dc) if has_c else dh)

    # ---- step by step -----------------------------------------------------------------------

    def stream(self, batch_size: int = 1) -> ModelStream:
        """Return a preallocated single step of the whole model, whose state starts at zero."""
        return ModelStream(self, batch_size)

    def generate(
        self, first: Any, length: int, state: States | None = None, *, vector: Any = None,
        temperature: float = 1.0, seed: Any = None,
    ) -> np.ndarray:
        """Let the model run freely: each output is the next input.

        Parameters
        ----------
        first : integers (B,), or array (B, I) with I = N
            The first input.
        length : int
            Steps.
        state : tuple with a state for each layer, or None: zeros
        vector : array (B, C), optional
            What the initial state is made of, instead of `state`.
        temperature : float
            Of symbols: divides the logits; 0 always takes the likeliest.
        seed : int or None
            Of the draws: the same seed gives the same symbols, on any number of threads.

        Returns
        -------
        integers (length, B), or array (length, B, N)
            What was drawn or, of real outputs, given; for bce the probabilities.

        Raises
        ------
        ValueError
            If outputs cannot be inputs, or an argument is out of its range.
        """
        owner = f"{type(self).__name__}.generate"
        length = _checks.positive(owner, "length", length)
        symbolic = self.symbols is not None
        if symbolic != (self.loss_name == "softmax") or self.output_size != (
                self.symbols if symbolic else self.layers[0].input_size):
            raise ValueError(f"{owner}: {self.output_size} outputs of {self.loss_name} cannot be "
                             f"inputs, expected {self.symbols or self.layers[0].input_size} of "
                             f"{'softmax' if symbolic else 'mse or bce'}")
        if not isinstance(temperature, (int, float)) or not 0 <= temperature < math.inf:
            raise ValueError(f"{owner}: temperature is {_checks.show(temperature)}, expected a "
                             "number of at least 0")
        x: np.ndarray
        if symbolic:
            x = _checks.rows(owner, first, ("B",), int(self.symbols or 0), name="first",
                             of="the embedding")
        else:
            x = np.ascontiguousarray(_checks.array(owner, "first", first, self.dtype,
                                                   ("B", self.layers[0].input_size)))
        state, _ = self._start(owner, state, vector)
        step = self.stream(len(x))
        step.state = state
        rng = np.random.default_rng(*_checks.seeds(owner, seed, 1))
        given = np.empty((length, *x.shape), x.dtype)
        for t in range(length):
            outputs = step(x)
            if symbolic:
                given[t] = _draw(outputs, temperature, rng)
            else:
                given[t] = outputs if self.loss_name == "mse" else 1 / (1 + np.exp(-outputs))
            x = given[t]
        return given

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_pending": None, "_outputs": None}


def _draw(logits: np.ndarray, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """Return a symbol (B,) for each row of logits (B, V)."""
    if temperature == 0:
        return np.asarray(logits.argmax(-1), np.int32)
    x = logits.astype(np.float64)
    p = np.exp((x - x.max(-1, keepdims=True)) / temperature).cumsum(-1)
    at = rng.random(len(p)) * p[:, -1]
    return np.asarray(np.minimum((p <= at[:, None]).sum(-1), x.shape[-1] - 1), np.int32)


class ModelStream:
    """A model step by step: ``step(x)`` takes (B,) symbols or (B, I) and gives outputs (B, N).

    Attributes
    ----------
    state : tuple
        Of every layer after the latest step; can be set, None means zeros.
    """

    def __init__(self, model: SequenceModel, batch_size: int) -> None:
        self._model = model
        self._streams: list[Stream] = [
            layer.stream(batch_size, None if i else model._table, one_hot=not i and model.one_hot)
            for i, layer in enumerate(model.layers)]

    def __call__(self, x: Any) -> np.ndarray:
        """Advance one step."""
        for stream in self._streams:
            x = stream(x)
        return self._model._head(x)

    @property
    def state(self) -> States:
        return tuple(stream.state for stream in self._streams)

    @state.setter
    def state(self, state: States | None) -> None:
        states = self._model._states(type(self).__name__, state)
        for stream, of in zip(self._streams, states, strict=True):
            stream.state = of

    def reset(self) -> None:
        """Set the state to zero."""
        for stream in self._streams:
            stream.reset()
