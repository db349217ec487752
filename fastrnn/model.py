"""The public names of fastrnn.models.sequence."""

from fastrnn.models.sequence import *  # noqa: F403
from fastrnn.models.sequence import __all__ as __all__
