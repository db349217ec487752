"""The public names of fastrnn.training.data."""

from fastrnn.training.data import *  # noqa: F403
from fastrnn.training.data import __all__ as __all__
