"""The public names of fastrnn.models.encoder_decoder."""

from fastrnn.models.encoder_decoder import *  # noqa: F403
from fastrnn.models.encoder_decoder import __all__ as __all__
