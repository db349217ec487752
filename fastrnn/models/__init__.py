"""What is asked of layers: sequence models, language models, encoder and decoder, losses."""

from fastrnn.models.encoder_decoder import EncoderDecoder
from fastrnn.models.language import LanguageModel
from fastrnn.models.linear import Embedding, Linear
from fastrnn.models.passes import LossPass
from fastrnn.models.sequence import SequenceModel
from fastrnn.models.stack import Stack

__all__ = ["Embedding", "EncoderDecoder", "LanguageModel", "Linear", "LossPass", "SequenceModel",
           "Stack"]
