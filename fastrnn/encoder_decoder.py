"""A sequence in, another one out: an encoder's final state starts a decoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn.model import SequenceModel
from fastrnn.parameters import Composite
from fastrnn.stack import Stack, States

__all__ = ["EncoderDecoder"]


class EncoderDecoder(Composite):
    """A stack reads a sequence; from its final state a sequence model writes another.

    Training forces the teacher: the decoder reads what it should have written. `generate` runs
    freely.

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

    def __init__(self, encoder: Stack, decoder: SequenceModel) -> None:
        owner = type(self).__name__
        if not isinstance(encoder, Stack) or isinstance(encoder, SequenceModel):
            raise TypeError(f"{owner}: encoder is {_checks.kind(encoder)}, expected a Stack")
        if not isinstance(decoder, SequenceModel):
            raise TypeError(f"{owner}: decoder is {_checks.kind(decoder)}, expected a "
                            "SequenceModel")
        if decoder.readout != "every" or decoder.vector_size is not None:
            raise ValueError(f"{owner}: decoder has readout {decoder.readout!r} and vector_size "
                             f"{decoder.vector_size}, expected 'every' and None")
        states = [[(type(a).__name__, a.num_layers, a.bidirectional, a.hidden_size, a.dtype.name)
                   for a in model.layers] for model in (encoder, decoder)]
        if states[0] != states[1]:
            raise ValueError(f"{owner}: encoder's layers are {states[0]}, decoder's {states[1]}, "
                             "expected the same: the state goes from one to the other")
        self.encoder, self.decoder = encoder, decoder
        super().__init__({"encoder": encoder, "decoder": decoder}, {}, encoder.dtype)

    @property
    def config(self) -> dict[str, Any]:
        """The configurations of encoder and decoder."""
        return {"encoder": self.encoder.config, "decoder": self.decoder.config}

    def loss(
        self, source: Any, inputs: Any, targets: Any, *, weights: Any = None
    ) -> tuple[float, States]:
        """Return the loss with the teacher forced, and the decoder's final state.

        Parameters
        ----------
        source : what the encoder reads, (S, B) symbols or (S, B, I)
        inputs : what the decoder reads, (T, B) or (T, B, I): a start, then the targets but the last
        targets, weights
            As for SequenceModel.loss.
        """
        _, state = self.encoder.run(f"{type(self).__name__}.loss", source, None)
        return self.decoder.loss(inputs, targets, state, weights=weights)

    def backward(self) -> None:
        """Backpropagate the latest loss through decoder and encoder; adds to `grads`."""
        _, dstate = self.decoder.backward()
        self.encoder.backward(None, dstate, need_dx=False)

    def generate(
        self, source: Any, first: Any, length: int, *, temperature: float = 0.0, seed: Any = None
    ) -> np.ndarray:
        """Return what the decoder writes freely after `source`; see SequenceModel.generate."""
        training = self.training
        self.eval()
        try:
            _, state = self.encoder.run(f"{type(self).__name__}.generate", source, None)
            return self.decoder.generate(first, length, state, temperature=temperature, seed=seed)
        finally:
            self.train(training)
