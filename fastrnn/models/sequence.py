"""Sequence models: h(t) = phi(W h(t-1) + U x(t)), o(t) = V h(t), with a sequence in, out, or both.

A `SequenceModel` is a Stack of recurrent layers, the linear head V, and a loss. Letters: T steps, B
batch, I input, H hidden, D directions, L layers, N outputs, V symbols, C size of a context.
"""

from __future__ import annotations

import math
from typing import Any, overload

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue, public
from fastrnn._kernels.stream import Stream
from fastrnn.layers.parameters import spawn
from fastrnn.models import generate, recompute
from fastrnn.models.linear import Linear, inside
from fastrnn.models.losses import LOSSES, Goals
from fastrnn.models.passes import Grads, LossOptions, LossPass, OutputPass, States
from fastrnn.models.ragged import Ragged
from fastrnn.models.stack import Stack, arrays_of

__all__ = ["SequenceModel"]

READOUTS = ("every", "last")


class SequenceModel(Stack):
    """Recurrent layers and a linear head: o(t) = V h(t) + b, with a loss.

    =============  ===========================================================================
    in, out        how
    =============  ===========================================================================
    many to many   readout "every": a tag, a forecast, the next symbol for each step
    many to one    readout "last": a class or a number for the sequence, from the final state
    one to many    `generate`, from a state, or, with `context_size`, from a vector
    =============  ===========================================================================

    Parameters
    ----------
    layers, vocab_size, one_hot
        As of a Stack.
    output_size : int
        Numbers N of an output.
    loss : {"softmax", "mse", "bce"}
        Softmax cross-entropy with targets of whole numbers, mean squared error, or binary
        cross-entropy of each output's sigmoid; see fastrnn.losses.
    readout : {"every", "last"}
        Whether every step has an output, or the sequence has one. The last is read from the final
        states of the last layer, the reverse direction's too.
    context_size : int, optional
        If given, calls take a context (B, C), and the initial state is a linear map of it.
    seed : int or None
        Seed of embedding, head (uniform in +-1/sqrt(D*H)) and the map of the context.

    Attributes
    ----------
    layers : tuple of recurrent layers
    embedding : Embedding or None
    head : Linear
    context : Linear or None
        The map from a context to the initial state.

    Raises
    ------
    TypeError, ValueError
        If layers and sizes do not fit, or an option is unknown.
    """

    _fixed = Stack._fixed | {"head", "context", "output_size", "loss_name", "readout",
                             "context_size"}
    head: Linear
    context: Linear | None

    @public
    def __init__(
        self, layers: Any, output_size: int, *, vocab_size: int | None = None,
        one_hot: bool = False, loss: str = "softmax", readout: str = "every",
        context_size: int | None = None, seed: Any = None,
    ) -> None:
        self.output_size = _checks.positive("output_size", output_size)
        self.loss_name = _checks.one_of("loss", loss, LOSSES)
        self.readout = _checks.one_of("readout", readout, READOUTS)
        self.context_size = None if context_size is None else _checks.positive(
            "context_size", context_size)
        inner, head, context = spawn(seed, 3)
        parts = self._body(layers, vocab_size, one_hot, inner)
        cell = self.layers[-1].cell
        if self.readout == "last" and cell.output not in cell.states[:1]:
            raise RefusedValue(f"readout is 'last' with a cell whose output {cell.output} is no "
                               "state, expected 'every': there is no final state to read it from")
        self.head = parts["head"] = Linear(self.width, self.output_size, dtype=self.layers[0].dtype,
                                           seed=head)
        start = None
        if self.context_size is not None:
            size = sum(math.prod(shape) for layer in self.layers
                       for shape in layer.state_shapes(1))
            start = parts["context"] = Linear(self.context_size, size, dtype=self.layers[0].dtype,
                                              seed=context)
        self.context = start
        super(Stack, self).__init__(parts)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make a model of the same shapes."""
        return super().config | {
            "output_size": self.output_size, "loss": self.loss_name, "readout": self.readout,
            "context_size": self.context_size}

    def __repr__(self) -> str:
        return (f"{type(self).__name__}: {', '.join(map(repr, self.layers))}, "
                f"{self.output_size} outputs, loss {self.loss_name!r}, readout {self.readout!r}")

    def _shapes_out(self) -> dict[str, str]:
        outputs = f"(T, B, {self.output_size})" if self.readout == "every" else (
            f"(B, {self.output_size})")
        return super()._shapes_out() | {"head": outputs, "context": "initial state"}

    # ---- the initial state from a context -----------------------------------------------------

    def initial_state(
        self, state: Any, context: Any, B: int
    ) -> tuple[States, np.ndarray | None]:
        """Return the initial state, and the context as an array if that is where it comes from."""
        if context is None:
            if self.context is not None and state is None:
                raise RefusedValue("neither state nor context is given, expected one: the model "
                                   "has a context_size")
            return self.check_states(state, B), None
        if self.context is None or state is not None:
            why = "the model has no context_size" if self.context is None else "state is given"
            raise RefusedValue(f"context is given, expected none: {why}")
        context = np.ascontiguousarray(
            _checks.array("context", context, self.dtype, (B, self.context_size or 0)))
        flat = self.context.apply(context)  # (B, all states of a row)
        states, start = [], 0
        for layer in self.layers:
            own = []
            for L, _, H in layer.state_shapes(B):
                own.append(flat[:, start : start + L * H].reshape(B, L, H).swapaxes(0, 1))
                start += L * H
            states.append(own[0] if len(own) == 1 else tuple(own))
        return tuple(states), context

    def context_backward(self, context: np.ndarray, dstate: States, grads: Grads) -> np.ndarray:
        """Return the context's gradient (B, C), and add to the map's."""
        assert self.context is not None  # a pass with a context has its map
        parts = [d.swapaxes(0, 1).reshape(len(context), d.shape[0] * d.shape[2])
                 for of in dstate for d in arrays_of(of)]
        return self.context.backward(np.concatenate(parts, 1), context, inside(grads, "context"))

    # ---- forward ------------------------------------------------------------------------------

    @public
    def __call__(
        self, x: Any, state: States | None = None, *, context: Any = None, lengths: Any = None,
        episode_start: Any = None,
    ) -> tuple[Any, States]:
        """Return the outputs for a batch of sequences; in training mode with dropout.

        Parameters
        ----------
        x : array (T, B, I), or integers (T, B) below V; or a list of B arrays (T_i, I) or (T_i,)
            The arrays of a list may differ in their number of steps, 0 too. The work is that of
            the real steps.
        state : tuple with a state for each layer, or None: zeros
        context : array (B, C), optional
            What the initial state is made of, instead of `state`.
        lengths : integers (B,), each 0 to T, optional
            The steps of each row of an array; what follows is padding and may be anything, NaN too.
        episode_start : booleans (T, B), or a list of arrays (T_i,) with a list, optional
            Where a new episode of an agent begins: there the state before the step is zero, and no
            gradient flows back over the border. With lengths, what it has in padding does not
            count.

        Returns
        -------
        outputs : array (T, B, N), zero in padding, or a list of B arrays (T_i, N); with readout
            "last" an array (B, N), each row read after its own last step
            Logits, for softmax and bce.
        state : tuple
            Every layer's final state, that of each row after its own last step.

        Raises
        ------
        TypeError, ValueError, IndexError
            If x, state or context do not fit, or a symbol is not below V; if a list is empty, or
            its arrays differ in width or dtype.
        """
        outputs, state, _ = self._outputs(x, state, context, lengths, episode_start, grad=False,
                                          dropout=True)
        return outputs, state

    @public
    def forward(  # type: ignore[override]
        self, x: Any, state: States | None = None, *, context: Any = None, lengths: Any = None,
        episode_start: Any = None, grad: bool = True,
    ) -> tuple[Any, States, OutputPass | None]:
        """Return the outputs for a batch of sequences, and the pass to go back through.

        Parameters
        ----------
        x, state, context, lengths, episode_start : as of a call
        grad : bool
            Whether a pass is wanted; without one, dropout is left out.

        Returns
        -------
        outputs, state : as of a call
        p : OutputPass or None
        """
        grad = _checks.flag("grad", grad)
        return self._outputs(x, state, context, lengths, episode_start, grad=grad, dropout=grad)

    def _outputs(
        self, x: Any, state: Any, context: Any, lengths: Any, episode_start: Any, *, grad: bool,
        dropout: bool,
    ) -> tuple[Any, States, OutputPass | None]:
        x, ragged = self.check_input(x, "x", lengths, episode_start)
        state, context = self.initial_state(state, context,
                                            (x.shape if ragged is None else ragged.shape)[1])
        outputs, state, p = self.outputs(x, state, context, grad=grad, dropout=dropout,
                                         ragged=ragged)
        if ragged is not None and self.readout == "every":
            outputs = ragged.to_caller(outputs)
        return outputs, state, p

    def outputs(
        self, x: np.ndarray, state: States, context: np.ndarray | None, *, grad: bool,
        dropout: bool, scratch: bool = False, ragged: Ragged | None = None,
    ) -> tuple[np.ndarray, States, OutputPass | None]:
        """Return the outputs, the final state and the pass, for arguments that were checked.

        With `ragged` the outputs of steps are rows (N, ...), one sequence after the other. Outputs
        from the head's `scratch` are given back by whoever asked for them.
        """
        y, state, passes = self.run(x, state, grad=grad, dropout=dropout, ragged=ragged)
        read = self.read(y, state)
        outputs = self.head.apply(read, scratch)
        p = None
        if grad:
            shape = x.shape[:2] if ragged is None else ragged.shape
            p = OutputPass(self, passes, shape, read, context, ragged)
        return outputs, state, p

    def outputs_shape(self, T: int, B: int, ragged: Ragged | None = None) -> tuple[int, ...]:
        """Return the shape of the outputs: (T, B, K), or (B, K) with readout "last".

        With `ragged` those of steps are rows (N, K).
        """
        K = self.output_size
        if self.readout == "last":
            return B, K
        return (T, B, K) if ragged is None else (ragged.N, K)

    def read(self, y: np.ndarray, state: States) -> np.ndarray:
        """Return what the head reads: y (T, B, D*H), or the last layer's final h (B, D*H)."""
        if self.readout == "every":
            return y
        last = self.layers[-1]
        h = arrays_of(state[-1])[0][-last.directions :]  # (D, B, H)
        return np.ascontiguousarray(h.swapaxes(0, 1)).reshape(h.shape[1], self.width)

    def add_to_last(self, dread: np.ndarray, dstate: States) -> States:
        """Return dstate with the gradient dread (B, D*H) of the last layer's final h added."""
        last = self.layers[-1]
        D, H = last.directions, last.output_size
        dh = np.zeros((last.num_layers * D, len(dread), H), self.dtype)
        dh[-D:] = dread.reshape(len(dread), D, H).swapaxes(0, 1)
        given, *others = arrays_of(dstate[-1])
        if given is not None:
            dh += given
        more = len(last.cell.states) - 1
        return *dstate[:-1], (dh, *(others or [None] * more)) if more else dh

    @public
    def loss(
        self, x: Any, targets: Any, state: States | None = None, *, weights: Any = None,
        context: Any = None, lengths: Any = None, episode_start: Any = None,
        recompute_every: int | None = None, ignore_index: int | None = -100,
        grad: bool | None = None,
    ) -> LossPass:
        """Return the loss of the outputs, as a pass to go back through.

        Only real steps count: those of a list, or those of each row before its length.

        Parameters
        ----------
        x, state, context, lengths, episode_start
            As for a call.
        targets : integers (T, B) below N for softmax, else array (T, B, N); with readout "last"
            without the T
            With a list x a list, too: B arrays (T_i,) or (T_i, N).
        weights : array (T, B) or, with readout "last", (B,), optional
            Weight of each output in the loss, at least 0; or booleans: a padding mask. With a list
            x a list of B arrays (T_i,), or (B,), one for all steps of a sequence.
        recompute_every : int, optional
            Gradient checkpointing: keep the state of every so many steps only, and let backward
            run the steps between again: memory of so many steps instead of the whole sequence, for
            one more forward. The gradients are those of the whole sequence (Chen et al. 2016,
            "Training deep nets with sublinear memory cost"). Not for bidirectional layers. A
            piece that runs again has its masks again, and masks of a sequence or of weights go over
            all pieces. With several masks, or rows of different lengths, the masks that are drawn
            are not those of None.
        ignore_index : int or None
            An output with this target has weight 0 (softmax).
        grad : bool, optional
            Whether to keep what backward needs; by default in training mode. Without it the loss
            is that of evaluation: dropout is left out.

        Returns
        -------
        LossPass
            ``p.value``, the weighted mean over the outputs, in nats for softmax and bce;
            ``p.weight``; ``p.state``; ``p.backward()``.

        Raises
        ------
        TypeError, ValueError, IndexError
            If an argument does not fit.
        """
        grad = self.training if grad is None else _checks.flag("grad", grad)
        options = LossOptions(weights, ignore_index, recompute_every, grad)
        x, ragged = self.check_input(x, "x", lengths, episode_start)
        shape = x.shape[:2] if ragged is None else ragged.shape
        goals = self.check_goals(targets, shape, options, ragged)
        state, context = self.initial_state(state, context, shape[1])
        if recompute_every is not None:
            return recompute.loss(self, recompute.Read(x, ragged), goals, state, context, options)
        return self.loss_of(x, goals, state, context, grad, ragged)

    def check_goals(
        self, targets: Any, shape: tuple[int, int], options: LossOptions,
        ragged: Ragged | None = None,
    ) -> Goals:
        """Return the targets and weights of outputs for an input of shape (T, B).

        With `ragged` those of steps are rows, one sequence after the other.
        """
        weights = options.weights
        if ragged is not None and self.readout == "every":
            tail = () if self.loss_name == "softmax" else (self.output_size,)
            targets = ragged.joined("targets", targets, tail)
            weights = None if weights is None else ragged.weights(weights)
        return LOSSES[self.loss_name].check(targets, weights, options.ignore_index,
                                            self.outputs_shape(*shape, ragged), self.dtype)

    def loss_of(
        self, x: np.ndarray, goals: Goals, state: States, context: np.ndarray | None, grad: bool,
        ragged: Ragged | None = None,
    ) -> LossPass:
        """Return the loss for arguments that were checked."""
        outputs, state, p = self.outputs(x, state, context, grad=grad, dropout=grad, scratch=True,
                                         ragged=ragged)
        value = self.score(outputs, goals, grad)
        scratch = self.head.scratch
        if p is None:
            scratch.give(outputs)
            return LossPass(value, goals.total, state)
        return LossPass(value, goals.total, state, p, outputs, scratch)

    def score(self, outputs: np.ndarray, goals: Goals, grad: bool) -> float:
        """Return the loss; with `grad` the outputs become its gradient."""
        return LOSSES[self.loss_name].compute(outputs, goals, outputs if grad else None)

    # ---- step by step -------------------------------------------------------------------------

    @public
    def stream(self, batch_size: int = 1, *, context: Any = None) -> Stream:
        """Return a preallocated single step of the whole model, whose state starts at zero.

        Parameters
        ----------
        batch_size : int
            Rows B that advance together.
        context : array (B, C), optional
            For a model with a context_size: the state starts at the map of it. Without one the
            state is zero until ``step.state`` is set, and ``step.reset()`` zeroes it in any case.

        Returns
        -------
        Stream
            ``step(x)`` or ``step(x, out=o)`` takes x (B, I), or whole numbers (B,), and gives the
            outputs (B, N) of this step; ``step.state`` is a tuple with each layer's state, and can
            be set; ``step.reset()`` zeroes it. It keeps the weights that the model has now.
            ``step.block(x)`` takes many steps in one call, x (T, B, I) or (T, B). With `rows=index`
            a step or block advances n rows; ``step.rows[index]`` is their state, and
            ``step.reset(index)`` zeroes it.

        Raises
        ------
        ValueError
            If a layer is bidirectional, or the context does not fit.
        """
        B = _checks.positive("batch_size", batch_size)
        step = self.make_stream(B)
        if context is not None:
            step.state, _ = self.initial_state(None, context, B)
        return step

    def make_stream(self, batch_size: int) -> Stream:
        """Do what `stream` does; errors do not have its name yet."""
        embedding = None if self.embedding is None else self.embedding.weight
        return Stream([layer.stream_packs() for layer in self.layers], batch_size, self.dtype,
                      embedding, self.one_hot, head=(self.head.weight, self.head.bias), nested=True,
                      name=f"{type(self).__name__}.stream")

    @public
    def generate(
        self, first: Any, length: int, state: States | None = None, *, context: Any = None,
        temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, seed: Any = None,
    ) -> np.ndarray:
        """Let the model run freely: each output is the next input.

        Parameters
        ----------
        first : integers (B,), or array (B, I) with I = N
            The first input.
        length : int
            Steps.
        state : tuple with a state for each layer, or None: zeros
        context : array (B, C), optional
            What the initial state is made of, instead of `state`.
        temperature : float
            For symbols: divides the logits; 0 always takes the most likely symbol.
        top_k : int, optional
            Draw from the so many likeliest symbols only.
        top_p : float in (0, 1]
            Draw from the fewest likeliest symbols whose probabilities sum to at least this
            (Holtzman et al. 2020, "The curious case of neural text degeneration").
        seed : int or None
            Seed of the draws: the same seed gives the same symbols, on any number of threads.

        Returns
        -------
        integers (length, B), or array (length, B, N)
            The drawn symbols, or the outputs of a model of numbers; for bce the probabilities.

        Raises
        ------
        ValueError
            If outputs cannot be inputs, or an argument is out of its range.
        """
        sampling = generate.Sampling.checked(temperature, top_k, top_p, seed)
        length = _checks.positive("length", length)
        x = generate.check_first(self, first)
        state, _ = self.initial_state(state, context, len(x))
        return generate.run_freely(self, x, length, state, sampling)

    # ---- users' data ------------------------------------------------------------------------

    @overload
    def predict(
        self, x: np.ndarray, *, batch_size: int = 256, **options: Any
    ) -> np.ndarray: ...
    @overload
    def predict(self, x: Any, *, batch_size: int = 256, **options: Any) -> Any: ...
    def predict(self, x: Any, *, batch_size: int = 256, **options: Any) -> Any:
        """Return predictions for sequences; see fastrnn.models.inference.predict."""
        from fastrnn.models.inference import predict

        return predict(self, x, batch_size=batch_size, **options)

    def evaluate(self, x: Any, y: Any = None, *, batch_size: int = 256, **options: Any) -> float:
        """Return the mean loss over sequences; see fastrnn.models.inference.evaluate."""
        from fastrnn.models.inference import evaluate

        return evaluate(self, x, y, batch_size=batch_size, **options)
