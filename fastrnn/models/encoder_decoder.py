"""A sequence in, another one out: an encoder's final state is a decoder's initial state.

Letters: S steps of the source, T steps of the target, B batch, I input, D directions, H hidden.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.cells import Cell
from fastrnn.layers.passes import Pass
from fastrnn.layers.recurrent import Recurrent
from fastrnn.models import generate
from fastrnn.models.linear import inside
from fastrnn.models.model import Model
from fastrnn.models.passes import (
    Back,
    Gradients,
    LossOptions,
    LossPass,
    ModelPass,
    States,
    back_through,
)
from fastrnn.models.ragged import Ragged
from fastrnn.models.sequence import SequenceModel
from fastrnn.models.stack import Stack

__all__ = ["EncoderDecoder"]


def _others(layer: Recurrent) -> list[Any]:
    """Return what a layer's state is, besides its sizes, if its class does not say so."""
    if isinstance(layer.cell, Cell):
        return []
    return [layer.cell.name, dict(zip(layer.cell.states, layer.state_widths, strict=True))]


class EncoderDecoder(Model):
    """A stack reads a sequence; from its final state a sequence model writes another.

    In training the decoder reads the sequence that it should have written (teacher forcing).
    `generate` runs freely.

    Parameters
    ----------
    encoder : Stack
    decoder : SequenceModel
        Its layers have the encoder's kinds, hidden sizes and numbers; readout "every".

    Raises
    ------
    TypeError, ValueError
        If the decoder cannot take the encoder's state.

    References
    ----------
    I. Sutskever, O. Vinyals and Q. V. Le, "Sequence to sequence learning with neural networks",
    NeurIPS 2014.
    """

    _fixed = Model._fixed | {"encoder", "decoder"}
    encoder: Stack
    decoder: SequenceModel

    @public
    def __init__(self, encoder: Stack, decoder: SequenceModel) -> None:
        if not isinstance(encoder, Stack) or isinstance(encoder, SequenceModel):
            raise RefusedType(f"encoder is {_checks.kind(encoder)}, expected a Stack")
        if not isinstance(decoder, SequenceModel):
            raise RefusedType(f"decoder is {_checks.kind(decoder)}, expected a SequenceModel")
        if decoder.readout != "every" or decoder.context_size is not None:
            raise RefusedValue(f"decoder has readout {decoder.readout!r} and context_size "
                               f"{decoder.context_size}, expected 'every' and None")
        states = [[(type(a).__name__, a.num_layers, a.bidirectional, a.hidden_size, a.dtype.name,
                    *_others(a)) for a in model.layers] for model in (encoder, decoder)]
        if states[0] != states[1]:
            raise RefusedValue(f"encoder's layers are {states[0]}, decoder's {states[1]}, "
                               "expected the same: the state goes from one to the other")
        self.encoder, self.decoder = encoder, decoder
        super().__init__({"encoder": encoder, "decoder": decoder})

    @property
    def config(self) -> dict[str, Any]:
        """The configurations of encoder and decoder, and the numbers of layers that they share."""
        decoder = self.decoder.config
        if type(self.decoder) is not SequenceModel:  # a LanguageModel has another configuration
            decoder["model"] = type(self.decoder).__name__
        made = {"encoder": self.encoder.config, "decoder": decoder}
        shared = [[i, j] for i, a in enumerate(self.encoder.layers)
                  for j, b in enumerate(self.decoder.layers) if a is b]
        return made | {"shared": shared} if shared else made

    def _shapes_out(self) -> dict[str, str]:
        return {f"{name}.{part}": shape for name, of in
                (("encoder", self.encoder), ("decoder", self.decoder))
                for part, shape in of._shapes_out().items()}

    @public
    def loss(
        self, source: Any, inputs: Any, targets: Any, *, weights: Any = None, lengths: Any = None,
        ignore_index: int | None = -100, grad: bool | None = None,
    ) -> LossPass:
        """Return the loss with teacher forcing, as a pass to go back through.

        Parameters
        ----------
        source : what the encoder reads, (S, B) symbols or (S, B, I)
            Or a list of B arrays (S_i,) or (S_i, I); the decoder begins with the state after each
            one's own last step.
        inputs : what the decoder reads, (T, B) or (T, B, I): a start, then the targets but the last
            Or a list of B arrays (T_i,) or (T_i, I).
        lengths : pair of integers (B,), optional
            The steps of each row of the padded arrays `source`, 0 to S, and `inputs`, 0 to T; None
            in the place of one of them: all its steps are real, or it is a list.
        targets, weights, ignore_index, grad
            As for SequenceModel.loss.

        Returns
        -------
        LossPass
            ``p.value``, ``p.weight``, ``p.state`` (the decoder's final state), ``p.backward()``.

        Raises
        ------
        TypeError, ValueError, IndexError
            If the source, the inputs or the targets do not fit the model or each other.
        """
        grad = self.training if grad is None else _checks.flag("grad", grad)
        decoder = self.decoder
        own = _pair_of_lengths(lengths)
        source, of_source = self.encoder.check_input(source, "source", own[0])
        inputs, of_inputs = self.decoder.check_input(inputs, "inputs", own[1])
        B, shape = _batch(source, of_source), inputs.shape[:2]
        if of_inputs is not None:
            shape = of_inputs.shape
        if shape[1] != B:
            raise RefusedValue(f"inputs has {shape[1]} rows, expected {B}: as many as source")
        options = LossOptions(weights, ignore_index, grad=grad)
        goals = decoder.check_goals(targets, shape, options, of_inputs)
        _, state, passes = self.encoder.run(source, self.encoder.check_states(None, B), grad=grad,
                                            dropout=grad, ragged=of_source)
        p = decoder.loss_of(inputs, goals, state, None, grad, of_inputs)
        if p.inner is None:
            return p
        whole = _DecoderPass(self, passes, p.inner, of_source)
        return LossPass(p.value, p.weight, p.state, whole, p.doutputs)

    @public
    def generate(
        self, source: Any, first: Any, length: int, *, temperature: float = 0.0,
        top_k: int | None = None, top_p: float = 1.0, seed: Any = None,
    ) -> np.ndarray:
        """Return what the decoder writes freely after `source`.

        Parameters
        ----------
        source : what the encoder reads, (S, B) symbols or (S, B, I), or a list as for `loss`
        first : integers (B,), or array (B, I)
            The decoder's first input.
        length, temperature, top_k, top_p, seed
            As for SequenceModel.generate; by default the likeliest symbol is taken.

        Returns
        -------
        integers (length, B), or array (length, B, N)

        Raises
        ------
        TypeError, ValueError, IndexError
            If `source` or `first` do not fit the model or each other, or another argument is out
            of its range.
        """
        sampling = generate.Sampling.checked(temperature, top_k, top_p, seed)
        length = _checks.positive("length", length)
        source, ragged = self.encoder.check_input(source, "source")
        first = generate.check_first(self.decoder, first)
        B = _batch(source, ragged)
        if len(first) != B:
            raise RefusedValue(f"first has {len(first)} rows, expected {B}: as many as source")
        _, state, _ = self.encoder.run(source, self.encoder.check_states(None, B), grad=False,
                                       dropout=False, ragged=ragged)
        return generate.run_freely(self.decoder, first, length, state, sampling)


