"""The public names of fastrnn.layers.init."""

from fastrnn.layers.init import *  # noqa: F403
from fastrnn.layers.init import __all__ as __all__
