"""The public names of fastrnn.models.language."""

from fastrnn.models.language import *  # noqa: F403
from fastrnn.models.language import __all__ as __all__