def _pair_of_lengths(lengths: Any) -> tuple[Any, Any]:
    """Return the lengths of the source and of the inputs."""
    if lengths is None:
        return None, None
    if not isinstance(lengths, (tuple, list)) or len(lengths) != 2 or any(
            np.ndim(n) == 0 for n in lengths if n is not None):
        raise RefusedType(f"lengths is {_checks.show(lengths)}, expected a pair: the lengths (B,) "
                          "of source and of inputs, or None in place of one")
    return lengths[0], lengths[1]


def _batch(x: np.ndarray, ragged: Ragged | None) -> int:
    """Return how many sequences an input that was checked has."""
    return int((x.shape if ragged is None else ragged.shape)[1])


class _DecoderPass(ModelPass):
    """A loss of the decoder, through which the gradient reaches the encoder.

    What is `ragged` is the encoder's input, whose gradient backward gives.
    """

    def __init__(
        self, model: EncoderDecoder, encoder: list[Pass], decoder: ModelPass, ragged: Ragged | None
    ) -> None:
        super().__init__(model, model.decoder, decoder.rows, ragged)
        self._encoder, self._decoder = encoder, decoder

    @property
    def ragged_of_layers(self) -> list[Ragged | None]:
        """What each recurrent layer read, the encoder's first."""
        model: Any = self._model
        encoder, decoder = len(model.encoder.layers), len(model.decoder.layers)
        return [self.ragged] * encoder + [self._decoder.ragged] * decoder

    def _go_back(self, gradient: Any, dstate: States, back: Back) -> Gradients:
        model: Any = self._model
        own = back._replace(grads=inside(back.grads, "decoder"), need_dx=False)
        _, between, after = self._decoder._go_back(gradient, dstate, own)
        own = back._replace(grads=inside(back.grads, "encoder"))
        dx, dstate0, before = back_through(model.encoder, self._encoder, None, between, own)
        return dx, dstate0, before + after
